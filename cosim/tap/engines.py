"""A run with the kernel as peer on each engine."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from cosim import builds
from cosim.engines import cocotb_engine, compiled
from cosim.engines.base import Interrupted, RunError, failed_task
from cosim.engines.model import ModelPort
from cosim.tap.bench import TapBench, TapResult, TapSpec, TapStatus
from host_driver.runtime import TaskFailed

ENGINES = ("compiled", "model", "cocotb")

OnStatus = Callable[[TapStatus], None]


def prepare(engine: str, spec: TapSpec, say: Callable[[str], None]) -> None:
    """Build what a run will need. Raises ToolError when it cannot be built."""
    if engine != "model":
        builds.build(spec.config, builds.LIBRARY if engine == "compiled" else builds.COCOTB, say)


def run(engine: str, spec: TapSpec, on_status: OnStatus) -> TapResult:
    """Run it to its end.

    Raises RunError when the run fails, OSError when the capture cannot be written or the TAP interface not be opened,
    Interrupted on Ctrl-C, with what there was by then.
    """
    result: TapResult
    if engine == "compiled":
        result = compiled.run_bench(TapBench(spec, on_status), jump=spec.jump)
    elif engine == "cocotb":
        result = _run_under_cocotb(spec, on_status)
    else:
        result = _run_on_the_model(spec, on_status)
    return result


def _run_on_the_model(spec: TapSpec, on_status: OnStatus) -> TapResult:
    with TapBench(spec, on_status) as bench:
        port = ModelPort(bench.config, bench.kernel, bench.memory, bench.mac,
                         read_latency_ps=spec.machine.bus.mmio_read_ns * 1000)
        bench.start(port)
        try:
            if not bench.kernel.run_while(lambda: not bench.finished()):
                raise RunError(f"nothing goes on at {bench.kernel.now} ps")
        except KeyboardInterrupt:
            raise Interrupted(bench.partial(port)) from None
        except TaskFailed as error:
            raise failed_task(error) from error
        return bench.outcome(port)


def _run_under_cocotb(spec: TapSpec, on_status: OnStatus) -> TapResult:
    bench = cocotb_engine.BenchSpec("cosim.tap.engines:make_bench", msgspec.to_builtins(spec), spec.jump)

    def on_progress(requests: int, simulated_ps: int) -> None:
        on_status(TapStatus(requests=requests, simulated_ps=simulated_ps))

    try:
        value = cocotb_engine.run_bench(spec.config, bench, on_progress=on_progress)
    except Interrupted as stop:
        raise Interrupted(msgspec.convert(stop.partial, TapResult | None)) from None
    return msgspec.convert(value, TapResult)


def make_bench(arguments: Any, folder: Path) -> TapBench:
    """The maker of a run's bench, in the simulator process; its progress goes to a file of the folder."""
    def tell(status: TapStatus) -> None:
        with (folder / cocotb_engine.PROGRESS_NAME).open("a") as progress:
            progress.write(f"{status.requests} {status.simulated_ps}\n")

    bench = TapBench(msgspec.convert(arguments, TapSpec), tell)
    # While nothing moves the simulator's clock hardly does, by which its own look at signals goes.
    heard = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: Any) -> None:
        if callable(heard):
            heard(number, frame)
        bench.end()

    signal.signal(signal.SIGINT, interrupt)
    return bench
