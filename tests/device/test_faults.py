"""Bus errors, bad doorbells and rings, resets in the middle of traffic: over the RTL on two buses, over the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.device.faults import CASES
from tests.device.rig import FAR, FAST, RigSpec, on_model, on_rtl

TIMINGS = {"rtl-fast": FAST, "rtl-far": FAR}

LEFT_OUT = {
    # The model asks memory for a piece at once, and after an error burst by burst: one that does not last escapes it.
    # Its frames wait for nothing.
    "model": {"payload", "buffers_taken_back"},
    # Thousands of fetches, one after the other.
    "rtl-far": {"submission_indices_wrap"},
}
DONE = [(device, case) for device in ("model", *TIMINGS) for case in CASES if case not in LEFT_OUT.get(device, ())]


@pytest.fixture(scope="module")
def outcome(tiny_compiled: Path) -> Callable[[str, str], str]:
    """What was wrong with a case on a device; all cases of a device run in one simulation."""
    @cache
    def outcomes(device: str) -> dict[str, str]:
        spec = RigSpec(scenario="tests.device.faults:run_cases", timing=TIMINGS.get(device, FAST), limit_ps=10**12,
                       arguments={"cases": [case for on, case in DONE if on == device]})
        found: dict[str, str] = on_model(spec) if device == "model" else on_rtl(spec)
        return found
    return lambda device, case: outcomes(device)[case]


@pytest.mark.parametrize(("device", "case"), DONE)
def test_device(outcome: Callable[[str, str], str], device: str, case: str) -> None:
    assert outcome(device, case) == ""
