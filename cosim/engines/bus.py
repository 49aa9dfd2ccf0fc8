"""The host bus as a device's DMA sees it: when a read's data comes and when a write stands in memory.

Times are edges of the device's clock. A bus is shared (PCI: one burst at a time, both directions together) or duplex
(PCIe: each direction for itself, requests of reads among the device's writes). A burst waits for its turn, takes
its bytes' time with the overhead of its packets, and a read's data comes as one block behind it.
`cosim/transactors/bus.h` says the same in C++, with the same numbers; inside, time is counted in fractions of a cycle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from cosim.engines.splitmix import SplitMix
from cosim.mac import PS_PER_S

FRACTION_BITS = 20


@dataclass(frozen=True)
class BusTiming:
    """Latencies and bandwidth in cycles of the device's clock, and what a test may want to go wrong."""

    read_latency_cycles: int
    """From a read's address to its first data."""
    write_latency_cycles: int
    """From a write in memory to its response."""
    mmio_read_cycles: int
    """A register read, from the processor and back."""
    mmio_write_cycles: int
    """A posted write, until the device sees it."""
    bytes_per_cycle: float
    """Of payload and overhead; of both directions together, unless `duplex`."""
    duplex: bool = False
    tlp_overhead_bytes: int = 0
    """Of each packet beside its payload; a read request is nothing else (and takes no time on a shared bus, where it is
    part of the latency)."""
    max_payload_bytes: int = 4096
    max_read_request_bytes: int = 4096
    tags: int = 256
    """Read requests on their way at a time."""
    reorder_cycles: int = 0
    """A read's data is late by a random 0 .. so many more, so bursts come back in another order."""
    interleave: bool = False
    """Beats of bursts that are due mix."""
    seed: int = 0

    @property
    def fractions_per_byte(self) -> int:
        """Time of a byte in 1 / 2^20 of a cycle."""
        return round((1 << FRACTION_BITS) / self.bytes_per_cycle)


def fractions_of(duration_ps: int, clock_hz: int) -> int:
    """A time in 1 / 2^20 of a cycle."""
    return (duration_ps * clock_hz << FRACTION_BITS) // PS_PER_S


Judge = Callable[[int, bool], bool]
"""`judge(address, is_write)`: whether a burst that reaches memory is answered with an error."""


@dataclass
class Bus:
    """When the bus is free. Attributes: `timing`; `judge`, asked once for each burst; `random`."""

    timing: BusTiming
    judge: Judge | None = None
    random: SplitMix = field(init=False)

    def __post_init__(self) -> None:
        self.random = SplitMix(self.timing.seed)
        self._up = 0
        self._down = 0
        self._tags: deque[int] = deque()

    def read_due(self, edge: int, length: int) -> int:
        """Edge at which the first beat of a read that is asked for at `edge` may reach the device."""
        timing, tags = self.timing, self._tags
        requests = _pieces(length, timing.max_read_request_bytes)
        start = edge << FRACTION_BITS
        for _ in range(requests):
            if len(tags) >= timing.tags:
                start = max(start, tags.popleft())
        latency = timing.read_latency_cycles << FRACTION_BITS
        if timing.duplex:
            start = self._up = max(start, self._up) + requests * self._overhead
            free = self._down = max(start + latency, self._down) + self._moved(length)
        else:
            free = self._up = max(start + latency, self._up) + self._moved(length)
        tags.extend([free] * requests)
        while len(tags) > timing.tags:
            tags.popleft()
        late = self.random.below(timing.reorder_cycles + 1) if timing.reorder_cycles else 0
        return (free >> FRACTION_BITS) + late

    def write_arrives(self, edge: int, length: int) -> int:
        """Edge at which a write whose last beat left at `edge` stands in host memory."""
        self._up = max(edge << FRACTION_BITS, self._up) + self._moved(length)
        return self._up >> FRACTION_BITS

    def take(self, edge: int, fractions: int) -> None:
        """From `edge` on, or as soon as it is free, something else has it for a time in 1 / 2^20 of a cycle, both
        directions of it."""
        start = edge << FRACTION_BITS
        self._up = max(start, self._up) + fractions
        self._down = max(start, self._down) + fractions

    @property
    def _overhead(self) -> int:
        return self.timing.tlp_overhead_bytes * self.timing.fractions_per_byte

    def _moved(self, length: int) -> int:
        timing = self.timing
        return length * timing.fractions_per_byte + _pieces(length, timing.max_payload_bytes) * self._overhead


def _pieces(length: int, most: int) -> int:
    return max(1, -(-length // most))
