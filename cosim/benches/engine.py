"""How fast the engines simulate: `memnic bench engine`."""

from __future__ import annotations

import importlib.util
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from cosim import builds
from cosim.benches import BenchOptions
from cosim.benches.rows import Row, row
from cosim.benches.traffic import TrafficBench, TrafficFigures, TrafficSpec
from cosim.engines.cocotb_engine import BenchSpec, run_bench
from cosim.engines.compiled import CompiledDevice
from cosim.engines.transactor_port import TransactorPort
from cosim.errors import ToolError
from nic_model.contract import CONFIGS

COMPILED_CYCLES = 1_000_000
REPLAYED_CYCLES = 400_000
DPI_CYCLES = 150_000
AXI_CYCLES = 20_000
ICARUS_CYCLES = 3_000
REPETITIONS = 3
"""The machine may be shared: the best of so many counts, on both sides of a ratio."""

SHORT_CYCLES, LONG_CYCLES = 1_000_000, 10_000_000

REQUESTS = 200

LOG_SEED = 1
LOG_MEDIAN_BYTES, LOG_SIGMA = 8192, 1.6
"""Sizes of responses when no log is given: lognormal, as Barford and Crovella found (SIGMETRICS 1998); cut at 256 KB
their mean is some 25 KB."""


def measure(options: BenchOptions) -> list[Row]:
    """All rows. Builds what is not in the cache first, outside of what is measured."""
    for device in ("tiny", "default"):
        options.say(f"building {device}")
        builds.build(CONFIGS[device], builds.LIBRARY)
    rows = []
    tiny, tiny_replay = _compiled("tiny", options)
    default, default_replay = _compiled("default", options)
    traffic = "64 KB sends at full rate both ways"
    rows.append(row(f"compiled engine, {traffic}: tiny", tiny, "cycles/s", ">=", 3_000_000))
    rows.append(row(f"compiled engine, {traffic}: default", default, "cycles/s", ">=", 1_500_000,
                    "" if default >= 1_000_000 else "below 1,000,000, where it must never be"))
    for device, speed, replay in (("tiny", tiny, tiny_replay), ("default", default, default_replay)):
        rows.append(row(f"share of the same recorded inputs replayed without transactors: {device}",
                        100 * speed / replay, "%", ">=", 70, f"replay {replay:,.0f} cycles/s"))
    rows += _under_cocotb(tiny, options)
    options.say(f"memory of {LONG_CYCLES:,} cycles")
    short, long = (_peak_memory_bytes(cycles) for cycles in (SHORT_CYCLES, LONG_CYCLES))
    rows.append(row("memory of a 10-million-cycle run, over that of a 1-million-cycle run", long / short, "times",
                    "<=", 1.1, f"{short / 1e6:.0f} and {long / 1e6:.0f} MB"))
    rows.append(_main_job(options))
    return rows


# ---------------------------------------------------------------------------------------------- compiled engine


def run_compiled(spec: TrafficSpec, *, record: bool = False) -> tuple[TrafficFigures, float]:
    """Traffic over the compiled engine; with `record` also edges a second when its inputs are replayed."""
    bench = TrafficBench(spec)
    with bench, CompiledDevice(bench.config) as device:
        port = TransactorPort(device.library, bench.config, bench.kernel, bench.memory, bench.mac, bench.bus)
        if record:
            device.record(2 * spec.cycles)
        bench.start(port)
        device.run(port, bench, jump=True)
        edges = port.cycles_simulated
        return bench.outcome(port), edges / device.replay(1) if record else 0.0


def _compiled(name: str, options: BenchOptions) -> tuple[float, float]:
    """Cycles a second of the engine, and of a replay."""
    options.say(f"compiled engine, {name}")
    speed = replay = 0.0
    for _ in range(REPETITIONS):
        figures, _ = run_compiled(TrafficSpec(device=name, cycles=COMPILED_CYCLES))
        speed = max(speed, _speed(figures))
        _, replayed = run_compiled(TrafficSpec(device=name, cycles=REPLAYED_CYCLES), record=True)
        replay = max(replay, replayed)
    return speed, replay


def _speed(figures: TrafficFigures) -> float:
    return figures.cycles / figures.seconds


# ---------------------------------------------------------------------------------------------- under cocotb


def _under_cocotb(compiled: float, options: BenchOptions) -> list[Row]:
    missing = _missing()
    figures = {
        ">= axi": "compiled engine, over the same stimulus under cocotb with cocotbext-axi on Verilator",
        "dpi": "cocotb engine through DPI, over cocotbext-axi on Verilator",
        "icarus": "cocotb engine on Icarus, lean Python, over cocotbext-axi on Icarus",
    }
    bars = {">= axi": 100.0, "dpi": 20.0, "icarus": 3.0}
    if missing:
        return [row(figures[key], None, "times", ">=", bars[key], missing) for key in figures]
    speeds = {}
    for simulator, transactors, cycles in (("verilator", "cocotbext-axi", AXI_CYCLES),
                                           ("verilator", "compiled", DPI_CYCLES),
                                           ("icarus", "cocotbext-axi", ICARUS_CYCLES),
                                           ("icarus", "lean", ICARUS_CYCLES)):
        options.say(f"{transactors} on {simulator} under cocotb")
        speeds[simulator, transactors] = max(_cocotb_speed(simulator, transactors, cycles) for _ in range(REPETITIONS))
    axi, dpi = speeds["verilator", "cocotbext-axi"], speeds["verilator", "compiled"]
    icarus, lean = speeds["icarus", "cocotbext-axi"], speeds["icarus", "lean"]
    return [
        row(figures[">= axi"], compiled / axi, "times", ">=", bars[">= axi"], f"{axi:,.0f} cycles/s"),
        row(figures["dpi"], dpi / axi, "times", ">=", bars["dpi"], f"{dpi:,.0f} cycles/s"),
        row(figures["icarus"], lean / icarus, "times", ">=", bars["icarus"],
            f"{lean:,.0f} over {icarus:,.0f} cycles/s"),
    ]


def _missing() -> str:
    if importlib.util.find_spec("cocotbext") is None or importlib.util.find_spec("cocotbext.axi") is None:
        return "not measured: cocotbext-axi is not installed"
    return "" if shutil.which("iverilog") else "not measured: iverilog is missing"


def _cocotb_speed(simulator: str, transactors: str, cycles: int) -> float:
    spec = TrafficSpec(device="tiny", cycles=cycles)
    value: Any = run_bench(CONFIGS["tiny"], BenchSpec("cosim.benches.traffic:make", msgspec.to_builtins(spec)),
                           simulator=simulator, transactors=transactors)
    return _speed(msgspec.convert(value, TrafficFigures))


# ---------------------------------------------------------------------------------------------- memory, main job


def _peak_memory_bytes(cycles: int) -> int:
    """Largest resident size of a process that runs so many cycles."""
    code = ("import sys; from cosim.benches.engine import peak_of_a_run; sys.stdout.write(str(peak_of_a_run("
            f"{cycles})))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"a run of {cycles} cycles failed: {done.stderr.strip()[-500:]}")
    return int(done.stdout)


def peak_of_a_run(cycles: int) -> int:
    """Run so many cycles of `tiny`; the peak of this process' resident memory in bytes."""
    run_compiled(TrafficSpec(device="tiny", cycles=cycles))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _main_job(options: BenchOptions) -> Row:
    options.say(f"memnic run, {REQUESTS} requests")
    with tempfile.TemporaryDirectory(prefix="memnic-bench-") as name:
        folder = Path(name)
        log, what = options.log, "the given log"
        if log is None:
            log, what = folder / "access.log", "sizes drawn as a web server's log has them (--log takes a real one)"
            _write_log(log)
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", "from cosim.cli import main; main()", "run", "--log", str(log), "--requests",
             str(REQUESTS), "--systems", "nic-dumb,nic-tso", "--out", str(folder / "results")],
            capture_output=True, text=True, check=False)
        seconds = time.monotonic() - begin
    if done.returncode:
        raise ToolError(f"memnic run failed: {done.stderr.strip()[-500:]}")
    return row(f"memnic run, {REQUESTS} requests of a log, nic-dumb and nic-tso, from a warm cache", seconds, "s", "<=",
               20, what)


def _write_log(path: Path) -> None:
    rng = random.Random(LOG_SEED)
    with path.open("w") as log:
        for number in range(REQUESTS):
            size = int(rng.lognormvariate(0, LOG_SIGMA) * LOG_MEDIAN_BYTES)
            log.write(f'10.0.0.9 - - [01/Jan/2026:00:00:00 +0000] "GET /file{number % 97} HTTP/1.0" 200 {size}\n')
