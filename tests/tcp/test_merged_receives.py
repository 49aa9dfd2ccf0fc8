"""Receives that the device merged: acknowledged as if each segment had come by itself (RFC 5681 §4.2)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from host_driver.tcp import Profile
from tests.tcp.dialogue import PLAIN, Dialogue

MSS = 1460
LARGE = replace(PLAIN, name="large", receive_buffer_bytes=1 << 20, window_scale=5)
STRETCHED = replace(LARGE, name="stretched", stretch_acks=True)
OPTIONS = [("MSS", 1460), ("WScale", 5)]


def acks(d: Dialogue) -> list[int]:
    return [s.ack for s in d.sent()]


def one_by_one(profile: Profile, sizes: list[int], first: int = 1) -> tuple[list[int], int | None]:
    """Acknowledgements of segments that come by themselves, and when the next timer is due."""
    d = Dialogue(profile)
    d.accepted(options=OPTIONS)
    at = first
    for size in sizes:
        d.send("A", at, 1, bytes(size))
        at += size
    return acks(d), d.stack.next_deadline()


@pytest.mark.parametrize("count", [1, 2, 3, 43, 44])
@pytest.mark.parametrize("last", [MSS, 1, 700])
@pytest.mark.parametrize("first", [1, 1 + MSS])
def test_one_receive_of_many_segments_is_acknowledged_like_them(count: int, last: int, first: int) -> None:
    """Also when something is missing before it: then each segment asks for it (§3.2)."""
    d = Dialogue(LARGE)
    c = d.accepted(options=OPTIONS)
    sizes = [MSS] * (count - 1) + [last]
    d.send("A", first, 1, bytes(sum(sizes)), merged_bytes=MSS if count > 1 else 0)
    assert (acks(d), d.stack.next_deadline()) == one_by_one(LARGE, sizes, first)
    assert c.recv_available == (sum(sizes) if first == 1 else 0)


def test_every_second_of_44_segments() -> None:
    d = Dialogue(LARGE)
    d.accepted(options=OPTIONS)
    d.send("A", 1, 1, bytes(44 * MSS), merged_bytes=MSS)
    assert acks(d) == [1 + 2 * MSS * (number + 1) for number in range(22)]


def test_fin_of_the_last_segment() -> None:
    d = Dialogue(LARGE)
    c = d.accepted(options=OPTIONS)
    d.send("FPA", 1, 1, bytes(3 * MSS + 10), merged_bytes=MSS)
    assert acks(d) == [1 + 2 * MSS, 1 + 3 * MSS + 10 + 1]
    assert c.recv_available == 3 * MSS + 10
    assert c.peer_closed


def test_merged_receive_is_one_piece_of_news_for_the_user() -> None:
    d = Dialogue(LARGE)
    c = d.accepted(options=OPTIONS)
    told: list[int] = []
    c.on_event = lambda c: told.append(c.recv_available)
    d.send("A", 1, 1, bytes(10 * MSS), merged_bytes=MSS)
    assert told == [10 * MSS]


def test_beyond_the_window_it_is_cut() -> None:
    d = Dialogue(replace(PLAIN, receive_buffer_bytes=4 * MSS))
    c = d.accepted()
    d.send("A", 1, 1, bytes(6 * MSS), merged_bytes=MSS)
    assert acks(d)[-1] == 1 + 4 * MSS
    assert c.recv_available == 4 * MSS


def test_profile_that_stretches() -> None:
    """Linux acknowledges what it merged once."""
    d = Dialogue(STRETCHED)
    d.accepted(options=OPTIONS)
    d.send("A", 1, 1, bytes(44 * MSS), merged_bytes=MSS)
    assert acks(d) == [1 + 44 * MSS]
