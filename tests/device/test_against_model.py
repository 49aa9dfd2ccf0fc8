"""The RTL does what the model does: the same frames, completions, memory and counters, for the same random program.

A program that fails runs once more with a waveform; that and both captures are kept in `build/failed-programs`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cosim.engines.base import Wave
from cosim.engines.bus import BusTiming
from nic_model.contract import CONFIGS, COUNTERS
from tests.device.rig import FAR, FAST, MEMORY_BYTES, RigSpec, on_model, on_rtl
from tests.device.stray import stray_addresses

KEPT = Path(__file__).parents[2] / "build" / "failed-programs"

COUNTED = [counter.name for counter in COUNTERS if counter.name != "interrupts"]
"""How many completions share an interrupt depends on when they come."""


def spec(seeds: list[int], timing: BusTiming = FAST, device: str = "tiny", **sizes: int | bool) -> RigSpec:
    return RigSpec(scenario="tests.device.programs:run_seeds", arguments={"seeds": seeds, "sizes": sizes},
                   timing=timing, seed=seeds[0], device=device)


def difference(model: dict[str, Any], rtl: dict[str, Any]) -> str:
    """The first thing in which two results differ; empty if they are equal."""
    for kind in ("frames", "sends", "receives"):
        for channel, expected in model[kind].items():
            got = rtl[kind][channel]
            for number in range(max(len(expected), len(got))):
                pair = [found[number] if number < len(found) else None for found in (expected, got)]
                if pair[0] != pair[1]:
                    return f"{kind} of channel {channel}, number {number} of {len(expected)}: {pair[0]}, RTL {pair[1]}"
    counters = {name: (model["counters"][name], rtl["counters"][name]) for name in COUNTED}
    differing = {name: pair for name, pair in counters.items() if pair[0] != pair[1]}
    if differing:
        return f"counters {differing}"
    return "" if model["memory"] == rtl["memory"] else "memory that frames were received into"


def assert_same(run: RigSpec, engine: str = "compiled") -> list[dict[str, Any]]:
    """Run over both and compare; returns the RTL's results."""
    models, rtls = on_model(run), on_rtl(run, engine=engine)
    for seed, model, rtl in zip(run.arguments["seeds"], models, rtls, strict=True):
        found = difference(model, rtl)
        if found:
            kept = keep(seed, run, engine)
            pytest.fail(f"program {seed} on {run.device}, {engine}: {found}; wave and captures in {kept}")
        assert rtl["unknown"] == []
        check_sense(rtl)
    return rtls


def keep(seed: int, run: RigSpec, engine: str) -> Path:
    """Run one program again, alone, with everything kept."""
    folder = KEPT / f"{run.device}-{engine}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)

    def alone(capture: str) -> RigSpec:
        return RigSpec(scenario=run.scenario, arguments=run.arguments | {"seeds": [seed]}, timing=run.timing,
                       seed=run.seed, device=run.device, base=run.base, capture=str(folder / capture))

    on_model(alone("model.pcapng"))
    on_rtl(alone("rtl.pcapng"), engine=engine, wave=Wave(path=str(folder / "rtl.vcd"), jump=True))
    return folder


def check_sense(result: dict[str, Any]) -> None:
    """What must hold of a result by itself."""
    counters = result["counters"]
    assert counters["tx_frames"] == sum(len(frames) for frames in result["frames"].values())
    assert counters["tx_bytes"] == sum(len(frame) // 2 for frames in result["frames"].values() for frame in frames)
    assert counters["completions"] == sum(len(entries) for key in ("sends", "receives")
                                          for entries in result[key].values())
    assert counters["rx_frames_in"] == sum(counters[name] for name in (
        "rx_frames", "rx_filtered", "rx_bad_frames", "rx_no_buffer", "rx_oversize", "rx_fifo_full", "rx_errors"))
    assert counters["rx_fifo_full"] == 0


@pytest.mark.parametrize("timing", [FAST, FAR], ids=["fast", "far"])
def test_random_programs(tiny_compiled: Path, timing: BusTiming) -> None:
    seeds = list(range(100, 112)) if timing is FAST else list(range(200, 212))
    results = assert_same(spec(seeds, timing))
    statuses = {bytes.fromhex(entry)[1] for result in results for entries in result["sends"].values()
                for entry in entries}
    assert statuses == set(range(9)), "the programs must meet every status"
    for counter in ("rx_frames", "rx_filtered", "rx_bad_frames", "rx_no_buffer", "rx_oversize", "rx_errors",
                    "rx_checksum_errors", "rx_steered_rule", "rx_steered_rss"):
        assert sum(result["counters"][counter] for result in results) > 0, counter
    assert sum(result["counters"]["interrupts"] for result in results) > 0


BASES = [0, 0xA5A5_A5A5_A500_0000, (1 << 64) - MEMORY_BYTES]
"""Of host memory: the bottom, the top, and where the upper half of an address is not the other two's."""


@pytest.mark.parametrize("base", BASES, ids=hex)
def test_random_programs_anywhere_in_memory(tiny_compiled: Path, base: int) -> None:
    """Every bit of an address counts, wherever it passes."""
    assert_same(msgspec.structs.replace(spec(list(range(600, 604))), base=base))


@pytest.mark.parametrize("coalesces", [False, True])
def test_writes_where_there_is_no_register_have_no_effect(tiny_compiled: Path, coalesces: bool) -> None:
    assert len(stray_addresses(CONFIGS["tiny"])) > 3000
    assert_same(spec([610, 611], sends=6, frames=40, coalesces=coalesces, strays=True))


def test_random_programs_that_coalesce(tiny_compiled: Path) -> None:
    results = assert_same(spec(list(range(500, 508)), sends=2, frames=80, coalesces=True))
    for counter in ("rx_aggregates", "rx_coalesced", "rx_no_buffer", "rx_errors"):
        assert sum(result["counters"][counter] for result in results) > 0, counter


def test_random_program_on_icarus() -> None:
    """Four-valued logic: an output with unknown bits ends the run."""
    assert_same(spec([304], sends=6, frames=10), "icarus")


def test_random_program_that_coalesces_on_icarus() -> None:
    (result,) = assert_same(spec([500], sends=2, frames=30, coalesces=True), "icarus")
    assert result["counters"]["rx_aggregates"] > 0


def test_random_program_on_a_wide_bus() -> None:
    """512 bits on both sides, where a beat holds several descriptors, and whole frames."""
    assert_same(spec([400], FAR, "wide-test", sends=5, frames=8), "icarus")
