"""Which frames are on their way, against a list of them."""

import random

import pytest

from rtl.arrivals import Arrivals
from tests.rtl.harness import Bench, idle


@pytest.mark.parametrize("seed", range(4))
def test_against_a_list(seed):
    """Frames begin, are skipped before the parser, end in order, are dropped or wait to be taken. While `clear` is 1
    there is none; and none that is neither offered nor gone came before `time`."""
    rng = random.Random(f"arrivals {seed}")
    dut = Arrivals()
    bench = Bench(dut, seed=seed)
    seen = {"clear": 0, "moves": 0, "skipped alone": 0}

    async def main(ctx):
        before_parser: list[int] = []  # times of frames of which the MAC still has beats, one at most
        in_parser: list[int] = []
        waiting: list[int] = []
        shows, said = True, 0
        for now in range(1, 4000):
            quiet_time = rng.random() < 0.3
            begins = not before_parser and not quiet_time and rng.random() < 0.4
            skips = bool(before_parser) and rng.random() < 0.2
            moves = bool(before_parser) and not skips and rng.random() < 0.3
            ends = bool(in_parser) and rng.random() < 0.4
            drops = ends and rng.random() < 0.6
            if waiting and rng.random() < 0.3:
                waiting.pop(0)
            if ends:
                ended = in_parser.pop(0)
                if not drops:
                    waiting.append(ended)
            skipped = before_parser.pop() if skips else 0
            if moves:
                in_parser.append(before_parser.pop())
            if begins:
                before_parser.append(now)
            ctx.set(dut.begins, begins)
            ctx.set(dut.skipped.valid, skips)
            ctx.set(dut.skipped.payload, skipped)
            ctx.set(dut.ended, ends)
            ctx.set(dut.dropped.valid, drops)
            ctx.set(dut.dropped.payload, ended if drops else 0)
            ctx.set(dut.offered, bool(waiting))
            await ctx.tick()
            shows, said = bool(ctx.get(dut.clear)), ctx.get(dut.time)
            pending = before_parser + in_parser + waiting
            assert shows == (not pending), f"seed {seed}, cycle {now}"
            on_the_way = before_parser + in_parser
            assert all(time >= said for time in on_the_way), f"seed {seed}, cycle {now}"
            seen["clear"] += shows
            if drops and not waiting:
                assert said == ended
                seen["moves"] += 1
            if skips and not in_parser and not ends and not waiting:
                assert said == skipped
                seen["skipped alone"] += 1
        await idle(ctx, 1)

    bench.add(main)
    bench.run(max_cycles=5000)
    assert all(count > 20 for count in seen.values()), seen
