"""Why something that a measurement of the tests found is not a fault of theirs: small TOML files, by statement.

An entry holds for a statement of the RTL in a block, by its text, so that it outlives line numbers:

    [[explained]]
    block = "segmenter"
    statement = "m.d.comb += self.o.valid.eq(1)"
    change = "cnot1 A"
    why = "..."

With `change`, it holds only for what begins so. With `same = true`, a mutant is none.
"""

from __future__ import annotations

from pathlib import Path

import msgspec


class Explained(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry."""

    block: str
    statement: str
    why: str
    change: str = ""
    same: bool = False
    """Of a mutant: whatever the device is given, it does the same. So it is no fault, and nothing could find it."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    explained: list[Explained] = []


class Explanations:
    """A file of them. Attributes: `entries`."""

    def __init__(self, path: Path) -> None:
        self.entries = msgspec.toml.decode(path.read_bytes(), type=_File).explained if path.is_file() else []

    def find(self, block: str, statement: str, change: str = "") -> Explained | None:
        """What explains a statement of a block, and what was changed in it."""
        return next((entry for entry in self.entries if (entry.block, entry.statement) == (block, statement)
                     and change.startswith(entry.change)), None)

    def why(self, block: str, statement: str, change: str = "") -> str:
        """The reason; empty if nothing explains it."""
        found = self.find(block, statement, change)
        return found.why if found else ""
