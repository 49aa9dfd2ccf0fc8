"""Building the RTL for simulation: the cache, and what a missing or failing tool says."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from cosim import builds
from cosim.errors import ToolError
from nic_model.contract import CONFIGS

ROOT = Path(__file__).parents[2]
TARGETS = (builds.LIBRARY, builds.COUNTING, builds.COCOTB, builds.LEAN_ICARUS, builds.AMBA_VERILATOR,
           builds.AMBA_ICARUS)


def test_a_second_build_compiles_nothing(tiny_compiled: Path, monkeypatch: pytest.MonkeyPatch,
                                         tmp_path: Path) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("a tool was called")

    monkeypatch.setattr(builds, "_run", refuse)
    said: list[str] = []
    assert builds.build(CONFIGS["tiny"], builds.LIBRARY, said.append) == tiny_compiled
    assert builds.is_built(CONFIGS["tiny"], builds.LIBRARY)
    assert said == []
    monkeypatch.setenv("MEMNIC_CACHE", str(tmp_path))
    assert not builds.is_built(CONFIGS["tiny"], builds.LIBRARY)
    with pytest.raises(AssertionError, match="a tool was called"):
        builds.build(dataclasses.replace(CONFIGS["tiny"], clock_hz=125_000_000), builds.LIBRARY, said.append)
    assert said == ["building tiny for the compiled engine; once, about a minute on two cores"]


def test_the_key_changes_with_all_that_a_build_depends_on() -> None:
    tiny = CONFIGS["tiny"]
    keys = {builds._key(config, target._replace(waves=waves))
            for config in (tiny, dataclasses.replace(tiny, keys=128)) for target in TARGETS
            for waves in ("", *builds.WAVE_FORMATS)}
    assert len(keys) == 2 * len(TARGETS) * 3
    assert builds._key(tiny, builds.LIBRARY) in keys


COUNTED = """struct State { unsigned char seldom, often; } state;
int main() {
  State& vlSelfRef = state;
  for (int n = 0; n < 100; n++) {
    vlSelfRef.often ^= 1;
    if (n == 99) {
      vlSelfRef.seldom = vlSelfRef.often;
    }
  }
}
"""
HEADER = """struct {
    VL_IN8(clk,0,0);
    CData/*0:0*/ never;
    CData/*7:0*/ seldom;
    IData/*31:0*/ wide;
    CData/*0:0*/ often;
};
"""


def test_what_training_used_most_stands_first(tmp_path: Path) -> None:
    """One-byte variables change places with each other, and nothing else moves."""
    folder, profile = tmp_path / "obj", tmp_path / "profile"
    folder.mkdir()
    (folder / "Vwrapper___024root__0.cpp").write_text(COUNTED)
    (folder / "Vwrapper__ALL.cpp").write_text('#include "Vwrapper___024root__0.cpp"\n')
    (folder / "Vwrapper___024root.h").write_text(HEADER)
    subprocess.run(["g++", "-O0", "-fprofile-generate", "-ftest-coverage", f"-fprofile-dir={profile}", "-c",
                    "Vwrapper__ALL.cpp"], cwd=folder, check=True)
    subprocess.run(["g++", "-fprofile-generate", "-o", "run", "Vwrapper__ALL.o"], cwd=folder, check=True)
    subprocess.run([str(folder / "run")], cwd=folder, check=True)
    builds._order_state(tmp_path)
    lines = HEADER.splitlines()
    assert (folder / "Vwrapper___024root.h").read_text().splitlines() == [
        *lines[:2], lines[5], lines[3], lines[4], lines[2], lines[6]]


def test_a_tool_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEMNIC_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="iverilog is missing: install the package iverilog"):
        builds.build(CONFIGS["tiny"], builds.LEAN_ICARUS)


def test_a_tool_that_fails_says_what_and_where_and_each_thing_once(tmp_path: Path) -> None:
    code = "print('a.cpp:1: note: see\\n' + 3 * 'a.cpp:2: error: no such thing\\n'); raise SystemExit(1)"
    with pytest.raises(ToolError) as caught:
        builds._run([sys.executable, "-c", code], tmp_path)
    assert str(caught.value).splitlines() == [
        f"{Path(sys.executable).name} failed; its sources and build.log lie in {tmp_path}",
        "a.cpp:2: error: no such thing"]
    assert "a.cpp:1: note: see" in (tmp_path / "build.log").read_text()


def test_a_tool_that_fails_without_the_word_shows_its_end(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"\nno such option: -q$"):
        builds._run([sys.executable, "-c", "import sys; sys.exit('no such option: -q')"], tmp_path)


def test_a_command_that_needs_a_missing_tool_says_so_in_its_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="/no/such/make is missing: install it"):
        builds._run(["/no/such/make"], tmp_path)


def test_fst_without_its_libraries_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "has_fst", lambda: False)
    with pytest.raises(ToolError, match="install liblz4-dev and zlib1g-dev, or take VCD"):
        builds.with_waves(builds.LIBRARY, "fst")


@pytest.mark.parametrize(("program", "package"), [("g++", "g++"), ("perl", "perl"), ("make", "make")])
def test_set_up_names_each_missing_program_and_its_package(program: str, package: str, tmp_path: Path) -> None:
    for other in {"g++", "perl", "make"} - {program}:
        (tmp_path / other).symlink_to("/bin/true")
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "check_tools.py")], env={"PATH": str(tmp_path)},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"memnic setup: {program} is missing: install {package}\n"
