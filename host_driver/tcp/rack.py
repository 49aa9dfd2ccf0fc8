"""RACK-TLP: which segments are lost, told by time instead of by counting, and the probe that makes a tail's loss known.

Times are picoseconds, positions unwrapped sequence numbers.
"""

# Ref: RFC 8985 §5, §6 (RACK), §7 (TLP)

from __future__ import annotations

from host_driver.tcp.profile import MS, SECOND
from host_driver.tcp.sack import Scoreboard, Sent

DUP_THRESH = 3
"""RFC 5681's, which RACK keeps as long as no reordering was seen."""
MAX_ACK_DELAY_PS = 200 * MS
"""TLP.max_ack_delay: how long a receiver may wait with the acknowledgement of a single segment (RFC 8985 §7.2)."""
MIN_PROBE_PS = 2 * MS
"""No probe earlier than that, or two stacks without any delay between them would probe at once."""
REO_WND_PERSIST = 16
"""Recoveries for which a reordering window stays enlarged (RFC 8985 §6.2 step 4)."""


class Rack:
    """RACK's state and its steps, named as in RFC 8985 §6.2."""

    __slots__ = ("_dsack_round", "_end_seq", "_fack", "_order", "_reo_wnd_mult", "_reo_wnd_persist",
                 "_reordering_seen", "min_rtt", "mss", "rtt")

    def __init__(self, mss: int) -> None:
        self.mss = mss
        self.rtt: int | None = None
        """Round-trip time of the segment that was delivered most recently."""
        self.min_rtt: int | None = None
        self._order = 0  # in place of RACK.xmit_ts: exact where several segments leave at a time
        self._end_seq = 0
        self._fack = 0
        self._reordering_seen = False
        self._dsack_round: int | None = None
        self._reo_wnd_mult = 1
        self._reo_wnd_persist = 0

    def on_delivered(self, segments: list[Sent], now: int, echo_ps: int | None) -> None:
        """Steps 1 to 3: `segments` are newly acknowledged, cumulatively or selectively."""
        for segment in segments:
            end = segment.end
            rtt = now - segment.sent_at
            if segment.is_again:
                # step 2: a segment that was sent again may have been acknowledged for its first transmission. It was
                # if the peer echoes a timestamp from before the last one, or if that took less than any round trip.
                if (echo_ps is not None and echo_ps > rtt + MS) or (self.min_rtt is not None and rtt < self.min_rtt):
                    continue
            elif self.min_rtt is None or rtt < self.min_rtt:
                self.min_rtt = rtt
            self.rtt = rtt
            order = segment.order
            if order > self._order or (order == self._order and end > self._end_seq):
                self._order, self._end_seq = order, end
            # step 3: an original transmission that arrives behind RACK.fack, the highest that arrived, was overtaken
            if end > self._fack:
                self._fack = end
            elif end < self._fack and not segment.is_again:
                self._reordering_seen = True

    def on_dsack(self, una: int, nxt: int) -> None:
        """The peer tells of a duplicate: something was sent again needlessly."""
        # step 4: the reordering window grows once a round trip in which D-SACKs come
        if self._dsack_round is not None and una >= self._dsack_round:
            self._dsack_round = None
        if self._dsack_round is None:
            self._dsack_round = nxt
            self._reo_wnd_mult += 1
            self._reo_wnd_persist = REO_WND_PERSIST

    def on_recovery_over(self) -> None:
        """A fast recovery, or that after a timeout, ended."""
        self._reo_wnd_persist -= 1
        if self._reo_wnd_persist <= 0:
            self._reo_wnd_mult = 1

    def _reo_wnd(self, sacked_bytes: int, srtt: int | None, *, in_recovery: bool) -> int:
        # step 4: as long as the path has not reordered any segment, there is no waiting for some in recovery, or when
        # DupThresh segments are reported
        if not self._reordering_seen and (in_recovery or sacked_bytes > (DUP_THRESH - 1) * self.mss):
            return 0
        # "return min(RACK.reo_wnd_mult * RACK.min_RTT / 4, SRTT)"
        return min(self._reo_wnd_mult * (self.min_rtt or 0) // 4, srtt or 0)

    def detect_loss(self, board: Scoreboard, now: int, srtt: int | None, *, in_recovery: bool) -> int:
        """Step 5: mark what is lost; returns how long to wait before looking again, 0 for not at all."""
        if self.rtt is None or not board.segments:
            return 0
        patience = self.rtt + self._reo_wnd(board.sacked_bytes, srtt, in_recovery=in_recovery)
        newest, end_seq = self._order, self._end_seq
        una = board.segments[0].start
        queue = board.by_time()
        while queue:
            order, segment = queue[0]
            if segment.order == order and not segment.is_sacked and not segment.is_lost and segment.end > una:
                # RACK_sent_after: what was delivered most recently was sent later than this; or it stands further
                # behind in the same send, which the device cut up
                if order > newest or (order == newest and end_seq <= segment.end):
                    return 0
                if segment.sent_at + patience > now:
                    break  # and so it is for all behind it
                board.lose(segment)
            queue.popleft()
        wait = 0
        for order, segment in queue:
            if order > newest or (order == newest and end_seq <= segment.end):
                break
            if segment.order == order and not segment.is_sacked and not segment.is_lost and segment.end > una:
                wait = segment.sent_at + patience - now
        return wait

    def mark_losses_on_timeout(self, board: Scoreboard, now: int, srtt: int | None) -> None:
        """RFC 8985 §6.3: the first segment is lost, and all whose time is over."""
        patience = None if self.rtt is None else self.rtt + self._reo_wnd(board.sacked_bytes, srtt, in_recovery=False)
        for number, segment in enumerate(board.segments):
            if not segment.is_lost and not segment.is_sacked and (
                    number == 0 or patience is None or segment.sent_at + patience <= now):
                board.lose(segment)


class TailLossProbe:
    """When to probe, and what the answer means (RFC 8985 §7)."""

    __slots__ = ("_end_seq", "_is_retransmission")

    def __init__(self) -> None:
        self._end_seq: int | None = None
        self._is_retransmission = False

    @property
    def is_out(self) -> bool:
        """Whether a probe has no answer yet."""
        return self._end_seq is not None

    @staticmethod
    def timeout(srtt: int | None, flight: int, mss: int) -> int:
        """PTO: how long after the last transmission or progress the probe is due."""
        # §7.2: PTO is 2 * SRTT, and TLP.max_ack_delay more if FlightSize is one segment; 1 second without an SRTT
        if srtt is None:
            return SECOND
        pto = 2 * srtt
        if flight <= mss:
            pto += MAX_ACK_DELAY_PS
        return max(pto, MIN_PROBE_PS)

    def on_probe_sent(self, nxt: int, *, is_retransmission: bool) -> None:
        """A probe leaves, everything up to `nxt` having been sent."""
        self._end_seq = nxt
        self._is_retransmission = is_retransmission

    def cancel(self) -> None:
        """Recovery has begun: the probe's answer no longer matters."""
        self._end_seq = None

    def on_ack(self, ack: int, dsack: tuple[int, int] | None, *, is_duplicate: bool) -> bool:
        """An acknowledgement arrives; returns whether the probe repaired a loss that nothing else told of."""
        # §7.4.2
        if self._end_seq is None or ack < self._end_seq:
            return False
        if not self._is_retransmission or (dsack is not None and dsack[1] == self._end_seq):
            # new data, or case 1: the original and the probe arrived
            self._end_seq = None
            return False
        if ack > self._end_seq:
            # case 2: without a D-SACK, only one of original and probe arrived: the probe repaired a loss
            self._end_seq = None
            return True
        if is_duplicate:
            # case 3: a duplicate acknowledgement: the probe arrived a second time at a receiver without D-SACK
            self._end_seq = None
        return False
