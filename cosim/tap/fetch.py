"""The simulated host as client: it fetches files from a real server, and compares each byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import msgspec

from cosim import http
from host_driver.errors import NetworkError
from host_driver.memnet import MemNet, MemNetSocket, MemoryRegion
from host_driver.runtime import Kernel

RECEIVE_BYTES = 1 << 16
REQUEST_BYTES = 1 << 12
"""Longest request, of one that is sent from registered memory."""


class FetchSocket(Protocol):
    """A connection, as the client uses it: `host_driver.kernel_sockets.Socket`."""

    async def read(self, max_bytes: int) -> bytes:
        """The next bytes; none at the end."""

    async def write(self, data: bytes) -> None:
        """Send bytes."""

    async def close(self) -> None:
        """Close it."""


class FetchSockets(Protocol):
    """Where connections come from: `host_driver.kernel_sockets.KernelSockets`."""

    async def connect(self, ip: str, port: int) -> FetchSocket:
        """Connect and wait until it is done. Raises NetworkError."""


class MemNetSockets:
    """Implements `FetchSockets` over MemNet: one connection at a time uses its registered memory. Made by `open`."""

    def __init__(self, memnet: MemNet, received: MemoryRegion, request: MemoryRegion) -> None:
        self._memnet = memnet
        self._received = received
        self._request = request

    @classmethod
    async def open(cls, memnet: MemNet) -> MemNetSockets:
        """Make the channels, and register the memory."""
        await memnet.start()
        return cls(memnet, await memnet.register_mem(RECEIVE_BYTES), await memnet.register_mem(REQUEST_BYTES))

    async def connect(self, ip: str, port: int) -> FetchSocket:
        socket = self._memnet.socket()
        try:
            await self._memnet.connect(socket, ip, port)
        except NetworkError:
            await self._memnet.close(socket)
            raise
        return _MemNetFetchSocket(self._memnet, socket, self._received, self._request)


class _MemNetFetchSocket:
    """Implements `FetchSocket`."""

    def __init__(self, memnet: MemNet, socket: MemNetSocket, received: MemoryRegion, request: MemoryRegion) -> None:
        self._memnet = memnet
        self._socket = socket
        self._received = received
        self._request = request

    async def read(self, max_bytes: int) -> bytes:
        length = await self._memnet.sync_recv(self._socket, self._received, 0, min(max_bytes, RECEIVE_BYTES))
        return bytes(self._received.view[:length])

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), REQUEST_BYTES):
            part = data[start : start + REQUEST_BYTES]
            self._request.view[: len(part)] = part
            await self._memnet.sync_send(self._socket, self._request, 0, len(part))

    async def close(self) -> None:
        await self._memnet.close(self._socket)


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

    def __init__(self, sockets: FetchSockets, kernel: Kernel, root: Path, changed: Callable[[], None]) -> None:
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

    async def _get(self, socket: FetchSocket, file: Fetched) -> None:
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
