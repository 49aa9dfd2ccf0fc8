"""HTTP heads, body rules, and content that shows any misplaced byte."""

from __future__ import annotations

import pytest

from cosim.http import HttpError, content, format_request, format_response_head, has_body, parse_request
from cosim.http import parse_response_head as parse_response


def test_request_survives_the_round_trip() -> None:
    head = parse_request(format_request("GET", "/a/b?c=%20d", 17))
    assert (head.method, head.path) == ("GET", "/a/b?c=%20d")
    assert head.headers["x-memnic-request"] == "17"


def test_request_line_is_http_1_0_as_rfc_1945_writes_it() -> None:
    assert format_request("HEAD", "/", 0).startswith(b"HEAD / HTTP/1.0\r\n")
    assert format_request("HEAD", "/", 0).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(("method", "status", "expected"), [
    ("GET", 200, True), ("GET", 206, True), ("GET", 404, True), ("POST", 500, True), ("GET", 301, True),
    ("HEAD", 200, False), ("HEAD", 404, False), ("GET", 304, False), ("GET", 204, False), ("GET", 100, False)])
def test_which_responses_have_a_body(method: str, status: int, expected: bool) -> None:
    assert has_body(method, status) is expected


def test_response_heads() -> None:
    head = parse_response(format_response_head("GET", 200, 16384))
    assert (head.status, head.headers["content-length"]) == (200, "16384")
    assert "content-length" not in parse_response(format_response_head("GET", 304, 500)).headers
    assert parse_response(format_response_head("HEAD", 200, 500)).headers["content-length"] == "500"
    partial = parse_response(format_response_head("GET", 206, 100))
    assert partial.headers["content-range"] == "bytes 0-99/100"
    assert parse_response(format_response_head("GET", 499, 0)).status == 499


@pytest.mark.parametrize("head", [b"", b"GET /\r\n\r\n", b"GET / HTTP/1.0\r\n", b"GET / FTP/1\r\n\r\n",
                                  b"GET / HTTP/1.0\r\nno header\r\n\r\n", b"\xff\xfe\r\n\r\n"])
def test_bad_requests_are_told(head: bytes) -> None:
    with pytest.raises(HttpError):
        parse_request(head)


@pytest.mark.parametrize("head", [b"HTTP/1.0\r\n\r\n", b"HTTP/1.0 abc\r\n\r\n", b"ICY 200 OK\r\n\r\n"])
def test_bad_responses_are_told(head: bytes) -> None:
    with pytest.raises(HttpError):
        parse_response(head)


def test_content_is_as_long_as_asked_and_always_the_same() -> None:
    for size in (0, 1, 65520, 65521, 65522, 262144):
        assert len(content("/a", size)) == size
    assert content("/a", 262144)[:1000] == content("/a", 1000)


@pytest.mark.parametrize("shift", [1, 4, 64, 536, 1448, 1460, 4096, 8192, 16384, 65536])
def test_content_that_is_shifted_or_of_another_file_is_seen(shift: int) -> None:
    data = content("/a", 262144)
    assert all(data[at + shift : at + shift + 64] != data[at : at + 64] for at in range(0, 131072, 4096))
    assert content("/b", 4096) != data[:4096]
