"""What runs inside the simulator: a cocotb test that finds its bench, runs it to its end, and writes what came of it.

The job is in `job.json` in the run's folder; `cosim.engines.cocotb_engine` starts the simulator and reads what this
leaves there.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import cocotb
import msgspec

from cosim.engines.base import RunError, failed_task
from cosim.engines.bench import Bench
from cosim.engines.cocotb_engine import JOB_NAME, OUTCOME_NAME, RUN_FOLDER, Job, Outcome
from cosim.errors import InputError
from host_driver.runtime import TaskFailed

PR_SET_PDEATHSIG = 1

PUMPS = {
    "compiled": "cosim.engines.cocotb_pump:compiled_transactors",
    "lean": "cosim.engines.cocotb_pump:lean_transactors",
    "cocotbext-axi": "cosim.engines.axi_models:axi_models",
}
"""Transactors -> `async pump(dut, bench, jump, interrupted)`: runs the bench till it has finished or was interrupted,
and returns its port."""


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
    except TaskFailed as error:
        failed = failed_task(error)
        outcome = Outcome(kind="failed", message=str(failed), trace=failed.trace)
    except RunError as error:
        outcome = Outcome(kind="failed", message=str(error), trace=error.trace)
    except Exception as error:
        outcome = Outcome(kind="failed", message=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
    partial = folder / f"{OUTCOME_NAME}.part"
    partial.write_bytes(msgspec.json.encode(outcome))
    partial.rename(folder / OUTCOME_NAME)


def _die_with_parent() -> None:
    """Let the kernel kill this process when the one that started it is gone, however that ended (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


async def _run(dut: Any, folder: Path, interrupted: list[int]) -> Any:
    job = msgspec.json.decode((folder / JOB_NAME).read_bytes(), type=Job)
    bench: Bench = _named(job.bench.maker)(job.bench.arguments, folder)
    pump: Callable[..., Awaitable[Any]] = _named(PUMPS[job.transactors])
    with bench:
        port = await pump(dut, bench, job.bench.jump, interrupted)
        return bench.partial(port) if interrupted else bench.outcome(port)


def _named(place: str) -> Any:
    """What stands at `module:name`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
