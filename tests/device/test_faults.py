"""Bus errors, bad doorbells and rings, resets in the middle of traffic: over the RTL on two buses, over the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.device.faults import CASES
from tests.device.rig import FAR, FAST, RigSpec, on_model, on_rtl

TIMINGS = {"rtl-fast": FAST, "rtl-far": FAR}

# The model asks memory for a piece at once and, if that fails, burst by burst; an error that does not last escapes it.
MODEL_CASES = [name for name in CASES if name != "payload"]


@pytest.fixture(scope="module")
def outcome(tiny_on_verilator: Path) -> Callable[[str, str], str]:
    """What was wrong with a case on a device; all cases of a device run in one simulation."""
    @cache
    def outcomes(device: str) -> dict[str, str]:
        spec = RigSpec(scenario="tests.device.faults:run_cases", timing=TIMINGS.get(device, FAST), limit_ps=10**12,
                       arguments={"cases": MODEL_CASES if device == "model" else list(CASES)})
        found: dict[str, str] = on_model(spec) if device == "model" else on_rtl(spec)
        return found
    return lambda device, case: outcomes(device)[case]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("device", TIMINGS)
def test_rtl(outcome: Callable[[str, str], str], device: str, case: str) -> None:
    assert outcome(device, case) == ""


@pytest.mark.parametrize("case", MODEL_CASES)
def test_model(outcome: Callable[[str, str], str], case: str) -> None:
    assert outcome("model", case) == ""
