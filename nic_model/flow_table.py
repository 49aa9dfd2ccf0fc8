"""The control port's tables: connections by their 4-tuple, and local ports that somebody listens on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from nic_model.contract.control import FLOW_PLACES, LISTENERS_PER_BUCKET, listener_bucket
from nic_model.contract.flow_hash import flow_hash
from nic_model.contract.steering import FINGERPRINT_SHIFT, FLOW_TABLES, RULES_PER_BUCKET, flow_rule_places


class FlowKey(NamedTuple):
    """What tells a connection from all others, seen from here. Addresses have 4 or 16 bytes."""

    remote_address: bytes
    local_address: bytes
    remote_port: int
    local_port: int

    @property
    def hash(self) -> int:
        """Of a segment that arrives: `contract.flow_hash`."""
        addresses = self.remote_address + self.local_address
        words = [int.from_bytes(addresses[at : at + 4], "big") for at in range(0, len(addresses), 4)]
        return flow_hash([*words, self.remote_port << 16 | self.local_port])


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
    """Connections in places of two tables, as `contract.steering.flow_rule_places` says: an exact match. In a bucket no
    two have the same fingerprint."""

    def __init__(self, flows: int) -> None:
        self._places = FLOW_PLACES * flows
        self._flows: dict[int, Flow] = {}
        self._by_key: dict[FlowKey, Flow] = {}
        self._place_of: dict[int, int] = {}
        self._fingerprints: dict[int, int] = {}
        """By place."""

    def __len__(self) -> int:
        return len(self._flows)

    def add(self, flow: Flow) -> bool:
        """Put a flow in, whose number and key are not there: into the emptier of its buckets that has room, and not its
        fingerprint. False if neither has."""
        hash_value = flow.key.hash
        fingerprint = hash_value >> FINGERPRINT_SHIFT
        places = flow_rule_places(hash_value, self._places)
        free = []
        for table in range(FLOW_TABLES):
            bucket = places[RULES_PER_BUCKET * table : RULES_PER_BUCKET * (table + 1)]
            taken = {self._fingerprints[place] for place in bucket if place in self._fingerprints}
            free.append([] if fingerprint in taken else [p for p in bucket if p not in self._fingerprints])
        chosen = max(free, key=len)  # the first of the longest
        if not chosen:
            return False
        self._fingerprints[chosen[0]] = fingerprint
        self._place_of[flow.number] = chosen[0]
        self._flows[flow.number] = self._by_key[flow.key] = flow
        return True

    def clear(self) -> None:
        """Take all out."""
        for table in (self._flows, self._by_key, self._place_of, self._fingerprints):
            table.clear()

    def remove(self, flow: Flow) -> None:
        """Take a flow out that is there."""
        del self._fingerprints[self._place_of.pop(flow.number)]
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

    def clear(self) -> None:
        """Take all out."""
        self._listeners.clear()

    def has(self, number: int) -> bool:
        """Whether this number is taken."""
        return number in self._listeners

    def listens(self, listener: Listener) -> bool:
        """Whether somebody listens just there."""
        return listener in self._listeners.values()

    def add(self, number: int, listener: Listener) -> bool:
        """Put a listener in, whose number is free; False when its bucket is full."""
        bucket = listener_bucket(listener.port, self._places)
        if [listener_bucket(other.port, self._places) for other in self._listeners.values()].count(
                bucket) >= LISTENERS_PER_BUCKET:
            return False
        self._listeners[number] = listener
        return True

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
