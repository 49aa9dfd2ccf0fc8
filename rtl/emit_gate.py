"""Which order to send is next: those of a flow in turn, behind its fences, and none behind another flow's payload."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from nic_model.contract import NicConfig
from nic_model.contract.control import EMIT, RAW, ControlType, OrderFlag
from rtl.control_messages import beats_of_unit, message_beat
from rtl.flow_entries import FLOW_BITS
from rtl.interfaces import FreedSlots, Strobe
from rtl.place_counts import PLACE_BITS, PlaceCount, PlaceCounts
from rtl.primitives import Ram, SkidBuffer, SmallRam
from rtl.small_fifo import SmallFifo

STORED_UNITS = 4
"""Units of the longest order; what a message has behind them is not kept."""

QUEUE_ORDERS = 16
"""Orders that each of the scheduler's two queues has room for, whatever they bring: rows of the longest header, and
pieces as many as there may be."""

_Start = data.FlexibleLayout(128, {
    **{name: data.Field(EMIT.fields[name].width, EMIT.fields[name].offset)
       for name in ("type", "units", "flow", "flags", "length")},
    "raw_length": data.Field(RAW.fields["length"].width, RAW.fields["length"].offset),
})
"""The first 16 bytes of an order."""


class EmitGate(wiring.Component):
    """Keeps orders to send until they may go.

    Enters: messages of the emit stream; when PLACEs of a flow are given and done; when the scheduler has an order no
    longer. Leaves: the same messages in another order. One leaves when

    - it has no FENCE, or the PLACEs of its flow that were given before it have their bus responses;
    - no order of its flow waits here that was given before it;
    - the scheduler's other queue has no order of its flow: orders without payload have one queue, those with payload,
      and EMITs with LAST, the other (`bulk`);
    - its own queue has room.

    So orders of a flow leave the device as they were given, and what waits lets other flows pass: an order without
    payload waits for no other flow's payload here, and so is next in the scheduler behind one frame at most.

    There are `emit_credits` places; a decider that keeps to its credits never finds them taken. Orders that wait are
    chains, one for each flow; nothing is looked at again before something has happened to its flow. RAWs that belong to
    no flow, or to one beyond the table, follow each other by queue alone.

    An order takes 3 cycles when it comes and 3 when it is decided; latency 10 cycles from the last beat in to the first
    one out. A beat a cycle both ways, but one or two between two messages.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.
    queues : tuple of int
        Channel numbers of the scheduler's queues, that for orders without payload first, then `bulk`.

    Members
    -------
    i, o : beats in, beats out.
    place_given, place_done : streams of flows, see `PlaceCounts`. A PLACE that was given before an order must be taken
        here before the order's last beat. Neither waits for anything but other events.
    freed : strobe of the scheduler, of all its queues.
    left : 1 for a cycle when an order has left its place: the decider gets a credit back.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig, *, queues: tuple[int, int]):
        self.config, self.queues = config, queues
        beat = message_beat(config)
        super().__init__({
            "i": In(stream.Signature(beat)), "o": Out(stream.Signature(beat)),
            "place_given": In(stream.Signature(FLOW_BITS)), "place_done": In(stream.Signature(FLOW_BITS)),
            "freed": In(Strobe(FreedSlots)), "left": Out(1), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        slot_bits, flow_bits = exact_log2(config.emit_credits), exact_log2(config.flows)
        beat_bits = exact_log2(STORED_UNITS * beats_of_unit(config))
        m.submodules.places = places = PlaceCounts(flows=config.flows)
        connect(m, flipped(self.place_given), places.given)

        # Places: the store, which of them are free (those that were never used come first), and how long each order is.
        m.submodules.store = store = Ram(shape=8 * config.host_bytes, depth=config.emit_credits << beat_bits)
        m.submodules.free_slots = free_slots = SmallFifo(shape=slot_bits, depth=config.emit_credits)
        m.submodules.sizes = sizes = SmallRam(shape=range(STORED_UNITS), depth=config.emit_credits)

        # What has come, for the engine: `known`, its flow is one that the table may have.
        Arrival = data.StructLayout({"slot": slot_bits, "flow": flow_bits, "known": 1, "bulk": 1, "fence": 1})
        m.submodules.arrivals = arrivals = SmallFifo(shape=Arrival, depth=config.emit_credits)
        receiving = self._receive(m, store, free_slots, sizes, arrivals, beat_bits)

        # What may go, by queue; and the flows of those that have gone and are not decided.
        ready = [SmallFifo(shape=data.StructLayout({"slot": slot_bits, "flow": flow_bits, "known": 1}),
                           depth=config.emit_credits) for _ in range(2)]
        gone = [SmallFifo(shape=data.StructLayout({"flow": flow_bits, "known": 1}), depth=QUEUE_ORDERS)
                for _ in range(2)]
        for n in range(2):
            m.submodules[f"ready_{n}"], m.submodules[f"gone_{n}"] = ready[n], gone[n]
        sending = self._send(m, store, free_slots, sizes, ready, gone, beat_bits)
        judging = self._judge(m, places, arrivals, ready, gone)
        m.d.comb += self.active.eq(Cat(
            receiving, sending, judging, places.active, free_slots.active, arrivals.active,
            *(fifo.active for fifo in (*ready, *gone))).any())
        return m

    def _receive(self, m, store, free_slots, sizes, arrivals, beat_bits):
        """Store messages. Returns a Value that is 1 while something moves."""
        config = self.config
        slot_bits = len(free_slots.o.payload)
        start = _Start(self.i.payload.data[:_Start.size])
        # Slots that were never used come before those that are free again.
        unused, slot, has_slot = Signal(slot_bits + 1), Signal(slot_bits), Signal()
        place, inside = Signal(beat_bits), Signal()
        place_now, left, surplus, surplus_now = Signal(beat_bits), Signal(4), Signal(), Signal()
        enters, ends, units_of, units_stored = Signal(), Signal(), Signal(4), Signal(range(STORED_UNITS))
        beats = beats_of_unit(config)
        in_unit, unit_ends = Signal(range(max(beats, 2))), Signal()
        arrival, arrives = Signal(arrivals.i.payload.shape()), Signal()
        raw = start.type == ControlType.RAW
        m.d.comb += [
            has_slot.eq(~unused[slot_bits] | free_slots.o.valid),
            slot.eq(Mux(unused[slot_bits], free_slots.o.payload, unused)),
            self.i.ready.eq(inside | (has_slot & ~arrives)), enters.eq(self.i.valid & self.i.ready),
            unit_ends.eq(in_unit == beats - 1),
            units_of.eq(Mux(inside, left, Mux(start.units == 0, 0, start.units - 1))),  # behind this one
            ends.eq(enters & unit_ends & (units_of == 0)),
            surplus_now.eq(inside & surplus),
            place_now.eq(Mux(inside, place, 0)),
            store.write_en.eq(enters & ~surplus_now), store.write_addr.eq(Cat(place_now, slot)),
            store.write_data.eq(self.i.payload.data),
            units_stored.eq(Mux(start.units > STORED_UNITS, STORED_UNITS - 1, units_of)),
            sizes.write_en.eq(enters & ~inside), sizes.write_addr.eq(slot), sizes.write_data.eq(units_stored),
            free_slots.o.ready.eq(ends & unused[slot_bits]),
            arrivals.i.valid.eq(arrives), arrivals.i.payload.eq(arrival),
        ]
        with m.If(enters & ~inside & (start.units > STORED_UNITS)):
            units_field = EMIT.fields["units"]
            end = units_field.offset + units_field.width
            m.d.comb += store.write_data[units_field.offset:end].eq(STORED_UNITS)
        with m.If(enters):
            m.d.sync += [
                inside.eq(~ends), in_unit.eq(Mux(unit_ends, 0, in_unit + 1)), left.eq(units_of - unit_ends),
                place.eq(place_now + 1), surplus.eq(surplus_now | place_now.all()),
            ]
            with m.If(~inside):
                m.d.sync += [
                    arrival.flow.eq(start.flow), arrival.known.eq((start.flow >> len(arrival.flow)) == 0),
                    arrival.fence.eq((start.flags & OrderFlag.FENCE).any()),
                    arrival.bulk.eq(Mux(raw, start.raw_length.any(),
                                        start.length.any() | (start.flags & OrderFlag.LAST).any())),
                ]
        m.d.sync += arrives.eq(ends)
        with m.If(ends):
            m.d.sync += arrival.slot.eq(slot)
            with m.If(~unused[slot_bits]):
                m.d.sync += unused.eq(unused + 1)
        return enters | arrives

    def _send(self, m, store, free_slots, sizes, ready, gone, beat_bits):
        """Give out messages that may go, in turn if both queues have some. Returns a Value, 1 while something moves."""
        config = self.config
        beats = beats_of_unit(config)
        m.submodules.output = output = SkidBuffer(shape=message_beat(config))
        connect(m, output.o, flipped(self.o))
        stored = [Signal(range(QUEUE_ORDERS + 1), name=f"stored_{n}") for n in range(2)]
        may_go, last_bulk, bulk, chooses = Signal(2), Signal(), Signal(), Signal()
        slot, sends = Signal(len(ready[0].o.payload.slot)), Signal()
        place, last_place = Signal(beat_bits), Signal(beat_bits)
        found, found_last, free, reads, ends = Signal(), Signal(), Signal(), Signal(), Signal()
        changes = Signal()
        chosen = Signal(ready[0].o.payload.shape())
        m.d.comb += [
            may_go.eq(Cat(fifo.o.valid & (count < QUEUE_ORDERS) for fifo, count in zip(ready, stored, strict=True))),
            bulk.eq(may_go[1] & (~may_go[0] | ~last_bulk)), chooses.eq(may_go.any() & (~sends | ends)),
            chosen.eq(Mux(bulk, ready[1].o.payload, ready[0].o.payload)),
            ready[0].o.ready.eq(chooses & ~bulk), ready[1].o.ready.eq(chooses & bulk),
            sizes.read_addr.eq(chosen.slot),
            free.eq(~found | output.i.ready), reads.eq(sends & free), ends.eq(reads & (place == last_place)),
            store.read_en.eq(reads), store.read_addr.eq(Cat(place, slot)),
            output.i.valid.eq(found), output.i.payload.data.eq(store.read_data), output.i.payload.last.eq(found_last),
            free_slots.i.valid.eq(ends), free_slots.i.payload.eq(slot),
        ]
        for n in range(2):
            m.d.comb += [
                gone[n].i.valid.eq(chooses & (bulk == n)), gone[n].i.payload.flow.eq(chosen.flow),
                gone[n].i.payload.known.eq(chosen.known),
            ]
            leaves = self.freed.valid & (self.freed.payload.channel == self.queues[n])
            m.d.sync += stored[n].eq(stored[n] + (chooses & (bulk == n)) - leaves)
        m.d.sync += [self.left.eq(ends), changes.eq(chooses | self.freed.valid)]
        with m.If(chooses):
            m.d.sync += [
                sends.eq(1), slot.eq(chosen.slot), place.eq(0), last_bulk.eq(bulk),
                last_place.eq((sizes.read_data + 1) * beats - 1),
            ]
        with m.Elif(ends):
            m.d.sync += sends.eq(0)
        with m.If(reads & ~chooses):
            m.d.sync += place.eq(place + 1)
        with m.If(free):
            m.d.sync += found.eq(reads)
        with m.If(reads):
            m.d.sync += found_last.eq(ends)
        return chooses | reads | (found & output.i.ready) | output.active | self.left | self.freed.valid | changes

    def _judge(self, m, places, arrivals, ready, gone):
        """The engine: what comes, what is decided and what is placed. Returns a Value, 1 while something moves."""
        config = self.config
        slot_bits, flow_bits = exact_log2(config.emit_credits), exact_log2(config.flows)

        # Of each flow: orders that have gone or may go and are not decided, all in one queue; and those that wait.
        Entry = data.StructLayout({
            "count": range(config.emit_credits + QUEUE_ORDERS + 1), "bulk": 1, "waits": 1,
            "head": slot_bits, "tail": slot_bits,
        })
        # Of each order that waits: what it waits for, and which of its flow is next.
        Waiting = data.StructLayout({"bulk": 1, "fence": 1, "ticket": PLACE_BITS})
        m.submodules.flows = flows = Ram(shape=Entry, depth=config.flows)
        m.submodules.waiting = waiting = SmallRam(shape=Waiting, depth=config.emit_credits)
        m.submodules.links = links = SmallRam(shape=slot_bits, depth=config.emit_credits)
        fences = Signal(range(config.emit_credits + 1))  # orders with FENCE that wait

        # Events: an order is decided, or a PLACE is done.
        Event = data.StructLayout({"flow": flow_bits, "known": 1, "bulk": 1})
        m.submodules.decided = decided = SmallFifo(shape=Event, depth=2 * QUEUE_ORDERS)
        m.submodules.placed = placed = SmallFifo(shape=flow_bits, depth=16)
        freed = self.freed.payload
        leaves = [self.freed.valid & (freed.channel == queue) for queue in self.queues]
        m.d.comb += [
            decided.i.valid.eq(Cat(leaves).any()), decided.i.payload.bulk.eq(leaves[1]),
            *(decided.i.payload[name].eq(Mux(leaves[1], gone[1].o.payload[name], gone[0].o.payload[name]))
              for name in ("flow", "known")),
            *(fifo.o.ready.eq(leaf) for fifo, leaf in zip(gone, leaves, strict=True)),
            places.done.valid.eq(self.place_done.valid & placed.i.ready),
            placed.i.valid.eq(self.place_done.valid & places.done.ready),
            places.done.payload.eq(self.place_done.payload), placed.i.payload.eq(self.place_done.payload),
            self.place_done.ready.eq(places.done.ready & placed.i.ready),
        ]
        self.invariants = [(decided.i.ready | ~decided.i.valid, "more orders are decided than had gone")]

        # What is at hand: an arrival, an event of either kind, or the first order that waits of the same flow.
        arrival, comes, ends_one = Signal(arrivals.o.payload.shape()), Signal(), Signal()
        flow, known, entry = Signal(flow_bits), Signal(), Signal(Entry)
        head, count, counts_known = Signal(Waiting), Signal(PlaceCount), Signal()
        slot, next_slot = Signal(slot_bits), Signal(slot_bits)
        moves, goes, waits, goes_bulk, opened = Signal(), Signal(), Signal(), Signal(), Signal()
        after = Signal(Entry)
        m.d.comb += [
            flows.read_addr.eq(flow), flows.write_addr.eq(flow), flows.write_data.eq(after), after.eq(entry),
            waiting.read_addr.eq(entry.head), links.read_addr.eq(entry.head),
            waiting.write_addr.eq(arrival.slot), waiting.write_en.eq(waits), links.write_en.eq(waits & entry.waits),
            links.write_addr.eq(entry.tail), links.write_data.eq(arrival.slot),
            waiting.write_data.eq(Cat(arrival.bulk, arrival.fence, count.given)),
            places.look.payload.eq(flow),
        ]
        for n in range(2):
            m.d.comb += [
                ready[n].i.valid.eq(goes & (goes_bulk == n)), ready[n].i.payload.slot.eq(slot),
                ready[n].i.payload.flow.eq(flow), ready[n].i.payload.known.eq(known),
            ]
        fence_ends, fence_begins = Signal(), Signal()
        with m.If(fence_begins ^ fence_ends):
            m.d.sync += fences.eq(fences + fence_begins - fence_ends)

        clears, clear_flow = Signal(init=1), Signal(flow_bits)
        with m.If(clears):
            m.d.comb += [flows.write_en.eq(1), flows.write_addr.eq(clear_flow), flows.write_data.eq(0), moves.eq(1)]
            m.d.sync += [clear_flow.eq(clear_flow + 1), clears.eq(~clear_flow.all())]

        def store():
            m.d.comb += flows.write_en.eq(1)
            m.next = "REST"

        with m.FSM(name="gate"):
            with m.State("REST"):
                with m.If(~clears & decided.o.valid):
                    m.d.comb += [decided.o.ready.eq(1), moves.eq(1)]
                    m.d.sync += [
                        comes.eq(0), ends_one.eq(1), counts_known.eq(0), flow.eq(decided.o.payload.flow), known.eq(1),
                    ]
                    with m.If(decided.o.payload.known):
                        m.next = "READ"
                with m.Elif(~clears & placed.o.valid):
                    m.d.comb += [placed.o.ready.eq(1), moves.eq(1)]
                    m.d.sync += [
                        comes.eq(0), ends_one.eq(0), counts_known.eq(0), flow.eq(placed.o.payload), known.eq(1),
                    ]
                    with m.If(fences != 0):
                        m.next = "READ"
                with m.Elif(~clears & arrivals.o.valid):
                    m.d.comb += [arrivals.o.ready.eq(1), moves.eq(1)]
                    m.d.sync += [
                        arrival.eq(arrivals.o.payload), comes.eq(1), ends_one.eq(0), counts_known.eq(0),
                        flow.eq(arrivals.o.payload.flow), known.eq(arrivals.o.payload.known),
                        slot.eq(arrivals.o.payload.slot),
                    ]
                    m.next = "READ"
            with m.State("READ"):
                m.d.comb += [flows.read_en.eq(1), moves.eq(1)]
                m.next = "TAKE"
            with m.State("TAKE"):
                m.d.comb += moves.eq(1)
                m.d.sync += [entry.eq(flows.read_data), opened.eq(~arrival.fence)]
                m.next = "CHECK"
                with m.If(comes & known & arrival.fence):
                    m.next = "ASK"
                with m.If(comes & ~known):
                    m.next = "PASS"
                with m.If(~comes):
                    m.next = "HEAD"
                with m.If(ends_one):
                    m.d.sync += entry.count.eq(Entry(flows.read_data).count - 1)

            # An arrival: it goes, or it is the last that waits of its flow.
            with m.State("PASS"):
                m.d.comb += [goes.eq(1), goes_bulk.eq(arrival.bulk), moves.eq(1)]
                m.next = "REST"
            with m.State("ASK"):
                m.d.comb += [places.look.valid.eq(1), moves.eq(places.look.ready)]
                with m.If(places.look.ready):
                    m.next = "COUNTS"
            with m.State("COUNTS"):
                m.d.comb += [places.found.ready.eq(1), moves.eq(places.found.valid)]
                with m.If(places.found.valid):
                    m.d.sync += [count.eq(places.found.payload), counts_known.eq(1)]
                    m.next = "COMPARE"
            with m.State("COMPARE"):
                m.d.comb += moves.eq(1)
                # as many as were given when the order came, or more
                m.d.sync += opened.eq(Mux(comes, count.done == count.given,
                                          ~(count.done - head.ticket)[PLACE_BITS - 1]))
                m.next = "LET_GO"
                with m.If(comes):
                    m.next = "CHECK"
            with m.State("CHECK"):
                m.d.comb += [
                    goes.eq(opened & ~entry.waits & ((entry.count == 0) | (entry.bulk == arrival.bulk))),
                    goes_bulk.eq(arrival.bulk), waits.eq(~goes), moves.eq(1), fence_begins.eq(waits & arrival.fence),
                ]
                with m.If(goes):
                    m.d.comb += [after.count.eq(entry.count + 1), after.bulk.eq(arrival.bulk)]
                with m.Else():
                    m.d.comb += [after.waits.eq(1), after.tail.eq(arrival.slot)]
                    with m.If(~entry.waits):
                        m.d.comb += after.head.eq(arrival.slot)
                store()

            # Something has happened to a flow: the orders that wait for it go, one after the other.
            with m.State("HEAD"):
                m.d.comb += moves.eq(1)
                m.d.sync += [
                    head.eq(waiting.read_data), next_slot.eq(links.read_data), slot.eq(entry.head), opened.eq(1),
                ]
                m.next = "LET_GO"
                with m.If(Waiting(waiting.read_data).fence):
                    m.next = "COMPARE"
                    with m.If(~counts_known):
                        m.next = "ASK"
                with m.If(~entry.waits):
                    store()
            with m.State("LET_GO"):
                m.d.comb += [
                    goes.eq(opened & ((entry.count == 0) | (entry.bulk == head.bulk))), goes_bulk.eq(head.bulk),
                    moves.eq(1), fence_ends.eq(goes & head.fence),
                ]
                with m.If(goes):
                    m.d.sync += [
                        entry.count.eq(entry.count + 1), entry.bulk.eq(head.bulk), entry.head.eq(next_slot),
                        entry.waits.eq(entry.head != entry.tail),
                    ]
                    m.next = "HEAD"
                with m.Else():
                    store()
        return moves | decided.active | placed.active
