"""`memnic systems`: the systems that can be compared, and what runs where in each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from cosim.systems import SYSTEMS, System, select_systems, system_file


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("systems")(systems)


def systems(
    name: Annotated[str | None, typer.Argument(help="show this one's file: a name, or a TOML file of your own, which "
                                                    "is checked")] = None,
) -> None:
    """List the systems for `memnic run --systems`, with what runs where; or show the file of one."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    if name is None:
        console.print(systems_table(console, list(SYSTEMS.values())))
        console.print("Parts of TCP/IP: (i) interrupts and bottom half, (ii) receive, (iii) send with its copy, (iv) "
                      "send behind the copy.", soft_wrap=True)
        console.print("`memnic systems NAME` shows a file; write your own like it.", markup=False, soft_wrap=True)
        return
    (system,) = select_systems(name)
    console.print(systems_table(console, [system]))
    path = system_file(system.name) if SYSTEMS.get(name) is system else Path(name)
    console.print(f"{path}:\n", markup=False, soft_wrap=True)
    sys.stdout.write(path.read_text(encoding="utf-8"))


def systems_table(console: Console, chosen: list[System]) -> Table:
    """What runs where, a row for each."""
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2)
    for heading in ("system", "(i)", "(ii)", "(iii)", "(iv)", "processes", "told by", "the device does", "calls"):
        table.add_column(heading, no_wrap=True)
    for system in chosen:
        table.add_row(system.name, *system.runs_on.parts.values(), _processes(system), _told(system), _device(system),
                      {"sockets": "sockets", "memnet": "MemNet"}[system.api])
    return table


def _processes(system: System) -> str:
    """Which processors run processes."""
    if system.dedicated is not None:
        return f"all but {system.dedicated.processors}" + (", balanced" if system.policy is not None else "")
    if system.processors is not None:
        return f"{system.processors} processor{'s' if system.processors > 1 else ''}"
    return "all processors"


def _told(system: System) -> str:
    told = system.notification
    if told.by == "machine":
        return "interrupts"
    name = {"interrupt": "interrupts", "polling": "polling", "soft_timers": "soft timers", "napi": "NAPI"}[told.by]
    return name + (f", {told.period_us:g} us" if told.by in ("polling", "soft_timers") else "")


def _device(system: System) -> str:
    device = system.device
    if system.is_on_device:
        return "all of TCP/IP" + (f", on {device.processors} processors" if device.processors is not None else "")
    work = [name for name, is_done in (("sums", device.rx_checksum or device.tx_checksum),
                                       ("segmentation", device.segmentation),
                                       ("coalescing", device.coalescing_usecs > 0)) if is_done]
    return ", ".join(work) or "frames only"
