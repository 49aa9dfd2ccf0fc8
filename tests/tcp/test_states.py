"""Each state and transition of RFC 9293 §3.3.2, and what a state does with segments that do not belong into it.

What opening and closing look like in full stands in test_handshake_and_close.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from host_driver.tcp import Connection, State
from host_driver.tcp.profile import MS, SECOND
from tests.tcp.dialogue import PLAIN, Dialogue, accept, queue


def syn_sent(d: Dialogue) -> Connection:
    d.port, d.peer_port = 0, 80
    c = d.stack.connect(d.ip[1], 80, d.now)
    d.one()
    return c


def syn_received(d: Dialogue) -> Connection:
    d.stack.listen(80, 4)
    d.send("S", 0)
    d.one()
    (c,) = d.stack.connections
    return c


def established(d: Dialogue) -> Connection:
    return d.connected()


def fin_wait_1(d: Dialogue) -> Connection:
    c = d.connected()
    c.close(d.now)
    d.one()
    return c


def fin_wait_2(d: Dialogue) -> Connection:
    c = fin_wait_1(d)
    d.send("A", 1, 2)
    return c


def closing(d: Dialogue) -> Connection:
    c = fin_wait_1(d)
    d.send("FA", 1, 1)
    d.one()
    return c


def time_wait(d: Dialogue) -> Connection:
    c = fin_wait_2(d)
    d.send("FA", 1, 2)
    d.one()
    return c


def close_wait(d: Dialogue) -> Connection:
    c = d.connected()
    d.send("FA", 1, 1)
    d.one()
    return c


def last_ack(d: Dialogue) -> Connection:
    c = close_wait(d)
    c.close(d.now)
    d.one()
    return c


WAYS: dict[State, Callable[[Dialogue], Connection]] = {
    State.SYN_SENT: syn_sent, State.SYN_RECEIVED: syn_received, State.ESTABLISHED: established,
    State.FIN_WAIT_1: fin_wait_1, State.FIN_WAIT_2: fin_wait_2, State.CLOSE_WAIT: close_wait, State.CLOSING: closing,
    State.LAST_ACK: last_ack, State.TIME_WAIT: time_wait,
}
PEER_NEXT = {State.CLOSE_WAIT: 2, State.CLOSING: 2, State.LAST_ACK: 2, State.TIME_WAIT: 2}
OWN_NEXT = {State.FIN_WAIT_1: 2, State.FIN_WAIT_2: 2, State.CLOSING: 2, State.LAST_ACK: 2, State.TIME_WAIT: 2}
SYNCHRONIZED = [s for s in WAYS if s >= State.ESTABLISHED]


@pytest.mark.parametrize("state", WAYS)
def test_each_state_is_reached(state: State) -> None:
    d = Dialogue()
    c = WAYS[state](d)
    assert c.state is state
    assert d.stack.connections == [c]
    d.nothing()


# Figure 5's arrows out of each state, by what arrives: (segment, next state, flags of the answer).
ARRIVALS = [
    (State.SYN_SENT, ("SA", 0, 1), State.ESTABLISHED, "A"),
    (State.SYN_SENT, ("S", 0, None), State.SYN_RECEIVED, "SA"),
    (State.SYN_SENT, ("RA", 0, 1), State.CLOSED, ""),
    (State.SYN_SENT, ("R", 0, None), State.SYN_SENT, ""),
    (State.SYN_SENT, ("A", 0, 1), State.SYN_SENT, ""),
    (State.SYN_SENT, ("FA", 0, 1), State.SYN_SENT, ""),
    (State.SYN_RECEIVED, ("A", 1, 1), State.ESTABLISHED, ""),
    (State.SYN_RECEIVED, ("FA", 1, 1), State.CLOSE_WAIT, "A"),
    (State.SYN_RECEIVED, ("S", 0, None), State.SYN_RECEIVED, "SA"),
    (State.SYN_RECEIVED, ("S", 50, None), State.CLOSED, ""),  # back to LISTEN
    (State.SYN_RECEIVED, ("R", 1, None), State.CLOSED, ""),
    (State.ESTABLISHED, ("FA", 1, 1), State.CLOSE_WAIT, "A"),
    (State.ESTABLISHED, ("R", 1, None), State.CLOSED, ""),
    (State.FIN_WAIT_1, ("A", 1, 2), State.FIN_WAIT_2, ""),
    (State.FIN_WAIT_1, ("FA", 1, 1), State.CLOSING, "A"),
    (State.FIN_WAIT_1, ("FA", 1, 2), State.TIME_WAIT, "A"),
    (State.FIN_WAIT_1, ("R", 1, None), State.CLOSED, ""),
    (State.FIN_WAIT_2, ("FA", 1, 2), State.TIME_WAIT, "A"),
    (State.FIN_WAIT_2, ("R", 1, None), State.CLOSED, ""),
    (State.CLOSE_WAIT, ("FA", 1, 1), State.CLOSE_WAIT, "A"),
    (State.CLOSE_WAIT, ("R", 2, None), State.CLOSED, ""),
    (State.CLOSING, ("A", 2, 2), State.TIME_WAIT, ""),
    (State.CLOSING, ("A", 2, 1), State.CLOSING, ""),
    (State.CLOSING, ("R", 2, None), State.CLOSED, ""),
    (State.LAST_ACK, ("A", 2, 2), State.CLOSED, ""),
    (State.LAST_ACK, ("A", 2, 1), State.LAST_ACK, ""),
    (State.LAST_ACK, ("FA", 1, 1), State.LAST_ACK, "A"),
    (State.TIME_WAIT, ("FA", 1, 2), State.TIME_WAIT, "A"),
    (State.TIME_WAIT, ("R", 2, None), State.CLOSED, ""),
]


@pytest.mark.parametrize(("state", "segment", "follows", "answer"), ARRIVALS)
def test_what_a_segment_leads_to(state: State, segment: tuple[str, int, int | None], follows: State,
                                 answer: str) -> None:
    d = Dialogue()
    c = WAYS[state](d)
    d.send(*segment)
    assert c.state is follows
    assert "".join(s.flags for s in d.sent()) == answer
    assert (c in d.stack.connections) == (follows is not State.CLOSED)


CALLS = [
    (State.SYN_SENT, "close", State.CLOSED, ""), (State.SYN_RECEIVED, "close", State.SYN_RECEIVED, ""),
    (State.ESTABLISHED, "close", State.FIN_WAIT_1, "FA"), (State.CLOSE_WAIT, "close", State.LAST_ACK, "FA"),
    (State.FIN_WAIT_2, "close", State.FIN_WAIT_2, ""), (State.TIME_WAIT, "close", State.TIME_WAIT, ""),
    (State.SYN_SENT, "abort", State.CLOSED, ""), (State.SYN_RECEIVED, "abort", State.CLOSED, "RA"),
    (State.ESTABLISHED, "abort", State.CLOSED, "RA"), (State.FIN_WAIT_1, "abort", State.CLOSED, "RA"),
    (State.FIN_WAIT_2, "abort", State.CLOSED, "RA"), (State.CLOSE_WAIT, "abort", State.CLOSED, "RA"),
    (State.CLOSING, "abort", State.CLOSED, ""), (State.LAST_ACK, "abort", State.CLOSED, ""),
    (State.TIME_WAIT, "abort", State.CLOSED, ""),
]


@pytest.mark.parametrize(("state", "call", "follows", "answer"), CALLS)
def test_what_a_call_leads_to(state: State, call: str, follows: State, answer: str) -> None:
    """§3.10.4 and §3.10.5."""
    d = Dialogue()
    c = WAYS[state](d)
    getattr(c, call)(d.now)
    assert c.state is follows
    assert "".join(s.flags for s in d.sent()) == answer


@pytest.mark.parametrize("state", SYNCHRONIZED)
def test_blind_reset_and_syn_are_challenged_in_each_state(state: State) -> None:
    """RFC 5961 §3.2 and §4.2: a number inside the window is not enough."""
    for flags, seq in (("R", 50), ("S", 50), ("S", 0), ("SA", 0)):
        d = Dialogue()
        c = WAYS[state](d)
        d.send(flags, seq, 1 if "A" in flags else None)
        challenge = d.one()
        assert (challenge.flags, challenge.ack) == ("A", PEER_NEXT.get(state, 1))
        assert c.state is state


@pytest.mark.parametrize("state", SYNCHRONIZED)
def test_blind_data_is_challenged_in_each_state(state: State) -> None:
    """RFC 5961 §5.2: the acknowledgement must fit, too: not ahead of SND.NXT, nor a window behind SND.UNA."""
    own = OWN_NEXT.get(state, 1)
    for ack in (own + 1, own + (1 << 30), own - 70000):
        d = Dialogue()
        c = WAYS[state](d)
        d.send("PA", PEER_NEXT.get(state, 1), ack, b"forged")
        assert d.one().flags == "A"
        assert c.state is state
        assert c.recv_available == 0


def test_challenges_are_throttled() -> None:
    """RFC 5961 §7."""
    d = Dialogue()
    established(d)
    for _ in range(100):
        d.send("R", 50)
    assert len(d.sent()) == 1
    d.advance(SECOND)
    d.send("R", 50)
    assert len(d.sent()) == 1


def test_simultaneous_open_with_crossing_syn_acks() -> None:
    """§3.5, figure 7, to its end: both SYN-ACKs cross, too, and each acknowledges."""
    d = Dialogue()
    c = syn_sent(d)
    d.send("S", 0, options=[("MSS", 1400)])
    answer = d.one()
    assert (answer.flags, answer.seq, answer.ack) == ("SA", 0, 1)
    d.send("SA", 0, 1, options=[("MSS", 1400)])
    assert c.state is State.ESTABLISHED
    assert c.mss == 1400
    queue(c, b"x")
    assert (d.sent()[-1].payload, c.state) == (b"x", State.ESTABLISHED)


def test_old_duplicate_syn() -> None:
    """§3.5, figure 8: the peer resets what its old SYN began, and its real SYN finds the listener."""
    d = Dialogue()
    listener = d.stack.listen(80, 4)
    d.send("S", 0)
    d.one()
    d.send("R", 1)  # <SEQ=SEG.ACK> of the SYN-ACK that it did not expect
    assert listener.half_open == 0
    d.send("S", 1000)
    assert d.one().ack == 1001
    d.send("A", 1001, 1)
    assert accept(listener).state is State.ESTABLISHED


def test_half_open_connection_is_discovered() -> None:
    """§3.5.1, figure 9: a peer that has started anew opens again, is told, and resets."""
    d = Dialogue()
    c = d.accepted()
    d.send("S", 5000)
    told = d.one()
    assert (told.flags, told.ack) == ("A", 1)
    d.send("R", told.ack)
    assert c.state is State.CLOSED
    assert isinstance(c.error, ConnectionResetError)
    d.send("S", 5000)
    assert d.one().flags == "SA"


def test_half_open_connection_is_discovered_by_sending() -> None:
    """§3.5.1, figure 10: this end sends, and the peer knows nothing of it."""
    d = Dialogue()
    c = d.connected()
    queue(c, b"hello")
    d.one()
    d.send("R", 1)  # <SEQ=SEG.ACK>
    assert isinstance(c.error, ConnectionResetError)


def test_data_on_a_syn_is_taken_when_it_comes_again() -> None:
    """§3.10.7.2 may queue text on a SYN; here it is not acknowledged, so the peer sends it again."""
    d = Dialogue()
    listener = d.stack.listen(80, 4)
    d.send("S", 0, payload=b"early")
    assert d.one().ack == 1
    d.send("A", 1, 1)
    c = accept(listener)
    d.send("PA", 1, 1, b"early")
    assert c.recv(10) == b"early"


def test_half_close_both_ways_in_turn() -> None:
    """The peer closes its half, and gets data for a long while after."""
    d = Dialogue()
    c = close_wait(d)
    for number in range(5):
        d.advance(60 * SECOND)
        queue(c, bytes([number]))
        assert d.sent()[-1].payload == bytes([number])
        d.send("A", 2, 2 + number)
    assert c.state is State.CLOSE_WAIT
    c.close(d.now)
    assert d.one().flags == "FA"
    d.send("A", 2, 7)
    assert c.state is State.CLOSED


def test_time_wait_lasts_from_the_last_fin() -> None:
    """§3.4.2, and §3.10.7.4: the timer starts anew with a FIN that comes again, not with anything else."""
    d = Dialogue()
    c = time_wait(d)
    d.advance(100 * SECOND)
    d.send("A", 2, 2)
    d.send("PA", 1, 2, b"x")
    d.sent()
    assert d.stack.next_deadline() == 240 * SECOND
    d.send("FA", 1, 2)
    assert d.one().ack == 2
    assert d.run_to_deadline() == 240 * SECOND
    assert c.state is State.CLOSED


@pytest.mark.parametrize(("value", "seq", "opens"), [(1000, 0, True), (100, 9, True), (100, 0, False), (99, 9, False),
                                                     (None, 9, True), (None, 0, False)])
def test_time_wait_is_reopened_by_a_newer_syn(value: int | None, seq: int, opens: bool) -> None:
    """RFC 6191 §2: by the timestamp, by the sequence number where that is the same, or where there is none."""
    d = Dialogue(replace(PLAIN, timestamps=True))
    listener = d.stack.listen(80, 4)
    d.send("S", 0, options=[("Timestamp", (100, 0))])
    stamp = d.one().options["Timestamp"][0]
    d.send("A", 1, 1, options=[("Timestamp", (100, stamp))])
    c = accept(listener)
    c.close(d.now)
    d.one()
    d.send("FA", 1, 2, options=[("Timestamp", (100, stamp))])
    d.one()
    assert c.state is State.TIME_WAIT
    d.advance(SECOND)
    d.send("S", seq, options=[] if value is None else [("Timestamp", (value, 0))])
    assert "".join(s.flags for s in d.sent()) == ("SA" if opens else "" if value is None else "A")
    assert (c.state is State.CLOSED) is opens


def test_number_of_a_reopened_connection_lies_behind_the_old_one() -> None:
    """RFC 9293 §3.6.1 (1), also where numbers were used faster than the clock of §3.4.1 gives them."""
    d = Dialogue(replace(PLAIN, initial_window_segments=100))
    c = d.accepted(window=65535)
    old = d.iss
    queue(c, bytes(60000))
    c.close(d.now)
    d.sent()
    d.send("FA", 1, 60002)
    d.one()
    assert c.state is State.TIME_WAIT
    d.now += MS
    d.send("S", 9, options=[("MSS", 1460)])
    assert d.one().flags == "SA"
    assert old is not None
    assert d.iss is not None
    assert 60001 < (d.iss - old) % (1 << 32) < 1 << 31


def test_a_syn_inside_the_window_of_a_simultaneous_open_is_challenged() -> None:
    """§3.10.7.4, fourth: only a connection that was opened passively returns to LISTEN."""
    d = Dialogue()
    c = syn_sent(d)
    d.send("S", 0)
    assert d.one().flags == "SA"
    d.send("S", 50)
    assert d.one().flags == "A"
    assert c.state is State.SYN_RECEIVED


def test_a_reset_behind_a_window_probe_stands_within_the_window() -> None:
    """§3.10.7.4, first: a peer drops a reset from beyond a closed window without an answer, and would never know."""
    d = Dialogue()
    c = d.accepted(window=0)
    queue(c, b"abc")
    d.nothing()
    d.run_to_deadline()
    assert d.one().payload == b"a"
    d.send("A", 1, 1, window=0)
    c.abort(d.now)
    assert [(s.flags, s.seq) for s in d.sent()] == [("RA", 1)]


@pytest.mark.parametrize(("option", "mss"), [(None, 536), (0, 536), (1, 28), (28, 28), (1460, 1460), (65535, 1460)])
def test_mss_of_the_peer(option: int | None, mss: int) -> None:
    """§3.7.1: none means 536; more than fits the own link is no use; a zero is an error, and so is next to nothing."""
    d = Dialogue()
    c = d.connected(options=[] if option is None else [("MSS", option)])
    assert c.mss == mss
    queue(c, bytes(3 * mss))
    assert {len(s.payload) for s in d.sent()} == {mss}


def test_own_numbers_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """§3.4: data crosses 2^32 in both directions, and acknowledgements with it."""
    d = Dialogue()
    monkeypatch.setattr(d.stack, "_initial_sequence_number", lambda *_: 0xFFFF_FFF0)
    c = d.connected()
    data = bytes(range(256)) * 20
    queue(c, data)
    got, ack = b"", 1
    while len(got) < len(data):
        for seen in d.sent():
            assert seen.seq == 1 + len(got)
            got += seen.payload
            ack = 1 + len(got)
        d.send("A", 1, ack)
    assert got == data
    assert c.acked_bytes == len(data)
    c.close(d.now)
    fin = d.one()
    assert fin.flags == "FA"
    d.send("FA", 1, fin.seq + 1)
    assert c.state is State.TIME_WAIT
