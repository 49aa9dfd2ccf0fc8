"""The persist timer: when to look whether a closed window has opened."""

# Ref: RFC 9293 §3.8.6.1

from __future__ import annotations

from host_driver.tcp.profile import Profile
from host_driver.tcp.states import NEVER


class PersistTimer:
    """Runs while something waits to be sent, nothing is outstanding, and the peer's window is too small for it."""

    __slots__ = ("_backoff", "_is_due", "_profile", "_unanswered", "at")

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self.at = NEVER
        """When `expire` must be called."""
        self._backoff = 0
        self._unanswered = 0
        self._is_due = False

    def start(self, now: int, rto: int) -> None:
        """Something waits, or a probe left."""
        # RFC 9293 §3.8.6.1: "The transmitting host SHOULD send the first zero-window probe when a zero window has
        # existed for the retransmission timeout period and SHOULD increase exponentially the interval"
        profile = self._profile
        wait = max(rto, profile.min_persist_ps) << min(self._backoff, 16)
        self.at = now + min(wait, profile.max_persist_ps)

    def expire(self) -> bool:
        """The timer expired: a probe is due. Returns False when too many had no answer."""
        self.at = NEVER
        self._unanswered += 1
        if self._unanswered > self._profile.max_retransmissions:
            # RFC 9293 §3.8.6.1: "As long as the receiving TCP peer continues to send acknowledgments in response to the
            # probe segments, the sending TCP implementation MUST allow the connection to stay open"; here none came.
            return False
        self._backoff += 1
        self._is_due = True
        return True

    def take_probe(self) -> bool:
        """Whether a probe is due; asked once."""
        is_due, self._is_due = self._is_due, False
        return is_due

    def on_answer(self) -> None:
        """The peer acknowledged something, be it what it had acknowledged before."""
        self._unanswered = 0

    def on_progress(self) -> None:
        """New data is acknowledged."""
        self.at = NEVER
        self._backoff = 0
