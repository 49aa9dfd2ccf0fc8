"""The stream of messages up: all sources in one, with the credits that come back, and TICKs."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import NicConfig
from nic_model.contract.control import CONTROL_VERSION, DONE, NO_FLOW, TICK, TICK_SHIFT, TIME_SHIFT, ControlType
from rtl.control_messages import MessageArbiter, MessageWriter, message_beat
from rtl.interfaces import TIME_BITS, contract_view
from rtl.primitives import SkidBuffer

CREDITS = DONE.fields["emit_credits"]
"""Where they stand in every message up."""

CREDIT_BITS = CREDITS.width

Tick = contract_view(TICK)


class CreditStamp(wiring.Component):
    """Gives credits back to the decider, in whatever message passes.

    Enters: `left`, 1 for each order to send that has left its place; beats of messages. Leaves: the beats, in the first
    of each message all credits that are owed. `half` says that so many are that a TICK should bring them. Latency 1
    cycle, a beat a cycle.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    i, o : beats in, beats out.
    left, half : see above.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        beat = message_beat(config)
        super().__init__({
            "i": In(stream.Signature(beat)), "o": Out(stream.Signature(beat)), "left": In(1), "half": Out(1),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.output = output = SkidBuffer(shape=message_beat(self.config))
        connect(m, output.o, flipped(self.o))
        first, enters, gives = Signal(init=1), Signal(), Signal()
        owed, owed_next = Signal(CREDIT_BITS), Signal(CREDIT_BITS)
        m.d.comb += [
            self.i.ready.eq(output.i.ready), output.i.valid.eq(self.i.valid), enters.eq(self.i.valid & self.i.ready),
            gives.eq(enters & first), output.i.payload.eq(self.i.payload),
            owed_next.eq(Mux(gives, 0, owed) + self.left),
        ]
        with m.If(first):
            m.d.comb += output.i.payload.data[CREDITS.offset:CREDITS.offset + CREDIT_BITS].eq(owed)
        with m.If(enters):
            m.d.sync += first.eq(self.i.payload.last)
        with m.If(gives | self.left):
            m.d.sync += [owed.eq(owed_next), self.half.eq(2 * owed_next >= self.config.emit_credits)]
        self.invariants = [(owed <= self.config.emit_credits, "more credits are owed than there are")]
        m.d.comb += self.active.eq(enters | self.left | output.active)
        return m


class Ticks(wiring.Component):
    """Makes TICK messages.

    Enters: time; whether the port is used at all; whether credits wait for a message. Leaves: a TICK each time bit
    `TICK_SHIFT` of `now` changes while the port is used, unless `room` is 0 then; and one when `asked` becomes 1, or is
    still 1 behind the last.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` is used.

    Members
    -------
    now, next_deadline, deadline_valid : the device's cycle count, and when the next TICK is due.
    enabled, room, asked : levels.
    o : messages.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "now": In(TIME_BITS), "next_deadline": Out(TIME_BITS), "deadline_valid": Out(1),
            "enabled": In(1), "room": In(1), "asked": In(1),
            "o": Out(stream.Signature(message_beat(config))), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.writer = writer = MessageWriter(self.config)
        connect(m, writer.o, flipped(self.o))
        # The period in which the last TICK was made, or which was going on when the port began to be used.
        period, was_enabled, due = Signal(TIME_BITS - TICK_SHIFT), Signal(), Signal()
        waiting, time, epoch = Signal(), Signal(32), Signal(32)
        makes, begins = Signal(), Signal()
        message = Tick(writer.i.payload.data)
        m.d.comb += [
            # time does not run backwards, and never by half a turn of these bits between two looks
            due.eq(self.enabled & was_enabled & (self.now[TICK_SHIFT] != period[0])),
            begins.eq(self.enabled & ~was_enabled),
            makes.eq(~waiting & ((due & self.room) | (self.asked & ~begins))),
            self.deadline_valid.eq(was_enabled & self.enabled),
            self.next_deadline.eq((period + 1) << TICK_SHIFT),
            writer.i.valid.eq(waiting), writer.i.payload.first.eq(1), writer.i.payload.last.eq(1),
            message.type.eq(ControlType.TICK), message.units.eq(1), message.version.eq(CONTROL_VERSION),
            message.flow.eq(NO_FLOW), message.time.eq(time), message.epoch.eq(epoch),
        ]
        m.d.sync += was_enabled.eq(self.enabled)
        with m.If(begins | due):
            m.d.sync += period.eq(self.now[TICK_SHIFT:])
        with m.If(makes):
            m.d.sync += [
                waiting.eq(1), time.eq(self.now[TIME_SHIFT:]), epoch.eq(self.now[TIME_SHIFT + len(time):]),
            ]
        with m.Elif(writer.i.ready):
            m.d.sync += waiting.eq(0)
        m.d.comb += self.active.eq(due | begins | makes | (self.enabled ^ was_enabled) | writer.active)
        return m


class ControlUp(wiring.Component):
    """All messages up in one stream.

    Enters: beats of messages of several sources; orders to send that have left their place; time. Leaves: the messages,
    whole and in turn, each with the credits that are owed; and TICKs, which have a source of their own.

    Latency 2 cycles, a beat a cycle.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.
    sources : int
        Sources, at least 1.

    Members
    -------
    i : sources of messages, `i[0]` .. `i[sources-1]`.
    o : messages up.
    left : see `CreditStamp`.
    enabled, room, now, next_deadline, deadline_valid : see `Ticks`. `room`: whoever takes messages has a place for a
        unit.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig, *, sources: int):
        self.config, self.sources = config, sources
        beat = message_beat(config)
        super().__init__({
            "i": In(stream.Signature(beat)).array(sources), "o": Out(stream.Signature(beat)),
            "left": In(1), "enabled": In(1), "room": In(1), "now": In(TIME_BITS),
            "next_deadline": Out(TIME_BITS), "deadline_valid": Out(1), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.ticks = ticks = Ticks(self.config)
        m.submodules.arbiter = arbiter = MessageArbiter(self.config, count=self.sources + 1)
        m.submodules.stamp = stamp = CreditStamp(self.config)
        for n in range(self.sources):
            connect(m, flipped(self.i[n]), arbiter.i[n])
        connect(m, ticks.o, arbiter.i[self.sources])
        connect(m, arbiter.o, stamp.i)
        connect(m, stamp.o, flipped(self.o))
        others = [i.valid for i in self.i]
        m.d.comb += [
            stamp.left.eq(self.left), ticks.now.eq(self.now), ticks.enabled.eq(self.enabled), ticks.room.eq(self.room),
            # "if half of them are owed and no other message is due"
            ticks.asked.eq(stamp.half & ~arbiter.o.valid & ~sum(others, 0).any()),
            self.next_deadline.eq(ticks.next_deadline), self.deadline_valid.eq(ticks.deadline_valid),
            self.active.eq(ticks.active | arbiter.active | stamp.active),
        ]
        return m
