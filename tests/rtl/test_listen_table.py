"""The table of listeners against a dictionary: exact addresses, any address, both versions, orders meanwhile."""

import random

import pytest

from nic_model.contract import register
from rtl.listen_table import SLOTS_PER_BUCKET, ListenOrder, ListenStatus, ListenTable
from tests.rtl.harness import Bench, idle, until


class Table:
    """The block with what it should find."""

    def __init__(self, listeners=16, *, seed=0):
        self.dut = ListenTable(listeners=listeners)
        self.bench = Bench(self.dut, seed=seed)
        self.buckets = max(2, listeners // SLOTS_PER_BUCKET)
        self.listeners = {}  # number -> key
        self.answers, self.expected = [], []
        self.changing = None
        self.bench.sink(self.dut.answer, self.answers)

    def _bucket(self, key):
        return (key[1] ^ key[1] // self.buckets) % self.buckets

    def find(self, key, listeners):
        for wanted in (key, (0, *key[1:])):
            for number, there in listeners.items():
                if there == wanted:
                    return number
        return None

    async def lookup(self, ctx, key):
        allowed = {self.find(key, self.listeners)}
        if self.changing is not None:
            allowed.add(self.find(key, self.changing))
        self.expected.append((key, allowed))
        await self.bench.strobe(ctx, self.dut.lookup, dict(zip(("address", "port", "ipv6"), key, strict=True)))

    async def order(self, ctx, order, number, key=(0, 0, 0)):
        after, expected = dict(self.listeners), ListenStatus.OK
        if order == ListenOrder.DELETE:
            if after.pop(number, None) is None:
                expected = ListenStatus.STALE
        elif number in after or key in after.values():
            expected = ListenStatus.PRESENT
        elif sum(self._bucket(other) == self._bucket(key) for other in after.values()) == SLOTS_PER_BUCKET:
            expected = ListenStatus.FULL
        else:
            after[number] = key
        self.changing = after
        await self.bench.send(ctx, self.dut.order, {
            "order": order, "listener": number, "key": dict(zip(("address", "port", "ipv6"), key, strict=True))})
        ctx.set(self.dut.done.ready, 1)
        (done,) = await until(ctx, self.dut.done.valid, self.dut.done.payload)
        ctx.set(self.dut.done.ready, 0)
        if expected == ListenStatus.OK:
            self.listeners = after
        assert done.status == expected
        for waiting, allowed in self.expected[-4:]:  # those that are still on their way
            allowed.add(self.find(waiting, self.listeners))
        self.changing = None
        return expected

    def run(self, *mains, **limits):
        for main in mains:
            self.bench.add(main)
        self.bench.run(**limits)
        assert len(self.answers) == len(self.expected)
        assert self.bench.idle_cycles > 0
        for answer, (key, allowed) in zip(self.answers, self.expected, strict=True):
            assert (answer["listener"] if answer["found"] else None) in allowed, key


def test_exact_address_comes_before_any():
    table = Table()
    here, there = 0x0200_000A, 0x0300_000A

    async def main(ctx):
        await table.order(ctx, ListenOrder.ADD, 1, (0, 80, 0))
        await table.order(ctx, ListenOrder.ADD, 2, (here, 80, 0))
        await table.order(ctx, ListenOrder.ADD, 3, (here, 80, 1))
        for key in ((here, 80, 0), (there, 80, 0), (here, 80, 1), (there, 80, 1), (here, 81, 0)):
            await table.lookup(ctx, key)
        await table.order(ctx, ListenOrder.DELETE, 2)
        await table.lookup(ctx, (here, 80, 0))
        await table.bench.strobe(ctx, table.dut.write, {"address": register("DEVICE_RESET"), "data": 1})
        await idle(ctx, 24)
        table.listeners = {}
        await table.lookup(ctx, (there, 80, 0))
        assert await table.order(ctx, ListenOrder.ADD, 1, (0, 80, 0)) == ListenStatus.OK
        await table.lookup(ctx, (there, 80, 0))
        await idle(ctx, 10)

    table.run(main)
    assert [answer["listener"] if answer["found"] else None for answer in table.answers] == [
        2, 1, 3, None, None, 1, None, 1]


@pytest.mark.parametrize("listeners", [16, 64])
def test_random_orders_while_lookups_come_in_each_cycle(listeners):
    seed = listeners
    rng = random.Random(seed)
    table = Table(listeners, seed=seed)
    pool = [(rng.choice((0, 0, rng.getrandbits(32), rng.getrandbits(128))), rng.choice((80, 443, 8080, 8081)),
             rng.randrange(2)) for _ in range(listeners)]
    seen, done = set(), []

    async def orders(ctx):
        for _ in range(120):
            order = rng.choice((ListenOrder.ADD, ListenOrder.ADD, ListenOrder.DELETE))
            seen.add((order, await table.order(ctx, order, rng.randrange(listeners), rng.choice(pool))))
        done.append(True)

    async def lookups(ctx):
        while not done:
            for _ in range(rng.randrange(1, 12)):
                await table.lookup(ctx, rng.choice(pool))
            await idle(ctx, rng.choice((0, 1, 6)) + 1)
        await idle(ctx, 20)

    table.run(orders, lookups)
    assert len(seen) == 5, f"seed {seed}: {seen}"
    assert sum(answer["found"] for answer in table.answers) > 100, f"seed {seed}"
