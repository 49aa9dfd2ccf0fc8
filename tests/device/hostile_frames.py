"""Frames that nobody should send: truncated, garbage, and with every header field as it must not be.

They are made with `struct`, not with scapy: a hundred thousand of them are wanted, and most have no right form anyway.
"""

# Ref: RFC 791 §3.1, RFC 8200 §3 and §4, RFC 9293 §3.1, RFC 768, IEEE 802.1Q §9.6

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import NamedTuple

from nic_model.checksum import internet_checksum
from nic_model.contract import MAX_FRAME_BYTES
from nic_model.contract.protocols import MAC_CONTROL_ADDRESS

OWN_MAC = bytes.fromhex("02000000aa01")
PEER_MAC = bytes.fromhex("02000000bb02")

TCP, UDP = 6, 17
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION, NO_NEXT = 0, 43, 44, 60, 59
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION)

FIELDS = {
    "ethernet": {"destination": (0, 48), "source": (48, 48), "type": (96, 16)},
    "vlan": {"tci": (0, 16), "type": (16, 16)},
    "ipv4": {"version": (0, 4), "header length": (4, 4), "traffic class": (8, 8), "length": (16, 16), "id": (32, 16),
             "flags": (48, 3), "fragment offset": (51, 13), "time to live": (64, 8), "protocol": (72, 8),
             "checksum": (80, 16), "source": (96, 32), "destination": (128, 32), "options": (160, 32)},
    "ipv6": {"version": (0, 4), "traffic class": (4, 8), "flow label": (12, 20), "length": (32, 16),
             "next header": (48, 8), "hop limit": (56, 8), "source": (64, 128), "destination": (192, 128)},
    "extension": {"next header": (0, 8), "length": (8, 8), "data": (16, 32)},
    "tcp": {"source port": (0, 16), "destination port": (16, 16), "sequence": (32, 32), "acknowledgement": (64, 32),
            "data offset": (96, 4), "reserved": (100, 4), "flags": (104, 8), "window": (112, 16),
            "checksum": (128, 16), "urgent": (144, 16), "option kind": (160, 8), "option length": (168, 8)},
    "udp": {"source port": (0, 16), "destination port": (16, 16), "length": (32, 16), "checksum": (48, 16)},
}
"""Header -> field -> (offset, width) in bits."""


class Layer(NamedTuple):
    """A header in a frame."""

    kind: str
    at: int
    """Byte at which it begins."""


class Frame(NamedTuple):
    """Bytes and what they are."""

    data: bytearray
    layers: tuple[Layer, ...]


class Hostile(NamedTuple):
    """One frame for the device."""

    data: bytes
    bad: bool
    """The MAC's bad-frame flag."""
    why: str
    """What is wrong with it."""


def right_frame(rng: random.Random, flow: int | None = None) -> Frame:
    """A frame with nothing wrong: TCP or UDP over IPv4 or IPv6, with options, extensions and a tag by chance."""
    layers = [Layer("ethernet", 0)]
    version, tagged = rng.choice((4, 6)), rng.random() < 0.25
    head = OWN_MAC + PEER_MAC
    ether_type = b"\x08\0" if version == 4 else b"\x86\xdd"
    if tagged:
        layers.append(Layer("vlan", 14))
        head += b"\x81\0" + rng.randbytes(2)
    head += ether_type
    protocol = rng.choice((TCP, TCP, UDP))
    number = rng.randrange(1 << 16) if flow is None else flow
    payload = rng.randbytes(rng.choice((0, 1, 2, 6, 18, 100, 333, rng.randrange(600))))
    if protocol == TCP:
        options = rng.choice((b"", b"\1\1\x08\x0a" + rng.randbytes(8), rng.randbytes(4 * rng.randrange(11))))
        transport = bytearray(struct.pack(">HHIIBBHHH", number, 80, rng.getrandbits(32), rng.getrandbits(32),
                                          (20 + len(options)) // 4 << 4, rng.choice((0x10, 0x10, 0x18, 0x02, 0x11)),
                                          rng.randrange(1 << 16), 0, 0) + options + payload)
        sum_at = 16
    else:
        transport = bytearray(struct.pack(">HHHH", number, 80, 8 + len(payload), 0) + payload)
        sum_at = 6
    begin = len(head)
    if version == 4:
        options = rng.randbytes(rng.choice((0, 0, 0, 4, 20, 40)))
        source, destination = bytes((10, 0, 0, number % 250)), bytes((10, 0, 0, 1))
        network = bytearray(struct.pack(">BBHHHBBH", 0x45 + len(options) // 4, rng.choice((0, 0, 3)),
                                        20 + len(options) + len(transport), rng.randrange(1 << 16),
                                        rng.choice((0, 0x4000)), 64, protocol, 0) + source + destination + options)
        network[10:12] = internet_checksum(network).to_bytes(2, "big")
        layers.append(Layer("ipv4", begin))
    else:
        # RFC 8200 §4.1: a Hop-by-Hop Options header is restricted to appear immediately after an IPv6 header only
        chain = [rng.choice((ROUTING, DESTINATION) if place else (HOP_BY_HOP, ROUTING, DESTINATION))
                 for place in range(rng.choice((0, 0, 0, 1, 2)))]
        layers.append(Layer("ipv6", begin))
        extensions = bytearray()
        for place in range(len(chain)):
            following = chain[place + 1] if place + 1 < len(chain) else protocol
            size = rng.choice((0, 0, 1, 3))
            layers.append(Layer("extension", begin + 40 + len(extensions)))
            # a routing header with no segments left, or padding
            content = b"\4\0" if chain[place] == ROUTING else b"\1\4"
            extensions += bytes((following, size)) + content + bytes(4) + bytes(8 * size)
        source, destination = bytes(15) + bytes((number % 250,)), bytes(15) + b"\1"
        network = bytearray(struct.pack(">IHBB", 0x60000000, len(extensions) + len(transport),
                                        chain[0] if chain else protocol, 64) + source + destination + extensions)
    pseudo = source + destination + struct.pack(">HH", protocol, len(transport))
    total = internet_checksum(pseudo + transport)
    # RFC 768: an all zero transmitted checksum value means that the transmitter generated no checksum
    transport[sum_at:sum_at + 2] = (total or 0xFFFF if protocol == UDP else total).to_bytes(2, "big")
    layers.append(Layer("tcp" if protocol == TCP else "udp", begin + len(network)))
    data = bytearray(head + network + transport)
    return Frame(data + bytes(max(0, 60 - len(data))), tuple(layers))


def good_frame(number: int) -> bytes:
    """A UDP frame that every filter and every parser takes, and that is like no other."""
    payload = struct.pack(">Q", number) * 8
    header = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(payload), number & 0xFFFF, 0x4000, 64, UDP, 0)
                       + bytes((10, 9, 9, 9, 10, 0, 0, 1)))
    header[10:12] = internet_checksum(header).to_bytes(2, "big")
    return OWN_MAC + PEER_MAC + b"\x08\0" + header + struct.pack(">HHHH", 9, 9, 8 + len(payload), 0) + payload


# ------------------------------------------------------------------------------------------------ what is wrong


def put(data: bytearray, bit: int, width: int, value: int) -> None:
    """Write a field whose highest bit is `bit` of the data, counted from the first byte's highest; as far as it is
    there."""
    total = 8 * len(data)
    if bit + width > total:
        return
    shift = total - bit - width
    whole = int.from_bytes(data, "big") & ~(((1 << width) - 1) << shift) | value << shift
    data[:] = whole.to_bytes(len(data), "big")


def _field(rng: random.Random) -> Hostile:
    frame = right_frame(rng)
    layer = rng.choice(frame.layers)
    name, (offset, width) = rng.choice(list(FIELDS[layer.kind].items()))
    most = (1 << width) - 1
    value = rng.choice((0, 1, most, most - 1, most >> 1, rng.getrandbits(width), rng.getrandbits(width),
                        rng.randrange(min(most, 64) + 1)))
    data = frame.data
    put(data, 8 * layer.at + offset, width, value)
    why = f"{layer.kind} {name}"
    network = next(each for each in frame.layers if each.kind in ("ipv4", "ipv6"))
    if layer.kind == "ipv4" and name != "checksum" and rng.random() < 0.6:
        # Right again, so that what reads the field sees it.
        size = min(4 * (data[network.at] & 15), len(data) - network.at)
        data[network.at + 10:network.at + 12] = bytes(2)
        data[network.at + 10:network.at + 12] = internet_checksum(
            bytes(data[network.at:network.at + size])).to_bytes(2, "big")
        why += ", header checksum right"
    return Hostile(bytes(data), False, why)


def _truncated(rng: random.Random) -> Hostile:
    data = right_frame(rng).data
    return Hostile(bytes(data[:rng.randrange(1, min(len(data), 130))]), False, "truncated")


def _garbage(rng: random.Random) -> Hostile:
    length = rng.choice((1, 6, 13, 14, 15, 59, 60, rng.randrange(1, 200), rng.randrange(1, 1600)))
    return Hostile((rng.choice((OWN_MAC, OWN_MAC, b"")) + rng.randbytes(length))[:length], False, "garbage")


def _garbage_network(rng: random.Random) -> Hostile:
    kind = rng.choice((b"\x08\0", b"\x86\xdd", b"\x81\0\0\7\x08\0", b"\x81\0\0\7\x81\0\0\7\x08\0", b"\x88\x08"))
    first = bytes((rng.choice((0x45, 0x4F, 0x44, 0x60, rng.randrange(256))),))
    return Hostile(OWN_MAC + PEER_MAC + kind + first + rng.randbytes(rng.randrange(100)), False,
                   "garbage network header")


def _bad_fcs(rng: random.Random) -> Hostile:
    return Hostile(bytes(right_frame(rng).data), True, "bad frame")


def _length(rng: random.Random) -> Hostile:
    length = rng.choice((MAX_FRAME_BYTES, MAX_FRAME_BYTES + 1, MAX_FRAME_BYTES + 8, MAX_FRAME_BYTES + 100))
    data = right_frame(rng).data
    return Hostile(bytes(data) + rng.randbytes(length - len(data)), rng.random() < 0.2, "length")


def _checksum(rng: random.Random) -> Hostile:
    frame = right_frame(rng)
    data = frame.data
    data[rng.randrange(frame.layers[-1].at, len(data))] ^= 1 << rng.randrange(8)
    return Hostile(bytes(data), False, "a bit of the segment")


def _extensions(rng: random.Random) -> Hostile:
    chain = [rng.choice((*EXTENSIONS, DESTINATION, NO_NEXT, 51, 50, rng.randrange(256)))
             for _ in range(rng.randrange(1, 9))]
    body = bytearray()
    for place in range(len(chain)):
        following = chain[place + 1] if place + 1 < len(chain) else rng.choice((TCP, UDP, NO_NEXT, rng.randrange(256)))
        size = rng.choice((0, 0, 0, 1, 2, 30, 255))
        body += bytes((following, size)) + rng.randbytes(6) + bytes(min(8 * size, 64))
    body += rng.randbytes(rng.randrange(60))
    length = rng.choice((len(body), len(body), len(body) + 1, max(0, len(body) - 9), 0, 0xFFFF))
    return Hostile(OWN_MAC + PEER_MAC + b"\x86\xdd" + struct.pack(">IHBB", 0x60000000, length, chain[0], 64)
                   + rng.randbytes(16) + bytes(15) + b"\1" + body, False, "extension headers")


def _fragment(rng: random.Random) -> Hostile:
    frame = right_frame(rng)
    data, network = frame.data, next(each for each in frame.layers if each.kind in ("ipv4", "ipv6"))
    at = network.at
    if network.kind == "ipv4":
        size = 4 * (data[at] & 15)
        data[at + 6:at + 8] = rng.choice((0x2000, 1, 0x2005, 0x1FFF, 0x3FFF)).to_bytes(2, "big")
        data[at + 10:at + 12] = bytes(2)
        data[at + 10:at + 12] = internet_checksum(bytes(data[at:at + size])).to_bytes(2, "big")
    else:
        fragment = bytes((data[at + 6], rng.choice((0, 0, 7)))) + rng.choice((0, 1, 8, 9, 0xFFF8)).to_bytes(2, "big")
        data[at + 40:at + 40] = fragment + rng.randbytes(4)
        data[at + 6] = FRAGMENT
        data[at + 4:at + 6] = (int.from_bytes(data[at + 4:at + 6], "big") + 8).to_bytes(2, "big")
    return Hostile(bytes(data), False, "fragment")


def _address(rng: random.Random) -> Hostile:
    data = right_frame(rng).data
    data[:6] = rng.choice((rng.randbytes(6), b"\xff" * 6, bytes.fromhex("01005e000001"), OWN_MAC[:5] + b"\2"))
    return Hostile(bytes(data), False, "address")


def _pause(rng: random.Random) -> Hostile:
    opcode = rng.choice((b"\0\1", b"\0\2", b"\1\1"))
    data = (rng.choice((MAC_CONTROL_ADDRESS, OWN_MAC)) + PEER_MAC + b"\x88\x08" + opcode + rng.randbytes(2)
            ).ljust(60, b"\0")
    return Hostile(data[:rng.choice((60, 60, 17, 18, 15, 14))], rng.random() < 0.2, "pause frame")


WAYS: tuple[tuple[Callable[[random.Random], Hostile], int], ...] = (
    (_field, 40), (_truncated, 10), (_garbage, 8), (_garbage_network, 8), (_bad_fcs, 4), (_length, 1), (_checksum, 6),
    (_extensions, 8), (_fragment, 8), (_address, 4), (_pause, 3))
"""What makes a hostile frame, and how often."""


def hostile_frame(rng: random.Random) -> Hostile:
    """One of them."""
    (way,) = rng.choices([way for way, _ in WAYS], [weight for _, weight in WAYS])
    return way(rng)
