"""Ordinary sockets: the kernel copies what is written, and what is read.

One `KernelSockets` for each process. Listening ports are shared: processes that were forked accept on the same one.
"""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Address, IPv6Address

from host_driver.account import Account
from host_driver.endpoint import Endpoint, Listening
from host_driver.errors import network_error
from host_driver.interface import NetworkInterface
from host_driver.tcp.buffers import Chunk


class Socket:
    """A connected socket of one process."""

    def __init__(self, endpoint: Endpoint, account: Account) -> None:
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
        await endpoint.sleep(lambda: connection.readable or endpoint.released, account)
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
        account, connection, interface = self._account, self._connection, self._endpoint.interface
        account.charge("syscall", "write")
        await account.settle()
        view = memoryview(data)
        while len(view):
            wanted = min(len(view), connection.mss)
            await self._endpoint.sleep(partial(self._has_space, wanted), account)
            piece = bytes(view[:wanted])
            account.charge("copy", "user_to_kernel_byte", wanted)
            interface.account.target = account
            try:
                connection.send(Chunk(piece))
            except OSError as error:
                raise network_error(connection.error, f"write on {connection!r}") from error
            view = view[wanted:]
            await interface.push(account)

    def _has_space(self, wanted_bytes: int) -> bool:
        """Whether the kernel takes so many bytes, or never will."""
        endpoint = self._endpoint
        return self._connection.send_space >= wanted_bytes or endpoint.closed_here or endpoint.ended

    async def shutdown(self) -> None:
        """Send what was written, then a FIN; reading goes on. Does not wait."""
        await self._endpoint.shutdown(self._account)

    async def close(self) -> None:
        """Send what was written, then a FIN. Does not wait. What the peer sends afterwards is answered with a reset."""
        await self._endpoint.close(self._account)


class KernelSockets:
    """The sockets of one process, whose work is charged to `account`."""

    def __init__(self, interface: NetworkInterface, account: Account) -> None:
        self._interface = interface
        self._account = account

    def listen(self, port: int, backlog: int = 128) -> Listening:
        """Listen on a port. Other processes may accept on it too. Raises ValueError if something already listens."""
        return Listening(self._interface, port, backlog)

    async def accept(self, listening: Listening) -> Socket:
        """Wait for the next connection."""
        return Socket(await listening.accept(self._account), self._account)

    async def connect(self, ip: IPv4Address | IPv6Address | str, port: int) -> Socket:
        """Connect and wait until it is done. Raises NetworkError."""
        return Socket(await Endpoint.connect(self._interface, ip, port, self._account), self._account)
