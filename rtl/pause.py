"""PAUSE frames, honoured and sent, at the MAC's edge of the device."""

# Ref: IEEE 802.3 clause 31 (MAC Control), annex 31B (PAUSE)

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from nic_model.contract import NicConfig, PauseControl, register
from nic_model.contract.protocols import (
    MAC_CONTROL_ADDRESS,
    MIN_FRAME_BYTES,
    PAUSE_FRAME_BYTES,
    PAUSE_OPCODE,
    PAUSE_QUANTUM_BYTES,
    EtherType,
)
from rtl.interfaces import TIME_BITS, CountAmount, RegisterWrite, Strobe, lane_bits, mac_beat

QUANTA_BITS = 16
ADDRESS_BYTES = 6

# What stands behind the addresses of a PAUSE frame: EtherType and opcode.
_TYPE_OFFSET = 2 * ADDRESS_BYTES
_TYPE_AND_OPCODE = EtherType.MAC_CONTROL.to_bytes(2, "big") + PAUSE_OPCODE.to_bytes(2, "big")
_QUANTA_OFFSET = PAUSE_FRAME_BYTES - 2

# A pause_time, as received.
Pause = data.StructLayout({"quanta": QUANTA_BITS})

# Deadlines that are compared lie less than 2^23 cycles from now: 65,535 quanta of 8 cycles each.
REACH_BITS = 26


class OwnAddress(wiring.Component):
    """MAC_ADDRESS_LO and MAC_ADDRESS_HI as software wrote them.

    Members
    -------
    write : register writes.
    address : six bytes, the first on the wire lowest.
    """

    def __init__(self):
        super().__init__({"write": In(Strobe(RegisterWrite)), "address": Out(8 * ADDRESS_BYTES)})

    def elaborate(self, platform):
        m = Module()
        for name, part in (("MAC_ADDRESS_LO", self.address[:32]), ("MAC_ADDRESS_HI", self.address[32:])):
            with m.If(self.write.valid & (self.write.payload.address == register(name))):
                m.d.sync += part.eq(self.write.payload.data)
        return m


class PauseReceive(wiring.Component):
    """Recognises PAUSE frames among the frames from the MAC, beside the receive path.

    Enters: `beat`, each beat that the receive path takes. Leaves: `drop`, in step with a path that holds beats in one
    register first: 1 from the cycle in which that register holds the beat with the frame's opcode until the next
    frame's first beat is there. The frame's first row is not out by then, since a row holds at least 16 bytes.
    `pause`, 2 cycles after the last beat of a frame that came whole and good, whatever RX_ENABLE says.

    A frame with the opcode that comes bad, or ends before its pause_time, is dropped without a `pause`; the receive
    path counts it as bad. MAC Control frames with other opcodes are left to the address filter.

    Parameters
    ----------
    config : NicConfig
        `mac_bytes` is used.

    Members
    -------
    write : register writes, for the own address.
    beat : strobe of `mac_beat`.
    drop : this frame is a PAUSE frame.
    damaged : with `drop`, of the frame's last beat: it is not one to be heeded.
    pause : strobe of Pause.
    count_pause : strobe for the counter.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "write": In(Strobe(RegisterWrite)), "beat": In(Strobe(mac_beat(config))),
            "drop": Out(1), "damaged": Out(1), "pause": Out(Strobe(Pause)),
            "count_pause": Out(Strobe(CountAmount)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.own = own = OwnAddress()
        m.d.comb += [own.write.valid.eq(self.write.valid), own.write.payload.eq(self.write.payload)]
        beat = self.beat.payload
        width = self.config.mac_bytes

        def field(offset, count):
            """Which of the first beats holds these bytes of a frame, and the bytes in it; no field spans two."""
            number, lane = divmod(offset, width)
            assert lane + count <= width
            return number, beat.data[8 * lane:8 * (lane + count)], beat.keep[lane + count - 1]

        # Which beat of the frame is there; counts no further than the quanta.
        quanta_beat, quanta, quanta_there = field(_QUANTA_OFFSET, 2)
        opcode_beat, opcode, opcode_there = field(_TYPE_OFFSET, len(_TYPE_AND_OPCODE))
        number = Signal(range(quanta_beat + 2))

        # Compares on the beat, each into a register of its own; the address comes in the first beat.
        to_group, to_own, is_pause, has_quanta = Signal(), Signal(), Signal(), Signal()
        ended, was_bad = Signal(), Signal()
        found_quanta = Signal(QUANTA_BITS)
        _, destination, _ = field(0, ADDRESS_BYTES)
        group = Const(int.from_bytes(MAC_CONTROL_ADDRESS, "little"), 8 * ADDRESS_BYTES)
        m.d.sync += ended.eq(self.beat.valid & beat.last)
        with m.If(self.beat.valid):
            m.d.sync += was_bad.eq(beat.user)
            with m.If(beat.last):
                m.d.sync += number.eq(0)
            with m.Elif(number != quanta_beat + 1):
                m.d.sync += number.eq(number + 1)
            with m.If(number == 0):
                m.d.sync += [to_group.eq(destination == group), to_own.eq(destination == own.address),
                             is_pause.eq(0), has_quanta.eq(0)]
            with m.If(number == opcode_beat):
                m.d.sync += is_pause.eq((opcode == int.from_bytes(_TYPE_AND_OPCODE, "little")) & opcode_there)
            with m.If(number == quanta_beat):
                m.d.sync += [found_quanta.eq(Cat(quanta[8:], quanta[:8])), has_quanta.eq(quanta_there)]

        # 31B.3.3: a PAUSE frame counts if its destination is the reserved group address or the station's own.
        heeded = Signal()
        m.d.comb += [
            self.drop.eq(is_pause & (to_group | to_own)), self.damaged.eq(was_bad | ~has_quanta),
            heeded.eq(ended & self.drop & ~self.damaged),
            self.count_pause.valid.eq(self.pause.valid), self.count_pause.payload.amount.eq(1),
            self.active.eq(self.beat.valid | ended | self.pause.valid | self.write.valid),
        ]
        m.d.sync += self.pause.valid.eq(heeded)
        with m.If(heeded):
            m.d.sync += self.pause.payload.quanta.eq(found_quanta)
        return m


class PauseTransmit(wiring.Component):
    """The gate before the MAC: stops frames while the peer wants it, and puts PAUSE frames between them.

    Enters: `i`, beats of frames; `pause`, what the peer wants; `fill`, how full the receive buffer is. Leaves: `o`,
    those beats in the same cycle, and PAUSE frames: at once if no frame is under way, and before waiting ones. A frame
    that was offered goes on. Throughput one beat a cycle.

    A pause is counted from `pause` on, in beats of the MAC's stream; it holds from 2 cycles later, and a frame
    may begin in the cycle behind its deadline. A further one takes
    its place; one of 0 ends it. The peer is told to stop when the buffer reaches PAUSE_HIGH, again whenever half of
    PAUSE_QUANTA is over, and to go on when it is below PAUSE_LOW.

    Parameters
    ----------
    config : NicConfig
        `mac_bytes`, `host_bytes` and `rx_buffer_bytes` are used.

    Members
    -------
    write : register writes.
    i, o : AXI-Stream of frames.
    pause : strobe of Pause.
    fill : rows that the receive buffer holds.
    now : the device's cycle count.
    pause_active : no frame begins, since the peer wants it so.
    pause_request : the receive buffer is full; for a MAC that sends PAUSE frames itself, whatever PAUSE_CONTROL says.
    next_deadline, deadline_valid : the block does something by itself when `now` is there.
    count_tx_pause : strobe for the counter.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        self.fill_bits = exact_log2(config.rx_buffer_bytes // config.host_bytes) + 1
        super().__init__({
            "write": In(Strobe(RegisterWrite)),
            "i": In(stream.Signature(mac_beat(config))), "o": Out(stream.Signature(mac_beat(config))),
            "pause": In(Strobe(Pause)), "fill": In(self.fill_bits), "now": In(TIME_BITS),
            "pause_active": Out(1), "pause_request": Out(1),
            "next_deadline": Out(TIME_BITS), "deadline_valid": Out(1),
            "count_tx_pause": Out(Strobe(CountAmount)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.own = own = OwnAddress()
        m.d.comb += [own.write.valid.eq(self.write.valid), own.write.payload.eq(self.write.payload)]

        honour, send = Signal(), Signal()
        quanta = Signal(QUANTA_BITS, init=0xFFFF)
        high = Signal(self.fill_bits, init=config.pause_high_bytes // config.host_bytes)
        low = Signal(self.fill_bits, init=config.pause_low_bytes // config.host_bytes)
        has_quanta = Signal(init=1)  # not 0
        self._take_registers(m, honour, send, quanta, has_quanta, high, low)

        # The peer's wish. 31B.3.2, 31B.3.3: while the pause timer runs no data frame begins, but one that began is not
        # cut off, and MAC Control frames are not held back; a further PAUSE sets the timer anew.
        m.submodules.pausing = pausing = Timer(config)
        paused = self.pause_active
        m.d.comb += [
            pausing.now.eq(self.now), paused.eq(pausing.running),
            pausing.set.valid.eq(self.pause.valid & honour), pausing.set.payload.quanta.eq(self.pause.payload.quanta),
            pausing.stop.eq(~honour),
        ]

        # The own buffer, and what the peer knows of it.
        m.submodules.refresh = refresh = Timer(config)
        full, wanted, told, pending = self.pause_request, Signal(), Signal(), Signal()
        fill, filled = Signal(self.fill_bits), Signal()
        begin, sent = Signal(), Signal()
        sent_quanta = Signal(QUANTA_BITS)
        next_full = Signal()
        m.d.comb += [
            next_full.eq((fill >= high) | (full & (fill >= low))),
            wanted.eq(full & send & has_quanta),
            begin.eq(~pending & ((wanted ^ told) | (wanted & ~refresh.running & ~refresh.loading))),
            refresh.now.eq(self.now),
            refresh.set.valid.eq(sent & told), refresh.set.payload.quanta.eq(sent_quanta >> 1),
            refresh.stop.eq(~told),
        ]
        m.d.sync += [fill.eq(self.fill), full.eq(next_full)]
        m.d.comb += filled.eq((fill != self.fill) | (full != next_full))
        with m.If(begin):
            m.d.sync += [pending.eq(1), told.eq(wanted), sent_quanta.eq(Mux(wanted, quanta, 0))]
        with m.Elif(sent):
            m.d.sync += pending.eq(0)

        # The gate. `busy`: a frame is under way, or was offered and must not be withdrawn.
        width = config.mac_bytes
        beats = -(-MIN_FRAME_BYTES // width)
        busy, next_busy, passes, sends = Signal(), Signal(), Signal(), Signal()
        number = Signal(range(max(beats, 2)))
        frame = Signal(8 * width * beats)
        i, o = self.i, self.o
        is_last, moves = Signal(), Signal()
        m.d.comb += [
            passes.eq(busy | ~(paused | pending)), sends.eq(pending & ~busy),
            o.valid.eq(sends | (i.valid & passes)), i.ready.eq(o.ready & passes),
            o.payload.eq(i.payload), is_last.eq(number == beats - 1), moves.eq(o.valid & o.ready),
            sent.eq(sends & o.ready & is_last),
            next_busy.eq(Mux(i.valid & passes, ~(o.ready & i.payload.last), busy)),
            # 31B.2 and 31.4.1: group address, own address, EtherType, opcode, pause_time, zeros up to minFrameSize.
            frame.eq(Cat(
                Const(int.from_bytes(MAC_CONTROL_ADDRESS, "little"), 8 * ADDRESS_BYTES), own.address,
                Const(int.from_bytes(_TYPE_AND_OPCODE, "little"), 32), sent_quanta[8:], sent_quanta[:8])),
        ]
        m.d.sync += busy.eq(next_busy)
        with m.If(sends):
            m.d.comb += [
                o.payload.data.eq(frame.word_select(number, 8 * width)), o.payload.last.eq(is_last),
                o.payload.keep.eq(Mux(is_last, (1 << MIN_FRAME_BYTES - width * (beats - 1)) - 1, (1 << width) - 1)),
                o.payload.user.eq(0),
            ]
            with m.If(o.ready):
                m.d.sync += number.eq(Mux(is_last, 0, number + 1))
        m.d.sync += self.count_tx_pause.valid.eq(sent)
        m.d.comb += self.count_tx_pause.payload.amount.eq(1)

        # Each compares with `now` when it has come, so the earlier of both is the next.
        pause_first = Signal()
        m.d.comb += [
            pause_first.eq(pausing.running & (~refresh.running | is_before(pausing.deadline, refresh.deadline))),
            self.next_deadline.eq(Mux(pause_first, pausing.deadline, refresh.deadline)),
            self.deadline_valid.eq(pausing.running | refresh.running),
            self.active.eq(
                moves | (busy != next_busy) | begin | filled | self.count_tx_pause.valid | self.write.valid
                | pausing.active | refresh.active),
        ]
        return m

    def _take_registers(self, m, honour, send, quanta, has_quanta, high, low):
        """Keep what software writes."""
        write, lanes = self.write.payload, lane_bits(self.config)
        with m.If(self.write.valid):
            with m.Switch(write.address):
                with m.Case(register("PAUSE_CONTROL")):
                    m.d.sync += [honour.eq((write.data & PauseControl.HONOUR) != 0),
                                 send.eq((write.data & PauseControl.SEND) != 0)]
                with m.Case(register("PAUSE_QUANTA")):
                    m.d.sync += [quanta.eq(write.data), has_quanta.eq(write.data[:QUANTA_BITS].any())]
                for name, mark in (("PAUSE_HIGH", high), ("PAUSE_LOW", low)):
                    with m.Case(register(name)):
                        # more than the buffer has is never reached
                        beyond = write.data[lanes + self.fill_bits:].any()
                        m.d.sync += mark.eq(Mux(beyond, -1, write.data[lanes:]))


class Timer(wiring.Component):
    """A deadline, so many quanta after it was set.

    Enters: `set`, at any time. Leaves: `running`, from 2 cycles later until `now` is the deadline; a further `set`
    moves it, one of 0 quanta ends it.

    Parameters
    ----------
    config : NicConfig
        `mac_bytes` is used: it makes the cycles of a quantum.

    Members
    -------
    set : strobe of Pause.
    stop : level; the timer does not run.
    now : cycle count.
    running, deadline : see above.
    loading : set, and not running yet.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "set": In(Strobe(Pause)), "stop": In(1), "now": In(TIME_BITS),
            "running": Out(1), "deadline": Out(TIME_BITS), "loading": Out(1), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        shift = exact_log2(PAUSE_QUANTUM_BYTES // self.config.mac_bytes)
        half = TIME_BITS // 2
        low, high, starts = Signal(half + 1), Signal(half), Signal()
        ends = Signal()
        m.d.comb += ends.eq(self.running & ~is_before(self.now, self.deadline))
        # The sum in two steps: a carry chain of 64 bits would be the longest path here.
        m.d.sync += self.loading.eq(self.set.valid)
        with m.If(self.set.valid):
            m.d.sync += [low.eq(self.now[:half] + (self.set.payload.quanta << shift)), high.eq(self.now[half:]),
                         starts.eq(self.set.payload.quanta.any())]
        with m.If(self.loading):
            m.d.sync += [self.deadline.eq(Cat(low[:half], high + low[half])), self.running.eq(starts)]
        with m.Elif(ends):
            m.d.sync += self.running.eq(0)
        with m.If(self.stop):
            m.d.sync += self.running.eq(0)
        m.d.comb += self.active.eq(self.set.valid | self.loading | ends | (self.stop & self.running))
        return m


def is_before(one, other):
    """1 if the cycle count `one` is before `other`; both lie less than 2^25 cycles apart."""
    return (one[:REACH_BITS] - other[:REACH_BITS])[REACH_BITS - 1]
