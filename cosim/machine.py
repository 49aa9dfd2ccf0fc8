"""Machines and applications: what a processor, a bus and a program cost, read from TOML files.

A machine prices each item of `host_driver.account.ITEMS` in cycles, but for the two that are the
application's own work; an application profile prices those. Each cost carries its source.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from cosim.errors import MachineError
from host_driver.account import FIRMWARE_ITEMS, ITEMS

APPLICATION_ITEMS = (("user", "request"), ("user", "connection"))
"""(category, item) that an application profile prices, not a machine."""

PS_PER_SECOND = 10**12

T = TypeVar("T")


class Cost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Price of one unit of an item, in processor cycles (a fraction for items counted by the byte), and its source."""

    cycles: float
    source: str


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bursts of the device that the bus answers with an error, by their number in one direction, from 1."""

    direction: Literal["read", "write"]
    first: int
    count: int = 1


class Bus(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The bus between host and device."""

    mmio_read_ns: int
    """A register read, from the processor and back."""
    mmio_write_ns: int
    """A posted write, until the device sees it."""
    dma_read_latency_ns: int
    """From a device's read request to its first byte."""
    dma_write_latency_ns: int
    """From a device's last written byte to the bus response."""
    bandwidth_bytes_per_s: int
    """Bytes that the bus moves, both directions together; on a `duplex` bus in each."""
    duplex: bool = False
    """PCIe: each direction for itself. Else both share the bus, as on PCI."""
    tlp_overhead_bytes: int = 0
    """Of each packet beside its payload: framing, sequence number, header, LCRC."""
    max_payload_bytes: int = 4096
    """Of one packet; on PCI, of one burst."""
    max_read_request_bytes: int = 4096
    """Asked for by one packet."""
    tags: int = 256
    """Read requests that may be on their way at a time."""
    reorder_ns: int = 0
    """A read's data may be late by a random 0 .. so much, so that data come out of order."""
    interleave: bool = False
    """Data of several reads may come mixed."""
    faults: list[Fault] = []
    """Bursts that fail."""
    source: str


class Moderation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Interrupt moderation, in ethtool's terms."""

    rx_usecs: int
    rx_frames: int
    tx_usecs: int
    tx_frames: int
    adaptive_rx: bool = False
    """Linux's dynamic interrupt moderation decides on rx_usecs and rx_frames."""
    adaptive_tx: bool = False
    source: str


class WakeupPreemption(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a process that wakes takes the processor from one that runs: if that one has had so much more time."""

    process_us: int
    """More than a process of another address space,"""
    thread_us: int
    """and than another thread of its own."""
    credit_us: int
    """Who has slept counts as having had at most so much less than any that did not."""
    source: str


class San(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A system area network between nodes of such a machine: an adapter on a PCI bus in each, links, a switch."""

    doorbell_ns: int
    """A posted write, until the adapter sees it."""
    latency_ns: int
    """From the first byte on a link to the first byte out of the switch, adapters' own work included."""
    link_bytes_per_s: int
    """Of a link, in each direction."""
    packet_bytes: int
    """Of data in one packet, at most."""
    bus_bytes_per_s: int
    """Of a node's bus while a burst lasts; both directions share it."""
    bus_burst_bytes: int
    """Of one burst, at most."""
    bus_transaction_ns: int
    """What each burst costs beside its bytes: arbitration, address, wait, turn-around."""
    source: str


class DeviceProcessor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What runs the firmware on the network adapter, where TCP is done there."""

    clock_hz: int
    processors: int = 1
    """Connections are spread over them."""
    source: str
    costs: dict[str, dict[str, Cost]]
    """Of the items of `host_driver.account.FIRMWARE_ITEMS`, in its own cycles."""


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A host: processors, cost table, bus and the defaults of its network adapter."""

    name: str
    description: str
    processors: int
    clock_hz: int
    quantum_us: int
    """Time after which a process gives way to a waiting one."""
    wakeup_preemption: WakeupPreemption | None = None
    """None: a process that wakes waits until another gives way."""
    interrupt_routing: Literal["first", "rotate", "idle"]
    """Interrupts and bottom halves run on the first of the processors that may take them, on each in turn, or on one
    whose work is least urgent: idle, else a process."""
    interrupts: Literal["handler", "napi"] = "handler"
    """What an interrupt does in its operating system: the handler takes packets, or NAPI's softirq does."""
    parallel_softirqs: bool = False
    """Each processor that takes interrupts has a bottom half and a backlog of its own, as in Linux 2.4; else the
    interface has one, which runs on one of them at a time, as with NAPI."""
    link_bit_rate: int
    bus: Bus
    moderation: Moderation
    san: San | None = None
    """What connects it to a TCP server node; with it come the costs of category `san`."""
    costs: dict[str, dict[str, Cost]]
    device_processor: DeviceProcessor | None = None


class Application(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A server program: its own work, and how many processes it runs."""

    name: str
    description: str
    processes: int
    """At the start (Apache's StartServers)."""
    most_processes: int | None = None
    """It forks more, up to so many (MaxClients), while too few are idle; None: it does not."""
    least_spare: int = 5
    """Fewer idle ones are too few (MinSpareServers),"""
    most_spare: int = 10
    """and more are too many (MaxSpareServers)."""
    request: Cost
    connection: Cost


def load_machine(name_or_path: str) -> Machine:
    """The machine of a shipped name or of a TOML file. Raises MachineError, naming file and field.

    A file may begin with `like`, another machine; what it then says itself goes before what that one says.
    """
    path, raw = _read(name_or_path, "machines", "machine")
    if "like" in raw:
        raw = _like(path, raw)
    costs = raw.pop("costs", None)
    if not isinstance(costs, dict):
        raise MachineError(f"{path}: missing table `costs`")
    device = raw.pop("device_processor", None)
    if isinstance(device, dict):
        device_costs = device.get("costs")
        if not isinstance(device_costs, dict):
            raise MachineError(f"{path}: missing table `device_processor.costs`")
        raw["device_processor"] = {**device, "costs": _check_costs(
            path, device_costs, "device_processor.costs", wanted=set(FIRMWARE_ITEMS))}
    elif device is not None:
        raise MachineError(f"{path}: `device_processor` must be a table")
    checked = _check_costs(path, costs, wanted=_host_items(has_san="san" in raw))
    machine = _convert(path, {**raw, "costs": checked}, Machine)
    if machine.device_processor is not None:
        for field in ("clock_hz", "processors"):
            _check_number(path, f"device_processor.{field}", getattr(machine.device_processor, field), least=1)
    for field in ("processors", "clock_hz", "quantum_us", "link_bit_rate"):
        _check_number(path, field, getattr(machine, field), least=1)
    _check_fields(path, "bus", machine.bus)
    for field in ("bandwidth_bytes_per_s", "max_payload_bytes", "max_read_request_bytes", "tags"):
        _check_number(path, f"bus.{field}", getattr(machine.bus, field), least=1)
    for number, fault in enumerate(machine.bus.faults):
        for field in ("first", "count"):
            _check_number(path, f"bus.faults[{number}].{field}", getattr(fault, field), least=1)
    _check_fields(path, "moderation", machine.moderation)
    if machine.wakeup_preemption is not None:
        _check_fields(path, "wakeup_preemption", machine.wakeup_preemption)
    if machine.san is not None:
        _check_fields(path, "san", machine.san)
        for field in ("link_bytes_per_s", "packet_bytes", "bus_bytes_per_s", "bus_burst_bytes"):
            _check_number(path, f"san.{field}", getattr(machine.san, field), least=1)
    return machine


def load_application(name_or_path: str) -> Application:
    """The application of a shipped name or of a TOML file. Raises MachineError, naming file and field."""
    path, raw = _read(name_or_path, "applications", "application")
    application = _convert(path, raw, Application)
    _check_number(path, "processes", application.processes, least=1)
    _check_number(path, "least_spare", application.least_spare, least=1)
    _check_number(path, "most_spare", application.most_spare, least=application.least_spare)
    if application.most_processes is not None:
        _check_number(path, "most_processes", application.most_processes, least=application.processes)
    for field in ("request", "connection"):
        _check_number(path, f"{field}.cycles", getattr(application, field).cycles, least=0)
    return application


def shipped(folder: str) -> list[str]:
    """Names of the shipped files in `machines` or `applications`."""
    return sorted(path.stem for path in (Path(__file__).parent / folder).glob("*.toml"))


def prices_ps(machine: Machine, application: Application) -> dict[tuple[str, str], int]:
    """Price of one unit of each (category, item) in whole picoseconds, rounded once, here."""
    cycles = {(category, item): cost.cycles for category, items in machine.costs.items()
              for item, cost in items.items()}
    cycles["user", "request"] = application.request.cycles
    cycles["user", "connection"] = application.connection.cycles
    return {key: round(value * PS_PER_SECOND / machine.clock_hz) for key, value in cycles.items()}


def firmware_prices_ps(device: DeviceProcessor) -> dict[tuple[str, str], int]:
    """The same of a device processor's own work."""
    return {(category, item): round(cost.cycles * PS_PER_SECOND / device.clock_hz)
            for category, items in device.costs.items() for item, cost in items.items()}


def _read(name_or_path: str, folder: str, kind: str) -> tuple[Path, dict[str, Any]]:
    path = Path(__file__).parent / folder / f"{name_or_path}.toml"
    if "/" in name_or_path or name_or_path.endswith(".toml") or not path.is_file():
        path = Path(name_or_path)
        if not path.is_file() and path.suffix != ".toml" and "/" not in name_or_path:
            raise MachineError(f"no {kind} {name_or_path!r}: give a TOML file, or one of {', '.join(shipped(folder))}")
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MachineError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MachineError(f"{path}: no valid TOML: {error}") from error


def _like(path: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """A machine file over the one that it is like, which is like no other."""
    name = raw.pop("like")
    if not isinstance(name, str):
        raise MachineError(f"{path}: `like` must be the name of a machine, or a TOML file, not {name!r}")
    try:
        other, base = _read(name, "machines", "machine")
    except MachineError as error:
        raise MachineError(f"{path}: `like`: {error}") from error
    if "like" in base:
        raise MachineError(f"{path}: `like`: {other} is itself like another machine")
    return _over(base, raw)


def _over(base: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Tables one over the other; a cost, which has its source, is replaced whole."""
    merged = dict(base)
    for key, value in raw.items():
        below = base.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and "cycles" not in value:
            merged[key] = _over(below, value)
        else:
            merged[key] = value
    return merged


def _convert(path: Path, raw: object, kind: type[T], where: str = "") -> T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        place = f" in `{where}`" if where else ""
        raise MachineError(f"{path}: {error}{place}") from error


def _host_items(*, has_san: bool) -> set[tuple[str, str]]:
    """What a machine must price."""
    return {(category, item) for category, items in ITEMS.items() for item in items
            if category != "san" or has_san} - set(APPLICATION_ITEMS)


def _check_costs(path: Path, costs: Mapping[str, Any], table: str = "costs", *, wanted: set[tuple[str, str]]
                 ) -> dict[str, dict[str, Cost]]:
    checked: dict[str, dict[str, Cost]] = {}
    for category, items in costs.items():
        if not isinstance(items, dict):
            raise MachineError(f"{path}: `{table}.{category}` must be a table of items")
        for item, raw in items.items():
            field = f"{table}.{category}.{item}"
            if (category, item) not in wanted:
                raise MachineError(f"{path}: unknown field `{field}`")
            cost = _convert(path, raw, Cost, field)
            _check_number(path, f"{field}.cycles", cost.cycles, least=0)
            checked.setdefault(category, {})[item] = cost
            wanted.discard((category, item))
    if wanted:
        missing = ", ".join(f"`{table}.{category}.{item}`" for category, item in sorted(wanted))
        raise MachineError(f"{path}: missing {missing}")
    return checked


def _check_fields(path: Path, table: str, struct: msgspec.Struct) -> None:
    for field, value in msgspec.structs.asdict(struct).items():
        if isinstance(value, int):
            _check_number(path, f"{table}.{field}", value, least=0)


def _check_number(path: Path, field: str, value: float, *, least: int) -> None:
    if not least <= value < float("inf"):
        raise MachineError(f"{path}: `{field}` must be at least {least}, not {value}")
