"""Explicit congestion notification: dialogues with the IP header's codepoint and the flags of TCP."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from host_driver.tcp import Connection, Ecn
from host_driver.tcp.profile import MS
from tests.tcp.dialogue import PEER_ISS, PLAIN, Dialogue, Seen, accept, queue

REQUESTING = replace(PLAIN, name="requesting", ecn=Ecn.REQUEST, initial_window_segments=10)
ACCEPTING = replace(REQUESTING, name="accepting", ecn=Ecn.ACCEPT)
MSS = 1460
CE, ECT_0 = 3, 2


def codepoint(segment: Seen) -> int:
    """Of the IP header that the stack built, as scapy reads it."""
    packet = Ether(segment.out.header)
    return (packet[IPv6].tc if segment.out.ipv6 else packet[IP].tos) & 3


def opened(d: Dialogue) -> Connection:
    """A connection on which both agreed."""
    listener = d.stack.listen(80, 1)
    d.send("SEC", 0, options=[("MSS", MSS)])
    assert d.one().flags == "SAE"
    d.send("A", 1, 1)
    return accept(listener)


def send_marked(d: Dialogue, seq: int, ack: int, payload: bytes, flags: str = "A") -> None:
    """The peer sends data that a router marked."""
    ip = (IPv6(src=d.ip[1], dst=d.ip[0], tc=CE) if d.ipv6 else IP(src=d.ip[1], dst=d.ip[0], tos=CE))
    packet = (Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / ip
              / TCP(sport=d.peer_port, dport=d.port, flags=flags, seq=(PEER_ISS + seq) % (1 << 32),
                    ack=((d.iss or 0) + ack) % (1 << 32), window=60000) / payload)
    d.stack.receive(bytes(packet), d.now)


@pytest.mark.parametrize(
    ("ecn", "syn", "answer"),
    [(Ecn.OFF, "SEC", "SA"), (Ecn.ACCEPT, "SEC", "SAE"), (Ecn.REQUEST, "SEC", "SAE"), (Ecn.ACCEPT, "S", "SA"),
     (Ecn.ACCEPT, "SE", "SA"), (Ecn.ACCEPT, "SC", "SA")],
)
def test_the_answer_to_a_syn(ecn: Ecn, syn: str, answer: str) -> None:
    """RFC 3168 §6.1.1: an ECN-setup SYN has both flags, the SYN-ACK ECE alone."""
    d = Dialogue(replace(REQUESTING, ecn=ecn))
    listener = d.stack.listen(80, 1)
    d.send(syn, 0, options=[("MSS", MSS)])
    reply = d.one()
    assert (reply.flags, codepoint(reply)) == (answer, 0)
    d.send("A", 1, 1)
    queue(accept(listener), b"data")
    assert codepoint(d.one()) == (ECT_0 if answer == "SAE" else 0)


@pytest.mark.parametrize(("ecn", "syn"), [(Ecn.OFF, "S"), (Ecn.ACCEPT, "S"), (Ecn.REQUEST, "SEC")])
@pytest.mark.parametrize("answer", ["SA", "SAE", "SAEC"])
def test_an_active_open(ecn: Ecn, syn: str, answer: str) -> None:
    """§6.1.1; a SYN-ACK with both flags comes from a host that merely reflects them."""
    d = Dialogue(replace(REQUESTING, ecn=ecn))
    d.port, d.peer_port = 0, 80
    c = d.stack.connect(d.ip[1], 80, d.now)
    first = d.one()
    assert (first.flags, codepoint(first)) == (syn, 0)
    d.send(answer, 0, 1, options=[("MSS", MSS)])
    d.one()
    queue(c, b"data")
    assert codepoint(d.one()) == (ECT_0 if (syn, answer) == ("SEC", "SAE") else 0)


def test_a_syn_that_was_lost_asks_no_longer() -> None:
    """§6.1.1.1: something on the way may drop it for its flags."""
    d = Dialogue(REQUESTING)
    d.port, d.peer_port = 0, 80
    d.stack.connect(d.ip[1], 80, d.now)
    assert d.one().flags == "SEC"
    d.run_to_deadline()
    assert d.one().flags == "S"


@pytest.mark.parametrize("ipv6", [False, True])
def test_new_data_only_is_capable(ipv6: bool) -> None:
    """§6.1.4, §6.1.5, §6.1.6: not pure acknowledgements, retransmissions or window probes."""
    d = Dialogue(ACCEPTING, ipv6=ipv6)
    c = opened(d)
    queue(c, b"data")
    assert codepoint(d.one()) == ECT_0
    d.run_to_deadline()
    again = d.one()
    assert (again.out.is_retransmission, codepoint(again)) == (True, 0)
    d.send("A", 1, 5, window=0)
    queue(c, b"more")
    d.nothing()
    d.run_to_deadline()
    probe = d.one()
    assert (probe.payload, codepoint(probe)) == (b"m", 0)
    d.send("PA", 1, 5, b"x", window=0)
    d.run_to_deadline()
    assert {codepoint(s) for s in d.sent() if not s.payload} == {0}


@pytest.mark.parametrize("ipv6", [False, True])
def test_a_mark_is_echoed_until_the_peer_has_heard(ipv6: bool) -> None:
    """§6.1.3."""
    d = Dialogue(ACCEPTING, ipv6=ipv6)
    opened(d)
    send_marked(d, 1, 1, bytes(MSS))
    d.send("A", 1 + MSS, 1, bytes(MSS))
    assert d.one().flags == "AE"
    for number in (2, 3):
        d.send("A", 1 + number * MSS, 1, bytes(MSS))
    assert d.one().flags == "AE"
    d.send("AC", 1 + 4 * MSS, 1, bytes(MSS))
    d.send("A", 1 + 5 * MSS, 1, bytes(MSS))
    assert d.one().flags == "A"
    send_marked(d, 1 + 6 * MSS, 1, bytes(MSS), flags="AC")  # the answer to the first mark is marked itself
    d.send("A", 1 + 7 * MSS, 1, bytes(MSS))
    assert d.one().flags == "AE"


def test_marks_mean_nothing_unless_agreed_on() -> None:
    d = Dialogue(ACCEPTING)
    d.accepted()
    send_marked(d, 1, 1, bytes(MSS))
    d.send("A", 1 + MSS, 1, bytes(MSS))
    assert d.one().flags == "A"


def test_an_echo_halves_the_window_once_a_round_trip() -> None:
    """§6.1.2: like a loss, without one; and the first new segment says CWR."""
    d = Dialogue(ACCEPTING)
    c = opened(d)
    queue(c, bytes(40 * MSS))
    assert len(d.sent()) == 10
    d.now += 10 * MS
    d.send("AE", 1, 1 + MSS)
    d.send("AE", 1, 1 + 2 * MSS)
    d.send("AE", 1, 1 + 4 * MSS)
    d.nothing()  # 6 are out, and the window is 4 or 5
    assert c.retransmitted_segments == 0
    d.send("AE", 1, 1 + 8 * MSS)
    first, *others = d.sent()
    assert (first.flags, {s.flags for s in others}) == ("AC", {"A"})
    assert 4 <= 2 + 1 + len(others) <= 5
    d.send("AE", 1, 1 + 11 * MSS)  # beyond what was out: a new mark
    assert c.sender.control.reductions == 2


def test_a_loss_is_told_with_cwr_too() -> None:
    """§6.1.2: "reduces its congestion window for any reason"."""
    d = Dialogue(ACCEPTING)
    c = opened(d)
    queue(c, bytes(10 * MSS))
    d.sent()
    for _ in range(3):
        d.send("A", 1, 1)
    again = d.one()
    assert (again.out.is_retransmission, again.flags) == (True, "A")
    d.send("A", 1, 1 + 10 * MSS)
    queue(c, bytes(4 * MSS))
    assert d.sent()[0].flags == "AC"
    assert c.sender.control.reductions == 1
