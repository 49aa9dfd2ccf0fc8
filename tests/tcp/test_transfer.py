"""Moving data: dialogues about acknowledgement, windows, retransmission, congestion, segment sizes and cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from host_driver.tcp import LINUX24, RFC, Chunk, Nagle, Profile, State
from host_driver.tcp.profile import MS, SECOND
from tests.tcp.dialogue import PLAIN, ROUND_TRIP, Dialogue, queue

MSS = 1460


def lengths(d: Dialogue) -> list[int]:
    """Payload sizes of all that the stack sends now."""
    return [len(s.payload) for s in d.sent()]


# acknowledgement


def test_single_segment_is_acknowledged_by_the_timer() -> None:
    """RFC 9293 §3.8.6.3, RFC 5681 §4.2: delayed, at most 500 ms."""
    d = Dialogue()
    d.accepted()
    d.send("PA", 1, 1, b"hello")
    d.nothing()
    assert d.run_to_deadline() == 200 * MS
    assert d.one().ack == 6


def test_every_second_segment_is_acknowledged_at_once() -> None:
    d = Dialogue()
    d.accepted()
    for number in range(6):
        d.send("A", 1 + number * MSS, 1, bytes(MSS))
    assert [s.ack for s in d.sent()] == [1 + 2 * MSS, 1 + 4 * MSS, 1 + 6 * MSS]


def test_acknowledgement_rides_on_data() -> None:
    d = Dialogue()
    c = d.accepted()
    d.send("PA", 1, 1, b"request")
    queue(c, b"answer")
    answer = d.one()
    assert (answer.flags, answer.ack, answer.payload) == ("PA", 8, b"answer")
    d.send("A", 8, 7)
    d.nothing()
    assert d.stack.next_deadline() is None


def test_linux_acknowledges_the_first_segments_quickly_until_it_answers() -> None:
    d = Dialogue(LINUX24)
    c = d.accepted()
    d.send("PA", 1, 1, b"request")
    assert d.one().ack == 8
    queue(c, b"answer")
    d.one()
    d.send("PA", 8, 7, b"again")
    d.nothing()
    assert d.run_to_deadline() == 40 * MS
    assert d.one().ack == 13


def test_segment_out_of_order_is_acknowledged_at_once_and_kept() -> None:
    """RFC 5681 §4.2: duplicate ACKs for each, and one when the gap is filled."""
    d = Dialogue()
    c = d.accepted()
    d.send("A", 101, 1, b"b" * 100)
    d.send("A", 301, 1, b"d" * 100)
    assert [s.ack for s in d.sent()] == [1, 1]
    d.send("A", 1, 1, b"a" * 100)
    assert d.one().ack == 201
    d.send("A", 151, 1, b"b" * 50 + b"c" * 100 + b"d" * 50)  # overlaps on both sides
    assert d.one().ack == 401
    assert c.recv(1000) == b"".join(x * 100 for x in (b"a", b"b", b"c", b"d"))


# the receiver's window


def test_window_closes_and_its_opening_is_told() -> None:
    """RFC 9293 §3.8.6.2.2: the right edge never moves back, nor forward in small steps."""
    d = Dialogue(replace(PLAIN, receive_buffer_bytes=4000))
    c = d.accepted()
    edges = []
    for start in range(1, 4001, 1000):
        d.send("A", start, 1, bytes(1000))
        edges += [s.ack + s.window for s in d.sent()]
    assert edges == [4001, 4001]
    d.send("A", 4001, 1, b"x")  # a probe
    probe_answer = d.one()
    assert (probe_answer.ack, probe_answer.window) == (4001, 0)
    assert len(c.recv(100)) == 100
    d.nothing()  # 100 bytes would be a silly window
    assert len(c.recv(1900)) == 1900
    update = d.one()
    assert (update.ack, update.window) == (4001, 2000)
    assert len(c.recv(9999)) == 2000
    assert d.one().window == 4000


def test_acknowledgement_counts_with_a_closed_receive_window() -> None:
    """RFC 9293 §3.10.7.4: "special allowance [...] to accept valid ACKs" with a zero window."""
    d = Dialogue(replace(PLAIN, receive_buffer_bytes=100))
    c = d.accepted()
    d.send("A", 1, 1, bytes(100))
    queue(c, b"x" * 10)
    d.sent()
    d.send("A", 101, 11, b"more")
    assert c.acked_bytes == 10
    assert c.recv_available == 100


def test_fin_on_a_closed_receive_window_is_taken() -> None:
    d = Dialogue(replace(PLAIN, receive_buffer_bytes=100))
    c = d.accepted()
    d.send("A", 1, 1, bytes(100))
    d.send("FA", 101, 1)
    assert c.state is State.CLOSE_WAIT
    last = d.sent()[-1]
    assert (last.ack, last.window) == (102, 0)


# the sender's windows


def test_nothing_is_sent_beyond_the_window() -> None:
    d = Dialogue()
    c = d.accepted(window=2000)
    queue(c, bytes(5000))
    assert lengths(d) == [MSS]  # 540 more would be a silly segment
    d.send("A", 1, 1 + MSS, window=3000)
    assert lengths(d) == [MSS, MSS]


def test_window_updates_need_newer_segments() -> None:
    """RFC 9293 §3.10.7.4: SND.WL1 and SND.WL2 prevent old segments from updating the window."""
    d = Dialogue()
    c = d.accepted()
    d.send("PA", 1, 1, b"x", window=5000)
    assert c.sender.snd_wnd == 5000
    d.send("A", 2, 1, window=6000)
    assert c.sender.snd_wnd == 6000
    queue(c, b"y")
    d.sent()
    d.send("A", 2, 2, window=7000)
    d.send("A", 2, 1, window=100)
    assert c.sender.snd_wnd == 7000


def test_newer_acknowledgement_in_an_overtaken_segment_moves_the_window() -> None:
    """The edge must not be overrun because SND.UNA advances under an older window."""
    d = Dialogue(replace(PLAIN, initial_window_segments=10, nagle=Nagle.OFF))
    c = d.accepted()
    queue(c, bytes(1000))
    d.sent()
    d.send("A", 101, 1, b"late", window=1000)  # ahead of a gap
    d.send("A", 1, 1001, b"again", window=100)  # sent later, with an older sequence number
    queue(c, bytes(1000))
    assert sum(lengths(d)) <= 100


@pytest.mark.parametrize("offered", [True, False])
def test_window_scale_needs_both_sides(offered: bool) -> None:
    """RFC 7323 §2.2 and §2.3."""
    d = Dialogue(RFC)
    listener = d.stack.listen(80, 1)
    d.send("S", 0, window=1000, options=[("MSS", MSS), *([("WScale", 4)] if offered else [])])
    answer = d.one()
    assert ("WScale" in answer.options) is offered
    assert answer.window == 65535  # never scaled in a SYN
    d.send("A", 1, 1, window=1000)
    c = listener.accept()
    assert c is not None
    assert c.sender.snd_wnd == (16000 if offered else 1000)
    d.send("PA", 1, 1, b"x")
    c.recv(1)
    d.run_to_deadline()
    # unscaled, the edge stays where it is: one byte further would be a silly step
    assert d.one().window == ((1 << 18) >> 3 if offered else 65534)


def test_window_shift_above_14_counts_as_14() -> None:
    """RFC 7323 §2.3."""
    d = Dialogue(RFC)
    c = d.accepted(window=3, options=[("WScale", 15)])
    assert c.sender.snd_wnd == 3 << 14


def test_linux_offers_no_window_scale() -> None:
    d = Dialogue(LINUX24)
    d.stack.connect(d.ip[1], 4000, 0)
    d.port, d.peer_port = 0, 4000
    assert "WScale" not in d._read(d.stack.transmit(0)[0]).options


def test_zero_window_probes() -> None:
    """RFC 9293 §3.8.6.1: one octet, at growing intervals, for as long as the peer answers."""
    d = Dialogue(replace(PLAIN, max_retransmissions=3))
    c = d.accepted(window=0)
    queue(c, b"abcdef")
    d.nothing()
    waits = []
    for _ in range(8):
        waits.append(d.run_to_deadline() // SECOND)
        probe = d.one()
        assert (probe.seq, probe.payload) == (1, b"a")
        d.send("A", 1, 1, window=0)
        d.nothing()
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    d.send("A", 1, 1, window=100)
    rest = d.one()
    assert (rest.seq, rest.payload) == (1, b"abcdef")
    d.send("A", 1, 7)
    assert d.stack.next_deadline() is None


def test_probe_interval_starts_anew_after_progress() -> None:
    d = Dialogue()
    c = d.accepted(window=0)
    queue(c, b"abc")
    d.nothing()
    for wait in (1, 2):
        assert d.run_to_deadline() == wait * SECOND
        d.one()
    d.send("A", 1, 2, window=0)
    d.nothing()
    assert d.run_to_deadline() == SECOND


def test_probe_that_is_accepted_counts() -> None:
    d = Dialogue()
    c = d.accepted(window=0)
    queue(c, b"abc")
    d.nothing()
    d.run_to_deadline()
    d.one()
    d.send("A", 1, 2, window=50)
    assert c.acked_bytes == 1
    assert d.one().payload == b"bc"


def test_unanswered_probes_end_the_connection() -> None:
    d = Dialogue(replace(PLAIN, max_retransmissions=2))
    c = d.accepted(window=0)
    queue(c, b"abc")
    d.nothing()
    for _ in range(2):
        d.run_to_deadline()
        d.one()
    d.run_to_deadline()
    assert c.state is State.CLOSED
    assert isinstance(c.error, TimeoutError)


def test_small_window_is_used_after_the_override_timeout() -> None:
    """RFC 9293 §3.8.6.2.1 (4)."""
    d = Dialogue()
    c = d.accepted()
    d.send("A", 1, 1, window=500)
    queue(c, bytes(2000))
    d.nothing()
    d.run_to_deadline()
    assert lengths(d) == [500]


@pytest.mark.parametrize("probe_first", [False, True])
def test_fin_behind_a_closed_window(probe_first: bool) -> None:
    d = Dialogue()
    c = d.accepted(window=0)
    c.close(d.now)
    d.nothing()
    if probe_first:
        d.run_to_deadline()
        assert d.one().flags == "FA"
        d.send("A", 1, 2, window=0)
        assert c.state is State.FIN_WAIT_2
    else:
        d.send("A", 1, 1, window=1)
        assert d.one().flags == "FA"


def test_pure_acknowledgement_after_a_probe_is_acceptable_to_the_peer() -> None:
    """The probe's octet lies beyond the peer's window, so an ACK must not stand behind it."""
    d = Dialogue()
    c = d.accepted(window=0)
    queue(c, b"abc")
    d.nothing()
    d.run_to_deadline()
    d.one()
    d.send("A", 1, 1, b"1" * 100, window=0)
    d.send("A", 101, 1, b"2" * 100, window=0)
    ack = d.one()
    assert (ack.seq, ack.ack) == (1, 201)


# Nagle


@pytest.mark.parametrize(
    ("nagle", "sizes"),
    [(Nagle.OFF, [[MSS, 100], [7]]), (Nagle.RFC896, [[MSS], []]), (Nagle.MINSHALL, [[MSS, 100], []])],
)
def test_nagle(nagle: Nagle, sizes: list[list[int]]) -> None:
    """RFC 9293 §3.7.4, and what Linux does instead."""
    d = Dialogue(replace(PLAIN, nagle=nagle))
    c = d.accepted()
    queue(c, bytes(MSS + 100))
    assert lengths(d) == sizes[0]
    queue(c, bytes(7))
    assert lengths(d) == sizes[1]
    sent = sum(sum(s) for s in sizes)
    d.send("A", 1, 1 + sent)
    assert sent + sum(lengths(d)) == MSS + 107


def test_close_pushes_the_last_small_segment_out() -> None:
    d = Dialogue()
    c = d.accepted()
    queue(c, bytes(MSS + 100))
    assert lengths(d) == [MSS]
    c.close(d.now)
    last = d.one()
    assert (last.flags, len(last.payload)) == ("FPA", 100)


def test_push_on_the_last_buffered_segment_only() -> None:
    """RFC 9293 §3.9.1.2."""
    d = Dialogue()
    c = d.accepted()
    queue(c, bytes(2 * MSS))
    assert [s.flags for s in d.sent()] == ["A", "PA"]


# sizes


@pytest.mark.parametrize(("ipv6", "default"), [(False, 536), (True, 1220)])
def test_peer_without_mss_option_gets_the_default(ipv6: bool, default: int) -> None:
    """RFC 9293 §3.7.1."""
    d = Dialogue(ipv6=ipv6)
    c = d.accepted(options=[("NOP", None)])
    queue(c, bytes(2 * default))
    assert lengths(d) == [default, default]


def test_own_mtu_bounds_segments_too() -> None:
    d = Dialogue(mtu=1000)
    c = d.accepted()
    queue(c, bytes(1920))
    assert lengths(d) == [960, 960]


@pytest.mark.parametrize("ipv6", [False, True])
def test_large_segments_for_a_device_that_cuts_them(ipv6: bool) -> None:
    d = Dialogue(replace(PLAIN, initial_window_segments=60), ipv6=ipv6, max_segment_bytes=65535)
    c = d.accepted(window=65535)
    queue(c, bytes(100000))
    whole = 65535 // c.mss * c.mss
    large = d.one()
    assert (len(large.payload), large.out.mss) == (whole, c.mss)
    with pytest.raises(ValueError, match="do not fit"):
        large.out.frame()
    d.send("A", 1, 1 + whole, window=65535)
    rest = d.one()
    assert (rest.seq, len(rest.payload)) == (1 + whole, (100000 - whole) // c.mss * c.mss)


def test_tail_of_a_large_segment_obeys_nagle() -> None:
    d = Dialogue(replace(PLAIN, initial_window_segments=10), max_segment_bytes=65535)
    c = d.accepted()
    queue(c, bytes(3 * MSS + 5))
    assert lengths(d) == [3 * MSS]
    c.close(d.now)
    assert lengths(d) == [5]


def test_ip_identification_leaves_numbers_for_cut_segments() -> None:
    d = Dialogue(replace(PLAIN, initial_window_segments=10), max_segment_bytes=65535)
    c = d.accepted()
    queue(c, bytes(3 * MSS))
    first = int.from_bytes(d.one().out.header[18:20], "big")
    queue(c, bytes(MSS))
    assert int.from_bytes(d.one().out.header[18:20], "big") == (first + 3) % 65536


def test_length_field_of_a_segment_that_is_no_packet_is_zero() -> None:
    d = Dialogue(replace(RFC, initial_window_segments=100), max_segment_bytes=1 << 18)
    c = d.accepted(options=[("MSS", MSS), ("WScale", 4)])
    queue(c, bytes(100 * MSS))
    segment = d.one()
    assert len(segment.payload) == 100 * MSS
    assert segment.out.header[16:18] == b"\0\0"


def test_seeded_header_gives_the_software_checksum() -> None:
    """What a device sums over the seeded header and the payload is what `frame` computes."""
    from nic_model.checksum import ones_sum

    d = Dialogue()
    c = d.accepted()
    queue(c, b"some payload")
    out = d.one().out
    frame = out.frame()
    at = out.checksum_offset
    for with_length in (True, False):
        seeded = out.seeded_header(with_length=with_length) + b"some payload"
        extra = 0 if with_length else len(frame) - out.l4_offset
        total = ones_sum(seeded[out.l4_offset :], extra) ^ 0xFFFF
        assert total == int.from_bytes(frame[at : at + 2], "big")


# memory


def test_pieces_name_registered_memory_and_are_released_when_acknowledged() -> None:
    d = Dialogue(replace(PLAIN, initial_window_segments=10))
    c = d.accepted()
    memory = memoryview(bytes(range(256)) * 40)
    freed = []
    for at, size in ((1000, 2000), (5000, 1500)):
        chunk = Chunk(memory[at : at + size], key=0x123, offset=at, release=lambda at=at: freed.append(at))
        assert c.send(chunk) == size
    first, second = d.sent()
    assert [p.piece() for p in first.out.payload] == [(0x123, 1000, MSS)]
    assert [p.piece() for p in second.out.payload] == [(0x123, 2460, 540), (0x123, 5000, MSS - 540)]
    assert second.payload == bytes(memory[2460:3000]) + bytes(memory[5000 : 5000 + MSS - 540])
    d.send("A", 1, 1 + 1999)
    assert freed == []
    d.send("A", 1, 1 + 2000)
    assert freed == [1000]
    assert (c.queued_bytes, c.acked_bytes) == (3500, 2000)
    c.abort(d.now)
    assert freed == [1000, 5000]


def test_send_space_bounds_the_queue() -> None:
    d = Dialogue(replace(PLAIN, send_buffer_bytes=1000))
    c = d.accepted()
    assert c.send(Chunk(bytes(999))) == 999
    assert c.writable
    assert c.send(Chunk(bytes(5000))) == 5000  # whole, since there was space
    assert not c.writable
    assert c.send(Chunk(b"x")) == 0
    released = []
    assert c.send(Chunk(b"", release=lambda: released.append(1))) == 0
    assert released == [1]
    assert c.sent_bytes == 0
    d.sent()
    assert c.sent_bytes == 3 * MSS


# retransmission


@pytest.mark.parametrize("nagle", list(Nagle))
def test_timeout_backs_off_and_gives_up(nagle: Nagle) -> None:
    """RFC 6298 §5.4 to §5.6; RFC 9293 §3.8.3."""
    d = Dialogue(replace(PLAIN, max_retransmissions=4, nagle=nagle))
    c = d.accepted()
    queue(c, b"data")
    d.one()
    waits = []
    for _ in range(4):
        waits.append(d.run_to_deadline() // SECOND)
        again = d.one()
        assert (again.seq, again.payload, again.out.is_retransmission) == (1, b"data", True)
    assert waits == [1, 2, 4, 8]
    assert c.retransmitted_segments == 4
    d.run_to_deadline()
    d.nothing()
    assert isinstance(c.error, TimeoutError)


def test_measured_round_trips_set_the_timeout() -> None:
    """RFC 6298 §2.2 and §2.3, and Karn's rule of §3."""
    d = Dialogue(replace(PLAIN, min_rto_ps=MS, granularity_ps=MS))
    c = d.accepted()
    queue(c, b"a")
    d.one()
    d.now += 100 * MS
    d.send("A", 1, 2)
    # the SYN-ACK's round trip was 0: SRTT 0, RTTVAR 0; now SRTT = 100/8, RTTVAR = 100/4
    queue(c, b"b")
    d.one()
    assert d.run_to_deadline() == int((12.5 + 4 * 25) * MS)
    d.one()
    d.now += 5 * SECOND
    d.send("A", 1, 3)  # answers a retransmission: not measured, the backed-off timeout stays
    queue(c, b"c")
    d.one()
    assert d.run_to_deadline() == int(2 * (12.5 + 4 * 25) * MS)


def test_acknowledgement_restarts_the_timer() -> None:
    """RFC 6298 §5.3."""
    d = Dialogue()
    c = d.accepted()
    queue(c, bytes(2 * MSS))
    assert len(d.sent()) == 2
    d.now += 100 * MS
    d.send("A", 1, 1 + MSS)
    assert d.run_to_deadline() == SECOND
    assert d.one().seq == 1 + MSS


def test_timeout_goes_back_in_slow_start_and_skips_what_arrived() -> None:
    """RFC 5681 §3.1: one segment after a loss; the cumulative ACK then jumps over what the peer kept."""
    d = Dialogue()
    c = d.accepted()
    queue(c, bytes(3 * MSS))
    assert [s.seq for s in d.sent()] == [1, 1 + MSS, 1 + 2 * MSS]
    d.run_to_deadline()
    assert [s.seq for s in d.sent()] == [1]
    d.send("A", 1, 1 + 3 * MSS)
    d.nothing()
    assert d.stack.next_deadline() is None
    queue(c, bytes(5 * MSS))
    assert len(d.sent()) == 2  # cwnd was 1, and the ACK made it 2


def test_slow_start_and_congestion_avoidance() -> None:
    """RFC 5681 §3.1: (2) below ssthresh, (3) above."""
    d = Dialogue(replace(PLAIN, initial_window_segments=2))
    c = d.accepted(window=65535)
    queue(c, bytes(60 * MSS))
    assert len(d.sent()) == 2
    acked, out = 0, 2
    for _ in range(4):  # each ACK of one segment lets two go
        acked += 1
        d.send("A", 1, 1 + acked * MSS, window=65535)
        new = len(d.sent())
        assert new == 2
        out += new
    assert out - acked == 6
    d.run_to_deadline()  # a loss: ssthresh becomes 3
    assert len(d.sent()) == 1
    acked = out
    d.send("A", 1, 1 + acked * MSS, window=65535)  # cwnd 2
    growth = []
    in_flight = len(d.sent())
    for _ in range(8):
        acked += 1
        in_flight -= 1
        d.send("A", 1, 1 + acked * MSS, window=65535)
        new = len(d.sent())
        in_flight += new
        growth.append(in_flight)
    # 2 -> 3 in slow start, then 1/cwnd for each ACK: 3.33, 3.63, 3.91, 4.16, 4.40, 4.63, 4.85
    assert growth == [3, 3, 3, 3, 4, 4, 4, 4]


def test_idle_connection_starts_slowly_again() -> None:
    """RFC 5681 §4.1."""
    d = Dialogue(replace(PLAIN, initial_window_segments=2))
    c = d.accepted(window=65535)
    queue(c, bytes(8 * MSS))
    sent = len(d.sent())
    while sent < 8:
        d.send("A", 1, 1 + sent * MSS, window=65535)
        sent += len(d.sent())
    d.send("A", 1, 1 + 8 * MSS, window=65535)
    d.advance(5 * SECOND)
    queue(c, bytes(8 * MSS))
    assert len(d.sent()) == 2


def lossy_flight(profile: Profile, segments: int = 10) -> Dialogue:
    """A flight of `segments` is out; nothing of it was acknowledged."""
    d = Dialogue(replace(profile, initial_window_segments=segments))
    c = d.accepted(window=65535)
    queue(c, bytes(40 * MSS))
    assert len(d.sent()) == segments
    return d


def duplicate(d: Dialogue, position: int, count: int) -> list[int]:
    """The peer repeats its ACK; returns what sequence numbers (in segments) the stack sends."""
    for _ in range(count):
        d.send("A", 1, position, window=65535)
    return [(s.seq - 1) // MSS for s in d.sent()]


def test_fast_retransmit_and_recovery() -> None:
    """RFC 5681 §3.2."""
    d = lossy_flight(replace(PLAIN, limited_transmit=False))
    assert duplicate(d, 1, 2) == []
    assert duplicate(d, 1, 1) == [0]
    # ssthresh 5, cwnd 8; 10 are out: two more duplicates inflate it to 10, further ones let new segments go
    assert duplicate(d, 1, 2) == []
    assert duplicate(d, 1, 3) == [10, 11, 12]
    d.send("A", 1, 1 + 13 * MSS, window=65535)  # all of it
    assert len(d.sent()) == 2  # RFC 6582: min(ssthresh, max(FlightSize, SMSS) + SMSS) = 1 + 1


def test_fast_retransmit_spoils_the_measurement() -> None:
    """Karn's rule, RFC 6298 §3, without a timeout."""
    d = lossy_flight(replace(PLAIN, limited_transmit=False, min_rto_ps=MS), 5)
    c = d.stack.connections[0]
    rto = c.deadline() - d.now
    assert duplicate(d, 1, 3) == [0]
    d.now += 500 * MS
    d.send("A", 1, 1 + 5 * MSS, window=65535)
    assert len(d.sent()) > 0
    assert c.deadline() - d.now == rto


def test_limited_transmit() -> None:
    """RFC 3042: a new segment for each of the first two duplicates."""
    d = lossy_flight(PLAIN)
    assert duplicate(d, 1, 1) == [10]
    assert duplicate(d, 1, 1) == [11]
    assert duplicate(d, 1, 1) == [0]


def test_partial_acknowledgement_sends_the_next_hole() -> None:
    """RFC 6582 §3.2 step 3."""
    d = lossy_flight(replace(PLAIN, limited_transmit=False))
    d.now += ROUND_TRIP
    assert duplicate(d, 1, 3) == [0]
    d.send("A", 1, 1 + 4 * MSS, window=65535)  # segment 4 was lost too
    assert d.sent()[0].seq == 1 + 4 * MSS
    d.send("A", 1, 1 + 10 * MSS, window=65535)
    assert all(s.seq >= 1 + 10 * MSS for s in d.sent())


def test_duplicates_after_a_timeout_start_no_fast_retransmit() -> None:
    """RFC 6582 §3.2 steps 2 and 4: they answer what was retransmitted needlessly."""
    d = lossy_flight(replace(PLAIN, limited_transmit=False))
    d.run_to_deadline()
    assert [s.seq for s in d.sent()] == [1]
    d.send("A", 1, 1 + 2 * MSS, window=65535)
    d.sent()
    assert duplicate(d, 1 + 2 * MSS, 3) == []


def test_what_is_no_duplicate_acknowledgement() -> None:
    """RFC 5681 §2: with data, or another window, or nothing outstanding."""
    d = lossy_flight(replace(PLAIN, limited_transmit=False))
    for number in range(4):
        d.send("A", 1 + number, 1, b"x", window=65535)
    for number in range(4):
        d.send("A", 5, 1, window=65000 - number)
    assert all(not s.out.is_retransmission for s in d.sent())
    d = Dialogue()
    d.accepted()
    for _ in range(5):
        d.send("A", 1, 1)
    d.nothing()


# events and cost


def test_events_come_for_what_changed_only() -> None:
    d = Dialogue()
    c = d.accepted()
    seen: list[tuple[int, int, bool]] = []
    c.on_event = lambda c: seen.append((c.acked_bytes, c.recv_available, c.peer_closed))
    d.send("A", 1, 1, window=999)
    assert seen == []
    d.send("PA", 1, 1, b"abc")
    queue(c, b"hello")
    d.sent()
    d.send("A", 4, 6)
    d.send("FA", 4, 6)
    assert seen == [(0, 3, False), (5, 3, False), (5, 3, True)]


def test_what_is_charged() -> None:
    d = Dialogue()
    c = d.accepted()
    items = d.account.items
    assert items["tcp_recv", "syn"] == items["tcp_recv", "established"] == items["tcp_send", "control"] == 1
    d.send("PA", 1, 1, bytes(100))
    d.send("PA", 101, 1, bytes(100))
    queue(c, bytes(500))
    d.sent()
    d.send("A", 201, 501)
    d.send("FA", 201, 501)
    d.sent()
    d.send("R", 202, checksum_ok=True)
    assert items["tcp_recv", "data_segment"] == 2
    assert items["tcp_recv", "ack"] == 1
    assert items["tcp_recv", "fin"] == items["tcp_recv", "rst"] == 1
    assert items["tcp_send", "segment"] == 1
    assert items["tcp_send", "control"] == 3
    assert items["ip", "receive"] == 7
    assert items["ip", "send"] == 4
    assert items["tcp_recv", "checksum_byte"] == 24 + 20 + 120 * 2 + 20 * 2
    assert ("tcp_send", "checksum_byte") not in items


def test_software_checksums_are_charged_to_whom_they_are_asked_for() -> None:
    d = Dialogue()
    c = d.accepted()
    queue(c, bytes(101))
    d.one().out.frame(d.account)
    assert d.account.items["tcp_send", "checksum_byte"] == 121


def test_bad_frames_are_dropped_and_counted() -> None:
    d = Dialogue()
    c = d.accepted()
    counters = d.stack.counters
    d.send("PA", 1, 1, b"bad", checksum_ok=False)
    d.stack.receive(b"short", d.now)
    d.stack.receive(bytes(60), d.now)
    assert (counters.bad_checksum, counters.malformed, counters.not_for_us) == (1, 1, 1)
    assert c.recv_available == 0
    d.ip = (d.ip[0], "224.0.0.77")
    d.send("S", 0)
    assert counters.no_route == 1
    d.nothing()


def test_wrong_checksum_is_found_in_software() -> None:
    d = Dialogue()
    c = d.accepted()
    queue(c, b"x")
    frame = bytearray(d.one().out.frame())
    other = Dialogue()
    other.stack = d.stack
    # send the stack its own frame back, addresses swapped, one payload bit wrong: the sum is the same but for the bit
    frame[0:6], frame[6:12] = frame[6:12], frame[0:6]
    frame[26:30], frame[30:34] = frame[30:34], frame[26:30]
    frame[34:36], frame[36:38] = frame[36:38], frame[34:36]
    charged = d.stack.counters.bad_checksum
    d.stack.receive(bytes(frame), d.now)
    assert d.stack.counters.bad_checksum == charged
    frame[-1] ^= 1
    d.stack.receive(bytes(frame), d.now)
    assert d.stack.counters.bad_checksum == charged + 1


def test_deadlines_of_many_connections() -> None:
    """`next_deadline` is the earliest of all, whatever timers moved or stopped."""
    d = Dialogue()
    connections = []
    for number in range(20):
        connections.append(d.stack.connect(d.ip[1], 80, d.now))
        d.stack.transmit(d.now)
        d.now += (number % 3 + 1) * MS
    assert d.stack.next_deadline() == min(c.deadline() for c in connections) == SECOND
    connections[0].abort(d.now)
    assert d.stack.next_deadline() == min(c.deadline() for c in connections[1:])
    d.now = 2 * SECOND
    d.stack.poll(d.now)
    assert len(d.stack.transmit(d.now)) == 19
    assert d.stack.next_deadline() == 4 * SECOND
