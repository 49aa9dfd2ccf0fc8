"""Numbers and generations of flows: dense, so that whoever keeps their state may index by them."""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from host_driver.tcp.connection import Connection

_GENERATIONS = 1 << 8


class Flow:
    """A connection's entry in the device's flow table, from FLOW_ADD to FLOW_DEL's DONE."""

    __slots__ = ("connection", "generation", "has_unfenced_places", "held", "is_entered", "is_leaving", "number",
                 "reading")

    def __init__(self, number: int, generation: int, connection: Connection) -> None:
        self.number = number
        self.generation = generation
        self.connection = connection
        self.is_entered = False
        """FLOW_ADD's DONE has come."""
        self.is_leaving = False
        """No order names it any more, but the one that takes it out."""
        self.has_unfenced_places = False
        """There may be PLACEs on their way to memory that no EMIT has waited for."""
        self.held: deque[tuple[bool, bytes]] = deque()
        """Orders that wait for the entry; True: of the emit stream."""
        self.reading: deque[tuple[int, int]] = deque()
        """Positions of the stream, from and behind, that EMITs under way read."""

    def reads(self, start: int, end: int) -> bool:
        """Whether an EMIT that is under way reads one of these positions."""
        return any(first < end and start < behind for first, behind in self.reading)


class FlowNumbers:
    """Which numbers are free; those of each of `shards` processors are the ones that leave its remainder."""

    def __init__(self, flows: int, shards: int) -> None:
        self._shards = shards
        self._free = [list(range(shard, flows, shards)) for shard in range(shards)]
        self._generations = [0] * flows

    def take(self, shard: int, connection: Connection) -> Flow | None:
        """The lowest number that is free for a processor, or None."""
        free = self._free[shard % self._shards]
        if not free:
            return None
        number = heapq.heappop(free)
        return Flow(number, self._generations[number], connection)

    def give_back(self, flow: Flow) -> None:
        """A flow's entry is gone; the number's next holder has another generation."""
        self._generations[flow.number] = (flow.generation + 1) % _GENERATIONS
        heapq.heappush(self._free[flow.number % self._shards], flow.number)
