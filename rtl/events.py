"""Events: which completions raise which interrupt line, and when."""

from enum import IntEnum

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from nic_model.contract import MAX_MODERATION_FRAMES, NicConfig
from rtl.addresses import channel_of, is_channel_register, is_vector_register, vector_of
from rtl.interfaces import (
    INDEX_BITS,
    TIME_BITS,
    ChannelNumber,
    CountAmount,
    DoorbellWrite,
    RegisterRead,
    RegisterValue,
    RegisterWrite,
    Retired,
    Strobe,
)
from rtl.primitives import SmallRam

FRAMES_BITS = MAX_MODERATION_FRAMES.bit_length()
"""Of VECTOR_xX_FRAMES; a larger value counts as the largest that fits."""

# Deadlines that are compared lie less than 2^32 cycles from each other, the reach of VECTOR_xX_TICKS, so a
# difference modulo 2^34 has their order in its sign, at half the carry chain of 64 bits.
ORDER_BITS = 34


class Task(IntEnum):
    """What the machine works on."""

    CLEAR = 0
    """A channel has started or stopped: neither armed nor fired."""
    SCAN = 1
    """A deadline has come: look at each vector that has one."""
    READ = 2
    """Software reads a vector's statistics."""
    ARM = 3
    RETIRED = 4


class Events(wiring.Component):
    """Arming, moderation, and the interrupt lines.

    Enters: `retired`, completions that the bus has answered; `arm`, the CQ_ARM doorbells. Leaves: `irq`, a level for
    each vector. A channel's first completion after it was armed *fires* it; the completions of fired channels
    are events of their vector, which raise the line at once, by their number or by a deadline in `now`; the line
    falls when all fired channels of the vector are armed again.
    One thing at a time, by a state machine: one completion in 2 cycles, from `retired` to `irq` 4 cycles, an arm in 4.
    When `now` reaches the earliest deadline, the vectors that have one are looked at, 4 cycles each.

    Parameters
    ----------
    config : NicConfig

    Members
    -------
    write, read, value : registers (VECTOR_*, CHANNEL_VECTOR); reads of VECTOR_FIRED, _RX_EVENTS and _TX_EVENTS, one at
        a time.
    now : cycle count of the device.
    start, stop, running : the life of channels. A channel's vector is taken as it starts.
    arm, retired : see above.
    error_irq : level of the error line, of which only the rises are counted here.
    irq : one line for each vector, registered.
    next_deadline, deadline_valid : the block works by itself when `now` is there; it may then find nothing to do.
    count_interrupts : strobe for the counter.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "write": In(Strobe(RegisterWrite)), "read": In(Strobe(RegisterRead)), "value": Out(Strobe(RegisterValue)),
            "now": In(TIME_BITS),
            "start": In(Strobe(ChannelNumber)), "stop": In(Strobe(ChannelNumber)), "running": In(config.channels),
            "arm": In(stream.Signature(DoorbellWrite)), "retired": In(stream.Signature(Retired)),
            "error_irq": In(1), "irq": Out(config.vectors),
            "next_deadline": Out(TIME_BITS), "deadline_valid": Out(1),
            "count_interrupts": Out(Strobe(CountAmount)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        vectors, channels = config.vectors, config.channels
        vector_bits = max(1, exact_log2(vectors))
        depth = 1 << vector_bits

        # What is being worked on. `receive` is the kind of the completion, and half of the address of all that is kept
        # by vector and kind.
        task, channel, vector = Signal(Task), Signal(ceil_log2(channels)), Signal(vector_bits)
        receive, index = Signal(), Signal(INDEX_BITS)
        by_kind = Cat(vector, receive)

        # State of channels.
        armed, fired, to_clear = Signal(channels), Signal(channels), Signal(channels)
        m.submodules.wanted_vectors = wanted_vectors = SmallRam(shape=vector_bits, depth=channels)
        m.submodules.channel_vectors = channel_vectors = SmallRam(shape=vector_bits, depth=channels)
        # The same once more: a completion's vector is known as it is taken.
        m.submodules.retired_vectors = retired_vectors = SmallRam(shape=vector_bits, depth=channels)
        m.submodules.indices = indices = SmallRam(shape=INDEX_BITS, depth=channels)

        # State of vectors. What the memories hold counts only while a bit here says so: `held`, some channel fired and
        # is not armed again (`holders`); `counted`, events since then (`counts`); `timed`, a deadline (`deadlines`).
        raised, masked = Signal(vectors), Signal(vectors, init=-1)
        held, timed, counted = Signal(vectors), Signal(vectors), Signal(2 * depth)
        wants_deadline, timed_vector = Signal(), Signal(vector_bits)
        m.submodules.holders = holders = SmallRam(shape=range(channels + 1), depth=depth)
        m.submodules.counts = counts = SmallRam(shape=FRAMES_BITS, depth=2 * depth)
        m.submodules.deadlines = deadlines = SmallRam(shape=TIME_BITS, depth=depth)
        m.submodules.ticks = ticks = SmallRam(shape=32, depth=2 * depth)
        m.submodules.frames = frames = SmallRam(shape=FRAMES_BITS, depth=2 * depth)
        m.submodules.seen = seen = SmallRam(shape=32, depth=2 * depth)
        m.submodules.rises = rises = SmallRam(shape=32, depth=depth)
        m.d.comb += [
            channel_vectors.read_addr.eq(channel), wanted_vectors.read_addr.eq(channel), indices.read_addr.eq(channel),
            channel_vectors.write_addr.eq(channel), indices.write_addr.eq(channel),
            channel_vectors.write_data.eq(wanted_vectors.read_data),
            retired_vectors.read_addr.eq(self.retired.payload.channel), retired_vectors.write_addr.eq(channel),
            retired_vectors.write_en.eq(channel_vectors.write_en),
            retired_vectors.write_data.eq(wanted_vectors.read_data),
            holders.read_addr.eq(vector), holders.write_addr.eq(vector),
            deadlines.read_addr.eq(vector), deadlines.write_addr.eq(timed_vector),
            counts.read_addr.eq(by_kind), counts.write_addr.eq(by_kind),
            ticks.read_addr.eq(by_kind), frames.read_addr.eq(by_kind),
            seen.read_addr.eq(by_kind), seen.write_addr.eq(by_kind), rises.read_addr.eq(vector),
            rises.write_addr.eq(vector),
        ]
        self._take_registers(m, wanted_vectors, ticks, frames, masked)
        read_pending, read_vector, read_name = self._take_read(m, vector_bits)

        # Copies of the state of what is being worked on.
        was_armed, was_fired, is_behind, is_raised, is_timed, is_first = (Signal(name=n) for n in (
            "was_armed", "was_fired", "is_behind", "is_raised", "is_timed", "is_first"))
        holding = Signal(range(channels + 1))
        count = Signal(FRAMES_BITS)
        ticks_now, frames_now = Signal(32), Signal(FRAMES_BITS)
        deadline, candidate = Signal(TIME_BITS), Signal(TIME_BITS)
        seen_before, rises_before = Signal(32), Signal(32)
        at_once, by_number, by_time, is_due = Signal(), Signal(), Signal(), Signal()

        # The earliest deadline of all, or earlier.
        earliest, has_earliest = self.next_deadline, self.deadline_valid
        scan, found = Signal(vectors), Signal()
        best = Signal(TIME_BITS)
        due_now, due = Signal(), Signal()
        m.d.comb += due_now.eq(has_earliest & (self.now >= earliest))
        m.d.sync += due.eq(due_now)

        clear_next, scan_next = Signal.like(channel), Signal.like(vector)
        for pending, number in ((to_clear, clear_next), (scan, scan_next)):
            for position in reversed(range(len(pending))):
                with m.If(pending[position]):
                    m.d.comb += number.eq(position)

        # Completions and arms alternate when both wait, so that no process can hold up the completions of others.
        arm_was_last, wants_arm = Signal(), Signal()
        m.d.comb += wants_arm.eq(self.arm.valid & ~(self.retired.valid & arm_was_last))

        rise, select, selected = Signal(), Signal(), Signal()
        m.d.comb += selected.eq(
            select & (to_clear.any() | due | read_pending | self.arm.valid | self.retired.valid))

        with m.If(select):
            with m.If(to_clear.any()):
                m.d.sync += [task.eq(Task.CLEAR), channel.eq(clear_next), to_clear.bit_select(clear_next, 1).eq(0)]
            with m.Elif(due):
                m.d.sync += task.eq(Task.SCAN)
            with m.Elif(read_pending):
                m.d.sync += [task.eq(Task.READ), vector.eq(read_vector), receive.eq(read_name == _RX_EVENTS),
                             read_pending.eq(0)]
            with m.Elif(wants_arm):
                m.d.comb += self.arm.ready.eq(1)
                m.d.sync += [task.eq(Task.ARM), channel.eq(self.arm.payload.channel), index.eq(self.arm.payload.index),
                             arm_was_last.eq(1)]
            with m.Elif(self.retired.valid):
                m.d.comb += self.retired.ready.eq(1)
                m.d.sync += [
                    task.eq(Task.RETIRED), channel.eq(self.retired.payload.channel),
                    index.eq(self.retired.payload.index), receive.eq(self.retired.payload.receive),
                    vector.eq(retired_vectors.read_data), arm_was_last.eq(0),
                ]
        # Strobes come when they like.
        for strobe in (self.start, self.stop):
            with m.If(strobe.valid):
                m.d.sync += to_clear.bit_select(strobe.payload.channel, 1).eq(1)

        def go_on():
            """Take the next task in this cycle, or wait for one."""
            m.d.comb += select.eq(1)
            with m.If(to_clear.any()):
                m.next = "channel"
            with m.Elif(due):
                m.next = "scan_begin"
            with m.Elif(read_pending):
                m.next = "vector"
            with m.Elif(wants_arm):
                m.next = "channel"
            with m.Elif(self.retired.valid):
                m.next = "vector"
            with m.Else():
                m.next = "wait"

        def fire(holders_before):
            """The channel fires: one more holds its vector."""
            m.d.comb += [holders.write_en.eq(1), holders.write_data.eq(holders_before + 1)]
            m.d.sync += [fired.bit_select(channel, 1).eq(1), held.bit_select(vector, 1).eq(1)]

        def raise_line(is_up):
            """The line is up; nothing of its vector waits any more."""
            m.d.sync += [raised.bit_select(vector, 1).eq(1), timed.bit_select(vector, 1).eq(0)]
            m.d.comb += [rise.eq(~is_up), rises.write_en.eq(~is_up)]

        def let_go():
            """One channel holds its vector no longer; with the last one the line falls and its counts are void."""
            m.d.comb += [holders.write_en.eq(1), holders.write_data.eq(holding - 1)]
            m.d.sync += [fired.bit_select(channel, 1).eq(0), holding.eq(holding - 1)]
            with m.If(holding == 1):
                m.d.sync += [
                    held.bit_select(vector, 1).eq(0), raised.bit_select(vector, 1).eq(0), is_raised.eq(0),
                    timed.bit_select(vector, 1).eq(0), counted.bit_select(Cat(vector, 0), 1).eq(0),
                    counted.bit_select(Cat(vector, 1), 1).eq(0),
                ]

        # A completion that sets its vector's deadline does so while the next one is looked at.
        m.d.sync += wants_deadline.eq(0)
        with m.If(wants_deadline):
            m.d.sync += timed.bit_select(timed_vector, 1).eq(1)
            with m.If(~is_timed | _is_before(candidate, deadline)):
                m.d.comb += deadlines.write_en.eq(1)
            with m.If(~has_earliest | _is_before(candidate, earliest)):
                m.d.sync += [earliest.eq(candidate), has_earliest.eq(1)]

        m.d.comb += [
            indices.write_data.eq(index), counts.write_data.eq(count), deadlines.write_data.eq(candidate),
            seen.write_data.eq(seen_before + 1), rises.write_data.eq(rises_before + 1),
        ]
        with m.FSM(init="wait", name="machine") as machine:
            with m.State("wait"):
                go_on()
            with m.State("channel"):
                m.d.sync += [vector.eq(channel_vectors.read_data), is_behind.eq(indices.read_data != index)]
                m.next = "vector"
                with m.If((task == Task.ARM) & ~self.running.bit_select(channel, 1)):
                    m.next = "wait"
            with m.State("vector"):
                m.d.sync += [
                    was_armed.eq(armed.bit_select(channel, 1)), was_fired.eq(fired.bit_select(channel, 1)),
                    holding.eq(Mux(held.bit_select(vector, 1), holders.read_data, 0)),
                    count.eq(Mux(counted.bit_select(by_kind, 1), counts.read_data, 0) + 1),
                    is_first.eq(~counted.bit_select(by_kind, 1)), is_raised.eq(raised.bit_select(vector, 1)),
                    ticks_now.eq(ticks.read_data), frames_now.eq(frames.read_data),
                    by_time.eq(ticks.read_data.any()), by_number.eq(frames.read_data.any()),
                    at_once.eq(~ticks.read_data.any() & ~frames.read_data.any()),
                    seen_before.eq(seen.read_data), rises_before.eq(rises.read_data),
                ]
                with m.Switch(task):
                    with m.Case(Task.CLEAR, Task.ARM):
                        m.next = "release"
                    with m.Case(Task.SCAN):
                        m.d.sync += deadline.eq(deadlines.read_data)
                        m.next = "decide"
                    with m.Case(Task.READ):
                        m.next = "answer"
                    with m.Default():
                        m.next = "retire"

            with m.State("retire"):
                is_enough = at_once | (by_number & (count >= frames_now))
                m.d.comb += [seen.write_en.eq(1), indices.write_en.eq(1)]
                m.d.sync += [
                    timed_vector.eq(vector), candidate.eq(self.now + ticks_now), deadline.eq(deadlines.read_data),
                    is_timed.eq(timed.bit_select(vector, 1)),
                ]
                with m.If(was_armed):
                    m.d.sync += armed.bit_select(channel, 1).eq(0)
                    fire(holding)
                with m.If((was_armed | was_fired) & ~is_raised):
                    m.d.comb += counts.write_en.eq(1)
                    m.d.sync += counted.bit_select(by_kind, 1).eq(1)
                    with m.If(is_enough):
                        raise_line(is_raised)
                    with m.Else():
                        m.d.sync += wants_deadline.eq(is_first & by_time)
                go_on()

            with m.State("release"):
                m.d.sync += armed.bit_select(channel, 1).eq(0)
                with m.If(was_fired):
                    let_go()
                with m.If(task == Task.ARM):
                    m.next = "rearm"
                with m.Else():
                    # The next completion may be one of this channel, and looks its vector up as it is taken.
                    m.d.comb += [indices.write_en.eq(1), indices.write_data.eq(0), channel_vectors.write_en.eq(1)]
                    m.next = "wait"
            with m.State("rearm"):
                with m.If(is_behind):
                    fire(holding)
                    raise_line(is_raised)
                with m.Else():
                    m.d.sync += armed.bit_select(channel, 1).eq(1)
                go_on()

            with m.State("scan_begin"):
                # A deadline that is being set counts too.
                m.d.sync += [scan.eq(timed), found.eq(0)]
                with m.If(~wants_deadline):
                    m.next = "scan"
            with m.State("scan"):
                m.d.sync += [vector.eq(scan_next), scan.bit_select(scan_next, 1).eq(0)]
                m.next = "vector"
                with m.If(~scan.any()):
                    m.d.sync += [earliest.eq(best), has_earliest.eq(found), due.eq(0)]
                    m.next = "wait"
            with m.State("decide"):
                m.d.sync += is_due.eq(~_is_before(self.now, deadline))
                m.next = "scan_one"
            with m.State("scan_one"):
                with m.If(is_due):
                    raise_line(is_raised)
                with m.Elif(~found | _is_before(deadline, best)):
                    m.d.sync += [best.eq(deadline), found.eq(1)]
                m.next = "scan"

            with m.State("answer"):
                m.d.sync += self.value.payload.data.eq(Mux(read_name == _FIRED, rises_before, seen_before))
                go_on()
            answering = machine.ongoing("answer")

        m.d.sync += self.value.valid.eq(answering)
        error_was_up = Signal()
        m.d.sync += error_was_up.eq(self.error_irq)
        rises_now = Signal(2)
        m.d.comb += rises_now.eq(rise + (self.error_irq & ~error_was_up))
        m.d.sync += self.count_interrupts.valid.eq(rises_now != 0)
        with m.If(rises_now != 0):
            m.d.sync += self.count_interrupts.payload.amount.eq(rises_now)
        lines = Signal(vectors)
        m.d.comb += lines.eq(raised & ~masked)
        m.d.sync += self.irq.eq(lines)

        m.d.comb += self.active.eq(
            ~machine.ongoing("wait") | selected | wants_deadline | due_now | due | (lines != self.irq)
            | self.write.valid | self.read.valid | self.start.valid | self.stop.valid
            | (self.error_irq != error_was_up) | self.value.valid | self.count_interrupts.valid)
        return m

    def _take_registers(self, m, wanted_vectors, ticks, frames, masked):
        """Keep what software writes."""
        config, write = self.config, self.write.payload

        def writes(name):
            return self.write.valid & is_vector_register(config, write.address, name)

        m.d.comb += [
            wanted_vectors.write_en.eq(
                self.write.valid & is_channel_register(config, write.address, "CHANNEL_VECTOR")),
            wanted_vectors.write_addr.eq(channel_of(config, write.address)),
            wanted_vectors.write_data.eq(write.data[:exact_log2(config.vectors)]),
            ticks.write_en.eq(writes("VECTOR_RX_TICKS") | writes("VECTOR_TX_TICKS")),
            frames.write_en.eq(writes("VECTOR_RX_FRAMES") | writes("VECTOR_TX_FRAMES")),
            ticks.write_data.eq(write.data),
            frames.write_data.eq(Mux(write.data[FRAMES_BITS:].any(), MAX_MODERATION_FRAMES, write.data)),
        ]
        vector = vector_of(config, write.address)
        half = len(ticks.write_addr) - 1
        for table in (ticks, frames):
            m.d.comb += [
                table.write_addr[:half].eq(vector),
                table.write_addr[half].eq(writes("VECTOR_RX_TICKS") | writes("VECTOR_RX_FRAMES")),
            ]
        with m.If(writes("VECTOR_MASK")):
            m.d.sync += masked.bit_select(vector, 1).eq(write.data[0])

    def _take_read(self, m, vector_bits):
        """Keep a read until the machine has time for it: whether there is one, its vector, which register."""
        config, address = self.config, self.read.payload.address
        pending, vector, name = Signal(name="read_pending"), Signal(vector_bits, name="read_vector"), Signal(2)
        with m.If(self.read.valid):
            m.d.sync += [pending.eq(1), vector.eq(vector_of(config, address)), name.eq(_FIRED)]
            with m.If(is_vector_register(config, address, "VECTOR_RX_EVENTS")):
                m.d.sync += name.eq(_RX_EVENTS)
            with m.If(is_vector_register(config, address, "VECTOR_TX_EVENTS")):
                m.d.sync += name.eq(_TX_EVENTS)
        return pending, vector, name


_FIRED, _RX_EVENTS, _TX_EVENTS = range(3)


def _is_before(one, other):
    """1 if the cycle count `one` is before `other`; both lie less than 2^33 cycles apart."""
    return (one[:ORDER_BITS] - other[:ORDER_BITS])[ORDER_BITS - 1]
