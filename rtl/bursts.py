"""What the two DMA engines share: cutting commands into bursts, and the ring of bursts in flight of one client."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from rtl.interfaces import BURST, Strobe
from rtl.primitives import SmallRam

OFFSET_BITS = exact_log2(BURST)
BLOCK_BITS = 64 - OFFSET_BITS

# One burst: it lies in block number `block` of BURST bytes and covers bytes first .. final of it; `last` marks the
# last burst of its command.
Burst = data.StructLayout({"block": BLOCK_BITS, "first": OFFSET_BITS, "final": OFFSET_BITS, "last": 1})


class BurstCutter(wiring.Component):
    """Cuts commands at the boundaries of naturally aligned blocks of BURST bytes, so no burst crosses 4 KB.

    Enters: `i`, commands with `address` and `length` >= 1. Leaves: `o`, their bursts, addresses ascending.
    Latency 1 cycle, or 2 if the burst before is still there; one burst a cycle, and one cycle more for a command of
    several.

    Parameters
    ----------
    command : StructLayout
        With the fields `address` (64 bits) and `length`.
    """

    def __init__(self, *, command):
        self.command = command
        super().__init__({"i": In(stream.Signature(command)), "o": Out(stream.Signature(Burst)), "active": Out(1)})

    def elaborate(self, platform):
        m = Module()
        length = self.i.payload.length
        end = Signal(len(length) + 1)  # where the last byte lies, counted from the start of the first block
        cutting = Signal()
        block = Signal(BLOCK_BITS)
        first = Signal(OFFSET_BITS)
        final = Signal(OFFSET_BITS)
        blocks_left = Signal(len(end) - OFFSET_BITS)
        take, cut, free, direct = Signal(), Signal(), Signal(), Signal()
        given = Signal(BLOCK_BITS)

        m.d.comb += [
            free.eq(~self.o.valid | self.o.ready), direct.eq(take & free),
            given.eq(Mux(cutting, block, self.i.payload.address[OFFSET_BITS:])),
            end.eq(self.i.payload.address[:OFFSET_BITS] + length - 1),
            self.i.ready.eq(~cutting),
            take.eq(self.i.valid & ~cutting),
            cut.eq(cutting & free),
            self.active.eq(take | cut | (self.o.valid & self.o.ready)),
        ]
        burst = self.o.payload
        self.invariants = [
            (~cutting | (blocks_left != 0) | (first <= final), "a last burst ends before it begins"),
            (~self.o.valid | (burst.first <= burst.final), "a burst ends before it begins"),
        ]
        # the first burst leaves at once if there is a place for it
        blocks_now, first_now, final_now = Signal.like(blocks_left), Signal.like(first), Signal.like(final)
        m.d.comb += [
            blocks_now.eq(Mux(cutting, blocks_left, end[OFFSET_BITS:])), final_now.eq(Mux(cutting, final, end)),
            first_now.eq(Mux(cutting, first, self.i.payload.address[:OFFSET_BITS])),
        ]
        with m.If(take | cut):
            m.d.sync += [
                block.eq(Mux(free, given + 1, given)), first.eq(Mux(free, 0, first_now)), final.eq(final_now),
                blocks_left.eq(Mux(free, blocks_now - 1, blocks_now)), cutting.eq(~free | (blocks_now != 0)),
            ]
        with m.If(direct | cut):
            m.d.sync += [
                self.o.valid.eq(1), self.o.payload.block.eq(given), self.o.payload.first.eq(first_now),
                self.o.payload.final.eq(Mux(blocks_now == 0, final_now, BURST - 1)),
                self.o.payload.last.eq(blocks_now == 0),
            ]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        return m


class BurstRing(wiring.Component):
    """The bursts in flight of one client: slots given out in ring order, answered in any order, looked at in order.

    Enters: `allocate`, which gives the slot `tail` to a burst; `answered`, which slot's last response has come, with
    `lap` toggled on each use of the slot; `advance`, the slot `head` has been looked at; `release`, a slot is free
    again. Leaves: `room` (a slot is free), `answered_head` and `error` for the slot `head`. An answer shows in the
    next cycle. Everything may happen in each cycle.

    A slot's answer flag is the lap in which it was answered, so that nothing has to clear it; after a reset the owner
    clears all by giving answers with lap 0, and meanwhile says so (`clearing`): what flags say before is of an earlier
    life.

    Parameters
    ----------
    slots : int
        Bursts in flight.
    """

    def __init__(self, *, slots):
        if not isinstance(slots, int) or slots < 2:
            raise ValueError(f"slots must be an integer of at least 2, not {slots!r}")
        self.slots = slots
        bits = ceil_log2(slots)
        super().__init__({
            "allocate": In(1), "tail": Out(bits), "room": Out(1, init=1),
            "answered": In(Strobe(data.StructLayout({"slot": bits, "lap": 1, "error": 1}))), "clearing": In(1),
            "head": Out(bits), "answered_head": Out(1), "error": Out(1), "advance": In(1), "release": In(1),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.answers = answers = SmallRam(shape=2, depth=self.slots)
        used = Signal(range(self.slots + 1))
        used_next = Signal(range(self.slots + 1))
        head_lap = Signal(init=1)
        answer = self.answered.payload
        m.d.comb += [
            answers.write_en.eq(self.answered.valid), answers.write_addr.eq(answer.slot),
            answers.write_data[0].eq(answer.lap), answers.write_data[1].eq(answer.error),
            answers.read_addr.eq(self.head),
            self.answered_head.eq((answers.read_data[0] == head_lap) & ~self.clearing),
            self.error.eq(answers.read_data[1]),
            used_next.eq(used + self.allocate - self.release),
            self.active.eq(self.allocate | self.advance | self.release | self.answered.valid),
        ]
        with m.If(self.allocate | self.release):
            m.d.sync += [used.eq(used_next), self.room.eq(used_next != self.slots)]
        with m.If(self.allocate):
            m.d.sync += self.tail.eq(Mux(self.tail == self.slots - 1, 0, self.tail + 1))
        with m.If(self.advance):
            m.d.sync += self.head.eq(Mux(self.head == self.slots - 1, 0, self.head + 1))
            with m.If(self.head == self.slots - 1):
                m.d.sync += head_lap.eq(~head_lap)
        return m
