"""What of the suite judges a mutant: tests of the whole device, each over the RTL, alone.

A case runs a scenario of `tests/device` and raises when the device did not do as it should. Its limit is a little more
simulated time than the device as it is needs, so that a mutant that hangs is found in cycles.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from cosim.engines.bus import BusTiming
from tests.device import faults
from tests.device.rig import FAR, FAST, US, Rig, RigSpec, on_model, on_rtl
from tests.device.test_against_model import check_sense, difference
from tests.device.test_faults import LEFT_OUT

SLACK_PS = 500 * US


class Case(NamedTuple):
    """A test of the whole device."""

    name: str
    run: RigSpec
    judge: Callable[[Any], None]
    """Raises AssertionError for a result that is wrong."""


async def timed(rig: Rig, arguments: dict[str, Any]) -> dict[str, Any]:
    """Scenario: another one, and when it ended."""
    inner = RigSpec(scenario=arguments["scenario"], arguments=arguments["arguments"])
    return {"result": await inner.make(rig), "end_ps": rig.kernel.now}


def run(case: Case, library: Path, limit_ps: int | None = None) -> int:
    """Run it over a library; picoseconds that it took. Raises what was wrong."""
    spec = msgspec.structs.replace(
        case.run, scenario="tests.mutation.cases:timed", limit_ps=limit_ps or case.run.limit_ps,
        arguments={"scenario": case.run.scenario, "arguments": case.run.arguments})
    found = on_rtl(spec, library=library)
    case.judge(found["result"])
    end_ps: int = found["end_ps"]
    return end_ps


def _program(name: str, seed: int, timing: BusTiming, **sizes: int | bool) -> Case:
    run = RigSpec(scenario="tests.device.programs:run_seeds", arguments={"seeds": [seed], "sizes": sizes},
                  timing=timing, seed=seed)
    (model,) = on_model(run)

    def judge(result: Any) -> None:
        (rtl,) = result
        found = difference(model, rtl)
        assert not found, found
        assert rtl["unknown"] == [], "frames of no channel"
        check_sense(rtl)
    return Case(f"{name} {seed}", run, judge)


def _fault(name: str, timing: BusTiming, bus: str) -> Case:
    def judge(result: Any) -> None:
        assert result == {name: ""}, result[name]
    return Case(f"{name} {bus}", RigSpec(scenario="tests.device.faults:run_cases", timing=timing, limit_ps=10**12,
                                         arguments={"cases": [name]}), judge)


def all_cases() -> list[Case]:
    """Every case, the quick ones first."""
    found = [_program("program", seed, FAST) for seed in range(100, 112)]
    found += [_program("coalescing program", seed, FAST, sends=2, frames=80, coalesces=True)
              for seed in range(500, 508)]
    found += [_program("far program", seed, FAR) for seed in range(200, 212)]
    for bus, timing in (("fast", FAST), ("far", FAR)):
        found += [_fault(name, timing, bus) for name in faults.CASES
                  if name not in LEFT_OUT.get(f"rtl-{bus}", ()) and name != "submission_indices_wrap"]
    return found
