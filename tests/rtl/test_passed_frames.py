"""Frames that the control port passes on, in the receive buffer: between the MAC's, whole, and never at their cost."""

import random
from collections import deque

import pytest

from nic_model.contract import NicConfig
from rtl.rx_buffer import RxBuffer
from tests.rtl.harness import Bench, idle, shared, until

CONFIGS = {bits: NicConfig(name=f"{bits} bits", mac_bytes=bits // 8, channels=4, flows=16) for bits in (64, 512)}
FRAME = {"channel", "length", "info", "checksum", "time"}
"""Fields of a frame that a channel is told."""


class Buffer:
    """The block, its two writers and one reader, who gives back what it has read."""

    def __init__(self, bits, *, seed=0):
        self.config, self.width = CONFIGS[bits], CONFIGS[bits].host_bytes
        self.dut = shared(RxBuffer, self.config)
        self.bench = Bench(self.dut, seed=seed)
        self.rng = random.Random(seed)
        self.offered, self.rows = [], []
        self.entered = []
        """Frames that are kept, in the order of their places: content and what is told of it."""
        self._mac, self._passed = deque(), deque()
        self.copy_cycles = []
        """Of each passed frame: cycles from its place to its last row."""
        self.full = []
        self.stops_reading = False
        self.bench.sink(self.dut.frame, self.offered)
        self.bench.sink(self.dut.o, self.rows)
        self.bench.strobes(self.dut.count_fifo_full, self.full)
        self.bench.background(self._read)
        self.bench.background(self._watch)

    def told(self, size, *, time):
        return {"channel": self.rng.randrange(4), "length": size, "info": self.rng.randrange(1 << 16),
                "checksum": self.rng.randrange(1 << 16), "time": time}

    def _pieces(self, frame):
        return [frame[at:at + self.width] for at in range(0, len(frame), self.width)]

    async def mac_frame(self, ctx, frame, told, *, passes=True, spacing=1):
        """A frame from the parser, a row in each `spacing` cycles."""
        pieces, dut = self._pieces(frame), self.dut
        self._mac.append((frame, {**told, "passed": 0}) if passes else None)
        for n, piece in enumerate(pieces):
            ctx.set(dut.row.payload, {
                **told, "data": int.from_bytes(piece, "little"), "count": len(piece), "first": int(n == 0),
                "last": int(n == len(pieces) - 1), "passes": int(passes)})
            ctx.set(dut.row.valid, 1)
            await ctx.tick()
            ctx.set(dut.row.valid, 0)
            if n < len(pieces) - 1:
                await idle(ctx, spacing - 1)

    async def passed_frame(self, ctx, frame, told, *, fits=True):
        """A frame from the cells, whose first row is there soon, and then one in each cycle that takes one."""
        dut, pieces = self.dut, self._pieces(frame)
        self._passed.append((frame, {**told, "passed": 1}) if fits else None)
        ctx.set(dut.passed.payload, told)
        ctx.set(dut.passed.valid, 1)
        await idle(ctx, self.rng.choice((0, 1, 2, 20)))
        ctx.set(dut.passed_row.payload, {"data": int.from_bytes(pieces[0], "little"), "last": int(len(pieces) == 1)})
        ctx.set(dut.passed_row.valid, 1)
        await until(ctx, dut.passed.ready)
        ctx.set(dut.passed.valid, 0)
        begin = self.bench.cycle
        for n, piece in enumerate(pieces):
            ctx.set(dut.passed_row.payload,
                    {"data": int.from_bytes(piece, "little"), "last": int(n == len(pieces) - 1)})
            await until(ctx, dut.passed_row.ready)
        ctx.set(dut.passed_row.valid, 0)
        self.copy_cycles.append(self.bench.cycle - begin)

    async def _watch(self, ctx):
        """Notes who gets a place: a frame of the MAC with its first row, a passed one as it is taken."""
        row, passed = self.dut.row, self.dut.passed
        async for _, _, begins, takes in ctx.tick().sample(
                row.valid & row.payload.first, passed.valid & passed.ready):
            assert not (begins and takes)
            if (begins or takes) and (frame := (self._mac if begins else self._passed).popleft()) is not None:
                self.entered.append(frame)

    async def _read(self, ctx):
        """Orders what is offered, all rows or none of them."""
        taken = 0
        while True:
            await ctx.tick()
            if self.stops_reading or taken == len(self.offered):
                continue
            size = self.offered[taken]["length"]
            rows, drops = -(-size // self.width), taken % 5 == 4
            await self.bench.send(ctx, self.dut.order, {
                "advance": rows if drops else 0, "rows": 0 if drops else rows, "start": 0, "at": 0, "shares": 0,
                "first_count": min(size, self.width), "last_count": size % self.width or self.width})
            taken += 1

    async def settle(self, ctx):
        still = 0
        while still < 20:
            await ctx.tick()
            still = still + 1 if len(self.offered) == len(self.entered) and not ctx.get(self.dut.active) else 0

    def run(self, *mains, **limits):
        for main in mains:
            self.bench.add(main)
        self.bench.run(**limits)
        assert self.bench.idle_cycles > 0
        assert [({name: frame[name] for name in FRAME | {"passed"}}) for frame in self.offered] == [
            told for _, told in self.entered]
        got = b"".join(row["data"].to_bytes(self.width, "little")[:row["count"]] for row in self.rows)
        assert got == b"".join(frame for n, (frame, _) in enumerate(self.entered) if n % 5 != 4)
        assert not any(frame["header"] for frame in self.offered if frame["passed"])


@pytest.mark.parametrize(("bits", "seed"), [(64, 1), (512, 2)])
def test_random_frames_of_both_sides(bits, seed):
    """Frames of the MAC without a gap for long, some of which are dropped, and passed ones all the time."""
    buffer = Buffer(bits, seed=seed)
    rng = random.Random(seed)
    spacing, done = {64: 2, 512: 1}[bits], []

    async def mac(ctx):
        for n in range(70):
            frame = rng.randbytes(rng.choice((14, 60, 64, 65, 300, 1514)))
            await buffer.mac_frame(ctx, frame, buffer.told(len(frame), time=n), passes=rng.random() < 0.8,
                                   spacing=spacing)
            await idle(ctx, rng.choice((1, 1, 1, 3, 40)))
        done.append(True)

    async def port(ctx):
        n = 0
        while not done:
            frame = rng.randbytes(rng.choice((14, 60, 64, 65, 300, 1514)))
            await buffer.passed_frame(ctx, frame, buffer.told(len(frame), time=n))
            await idle(ctx, rng.choice((0, 0, 0, 20)))
            n += 1
        await buffer.settle(ctx)

    buffer.run(mac, port)
    kinds = [frame["passed"] for frame in buffer.offered]
    assert min(kinds.count(0), kinds.count(1)) > 15, f"seed {seed}"
    assert not buffer.full


@pytest.mark.parametrize(("bits", "spacing", "most"), [(64, 2, 2.0), (512, 1, 1.1)])
def test_a_passed_frame_is_there_soon_beside_full_load(bits, spacing, most):
    """It waits for a gap, and then is written beside rows of the MAC, which come as fast as they can."""
    buffer = Buffer(bits)
    rows = -(-3000 // buffer.width)

    async def mac(ctx):
        for n in range(2):
            await buffer.mac_frame(ctx, bytes([n]) * 7000, buffer.told(7000, time=n), spacing=spacing)
            await idle(ctx, 1)

    async def port(ctx):
        await idle(ctx, 10)
        await buffer.passed_frame(ctx, b"p" * 3000, buffer.told(3000, time=9))
        await buffer.settle(ctx)

    buffer.run(mac, port)
    assert [frame["passed"] for frame in buffer.offered] == [0, 1, 0]
    assert buffer.copy_cycles[0] <= most * rows + 3


@pytest.mark.parametrize("bits", CONFIGS)
def test_no_room_for_a_passed_frame(bits):
    """With one row too few it is dropped and counted, and its rows go at once; with enough it goes in. What the MAC
    brings behind it fills the buffer to its last row."""
    buffer = Buffer(bits)
    depth = buffer.config.rx_buffer_bytes // buffer.width
    size = 1001
    rows = -(-size // buffer.width)

    async def main(ctx):
        buffer.stops_reading = True
        buffer.rng.choice = lambda choices: choices[-1]  # its first row comes late
        left = depth
        while left > rows + 2:
            count = min(left - rows - 2, 9014 // buffer.width)
            await buffer.mac_frame(ctx, bytes(count * buffer.width), buffer.told(count * buffer.width, time=1))
            await idle(ctx, 1)
            left -= count
        assert ctx.get(buffer.dut.fill) == depth - rows - 2
        # Two rows must stay for what the MAC brings, and one since the compare is a cycle old.
        await buffer.passed_frame(ctx, b"x" * size, buffer.told(size, time=2), fits=False)
        assert buffer.copy_cycles[-1] == rows
        await idle(ctx, 3)
        assert len(buffer.full) == 1
        assert ctx.get(buffer.dut.fill) == depth - rows - 2
        await buffer.passed_frame(ctx, b"y" * (size - buffer.width), buffer.told(size - buffer.width, time=2))
        await idle(ctx, 3)
        assert len(buffer.full) == 1
        assert ctx.get(buffer.dut.fill) == depth - 3
        await buffer.mac_frame(ctx, b"z" * 3 * buffer.width, buffer.told(3 * buffer.width, time=3))
        await idle(ctx, 3)
        assert len(buffer.full) == 1
        assert ctx.get(buffer.dut.fill) == depth
        await buffer.mac_frame(ctx, b"z" * buffer.width, buffer.told(buffer.width, time=3))
        buffer.entered.pop()  # there was no room for it
        await idle(ctx, 3)
        assert len(buffer.full) == 2
        buffer.stops_reading = False
        await buffer.settle(ctx)

    buffer.run(main)
