"""Small parts that every block is made of: a memory, a FIFO, a skid buffer, an arbiter.

A block may say in `invariants`, once elaborated, what is always so inside it: pairs of a Value and what is wrong where
it is 0. Proofs build on them, and tests of blocks check them in each cycle; they are no part of the hardware.
"""

from amaranth.hdl import Array, Assert, Cat, Const, Module, Mux, Shape, Signal, Value
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out, Signature
from amaranth.utils import ceil_log2


class Ram(wiring.Component):
    """A block RAM: one write port, one read port, registered once inside.

    Enters: `write_*` at a clock edge. Leaves: `read_data`, one cycle after `read_en`, held until the next one.
    A word must not be read in the cycle in which it is written: what comes out then is undefined on hardware,
    and an assertion fails in simulation.

    Parameters
    ----------
    shape : ShapeLike
        One word.
    depth : int
        Words, at least 2.
    granularity : int or None
        Bits per write enable; None for one enable over the word.
    """

    def __init__(self, *, shape, depth, granularity=None):
        self.shape, self.depth, self.granularity = shape, depth, granularity
        width = Shape.cast(shape).width
        bits = ceil_log2(depth)
        enables = 1 if granularity is None else width // granularity
        super().__init__({
            "write_en": In(enables), "write_addr": In(bits), "write_data": In(width),
            "read_en": In(1), "read_addr": In(bits), "read_data": Out(width),
        })

    def elaborate(self, platform):
        m = Module()
        width = Shape.cast(self.shape).width
        m.submodules.memory = mem = memory.Memory(shape=width, depth=self.depth, init=[])
        write = mem.write_port(granularity=self.granularity)
        read = mem.read_port()
        m.d.comb += [
            write.en.eq(self.write_en), write.addr.eq(self.write_addr), write.data.eq(self.write_data),
            read.en.eq(self.read_en), read.addr.eq(self.read_addr), self.read_data.eq(read.data),
        ]
        collides = Signal()
        m.d.comb += collides.eq(self.read_en & self.write_en.any() & (self.read_addr == self.write_addr))
        m.d.sync += Assert(~collides, "a word is read while it is written")
        return m


class SmallRam(wiring.Component):
    """A distributed RAM: one write port, one read port without register. For shallow tables (a few dozen words).

    Enters: `write_*` at a clock edge. Leaves: `read_data` in the same cycle as `read_addr`.
    """

    def __init__(self, *, shape, depth):
        self.shape, self.depth = shape, depth
        width, bits = Shape.cast(shape).width, ceil_log2(depth)
        super().__init__({
            "write_en": In(1), "write_addr": In(bits), "write_data": In(width),
            "read_addr": In(bits), "read_data": Out(width),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = mem = memory.Memory(shape=Shape.cast(self.shape).width, depth=self.depth, init=[])
        write = mem.write_port()
        read = mem.read_port(domain="comb")
        m.d.comb += [
            write.en.eq(self.write_en), write.addr.eq(self.write_addr), write.data.eq(self.write_data),
            read.addr.eq(self.read_addr), self.read_data.eq(read.data),
        ]
        return m


class StreamFifo(wiring.Component):
    """A FIFO between two streams in block RAM, with registered outputs.

    Latency 3 cycles, or 1 with `bypass` when it is empty; throughput one a cycle. `level` counts all that is inside,
    the output register included.

    Parameters
    ----------
    shape : ShapeLike
        Payload.
    depth : int
        Words of memory, a power of two; two more fit in the output stages.
    bypass : bool
        What enters an empty FIFO goes to the output register directly.
    """

    def __init__(self, *, shape, depth, bypass=False):
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two of at least 2, not {depth!r}")
        self.shape, self.depth, self.bypass = shape, depth, bypass
        super().__init__({
            "i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape)),
            "level": Out(range(depth + 3)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        width = Shape.cast(self.shape).width
        m.submodules.ram = ram = Ram(shape=width, depth=self.depth)
        stored = Signal(range(self.depth + 1))
        head = Signal(ceil_log2(self.depth))
        tail = Signal(ceil_log2(self.depth))
        fetched = Signal()
        output = Signal(width)

        enter, fetch, advance, leave = Signal(), Signal(), Signal(), Signal()
        passes, stores = Signal(), Signal()
        free = ~self.o.valid | self.o.ready
        if self.bypass:
            m.d.comb += passes.eq(enter & (stored == 0) & ~fetched & free)
        m.d.comb += [
            self.i.ready.eq(stored != self.depth),
            enter.eq(self.i.valid & self.i.ready), stores.eq(enter & ~passes),
            leave.eq(self.o.valid & self.o.ready),
            advance.eq(fetched & free),
            fetch.eq((stored != 0) & (~fetched | advance)),
            ram.write_en.eq(stores), ram.write_addr.eq(tail), ram.write_data.eq(self.i.payload),
            ram.read_en.eq(fetch), ram.read_addr.eq(head),
            Value.cast(self.o.payload).eq(output),
            self.active.eq(enter | fetch | advance | leave),
        ]
        self.invariants = [
            (stored <= self.depth, "more words than the memory has"),
            (self.level == stored + fetched + self.o.valid, "the level is not what is inside"),
            ((tail - head)[:len(head)] == stored[:len(head)], "words do not stand between head and tail"),
        ]
        m.d.sync += stored.eq(stored + stores - fetch)
        m.d.sync += self.level.eq(self.level + enter - leave)
        with m.If(stores):
            m.d.sync += tail.eq(tail + 1)
        with m.If(fetch):
            m.d.sync += [head.eq(head + 1), fetched.eq(1)]
        with m.Elif(advance):
            m.d.sync += fetched.eq(0)
        with m.If(advance | passes):
            entering = Value.cast(self.i.payload)
            m.d.sync += [output.eq(Mux(fetched, ram.read_data, entering) if self.bypass else ram.read_data),
                         self.o.valid.eq(1)]
        with m.Elif(leave):
            m.d.sync += self.o.valid.eq(0)
        return m


class SkidBuffer(wiring.Component):
    """A stage between two streams that registers `valid` and `ready`; the payload leaves through one multiplexer.

    Latency 1 cycle, throughput one a cycle; holds two, in two registers that are written in turn. So `o.ready`, which
    often comes late, moves a pointer and enables no wide register.

    Parameters
    ----------
    shape : ShapeLike
        Payload.
    early : bool
        A port `may_enter` says when `i.payload` is worth keeping, so that an `i.valid` that comes late enables no wide
        register either; it is 1 whenever `i.valid` is.
    """

    def __init__(self, *, shape, early=False):
        self.shape, self.early = shape, early
        super().__init__({
            "i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape)), "active": Out(1),
            **({"may_enter": In(1)} if early else {}),
        })

    def elaborate(self, platform):
        m = Module()
        width = Shape.cast(self.shape).width
        slots = [Signal(width, name=f"slot_{index}") for index in range(2)]
        head, tail, full = Signal(name="head"), Signal(name="tail"), Signal(name="full")
        enter, keep, leave = Signal(), Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(~full),
            enter.eq(self.i.valid & self.i.ready),
            keep.eq(self.may_enter & self.i.ready if self.early else enter),
            leave.eq(self.o.valid & self.o.ready),
            Value.cast(self.o.payload).eq(Mux(head, slots[1], slots[0])),
            self.active.eq(keep | leave),
        ]
        self.invariants = [
            ((tail ^ head) == (self.o.valid & ~full), "the registers are not written and read in turn"),
            (~full | self.o.valid, "full, and nothing to give"),
            (~enter | keep, "what enters is not kept"),
        ]
        with m.If(enter & ~leave):
            m.d.sync += [self.o.valid.eq(1), full.eq(self.o.valid)]
        with m.Elif(leave & ~enter):
            m.d.sync += [self.o.valid.eq(full), full.eq(0)]
        with m.If(enter):
            m.d.sync += tail.eq(~tail)
        for index, slot in enumerate(slots):
            with m.If(keep & (tail == index)):
                m.d.sync += slot.eq(self.i.payload)
        with m.If(leave):
            m.d.sync += head.eq(~head)
        return m


class StreamArbiter(wiring.Component):
    """Joins several streams of one shape into one, round robin, one payload at a time, output registered.

    Latency 1 cycle, throughput one a cycle. Inputs are `i[0]` .. `i[count-1]`; `source` says beside `o` which it was.
    """

    def __init__(self, *, shape, count):
        self.shape, self.count = shape, count
        super().__init__({
            "i": In(stream.Signature(shape)).array(count), "o": Out(stream.Signature(shape)),
            "source": Out(range(max(count, 2))), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        last = Signal(range(max(self.count, 2)))
        free = Signal()
        m.d.comb += free.eq(~self.o.valid | self.o.ready)
        grants = round_robin(m, Cat(i.valid for i in self.i), last)
        m.d.comb += self.active.eq((self.o.valid & self.o.ready) | (free & grants.any()))
        with m.If(free):
            m.d.sync += self.o.valid.eq(grants.any())
        for index, i in enumerate(self.i):
            m.d.comb += i.ready.eq(free & grants[index])
            with m.If(free & grants[index]):
                m.d.sync += [self.o.payload.eq(i.payload), self.source.eq(index), last.eq(index)]
        return m


class OrderedDrain(wiring.Component):
    """Says when all that had begun before a request is over, of what ends in the order in which it began.

    Parameters
    ----------
    most : int
        Under way at a time, at most.

    Members
    -------
    begins, ends : 1 for a cycle for each that begins, or ends.
    request : level. What begins later does not hold it up.
    done : level, while `request` is 1: all that was under way when it rose is over. It falls a cycle behind it.
    """

    def __init__(self, *, most):
        if not isinstance(most, int) or most < 1:
            raise ValueError(f"most must be a positive integer, not {most!r}")
        self.most = most
        super().__init__({"begins": In(1), "ends": In(1), "request": In(1), "done": Out(1), "active": Out(1)})

    def elaborate(self, platform):
        m = Module()
        under_way, left = Signal(range(self.most + 1)), Signal(range(self.most + 1))
        is_marked, sets_mark, is_over = Signal(), Signal(), Signal()
        m.d.comb += [
            sets_mark.eq(self.request & ~is_marked), is_over.eq(self.request & is_marked & (left == 0)),
            self.active.eq(self.begins | self.ends | (self.request != is_marked) | (is_over != self.done)),
        ]
        m.d.sync += [
            under_way.eq(under_way + self.begins - self.ends), is_marked.eq(self.request), self.done.eq(is_over),
        ]
        with m.If(sets_mark):
            m.d.sync += left.eq(under_way + self.begins - self.ends)
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - self.ends)
        self.invariants = [(under_way <= self.most, "more is under way than there may be")]
        return m


class EarliestDeadline(wiring.Component):
    """The earliest of several deadlines, in the same cycle.

    Parameters
    ----------
    count : int
        Deadlines; they lie less than 2^33 cycles from each other.

    Members
    -------
    i : strobes of a cycle count, each a level: there is such a deadline.
    next_deadline, deadline_valid : the earliest, if any.
    """

    ORDER_BITS = 34  # a difference modulo 2^34 has the order in its sign, at half the carry chain of 64 bits

    def __init__(self, *, count):
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"count must be a positive integer, not {count!r}")
        self.count = count
        super().__init__({
            "i": In(Signature({"valid": Out(1), "payload": Out(64)})).array(count),
            "next_deadline": Out(64), "deadline_valid": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        valid, earliest = self.i[0].valid, self.i[0].payload
        for entry in list(self.i)[1:]:
            sooner = (entry.payload[:self.ORDER_BITS] - earliest[:self.ORDER_BITS])[self.ORDER_BITS - 1]
            earliest = Mux(entry.valid & (~valid | sooner), entry.payload, earliest)
            valid = valid | entry.valid
        m.d.comb += [self.next_deadline.eq(earliest), self.deadline_valid.eq(valid)]
        return m


def number_of(one_hot):
    """The number of the only bit that is set; 0 when none is. Combinational."""
    bits = ceil_log2(len(one_hot))
    return Cat(Cat(one_hot[n] for n in range(len(one_hot)) if n >> bit & 1).any() for bit in range(bits))


def round_robin(m, requests, last):
    """One-hot grant of the first request behind number `last`, cyclically; 0 when nobody asks. Combinational.

    `requests` is a Value; `last` a Signal that the caller sets to the granted number when the grant is used.
    """
    count = len(requests)
    behind = Signal(count, name="behind")
    grants = Signal(count, name="grants")
    first_behind, first_any = Signal(count, name="first_behind"), Signal(count, name="first_any")
    # mask[n] = n > last, as a shift of ones: requests that come later in this turn
    masks = Array(Const(((1 << count) - 1) & ~((2 << n) - 1), count) for n in range(count))
    m.d.comb += behind.eq(requests & masks[last])
    m.d.comb += [first_behind.eq(behind & (~behind + 1)), first_any.eq(requests & (~requests + 1))]
    m.d.comb += grants.eq(Mux(behind.any(), first_behind, first_any))
    return grants
