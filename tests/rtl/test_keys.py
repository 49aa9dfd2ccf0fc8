"""The key table against a dictionary of entries, and its promises on order, rate, latency and independence."""

import gc
import random

import pytest

from nic_model.contract import KeyRight, NicConfig, Status, key_register, make_key
from rtl.keys import ANSWERS_PER_CLIENT, KeyTable
from tests.rtl.harness import Bench, idle, plain, shared

CONFIG = NicConfig(name="test", channels=4, vectors=4, keys=16)


def words(index, *, address, length, generation, rights, owner, valid=1):
    """The five register writes that store one entry."""
    return [
        (key_register("KEY_ADDRESS_LO", index), address & 0xFFFF_FFFF),
        (key_register("KEY_ADDRESS_HI", index), address >> 32),
        (key_register("KEY_LENGTH_LO", index), length & 0xFFFF_FFFF),
        (key_register("KEY_LENGTH_HI", index), length >> 32),
        (key_register("KEY_COMMIT", index), generation | rights << 12 | owner << 16 | valid << 31),
    ]


def expected(entries, request):
    """The answer by the contract's words: (status, address or None)."""
    index, generation = request["key"] & 0xFFF, request["key"] >> 12
    entry = entries.get(index)
    if entry is None or not entry.get("valid", 1) or entry["generation"] != generation:
        return Status.KEY_INVALID, None
    if entry["owner"] != request["channel"]:
        return Status.KEY_OWNER, None
    if not entry["rights"] & (KeyRight.WRITE if request["write"] else KeyRight.READ):
        return Status.KEY_RIGHTS, None
    if request["offset"] + request["length"] > entry["length"]:
        return Status.KEY_BOUNDS, None
    return Status.OK, (entry["address"] + request["offset"]) % (1 << 64)


def agrees(answer, want):
    status, address = want
    return answer["status"] == status and (address is None or answer["address"] == address)


async def store(bench, ctx, writes):
    for address, value in writes:
        await bench.strobe(ctx, bench.dut.write, {"address": address, "data": value})


def lasting(cycles):
    """A test bench that only keeps the run going."""
    async def testbench(ctx):
        await idle(ctx, cycles)
    return testbench


def request(channel=1, index=3, generation=5, offset=0, length=1, write=0):
    return {"channel": channel, "key": make_key(index, generation), "offset": offset, "length": length, "write": write}


ENTRY = {"address": 0x1234_FFFF_F000, "length": 0x2000, "generation": 5, "rights": KeyRight.READ, "owner": 1}

CASES = {
    "whole": (request(length=0x2000), Status.OK),
    "carry into the upper half of the address": (request(offset=0x1000, length=0x1000), Status.OK),
    "last byte": (request(offset=0x1FFF), Status.OK),
    "one byte beyond": (request(offset=0x1FFF, length=2), Status.KEY_BOUNDS),
    "offset that would wrap 40 bits": (request(offset=(1 << 40) - 1, length=2), Status.KEY_BOUNDS),
    "stale generation": (request(generation=4), Status.KEY_INVALID),
    "another entry": (request(index=4), Status.KEY_INVALID),
    "index beyond the table": (request(index=16 + 3), Status.KEY_INVALID),
    "another channel": (request(channel=2, offset=0x9000, write=1), Status.KEY_OWNER),
    "no right to write": (request(offset=0x9000, write=1), Status.KEY_RIGHTS),
}


@pytest.mark.parametrize("name", CASES)
def test_one_request(name):
    asked, status = CASES[name]
    bench = Bench(shared(KeyTable, CONFIG))
    taken = []
    bench.sink(bench.dut.answer_0, taken)

    async def testbench(ctx):
        await store(bench, ctx, words(3, **ENTRY))
        await bench.send(ctx, bench.dut.request_0, asked)
        await idle(ctx, 12)

    bench.add(testbench)
    bench.run(max_cycles=100)
    assert len(taken) == 1
    assert taken[0]["status"] == status
    assert agrees(taken[0], expected({3: ENTRY}, asked))


def test_table_is_empty_after_reset():
    bench = Bench(KeyTable(CONFIG, clients=1))
    taken = []
    bench.sink(bench.dut.answer_0, taken)
    bench.source(bench.dut.request_0, [request(channel=0, index=i, generation=0) for i in range(16)])
    bench.add(lasting(40))
    bench.run(max_cycles=200)
    assert [a["status"] for a in taken] == [Status.KEY_INVALID] * 16


def random_entry(rng):
    return {"address": rng.getrandbits(64), "length": rng.choice([1, 0x1000, 0x10_0000, (1 << 40) - 1]),
            "generation": rng.randrange(2), "rights": rng.randrange(4), "owner": rng.randrange(2),
            "valid": int(rng.random() < 0.9)}


def random_request(rng, entries):
    index = rng.randrange(17)
    size = entries.get(index, ENTRY)["length"]
    return {"channel": rng.randrange(2), "key": make_key(index, rng.randrange(2)),
            "offset": max(0, rng.choice([0, size - 1, size, size // 2])) % (1 << 40),
            "length": rng.choice([1, 2, size // 2 % (1 << 24), 0x10_0000]), "write": rng.randrange(2)}


def ask(entries, asked, *, seed=0, stall=0.0):
    """Store the entries, let two clients ask, and compare the answers with what the contract says; returns them."""
    bench = Bench(shared(KeyTable, CONFIG), seed=seed)
    taken = [[], []]
    for n in range(2):
        bench.sink(getattr(bench.dut, f"answer_{n}"), taken[n], stall=stall)

    def client(n):
        async def testbench(ctx):
            await idle(ctx, 16 * 5 + 2)
            for payload in asked[n]:
                await bench.send(ctx, getattr(bench.dut, f"request_{n}"), payload, stall=stall * (1 - n))
            await idle(ctx, 60)
        return testbench

    async def tables(ctx):
        for index, entry in entries.items():
            await store(bench, ctx, words(index, **entry))

    bench.add(tables)
    for n in range(2):
        bench.add(client(n))
    bench.run(max_cycles=4000)
    for n in range(2):
        assert len(taken[n]) == len(asked[n])
        for got, payload in zip(taken[n], asked[n], strict=True):
            assert agrees(got, expected(entries, payload)), f"seed {seed}: {payload} -> {got}"
    return taken


@pytest.mark.parametrize(("seed", "stall"), [(1, 0.0), (2, 0.3), (3, 0.7)])
def test_random_requests_of_two_clients(seed, stall):
    rng = random.Random(seed)
    entries = {index: random_entry(rng) for index in range(16)}
    taken = ask(entries, [[random_request(rng, entries) for _ in range(150)] for _ in range(2)], seed=seed, stall=stall)
    assert {a["status"] for a in taken[0]} == {Status.OK, Status.KEY_INVALID, Status.KEY_OWNER, Status.KEY_RIGHTS,
                                              Status.KEY_BOUNDS}


def test_lookups_while_the_same_entry_is_written():
    """An answer fits the entry before or after a commit; the Ram itself asserts that no clobbered word is read."""
    versions = [ENTRY | {"address": 0x1000 * (n + 1), "generation": n % 2} for n in range(20)]
    bench = Bench(shared(KeyTable, CONFIG))
    taken = []
    bench.sink(bench.dut.answer_0, taken)
    done = []

    async def writer(ctx):
        for version in versions:
            await store(bench, ctx, words(3, **version))
        done.append(True)

    async def asker(ctx):
        while not done:
            await bench.send(ctx, bench.dut.request_0, request(generation=0))
        await idle(ctx, 20)

    bench.add(writer)
    bench.add(asker)
    bench.run(max_cycles=400)
    found = [a["address"] for a in taken if a["status"] == Status.OK]
    assert set(found) <= {v["address"] for v in versions if v["generation"] == 0}
    assert found == sorted(found)
    assert len(set(found)) == 10
    assert {a["status"] for a in taken} == {Status.OK, Status.KEY_INVALID}


def test_latency_and_rate():
    bench = Bench(shared(KeyTable, CONFIG))
    dut, asked_at, answered_at = bench.dut, [], []

    async def watch(ctx):
        ctx.set(dut.answer_0.ready, 1)
        ctx.set(dut.answer_1.ready, 1)
        async for _, _, *sampled in ctx.tick().sample(dut.request_0.valid & dut.request_0.ready, dut.answer_0.valid):
            for happened, times in zip(sampled, (asked_at, answered_at), strict=True):
                if happened:
                    times.append(bench.cycle)

    bench.background(watch)
    bench.source(dut.request_0, [request() for _ in range(64)])
    bench.add(lasting(100))
    bench.run(max_cycles=300)
    assert len(answered_at) == 64
    assert max(b - a for a, b in zip(asked_at, answered_at, strict=True)) <= 8
    assert asked_at[-1] - asked_at[0] == 63


def test_a_client_that_does_not_take_its_answers_holds_up_nobody():
    bench = Bench(shared(KeyTable, CONFIG))
    taken, accepted = [], []
    bench.sink(bench.dut.answer_1, taken)

    async def stuck(ctx):
        ctx.set(bench.dut.request_0.payload, request())
        ctx.set(bench.dut.request_0.valid, 1)
        async for _, _, ready in ctx.tick().sample(bench.dut.request_0.ready):
            accepted.append(plain(ready))

    bench.background(stuck)
    bench.source(bench.dut.request_1, [request() for _ in range(40)])
    bench.add(lasting(80))
    bench.run(max_cycles=300)
    assert sum(accepted) == ANSWERS_PER_CLIENT
    assert len(taken) == 40
    assert bench.idle_cycles > 10, "a full table of answers that nobody takes is not active"


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_parameters_are_checked():
    with pytest.raises(ValueError, match="clients must be a positive integer, not 0"):
        KeyTable(CONFIG, clients=0)
    gc.collect()  # here, where the warning that a refused block was never used is off
