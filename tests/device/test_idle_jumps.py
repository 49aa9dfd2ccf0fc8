"""Jumping over idle time changes nothing: the same bursts, frames and interrupts at the same picosecond."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cosim.engines.bus import BusTiming
from nic_model.contract import CONFIGS
from tests.device.programs import run_seeds
from tests.device.rig import FAR, FAST, Rig, RigSpec, on_rtl
from tests.device.transfers import run_transfers


async def traced_seeds(rig: Rig, arguments: dict[str, Any]) -> dict[str, Any]:
    """Scenario: programs, and each burst on the bus with its time."""
    assert rig.bus is not None
    results = await run_seeds(rig, arguments)
    return {"results": results, "bursts": rig.bus.events, "frames": [(time, f.hex()) for time, f in rig.mac.sent],
            "irqs": rig.irqs, "end_ps": rig.kernel.now, "cycles": rig.port.cycles_simulated}  # type: ignore[attr-defined]


async def traced_transfer(rig: Rig, arguments: list[dict[str, Any]]) -> dict[str, Any]:
    """Scenario: transfers, and each burst on the bus with its time."""
    assert rig.bus is not None
    wrong = await run_transfers(rig, arguments)
    return {"wrong": wrong, "bursts": rig.bus.events, "irqs": rig.irqs, "end_ps": rig.kernel.now}


def test_aggregates_end_at_the_same_time(tiny_compiled: Path) -> None:
    """By age: the oldest one's deadline is one of the device's."""
    case = {"api": "sockets", "length": 5000, "notification": "interrupts", "version": 4, "offloads": True,
            "coalescing_usecs": 37}
    spec = RigSpec(scenario="tests.device.test_idle_jumps:traced_transfer", arguments=[case])
    jumping, walking = on_rtl(spec), on_rtl(spec, jump=False)
    assert jumping["wrong"] == [""]
    for part in jumping:
        assert jumping[part] == walking[part], f"{part} differ"


@pytest.mark.parametrize(("timing", "seeds"), [(FAST, [501, 502]), (FAR, [503, 504])], ids=["fast", "far"])
def test_the_same_with_and_without_jumps(tiny_compiled: Path, timing: BusTiming, seeds: list[int]) -> None:
    spec = RigSpec(scenario="tests.device.test_idle_jumps:traced_seeds",
                   arguments={"seeds": seeds, "sizes": {"sends": 10, "frames": 16}}, timing=timing, seed=seeds[0])
    jumping, walking = on_rtl(spec), on_rtl(spec, jump=False)
    for part in ("irqs", "frames", "bursts", "results", "end_ps"):
        assert jumping[part] == walking[part], f"{part} differ, seeds {seeds}"
    cycles = jumping["end_ps"] * CONFIGS["tiny"].clock_hz // 10**12
    assert jumping["cycles"] < cycles / 2, "hardly anything was jumped over"
    assert len(jumping["frames"]) > 20
    assert len(jumping["irqs"]) > 3
    assert len(jumping["bursts"]) > 100
