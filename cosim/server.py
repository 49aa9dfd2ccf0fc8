"""The web server: processes that accept, read a request, work, send a response and close, over any transport."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cosim import http
from cosim.workload import Request
from host_driver.account import Account
from host_driver.errors import NetworkError

RECEIVE_BYTES = 4096
"""What a process asks for at once when it reads a request."""


class ServerConnection(Protocol):
    """A client's connection, as a server process uses it. Methods raise NetworkError when the client has gone."""

    async def receive(self, max_bytes: int) -> bytes:
        """The next bytes; b"" when the client will send no more."""

    async def buffer(self, length: int) -> memoryview:
        """Memory of the process, to put a response in; what was in it before has left."""

    async def send(self) -> None:
        """Send all of the last `buffer`."""

    async def close(self) -> None:
        """End the connection when all is sent."""


class Transport(Protocol):
    """How one server process talks to its clients."""

    async def accept(self) -> ServerConnection:
        """The next client."""

    async def exit(self) -> None:
        """Give everything back, of a process that was killed."""


def longest_response_bytes(requests: Sequence[Request]) -> int:
    """Bytes of the longest response, head included."""
    return max(len(http.format_response_head(r.method, r.status, r.size_bytes)) + r.body_bytes for r in requests)


class ServerProcess:
    """One process of a web server that has all its files in memory.

    Parameters: `transport`; `account`, which it charges for its own work and the file system's; `requests`, which say
    how each request is answered. Implements `cosim.pool.PooledProcess`.
    """

    def __init__(self, transport: Transport, account: Account, requests: Sequence[Request]) -> None:
        self._transport = transport
        self._account = account
        self._requests = requests
        self.is_idle = True

    async def run(self) -> None:
        """Serve for ever, one client at a time."""
        while True:
            self.is_idle = True
            connection = await self._transport.accept()
            self.is_idle = False
            self._account.charge("user", "connection")
            try:
                await self._serve(connection)
                await connection.close()
            except NetworkError:
                # The client has gone; it says so itself if it still wanted something.
                continue

    async def exit(self) -> None:
        """It was killed."""
        await self._transport.exit()

    async def _serve(self, connection: ServerConnection) -> None:
        """Read one request and send its response. Raises HttpError for what is no request of the workload."""
        head = b""
        while http.END_OF_HEAD not in head:
            data = await connection.receive(RECEIVE_BYTES)
            if not data:
                return
            head += data
        request = self._find(http.parse_request(head))
        self._account.charge("user", "request")
        response = http.format_response_head(request.method, request.status, request.size_bytes)
        buffer = await connection.buffer(len(response) + request.body_bytes)
        buffer[:len(response)] = response
        if request.body_bytes:
            self._account.charge("file_system", "open")
            self._account.charge("file_system", "read_byte", request.body_bytes)
            buffer[len(response):] = http.content(request.path, request.body_bytes)
        await self._account.settle()
        await connection.send()

    def _find(self, head: http.RequestHead) -> Request:
        number = head.headers.get(http.INDEX_HEADER.lower(), "")
        if not number.isdigit() or int(number) >= len(self._requests):
            raise http.HttpError(f"request for {head.path!r} has no number of the workload")
        request = self._requests[int(number)]
        if (head.method, head.path) != (request.method, request.path):
            raise http.HttpError(f"request {number} is {request.method} {request.path!r}, not "
                                 f"{head.method} {head.path!r}")
        return request
