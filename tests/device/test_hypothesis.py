"""The whole device driven by hypothesis: programs of rings, descriptors, keys and frames that it decides on, and makes
small when the RTL and the model differ."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.device.programs import make_program
from tests.device.rig import FAR, FAST, RigSpec, on_model, on_rtl
from tests.device.test_against_model import difference


@pytest.mark.parametrize("coalesces", [False, True], ids=["", "coalesces"])
@settings(max_examples=25, deadline=None, derandomize=True, database=None, print_blob=True,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture])
@given(rng=st.randoms(use_true_random=False), timing=st.sampled_from((FAST, FAR)), seed=st.integers(0, 1 << 16),
       sends=st.integers(1, 3), frames=st.integers(1, 6))
def test_programs(tiny_compiled: Path, coalesces: bool, rng: random.Random, timing, seed: int, sends: int,
                  frames: int) -> None:
    program = make_program(seed, sends=sends, frames=frames, coalesces=coalesces, rng=rng)
    note(f"{program}")
    run = RigSpec(scenario="tests.device.programs:run_one", arguments=program, timing=timing, seed=seed)
    assert difference(on_model(run), on_rtl(run)) == ""
