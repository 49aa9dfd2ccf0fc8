"""Receive coalescing: which TCP segments become one receive.

The rules are those of Linux 6.1's generic receive offload (`inet_gro_receive`, `ipv6_gro_receive`, `tcp_gro_receive`,
`skb_gro_receive`), told here without its code. A frame is compared with the open aggregate of its flow.

A frame is a *candidate* if it is TCP over IPv4 without options or over IPv6 without extension headers, no fragment, its
checksums are right, IPv4's reserved flag is 0, it has payload, and it ends where its IP packet ends (no padding).

A candidate is *appended* if, compared with the aggregate's first segment,

- all of the link header, 802.1Q tag, addresses and ports are the same, and IPv6's flow label;
- type of service or traffic class (so ECN), time to live or hop limit, and DF are the same;
- acknowledgement number, window and data offset, options, and all flags but CWR, PSH and FIN are the same;
- it has no CWR;
- its sequence number is the one behind the aggregate's last byte;
- over IPv4, its identification is the first's plus the number of segments between. With DF it may be the
  first's instead, if it is for all segments: the second decides;
- it has no more payload than the first (the MSS);
- with it the IP packet is not longer than COALESCE_BYTES.

It is the last one if it has less payload than the MSS, or PSH or FIN. A frame of the same flow that is not appended
ends the aggregate, and goes behind it. If it is a candidate without URG, PSH, RST, SYN and FIN, it opens the next.

Where this is stricter than Linux: the urgent pointer must be the same, so that the segments can be told exactly; and a
frame of the same addresses and ports always ends the open aggregate, also one with IP options, another flow label
or another link header, so that it never overtakes. Such a frame is found by the hash of its addresses and ports.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from nic_model.aggregates import Headers, find_headers
from nic_model.contract import MAX_COALESCED_BYTES, RxInfo
from nic_model.contract.protocols import (
    IPV4_CHECKSUM_OFFSET,
    IPV4_HEADER_BYTES,
    IPV4_IDENTIFICATION_OFFSET,
    IPV4_TOTAL_LENGTH_OFFSET,
    IPV6_HEADER_BYTES,
    IPV6_PAYLOAD_LENGTH_OFFSET,
    TCP_CHECKSUM_OFFSET,
    TCP_FLAGS_OFFSET,
    TCP_HEADER_BYTES,
    TCP_SEQUENCE_OFFSET,
    TcpFlags,
)

_IPV4_DF = 0x4000
_NOT_COMPARED = TcpFlags.CWR | TcpFlags.PSH | TcpFlags.FIN
_NO_HEAD = TcpFlags.URG | TcpFlags.PSH | TcpFlags.RST | TcpFlags.SYN | TcpFlags.FIN


def has_plain_header(info: RxInfo, headers: Headers) -> bool:
    """Whether checksums are right, and there are neither IPv4 options nor IPv6 extension headers."""
    right = RxInfo.L4_CHECKSUM_OK in info and (headers.is_ipv6 or RxInfo.L3_CHECKSUM_OK in info)
    return right and headers.l4 - headers.l3 == (IPV6_HEADER_BYTES if headers.is_ipv6 else IPV4_HEADER_BYTES)


def is_candidate(frame: bytes, info: RxInfo, headers: Headers) -> bool:
    """Whether the frame may be part of an aggregate at all."""
    return (has_plain_header(info, headers) and headers.fragment & ~_IPV4_DF == 0
            and headers.end - headers.l4 >= TCP_HEADER_BYTES and headers.payload_bytes > 0
            and headers.l3 + headers.ip_bytes == len(frame))


def _compared(frame: bytes, headers: Headers) -> bytes:
    """The header without what may differ between the segments of an aggregate."""
    kept = bytearray(frame[: headers.end])
    changing = [(headers.l4, TCP_SEQUENCE_OFFSET, 4), (headers.l4, TCP_CHECKSUM_OFFSET, 2)]
    if headers.is_ipv6:
        changing.append((headers.l3, IPV6_PAYLOAD_LENGTH_OFFSET, 2))
    else:
        changing += [(headers.l3, offset, 2) for offset in (
            IPV4_TOTAL_LENGTH_OFFSET, IPV4_IDENTIFICATION_OFFSET, IPV4_CHECKSUM_OFFSET)]
    for base, offset, length in changing:
        kept[base + offset : base + offset + length] = bytes(length)
    kept[headers.l4 + TCP_FLAGS_OFFSET] &= 0xFF & ~_NOT_COMPARED
    return bytes(kept)


@dataclass(slots=True)
class Aggregate:
    """An open aggregate, as far as the rules need it."""

    flow: bytes
    header: bytes
    first: Headers
    opened_cycles: int
    next_sequence: int
    ip_bytes: int
    segments: int = 1
    fixed_identification: bool = False
    receive: Any = None
    """For the device: where its bytes went; None if the first segment found no buffer."""

    def takes(self, frame: bytes, headers: Headers, limit_bytes: int) -> bool:
        """Whether a candidate may be appended."""
        if TcpFlags.CWR in headers.flags or _compared(frame, headers) != self.header:
            return False
        if headers.sequence != self.next_sequence or headers.payload_bytes > self.first.payload_bytes:
            return False
        if self.ip_bytes + headers.payload_bytes > limit_bytes:
            return False
        if headers.is_ipv6:
            return True
        step = headers.identification - self.first.identification & 0xFFFF
        stays = self.fixed_identification and step == 0
        counts = step == self.segments & 0xFFFF and (not self.fixed_identification or self.segments == 1)
        return stays or counts

    def append(self, headers: Headers) -> bool:
        """Append a segment that it takes; whether it is the last."""
        self.fixed_identification &= not headers.is_ipv6 and headers.identification == self.first.identification
        self.segments += 1
        self.ip_bytes += headers.payload_bytes
        self.next_sequence = headers.sequence + headers.payload_bytes & 0xFFFF_FFFF
        return (headers.payload_bytes < self.first.payload_bytes
                or bool(headers.flags & (TcpFlags.PSH | TcpFlags.FIN)))


class Verdict(NamedTuple):
    """What becomes of a frame, after the aggregates in `ended` were told."""

    ended: list[Aggregate]
    aggregate: Aggregate | None = None
    """The one that it opens or is appended to; None: it goes by itself."""
    opens: bool = False
    is_last: bool = False
    header_bytes: int = 0
    info: RxInfo = RxInfo(0)
    """What an appended frame adds to the aggregate's info."""


class Coalescer:
    """Open aggregates of a device. Enters: frames that are let in. Leaves: a verdict on each.

    Attributes: `ticks`, age at which an aggregate ends, 0 for no coalescing; `limit_bytes`, longest IP packet.
    """

    def __init__(self, contexts: int) -> None:
        self.ticks = 0
        self.limit_bytes = MAX_COALESCED_BYTES
        self._contexts = contexts
        self._open: dict[bytes, Aggregate] = {}  # by flow, in the order in which they were opened

    @property
    def is_idle(self) -> bool:
        """Whether nothing is open, and nothing can open."""
        return not self._open and not self.ticks

    def judge(self, frame: bytes, info: RxInfo, now_cycles: int, *, may_open: bool, l4_offset: int = 0,
              tag: bytes | None = None) -> Verdict:
        """What becomes of a frame. `may_open`: its channel coalesces; `l4_offset`: see `find_headers`. `tag` stands for
        the frame's flow: the device's is the receive hash, which flows share that RSS_CONTROL does not tell apart; then
        each ends the other's aggregate. None: addresses and ports."""
        if RxInfo.TCP not in info:
            return Verdict([])
        headers = find_headers(frame, info, l4_offset)
        flow = self._flow(frame, headers) if tag is None else tag
        found = self._open.get(flow)
        candidate = may_open and self.ticks > 0 and is_candidate(frame, info, headers)
        if found is not None and candidate and found.takes(frame, headers, self.limit_bytes):
            is_last = found.append(headers)
            if is_last:
                del self._open[flow]
            added = RxInfo(0)
            for flag, bit in ((TcpFlags.PSH, RxInfo.PSH), (TcpFlags.FIN, RxInfo.FIN)):
                added |= bit if flag in headers.flags else RxInfo(0)
            added |= RxInfo.FIXED_ID if found.fixed_identification else RxInfo(0)
            return Verdict([], found, is_last=is_last, header_bytes=headers.end, info=added)
        ended = [self._open.pop(flow)] if found is not None else []
        if not candidate or headers.flags & _NO_HEAD:
            return Verdict(ended)
        if len(self._open) == self._contexts:
            ended.append(self._open.pop(next(iter(self._open))))
        opened = self._open[flow] = Aggregate(
            flow, _compared(frame, headers), headers, now_cycles,
            headers.sequence + headers.payload_bytes & 0xFFFF_FFFF, headers.ip_bytes,
            fixed_identification=bool(headers.fragment & _IPV4_DF))
        return Verdict(ended, opened, opens=True)

    def next_deadline(self) -> int | None:
        """Cycle at which the oldest aggregate ends by its age."""
        if not self._open:
            return None
        return next(iter(self._open.values())).opened_cycles + self.ticks

    def take_due(self, now_cycles: int) -> Iterator[Aggregate]:
        """Aggregates whose time has come."""
        while (due := self.next_deadline()) is not None and due <= now_cycles:
            yield self._open.pop(next(iter(self._open)))

    def take_all(self) -> Iterator[Aggregate]:
        """All open aggregates end."""
        while self._open:
            yield self._open.pop(next(iter(self._open)))

    @staticmethod
    def _flow(frame: bytes, headers: Headers) -> bytes:
        addresses = frame[headers.l3 + 8 : headers.l3 + 40] if headers.is_ipv6 else (
            frame[headers.l3 + 12 : headers.l3 + 20])
        return addresses + frame[headers.l4 : headers.l4 + 4]
