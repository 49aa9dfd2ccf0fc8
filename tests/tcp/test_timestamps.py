"""RFC 7323's timestamps: dialogues about the option, what is echoed, old duplicates, and round-trip times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from host_driver.tcp import Connection
from host_driver.tcp.profile import MS, SECOND
from tests.tcp.dialogue import PLAIN, Dialogue, accept, queue

STAMPED = replace(PLAIN, name="stamped", timestamps=True)
MSS = 1460
DAY = 86_400 * SECOND


def stamp(value: int, echo: int = 0) -> list[Any]:
    """The peer's option."""
    return [("NOP", None), ("NOP", None), ("Timestamp", (value % (1 << 32), echo))]


def opened(d: Dialogue, value: int = 1000) -> Connection:
    """A connection that the peer opened with timestamps, its clock at `value`."""
    listener = d.stack.listen(80, 1)
    d.send("S", 0, options=[("MSS", MSS), *stamp(value)])
    answer = d.one()
    assert answer.options["Timestamp"][1] == value
    d.send("A", 1, 1, options=stamp(value, answer.options["Timestamp"][0]))
    return accept(listener)


def echo(d: Dialogue) -> int:
    """What the only segment that is sent now echoes."""
    return d.one().options["Timestamp"][1]


@pytest.mark.parametrize(("profile", "offered"), [(STAMPED, True), (STAMPED, False), (PLAIN, True)])
def test_both_syns_must_have_the_option(profile: Any, offered: bool) -> None:
    """§3.2: TSopt in a SYN-ACK only if the SYN had it, and then in every segment."""
    d = Dialogue(profile)
    listener = d.stack.listen(80, 1)
    d.send("S", 0, options=[("MSS", MSS), *(stamp(7) if offered else [])])
    agreed = offered and profile.timestamps
    assert ("Timestamp" in d.one().options) is agreed
    d.send("A", 1, 1, options=stamp(7) if agreed else [])
    c = accept(listener)
    queue(c, b"data")
    assert ("Timestamp" in d.one().options) is agreed
    d.send("FA", 1, 5, options=stamp(8) if agreed else [])
    assert ("Timestamp" in d.one().options) is agreed
    c.abort(d.now)
    assert ("Timestamp" in d.one().options) is agreed


def test_an_active_open_offers_it() -> None:
    d = Dialogue(STAMPED)
    d.port, d.peer_port = 0, 80
    d.stack.connect(d.ip[1], 80, d.now)
    value, echoed = d.one().options["Timestamp"]
    assert echoed == 0
    d.send("SA", 0, 1, options=[("MSS", MSS), *stamp(55, value)])
    assert d.one().options["Timestamp"] == (value, 55)


@pytest.mark.parametrize("ipv6", [False, True])
def test_the_option_takes_room_from_the_payload(ipv6: bool) -> None:
    """RFC 9293 §3.7.1: a segment with its options fits the MSS."""
    d = Dialogue(STAMPED, ipv6=ipv6)
    c = opened(d)
    queue(c, bytes(2 * MSS))
    assert [len(s.payload) for s in d.sent()] == [c.mss, c.mss]
    assert c.mss == (1440 if ipv6 else 1460) - 12


def test_segmented_sends_have_the_option_in_their_template() -> None:
    d = Dialogue(replace(STAMPED, initial_window_segments=10), max_segment_bytes=65535)
    c = opened(d)
    queue(c, bytes(5 * (MSS - 12)))
    large = d.one()
    assert (len(large.payload), large.out.mss) == (5 * 1448, 1448)
    assert "Timestamp" in large.options


def test_the_clock_ticks_once_a_millisecond() -> None:
    """§5.4: between 1 ms and 1 s per tick."""
    d = Dialogue(STAMPED)
    c = opened(d)
    queue(c, b"a")
    first = d.one().options["Timestamp"][0]
    d.now += 25 * MS
    d.send("A", 1, 2, options=stamp(1001))
    queue(c, b"b")
    assert d.one().options["Timestamp"][0] == first + 25


def test_a_delayed_acknowledgement_echoes_the_earlier_segment() -> None:
    """§4.3 (A): "the timestamp from the first segment is echoed"."""
    d = Dialogue(STAMPED)
    opened(d)
    d.send("A", 1, 1, bytes(MSS - 12), options=stamp(1010))
    d.send("A", 1 + MSS - 12, 1, bytes(MSS - 12), options=stamp(1020))
    assert echo(d) == 1010


def test_a_gap_leaves_the_echo_at_the_last_segment_in_order() -> None:
    """§4.3 (B) and (C): of segments behind a gap nothing is echoed, of the one that fills it all."""
    d = Dialogue(STAMPED)
    opened(d)
    d.send("PA", 1, 1, b"a" * 100, options=stamp(1010))
    d.run_to_deadline()
    assert echo(d) == 1010
    d.send("PA", 201, 1, b"c" * 100, options=stamp(1030))
    assert echo(d) == 1010
    d.send("PA", 101, 1, b"b" * 100, options=stamp(1020))
    assert echo(d) == 1020


def test_old_duplicates_are_refused() -> None:
    """§5.3 R1 (PAWS), across the wrap of the clock: acknowledged and dropped."""
    d = Dialogue(STAMPED)
    c = opened(d, value=0xFFFF_FFF0)
    d.send("PA", 1, 1, b"new", options=stamp(0x1_0000_0010))
    d.send("PA", 4, 1, b"old", options=stamp(0xFFFF_FFF8))
    assert (d.one().ack, c.recv_available) == (4, 3)
    d.send("PA", 4, 1, b"yes", options=stamp(0x1_0000_0010))
    assert c.recv_available == 6


def test_a_reset_is_not_asked_for_its_timestamp() -> None:
    """§5.3: "if the RST bit is not set"; §3.2: a RST need not have the option."""
    d = Dialogue(STAMPED)
    c = opened(d)
    d.send("R", 1, options=[])
    assert isinstance(c.error, ConnectionResetError)


def test_a_segment_without_the_option_is_dropped_silently() -> None:
    """§3.2."""
    d = Dialogue(STAMPED)
    c = opened(d)
    d.send("PA", 1, 1, b"who?", options=[])
    d.nothing()
    assert c.recv_available == 0


def test_after_24_days_an_old_timestamp_says_nothing() -> None:
    """§5.5."""
    d = Dialogue(STAMPED)
    c = opened(d)
    d.now += 25 * DAY
    d.send("PA", 1, 1, b"late", options=stamp(900))
    assert c.recv_available == 4


def test_an_echo_that_was_made_up_measures_nothing() -> None:
    """A timestamp that this side never sent, as 0 from a careless peer."""
    d = Dialogue(replace(STAMPED, min_rto_ps=MS))
    c = opened(d)
    queue(c, b"a")
    d.one()
    d.run_to_deadline()
    d.one()
    d.send("A", 1, 2, options=stamp(1001, 0))
    queue(c, b"b")
    d.one()
    assert c.deadline() - d.now < SECOND


def test_the_echo_measures_a_segment_that_was_sent_again() -> None:
    """§4.1: no ambiguity, where Karn's rule forbids a measurement: the timeout follows at once."""
    d = Dialogue(replace(STAMPED, min_rto_ps=MS))
    c = opened(d)
    queue(c, b"a")
    d.one()
    for _ in range(3):
        d.run_to_deadline()
        again = d.one()
    d.now += 50 * MS
    d.send("A", 1, 2, options=stamp(1001, again.options["Timestamp"][0]))
    queue(c, b"b")
    d.one()
    # SRTT was 0 from the handshake: now 50/8 ms and RTTVAR 50/4 ms
    assert c.deadline() - d.now == int((6.25 + 4 * 12.5) * MS)
