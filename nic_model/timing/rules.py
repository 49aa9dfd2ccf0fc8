"""What all timing rules use: how they are compiled, what comes out of them, who waits for whom, time and parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

from nic_model.contract.config import BURST_BYTES

F = TypeVar("F", bound=Callable[..., Any])

NEVER = 1 << 60
FRACTION_BITS = 20
PS_PER_S = 10**12

FETCH_SLOTS = 64
SLOT_BYTES = 32
RX_SLOT_BYTES = 16
RX_FETCH_SLOTS = BURST_BYTES // RX_SLOT_BYTES
COMPLETION_BYTES = 32
BATCH_BYTES = 128
MAX_FRAME_BYTES = 9216
BURST = BURST_BYTES

FRAME, READ, COMPLETED, MATCHED, DROPPED, JOB = range(6)
"""Kinds of what comes out, see `put`."""

NO_BUFFER, FIFO_FULL = range(2)

PAYLOAD, SLOTS, BUFFERS = range(3)
"""Who reads."""

OUTS = 1 << 14
"""Places for what comes out between two calls."""

OUT_ROOM = 512
"""Places for what comes out that must be free before a stage acts."""


def rule(function: F) -> F:
    """A function of this module: compiled."""
    return cast(F, numba.njit(cache=True, inline="never")(function))


def step(function: F) -> F:
    """A part of a rule: compiled as if it stood where it is called, since a call costs as much as what most do."""
    return cast(F, numba.njit(cache=True, inline="always")(function))


@step
def put(s: Any, q: Any, kind: int, a: int, b: int, c: int, d: int, e: int) -> None:
    """Say what comes out. FRAME: channel, descriptor, first beat, last beat, number in its send. READ: edge, who
    reads. COMPLETED: channel, token, the write's last beat, when it is in memory, when it is retired. MATCHED: frame,
    edge. DROPPED: frame, edge, why. JOB: channel, descriptor, edge."""
    row = q.out[s.out_count]
    row[0] = kind
    row[1] = a
    row[2] = b
    row[3] = c
    row[4] = d
    row[5] = e
    s.out_count += 1


WAITS = (
    ("descriptor fetch", "room for its slots"),
    ("FrameScheduler", "a job"),
    ("FrameScheduler", "bytes ahead of the wire"),
    ("FrameScheduler", "frames under way"),
    ("FrameScheduler", "reads of frames before"),
    ("payload reads", "a read in flight that ends"),
    ("payload stream", "data from host memory"),
    ("payload stream", "room in the transmit buffer"),
    ("HeaderWriter", "payload and its sums"),
    ("HeaderWriter", "frames that leave"),
    ("MAC", "a header"),
    ("MAC", "the wire"),
)
"""Who waits for whom, on the way out."""

(FETCH_ROOM, DECIDE_JOB, DECIDE_AHEAD, DECIDE_FRAMES, DECIDE_READS, READ_SLOT, STREAM_DATA, STREAM_ROOM, HEADER_SUMS,
 HEADER_LEAVES, MAC_HEADER, MAC_WIRE) = range(len(WAITS))

BUSY = ("FrameScheduler", "payload stream", "HeaderWriter", "MAC")
DECIDING, STREAMING, WRITING, LEAVING = range(len(BUSY))
"""Stages of which it is counted how long they work."""


@step
def wait(p: Any, q: Any, who: int, cycles: int) -> None:
    """Somebody has waited so long (if positive)."""
    if p.traced and cycles > 0:
        q.waited[who] += cycles


@step
def work(p: Any, q: Any, who: int, cycles: int) -> None:
    """A stage works so long."""
    if p.traced:
        q.worked[who] += cycles


@step
def time_of(p: Any, edge: int) -> int:
    """Picoseconds of an edge, rounded down."""
    return edge * p.period_ps + (edge * p.period_rest // p.clock_hz if p.period_rest else 0)


@step
def edge_from(p: Any, time_ps: int) -> int:
    """The first edge at or after a time."""
    if p.period_rest == 0:
        return (time_ps + p.period_ps - 1) // p.period_ps
    edge = int(time_ps / PS_PER_S * p.clock_hz)
    while time_of(p, edge) < time_ps:
        edge += 1
    while edge > 0 and time_of(p, edge - 1) >= time_ps:
        edge -= 1
    return edge


@step
def paced(count: int, cycles_100: int) -> int:
    """Cycles of so many beats, a hundred of which take so many."""
    return count if cycles_100 == 100 else (count * cycles_100 + 99) // 100


@step
def parts(length: int, most: int) -> int:
    """Parts of so many bytes at most."""
    return (length + most - 1) // most


@step
def beats(length: int, log2: int) -> int:
    """Beats of 2^log2 bytes that so many take from a beat's first lane on."""
    return (length + (1 << log2) - 1) >> log2


@step
def rows_between(address: int, length: int, log2: int) -> int:
    """Rows of 2^log2 bytes that bytes at an address touch."""
    return ((address & (1 << log2) - 1) + length + (1 << log2) - 1) >> log2
