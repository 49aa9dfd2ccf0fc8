"""COMPLETE, from the release stream to the completion rings, against `nic_model.device`: the same rings, bit for bit,
and nothing in them before the bytes that it tells of."""

import random
from collections import deque

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out, connect, flipped

from nic_model.contract import (
    COMPLETION,
    COMPLETION_BYTES,
    ChannelCommand,
    CompletionKind,
    KeyRight,
    NicConfig,
    RxFilter,
    Status,
    channel_register,
    key_register,
    make_key,
    register,
)
from nic_model.contract.control import (
    NO_FLOW,
    ControlEnable,
    ControlType,
    DoneStatus,
    OrderFlag,
    pack_message,
    unpack_message,
)
from nic_model.contract.sockets import SOCKET_COMPLETION
from nic_model.device import Device
from rtl.completion import Completion
from rtl.control_complete import PARKED
from tests.rtl.harness import Bench, idle, lead_out, shared
from tests.rtl.rx_frames import OWN_BYTES, data
from tests.rtl.test_completion import random_rx, random_tx
from tests.rtl.test_control_receive import Path as ControlPath
from tests.rtl.test_control_receive import comparable, flow_fields, tcp

CONFIG = NicConfig(name="test", flows=16, channels=8, vectors=2, keys=16, control_cells=40, control_slots=32,
                   listeners=16)
STOPPED, MIXED, RUNNING = 3, 2, 0b0111
"""A channel that does not run; the one that has sends and receives too; those that run."""
LOG2 = 5
BASE, SIZE = 0x5_0000_0000, 1 << 17
"""Rings, a page for each channel; behind them the memory of the key."""
DATA, DATA_BYTES = BASE + 0x1_0000, 1 << 16
KEY = make_key(2, 9)
FLOWS = [(f"10.0.0.{n}", 1000 + n, "10.0.0.2", 80) for n in range(3)]
GENERATION = 9


def ring(channel: int) -> int:
    return BASE + 0x1000 * channel


class Path(wiring.Component):
    """The port's receive side, with its parser, and the completions."""

    def __init__(self) -> None:
        self.control, self.completion = ControlPath(CONFIG), Completion(CONFIG)
        control, completion = self.control.signature.members, self.completion.signature.members
        self.of_control = {name: member for name, member in control.items()
                           if name not in ("write", "socket", "socket_taken", "active")}
        self.of_completion = {name: member for name, member in completion.items()
                              if name not in ("write", "socket", "socket_taken", "active")}
        super().__init__({
            "write": control["write"], "active": Out(1), **self.of_control,
            **{f"cq_{name}": member for name, member in self.of_completion.items()},
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.control, m.submodules.completion = control, completion = self.control, self.completion
        for block in (control, completion):
            connect(m, flipped(self.write), block.write)
        connect(m, control.socket, completion.socket)
        connect(m, completion.socket_taken, control.socket_taken)
        lead_out(m, self, control, self.of_control)
        lead_out(m, self, completion, self.of_completion, prefix="cq_")
        m.d.comb += self.active.eq(control.active | completion.active)
        return m


class Pair:
    """The blocks and the model. What the decider orders is given to both; sends and receives to the blocks only."""

    def __init__(self, *, seed: int = 0, stall: float = 0.0, latency: tuple[int, int] = (12, 12)) -> None:
        self.dut = dut = shared(Path)
        self.bench = bench = Bench(dut, seed=seed)
        self.latency = latency
        self.width = CONFIG.host_bytes
        self.memory, self.wanted = bytearray(SIZE), bytearray(SIZE)
        self.device = Device(CONFIG, lambda _address, _length: None, self._model_writes)
        assert self.device.control is not None
        self.model = self.device.control
        self.handles: dict[int, int] = {}
        self.expected: list[tuple] = []
        self.up: list[tuple] = []
        self.retired: list[dict] = []
        self.issued: list[tuple[int, bytes]] = []
        """Completions whose write was ordered: address and entry."""
        self.model_issued: list[tuple[int, bytes]] = []
        self.promised: dict[int, list[tuple[int, bytes]]] = {}
        """What has to lie in memory before the completion of a job is written: by job, address and bytes."""
        self.placed: dict[int, list[tuple[int, bytes]]] = {}
        """What PLACEs of each flow have written, in the model."""
        self.places_may_end = self.completions_may_end = True
        self.beats, self.requests = [], []
        self._answers: deque = deque()
        self._seen: dict[str, list] = {name: [] for name in ("completes", "placed", "stale", "refused")}
        self._message = b""
        self.writes = {"": ([], [], deque()), "cq_": ([], [], deque())}
        for prefix, (commands, rows, dones) in self.writes.items():
            bench.sink(getattr(dut, f"{prefix}write_cmd"), commands, stall=stall)
            bench.sink(getattr(dut, f"{prefix}write_row"), rows, stall=stall)
            bench.background(self._bus(prefix, commands, rows, dones))
        bench.sink(dut.up, self.beats, stall=stall)
        bench.sink(dut.key_request, self.requests)
        bench.sink(dut.cq_retired, self.retired, stall=stall)
        for stream in (dut.entry, dut.place_over):
            bench.sink(stream, [])
        bench.feed(dut.key_answer, self._answers)
        bench.background(self._keys)
        for name, seen in self._seen.items():
            bench.strobes(getattr(dut, f"count_control_{name}"), seen)

    def _model_writes(self, address: int, content: bytes) -> bool:
        self.wanted[address - BASE:address - BASE + len(content)] = content
        if address < DATA:
            self.model_issued.append((address, content))
        return True

    async def _keys(self, ctx):
        asked = 0
        while True:
            await ctx.tick()
            for request in self.requests[asked:]:
                good = request["key"] == KEY and request["offset"] + request["length"] <= DATA_BYTES
                self._answers.append((self.bench.cycle + 4, {
                    "status": int(Status.OK if good else Status.KEY_INVALID), "address": DATA + request["offset"]}))
                asked += 1

    def _bus(self, prefix: str, commands: list, rows: list, dones: deque):
        """Memory, which has a write's bytes when it answers."""
        async def bus(ctx):
            written = first_row = 0
            while True:
                while written < len(commands):
                    at, length = commands[written]["address"], commands[written]["length"]
                    count = (at + length - 1) // self.width - at // self.width + 1
                    if first_row + count > len(rows):
                        break
                    content = b"".join(row["data"].to_bytes(self.width, "little")
                                       for row in rows[first_row:first_row + count])[at % self.width:][:length]
                    if prefix:
                        self._issue(at, content)
                    dones.append((self.bench.cycle + self.bench.rng.randint(*self.latency), at, content))
                    first_row += count
                    written += 1
                may_end = self.completions_may_end if prefix else self.places_may_end
                if dones and dones[0][0] <= self.bench.cycle and may_end:
                    _, at, content = dones.popleft()
                    self.memory[at - BASE:at - BASE + len(content)] = content
                    await self.bench.send(ctx, getattr(self.dut, f"{prefix}write_done"), {"error": 0})
                else:
                    await ctx.tick()
        return bus

    def _issue(self, at: int, content: bytes) -> None:
        """Completions leave: what they tell of is in memory."""
        for place in range(0, len(content), COMPLETION_BYTES):
            entry = content[place:place + COMPLETION_BYTES]
            self.issued.append((at + place, entry))
            if entry[0] == CompletionKind.SOCKET:
                for address, wanted in self.promised[SOCKET_COMPLETION.unpack(entry)["tag"]]:
                    at_place = address - BASE
                    found = self.memory[at_place:at_place + len(wanted)]
                    assert found == wanted, f"cycle {self.bench.cycle}: a completion before its bytes"

    # ---------------------------------------------------------------------------------------------- to both

    async def start(self, ctx) -> None:
        values = {register("MAC_ADDRESS_LO"): int.from_bytes(OWN_BYTES[:4], "little"), register("RX_ENABLE"): 1,
                  register("MAC_ADDRESS_HI"): int.from_bytes(OWN_BYTES[4:], "little"),
                  register("RX_FILTER"): int(RxFilter.BROADCAST), register("CONTROL_ENABLE"): int(ControlEnable.FLOWS)}
        for channel in range(CONFIG.channels):
            for name, value in {"CQ_BASE_LO": ring(channel) & 0xFFFF_FFFF, "CQ_BASE_HI": ring(channel) >> 32,
                                "CQ_LOG2": LOG2, "TX_LOG2": LOG2 - 1, "RX_LOG2": LOG2 - 1}.items():
                values[channel_register(name, channel)] = value
        for name, value in (("KEY_ADDRESS_LO", DATA & 0xFFFF_FFFF), ("KEY_ADDRESS_HI", DATA >> 32),
                            ("KEY_LENGTH_LO", DATA_BYTES), ("KEY_LENGTH_HI", 0),
                            ("KEY_COMMIT", 9 | KeyRight.WRITE << 12 | 0 << 16 | 1 << 31)):
            self.device.write_register(key_register(name, 2), int(value))
        for address, value in values.items():
            self.device.write_register(address, value)
            await self.bench.strobe(ctx, self.dut.write, {"address": address, "data": value})
        for channel in range(CONFIG.channels):
            if RUNNING >> channel & 1:
                self.device.write_register(channel_register("CHANNEL_CONTROL", channel), int(ChannelCommand.ENABLE))
                await self.bench.strobe(ctx, self.dut.cq_start, {"channel": channel})
        ctx.set(self.dut.cq_running, RUNNING)
        for number, flow in enumerate(FLOWS):
            await self.give(ctx, ControlType.FLOW_ADD, flow=number, generation=GENERATION,
                            **flow_fields(flow, channel=0))
        await self.settle(ctx)

    async def frame(self, ctx, frame: bytes) -> None:
        for at in range(0, len(frame), self.width):
            piece, last = frame[at:at + self.width], at + self.width >= len(frame)
            await self.bench.strobe(ctx, self.dut.row, {
                "data": int.from_bytes(piece, "little"), "count": len(piece), "first": int(at == 0), "last": int(last),
                "time": 7})
            await ctx.tick()
        self.device.receive(frame)

    async def segments(self, ctx, payloads: list[tuple[int, bytes]]) -> list[int]:
        """Segments of flows; their handles."""
        for flow, payload in payloads:
            await self.frame(ctx, tcp(FLOWS[flow], payload))
        await self.settle(ctx)
        return [fields["handle"] for kind, fields, _ in self.up[-len(payloads):] if kind == ControlType.SEGMENT]

    async def give(self, ctx, kind: ControlType, *, handle: int | None = None, further: bytes = b"",
                   **fields: int) -> None:
        theirs = {} if handle is None else {"handle": handle}
        ours = {} if handle is None else {"handle": self.handles.get(handle, handle)}
        message = pack_message(kind, further, **fields, **ours)
        if kind == ControlType.COMPLETE:
            self.promised[fields["job"]] = list(self.placed.get(fields["flow"], []))[-3:]
        self.model.release(pack_message(kind, further, **fields, **theirs))
        while (answer := self.model.take()) is not None:
            self.expected.append(unpack_message(answer))
        for at in range(0, len(message), self.width):
            await self.bench.send(ctx, self.dut.release, {
                "data": int.from_bytes(message[at:at + self.width], "little"), "last": 0})

    async def place(self, ctx, flow: int, handle: int, payload: bytes, offset: int, **fields: int) -> None:
        await self.give(ctx, ControlType.PLACE, flow=flow, generation=GENERATION, handle=handle, key=KEY,
                        offset=offset, **{"length": len(payload), **fields})
        self.placed.setdefault(flow, []).append((DATA + offset, payload))

    async def settle(self, ctx) -> None:
        """Until both have said what they have to say, and it is the same: DONEs in order for each kind of order."""
        quiet = 0
        while quiet < 8:
            _, _, active, offers = await ctx.tick().sample(self.dut.active, self.dut.up.valid)
            waits = any(dones for *_, dones in self.writes.values())
            quiet = 0 if active or offers or waits or self._answers else quiet + 1
        ours = []
        while self.beats:
            beat = self.beats.pop(0)
            self._message += beat["data"].to_bytes(self.width, "little")
            if beat["last"]:
                ours.append(unpack_message(self._message))
                self._message = b""
        while (message := self.model.take()) is not None:
            self.expected.append(unpack_message(message))
        theirs, self.expected = self.expected, []
        assert not self._message
        in_order = [sorted(messages, key=lambda message: message[1].get("order", 0)) for messages in (ours, theirs)]
        assert [comparable(*m) for m in in_order[0]] == [comparable(*m) for m in in_order[1]]
        for (_, our, _), (_, their, _) in zip(*in_order, strict=True):
            if "frame_bytes" in their:
                self.handles[their["handle"]] = our["handle"]
        self.up += theirs

    def run(self, main, **limits: int) -> None:
        self.bench.add(main)
        self.bench.run(**limits)
        for name, seen in self._seen.items():
            assert sum(strobe["amount"] for strobe in seen) == self.model.counters[f"control_{name}"], name
        assert self.bench.idle_cycles > 0

    def rings(self) -> list[bytes]:
        """Completions of each channel in order, as they were written."""
        return [b"".join(entry for at, entry in self.issued if ring(channel) <= at < ring(channel) + 0x1000)
                for channel in range(CONFIG.channels)]


def complete_fields(rng: random.Random, job: int) -> dict:
    """Of a COMPLETE: what its entry says."""
    return {"job": job, "status": rng.randrange(256), "length": rng.randrange(1 << 32),
            "result": rng.randrange(1 << 128), **{
                name: rng.randrange(1 << 16) for name in ("remote_port", "local_port", "socket")}}


def test_a_completion_waits_for_its_flows_places_and_others_pass() -> None:
    """While the bus answers no write of a PLACE, COMPLETEs of its flow wait, PLACEs of others go on, and so do
    COMPLETEs until so many wait; then all leave in order."""
    pair = Pair()
    rng = random.Random(1)

    async def main(ctx):
        await pair.start(ctx)
        payloads = [data(100, seed=n) for n in range(3)]
        handles = await pair.segments(ctx, list(enumerate(payloads)))
        at = pair.bench.cycle
        await pair.give(ctx, ControlType.COMPLETE, flow=0, generation=GENERATION, channel=1, **complete_fields(rng, 1))
        while not pair.issued:
            await ctx.tick()
        assert pair.bench.cycle - at <= 4 + 12 + 10
        pair.places_may_end = False
        await pair.place(ctx, 0, handles[0], payloads[0], 0)
        await pair.give(ctx, ControlType.COMPLETE, flow=0, generation=GENERATION, channel=1, flags=OrderFlag.DONE,
                        **complete_fields(rng, 2))
        for job in range(3, 2 + PARKED):
            await pair.give(ctx, ControlType.COMPLETE, flow=NO_FLOW, channel=0, **complete_fields(rng, job))
        await pair.place(ctx, 1, handles[1], payloads[1], 1000, flags=OrderFlag.LAST)
        await idle(ctx, 100)
        assert len(pair.writes[""][2]) == 2
        assert len(pair.issued) == 1
        pair.places_may_end = True
        await pair.settle(ctx)
        assert len(pair.issued) == 1 + PARKED
        # PLACEs that come later, and another flow's, hold up nobody.
        pair.places_may_end = False
        await pair.place(ctx, 2, handles[2], payloads[2], 2000)
        await pair.give(ctx, ControlType.COMPLETE, flow=0, generation=GENERATION, channel=1, **complete_fields(rng, 90))
        await pair.place(ctx, 0, handles[0], payloads[0], 3000)
        await idle(ctx, 40)
        assert len(pair.issued) == 2 + PARKED
        # A drain waits for both, and for none that comes later.
        ctx.set(pair.dut.drain_request, 1)
        await pair.place(ctx, 2, handles[2], payloads[2], 4000)
        await idle(ctx, 60)
        assert not ctx.get(pair.dut.drain_done)
        assert len(pair.writes[""][2]) == 3
        pair.places_may_end = True
        while len(pair.writes[""][2]) > 1:
            await ctx.tick()
        pair.places_may_end = False
        await idle(ctx, 10)
        assert ctx.get(pair.dut.drain_done)
        ctx.set(pair.dut.drain_request, 0)
        pair.places_may_end = True
        await pair.settle(ctx)
    pair.run(main)
    assert [event["receive"] for event in pair.retired] == [1] * (2 + PARKED)
    assert pair.memory[:SIZE] == pair.wanted[:SIZE]


def test_what_is_refused_or_of_another_generation() -> None:
    """A COMPLETE looks at the channel alone. A PLACE that is refused holds none up. FLOW_DEL lets those before it pass,
    so that no DONE of the flow comes behind its own."""
    pair = Pair()
    rng = random.Random(2)

    async def main(ctx):
        await pair.start(ctx)
        payload = data(10)
        (handle,) = await pair.segments(ctx, [(0, payload)])
        orders = (
            ({"flow": 0, "generation": 8, "channel": 0}, DoneStatus.OK), ({"flow": 15, "channel": 1}, DoneStatus.OK),
            ({"flow": 16, "channel": 1}, DoneStatus.OK), ({"flow": NO_FLOW, "channel": 0}, DoneStatus.OK),
            ({"flow": NO_FLOW, "channel": STOPPED}, DoneStatus.BAD), ({"flow": 0, "channel": 8}, DoneStatus.BAD),
            ({"flow": 0, "channel": 64}, DoneStatus.BAD),
        )
        for job, (fields, status) in enumerate(orders):
            await pair.place(ctx, 0, handle, payload, 50 * job, length=11)  # a byte too many
            del pair.placed[0]
            await pair.give(ctx, ControlType.COMPLETE, further=bytes(64) if job % 2 else b"",
                            flags=OrderFlag.DONE if status == DoneStatus.OK else 0, tag=job,
                            **complete_fields(rng, job), **fields)
            await pair.settle(ctx)
            done = next(fields for kind, fields, _ in pair.up[-2:] if fields["order"] == ControlType.COMPLETE)
            assert (done["tag"], done["status"], done["flow"]) == (job, status, fields["flow"])
        pair.places_may_end = False
        await pair.place(ctx, 0, handle, payload, 500, flags=OrderFlag.LAST)
        await pair.give(ctx, ControlType.COMPLETE, flow=0, generation=GENERATION, channel=0, flags=OrderFlag.DONE,
                        **complete_fields(rng, 50))
        await pair.give(ctx, ControlType.FLOW_DEL, flow=0, generation=GENERATION)
        await idle(ctx, 200)
        assert not pair.beats
        pair.places_may_end = True
        while sum(beat["last"] for beat in pair.beats) < 2:
            await ctx.tick()
        first = unpack_message(b"".join(beat["data"].to_bytes(16, "little") for beat in pair.beats[:4]))
        assert first[1]["order"] == ControlType.COMPLETE
        await pair.settle(ctx)
    pair.run(main)
    assert pair.memory == pair.wanted


@pytest.mark.parametrize(("seed", "stall", "latency"), [
    (3, 0.3, (1, 80)), pytest.param(4, 0.0, (100, 100), marks=pytest.mark.long)])
def test_random_orders_beside_sends_and_receives(seed: int, stall: float, latency: tuple[int, int]) -> None:
    """PLACEs and COMPLETEs of some flows on some channels, as fast as they are taken. Rings without other completions
    are as the model's, bit for bit; in the mixed one each kind comes in its order, and every entry has its place."""
    rng = random.Random(seed)
    pair = Pair(seed=seed, stall=stall, latency=latency)
    sent: dict[str, list[dict]] = {
        "tx": [random_tx(rng) | {"channel": MIXED, "complete": 1, "discarded": 0} for _ in range(20)],
        "rx": [random_rx(rng) | {"channel": MIXED} for _ in range(20)]}
    begun = []

    async def main(ctx):
        await pair.start(ctx)
        begun.append(1)
        job = offset = 0
        for _ in range(3):
            payloads = [(rng.randrange(len(FLOWS)), rng.randbytes(rng.choice((1, 40, 300)))) for _ in range(8)]
            handles = await pair.segments(ctx, payloads)
            for (flow, payload), handle in zip(payloads, handles, strict=True):
                await pair.place(ctx, flow, handle, payload, offset, flags=OrderFlag.LAST)
                offset += len(payload)
                for _ in range(rng.randrange(7)):
                    job += 1
                    number = rng.choice((flow, flow, rng.randrange(len(FLOWS)), 9, 100, NO_FLOW))
                    channel = rng.choice((0, 0, 1, MIXED, MIXED, STOPPED if rng.random() < 0.5 else 0))
                    await pair.give(ctx, ControlType.COMPLETE, flow=number, generation=rng.choice((GENERATION, 1)),
                                    channel=channel, tag=job, flags=rng.choice((0, OrderFlag.DONE)),
                                    **complete_fields(rng, job))
            await pair.settle(ctx)
        assert job > 60

    def feed(name):
        async def testbench(ctx):
            while not begun:
                await ctx.tick()
            for token in sent[name]:
                await idle(ctx, rng.randrange(40))
                await pair.bench.send(ctx, getattr(pair.dut, f"cq_{name}"), token)
        return testbench

    for name in sent:
        pair.bench.add(feed(name))

    async def end(ctx):
        while len(pair.retired) < len(pair.issued) or len(pair.issued) < 40:
            await ctx.tick()
        await idle(ctx, 20)
    pair.bench.add(end)
    pair.run(main, max_cycles=30_000)

    assert pair.memory[DATA - BASE:] == pair.wanted[DATA - BASE:]
    for channel in (0, 1, STOPPED):
        at = ring(channel) - BASE
        assert pair.memory[at:at + 0x1000] == pair.wanted[at:at + 0x1000], f"seed {seed}, channel {channel}"
    mixed = pair.rings()[MIXED]
    entries = [mixed[at:at + COMPLETION_BYTES] for at in range(0, len(mixed), COMPLETION_BYTES)]
    assert [at for at, _ in pair.issued if ring(MIXED) <= at < ring(MIXED) + 0x1000] == [
        ring(MIXED) + COMPLETION_BYTES * (n % (1 << LOG2)) for n in range(len(entries))]
    for position, entry in enumerate(entries):
        assert entry[31] & 1 == 1 - (position >> LOG2 & 1)
    by_kind = {kind: [entry for entry in entries if entry[0] == kind] for kind in CompletionKind}
    assert [COMPLETION.unpack(entry)["tag"] for entry in by_kind[CompletionKind.SEND]] == [
        token["tag"] for token in sent["tx"]]
    assert [COMPLETION.unpack(entry)["tag"] for entry in by_kind[CompletionKind.RECEIVE]] == [
        token["buffer_id"] for token in sent["rx"]]
    assert [entry[:31] for entry in by_kind[CompletionKind.SOCKET]] == [
        entry[:31] for at, entry in pair.model_issued if ring(MIXED) <= at < ring(MIXED) + 0x1000]
    assert len(by_kind[CompletionKind.SOCKET]) >= 15
    assert pair.model.counters["control_completes"] > 50
