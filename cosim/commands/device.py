"""`memnic device`: explore devices that are not built, without RTL."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from cosim.engines.bench import bus_timing
from cosim.engines.bus import BusTiming
from cosim.errors import InputError
from cosim.machine import load_machine
from cosim.timing import device_file
from cosim.timing.characterize import bus
from cosim.timing.explore import Load, Reached, bottleneck, bounds, parameters_of, reached, sweep
from nic_model.contract import MAX_SEGMENTED_BYTES, MIN_MSS
from nic_model.timing.parameters import DeviceModel

PLOT_CELLS = 40
DEFAULT_LATENCY = 250
LEAST_SHARE = 0.001


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Explore devices that are not built: sweeps and bounds, by the timed model.")
    group.command("sweep")(sweep_command)
    group.command("roofline")(roofline)
    app.add_typer(group, name="device")


_DEVICE = Annotated[str, typer.Argument(help=f"a device file, or one of {', '.join(device_file.shipped())}")]
_SIZE = Annotated[int, typer.Option(help="bytes of each send's payload")]
_MSS = Annotated[int, typer.Option(help="bytes of a segment; 0: each send is one frame")]
_LATENCY = Annotated[int, typer.Option(help="of DMA reads, in cycles")]
_MACHINE = Annotated[str | None, typer.Option(help="take the bus of this machine instead")]
_JSON = Annotated[bool, typer.Option("--json", help="print rows as JSON instead of a table")]


def roofline(device: _DEVICE = "default", size: _SIZE = 65_536, mss: _MSS = 1460, latency: _LATENCY = DEFAULT_LATENCY,
             machine: _MACHINE = None, json: _JSON = False) -> None:
    """Print what arithmetic allows each part of the device, beside what the model reaches."""
    model, load = device_file.load_device(device), _load(size, mss)
    timing = _bus(machine, latency, model)
    found, got = bounds(model, load, timing), reached(model, load, timing)
    rates = [model.config.clock_hz / max(1e-9, bound.cycles_a_frame) for bound in found]
    if json:
        _print_json([{"what": bound.what, "cycles_a_frame": bound.cycles_a_frame, "words": bound.words,
                      "share": bound.cycles_a_frame / got.cycles_a_frame} for bound in found]
                    + [{"what": "model", "cycles_a_frame": got.cycles_a_frame, "gbit_per_s": got.gbit_per_s,
                        "frames_per_s": got.frames_per_s, "latency_cycles": got.latency_cycles,
                        "waits": _waits(got), "works": got.works}])
        return
    table = Table(title=f"{model.config.name}: {_words(load)}", title_justify="left")
    for heading in ("bound", "cycles a frame", "Gb/s", "busy", "", "of what"):
        table.add_column(heading, justify="right" if heading in ("cycles a frame", "Gb/s", "busy") else "left")
    for bound, rate in zip(found, rates, strict=True):
        share = bound.cycles_a_frame / got.cycles_a_frame
        gbit_per_s = got.gbit_per_s * rate / got.frames_per_s
        table.add_row(bound.what, f"{bound.cycles_a_frame:,.2f}", f"{gbit_per_s:,.2f}", f"{100 * share:.0f} %",
                      _bar(share), bound.words)
    table.add_row("model reaches", f"{got.cycles_a_frame:,.2f}", f"{got.gbit_per_s:,.2f}", "", "",
                  f"{got.frames_per_s:,.0f} frames/s; first frame after {got.latency_cycles:,} cycles")
    console = _console()
    console.print(table)
    waits = Table(title="who waits for whom", title_justify="left")
    for heading in ("who", "waits for", "of the time", ""):
        waits.add_column(heading, justify="right" if heading == "of the time" else "left")
    for entry in _waits(got):
        waits.add_row(entry["who"], entry["waits_for"], f"{100 * entry['share']:.1f} %", _bar(entry["share"]))
    console.print(waits)
    works = ", ".join(f"{name} {100 * share:.0f} %" for name, share in got.works.items())
    console.print(f"of the time at work, counted: {works}", markup=False)
    console.print(bottleneck(found, got), markup=False)


def sweep_command(
    parameter: Annotated[str, typer.Argument(help="such as sizes.payload_reads, queues.segmenters, "
                                                  "timing.decision_interval, or bus.read_latency_cycles")],
    values: Annotated[str, typer.Argument(help="values, separated by commas, such as 8,16,32,64")],
    device: Annotated[str, typer.Option(help="a device file, or the name of a shipped one")] = "default",
    size: _SIZE = 65_536, mss: _MSS = 1460, latency: _LATENCY = DEFAULT_LATENCY, machine: _MACHINE = None,
    json: _JSON = False,
) -> None:
    """Vary one parameter of a device, and print throughput, latency, and who keeps it from more."""
    path, load = device_file.find(device), _load(size, mss)
    file, numbers = device_file.read(path), _numbers(values)
    timing = _bus(machine, latency, file.model(str(path)))
    rows = []
    if parameter.startswith("bus."):
        field = parameter.partition(".")[2]
        model = file.model(str(path))
        for value in numbers:
            varied = _bus_with(timing, field, value)
            rows.append((value, reached(model, load, varied), bounds(model, load, varied)))
    else:
        if parameter not in parameters_of(file):
            raise InputError(f"no parameter {parameter!r}: choose from {', '.join(parameters_of(file))}, "
                             f"bus.{', bus.'.join(BusTiming.__dataclass_fields__)}")
        for value, model, got in sweep(file, parameter, numbers, load, timing):
            rows.append((value, got, bounds(model, load, timing)))
    if json:
        _print_json([{"value": value, "gbit_per_s": got.gbit_per_s, "frames_per_s": got.frames_per_s,
                      "cycles_a_frame": got.cycles_a_frame, "latency_cycles": got.latency_cycles,
                      "limit": found[0].what, "limit_cycles": found[0].cycles_a_frame, "waits": _waits(got),
                      "works": got.works} for value, got, found in rows])
        return
    table = Table(title=f"{file.name}: {_words(load)}", title_justify="left")
    for heading in (parameter, "Gb/s", "", "frames/s", "first frame, cycles", "who keeps it from more"):
        table.add_column(heading, justify="left" if heading in ("", "who keeps it from more") else "right")
    most = max(got.gbit_per_s for _, got, _ in rows)
    for value, got, found in rows:
        table.add_row(f"{value:,}", f"{got.gbit_per_s:,.2f}", _bar(got.gbit_per_s / most), f"{got.frames_per_s:,.0f}",
                      f"{got.latency_cycles:,}", bottleneck(found, got))
    _console().print(table)


def _waits(got: Reached) -> list[dict[str, Any]]:
    """Who waits for whom for what share of the time, the longest first; without those that never do."""
    found = sorted(got.waits.items(), key=lambda entry: -entry[1])
    return [{"who": who, "waits_for": whom, "share": share} for (who, whom), share in found if share >= LEAST_SHARE]


def _load(size: int, mss: int) -> Load:
    if not 1 <= size <= MAX_SEGMENTED_BYTES:
        raise InputError(f"--size must be 1 to {MAX_SEGMENTED_BYTES}, not {size}")
    if mss and mss < MIN_MSS:
        raise InputError(f"--mss must be 0, or at least {MIN_MSS}, not {mss}")
    if not mss and size > 9000:
        raise InputError(f"--size must be at most 9000 without segments (--mss 0), not {size}")
    return Load(payload=size, mss=mss)


def _words(load: Load) -> str:
    return (f"sends of {load.payload:,} bytes in segments of {load.mss:,}" if load.mss
            else f"frames of {load.payload:,} bytes")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"values must be numbers separated by commas, not {text!r}") from None


def _bus(machine: str | None, latency: int, model: DeviceModel) -> BusTiming:
    if latency < 1:
        raise InputError(f"--latency must be at least 1, not {latency}")
    return bus(latency) if machine is None else bus_timing(load_machine(machine), model.config)


def _bus_with(timing: BusTiming, field: str, value: int) -> BusTiming:
    if field not in BusTiming.__dataclass_fields__:
        raise InputError(f"no parameter 'bus.{field}': choose from bus.{', bus.'.join(BusTiming.__dataclass_fields__)}")
    least = field in ("bytes_per_cycle", "tags", "max_payload_bytes", "max_read_request_bytes")
    if value < least:
        raise InputError(f"bus.{field} must be at least {int(least)}, not {value}")
    values: dict[str, Any] = {field: value}
    return replace(timing, **values)


def _bar(share: float) -> str:
    return "#" * round(PLOT_CELLS * min(1.0, share))


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def _print_json(rows: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode() + "\n")
