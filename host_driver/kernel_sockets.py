"""Ordinary sockets: the kernel copies what is written, and what is read.

One `KernelSockets` for each process. Listening ports are shared: processes that were forked accept on the same one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from host_driver.account import Account
from host_driver.endpoint import Endpoint, Listening
from host_driver.errors import network_error
from host_driver.interface import NetworkInterface
from host_driver.softirq import Softirq, leave_job
from host_driver.tcp.buffers import Chunk


class Socket:
    """A connected socket of one process."""

    def __init__(self, endpoint: Endpoint, account: Account, server: Softirq | None = None) -> None:
        """`server`: the bottom half that sends what was copied; None: the process does."""
        self._server = server
        self._endpoint = endpoint
        self._connection = endpoint.connection
        self._account = account

    async def read(self, max_bytes: int) -> bytes:
        """Up to `max_bytes` as soon as there are any; b"" when the peer has closed, or `close` was called.

        Raises NetworkError.
        """
        account, connection, endpoint = self._account, self._connection, self._endpoint
        account.charge("syscall", "read")
        await account.settle()
        async with endpoint.lock.held(account) as held:
            await held.sleep(lambda: connection.readable or endpoint.released, endpoint.sleep)
            interface = endpoint.interface
            interface.account.target = account
            try:
                data = connection.recv(max_bytes)
            except OSError as error:
                raise network_error(error, f"read on {connection!r}") from error
            account.charge("copy", "kernel_to_user_byte", len(data))
            await interface.push(account)
        return data

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Return when all of `data` is copied into kernel buffers. Raises NetworkError.

        Copies and sends a segment at a time, as Linux does, so that the wire works while the processor copies.
        """
        self._account.charge("syscall", "write")
        await self._account.settle()
        endpoint, account, view = self._endpoint, self._account, memoryview(data)
        if self._server is not None:
            # The processor that it is left to has the connection to itself: nothing here touches it.
            await self._copy(view, self._leave, lambda until: endpoint.sleep(until, account))
            return
        async with endpoint.lock.held(account) as held:
            await self._copy(view, self._send, lambda until: held.sleep(until, endpoint.sleep))

    async def _copy(self, view: memoryview, give: Callable[[bytes], Awaitable[None]],
                    sleep: Callable[[Callable[[], bool]], Awaitable[None]]) -> None:
        """Copy piece by piece, and `give` each away; `sleep` until there is room for it."""
        while len(view):
            wanted = min(len(view), self._connection.mss)
            await sleep(partial(self._has_space, wanted))
            piece = bytes(view[:wanted])
            self._account.charge("copy", "user_to_kernel_byte", wanted)
            await give(piece)
            view = view[wanted:]

    async def _send(self, piece: bytes) -> None:
        """TCP takes a piece. Raises NetworkError."""
        account, connection, interface = self._account, self._connection, self._endpoint.interface
        interface.account.target = account
        try:
            connection.send(Chunk(piece))
        except OSError as error:
            raise network_error(connection.error, f"write on {connection!r}") from error
        await interface.push(account)

    async def _leave(self, piece: bytes) -> None:
        """Let a bottom half send what was copied. Raises NetworkError on a connection that takes nothing any more."""
        endpoint, connection, interface = self._endpoint, self._connection, self._endpoint.interface
        assert self._server is not None
        if endpoint.closed_here or endpoint.ended:
            raise network_error(connection.error, f"write on {connection!r}")

        async def job(account: Account) -> None:
            endpoint.left_bytes -= len(piece)
            interface.account.target = account
            # A connection that has ended meanwhile says so at the next call.
            with suppress(OSError):
                connection.send(Chunk(piece))
            await interface.push(account)

        def taken() -> None:
            endpoint.left_bytes += len(piece)

        await leave_job(self._server, job, self._account, taken)

    def _has_space(self, wanted_bytes: int) -> bool:
        """Whether the kernel takes so many bytes, or never will."""
        endpoint = self._endpoint
        return (self._connection.send_space - endpoint.left_bytes >= wanted_bytes or endpoint.closed_here
                or endpoint.ended)

    async def shutdown(self) -> None:
        """Send what was written, then a FIN; reading goes on. Does not wait."""
        if self._server is not None:
            await self._endpoint.end_behind(self._server, self._account, release=False)
        else:
            await self._endpoint.shutdown(self._account)

    async def close(self) -> None:
        """Send what was written, then a FIN. Does not wait. What the peer sends afterwards is answered with a reset."""
        if self._server is not None:
            await self._endpoint.end_behind(self._server, self._account, release=True)
        else:
            await self._endpoint.close(self._account)


class KernelSockets:
    """The sockets of one process, whose work is charged to `account`. `leaves_sends`: what was copied is sent by the
    processor that is dedicated to the connection, if there is one."""

    def __init__(self, interface: NetworkInterface, account: Account, *, leaves_sends: bool = False) -> None:
        self._leaves_sends = leaves_sends
        self._interface = interface
        self._account = account

    def listen(self, port: int, backlog: int = 128) -> Listening:
        """Listen on a port. Other processes may accept on it too. Raises ValueError if something already listens."""
        return Listening(self._interface, port, backlog)

    async def accept(self, listening: Listening) -> Socket:
        """Wait for the next connection."""
        return self._socket(await listening.accept(self._account))

    async def connect(self, ip: IPv4Address | IPv6Address | str, port: int) -> Socket:
        """Connect and wait until it is done. Raises NetworkError."""
        return self._socket(await Endpoint.connect(self._interface, ip, port, self._account))

    def _socket(self, endpoint: Endpoint) -> Socket:
        server = self._interface.server_of(endpoint.connection) if self._leaves_sends else None
        return Socket(endpoint, self._account, server)
