"""The urgent pointer, both ways: RFC 9293 §3.8.5 as RFC 6093 reads it."""

from __future__ import annotations

import pytest

from host_driver.tcp import Chunk, State
from tests.tcp.dialogue import Dialogue, queue


def test_pointer_stands_behind_the_last_urgent_byte() -> None:
    """RFC 6093 §4."""
    d = Dialogue()
    c = d.connected()
    assert c.send(Chunk(b"stop!"), urgent=True) == 5
    seen = d.one()
    assert (seen.flags, seen.seq, seen.urgent, seen.payload) == ("PAU", 1, 5, b"stop!")
    d.send("A", 1, 6)
    queue(c, b"go on")
    seen = d.one()
    assert (seen.flags, seen.urgent) == ("PA", 0)


def test_segments_before_the_urgent_bytes_announce_them() -> None:
    """Each from SND.UNA up to SND.UP, also when it is sent again."""
    d = Dialogue()
    c = d.connected(window=4000)
    queue(c, bytes(2920))
    c.send(Chunk(b"!"), urgent=True)
    assert [(s.seq, s.flags, s.urgent) for s in d.sent()] == [
        (1, "AU", 2921), (1461, "AU", 1461), (2921, "PAU", 1)]  # Nagle's algorithm does not hold urgent bytes
    d.run_to_deadline()
    assert [(s.seq, s.urgent, s.out.is_retransmission) for s in d.sent()] == [(1, 2921, True)]


def test_pointer_beyond_the_field_is_as_far_as_it_goes() -> None:
    d = Dialogue(max_segment_bytes=60000)
    c = d.connected()
    queue(c, bytes(65000))
    c.send(Chunk(bytes(5000)), urgent=True)
    assert {s.urgent for s in d.sent()} == {0xFFFF, 70000 - 1460 if 70000 - 1460 < 0xFFFF else 0xFFFF}


def test_device_does_not_cut_segments_with_a_pointer() -> None:
    """Its cutting would leave the same pointer in each, which counts from the segment."""
    d = Dialogue(max_segment_bytes=60000)
    c = d.connected()
    queue(c, bytes(20000))
    (large,) = [s for s in d.sent() if not s.urgent]
    assert large.out.payload_bytes > 1460
    c.send(Chunk(b"!"), urgent=True)
    d.send("A", 1, 1 + large.out.payload_bytes)
    seen = d.sent()
    assert all(s.out.payload_bytes <= 1460 for s in seen)
    assert {s.seq + s.urgent for s in seen} == {20002}


def test_closed_window_does_not_hide_urgency() -> None:
    """RFC 9293 §3.8.6.1: the pointer passes although no byte may."""
    d = Dialogue()
    c = d.connected(window=0)
    c.send(Chunk(b"now"), urgent=True)
    seen = d.one()
    assert (seen.flags, seen.seq, seen.urgent, seen.payload) == ("AU", 1, 3, b"")
    d.nothing()


def test_user_is_told_and_reads_in_line() -> None:
    """RFC 9293 §3.10.7.4, sixth; RFC 6093 §6: all bytes stay in the stream."""
    d = Dialogue()
    c = d.accepted()
    told: list[int] = []
    c.on_event = lambda c: told.append(c.urgent_bytes)
    d.send("PA", 1, 1, b"abc")
    d.send("PAU", 4, 1, b"de", urgent=4)
    assert told == [0, 7]
    assert c.recv(4) == b"abcd"
    assert c.urgent_bytes == 3
    assert c.recv(10) == b"e"
    d.send("PA", 6, 1, b"fgh")
    assert c.urgent_bytes == 2 + 0
    assert c.recv(10) == b"fgh"
    assert c.urgent_bytes == 0


def test_urgency_ahead_of_its_bytes_is_told_once() -> None:
    """Without data, and even when the window is closed; a repetition or an older pointer is no news."""
    d = Dialogue()
    c = d.accepted()
    told: list[int] = []
    c.on_event = lambda c: told.append(c.urgent_bytes)
    d.send("AU", 1, 1, urgent=100)
    d.send("AU", 1, 1, urgent=100)
    d.send("AU", 1, 1, urgent=50)
    assert told == [100]
    d.send("AU", 1, 1, urgent=200)
    assert told == [100, 200]
    d.send("A", 1, 1, urgent=300)  # without the flag it means nothing
    assert c.urgent_bytes == 200


@pytest.mark.parametrize("flags", ["FAU", "AU"])
def test_no_urgency_after_the_fin(flags: str) -> None:
    """§3.10.7.4: "This should not occur [...]. Ignore the URG." """
    d = Dialogue()
    c = d.accepted()
    d.send("FA", 1, 1)
    assert c.state is State.CLOSE_WAIT
    d.send(flags, 2, 1, urgent=9)
    assert c.urgent_bytes == 0
