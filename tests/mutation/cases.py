"""What of the suite judges a mutant: tests of the whole device over the RTL, each alone, and the bench's floors.

A case first runs over the device as it is, which must pass; then it knows how long that takes, and a mutant that hangs
is found in cycles. A mutant is as good as dead when its figures are worse by more than `memnic bench rtl --floors`
allows. Each case goes one way or both, and judges the mutants of blocks on that way.
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
from cosim.memory import DEFAULT_BASE
from nic_model.contract import CONFIGS, MAX_COALESCED_BYTES
from nic_model.contract.protocols import IPV4_HEADER_BYTES, TCP_HEADER_BYTES
from rtl.coalescer import OPENINGS
from tests.device import pushes, receiving, test_zero_checksum
from tests.device.coalescing import CYCLES
from tests.device.rig import FAR, FAST, MEMORY_BYTES, US, Rig, RigSpec, on_model, on_rtl
from tests.device.test_against_model import BASES, check_sense, difference
from tests.device.test_descriptors import check_backlog
from tests.device.test_transfers import CASES as TRANSFERS
from tests.device.wide_values import (
    AGES,
    BEHIND,
    BOUNDARY,
    LATE_PS,
    LATEST_PS,
    OVER_LOG2,
    SIZES_SLOTS,
    SLOW,
)
from tests.mutation.mutants import BOTH, RECEIVE, TRANSMIT

SLACK_PS = 500 * US


class Case(ABC):
    """One test. Attributes: `name`, `way`."""

    def __init__(self, name: str, way: str = BOTH) -> None:
        self.name = name
        self.way = way

    def judges(self, way: str) -> bool:
        """Whether it has to do with blocks of a way."""
        return BOTH in (self.way, way) or self.way == way

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
    """A scenario of `tests/device`; `judge` raises AssertionError for a result that is wrong. It begins with
    `idle_ps` in which nothing happens. One that also `walks`, without jumps over idle time, has two results."""

    def __init__(self, name: str, spec: RigSpec, judge: Callable[..., None], way: str = BOTH,
                 idle_ps: int = 0, walks: bool = False) -> None:
        super().__init__(name, way)
        self._judge = judge
        self._walks = walks
        self._idle_ps = idle_ps
        self._spec = msgspec.structs.replace(
            spec, scenario="tests.mutation.cases:timed", limit_ps=idle_ps + 10**12,
            arguments={"scenario": spec.scenario, "arguments": spec.arguments})

    def learn(self, library: Path) -> None:
        busy_ps = self._run(library) - self._idle_ps
        self._spec = msgspec.structs.replace(self._spec, limit_ps=self._idle_ps + 2 * busy_ps + SLACK_PS)

    def check(self, library: Path) -> None:
        self._run(library)

    def _run(self, library: Path) -> int:
        found = on_rtl(self._spec, library=library)
        walked = [on_rtl(self._spec, jump=False, library=library)] if self._walks else []
        self._judge(found["result"], *(each["result"] for each in walked))
        end_ps: int = found["end_ps"]
        return end_ps


def _program(name: str, seed: int, timing: BusTiming, way: str = BOTH, base: int = DEFAULT_BASE,
             **sizes: int | bool) -> Case:
    spec = RigSpec(scenario="tests.device.programs:run_seeds", arguments={"seeds": [seed], "sizes": sizes},
                   timing=timing, seed=seed, base=base)
    (model,) = on_model(spec)

    def judge(result: Any) -> None:
        (rtl,) = result
        found = difference(model, rtl)
        assert not found, found
        assert rtl["unknown"] == [], "frames of no channel"
        check_sense(rtl)
    return ScenarioCase(f"{name} {seed}", spec, judge, way)


FAULTS = {
    "descriptor_fetch": TRANSMIT, "payload": TRANSMIT, "payload_of_many_sends": TRANSMIT, "send_completion": TRANSMIT,
    "truncated_descriptors": TRANSMIT, "deregistration_in_traffic": TRANSMIT,
    "deregistration_behind_a_backlog": TRANSMIT, "receive_ring_fetch": RECEIVE, "receive_data": RECEIVE,
    "receive_completion": RECEIVE, "reset_while_receiving": RECEIVE, "receive_ring_fetch_behind": RECEIVE,
    "buffers_taken_back": RECEIVE, "start_in_traffic": RECEIVE, "reset_beside_traffic": RECEIVE,
    "reset_while_fetching": RECEIVE, "shared_completion_writes": BOTH, "doorbell_overrun": BOTH,
    "ring_configurations": BOTH, "reset_in_traffic": BOTH, "device_reset": BOTH,
}
"""Of `tests.device.faults`; without the one in which an index wraps round, by thousands of fetches."""


def _fault(name: str, way: str) -> Case:
    def judge(result: Any) -> None:
        assert result == {name: ""}, result[name]
    return ScenarioCase(name, RigSpec(scenario="tests.device.faults:run_cases", timing=FAST,
                                      arguments={"cases": [name]}), judge, way)


def _hostile(scenario: str, way: str, **arguments: int) -> Case:
    spec = RigSpec(scenario=f"tests.device.hostile:{scenario}", arguments=arguments, limit_ps=10**13)
    model = on_model(spec)

    def judge(result: Any) -> None:
        assert result == model, "the model's answers differ"
    return ScenarioCase(f"hostile {scenario} {arguments['seed']}", spec, judge, way)


def _zero_checksum() -> Case:
    def judge(result: Any) -> None:
        assert result == test_zero_checksum.EXPECTED
    return ScenarioCase("zero checksum", test_zero_checksum.SPEC, judge, TRANSMIT)


def _wide(scenario: str, way: str, timing: BusTiming = FAST, module: str = "wide_values", **arguments: int) -> Case:
    spec = RigSpec(scenario=f"tests.device.{module}:{scenario}", arguments=arguments, base=BASES[1], timing=timing)
    model = on_model(spec)

    def judge(result: Any) -> None:
        assert result == model, "the model's results differ"
    return ScenarioCase(f"{scenario} {arguments['seed']}", spec, judge, way)


MOST_AGES = [age for age in AGES if age < 1 << 22]
"""A mutant that is idle no more walks through the one that it is at, and `late_ages` has no time for more."""


def _check_ages(result: Any) -> None:
    over = [after - age for age, after in result]
    assert 0 < min(over) <= max(over) <= min(100, min(over) + 2), over


def _ages() -> Case:
    return ScenarioCase("ages", RigSpec(scenario="tests.device.wide_values:ages", arguments=MOST_AGES), _check_ages,
                        RECEIVE)


def _late_ages() -> Case:
    spec = RigSpec(scenario="tests.device.coalescing:late_ages", arguments={"late_ps": LATEST_PS, "ages": MOST_AGES})
    return ScenarioCase("late ages", spec, _check_ages, RECEIVE, idle_ps=LATEST_PS)


def _openings() -> Case:
    def judge(result: Any) -> None:
        assert result == [1, 2], f"receives of the first stream: {result}"
    return ScenarioCase("openings", RigSpec(scenario="tests.device.coalescing:openings",
                                            arguments=[OPENINGS, OPENINGS + 8]), judge, RECEIVE)


def _rates() -> Case:
    def judge(result: Any) -> None:
        for kind, most in CYCLES.items():
            assert all(took <= at_most for took, at_most in zip(result[kind], most, strict=True)), (kind, result[kind])
    return ScenarioCase("rates", RigSpec(scenario="tests.device.coalescing:rates"), judge, RECEIVE)


def _refills(seed: int) -> Case:
    def judge(result: Any) -> None:
        assert sum(result) == receiving.ROUNDS * receiving.EACH
    return ScenarioCase(f"refills {seed}", RigSpec(scenario="tests.device.receiving:refills",
                                                   arguments={"seed": seed}), judge, RECEIVE)


def _longest() -> Case:
    def judge(result: Any) -> None:
        assert result == [MAX_COALESCED_BYTES - IPV4_HEADER_BYTES - TCP_HEADER_BYTES, BEHIND]
    return ScenarioCase("longest", RigSpec(scenario="tests.device.wide_values:longest"), judge, RECEIVE)


def _full_turn() -> Case:
    def judge(result: Any) -> None:
        assert min(result) > 1 << 16
    return ScenarioCase("full turn", RigSpec(scenario="tests.device.wide_values:full_turn"), judge)


def _ring_sizes() -> Case:
    def judge(result: Any) -> None:
        assert [frames for _, frames in result] == [4 << log2 for log2 in SIZES_SLOTS]
    return ScenarioCase("ring sizes", RigSpec(scenario="tests.device.wide_values:ring_sizes"), judge)


def _over_4_gb() -> Case:
    def judge(result: Any) -> None:
        assert result == [[1 << OVER_LOG2] * 2] * 3
    return ScenarioCase("over 4 GB", RigSpec(scenario="tests.device.wide_values:over_4_gb",
                                             base=BOUNDARY - MEMORY_BYTES // 2), judge)


def _late(seed: int, late_ps: int) -> Case:
    spec = RigSpec(scenario="tests.device.wide_values:late", limit_ps=late_ps + 10**12,
                   arguments={"late_ps": late_ps, "seeds": [seed], "sizes": {}})
    (model,) = on_model(spec)

    def judge(result: Any) -> None:
        (rtl,) = result
        found = difference(model, rtl)
        assert not found, found
    return ScenarioCase(f"late program {seed}", spec, judge, idle_ps=late_ps)


def _pushes() -> Case:
    def judge(result: Any) -> None:
        assert result == pushes.expected()
    return ScenarioCase("pushes", RigSpec(scenario="tests.device.pushes:pushes"), judge, TRANSMIT)


def _held() -> Case:
    spec = RigSpec(scenario="tests.device.test_pause:held", arguments={"seed": 1})
    model = on_model(spec)

    def judge(result: Any) -> None:
        assert result == model, "the model's frames or completions differ"
    return ScenarioCase("held", spec, judge, TRANSMIT)


def _backlog() -> Case:
    spec = RigSpec(scenario="tests.device.descriptors:backlog", arguments={"seed": 1})
    model = on_model(spec)

    def judge(jumping: Any, walking: Any) -> None:
        check_backlog(jumping, walking, model)
    return ScenarioCase("backlog", spec, judge, TRANSMIT, walks=True)


def _transfers() -> Case:
    def judge(result: Any) -> None:
        assert not any(result), next(filter(None, result))
    return ScenarioCase("transfers", RigSpec(scenario="tests.device.transfers:run_transfers", arguments=TRANSFERS[::4]),
                        judge)


# ---------------------------------------------------------------------------------------------- the bench


class BenchCase(Case):
    """A figure of `memnic bench rtl`, measured in one way."""

    def __init__(self, figure: Figure, variant: Variant, way: str) -> None:
        super().__init__(" ".join(filter(None, ["bench", figure.key, variant.name])), way)
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


BENCH = {"transmit_536": TRANSMIT, "push": TRANSMIT, "doorbell": TRANSMIT, "receive_1514": RECEIVE,
         "receive_latency_60": RECEIVE, "small_transmit_1": BOTH, "small_receive_1": BOTH}
"""Figures of the bench, by their keys."""


def all_cases() -> list[Case]:
    """Every case, in the order in which they are tried."""
    return [
        *(_program("program", seed, FAST) for seed in range(100, 110)),
        *(_program("coalescing program", seed, FAST, RECEIVE, sends=2, frames=80, coalesces=True)
          for seed in range(500, 508)),
        *(_program("program elsewhere", 600 + number, FAR, base=base) for number, base in enumerate(BASES)),
        *(_program("program with strays", seed, FAST, sends=6, frames=40, strays=True, coalesces=coalesces)
          for seed, coalesces in ((610, False), (611, False), (610, True))),
        *(_program("far program", seed, FAR) for seed in range(200, 206)),
        _hostile("send", BOTH, seed=1, sends=60), *(_hostile("receive", RECEIVE, seed=9000 + n, frames=500)
                                                    for n in range(2)),
        *(_fault(name, way) for name, way in FAULTS.items()),
        _wide("long_rings", BOTH, seed=1), _wide("long_rings", BOTH, SLOW, seed=2),
        *(_wide("limits", RECEIVE, seed=seed) for seed in (1, 2)), _wide("contexts", RECEIVE, seed=1),
        _wide("dropped_heads", RECEIVE, seed=1),
        _wide("bounds", BOTH, seed=1), _wide("payloads", TRANSMIT, seed=1), _ages(), _ring_sizes(),
        _over_4_gb(),
        _late(700, LATE_PS), *(_wide("many_pieces", TRANSMIT, seed=seed) for seed in (1, 2)),
        *(_wide("small_buffers", RECEIVE, module="receiving", seed=seed) for seed in (1, 2)),
        _wide("exact_fits", RECEIVE, module="receiving", seed=1),
        *(_refills(seed) for seed in (1, 2)),
        *(_wide(scenario, TRANSMIT, module="sending", seed=seed) for scenario in ("large_sends", "inline_bytes")
          for seed in (1, 2)),
        *(_wide(scenario, RECEIVE, module="coalescing", seed=1) for scenario in ("header_bits", "last_open")),
        _openings(), _late_ages(), _rates(),
        _zero_checksum(), _pushes(), _held(), _transfers(),
        *(_wide("at_limits", TRANSMIT, module="descriptors", seed=seed) for seed in (1, 2)),
        _backlog(),
        *(BenchCase(figure, figure.variants[0], BENCH[figure.key]) for figure in figures(CONFIGS["tiny"])
          if figure.key in BENCH),
        _full_turn(), _longest(), _late(701, LATEST_PS),
    ]
