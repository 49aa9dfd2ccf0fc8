"""What a sender asks of its loss recovery, with SACK (`sack_recovery`) and without it (`fast_recovery`)."""

from __future__ import annotations

from host_driver.tcp.congestion import CongestionControl
from host_driver.tcp.sack import Block
from host_driver.tcp.states import NEVER


class LossRecovery:
    """Finds what is lost, and how fast it may be sent again. Positions are unwrapped sequence numbers."""

    __slots__ = ("control", "in_recovery", "is_limiting", "timer_at")

    def __init__(self, control: CongestionControl) -> None:
        self.control = control
        self.in_recovery = False
        """Whether a fast recovery lasts."""
        self.is_limiting = False
        """Whether more would have been sent last time, had congestion control not held it back; the sender's to set."""
        self.timer_at = NEVER
        """When `on_timer` must be called."""

    @property
    def has_again(self) -> bool:
        """Whether `next_again` may give something."""
        raise NotImplementedError

    def room(self, una: int, nxt: int) -> int:
        """Bytes that congestion control lets leave now, `una` to `nxt` being outstanding; may be negative."""
        raise NotImplementedError

    def next_again(self, una: int, nxt: int) -> Block | None:
        """What is to be sent again now, from its first byte on as far as the sender can at once."""
        raise NotImplementedError

    def on_sent(self, start: int, end: int, now: int, *, is_again: bool) -> None:
        """A segment leaves."""

    def on_ack(self, una: int, ack: int, highest: int, blocks: list[Block], now: int, srtt: int | None, *,
               is_duplicate: bool, echo_ps: int | None) -> int | None:
        """SND.UNA goes from `una` to `ack`, or stays (`ack` may be an older one); `highest`: behind all that was sent.

        `echo_ps`: how long ago the peer's timestamp says that what it acknowledges was sent. Returns a round-trip
        time, if a segment that was sent once gives one.
        """
        raise NotImplementedError

    def on_timeout(self, una: int, highest: int, now: int, *, is_first: bool) -> int:
        """The retransmission timer expired. Returns what SND.NXT becomes."""
        raise NotImplementedError

    def lower_mss(self, mss: int, una: int, nxt: int) -> int:
        """What is out was too large for the path, which is no congestion. Returns what SND.NXT becomes."""
        self.control.mss = mss
        return una

    def on_timer(self, nxt: int, now: int) -> None:
        """`timer_at` came."""

    def take_probe(self) -> Block | None:
        """What a tail loss probe that is due sends again if nothing new may be sent; asked once."""
        return None

    def on_probe_sent(self, nxt: int, *, is_retransmission: bool) -> None:
        """The probe left."""

    def schedule_probe(self, now: int, srtt: int | None, timeout_at: int) -> None:
        """Something was sent or acknowledged; the retransmission timer stands at `timeout_at`."""
