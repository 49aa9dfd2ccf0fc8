"""The bench of the RTL blocks: what it watches by itself fails the run."""

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tests.rtl.harness import Bench, idle, shared


class Careless(wiring.Component):
    """Counts while `run`, and says so unless `is_silent`; says that it never reaches 5."""

    active: Out(1)
    run: In(1)
    is_silent: In(1)
    count: Out(4)

    def elaborate(self, platform):
        m = Module()
        count = self.count
        rows = [Signal(5_000, name=f"row_{n}") for n in range(4)]  # more than the simulator writes as one number
        m.d.comb += self.active.eq(self.run & ~self.is_silent)
        with m.If(self.run):
            m.d.sync += [register.eq(register + 1) for register in (count, *rows)]
        self.invariants = [(count < 5, "the count is 5 or more")]
        return m


def bench_of(cycles, *, is_silent=False, resets=False, dut=None):
    bench = Bench(dut or Careless(), resets=resets)

    async def main(ctx):
        assert ctx.get(bench.dut.count) == 0
        ctx.set(bench.dut.is_silent, is_silent)
        ctx.set(bench.dut.run, 1)
        await idle(ctx, cycles)
        if resets:
            await bench.reset(ctx)
        ctx.set(bench.dut.run, 0)
        await idle(ctx, 3)
    bench.add(main)
    return bench


def test_what_is_right_passes():
    bench = bench_of(4)
    bench.run()
    assert bench.idle_cycles >= 2


def test_a_register_that_changes_while_idle_is_named():
    with pytest.raises(AssertionError, match="count, row_0, row_1, row_2, row_3 changed while active was 0"):
        bench_of(1, is_silent=True).run()


def test_a_reset_may_change_a_register_while_idle():
    bench_of(4, resets=True).run()


def test_an_invariant_that_does_not_hold_is_named():
    with pytest.raises(AssertionError, match="the count is 5 or more"):
        bench_of(5).run()


def test_a_run_that_does_not_end_fails():
    with pytest.raises(AssertionError, match="not done after 3 cycles"):
        bench_of(4).run(max_cycles=3)


def test_each_bench_finds_a_shared_block_after_power_up():
    """Also the number of test benches, and what a bench before it left, make no difference."""
    dut = shared(Careless)
    for cycles, more in ((4, 3), (2, 0), (3, 5)):
        assert shared(Careless) is dut
        bench, ended = bench_of(cycles, dut=dut), []
        for number in range(more):
            async def wait(ctx, number=number, ended=ended):
                await idle(ctx, 10 * number)
                ended.append(number)
            bench.add(wait)
        bench.background(lambda ctx: idle(ctx, 1_000_000))
        bench.run()
        assert ended == list(range(more))
        assert bench.cycle == max(cycles + 3, 10 * (more - 1))
        assert bench.idle_cycles > 0


def test_a_shared_block_is_watched_each_time():
    for _ in range(2):
        bench_of(4, dut=shared(Careless)).run()
        with pytest.raises(AssertionError, match="count, row_0, row_1, row_2, row_3 changed while active was 0"):
            bench_of(1, is_silent=True, dut=shared(Careless)).run()


def test_after_a_run_that_failed_a_shared_block_is_another():
    dut = shared(Careless)
    with pytest.raises(AssertionError, match="not done"):
        bench_of(4, dut=dut).run(max_cycles=3)
    assert shared(Careless) is not dut
    bench_of(4, dut=shared(Careless)).run()
