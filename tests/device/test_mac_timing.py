"""The compiled MAC keeps the pace that it is given: traffic at full rate both ways, held back in one way at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cosim.benches.traffic import FRAME_BYTES, TrafficBench, TrafficFigures, TrafficSpec
from cosim.engines import compiled
from cosim.mac import MacTiming
from nic_model.contract import CONFIGS

CYCLES = 60_000
BEATS = -(-FRAME_BYTES // CONFIGS["tiny"].mac_bytes)
WIRE_CYCLES = (FRAME_BYTES + 24) / CONFIGS["tiny"].mac_bytes


def traffic(**changes: int) -> TrafficFigures:
    bench = TrafficBench(TrafficSpec(device="tiny", cycles=CYCLES))
    bench.timing = replace(bench.timing, **changes)
    figures: TrafficFigures = compiled.run_bench(bench)
    return figures


@pytest.mark.parametrize(("changes", "sent_cycles", "received_cycles"), [
    ({}, WIRE_CYCLES, WIRE_CYCLES),
    ({"sink_percent": 50}, 2 * BEATS, WIRE_CYCLES),
    ({"sink_percent": 33}, BEATS / 0.33, WIRE_CYCLES),
    ({"source_percent": 50}, WIRE_CYCLES, 2 * BEATS),
    ({"source_gap_cycles": 200}, WIRE_CYCLES, BEATS + 200),
    ({"overhead_bytes": 824}, (FRAME_BYTES + 824) / 8, (FRAME_BYTES + 824) / 8),
])
def test_cycles_a_frame(tiny_compiled: Path, changes: dict[str, int], sent_cycles: float,
                        received_cycles: float) -> None:
    figures = traffic(**changes)
    # The last frame of a send is shorter, which is two frames in a hundred; the FIFO is ahead of the wire by ten.
    assert figures.frames_sent == pytest.approx(figures.cycles / sent_cycles, rel=0.03, abs=11)
    assert figures.frames_received == pytest.approx(figures.cycles / received_cycles, rel=0.02, abs=2)


def test_a_link_of_half_the_rate_carries_half() -> None:
    full = traffic()
    half = traffic(bit_rate=CONFIGS["tiny"].clock_hz * 8 * CONFIGS["tiny"].mac_bytes // 2)
    assert half.frames_sent == pytest.approx(full.frames_sent / 2, rel=0.03, abs=11)
    assert half.frames_received == pytest.approx(full.frames_received / 2, rel=0.02, abs=2)


def test_jitter_makes_frames_slower_by_half_of_it_and_is_the_same_each_time() -> None:
    jitter_ps = 1_000_000
    one, other = (traffic(jitter_ps=jitter_ps) for _ in range(2))
    each = WIRE_CYCLES + jitter_ps / 2 * CONFIGS["tiny"].clock_hz / 10**12
    assert one.frames_sent == pytest.approx(one.cycles / each, rel=0.06, abs=11)
    assert (one.frames_sent, one.frames_received) == (other.frames_sent, other.frames_received)


def test_defaults_are_those_of_ethernet() -> None:
    timing = MacTiming(bit_rate=10**10)
    assert (timing.overhead_bytes, timing.gap_bytes, timing.min_frame_bytes) == (24, 12, 60)
