"""Rings: no slot is fetched before the driver posted it, and none is skipped or fetched twice.

Indices are free-running and only ever subtracted, so what is shown from index 0 on holds across the wrap of their 16
bits too; the wrap of the rings themselves is reached.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from amaranth.hdl import Cat, Mux, Signal

from nic_model.contract import (
    MAX_DESCRIPTOR_SLOTS,
    RECEIVE_SLOT_BYTES,
    RING_ALIGNMENT_BYTES,
    SUBMISSION_SLOT_BYTES,
    NicConfig,
)
from rtl.addresses import channel_of, is_channel_register
from rtl.descriptor import FETCH_SLOTS
from rtl.fetch import FetchScheduler
from rtl.interfaces import INDEX_BITS, queue_slots
from rtl.rx_rings import RxRings, prefetch_slots
from tests.formal.claims import Claims
from tests.formal.prover import Proof, cases, check

CONFIG = NicConfig(name="proof", channels=4, vectors=1, keys=16)
CHANNELS = 2
"""That start, of those of the device."""
LARGEST_LOG2 = 4
"""Of the rings in these proofs: small, so that their ends are reached."""
NEAR_BITS = 7


class _Ring(NamedTuple):
    """A ring as it stood when its channel started: its address and its slots."""

    base: Signal
    size: Signal


def _rings(claims: Claims, block: Any, prefix: str) -> list[_Ring]:
    """The rings of both channels; assumes that registers are written with what a ring may have."""
    m, written, rings = claims.m, block.write.payload, []
    for channel in range(CHANNELS):
        lo, hi, log2 = Signal(32), Signal(32), Signal(5)
        for name, kept in ((f"{prefix}_BASE_LO", lo), (f"{prefix}_BASE_HI", hi), (f"{prefix}_LOG2", log2)):
            writes = (block.write.valid & is_channel_register(CONFIG, written.address, name)
                      & (channel_of(CONFIG, written.address) == channel))
            with m.If(writes):
                m.d.sync += kept.eq(written.data)
        starts = block.start.valid & (block.start.payload.channel == channel)
        claims.given((log2 <= LARGEST_LOG2) & (log2 != 0) & (lo % RING_ALIGNMENT_BYTES == 0), starts)
        ring = _Ring(Signal(64, name=f"base_{channel}"), Signal(LARGEST_LOG2 + 1, name=f"size_{channel}"))
        with m.If(starts):
            m.d.sync += [ring.base.eq(Cat(lo, hi)), ring.size.eq(1 << log2)]
        rings.append(ring)
    return rings


def fetches_what_was_posted(claims: Claims, block: FetchScheduler) -> None:
    """For one channel of two: each fetch begins where the one before ended, or where the cutter left a
    descriptor; it ends at the producer index at the latest; what is asked for and not freed fits the queue. The
    commands of both channels stay inside their rings, and ask for as many slots as the fetches say."""
    m = claims.m
    watched = 0  # all channels are alike, so one is enough, with another beside it
    rings = _rings(claims, block, "TX")
    base, size = rings[watched]

    # Each channel starts once, and may stop at any time.
    started, runs = Signal(CONFIG.channels), Signal(CONFIG.channels)
    starting = Mux(block.start.valid, 1 << block.start.payload.channel[:1], 0)[:CHANNELS]
    claims.given((started & starting) == 0)
    claims.given(block.start.payload.channel < CHANNELS)
    recent = Signal(3)  # register writes are 4 cycles apart at least
    m.d.sync += recent.eq(Cat(block.start.valid, recent))
    claims.given(recent == 0, block.start.valid)
    m.d.sync += [started.eq(started | starting), runs.eq(block.running)]
    claims.given((block.running & ~started) == 0)
    claims.given((block.running & ~runs & ~claims.past(starting, "started_now")) == 0)  # none starts anew

    # What the driver posted: a doorbell counts unless it goes back or beyond the ring, or nobody runs.
    doorbell, rung = block.doorbell.payload, Signal()
    rung_channel = Signal(1)
    claims.stream(block.doorbell, given=True)
    claims.given(doorbell.channel < CHANNELS)
    claims.given((doorbell.slots != 0) & (doorbell.slots <= MAX_DESCRIPTOR_SLOTS), doorbell.pushed)
    producer, consumer = Signal(INDEX_BITS), Signal(INDEX_BITS)
    for index in (doorbell.index, block.consumed.payload.index):  # near 0, on both sides, so that there is less to try
        claims.given((index[NEAR_BITS:] == 0) | index[NEAR_BITS:].all())
    m.d.comb += rung.eq(block.doorbell.valid & block.doorbell.ready)
    with m.If(rung):
        m.d.sync += rung_channel.eq(doorbell.channel)
    reach = (producer - consumer)[:INDEX_BITS] + (doorbell.index - producer)[:INDEX_BITS]
    runs_now = block.running.bit_select(doorbell.channel[:1], 1)
    with m.If(rung & runs_now & ~doorbell.pushed & (doorbell.channel == watched) & (reach <= size)):
        m.d.sync += producer.eq(doorbell.index)
    with m.Elif(block.push.valid & (rung_channel == watched)):
        m.d.sync += producer.eq(producer + block.push.payload.slots)

    # Fetches of the channel, and how the cutter takes them: in order, up to their ends or a descriptor that is cut
    # off, and then nothing of what was asked for behind it.
    fetch = claims.part("fetches").i.payload  # as it is decided; from there a FIFO leads to `block.fetch`
    is_fetch = Signal()
    end, asked, oldest_end = Signal(INDEX_BITS), Signal(INDEX_BITS), Signal(INDEX_BITS)
    under_way, stale = Signal(2), Signal()
    m.d.comb += [
        is_fetch.eq(block.issued & (fetch.channel == watched)),
        end.eq(fetch.index + fetch.count),
    ]
    finished, consumed, freed = block.finished.payload, block.consumed.payload, block.freed.payload
    ends = Signal()
    m.d.comb += ends.eq(block.finished.valid & (finished.channel == watched))
    for channel in (finished.channel, consumed.channel, freed.channel):
        claims.given(channel < CHANNELS)
    claims.given((under_way != 0) & ~is_fetch, ends)
    claims.given(finished.index == consumer, ends & finished.cut)
    claims.given(~finished.cut | (~stale & (consumer != oldest_end)), ends)
    claims.given(finished.cut | stale | (consumer == oldest_end), ends)
    with m.If(is_fetch):
        m.d.sync += [asked.eq(end), under_way.eq(under_way + 1)]
        with m.If(under_way == 0):
            m.d.sync += [oldest_end.eq(end), stale.eq(0)]
    with m.If(ends):
        m.d.sync += [under_way.eq(under_way - 1), oldest_end.eq(asked), stale.eq(finished.cut & (under_way == 2))]
        with m.If(finished.cut):
            m.d.sync += asked.eq(finished.index)
    takes = Signal()
    m.d.comb += takes.eq(block.consumed.valid & (consumed.channel == watched))
    step = Signal(INDEX_BITS)
    m.d.comb += step.eq(consumed.index - consumer)
    claims.given((under_way != 0) & ~stale & ~ends & (step != 0)
                 & (step <= (oldest_end - consumer)[:INDEX_BITS]), takes)
    with m.If(takes):
        m.d.sync += consumer.eq(consumed.index)
    claims.given(~block.consumed.valid & ~block.freed.valid & ~block.finished.valid, block.hold)
    # Slots are freed behind the cutter, not faster than the block says that it can take.
    returned = Signal(INDEX_BITS)
    claims.given(~block.freed.valid, claims.past(block.freed.valid, "freed_before"))
    frees = Signal()
    m.d.comb += frees.eq(block.freed.valid & (freed.channel == watched))
    claims.given((freed.slots != 0) & (freed.slots <= (consumer - returned)[:INDEX_BITS]), frees)
    with m.If(frees):
        m.d.sync += returned.eq(returned + freed.slots)

    claims.stream(block.cmd)
    claims.stream(block.fetch)
    claims.stream(block.fault)
    claims.stream(block.forgotten)
    claims.holds(fetch.index == asked, is_fetch)
    claims.holds((fetch.count != 0) & (under_way != 2), is_fetch)
    posted = producer + Mux(fetch.pushed, fetch.count, 0)
    claims.holds((end - consumer)[:INDEX_BITS] <= (posted - consumer)[:INDEX_BITS], is_fetch)
    claims.holds(block.push.valid == (block.issued & fetch.pushed))
    claims.holds((end - returned)[:INDEX_BITS] <= queue_slots(CONFIG), is_fetch)

    # Commands follow the description that they belong to: inside the ring, and as many slots.
    command, asks, left = block.cmd.payload, Signal(), Signal(range(FETCH_SLOTS + 1))
    m.d.comb += asks.eq(block.issued & ~fetch.pushed)
    slots = command.length // SUBMISSION_SLOT_BYTES
    leaves = block.cmd.valid & block.cmd.ready
    is_watched, position = Signal(), Signal(INDEX_BITS)
    with m.If(asks):
        m.d.sync += [is_watched.eq(fetch.channel == watched), left.eq(fetch.count),
                     position.eq(fetch.index)]
    with m.Elif(leaves):
        m.d.sync += [left.eq(left - slots), position.eq(position + slots)]
    claims.holds((command.length % SUBMISSION_SLOT_BYTES == 0) & (slots != 0) & (slots <= left), block.cmd.valid)
    claims.holds(block.cmd.valid == (left != 0))
    claims.holds(~asks | (left == 0))
    offset = (position & (size - 1)) * SUBMISSION_SLOT_BYTES
    claims.holds(command.address == (base + offset)[:64], block.cmd.valid & is_watched)
    claims.holds(offset + command.length <= size * SUBMISSION_SLOT_BYTES, block.cmd.valid & is_watched)
    claims.reached(leaves & is_watched & (slots != left))


def receive_slots_are_posted(claims: Claims, block: RxRings) -> None:
    """For one channel of two, with slots posted and taken back, until the first of them has landed: each fetch begins
    where the one before ended, is for slots that are posted at that time, no more than the device holds, and reads
    them from where they lie in the ring."""
    m = claims.m
    watched = 0
    base, size = _rings(claims, block, "RX")[watched]
    starts = block.start.valid & (block.start.payload.channel == watched)
    started = Signal(CONFIG.channels)
    m.d.sync += started.eq(started | Mux(block.start.valid, 1 << block.start.payload.channel[:2], 0))
    claims.given((block.start.payload.channel < CHANNELS)
                 & ~started.bit_select(block.start.payload.channel[:2], 1), block.start.valid)
    claims.given((block.running & ~started) == 0)
    claims.given(~block.beat.valid & ~block.task.valid)  # nothing has landed, so nothing is used
    # Its ring registers are read when they are needed, so the driver leaves them alone while it runs.
    is_its = channel_of(CONFIG, block.write.payload.address) == watched
    claims.given(~(started[watched] | starts) | ~is_its, block.write.valid)

    doorbell, producer = block.doorbell.payload, Signal(INDEX_BITS)
    claims.stream(block.doorbell, given=True)
    claims.given(doorbell.channel < CHANNELS)
    claims.given((doorbell.index[NEAR_BITS:] == 0) | doorbell.index[NEAR_BITS:].all())
    rung = block.doorbell.valid & block.doorbell.ready & (doorbell.channel == watched)
    with m.If(starts):
        m.d.sync += producer.eq(0)
    with m.Elif(rung & (doorbell.index <= size)):  # else it goes back or beyond the ring; of a stopped one, none asks
        m.d.sync += producer.eq(doorbell.index)

    fetches, asked = claims.part("fetches").i, Signal(INDEX_BITS)
    fetch, issues = fetches.payload, fetches.valid & fetches.ready
    is_fetch, expected = Signal(), Signal(64)
    m.d.comb += is_fetch.eq(issues & (fetch.channel == watched))
    was_watched, index = Signal(), Signal(INDEX_BITS)
    with m.If(issues):
        m.d.sync += [was_watched.eq(fetch.channel == watched), index.eq(fetch.index)]
    command, gone = block.cmd.payload, block.cmd.valid & block.cmd.ready
    slots = command.length // RECEIVE_SLOT_BYTES
    m.d.comb += expected.eq(base + (index & (size - 1)) * RECEIVE_SLOT_BYTES)
    with m.If(starts):
        m.d.sync += asked.eq(0)
    with m.Elif(gone & was_watched):
        m.d.sync += asked.eq(index + slots)
    claims.stream(block.cmd)
    claims.holds(fetch.index == Mux(block.cmd.valid & was_watched, index + slots, asked), is_fetch)
    claims.holds((command.length % RECEIVE_SLOT_BYTES == 0) & (slots != 0), block.cmd.valid)
    claims.holds(command.address == expected, block.cmd.valid & was_watched)
    claims.holds((index & (size - 1)) + slots <= size, block.cmd.valid & was_watched)
    # It may be posted no longer when the command leaves: what was posted when it was decided counts.
    most = Signal(INDEX_BITS)
    with m.If(rung & (doorbell.index <= size) & (doorbell.index > most)):
        m.d.sync += most.eq(doorbell.index)
    claims.holds(index + slots <= most, block.cmd.valid & was_watched)
    claims.holds(index + slots <= prefetch_slots(CONFIG), block.cmd.valid & was_watched)
    claims.reached(gone & was_watched)


PROOFS = [
    Proof("slots are fetched once, and none before it is posted", lambda: FetchScheduler(CONFIG),
          fetches_what_was_posted, depth=14, cover=17, long=True),
    Proof("receive slots are fetched once, and none before it is posted", lambda: RxRings(CONFIG),
          receive_slots_are_posted, depth=16, cover=16, arrays=True, long=True),
]


@pytest.mark.parametrize("proof", cases(PROOFS))
def test_rings(proof: Proof, tmp_path: Path) -> None:
    check(proof, tmp_path)
