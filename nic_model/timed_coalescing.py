"""When the coalescer and the receive rings say what becomes of a frame: `rtl/coalescer.py` and `rtl/rx_rings.py`, state
by state.

Edges are those of `stages.match`: a frame by itself that nothing waits for is looked at by the coalescer at its edge,
and by the rings a cycle later, which have given it its buffer 3 cycles after its edge (`GIVEN`).
"""

from __future__ import annotations

from collections.abc import Iterator

from nic_model.aggregates import find_headers
from nic_model.coalescing import Aggregate, Coalescer, Verdict, has_plain_header
from nic_model.contract import RxInfo
from nic_model.timing.parameters import DeviceModel
from nic_model.timing.receive_rows import FRAME_TO_WRITE

COPY = 5
"""Cycles from ROOM to OPEN, beside one for each row of the header."""

MEASURED_HEADER_BYTES = 54
"""Of the segments that `coalesce_open` and `coalesce_append` were measured with."""

AGE, DUE, NEXT_OLDEST = 1, 2, 7
"""Cycles: of a frame that is by itself while something is open; from an aggregate that is due to its CLOSE; and from
there to that of the next oldest, if that is due too."""

GIVEN = 3
"""Cycles from a frame's edge until the rings have given it its buffer."""

CLOSE_BEFORE = 2
"""An aggregate's end does not ask the key table, and so comes so many cycles earlier to `RxDeliver`."""

NEVER_YET = -1000

APPENDS, LOOKS_AHEAD, ALL_NEW, HEAD_AGAIN = 1, 4, 3, 2
"""Cycles by which that is later: for a segment that fits its aggregate's latest buffer; for one that does not, READ,
KEEP and JUDGE of the next buffer among them, and more if there is no room in the latest at all; for one whose aggregate
has no buffer."""


class TimedCoalescer(Coalescer):
    """The rules of coalescing, which also know the contexts: an aggregate takes the lowest that is free, and is
    searched for in rows of `DeviceModel.coalesce_ways` of them. Attributes, of the frame that was judged last:
    `closes`, cycles from its edge to each CLOSE before it; `cycles` to its own task; `appends`, whether it is appended;
    `skips`, bytes of it that are not written; `merges`, whether it is part of an aggregate, which `keeps_open`;
    `is_alone`: the coalescer had nothing to do."""

    def __init__(self, model: DeviceModel) -> None:
        super().__init__(model.config.coalesce_contexts)
        self.closes: list[int] = []
        self.cycles = 0
        self.skips = 0
        self.appends = self.merges = self.keeps_open = False
        self.is_alone = True
        self._host_bytes = model.config.host_bytes
        self._ways = model.coalesce_ways
        self._rows = -(-model.config.coalesce_contexts // model.coalesce_ways)
        self._held: list[Aggregate | None] = [None] * model.config.coalesce_contexts
        measured = self._header_rows(MEASURED_HEADER_BYTES)
        self._compare = model.timing.coalesce_open - COPY - 1 - 2 * measured
        """From the first row of the header that is read to DECIDE, beside one for each further row."""
        # of an append, the rings take one of its cycles more, and the first row goes with the second
        self._found = model.timing.coalesce_append - self._compare - measured - APPENDS - 1
        """To FOUND, if the aggregate stands in the first row of tags."""

    def _header_rows(self, header_bytes: int) -> int:
        return (header_bytes - 1) // self._host_bytes

    def age(self, now_cycles: int) -> Iterator[Aggregate]:
        """What has ended by its age when the frame came that is judged next."""
        self.closes = []
        for aggregate in self.take_due(now_cycles):
            self.closes.append(DUE + NEXT_OLDEST * len(self.closes))
            yield aggregate

    def judge(self, frame: bytes, info: RxInfo, now_cycles: int, *, may_open: bool, l4_offset: int = 0,
              tag: bytes | None = None) -> Verdict:
        """As `Coalescer.judge`."""
        if self.is_idle:
            self.is_alone, self.appends = True, False
            return Verdict([])
        flows = self._open
        self._held = [one if one is not None and flows.get(one.flow) is one else None for one in self._held]
        any_open = bool(flows)
        verdict = super().judge(frame, info, now_cycles, may_open=may_open, l4_offset=l4_offset, tag=tag)
        self.merges = verdict.aggregate is not None
        self.appends = self.merges and not verdict.opens
        self.keeps_open = self.merges and not verdict.is_last
        self.skips = verdict.header_bytes
        may_hold = may_open and self.ticks > 0 and RxInfo.TCP in info and (
            has_plain_header(info, headers := find_headers(frame, info, l4_offset)))
        self.is_alone = not (any_open or may_hold or self.closes)
        if not self.is_alone:
            begins = self.closes[-1] + 1 if self.closes else 0
            self.cycles = begins + self._cycles(begins, verdict, any_open, RxInfo.TCP in info,
                                                self._header_rows(headers.end) if may_hold else None)
        if verdict.opens:
            free = [place for place, one in enumerate(self._held) if one is None or one in verdict.ended]
            self._held[free[0]] = verdict.aggregate
        return verdict

    def _cycles(self, begins: int, verdict: Verdict, any_open: bool, is_tcp: bool, rows: int | None) -> int:
        """From IDLE to the frame's task; notes the ends before it. `rows`: further rows of a header that is compared,
        None: it is not."""
        aggregate, ended = verdict.aggregate, verdict.ended
        if not any_open and rows is None:
            return 0
        if not is_tcp:
            return AGE
        at = 0 if rows is not None else AGE
        found = next((one for one in ended if aggregate is None or one.flow == aggregate.flow), None)
        if aggregate is not None and not verdict.opens:
            found = aggregate
        if found is not None:
            at += self._found + next(place for place, one in enumerate(self._held) if one is found) // self._ways
        elif any_open:
            at += 1 + self._rows
        if rows is not None:
            at += self._compare + rows
        if self.appends:
            return at
        at += 1  # CLOSE, ROOM or PASS
        if found is not None:
            self.closes.append(begins + at)
            at += 1
        if not verdict.opens:
            return at
        for _ in range(len(ended) - (found is not None)):
            self.closes.append(begins + at + 1)
            at += 2
        assert rows is not None
        return at + COPY + rows


class ReceiveTurns:
    """When tasks leave the coalescer, and when the rings do what they say.

    Enters: `begin`, a frame's edge; then each `close` before it, and the `frame`. Both blocks take a task after the
    other; the stage between them holds two. `ends` says when the rings were really done with the last frame, which may
    have waited for buffers.
    """

    def __init__(self, model: DeviceModel) -> None:
        self._further = model.timing.match_further
        self._to_write = FRAME_TO_WRITE - GIVEN - CLOSE_BEFORE
        self._free = NEVER_YET
        """The coalescer looks at the next frame."""
        self._begins = self._told = NEVER_YET
        self._over = self._over_before = NEVER_YET
        """The rings are done with the last task, and with the one before it."""
        self._stores = 0
        """Cycles more with the last one: what is open is noted."""

    def ends(self, given: int) -> None:
        """The last frame had all its buffers at an edge of `stages.match`."""
        self._over = max(self._over, given + GIVEN + self._stores)
        self._stores = 0

    def rest(self) -> None:
        """A frame passed by itself, while nothing was open."""
        self._free = self._over_before = NEVER_YET

    def begin(self, edge: int) -> None:
        """The next frame stands before the coalescer from an edge on."""
        self._begins = max(edge, self._free)

    def _tell(self, edge: int) -> int:
        """A task leaves the coalescer, when there is room for it. Returns how long it waited."""
        self._told = max(edge, self._over_before + 1)
        self._over_before = self._over
        return self._told - edge

    def close(self, cycles: int) -> int:
        """An aggregate ends, so many cycles behind `begin`. Returns when `RxDeliver` has it, for `close_receive`."""
        self._begins += self._tell(self._begins + cycles)
        self._over = max(self._told, self._over) + 2
        return self._over + self._to_write

    def frame(self, coalescer: TimedCoalescer, *, is_appended: bool, further: int, fills_up: bool) -> int:
        """The frame's own task. Returns the edge of `stages.match` at which it has its first buffer. `is_appended`: it
        found its aggregate's buffers; `further`: new ones that it takes then; `fills_up`: behind the rest of it."""
        self._tell(self._begins + coalescer.cycles)
        given = max(self._told, self._over)
        if is_appended and further:
            given += LOOKS_AHEAD + self._further * (further - 1) + (0 if fills_up else ALL_NEW)
        elif is_appended:
            given += APPENDS
        elif coalescer.appends:
            given += HEAD_AGAIN
        self._free = self._told + 1
        self._stores = int(coalescer.keeps_open)
        return given

    def by_themselves(self, edge: int) -> Iterator[int]:
        """Aggregates end without a frame, the first at an edge; as `close`, one after the other."""
        self._begins = max(edge, self._free)
        while True:
            edge = self.close(DUE)
            self._free = self._begins + DUE + 1
            self._begins += NEXT_OLDEST
            yield edge
