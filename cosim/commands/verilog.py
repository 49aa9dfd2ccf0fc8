"""`memnic verilog`: write the Verilog of a device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cosim.control_port import device_config
from cosim.errors import InputError
from nic_model.contract import CONFIGS, NicConfig


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verilog")(verilog)


def verilog(
    device: Annotated[str, typer.Argument(help=f"one of {', '.join(CONFIGS)}")] = "default",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file to write; default: standard output")] = None,
    mac_clock: Annotated[bool, typer.Option(
        "--mac-clock", help="the MAC's streams on a clock of their own, mac_clk, behind asynchronous FIFOs")] = False,
    mac_clock_hz: Annotated[int | None, typer.Option(
        help="its frequency, for --constraints; default: the device's")] = None,
    control_port: Annotated[bool, typer.Option(
        "--control-port", help="with the control port that TCP on the device needs")] = False,
    constraints: Annotated[Path | None, typer.Option(
        help="folder for timing constraints of both clocks: memnic.xdc, memnic.sdc, memnic.lpf")] = None,
) -> None:
    """Write the Verilog of a device, with AMBA port names, for Vivado, LiteX, Yosys or a simulator."""
    if device not in CONFIGS:
        raise InputError(f"no device {device!r}: choose from {', '.join(CONFIGS)}")
    if (constraints is not None or mac_clock_hz is not None) and not mac_clock:
        raise InputError("--constraints and --mac-clock-hz are for --mac-clock: one clock has no border")
    if mac_clock_hz is not None and mac_clock_hz <= 0:
        raise InputError(f"--mac-clock-hz must be positive, not {mac_clock_hz}")
    from rtl.verilog import nic_verilog  # Amaranth takes half a second to load

    config = device_config(device, control_port=control_port)
    if constraints is not None:
        _write_constraints(constraints, config, mac_clock_hz or config.clock_hz)
    if out is None:
        sys.stdout.write(nic_verilog(config, mac_clock=mac_clock))
        return
    try:
        with out.open("a", encoding="utf-8"):
            pass  # whoever cannot write it shall not wait first
        out.write_text(nic_verilog(config, mac_clock=mac_clock), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from error


def _write_constraints(folder: Path, config: NicConfig, mac_clock_hz: int) -> None:
    """One file for each kind of tool."""
    from rtl.clock_crossing import constraints

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, text in constraints(config, mac_clock_hz=mac_clock_hz).items():
            (folder / f"memnic.{kind}").write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write constraints to {folder}: {error.strerror}") from error
