"""Hostile frames and bad sends over the RTL, with the model as oracle; `make soak` has fifty times as many."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from nic_model.contract import RxInfo
from nic_model.receive_parser import parse_received
from tests.device.hostile import BadSender, bursts
from tests.device.hostile_frames import FIELDS, WAYS, good_frame, hostile_frame, put, right_frame
from tests.device.rig import FAR, FAST
from tests.soak.__main__ import FRAMES, SENDS, Batch, check

BATCHES = 4


def test_two_thousand_hostile_frames(tiny_compiled: Path) -> None:
    """Each is delivered or dropped and counted as the model says, and the next good one passes."""
    figures: Counter[str] = Counter()
    for seed in range(BATCHES):
        check(Batch("frames", 9000 + seed, FAR if seed == 3 else FAST, FRAMES), figures)
    assert figures["frames"] == 2000
    assert figures["good frames behind bursts"] >= 2000 // 24
    for name in ("rx_frames", "rx_filtered", "rx_bad_frames", "rx_oversize", "rx_checksum_errors", "rx_pause",
                 "rx_coalesced", "rx_no_buffer", "rx_errors"):
        assert figures[name] > 0, name


def test_bad_sends(tiny_compiled: Path) -> None:
    """Each has its error, and the next good one comes out."""
    figures: Counter[str] = Counter()
    for seed, timing in ((1, FAST), (2, FAR)):
        check(Batch("sends", seed, timing, SENDS), figures)
    ways = [name[4:] for name in dir(BadSender) if name.startswith("bad_")]
    assert len(ways) == 15
    assert all(figures[f"bad {way}"] >= 4 for way in ways), figures


@pytest.mark.parametrize("flow", [None, 80])
def test_a_right_frame_is_right(flow: int | None) -> None:
    """Else what is put into it would not be what is wrong with it."""
    rng = random.Random(1)
    for _ in range(300):
        frame = right_frame(rng, flow)
        info = parse_received(bytes(frame.data)).info
        assert RxInfo[frame.layers[-1].kind.upper()] | RxInfo.L4_CHECKSUM_OK in info, (frame, info)
        assert RxInfo.CHECKSUM_BAD not in info, (frame, info)


def test_every_way_and_every_field_comes() -> None:
    seen = Counter(frame.why.partition(",")[0] for seed in range(4) for each in bursts(seed, 2000) for frame in each)
    for kind, fields in FIELDS.items():
        for field in fields:
            assert seen[f"{kind} {field}"] > 2, f"{kind} {field}"
    assert len(seen) == sum(map(len, FIELDS.values())) + len(WAYS) - 1 + 2  # those of streams


def test_good_frames_differ_and_are_good() -> None:
    frames = {good_frame(number) for number in range(100)}
    assert len(frames) == 100
    assert all(RxInfo.L3_CHECKSUM_OK | RxInfo.UDP in parse_received(frame).info for frame in frames)


def test_a_field_is_put_in_its_place() -> None:
    data = bytearray(4)
    put(data, 4, 12, 0xABC)
    assert data == bytes((0x0A, 0xBC, 0, 0))
    put(data, 28, 8, 0xFF)  # not there
    assert data == bytes((0x0A, 0xBC, 0, 0))


def test_the_same_seed_gives_the_same_frames() -> None:
    assert [hostile_frame(random.Random(5)) for _ in range(2)] == [hostile_frame(random.Random(5))] * 2
