"""A coalesced receive as bytes: one packet for the software, or the segments that it was made of."""

from __future__ import annotations

from typing import NamedTuple

from nic_model.checksum import checksum_seed, ones_sum
from nic_model.contract import RxInfo
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_CHECKSUM_OFFSET,
    IPV4_IDENTIFICATION_OFFSET,
    IPV4_TOTAL_LENGTH_OFFSET,
    IPV6_HEADER_BYTES,
    IPV6_PAYLOAD_LENGTH_OFFSET,
    TCP_CHECKSUM_OFFSET,
    TCP_FLAGS_OFFSET,
    TCP_SEQUENCE_OFFSET,
    VLAN_TAG_BYTES,
    IpProtocol,
    TcpFlags,
)

_IPV4_FRAGMENT_OFFSET = 6


class Headers(NamedTuple):
    """Where the headers of a TCP frame are, and its numbers."""

    is_ipv6: bool
    l3: int
    l4: int
    end: int
    """Behind the TCP header."""
    payload_bytes: int
    ip_bytes: int
    identification: int
    fragment: int
    """IPv4's flags and fragment offset."""
    sequence: int
    flags: TcpFlags


def find_headers(frame: bytes, info: RxInfo, l4_offset: int = 0) -> Headers:
    """Headers of a frame that the parser found to be TCP; `l4_offset` is where, if anything may stand between."""
    is_ipv6 = RxInfo.IPV6 in info
    l3 = ETHERNET_HEADER_BYTES + (VLAN_TAG_BYTES if RxInfo.VLAN in info else 0)
    l4 = l4_offset or l3 + (IPV6_HEADER_BYTES if is_ipv6 else 4 * (frame[l3] & 0xF))
    if is_ipv6:
        ip_bytes = IPV6_HEADER_BYTES + _u16(frame, l3 + IPV6_PAYLOAD_LENGTH_OFFSET)
    else:
        ip_bytes = _u16(frame, l3 + IPV4_TOTAL_LENGTH_OFFSET)
    end = l4 + 4 * (frame[l4 + TCP_FLAGS_OFFSET - 1] >> 4)
    return Headers(
        is_ipv6, l3, l4, end, l3 + ip_bytes - end, ip_bytes,
        0 if is_ipv6 else _u16(frame, l3 + IPV4_IDENTIFICATION_OFFSET),
        0 if is_ipv6 else _u16(frame, l3 + _IPV4_FRAGMENT_OFFSET),
        int.from_bytes(frame[l4 + TCP_SEQUENCE_OFFSET : l4 + TCP_SEQUENCE_OFFSET + 4], "big"),
        TcpFlags(frame[l4 + TCP_FLAGS_OFFSET]))


def as_one_packet(received: bytes, segments: int, info: RxInfo) -> bytes:
    """A receive as a single frame: lengths of the whole, and PSH and FIN if the last segment had them.

    The checksums are those of the first segment: the device has verified all of them.
    """
    if segments == 1:
        return received
    frame, first = bytearray(received), find_headers(received, info)
    if first.is_ipv6:
        _put16(frame, first.l3 + IPV6_PAYLOAD_LENGTH_OFFSET, len(frame) - first.l4)
    else:
        _put16(frame, first.l3 + IPV4_TOTAL_LENGTH_OFFSET, len(frame) - first.l3)
    frame[first.l4 + TCP_FLAGS_OFFSET] |= _last_flags(info)
    return bytes(frame)


def _last_flags(info: RxInfo) -> int:
    """Flags of an aggregate's last segment that its header does not show."""
    return (TcpFlags.PSH if RxInfo.PSH in info else 0) | (TcpFlags.FIN if RxInfo.FIN in info else 0)


def resegment(received: bytes, segments: int, mss: int, info: RxInfo) -> list[bytes]:
    """The frames that a receive was made of: from its bytes, and what its completion says of it."""
    if segments == 1:
        return [received]
    is_ipv6 = RxInfo.IPV6 in info
    first = find_headers(received, info)
    payload = received[first.end :]
    frames = []
    for number in range(segments):
        part = payload[number * mss : (number + 1) * mss]
        frame = bytearray(received[: first.end] + part)
        l3, l4 = first.l3, first.l4
        if number:
            frame[l4 + TCP_FLAGS_OFFSET] &= 0xFF & ~TcpFlags.CWR
        if number == segments - 1:
            frame[l4 + TCP_FLAGS_OFFSET] |= _last_flags(info)
        sequence = first.sequence + number * mss & 0xFFFF_FFFF
        frame[l4 + TCP_SEQUENCE_OFFSET : l4 + TCP_SEQUENCE_OFFSET + 4] = sequence.to_bytes(4, "big")
        if is_ipv6:
            _put16(frame, l3 + IPV6_PAYLOAD_LENGTH_OFFSET, len(frame) - l4)
        else:
            step = 0 if RxInfo.FIXED_ID in info else number
            _put16(frame, l3 + IPV4_IDENTIFICATION_OFFSET, first.identification + step & 0xFFFF)
            _put16(frame, l3 + IPV4_TOTAL_LENGTH_OFFSET, len(frame) - l3)
            _put16(frame, l3 + IPV4_CHECKSUM_OFFSET, 0)
            _put16(frame, l3 + IPV4_CHECKSUM_OFFSET, ones_sum(bytes(frame[l3:l4])) ^ 0xFFFF)
        addresses = bytes(frame[l3 + 8 : l3 + 40] if is_ipv6 else frame[l3 + 12 : l3 + 20])
        half = len(addresses) // 2
        _put16(frame, l4 + TCP_CHECKSUM_OFFSET, 0)
        seed = checksum_seed(addresses[:half], addresses[half:], IpProtocol.TCP, len(frame) - l4)
        _put16(frame, l4 + TCP_CHECKSUM_OFFSET, ones_sum(bytes(frame[l4:]), seed) ^ 0xFFFF)
        frames.append(bytes(frame))
    return frames


def _put16(frame: bytearray, offset: int, value: int) -> None:
    frame[offset : offset + 2] = value.to_bytes(2, "big")


def _u16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "big")
