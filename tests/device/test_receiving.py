"""Receive buffers that are too small, and posted a few at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosim.engines.bus import BusTiming
from tests.device.receiving import EACH, ROUNDS
from tests.device.rig import FAR, FAST, RigSpec, on_model, on_rtl


def spec(scenario: str, seed: int, timing: BusTiming = FAST) -> RigSpec:
    return RigSpec(scenario=f"tests.device.receiving:{scenario}", arguments={"seed": seed}, timing=timing)


@pytest.mark.parametrize(("seed", "timing"), [(1, FAST), (2, FAR)])
def test_frames_and_aggregates_of_many_small_buffers(tiny_compiled: Path, seed: int, timing: BusTiming) -> None:
    run = spec("small_buffers", seed, timing)
    assert on_rtl(run) == on_model(run)


@pytest.mark.parametrize(("seed", "timing"), [(1, FAST), (2, FAR)])
def test_buffers_that_end_with_a_segment(tiny_compiled: Path, seed: int, timing: BusTiming) -> None:
    run = spec("exact_fits", seed, timing)
    assert on_rtl(run) == on_model(run)


@pytest.mark.parametrize(("seed", "timing"), [(1, FAST), (2, FAST), (3, FAR)])
def test_a_few_buffers_at_a_time(tiny_compiled: Path, seed: int, timing: BusTiming) -> None:
    assert sum(on_rtl(spec("refills", seed, timing))) == ROUNDS * EACH
