"""`make soak`: hostile frames, bad descriptors and random programs by the thousand, the RTL against the model.

It goes through batches, each with a seed of its own. A batch that differs ends it: both devices' answers, the frames
that arrived as a capture, and a command that does the batch again are told.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cosim import builds
from cosim.engines.base import RunError
from cosim.engines.bus import BusTiming
from cosim.pcapng import PcapngWriter
from host_driver.runtime import TaskFailed
from nic_model.contract import CONFIGS
from tests.device.hostile import RX_DROPS, frames_of
from tests.device.rig import FAR, FAST, CaseFailed, RigSpec, on_model, on_rtl
from tests.device.test_against_model import check_sense, difference

KEPT = Path(__file__).parents[2] / "build" / "failed-soak"

FRAMES, SENDS = 500, 60
"""Of a batch."""

PROGRAMS = 10_000
"""Added to the seeds of random programs: they are others than the suite's."""

TELL_S = 5.0


class Batch(NamedTuple):
    """What runs over both devices, and is compared."""

    kind: str
    """frames, sends or program."""
    seed: int
    timing: BusTiming
    size: int = 0
    coalesces: bool = False

    @property
    def spec(self) -> RigSpec:
        """What both devices run."""
        if self.kind == "program":
            sizes = {"sends": 2, "frames": 80, "coalesces": True} if self.coalesces else {}
            return RigSpec(scenario="tests.device.programs:run_seeds", timing=self.timing, seed=self.seed,
                           arguments={"seeds": [self.seed], "sizes": sizes})
        scenario, counts = {"frames": ("receive", "frames"), "sends": ("send", "sends")}[self.kind]
        return RigSpec(scenario=f"tests.device.hostile:{scenario}", timing=self.timing, seed=self.seed,
                       limit_ps=10**13, arguments={"seed": self.seed, counts: self.size})


def check(batch: Batch, figures: Counter[str]) -> None:
    """Run a batch over both devices and add to the figures. Raises what is wrong."""
    model, rtl = on_model(batch.spec), on_rtl(batch.spec)
    figures[batch.kind] += batch.size or 1
    if batch.kind == "program":
        found = difference(model[0], rtl[0])
        assert not found, found
        assert rtl[0]["unknown"] == [], "frames of no channel"
        check_sense(rtl[0])
    elif batch.kind == "sends":
        assert model == rtl, f"model {model}, RTL {rtl}"
        for way, *_ in rtl["told"]:
            figures[f"bad {way}"] += 1
    else:
        for number, pair in enumerate(zip(model["completions"], rtl["completions"], strict=True)):
            assert pair[0] == pair[1], f"completions of burst {number} by channel: model {pair[0]}, RTL {pair[1]}"
        counters: dict[str, Any] = rtl["counters"]
        assert model["counters"] == counters, f"counters: model {model['counters']}, RTL {counters}"
        figures["good frames behind bursts"] += len(rtl["completions"])
        for name in ("rx_frames", *RX_DROPS, "rx_pause", "rx_checksum_errors", "rx_coalesced"):
            figures[name] += counters[name]


def batches(frames: int, sends: int, programs: int, first: int) -> Iterator[Batch]:
    """All batches. A batch follows from its kind, size and seed: one in four runs on a bus that is far away, and one in
    three programs coalesces."""
    for kind, wanted, most in (("frames", frames, FRAMES), ("sends", sends, SENDS)):
        for number in range(-(-wanted // most)):
            seed = first + number
            yield Batch(kind, seed, FAR if seed % 4 == 0 else FAST, min(most, wanted - number * most))
    for seed in range(first, first + programs):
        yield Batch("program", PROGRAMS + seed, FAR if seed % 4 == 0 else FAST, coalesces=seed % 3 == 0)


def again(batch: Batch) -> str:
    """Options that make this batch alone."""
    name, size, seed = (batch.kind, batch.size, batch.seed) if batch.kind != "program" else (
        "programs", 1, batch.seed - PROGRAMS)
    counts = {"frames": 0, "sends": 0, "programs": 0, name: size, "seed": seed}
    return " ".join(f"--{option} {value}" for option, value in counts.items())


def keep(batch: Batch, error: Exception) -> Path:
    """What there is of a batch that failed."""
    folder = KEPT / f"{batch.kind}-{batch.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").write_text(f"{batch}\n{type(error).__name__}: {error}\n", encoding="utf-8")
    if batch.kind == "frames":
        with PcapngWriter(folder / "arrived.pcapng", "memnic") as capture:
            for number, (frame, _bad) in enumerate(frames_of(batch.seed, batch.size)):
                capture.write(number * 1000, frame, outbound=False)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000, help="hostile frames (%(default)s)")
    parser.add_argument("--sends", type=int, default=6_000, help="bad sends (%(default)s)")
    parser.add_argument("--programs", type=int, default=200, help="random programs (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the first batch (%(default)s)")
    options = parser.parse_args()
    builds.build(CONFIGS["tiny"], builds.LIBRARY, print)
    todo = list(batches(options.frames, options.sends, options.programs, options.seed))
    print(f"{options.frames} hostile frames, {options.sends} bad sends, {options.programs} random programs: "
          f"{len(todo)} batches from seed {options.seed}", flush=True)
    figures: Counter[str] = Counter()
    began = told = time.monotonic()
    for number, batch in enumerate(todo, 1):
        try:
            check(batch, figures)
        except (AssertionError, CaseFailed, RunError, TaskFailed) as error:
            print(f"\n{batch.kind}, seed {batch.seed}: {type(error).__name__}: {str(error)[:2000]}\n"
                  f"kept in {keep(batch, error)}; again: make soak ARGS=\"{again(batch)}\"")
            return 1
        now = time.monotonic()
        if now - told > TELL_S or number == len(todo):
            told, left = now, (now - began) / number * (len(todo) - number)
            print(f"  {number} of {len(todo)} batches, {figures['frames']} frames, {figures['sends']} sends, "
                  f"{figures['program']} programs; {left:.0f} s left", flush=True)
    print(f"\nno difference between RTL and model, in {time.monotonic() - began:.0f} s, seeds from {options.seed}:")
    for name, count in figures.items():
        print(f"{count:9} {name.replace('_', ' ')}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted")
        sys.exit(130)
