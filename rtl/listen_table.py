"""Which listener a TCP segment without a flow is for: by its local address and port."""

from itertools import pairwise

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from nic_model.contract import register
from rtl.interfaces import RegisterWrite, Strobe
from rtl.primitives import SmallRam
from rtl.small_fifo import SmallFifo

SLOTS_PER_BUCKET = 4
ADDRESS_BITS, PORT_BITS = 128, 16
ANSWERS = 16
"""Answers that may wait to be taken."""

# Where a segment goes, or what a listener listens to; an IPv4 address stands lowest, zeros above it.
ListenKey = data.StructLayout({"address": ADDRESS_BITS, "port": PORT_BITS, "ipv6": 1})


class ListenOrder(enum.Enum, shape=1):  # type: ignore[call-arg]
    """What an order does."""

    ADD = 0
    DELETE = 1


class ListenStatus(enum.Enum, shape=2):  # type: ignore[call-arg]
    """What became of an order."""

    OK = 0
    STALE = 1
    """DELETE: no listener of that number."""
    PRESENT = 2
    """ADD: there is a listener of that number, or one that listens there."""
    FULL = 3
    """ADD: its bucket is full."""


def listen_order(listeners: int) -> data.StructLayout:
    """An order of a table with so many listeners: ADD has a key."""
    return data.StructLayout({"order": ListenOrder, "listener": max(1, exact_log2(listeners)), "key": ListenKey})


ListenDone = data.StructLayout({"status": ListenStatus})


class ListenTable(wiring.Component):
    """Finds listeners.

    Enters: `lookup`, where segments go, one in each cycle if need be, and `order`, who shall listen. Leaves: for each
    lookup an `answer`, in order, `latency` cycles behind it; for each order a `done`.

    A listener's port gives its bucket, of four slots, all of which a lookup reads at once. A listener with address 0
    listens to any address of that version of IP; one with the very address comes before it. An order is done in 5
    cycles, and writes when no lookup reads; one that comes then counts it or does not.

    DEVICE_RESET takes out all listeners, a bucket a cycle.

    Parameters
    ----------
    listeners : int
        Listeners at most, and slots: a power of two.

    Members
    -------
    write : register writes, for DEVICE_RESET.
    lookup : strobe of a key.
    answer : whether there is a listener, and its number.
    order, done : of `listen_order` and `ListenDone`.
    """

    latency = 4

    def __init__(self, *, listeners):
        if not isinstance(listeners, int) or listeners < 1 or listeners & (listeners - 1):
            raise ValueError(f"listeners must be a power of two, not {listeners!r}")
        self.listeners = listeners
        number = max(1, exact_log2(listeners))
        super().__init__({
            "write": In(Strobe(RegisterWrite)), "lookup": In(Strobe(ListenKey)),
            "answer": Out(stream.Signature(data.StructLayout({"found": 1, "listener": number}))),
            "order": In(stream.Signature(listen_order(listeners))), "done": Out(stream.Signature(ListenDone)),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        number_bits = len(self.order.payload.listener)
        buckets = max(2, self.listeners // SLOTS_PER_BUCKET)
        bucket_bits = exact_log2(buckets)
        slot_layout = data.StructLayout({"valid": 1, "key": ListenKey, "listener": number_bits})
        place_layout = data.StructLayout({"valid": 1, "bucket": bucket_bits, "slot": exact_log2(SLOTS_PER_BUCKET)})
        order, done = self.order.payload, self.done.payload

        def bucket_of(key):
            return key.port[:bucket_bits] ^ key.port[bucket_bits:2 * bucket_bits]

        # A lookup, or the key of an ADD when there is none: 1 slots in registers, 2 compared, 3 chosen.
        asks, asked = Signal(name="asks"), Signal(name="asked")
        valid = [self.lookup.valid, *(Signal(name=f"valid_{n}") for n in range(1, 4))]
        of_order = [asks & ~self.lookup.valid, *(Signal(name=f"of_order_{n}") for n in range(1, 3))]
        key, key_1 = Signal(ListenKey, name="key"), Signal(ListenKey, name="key_1")
        m.d.comb += [
            asked.eq(of_order[0]),
            Value.cast(key).eq(Mux(self.lookup.valid, Value.cast(self.lookup.payload), Value.cast(order.key))),
        ]
        m.d.sync += [later.eq(earlier) for stages in (valid, of_order) for earlier, later in pairwise(stages)]

        writes, clearing, slot_place, slot_word, clear_row = (
            Signal(), Signal(), Signal(place_layout), Signal(slot_layout), Signal(range(max(buckets, self.listeners))))
        rows = [Signal(slot_layout, name=f"slot_{slot}") for slot in range(SLOTS_PER_BUCKET)]
        looks = valid[0] | of_order[0]
        with m.If(looks):
            m.d.sync += key_1.eq(key)
        for slot, row in enumerate(rows):
            m.submodules[f"slots_{slot}"] = memory = SmallRam(shape=slot_layout, depth=buckets)
            m.d.comb += [
                memory.read_addr.eq(bucket_of(key)),
                memory.write_en.eq(clearing | (writes & (slot_place.slot == slot))),
                memory.write_addr.eq(Mux(clearing, clear_row, slot_place.bucket)),
                memory.write_data.eq(Value.cast(slot_word)),
            ]
            with m.If(looks):
                m.d.sync += Value.cast(row).eq(memory.read_data)

        exact, anywhere, taken = Signal(SLOTS_PER_BUCKET), Signal(SLOTS_PER_BUCKET), Signal(SLOTS_PER_BUCKET)
        numbers = [Signal(number_bits, name=f"number_{slot}") for slot in range(SLOTS_PER_BUCKET)]
        with m.If(valid[1] | of_order[1]):
            for slot, row in enumerate(rows):
                there = row.valid & (row.key.port == key_1.port) & (row.key.ipv6 == key_1.ipv6)
                equal = row.key.address == key_1.address
                m.d.sync += [
                    exact[slot].eq(there & equal), anywhere[slot].eq(there & ~row.key.address.any()),
                    taken[slot].eq(row.valid), numbers[slot].eq(row.listener),
                ]
        chosen, found = Signal(number_bits), Signal()
        wanted = Mux(exact.any(), exact, anywhere)
        with m.If(valid[2]):
            m.d.sync += found.eq(wanted.any())
            for slot in range(SLOTS_PER_BUCKET):
                with m.If(wanted[slot]):
                    m.d.sync += chosen.eq(numbers[slot])

        m.submodules.answers = answers = SmallFifo(shape=self.answer.payload.shape(), depth=ANSWERS)
        m.d.comb += [answers.i.valid.eq(valid[3]), answers.i.payload.found.eq(found),
                     answers.i.payload.listener.eq(chosen)]
        connect(m, answers.o, flipped(self.answer))
        self.invariants = [(~answers.i.valid | answers.i.ready, "an answer finds no room")]

        # Orders.
        m.submodules.places = places = SmallRam(shape=place_layout, depth=max(2, self.listeners))
        place = data.View(place_layout, places.read_data)
        resets, must_clear, moves, tells, status = Signal(), Signal(), Signal(), Signal(), Signal(ListenStatus)
        m.d.comb += [
            resets.eq(self.write.valid & (self.write.payload.address == register("DEVICE_RESET"))
                      & self.write.payload.data[0]),
            places.read_addr.eq(order.listener),
            places.write_addr.eq(Mux(clearing, clear_row, order.listener)),
        ]
        with m.If(resets):
            m.d.sync += must_clear.eq(1)
        with m.If(self.done.valid & self.done.ready):
            m.d.sync += self.done.valid.eq(0)
        with m.If(tells):
            m.d.comb += self.order.ready.eq(1)
            m.d.sync += [self.done.valid.eq(1), done.status.eq(status)]

        def tell(what):
            m.d.comb += [tells.eq(1), status.eq(what)]
            m.next = "IDLE"

        with m.FSM(name="listen_state"):
            with m.State("IDLE"):
                with m.If(must_clear):
                    m.d.comb += moves.eq(1)
                    m.d.sync += [must_clear.eq(resets), clear_row.eq(0), Value.cast(slot_word).eq(0)]
                    m.next = "CLEAR"
                with m.Elif(self.order.valid & ~self.done.valid):
                    m.d.comb += moves.eq(1)
                    with m.If(order.order == ListenOrder.ADD):
                        m.next = "ASK"
                        with m.If(place.valid):
                            tell(ListenStatus.PRESENT)
                    with m.Elif(~place.valid):
                        tell(ListenStatus.STALE)
                    with m.Else():
                        m.d.sync += [slot_place.eq(place), Value.cast(slot_word).eq(0)]
                        m.next = "STORE"
            with m.State("CLEAR"):
                m.d.comb += [moves.eq(1), clearing.eq(1), places.write_en.eq(1)]
                m.d.sync += clear_row.eq(clear_row + 1)
                with m.If(clear_row.all()):
                    m.next = "IDLE"
            with m.State("ASK"):
                m.d.comb += [moves.eq(1), asks.eq(1)]
                with m.If(asked):
                    m.next = "COMPARE"
            with m.State("COMPARE"):
                m.d.comb += moves.eq(1)
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.comb += moves.eq(1)
                m.d.sync += [
                    slot_place.valid.eq(1), slot_place.bucket.eq(bucket_of(order.key)), slot_word.valid.eq(1),
                    slot_word.key.eq(order.key), slot_word.listener.eq(order.listener),
                ]
                for slot in reversed(range(SLOTS_PER_BUCKET)):
                    with m.If(~taken[slot]):
                        m.d.sync += slot_place.slot.eq(slot)
                m.next = "STORE"
                with m.If(exact.any()):
                    tell(ListenStatus.PRESENT)
                with m.Elif(taken.all()):
                    tell(ListenStatus.FULL)
            with m.State("STORE"):
                m.d.comb += [
                    moves.eq(1), writes.eq(1), places.write_en.eq(1),
                    places.write_data.eq(Mux(order.order == ListenOrder.ADD, Value.cast(slot_place), 0)),
                ]
                tell(ListenStatus.OK)
        m.d.comb += self.active.eq(
            moves | tells | resets | looks | Cat(*valid[1:], *of_order[1:]).any() | answers.active
            | (self.done.valid & self.done.ready))
        return m
