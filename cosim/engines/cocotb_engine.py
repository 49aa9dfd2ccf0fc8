"""The engine that runs the RTL under cocotb, in a simulator process of its own.

This process builds the simulation (from the cache, mostly), starts it, follows its progress and reads its outcome.
What runs inside the simulator is a `Bench`: for `memnic run` an `Experiment`, for a test whatever it wants.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import msgspec

from cosim import simulators
from cosim.engines.base import DeviceCounts, Progress, RunError, RunSpec, SystemResult
from cosim.engines.bus import Bus, BusTiming
from cosim.engines.lean import LeanPort
from cosim.errors import InputError
from cosim.experiment import Experiment
from cosim.mac import Mac
from cosim.machine import Machine
from cosim.memory import HostMemory
from host_driver.runtime import Kernel
from nic_model.contract import CONFIGS, NicConfig

RUN_FOLDER = "MEMNIC_RUN_FOLDER"
"""Environment variable that tells the simulator process its folder."""

BENCH_NAME, OUTCOME_NAME, PROGRESS_NAME, LOG_NAME = "bench.json", "outcome.json", "progress", "simulator.log"

POLL_S = 0.05


class Bench(Protocol):
    """What runs round a simulated device; a context manager whose end closes its files."""

    config: NicConfig
    kernel: Kernel
    memory: HostMemory
    mac: Mac
    bus: Bus

    def __enter__(self) -> Bench: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...

    def start(self, port: LeanPort) -> None:
        """The device is out of reset."""

    def finished(self) -> bool:
        """Whether to stop; asked once a cycle."""

    def outcome(self, port: LeanPort) -> Any:
        """What came of it, as msgspec can write it in JSON."""


class BenchSpec(msgspec.Struct, frozen=True):
    """How to make a bench: `maker` is `module:function`, called with `arguments` and the run's folder."""

    maker: str
    arguments: Any
    jump: bool = True


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a simulator process ended."""

    kind: str
    """done, interrupted, input (InputError), os (OSError) or failed."""
    value: Any = None
    message: str = ""
    trace: str = ""
    number: int = 0
    path: str = ""


def run(spec: RunSpec, on_progress: Progress) -> SystemResult:
    """Implements `cosim.engines.base.Engine` on Verilator."""
    value = run_bench(CONFIGS[spec.device], BenchSpec("cosim.engines.cocotb_engine:ExperimentBench",
                                                      msgspec.to_builtins(spec), spec.jump),
                      wave=Path(spec.wave_path) if spec.wave_path else None, on_progress=on_progress)
    return msgspec.convert(value, SystemResult)


def run_bench(config: NicConfig, bench: BenchSpec, *, simulator: str = "verilator", wave: Path | None = None,
              on_progress: Progress | None = None) -> Any:
    """Build the device, run a bench in its simulator, and return the bench's outcome.

    Raises RunError when the bench or the simulator fails, InputError and OSError as the bench raised them, ToolError
    when the simulation cannot be built. On KeyboardInterrupt the simulator is stopped first, and its files are closed.
    """
    built = simulators.build(config, simulator, waves=wave is not None)
    with tempfile.TemporaryDirectory(prefix="memnic-run-") as name:
        folder = Path(name)
        (folder / BENCH_NAME).write_bytes(msgspec.json.encode(bench))
        (folder / PROGRESS_NAME).touch()
        process = simulators.start(built, simulator, "cosim.engines.cocotb_main", run_folder=folder,
                                   environment={RUN_FOLDER: str(folder)}, wave=wave.absolute() if wave else None)
        try:
            with (folder / PROGRESS_NAME).open() as progress:
                while process.poll() is None:
                    time.sleep(POLL_S)
                    if on_progress is not None:
                        _forward(progress.read(), on_progress)
        finally:
            simulators.stop(process)
        return _outcome(folder)


def _forward(text: str, on_progress: Progress) -> None:
    """Report the last whole line of `done picoseconds` pairs; a line may come in parts."""
    for line in reversed(text.splitlines(keepends=True)):
        words = line.split()
        if line.endswith("\n") and len(words) == 2:
            on_progress(int(words[0]), int(words[1]))
            return


def _outcome(folder: Path) -> Any:
    path = folder / OUTCOME_NAME
    if not path.is_file():
        log = (folder / LOG_NAME).read_text(errors="replace").strip().splitlines()
        raise RunError("the simulator ended without an outcome; it said: " + " | ".join(log[-8:]))
    outcome = msgspec.json.decode(path.read_bytes(), type=Outcome)
    if outcome.kind == "done":
        return outcome.value
    if outcome.kind == "interrupted":
        raise KeyboardInterrupt
    if outcome.kind == "input":
        raise InputError(outcome.message)
    if outcome.kind == "os":
        raise OSError(outcome.number, outcome.message, outcome.path)
    raise RunError(outcome.message)


def bus_timing(machine: Machine, config: NicConfig, seed: int = 0) -> BusTiming:
    """A machine's bus in cycles of the device's clock, rounded up."""
    bus = machine.bus

    def cycles(ns: int) -> int:
        return -(-ns * config.clock_hz // 10**9)

    return BusTiming(
        read_latency_cycles=cycles(bus.dma_read_latency_ns), write_latency_cycles=cycles(bus.dma_write_latency_ns),
        mmio_read_cycles=cycles(bus.mmio_read_ns), mmio_write_cycles=cycles(bus.mmio_write_ns),
        bytes_per_cycle=bus.bandwidth_bytes_per_s / config.clock_hz, seed=seed)


class ExperimentBench:
    """Implements `Bench`: one run of `memnic run`."""

    def __init__(self, arguments: Any, folder: Path) -> None:
        self._spec = msgspec.convert(arguments, RunSpec)
        self._progress = (folder / PROGRESS_NAME).open("a")
        self._experiment = Experiment(self._spec, self._report)
        self.config = CONFIGS[self._spec.device]
        self.kernel = self._experiment.kernel
        self.memory = self._experiment.memory
        self.mac = self._experiment.wire
        self.bus = Bus(bus_timing(self._spec.machine, self.config, self._spec.seed))

    def __enter__(self) -> ExperimentBench:
        self._experiment.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._experiment.__exit__(kind, error, trace)
        self._progress.close()

    def _report(self, done: int, time_ps: int) -> None:
        self._progress.write(f"{done} {time_ps}\n")
        self._progress.flush()

    def start(self, port: LeanPort) -> None:
        """Attach the experiment to the device."""
        traffic = port.traffic
        self._experiment.attach(port, lambda: DeviceCounts(
            dma_read_bytes=traffic.dma_read_bytes, dma_write_bytes=traffic.dma_write_bytes,
            interrupts=traffic.interrupts))

    def finished(self) -> bool:
        """Whether the load has been served."""
        return self._experiment.done

    def outcome(self, port: LeanPort) -> SystemResult:
        """What was measured."""
        return self._experiment.result()
