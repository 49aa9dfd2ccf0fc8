"""Dynamic interrupt moderation, as Linux does it: how long an interrupt may wait is found by trying.

Every `EVENTS` interrupts the rates since the last look are compared with those before, and the moderation moves one
step along a table of profiles: onwards while that pays, back when it does not, and it rests where both neighbours are
worse.
Pure logic: the driver counts interrupts, packets and bytes from what completes, and tells; no register is read.
"""

# Ref: Linux 6.12, lib/dim/net_dim.c (profiles, comparison, decision), lib/dim/dim.c (statistics, turning, parking),
# include/linux/dim.h (number of events, what is significant)

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

EVENTS = 64
"""Interrupts between two looks (DIM_NEVENTS)."""

SIGNIFICANT_PERCENT = 10
"""A rate has changed if it differs by more (IS_SIGNIFICANT_DIFF)."""

DEFAULT_PROFILE = 1
"""Where it begins (NET_DIM_DEF_PROFILE_EQE, _CQE)."""

US_PER_MS = 1_000
PS_PER_US = 1_000_000


class Moderation(NamedTuple):
    """How long an interrupt may wait, as ethtool's usecs and frames."""

    usecs: int
    frames: int


class PeriodMode(Enum):
    """What the moderation's time counts from; the device's counts from the first event after arming, so it is EQE."""

    EQE = "the event"
    CQE = "the last completion"


RX_PROFILES: dict[PeriodMode, tuple[Moderation, ...]] = {
    PeriodMode.EQE: tuple(Moderation(usecs, 256) for usecs in (1, 8, 64, 128, 256)),
    PeriodMode.CQE: tuple(Moderation(*row) for row in ((2, 256), (8, 128), (16, 64), (32, 64), (64, 64))),
}
"""For receives (NET_DIM_RX_EQE_PROFILES, NET_DIM_RX_CQE_PROFILES)."""

TX_PROFILES: dict[PeriodMode, tuple[Moderation, ...]] = {
    PeriodMode.EQE: tuple(Moderation(usecs, 128) for usecs in (1, 8, 32, 64, 128)),
    PeriodMode.CQE: tuple(Moderation(*row) for row in ((5, 128), (8, 64), (16, 32), (32, 32), (64, 32))),
}
"""For sends (NET_DIM_TX_EQE_PROFILES, NET_DIM_TX_CQE_PROFILES)."""


class Sample(NamedTuple):
    """Counts since ever, at a time."""

    time_ps: int
    events: int
    packets: int
    bytes: int


class Rates(NamedTuple):
    """What happened in a millisecond, rounded up."""

    packets: int
    bytes: int
    events: int


class Tune(Enum):
    """Where the search goes (tune_state)."""

    PARKING_ON_TOP = auto()
    """The best was found; it is left when a rate changes."""
    PARKING_TIRED = auto()
    """So many steps found nothing; it rests for as many looks."""
    GOING_RIGHT = auto()
    """Towards longer waits."""
    GOING_LEFT = auto()


class _Verdict(Enum):
    WORSE = auto()
    SAME = auto()
    BETTER = auto()


class Dim:
    """The moderation of one vector in one direction.

    Attributes: `profiles`, `index` (of the profile that holds), `tune`.
    """

    def __init__(self, profiles: tuple[Moderation, ...] = RX_PROFILES[PeriodMode.EQE],
                 index: int = DEFAULT_PROFILE) -> None:
        if not 0 <= index < len(profiles):
            raise ValueError(f"index must be that of one of {len(profiles)} profiles, not {index}")
        self.profiles = profiles
        self.index = index
        self.tune = Tune.PARKING_ON_TOP
        self._before = Rates(0, 0, 0)
        self._start: Sample | None = None
        self._steps_right = 0
        self._steps_left = 0
        self._tired = 0

    @property
    def profile(self) -> Moderation:
        """The moderation that holds."""
        return self.profiles[self.index]

    def look(self, sample: Sample) -> Moderation | None:
        """Take the counts behind an interrupt; the new moderation if it is to change now."""
        start = self._start
        if start is None:
            self._start = sample
            return None
        # Linux counts so that a time of 0 keeps the measurement going.
        elapsed_us = (sample.time_ps - start.time_ps) // PS_PER_US
        if sample.events - start.events < EVENTS or elapsed_us == 0:
            return None
        rates = Rates(*(-(-count * US_PER_MS // elapsed_us) for count in (
            sample.packets - start.packets, sample.bytes - start.bytes, EVENTS)))
        if self._decide(rates):
            self._start = None  # what is under way belongs to the moderation before
            return self.profile
        self._start = sample
        return None

    def _decide(self, rates: Rates) -> bool:
        """Move, or not; whether the profile changed."""
        tune, index = self.tune, self.index
        if tune is Tune.PARKING_ON_TOP:
            if compare(rates, self._before) is not _Verdict.SAME:
                self._leave_parking()
        elif tune is Tune.PARKING_TIRED:
            self._tired -= 1
            if not self._tired:
                self._leave_parking()
        else:
            if compare(rates, self._before) is not _Verdict.BETTER:
                self._turn()
            if self._is_on_top():
                self._park_on_top()
            else:
                self._step()
        # Resting on top, it compares with the rates that it had there first, so that a slow drift is seen.
        if tune is not Tune.PARKING_ON_TOP or self.tune is not Tune.PARKING_ON_TOP:
            self._before = rates
        return self.index != index

    def _leave_parking(self) -> None:
        self.tune = Tune.GOING_LEFT if self.index else Tune.GOING_RIGHT
        # At neither end, and a rested search is not tired: this step never parks.
        self._move()

    def _turn(self) -> None:
        if self.tune is Tune.GOING_RIGHT:
            self.tune, self._steps_left = Tune.GOING_LEFT, 0
        else:
            self.tune, self._steps_right = Tune.GOING_RIGHT, 0

    def _is_on_top(self) -> bool:
        """It came from far and has just stepped back."""
        if self.tune is Tune.GOING_RIGHT:
            return self._steps_left > 1 and self._steps_right == 1
        return self._steps_right > 1 and self._steps_left == 1

    def _step(self) -> None:
        """One step on; or park, at an end or when there were too many."""
        if self._tired == 2 * len(self.profiles):
            self._steps_right = self._steps_left = 0
            self.tune = Tune.PARKING_TIRED
        elif self.index == (len(self.profiles) - 1 if self.tune is Tune.GOING_RIGHT else 0):
            self._park_on_top()
        else:
            self._move()

    def _move(self) -> None:
        if self.tune is Tune.GOING_RIGHT:
            self.index += 1
            self._steps_right += 1
        else:
            self.index -= 1
            self._steps_left += 1
        self._tired += 1

    def _park_on_top(self) -> None:
        self._steps_right = self._steps_left = self._tired = 0
        self.tune = Tune.PARKING_ON_TOP


def compare(now: Rates, before: Rates) -> _Verdict:
    """Whether things go better: more bytes, or else more packets, or else fewer events."""
    for current, previous in ((now.bytes, before.bytes), (now.packets, before.packets)):
        if not previous:
            return _Verdict.BETTER if current else _Verdict.SAME
        if _differs(current, previous):
            return _Verdict.BETTER if current > previous else _Verdict.WORSE
    if not before.events or not _differs(now.events, before.events):
        return _Verdict.SAME
    return _Verdict.BETTER if now.events < before.events else _Verdict.WORSE


def _differs(value: int, reference: int) -> bool:
    return 100 * abs(value - reference) // reference > SIGNIFICANT_PERCENT
