"""`memnic verilog`: write the Verilog of a device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cosim.errors import InputError
from nic_model.contract import CONFIGS


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verilog")(verilog)


def verilog(
    device: Annotated[str, typer.Argument(help=f"one of {', '.join(CONFIGS)}")] = "default",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file to write; default: standard output")] = None,
) -> None:
    """Write the Verilog of a device, with AMBA port names, for Vivado, LiteX, Yosys or a simulator."""
    if device not in CONFIGS:
        raise InputError(f"no device {device!r}: choose from {', '.join(CONFIGS)}")
    from rtl.verilog import nic_verilog  # Amaranth takes half a second to load

    if out is None:
        sys.stdout.write(nic_verilog(CONFIGS[device]))
        return
    try:
        with out.open("a", encoding="utf-8"):
            pass  # whoever cannot write it shall not wait first
        out.write_text(nic_verilog(CONFIGS[device]), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from error
