"""The flow table against a dictionary, and against a model of its buckets: what it finds, when, and what it refuses."""

import gc
import random

import pytest

from nic_model.contract import NicConfig, register
from nic_model.contract.flow_hash import crc_of_word, flow_hash
from rtl.flow_table import FlowOrder, FlowStatus, FlowTable
from tests.rtl.harness import Bench, idle, until

WIDTHS = {8: (2, 1), 16: (2, 1), 32: (3, 2), 64: (5, 2)}
"""MAC's width in bytes -> words of a key in a cycle, and copies of the keys."""

SPACING = {8: (7, 10), 16: (4, 5), 32: (2, 3), 64: (1, 2)}
"""Cycles before a frame's last beat at least: TCP over IPv4 has 54 bytes, over IPv6 74."""


def crc32c(words) -> int:
    """The remainder of a message by long division: x^32 times its bits as a polynomial over GF(2)."""
    divisor = 1 << 32 | 0x1EDC6F41
    rest = 0
    for word in words:
        rest = rest << 32 | word
    rest <<= 32
    while rest >> 32:
        rest ^= divisor << rest.bit_length() - 33
    return rest


class Buckets:
    """Where flows stand, by the words of `FlowTable`; knows which ADD is refused."""

    def __init__(self, buckets):
        self.buckets = buckets
        self.slots = [[{} for _ in range(buckets)] for _ in range(2)]  # fingerprint -> key

    def _places(self, key):
        hash_value = crc32c(key)
        return hash_value >> 16, [self.slots[0][hash_value % self.buckets],
                                  self.slots[1][(hash_value >> 8) % self.buckets]]

    def add(self, key) -> bool:
        fingerprint, buckets = self._places(key)
        fits = [bucket for bucket in buckets if len(bucket) < 4 and fingerprint not in bucket]
        if fits:
            min(fits, key=len)[fingerprint] = key
        return bool(fits)

    def delete(self, key) -> None:
        fingerprint, buckets = self._places(key)
        for bucket in buckets:
            if bucket.get(fingerprint) == key:
                del bucket[fingerprint]


def random_key(rng):
    """IPv4 with 3 words, or IPv6 with 9."""
    return tuple(rng.getrandbits(32) for _ in range(rng.choice((3, 3, 9))))


def as_key(key):
    return {**{f"word_{n}": key[n] if n < len(key) else 0 for n in range(9)}, "ipv6": int(len(key) == 9)}


def an_order(order, flow, generation=0, *, channel=0, key=(0, 0, 0)):
    return {"order": order, "flow": flow, "generation": generation, "channel": channel, "key": as_key(key)}


class Table:
    """The block with what it should find."""

    def __init__(self, width=8, *, flows=16, buckets=4, seed=0):
        words, copies = WIDTHS[width]
        self.dut = FlowTable(flows=flows, buckets=buckets, words_per_cycle=words, copies=copies)
        self.width, self.bench = width, Bench(self.dut, seed=seed)
        self.buckets = Buckets(buckets)
        self.flows = {}  # number -> (key, generation, channel)
        self.numbers = {}  # key -> number
        self.changing = {}  # key -> what a lookup may find besides, while an order is under way
        self.waiting = []  # key, cycle, what may be found
        self.answers = self.found = 0
        self.latencies = []
        self.bench.background(self._take_answers)

    async def _take_answers(self, ctx):
        """Answers are taken `latency` cycles behind their lookup, where each must be."""
        dut = self.dut
        ctx.set(dut.answer.ready, 0)
        first_valid = None
        async for _, _, valid, ready, answer in ctx.tick().sample(
                dut.answer.valid, dut.answer.ready, dut.answer.payload):
            if valid and first_valid is None:
                first_valid = self.bench.cycle - 1  # the edge behind that cycle has been counted
                self.latencies.append(first_valid - self.waiting[0][1])
            if ready:
                assert valid, "an answer is not there in time"
                key, _, allowed = self.waiting.pop(0)
                found = (int(answer.flow), int(answer.generation)) if answer.found else None
                assert found in allowed, f"cycle {self.bench.cycle}: {key} gave {found}, not one of {allowed}"
                self.answers += 1
                self.found += bool(answer.found)
                first_valid = None
            due = self.waiting and self.bench.cycle == self.waiting[0][1] + dut.latency
            ctx.set(dut.answer.ready, int(bool(due)))

    def _now(self, key):
        number = self.numbers.get(key)
        return None if number is None else (number, self.flows[number][1])

    async def lookup(self, ctx, key):
        """A lookup; it may find what is there now, or what the order under way makes of it."""
        await idle(ctx, SPACING[self.width][len(key) == 9] - 1)
        allowed = [self._now(key), *self.changing.get(key, ())]
        self.waiting.append((key, self.bench.cycle, allowed))
        await self.bench.strobe(ctx, self.dut.lookup, as_key(key))

    async def order(self, ctx, order, flow, generation=0, *, channel=0, key=(0, 0, 0)):
        """One order, whose outcome must be the model's."""
        expected, answer_channel = FlowStatus.OK, None
        then = dict(self.flows)
        if order == FlowOrder.ADD:
            if flow in self.flows:
                expected = FlowStatus.IN_USE
            elif key in self.numbers:
                expected = FlowStatus.PRESENT
            elif not self.buckets.add(key):
                expected = FlowStatus.FULL
            else:
                then[flow] = key, generation, channel
        elif self.flows.get(flow, (None, None))[1] != generation:
            expected = FlowStatus.STALE
        else:
            key, _, answer_channel = self.flows[flow]
            if order == FlowOrder.DELETE:
                self.buckets.delete(key)
                del then[flow]
        before = {key: self._now(key)} if expected == FlowStatus.OK else {}
        self.flows = then
        self.numbers = {entry[0]: number for number, entry in then.items()}
        if expected == FlowStatus.OK:
            # What was asked and has no answer yet may find either.
            both = [before[key], self._now(key)]
            self.changing[key] = both
            for waiting_key, _, allowed in self.waiting:
                if waiting_key == key:
                    allowed += both
        await self.bench.send(ctx, self.dut.order, an_order(order, flow, generation, channel=channel, key=key))
        ctx.set(self.dut.done.ready, 1)
        (done,) = await until(ctx, self.dut.done.valid, self.dut.done.payload)
        ctx.set(self.dut.done.ready, 0)
        self.changing.pop(key, None)
        assert done.status == expected, f"{order} {flow}: {done.status}, not {expected}"
        if answer_channel is not None and order in (FlowOrder.CHECK, FlowOrder.DELETE):
            assert done.channel == answer_channel
        return expected

    def run(self, *mains, **limits):
        for main in mains:
            self.bench.add(main)
        self.bench.run(**limits)
        assert not self.waiting
        assert self.bench.idle_cycles > 0

    async def settle(self, ctx):
        await idle(ctx, self.dut.latency + 4)


def reflected(value, bits):
    return int(f"{value:0{bits}b}"[::-1], 2)


@pytest.mark.parametrize(("message", "crc"), [
    # RFC 3720 B.4, as bytes on the wire: least significant first
    (bytes(32), 0x8A9136AA), (bytes([0xFF] * 32), 0x62A8AB43), (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
])
def test_hash_is_crc32c(message, crc):
    # iSCSI's has its bits reflected, a preset and a complement.
    words = [int.from_bytes(bytes(reflected(byte, 8) for byte in message[at:at + 4]), "big") for at in range(0, 32, 4)]
    value = 0xFFFF_FFFF
    for word in words:
        value = crc_of_word(value, word)
    assert reflected(value, 32) ^ 0xFFFF_FFFF == crc
    assert flow_hash(words) == crc32c(words)


@pytest.mark.parametrize("width", [8, 64])
def test_one_flow(width):
    table = Table(width)
    for version, key in enumerate(((0x0A000001, 0x0A000002, 0x04D2_0050), tuple(range(1, 10)))):
        async def main(ctx, key=key, flow=3 + version):
            await table.lookup(ctx, key)
            await table.settle(ctx)
            assert await table.order(ctx, FlowOrder.ADD, flow, 7, channel=2, key=key) == FlowStatus.OK
            for n in range(len(key)):  # each word counts
                await table.lookup(ctx, (*key[:n], key[n] ^ 1 << n, *key[n + 1:]))
            await table.lookup(ctx, key)
            await table.lookup(ctx, key[:3] if len(key) == 9 else (*key, 0, 0, 0, 0, 0, 0))
            for generation in (6, 7):
                await table.order(ctx, FlowOrder.CHECK, flow, generation)
            await table.order(ctx, FlowOrder.ADD, flow, 8, key=(1, 2, 3))
            await table.order(ctx, FlowOrder.ADD, 9, 8, key=key)
            await table.order(ctx, FlowOrder.DELETE, flow, 6)
            await table.lookup(ctx, key)
            await table.settle(ctx)
            await table.order(ctx, FlowOrder.DELETE, flow, 7)
            await table.lookup(ctx, key)
            await table.settle(ctx)
        if not version:
            first = main

    async def both(ctx):
        await first(ctx)
        await main(ctx)

    table.run(both)
    assert table.found == 4


@pytest.mark.parametrize("width", [8, 64])  # one copy of the keys, and two
def test_random_orders_while_lookups_come_at_full_rate(width):
    seed = 100 + width
    rng = random.Random(seed)
    table = Table(width, seed=seed)
    pool = [random_key(rng) for _ in range(24)]
    seen, done = [], []

    async def orders(ctx):
        for generation in range(1, 121):
            order = rng.choice((FlowOrder.ADD,) * 4 + (FlowOrder.DELETE,) * 3 + (FlowOrder.CHECK,) * 3)
            flow = rng.randrange(16)
            if order != FlowOrder.ADD and table.flows:
                flow = rng.choice(list(table.flows))
            of_flow = table.flows.get(flow, (None, 0))[1] if order != FlowOrder.ADD else generation % 256
            if rng.random() < 0.2:
                of_flow = (of_flow + 1) % 256
            seen.append((order, await table.order(ctx, order, flow, of_flow, channel=rng.randrange(64),
                                                  key=rng.choice(pool))))
            await idle(ctx, rng.choice((0, 0, 1, 5, 20)))
        await table.settle(ctx)
        done.append(True)

    async def lookups(ctx):
        while not done:
            keys = list(table.numbers) if rng.random() < 0.5 and table.numbers else pool
            await table.lookup(ctx, rng.choice([*keys, *table.changing]) if rng.random() < 0.95 else random_key(rng))
            await idle(ctx, rng.choice((0,) * 12 + (1, 9)))
        await table.settle(ctx)

    table.run(orders, lookups, max_cycles=30_000)
    wanted = {(FlowOrder.ADD, status) for status in FlowStatus if status != FlowStatus.STALE}
    wanted |= {(order, status) for order in (FlowOrder.DELETE, FlowOrder.CHECK)
               for status in (FlowStatus.OK, FlowStatus.STALE)}
    assert wanted - {(FlowOrder.ADD, FlowStatus.FULL)} <= set(seen), f"seed {seed}"
    assert 50 < table.found < table.answers - 50, f"seed {seed}"
    assert max(table.latencies) <= table.dut.latency, f"seed {seed}"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_latest_answer(width):
    # An ADD of an IPv6 flow, refused from the second time on, goes right before a lookup: no answer comes later.
    table = Table(width)

    async def main(ctx):
        for gap in range(12):
            ctx.set(table.dut.order.payload, an_order(FlowOrder.ADD, 1 + bool(gap), key=tuple(range(9))))
            ctx.set(table.dut.order.valid, 1)
            await idle(ctx, gap)
            table.waiting.append((None, table.bench.cycle, [None, (1, 0)]))
            await table.bench.strobe(ctx, table.dut.lookup, as_key(tuple(range(9))))
            await until(ctx, table.dut.order.ready)
            ctx.set(table.dut.order.valid, 0)
            ctx.set(table.dut.done.ready, 1)
            await table.settle(ctx)

    table.run(main)
    assert max(table.latencies) == table.dut.latency


def test_a_full_bucket_refuses_and_forgets():
    # Of two buckets in each table, 16 slots in all, some refuse before all are full; each refusal changes nothing.
    rng = random.Random(3)
    table = Table(flows=32, buckets=2)
    statuses = []

    async def main(ctx):
        for number in range(32):
            statuses.append(await table.order(ctx, FlowOrder.ADD, number, 1, key=random_key(rng)))
        for key in list(table.numbers):
            await table.lookup(ctx, key)
        for number in list(table.flows):
            await table.order(ctx, FlowOrder.DELETE, number, 1)
        for number in range(8):
            statuses.append(await table.order(ctx, FlowOrder.ADD, number, 2, key=random_key(rng)))
        await table.settle(ctx)

    table.run(main)
    assert statuses.count(FlowStatus.FULL) >= 16
    assert 8 < table.found <= 16
    assert statuses[32:] == [FlowStatus.OK] * 8


def same_hash(key, buckets, wanted):
    """Keys that are alike in what `wanted` says of their hash, found by solving for the last word."""
    found = []
    for first in range(1, 1 << 12):
        base = crc32c((first, key[1], 0))
        # The last word's 32 bits give every hash: the CRC of a word is one to one.
        for target in wanted:
            word = next(w for w in [_solve(base ^ target)])
            found.append((first, key[1], word))
        if len(found) >= buckets:
            return found
    raise AssertionError("no such keys")


def _solve(difference):
    """The word whose CRC is `difference`: elimination over its bits."""
    columns = [(crc32c((1 << bit,)), 1 << bit) for bit in range(32)]
    word = 0
    for bit in range(31, -1, -1):
        pivot = next(column for column in columns if column[0] >> bit & 1)
        columns.remove(pivot)
        columns = [(c ^ pivot[0], w ^ pivot[1]) if c >> bit & 1 else (c, w) for c, w in columns]
        if difference >> bit & 1:
            difference, word = difference ^ pivot[0], word ^ pivot[1]
    return word


def test_keys_of_one_hash_are_told_apart():
    # Three keys with one hash: each bucket takes one of them, the third is refused; none is taken for another.
    keys = same_hash((0, 77, 0), 3, [0x1234_0201])
    assert len({crc32c(key) for key in keys}) == 1
    table = Table(buckets=4)

    async def main(ctx):
        for number, key in enumerate(keys):
            status = await table.order(ctx, FlowOrder.ADD, number, 1, key=key)
            assert status == (FlowStatus.OK if number < 2 else FlowStatus.FULL)
        for key in keys:
            await table.lookup(ctx, key)
        await table.settle(ctx)
        await table.order(ctx, FlowOrder.DELETE, 0, 1)
        await table.order(ctx, FlowOrder.ADD, 5, 1, key=keys[2])
        for key in keys:
            await table.lookup(ctx, key)
        await table.settle(ctx)

    table.run(main)
    assert table.found == 4


def test_device_reset_takes_out_all():
    rng = random.Random(5)
    table = Table()
    keys = [random_key(rng) for _ in range(6)]

    async def main(ctx):
        for number, key in enumerate(keys):
            await table.order(ctx, FlowOrder.ADD, number, 1, key=key)
        await table.bench.strobe(ctx, table.dut.write, {"address": register("DEVICE_RESET"), "data": 0})
        for key in keys:
            await table.lookup(ctx, key)
        await table.settle(ctx)
        await table.bench.strobe(ctx, table.dut.write, {"address": register("DEVICE_RESET"), "data": 1})
        await idle(ctx, 2)
        table.flows, table.numbers, table.buckets = {}, {}, Buckets(4)
        for key in keys:
            await table.lookup(ctx, key)
        for number, key in enumerate(keys):
            await table.order(ctx, FlowOrder.DELETE, number, 1)
            await table.order(ctx, FlowOrder.ADD, number, 1, key=key)
            await table.lookup(ctx, key)
        await table.settle(ctx)

    table.run(main)
    assert table.found == 12


@pytest.mark.parametrize("seed", range(20))
def test_random_fills_of_1024_flows_fit(seed):
    rng = random.Random(seed)
    buckets = Buckets(256)
    server = rng.getrandbits(32), 443
    assert all(buckets.add((rng.getrandbits(32), server[0], rng.randrange(1024, 65536) << 16 | server[1]))
               for _ in range(1024)), f"seed {seed}"


@pytest.mark.parametrize(("name", "keys"), [
    ("ports of one client", [(0xC0A80102, 0x0A000001, 32768 + n << 16 | 80) for n in range(1024)]),
    ("every second port", [(0xC0A80102, 0x0A000001, 32768 + 2 * n << 16 | 80) for n in range(1024)]),
    ("clients in a row", [(0xC0A80000 + n, 0x0A000001, 40000 << 16 | 80) for n in range(1024)]),
    ("clients with some ports", [(0xC0A80000 + n % 32, 0x0A000001, 32768 + n // 32 << 16 | 80) for n in range(1024)]),
    ("ports of one server", [(0xC0A80102, 0x0A000001, 40000 << 16 | n) for n in range(1024)]),
    ("IPv6", [(0x20010DB8, 0, 0, 1 + n % 16, 0x20010DB8, 0, 0, 1, 32768 + n // 16 << 16 | 80) for n in range(1024)]),
])
def test_regular_fills_of_1024_flows_fit(name, keys):
    buckets = Buckets(256)
    assert all(buckets.add(key) for key in keys), name


def test_a_default_table_fills():
    # In the device's own size, a part of a fill: the model of buckets decides the rest.
    rng = random.Random(9)
    table = Table(flows=1024, buckets=256)
    keys = [random_key(rng) for _ in range(16)]

    async def main(ctx):
        for number, key in enumerate(keys):
            assert await table.order(ctx, FlowOrder.ADD, 1023 - 7 * number, 1, key=key) == FlowStatus.OK
        for key in keys:
            await table.lookup(ctx, key)
        await table.settle(ctx)

    table.run(main)
    assert table.found == len(keys)


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize(("parameters", "message"), [
    ({"flows": 100, "buckets": 4}, "flows must be a power of two of at least 2, not 100"),
    ({"flows": 16, "buckets": 512}, "buckets must be at most 256, not 512"),
    ({"flows": 16, "buckets": 4, "copies": 3}, "copies must be 1 or 2, not 3"),
])
def test_parameters_are_checked(parameters, message):
    with pytest.raises(ValueError, match=message):
        FlowTable(**parameters)
    gc.collect()  # here, where the warning that a refused block was never used is off


def test_config_is_what_the_tests_assume():
    assert NicConfig(name="test").mac_bytes in WIDTHS
