"""Round-trip time and retransmission timeout, in picoseconds."""

# Ref: RFC 6298; Karn's algorithm

from __future__ import annotations

from host_driver.tcp.profile import SECOND, Profile

RTO_AFTER_LOST_SYN_PS = 3 * SECOND


class RttEstimator:
    """Times one segment at a time and derives the retransmission timeout `rto`."""

    __slots__ = ("_profile", "_timed_position", "_timed_since", "rto", "srtt", "variation")

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        # RFC 6298 §2.1: "Until a round-trip time (RTT) measurement has been made for a segment sent between the
        # sender and receiver, the sender SHOULD set RTO <- 1 second"
        self.rto = profile.initial_rto_ps
        self.srtt: int | None = None
        self.variation = 0
        self._timed_position: int | None = None
        self._timed_since = 0

    def time(self, position: int, now: int) -> None:
        """A segment that ends at `position` leaves for the first time; it is timed unless another one is."""
        if self._timed_position is None:
            self._timed_position = position
            self._timed_since = now

    def cancel(self) -> None:
        """Something was retransmitted."""
        # RFC 6298 §3: "RTT samples MUST NOT be made using segments that were retransmitted"
        self._timed_position = None

    def acknowledge(self, position: int, now: int) -> bool:
        """All before `position` is acknowledged; returns whether that gave a measurement."""
        if self._timed_position is not None and position >= self._timed_position:
            self._timed_position = None
            self.sample(now - self._timed_since)
            return True
        return False

    def back_off(self) -> None:
        """The timer expired."""
        # RFC 6298 §5.5: "The host MUST set RTO <- RTO * 2 ("back off the timer")"
        self.rto = min(self.rto * 2, self._profile.max_rto_ps)

    def after_lost_syn(self) -> None:
        """The handshake ended after its SYN had been sent again."""
        # RFC 6298 §5.7: "If the timer expires awaiting the ACK of a SYN segment and the TCP implementation is using an
        # RTO less than 3 seconds, the RTO MUST be re-initialized to 3 seconds when data transmission begins"
        if self.srtt is None:
            self.rto = max(self._profile.initial_rto_ps, RTO_AFTER_LOST_SYN_PS)

    def sample(self, rtt: int, expected_samples: int = 1) -> None:
        """A round trip took `rtt`; `expected_samples` of them are measured in a round trip."""
        if self.srtt is None:
            # RFC 6298 §2.2: "SRTT <- R, RTTVAR <- R/2"
            self.srtt = rtt
            self.variation = rtt // 2
        else:
            # RFC 6298 §2.3: "RTTVAR <- (1 - beta) * RTTVAR + beta * |SRTT - R'|, SRTT <- (1 - alpha) * SRTT + alpha *
            # R'", with alpha = 1/8 and beta = 1/4; RFC 7323 appendix G divides both by the expected samples
            n = 4 * expected_samples
            self.variation = ((n - 1) * self.variation + abs(self.srtt - rtt)) // n
            n = 8 * expected_samples
            self.srtt = ((n - 1) * self.srtt + rtt) // n
        # RFC 6298 §2.3 and §2.4: "RTO <- SRTT + max (G, K*RTTVAR)", K = 4, not below the minimum
        profile = self._profile
        rto = self.srtt + max(profile.granularity_ps, 4 * self.variation)
        self.rto = min(max(rto, profile.min_rto_ps), profile.max_rto_ps)
