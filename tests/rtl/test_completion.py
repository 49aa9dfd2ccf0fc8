"""Completions against the contract's layout, with a write engine that stalls and fails."""

import random

import pytest

from nic_model.contract import (
    COMPLETION,
    COMPLETION_BYTES,
    ChannelError,
    CompletionKind,
    NicConfig,
    Status,
    channel_register,
)
from rtl.completion import Completion
from tests.rtl.harness import Bench, idle

CHANNELS = 4
LOG2 = (4, 5, 6, 8)


def config_of(width: int) -> NicConfig:
    return NicConfig(name="test", mac_bytes=width // 2, channels=CHANNELS, vectors=4, keys=64)


def base_of(channel: int) -> int:
    """Ring bases below 4 GB boundaries; channel 3's ring of 8 KB crosses one, so its addresses carry."""
    return 0x1_0000_0000 * (channel + 1) - 0x1000


class Engine:
    """The write engine's completion client: takes commands and rows, answers in order, some with an error."""

    def __init__(self, bench: Bench, width: int, *, stall: float, error_rate: float = 0.0):
        self.bench, self.width, self.stall, self.error_rate = bench, width, stall, error_rate
        self.commands: list[dict] = []
        self.rows: list[dict] = []
        self.entries: list[tuple[int, bytes]] = []
        self.answers: list[int] = []
        self.hold = False
        bench.sink(bench.dut.write_cmd, self.commands, stall=stall)
        bench.sink(bench.dut.write_row, self.rows, stall=stall)
        bench.background(self._answer)

    def _collect(self) -> None:
        count = max(1, COMPLETION_BYTES // self.width)
        while len(self.commands) > len(self.entries) and len(self.rows) >= count:
            command = self.commands[len(self.entries)]
            assert command["length"] == COMPLETION_BYTES
            assert command["address"] % COMPLETION_BYTES == 0
            rows, self.rows[:count] = self.rows[:count], []
            assert [r["last"] for r in rows] == [0] * (count - 1) + [1]
            image = b"".join(r["data"].to_bytes(self.width, "little") for r in rows)
            at = command["address"] % self.width
            self.entries.append((command["address"], image[at:at + COMPLETION_BYTES]))

    async def _answer(self, ctx):
        while True:
            self._collect()
            if len(self.answers) < len(self.entries) and not self.hold and self.bench.rng.random() >= self.stall:
                error = int(self.bench.rng.random() < self.error_rate)
                self.answers.append(error)
                await self.bench.send(ctx, self.bench.dut.write_done, {"error": error})
            else:
                await ctx.tick()


async def set_up(ctx, bench: Bench) -> None:
    """Write the ring registers of all channels, start them, and let them run."""
    for channel in range(CHANNELS):
        for name, value in (("CQ_BASE_LO", base_of(channel) & 0xffff_ffff), ("CQ_BASE_HI", base_of(channel) >> 32),
                            ("CQ_LOG2", LOG2[channel])):
            address = channel_register(name, channel)
            await bench.strobe(ctx, bench.dut.write, {"address": address, "data": value})
        await bench.strobe(ctx, bench.dut.start, {"channel": channel})
    ctx.set(bench.dut.running, (1 << CHANNELS) - 1)


def random_channel(rng: random.Random) -> int:
    return rng.choice([0, 1, 2, 3, 3, 3, 3])  # channel 3 has to come past its ring's 4 GB boundary


def random_tx(rng: random.Random) -> dict:
    status = rng.choice([Status.OK] * 4 + [Status.KEY_BOUNDS])
    return {"channel": random_channel(rng), "tag": rng.randrange(1 << 16), "status": int(status),
            "ring_index": rng.randrange(1 << 16), "complete": rng.randrange(2), "length": rng.randrange(1 << 21),
            "segments": rng.randrange(1 << 16), "timestamp": rng.randrange(1 << 64), "epoch": rng.randrange(2),
            "discarded": status == Status.OK and rng.random() < 0.1}


def random_rx(rng: random.Random) -> dict:
    return {"channel": random_channel(rng), "buffer_id": rng.randrange(1 << 16), "status": rng.choice([0, 0, 8]),
            "ring_index": rng.randrange(1 << 16), "length": rng.randrange(1 << 16), "info": rng.randrange(1 << 16),
            "segments": rng.randrange(2), "timestamp": rng.randrange(1 << 64)}


def expected_entry(token: dict, position: int, log2: int) -> dict:
    """What the contract says stands in the ring for this token."""
    receive = "buffer_id" in token
    return {"kind": int(CompletionKind.RECEIVE if receive else CompletionKind.SEND), "status": token["status"],
            "tag": token["buffer_id" if receive else "tag"], "length": token["length"], "offset": 0,
            "ring_index": token["ring_index"], "info": token.get("info", 0), "timestamp": token["timestamp"],
            "segments": token["segments"], "mss": 0, "phase": 1 - (position >> log2 & 1)}


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize(("stall", "seed"), [(0.0, 1), (0.6, 2)])
def test_entries_in_order_on_their_places(width: int, stall: float, seed: int) -> None:
    rng = random.Random(seed)
    bench = Bench(Completion(config_of(width)), seed=seed)
    dut = bench.dut
    engine = Engine(bench, width, stall=stall)
    tx, rx = [random_tx(rng) for _ in range(300)], [random_rx(rng) for _ in range(150)]
    retired: list[dict] = []
    index: list[dict] = []
    counts: dict[str, list] = {name: [] for name in ("count_completions", "count_tx_sends", "count_tx_errors")}
    strobes = {"tx_retired": 0, "rx_retired": 0}
    bench.sink(dut.retired, retired, stall=stall)
    bench.strobes(dut.index, index)
    for name, seen in counts.items():
        bench.strobes(getattr(dut, name), seen)

    async def count(ctx):
        async for _, _, sent, epoch, received in ctx.tick().sample(
                dut.tx_retired, dut.tx_retired_epoch, dut.rx_retired):
            if sent:
                assert epoch == tx[strobes["tx_retired"]]["epoch"]
            strobes["tx_retired"] += sent
            strobes["rx_retired"] += received

    async def feed(ctx):
        await set_up(ctx, bench)
        feeding.append(1)

    async def feed_tokens(ctx, port, tokens):
        while not feeding:
            await ctx.tick()
        for token in tokens:
            await bench.send(ctx, port, token, stall=stall)

    async def feed_tx(ctx):
        await feed_tokens(ctx, dut.tx, tx)

    async def feed_rx(ctx):
        await feed_tokens(ctx, dut.rx, rx)

    async def wait(ctx):
        while strobes != {"tx_retired": len(tx), "rx_retired": len(rx)}:
            await ctx.tick()
        await idle(ctx, 10)
        assert ctx.get(dut.active) == 0

    feeding: list = []
    bench.background(count)
    bench.add(feed)
    bench.add(feed_tx)
    bench.add(feed_rx)
    bench.add(wait)
    bench.run()

    written_tx = [t for t in tx if (t["complete"] or t["status"]) and not t["discarded"]]
    assert len(engine.entries) == len(written_tx) + len(rx) == len(retired) == len(index)
    queues = {CompletionKind.SEND: iter(written_tx), CompletionKind.RECEIVE: iter(rx)}
    positions = [0] * CHANNELS
    for (address, entry), event, report in zip(engine.entries, retired, index, strict=True):
        fields = COMPLETION.unpack(entry)
        token = next(queues[CompletionKind(fields["kind"])])
        channel = token["channel"]
        position, log2 = positions[channel], LOG2[channel]
        positions[channel] += 1
        assert address == base_of(channel) + COMPLETION_BYTES * (position % (1 << log2))
        assert fields == expected_entry(token, position, log2)
        assert event == {"channel": channel, "receive": "buffer_id" in token, "index": position + 1}
        assert report == {"channel": channel, "index": position + 1}
    assert positions[3] > 1 << LOG2[3] - 1
    assert positions[0] > 2 << LOG2[0], "the ring has to wrap twice"
    assert len(counts["count_completions"]) == len(engine.entries)
    assert len(counts["count_tx_sends"]) == sum(t["status"] == Status.OK and not t["discarded"] for t in tx)
    assert len(counts["count_tx_errors"]) == sum(t["status"] != Status.OK for t in tx)
    assert all(c == {"amount": 1} for seen in counts.values() for c in seen)


def test_throughput_and_writes_in_flight() -> None:
    """A completion each 2 cycles; before any answer, 16 writes are out."""
    rng = random.Random(3)
    bench = Bench(Completion(config_of(16)), seed=3)
    engine = Engine(bench, 16, stall=0.0)
    retired: list = []
    cycles: list[int] = []
    bench.sink(bench.dut.retired, retired)

    async def talk(ctx):
        await set_up(ctx, bench)
        engine.hold = True
        for _ in range(16):
            await bench.send(ctx, bench.dut.rx, random_rx(rng))
        await idle(ctx, 60)
        assert len(engine.entries) == 16
        assert not retired
        assert ctx.get(bench.dut.active) == 0
        engine.hold = False
        while len(retired) < 16:
            await ctx.tick()
        cycles.append(bench.cycle)
        for _ in range(100):
            await bench.send(ctx, bench.dut.rx, random_rx(rng))
        while len(retired) < 116:
            await ctx.tick()
        cycles.append(bench.cycle)

    bench.add(talk)
    bench.run()
    assert cycles[1] - cycles[0] <= 2 * 100 + 20


def test_a_failed_write_is_a_fault_and_no_event() -> None:
    rng = random.Random(4)
    bench = Bench(Completion(config_of(16)), seed=4)
    dut = bench.dut
    engine = Engine(bench, 16, stall=0.3, error_rate=0.3)
    tokens = [random_rx(rng) for _ in range(60)]
    retired: list[dict] = []
    faults: list[dict] = []
    completions: list = []
    strobes = [0]
    bench.sink(dut.retired, retired, stall=0.3)
    bench.sink(dut.fault, faults, stall=0.5)
    bench.strobes(dut.count_completions, completions)

    async def count(ctx):
        async for _, _, received in ctx.tick().sample(dut.rx_retired):
            strobes[0] += received

    async def talk(ctx):
        await set_up(ctx, bench)
        for token in tokens:
            await bench.send(ctx, dut.rx, token)
        while strobes[0] < len(tokens):
            await ctx.tick()
        await idle(ctx, 10)

    bench.background(count)
    bench.add(talk)
    bench.run()
    failed = [token["channel"] for token, error in zip(tokens, engine.answers, strict=True) if error]
    assert failed
    assert faults == [{"channel": c, "code": int(ChannelError.COMPLETION_BUS_ERROR)} for c in failed]
    assert len(retired) == len(completions) == len(tokens) - len(failed)
    assert [r["channel"] for r in retired] == [
        token["channel"] for token, error in zip(tokens, engine.answers, strict=True) if not error]


def test_a_channel_that_does_not_run_writes_nothing_and_starts_from_0() -> None:
    rng = random.Random(5)
    bench = Bench(Completion(config_of(16)), seed=5)
    dut = bench.dut
    engine = Engine(bench, 16, stall=0.0)
    retired: list[dict] = []
    strobes = [0]
    bench.sink(dut.retired, retired)

    async def count(ctx):
        async for _, _, sent, received in ctx.tick().sample(dut.tx_retired, dut.rx_retired):
            strobes[0] += sent + received

    async def send_all(ctx, tokens):
        aim = strobes[0] + len(tokens)
        for token in tokens:
            port = dut.rx if "buffer_id" in token else dut.tx
            await bench.send(ctx, port, token)
        while strobes[0] < aim:
            await ctx.tick()

    async def talk(ctx):
        await set_up(ctx, bench)
        await send_all(ctx, [random_rx(rng) | {"channel": 2} for _ in range(5)])
        ctx.set(dut.running, 0b1011)
        await send_all(ctx, [random_rx(rng) | {"channel": 2} for _ in range(5)])
        await send_all(ctx, [random_tx(rng) | {"channel": 2, "complete": 1} for _ in range(5)])
        await bench.strobe(ctx, dut.start, {"channel": 2})
        ctx.set(dut.running, 0b1111)
        await send_all(ctx, [random_rx(rng) | {"channel": 2} for _ in range(3)])

    bench.background(count)
    bench.add(talk)
    bench.run()
    assert [r["index"] for r in retired] == [1, 2, 3, 4, 5, 1, 2, 3]
    assert [a for a, _ in engine.entries] == [base_of(2) + 32 * n for n in (0, 1, 2, 3, 4, 0, 1, 2)]
    assert all(COMPLETION.unpack(entry)["phase"] == 1 for _, entry in engine.entries)
