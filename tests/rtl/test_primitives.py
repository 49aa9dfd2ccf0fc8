# amaranth: UnusedElaboratable=no
"""The small parts: every payload once and in order under all stalls, fair arbitration, and the collision assertion."""

import random

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from rtl.primitives import OrderedDrain, Ram, SkidBuffer, SmallRam, StreamArbiter, StreamFifo, round_robin


def simulate(dut, testbench) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(6.4e-9)
    simulator.add_testbench(testbench)
    simulator.run()


def pass_through(dut, count: int, offer: float, take: float, seed: int) -> tuple[list[int], int]:
    """What comes out of a component with streams `i` and `o` for 0 .. count-1, and the cycles it took."""
    rng, out, cycles = random.Random(seed), [], 0

    async def testbench(ctx):
        nonlocal cycles
        sent, valid = 0, False
        while len(out) < count:
            assert cycles < 40 * count + 100, "payloads are lost"
            valid = valid or (sent < count and rng.random() < offer)
            ready = rng.random() < take
            ctx.set(dut.i.valid, valid)
            ctx.set(dut.i.payload, sent & 0xFF)
            ctx.set(dut.o.ready, ready)
            entered, left = valid and ctx.get(dut.i.ready), ready and ctx.get(dut.o.valid)
            if entered or left:
                assert ctx.get(dut.active)
            if left:
                out.append(ctx.get(dut.o.payload))
            if entered:
                sent, valid = sent + 1, False
            await ctx.tick()
            cycles += 1
        assert not ctx.get(dut.o.valid)

    simulate(dut, testbench)
    return out, cycles


@pytest.mark.parametrize("make", [lambda: StreamFifo(shape=8, depth=2), lambda: StreamFifo(shape=8, depth=16),
                                  lambda: StreamFifo(shape=8, depth=4, bypass=True),
                                  lambda: SkidBuffer(shape=8)], ids=["fifo2", "fifo16", "bypass", "skid"])
@pytest.mark.parametrize(("offer", "take"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.3), (0.6, 0.6)])
def test_every_payload_comes_out_once_and_in_order(make, offer: float, take: float) -> None:
    out, _ = pass_through(make(), 200, offer, take, seed=7)
    assert out == list(range(200))


@pytest.mark.parametrize("make", [lambda: StreamFifo(shape=8, depth=4), lambda: SkidBuffer(shape=8),
                                  lambda: StreamFifo(shape=8, depth=4, bypass=True)])
def test_one_payload_a_cycle(make) -> None:
    _, cycles = pass_through(make(), 200, 1.0, 1.0, seed=1)
    assert cycles <= 204


def test_a_bypassed_fifo_gives_what_enters_in_the_next_cycle() -> None:
    dut = StreamFifo(shape=8, depth=4, bypass=True)

    async def testbench(ctx):
        ctx.set(dut.o.ready, 1)
        ctx.set(dut.i.valid, 1)
        for number in range(10):
            ctx.set(dut.i.payload, number)
            await ctx.tick()
            assert ctx.get(dut.o.valid)
            assert ctx.get(dut.o.payload) == number
            assert ctx.get(dut.level) == 1

    simulate(dut, testbench)


@pytest.mark.parametrize("seed", range(3))
def test_a_skid_buffer_keeps_what_may_enter_and_gives_what_did(seed) -> None:
    rng, dut, entered, left = random.Random(seed), SkidBuffer(shape=8, early=True), [], []

    async def testbench(ctx):
        for number in range(300):
            may_enter, ready = rng.random() < 0.8, rng.random() < 0.6
            valid = may_enter and rng.random() < 0.7
            ctx.set(dut.may_enter, may_enter)
            ctx.set(dut.i.valid, valid)
            ctx.set(dut.i.payload, number % 256)
            ctx.set(dut.o.ready, ready)
            if valid and ctx.get(dut.i.ready):
                entered.append(number % 256)
            if ready and ctx.get(dut.o.valid):
                left.append(ctx.get(dut.o.payload))
            await ctx.tick()

    simulate(dut, testbench)
    assert len(left) > 100
    assert left == entered[:len(left)]
    assert len(entered) - len(left) <= 2


def test_a_fifo_says_how_much_is_inside() -> None:
    dut = StreamFifo(shape=8, depth=4)

    async def testbench(ctx):
        ctx.set(dut.i.valid, 1)
        await ctx.tick().repeat(20)
        assert not ctx.get(dut.i.ready)
        assert ctx.get(dut.level) == 6  # four words, and the two output stages
        ctx.set(dut.i.valid, 0)
        ctx.set(dut.o.ready, 1)
        await ctx.tick().repeat(20)
        assert ctx.get(dut.level) == 0

    simulate(dut, testbench)


@pytest.mark.parametrize("depth", [0, 1, 3, 12])
def test_a_fifo_wants_a_power_of_two(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth must be a power of two of at least 2, not {depth}"):
        StreamFifo(shape=8, depth=depth)


def test_round_robin_grants_the_next_behind_the_last() -> None:
    class Block(wiring.Component):
        requests: In(5)
        last: In(range(5))
        grants: Out(5)

        def elaborate(self, platform):
            m = Module()
            m.d.comb += self.grants.eq(round_robin(m, self.requests, self.last))
            return m

    dut = Block()

    async def testbench(ctx):
        for last in range(5):
            for requests in range(32):
                ctx.set(dut.requests, requests)
                ctx.set(dut.last, last)
                order = [(last + 1 + n) % 5 for n in range(5)]
                wanted = next((1 << n for n in order if requests >> n & 1), 0)
                assert ctx.get(dut.grants) == wanted, (last, requests)

    simulator = Simulator(dut)
    simulator.add_testbench(testbench)
    simulator.run()


def test_an_arbiter_starves_no_one() -> None:
    dut, taken = StreamArbiter(shape=8, count=3), []

    async def testbench(ctx):
        for number, i in enumerate(dut.i):
            ctx.set(i.valid, 1)
            ctx.set(i.payload, number)
        ctx.set(dut.o.ready, 1)
        for _ in range(31):
            if ctx.get(dut.o.valid):
                assert ctx.get(dut.source) == ctx.get(dut.o.payload)
                taken.append(ctx.get(dut.source))
            await ctx.tick()

    simulate(dut, testbench)
    assert taken == [(taken[0] + n) % 3 for n in range(30)]


def test_a_drain_waits_for_what_began_before_it_and_for_nothing_else() -> None:
    """Against a list of what is under way; requests come and go at random. An answer takes 3 cycles at most."""
    rng, dut, served = random.Random(5), OrderedDrain(most=6), []

    async def testbench(ctx):
        inside: list[int] = []
        waits: set[int] = set()
        request = number = late = 0
        for _ in range(3000):
            asks = request
            if rng.random() < 0.1 or (request and ctx.get(dut.done)):
                request ^= rng.random() < 0.5
            begins, ends = len(inside) < 6 and rng.random() < 0.4, bool(inside) and rng.random() < 0.3
            for port, value in ((dut.begins, begins), (dut.ends, ends), (dut.request, request)):
                ctx.set(port, value)
            await ctx.tick()
            if begins:
                number += 1
                inside.append(number)
            if ends:
                waits.discard(inside.pop(0))
            if request and not asks:
                waits = set(inside)
            late = late + 1 if request and not waits else 0
            if request and asks and ctx.get(dut.done):
                assert not waits
                served.append(len(inside))
            assert late < 3 or ctx.get(dut.done)

    simulate(dut, testbench)
    assert len(served) > 40
    assert max(served) > 3, "what begins later does not hold it up"


def test_memories_keep_what_is_written() -> None:
    for dut, latency in ((Ram(shape=16, depth=8), 1), (SmallRam(shape=16, depth=8), 0)):
        async def testbench(ctx, dut=dut, latency=latency):
            for address in range(8):
                ctx.set(dut.write_en, 1)
                ctx.set(dut.write_addr, address)
                ctx.set(dut.write_data, address * 1111)
                await ctx.tick()
            ctx.set(dut.write_en, 0)
            for address in range(8):
                ctx.set(dut.read_addr, address)
                if latency:
                    ctx.set(dut.read_en, 1)
                    await ctx.tick()
                assert ctx.get(dut.read_data) == address * 1111

        simulate(dut, testbench)


def test_reading_a_word_while_it_is_written_is_found() -> None:
    dut = Ram(shape=8, depth=4)

    async def testbench(ctx):
        ctx.set(dut.write_en, 1)
        ctx.set(dut.read_en, 1)
        ctx.set(dut.read_addr, 1)
        await ctx.tick()  # another address: allowed
        ctx.set(dut.read_addr, 0)
        await ctx.tick()

    with pytest.raises(AssertionError, match="a word is read while it is written"):
        simulate(dut, testbench)
