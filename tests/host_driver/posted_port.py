"""A Port as unkind as a bus may be: host writes reach the device only after a barrier, registers only after a while.

A driver that misses a `wmb`, or looks at an interrupt line before its write can have lowered it, fails over this port.
"""

from __future__ import annotations

from cosim.engines.model import ModelPort
from cosim.mac import Mac
from cosim.memory import DEFAULT_BASE, HostMemory
from host_driver.runtime import Future, Kernel
from nic_model.contract import NicConfig

POSTED_PS = 300_000
"""Time that a posted write is on its way: 300 ns."""


class PostedMemory(HostMemory):
    """Host memory with write buffers that only `publish` drains. What the device writes, both see at once."""

    def __init__(self, size_bytes: int, base: int = DEFAULT_BASE) -> None:
        super().__init__(size_bytes, base)
        self._seen_by_device = bytearray(size_bytes)

    @property
    def device_buffer(self) -> bytearray:
        return self._seen_by_device

    def publish(self) -> None:
        """The device sees host memory as it stands."""
        self._seen_by_device[:] = self.view(self.base, self.size_bytes)

    def read(self, address: int, length: int) -> bytes | None:
        if not self.contains(address, length):
            return None
        start = address - self.base
        return bytes(self._seen_by_device[start : start + length])

    def write(self, address: int, data: bytes) -> bool:
        if not super().write(address, data):
            return False
        start = address - self.base
        self._seen_by_device[start : start + len(data)] = data
        return True


class PostedPort(ModelPort):
    """A model port over posted memory, whose registers are `POSTED_PS` away. Writes and reads keep their order."""

    def __init__(self, config: NicConfig, kernel: Kernel, memory: PostedMemory, mac: Mac) -> None:
        super().__init__(config, kernel, memory, mac)
        self._posted = memory

    def wmb(self) -> None:
        self._posted.publish()

    def write32(self, address: int, value: int) -> None:
        write = super().write32
        self.kernel.call_at(self.kernel.now + POSTED_PS, lambda: write(address, value))

    def write_block(self, address: int, data: bytes) -> None:
        write, block = super().write_block, bytes(data)
        self.kernel.call_at(self.kernel.now + POSTED_PS, lambda: write(address, block))

    def read32(self, address: int) -> Future[int]:
        read, future = super().read32, Future[int](f"read of register {address:#x}")
        self.kernel.call_at(self.kernel.now + POSTED_PS, lambda: read(address).add_callback(
            lambda answered: future.set_result(answered.result())))
        return future
