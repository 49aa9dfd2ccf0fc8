"""What of the suite judges a mutant: tests of the whole device over the RTL, each alone, and the bench's floors.

A case first runs over the device as it is, which must pass; then it knows how long that takes, and a mutant that hangs is
found in cycles. A mutant is as good as dead when its figures are worse by what `memnic bench rtl --floors` allows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from cosim.benches import cycles
from cosim.benches.floors import MARGIN
from cosim.benches.rtl import AT_LEAST, Figure, Variant, figures
from cosim.engines.bus import BusTiming
from nic_model.contract import CONFIGS
from tests.device.faults import CASES
from tests.device.rig import FAR, FAST, US, Rig, RigSpec, on_model, on_rtl
from tests.device.test_against_model import check_sense, difference
from tests.device.test_faults import LEFT_OUT
from tests.device.test_transfers import CASES as TRANSFERS

SLACK_PS = 500 * US


class Case(ABC):
    """One test. Attribute: `name`."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def learn(self, library: Path) -> None:
        """Run it over the device as it is. Raises what is wrong."""

    @abstractmethod
    def check(self, library: Path) -> None:
        """Run it over a mutant. Raises what is wrong."""


# ---------------------------------------------------------------------------------------------- scenarios


async def timed(rig: Rig, arguments: dict[str, Any]) -> dict[str, Any]:
    """Scenario: another one, and when it ended."""
    inner = RigSpec(scenario=arguments["scenario"], arguments=arguments["arguments"])
    return {"result": await inner.make(rig), "end_ps": rig.kernel.now}


class ScenarioCase(Case):
    """A scenario of `tests/device`; `judge` raises AssertionError for a result that is wrong."""

    def __init__(self, name: str, spec: RigSpec, judge: Callable[[Any], None]) -> None:
        super().__init__(name)
        self._judge = judge
        self._spec = msgspec.structs.replace(
            spec, scenario="tests.mutation.cases:timed", limit_ps=10**12,
            arguments={"scenario": spec.scenario, "arguments": spec.arguments})

    def learn(self, library: Path) -> None:
        self._spec = msgspec.structs.replace(self._spec, limit_ps=2 * self._run(library) + SLACK_PS)

    def check(self, library: Path) -> None:
        self._run(library)

    def _run(self, library: Path) -> int:
        found = on_rtl(self._spec, library=library)
        self._judge(found["result"])
        end_ps: int = found["end_ps"]
        return end_ps


def _program(name: str, seed: int, timing: BusTiming, **sizes: int | bool) -> Case:
    spec = RigSpec(scenario="tests.device.programs:run_seeds", arguments={"seeds": [seed], "sizes": sizes},
                   timing=timing, seed=seed)
    (model,) = on_model(spec)

    def judge(result: Any) -> None:
        (rtl,) = result
        found = difference(model, rtl)
        assert not found, found
        assert rtl["unknown"] == [], "frames of no channel"
        check_sense(rtl)
    return ScenarioCase(f"{name} {seed}", spec, judge)


def _fault(name: str, timing: BusTiming, bus: str) -> Case:
    def judge(result: Any) -> None:
        assert result == {name: ""}, result[name]
    return ScenarioCase(f"{name} {bus}", RigSpec(scenario="tests.device.faults:run_cases", timing=timing,
                                                 arguments={"cases": [name]}), judge)


def _transfers(number: int, timing: BusTiming) -> Case:
    def judge(result: Any) -> None:
        assert not any(result), next(filter(None, result))
    return ScenarioCase(f"transfers {number}", RigSpec(
        scenario="tests.device.transfers:run_transfers", timing=timing, arguments=TRANSFERS[number::3]), judge)


# ---------------------------------------------------------------------------------------------- the bench


class BenchCase(Case):
    """A figure of `memnic bench rtl`, measured in one way."""

    def __init__(self, figure: Figure, variant: Variant) -> None:
        super().__init__(" ".join(filter(None, ["bench", figure.key, variant.name])))
        self._figure = figure
        self._variant = variant
        self._floor = 0.0

    def learn(self, library: Path) -> None:
        value = self._measure(library)
        self._floor = value * (1 - MARGIN if self._figure.sense == AT_LEAST else 1 + MARGIN)

    def check(self, library: Path) -> None:
        value = self._measure(library)
        good = value >= self._floor if self._figure.sense == AT_LEAST else value <= self._floor
        assert good, f"{value:.4g} {self._figure.unit}, where {self._figure.sense} {self._floor:.4g} is the floor"

    def _measure(self, library: Path) -> float:
        return self._variant.value(cycles.run(CONFIGS["tiny"], library, cycles.BUSES["out of order"],
                                              self._variant.load))


def _bench() -> list[Case]:
    """Two figures of one load are one case."""
    found: dict[Any, Case] = {}
    for figure in figures(CONFIGS["tiny"]):
        for variant in figure.variants:
            found.setdefault((figure.key, variant.load), BenchCase(figure, variant))
    return list(found.values())


def all_cases() -> list[Case]:
    """Every case, in the order in which they are tried."""
    found = [_program("program", seed, FAST) for seed in range(100, 112)]
    found += [_program("coalescing program", seed, FAST, sends=2, frames=80, coalesces=True)
              for seed in range(500, 508)]
    found += [_program("far program", seed, FAR) for seed in range(200, 212)]
    for bus, timing in (("fast", FAST), ("far", FAR)):
        # An index is wrapped round by thousands of fetches, in half a minute.
        found += [_fault(name, timing, bus) for name in CASES
                  if name not in LEFT_OUT.get(f"rtl-{bus}", ()) and name != "submission_indices_wrap"]
    found += [_transfers(number, timing) for number, timing in enumerate((FAST, FAR, FAST))]
    return found + _bench()
