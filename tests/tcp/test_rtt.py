"""The retransmission timeout against RFC 6298's formulas in floating point."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from host_driver.tcp import RFC
from host_driver.tcp.profile import MS, SECOND
from host_driver.tcp.rtt import RttEstimator


@pytest.mark.parametrize("seed", range(5))
def test_random_samples(seed: int) -> None:
    rng = random.Random(seed)
    profile = replace(RFC, min_rto_ps=20 * MS, max_rto_ps=2 * SECOND, granularity_ps=5 * MS)
    estimator = RttEstimator(profile)
    assert estimator.rto == SECOND
    smoothed = variation = 0.0
    now = 0
    for number in range(200):
        rtt = rng.choice([1, 10, 50, 400, 900]) * MS + rng.randrange(MS)
        estimator.time(number, now)
        now += rtt
        estimator.acknowledge(number, now)
        if number == 0:
            smoothed, variation = rtt, rtt / 2
        else:
            variation = 0.75 * variation + 0.25 * abs(smoothed - rtt)
            smoothed = 0.875 * smoothed + 0.125 * rtt
        expected = min(max(smoothed + max(5 * MS, 4 * variation), 20 * MS), 2 * SECOND)
        assert estimator.rto == pytest.approx(expected, rel=1e-9)


def test_many_samples_a_round_trip_count_less_each() -> None:
    """RFC 7323 appendix G, in floating point."""
    rng = random.Random(3)
    estimator = RttEstimator(replace(RFC, min_rto_ps=MS, granularity_ps=MS))
    smoothed = variation = 0.0
    for number in range(100):
        rtt = 50 * MS + rng.randrange(20 * MS)
        estimator.sample(rtt, expected_samples=5)
        if number == 0:
            smoothed, variation = rtt, rtt / 2
        else:
            variation += 0.25 / 5 * (abs(smoothed - rtt) - variation)
            smoothed += 0.125 / 5 * (rtt - smoothed)
        assert estimator.rto == pytest.approx(smoothed + max(MS, 4 * variation), rel=1e-6)


def test_constant_round_trips_reach_the_granularity() -> None:
    estimator = RttEstimator(replace(RFC, min_rto_ps=MS, granularity_ps=7 * MS))
    for number in range(100):
        estimator.time(number, 0)
        estimator.acknowledge(number, 100 * MS)
    assert estimator.rto == pytest.approx(107 * MS)


def test_one_segment_at_a_time_and_none_after_a_retransmission() -> None:
    estimator = RttEstimator(RFC)
    estimator.time(10, 0)
    estimator.time(20, 500 * MS)  # not timed
    estimator.acknowledge(9, 600 * MS)
    assert estimator.srtt is None
    estimator.acknowledge(20, 700 * MS)
    assert estimator.srtt == 700 * MS
    estimator.time(30, 0)
    estimator.cancel()
    estimator.acknowledge(30, SECOND)
    assert estimator.srtt == 700 * MS


def test_back_off_doubles_up_to_the_maximum() -> None:
    estimator = RttEstimator(RFC)
    for expected in (2, 4, 8, 16, 32, 60, 60):
        estimator.back_off()
        assert estimator.rto == expected * SECOND
