"""What a bench says: rows of a figure, its value, and the bar that it should reach."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure."""

    figure: str
    value: float | None
    """None: not measured, and `note` says why."""
    unit: str
    bar: float
    sense: str
    """`>=`: the value should be the bar at least; `<=`: at most."""
    reached: bool
    note: str = ""


def row(figure: str, value: float | None, unit: str, sense: str, bar: float, note: str = "") -> Row:
    """A row, judged. Raises ValueError for another sense than `>=` or `<=`."""
    if sense not in (">=", "<="):
        raise ValueError(f"sense must be >= or <=, not {sense!r}")
    reached = value is not None and (value >= bar if sense == ">=" else value <= bar)
    return Row(figure=figure, value=value, unit=unit, bar=bar, sense=sense, reached=reached, note=note)


def print_rows(console: Console, title: str, rows: list[Row]) -> None:
    """A table of them."""
    table = Table(title=title, title_justify="left")
    for heading, justify in (("figure", "left"), ("value", "right"), ("bar", "right"), ("unit", "left"),
                             ("reached", "left"), ("", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for r in rows:
        table.add_row(r.figure, "-" if r.value is None else _number(r.value), f"{r.sense} {_number(r.bar)}", r.unit,
                      "yes" if r.reached else "no", r.note)
    console.print(table)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
