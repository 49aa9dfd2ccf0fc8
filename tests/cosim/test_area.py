"""`memnic synth --table`: what it writes, that it goes on where it was, and what it says of time and failures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cosim import area, cli
from cosim.area import DEVICES, SEEDS, WHOLE, Found, Job
from cosim.errors import ToolError
from cosim.synthesis import Area, Timing, blocks

FOUND = Found(area=Area(lut4=1234, flip_flops=567, block_rams=8, distributed_rams=9, multipliers=0),
              timing=Timing(fmax_hz=170e6, seed=1, critical_path=["  1.00 ns  a", "  5.88 ns  b"]))


def test_the_table_needs_each_block_of_both_devices_and_the_whole_one_three_times() -> None:
    wanted = area.jobs()
    assert {(job.config.mac_bytes, job.config.host_bytes) for job in wanted} == {(8, 16), (16, 32)}
    alone = {(job.config.mac_bytes, job.block) for job in wanted if job.block != WHOLE}
    assert alone == {(width, name) for width in (8, 16) for name in set(blocks()) - {WHOLE}}
    whole = [(job.config.name, job.seed) for job in wanted if job.block == WHOLE]
    assert whole == [("default", 1), ("default", 2), ("default", 3)]
    assert area.jobs(["keys"]) == [Job(config, "keys", 1) for config in DEVICES]


def test_a_small_block_is_put_into_the_table_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MEMNIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(area, "DEVICES", DEVICES[1:])
    path = tmp_path / "area.md"
    arguments = ["synth", "--table", str(path), "--block", "counters", "--no-route"]
    assert cli.run(arguments) == 0
    assert capsys.readouterr().err.splitlines()[0].startswith("1 of 1: default with a 128-bit MAC: counters")
    text = path.read_text()
    [row] = re.findall(r"^\| counters \| ([\d,]+) \| ([\d,]+) \| (\d+) \| (\d+) \| (\d+) \| - \|$", text, re.MULTILINE)
    assert all(int(number.replace(",", "")) > 50 for number in row[:2])
    assert "with a 128-bit MAC and a 256-bit host bus" in text
    assert max(map(len, text.splitlines())) <= 120

    def refuse(*_arguments: object) -> Area:
        raise AssertionError("synthesized again")

    monkeypatch.setattr(area, "synthesize", refuse)
    assert cli.run(arguments) == 0
    assert path.read_text() == text


def test_the_whole_device_has_its_worst_paths_and_what_misses_the_goal_is_marked() -> None:
    slow = Found(area=FOUND.area, timing=Timing(150e6, 2, ["  6.67 ns  c"]))
    text = area.document({Job(DEVICES[0], "keys", 1): slow, Job(DEVICES[0], WHOLE, 1): FOUND,
                          Job(DEVICES[0], WHOLE, 2): slow})
    assert "| keys | 1,234 | 567 | 8 | 9 | 0 | 150.0 (below the goal) |" in text
    assert "| 1 | 1,234 | 567 | 8 | 9 | 0 | 170.0 |" in text
    assert "| 2 | 1,234 | 567 | 8 | 9 | 0 | 150.0 (below the goal) |" in text
    assert "Worst path with seed 1:\n\n      1.00 ns  a\n      5.88 ns  b\n" in text
    assert "50,000 LUT4, 160 block RAMs" in text


def test_a_tool_that_fails_does_not_end_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(job: Job, *, route: bool) -> tuple[Found, bool]:
        if job.block == "events":
            raise ToolError("no room")
        return FOUND, False

    now = iter(range(0, 1_000_000, 100))
    monkeypatch.setattr(area, "measure", measure)
    said: list[str] = []
    path = tmp_path / "area.md"
    with pytest.raises(ToolError, match="default: events: no room\ndefault with a 128-bit MAC: events: no room"):
        area.make_table(path, ["events", "keys", "nic"], said.append, clock=lambda: next(now))
    assert path.read_text().count("| keys |") == 2
    assert "| events |" not in path.read_text()
    assert len(said) == 4 + len(SEEDS)
    assert said[-1].startswith("7 of 7: default: the whole device, seed 3 (about ")


def test_a_table_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["synth", "--table", str(tmp_path / "none" / "x.md"), "--block", "keys", "--no-route"]) == 2
    assert "none/x.md: No such file or directory" in capsys.readouterr().err
