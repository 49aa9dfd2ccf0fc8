"""The results folder: whole at any time, replaced by the next run, the same for the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cosim.results import RESULT_NAME, ResultsFolder
from tests.cosim.test_report import configuration, result


def read_result(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def test_a_run_that_stops_early_leaves_what_is_done(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "a" / "b", configuration())
    assert read_result(folder.path / RESULT_NAME)["complete"] is False
    folder.add(result("nic-dumb", user=5), 1.5)
    data = read_result(folder.path / RESULT_NAME)
    assert data["complete"] is False
    assert data["systems"]["nic-dumb"]["cycles"] == {"user": 5}
    assert data["wall_clock"]["seconds"] == {"nic-dumb": 1.5}
    folder.finish()
    assert read_result(folder.path / RESULT_NAME)["complete"] is True
    assert [path.name for path in folder.path.iterdir()] == [RESULT_NAME]


def test_the_whole_configuration_and_the_versions_are_kept(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path, configuration(requests=3))
    data = read_result(folder.path / RESULT_NAME)
    assert data["configuration"]["machine"]["costs"]["interrupt"]["entry"]["cycles"] == 3000
    assert data["configuration"]["application"]["processes"] == 5
    assert data["configuration"]["workload"]["requests"][0] == ["GET", "/synthetic/000.html", 200, 16384]
    assert {"python", "memnic", "amaranth", "cocotb", "verilator"} <= set(data["versions"])


def test_only_the_wall_clock_differs_between_equal_runs(tmp_path: Path) -> None:
    texts = []
    for number in range(2):
        folder = ResultsFolder(tmp_path / str(number), configuration())
        folder.add(result("nic-tso", user=5), number + 1.0)
        folder.finish()
        data = read_result(folder.path / RESULT_NAME)
        assert data.pop("wall_clock")["seconds"] == {"nic-tso": number + 1.0}
        texts.append(json.dumps(data))
    assert texts[0] == texts[1]


def test_captures_and_waves_of_an_earlier_run_go(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path, configuration())
    capture, wave = folder.prepare("nic-dumb")
    assert (capture, wave) == (tmp_path / "nic-dumb" / "wire.pcapng", tmp_path / "nic-dumb" / "wave")
    waves = [wave.with_suffix(f".{kind}") for kind in ("vcd", "fst")]
    for path in (capture, *waves):
        path.touch()
    assert folder.prepare("nic-dumb") == (capture, wave)
    for path in (capture, *waves):
        assert not path.exists()
