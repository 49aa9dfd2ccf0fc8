"""`memnic characterize`: measure the cycles of a device's stages on the RTL."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cosim.errors import InputError, ToolError
from cosim.timing import device_file
from cosim.timing.characterize import CONFIGURATIONS, characterize, moved, rtl_hash


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("characterize")(command)


def command(
    device: Annotated[str, typer.Argument(help=f"one of {', '.join(CONFIGURATIONS)}")] = "default",
    check: Annotated[bool, typer.Option("--check", help="write nothing: say which figures of the file have moved; "
                                                        "exits 1 when any has")] = False,
    out: Annotated[Path | None, typer.Option(help="the device file; default: the shipped one of the device")] = None,
) -> None:
    """Run directed stimuli over the RTL, solve for the cycles of each stage, and write them to a device file."""
    if device not in CONFIGURATIONS:
        raise InputError(f"no device {device!r}: choose from {', '.join(CONFIGURATIONS)}")
    path = out or device_file.DEVICES / f"{device}.toml"
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    before = device_file.read(path) if check else None
    found = characterize(CONFIGURATIONS[device], lambda what: errors.print(f"measuring: {what}", markup=False))
    console = Console(highlight=False, soft_wrap=True)
    if before is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            device_file.write(path, found)
        except OSError as error:
            raise InputError(f"--out: {path}: {error.strerror}") from error
        console.print(f"{len(found.timing)} figures in {path}", markup=False)
        return
    if before.measured is not None and before.measured.rtl != rtl_hash():
        console.print(f"{path} was measured on another RTL: {before.measured.rtl}, not {rtl_hash()}", markup=False)
    changes = moved(before, found)
    if changes:
        raise ToolError("\n  ".join([f"{len(changes)} figures of {path} have moved:", *changes]))
    console.print(f"all {len(found.timing)} figures of {path} are as they were", markup=False)
