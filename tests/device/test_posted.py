"""Socket operations on the whole device: the same over the model and over the compiled RTL."""

from __future__ import annotations

import msgspec
import pytest

from tests.device.rig import FAR, FAST, RigSpec, on_model, on_rtl

SPEC = RigSpec(scenario="tests.device.posted:serve", device="offloading")


@pytest.mark.parametrize(("seed", "slowest_us", "timing"), [(1, 1, FAST), (2, 30, FAR)])
def test_operations_among_sends(seed: int, slowest_us: int, timing: object) -> None:
    spec = msgspec.structs.replace(SPEC, seed=seed, timing=timing, arguments={
        "seed": seed, "slowest_us": slowest_us, "each": 120})
    found = on_model(spec)
    assert on_rtl(spec) == found
    counters = found["counters"]
    assert counters["control_ops"] == sum(map(len, found["ops"].values())) > 80
    assert counters["tx_errors"] > 3
    assert len(found["frames"]) > 60
