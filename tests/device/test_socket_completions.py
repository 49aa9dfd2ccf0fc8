"""Completions that a decider orders: the same over the model, over the compiled RTL, and under cocotb."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.device.rig import FAR, FAST, RigSpec, on_model, on_rtl

SPEC = RigSpec(scenario="tests.device.socket_completions:complete", device="offloading",
               arguments={"seed": 1, "segments": 40, "others": 20})
CLOSES = RigSpec(scenario="tests.device.socket_completions:close", device="offloading",
                 arguments={"seed": 1, "trials": 12})


def with_seed(spec: RigSpec, seed: int, **changes: Any) -> RigSpec:
    assert isinstance(spec.arguments, dict)
    return msgspec.structs.replace(spec, arguments={**spec.arguments, "seed": seed}, seed=seed, **changes)


@pytest.mark.parametrize("seed", range(4))
def test_completions_beside_sends_and_receives(seed: int) -> None:
    spec = with_seed(SPEC, seed, timing=FAR if seed % 2 else FAST)
    assert on_rtl(spec) == on_model(spec)


@pytest.mark.long
def test_completions_under_cocotb() -> None:
    spec = msgspec.structs.replace(SPEC, arguments={"seed": 9, "segments": 8, "others": 4})
    assert on_rtl(spec, engine="cocotb") == on_model(spec)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_channel_is_closed_among_completions(seed: int) -> None:
    spec = with_seed(CLOSES, seed, timing=FAR if seed % 2 else FAST)
    assert on_rtl(spec) == on_model(spec) == "as it should be"
