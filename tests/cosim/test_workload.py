"""Logs as servers write them, and as they should not be. The lines are made here."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from cosim.errors import WorkloadError
from cosim.workload import Request, parse_log, read_log, synthetic

TIME = "[01/Feb/2002:10:00:00 +0100]"
COMMON = f'192.0.2.1 - - {TIME} "GET /index.html HTTP/1.0" 200 2326\n'
COMBINED = f'192.0.2.2 - ann {TIME} "HEAD /a.png HTTP/1.1" 200 77 "http://x/\\"q\\"" "Mozilla (\\"odd\\")"\n'
NO_SIZE = f'192.0.2.3 - - {TIME} "GET /b HTTP/1.1" 304 -\n'
PARTIAL = f'host.example - - {TIME} "GET /big.iso HTTP/1.1" 206 700000 "-" "curl"\n'
OLD = f'192.0.2.1 - - {TIME} "GET /no-version" 200 5\n'
SPACED_USER = f'192.0.2.1 - Jane Doe {TIME} "GET /c HTTP/1.1" 404 9\n'
BAD = ["-\n", f'192.0.2.1 - - {TIME} "GET /x HTTP/1.1" abc 5\n', f'192.0.2.1 - - {TIME} "" 400 5\n', "half a li"]


def test_good_lines() -> None:
    workload = parse_log([COMMON, COMBINED, NO_SIZE, OLD, SPACED_USER], source="s")
    assert workload.requests == [Request("GET", "/index.html", 200, 2326), Request("HEAD", "/a.png", 200, 77),
                                 Request("GET", "/b", 304, 0), Request("GET", "/no-version", 200, 5),
                                 Request("GET", "/c", 404, 9)]
    assert workload.bad_lines == 0
    assert [request.body_bytes for request in workload.requests] == [2326, 0, 0, 5, 9]


def test_bad_lines_are_counted_and_the_first_three_quoted() -> None:
    workload = parse_log([BAD[0], COMMON, *BAD[1:], "\n"], source="s")
    assert len(workload.requests) == 1
    assert workload.bad_lines == 4
    assert workload.bad_examples == [line.rstrip("\n") for line in BAD[:3]]


def test_sizes_are_cut_and_counted_and_partial_content_keeps_its_size() -> None:
    workload = parse_log([PARTIAL, COMMON], source="s", max_size_bytes=1000)
    assert [request.size_bytes for request in workload.requests] == [1000, 1000]
    assert workload.cut == 2
    assert parse_log([PARTIAL], source="s", max_size_bytes=10**6).requests[0].body_bytes == 700000


def test_no_more_requests_than_asked_for() -> None:
    assert len(parse_log([COMMON] * 10, source="s", limit=4).requests) == 4


@pytest.mark.parametrize("zipped", [False, True])
def test_files_plain_and_gzipped(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "access.log"
    data = (COMMON + COMBINED).encode() + b'\xff\xfe\n'
    path.write_bytes(gzip.compress(data) if zipped else data)
    workload = read_log(path)
    assert len(workload.requests) == 2
    assert workload.bad_lines == 1


@pytest.mark.parametrize(("data", "why"), [
    (b"", "it is empty"), (b"a\nb\n", "none of its 2 lines is a log line"),
    (gzip.compress(COMMON.encode(), mtime=0)[:-9], "damaged gzip"),
    (gzip.compress(b"", mtime=0)[:11] + b"\xff" * 40, "")], ids=["empty", "no log line", "cut short", "garbage"])
def test_useless_files_get_one_line_with_their_name(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(data)
    with pytest.raises(WorkloadError, match=rf"^\S+access\.log: .*{why}") as caught:
        read_log(path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"none\.log: No such file"):
        read_log(tmp_path / "none.log")
    with pytest.raises(WorkloadError, match="Is a directory"):
        read_log(tmp_path)


def test_synthetic_is_128_files_of_16_kb_in_turn() -> None:
    requests = synthetic(300).requests
    assert len(requests) == 300
    assert len({request.path for request in requests}) == 128
    assert {request.size_bytes for request in requests} == {16384}
    assert requests[0] == requests[128]
