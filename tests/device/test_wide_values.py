"""Numbers with all their bits, over the RTL and over the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cosim.engines.bus import BusTiming
from nic_model.contract import MAX_COALESCED_BYTES, MAX_PIECES, Status
from nic_model.contract.protocols import IPV4_HEADER_BYTES, TCP_HEADER_BYTES
from tests.device.rig import FAR, FAST, MEMORY_BYTES, RigSpec, on_model, on_rtl
from tests.device.test_against_model import BASES, check_sense, difference
from tests.device.wide_values import (
    AGES,
    BEHIND,
    BOUNDARY,
    LATE_PS,
    LATEST_PS,
    OVER_LOG2,
    SIZES_SLOTS,
    SLOW,
)


def spec(scenario: str, **arguments: Any) -> RigSpec:
    return RigSpec(scenario=f"tests.device.wide_values:{scenario}", arguments=arguments, limit_ps=10**12)


@pytest.mark.parametrize(("seed", "timing"), [(1, FAST), (2, SLOW)])
def test_long_rings(tiny_compiled: Path, seed: int, timing: BusTiming) -> None:
    run = msgspec.structs.replace(spec("long_rings", seed=seed), base=BASES[1], timing=timing)
    assert on_rtl(run) == on_model(run)


def test_every_index_goes_all_the_way_round(tiny_compiled: Path) -> None:
    assert min(on_rtl(spec("full_turn"))) > 1 << 16


@pytest.mark.parametrize("on", [on_model, on_rtl])
def test_rings_of_all_sizes(tiny_compiled: Path, on: Callable[[RigSpec], Any]) -> None:
    found = on(spec("ring_sizes"))
    assert found == [[4 * ((1 << log2) // slots), 4 << log2] for log2, slots in SIZES_SLOTS.items()]


@pytest.mark.parametrize("on", [on_model, on_rtl])
def test_rings_across_4_gb(tiny_compiled: Path, on: Callable[[RigSpec], Any]) -> None:
    run = msgspec.structs.replace(spec("over_4_gb"), base=BOUNDARY - MEMORY_BYTES // 2)
    assert on(run) == [[1 << OVER_LOG2] * 2] * 3


@pytest.mark.parametrize("timing", [FAST, FAR], ids=["fast", "far"])
def test_payloads_about_powers_of_two(tiny_compiled: Path, timing: BusTiming) -> None:
    run = msgspec.structs.replace(spec("payloads"), timing=timing)
    found = on_rtl(run)
    assert found == on_model(run)
    assert {status for _, status, *_ in found} == {Status.OK}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_aggregates_of_any_size(tiny_compiled: Path, seed: int) -> None:
    run = msgspec.structs.replace(spec("limits", seed=seed), base=1 << 62, timing=FAR if seed == 3 else FAST)
    assert on_rtl(run) == on_model(run)


def test_the_longest_aggregate_of_the_smallest_segments(tiny_compiled: Path) -> None:
    assert on_rtl(spec("longest")) == [MAX_COALESCED_BYTES - IPV4_HEADER_BYTES - TCP_HEADER_BYTES, BEHIND]


@pytest.mark.parametrize(("seed", "timing"), [(1, FAST), (2, FAR)])
def test_more_streams_than_contexts(tiny_compiled: Path, seed: int, timing: BusTiming) -> None:
    run = msgspec.structs.replace(spec("contexts", seed=seed), timing=timing)
    assert on_rtl(run) == on_model(run)


@pytest.mark.parametrize(("seed", "timing"), [(1, FAST), (2, FAR)])
def test_heads_without_buffers(tiny_compiled: Path, seed: int, timing: BusTiming) -> None:
    run = msgspec.structs.replace(spec("dropped_heads", seed=seed), timing=timing)
    assert on_rtl(run) == on_model(run)


@pytest.mark.parametrize("on", [on_model, on_rtl])
def test_the_end_of_a_key(tiny_compiled: Path, on: Callable[[RigSpec], Any]) -> None:
    found = on(msgspec.structs.replace(spec("bounds", seed=1), base=BASES[1]))
    assert [status for _, status in found] == [expected for expected, _ in found]
    assert {status for _, status in found} == {Status.OK, Status.KEY_BOUNDS}


@pytest.mark.parametrize(("seed", "timing"), [(1, FAST), (2, FAR)])
def test_few_pieces_and_many(tiny_compiled: Path, seed: int, timing: BusTiming) -> None:
    run = msgspec.structs.replace(spec("many_pieces", seed=seed), timing=timing)
    assert set(on_rtl(run)) == {1, 2, MAX_PIECES - 1, MAX_PIECES}


def test_an_aggregate_ends_by_its_age(tiny_compiled: Path) -> None:
    found = on_rtl(RigSpec(scenario="tests.device.wide_values:ages", arguments=AGES, limit_ps=10**14))
    over = [after - age for age, after in found]
    assert [age for age, _ in found] == AGES
    assert max(over) - min(over) <= 2, dict(zip(AGES, over, strict=True))
    assert 0 < min(over) < 100


@pytest.mark.parametrize("late_ps", [LATE_PS, LATEST_PS], ids=["200 ms", "20 days"])
def test_a_device_that_has_run_for_long(tiny_compiled: Path, late_ps: int) -> None:
    """Upper bits of the time, in timestamps and in deadlines."""
    run = msgspec.structs.replace(spec("late", late_ps=late_ps, seeds=[700, 701], sizes={}), limit_ps=late_ps + 10**12)
    for model, rtl in zip(on_model(run), on_rtl(run), strict=True):
        assert not difference(model, rtl)
        check_sense(rtl)
