"""Holds frames until they are whole, and reads them out: header and payload in one."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from rtl.align import aligned_row
from rtl.headers import FRAMES, FrameInfo, header_row_bits, header_write, payload_patch, payload_row_bits
from rtl.interfaces import Strobe
from rtl.mac_tx import frame_row
from rtl.primitives import Ram, SkidBuffer
from rtl.segmenter import ROW_TAG_BITS, SEGMENT_BITS, RowTag
from rtl.small_fifo import BypassFifo


class Framer(wiring.Component):
    """The rings of headers and payload, and the reader that joins them.

    Enters: rows of templates, which are passed on, and of payload, which are kept; headers and corrections from
    `HeaderWriter`. Leaves: rows of whole frames, a row a cycle, no cycle lost between frames. A frame starts only when
    all of it is here, so it has no gap from this side. A frame that a bus error spoiled leaves no trace in the ring.
    Latency 3 cycles from `commit` to the first row.

    Parameters
    ----------
    config : NicConfig

    Members
    -------
    rows : aligned rows with a `RowTag`.
    template : strobe, rows of templates.
    header, patch : strobes, writes into the two rings.
    frame, commit, freed : frames, see `HeaderWriter`.
    o : stream of `frame_row`.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "rows": In(stream.Signature(aligned_row(config.host_bytes, ROW_TAG_BITS))),
            "template": Out(Strobe(data.StructLayout({"data": 8 * config.host_bytes, "last": 1}))),
            "header": In(Strobe(header_write(config))), "patch": In(Strobe(payload_patch(config))),
            "frame": In(Strobe(FrameInfo)), "commit": In(1), "freed": Out(1),
            "o": Out(stream.Signature(frame_row(config))), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        width, lane_bits = self.config.host_bytes, exact_log2(self.config.host_bytes)
        row_bits, payload_bits = header_row_bits(self.config), payload_row_bits(self.config)
        payload_depth = 1 << payload_bits

        m.submodules.headers = headers = Ram(shape=8 * width, depth=FRAMES << row_bits, granularity=16)
        m.submodules.payloads = payloads = Ram(shape=8 * width, depth=payload_depth, granularity=16)
        header, patch = self.header.payload, self.patch.payload
        m.d.comb += [
            headers.write_en.eq(Mux(self.header.valid, header.enable, 0)), headers.write_addr.eq(header.row),
            headers.write_data.eq(header.data),
        ]

        # Keep payload. What a bus error spoiled is written over, from the failed frame's first row on.
        row, tag = self.rows.payload, data.View(RowTag, self.rows.payload.tag)
        head, whole, tail = (Signal(payload_bits + 1, name=name) for name in ("head", "whole", "tail"))
        room, room_now = Signal(init=1), Signal()
        enters, keeps, spoils = Signal(), Signal(), Signal()
        used = Signal(payload_bits + 1)
        m.d.comb += [
            self.rows.ready.eq(room & ~self.patch.valid), enters.eq(self.rows.valid & self.rows.ready),
            keeps.eq(enters & ~tag.template & ~tag.error), spoils.eq(enters & ~tag.template & tag.error),
            self.template.valid.eq(enters & tag.template), self.template.payload.data.eq(row.data),
            self.template.payload.last.eq(row.last),
            payloads.write_en.eq(Mux(self.patch.valid, patch.enable, keeps.replicate(width // 2))),
            payloads.write_addr.eq(Mux(self.patch.valid, patch.row, tail)),
            payloads.write_data.eq(Mux(self.patch.valid, patch.word.replicate(width // 2), row.data)),
            # `room` follows a cycle later, hence the margin
            used.eq(tail - head), room_now.eq(used < payload_depth - 4),
        ]
        m.d.sync += room.eq(room_now)
        with m.If(keeps):
            m.d.sync += tail.eq(tail + 1)
            with m.If(row.last):
                m.d.sync += whole.eq(tail + 1)
        with m.If(spoils):
            m.d.sync += tail.eq(whole)

        # The next frame to be read, with all that depends on its length.
        plan = data.StructLayout({
            "rows": SEGMENT_BITS - lane_bits, "header_rows": row_bits + 1, "border": lane_bits, "has_payload": 1,
            "rest": lane_bits, "length": SEGMENT_BITS, "end": 1, "mark": 1,
        })
        m.submodules.frames = frames = BypassFifo(shape=plan, depth=FRAMES)
        info, planned, coming = self.frame.payload, frames.i.payload, frames.o.payload
        reading, reading_valid = Signal(plan), Signal()
        starts, last_byte = Signal(), Signal(SEGMENT_BITS)
        m.d.comb += [
            last_byte.eq(info.total - 1), frames.i.valid.eq(self.frame.valid),
            planned.rows.eq(last_byte[lane_bits:]), planned.header_rows.eq(info.inline_bytes[lane_bits:]),
            planned.border.eq(info.inline_bytes[:lane_bits]), planned.has_payload.eq(info.total > info.inline_bytes),
            planned.rest.eq(info.total[:lane_bits]), planned.length.eq(info.total),
            planned.end.eq(info.end), planned.mark.eq(info.mark), frames.o.ready.eq(starts),
        ]
        # Frames that are whole, and whether there are any: what is written beside `commit` may be read one cycle later.
        committed, committed_now, is_committed = Signal(range(FRAMES + 1)), Signal(range(FRAMES + 1)), Signal()
        m.d.comb += committed_now.eq(committed + self.commit - starts)
        with m.If(self.commit | starts):
            m.d.sync += [committed.eq(committed_now), is_committed.eq(committed_now != 0)]

        # Read a row of either ring, or of both where the header ends. In `reading`, `rows` and `header_rows` count
        # down, and `border` and `has_payload` are as they were.
        past_border = Signal()
        header_row, header_slot = Signal(row_bits), Signal(exact_log2(FRAMES))
        issues, last_row, in_header, from_payload, issued_free = Signal(), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            issues.eq(reading_valid & issued_free), last_row.eq((reading.rows == 0) | reading.mark),
            in_header.eq(reading.header_rows != 0),
            from_payload.eq(~in_header & reading.has_payload & ~reading.mark),
            starts.eq(frames.o.valid & (is_committed | self.commit) & (~reading_valid | (issues & last_row))),
            self.freed.eq(issues & last_row),
            headers.read_en.eq(issues & (in_header | ~past_border)),
            headers.read_addr.eq(Cat(header_row, header_slot)),
            payloads.read_en.eq(issues & from_payload), payloads.read_addr.eq(head),
        ]
        with m.If(issues):
            m.d.sync += [
                reading.rows.eq(reading.rows - 1), header_row.eq(header_row + 1),
                reading.header_rows.eq(Mux(in_header, reading.header_rows - 1, 0)),
                past_border.eq(~in_header), head.eq(head + from_payload),
            ]
        with m.If(starts):
            m.d.sync += [reading.eq(coming), reading_valid.eq(1)]
        with m.Elif(issues & last_row):
            m.d.sync += reading_valid.eq(0)
        with m.If(issues & last_row):
            m.d.sync += [header_row.eq(0), past_border.eq(0), header_slot.eq(header_slot + 1)]

        # Join both a cycle later.
        issued_valid, joins = Signal(), Signal()
        issued = Signal(data.StructLayout({
            "header_lanes": width, "keep": width, "last": 1, "end": 1, "mark": 1, "length": SEGMENT_BITS,
        }))
        with m.If(issued_free):
            m.d.sync += issued_valid.eq(reading_valid)
        with m.If(issues):
            m.d.sync += [
                issued.header_lanes.eq(Cat(in_header | (~past_border & (reading.border > lane))
                                           for lane in range(width))),
                issued.keep.eq(Cat(~last_row | (reading.rest == 0) | (reading.rest > lane) for lane in range(width))),
                issued.last.eq(last_row), issued.end.eq(reading.end), issued.mark.eq(reading.mark),
                issued.length.eq(reading.length),
            ]
        # Rows leave through a skid buffer, which keeps the MAC's ready away from the rings.
        m.submodules.leaving = leaving = SkidBuffer(shape=frame_row(self.config))
        joined = leaving.i.payload
        wiring.connect(m, leaving.o, wiring.flipped(self.o))
        m.d.comb += [
            leaving.i.valid.eq(issued_valid), joins.eq(issued_valid & leaving.i.ready),
            issued_free.eq(~issued_valid | leaving.i.ready),
            *(joined[name].eq(issued[name]) for name in ("keep", "last", "end", "mark", "length")),
            joined.data.eq(Cat(
                Mux(issued.header_lanes[lane], headers.read_data.word_select(lane, 8),
                    payloads.read_data.word_select(lane, 8)) for lane in range(width))),
        ]

        m.d.comb += self.active.eq(Cat(
            enters, self.header.valid, self.patch.valid, room ^ room_now, frames.active, self.commit, starts,
            issues, joins, leaving.active,
        ).any())
        return m
