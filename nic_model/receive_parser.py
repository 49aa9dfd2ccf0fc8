"""What the device's parser says of a received frame, and whether its address filter lets it in."""

# Ref: RFC 791 §3.1; RFC 8200 §3, §4, §8.1; RFC 9293 §3.1; RFC 768; IEEE 802.1Q §9.6

from __future__ import annotations

from dataclasses import dataclass

from nic_model.checksum import checksum_seed, ones_sum
from nic_model.contract import PARSED_BYTES, HashType, RxFilter, RxInfo
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV4_TOTAL_LENGTH_OFFSET,
    IPV6_EXTENSION_UNIT_BYTES,
    IPV6_HEADER_BYTES,
    IPV6_PAYLOAD_LENGTH_OFFSET,
    TCP_HEADER_BYTES,
    UDP_CHECKSUM_OFFSET,
    UDP_HEADER_BYTES,
    VLAN_TAG_BYTES,
    EtherType,
    IpProtocol,
)
from nic_model.packets import BROADCAST_MAC

_IPV4_FRAGMENT_OFFSET = 6
_IPV4_FRAGMENT_MASK = 0x3FFF  # more fragments, and the fragment's offset
_IPV4_PROTOCOL_OFFSET = 9
_IPV4_ADDRESSES = slice(12, 20)
_IPV6_NEXT_HEADER_OFFSET = 6
_IPV6_ADDRESSES = slice(8, 40)
_EXTENSIONS = (IpProtocol.HOP_BY_HOP, IpProtocol.IPV6_ROUTING, IpProtocol.IPV6_DESTINATION_OPTIONS)
_SEGMENTS_LEFT_OFFSET = 3
_PORTS_BYTES = 4
_ALL_ONES = 0xFFFF

_WITH_PORTS = {
    RxInfo.IPV4 | RxInfo.TCP: HashType.TCP_IPV4, RxInfo.IPV4 | RxInfo.UDP: HashType.UDP_IPV4,
    RxInfo.IPV6 | RxInfo.TCP: HashType.TCP_IPV6, RxInfo.IPV6 | RxInfo.UDP: HashType.UDP_IPV6,
}


@dataclass(frozen=True, slots=True)
class Parsed:
    """What is known of a frame."""

    info: RxInfo
    raw_sum: int
    """One's complement sum of all bytes behind the Ethernet header; with RxInfo.RAW_SUM the completion has it."""
    l3_offset: int = 0
    """Bytes before the IP header; with IPV4 or IPV6."""
    l4_offset: int = 0
    """Bytes before the TCP or UDP header; with TCP or UDP."""
    addresses: bytes = b""
    """Source and destination address; with IPV4 or IPV6."""
    ports: bytes = b""
    """Source and destination port; with TCP or UDP."""

    @property
    def kind(self) -> HashType:
        """The most that a hash of this frame may cover."""
        version = self.info & (RxInfo.IPV4 | RxInfo.IPV6)
        if not version:
            return HashType.NONE
        addresses = HashType.IPV4 if version == RxInfo.IPV4 else HashType.IPV6
        return _WITH_PORTS.get(version | self.info & (RxInfo.TCP | RxInfo.UDP), addresses)


def passes_filter(destination: bytes, own_address: bytes, rx_filter: int) -> bool:
    """Whether a frame for `destination` is let in; the own address always is."""
    return bool(destination == own_address
                or rx_filter & RxFilter.PROMISCUOUS
                or (rx_filter & RxFilter.BROADCAST and destination == BROADCAST_MAC)
                or (rx_filter & RxFilter.MULTICAST and destination[0] & 1))


def parse_received(frame: bytes) -> Parsed:
    """What a frame of at least 14 bytes is. A malformed header leaves its bit and all behind it unset."""
    info = RxInfo(0)
    at = ETHERNET_HEADER_BYTES
    raw_sum = ones_sum(frame[at:])
    ethertype = _u16(frame, at - 2)
    if ethertype == EtherType.VLAN and len(frame) >= at + VLAN_TAG_BYTES:
        info |= RxInfo.VLAN
        at += VLAN_TAG_BYTES
        ethertype = _u16(frame, at - 2)
    packet = frame[at:]
    l4_offset, addresses = 0, b""
    if ethertype == EtherType.IPV4:
        found, l4_offset = _parse_ipv4(packet)
        addresses = packet[_IPV4_ADDRESSES]
    elif ethertype == EtherType.IPV6:
        found, l4_offset = _parse_ipv6(packet, at)
        addresses = packet[_IPV6_ADDRESSES]
    else:
        found = RxInfo(0)
    info |= found
    if not found:
        return Parsed(info | RxInfo.RAW_SUM, raw_sum)
    if not found & (RxInfo.TCP | RxInfo.UDP):
        return Parsed(info | RxInfo.RAW_SUM, raw_sum, at, addresses=addresses)
    return Parsed(info, raw_sum, at, at + l4_offset, addresses, packet[l4_offset : l4_offset + _PORTS_BYTES])


def _u16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "big")


def _parse_ipv4(packet: bytes) -> tuple[RxInfo, int]:
    """Bits of an IPv4 packet, and where its L4 header is."""
    if len(packet) < IPV4_HEADER_BYTES or packet[0] >> 4 != 4:
        return RxInfo(0), 0
    header_bytes = 4 * (packet[0] & 0xF)
    total_bytes = _u16(packet, IPV4_TOTAL_LENGTH_OFFSET)
    if header_bytes < IPV4_HEADER_BYTES or not header_bytes <= total_bytes <= len(packet):
        return RxInfo(0), 0
    header_right = ones_sum(packet[:header_bytes]) == _ALL_ONES
    info = RxInfo.IPV4 | (RxInfo.L3_CHECKSUM_OK if header_right else RxInfo.CHECKSUM_BAD)
    if _u16(packet, _IPV4_FRAGMENT_OFFSET) & _IPV4_FRAGMENT_MASK:
        return info | RxInfo.FRAGMENT, 0
    addresses = packet[_IPV4_ADDRESSES]
    return info | _parse_l4(packet[header_bytes:total_bytes], packet[_IPV4_PROTOCOL_OFFSET], addresses,
                            is_ipv4=True), header_bytes


def _parse_ipv6(packet: bytes, before: int) -> tuple[RxInfo, int]:
    """Bits of an IPv6 packet that has `before` bytes in front of it, and where its L4 header is."""
    if len(packet) < IPV6_HEADER_BYTES or packet[0] >> 4 != 6:
        return RxInfo(0), 0
    end = IPV6_HEADER_BYTES + _u16(packet, IPV6_PAYLOAD_LENGTH_OFFSET)
    if end > len(packet):
        return RxInfo(0), 0
    next_header, at, segments_left = packet[_IPV6_NEXT_HEADER_OFFSET], IPV6_HEADER_BYTES, 0
    while next_header in _EXTENSIONS:
        header = packet[at:end]
        if before + at >= PARSED_BYTES or len(header) < IPV6_EXTENSION_UNIT_BYTES:
            return RxInfo.IPV6, 0
        if next_header == IpProtocol.IPV6_ROUTING:
            segments_left |= header[_SEGMENTS_LEFT_OFFSET]
        # RFC 8200 §4.3: "Length of the ... header in 8-octet units, not including the first 8 octets."
        next_header, at = header[0], at + IPV6_EXTENSION_UNIT_BYTES * (header[1] + 1)
    if before + at >= PARSED_BYTES:
        return RxInfo.IPV6, 0
    segment = packet[at:end]
    if next_header == IpProtocol.IPV6_FRAGMENT:
        whole = len(segment) >= IPV6_EXTENSION_UNIT_BYTES
        return RxInfo.IPV6 | (RxInfo.FRAGMENT if whole else RxInfo(0)), 0
    # RFC 8200 §8.1: "If the IPv6 packet contains a Routing header, the Destination Address used in the pseudo-header is
    # that of the final destination." It stands in the IPv6 header only when no segments are left.
    if segments_left:
        return RxInfo.IPV6, 0
    return RxInfo.IPV6 | _parse_l4(segment, next_header, packet[_IPV6_ADDRESSES], is_ipv4=False), at


def _parse_l4(segment: bytes, protocol: int, addresses: bytes, *, is_ipv4: bool) -> RxInfo:
    if protocol == IpProtocol.TCP and len(segment) >= TCP_HEADER_BYTES:
        info = RxInfo.TCP
    elif protocol == IpProtocol.UDP and len(segment) >= UDP_HEADER_BYTES:
        info = RxInfo.UDP
        # RFC 768: "An all zero transmitted checksum value means that the transmitter generated no checksum"
        if is_ipv4 and _u16(segment, UDP_CHECKSUM_OFFSET) == 0:
            return info | RxInfo.L4_CHECKSUM_OK
    else:
        return RxInfo(0)
    half = len(addresses) // 2
    seed = checksum_seed(addresses[:half], addresses[half:], protocol, len(segment))
    right = ones_sum(segment, seed) == _ALL_ONES
    return info | (RxInfo.L4_CHECKSUM_OK if right else RxInfo.CHECKSUM_BAD)
