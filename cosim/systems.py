"""The systems that can be compared: where TCP/IP's work is done, and how the server talks to it."""

from __future__ import annotations

from typing import Literal

import msgspec

from cosim.errors import InputError
from cosim.machine import Machine, Moderation
from host_driver.notification import NAPI_POLL_WEIGHT


class System(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way to serve: the interface that the server uses, what the device does, how the host is told."""

    name: str
    description: str
    api: Literal["sockets", "memnet"]
    """Ordinary sockets with their copies, or MemNet's asynchronous sends from registered memory."""
    segmentation: bool
    """The device cuts large sends into segments and fills in their checksums."""
    rx_checksum: bool
    """The device verifies the checksums of what arrives."""
    notification: Literal["machine", "interrupt", "polling", "soft_timers", "napi"] = "machine"
    """`machine`: by interrupts, as its operating system serves them."""
    poll_period_ns: int = 0
    """Time between two looks of polling; the least such time of soft timers."""
    napi_weight: int = NAPI_POLL_WEIGHT
    """Packets that a poll of NAPI takes at most."""
    interrupts_on: tuple[int, ...] | None = None
    """Processors that take interrupts, run bottom halves and poll; None: all, as the machine routes them."""
    processes_on: tuple[int, ...] | None = None
    """Processors that the application's processes may run on; None: all."""
    moderation: Moderation | None = None
    """Interrupt moderation; None: the machine's adapter's."""


    def told_by(self, machine: Machine) -> str:
        """How the host is told on a machine."""
        if self.notification != "machine":
            return self.notification
        return "napi" if machine.interrupts == "napi" else "interrupt"

    def has_dedicated_processors(self, processors: int) -> bool:
        """Whether the processors that interrupts go to run no process of the application."""
        everywhere = tuple(range(processors))
        interrupts_on = everywhere if self.interrupts_on is None else self.interrupts_on
        return not set(interrupts_on) & set(everywhere if self.processes_on is None else self.processes_on)


BASELINE = "nic-dumb"
"""The system that the others are compared with, if it is in the run."""

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(name=BASELINE, description="TCP/IP on the host, sockets, two copies; every offload of the device off",
               api="sockets", segmentation=False, rx_checksum=False),
        System(name="nic-tso", description="TCP/IP on the host, MemNet async_send from registered memory; the device "
               "segments and computes checksums", api="memnet", segmentation=True, rx_checksum=True),
    )
}
"""The named systems, in the order in which they are shown."""


def select_systems(names: str) -> list[System]:
    """The systems of a comma-separated list, each once. Raises InputError for an unknown name or none at all."""
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not wanted:
        raise InputError(f"no system named: choose from {', '.join(SYSTEMS)}")
    for name in wanted:
        if name not in SYSTEMS:
            raise InputError(f"no system {name!r}: choose from {', '.join(SYSTEMS)}")
    return [SYSTEMS[name] for name in wanted]
