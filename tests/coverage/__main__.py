"""`make coverage`: which branches and bits of each block the tests of the whole device reach.

The tests of `tests/device` run over the compiled engine with a device that counts (`tests/coverage/covered.py`), and
the counts of all runs are added. Of the blocks on the way of a packet every branch that is never taken is printed, with
its explanation from `holes.toml`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tests.coverage.covered import ROOT, Covered, build, plain
from tests.coverage.plugin import SUM
from tests.coverage.points import Point, Sum, share
from tests.explanations import Explanations

KEPT = ROOT / "build" / "coverage"
EXPLAINED = Path(__file__).parent / "holes.toml"

LEAST_PERCENT = 95

TOP = "simulation_top.nic."

DATAPATH = ("doorbells", "keys", "fetch", "scheduler", "dma_read", "transmit", "pause", "receive", "dma_write",
            "completion", "events")
"""Blocks of `rtl/nic.py` on the way of a packet; the bar is for these."""

APART = ("transmit", "receive")
"""Blocks that only connect others: each of theirs has a row."""

TESTS = ("tests/device",)
NOT_RUN = ("--ignore", "tests/device/test_engines.py", "-k", "not icarus and not wide_bus")
"""Of the tests: those of other simulators."""


def block_of(module: str) -> str:
    """The row of a module: a block of the top, or a block of transmit and receive."""
    if not module.startswith(TOP):
        return ""
    parts = module.removeprefix(TOP).split(".")
    return ".".join(parts[:2]) if parts[0] in APART else parts[0]


def statement(point: Point, covered: Covered) -> str:
    """Where what a branch assigns is declared in the RTL: the source line's text, which outlives its number."""
    for line in point.lines or (point.line,):
        for name in re.findall(r"(\\\S+|[A-Za-z_]\w*)(?: *\[[\d:]+\])? *=", covered.verilog[line - 1]):
            source = covered.sources.get(f"{point.module}:{plain(name)}")
            if source:
                path, _, number = source.rpartition(":")
                return Path(path).read_text(encoding="utf-8").splitlines()[int(number) - 1].strip()
    return ""


def tell(total: Sum, covered: Covered) -> bool:
    """Print the table and the holes; whether the bar is reached."""
    rows: dict[str, list[tuple[Point, int]]] = defaultdict(list)
    for point, count in total.points():
        if row := block_of(point.module):
            rows[row].append((point, count))
    explanations, good = Explanations(EXPLAINED), True
    print(f"\n{'block':24} {'branches':>9} {'line %':>7} {'bits':>8} {'toggle %':>9}")
    for row, points in sorted(rows.items()):
        line, toggle, on_the_way = share(points, "line"), share(points, "toggle"), row.split(".")[0] in DATAPATH
        enough = line.percent >= LEAST_PERCENT or not on_the_way
        good &= enough
        print(f"{row:24} {line.of:9} {line.percent:7.1f} {toggle.of // 2:8} {toggle.percent:9.1f}"
              f"{'' if on_the_way else '  (not of the datapath)'}{'' if enough else '  too few'}")
    every = [each for row in rows.values() for each in row]
    print(f"{'all':24} {share(every, 'line').of:9} {share(every, 'line').percent:7.1f} "
          f"{share(every, 'toggle').of // 2:8} {share(every, 'toggle').percent:9.1f}")
    for row, points in sorted(rows.items()):
        holes: dict[str, list[Point]] = defaultdict(list)
        for point, count in points:
            if point.kind == "line" and not count and row.split(".")[0] in DATAPATH:
                holes[statement(point, covered)].append(point)
        for text, found in holes.items():
            print(f"\n{row}, {len(found)} branch{'es' if len(found) > 1 else ''} never taken: {text or '(no source)'}\n"
                  f"    {explanations.why(row, text) or 'NOT EXPLAINED in ' + EXPLAINED.name}")
            for point in found[:3]:
                print(f"    top.v:{point.line} {point.what}: {covered.verilog[point.line - 1].strip()[:90]}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="make coverage", description=__doc__)
    parser.add_argument("--show", action="store_true", help="only print what the last run has counted")
    parser.add_argument("tests", nargs="*", default=TESTS, help="tests to run (%(default)s)")
    options = parser.parse_args()
    covered = build()
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{covered.library.parents[1].name}.dat"
    if not options.show:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "tests.coverage.plugin", *NOT_RUN, *options.tests],
            cwd=ROOT, env={**os.environ, SUM: str(path)}, check=False)
        if done.returncode:
            print("the tests failed over the device that counts; see above")
            return 1
    total = Sum()
    total.add(path)
    print(f"Verilog, and what the lines below mean: {covered.library.parents[1] / 'top.v'}")
    return 0 if tell(total, covered) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted")
        sys.exit(130)
