"""What leaves a stack: TCP segments, which a device may cut and sum up, and whole frames of everything else."""

# Ref: RFC 791 §3.1; RFC 8200 §3; RFC 9293 §3.1

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from host_driver.account import Account
from host_driver.tcp.buffers import Chunk
from nic_model.checksum import fold, internet_checksum, ones_sum
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_CHECKSUM_OFFSET,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    TCP_CHECKSUM_OFFSET,
)
from nic_model.packets import pack_ipv4, pack_ipv6

if TYPE_CHECKING:
    from host_driver.tcp.connection import Connection

IPV6_ADDRESS_BYTES = 16

NO_ETHERNET_HEADER = bytes(ETHERNET_HEADER_BYTES)
"""Stands before a packet until its neighbour's address is known."""

_U16 = struct.Struct("!H")


class OutSegment:
    """One segment to send; larger than the MSS if the stack may rely on segmentation by the device."""

    __slots__ = ("_pseudo_sum", "connection", "header", "ipv6", "is_retransmission", "l3_offset", "l4_offset", "mss",
                 "payload", "payload_bytes")

    def __init__(self, header: bytes, l4_offset: int, mss: int, payload: list[Chunk], payload_bytes: int,
                 connection: Connection | None, is_retransmission: bool, pseudo_sum: int) -> None:
        self.header = header
        """Ethernet, IP and TCP header. Both checksum fields hold 0. The IP length is that of this size, or 0 when the
        segment is longer than an IP packet can be and must be cut up."""
        self.l3_offset = ETHERNET_HEADER_BYTES
        self.l4_offset = l4_offset
        self.ipv6 = l4_offset == ETHERNET_HEADER_BYTES + IPV6_HEADER_BYTES
        self.mss = mss
        self.payload = payload
        self.payload_bytes = payload_bytes
        self.connection = connection
        """None for a RST that answers a segment of no connection."""
        self.is_retransmission = is_retransmission
        self._pseudo_sum = pseudo_sum

    @property
    def checksum_offset(self) -> int:
        """Offset of the TCP checksum field from the frame's first byte."""
        return self.l4_offset + TCP_CHECKSUM_OFFSET

    def seeded_header(self, *, with_length: bool) -> bytes:
        """The header with the pseudo-header's sum in the TCP checksum field, for insertion by the device:
        with the length for one frame, without it for a segmented send (`SendFlag.L4_CHECKSUM`)."""
        seed = self._pseudo_sum
        if with_length:
            seed = fold(seed + len(self.header) - self.l4_offset + self.payload_bytes)
        header = bytearray(self.header)
        _U16.pack_into(header, self.l4_offset + TCP_CHECKSUM_OFFSET, seed)
        return bytes(header)

    def frame(self, account: Account | None = None) -> bytes:
        """The whole frame, checksums computed in software and, if an account is given, charged to it.

        Copies the payload. Raises ValueError for a segment larger than the MSS.
        """
        if self.payload_bytes > self.mss:
            raise ValueError(f"{self.payload_bytes} bytes do not fit one segment of {self.mss}")
        frame = bytearray(self.header)
        for chunk in self.payload:
            frame += chunk.view()
        l4 = self.l4_offset
        if not self.ipv6:
            l3 = self.l3_offset
            _U16.pack_into(frame, l3 + IPV4_CHECKSUM_OFFSET, internet_checksum(frame[l3:l4]))
        l4_bytes = len(frame) - l4
        checksum = ones_sum(memoryview(frame)[l4:], self._pseudo_sum + l4_bytes) ^ 0xFFFF
        _U16.pack_into(frame, l4 + TCP_CHECKSUM_OFFSET, checksum)
        if account is not None:
            account.charge("tcp_send", "checksum_byte", l4_bytes)
        return bytes(frame)


class OutFrame:
    """A frame that is no TCP segment: whole, with all its checksums. Has what senders look at in an `OutSegment`."""

    __slots__ = ("header",)

    payload_bytes = 0
    mss = 0
    connection = None

    def __init__(self, frame: bytes) -> None:
        self.header = frame
        """The whole frame."""

    def frame(self, account: Account | None = None) -> bytes:
        """The frame; nothing is charged."""
        return self.header


def packet(source: bytes, destination: bytes, protocol: int, payload: bytes, *, identification: int = 0,
           hop_limit: int = 64) -> bytes:
    """A whole IP packet, IPv4 or IPv6 by its addresses' length."""
    if len(source) == IPV6_ADDRESS_BYTES:
        return pack_ipv6(source, destination, protocol, len(payload), hop_limit) + payload
    header = pack_ipv4(source, destination, protocol, IPV4_HEADER_BYTES + len(payload), identification, hop_limit)
    checksum = internet_checksum(header)
    return header[:IPV4_CHECKSUM_OFFSET] + checksum.to_bytes(2, "big") + header[IPV4_CHECKSUM_OFFSET + 2 :] + payload
