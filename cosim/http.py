"""HTTP/1.0 and 1.1 as far as static files and uploads need it: heads, body lengths, and the workload's bytes."""

# Ref: RFC 1945; RFC 9110 §6.4.1 (which responses have a body), §14.4 (Content-Range), §15 (status codes); RFC 9112 §6
# (message body), §7.1 (chunked), §9.3 (persistence)

from __future__ import annotations

import hashlib
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

END_OF_HEAD = b"\r\n\r\n"

INDEX_HEADER = "X-Memnic-Request"
"""Header of a request with its number in the workload: a log gives one path several sizes and statuses."""

MAX_LINE_BYTES = 1024
"""Of a chunk's size with its extensions, or of a trailer's line."""

_HEX_DIGITS = b"0123456789abcdefABCDEF"

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
    version: str = "HTTP/1.0"

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection goes on behind the response."""
        # RFC 9112 §9.3: "If the "close" connection option is present, the connection will not persist after the current
        # response; else, if the received protocol is HTTP/1.1 (or later), the connection will persist [...]; else, if
        # the received protocol is HTTP/1.0, the "keep-alive" connection option is present [...], the connection will
        # persist"
        options = {option.strip().lower() for option in self.headers.get("connection", "").split(",")}
        if "close" in options:
            return False
        return self.version != "HTTP/1.0" or "keep-alive" in options

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks. Raises HttpError for another coding."""
        coding = self.headers.get("transfer-encoding")
        if coding not in (None, "chunked"):
            raise HttpError(f"transfer coding {coding!r}, not chunked")
        return coding is not None

    @property
    def body_bytes(self) -> int:
        """Bytes of a body that does not come in chunks. Raises HttpError for a Content-Length that is no number."""
        # RFC 9112 §6.3: "If this is a request message and none of the above are true, then the message body length is
        # zero (no message body is present)."
        length = self.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise HttpError(f"Content-Length {length!r}, which is no number of bytes")
        return int(length)


class ChunkedBody:
    """A body that comes in chunks, as it arrives. Attributes: `done`, `behind` (bytes behind its end)."""

    def __init__(self) -> None:
        self.done = False
        self.behind = b""
        self._pending = b""
        self._left_bytes = 0
        self._in_trailer = False

    def take(self, data: bytes) -> bytes:
        """More bytes of the message; those of the body that were in them. Raises HttpError."""
        found = []
        self._pending += data
        while not self.done:
            if self._left_bytes:
                piece, self._pending = self._pending[: self._left_bytes], self._pending[self._left_bytes :]
                self._left_bytes -= len(piece)
                found.append(piece)
                if self._left_bytes:
                    break
                self._left_bytes = 0
            line, end, rest = self._pending.partition(b"\r\n")
            if not end:
                if len(line) > MAX_LINE_BYTES:
                    raise HttpError(f"a chunk's line of more than {MAX_LINE_BYTES} bytes")
                break
            self._pending = rest
            self._take_line(line)
        return b"".join(found)

    def _take_line(self, line: bytes) -> None:
        """A chunk's size, the empty line behind a chunk, or a line of the trailer."""
        if self._in_trailer:
            # RFC 9112 §7.1: chunked-body = *chunk last-chunk trailer-section CRLF
            if not line:
                self.done, self.behind, self._pending = True, self._pending, b""
            return
        if not line:
            return
        size = line.partition(b";")[0].strip()
        if not size or size.strip(_HEX_DIGITS):
            raise HttpError(f"{size[:20]!r} is no chunk's size")
        self._left_bytes = int(size, 16)
        self._in_trailer = self._left_bytes == 0


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


def format_head(status: int, headers: dict[str, str | int]) -> bytes:
    """A response's head of HTTP/1.1, with the headers given."""
    # RFC 9110 §6.2: "A server SHOULD send a response version equal to the highest version to which the server is
    # conformant"
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def parse_request(head: bytes) -> RequestHead:
    """A request's head, up to and including the empty line. Raises HttpError."""
    first, headers = _split_head(head)
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/"):
        raise HttpError(f"no request line: {first!r}")
    return RequestHead(words[0], words[1], headers, words[2])


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
