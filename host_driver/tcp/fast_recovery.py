"""Loss recovery without SACK: duplicate acknowledgements, fast retransmit and fast recovery."""

# Ref: RFC 5681 §3.2; RFC 6582 §3.2; RFC 3042 §2

from __future__ import annotations

from host_driver.tcp.congestion import CongestionControl
from host_driver.tcp.recovery import LossRecovery
from host_driver.tcp.sack import Block


class FastRecovery(LossRecovery):
    """RFC 6582 (NewReno) over the cumulative acknowledgement alone."""

    __slots__ = ("_is_again_due", "_limited_transmit", "duplicate_acks", "recover")

    def __init__(self, control: CongestionControl, iss: int, limited_transmit: bool) -> None:
        super().__init__(control)
        self._limited_transmit = limited_transmit
        self.duplicate_acks = 0
        # RFC 6582 §3.2 step 1 starts with the ISS; taken literally, the loss of the first data segment could not be
        # recovered fast (its duplicate acknowledgements cover just the ISS), so it starts one before.
        self.recover = iss - 1
        self._is_again_due = False

    def room(self, una: int, nxt: int) -> int:
        """Bytes that may leave behind `nxt` now."""
        window = self.control.window
        if self._limited_transmit and not self.in_recovery and self.duplicate_acks:
            # RFC 3042 §2: "the amount of outstanding data would remain less than or equal to the congestion window
            # plus 2 segments"
            window += min(self.duplicate_acks, 2) * self.control.mss
        return window - (nxt - una)

    def next_again(self, una: int, nxt: int) -> Block | None:
        """The first segment, once for each time that it was found lost."""
        if self._is_again_due and nxt > una:
            self._is_again_due = False
            return una, min(una + self.control.mss, nxt)
        return None

    @property
    def has_again(self) -> bool:
        """Whether `next_again` may give something."""
        return self._is_again_due

    def on_ack(self, una: int, ack: int, highest: int, blocks: list[Block], now: int, srtt: int | None, *,
               is_duplicate: bool, echo_ps: int | None) -> int | None:
        """The first unacknowledged position moves from `una` to `ack`, or is repeated."""
        if ack > una:
            self._on_progress(ack, ack - una, highest - una, now, srtt)
        elif is_duplicate:
            self._on_duplicate(ack, highest, highest - una, now)
        return None

    def _on_progress(self, position: int, acked: int, flight: int, now: int, srtt: int | None) -> None:
        control = self.control
        mss = control.mss
        self.duplicate_acks = 0
        if not self.in_recovery:
            # A sender that did not fill the window has not learned that a larger one would do.
            if flight + mss > control.window:
                control.grow(acked, now, srtt)
        elif position > self.recover:
            # RFC 6582 §3.2 step 3, full acknowledgments: "Set cwnd to [...] min (ssthresh, max(FlightSize, SMSS) +
            # SMSS) [...] Exit the fast recovery procedure."
            control.window = min(control.threshold, max(flight - acked, mss) + mss)
            self.in_recovery = False
        else:
            # RFC 6582 §3.2 step 3, partial acknowledgments: "retransmit the first unacknowledged segment. Deflate the
            # congestion window by the amount of new data acknowledged [...]. If the partial ACK acknowledges at least
            # one SMSS of new data, then add back SMSS bytes to the congestion window."
            control.window = max(control.window - acked + (mss if acked >= mss else 0), mss)
            self._is_again_due = True

    def _on_duplicate(self, position: int, highest: int, flight: int, now: int) -> None:
        control = self.control
        mss = control.mss
        if self.in_recovery:
            # RFC 5681 §3.2 step 4: "For each additional duplicate ACK received (after the third), cwnd MUST be
            # incremented by SMSS."
            control.window += mss
            return
        self.duplicate_acks += 1
        if self.duplicate_acks != 3:
            return
        # RFC 6582 §3.2 step 2: "check to see if the Cumulative Acknowledgment field covers more than recover. If so,
        # the value of recover is incremented to the value of the highest sequence number transmitted by the TCP so
        # far. The TCP then enters fast retransmit"
        if position - 1 <= self.recover:
            return
        self.recover = highest - 1
        # RFC 5681 §3.2 steps 2 and 3: "ssthresh MUST be set to no more than [...] max (FlightSize / 2, 2*SMSS) (4)
        # [...] and cwnd set to ssthresh plus 3*SMSS." Limited transmit's segments are not counted.
        if self._limited_transmit:
            flight = max(flight - 2 * mss, 0)
        control.reduce(flight, now)
        control.window = control.threshold + 3 * mss
        self.in_recovery = True
        self._is_again_due = True

    def on_timeout(self, una: int, highest: int, now: int, *, is_first: bool) -> int:
        """The retransmission timer expired: go back to the first unacknowledged byte."""
        self.control.on_timeout(highest - una, now, is_first=is_first)
        # RFC 6582 §3.2 step 4: "After a retransmit timeout, record the highest sequence number transmitted in the
        # variable recover, and exit the fast recovery procedure if applicable."
        self.recover = highest - 1
        self.in_recovery = False
        self.duplicate_acks = 0
        self._is_again_due = False
        return una
