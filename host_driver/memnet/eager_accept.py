"""Eager Accept: the TCP server accepts connections before the application asks, up to a maximum."""

from __future__ import annotations

from collections import deque
from typing import Any

from host_driver.account import Account
from host_driver.memnet.server import TcpServer
from host_driver.waiting import WaitQueue


class EagerAccept:
    """Accepts ahead on one listening port. `account` is that of the TCP server's thread that does it."""

    def __init__(self, server: TcpServer, listening: Any, limit: int, account: Account) -> None:
        if limit < 1:
            raise ValueError(f"accepting ahead needs a limit of at least 1 connection, not {limit}")
        self._server = server
        self._listening = listening
        self._limit = limit
        self._account = account
        self._ready: deque[Any] = deque()
        self._applications = WaitQueue(server.provider.charge_waking, f"a connection accepted ahead on {listening!r}")
        self._room = WaitQueue(server.provider.charge_waking, f"room to accept ahead on {listening!r}")
        self._task = server.provider.kernel.spawn(self._accept(), f"accepting ahead on {listening!r}")

    async def take(self, account: Account) -> Any:
        """The connection that was accepted first."""
        if self._ready:
            self._server.counters.accepts_at_once += 1
        await self._applications.sleep(lambda: bool(self._ready), account)
        connection = self._ready.popleft()
        self._room.wake()
        return connection

    async def close(self) -> None:
        """Stop; connections that no application took are aborted."""
        self._task.cancel()
        while self._ready:
            await self._server.provider.abort(self._ready.popleft(), self._account)

    async def _accept(self) -> None:
        server = self._server
        while True:
            if len(self._ready) >= self._limit:
                server.counters.accept_ahead_stops += 1
                await self._room.sleep(lambda: len(self._ready) < self._limit, self._account)
            self._ready.append(await server.provider.accept(self._listening, self._account))
            server.counters.accepted_ahead += 1
            self._applications.wake(only_one=True)
