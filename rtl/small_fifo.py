"""Shallow FIFOs in distributed RAM."""

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from rtl.primitives import SmallRam


class SmallFifo(wiring.Component):
    """A FIFO between two streams in distributed RAM, for a few words.

    Latency 1 cycle, throughput one a cycle. The output comes straight from the RAM: register it, or use few bits.

    Parameters
    ----------
    shape : ShapeLike
        Payload.
    depth : int
        Words, a power of two of at least 2.

    Members
    -------
    i, o : streams in and out.
    active : a word enters or leaves.
    """

    def __init__(self, *, shape, depth):
        if not isinstance(depth, int) or depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two of at least 2, not {depth!r}")
        self.shape, self.depth = shape, depth
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape)), "active": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = SmallRam(shape=self.shape, depth=self.depth)
        head, tail = Signal(exact_log2(self.depth)), Signal(exact_log2(self.depth))
        full = Signal()
        enter, leave = Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(~full),
            enter.eq(self.i.valid & self.i.ready),
            leave.eq(self.o.valid & self.o.ready),
            ram.write_en.eq(enter), ram.write_addr.eq(tail), ram.write_data.eq(self.i.payload),
            ram.read_addr.eq(head), Value.cast(self.o.payload).eq(ram.read_data),
            self.active.eq(enter | leave),
        ]
        self.invariants = [
            (~full | (self.o.valid & (tail == head)), "full, and a place is free"),
            (self.o.valid | (tail == head), "empty, and a word is there"),
            (full | ~self.o.valid | (tail != head), "neither full nor empty, and no word is there"),
        ]
        with m.If(enter):
            m.d.sync += tail.eq(tail + 1)
        with m.If(leave):
            m.d.sync += head.eq(head + 1)
        # valid and full are registers of their own, so that neither waits for a compare
        with m.If(enter & ~leave):
            m.d.sync += [self.o.valid.eq(1), full.eq((tail + 1)[:len(head)] == head)]
        with m.Elif(leave & ~enter):
            m.d.sync += [full.eq(0), self.o.valid.eq((head + 1)[:len(head)] != tail)]
        return m


class BypassFifo(wiring.Component):
    """A shallow FIFO with a registered output, which what enters an empty one goes to directly.

    Latency 1 cycle, throughput one a cycle. Holds one word more than its depth.

    Parameters
    ----------
    shape : ShapeLike
        Payload.
    depth : int
        Words, a power of two of at least 2.

    Members
    -------
    i, o : streams in and out.
    active : a word enters, moves or leaves.
    """

    def __init__(self, *, shape, depth):
        self.shape, self.depth = shape, depth
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape)), "active": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = SmallFifo(shape=self.shape, depth=self.depth)
        free, passes = Signal(), Signal()
        m.d.comb += [
            free.eq(~self.o.valid | self.o.ready), passes.eq(self.i.valid & free & ~fifo.o.valid),
            self.i.ready.eq(fifo.i.ready), fifo.i.valid.eq(self.i.valid & ~passes),
            fifo.i.payload.eq(self.i.payload), fifo.o.ready.eq(free),
            self.active.eq(fifo.active | passes | (self.o.valid & self.o.ready)),
        ]
        with m.If(free):
            m.d.sync += self.o.valid.eq(self.i.valid | fifo.o.valid)
        with m.If(free & (self.i.valid | fifo.o.valid)):
            m.d.sync += Value.cast(self.o.payload).eq(
                Mux(fifo.o.valid, Value.cast(fifo.o.payload), Value.cast(self.i.payload)))
        return m
