"""The cells of the control port: random frames, kept or not, read and freed in any order, against a dictionary."""

import random

import pytest

from nic_model.contract import NicConfig
from nic_model.contract.control import CELL_BYTES
from rtl.control_cells import ControlCells
from tests.rtl.harness import Bench, idle

SMALL = NicConfig(name="small", flows=16, control_cells=38)
WIDE = NicConfig(name="wide", mac_bytes=64, flows=16, control_cells=38)
CONFIGS = {config.name: config for config in (SMALL, WIDE)}


class Device:
    """The block; frames go in, orders are checked."""

    def __init__(self, config, *, seed=0, stall=0.0):
        self.config, self.width = config, config.host_bytes
        self.dut = ControlCells(config)
        self.bench = Bench(self.dut, seed=seed)
        self.kept = {}  # handle -> bytes
        self.rows, self.passed = [], []
        self.expected, self.expected_passed = [], []
        self.bench.sink(self.dut.o, self.rows, stall=stall)
        self.bench.sink(self.dut.passed, self.passed, stall=stall)

    @property
    def cells_held(self):
        return sum(-(-len(frame) // CELL_BYTES) for frame in self.kept.values())

    async def frame(self, ctx, frame, *, keep=True, gap=0):
        """A frame, a row in each cycle but for gaps. Returns its handle, or None if it is not kept."""
        pieces = [frame[at:at + self.width] for at in range(0, len(frame), self.width)]
        dut = self.dut
        if not self.bench.cycle:
            await ctx.tick()  # the first cell comes in the first cycle
        for n, piece in enumerate(pieces):
            last = n == len(pieces) - 1
            row = {"data": int.from_bytes(piece, "little"), "first": int(n == 0), "last": int(last), "keep": 0}
            ctx.set(dut.row.payload, row)
            ctx.set(dut.row.valid, 1)
            handle, missed = ctx.get(dut.handle), ctx.get(dut.missed)
            keeps = keep and last and not missed
            ctx.set(dut.row.payload, {**row, "keep": int(keeps)})
            await ctx.tick()
            ctx.set(dut.row.valid, 0)
            await idle(ctx, gap)
        if not keeps:
            return None
        assert handle not in self.kept
        self.kept[handle] = frame
        return handle

    async def order(self, ctx, handle, begin=0, length=0, *, at=0, frees=False, passes=False):
        """Give `length` bytes from byte `begin` on; or pass on all of it."""
        frame = self.kept[handle]
        if passes:
            length = len(frame)
        first, end = begin // self.width, -(-(begin + length) // self.width) if length else begin // self.width
        rows, start = end - first, begin % self.width
        tail = (begin + length) % self.width or self.width
        await self.bench.send(ctx, self.dut.order, {
            "handle": handle, "begin": first, "rows": rows, "start": start,
            "first_count": min(length, self.width - start), "last_count": tail, "at": at, "frees": int(frees),
            "passes": int(passes), "cells": -(-len(frame) // CELL_BYTES)})
        if passes:
            self.expected_passed += [(frame[at:at + self.width], int(at + self.width >= length))
                                     for at in range(0, length, self.width)]
        for n in range(0 if passes else rows):
            low = begin if n == 0 else (first + n) * self.width
            high = min((first + n + 1) * self.width, begin + length)
            self.expected.append((frame[low:high], low % self.width, int(n == rows - 1), at))
        if frees:
            del self.kept[handle]

    def run(self, *mains, **limits):
        for main in mains:
            self.bench.add(main)
        self.bench.run(**limits)
        assert self.bench.idle_cycles > 0
        got = []
        for row in self.rows:
            piece = row["data"].to_bytes(self.width, "little")[row["start"]:row["start"] + row["count"]]
            got.append((piece, row["start"], row["last"], row["at"]))
        assert got == self.expected
        got = [(row["data"].to_bytes(self.width, "little"), row["last"]) for row in self.passed]
        assert [(piece[:len(wanted)], last) for (piece, last), (wanted, _) in zip(
            got, self.expected_passed, strict=True)] == self.expected_passed


@pytest.mark.parametrize("config", CONFIGS)
def test_one_frame(config):
    device = Device(CONFIGS[config])
    frame = random.Random(1).randbytes(1000)

    async def main(ctx):
        handle = await device.frame(ctx, frame)
        assert ctx.get(device.dut.held) == 4
        for begin, length in ((0, 1000), (999, 1), (54, 946), (255, 2), (256, 1), (700, 64), (768, 232)):
            await device.order(ctx, handle, begin, length, at=begin % 7)
        await device.order(ctx, handle, frees=True)
        await idle(ctx, 12)
        assert ctx.get(device.dut.held) == 0

    device.run(main)
    assert device.rows


@pytest.mark.parametrize(("config", "seed", "stall"), [("small", 1, 0.0), ("small", 2, 0.4), ("wide", 3, 0.0)])
def test_random_frames_and_orders(config, seed, stall):
    rng = random.Random(seed)
    device = Device(CONFIGS[config], seed=seed, stall=stall)
    counts = {"kept": 0, "missed": 0, "forgotten": 0}
    done = []

    async def frames(ctx):
        for _ in range(60):
            keep = rng.random() < 0.7
            size = rng.choice((14, 60, 60, CELL_BYTES - 1, CELL_BYTES, CELL_BYTES + 1, 1514, 3000))
            handle = await device.frame(ctx, rng.randbytes(size), keep=keep, gap=rng.choice((0, 0, 1)))
            counts["forgotten" if not keep else "missed" if handle is None else "kept"] += 1
            await idle(ctx, rng.choice((0, 0, 0, 40)))
        done.append(True)

    async def orders(ctx):
        while not done or device.kept:
            if not device.kept or (not done and device.cells_held < 34 and rng.random() < 0.98):
                await idle(ctx, 5)
                continue
            handle = rng.choice(list(device.kept))
            size = len(device.kept[handle])
            if rng.random() < 0.3:
                await device.order(ctx, handle, frees=True, passes=rng.random() < 0.5)
                continue
            begin = rng.randrange(size)
            length = rng.randint(1, size - begin)
            await device.order(ctx, handle, begin, length, at=rng.randrange(8), frees=rng.random() < 0.5)
        await idle(ctx, 100)
        assert ctx.get(device.dut.held) == 0

    device.run(frames, orders, max_cycles=30_000)
    assert min(counts.values()) > 2, f"seed {seed}: {counts}"
    assert device.passed, f"seed {seed}"


def test_every_cell_is_used_and_comes_back():
    device = Device(SMALL)
    rng = random.Random(4)

    async def main(ctx):
        for _ in range(3):
            for _ in range(SMALL.control_cells):
                assert await device.frame(ctx, rng.randbytes(60)) is not None
            assert await device.frame(ctx, bytes(60)) is None  # no cell is left
            assert await device.frame(ctx, bytes(60), keep=False) is None
            assert sorted(device.kept) == list(range(SMALL.control_cells))
            assert ctx.get(device.dut.held) == SMALL.control_cells
            for handle in rng.sample(sorted(device.kept), SMALL.control_cells):
                await device.order(ctx, handle, 54, 6, frees=True)
            await idle(ctx, 12)
            # One frame takes them all.
            frame = rng.randbytes(CELL_BYTES * SMALL.control_cells)
            assert await device.frame(ctx, frame[:-1] + b"x" * CELL_BYTES) is None
            handle = await device.frame(ctx, frame)
            await device.order(ctx, handle, 9000, 700, frees=True)
            await idle(ctx, SMALL.control_cells + 60)

    device.run(main)


@pytest.mark.parametrize("config", CONFIGS)
def test_frames_come_and_go_a_row_in_each_cycle(config):
    # Shortest frames without a gap, each kept and freed: as many leave as enter.
    device = Device(CONFIGS[config])
    waiting, count = [], 200
    spacing = -(-60 // CONFIGS[config].mac_bytes) if config == "small" else 4

    async def frames(ctx):
        for n in range(count):
            handle = await device.frame(ctx, bytes([n]) * 60)
            assert handle is not None, n
            waiting.append(handle)
            await idle(ctx, spacing - -(-60 // device.width))

    async def orders(ctx):
        for _ in range(count):
            while not waiting:
                await ctx.tick()
            await device.order(ctx, waiting.pop(0), 54, 6, frees=True)
        await idle(ctx, 10)

    device.run(frames, orders)
    assert len(device.rows) == count
