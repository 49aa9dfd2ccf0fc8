"""A web server for real clients: files below a folder, uploads answered with their digest, over any transport.

HTTP/1.0 and 1.1 with persistent connections and pipelining. A thread serves one connection at a time; the thread that
accepts lets the next one do so before it serves, so there is always one that waits for a client.
"""

# Ref: RFC 9110 §9.3 (methods), §10.1.1 (Expect); RFC 9112 §9.3 (persistence, pipelining)

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Callable
from contextlib import suppress
from html import escape
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol
from urllib.parse import quote, unquote

import msgspec

from cosim import http
from cosim.server import ServerConnection
from host_driver.account import Account
from host_driver.errors import NetworkError
from host_driver.runtime import Kernel

RECEIVE_BYTES = 4096
"""What a thread asks for at once while it reads a head."""

BODY_RECEIVE_BYTES = 1 << 16
"""And while it reads a body."""

SEND_BYTES = 1 << 16
"""What is read from a file and sent at once."""

MAX_HEAD_BYTES = 1 << 14

IDLE_PS = 15 * 10**12
"""A connection on which the client says nothing for so long is closed: Apache's KeepAliveTimeout."""

LINGER_PS = 2 * 10**12
"""So long a client that was answered to the end may still say something: Apache's SECONDS_TO_LINGER."""

INDEX_NAME = "index.html"


class ServerCounts(msgspec.Struct, kw_only=True):
    """What the server did."""

    connections: int = 0
    open_connections: int = 0
    requests: int = 0
    statuses: dict[str, int] = {}
    """Responses by their status."""
    sent_body_bytes: int = 0
    received_body_bytes: int = 0
    failed_connections: int = 0
    """Ended by a reset, a time-out, or in the middle of a message."""
    idle_connections_closed: int = 0


class FileConnection(ServerConnection, Protocol):
    """A client's connection, as a thread uses it."""

    async def shutdown(self) -> None:
        """End this side when all is sent; the client may still say something."""


class FileTransport(Protocol):
    """How a thread talks to its clients."""

    async def accept(self) -> FileConnection:
        """The next client."""


class Thread(NamedTuple):
    """One thread of the server: its account and its way to clients."""

    account: Account
    transport: FileTransport


class _Gone(Exception):
    """The client said no more in the middle of a message, or a file became shorter while it was sent."""


class _Idle(Exception):
    """The client said nothing for too long, and the connection was closed."""


class FileServer:
    """Serves files below `root` with as many threads as there are clients; they are made by `thread`, and used again.

    Attribute: `counts`.
    """

    def __init__(self, kernel: Kernel, root: Path, thread: Callable[[int], Thread],
                 changed: Callable[[], None]) -> None:
        self.counts = ServerCounts()
        self._kernel = kernel
        self._root = root.resolve()
        self._thread = thread
        self._changed = changed
        self._threads = 0
        self._idle: list[Thread] = []

    def start(self) -> None:
        """Let the first thread wait for a client."""
        if self._idle:
            thread = self._idle.pop()
        else:
            thread = self._thread(self._threads)
            self._threads += 1
        self._kernel.spawn(self._serve(thread), f"server thread {self._threads}")

    async def _serve(self, thread: Thread) -> None:
        """Serve one client, and be there for another."""
        counts = self.counts
        connection = await thread.transport.accept()
        self.start()
        counts.connections += 1
        counts.open_connections += 1
        thread.account.charge("user", "connection")
        try:
            await _Conversation(self, connection, thread.account).run()
            await self._linger(connection)
        except _Idle:
            counts.idle_connections_closed += 1
        except (_Gone, NetworkError):
            counts.failed_connections += 1
        with suppress(NetworkError):
            await connection.close()
        counts.open_connections -= 1
        self._idle.append(thread)
        self._changed()

    async def _linger(self, connection: FileConnection) -> None:
        """Hear what the client still says, for a while."""
        # RFC 9112 §9.6: "If a server performs an immediate close of a TCP connection, there is a significant risk that
        # the client will not be able to read the last HTTP response. [...] To avoid the TCP reset problem, servers
        # typically close a connection in stages. First, the server performs a half-close by closing only the write side
        # of the read/write connection. The server then continues to read from the connection until it receives a
        # corresponding close by the client"
        await connection.shutdown()
        until_ps = self._kernel.now + LINGER_PS
        while await self.hear(connection, RECEIVE_BYTES, until_ps):
            pass

    @property
    def now(self) -> int:
        """Simulated time in picoseconds."""
        return self._kernel.now

    def find(self, path: str) -> Path | None:
        """The file or folder of a request's path; None: there is none below the root."""
        name = unquote(path.partition("?")[0]).lstrip("/")
        if "\0" in name:
            return None
        found = (self._root / name).resolve()
        if not found.is_relative_to(self._root) or not found.exists():
            return None
        if found.is_dir() and (found / INDEX_NAME).is_file():
            return found / INDEX_NAME
        return found

    def answered(self, status: int) -> None:
        """A response was sent."""
        name, statuses = str(int(status)), self.counts.statuses
        self.counts.requests += 1
        statuses[name] = statuses.get(name, 0) + 1
        self._changed()

    async def hear(self, connection: FileConnection, max_bytes: int, until_ps: int) -> bytes:
        """The next bytes of a client; b"" when it will say no more. Raises NetworkError; and _Idle when it has said
        nothing until `until_ps`: then the connection is closed."""
        gave_up = False

        async def close() -> None:
            with suppress(NetworkError):
                await connection.close()

        def give_up() -> None:
            nonlocal gave_up
            gave_up = True
            self._kernel.spawn(close(), "closing an idle connection")

        timer = self._kernel.call_at(until_ps, give_up)
        try:
            data = await connection.receive(max_bytes)
        except NetworkError:
            if gave_up:
                raise _Idle from None
            raise
        finally:
            timer.cancel()
        if gave_up:
            raise _Idle
        return data


class _Conversation:
    """The requests of one connection, one after the other."""

    def __init__(self, server: FileServer, connection: FileConnection, account: Account) -> None:
        self._server = server
        self._connection = connection
        self._account = account
        self._received = b""
        """What was received and belongs to no request yet: pipelined requests wait here."""

    async def run(self) -> None:
        """Until the client closes, or asks to. Raises NetworkError, or _Gone."""
        goes_on = True
        while goes_on:
            try:
                head = await self._read_head()
                if head is None:
                    return
                self._account.charge("user", "request")
                goes_on = head.keeps_alive
                await self._answer(head)
            except http.HttpError as error:
                # What follows cannot be told apart from the bad message's rest.
                goes_on = False
                await self._respond("GET", HTTPStatus.BAD_REQUEST, str(error).encode(), "text/plain", goes_on=False)

    async def _read_head(self) -> http.RequestHead | None:
        """The next request's head; None when there will be none."""
        # RFC 9112 §2.2: "a server that is expecting to receive and parse a request-line SHOULD ignore at least one
        # empty line (CRLF) received prior to the request-line"
        self._received = self._received.lstrip(b"\r\n")
        while http.END_OF_HEAD not in self._received:
            if len(self._received) > MAX_HEAD_BYTES:
                raise http.HttpError(f"a head of more than {MAX_HEAD_BYTES} bytes")
            data = await self._receive(RECEIVE_BYTES)
            if not data:
                if self._received.strip():
                    raise _Gone
                return None
            self._received = (self._received + data).lstrip(b"\r\n")
        head, end, self._received = self._received.partition(http.END_OF_HEAD)
        return http.parse_request(head + end)

    async def _receive(self, max_bytes: int) -> bytes:
        return await self._server.hear(self._connection, max_bytes, self._server.now + IDLE_PS)

    async def _answer(self, head: http.RequestHead) -> None:
        if head.method in ("PUT", "POST"):
            await self._answer_upload(head)
            return
        await self._read_body(head)
        if head.method not in ("GET", "HEAD"):
            await self._respond(head.method, HTTPStatus.NOT_IMPLEMENTED, b"GET, HEAD, PUT and POST work here\n",
                                "text/plain", goes_on=head.keeps_alive)
            return
        found = self._server.find(head.path)
        if found is None:
            await self._respond(head.method, HTTPStatus.NOT_FOUND, f"no file {head.path}\n".encode(), "text/plain",
                                goes_on=head.keeps_alive)
        elif found.is_dir():
            await self._respond(head.method, HTTPStatus.OK, _listing(found, head.path), "text/html; charset=utf-8",
                                goes_on=head.keeps_alive)
        else:
            await self._send_file(head, found)

    async def _answer_upload(self, head: http.RequestHead) -> None:
        """A body is not kept: the answer is its SHA-256 digest and its length."""
        digest, length = await self._read_body(head)
        await self._respond(head.method, HTTPStatus.OK, f"{digest} {length}\n".encode(), "text/plain",
                            goes_on=head.keeps_alive)

    async def _read_body(self, head: http.RequestHead) -> tuple[str, int]:
        """Read a request's body; its digest and length."""
        chunked = http.ChunkedBody() if head.is_chunked else None
        left_bytes = head.body_bytes
        # RFC 9110 §10.1.1: "A server that receives a 100-continue expectation in an HTTP/1.0 request MUST ignore that
        # expectation"; otherwise the client waits for the interim response before it sends the body.
        if head.headers.get("expect", "").lower() == "100-continue" and head.version != "HTTP/1.0":
            await self._send(http.format_head(HTTPStatus.CONTINUE, {}))
        digest, length = hashlib.sha256(), 0
        data, self._received = self._received, b""
        while True:
            if chunked is not None:
                body = chunked.take(data)
                self._received, complete = chunked.behind, chunked.done
            else:
                body, self._received = data[:left_bytes], data[left_bytes:]
                left_bytes -= len(body)
                complete = left_bytes == 0
            digest.update(body)
            length += len(body)
            self._server.counts.received_body_bytes += len(body)
            if complete:
                return digest.hexdigest(), length
            data = await self._receive(BODY_RECEIVE_BYTES)
            if not data:
                raise _Gone

    async def _send_file(self, head: http.RequestHead, path: Path) -> None:
        account = self._account
        with path.open("rb") as file:
            size = path.stat().st_size
            response = _head(HTTPStatus.OK, size, mimetypes.guess_type(path.name)[0] or "application/octet-stream",
                             goes_on=head.keeps_alive)
            account.charge("file_system", "open")
            left = 0 if head.method == "HEAD" else size
            while response or left:
                body = min(left, SEND_BYTES - len(response))
                buffer = await self._connection.buffer(len(response) + body)
                buffer[: len(response)] = response
                if body:
                    account.charge("file_system", "read_byte", body)
                    _read(file, buffer[len(response) :])
                await account.settle()
                await self._connection.send()
                left -= body
                response = b""
                self._server.counts.sent_body_bytes += body
        self._server.answered(HTTPStatus.OK)

    async def _respond(self, method: str, status: HTTPStatus, body: bytes, kind: str, *, goes_on: bool) -> None:
        head = _head(status, len(body), kind, goes_on=goes_on)
        await self._send(head + (body if method != "HEAD" else b""))
        self._server.answered(status)

    async def _send(self, message: bytes) -> None:
        for start in range(0, len(message), SEND_BYTES):
            piece = message[start : start + SEND_BYTES]
            buffer = await self._connection.buffer(len(piece))
            buffer[:] = piece
            await self._account.settle()
            await self._connection.send()


def _head(status: HTTPStatus, size_bytes: int, kind: str, *, goes_on: bool) -> bytes:
    headers: dict[str, Any] = {"Server": "memnic", "Content-Type": kind, "Content-Length": size_bytes,
                               "Connection": "keep-alive" if goes_on else "close"}
    return http.format_head(status, headers)


def _read(file: BinaryIO, buffer: memoryview) -> None:
    """Fill a buffer from a file. Raises _Gone when the file has become shorter: what was promised cannot be sent."""
    while len(buffer):
        got = file.readinto(buffer)  # type: ignore[attr-defined]
        if not got:
            raise _Gone
        buffer = buffer[got:]


def _listing(folder: Path, path: str) -> bytes:
    """A folder's names as a page."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    base = "/" + path.partition("?")[0].strip("/")
    lines = [f'<li><a href="{quote(f"{base}/{name}".replace("//", "/"))}">{escape(name)}</a></li>' for name in names]
    return f"<!DOCTYPE html><title>{escape(base)}</title><ul>{''.join(lines)}</ul>\n".encode()
