"""The sending half of a connection: what to send, when to send it again, when to probe a closed window.

Positions are unwrapped sequence numbers, with the standard's names. Retransmission after a timeout goes back: `snd_nxt`
returns to `snd_una`, while `snd_max` keeps what was ever sent.
"""

# Ref: RFC 9293 §3.7.4, §3.8.6; RFC 5681 §2, §4.1; RFC 6298 §5

from __future__ import annotations

from typing import Protocol

from host_driver.tcp.buffers import Chunk, SendBuffer
from host_driver.tcp.congestion import NewReno
from host_driver.tcp.profile import Nagle, Profile
from host_driver.tcp.rtt import RttEstimator
from host_driver.tcp.states import ACK, FIN, NEVER, PSH


class Owner(Protocol):
    """What a sender asks of its connection."""

    def send_segment(self, position: int, flags: int, pieces: list[Chunk], length: int, mss: int, now: int, *,
                     is_retransmission: bool) -> None:
        """Send `length` bytes, `mss` in a frame, with the acknowledgement and window of now."""

    def want_transmit(self) -> None:
        """`Sender.emit` should be called when the stack next transmits."""


class Sender:
    """The own stream of a connection. Sends nothing but what the SYN carries until `on_handshake_done`."""

    __slots__ = (
        "_congestion", "_last_sent_at", "_max_payload", "_max_snd_wnd", "_owner", "_persist_backoff",
        "_probe_due", "_probes", "_profile", "_retransmit_first", "_rtt", "_small_until", "_snd_wl1", "_snd_wl2",
        "acked_bytes", "buffer", "fin_queued", "iss", "mss", "nagle", "persist_at", "queued_bytes", "retransmissions",
        "retransmit_at", "retransmitted_segments", "sent_bytes", "shift", "snd_max", "snd_nxt", "snd_una", "snd_wnd",
        "urgent_end",
    )

    def __init__(self, *, iss: int, mss: int, max_payload: int, profile: Profile, owner: Owner) -> None:
        """`mss` holds until `take_syn`. `max_payload`: largest payload of one output, if that is more than the MSS."""
        self._profile = profile
        self._owner = owner
        self._max_payload = max_payload
        self.mss = mss
        """Largest payload of a segment towards the peer."""
        self.nagle: Nagle = profile.nagle
        self.queued_bytes = 0
        self.sent_bytes = 0
        self.acked_bytes = 0
        self.retransmitted_segments = 0

        self.iss = iss
        self.snd_una = self.snd_nxt = self.snd_max = iss
        self.snd_wnd = 0
        self._max_snd_wnd = 0
        self.shift = 0
        """Window scale of the peer's windows."""
        self._snd_wl1 = self._snd_wl2 = 0
        self.buffer = SendBuffer(iss + 1)
        self._small_until = iss  # end of the last segment sent that was not full (Minshall)
        self.fin_queued = False
        """The FIN goes behind the last queued byte."""
        self.urgent_end = iss
        """SND.UP: position behind the last byte that was queued as urgent."""

        self._rtt = RttEstimator(profile)
        self._congestion = NewReno(mss, profile.initial_window_segments, iss, profile.limited_transmit)
        self._last_sent_at = 0
        self.retransmissions = 0
        """Timeouts since the last acknowledgement of something new."""
        self._retransmit_first = False
        self._probe_due = False
        self._probes = 0
        self._persist_backoff = 0
        self.retransmit_at = NEVER
        self.persist_at = NEVER

    # Handshake and end -----------------------------------------------------------------------------------------------

    def take_syn(self, mss: int, window: int, position: int) -> None:
        """The peer's SYN says how large segments may be, and what may be sent at first."""
        self.mss = mss
        self._max_payload = max(self._max_payload, mss)
        profile = self._profile
        self._congestion = NewReno(mss, profile.initial_window_segments, self.iss, profile.limited_transmit)
        self._set_window(window, position, self.iss)

    def on_handshake_done(self, ack: int, window: int, position: int, now: int) -> None:
        """Our SYN is acknowledged."""
        self.snd_una = ack
        self.snd_nxt = max(self.snd_nxt, ack)
        self._rtt.acknowledge(ack, now)
        if self.retransmissions:
            self.retransmissions = 0
            self._rtt.after_lost_syn()
            self._congestion.on_lost_syn()
        self.retransmit_at = NEVER
        self._set_window(window, position, ack)
        self._owner.want_transmit()

    def note_syn(self, now: int) -> bool:
        """The SYN leaves; returns whether it did before."""
        is_again = self.snd_max > self.iss
        self._note_sent(self.iss, 1, now, is_again)
        return is_again

    def send_syn_again(self) -> None:
        """Let the SYN leave with the next `emit` of the connection."""
        self.snd_nxt = self.iss
        self._owner.want_transmit()

    def queue_fin(self) -> None:
        """Send a FIN behind all that is queued."""
        self.fin_queued = True
        self._owner.want_transmit()

    def stop_timers(self) -> None:
        """Nothing is sent any more unless the peer asks."""
        self.retransmit_at = self.persist_at = NEVER

    # What the connection asks ----------------------------------------------------------------------------------------

    @property
    def space(self) -> int:
        """Bytes of the send buffer that are free."""
        return max(self._profile.send_buffer_bytes - (self.buffer.end - self.buffer.start), 0)

    @property
    def all_acknowledged(self) -> bool:
        """Whether the peer has all queued bytes."""
        return self.buffer.start == self.buffer.end

    @property
    def fin_acknowledged(self) -> bool:
        """Whether the peer has our FIN."""
        return self.fin_queued and self.snd_una > self.buffer.end

    @property
    def ack_position(self) -> int:
        """Sequence number of a segment that only acknowledges."""
        # <SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>; after going back SND.NXT is old, and after a zero-window probe SND.MAX
        # lies beyond the peer's window: neither would be acceptable there.
        return min(self.snd_max, max(self.snd_nxt, self.snd_una + self.snd_wnd))

    def lower_mss(self, mss: int) -> None:
        """Segments of more bytes do not get through: what is in flight is sent again in smaller ones.

        The congestion window keeps its size: RFC 1191 §6.5 and RFC 8201 §5.4 take this loss for no sign of congestion.
        """
        if mss >= self.mss:
            return
        if self._max_payload == self.mss:
            self._max_payload = mss
        self.mss = self._congestion.mss = mss
        self.snd_nxt = self._small_until = self.snd_una
        self._rtt.cancel()
        self._owner.want_transmit()

    def queue(self, chunk: Chunk) -> None:
        """Take a chunk, which is not empty."""
        self.queued_bytes += len(chunk)
        self.buffer.append(chunk)
        self._owner.want_transmit()

    # Arrival ---------------------------------------------------------------------------------------------------------

    def is_acceptable(self, ack: int) -> bool:
        """Whether an acknowledgement may stem from this connection."""
        # RFC 9293 §3.10.7.4: "If the ACK acks something not yet sent (SEG.ACK > SND.NXT), then send an ACK, drop the
        # segment"
        # RFC 5961 §5.2: "The ACK value is considered acceptable only if it is in the range of ((SND.UNA -
        # MAX.SND.WND) <= SEG.ACK <= SND.NXT). All incoming segments whose ACK value doesn't satisfy the above
        # condition MUST be discarded and an ACK sent back."
        return self.snd_una - self._max_snd_wnd <= ack <= self.snd_max

    def on_acknowledgement(self, ack: int, window_field: int, position: int, is_pure: bool, now: int) -> None:
        """Process ACK and window of an acceptable segment at `position`; `is_pure`: it has neither data nor FIN."""
        self._probes = 0
        window = window_field << self.shift
        if ack > self.snd_una:
            self._on_new_acknowledgement(ack, now)
        elif (ack == self.snd_una < self.snd_nxt and is_pure and window == self.snd_wnd
              and self._congestion.on_duplicate_ack(ack, self.snd_max, self.snd_max - self.snd_una)):
            # RFC 5681 §2 defines the duplicate acknowledgement of the condition above.
            self._retransmit_first = True
        if ack >= self.snd_una and (ack > self._snd_wl2 or self._snd_wl1 < position
                                    or (self._snd_wl1 == position and self._snd_wl2 == ack)):
            # "If SND.UNA =< SEG.ACK =< SND.NXT, the send window should be updated. If (SND.WL1 < SEG.SEQ or (SND.WL1 =
            # SEG.SEQ and SND.WL2 =< SEG.ACK)), set SND.WND <- SEG.WND, set SND.WL1 <- SEG.SEQ, and set SND.WL2 <-
            # SEG.ACK." A newer acknowledgement in an older segment (sent again, and overtaken) counts too: otherwise
            # SND.UNA would advance under a window that was meant for the old one, and its edge would be overrun.
            self._set_window(window, position, ack)
        if self.buffer.end > self.snd_nxt or self.fin_queued or self._retransmit_first:
            self._owner.want_transmit()

    def _on_new_acknowledgement(self, ack: int, now: int) -> None:
        buffer = self.buffer
        acked = ack - self.snd_una
        self._rtt.acknowledge(ack, now)
        if self._congestion.on_ack(ack, acked, self.snd_max - self.snd_una):
            self._retransmit_first = True
        self.snd_una = ack
        self.snd_nxt = max(self.snd_nxt, ack)
        self.retransmissions = 0
        self.persist_at = NEVER
        self._persist_backoff = 0
        # RFC 6298 §5.2 and §5.3: "When all outstanding data has been acknowledged, turn off the retransmission timer";
        # "When an ACK is received that acknowledges new data, restart the retransmission timer"
        self.retransmit_at = now + self._rtt.rto if ack < self.snd_nxt else NEVER
        data_end = min(ack, buffer.end)
        self.acked_bytes += data_end - buffer.start
        buffer.acknowledge(data_end)

    def _set_window(self, window: int, position: int, ack: int) -> None:
        self.snd_wnd = window
        self._max_snd_wnd = max(self._max_snd_wnd, window)
        self._snd_wl1 = position
        self._snd_wl2 = ack

    # Timers ----------------------------------------------------------------------------------------------------------

    def on_retransmission_timeout(self, limit: int, *, is_handshake: bool) -> bool:
        """The retransmission timer expired; returns False when that has happened more than `limit` times."""
        self.retransmit_at = NEVER
        self.retransmissions += 1
        if self.retransmissions > limit:
            # RFC 9293 §3.8.3: "When the number of transmissions of the same segment reaches a threshold R2 [...] close
            # the connection."
            return False
        if not is_handshake:
            self._congestion.on_timeout(self.snd_max, self.snd_max - self.snd_una, is_first=self.retransmissions == 1)
        # RFC 6298 §5.4: "Retransmit the earliest segment that has not been acknowledged by the TCP receiver."
        self.snd_nxt = self._small_until = self.snd_una
        self._retransmit_first = False
        self._rtt.cancel()
        self._rtt.back_off()
        self._owner.want_transmit()
        return True

    def on_persist_timeout(self) -> bool:
        """The persist timer expired; returns False when too many probes had no answer."""
        self.persist_at = NEVER
        self._probes += 1
        if self._probes > self._profile.max_retransmissions:
            # RFC 9293 §3.8.6.1: "As long as the receiving TCP peer continues to send acknowledgments in response to the
            # probe segments, the sending TCP implementation MUST allow the connection to stay open"; here none came.
            return False
        self._persist_backoff += 1
        self._probe_due = True
        self._owner.want_transmit()
        return True

    def _start_persist(self, now: int) -> None:
        # RFC 9293 §3.8.6.1: "The transmitting host SHOULD send the first zero-window probe when a zero window has
        # existed for the retransmission timeout period and SHOULD increase exponentially the interval"
        profile = self._profile
        wait = max(self._rtt.rto, profile.min_persist_ps) << min(self._persist_backoff, 16)
        self.persist_at = now + min(wait, profile.max_persist_ps)

    # Sending ---------------------------------------------------------------------------------------------------------

    def emit(self, now: int) -> None:
        """Send all that may be sent now."""
        if self._retransmit_first:
            self._retransmit_first = False
            self._send_first_again(now)
        if self._probe_due:
            self._probe_due = False
            self._send_probe(now)
        self._send_new(now)

    def _send_new(self, now: int) -> None:
        """Send from `snd_nxt` on what both windows allow."""
        buffer = self.buffer
        if buffer.end <= self.snd_nxt and not self.fin_queued:
            return
        # RFC 5681 §4.1: "a TCP SHOULD set cwnd to no more than RW before beginning transmission if the TCP has not sent
        # data in an interval exceeding the retransmission timeout."
        if self.snd_una == self.snd_max and now - self._last_sent_at > self._rtt.rto:
            self._congestion.on_idle()
        mss = self.mss
        limit = self.snd_una + min(self.snd_wnd, self._congestion.allowance())
        while True:
            position = self.snd_nxt
            unsent = buffer.end - position
            if unsent < 0 or (unsent == 0 and not self.fin_queued):
                return
            room = limit - position
            # An urgent pointer counts from its segment, so that no device may cut a segment that has one.
            length = min(unsent, room, self._max_payload if self.urgent_end <= position else mss)
            if room <= 0 or not self._is_worth_sending(position, length, unsent):
                break
            if length > mss and (length < unsent or not self._may_send_small(has_outstanding=True)):
                length -= length % mss
            self._send_segment(position, length, with_fin=length == unsent and room > length, now=now)
        if self.snd_una == position and self.persist_at == NEVER:
            self._start_persist(now)

    def _is_worth_sending(self, position: int, length: int, unsent: int) -> bool:
        """Silly window avoidance of the sender and Nagle's algorithm."""
        # RFC 9293 §3.8.6.2.1, with D the data queued and U the usable window; (1): "if a maximum-sized segment can be
        # sent, i.e., if: min(D,U) >= Eff.snd.MSS"
        if length >= self.mss:
            return True
        if length == unsent:
            # (2): "or if the data is pushed and all queued data can be sent now, i.e., if: [SND.NXT = SND.UNA and]
            # PUSHed and D <= U", the brackets being Nagle's
            return self._may_send_small(has_outstanding=position > self.snd_una)
        # (3): "or if at least a fraction Fs of the maximum window can be sent, i.e., if: [SND.NXT = SND.UNA and] PUSHed
        # and min(D,U) >= Fs * Max(SND.WND)", Fs = 1/2
        return 2 * length >= self._max_snd_wnd and self._may_send_small(has_outstanding=position > self.snd_una)

    def _may_send_small(self, *, has_outstanding: bool) -> bool:
        """Whether a segment that is not full may leave, behind bytes that are not acknowledged or not."""
        nagle = self.nagle
        if nagle is Nagle.OFF or self.fin_queued or self.urgent_end > self.snd_nxt:
            return True
        if nagle is Nagle.MINSHALL:
            return self._small_until <= self.snd_una
        return not has_outstanding

    def _send_segment(self, position: int, length: int, *, with_fin: bool, now: int) -> None:
        """Send `length` queued bytes from `position`, and the FIN behind them if asked."""
        buffer = self.buffer
        end = position + length
        flags = ACK
        if length and end == buffer.end:
            # RFC 9293 §3.9.1.2: "A TCP endpoint MUST set the PSH bit in the last buffered segment"
            flags |= PSH
        with_fin = with_fin and self.fin_queued and end == buffer.end
        if with_fin:
            flags |= FIN
        if length % self.mss:
            self._small_until = max(self._small_until, end)
        is_again = position < self.snd_max
        self.sent_bytes = max(self.sent_bytes, end - self.iss - 1)
        self._note_sent(position, length + (1 if with_fin else 0), now, is_again)
        pieces = buffer.pieces(position, length) if length else []
        self._owner.send_segment(position, flags, pieces, length, self.mss, now, is_retransmission=is_again)

    def _note_sent(self, position: int, length: int, now: int, is_again: bool) -> None:
        """Keep SND.NXT, the round-trip measurement and the retransmission timer for a segment that leaves."""
        end = position + length
        self.snd_nxt = max(self.snd_nxt, end)
        self.snd_max = max(self.snd_max, end)
        self._last_sent_at = now
        self.persist_at = NEVER
        if is_again:
            self.retransmitted_segments += 1
            self._rtt.cancel()
        else:
            self._rtt.time(end, now)
        # RFC 6298 §5.1: "Every time a packet containing data is sent (including a retransmission), if the timer is not
        # running, start it running so that it will expire after RTO seconds"
        if self.retransmit_at == NEVER:
            self.retransmit_at = now + self._rtt.rto

    def _send_first_again(self, now: int) -> None:
        """Send the first unacknowledged segment again, outside the congestion window."""
        position = self.snd_una
        outstanding = self.snd_max - position
        if outstanding <= 0:
            return
        length = min(self.buffer.end - position, self.mss, outstanding, max(self.snd_wnd, 1))
        self._send_segment(position, length, with_fin=outstanding > length, now=now)

    def _send_probe(self, now: int) -> None:
        """The persist timer expired: send something although the window says no, or says very little."""
        position = self.snd_una
        unsent = self.buffer.end - position
        if position != self.snd_nxt or unsent < 0 or (unsent == 0 and not self.fin_queued):
            return
        if self.snd_wnd > 0:
            # RFC 9293 §3.8.6.2.1 (4): "or if the override timeout occurs"
            length = min(unsent, self.snd_wnd, self.mss)
            self._send_segment(position, length, with_fin=length == unsent and self.snd_wnd > length, now=now)
            return
        # RFC 9293 §3.8.6.1: "The sending TCP peer must regularly transmit at least one octet of new data (if
        # available), or retransmit to the receiving TCP peer even if the send window is zero". The octet does not
        # count as sent: SND.NXT stays, and the persist timer, not the retransmission timer, repeats it.
        length = min(unsent, 1)
        self.snd_max = max(self.snd_max, position + 1)
        self.sent_bytes = max(self.sent_bytes, position + length - self.iss - 1)
        self._start_persist(now)
        self._owner.send_segment(position, ACK if length else ACK | FIN, self.buffer.pieces(position, length), length,
                                 self.mss, now, is_retransmission=False)
