"""What a bench says: rows of a figure, its value, and the bar that it should reach."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table

FAILED = "failed: "
"""A figure that could not be measured, though the device should have it; its error follows."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure."""

    figure: str
    value: float | None
    """None: not measured, and `note` says why; it begins with `FAILED` if it should have been."""
    unit: str
    bar: float
    sense: str
    """`>=`: the value should be the bar at least; `<=`: at most."""
    reached: bool
    note: str = ""
    limit: float | None = None
    """What arithmetic allows at best, where a bench knows it."""
    floor: float | None = None
    """What the figure must not be worse than: see `cosim.benches.floors`."""
    group: str = ""
    """Where its floor stands, with `key`."""
    key: str = ""

    @property
    def share(self) -> float | None:
        """How much of the limit is reached, in percent."""
        if self.limit is None or not self.value or not self.limit:
            return None
        return 100 * (self.value / self.limit if self.sense == ">=" else self.limit / self.value)


def row(figure: str, value: float | None, unit: str, sense: str, bar: float, note: str = "", *,
        limit: float | None = None, floor: float | None = None, group: str = "", key: str = "") -> Row:
    """A row, judged. Raises ValueError for another sense than `>=` or `<=`."""
    if sense not in (">=", "<="):
        raise ValueError(f"sense must be >= or <=, not {sense!r}")
    reached = value is not None and (value >= bar if sense == ">=" else value <= bar)
    return Row(figure=figure, value=value, unit=unit, bar=bar, sense=sense, reached=reached, note=note, limit=limit,
               floor=floor, group=group, key=key)


def print_rows(console: Console, title: str, rows: list[Row]) -> None:
    """A table of them; with limits, if there are any, and the share of them that was reached."""
    limited = any(r.limit is not None for r in rows)
    table = Table(title=title, title_justify="left")
    for heading in ("figure", "value", "bar", "unit", "reached", *(("limit", "share of it") if limited else ()), ""):
        right = heading in ("value", "bar", "limit", "share of it")
        table.add_column(heading, justify="right" if right else "left")
    for r in rows:
        table.add_row(r.figure, _number(r.value), f"{r.sense} {_number(r.bar)}", r.unit, "yes" if r.reached else "no",
                      *((_number(r.limit), "-" if r.share is None else f"{r.share:.1f} %") if limited else ()), r.note)
    console.print(table)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
