"""Losing segments with SACK: dialogues about RACK, tail loss probes, PRR and timeouts. The round trip takes 40 ms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from host_driver.tcp import Connection, Profile
from host_driver.tcp.profile import MS, SECOND
from tests.tcp.dialogue import Dialogue, accept, queue
from tests.tcp.path import Path, transfer
from tests.tcp.test_sack import MSS, PERMITTED, SACKED, numbers, reported, segment

RTT = 40 * MS
QUIET = replace(SACKED, initial_window_segments=20, min_rto_ps=10 * SECOND)
"""Large flights, and no retransmission timeout where RACK is meant."""


def opened(d: Dialogue) -> Connection:
    """A connection whose handshake took a round trip."""
    listener = d.stack.listen(80, 1)
    d.send("S", 0, options=PERMITTED)
    assert d.one().flags == "SA"
    d.now += RTT
    d.send("A", 1, 1, window=65535)
    return accept(listener)


def flight(d: Dialogue, segments: int, waiting: int = 0) -> Connection:
    """`segments` have been on their way for a round trip; `waiting` more are queued behind them."""
    c = opened(d)
    queue(c, bytes(segments * MSS))
    assert len(d.sent()) == segments
    if waiting:
        c.sender.control.window = segments * MSS
        queue(c, bytes(waiting * MSS))
        d.nothing()
    d.now += RTT
    return c


def acks(d: Dialogue, position: int, *ranges: tuple[int, int]) -> list[int]:
    """The peer acknowledges; returns which segments the stack sends."""
    d.send("A", 1, position, window=65535, options=reported(d, *ranges) if ranges else [])
    return numbers(d.sent())


# RACK


def test_three_reported_segments_are_enough() -> None:
    """RFC 8985 §6.2 step 4: without reordering, DupThresh segments make the window for it 0."""
    d = Dialogue(QUIET)
    flight(d, 10)
    assert acks(d, 1, segment(1)) == []
    assert acks(d, 1, segment(1, 3)) == []
    assert acks(d, 1, segment(1, 4)) == [0]


def test_fewer_are_after_the_reordering_window() -> None:
    """§6.2 step 5: a quarter of the round trip, by a timer."""
    d = Dialogue(QUIET)
    flight(d, 3)
    assert acks(d, 1, segment(1)) == []
    assert d.run_to_deadline() == RTT // 4
    assert numbers(d.sent()) == [0]


def test_reordering_within_the_window_repeats_nothing() -> None:
    """§6.2: once it was seen, counting no longer counts."""
    d = Dialogue(QUIET)
    flight(d, 10)
    assert acks(d, 1, segment(1)) == []
    d.now += RTT // 8
    assert acks(d, 1 + 2 * MSS) == []  # segment 0 was late
    assert acks(d, 1 + 2 * MSS, segment(3, 8)) == []  # so are five segments no reason
    assert d.run_to_deadline() <= RTT // 4
    assert numbers(d.sent()) == [2]


def test_a_lost_retransmission_is_found_without_a_timeout() -> None:
    """§3.2: what was sent later than it arrives."""
    d = Dialogue(QUIET)
    flight(d, 10, waiting=10)
    first = acks(d, 1, segment(1, 4))
    assert first[0] == 0
    new = [n for n in first[1:] if n >= 10]
    d.now += RTT
    more = acks(d, 1, segment(1, 10))
    new += [n for n in more if n >= 10]
    assert 0 not in more
    assert new
    d.now += RTT
    assert acks(d, 1, segment(1, new[0] + 1))[0] == 0


def test_what_was_taken_for_lost_and_arrives_is_not_repeated() -> None:
    d = Dialogue(QUIET)
    flight(d, 10)
    for end in (7, 8):
        assert acks(d, 1, segment(6, end)) == []
    assert acks(d, 1, segment(6, 9)) == [0, 1]  # of 0 to 5, PRR lets two leave at once
    assert acks(d, 1, segment(1, 10)) == []
    d.now += RTT
    assert acks(d, 1 + 10 * MSS) == []
    assert d.stack.connections[0].retransmitted_segments <= 2


def test_an_overtaken_acknowledgement_counts_for_what_it_reports() -> None:
    """It is older than SND.UNA, but its block is news: PRR lets segments go for it, as for any."""
    d = Dialogue(QUIET)
    flight(d, 20, waiting=20)
    acks(d, 1, segment(1, 3))
    acks(d, 1, segment(1, 4))
    assert acks(d, 1 + 4 * MSS) == []
    # prr_delivered is 1 + 1 + 4 segments: CEIL(6 * ssthresh 10 / RecoverFS 22) is 2.7, one of which left
    assert len(acks(d, 1, segment(1, 4), segment(5, 9))) == 1


def test_d_sack_widens_the_reordering_window() -> None:
    """§6.2 step 4: RACK.reo_wnd_mult counts round trips with D-SACKs."""
    d = Dialogue(QUIET)
    c = flight(d, 6)
    assert acks(d, 1, segment(1, 4)) == [0]
    d.now += RTT
    acks(d, 1 + 6 * MSS, segment(0))  # D-SACK: segment 0 came twice
    queue(c, bytes(3 * MSS))
    assert numbers(d.sent()) == [6, 7, 8]
    d.now += RTT
    assert acks(d, 1 + 6 * MSS, segment(7)) == []
    assert d.run_to_deadline() == 2 * (RTT // 4)
    assert numbers(d.sent()) == [6]


def test_needless_recovery_is_undone() -> None:
    """RFC 2883 §5: when all that was sent again is reported as duplicate, the window is what it was."""
    d = Dialogue(QUIET)
    c = flight(d, 10)
    before = c.sender.control.window
    assert acks(d, 1, segment(1, 4)) == [0]
    assert c.sender.control.window < before
    d.now += RTT
    acks(d, 1 + 10 * MSS, segment(0))
    assert c.sender.control.window >= before


# PRR and limited transmit


def test_the_first_reports_let_new_segments_go() -> None:
    """RFC 3042, RFC 6675 §5: what is reported is no longer in flight."""
    d = Dialogue(QUIET)
    flight(d, 10, waiting=5)
    assert acks(d, 1, segment(1)) == [10]
    assert acks(d, 1, segment(1, 3)) == [11]
    assert acks(d, 1, segment(1, 4))[0] == 0


def test_proportional_rate_reduction() -> None:
    """RFC 6937 §3: about one segment for every two that arrive; ssthresh at the end."""
    d = Dialogue(QUIET)
    c = flight(d, 20, waiting=20)
    sent = []
    for number in range(1, 20):
        sent.append(acks(d, 1, segment(1, number + 1)))
    total = sum(len(s) for s in sent)
    # two by limited transmit; then the 17 segments that are delivered in recovery let CEIL(17 * ssthresh 10 /
    # RecoverFS 22) leave, the first repetition among them
    assert [len(s) for s in sent[:2]] == [1, 1]
    assert sent[2][0] == 0
    assert total - 2 == 8
    assert max(len(s) for s in sent[3:]) == 1
    d.now += RTT
    highest = max(max(s) for s in sent if s) + 1
    acks(d, 1 + highest * MSS)
    assert c.sender.control.window == c.sender.control.threshold == 10 * MSS


def test_growth_needs_a_window_that_was_in_use() -> None:
    """RFC 7661 §1: an application that sends little learns nothing about the path."""
    d = Dialogue(QUIET)
    c = flight(d, 2)
    window = c.sender.control.window
    acks(d, 1 + 2 * MSS)
    assert c.sender.control.window == window


# Tail loss probes


@pytest.mark.parametrize(("segments", "pto"), [(2, 2 * RTT), (1, 2 * RTT + 200 * MS)])
def test_a_probe_repeats_the_last_segment(segments: int, pto: int) -> None:
    """RFC 8985 §7.2: PTO = 2 * SRTT, and TLP.max_ack_delay for a single segment; §7.3: then the timeout runs anew."""
    d = Dialogue(replace(SACKED, min_rto_ps=SECOND))
    c = opened(d)
    queue(c, bytes(segments * MSS))
    d.sent()
    assert d.run_to_deadline() == pto
    probe = d.one()
    assert numbers([probe]) == [segments - 1]
    assert probe.out.is_retransmission
    assert d.run_to_deadline() == SECOND
    assert numbers(d.sent()) == [0]


def test_a_probe_sends_what_is_new_if_it_may() -> None:
    """§7.3, even beyond the congestion window."""
    d = Dialogue(SACKED)
    flight(d, 4, waiting=1)
    d.run_to_deadline()
    probe = d.one()
    assert (numbers([probe]), probe.out.is_retransmission) == ([4], False)


def test_a_probe_never_leaves_the_peers_window() -> None:
    d = Dialogue(SACKED)
    c = opened(d)
    d.send("A", 1, 1, window=2 * MSS)
    queue(c, bytes(4 * MSS))
    assert numbers(d.sent()) == [0, 1]
    d.run_to_deadline()
    assert numbers(d.sent()) == [1]


def test_a_lost_tail_is_recovered_by_its_probe() -> None:
    """§7: the answer to the probe reports it, and RACK finds the rest, long before the timeout."""
    d = Dialogue(QUIET)
    flight(d, 6)
    acks(d, 1 + 2 * MSS)  # 2 to 5 are lost
    d.run_to_deadline()
    assert numbers(d.sent()) == [5]
    d.now += RTT
    again = acks(d, 1 + 2 * MSS, segment(5))
    if not again:
        d.run_to_deadline()
        again = numbers(d.sent())
    assert again[0] == 2
    assert d.now < SECOND


@pytest.mark.parametrize("is_reported", [True, False])
def test_what_the_answer_to_a_probe_means(is_reported: bool) -> None:
    """§7.4.2: with a D-SACK nothing was lost; without, the probe repaired a loss, which is a sign of congestion."""
    d = Dialogue(SACKED)
    c = flight(d, 4)
    window = c.sender.control.window
    d.run_to_deadline()
    assert numbers(d.sent()) == [3]
    acks(d, 1 + 4 * MSS, *([segment(3)] if is_reported else []))
    queue(c, bytes(MSS))
    d.sent()
    d.now += RTT
    acks(d, 1 + 5 * MSS)
    assert (c.sender.control.window < window) is not is_reported


def test_a_probe_takes_the_place_of_an_earlier_timeout() -> None:
    """§7.2: "If Now() + PTO > TCP_RTO_expiration()"; here after many round trips that took the same time."""
    d = Dialogue(replace(SACKED, min_rto_ps=10 * MS))
    c = opened(d)
    for number in range(40):
        queue(c, bytes(2 * MSS))
        assert len(d.sent()) == 2
        d.now += 400 * MS
        acks(d, 1 + 2 * (number + 1) * MSS)
    queue(c, bytes(2 * MSS))
    d.sent()
    assert d.run_to_deadline() < 2 * 400 * MS
    assert len(d.sent()) == 1
    assert (c.sender.tail_probes, c.sender.retransmissions) == (1, 0)


def test_no_second_probe_behind_an_unanswered_one() -> None:
    """§7.2: then the timeout takes its turn."""
    d = Dialogue(replace(SACKED, min_rto_ps=SECOND))
    c = opened(d)
    queue(c, bytes(2 * MSS))
    d.sent()
    d.run_to_deadline()
    assert numbers(d.sent()) == [1]
    assert d.run_to_deadline() == SECOND
    assert c.sender.retransmissions == 1


# Timeouts


def test_a_timeout_repeats_what_is_overdue_in_slow_start() -> None:
    """RFC 8985 §6.3, RFC 5681 §3.1: first one segment, then as acknowledgements come; what arrived is not repeated."""
    d = Dialogue(SACKED)
    flight(d, 8)
    acks(d, 1, segment(6, 8))
    assert d.run_to_deadline() == RTT // 4
    assert numbers(d.sent())[0] == 0  # what the reordering timer found; it is lost again
    d.run_to_deadline()
    assert d.stack.connections[0].sender.retransmissions == 1
    assert numbers(d.sent()) == [0]
    d.now += RTT
    assert acks(d, 1 + MSS, segment(6, 8)) == [1, 2]
    d.now += RTT
    assert acks(d, 1 + 3 * MSS, segment(6, 8)) == [3, 4]
    d.now += RTT
    assert acks(d, 1 + 5 * MSS, segment(6, 8)) == [5]
    d.now += RTT
    assert acks(d, 1 + 8 * MSS) == []
    assert d.stack.next_deadline() is None


def test_a_peer_without_sack_is_recovered_by_duplicates() -> None:
    """RFC 5681 and RFC 6582 where SACK is not agreed on, in the same profile."""
    d = Dialogue(SACKED)
    c = d.accepted(window=65535)
    queue(c, bytes(10 * MSS))
    d.sent()
    for _ in range(3):
        d.send("A", 1, 1, window=65535)
    assert numbers(d.sent())[-1] == 0


# Over a path


@pytest.mark.parametrize("control", ["newreno", "cubic"])
def test_goodput_under_loss_is_what_the_model_promises(control: str) -> None:
    """1 % loss: at least 80 % of MSS / RTT * sqrt(3 / (4 p)), Mathis et al.'s formula for delayed acknowledgements."""
    profile: Profile = replace(SACKED, timestamps=True, window_scale=7, receive_buffer_bytes=1 << 22,
                               send_buffer_bytes=1 << 20, congestion_control=control, min_rto_ps=200 * MS)
    path = Path(delay_ps=10 * MS, rate=12.5e6, loss=0.01)
    done = [transfer(profile, path, 4_000_000, seed=seed) for seed in (1, 2, 3)]
    goodput = sum(t.goodput for t in done) / len(done)
    model = 1448 / 0.02 * (3 / (4 * path.loss)) ** 0.5
    assert goodput > 0.8 * model
    repeated = sum(t.sender.retransmitted_segments for t in done) / sum(t.sent_segments for t in done)
    assert repeated < 0.015  # that is, hardly anything that was not lost


def test_a_full_queue_is_kept_full_without_timeouts() -> None:
    """A bottleneck of 10 Mbit/s with a short queue: 85 % of it at least is goodput."""
    profile = replace(SACKED, window_scale=7, receive_buffer_bytes=1 << 22, send_buffer_bytes=1 << 20)
    done = transfer(profile, Path(delay_ps=10 * MS, rate=1.25e6, queue_bytes=40_000), 5_000_000)
    assert done.dropped_at_queue > 0
    assert done.goodput > 0.85 * 1.25e6
    assert done.sender.retransmitted_segments <= 1.1 * done.dropped_at_queue + 2


def test_reordering_is_not_taken_for_loss() -> None:
    """Segments overtake each other by up to a quarter of the round trip: hardly any is repeated."""
    profile = replace(SACKED, window_scale=7, receive_buffer_bytes=1 << 22, send_buffer_bytes=1 << 20)
    done = transfer(profile, Path(delay_ps=20 * MS, jitter_ps=8 * MS, rate=12.5e6), 3_000_000)
    assert done.sender.retransmitted_segments < 0.01 * done.sent_segments
