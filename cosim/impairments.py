"""What a path does to frames: it loses, doubles, damages, holds back and delays some, and lets only so many through.

A `Path` knows frames and times, no clock: the wire in simulated time and a relay in real time use the same. Every frame
draws the same random numbers whatever the settings, so that a change of one does not shift the others.
"""

from __future__ import annotations

import random
from collections import deque

import msgspec

from cosim.mac import PS_PER_S, MacTiming
from nic_model.contract.protocols import ETHERNET_HEADER_BYTES, EtherType

_ETHERTYPE = slice(12, 14)
_WITH_SUMS = (EtherType.IPV4.to_bytes(2, "big"), EtherType.IPV6.to_bytes(2, "big"))


class Impairments(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of one direction. Probabilities are 0 to 1, and each frame is judged by itself."""

    loss: float = 0.0
    duplicate: float = 0.0
    """A frame arrives a second time, right behind itself."""
    corrupt: float = 0.0
    """One bit of an IP packet is flipped. Only TCP/IP's checksums can tell: the damage is not the cable's, whose FCS
    would show it. Frames without a checksum of their own (ARP) are left alone."""
    reorder: float = 0.0
    """A frame comes late by `reorder_ps`: those behind it overtake it."""
    reorder_ps: int = 1_000_000_000
    delay_ps: int = 0
    """Every frame takes so much longer."""
    bit_rate: int | None = None
    """Of a bottleneck; None: there is none."""
    queue_bytes: int = 1 << 18
    """What waits before the bottleneck; further frames are lost."""


class BothWays(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the wire does in each direction, as seen from the device."""

    outbound: Impairments = Impairments()
    inbound: Impairments = Impairments()
    seed: int = 1

    def path(self, *, outbound: bool) -> Path:
        """One direction's path, from its beginning."""
        return Path(self.outbound if outbound else self.inbound,
                    random.Random(f"{'out' if outbound else 'in'}bound impairments of {self.seed}"))


class PathCounts(msgspec.Struct, kw_only=True):
    """What a path did so far, in frames."""

    entered: int = 0
    lost: int = 0
    overflowed: int = 0
    """Lost because the queue before the bottleneck was full."""
    duplicated: int = 0
    corrupted: int = 0
    reordered: int = 0


class Path:
    """One direction of an impaired path. Attribute: `counts`."""

    def __init__(self, impairments: Impairments, rng: random.Random) -> None:
        self.counts = PathCounts()
        self._impairments = impairments
        self._rng = rng
        self._free_at_ps = 0
        self._queue: deque[tuple[int, int]] = deque()
        """When each frame has left the bottleneck, and its bytes."""
        self._queued_bytes = 0

    def through(self, time_ps: int, frame: bytes) -> list[tuple[int, bytes]]:
        """When a frame that enters at `time_ps` comes out, and as what: not at all, once or twice."""
        settings, counts, rng = self._impairments, self.counts, self._rng
        lost, doubled, damaged, late, where = (rng.random() for _ in range(5))
        counts.entered += 1
        if lost < settings.loss:
            counts.lost += 1
            return []
        if settings.bit_rate is not None:
            out_ps = self._bottleneck(time_ps, len(frame) + MacTiming.overhead_bytes, settings.bit_rate)
            if out_ps is None:
                counts.overflowed += 1
                return []
            time_ps = out_ps
        time_ps += settings.delay_ps
        if damaged < settings.corrupt and frame[_ETHERTYPE] in _WITH_SUMS:
            counts.corrupted += 1
            frame = _with_a_flipped_bit(frame, where)
        if late < settings.reorder:
            counts.reordered += 1
            time_ps += settings.reorder_ps
        copies = 1
        if doubled < settings.duplicate:
            counts.duplicated += 1
            copies = 2
        return [(time_ps, frame)] * copies

    def _bottleneck(self, time_ps: int, length_bytes: int, bit_rate: int) -> int | None:
        """When a frame has left the bottleneck; None: its queue is full."""
        queue = self._queue
        while queue and queue[0][0] <= time_ps:
            self._queued_bytes -= queue.popleft()[1]
        if queue and self._queued_bytes + length_bytes > self._impairments.queue_bytes:
            return None
        self._free_at_ps = max(time_ps, self._free_at_ps) + -(-length_bytes * 8 * PS_PER_S // bit_rate)
        queue.append((self._free_at_ps, length_bytes))
        self._queued_bytes += length_bytes
        return self._free_at_ps


def _with_a_flipped_bit(frame: bytes, where: float) -> bytes:
    """A bit behind the Ethernet header: `where`, 0 to below 1, says which."""
    bit = ETHERNET_HEADER_BYTES * 8 + int(where * 8 * (len(frame) - ETHERNET_HEADER_BYTES))
    damaged = bytearray(frame)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
