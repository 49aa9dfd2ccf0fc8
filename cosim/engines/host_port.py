"""What all Ports have in common: barriers, interrupts that tasks wait for, and time."""

from __future__ import annotations

from cosim.memory import HostMemory
from host_driver.runtime import Future, Kernel
from nic_model.contract import DOORBELL_BASE

BLOCK_BYTES = 64
"""Size of a write-combined block."""


class HostPort:
    """Part of `host_driver.port.Port`. A port that derives from it says by `_is_high` which interrupt lines are high,
    and calls `_wake_waiters` when one may have risen."""

    def __init__(self, kernel: Kernel, memory: HostMemory) -> None:
        self.kernel = kernel
        self.memory = memory
        self._waiters: dict[int, list[Future[None]]] = {}

    def wmb(self) -> None:
        """Nothing to do: the device sees host memory as it stands, and writes to it are in program order."""

    def rmb(self) -> None:
        """Nothing to do: host memory is seen as it stands."""

    def interrupt(self, vector: int) -> Future[None]:
        """A future that finishes when the vector's line is high, or now if it is."""
        future: Future[None] = Future(f"interrupt of vector {vector}")
        if self._is_high(vector):
            future.set_result(None)
        else:
            self._waiters.setdefault(vector, []).append(future)
        return future

    def sleep(self, duration_ps: int) -> Future[None]:
        """A future that finishes after `duration_ps`."""
        return self.kernel.sleep(duration_ps)

    def now(self) -> int:
        """Simulated time in picoseconds."""
        return self.kernel.now

    def take_bus(self, duration_ps: int) -> None:
        """A processor has the bus for so long: DMA waits. Here it takes no time that could be waited for."""

    def _is_high(self, vector: int) -> bool:
        """Whether a vector's line is high, as the host sees it."""
        raise NotImplementedError

    def _wake_waiters(self) -> None:
        for vector in sorted(self._waiters):
            if self._is_high(vector):
                for waiter in self._waiters.pop(vector):
                    waiter.set_result(None)

    def _waiting_tasks(self) -> list[str]:
        """What each task waits for, for a deadlock report."""
        return sorted(f"{task.name} waits for {task.waits_for}" for task in self.kernel.tasks)


def check_block(address: int, data: bytes) -> None:
    """Raises ValueError for a write-combined block that is not 64 aligned bytes on a doorbell page."""
    if len(data) != BLOCK_BYTES or address < DOORBELL_BASE or address % BLOCK_BYTES:
        raise ValueError(f"a block write is 64 aligned bytes on a doorbell page, not {len(data)} at {address:#x}")
