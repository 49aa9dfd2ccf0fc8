"""The life of the channels: enabling, faults, reset, and the drain that all resets share."""

from enum import Enum

from amaranth.hdl import Assert, Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from nic_model.contract import (
    CHANNEL_STATUS,
    CHANNEL_STRIDE,
    CHANNELS_BASE,
    LARGEST_CQ_LOG2,
    REGISTERS,
    RING_ALIGNMENT_BYTES,
    SMALLEST_RING_LOG2,
    ChannelCommand,
    ChannelError,
    ChannelState,
    NicConfig,
    register,
)
from rtl.interfaces import (
    CHANNEL_BITS,
    REGISTER_BITS,
    ChannelFault,
    ChannelNumber,
    RegisterRead,
    RegisterValue,
    RegisterWrite,
    Strobe,
)
from rtl.primitives import SmallRam, StreamArbiter

LOG2_BITS = LARGEST_CQ_LOG2.bit_length()
FAULT_SOURCES = ("fetch", "receive", "completion")
RINGS = ("TX", "RX", "CQ")

SETTLE_CYCLES = 4
"""Cycles before a drain request, and again before its answer counts: time for the blocks to see that a channel stopped,
and to take back the answer to the request before."""


class _Work(Enum):
    """What the state machine does for one channel."""

    ENABLE = 0
    RESET = 1
    FAULT = 2
    READ = 3


class Channels(wiring.Component):
    """State of each channel, as CHANNEL_STATUS shows it, and everything that changes it.

    Enters: register writes and reads, faults, the blocks' answers to a drain. Leaves: `running`, `start` and `stop`,
    `drain_request`, `error_irq`, register values. One command, fault or read at a time, 3 cycles each (4 to start a
    channel); commands first.

    - ENABLE counts for an IDLE channel only. With good rings: `start`, and `running` rises one cycle later; else ERROR.
    - A fault makes a RUNNING channel an ERROR one: `running` falls, with a `stop`. Otherwise it is ignored.
    - RESET makes a RUNNING or ERROR channel DRAINING (`running` falls, with a `stop`); it becomes IDLE when a drain
      that began after that has ended. DEVICE_RESET resets all channels, one after the other.
    - A drain: `drain_request` rises at least `SETTLE_CYCLES` after `running` fell, and falls when both `drain_done` are
      1 (they count from `SETTLE_CYCLES` after it rose). It serves the resets and the DRAIN write that came before it;
      what comes later waits for the next drain.
    - ERROR_CHANNELS keeps a bit for each channel that became ERROR, until software clears it.

    Reads are answered when all commands before them have taken effect.

    Parameters
    ----------
    config : NicConfig
        Sizes.

    Members
    -------
    write : strobe of RegisterWrite, at least 6 cycles apart where it commands a channel.
    read, value : strobes of RegisterRead and RegisterValue, for the registers of this block.
    fault_fetch, fault_receive, fault_completion : streams of ChannelFault.
    running : a bit for each channel.
    start, stop : strobes of ChannelNumber.
    drain_request, drain_done_tx, drain_done_rx : levels.
    error_irq : the error vector's line.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "write": In(Strobe(RegisterWrite)),
            "read": In(Strobe(RegisterRead)), "value": Out(Strobe(RegisterValue)),
            **{f"fault_{source}": In(stream.Signature(ChannelFault)) for source in FAULT_SOURCES},
            "running": Out(config.channels),
            "start": Out(Strobe(ChannelNumber)), "stop": Out(Strobe(ChannelNumber)),
            "drain_request": Out(1), "drain_done_tx": In(1), "drain_done_rx": In(1),
            "error_irq": Out(1),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        write, count = self.write, self.config.channels

        draining, failed = Signal(count), Signal(count)
        error_channels, masked = Signal(count), Signal(init=REGISTERS["ERROR_MASK"].reset)
        m.submodules.errors = errors = SmallRam(shape=CHANNEL_STATUS.fields["error"].width, depth=count)

        m.submodules.faults = faults = StreamArbiter(shape=ChannelFault, count=len(FAULT_SOURCES))
        for port, source in zip(faults.i, FAULT_SOURCES, strict=True):
            connect(m, flipped(getattr(self, f"fault_{source}")), port)

        # -- what software writes
        subject = Signal(CHANNEL_BITS)
        written_channel = write.payload.address[exact_log2(CHANNEL_STRIDE):]
        written_word = write.payload.address[2:exact_log2(CHANNEL_STRIDE)]
        channel_space = CHANNEL_STRIDE * count
        to_channel = write.valid & (
            write.payload.address >> exact_log2(channel_space) == CHANNELS_BASE // channel_space)

        def to(name):
            return write.valid & (write.payload.address == register(name))

        def to_field(name):
            return to_channel & (written_word == REGISTERS[name].offset // 4)

        ring_checks = self._check_rings(m, to_field, written_channel, subject)
        rings_checked = Signal.like(ring_checks)

        has_command, command_channel, command = Signal(), Signal(CHANNEL_BITS), Signal(_Work)
        for value, work in ((ChannelCommand.ENABLE, _Work.ENABLE), (ChannelCommand.RESET, _Work.RESET)):
            with m.If(to_field("CHANNEL_CONTROL") & (write.payload.data == value)):
                m.d.sync += [has_command.eq(1), command_channel.eq(written_channel), command.eq(work)]
                m.d.sync += Assert(~has_command, "a command comes before the last one could begin")

        drain_asked, drain_served = Signal(), Signal()
        resetting, sweeping, sweep = Signal(), Signal(), Signal(range(count))
        with m.If(to("ERROR_MASK")):
            m.d.sync += masked.eq(write.payload.data[0])
        cleared = Signal(count)
        for half, name in enumerate(("ERROR_CHANNELS_LO", "ERROR_CHANNELS_HI")):
            with m.If(to(name)):
                m.d.comb += cleared[32 * half:32 * half + 32].eq(write.payload.data)

        # -- one channel at a time
        work, code = Signal(_Work), Signal(8)
        read_asked, read_address = Signal(), Signal(REGISTER_BITS)
        with m.If(self.read.valid):
            m.d.sync += [read_asked.eq(1), read_address.eq(self.read.payload.address)]

        bit = Signal(count)
        fail_bit, drain_bit, ended = Signal(count), Signal(count), Signal(count)
        was_running, was_draining, had_failed = Signal(), Signal(), Signal()
        fits, refusal = rings_checked.all(), ChannelError.RING_CONFIG
        if self.config.port_queues:
            reserved = Cat(subject == queue for queue in self.config.port_queues).any()
            fits, refusal = fits & ~reserved, Mux(reserved, ChannelError.RESERVED, refusal)
        state, found_code = (Signal(CHANNEL_STATUS.fields[name].width, name=f"status_{name}")
                             for name in ("state", "error"))
        status = Signal(32)
        for name, value in (("state", state), ("error", found_code)):
            field = CHANNEL_STATUS.fields[name]
            m.d.comb += status[field.offset:field.offset + field.width].eq(value)
        with m.If(was_running):
            m.d.comb += state.eq(ChannelState.RUNNING)
        with m.Elif(was_draining):
            m.d.comb += state.eq(ChannelState.DRAINING)
        with m.Elif(had_failed):
            m.d.comb += state.eq(ChannelState.ERROR)
        moves = Signal()
        m.d.comb += [bit.eq(1 << subject), errors.write_addr.eq(subject), errors.read_addr.eq(subject)]
        m.d.sync += [
            self.start.valid.eq(0), self.stop.valid.eq(0), self.value.valid.eq(0),
            draining.eq((draining & ~ended) | drain_bit),
            error_channels.eq((error_channels & ~cleared) | fail_bit),
        ]

        def begin(channel, what):
            m.d.comb += moves.eq(1)
            m.d.sync += [subject.eq(channel), work.eq(what)]
            m.next = "Look"

        def fail(why):
            m.d.comb += [fail_bit.eq(bit), errors.write_en.eq(1), errors.write_data.eq(why)]
            m.d.sync += failed.eq(failed | bit)

        def stop():
            m.d.sync += [
                self.running.eq(self.running & ~bit), self.stop.valid.eq(1), self.stop.payload.channel.eq(subject),
            ]

        def drain():
            m.d.comb += [drain_bit.eq(bit), errors.write_en.eq(1), errors.write_data.eq(ChannelError.NONE)]
            m.d.sync += failed.eq(failed & ~bit)

        def show(value):
            m.d.sync += [self.value.valid.eq(1), self.value.payload.data.eq(value)]

        with m.FSM(name="life"):
            with m.State("Idle"):
                with m.If(has_command):
                    begin(command_channel, command)
                    m.d.sync += has_command.eq(0)
                with m.Elif(read_asked):
                    begin(read_address[exact_log2(CHANNEL_STRIDE):], _Work.READ)
                    m.d.sync += read_asked.eq(0)
                with m.Elif(faults.o.valid):
                    begin(faults.o.payload.channel, _Work.FAULT)
                    m.d.comb += faults.o.ready.eq(1)
                    m.d.sync += code.eq(faults.o.payload.code)
                with m.Elif(sweeping):
                    begin(sweep, _Work.RESET)
                    m.d.sync += [sweep.eq(sweep + 1), sweeping.eq(sweep != count - 1)]
                with m.Elif(resetting & ~draining.any()):
                    m.d.comb += moves.eq(1)
                    m.d.sync += resetting.eq(0)
            with m.State("Look"):
                m.d.comb += moves.eq(1)
                m.d.sync += [
                    was_running.eq((self.running & bit).any()), was_draining.eq((draining & bit).any()),
                    had_failed.eq((failed & bit).any()), found_code.eq(errors.read_data),
                    rings_checked.eq(ring_checks),
                ]
                m.next = "Act"
            with m.State("Act"):
                m.d.comb += moves.eq(1)
                m.next = "Idle"
                with m.Switch(work):
                    with m.Case(_Work.ENABLE):
                        with m.If(~was_running & ~was_draining & ~had_failed):
                            with m.If(fits):
                                m.d.sync += [self.start.valid.eq(1), self.start.payload.channel.eq(subject)]
                                m.next = "Start"
                            with m.Else():
                                fail(refusal)
                    with m.Case(_Work.RESET):
                        with m.If(was_running):
                            stop()
                        with m.If(was_running | had_failed):
                            drain()
                    with m.Case(_Work.FAULT):
                        with m.If(was_running):
                            stop()
                            fail(code)
                    with m.Case(_Work.READ):
                        with m.Switch(read_address):
                            with m.Case(register("DRAIN")):
                                show(drain_asked | drain_served)
                            with m.Case(register("DEVICE_RESET")):
                                show(resetting)
                            with m.Case(register("ERROR_CHANNELS_LO")):
                                show(error_channels[:32])
                            with m.Case(register("ERROR_CHANNELS_HI")):
                                show(error_channels[32:])
                            with m.Default():
                                show(status)
            with m.State("Start"):
                m.d.comb += moves.eq(1)
                m.d.sync += self.running.eq(self.running | bit)
                m.next = "Idle"

        # -- the drain that all needs share
        serving, settled = Signal(count), Signal(range(SETTLE_CYCLES))
        drain_moves = Signal()

        def settle(then):
            m.d.comb += drain_moves.eq(1)
            m.d.sync += settled.eq(settled + 1)
            with m.If(settled == SETTLE_CYCLES - 1):
                m.d.sync += settled.eq(0)
                m.next = then

        with m.FSM(name="drain"):
            with m.State("Rest"):
                with m.If(draining.any() | drain_asked):
                    m.d.comb += drain_moves.eq(1)
                    m.d.sync += [serving.eq(draining), drain_served.eq(drain_asked), drain_asked.eq(0)]
                    m.next = "Settle"
            with m.State("Settle"):
                settle("Request")
            with m.State("Request"):
                m.d.sync += self.drain_request.eq(1)
                settle("Wait")
            with m.State("Wait"):
                with m.If(self.drain_done_tx & self.drain_done_rx):
                    m.d.comb += [drain_moves.eq(1), ended.eq(serving)]
                    m.d.sync += [self.drain_request.eq(0), drain_served.eq(0)]
                    m.next = "Rest"

        # a write counts behind what the state machines do in the same cycle, so it is not lost
        with m.If(to("DRAIN") & write.payload.data[0]):
            m.d.sync += drain_asked.eq(1)
        with m.If(to("DEVICE_RESET") & write.payload.data[0]):
            m.d.sync += [resetting.eq(1), sweeping.eq(1), sweep.eq(0)]

        wants_irq = Signal()
        m.d.comb += wants_irq.eq(error_channels.any() & ~masked)
        m.d.sync += self.error_irq.eq(wants_irq)
        pulses = self.start.valid | self.stop.valid | self.value.valid
        m.d.comb += self.active.eq(
            write.valid | self.read.valid | moves | pulses | faults.active | drain_moves
            | (wants_irq != self.error_irq))
        return m

    def _check_rings(self, m, to_field, written_channel, subject):
        """Keep of the ring registers what ENABLE checks. Returns the checks of `subject`, a bit each."""
        tables = {}
        for ring in RINGS:
            for field, width in (("BASE_LO", 1), ("LOG2", LOG2_BITS)):
                name = f"{ring}_{field}"
                m.submodules[name.lower()] = tables[name] = table = SmallRam(shape=width, depth=self.config.channels)
                m.d.comb += [
                    table.write_en.eq(to_field(name)), table.write_addr.eq(written_channel),
                    table.read_addr.eq(subject),
                ]
        written = self.write.payload.data
        for ring in RINGS:
            too_large = written[LOG2_BITS:].any()
            m.d.comb += [
                tables[f"{ring}_BASE_LO"].write_data.eq(written[:exact_log2(RING_ALIGNMENT_BYTES)].any()),
                tables[f"{ring}_LOG2"].write_data.eq(written[:LOG2_BITS] | too_large.replicate(LOG2_BITS)),
            ]

        least, most = SMALLEST_RING_LOG2, self.config.max_ring_log2
        tx, rx, cq = (tables[f"{ring}_LOG2"].read_data for ring in RINGS)
        unaligned = Cat(tables[f"{ring}_BASE_LO"].read_data for ring in RINGS)
        # the sum of two powers of two fits a power of two if that is larger than both
        return Cat(~unaligned.any(), (tx >= least) & (tx <= most), (rx >= least) & (rx <= most),
                   cq <= self.config.max_cq_log2, (cq > tx) & (cq > rx))
