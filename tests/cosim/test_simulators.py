"""Building and starting simulations: the cache, and what a missing or failing tool says."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from cosim import simulators
from cosim.errors import ToolError
from nic_model.contract import CONFIGS

ROOT = Path(__file__).parents[2]


def test_a_second_build_compiles_nothing(tiny_on_verilator: Path, monkeypatch: pytest.MonkeyPatch,
                                         tmp_path: Path) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("a tool was called")

    monkeypatch.setattr(simulators, "_run", refuse)
    assert simulators.build(CONFIGS["tiny"]) == tiny_on_verilator
    monkeypatch.setenv("MEMNIC_CACHE", str(tmp_path))
    with pytest.raises(AssertionError, match="a tool was called"):
        simulators.build(dataclasses.replace(CONFIGS["tiny"], clock_hz=125_000_000))


def test_the_key_changes_with_all_that_a_build_depends_on() -> None:
    tiny = CONFIGS["tiny"]
    keys = {simulators._key(config, simulator, waves, design)
            for config in (tiny, dataclasses.replace(tiny, keys=128)) for simulator in simulators.SIMULATORS
            for waves in (False, True) for design in (simulators.DEVICE, simulators.AMBA)}
    assert len(keys) == 16
    assert simulators._key(tiny, "verilator", False, simulators.DEVICE) in keys


def test_a_tool_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEMNIC_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="iverilog is missing: install the package iverilog"):
        simulators.build(CONFIGS["tiny"], "icarus")
    assert list(tmp_path.iterdir()) == []


def test_a_tool_that_fails_says_what_and_where(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=rf"its sources lie in {tmp_path}\nno such option: -q"):
        simulators._run([sys.executable, "-c", "import sys; sys.exit('no such option: -q')"], tmp_path)


def test_a_command_that_needs_a_missing_tool_says_so_in_its_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="/no/such/make is missing: install it"):
        simulators._run(["/no/such/make"], tmp_path)


def test_stopping_ends_the_whole_process_group(tmp_path: Path) -> None:
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); print('up', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"up\n"
        simulators.stop(process)
        # the pipe ends when the last process that has it is gone
        assert process.stdout.read() == b""
    assert process.poll() is not None


@pytest.mark.parametrize(("program", "package"), [("g++", "g++"), ("perl", "perl"), ("make", "make")])
def test_set_up_names_each_missing_program_and_its_package(program: str, package: str, tmp_path: Path) -> None:
    for other in {"g++", "perl", "make"} - {program}:
        (tmp_path / other).symlink_to("/bin/true")
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "check_tools.py")], env={"PATH": str(tmp_path)},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"memnic setup: {program} is missing: install {package}\n"
