"""Whom each processor worked for, over time: user, system, idle, as `top` has it and the paper's Fig. 9."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec

from cosim.processor import USER, Processors
from host_driver.runtime import Kernel, Timer

FIRST_INTERVAL_PS = 10**9
MOST_INTERVALS = 128
"""When there would be more, two become one."""


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of some time of one processor; they add up to 1."""

    user: float
    system: float
    """All of the kernel's work: interrupts and bottom halves too."""
    idle: float

    @property
    def busy(self) -> float:
        """Not idle."""
        return self.user + self.system


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a run."""

    until_ps: int
    """Its end, from the start of the load."""
    processors: list[Share]


Times = list[Mapping[str, int]]
"""Time that each processor has spent so far, by category."""


class ShareRecorder:
    """Looks at the processors at equal intervals from `start` on; a run of any length has at most `MOST_INTERVALS`."""

    def __init__(self, kernel: Kernel, processors: Processors) -> None:
        self._kernel = kernel
        self._processors = processors
        self._interval_ps = FIRST_INTERVAL_PS
        self._start_ps = 0
        self._seen: list[Times] = []
        self._timer: Timer | None = None

    def start(self) -> None:
        """The load begins now."""
        self._start_ps = self._kernel.now
        self._seen = [self._processors.busy_ps]
        self._set_timer()

    def stop(self) -> None:
        """The load has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def intervals(self, end_ps: int, end: Times) -> list[Interval]:
        """What was seen, and the rest up to the load's end with what `end` has."""
        times_ps = [number * self._interval_ps for number in range(len(self._seen))]
        seen = [*zip(times_ps, self._seen, strict=True), (end_ps - self._start_ps, end)]
        return [Interval(until_ps=until_ps, processors=shares(before, after, until_ps - from_ps))
                for (from_ps, before), (until_ps, after) in pairwise(seen) if until_ps > from_ps]

    def _set_timer(self) -> None:
        self._timer = self._kernel.call_at(self._start_ps + len(self._seen) * self._interval_ps, self._look)

    def _look(self) -> None:
        self._seen.append(self._processors.busy_ps)
        if len(self._seen) > MOST_INTERVALS:
            self._seen = self._seen[::2]
            self._interval_ps *= 2
        self._set_timer()


def shares(before: Times, after: Times, duration_ps: int) -> list[Share]:
    """Shares of each processor between two looks."""
    return [_share({category: ps - earlier.get(category, 0) for category, ps in later.items()}, duration_ps)
            for earlier, later in zip(before, after, strict=True)]


def _share(spent_ps: Mapping[str, int], duration_ps: int) -> Share:
    user_ps = spent_ps.get(USER, 0)
    busy_ps = sum(spent_ps.values())
    return Share(user=user_ps / duration_ps, system=(busy_ps - user_ps) / duration_ps,
                 idle=(duration_ps - busy_ps) / duration_ps)


_RAMP = " .:-=+*#%@"


def drawn(values: Sequence[float], columns: int) -> str:
    """Values between 0 and 1 as characters from blank to `@`, at most so many."""
    width = min(columns, len(values))
    cells = []
    for cell in range(width):
        part = values[cell * len(values) // width : (cell + 1) * len(values) // width]
        cells.append(_RAMP[round(sum(part) / len(part) * (len(_RAMP) - 1))])
    return "".join(cells)
