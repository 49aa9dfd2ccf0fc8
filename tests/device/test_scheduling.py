"""The transmit scheduler in the whole device: a late channel, weights, rates."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from cosim.engines.bus import BusTiming
from rtl.tx_scheduler import bytes_ahead
from tests.device.rig import DEVICES, FAR, FAST, RigSpec, on_rtl
from tests.device.scheduling import HEADER_BYTES, MSS

FRAME_BYTES = HEADER_BYTES + MSS
PS_PER_CYCLE = 6400


def run(channels: list[dict[str, Any]], timing: BusTiming = FAST) -> tuple[list[list[int]], dict[str, int]]:
    frames, rung = on_rtl(RigSpec(scenario="tests.device.scheduling:send_all", arguments={"channels": channels},
                                  timing=timing))
    for number, each in enumerate(channels):
        assert sum(length - HEADER_BYTES for _, channel, length in frames if channel == number) == each["bytes"]
    return frames, rung


@pytest.mark.parametrize("timing", [FAST, FAR], ids=["fast", "far"])
def test_a_late_channel_waits_for_one_frame_of_each_other(tiny_compiled: Path, timing: BusTiming) -> None:
    """Beyond what is under way: `bytes_ahead` and one frame more, the one that leaves, and what
    leaves while the descriptor is fetched."""
    size = 300 * MSS
    frames, rung = run([{"bytes": size}, {"bytes": size}, {"bytes": size}, {"bytes": MSS, "after_us": 100}], timing)
    late = next(time for time, channel, _ in frames if channel == 3)
    before = [channel for time, channel, _ in frames if rung["3"] < time < late]
    fetch_cycles = 2 * timing.read_latency_cycles + 100
    under_way = -(-(bytes_ahead(DEVICES["tiny"]) + 8 * fetch_cycles) // FRAME_BYTES) + 2
    assert len(before) <= under_way + 3
    order = [channel for _, channel, _ in frames if channel != 3]
    for first, second in itertools.pairwise(order[9:-60]):
        assert first != second, "two frames of a channel in a row, while others wait"


def test_shares_of_the_wire_follow_weights(tiny_compiled: Path) -> None:
    frames, _ = run([{"bytes": 200 * MSS, "weight": 2048}, {"bytes": 400 * MSS, "weight": 4096},
                     {"bytes": 100 * MSS, "weight": 1024}])
    half = frames[20:len(frames) // 2]
    sent = [sum(length for _, channel, length in half if channel == number) for number in range(3)]
    assert sent[1] == pytest.approx(2 * sent[0], abs=3 * FRAME_BYTES + 4000)
    assert sent[0] == pytest.approx(2 * sent[2], abs=3 * FRAME_BYTES + 4000)


def test_rate_and_burst_of_a_channel(tiny_compiled: Path) -> None:
    """1 Gbit/s and a burst of 20 KB, beside a channel without a limit, and alone, when idle time is jumped over."""
    rate, burst = 10**9, 20_000
    frames, rung = run([{"bytes": 200 * MSS}, {"bytes": 150 * MSS, "rate": rate, "burst": burst}])
    mine = [(time, length) for time, channel, length in frames if channel == 1]
    steady = mine[60:]
    seconds = (steady[-1][0] - steady[0][0]) / 1e12
    assert 8 * sum(length for _, length in steady[:-1]) / seconds == pytest.approx(rate, rel=0.01)
    start = rung["1"]
    sent = 0
    for time, length in mine:
        sent += length
        allowed = burst + rate * (time - start) / 8e12
        assert sent <= allowed + 2 * FRAME_BYTES, "more than the burst and a frame ahead of the rate"
    assert DEVICES["tiny"].clock_hz * PS_PER_CYCLE == 10**12
