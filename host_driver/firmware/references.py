"""Bytes that are somewhere else: payload in the device's cells, chunks in the application's memory.

TCP asks of both how long they are, and for parts of them, and never for the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from host_driver.tcp.buffers import Chunk


class MemoryChunk(Chunk):
    """Bytes to send that lie in registered memory, which the device reads and the firmware does not."""

    __slots__ = ("_length",)

    def __init__(self, key: int, offset: int, length_bytes: int, release: Callable[[], None] | None = None) -> None:
        self.key = key
        self.offset = offset
        self.release = release
        self._length = length_bytes

    def __len__(self) -> int:
        return self._length

    def view(self) -> NoReturn:
        """There are no bytes here."""
        raise TypeError("the bytes of a chunk in the application's memory are not the firmware's to see")

    def piece(self) -> tuple[int, int, int]:
        """(key, offset, length)."""
        assert self.key is not None
        return self.key, self.offset, self._length

    def slice(self, start: int, stop: int) -> MemoryChunk:
        """The bytes from `start` to `stop`."""
        assert self.key is not None
        return MemoryChunk(self.key, self.offset + start, min(stop, self._length) - start)


class HeldPayload:
    """Payload of a segment whose frame is in the device's cells: `handle`, and which part of it."""

    __slots__ = ("handle", "length", "skip")

    def __init__(self, handle: int, skip: int, length_bytes: int) -> None:
        self.handle = handle
        self.skip = skip
        self.length = length_bytes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> HeldPayload:
        start, stop, step = part.indices(self.length)
        if step != 1:
            raise ValueError("a part of a payload is contiguous")
        return HeldPayload(self.handle, self.skip + start, max(stop - start, 0))
