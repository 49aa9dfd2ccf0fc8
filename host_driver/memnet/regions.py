"""Registered memory, and the ranges of it that jobs name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from host_driver.errors import BadRegion, RangeOutsideRegion
from host_driver.memnet.checking import GuardedView
from host_driver.port import HostMemory

if TYPE_CHECKING:
    from host_driver.memnet.jobs import Job


class MemoryRegion:
    """Registered memory of one MemNet. Attributes: `address`, `length_bytes`, and `view`, its writable bytes."""

    def __init__(self, memory: HostMemory, address: int, length_bytes: int, key: Any, owner: object,
                 *, is_guarded: bool) -> None:
        self.address = address
        self.length_bytes = length_bytes
        self.is_registered = True
        self.key = key
        self.owner = owner
        """The process that registered it."""
        self.bytes = memory.view(address, length_bytes)
        """The bytes, unguarded: for providers and the library."""
        self.view: memoryview = self.bytes
        """The bytes, for the application; in the checking mode a `GuardedView`, which does most that a buffer does."""
        self.jobs: dict[Job, None] = {}
        """Those under way, in the order in which they were posted."""
        if is_guarded:
            self.view = GuardedView(self)  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<MemoryRegion {self.length_bytes} bytes at {self.address:#x}>"

    def part(self, offset: int = 0, length_bytes: int | None = None) -> Part:
        """A range of it, for a vectored job; all behind `offset` by default."""
        return Part(self, offset, self.length_bytes - offset if length_bytes is None else length_bytes)


class Part:
    """A range of a region (implements `provider.Range`). Made by `MemoryRegion.part`; checked when it is posted."""

    __slots__ = ("length_bytes", "offset", "region")

    def __init__(self, region: MemoryRegion, offset: int, length_bytes: int) -> None:
        self.region = region
        self.offset = offset
        self.length_bytes = length_bytes

    def __repr__(self) -> str:
        return f"{self.length_bytes} bytes at {self.offset}"

    @property
    def key(self) -> int:
        """The region's key."""
        key: int = self.region.key.value
        return key

    def view(self) -> memoryview:
        """The bytes, writable."""
        return self.region.bytes[self.offset : self.offset + self.length_bytes]

    def overlaps(self, other: Part) -> bool:
        """Whether they share a byte."""
        return (self.region is other.region and self.offset < other.offset + other.length_bytes
                and other.offset < self.offset + self.length_bytes)


def parts_of(what: MemoryRegion | Part | Sequence[Part], offset: int, length_bytes: int | None) -> tuple[Part, ...]:
    """The ranges that a call names: of a region, or ready-made. Raises RangeOutsideRegion for an offset or a length
    beside ready-made ones."""
    if isinstance(what, MemoryRegion):
        return (what.part(offset, length_bytes),)
    if offset or length_bytes is not None:
        raise RangeOutsideRegion("offset and length belong to a region; parts have their own")
    return (what,) if isinstance(what, Part) else tuple(what)


def check_parts(parts: Sequence[Part], owner: object, doing: str) -> None:
    """Raises BadRegion or RangeOutsideRegion, naming what was to be done."""
    for part in parts:
        region = part.region
        if region.owner is not owner:
            raise BadRegion(f"{doing}: {region!r} was registered with another MemNet")
        if not region.is_registered:
            raise BadRegion(f"{doing}: {region!r} is not registered any more")
        if part.offset < 0 or part.length_bytes < 0 or part.offset + part.length_bytes > region.length_bytes:
            raise RangeOutsideRegion(f"{doing}: bytes {part.offset} to {part.offset + part.length_bytes} do not lie "
                                     f"in {region!r}")
    if not any(part.length_bytes for part in parts):
        raise RangeOutsideRegion(f"{doing}: there must be at least one byte")
