"""Pushed descriptors: blocks of a doorbell page's push window become descriptors that need no fetch.

The window is written in blocks of 64 bytes; a slot's place in it is its ring index modulo the window's slots. A push
begins in the block whose first slot, or if that is zero whose second, says how many slots the descriptor has; further
blocks must follow in order. Nothing depends on a push: what it carries stands in the ring, and whatever is not complete
is forgotten when the doorbell comes.
"""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from nic_model.contract import (
    MAX_DESCRIPTOR_SLOTS,
    PUSH_BLOCK_BYTES,
    PUSH_WINDOW_BYTES,
    PUSH_WINDOW_SLOTS,
    SUBMISSION_HEAD,
    SUBMISSION_SLOT_BYTES,
    NicConfig,
)
from rtl.descriptor import SLOT_BITS, Slot
from rtl.interfaces import CHANNEL_BITS, PUSH_BUFFERS, Strobe, SubmissionDoorbell, lane_bits
from rtl.primitives import Ram, SkidBuffer, number_of
from rtl.small_fifo import SmallFifo

BUFFER_BITS = exact_log2(PUSH_BUFFERS)
POSITION_BITS = exact_log2(PUSH_WINDOW_SLOTS)
BLOCK_BITS = exact_log2(PUSH_WINDOW_BYTES // PUSH_BLOCK_BYTES)
SLOTS_BITS = MAX_DESCRIPTOR_SLOTS.bit_length()

# A buffer's number.
PushBuffer = data.StructLayout({"buffer": BUFFER_BITS})

# A descriptor of `slots` slots that stands whole in a buffer, the first at `position`.
PushedDescriptor = data.StructLayout({"buffer": BUFFER_BITS, "position": POSITION_BITS, "slots": SLOTS_BITS})


def PushBeat(config: NicConfig) -> data.StructLayout:
    """A beat that was written to a push window: number `beat` of block `block`. `whole`: all its bytes came, and the
    block's beats before it in the same burst."""
    beats = PUSH_BLOCK_BYTES // config.host_bytes
    return data.StructLayout({
        "block": BLOCK_BITS, "beat": exact_log2(beats), "whole": 1, "data": 8 * config.host_bytes,
    })


def PushWrite(config: NicConfig) -> data.StructLayout:
    """A beat for a push buffer; `place` is its offset in the window, in beats."""
    return data.StructLayout({
        "buffer": BUFFER_BITS, "place": exact_log2(PUSH_WINDOW_BYTES) - lane_bits(config),
        "data": 8 * config.host_bytes,
    })


class PushCollector(wiring.Component):
    """Finds out which blocks make a whole descriptor.

    Enters: beats in push windows and doorbells of submission rings, in the order of the host's writes. Leaves: each
    beat with the buffer that it is for, and when all blocks of a descriptor have come, a `SubmissionDoorbell`. Several
    channels may push at a time, their blocks in any mixture, each into a buffer of its own:

    - A whole block that is the next of a push under way continues it.
    - Any other takes the buffer of an unfinished push of its channel, or a free one, or one of an unfinished push of
      another channel, whose push is forgotten; if all are handed over, it is ignored. If it holds a head, a push
      begins with it.
    - A doorbell, and a beat without all its bytes, end an unfinished push of their channel.

    Latency 1 cycle, throughput one beat a cycle.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` is used.

    Members
    -------
    beat : strobe, a beat in the window of `channel`.
    rung : a doorbell of `channel`, in a cycle without a beat.
    channel : see above.
    write : strobe, what is to be kept.
    free : strobe, a buffer that was handed over is free again.
    complete : stream, pushed descriptors. While it is not taken, further ones that are complete are forgotten.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "channel": In(CHANNEL_BITS), "beat": In(Strobe(PushBeat(config))), "rung": In(1),
            "write": Out(Strobe(PushWrite(config))), "free": In(Strobe(PushBuffer)),
            "complete": Out(stream.Signature(SubmissionDoorbell)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        width = self.config.host_bytes
        beat = self.beat.payload

        # A push under way: `first` and `slots` are the descriptor's, `next` is the block that must come next.
        Push = data.StructLayout({
            "channel": CHANNEL_BITS, "next": BLOCK_BITS, "left": BLOCK_BITS, "first": POSITION_BITS,
            "slots": SLOTS_BITS,
        })
        pushes = [Signal(Push, name=f"push_{n}") for n in range(PUSH_BUFFERS)]
        filling, handed = Signal(PUSH_BUFFERS), Signal(PUSH_BUFFERS)

        # Which buffer a block is for is decided at its first beat, and stays.
        beats = PUSH_BLOCK_BYTES // width
        begins, ends = Signal(), Signal()
        own, continued, idle = Signal(PUSH_BUFFERS), Signal(PUSH_BUFFERS), Signal(PUSH_BUFFERS)
        chosen, kept, target = Signal(PUSH_BUFFERS), Signal(PUSH_BUFFERS), Signal(PUSH_BUFFERS)
        continues, kept_continues = Signal(), Signal()
        m.d.comb += [
            begins.eq(beat.beat == 0), ends.eq(beat.beat == beats - 1),
            own.eq(Cat((push.channel == self.channel) & filling[n] for n, push in enumerate(pushes))),
            continued.eq(own & Cat(push.next == beat.block for push in pushes)),
            idle.eq(~filling & ~handed),
            chosen.eq(Mux(own.any(), own, Mux(idle.any(), _first(idle), _first(filling)))),
            target.eq(Mux(begins, chosen, kept)), continues.eq(Mux(begins, continued.any(), kept_continues)),
        ]

        # What its slots say of themselves. It is needed at the block's last beat, so it mostly stands in registers.
        Claim = data.StructLayout({"slots": SLOTS_BITS, "none": 1, "good": 1})
        slots_at = SUBMISSION_HEAD.fields["slots"].offset
        claims = []
        for offset in (0, SUBMISSION_SLOT_BYTES):
            lane = 8 * (offset % width) + slots_at
            byte = beat.data[lane:lane + 8]
            now, before = Signal(Claim, name=f"claim_{offset}"), Signal(Claim, name=f"claim_before_{offset}")
            m.d.comb += [
                now.slots.eq(byte), now.none.eq(byte == 0), now.good.eq((byte != 0) & (byte <= MAX_DESCRIPTOR_SLOTS)),
            ]
            with m.If(self.beat.valid & (beat.beat == offset // width)):
                m.d.sync += before.eq(now)
            claims.append(now if offset // width == beats - 1 else before)
        in_second, claimed, is_head = Signal(), Signal(SLOTS_BITS), Signal()
        m.d.comb += [
            in_second.eq(claims[0].none), claimed.eq(Mux(in_second, claims[1].slots, claims[0].slots)),
            is_head.eq(Mux(in_second, claims[1].good, claims[0].good)),
        ]
        last_target, last_continues = (kept, kept_continues) if beats > 1 else (target, continues)

        pushed, now = Signal(Push), Signal(Push)
        lacks, completes, hands, forgets = Signal(), Signal(), Signal(), Signal()
        m.d.comb += pushed.eq(_selected(last_target, pushes))
        m.d.comb += [
            now.channel.eq(self.channel), now.next.eq(beat.block + 1),
            now.left.eq(Mux(last_continues, pushed.left - 1, (claimed + in_second - 1) >> 1)),
            now.first.eq(Mux(last_continues, pushed.first, Cat(in_second, beat.block))),
            now.slots.eq(Mux(last_continues, pushed.slots, claimed)),
            lacks.eq(Mux(last_continues, pushed.left != 1, claimed + in_second > 2)),
            completes.eq(self.beat.valid & beat.whole & ends & (last_continues | is_head) & last_target.any()),
            hands.eq(completes & ~lacks & (~self.complete.valid | self.complete.ready)),
            forgets.eq(self.rung | (self.beat.valid & ~beat.whole)),
        ]
        with m.If(self.beat.valid):
            m.d.sync += [kept.eq(target), kept_continues.eq(continues)]
            with m.If(begins & ~continues & beat.whole):
                m.d.sync += filling.eq(filling & ~target)
        with m.If(completes):
            m.d.sync += filling.eq(Mux(lacks, filling | last_target, filling & ~last_target))
            for n, push in enumerate(pushes):
                with m.If(last_target[n]):
                    m.d.sync += push.eq(now)
        with m.If(forgets):
            m.d.sync += filling.eq(filling & ~own)

        freed = Signal(PUSH_BUFFERS)
        m.d.comb += freed.eq(Mux(self.free.valid, (1 << self.free.payload.buffer)[:PUSH_BUFFERS], 0))
        m.d.sync += handed.eq((handed & ~freed) | Mux(hands, last_target, 0))
        token, number, last_number = self.complete.payload, Signal(BUFFER_BITS), Signal(BUFFER_BITS)
        m.d.comb += [number.eq(number_of(target)), last_number.eq(number_of(last_target))]
        with m.If(hands):
            m.d.sync += [
                self.complete.valid.eq(1), token.channel.eq(self.channel), token.index.eq(now.first),
                token.pushed.eq(1), token.slots.eq(now.slots), token.buffer.eq(last_number),
            ]
        with m.Elif(self.complete.ready):
            m.d.sync += self.complete.valid.eq(0)

        m.d.sync += self.write.valid.eq(self.beat.valid & beat.whole & target.any())
        with m.If(self.beat.valid):
            m.d.sync += [
                self.write.payload.buffer.eq(number), self.write.payload.place.eq(Cat(beat.beat, beat.block)),
                self.write.payload.data.eq(beat.data),
            ]
        m.d.comb += self.active.eq(
            self.beat.valid | self.rung | self.write.valid | self.free.valid
            | (self.complete.valid & self.complete.ready))
        return m


class PushReader(wiring.Component):
    """Keeps pushed blocks, and gives the slots of pushed descriptors.

    Enters: beats for the buffers, and descriptors that stand there whole. Leaves: the slots of these, in order, and
    each buffer's number when it may be written again. Latency 2 cycles, throughput one slot a cycle.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` is used.

    Members
    -------
    write : strobe, what is to be kept.
    i : strobe, descriptors whose slots are wanted; each has a buffer of its own.
    forgotten : stream, buffers whose descriptor is not wanted.
    o : slots.
    free : strobe, a buffer that is free again.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "write": In(Strobe(PushWrite(config))), "i": In(Strobe(PushedDescriptor)),
            "forgotten": In(stream.Signature(PushBuffer)), "o": Out(stream.Signature(Slot)),
            "free": Out(Strobe(PushBuffer)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        width = self.config.host_bytes
        row_bytes = max(width, SUBMISSION_SLOT_BYTES)
        beats, slots = row_bytes // width, row_bytes // SUBMISSION_SLOT_BYTES
        m.submodules.ram = ram = Ram(shape=8 * row_bytes, depth=PUSH_BUFFERS * PUSH_WINDOW_BYTES // row_bytes,
                                     granularity=8 * width)
        m.submodules.output = output = SkidBuffer(shape=Slot)
        wiring.connect(m, output.o, wiring.flipped(self.o))
        m.submodules.waiting = waiting = SmallFifo(shape=PushedDescriptor, depth=PUSH_BUFFERS)
        write = self.write.payload
        lane = exact_log2(beats)
        m.d.comb += [
            ram.write_en.eq(Mux(self.write.valid, (1 << write.place[:lane])[:beats] if lane else 1, 0)),
            ram.write_addr.eq(Cat(write.place[lane:], write.buffer)), ram.write_data.eq(write.data.replicate(beats)),
        ]

        reading, current, wanted = Signal(), Signal(PushedDescriptor), Signal(PushedDescriptor)
        left, remaining = Signal(SLOTS_BITS), Signal(SLOTS_BITS)
        position, at = Signal(POSITION_BITS), Signal(POSITION_BITS)
        fetched, half = Signal(), Signal(exact_log2(slots))
        fetch, advance, begin, finish = Signal(), Signal(), Signal(), Signal()
        chosen = Mux(waiting.o.valid, waiting.o.payload.as_value(), self.i.payload.as_value())
        m.d.comb += [
            advance.eq(fetched & output.i.ready), output.i.valid.eq(fetched),
            output.i.payload.data.eq(ram.read_data.word_select(half, SLOT_BITS)),
            # a descriptor is read from the cycle in which it comes
            begin.eq((waiting.o.valid | self.i.valid) & ~reading),
            wanted.as_value().eq(Mux(reading, current.as_value(), chosen)),
            at.eq(Mux(reading, position, wanted.position)), remaining.eq(Mux(reading, left, wanted.slots)),
            fetch.eq((reading | begin) & (~fetched | advance)), finish.eq(fetch & (remaining == 1)),
            waiting.o.ready.eq(~reading), waiting.i.payload.eq(self.i.payload),
            waiting.i.valid.eq(self.i.valid & (reading | waiting.o.valid)),
            ram.read_en.eq(fetch), ram.read_addr.eq(Cat(at[exact_log2(slots):], wanted.buffer)),
            self.forgotten.ready.eq(~finish),
        ]
        with m.If(begin):
            m.d.sync += [reading.eq(1), current.eq(wanted), left.eq(remaining), position.eq(at)]
        with m.If(finish):
            m.d.sync += reading.eq(0)
        with m.If(fetch):
            m.d.sync += [fetched.eq(1), position.eq(at + 1), left.eq(remaining - 1), half.eq(at[:exact_log2(slots)])]
        with m.Elif(advance):
            m.d.sync += fetched.eq(0)
        m.d.sync += [
            self.free.valid.eq(finish | self.forgotten.valid),
            self.free.payload.buffer.eq(Mux(finish, wanted.buffer, self.forgotten.payload.buffer)),
        ]
        m.d.comb += self.active.eq(
            self.write.valid | begin | fetch | advance | output.active | waiting.active
            | self.forgotten.valid | self.free.valid)
        return m


def _first(bits):
    """The lowest bit of `bits` that is set, alone."""
    return (bits & (~bits + 1))[:len(bits)]


def _selected(one_hot, values):
    """The value whose bit is set; 0 if none is."""
    found = Mux(one_hot[0], values[0].as_value(), 0)
    for n, value in enumerate(values[1:], 1):
        found = found | Mux(one_hot[n], value.as_value(), 0)
    return found
