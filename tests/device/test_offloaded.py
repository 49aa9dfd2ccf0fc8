"""A connection at the control port: the same over the model, over the compiled RTL, and under cocotb."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.device.rig import FAR, FAST, RigSpec, on_model, on_rtl

SPEC = RigSpec(scenario="tests.device.offloaded:serve", device="offloading",
               arguments={"seed": 1, "segments": 60, "sends": 25})


def with_seed(seed: int, **changes: Any) -> RigSpec:
    return msgspec.structs.replace(SPEC, arguments={**SPEC.arguments, "seed": seed}, seed=seed, **changes)


@pytest.mark.parametrize("seed", range(4))
def test_a_connection(seed: int) -> None:
    spec = with_seed(seed, timing=FAR if seed % 2 else FAST)
    assert on_rtl(spec) == on_model(spec)


@pytest.mark.long
@pytest.mark.parametrize("engine", ["cocotb", "icarus"])
def test_a_connection_under_cocotb(engine: str) -> None:
    spec = msgspec.structs.replace(SPEC, arguments={"seed": 9, "segments": 12, "sends": 4})
    assert on_rtl(spec, engine=engine) == on_model(spec)
