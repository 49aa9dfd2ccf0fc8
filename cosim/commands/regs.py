"""`memnic regs`: print the contract between hardware and software."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cosim.errors import InputError
from nic_model.contract import CONFIGS, documents


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("regs")(regs)


def regs(
    format: Annotated[str, typer.Option(help="markdown, or c for a header")] = "markdown",
    part: Annotated[str, typer.Option(help="of the markdown: registers and rings, or control-port")] = "registers",
    device: Annotated[str | None, typer.Option(help=f"show the sizes of: {', '.join(CONFIGS)}")] = None,
) -> None:
    """Print registers, ring entries, codes and limits."""
    if device is not None and device not in CONFIGS:
        raise InputError(f"no device {device!r}: choose from {', '.join(CONFIGS)}")
    if format == "c":
        sys.stdout.write(documents.c_header())
    elif part not in ("registers", "control-port"):
        raise InputError(f"--part must be registers or control-port, not {part!r}")
    elif format == "markdown" and part == "control-port":
        sys.stdout.write(documents.control_port_markdown())
    elif format == "markdown":
        sys.stdout.write(documents.markdown(CONFIGS[device] if device else None))
    else:
        raise InputError(f"--format must be markdown or c, not {format!r}")
