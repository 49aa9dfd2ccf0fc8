"""`memnic synth`: what a device, or one of its blocks, takes on an ECP5, and how fast it is."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cosim.area import make_table
from cosim.control_port import device_config
from cosim.errors import InputError
from cosim.synthesis import PART_NAME, TARGET_HZ, Area, Timing, blocks, place_and_route, synthesize
from nic_model.contract import CONFIGS


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("synth")(synth)


def synth(
    device: Annotated[str, typer.Argument(help=f"one of {', '.join(CONFIGS)}")] = "tiny",
    block: Annotated[list[str] | None, typer.Option(help="a block, again for more; `all` for each of them; default: "
                                                         "the whole device")] = None,
    control_port: Annotated[bool, typer.Option(
        "--control-port", help="with what TCP on the device needs; the port's own blocks have it anyway")] = False,
    route: Annotated[bool, typer.Option(help="place and route too, for Fmax; takes minutes")] = True,
    seed: Annotated[int, typer.Option(help="of placement")] = 1,
    path: Annotated[bool, typer.Option("--path", help="print the critical path")] = False,
    keep: Annotated[Path | None, typer.Option(help="folder for Verilog, netlists and reports")] = None,
    table: Annotated[Path | None, typer.Option(help="write a table of all blocks of the 64-bit and the 128-bit device, "
                                                    "and of `default` as a whole with three seeds, to this file; takes "
                                                    "hours, and goes on where it was interrupted")] = None,
) -> None:
    """Synthesize for ECP5 out of context and print LUTs, flip-flops, block RAM and Fmax."""
    if device not in CONFIGS:
        raise InputError(f"no device {device!r}: choose from {', '.join(CONFIGS)}")
    known = blocks()
    names = block or ["nic"]
    if names == ["all"]:
        names = list(known)
    for name in names:
        if name not in known:
            raise InputError(f"no block {name!r}: choose from {', '.join(known)}, all")
    if table is not None:
        _make_table(table, [] if block is None else names, route=route)
        return
    if keep is not None:
        try:
            keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {keep}: {error.strerror}") from error
    console = Console(highlight=False)
    config = device_config(device, control_port=control_port)
    shown = _table(f"{device} with a control port" if control_port else device)
    with nullcontext(str(keep)) if keep else tempfile.TemporaryDirectory(prefix="memnic-synth-") as place:
        folder = Path(place)
        for name in names:
            with console.status(f"{name}: synthesis ...") if console.is_terminal else nullcontext():
                area = synthesize(config, name, folder)
            timing = None
            if route:
                with console.status(f"{name}: place and route ...") if console.is_terminal else nullcontext():
                    timing = place_and_route(name, folder, seed)
            shown.add_row(*_row(name, area, timing))
            if path and timing is not None:
                console.print(f"{name}: critical path", *timing.critical_path, sep="\n  ", soft_wrap=True)
    console.print(shown)


def _make_table(path: Path, names: list[str], *, route: bool) -> None:
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        make_table(path, names, lambda what: errors.print(what, markup=False), route=route)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _table(device: str) -> Table:
    table = Table(title=f"{device} on {PART_NAME}, out of context, goal {TARGET_HZ / 1e6:.2f} MHz")
    table.add_column("block")
    for title in ("LUT4", "flip-flops", "block RAM", "distributed RAM", "Fmax, MHz"):
        table.add_column(title, justify="right")
    return table


def _row(name: str, area: Area, timing: Timing | None) -> list[str]:
    fmax = "-" if timing is None else f"{timing.fmax_hz / 1e6:.1f}"
    return [name, f"{area.lut4:,}", f"{area.flip_flops:,}", str(area.block_rams), str(area.distributed_rams), fmax]
