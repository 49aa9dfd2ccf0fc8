"""Blocks driven by hypothesis: what it finds, it makes small. The oracles are those of each block's own tests."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.gro import Streams
from tests.rtl import rx_frames
from tests.rtl import test_align as aligner
from tests.rtl import test_coalescer as coalescer
from tests.rtl import test_completion as completion
from tests.rtl import test_dma_read as dma_read
from tests.rtl import test_dma_write as dma_write
from tests.rtl import test_doorbells as doorbells
from tests.rtl import test_events as events
from tests.rtl import test_fetch as fetch
from tests.rtl import test_keys as keys
from tests.rtl import test_parser as parser
from tests.rtl import test_receive as receive
from tests.rtl import test_steering as steering
from tests.rtl import test_transmit_back as transmit_back
from tests.rtl import test_tx_scheduler as scheduler

GOOD_FRAMES = [case.frame for case in rx_frames.named_cases() if len(case.frame) < 220]

WIDTHS = st.sampled_from((16, 32, 64))
STALLS = st.sampled_from((0.0, 0.3, 0.7))
SEEDS = st.integers(0, 1 << 16)
CHOICES = st.randoms(use_true_random=False)
"""What a block's own generators choose by; hypothesis decides, and shrinks."""


def examples(count: int) -> settings:
    """The same examples each time, so that a run can be repeated; a simulation is slow, and that is no failure."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, print_blob=True,
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@st.composite
def _changed_frames(draw: st.DrawFn) -> bytes:
    """A good frame with some of its bytes changed, or cut."""
    frame = bytearray(draw(st.sampled_from(GOOD_FRAMES)))
    changes = st.tuples(st.integers(12, min(len(frame), 100) - 1),
                        st.sampled_from((0, 1, 5, 6, 17, 43, 44, 60, 0x45, 0x4F, 0x60, 0x81, 0xFF)))
    for at, value in draw(st.lists(changes, max_size=4)):
        frame[at] = value
    return bytes(frame[:draw(st.integers(1, len(frame)))] if draw(st.booleans()) else frame)


@examples(25)
@given(width=st.sampled_from((8, 16, 64)), full=st.booleans(), stall=STALLS,
       runs=st.lists(st.tuples(st.integers(1, 200), st.integers(0, 63)), min_size=2, max_size=12))
def test_aligner(width: int, full: bool, stall: float, runs: list[tuple[int, int]]) -> None:
    aligner.align(width, [(bytes(n % 256 for n in range(length)), at % width) for length, at in runs],
                  full=full, stall=stall)


@examples(12)
@given(rng=CHOICES, width=WIDTHS, stall=STALLS, seed=SEEDS, latency=st.integers(0, 60),
       bad=st.sets(st.integers(0, 255), max_size=60))
def test_dma_read(rng: random.Random, width: int, stall: float, seed: int, latency: int, bad: set[int]) -> None:
    commands = dma_read.random_reads(rng, 3)
    note(f"commands {commands}")
    dma_read.read(width, commands, bad_blocks=bad, latency=latency, stall=stall, seed=seed)


@examples(12)
@given(rng=CHOICES, width=WIDTHS, stall=STALLS, seed=SEEDS, latency=st.integers(0, 60))
def test_dma_write(rng: random.Random, width: int, stall: float, seed: int, latency: int) -> None:
    commands = dma_write.random_writes(rng, 4, 6)
    bad = dma_write.some_blocks(rng, commands, 2)
    note(f"commands {commands}, bad blocks {bad}")
    dma_write.write(width, commands, bad_blocks=bad, latency=latency, stall=stall, seed=seed)


@examples(15)
@given(rng=CHOICES, stall=STALLS, seed=SEEDS, count=st.integers(1, 20))
def test_keys(rng: random.Random, stall: float, seed: int, count: int) -> None:
    entries = {index: keys.random_entry(rng) for index in range(16)}
    asked = [[keys.random_request(rng, entries) for _ in range(count)] for _ in range(2)]
    note(f"entries {entries}, asked {asked}")
    keys.ask(entries, asked, seed=seed, stall=stall)


@pytest.mark.parametrize("config", parser.CONFIGS[::3], ids=lambda c: c.name)
@examples(12)
@given(frames=st.lists(st.one_of(_changed_frames(), st.binary(min_size=14, max_size=120)), min_size=1, max_size=12),
       stall=st.sampled_from((0.0, 0.2)), seed=SEEDS)
def test_parser(config, frames: list[bytes], stall: float, seed: int) -> None:
    found, _ = parser.parse(config, frames, stall=stall, seed=seed)
    assert len(found) == len(frames)
    for frame, rows in zip(frames, found, strict=True):
        assert parser.content(config, rows) == frame
        if len(frame) >= 14:
            parser.assert_as_model(rows[-1], frame, frame.hex())


@examples(12)
@given(rng=CHOICES, config=st.sampled_from((coalescer.NARROW, coalescer.WIDE)), stall=STALLS, seed=SEEDS,
       flows=st.integers(1, 5), deviation=st.sampled_from((0.1, 0.4)), count=st.integers(1, 40))
def test_coalescer(rng: random.Random, config, stall: float, seed: int, flows: int, deviation: float,
                   count: int) -> None:
    streams = Streams(rng, flows, deviation=deviation)
    coalescer.against_linux(config, [streams.segment() for _ in range(count)], stall=stall, seed=seed)


@examples(12)
@given(rng=CHOICES, width=WIDTHS, stall=STALLS, seed=SEEDS, sends=st.integers(0, 20), receives=st.integers(1, 15))
def test_completion(rng: random.Random, width: int, stall: float, seed: int, sends: int, receives: int) -> None:
    completion.complete(width, [completion.random_tx(rng) for _ in range(sends)],
                        completion.random_receives(rng, receives), stall=stall, seed=seed)


@examples(10)
@given(rng=CHOICES, sizes=st.sampled_from(((8, 16), (8, 64), (64, 64), (16, 32))), stall=STALLS, mac_stall=STALLS,
       seed=SEEDS, count=st.integers(1, 5), interleaved=st.booleans())
def test_transmit_back(rng: random.Random, sizes: tuple[int, int], stall: float, mac_stall: float, seed: int,
                       count: int, interleaved: bool) -> None:
    transmit_back.run(transmit_back.config_of(*sizes), [transmit_back.random_send(rng) for _ in range(count)],
                      stall=stall, mac_stall=mac_stall, done_stall=mac_stall, seed=seed, interleaved=interleaved)


@examples(12)
@given(rng=CHOICES, width=WIDTHS, stall=STALLS, seed=SEEDS, count=st.integers(1, 40))
def test_doorbells(rng: random.Random, width: int, stall: float, seed: int, count: int) -> None:
    channels = doorbells.DEVICES[width].channels
    doorbells.ring(width, [doorbells.Burst(rng, width, channels) for _ in range(count)], stall=stall, seed=seed)


@examples(8)
@given(rng=CHOICES, width=WIDTHS, stall=STALLS, seed=SEEDS, each=st.integers(1, 4),
       latency=st.sampled_from(((5, 20), (20, 60))))
def test_rings_and_fetch(rng: random.Random, width: int, stall: float, seed: int, each: int,
                         latency: tuple[int, int]) -> None:
    fetch.fetch(rng, width, each, seed=seed, stall=stall, latency=latency)


@examples(8)
@given(rng=CHOICES, width=WIDTHS, channels=st.sampled_from((4, 16)), stall=STALLS, seed=SEEDS,
       count=st.integers(1, 12))
def test_scheduler(rng: random.Random, width: int, channels: int, stall: float, seed: int, count: int) -> None:
    scheduler.schedule(rng, width, channels, count, stall=stall, seed=seed)


@examples(8)
@given(rng=CHOICES, seed=SEEDS, count=st.integers(1, 40))
def test_events(rng: random.Random, seed: int, count: int) -> None:
    actions = events.random_actions(rng, count)
    note(f"actions {actions}")
    events.live(actions, seed)


@examples(8)
@given(rng=CHOICES, width=st.sampled_from(tuple(steering.CONFIGS)), steps=st.integers(1, 6))
def test_steering(rng: random.Random, width: int, steps: int) -> None:
    steering.steer(width, rng, steps)


@examples(6)
@given(rng=CHOICES, config=st.sampled_from((receive.DEFAULT, receive.QUICK)), stall=STALLS, seed=SEEDS,
       count=st.integers(1, 10))
def test_receive_and_its_rings(rng: random.Random, config, stall: float, seed: int, count: int) -> None:
    receive.live(config, rng, count, seed=seed, stall=stall)
