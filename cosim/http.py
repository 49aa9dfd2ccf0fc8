"""HTTP/1.0 as far as static files need it: requests, response heads, body lengths, and the files' bytes."""

# Ref: RFC 1945; RFC 9110 §6.4.1 (which responses have a body), §14.4 (Content-Range), §15 (status codes)

from __future__ import annotations

import hashlib
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

END_OF_HEAD = b"\r\n\r\n"

INDEX_HEADER = "X-Memnic-Request"
"""Header of a request with its number in the workload: a log gives one path several sizes and statuses."""

_BLOCK_BYTES = 65521
"""Prime, so that no segment, page or buffer size shifts the content onto itself."""


class HttpError(ValueError):
    """A head that is no HTTP: says what is wrong with it."""


class RequestHead(NamedTuple):
    """A parsed request."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""


class ResponseHead(NamedTuple):
    """A parsed response, without its body."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""


def has_body(method: str, status: int) -> bool:
    """Whether a response has a body."""
    # RFC 9110 §6.4.1: "Responses to the HEAD request method never include content"; "All 1xx (Informational), 204 (No
    # Content), and 304 (Not Modified) responses do not include content."
    return method != "HEAD" and status >= HTTPStatus.OK and status not in (HTTPStatus.NO_CONTENT,
                                                                           HTTPStatus.NOT_MODIFIED)


def format_request(method: str, path: str, index: int) -> bytes:
    """A request's head; it has no body. `index` is the request's number in the workload."""
    return (f"{method} {path} HTTP/1.0\r\nHost: memnic\r\nUser-Agent: memnic\r\n"
            f"{INDEX_HEADER}: {index}\r\n\r\n").encode()


def format_response_head(method: str, status: int, size_bytes: int) -> bytes:
    """A response's head for a file of `size_bytes`."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Status"
    lines = [f"HTTP/1.0 {status} {phrase}", "Server: memnic", "Connection: close"]
    if has_body("GET", status):
        lines += ["Content-Type: application/octet-stream", f"Content-Length: {size_bytes}"]
    if status == HTTPStatus.PARTIAL_CONTENT and size_bytes:
        lines.append(f"Content-Range: bytes 0-{size_bytes - 1}/{size_bytes}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def parse_request(head: bytes) -> RequestHead:
    """A request's head, up to and including the empty line. Raises HttpError."""
    first, headers = _split_head(head)
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/"):
        raise HttpError(f"no request line: {first!r}")
    return RequestHead(words[0], words[1], headers)


def parse_response_head(head: bytes) -> ResponseHead:
    """A response's head, up to and including the empty line. Raises HttpError."""
    first, headers = _split_head(head)
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        raise HttpError(f"no status line: {first!r}")
    return ResponseHead(int(words[1]), headers)


def _split_head(head: bytes) -> tuple[str, dict[str, str]]:
    if not head.endswith(END_OF_HEAD):
        raise HttpError("the head does not end with an empty line")
    first, *rest = head[:-len(END_OF_HEAD)].decode("utf-8", "replace").split("\r\n")
    headers = {}
    for line in rest:
        name, colon, value = line.partition(":")
        if not colon:
            raise HttpError(f"no header line: {line!r}")
        headers[name.strip().lower()] = value.strip()
    return first, headers


@lru_cache(maxsize=512)
def _block(path: str) -> bytes:
    return hashlib.shake_128(path.encode()).digest(_BLOCK_BYTES)


def content(path: str, size_bytes: int) -> bytes:
    """The bytes of a file: the same for the same path; another path, or another offset, gives others."""
    block = _block(path)
    return (block * (size_bytes // _BLOCK_BYTES + 1))[:size_bytes]
