"""The read engine against a bus that answers late, out of order and interleaved."""

import random
from collections import deque

import pytest

from nic_model.contract import NicConfig
from nic_model.contract.config import BURST_BYTES
from rtl.dma_read import DmaRead
from tests.rtl.harness import Bench, idle, shared

CLIENTS = ("payload", "descriptor", "receive")
OKAY, SLVERR = 0, 2


def memory_bytes(address: int, length: int) -> bytes:
    """What host memory holds: a byte that depends on all of its address."""
    return bytes((a * 167 + (a >> 8) * 59 + (a >> 16) * 31) & 0xff for a in range(address, address + length))


class Bus:
    """AXI read slave: answers after `latency` cycles, one beat a cycle, IDs in random order and interleaved.

    A burst whose 256-byte block number is in `bad_blocks` gets an error on one of its beats.
    """

    def __init__(self, bench: Bench, config: NicConfig, *, latency: int = 10, stall: float = 0.0, r_stall: float = 0.0,
                 bad_blocks=frozenset(), in_order: bool = False):
        self.bench, self.width = bench, config.host_bytes
        self.latency, self.r_stall, self.in_order = latency, r_stall, in_order
        self.bad_blocks = bad_blocks
        self.bursts: list[dict] = []
        self.most_in_flight = 0
        self.beats = 0
        self._waiting: dict[int, deque] = {}
        self._requests: list[dict] = []
        bench.sink(bench.dut.axi.ar, self._requests, stall=stall)
        bench.background(self._answer)

    def _admit(self) -> None:
        for request in self._requests:
            self.bursts.append(request)
            count = request["len"] + 1
            assert request["addr"] % self.width == 0
            assert request["addr"] // BURST_BYTES == (request["addr"] + count * self.width - 1) // BURST_BYTES
            wrong = self.bench.rng.randrange(count) if request["addr"] // BURST_BYTES in self.bad_blocks else None
            beats = deque(
                (self.bench.cycle + self.latency, self._word(request["addr"] + i * self.width),
                 SLVERR if i == wrong else OKAY, i == count - 1) for i in range(count))
            assert request["id"] not in self._waiting, "a landing slot is used twice"
            self._waiting[request["id"]] = beats
        self._requests.clear()
        self.most_in_flight = max(self.most_in_flight, len(self._waiting))

    def _word(self, address: int) -> int:
        return int.from_bytes(memory_bytes(address, self.width), "little")

    async def _answer(self, ctx):
        r = self.bench.dut.axi.r
        while True:
            self._admit()
            due = [i for i, beats in self._waiting.items() if beats[0][0] <= self.bench.cycle]
            ctx.set(r.valid, 0)
            if due and self.bench.rng.random() >= self.r_stall:
                chosen = due[0] if self.in_order else self.bench.rng.choice(due)
                _, word, resp, last = self._waiting[chosen].popleft()
                if last:
                    del self._waiting[chosen]
                ctx.set(r.payload, {"id": chosen, "data": word, "resp": resp, "last": last})
                ctx.set(r.valid, 1)
                self.beats += 1
            assert ctx.get(r.ready) == 1
            await ctx.tick()


def check_answers(config: NicConfig, commands: list[dict], beats: list[dict], bad_blocks=frozenset()) -> None:
    """Each command's bytes, in order, with errors exactly on the bursts that failed, and nothing left over."""
    width, position = config.host_bytes, 0
    for command in commands:
        address, end = command["address"], command["address"] + command["length"]
        while address < end:
            beat = beats[position]
            position += 1
            count = min(width - address % width, end - address)
            assert (beat["start"], beat["count"]) == (address % width, count)
            assert beat["last"] == (address + count == end)
            assert beat["error"] == (address // BURST_BYTES in bad_blocks)
            if not beat["error"]:
                row = beat["data"].to_bytes(width, "little")
                assert row[beat["start"]:beat["start"] + count] == memory_bytes(address, count)
            address += count
    assert position == len(beats)
    assert position > 0


def config_of(width: int) -> NicConfig:
    return NicConfig(name="test", mac_bytes=width // 2, channels=4, vectors=4, keys=64,
                     payload_reads=96 if width == 64 else 32)


async def until_count(ctx, taken: list, count: int) -> None:
    while len(taken) < count:
        await ctx.tick()


def beats_of(config: NicConfig, command: dict) -> int:
    first = command["address"] // config.host_bytes
    return (command["address"] + command["length"] - 1) // config.host_bytes - first + 1


def read(width: int, commands: dict[str, list[dict]], *, bad_blocks: set[int], latency: int, stall: float = 0.0,
         seed: int = 0) -> Bench:
    """All clients' commands, and what comes of them."""
    config = config_of(width)
    bench = Bench(shared(DmaRead, config), seed=seed)
    bus = Bus(bench, config, latency=latency, stall=stall / 2, r_stall=stall / 2, bad_blocks=bad_blocks)
    taken: dict[str, list] = {c: [] for c in CLIENTS}
    for client in CLIENTS:
        bench.source(getattr(bench.dut, f"cmd_{client}"), commands[client], stall=stall)
        bench.sink(getattr(bench.dut, f"beat_{client}"), taken[client], stall=stall)

    async def wait(ctx):
        for client in CLIENTS:
            await until_count(ctx, taken[client], sum(beats_of(config, c) for c in commands[client]))
        await idle(ctx, 20)
        assert ctx.get(bench.dut.active) == 0

    bench.add(wait)
    bench.run(max_cycles=40_000)
    for client in CLIENTS:
        check_answers(config, commands[client], taken[client], bad_blocks)
    assert bus.beats == sum(len(t) for t in taken.values())
    return bench


def random_reads(rng: random.Random, count: int) -> dict[str, list[dict]]:
    """So many commands for each client, anywhere in 64 KB."""
    return {c: [{"address": rng.randrange(1 << 16), "length": rng.choice([1, rng.randrange(1, 64), 300, 1500])}
                for _ in range(count)] for c in CLIENTS}


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize(("stall", "seed"), [(0.0, 1), (0.3, 2), (0.8, 3)])
def test_three_clients_at_random(width: int, stall: float, seed: int) -> None:
    rng = random.Random(seed)
    bench = read(width, random_reads(rng, 8), bad_blocks={rng.randrange(1 << 8) for _ in range(40)},
                 latency=rng.choice([0, 7, 40]), stall=stall, seed=seed)
    assert bench.idle_cycles > 0


@pytest.mark.parametrize("width", [16, 64])
def test_every_alignment(width: int) -> None:
    """Each start in a 256-byte block near a 4 KB boundary, lengths round a row and round a burst."""
    config = config_of(width)
    bench = Bench(shared(DmaRead, config), seed=4)
    Bus(bench, config, latency=2, in_order=True)
    lengths = (1, width - 1, width, width + 1, 255, 256, 257)
    commands = [{"address": 0x1_2345_6789_af00 + start, "length": lengths[start % len(lengths)]}
                for start in range(256)]
    taken: list = []
    bench.source(bench.dut.cmd_payload, commands)
    bench.sink(bench.dut.beat_payload, taken)

    async def wait(ctx):
        await until_count(ctx, taken, sum(beats_of(config, c) for c in commands))

    bench.add(wait)
    bench.run()
    check_answers(config, commands, taken)


@pytest.mark.parametrize(("width", "in_flight"), [(16, 32), (64, 96)])
def test_reads_in_flight_hide_the_latency(width: int, in_flight: int) -> None:
    """32 (96) reads in flight at 250 cycles of latency, data out of order and interleaved: the whole bus is used."""
    config = config_of(width)
    bench = Bench(shared(DmaRead, config), seed=5)
    latency = 250
    bus = Bus(bench, config, latency=latency)
    command = {"address": 0x10_0000, "length": 3 * in_flight * BURST_BYTES}
    taken: list = []
    last_beat_cycle = []
    bench.source(bench.dut.cmd_payload, [command])
    bench.sink(bench.dut.beat_payload, taken)

    async def wait(ctx):
        await until_count(ctx, taken, beats_of(config, command))
        last_beat_cycle.append(bench.cycle)

    bench.add(wait)
    bench.run()
    check_answers(config, [command], taken)
    assert bus.most_in_flight == in_flight
    # The store holds `in_flight` bursts for the time of one trip, which is the latency and a burst's own beats; the
    # reads of different IDs share R, so the last of a full house of interleaved bursts comes a house of beats later.
    beats = len(taken)
    house = in_flight * BURST_BYTES // width
    clear = 2 ** bench.dut.id_bits
    assert last_beat_cycle[0] <= clear + 3 * (latency + house) + 30
    assert beats == 3 * house


@pytest.mark.parametrize(("width", "latency"), [(16, 250), (64, 250)])
def test_payload_streams_at_a_beat_a_cycle(width: int, latency: int) -> None:
    """While enough reads are in flight for the latency and the bus answers in order, no cycle is lost."""
    config = config_of(width)
    bench = Bench(shared(DmaRead, config), seed=6)
    Bus(bench, config, latency=latency, in_order=True)
    commands = [{"address": 0x4000 + 1460 * n, "length": 1460} for n in range(20)]
    taken: list = []
    cycles: list[int] = []
    bench.source(bench.dut.cmd_payload, commands)
    bench.sink(bench.dut.beat_payload, taken)

    async def wait(ctx):
        await until_count(ctx, taken, 1)
        cycles.append(bench.cycle)
        await until_count(ctx, taken, sum(beats_of(config, c) for c in commands))
        cycles.append(bench.cycle)

    bench.add(wait)
    bench.run()
    check_answers(config, commands, taken)
    assert len(taken) - 1 >= 0.95 * (cycles[1] - cycles[0])


def test_a_stalled_client_blocks_no_other() -> None:
    config = config_of(16)
    bench = Bench(shared(DmaRead, config), seed=7)
    Bus(bench, config, latency=20)
    stuck = [{"address": 0x8000, "length": 64 * BURST_BYTES}]
    commands = [{"address": 0x100 * n + 3, "length": 200} for n in range(20)]
    taken: list = []
    bench.sink(bench.dut.beat_descriptor, taken)

    async def talk(ctx):
        await bench.send(ctx, bench.dut.cmd_payload, stuck[0])  # nobody takes its beats
        await idle(ctx, 700)
        assert ctx.get(bench.dut.active) == 0
        for command in commands:
            await bench.send(ctx, bench.dut.cmd_descriptor, command)
        await until_count(ctx, taken, sum(beats_of(config, c) for c in commands))

    bench.add(talk)
    bench.run()
    check_answers(config, commands, taken)


@pytest.mark.parametrize("count", [1, 7, 40])
def test_a_second_reset(count: int) -> None:
    """Whatever the memories hold: no beat without a command, and all bytes in every slot."""
    config = config_of(16)
    bench = Bench(DmaRead(config), resets=True)
    bus = Bus(bench, config)
    taken: dict[str, list] = {c: [] for c in CLIENTS}
    for client in CLIENTS:
        bench.sink(getattr(bench.dut, f"beat_{client}"), taken[client])

    async def talk(ctx):
        for life in range(2):
            for beats in taken.values():
                beats.clear()
            await idle(ctx, 200)
            assert not any(taken.values()), f"life {life}: a beat without a command"
            commands = {client: [{"address": 0x1000 * place + BURST_BYTES * n + 16 * life, "length": 48}
                                 for n in range(count + life)] for place, client in enumerate(CLIENTS)}
            for number in range(count + life):
                for client in CLIENTS:
                    await bench.send(ctx, getattr(bench.dut, f"cmd_{client}"), commands[client][number])
            for client in CLIENTS:
                await until_count(ctx, taken[client], 3 * (count + life))
            await idle(ctx, 100)
            for client in CLIENTS:
                check_answers(config, commands[client], taken[client])
            await bench.reset(ctx)

    bench.add(talk)
    bench.run()
    assert bus.most_in_flight > 1
