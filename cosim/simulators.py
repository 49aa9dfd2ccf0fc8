"""Starts a simulation that `cosim.builds` has built, with cocotb inside, and stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import cocotb_tools.config
import find_libpython

from cosim import builds
from cosim.errors import ToolError


def start(folder: Path, target: builds.Target, simulator: str, module: str, *, environment: Mapping[str, str],
          run_folder: Path, wave: Path | None = None) -> subprocess.Popen[bytes]:
    """Start what `builds.build` made in `folder`, to run the cocotb test of `module`, in a process group of its own.

    Its output goes to `run_folder/simulator.log`, cocotb's verdict to `run_folder/results.xml`. Raises ToolError when
    libpython or Icarus is missing.
    """
    libpython = find_libpython.find_libpython()
    if libpython is None:
        raise ToolError("libpython is missing, which cocotb embeds: install libpython3.11")
    paths = [str(cocotb_tools.config.libs_dir), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    env = {
        **os.environ, "LD_LIBRARY_PATH": os.pathsep.join(paths),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYGPI_PYTHON_BIN": sys.executable,
        "GPI_USERS": ";".join([libpython, cocotb_tools.config.pygpi_entry_point()]),
        "COCOTB_TOPLEVEL": target.toplevel, "COCOTB_TEST_MODULES": module, "TOPLEVEL_LANG": "verilog",
        "COCOTB_RESULTS_FILE": str(run_folder / "results.xml"), "COCOTB_LOG_LEVEL": "WARNING",
        # Verilator writes values where the language says; then cocotb's clock needs no Python.
        "COCOTB_TRUST_INERTIAL_WRITES": "1" if simulator == "verilator" else "0",
        "PYTHONHASHSEED": "0", **environment,
    }
    if simulator == "verilator":
        command = [str(folder / "obj" / builds.SIMULATION_NAME)]
        if wave is not None:
            command += ["--trace", "--trace-file", str(wave)]
    else:
        command = [builds.find_program("vvp"), "-m", cocotb_tools.config.lib_entry("vpi", "icarus"),
                   str(folder / builds.ICARUS_NAME)]
        if wave is not None:
            command += [f"+wave={wave}"]
    with open(run_folder / "simulator.log", "wb") as log:
        return subprocess.Popen(command, cwd=run_folder, env=env, stdin=subprocess.DEVNULL, stdout=log,
                                stderr=subprocess.STDOUT, start_new_session=True)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a simulation and all that it started."""
    for kind in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            continue
