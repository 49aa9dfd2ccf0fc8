"""The checking mode (`MEMNET_CHECK=1`): a buffer that is touched while its job is in flight is found.

Two nets. A region's `view` is guarded: a write to bytes of any job under way, and a read of bytes that a receive is
filling, raises where it happens. What gets round the view is found when the job is over: the bytes of a send are
compared with what was posted, those of a receive with a pattern that was put there. Costs a copy of each job's bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from host_driver.errors import BufferTouched

if TYPE_CHECKING:
    from host_driver.memnet.jobs import Job
    from host_driver.memnet.regions import MemoryRegion, Part

ENVIRONMENT_VARIABLE = "MEMNET_CHECK"

_PATTERN = bytes.fromhex("5ac3e19d")


def is_wanted() -> bool:
    """Whether the environment asks for the mode."""
    return os.environ.get(ENVIRONMENT_VARIABLE, "0") not in ("", "0")


class GuardedView:
    """The bytes of a region as an application sees them: indices, slices, `bytes()`, comparisons and assignments.

    Raises BufferTouched for what a job under way forbids. A slice is a memoryview, and taking one counts as reading:
    what is done with it later, only the second net finds.
    """

    __slots__ = ("_region",)

    def __init__(self, region: MemoryRegion) -> None:
        self._region = region

    def __len__(self) -> int:
        return self._region.length_bytes

    @property
    def nbytes(self) -> int:
        """As `len`."""
        return len(self)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> memoryview: ...

    def __getitem__(self, index: int | slice) -> int | memoryview:
        self._check(index, "read", with_sends=False)
        return self._region.bytes[index]

    def __setitem__(self, index: int | slice, value: int | bytes | bytearray | memoryview) -> None:
        self._check(index, "written", with_sends=True)
        self._region.bytes[index] = value  # type: ignore[index, assignment]

    def __bytes__(self) -> bytes:
        return bytes(self[:])

    def tobytes(self) -> bytes:
        """A copy."""
        return bytes(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (bytes, bytearray, memoryview)) and bytes(self) == other

    __hash__ = None  # type: ignore[assignment]

    def release(self) -> None:
        """The region was given back."""
        self._region.bytes.release()

    def _check(self, index: int | slice, how: str, *, with_sends: bool) -> None:
        touched_bytes = range(len(self))[index]
        if isinstance(touched_bytes, int):
            touched_bytes = range(touched_bytes, touched_bytes + 1)
        for job in self._region.jobs:
            if job.is_send and not with_sends:
                continue
            for part in job.parts:
                if part.region is self._region:
                    for at in _common(touched_bytes, part):
                        raise touched(job, self._region, at, f"was {how}")


class Watch:
    """What a job's bytes were when it was posted. Made when it is, and asked when it is over."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._before = [bytes(part.view()) for part in job.parts]
        if not job.is_send:
            for part in job.parts:
                part.view()[:] = _pattern(part.length_bytes)

    def find_touched(self, moved_bytes: int) -> BufferTouched | None:
        """What is wrong; the bytes that a receive did not reach get back what they held."""
        job = self._job
        for part, before in zip(job.parts, self._before, strict=True):
            view = part.view()
            start = 0 if job.is_send else min(moved_bytes, part.length_bytes)
            expected = before if job.is_send else _pattern(part.length_bytes)
            found = bytes(view[start:])
            if not job.is_send:
                moved_bytes -= start
                view[start:] = before[start:]
            if found != expected[start:]:
                at = next(n for n, (now, then) in enumerate(zip(found, expected[start:], strict=True)) if now != then)
                return touched(job, part.region, part.offset + start + at, "was changed")
        return None


def refuse_overlap(parts: Sequence[Part], doing: str, *, is_send: bool) -> None:
    """Raises BufferTouched for a job on bytes that another one is filling, or that it would fill under another one."""
    for part in parts:
        for job in part.region.jobs:
            if is_send and job.is_send:
                continue
            for other in job.parts:
                if part.overlaps(other):
                    raise touched(job, part.region, max(part.offset, other.offset), f"is to be used by {doing}")


def touched(job: Job, region: MemoryRegion, offset: int, what: str) -> BufferTouched:
    """The error that names region, offset and job."""
    return BufferTouched(f"byte {offset} of {region!r} {what} while {job!r} was in flight")


def _common(touched_bytes: range, part: Part) -> range:
    """Those of some bytes that lie in a part, for a range that ascends by 1; of others the span counts."""
    if not touched_bytes:
        return touched_bytes
    low, high = min(touched_bytes[0], touched_bytes[-1]), max(touched_bytes[0], touched_bytes[-1])
    return range(max(low, part.offset), min(high + 1, part.offset + part.length_bytes))


def _pattern(length_bytes: int) -> bytes:
    return (_PATTERN * (length_bytes // len(_PATTERN) + 1))[:length_bytes]
