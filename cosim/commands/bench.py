"""`memnic bench`: measure, and print what was reached beside the bar."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from cosim.benches import BENCHES, BenchOptions, measure
from cosim.benches.rows import print_rows
from cosim.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    name: Annotated[str | None, typer.Argument(help=f"one of {', '.join(BENCHES)}; without it: all")] = None,
    log: Annotated[Path | None, typer.Option(help="a web server's log, for the bench of `memnic run`")] = None,
    json: Annotated[bool, typer.Option("--json", help="print rows as JSON instead of a table")] = False,
) -> None:
    """Measure speeds, and print each beside the bar that it should reach. Exits 0 whether or not it does."""
    if name is not None and name not in BENCHES:
        raise InputError(f"no bench {name!r}: choose from {', '.join(BENCHES)}")
    if log is not None and not log.is_file():
        raise InputError(f"--log: no file {log}")
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    options = BenchOptions(log=log, say=lambda what: errors.print(f"measuring: {what}", markup=False))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    rows = []
    for chosen in [name] if name is not None else BENCHES:
        found = measure(chosen, options)
        rows += found
        if not json:
            print_rows(console, f"{chosen}: {BENCHES[chosen][1]}", found)
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode() + "\n")
