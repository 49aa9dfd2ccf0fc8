"""What the coalescer takes for each frame: `rtl/coalescer.py`, state by state, beside one by itself."""

from __future__ import annotations

from typing import Any

from nic_model.coalescing import Aggregate, Coalescer, Verdict
from nic_model.contract import RxInfo
from nic_model.timing.parameters import DeviceModel

SEARCH_MATCH, FOUND, CLOSE = 2, 1, 1
"""Cycles: of the search in the row of tags that matches, and of the states behind it."""

ROOM_AGAIN = 2
"""Of ending the oldest aggregate when no context is free."""


class TimedCoalescer(Coalescer):
    """The rules of coalescing, which also know the contexts: an aggregate takes the lowest that is free, and is
    searched for in rows of `DeviceModel.coalesce_ways` of them. Attributes: of the frame that was judged last, `cycles`
    that it took, and whether it `appends` to an aggregate."""

    def __init__(self, model: DeviceModel) -> None:
        super().__init__(model.config.coalesce_contexts)
        self.cycles = 0
        self.appends = False
        self._timing = model.timing
        self._ways = model.coalesce_ways
        self._rows = -(-model.config.coalesce_contexts // model.coalesce_ways)
        self._held: list[Aggregate | None] = [None] * model.config.coalesce_contexts

    def judge(self, frame: bytes, info: RxInfo, now_cycles: int, **more: Any) -> Verdict:
        """As `Coalescer.judge`."""
        flows = self._open
        self._held = [one if one is not None and flows.get(one.flow) is one else None for one in self._held]
        any_open = bool(flows)
        verdict = super().judge(frame, info, now_cycles, **more)
        self.appends = verdict.aggregate is not None and not verdict.opens
        self.cycles = self._cycles(verdict, any_open) if RxInfo.TCP in info else 0
        if verdict.opens:
            free = [place for place, one in enumerate(self._held) if one is None or one in verdict.ended]
            self._held[free[0]] = verdict.aggregate
        return verdict

    def _cycles(self, verdict: Verdict, any_open: bool) -> int:
        aggregate, ended = verdict.aggregate, verdict.ended
        if aggregate is not None and not verdict.opens:
            return self._timing.coalesce_append + self._row(aggregate)
        found = ended[0] if ended and (aggregate is None or ended[0].flow == aggregate.flow) else None
        cycles = 0 if aggregate is None else self._timing.coalesce_open
        if found is not None:
            cycles += self._row(found) + SEARCH_MATCH + FOUND + CLOSE
        elif any_open:
            cycles += self._rows + 1
        return cycles + (ROOM_AGAIN if len(ended) > (found is not None) else 0)

    def _row(self, aggregate: Aggregate) -> int:
        """The row of tags that an aggregate stands in."""
        return next(place for place, one in enumerate(self._held) if one is aggregate) // self._ways
