"""The systems that can be compared, by name: the files in this folder, and a user's own."""

from __future__ import annotations

from pathlib import Path

from cosim.errors import InputError
from cosim.systems.system import Dedicated, DeviceWork, Node, Place, Placed, Policy, RunsOn, System, Told, load_system

__all__ = ["BASELINES", "DEFAULT_SYSTEMS", "SYSTEMS", "Dedicated", "DeviceWork", "Node", "Place", "Placed", "Policy",
           "RunsOn", "System", "Told", "load_system", "select_systems", "system_file"]

_SHIPPED = (
    # TCP on the host's processors, and on some of them alone
    "uniproc", "smp", "ded1", "ded2", "ded1-send", "ded2-send", "ded1-poll", "ded2-poll", "ded1-send-poll",
    "ded2-send-poll", "ded1-async", "ded2-async", "ded1-async-poll", "ded2-async-poll", "ded1-send-balanced",
    # TCP on the host of a machine with a SAN, and on a node behind it
    "reg-tcp", "tcps-sock", "tcps-sync", "tcps-async", "tcps-async-eacc", "tcps-async-ercv",
    # what the device does
    "nic-dumb", "nic-csum", "nic-tso", "nic-tso-lro", "nic-tcp",
)
"""Names of the files, in the order in which systems are shown."""

BASELINES = ("nic-dumb", "smp", "reg-tcp")
"""What the others in a run are compared with: the first of these that is there."""

DEFAULT_SYSTEMS = ("nic-dumb", "nic-tso")


def system_file(name: str) -> Path:
    """Where a shipped system stands."""
    return Path(__file__).parent / f"{name}.toml"


SYSTEMS: dict[str, System] = {name: load_system(system_file(name)) for name in _SHIPPED}
"""The shipped systems."""


def select_systems(names: str) -> list[System]:
    """The systems of a comma-separated list of names and TOML files, each once.

    Raises InputError for an unknown name, none at all, or two of one name.
    """
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not wanted:
        raise InputError(f"no system named: choose from {', '.join(SYSTEMS)}, or give a TOML file")
    chosen = [_select(name) for name in wanted]
    for number, system in enumerate(chosen):
        if system.name in {other.name for other in chosen[:number]}:
            raise InputError(f"two systems are named {system.name}: let `name` in {wanted[number]} be another")
    return chosen


def _select(name: str) -> System:
    if name.endswith(".toml") or "/" in name:
        return load_system(Path(name))
    if name not in SYSTEMS:
        raise InputError(f"no system {name!r}: choose from {', '.join(SYSTEMS)}, or give a TOML file")
    return SYSTEMS[name]
