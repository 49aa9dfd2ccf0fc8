"""The table of floors, `floors.toml`: what a figure of a bench must not be worse than, so that a regression is seen."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from cosim.benches.rows import FAILED, Row
from cosim.errors import InputError

FLOORS_FILE = Path(__file__).with_name("floors.toml")

MARGIN = 0.01
"""A floor stands so far from what was measured: cycles are counted, so only a change of the device moves them."""

_HEAD = """\
# What each figure of `memnic bench rtl` must not fall below, or exceed if it is a number of cycles: 1 % from what was
# measured. Written by `memnic bench rtl --write-floors`, checked by `memnic bench rtl --floors` and, for 64 and 512
# bits, by the tests. `reason`: why a figure does not reach its bar; put there by hand, and kept as long as it does not.
"""


class Floor(NamedTuple):
    """Of one figure."""

    value: float
    reason: str = ""


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    floor: float
    reason: str = ""


class Floors:
    """The table: `of(width)` gives the floors of one width by the figure's key."""

    def __init__(self, groups: Mapping[str, Mapping[str, Floor]]) -> None:
        self._groups = {name: dict(floors) for name, floors in groups.items()}

    @classmethod
    def read(cls, path: Path = FLOORS_FILE) -> Floors:
        """From a file; none if it is missing. Raises InputError, naming the file, if it is no such table."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return cls({})
        try:
            raw = msgspec.convert(tomllib.loads(text), dict[str, dict[str, _Entry]])
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise InputError(f"{path}: {error}") from error
        return cls({group: {key: Floor(entry.floor, entry.reason) for key, entry in entries.items()}
                    for group, entries in raw.items()})

    def of(self, width: int) -> dict[str, Floor]:
        """Floors of the device with a MAC of so many bits."""
        return self._groups.get(f"{width}-bit", {})

    def renewed(self, rows: Iterable[Row]) -> Floors:
        """The same with the floors of these rows as they were measured. Groups that they do not name stay, and floors
        of figures that failed; those of figures that the device does not have go."""
        groups = dict(self._groups)
        fresh: dict[str, dict[str, Floor]] = {}
        for r in rows:
            floors = fresh.setdefault(r.group, {})
            before = groups.get(r.group, {}).get(r.key)
            if r.note.startswith(FAILED) and before is not None:
                floors[r.key] = before
            if r.value is not None:
                reason = before.reason if before is not None and not r.reached else ""
                floors[r.key] = Floor(round(r.value * (1 - MARGIN if r.sense == ">=" else 1 + MARGIN), 3), reason)
        return Floors(groups | fresh)

    def write(self, path: Path = FLOORS_FILE) -> None:
        """To a file."""
        lines = [_HEAD]
        for group, floors in self._groups.items():
            for key, floor in floors.items():
                lines.append(f'["{group}".{key}]\nfloor = {floor.value}\n')
                if floor.reason:
                    lines[-1] += f"reason = {msgspec.json.encode(floor.reason).decode()}\n"
        path.write_text("\n".join(lines), encoding="utf-8")


def worse(rows: Iterable[Row]) -> list[str]:
    """Figures that are worse than their floor, have none, or were not measured though they have one or should have
    been; in words."""
    said = []
    for r in rows:
        if r.note.startswith(FAILED):
            said.append(f"{r.figure}: {r.note}")
        elif r.floor is None:
            if r.value is not None:
                said.append(f"{r.figure}: no floor; `memnic bench rtl --write-floors` makes one")
        elif r.value is None:
            said.append(f"{r.figure}: {r.note}, and its floor is {r.floor:g} {r.unit}")
        elif (r.value < r.floor) if r.sense == ">=" else (r.value > r.floor):
            said.append(f"{r.figure}: {r.value:.4g} {r.unit}, and its floor is {r.floor:g}")
    return said
