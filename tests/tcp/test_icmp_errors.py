"""ICMP errors about segments: what ends a connection, what is only noted, and how large packets may be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from host_driver.tcp import Connection, Nagle, State
from host_driver.tcp.profile import SECOND
from tests.tcp.dialogue import PLAIN, Dialogue, Seen, queue

ROUTER4, ROUTER6 = "10.0.0.9", "fd00::9"

PORT = {False: ICMP(type=3, code=3), True: ICMPv6DestUnreach(code=4)}
HOST = {False: ICMP(type=3, code=1), True: ICMPv6DestUnreach(code=3)}
HARD = [(False, ICMP(type=3, code=2)), (False, PORT[False]), (True, PORT[True]), (True, ICMPv6DestUnreach(code=1))]
SOFT = [(False, ICMP(type=3, code=0)), (False, HOST[False]), (False, ICMP(type=3, code=5)),
        (False, ICMP(type=11, code=0)), (False, ICMP(type=12)), (True, ICMPv6DestUnreach(code=0)), (True, HOST[True]),
        (True, ICMPv6TimeExceeded()), (True, ICMPv6ParamProblem())]


def blame(d: Dialogue, seen: Seen, error: Packet, *, sequence_off: int = 0, quote_bytes: int | None = None) -> None:
    """A router sends `error` about a segment that the stack sent."""
    quote = bytearray(seen.out.frame()[14:])
    at = 40 if d.ipv6 else 20
    number = int.from_bytes(quote[at + 4 : at + 8], "big") + sequence_off
    quote[at + 4 : at + 8] = (number % (1 << 32)).to_bytes(4, "big")
    ip = IPv6(src=ROUTER6, dst=d.ip[0]) if d.ipv6 else IP(src=ROUTER4, dst=d.ip[0])
    packet = Ether(src="02:00:00:00:00:09", dst="02:00:00:00:00:01") / ip / error / bytes(quote)[:quote_bytes]
    d.stack.receive(bytes(packet), d.now)


def opening(d: Dialogue) -> tuple[Connection, Seen]:
    d.peer_port = 80
    connection = d.stack.connect(d.ip[1], 80, d.now)
    return connection, d.one()


@pytest.mark.parametrize(("ipv6", "error"), HARD)
def test_hard_errors_end_a_connection_that_is_being_opened(ipv6: bool, error: Packet) -> None:
    """RFC 1122 §4.2.3.9: "it SHOULD abort the connection"."""
    d = Dialogue(ipv6=ipv6)
    c, syn = opening(d)
    blame(d, syn, error)
    assert c.state is State.CLOSED
    assert isinstance(c.error, OSError)
    assert isinstance(c.error, ConnectionRefusedError) == (error in (PORT[False], PORT[True]))
    assert d.stack.connections == []


@pytest.mark.parametrize(("ipv6", "error"), HARD + SOFT)
def test_no_error_ends_an_established_connection(ipv6: bool, error: Packet) -> None:
    """RFC 5927 §5.2: hard errors count as soft ones there; RFC 9293 §3.9.2.2: the user may know."""
    d = Dialogue(ipv6=ipv6)
    c = d.connected()
    queue(c, b"hello")
    data = d.one()
    blame(d, data, error)
    assert c.state is State.ESTABLISHED
    assert c.soft_error is not None
    d.send("A", 1, 6)
    assert c.soft_error is None, "what was said before progress no longer counts"


@pytest.mark.parametrize(("ipv6", "error"), SOFT)
@pytest.mark.parametrize("ends", [False, True])
def test_soft_errors_end_an_open_if_the_profile_says_so(ipv6: bool, error: Packet, ends: bool) -> None:
    """RFC 9293 §3.9.2.2: "MUST NOT abort"; RFC 5461 §4.1: what Linux does."""
    d = Dialogue(replace(PLAIN, soft_errors_end_open=ends), ipv6=ipv6)
    c, syn = opening(d)
    blame(d, syn, error)
    assert (c.state is State.CLOSED) is ends
    assert (c.error if ends else c.soft_error) is not None


def test_soft_error_is_told_when_the_connection_is_given_up() -> None:
    d = Dialogue(replace(PLAIN, max_retransmissions=1))
    c = d.connected()
    queue(c, b"x")
    blame(d, d.one(), HOST[False])
    while c.state is not State.CLOSED:
        d.run_to_deadline()
        d.sent()
    assert isinstance(c.error, TimeoutError)
    assert "no answer to 1 retransmissions (host unreachable)" in str(c.error)


def test_hard_error_about_a_syn_ack() -> None:
    d = Dialogue()
    listener = d.stack.listen(80, 4)
    d.send("S", 0)
    blame(d, d.one(), PORT[False])
    assert listener.half_open == 0
    assert d.stack.connections == []


@pytest.mark.parametrize("off", [-1, 5, 1 << 31])
def test_quoted_number_must_be_under_way(off: int) -> None:
    """RFC 5927 §4.1: "SND.UNA =< SEG.SEQ < SND.NXT"."""
    d = Dialogue()
    c = d.connected()
    queue(c, b"hello")
    data = d.one()
    blame(d, data, HOST[False], sequence_off=off)
    assert c.soft_error is None
    assert d.stack.counters.icmp_ignored == 1
    blame(d, data, HOST[False], sequence_off=4)
    assert c.soft_error is not None


def test_what_is_ignored() -> None:
    """Source quench (RFC 9293 §3.9.2.2: "MUST silently discard"), other connections, quotes cut too short."""
    d = Dialogue()
    c = d.connected()
    queue(c, b"hello")
    data = d.one()
    blame(d, data, ICMP(type=4))
    d.peer_port += 1
    for quote_bytes in (0, 10, 27):
        blame(d, data, PORT[False], quote_bytes=quote_bytes)
    foreign = data.out.frame()[14:]
    d.stack.receive(bytes(Ether(src="02:00:00:00:00:09", dst="02:00:00:00:00:01") / IP(src=ROUTER4, dst=d.ip[0])
                          / HOST[False] / (foreign[:12] + bytes([10, 0, 0, 77]) + foreign[16:])), d.now)
    assert c.state is State.ESTABLISHED
    assert c.soft_error is None
    blame(d, data, HOST[False], quote_bytes=28)  # RFC 792: the header and 64 bits
    assert c.soft_error is not None


@pytest.mark.parametrize(("ipv6", "mtu", "mss"), [(False, 1400, 1360), (True, 1400, 1340), (False, 300, 512)])
def test_path_mtu_is_found(ipv6: bool, mtu: int, mss: int) -> None:
    """RFC 1191, 8201: what was too large is sent again in smaller segments, and the window stays; least MTUs hold."""
    d = Dialogue(replace(PLAIN, nagle=Nagle.OFF), ipv6=ipv6)
    whole = 1440 if ipv6 else 1460
    c = d.connected(options=[("MSS", whole)])
    data = bytes(range(256)) * 20
    queue(c, data)
    first = d.sent()
    assert {len(s.payload) for s in first} == {whole}
    blame(d, first[0], ICMPv6PacketTooBig(mtu=mtu) if ipv6 else ICMP(type=3, code=4, nexthopmtu=mtu),
          quote_bytes=None if ipv6 else 28)
    assert c.mss == mss
    window = len(first) * whole
    again = d.sent()
    assert all(len(s.payload) <= mss for s in again)
    assert sum(len(s.payload) for s in again) <= window
    assert again[0].seq == 1
    got = b"".join(s.payload for s in again)
    assert data.startswith(got)
    assert len(got) > window - 2 * mss
    other = d.stack.connect(d.ip[1], 80, d.now)
    d.iss = None
    d.port = 0
    d.one()
    d.send("SA", 0, 1, options=[("MSS", whole)])
    assert other.mss == mss, "the next connection to there knows it, too"
    d.now += 601 * SECOND
    later = d.stack.connect(d.ip[1], 80, d.now)
    d.iss = None
    for out in d.stack.transmit(d.now):
        if out.connection is later:
            d._read(out)
    d.send("SA", 0, 1, options=[("MSS", whole)])
    assert later.mss == whole, "RFC 1191 §6.3: after ten minutes larger packets are tried again"


@pytest.mark.parametrize("ipv6", [False, True])
def test_path_mtu_with_sack_and_timestamps(ipv6: bool) -> None:
    """Their 12 bytes come off what fits, what was reported to have arrived is not sent again, and the window stays."""
    d = Dialogue(replace(PLAIN, nagle=Nagle.OFF, sack=True, timestamps=True, initial_window_segments=8), ipv6=ipv6)
    headers = 60 if ipv6 else 40
    d.port, d.peer_port = 0, 80
    c = d.stack.connect(d.ip[1], 80, d.now)
    stamp = d.one().options["Timestamp"][0]
    d.send("SA", 0, 1, options=[("MSS", 1500 - headers), ("SAckOK", b""), ("Timestamp", (7, stamp))])
    d.one()
    whole = 1500 - headers - 12
    queue(c, bytes(8 * whole))
    first = d.sent()
    assert len(first) == 8
    window = c.sender.control.window
    error = ICMPv6PacketTooBig(mtu=1400) if ipv6 else ICMP(type=3, code=4, nexthopmtu=1400)
    blame(d, first[0], error, quote_bytes=None if ipv6 else 28)
    assert c.mss == 1400 - headers - 12
    got = set()
    again = d.sent()
    assert again
    for seen in again:
        assert len(seen.payload) <= c.mss
        got |= set(range(seen.seq, seen.seq + len(seen.payload)))
    assert c.sender.control.window == window
    ack = 1 + len(got)
    assert got == set(range(1, ack)), "from the first byte on, without a gap"
    while ack < 1 + 8 * whole:
        d.advance(1_000_000)
        d.send("A", 1, ack, options=[("Timestamp", (8, stamp))])
        for seen in d.sent():
            assert seen.seq == ack
            ack += len(seen.payload)
    d.send("A", 1, ack, options=[("Timestamp", (8, stamp))])
    assert c.acked_bytes == 8 * whole


def test_packet_too_big_below_what_every_link_has() -> None:
    """RFC 8201 §4: "it must discard it"."""
    d = Dialogue(ipv6=True)
    c = d.connected(options=[("MSS", 1440)])
    queue(c, bytes(4000))
    first = d.sent()[0]
    blame(d, first, ICMPv6PacketTooBig(mtu=1279))
    assert c.mss == 1440
    blame(d, first, ICMPv6PacketTooBig(mtu=1280))
    assert c.mss == 1220


def test_router_that_does_not_say_what_fits() -> None:
    """RFC 1191 §5: the next plateau below the packet's length."""
    d = Dialogue()
    c = d.connected()
    queue(c, bytes(4000))
    blame(d, d.sent()[0], ICMP(type=3, code=4, nexthopmtu=0))
    assert c.mss == 1492 - 40


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_mtu_that_the_packet_had_fitted_is_forged(mtu: int) -> None:
    """RFC 5927 §7.2."""
    d = Dialogue()
    c = d.connected()
    queue(c, bytes(4000))
    blame(d, d.sent()[0], ICMP(type=3, code=4, nexthopmtu=mtu))
    assert c.mss == 1460
    d.nothing()


def test_large_segments_for_a_device_get_the_smaller_mss() -> None:
    d = Dialogue(max_segment_bytes=60000)
    c = d.connected()
    queue(c, bytes(30000))
    d.sent()
    d.send("A", 1, 2921)
    (large,) = [s.out for s in d.sent()]
    assert large.payload_bytes > large.mss == 1460
    frame = bytearray(large.header)
    frame[16:18] = (1500).to_bytes(2, "big")  # as the device cuts it
    error = ICMP(type=3, code=4, nexthopmtu=1300)
    d.stack.receive(bytes(Ether(src="02:00:00:00:00:09", dst="02:00:00:00:00:01") / IP(src=ROUTER4, dst=d.ip[0])
                          / error / bytes(frame[14:])), d.now)
    assert c.mss == 1260
    assert next((s.out.mss, s.seq) for s in d.sent()) == (1260, 2921)


def test_neighbour_that_does_not_answer() -> None:
    """It is a soft error, like one that a router reports."""
    for ends in (False, True):
        d = Dialogue(replace(PLAIN, soft_errors_end_open=ends))
        c = d.stack.connect("10.0.0.77", 80, 0)
        while not (c.soft_error or c.error):
            d.stack.transmit(d.now)
            d.run_to_deadline()
        assert (c.state is State.CLOSED) is ends
        assert d.now == 3 * SECOND
