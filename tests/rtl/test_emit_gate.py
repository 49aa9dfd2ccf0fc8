# amaranth: UnusedElaboratable=no
"""Which order to send is next: rules 2 and 4 of the control port, watched while everything stalls at random."""

import random
from dataclasses import dataclass, field

import pytest

from nic_model.contract import NicConfig
from nic_model.contract.control import EMIT, NO_FLOW, RAW, UNIT_BYTES, ControlType, OrderFlag
from rtl.emit_gate import QUEUE_ORDERS, EmitGate
from rtl.place_counts import FlowCounter
from tests.rtl.harness import Bench, idle, plain

SEED = 7_703
QUEUES = (2, 3)


def config_of(host_bytes: int = 16, emit_credits: int = 8) -> NicConfig:
    return NicConfig(name="test", mac_bytes=8, host_bytes=host_bytes, channels=4, vectors=4, keys=64, flows=16,
                     emit_credits=emit_credits)


@dataclass
class Order:
    """An order, and what happened to it: cycles."""

    flow: int
    bulk: bool = False
    fence: bool = False
    units: int = 1
    raw: bool = False
    last: bool = False
    number: int = 0
    fenced_by: int = 0
    """PLACEs of its flow that were given before it."""
    left: int | None = None
    decided: int | None = None

    @property
    def is_bulk(self) -> bool:
        return self.bulk or (self.last and not self.raw)

    def message(self) -> bytes:
        flags = OrderFlag.FENCE * self.fence | OrderFlag.LAST * self.last
        head = {"units": self.units, "flow": self.flow, "tag": self.number, "flags": flags, "length": self.bulk * 77}
        first = (RAW.pack(type=ControlType.RAW, **head) if self.raw else EMIT.pack(type=ControlType.EMIT, **head))
        filling = random.Random(self.number).randbytes(UNIT_BYTES * (self.units - 1))
        return first + filling


@dataclass
class Gate:
    """Everything round a gate: a decider, the transmit path behind, and the receive side that places."""

    config: NicConfig
    seed: int = SEED
    stall: float = 0.0
    orders: list[Order] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dut = EmitGate(self.config, queues=QUEUES)
        self.bench = Bench(self.dut, seed=self.seed)
        self.rng = random.Random(self.seed)
        self.came: list[Order] = []
        self.given: dict[int, int] = {}
        self.done: dict[int, int] = {}
        self.credits = self.config.emit_credits
        self.open_queues = [True, True]
        self.bench.background(self._take)
        self.bench.background(self._count_credits)
        self.bench.background(self._decide)

    async def give(self, ctx, order: Order) -> None:
        """Give an order when there is a credit."""
        while not self.credits:
            await ctx.tick()
        self.credits -= 1
        order.number, order.fenced_by = len(self.orders), self.given.get(order.flow, 0)
        self.orders.append(order)
        width, message = self.config.host_bytes, order.message()
        for at in range(0, len(message), width):
            await self.bench.send(ctx, self.dut.i, {
                "data": int.from_bytes(message[at:at + width], "little"), "last": at + width == len(message)},
                stall=self.stall)

    async def place(self, ctx, flow: int) -> None:
        self.given[flow] = self.given.get(flow, 0) + 1
        await self.bench.send(ctx, self.dut.place_given, flow)

    async def place_ends(self, ctx, flow: int) -> None:
        self.done[flow] = self.done.get(flow, 0) + 1
        await self.bench.send(ctx, self.dut.place_done, flow)

    async def _count_credits(self, ctx):
        async for _, _, left in ctx.tick().sample(self.dut.left):
            self.credits += left

    async def _take(self, ctx):
        """Take messages; each must be allowed to leave."""
        width, message = self.config.host_bytes, b""
        ctx.set(self.dut.o.ready, 1)
        async for _, _, valid, ready, beat in ctx.tick().sample(
                self.dut.o.valid, self.dut.o.ready, self.dut.o.payload):
            if valid and ready:
                word = plain(beat)
                message += word["data"].to_bytes(width, "little")
                if word["last"]:
                    self._left(message)
                    message = b""
            ctx.set(self.dut.o.ready, self.rng.random() >= self.stall)

    def _left(self, message: bytes) -> None:
        order = self.orders[EMIT.unpack(message[:UNIT_BYTES])["tag"]]
        assert message == order.message()
        assert order.left is None, "an order leaves twice"
        order.left = self.bench.cycle
        who = f"cycle {self.bench.cycle}, seed {self.seed}: {order}"
        mine = [o for o in self.orders if o.flow == order.flow and o is not order]
        if order.flow < self.config.flows:
            for other in mine:
                assert (other.left is not None) == (other.number < order.number), f"out of order: {who}"
                assert other.number > order.number or other.decided is not None or other.is_bulk == order.is_bulk, (
                    f"the other queue still has {other}: {who}")
            if order.fence:
                assert self.done.get(order.flow, 0) >= order.fenced_by, f"past its fence: {who}"
        self.came.append(order)
        for bulk in (False, True):
            stored = [o for o in self.came if o.is_bulk is bulk and o.decided is None]
            assert len(stored) <= QUEUE_ORDERS, f"no room: {who}"

    async def _decide(self, ctx):
        """The scheduler is done with an order now and then: the first of either queue."""
        while True:
            await ctx.tick()
            for bulk in (False, True):
                stored = [o for o in self.came if o.is_bulk is bulk and o.decided is None]
                if stored and self.open_queues[bulk] and self.rng.random() < 0.1:
                    stored[0].decided = self.bench.cycle
                    await self.bench.strobe(ctx, self.dut.freed, {"channel": QUEUES[bulk], "slots": 1})

    def run(self, use, max_cycles: int = 20_000) -> None:
        async def whole(ctx):
            await use(ctx)
            while any(o.decided is None for o in self.orders):
                await ctx.tick()
            await idle(ctx, 20)
        self.bench.add(whole)
        self.bench.run(max_cycles=max_cycles)
        assert len(self.came) == len(self.orders)
        assert self.credits == self.config.emit_credits


@pytest.mark.parametrize(("host_bytes", "stall"), [(16, 0.0), (16, 0.3), (64, 0.2)])
def test_random_orders_and_places(host_bytes: int, stall: float) -> None:
    gate = Gate(config_of(host_bytes), stall=stall)
    rng = random.Random(SEED)
    under_way: list[int] = []
    flows = (0, 1, 2, 15, 16, NO_FLOW)

    async def use(ctx):
        for _ in range(300):
            flow = rng.choice(flows)
            what = rng.random()
            if what < 0.25 and flow < 16:
                await gate.place(ctx, flow)
                under_way.append(flow)
            elif what < 0.5 and under_way:
                await gate.place_ends(ctx, under_way.pop(0))
            elif gate.credits:
                await gate.give(ctx, Order(
                    flow=flow, bulk=rng.random() < 0.5, fence=rng.random() < 0.3, units=rng.choice((1, 1, 2, 4)),
                    raw=rng.random() < 0.2, last=rng.random() < 0.05))
            else:
                await idle(ctx, 8)
        while under_way:
            await gate.place_ends(ctx, under_way.pop(0))
    gate.run(use)
    assert len(gate.orders) > 50


def test_a_fence_holds_its_flow_and_nobody_else() -> None:
    gate = Gate(config_of())

    async def use(ctx):
        await gate.place(ctx, 1)
        await gate.place(ctx, 1)
        fenced, behind = Order(1, fence=True), Order(1)
        for order in (fenced, behind, Order(2), Order(2, bulk=True), Order(NO_FLOW, raw=True), Order(3, fence=True)):
            await gate.give(ctx, order)
        await gate.place(ctx, 1)  # later than the fence
        await gate.place_ends(ctx, 1)
        await idle(ctx, 100)
        assert sorted(o.flow for o in gate.came) == [2, 2, 3, NO_FLOW]
        assert fenced.left is behind.left is None
        await gate.place_ends(ctx, 1)
        await idle(ctx, 60)
        assert None not in (fenced.left, behind.left)
        await gate.place_ends(ctx, 1)
    gate.run(use)


def test_without_payload_nothing_waits_for_the_payload_of_other_flows() -> None:
    """The scheduler decides nothing with payload for a long time: acknowledgements of other flows pass."""
    gate = Gate(config_of(emit_credits=32))

    async def use(ctx):
        gate.open_queues = [True, False]
        for n in range(24):
            await gate.give(ctx, Order(n % 4, bulk=True))
        own, others = Order(2), [Order(4 + n) for n in range(6)]
        await gate.give(ctx, own)
        for order in others:
            await gate.give(ctx, order)
        await idle(ctx, 150)
        assert sum(o.bulk for o in gate.came) == QUEUE_ORDERS
        assert all(order.left is not None for order in others)
        assert own.left is None
        gate.open_queues = [True, True]
    gate.run(use)


def test_units_behind_the_fourth_are_dropped() -> None:
    gate = Gate(config_of())

    async def use(ctx):
        order = Order(1, units=4)
        message = bytearray(order.message() + bytes(UNIT_BYTES))
        message[1] = message[1] & 0xF0 | 5
        gate.orders.append(order)
        gate.credits -= 1
        for at in range(0, len(message), 16):
            await gate.bench.send(ctx, gate.dut.i, {"data": int.from_bytes(message[at:at + 16], "little"), "last": 0})
        await gate.give(ctx, Order(1))
    gate.run(use)


def test_the_gate_keeps_up_with_an_order_in_ten_cycles() -> None:
    """Orders of one unit, each decided as soon as it has left."""
    dut = EmitGate(config_of(emit_credits=32), queues=QUEUES)
    bench, beats, starts = Bench(dut), [], []
    messages = [Order(n % 16, bulk=n % 3 == 0, number=n).message() for n in range(60)]
    bench.source(dut.i, [{"data": int.from_bytes(m[at:at + 16], "little"), "last": at == 48}
                         for m in messages for at in range(0, 64, 16)])
    bench.sink(dut.o, beats)

    async def decide(ctx):
        seen = 0
        while len(starts) < len(messages):
            await ctx.tick()
            ctx.set(dut.freed.valid, 0)
            if len(beats) >= 4 * (seen + 1):
                starts.append(bench.cycle)
                bulk = messages[beats[4 * seen]["data"] >> 40 & 0xFFFF][8] != 0
                ctx.set(dut.freed.payload.channel, QUEUES[bulk])
                ctx.set(dut.freed.valid, 1)
                seen += 1
    bench.add(decide)
    bench.run()
    assert (starts[-1] - starts[10]) / (len(starts) - 11) <= 10


def test_a_flow_counter_counts() -> None:
    dut, rng, found, wanted = FlowCounter(flows=16), random.Random(SEED), [], []
    bench, counts = Bench(dut, seed=SEED), [0] * 16
    bench.sink(dut.found, found, stall=0.3)

    async def use(ctx):
        for _ in range(200):
            flow = rng.randrange(16)
            if rng.random() < 0.6:
                counts[flow] += 1
                await bench.send(ctx, dut.counts, flow)
            else:
                wanted.append(counts[flow])
                await bench.send(ctx, dut.look, flow)
        while len(found) < len(wanted):
            await ctx.tick()
    bench.add(use)
    bench.run()
    assert found == wanted
    assert max(wanted) > 3
