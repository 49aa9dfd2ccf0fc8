"""Completions against the contract's layout, with a write engine that stalls and fails."""

import random
from collections import deque

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out, connect, flipped

from nic_model.contract import (
    COMPLETION,
    COMPLETION_BYTES,
    ChannelError,
    CompletionKind,
    NicConfig,
    Status,
    channel_register,
)
from nic_model.contract.sockets import SOCKET_COMPLETION
from rtl.completion import BATCH_BYTES, Completion
from rtl.dma_write import DmaWrite
from rtl.interfaces import AxiWriteMaster
from rtl.primitives import SkidBuffer
from tests.rtl.harness import Bench, idle, shared

CHANNELS = 4
LOG2 = (4, 5, 6, 8)


def config_of(width: int, flows: int = 0) -> NicConfig:
    return NicConfig(name="test", mac_bytes=width // 2, channels=CHANNELS, vectors=4, keys=64, flows=flows)


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
        self.batches: list[int] = []
        self.answers: list[int] = []
        """One for each entry; those of a batch are alike."""
        self.answered = 0
        self.hold = False
        bench.sink(bench.dut.write_cmd, self.commands, stall=stall)
        bench.sink(bench.dut.write_row, self.rows, stall=stall)
        bench.background(self._answer)

    def _collect(self) -> None:
        """Take what is whole: `batches` are the numbers of entries of each command, `entries` all of them."""
        while len(self.commands) > len(self.batches):
            command = self.commands[len(self.batches)]
            address, length = command["address"], command["length"]
            end = address + length
            assert length
            assert length % COMPLETION_BYTES == address % COMPLETION_BYTES == 0
            assert address // BATCH_BYTES == (end - 1) // BATCH_BYTES
            count = (end - 1) // self.width - address // self.width + 1
            if len(self.rows) < count:
                return
            rows, self.rows[:count] = self.rows[:count], []
            assert [r["last"] for r in rows] == [0] * (count - 1) + [1]
            image = b"".join(r["data"].to_bytes(self.width, "little") for r in rows)
            for at in range(address, end, COMPLETION_BYTES):
                lane = at - address // self.width * self.width
                self.entries.append((at, image[lane:lane + COMPLETION_BYTES]))
            self.batches.append(length // COMPLETION_BYTES)

    async def _answer(self, ctx):
        while True:
            self._collect()
            if self.answered < len(self.batches) and not self.hold and self.bench.rng.random() >= self.stall:
                error = int(self.bench.rng.random() < self.error_rate)
                self.answers += [error] * self.batches[self.answered]
                self.answered += 1
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
            "checksum": rng.randrange(1 << 16),
            "segments": rng.randrange(2), "timestamp": rng.randrange(1 << 64), "mss": rng.randrange(1 << 14),
            "more": 0, "further": 0, "last": 1}


def random_socket(rng: random.Random) -> dict:
    return {"channel": random_channel(rng), **{
        name: rng.randrange(1 << SOCKET_COMPLETION.fields[name].width)
        for name in ("status", "tag", "length", "result", "remote_port", "local_port", "socket")}}


def random_receives(rng: random.Random, count: int) -> list[dict]:
    """Tokens of so many receives or a few more, some of which have further buffers."""
    tokens: list[dict] = []
    while len(tokens) < count:
        head, more = random_rx(rng), rng.choice((0, 0, 1, 5))
        tokens.append(head | {"more": more, "last": int(more == 0)})
        tokens += [random_rx(rng) | {"channel": head["channel"], "further": 1, "last": int(n == more - 1)}
                   for n in range(more)]
    return tokens


def expected_entry(token: dict, position: int, log2: int) -> dict:
    """What the contract says stands in the ring for this token."""
    if "result" in token:
        return {name: value for name, value in token.items() if name != "channel"} | {
            "kind": int(CompletionKind.SOCKET), "phase": 1 - (position >> log2 & 1)}
    receive = "buffer_id" in token
    kind = CompletionKind.SEND
    if receive:
        kind = CompletionKind.RECEIVE_MORE if token["further"] else CompletionKind.RECEIVE
    return {"kind": int(kind), "status": token["status"],
            "tag": token["buffer_id" if receive else "tag"], "length": token["length"], "offset": 0,
            "ring_index": token["ring_index"], "info": token.get("info", 0),
            "checksum": token.get("checksum", 0), "timestamp": token["timestamp"],
            "segments": token["segments"], "mss": token.get("mss", 0), "more": token.get("more", 0),
            "phase": 1 - (position >> log2 & 1)}


def complete(width: int, tx: list[dict], rx: list[dict], sockets: list[dict] | None = None, *, stall: float = 0.0,
             seed: int = 0) -> list[int]:
    """All tokens of sends, receives and, on a device with a control port, socket operations, and what comes of them;
    returns the entries of each channel."""
    bench = Bench(shared(Completion, config_of(width, 0 if sockets is None else 16)), seed=seed)
    dut = bench.dut
    engine = Engine(bench, width, stall=stall)
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

    async def feed_sockets(ctx):
        await feed_tokens(ctx, dut.socket, sockets)

    async def wait(ctx):
        while strobes != {"tx_retired": len(tx), "rx_retired": len(rx)} or len(retired) < entries:
            await ctx.tick()
        await idle(ctx, 10)
        assert ctx.get(dut.active) == 0

    feeding: list = []
    bench.background(count)
    bench.add(feed)
    bench.add(feed_tx)
    bench.add(feed_rx)
    taken: list[dict] = []
    if sockets is not None:
        bench.add(feed_sockets)
        bench.strobes(dut.socket_taken, taken)
    bench.add(wait)
    written_tx = [t for t in tx if (t["complete"] or t["status"]) and not t["discarded"]]
    entries = len(written_tx) + len(rx) + len(sockets or ())
    bench.run()

    assert len(engine.entries) == entries == len(retired) == len(index)
    assert taken == [{"written": 1}] * len(sockets or ())
    receives = iter(rx)
    queues = {CompletionKind.SEND: iter(written_tx), CompletionKind.RECEIVE: receives,
              CompletionKind.RECEIVE_MORE: receives, CompletionKind.SOCKET: iter(sockets or ())}
    positions = [0] * CHANNELS
    more = 0
    for (address, entry), event, report in zip(engine.entries, retired, index, strict=True):
        is_socket = entry[0] == CompletionKind.SOCKET
        fields = (SOCKET_COMPLETION if is_socket else COMPLETION).unpack(entry)
        token = next(queues[CompletionKind(fields["kind"])])
        assert (fields["kind"] == CompletionKind.RECEIVE_MORE) == (more > 0), "a receive is in one piece"
        more = max(more - 1, 0) + fields.get("more", 0)
        channel = token["channel"]
        position, log2 = positions[channel], LOG2[channel]
        positions[channel] += 1
        assert address == base_of(channel) + COMPLETION_BYTES * (position % (1 << log2))
        assert fields == expected_entry(token, position, log2)
        assert event == {"channel": channel, "receive": is_socket or "buffer_id" in token, "index": position + 1}
        assert report == {"channel": channel, "index": position + 1}
    assert len(counts["count_completions"]) == len(engine.entries)
    assert len(counts["count_tx_sends"]) == sum(t["status"] == Status.OK and not t["discarded"] for t in tx)
    assert len(counts["count_tx_errors"]) == sum(t["status"] != Status.OK for t in tx)
    assert all(c == {"amount": 1} for seen in counts.values() for c in seen)
    return positions


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize(("stall", "seed"), [(0.0, 1), (0.6, 2)])
def test_entries_in_order_on_their_places(width: int, stall: float, seed: int) -> None:
    rng = random.Random(seed)
    positions = complete(width, [random_tx(rng) for _ in range(300)], random_receives(rng, 150), stall=stall, seed=seed)
    assert positions[3] > 1 << LOG2[3] - 1
    assert positions[0] > 2 << LOG2[0], "the ring has to wrap twice"


@pytest.mark.parametrize(("width", "stall", "seed"), [(16, 0.5, 11), (32, 0.0, 12)])
def test_completions_of_socket_operations_among_the_others(width: int, stall: float, seed: int) -> None:
    rng = random.Random(seed)
    sockets = [random_socket(rng) for _ in range(60)]
    positions = complete(width, [random_tx(rng) for _ in range(60)], random_receives(rng, 60), sockets, stall=stall,
                         seed=seed)
    assert positions[0] > 1 << LOG2[0], "the ring has to wrap"


def test_a_drain_lets_socket_operations_end() -> None:
    """Those that were under way at the request: what comes later does not hold it up. What comes while the channel
    does not run is not written, and said to be so."""
    rng = random.Random(13)
    bench = Bench(shared(Completion, config_of(16, 16)), seed=13)
    dut = bench.dut
    engine = Engine(bench, 16, stall=0.0)
    retired: list = []
    taken: list[dict] = []
    bench.sink(dut.retired, retired)
    bench.strobes(dut.socket_taken, taken)

    async def is_done(ctx) -> int:
        await idle(ctx, 10)
        return ctx.get(dut.drain_done)

    async def talk(ctx):
        await set_up(ctx, bench)
        ctx.set(dut.drain_request, 1)
        assert await is_done(ctx)
        ctx.set(dut.drain_request, 0)
        assert not await is_done(ctx)
        engine.hold = True
        for _ in range(3):
            await bench.send(ctx, dut.socket, random_socket(rng) | {"channel": 1})
        await idle(ctx, 20)
        ctx.set(dut.running, 0b1101)
        await idle(ctx, 4)
        ctx.set(dut.drain_request, 1)
        assert not await is_done(ctx)
        await bench.send(ctx, dut.socket, random_socket(rng) | {"channel": 1})
        await bench.send(ctx, dut.socket, random_socket(rng) | {"channel": 2})
        assert not await is_done(ctx)
        engine.hold = False
        while len(retired) < 3:
            await ctx.tick()
        engine.hold = True
        for _ in range(5):
            await bench.send(ctx, dut.socket, random_socket(rng) | {"channel": 0})
        assert await is_done(ctx)
        assert await is_done(ctx)
        engine.hold = False
        while len(retired) < 9:
            await ctx.tick()
        assert await is_done(ctx)
        ctx.set(dut.drain_request, 0)
        assert not await is_done(ctx)

    bench.add(talk)
    bench.run()
    assert [done["written"] for done in taken] == [1, 1, 1, 0, *([1] * 6)]
    assert [event["channel"] for event in retired] == [1, 1, 1, 2, *([0] * 5)]


def test_throughput_and_writes_in_flight() -> None:
    """A completion each 2 cycles; before any answer, 64 entries are out."""
    rng = random.Random(3)
    bench = Bench(shared(Completion, config_of(16)), seed=3)
    engine = Engine(bench, 16, stall=0.0)
    retired: list = []
    cycles: list[int] = []
    bench.sink(bench.dut.retired, retired)

    async def talk(ctx):
        await set_up(ctx, bench)
        engine.hold = True
        for _ in range(64):
            await bench.send(ctx, bench.dut.rx, random_rx(rng))
        await idle(ctx, 60)
        assert len(engine.entries) == 64
        assert not retired
        assert ctx.get(bench.dut.active) == 0
        engine.hold = False
        while len(retired) < 64:
            await ctx.tick()
        cycles.append(bench.cycle)
        for _ in range(100):
            await bench.send(ctx, bench.dut.rx, random_rx(rng))
        while len(retired) < 164:
            await ctx.tick()
        cycles.append(bench.cycle)

    bench.add(talk)
    bench.run()
    assert cycles[1] - cycles[0] <= 2 * 100 + 20


def test_a_failed_write_is_a_fault_and_no_event() -> None:
    rng = random.Random(4)
    bench = Bench(shared(Completion, config_of(16)), seed=4)
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
    # A write that fails fails for all its entries, and is one fault.
    ends = [sum(engine.batches[:n + 1]) - 1 for n in range(len(engine.batches))]
    faulty = [tokens[end]["channel"] for end in ends if engine.answers[end]]
    assert max(engine.batches) > 1
    assert len(failed) > len(faulty)
    assert faults == [{"channel": c, "code": int(ChannelError.COMPLETION_BUS_ERROR)} for c in faulty]
    assert len(retired) == len(completions) == len(tokens) - len(failed)
    assert [r["channel"] for r in retired] == [
        token["channel"] for token, error in zip(tokens, engine.answers, strict=True) if not error]


def test_entries_that_wait_are_written_together_and_none_waits_for_another() -> None:
    """A lone entry's command comes after 5 cycles; what queues up behind a stalled command is one command for each
    aligned 128 bytes, unless another channel's or an unwritten token comes between."""
    rng = random.Random(8)
    bench = Bench(Completion(config_of(32)), seed=8)
    dut = bench.dut
    commands: list[dict] = []
    rows: list[int] = []
    delays: list[int] = []
    waiting: list[dict] = []
    done: list[int] = []

    def token(channel: int, **fields: int) -> dict:
        return random_tx(rng) | {"channel": channel, "complete": 1, "status": 0, "discarded": 0} | fields

    async def talk(ctx):
        await set_up(ctx, bench)
        ctx.set(dut.write_row.ready, 1)
        ctx.set(dut.retired.ready, 1)
        for _ in range(3):  # positions 0 to 2 of channel 1
            ctx.set(dut.write_cmd.ready, 1)
            await bench.send(ctx, dut.tx, token(1))
            taken = bench.cycle
            while len(commands) == len(delays):
                await ctx.tick()
            delays.append(bench.cycle - taken)
            await idle(ctx, 3)
        ctx.set(dut.write_cmd.ready, 0)
        await bench.send(ctx, dut.tx, token(2))
        await idle(ctx, 10)  # its command waits, and so does what comes now
        waiting.extend([*(token(1) for _ in range(7)), token(0), token(1), token(1, complete=0), token(1)])
        await idle(ctx, 30)
        assert len(commands) == 3
        ctx.set(dut.write_cmd.ready, 1)
        await idle(ctx, 40)
        done.append(1)

    async def feed(ctx):
        while not done:
            if waiting:
                await bench.send(ctx, dut.tx, waiting.pop(0))
            else:
                await ctx.tick()

    async def watch(ctx):
        cmd, row = dut.write_cmd, dut.write_row
        async for _, _, taken, command, row_valid, last in ctx.tick().sample(
                cmd.valid & cmd.ready, cmd.payload, row.valid, row.payload.last):
            if taken:
                commands.append({"address": command.address, "length": command.length})
            if row_valid:
                rows.append(last)

    bench.background(watch)
    bench.background(feed)
    bench.add(talk)
    bench.run()
    assert delays == [5, 5, 5]

    def at(channel: int, position: int, count: int) -> dict:
        return {"address": base_of(channel) + COMPLETION_BYTES * position, "length": COMPLETION_BYTES * count}

    # 3 of channel 1 were there, so the first part ends with one more.
    assert commands == [at(1, 0, 1), at(1, 1, 1), at(1, 2, 1), at(2, 0, 1), at(1, 3, 1), at(1, 4, 4), at(1, 8, 2),
                        at(0, 0, 1), at(1, 10, 1), at(1, 11, 1)]
    assert rows == [1, 1, 1, 1, 1, 0, 0, 0, 1, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(("width", "cycles", "beats"), [(16, 2.0, 2.0), (32, 1.05, 1.0), (64, 1.05, 0.5)])
def test_cycles_bursts_and_beats_a_completion(width: int, cycles: float, beats: float) -> None:
    """Both queues full, one channel: with a burst for each it would be 2 cycles at every width."""
    found = written(width, seed=6)
    assert found[0] <= cycles
    assert found[1] <= 0.3
    assert found[2] <= beats + 0.02


def test_a_channel_that_does_not_run_writes_nothing_and_starts_from_0() -> None:
    rng = random.Random(5)
    bench = Bench(shared(Completion, config_of(16)), seed=5)
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


class Written(wiring.Component):
    """Completion and write engine as they stand in the device: the latter's other client has nothing to do."""

    def __init__(self, config: NicConfig):
        self.completion, self.engine = Completion(config), DmaWrite(config)
        members = self.completion.signature.members
        super().__init__({
            **{name: members[name] for name in ("write", "start", "running", "tx", "rx", "retired")},
            "axi": Out(AxiWriteMaster(config, self.engine.id_bits)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.completion, m.submodules.engine = completion, engine = self.completion, self.engine
        for name, source, sink in (("cmd", completion.write_cmd, engine.cmd_completion),
                                   ("done", engine.done_completion, completion.write_done)):
            m.submodules[name] = link = SkidBuffer(shape=source.payload.shape())
            connect(m, source, link.i)
            connect(m, link.o, sink)
        connect(m, completion.write_row, engine.row_completion)
        connect(m, engine.axi, flipped(self.axi))
        for name in ("write", "start", "tx", "rx"):
            connect(m, flipped(getattr(self, name)), getattr(completion, name))
        connect(m, completion.retired, flipped(self.retired))
        m.d.comb += [completion.running.eq(self.running), completion.fault.ready.eq(1)]
        return m


def written(width: int, *, seed: int, tokens: int = 160, latency: int = 20) -> tuple[float, float, float]:
    """Sends and receives of one channel as fast as they are taken: cycles, bursts and W beats a completion."""
    rng = random.Random(seed)
    bench = Bench(Written(config_of(width)), seed=seed)
    axi, retired, memory = bench.dut.axi, [], {}
    addresses: list[dict] = []
    beats: list[dict] = []
    answers: deque[tuple[int, int]] = deque()
    times: list[int] = []
    bench.sink(axi.aw, addresses)
    bench.sink(axi.w, beats)
    bench.sink(bench.dut.retired, retired)

    async def bus(ctx):
        burst = beat = 0
        while True:
            while burst < len(addresses) and beat + addresses[burst]["len"] < len(beats):
                at = addresses[burst]["addr"]
                for _ in range(addresses[burst]["len"] + 1):
                    for lane in range(width):
                        if beats[beat]["strb"] >> lane & 1:
                            memory[at + lane] = beats[beat]["data"] >> 8 * lane & 0xFF
                    at += width
                    beat += 1
                answers.append((bench.cycle + latency, addresses[burst]["id"]))
                burst += 1
            if answers and answers[0][0] <= bench.cycle:
                ctx.set(axi.b.payload, {"id": answers.popleft()[1], "resp": 0})
                ctx.set(axi.b.valid, 1)
            await ctx.tick()
            ctx.set(axi.b.valid, 0)

    sent = {"tx": [random_tx(rng) | {"channel": 3, "complete": 1, "discarded": 0} for _ in range(tokens // 2)],
            "rx": [random_rx(rng) | {"channel": 3} for _ in range(tokens // 2)]}
    ready = []

    async def start(ctx):
        await set_up(ctx, bench)
        await idle(ctx, 80)  # the engine clears its table of slots
        ready.append(1)
        while len(retired) < tokens:
            await ctx.tick()
            times.append(bench.cycle) if len(retired) >= 20 and not times else None
        times.append(bench.cycle)

    def feed(name):
        async def testbench(ctx):
            while not ready:
                await ctx.tick()
            for token in sent[name]:
                await bench.send(ctx, getattr(bench.dut, name), token)
        return testbench

    bench.background(bus)
    bench.add(start)
    for name in sent:
        bench.add(feed(name))
    bench.run()
    assert [event["index"] for event in retired] == list(range(1, tokens + 1))
    queues = {CompletionKind.SEND: iter(sent["tx"]), CompletionKind.RECEIVE: iter(sent["rx"])}
    for position in range(tokens):
        at = base_of(3) + COMPLETION_BYTES * position
        fields = COMPLETION.unpack(bytes(memory[at + lane] for lane in range(COMPLETION_BYTES)))
        assert fields == expected_entry(next(queues[CompletionKind(fields["kind"])]), position, LOG2[3])
    return (times[1] - times[0]) / (tokens - 20), len(addresses) / tokens, len(beats) / tokens
