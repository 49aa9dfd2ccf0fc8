"""Sums what passes: the Internet checksum's 16-bit sums of each run of rows."""

# Ref: RFC 1071 §1, §2

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from rtl.align import aligned_row
from rtl.interfaces import Strobe, TxSlice
from rtl.primitives import StreamFifo
from rtl.segmenter import ROW_TAG_BITS, SEGMENT_BITS, RowTag, has_rows, slices_under_way
from rtl.small_fifo import BypassFifo

RUNS = 32
"""Runs whose sums `HeaderWriter` has not taken yet."""

# One run of rows that has passed. `l3_sum`: sum of its bytes in [l3_offset, l4_offset); `l4_sum`: of those from
# l4_offset on; both as 16 bits and a carry that is still to be added, and by the bytes' places in the frame, so that
# the sums of a template and of its payload may be added. Both are 0 for a frame whose checksums are left alone.
RunSum = data.StructLayout({
    "template": 1, "error": 1, "end": 1, "length": SEGMENT_BITS, "l3_sum": 17, "l4_sum": 17,
})

_SUM_BITS = 30  # 9,014 bytes are 4,507 words of 16 bits


class Checksum(wiring.Component):
    """Lets rows pass and sums them on the way.

    Enters: aligned rows, with their lanes as in the frame. Leaves: the same rows in the same cycle, and for each run,
    in order, its `RunSum`. A row waits while `RUNS` sums wait. A run's sums are there 4 cycles (at 16 bytes, else 5)
    after its last row, those of a frame whose checksums are left alone in the next cycle. A row a cycle.

    Parameters
    ----------
    config : NicConfig

    Members
    -------
    order : strobe, each slice before its first row.
    i, o : rows in and out.
    sums : stream of `RunSum`.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config):
        self.config = config
        rows = stream.Signature(aligned_row(config.host_bytes, ROW_TAG_BITS))
        super().__init__({
            "order": In(Strobe(TxSlice)), "i": In(rows), "o": Out(rows), "sums": Out(stream.Signature(RunSum)),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        width, lane_bits = self.config.host_bytes, exact_log2(self.config.host_bytes)
        row = self.i.payload
        tag = data.View(RowTag, row.tag)

        # Where the sums start, by row and lane, for each frame under way; `first_row` is the payload's first, and lies
        # `behind` that row, or is it (`here`). `plain`: nobody wants the sums.
        row_bits = 8 - lane_bits
        place = data.StructLayout({"lane": lane_bits, "row": row_bits, "behind": 1, "here": 1})
        offsets_shape = data.StructLayout({"l3": place, "l4": place, "first_row": row_bits, "plain": 1})
        m.submodules.offsets = offsets = StreamFifo(
            shape=offsets_shape, depth=slices_under_way(self.config))
        order = self.order.payload.job
        first_row = order.inline_bytes[lane_bits:]
        m.d.comb += [
            offsets.i.valid.eq(self.order.valid & has_rows(self.order.payload)),
            offsets.i.payload.first_row.eq(first_row),
            offsets.i.payload.plain.eq(~(order.segmented | order.ipv4_checksum | order.l4_checksum)),
        ]
        for target, offset in ((offsets.i.payload.l3, order.l3_offset), (offsets.i.payload.l4, order.l4_offset)):
            m.d.comb += [
                target.lane.eq(offset[:lane_bits]), target.row.eq(offset[lane_bits:]),
                target.behind.eq(first_row > offset[lane_bits:]), target.here.eq(first_row == offset[lane_bits:]),
            ]
        where = offsets.o.payload

        info_shape = data.StructLayout({"template": 1, "error": 1, "end": 1, "plain": 1, "length": SEGMENT_BITS})
        m.submodules.infos = infos = BypassFifo(shape=info_shape, depth=RUNS)
        # A run's info enters before its sums and leaves with them, so the sums' FIFO cannot overrun.
        sums_shape = data.StructLayout({"l3_sum": 17, "l4_sum": 17})
        m.submodules.folded = folded = BypassFifo(shape=sums_shape, depth=RUNS)

        may_pass, passes = Signal(), Signal()
        m.d.comb += [
            may_pass.eq(infos.i.ready & offsets.o.valid),
            self.o.valid.eq(self.i.valid & may_pass), self.o.payload.eq(row),
            self.i.ready.eq(self.o.ready & may_pass), passes.eq(self.o.valid & self.o.ready),
            offsets.o.ready.eq(passes & row.last & tag.end),
        ]

        # Stage 1: which lanes count. Where a run begins relative to both offsets is known from its frame.
        inside = Signal()  # a run is under way
        next_number = Signal(row_bits + 1)
        length, length_now = Signal(SEGMENT_BITS), Signal(SEGMENT_BITS)
        m.d.comb += [
            length_now.eq(Mux(inside, length, 0) + row.count),
            infos.i.valid.eq(passes & row.last), infos.i.payload.template.eq(tag.template),
            infos.i.payload.error.eq(tag.error), infos.i.payload.end.eq(tag.end), infos.i.payload.length.eq(length_now),
            infos.i.payload.plain.eq(where.plain),
        ]
        valid, first, last = Signal(name="masked_valid"), Signal(name="masked_first"), Signal(name="masked_last")
        masked_data, valid_lanes = Signal(8 * width), Signal(width)
        from_l3, from_l4 = Signal(width), Signal(width)
        sums_row, stop = Signal(), Signal(lane_bits + 1)
        # Behind all offsets: all lanes count from there on, and none of them for L3.
        late, was_late, has_l3 = Signal(), Signal(), Signal(name="masked_has_l3")
        m.d.comb += late.eq(inside & next_number[row_bits])
        m.d.comb += [sums_row.eq(passes & ~where.plain), stop.eq(row.start + row.count)]
        m.d.sync += valid.eq(sums_row)
        with m.If(passes):
            m.d.sync += [inside.eq(~row.last), length.eq(length_now)]
        with m.If(sums_row):
            begin = Mux(tag.template, 0, where.first_row)
            m.d.sync += [
                # the number stays behind all offsets once it is there
                next_number.eq(Mux(~inside, begin + 1, Mux(next_number[row_bits], next_number, next_number + 1))),
                masked_data.eq(row.data), first.eq(~inside), last.eq(row.last),
                valid_lanes.eq(Cat((row.start <= lane) & (stop > lane) for lane in range(width))),
                was_late.eq(late), has_l3.eq(~(late & was_late)),
            ]
        with m.If(sums_row & ~(late & was_late)):
            for target, offset in ((from_l3, where.l3), (from_l4, where.l4)):
                behind = Mux(inside, next_number > offset.row, ~tag.template & offset.behind)
                here = Mux(inside, next_number == offset.row, Mux(tag.template, offset.row == 0, offset.here))
                m.d.sync += target.eq(Cat(behind | (here & (offset.lane <= lane)) for lane in range(width)))

        # Stages 2 and on: a tree of adders for each sum, two levels in a stage. A word's first byte on the wire is its
        # upper half.
        l4_lanes = [valid_lanes[lane] & from_l4[lane] for lane in range(width)]
        l3_lanes = [valid_lanes[lane] & from_l3[lane] & ~from_l4[lane] for lane in range(width)]
        bytes_ = [masked_data[8 * lane:8 * lane + 8] for lane in range(width)]
        l3_terms, l4_terms = ([Cat(Mux(lanes[lane + 1], bytes_[lane + 1], 0), Mux(lanes[lane], bytes_[lane], 0))
                               for lane in range(0, width, 2)] for lanes in (l3_lanes, l4_lanes))
        stages = [valid]
        while len(l3_terms) > 2:
            l3_next, l4_next = [], []
            stage = f"stage{len(stages)}"
            stage_valid, stage_first, stage_last, stage_has_l3 = (
                Signal(name=f"{stage}_{what}") for what in ("valid", "first", "last", "has_l3"))
            m.d.sync += stage_valid.eq(valid)
            with m.If(valid):
                m.d.sync += [stage_first.eq(first), stage_last.eq(last), stage_has_l3.eq(has_l3)]
            for name, terms, found, enable in (("l3", l3_terms, l3_next, valid & has_l3),
                                               ("l4", l4_terms, l4_next, valid)):
                for at in range(0, len(terms), 4):
                    total = Signal(len(terms[0]) + 2, name=f"{stage}_{name}_{at // 4}")
                    with m.If(enable):
                        m.d.sync += total.eq((terms[at] + terms[at + 1]) + (terms[at + 2] + terms[at + 3]))
                    found.append(total)
            l3_terms, l4_terms = l3_next, l4_next
            valid, first, last, has_l3 = stage_valid, stage_first, stage_last, stage_has_l3
            stages.append(valid)

        # Over the run's rows, then fold the carries in.
        summed = Signal()
        m.d.sync += summed.eq(valid & last)
        for name, terms, enable in (("l3_sum", l3_terms, valid & has_l3), ("l4_sum", l4_terms, valid)):
            total = Signal(_SUM_BITS, name=f"run_{name}")
            with m.If(enable):
                m.d.sync += total.eq(Mux(first, 0, total) + sum(terms[1:], terms[0]))
            m.d.comb += folded.i.payload[name].eq(total[:16] + total[16:])
        m.d.comb += folded.i.valid.eq(summed)

        info, sums = infos.o.payload, self.sums.payload
        m.d.comb += [
            self.sums.valid.eq(infos.o.valid & (info.plain | folded.o.valid)),
            infos.o.ready.eq(self.sums.ready & (info.plain | folded.o.valid)),
            folded.o.ready.eq(self.sums.ready & infos.o.valid & ~info.plain),
            *(sums[name].eq(info[name]) for name in ("template", "error", "end", "length")),
            *(sums[name].eq(Mux(info.plain, 0, folded.o.payload[name])) for name in ("l3_sum", "l4_sum")),
            self.active.eq(passes | Cat(stages).any() | summed | offsets.active | infos.active | folded.active),
        ]
        return m
