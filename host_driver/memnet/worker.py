"""The TCP server's end of a channel: sends what the application puts into the send ring, receives ahead into the other.

A worker runs for each socket that uses its channel's rings: those of the sockets API, which copies, and those that
receive ahead (Eager Receive). Sends of registered memory do not pass here.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

from host_driver.account import Account
from host_driver.errors import CreditError, NetworkError
from host_driver.memnet.channels import Channel
from host_driver.memnet.credits import Word
from host_driver.memnet.provider import Direction, Transfer
from host_driver.memnet.server import TcpServer
from host_driver.runtime import Event


class Ended(IntEnum):
    """Values of `Word.ENDED`."""

    NOT = 0
    BY_PEER = 1
    BY_ERROR = 2


class Worker:
    """One channel's worker. `receive_limit_bytes`: most that is received ahead of the application.

    Attribute: `error`, why the connection failed.
    """

    def __init__(self, server: TcpServer, channel: Channel, connection: Any, account: Account,
                 receive_limit_bytes: int) -> None:
        self.error: NetworkError | None = None
        self._server = server
        self._channel = channel
        self._connection = connection
        self._account = account
        self._sends, self._receives = channel.server_rings(receive_limit_bytes)
        self._news = Event(f"work of {channel!r}")
        self._in_flight = 0
        self._is_receiving = False
        self._is_at_limit = False
        self._has_ended = False
        self._end: Direction | None = None
        self._on_closed: Callable[[], None] | None = None
        self._is_over = False
        self._has_left = False
        self._on_over: Callable[[], None] | None = None
        channel.on_server_news = self._news.set
        self._news.set()
        self._task = server.provider.kernel.spawn(self._serve(), f"TCP server's worker of {channel!r}")

    def end_sending(self) -> None:
        """Send no more, behind all that stands in the ring."""
        self._end = Direction.SEND
        self._news.set()

    def close(self, on_closed: Callable[[], None]) -> None:
        """Close the connection, behind all that stands in the ring; `on_closed` is called when that was done."""
        self._on_closed = on_closed
        self._news.set()

    def stop(self, on_over: Callable[[], None]) -> None:
        """The connection was closed or aborted; `on_over` is called when nothing uses the rings any more."""
        self._on_over = on_over
        self._is_over = True
        self._news.set()

    async def _serve(self) -> None:
        while not self._is_over:
            self._news.clear()
            try:
                await self._send_queued()
                await self._receive_ahead()
            except CreditError as error:
                self._server.counters.credit_errors += 1
                self._fail(error)
                await self._server.provider.abort(self._connection, self._account)
            except NetworkError as error:
                self._fail(error)
            if not self._is_over:
                await self._news.wait()
        self._channel.on_server_news = _ignore
        self._has_left = True
        self._look_whether_over()

    async def _send_queued(self) -> None:
        """Hand what stands in the send ring to the provider, and the end behind it."""
        provider, connection, account = self._server.provider, self._connection, self._account
        while self.error is None and not self._is_over:
            offset, length = self._sends.next(self._channel.settings.send_bytes)
            if not length:
                break
            self._sends.take(length)
            self._in_flight += 1
            transfer = Transfer([self._channel.send_range(offset, length)], self._sent(length))
            try:
                await provider.send(connection, transfer, account)
            except NetworkError:
                if not transfer.is_taken:
                    self._in_flight -= 1
                raise
        if self._on_closed is not None:
            on_closed, self._on_closed = self._on_closed, None
            await provider.close(connection, account)
            on_closed()
        elif self._end is not None:
            direction, self._end = self._end, None
            await provider.shutdown(connection, direction, account)

    def _sent(self, length_bytes: int) -> Callable[[int, NetworkError | None], None]:
        def done(_moved_bytes: int, error: NetworkError | None) -> None:
            self._in_flight -= 1
            if error is None:
                self._sends.give_back(length_bytes)
            else:
                self._fail(error)
            self._look_whether_over()
        return done

    async def _receive_ahead(self) -> None:
        """Ask for what fits into the receive ring, within the limit."""
        if self._is_receiving or self._has_ended or self.error is not None:
            return
        offset, length = self._receives.room(self._channel.settings.receive_bytes)
        if not length:
            if not self._is_at_limit:
                self._is_at_limit = True
                self._server.counters.receive_ahead_stops += 1
            return
        self._is_at_limit = False
        self._is_receiving = True
        self._in_flight += 1
        transfer = Transfer([self._channel.receive_range(offset, length)], self._received)
        try:
            await self._server.provider.receive(self._connection, transfer, self._account)
        except NetworkError:
            if not transfer.is_taken:
                self._in_flight -= 1
                self._is_receiving = False
            raise

    def _received(self, moved_bytes: int, error: NetworkError | None) -> None:
        self._in_flight -= 1
        self._is_receiving = False
        if error is not None:
            self._fail(error)
        elif moved_bytes:
            self._server.counters.received_ahead_bytes += moved_bytes
            self._receives.fill(moved_bytes)
            self._news.set()
        else:
            self._has_ended = True
            self._channel.write(Word.ENDED, Ended.BY_PEER)
        self._look_whether_over()

    def _fail(self, error: NetworkError) -> None:
        if self.error is None:
            self.error = error
            self._news.set()
            if not self._is_over:
                self._channel.write(Word.ENDED, Ended.BY_ERROR)

    def _look_whether_over(self) -> None:
        # Not while it is in a call: when that returns it would meet the channel's next user.
        if self._has_left and not self._in_flight and self._on_over is not None:
            on_over, self._on_over = self._on_over, None
            on_over()


def _ignore() -> None:
    """The worker has gone."""
