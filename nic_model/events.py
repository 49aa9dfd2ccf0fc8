"""Completion events: arming, moderation, and the vectors that carry them.

Untimed but for the deadlines of moderation, which are absolute cycle counts. An *event* is a completion of a
channel that has fired; a vector is raised by events or by their deadline, and falls when every channel that fired
is armed again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nic_model.contract import MAX_MODERATION_FRAMES


@dataclass(slots=True)
class Moderation:
    """How long, and for how many completions of one kind, a vector may wait (`VECTOR_xX_TICKS`, `_FRAMES`)."""

    ticks: int = 0
    frames: int = 0
    pending: int = 0
    """Events since the vector last rose."""
    seen: int = 0
    """Completions since reset (`VECTOR_xX_EVENTS`)."""


@dataclass(slots=True)
class Vector:
    """One interrupt vector. `raised` is what the line shows unless it is masked."""

    masked: bool = True
    raised: bool = False
    rises: int = 0
    fired_channels: int = 0
    deadline: int | None = None
    """Cycle at which it is raised at the latest, if anything is pending."""
    rx: Moderation = field(default_factory=Moderation)
    tx: Moderation = field(default_factory=Moderation)

    @property
    def line(self) -> bool:
        """Level of the interrupt line."""
        return self.raised and not self.masked

    def count_event(self, kind: Moderation, now_cycles: int) -> None:
        """An event of one kind: raise at once, by count, or start waiting."""
        if self.raised:
            return
        kind.pending += 1
        enough = min(kind.frames, MAX_MODERATION_FRAMES)
        at_once = kind.ticks == 0 and enough <= 1
        if at_once or (enough and kind.pending >= enough):
            self.rise()
        elif kind.pending == 1 and kind.ticks:
            wanted = now_cycles + kind.ticks
            self.deadline = wanted if self.deadline is None else min(self.deadline, wanted)

    def rise(self) -> None:
        """Raise the line; what was pending is told with it."""
        if not self.raised:
            self.raised = True
            self.rises += 1
        self._nothing_pending()

    def channel_fired(self) -> None:
        """One more channel has fired and is not armed again."""
        self.fired_channels += 1

    def channel_rearmed(self) -> None:
        """A channel that fired is armed again or reset; with the last one the line falls."""
        self.fired_channels -= 1
        if self.fired_channels == 0:
            self.raised = False
            self._nothing_pending()

    def _nothing_pending(self) -> None:
        self.deadline = None
        self.rx.pending = self.tx.pending = 0


@dataclass(slots=True)
class Arming:
    """Event state of one channel's completion ring."""

    armed: bool = False
    fired: bool = False

    def clear(self, vector: Vector) -> None:
        """Neither armed nor fired, as after RESET and ENABLE."""
        self.armed = False
        if self.fired:
            self.fired = False
            vector.channel_rearmed()

    def arm(self, vector: Vector, *, consumed_all: bool) -> None:
        """`CQ_ARM` was written; if more was completed than consumed, the event fires at once."""
        self.clear(vector)
        if consumed_all:
            self.armed = True
        else:
            self.fired = True
            vector.channel_fired()
            vector.rise()

    def completed(self, vector: Vector, kind: Moderation, now_cycles: int) -> None:
        """A completion was answered by the bus."""
        kind.seen += 1
        if self.armed:
            self.armed = False
            self.fired = True
            vector.channel_fired()
        if self.fired:
            vector.count_event(kind, now_cycles)
