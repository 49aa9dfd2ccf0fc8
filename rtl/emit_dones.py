"""What is under way of the orders to send, and what the decider is told when they are over."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import NicConfig, Status
from nic_model.contract.control import CONTROL_VERSION, DONE, TIME_SHIFT, ControlType, DoneStatus
from rtl.control_messages import MessageWriter, message_beat
from rtl.emit import NO_FRAME, REFUSED_STALE, OrderRecord
from rtl.flow_entries import FLOW_BITS
from rtl.interfaces import LENGTH_BITS, TIME_BITS, CountAmount, Strobe, TxDone, contract_view
from rtl.primitives import OrderedDrain, StreamFifo
from rtl.small_fifo import SmallFifo

ORDERS_UNDER_WAY = 128
"""Orders between the decoder and their DONE: more than the transmit path has frames under way."""

Done = contract_view(DONE)

# What a DONE says.
DoneNote = data.StructLayout({
    "flow": FLOW_BITS, "generation": DONE.fields["generation"].width, "tag": DONE.fields["tag"].width,
    "status": max(DoneStatus).bit_length(), "raw": 1, "length": LENGTH_BITS, "time": DONE.fields["time"].width,
})


class EmitDones(wiring.Component):
    """Keeps the books of orders to send, and answers them.

    Enters: orders that begin, their records, and the reports of sends that are over. Leaves: for each order that asked
    for it or failed a DONE, in the order in which sends are over; whether more orders may begin. An order begins only
    when there is a place for its DONE, so a report is never kept waiting by whoever takes messages: the transmit path's
    reports of other channels stand behind it.

    Latency 4 cycles from a report to the first beat of its DONE; a report a cycle, a DONE in as many cycles as a unit
    has beats.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` is used.
    queues : tuple of int
        Channel numbers of the scheduler's queues, that for orders without payload first.

    Members
    -------
    begun, room : see `EmitDecoder`.
    record : stream, before the report of its order.
    now : the device's cycle count.
    done : stream of reports, of the orders' queues alone.
    o : messages up.
    drain_request, drain_done : levels: sends of all orders that had begun are over. What begins later does not hold it
        up.
    count_control_emits, count_control_stale, count_control_refused : count strobes.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig, *, queues: tuple[int, int]):
        self.config, self.queues = config, queues
        super().__init__({
            "begun": In(1), "room": Out(1, init=1), "record": In(stream.Signature(OrderRecord)),
            "now": In(TIME_BITS), "done": In(stream.Signature(TxDone)),
            "o": Out(stream.Signature(message_beat(config))),
            "drain_request": In(1), "drain_done": Out(1),
            **{f"count_control_{name}": Out(Strobe(CountAmount)) for name in ("emits", "stale", "refused")},
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()

        # What is under way. `room` comes a cycle late: a further order begins no sooner than 3 cycles behind one.
        under_way = Signal(range(ORDERS_UNDER_WAY + 1))
        over, told, settles = Signal(), Signal(), Signal()  # over without a DONE; with one that has left
        m.d.sync += [settles.eq(self.begun | over | told), self.room.eq(under_way < ORDERS_UNDER_WAY)]
        with m.If(self.begun | over | told):
            m.d.sync += under_way.eq(under_way + self.begun - over - told)
        self.invariants = [(under_way <= ORDERS_UNDER_WAY, "more orders under way than there are places for DONEs")]

        # Reports of a queue come in the order of its orders, and so do the records.
        records = []
        for n in range(2):
            m.submodules[f"records_{n}"] = fifo = SmallFifo(shape=OrderRecord, depth=ORDERS_UNDER_WAY)
            records.append(fifo)
            m.d.comb += [
                fifo.i.payload.eq(self.record.payload),
                fifo.i.valid.eq(self.record.valid & (self.record.payload.bulk == n)),
            ]
        m.d.comb += self.record.ready.eq(1)  # there are as many places as orders under way

        # A drain begins between an order's record and the next order: then each order under way has its queue, and the
        # orders of a queue are over in their order.
        has_record, asks, drains = Signal(init=1), Signal(), []
        with m.If(self.begun | self.record.valid):
            m.d.sync += has_record.eq(~self.begun)
        m.d.sync += asks.eq(self.drain_request & (asks | (has_record & ~self.begun)))
        for n in range(2):
            m.submodules[f"drain_{n}"] = drain = OrderedDrain(most=ORDERS_UNDER_WAY)
            drains.append(drain)
            m.d.comb += [
                drain.request.eq(asks & self.drain_request), drain.begins.eq(records[n].i.valid & records[n].i.ready),
                drain.ends.eq(records[n].o.valid & records[n].o.ready),
            ]
        m.d.comb += self.drain_done.eq(Cat(drain.done for drain in drains).all())

        # A report meets its record, in registers; then it becomes a note, or is done with.
        report, report_valid, enters = Signal(TxDone), Signal(), Signal()
        m.d.comb += [self.done.ready.eq(1), enters.eq(self.done.valid)]
        m.d.sync += report_valid.eq(enters)
        with m.If(enters):
            m.d.sync += report.eq(self.done.payload)
        bulk = report.channel == self.queues[1]
        record, status, note_wanted = Signal(OrderRecord), Signal(DoneNote.members["status"]), Signal()
        m.d.comb += [
            record.eq(Mux(bulk, records[1].o.payload, records[0].o.payload)),
            records[0].o.ready.eq(report_valid & ~bulk), records[1].o.ready.eq(report_valid & bulk),
            note_wanted.eq(report.complete | (status != DoneStatus.OK)), over.eq(report_valid & ~note_wanted),
        ]
        with m.Switch(report.status):
            with m.Case(Status.OK, NO_FRAME):
                m.d.comb += status.eq(DoneStatus.OK)
            with m.Case(Status.KEY_INVALID, Status.KEY_OWNER, Status.KEY_RIGHTS, Status.KEY_BOUNDS):
                m.d.comb += status.eq(DoneStatus.KEY)
            with m.Case(Status.BUS_ERROR):
                m.d.comb += status.eq(DoneStatus.BUS)
            with m.Case(REFUSED_STALE):
                m.d.comb += status.eq(DoneStatus.STALE)
            with m.Default():
                m.d.comb += status.eq(DoneStatus.BAD)
        m.submodules.notes = notes = StreamFifo(shape=DoneNote, depth=ORDERS_UNDER_WAY)
        note = notes.i.payload
        m.d.comb += [
            notes.i.valid.eq(report_valid & note_wanted),
            note.flow.eq(report.ring_index), note.generation.eq(record.generation), note.tag.eq(report.tag),
            note.status.eq(status), note.raw.eq(record.raw), note.length.eq(report.length),
            note.time.eq(self.now[TIME_SHIFT:]),
        ]
        good, old = report_valid & (report.status == Status.OK), report_valid & (status == DoneStatus.STALE)
        for strobe, counts in ((self.count_control_emits, good), (self.count_control_stale, old),
                               (self.count_control_refused, report_valid & (status != DoneStatus.OK) & ~old)):
            m.d.comb += [strobe.valid.eq(counts), strobe.payload.amount.eq(1)]

        # The message.
        m.submodules.writer = writer = MessageWriter(self.config)
        connect(m, writer.o, flipped(self.o))
        said = notes.o.payload
        message = Done(writer.i.payload.data[:Done.size])
        m.d.comb += [
            writer.i.valid.eq(notes.o.valid), writer.i.payload.first.eq(1), writer.i.payload.last.eq(1),
            notes.o.ready.eq(writer.i.ready), told.eq(notes.o.valid & notes.o.ready),
            message.type.eq(ControlType.DONE), message.units.eq(1), message.version.eq(CONTROL_VERSION),
            message.flow.eq(said.flow), message.generation.eq(said.generation), message.tag.eq(said.tag),
            message.status.eq(said.status), message.length.eq(said.length), message.time.eq(said.time),
            message.order.eq(Mux(said.raw, ControlType.RAW, ControlType.EMIT)),
        ]
        m.d.comb += self.active.eq(
            self.begun | settles | self.record.valid | enters | report_valid | notes.active
            | writer.active | records[0].active | records[1].active | (asks != self.drain_request)
            | Cat(drain.active for drain in drains).any())
        return m
