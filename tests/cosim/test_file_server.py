"""The web server for real clients, over connections whose client is the test."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cosim.file_server import IDLE_PS, LINGER_PS, MAX_HEAD_BYTES, SEND_BYTES, FileServer, Thread
from cosim.http import ChunkedBody, HttpError, parse_request
from host_driver.account import NullAccount
from host_driver.errors import network_error
from host_driver.runtime import Kernel, Queue

MS = 1_000_000_000


class FakeConnection:
    """Implements `cosim.server.ServerConnection`; the test is the client."""

    def __init__(self) -> None:
        self.incoming: Queue[bytes | Exception] = Queue("bytes of the client")
        self.sent = b""
        self.ended = self.closed = False
        """Whether this side has closed its half; both."""
        self.before_send: Callable[[], None] = lambda: None
        self._buffer = memoryview(b"")

    async def receive(self, max_bytes: int) -> bytes:
        data = await self.incoming.get()
        if isinstance(data, Exception):
            raise data
        assert len(data) <= max_bytes
        if not data:
            self.incoming.put(data)  # it stays so
        return data

    async def buffer(self, length: int) -> memoryview:
        assert 0 < length <= SEND_BYTES
        self._buffer = memoryview(bytearray(length))
        return self._buffer

    async def send(self) -> None:
        self.sent += bytes(self._buffer)
        self.before_send()

    async def shutdown(self) -> None:
        self.ended = True

    async def close(self) -> None:
        self.ended = self.closed = True
        self.incoming.put(b"")


class Site:
    """A server of a folder. `say` opens a connection, says some things, and lets the server answer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kernel = Kernel()
        self._clients: Queue[FakeConnection] = Queue("clients")
        self.server = FileServer(self.kernel, root, lambda _number: Thread(NullAccount(), self), lambda: None)
        self.server.start()
        self.run()

    async def accept(self) -> FakeConnection:
        return await self._clients.get()

    def run(self, duration_ps: int = MS) -> None:
        self.kernel.run_until(self.kernel.now + duration_ps)

    def connect(self) -> FakeConnection:
        connection = FakeConnection()
        self._clients.put(connection)
        return connection

    def say(self, *said: bytes | Exception) -> FakeConnection:
        connection = self.connect()
        for data in said:
            connection.incoming.put(data)
        self.run()
        return connection


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "hello.txt").write_bytes(b"hello")
    (tmp_path / "large").write_bytes(bytes(range(256)) * 1024)
    (tmp_path / "with index").mkdir()
    (tmp_path / "with index" / "index.html").write_bytes(b"<p>index")
    return Site(tmp_path)


def get(path: str, *headers: str, version: str = "HTTP/1.1", method: str = "GET") -> bytes:
    return ("\r\n".join([f"{method} {path} {version}", "Host: memnic", *headers]) + "\r\n\r\n").encode()


def test_a_connection_goes_on_or_ends_as_rfc_9112_says(site: Site) -> None:
    assert not site.say(get("/hello.txt")).ended
    assert site.say(get("/hello.txt", "Connection: close")).ended
    assert site.say(get("/hello.txt", version="HTTP/1.0")).ended
    assert not site.say(get("/hello.txt", "Connection: Keep-Alive", version="HTTP/1.0")).ended
    assert site.say(get("/hello.txt"), b"").closed
    assert site.server.counts.requests == 5
    assert site.server.counts.failed_connections == 0


def test_pipelined_requests_cut_anywhere_are_answered_in_order(site: Site) -> None:
    said = get("/hello.txt") + get("/large", method="HEAD") + b"\r\n" + get("/nothing") + get("/with%20index/")
    whole = site.say(said)
    cut = site.say(*(said[at : at + 7] for at in range(0, len(said), 7)))
    assert whole.sent == cut.sent
    assert re.findall(rb"HTTP/1.1 (\d+)", whole.sent) == [b"200", b"200", b"404", b"200"]
    assert whole.sent.endswith(b"\r\n\r\n<p>index")


def test_a_large_file_leaves_in_pieces(site: Site) -> None:
    assert site.say(get("/large")).sent.endswith(b"\r\n\r\n" + (site.root / "large").read_bytes())


@pytest.mark.parametrize("path", ["/../secret", "/%2e%2e/secret", "/..%2fsecret", "/link", "/a%00b"])
def test_nothing_outside_the_folder_is_served(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    sent = Site(tmp_path / "root").say(get(path)).sent
    assert sent.startswith(b"HTTP/1.1 404")
    assert b"\r\n\r\nsecret" not in sent


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_is_answered_with_its_digest_and_what_follows_is_a_request(site: Site, chunked: bool) -> None:
    body = bytes(range(256)) * 300
    if chunked:
        message = (get("/up", "Transfer-Encoding: chunked", method="PUT")
                   + b"".join(b"%x;name=value\r\n%s\r\n" % (len(piece), piece)
                              for piece in (body[:1], body[1:70_000], body[70_000:])) + b"0\r\nTrailer: x\r\n\r\n")
    else:
        message = get("/up", f"Content-Length: {len(body)}", method="PUT") + body
    message += get("/hello.txt", "Connection: close")
    sent = site.say(*(message[at : at + 4000] for at in range(0, len(message), 4000))).sent
    assert f"\r\n\r\n{hashlib.sha256(body).hexdigest()} {len(body)}\n".encode() in sent
    assert sent.endswith(b"\r\n\r\nhello")
    assert site.server.counts.received_body_bytes == len(body)


def test_a_client_that_waits_for_100_is_told_to_go_on(site: Site) -> None:
    connection = site.say(get("/up", "Content-Length: 3", "Expect: 100-continue", method="PUT"))
    assert connection.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.incoming.put(b"abc")
    site.run()
    assert hashlib.sha256(b"abc").hexdigest().encode() in connection.sent


@pytest.mark.parametrize("message", [
    b"nonsense\r\n\r\n", get("/", "no colon"), get("/up", "Content-Length: -5", method="PUT"),
    get("/up", "Transfer-Encoding: gzip", method="PUT"),
    get("/up", "Transfer-Encoding: chunked", method="PUT") + b"zz\r\n"])
def test_what_is_no_http_is_a_bad_request_and_ends_the_connection(site: Site, message: bytes) -> None:
    connection = site.say(message)
    assert connection.sent.startswith(b"HTTP/1.1 400 ")
    assert connection.ended


def test_a_head_without_end_is_a_bad_request(site: Site) -> None:
    connection = site.say(*([b"x" * 4096] * (MAX_HEAD_BYTES // 4096 + 1)))
    assert connection.sent.startswith(b"HTTP/1.1 400 ")


def test_a_client_that_says_nothing_is_closed_after_a_while(site: Site) -> None:
    connection = site.say(get("/hello.txt"))
    site.run(IDLE_PS - 10 * MS)
    assert not connection.closed
    site.run(20 * MS)
    assert connection.closed
    assert site.server.counts.idle_connections_closed == 1


def test_what_a_client_says_behind_the_last_answer_is_heard_for_a_while(site: Site) -> None:
    connection = site.say(get("/hello.txt", "Connection: close"), b"more", b"and more")
    assert connection.ended
    assert not connection.closed
    connection.incoming.put(b"")
    site.run()
    assert connection.closed
    stays = site.say(get("/hello.txt", "Connection: close"))
    site.run(LINGER_PS)
    assert stays.closed
    assert (site.server.counts.idle_connections_closed, site.server.counts.open_connections) == (1, 0)


@pytest.mark.parametrize("end", [b"", network_error(ConnectionResetError("reset"), "receive")])
def test_a_client_that_goes_in_the_middle_is_counted_and_others_are_served(site: Site, end: bytes | Exception) -> None:
    site.say(get("/up", "Content-Length: 100", method="PUT") + b"only this", end)
    assert site.server.counts.failed_connections == 1
    assert site.server.counts.open_connections == 0
    assert site.say(get("/hello.txt")).sent.endswith(b"hello")


def test_a_file_that_becomes_shorter_while_it_is_sent_ends_the_connection(site: Site) -> None:
    connection = site.connect()
    connection.before_send = lambda: (site.root / "large").write_bytes(b"short")
    connection.incoming.put(get("/large"))
    site.run()
    assert connection.closed
    assert site.server.counts.failed_connections == 1


def test_as_many_threads_as_clients_at_a_time_and_each_is_used_again(tmp_path: Path) -> None:
    made = []

    def thread(number: int) -> Thread:
        made.append(number)
        return Thread(NullAccount(), site)

    site = Site(tmp_path)
    site.server._thread = thread
    for _ in range(3):
        connections = [site.connect() for _ in range(4)]
        site.run()
        assert site.server.counts.open_connections == 4
        for connection in connections:
            connection.incoming.put(b"")
        site.run()
    assert len(made) == 4


def test_chunks_that_come_byte_by_byte() -> None:
    message = b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\nbehind"
    body = ChunkedBody()
    taken = b"".join(body.take(message[at : at + 1]) for at in range(len(message)) if not body.done)
    assert taken == b"abc0123456789"
    whole = ChunkedBody()
    assert whole.take(message) == taken
    assert (whole.done, whole.behind) == (True, b"behind")


@pytest.mark.parametrize("line", [b"g\r\n", b"\xff\r\n", b"-1\r\n", b"1" * 2000])
def test_a_chunks_size_that_is_none(line: bytes) -> None:
    with pytest.raises(HttpError, match="chunk's"):
        ChunkedBody().take(line)


def test_a_length_that_is_no_number() -> None:
    with pytest.raises(HttpError, match="Content-Length '1_0'"):
        _ = parse_request(get("/", "Content-Length: 1_0")).body_bytes
