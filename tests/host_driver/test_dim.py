"""Dynamic interrupt moderation as dialogues: rates in, profiles out. The tables' numbers are written out here."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from host_driver.dim import EVENTS, RX_PROFILES, TX_PROFILES, Dim, PeriodMode, Rates, Sample, Tune, compare

MS = 10**9
US = 10**6


class Wire:
    """Traffic whose rates are given for each look; `index` and `tune` follow what Dim says."""

    def __init__(self, dim: Dim) -> None:
        self.dim = dim
        self.now_ps = 5 * MS
        self.events = self.packets = self.bytes = 1_000_000

    def look(self) -> tuple[int, int] | None:
        return self.dim.look(Sample(self.now_ps, self.events, self.packets, self.bytes))

    def round(self, bytes_per_ms: int, packets_per_ms: int, events_per_ms: int) -> tuple[int, Tune]:
        """As many interrupts as a measurement takes, at these rates; then what holds."""
        if self.dim._start is None:
            self.look()
        elapsed_us = EVENTS * 1000 // events_per_ms
        self.now_ps += elapsed_us * US
        self.events += EVENTS
        self.packets += packets_per_ms * elapsed_us // 1000
        self.bytes += bytes_per_ms * elapsed_us // 1000
        profile = self.look()
        assert (profile is None) or profile == self.dim.profile
        return self.dim.index, self.dim.tune


def talk(dim: Dim, rounds: Iterable[tuple[int, int, int]]) -> list[tuple[int, Tune]]:
    wire = Wire(dim)
    return [wire.round(*rates) for rates in rounds]


LEFT, RIGHT, TOP, TIRED = Tune.GOING_LEFT, Tune.GOING_RIGHT, Tune.PARKING_ON_TOP, Tune.PARKING_TIRED


def test_the_tables() -> None:
    assert [tuple(p) for p in RX_PROFILES[PeriodMode.EQE]] == [(1, 256), (8, 256), (64, 256), (128, 256), (256, 256)]
    assert [tuple(p) for p in RX_PROFILES[PeriodMode.CQE]] == [(2, 256), (8, 128), (16, 64), (32, 64), (64, 64)]
    assert [tuple(p) for p in TX_PROFILES[PeriodMode.EQE]] == [(1, 128), (8, 128), (32, 128), (64, 128), (128, 128)]
    assert [tuple(p) for p in TX_PROFILES[PeriodMode.CQE]] == [(5, 128), (8, 64), (16, 32), (32, 32), (64, 32)]


@pytest.mark.parametrize(("now", "before", "verdict"), [
    # bytes come first, and only what differs by more than 10 % counts
    ((0, 1111, 0), (0, 1000, 0), "BETTER"), ((0, 1109, 0), (0, 1000, 0), "SAME"), ((0, 889, 9), (9, 1000, 0), "WORSE"),
    ((5, 900, 0), (4, 1000, 0), "BETTER"), ((3, 1000, 0), (4, 1000, 0), "WORSE"),
    # then packets, then fewer events
    ((4, 1000, 30), (4, 1000, 40), "BETTER"), ((4, 1000, 50), (4, 1000, 40), "WORSE"),
    ((4, 1000, 44), (4, 1000, 40), "SAME"), ((4, 1000, 4), (4, 1000, 0), "SAME"),
    # nothing before
    ((0, 1, 0), (9, 0, 9), "BETTER"), ((9, 0, 1), (0, 0, 9), "SAME"), ((1, 1000, 9), (0, 1000, 1), "BETTER"),
    ((0, 1000, 9), (0, 1000, 1), "SAME"),
])
def test_what_is_better(now: tuple[int, int, int], before: tuple[int, int, int], verdict: str) -> None:
    """As (packets, bytes, events) a millisecond."""
    assert compare(Rates(*now), Rates(*before)).name == verdict


def test_steady_load_that_needs_fewer_interrupts_goes_to_the_longest_wait() -> None:
    """The same bytes whatever the moderation; interrupts fall with each step to the right. The first try is to the
    left, for the first traffic after nothing is a change."""
    assert talk(Dim(), [
        (100_000, 80, 40),  # something, where there was nothing: try the left
        (100_000, 80, 75),  # more interrupts there: turn
        (100_000, 80, 40), (100_000, 80, 15), (100_000, 80, 8),  # each step right needs fewer
        (100_000, 80, 4),  # the edge
        (100_000, 80, 4), (100_000, 80, 4),
    ]) == [(0, LEFT), (1, RIGHT), (2, RIGHT), (3, RIGHT), (4, RIGHT), (4, TOP), (4, TOP), (4, TOP)]


def test_latency_bound_traffic_goes_to_the_shortest_wait() -> None:
    """Request and response: each step to the left carries more bytes."""
    dim = Dim(index=3)
    assert talk(dim, [
        (1_000, 10, 5), (1_500, 15, 8), (4_000, 40, 20), (9_000, 90, 45), (9_000, 90, 45), (9_000, 90, 45),
    ]) == [(2, LEFT), (1, LEFT), (0, LEFT), (0, TOP), (0, TOP), (0, TOP)]


def test_it_rests_where_both_neighbours_are_worse() -> None:
    assert talk(Dim(index=4), [
        (1_000, 10, 40),
        (2_000, 20, 40),  # 3 is better
        (3_000, 30, 40),  # 2 is better still
        (2_000, 20, 40),  # 1 is worse: back, and there it stays
        (3_000, 30, 40), (3_000, 30, 40),
    ]) == [(3, LEFT), (2, LEFT), (1, LEFT), (2, RIGHT), (2, TOP), (2, TOP)]


def test_resting_it_waits_for_a_change_and_a_slow_drift_is_one() -> None:
    wire = Wire(Dim(index=0))
    assert wire.round(1_000, 10, 40) == (1, RIGHT)
    assert wire.round(900, 9, 41) == (0, LEFT)  # not better: back
    assert wire.round(1_000, 10, 40) == (0, TOP)  # the edge
    rates = [1_060, 1_090, 1_100]
    assert [wire.round(rate, 10, 40) for rate in rates] == [(0, TOP)] * 3
    assert wire.round(1_120, 10, 40) == (1, RIGHT)  # 12 % more than when it began to rest


def test_traffic_that_is_the_same_everywhere_makes_it_tired() -> None:
    """Nothing is better anywhere: it turns at each step. After ten it rests for ten looks, then tries again."""
    dim = Dim(index=2)
    wire = Wire(dim)
    seen = [wire.round(1_000, 10, 40) for _ in range(10)]
    assert seen == [(1, LEFT), (2, RIGHT)] * 5
    assert [wire.round(1_000, 10, 40) for _ in range(10)] == [(2, TIRED)] * 10
    assert wire.round(1_000, 10, 40) == (1, LEFT)


def test_a_measurement_takes_64_interrupts_and_some_time() -> None:
    dim = Dim()
    assert dim.look(Sample(0, 0, 0, 0)) is None
    assert dim.look(Sample(MS, 63, 100, 1000)) is None
    assert dim.tune is TOP
    assert dim.look(Sample(MS, 64, 100, 1000)) == (1, 256)
    assert dim.look(Sample(2 * MS, 500, 9, 9)) is None  # begins to measure anew, with the new moderation
    assert dim.look(Sample(2 * MS, 564, 900, 9000)) is None  # no time has passed
    assert dim.tune is LEFT
    assert dim.look(Sample(3 * MS, 565, 900, 9000)) is None
    assert dim.tune is TOP  # better, but there is nothing further left


def test_it_begins_where_linux_begins_and_refuses_what_is_not_there() -> None:
    assert Dim().profile == (8, 256)
    with pytest.raises(ValueError, match="index must be"):
        Dim(index=5)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_it_stays_in_the_table(seed: int) -> None:
    rng = random.Random(seed)
    wire = Wire(Dim(TX_PROFILES[PeriodMode.CQE], rng.randrange(5)))
    indices = set()
    for _ in range(300):
        before = wire.dim.index
        index, _ = wire.round(rng.randrange(1 << rng.randrange(1, 20)), rng.randrange(200), rng.randrange(1, 200))
        assert abs(index - before) <= 1
        indices.add(index)
    assert indices == set(range(5)), f"seed {seed}"
