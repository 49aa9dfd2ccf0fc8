"""Selective acknowledgements: dialogues about what a receiver reports and what a sender makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from host_driver.tcp import Chunk, Connection
from host_driver.tcp.profile import MS
from tests.tcp.dialogue import PEER_ISS, PLAIN, Dialogue, Seen, accept, queue

SACKED = replace(PLAIN, name="sacked", sack=True, initial_window_segments=10)
MSS = 1460
PERMITTED = [("MSS", MSS), ("SAckOK", b"")]
STAMP = [("NOP", None), ("NOP", None), ("Timestamp", (5, 0))]


def blocks(segment: Seen) -> list[tuple[int, int]]:
    """The blocks that the stack reports, relative to the peer's ISS."""
    edges = [(edge - PEER_ISS) % (1 << 32) for edge in segment.options.get("SAck", ())]
    return list(zip(edges[::2], edges[1::2], strict=True))


def reported(d: Dialogue, *ranges: tuple[int, int]) -> list[Any]:
    """The peer's option, by positions relative to the stack's ISS."""
    assert d.iss is not None
    return [("NOP", None), ("NOP", None), ("SAck", tuple((d.iss + edge) % (1 << 32) for r in ranges for edge in r))]


def segment(number: int, until: int | None = None) -> tuple[int, int]:
    """Positions of the stack's segments from `number` to before `until`."""
    return 1 + number * MSS, 1 + (number + 1 if until is None else until) * MSS


def flight(d: Dialogue, segments: int = 10, **options: Any) -> Connection:
    """`segments` are on their way to the peer."""
    c = d.accepted(window=65535, options=PERMITTED)
    queue(c, bytes(segments * MSS))
    assert len(d.sent()) == segments
    d.now += 10 * MS
    return c


def numbers(sent: list[Seen]) -> list[int]:
    """Which segments these are."""
    return [(s.seq - 1) // MSS for s in sent]


# The receiver


@pytest.mark.parametrize(("profile", "offered"), [(SACKED, True), (SACKED, False), (PLAIN, True)])
def test_both_syns_must_permit_it(profile: Any, offered: bool) -> None:
    """RFC 2018 §2."""
    d = Dialogue(profile)
    listener = d.stack.listen(80, 1)
    d.send("S", 0, options=PERMITTED if offered else PERMITTED[:1])
    agreed = offered and profile.sack
    assert ("SAckOK" in d.one().options) is agreed
    d.send("A", 1, 1)
    accept(listener)
    d.send("A", 101, 1, b"late")
    assert blocks(d.one()) == ([(101, 105)] if agreed else [])


def test_the_block_that_changed_last_comes_first() -> None:
    """RFC 2018 §4, with the example of §7 case 3's kind: every second segment lost."""
    d = Dialogue(SACKED)
    c = d.accepted(options=PERMITTED)
    seen = []
    for start in (101, 301, 501, 701, 901):
        d.send("A", start, 1, bytes(100))
        seen.append(blocks(d.one()))
    assert seen == [
        [(101, 201)],
        [(301, 401), (101, 201)],
        [(501, 601), (301, 401), (101, 201)],
        [(701, 801), (501, 601), (301, 401), (101, 201)],
        [(901, 1001), (701, 801), (501, 601), (301, 401)],  # 40 bytes of options hold four
    ]
    d.send("A", 201, 1, bytes(100))  # joins two
    assert blocks(d.one())[0] == (101, 401)
    d.send("A", 1, 1, bytes(100))
    last = d.one()
    assert last.ack == 401
    assert blocks(last) == [(901, 1001), (701, 801), (501, 601)]
    d.send("A", 401, 1, bytes(600))
    assert blocks(d.one()) == []
    assert c.recv_available == 1000


def test_with_timestamps_three_blocks_fit() -> None:
    """RFC 2018 §3."""
    d = Dialogue(replace(SACKED, timestamps=True))
    listener = d.stack.listen(80, 1)
    d.send("S", 0, options=[*PERMITTED, *STAMP])
    d.one()
    d.send("A", 1, 1, options=STAMP)
    accept(listener)
    for start in (101, 301, 501, 701):
        d.send("A", start, 1, bytes(100), options=STAMP)
    last = d.sent()[-1]
    assert blocks(last) == [(701, 801), (501, 601), (301, 401)]
    assert "Timestamp" in last.options


def test_blocks_cross_the_wrap() -> None:
    d = Dialogue(SACKED)
    d.accepted(options=PERMITTED)
    at = (1 << 32) - PEER_ISS - 50  # relative position of 50 bytes before the wrap
    d.send("A", at, 1, bytes(100))
    assert blocks(d.one()) == [(at, at + 100)]


def test_data_segments_carry_blocks_and_shrink() -> None:
    """RFC 2018 §4: SACK options "SHOULD be included in all ACKs"; the frame stays within the MTU."""
    d = Dialogue(SACKED)
    c = d.accepted(options=PERMITTED)
    d.send("A", 101, 1, bytes(100))
    d.one()
    queue(c, bytes(3 * MSS))
    first = d.sent()[0]
    assert blocks(first) == [(101, 201)]
    assert len(first.payload) == first.out.mss == MSS - 12


@pytest.mark.parametrize(
    ("arrives", "expected"),
    [
        ((1, 101), [(1, 101), (301, 401)]),  # RFC 2883 §4.1.1: all of it acknowledged before
        ((151, 201), [(151, 201), (301, 401)]),
        ((301, 401), [(301, 401), (301, 401)]),  # §4.1.2: within a block behind the gap, which comes second
        ((351, 451), [(351, 401), (301, 451)]),
        ((251, 351), [(301, 351), (251, 401)]),
    ],
)
def test_duplicates_are_reported_once(arrives: tuple[int, int], expected: list[tuple[int, int]]) -> None:
    """RFC 2883 §4."""
    d = Dialogue(SACKED)
    d.accepted(options=PERMITTED)
    d.send("A", 1, 1, bytes(200))
    d.send("A", 301, 1, bytes(100))
    d.sent()
    start, end = arrives
    d.send("A", start, 1, bytes(end - start))
    assert blocks(d.one()) == expected
    d.send("A", 501, 1, bytes(100))
    assert blocks(d.one())[0] == (501, 601)


# The sender


def test_only_what_is_missing_is_sent_again() -> None:
    """RFC 6675: two holes, both found, nothing else repeated."""
    d = Dialogue(SACKED)
    flight(d)
    d.send("A", 1, 1, options=reported(d, segment(1, 4)))
    d.send("A", 1, 1, options=reported(d, segment(5, 10), segment(1, 4)))
    assert numbers(d.sent()) == [0, 4]
    d.now += 10 * MS
    d.send("A", 1, 1 + 4 * MSS, options=reported(d, segment(5, 10)))
    d.send("A", 1, 1 + 10 * MSS)
    d.nothing()
    assert d.stack.next_deadline() is None


def test_a_hole_within_a_segmented_send_is_sent_again_alone() -> None:
    d = Dialogue(SACKED, max_segment_bytes=65535)
    c = d.accepted(window=65535, options=PERMITTED)
    queue(c, bytes(10 * MSS))
    assert [len(s.payload) for s in d.sent()] == [10 * MSS]
    d.now += 10 * MS
    d.send("A", 1, 1 + 2 * MSS, options=reported(d, segment(4, 10)))
    d.send("A", 1, 1 + 2 * MSS, options=reported(d, segment(4, 10)))
    again = d.one()
    assert (again.seq, len(again.payload), again.out.is_retransmission) == (1 + 2 * MSS, 2 * MSS, True)


def test_a_receiver_that_throws_away_what_it_reported_gets_it_again() -> None:
    """RFC 2018 §8, reneging: the data is kept until it is acknowledged, and the timeout forgets the blocks."""
    d = Dialogue(SACKED)
    freed: list[int] = []
    c = d.accepted(window=65535, options=PERMITTED)
    for number in range(4):
        c.send(Chunk(bytes([number]) * MSS, release=lambda number=number: freed.append(number)))
    assert len(d.sent()) == 4
    d.now += 10 * MS
    d.send("A", 1, 1, options=reported(d, segment(1, 4)))
    assert numbers(d.sent()) == [0]
    assert freed == []
    d.now += 10 * MS
    d.send("A", 1, 1 + MSS)  # only the first: the others are gone there
    got = []
    while len(got) < 3:
        d.run_to_deadline()
        for again in d.sent():
            assert again.payload == bytes([(again.seq - 1) // MSS]) * MSS
            got.append((again.seq - 1) // MSS)
            d.now += 10 * MS
            d.send("A", 1, again.seq + MSS)
    assert got == [1, 2, 3]
    assert freed == [0, 1, 2, 3]


@pytest.mark.parametrize("ranges", [[(5 * MSS, 3 * MSS)], [(1 + 9 * MSS, 1 + 12 * MSS)], [(1 << 30, (1 << 30) + 5)]])
def test_blocks_that_cannot_be_are_ignored(ranges: list[tuple[int, int]]) -> None:
    """RFC 9293 §3.10.7.4's rule for acknowledgements of what was never sent, for blocks."""
    d = Dialogue(SACKED)
    c = flight(d)
    for _ in range(4):
        d.send("A", 1, 1, options=reported(d, *ranges), window=60000)
    d.nothing()
    d.send("A", 1, 1 + 10 * MSS)
    assert c.acked_bytes == 10 * MSS


def test_an_overtaken_acknowledgement_is_no_duplicate_report() -> None:
    """Its blocks lie below what is acknowledged since, but not below what it acknowledges itself."""
    d = Dialogue(SACKED)
    c = flight(d)
    d.send("A", 1, 1, options=reported(d, segment(1, 4)))
    assert numbers(d.sent()) == [0]
    d.now += 10 * MS
    d.send("A", 1, 1 + 10 * MSS)
    d.send("A", 1, 1, options=reported(d, segment(1, 4)))  # taken for a D-SACK, it would undo the reduction
    queue(c, bytes(20 * MSS))
    assert numbers(d.sent()) == [10, 11, 12, 13, 14]
