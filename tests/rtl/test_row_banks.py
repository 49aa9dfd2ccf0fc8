"""A row memory with a second writer, against a list."""

import gc
import random

import pytest

from rtl.row_banks import RowBanks
from tests.rtl.harness import Bench, idle

DEPTH = 16


@pytest.mark.parametrize(("banks", "seed"), [(1, 1), (2, 2)])
def test_random_words(banks, seed):
    rng = random.Random(seed)
    dut = RowBanks(shape=8, depth=DEPTH, banks=banks)
    bench = Bench(dut, seed=seed)
    memory = [None] * DEPTH
    checked, waited, beside = [], [], []

    async def main(ctx):
        late = None
        for _ in range(400):
            first = (rng.randrange(DEPTH), rng.randrange(256)) if rng.random() < 0.6 else None
            if late is None and rng.random() < 0.8:
                late = (rng.randrange(DEPTH), rng.randrange(256))
            # Two writers of one word is none of its business, nor is reading what is being written.
            if first is not None and late is not None and first[0] == late[0]:
                first = None
            written = {at for at, _ in (first or (None, 0), late or (None, 0))}
            reads = rng.choice([at for at in range(DEPTH) if memory[at] is not None and at not in written] or [None])
            ctx.set(dut.write_en, first is not None)
            if first is not None:
                ctx.set(dut.write_addr, first[0])
                ctx.set(dut.write_data, first[1])
                memory[first[0]] = first[1]
            ctx.set(dut.late.valid, late is not None)
            if late is not None:
                ctx.set(dut.late.payload, {"addr": late[0], "data": late[1]})
            ctx.set(dut.read_en, reads is not None)
            expected = None if reads is None else memory[reads]
            if reads is not None:
                ctx.set(dut.read_addr, reads)
            takes = late is not None and ctx.get(dut.late.ready)
            if late is not None:
                is_free = first is None or (banks == 2 and first[0] % 2 != late[0] % 2)
                assert takes == is_free, f"seed {seed}"
                (beside if takes and first is not None else waited if not takes else []).append(late)
            await ctx.tick()
            if takes:
                memory[late[0]] = late[1]
                late = None
            if expected is not None:
                assert ctx.get(dut.read_data) == expected, f"seed {seed}"
                checked.append(expected)
        await idle(ctx, 1)

    bench.add(main)
    bench.run()
    assert len(checked) > 100
    assert waited
    assert bool(beside) == (banks == 2)


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_there_are_one_or_two_banks():
    with pytest.raises(ValueError, match="banks must be 1 or 2, not 3"):
        RowBanks(shape=8, depth=DEPTH, banks=3)
    gc.collect()  # here, where the warning that a refused block was never used is off
