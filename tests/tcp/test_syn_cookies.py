"""Listeners under pressure: cookies in place of state (RFC 4987), and users that do not accept."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from host_driver.tcp import Connection, Listener, State
from host_driver.tcp.connection import timestamp
from host_driver.tcp.profile import SECOND
from host_driver.tcp.syn_cookies import MSS_CLASSES, Peer, SynCookies
from tests.tcp.dialogue import PLAIN, Dialogue, Seen, accept, queue

MINUTE = 60 * SECOND


def opened(d: Dialogue, port: int, *, mss: int = 1460) -> Seen:
    """A SYN from another port of the peer, and its answer."""
    d.peer_port, d.iss = port, None
    d.send("S", 0, options=[("MSS", mss)])
    return d.one()


def flooded(d: Dialogue, backlog: int = 2) -> Listener:
    """A listener whose handshakes are all taken."""
    listener = d.stack.listen(80, backlog)
    for port in range(backlog):
        opened(d, 1000 + port)
    assert listener.half_open == backlog
    assert d.stack.counters.cookies_sent == 0
    return listener


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("mss", [100, 536, 1299, 1300, 1440, 1460, 9000])
def test_handshake_of_which_nothing_is_kept(ipv6: bool, mss: int) -> None:
    d = Dialogue(ipv6=ipv6)
    listener = flooded(d)
    before = len(d.stack.connections)
    answer = opened(d, 5000, mss=mss)
    assert (answer.flags, answer.ack) == ("SA", 1)
    assert answer.options == {"MSS": 1440 if ipv6 else 1460}
    assert len(d.stack.connections) == before
    d.advance(SECOND // 10)
    d.send("A", 1, 1)
    c = accept(listener)
    assert c.state is State.ESTABLISHED
    assert (c.remote.port, c.mss) == (5000, max([m for m in MSS_CLASSES[ipv6] if m <= min(mss, answer.options["MSS"])],
                                                default=MSS_CLASSES[ipv6][0]))
    counters = d.stack.counters
    assert (counters.cookies_sent, counters.cookies_accepted, counters.cookies_refused) == (1, 1, 0)
    exchange(d, c)


def exchange(d: Dialogue, c: Connection) -> None:
    """Data both ways, and the end."""
    d.send("PA", 1, 1, b"GET /")
    assert c.recv(10) == b"GET /"
    queue(c, b"hello")
    assert d.sent()[-1].payload == b"hello"
    d.send("A", 6, 6)
    c.close(d.now)
    fin = d.one()
    assert (fin.flags, fin.seq) == ("FA", 6)
    d.send("FA", 6, 7)
    assert c.state is State.TIME_WAIT
    assert d.one().ack == 7


@pytest.mark.parametrize("scale", [None, 0, 7, 14])
@pytest.mark.parametrize("sack", [False, True])
def test_timestamps_keep_the_other_options(scale: int | None, sack: bool) -> None:
    d = Dialogue(replace(PLAIN, timestamps=True, sack=True, window_scale=3))
    listener = flooded(d)
    d.now = 77 * SECOND
    d.sent()
    d.peer_port, d.iss = 5000, None
    options: list[Any] = [("MSS", 1460), ("Timestamp", (500, 0))]
    options += [] if scale is None else [("WScale", scale)]
    options += [("SAckOK", b"")] if sack else []
    d.send("S", 0, options=options)
    answer = d.one()
    value, echo = answer.options["Timestamp"]
    assert echo == 500
    assert answer.options.get("WScale") == (None if scale is None else 3)
    assert ("SAckOK" in answer.options) is sack
    assert d.iss is not None
    clock = timestamp(d.now, d.iss)
    assert 0 <= clock - value < 128, "not later than the clock"
    d.send("A", 1, 1, window=500, options=[("Timestamp", (501, value))])
    c = accept(listener)
    assert c.mss == 1460 - 12
    assert c.sender.snd_wnd == 500 << (scale or 0)
    assert (c.receiver.shift, c.receiver.ts_recent) == (0 if scale is None else 3, 501)
    queue(c, b"x")
    assert d.one().options["Timestamp"] == (clock, 501)
    if sack:
        d.send("A", 11, 1, b"late", options=[("Timestamp", (502, clock))])
        assert d.one().options["SAck"]


def test_cookie_for_a_peer_without_timestamps_has_no_scale() -> None:
    d = Dialogue(replace(PLAIN, timestamps=True, window_scale=3))
    flooded(d)
    d.peer_port, d.iss = 5000, None
    d.send("S", 0, options=[("MSS", 1460), ("WScale", 7)])
    assert d.one().options == {"MSS": 1460}


def test_data_may_come_with_the_cookie() -> None:
    """The bare acknowledgement was lost: the first data brings the cookie."""
    d = Dialogue()
    listener = flooded(d)
    opened(d, 5000)
    d.send("PA", 1, 1, b"GET /")
    c = accept(listener)
    assert c.recv(10) == b"GET /"


def test_later_data_does_not_end_what_the_first_can_begin() -> None:
    """The first segment was lost, or found the accept queue full: only it can bring the cookie."""
    d = Dialogue()
    listener = flooded(d)
    opened(d, 5000)
    d.send("A", 101, 1, bytes(100))
    d.nothing()
    assert d.stack.counters.cookies_refused == 1
    d.send("A", 1, 1, bytes(100))
    assert accept(listener).recv_available == 100


def test_round_trips_are_not_measured_from_a_cookie() -> None:
    d = Dialogue()
    listener = flooded(d)
    opened(d, 5000)
    d.send("A", 1, 1)
    c = accept(listener)
    queue(c, b"x")
    d.one()
    at = d.now
    d.run_to_deadline()
    assert d.now - at == SECOND, "the initial timeout"
    assert c.retransmitted_segments == 0


@pytest.mark.parametrize("wrong", ["ack", "sequence", "port", "old"])
def test_forged_and_old_cookies_are_refused(wrong: str) -> None:
    d = Dialogue()
    listener = flooded(d)
    opened(d, 5000)
    iss = d.iss
    if wrong == "old":
        d.now += 2 * MINUTE
        opened(d, 5001)
        d.peer_port, d.iss = 5000, iss
    if wrong == "port":
        d.peer_port = 5007
    d.send("A", 2 if wrong == "sequence" else 1, 2 if wrong == "ack" else 1)
    assert d.stack.counters.cookies_refused == 1
    assert [s.flags for s in d.sent()] == ["R"]
    assert not listener.acceptable


def test_acknowledgements_are_no_cookies_when_none_were_sent() -> None:
    d = Dialogue()
    d.stack.listen(80, 4)
    d.iss = 0
    d.send("A", 1, 1)
    assert d.one().flags == "R"
    assert d.stack.counters.cookies_refused == 0


def test_flood_of_1000_keeps_no_state_and_lets_others_through() -> None:
    d = Dialogue()
    listener = flooded(d, 16)
    for port in range(1000):
        opened(d, 2000 + port)
    assert len(d.stack.connections) == 16
    for port in range(10):
        opened(d, 30000 + port)
        d.send("A", 1, 1)
        exchange(d, accept(listener))
    assert d.stack.counters.cookies_accepted == 10


def test_profile_without_cookies_drops() -> None:
    d = Dialogue(replace(PLAIN, syn_cookies=False))
    flooded(d)
    d.peer_port = 5000
    d.send("S", 0)
    d.nothing()
    assert d.stack.counters.backlog_full == 1


def test_user_that_does_not_accept() -> None:
    """As Linux: the last acknowledgement is forgotten, the SYN-ACK comes again, and further SYNs are dropped."""
    d = Dialogue()
    listener = d.stack.listen(80, 2)
    for port in (1, 2):
        opened(d, port)
        d.send("A", 1, 1)
    assert listener.is_accept_queue_full
    d.peer_port = 3
    d.send("S", 0)
    d.nothing()
    assert d.stack.counters.backlog_full == 1
    accept(listener)
    opened(d, 3)
    iss = d.iss
    opened(d, 4)
    d.send("A", 1, 1)
    assert listener.is_accept_queue_full
    d.peer_port, d.iss = 3, iss
    d.send("A", 1, 1)
    assert d.stack.counters.accept_full == 1
    d.run_to_deadline()
    assert d.one().flags == "SA"
    accept(listener)
    d.send("A", 1, 1)
    accept(listener)
    assert accept(listener).remote.port == 3


def test_full_accept_queue_sends_no_cookie_and_takes_none() -> None:
    d = Dialogue()
    listener = flooded(d, 1)
    opened(d, 5000)
    d.send("A", 1, 1)
    assert listener.is_accept_queue_full
    d.peer_port = 5001
    d.send("S", 0)
    d.nothing()
    d.peer_port = 1000
    assert d.stack.counters.cookies_sent == 1


@pytest.mark.parametrize("seed", range(20))
def test_what_a_cookie_says(seed: int) -> None:
    rng = random.Random(seed)
    cookies = SynCookies(rng.randbytes(16))
    size = rng.choice([4, 16])
    peer = Peer(rng.randbytes(size), rng.randbytes(size), rng.randrange(1 << 16), 80, rng.randrange(1 << 32))
    now = rng.randrange(10**6) * SECOND
    for mss in MSS_CLASSES[size == 16]:
        cookie = cookies.make(peer, mss, now)
        for later in (0, MINUTE - now % MINUTE, 2 * MINUTE - now % MINUTE - 1):
            assert cookies.read(peer, cookie, now + later) == mss
        assert cookies.read(peer, cookie, now + 2 * MINUTE) is None
        assert cookies.read(peer._replace(source_port=peer.source_port ^ 1), cookie, now) is None
        assert SynCookies(b"another secret..").read(peer, cookie, now) is None
    wrong = sum(cookies.read(peer, rng.randrange(1 << 32), now) is not None for _ in range(10000))
    assert wrong <= 1, "a guess is right once in 2^29"
