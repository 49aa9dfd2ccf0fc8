"""How much may be in flight: slow start, congestion avoidance, fast retransmit and fast recovery (NewReno)."""

# Ref: RFC 5681; RFC 6582; RFC 3042

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


class NewReno:
    """State of one connection's congestion control. Positions are unwrapped sequence numbers, sizes bytes."""

    __slots__ = ("_initial", "_limited_transmit", "duplicate_acks", "in_recovery", "mss", "recover", "threshold",
                 "window")

    def __init__(self, mss: int, initial_segments: int | None, iss: int, limited_transmit: bool) -> None:
        self.mss = mss
        self._initial = initial_window(mss, initial_segments)
        self._limited_transmit = limited_transmit
        self.window = self._initial
        # RFC 5681 §3.1: "The initial value of ssthresh SHOULD be set arbitrarily high"
        self.threshold = MAX_WINDOW_BYTES
        self.duplicate_acks = 0
        self.in_recovery = False
        # RFC 6582 §3.2 step 1 starts with the ISS; taken literally, the loss of the first data segment could not be
        # recovered fast (its duplicate acknowledgements cover just the ISS), so it starts one before.
        self.recover = iss - 1

    def allowance(self) -> int:
        """Bytes that may be in flight now."""
        if self._limited_transmit and not self.in_recovery and self.duplicate_acks:
            # RFC 3042 §2: "the amount of outstanding data would remain less than or equal to the congestion window
            # plus 2 segments"
            return self.window + min(self.duplicate_acks, 2) * self.mss
        return self.window

    def on_ack(self, position: int, acked: int, flight: int) -> bool:
        """`acked` new bytes are acknowledged, up to `position`; `flight` bytes were out before.

        Returns whether the first unacknowledged segment must be sent again.
        """
        mss = self.mss
        self.duplicate_acks = 0
        if self.in_recovery:
            if position > self.recover:
                # RFC 6582 §3.2 step 3, full acknowledgments: "Set cwnd to [...] min (ssthresh, max(FlightSize, SMSS) +
                # SMSS) [...] Exit the fast recovery procedure."
                self.window = min(self.threshold, max(flight - acked, mss) + mss)
                self.in_recovery = False
                return False
            # RFC 6582 §3.2 step 3, partial acknowledgments: "retransmit the first unacknowledged segment. Deflate the
            # congestion window by the amount of new data acknowledged [...]. If the partial ACK acknowledges at least
            # one SMSS of new data, then add back SMSS bytes to the congestion window."
            self.window = max(self.window - acked + (mss if acked >= mss else 0), mss)
            return True
        # A sender that did not fill the window has not learned that a larger one would do.
        if flight + mss > self.window:
            if self.window < self.threshold:
                # RFC 5681 §3.1: "cwnd += min (N, SMSS)" (2), N being the bytes newly acknowledged
                grown = self.window + min(acked, mss)
            else:
                # RFC 5681 §3.1: "cwnd += SMSS*SMSS/cwnd" (3)
                grown = self.window + max(mss * mss // self.window, 1)
            self.window = min(grown, MAX_WINDOW_BYTES)
        return False

    def on_duplicate_ack(self, position: int, highest: int, flight: int) -> bool:
        """One more acknowledgement of just `position`; `highest` is the position behind the last byte ever sent.

        Returns whether the segment at `position` must be sent again.
        """
        mss = self.mss
        if self.in_recovery:
            # RFC 5681 §3.2 step 4: "For each additional duplicate ACK received (after the third), cwnd MUST be
            # incremented by SMSS."
            self.window += mss
            return False
        self.duplicate_acks += 1
        if self.duplicate_acks != 3:
            return False
        # RFC 6582 §3.2 step 2: "check to see if the Cumulative Acknowledgment field covers more than recover. If so,
        # the value of recover is incremented to the value of the highest sequence number transmitted by the TCP so
        # far. The TCP then enters fast retransmit"
        if position - 1 <= self.recover:
            return False
        self.recover = highest - 1
        # RFC 5681 §3.2 steps 2 and 3: "ssthresh MUST be set to no more than [...] max (FlightSize / 2, 2*SMSS) (4)
        # [...] and cwnd set to ssthresh plus 3*SMSS." Limited transmit's segments are not counted.
        if self._limited_transmit:
            flight = max(flight - 2 * mss, 0)
        self.threshold = max(flight // 2, 2 * mss)
        self.window = self.threshold + 3 * mss
        self.in_recovery = True
        return True

    def on_timeout(self, highest: int, flight: int, *, is_first: bool) -> None:
        """The retransmission timer expired; `is_first`: for this segment for the first time."""
        # RFC 5681 §3.1: "When a TCP sender detects segment loss using the retransmission timer and the given segment
        # has not yet been resent by way of the retransmission timer, the value of ssthresh MUST be set to no more
        # than the value given in equation (4)" and "upon a timeout [...] cwnd MUST be set to no more than the loss
        # window, LW, which equals 1 full-sized segment"
        if is_first:
            self.threshold = max(flight // 2, 2 * self.mss)
        self.window = self.mss
        # RFC 6582 §3.2 step 4: "After a retransmit timeout, record the highest sequence number transmitted in the
        # variable recover, and exit the fast recovery procedure if applicable."
        self.recover = highest - 1
        self.in_recovery = False
        self.duplicate_acks = 0

    def on_lost_syn(self) -> None:
        """The handshake needed a retransmission."""
        # RFC 5681 §3.1: "if the SYN or SYN/ACK is lost, the initial window used by a sender after a correctly
        # transmitted SYN MUST be one segment"
        self.window = self.mss

    def on_idle(self) -> None:
        """Nothing was sent for longer than the retransmission timeout."""
        # RFC 5681 §4.1: "cwnd is reduced to the restart window", RW = min(IW, cwnd)
        self.window = min(self._initial, self.window)
