"""The control port's streams, and its send side. Creates blocks and connects them."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import NicConfig, register
from nic_model.contract.control import UNIT_BYTES, ControlEnable, ControlType
from rtl.control_messages import MessageHeader, message_beat
from rtl.control_up import ControlUp
from rtl.emit_front import EmitFront
from rtl.flow_entries import FLOW_BITS, FlowWrite
from rtl.interfaces import TIME_BITS, RegisterWrite, Strobe
from rtl.pause import OwnAddress
from rtl.small_fifo import SmallFifo


class PlaceWatch(wiring.Component):
    """Notes the PLACEs among the messages of the release stream, as they enter.

    Enters: beats. Leaves: the same beats, in the same cycle; the flow of each PLACE whose flow the table may have. A
    message waits while too many flows have not been taken.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    i, o : beats.
    given : stream of flows.
    active : see `rtl.interfaces`.
    """

    NOTED = 8
    """Flows that may wait to be taken."""

    def __init__(self, config: NicConfig):
        self.config = config
        beat = message_beat(config)
        super().__init__({
            "i": In(stream.Signature(beat)), "o": Out(stream.Signature(beat)),
            "given": Out(stream.Signature(FLOW_BITS)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.noted = noted = SmallFifo(shape=FLOW_BITS, depth=self.NOTED)
        connect(m, noted.o, flipped(self.given))
        header = MessageHeader(self.i.payload.data[:MessageHeader.size])
        beats = UNIT_BYTES // self.config.host_bytes
        # Beats of the message that are still to come; 0 between two messages.
        left, passes, first = Signal(range(16 * beats)), Signal(), Signal()
        m.d.comb += [
            first.eq(left == 0), self.o.payload.eq(self.i.payload),
            self.o.valid.eq(self.i.valid & (~first | noted.i.ready)),
            self.i.ready.eq(self.o.ready & (~first | noted.i.ready)), passes.eq(self.i.valid & self.i.ready),
            noted.i.payload.eq(header.flow),
            noted.i.valid.eq(passes & first & (header.type == ControlType.PLACE) & (header.flow < self.config.flows)),
            self.active.eq(passes | noted.active),
        ]
        with m.If(passes & first):
            units = Signal(4)
            m.d.comb += units.eq(header.units + (header.units == 0))
            m.d.sync += left.eq(units * beats - 1)
        with m.Elif(passes):
            m.d.sync += left.eq(left - 1)
        return m


class ControlPort(wiring.Component):
    """What joins the streams of the control port to the send side, beside `rtl.control_receive.ControlReceive`.

    Enters: messages of the release and of the emit stream; messages up of the receive side, and what it learns of
    flows; reports of sends; messages up that socket operations have become. Leaves: the messages of the release stream,
    in the same cycle; all messages up; jobs with what belongs to them.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `flows` is not 0.

    Members
    -------
    release, emit, up : the port's streams, beats of messages.
    receive_release, receive_up, entry, keeps_key, place_over : those of the receive side.
    operation : `TransmitScheduler.operation`.
    write : register writes, for MAC_ADDRESS, CONTROL_ENABLE and DEVICE_RESET.
    drain_request, drain_done : EMITs and RAWs that had begun are over.
    key_request, key_answer, checked, verdict, piece, row, freed, done : see `EmitFront`.
    now, next_deadline, deadline_valid : the device's cycle count, and when the next TICK is due.
    count_control_emits, count_control_stale, count_control_refused : count strobes.
    active : see `rtl.interfaces`.
    """

    SENDS = ("key_request", "key_answer", "checked", "verdict", "piece", "row", "freed", "done", "count_control_emits",
             "count_control_stale", "count_control_refused")
    """Members that are those of `EmitFront`."""

    def __init__(self, config: NicConfig):
        self.config = config
        self._front = EmitFront(config)
        beat = message_beat(config)
        super().__init__({
            "release": In(stream.Signature(beat)), "emit": In(stream.Signature(beat)),
            "up": Out(stream.Signature(beat)),
            "receive_release": Out(stream.Signature(beat)), "receive_up": In(stream.Signature(beat)),
            "entry": In(stream.Signature(FlowWrite)), "keeps_key": In(1),
            "place_over": In(stream.Signature(FLOW_BITS)), "operation": In(stream.Signature(beat)),
            "write": In(Strobe(RegisterWrite)), "drain_request": In(1), "drain_done": Out(1),
            **{name: self._front.signature.members[name] for name in self.SENDS},
            "now": In(TIME_BITS), "next_deadline": Out(TIME_BITS), "deadline_valid": Out(1), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.watch = watch = PlaceWatch(config)
        m.submodules.front = front = self._front
        m.submodules.messages = messages = ControlUp(config, sources=3)
        m.submodules.own = own = OwnAddress()

        # Orders of the release stream; those to send wait behind PLACEs on their way.
        connect(m, flipped(self.release), watch.i)
        connect(m, watch.o, flipped(self.receive_release))
        connect(m, watch.given, front.place_given)
        in_table = self.place_over.payload < config.flows
        m.d.comb += [
            front.place_done.payload.eq(self.place_over.payload),
            front.place_done.valid.eq(self.place_over.valid & in_table),
            self.place_over.ready.eq(front.place_done.ready | ~in_table), front.keeps_key.eq(self.keeps_key),
        ]
        connect(m, flipped(self.entry), front.flow_write)

        # Orders to send.
        connect(m, flipped(self.emit), front.i)
        connect(m, flipped(self.write), own.write)
        for name in self.SENDS:
            ends = flipped(getattr(self, name)), getattr(front, name)
            connect(m, *(ends if self.signature.members[name].flow == In else ends[::-1]))

        # Messages up.
        connect(m, flipped(self.receive_up), messages.i[0])
        connect(m, front.o, messages.i[1])
        connect(m, flipped(self.operation), messages.i[2])
        connect(m, messages.o, flipped(self.up))
        enabled, written = Signal(), self.write.payload
        with m.If(self.write.valid & (written.address == register("CONTROL_ENABLE"))):
            m.d.sync += enabled.eq((written.data & int(ControlEnable.FLOWS)).any())
        with m.If(self.write.valid & (written.address == register("DEVICE_RESET"))):
            m.d.sync += enabled.eq(0)
        m.d.comb += [
            messages.left.eq(front.left), messages.enabled.eq(enabled),
            messages.room.eq(~self.up.valid | self.up.ready), front.source_mac.eq(own.address),
            front.drain_request.eq(self.drain_request), self.drain_done.eq(front.drain_done),
            front.now.eq(self.now), messages.now.eq(self.now),
            self.next_deadline.eq(messages.next_deadline), self.deadline_valid.eq(messages.deadline_valid),
            self.active.eq(self.write.valid | Cat(block.active for block in (watch, front, messages)).any()),
        ]
        return m
