"""Up to which time it is known what came; for what may only happen when no earlier frame follows."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl.interfaces import TIME_BITS, Strobe
from rtl.parser import DELAY_ROWS


class Arrivals(wiring.Component):
    """Counts frames on their way from the MAC to the receive buffer's end.

    Enters: the events in a frame's life there. Leaves, a cycle later: `clear` while no frame is on the way, neither
    from the MAC nor in the buffer, waiting to be taken; `time`, that of the last one that left without being offered
    while none before it was on the way: so that aggregates end in time under a stream of frames that nobody wants.

    Parameters
    ----------
    behind_parser : int
        Cycles that a row takes from the parser's end to the receive buffer.

    Members
    -------
    begins : the first beat of a frame that is taken is at the MAC.
    skipped : a frame ends before the parser (a pause frame); with its time.
    ended : a frame's last row is at the receive buffer.
    dropped : likewise, and the frame is dropped; with its time.
    offered : a frame enters the receive buffer now, or waits there to be taken.
    clear : every frame that came before this cycle has been taken or dropped.
    time : so has every frame that came before this time, unless one is `offered`.
    """

    def __init__(self, *, behind_parser: int = 0):
        # each frame between the MAC and the receive buffer has a row at least
        self._most = 2 * DELAY_ROWS - 1 + behind_parser
        super().__init__({
            "begins": In(1), "skipped": In(Strobe(TIME_BITS)),
            "ended": In(1), "dropped": In(Strobe(TIME_BITS)), "offered": In(1),
            "clear": Out(1, init=1), "time": Out(TIME_BITS), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        coming, coming_next = Signal(range(self._most + 1)), Signal(range(self._most + 1))
        clear = Signal()
        # Frames end in order, but for those that are skipped, which may have others before them.
        skips_alone = self.skipped.valid & (coming == 1)
        m.d.comb += [
            coming_next.eq(coming + self.begins - self.ended - self.skipped.valid),
            clear.eq((coming_next == 0) & ~self.offered),
            self.active.eq(self.begins | self.skipped.valid | self.ended | (clear != self.clear)),
        ]
        m.d.sync += [coming.eq(coming_next), self.clear.eq(clear)]
        with m.If((self.dropped.valid | skips_alone) & ~self.offered):
            m.d.sync += self.time.eq(self.skipped.payload)
            with m.If(self.dropped.valid):
                m.d.sync += self.time.eq(self.dropped.payload)
        self.invariants = [((coming != 0) | ~(self.ended | self.skipped.valid), "a frame ends that has not begun")]
        return m
