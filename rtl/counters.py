"""The counters: 64 bits each in memory, fed by strobes from all blocks, shown as an atomic snapshot."""

from amaranth.hdl import Array, Assert, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from nic_model.contract import NicConfig, register
from rtl.interfaces import CountAmount, RegisterRead, RegisterValue, RegisterWrite, Strobe
from rtl.primitives import SmallRam


def round_cycles(config: NicConfig):
    """Longest time from the wish for a round, while none goes on, to the end of that round."""
    return len(config.counters) + 6


LOW_BITS = 24
"""Bits of a counter that are added in the first of two steps: more than what is pending, so no carry chain is long."""

EVENT_AMOUNT_BITS = 4
"""Bits of the largest amount that one strobe may add to a counter of other things than bytes."""


def amount_bits(counter):
    """Bits of the largest amount that one strobe may add to a counter."""
    return CountAmount["amount"].width if counter.unit == "bytes" else EVENT_AMOUNT_BITS


def pending_bits(config: NicConfig, counter):
    """Bits of what a counter gathers outside its memory: what comes from one copy to the next, with the largest amount
    in each cycle. The highest bit asks for a round, so that the copy follows at once or when the round before ends."""
    return ceil_log2(round_cycles(config) + 2 << amount_bits(counter))


class Counters(wiring.Component):
    """All counters of the contract.

    Enters: one strobe port for each counter, a strobe in each cycle if need be. Leaves: values of the last snapshot.
    Amounts gather in a few bits for each counter. A round copies all of these at one instant, leaves 0 there, and adds
    the copies to the 64-bit words, one in a cycle; it is made when a counter's few bits are half full, or for a
    snapshot, which stores the sums a second time, where they are read. A round takes `round_cycles`; a snapshot has
    ended two rounds after the SNAPSHOT write at the latest. A SNAPSHOT write during a snapshot asks for another one
    behind it. A value read while SNAPSHOT shows 1 may be old or new.

    Parameters
    ----------
    config : NicConfig
        Sizes; `counters` is used.

    Members
    -------
    count_<counter> : strobe of CountAmount. A counter of other things than bytes takes amounts up to 15.
    write : strobe of RegisterWrite.
    read, value : strobes of RegisterRead and RegisterValue, for SNAPSHOT and the counters' addresses; 1 cycle.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            **{f"count_{counter.name}": In(Strobe(CountAmount)) for counter in config.counters},
            "write": In(Strobe(RegisterWrite)),
            "read": In(Strobe(RegisterRead)), "value": Out(Strobe(RegisterValue)),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        counters = self.config.counters
        number_bits = ceil_log2(len(counters))
        m.submodules.totals = totals = SmallRam(shape=64, depth=1 << number_bits)
        m.submodules.shown = shown = SmallRam(shape=64, depth=1 << number_bits)

        copy = Signal()
        copies, counting, half_full = [], [], []
        for counter in counters:
            port = getattr(self, f"count_{counter.name}")
            amount = port.payload.amount[:amount_bits(counter)]
            pending = Signal(pending_bits(self.config, counter), name=f"pending_{counter.name}")
            copied = Signal(pending_bits(self.config, counter), name=f"copied_{counter.name}")
            with m.If(copy):
                m.d.sync += [copied.eq(pending), pending.eq(Mux(port.valid, amount, 0))]
            with m.Elif(port.valid):
                m.d.sync += pending.eq(pending + amount)
            m.d.sync += Assert(~port.valid | (port.payload.amount == amount), f"{counter.name}: amount too large")
            copies.append(copied)
            counting.append(port.valid)
            half_full.append(pending[-1])

        # -- a round: read, add the lower half, add the upper half, write
        snapshot_asked, snapshotting = Signal(), Signal()
        number = Signal(number_bits)
        walk = Signal()
        valid = [Signal(name=f"valid_{stage}") for stage in range(3)]
        numbers = [Signal(number_bits, name=f"number_{stage}") for stage in range(3)]
        word, addend = Signal(64), Signal(max(len(copied) for copied in copies))
        low, high = Signal(LOW_BITS + 1), Signal(64 - LOW_BITS)
        total = Signal(64)
        m.d.sync += [stage.eq(before) for before, stage in zip([walk, *valid], valid, strict=False)]
        m.d.comb += totals.read_addr.eq(number)
        with m.If(walk):
            m.d.sync += [numbers[0].eq(number), word.eq(totals.read_data), addend.eq(Array(copies)[number])]
        with m.If(valid[0]):
            m.d.sync += [numbers[1].eq(numbers[0]), low.eq(word[:LOW_BITS] + addend), high.eq(word[LOW_BITS:])]
        with m.If(valid[1]):
            m.d.sync += [numbers[2].eq(numbers[1]), total.eq(Cat(low[:LOW_BITS], high + low[LOW_BITS]))]
        for memory, chosen in ((totals, 1), (shown, snapshotting)):
            m.d.comb += [
                memory.write_en.eq(valid[2] & chosen), memory.write_addr.eq(numbers[2]), memory.write_data.eq(total),
            ]

        with m.FSM(name="round") as round_fsm:
            with m.State("Rest"):
                with m.If(Cat(half_full).any() | snapshot_asked):
                    m.d.comb += copy.eq(1)
                    m.d.sync += [number.eq(0), snapshotting.eq(snapshot_asked), snapshot_asked.eq(0)]
                    m.next = "Walk"
            with m.State("Walk"):
                m.d.comb += walk.eq(1)
                m.d.sync += number.eq(number + 1)
                with m.If(number == len(counters) - 1):
                    m.next = "Finish"
            with m.State("Finish"):
                with m.If(~Cat(valid).any()):
                    m.d.sync += snapshotting.eq(0)
                    m.next = "Rest"

        # -- registers; a write counts behind the start of a round in the same cycle
        with m.If(self.write.valid & (self.write.payload.address == register("SNAPSHOT")) & self.write.payload.data[0]):
            m.d.sync += snapshot_asked.eq(1)
        address = self.read.payload.address
        m.d.comb += shown.read_addr.eq(address[3:3 + number_bits])
        m.d.sync += self.value.valid.eq(self.read.valid)
        with m.If(self.read.valid):
            half = Mux(address[2], shown.read_data[32:], shown.read_data[:32])
            busy = snapshot_asked | snapshotting
            m.d.sync += self.value.payload.data.eq(Mux(address == register("SNAPSHOT"), busy, half))

        m.d.comb += self.active.eq(
            Cat(counting).any() | self.write.valid | self.read.valid | self.value.valid | copy
            | ~round_fsm.ongoing("Rest"))
        return m
