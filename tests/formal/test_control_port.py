"""The control port's receive side: handles end once, no byte goes astray, and nobody waits for the emit stream."""

from __future__ import annotations

from pathlib import Path

import pytest
from amaranth.hdl import Cat, Signal

from nic_model.contract import NicConfig, Status
from nic_model.contract.control import ControlType, DoneStatus
from rtl.control_messages import MessageHeader
from rtl.control_place import ControlPlace
from rtl.control_release import ControlRelease
from tests.formal.claims import Claims
from tests.formal.prover import Proof, cases, check

CONFIG = NicConfig(name="proof", flows=16, control_cells=36, control_slots=16, listeners=1)


def handles_end_once(claims: Claims, block: ControlRelease) -> None:
    """An order ends any one handle only if it has begun since it ended last; and an order that is OK is about a handle
    that is held. Orders about handles come as they like, and handles begin when they are not held. Whoever carries
    orders out takes them at once."""
    m = claims.m
    header = MessageHeader(block.i.payload.data[:MessageHeader.size])
    kinds = (ControlType.PLACE, ControlType.DROP, ControlType.PASS)
    claims.given(Cat(header.type == kind for kind in kinds).any() & (header.units == 1))
    claims.given(block.place.ready & block.passed.ready & block.done.ready)
    handle = claims.constant(len(block.held.payload.handle), "handle")
    claims.given(handle < CONFIG.control_cells)
    held, begins = Signal(name="is_held"), Signal()
    place = block.place
    ends = place.valid & place.ready & place.payload.ends & (place.payload.handle == handle)
    # It ends where it is judged, a cycle before that is offered.
    offered = place.valid & (place.payload.handle == handle) & place.payload.ends
    m.d.comb += begins.eq(block.held.valid & (block.held.payload.handle == handle))
    claims.given(~held & ~offered, begins)
    claims.given(block.held.payload.handle < CONFIG.control_cells, block.held.valid)
    with m.If(begins):
        m.d.sync += held.eq(1)
    with m.If(ends):
        m.d.sync += held.eq(0)
    claims.holds(held, ends)
    claims.holds(held, place.valid & place.ready & (place.payload.handle == handle)
                 & (place.payload.done.status == DoneStatus.OK))
    # What is passed on is told of once, beside its order.
    claims.holds(block.passed.valid, place.valid & place.ready & place.payload.passes)
    claims.holds(place.payload.ends & place.valid, block.passed.valid)
    claims.stream(place)
    claims.stream(block.done)
    claims.stream(block.passed)
    claims.reached(ends)
    claims.reached(block.passed.valid)


def release_waits_for_no_emit(claims: Claims, block: ControlRelease) -> None:
    """Whoever carries out what was judged takes it, and the flow table answers: then a beat of any order but FLOW_DEL
    enters within 20 cycles, although EMITs are under way all the time."""
    m = claims.m
    claims.given(~block.emit_idle & ~block.held.valid)
    claims.stream(block.i, given=True)
    for sink in (block.place, block.passed, block.done, block.entry, block.complete):
        claims.given(sink.ready)
    for order, done in ((block.flow_order, block.flow_done), (block.listen_order, block.listen_done)):
        # An answer in the cycle behind the order.
        m.d.sync += done.valid.eq(order.valid & order.ready)
        claims.given(order.ready == order.valid)
    header = MessageHeader(block.i.payload.data[:MessageHeader.size])
    for kind in (ControlType.FLOW_DEL,):
        claims.given(header.type != kind)
    claims.answered_within(block.i.valid, block.i.ready, 20)
    claims.reached(block.place.valid)


def nothing_outside_of_its_key(claims: Claims, block: ControlPlace) -> None:
    """A write begins where the key table's OK said, and has as many bytes as it was asked for, with the WRITE right as
    the order's channel. Shown for one order at a time."""
    m = claims.m
    claims.stream(block.order, given=True)
    claims.stream(block.key_answer, given=True)
    claims.given(block.order.payload.begin + block.order.payload.done.length < 1 << 14)
    order, request, answer, command = block.order, block.key_request, block.key_answer, block.write_cmd
    taken, asked, allowed, wrote = (Signal(name=name) for name in ("taken", "asked", "allowed", "wrote"))
    kept, address = Signal.like(order.payload, name="kept"), Signal(64, name="allowed_address")
    claims.given(~taken, order.valid)
    with m.If(order.valid & order.ready):
        m.d.sync += [taken.eq(1), kept.eq(order.payload)]
    asks = request.valid & request.ready
    claims.holds(Cat(request.payload.write, request.payload.channel == order.payload.channel,
                     request.payload.key == order.payload.key, request.payload.offset == order.payload.offset,
                     request.payload.length == order.payload.done.length).all(), asks)
    with m.If(asks):
        m.d.sync += asked.eq(1)
    claims.given(asked & ~allowed, answer.valid)
    with m.If(answer.valid & answer.ready):
        m.d.sync += [allowed.eq(answer.payload.status == Status.OK), address.eq(answer.payload.address), asked.eq(0)]
    with m.If(command.valid & command.ready):
        m.d.sync += wrote.eq(1)
    claims.holds(Cat(allowed, ~wrote, command.payload.address == address,
                     command.payload.length == kept.done.length).all(), command.valid)
    claims.stream(command)
    claims.reached(command.valid & (command.payload.length > 1))


PROOFS = [
    Proof("a handle ends once", lambda: ControlRelease(CONFIG), handles_end_once, depth=18, cover=18, long=True),
    Proof("release waits for no emit", lambda: ControlRelease(CONFIG), release_waits_for_no_emit, depth=22, cover=16,
          arrays=True, asserts=False),
    Proof("nothing is written outside of its key", lambda: ControlPlace(CONFIG), nothing_outside_of_its_key, depth=14,
          cover=14, arrays=True),
]


@pytest.mark.parametrize("proof", cases(PROOFS))
def test_control_port(proof: Proof, tmp_path: Path) -> None:
    check(proof, tmp_path)
