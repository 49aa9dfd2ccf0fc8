"""Counters: sums against Python's, snapshots against one instant, widths against the worst case."""

import random

import pytest

from nic_model.contract import CONFIGS, COUNTERS, COUNTERS_BASE, register
from rtl.counters import EVENT_AMOUNT_BITS, LOW_BITS, Counters, round_cycles
from rtl.interfaces import CountAmount
from tests.rtl.harness import Bench, idle, until

ROUND = round_cycles(CONFIGS["tiny"])
MOST = {c.name: (1 << (CountAmount["amount"].width if c.unit == "bytes" else EVENT_AMOUNT_BITS)) - 1 for c in COUNTERS}


class Host:
    """Snapshots and reads, and a running sum of every strobe, by cycle."""

    def __init__(self, seed=0):
        self.dut = Counters(CONFIGS["tiny"])
        self.bench = Bench(self.dut, seed=seed)
        self.sums = dict.fromkeys(MOST, 0)
        self.history = [dict(self.sums)]
        self.counting = True

    def count(self, amounts):
        """Give the strobes that `amounts(cycle)` names, in each cycle while `counting`."""
        async def feed(ctx):
            while True:
                given = amounts(self.bench.cycle) if self.counting else {}
                for name in MOST:
                    port = getattr(self.dut, f"count_{name}")
                    ctx.set(port.valid, name in given)
                    if name in given:
                        ctx.set(port.payload.amount, given[name])
                        self.sums[name] += given[name]
                await ctx.tick()
                self.history.append(dict(self.sums))
        self.bench.background(feed)

    async def read(self, ctx, address):
        await self.bench.strobe(ctx, self.dut.read, {"address": address})
        payload, = await until(ctx, self.dut.value.valid, self.dut.value.payload)
        return payload.data

    async def snapshot(self, ctx):
        """Returns all values, and the cycles between which their instant lies."""
        begin = self.bench.cycle
        await self.bench.strobe(ctx, self.dut.write, {"address": register("SNAPSHOT"), "data": 1})
        assert await self.read(ctx, register("SNAPSHOT")) == 1
        while await self.read(ctx, register("SNAPSHOT")):
            pass
        end = self.bench.cycle
        values = {}
        for index, counter in enumerate(COUNTERS):
            low = await self.read(ctx, COUNTERS_BASE + 8 * index)
            values[counter.name] = low | await self.read(ctx, COUNTERS_BASE + 8 * index + 4) << 32
        return values, begin, end


@pytest.mark.parametrize("seed", range(2))
def test_snapshots_are_of_one_instant(seed):
    """Under random strobes, each snapshot equals the sums at one cycle between its write and its end."""
    host = Host(seed)
    rng = random.Random(seed)

    def amounts(_cycle):
        return {name: rng.randint(0, most) for name, most in MOST.items() if rng.random() < 0.5}
    host.count(amounts)

    async def check(ctx):
        before = -1
        for _ in range(8):
            await idle(ctx, rng.randrange(80))
            values, begin, end = await host.snapshot(ctx)
            instants = [cycle for cycle in range(begin, end + 1) if host.history[cycle] == values]
            assert len(instants) == 1
            assert instants[0] > before
            assert end - begin <= 2 * ROUND + 8
            before = instants[0]
        host.counting = False
        await idle(ctx, 2 * ROUND + 4)
        values, _, _ = await host.snapshot(ctx)
        assert values == host.sums
        assert min(values.values()) > 0
        await idle(ctx, 50)
        assert host.bench.idle_cycles > 20
    host.bench.add(check)
    host.bench.run()


def test_nothing_overflows_at_the_largest_amounts():
    """Every counter gets its largest amount in every cycle, with snapshots back to back and without."""
    host = Host()
    host.count(lambda _cycle: MOST)

    async def check(ctx):
        for turn in range(1200):
            if turn % 300 < 150:
                await host.bench.strobe(ctx, host.dut.write, {"address": register("SNAPSHOT"), "data": 1})
            else:
                await ctx.tick()
        host.counting = False
        await idle(ctx, 3 * ROUND)
        values, _, _ = await host.snapshot(ctx)
        assert values == host.sums
        assert values["tx_bytes"] > 1 << LOW_BITS  # so there was a carry between the two steps of the addition
    host.bench.add(check)
    host.bench.run()


def test_only_a_snapshot_shows_new_values():
    """Amounts are folded in many times meanwhile."""
    host = Host()
    host.count(lambda _cycle: MOST)

    async def check(ctx):
        for _ in range(60):
            await idle(ctx, 7)
            assert await host.read(ctx, register("SNAPSHOT")) == 0
        host.counting = False
        words = 2 << (len(COUNTERS) - 1).bit_length()  # the block is asked for so many
        addresses = [COUNTERS_BASE + 4 * word for word in range(words)]
        assert not any([await host.read(ctx, address) for address in addresses])
        values, _, _ = await host.snapshot(ctx)
        assert values == host.sums
        assert not any([await host.read(ctx, address) for address in addresses[2 * len(COUNTERS):]])
    host.bench.add(check)
    host.bench.run()


def test_a_pending_amount_does_not_keep_the_block_awake():
    """Between rounds nothing moves, whatever is pending; the snapshot shows it nevertheless."""
    host = Host()

    async def check(ctx):
        await host.bench.strobe(ctx, host.dut.count_rx_frames, {"amount": 1})
        await idle(ctx, 100)
        assert host.bench.idle_cycles > 90
        assert await host.read(ctx, COUNTERS_BASE + 8 * index_of("rx_frames")) == 0  # no snapshot yet
        await host.bench.strobe(ctx, host.dut.write, {"address": register("SNAPSHOT"), "data": 0})
        assert await host.read(ctx, register("SNAPSHOT")) == 0
        values, _, _ = await host.snapshot(ctx)
        assert values == dict.fromkeys(MOST, 0) | {"rx_frames": 1}
    host.bench.add(check)
    host.bench.run()


def index_of(name):
    return [c.name for c in COUNTERS].index(name)
