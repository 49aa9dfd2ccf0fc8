"""The AXI4-Lite slave in front of the registers: from five bus channels to one access at a time."""

# Ref: AMBA AXI and ACE Protocol Specification, ARM IHI 0022H, part B (AXI4-Lite)

from enum import IntEnum

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, Signature
from amaranth.utils import exact_log2

from nic_model.contract import REGISTER_SPACE_BYTES

ADDRESS_BITS = exact_log2(REGISTER_SPACE_BYTES)


class Response(IntEnum):
    """RRESP and BRESP."""

    OKAY = 0
    SLVERR = 2


Access = data.StructLayout({"write": 1, "address": ADDRESS_BITS, "data": 32, "strobes": 4})
"""One access; `address` is a byte address, of which the two lowest bits do not count. `data` and `strobes` are for
writes."""

AccessAnswer = data.StructLayout({"data": 32, "error": 1})


class AxiLiteSlave(Signature):
    """AXI4-Lite with 32-bit data, as the master sees it; a slave has it as `In(AxiLiteSlave())`."""

    def __init__(self):
        super().__init__({
            "aw": Out(stream.Signature(data.StructLayout({"addr": ADDRESS_BITS}))),
            "w": Out(stream.Signature(data.StructLayout({"data": 32, "strb": 4}))),
            "b": In(stream.Signature(data.StructLayout({"resp": 2}))),
            "ar": Out(stream.Signature(data.StructLayout({"addr": ADDRESS_BITS}))),
            "r": In(stream.Signature(data.StructLayout({"data": 32, "resp": 2}))),
        })


class AxiLiteAccesses(wiring.Component):
    """One access at a time from an AXI4-Lite bus.

    Enters: AXI4-Lite. Leaves: `request`, held until it is taken; then waits for `answer`, and gives it to the bus
    before the next request. Latency: 2 cycles from the bus to `request`, 1 from `answer` to the bus.

    Accesses keep their order: a read whose address comes while a write is not yet finished, even if only its address or
    only its data has come, waits for that write. So a master must not hold back a write's data until a later read is
    answered.

    Members
    -------
    axil : AXI4-Lite slave.
    request : stream of Access.
    answer : stream of AccessAnswer, one for each request.
    active : see `rtl.interfaces`.
    """

    def __init__(self):
        super().__init__({
            "axil": In(AxiLiteSlave()),
            "request": Out(stream.Signature(Access)),
            "answer": In(stream.Signature(AccessAnswer)),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        axil = self.axil

        write_address, write_data = Signal(ADDRESS_BITS), Signal(data.StructLayout({"data": 32, "strb": 4}))
        read_address = Signal(ADDRESS_BITS)
        has_write_address, has_write_data, has_read = Signal(), Signal(), Signal()
        writes_ahead = Signal(2)  # of the read that waits: the one held, and one that stands behind it on the bus
        write_ends = Signal()

        take_aw, take_w, take_ar = Signal(), Signal(), Signal()
        m.d.comb += [
            axil.aw.ready.eq(~has_write_address), take_aw.eq(axil.aw.valid & axil.aw.ready),
            axil.w.ready.eq(~has_write_data), take_w.eq(axil.w.valid & axil.w.ready),
            axil.ar.ready.eq(~has_read), take_ar.eq(axil.ar.valid & axil.ar.ready),
        ]
        with m.If(take_aw):
            m.d.sync += [write_address.eq(axil.aw.payload.addr), has_write_address.eq(1)]
        with m.If(take_w):
            m.d.sync += [write_data.eq(axil.w.payload), has_write_data.eq(1)]
        with m.If(take_ar):
            held = has_write_address | has_write_data | axil.aw.valid | axil.w.valid
            behind = (has_write_address & axil.aw.valid) | (has_write_data & axil.w.valid)
            m.d.sync += [
                read_address.eq(axil.ar.payload.addr), has_read.eq(1), writes_ahead.eq(held + behind - write_ends),
            ]
        with m.Elif(write_ends & (writes_ahead != 0)):
            m.d.sync += writes_ahead.eq(writes_ahead - 1)

        moves = Signal()
        m.d.comb += self.active.eq(moves | take_aw | take_w | take_ar)

        def ask(write):
            m.d.comb += moves.eq(1)
            m.d.sync += [
                self.request.valid.eq(1), self.request.payload.write.eq(write),
                self.request.payload.address.eq(write_address if write else read_address),
                self.request.payload.data.eq(write_data.data), self.request.payload.strobes.eq(write_data.strb),
            ]
            m.next = "Ask"

        def give_to(channel):
            m.d.sync += [channel.valid.eq(1), channel.payload.resp.eq(
                Mux(self.answer.payload.error, Response.SLVERR, Response.OKAY))]

        with m.FSM(name="access"):
            with m.State("Idle"):
                with m.If(has_read & (writes_ahead == 0)):
                    ask(write=0)
                with m.Elif(has_write_address & has_write_data):
                    ask(write=1)
            with m.State("Ask"):
                with m.If(self.request.ready):
                    m.d.comb += moves.eq(1)
                    m.d.sync += self.request.valid.eq(0)
                    m.next = "Wait"
            with m.State("Wait"):
                m.d.comb += self.answer.ready.eq(1)
                with m.If(self.answer.valid):
                    m.d.comb += moves.eq(1)
                    with m.If(self.request.payload.write):
                        give_to(axil.b)
                        m.d.comb += write_ends.eq(1)
                        m.d.sync += [has_write_address.eq(0), has_write_data.eq(0)]
                    with m.Else():
                        give_to(axil.r)
                        m.d.sync += [axil.r.payload.data.eq(self.answer.payload.data), has_read.eq(0)]
                    m.next = "Give"
            with m.State("Give"):
                with m.If((axil.b.valid & axil.b.ready) | (axil.r.valid & axil.r.ready)):
                    m.d.comb += moves.eq(1)
                    m.d.sync += [axil.b.valid.eq(0), axil.r.valid.eq(0)]
                    m.next = "Idle"
        return m
