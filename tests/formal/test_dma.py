"""The DMA engines keep AXI's rules on their own, whatever the clients and the bus do; no address is ever outside of
what was asked for, and no burst crosses 4 KB."""

# Ref: AMBA AXI and ACE Protocol Specification, ARM IHI 0022H, A3.2.1, A3.4.1

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Cat, Const, Signal
from amaranth.lib import data

from nic_model.contract import NicConfig
from rtl.bursts import BurstCutter
from rtl.dma_read import DmaRead, DmaReadClient
from rtl.dma_write import DmaWrite, DmaWriteClient
from rtl.interfaces import BURST
from tests.formal.claims import Claims
from tests.formal.prover import Proof, cases, check

CONFIG = NicConfig(name="proof", channels=4, vectors=1, keys=16, payload_reads=8)
LENGTH_BITS = 10
"""Of commands to the cutter alone: up to 5 blocks, so that the last of several is reached."""


def cuts_exactly(claims: Claims, block: BurstCutter) -> None:
    """The bursts of a command are the command: they begin where it does, follow each other, and end where it does."""
    m, command, burst = claims.m, block.i.payload, block.o.payload
    claims.stream(block.i, given=True)
    claims.given(command.length != 0)
    claims.given(command.address[12:] == 0)  # upwards there is nothing but a carry
    claims.stream(block.o)
    under_way, expected, left = Signal(), Signal(64), Signal(LENGTH_BITS)
    taken, leaves = block.i.valid & block.i.ready, block.o.valid & block.o.ready
    begin = Cat(burst.first, burst.block)
    length = Signal(LENGTH_BITS + 1)
    m.d.comb += length.eq(burst.final - burst.first + 1)
    # The next command is taken while the last burst of the one before may still be offered; then it waits.
    next_valid, next_begin, next_length = Signal(), Signal(64), Signal(LENGTH_BITS)
    ends = leaves & burst.last
    begins = ~under_way | ends
    claims.holds(~taken, next_valid)
    with m.If(taken & ~begins):
        m.d.sync += [next_valid.eq(1), next_begin.eq(command.address), next_length.eq(command.length)]
    with m.If(begins & next_valid):
        m.d.sync += [under_way.eq(1), expected.eq(next_begin), left.eq(next_length), next_valid.eq(0)]
    with m.Elif(begins & taken):
        m.d.sync += [under_way.eq(1), expected.eq(command.address), left.eq(command.length)]
    with m.Elif(ends):
        m.d.sync += under_way.eq(0)
    with m.Elif(leaves):
        m.d.sync += [expected.eq(expected + length), left.eq(left - length)]
    claims.holds(under_way, leaves)
    claims.holds((begin == expected) & (burst.first <= burst.final), leaves)
    claims.holds(burst.last == (length == left), leaves)
    claims.holds(length <= left, leaves)
    claims.reached(ends & (length != left) | (leaves & burst.last & (expected[:8] == 0)))


def never_crosses(claims: Claims, burst: Any, when: Any) -> None:
    """A burst of full beats, as AR or AW shows it, stays inside its naturally aligned block."""
    width = CONFIG.host_bytes
    claims.holds(burst.addr[:4] == 0, when)
    claims.holds(burst.addr[:8] + (burst.len + 1) * width <= BURST, when)


def commands_are_good(claims: Claims, block: Any) -> None:
    """Clients ask for at least one byte."""
    for name in block.signature.members:
        if name.startswith("cmd"):
            claims.stream(getattr(block, name), given=True)
            claims.given(getattr(block, name).payload.length != 0)


def reads(claims: Claims, block: DmaRead) -> None:
    """AR holds still until it is taken; no burst leaves its block; RREADY is never 0."""
    commands_are_good(claims, block)
    claims.stream(block.axi.ar)
    never_crosses(claims, block.axi.ar.payload, block.axi.ar.valid)
    claims.holds(block.axi.r.ready)


def writes(claims: Claims, block: DmaWrite) -> None:
    """AW and W hold still until they are taken; no burst leaves its block; BREADY is never 0.

    AW leaves a skid buffer, which passes on what it got (tests.formal.test_primitives)."""
    commands_are_good(claims, block)
    for name in ("receive", "completion"):
        claims.stream(getattr(block, f"row_{name}"), given=True)
    claims.stream(block.axi.aw)
    claims.stream(block.axi.w)
    addresses = claims.part("addresses")
    never_crosses(claims, addresses.i.payload, addresses.i.valid)
    claims.holds(block.axi.b.ready)


SLOTS = 2


def landing_slots(claims: Claims, block: DmaReadClient) -> None:
    """A burst asks for the bus only when it has a landing slot that no burst in flight has."""
    m = claims.m
    commands_are_good(claims, block)
    claims.given(block.request, block.grant)
    claims.given(~block.clear & ~block.clearing)
    # The bus answers each burst once: beats of the slot, the last of them marked, in some order of slots.
    in_flight = Signal(SLOTS)
    laps = Signal(SLOTS)
    landing = block.landing.payload
    claims.given(in_flight.bit_select(landing.slot, 1), block.landing.valid)
    claims.given(landing.lap == ~laps.bit_select(landing.slot, 1), block.landing.valid)
    granted = Cat(block.grant & (block.slot == n) for n in range(SLOTS))
    landed = Cat(block.landing.valid & landing.last & (landing.slot == n) for n in range(SLOTS))
    m.d.sync += [in_flight.eq((in_flight | granted) & ~landed), laps.eq(laps ^ landed)]
    claims.holds((in_flight & granted) == 0)
    claims.stream(block.beat)
    # A slot's data are not overwritten while they are being given: no more bursts than slots from grant to last beat.
    last_beats = claims.inside(block.grant, block.beat.valid & block.beat.ready & ends_burst(claims, block), 3)
    claims.holds(last_beats <= SLOTS + 2)
    claims.reached(last_beats == SLOTS)
    claims.reached(block.beat.valid)


def ends_burst(claims: Claims, block: DmaReadClient) -> Any:
    """One beat for each burst: the commands are assumed to be that short."""
    address, length = block.cmd.payload.address, block.cmd.payload.length
    claims.given((address[:4] + length <= CONFIG.host_bytes) & (length < CONFIG.host_bytes))
    claims.given(block.landing.payload.last & (block.landing.payload.beat == 0))
    return Const(1)


def claims_rows(claims: Claims, block: DmaWriteClient) -> None:
    """A burst asks for the bus only when its rows are there: the rows of granted bursts never outnumber those that
    came, so W never waits for a client; or, of a client that streams, when its first row is. Responses go to bursts in
    flight only, and `done` counts commands."""
    m = claims.m
    commands_are_good(claims, block)
    claims.stream(block.row, given=True)
    claims.given(block.request, block.grant)
    claims.given(~block.clear & ~block.clearing)
    burst = block.burst
    rows = Signal(5)
    m.d.comb += rows.eq(burst.final[4:] - burst.first[4:] + 1)
    came = claims.inside(block.row.valid & block.row.ready, 0, 8, "came")
    promised = Signal(8)
    with m.If(block.grant):
        m.d.sync += promised.eq(promised + rows)
    claims.holds(promised + (1 if block.streams else rows) <= came, block.request)
    in_flight, laps = Signal(SLOTS), Signal(SLOTS)
    answer = block.answered.payload
    claims.given(in_flight.bit_select(answer.slot, 1), block.answered.valid)
    claims.given(answer.lap == ~laps.bit_select(answer.slot, 1), block.answered.valid)
    granted = Cat(block.grant & (block.slot == n) for n in range(SLOTS))
    answered = Cat(block.answered.valid & (answer.slot == n) for n in range(SLOTS))
    m.d.sync += [in_flight.eq((in_flight | granted) & ~answered), laps.eq(laps ^ answered)]
    claims.holds((in_flight & granted) == 0)
    # a command is done once, and not before all its bursts are answered
    commands = claims.inside(block.cmd.valid & block.cmd.ready, block.done.valid & block.done.ready, 4, "commands")
    claims.holds(commands != 0, block.done.valid)
    claims.holds(~in_flight.any() | (commands != block.done.valid), 1)
    claims.stream(block.done)
    claims.reached(block.done.valid & in_flight.any())


PROOFS = [
    Proof("a cutter's bursts are the command",
          lambda: BurstCutter(command=data.StructLayout({"address": 64, "length": LENGTH_BITS})), cuts_exactly,
          depth=8, cover=8),
    Proof("reads keep AXI's rules", lambda: DmaRead(CONFIG), reads, depth=3, induction=2, arrays=True,
          asserts=False),
    Proof("writes keep AXI's rules", lambda: DmaWrite(CONFIG), writes, depth=3, induction=2, arrays=True,
          asserts=False),
    Proof("a read has a landing slot of its own", lambda: DmaReadClient(config=CONFIG, slots=SLOTS), landing_slots,
          depth=12, cover=14, arrays=True, long=True),
    Proof("a read has one, straight from the block RAM", lambda: DmaReadClient(
          config=CONFIG, slots=SLOTS, registered=False), landing_slots, depth=12, cover=14, arrays=True, long=True),
    Proof("a write's rows are at hand", lambda: DmaWriteClient(config=CONFIG, slots=SLOTS, rows=16), claims_rows,
          depth=12, cover=14, arrays=True, long=True),
    Proof("a write's rows are at hand, claimed ahead",
          lambda: DmaWriteClient(config=CONFIG, slots=SLOTS, rows=16, ahead=True), claims_rows,
          depth=12, cover=14, arrays=True, long=True),
    Proof("a streamed write's first row is at hand",
          lambda: DmaWriteClient(config=CONFIG, slots=SLOTS, rows=16, streams=True), claims_rows,
          depth=12, cover=14, arrays=True, long=True),
]


@pytest.mark.parametrize("proof", cases(PROOFS))
def test_dma(proof: Proof, tmp_path: Path) -> None:
    check(proof, tmp_path)
