"""The compiled engine and cocotb, with all transactors: the same to the picosecond where they must be."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import cocotb_tools.config
import pytest

from cosim import builds
from cosim.engines import cocotb_engine, compiled
from cosim.engines.base import RunError, SystemResult, Wave
from cosim.engines.bus import BusTiming
from cosim.engines.cocotb_engine import BenchSpec, run_bench, select
from cosim.errors import InputError, ToolError
from cosim.systems import SYSTEMS
from cosim.workload import Request
from nic_model.contract import CONFIGS, Status
from tests.cosim.test_experiment import nothing, spec
from tests.device.rig import FAR, FAST, RigSpec, on_rtl

PCIE = BusTiming(read_latency_cycles=60, write_latency_cycles=30, mmio_read_cycles=100, mmio_write_cycles=20,
                 bytes_per_cycle=12.5, duplex=True, tlp_overhead_bytes=24, max_payload_bytes=128,
                 max_read_request_bytes=64, tags=6, reorder_cycles=40, interleave=True, seed=7)
"""Both ways at once, in small packets, with few tags; data out of order and interleaved."""

KINDS = ("frames", "interrupts", "bursts", "counts", "most_reads", "memory", "end_ps", "programs")


def told(engine: str, timing: BusTiming, seed: int, *, jump: bool, **sizes: int) -> dict[str, Any]:
    """What an engine says of a random program, whose memory fails here and there."""
    found: dict[str, Any] = on_rtl(RigSpec(
        scenario="tests.device.everything:run_and_tell", arguments={"seeds": [seed], "sizes": sizes}, timing=timing,
        seed=seed), jump=jump, engine=engine)
    return found


def assert_equal(expected: dict[str, Any], got: dict[str, Any], what: str) -> None:
    """Compare, and name the first difference."""
    for kind in KINDS:
        if expected[kind] == got[kind]:
            continue
        if isinstance(expected[kind], list):
            pairs = zip(expected[kind], got[kind], strict=False)
            first = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(expected[kind]), len(got[kind])))
            pytest.fail(f"{what}: {kind} differ at number {first} of {len(expected[kind])} and {len(got[kind])}: "
                        f"{expected[kind][first:first + 1]}, {got[kind][first:first + 1]}")
        pytest.fail(f"{what}: {kind} {expected[kind]}, {got[kind]}")


@pytest.mark.parametrize(("timing", "seed"), [(FAST, 600), (FAR, 502), (PCIE, 503)], ids=["fast", "far", "pcie"])
def test_by_dpi_on_verilator(tiny_compiled: Path, timing: BusTiming, seed: int) -> None:
    expected = told("compiled", timing, seed, jump=True)
    assert len(expected["frames"]) > 20
    assert len(expected["bursts"]) > 200
    assert expected["interrupts"]
    entries = [bytes.fromhex(entry) for sends in expected["programs"][0]["sends"].values() for entry in sends]
    assert Status.BUS_ERROR in {entry[1] for entry in entries}
    for engine, jump in (("compiled", False), ("cocotb", timing is not FAR)):
        assert_equal(expected, told(engine, timing, seed, jump=jump), f"seed {seed}, {engine}, jump {jump}")


@pytest.mark.parametrize(("timing", "seed", "jump"), [(FAST, 512, True), (FAR, 605, False), (PCIE, 609, True)],
                         ids=["fast", "far", "pcie"])
def test_lean_on_icarus(tiny_compiled: Path, timing: BusTiming, seed: int, jump: bool) -> None:
    expected = told("compiled", timing, seed, jump=True, sends=5, frames=8)
    assert len(expected["frames"]) > 10
    entries = [bytes.fromhex(entry) for sends in expected["programs"][0]["sends"].values() for entry in sends]
    assert Status.BUS_ERROR in {entry[1] for entry in entries}
    assert_equal(expected, told("icarus", timing, seed, jump=jump, sends=5, frames=8), f"seed {seed}, Icarus")


def test_a_stuck_device_is_reported_at_the_same_time_by_the_same_names(tiny_compiled: Path) -> None:
    said = {}
    for engine in ("compiled", "cocotb", "icarus"):
        with pytest.raises(RunError) as failed:
            on_rtl(RigSpec(scenario="tests.device.everything:wait_for_lost_reads", limit_ps=10**15), engine=engine)
        said[engine] = str(failed.value).split("; ")
    assert said["cocotb"] == said["compiled"]
    assert "1 DMA read without an answer of host memory" in said["icarus"]
    # What waits inside the device is known only to those that can ask it.
    assert said["icarus"] == [part for part in said["compiled"] if part in said["icarus"]]
    assert said["icarus"][0] == said["compiled"][0]


# ---------------------------------------------------------------------------------------------- memnic run


def serve(simulator: str, transactors: str | None, requests: list[Request], **changes: object) -> SystemResult:
    """`nic-tso` on the cocotb engine."""
    return cocotb_engine.run(spec(SYSTEMS["nic-tso"], requests, simulator=simulator, transactors=transactors, clients=2,
                                  **changes), nothing)


def test_a_run_gives_the_same_result_on_every_engine_with_our_transactors(tiny_compiled: Path, tmp_path: Path) -> None:
    requests = [Request("GET", f"/{name}", 200, size) for name, size in (("a", 1), ("b", 3000), ("c", 5000))]
    results, captures, progress = [], [], []
    for name in ("compiled", "verilator", "icarus"):
        path = tmp_path / f"{name}.pcapng"
        if name == "compiled":
            results.append(compiled.run(spec(SYSTEMS["nic-tso"], requests, clients=2, capture_path=str(path)), nothing))
        else:
            results.append(cocotb_engine.run(
                spec(SYSTEMS["nic-tso"], requests, clients=2, capture_path=str(path), simulator=name),
                lambda done, time_ps: progress.append(done)))
        captures.append(path.read_bytes())
    assert results[0].body_bytes == 8001
    assert results[1:] == results[:1] * 2
    assert captures[1:] == captures[:1] * 2
    assert set(progress) <= {1, 2, 3}


@pytest.mark.skipif(importlib.util.find_spec("cocotbext") is None, reason="cocotbext-axi is not installed")
@pytest.mark.parametrize("simulator", ["verilator", "icarus"])
def test_a_run_among_bus_models_that_are_not_ours(simulator: str, tmp_path: Path) -> None:
    requests = [Request("GET", "/a", 200, 3000)]
    result = serve(simulator, "cocotbext-axi", requests)
    assert (result.requests, result.body_bytes) == (1, 3000)
    ours = serve("verilator", None, requests)
    assert (result.frames_sent, result.frames_received) == (ours.frames_sent, ours.frames_received)
    assert result.dma_write_bytes == pytest.approx(ours.dma_write_bytes, rel=0.2)
    assert result.dma_read_bytes == pytest.approx(ours.dma_read_bytes, rel=0.2)


@pytest.mark.parametrize("simulator", ["verilator", "icarus"])
def test_the_cache_is_good_for_another_environment(simulator: str) -> None:
    _, target = select(simulator, None)
    folder = builds.build(CONFIGS["tiny"], target)
    (program,) = [path for path in folder.rglob("*") if path.name in (builds.SIMULATION_NAME, builds.ICARUS_NAME)]
    assert str(cocotb_tools.config.libs_dir).encode() not in program.read_bytes()


# ---------------------------------------------------------------------------------------------- bad use


@pytest.mark.parametrize(("simulator", "transactors", "said"), [
    ("modelsim", None, "no simulator 'modelsim'"),
    ("icarus", "compiled", "no transactors 'compiled' on simulator 'icarus'"),
    ("verilator", "lean", "no transactors 'lean' on simulator 'verilator'"),
])
def test_what_is_not_there_is_refused_and_the_rest_is_named(simulator: str, transactors: str | None, said: str) -> None:
    with pytest.raises(InputError, match=f"{said}: there are compiled on verilator, cocotbext-axi on verilator, "
                                         "lean on icarus, cocotbext-axi on icarus"):
        select(simulator, transactors)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolError, match=r"cocotbext-axi is missing: install memnic\[axi\]"):
        select("icarus", "cocotbext-axi")


@pytest.mark.parametrize("part", [{"from_ps": 1}, {"frame": 1}, {"error": True}, {"length_ps": 1}, {"format": "fst"}])
def test_parts_of_a_run_have_no_wave_under_cocotb(part: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="windows and FST need the compiled engine"):
        run_bench(CONFIGS["tiny"], BenchSpec("no:matter", None), wave=Wave(path=str(tmp_path / "x"), **part))


def fail(arguments: Any, folder: Path) -> Any:
    """A maker that cannot make a bench."""
    raise ZeroDivisionError("no bench")


def test_what_a_bench_raises_comes_with_its_traceback() -> None:
    with pytest.raises(RunError, match="ZeroDivisionError: no bench") as caught:
        run_bench(CONFIGS["tiny"], BenchSpec("tests.device.test_engines:fail", None), simulator="icarus")
    assert "in fail" in caught.value.trace
