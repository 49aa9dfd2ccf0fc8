"""What a system is: where TCP/IP's work is done, how its host is told, what the device does; read from a TOML file.

A system has no costs: those are the machine's, so that two systems differ only in what runs where.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from cosim.errors import InputError, SystemFileError
from cosim.machine import Machine, Moderation
from host_driver.notification import NAPI_POLL_WEIGHT

Place = Literal["host", "dedicated", "node", "device"]
"""The host's processors, processors of it that do nothing else, another node behind a SAN, or the network adapter."""


class RunsOn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the four parts of TCP/IP run, in the order of Rangarajan et al. 2002, section 4.1."""

    bottom_half: Place = "host"
    """(i) Interrupts, and what they leave for later."""
    receive: Place = "host"
    """(ii) Asynchronous receive processing: TCP's for each arriving packet, and what an acknowledgement lets go."""
    send: Place = "host"
    """(iii) The send path in process context, the copy into kernel buffers included."""
    transmit: Place = "host"
    """(iv) The send path after that copy."""

    @property
    def parts(self) -> dict[str, Place]:
        """Field -> place."""
        return {"bottom_half": self.bottom_half, "receive": self.receive, "send": self.send, "transmit": self.transmit}


class Dedicated(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Processors of the host that do TCP/IP's work and run no process: the machine's last ones."""

    processors: int = 1


class DeviceWork(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the device does beside moving frames."""

    rx_checksum: bool = False
    """It verifies the checksums of what arrives,"""
    tx_checksum: bool = False
    """computes those of what is sent, so that it can send from the application's registered memory,"""
    segmentation: bool = False
    """cuts large sends into segments,"""
    coalescing_usecs: float = 0
    """and merges received segments, holding them so long at most; 0: it does not."""
    processors: int | None = None
    """Processors of the device that do TCP, where all parts run on it; None: as many as the machine's has."""


class Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the host is told that the device has something."""

    by: Literal["machine", "interrupt", "polling", "soft_timers", "napi"] = "machine"
    """`machine`: by interrupts, as its operating system serves them."""
    period_us: float = 0
    """Time between two looks of polling; the least such time of soft timers."""
    weight: int = NAPI_POLL_WEIGHT
    """Packets that a poll of NAPI takes at most."""
    moderation: Moderation | None = None
    """Interrupt moderation; None: the machine's adapter's."""


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How it is decided, connection by connection, whether a dedicated processor serves it or the host."""

    offload_below: int
    """A new connection goes to a dedicated processor while fewer frames and sends than this wait there."""


class System(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way to serve."""

    name: str
    description: str
    api: Literal["sockets", "memnet"]
    """Ordinary sockets with their copies, or MemNet's asynchronous sends from registered memory."""
    processors: int | None = None
    """How many of the machine's processors are used, the first ones; None: all."""
    runs_on: RunsOn = RunsOn()
    dedicated: Dedicated | None = None
    device: DeviceWork = DeviceWork()
    notification: Told = Told()
    policy: Policy | None = None
    """None: all connections are served where `runs_on` says."""
    interrupts_on: tuple[int, ...] | None = None
    """Processors that take interrupts, run bottom halves and poll; None: the dedicated ones, or all, as the machine
    routes them."""
    processes_on: tuple[int, ...] | None = None
    """Processors that the application's processes may run on; None: all but the dedicated ones."""

    @property
    def is_on_device(self) -> bool:
        """Whether TCP is done on the device, by firmware behind its control port."""
        return self.runs_on.receive == "device"

    def told_by(self, machine: Machine) -> str:
        """How the host is told on a machine."""
        if self.notification.by != "machine":
            return self.notification.by
        return "napi" if machine.interrupts == "napi" else "interrupt"

    def placed_on(self, machine: Machine) -> Placed:
        """Which processors of a machine do what. Raises InputError if it has too few."""
        used = machine.processors if self.processors is None else self.processors
        if used > machine.processors:
            raise InputError(f"system {self.name} uses {used} processors, and {machine.name} has {machine.processors}")
        everywhere = tuple(range(used))
        for field in ("interrupts_on", "processes_on"):
            unknown = [number for number in getattr(self, field) or () if number not in everywhere]
            if unknown:
                raise InputError(f"system {self.name}: `{field}` must be some of the processors 0 to {used - 1} of "
                                 f"{machine.name}, not {unknown[0]}")
        if self.dedicated is None:
            return Placed(used, self.interrupts_on, self.processes_on)
        least = self.dedicated.processors + 1
        if used < least:
            raise InputError(f"system {self.name} needs {least} processors at least, {self.dedicated.processors} for "
                             f"TCP and one for processes, and {machine.name} has {used}")
        return Placed(used, everywhere[1 - least :], everywhere[: 1 - least])


class Placed(msgspec.Struct, frozen=True):
    """The processors of a system on a machine."""

    processors: int
    """How many are used."""
    interrupts_on: tuple[int, ...] | None
    """Those that take interrupts, run bottom halves and poll; None: all."""
    processes_on: tuple[int, ...] | None
    """Those that run processes; None: all."""

    @property
    def has_dedicated(self) -> bool:
        """Whether those that interrupts go to run no process of the application."""
        everywhere = tuple(range(self.processors))
        interrupts_on = everywhere if self.interrupts_on is None else self.interrupts_on
        return not set(interrupts_on) & set(everywhere if self.processes_on is None else self.processes_on)


def load_system(path: Path) -> System:
    """The system of a TOML file; its name is the file's if it gives none. Raises SystemFileError, naming file and
    field."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SystemFileError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SystemFileError(f"{path}: no valid TOML: {error}") from error
    try:
        system = msgspec.convert({"name": path.stem, **raw}, System)
    except msgspec.ValidationError as error:
        raise SystemFileError(f"{path}: {error}") from error
    for field, problem in _problems(system, raw):
        raise SystemFileError(f"{path}: `{field}` {problem}")
    return system


def _problems(system: System, raw: dict[str, Any]) -> list[tuple[str, str]]:
    """(field, what is wrong and what would be right) of what the types alone let pass."""
    found: list[tuple[str, str]] = []

    def check(is_right: bool, field: str, problem: str) -> None:
        if not is_right:
            found.append((field, problem))

    check(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", system.name) is not None, "name",
          f"must be of letters, digits, `-`, `_` and `.`, since it names a folder, not {system.name!r}")
    check(bool(system.description.strip()), "description", "must say in a line what the system is")
    check(system.processors is None or system.processors >= 1, "processors",
          f"must be at least 1, not {system.processors}")
    for field in ("interrupts_on", "processes_on"):
        numbers = getattr(system, field)
        check(numbers is None or bool(numbers), field, "must name a processor; leave it out for all")
        check(numbers is None or min(numbers, default=0) >= 0, field, "must be numbers of processors, from 0")
        check(numbers is None or system.dedicated is None, field,
              "and `dedicated` exclude each other: dedicated processors take interrupts, and the others run processes")
    _check_parts(system, check)
    device = system.device
    check(not device.segmentation or device.tx_checksum, "device.segmentation",
          "needs `device.tx_checksum`: a device that cuts a send up writes new checksums")
    check(not device.coalescing_usecs or device.rx_checksum, "device.coalescing_usecs",
          "needs `device.rx_checksum`: only the device has seen each merged segment's checksum")
    check(0 <= device.coalescing_usecs < float("inf"), "device.coalescing_usecs",
          f"must be at least 0, not {device.coalescing_usecs}")
    _check_told(system, raw.get("notification", {}), check)
    return found


def _check_parts(system: System, check: Any) -> None:
    """Where the parts run, and what that needs."""
    runs_on, dedicated = system.runs_on, system.dedicated
    for part, place in runs_on.parts.items():
        check(place in ("host", "dedicated", "device"), f"runs_on.{part}",
              f"cannot be {place!r} yet: host, dedicated or device")
        check(place != "dedicated" or dedicated is not None, f"runs_on.{part}",
              "is \"dedicated\", which needs a table `dedicated` with `processors`")
    check(runs_on.bottom_half == runs_on.receive, "runs_on.receive",
          f"must be where `runs_on.bottom_half` is ({runs_on.bottom_half}), since the two move together, not "
          f"{runs_on.receive!r}")
    check(runs_on.send in ("host", runs_on.transmit), "runs_on.transmit",
          f"must be where `runs_on.send` is ({runs_on.send}), which includes it, not {runs_on.transmit!r}")
    check(runs_on.transmit in ("host", runs_on.receive), "runs_on.transmit",
          f"must be on the host, or where `runs_on.receive` is ({runs_on.receive}), not {runs_on.transmit!r}")
    check(runs_on.send != "dedicated" or system.api == "memnet", "runs_on.send",
          "is \"dedicated\", which needs an application that sends asynchronously: `api` = \"memnet\"")
    on_device = [part for part, place in runs_on.parts.items() if place == "device"]
    check(len(on_device) in (0, len(runs_on.parts)), f"runs_on.{(on_device or ['send'])[0]}",
          "is \"device\", which all four parts must be, or none: the firmware has all of TCP")
    check(not on_device or system.api == "memnet", "api", "must be \"memnet\" for TCP on the device: its operations "
          "are MemNet's")
    check(system.device.processors is None or bool(on_device), "device.processors",
          "needs all parts in `runs_on` to be \"device\"")
    check(system.device.processors is None or system.device.processors >= 1, "device.processors",
          f"must be at least 1, not {system.device.processors}")
    if dedicated is not None:
        check(dedicated.processors >= 1, "dedicated.processors", f"must be at least 1, not {dedicated.processors}")
        check("dedicated" in runs_on.parts.values(), "dedicated", "needs parts in `runs_on` that are \"dedicated\"")
    if system.policy is not None:
        check(dedicated is not None, "policy", "needs `dedicated` processors to choose")
        check(system.policy.offload_below >= 1, "policy.offload_below",
              f"must be at least 1, not {system.policy.offload_below}")


def _check_told(system: System, given: dict[str, Any], check: Any) -> None:
    """How the host is told, and what that needs."""
    told = system.notification
    by_period = told.by in ("polling", "soft_timers")
    check(by_period or "period_us" not in given, "notification.period_us", f"is for polling and soft_timers, not for "
          f"{told.by}")
    check(not by_period or 1e-3 <= told.period_us < float("inf"), "notification.period_us",
          f"must be a time of at least 0.001 for {told.by}, not {told.period_us}")
    check(told.by == "napi" or "weight" not in given, "notification.weight", f"is for napi, not for {told.by}")
    check(told.weight >= 1, "notification.weight", f"must be at least 1 packet, not {told.weight}")
    check(not by_period or told.moderation is None, "notification.moderation", f"is for interrupts, not for {told.by}")
    several = system.dedicated is not None and system.dedicated.processors > 1
    check(told.by != "soft_timers" or not several, "notification.by",
          "cannot be soft_timers on several dedicated processors: interrupt, polling or napi")
