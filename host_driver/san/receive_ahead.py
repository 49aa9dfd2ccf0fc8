"""Eager Receive at a TCP server node: bytes are received ahead of the host, up to a limit, and kept at the node.

A thread of its own asks by a `poll` call whether there is anything before it receives, and goes on at the rate at which
the host takes what is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from host_driver.account import Account
from host_driver.errors import NetworkError
from host_driver.host_tcp import HostTcpConnection
from host_driver.memnet.channels import ChannelRange
from host_driver.memnet.provider import Transfer
from host_driver.san.socket_providers import is_readable, wait_until_readable
from host_driver.waiting import WaitQueue

if TYPE_CHECKING:
    from host_driver.san.node import TcpServerNode


class ReceiveAhead:
    """Of one connection. `buffer(offset, length)` gives ranges of `limit_bytes` of node memory, used as a ring."""

    def __init__(self, node: TcpServerNode, connection: HostTcpConnection,
                 buffer: Callable[[int, int], ChannelRange], limit_bytes: int, account: Account) -> None:
        self.connection = connection
        self._node = node
        self._buffer = buffer
        self._limit_bytes = limit_bytes
        self._account = account
        self._received_bytes = 0
        self._taken_bytes = 0
        self._freed_bytes = 0
        self._error: NetworkError | None = None
        self._has_ended = False
        self._news = WaitQueue(node.provider.charge_waking, f"bytes received ahead on {connection!r}")
        self._room = WaitQueue(node.provider.charge_waking, f"room to receive ahead on {connection!r}")
        self._task = node.port.kernel.spawn(self._run(), f"receiving ahead on {connection!r}")

    async def wait(self, account: Account) -> None:
        """Until there is something, or there will be nothing."""
        await self._news.sleep(lambda: self._received_bytes > self._taken_bytes or self._has_ended, account)

    def take(self, most_bytes: int) -> tuple[int, int]:
        """Offset and length of the next bytes in one piece; 0 bytes at the end. Raises what the connection failed
        with."""
        available = self._received_bytes - self._taken_bytes
        if not available and self._error is not None:
            raise self._error
        offset = self._taken_bytes % self._limit_bytes
        length = min(available, self._limit_bytes - offset, most_bytes)
        self._taken_bytes += length
        return offset, length

    def give_back(self, length_bytes: int) -> None:
        """The oldest bytes that were taken may be overwritten."""
        self._freed_bytes += length_bytes
        self._room.wake()

    def close(self) -> None:
        """Receive no more."""
        self._has_ended = True
        self._task.cancel()
        self._news.wake()

    async def _run(self) -> None:
        counters = self._node.server.counters
        while not self._has_ended:
            if self._received_bytes - self._freed_bytes >= self._limit_bytes:
                counters.receive_ahead_stops += 1
                await self._room.sleep(lambda: self._received_bytes - self._freed_bytes < self._limit_bytes,
                                       self._account)
            if not await is_readable(self.connection, self._account):
                await wait_until_readable(self.connection, self._account)
            try:
                await self._receive()
            except NetworkError as error:
                self._end(error)

    async def _receive(self) -> None:
        offset = self._received_bytes % self._limit_bytes
        room = self._limit_bytes - (self._received_bytes - self._freed_bytes)
        part = self._buffer(offset, min(room, self._limit_bytes - offset))

        def done(moved_bytes: int, error: NetworkError | None) -> None:
            if error is not None or not moved_bytes:
                self._end(error)
                return
            self._received_bytes += moved_bytes
            self._node.server.counters.received_ahead_bytes += moved_bytes
            self._news.wake()

        await self._node.provider.receive(self.connection, Transfer([part], done), self._account)

    def _end(self, error: NetworkError | None) -> None:
        self._has_ended, self._error = True, error
        self._news.wake()
