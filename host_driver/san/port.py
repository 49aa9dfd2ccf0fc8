"""What software sees of an adapter of a system area network that is like VIA.

Two adapters are connected VI to VI: a pair of work queues, one for sends and one for receives, whose descriptors
complete in completion queues. A send goes into the buffer of the receive that the peer posted first; an RDMA write goes
straight into the peer's registered memory, and with immediate data it takes a receive of the peer too, whose completion
tells of it. Delivery is reliable and in order; what cannot be delivered breaks the connection, and both ends see it.

Ref: Virtual Interface Architecture Specification 1.0 (1997), §2 and §3
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from host_driver.port import HostMemory
from host_driver.runtime import Future, Kernel


class Segment(NamedTuple):
    """Bytes of own registered memory."""

    handle: int
    """Of the registered range that they lie in."""
    address: int
    length_bytes: int


class Remote(NamedTuple):
    """A place in the peer's registered memory."""

    handle: int
    address: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Send:
    """A send descriptor: the bytes of `segments`, one behind the other."""

    segments: tuple[Segment, ...] = ()
    remote: Remote | None = None
    """An RDMA write to there; None: into the buffer of a receive."""
    immediate: int | None = None
    """32 bits for the completion of the peer's receive."""
    tag: Any = None
    """Comes back with the completion."""


class Receive(NamedTuple):
    """A receive descriptor."""

    segment: Segment
    tag: Any = None


class SanCompletion(NamedTuple):
    """A descriptor is done."""

    vi: int
    tag: Any
    is_send: bool
    length_bytes: int
    """Bytes that a receive's buffer was given."""
    immediate: int | None
    error: str | None
    """Why the connection broke; None: done as asked."""


class CompletionQueue(Protocol):
    """Completions of the work queues that are bound to it, in their order."""

    def __len__(self) -> int:
        """How many wait there."""

    def take(self) -> SanCompletion | None:
        """The oldest, or None."""

    def call_at_entry(self, callback: Callable[[], None]) -> None:
        """Call back once when there is an entry, now if there is one: the adapter's interrupt."""


class ConnectionRequest(Protocol):
    """A peer that wants a connection."""

    @property
    def data(self) -> bytes:
        """What it says of itself."""

    def accept(self, vi: int, data: bytes) -> None:
        """Connect it to an own VI; `data` for the peer."""

    def reject(self) -> None:
        """Refuse it."""


class SanPort(Protocol):
    """One adapter. Posts are doorbells: posted writes that return before the adapter acts."""

    @property
    def memory(self) -> HostMemory:
        """Memory of the node that it is in."""

    @property
    def kernel(self) -> Kernel:
        """The clock."""

    def register(self, address: int, length_bytes: int) -> int:
        """Let descriptors and peers use memory; its handle."""

    def deregister(self, handle: int) -> None:
        """Take it back. Raises KeyError for a handle that is none."""

    def create_queue(self, name: str) -> CompletionQueue:
        """A completion queue."""

    def create_vi(self, sends: CompletionQueue, receives: CompletionQueue) -> int:
        """A VI whose work queues complete in these."""

    def disconnect(self, vi: int) -> None:
        """Break the connection: what was posted at either end completes with an error."""

    def destroy_vi(self, vi: int) -> None:
        """Disconnect it, if need be, and forget it: nothing that was posted completes any more."""

    def listen(self, on_request: Callable[[ConnectionRequest], None]) -> None:
        """Hear of peers that want a connection."""

    def connect(self, vi: int, node: int, data: bytes) -> Future[bytes | None]:
        """Ask a node for a connection; what it answers, None if it refuses or nobody listens there."""

    def post_send(self, vi: int, send: Send) -> None:
        """Put a descriptor on a send queue."""

    def post_receive(self, vi: int, receive: Receive) -> None:
        """Put a descriptor on a receive queue."""
