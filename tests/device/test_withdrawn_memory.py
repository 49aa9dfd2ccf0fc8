"""Keys that go while a decider's orders use them, over the model and the compiled RTL."""

from __future__ import annotations

import pytest

from tests.device.rig import FAR, FAST, RigSpec, on_model, on_rtl


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_read_or_written_once_memory_is_taken_back(seed: int) -> None:
    spec = RigSpec(scenario="tests.device.withdrawn_memory:withdraw", device="offloading",
                   arguments={"seed": seed, "trials": 12}, seed=seed, timing=FAR if seed % 2 else FAST)
    assert on_rtl(spec) == on_model(spec) == "as it should be"
