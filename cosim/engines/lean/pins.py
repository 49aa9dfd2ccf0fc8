"""Edges of the clock, and the pins of `rtl.simulation.SimulationTop`, for the transactors in Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rtl.simulation import FLAGS, INPUTS, OUTPUTS

PS_PER_S = 10**12

NEVER = (1 << 61) - 1
"""An edge that does not come; a time as late or later means that, too."""

VALID = {name: 1 << FLAGS.index(f"{name}_valid") for name in OUTPUTS}
"""Bits of `flags`, and of `ready`: a stream that leaves the device."""

READY_SHIFT = len(OUTPUTS)
"""Ready bits in `flags` stand so much higher than the bits of `Inputs.valid`."""

STREAM = {name: index for index, name in enumerate(INPUTS)}
"""Number of a stream that enters the device."""


class Edges:
    """Time in picoseconds and edges of the device's clock; edge n is at n * 10^12 / clock_hz, rounded down."""

    def __init__(self, clock_hz: int) -> None:
        self._clock_hz = clock_hz

    def time_of(self, edge: int) -> int:
        """Time of an edge."""
        return edge * PS_PER_S // self._clock_hz

    def at(self, time_ps: int) -> int:
        """The last edge at or before a time."""
        if time_ps >= NEVER:
            return NEVER
        return -(-(time_ps + 1) * self._clock_hz // PS_PER_S) - 1

    def from_(self, time_ps: int) -> int:
        """The first edge at or after a time."""
        return self.at(time_ps - 1) + 1


class Pins(Protocol):
    """Access to the pins of a running `SimulationTop`."""

    def reader(self, name: str) -> Callable[[], int]:
        """A function that reads an output."""

    def watcher(self, name: str) -> Callable[[], int]:
        """The same, of an output that seldom changes."""

    def writer(self, name: str) -> Callable[[int], None]:
        """A function that drives an input from now on."""


class Inputs:
    """The streams that enter the device: `valid` has a bit for each whose valid is high."""

    def __init__(self, pins: Pins) -> None:
        self.valid = 0
        self._words = [0] * len(INPUTS)
        self._writers = [pins.writer(name) for name in INPUTS]

    def offer(self, stream: int, word: int) -> None:
        """Drive a stream by its number: valid in the lowest bit, the payload above it; 0 for nothing."""
        if word != self._words[stream]:
            self._words[stream] = word
            self._writers[stream](word)
            if word:
                self.valid |= 1 << stream
            else:
                self.valid &= ~(1 << stream)
