"""Nothing after a deletion is answered: behind the DONE of a FLOW_DEL no SEGMENT names the flow's generation, and no
order of it is carried out.

The parts: the release side answers when all of the flow is over, if a frame that was found before is kept soon
(`answers_a_deletion_last`); it is (`test_found_frames_are_kept_in_time`); messages leave in the order in which they
were taken, so what was told before the DONE is before it (`messages_leave_whole`); orders to send find no entry
(`is_stale_without_its_flow`). That the flow table finds what was added and not deleted is in
`tests/formal/test_flow_table.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Cat, Fragment, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import NicConfig
from nic_model.contract.control import CONTROL_VERSION, EMIT, ControlType, DoneStatus
from rtl.control_admission import ControlAdmission
from rtl.control_messages import MessageArbiter, MessageHeader
from rtl.control_release import SETTLE_CYCLES, ControlRelease
from rtl.emit import EmitDecoder
from rtl.emit_headers import HeaderOrder
from rtl.flow_entries import FlowEntries
from rtl.flow_table import FlowOrder, FlowStatus
from rtl.interfaces import contract_view, row
from rtl.parser import FOUND_STAGE, parser_latency
from tests.formal.claims import Claims
from tests.formal.narrowed import Fault, SmallConfig, broken, check_refuted, fault_cases, narrowed
from tests.formal.prover import Proof, cases, check

CONFIG = SmallConfig(name="proof", mac_bytes=64, host_bytes=64, channels=4, flows=2, control_cells=2, control_slots=4,
                     control_handles=2, listeners=2)
"""A message's unit is one beat."""
SETTLES = 2
"""Cycles in which a frame that was found before a DELETE may still be kept."""
COUNT_BITS = 4

# ------------------------------------------------------------------------------------------------------- release side


def release(block: type = ControlRelease) -> Any:
    return narrowed(lambda: block(CONFIG), {"rtl.control_release.SETTLE_CYCLES": SETTLES})


def answers_a_deletion_last(claims: Claims, block: ControlRelease) -> None:
    """A FLOW_DEL's DONE with OK comes when the flow's entry is no longer valid, no order about a handle that was given
    before is under way, and every frame of the flow has been told of. From then on, until the table takes in a flow of
    that number, no PLACE of it is OK, and no entry of it is valid. Shown for one flow that the solver picks. The flow
    table, which answers when it likes, finds what was added and not deleted; frames of a flow are kept `SETTLES` cycles
    behind the DELETE's answer at the latest, and told of in the order in which they were kept."""
    m = claims.m
    claims.stream(block.i, given=True)
    header = MessageHeader(block.i.payload.data[:MessageHeader.size])
    claims.given(~block.held.valid | (block.held.payload.handle < CONFIG.control_cells))
    flow = claims.constant(1, "flow")
    kinds = (ControlType.PLACE, ControlType.FLOW_DEL, ControlType.FLOW_ADD)
    is_first = Signal(init=1)
    enters = block.i.valid & block.i.ready
    with m.If(enters):
        m.d.sync += is_first.eq(~is_first | (header.units == 1))
    of_kind = sum(((header.type == kind) for kind in kinds), 0).any()
    claims.given(of_kind & (header.version == CONTROL_VERSION) & (header.flow < CONFIG.flows) & (header.generation < 2)
                 & (header.units == Mux(header.type == ControlType.FLOW_ADD, 2, 1)), block.i.valid & is_first)

    # The flow table: one order at a time, which it answers later.
    order, done = block.flow_order, block.flow_done
    claims.stream(done, given=True)
    orders, answered = Signal(name="orders"), Signal(name="answered")
    asked, present, generation = Signal(), Signal(name="present"), Signal(8, name="generation")
    status, of_flow, was_delete = Signal(FlowStatus), Signal(), Signal()
    m.d.comb += [orders.eq(order.valid & order.ready), answered.eq(done.valid & done.ready)]
    claims.given(~asked, order.ready)
    claims.given(asked & (~of_flow | (done.payload.status == status)), done.valid)
    is_own = order.payload.flow == flow
    is_it = present & (generation == order.payload.generation)
    adds, full = order.payload.order == FlowOrder.ADD, claims.any(name="is_full")
    with m.If(orders):
        m.d.sync += [asked.eq(1), of_flow.eq(is_own), was_delete.eq(order.payload.order == FlowOrder.DELETE)]
        with m.If(adds):
            m.d.sync += status.eq(Mux(present, FlowStatus.IN_USE, Mux(full, FlowStatus.FULL, FlowStatus.OK)))
            with m.If(is_own & ~present & ~full):
                m.d.sync += [present.eq(1), generation.eq(order.payload.generation)]
        with m.Else():
            m.d.sync += status.eq(Mux(is_it, FlowStatus.OK, FlowStatus.STALE))
            with m.If(is_own & is_it & (order.payload.order == FlowOrder.DELETE)):
                m.d.sync += present.eq(0)
    with m.Elif(answered):
        m.d.sync += asked.eq(0)

    # Frames: those that are kept and have not been told of, and where the last of the flow's stands among them.
    keeps, of_it = claims.any(name="keeps"), claims.any(name="is_of_the_flow")
    since = Signal(range(SETTLES + 2), init=SETTLES + 1, name="cycles_since_delete")
    deleted = answered & of_flow & was_delete & (done.payload.status == FlowStatus.OK)
    with m.If(deleted):
        m.d.sync += since.eq(1)
    with m.Elif(since <= SETTLES):
        m.d.sync += since.eq(since + 1)
    waiting = claims.inside(keeps, block.told, len(block.to_tell), "frames_to_tell")
    claims.given(block.to_tell == waiting)
    claims.given(waiting != 0, block.told)
    claims.given(waiting < CONFIG.control_slots, keeps)
    deleting = asked & of_flow & was_delete & (status == FlowStatus.OK)
    claims.given(present | deleting | (since <= SETTLES), keeps & of_it)
    untold = Signal(len(waiting), name="untold_up_to_the_last_of_the_flow")
    with m.If(keeps & of_it):
        m.d.sync += untold.eq(waiting + 1 - block.told)
    with m.Elif(block.told & (untold != 0)):
        m.d.sync += untold.eq(untold - 1)

    # Orders about handles.
    place = block.place
    takes_place, finishes = Signal(), claims.any(name="finishes")
    m.d.comb += takes_place.eq(place.valid & place.ready)
    under_way = claims.inside(takes_place, finishes, COUNT_BITS, "places_under_way")
    claims.given(under_way != 0, finishes)
    claims.given(block.place_idle == (under_way == 0))
    claims.holds((under_way == 0) & ~place.valid, order.valid & (order.payload.order == FlowOrder.DELETE))

    # What the send side knows of the flow.
    writes_entry, entry = block.entry.valid & block.entry.ready, block.entry.payload
    entry_valid = Signal(name="entry_valid")
    with m.If(writes_entry & (entry.flow == flow)):
        m.d.sync += entry_valid.eq(entry.entry.valid)
    claims.holds(present, block.entry.valid & (entry.flow == flow) & entry.entry.valid)

    # The answer.
    told = block.done.payload
    answers, gone = Signal(name="answers_deletion"), Signal(name="gone")
    m.d.comb += answers.eq(block.done.valid & (told.order == ControlType.FLOW_DEL) & (told.flow == flow)
                           & (told.status == DoneStatus.OK))
    adds_own = orders & is_own & adds & ~present & ~full
    with m.If(adds_own):
        m.d.sync += gone.eq(0)
    with m.Elif(answers):
        m.d.sync += gone.eq(1)
    claims.holds(~present & ~entry_valid & (untold == 0), answers & ~gone)
    is_place = place.valid & (place.payload.done.flow == flow) & (place.payload.done.order == ControlType.PLACE)
    claims.holds(place.payload.done.status != DoneStatus.OK, (answers | gone) & is_place)
    claims.holds(~entry_valid & (untold == 0), gone)
    claims.stream(block.done)
    had_frame = Signal()
    with m.If(keeps & of_it & (since <= SETTLES)):
        m.d.sync += had_frame.eq(1)
    claims.reached(answers & had_frame)
    claims.reached(gone & is_place)


# ----------------------------------------------------------------------------------------------------------- send side


class Orders(wiring.Component):
    """Orders to send with the entries of their flows: `EmitDecoder` and `FlowEntries` of two flows."""

    def __init__(self, decoder: type = EmitDecoder) -> None:
        self.decoder, self.entries = decoder(CONFIG, queues=(2, 3)), FlowEntries(flows=CONFIG.flows)
        super().__init__({
            **{name: self.decoder.signature.members[name] for name in DECODERS},
            **{name: self.entries.signature.members[name] for name in ENTRIES}})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.decoder, m.submodules.entries = self.decoder, self.entries
        connect(m, self.decoder.flow, self.entries.flow)
        connect(m, self.entries.entry, self.decoder.entry)
        for part, names in ((self.decoder, DECODERS), (self.entries, ENTRIES)):
            for name in names:
                inner, outer = getattr(part, name), getattr(self, name)
                flow = part.signature.members[name]
                if flow.is_port:
                    m.d.comb += inner.eq(outer) if flow.flow == In else outer.eq(inner)
                else:
                    connect(m, *((flipped(outer), inner) if flow.flow == In else (inner, flipped(outer))))
        return m


DECODERS = ("i", "room", "begun", "piece", "row", "parsed", "record")
ENTRIES = ("write", "keeps_key")


class OneRow(wiring.Component):
    """In the place of `HeaderRows`: each header is one row, and what stands in it is not looked at."""

    def __init__(self, config: NicConfig) -> None:
        super().__init__({"source_mac": In(48), "i": In(stream.Signature(HeaderOrder)),
                          "o": Out(stream.Signature(row(config))), "active": Out(1)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.comb += [self.i.ready.eq(~self.o.valid), self.o.payload.last.eq(1)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += self.o.valid.eq(1)
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        return m


def orders(decoder: type = EmitDecoder, entries: type = FlowEntries) -> Any:
    """With fewer words of addresses in the sum that is made before an entry is stored."""
    short = type("ShortEntries", (entries,), {"WORDS": 2})
    return narrowed(lambda: Orders(decoder), {f"{__name__}.FlowEntries": short, "rtl.emit.HeaderRows": OneRow})


def is_stale_without_its_flow(claims: Claims, block: Orders) -> None:
    """An order that comes, and whose flow has no valid entry of its generation until it begins, leaves no row of a
    header and no piece, and is given on as one that is refused as STALE; any other is not. Shown for orders of a flow
    that the solver picks, among others of another. What leaves is taken at once."""
    m = claims.m
    claims.stream(block.i, given=True)
    claims.stream(block.write, given=True)
    claims.given(block.keeps_key == claims.past(block.keeps_key), claims.past(block.write.valid & ~block.write.ready))
    for sink in (block.parsed, block.record, block.row, block.piece):
        claims.given(sink.ready)
    flow = claims.constant(1, "flow")
    unit = block.i.payload
    header = MessageHeader(unit.data[:MessageHeader.size])
    claims.given((header.flow < CONFIG.flows) & (header.generation < 2), unit.first)
    claims.given(((header.type == ControlType.EMIT) | (header.type == ControlType.RAW)) & unit.first & unit.last
                 & (header.units == 1))
    emit = contract_view(EMIT)(unit.data)
    claims.given((unit.data[8 * 32:] == 0) & (emit.sequence == 0) & (emit.acknowledgement == 0) & (emit.ts_echo == 0))

    written = block.write.payload
    claims.given((written.flow < CONFIG.flows) & (written.entry.generation < 2)
                 & (written.entry.local_address == 0) & (written.entry.remote_address == 0)
                 & (written.entry.next_hop == 0) & (written.entry.timestamp_offset == 0))
    valid, generation = Signal(name="entry_valid"), Signal(8, name="entry_generation")
    with m.If(block.write.valid & block.write.ready & (written.flow == flow)):
        m.d.sync += [valid.eq(written.entry.valid), generation.eq(written.entry.generation)]

    # Whether the order at `i` has met a valid entry, and whether it always has, since it came.
    own, matches, head = Signal(), Signal(name="matches"), Signal(name="head_before")
    ever, always, ever_now, always_now = (Signal(name=name) for name in ("ever", "always", "ever_now", "always_now"))
    m.d.comb += [
        own.eq(header.flow == flow), matches.eq(valid & (generation == header.generation)),
        ever_now.eq(~own | matches | (head & ever)), always_now.eq(own & matches & (~head | always)),
    ]
    m.d.sync += [head.eq(block.i.valid & ~block.i.ready), ever.eq(ever_now), always.eq(always_now)]

    # Orders that have begun, and are given on in turn: bit n is of the n-th.
    begun = claims.inside(block.begun, 0, COUNT_BITS, "begun")
    stale, sound = Signal(1 << COUNT_BITS, name="stale_orders"), Signal(1 << COUNT_BITS, name="sound_orders")
    may_send = claims.inside(block.begun & ever, 0, COUNT_BITS, "orders_that_may_send")
    with m.If(block.begun):
        m.d.sync += [stale.bit_select(begun, 1).eq(~ever), sound.bit_select(begun, 1).eq(always)]
    given = claims.inside(block.parsed.valid, 0, COUNT_BITS, "given_on")
    parsed = block.parsed.payload
    is_stale = Signal(name="is_stale")
    m.d.comb += is_stale.eq(stale.bit_select(given, 1))
    claims.holds(given < begun, block.parsed.valid)
    claims.holds(parsed.forbidden & ~parsed.has_pieces & ~parsed.has_inline, block.parsed.valid & is_stale)
    claims.holds(~parsed.forbidden, block.parsed.valid & sound.bit_select(given, 1))
    for out in (block.row, block.piece):
        over = claims.inside(out.valid & out.payload.last, 0, COUNT_BITS, "over")
        claims.holds(over < may_send, out.valid)

    was_valid = Signal()
    with m.If(valid):
        m.d.sync += was_valid.eq(1)
    claims.reached(block.parsed.valid & is_stale & was_valid & ~valid & (given != 0))
    claims.reached(block.piece.valid & (may_send == 2))


# ------------------------------------------------------------------------------------------------------- in one stream


def arbiter(block: type = MessageArbiter) -> Any:
    return block(NicConfig(name="proof", mac_bytes=8, host_bytes=16), count=2)


def messages_leave_whole(claims: Claims, block: MessageArbiter) -> None:
    """Each beat leaves behind those that were taken before, and between two beats of a message none of another source
    is taken."""
    m = claims.m
    for i in block.i:
        claims.stream(i, given=True)
    claims.stream(block.o)
    takes = [i.valid & i.ready for i in block.i]
    holds, beat = Signal(), Signal.like(block.o.payload)
    claims.holds(sum(takes, 0) <= 1)
    claims.holds(holds == block.o.valid)
    claims.holds(beat.as_value() == block.o.payload.as_value(), block.o.valid)
    claims.holds(~holds | block.o.ready, sum(takes, 0).any())
    with m.If(block.o.ready):
        m.d.sync += holds.eq(0)
    inside = [Signal(name=f"inside_message_{n}") for n in range(len(takes))]
    for n, i in enumerate(block.i):
        with m.If(takes[n]):
            m.d.sync += [holds.eq(1), beat.eq(i.payload), inside[n].eq(~i.payload.last)]
        claims.holds(~takes[n], Cat(other for k, other in enumerate(inside) if k != n).any())
    claims.reached(takes[1] & inside[1] & block.i[0].valid)


PROOFS = [
    Proof("a deletion is answered when all of the flow is over", release, answers_a_deletion_last, depth=22, cover=24,
          long=True),
    Proof("an order without its flow's entry is stale", orders, is_stale_without_its_flow, depth=14, cover=13),
    Proof("messages leave whole, and as they were taken", arbiter, messages_leave_whole, depth=8,
          cover=4),
]


@pytest.mark.parametrize("proof", cases(PROOFS))
def test_deletion(proof: Proof, tmp_path: Path) -> None:
    check(proof, tmp_path)


@pytest.mark.parametrize("mac_bytes", [8, 16, 32, 64])
def test_found_frames_are_kept_in_time(mac_bytes: int) -> None:
    """A flow is looked up beside its frame's last row, when headers have been judged; the frame is kept or dropped when
    that row has left the parser and has waited in the admission. What a DELETE does not stop was looked up before."""
    config = NicConfig(name="test", mac_bytes=mac_bytes, flows=1024)
    admission = ControlAdmission(config)
    Fragment.get(admission, None)
    assert parser_latency(config) - FOUND_STAGE + admission.delay < SETTLE_CYCLES


ANSWERED, STALE, WHOLE = PROOFS
FAULTS = [
    Fault("messages that mix", WHOLE, lambda: arbiter(broken(
        MessageArbiter, "Mux(i.payload.last, 0, 1 << n)", "0"))),
    Fault("no wait for frames that settle", ANSWERED, lambda: release(broken(
        ControlRelease, "waits.eq(SETTLE_CYCLES)", "waits.eq(0)"))),
    Fault("no wait for messages", ANSWERED, lambda: release(broken(
        ControlRelease, "with m.If(left == 0):", "with m.If(1):"))),
    Fault("no wait for PLACEs", ANSWERED, lambda: release(broken(
        ControlRelease, "self.place_idle & ~judged_valid)", "1)"))),
    Fault("an entry that is not looked at", STALE, lambda: orders(decoder=broken(
        EmitDecoder, "stale.eq((~found.entry.valid | (", "stale.eq((("))),
    Fault("a stale order's pieces", STALE, lambda: orders(decoder=broken(
        EmitDecoder, "refused.eq(stale | unsound", "refused.eq(unsound"))),
    Fault("a lookup while an entry is stored", STALE, lambda: orders(entries=broken(
        FlowEntries, "free & ~table.write_en & ~reads_old", "free & ~reads_old"))),
]


@pytest.mark.parametrize("fault", fault_cases(FAULTS))
def test_a_broken_block_is_refuted(fault: Fault, tmp_path: Path) -> None:
    check_refuted(fault, tmp_path)
