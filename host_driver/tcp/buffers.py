"""Storage of a connection: chunks waiting for acknowledgement, bytes waiting for the application.

Positions are unwrapped sequence numbers (`nic_model.seqnum`): plain integers that only grow. Sending copies
nothing: chunks are sliced, never joined.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable

Buffer = bytes | bytearray | memoryview


class Chunk:
    """Bytes to send: a view of them, and where they lie in registered memory if they do.

    `release` is called once, when TCP will not send the bytes again: all are acknowledged, or the connection is gone.
    A segment that was handed out earlier may still be read by a device at that time; whoever took it keeps the memory
    alive until then.
    """

    __slots__ = ("_view", "key", "offset", "release")

    def __init__(self, data: Buffer, *, key: int | None = None, offset: int = 0,
                 release: Callable[[], None] | None = None) -> None:
        self._view = memoryview(data)
        self.key = key
        """Memory key of the host memory that `data` is a view of; None for bytes that no device can reach."""
        self.offset = offset
        """Offset of the first byte inside the key's memory."""
        self.release = release

    def __len__(self) -> int:
        return len(self._view)

    def view(self) -> memoryview:
        """The bytes, not copied."""
        return self._view

    def piece(self) -> tuple[int, int, int]:
        """(key, offset, length) for a descriptor. Raises ValueError for bytes that are not in registered memory."""
        if self.key is None:
            raise ValueError("the chunk lies in no registered memory")
        return self.key, self.offset, len(self._view)

    def slice(self, start: int, stop: int) -> Chunk:
        """The bytes from `start` to `stop` of the same memory, without `release`."""
        part = Chunk.__new__(Chunk)
        part._view = self._view[start:stop]
        part.key = self.key
        part.offset = self.offset + start
        part.release = None
        return part


class SendBuffer:
    """The part of the send stream that is queued and not yet acknowledged."""

    __slots__ = ("_chunks", "_starts", "end", "start")

    def __init__(self, position: int) -> None:
        self.start = position
        """Position of the first byte that is not acknowledged."""
        self.end = position
        """Position behind the last queued byte."""
        self._starts: list[int] = []
        self._chunks: list[Chunk] = []

    def append(self, chunk: Chunk) -> None:
        """Queue a chunk that is not empty."""
        self._starts.append(self.end)
        self._chunks.append(chunk)
        self.end += len(chunk)

    def pieces(self, position: int, length: int) -> list[Chunk]:
        """Slices that make up `length` bytes from `position`, all of which must be queued."""
        stop = position + length
        if not self.start <= position <= stop <= self.end:
            raise ValueError(f"[{position}, {stop}) is not within [{self.start}, {self.end})")
        pieces = []
        index = bisect_right(self._starts, position) - 1
        while position < stop:
            start, chunk = self._starts[index], self._chunks[index]
            until = min(stop, start + len(chunk))
            pieces.append(chunk.slice(position - start, until - start))
            position = until
            index += 1
        return pieces

    def acknowledge(self, position: int) -> None:
        """Forget all before `position` and release the chunks that lie there whole."""
        self.start = position
        done = 0
        for start, chunk in zip(self._starts, self._chunks, strict=True):
            if start + len(chunk) > position:
                break
            done += 1
        self._drop(done)

    def clear(self) -> None:
        """Forget everything and release all chunks."""
        self.start = self.end
        self._drop(len(self._chunks))

    def _drop(self, count: int) -> None:
        if not count:
            return
        dropped = self._chunks[:count]
        del self._starts[:count], self._chunks[:count]
        for chunk in dropped:
            if chunk.release is not None:
                chunk.release()


class ReceiveBuffer:
    """Bytes that arrived: in order and ready to be read, or ahead of a gap."""

    __slots__ = ("_late", "_late_starts", "_ready", "available", "capacity", "next")

    def __init__(self, position: int, capacity: int) -> None:
        self.next = position
        """Position of the first byte that has not arrived."""
        self.capacity = capacity
        self.available = 0
        """Bytes that may be read."""
        self._ready: deque[bytes] = deque()
        self._late_starts: list[int] = []  # ascending; the pieces in _late do not overlap
        self._late: list[bytes] = []

    @property
    def room(self) -> int:
        """Bytes behind `next` that may be promised to the peer."""
        return self.capacity - self.available

    def waits_beyond(self, position: int) -> bool:
        """Whether room grows no further before bytes behind `position` have come: then any room must be told of."""
        return False

    @property
    def has_gap(self) -> bool:
        """Whether bytes wait for earlier ones."""
        return bool(self._late)

    def insert(self, position: int, data: Buffer) -> None:
        """Store (copy) what is new of the bytes at `position`."""
        if position > self.next:
            self._insert_late(position, bytes(data))
            return
        skip = self.next - position
        if skip < len(data):
            self._append(bytes(data[skip:] if skip else data))
        while self._late and self._late_starts[0] <= self.next:
            skip = self.next - self._late_starts.pop(0)
            piece = self._late.pop(0)
            if skip < len(piece):
                self._append(piece[skip:])

    def read(self, max_bytes: int) -> bytes:
        """Take up to `max_bytes` from the front."""
        ready = self._ready
        if ready and len(ready[0]) <= max_bytes and (len(ready) == 1 or len(ready[0]) == max_bytes):
            data = ready.popleft()
        else:
            parts = []
            left = max_bytes
            while ready and left > 0:
                part = ready.popleft()
                if len(part) > left:
                    ready.appendleft(part[left:])
                    part = part[:left]
                parts.append(part)
                left -= len(part)
            data = b"".join(parts)
        self.available -= len(data)
        return data

    def _append(self, data: bytes) -> None:
        self._ready.append(data)
        self.available += len(data)
        self.next += len(data)

    def _insert_late(self, position: int, data: bytes) -> None:
        starts, late = self._late_starts, self._late
        end = position + len(data)
        index = bisect_right(starts, position)
        if index:
            covered = starts[index - 1] + len(late[index - 1])
            if covered > position:
                data, position = data[covered - position :], covered
        while index < len(starts) and starts[index] < end:
            if starts[index] + len(late[index]) > end:
                data = data[: starts[index] - position]
                break
            del starts[index], late[index]  # the new bytes contain it
        if data:
            starts.insert(index, position)
            late.insert(index, data)
