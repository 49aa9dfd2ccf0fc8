"""CUBIC: the window follows a cubic function of the time since the last congestion, whatever the round-trip time."""

# Ref: RFC 9438 §4

from __future__ import annotations

from math import cbrt

from host_driver.tcp.congestion import CongestionControl
from host_driver.tcp.profile import SECOND

C = 0.4
"""In segments per cubic second (RFC 9438 §5)."""
BETA_CUBIC = 0.7
"""What is left of the window after congestion."""
ALPHA_CUBIC = 3 * (1 - BETA_CUBIC) / (1 + BETA_CUBIC)
"""What a Reno that reduces to `BETA_CUBIC` only would add for each round trip, to be as fast as one that halves."""


class Cubic(CongestionControl):
    """RFC 9438. Its windows are counted in segments there, as a fraction; here `window` and `threshold` in bytes."""

    __slots__ = ("_cwnd", "_cwnd_prior", "_epoch_start", "_k", "_w_est", "_w_max")

    def __init__(self, mss: int, initial_segments: int | None, slow_start_limit: int | None) -> None:
        super().__init__(mss, initial_segments, slow_start_limit)
        self._w_max = 0.0
        self._cwnd_prior = 0.0
        self._epoch_start: int | None = None
        self._k = 0.0
        self._w_est = 0.0
        self._cwnd = 0.0  # the window with its fraction

    def on_timeout(self, flight: int, now: int, *, is_first: bool) -> None:
        """Reno's answer, and the next congestion avoidance starts from what it finds."""
        super().on_timeout(flight, now, is_first=is_first)
        # RFC 9438 §4.8: in the first congestion avoidance after a timeout, K is 0 and W_max is the window that it
        # starts with; `_begin_epoch` does so when no W_max is above the window
        self._w_max = 0.0
        self._epoch_start = None

    def on_idle(self, idle_ps: int) -> None:
        """Idle time does not count."""
        super().on_idle(idle_ps)
        # RFC 9438 §5.8: time without anything to send must not let the function run away
        self._epoch_start = None

    def undo(self) -> None:
        """The last reduction turned out to be for nothing."""
        super().undo()
        self._w_max = max(self._w_max, self._cwnd_prior)
        self._epoch_start = None

    def _reduced(self, flight: int) -> int:
        cwnd = self.window / self.mss
        # RFC 9438 §4.7, fast convergence: a W_max that was not reached again is taken back further, to
        # cwnd * (1 + beta_cubic) / 2, so that new flows find room; otherwise it is cwnd
        self._w_max = cwnd * (1 + BETA_CUBIC) / 2 if cwnd < self._w_max else cwnd
        self._cwnd_prior = cwnd
        self._epoch_start = None
        # §4.6: ssthresh = flight_size * beta_cubic
        return round(flight * BETA_CUBIC)

    def _avoid_congestion(self, acked: int, now: int, srtt: int | None) -> int:
        mss = self.mss
        if self._epoch_start is None:
            self._begin_epoch(now)
        cwnd = self._cwnd
        if int(cwnd * mss) != self.window:
            cwnd = self.window / mss  # somebody else moved it
        assert self._epoch_start is not None
        segments_acked = acked / mss
        t = (now - self._epoch_start) / SECOND
        # §4.3: W_est = W_est + alpha_cubic * segments_acked / cwnd; alpha_cubic is 1 once W_est has reached the window
        # of before the reduction
        alpha = 1.0 if self._w_est >= self._cwnd_prior else ALPHA_CUBIC
        self._w_est += alpha * segments_acked / cwnd
        if self._w_cubic(t) < self._w_est:
            # §4.3: the Reno-friendly region, where cwnd is W_est
            cwnd = max(cwnd, self._w_est)
        else:
            # §4.2: target is W_cubic(t + RTT), at least cwnd and at most 1.5 * cwnd; §4.4, §4.5: cwnd grows by
            # (target - cwnd) / cwnd for each new ACK, which means one segment: here for all that it acknowledges
            target = min(max(self._w_cubic(t + (srtt or 0) / SECOND), cwnd), 1.5 * cwnd)
            cwnd += (target - cwnd) * min(segments_acked / cwnd, 1.0)
        self._cwnd = cwnd
        return int(cwnd * mss)

    def _begin_epoch(self, now: int) -> None:
        # §4.2: K is the cubic root of (W_max - cwnd_epoch) / C, cwnd_epoch being the window now; above W_max there is
        # no plateau to come back to
        self._cwnd = self._w_est = self.window / self.mss
        self._epoch_start = now
        if self._cwnd < self._w_max:
            self._k = cbrt((self._w_max - self._cwnd) / C)
        else:
            self._k = 0.0
            self._w_max = self._cwnd

    def _w_cubic(self, t: float) -> float:
        # §4.2: W_cubic(t) = C * (t - K)^3 + W_max
        return C * (t - self._k) ** 3 + self._w_max
