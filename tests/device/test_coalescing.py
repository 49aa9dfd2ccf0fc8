"""Coalescing, each part of it by itself, over the RTL and over the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cosim.engines.bus import BusTiming
from rtl.coalescer import OPENINGS
from tests.device.coalescing import CYCLES
from tests.device.rig import FAR, FAST, RigSpec, on_model, on_rtl
from tests.device.wide_values import AGES, LATEST_PS


def spec(scenario: str, arguments: Any = None) -> RigSpec:
    return RigSpec(scenario=f"tests.device.coalescing:{scenario}", arguments=arguments)


@pytest.mark.parametrize(("seed", "timing"), [(1, FAST), (2, FAR)])
@pytest.mark.parametrize("scenario", ["header_bits", "last_open"])
def test_against_the_model(tiny_compiled: Path, scenario: str, seed: int, timing: BusTiming) -> None:
    run = msgspec.structs.replace(spec(scenario, {"seed": seed}), timing=timing)
    assert on_rtl(run) == on_model(run)


def test_the_oldest_ends_when_too_many_were_opened(tiny_compiled: Path) -> None:
    """Also when their numbers go round."""
    assert on_rtl(spec("openings", [OPENINGS, OPENINGS + 8, OPENINGS, 3 * OPENINGS])) == [1, 2, 1, 2]


def test_ages_on_a_device_that_has_run_for_long(tiny_compiled: Path) -> None:
    ages = [age for age in AGES if age < 1 << 22]  # in all not as much as LATEST_PS leaves
    run = spec("late_ages", {"late_ps": LATEST_PS, "ages": ages})
    found = on_rtl(msgspec.structs.replace(run, limit_ps=LATEST_PS + 10**12))
    assert [age for age, _ in found] == ages
    over = [after - age for age, after in found]
    assert 0 < min(over) <= max(over) <= min(100, min(over) + 2), over


def test_how_many_cycles_a_segment_takes(tiny_compiled: Path) -> None:
    found = on_rtl(spec("rates"))
    too_many = {kind: cycles for kind, cycles in found.items() if cycles[0] > CYCLES[kind][0]
                or cycles[1] > CYCLES[kind][1]}
    assert not too_many
    assert found["appended"] < found["opens"]
