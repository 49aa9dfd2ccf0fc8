"""A memory of rows with a second writer, which waits for the first."""

from amaranth.hdl import Cat, Module, Mux, Shape, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from rtl.primitives import Ram


def late_row(shape, depth: int) -> data.StructLayout:
    """A word of the second writer."""
    return data.StructLayout({"addr": ceil_log2(depth), "data": Shape.cast(shape).width})


class RowBanks(wiring.Component):
    """A `Ram` with one more writer, whose words are written in cycles that the first leaves.

    Enters: `write_*` at a clock edge, always; `late`, when the first writer writes nothing or, with two banks, to the
    other bank. Leaves: `read_data`, as from a `Ram`.

    Even addresses are in one bank, odd ones in the other. So a first writer that writes one word behind the other, one
    in each cycle, holds a second that does likewise up for one cycle; with one bank, as long as it writes.

    Parameters
    ----------
    shape : ShapeLike
        One word.
    depth : int
        Words, at least 4.
    banks : int
        1, or 2 at the price of a multiplexer behind the memory.
    """

    def __init__(self, *, shape, depth, banks=1):
        if banks not in (1, 2):
            raise ValueError(f"banks must be 1 or 2, not {banks!r}")
        self.shape, self.depth, self.banks = shape, depth, banks
        width, bits = Shape.cast(shape).width, ceil_log2(depth)
        super().__init__({
            "write_en": In(1), "write_addr": In(bits), "write_data": In(width),
            "late": In(stream.Signature(late_row(shape, depth))),
            "read_en": In(1), "read_addr": In(bits), "read_data": Out(width),
        })

    def elaborate(self, platform):
        m = Module()
        late, select_bits = self.late.payload, self.banks - 1
        # Which bank a word is in, and where; with one bank, all are in it.
        (first_bank, first_at), (late_bank, late_at), (read_bank, read_at) = (
            (Cat(address[:select_bits]), address[select_bits:])
            for address in (self.write_addr, late.addr, self.read_addr))
        m.d.comb += self.late.ready.eq(~self.write_en | (first_bank != late_bank))
        words, was_read = [], Signal(1, name="read_bank")
        for number in range(self.banks):
            m.submodules[f"bank_{number}"] = bank = Ram(
                shape=Shape.cast(self.shape).width, depth=self.depth // self.banks)
            takes_first, takes_late = Signal(name=f"writes_{number}"), Signal(name=f"writes_late_{number}")
            m.d.comb += [
                takes_first.eq(self.write_en & (first_bank == number)),
                takes_late.eq(self.late.valid & (late_bank == number)),
                bank.write_en.eq(takes_first | takes_late),
                bank.write_addr.eq(Mux(takes_first, first_at, late_at)),
                bank.write_data.eq(Mux(takes_first, self.write_data, late.data)),
                bank.read_en.eq(self.read_en & (read_bank == number)), bank.read_addr.eq(read_at),
            ]
            words.append(Value.cast(bank.read_data))
        with m.If(self.read_en):
            m.d.sync += was_read.eq(read_bank)
        m.d.comb += self.read_data.eq(Mux(was_read, words[-1], words[0]) if self.banks == 2 else words[0])
        return m
