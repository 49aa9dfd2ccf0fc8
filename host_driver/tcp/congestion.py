"""How much may be in flight: the interface of congestion control, and NewReno's growth.

An algorithm keeps a window and a threshold. Loss recovery (`fast_recovery`, `sack_recovery`) tells it what happened,
and moves the window itself while a recovery lasts.
"""

# Ref: RFC 5681 §3.1, §4.1; RFC 3465 §2

from __future__ import annotations

MAX_WINDOW_BYTES = 1 << 30
"""The largest window that RFC 7323 can express."""


def initial_window(mss: int, segments: int | None) -> int:
    """Initial congestion window in bytes; `segments` None takes the standard's."""
    if segments is not None:
        return segments * mss
    # RFC 5681 §3.1: "If SMSS > 2190 bytes: IW = 2 * SMSS bytes and MUST NOT be more than 2 segments; if (SMSS > 1095
    # bytes) and (SMSS <= 2190 bytes): IW = 3 * SMSS bytes [...]; if SMSS <= 1095 bytes: IW = 4 * SMSS bytes"
    return mss * (2 if mss > 2190 else 3 if mss > 1095 else 4)


class CongestionControl:
    """What every algorithm has: slow start, the answers to timeouts and idleness, the way back. Sizes are bytes."""

    __slots__ = ("_before", "_initial", "_slow_start_limit", "mss", "reductions", "threshold", "window")

    def __init__(self, mss: int, initial_segments: int | None, slow_start_limit: int | None) -> None:
        """`slow_start_limit`: by how many segments one acknowledgement may let the window grow at most."""
        self.mss = mss
        self._initial = initial_window(mss, initial_segments)
        self._slow_start_limit = MAX_WINDOW_BYTES if slow_start_limit is None else slow_start_limit * mss
        self.window = self._initial
        # RFC 5681 §3.1: "The initial value of ssthresh SHOULD be set arbitrarily high"
        self.threshold = MAX_WINDOW_BYTES
        self.reductions = 0
        """How often the window was reduced because of congestion."""
        self._before = (self.window, self.threshold)

    def grow(self, acked: int, now: int, srtt: int | None) -> None:
        """`acked` new bytes are acknowledged, and the window was in use."""
        if self.window < self.threshold:
            # RFC 5681 §3.1: "cwnd += min (N, SMSS)" (2), N being the bytes newly acknowledged; RFC 3465 §2.2 allows
            # more than one SMSS
            grown = self.window + min(acked, self._slow_start_limit)
        else:
            grown = self._avoid_congestion(acked, now, srtt)
        self.window = min(grown, MAX_WINDOW_BYTES)

    def reduce(self, flight: int, now: int) -> None:
        """A segment was lost, or marked, with `flight` bytes out: sets the threshold. The caller sets the window."""
        self.reductions += 1
        self._before = (self.window, self.threshold)
        self.threshold = max(self._reduced(flight), 2 * self.mss)

    def on_timeout(self, flight: int, now: int, *, is_first: bool) -> None:
        """The retransmission timer expired; `is_first`: for this segment for the first time."""
        # RFC 5681 §3.1: "When a TCP sender detects segment loss using the retransmission timer and the given segment
        # has not yet been resent by way of the retransmission timer, the value of ssthresh MUST be set to no more
        # than the value given in equation (4)" and "upon a timeout [...] cwnd MUST be set to no more than the loss
        # window, LW, which equals 1 full-sized segment"
        if is_first:
            self.reduce(flight, now)
        self.window = self.mss

    def undo(self) -> None:
        """The last reduction turned out to be for nothing."""
        window, threshold = self._before
        self.window = max(self.window, window)
        self.threshold = max(self.threshold, threshold)

    def on_lost_syn(self) -> None:
        """The handshake needed a retransmission."""
        # RFC 5681 §3.1: "if the SYN or SYN/ACK is lost, the initial window used by a sender after a correctly
        # transmitted SYN MUST be one segment"
        self.window = self.mss

    def on_idle(self, idle_ps: int) -> None:
        """Nothing was sent for longer than the retransmission timeout, namely for `idle_ps`."""
        # RFC 5681 §4.1: "cwnd is reduced to the restart window", RW = min(IW, cwnd)
        self.window = min(self._initial, self.window)

    def _avoid_congestion(self, acked: int, now: int, srtt: int | None) -> int:
        """The window after an acknowledgement at or above the threshold."""
        raise NotImplementedError

    def _reduced(self, flight: int) -> int:
        """The threshold after congestion."""
        raise NotImplementedError


class NewReno(CongestionControl):
    """RFC 5681: a segment more for each round trip, and half at congestion."""

    __slots__ = ()

    def _avoid_congestion(self, acked: int, now: int, srtt: int | None) -> int:
        # RFC 5681 §3.1: "cwnd += SMSS*SMSS/cwnd" (3)
        return self.window + max(self.mss * self.mss // self.window, 1)

    def _reduced(self, flight: int) -> int:
        # RFC 5681 §3.1: "ssthresh = max (FlightSize / 2, 2*SMSS)" (4)
        return flight // 2
