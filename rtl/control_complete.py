"""COMPLETE: completions of socket operations, which wait for the flow's earlier PLACEs."""

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from nic_model.contract import NicConfig
from nic_model.contract.control import COMPLETE, ControlType, DoneStatus, OrderFlag
from rtl.control_messages import Unit
from rtl.control_place import ORDERS_ASKED, ORDERS_IN_FLIGHT, DoneToken
from rtl.flow_entries import FLOW_BITS
from rtl.interfaces import CountAmount, SocketDone, SocketTaken, Strobe, contract_view
from rtl.primitives import OrderedDrain, Ram
from rtl.small_fifo import SmallFifo

PARKED = 16
"""COMPLETEs that may wait for PLACEs: about as many as come while the bus answers a write."""

NUMBER_BITS = 12
"""Of a PLACE's number. The number of a flow's latest PLACE may be old, and look as if it were one of those under way,
of which there are far fewer than numbers: then a COMPLETE waits until that one is over, for nothing."""

PLACES_UNDER_WAY = ORDERS_ASKED + ORDERS_IN_FLIGHT + 8
"""PLACEs that `rtl.control_place.ControlPlace` has inside, at most."""

_Complete = contract_view(COMPLETE)

# An order that waits: whom it answers, what it says, and which PLACE must be over; `waits`: any must.
_Parked = data.StructLayout({
    **{name: DoneToken.members[name] for name in ("flow", "generation", "tag", "asked")},
    **{name: COMPLETE.fields[name].width for name in (
        "channel", "status", "job", "length", "result", "remote_port", "local_port", "socket")},
    "waits": 1, "place": NUMBER_BITS,
})


class ControlComplete(wiring.Component):
    """Gives completions of socket operations to the completion block when their time has come.

    Enters: `i`, COMPLETE unit by unit, as it came (what is behind its first unit means nothing); which PLACEs are given
    and that they are over. Leaves: `o`, completions, in the order in which they came; `done`, what became of those that
    failed or asked for it.

    A COMPLETE waits until the PLACEs of its flow that were given before it are over: their writes have the bus's
    answer, or they were refused. One whose flow is none, or beyond the table, waits for none. Generations are not
    looked at, since a job may outlive its flow. PLACEs, of all flows, are over in the order in which they were given,
    so it is enough to know the number of each flow's latest one, and how many are over.

    COMPLETEs leave in order: one that waits holds up those behind it for as long as the bus takes to answer, and other
    orders not at all, until `PARKED` of them wait.

    DONE says OK when the entry has its place in a ring of a channel that runs, so that it is written; whether that
    write succeeds is the channel's business. It says BAD if there is no such channel, or if it does not run.

    Latency 6 cycles from the unit to `o`, if there is nothing to wait for; one in 6 cycles if each is `taken` 2 cycles
    later, or 7 if it is answered.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    i : see above.
    place_given : strobe, the flow of a PLACE that is handed on to be carried out. It counts for a COMPLETE that is
        offered later.
    place_over : 1 for a cycle for each of these, in order.
    o, taken : completions; what became of each, behind it.
    done : see above.
    idle : no COMPLETE is inside.
    drain_request, drain_done : see `rtl.primitives.OrderedDrain`: PLACEs that were given are over.
    count_completes : strobe, COMPLETEs carried out.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(Unit)), "place_given": In(Strobe(FLOW_BITS)), "place_over": In(1),
            "o": Out(stream.Signature(SocketDone)), "taken": In(Strobe(SocketTaken)),
            "done": Out(stream.Signature(DoneToken)), "idle": Out(1),
            "drain_request": In(1), "drain_done": Out(1),
            "count_completes": Out(Strobe(CountAmount)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.parked = parked = SmallFifo(shape=_Parked, depth=PARKED)
        given, under_way, counting = self._count_places(m)
        parking = self._park(m, given, parked.i)
        giving = self._give(m, given, under_way, parked.o)
        m.d.comb += self.active.eq(counting | parking | giving | parked.active)
        return m

    def _count_places(self, m):
        """Number the PLACEs. Returns the latest one's number, how many are not over, and a Value that is 1 while either
        changes."""
        given, under_way = Signal(NUMBER_BITS), Signal(range(PLACES_UNDER_WAY + 1))
        is_over = Signal(name="a_place_is_over")
        m.d.sync += [
            given.eq(given + self.place_given.valid), is_over.eq(self.place_over),
            under_way.eq(under_way + self.place_given.valid - is_over),
        ]
        self.invariants = [(under_way <= PLACES_UNDER_WAY, "more PLACEs are under way than there is room for")]
        m.submodules.drain = drain = OrderedDrain(most=PLACES_UNDER_WAY)
        m.d.comb += [
            drain.begins.eq(self.place_given.valid), drain.ends.eq(is_over), drain.request.eq(self.drain_request),
            self.drain_done.eq(drain.done),
        ]
        return given, under_way, self.place_given.valid | self.place_over | is_over | drain.active

    def _park(self, m, given, parked):
        """Put each order into the queue, with the number of its flow's latest PLACE. Returns a Value that is 1 while
        something moves."""
        flows = self.config.flows
        m.submodules.latest = latest = Ram(shape=NUMBER_BITS, depth=flows)
        order, place = parked.payload, self.place_given
        fields, moves = _Complete(self.i.payload.data), Signal(name="parks")
        number = Signal(NUMBER_BITS, name="latest_place")
        m.d.comb += [
            latest.write_en.eq(place.valid & (place.payload < flows)), latest.write_addr.eq(place.payload),
            latest.write_data.eq(given + 1), latest.read_addr.eq(fields.flow),
            *(order[name].eq(fields[name]) for name in _Parked.members
              if name not in ("asked", "waits", "place")),
            order.asked.eq((fields.flags & int(OrderFlag.DONE)).any()), order.waits.eq(fields.flow < flows),
            order.place.eq(number),
        ]
        with m.FSM(name="park"):
            with m.State("REST"):
                with m.If(self.i.valid & ~self.i.payload.first):
                    m.d.comb += [self.i.ready.eq(1), moves.eq(1)]
                with m.Elif(self.i.valid & ~place.valid):
                    m.d.comb += [latest.read_en.eq(1), moves.eq(1)]
                    m.next = "FOUND"
            with m.State("FOUND"):
                m.d.comb += moves.eq(1)
                m.d.sync += number.eq(latest.read_data)
                m.next = "PARK"
            with m.State("PARK"):
                m.d.comb += [parked.valid.eq(1), self.i.ready.eq(parked.ready), moves.eq(parked.ready)]
                with m.If(parked.ready):
                    m.next = "REST"
        return moves

    def _give(self, m, given, under_way, parked):
        """One order after the other: wait for its PLACEs, give it, tell of it. Returns a Value that is 1 while
        something moves."""
        order, status = Signal(_Parked, name="order"), Signal(DoneStatus, name="status")
        opens, is_open, moves = Signal(), Signal(), Signal(name="gives")
        m.d.comb += [
            # `place` is not one of the latest PLACEs, as many as are not over
            opens.eq(~order.waits | ((given - order.place)[:NUMBER_BITS] >= under_way)),
            *(self.o.payload[name].eq(order[source]) for name, source in (
                (name, {"tag": "job"}.get(name, name)) for name in SocketDone.members)),
            *(self.done.payload[name].eq(order[name]) for name in ("flow", "generation", "tag", "asked")),
            self.done.payload.order.eq(ControlType.COMPLETE), self.done.payload.status.eq(status),
            self.count_completes.payload.amount.eq(1),
        ]
        m.d.sync += self.count_completes.valid.eq(0)
        with m.FSM(name="give") as machine:
            with m.State("REST"):
                m.d.comb += [parked.ready.eq(1), moves.eq(parked.valid)]
                with m.If(parked.valid):
                    m.d.sync += Value.cast(order).eq(Value.cast(parked.payload))
                    m.next = "WAIT"
            with m.State("WAIT"):
                m.d.comb += moves.eq(opens | is_open)
                m.d.sync += is_open.eq(opens & ~is_open)
                with m.If(is_open):
                    m.d.sync += status.eq(DoneStatus.BAD)
                    m.next = "OFFER"
                    with m.If(order.channel >= self.config.channels):
                        m.next = "TELL"
            with m.State("OFFER"):
                m.d.comb += [self.o.valid.eq(1), moves.eq(self.o.ready)]
                with m.If(self.o.ready):
                    m.next = "TAKEN"
            with m.State("TAKEN"):
                m.d.comb += moves.eq(self.taken.valid)
                with m.If(self.taken.valid):
                    m.next = "TELL"
                    with m.If(self.taken.payload.written):
                        m.d.sync += [status.eq(DoneStatus.OK), self.count_completes.valid.eq(1)]
                        with m.If(~order.asked):
                            m.next = "REST"
            with m.State("TELL"):
                m.d.comb += [self.done.valid.eq(1), moves.eq(self.done.ready)]
                with m.If(self.done.ready):
                    m.next = "REST"
            m.d.comb += self.idle.eq(~self.i.valid & ~parked.valid & machine.ongoing("REST"))
        return moves | self.count_completes.valid
