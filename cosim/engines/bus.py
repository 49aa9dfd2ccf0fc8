"""The host bus as a device's DMA sees it: when a read's data comes and when a write is answered.

Times are cycles of the device's clock. The bus moves one burst at a time, both directions together, as a shared
PCI bus does: a burst waits for its turn, takes its bytes' time, and a read's data comes as one block behind it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BusTiming:
    """Latencies and bandwidth in cycles of the device's clock, and what a test may want to go wrong.

    `reorder_cycles`: a read's data is late by a random 0 .. so many more, so bursts come back in another order.
    `interleave`: beats of bursts that are due mix.
    """

    read_latency_cycles: int
    write_latency_cycles: int
    mmio_read_cycles: int
    mmio_write_cycles: int
    bytes_per_cycle: float
    reorder_cycles: int = 0
    interleave: bool = False
    seed: int = 0


def no_fault(address: int, write: bool) -> bool:
    """No burst fails."""
    return False


@dataclass
class Bus:
    """When the bus is free. `fault(address, is_write)` decides which bursts are answered with an error."""

    timing: BusTiming
    fault: Callable[[int, bool], bool] = no_fault
    free_at: float = 0.0
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.timing.seed)

    def read_due(self, cycle: int, length: int) -> int:
        """Cycle at which the first beat of a read that is asked for at `cycle` may reach the device."""
        start = max(cycle + self.timing.read_latency_cycles, self.free_at)
        self.free_at = start + length / self.timing.bytes_per_cycle
        late = self.rng.randrange(self.timing.reorder_cycles + 1) if self.timing.reorder_cycles else 0
        return int(self.free_at) + late

    def write_arrives(self, cycle: int, length: int) -> int:
        """Cycle at which a write whose last beat left at `cycle` stands in host memory."""
        self.free_at = max(cycle, self.free_at) + length / self.timing.bytes_per_cycle
        return int(self.free_at)
