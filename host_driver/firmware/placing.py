"""Where received bytes go: into receives that were posted, or into the connection's eager ring.

A byte's place follows from its position in the stream alone, so that data out of order are placed as they come. Posted
receives take the positions one behind the other. The place of one is fixed when that of the one before it cannot change
any more: since a receive may complete short, only receives up to the first that may are fixed, and all other bytes go
to the ring, at their position modulo its size. Bytes of a receive's range that were in the ring when its place was
fixed are its *eager* part: the host copies them.

A window is promised for what has a place that cannot be withdrawn: the ring behind what the host has read of it, and
fixed receives that complete only when full (`contract.control.RULES`, 6).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from host_driver.firmware.references import HeldPayload
from host_driver.tcp.buffers import Buffer, ReceiveBuffer

Place = Callable[[HeldPayload, int, int], None]
"""`place(part, key, offset)`: have these bytes written there."""


class Ring(NamedTuple):
    """An eager ring in registered memory; of 0 bytes: there is none."""

    key: int
    offset: int
    length_bytes: int


NO_RING = Ring(0, 0, 0)


class Received(NamedTuple):
    """How a receive ended."""

    length_bytes: int
    eager_bytes: int
    """Of these, the first, which are in the eager ring,"""
    eager_position: int
    """from this place in it on."""


class PostedReceive:
    """A receive: memory, and what to call when it is over."""

    __slots__ = ("done", "eager_until", "end", "key", "length_bytes", "offset", "start", "wait_all")

    def __init__(self, key: int, offset: int, length_bytes: int, *, wait_all: bool,
                 done: Callable[[Received], None]) -> None:
        self.key = key
        self.offset = offset
        self.length_bytes = length_bytes
        self.wait_all = wait_all
        self.done = done
        self.start = self.end = self.eager_until = 0
        """Positions, once fixed; `eager_until`: behind the part that is in the ring."""


class PlacingBuffer(ReceiveBuffer):
    """What has arrived of a stream whose bytes are in host memory. TCP uses it as any `ReceiveBuffer`."""

    __slots__ = ("_base", "_consumed", "_delivered", "_is_discarding", "_late_ends", "_place", "_posted", "_ring",
                 "_ring_high", "_started", "_unread", "fixed")

    def __init__(self, ring: Ring, place: Place, ring_bytes: int) -> None:
        """`ring_bytes`: size of the ring, which may come later (`set_ring`)."""
        super().__init__(0, ring_bytes)
        self._ring = ring
        self._place = place
        self._started = False
        self._base = 0  # position of the stream's first byte
        self._delivered = 0  # behind the last receive that is over
        self._late_ends: list[int] = []
        self.fixed: deque[PostedReceive] = deque()
        """Receives whose place is fixed, and"""
        self._posted: deque[PostedReceive] = deque()  # those behind them
        self._ring_high = 0  # behind the last byte that ever went to the ring
        self._unread: deque[tuple[int, int]] = deque()  # of the ring, delivered and not read by the host
        self._consumed = 0
        self._is_discarding = False

    def set_ring(self, ring: Ring) -> None:
        """Have the ring that was spoken of, before the first byte comes."""
        self._ring = ring

    # What the sockets call -------------------------------------------------------------------------------------------

    def post(self, receive: PostedReceive) -> None:
        """Take a receive, behind those taken before; `settle` may end it at once. Without a ring it completes only when
        full."""
        if not self._ring.length_bytes:
            receive.wait_all = True  # or no window could be promised for it
        self._posted.append(receive)

    def consume(self, total_bytes: int) -> None:
        """The host has read so many bytes of the ring since the beginning, modulo 2^32."""
        news = total_bytes - self._consumed & 0xFFFF_FFFF
        known = sum(end - start for start, end in self._unread)
        if news > known:
            return  # an older count that was overtaken, or one that cannot be
        self._consumed = total_bytes & 0xFFFF_FFFF
        while news:
            start, end = self._unread.popleft()
            taken = min(news, end - start)
            news -= taken
            if start + taken < end:
                self._unread.appendleft((start + taken, end))

    def discard(self) -> None:
        """Nobody will read any more: what comes is forgotten."""
        self._is_discarding = True
        self._delivered = self.next
        self._posted.clear()
        self.fixed.clear()

    @property
    def is_discarding(self) -> bool:
        """Whether nobody reads any more."""
        return self._is_discarding

    def settle(self, *, is_at_end: bool) -> None:
        """End receives that are over, in order; at the stream's end all are, without bytes those behind the last."""
        self._begin()
        while True:
            self._fix()
            if not self.fixed:
                return
            first = self.fixed[0]
            until = min(self.next, first.end)
            if until < first.end and not is_at_end:
                late_inside = bool(self._late_starts) and self._late_starts[0] < first.end
                if first.wait_all or until == first.start or late_inside:
                    return
            self._end(self.fixed.popleft(), until)

    def take_all(self) -> list[PostedReceive]:
        """All receives that are not over, which will not be."""
        receives = [*self.fixed, *self._posted]
        self.fixed.clear()
        self._posted.clear()
        return receives

    # What TCP asks ---------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes behind `next` that have a place that cannot be withdrawn."""
        if self._is_discarding:
            return max(self._ring.length_bytes, 1)
        self._begin()
        edge = (self._unread[0][0] if self._unread else self._delivered) + self._ring.length_bytes
        for receive in self.fixed:
            if not receive.wait_all:
                break
            edge = max(edge, receive.end)
        return max(edge - self.next, 0)

    def waits_beyond(self, position: int) -> bool:
        """Whether a receive that completes only when full needs bytes behind `position`."""
        return bool(self.fixed) and self.fixed[0].wait_all and position < self.fixed[0].end

    @property
    def has_gap(self) -> bool:
        """Whether bytes wait for earlier ones."""
        return bool(self._late_starts)

    def insert(self, position: int, data: Buffer) -> None:
        """Place what is new of a payload at `position`, within the window."""
        payload: HeldPayload = data  # type: ignore[assignment]  # what TCP passes on is what it was given
        self._begin()
        end = position + len(payload)
        for start, stop in self._news(position, end):
            if not self._is_discarding:
                self._write(payload, position, start, stop)
            self._merge(start, stop)
        if self._late_starts and self._late_starts[0] <= self.next:
            self.next = max(self.next, self._late_ends[0])
            del self._late_starts[0], self._late_ends[0]
        if self._is_discarding:
            self._delivered = self.next
        self.available = self.next - self._delivered

    def read(self, max_bytes: int) -> bytes:
        """There are no bytes here. Raises TypeError."""
        raise TypeError("received bytes lie in host memory")

    # How -------------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._started and self.next:
            self._started = True
            self._base = self._delivered = self._ring_high = self.next

    def _fix(self) -> None:
        """Give receives their places as far as these cannot change any more."""
        while self._posted and (not self.fixed or self.fixed[-1].wait_all):
            receive = self._posted.popleft()
            receive.start = self.fixed[-1].end if self.fixed else self._delivered
            receive.end = receive.start + receive.length_bytes
            receive.eager_until = min(max(self._ring_high, receive.start), receive.end)
            self.fixed.append(receive)

    def _end(self, receive: PostedReceive, until: int) -> None:
        until = max(until, receive.start)
        eager_end = max(min(until, receive.eager_until), receive.start)
        if eager_end > receive.start:
            self._unread.append((receive.start, eager_end))
        self._delivered = until
        self.available = self.next - self._delivered
        ring_bytes = self._ring.length_bytes
        receive.done(Received(until - receive.start, eager_end - receive.start,
                              (receive.start - self._base) % ring_bytes if ring_bytes else 0))

    def _news(self, position: int, end: int) -> list[tuple[int, int]]:
        """The parts of [position, end) that have not arrived yet."""
        news = []
        at = max(position, self.next)
        index = max(bisect_right(self._late_starts, at) - 1, 0)
        for start, stop in zip(self._late_starts[index:], self._late_ends[index:], strict=True):
            if start >= end:
                break
            if start > at:
                news.append((at, start))
            at = max(at, stop)
        if at < end:
            news.append((at, end))
        return news

    def _write(self, payload: HeldPayload, position: int, start: int, stop: int) -> None:
        while start < stop:
            key, offset, until = self._place_of(start)
            until = min(until, stop)
            self._place(payload[start - position : until - position], key, offset)
            start = until

    def _place_of(self, position: int) -> tuple[int, int, int]:
        """Key and offset of a position, and where the next place begins that does not follow it in memory."""
        limit = 1 << 100
        for receive in self.fixed:
            if receive.eager_until <= position < receive.end:
                return receive.key, receive.offset + position - receive.start, receive.end
            if position < receive.eager_until:
                limit = receive.eager_until
                break
        ring = self._ring
        at = (position - self._base) % ring.length_bytes
        until = min(position + ring.length_bytes - at, limit)
        self._ring_high = max(self._ring_high, position + 1)
        return ring.key, ring.offset + at, until

    def _merge(self, start: int, stop: int) -> None:
        """Note that [start, stop), which is new, has arrived."""
        if self._place_is_ring(stop - 1):
            self._ring_high = max(self._ring_high, stop)
        if start <= self.next:
            self.next = max(self.next, stop)
            return
        index = bisect_right(self._late_starts, start)
        starts, ends = self._late_starts, self._late_ends
        starts.insert(index, start)
        ends.insert(index, stop)
        if index + 1 < len(starts) and starts[index + 1] == ends[index]:
            ends[index] = ends.pop(index + 1)
            del starts[index + 1]
        if index and ends[index - 1] == starts[index]:
            ends[index - 1] = ends.pop(index)
            del starts[index]

    def _place_is_ring(self, position: int) -> bool:
        return not any(receive.eager_until <= position < receive.end for receive in self.fixed)
