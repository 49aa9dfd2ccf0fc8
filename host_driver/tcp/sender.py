"""The sending half of a connection: what to send, when to send it again, when to probe a closed window.

Positions are unwrapped sequence numbers, with the standard's names. What is lost, and what may be in flight, its
`LossRecovery` knows. Without SACK, retransmission after a timeout goes back: `snd_nxt` returns to `snd_una`, while
`snd_max` keeps what was ever sent.
"""

# Ref: RFC 9293 §3.7.4, §3.8.6; RFC 5681 §2, §4.1; RFC 6298 §5; RFC 7323 §4; RFC 3168 §6.1.2

from __future__ import annotations

from typing import Protocol

from host_driver.tcp.buffers import Chunk, SendBuffer
from host_driver.tcp.congestion import CongestionControl, NewReno
from host_driver.tcp.cubic import Cubic
from host_driver.tcp.fast_recovery import FastRecovery
from host_driver.tcp.persist import PersistTimer
from host_driver.tcp.profile import Nagle, Profile
from host_driver.tcp.recovery import LossRecovery
from host_driver.tcp.rtt import RttEstimator
from host_driver.tcp.sack import Block
from host_driver.tcp.sack_recovery import SackRecovery
from host_driver.tcp.states import ACK, CWR, ECT_0, FIN, NEVER, NOT_ECT, PSH

CONGESTION_CONTROLS: dict[str, type[CongestionControl]] = {"newreno": NewReno, "cubic": Cubic}
"""What a profile's `congestion_control` names."""


class Owner(Protocol):
    """What a sender asks of its connection."""

    def send_segment(self, position: int, flags: int, pieces: list[Chunk], length: int, mss: int, now: int, *,
                     is_retransmission: bool, ecn: int) -> None:
        """Send `length` bytes, `mss` in a frame, with the acknowledgement and window of now and the codepoint `ecn`."""

    def extra_option_bytes(self) -> int:
        """How much longer the options are, in a segment that leaves now, than `Sender.mss` allows for."""

    def want_transmit(self) -> None:
        """`Sender.emit` should be called when the stack next transmits."""


class Sender:
    """The own stream of a connection. Sends nothing but what the SYN carries until `on_handshake_done`."""

    __slots__ = (
        "_ecn_until", "_frame_bytes", "_has_sack", "_last_sent_at", "_max_payload", "_max_snd_wnd", "_owner",
        "_payload_limit", "_profile", "_recovery", "_reductions_told", "_rtt", "_small_until", "_snd_wl1", "_snd_wl2",
        "acked_bytes", "buffer", "control", "fin_queued", "has_ecn", "iss", "mss", "nagle", "persist", "queued_bytes",
        "retransmissions", "retransmit_at", "retransmitted_segments", "sent_bytes", "shift", "snd_max", "snd_nxt",
        "snd_una", "snd_wnd", "tail_probes", "urgent_end",
    )

    def __init__(self, *, iss: int, mss: int, max_payload: int, profile: Profile, owner: Owner) -> None:
        """`mss` holds until `take_syn`. `max_payload`: largest payload of one output, if that is more than the MSS."""
        self._profile = profile
        self._owner = owner
        self._max_payload = max_payload
        self.mss = mss
        """Largest payload of a segment towards the peer that has no options but those that all have."""
        self._frame_bytes = mss  # the same with the options of a segment that leaves now
        self._payload_limit = max(max_payload, mss)  # of one output
        self.nagle: Nagle = profile.nagle
        self.queued_bytes = 0
        self.sent_bytes = 0
        self.acked_bytes = 0
        self.retransmitted_segments = 0
        self.tail_probes = 0
        """Of these: tail loss probes, which may repeat what was not lost."""

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
        self._has_sack = False
        self._start_recovery()
        self.has_ecn = False
        """Whether explicit congestion notification is agreed on."""
        self._ecn_until = iss  # until this is acknowledged, the peer's echoes are of what was answered already
        self._reductions_told = 0
        self._last_sent_at = 0
        self.retransmissions = 0
        """Timeouts since the last acknowledgement of something new."""
        self.persist = PersistTimer(profile)
        self.retransmit_at = NEVER

    # Handshake and end -----------------------------------------------------------------------------------------------

    def take_syn(self, mss: int, window: int, position: int, *, has_sack: bool) -> None:
        """The peer's SYN says how large segments may be, what may be sent at first, and whether it does SACK."""
        self.mss = self._frame_bytes = mss
        self._has_sack = has_sack
        self._start_recovery()
        self._set_window(window, position, self.iss)

    def _start_recovery(self) -> None:
        profile = self._profile
        self.control = CONGESTION_CONTROLS[profile.congestion_control](
            self.mss, profile.initial_window_segments, profile.slow_start_limit)
        """Congestion control: its window, its threshold."""
        self._recovery: LossRecovery
        if self._has_sack:
            self._recovery = SackRecovery(self.control)
        else:
            self._recovery = FastRecovery(self.control, self.iss, profile.limited_transmit)

    def on_handshake_done(self, ack: int, window: int, position: int, now: int) -> None:
        """Our SYN is acknowledged."""
        self.snd_una = ack
        self.snd_nxt = max(self.snd_nxt, ack)
        self._rtt.acknowledge(ack, now)
        if self.retransmissions:
            self.retransmissions = 0
            self._rtt.after_lost_syn()
            self.control.on_lost_syn()
        self.retransmit_at = NEVER
        self._set_window(window, position, ack)
        self._owner.want_transmit()

    def note_syn(self, now: int) -> bool:
        """The SYN leaves; returns whether it did before."""
        is_again = self.snd_max > self.iss
        self._note_sent(self.iss, 1, now, is_again)
        return is_again

    def skip_syn(self) -> None:
        """The SYN has left already, nobody remembers when."""
        self.snd_nxt = self.snd_max = self.iss + 1

    def send_syn_again(self) -> None:
        """Let the SYN leave with the next `emit` of the connection."""
        self.snd_nxt = self.iss
        self._owner.want_transmit()

    def queue_fin(self) -> None:
        """Send a FIN behind all that is queued."""
        self.fin_queued = True
        self._owner.want_transmit()

    def set_profile(self, profile: Profile) -> None:
        """Go on by other constants."""
        self._profile = profile

    def stop_timers(self) -> None:
        """Nothing is sent any more unless the peer asks."""
        self.retransmit_at = self.persist.at = self._recovery.timer_at = NEVER

    # What the connection asks ----------------------------------------------------------------------------------------

    @property
    def space(self) -> int:
        """Bytes of the send buffer that are free."""
        return max(self._profile.send_buffer_bytes - (self.buffer.end - self.buffer.start), 0)

    @property
    def recovery_at(self) -> int:
        """When `on_recovery_timer` must be called."""
        return self._recovery.timer_at

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
        self.mss = self._frame_bytes = mss
        self.snd_nxt = self._recovery.lower_mss(mss, self.snd_una, self.snd_nxt)
        self._small_until = self.snd_una
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

    def on_acknowledgement(self, ack: int, window_field: int, position: int, blocks: list[Block], now: int, *,
                           is_pure: bool, echo_ps: int | None) -> None:
        """Process ACK, window and SACK blocks of an acceptable segment at `position`.

        `is_pure`: it has neither data nor FIN. `echo_ps`: how long ago the timestamp was sent that it echoes.
        """
        self.persist.on_answer()
        una = self.snd_una
        window = window_field << self.shift
        # RFC 5681 §2 defines the duplicate acknowledgement so; with SACK, its blocks count.
        is_duplicate = ack == una < self.snd_nxt and is_pure and window == self.snd_wnd
        if ack > una or is_duplicate or blocks:
            highest = self.snd_nxt if self._has_sack else self.snd_max
            rtt = self._recovery.on_ack(una, ack, highest, blocks, now, self._rtt.srtt,
                                        is_duplicate=is_duplicate, echo_ps=echo_ps)
            if ack > una:
                self._measure(rtt, ack, now, echo_ps)
                self._on_progress(ack, now)
        if ack >= una and (ack > self._snd_wl2 or self._snd_wl1 < position
                           or (self._snd_wl1 == position and self._snd_wl2 == ack)):
            # "If SND.UNA =< SEG.ACK =< SND.NXT, the send window should be updated. If (SND.WL1 < SEG.SEQ or (SND.WL1 =
            # SEG.SEQ and SND.WL2 =< SEG.ACK)), set SND.WND <- SEG.WND, set SND.WL1 <- SEG.SEQ, and set SND.WL2 <-
            # SEG.ACK." A newer acknowledgement in an older segment (sent again, and overtaken) counts too: otherwise
            # SND.UNA would advance under a window that was meant for the old one, and its edge would be overrun.
            self._set_window(window, position, ack)
        if self.buffer.end > self.snd_nxt or self.fin_queued or self._recovery.has_again:
            self._owner.want_transmit()

    def on_echo(self, ack: int, now: int) -> None:
        """The peer says (ECE) that a router marked what we sent."""
        # RFC 3168 §6.1.2: "TCP should not react to congestion indications more than once every window of data (or more
        # loosely, more than once every round-trip time)"
        if ack <= self._ecn_until or self._recovery.in_recovery:
            return
        self._ecn_until = self.snd_nxt
        control = self.control
        # "The indication of congestion should be treated just as a congestion loss in non-ECN-Capable TCP": the window
        # is halved, but nothing is sent again
        control.reduce(min(self.snd_nxt - self.snd_una, control.window), now)
        control.window = min(control.window, control.threshold)

    def _measure(self, rtt: int | None, ack: int, now: int, echo_ps: int | None) -> None:
        """A round-trip time, from what recovery knows, the segment that is timed, or the peer's echo."""
        if rtt is None and self._rtt.acknowledge(ack, now):
            return
        if rtt is None:
            # RFC 7323 §4.1: the echo is free of the ambiguity that Karn's rule avoids, but coarse
            rtt = echo_ps
        if rtt is not None:
            # RFC 7323 appendix G: "ExpectedSamples = ceiling(FlightSize / (SMSS * 2))"
            self._rtt.sample(rtt, max(-(-(self.snd_nxt - self.snd_una) // (2 * self.mss)), 1))

    def _on_progress(self, ack: int, now: int) -> None:
        buffer = self.buffer
        self.snd_una = ack
        self.snd_nxt = max(self.snd_nxt, ack)
        self.retransmissions = 0
        self.persist.on_progress()
        # RFC 6298 §5.2 and §5.3: "When all outstanding data has been acknowledged, turn off the retransmission timer";
        # "When an ACK is received that acknowledges new data, restart the retransmission timer"
        self.retransmit_at = now + self._rtt.rto if ack < self.snd_nxt else NEVER
        data_end = min(ack, buffer.end)
        self.acked_bytes += data_end - buffer.start
        buffer.acknowledge(data_end)
        if self._has_sack:
            self._recovery.schedule_probe(now, self._rtt.srtt, self.retransmit_at)

    def _set_window(self, window: int, position: int, ack: int) -> None:
        self.snd_wnd = window
        self._max_snd_wnd = max(self._max_snd_wnd, window)
        self._snd_wl1 = position
        self._snd_wl2 = ack

    # Timers ----------------------------------------------------------------------------------------------------------

    def on_retransmission_timeout(self, limit: int, now: int, *, is_handshake: bool) -> bool:
        """The retransmission timer expired; returns False when that has happened more than `limit` times."""
        self.retransmit_at = NEVER
        self.retransmissions += 1
        if self.retransmissions > limit:
            # RFC 9293 §3.8.3: "When the number of transmissions of the same segment reaches a threshold R2 [...] close
            # the connection."
            return False
        # RFC 6298 §5.4: "Retransmit the earliest segment that has not been acknowledged by the TCP receiver."
        if is_handshake:
            self.snd_nxt = self.snd_una
        elif self._has_sack:
            self._recovery.on_timeout(self.snd_una, self.snd_nxt, now, is_first=self.retransmissions == 1)
            # RFC 6298 §5.6: "When the timer expires [...] Start the retransmission timer": with what leaves now
        else:
            self.snd_nxt = self._recovery.on_timeout(self.snd_una, self.snd_max, now,
                                                     is_first=self.retransmissions == 1)
        self._small_until = self.snd_una
        self._rtt.cancel()
        self._rtt.back_off()
        self._owner.want_transmit()
        return True

    def on_recovery_timer(self, now: int) -> None:
        """The reordering timer or that of the tail loss probe expired."""
        if self._recovery.on_timer(self.snd_nxt, now):
            # RFC 8985 §7.3: after a probe the sender re-arms the retransmission timer
            self.retransmit_at = now + self._rtt.rto
        if self._recovery.has_again:
            self._owner.want_transmit()

    def on_persist_timeout(self) -> bool:
        """The persist timer expired; returns False when too many probes had no answer."""
        if not self.persist.expire():
            return False
        self._owner.want_transmit()
        return True

    # Sending ---------------------------------------------------------------------------------------------------------

    def emit(self, now: int) -> None:
        """Send all that may be sent now."""
        self._frame_bytes = max(self.mss - self._owner.extra_option_bytes(), 1)
        # An urgent pointer counts from its segment, so that no device may cut a segment that has one.
        has_urgent = self.urgent_end > self.snd_una
        self._payload_limit = self._frame_bytes if has_urgent else max(self._max_payload, self._frame_bytes)
        self._recovery.is_limiting = False
        if self._recovery.has_again:
            self._send_again(now)
        if self.persist.take_probe():
            self._send_window_probe(now)
        if self.buffer.end > self.snd_nxt or self.fin_queued:
            self._send_new(now)

    def _send_again(self, now: int) -> None:
        """Send what is lost, as far as the windows let it leave, and a tail loss probe if one is due."""
        recovery = self._recovery
        while (lost := recovery.next_again(self.snd_una, self.snd_max)) is not None:
            if not self._send_lost(*lost, now):
                break
        tail = recovery.take_probe()
        if tail is None:
            return
        # RFC 8985 §7.3, TLP_send_probe: "Transmit the lowest-sequence unsent segment of up to SMSS" if there is one and
        # the peer's window allows it; else "Retransmit the highest-sequence segment sent so far"
        position = self.snd_nxt
        unsent = self.buffer.end - position
        length = min(unsent, self._frame_bytes, self.snd_una + self.snd_wnd - position)
        if length > 0:
            self._send_segment(position, length, with_fin=False, now=now)
        else:
            self._send_lost(*tail, now)
            self.tail_probes += 1
        recovery.on_probe_sent(self.snd_nxt, is_retransmission=length <= 0)

    def _send_lost(self, start: int, end: int, now: int) -> bool:
        """Send from `start` on again, up to `end` if one output can be so long; returns whether any of it left."""
        edge = self.snd_una + self.snd_wnd
        if start == self.snd_una:
            edge = max(edge, start + 1)  # a window that shrank to nothing must still be probed
        frame_bytes = self._frame_bytes
        length = min(self.buffer.end, end, edge) - start
        if length > frame_bytes:
            length = min(length, self._payload_limit)
            length -= length % frame_bytes
        with_fin = end > self.buffer.end and start + length == self.buffer.end and edge > self.buffer.end
        if length <= 0 and not with_fin:
            return False
        self._send_segment(start, length, with_fin=with_fin, now=now)
        return True

    def _send_new(self, now: int) -> None:
        """Send from `snd_nxt` on what both windows allow."""
        buffer = self.buffer
        # RFC 5681 §4.1: "a TCP SHOULD set cwnd to no more than RW before beginning transmission if the TCP has not sent
        # data in an interval exceeding the retransmission timeout."
        if self.snd_una == self.snd_max and now - self._last_sent_at > self._rtt.rto:
            self.control.on_idle(now - self._last_sent_at)
        frame_bytes = self._frame_bytes
        position = self.snd_nxt
        first = position
        recovery = self._recovery
        allowed = position + recovery.room(self.snd_una, position)
        limit = min(self.snd_una + self.snd_wnd, allowed)
        while True:
            position = self.snd_nxt
            unsent = buffer.end - position
            if unsent < 0 or (unsent == 0 and not self.fin_queued):
                break
            room = limit - position
            length = min(unsent, room, self._payload_limit)
            if room <= 0 or not self._is_worth_sending(position, length, unsent):
                # A sender that did not fill the window has not learned that a larger one would do (RFC 7661 §1).
                if room < unsent and limit == allowed:
                    recovery.is_limiting = True
                if self.snd_una == position and self.persist.at == NEVER:
                    self.persist.start(now, self._rtt.rto)
                break
            if length > frame_bytes and (length < unsent or not self._may_send_small(has_outstanding=True)):
                length -= length % frame_bytes
            self._send_segment(position, length, with_fin=length == unsent and room > length, now=now)
        if self._has_sack and self.snd_nxt > first:
            recovery.schedule_probe(now, self._rtt.srtt, self.retransmit_at)

    def _is_worth_sending(self, position: int, length: int, unsent: int) -> bool:
        """Silly window avoidance of the sender and Nagle's algorithm."""
        # RFC 9293 §3.8.6.2.1, with D the data queued and U the usable window; (1): "if a maximum-sized segment can be
        # sent, i.e., if: min(D,U) >= Eff.snd.MSS"
        if length >= self._frame_bytes:
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
        if length % self._frame_bytes:
            self._small_until = max(self._small_until, end)
        is_again = position < self.snd_max
        if self.control.reductions != self._reductions_told and length and not is_again:
            # RFC 3168 §6.1.2: "[...] the TCP sender sets the CWR flag in the TCP header of the first new data packet
            # sent after the window reduction."
            self._reductions_told = self.control.reductions
            if self.has_ecn:
                flags |= CWR
        self.sent_bytes = max(self.sent_bytes, end - self.iss - 1)
        length_with_fin = length + 1 if with_fin else length
        self._note_sent(position, length_with_fin, now, is_again)
        if self._has_sack:
            self._recovery.on_sent(position, position + length_with_fin, now, is_again=is_again)
        pieces = buffer.pieces(position, length) if length else []
        # RFC 3168 §6.1.5: "the ECT codepoint (ECT(0) or ECT(1)) MUST NOT be set in the IP header for retransmitted data
        # packets"; §6.1.4 and §6.1.6: nor for pure acknowledgements and window probes
        ecn = ECT_0 if self.has_ecn and length and not is_again else NOT_ECT
        self._owner.send_segment(position, flags, pieces, length, self._frame_bytes, now, is_retransmission=is_again,
                                 ecn=ecn)

    def _note_sent(self, position: int, length: int, now: int, is_again: bool) -> None:
        """Keep SND.NXT, the round-trip measurement and the retransmission timer for a segment that leaves."""
        end = position + length
        self.snd_nxt = max(self.snd_nxt, end)
        self.snd_max = max(self.snd_max, end)
        self._last_sent_at = now
        self.persist.at = NEVER
        if is_again:
            self.retransmitted_segments += 1
            self._rtt.cancel()
        elif not self._has_sack or position == self.iss:
            self._rtt.time(end, now)
        # RFC 6298 §5.1: "Every time a packet containing data is sent (including a retransmission), if the timer is not
        # running, start it running so that it will expire after RTO seconds"
        if self.retransmit_at == NEVER:
            self.retransmit_at = now + self._rtt.rto

    def _send_window_probe(self, now: int) -> None:
        """The persist timer expired: send something although the window says no, or says very little."""
        position = self.snd_una
        unsent = self.buffer.end - position
        if position != self.snd_nxt or unsent < 0 or (unsent == 0 and not self.fin_queued):
            return
        if self.snd_wnd > 0:
            # RFC 9293 §3.8.6.2.1 (4): "or if the override timeout occurs"
            length = min(unsent, self.snd_wnd, self._frame_bytes)
            self._send_segment(position, length, with_fin=length == unsent and self.snd_wnd > length, now=now)
            return
        # RFC 9293 §3.8.6.1: "The sending TCP peer must regularly transmit at least one octet of new data (if
        # available), or retransmit to the receiving TCP peer even if the send window is zero". The octet does not
        # count as sent: SND.NXT stays, and the persist timer, not the retransmission timer, repeats it.
        length = min(unsent, 1)
        self.snd_max = max(self.snd_max, position + 1)
        self.sent_bytes = max(self.sent_bytes, position + length - self.iss - 1)
        self.persist.start(now, self._rtt.rto)
        self._owner.send_segment(position, ACK if length else ACK | FIN, self.buffer.pieces(position, length), length,
                                 self._frame_bytes, now, is_retransmission=False, ecn=NOT_ECT)
