"""The simulated host as client: it fetches files from a real server, and compares each byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from cosim import http
from host_driver.errors import NetworkError
from host_driver.kernel_sockets import KernelSockets, Socket
from host_driver.runtime import Kernel

RECEIVE_BYTES = 1 << 16


class Fetched(msgspec.Struct, kw_only=True):
    """One file and what came of it."""

    path: str
    address: str
    """The server's."""
    status: int = 0
    body_bytes: int = 0
    """That came."""
    duration_ps: int = 0
    problem: str = ""
    """Empty: the file is whole."""


class FetchClient:
    """One process of the simulated host, with a connection for each file. Attribute: `fetched`."""

    def __init__(self, sockets: KernelSockets, kernel: Kernel, root: Path, changed: Callable[[], None]) -> None:
        self.fetched: list[Fetched] = []
        self._sockets = sockets
        self._kernel = kernel
        self._root = root
        self._changed = changed

    async def fetch(self, address: str, port: int, paths: Sequence[str]) -> None:
        """Fetch files below the root from a server; those that are not whole have a problem."""
        for path in paths:
            file = Fetched(path=path, address=address)
            began_ps = self._kernel.now
            try:
                socket = await self._sockets.connect(address, port)
                await self._get(socket, file)
                await socket.close()
            except (NetworkError, http.HttpError) as error:
                file.problem = str(error)
            file.duration_ps = self._kernel.now - began_ps
            self.fetched.append(file)
            self._changed()

    async def _get(self, socket: Socket, file: Fetched) -> None:
        """One request; compares the body as it comes. Raises NetworkError or HttpError."""
        await socket.write(f"GET /{quote(file.path)} HTTP/1.1\r\nHost: {file.address}\r\nUser-Agent: memnic\r\n"
                           "Connection: close\r\n\r\n".encode())
        received = b""
        while http.END_OF_HEAD not in received:
            data = await socket.read(RECEIVE_BYTES)
            if not data:
                raise http.HttpError(f"the response ended within its head, after {len(received)} bytes")
            received += data
        text, end, data = received.partition(http.END_OF_HEAD)
        head = http.parse_response_head(text + end)
        file.status = head.status
        if head.status != 200:
            file.problem = f"status {head.status}"
            return
        expected = (self._root / file.path).read_bytes()
        while True:
            if data != expected[file.body_bytes : file.body_bytes + len(data)]:
                file.problem = f"differs between byte {file.body_bytes} and {file.body_bytes + len(data)}"
                return
            file.body_bytes += len(data)
            if file.body_bytes == len(expected) and "content-length" in head.headers:
                return
            data = await socket.read(RECEIVE_BYTES)
            if not data:
                break
        if file.body_bytes != len(expected):
            file.problem = f"ended at byte {file.body_bytes} of {len(expected)}"
