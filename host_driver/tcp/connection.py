"""One TCP connection: the state machine of RFC 9293 over buffers, round-trip times and congestion control.

Positions are unwrapped sequence numbers (`nic_model.seqnum`), so that they compare as integers. The names `snd_una`,
`snd_nxt`, `rcv_nxt` and so on are the standard's (RFC 9293 §3.3.1). Retransmission after a timeout goes back: `snd_nxt`
returns to `snd_una`, while `snd_max` keeps what was ever sent.

The connection owns no clock and no wire: it is told of segments and of the time, and gives segments to its `Output`.
Acknowledgements that are due at once leave while the segment that asks for them is processed; everything else leaves
in `emit`, which the stack calls when it is asked to transmit.
"""

# Ref: RFC 9293 §3.10; RFC 5961 §3 to §5; RFC 7323 §2; RFC 5681 §4.2; RFC 6298 §5

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple, Protocol

from host_driver.tcp.buffers import Chunk, ReceiveBuffer, SendBuffer
from host_driver.tcp.congestion import NewReno
from host_driver.tcp.links import Link
from host_driver.tcp.profile import Nagle, Profile
from host_driver.tcp.rtt import RttEstimator
from nic_model.contract.protocols import TcpFlags
from nic_model.packets import TcpHeader, TcpOptions
from nic_model.seqnum import unwrap, wrap

FIN, SYN, RST, PSH, ACK = (int(flag) for flag in (TcpFlags.FIN, TcpFlags.SYN, TcpFlags.RST, TcpFlags.PSH, TcpFlags.ACK))

NEVER = 1 << 100
"""A deadline that is not set."""

MAX_UNSCALED_WINDOW = 0xFFFF
MAX_WINDOW_SHIFT = 14
DEFAULT_MSS_IPV4 = 536
DEFAULT_MSS_IPV6 = 1220


class State(IntEnum):
    """States of a connection (RFC 9293 §3.3.2); LISTEN is a `Listener`'s."""

    CLOSED = 0
    LISTEN = 1
    SYN_SENT = 2
    SYN_RECEIVED = 3
    ESTABLISHED = 4
    FIN_WAIT_1 = 5
    FIN_WAIT_2 = 6
    CLOSE_WAIT = 7
    CLOSING = 8
    LAST_ACK = 9
    TIME_WAIT = 10


_HANDSHAKE = (State.SYN_SENT, State.SYN_RECEIVED)
_MAY_QUEUE = (State.ESTABLISHED, State.CLOSE_WAIT, State.SYN_SENT, State.SYN_RECEIVED)
_MAY_RECEIVE = (State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2)
_MAY_TRANSMIT = (State.ESTABLISHED, State.FIN_WAIT_1, State.CLOSE_WAIT, State.CLOSING, State.LAST_ACK)


class Endpoint(NamedTuple):
    """An address and a port."""

    ip: IPv4Address | IPv6Address
    port: int


class Output(Protocol):
    """Where a connection's segments and wishes go: the stack."""

    def output(self, connection: Connection, sequence: int, flags: int, window: int, options: bytes,
               payload: list[Chunk], payload_bytes: int, is_retransmission: bool) -> None:
        """Send a segment; `sequence` and `window` as they stand on the wire, acknowledgement by `ack_number`."""

    def want_transmit(self, connection: Connection) -> None:
        """`connection.emit` should be called when the stack next transmits."""

    def on_established(self, connection: Connection) -> None:
        """A connection that was opened passively completed its handshake."""

    def on_closed(self, connection: Connection) -> None:
        """The connection reached CLOSED: nothing of it is left."""


class Connection:
    """A connection as its user sees it, and as the stack drives it. Made by `Stack.connect` and `Listener.accept`.

    `on_event`, if set, is called synchronously when the connection becomes established, when bytes or a FIN arrive
    in order, when bytes are acknowledged, and when it closes. It may call `send`, `recv`, `close` and `abort`. After
    any of these calls, or `Stack.receive` and `Stack.poll`, the stack may have segments to transmit.
    """

    __slots__ = (
        "_ack_at", "_ack_due", "_advertised_mss", "_bytes_since_ack", "_challenge_after", "_close_requested",
        "_congestion", "_fin_queued", "_fin_received_at", "_irs", "_is_scaled", "_iss", "_largest_received",
        "_last_data_at", "_last_sent_at", "_max_payload", "_max_snd_wnd", "_output", "_persist_at", "_persist_backoff",
        "_probe_due", "_probes", "_profile", "_quick_acks", "_rcv_edge", "_rcv_shift", "_receive_buffer",
        "_retransmissions", "_retransmit_at", "_retransmit_first", "_rtt", "_send_buffer", "_small_until", "_snd_shift",
        "_snd_wl1", "_snd_wl2", "_time_wait_at", "acked_bytes", "error", "is_passive", "link", "local", "mss", "nagle",
        "on_event", "queued_bytes", "rcv_nxt", "received_bytes", "remote", "retransmitted_segments", "sent_bytes",
        "snd_max", "snd_nxt", "snd_una", "snd_wnd", "state", "timer_at",
    )

    def __init__(self, *, local: Endpoint, remote: Endpoint, iss: int, advertised_mss: int,
                 max_segment_bytes: int | None, profile: Profile, output: Output, link: Link) -> None:
        """A connection in CLOSED. `max_segment_bytes`: largest payload of one output; None: the MSS. `link` is the
        stack's, to build headers with."""
        self.local = local
        self.remote = remote
        self.link = link
        self.state = State.CLOSED
        self.error: OSError | None = None
        """Why the connection ended, if not by FINs both ways."""
        self.is_passive = False
        """Opened by the peer."""
        self.on_event: Callable[[Connection], None] | None = None
        self.nagle: Nagle = profile.nagle
        self.mss = DEFAULT_MSS_IPV4 if local.ip.version == 4 else DEFAULT_MSS_IPV6
        """Largest payload of a segment towards the peer."""

        self.queued_bytes = 0
        """Bytes of the send stream that `send` took."""
        self.sent_bytes = 0
        """Bytes of the send stream that left at least once."""
        self.acked_bytes = 0
        """Bytes of the send stream that the peer acknowledged."""
        self.received_bytes = 0
        """Bytes that arrived in order, read or not."""
        self.retransmitted_segments = 0

        self._profile = profile
        self._output = output
        self._advertised_mss = advertised_mss
        self._max_payload = max_segment_bytes or 0

        self._iss = iss
        self.snd_una = self.snd_nxt = self.snd_max = iss
        self.snd_wnd = 0
        self._max_snd_wnd = 0
        self._snd_shift = 0
        self._is_scaled = False
        self._snd_wl1 = self._snd_wl2 = 0
        self._send_buffer = SendBuffer(iss + 1)
        self._small_until = iss  # end of the last segment sent that was not full (Minshall)
        self._close_requested = False
        self._fin_queued = False

        self._irs = 0
        self.rcv_nxt = 0
        self._rcv_edge = 0  # position behind the window that was advertised; it never moves back
        self._rcv_shift = 0
        self._receive_buffer = ReceiveBuffer(0, profile.receive_buffer_bytes)
        self._fin_received_at: int | None = None
        self._bytes_since_ack = 0
        self._largest_received = 0
        self._ack_due = False
        self._quick_acks = profile.quick_acks
        self._last_data_at = -NEVER
        self._challenge_after = -NEVER

        self._rtt = RttEstimator(profile)
        self._congestion = NewReno(self.mss, profile.initial_window_segments, iss, profile.limited_transmit)
        self._last_sent_at = 0
        self._retransmissions = 0
        self._retransmit_first = False
        self._probe_due = False
        self._probes = 0
        self._persist_backoff = 0

        self._retransmit_at = NEVER
        self._persist_at = NEVER
        self._ack_at = NEVER
        self._time_wait_at = NEVER
        self.timer_at = NEVER
        """When the stack will next look at this connection's timers; the stack's own."""

    def __repr__(self) -> str:
        return f"<Connection {self.local.ip}:{self.local.port} {self.remote.ip}:{self.remote.port} {self.state.name}>"

    # What the user calls ---------------------------------------------------------------------------------------------

    @property
    def send_space(self) -> int:
        """Bytes of the send buffer that are free; 0 when nothing more may be queued."""
        if self._close_requested or self.state not in _MAY_QUEUE:
            return 0
        buffer = self._send_buffer
        return max(self._profile.send_buffer_bytes - (buffer.end - buffer.start), 0)

    @property
    def recv_available(self) -> int:
        """Bytes that `recv` would give now."""
        return self._receive_buffer.available

    @property
    def peer_closed(self) -> bool:
        """Whether the peer's FIN was reached: after the available bytes there will be no more."""
        return self._fin_received_at is not None and self.rcv_nxt > self._fin_received_at

    @property
    def readable(self) -> bool:
        """Whether `recv` gives bytes, or tells of the end."""
        return self._receive_buffer.available > 0 or self.peer_closed or self.state is State.CLOSED

    @property
    def writable(self) -> bool:
        """Whether `send` takes a chunk now."""
        return self.send_space > 0

    @property
    def established(self) -> bool:
        """Whether the handshake is done (the connection may be closing since)."""
        return self.state >= State.ESTABLISHED

    def send(self, chunk: Chunk) -> int:
        """Queue a chunk, whole or not at all; the chunk may be longer than the space left, as long as there is some.

        Returns the bytes queued: `len(chunk)`, or 0 when there is no space. Nothing is copied; `chunk.release` tells
        when its memory is free. Raises BrokenPipeError after `close`, and the connection's error if it has one.
        """
        if self._close_requested or self.state not in _MAY_QUEUE:
            raise self.error or BrokenPipeError(f"{self!r} takes no more data")
        length = len(chunk)
        if length == 0:
            if chunk.release is not None:
                chunk.release()
            return 0
        if self.send_space == 0:
            return 0
        self._send_buffer.append(chunk)
        self.queued_bytes += length
        self._output.want_transmit(self)
        return length

    def recv(self, max_bytes: int) -> bytes:
        """Take up to `max_bytes` that arrived in order; b"" if there are none (`peer_closed` tells whether for ever).

        Raises the connection's error if there is nothing to read and it has one.
        """
        data = self._receive_buffer.read(max_bytes)
        if data:
            # The window that the peer knows has shrunk to less than half of what could be offered: tell it. Less
            # often would stall a peer, more often would send an acknowledgement for every read.
            known = self._rcv_edge - self.rcv_nxt
            if self.state in _MAY_RECEIVE and self._window_edge() - self.rcv_nxt >= max(2 * known, 1):
                self._ack_due = True
                self._output.want_transmit(self)
        elif self.error is not None:
            raise self.error
        return data

    def close(self, now: int) -> None:
        """Send a FIN after all queued data. Receiving goes on (half-close). Closing twice is no error."""
        if self._close_requested or self.state is State.CLOSED:
            return
        self._close_requested = True
        if self.state is State.SYN_SENT:
            # RFC 9293 §3.10.4, SYN-SENT: "Delete the TCB"
            self._enter_closed(None)
            return
        # SYN-RECEIVED: "queue for processing after entering ESTABLISHED state"
        if self.state is not State.SYN_RECEIVED:
            self._queue_fin()

    def abort(self, now: int) -> None:
        """Drop the connection; the peer gets a RST."""
        # RFC 9293 §3.10.5: SYN-RECEIVED to CLOSE-WAIT: "Send a reset segment: <SEQ=SND.NXT><CTL=RST>"
        if State.SYN_RECEIVED <= self.state <= State.CLOSE_WAIT:
            self._send_control(self.snd_max, RST | ACK)
        if self.state is State.TIME_WAIT:
            self._enter_closed(None)  # all had been said
        elif self.state is not State.CLOSED:
            self._enter_closed(ConnectionAbortedError(f"{self!r} was aborted"))

    # What the stack calls --------------------------------------------------------------------------------------------

    @property
    def ack_number(self) -> int:
        """The acknowledgement number of a segment that leaves now."""
        return wrap(self.rcv_nxt)

    def deadline(self) -> int:
        """When `on_timer` must be called; NEVER if no timer runs."""
        return min(self._retransmit_at, self._persist_at, self._ack_at, self._time_wait_at)

    def open(self) -> None:
        """CLOSED to SYN-SENT: an active open."""
        self.state = State.SYN_SENT
        self._output.want_transmit(self)

    def open_passive(self, syn: TcpHeader) -> None:
        """LISTEN to SYN-RECEIVED, on a SYN whose acceptability was checked."""
        # RFC 9293 §3.10.7.2: "Set RCV.NXT to SEG.SEQ+1, IRS is set to SEG.SEQ [...] SND.NXT is set to ISS+1 and SND.UNA
        # to ISS. The connection state should be changed to SYN-RECEIVED."
        self.is_passive = True
        self._take_syn(syn)
        self.state = State.SYN_RECEIVED
        self._output.want_transmit(self)

    def on_segment(self, tcp: TcpHeader, payload: memoryview, now: int) -> None:
        """A segment of this connection arrived, its checksum right."""
        if self.state is State.SYN_SENT:
            self._on_segment_in_syn_sent(tcp, payload, now)
        elif self.state is not State.CLOSED:
            self._on_segment(tcp, payload, now)

    def on_timer(self, now: int) -> None:
        """Run the timers that are due at `now`."""
        if self._ack_at <= now:
            self._send_ack()
        if self._retransmit_at <= now:
            self._on_retransmission_timeout()
        if self._persist_at <= now:
            self._on_persist_timeout()
        if self._time_wait_at <= now:
            self._enter_closed(None)

    def emit(self, now: int) -> None:
        """Send all that may be sent now."""
        state = self.state
        if state in _MAY_TRANSMIT:
            if self._retransmit_first:
                self._retransmit_first = False
                self._send_first_again(now)
            if self._probe_due:
                self._probe_due = False
                self._send_probe(now)
            self._send_new(now)
        elif state in _HANDSHAKE:
            if self.snd_nxt == self._iss:
                self._send_syn(now)
            return
        if self._ack_due and state is not State.CLOSED:
            self._send_ack()

    # Arrival ---------------------------------------------------------------------------------------------------------

    def _on_segment_in_syn_sent(self, tcp: TcpHeader, payload: memoryview, now: int) -> None:
        flags = tcp.flags
        ack = unwrap(tcp.acknowledgement, self.snd_una)
        if flags & ACK and not self._iss < ack <= self.snd_max:
            # RFC 9293 §3.10.7.3, first: "If SEG.ACK =< ISS or SEG.ACK > SND.NXT, send a reset (unless the RST bit is
            # set, if so drop the segment and return) <SEQ=SEG.ACK><CTL=RST>"
            if not flags & RST:
                self._send_control(ack, RST)
            return
        if flags & RST:
            # second: "If the ACK was acceptable, then signal to the user 'error: connection reset', [...] enter CLOSED
            # state, delete TCB, and return. Otherwise (no ACK), drop the segment and return."
            if flags & ACK:
                self._enter_closed(ConnectionRefusedError(f"{self.remote.ip}:{self.remote.port} refused"))
            return
        if not flags & SYN:
            return
        # fourth: "RCV.NXT is set to SEG.SEQ+1, IRS is set to SEG.SEQ. SND.UNA should be advanced to equal SEG.ACK"
        self._take_syn(tcp)
        if flags & ACK:
            # "If SND.UNA > ISS (our SYN has been ACKed), change the connection state to ESTABLISHED, form an ACK"
            self._acknowledge_handshake(tcp, ack, now)
            self._send_ack()
            if payload or flags & FIN:
                self._on_text(self._irs + 1, payload, flags, now)
            self._notify()
        else:
            # "Otherwise, enter SYN-RECEIVED, form a SYN,ACK segment <SEQ=ISS><ACK=RCV.NXT><CTL=SYN,ACK>"
            self.state = State.SYN_RECEIVED
            self.snd_nxt = self._iss
            self._retransmit_at = NEVER
            self._output.want_transmit(self)

    def _on_segment(self, tcp: TcpHeader, payload: memoryview, now: int) -> None:
        flags = tcp.flags
        position = unwrap(tcp.sequence, self.rcv_nxt)
        if flags & SYN and self.state is State.SYN_RECEIVED and position == self._irs:
            # The peer's SYN again, because our SYN-ACK was lost; or, in a simultaneous open, its SYN-ACK.
            position += 1
            flags &= ~SYN
            if not flags & ACK:
                self.snd_nxt = self._iss
                self._output.want_transmit(self)
                return

        # First, check sequence number.
        length = len(payload) + (1 if flags & FIN else 0) + (1 if flags & SYN else 0)
        if not self._is_acceptable(position, length):
            # RFC 9293 §3.10.7.4: "If an incoming segment is not acceptable, an acknowledgment should be sent in reply
            # (unless the RST bit is set, if so drop the segment and return)"
            if not flags & RST:
                if self.state is State.TIME_WAIT and flags & FIN:
                    # TIME-WAIT: "a retransmission of the remote FIN. Acknowledge it, and restart the 2 MSL timeout."
                    self._time_wait_at = now + self._profile.time_wait_ps
                if length:
                    self._send_ack()
                else:
                    self._send_challenge_ack(now)
            return

        # Second, check the RST bit.
        if flags & RST:
            if position == self.rcv_nxt:
                # RFC 5961 §3.2: "If the RST bit is set and the sequence number exactly matches the next expected
                # sequence number (RCV.NXT), then TCP MUST reset the connection."
                kind = ConnectionRefusedError if self.state is State.SYN_RECEIVED else ConnectionResetError
                # CLOSING and later: "enter the CLOSED state, delete the TCB, and return", without a signal to the user;
                # but data that the peer never acknowledged is an error here, too.
                all_said = self.state >= State.CLOSING and self._send_buffer.start == self._send_buffer.end
                self._enter_closed(None if all_said else kind(f"{self!r} was reset by its peer"))
            else:
                # "If the RST bit is set and the sequence number does not exactly match [...], yet is within the current
                # receive window, TCP MUST send an acknowledgment (challenge ACK)"
                self._send_challenge_ack(now)
            return

        # Fourth, check the SYN bit.
        if flags & SYN:
            # RFC 5961 §4.2: "If the SYN bit is set, irrespective of the sequence number, TCP MUST send an ACK (also
            # referred to as challenge ACK) to the remote peer"
            self._send_challenge_ack(now)
            return

        # Fifth, check the ACK field: "if the ACK bit is off, drop the segment and return".
        if not flags & ACK:
            return
        state, una, nxt = self.state, self.snd_una, self.rcv_nxt
        if not self._on_acknowledgement(tcp, position, len(payload), flags, now):
            return

        # Seventh and eighth, process the segment text and check the FIN bit.
        if payload or flags & FIN:
            self._on_text(position, payload, flags, now)
        if self.snd_una != una or self.rcv_nxt != nxt or self.state is not state:
            self._notify()

    def _is_acceptable(self, position: int, length: int) -> bool:
        """The four cases of RFC 9293 §3.4 table 6, by a segment's first position and its length."""
        if length == 0:
            # zero window: "SEG.SEQ = RCV.NXT"; otherwise: "RCV.NXT =< SEG.SEQ < RCV.NXT+RCV.WND". The edge itself is
            # let in too: there stands the acknowledgement of a peer that filled the window and lost some of it.
            return self.rcv_nxt <= position <= self._rcv_edge
        # "RCV.NXT =< SEG.SEQ < RCV.NXT+RCV.WND or RCV.NXT =< SEG.SEQ+SEG.LEN-1 < RCV.NXT+RCV.WND"; and with a zero
        # window, RFC 9293 §3.10.7.4: "special allowance should be made to accept valid ACKs, URGs, and RSTs"
        return (position < self._rcv_edge and position + length > self.rcv_nxt) or position == self.rcv_nxt

    def _on_acknowledgement(self, tcp: TcpHeader, position: int, payload_bytes: int, flags: int, now: int) -> bool:
        """Process ACK and window; returns whether the rest of the segment counts."""
        ack = unwrap(tcp.acknowledgement, self.snd_una)
        if self.state is State.SYN_RECEIVED:
            # "If SND.UNA < SEG.ACK =< SND.NXT, then enter ESTABLISHED state [...]. If the segment acknowledgment is not
            # acceptable, form a reset segment <SEQ=SEG.ACK><CTL=RST>"
            if not self.snd_una < ack <= self.snd_max:
                self._send_control(ack, RST)
                return False
            self._acknowledge_handshake(tcp, ack, now)
            if self.is_passive:
                self._output.on_established(self)
            return self.state is not State.CLOSED

        if ack > self.snd_max:
            # "If the ACK acks something not yet sent (SEG.ACK > SND.NXT), then send an ACK, drop the segment"
            self._send_challenge_ack(now)
            return False
        if ack < self.snd_una - self._max_snd_wnd:
            # RFC 5961 §5.2: "The ACK value is considered acceptable only if it is in the range of ((SND.UNA -
            # MAX.SND.WND) <= SEG.ACK <= SND.NXT). All incoming segments whose ACK value doesn't satisfy the above
            # condition MUST be discarded and an ACK sent back."
            self._send_challenge_ack(now)
            return False

        self._probes = 0
        window = tcp.window << self._snd_shift
        if ack > self.snd_una:
            self._on_new_acknowledgement(ack, now)
        elif (ack == self.snd_una < self.snd_nxt and not payload_bytes and not flags & FIN and window == self.snd_wnd
              and self._congestion.on_duplicate_ack(ack, self.snd_max, self.snd_max - self.snd_una)):
            # RFC 5681 §2 defines the duplicate acknowledgement of the condition above.
            self._retransmit_first = True
        if ack >= self.snd_una and (ack > self._snd_wl2 or self._snd_wl1 < position
                                    or (self._snd_wl1 == position and self._snd_wl2 == ack)):
            # "If SND.UNA =< SEG.ACK =< SND.NXT, the send window should be updated. If (SND.WL1 < SEG.SEQ or (SND.WL1 =
            # SEG.SEQ and SND.WL2 =< SEG.ACK)), set SND.WND <- SEG.WND, set SND.WL1 <- SEG.SEQ, and set SND.WL2 <-
            # SEG.ACK." A newer acknowledgement in an older segment (sent again, and overtaken) counts too: otherwise
            # SND.UNA would advance under a window that was meant for the old one, and its edge would be overrun.
            self._set_send_window(window, position, ack)
        if self._send_buffer.end > self.snd_nxt or self._fin_queued or self._retransmit_first:
            self._output.want_transmit(self)
        return self.state is not State.CLOSED

    def _on_new_acknowledgement(self, ack: int, now: int) -> None:
        buffer = self._send_buffer
        acked = ack - self.snd_una
        self._rtt.acknowledge(ack, now)
        if self._congestion.on_ack(ack, acked, self.snd_max - self.snd_una):
            self._retransmit_first = True
        self.snd_una = ack
        self.snd_nxt = max(self.snd_nxt, ack)
        self._retransmissions = 0
        self._persist_at = NEVER
        self._persist_backoff = 0
        # RFC 6298 §5.2 and §5.3: "When all outstanding data has been acknowledged, turn off the retransmission timer";
        # "When an ACK is received that acknowledges new data, restart the retransmission timer"
        self._retransmit_at = now + self._rtt.rto if ack < self.snd_nxt else NEVER
        data_end = min(ack, buffer.end)
        self.acked_bytes += data_end - buffer.start
        buffer.acknowledge(data_end)
        if self._fin_queued and ack > buffer.end:
            self._on_fin_acknowledged(now)

    def _on_fin_acknowledged(self, now: int) -> None:
        # RFC 9293 §3.10.7.4, fifth: FIN-WAIT-1: "if the FIN segment is now acknowledged, then enter FIN-WAIT-2";
        # CLOSING: "if the ACK acknowledges our FIN, then enter the TIME-WAIT state"; LAST-ACK: "If our FIN is now
        # acknowledged, delete the TCB, enter the CLOSED state, and return."
        if self.state is State.FIN_WAIT_1:
            self.state = State.FIN_WAIT_2
        elif self.state is State.CLOSING:
            self._enter_time_wait(now)
        elif self.state is State.LAST_ACK:
            self._enter_closed(None)

    def _on_text(self, position: int, payload: memoryview, flags: int, now: int) -> None:
        """Take in data and FIN of an acceptable segment and see to their acknowledgement."""
        if self.state not in _MAY_RECEIVE:
            # CLOSE-WAIT and later: "This should not occur since a FIN has been received from the remote side. Ignore
            # the segment text." A segment reaches this only in front of the window's edge.
            self._send_ack()
            return
        buffer = self._receive_buffer
        length = len(payload)
        end = position + length
        if end > self._rcv_edge:
            # "[...] trimming off any portions that lie outside the window (including SYN and FIN)"
            payload = payload[: max(self._rcv_edge - position, 0)]
            flags &= ~FIN
            self._ack_due = True
        had_gap = buffer.has_gap
        before = buffer.next
        if payload:
            buffer.insert(position, payload)
            # Several segments may come as one that the device merged.
            self._largest_received = max(self._largest_received, min(length, self._advertised_mss))
        if flags & FIN:
            self._fin_received_at = end
        news = buffer.next - before
        self.rcv_nxt = buffer.next
        self.received_bytes += news
        self._bytes_since_ack += news
        if self._fin_received_at == buffer.next:
            self._on_fin(now)
        elif had_gap or buffer.has_gap or not news or self._ack_due:
            # RFC 5681 §4.2: "A TCP receiver SHOULD send an immediate duplicate ACK when an out-of-order segment arrives
            # [...] a TCP receiver SHOULD send an immediate ACK when the incoming segment fills in all or part of a gap"
            self._send_ack()
        elif self._bytes_since_ack >= 2 * self._largest_received:
            # RFC 5681 §4.2: "an ACK SHOULD be generated for at least every second full-sized segment"
            self._send_ack()
        else:
            self._acknowledge_soon(now)
        self._last_data_at = now

    def _acknowledge_soon(self, now: int) -> None:
        if self._quick_acks:
            self._quick_acks -= 1
            self._send_ack()
        elif self._ack_at == NEVER:
            self._ack_at = now + self._profile.delayed_ack_ps

    def _on_fin(self, now: int) -> None:
        # RFC 9293 §3.10.7.4, eighth: "advance RCV.NXT over the FIN, and send an acknowledgment for the FIN"
        self.rcv_nxt += 1
        self._rcv_edge = max(self._rcv_edge, self.rcv_nxt)
        if self.state is State.ESTABLISHED:
            self.state = State.CLOSE_WAIT
            if self._profile.delay_fin_ack:
                if self._ack_at == NEVER:
                    self._ack_at = now + self._profile.delayed_ack_ps
                return
        elif self.state is State.FIN_WAIT_1:
            # "If our FIN has been ACKed (perhaps in this segment), then enter TIME-WAIT [...]; otherwise, enter the
            # CLOSING state." An acknowledged FIN has led to FIN-WAIT-2 already.
            self.state = State.CLOSING
        elif self.state is State.FIN_WAIT_2:
            self._enter_time_wait(now)
        self._send_ack()

    # Handshake and end -----------------------------------------------------------------------------------------------

    def _take_syn(self, syn: TcpHeader) -> None:
        """Take over the peer's sequence number, MSS and window scale."""
        self._irs = syn.sequence
        self.rcv_nxt = self._irs + 1
        self._receive_buffer.next = self.rcv_nxt
        self._rcv_edge = self.rcv_nxt + min(self._receive_buffer.capacity, MAX_UNSCALED_WINDOW)
        options = syn.options
        # RFC 9293 §3.7.1: "If an MSS Option is not received at connection setup, TCP implementations MUST assume a
        # default send MSS of 536 (576 - 40) for IPv4 or 1220 (1280 - 60) for IPv6"
        self.mss = max(min(options.mss or self.mss, self._advertised_mss), 1)
        # RFC 7323 §2.2: "If a TCP receives a <SYN> segment containing a Window Scale option [...] both sides MUST send
        # Window Scale options in their <SYN> segments to enable window scaling in either direction."
        if options.window_scale is not None and self._profile.window_scale is not None:
            # §2.3: "If a Window Scale option is received with a shift.cnt value larger than 14, the TCP SHOULD log the
            # error but MUST use 14"
            self._is_scaled = True
            self._snd_shift = min(options.window_scale, MAX_WINDOW_SHIFT)
            self._rcv_shift = self._profile.window_scale
        self._max_payload = max(self._max_payload, self.mss)
        self._congestion = NewReno(self.mss, self._profile.initial_window_segments, self._iss,
                                   self._profile.limited_transmit)
        self._set_send_window(syn.window, self._irs, self._iss)

    def _acknowledge_handshake(self, tcp: TcpHeader, ack: int, now: int) -> None:
        """Our SYN is acknowledged: ESTABLISHED."""
        self.state = State.ESTABLISHED
        self.snd_una = ack
        self.snd_nxt = max(self.snd_nxt, ack)
        self._rtt.acknowledge(ack, now)
        if self._retransmissions:
            self._retransmissions = 0
            self._rtt.after_lost_syn()
            self._congestion.on_lost_syn()
        self._retransmit_at = NEVER
        # RFC 7323 §2.2: "The window field in a segment where the SYN bit is set [...] MUST NOT be scaled."
        shift = 0 if tcp.flags & SYN else self._snd_shift
        self._set_send_window(tcp.window << shift, unwrap(tcp.sequence, self.rcv_nxt), ack)
        if self._close_requested:
            self._queue_fin()
        self._output.want_transmit(self)

    def _queue_fin(self) -> None:
        # RFC 9293 §3.10.4: ESTABLISHED: "Queue this until all preceding SENDs have been segmentized, then form a FIN
        # segment and send it. In any case, enter FIN-WAIT-1 state."; CLOSE-WAIT: "[...] enter LAST-ACK state."
        if self.state is State.ESTABLISHED:
            self.state = State.FIN_WAIT_1
        elif self.state is State.CLOSE_WAIT:
            self.state = State.LAST_ACK
        self._fin_queued = True
        self._output.want_transmit(self)

    def _enter_time_wait(self, now: int) -> None:
        # "Start the time-wait timer, turn off the other timers."
        self.state = State.TIME_WAIT
        self._retransmit_at = self._persist_at = self._ack_at = NEVER
        self._time_wait_at = now + self._profile.time_wait_ps

    def _enter_closed(self, error: OSError | None) -> None:
        self.state = State.CLOSED
        self.error = error
        self._retransmit_at = self._persist_at = self._ack_at = self._time_wait_at = NEVER
        self._send_buffer.clear()
        self._output.on_closed(self)
        self._notify()

    def _notify(self) -> None:
        if self.on_event is not None:
            self.on_event(self)

    # Timers ----------------------------------------------------------------------------------------------------------

    def _on_retransmission_timeout(self) -> None:
        self._retransmit_at = NEVER
        self._retransmissions += 1
        limit = self._profile.max_retransmissions
        if self.state in _HANDSHAKE:
            limit = self._profile.max_syn_retransmissions
        if self._retransmissions > limit:
            # RFC 9293 §3.8.3: "When the number of transmissions of the same segment reaches a threshold R2 [...] close
            # the connection."
            self._enter_closed(TimeoutError(f"{self!r}: no answer to {limit} retransmissions"))
            return
        if self.state not in _HANDSHAKE:
            self._congestion.on_timeout(self.snd_max, self.snd_max - self.snd_una, is_first=self._retransmissions == 1)
        # RFC 6298 §5.4: "Retransmit the earliest segment that has not been acknowledged by the TCP receiver."
        self.snd_nxt = self._small_until = self.snd_una
        self._retransmit_first = False
        self._rtt.cancel()
        self._rtt.back_off()
        self._output.want_transmit(self)

    def _on_persist_timeout(self) -> None:
        self._persist_at = NEVER
        self._probes += 1
        if self._probes > self._profile.max_retransmissions:
            # RFC 9293 §3.8.6.1: "As long as the receiving TCP peer continues to send acknowledgments in response to the
            # probe segments, the sending TCP implementation MUST allow the connection to stay open"; here none came.
            self._enter_closed(TimeoutError(f"{self!r}: no answer to {self._probes - 1} window probes"))
            return
        self._persist_backoff += 1
        self._probe_due = True
        self._output.want_transmit(self)

    def _start_persist(self, now: int) -> None:
        # RFC 9293 §3.8.6.1: "The transmitting host SHOULD send the first zero-window probe when a zero window has
        # existed for the retransmission timeout period and SHOULD increase exponentially the interval"
        profile = self._profile
        wait = max(self._rtt.rto, profile.min_persist_ps) << min(self._persist_backoff, 16)
        self._persist_at = now + min(wait, profile.max_persist_ps)

    # Sending ---------------------------------------------------------------------------------------------------------

    def _set_send_window(self, window: int, position: int, ack: int) -> None:
        self.snd_wnd = window
        self._max_snd_wnd = max(self._max_snd_wnd, window)
        self._snd_wl1 = position
        self._snd_wl2 = ack

    def _window_edge(self) -> int:
        """Right edge of the window that may be advertised now."""
        buffer = self._receive_buffer
        free = min(buffer.capacity - buffer.available, MAX_UNSCALED_WINDOW << self._rcv_shift)
        edge = self.rcv_nxt + free
        # RFC 9293 §3.8.6.2.2: "keep RCV.NXT+RCV.WND fixed until: RCV.BUFF - RCV.USER - RCV.WND >= min(Fr * RCV.BUFF,
        # Eff.snd.MSS)", Fr = 1/2
        if edge - self._rcv_edge >= min(buffer.capacity // 2, self._advertised_mss):
            return edge
        return self._rcv_edge

    def _window_field(self) -> int:
        """The window field of a segment that leaves now; moves the advertised edge and settles all owed ACKs."""
        self._rcv_edge = self._window_edge()
        self._ack_at = NEVER
        self._ack_due = False
        self._bytes_since_ack = 0
        return min(self._rcv_edge - self.rcv_nxt >> self._rcv_shift, MAX_UNSCALED_WINDOW)

    def _send_control(self, position: int, flags: int) -> None:
        """A segment without data."""
        self._output.output(self, wrap(position), flags, self._window_field(), b"", [], 0, False)

    def _send_ack(self) -> None:
        # <SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>; after going back SND.NXT is old, and after a zero-window probe SND.MAX
        # lies beyond the peer's window: neither would be acceptable there.
        self._send_control(min(self.snd_max, max(self.snd_nxt, self.snd_una + self.snd_wnd)), ACK)

    def _send_challenge_ack(self, now: int) -> None:
        # RFC 5961 §7: "an implementation SHOULD include an ACK throttling mechanism"
        if now >= self._challenge_after:
            self._challenge_after = now + self._profile.challenge_ack_ps
            self._send_ack()

    def _send_syn(self, now: int) -> None:
        is_answer = self.state is State.SYN_RECEIVED
        # RFC 7323 §2.2: in a SYN-ACK the option is sent only if the SYN had it
        scale = self._profile.window_scale if not is_answer or self._is_scaled else None
        options = TcpOptions(mss=self._advertised_mss, window_scale=scale).pack()
        window = min(self._receive_buffer.capacity, MAX_UNSCALED_WINDOW)
        is_again = self.snd_max > self._iss
        self._note_sent(self._iss, 1, now, is_again)
        self._output.output(self, wrap(self._iss), SYN | ACK if is_answer else SYN, window, options, [], 0, is_again)

    def _send_new(self, now: int) -> None:
        """Send from `snd_nxt` on what both windows allow."""
        buffer = self._send_buffer
        if buffer.end <= self.snd_nxt and not self._fin_queued:
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
            if unsent < 0 or (unsent == 0 and not self._fin_queued):
                return
            room = limit - position
            length = min(unsent, room, self._max_payload)
            if room <= 0 or not self._is_worth_sending(position, length, unsent):
                break
            if length > mss and (length < unsent or not self._may_send_small(has_outstanding=True)):
                length -= length % mss
            self._send_segment(position, length, with_fin=length == unsent and room > length, now=now)
        if self.snd_una == position and self._persist_at == NEVER:
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
        if nagle is Nagle.OFF or self._fin_queued:
            return True
        if nagle is Nagle.MINSHALL:
            return self._small_until <= self.snd_una
        return not has_outstanding

    def _send_segment(self, position: int, length: int, *, with_fin: bool, now: int) -> None:
        """Send `length` queued bytes from `position`, and the FIN behind them if asked."""
        buffer = self._send_buffer
        end = position + length
        flags = ACK
        if length and end == buffer.end:
            # RFC 9293 §3.9.1.2: "A TCP endpoint MUST set the PSH bit in the last buffered segment"
            flags |= PSH
        with_fin = with_fin and self._fin_queued and end == buffer.end
        if with_fin:
            flags |= FIN
        if length % self.mss:
            self._small_until = max(self._small_until, end)
        if length and self._quick_acks and now - self._last_data_at < self._profile.delayed_ack_ps:
            self._quick_acks = 0  # data is answered with data: acknowledgements can ride on it
        is_again = position < self.snd_max
        self.sent_bytes = max(self.sent_bytes, end - self._iss - 1)
        self._note_sent(position, length + (1 if with_fin else 0), now, is_again)
        pieces = buffer.pieces(position, length) if length else []
        self._output.output(self, wrap(position), flags, self._window_field(), b"", pieces, length, is_again)

    def _note_sent(self, position: int, length: int, now: int, is_again: bool) -> None:
        """Keep SND.NXT, the round-trip measurement and the retransmission timer for a segment that leaves."""
        end = position + length
        self.snd_nxt = max(self.snd_nxt, end)
        self.snd_max = max(self.snd_max, end)
        self._last_sent_at = now
        self._persist_at = NEVER
        if is_again:
            self.retransmitted_segments += 1
            self._rtt.cancel()
        else:
            self._rtt.time(end, now)
        # RFC 6298 §5.1: "Every time a packet containing data is sent (including a retransmission), if the timer is not
        # running, start it running so that it will expire after RTO seconds"
        if self._retransmit_at == NEVER:
            self._retransmit_at = now + self._rtt.rto

    def _send_first_again(self, now: int) -> None:
        """Send the first unacknowledged segment again, outside the congestion window."""
        position = self.snd_una
        outstanding = self.snd_max - position
        if outstanding <= 0:
            return
        length = min(self._send_buffer.end - position, self.mss, outstanding, max(self.snd_wnd, 1))
        self._send_segment(position, length, with_fin=outstanding > length, now=now)

    def _send_probe(self, now: int) -> None:
        """The persist timer expired: send something although the window says no, or says very little."""
        position = self.snd_una
        unsent = self._send_buffer.end - position
        if position != self.snd_nxt or unsent < 0 or (unsent == 0 and not self._fin_queued):
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
        self.sent_bytes = max(self.sent_bytes, position + length - self._iss - 1)
        self._start_persist(now)
        pieces = self._send_buffer.pieces(position, length)
        flags = ACK if length else ACK | FIN
        self._output.output(self, wrap(position), flags, self._window_field(), b"", pieces, length, False)
