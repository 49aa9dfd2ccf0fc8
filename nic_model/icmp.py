"""ICMP and ICMPv6: echo, errors with the packet that they quote, and IPv6's neighbour discovery.

As in `nic_model.packets`, `parse` raises `PacketError` for bytes that are no such message, and addresses are raw bytes;
`pack` writes the right checksum.
"""

# Ref: RFC 792; RFC 1191 §4; RFC 4443 §2.1, §2.3, §3, §4; RFC 4861 §4.3, §4.4, §4.6.1

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from nic_model.checksum import Buffer, checksum_seed, internet_checksum, ones_sum
from nic_model.contract.protocols import IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, IpProtocol
from nic_model.packets import PacketError

HEADER_BYTES = 8
"""Type, code, checksum, and the word whose meaning depends on the type."""


class IcmpType(IntEnum):
    """Types of ICMP for IPv4."""

    ECHO_REPLY = 0
    DESTINATION_UNREACHABLE = 3
    SOURCE_QUENCH = 4
    ECHO = 8
    TIME_EXCEEDED = 11
    PARAMETER_PROBLEM = 12


class Unreachable(IntEnum):
    """Codes of IPv4's DESTINATION_UNREACHABLE that are told apart."""

    NET = 0
    HOST = 1
    PROTOCOL = 2
    PORT = 3
    FRAGMENTATION_NEEDED = 4
    SOURCE_ROUTE_FAILED = 5


class Icmpv6Type(IntEnum):
    """Types of ICMPv6."""

    DESTINATION_UNREACHABLE = 1
    PACKET_TOO_BIG = 2
    TIME_EXCEEDED = 3
    PARAMETER_PROBLEM = 4
    ECHO_REQUEST = 128
    ECHO_REPLY = 129
    NEIGHBOUR_SOLICITATION = 135
    NEIGHBOUR_ADVERTISEMENT = 136


class Unreachable6(IntEnum):
    """Codes of ICMPv6's DESTINATION_UNREACHABLE that are told apart."""

    NO_ROUTE = 0
    PROHIBITED = 1
    ADDRESS = 3
    PORT = 4


_HEADER = struct.Struct("!BBHI")
_PORTS_AND_SEQUENCE = struct.Struct("!HHI")
_CHECKSUM_OFFSET = 2


@dataclass(slots=True)
class IcmpMessage:
    """A message; `word` is what follows the checksum: identifier and sequence number of an echo, an MTU, flags."""

    type: int
    code: int = 0
    word: int = 0
    body: Buffer = b""

    def pack(self, addresses: tuple[bytes, bytes] | None = None) -> bytes:
        """The message with its checksum; `addresses` (source, destination) make it ICMPv6's."""
        message = bytearray(_HEADER.pack(self.type, self.code, 0, self.word) + self.body)
        checksum = internet_checksum(message, _seed(addresses, len(message)))
        message[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + 2] = checksum.to_bytes(2, "big")
        return bytes(message)

    @classmethod
    def parse(cls, data: Buffer, addresses: tuple[bytes, bytes] | None = None) -> IcmpMessage:
        """Read a message. Raises PacketError if it is too short, or its checksum is wrong."""
        if len(data) < HEADER_BYTES:
            raise PacketError(f"ICMP: {len(data)} bytes, a header has {HEADER_BYTES}")
        if ones_sum(data, _seed(addresses, len(data))) != 0xFFFF:
            raise PacketError("ICMP: wrong checksum")
        return cls.parse_beginning(data)

    @classmethod
    def parse_beginning(cls, data: Buffer) -> IcmpMessage:
        """Read a message of which only the beginning is there, so that its checksum tells nothing. Raises PacketError
        if it is too short."""
        if len(data) < HEADER_BYTES:
            raise PacketError(f"ICMP: {len(data)} bytes, a header has {HEADER_BYTES}")
        kind, code, _, word = _HEADER.unpack_from(data)
        return cls(kind, code, word, data[HEADER_BYTES:])


def _seed(addresses: tuple[bytes, bytes] | None, length_bytes: int) -> int:
    # RFC 4443 §2.3: "the 16-bit one's complement [...] of the entire ICMPv6 message, [...] prepended with a
    # 'pseudo-header' of IPv6 header fields"; RFC 792 has none.
    return 0 if addresses is None else checksum_seed(*addresses, IpProtocol.ICMPV6, length_bytes)


class QuotedSegment(NamedTuple):
    """What an error message shows of the TCP segment that caused it."""

    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    sequence: int
    packet_bytes: int
    """Of the IP packet, as its header says."""


def quoted_segment(body: Buffer, *, ipv6: bool) -> QuotedSegment | None:
    """The TCP segment that an error message's body quotes; None if it quotes something else, or too little.

    RFC 792 asks for the IP header and 64 bits, which are TCP's ports and sequence number.
    """
    data = bytes(body)
    header_bytes = IPV6_HEADER_BYTES
    if not ipv6:
        header_bytes = (data[0] & 15) * 4 if data else 0
    if len(data) < header_bytes + _PORTS_AND_SEQUENCE.size or header_bytes < IPV4_HEADER_BYTES:
        return None
    version, protocol = data[0] >> 4, data[6 if ipv6 else 9]
    if version != (6 if ipv6 else 4) or protocol != IpProtocol.TCP:
        return None
    source, destination = (data[8:24], data[24:40]) if ipv6 else (data[12:16], data[16:20])
    packet_bytes = IPV6_HEADER_BYTES + int.from_bytes(data[4:6], "big") if ipv6 else int.from_bytes(data[2:4], "big")
    source_port, destination_port, sequence = _PORTS_AND_SEQUENCE.unpack_from(data, header_bytes)
    return QuotedSegment(source, destination, source_port, destination_port, sequence, packet_bytes)


# Neighbour discovery -------------------------------------------------------------------------------------------------

ND_HOP_LIMIT = 255
"""RFC 4861 §7.1.1: only then "the packet could not possibly have been forwarded by a router"."""

ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
_SOLICITED_NODE_PREFIX = bytes.fromhex("ff0200000000000000000001ff")
_ADDRESS_BYTES = 16
_OPTION_UNIT_BYTES = 8


class NdOption(IntEnum):
    """Options of neighbour discovery."""

    SOURCE_LINK_LAYER_ADDRESS = 1
    TARGET_LINK_LAYER_ADDRESS = 2


class NaFlags(IntEnum):
    """Bits of an advertisement's `word`."""

    ROUTER = 1 << 31
    SOLICITED = 1 << 30
    OVERRIDE = 1 << 29


def solicited_node(address: bytes) -> bytes:
    """The multicast address that a neighbour with `address` listens to (RFC 4291 §2.7.1)."""
    return _SOLICITED_NODE_PREFIX + address[-3:]


def multicast_mac(address: bytes) -> bytes:
    """The Ethernet address of an IPv6 multicast address (RFC 2464 §7)."""
    return b"\x33\x33" + address[-4:]


@dataclass(slots=True)
class NeighbourMessage:
    """A solicitation or an advertisement."""

    type: int
    target: bytes
    flags: int = 0
    """`NaFlags` of an advertisement."""
    link_address: bytes | None = None
    """The option: of a solicitation its source's MAC, of an advertisement its target's."""

    def pack(self, source: bytes, destination: bytes) -> bytes:
        """The ICMPv6 message."""
        body = self.target
        if self.link_address is not None:
            body += bytes([self._option, 1]) + self.link_address
        return IcmpMessage(self.type, 0, self.flags, body).pack((source, destination))

    @property
    def is_solicited(self) -> bool:
        """Whether an advertisement answers a solicitation."""
        return self.flags & NaFlags.SOLICITED != 0

    @property
    def _option(self) -> int:
        if self.type == Icmpv6Type.NEIGHBOUR_SOLICITATION:
            return NdOption.SOURCE_LINK_LAYER_ADDRESS
        return NdOption.TARGET_LINK_LAYER_ADDRESS

    @classmethod
    def parse(cls, message: IcmpMessage) -> NeighbourMessage:
        """Read a message of one of the two types. Raises PacketError as RFC 4861 §7.1 asks."""
        body = bytes(message.body)
        if message.code != 0 or len(body) < _ADDRESS_BYTES or body[0] == 0xFF:
            raise PacketError("neighbour discovery: no target address")
        found = cls(message.type, body[:_ADDRESS_BYTES], message.word)
        at = _ADDRESS_BYTES
        while at < len(body):
            # §7.1.1: "All included options have a length that is greater than zero."
            length = body[at + 1] * _OPTION_UNIT_BYTES if at + 1 < len(body) else 0
            if not 0 < length <= len(body) - at:
                raise PacketError(f"neighbour discovery: option of {length} bytes with {len(body) - at} left")
            if body[at] == found._option and length == _OPTION_UNIT_BYTES:
                found.link_address = body[at + 2 : at + _OPTION_UNIT_BYTES]
            at += length
        return found
