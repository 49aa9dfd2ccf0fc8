"""The flow table: what was added is found, what was deleted is not, and nothing is taken for something else.

An ADD and a lookup behind it are too long for a solver that begins with an empty table. So these begin with any table
that is in order (`_in_order`), and nothing under way: from there a lookup finds what is in it, and each order leaves a
table that is in order, which differs from the one before by what the order says. Both together hold for any number of
orders, as long as what is under way is. The table has four flows and two buckets, fewer bits everywhere, and a hash in
which keys collide often.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Array, Assert, Cat, Module, Mux, Shape, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from rtl.flow_table import SLOTS_PER_BUCKET, TABLES, FlowOrder, FlowStatus, FlowTable
from tests.formal.claims import Claims
from tests.formal.narrowed import Fault, broken, check_refuted, fault_cases, narrowed
from tests.formal.prover import Proof, cases, check

FLOWS, BUCKETS = 4, 2
WORD_BITS, FINGERPRINT_SHIFT, FINGERPRINT_BITS = 5, 4, 1
"""The hash has a bucket of each table in bits 0 and 2, and the fingerprint in bit 4."""


class FreeRam(wiring.Component):
    """In the place of a `Ram`: `initial`, all its words, may be anything in the first cycle; `words` are those of the
    present one."""

    def __init__(self, *, shape: Any, depth: int) -> None:
        width = Shape.cast(shape).width
        self.shape, self.width, self.depth = shape, width, depth
        super().__init__({
            "write_en": In(1), "write_addr": In(ceil_log2(depth)), "write_data": In(width),
            "read_en": In(1), "read_addr": In(ceil_log2(depth)), "read_data": Out(width)})
        self.initial = Signal(width * depth, name="initial")
        self.words = [Signal(width, name=f"word_{n}") for n in range(depth)]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        started = Signal()
        m.d.sync += started.eq(1)
        for n, word in enumerate(self.words):
            kept = Signal(self.width, name=f"kept_{n}")
            m.d.comb += word.eq(Mux(started, kept, self.initial.word_select(n, self.width)))
            m.d.sync += kept.eq(Mux(self.write_en & (self.write_addr == n), self.write_data, word))
        with m.If(self.read_en):
            m.d.sync += self.read_data.eq(Array(self.words)[self.read_addr])
        m.d.sync += Assert(~(self.read_en & self.write_en & (self.read_addr == self.write_addr)))
        return m


def _hash(crc: Any, words: list[Any]) -> Value:
    """In the place of a step of the CRC: many keys have one hash."""
    return Cat(crc ^ words[0] ^ Cat(words[1][1:], words[1][0]))[:WORD_BITS]


def table(block: type = FlowTable, copies: int = 2) -> Any:
    return narrowed(lambda: block(flows=FLOWS, buckets=BUCKETS, words=2, ipv4_words=1, copies=copies), {
        "rtl.flow_table.Ram": FreeRam, "rtl.flow_table.WORD_BITS": WORD_BITS, "rtl.flow_table.crc_step": _hash,
        "rtl.flow_table.FINGERPRINT_SHIFT": FINGERPRINT_SHIFT, "rtl.flow_table.FINGERPRINT_BITS": FINGERPRINT_BITS,
        "rtl.flow_table.GENERATION_BITS": 1, "rtl.flow_table.CHANNEL_BITS": 1, "rtl.flow_table.QUEUE_PLACES": 8})


class Content:
    """What stands in the table's memories."""

    def __init__(self, claims: Claims, copies: int) -> None:
        def words(name: str) -> list[Any]:
            ram = claims.part(name)
            claims.inputs.append(ram.initial)
            return [data.View(ram.shape, word) for word in ram.words]

        self.slots = {(number, bucket, slot): word for number in range(TABLES) for slot in range(SLOTS_PER_BUCKET)
                      for bucket, word in enumerate(words(f"slots_{number}_{slot}"))}
        self.states = words("states")
        self.entries = [words(f"entries_{copy}") for copy in range(copies)]

    def in_order(self) -> Value:
        """Each flow stands in the slot that it says, one of those that its key's hash has, and its key in its entry;
        each slot has a flow; no bucket has a fingerprint twice, and no two flows have one key."""
        holds: list[Any] = []
        for number, state in enumerate(self.states):
            entry, slot = self.entries[0][number], state.place
            digest = _digest(entry.key)
            there = Cat((slot.table == at[0]) & (slot.bucket == at[1]) & (slot.slot == at[2]) & word.valid
                        & (word.flow == number) & (word.fingerprint == digest[FINGERPRINT_SHIFT:])
                        & (digest[FINGERPRINT_SHIFT // TABLES * at[0]] == at[1]) for at, word in self.slots.items())
            same = Cat(Value.cast(copy[number]) == Value.cast(entry) for copy in self.entries)
            holds.append(~state.valid | (there.any() & same.all() & (entry.generation == state.generation)
                                         & _is_key(entry.key)))
        for at, word in self.slots.items():
            named = Cat(state.valid & (word.flow == number) & (state.place.table == at[0])
                        & (state.place.bucket == at[1]) & (state.place.slot == at[2])
                        for number, state in enumerate(self.states))
            holds.append(~word.valid | named.any())
        for (one, a), (other, b) in combinations(self.slots.items(), 2):
            if one[:2] == other[:2]:
                holds.append(~(a.valid & b.valid & (a.fingerprint == b.fingerprint)))
        for (a, one), (b, other) in combinations(zip(self.states, self.entries[0], strict=True), 2):
            holds.append(~(a.valid & b.valid & (Value.cast(one.key) == Value.cast(other.key))))
        return Cat(holds).all()

    def no_room_for(self, key: Any) -> Value:
        """Each of the key's buckets is full, or has its fingerprint."""
        digest, rooms = _digest(key), []
        for number in range(TABLES):
            bucket = digest[FINGERPRINT_SHIFT // TABLES * number]
            shape = self.slots[number, 0, 0].shape()
            mine = [data.View(shape, Mux(bucket, *(Value.cast(self.slots[number, at, slot]) for at in (1, 0))))
                    for slot in range(SLOTS_PER_BUCKET)]
            rooms.append(Cat(~word.valid for word in mine).any() & ~Cat(
                word.valid & (word.fingerprint == digest[FINGERPRINT_SHIFT:]) for word in mine).any())
        return ~Cat(rooms).any()

    def flows_with(self, key: Any) -> Value:
        """A bit for each flow: it is there, and has that key."""
        return Cat(state.valid & (Value.cast(entry.key) == Value.cast(key))
                   for state, entry in zip(self.states, self.entries[0], strict=True))


def _digest(key: Any) -> Value:
    return _hash(0, [Mux(key.ipv6, key.word_0, 0), Mux(key.ipv6, key.word_1, key.word_0)])


def _is_key(key: Any) -> Any:
    return key.ipv6 | (key.word_1 == 0)


def _begins(claims: Claims, block: FlowTable) -> Content:
    """With any table in order; without a reset."""
    content = Content(claims, block.copies)
    claims.given(content.in_order(), ~claims.started)
    claims.given(~block.write.valid)
    claims.given(_is_key(block.lookup.payload), block.lookup.valid)
    claims.given(_is_key(block.order.payload.key))
    return content


def finds_what_is_there(claims: Claims, block: FlowTable) -> None:
    """Without orders: a lookup finds the flow with its key, number and generation, and nothing if there is none; shown
    for one that the solver picks, whatever is looked up before and behind it, as fast as the table allows."""
    m = claims.m
    content = _begins(claims, block)
    claims.given(~block.order.valid)
    claims.given(block.answer.ready)
    if block.copies == 1:
        claims.given(~claims.past(block.lookup.valid, "looked_up"), block.lookup.valid)
    watch, seen, key = claims.any(name="watch"), Signal(), Signal.like(block.lookup.payload, name="watched_key")
    number = claims.inside(block.lookup.valid, 0, 5, "lookups")
    answers = claims.inside(block.answer.valid, 0, 5, "answers")
    mine = Signal(5)
    with m.If(block.lookup.valid & watch & ~seen):
        m.d.sync += [seen.eq(1), key.eq(block.lookup.payload), mine.eq(number)]
    claims.holds(answers < number, block.answer.valid)
    is_it = Signal()
    m.d.comb += is_it.eq(seen & block.answer.valid & (answers == mine))
    answer, there = block.answer.payload, content.flows_with(key)
    claims.holds(answer.found == there.any(), is_it)
    claims.holds(there.bit_select(answer.flow, 1)
                 & (Array(state.generation for state in content.states)[answer.flow] == answer.generation),
                 is_it & answer.found)
    waited = Signal(5)
    m.d.sync += waited.eq(waited + (seen & (answers <= mine)))
    claims.holds(waited <= block.latency, is_it)
    claims.reached(is_it & answer.found & (answer.flow == 2) & (mine == 1))


def keeps_order(claims: Claims, block: FlowTable, *, is_add: bool) -> None:
    """One order: at its `done` the table is in order, and has the flows that it had but for the one that was added or
    deleted. During a CHECK or DELETE anything is looked up, in every second cycle at most: what is found then was there
    before, and no answer that comes after a DELETE is done has found the flow. During an ADD one key is looked up,
    whenever: what is found was there before, or is the flow that is added."""
    m = claims.m
    content = _begins(claims, block)
    claims.stream(block.order, given=True)
    claims.given(block.answer.ready & block.done.ready)
    if is_add:
        looked_up = claims.inside(block.lookup.valid, 0, 2, "looked_up")
        claims.given(looked_up == 0, block.lookup.valid)
    claims.given(~claims.past(block.lookup.valid, "looked_up"), block.lookup.valid)
    claims.given(block.order.valid == ~claims.started, ~claims.started)
    order, over, taken = block.order.payload, Signal(name="over"), Signal(name="taken")
    kept = Signal.like(order, name="kept_order")
    with m.If(~claims.started):
        m.d.sync += kept.eq(order)
    with m.If(block.order.valid & block.order.ready):
        m.d.sync += taken.eq(1)
    claims.given(~taken, block.order.valid)
    claims.given(block.order.valid | taken)

    # The table as it was.
    was_valid, was_key = Signal(FLOWS), [Signal(2 * WORD_BITS + 1, name=f"key_before_{n}") for n in range(FLOWS)]
    was_generation = Signal(FLOWS)
    with m.If(~claims.started):
        m.d.sync += [was_valid.eq(Cat(state.valid for state in content.states)),
                     was_generation.eq(Cat(state.generation for state in content.states)),
                     *(key.eq(entry.key) for key, entry in zip(was_key, content.entries[0], strict=True))]

    status, ends = block.done.payload.status, Signal(name="ends")
    m.d.comb += ends.eq(block.done.valid & ~over)
    with m.If(ends):
        m.d.sync += over.eq(1)
    own_valid, own_generation = was_valid.bit_select(kept.flow, 1), was_generation.bit_select(kept.flow, 1)
    adds, deletes = kept.order == FlowOrder.ADD, kept.order == FlowOrder.DELETE
    key_there = Cat(was_valid[n] & (was_key[n] == Value.cast(kept.key)) for n in range(FLOWS)).any()
    claims.given(order.order == FlowOrder.ADD if is_add
                 else (order.order == FlowOrder.DELETE) | (order.order == FlowOrder.CHECK))
    good = status == FlowStatus.OK
    claims.holds(content.in_order(), ends)
    claims.holds(good == (own_valid & (own_generation == kept.generation)), ends & ~adds)
    claims.holds((status == FlowStatus.IN_USE) == own_valid, ends & adds)
    claims.holds(content.no_room_for(kept.key), ends & (status == FlowStatus.FULL))
    claims.holds((status == FlowStatus.PRESENT) == (~own_valid & key_there), ends & adds)
    for n, (state, entry) in enumerate(zip(content.states, content.entries[0], strict=True)):
        is_own = kept.flow == n
        claims.holds((state.valid == was_valid[n]) & (state.generation == was_generation[n]) | ~was_valid[n],
                     ends & ~(is_own & good & ~(kept.order == FlowOrder.CHECK)))
        claims.holds(Value.cast(entry.key) == was_key[n], ends & state.valid & ~(is_own & adds & good))
        claims.holds(~state.valid, ends & ~was_valid[n] & ~(is_own & adds & good))
        claims.holds(~state.valid, ends & is_own & deletes & good)
        claims.holds(state.valid & (state.generation == kept.generation)
                     & (Value.cast(entry.key) == Value.cast(kept.key)), ends & is_own & adds & good)

    # What is found meanwhile.
    answers = claims.part("answers").i
    found = answers.valid & answers.payload.found
    claims.holds(answers.payload.flow != kept.flow, (over | ends) & found & deletes & (status == FlowStatus.OK))
    claims.holds(was_valid.bit_select(answers.payload.flow, 1) | (adds & (answers.payload.flow == kept.flow)), found)
    if is_add:
        claims.reached(ends & good & (was_valid == 7))
        claims.reached(ends & (status == FlowStatus.FULL))
    else:
        claims.reached(ends & deletes & good & (was_valid == 7))


def adds(claims: Claims, block: FlowTable) -> None:
    """ADD."""
    keeps_order(claims, block, is_add=True)


def deletes_or_checks(claims: Claims, block: FlowTable) -> None:
    """DELETE, CHECK."""
    keeps_order(claims, block, is_add=False)


PROOFS = [
    Proof("a lookup finds what is in the flow table", table, finds_what_is_there, depth=14, cover=14),
    Proof("a lookup finds what is in the flow table, with one copy of the keys", lambda: table(copies=1),
          finds_what_is_there, depth=17, cover=18, long=True),
    Proof("a DELETE or CHECK leaves a flow table in order", table, deletes_or_checks, depth=17, cover=17, long=True),
    Proof("an ADD leaves a flow table in order", table, adds, depth=20, cover=20, long=True),
]


@pytest.mark.parametrize("proof", cases(PROOFS))
def test_flow_table(proof: Proof, tmp_path: Path) -> None:
    check(proof, tmp_path)


FINDS, _ONE_COPY, DELETES, ADDS = PROOFS
FAULTS = [
    Fault("half of a key", FINDS, lambda: table(broken(
        FlowTable, "equal.all() & of_candidate", "equal[0] & of_candidate"))),
    Fault("the first table's candidate only", FINDS, lambda: table(broken(
        FlowTable, "Mux(hits[1], found[1][0], found[0][0])", "found[0][0]"))),
    Fault("a bucket that has the fingerprint", ADDS, lambda: table(broken(
        FlowTable, 'Mux(probe["matches"][table].any(), 0, sum(frees))', "sum(frees)"))),
    Fault("a DELETE that does not wait", DELETES, lambda: table(broken(
        FlowTable, 'drain.eq(probe["stages"] + 1)', "drain.eq(0)"))),
]


@pytest.mark.parametrize("fault", fault_cases(FAULTS))
def test_a_broken_block_is_refuted(fault: Fault, tmp_path: Path) -> None:
    check_refuted(fault, tmp_path)
