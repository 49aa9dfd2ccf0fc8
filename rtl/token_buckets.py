"""Rate limits of the channels: until when each must wait for its next frame."""

# Ref: ITU-T I.371 Annex A (virtual scheduling); a token bucket by another name

from amaranth.hdl import Assert, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from nic_model.contract import TX_BYTE_TIME_FRACTION_BITS, NicConfig
from rtl.addresses import channel_of, is_channel_register
from rtl.interfaces import TIME_BITS, RegisterWrite, Strobe
from rtl.primitives import SmallRam, number_of
from rtl.segmenter import SEGMENT_BITS
from rtl.small_fifo import SmallFifo

FRACTION_BITS = TX_BYTE_TIME_FRACTION_BITS
HALF = 32
"""64-bit additions are made in two steps."""

PRODUCT_BITS = SEGMENT_BITS + 32


def sent_frame(config: NicConfig) -> data.StructLayout:
    """A frame that counts against its channel's rate, if it has one: the channel, and as a bit; `length` in bytes."""
    return data.StructLayout({
        "channel": exact_log2(config.channels), "channel_bit": config.channels, "length": SEGMENT_BITS})


class TokenBuckets(wiring.Component):
    """Holds channels back that have sent more than their rate allows.

    Enters: register writes (TX_BYTE_TIME, TX_BURST), and each frame that a channel with a limit sends. Leaves: `held`,
    a bit for each channel: it must not send.

    For each channel there is the cycle at which all that it has sent would be over at its rate. A frame moves it on by
    its length times TX_BYTE_TIME, from `now` if it lies in the past. The channel may send again from TX_BURST cycles
    before it on: so what is not used adds up to TX_BURST at most, and a channel exceeds that by less than a frame.
    A write to TX_BYTE_TIME forgets what was sent.

    A channel is held from its frame on, until 10 cycles later it is found that it may go on, or until `now` is there.
    One frame is worked on at a time; when a channel's time has come, all that wait are looked at, 3 cycles each. Late
    decisions do not lower the rate: the times do not depend on when the frames went.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    write : register writes.
    sent : strobe, a frame; without a bit it does not count.
    held, limited : a bit for each channel: it must not send; it has a rate.
    now : the device's cycle count.
    next_deadline, deadline_valid : the block works by itself when `now` is there; it may then find nothing to do.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        self.channel_bits = exact_log2(config.channels)
        super().__init__({
            "write": In(Strobe(RegisterWrite)), "sent": In(Strobe(sent_frame(config))),
            "held": Out(config.channels), "limited": Out(config.channels),
            "now": In(TIME_BITS), "next_deadline": Out(TIME_BITS), "deadline_valid": Out(1), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        channels = self.config.channels
        written = self.write.payload
        written_channel = channel_of(self.config, written.address)

        def table(name, shape):
            m.submodules[name] = ram = SmallRam(shape=shape, depth=channels)
            return ram

        # What software sets. `forgets`: a new rate.
        byte_times, bursts = table("byte_times", 32), table("bursts", 32)
        forgets, limited, written_bit = Signal(), self.limited, Signal(channels)
        for ram, name in ((byte_times, "TX_BYTE_TIME"), (bursts, "TX_BURST")):
            m.d.comb += [
                ram.write_en.eq(self.write.valid & is_channel_register(self.config, written.address, name)),
                ram.write_addr.eq(written_channel), ram.write_data.eq(written.data),
            ]
        m.d.comb += [forgets.eq(byte_times.write_en), written_bit.eq(1 << written_channel)]
        with m.If(forgets):
            m.d.sync += limited.eq(Mux(written.data == 0, limited & ~written_bit, limited | written_bit))

        # Frames that are to be counted: one of each channel at most, since a channel is held from its frame on. A frame
        # is decided late in a cycle, so that it gets here a cycle later, and only holding the channel does not wait.
        counted = data.StructLayout({"channel": self.channel_bits, "length": SEGMENT_BITS})
        m.submodules.frames = frames = SmallFifo(shape=counted, depth=channels)
        frame, sent = frames.o.payload, self.sent.payload
        sent_bit = Signal(channels)
        arrives, arrived = Signal(), Signal(counted)
        m.d.comb += [
            sent_bit.eq(Mux(self.sent.valid, sent.channel_bit & limited, 0)),
            frames.i.valid.eq(arrives), frames.i.payload.eq(arrived),
        ]
        m.d.sync += [
            arrives.eq(sent_bit.any()), Assert(~arrives | frames.i.ready, "a channel sends though it is held"),
        ]
        with m.If(self.sent.valid):
            m.d.sync += [arrived.channel.eq(sent.channel), arrived.length.eq(sent.length)]

        # For each channel the time at which what it has sent is over (with its fraction), and if it waits (`timed`)
        # until when.
        time = data.StructLayout({"fraction": FRACTION_BITS, "low": HALF, "high": TIME_BITS - HALF})
        ends, deadlines = table("ends", time), table("deadlines", TIME_BITS)
        timed, to_scan, released = Signal(channels), Signal(channels), Signal(channels)
        channel, channel_bit, length = Signal(self.channel_bits), Signal(channels), Signal(SEGMENT_BITS)
        earliest, has_earliest = self.next_deadline, self.deadline_valid

        byte_time, burst, end = Signal(32), Signal(32), Signal(time)
        low_product, high_product = Signal(SEGMENT_BITS + 16), Signal(SEGMENT_BITS + 16)
        product, is_past = Signal(PRODUCT_BITS), Signal()
        low_sum, end_high = Signal(FRACTION_BITS + HALF + 1), Signal(TIME_BITS - HALF)
        low_difference, early = Signal(HALF + 1), Signal(TIME_BITS - HALF + 1)
        deadline, before_start = Signal(TIME_BITS), Signal()
        is_due, is_first = Signal(), Signal()
        best, found = Signal(TIME_BITS), Signal()
        forgotten = Signal()  # the frame that is worked on counts no more
        moves, now_due = Signal(), Signal()
        m.d.comb += [
            now_due.eq(has_earliest & (earliest <= self.now)),
            byte_times.read_addr.eq(frame.channel), bursts.read_addr.eq(frame.channel),
            ends.read_addr.eq(frame.channel), deadlines.read_addr.eq(channel),
            ends.write_addr.eq(Mux(forgets, written_channel, channel)), ends.write_en.eq(forgets),
            ends.write_data.eq(Mux(forgets, 0, Cat(low_sum[:FRACTION_BITS + HALF], end_high))),
            deadlines.write_addr.eq(channel), deadlines.write_data.eq(deadline),
        ]
        # A channel that is held but not timed has one frame here, whose end lets it go on.
        m.d.sync += self.held.eq(
            (self.held | sent_bit) & ~released & ~Mux(forgets, written_bit & timed, 0))
        with m.If(forgets):
            m.d.sync += timed.eq(timed & ~written_bit)
            with m.If(written_channel == channel):
                m.d.sync += forgotten.eq(1)

        with m.FSM(name="buckets"):
            with m.State("REST"):
                m.d.comb += [moves.eq(frames.o.valid | now_due), frames.o.ready.eq(1)]
                with m.If(frames.o.valid):
                    m.d.sync += [
                        channel.eq(frame.channel), channel_bit.eq(1 << frame.channel), length.eq(frame.length),
                        byte_time.eq(byte_times.read_data), burst.eq(bursts.read_data), end.eq(ends.read_data),
                        forgotten.eq(forgets & (written_channel == frame.channel)),
                    ]
                    m.next = "MULTIPLY"
                with m.Elif(now_due):
                    m.d.sync += [to_scan.eq(timed), found.eq(0), has_earliest.eq(0)]
                    m.next = "SCAN"
            with m.State("MULTIPLY"):
                m.d.comb += moves.eq(1)
                m.d.sync += [
                    low_product.eq(length * byte_time[:16]), high_product.eq(length * byte_time[16:]),
                    is_past.eq(Cat(end.low, end.high) < self.now),
                ]
                m.next = "ADD_PRODUCTS"
            with m.State("ADD_PRODUCTS"):
                m.d.comb += moves.eq(1)
                m.d.sync += product.eq(low_product + (high_product << 16))
                with m.If(is_past):
                    m.d.sync += end.eq(Cat(Const(0, FRACTION_BITS), self.now))
                m.next = "ADD_LOW"
            with m.State("ADD_LOW"):
                m.d.comb += moves.eq(1)
                m.d.sync += low_sum.eq(Cat(end.fraction, end.low) + product)
                m.next = "ADD_HIGH"
            with m.State("ADD_HIGH"):
                m.d.comb += moves.eq(1)
                m.d.sync += [
                    end_high.eq(end.high + low_sum[-1]),
                    low_difference.eq(low_sum[FRACTION_BITS:FRACTION_BITS + HALF] - burst),
                ]
                m.next = "SUBTRACT"
            with m.State("SUBTRACT"):
                m.d.comb += [moves.eq(1), early.eq(end_high - low_difference[-1])]
                m.d.sync += [
                    deadline.eq(Cat(low_difference[:HALF], early)), before_start.eq(early[-1]),
                ]
                m.next = "COMPARE"
            with m.State("COMPARE"):
                m.d.comb += moves.eq(1)
                m.d.sync += [
                    is_due.eq(before_start | (deadline <= self.now)),
                    is_first.eq(~has_earliest | (deadline < earliest)),
                ]
                m.next = "STORE"
            with m.State("STORE"):
                # a new rate takes the table's port
                m.d.comb += moves.eq(1)
                with m.If(~forgets):
                    m.d.comb += ends.write_en.eq(~forgotten)
                    with m.If(is_due | forgotten):
                        m.d.comb += released.eq(channel_bit)
                    with m.Else():
                        m.d.comb += deadlines.write_en.eq(1)
                        m.d.sync += timed.eq(timed | channel_bit)
                        with m.If(is_first):
                            m.d.sync += [earliest.eq(deadline), has_earliest.eq(1)]
                    m.next = "REST"
            with m.State("SCAN"):
                # the lowest channel that is still to be looked at
                m.d.comb += moves.eq(1)
                first = to_scan & (~to_scan + 1)
                m.d.sync += [
                    channel_bit.eq(first), to_scan.eq(to_scan & ~first),
                    channel.eq(number_of(first[:channels])),
                ]
                with m.If(to_scan.any()):
                    m.next = "LOOK"
                with m.Else():
                    m.d.sync += [earliest.eq(best), has_earliest.eq(found)]
                    m.next = "REST"
            with m.State("LOOK"):
                m.d.comb += moves.eq(1)
                m.d.sync += [
                    deadline.eq(deadlines.read_data), is_due.eq(deadlines.read_data <= self.now),
                    is_first.eq(~found | (deadlines.read_data < best)),
                ]
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.comb += moves.eq(1)
                with m.If(is_due):
                    m.d.comb += released.eq(channel_bit & timed)
                    m.d.sync += timed.eq(timed & ~channel_bit & ~Mux(forgets, written_bit, 0))
                with m.Elif(is_first & (timed & channel_bit).any()):
                    m.d.sync += [best.eq(deadline), found.eq(1)]
                m.next = "SCAN"

        m.d.comb += self.active.eq(moves | self.write.valid | self.sent.valid | arrives)
        return m
