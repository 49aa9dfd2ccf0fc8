"""`memnic diagram`: how the blocks of the device are connected, read from the RTL."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cosim.errors import InputError
from nic_model.contract import CONFIGS
from rtl.diagram import document


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("diagram")(diagram)


def diagram(device: Annotated[str, typer.Argument(help=f"one of {', '.join(CONFIGS)}")] = "default") -> None:
    """Print block diagrams as Markdown with Mermaid charts, and every connection as a table."""
    if device not in CONFIGS:
        raise InputError(f"no device {device!r}: choose from {', '.join(CONFIGS)}")
    sys.stdout.write(document(CONFIGS[device]))
