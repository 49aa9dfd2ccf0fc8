"""Seam 3: frames between a device and the wire. Whole Ethernet frames without FCS, each with its times.

The device's MAC stands here: a transmit FIFO that drains at the wire's rate and holds the device back while it is full,
and a receiver that gives frames to the device whole. `cosim/transactors/mac.h` says the same in C++.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cosim.engines.splitmix import SplitMix
from nic_model.contract import MAX_FRAME_BYTES

PS_PER_S = 10**12


@dataclass(frozen=True)
class MacTiming:
    """A MAC and its link, as a device sees them."""

    bit_rate: int
    """Of the link."""
    fifo_bytes: int = 16384
    """Transmit FIFO. It takes a frame when it has room for one of any length."""
    overhead_bytes: int = 24
    """On the wire with each frame: preamble and start delimiter 8, FCS 4, interframe gap 12."""
    gap_bytes: int = 12
    """The last of these: a receiver has the frame before the gap."""
    min_frame_bytes: int = 60
    """IEEE 802.3 §3.2.8, without FCS: shorter frames are padded with zeros."""
    jitter_ps: int = 0
    """A frame keeps the wire for a random 0 .. so much longer."""
    lookahead_ps: int = 0
    """No peer can answer a frame sooner than so long after its last bit; so the host may hear of it so late."""
    sink_percent: int = 100
    """The MAC takes a beat of a frame in so many of a hundred cycles."""
    source_percent: int = 100
    """It gives one in so many."""
    source_gap_cycles: int = 0
    """Between two frames for the device, at least."""
    seed: int = 0


class SentFrame(NamedTuple):
    """A frame from the device and its times in picoseconds."""

    data: bytes
    taken_ps: int
    """Its last beat."""
    start_ps: int
    """Its first bit on the wire."""
    end_ps: int
    """Its last bit."""
    free_ps: int
    """The end of the gap behind it."""


class Mac(Protocol):
    """What the wire offers to a device, which sets `deliver` and calls `transmitted`."""

    timing: MacTiming

    deliver: Callable[[bytes, bool, int], None]
    """`deliver(frame, bad, time_ps)`: the last bit of a frame for the device arrives at `time_ps`, now or later, and
    not before that of the frame before it; `bad` is the MAC's bad-frame flag."""

    def transmitted(self, frames: Sequence[SentFrame]) -> None:
        """Frames from the device, in order. Called after they were taken, and no later than `lookahead_ps` after the
        last bit of the first of them."""


class TransmitFifo:
    """When frames leave a MAC, and whether it takes another."""

    def __init__(self, timing: MacTiming) -> None:
        self._timing = timing
        self._random = SplitMix(timing.seed)
        self._leaving: deque[tuple[int, int]] = deque()
        self._queued_bytes = 0
        self._free_at_ps = 0

    def __len__(self) -> int:
        """Frames that were in it when it was last asked for room."""
        return len(self._leaving)

    def has_room(self, now_ps: int) -> bool:
        """Whether it takes a frame of any length."""
        leaving = self._leaving
        while leaving and leaving[0][0] <= now_ps:
            self._queued_bytes -= leaving.popleft()[1]
        return self._queued_bytes + MAX_FRAME_BYTES <= self._timing.fifo_bytes

    def next_room_ps(self) -> int | None:
        """Time at which the next frame has left; None when there is none."""
        return self._leaving[0][0] if self._leaving else None

    def push(self, data: bytes, now_ps: int) -> SentFrame:
        """A whole frame enters."""
        timing = self._timing
        padded = max(len(data), timing.min_frame_bytes)
        start = max(now_ps, self._free_at_ps)
        end = start + self._duration_ps(padded + timing.overhead_bytes - timing.gap_bytes)
        free = start + self._duration_ps(padded + timing.overhead_bytes)
        if timing.jitter_ps:
            free += self._random.below(timing.jitter_ps)
        self._free_at_ps = free
        self._leaving.append((free, padded))
        self._queued_bytes += padded
        return SentFrame(data, now_ps, start, end, free)

    def _duration_ps(self, length_bytes: int) -> int:
        return -(-length_bytes * 8 * PS_PER_S // self._timing.bit_rate)
