"""Moves runs of bytes to other lanes: from where they stood in memory to where they belong in a frame, and back."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2


def align_row(width_bytes, tag_bits=0):
    """Row into an `Aligner`: valid bytes are lanes start .. start+count-1, `count` is 1 to `width_bytes`. `last` ends a
    run; `at` is the lane that the run's first byte goes to, read in the run's first row. `tag` belongs to the user."""
    bits = exact_log2(width_bytes)
    return data.StructLayout({
        "data": 8 * width_bytes, "start": bits, "count": bits + 1, "at": bits, "last": 1, "tag": tag_bits,
    })


def aligned_row(width_bytes, tag_bits=0):
    """Row out of an `Aligner`: valid bytes are lanes start .. start+count-1; `start` is not 0 only in a run's first
    row. `tag` is that of the latest row with a byte in it."""
    bits = exact_log2(width_bytes)
    return data.StructLayout({
        "data": 8 * width_bytes, "start": bits, "count": bits + 1, "last": 1, "tag": tag_bits,
    })


class Aligner(wiring.Component):
    """Packs runs of rows with gaps and any lanes into contiguous rows from a wanted lane on.

    Enters: rows (`align_row`), each with 1 to `width_bytes` valid bytes anywhere. Leaves: for each run, its bytes
    without gaps from lane `at` on (`aligned_row`): all rows but the first start at lane 0, all but the last end at the
    highest lane. Lanes that are not valid hold anything. Latency 4 cycles, or 3 if not registered; takes a row a cycle,
    and none in the cycle behind a run's last row that is spread over two that leave. Runs follow each other without a
    gap.

    Parameters
    ----------
    width_bytes : int
        Bytes in a row, a power of two of at least 4.
    tag_bits : int
        Bits that travel with the rows.
    registered : bool
        Rows leave from a register; otherwise whoever takes them has a register there, and a `ready` that comes from
        one and does not wait for `valid`.

    Members
    -------
    i : In(stream.Signature(align_row))
    o : Out(stream.Signature(aligned_row))
    active : Out(1)
    """

    def __init__(self, *, width_bytes, tag_bits=0, registered=True):
        if not isinstance(width_bytes, int) or width_bytes < 4 or width_bytes & (width_bytes - 1):
            raise ValueError(f"width_bytes must be a power of two of at least 4, not {width_bytes!r}")
        if not isinstance(tag_bits, int) or tag_bits < 0:
            raise ValueError(f"tag_bits must be a natural number, not {tag_bits!r}")
        self.width_bytes, self.tag_bits, self.registered = width_bytes, tag_bits, registered
        super().__init__({
            "i": In(stream.Signature(align_row(width_bytes, tag_bits))),
            "o": Out(stream.Signature(aligned_row(width_bytes, tag_bits))),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        width, bits = self.width_bytes, exact_log2(self.width_bytes)
        fine_bits = bits // 2

        # What a row needs on its way: `below` lanes of the outgoing row are there already, `reach` is the first lane
        # behind it (beyond the row's end: it fills the row), `first` the lane where the outgoing row starts. `spilt`:
        # no row, but the place behind a run's last one for those of its bytes that fill another row.
        control = data.StructLayout({
            "rotate": bits, "below": bits, "reach": bits + 1, "first": bits, "last": 1, "spilt": 1,
            "tag": self.tag_bits,
        })
        entered, turned = Signal(control), Signal(control)
        merging = Signal(data.StructLayout({
            "start": bits, "count": bits + 1, "fills": 1, "last": 1, "tag": self.tag_bits,
        }))
        entered_valid, turned_valid, merging_valid = Signal(), Signal(), Signal()
        entered_data, turned_data, merging_data = (Signal(8 * width, name=f"{name}_data")
                                                   for name in ("entered", "turned", "merging"))
        keep = Signal(width)  # lanes of the outgoing row that come from `carry`
        carry = Signal(8 * width)

        # All stages move at once.
        moves, spills, take, merge, leave = Signal(), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            moves.eq(~self.o.valid | self.o.ready if self.registered else self.o.ready),
            self.i.ready.eq(moves & ~spills),
            take.eq(self.i.valid & self.i.ready),
            merge.eq(merging_valid & moves),
            leave.eq(self.o.valid & self.o.ready),
            self.active.eq(take | (Cat(spills, entered_valid, turned_valid, merging_valid).any() & moves) | leave),
        ]

        # Stage 1: where the row goes.
        row = self.i.payload
        inside = Signal()  # a run is under way
        fill, row_first = Signal(bits), Signal(bits)
        below, first, reach = Signal(bits), Signal(bits), Signal(bits + 1)
        m.d.comb += [
            below.eq(Mux(inside, fill, row.at)),
            first.eq(Mux(inside, row_first, row.at)),
            reach.eq(below + row.count),
        ]
        with m.If(moves):
            m.d.sync += [entered_valid.eq(self.i.valid | spills), entered.spilt.eq(spills), spills.eq(0)]
            with m.If(spills):
                m.d.sync += [entered.reach.eq(fill), entered.first.eq(0), entered.last.eq(1)]
            with m.Elif(self.i.valid):
                splits = reach[bits] & reach[:bits].any() & row.last
                m.d.sync += [
                    entered_data.eq(row.data),
                    entered.rotate.eq(below - row.start), entered.below.eq(below), entered.reach.eq(reach),
                    entered.first.eq(first), entered.last.eq(row.last & ~splits), entered.tag.eq(row.tag),
                    inside.eq(~row.last), fill.eq(reach), row_first.eq(Mux(reach[bits], 0, first)),
                    spills.eq(splits),
                ]

        # Stages 2 and 3: rotate upwards by `rotate` lanes, in two steps.
        with m.If(moves):
            m.d.sync += turned_valid.eq(entered_valid)
            with m.If(entered_valid):
                m.d.sync += [turned.eq(entered), turned_data.eq(_rotate(entered_data, entered.rotate[:fine_bits], 1))]
        with m.If(moves):
            m.d.sync += merging_valid.eq(turned_valid)
            with m.If(turned_valid):
                m.d.sync += [
                    merging_data.eq(_rotate(turned_data, turned.rotate[fine_bits:], 1 << fine_bits)),
                    keep.eq(Cat((turned.below > lane) | turned.spilt for lane in range(width))),
                    merging.start.eq(turned.first),
                    merging.count.eq(Mux(turned.reach[bits], width, turned.reach) - turned.first),
                    merging.fills.eq(turned.reach[bits]),
                    merging.last.eq(turned.last), merging.tag.eq(turned.tag),
                ]

        # Stage 4: put the row behind the bytes that wait; what does not fit waits.
        o = Signal(aligned_row(width, self.tag_bits), name="merged")
        m.d.comb += [
            o.start.eq(merging.start), o.count.eq(merging.count), o.last.eq(merging.last), o.tag.eq(merging.tag),
            o.data.eq(Cat(Mux(keep[lane], carry.word_select(lane, 8), merging_data.word_select(lane, 8))
                          for lane in range(width))),
        ]
        with m.If(merge):
            for lane in range(width):
                here = slice(8 * lane, 8 * lane + 8)
                with m.If(merging.fills | ~keep[lane]):
                    m.d.sync += carry[here].eq(merging_data[here])
        if self.registered:
            with m.If(moves):
                m.d.sync += self.o.valid.eq(merge & (merging.fills | merging.last))
            with m.If(merge):
                m.d.sync += self.o.payload.eq(o)
        else:
            m.d.comb += [
                self.o.valid.eq(merging_valid & (merging.fills | merging.last)), self.o.payload.eq(o),
            ]
        return m


def _rotate(value, steps, lanes):
    """`value` with its bytes rotated towards higher lanes by `steps` times `lanes`."""
    turned = value
    for bit in range(len(steps)):
        turned = Mux(steps[bit], turned.rotate_left(8 * lanes << bit), turned)
    return turned
