"""How near the timed model comes to the RTL: `memnic bench accuracy`.

Random workloads, none of which was used to characterize the device, run over the RTL and over the model. Each frame's
last beat and each completion's write is an event, whose error is counted in percent of the time from the case's start
to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from cosim.benches import BenchOptions
from cosim.benches.rows import Row, row
from cosim.benches.rtl import DEVICES, build
from cosim.timing.cases import Case, Send, Sender
from cosim.timing.characterize import bus
from cosim.timing.device_file import load_device
from cosim.timing.observed import Observed, on_model, on_rtl, on_rules
from cosim.timing.random_cases import KINDS, random_case
from nic_model.contract import NicConfig
from nic_model.timing.parameters import DeviceModel

SEED = 1
ROUNDS = 2
"""Cases of each kind at each width."""

TIMES_BAR, RATE_BAR, INTERRUPTS_BAR = 1.0, 1.0, 2.0
"""Percent."""

DRIFT_CYCLES = 10_000_000
NAMED = 5
"""Workloads that are named: those that are furthest off."""

LEAST_ELAPSED = 100
"""Doorbells come at the earliest so many cycles behind a case's start: time counts from there."""


@dataclass
class Comparison:
    """One case on both."""

    name: str
    kind: str
    width: int
    errors: list[float] = field(default_factory=list)
    """Of each event's time, in percent of the time that has passed."""
    rate_error: float = 0.0
    """Of the time from the first frame or completion to the last, in percent."""
    interrupts: tuple[int, int] = (0, 0)
    """Of RTL and model."""
    same: bool = True
    """Frames, memory and completions."""
    why: str = ""
    """What is not the same."""

    @property
    def worst(self) -> float:
        """99th percentile of its errors."""
        return percentile(self.errors, 99)

    @property
    def interrupt_error(self) -> float:
        """In percent; a count of one or two more or less of few is no share."""
        rtl, model = self.interrupts
        return 100 * abs(model - rtl) / rtl if rtl else 0.0


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below or at which so many percent lie; 0 of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else 0.0


def compare(config: NicConfig, model: DeviceModel, library: Path, case: Case, kind: str) -> Comparison:
    """Run a case on both."""
    rtl, timed = on_rtl(config, library, case), on_model(model, case)
    found = Comparison(name=f"{8 * config.mac_bytes}-bit: {case.name}", kind=kind, width=8 * config.mac_bytes)
    for one, other in _events(rtl, timed):
        found.errors += [100 * abs(a - b) / max(LEAST_ELAPSED, b - LEAST_ELAPSED)
                         for a, b in zip(other, one, strict=False)]
    for one, other in _events(rtl, timed):
        if len(one) > 1 and len(other) == len(one) and one[-1] > one[0]:
            error = 100 * abs((other[-1] - other[0]) / (one[-1] - one[0]) - 1)
            found.rate_error = max(found.rate_error, error)
    found.interrupts = len(rtl.interrupts), len(timed.interrupts)
    for what, is_same in (("frames", sorted(rtl.frame_bytes) == sorted(timed.frame_bytes)),
                          ("completions", rtl.rings == timed.rings), ("memory", rtl.memory == timed.memory)):
        if not is_same:
            found.same = False
            found.why = found.why or what
    return found


def _events(rtl: Observed, timed: Observed) -> list[tuple[list[int], list[int]]]:
    """(edges of the RTL, edges of the model) of events of a kind, in order."""
    found = [([last for _, last in rtl.frames], [last for _, last in timed.frames])]
    found += [(edges, timed.completions.get(channel, [])) for channel, edges in rtl.completions.items()]
    return found


def drift(config: NicConfig, model: DeviceModel, library: Path) -> tuple[float, int]:
    """(error of the last frame in percent, cycles) of large sends over ten million cycles."""
    count = DRIFT_CYCLES * config.mac_bytes // 67_500 + 1
    sends = tuple(Send(payload=65_536, mss=1460) for _ in range(min(count, (1 << config.max_ring_log2) // 3 - 1)))
    case = Case(name="drift", bus=bus(700), senders=(Sender(channel=1, sends=sends, bells=((100, len(sends)),)),))
    rtl, rules = on_rtl(config, library, case), on_rules(model, case)
    last = rtl.frames[-1][1]
    return 100 * abs(rules.frames[-1][1] - last) / last, last


def measure(options: BenchOptions) -> list[Row]:
    """The rows; prints distribution and plot before."""
    found: list[Comparison] = []
    widths = options.widths or tuple(DEVICES)
    for width in widths:
        config = DEVICES[width]
        options.say(f"{width}-bit device: building")
        library, model = build(config), load_device(config.name)
        for number in range(ROUNDS * len(KINDS)):
            case = random_case(number, config, SEED)
            options.say(f"{width}-bit device: {case.name}")
            kind = case.name.partition(" (")[0]
            found.append(compare(config, model, library, case, kind))
    show(found, Console(stderr=True, highlight=False, width=120))
    rows = []
    for width in widths:
        its = [one for one in found if one.width == width]
        rows += _rows(f"{width}-bit", its)
    narrow = min(widths)
    options.say(f"{narrow}-bit device: {DRIFT_CYCLES:,} cycles")
    error, cycles = drift(DEVICES[narrow], load_device(DEVICES[narrow].name), build(DEVICES[narrow]))
    rows.append(row(f"{narrow}-bit: the last frame of {cycles:,} cycles of 64 KB sends, 700 cycles of latency", error,
                    "% of time", "<=", TIMES_BAR))
    return rows


def _rows(width: str, found: list[Comparison]) -> list[Row]:
    errors = [error for one in found for error in one.errors]
    worst = max(found, key=lambda one: one.worst)
    rate = max(found, key=lambda one: one.rate_error)
    told = [one for one in found if one.interrupts[0]]
    different = [one for one in found if not one.same]
    rtl, model = (sum(one.interrupts[side] for one in told) for side in (0, 1))
    rows = [
        row(f"{width}: times of {len(errors):,} frames and completions, 99th percentile", percentile(errors, 99),
            "% of time", "<=", TIMES_BAR, f"furthest off: {worst.name}, {worst.worst:.2f} %"),
        row(f"{width}: throughput, the worst of {len(found)} workloads", rate.rate_error, "%", "<=", RATE_BAR,
            rate.name),
        row(f"{width}: frames, memory and completions that are the same", 100 * (1 - len(different) / len(found)),
            "% of workloads", ">=", 100, "; ".join(f"{one.why} of {one.name}" for one in different[:NAMED])),
    ]
    if told:
        rows.append(row(f"{width}: interrupts of {len(told)} workloads", 100 * abs(model - rtl) / rtl, "%", "<=",
                        INTERRUPTS_BAR, f"{model} of {rtl}"))
    return rows


STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
BAR_CELLS = 50


def show(found: list[Comparison], console: Console) -> None:
    """The distribution of all errors, as a table and a plot, and the workloads that are furthest off."""
    errors = [error for one in found for error in one.errors]
    console.print(f"\nshare of {len(errors):,} frames and completions whose time is off by at most so much:")
    for step in STEPS:
        share = sum(error <= step for error in errors) / max(1, len(errors))
        console.print(f"  {step:6.2f} %  {100 * share:6.2f} %  {'#' * round(BAR_CELLS * share)}", markup=False)
    console.print("\nby kind of workload: median, 99th percentile and largest error in % of time; throughput's")
    for kind in dict.fromkeys(one.kind for one in found):
        its = [one for one in found if one.kind == kind]
        values = [error for one in its for error in one.errors]
        figures = percentile(values, 50), percentile(values, 99), max(values, default=0.0)
        console.print(f"  {kind:32} {figures[0]:6.3f} {figures[1]:7.3f} {figures[2]:7.3f}   "
                      f"{max(one.rate_error for one in its):6.3f}", markup=False)
    console.print("\nfurthest off:")
    for one in sorted(found, key=lambda one: -one.worst)[:NAMED]:
        console.print(f"  {one.worst:6.2f} %  {one.name}", markup=False)
