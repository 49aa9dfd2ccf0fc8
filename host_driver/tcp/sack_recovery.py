"""Loss recovery with SACK: a scoreboard, RACK-TLP to find losses, PRR to pace what is sent again.

Phases: open; fast recovery (`in_recovery`), until all is acknowledged that was out when it began; and the recovery that
follows a timeout, in slow start.
"""

# Ref: RFC 6675 §4, §5; RFC 8985 §6 to §8; RFC 6937 §3; RFC 2883 §5; RFC 2018 §8

from __future__ import annotations

from host_driver.tcp.congestion import CongestionControl
from host_driver.tcp.prr import RateReduction
from host_driver.tcp.rack import Rack, TailLossProbe
from host_driver.tcp.recovery import LossRecovery
from host_driver.tcp.sack import Block, Scoreboard, Sent
from host_driver.tcp.states import NEVER


class SackRecovery(LossRecovery):
    """SND.NXT never goes back here: what is lost is known by position."""

    __slots__ = ("_after_timeout", "_is_first_due", "_probe", "_probe_due", "_prr", "_rack", "_recovery_point",
                 "_srtt", "_timer_is_probe", "_undo_bytes", "_undo_from", "board")

    def __init__(self, control: CongestionControl) -> None:
        super().__init__(control)
        self.board = Scoreboard()
        self._rack = Rack(control.mss)
        self._probe = TailLossProbe()
        self._prr = RateReduction(control.mss)
        self._srtt: int | None = None
        self._after_timeout = False
        self._recovery_point = 0
        self._is_first_due = False  # one segment leaves at the start of a recovery, whatever the window says
        self._timer_is_probe = False
        self._probe_due = False
        self._undo_from: int | None = None  # where the recovery began that could be undone
        self._undo_bytes = 0  # sent again since then, and not reported as duplicates

    # Sending ---------------------------------------------------------------------------------------------------------

    @property
    def has_again(self) -> bool:
        """Whether `next_again` may give something."""
        return self.board.lost_bytes > 0 or self._probe_due

    def room(self, una: int, nxt: int) -> int:
        """Bytes that may leave now: the window without what is in flight."""
        # RFC 6675 §5 (C): "If cwnd - pipe >= 1 SMSS, the sender SHOULD transmit one or more segments"
        return self.control.window - self.board.in_flight

    def next_again(self, una: int, nxt: int) -> Block | None:
        """The first lost segment, if the window lets a whole one leave."""
        segment = self.board.first_lost()
        if segment is None:
            return None
        length = segment.end - segment.start
        room = self.control.window - self.board.in_flight
        mss = self.control.mss
        if room < min(length, mss):
            if not self._is_first_due:
                self.is_limiting = True
                return None
            room = mss
        self._is_first_due = False
        return segment.start, segment.start + min(length, max(room - room % mss, mss))

    def on_sent(self, start: int, end: int, now: int, *, is_again: bool) -> None:
        """A segment leaves."""
        self.board.on_sent(start, end, now, is_again)
        if self.in_recovery:
            self._prr.on_sent(end - start)
        if is_again and self._undo_from is not None:
            self._undo_bytes += end - start

    # Arrival ---------------------------------------------------------------------------------------------------------

    def on_ack(self, una: int, ack: int, highest: int, blocks: list[Block], now: int, srtt: int | None, *,
               is_duplicate: bool, echo_ps: int | None) -> int | None:
        """SND.UNA goes from `una` to `ack`, unless it is an old one, and the peer reports `blocks`."""
        board = self.board
        flight = highest - una
        self._srtt = srtt
        if not blocks and not self.in_recovery and not self._after_timeout and not board.sacked_bytes:
            # the usual acknowledgement
            delivered = board.acknowledge(ack)
            self._rack.on_delivered(delivered, now, echo_ps)
            if ack > una and not self._timer_is_probe:
                self.timer_at = NEVER  # what the reordering timer was for has arrived
            if self._probe.is_out and self._probe.on_ack(ack, None, is_duplicate=is_duplicate):
                self._reduce_at_once(flight, now)
            elif ack > una and self.is_limiting:
                self.control.grow(ack - una, now, srtt)
            return _round_trip(delivered, now)

        dsack, blocks = _split(blocks, ack)
        ack = max(ack, una)
        sacked_before = board.sacked_bytes
        delivered = board.acknowledge(ack)
        news = board.select([(max(start, ack), min(end, highest)) for start, end in blocks])
        rtt = _round_trip(delivered or news, now)
        self._rack.on_delivered([*delivered, *news], now, echo_ps)
        delivered_bytes = ack - una + board.sacked_bytes - sacked_before
        if dsack is not None:
            self._on_dsack(dsack, ack, highest)
        if self._probe.is_out and self._probe.on_ack(ack, dsack, is_duplicate=is_duplicate):
            self._reduce_at_once(flight, now)
        if (self.in_recovery or self._after_timeout) and ack >= self._recovery_point:
            self._end_recovery()
        elif not self.in_recovery and ack > una and self.is_limiting:
            self.control.grow(ack - una, now, srtt)
        self._detect_loss(flight, highest, now)
        if self.in_recovery:
            self.control.window = self._prr.window(delivered_bytes, board.in_flight, self.control.threshold)
        return rtt

    def _on_dsack(self, dsack: Block, ack: int, highest: int) -> None:
        self._rack.on_dsack(ack, highest)
        if self._undo_from is None or not self._undo_bytes or dsack[0] < self._undo_from:
            return
        # All that was sent again arrived twice: nothing had been lost, only late (RFC 2883 §5; RFC 3708 §2).
        self._undo_bytes -= dsack[1] - dsack[0]
        if self._undo_bytes <= 0:
            self._undo_from = None
            self.control.undo()
            if self.in_recovery or self._after_timeout:
                self.in_recovery = self._after_timeout = False
                self.board.forget_losses()

    def _detect_loss(self, flight: int, highest: int, now: int) -> None:
        board = self.board
        is_recovering = self.in_recovery or self._after_timeout
        wait = self._rack.detect_loss(board, now, self._srtt, in_recovery=is_recovering)
        # RFC 8985 §6.2 step 5: "If timeout != 0: Arm the RACK reordering timer"
        self._timer_is_probe = False
        self.timer_at = now + wait if wait else NEVER
        if board.lost_bytes and not is_recovering:
            self._begin_recovery(flight, highest, now)

    def _begin_recovery(self, flight: int, highest: int, now: int) -> None:
        # RFC 6675 §5 (4.1): "RecoveryPoint = HighData"; (4.2): "ssthresh = cwnd = (FlightSize / 2)", the window being
        # PRR's here, and the half the algorithm's
        self.in_recovery = True
        self._recovery_point = highest
        self._undo_from = self.board.segments[0].start
        self._undo_bytes = 0
        self._prr.start(flight)
        # Segments beyond the window, which selective acknowledgements had let go, are not the path's capacity.
        self.control.reduce(min(flight, self.control.window), now)
        # (4.3): "Retransmit the first data segment presumed dropped"
        self._is_first_due = True
        self._probe.cancel()

    def _end_recovery(self) -> None:
        if self.in_recovery:
            # RFC 6937 §3: at the end of recovery, cwnd is ssthresh
            self.control.window = self.control.threshold
        self.in_recovery = self._after_timeout = False
        self._is_first_due = False
        self._rack.on_recovery_over()

    def _reduce_at_once(self, flight: int, now: int) -> None:
        """A congestion that needs no recovery: a probe repaired it."""
        self.control.reduce(min(flight, self.control.window), now)
        self.control.window = self.control.threshold

    # Timers ----------------------------------------------------------------------------------------------------------

    def on_timeout(self, una: int, highest: int, now: int, *, is_first: bool) -> int:
        """The retransmission timer expired."""
        board = self.board
        segments = board.segments
        flight = highest - una
        if segments and segments[0].is_sacked:
            # RFC 2018 §8: "After a retransmit timeout the data sender SHOULD turn off all of the SACKed bits, since the
            # timeout might indicate that the data receiver has reneged." RFC 6675 §5.1 lets it keep them without a sign
            # of that; that the first is missing which was reported is one.
            board.forget_sacks()
            for segment in segments:
                if not segment.is_lost:
                    board.lose(segment)
        else:
            self._rack.mark_losses_on_timeout(board, now, self._srtt)
        if is_first and not self._after_timeout:
            self._undo_from = segments[0].start if segments else None
            self._undo_bytes = 0
        self.control.on_timeout(min(flight, self.control.window), now, is_first=is_first)
        self.in_recovery = False
        self._after_timeout = True
        self._recovery_point = highest
        # RFC 6298 §5.4: "Retransmit the earliest segment that has not been acknowledged by the TCP receiver."
        self._is_first_due = True
        self._probe.cancel()
        self._probe_due = False
        self.timer_at = NEVER
        return highest

    def lower_mss(self, mss: int, una: int, nxt: int) -> int:
        """What is out was too large for the path, and counts as lost; the window stays."""
        self.control.mss = self._rack.mss = self._prr.mss = mss
        for segment in self.board.segments:
            if not segment.is_sacked and not segment.is_lost:
                self.board.lose(segment)
        self.in_recovery = False
        self._after_timeout = True
        self._recovery_point = nxt
        self._is_first_due = True
        self._probe.cancel()
        self._probe_due = False
        self.timer_at = NEVER
        return nxt

    def on_timer(self, nxt: int, now: int) -> bool:
        """The reordering timer or that of the probe expired."""
        self.timer_at = NEVER
        if self._timer_is_probe:
            self._probe_due = bool(self.board.segments)
            return self._probe_due
        segments = self.board.segments
        flight = nxt - segments[0].start if segments else 0
        self._detect_loss(flight, nxt, now)
        if self.in_recovery:
            self.control.window = self._prr.window(0, self.board.in_flight, self.control.threshold)
        return False

    def schedule_probe(self, now: int, srtt: int | None, timeout_at: int) -> None:
        """Something was sent or acknowledged."""
        board = self.board
        if self.timer_at != NEVER and not self._timer_is_probe:
            return  # the reordering timer runs
        # RFC 8985 §7.2: no probe during recovery, nor with a SACK scoreboard that is not empty, nor behind another
        if (not board.segments or board.sacked_bytes or self.in_recovery or self._after_timeout or self._probe.is_out
                or timeout_at == NEVER):
            self.timer_at = NEVER
            return
        segments = board.segments
        pto = self._probe.timeout(srtt, segments[-1].end - segments[0].start, self.control.mss)
        # §7.2: "If Now() + PTO > TCP_RTO_expiration(): PTO = TCP_RTO_expiration() - Now()"
        self.timer_at = min(now + pto, timeout_at)
        self._timer_is_probe = True

    def take_probe(self) -> Block | None:
        """What a tail loss probe that is due sends again if nothing new may be sent; asked once."""
        is_due, self._probe_due = self._probe_due, False
        if not is_due or not self.board.segments:
            return None
        last = self.board.segments[-1]
        return max(last.start, last.end - self.control.mss), last.end

    def on_probe_sent(self, nxt: int, *, is_retransmission: bool) -> None:
        """The probe left."""
        self._probe.on_probe_sent(nxt, is_retransmission=is_retransmission)


def _split(blocks: list[Block], ack: int) -> tuple[Block | None, list[Block]]:
    """The D-SACK block, if the first is one, and the others."""
    if not blocks:
        return None, blocks
    first = blocks[0]
    # RFC 2883 §4: a first block below the cumulative acknowledgement, or within the second block, tells of a duplicate
    if first[1] <= ack or (len(blocks) > 1 and blocks[1][0] <= first[0] and first[1] <= blocks[1][1]):
        return first, blocks[1:]
    return None, blocks


def _round_trip(delivered: list[Sent], now: int) -> int | None:
    """The time since the first of `delivered` that was sent only once."""
    # RFC 6298 §3: "RTT samples MUST NOT be made using segments that were retransmitted"
    for segment in delivered:
        if not segment.is_again:
            return now - segment.sent_at
    return None
