"""The engine that runs the RTL under cocotb, in a simulator process of its own.

This process builds the simulation (from the cache, mostly), starts it, follows its progress and reads its outcome.
What runs inside the simulator is a `Bench`: for `memnic run` an `ExperimentBench`, for a test whatever it wants.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from cosim import builds, simulators
from cosim.engines.base import Interrupted, Progress, RunError, RunSpec, SystemResult, Wave
from cosim.engines.bench import ExperimentBench
from cosim.errors import InputError, ToolError
from nic_model.contract import NicConfig

TARGETS: dict[tuple[str, str], builds.Target] = {
    ("verilator", "compiled"): builds.COCOTB,
    ("verilator", "cocotbext-axi"): builds.AMBA_VERILATOR,
    ("icarus", "lean"): builds.LEAN_ICARUS,
    ("icarus", "cocotbext-axi"): builds.AMBA_ICARUS,
}
"""(simulator, transactors) -> what is built for them; the preferred transactors of a simulator first."""

RUN_FOLDER = "MEMNIC_RUN_FOLDER"
"""Environment variable that tells the simulator process its folder."""

JOB_NAME, OUTCOME_NAME, PROGRESS_NAME, LOG_NAME = "job.json", "outcome.json", "progress", "simulator.log"

POLL_S = 0.05


class BenchSpec(msgspec.Struct, frozen=True):
    """How to make a bench: `maker` is `module:function`, called with `arguments` and the run's folder."""

    maker: str
    arguments: Any
    jump: bool = True


class Job(msgspec.Struct, frozen=True):
    """What a simulator process is to do."""

    bench: BenchSpec
    transactors: str


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a simulator process ended."""

    kind: str
    """done, interrupted, input (InputError), os (OSError) or failed."""
    value: Any = None
    """What the bench had to say; what it had by then, if it was interrupted."""
    message: str = ""
    trace: str = ""
    number: int = 0
    path: str = ""


def run(spec: RunSpec, on_progress: Progress) -> SystemResult:
    """Implements `cosim.engines.base.Engine`, with the spec's simulator and transactors."""
    bench = BenchSpec("cosim.engines.cocotb_engine:make_experiment", msgspec.to_builtins(spec), spec.jump)
    try:
        value = run_bench(spec.config, bench, simulator=spec.simulator, transactors=spec.transactors,
                          wave=spec.wave, on_progress=on_progress)
    except Interrupted as stop:
        raise Interrupted(msgspec.convert(stop.partial, SystemResult | None)) from None
    return msgspec.convert(value, SystemResult)


def prepare(spec: RunSpec, say: Callable[[str], None]) -> None:
    """Build what a run will need. Raises ToolError when it cannot be built, InputError for what is not there."""
    _, target = select(spec.simulator, spec.transactors)
    builds.build(spec.config, target if spec.wave is None else builds.with_waves(target), say)


def make_experiment(arguments: Any, folder: Path) -> ExperimentBench:
    """The maker of a run's bench, in the simulator process; its progress goes to a file of the folder."""
    def tell(done: int, time_ps: int) -> None:
        with (folder / PROGRESS_NAME).open("a") as progress:
            progress.write(f"{done} {time_ps}\n")

    return ExperimentBench(msgspec.convert(arguments, RunSpec), tell)


def run_bench(config: NicConfig, bench: BenchSpec, *, simulator: str = "verilator", transactors: str | None = None,
              wave: Wave | None = None, on_progress: Progress | None = None) -> Any:
    """Build the device, run a bench in its simulator, and return the bench's outcome.

    Parameters: `simulator`, verilator or icarus; `transactors`, by default compiled ones on Verilator and lean Python
    on Icarus, or cocotbext-axi on either; `wave`, of the whole run as VCD.

    Raises RunError when the bench or the simulator fails, InputError for a combination that is not there, InputError
    and OSError as the bench raised them, ToolError when the simulation cannot be built. On Ctrl-C the simulator is
    stopped first, and its files are closed; then Interrupted.
    """
    transactors, target = select(simulator, transactors)
    if wave is not None:
        _check_wave(wave)
        target = builds.with_waves(target)
        bench = msgspec.structs.replace(bench, jump=bench.jump and wave.jump)
    built = builds.build(config, target)
    with tempfile.TemporaryDirectory(prefix="memnic-run-") as name:
        folder = Path(name)
        (folder / JOB_NAME).write_bytes(msgspec.json.encode(Job(bench, transactors)))
        (folder / PROGRESS_NAME).touch()
        environment = {RUN_FOLDER: str(folder)}
        if transactors == "cocotbext-axi":
            # These models read whole words, of which lanes that do not count are unknown on Icarus.
            environment["COCOTB_RESOLVE_X"] = "zeros"
        process = simulators.start(built, target, simulator, "cosim.engines.cocotb_main", run_folder=folder,
                                   environment=environment, wave=Path(wave.path).absolute() if wave else None)
        try:
            with (folder / PROGRESS_NAME).open() as progress:
                while process.poll() is None:
                    time.sleep(POLL_S)
                    if on_progress is not None:
                        _forward(progress.read(), on_progress)
        except KeyboardInterrupt:
            simulators.stop(process)
            raise Interrupted(_partial(folder)) from None
        finally:
            simulators.stop(process)
        return _value(folder)


def select(simulator: str, transactors: str | None) -> tuple[str, builds.Target]:
    """The transactors, chosen or a simulator's own, and what is built for them.

    Raises InputError for a combination that is not there, ToolError when cocotbext-axi is not installed.
    """
    if transactors is None:
        transactors = next((name for of, name in TARGETS if of == simulator), "")
    if (simulator, transactors) not in TARGETS:
        there = ", ".join(f"{name} on {of}" for of, name in TARGETS)
        what = f"transactors {transactors!r} on simulator" if transactors else "simulator"
        raise InputError(f"no {what} {simulator!r}: there are {there}")
    if transactors == "cocotbext-axi" and not _has_axi_models():
        raise ToolError("the Python package cocotbext-axi is missing: install memnic[axi]")
    return transactors, TARGETS[simulator, transactors]


def _has_axi_models() -> bool:
    return (importlib.util.find_spec("cocotbext") is not None
            and importlib.util.find_spec("cocotbext.axi") is not None)


def _check_wave(wave: Wave) -> None:
    whole = Wave(path=wave.path, jump=wave.jump)
    if wave != whole:
        raise InputError("under cocotb a wave is VCD of the whole run: windows and FST need the compiled engine")
    Path(wave.path).open("wb").close()  # raises what is wrong with it


def _forward(text: str, on_progress: Progress) -> None:
    """Report the last whole line of `done picoseconds` pairs; a line may come in parts."""
    for line in reversed(text.splitlines(keepends=True)):
        words = line.split()
        if line.endswith("\n") and len(words) == 2:
            on_progress(int(words[0]), int(words[1]))
            return


def _partial(folder: Path) -> Any:
    """What an interrupted bench had by then."""
    path = folder / OUTCOME_NAME
    return msgspec.json.decode(path.read_bytes(), type=Outcome).value if path.is_file() else None


def _value(folder: Path) -> Any:
    path = folder / OUTCOME_NAME
    if not path.is_file():
        log = (folder / LOG_NAME).read_text(errors="replace").strip().splitlines()
        raise RunError("the simulator ended without an outcome; it said: " + " | ".join(log[-8:]))
    outcome = msgspec.json.decode(path.read_bytes(), type=Outcome)
    if outcome.kind == "done":
        return outcome.value
    if outcome.kind == "interrupted":
        raise Interrupted(outcome.value)
    if outcome.kind == "input":
        raise InputError(outcome.message)
    if outcome.kind == "os":
        raise OSError(outcome.number, outcome.message, outcome.path)
    raise RunError(outcome.message, outcome.trace)
