"""Token buckets against virtual scheduling in whole numbers of Python."""

import random

import pytest

from nic_model.contract import NicConfig, channel_register
from rtl.token_buckets import TokenBuckets
from tests.rtl.harness import Bench, idle, shared

CHANNELS = 4
UNIT = 1 << 16


def make(seed: int = 0):
    dut = shared(TokenBuckets, NicConfig(name="test", channels=CHANNELS, vectors=4))
    return dut, Bench(dut, seed=seed)


class Clock:
    """`now` is `offset` and the bench's cycle, at each edge."""

    def __init__(self, bench, dut, offset: int):
        self.bench, self.dut, self.offset = bench, dut, offset
        bench.background(self.run)

    async def run(self, ctx):
        ctx.set(self.dut.now, self.offset)
        async for _ in ctx.tick():
            ctx.set(self.dut.now, self.offset + self.bench.cycle)

    @property
    def now(self) -> int:
        return self.offset + self.bench.cycle


async def write(bench, ctx, dut, name, channel, value):
    await bench.strobe(ctx, dut.write, {"address": channel_register(name, channel), "data": value})


@pytest.mark.parametrize(("byte_time", "burst", "length"), [
    (1024, 2000, 1514), (8192, 30_000, 1514), (8192, 500, 120), (1_000_000, 20_000, 100), (1 << 31, 0, 14),
    (65_537, 3000, 9014),
])
def test_rate_and_burst(byte_time, burst, length):
    """A channel that always sends when it may: its rate within 1 %, and never more than the burst and a frame ahead."""
    dut, bench = make()
    clock = Clock(bench, dut, 5)
    sent = []
    frame_cycles = length * byte_time / UNIT
    wanted = int(4 * burst / frame_cycles) + 60

    async def testbench(ctx):
        await write(bench, ctx, dut, "TX_BURST", 2, burst)
        await write(bench, ctx, dut, "TX_BYTE_TIME", 2, byte_time)
        await idle(ctx, 20)
        while True:
            if not ctx.get(dut.held) >> 2 & 1:
                await bench.strobe(ctx, dut.sent, {"channel": 2, "channel_bit": 1 << 2, "length": length})
                sent.append(clock.now)
                if len(sent) == wanted:
                    break
            else:
                # nothing is done while it waits, and the wait ends at the deadline
                _, _, active = await ctx.tick().sample(dut.active)
                if not active and ctx.get(dut.deadline_valid):
                    clock.offset += max(0, ctx.get(dut.next_deadline) - clock.now - 3)

    bench.add(testbench)
    bench.run(max_cycles=200_000)
    for first in range(len(sent)):
        for last in range(first + 1, len(sent)):
            cycles = (last - first) * frame_cycles
            assert cycles <= sent[last] - sent[first] + burst + frame_cycles + 1
    steady = sent[wanted // 2:]
    rate = (len(steady) - 1) * frame_cycles / (steady[-1] - steady[0])
    assert rate == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_channels_against_whole_numbers(seed):
    """When each channel may send again, exactly (but for the cycles that the block takes): from a reference that keeps
    times as fractions."""
    rng = random.Random(seed)
    dut, bench = make(seed)
    clock = Clock(bench, dut, rng.choice((0, 7, (1 << 32) - 300, (1 << 40) - 500)))
    rates, bursts, ends = [0] * CHANNELS, [0] * CHANNELS, [0] * CHANNELS
    free_at, sent_at = [0] * CHANNELS, [0] * CHANNELS
    looked, waited = 0, 0

    async def testbench(ctx):
        nonlocal looked, waited
        for channel in range(CHANNELS):
            rates[channel], bursts[channel] = rng.choice((0, 3000, 20_000, 200_000, 70_000)), rng.choice((0, 100, 800))
            await write(bench, ctx, dut, "TX_BURST", channel, bursts[channel])
            await write(bench, ctx, dut, "TX_BYTE_TIME", channel, rates[channel])
        await idle(ctx, 3)
        slack = 12 * CHANNELS + 12
        for _ in range(4000):
            held = ctx.get(dut.held)
            for channel in range(CHANNELS):
                if held >> channel & 1:
                    latest = max(free_at[channel], sent_at[channel]) + slack
                    assert clock.now <= latest, f"channel {channel} is held too long"
                    waited += 1
                else:
                    assert clock.now >= free_at[channel] - 1, f"channel {channel} goes too early"
            free = [c for c in range(CHANNELS) if not held >> c & 1]
            if free and rng.random() < 0.2:
                channel, length = rng.choice(free), rng.choice((14, 60, 576, 1514))
                if rates[channel]:
                    looked += 1
                    sent_at[channel] = clock.now
                    # counted from `now` a cycle or more after the strobe, since the block takes its time
                    ends[channel] = max(ends[channel], (clock.now + 1) * UNIT) + length * rates[channel]
                    free_at[channel] = (ends[channel] // UNIT) - bursts[channel]
                await bench.strobe(ctx, dut.sent, {"channel": channel, "channel_bit": 1 << channel, "length": length})
                if rates[channel]:
                    continue
            elif rng.random() < 0.01:
                channel = rng.randrange(CHANNELS)
                if not held >> channel & 1:
                    rates[channel] = rng.choice((0, 5000, 90_000))
                    ends[channel] = free_at[channel] = 0
                    await write(bench, ctx, dut, "TX_BYTE_TIME", channel, rates[channel])
                    continue
            await ctx.tick()

    bench.add(testbench)
    bench.run(max_cycles=30_000)
    assert looked > 15
    assert waited > 500
    assert bench.idle_cycles > 50


def test_a_new_rate_lets_a_channel_go():
    dut, bench = make()
    Clock(bench, dut, 100)

    async def testbench(ctx):
        await write(bench, ctx, dut, "TX_BYTE_TIME", 1, 1 << 31)
        await bench.strobe(ctx, dut.sent, {"channel": 1, "channel_bit": 1 << 1, "length": 1000})
        await idle(ctx, 40)
        assert ctx.get(dut.held) == 2
        assert ctx.get(dut.deadline_valid)
        await write(bench, ctx, dut, "TX_BYTE_TIME", 1, 0)
        await idle(ctx, 3)
        assert ctx.get(dut.held) == 0
        await bench.strobe(ctx, dut.sent, {"channel": 1, "channel_bit": 1 << 1, "length": 1000})
        await idle(ctx, 3)
        assert ctx.get(dut.held) == 0

    bench.add(testbench)
    bench.run()
