"""Benches: what `memnic bench` measures. All ratios come from one run on one machine."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cosim.benches.rows import Row


class BenchOptions(NamedTuple):
    """What a user may set."""

    log: Path | None
    """A web server's log, for benches that serve one."""
    say: Callable[[str], None]
    """Called with what is being measured."""
    widths: Sequence[int] = ()
    """Bits of the MAC's streams of the devices that `rtl` and `accuracy` measure; none: all."""


BENCHES: dict[str, tuple[str, str]] = {
    "engine": ("cosim.benches.engine:measure", "speed of the simulation engines"),
    "rtl": ("cosim.benches.rtl:measure", "what the device does in how many cycles"),
    "control": ("cosim.benches.control:measure", "offloaded segments through the control port, both ways"),
    "model": ("cosim.benches.model:measure", "how fast the timed model is"),
    "tcp": ("cosim.benches.tcp:measure", "how fast the software TCP is, and what it makes of loss"),
    "overload": ("cosim.benches.overload:measure", "what a flood of packets leaves of a host, by how it is told"),
    "placements": ("cosim.benches.placements:measure", "what TCP gains on processors of its own, beside the paper"),
    "crossover": ("cosim.benches.crossover:measure", "above which clock TCP on the device pays"),
    "accuracy": ("cosim.benches.accuracy:measure", "how near the timed model comes to the RTL"),
    "tap": ("cosim.benches.tap:measure", "goodput beside the Linux kernel's, over the same bad wire"),
}
"""Name -> (`module:function` that takes BenchOptions and returns rows, what it measures)."""


def measure(name: str, options: BenchOptions) -> list[Row]:
    """The rows of one bench."""
    module, _, function = BENCHES[name][0].partition(":")
    rows: list[Row] = getattr(importlib.import_module(module), function)(options)
    return rows
