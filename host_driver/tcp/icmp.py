"""ICMP and ICMPv6 of one interface: echoes are answered, neighbour discovery and errors handed on."""

# Ref: RFC 792; RFC 1122 §3.2.2; RFC 4443 §4.2; RFC 4861 §7.1

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from host_driver.tcp.frames import IPV6_ADDRESS_BYTES, packet
from host_driver.tcp.links import LocalAddress
from host_driver.tcp.neighbours import NeighbourTable
from nic_model.contract.protocols import IpProtocol
from nic_model.icmp import (
    ND_HOP_LIMIT,
    IcmpMessage,
    IcmpType,
    Icmpv6Type,
    NeighbourMessage,
    QuotedSegment,
    quoted_segment,
    solicited_node,
)
from nic_model.packets import Frame

_ERRORS = (IcmpType.DESTINATION_UNREACHABLE, IcmpType.SOURCE_QUENCH, IcmpType.TIME_EXCEEDED,
           IcmpType.PARAMETER_PROBLEM)
_ERRORS6 = (Icmpv6Type.DESTINATION_UNREACHABLE, Icmpv6Type.PACKET_TOO_BIG, Icmpv6Type.TIME_EXCEEDED,
            Icmpv6Type.PARAMETER_PROBLEM)
_NO_IPV6 = bytes(IPV6_ADDRESS_BYTES)


class OnError(Protocol):
    """Told of an error that quotes a segment of ours."""

    def __call__(self, message: IcmpMessage, quoted: QuotedSegment, now: int, *, ipv6: bool) -> None: ...


class Icmp:
    """Takes the messages that are for this host.

    Parameters: `neighbours`; `send(local, destination, packet, now)` for an IP packet without Ethernet header;
    `on_error`. Attributes: `echoes`, answered; `errors`, handed on.
    """

    def __init__(self, neighbours: NeighbourTable, send: Callable[[LocalAddress, bytes, bytes, int], None],
                 on_error: OnError) -> None:
        self._neighbours = neighbours
        self._send = send
        self._on_error = on_error
        self.echoes = 0
        self.errors = 0

    def receive(self, frame: Frame, local: LocalAddress, now: int) -> None:
        """A message to the own address `local`, or to a group that it belongs to. Raises PacketError for a bad one."""
        ip = frame.ipv6 or frame.ipv4
        assert ip is not None
        addresses = (ip.source, ip.destination) if local.ipv6 else None
        message = IcmpMessage.parse(frame.payload, addresses)
        if message.type in ((Icmpv6Type.ECHO_REQUEST,) if local.ipv6 else (IcmpType.ECHO,)):
            self._answer_echo(message, ip.source, local, now)
        elif self._is_error(message, local):
            self._take_error(message, local, now)
        elif frame.ipv6 is not None and frame.ipv6.hop_limit == ND_HOP_LIMIT:
            self._discover(message, ip.source, ip.destination, local, now)

    def receive_beginning(self, frame: Frame, local: LocalAddress, now: int) -> bool:
        """The same of a message of which only the beginning is there, its checksum not verified: whether it was an
        error, which needs no more. Raises PacketError for a bad one."""
        message = IcmpMessage.parse_beginning(frame.payload)
        if not self._is_error(message, local):
            return False
        self._take_error(message, local, now)
        return True

    def _is_error(self, message: IcmpMessage, local: LocalAddress) -> bool:
        return message.type in (_ERRORS6 if local.ipv6 else _ERRORS)

    def _take_error(self, message: IcmpMessage, local: LocalAddress, now: int) -> None:
        quoted = quoted_segment(message.body, ipv6=local.ipv6)
        if quoted is not None and quoted.source == local.packed:
            self.errors += 1
            self._on_error(message, quoted, now, ipv6=local.ipv6)

    def _answer_echo(self, message: IcmpMessage, source: bytes, local: LocalAddress, now: int) -> None:
        # RFC 1122 §3.2.2.6: "Data received in an ICMP Echo Request MUST be entirely included in the resulting Echo
        # Reply."
        self.echoes += 1
        if local.ipv6:
            reply = IcmpMessage(Icmpv6Type.ECHO_REPLY, 0, message.word, message.body).pack((local.packed, source))
            protocol = IpProtocol.ICMPV6
        else:
            reply = IcmpMessage(IcmpType.ECHO_REPLY, 0, message.word, message.body).pack()
            protocol = IpProtocol.ICMP
        self._send(local, source, packet(local.packed, source, protocol, reply), now)

    def _discover(self, message: IcmpMessage, source: bytes, destination: bytes, local: LocalAddress,
                  now: int) -> None:
        if message.type == Icmpv6Type.NEIGHBOUR_SOLICITATION:
            found = NeighbourMessage.parse(message)
            # RFC 4861 §7.1.1: "If the IP source address is the unspecified address, the IP destination address is a
            # solicited-node multicast address [and] there is no source link-layer address option in the message."
            unspecified = source == _NO_IPV6
            if unspecified and (destination != solicited_node(local.packed) or found.link_address is not None):
                return
            if found.target == local.packed:
                self._neighbours.on_solicitation(found, source, local, now)
        elif message.type == Icmpv6Type.NEIGHBOUR_ADVERTISEMENT:
            found = NeighbourMessage.parse(message)
            # §7.1.2: "If the IP Destination Address is a multicast address the Solicited flag is zero."
            if destination == local.packed or not found.is_solicited:
                self._neighbours.on_advertisement(found, now)
