"""Where received frames wait, whole, until their place in host memory is known."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from nic_model.contract import NicConfig
from rtl.interfaces import CHANNEL_BITS, TIME_BITS, CountAmount, Strobe, lane_bits
from rtl.parser import CHECKSUM_BITS, INFO_BITS, parsed_row
from rtl.primitives import Ram, StreamFifo

LENGTH_BITS = 14
"""Of a frame that is let in."""

BYTES_PER_ENTRY = 64
"""The buffer has an entry for each so many of its bytes: full of shortest frames, it is full of entries too."""

# A frame in the buffer, as it is offered: `time` is `now` at its first beat.
RxFrame = data.StructLayout({
    "channel": CHANNEL_BITS, "length": LENGTH_BITS, "info": INFO_BITS, "checksum": CHECKSUM_BITS, "time": TIME_BITS,
})


def rx_order(config: NicConfig) -> data.StructLayout:
    """What to do with the buffer's oldest frame of `length` bytes: give its rows, with the lane `at` where they go; or
    `skip`, drop it."""
    return data.StructLayout({"length": LENGTH_BITS, "skip": 1, "at": lane_bits(config)})


def buffered_row(config: NicConfig) -> data.StructLayout:
    """A row of a frame from lane 0 on, and the order's `at`."""
    return data.StructLayout({
        "data": 8 * config.host_bytes, "count": lane_bits(config) + 1, "last": 1, "at": lane_bits(config),
    })


class RxBuffer(wiring.Component):
    """Keeps frames that are let in, and drops the others whole.

    Enters: `row`, parsed rows, one a cycle if need be; `order`, in frame order, for frames that were offered.
    Leaves: `frame`, each frame that is let in, 3 cycles after its last row; `o`, its rows, the first 3 cycles after
    its order, then one a cycle, also from one frame to the next. A skipped frame takes 2 cycles.

    Each frame counts in `count_frames_in`, and if it is dropped, in one of the others, the first that applies.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `rx_buffer_bytes` and `host_bytes` are used.

    Members
    -------
    row : rows of `parsed_row`.
    frame : frames to be ordered.
    order : what to do with them.
    o : rows of frames that were ordered.
    fill : rows in the buffer, those of the frame under way among them.
    count_frames_in, count_bad_frames, count_oversize, count_filtered, count_fifo_full : strobes.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "row": In(Strobe(parsed_row(config))),
            "frame": Out(stream.Signature(RxFrame)),
            "order": In(stream.Signature(rx_order(config))),
            "o": Out(stream.Signature(buffered_row(config))),
            "fill": Out(exact_log2(config.rx_buffer_bytes // config.host_bytes) + 1),
            **{f"count_{name}": Out(Strobe(CountAmount)) for name in
               ("frames_in", "bad_frames", "oversize", "filtered", "fifo_full")},
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        depth = self.config.rx_buffer_bytes // self.config.host_bytes
        address_bits = exact_log2(depth)
        m.submodules.rows = rows = Ram(shape=8 * self.config.host_bytes, depth=depth)
        m.submodules.entries = entries = StreamFifo(
            shape=RxFrame, depth=self.config.rx_buffer_bytes // BYTES_PER_ENTRY)
        connect(m, entries.o, flipped(self.frame))

        # Row numbers, free-running: rows head .. committed-1 are of whole frames, the frame under way ends at tail.
        head, committed, tail = (Signal(address_bits + 1, name=name) for name in ("head", "committed", "tail"))
        fills = self._take_in(m, rows, entries, head, committed, tail)
        reads = self._give_out(m, rows, head)
        m.d.comb += [self.fill.eq(tail - head), self.active.eq(fills | reads | entries.active)]
        return m

    def _take_in(self, m, rows, entries, head, committed, tail):
        """The side of the MAC."""
        row = self.row.payload
        depth_bit = len(head) - 1
        has_room, stores, keeps = Signal(), Signal(), Signal()
        missed, has_missed = Signal(), Signal()  # a row of this frame found no room; so did one before
        behind = Signal.like(tail)
        m.d.comb += [
            has_room.eq((tail ^ head) != 1 << depth_bit),
            missed.eq((has_missed & ~row.first) | (~has_room & row.count.any())),
            stores.eq(self.row.valid & row.count.any() & ~missed),
            behind.eq(tail + stores),
            rows.write_en.eq(stores), rows.write_addr.eq(tail), rows.write_data.eq(row.data),
        ]
        with m.If(self.row.valid):
            m.d.sync += [has_missed.eq(missed), tail.eq(behind)]

        # The first reason counts. Each is a Signal of its own, to be seen in a waveform.
        reasons = {
            "bad_frames": row.bad | row.short,
            "oversize": row.long,
            "filtered": ~row.passes,
            "fifo_full": missed | ~entries.i.ready,
        }
        ends, refused = Signal(), 0
        m.d.comb += ends.eq(self.row.valid & row.last)
        counted = [ends]
        self._count(m, "frames_in", ends)
        for name, reason in reasons.items():
            applies = Signal(name=f"drops_{name}")
            m.d.comb += applies.eq(ends & reason & ~refused)
            refused = refused | reason
            self._count(m, name, applies)
            counted.append(getattr(self, f"count_{name}").valid)
        m.d.comb += [
            keeps.eq(ends & ~refused),
            entries.i.valid.eq(keeps),
            entries.i.payload.channel.eq(row.channel), entries.i.payload.length.eq(row.length),
            entries.i.payload.info.eq(row.info), entries.i.payload.checksum.eq(row.checksum),
            entries.i.payload.time.eq(self._time_of_frame(m)),
        ]
        with m.If(keeps):
            m.d.sync += committed.eq(behind)
        with m.Elif(ends):
            m.d.sync += tail.eq(committed)
        return self.row.valid | Cat(counted).any() | self.count_frames_in.valid

    def _count(self, m, name, event):
        strobe = getattr(self, f"count_{name}")
        m.d.comb += strobe.payload.amount.eq(1)
        m.d.sync += strobe.valid.eq(event)

    def _time_of_frame(self, m):
        """Time of the frame whose row is there: it came with the first."""
        row = self.row.payload
        time = Signal.like(row.time)
        with m.If(self.row.valid & row.first):
            m.d.sync += time.eq(row.time)
        return Mux(row.first, row.time, time)

    def _give_out(self, m, rows, head):
        """The side of the host."""
        lanes = lane_bits(self.config)
        order, o = self.order.payload, self.o.payload
        rows_left = Signal(LENGTH_BITS - lanes + 1)
        last_count = Signal(lanes + 1)
        reading, skipping = Signal(), Signal()
        at = Signal.like(order.at)

        # A row is read into the memory's own register, and moves on into the output's.
        waiting = Signal()
        waiting_row = Signal(data.StructLayout({"count": lanes + 1, "last": 1, "at": lanes}))
        read, advance, leave, is_last, takes_order = Signal(), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            leave.eq(self.o.valid & self.o.ready),
            advance.eq(waiting & (~self.o.valid | self.o.ready)),
            read.eq(reading & (~waiting | advance)),
            is_last.eq(rows_left == 1),
            self.order.ready.eq(~skipping & (~reading | (read & is_last))),
            takes_order.eq(self.order.valid & self.order.ready),
            rows.read_en.eq(read), rows.read_addr.eq(head),
        ]
        with m.If(takes_order):
            tail_bytes = order.length[:lanes]
            m.d.sync += [
                reading.eq(~order.skip), skipping.eq(order.skip), at.eq(order.at),
                rows_left.eq(order.length[lanes:] + tail_bytes.any()),
                last_count.eq(Mux(tail_bytes.any(), tail_bytes, self.config.host_bytes)),
            ]
        with m.Elif(read):
            m.d.sync += [rows_left.eq(rows_left - 1), reading.eq(~is_last)]
        with m.If(skipping):
            m.d.sync += [head.eq(head + rows_left), skipping.eq(0)]
        with m.Elif(read):
            m.d.sync += head.eq(head + 1)
        with m.If(read):
            m.d.sync += [
                waiting.eq(1), waiting_row.last.eq(is_last), waiting_row.at.eq(at),
                waiting_row.count.eq(Mux(is_last, last_count, self.config.host_bytes)),
            ]
        with m.Elif(advance):
            m.d.sync += waiting.eq(0)
        with m.If(advance):
            m.d.sync += [
                o.data.eq(rows.read_data), o.count.eq(waiting_row.count), o.last.eq(waiting_row.last),
                o.at.eq(waiting_row.at), self.o.valid.eq(1),
            ]
        with m.Elif(leave):
            m.d.sync += self.o.valid.eq(0)
        return takes_order | skipping | read | advance | leave
