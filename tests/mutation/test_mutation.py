"""The machinery of mutation tests: what a mutant is, how a process judges it, how explanations are found."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cosim.engines.base import RunError
from tests.explanations import Explanations
from tests.mutation.__main__ import EXPLAINED, Verdict, finish, start, tell
from tests.mutation.cases import BENCH, FAULTS, Case
from tests.mutation.mutants import BLOCKS, BOTH, RECEIVE, ROOT, TRANSMIT, Mutant, decided, parse


def test_a_mutant_is_read() -> None:
    line = (r"mutate -mode cnot1 -module simulation_top -cell $flatten\nic.\keys.$74 -port A -portbit 6 -ctrlbit 2 "
            f"-src {ROOT}/rtl/primitives.py:1 -src /elsewhere/amaranth/lib/stream.py:49 -src {ROOT}/rtl/keys.py:1")
    mutant = parse(7, "keys", line)
    assert mutant == (7, "keys", "cnot1 A[6] by bit 2", r"$flatten\nic.\keys.$74", "rtl/keys.py:1")
    assert mutant.statement == (ROOT / "rtl/keys.py").read_text().splitlines()[0]
    assert parse(8, "keys", "mutate -mode inv -cell c -port Y -portbit 0 -wire w").statement == ""


def test_what_another_bit_decides_is_no_mutant() -> None:
    types = {"$1": "$reduce_or", "$2": "$reduce_and", "$3": "$add"}
    said = {(cell, mode, port): decided(f"mutate -mode {mode} -cell {cell} -port {port} -portbit 1 -ctrlbit 2", types)
            for cell in types for mode in ("cnot0", "cnot1", "inv") for port in ("A", "Y")}
    assert [case for case, is_decided in said.items() if is_decided] == [("$1", "cnot1", "A"), ("$2", "cnot0", "A")]


class Fake(Case):
    """Fails as it is told."""

    def __init__(self, error: Exception | None = None, dies: bool = False) -> None:
        super().__init__("fake")
        self._error = error
        self._dies = dies

    def learn(self, library: Path) -> None:
        """Nothing."""

    def check(self, library: Path) -> None:
        if self._dies:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize(("cases", "said"), [
    ([Fake(), Fake()], ""),
    ([Fake(), Fake(AssertionError("frames differ\nby far"))], "fake: AssertionError: frames differ"),
    ([Fake(RunError("nothing moves"))], "fake: RunError: nothing moves"),
    ([Fake(dies=True)], "crash: SIGKILL")])
def test_a_process_tells_what_killed_its_mutant(cases: list[Case], said: str) -> None:
    assert finish(start(3, cases, Path("no.so"))) == said


def test_a_fault_of_the_tests_kills_no_mutant(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="mutant 3: the tests themselves failed"):
        finish(start(3, [Fake(MemoryError("none left"))], Path("no.so")))
    assert "MemoryError: none left" in capfd.readouterr().err


def test_cases_judge_the_blocks_of_their_way() -> None:
    assert [[Case.judges(case, way) for way in (TRANSMIT, RECEIVE, BOTH)]
            for case in (_way(TRANSMIT), _way(RECEIVE), _way(BOTH))] == [
        [True, False, True], [False, True, True], [True, True, True]]
    for ways in (FAULTS.values(), BENCH.values(), [block.way for block in BLOCKS.values()]):
        assert set(ways) == {TRANSMIT, RECEIVE, BOTH}


def _way(way: str) -> Case:
    case = Fake()
    case.way = way
    return case


def test_explanations_are_found_by_block_and_statement(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text('[[explained]]\nblock = "keys"\nstatement = "a.eq(b)"\nwhy = "it is so"\n'
                    '[[explained]]\nblock = "keys"\nstatement = "d"\nchange = "inv Y"\nwhy = "one way only"\n')
    found = Explanations(path)
    assert found.why("keys", "a.eq(b)") == "it is so"
    assert found.why("keys", "d", "inv Y[3]") == "one way only"
    assert found.why("keys", "d", "inv A[3]") == ""
    assert found.why("fetch", "a.eq(b)") == found.why("keys", "a.eq(c)") == ""
    assert Explanations(tmp_path / "none.toml").entries == []
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rtl").glob("*.py"))
    for entry in Explanations(EXPLAINED).entries:
        assert entry.block in BLOCKS
        assert len(entry.why) > 20
        assert entry.statement in sources, "the RTL has it no more"


def test_a_mutant_that_does_the_same_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.toml"
    path.write_text('[[explained]]\nblock = "keys"\nstatement = ""\nchange = "inv Y"\nsame = true\nwhy = "it is so"\n')
    monkeypatch.setattr("tests.mutation.__main__.EXPLAINED", path)
    mutants = [Mutant(number, "keys", "inv Y[0]" if number < 3 else "inv A[0]", "c", "") for number in range(1, 57)]
    # two that do the same, of which one is killed all the same; five others survive
    verdicts = {mutant.number: Verdict(mutant.number, "" if mutant.number in (1, 3, 4, 5, 6, 7) else "case: x", "")
                for mutant in mutants}
    assert not tell(mutants, verdicts), "the other blocks have no mutants"
    said = capsys.readouterr().out
    (row,) = (line.split() for line in said.splitlines() if line.startswith("keys   "))
    assert row == ["keys", "56", "1", "50", "90.9"]
    assert said.count("NOT EXPLAINED") == 5
    assert said.count("Does the same. it is so") == 1
