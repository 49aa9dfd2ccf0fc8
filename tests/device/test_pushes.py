"""A pushed descriptor is used, however many were forgotten before it. The contract has it in memory too, from where the
model takes it; so this is for the RTL alone."""

from __future__ import annotations

from pathlib import Path

from tests.device.pushes import expected
from tests.device.rig import RigSpec, on_rtl


def test_a_push_is_used_behind_many_that_were_forgotten(tiny_compiled: Path) -> None:
    assert on_rtl(RigSpec(scenario="tests.device.pushes:pushes", limit_ps=10**12)) == expected()
