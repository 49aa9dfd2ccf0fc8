"""The control port's receive side: handles end once, no byte goes astray, nobody waits for the emit stream, and no
completion comes before the bytes that it tells of."""

from __future__ import annotations

from pathlib import Path

import pytest
from amaranth.hdl import Cat, Fragment, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, connect, flipped

from nic_model.contract import NicConfig, Status
from nic_model.contract.control import ControlType, DoneStatus
from rtl.control_complete import ControlComplete
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
    """Whoever carries out what was judged takes it, and the flow table answers: then a beat of any order but FLOW_DEL,
    which waits for PLACEs, enters within 20 cycles. Nothing is asked of the send side: the block does not hear of it.
    """
    m = claims.m
    claims.given(~block.held.valid)
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


class _Behind(wiring.Component):
    """PLACEs and COMPLETEs, as `rtl.control_receive.ControlReceive` connects who carries them out; fewer of them wait,
    so that the proof's registers are fewer."""

    OF_PLACE = ("order", "key_request", "key_answer", "write_cmd", "write_row", "write_done", "cell_order", "cell",
                "over")
    OF_COMPLETE = ("i", "o", "taken")

    def __init__(self) -> None:
        self.place, self.complete = ControlPlace(CONFIG), ControlComplete(CONFIG)
        self.parts = ((self.place, self.OF_PLACE), (self.complete, self.OF_COMPLETE))
        super().__init__({name: block.signature.members[name] for block, names in self.parts for name in names})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (("control_place.ORDERS_ASKED", 2), ("control_place.ORDERS_IN_FLIGHT", 4),
                                ("control_complete.PARKED", 2), ("control_complete.NUMBER_BITS", 4)):
                patch.setattr(f"rtl.{name}", value)
            m.submodules.place = Fragment.get(self.place, platform)
            m.submodules.complete = Fragment.get(self.complete, platform)
        place, complete = self.place, self.complete
        for block, names in self.parts:
            for name in names:
                ends = flipped(getattr(self, name)), getattr(block, name)
                connect(m, *(ends if self.signature.members[name].flow == In else ends[::-1]))
        given = self.order.payload.done
        m.d.comb += [
            complete.place_given.valid.eq(
                self.order.valid & self.order.ready & (given.order == ControlType.PLACE)),
            complete.place_given.payload.eq(given.flow),
            complete.place_over.eq(place.over.valid & place.over.ready),
            place.done.ready.eq(1), complete.done.ready.eq(1),
        ]
        return m


def no_completion_before_its_bytes(claims: Claims, block: _Behind) -> None:
    """A completion is offered only when each PLACE of its flow that was given before has been refused, or its write
    answered. Shown for one PLACE and one COMPLETE of any flow, that the solver picks among others."""
    m, bits = claims.m, 4
    order, unit, answer, command, done = block.order, block.i, block.key_answer, block.write_cmd, block.write_done
    for stream in (order, unit, answer, done):
        claims.stream(stream, given=True)
    claims.stream(block.o)
    # So `rtl.control_release.ControlRelease` gives them: one after the other, COMPLETEs of one unit.
    claims.given(~(order.valid & unit.valid) & ~block.cell.valid)
    claims.given(unit.payload.first & unit.payload.last & (order.payload.begin == 0), unit.valid | order.valid)
    claims.given((order.payload.done.order == ControlType.PLACE) | (order.payload.done.order == ControlType.DROP))
    message = MessageHeader(unit.payload.data[:MessageHeader.size])
    claims.given(unit.payload.data[64:72] < CONFIG.channels)
    flow = claims.constant(len(message.flow), "flow")
    claims.given(flow < CONFIG.flows)

    # The bus and the key table answer what was asked.
    asked, is_answered, commanded, is_done, takes = (
        Signal(name=name) for name in ("asked", "is_answered", "commanded", "is_done", "takes"))
    m.d.comb += [
        asked.eq(block.key_request.valid & block.key_request.ready), is_answered.eq(answer.valid & answer.ready),
        commanded.eq(command.valid & command.ready), is_done.eq(done.valid & done.ready),
        takes.eq(order.valid & order.ready),
    ]
    waiting_keys = claims.inside(asked, is_answered, bits, "waiting_keys")
    waiting_writes = claims.inside(commanded, is_done, bits, "waiting_writes")
    claims.given(waiting_keys != 0, answer.valid)
    claims.given(waiting_writes != 0, done.valid)

    # The PLACE: how many answers and writes are before its own, until it is over.
    picks, seen, waits_key, waits_write, is_over = (
        Signal(name=name) for name in ("picks", "seen", "waits_key", "waits_write", "is_over"))
    keys_before, writes_before = Signal(bits, name="keys_before"), Signal(bits, name="writes_before")
    is_good, may_write = Signal(), Signal(bits, name="may_write")
    m.d.comb += [
        picks.eq(takes & ~seen & (order.payload.done.order == ControlType.PLACE) & (order.payload.done.flow == flow)
                 & claims.any(name="picks_place")),
        is_good.eq(is_answered & (answer.payload.status == Status.OK)),
    ]
    # writes that the key table has allowed and the bus has not answered
    m.d.sync += may_write.eq(may_write + is_good - is_done)
    with m.If(picks):
        m.d.sync += [seen.eq(1), waits_key.eq(asked), keys_before.eq(waiting_keys - is_answered), is_over.eq(~asked)]
    with m.If(waits_key & is_answered):
        m.d.sync += keys_before.eq(keys_before - 1)
        with m.If(keys_before == 0):
            m.d.sync += [waits_key.eq(0), waits_write.eq(is_good), is_over.eq(~is_good),
                         writes_before.eq(may_write - is_done)]
    with m.If(waits_write & is_done):
        m.d.sync += writes_before.eq(writes_before - 1)
        with m.If(writes_before == 0):
            m.d.sync += [waits_write.eq(0), is_over.eq(1)]

    # The COMPLETE, and how many leave before it.
    enters, leaves, follows, offers = (Signal(name=name) for name in ("enters", "leaves", "follows", "offers"))
    m.d.comb += [enters.eq(unit.valid & unit.ready), leaves.eq(block.o.valid & block.o.ready)]
    inside = claims.inside(enters, leaves, bits, "completions")
    before = Signal(bits, name="completions_before")
    with m.If(enters & seen & (message.flow == flow) & ~follows & claims.any(name="picks_complete")):
        m.d.sync += [follows.eq(1), before.eq(inside - leaves)]
    with m.Elif(leaves & (before != 0)):
        m.d.sync += before.eq(before - 1)
    m.d.comb += offers.eq(follows & (before == 0) & block.o.valid)
    claims.holds(is_over, offers)
    wrote = Signal()
    with m.If(waits_write):
        m.d.sync += wrote.eq(1)
    claims.reached(offers & wrote)


PROOFS = [
    Proof("a handle ends once", lambda: ControlRelease(CONFIG), handles_end_once, depth=18, cover=18, long=True),
    Proof("release waits for no emit", lambda: ControlRelease(CONFIG), release_waits_for_no_emit, depth=22, cover=16,
          arrays=True, asserts=False),
    Proof("nothing is written outside of its key", lambda: ControlPlace(CONFIG), nothing_outside_of_its_key, depth=14,
          cover=14, arrays=True),
    Proof("no completion comes before its bytes", _Behind, no_completion_before_its_bytes, depth=14, cover=19),
]


@pytest.mark.parametrize("proof", cases(PROOFS))
def test_control_port(proof: Proof, tmp_path: Path) -> None:
    check(proof, tmp_path)
