"""Seam 1: what the driver sees of the machine that it runs on.

Three devices implement `Port`: the RTL compiled, the RTL under cocotb, and the model. The driver does not
know which one it has.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from host_driver.runtime import Future, Kernel


class HostMemory(Protocol):
    """Host memory as one buffer that processor and device both see."""

    base: int
    """Bus address of the first byte."""
    size_bytes: int

    def view(self, address: int, length: int) -> memoryview:
        """Writable bytes at a bus address. Raises ValueError for a range outside."""

    def allocate(self, length: int, alignment: int = 64) -> int:
        """Bus address of new, zeroed memory. Raises MemoryError when there is none left."""

    def free(self, address: int) -> None:
        """Give back what `allocate` returned. Raises ValueError for another address."""


class Port(Protocol):
    """Registers, host memory, interrupts and time. Addresses are those of the contract (driver's view)."""

    @property
    def memory(self) -> HostMemory:
        """Memory that the device reaches."""

    @property
    def kernel(self) -> Kernel:
        """The clock that the driver's tasks run on."""

    def read32(self, address: int) -> Awaitable[int]:
        """Read a register: a round trip on the bus. Never overtakes posted writes."""

    def write32(self, address: int, value: int) -> None:
        """Write a register or doorbell. Posted: returns before the device sees it; posted writes keep their order."""

    def write_block(self, address: int, data: bytes) -> None:
        """Write 64 bytes to a doorbell page as one write-combined burst. Posted, in order with `write32`."""

    def wmb(self) -> None:
        """What was written to host memory before is visible to the device before any later posted write."""

    def rmb(self) -> None:
        """What is read from host memory later is at least as new as what was read before."""

    def interrupt(self, vector: int) -> Future[None]:
        """A future that finishes when the vector's line is high, or now if it is."""

    def sleep(self, duration_ps: int) -> Future[None]:
        """A future that finishes after `duration_ps`."""

    def now(self) -> int:
        """Simulated time in picoseconds."""
