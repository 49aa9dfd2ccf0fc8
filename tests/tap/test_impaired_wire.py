"""The kernel against the simulated server over a wire that loses, reorders, doubles and damages frames, both ways."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from tests.tap.harness import SERVERS, Tap, assert_at_rest, error_notes, needs_tap, url

pytestmark = needs_tap

REST_S = 2.5
"""A last acknowledgement may be lost: its FIN comes again after 200 ms, 400 ms and so on."""


IMPAIRMENTS = [("loss", "1%", 1 << 20), ("loss", "5%", 1 << 18), ("reorder", "5%", 1 << 20),
               ("duplicate", "5%", 1 << 20), ("corrupt", "2%", 1 << 20)]

# Of TCP on the device the first is for each change, the others for the long tests.
EACH = [pytest.param(system, *impairment, marks=[pytest.mark.long] if number and system == "nic-tcp" else [])
        for system in ("nic-tso", "nic-tcp") for number, impairment in enumerate(IMPAIRMENTS)]


@pytest.mark.parametrize(("system", "option", "share", "size_bytes"), EACH)
def test_every_file_is_whole(root: Path, tmp_path: Path, system: str, option: str, share: str,
                             size_bytes: int) -> None:
    data = (root / "20M").read_bytes()[:size_bytes]
    (tmp_path / "file").write_bytes(data)
    options = (*SERVERS[system], f"--{option}", share, "--seed", "3")
    with Tap(tmp_path, *options, captured=True) as tap:
        for version in (4, 6):
            assert tap.curl(url("file", version)) == data
            answer = tap.curl("--upload-file", str(tmp_path / "file"), url("upload", version))
            assert answer == f"{hashlib.sha256(data).hexdigest()} {size_bytes}\n".encode()
        time.sleep(REST_S)
        result = tap.finish()
        assert_at_rest(result)
        # Of frames for the device, those that the wire has damaged are errors; of ours, none.
        assert error_notes(tap.capture, "eth.src == 02:00:00:00:00:01") == []
    counted = {"loss": "lost", "reorder": "reordered", "duplicate": "duplicated", "corrupt": "corrupted"}[option]
    for way in (result.outbound, result.inbound):
        assert way is not None
        assert getattr(way, counted) > 0
    if option == "corrupt":
        assert result.stack["bad_checksum"] > 0


@pytest.mark.parametrize("system", ["nic-dumb", "nic-tcp"])
def test_all_at_once_for_many_connections(root: Path, system: str) -> None:
    expected = (root / "16K").read_bytes()
    impaired = ("--loss", "1%", "--reorder", "2%", "--duplicate", "1%", "--corrupt", "1%", "--delay", "2ms")
    with Tap(root, "--engine", "model", "--systems", system, *impaired) as tap:
        connections = [tap.connect(4 + 2 * (number % 2)) for number in range(20)]
        for connection in connections:
            connection.sendall(b"GET /16K HTTP/1.1\r\nHost: memnic\r\nConnection: close\r\n\r\n")
        for connection in connections:
            parts = []
            while part := connection.recv(1 << 16):
                parts.append(part)
            assert b"".join(parts).endswith(b"\r\n\r\n" + expected)
            connection.close()
        time.sleep(REST_S)
        assert_at_rest(tap.finish())
