"""A port in state LISTEN: who is in handshake, and who waits to be accepted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from host_driver.tcp.connection import Connection

if TYPE_CHECKING:
    from host_driver.tcp.stack import Stack


class Listener:
    """A port in state LISTEN. `on_event`, if set, is called when `accept` has a connection to give."""

    __slots__ = ("_queue", "_stack", "backlog", "cookies_until", "half_open", "on_event", "port")

    def __init__(self, stack: Stack, port: int, backlog: int) -> None:
        self._stack = stack
        self.port = port
        self.backlog = backlog
        """Connections that may wait in handshake, and as many that may wait to be accepted."""
        self.half_open = 0
        """Connections in SYN-RECEIVED."""
        self.cookies_until = -1
        """Up to when acknowledgements may bring cookies back."""
        self.on_event: Callable[[Listener], None] | None = None
        self._queue: deque[Connection] = deque()

    @property
    def acceptable(self) -> bool:
        """Whether `accept` gives a connection now."""
        return bool(self._queue)

    @property
    def is_full(self) -> bool:
        """Whether a further SYN finds no room: it is answered with a cookie, or dropped."""
        return self.half_open >= self.backlog or self.is_accept_queue_full

    @property
    def is_accept_queue_full(self) -> bool:
        """Whether no further connection may become established until one is accepted."""
        return len(self._queue) >= self.backlog

    def accept(self) -> Connection | None:
        """The connection that completed its handshake first, or None. It may have been closed by its peer since."""
        return self._queue.popleft() if self._queue else None

    def close(self, now: int) -> None:
        """Stop listening; connections that nobody accepted are aborted."""
        self._stack.forget_listener(self, now)
        while self._queue:
            self._queue.popleft().abort(now)

    def add(self, connection: Connection) -> None:
        """A handshake is complete; called by the stack."""
        self._queue.append(connection)
        if self.on_event is not None:
            self.on_event(self)
