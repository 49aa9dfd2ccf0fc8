"""DONE messages of the release stream's orders."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import NicConfig
from nic_model.contract.control import CONTROL_VERSION, DONE, TIME_SHIFT, ControlType, DoneStatus
from rtl.control_messages import MessageWriter, message_beat
from rtl.control_place import DoneToken
from rtl.interfaces import TIME_BITS, CountAmount, Strobe, contract_view
from rtl.primitives import StreamArbiter

Done = contract_view(DONE)


class ReleaseDones(wiring.Component):
    """Makes a message of each order of the release stream that is done and has to be answered.

    Enters: `place`, of orders about handles, `complete`, of COMPLETEs, and `other`, of all others. Leaves: `o`, a DONE
    of each, in the order of each source. Latency 2 cycles; a DONE in as many cycles as a unit has beats.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` is used.

    Members
    -------
    place, complete, other : see above.
    now : cycle count.
    o : beats of messages.
    count_stale, count_refused : strobes, orders that were refused or failed, likewise.
    """

    SOURCES = ("place", "complete", "other")

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            **{name: In(stream.Signature(DoneToken)) for name in self.SOURCES}, "now": In(TIME_BITS),
            "o": Out(stream.Signature(message_beat(config))),
            "count_stale": Out(Strobe(CountAmount)), "count_refused": Out(Strobe(CountAmount)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.arbiter = arbiter = StreamArbiter(shape=DoneToken, count=len(self.SOURCES))
        m.submodules.writer = writer = MessageWriter(self.config)
        for source, i in zip(self.SOURCES, arbiter.i, strict=True):
            connect(m, flipped(getattr(self, source)), i)
        connect(m, writer.o, flipped(self.o))
        token, unit = arbiter.o.payload, writer.i.payload
        message = Done(unit.data)
        time, is_new = Signal(32), Signal(init=1)
        # The time is that of the first beat, and stands still with it.
        with m.If(arbiter.o.valid & is_new):
            m.d.sync += [time.eq(self.now[TIME_SHIFT:]), is_new.eq(0)]
        with m.If(writer.i.valid & writer.i.ready):
            m.d.sync += is_new.eq(1)
        m.d.comb += [
            writer.i.valid.eq(arbiter.o.valid & ~is_new), arbiter.o.ready.eq(writer.i.ready & ~is_new),
            unit.first.eq(1), unit.last.eq(1),
            message.type.eq(ControlType.DONE), message.units.eq(1), message.version.eq(CONTROL_VERSION),
            *(message[name].eq(token[name]) for name in ("flow", "generation", "tag", "status", "order", "length")),
            message.time.eq(time),
        ]
        leaves = writer.i.valid & writer.i.ready
        stale, good = token.status == DoneStatus.STALE, token.status == DoneStatus.OK
        for strobe, event in ((self.count_stale, leaves & stale), (self.count_refused, leaves & ~stale & ~good)):
            m.d.sync += strobe.valid.eq(event)
            m.d.comb += strobe.payload.amount.eq(1)
        m.d.comb += self.active.eq(
            arbiter.active | (arbiter.o.valid & is_new) | writer.active
            | self.count_stale.valid | self.count_refused.valid)
        return m
