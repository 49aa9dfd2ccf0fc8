"""Opening, closing and resetting connections: dialogues, each with the point of RFC 9293 that it follows."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from host_driver.tcp import LINUX24, RFC, Stack, State
from host_driver.tcp.profile import MS, SECOND
from tests.tcp.dialogue import PEER_ISS, PEER_MAC, PLAIN, Dialogue, accept, queue


@pytest.mark.parametrize("ipv6", [False, True])
def test_active_open(ipv6: bool) -> None:
    """§3.5, figure 6, the left side."""
    d = Dialogue(ipv6=ipv6)
    d.peer_port = 80
    connection = d.stack.connect(d.ip[1], 80, 0)
    assert connection.state is State.SYN_SENT
    syn = d.one()
    assert (syn.flags, syn.seq, syn.options) == ("S", 0, {"MSS": 1440 if ipv6 else 1460})
    d.send("SA", 0, 1, options=[("MSS", 1400)])
    ack = d.one()
    assert (ack.flags, ack.seq, ack.ack, ack.options) == ("A", 1, 1, {})
    assert connection.state is State.ESTABLISHED
    assert connection.mss == 1400
    assert d.stack.next_deadline() is None


@pytest.mark.parametrize("ipv6", [False, True])
def test_passive_open(ipv6: bool) -> None:
    """§3.5, figure 6, the right side."""
    d = Dialogue(ipv6=ipv6)
    listener = d.stack.listen(80, 4)
    accepted = []
    listener.on_event = accepted.append
    d.send("S", 0, options=[("MSS", 1460)])
    answer = d.one()
    assert (answer.flags, answer.seq, answer.ack) == ("SA", 0, 1)
    assert not listener.acceptable
    d.send("A", 1, 1)
    assert accepted == [listener]
    connection = accept(listener)
    assert connection.state is State.ESTABLISHED
    assert (str(connection.remote.ip), connection.remote.port) == (d.ip[1], 4000)
    d.nothing()


def test_data_that_completes_the_handshake_is_delivered() -> None:
    d = Dialogue()
    listener = d.stack.listen(80, 4)
    d.send("S", 0)
    d.one()
    d.send("PA", 1, 1, b"GET /")
    assert accept(listener).recv(100) == b"GET /"


def test_simultaneous_open() -> None:
    """§3.5, figure 7: SYN crosses SYN."""
    d = Dialogue()
    d.peer_port = 80
    connection = d.stack.connect(d.ip[1], 80, 0)
    d.one()
    d.send("S", 0, options=[("MSS", 1460)])
    assert connection.state is State.SYN_RECEIVED
    answer = d.one()
    assert (answer.flags, answer.seq, answer.ack) == ("SA", 0, 1)
    d.send("SA", 0, 1, options=[("MSS", 1460)])
    assert connection.state is State.ESTABLISHED
    queue(connection, b"x")
    data = d.one()
    assert (data.seq, data.ack, data.payload) == (1, 1, b"x")


def test_lost_syn_is_repeated_and_slows_the_start() -> None:
    """RFC 6298 §5.5 and §5.7, RFC 5681 §3.1."""
    d = Dialogue()
    d.peer_port = 80
    connection = d.stack.connect(d.ip[1], 80, 0)
    d.one()
    assert d.run_to_deadline() == SECOND
    assert d.one().flags == "S"
    assert d.run_to_deadline() == 2 * SECOND
    assert d.one().flags == "S"
    d.send("SA", 0, 1, options=[("MSS", 1000)])
    d.one()
    queue(connection, bytes(5000))
    assert [len(s.payload) for s in d.sent()] == [1000]  # one segment, not four
    assert d.run_to_deadline() == 3 * SECOND  # the doubled timeout was forgotten, 3 s are the rule


def test_lost_syn_ack_is_repeated() -> None:
    d = Dialogue()
    listener = d.stack.listen(80, 4)
    d.send("S", 0)
    assert d.one().flags == "SA"
    d.send("S", 0)  # the peer's timer was quicker
    again = d.one()
    assert (again.flags, again.seq, again.ack) == ("SA", 0, 1)
    d.run_to_deadline()
    assert d.one().flags == "SA"
    d.send("A", 1, 1)
    assert accept(listener).state is State.ESTABLISHED


def test_connect_gives_up() -> None:
    d = Dialogue(replace(PLAIN, max_syn_retransmissions=2))
    d.peer_port = 80
    connection = d.stack.connect(d.ip[1], 80, 0)
    events = []
    connection.on_event = lambda c: events.append(c.state)
    for _ in range(3):
        assert d.one().flags == "S"
        d.run_to_deadline()
    d.nothing()
    assert connection.state is State.CLOSED
    assert isinstance(connection.error, TimeoutError)
    assert events == [State.CLOSED]
    assert d.stack.next_deadline() is None


def test_refused() -> None:
    """§3.10.7.3, second: a RST with an acceptable ACK."""
    d = Dialogue()
    d.peer_port = 80
    connection = d.stack.connect(d.ip[1], 80, 0)
    d.one()
    d.send("R", 0)  # no ACK: dropped
    assert connection.state is State.SYN_SENT
    d.send("RA", 0, 1)
    assert connection.state is State.CLOSED
    assert isinstance(connection.error, ConnectionRefusedError)


def test_wrong_ack_in_syn_sent_is_answered_by_a_reset() -> None:
    """§3.10.7.3, first."""
    d = Dialogue()
    d.peer_port = 80
    connection = d.stack.connect(d.ip[1], 80, 0)
    d.one()
    d.send("A", 0, 77)
    reset = d.one()
    assert (reset.flags, reset.seq) == ("R", 77)
    assert connection.state is State.SYN_SENT


def test_segments_of_no_connection() -> None:
    """§3.10.7.1."""
    d = Dialogue()
    d.iss = 0
    d.send("S", 0)
    (out,) = d.stack.transmit(0)
    assert out.connection is None
    d.send("A", 5, 1234)
    d.send("FPA", 7, 99, b"abc")
    d.send("R", 7)
    assert [(s.flags, s.seq) for s in d.sent()] == [("R", 1234), ("R", 99)]
    d.send("S", 0)
    reset = d._read(d.stack.transmit(0)[0])
    assert (reset.flags, reset.seq, reset.ack) == ("RA", 0, 1)
    assert d.stack.counters.resets_sent == 4


def test_ack_to_a_listener_is_reset_and_rst_ignored() -> None:
    """§3.10.7.2."""
    d = Dialogue()
    d.iss = 0
    d.stack.listen(80, 4)
    d.send("R", 3)
    d.nothing()
    d.send("A", 3, 5)
    assert d.one().flags == "R"


def test_wrong_ack_in_syn_received_is_reset() -> None:
    """§3.10.7.4, fifth, SYN-RECEIVED."""
    d = Dialogue()
    listener = d.stack.listen(80, 4)
    d.send("S", 0)
    d.one()
    d.send("A", 1, 500)
    reset = d.one()
    assert (reset.flags, reset.seq) == ("R", 500)
    assert not listener.acceptable
    assert listener.half_open == 1
    d.send("R", 1)
    assert listener.half_open == 0
    assert d.stack.connections == []


def test_syn_without_room_is_dropped() -> None:
    d = Dialogue(replace(PLAIN, syn_cookies=False))
    listener = d.stack.listen(80, 2)
    for port in (1, 2, 3):
        d.peer_port = port
        d.send("S", 0)
        d.iss = None
        out = d.stack.transmit(0)
        assert len(out) == (1 if port < 3 else 0)
    assert d.stack.counters.backlog_full == 1
    assert listener.is_full


def test_active_close_through_all_states() -> None:
    """§3.6, figure 12; the 2 MSL of TIME-WAIT."""
    d = Dialogue()
    c = d.connected()
    queue(c, b"bye")
    c.close(d.now)
    assert c.state is State.FIN_WAIT_1
    assert c.send_space == 0
    fin = d.one()
    assert (fin.flags, fin.seq, fin.payload) == ("FPA", 1, b"bye")
    d.send("A", 1, 5)
    assert c.state is State.FIN_WAIT_2
    assert c.acked_bytes == 3
    d.send("FA", 1, 5)
    assert c.state is State.TIME_WAIT
    ack = d.one()
    assert (ack.flags, ack.seq, ack.ack) == ("A", 5, 2)
    d.advance(SECOND)
    d.send("FA", 1, 5)  # "a retransmission of the remote FIN: acknowledge it, and restart the 2 MSL timeout"
    assert d.one().ack == 2
    assert d.run_to_deadline() == 240 * SECOND
    assert c.state is State.CLOSED
    assert c.error is None
    assert d.stack.connections == []
    assert d.stack.next_deadline() is None


def test_passive_close() -> None:
    d = Dialogue()
    c = d.accepted()
    d.send("FPA", 1, 1, b"request")
    assert c.state is State.CLOSE_WAIT
    assert d.one().ack == 9
    assert not c.peer_closed or c.recv_available == 7
    assert c.recv(100) == b"request"
    assert c.peer_closed
    assert c.recv(100) == b""
    queue(c, b"answer")  # half-close: the other direction still works
    assert d.one().payload == b"answer"
    c.close(d.now)
    assert c.state is State.LAST_ACK
    fin = d.one()
    assert (fin.flags, fin.seq) == ("FA", 7)
    d.send("A", 9, 8)
    assert c.state is State.CLOSED
    assert c.error is None


def test_half_close_still_receives() -> None:
    d = Dialogue()
    c = d.connected()
    c.close(d.now)
    d.one()
    d.send("A", 1, 2)
    for number in range(4):
        d.send("PA", 1 + 100 * number, 2, bytes(100))
    assert len(c.recv(1000)) == 400
    assert c.state is State.FIN_WAIT_2
    d.send("FA", 401, 2)
    assert c.peer_closed


def test_simultaneous_close() -> None:
    """§3.6, figure 13: FIN crosses FIN."""
    d = Dialogue()
    c = d.connected()
    c.close(d.now)
    assert d.one().flags == "FA"
    d.send("FA", 1, 1)
    assert c.state is State.CLOSING
    assert d.one().ack == 2
    d.send("A", 2, 2)
    assert c.state is State.TIME_WAIT


def test_fin_with_the_ack_of_the_own_fin() -> None:
    d = Dialogue()
    c = d.connected()
    c.close(d.now)
    d.one()
    d.send("FA", 1, 2)
    assert c.state is State.TIME_WAIT


def test_lost_fin_is_sent_again() -> None:
    d = Dialogue()
    c = d.connected()
    c.close(d.now)
    d.one()
    d.run_to_deadline()
    fin = d.one()
    assert (fin.flags, fin.seq, fin.out.is_retransmission) == ("FA", 1, True)


def test_fin_ahead_of_missing_data_waits() -> None:
    d = Dialogue()
    c = d.accepted()
    d.send("FA", 4, 1)
    assert c.state is State.ESTABLISHED
    assert d.one().ack == 1
    d.send("PA", 1, 1, b"abc")
    assert c.state is State.CLOSE_WAIT
    assert d.one().ack == 5
    assert c.recv(10) == b"abc"


def test_close_during_the_handshake() -> None:
    """§3.10.4: SYN-SENT deletes the TCB; SYN-RECEIVED queues until ESTABLISHED."""
    d = Dialogue()
    d.peer_port = 80
    c = d.stack.connect(d.ip[1], 80, 0)
    d.one()
    c.close(d.now)
    assert c.state is State.CLOSED
    d = Dialogue()
    d.peer_port = 80
    c = d.stack.connect(d.ip[1], 80, 0)
    d.one()
    d.send("S", 0)
    assert d.one().flags == "SA"
    c.close(d.now)
    assert c.state is State.SYN_RECEIVED
    d.nothing()
    d.send("A", 1, 1)
    assert c.state is State.FIN_WAIT_1
    assert d.one().flags == "FA"


def test_abort_sends_a_reset_and_releases_memory() -> None:
    """§3.10.5."""
    d = Dialogue()
    c = d.connected()
    queue(c, b"abc")
    d.one()
    c.abort(d.now)
    reset = d.one()
    assert (reset.flags, reset.seq) == ("RA", 4)
    assert isinstance(c.error, ConnectionAbortedError)
    assert d.stack.connections == []


def test_reset_must_match_exactly() -> None:
    """RFC 5961 §3.2: blind resets are answered by a challenge."""
    d = Dialogue()
    c = d.connected()
    d.send("R", 100)
    challenge = d.one()
    assert (challenge.flags, challenge.seq, challenge.ack) == ("A", 1, 1)
    d.send("R", 100)
    d.nothing()  # §7: throttled
    d.send("R", 1 << 30)
    d.nothing()  # outside the window: dropped
    assert c.state is State.ESTABLISHED
    d.send("R", 1)
    assert c.state is State.CLOSED
    assert isinstance(c.error, ConnectionResetError)
    with pytest.raises(ConnectionResetError):
        c.recv(1)
    with pytest.raises(ConnectionResetError):
        queue(c, b"x")


@pytest.mark.parametrize("acked", [False, True])
def test_reset_in_last_ack_is_an_error_only_if_data_is_missing(acked: bool) -> None:
    d = Dialogue()
    c = d.accepted()
    d.send("FA", 1, 1)
    queue(c, b"answer")
    c.close(d.now)
    d.sent()
    d.send("A", 2, 7 if acked else 1)
    d.send("R", 2)
    assert c.state is State.CLOSED
    assert (c.error is None) is acked


def test_syn_in_a_connection_is_challenged() -> None:
    """RFC 5961 §4.2."""
    d = Dialogue()
    c = d.connected()
    d.send("S", 5)
    assert d.one().flags == "A"
    assert c.state is State.ESTABLISHED


def test_acknowledgement_of_what_was_not_sent() -> None:
    """§3.10.7.4, fifth, and RFC 5961 §5.2: an ACK, and the segment is dropped."""
    d = Dialogue()
    c = d.connected()
    d.send("PA", 1, 1000, b"evil")
    assert d.one().ack == 1
    d.advance(SECOND)
    d.send("PA", 1, 1 - 70000, b"evil")
    assert d.one().ack == 1
    assert c.recv_available == 0


def test_old_and_foreign_segments_are_acknowledged_and_dropped() -> None:
    """§3.10.7.4, first: not acceptable."""
    d = Dialogue()
    c = d.accepted()
    d.send("PA", 1, 1, b"hello")
    assert c.recv(10) == b"hello"
    d.advance(SECOND)
    d.sent()
    d.send("PA", 1, 1, b"hello")
    assert d.one().ack == 6
    d.send("PA", 80000, 1, b"beyond")
    assert d.one().ack == 6
    assert c.recv_available == 0


def test_syn_may_reopen_from_time_wait() -> None:
    """§3.6.1: with a sequence number above all of the old connection."""
    d = Dialogue()
    listener = d.stack.listen(80, 4)
    d.send("S", 0)
    d.one()
    d.send("A", 1, 1)
    c = accept(listener)
    c.close(d.now)
    d.one()
    d.send("FA", 1, 2)
    d.one()
    assert c.state is State.TIME_WAIT
    d.advance(SECOND)
    d.send("S", 0)  # an old duplicate is only acknowledged
    assert d.one().flags == "A"
    d.send("S", 100000)
    assert d.one().flags == "SA"
    assert c.state is State.CLOSED
    assert c.error is None
    d.send("A", 100001, 1)
    assert accept(listener).state is State.ESTABLISHED


def test_listener_close_resets_what_nobody_accepted() -> None:
    d = Dialogue()
    listener = d.stack.listen(80, 4)
    d.send("S", 0)
    d.one()
    d.send("A", 1, 1)
    listener.close(d.now)
    assert d.one().flags == "RA"
    d.send("S", 0)
    assert d._read(d.stack.transmit(0)[0]).flags == "RA"
    d.stack.listen(80, 1)


def test_delayed_fin_ack_rides_on_the_own_fin() -> None:
    """Linux's tcp_fin: an application that closes at once saves a segment."""
    d = Dialogue(LINUX24)
    c = d.accepted()
    d.send("FA", 1, 1)
    d.nothing()
    assert c.state is State.CLOSE_WAIT
    c.close(d.now)
    fin = d.one()
    assert (fin.flags, fin.ack) == ("FA", 2)
    d = Dialogue(LINUX24)
    d.accepted()
    d.send("FA", 1, 1)
    assert d.run_to_deadline() == 40 * MS
    assert d.one().ack == 2


def test_wrong_uses_are_named() -> None:
    d = Dialogue()
    with pytest.raises(ValueError, match="no route"):
        d.stack.connect("224.0.0.9", 80, 0)
    with pytest.raises(ValueError, match="peer fd00::9"):
        d.stack.connect("fd00::9", 80, 0)
    d.stack.listen(80, 1)
    with pytest.raises(ValueError, match="already"):
        d.stack.listen(80, 1)
    c = d.stack.connect(d.ip[1], 80, 0, local_port=5)
    with pytest.raises(ValueError, match="in use"):
        d.stack.connect(d.ip[1], 80, 0, local_port=5)
    c.close(0)
    with pytest.raises(BrokenPipeError):
        queue(c, b"x")
    with pytest.raises(ValueError, match="neighbour"):
        d.stack.add_neighbour("fd00::9", PEER_MAC)
    with pytest.raises(ValueError, match="mtu"):
        Stack(mac=PEER_MAC, ip="10.0.0.1", profile=RFC, mtu=40, account=d.account, rng=random.Random(1))


def test_ports_and_sequence_numbers_differ_between_connections() -> None:
    d = Dialogue()
    connections = [d.stack.connect(d.ip[1], 80, 0) for _ in range(50)]
    assert len({c.local.port for c in connections}) == 50
    assert len({c.sender.snd_una for c in connections}) == 50


def test_closed_from_inside_an_event() -> None:
    """An application may abort when it is told of data; nothing of the segment is processed afterwards."""
    for call in ("close", "abort"):
        d = Dialogue()
        c = d.accepted()
        c.on_event = lambda c, call=call, d=d: c.recv_available and c.recv(100) and getattr(c, call)(d.now)
        d.send("PA", 1, 1, b"x" * 10)
        assert d.sent()[-1].flags == ("FA" if call == "close" else "RA")


def test_peer_sequence_numbers_wrap() -> None:
    assert PEER_ISS + 5000 > 1 << 32
    d = Dialogue()
    c = d.accepted()
    for start in itertools.islice(itertools.count(1, 100), 50):
        d.send("PA", start, 1, bytes(100))
    assert len(c.recv(10000)) == 5000
    assert d.sent()[-1].ack == 5001
