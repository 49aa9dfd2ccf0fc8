"""PLACEs from the cells to host memory: what is written, what is refused, in which order that is told."""

import random
from collections import deque

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.stream import Signature as StreamSignature
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import NicConfig, Status
from nic_model.contract.control import CELL_BYTES, ControlType, DoneStatus
from rtl.control_cells import ControlCells, cell_row
from rtl.control_place import ControlPlace
from rtl.interfaces import Strobe, row
from tests.rtl.harness import Bench, idle, plain

CONFIGS = {bits: NicConfig(name=f"{bits} bits", mac_bytes=bits // 8, flows=16, control_cells=40) for bits in (64, 512)}
GUARD, MEMORY_BYTES = 0xA5, 1 << 14
GOOD_KEY, BAD_KEY, BROKEN_BUS = 0x111, 0x222, 0x3F00


class Placing(wiring.Component):
    """Cells and the block that empties them."""

    def __init__(self, config):
        self.config = config
        self.place = ControlPlace(config)
        super().__init__({
            "row": In(Strobe(cell_row(config))), "handle": Out(range(config.control_cells)), "missed": Out(1),
            "held": Out(range(config.control_cells + 1)), "active": Out(1),
            **{name: member for name, member in self.place.signature.members.items()
               if name not in ("cell_order", "cell", "active")},
            "passed_row": Out(StreamSignature(row(config))),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.cells = cells = ControlCells(self.config)
        m.submodules.place = place = self.place
        connect(m, flipped(self.row), cells.row)
        connect(m, place.cell_order, cells.order)
        connect(m, cells.o, place.cell)
        connect(m, cells.passed, flipped(self.passed_row))
        for name in ("order", "key_answer", "write_done"):
            connect(m, flipped(getattr(self, name)), getattr(place, name))
        for name in ("key_request", "write_cmd", "write_row", "done", "over", "count_placed", "count_drops",
                     "count_passes"):
            connect(m, getattr(place, name), flipped(getattr(self, name)))
        m.d.comb += [
            self.handle.eq(cells.handle), self.missed.eq(cells.missed), self.held.eq(cells.held),
            self.ended.eq(place.ended), self.idle.eq(place.idle), self.active.eq(cells.active | place.active),
        ]
        return m


class Host:
    """The block with a key table, a bus, and a memory in which nothing but what was ordered may change."""

    def __init__(self, config, *, seed=0, stall=0.0, latency=12):
        self.config, self.width, self.latency = config, config.host_bytes, latency
        self.dut = Placing(config)
        self.bench = Bench(self.dut, seed=seed)
        self.memory = bytearray([GUARD]) * MEMORY_BYTES
        self.expected_memory = bytearray(self.memory)
        self.requests, self.commands, self.rows, self.dones, self.expected_dones = [], [], [], [], []
        self.over: list[int] = []
        """Flows of PLACEs that have found their end."""
        self.expected_over: list[int] = []
        self.passed_rows, self.expected_passed = [], b""
        self.counted = {"placed": [], "drops": [], "passes": []}
        self._answers, self._write_dones = deque(), deque()
        for stream, taken in ((self.dut.key_request, self.requests), (self.dut.write_cmd, self.commands),
                              (self.dut.write_row, self.rows), (self.dut.done, self.dones), (self.dut.over, self.over),
                              (self.dut.passed_row, self.passed_rows)):
            self.bench.sink(stream, taken, stall=stall)
        for name, seen in self.counted.items():
            self.bench.strobes(getattr(self.dut, f"count_{name}"), seen)
        self.bench.background(self._bus)
        for stream, queue in ((self.dut.key_answer, self._answers), (self.dut.write_done, self._write_dones)):
            self.bench.feed(stream, queue)
        self.tag = self.ended = 0
        self.bench.background(self._count_ends)

    async def _count_ends(self, ctx):
        async for _, _, ended in ctx.tick().sample(self.dut.ended):
            self.ended += plain(ended)

    async def _bus(self, ctx):
        asked = written = first_row = 0
        while True:
            await ctx.tick()
            for request in self.requests[asked:]:
                status = Status.OK if request["key"] == GOOD_KEY else Status.KEY_INVALID
                assert (request["write"], request["channel"]) == (1, 3)
                self._answers.append((self.bench.cycle + 4, {"status": status, "address": request["offset"]}))
                asked += 1
            while written < len(self.commands):
                command = self.commands[written]
                at, end = command["address"], command["address"] + command["length"]
                rows = (end - 1) // self.width - at // self.width + 1
                if first_row + rows > len(self.rows):
                    break
                content = b"".join(row["data"].to_bytes(self.width, "little")
                                   for row in self.rows[first_row:first_row + rows])
                assert [row["last"] for row in self.rows[first_row:first_row + rows]] == [0] * (rows - 1) + [1]
                error = at >= BROKEN_BUS
                if not error:
                    self.memory[at:end] = content[at % self.width:][:end - at]
                self._write_dones.append((self.bench.cycle + self.latency, {"error": int(error)}))
                first_row += rows
                written += 1

    async def frame(self, ctx, frame):
        """A frame into the cells; its handle."""
        await idle(ctx, 2)
        for at in range(0, len(frame), self.width):
            last = at + self.width >= len(frame)
            payload = {"data": int.from_bytes(frame[at:at + self.width], "little"), "first": int(at == 0),
                       "last": int(last), "keep": int(last)}
            ctx.set(self.dut.row.payload, payload)
            ctx.set(self.dut.row.valid, 1)
            handle = ctx.get(self.dut.handle)
            assert not ctx.get(self.dut.missed)
            await ctx.tick()
            ctx.set(self.dut.row.valid, 0)
        return handle

    async def order(self, ctx, handle, frame, *, begin=0, length=0, offset=0, key=GOOD_KEY, ends=False, asked=True,
                    status=DoneStatus.OK, passes=False):
        """A judged order, and what must come of it."""
        self.tag += 1
        kind = ControlType.PASS if passes else ControlType.PLACE if length else ControlType.DROP
        done = {"order": kind, "flow": 5, "generation": 6,
                "tag": self.tag, "asked": int(asked), "status": status,
                "length": len(frame) if passes else length}
        await self.bench.send(ctx, self.dut.order, {
            "done": done, "handle": handle, "begin": begin, "passes": int(passes), "ends": int(ends),
            "frame_bytes": len(frame), "channel": 3, "key": key, "offset": offset})
        if status == DoneStatus.OK and length and key != GOOD_KEY:
            status = DoneStatus.KEY
        elif status == DoneStatus.OK and length and offset >= BROKEN_BUS:
            status = DoneStatus.BUS
        if passes:
            self.expected_passed += frame.ljust(-(-len(frame) // self.width) * self.width, b"\0")
        wrote = length if status == DoneStatus.OK else 0
        self.expected_memory[offset:offset + wrote] = frame[begin:begin + wrote]
        if length:
            self.expected_over.append(done["flow"])
        if asked or status != DoneStatus.OK:
            self.expected_dones.append({**done, "status": status, "length": wrote})

    def run(self, main, **limits):
        self.bench.add(main)
        self.bench.run(**limits)
        assert self.memory == self.expected_memory
        assert self.dones == self.expected_dones
        assert self.over == self.expected_over
        assert b"".join(row["data"].to_bytes(self.width, "little") for row in self.passed_rows) == self.expected_passed
        assert self.dones
        assert self.bench.idle_cycles > 0


@pytest.mark.parametrize("bits", CONFIGS)
def test_each_kind_of_end(bits):
    host = Host(CONFIGS[bits])
    frame = random.Random(1).randbytes(700)

    async def main(ctx):
        handle = await host.frame(ctx, frame)
        await host.order(ctx, handle, frame, begin=54, length=1, offset=7)
        await host.order(ctx, handle, frame, begin=54, length=646, offset=0x101, asked=False)
        await host.order(ctx, handle, frame, begin=255, length=2, offset=0x7FF)
        await host.order(ctx, handle, frame, begin=100, length=50, offset=0x900, key=BAD_KEY, asked=False)
        await host.order(ctx, handle, frame, begin=100, length=50, offset=BROKEN_BUS, asked=False)
        await host.order(ctx, handle, frame, begin=100, length=50, offset=0xA00, status=DoneStatus.STALE)
        assert ctx.get(host.dut.held) == 3
        await host.order(ctx, handle, frame, ends=True, asked=False)
        assert not ctx.get(host.dut.idle)
        await idle(ctx, 120)
        assert ctx.get(host.dut.held) == 0
        assert ctx.get(host.dut.idle)
        # A refused order ends its handle all the same, and one that writes.
        for key in (BAD_KEY, GOOD_KEY):
            handle = await host.frame(ctx, frame)
            await host.order(ctx, handle, frame, begin=54, length=20, offset=0xB00, key=key, ends=True)
            await idle(ctx, 60)
            assert ctx.get(host.dut.held) == 0

        # One that is passed on is not written.
        handle = await host.frame(ctx, frame)
        await host.order(ctx, handle, frame, passes=True, ends=True)
        await idle(ctx, 120)
        assert ctx.get(host.dut.held) == 0

    host.run(main)
    assert host.ended == 4
    assert len(host.counted["passes"]) == 1
    assert sum(strobe["amount"] for strobe in host.counted["placed"]) == 1 + 646 + 2 + 20
    assert len(host.counted["drops"]) == 1


@pytest.mark.parametrize(("bits", "stall"), [(64, 0.0), (64, 0.4), (512, 0.0)])
def test_random_orders(bits, stall):
    seed = bits + int(stall * 10)
    rng = random.Random(seed)
    host = Host(CONFIGS[bits], seed=seed, stall=stall, latency=rng.randrange(5, 40))
    offset = 0

    async def main(ctx):
        nonlocal offset
        held = {}
        for _ in range(110):
            if len(held) < 4 and rng.random() < 0.4:
                frame = rng.randbytes(rng.choice((60, CELL_BYTES, 600)))
                held[await host.frame(ctx, frame)] = frame
                continue
            if not held:
                continue
            handle = rng.choice(list(held))
            frame = held[handle]
            if rng.random() < 0.1:
                await host.order(ctx, handle, frame, passes=True, ends=True, asked=rng.random() < 0.5)
                del held[handle]
                continue
            begin = rng.randrange(len(frame))
            length = rng.choice((0, rng.randint(1, min(200, len(frame) - begin))))
            ends = not length or rng.random() < 0.4
            await host.order(ctx, handle, frame, begin=begin, length=length, ends=ends, asked=rng.random() < 0.5,
                             offset=BROKEN_BUS + 9 if rng.random() < 0.1 else offset + rng.randrange(30),
                             key=BAD_KEY if rng.random() < 0.2 else GOOD_KEY)
            offset += 230
            if ends:
                del held[handle]
        for handle, frame in held.items():
            await host.order(ctx, handle, frame, ends=True, asked=False)
        await idle(ctx, 250)
        assert ctx.get(host.dut.held) == 0

    host.run(main)
    assert {done["status"] for done in host.dones} == {DoneStatus.OK, DoneStatus.KEY, DoneStatus.BUS}, f"seed {seed}"


def test_small_parts_at_line_rate():
    # The six bytes of a frame of 60 are placed in fewer cycles than the frame takes on the wire.
    host = Host(CONFIGS[64])
    frames = [bytes([n]) * 60 for n in range(30)]

    async def main(ctx):
        handles = [await host.frame(ctx, frame) for frame in frames]
        begin = host.bench.cycle
        for n, (handle, frame) in enumerate(zip(handles, frames, strict=True)):
            await host.order(ctx, handle, frame, begin=54, length=6, offset=100 * n + 13, ends=True, asked=n == 29)
        assert (host.bench.cycle - begin) / 30 < 7
        await idle(ctx, 100)

    host.run(main)
