"""RACK's loss detection looks at the oldest transmissions only: the same as RFC 8985's walk over all segments?"""

from __future__ import annotations

from itertools import pairwise

import pytest

from host_driver.tcp import LINUX, RFC, Profile
from host_driver.tcp.profile import MS
from host_driver.tcp.rack import Rack
from host_driver.tcp.sack import Scoreboard
from tests.tcp.path import Path, transfer
from tests.tcp.test_random_wire import exchange

Range = tuple[int, int]


def walk(rack: Rack, board: Scoreboard, now: int, srtt: int | None, in_recovery: bool) -> tuple[set[Range], int]:
    """RACK_detect_loss as RFC 8985 §6.2 step 5 has it: what is lost, and how long to wait for the others."""
    if rack.rtt is None:
        return set(), 0
    patience = rack.rtt + rack._reo_wnd(board.sacked_bytes, srtt, in_recovery=in_recovery)
    lost: set[Range] = set()
    timeout = 0
    for segment in board.segments:
        if segment.is_lost or segment.is_sacked or (rack._order, rack._end_seq) <= (segment.order, segment.end):
            continue
        remaining = segment.sent_at + patience - now
        if remaining <= 0:
            lost.add((segment.start, segment.end))
        else:
            timeout = max(remaining, timeout)
    return lost, timeout


def marked_lost(board: Scoreboard) -> set[Range]:
    """What the scoreboard takes for lost; its counts are verified on the way."""
    segments = board.segments
    assert all(a.end == b.start for a, b in pairwise(segments))
    assert not any(s.is_lost and s.is_sacked for s in segments)
    assert board.lost_bytes == sum(s.end - s.start for s in segments if s.is_lost)
    assert board.sacked_bytes == sum(s.end - s.start for s in segments if s.is_sacked)
    return {(s.start, s.end) for s in segments if s.is_lost}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each detection is compared; how many segments each found lost."""
    detect_loss = Rack.detect_loss
    counts: list[int] = []

    def compared(rack: Rack, board: Scoreboard, now: int, srtt: int | None, *, in_recovery: bool) -> int:
        expected = walk(rack, board, now, srtt, in_recovery)
        before = marked_lost(board)
        wait = detect_loss(rack, board, now, srtt, in_recovery=in_recovery)
        news = marked_lost(board) - before
        assert (news, wait) == expected
        counts.append(len(news))
        return wait

    monkeypatch.setattr(Rack, "detect_loss", compared)
    return counts


def test_over_bad_wires(found: list[int]) -> None:
    for seed in range(1000, 1060):
        exchange(seed)
    assert sum(found) > 100


@pytest.mark.parametrize("profile", [LINUX, RFC], ids=lambda profile: profile.name)
@pytest.mark.parametrize(
    "path",
    [Path(loss=0.02, rate=12.5e6), Path(jitter_ps=8 * MS, loss=0.01, rate=12.5e6),
     Path(rate=1.25e6, queue_bytes=30_000)],
    ids=["loss", "reordering", "queue"],
)
def test_over_a_path(found: list[int], path: Path, profile: Profile) -> None:
    transfer(profile, path, 1_500_000)
    assert sum(found) > 5
