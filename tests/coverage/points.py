"""What Verilator counts: its points, the sum over several runs, and what that says of each module."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_POINT = re.compile(r"C '(.*)' (\d+)$")


class Point(NamedTuple):
    """A branch, or a bit that rises or falls."""

    kind: str
    """line or toggle."""
    instance: str
    """Path of the block below the top."""
    module: str
    line: int
    """In the Verilog, where it begins."""
    lines: tuple[int, ...]
    """Of a branch."""
    what: str
    """if, else, case, block; or the bit and its direction."""


def parse(text: str) -> tuple[Point, int]:
    """A line of Verilator's file, and its count. Raises ValueError for what is none."""
    found = _POINT.match(text)
    if found is None:
        raise ValueError(f"no coverage point: {text[:80]!r}")
    fields = dict(part.split("\2", 1) for part in found[1].split("\1") if part)
    kind, _, module = fields["page"].partition("/")
    return Point(kind.removeprefix("v_"), fields["h"], module, int(fields["l"]), tuple(_lines(fields.get("S", ""))),
                 fields["o"]), int(found[2])


def _lines(text: str) -> list[int]:
    """Verilator's list of lines: 3,5-7."""
    lines: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        lines += range(int(first), int(last or first) + 1)
    return lines


class Sum:
    """Counts of many runs of one library."""

    def __init__(self) -> None:
        self._heads: list[str] = []
        self._counts: list[int] = []
        self.runs = 0

    def add(self, path: Path) -> None:
        """What one run wrote. Raises ValueError if it has other points than those before."""
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("C ")]
        heads, counts = zip(*(line.rsplit(" ", 1) for line in lines), strict=True)
        if self.runs and len(heads) != len(self._heads):
            raise ValueError(f"{path} has {len(heads)} points, where {len(self._heads)} were before")
        self._heads = list(heads)
        self._counts = list(map(int, counts)) if not self.runs else [
            a + int(b) for a, b in zip(self._counts, counts, strict=True)]
        self.runs += 1

    def write(self, path: Path) -> None:
        """The sum, as Verilator writes it."""
        path.write_text("".join(f"{head} {count}\n" for head, count in zip(self._heads, self._counts, strict=True)),
                        encoding="utf-8")

    def points(self) -> list[tuple[Point, int]]:
        """All points with their counts."""
        return [parse(f"{head} {count}") for head, count in zip(self._heads, self._counts, strict=True)]


class Share(NamedTuple):
    """How much of something was reached."""

    reached: int
    of: int

    @property
    def percent(self) -> float:
        """100 if there is nothing."""
        return 100 * self.reached / self.of if self.of else 100.0


def share(points: Sequence[tuple[Point, int]], kind: str) -> Share:
    """Of points of a kind."""
    counts = [count for point, count in points if point.kind == kind]
    return Share(sum(count > 0 for count in counts), len(counts))
