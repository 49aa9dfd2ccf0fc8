"""How many PLACEs of each flow were given, and how many have their bus responses: what FENCE waits for."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from rtl.flow_entries import FLOW_BITS
from rtl.primitives import Ram
from rtl.small_fifo import SmallFifo

PLACE_BITS = 12
"""Of a count of PLACEs: fewer than half its range are under way for a flow."""

PlaceCount = data.StructLayout({"given": PLACE_BITS, "done": PLACE_BITS})

_WAITING = 8
"""Events that may wait."""


class FlowCounter(wiring.Component):
    """Counts something of each flow, modulo 2^`PLACE_BITS`.

    Enters: `counts`, flows below `flows` that are to be counted up; `look`, flows whose count is wanted. Leaves: the
    counts. What entered `counts` counts before any look that enters later. Each takes 3 cycles. After a reset all
    counts are cleared first, one a cycle, and nothing is answered meanwhile.

    Parameters
    ----------
    flows : int
        Flows, a power of two of at least 2.

    Members
    -------
    counts, look, found : see above.
    active : see `rtl.interfaces`.
    """

    def __init__(self, *, flows: int):
        self.flows = flows
        super().__init__({
            "counts": In(stream.Signature(FLOW_BITS)), "look": In(stream.Signature(FLOW_BITS)),
            "found": Out(stream.Signature(PLACE_BITS)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        bits = exact_log2(self.flows)
        m.submodules.table = table = Ram(shape=PLACE_BITS, depth=self.flows)
        m.submodules.waiting = waiting = SmallFifo(shape=bits, depth=_WAITING)
        clears, clear_index = Signal(init=1), Signal(bits)
        flow, value, moves = Signal(bits), Signal(PLACE_BITS), Signal()
        m.d.comb += [
            waiting.i.valid.eq(self.counts.valid), waiting.i.payload.eq(self.counts.payload),
            self.counts.ready.eq(waiting.i.ready),
            table.write_addr.eq(Mux(clears, clear_index, flow)), table.write_data.eq(Mux(clears, 0, value + 1)),
        ]
        with m.If(self.found.ready):
            m.d.sync += self.found.valid.eq(0)
        with m.FSM(name="counter"):
            with m.State("CLEAR"):
                m.d.comb += [moves.eq(1), table.write_en.eq(1)]
                m.d.sync += clear_index.eq(clear_index + 1)
                with m.If(clear_index == self.flows - 1):
                    m.d.sync += clears.eq(0)
                    m.next = "REST"
            with m.State("REST"):
                m.d.comb += [
                    waiting.o.ready.eq(1), table.read_addr.eq(Mux(waiting.o.valid, waiting.o.payload,
                                                                  self.look.payload)),
                    self.look.ready.eq(~waiting.o.valid & ~self.counts.valid & (~self.found.valid | self.found.ready)),
                    table.read_en.eq(waiting.o.valid | (self.look.valid & self.look.ready)), moves.eq(table.read_en),
                ]
                with m.If(table.read_en):
                    m.d.sync += flow.eq(table.read_addr)
                with m.If(waiting.o.valid):
                    m.next = "COUNT"
                with m.Elif(self.look.valid & self.look.ready):
                    m.next = "ANSWER"
            with m.State("COUNT"):
                m.d.comb += moves.eq(1)
                m.d.sync += value.eq(table.read_data)
                m.next = "STORE"
            with m.State("STORE"):
                m.d.comb += [moves.eq(1), table.write_en.eq(1)]
                m.next = "REST"
            with m.State("ANSWER"):
                m.d.comb += moves.eq(1)
                m.d.sync += [self.found.payload.eq(table.read_data), self.found.valid.eq(1)]
                m.next = "REST"
        m.d.comb += self.active.eq(moves | waiting.active | (self.found.valid & self.found.ready))
        return m


class PlaceCounts(wiring.Component):
    """The PLACEs of each flow: given, and done.

    Enters: the flow of each PLACE when it is given, and again when it has its bus response, or is refused; flows that
    are asked for. Leaves: both counts of each of these. A look takes 3 cycles if nothing is counted meanwhile.

    Parameters
    ----------
    flows : int
        Flows, a power of two of at least 2.

    Members
    -------
    given, done : streams of flows below `flows`.
    look, found : streams.
    active : see `rtl.interfaces`.
    """

    def __init__(self, *, flows: int):
        self.flows = flows
        super().__init__({
            "given": In(stream.Signature(FLOW_BITS)), "done": In(stream.Signature(FLOW_BITS)),
            "look": In(stream.Signature(FLOW_BITS)), "found": Out(stream.Signature(PlaceCount)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.given_counter = given = FlowCounter(flows=self.flows)
        m.submodules.done_counter = done = FlowCounter(flows=self.flows)
        connect(m, flipped(self.given), given.counts)
        connect(m, flipped(self.done), done.counts)
        m.d.comb += [
            self.look.ready.eq(given.look.ready & done.look.ready),
            given.look.valid.eq(self.look.valid & done.look.ready),
            done.look.valid.eq(self.look.valid & given.look.ready),
            given.look.payload.eq(self.look.payload), done.look.payload.eq(self.look.payload),
            self.found.valid.eq(given.found.valid & done.found.valid),
            self.found.payload.given.eq(given.found.payload), self.found.payload.done.eq(done.found.payload),
            given.found.ready.eq(self.found.ready & done.found.valid),
            done.found.ready.eq(self.found.ready & given.found.valid),
            self.active.eq(given.active | done.active),
        ]
        return m
