"""The Linux kernel's TCP and curl against the simulated server, through the RTL: one server for all tests of the file.

The last test ends it, and looks at what is left: no connection, frame or buffer, and no error in the capture.
"""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cosim.tap.bench import TapResult
from tests.tap.conftest import SIZES
from tests.tap.harness import EACH_SERVER, SERVERS, Tap, assert_at_rest, error_notes, needs_tap, read_all, url
from tests.tap.hostile import Garbage, SynFlood

pytestmark = needs_tap

VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
EACH_SIZE = pytest.mark.parametrize("name", SIZES)


@pytest.fixture(scope="module", params=EACH_SERVER)
def tap(root: Path, request: pytest.FixtureRequest) -> Iterator[Tap]:
    with Tap(root, *SERVERS[request.param], captured=True) as running:
        yield running
        if running.is_running:
            end_and_look(running)  # the test that does so was not asked for


def end_and_look(tap: Tap) -> TapResult:
    """End the server: nothing is left, and what it sent has no error."""
    time.sleep(0.5)
    result = tap.finish()
    assert_at_rest(result)
    assert error_notes(tap.capture, "eth.src == 02:00:00:00:00:01") == []
    return result


def digest_line(data: bytes) -> bytes:
    """What the server answers an upload with."""
    return f"{hashlib.sha256(data).hexdigest()} {len(data)}\n".encode()


@VERSIONS
@EACH_SIZE
def test_download_is_whole(tap: Tap, root: Path, name: str, version: int) -> None:
    assert tap.curl(url(name, version)) == (root / name).read_bytes()


@VERSIONS
@EACH_SIZE
def test_upload_arrives_whole(tap: Tap, root: Path, name: str, version: int) -> None:
    answer = tap.curl("--upload-file", str(root / name), url("upload", version))
    assert answer == digest_line((root / name).read_bytes())


def test_upload_in_chunks_by_post(tap: Tap, root: Path) -> None:
    answer = tap.curl("--request", "POST", "--header", "Transfer-Encoding: chunked", "--data-binary", f"@{root / '1M'}",
                      url("upload"))
    assert answer == digest_line((root / "1M").read_bytes())


def test_http_1_0_and_wget(tap: Tap, root: Path) -> None:
    assert tap.curl("--http1.0", url("16K")) == (root / "16K").read_bytes()
    done = tap.namespace.run("wget", "--quiet", "--tries=1", "--output-document=-", url("16K"), capture_output=True)
    assert done.stdout == (root / "16K").read_bytes()


def test_heads_names_and_what_is_not_there(tap: Tap) -> None:
    assert b"Content-Length: 16384" in tap.curl("--head", url("16K"))
    assert tap.curl(url("folder/a%20file.txt")) == b"with a blank in its name\n"
    assert b'href="/folder/a%20file.txt"' in tap.curl(url("folder"))
    status = ("--output", "/dev/null", "--write-out", "%{http_code}")
    assert tap.curl(*status, url("nothing")) == b"404"
    assert tap.curl(*status, "--path-as-is", url("../../etc/passwd")) == b"404"
    assert tap.curl(*status, "--request", "DELETE", url("16K")) == b"501"


@VERSIONS
def test_fifty_connections_at_a_time(tap: Tap, root: Path, version: int) -> None:
    expected = (root / "16K").read_bytes()
    connections = [tap.connect(version) for _ in range(50)]
    for connection in connections:
        connection.sendall(b"GET /16K HTTP/1.1\r\nHost: memnic\r\nConnection: close\r\n\r\n")
    for connection in connections:
        assert read_all(connection).endswith(b"\r\n\r\n" + expected)
        connection.close()


@VERSIONS
def test_pipelined_requests_are_answered_in_order(tap: Tap, root: Path, version: int) -> None:
    names = ["byte", "16K", "empty", "segment", "16K"] * 4
    with tap.connect(version) as connection:
        connection.sendall(b"".join(f"GET /{name} HTTP/1.1\r\nHost: memnic\r\n\r\n".encode() for name in names)
                           + b"GET /byte HTTP/1.1\r\nHost: memnic\r\nConnection: close\r\n\r\n")
        answers = read_all(connection)
    for name in [*names, "byte"]:
        head, _, answers = answers.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        body, answers = answers[: SIZES[name]], answers[SIZES[name] :]
        assert body == (root / name).read_bytes()
    assert answers == b""


@VERSIONS
def test_client_closes_its_half_and_still_gets_all(tap: Tap, root: Path, version: int) -> None:
    with tap.connect(version) as connection:
        connection.sendall(b"GET /1M HTTP/1.1\r\nHost: memnic\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection).endswith((root / "1M").read_bytes())


@VERSIONS
def test_server_closes_its_half_and_still_hears_the_client(tap: Tap, version: int) -> None:
    with tap.connect(version) as connection:
        connection.sendall(b"GET /byte HTTP/1.1\r\nHost: memnic\r\nConnection: close\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200")
        time.sleep(0.3)
        # The server has closed its half. The other half still ends in order: no reset answers the FIN.
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@VERSIONS
def test_reset_in_the_middle_of_a_transfer(tap: Tap, root: Path, version: int) -> None:
    connection = tap.connect(version)
    connection.sendall(b"GET /20M HTTP/1.1\r\nHost: memnic\r\n\r\n")
    connection.recv(1000)
    # Closed with linger 0: the kernel sends a reset.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert tap.curl(url("16K", version)) == (root / "16K").read_bytes()


@VERSIONS
def test_window_of_zero_for_a_while(tap: Tap, root: Path, version: int) -> None:
    def small(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    with tap.connect(version, small) as connection:
        connection.sendall(b"GET /1M HTTP/1.1\r\nHost: memnic\r\nConnection: close\r\n\r\n")
        time.sleep(1.0)
        assert read_all(connection).endswith((root / "1M").read_bytes())


def test_syn_flood_of_a_thousand_with_a_transfer_beside_it(tap: Tap, root: Path) -> None:
    with ThreadPoolExecutor(1) as pool, SynFlood(tap) as flood:
        transfer = pool.submit(tap.curl, url("20M"))
        flood.send(1000)
        assert transfer.result() == (root / "20M").read_bytes()
        assert tap.curl(url("16K")) == (root / "16K").read_bytes()
        assert flood.answered > 0, "nothing was answered: the flood did not reach the server"


def test_garbage_with_transfers_beside_it(tap: Tap, root: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    with Garbage(tap, seed) as garbage:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert tap.curl(url("1M")) == (root / "1M").read_bytes()
    assert garbage.sent > 100


def test_nothing_is_left_and_the_capture_has_no_error(tap: Tap) -> None:
    result = end_and_look(tap)
    assert result.server.requests > 100
    assert result.stack["bad_checksum"] > 0  # the garbage
    assert result.stack["malformed"] > 0
    assert error_notes(tap.capture), "tshark sees no error in the garbage either"
