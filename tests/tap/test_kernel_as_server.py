"""The other way: the simulated host fetches from a real server in the namespace, through the RTL."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from cosim.tap.bench import TapResult
from tests.tap.conftest import SIZES
from tests.tap.harness import MEMNIC, SERVERS, assert_at_rest, error_notes, needs_tap

pytestmark = needs_tap


@pytest.mark.parametrize(("server", "options"), [
    ("nginx", SERVERS["nic-tso"]), ("http.server", ("--engine", "model")), ("nginx", SERVERS["nic-tcp"])],
    ids=["nginx", "http.server", "nginx-nic-tcp"])
def test_every_file_of_a_real_server_arrives_whole(root: Path, tmp_path: Path, server: str,
                                                   options: tuple[str, ...]) -> None:
    sizes = dict(SIZES)
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    if server == "nginx" and shutil.which("nginx", path=path) is None:
        pytest.skip("nginx is not installed")
    if options != SERVERS["nic-tso"]:
        # The slower servers and clients with the smaller files.
        del sizes["20M"]
        root = shutil.copytree(root, tmp_path / "root", ignore=shutil.ignore_patterns("20M"))
    if server != "nginx":
        # A PATH with ip and without nginx.
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "ip").symlink_to(str(shutil.which("ip", path=path)))
        path = str(tmp_path / "bin")
    capture = tmp_path / "wire.pcapng"
    done = subprocess.run([*MEMNIC, "tap", "--client", "--root", str(root), "--json", "--capture", str(capture),
                           *options],
                          capture_output=True, text=True, timeout=250, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(done.stdout, type=TapResult)
    assert {(file.path, file.address) for file in result.fetched} == {
        (name, address) for name in [*sizes, "folder/a file.txt"] for address in ("10.0.0.2", "fd00::2")}
    assert [file.problem for file in result.fetched if file.problem] == []
    assert all(file.body_bytes == sizes.get(file.path, 25) for file in result.fetched)
    assert_at_rest(result)
    assert error_notes(capture, "eth.src == 02:00:00:00:00:01") == []
