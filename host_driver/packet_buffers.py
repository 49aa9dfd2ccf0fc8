"""Packet buffers: host memory of the driver's own, cut into equal parts that the device may read or write."""

from __future__ import annotations

from typing import NamedTuple

from host_driver.account import NullAccount
from host_driver.nic import MemoryKey, Nic
from host_driver.rings import Piece
from nic_model.contract import KeyRight

BUFFER_ALIGNMENT_BYTES = 4096


class PacketBuffer(NamedTuple):
    """One buffer: its number, its bytes, and what a descriptor calls it."""

    number: int
    view: memoryview
    piece: Piece

    def first(self, length_bytes: int) -> Piece:
        """The piece of its first bytes."""
        return self.piece._replace(length_bytes=length_bytes)


class PacketBuffers:
    """`count` buffers of `buffer_bytes` in one registered region. Attribute `free`: those that nobody has."""

    def __init__(self, nic: Nic, channel: int, count: int, buffer_bytes: int, rights: KeyRight) -> None:
        memory = nic.port.memory
        self.buffer_bytes = buffer_bytes
        self._nic = nic
        self._address = memory.allocate(count * buffer_bytes, BUFFER_ALIGNMENT_BYTES)
        self._key: MemoryKey = nic.register_memory(self._address, count * buffer_bytes, rights, channel, NullAccount())
        self.free = [
            PacketBuffer(n, memory.view(self._address + n * buffer_bytes, buffer_bytes),
                         Piece(self._key.value, n * buffer_bytes, buffer_bytes))
            for n in range(count - 1, -1, -1)
        ]

    async def release(self) -> None:
        """Take the memory back; the channel must not run any more."""
        await self._nic.deregister_memory(self._key)
        self.free.clear()
        self._nic.port.memory.free(self._address)
