"""Ctrl-C during a run over RTL: no process is left, and what is there can be read."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cosim import builds
from cosim.results import CAPTURE_NAME, RESULT_NAME
from nic_model.contract import CONFIGS
from tests.cosim.captures import read_capture

START_LIMIT_S = 300
END_LIMIT_S = 120
ENOUGH_REQUESTS = 3

MAIN = """
import signal
import cosim.cli
import cosim.progress
signal.signal(signal.SIGINT, signal.default_int_handler)
cosim.progress.PLAIN_INTERVAL_S = 0.0
cosim.cli.main()
"""
"""The command, with SIGINT as in a terminal even if the tests run in the background, where a shell has it ignored; and
with every step of progress told."""


def processes() -> Iterator[tuple[int, int, str]]:
    """Number, parent and command line of each process."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        number, parent, command = line.split(maxsplit=2)
        yield int(number), int(parent), command


def descendants(root: int) -> dict[int, str]:
    """Number -> command line of all that a process started, itself not among them."""
    found: dict[int, str] = {}
    everything = list(processes())
    fringe = {root}
    while fringe:
        children = {number: command for number, parent, command in everything if parent in fringe}
        found |= children
        fringe = set(children)
    return found


class Running(NamedTuple):
    """A `memnic run` that has served some requests."""

    process: subprocess.Popen[str]
    out: Path
    errors_path: Path
    below: dict[int, str]
    """Its descendants, the simulator among them."""

    def left(self) -> dict[int, str]:
        """Descendants that are still there."""
        return {number: command for number, _, command in processes() if self.below.get(number) == command}


@pytest.fixture
def running(engine: str, tmp_path: Path) -> Iterator[Running]:
    """A run over RTL that would go on for hours; ended with the test."""
    builds.build(CONFIGS["tiny"], builds.LIBRARY if engine == "compiled" else builds.COCOTB)
    out, errors_path = tmp_path / "out", tmp_path / "errors"
    with errors_path.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, "run", "--engine", engine, "--device", "tiny", "--systems", "nic-tso",
             "--requests", "100000", "--out", str(out)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
    try:
        limit_s = time.monotonic() + START_LIMIT_S
        while max(map(int, re.findall(r"nic-tso: (\d+) of", errors_path.read_text())), default=0) < ENOUGH_REQUESTS:
            assert process.poll() is None, errors_path.read_text()
            assert time.monotonic() < limit_s, "the run does not begin"
            time.sleep(0.05)
        below = descendants(process.pid)
        if engine == "cocotb":
            assert [command for command in below.values() if command.startswith(str(builds.cache_folder()))], below
        yield Running(process, out, errors_path, below)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(("engine", "whom"), [
    ("compiled", "process alone"), ("cocotb", "process group"), ("cocotb", "process alone")])
def test_interrupting_a_run_over_rtl(whom: str, running: Running) -> None:
    process, out = running.process, running.out
    if whom == "process group":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    table, _ = process.communicate(timeout=END_LIMIT_S)

    said = running.errors_path.read_text()
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == f"memnic: interrupted in nic-tso; partial results are in {out}"
    assert "Traceback" not in said + table
    assert not running.left()
    result = json.loads((out / RESULT_NAME).read_text())
    assert result["complete"] is False
    partial = result["systems"]["nic-tso"]
    assert partial["complete"] is False
    assert partial["requests"] >= ENOUGH_REQUESTS
    assert partial["body_bytes"] == 16384 * partial["requests"]
    assert f"{partial['requests']:,d}" in table
    assert read_capture(out / "nic-tso" / CAPTURE_NAME, may_reset=True).frames > 10 * ENOUGH_REQUESTS


@pytest.mark.parametrize("engine", ["cocotb"])
def test_killing_a_run_takes_its_simulator_along(running: Running) -> None:
    running.process.kill()
    running.process.communicate(timeout=END_LIMIT_S)
    limit_s = time.monotonic() + END_LIMIT_S
    while running.left():
        assert time.monotonic() < limit_s, running.left()
        time.sleep(0.05)
