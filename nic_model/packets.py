"""Packet formats: Ethernet with 802.1Q, ARP, IPv4, IPv6, TCP with its options, UDP.

Each header is a small mutable record with `pack() -> bytes` (checksum as the field holds it) and
`parse(data, offset)`. `parse_frame` takes a whole frame apart. Input that is no such packet raises `PacketError`
with the reason; no other exception leaves this module for bad input. Addresses are raw bytes: 6 for MAC, 4 or 16
for IP. Numbers are in host order; lengths are in bytes.
"""

# Ref: IEEE 802.3 §3.2, 802.1Q §9.6; RFC 826; RFC 791 §3.1; RFC 8200 §3, §4; RFC 9293 §3.1, §3.2; RFC 7323 §2.2, §3.2;
#      RFC 2018 §2; RFC 768

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from nic_model.checksum import Buffer, checksum_seed, ones_sum
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    TCP_HEADER_BYTES,
    UDP_HEADER_BYTES,
    VLAN_TAG_BYTES,
    EtherType,
    IpProtocol,
)


class PacketError(ValueError):
    """The bytes are not the packet they should be; the text says why."""


class TcpOption(IntEnum):
    """Kinds of TCP options."""

    END = 0
    NOP = 1
    MSS = 2
    WINDOW_SCALE = 3
    SACK_PERMITTED = 4
    SACK = 5
    TIMESTAMPS = 8


class ArpOperation(IntEnum):
    """What an ARP packet wants."""

    REQUEST = 1
    REPLY = 2


BROADCAST_MAC = b"\xff" * 6

_VLAN_TYPE = int(EtherType.VLAN)  # a member takes a tenth of a microsecond to find

_ETHERNET = struct.Struct("!6s6sH")
_VLAN = struct.Struct("!HH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_TCP = struct.Struct("!HHIIBBHHH")
_UDP = struct.Struct("!HHHH")
_TIMESTAMPS = struct.Struct("!III")
_TIMESTAMPS_LEAD = TcpOption.NOP << 24 | TcpOption.NOP << 16 | TcpOption.TIMESTAMPS << 8 | 10
_SACK_BLOCK = struct.Struct("!II")

MAX_TCP_OPTIONS_BYTES = 40
TIMESTAMPS_BYTES = 12
"""Of the timestamps option, with its padding."""
SACK_BLOCK_BYTES = 8

_IPV4_DONT_FRAGMENT = 0x4000
_IPV4_FRAGMENT_MASK = 0x3FFF  # more fragments, and the offset: 0 for a whole packet


@dataclass(slots=True)
class EthernetHeader:
    """Ethernet header, with an 802.1Q tag if `vlan_tci` is not None. `ethertype` is the one behind the tag."""

    destination: bytes
    source: bytes
    ethertype: int
    vlan_tci: int | None = None

    def pack(self) -> bytes:
        """14 bytes, or 18 with a tag."""
        if self.vlan_tci is None:
            return _ETHERNET.pack(self.destination, self.source, self.ethertype)
        return _ETHERNET.pack(self.destination, self.source, EtherType.VLAN) + _VLAN.pack(self.vlan_tci, self.ethertype)

    @property
    def header_bytes(self) -> int:
        """Length of the packed header."""
        return ETHERNET_HEADER_BYTES if self.vlan_tci is None else ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES

    @classmethod
    def parse(cls, data: Buffer) -> EthernetHeader:
        """Read the header at the frame's start. Raises PacketError for a frame too short to have one."""
        if len(data) < ETHERNET_HEADER_BYTES:
            raise PacketError(f"Ethernet: {len(data)} bytes, a header has {ETHERNET_HEADER_BYTES}")
        destination, source, ethertype = _ETHERNET.unpack_from(data)
        if ethertype != _VLAN_TYPE:
            return cls(destination, source, ethertype)
        if len(data) < ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES:
            raise PacketError("802.1Q: the frame ends inside the tag")
        vlan_tci, ethertype = _VLAN.unpack_from(data, ETHERNET_HEADER_BYTES)
        return cls(destination, source, ethertype, vlan_tci)


@dataclass(slots=True)
class ArpPacket:
    """ARP for IPv4 over Ethernet."""

    operation: int
    sender_mac: bytes
    sender_ip: bytes
    target_mac: bytes
    target_ip: bytes

    def pack(self) -> bytes:
        """28 bytes."""
        return _ARP.pack(1, EtherType.IPV4, 6, 4, self.operation, self.sender_mac, self.sender_ip, self.target_mac,
                         self.target_ip)

    @classmethod
    def parse(cls, data: Buffer, offset: int) -> ArpPacket:
        """Read the packet at `offset`. Raises PacketError if it is cut off, or not for IPv4 over Ethernet."""
        if len(data) - offset < _ARP.size:
            raise PacketError(f"ARP: {len(data) - offset} bytes, a packet has {_ARP.size}")
        *kind, operation, sender_mac, sender_ip, target_mac, target_ip = _ARP.unpack_from(data, offset)
        if kind != [1, EtherType.IPV4, 6, 4]:
            raise PacketError("ARP: not for IPv4 over Ethernet")
        return cls(operation, sender_mac, sender_ip, target_mac, target_ip)


def pack_ipv4(source: bytes, destination: bytes, protocol: int, total_bytes: int, identification: int = 0,
              ttl: int = 64, fragment: int = _IPV4_DONT_FRAGMENT, traffic_class: int = 0, checksum: int = 0) -> bytes:
    """A 20-byte IPv4 header; `fragment` is the whole field of flags and offset."""
    return _IPV4.pack(0x45, traffic_class, total_bytes, identification, fragment, ttl, protocol, checksum, source,
                      destination)


@dataclass(slots=True)
class Ipv4Header:
    """IPv4 header. Options are skipped when read (`header_bytes` tells) and not written."""

    source: bytes
    destination: bytes
    protocol: int
    total_bytes: int
    identification: int = 0
    ttl: int = 64
    fragment: int = _IPV4_DONT_FRAGMENT
    """Flags and fragment offset, as the field holds them."""
    traffic_class: int = 0
    checksum: int = 0
    header_bytes: int = IPV4_HEADER_BYTES

    def pack(self) -> bytes:
        """20 bytes."""
        return pack_ipv4(self.source, self.destination, self.protocol, self.total_bytes, self.identification, self.ttl,
                         self.fragment, self.traffic_class, self.checksum)

    @property
    def is_fragment(self) -> bool:
        """Whether this is one piece of a larger packet."""
        return self.fragment & _IPV4_FRAGMENT_MASK != 0

    @classmethod
    def parse(cls, data: Buffer, offset: int) -> Ipv4Header:
        """Read the header at `offset`. Raises PacketError if it is no IPv4 header, or the packet is cut off."""
        available = len(data) - offset
        if available < IPV4_HEADER_BYTES:
            raise PacketError(f"IPv4: {available} bytes, a header has {IPV4_HEADER_BYTES}")
        (version_length, traffic_class, total_bytes, identification, fragment, ttl, protocol, checksum, source,
         destination) = _IPV4.unpack_from(data, offset)
        header_bytes = (version_length & 15) * 4
        if version_length >> 4 != 4:
            raise PacketError(f"IPv4: version {version_length >> 4}")
        if not IPV4_HEADER_BYTES <= header_bytes <= total_bytes <= available:
            raise PacketError(f"IPv4: header of {header_bytes} and packet of {total_bytes} bytes in {available}")
        return cls(source, destination, protocol, total_bytes, identification, ttl, fragment, traffic_class, checksum,
                   header_bytes)


def pack_ipv6(source: bytes, destination: bytes, next_header: int, payload_bytes: int, hop_limit: int = 64,
              traffic_class: int = 0, flow_label: int = 0) -> bytes:
    """A 40-byte IPv6 header."""
    return _IPV6.pack(6 << 28 | traffic_class << 20 | flow_label, payload_bytes, next_header, hop_limit, source,
                      destination)


@dataclass(slots=True)
class Ipv6Header:
    """IPv6 header, without extension headers."""

    source: bytes
    destination: bytes
    next_header: int
    payload_bytes: int
    """Of all that follows these 40 bytes, extension headers included."""
    hop_limit: int = 64
    traffic_class: int = 0
    flow_label: int = 0

    def pack(self) -> bytes:
        """40 bytes."""
        return pack_ipv6(self.source, self.destination, self.next_header, self.payload_bytes, self.hop_limit,
                         self.traffic_class, self.flow_label)

    @classmethod
    def parse(cls, data: Buffer, offset: int) -> Ipv6Header:
        """Read the header at `offset`. Raises PacketError if it is no IPv6 header, or the packet is cut off."""
        available = len(data) - offset
        if available < IPV6_HEADER_BYTES:
            raise PacketError(f"IPv6: {available} bytes, a header has {IPV6_HEADER_BYTES}")
        first, payload_bytes, next_header, hop_limit, source, destination = _IPV6.unpack_from(data, offset)
        if first >> 28 != 6:
            raise PacketError(f"IPv6: version {first >> 28}")
        if payload_bytes > available - IPV6_HEADER_BYTES:
            raise PacketError(f"IPv6: payload of {payload_bytes} bytes in {available - IPV6_HEADER_BYTES}")
        return cls(source, destination, next_header, payload_bytes, hop_limit, first >> 20 & 0xFF, first & 0xF_FFFF)


def pack_timestamps(value: int, echo: int) -> bytes:
    """The timestamps option alone, with its padding."""
    return _TIMESTAMPS.pack(_TIMESTAMPS_LEAD, value, echo)


class TcpOptions(NamedTuple):
    """TCP options that are understood; None, False or empty where one is absent. Unknown ones are skipped."""

    mss: int | None = None
    window_scale: int | None = None
    sack_permitted: bool = False
    timestamps: tuple[int, int] | None = None
    """(TSval, TSecr)."""
    sack: tuple[tuple[int, int], ...] = ()
    """Blocks of received data: left edge, and the sequence number behind the last byte."""

    def pack(self) -> bytes:
        """The options, padded with NOPs to whole 32-bit words. Raises ValueError if they need more than 40 bytes."""
        out = bytearray()
        if self.mss is not None:
            out += struct.pack("!BBH", TcpOption.MSS, 4, self.mss)
        if self.window_scale is not None:
            out += struct.pack("!BBBB", TcpOption.NOP, TcpOption.WINDOW_SCALE, 3, self.window_scale)
        if self.sack_permitted:
            out += struct.pack("!BBBB", TcpOption.NOP, TcpOption.NOP, TcpOption.SACK_PERMITTED, 2)
        if self.timestamps is not None:
            out += pack_timestamps(*self.timestamps)
        if self.sack:
            out += struct.pack("!BBBB", TcpOption.NOP, TcpOption.NOP, TcpOption.SACK,
                               2 + SACK_BLOCK_BYTES * len(self.sack))
            for block in self.sack:
                out += _SACK_BLOCK.pack(*block)
        if len(out) > MAX_TCP_OPTIONS_BYTES:
            raise ValueError(f"TCP options of {len(out)} bytes: a header has room for {MAX_TCP_OPTIONS_BYTES}")
        return bytes(out)

    @classmethod
    def parse(cls, data: Buffer) -> TcpOptions:
        """Read the bytes between the fixed header and the data. Raises PacketError for a length that cannot be."""
        if len(data) == TIMESTAMPS_BYTES:
            # RFC 7323 appendix A recommends this layout, and most segments have just that
            lead, value, echo = _TIMESTAMPS.unpack(data)
            if lead == _TIMESTAMPS_LEAD:
                return cls(None, None, False, (value, echo))
        mss = window_scale = timestamps = None
        sack_permitted = False
        sack: tuple[tuple[int, int], ...] = ()
        at = 0
        while at < len(data):
            kind = data[at]
            if kind == TcpOption.END:
                break
            if kind == TcpOption.NOP:
                at += 1
                continue
            # RFC 9293 §3.1: "A TCP implementation MUST be prepared to handle an illegal option length (e.g., zero)"
            length = data[at + 1] if at + 1 < len(data) else 0
            if not 2 <= length <= len(data) - at:
                raise PacketError(f"TCP: option {kind} of {length} bytes with {len(data) - at} left")
            if kind == TcpOption.MSS and length == 4:
                mss = data[at + 2] << 8 | data[at + 3]
            elif kind == TcpOption.WINDOW_SCALE and length == 3:
                window_scale = data[at + 2]
            elif kind == TcpOption.SACK_PERMITTED and length == 2:
                sack_permitted = True
            elif kind == TcpOption.TIMESTAMPS and length == 10:
                timestamps = struct.unpack_from("!II", data, at + 2)
            elif kind == TcpOption.SACK and length % SACK_BLOCK_BYTES == 2:
                sack = tuple(_SACK_BLOCK.iter_unpack(data[at + 2 : at + length]))
            at += length
        return cls(mss, window_scale, sack_permitted, timestamps, sack)


NO_OPTIONS = TcpOptions()
"""Shared by all headers without options."""


def pack_tcp(source_port: int, destination_port: int, sequence: int, acknowledgement: int, flags: int, window: int,
             options: bytes = b"", checksum: int = 0, urgent: int = 0) -> bytes:
    """A TCP header; `options` are packed and whole words, `window` as the field holds it (scaled)."""
    return _TCP.pack(source_port, destination_port, sequence, acknowledgement, 0x50 + (len(options) << 2), flags,
                     window, checksum, urgent) + options


@dataclass(slots=True)
class TcpHeader:
    """TCP header. `flags` are `TcpFlags` bits as a plain integer, since they are tested for every packet."""

    source_port: int
    destination_port: int
    sequence: int
    acknowledgement: int
    flags: int
    window: int
    """As the field holds it, not scaled."""
    checksum: int = 0
    urgent: int = 0
    options: TcpOptions = NO_OPTIONS
    header_bytes: int = TCP_HEADER_BYTES
    """Length when read; `pack` takes it from the options."""

    def pack(self) -> bytes:
        """20 bytes and the options."""
        return pack_tcp(self.source_port, self.destination_port, self.sequence, self.acknowledgement, self.flags,
                        self.window, self.options.pack(), self.checksum, self.urgent)

    @classmethod
    def parse(cls, data: Buffer, offset: int, end: int) -> TcpHeader:
        """Read the header at `offset` of a segment that ends at `end`. Raises PacketError if it does not fit."""
        if end - offset < TCP_HEADER_BYTES:
            raise PacketError(f"TCP: {end - offset} bytes, a header has {TCP_HEADER_BYTES}")
        (source_port, destination_port, sequence, acknowledgement, data_offset, flags, window, checksum,
         urgent) = _TCP.unpack_from(data, offset)
        header_bytes = (data_offset >> 4) * 4
        if not TCP_HEADER_BYTES <= header_bytes <= end - offset:
            raise PacketError(f"TCP: header of {header_bytes} bytes in a segment of {end - offset}")
        options = NO_OPTIONS
        if header_bytes > TCP_HEADER_BYTES:
            options = TcpOptions.parse(data[offset + TCP_HEADER_BYTES : offset + header_bytes])
        return cls(source_port, destination_port, sequence, acknowledgement, flags, window, checksum, urgent, options,
                   header_bytes)


@dataclass(slots=True)
class UdpHeader:
    """UDP header."""

    source_port: int
    destination_port: int
    length_bytes: int
    checksum: int = 0

    def pack(self) -> bytes:
        """8 bytes."""
        return _UDP.pack(self.source_port, self.destination_port, self.length_bytes, self.checksum)

    @classmethod
    def parse(cls, data: Buffer, offset: int, end: int) -> UdpHeader:
        """Read the header at `offset` of a datagram that ends at `end`. Raises PacketError if it does not fit."""
        if end - offset < UDP_HEADER_BYTES:
            raise PacketError(f"UDP: {end - offset} bytes, a header has {UDP_HEADER_BYTES}")
        header = cls(*_UDP.unpack_from(data, offset))
        if not UDP_HEADER_BYTES <= header.length_bytes <= end - offset:
            raise PacketError(f"UDP: length {header.length_bytes} in {end - offset} bytes")
        return header


@dataclass(slots=True)
class Frame:
    """A frame taken apart. What it does not carry is None; `l4_offset` is then 0."""

    data: memoryview
    """The whole frame."""
    ethernet: EthernetHeader
    l3_offset: int
    payload: memoryview
    """What follows the innermost header that was read, without Ethernet's padding."""
    arp: ArpPacket | None = None
    ipv4: Ipv4Header | None = None
    ipv6: Ipv6Header | None = None
    l4_offset: int = 0
    end: int = 0
    """Offset behind the IP packet's last byte."""
    is_fragment: bool = False
    """An IPv4 fragment or an IPv6 fragment header: L4 is not read."""
    protocol: int | None = None
    """What the IP packet carries behind its extension headers."""
    tcp: TcpHeader | None = None
    udp: UdpHeader | None = None

    def l3_checksum_ok(self) -> bool:
        """Whether the IPv4 header's checksum is right; True for all that has none."""
        if self.ipv4 is None:
            return True
        return ones_sum(self.data[self.l3_offset : self.l3_offset + self.ipv4.header_bytes]) == 0xFFFF

    def l4_checksum_ok(self) -> bool:
        """Whether the TCP or UDP checksum is right. True for all that has none: a fragment, another protocol, UDP
        over IPv4 with a checksum of 0."""
        if self.tcp is not None:
            protocol, end = IpProtocol.TCP, self.end
        elif self.udp is not None:
            if self.udp.checksum == 0 and self.ipv4 is not None:
                return True
            protocol, end = IpProtocol.UDP, self.l4_offset + self.udp.length_bytes
        else:
            return True
        ip = self.ipv4 or self.ipv6
        assert ip is not None
        seed = checksum_seed(ip.source, ip.destination, protocol, end - self.l4_offset)
        return ones_sum(self.data[self.l4_offset : end], seed) == 0xFFFF


_SKIPPED_EXTENSIONS = (IpProtocol.HOP_BY_HOP, IpProtocol.IPV6_ROUTING, IpProtocol.IPV6_DESTINATION_OPTIONS)


def _skip_ipv6_extensions(data: memoryview, at: int, end: int, next_header: int) -> tuple[int, int]:
    """Offset and protocol behind the extension headers that do not change what follows."""
    while next_header in _SKIPPED_EXTENSIONS:
        if end - at < 8 or end - at < (data[at + 1] + 1) * 8:
            raise PacketError(f"IPv6: extension header {next_header} is cut off")
        next_header, at = data[at], at + (data[at + 1] + 1) * 8
    return at, next_header


def parse_frame(data: Buffer) -> Frame:
    """Take a whole Ethernet frame (without FCS) apart, without looking at checksums. The payload is a view, no copy.

    Raises PacketError if a header that is announced is missing, cut off or inconsistent. Unknown protocols are no
    error: they are payload.
    """
    data = memoryview(data)
    ethernet = EthernetHeader.parse(data)
    l3_offset = ethernet.header_bytes
    ethertype = ethernet.ethertype
    frame = Frame(data, ethernet, l3_offset, data[l3_offset:])
    if ethertype == 0x0800:  # EtherType.IPV4; IntEnum comparison shows in the profile
        ipv4 = frame.ipv4 = Ipv4Header.parse(data, l3_offset)
        end = l3_offset + ipv4.total_bytes
        at, protocol = l3_offset + ipv4.header_bytes, ipv4.protocol
        frame.is_fragment = ipv4.is_fragment
    elif ethertype == EtherType.IPV6:
        ipv6 = frame.ipv6 = Ipv6Header.parse(data, l3_offset)
        at = l3_offset + IPV6_HEADER_BYTES
        end = at + ipv6.payload_bytes
        at, protocol = _skip_ipv6_extensions(data, at, end, ipv6.next_header)
        frame.is_fragment = protocol == IpProtocol.IPV6_FRAGMENT
    else:
        if ethertype == EtherType.ARP:
            frame.arp = ArpPacket.parse(data, l3_offset)
            frame.payload = data[len(data) :]
        return frame
    frame.end = end
    frame.protocol = protocol
    if not frame.is_fragment:
        if protocol == 6:  # IpProtocol.TCP, likewise
            frame.l4_offset = at
            tcp = frame.tcp = TcpHeader.parse(data, at, end)
            at += tcp.header_bytes
        elif protocol == IpProtocol.UDP:
            frame.l4_offset = at
            udp = frame.udp = UdpHeader.parse(data, at, end)
            at, end = at + UDP_HEADER_BYTES, at + udp.length_bytes
    frame.payload = data[at:end]
    return frame
