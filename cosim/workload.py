"""What the clients ask for: the built-in Synthetic workload, or the requests of a server's log."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec

from cosim import http
from cosim.errors import WorkloadError

SYNTHETIC_FILES = 128
SYNTHETIC_FILE_BYTES = 16 * 1024
DEFAULT_MAX_SIZE_BYTES = 256 * 1024
QUOTED_LINES = 3
QUOTED_CHARACTERS = 120

# Common Log Format: host ident user [time] "request" status size; Combined adds "referer" "agent".
_LINE = re.compile(r'\S+ \S+ .*?\[[^\]]+\] "(?P<method>[A-Z]+) (?P<path>[^\s"]+)(?: HTTP/\d\.\d)?" '
                   r'(?P<status>[1-5]\d\d) (?P<size>\d+|-)(?: "(?:[^"\\]|\\.)*" "(?:[^"\\]|\\.)*".*)?\s*')


class Request(msgspec.Struct, frozen=True, array_like=True):
    """One request, and how the server is to answer it."""

    method: str
    path: str
    status: int
    size_bytes: int

    @property
    def body_bytes(self) -> int:
        """Bytes of body that the client receives."""
        return self.size_bytes if http.has_body(self.method, self.status) else 0


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """Requests in order, where they are from, and what was done to them."""

    source: str
    requests: list[Request]
    cut: int = 0
    """Sizes above the limit, cut to it."""
    bad_lines: int = 0
    bad_examples: list[str] = []
    """The first few of the bad lines."""


def synthetic(requests: int) -> Workload:
    """The Synthetic trace: 128 files of 16 KB, each in turn."""
    return Workload(source=f"synthetic: {SYNTHETIC_FILES} files of {SYNTHETIC_FILE_BYTES} bytes", requests=[
        Request("GET", f"/synthetic/{index % SYNTHETIC_FILES:03}.html", 200, SYNTHETIC_FILE_BYTES)
        for index in range(requests)])


def read_log(path: Path, *, limit: int | None = None,
             max_size_bytes: int = DEFAULT_MAX_SIZE_BYTES) -> Workload:
    """Requests of a log in Common or Combined Log Format, plain or gzipped, at most `limit` of them.

    Lines that are no log lines are counted, up to the last request taken. Raises WorkloadError for a file that cannot
    be read and for one without a request.
    """
    try:
        with _open(path) as lines:
            workload = parse_log(lines, source=str(path), limit=limit, max_size_bytes=max_size_bytes)
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise WorkloadError(f"{path}: damaged gzip file: {error}") from error
    if not workload.requests:
        why = f"none of its {workload.bad_lines} lines is a log line" if workload.bad_lines else "it is empty"
        raise WorkloadError(f"{path}: no request in this log: {why}")
    return workload


def parse_log(lines: Iterable[str], *, source: str, limit: int | None = None,
              max_size_bytes: int = DEFAULT_MAX_SIZE_BYTES) -> Workload:
    """As `read_log`, from lines; an empty workload is no error here."""
    requests: list[Request] = []
    cut = bad_lines = 0
    bad_examples: list[str] = []
    for line in lines:
        if limit is not None and len(requests) >= limit:
            break
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            bad_lines += 1
            if len(bad_examples) < QUOTED_LINES:
                bad_examples.append(line.rstrip("\r\n")[:QUOTED_CHARACTERS])
            continue
        size_bytes = 0 if match["size"] == "-" else int(match["size"])
        if size_bytes > max_size_bytes:
            size_bytes = max_size_bytes
            cut += 1
        requests.append(Request(match["method"], match["path"], int(match["status"]), size_bytes))
    return Workload(source=source, requests=requests, cut=cut, bad_lines=bad_lines, bad_examples=bad_examples)


def _open(path: Path) -> IO[str]:
    """The log as text; bytes that are no UTF-8 are kept as they are."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8", errors="backslashreplace", newline="\n")
    return path.open(encoding="utf-8", errors="backslashreplace", newline="\n")
