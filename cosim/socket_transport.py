"""A server's way to its clients by ordinary sockets: the kernel copies both ways."""

from __future__ import annotations

from typing import Any, Protocol


class ConnectedSocket(Protocol):
    """A connected socket: `host_driver.kernel_sockets.Socket`, or `host_driver.san.sockets.SanSocket`."""

    async def read(self, max_bytes: int) -> bytes: ...

    async def write(self, data: bytes | bytearray | memoryview) -> None: ...

    async def shutdown(self) -> None: ...

    async def close(self) -> None: ...


class Sockets(Protocol):
    """The sockets of a process."""

    async def accept(self, listening: Any) -> ConnectedSocket: ...


class SocketTransport:
    """Implements `cosim.server.Transport` and `cosim.file_server.FileTransport`. A response is put together in memory
    of the process, and the kernel, or the sockets' library, copies it."""

    def __init__(self, sockets: Sockets, listening: Any) -> None:
        self._sockets = sockets
        self._listening = listening

    async def accept(self) -> SocketConnection:
        """The next client."""
        return SocketConnection(await self._sockets.accept(self._listening))

    async def exit(self) -> None:
        """Nothing is held."""


class SocketConnection:
    """Implements `cosim.file_server.FileConnection`."""

    def __init__(self, socket: ConnectedSocket) -> None:
        self._socket = socket
        self._response = memoryview(b"")

    async def receive(self, max_bytes: int) -> bytes:
        """The next bytes, `max_bytes` at most; b"" when the client will send no more. Raises NetworkError."""
        return await self._socket.read(max_bytes)

    async def buffer(self, length: int) -> memoryview:
        """Memory of the process, of `length` bytes."""
        self._response = memoryview(bytearray(length))
        return self._response

    async def send(self) -> None:
        """Return when all of the last `buffer` is with the kernel. Raises NetworkError."""
        await self._socket.write(self._response)

    async def shutdown(self) -> None:
        """End this side when all is sent."""
        await self._socket.shutdown()

    async def close(self) -> None:
        """End the connection when all is sent."""
        await self._socket.close()
