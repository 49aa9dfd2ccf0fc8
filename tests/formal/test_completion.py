"""Completions: each token is completed once, in its place of its channel's ring, with the phase of the lap; and it is
retired once, in order, when the bus has answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Mux, Signal, Value

from nic_model.contract import COMPLETION, COMPLETION_BYTES, RING_ALIGNMENT_BYTES, NicConfig
from rtl.addresses import channel_of, is_channel_register
from rtl.completion import BATCH_BYTES, Completion
from rtl.interfaces import INDEX_BITS
from tests.formal.claims import Claims
from tests.formal.prover import Proof, cases, check

CONFIG = NicConfig(name="proof", channels=4, vectors=1, keys=16)
ROWS = COMPLETION_BYTES // CONFIG.host_bytes
CHANNELS = 2
"""That run, of those of the device."""
SMALLEST_LOG2 = (BATCH_BYTES // COMPLETION_BYTES).bit_length() - 1
"""The smallest ring that the block can have: 4 entries, so that the proof goes twice round it."""
NEAR_BITS = 13
COUNT_BITS = 5
"""Of all that is counted."""


class _Narrow(Completion):
    """With fewer tokens in flight, so that the proof's registers are fewer."""

    def elaborate(self, platform: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("rtl.completion.TOKENS_IN_FLIGHT", 4)
            return super().elaborate(platform)


def completes_once(claims: Claims, block: Completion) -> None:
    """Shown for one token that the solver picks, as it leaves the arbiter of sends and receives."""
    m = claims.m
    for stream in (block.tx, block.rx, block.write_done):
        claims.stream(stream, given=True)
    for stream in (block.write_cmd, block.write_row, block.retired, block.fault):
        claims.stream(stream)

    # Both channels start once, with the smallest ring, wherever it lies; and run.
    written, started = block.write.payload, Signal(CONFIG.channels)
    is_log2 = block.write.valid & is_channel_register(CONFIG, written.address, "CQ_LOG2")
    configured = Signal(CONFIG.channels)
    m.d.sync += [
        configured.eq(configured | Mux(is_log2, 1 << channel_of(CONFIG, written.address), 0)),
        started.eq(started | Mux(block.start.valid, 1 << block.start.payload.channel[:2], 0)),
    ]
    claims.given(written.data == SMALLEST_LOG2, is_log2)
    starting = block.start.payload.channel
    claims.given((starting < CHANNELS) & configured.bit_select(starting[:2], 1)
                 & ~started.bit_select(starting[:2], 1), block.start.valid)
    claims.given(block.running == started)
    bases = []
    for channel in range(CHANNELS):
        base = Signal(64, name=f"base_{channel}")
        for name, half in (("CQ_BASE_LO", base[:32]), ("CQ_BASE_HI", base[32:])):
            writes = (block.write.valid & is_channel_register(CONFIG, written.address, name)
                      & (channel_of(CONFIG, written.address) == channel))
            claims.given(~started[channel], writes)
            with m.If(writes):
                m.d.sync += half.eq(written.data)
        claims.given(base[:RING_ALIGNMENT_BYTES.bit_length() - 1] == 0)
        claims.given(base[NEAR_BITS:] == 0)  # the carry into the upper half is the block's tests' business
        bases.append(base)

    # Tokens, and the one that is watched: how many are before it, in all and with a completion, and where it belongs.
    tokens = claims.part("arbiter").o
    token = tokens.payload
    for done in (block.tx, block.rx):
        claims.given(done.payload.channel < CHANNELS)
        # What a token says does not steer its way: a few bits of it are enough to tell tokens apart.
        claims.given(done.payload.status < 2)
        for name, bits in (("ring_index", 4), ("length", 0), ("segments", 0), ("timestamp", 0)):
            claims.given(getattr(done.payload, name)[bits:] == 0)
    claims.given(block.tx.payload.tag[4:] == 0)
    for name in ("info", "checksum", "mss"):
        claims.given(getattr(block.rx.payload, name) == 0)
    claims.given(block.rx.payload.buffer_id[4:] == 0)
    takes, writes = Signal(), Signal()
    m.d.comb += [takes.eq(tokens.valid & tokens.ready),
                 writes.eq(takes & token.writes & started.bit_select(token.channel[:2], 1))]
    taken = claims.inside(takes, 0, COUNT_BITS, "taken")
    entries = claims.inside(writes, 0, COUNT_BITS, "entries")
    places = [claims.inside(writes & (token.channel == n), 0, COUNT_BITS, f"entries_{n}") for n in range(CHANNELS)]
    place_now = Mux(token.channel[0], places[1], places[0])
    watch, seen, kept = claims.any(name="watch"), Signal(), Signal.like(token)
    number, entry, place = Signal(COUNT_BITS), Signal(COUNT_BITS), Signal(COUNT_BITS)
    with m.If(writes & watch & ~seen):
        m.d.sync += [seen.eq(1), Value.cast(kept).eq(Value.cast(token)), number.eq(taken), entry.eq(entries),
                     place.eq(place_now)]

    # Its rows.
    row_leaves = Signal()
    m.d.comb += row_leaves.eq(block.write_row.valid & block.write_row.ready)
    rows = claims.inside(row_leaves, 0, COUNT_BITS + 1, "rows")
    claims.holds(rows < ROWS * (entries + writes), block.write_row.valid)
    phase = ~place[SMALLEST_LOG2]
    for row in range(ROWS):
        is_it = seen & block.write_row.valid & (rows == ROWS * entry + row)
        for name, value in (("phase", phase), ("tag", kept.tag), ("status", kept.status),
                            ("ring_index", kept.ring_index)):
            field = COMPLETION.fields[name]
            at = field.offset - 8 * CONFIG.host_bytes * row
            if 0 <= at < 8 * CONFIG.host_bytes:
                claims.holds(block.write_row.payload.data[at:at + field.width] == value, is_it)
    claims.reached(seen & (place == 1 << SMALLEST_LOG2) & row_leaves & (rows == ROWS * entry))

    # Its command, which may be for other entries too, but never goes round the ring's end.
    command = block.write_cmd.payload
    commands = Signal()
    m.d.comb += commands.eq(block.write_cmd.valid & block.write_cmd.ready)
    in_command = command.length // COMPLETION_BYTES
    claims.holds((command.length % COMPLETION_BYTES == 0) & (in_command != 0)
                 & (command.length <= BATCH_BYTES), block.write_cmd.valid)
    commanded = claims.inside(Mux(commands, in_command, 0), 0, COUNT_BITS, "commanded")
    claims.holds(commanded + in_command <= entries, block.write_cmd.valid)
    is_its = Signal()
    behind = (entry - commanded)[:COUNT_BITS]
    m.d.comb += is_its.eq(seen & block.write_cmd.valid & (entry >= commanded) & (behind < in_command))
    base = Mux(kept.channel[0], bases[1], bases[0])
    claims.holds(command.address + behind * COMPLETION_BYTES
                 == base + place[:SMALLEST_LOG2] * COMPLETION_BYTES, is_its)
    claims.reached(is_its & (behind != 0))

    # Its answer: the bus answers commands in order.
    done = Signal()
    m.d.comb += done.eq(block.write_done.valid & block.write_done.ready)
    waiting = claims.inside(commands, done, COUNT_BITS, "waiting")
    claims.given(waiting != 0, block.write_done.valid)
    # The answer of a batch stays until the last of its entries has seen it.
    before, has_command, passed, was_bad = Signal(COUNT_BITS), Signal(), Signal(), Signal()
    offered, answered, failed = Signal(), Signal(), Signal()
    m.d.comb += [
        offered.eq(block.write_done.valid & has_command & ~passed & (before == 0)),
        answered.eq(passed | offered), failed.eq(Mux(passed, was_bad, block.write_done.payload.error)),
    ]
    with m.If(is_its & commands):
        m.d.sync += [has_command.eq(1), before.eq(waiting - done)]
    with m.Elif(done & has_command & ~passed):
        m.d.sync += [before.eq(before - 1), passed.eq(offered), was_bad.eq(block.write_done.payload.error)]

    # Its end: every token is retired once, in the order in which they came, as what it was.
    retired = claims.inside(block.tx_retired | block.rx_retired, 0, COUNT_BITS, "retired")
    claims.holds(~(block.tx_retired & block.rx_retired))
    claims.holds(retired + (block.tx_retired | block.rx_retired) <= taken)
    ends = Signal()
    m.d.comb += ends.eq(seen & (retired == number) & (block.tx_retired | block.rx_retired))
    claims.holds(block.rx_retired == kept.receive, ends)
    claims.holds(answered, ends)
    claims.holds((block.retired.valid & block.retired.ready) == ~failed, ends)
    index = Signal(INDEX_BITS)
    m.d.comb += index.eq(place + 1)
    claims.holds((block.retired.payload.channel == kept.channel) & (block.retired.payload.index == index),
                 ends & ~failed)
    claims.reached(ends & ~failed & (place != 0))
    claims.reached(ends & failed)


PROOFS = [
    Proof("a token is completed once, in its place, with its phase", lambda: _Narrow(CONFIG), completes_once,
          depth=16, cover=24, long=True),
]


@pytest.mark.parametrize("proof", cases(PROOFS))
def test_completion(proof: Proof, tmp_path: Path) -> None:
    check(proof, tmp_path)
