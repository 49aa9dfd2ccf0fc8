"""Frames for the receive path's tests: made by scapy, with what a parser must find in them, known from their making."""

import logging
import random
from typing import NamedTuple

from nic_model.contract import NicConfig, RxInfo

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP  # noqa: E402
from scapy.layers.inet6 import (  # noqa: E402
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether  # noqa: E402

OWN = "02:00:00:00:00:01"
PEER = "02:00:00:00:00:99"
OWN_BYTES = bytes.fromhex(OWN.replace(":", ""))

IPV4, IPV6, TCP4, UDP4 = RxInfo.IPV4, RxInfo.IPV6, RxInfo.TCP, RxInfo.UDP
L3, L4, BAD, VLAN, FRAGMENT = (
    RxInfo.L3_CHECKSUM_OK, RxInfo.L4_CHECKSUM_OK, RxInfo.CHECKSUM_BAD, RxInfo.VLAN, RxInfo.FRAGMENT)


class Case(NamedTuple):
    """A frame, and the bits that the parser must give."""

    name: str
    frame: bytes
    info: RxInfo


def beats(config: NicConfig, frame: bytes, *, bad: bool = False) -> list[dict[str, int]]:
    """The frame as the MAC gives it."""
    width = config.mac_bytes
    pieces = [frame[at:at + width] for at in range(0, len(frame), width)]
    return [{
        "data": int.from_bytes(piece, "little"), "keep": (1 << len(piece)) - 1,
        "last": int(n == len(pieces) - 1), "user": int(bad and n == len(pieces) - 1),
    } for n, piece in enumerate(pieces)]


def data(size: int, seed: int = 1) -> bytes:
    """Bytes of a payload."""
    return random.Random(seed).randbytes(size)


def ether(*, dst: str = OWN, vlan: int | None = None):
    """An Ethernet header, tagged if asked."""
    layer = Ether(src=PEER, dst=dst)
    return layer if vlan is None else layer / Dot1Q(vlan=vlan)


def flipped(frame: bytes, offset: int, bits: int = 0x01) -> bytes:
    """The frame with bits of one byte changed. That always changes a one's complement sum."""
    changed = bytearray(frame)
    changed[offset] ^= bits
    return bytes(changed)


def with_raw_sum(info: RxInfo) -> RxInfo:
    """Info bits with RAW_SUM where no L4 checksum is verified."""
    return info if info & (TCP4 | UDP4) else info | RxInfo.RAW_SUM


def named_cases() -> list[Case]:
    """One frame for each thing that the parser distinguishes."""
    v4, v6 = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fd00::1", dst="fd00::2")
    tcp, udp = TCP(sport=1, dport=80, flags="A"), UDP(sport=1, dport=53)
    options = IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_NOP()] * 40)
    tcp4 = bytes(ether() / v4 / tcp / data(33))
    udp6 = bytes(ether() / v6 / udp / data(7))
    tagged6 = bytes(ether(vlan=5) / v6 / tcp / data(300))
    cases = [
        ("tcp over ipv4, odd payload", tcp4, IPV4 | TCP4 | L3 | L4),
        ("tcp over ipv4, no payload, padded", bytes(ether() / v4 / tcp) + bytes(6), IPV4 | TCP4 | L3 | L4),
        ("padding that is not zero", bytes(ether() / v4 / udp / b"x") + data(17), IPV4 | UDP4 | L3 | L4),
        ("udp over ipv4", bytes(ether() / v4 / udp / data(100)), IPV4 | UDP4 | L3 | L4),
        ("udp of a full MTU", bytes(ether() / v4 / udp / data(1472)), IPV4 | UDP4 | L3 | L4),
        ("jumbo frame", bytes(ether() / v4 / tcp / data(8960)), IPV4 | TCP4 | L3 | L4),
        ("all ones", bytes(ether() / v4 / tcp / (b"\xff" * 1460)), IPV4 | TCP4 | L3 | L4),
        ("udp without a checksum", bytes(ether() / v4 / UDP(chksum=0) / data(20)), IPV4 | UDP4 | L3 | L4),
        ("udp without a checksum over ipv6", bytes(ether() / v6 / UDP(chksum=0) / data(20)), IPV6 | UDP4 | BAD),
        ("tcp over ipv6", bytes(ether() / v6 / tcp / data(64)), IPV6 | TCP4 | L4),
        ("udp over ipv6", udp6, IPV6 | UDP4 | L4),
        ("vlan, ipv4", bytes(ether(vlan=7) / v4 / tcp / data(10)), VLAN | IPV4 | TCP4 | L3 | L4),
        ("vlan, ipv6", tagged6, VLAN | IPV6 | TCP4 | L4),
        ("vlan, udp without a checksum", bytes(ether(vlan=7) / v4 / UDP(chksum=0) / data(9)),
         VLAN | IPV4 | UDP4 | L3 | L4),
        ("two vlan tags", bytes(ether(vlan=7) / Dot1Q(vlan=8) / v4 / tcp), VLAN),
        ("ipv4 options", bytes(ether() / options / udp / data(11)), IPV4 | UDP4 | L3 | L4),
        ("vlan, ipv4 options, udp without a checksum", bytes(ether(vlan=1) / options / UDP(chksum=0) / data(8)),
         VLAN | IPV4 | UDP4 | L3 | L4),
        ("arp", bytes(ether(dst="ff:ff:ff:ff:ff:ff") / ARP()), RxInfo(0)),
        ("icmp", bytes(ether() / v4 / ICMP() / data(20)), IPV4 | L3),
        ("first fragment", bytes(ether() / IP(dst="10.0.0.2", flags="MF") / tcp / data(8)), IPV4 | L3 | FRAGMENT),
        ("later fragment", bytes(ether() / IP(dst="10.0.0.2", frag=4, proto=6) / data(40)), IPV4 | L3 | FRAGMENT),
        ("do not fragment", bytes(ether() / IP(dst="10.0.0.2", flags="DF") / tcp), IPV4 | TCP4 | L3 | L4),
        ("ipv6 fragment", bytes(ether() / v6 / IPv6ExtHdrFragment() / udp / data(8)), IPV6 | FRAGMENT),
        ("ipv6 extension header", bytes(ether() / v6 / IPv6ExtHdrDestOpt() / udp / data(8)), IPV6 | UDP4 | L4),
        *_extension_cases(),
        ("wrong header checksum", flipped(tcp4, 24), IPV4 | TCP4 | L4 | BAD),
        ("wrong tcp checksum", flipped(tcp4, 50), IPV4 | TCP4 | L3 | BAD),
        ("wrong last byte", flipped(tcp4, len(tcp4) - 1), IPV4 | TCP4 | L3 | BAD),
        ("wrong byte behind an odd end", tcp4 + b"\x55", IPV4 | TCP4 | L3 | L4),
        ("wrong source address", flipped(udp6, 22 + 3), IPV6 | UDP4 | BAD),
        ("wrong destination address", flipped(tagged6, 18 + 24 + 15), VLAN | IPV6 | TCP4 | BAD),
        ("wrong both", flipped(flipped(tcp4, 14 + 8), 60), IPV4 | TCP4 | BAD),
        ("total length beyond the frame", bytes(ether() / IP(len=41, dst="10.0.0.2") / tcp), RxInfo(0)),
        ("total length below the header", bytes(ether() / IP(len=19, dst="10.0.0.2") / tcp), RxInfo(0)),
        ("header length below five words", flipped(tcp4, 14, 0x01), RxInfo(0)),
        ("header length beyond the total length", flipped(bytes(ether() / v4 / udp), 14, 0x0A), RxInfo(0)),
        ("version is not 4", flipped(tcp4, 14, 0x10), RxInfo(0)),
        ("version is not 6", flipped(udp6, 14, 0x20), RxInfo(0)),
        ("payload length beyond the frame", udp6[:-1], RxInfo(0)),
        ("tcp header cut off", bytes(ether() / IP(dst="10.0.0.2", proto=6) / data(19)), IPV4 | L3),
        ("udp header cut off", bytes(ether() / IP(dst="10.0.0.2", proto=17) / data(7)), IPV4 | L3),
        ("tcp header cut off over ipv6", bytes(ether() / IPv6(dst="fd00::2", nh=6) / data(19)), IPV6),
        ("nothing behind the ipv4 header", bytes(ether() / IP(dst="10.0.0.2", proto=99)), IPV4 | L3),
        ("ipv4, cut in its first row", bytes(ether() / v4)[:16], RxInfo(0)),
        ("ipv4, cut in its header", bytes(ether() / v4)[:33], RxInfo(0)),
        ("vlan tag cut off", bytes(ether(vlan=3) / v4)[:17], RxInfo(0)),
        ("vlan tag and nothing", bytes(ether(vlan=3) / v4)[:18], VLAN),
        ("shortest frame", bytes(Ether(src=PEER, dst=OWN, type=0x1234)), RxInfo(0)),
    ]
    return [Case(name, frame, with_raw_sum(info)) for name, frame, info in cases]


def _extension_cases() -> list[tuple[str, bytes, RxInfo]]:
    """IPv6 extension headers: those that are passed over, what ends the walk, and how far it goes."""
    v6, tcp, udp = IPv6(src="fd00::1", dst="fd00::2"), TCP(sport=1, dport=80, flags="A"), UDP(sport=1, dport=53)
    hop, options = IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt()

    def long(units: int):
        """Destination options of so many units of 8 bytes."""
        return IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(8 * units - 4))])

    def routing(left: int):
        return IPv6ExtHdrRouting(addresses=["fd00::7"], segleft=left)

    good = IPV6 | TCP4 | L4
    deep = bytes(ether() / v6 / hop / options / options / tcp / data(9))
    # From byte 54, or 58 with a tag, L4 may begin up to 9 units on: in the first 128 bytes.
    return [
        ("hop by hop, tcp", bytes(ether() / v6 / hop / tcp / data(40)), good),
        ("three extension headers", deep, good),
        ("three extension headers, wrong last byte", flipped(deep, len(deep) - 1), IPV6 | TCP4 | BAD),
        ("vlan, three extension headers", bytes(ether(vlan=9) / v6 / hop / options / options / udp / data(9)),
         VLAN | IPV6 | UDP4 | L4),
        ("extension headers are not summed", bytes(ether() / v6 / long(3) / tcp / data(1)), good),
        ("every extension header", bytes(ether() / v6 / hop / options / routing(0) / options / tcp / data(3)), good),
        ("vlan, every extension header", bytes(ether(vlan=9) / v6 / hop / options / routing(0) / udp / data(3)),
         VLAN | IPV6 | UDP4 | L4),
        ("segments left", bytes(ether() / v6 / routing(1) / tcp / data(3)), IPV6),
        ("segments left, another alignment", bytes(ether() / v6 / hop / routing(1) / tcp / data(3)), IPV6),
        ("vlan, segments left", bytes(ether(vlan=9) / v6 / routing(1) / tcp / data(3)), VLAN | IPV6),
        ("vlan, segments left, another alignment", bytes(ether(vlan=9) / v6 / hop / routing(1) / tcp / data(3)),
         VLAN | IPV6),
        ("plain, behind segments left", bytes(ether() / v6 / tcp / data(3)), good),
        ("l4 begins as late as it may", bytes(ether() / v6 / long(9) / tcp / data(3)), good),
        ("vlan, l4 begins as late as it may", bytes(ether(vlan=9) / v6 / long(8) / tcp / data(3)),
         VLAN | good),
        ("l4 begins too late", bytes(ether() / v6 / long(10) / tcp / data(3)), IPV6),
        ("vlan, l4 begins too late", bytes(ether(vlan=9) / v6 / long(9) / tcp / data(3)), VLAN | IPV6),
        ("nine extension headers", bytes(_stacked(ether() / v6, [options] * 9) / tcp / data(3)), good),
        ("ten extension headers", bytes(_stacked(ether() / v6, [options] * 10) / tcp / data(3)), IPV6),
        ("a very long extension header", bytes(ether() / v6 / long(32) / tcp / data(3)), IPV6),
        ("fragment behind an extension header", bytes(ether() / v6 / hop / IPv6ExtHdrFragment() / tcp),
         IPV6 | FRAGMENT),
        ("fragment header cut off", bytes(ether() / IPv6(dst="fd00::2", nh=44) / data(7)), IPV6),
        ("extension header cut off", bytes(ether() / IPv6(dst="fd00::2", nh=0) / b"\x06\0" / data(5)), IPV6),
        ("extension header over the end", bytes(ether() / IPv6(dst="fd00::2", nh=0) / b"\x06\x01" / data(9)) + data(40),
         IPV6),
        ("a header that is none over the end, in padding",
         bytes(ether() / IPv6(dst="fd00::2", nh=0, plen=8) / b"\x2c\0" / bytes(6)) + data(16), IPV6),
        ("no next header", bytes(ether() / IPv6(dst="fd00::2", nh=59) / data(20)), IPV6),
        ("no next header behind an extension", bytes(ether() / v6 / IPv6ExtHdrDestOpt(nh=59)), IPV6),
        ("udp behind a destination option", bytes(ether() / v6 / options / udp), IPV6 | UDP4 | L4),
    ]


def _stacked(packet, layers):
    for layer in layers:
        packet = packet / layer.copy()
    return packet


def random_case(rng: random.Random, *, max_payload: int = 300) -> Case:
    """A frame of random parts, its checksums right or broken by one bit."""
    layers = ether(vlan=rng.randrange(4096) if rng.random() < 0.4 else None)
    info = VLAN if Dot1Q in layers else RxInfo(0)
    l3_offset = len(layers)
    is_v4 = rng.random() < 0.6
    if is_v4:
        layers /= IP(src=f"10.1.{rng.randrange(256)}.1", dst="10.0.0.2", id=rng.randrange(1 << 16),
                     options=[IPOption_NOP()] * (4 * rng.randrange(11)))
        info |= IPV4
    else:
        layers /= IPv6(src=f"fd00::{rng.randrange(1 << 16):x}", dst="fd00::2")
        info |= IPV6
    l4_offset = len(layers)
    if rng.random() < 0.5:
        layers /= TCP(sport=rng.randrange(1 << 16), dport=80, seq=rng.randrange(1 << 32), flags="PA")
        info |= TCP4
    else:
        layers /= UDP(sport=rng.randrange(1 << 16), dport=53)
        info |= UDP4
    frame = bytes(layers / rng.randbytes(rng.randrange(max_payload)))
    l4_right, l3_right = rng.random() < 0.7, rng.random() < 0.8
    if not l4_right:
        frame = flipped(frame, rng.randrange(l4_offset + 8, len(frame)) if len(frame) > l4_offset + 8
                        else l4_offset, 1 << rng.randrange(8))
    if is_v4 and not l3_right:
        frame = flipped(frame, l3_offset + 8, 1 << rng.randrange(8))  # time to live: in the header's sum only
    info |= L4 if l4_right else BAD
    if is_v4:
        info |= L3 if l3_right else BAD
    return Case("random", frame + rng.randbytes(rng.choice((0, 0, 1, 20))), info)
