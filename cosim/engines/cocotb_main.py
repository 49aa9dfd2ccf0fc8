"""What runs inside the simulator: a cocotb test that finds its bench, runs it to its end, and writes what came of it.

The bench is named by `bench.json` in the run's folder; `cosim.engines.cocotb_engine` starts the simulator and reads
what this leaves there.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import cocotb
import msgspec

from cosim.engines.cocotb_engine import BENCH_NAME, OUTCOME_NAME, RUN_FOLDER, Bench, BenchSpec, Outcome
from cosim.engines.cocotb_pump import pump, reset
from cosim.engines.lean import LeanPort
from cosim.errors import InputError

PR_SET_PDEATHSIG = 1


@cocotb.test()
async def run_bench(dut: Any) -> None:
    """Run the bench of this process. Never fails as a cocotb test: what happened stands in the outcome."""
    _die_with_parent()
    folder = Path(os.environ[RUN_FOLDER])
    interrupted: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(number))
    try:
        value = await _run(dut, folder, interrupted)
        outcome = Outcome(kind="interrupted" if interrupted else "done", value=value)
    except InputError as error:
        outcome = Outcome(kind="input", message=str(error))
    except OSError as error:
        outcome = Outcome(kind="os", message=error.strerror or str(error), number=error.errno or 0,
                          path=str(error.filename or ""))
    except Exception as error:
        outcome = Outcome(kind="failed", message=_one_line(error), trace=traceback.format_exc())
    (folder / OUTCOME_NAME).write_bytes(msgspec.json.encode(outcome))


def _die_with_parent() -> None:
    """Let the kernel kill this process when the one that started it is gone, however that ended (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


async def _run(dut: Any, folder: Path, interrupted: list[int]) -> Any:
    spec = msgspec.json.decode((folder / BENCH_NAME).read_bytes(), type=BenchSpec)
    module, _, function = spec.maker.partition(":")
    bench: Bench = getattr(importlib.import_module(module), function)(spec.arguments, folder)
    with bench:
        pins = await reset(dut, bench.config)
        port = LeanPort(bench.config, bench.kernel, bench.memory, bench.mac, bench.bus, pins)
        bench.start(port)
        await pump(dut, bench.config, port, pins, lambda: bool(interrupted) or bench.finished(), jump=spec.jump)
        return None if interrupted else bench.outcome(port)


def _one_line(error: BaseException) -> str:
    """An error and what caused it, as one line."""
    lines = []
    cause: BaseException | None = error
    while cause is not None:
        lines.append(f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__)
        cause = cause.__cause__
    return "; caused by ".join(lines)
