"""The control port's tables: connections by their 4-tuple, and local ports that somebody listens on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from nic_model.contract.control import FLOW_PLACES
from nic_model.contract.steering import FLOW_TABLES, RULES_PER_BUCKET, flow_rule_places


class FlowKey(NamedTuple):
    """What tells a connection from all others, seen from here. Addresses have 4 or 16 bytes."""

    remote_address: bytes
    local_address: bytes
    remote_port: int
    local_port: int

    def hashed(self) -> bytes:
        """The bytes that the receive hash covers: of a segment that arrives."""
        return (self.remote_address + self.local_address + self.remote_port.to_bytes(2, "big")
                + self.local_port.to_bytes(2, "big"))


@dataclass(slots=True)
class Flow:
    """An entry of the flow table: what FLOW_ADD said."""

    number: int
    generation: int
    key: FlowKey
    channel: int
    header: dict[str, int]
    """Fields of FLOW that stand in its second unit, and `vlan`."""


class FlowTable:
    """Connections in places of two tables, as `contract.steering.flow_rule_places` says: an exact match.

    `hash_of` is the receive hash of a key's bytes.
    """

    def __init__(self, flows: int, hash_of: Callable[[bytes], int]) -> None:
        self._places = FLOW_PLACES * flows
        self._hash_of = hash_of
        self._flows: dict[int, Flow] = {}
        self._by_key: dict[FlowKey, Flow] = {}
        self._place_of: dict[int, int] = {}
        self._taken: set[int] = set()

    def __len__(self) -> int:
        return len(self._flows)

    def add(self, flow: Flow) -> bool:
        """Put a flow in, whose number and key are not there; False when its two buckets are full."""
        places = flow_rule_places(self._hash_of(flow.key.hashed()), self._places)
        buckets = [places[RULES_PER_BUCKET * n : RULES_PER_BUCKET * (n + 1)] for n in range(FLOW_TABLES)]
        free = [[place for place in bucket if place not in self._taken] for bucket in buckets]
        chosen = max(free, key=len)  # the first of the longest
        if not chosen:
            return False
        self._taken.add(chosen[0])
        self._place_of[flow.number] = chosen[0]
        self._flows[flow.number] = self._by_key[flow.key] = flow
        return True

    def remove(self, flow: Flow) -> None:
        """Take a flow out that is there."""
        self._taken.discard(self._place_of.pop(flow.number))
        del self._flows[flow.number], self._by_key[flow.key]

    def named(self, number: int) -> Flow | None:
        """The flow of a number."""
        return self._flows.get(number)

    def find(self, key: FlowKey) -> Flow | None:
        """The flow of a 4-tuple."""
        return self._by_key.get(key)


class Listener(NamedTuple):
    """What LISTEN_ADD said. `address` is None for any address of that version of IP."""

    ipv6: bool
    address: bytes | None
    port: int


class ListenerTable:
    """Listeners by number; the most exact, and of those the lowest number, gets a segment."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._listeners: dict[int, Listener] = {}

    def __len__(self) -> int:
        return len(self._listeners)

    @property
    def is_full(self) -> bool:
        """Whether no further listener finds a place."""
        return len(self._listeners) >= self._places

    def has(self, number: int) -> bool:
        """Whether this number is taken."""
        return number in self._listeners

    def add(self, number: int, listener: Listener) -> None:
        """Put a listener in, whose number is free."""
        self._listeners[number] = listener

    def remove(self, number: int) -> None:
        """Take one out that is there."""
        del self._listeners[number]

    def find(self, key: FlowKey) -> int | None:
        """The listener that a segment with this key is for."""
        ipv6 = len(key.local_address) == 16
        for address in (key.local_address, None):
            wanted = Listener(ipv6, address, key.local_port)
            found = [number for number, listener in self._listeners.items() if listener == wanted]
            if found:
                return min(found)
        return None
