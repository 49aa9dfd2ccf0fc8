"""The device's table of memory keys: what a descriptor's piece must pass before any bus access is made for it."""

from __future__ import annotations

from dataclasses import dataclass

from nic_model.contract import KeyRight, Status, split_key


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One entry of the table, as `KEY_COMMIT` stored it."""

    address: int
    """Bus address of the memory's first byte."""
    length_bytes: int
    generation: int
    rights: KeyRight
    owner: int
    """Channel that may use it."""
    valid: bool


_EMPTY = KeyEntry(0, 0, 0, KeyRight(0), 0, False)


class KeyTable:
    """Memory keys by index. Enters: whole entries, and pieces to check. Leaves: a status and a bus address."""

    def __init__(self, entries: int) -> None:
        self._entries = [_EMPTY] * entries

    def store(self, index: int, entry: KeyEntry) -> None:
        """Replace an entry. An index outside the table has no effect, as on the bus."""
        if 0 <= index < len(self._entries):
            self._entries[index] = entry

    def check(self, channel: int, key: int, offset: int, length_bytes: int, right: KeyRight) -> tuple[Status, int]:
        """Status of a piece, and the bus address of its first byte (0 if refused).

        The first check that fails gives the status: validity and generation, owner, rights, bounds.
        """
        index, generation = split_key(key)
        entry = self._entries[index] if index < len(self._entries) else _EMPTY
        if not entry.valid or entry.generation != generation:
            return Status.KEY_INVALID, 0
        if entry.owner != channel:
            return Status.KEY_OWNER, 0
        if right not in entry.rights:
            return Status.KEY_RIGHTS, 0
        if offset + length_bytes > entry.length_bytes:
            return Status.KEY_BOUNDS, 0
        return Status.OK, entry.address + offset & (1 << 64) - 1
