"""Who serves a connection: one of the processors that are dedicated to TCP, or those that run processes.

Connections are spread over dedicated processors by a hash, so that all packets of one are carried by the same. A policy
may keep a connection from them; it is asked once, at its SYN, and may answer otherwise for the next one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from zlib import crc32

from host_driver.tcp.connection import Connection
from nic_model.contract.protocols import TcpFlags
from nic_model.packets import PacketError, parse_frame

_SPARE_ENTRIES = 64
"""Decisions on connections that are gone are forgotten when there are so many more than connections."""


class Server(Protocol):
    """A processor that is dedicated to TCP, as a policy sees it."""

    @property
    def waiting(self) -> int:
        """Received frames and sends in its queues."""


class Policy(Protocol):
    """Decides on connections, one by one, while the run goes on."""

    def offloads(self, server: Server) -> bool:
        """Whether a new connection, which would be this server's, goes there; else the host keeps it."""


@dataclass(frozen=True)
class OffloadBelow:
    """Offload while less waits at the server than a mark: a queue that grows shows that it has more than it can do.

    Raises ValueError for a mark that nothing is below.
    """

    mark: int

    def __post_init__(self) -> None:
        if self.mark < 1:
            raise ValueError(f"the mark must be at least 1, not {self.mark}")

    def offloads(self, server: Server) -> bool:
        """Whether its queue is below the mark."""
        return server.waiting < self.mark


class Flow(NamedTuple):
    """A connection, seen from the host."""

    remote: bytes
    """The peer's IP address."""
    remote_port: int
    local_port: int


def flow_of(data: bytes) -> tuple[Flow, int] | None:
    """The connection that a received frame is of, and its TCP flags; None: it is no TCP segment."""
    try:
        frame = parse_frame(data)
    except PacketError:
        return None
    ip, tcp = frame.ipv4 or frame.ipv6, frame.tcp
    if ip is None or tcp is None:
        return None
    return Flow(ip.source, tcp.source_port, tcp.destination_port), tcp.flags


def flow_between(connection: Connection) -> Flow:
    """A connection of TCP."""
    return Flow(connection.remote.ip.packed, connection.remote.port, connection.local.port)


class Placement:
    """Which of several servers, by number, has a connection.

    Parameters: `servers`; `policy`, None: all connections are theirs; `is_open`, whether TCP knows a connection.
    Attribute: `placed`, connections so far by server; None: kept by the host.
    """

    def __init__(self, servers: Sequence[Server], policy: Policy | None, is_open: Callable[[Flow], bool]) -> None:
        self.placed: Counter[int | None] = Counter()
        self._servers = servers
        self._policy = policy
        self._is_open = is_open
        self._kept: dict[Flow, None] = {}
        self._most_kept = _SPARE_ENTRIES

    @property
    def servers(self) -> int:
        """How many there are."""
        return len(self._servers)

    def of_frame(self, data: bytes) -> int | None:
        """Of the connection that a received frame is of, or opens; what is no TCP segment is the first server's."""
        found = flow_of(data)
        if found is None:
            return 0
        flow, flags = found
        if flags & (TcpFlags.SYN | TcpFlags.ACK) == TcpFlags.SYN and not self._is_open(flow):
            self._decide(flow)
        return self.of_flow(flow)

    def of_flow(self, flow: Flow) -> int | None:
        """Of a connection."""
        return None if flow in self._kept else self._by_hash(flow)

    def _by_hash(self, flow: Flow) -> int:
        ports = flow.remote_port << 16 | flow.local_port
        return crc32(flow.remote + ports.to_bytes(4, "big")) % len(self._servers)

    def _decide(self, flow: Flow) -> None:
        """A connection is about to be opened."""
        self._kept.pop(flow, None)
        number = self._by_hash(flow)
        if self._policy is None or self._policy.offloads(self._servers[number]):
            self.placed[number] += 1
            return
        self.placed[None] += 1
        self._kept[flow] = None
        if len(self._kept) > self._most_kept:
            self._kept = {flow: None, **{kept: None for kept in self._kept if self._is_open(kept)}}
            self._most_kept = 2 * len(self._kept) + _SPARE_ENTRIES
