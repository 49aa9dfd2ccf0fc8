"""Where frames for the control port wait, whole, in cells, until it has been decided where their bytes go."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from nic_model.contract import NicConfig
from nic_model.contract.control import CELL_BYTES
from rtl.interfaces import Strobe, lane_bits, row
from rtl.primitives import Ram, SmallRam, StreamFifo
from rtl.rx_buffer import LENGTH_BITS, ROW_NUMBER_BITS, buffered_row

FRAME_CELLS_BITS = LENGTH_BITS - exact_log2(CELL_BYTES) + 1
"""Of the number of a frame's cells."""


def handle_bits(config: NicConfig) -> int:
    """Bits of a cell's number; a frame's handle is the number of its first cell."""
    return ceil_log2(config.control_cells)


def cell_row(config: NicConfig) -> data.StructLayout:
    """A row of a frame. `keep`, beside its last: the frame is kept, or else forgotten."""
    return data.StructLayout({"data": 8 * config.host_bytes, "first": 1, "last": 1, "keep": 1})


def cell_order(config: NicConfig) -> data.StructLayout:
    """What to do with a kept frame: give `rows` of it from row `begin` on, where `start`, `first_count`, `last_count`
    and `at` are as in `rtl.rx_buffer.rx_order`; with `passes`, to `passed`. With `frees` its cells, `cells` of them,
    are given back behind that."""
    lanes, rows = lane_bits(config), ROW_NUMBER_BITS - lane_bits(config)
    return data.StructLayout({
        "handle": handle_bits(config), "begin": rows, "rows": rows, "start": lanes, "first_count": lanes + 1,
        "last_count": lanes + 1, "at": lanes, "passes": 1, "frees": 1, "cells": FRAME_CELLS_BITS,
    })


class ControlCells(wiring.Component):
    """Keeps frames in chains of cells, and gives back the cells in any order.

    Enters: `row`, rows of frames, one in each cycle if need be, of which some are kept; `order`, one or more for each
    of those, the last of which frees it. Leaves: `o` or `passed`, the rows of an order, the first 3 cycles behind it
    and one more for each whole cell in front of it; then a row a cycle, also from one order to the next.

    A frame is kept or not with its last row, so rows are written before. They go into a chain of cells that are no
    frame's yet: what is kept takes its cells off the chain, what is not leaves them for the next. A row for which there
    is no cell is lost, and `missed` says so beside the frame's last; such a frame must not be kept. After reset all
    cells are free; they are given out in turn, later as they come back. One that comes back can be written 4 cycles
    later.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `control_cells` and `host_bytes` are used.

    Members
    -------
    row : rows of `cell_row`.
    handle, missed : of the frame whose row is at `row`, combinational.
    order, o, passed : see above.
    held : cells of frames that are kept.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "row": In(Strobe(cell_row(config))),
            "handle": Out(handle_bits(config)), "missed": Out(1),
            "order": In(stream.Signature(cell_order(config))),
            "o": Out(stream.Signature(buffered_row(config))), "passed": Out(stream.Signature(row(config))),
            "held": Out(range(config.control_cells + 1)),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        self._rows_per_cell = CELL_BYTES // config.host_bytes
        cell_bits = handle_bits(config)
        m.submodules.rows = rows = Ram(
            shape=8 * config.host_bytes, depth=self._rows_per_cell * config.control_cells)
        # The cell behind each in its chain, for all who follow chains.
        self._next = {name: SmallRam(shape=cell_bits, depth=config.control_cells) for name in ("write", "read", "free")}
        for name, memory in self._next.items():
            m.submodules[f"next_{name}"] = memory

        free_cell, takes_cell, source_moves = self._free_cells(m)
        kept, write_moves = self._take_in(m, rows, free_cell, takes_cell)
        read_moves = self._give_out(m, rows)
        m.d.sync += self.held.eq(self.held + kept - self._comes_back)
        self.invariants.append((self.held <= config.control_cells, "more cells than there are"))
        m.d.comb += self.active.eq(write_moves | read_moves | source_moves)
        return m

    def _free_cells(self, m):
        """A stream of free cells: those that were never used, then those that came back. Returns its payload and valid,
        its ready, and whether something moves."""
        config = self.config
        cell_bits = handle_bits(config)
        m.submodules.back = back = StreamFifo(shape=cell_bits, depth=1 << ceil_log2(config.control_cells))
        fresh = Signal(range(config.control_cells + 1), name="fresh")  # the first that was never used
        has_fresh, takes = Signal(init=1, name="has_fresh"), Signal(name="takes_cell")
        cell, valid = Signal(cell_bits, name="free_cell"), Signal(name="has_free_cell")
        m.d.comb += [
            cell.eq(Mux(has_fresh, fresh, back.o.payload)), valid.eq(has_fresh | back.o.valid),
            back.o.ready.eq(takes & ~has_fresh),
        ]
        with m.If(takes & has_fresh):
            m.d.sync += [fresh.eq(fresh + 1), has_fresh.eq(fresh != config.control_cells - 1)]

        # A chain that comes back, a cell a cycle.
        self._freeing, self._freed_cell, self._cells_left = (
            Signal(name="freeing"), Signal(cell_bits, name="freed_cell"), Signal(FRAME_CELLS_BITS, name="cells_left"))
        self._comes_back = Signal(name="comes_back")
        m.d.comb += [
            self._comes_back.eq(self._freeing), back.i.valid.eq(self._freeing), back.i.payload.eq(self._freed_cell),
            self._next["free"].read_addr.eq(self._freed_cell),
        ]
        with m.If(self._freeing):
            m.d.sync += [self._freed_cell.eq(self._next["free"].read_data), self._cells_left.eq(self._cells_left - 1),
                         self._freeing.eq(self._cells_left != 1)]
        self.invariants = [(~back.i.valid | back.i.ready, "more cells come back than there are")]
        return (cell, valid), takes, takes | self._freeing | back.active

    def _take_in(self, m, rows, free_cell, takes_cell):
        """The side of the MAC. Returns how many cells are kept, and whether something moves."""
        row, valid = self.row.payload, self.row.valid
        free, has_free = free_cell
        cell_bits, place_bits = handle_bits(self.config), exact_log2(self._rows_per_cell)
        # The chain: its first cell and its last, if it has any. The next row goes to `cell`, its row `at_following`;
        # between frames that is the chain's first, so that nothing is chosen before the chain is followed.
        first, tail, has_chain = Signal(cell_bits, name="first"), Signal(cell_bits, name="tail"), Signal()
        cell, at_following = Signal(cell_bits, name="cell"), Signal(place_bits)
        lost, number, in_frame = Signal(), Signal(FRAME_CELLS_BITS, name="cells_before"), Signal(name="in_frame")

        place, stores, has_lost = Signal(place_bits), Signal(), Signal()
        cells = Signal(FRAME_CELLS_BITS)
        next_cell, is_tail, fills = self._next["write"].read_data, Signal(), Signal()
        keeps, appends, begins = Signal(), Signal(), Signal()
        m.d.comb += [
            place.eq(Mux(row.first, 0, at_following)),
            has_lost.eq(Mux(row.first, ~has_chain, lost)), stores.eq(valid & ~has_lost),
            cells.eq(Mux(row.first, 0, number)),
            self.handle.eq(first), self.missed.eq(has_lost),
            rows.write_en.eq(stores), rows.write_addr.eq(Cat(place, cell)), rows.write_data.eq(row.data),
            self._next["write"].read_addr.eq(cell), is_tail.eq(cell == tail),
            fills.eq(stores & place.all() & ~row.last),  # and so another cell is needed
            keeps.eq(valid & row.last & row.keep),
            appends.eq(fills & is_tail & has_free),
            begins.eq(Mux(keeps, is_tail, ~has_chain) & has_free),
            takes_cell.eq(appends | begins),
        ]
        self.invariants += [(~(keeps & has_lost), "a frame is kept that is not whole"),
                            (~(appends & begins), "one cell is taken twice"),
                            (in_frame | (cell == first), "a frame would not begin with the chain's first cell")]
        for memory in self._next.values():
            m.d.comb += [memory.write_en.eq(appends), memory.write_addr.eq(cell), memory.write_data.eq(free)]
        behind = Signal(cell_bits)
        m.d.comb += behind.eq(Mux(is_tail, free, next_cell))
        with m.If(valid):
            m.d.sync += [
                at_following.eq(place + 1), lost.eq(has_lost | (fills & is_tail & ~has_free)), in_frame.eq(~row.last),
                number.eq(cells + fills),
            ]
        with m.If(fills | keeps):
            m.d.sync += cell.eq(behind)
        with m.Elif(begins & ~(valid & ~row.last) & ~(in_frame & ~valid)):
            m.d.sync += cell.eq(free)
        with m.Elif(valid & row.last):
            m.d.sync += cell.eq(first)
        with m.If(appends):
            m.d.sync += tail.eq(free)
        with m.If(keeps):
            m.d.sync += [first.eq(behind), has_chain.eq(~is_tail | has_free)]
        with m.Elif(begins):
            m.d.sync += [first.eq(free), has_chain.eq(1)]
        with m.If(begins):
            m.d.sync += tail.eq(free)
        return Mux(keeps, cells + 1, 0), valid | begins

    def _give_out(self, m, rows):
        """The side of the host: as `rtl.rx_buffer.RxBuffer` gives rows, from cell to cell."""
        config = self.config
        lanes, place_bits = lane_bits(config), exact_log2(self._rows_per_cell)
        order, o = self.order.payload, self.o.payload
        cell, place = Signal(handle_bits(config), name="read_cell"), Signal(place_bits, name="read_place")
        first_cell, cells = Signal.like(order.handle), Signal.like(order.cells)
        rows_left, hops = Signal.like(order.rows), Signal(len(order.begin) - place_bits)
        start, count, last_count = Signal.like(order.start), Signal.like(order.first_count), Signal(lanes + 1)
        at, reading, walking, frees, passes = Signal.like(order.at), Signal(), Signal(), Signal(), Signal()

        # A row is read into the memory's own register, and moves on into the output's.
        waiting = Signal()
        waiting_row = Signal(data.StructLayout({
            "start": lanes, "count": lanes + 1, "last": 1, "at": lanes, "passes": 1}))
        read, advance, leave, is_last, takes, gives_back = (
            Signal(name=name) for name in ("read", "advance", "leave", "is_last_row", "takes_order", "gives_back"))
        idle = ~reading & ~walking & ~frees
        m.d.comb += [
            leave.eq((self.o.valid & self.o.ready) | (self.passed.valid & self.passed.ready)),
            advance.eq(waiting & (~self.o.valid | self.o.ready) & (~self.passed.valid | self.passed.ready)),
            self.passed.payload.data.eq(o.data), self.passed.payload.last.eq(o.last),
            read.eq(reading & ~walking & (~waiting | advance)), is_last.eq(rows_left == 1),
            # One that frees goes on as soon as its cells may: behind its last row.
            self.order.ready.eq(idle | (read & is_last & ~frees)),
            takes.eq(self.order.valid & self.order.ready),
            gives_back.eq(frees & ~reading & ~walking & ~self._freeing),
            rows.read_en.eq(read), rows.read_addr.eq(Cat(place, cell)),
            self._next["read"].read_addr.eq(cell),
        ]
        with m.If(takes):
            m.d.sync += [
                reading.eq(order.rows != 0), frees.eq(order.frees), cell.eq(order.handle), first_cell.eq(order.handle),
                cells.eq(order.cells), place.eq(order.begin), hops.eq(order.begin[place_bits:]),
                walking.eq((order.rows != 0) & order.begin[place_bits:].any()),
                rows_left.eq(order.rows), start.eq(order.start), count.eq(order.first_count),
                last_count.eq(order.last_count), at.eq(order.at), passes.eq(order.passes),
            ]
        with m.Elif(walking):
            m.d.sync += [cell.eq(self._next["read"].read_data), hops.eq(hops - 1), walking.eq(hops != 1)]
        with m.Elif(read):
            m.d.sync += [
                rows_left.eq(rows_left - 1), reading.eq(~is_last), start.eq(0), place.eq(place + 1),
                count.eq(Mux(rows_left == 2, last_count, config.host_bytes)),
            ]
            with m.If(place.all()):
                m.d.sync += cell.eq(self._next["read"].read_data)
        with m.If(gives_back):
            m.d.sync += [frees.eq(0), self._freeing.eq(1), self._freed_cell.eq(first_cell),
                         self._cells_left.eq(cells)]
        with m.If(read):
            m.d.sync += [
                waiting.eq(1), waiting_row.last.eq(is_last), waiting_row.at.eq(at), waiting_row.start.eq(start),
                waiting_row.count.eq(count), waiting_row.passes.eq(passes),
            ]
        with m.Elif(advance):
            m.d.sync += waiting.eq(0)
        with m.If(advance):
            m.d.sync += [
                o.data.eq(rows.read_data), o.count.eq(waiting_row.count), o.last.eq(waiting_row.last),
                o.start.eq(waiting_row.start), o.at.eq(waiting_row.at), self.o.valid.eq(~waiting_row.passes),
                self.passed.valid.eq(waiting_row.passes),
            ]
        with m.Elif(leave):
            m.d.sync += [self.o.valid.eq(0), self.passed.valid.eq(0)]
        return takes | walking | read | advance | leave | gives_back
