"""Sums what passes: the Internet checksum's 16-bit sums of each run of rows."""

# Ref: RFC 1071 §1, §2

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from rtl.align import aligned_row
from rtl.interfaces import Strobe, TxSlice
from rtl.primitives import SkidBuffer, StreamFifo
from rtl.segmenter import ROW_TAG_BITS, SEGMENT_BITS, RowTag, has_rows, slices_under_way

RUNS = 32
"""Runs whose sums `HeaderWriter` has not taken yet."""

# One run of rows that has passed. `l3_sum`: folded sum of its bytes in [l3_offset, l4_offset); `l4_sum`: of those from
# l4_offset on; both by the bytes' places in the frame, so that the sums of a template and of its payload may be added.
RunSum = data.StructLayout({
    "template": 1, "error": 1, "end": 1, "length": SEGMENT_BITS, "l3_sum": 16, "l4_sum": 16,
})

_SUM_BITS = 30  # 9,014 bytes are 4,507 words of 16 bits


class Checksum(wiring.Component):
    """Lets rows pass and sums them on the way.

    Enters: aligned rows, with their lanes as in the frame. Leaves: the same rows in the same cycle, and for each run,
    in order, its `RunSum`. A row waits while `RUNS` sums wait. Sums are there 12 cycles (at 16 bytes; one more for each
    doubling) after a run's last row. A row a cycle.

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

        # Where the sums start, by row and lane, for each frame under way; `first_row` is the payload's first.
        row_bits = 8 - lane_bits
        place = data.StructLayout({"lane": lane_bits, "row": row_bits})
        offsets_shape = data.StructLayout({"l3": place, "l4": place, "first_row": row_bits})
        m.submodules.offsets = offsets = StreamFifo(
            shape=offsets_shape, depth=slices_under_way(self.config))
        order = self.order.payload.job
        m.d.comb += [
            offsets.i.valid.eq(self.order.valid & has_rows(self.order.payload)),
            offsets.i.payload.l3.eq(order.l3_offset), offsets.i.payload.l4.eq(order.l4_offset),
            offsets.i.payload.first_row.eq(order.inline_bytes[lane_bits:]),
        ]
        where = offsets.o.payload

        info_shape = data.StructLayout({"template": 1, "error": 1, "end": 1, "length": SEGMENT_BITS})
        m.submodules.infos = infos = StreamFifo(shape=info_shape, depth=RUNS)
        # A run's info enters before its sums and leaves with them, so the sums' FIFO cannot overrun.
        sums_shape = data.StructLayout({"l3_sum": 16, "l4_sum": 16})
        m.submodules.folded = folded = StreamFifo(shape=sums_shape, depth=RUNS)

        may_pass, passes = Signal(), Signal()
        m.d.comb += [
            may_pass.eq(infos.i.ready & offsets.o.valid),
            self.o.valid.eq(self.i.valid & may_pass), self.o.payload.eq(row),
            self.i.ready.eq(self.o.ready & may_pass), passes.eq(self.o.valid & self.o.ready),
            offsets.o.ready.eq(passes & row.last & tag.end),
        ]

        # Stage 1: the row's place relative to both offsets.
        inside = Signal()  # a run is under way
        number, next_number = Signal(row_bits + 1), Signal(row_bits + 1)
        length, length_now = Signal(SEGMENT_BITS), Signal(SEGMENT_BITS)
        m.d.comb += [
            number.eq(Mux(inside, next_number, Mux(tag.template, 0, where.first_row))),
            length_now.eq(Mux(inside, length, 0) + row.count),
            infos.i.valid.eq(passes & row.last), infos.i.payload.template.eq(tag.template),
            infos.i.payload.error.eq(tag.error), infos.i.payload.end.eq(tag.end), infos.i.payload.length.eq(length_now),
        ]
        relation = data.StructLayout({"behind": 1, "here": 1, "lane": lane_bits})
        placed = Signal(data.StructLayout({
            "l3": relation, "l4": relation, "start": lane_bits, "stop": lane_bits + 1, "first": 1, "last": 1,
        }))
        placed_valid, placed_data = Signal(), Signal(8 * width)
        m.d.sync += placed_valid.eq(passes)
        with m.If(passes):
            m.d.sync += [
                inside.eq(~row.last), length.eq(length_now),
                # the number stays behind all offsets once it is there
                next_number.eq(Mux(number[row_bits], number, number + 1)),
                placed_data.eq(row.data), placed.start.eq(row.start), placed.stop.eq(row.start + row.count),
                placed.first.eq(~inside), placed.last.eq(row.last),
            ]
            for target, offset in ((placed.l3, where.l3), (placed.l4, where.l4)):
                m.d.sync += [
                    target.behind.eq(number > offset.row), target.here.eq(number == offset.row),
                    target.lane.eq(offset.lane),
                ]

        # Stage 2: which lanes count.
        masked_valid, masked_first, masked_last = Signal(), Signal(), Signal()
        masked_data, valid_lanes = Signal(8 * width), Signal(width)
        from_l3, from_l4 = Signal(width), Signal(width)
        m.d.sync += masked_valid.eq(placed_valid)
        with m.If(placed_valid):
            m.d.sync += [
                masked_first.eq(placed.first), masked_last.eq(placed.last), masked_data.eq(placed_data),
                valid_lanes.eq(Cat((placed.start <= lane) & (placed.stop > lane) for lane in range(width))),
            ]
            for target, offset in ((from_l3, placed.l3), (from_l4, placed.l4)):
                m.d.sync += target.eq(Cat(offset.behind | (offset.here & (offset.lane <= lane))
                                          for lane in range(width)))

        # Stages 3 and on: a tree of adders for each sum. A word's first byte on the wire is its upper half.
        l4_lanes = [valid_lanes[lane] & from_l4[lane] for lane in range(width)]
        l3_lanes = [valid_lanes[lane] & from_l3[lane] & ~from_l4[lane] for lane in range(width)]
        bytes_ = [masked_data[8 * lane:8 * lane + 8] for lane in range(width)]
        valid, first, last = masked_valid, masked_first, masked_last
        l3_terms, l4_terms = ([Cat(Mux(lanes[lane + 1], bytes_[lane + 1], 0), Mux(lanes[lane], bytes_[lane], 0))
                               for lane in range(0, width, 2)] for lanes in (l3_lanes, l4_lanes))
        stages = [masked_valid, placed_valid]
        level = 0
        while len(l3_terms) > 1:
            l3_next, l4_next = [], []
            level_valid, level_first, level_last = (Signal(name=f"level{level}_{what}")
                                                    for what in ("valid", "first", "last"))
            m.d.sync += level_valid.eq(valid)
            with m.If(valid):
                m.d.sync += [level_first.eq(first), level_last.eq(last)]
                for name, terms, found in (("l3", l3_terms, l3_next), ("l4", l4_terms, l4_next)):
                    for pair in range(0, len(terms), 2):
                        total = Signal(17 + level, name=f"level{level}_{name}_{pair // 2}")
                        m.d.sync += total.eq(terms[pair] + terms[pair + 1])
                        found.append(total)
            l3_terms, l4_terms = l3_next, l4_next
            valid, first, last = level_valid, level_first, level_last
            stages.append(valid)
            level += 1

        # Over the run's rows, then fold the carries in, twice.
        summed, half_folded, all_folded = Signal(), Signal(), Signal()
        m.d.sync += [summed.eq(valid & last), half_folded.eq(summed), all_folded.eq(half_folded)]
        for name, term in (("l3_sum", l3_terms[0]), ("l4_sum", l4_terms[0])):
            total, half = Signal(_SUM_BITS, name=f"run_{name}"), Signal(17, name=f"half_{name}")
            whole = Signal(16, name=name)
            with m.If(valid):
                m.d.sync += total.eq(Mux(first, 0, total) + term)
            with m.If(summed):
                m.d.sync += half.eq(total[:16] + total[16:])
            with m.If(half_folded):
                m.d.sync += whole.eq(half[:16] + half[16])
            m.d.comb += folded.i.payload[name].eq(whole)
        m.d.comb += folded.i.valid.eq(all_folded)

        m.submodules.joined = joined = SkidBuffer(shape=RunSum)
        wiring.connect(m, joined.o, wiring.flipped(self.sums))
        m.d.comb += [
            joined.i.valid.eq(folded.o.valid & infos.o.valid),
            folded.o.ready.eq(joined.i.ready & infos.o.valid), infos.o.ready.eq(joined.i.ready & folded.o.valid),
            *(joined.i.payload[name].eq(infos.o.payload[name]) for name in ("template", "error", "end", "length")),
            *(joined.i.payload[name].eq(folded.o.payload[name]) for name in ("l3_sum", "l4_sum")),
            self.active.eq(passes | Cat(stages).any() | summed | half_folded | all_folded | offsets.active
                           | infos.active | folded.active | joined.active),
        ]
        return m
