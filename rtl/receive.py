"""The receive path: this file connects its blocks, in packet order."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from nic_model.contract import NicConfig
from rtl.arrivals import Arrivals
from rtl.coalescer import Coalescer
from rtl.control_messages import message_beat
from rtl.control_receive import COUNTED, ControlReceive
from rtl.flow_entries import FLOW_BITS, FlowWrite
from rtl.interfaces import (
    TIME_BITS,
    ChannelFault,
    ChannelNumber,
    CountAmount,
    DoorbellWrite,
    IndexReport,
    KeyAnswer,
    KeyRequest,
    ReadCommand,
    RegisterWrite,
    RxDone,
    SocketDone,
    SocketTaken,
    Strobe,
    WriteCommand,
    WriteDone,
    mac_beat,
    read_beat,
    row,
)
from rtl.mac_rx import MacRx
from rtl.parser import Parser
from rtl.pause import Pause, PauseReceive
from rtl.rx_buffer import RxBuffer
from rtl.rx_deliver import RxDeliver
from rtl.rx_gather import RxGather
from rtl.rx_rings import RxRings


def _control_members(config):
    """Ports of a device with a control port: those of `rtl.control_receive.ControlReceive`, prefixed."""
    return {
        "control_release": In(stream.Signature(message_beat(config))),
        "control_up": Out(stream.Signature(message_beat(config))),
        "control_key_request": Out(stream.Signature(KeyRequest)),
        "control_key_answer": In(stream.Signature(KeyAnswer)),
        "control_write_cmd": Out(stream.Signature(WriteCommand)),
        "control_write_row": Out(stream.Signature(row(config))),
        "control_write_done": In(stream.Signature(WriteDone)),
        "control_entry": Out(stream.Signature(FlowWrite)), "control_keeps_key": Out(1),
        "control_socket": Out(stream.Signature(SocketDone)), "control_socket_taken": In(Strobe(SocketTaken)),
        "control_place_over": Out(stream.Signature(FLOW_BITS)),
        **{f"count_control_{name}": Out(Strobe(CountAmount)) for names in COUNTED.values() for name in names},
    }


class Receive(wiring.Component):
    """Frames from the MAC to host memory.

    Enters: `mac`, frames; `doorbell`, posted buffers. Leaves: writes of host memory, and `done`, a token for each
    buffer that was used, when the bus has answered the writes of all of its frame. Every other frame is dropped whole,
    and counted for one reason; but on a device with a control port those that are for it.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    mac : frames; `ready` is always 1.
    write, start, running, doorbell, drain_request, drain_done : the host's registers and the life of a channel.
    ring_cmd, ring_beat : client of the DMA read engine, for receive slots.
    key_request, key_answer : client of the key table.
    write_cmd, write_row, write_done : client of the DMA write engine.
    pause : strobe of `rtl.pause.Pause`, what the peer's pause frames say; they are taken out of the stream.
    fill : rows that the receive buffer holds.
    done, rx_retired : tokens for completion, and their return.
    now : cycle count.
    next_deadline, deadline_valid : when the oldest aggregate ends by its age.
    fault, index, count_rx_... : what the registers and counters are told.
    control_..., count_control_... : on a device with a control port, see `rtl.control_receive.ControlReceive`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "mac": In(stream.Signature(mac_beat(config))),
            "write": In(Strobe(RegisterWrite)),
            "start": In(Strobe(ChannelNumber)),
            "running": In(config.channels),
            "doorbell": In(stream.Signature(DoorbellWrite)),
            "ring_cmd": Out(stream.Signature(ReadCommand)),
            "ring_beat": In(stream.Signature(read_beat(config))),
            "key_request": Out(stream.Signature(KeyRequest)),
            "key_answer": In(stream.Signature(KeyAnswer)),
            "write_cmd": Out(stream.Signature(WriteCommand)),
            "write_row": Out(stream.Signature(row(config))),
            "write_done": In(stream.Signature(WriteDone)),
            "pause": Out(Strobe(Pause)),
            "fill": Out(exact_log2(self.config.rx_buffer_bytes // self.config.host_bytes) + 1),
            "done": Out(stream.Signature(RxDone)),
            "now": In(TIME_BITS),
            "fault": Out(stream.Signature(ChannelFault)),
            "index": Out(Strobe(IndexReport)),
            "rx_retired": In(1),
            "drain_request": In(1),
            "drain_done": Out(1),
            **{f"count_rx_{name}": Out(Strobe(CountAmount)) for name in (
                "frames_in", "frames", "bytes", "filtered", "bad_frames", "oversize", "fifo_full", "no_buffer",
                "errors", "checksum_errors", "steered_rule", "steered_rss", "aggregates", "coalesced", "pause")},
            "next_deadline": Out(TIME_BITS),
            "deadline_valid": Out(1),
            **(_control_members(config) if config.flows else {}),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.mac_rx = mac_rx = MacRx(self.config)
        m.submodules.pause_rx = pause_rx = PauseReceive(self.config)
        m.submodules.parser = parser = Parser(self.config)
        m.submodules.buffer = buffer = RxBuffer(self.config)
        control = ControlReceive(self.config) if self.config.flows else None
        m.submodules.arrivals = arrivals = Arrivals(behind_parser=control.delay if control else 0)
        m.submodules.coalescer = coalescer = Coalescer(self.config)
        m.submodules.rings = rings = RxRings(self.config)
        m.submodules.deliver = deliver = RxDeliver(self.config)
        m.submodules.gather = gather = RxGather(self.config)

        # The frame's rows, whole into the buffer, and out of it when their place is known.
        connect(m, flipped(self.mac), mac_rx.mac)
        m.d.comb += [
            pause_rx.beat.valid.eq(self.mac.valid), pause_rx.beat.payload.eq(self.mac.payload),
            mac_rx.drop.eq(pause_rx.drop), mac_rx.damaged.eq(pause_rx.damaged),
        ]
        connect(m, pause_rx.pause, flipped(self.pause))
        connect(m, mac_rx.row, parser.row)
        filtered = buffer.count_filtered
        if self.config.flows:
            m.submodules.control = control
            filtered = self._take_out(m, control, parser, buffer)
        else:
            connect(m, parser.parsed, buffer.row)
        connect(m, buffer.o, deliver.row)
        connect(m, deliver.write_row, flipped(self.write_row))

        # The frame as an entry: its buffers, their keys, commands, its end.
        connect(m, buffer.frame, coalescer.frame)
        connect(m, coalescer.task, rings.task)
        m.d.comb += [
            buffer.header_read.eq(coalescer.header_read), buffer.header_row.eq(coalescer.header_row),
            coalescer.header_data.eq(buffer.header_data), buffer.header_release.eq(coalescer.header_release),
        ]
        m.d.comb += [
            arrivals.begins.eq(mac_rx.begins), arrivals.ended.eq(buffer.ended), arrivals.offered.eq(buffer.offered),
            coalescer.clear.eq(arrivals.clear), coalescer.clear_time.eq(arrivals.time),
        ]
        connect(m, mac_rx.skipped, arrivals.skipped)
        connect(m, buffer.dropped, arrivals.dropped)
        connect(m, rings.matched, deliver.matched)
        connect(m, deliver.key_request, flipped(self.key_request))
        connect(m, flipped(self.key_answer), deliver.key_answer)
        connect(m, deliver.order, buffer.order)
        connect(m, deliver.write_cmd, flipped(self.write_cmd))
        connect(m, flipped(self.write_done), deliver.write_done)
        connect(m, deliver.part, gather.part)
        connect(m, gather.done, flipped(self.done))

        # Posted buffers.
        connect(m, flipped(self.doorbell), rings.doorbell)
        connect(m, rings.cmd, flipped(self.ring_cmd))
        connect(m, flipped(self.ring_beat), rings.beat)

        # Registers, the life of a channel, reports.
        for block in (mac_rx, pause_rx, parser, coalescer, rings):
            connect(m, flipped(self.write), block.write)
        connect(m, flipped(self.start), rings.start)
        connect(m, rings.fault, flipped(self.fault))
        connect(m, rings.index, flipped(self.index))
        m.d.comb += [
            mac_rx.now.eq(self.now), rings.running.eq(self.running), rings.rx_retired.eq(self.rx_retired),
            rings.drain_request.eq(self.drain_request),
            self.drain_done.eq(rings.drain_done & control.drain_done if control else rings.drain_done),
            self.fill.eq(buffer.fill),
            coalescer.drain_request.eq(self.drain_request), rings.flushed.eq(coalescer.flushed),
            coalescer.now.eq(self.now), self.next_deadline.eq(coalescer.next_deadline),
            self.deadline_valid.eq(coalescer.deadline_valid),
        ]
        for block, names in (
                (parser, ("steered_rule", "steered_rss")),
                (buffer, ("frames_in", "bad_frames", "fifo_full")),
                (deliver, ("frames", "bytes", "no_buffer", "errors", "checksum_errors")),
                (gather, ("aggregates", "coalesced")), (pause_rx, ("pause",))):
            for name in names:
                connect(m, getattr(block, f"count_{name}"), flipped(getattr(self, f"count_rx_{name}")))
        connect(m, filtered, flipped(self.count_rx_filtered))
        # A frame may be too long for any buffer, or for the one that is posted: two frames at one time, if need be.
        oversize = [buffer.count_oversize.valid, deliver.count_oversize.valid]
        m.d.comb += [
            self.count_rx_oversize.valid.eq(Cat(oversize).any()),
            self.count_rx_oversize.payload.amount.eq(sum(oversize)),
            self.active.eq(Cat(block.active for block in (
                mac_rx, pause_rx, parser, buffer, arrivals, coalescer, rings, deliver, gather,
                *([control] if control else []))).any()),
        ]
        return m

    def _take_out(self, m, control, parser, buffer):
        """The frames that are for the control port leave the path behind the parser: the buffer drops them as if the
        filter had not let them in. Those that the port passes on come back there. Returns the strobe of those that the
        filter really did not let in."""
        connect(m, flipped(self.write), control.write)
        connect(m, parser.parsed, control.row)
        connect(m, parser.flow, control.flow)
        connect(m, control.rest, buffer.row)
        connect(m, control.passed, buffer.passed)
        connect(m, control.passed_row, buffer.passed_row)
        for name in ("release", "key_answer", "write_done"):
            connect(m, flipped(getattr(self, f"control_{name}")), getattr(control, name))
        for name in ("up", "key_request", "write_cmd", "write_row", "entry", "socket", "place_over"):
            connect(m, getattr(control, name), flipped(getattr(self, f"control_{name}")))
        connect(m, flipped(self.control_socket_taken), control.socket_taken)
        for name in self.signature.members:
            if name.startswith("count_control_"):
                connect(m, getattr(control, name), flipped(getattr(self, name)))
        filtered, taken = Strobe(CountAmount).create(), Signal(name="was_taken")
        m.d.sync += taken.eq(control.taken)  # the buffer counts in the cycle behind a frame's last row
        m.d.comb += [
            control.drain_request.eq(self.drain_request),
            control.now.eq(self.now),
            self.control_keeps_key.eq(control.keeps_key),
            filtered.valid.eq(buffer.count_filtered.valid & ~taken),
            filtered.payload.amount.eq(buffer.count_filtered.payload.amount),
        ]
        return filtered
