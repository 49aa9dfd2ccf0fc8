"""Arming, moderation and interrupt lines: by named cases, and against the device model at random."""

import random

import pytest

from nic_model.contract import MAX_MODERATION_FRAMES, NicConfig, channel_register, vector_register
from nic_model.events import Arming, Vector
from rtl.events import Events
from tests.rtl.harness import Bench, idle, shared

CHANNELS, VECTORS = 8, 4
CONFIG = NicConfig(name="test", mac_bytes=8, channels=CHANNELS, vectors=VECTORS, keys=64)
REACTION_CYCLES = 16
"""More than any one thing takes from input to `irq`."""


class Host:
    """What software and the other blocks do to the events; `now` counts cycles, or jumps while nothing happens."""

    def __init__(self, config: NicConfig = CONFIG, *, seed: int = 0, jump: bool = False):
        self.bench = Bench(shared(Events, config), seed=seed, now_registers=("due",))
        self.config, self.dut, self.jump = config, self.bench.dut, jump
        self.now = 1_000
        self.next_action: int | None = None
        self.irq: list[tuple[int, int]] = []
        self.interrupts = 0
        self.values: list[dict] = []
        self.cycles_run = 0
        self.bench.background(self._clock)
        self.bench.strobes(self.dut.value, self.values)

    async def _clock(self, ctx):
        """Drive `now`; note each change of `irq` with it. A jump never passes `next_deadline` or the next action."""
        lines = 0
        while True:
            ctx.set(self.dut.now, self.now)
            active, deadline = ctx.get(self.dut.active), ctx.get(self.dut.next_deadline)
            goals = [self.next_action] if self.next_action is not None else []
            if ctx.get(self.dut.deadline_valid):
                goals.append(deadline)
            await ctx.tick()
            self.cycles_run += 1
            if ctx.get(self.dut.irq) != lines:
                lines = ctx.get(self.dut.irq)
                self.irq.append((self.now, lines))
            counted = self.dut.count_interrupts
            self.interrupts += ctx.get(counted.valid) * ctx.get(counted.payload.amount)
            self.now += 1
            if self.jump and not active and goals and min(goals) > self.now:
                self.now = min(goals)

    async def until(self, ctx, now: int) -> None:
        """Let time come to `now`."""
        self.next_action = now
        while self.now < now:
            await ctx.tick()
        self.next_action = None

    async def settle(self, ctx) -> None:
        await idle(ctx, REACTION_CYCLES)

    async def write(self, ctx, address: int, data: int) -> None:
        await self.bench.strobe(ctx, self.dut.write, {"address": address, "data": data})

    async def set_vector(self, ctx, vector: int, **values: int) -> None:
        """Write VECTOR_* registers, named without the prefix."""
        for name, value in values.items():
            await self.write(ctx, vector_register(f"VECTOR_{name.upper()}", vector), value)

    async def start(self, ctx, channel: int, vector: int) -> None:
        await self.write(ctx, channel_register("CHANNEL_VECTOR", channel), vector)
        await self.bench.strobe(ctx, self.dut.start, {"channel": channel})
        ctx.set(self.dut.running, ctx.get(self.dut.running) | 1 << channel)

    async def stop(self, ctx, channel: int) -> None:
        ctx.set(self.dut.running, ctx.get(self.dut.running) & ~(1 << channel))
        await self.bench.strobe(ctx, self.dut.stop, {"channel": channel})

    async def arm(self, ctx, channel: int, index: int) -> None:
        await self.bench.send(ctx, self.dut.arm, {"channel": channel, "index": index})

    async def retire(self, ctx, channel: int, index: int, receive: int = 1) -> None:
        await self.bench.send(ctx, self.dut.retired, {"channel": channel, "receive": receive, "index": index})

    async def read(self, ctx, name: str, vector: int) -> int:
        before = len(self.values)
        await self.bench.strobe(ctx, self.dut.read, {"address": vector_register(name, vector)})
        while len(self.values) == before:
            await ctx.tick()
        return self.values[-1]["data"]

    def lines(self, ctx) -> int:
        return ctx.get(self.dut.irq)

    def run(self, talk, **kwargs) -> None:
        async def testbench(ctx):
            await talk(ctx)
            await self.settle(ctx)
            assert ctx.get(self.dut.active) == 0
        self.bench.add(testbench)
        self.bench.run(**kwargs)


def test_an_armed_ring_raises_its_vector_once() -> None:
    host = Host()

    async def talk(ctx):
        await host.start(ctx, 3, 2)
        await host.set_vector(ctx, 2, mask=0)
        await host.retire(ctx, 3, 1)
        await host.settle(ctx)
        assert host.lines(ctx) == 0, "not armed: nothing fires"
        await host.arm(ctx, 3, 1)
        await host.settle(ctx)
        assert host.lines(ctx) == 0
        await host.retire(ctx, 3, 2)
        await host.settle(ctx)
        assert host.lines(ctx) == 0b100
        await host.retire(ctx, 3, 3)
        await host.settle(ctx)
        await host.arm(ctx, 3, 3)
        await host.settle(ctx)
        assert host.lines(ctx) == 0
        assert await host.read(ctx, "VECTOR_FIRED", 2) == 1
        assert await host.read(ctx, "VECTOR_RX_EVENTS", 2) == 3
        assert await host.read(ctx, "VECTOR_TX_EVENTS", 2) == 0

    host.run(talk)
    assert host.interrupts == 1


def test_what_happened_while_disarmed_is_not_lost() -> None:
    """Arming with an old consumer index fires at once, even with moderation, and the line is seen to fall between."""
    host = Host()

    async def talk(ctx):
        await host.start(ctx, 0, 1)
        await host.set_vector(ctx, 1, mask=0, rx_ticks=1000, rx_frames=50)
        await host.retire(ctx, 0, 1)
        await host.arm(ctx, 0, 0)
        await host.settle(ctx)
        assert host.lines(ctx) == 0b10
        await host.retire(ctx, 0, 2)
        await host.arm(ctx, 0, 1)
        await host.settle(ctx)
        assert host.lines(ctx) == 0b10
        await host.arm(ctx, 0, 2)
        await host.settle(ctx)

    host.run(talk)
    assert [lines for _, lines in host.irq] == [0b10, 0, 0b10, 0]
    assert host.interrupts == 2


def test_moderation_by_count_and_by_time() -> None:
    host = Host()

    async def talk(ctx):
        await host.start(ctx, 0, 0)
        await host.set_vector(ctx, 0, mask=0, rx_ticks=300, rx_frames=3, tx_ticks=100)
        await host.arm(ctx, 0, 0)
        await host.retire(ctx, 0, 1)
        await host.retire(ctx, 0, 2)
        await host.settle(ctx)
        assert host.lines(ctx) == 0
        await host.retire(ctx, 0, 3)
        await host.settle(ctx)
        assert host.lines(ctx) == 1, "the third raises it"

        await host.arm(ctx, 0, 3)
        began = host.now
        await host.retire(ctx, 0, 4)
        await host.until(ctx, began + 290)
        assert host.lines(ctx) == 0
        await host.until(ctx, began + 330)
        assert host.lines(ctx) == 1, "300 cycles after the first"

        await host.arm(ctx, 0, 4)
        began = host.now
        await host.retire(ctx, 0, 5)
        await host.until(ctx, began + 50)
        await host.retire(ctx, 0, 6, receive=0)
        await host.until(ctx, began + 140)
        assert host.lines(ctx) == 0
        await host.until(ctx, began + 180)
        assert host.lines(ctx) == 1, "a send's shorter time counts from the send"

    host.run(talk)


def test_a_number_of_frames_beyond_the_largest_acts_as_the_largest() -> None:
    """0x10001 cut to 16 bits would raise the line at the first completion."""
    host = Host()

    async def talk(ctx):
        await host.start(ctx, 0, 0)
        await host.set_vector(ctx, 0, mask=0, rx_frames=MAX_MODERATION_FRAMES + 2)
        await host.arm(ctx, 0, 0)
        for index in range(1, 5):
            await host.retire(ctx, 0, index)
        await host.settle(ctx)
        assert host.lines(ctx) == 0
        await host.set_vector(ctx, 0, rx_frames=5)
        await host.retire(ctx, 0, 5)
        await host.settle(ctx)
        assert host.lines(ctx) == 1, "all that came before were counted"

    host.run(talk)


def test_completions_of_a_ring_that_is_not_armed_are_seen() -> None:
    host = Host()

    async def talk(ctx):
        await host.start(ctx, 0, 2)
        for index in (1, 2, 3):
            await host.retire(ctx, 0, index, receive=index % 2)
        await host.settle(ctx)
        assert await host.read(ctx, "VECTOR_RX_EVENTS", 2) == 2
        assert await host.read(ctx, "VECTOR_TX_EVENTS", 2) == 1
        assert await host.read(ctx, "VECTOR_FIRED", 2) == 0

    host.run(talk)
    assert host.interrupts == 0


def test_a_vector_falls_when_all_that_fired_are_armed_again_or_gone() -> None:
    host = Host()

    async def talk(ctx):
        for channel in (0, 1, 2):
            await host.start(ctx, channel, 3)
            await host.arm(ctx, channel, 0)
        await host.set_vector(ctx, 3, mask=0)
        for channel in (0, 1, 2):
            await host.retire(ctx, channel, 1)
        await host.settle(ctx)
        assert host.lines(ctx) == 0b1000
        await host.arm(ctx, 1, 1)
        await host.settle(ctx)
        await host.stop(ctx, 0)
        await host.settle(ctx)
        assert host.lines(ctx) == 0b1000
        await host.arm(ctx, 0, 0)
        await host.settle(ctx)
        assert host.lines(ctx) == 0b1000, "a channel that does not run is not armed"
        await host.stop(ctx, 2)
        await host.settle(ctx)
        assert host.lines(ctx) == 0
        await host.start(ctx, 2, 1)
        await host.set_vector(ctx, 1, mask=0)
        await host.arm(ctx, 2, 0)
        await host.settle(ctx)
        assert host.lines(ctx) == 0
        await host.retire(ctx, 2, 1)
        await host.settle(ctx)
        assert host.lines(ctx) == 0b10, "the new vector, from index 0"

    host.run(talk)


def test_a_mask_acts_on_the_line_only() -> None:
    host = Host()

    async def talk(ctx):
        await host.start(ctx, 0, 0)
        await host.arm(ctx, 0, 0)
        await host.retire(ctx, 0, 1)
        await host.settle(ctx)
        assert host.lines(ctx) == 0, "masked after reset"
        assert await host.read(ctx, "VECTOR_FIRED", 0) == 1
        await host.set_vector(ctx, 0, mask=0)
        await host.settle(ctx)
        assert host.lines(ctx) == 1
        await host.set_vector(ctx, 0, mask=1)
        await host.settle(ctx)
        assert host.lines(ctx) == 0

    host.run(talk)


def test_all_channels_stop_at_once_and_the_error_line_counts() -> None:
    host = Host()

    async def talk(ctx):
        for channel in range(CHANNELS):
            await host.start(ctx, channel, channel % VECTORS)
            await host.arm(ctx, channel, 0)
            await host.retire(ctx, channel, 1)
        await host.settle(ctx)
        for vector in range(VECTORS):
            await host.set_vector(ctx, vector, mask=0)
        await host.settle(ctx)
        assert host.lines(ctx) == 0b1111
        ctx.set(host.dut.error_irq, 1)
        for channel in range(CHANNELS):  # a device reset: one each cycle
            await host.stop(ctx, channel)
        await idle(ctx, 4 * CHANNELS + REACTION_CYCLES)
        assert host.lines(ctx) == 0

    host.run(talk)
    assert host.interrupts == VECTORS + 1


def test_a_completion_each_two_cycles_and_arms_take_turns() -> None:
    host = Host()
    arms_before_end: list[int] = []

    async def talk(ctx):
        await host.start(ctx, 0, 0)
        await host.settle(ctx)
        began = host.bench.cycle
        for index in range(1, 51):
            await host.retire(ctx, 0, index)
        assert host.bench.cycle - began <= 2 * 50 + 1

        ctx.set(host.dut.arm.payload, {"channel": 0, "index": 50})  # a flood of arms
        ctx.set(host.dut.arm.valid, 1)
        began = host.bench.cycle
        for index in range(51, 71):
            await host.retire(ctx, 0, index)
        ctx.set(host.dut.arm.valid, 0)
        arms_before_end.append(host.bench.cycle - began)

    host.run(talk)
    assert arms_before_end[0] <= 20 * (2 + 4) + 4


def test_completions_without_a_gap_are_counted_one_by_one() -> None:
    """Neighbours of one vector, and of one kind, see what the one before changed."""
    rng = random.Random(5)
    for frames in (2, 3, 7):
        host = Host(seed=frames)
        sent = [(rng.randrange(3), rng.randrange(2)) for _ in range(60)]

        async def talk(ctx, host=host, sent=sent, frames=frames):
            for channel in range(3):
                await host.start(ctx, channel, channel // 2)
            for vector in (0, 1):
                await host.set_vector(ctx, vector, mask=0, rx_frames=frames, tx_frames=frames)
            for channel in range(3):
                await host.arm(ctx, channel, 0)
            await host.settle(ctx)
            index, counts, lines = [0] * 3, [[0, 0], [0, 0]], 0
            for channel, receive in sent:
                index[channel] += 1
                counts[channel // 2][receive] += 1
                await host.retire(ctx, channel, index[channel], receive)
                lines |= (counts[channel // 2][receive] == frames) << channel // 2
                if rng.random() < 0.1:
                    await host.settle(ctx)
                    assert host.lines(ctx) == lines
            await host.settle(ctx)
            assert host.lines(ctx) == lines == 0b11
            for vector in (0, 1):
                assert await host.read(ctx, "VECTOR_TX_EVENTS", vector) == counts[vector][0]
                assert await host.read(ctx, "VECTOR_RX_EVENTS", vector) == counts[vector][1]
                assert await host.read(ctx, "VECTOR_FIRED", vector) == 1

        host.run(talk)


def test_a_deadline_that_is_set_while_another_comes_is_not_lost() -> None:
    """The second vector's first completion comes in each of the cycles about the first one's deadline."""
    for offset in range(-12, 8):
        host = Host(seed=1)

        async def talk(ctx, host=host, offset=offset):
            for channel in (0, 1):
                await host.start(ctx, channel, channel)
                await host.set_vector(ctx, channel, mask=0, rx_ticks=60)
                await host.arm(ctx, channel, 0)
            await host.settle(ctx)
            began = host.now
            await host.retire(ctx, 0, 1)
            await host.until(ctx, began + 60 + offset)
            await host.retire(ctx, 1, 1)
            await host.until(ctx, began + 60 + 60 + offset + 2 * REACTION_CYCLES)
            assert host.lines(ctx) == 0b11, f"offset {offset}"

        host.run(talk)


def random_actions(rng: random.Random, count: int) -> list[tuple[int, str, tuple]]:
    """Actions at increasing times, some close together, some far apart."""
    actions, now = [], 2_000
    for _ in range(count):
        now += rng.choice([20, 25, 100, 400])
        actions.append((now, rng.choice(["retire"] * 12 + ["arm"] * 12 + ["restart", "moderate", "mask"]), (
            rng.randrange(3), rng.randrange(2), rng.randrange(2), rng.random() < 0.7,
            rng.choice([0, 150, 900]), rng.choice([0, 1, 2, 5]))))
    return actions


class Reference:
    """The same by the device model, which has no time but the deadlines."""

    def __init__(self):
        self.vectors = [Vector() for _ in range(VECTORS)]
        self.arming = [Arming() for _ in range(CHANNELS)]
        self.index = [0] * CHANNELS
        self.vector_of = [0] * CHANNELS

    def advance(self, now: int) -> None:
        for vector in self.vectors:
            if vector.deadline is not None and vector.deadline <= now:
                vector.rise()

    def is_near_deadline(self, now: int) -> bool:
        """Whether what happens at `now` may meet a deadline a few cycles later in the RTL."""
        return any(v.deadline is not None and abs(v.deadline - now) <= REACTION_CYCLES for v in self.vectors)

    def lines(self) -> int:
        return sum(vector.line << number for number, vector in enumerate(self.vectors))


async def act(ctx, host: Host, reference: Reference, kind: str, arguments: tuple) -> None:
    """One random action on the RTL and on the model."""
    channel, vector, receive, consumed_all, ticks, frames = arguments
    model = reference.vectors[vector]
    if kind == "retire":
        reference.index[channel] += 1
        own = reference.vectors[reference.vector_of[channel]]
        # The RTL adds the wait to the cycle in which it gets there, 2 cycles after it took the token.
        reference.arming[channel].completed(own, own.rx if receive else own.tx, host.now + 2)
        await host.retire(ctx, channel, reference.index[channel], receive)
    elif kind == "arm":
        own = reference.vectors[reference.vector_of[channel]]
        missing = 0 if consumed_all else 1
        reference.arming[channel].arm(own, consumed_all=not missing)
        await host.arm(ctx, channel, (reference.index[channel] - missing) % (1 << 16))
    elif kind == "restart":
        reference.arming[channel].clear(reference.vectors[reference.vector_of[channel]])
        reference.vector_of[channel], reference.index[channel] = vector, 0
        await host.stop(ctx, channel)
        await host.start(ctx, channel, vector)
    elif kind == "moderate":
        side = model.rx if receive else model.tx
        side.ticks, side.frames = ticks, frames
        prefix = "rx" if receive else "tx"
        await host.set_vector(ctx, vector, **{f"{prefix}_ticks": ticks, f"{prefix}_frames": frames})
    else:
        model.masked = not consumed_all
        await host.set_vector(ctx, vector, mask=int(not consumed_all))


def live(actions: list[tuple[int, str, tuple]], seed: int = 0) -> tuple[int, int, float]:
    """The same actions at the same times: the model's lines after each; the same changes of `irq` at the same `now`
    whether time runs or jumps; the same statistics at the end. Returns comparisons and interrupts of each, and the
    share of cycles that is left when time jumps."""
    logs, cycles, statistics = [], [], []
    compared = [0]
    for jump in (False, True):
        host, reference = Host(seed=seed, jump=jump), Reference()
        compared[0] = 0

        async def talk(ctx, host=host, reference=reference):
            for channel in range(CHANNELS):
                reference.vector_of[channel] = channel % VECTORS
                await host.start(ctx, channel, channel % VECTORS)
            for vector in range(VECTORS):
                await act(ctx, host, reference, "mask", (0, vector, 0, True, 0, 0))
            for now, kind, arguments in actions:
                await host.until(ctx, now)
                reference.advance(host.now)
                if not reference.is_near_deadline(host.now):
                    assert host.lines(ctx) == reference.lines(), f"before {kind} at {now}"
                    compared[0] += 1
                else:
                    await host.until(ctx, now + 2 * REACTION_CYCLES)
                    reference.advance(host.now)
                await act(ctx, host, reference, kind, arguments)
            await host.until(ctx, actions[-1][0] + 2_000)
            reference.advance(host.now)
            assert host.lines(ctx) == reference.lines()
            read = [[await host.read(ctx, f"VECTOR_{name}", vector) for name in ("FIRED", "RX_EVENTS", "TX_EVENTS")]
                    for vector in range(VECTORS)]
            assert read == [[v.rises, v.rx.seen, v.tx.seen] for v in reference.vectors]
            statistics.append(read)

        host.run(talk, max_cycles=40_000)
        assert host.interrupts == sum(vector.rises for vector in reference.vectors)
        logs.append(host.irq)
        cycles.append(host.cycles_run)
    assert logs[0] == logs[1]
    assert statistics[0] == statistics[1]
    assert cycles[1] < cycles[0]
    return compared[0], host.interrupts, cycles[1] / cycles[0]


@pytest.mark.parametrize("seed", [1, 2])
def test_random_life_with_and_without_jumps_and_against_the_model(seed: int) -> None:
    compared, interrupts, share = live(random_actions(random.Random(seed), 140), seed)
    assert compared > 60
    assert interrupts > 10
    assert share < 1 / 2


def test_the_smallest_device_has_one_vector() -> None:
    host = Host(NicConfig(name="one", mac_bytes=8, channels=4, vectors=1, keys=16))

    async def talk(ctx):
        await host.set_vector(ctx, 0, mask=0, rx_ticks=50)
        for channel in (1, 3):
            await host.start(ctx, channel, 0)
            await host.arm(ctx, channel, 0)
        began = host.now
        await host.retire(ctx, 3, 1)
        await host.settle(ctx)
        assert host.lines(ctx) == 0
        await host.until(ctx, began + 50 + REACTION_CYCLES)
        assert host.lines(ctx) == 1
        await host.arm(ctx, 3, 1)
        await host.settle(ctx)
        assert host.lines(ctx) == 0

    host.run(talk)
