"""Large sends, and inline bytes of any number."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cosim.engines.bus import BusTiming
from nic_model.contract import Status
from tests.device.rig import FAR, FAST, RigSpec, on_model, on_rtl
from tests.device.test_against_model import BASES


def spec(scenario: str, seed: int, timing: BusTiming = FAST) -> RigSpec:
    return RigSpec(scenario=f"tests.device.sending:{scenario}", arguments={"seed": seed}, timing=timing)


@pytest.mark.parametrize(("seed", "timing"), [(1, FAST), (2, FAR)])
def test_sends_up_to_the_largest(tiny_compiled: Path, seed: int, timing: BusTiming) -> None:
    run = msgspec.structs.replace(spec("large_sends", seed, timing), base=BASES[1], limit_ps=10**12)
    found = on_rtl(run)
    assert found == on_model(run)
    assert [status for _, status, *_ in found] == [expected for expected, *_ in found]


@pytest.mark.parametrize(("seed", "timing"), [(1, FAST), (2, FAST), (3, FAR)])
def test_frames_of_which_any_bytes_are_inline(tiny_compiled: Path, seed: int, timing: BusTiming) -> None:
    run = spec("inline_bytes", seed, timing)
    found = on_rtl(run)
    assert found == on_model(run)
    assert {status for _, status, _ in found} == {Status.OK}
