# amaranth: UnusedElaboratable=no
"""All messages up in one stream: none is lost or cut, every credit comes back once, TICKs come when they are due."""

import random

import pytest

from nic_model.contract import NicConfig
from nic_model.contract.control import (
    CONTROL_VERSION,
    DONE,
    NO_FLOW,
    TICK,
    TICK_SHIFT,
    TIME_SHIFT,
    UNIT_BYTES,
    ControlType,
)
from rtl.control_up import ControlUp
from tests.rtl.harness import Bench, idle

SEED = 7_801
CREDITS_AT = DONE.fields["emit_credits"].offset // 8
EMIT_CREDITS = 8
NOW = (5 << 39) + 1000


def config_of(host_bytes: int) -> NicConfig:
    return NicConfig(name="test", mac_bytes=8, host_bytes=host_bytes, channels=4, vectors=4, keys=64, flows=16,
                     emit_credits=EMIT_CREDITS)


def message(rng: random.Random, source: int, number: int) -> bytes:
    """A DONE, or one of more units, that says where it is from."""
    units = rng.choice((1, 1, 2, 4))
    first = DONE.pack(type=ControlType.DONE, units=units, version=CONTROL_VERSION, flow=source, tag=number)
    return first + rng.randbytes(UNIT_BYTES * (units - 1))


def messages_of(beats: list[dict], width: int) -> list[bytes]:
    found, current = [], b""
    for beat in beats:
        current += beat["data"].to_bytes(width, "little")
        if beat["last"]:
            found.append(current)
            current = b""
    assert current == b""
    return found


def without_credits(given: bytes) -> tuple[bytes, int]:
    return given[:CREDITS_AT] + b"\0" + given[CREDITS_AT + 1:], given[CREDITS_AT]


@pytest.mark.parametrize(("host_bytes", "stall"), [(16, 0.0), (16, 0.4), (32, 0.3), (64, 0.3)])
def test_every_message_and_every_credit_comes_once(host_bytes: int, stall: float) -> None:
    rng, dut = random.Random(SEED), ControlUp(config_of(host_bytes), sources=2)
    bench, beats = Bench(dut, seed=SEED), []
    sources = [[message(rng, source, number) for number in range(25)] for source in range(2)]
    for stream, given in zip(dut.i, sources, strict=True):
        bench.source(stream, [
            {"data": int.from_bytes(m[at:at + host_bytes], "little"), "last": at + host_bytes == len(m)}
            for m in given for at in range(0, len(m), host_bytes)], stall=stall + 0.1)
    bench.sink(dut.o, beats, stall=stall)
    spent = 0

    async def orders_leave(ctx):
        """No more are under way than there are credits; those that came back are used again."""
        nonlocal spent
        ctx.set(dut.now, NOW)
        for _ in range(300):
            back = sum(without_credits(m)[1] for m in messages_of(cut_off(beats), host_bytes))
            leaves = spent - back < EMIT_CREDITS and rng.random() < 0.3
            ctx.set(dut.left, leaves)
            spent += leaves
            await ctx.tick()
        ctx.set(dut.left, 0)
        while len(messages_of(cut_off(beats), host_bytes)) < 50:
            await ctx.tick()
        await idle(ctx, 40)
    bench.add(orders_leave)
    bench.run()

    came = [without_credits(m) for m in messages_of(beats, host_bytes)]
    for given in sources:
        assert [m for m, _ in came if m in given] == given
    back = sum(credits for _, credits in came)
    assert spent > 30
    assert spent - EMIT_CREDITS // 2 < back <= spent, "half of the credits at most may wait for a message"
    ticks = [m for m, _ in came if m not in sources[0] and m not in sources[1]]
    assert all(TICK.unpack(m) == tick(NOW) for m in ticks)


def cut_off(beats: list[dict]) -> list[dict]:
    """Without the message that is not whole."""
    ends = [n for n, beat in enumerate(beats) if beat["last"]]
    return beats[:ends[-1] + 1] if ends else []


def tick(now: int) -> dict:
    return TICK.unpack(TICK.pack(
        type=ControlType.TICK, units=1, version=CONTROL_VERSION, flow=NO_FLOW, time=now >> TIME_SHIFT & 0xFFFF_FFFF,
        epoch=now >> TIME_SHIFT + 32 & 0xFFFF_FFFF))


def test_ticks_come_when_their_bit_changes_while_the_port_is_used_and_there_is_room() -> None:
    dut = ControlUp(config_of(16), sources=1)
    bench, beats = Bench(dut, seed=SEED), []
    bench.sink(dut.o, beats)
    period = 1 << TICK_SHIFT
    wanted = []

    async def use(ctx):
        async def at(now: int, makes: bool) -> None:
            """The engine jumps to a deadline."""
            ctx.set(dut.now, now)
            if makes:
                wanted.append(tick(now))
            await idle(ctx, 12)
        await at(NOW, False)
        await at(NOW + period, False)  # not used
        assert not ctx.get(dut.deadline_valid)
        ctx.set(dut.enabled, 1)
        ctx.set(dut.room, 1)
        await at(NOW + period + 5, False)
        for n in range(2, 5):
            due = (NOW // period + n) * period
            assert (ctx.get(dut.deadline_valid), ctx.get(dut.next_deadline)) == (1, due)
            await at(due - 1, False)
            await at(due, True)
        ctx.set(dut.room, 0)
        await at((NOW // period + 5) * period, False)
        ctx.set(dut.room, 1)
        await at((NOW // period + 6) * period, True)
        ctx.set(dut.enabled, 0)
        await at((NOW // period + 7) * period, False)
    bench.add(use)
    bench.run()
    assert [TICK.unpack(m) for m in messages_of(beats, 16)] == wanted


def test_a_tick_brings_credits_when_half_are_owed() -> None:
    dut = ControlUp(config_of(16), sources=1)
    bench, beats = Bench(dut, seed=SEED), []
    bench.sink(dut.o, beats)

    async def use(ctx):
        for n in range(EMIT_CREDITS // 2):
            assert not beats
            ctx.set(dut.left, 1)
            await ctx.tick()
            ctx.set(dut.left, 0)
            await idle(ctx, 20)
            assert bool(beats) == (n == EMIT_CREDITS // 2 - 1)
    bench.add(use)
    bench.run()
    (came, credits), = (without_credits(m) for m in messages_of(beats, 16))
    assert (TICK.unpack(came), credits) == (tick(0), EMIT_CREDITS // 2)
