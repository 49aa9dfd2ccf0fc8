"""Whether the peer is still there: keep-alive and the user timeout, of connections whose user asks for them."""

# Ref: RFC 9293 §3.8.3, §3.8.4, §3.10.8

from __future__ import annotations

from enum import Enum

from host_driver.tcp.profile import Profile
from host_driver.tcp.states import NEVER


class Due(Enum):
    """What a timer that ran out asks of the connection."""

    NOTHING = "it was early"
    PROBE = "send a keep-alive probe"
    SILENT = "no probe was answered: give up"
    NO_PROGRESS = "the user timeout is over: give up"


class Liveness:
    """Two timers of one connection. Attributes: `at`, when the next is due; `heard_at`, when the peer last spoke;
    `user_timeout_ps`, or None; `probes`, sent since then."""

    __slots__ = ("_keep_alive_at", "_profile", "_progress_until", "at", "heard_at", "probes", "user_timeout_ps")

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self.user_timeout_ps: int | None = None
        self.heard_at = 0
        self.probes = 0
        self._keep_alive_at = NEVER
        self._progress_until = NEVER
        self.at = NEVER

    def set_profile(self, profile: Profile) -> None:
        """Go on by other constants, from the next time that keep-alive is set or runs out."""
        self._profile = profile

    def set_keep_alive(self, on: bool, now: int) -> None:
        """Turn it on, as if the peer had just spoken, or off."""
        self.heard_at = now
        self.probes = 0
        self._keep_alive_at = now + self._profile.keep_alive_idle_ps if on else NEVER
        self._schedule()

    def watch(self, now: int, *, is_waiting: bool, is_progress: bool) -> None:
        """Keep the user timeout: it runs while data waits for the peer, and starts anew with what it acknowledges."""
        if self.user_timeout_ps is None or not is_waiting:
            self._progress_until = NEVER
        elif is_progress or self._progress_until == NEVER:
            self._progress_until = now + self.user_timeout_ps
        self._schedule()

    def stop(self) -> None:
        """The connection ends."""
        self._keep_alive_at = self._progress_until = self.at = NEVER

    def on_timer(self, now: int, *, is_waiting: bool) -> Due:
        """`at` came. `is_waiting`: the peer has not acknowledged everything, or the handshake lasts."""
        due = Due.NOTHING
        if self._progress_until <= now:
            due = Due.NO_PROGRESS
        elif self._keep_alive_at <= now:
            due = self._look(now, is_waiting=is_waiting)
        self._schedule()
        return due

    def _look(self, now: int, *, is_waiting: bool) -> Due:
        profile = self._profile
        idle_until = self.heard_at + profile.keep_alive_idle_ps
        if now < idle_until:
            self.probes = 0
            self._keep_alive_at = idle_until
            return Due.NOTHING
        self._keep_alive_at = now + profile.keep_alive_interval_ps
        if is_waiting:
            # RFC 9293 §3.8.4: "Keep-alive packets MUST only be sent when no sent data is outstanding, and no data or
            # acknowledgment packets have been received for the connection within an interval"
            return Due.NOTHING
        if self.probes >= profile.keep_alive_probes:
            # "[...] it MUST NOT interpret failure to respond to any specific probe as a dead connection"; none of many
            # was answered.
            return Due.SILENT
        self.probes += 1
        return Due.PROBE

    def _schedule(self) -> None:
        self.at = min(self._keep_alive_at, self._progress_until)
