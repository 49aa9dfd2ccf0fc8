"""Peers that are silent, and users that have gone: keep-alive, user timeout, release."""

from __future__ import annotations

from dataclasses import replace

import pytest

from host_driver.tcp import RFC, State
from host_driver.tcp.profile import SECOND
from tests.tcp.dialogue import PLAIN, Dialogue, queue

HOUR = 3600 * SECOND


def test_keep_alive_is_off_unless_asked_for() -> None:
    """RFC 9293 §3.8.4: "they MUST default to off", and the interval "MUST default to no less than two hours"."""
    d = Dialogue()
    c = d.connected()
    assert d.stack.next_deadline() is None
    c.set_keep_alive(True, d.now)
    d.nothing()
    assert d.stack.next_deadline() == 2 * HOUR
    c.set_keep_alive(False, d.now)
    d.nothing()
    assert d.stack.next_deadline() is None


def test_peer_that_answers_keeps_the_connection() -> None:
    d = Dialogue()
    c = d.connected()
    c.set_keep_alive(True, d.now)
    heard_at = 0
    for _ in range(12):
        d.nothing()
        d.run_to_deadline()
        assert d.now - heard_at == 2 * HOUR
        probe = d.one()
        assert (probe.flags, probe.seq, probe.payload) == ("A", 0, b""), "SEG.SEQ = SND.NXT-1"
        d.send("A", 1, 1)
        heard_at = d.now
        d.run_to_deadline()  # 75 seconds later it sees that somebody spoke
    assert c.state is State.ESTABLISHED


def test_silent_peer_is_given_up_after_all_probes() -> None:
    """RFC 9293 §3.8.4: "MUST NOT interpret failure to respond to any specific probe as a dead connection"."""
    d = Dialogue()
    c = d.connected()
    c.set_keep_alive(True, d.now)
    d.nothing()
    d.run_to_deadline()
    for _ in range(9):
        assert c.state is State.ESTABLISHED
        assert d.one().seq == 0
        assert d.run_to_deadline() == 75 * SECOND
    assert d.one().flags == "RA"
    assert c.state is State.CLOSED
    assert isinstance(c.error, TimeoutError)
    assert "9 keep-alive probes" in str(c.error)


def test_no_keep_alive_while_data_is_outstanding() -> None:
    """§3.8.4: "MUST only be sent when no sent data is outstanding"."""
    d = Dialogue(replace(PLAIN, keep_alive_idle_ps=10 * SECOND, max_retransmissions=100))
    c = d.connected()
    c.set_keep_alive(True, d.now)
    queue(c, b"x")
    d.one()
    while d.now < 60 * SECOND:
        d.run_to_deadline()
        assert all(s.payload == b"x" for s in d.sent())
    d.send("A", 1, 2)
    while not (probes := d.sent()):
        d.run_to_deadline()
    assert [(s.seq, s.payload) for s in probes] == [(1, b"")]


def test_keep_alive_of_a_peer_is_answered() -> None:
    """With and without a garbage octet."""
    d = Dialogue()
    d.accepted()
    d.send("A", 0, 1)
    assert d.one().ack == 1
    d.advance(SECOND)
    d.send("A", 0, 1, b"\0")
    assert d.one().ack == 1


def test_keep_alive_ends_with_the_connection() -> None:
    d = Dialogue()
    c = d.connected()
    c.set_keep_alive(True, d.now)
    c.close(d.now)
    d.one()
    d.send("FA", 1, 2)
    d.one()
    assert c.state is State.TIME_WAIT
    assert d.run_to_deadline() == 240 * SECOND
    assert c.state is State.CLOSED


@pytest.mark.parametrize("window", [60000, 0])
def test_user_timeout(window: int) -> None:
    """RFC 9293 §3.8.3: shorter than the retransmissions would last; also for a window that stays closed."""
    d = Dialogue()
    c = d.connected(window=window)
    c.user_timeout_ps = 10 * SECOND
    queue(c, b"hello")
    d.sent()
    while c.state is not State.CLOSED:
        d.run_to_deadline()
        d.sent()
        if not window:
            d.send("A", 1, 1, window=0)
    assert d.now == 10 * SECOND
    assert isinstance(c.error, TimeoutError)
    assert "user timeout of 10 s" in str(c.error)


def test_progress_starts_the_user_timeout_anew() -> None:
    d = Dialogue()
    c = d.connected()
    c.user_timeout_ps = 10 * SECOND
    queue(c, bytes(2920))
    d.sent()
    d.advance(9 * SECOND)
    d.sent()
    d.send("A", 1, 1461)
    d.advance(9 * SECOND)
    d.sent()
    assert c.state is State.ESTABLISHED
    d.send("A", 1, 2921)
    assert d.stack.next_deadline() is None


def test_user_timeout_of_an_open() -> None:
    d = Dialogue()
    c = d.stack.connect(d.ip[1], 80, 0)
    c.user_timeout_ps = 2 * SECOND
    while c.state is not State.CLOSED:
        d.stack.transmit(d.now)
        d.run_to_deadline()
    assert d.now == 2 * SECOND


def test_user_that_has_gone_resets_what_it_did_not_read() -> None:
    """RFC 1122 §4.2.2.13."""
    d = Dialogue()
    c = d.accepted()
    d.send("PA", 1, 1, b"unread")
    c.release(d.now)
    assert d.sent()[-1].flags == "RA"
    assert c.state is State.CLOSED


def test_data_for_a_user_that_has_gone_is_reset() -> None:
    d = Dialogue()
    c = d.accepted()
    queue(c, b"answer")
    c.release(d.now)
    assert d.one().flags == "FPA"
    d.send("A", 1, 8)
    assert c.state is State.FIN_WAIT_2
    d.send("PA", 1, 8, b"more")
    assert d.one().flags == "RA"
    assert c.state is State.CLOSED
    assert isinstance(c.error, ConnectionAbortedError)


@pytest.mark.parametrize("late", [False, True])
def test_peer_that_never_closes_is_not_waited_for(late: bool) -> None:
    """A user that only closed may still read, for as long as the peer likes; one that has gone does not wait."""
    d = Dialogue()
    c = d.accepted()
    if late:
        c.close(d.now)
        d.one()
        d.send("A", 1, 2)
        d.nothing()  # the stack has looked at the connection, and has no reason to do so again
        assert d.stack.next_deadline() is None
        c.release(d.now)
        d.nothing()
    else:
        c.release(d.now)
        d.one()
        d.send("A", 1, 2)
    assert c.state is State.FIN_WAIT_2
    assert d.run_to_deadline() == RFC.fin_wait_2_ps
    assert c.state is State.CLOSED
    assert c.error is None
    assert d.stack.connections == []


def test_fin_after_release_goes_the_usual_way() -> None:
    d = Dialogue()
    c = d.accepted()
    c.release(d.now)
    d.one()
    d.send("A", 1, 2)
    d.send("FA", 1, 2)
    assert c.state is State.TIME_WAIT
    assert d.one().ack == 2
