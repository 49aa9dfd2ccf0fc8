"""`memnic bench`: its rows, its table and JSON, and the traffic that the engines are measured with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cosim import benches, cli
from cosim.benches import BenchOptions, engine
from cosim.benches.rows import Row, row
from cosim.benches.traffic import FRAME_BYTES, MSS, TrafficSpec
from cosim.commands import bench
from cosim.workload import read_log


@pytest.mark.parametrize(("value", "sense", "bar", "reached"), [
    (3.0, ">=", 3.0, True), (2.9, ">=", 3.0, False), (1.1, "<=", 1.1, True), (1.2, "<=", 1.1, False),
    (None, ">=", 0.0, False), (None, "<=", 9.0, False)])
def test_a_row_is_judged_by_its_sense(value: float | None, sense: str, bar: float, reached: bool) -> None:
    assert row("speed", value, "times", sense, bar).reached is reached


def test_another_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="sense must be >= or <=, not '=='"):
        row("speed", 1.0, "times", "==", 1.0)


@pytest.fixture
def two_benches(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(name: str, options: BenchOptions) -> list[Row]:
        options.say(f"the {name}")
        return [row(f"{name} is quick", 12345.0, "cycles/s", ">=", 20000),
                row(f"{name} is there", None, "", ">=", 1, "no")]

    monkeypatch.setattr(benches, "BENCHES", {"cat": ("x:y", "cats"), "dog": ("x:y", "dogs")})
    monkeypatch.setattr(bench, "BENCHES", benches.BENCHES)
    monkeypatch.setattr(bench, "measure", measure)


@pytest.mark.usefixtures("two_benches")
def test_all_benches_are_gathered_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "--json"]) == 0
    out = capsys.readouterr()
    rows = json.loads(out.out)
    assert [r["figure"] for r in rows] == ["cat is quick", "cat is there", "dog is quick", "dog is there"]
    assert rows[0] == {"figure": "cat is quick", "value": 12345.0, "unit": "cycles/s", "bar": 20000.0, "sense": ">=",
                       "reached": False, "note": "", "limit": None, "floor": None, "group": "", "key": ""}
    assert rows[1]["value"] is None
    assert out.err.splitlines() == ["measuring: the cat", "measuring: the dog"]


@pytest.mark.usefixtures("two_benches")
def test_one_bench_prints_its_table_and_exits_0_below_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "dog"]) == 0
    out = capsys.readouterr().out
    assert "dog: dogs" in out
    assert "12,345" in out
    assert ">= 20,000" in out
    assert "cat" not in out


def test_bad_use_of_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "horse"]) == 2
    assert cli.run(["bench", "engine", "--log", "/no/such/log"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == ["memnic: no bench 'horse': choose from engine, rtl, control, model, tcp, overload, placements,"
                    " crossover, accuracy, tap",
                    "memnic: --log: no file /no/such/log"]


def test_the_traffic_runs_at_the_wires_rate_both_ways_and_its_inputs_replay(tiny_compiled: Path) -> None:
    cycles = 40_000
    figures, replayed = engine.run_compiled(TrafficSpec(device="tiny", cycles=cycles), record=True)
    assert figures.cycles >= cycles
    # At 8 bytes a cycle, with preamble, FCS and gap; of each send the last frame is shorter.
    most = figures.cycles * 8 / (FRAME_BYTES + 24)
    assert 0.97 * most < figures.frames_received <= most + 1
    last = 65536 % MSS + 54 + 24
    in_fifo = 16384 // FRAME_BYTES + 1  # told of before they have left
    assert 0.97 * most < figures.frames_sent <= figures.cycles * 8 * 45 / (44 * (FRAME_BYTES + 24) + last) + in_fifo
    assert replayed > 0


def test_the_log_that_stands_in_can_be_read_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        engine._write_log(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    workload = read_log(tmp_path / "a", limit=engine.REQUESTS, max_size_bytes=1 << 18)
    sizes = [request.size_bytes for request in workload.requests]
    assert len(sizes) == engine.REQUESTS
    assert 15_000 < sum(sizes) / len(sizes) < 40_000
