"""The life of channels, as a dialogue and against an untimed reference."""

import random

import pytest

from nic_model.contract import (
    CONFIGS,
    ChannelCommand,
    ChannelError,
    ChannelState,
    channel_register,
    register,
)
from rtl.channels import FAULT_SOURCES, SETTLE_CYCLES, Channels
from rtl.registers import WRITE_SPACING_CYCLES
from tests.rtl.harness import Bench, idle, shared, until

IDLE, RUNNING, DRAINING, ERROR = ChannelState.IDLE, ChannelState.RUNNING, ChannelState.DRAINING, ChannelState.ERROR
GOOD_RINGS = {"TX_LOG2": 6, "RX_LOG2": 6, "CQ_LOG2": 7, "TX_BASE_LO": 0x1000, "RX_BASE_LO": 0x2000, "CQ_BASE_LO": 0}


class Host:
    """Register accesses at the pace of the register block, and a record of what the block gave out."""

    def __init__(self, name, seed=0):
        self.config = CONFIGS[name]
        self.dut = shared(Channels, self.config)
        self.bench = Bench(self.dut, seed=seed)
        self.log = []
        self.bench.background(self._watch)

    async def _watch(self, ctx):
        """Start and stop alternate for each channel; `running` rises right behind start and falls with stop."""
        dut, runs, rising = self.dut, 0, 0
        ticks = ctx.tick().sample(dut.running, dut.start.valid, dut.start.payload, dut.stop.valid, dut.stop.payload,
                                  dut.drain_request)
        requested = False
        async for _, _, running, start, started, stop, stopped, request in ticks:
            runs |= rising
            rising = 0
            if stop:
                assert runs >> stopped.channel & 1
                runs &= ~(1 << stopped.channel)
                self.log.append((self.bench.cycle, "stop", stopped.channel))
            if start:
                assert not runs >> started.channel & 1
                rising = 1 << started.channel
                self.log.append((self.bench.cycle, "start", started.channel))
            assert running == runs
            if request != requested:
                self.log.append((self.bench.cycle, "request" if request else "release", None))
            requested = request

    def events(self):
        """What happened, without times."""
        return [(what, channel) if channel is not None else what for _, what, channel in self.log]

    async def write(self, ctx, address, value):
        await self.bench.strobe(ctx, self.dut.write, {"address": address, "data": value})
        await idle(ctx, WRITE_SPACING_CYCLES - 1)

    async def read(self, ctx, address):
        await self.bench.strobe(ctx, self.dut.read, {"address": address})
        payload, = await until(ctx, self.dut.value.valid, self.dut.value.payload)
        return payload.data

    async def command(self, ctx, channel, command):
        await self.write(ctx, channel_register("CHANNEL_CONTROL", channel), command)

    async def set_rings(self, ctx, channel, rings):
        for name, value in rings.items():
            await self.write(ctx, channel_register(name, channel), value)

    async def status(self, ctx, channel):
        """(state, error) as CHANNEL_STATUS shows them."""
        value = await self.read(ctx, channel_register("CHANNEL_STATUS", channel))
        return value & 0xFF, value >> 8

    async def fault(self, ctx, source, channel, code):
        await self.bench.send(ctx, getattr(self.dut, f"fault_{source}"), {"channel": channel, "code": code})

    def drains(self, ctx, done):
        ctx.set(self.dut.drain_done_tx, done)
        ctx.set(self.dut.drain_done_rx, done)

    def run(self, *testbenches, max_cycles=60_000):
        for testbench in testbenches:
            self.bench.add(testbench)
        self.bench.run(max_cycles=max_cycles)
        assert self.bench.idle_cycles > 0


def rings_fit(rings, max_ring_log2):
    """The contract's words, in numbers."""
    sizes = {name: 1 << rings[f"{name}_LOG2"] if rings[f"{name}_LOG2"] < 64 else 0 for name in ("TX", "RX", "CQ")}
    return (all(rings[f"{name}_BASE_LO"] % 4096 == 0 for name in sizes)
            and all(16 <= sizes[name] <= 1 << max_ring_log2 for name in ("TX", "RX"))
            and sizes["TX"] + sizes["RX"] <= sizes["CQ"] <= 2 << max_ring_log2)


def test_ring_check():
    host = Host("tiny")
    rng = random.Random(11)
    sizes = [0, 3, 4, 5, 11, 12, 13, 14, 31, 32, 36, 1 << 31]
    cases = [GOOD_RINGS | {name: value} for name in ("TX_LOG2", "RX_LOG2", "CQ_LOG2") for value in sizes]
    cases += [GOOD_RINGS | {name: value} for name in ("TX_BASE_LO", "RX_BASE_LO", "CQ_BASE_LO")
              for value in (1, 0x800, 0xFFFF_F000, 0xFFFF_F800)]
    cases += [GOOD_RINGS | {"TX_LOG2": rng.randint(3, 13), "RX_LOG2": rng.randint(3, 13), "CQ_LOG2": rng.randint(4, 14)}
              for _ in range(30)]
    good = [rings_fit(rings, host.config.max_ring_log2) for rings in cases]
    assert 10 < sum(good) < len(good) - 10

    async def check(ctx):
        host.drains(ctx, 1)
        for n, (rings, fits) in enumerate(zip(cases, good, strict=True)):
            channel = n % host.config.channels
            await host.set_rings(ctx, channel, rings)
            await host.command(ctx, channel, ChannelCommand.ENABLE)
            expected = (RUNNING, 0) if fits else (ERROR, ChannelError.RING_CONFIG)
            assert await host.status(ctx, channel) == expected, rings
            await host.command(ctx, channel, ChannelCommand.RESET)
            while (await host.status(ctx, channel))[0] == DRAINING:
                pass
            assert await host.status(ctx, channel) == (IDLE, 0)
    host.run(check)
    assert sum(e[0] == "start" for e in host.events()) == sum(good)


def test_life_of_a_channel():
    host = Host("tiny")
    dut = host.dut

    async def dialogue(ctx):
        assert await host.status(ctx, 2) == (IDLE, 0)
        await host.command(ctx, 2, ChannelCommand.RESET)  # nothing to reset
        await host.set_rings(ctx, 2, GOOD_RINGS)
        await host.command(ctx, 2, 7)  # no such command
        assert await host.status(ctx, 2) == (IDLE, 0)
        await host.command(ctx, 2, ChannelCommand.ENABLE)
        assert await host.status(ctx, 2) == (RUNNING, 0)
        await host.command(ctx, 2, ChannelCommand.ENABLE)  # it runs already
        assert host.events() == [("start", 2)]

        await host.fault(ctx, "fetch", 1, ChannelError.FETCH_BUS_ERROR)  # channel 1 does not run
        await host.fault(ctx, "receive", 2, ChannelError.DOORBELL_OVERRUN)
        await host.fault(ctx, "completion", 2, ChannelError.COMPLETION_BUS_ERROR)  # too late: the first counts
        await idle(ctx, 12)
        assert await host.status(ctx, 1) == (IDLE, 0)
        assert await host.status(ctx, 2) == (ERROR, ChannelError.DOORBELL_OVERRUN)
        assert host.events() == [("start", 2), ("stop", 2)]
        assert await host.read(ctx, register("ERROR_CHANNELS_LO")) == 0b0100
        assert await host.read(ctx, register("ERROR_CHANNELS_HI")) == 0
        assert not ctx.get(dut.error_irq)
        await host.write(ctx, register("ERROR_MASK"), 0)
        assert ctx.get(dut.error_irq)

        await host.command(ctx, 2, ChannelCommand.ENABLE)  # only after a reset
        assert await host.status(ctx, 2) == (ERROR, ChannelError.DOORBELL_OVERRUN)
        await host.command(ctx, 2, ChannelCommand.RESET)
        await idle(ctx, 50)
        assert await host.status(ctx, 2) == (DRAINING, 0)
        await host.command(ctx, 2, ChannelCommand.ENABLE)  # not while it drains
        ctx.set(dut.drain_done_tx, 1)
        await idle(ctx, 10)
        assert await host.status(ctx, 2) == (DRAINING, 0)
        ctx.set(dut.drain_done_rx, 1)
        await idle(ctx, 10)
        assert await host.status(ctx, 2) == (IDLE, 0)
        assert host.events() == [("start", 2), ("stop", 2), "request", "release"]

        await host.write(ctx, register("ERROR_CHANNELS_LO"), 0b1011)
        assert ctx.get(dut.error_irq)
        await host.write(ctx, register("ERROR_CHANNELS_HI"), 0xFFFF_FFFF)
        assert ctx.get(dut.error_irq)
        await host.write(ctx, register("ERROR_CHANNELS_LO"), 0b0100)
        assert not ctx.get(dut.error_irq)
        assert await host.read(ctx, register("ERROR_CHANNELS_LO")) == 0
    host.run(dialogue)


@pytest.mark.parametrize("delay", range(12))
def test_clearing_an_error_while_it_happens(delay):
    """An ERROR_CHANNELS write that comes before the channel has stopped does not hide the error; a later one clears it.
    """
    host = Host("tiny")

    async def dialogue(ctx):
        await host.set_rings(ctx, 3, GOOD_RINGS)
        await host.command(ctx, 3, ChannelCommand.ENABLE)
        await host.fault(ctx, "fetch", 3, ChannelError.FETCH_BUS_ERROR)
        await idle(ctx, delay)
        written = host.bench.cycle + 1
        await host.write(ctx, register("ERROR_CHANNELS_LO"), 0b1000)
        await idle(ctx, 8)
        (stopped, _, _), = [entry for entry in host.log if entry[1] == "stop"]
        expected = 0b1000 if written < stopped else 0
        assert await host.read(ctx, register("ERROR_CHANNELS_LO")) == expected, (written, stopped)
    host.run(dialogue)


def test_drain_serves_only_what_came_before():
    """A reset and a DRAIN write during a drain wait for the next one, and a stale answer does not count."""
    host = Host("tiny")
    dut = host.dut

    async def dialogue(ctx):
        host.drains(ctx, 0)
        for channel in (0, 1):
            await host.set_rings(ctx, channel, GOOD_RINGS)
            await host.command(ctx, channel, ChannelCommand.ENABLE)
        await host.command(ctx, 0, ChannelCommand.RESET)
        await until(ctx, dut.drain_request)
        await host.command(ctx, 1, ChannelCommand.RESET)
        await host.write(ctx, register("DRAIN"), 1)
        assert await host.read(ctx, register("DRAIN")) == 1

        host.drains(ctx, 1)
        await until(ctx, ~dut.drain_request)
        await until(ctx, dut.drain_request)
        await ctx.tick()
        host.drains(ctx, 0)  # one cycle late: that was still the answer to the first request
        await idle(ctx, 30)
        assert await host.status(ctx, 0) == (IDLE, 0)
        assert await host.status(ctx, 1) == (DRAINING, 0)
        assert await host.read(ctx, register("DRAIN")) == 1

        host.drains(ctx, 1)
        await until(ctx, ~dut.drain_request)
        await idle(ctx, 2)
        assert await host.status(ctx, 1) == (IDLE, 0)
        assert await host.read(ctx, register("DRAIN")) == 0
        await host.write(ctx, register("DRAIN"), 0)  # starts nothing
        assert await host.read(ctx, register("DRAIN")) == 0
    host.run(dialogue)
    times = {}
    for cycle, what, channel in host.log:
        times.setdefault((what, channel), []).append(cycle)
    requests, releases = times["request", None], times["release", None]
    assert len(requests) == len(releases) == 2
    assert requests[0] - times["stop", 0][0] >= SETTLE_CYCLES
    assert requests[1] - max(times["stop", 1][0], releases[0]) >= SETTLE_CYCLES


@pytest.mark.parametrize("name", ["tiny", "wide"])
def test_device_reset(name):
    host = Host(name)
    last = host.config.channels - 1

    async def dialogue(ctx):
        host.drains(ctx, 0)
        for channel in (0, 2, last):
            await host.set_rings(ctx, channel, GOOD_RINGS)
            await host.command(ctx, channel, ChannelCommand.ENABLE)
        await host.command(ctx, 1, ChannelCommand.ENABLE)  # without rings
        assert await host.status(ctx, 1) == (ERROR, ChannelError.RING_CONFIG)
        await host.fault(ctx, "fetch", last, ChannelError.TRUNCATED_DESCRIPTOR)
        await idle(ctx, 8)
        word, position = divmod(last, 32)
        assert await host.read(ctx, register(f"ERROR_CHANNELS_{('LO', 'HI')[word]}")) >> position == 1
        await host.write(ctx, register("DEVICE_RESET"), 1)
        assert await host.read(ctx, register("DEVICE_RESET")) == 1
        await idle(ctx, 4 * host.config.channels + 20)
        for channel in (0, 1, 2, last):
            assert await host.status(ctx, channel) == (DRAINING, 0)
        assert await host.read(ctx, register("DEVICE_RESET")) == 1
        host.drains(ctx, 1)
        while await host.read(ctx, register("DEVICE_RESET")):
            pass
        for channel in range(host.config.channels):
            assert await host.status(ctx, channel) == (IDLE, 0)
    host.run(dialogue)
    assert sorted(e for e in host.events() if e[0] == "stop") == [("stop", 0), ("stop", 2), ("stop", last)]


@pytest.mark.parametrize("seed", range(2))
def test_random_life(seed):
    """Random commands and faults, each settled before the next, against an untimed reference."""
    host = Host("tiny", seed=seed)
    rng = random.Random(seed)
    channels = range(host.config.channels)
    state = dict.fromkeys(channels, (IDLE, 0))
    errors = 0
    seen = set()

    async def check(ctx):
        nonlocal errors
        host.drains(ctx, 1)
        for channel in channels:
            await host.set_rings(ctx, channel, GOOD_RINGS if channel else GOOD_RINGS | {"CQ_LOG2": 6})
        for _ in range(80):
            channel = rng.choice(channels)
            action = rng.choice(["enable"] * 3 + ["fault"] * 2 + ["reset", "device", "clear"])
            if action == "enable":
                await host.command(ctx, channel, ChannelCommand.ENABLE)
                if state[channel][0] == IDLE:
                    state[channel] = (RUNNING, 0) if channel else (ERROR, ChannelError.RING_CONFIG)
                    errors |= 0 if channel else 1
            elif action == "reset":
                await host.command(ctx, channel, ChannelCommand.RESET)
                state[channel] = (IDLE, 0)
            elif action == "fault":
                code = rng.choice(list(ChannelError)[2:])
                await host.fault(ctx, rng.choice(FAULT_SOURCES), channel, code)
                if state[channel][0] == RUNNING:
                    state[channel] = (ERROR, code)
                    errors |= 1 << channel
            elif action == "device" and rng.random() < 0.3:
                await host.write(ctx, register("DEVICE_RESET"), 1)
                state.update(dict.fromkeys(channels, (IDLE, 0)))
            elif action == "clear":
                clear = rng.getrandbits(host.config.channels)
                await host.write(ctx, register("ERROR_CHANNELS_LO"), clear)
                errors &= ~clear
            await idle(ctx, 45)
            assert {c: await host.status(ctx, c) for c in channels} == state
            assert await host.read(ctx, register("ERROR_CHANNELS_LO")) == errors
            seen.update(state.values())
    host.run(check)
    assert len(seen) >= 5


@pytest.mark.parametrize("seed", range(2))
def test_storm(seed):
    """Commands at full pace with faults from all sides and slow drains: start and stop keep alternating, and in the end
    a device reset brings every channel to IDLE."""
    host = Host("default", seed=seed)
    rng = random.Random(seed)

    async def check(ctx):
        for channel in range(host.config.channels):
            await host.set_rings(ctx, channel, GOOD_RINGS)
        for _ in range(300):
            await host.command(ctx, rng.randrange(4), rng.choice(list(ChannelCommand)))
        await host.write(ctx, register("DEVICE_RESET"), 1)
        while await host.read(ctx, register("DEVICE_RESET")):
            pass
        for channel in range(host.config.channels):
            assert await host.status(ctx, channel) == (IDLE, 0)

    async def answer_drains(ctx):
        while True:
            await until(ctx, host.dut.drain_request)
            await idle(ctx, rng.randrange(30))
            host.drains(ctx, 1)
            await until(ctx, ~host.dut.drain_request)
            host.drains(ctx, 0)

    host.bench.background(answer_drains)
    for source in FAULT_SOURCES:
        async def faults(ctx, source=source):
            for _ in range(30):
                await idle(ctx, rng.randrange(100))
                await host.fault(ctx, source, rng.randrange(4), ChannelError.FETCH_BUS_ERROR)
        host.bench.add(faults)
    host.run(check)
    assert sum(e[0] == "start" for e in host.events()) > 20
