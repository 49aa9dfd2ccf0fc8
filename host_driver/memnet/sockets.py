"""What MemNet keeps for a socket, from `socket` to the end of its last job."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from host_driver.errors import BadSocket, SocketClosed
from host_driver.memnet.application_end import ApplicationEnd
from host_driver.memnet.channels import Channel
from host_driver.memnet.eager_accept import EagerAccept
from host_driver.memnet.options import Option, default_value
from host_driver.memnet.order import SendLine
from host_driver.memnet.worker import Worker

if TYPE_CHECKING:
    from host_driver.memnet.jobs import Job
    from host_driver.memnet.regions import Part


class SocketState(Enum):
    """What a socket is good for."""

    NEW = "new"
    LISTENING = "listening"
    CONNECTED = "connected"
    CLOSED = "closed"


class MemNetSocket:
    """A socket of one MemNet; the calls on it are MemNet's."""

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.state = SocketState.NEW
        self.options: dict[Option, Any] = {}
        """Those that were set."""
        self.bound_port: int | None = None
        self.listening: Any = None
        self.holders: set[object] = set()
        """Of a listening socket: processes that accept with it."""
        self.eager_accept: EagerAccept | None = None
        self.connection: Any = None
        self.channel: Channel | None = None
        self.worker: Worker | None = None
        self.end: ApplicationEnd | None = None
        self.is_stream = False
        """Its bytes pass through the rings both ways: it takes no jobs."""
        self.sends = SendLine()
        self.jobs: dict[Job, None] = {}
        """Those under way."""
        self.waiting_receives: list[tuple[Job, tuple[Part, ...]]] = []
        """Of a socket that receives ahead: jobs that found nothing there."""
        self.is_closed_below = False
        """The provider was told to close or abort the connection."""

    def __repr__(self) -> str:
        what = self.connection if self.connection is not None else self.listening
        if what is not None:
            return f"<MemNetSocket {what!r}>"
        return f"<MemNetSocket {self.state.value}{'' if self.bound_port is None else f' on port {self.bound_port}'}>"

    def option(self, option: Option) -> Any:
        """Its value."""
        return self.options.get(option, default_value(option))

    def check(self, owner: object, doing: str, *states: SocketState) -> None:
        """Raises BadSocket if it is another MemNet's, or in none of these states; SocketClosed if it is closed."""
        if self.owner is not owner:
            raise BadSocket(f"{doing}: {self!r} is another MemNet's")
        if self.state is SocketState.CLOSED and SocketState.CLOSED not in states:
            raise SocketClosed(f"{doing}: {self!r} is closed")
        if self.state not in states:
            raise BadSocket(f"{doing}: {self!r} is {self.state.value}, not {' or '.join(s.value for s in states)}")
