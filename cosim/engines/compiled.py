"""The engine that runs the RTL compiled, in this process: Verilator's model and the transactors in one library.

The loop never leaves compiled code between two moments at which a processor or a peer would see something; idle time is
jumped over.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cosim import builds
from cosim.engines.base import Interrupted, Progress, RunError, RunSpec, SystemResult, Wave, failed_task
from cosim.engines.bench import Bench, ExperimentBench
from cosim.engines.library import Library, Stop
from cosim.engines.transactor_port import TransactorPort
from host_driver.runtime import TaskFailed
from nic_model.contract import NicConfig

BUDGET_CYCLES = 50_000
"""Edges in one call at most, so that an interrupt from the keyboard is heard within a fraction of a second."""

ALWAYS_PS = 1 << 61

_LOG = logging.getLogger(__name__)


class Window(ctypes.Structure):
    """`Window` in engine.cpp."""

    _fields_ = [(name, ctypes.c_int64) for name in ("from_ps", "frame", "error", "length_ps", "jump")]


class CompiledDevice:
    """A device of one configuration, compiled and loaded; a context manager. One at a time in a process.

    Parameters: `wave`, if one may be asked for: then the traced library is loaded, which is slower; `path` of a library
    that is not in the cache. Attributes: `library`. Raises ToolError when it cannot be built.
    """

    def __init__(self, config: NicConfig, wave: Wave | None = None, path: Path | None = None) -> None:
        raw = ctypes.CDLL(str(path or builds.build(config, _target(wave)) / "obj" / builds.LIBRARY_NAME))
        raw.memnic_run.argtypes, raw.memnic_run.restype = (ctypes.c_int64,), None
        raw.memnic_record.argtypes, raw.memnic_record.restype = (ctypes.c_int64,), None
        raw.memnic_replay.argtypes, raw.memnic_replay.restype = (ctypes.c_int64,), ctypes.c_int64
        raw.memnic_open_wave.argtypes = (ctypes.c_char_p, ctypes.POINTER(Window))
        raw.memnic_start.restype = raw.memnic_stop.restype = None
        raw.memnic_fatal.restype = ctypes.c_char_p
        self.library = Library(raw)
        self._raw = raw
        self._wave = wave

    def __enter__(self) -> CompiledDevice:
        self._raw.memnic_start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._raw.memnic_stop()
        self.library.close()

    def open_wave(self, path: Path) -> None:
        """Begin to look for the wave's beginning. Raises OSError when its file cannot be written."""
        wave = self._wave
        assert wave is not None
        path.open("wb").close()  # raises what is wrong with it
        by_time = wave.from_ps is not None or not (wave.frame or wave.error)
        window = Window((wave.from_ps or 0) if by_time else -1, wave.frame or 0, wave.error,
                        ALWAYS_PS if wave.length_ps is None else wave.length_ps, wave.jump)
        if not self._raw.memnic_open_wave(str(path).encode(), ctypes.byref(window)):
            self._check_fatal()
            raise OSError(f"cannot write the wave {path}")

    def run(self, port: TransactorPort, bench: Bench, *, jump: bool) -> None:
        """Run device and host until the bench has finished. Raises what a task that nobody awaits raised."""
        library, status, run = self.library, self.library.status, self._raw.memnic_run
        library.jump(jump, True)
        bench.kernel.run_until(0)
        while not bench.finished():
            port.expect()
            run(BUDGET_CYCLES)
            while status.stop == Stop.BUDGET:
                port.expect()
                run(BUDGET_CYCLES)
            if status.stop & Stop.FATAL:
                self._check_fatal()
            port.deliver()

    def close_wave(self) -> None:
        """The run is over. Raises OSError when the wave could not be written."""
        if self._wave is None:
            return
        began = self._raw.memnic_close_wave()
        self._check_fatal()
        if not began:
            _LOG.warning("memnic: the wave %s is empty: its beginning has not come", self._wave.path)

    def _check_fatal(self) -> None:
        message = self._raw.memnic_fatal().decode()
        if "bufferFlush" in message:
            raise OSError(f"cannot write the wave: {message.partition(': ')[2]}")
        if message:
            raise RunError(f"Verilator says: {message}")

    def record(self, cycles: int) -> None:
        """Keep the device's inputs of so many edges from now on, for `replay`."""
        self._raw.memnic_record(cycles)

    def replay(self, times: int) -> float:
        """Seconds in which the device takes what was recorded, so often, without transactors. Ends its run."""
        return float(self._raw.memnic_replay(times)) / 1e9


def _target(wave: Wave | None) -> builds.Target:
    return builds.LIBRARY if wave is None else builds.with_waves(builds.LIBRARY, wave.format)


def prepare(spec: RunSpec, say: Callable[[str], None]) -> None:
    """Build what a run will need. Raises ToolError when it cannot be built."""
    builds.build(spec.config, _target(spec.wave), say)


def run(spec: RunSpec, on_progress: Progress) -> SystemResult:
    """Implements `cosim.engines.base.Engine`."""
    result: SystemResult = run_bench(ExperimentBench(spec, on_progress), jump=spec.jump, wave=spec.wave)
    return result


def run_bench(bench: Bench, *, jump: bool = True, wave: Wave | None = None, path: Path | None = None) -> Any:
    """Run a bench over the compiled device, and return its outcome. `path`: of a library that is not in the cache.

    Raises RunError when the device or the bench fails, ToolError when the device cannot be built, OSError when a file
    cannot be written, Interrupted on Ctrl-C; all files are closed by then.
    """
    with bench, CompiledDevice(bench.config, wave, path) as device:
        port = TransactorPort(device.library, bench.config, bench.kernel, bench.memory, bench.mac, bench.bus)
        if wave is not None:
            device.open_wave(Path(wave.path))
        bench.start(port)
        try:
            device.run(port, bench, jump=jump)
        except TaskFailed as error:
            raise failed_task(error) from error
        except KeyboardInterrupt:
            raise Interrupted(bench.partial(port)) from None
        device.close_wave()
        return bench.outcome(port)
