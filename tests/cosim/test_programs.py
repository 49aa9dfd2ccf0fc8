"""The programs of docs/memnet.md and of examples/ do what they say, on the model engine; one of them on the RTL too."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMNET = ROOT / "docs" / "memnet.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", MEMNET.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_document_has_programs_and_its_first_is_short() -> None:
    assert len(BLOCKS) == 4
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 32


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_program_of_the_document_works(number: int) -> None:
    assert "assert" in BLOCKS[number], "it must say what it shows"
    exec(compile(BLOCKS[number], f"{MEMNET.name}, program {number + 1}", "exec"), {"__name__": "__main__"})


def run_example(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                *arguments: str) -> list[str]:
    """Lines that an example prints."""
    path = ROOT / "examples" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_the_web_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    served, copied, _ = run_example("web_server", monkeypatch, capsys)
    assert served.startswith("15 responses to 3 clients, 799,452 bytes")
    assert copied.endswith(": 0 bytes")


def test_the_echo_pair(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    simulated = run_example("echo", monkeypatch, capsys)
    assert simulated == run_example("echo", monkeypatch, capsys), "simulated time is the same each time"
    real = run_example("echo", monkeypatch, capsys, "--asyncio")
    assert [line.partition(":")[0] for line in simulated] == [line.partition(":")[0] for line in real]


def test_the_bulk_sender(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rates = [float(re.findall(r"([\d.]+) Mbit/s", line)[0])
             for line in run_example("bulk_sender", monkeypatch, capsys)]
    assert len(rates) == 4
    assert min(rates[1:]) > 5 * rates[0], "one at a time waits for a delayed acknowledgement each time"


@pytest.mark.usefixtures("tiny_compiled")
def test_the_echo_pair_on_the_rtl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run_example("echo", monkeypatch, capsys, "--engine", "compiled")
    assert len(lines) == 5


def test_a_command_line_that_cannot_be(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, what in ((("--engine", "cocotb"), "invalid choice: 'cocotb'"),
                            (("--capture", "/nowhere/file"), "cannot write /nowhere/file: No such file")):
        with pytest.raises(SystemExit) as ended:
            run_example("echo", monkeypatch, capsys, *arguments)
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert what in said
        assert said.count("\n") == 1
