"""Runs of bytes through the aligner, against slicing of bytes."""

import gc
import itertools
import random

import pytest

from rtl.align import Aligner
from tests.rtl.harness import Bench, shared

SEED = 20_241


def rows_of(rng, width: int, run: bytes, at: int, tag: int, *, full: bool) -> list[dict]:
    """Cut a run into input rows: as full as they get behind a random first lane, or of random lanes and counts."""
    rows, position = [], 0
    start = rng.randrange(width)
    while position < len(run):
        count = min(width - start, len(run) - position)
        if not full:
            count = rng.randint(1, count)
        piece = run[position:position + count]
        # what stands in the other lanes must not matter
        word = bytearray(rng.randbytes(width))
        word[start:start + count] = piece
        position += count
        rows.append({"data": int.from_bytes(word, "little"), "start": start, "count": count, "tag": tag,
                     "last": position == len(run), "at": at if len(rows) == 0 else rng.randrange(width)})
        start = 0 if full else rng.randrange(width)
    return rows


def expected_rows(width: int, run: bytes, at: int, tag: int) -> list[tuple[bytes, int, bool, int]]:
    """(valid bytes, start, last, tag) of each row that should leave."""
    cuts = [0, *range(width - at, len(run), width), len(run)]
    return [(run[a:b], at if a == 0 else 0, b == len(run), tag) for a, b in itertools.pairwise(cuts)]


def align(width: int, runs, *, full: bool, stall: float, registered: bool = True) -> tuple[Bench, int]:
    rng = random.Random(SEED)
    dut = shared(Aligner, width_bytes=width, tag_bits=8, registered=registered)
    bench = Bench(dut, seed=SEED)
    rows, expected = [], []
    for number, (run, at) in enumerate(runs):
        rows += rows_of(rng, width, run, at, number % 256, full=full)
        expected += expected_rows(width, run, at, number % 256)
    taken: list[dict] = []
    bench.source(dut.i, rows, stall=stall)
    bench.sink(dut.o, taken, stall=stall)

    async def until_all_left(ctx):
        while len(taken) < len(expected):
            await ctx.tick()
        await ctx.tick().repeat(8)
    bench.add(until_all_left)
    bench.run()
    got = [(row["data"].to_bytes(width, "little")[row["start"]:row["start"] + row["count"]], row["start"],
            bool(row["last"]), row["tag"]) for row in taken]
    assert got == expected
    assert bench.idle_cycles > 0
    return bench, max(len(rows), len(expected))


@pytest.mark.parametrize("width", [8, 16, 64])
@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("registered", [True, False])
def test_random_runs(width, stall, full, registered):
    rng = random.Random(SEED + width)
    runs = [(rng.randbytes(rng.choice([1, 2, width - 1, width, width + 1, 3 * width, rng.randint(1, 5 * width)])),
             rng.randrange(width)) for _ in range(60)]
    align(width, runs, full=full, stall=stall, registered=registered)


def test_every_destination_lane_and_length():
    runs = [(bytes(range(100, 100 + length)), at) for at in range(8) for length in range(1, 18)]
    align(8, runs, full=True, stall=0.0)


def test_a_row_a_cycle():
    runs = [(bytes(range(96)) * 10, at) for at in (0, 5, 15)]
    bench, rows = align(16, runs, full=True, stall=0.0)
    # pipeline's latency, a spill for each run, and the cycles that the test waits at the end
    assert bench.cycle <= rows + 4 + len(runs) + 12


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_parameters_are_checked():
    for width in (0, 3, 2, "16"):
        with pytest.raises(ValueError, match="width_bytes must be a power of two of at least 4, not"):
            Aligner(width_bytes=width)
    gc.collect()  # here, where the warning that a refused block was never used is off
