"""Descriptors at the limits of what the contract takes, and a backlog of them, over the RTL and over the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cosim.engines.bus import BusTiming
from nic_model.contract import Status
from tests.device.descriptors import BACKLOG
from tests.device.rig import FAR, FAST, RigSpec, on_model, on_rtl


@pytest.mark.parametrize(("seed", "timing"), [(1, FAST), (2, FAST), (3, FAR)])
def test_sends_at_limits_and_beyond(tiny_compiled: Path, seed: int, timing: BusTiming) -> None:
    run = RigSpec(scenario="tests.device.descriptors:at_limits", arguments={"seed": seed}, timing=timing)
    found = on_rtl(run)
    for what, is_good, status, _ in found:
        expected = Status.OK if is_good else Status.BAD_DESCRIPTOR
        assert status == expected, f"{what}, {'at the limit' if is_good else 'beyond'}: {Status(status).name}"
    assert found == on_model(run)


QUIET_CYCLES = 100
"""Of 31,250, while nothing can move."""


def check_backlog(jumping: dict[str, Any], walking: dict[str, Any], model: dict[str, Any]) -> None:
    """Whether what `backlog` found with and without jumps over idle time is right. Raises AssertionError."""
    assert jumping["told"] == model["told"], "the model's completions or frames differ"
    assert jumping["cycles"] <= QUIET_CYCLES, f"{jumping['cycles']} cycles had work, while nothing could move"
    for part in jumping.keys() - {"cycles"}:
        assert jumping[part] == walking[part], f"{part} differ without jumps"


@pytest.mark.parametrize("timing", [FAST, FAR], ids=["fast", "far"])
def test_a_backlog_waits_at_rest(tiny_compiled: Path, timing: BusTiming) -> None:
    """A channel that waits for room is looked at again when there is room, and no sooner."""
    run = RigSpec(scenario="tests.device.descriptors:backlog", arguments={"seed": 1}, timing=timing)
    jumping, model = on_rtl(run), on_model(run)
    check_backlog(jumping, on_rtl(run, jump=False), model)
    assert [len(frames) for _, frames in jumping["told"]] == [BACKLOG] * len(jumping["told"])
