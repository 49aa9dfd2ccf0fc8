"""What the device's parser says of a received frame, and whether its address filter lets it in."""

# Ref: RFC 791 §3.1; RFC 8200 §3, §8.1; RFC 9293 §3.1; RFC 768; IEEE 802.1Q §9.6

from __future__ import annotations

from nic_model.checksum import checksum_seed, ones_sum
from nic_model.contract import RxFilter, RxInfo
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV4_TOTAL_LENGTH_OFFSET,
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
_ALL_ONES = 0xFFFF


def passes_filter(destination: bytes, own_address: bytes, rx_filter: int) -> bool:
    """Whether a frame for `destination` is let in; the own address always is."""
    return bool(destination == own_address
                or rx_filter & RxFilter.PROMISCUOUS
                or (rx_filter & RxFilter.BROADCAST and destination == BROADCAST_MAC)
                or (rx_filter & RxFilter.MULTICAST and destination[0] & 1))


def parse_received(frame: bytes) -> RxInfo:
    """Info bits of a frame of at least 14 bytes. A malformed header leaves its bit and all behind it unset."""
    info = RxInfo(0)
    at = ETHERNET_HEADER_BYTES
    ethertype = _u16(frame, at - 2)
    if ethertype == EtherType.VLAN and len(frame) >= at + VLAN_TAG_BYTES:
        info |= RxInfo.VLAN
        at += VLAN_TAG_BYTES
        ethertype = _u16(frame, at - 2)
    packet = frame[at:]
    if ethertype == EtherType.IPV4:
        info |= _parse_ipv4(packet)
    elif ethertype == EtherType.IPV6:
        info |= _parse_ipv6(packet)
    return info


def _u16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "big")


def _parse_ipv4(packet: bytes) -> RxInfo:
    if len(packet) < IPV4_HEADER_BYTES or packet[0] >> 4 != 4:
        return RxInfo(0)
    header_bytes = 4 * (packet[0] & 0xF)
    total_bytes = _u16(packet, IPV4_TOTAL_LENGTH_OFFSET)
    if header_bytes < IPV4_HEADER_BYTES or not header_bytes <= total_bytes <= len(packet):
        return RxInfo(0)
    header_right = ones_sum(packet[:header_bytes]) == _ALL_ONES
    info = RxInfo.IPV4 | (RxInfo.L3_CHECKSUM_OK if header_right else RxInfo.CHECKSUM_BAD)
    if _u16(packet, _IPV4_FRAGMENT_OFFSET) & _IPV4_FRAGMENT_MASK:
        return info | RxInfo.FRAGMENT
    addresses = packet[_IPV4_ADDRESSES]
    return info | _parse_l4(packet[header_bytes:total_bytes], packet[_IPV4_PROTOCOL_OFFSET], addresses, is_ipv4=True)


def _parse_ipv6(packet: bytes) -> RxInfo:
    if len(packet) < IPV6_HEADER_BYTES or packet[0] >> 4 != 6:
        return RxInfo(0)
    end = IPV6_HEADER_BYTES + _u16(packet, IPV6_PAYLOAD_LENGTH_OFFSET)
    if end > len(packet):
        return RxInfo(0)
    next_header = packet[_IPV6_NEXT_HEADER_OFFSET]
    if next_header == IpProtocol.IPV6_FRAGMENT:
        return RxInfo.IPV6 | RxInfo.FRAGMENT
    addresses = packet[_IPV6_ADDRESSES]
    return RxInfo.IPV6 | _parse_l4(packet[IPV6_HEADER_BYTES:end], next_header, addresses, is_ipv4=False)


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
