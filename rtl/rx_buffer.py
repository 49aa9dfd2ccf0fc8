"""Where received frames wait, whole, until their place in host memory is known."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from nic_model.contract import NicConfig, RxInfo
from nic_model.contract.protocols import IPV4_HEADER_BYTES, IPV6_HEADER_BYTES
from rtl.interfaces import CHANNEL_BITS, TIME_BITS, CountAmount, Strobe, lane_bits, row
from rtl.parser import CHECKSUM_BITS, INFO_BITS, parsed_row
from rtl.primitives import Ram, StreamFifo
from rtl.row_banks import RowBanks

LENGTH_BITS = 14
"""Of a frame that is let in."""

HEADER_BYTES = 128
"""Of a header that is kept: the longest of Ethernet, one tag, IPv6 and TCP with all options has 118."""

HEADER_ROWS = 512
"""Of all headers that are kept: as deep as a block RAM is at these widths."""

ROW_NUMBER_BITS = LENGTH_BITS + 1
"""Of a number of bytes up to the end of the row that holds a longest frame's last."""

BYTES_PER_ENTRY = 64
"""The buffer has an entry for each so many of its bytes: full of shortest frames, it is full of entries too."""

# A frame in the buffer, as it is offered: `time` is `now` at its first beat.
RxFrame = data.StructLayout({
    "channel": CHANNEL_BITS, "length": LENGTH_BITS, "info": INFO_BITS, "checksum": CHECKSUM_BITS, "time": TIME_BITS,
})


def offered_frame(config: NicConfig) -> data.StructLayout:
    """Likewise, with the parser's hash; `header` if its header is kept, and so it may be coalesced. On a device with a
    control port, `passed` if the frame was passed on by that one, and neither is merged nor ends what is."""
    return data.StructLayout({
        **{name: field.shape for name, field in RxFrame}, "hash": 32, "header": 1,
        **({"passed": 1} if config.flows else {}),
    })


def rx_order(config: NicConfig) -> data.StructLayout:
    """What to do with the oldest rows: drop `advance` of them, then give the next `rows`. Of these, bytes count from
    lane `start` on, `first_count` in the first row and up to lane `last_count` in the last, if that is another.
    `shares`: the last row is not done with, the next order begins in it. `at` is the lane where the first byte goes."""
    lanes, rows = lane_bits(config), ROW_NUMBER_BITS - lane_bits(config)
    return data.StructLayout({
        "advance": rows, "rows": rows, "start": lanes, "first_count": lanes + 1, "last_count": lanes + 1, "shares": 1,
        "at": lanes,
    })


def buffered_row(config: NicConfig) -> data.StructLayout:
    """A row of an order: `count` bytes from lane `start` on, and the order's `at`."""
    return data.StructLayout({
        "data": 8 * config.host_bytes, "start": lane_bits(config), "count": lane_bits(config) + 1, "last": 1,
        "at": lane_bits(config),
    })


class RxBuffer(wiring.Component):
    """Keeps frames that are let in, and drops the others whole.

    Enters: `row`, parsed rows, one a cycle if need be; `order`, for rows of frames that were offered: one or more for
    each frame, which together drop or give all its rows.
    Leaves: `frame`, each frame that is let in, 3 cycles after its last row; `o`, the rows of an order, the first 3
    cycles after it, then one a cycle, also from one order to the next. Rows that are dropped take 2 cycles together.

    The headers of TCP segments that may be coalesced are kept a second time: those over IPv4 without options, or IPv6
    without extension headers, no fragments, whose checksums are right. When there is no room for another header, a
    segment comes without.

    On a device with a control port, `passed` also enters: a frame that this one held and passes on, whose rows come at
    `passed_row`. Between two frames of the MAC it gets as many rows of the buffer as it needs, or is dropped. Its rows
    are written in cycles in which none comes from the MAC (or with a MAC as wide as the bus, none to the same half of
    the memory), so the MAC's never wait. Frames that come behind are offered behind it, when all its rows are there.
    It is offered as one that arrived when it did, and counts in no counter here but, if dropped, `count_fifo_full`.

    A row has room if two were free a cycle before: so the compare is not on its way, and the last row may stay free.

    Each frame counts in `count_frames_in`, and if it is dropped, in one of the others, the first that applies.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `rx_buffer_bytes` and `host_bytes` are used.

    Members
    -------
    row : rows of `parsed_row`.
    frame : frames to be ordered.
    header_read, header_row, header_data, header_release : reads a row of the headers that are kept, there one cycle
        later; the oldest of them is done with.
    order : what to do with them.
    passed, passed_row : of a device with a control port; a frame's rows begin to come whatever becomes of it before,
        and then do not wait for anything else.
    o : rows of frames that were ordered.
    fill : rows in the buffer, those of the frame under way among them.
    ended, dropped, offered : see `rtl.arrivals.Arrivals`.
    count_frames_in, count_bad_frames, count_oversize, count_filtered, count_fifo_full : strobes.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "row": In(Strobe(parsed_row(config))),
            "frame": Out(stream.Signature(offered_frame(config))),
            "header_read": In(1), "header_row": In(exact_log2(HEADER_ROWS)),
            "header_data": Out(8 * config.host_bytes), "header_release": In(1),
            **({"passed": In(stream.Signature(RxFrame)), "passed_row": In(stream.Signature(row(config)))}
               if config.flows else {}),
            "order": In(stream.Signature(rx_order(config))),
            "o": Out(stream.Signature(buffered_row(config))),
            "fill": Out(exact_log2(config.rx_buffer_bytes // config.host_bytes) + 1),
            "ended": Out(1), "dropped": Out(Strobe(TIME_BITS)), "offered": Out(1),
            **{f"count_{name}": Out(Strobe(CountAmount)) for name in
               ("frames_in", "bad_frames", "oversize", "filtered", "fifo_full")},
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        depth = self.config.rx_buffer_bytes // self.config.host_bytes
        address_bits = exact_log2(depth)
        if self.config.flows:
            m.submodules.rows = rows = RowBanks(
                shape=8 * self.config.host_bytes, depth=depth,
                banks=2 if self.config.mac_bytes == self.config.host_bytes else 1)
        else:
            m.submodules.rows = rows = Ram(shape=8 * self.config.host_bytes, depth=depth)
        m.submodules.entries = entries = StreamFifo(
            shape=offered_frame(self.config), depth=self.config.rx_buffer_bytes // BYTES_PER_ENTRY)
        if not self.config.flows:
            connect(m, entries.o, flipped(self.frame))

        # Row numbers, free-running: rows head .. committed-1 are of whole frames, the frame under way ends at tail.
        head, committed, tail = (Signal(address_bits + 1, name=name) for name in ("head", "committed", "tail"))
        fills = self._take_in(m, rows, entries, head, committed, tail)
        reads = self._give_out(m, rows, head)
        self.invariants = [(self.fill <= depth, "more rows than the buffer has")]
        moves = fills | reads | entries.active
        if self.config.flows:
            moves |= self._take_passed(m, rows, entries, committed, tail)
        m.d.comb += [self.fill.eq(tail - head), self.active.eq(moves)]
        return m

    def _take_in(self, m, rows, entries, head, committed, tail):
        """The side of the MAC."""
        row = self.row.payload
        has_room, has_room_next, stores, keeps = Signal(init=1), Signal(), Signal(), Signal()
        missed, has_missed = Signal(), Signal()  # a row of this frame found no room; so did one before
        behind = Signal.like(tail)
        m.d.comb += [
            has_room_next.eq(~self.fill[-1] & ~self.fill[:-1].all()),
            missed.eq((has_missed & ~row.first) | (~has_room & row.count.any())),
            stores.eq(self.row.valid & row.count.any() & ~missed),
            behind.eq(tail + stores),
            rows.write_en.eq(stores), rows.write_addr.eq(tail), rows.write_data.eq(row.data),
        ]
        m.d.sync += has_room.eq(has_room_next)
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
        changes_room = Signal()
        time = self._time_of_frame(m)
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
            entries.i.payload.time.eq(time),
            entries.i.payload.hash.eq(row.hash), entries.i.payload.header.eq(self._keep_header(m, keeps)),
            changes_room.eq(has_room != has_room_next),
            self.ended.eq(ends), self.dropped.valid.eq(ends & refused), self.dropped.payload.eq(time),
            self.offered.eq(keeps | (entries.level != 0)),
        ]
        with m.If(keeps):
            m.d.sync += committed.eq(behind)
        with m.Elif(ends):
            m.d.sync += tail.eq(committed)
        return (self.row.valid | Cat(counted).any() | self.count_frames_in.valid | self.header_release
                | self.header_read | changes_room)

    def _take_passed(self, m, rows, entries, committed, tail):
        """The side of the control port. Returns whether something moves.

        A frame is measured in one cycle and compared with the room in the next; that is a cycle old when it is used, so
        it leaves a row more. Places are given out while no frame of the MAC is under way: none has to move.
        """
        lanes, depth = lane_bits(self.config), rows.depth
        frame, entry = self.passed.payload, entries.i.payload
        in_frame, measured, weighed, fits_next, fits = (
            Signal(name=name) for name in ("in_mac_frame", "measured", "weighed", "fits_next", "fits"))
        needed = Signal(ROW_NUMBER_BITS - lanes, name="needed_rows")
        begins, reserves, refuses, refused = (
            Signal(name=name) for name in ("begins_passed", "reserves", "refuses", "was_refused"))
        with m.If(self.row.valid):
            m.d.sync += in_frame.eq(~self.row.payload.last)
        m.d.sync += [measured.eq(self.passed.valid & ~begins), weighed.eq(measured & ~begins), refused.eq(refuses)]
        with m.If(self.passed.valid):
            m.d.sync += needed.eq(frame.length[lanes:] + frame.length[:lanes].any())
        m.d.comb += fits_next.eq(self.fill + needed <= depth - 3)
        with m.If(measured):
            m.d.sync += fits.eq(fits_next)

        # Its rows, one after the other; those of a frame that is dropped go nowhere.
        copying, stores, at = Signal(name="copying"), Signal(name="stores_passed"), Signal.like(tail, name="passed_at")
        late, ends, moves = rows.late, Signal(name="ends_passed"), Signal(name="moves_passed")
        m.d.comb += [
            begins.eq(weighed & ~copying & self.passed_row.valid & ~self.row.valid & ~in_frame),
            reserves.eq(begins & fits & entries.i.ready), refuses.eq(begins & ~(fits & entries.i.ready)),
            self.passed.ready.eq(begins),
            late.valid.eq(copying & stores & self.passed_row.valid), late.payload.addr.eq(at),
            late.payload.data.eq(self.passed_row.payload.data),
            self.passed_row.ready.eq(copying & (late.ready | ~stores)),
            moves.eq(self.passed_row.valid & self.passed_row.ready), ends.eq(moves & self.passed_row.payload.last),
        ]
        with m.If(begins):
            m.d.sync += [copying.eq(1), stores.eq(reserves), at.eq(tail)]
        with m.If(reserves):
            m.d.sync += [tail.eq(tail + needed), committed.eq(tail + needed)]
        with m.If(moves):
            m.d.sync += [at.eq(at + 1), copying.eq(~ends)]
        m.d.comb += entry.passed.eq(~self.row.valid)
        with m.If(~self.row.valid):
            m.d.comb += [entries.i.valid.eq(reserves), entry.header.eq(0),
                         *(entry[name].eq(frame[name]) for name, _ in RxFrame)]
        with m.If(refuses):
            m.d.sync += self.count_fifo_full.valid.eq(1)
        with m.Elif(refused & ~(self.row.valid & self.row.payload.last)):
            m.d.sync += self.count_fifo_full.valid.eq(0)
        self.invariants += [(~reserves | (tail == committed), "a passed frame has its place inside of another"),
                            (~(copying & stores) | (at != tail), "a passed row has no place")]

        # It is offered when it is whole; those of which that is so may wait behind others.
        offered = entries.o.payload
        whole, whole_next = Signal(range(entries.depth + 3), name="whole_passed"), Signal(range(entries.depth + 3))
        has_whole, leaves = Signal(name="has_whole_passed"), Signal(name="leaves_passed")
        m.d.comb += [
            leaves.eq(self.frame.valid & self.frame.ready & offered.passed),
            whole_next.eq(whole + (ends & stores) - leaves),
            self.frame.valid.eq(entries.o.valid & (~offered.passed | has_whole)),
            entries.o.ready.eq(self.frame.ready & (~offered.passed | has_whole)),
            self.frame.payload.eq(offered),
        ]
        m.d.sync += [whole.eq(whole_next), has_whole.eq(whole_next != 0)]
        return (begins | moves | refused | (self.passed.valid & ~(measured & weighed))
                | (measured & (fits != fits_next)))

    def _keep_header(self, m, keeps):
        """Write the first rows of each frame in the next place for a header, and leave them there if the frame is kept
        and may be coalesced; whether it may, at its last row."""
        row = self.row.payload
        in_frame = HEADER_BYTES // self.config.host_bytes
        places = HEADER_ROWS // in_frame
        m.submodules.headers = headers = Ram(shape=8 * self.config.host_bytes, depth=HEADER_ROWS)
        head, tail = Signal(exact_log2(places) + 1), Signal(exact_log2(places) + 1)
        following, number = Signal(range(in_frame + 1)), Signal(range(in_frame + 1))
        has_place, has_room, had_room, may = (
            Signal(name=n) for n in ("has_place", "has_room", "had_room", "may_coalesce"))

        def has(*flags):
            return Cat(row.info[int(flag).bit_length() - 1] for flag in flags)

        header_words = Signal(6)
        m.d.comb += [
            number.eq(Mux(row.first, 0, following)),
            has_place.eq((tail ^ head) != 1 << (len(head) - 1)),
            has_room.eq(Mux(row.first, has_place, had_room)),  # one that comes free in the middle is too late
            header_words.eq(row.l4 - row.l3),
            may.eq(has(RxInfo.TCP, RxInfo.L4_CHECKSUM_OK).all() & has_room & Mux(
                has(RxInfo.IPV6), header_words == IPV6_HEADER_BYTES // 2,
                has(RxInfo.IPV4, RxInfo.L3_CHECKSUM_OK).all() & (header_words == IPV4_HEADER_BYTES // 2))),
            headers.write_en.eq(self.row.valid & (number != in_frame) & has_room),
            headers.write_addr.eq(Cat(number[:exact_log2(in_frame)], tail)), headers.write_data.eq(row.data),
            headers.read_en.eq(self.header_read), headers.read_addr.eq(self.header_row),
            self.header_data.eq(headers.read_data),
        ]
        with m.If(self.row.valid):
            m.d.sync += [following.eq(number + (number != in_frame)), had_room.eq(has_room)]
        with m.If(keeps), m.If(may):
            m.d.sync += tail.eq(tail + 1)
        with m.If(self.header_release):
            m.d.sync += head.eq(head + 1)
        return may

    def _count(self, m, name, event):
        """Count an event at a frame's last row; each of them counts in `count_frames_in`, too."""
        strobe = getattr(self, f"count_{name}")
        m.d.comb += strobe.payload.amount.eq(1)
        with m.If((self.row.valid & self.row.payload.last) | self.count_frames_in.valid):
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
        width = self.config.host_bytes
        rows_left, to_drop = Signal.like(order.rows), Signal.like(order.advance)
        start, count, last_count = Signal.like(order.start), Signal.like(order.first_count), Signal(lanes + 1)
        reading, dropping, shares = Signal(), Signal(), Signal()
        at = Signal.like(order.at)

        # A row is read into the memory's own register, and moves on into the output's.
        waiting = Signal()
        waiting_row = Signal(data.StructLayout({"start": lanes, "count": lanes + 1, "last": 1, "at": lanes}))
        read, advance, leave, is_last, takes_order = Signal(), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            leave.eq(self.o.valid & self.o.ready),
            advance.eq(waiting & (~self.o.valid | self.o.ready)),
            read.eq(reading & ~dropping & (~waiting | advance)),
            is_last.eq(rows_left == 1),
            self.order.ready.eq(~dropping & (~reading | (read & is_last))),
            takes_order.eq(self.order.valid & self.order.ready),
            rows.read_en.eq(read), rows.read_addr.eq(head),
        ]
        with m.If(takes_order):
            m.d.sync += [
                reading.eq(order.rows != 0), dropping.eq(order.advance != 0), at.eq(order.at),
                rows_left.eq(order.rows), to_drop.eq(order.advance), shares.eq(order.shares),
                start.eq(order.start), count.eq(order.first_count), last_count.eq(order.last_count),
            ]
        with m.Elif(read):
            m.d.sync += [
                rows_left.eq(rows_left - 1), reading.eq(~is_last), start.eq(0),
                count.eq(Mux(rows_left == 2, last_count, width)),
            ]
        with m.If(dropping):
            m.d.sync += [head.eq(head + to_drop), dropping.eq(0)]
        with m.Elif(read & ~(is_last & shares)):
            m.d.sync += head.eq(head + 1)
        with m.If(read):
            m.d.sync += [
                waiting.eq(1), waiting_row.last.eq(is_last), waiting_row.at.eq(at), waiting_row.start.eq(start),
                waiting_row.count.eq(count),
            ]
        with m.Elif(advance):
            m.d.sync += waiting.eq(0)
        with m.If(advance):
            m.d.sync += [
                o.data.eq(rows.read_data), o.count.eq(waiting_row.count), o.last.eq(waiting_row.last),
                o.start.eq(waiting_row.start), o.at.eq(waiting_row.at), self.o.valid.eq(1),
            ]
        with m.Elif(leave):
            m.d.sync += self.o.valid.eq(0)
        return takes_order | dropping | read | advance | leave
