"""What transactors say of what is under way, as `cosim/transactors/said.h`."""

from __future__ import annotations


def count(number: int, what: str) -> str:
    """A number of things.

    >>> count(1, "frame"), count(2, "access")
    ('1 frame', '2 accesses')
    """
    ending = "" if number == 1 else "es" if what.endswith("s") else "s"
    return f"{number} {what}{ending}"
