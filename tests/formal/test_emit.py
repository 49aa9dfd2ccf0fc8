"""The control port's send side: orders leave in turn, behind their fences, and are answered once, when all is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Cat, Mux, Signal, Value
from amaranth.lib import data

from nic_model.contract import Status
from nic_model.contract.control import BEAT_BYTES, DONE, EMIT, ControlType, DoneStatus, OrderFlag
from rtl.emit import NO_FRAME, REFUSED_STALE
from rtl.emit_dones import EmitDones
from rtl.emit_gate import EmitGate
from rtl.interfaces import contract_view
from rtl.mac_tx import MacTx
from rtl.place_counts import FlowCounter, PlaceCounts
from tests.formal.claims import Claims
from tests.formal.narrowed import Fault, SmallConfig, broken, check_refuted, fault_cases, narrowed
from tests.formal.prover import Proof, cases, check

CONFIG = SmallConfig(name="proof", mac_bytes=64, host_bytes=64, channels=4, flows=2, emit_credits=4)
"""A message's unit is one beat."""
QUEUES = (2, 3)
COUNT_BITS = 4
"""Of all that is counted."""

# ------------------------------------------------------------------------------------------------------------- answers

ORDERS = 2
"""Places of DONEs."""
STATUS_OF = {
    Status.OK: DoneStatus.OK, NO_FRAME: DoneStatus.OK, Status.KEY_INVALID: DoneStatus.KEY,
    Status.KEY_BOUNDS: DoneStatus.KEY, Status.BUS_ERROR: DoneStatus.BUS, REFUSED_STALE: DoneStatus.STALE,
    Status.BAD_DESCRIPTOR: DoneStatus.BAD,
}
"""What a send may have come to, and what its DONE says."""


def dones(block: type = EmitDones) -> Any:
    """With few places."""
    return narrowed(lambda: block(CONFIG, queues=QUEUES), {"rtl.emit_dones.ORDERS_UNDER_WAY": ORDERS})


def answered_once(claims: Claims, block: EmitDones) -> None:
    """A DONE comes behind its order's report only, one for each order that asked for it or failed and none for others,
    in the order of the reports, and within so many cycles. Shown for one order that the solver picks: that it says what
    the order's record and its report said. Its environment: an order begins as the decoder begins one, each queue
    reports its orders in turn."""
    m = claims.m
    claims.stream(block.o)
    room = claims.past(block.room, "room_before")
    recently = [claims.past(block.begun, "begun_1")]
    recently.append(claims.past(recently[0], "begun_2"))
    claims.given(room & ~recently[0] & ~recently[1], block.begun)
    record, report = block.record.payload, block.done.payload
    records = block.record.valid & block.record.ready
    claims.given(claims.inside(block.begun, records, COUNT_BITS, "unrecorded") != 0, block.record.valid)
    reports = block.done.valid & block.done.ready
    claims.holds(block.done.ready)
    claims.given((report.channel == QUEUES[0]) | (report.channel == QUEUES[1]))
    claims.given(Cat(report.status == status for status in STATUS_OF).any())
    # A few bits tell orders apart.
    claims.given((report.tag < 4) & (report.ring_index < 2) & (report.length < 4) & (record.generation < 4))
    for n, queue in enumerate(QUEUES):
        waiting = claims.inside(records & (record.bulk == n), reports & (report.channel == queue), COUNT_BITS)
        claims.given(waiting != 0, block.done.valid & (report.channel == queue))
        # No record, and no report, finds its memory full.
        fifo = claims.part(f"records_{n}")
        claims.holds(fifo.i.ready, fifo.i.valid)
        claims.holds(fifo.o.valid, fifo.o.ready)
    notes = claims.part("notes")
    claims.holds(notes.i.ready, notes.i.valid)

    # What is due, and what is told.
    good = (report.status == Status.OK) | (report.status == NO_FRAME)
    due, told = Signal(), Signal()
    m.d.comb += [due.eq(reports & (report.complete | ~good)), told.eq(block.o.valid & block.o.ready)]
    owed = claims.inside(due, told, COUNT_BITS, "owed")
    claims.holds(owed != 0, block.o.valid)
    claims.answered_within((owed != 0) & block.o.ready, block.o.valid, 4)

    # The order that is watched: how many records of its queue, itself included, are to be reported, then told.
    watch, seen, kept = claims.any(name="watch"), Signal(), Signal.like(record, name="kept_record")
    queued = [Signal(COUNT_BITS, name=f"queued_{n}") for n in range(2)]
    for n, queue in enumerate(QUEUES):
        m.d.sync += queued[n].eq(queued[n] + (records & (record.bulk == n)) - (reports & (report.channel == queue)))
    mine, ahead, tells, ahead_told = Signal(), Signal(COUNT_BITS), Signal(), Signal(COUNT_BITS)
    of_queue = Mux(kept.bulk, report.channel == QUEUES[1], report.channel == QUEUES[0])
    with m.If(records & watch & ~seen):
        same = Mux(record.bulk, reports & (report.channel == QUEUES[1]), reports & (report.channel == QUEUES[0]))
        m.d.sync += [seen.eq(1), Value.cast(kept).eq(record), ahead.eq(Mux(record.bulk, *reversed(queued)) + 1 - same)]
    with m.Elif((ahead != 0) & reports & of_queue):
        m.d.sync += ahead.eq(ahead - 1)
    reported = Signal.like(report, name="kept_report")
    m.d.comb += [mine.eq((ahead == 1) & reports & of_queue), tells.eq(block.o.valid & (ahead_told == 1))]
    with m.If(mine):
        m.d.sync += [Value.cast(reported).eq(report), ahead_told.eq(Mux(due, owed + 1 - told, 0))]
    with m.Elif((ahead_told != 0) & told):
        m.d.sync += ahead_told.eq(ahead_told - 1)
    said = contract_view(DONE)(block.o.payload.data)
    claims.holds(Cat(
        said.type == ControlType.DONE, said.units == 1, block.o.payload.last, said.flow == reported.ring_index,
        said.tag == reported.tag, said.length == reported.length, said.generation == kept.generation,
        said.order == Mux(kept.raw, ControlType.RAW, ControlType.EMIT),
    ).all(), tells)
    for status, answer in STATUS_OF.items():
        claims.holds(said.status == answer, tells & (reported.status == status))
    claims.reached(tells & (reported.status == Status.OK) & kept.bulk & (owed > 1))
    claims.reached(tells & (reported.status == REFUSED_STALE) & ~reported.complete)


# ------------------------------------------------------------------------------------------------------------- reports

MAC_CONFIG = SmallConfig(name="proof", mac_bytes=8, host_bytes=16, channels=4)
ENDS = 2
"""Sends that are over and not reported."""


def mac_tx(block: type = MacTx) -> Any:
    return narrowed(lambda: block(MAC_CONFIG), {"rtl.mac_tx.ENDS": ENDS})


def reported_last(claims: Claims, block: MacTx) -> None:
    """A send is reported once, with its record, in turn, and when the last beat of its last frame has been taken by the
    MAC; or, if it ends without a frame, when all frames before are gone. So its payload has been read: a frame's rows
    come here. Its environment: rows of whole frames, a record before the row that ends its send, and no more sends
    than it has places for."""
    m = claims.m
    claims.stream(block.row, given=True)
    claims.stream(block.mac)
    claims.stream(block.done)
    row, done = block.row.payload, block.done.payload
    takes, beats = Signal(), Signal()
    m.d.comb += [takes.eq(block.row.valid & block.row.ready), beats.eq(block.mac.valid & block.mac.ready)]
    inside = Signal(name="inside_frame")
    with m.If(takes & ~row.mark):
        m.d.sync += inside.eq(~row.last)
    claims.given(~inside | ~row.mark)
    claims.given(Cat(row.keep == (1 << count) - 1 for count in range(1, MAC_CONFIG.host_bytes + 1)).any())
    claims.given(row.last | row.keep.all())

    # Frames that were taken and have not gone, and whether the latest ends a send.
    frame_taken, frame_gone, ends_send = Signal(), Signal(), Signal()
    m.d.comb += [frame_taken.eq(takes & row.last & ~row.mark), frame_gone.eq(beats & block.mac.payload.last)]
    with m.If(frame_taken):
        m.d.sync += ends_send.eq(row.end)
    frames = claims.inside(frame_taken, frame_gone, COUNT_BITS, "frames")
    marks = takes & row.mark
    claims.holds(frames == 0, marks)
    reports = block.done.valid & block.done.ready
    over = claims.inside((frame_gone & ends_send) | marks, reports, COUNT_BITS, "over")
    claims.holds(over != 0, block.done.valid)
    claims.answered_within((over != 0) & block.done.ready, block.done.valid, 4)

    # Records.
    recorded = block.record.valid
    ahead_of_rows = claims.inside(recorded, (frame_taken & row.end) | marks, COUNT_BITS, "records_before_rows")
    claims.given(ahead_of_rows != 0, block.row.valid & ((row.last & row.end) | row.mark))
    waiting = claims.inside(recorded, reports, COUNT_BITS, "records")
    claims.given(waiting < ENDS, recorded)
    watch, seen, kept = claims.any(name="watch"), Signal(), Signal.like(block.record.payload, name="kept_record")
    ahead = Signal(COUNT_BITS)
    with m.If(recorded & watch & ~seen):
        m.d.sync += [seen.eq(1), kept.eq(block.record.payload), ahead.eq(waiting + 1 - reports)]
    with m.Elif(reports & (ahead != 0)):
        m.d.sync += ahead.eq(ahead - 1)
    names = ("channel", "tag", "status", "ring_index", "complete", "length")
    claims.holds(Cat(done[name] == kept[name] for name in names).all(), block.done.valid & (ahead == 1))
    claims.reached(reports & (ahead == 1) & (kept.tag == 7) & claims.past(reports, "reported"))


# -------------------------------------------------------------------------------------------------------- place counts

PLACE_BITS = 3


def counts(counter: type = FlowCounter, flows: int = 2) -> Any:
    """With counts of few bits, and room for few events."""
    return narrowed(lambda: PlaceCounts(flows=flows), {
        "rtl.place_counts.PLACE_BITS": PLACE_BITS, "rtl.place_counts._WAITING": 2,
        "rtl.place_counts.FlowCounter": counter})


def counts_are_right(claims: Claims, block: PlaceCounts) -> None:
    """What is found for a flow is how many PLACEs of it had been given and done when it was asked for, modulo the
    counts' width: so both are equal only if no PLACE is under way, fewer of them than that being given. The memory is
    cleared first, whatever comes meanwhile. Shown for one flow that the solver picks."""
    m = claims.m
    flow = claims.constant(1, "flow")
    for i in (block.given, block.done, block.look):
        claims.stream(i, given=True)
        claims.given(i.payload < block.flows)
    asked, under_way, found = Signal(), Signal(PLACE_BITS + 1), Signal()
    at = {name: Signal(PLACE_BITS, name=f"{name}_when_asked") for name in ("given", "done")}
    events = {}
    for name, i in (("given", block.given), ("done", block.done)):
        counted = Signal(name=f"counts_{name}")
        m.d.comb += counted.eq(i.valid & i.ready & (i.payload == flow))
        events[name] = claims.inside(counted, 0, PLACE_BITS, f"all_{name}"), counted
    # A PLACE is done after it was given, and fewer than the counts can tell apart are under way.
    m.d.sync += under_way.eq(under_way + events["given"][1] - events["done"][1])
    claims.given(under_way != 0, block.done.valid & (block.done.payload == flow))
    claims.given(under_way < (1 << PLACE_BITS) - 1, block.given.valid & (block.given.payload == flow))
    looks = block.look.valid & block.look.ready
    under_way_then = Signal.like(under_way)
    claims.given(~asked | found, looks)  # one question at a time
    m.d.comb += found.eq(block.found.valid & block.found.ready)
    with m.If(looks):
        m.d.sync += [asked.eq(block.look.payload == flow), under_way_then.eq(under_way),
                     *(at[name].eq(events[name][0]) for name in at)]
    with m.Elif(found):
        m.d.sync += asked.eq(0)
    for name, count in at.items():
        claims.holds(block.found.payload[name] == count, block.found.valid & asked)
    claims.holds((block.found.payload.given == block.found.payload.done) == (under_way_then == 0),
                 block.found.valid & asked)
    claims.stream(block.found)
    claims.reached(found & asked & (at["given"] == 2) & (at["done"] == 1))


# ---------------------------------------------------------------------------------------------------------------- gate

QUEUE_ORDERS = 2
GATE_CONFIG = SmallConfig(name="proof", mac_bytes=8, host_bytes=16, channels=4, flows=2, emit_credits=4)


OrderStart = data.FlexibleLayout(8 * BEAT_BYTES, {
    name: data.Field(field.width, field.offset) for name, field in EMIT.fields.items()
    if field.offset + field.width <= 8 * BEAT_BYTES})


def gate(block: type = EmitGate) -> Any:
    """With messages of one beat, and little room behind it."""
    return narrowed(lambda: block(GATE_CONFIG, queues=QUEUES), {
        "rtl.emit_gate.beats_of_unit": lambda config: 1, "rtl.emit_gate.STORED_UNITS": 2,
        "rtl.emit_gate.QUEUE_ORDERS": QUEUE_ORDERS, "rtl.emit_gate.PLACE_BITS": PLACE_BITS,
        "rtl.place_counts.PLACE_BITS": PLACE_BITS, "rtl.place_counts._WAITING": 2})


def in_turn(claims: Claims, block: EmitGate) -> None:
    """Orders of one flow, which the solver picks, leave as they came: each once, with its number behind that of the one
    before. One leaves for a queue when the other has no undecided order of the flow, and no queue has more undecided
    orders than it has room for. An order with FENCE, which the solver picks, leaves when as many PLACEs of its flow are
    done as had been given before it. Each order that leaves gives one credit, and who has a credit is let in. Messages
    have one beat; there are two flows, and orders of none."""
    m, start = claims.m, OrderStart(block.i.payload.data)
    claims.stream(block.i, given=True)
    claims.stream(block.o)
    flow = claims.constant(1, "flow")
    enters, leaves = Signal(name="enters"), Signal(name="leaves")
    m.d.comb += [enters.eq(block.i.valid & block.i.ready), leaves.eq(block.o.valid & block.o.ready)]
    own, out = Signal(name="own_enters"), Signal(name="own_leaves")
    number = claims.inside(own, 0, COUNT_BITS, "number")
    shown = Signal(OrderStart)
    m.d.comb += [
        own.eq(enters & (start.flow == flow)),
        *(field.eq(value) for field, value in (
            (shown.type, ControlType.EMIT), (shown.units, 1),
            (shown.flow, start.flow), (shown.tag, number),
            (shown.flags, start.flags), (shown.length, start.length))),
    ]
    claims.given((block.i.payload.data == shown.as_value()) & block.i.payload.last & (start.flow < 3)
                 & (start.length < 2) & ((start.flags & ~int(OrderFlag.FENCE | OrderFlag.LAST)) == 0), block.i.valid)

    # Credits.
    credits = claims.inside(enters, block.left, COUNT_BITS, "in_places")
    claims.given(credits < GATE_CONFIG.emit_credits, block.i.valid)
    claims.holds(block.i.ready, block.i.valid & ~claims.past(enters, "entered"))
    returned = claims.inside(block.left, leaves, COUNT_BITS, "returned_not_out")
    claims.holds(returned + block.left >= leaves)
    claims.holds(returned <= 3)

    # PLACEs.
    given, done = [], []
    for events, stream_ in ((given, block.place_given), (done, block.place_done)):
        claims.stream(stream_, given=True)
        claims.given(stream_.payload < GATE_CONFIG.flows)
        for n in range(GATE_CONFIG.flows):
            happens = Signal(name="place_event")
            m.d.comb += happens.eq(stream_.valid & stream_.ready & (stream_.payload == n))
            events.append((happens, claims.inside(happens, 0, COUNT_BITS, f"places_{n}")))
    waits = claims.past(block.place_given.valid & ~block.place_given.ready, "place_waits")
    for n in range(GATE_CONFIG.flows):
        claims.given(done[n][1] != given[n][1], block.place_done.valid & (block.place_done.payload == n))
        claims.given(given[n][1] - done[n][1] < (1 << PLACE_BITS - 1) - 1,
                     block.place_given.valid & (block.place_given.payload == n))

    # Of each queue, the flows of the orders that have left and are not decided, eldest first.
    said = OrderStart(block.o.payload.data)
    bulk = said.length.any() | (said.flags & int(OrderFlag.LAST)).any()
    freed = block.freed.payload.channel
    undecided = []
    for n, queue in enumerate(QUEUES):
        size, flows = Signal(COUNT_BITS, name=f"undecided_{n}"), Signal(4 * QUEUE_ORDERS, name=f"flows_of_{n}")
        joins, goes = Signal(name=f"joins_{n}"), Signal(name=f"goes_{n}")
        m.d.comb += [joins.eq(leaves & (bulk == n)), goes.eq(block.freed.valid & (freed == queue))]
        m.d.sync += size.eq(size + joins - goes)
        claims.given(size != 0, goes)
        claims.holds(size - goes + joins <= QUEUE_ORDERS)
        moved, size_then = Signal(4 * QUEUE_ORDERS), Signal(COUNT_BITS)
        m.d.comb += [moved.eq(Mux(goes, flows >> 4, flows)), size_then.eq(size - goes)]
        m.d.sync += flows.eq(moved)
        for place in range(QUEUE_ORDERS):
            with m.If(joins & (size_then == place)):
                m.d.sync += flows.word_select(place, 4).eq(said.flow[:4])
        undecided.append(Cat((size > place) & (flows.word_select(place, 4) == flow)
                             for place in range(QUEUE_ORDERS)).any())

    # The flow's orders.
    m.d.comb += out.eq(leaves & (said.flow == flow))
    left = claims.inside(out, 0, COUNT_BITS, "own_left")
    mine = block.o.valid & (said.flow == flow)
    claims.holds(said.tag == left, mine)
    claims.holds(left < number, mine)
    claims.holds(~Mux(bulk, undecided[0], undecided[1]), mine)

    # The fence of one of them.
    watch, watched, watched_number = claims.any(name="watch"), Signal(), Signal(COUNT_BITS)
    before, done_now = Signal(COUNT_BITS), Mux(flow, done[1][1], done[0][1])
    with m.If(own & watch & ~watched & (start.flags & int(OrderFlag.FENCE)).any()):
        m.d.sync += [
            watched.eq(1), watched_number.eq(number),
            before.eq(Mux(flow, given[1][1], given[0][1]) + (waits & (block.place_given.payload == flow))),
        ]
    is_it = Signal(name="fenced_leaves")
    m.d.comb += is_it.eq(mine & watched & (left == watched_number))
    claims.holds((done_now - before)[:COUNT_BITS] < 1 << COUNT_BITS - 1, is_it)
    claims.reached(is_it & (before != 0))
    claims.reached(out & (left == 1))


PROOFS = [
    Proof("an order to send is answered once, when it is over", dones, answered_once, depth=12, cover=12),
    Proof("PLACEs are counted right", counts, counts_are_right, depth=16, cover=16),
    Proof("orders to send leave in turn, behind their fences", gate, in_turn, depth=18, cover=28, long=True),
    Proof("a send is reported when its last frame has gone", mac_tx, reported_last, depth=10, cover=8),
]


@pytest.mark.parametrize("proof", cases(PROOFS))
def test_emit(proof: Proof, tmp_path: Path) -> None:
    check(proof, tmp_path)


# ------------------------------------------------------------------------------------------------- they can fail

ANSWERED, COUNTED, IN_TURN, REPORTED = PROOFS
FAULTS = [
    Fault("the record of the other queue", ANSWERED, lambda: dones(broken(
        EmitDones, "Mux(bulk, records[1].o.payload", "Mux(~bulk, records[1].o.payload"))),
    Fault("a DONE of what nobody asked for", ANSWERED, lambda: dones(broken(
        EmitDones, "report.complete | (status", "report.complete | 1 | (status"))),
    Fault("a place too many", ANSWERED, lambda: dones(broken(
        EmitDones, "(under_way < ORDERS_UNDER_WAY)", "(under_way <= ORDERS_UNDER_WAY)"))),
    Fault("a flow that is looked for is counted", COUNTED, lambda: counts(broken(
        FlowCounter, "flow.eq(table.read_addr)", "flow.eq(self.look.payload)"))),
    Fault("counts that are not cleared", COUNTED, lambda: counts(broken(
        FlowCounter, "Mux(clears, 0, value + 1)", "value + 1"))),
    Fault("a report of a frame that has not gone", REPORTED, lambda: mac_tx(broken(
        MacTx, "ended.eq((frame_ends & present.end) | marks)", "ended.eq((row_enters & row.last & row.end) | marks)"))),
    Fault("a mark before its frame", REPORTED, lambda: mac_tx(broken(
        MacTx, "Mux(row.mark, ~self.mac.valid, free)", "free"))),
    Fault("a fence that is open", IN_TURN, lambda: gate(broken(EmitGate, "count.done == count.given", "1"))),
    Fault("two orders in one place", IN_TURN, lambda: gate(broken(
        EmitGate, "unused.eq(unused + 1)", "unused.eq(unused)"))),
    Fault("a flow in both queues", IN_TURN, lambda: gate(broken(
        EmitGate, "(entry.count == 0) | (entry.bulk == arrival.bulk)", "1"))),
]


@pytest.mark.parametrize("fault", fault_cases(FAULTS))
def test_a_broken_block_is_refuted(fault: Fault, tmp_path: Path) -> None:
    check_refuted(fault, tmp_path)
