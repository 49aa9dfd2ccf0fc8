"""`memnic port-log`: what passed a control port, as text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cosim.errors import InputError
from nic_model.control_log import PortLog, describe_all


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("port-log")(port_log)


def port_log(
    log: Annotated[Path, typer.Argument(help="a log that `memnic run --port-log` kept: port.log in a system's folder")],
) -> None:
    """Show the messages of a control port, one a line: `<` up to the firmware, `>` its orders."""
    try:
        with log.open(encoding="ascii") as file:
            read = PortLog.read(file)
    except OSError as error:
        raise InputError(f"{log}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{log}: {error}") from error
    for line in describe_all(read.entries):
        sys.stdout.write(line + "\n")
