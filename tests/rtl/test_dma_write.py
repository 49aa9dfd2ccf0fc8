"""The write engine against a bus that stalls, answers late and out of order."""

import random

import pytest

from nic_model.contract import NicConfig
from nic_model.contract.config import BURST_BYTES
from rtl.dma_write import DmaWrite
from tests.rtl.harness import Bench, idle, shared

CLIENTS = ("receive", "completion")
OKAY, SLVERR = 0, 2


class Bus:
    """AXI write slave: keeps bytes by address, checks the protocol, answers bursts in random order."""

    def __init__(self, bench: Bench, width: int, *, latency: int = 10, stall: float = 0.0, bad_blocks=frozenset()):
        self.bench, self.width, self.latency, self.bad_blocks = bench, width, latency, bad_blocks
        self.memory: dict[int, int] = {}
        self.bursts: list[dict] = []
        self.most_in_flight = 0
        self.beat_cycles: list[int] = []
        self._addresses: list[dict] = []
        self._beats: list[dict] = []
        self._open: dict[int, int] = {}
        bench.sink(bench.dut.axi.aw, self._addresses, stall=stall)
        bench.sink(bench.dut.axi.w, self._beats, stall=stall)
        bench.background(self._answer)

    def _write_bursts(self) -> None:
        while self._addresses and len(self._beats) > self._addresses[0]["len"]:
            burst = self._addresses.pop(0)
            count, address = burst["len"] + 1, burst["addr"]
            assert address % self.width == 0
            assert address // BURST_BYTES == (address + count * self.width - 1) // BURST_BYTES
            beats, self._beats[:count] = self._beats[:count], []
            assert [beat["last"] for beat in beats] == [0] * (count - 1) + [1]
            for index, beat in enumerate(beats):
                assert beat["strb"], "a beat that writes nothing"
                word = beat["data"].to_bytes(self.width, "little")
                for lane in range(self.width):
                    if beat["strb"] >> lane & 1:
                        at = address + index * self.width + lane
                        assert at not in self.memory, f"byte {at:#x} is written twice"
                        self.memory[at] = word[lane]
            assert burst["id"] not in self._open, "a slot is used twice"
            self._open[burst["id"]] = self.bench.cycle + self.latency
            self.bursts.append(burst)
            self.most_in_flight = max(self.most_in_flight, len(self._open))

    async def _answer(self, ctx):
        b = self.bench.dut.axi.b
        addresses: dict[int, int] = {}
        while True:
            done = len(self.bursts)
            self._write_bursts()
            for burst in self.bursts[done:]:
                addresses[burst["id"]] = burst["addr"]
            due = [i for i, cycle in self._open.items() if cycle <= self.bench.cycle]
            ctx.set(b.valid, bool(due))
            if due:
                chosen = self.bench.rng.choice(due)
                del self._open[chosen]
                bad = addresses[chosen] // BURST_BYTES in self.bad_blocks
                ctx.set(b.payload, {"id": chosen, "resp": SLVERR if bad else OKAY})
            assert ctx.get(b.ready) == 1
            await ctx.tick()


def config_of(width: int, *, flows: int = 0) -> NicConfig:
    return NicConfig(name="test", mac_bytes=width // 2, channels=4, vectors=4, keys=64, flows=flows)


def rows_of(rng: random.Random, width: int, command: dict, content: bytes) -> list[dict]:
    """Rows of a command; the lanes that do not belong to it hold noise."""
    first = command["address"] % width
    size = -(-(first + len(content)) // width) * width
    image = bytearray(rng.randbytes(size))
    image[first:first + len(content)] = content
    return [{"data": int.from_bytes(image[at:at + width], "little"), "last": at + width == size}
            for at in range(0, size, width)]


def spread(rng: random.Random, lengths: list[int], base: int) -> list[dict]:
    """Commands of these lengths at random distances, none touching another."""
    commands, address = [], base
    for length in lengths:
        address += rng.randrange(1, 400)
        commands.append({"address": address, "length": length})
        address += length
    return commands


def write(width: int, commands: dict[str, list[dict]], *, bad_blocks: set[int], latency: int, stall: float = 0.0,
          seed: int = 0) -> tuple[Bench, dict[str, list]]:
    """All commands of the clients, and what comes of them: memory, and an answer for each."""
    config, rng = config_of(width, flows=16 if "place" in commands else 0), random.Random(seed)
    bench = Bench(shared(DmaWrite, config), seed=seed)
    contents = {c: [rng.randbytes(command["length"]) for command in commands[c]] for c in commands}
    bus = Bus(bench, width, latency=latency, stall=stall, bad_blocks=bad_blocks)
    done: dict[str, list] = {c: [] for c in commands}
    for client in commands:
        rows = [r for command, content in zip(commands[client], contents[client], strict=True)
                for r in rows_of(rng, width, command, content)]
        bench.source(getattr(bench.dut, f"cmd_{client}"), commands[client], stall=stall)
        bench.source(getattr(bench.dut, f"row_{client}"), rows, stall=stall / 2)
        bench.sink(getattr(bench.dut, f"done_{client}"), done[client], stall=stall)

    async def wait(ctx):
        while any(len(done[c]) < len(commands[c]) for c in commands):
            await ctx.tick()
        await idle(ctx, 20)
        assert ctx.get(bench.dut.active) == 0

    bench.add(wait)
    bench.run()
    expected = {command["address"] + i: byte for c in commands
                for command, content in zip(commands[c], contents[c], strict=True) for i, byte in enumerate(content)}
    assert bus.memory == expected
    for client in commands:
        touched = [range(c["address"] // BURST_BYTES, (c["address"] + c["length"] - 1) // BURST_BYTES + 1)
                   for c in commands[client]]
        assert [d["error"] for d in done[client]] == [int(any(b in bad_blocks for b in t)) for t in touched]
    return bench, done


def random_writes(rng: random.Random, receives: int, completions: int) -> dict[str, list[dict]]:
    """So many commands for each client."""
    lengths = [rng.choice([1, rng.randrange(1, 64), 300, 1500]) for _ in range(receives)]
    return {"receive": spread(rng, lengths, 0x7_0000_0f00),
            "completion": [{"address": 0x9000 + 32 * n, "length": 32} for n in range(completions)]}


def some_blocks(rng: random.Random, commands: dict[str, list[dict]], count: int) -> set[int]:
    """Blocks that commands begin in."""
    begins = [command["address"] // BURST_BYTES for c in commands for command in commands[c]]
    return {rng.choice(begins) for _ in range(count)}


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize(("stall", "seed"), [(0.0, 1), (0.4, 2), (0.8, 3)])
def test_two_clients_at_random(width: int, stall: float, seed: int) -> None:
    rng = random.Random(seed)
    commands = random_writes(rng, 15, 40)
    bench, done = write(width, commands, bad_blocks=some_blocks(rng, commands, 4), latency=rng.choice([0, 5, 60]),
                        stall=stall, seed=seed)
    assert any(d["error"] for c in CLIENTS for d in done[c])
    assert bench.idle_cycles > 0


@pytest.mark.parametrize("width", [16, 64])
def test_three_clients_at_random(width: int) -> None:
    # A device with a control port places payload besides.
    rng = random.Random(width)
    lengths = [rng.choice([1, 6, rng.randrange(1, 64), 300, 1460]) for _ in range(20)]
    commands = random_writes(rng, 10, 25) | {"place": spread(rng, lengths, 0x5_0000_0123)}
    bench, done = write(width, commands, bad_blocks=some_blocks(rng, commands, 4), latency=rng.choice([0, 5, 60]),
                        stall=0.3, seed=width)
    assert any(d["error"] for client in done.values() for d in client)
    assert bench.idle_cycles > 0
    assert bench.dut.id_bits == 7


@pytest.mark.parametrize("width", [16, 64])
def test_every_alignment_near_4_kb(width: int) -> None:
    config, rng = config_of(width), random.Random(4)
    bench = Bench(shared(DmaWrite, config), seed=4)
    lengths = (1, width, width + 1, 255, 257)
    commands = [{"address": (n << 12) + 0xf00 + start, "length": lengths[n % len(lengths)]}
                for n, start in enumerate(range(0, 256, 3))]
    contents = [rng.randbytes(command["length"]) for command in commands]
    rows = [r for command, content in zip(commands, contents, strict=True)
            for r in rows_of(rng, width, command, content)]
    bus = Bus(bench, width, latency=3)
    done: list = []
    bench.source(bench.dut.cmd_receive, commands)
    bench.source(bench.dut.row_receive, rows)
    bench.sink(bench.dut.done_receive, done)

    async def wait(ctx):
        while len(done) < len(commands):
            await ctx.tick()

    bench.add(wait)
    bench.run()
    assert bus.memory == {command["address"] + i: byte for command, content in zip(commands, contents, strict=True)
                          for i, byte in enumerate(content)}


@pytest.mark.parametrize("width", [16, 64])
def test_received_frames_stream_at_a_beat_a_cycle(width: int) -> None:
    config, rng = config_of(width), random.Random(5)
    bench = Bench(shared(DmaWrite, config), seed=5)
    commands = [{"address": 0x1_0000 * n, "length": 2048} for n in range(10)]
    rows = [r for command in commands for r in rows_of(rng, width, command, rng.randbytes(command["length"]))]
    Bus(bench, width, latency=80)
    cycles: list[int] = []
    done: list = []
    bench.source(bench.dut.cmd_receive, commands)
    bench.source(bench.dut.row_receive, rows)
    bench.sink(bench.dut.done_receive, done)

    async def watch_w(ctx):
        async for _, _, valid, ready in ctx.tick().sample(bench.dut.axi.w.valid, bench.dut.axi.w.ready):
            if valid and ready:
                cycles.append(bench.cycle)

    async def wait(ctx):
        while len(done) < len(commands):
            await ctx.tick()

    bench.background(watch_w)
    bench.add(wait)
    bench.run()
    assert len(cycles) == len(rows)
    assert len(cycles) - 1 >= 0.95 * (cycles[-1] - cycles[0])


def test_completions_leave_in_every_other_cycle_beside_received_frames() -> None:
    """On the widest bus, where a received burst goes between every two of them."""
    width, count = 64, 200
    config, rng = config_of(width), random.Random(8)
    bench = Bench(shared(DmaWrite, config), seed=8)
    bus = Bus(bench, width)
    done: dict[str, list] = {c: [] for c in CLIENTS}
    for client, base, number in (("receive", 0x10_0000, count // 2), ("completion", 0x20_0000, count)):
        commands = [{"address": base + 0x100 * n, "length": 32} for n in range(number)]
        bench.source(getattr(bench.dut, f"cmd_{client}"), commands)
        bench.source(getattr(bench.dut, f"row_{client}"),
                     [r for command in commands for r in rows_of(rng, width, command, bytes(32))])
        bench.sink(getattr(bench.dut, f"done_{client}"), done[client])
    cycles: list[int] = []

    async def watch_w(ctx):
        async for _, _, valid, ready in ctx.tick().sample(bench.dut.axi.w.valid, bench.dut.axi.w.ready):
            if valid and ready:
                cycles.append(bench.cycle)

    async def wait(ctx):
        while len(done["completion"]) < count or len(done["receive"]) < count // 2:
            await ctx.tick()

    bench.background(watch_w)
    bench.add(wait)
    bench.run()
    assert len(bus.bursts) == len(cycles) == count + count // 2
    assert cycles[-1] - cycles[0] <= 2 * count + 8


@pytest.mark.parametrize(("waiting", "given", "other"), [("receive", 0, "completion"), ("completion", 7, "receive")])
def test_a_client_without_rows_does_not_block_the_other(waiting: str, given: int, other: str) -> None:
    """Received rows follow each other without a gap, so a burst of those may begin with its first; one of completions
    only when all are there."""
    config, rng = config_of(16), random.Random(6)
    bench = Bench(shared(DmaWrite, config), seed=6)
    bus = Bus(bench, 16)
    done: list = []
    bench.sink(getattr(bench.dut, f"done_{other}"), done)

    async def talk(ctx):
        waits = {"address": 0x5008, "length": 600}
        await bench.send(ctx, getattr(bench.dut, f"cmd_{waiting}"), waits)
        for some in rows_of(rng, 16, waits, bytes(600))[:given]:
            await bench.send(ctx, getattr(bench.dut, f"row_{waiting}"), some)  # not a whole burst
        for n in range(40):
            command = {"address": 0x9000 + 32 * n, "length": 32}
            await bench.send(ctx, getattr(bench.dut, f"cmd_{other}"), command)
            for each in rows_of(rng, 16, command, bytes([n] * 32)):
                await bench.send(ctx, getattr(bench.dut, f"row_{other}"), each)
        while len(done) < 40:
            await ctx.tick()
        await idle(ctx, 10)
        assert ctx.get(bench.dut.active) == 0

    bench.add(talk)
    bench.run()
    assert bus.memory == {0x9000 + 32 * n + i: n for n in range(40) for i in range(32)}


@pytest.mark.parametrize(("width", "slots"), [(16, 32 + 32), (64, 32 + 64)])
def test_writes_in_flight_are_bounded_by_their_slots(width: int, slots: int) -> None:
    """Nothing is answered for long: the clients fill their slots, and not one burst more."""
    config, rng = config_of(width), random.Random(7)
    bench = Bench(shared(DmaWrite, config), seed=7)
    bus = Bus(bench, width, latency=1000)
    done: dict[str, list] = {c: [] for c in CLIENTS}
    for client, count in (("receive", 70), ("completion", 70)):
        commands = [{"address": 0x1000 * n + 0x800 * (client == "receive"), "length": 64} for n in range(count)]
        bench.source(getattr(bench.dut, f"cmd_{client}"), commands)
        bench.source(getattr(bench.dut, f"row_{client}"),
                     [r for command in commands for r in rows_of(rng, width, command, bytes(64))])
        bench.sink(getattr(bench.dut, f"done_{client}"), done[client])

    async def wait(ctx):
        while len(done["receive"]) < 70 or len(done["completion"]) < 70:
            await ctx.tick()

    bench.add(wait)
    bench.run()
    assert bus.most_in_flight == slots


@pytest.mark.parametrize("count", [1, 20, 40])
def test_a_second_reset(count: int) -> None:
    """Whatever the memories hold: nothing is done that was not asked for, and bursts are answered in every slot."""
    width = 16
    bench = Bench(DmaWrite(config_of(width)), resets=True)
    bus = Bus(bench, width)
    done: dict[str, list] = {c: [] for c in CLIENTS}
    for client in CLIENTS:
        bench.sink(getattr(bench.dut, f"done_{client}"), done[client])

    async def talk(ctx):
        for life in range(2):
            for client in CLIENTS:
                done[client].clear()
            bus.memory.clear()
            await idle(ctx, 200)
            assert not any(done.values()), f"life {life}: done without a command"
            for number in range(count + life):
                for place, client in enumerate(CLIENTS):
                    address = 0x1000 * (place + 1) + 16 * number
                    await bench.send(ctx, getattr(bench.dut, f"cmd_{client}"), {"address": address, "length": width})
                    await bench.send(ctx, getattr(bench.dut, f"row_{client}"), {"data": life + number, "last": 1})
                if number % 5 == 0:
                    await idle(ctx, 50)
                    assert [len(done[client]) for client in CLIENTS] == [number + 1] * 2
            await idle(ctx, 200)
            assert [len(done[client]) for client in CLIENTS] == [count + life] * 2
            assert bus.memory == {
                0x1000 * (place + 1) + at: (life + at // 16 & 0xFF) * (at % 16 == 0)
                for place in range(len(CLIENTS)) for at in range(16 * (count + life))}
            await bench.reset(ctx)

    bench.add(talk)
    bench.run()
