"""`memnic bench`: measure, and print what was reached beside the bar."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from cosim.benches import BENCHES, BenchOptions, measure
from cosim.benches.floors import FLOORS_FILE, Floors, worse
from cosim.benches.rows import Row, print_rows
from cosim.errors import InputError, ToolError

FLOORED = "rtl"
"""The bench whose figures have floors."""

WITH_WIDTHS = (FLOORED, "accuracy")
"""Those whose figures come in widths."""

WIDTHS = (64, 128, 256, 512)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    name: Annotated[str | None, typer.Argument(help=f"one of {', '.join(BENCHES)}; without it: all")] = None,
    log: Annotated[Path | None, typer.Option(help="a web server's log, for the bench of `memnic run`")] = None,
    json: Annotated[bool, typer.Option("--json", help="print rows as JSON instead of a table")] = False,
    width: Annotated[list[int] | None, typer.Option(help="for rtl and accuracy: only the device whose MAC has so many "
                                                         "bits (64, 128, 256, 512); again for more")] = None,
    floors: Annotated[bool, typer.Option("--floors", help="for rtl: fail if a figure is worse than its floor")] = False,
    write_floors: Annotated[bool, typer.Option("--write-floors",
                                               help="for rtl: make what is measured the new floors")] = False,
) -> None:
    """Measure speeds, and print each beside the bar that it should reach. Exits 0 whether or not it does; with
    `--floors` 1 if a figure is worse than its floor."""
    if name is not None and name not in BENCHES:
        raise InputError(f"no bench {name!r}: choose from {', '.join(BENCHES)}")
    if log is not None and not log.is_file():
        raise InputError(f"--log: no file {log}")
    for option, given, benches in (("--width", width, WITH_WIDTHS), ("--floors", floors, (FLOORED,)),
                                   ("--write-floors", write_floors, (FLOORED,))):
        if given and name not in benches:
            raise InputError(f"{option} is for `memnic bench {' or '.join(benches)}`")
    for bits in width or ():
        if bits not in WIDTHS:
            raise InputError(f"--width must be one of {', '.join(map(str, WIDTHS))}, not {bits}")
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    options = BenchOptions(log=log, say=lambda what: errors.print(f"measuring: {what}", markup=False),
                           widths=tuple(width or ()))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    rows: list[Row] = []
    for chosen in [name] if name is not None else BENCHES:
        found = measure(chosen, options)
        rows += found
        if not json:
            print_rows(console, f"{chosen}: {BENCHES[chosen][1]}", found)
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode() + "\n")
    if write_floors:
        try:
            Floors.read().renewed(rows).write()
        except OSError as error:
            raise InputError(f"--write-floors: {FLOORS_FILE}: {error.strerror}") from error
    if floors and (bad := worse(rows)):
        raise ToolError("\n  ".join([f"{len(bad)} of {len(rows)} figures are worse than their floors:", *bad]))
