"""One TCP connection: the state machine of RFC 9293 over a sending and a receiving half.

Positions are unwrapped sequence numbers (`nic_model.seqnum`), so that they compare as integers. The names `snd_una`,
`snd_nxt`, `rcv_nxt` and so on are the standard's (RFC 9293 §3.3.1).

The connection owns no clock and no wire: it is told of segments and of the time, and gives segments to its `Output`.
Acknowledgements that are due at once leave while the segment that asks for them is processed; everything else leaves
in `emit`, which the stack calls when it is asked to transmit.
"""

# Ref: RFC 9293 §3.8.3 to §3.8.5, §3.9.2.2, §3.10; RFC 5961 §3 to §5; RFC 7323 §2, §3.2, §5; RFC 2018 §2; RFC 3168 §6.1;
#      RFC 6093; RFC 5927; RFC 1122 §4.2.2.13

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from host_driver.tcp.buffers import Chunk
from host_driver.tcp.links import Link, LocalAddress
from host_driver.tcp.liveness import Due, Liveness
from host_driver.tcp.profile import MS, SECOND, Ecn, Nagle, Profile
from host_driver.tcp.receiver import Receiver
from host_driver.tcp.sack import Block, SackReport
from host_driver.tcp.sender import Sender
from host_driver.tcp.states import (
    ACK,
    CE,
    CLOSED,
    CWR,
    ECE,
    FIN,
    NEVER,
    NOT_ECT,
    RST,
    SYN,
    SYN_RECEIVED,
    SYN_SENT,
    URG,
    Endpoint,
    State,
)
from nic_model.packets import (
    MAX_TCP_OPTIONS_BYTES,
    SACK_BLOCK_BYTES,
    TIMESTAMPS_BYTES,
    TcpHeader,
    TcpOptions,
    pack_timestamps,
)
from nic_model.seqnum import MASK, distance, unwrap, wrap

MAX_WINDOW_SHIFT = 14
MIN_SEND_MSS = 28
"""RFC 791 §3.2 has every module forward 68 octets unfragmented: a peer that asks for less than that leaves, without the
headers, only means to keep a processor busy."""

DEFAULT_MSS_IPV4 = 536
DEFAULT_MSS_IPV6 = 1220

_SACK_OVERHEAD_BYTES = 4  # kind and length, and what fills them up to a whole word

_HANDSHAKE = (State.SYN_SENT, State.SYN_RECEIVED)
_MAY_QUEUE = (State.ESTABLISHED, State.CLOSE_WAIT, State.SYN_SENT, State.SYN_RECEIVED)
_MAY_RECEIVE = (State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2)
_MAY_TRANSMIT = (State.ESTABLISHED, State.FIN_WAIT_1, State.CLOSE_WAIT, State.CLOSING, State.LAST_ACK)


def timestamp(now: int, iss: int, tick_ps: int = MS) -> int:
    """What the timestamp clock of a connection shows: an offset keeps one connection from telling of another."""
    return now // tick_ps + iss & MASK


class Arrival(NamedTuple):
    """A segment as it came, which waits until the connection is free."""

    local: LocalAddress
    source: bytes
    tcp: TcpHeader
    payload: memoryview
    ecn: int
    merged_bytes: int


class Output(Protocol):
    """Where a connection's segments and wishes go: the stack."""

    def output(self, connection: Connection, sequence: int, flags: int, window: int, options: bytes,
               payload: list[Chunk], payload_bytes: int, mss: int, is_retransmission: bool, ecn: int,
               urgent: int = 0) -> None:
        """Send a segment, `mss` payload bytes to a frame; `sequence`, `window` and `urgent` as they stand on the wire,
        acknowledgement by `ack_number`; `ecn` is the IP header's codepoint."""

    def want_transmit(self, connection: Connection) -> None:
        """`connection.emit` should be called when the stack next transmits."""

    def on_established(self, connection: Connection) -> None:
        """A connection that was opened passively completed its handshake."""

    def on_closed(self, connection: Connection) -> None:
        """The connection reached CLOSED: nothing of it is left."""


class Connection:
    """A connection as its user sees it, and as the stack drives it. Made by `Stack.connect` and `Listener.accept`.

    `on_event`, if set, is called synchronously when the connection becomes established, when bytes or a FIN arrive
    in order, when the peer announces urgent bytes, when bytes are acknowledged, and when it closes. It may call `send`,
    `recv`, `close` and `abort`. After any of these calls, or `Stack.receive` and `Stack.poll`, the stack may have
    segments to transmit.
    """

    __slots__ = (
        "_advertised_mss", "_challenge_after", "_close_requested", "_has_timestamps", "_is_released",
        "_is_scaled", "_liveness", "_output", "_path_mss", "_profile", "_rcv_up", "_sack_blocks", "_stamps",
        "_stamps_option", "_time_wait_at", "_urgent_due", "backlog", "error", "is_passive", "link", "local", "on_event",
        "receiver", "remote", "sender", "soft_error", "state", "timer_at", "timestamp_offset",
    )

    def __init__(self, *, local: Endpoint, remote: Endpoint, iss: int, advertised_mss: int, path_mss: int,
                 max_segment_bytes: int | None, profile: Profile, output: Output, link: Link) -> None:
        """A connection in CLOSED. `path_mss`: of the largest segment that gets through. `max_segment_bytes`: largest
        payload of one output; None: the MSS. `link` is the stack's, to build headers with."""
        self.local = local
        self.remote = remote
        self.link = link
        self.state = State.CLOSED
        self.error: OSError | None = None
        """Why the connection ended, if not by FINs both ways."""
        self.soft_error: OSError | None = None
        """What the network said since the last progress; it may pass."""
        self.is_passive = False
        """Opened by the peer."""
        self.on_event: Callable[[Connection], None] | None = None
        self.backlog: deque[Arrival] | None = None
        """Segments that came while a system call works on the connection, which will carry them out; None: none does.
        """

        self._profile = profile
        self._output = output
        self._advertised_mss = advertised_mss
        mss = DEFAULT_MSS_IPV4 if local.ip.version == 4 else DEFAULT_MSS_IPV6
        self.sender = Sender(iss=iss, mss=mss, max_payload=max_segment_bytes or 0, profile=profile, owner=self)
        self.receiver = Receiver(profile, advertised_mss)
        self._is_scaled = False
        self._has_timestamps = False
        self.timestamp_offset = iss
        """Of its timestamp clock: so that the clock of one connection says nothing about another's."""
        self._stamps, self._stamps_option = (0, 0), pack_timestamps(0, 0)  # the last ones; most are used again
        self._sack_blocks = 0  # that have room in a header
        self._close_requested = False
        self._challenge_after = -NEVER
        self._time_wait_at = NEVER  # also ends FIN-WAIT-2 when the user has gone
        self._path_mss = path_mss
        self._is_released = False
        self._urgent_due = False
        self._rcv_up: int | None = None  # position behind the urgent bytes that the peer announced
        self._liveness: Liveness | None = None  # made when the user asks for it
        self.timer_at = NEVER
        """When the stack will next look at this connection's timers; the stack's own."""

    def __repr__(self) -> str:
        return f"<Connection {self.local.ip}:{self.local.port} {self.remote.ip}:{self.remote.port} {self.state.name}>"

    # What the user reads ---------------------------------------------------------------------------------------------

    @property
    def queued_bytes(self) -> int:
        """Bytes of the send stream that `send` took."""
        return self.sender.queued_bytes

    @property
    def sent_bytes(self) -> int:
        """Bytes of the send stream that left at least once."""
        return self.sender.sent_bytes

    @property
    def acked_bytes(self) -> int:
        """Bytes of the send stream that the peer acknowledged."""
        return self.sender.acked_bytes

    @property
    def received_bytes(self) -> int:
        """Bytes that arrived in order, read or not."""
        return self.receiver.received_bytes

    @property
    def retransmitted_segments(self) -> int:
        """Segments that left again, of those that `Output.output` was given."""
        return self.sender.retransmitted_segments

    @property
    def mss(self) -> int:
        """Largest payload of a segment towards the peer, the options that all have left out."""
        return self.sender.mss

    @property
    def nagle(self) -> Nagle:
        """When a segment that is not full waits; may be set."""
        return self.sender.nagle

    @nagle.setter
    def nagle(self, nagle: Nagle) -> None:
        self.sender.nagle = nagle

    @property
    def send_space(self) -> int:
        """Bytes of the send buffer that are free; 0 when nothing more may be queued."""
        if self._close_requested or self.state not in _MAY_QUEUE:
            return 0
        return self.sender.space

    @property
    def recv_available(self) -> int:
        """Bytes that `recv` would give now."""
        return self.receiver.buffer.available

    @property
    def peer_closed(self) -> bool:
        """Whether the peer's FIN was reached: after the available bytes there will be no more."""
        return self.receiver.peer_closed

    @property
    def urgent_bytes(self) -> int:
        """Unread bytes up to the last urgent one, whether they have arrived or not; 0 if nothing is urgent."""
        # RFC 9293 §3.8.5: "The TCP implementation MUST provide a way for the application to learn how much urgent data
        # remains to be read from the connection"; RFC 6093 §6 has them read in line with all others.
        if self._rcv_up is None:
            return 0
        buffer = self.receiver.buffer
        return max(self._rcv_up - (buffer.next - buffer.available), 0)

    @property
    def readable(self) -> bool:
        """Whether `recv` gives bytes, or tells of the end."""
        return self.receiver.buffer.available > 0 or self.receiver.peer_closed or self.state is State.CLOSED

    @property
    def writable(self) -> bool:
        """Whether `send` takes a chunk now."""
        return self.send_space > 0

    @property
    def has_timestamps(self) -> bool:
        """Whether all segments carry timestamps."""
        return self._has_timestamps

    @property
    def established(self) -> bool:
        """Whether the handshake is done (the connection may be closing since)."""
        return self.state >= State.ESTABLISHED

    # What the user calls ---------------------------------------------------------------------------------------------

    def send(self, chunk: Chunk, *, urgent: bool = False) -> int:
        """Queue a chunk, whole or not at all; the chunk may be longer than the space left, as long as there is some.

        Returns the bytes queued: `len(chunk)`, or 0 when there is no space. Nothing is copied; `chunk.release` tells
        when its memory is free. `urgent`: the peer's user is told to read up to this chunk's end. Raises
        BrokenPipeError after `close`, and the connection's error if it has one.
        """
        if self._close_requested or self.state not in _MAY_QUEUE:
            raise self.error or BrokenPipeError(f"{self!r} takes no more data")
        length = len(chunk)
        if length == 0:
            if chunk.release is not None:
                chunk.release()
            return 0
        if self.sender.space == 0:
            return 0
        self.sender.queue(chunk)
        if urgent:
            # RFC 6093 §4: the pointer "points to the sequence number of the octet following the urgent data"
            self.sender.urgent_end = self.sender.buffer.end
            self._urgent_due = True
        return length

    def recv(self, max_bytes: int) -> bytes:
        """Take up to `max_bytes` that arrived in order; b"" if there are none (`peer_closed` tells whether for ever).

        Raises the connection's error if there is nothing to read and it has one.
        """
        data = self.receiver.buffer.read(max_bytes)
        if data:
            self.note_room()
        elif self.error is not None:
            raise self.error
        return data

    def note_room(self) -> None:
        """The receive buffer has more room: the peer is told if it matters to it."""
        if self.state in _MAY_RECEIVE and self.receiver.on_read():
            self.receiver.ack_due = True
            self._output.want_transmit(self)

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

    def release(self, now: int) -> None:
        """Close, as by a user that has gone: it will not read any more.

        What it has not read, or what arrives later, makes the end a reset; and a peer that never closes its half is
        not waited for longer than the profile says.
        """
        self._is_released = True
        # RFC 1122 §4.2.2.13: "If such a host issues a CLOSE call while received data is still pending in TCP, or if new
        # data is received after CLOSE is called, its TCP SHOULD send a RST to show that data was lost."
        if self.receiver.buffer.available and self.state in (*_MAY_RECEIVE, State.CLOSE_WAIT):
            self.abort(now)
            return
        self.close(now)
        if self.state is State.FIN_WAIT_2:
            self._time_wait_at = now + self._profile.fin_wait_2_ps
            self._output.want_transmit(self)  # so that the stack looks at the timer

    def set_profile(self, profile: Profile) -> None:
        """Go on by other constants for buffers and keep-alive, of this connection alone. A window that the peer was
        told of is not taken back."""
        self._profile = profile
        self.sender.set_profile(profile)
        self.receiver.buffer.capacity = profile.receive_buffer_bytes
        if self._liveness is not None:
            self._liveness.set_profile(profile)

    @property
    def _watched(self) -> Liveness:
        if self._liveness is None:
            self._liveness = Liveness(self._profile)
        return self._liveness

    @property
    def user_timeout_ps(self) -> int | None:
        """How long queued data may stay without progress before the connection is given up; None: as long as the
        retransmissions last. May be set (RFC 9293 §3.8.3)."""
        return None if self._liveness is None else self._liveness.user_timeout_ps

    @user_timeout_ps.setter
    def user_timeout_ps(self, timeout_ps: int | None) -> None:
        self._watched.user_timeout_ps = timeout_ps

    def set_keep_alive(self, on: bool, now: int) -> None:
        """Ask an idle peer now and then whether it is there, as the profile says, and give up when it is not."""
        # RFC 9293 §3.8.4: "Implementers MAY include 'keep-alives' in their TCP implementations [...] If keep-alives are
        # included, the application MUST be able to turn them on or off for each TCP connection, and they MUST default
        # to off."
        self._watched.set_keep_alive(on, now)
        self._output.want_transmit(self)  # so that the stack looks at the timer

    def abort(self, now: int) -> None:
        """Drop the connection; the peer gets a RST."""
        # RFC 9293 §3.10.5: SYN-RECEIVED to CLOSE-WAIT: "Send a reset segment: <SEQ=SND.NXT><CTL=RST>"
        if State.SYN_RECEIVED <= self.state <= State.CLOSE_WAIT:
            self._send_control(self.sender.ack_position, RST | ACK, now)
        if self.state is State.TIME_WAIT:
            self._enter_closed(None)  # all had been said
        elif self.state is not State.CLOSED:
            self._enter_closed(ConnectionAbortedError(f"{self!r} was aborted"))

    # What the stack calls --------------------------------------------------------------------------------------------

    @property
    def ack_number(self) -> int:
        """The acknowledgement number of a segment that leaves now."""
        return wrap(self.receiver.rcv_nxt)

    def deadline(self) -> int:
        """When `on_timer` must be called; NEVER if no timer runs."""
        sender = self.sender
        return min(sender.retransmit_at, sender.persist.at, sender.recovery_at, self.receiver.ack_at,
                   self._time_wait_at, NEVER if self._liveness is None else self._liveness.at)

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

    def may_reopen(self, syn: TcpHeader) -> bool:
        """In TIME-WAIT: whether a SYN is a new one of the peer, not an old duplicate."""
        # RFC 9293 §3.6.1: a TCP "MAY accept a new SYN from the remote TCP endpoint to reopen the connection directly
        # from the TIME-WAIT state, if it: (1) assigns its initial sequence number for the new connection to be larger
        # than the largest sequence number it used on the previous connection incarnation", which the stack sees to, and
        # the SYN is no old duplicate.
        receiver = self.receiver
        is_beyond = unwrap(syn.sequence, receiver.rcv_nxt) > receiver.rcv_nxt
        timestamps = syn.options.timestamps
        if not self._has_timestamps or timestamps is None:
            return is_beyond
        # RFC 6191 §2: with timestamps the later one is newer, whatever the sequence number; with the same one, the
        # sequence number decides
        later = distance(receiver.ts_recent, timestamps[0])
        return later > 0 or (later == 0 and is_beyond)

    def open_by_cookie(self, syn: TcpHeader) -> None:
        """Like `open_passive`, with a SYN that was put together again; our SYN-ACK has left."""
        self.open_passive(syn)
        self.sender.skip_syn()

    def on_segment(self, tcp: TcpHeader, payload: memoryview, now: int, ecn: int = NOT_ECT,
                   merged_bytes: int = 0) -> None:
        """A segment of this connection arrived, its checksum right; `ecn` is the IP header's codepoint, `merged_bytes`
        as in `Stack.receive`."""
        if self._liveness is not None:
            self._liveness.heard_at = now
        if self.state is SYN_SENT:
            self._on_segment_in_syn_sent(tcp, payload, now)
        elif self.state is not CLOSED:
            self._on_segment(tcp, payload, now, ecn, merged_bytes)

    def covers(self, sequence: int) -> bool:
        """Whether a segment with this number may be under way, as an ICMP error says that quotes it."""
        # RFC 5927 §4.1: "SND.UNA =< SEG.SEQ < SND.NXT"
        sender = self.sender
        return sender.snd_una <= unwrap(sequence, sender.snd_una) < sender.snd_max

    def on_unreachable(self, error: OSError, *, is_hard: bool) -> None:
        """The network says that segments do not arrive."""
        # RFC 5927 §5.2: in a synchronized state a hard error is taken for a soft one, since it is likelier forged or
        # passing than true.
        ends = is_hard or (self.state is State.SYN_SENT and self._profile.soft_errors_end_open)
        if ends and self.state in _HANDSHAKE:
            self._enter_closed(error)
        else:
            # RFC 9293 §3.9.2.2: "a TCP implementation MUST NOT abort the connection, and it SHOULD make the information
            # available to the application"
            self.soft_error = error

    def on_path_mss(self, path_mss: int) -> None:
        """Larger segments, with their TCP options, do not get through any more."""
        self._path_mss = path_mss
        if self.state not in _HANDSHAKE:
            self.sender.lower_mss(path_mss - (TIMESTAMPS_BYTES if self._has_timestamps else 0))

    def on_timer(self, now: int) -> None:
        """Run the timers that are due at `now`."""
        sender = self.sender
        if self.receiver.ack_at <= now:
            self._send_ack(now)
        if sender.recovery_at <= now:
            sender.on_recovery_timer(now)
        if sender.retransmit_at <= now:
            is_handshake = self.state in _HANDSHAKE
            limit = self._profile.max_syn_retransmissions if is_handshake else self._profile.max_retransmissions
            if not sender.on_retransmission_timeout(limit, now, is_handshake=is_handshake):
                self._time_out(f"no answer to {limit} retransmissions")
        if sender.persist.at <= now and not sender.on_persist_timeout():
            probes = self._profile.max_retransmissions
            self._time_out(f"no answer to {probes} window probes")
        if self._time_wait_at <= now:
            self._enter_closed(None)
        if self._liveness is not None and self._liveness.at <= now:
            self._on_liveness_timer(self._liveness, now)

    def _on_liveness_timer(self, liveness: Liveness, now: int) -> None:
        due = liveness.on_timer(now, is_waiting=self._is_waiting)
        if due is Due.PROBE:
            # RFC 9293 §3.8.4: "[...] SEG.SEQ = SND.NXT-1 and may or may not contain one garbage octet of data"
            self._send_control(self.sender.snd_max - 1, ACK, now)
        elif due is Due.SILENT:
            self._send_control(self.sender.ack_position, RST | ACK, now)
            self._time_out(f"no answer to {liveness.probes} keep-alive probes")
        elif due is Due.NO_PROGRESS:
            # §3.10.8: "if the user timeout expires, flush all queues, signal the user 'error: connection aborted due to
            # user timeout' [...], delete the TCB, enter the CLOSED state"
            self._time_out(f"no progress within the user timeout of {(liveness.user_timeout_ps or 0) / SECOND:g} s")

    @property
    def _is_waiting(self) -> bool:
        """Whether something of the own stream waits for the peer."""
        sender = self.sender
        return sender.snd_una < sender.snd_max or not sender.all_acknowledged or self.state in _HANDSHAKE

    def _time_out(self, why: str) -> None:
        because = f" ({self.soft_error.strerror})" if self.soft_error is not None else ""
        self._enter_closed(TimeoutError(f"{self!r}: {why}{because}"))

    def emit(self, now: int) -> None:
        """Send all that may be sent now."""
        state = self.state
        if state in _MAY_TRANSMIT:
            self.sender.emit(now)
        elif state in _HANDSHAKE and self.sender.snd_nxt == self.sender.iss:
            self._send_syn(now)
        if self._liveness is not None and state is not CLOSED:
            self._liveness.watch(now, is_waiting=self._is_waiting, is_progress=False)
        if state in _HANDSHAKE:
            return
        if self._urgent_due:
            self._urgent_due = False
            if self.sender.snd_nxt < self.sender.urgent_end:
                # RFC 9293 §3.8.6.1 has a closed window stop no urgent information: it leaves with an acknowledgement.
                self._send_control(self.sender.snd_nxt, ACK, now)
        if self.receiver.ack_due and state is not CLOSED:
            self._send_ack(now)

    # What the sender calls (`sender.Owner`) --------------------------------------------------------------------------

    def send_segment(self, position: int, flags: int, pieces: list[Chunk], length: int, mss: int, now: int, *,
                     is_retransmission: bool, ecn: int) -> None:
        """Send `length` bytes, `mss` of them in a frame, with the acknowledgement and window of now."""
        receiver = self.receiver
        if length:
            receiver.on_data_sent(now)
        if receiver.is_echoing:
            flags |= ECE
        urgent = self._urgent_pointer(position)
        if urgent:
            flags |= URG
        options = self._options(now)
        self._output.output(self, wrap(position), flags, receiver.window_field(), options, pieces, length, mss,
                            is_retransmission, ecn, urgent)

    def _urgent_pointer(self, position: int) -> int:
        """What a segment at `position` says of urgent bytes: the distance to their end, or 0."""
        return max(min(self.sender.urgent_end - position, 0xFFFF), 0)

    def extra_option_bytes(self) -> int:
        """Of the SACK blocks that a segment would have that leaves now."""
        report = self.receiver.report
        if report is not None and report.has_news:
            return _SACK_OVERHEAD_BYTES + SACK_BLOCK_BYTES * report.count(self._sack_blocks)
        return 0

    def want_transmit(self) -> None:
        """Have `emit` called when the stack next transmits."""
        self._output.want_transmit(self)

    # Arrival ---------------------------------------------------------------------------------------------------------

    def _on_segment_in_syn_sent(self, tcp: TcpHeader, payload: memoryview, now: int) -> None:
        sender = self.sender
        flags = tcp.flags
        ack = unwrap(tcp.acknowledgement, sender.snd_una)
        if flags & ACK and not sender.iss < ack <= sender.snd_max:
            # RFC 9293 §3.10.7.3, first: "If SEG.ACK =< ISS or SEG.ACK > SND.NXT, send a reset (unless the RST bit is
            # set, if so drop the segment and return) <SEQ=SEG.ACK><CTL=RST>"
            if not flags & RST:
                self._send_control(ack, RST, now)
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
            self._send_ack(now)
            if payload or flags & FIN:
                self._on_text(self.receiver.irs + 1, payload, flags, now)
            self._notify()
        else:
            # "Otherwise, enter SYN-RECEIVED, form a SYN,ACK segment <SEQ=ISS><ACK=RCV.NXT><CTL=SYN,ACK>"
            self.state = State.SYN_RECEIVED
            sender.stop_timers()
            sender.send_syn_again()

    def _on_segment(self, tcp: TcpHeader, payload: memoryview, now: int, ecn: int, merged_bytes: int) -> None:
        sender, receiver = self.sender, self.receiver
        flags = tcp.flags
        position = unwrap(tcp.sequence, receiver.rcv_nxt)
        if flags & SYN and self.state is State.SYN_RECEIVED and position == receiver.irs:
            # The peer's SYN again, because our SYN-ACK was lost; or, in a simultaneous open, its SYN-ACK.
            position += 1
            flags &= ~SYN
            if not flags & ACK:
                sender.send_syn_again()
                return

        timestamps = tcp.options.timestamps if self._has_timestamps else None
        if self._has_timestamps and not flags & RST:
            if timestamps is None:
                # RFC 7323 §3.2: "If a non-<RST> segment is received without a TSopt, a TCP SHOULD silently drop the
                # segment."
                return
            if timestamps[0] != receiver.ts_recent and receiver.is_old(timestamps[0], now):
                # §5.3 R1: as any segment that is not acceptable, it is acknowledged and dropped
                if payload or flags & (SYN | FIN):
                    self._send_ack(now)
                else:
                    self._send_challenge_ack(now)
                return

        # First, check sequence number.
        length = len(payload) + (1 if flags & FIN else 0) + (1 if flags & SYN else 0)
        if not receiver.is_acceptable(position, length):
            # RFC 9293 §3.10.7.4: "If an incoming segment is not acceptable, an acknowledgment should be sent in reply
            # (unless the RST bit is set, if so drop the segment and return)"
            if not flags & RST:
                if self.state is State.TIME_WAIT and flags & FIN:
                    # TIME-WAIT: "a retransmission of the remote FIN. Acknowledge it, and restart the 2 MSL timeout."
                    self._time_wait_at = now + self._profile.time_wait_ps
                if length:
                    receiver.note_duplicate(position, position + length)
                    self._send_ack(now)
                else:
                    self._send_challenge_ack(now)
            return
        if timestamps is not None and timestamps[0] != receiver.ts_recent:
            receiver.take_timestamp(timestamps[0], position, now)

        # Second, check the RST bit.
        if flags & RST:
            if position == receiver.rcv_nxt:
                # RFC 5961 §3.2: "If the RST bit is set and the sequence number exactly matches the next expected
                # sequence number (RCV.NXT), then TCP MUST reset the connection."
                kind = ConnectionRefusedError if self.state is State.SYN_RECEIVED else ConnectionResetError
                # CLOSING and later: "enter the CLOSED state, delete the TCB, and return", without a signal to the user;
                # but data that the peer never acknowledged is an error here, too.
                all_said = self.state >= State.CLOSING and sender.all_acknowledged
                self._enter_closed(None if all_said else kind(f"{self!r} was reset by its peer"))
            else:
                # "If the RST bit is set and the sequence number does not exactly match [...], yet is within the current
                # receive window, TCP MUST send an acknowledgment (challenge ACK)"
                self._send_challenge_ack(now)
            return

        # Fourth, check the SYN bit.
        if flags & SYN:
            if self.state is State.SYN_RECEIVED and self.is_passive:
                # RFC 9293 §3.10.7.4, SYN-RECEIVED: "If the connection was initiated with a passive OPEN, then return
                # this connection to the LISTEN state and return."
                self._enter_closed(None)
                return
            # RFC 5961 §4.2: "If the SYN bit is set, irrespective of the sequence number, TCP MUST send an ACK (also
            # referred to as challenge ACK) to the remote peer"
            self._send_challenge_ack(now)
            return

        # Fifth, check the ACK field: "if the ACK bit is off, drop the segment and return".
        if not flags & ACK:
            return
        state, una, nxt = self.state, sender.snd_una, receiver.rcv_nxt
        if not self._on_acknowledgement(tcp, position, len(payload), flags, now):
            return
        if sender.has_ecn:
            self._on_marks(flags, ecn, sender.snd_una, now)

        # Sixth, check the URG bit.
        is_news = flags & URG and self._on_urgent(position + tcp.urgent)

        # Seventh and eighth, process the segment text and check the FIN bit.
        if payload or flags & FIN:
            self._on_text(position, payload, flags, now, merged_bytes)
        if sender.snd_una != una or receiver.rcv_nxt != nxt or self.state is not state or is_news:
            self._notify()

    def _on_urgent(self, end: int) -> bool:
        """The peer says that the bytes before `end` are urgent; returns whether that is news for the user."""
        # RFC 9293 §3.10.7.4, sixth: "If the URG bit is set, RCV.UP <- max(RCV.UP,SEG.UP), and signal the user that the
        # remote side has urgent data if the urgent pointer (RCV.UP) is in advance of the data consumed. If the user has
        # already been signaled (or is still in the 'urgent mode') for this continuous sequence of urgent data, do not
        # signal the user again."
        if self.state not in _MAY_RECEIVE or end <= (self._rcv_up or 0):
            return False
        self._rcv_up = end
        return self.urgent_bytes > 0

    def _on_acknowledgement(self, tcp: TcpHeader, position: int, payload_bytes: int, flags: int, now: int) -> bool:
        """Process ACK and window; returns whether the rest of the segment counts."""
        sender = self.sender
        ack = unwrap(tcp.acknowledgement, sender.snd_una)
        if self.state is SYN_RECEIVED:
            # "If SND.UNA < SEG.ACK =< SND.NXT, then enter ESTABLISHED state [...]. If the segment acknowledgment is not
            # acceptable, form a reset segment <SEQ=SEG.ACK><CTL=RST>"
            if not sender.snd_una < ack <= sender.snd_max:
                self._send_control(ack, RST, now)
                return False
            self._acknowledge_handshake(tcp, ack, now)
            if self.is_passive:
                self._output.on_established(self)
            return self.state is not CLOSED

        if not sender.is_acceptable(ack):
            self._send_challenge_ack(now)
            return False
        options = tcp.options
        echo_ps = None
        blocks: list[Block] = []
        if options.timestamps is not None and self._has_timestamps:
            echo_ps = (self._timestamp(now) - options.timestamps[1] & MASK) * self._profile.timestamp_tick_ps
            if echo_ps > self._profile.max_rto_ps:
                echo_ps = None  # no segment of ours is on its way for so long: the peer made it up
        if options.sack and self._sack_blocks:
            blocks = self._valid_blocks(options.sack)
        una = sender.snd_una
        sender.on_acknowledgement(ack, tcp.window, position, blocks, now,
                                  is_pure=not payload_bytes and not flags & FIN, echo_ps=echo_ps,
                                  is_echo=sender.has_ecn and flags & ECE > 0)
        if sender.snd_una != una:
            self.soft_error = None
            if self._liveness is not None:
                self._liveness.watch(now, is_waiting=self._is_waiting, is_progress=True)
        if sender.fin_queued and sender.fin_acknowledged:
            self._on_fin_acknowledged(now)
        return self.state is not CLOSED

    def _valid_blocks(self, blocks: tuple[Block, ...]) -> list[Block]:
        """SACK blocks as positions, without those that cannot be of this connection."""
        sender = self.sender
        una, nxt = sender.snd_una, sender.snd_nxt
        valid = []
        for left, right in blocks:
            start, end = unwrap(left, una), unwrap(right, una)
            if sender.iss < start < end <= nxt:
                valid.append((start, end))
        return valid

    def _on_marks(self, flags: int, ecn: int, ack: int, now: int) -> None:
        """What the segment and its IP header say of congestion, one way and the other."""
        receiver = self.receiver
        # RFC 3168 §6.1.3: from a marked packet on all acknowledgements have ECN-Echo, until a CWR packet arrives; a CWR
        # that is marked itself begins anew
        if flags & CWR:
            receiver.is_echoing = False
        if ecn == CE:
            receiver.is_echoing = True
        if flags & ECE:
            self.sender.on_echo(ack, now)

    def _on_fin_acknowledged(self, now: int) -> None:
        # RFC 9293 §3.10.7.4, fifth: FIN-WAIT-1: "if the FIN segment is now acknowledged, then enter FIN-WAIT-2";
        # CLOSING: "if the ACK acknowledges our FIN, then enter the TIME-WAIT state"; LAST-ACK: "If our FIN is now
        # acknowledged, delete the TCB, enter the CLOSED state, and return."
        if self.state is State.FIN_WAIT_1:
            self.state = State.FIN_WAIT_2
            if self._is_released:
                self._time_wait_at = now + self._profile.fin_wait_2_ps
        elif self.state is State.CLOSING:
            self._enter_time_wait(now)
        elif self.state is State.LAST_ACK:
            self._enter_closed(None)

    def _on_text(self, position: int, payload: memoryview, flags: int, now: int, merged_bytes: int = 0) -> None:
        """Take in data and FIN of an acceptable segment, and see to their acknowledgement."""
        if 0 < merged_bytes < len(payload) and not self._profile.stretch_acks:
            # RFC 5681 §4.2 counts segments, and a sender's window grows with acknowledgements: what the device merged
            # is taken in segment by segment, as it came.
            for start in range(0, len(payload) - merged_bytes, merged_bytes):
                self._on_one_text(position + start, payload[start : start + merged_bytes], flags & ~FIN, now)
                if self.state is State.CLOSED:
                    return
            start = (len(payload) - 1) // merged_bytes * merged_bytes
            position, payload = position + start, payload[start:]
        self._on_one_text(position, payload, flags, now)

    def _on_one_text(self, position: int, payload: memoryview, flags: int, now: int) -> None:
        if self.state not in _MAY_RECEIVE:
            # CLOSE-WAIT and later: "This should not occur since a FIN has been received from the remote side. Ignore
            # the segment text." A segment reaches this only in front of the window's edge.
            self._send_ack(now)
            return
        if self._is_released and position + len(payload) > self.receiver.rcv_nxt:
            self._send_control(self.sender.ack_position, RST | ACK, now)
            self._enter_closed(ConnectionAbortedError(f"{self!r}: data came for a user that has gone"))
            return
        if self.receiver.take(position, payload, flags, now):
            self._send_ack(now)
        elif self.receiver.fin_reached:
            self._on_fin(now)

    def _on_fin(self, now: int) -> None:
        # RFC 9293 §3.10.7.4, eighth: "advance RCV.NXT over the FIN, and send an acknowledgment for the FIN"
        self.receiver.pass_fin()
        if self.state is State.ESTABLISHED:
            self.state = State.CLOSE_WAIT
            if self._profile.delay_fin_ack:
                self.receiver.acknowledge_soon(now)
                return
        elif self.state is State.FIN_WAIT_1:
            # "If our FIN has been ACKed (perhaps in this segment), then enter TIME-WAIT [...]; otherwise, enter the
            # CLOSING state." An acknowledged FIN has led to FIN-WAIT-2 already.
            self.state = State.CLOSING
        elif self.state is State.FIN_WAIT_2:
            self._enter_time_wait(now)
        self._send_ack(now)

    # Handshake and end -----------------------------------------------------------------------------------------------

    def _take_syn(self, syn: TcpHeader) -> None:
        """Take over the peer's sequence number, MSS and options."""
        sender, receiver = self.sender, self.receiver
        options = syn.options
        receiver.take_syn(syn.sequence)
        # RFC 9293 §3.7.1: "If an MSS Option is not received at connection setup, TCP implementations MUST assume a
        # default send MSS of 536 (576 - 40) for IPv4 or 1220 (1280 - 60) for IPv6"
        mss = min(options.mss or sender.mss, self._advertised_mss, self._path_mss)
        mss = max(mss, min(MIN_SEND_MSS, self._advertised_mss))
        # RFC 7323 §2.2: "If a TCP receives a <SYN> segment containing a Window Scale option [...] both sides MUST send
        # Window Scale options in their <SYN> segments to enable window scaling in either direction."
        if options.window_scale is not None and self._profile.window_scale is not None:
            # §2.3: "If a Window Scale option is received with a shift.cnt value larger than 14, the TCP SHOULD log the
            # error but MUST use 14"
            self._is_scaled = True
            sender.shift = min(options.window_scale, MAX_WINDOW_SHIFT)
            receiver.shift = self._profile.window_scale
        # RFC 7323 §3.2: a SYN-ACK has it "only if it received a TSopt in the initial <SYN> segment for the connection";
        # "Once TSopt has been successfully negotiated, [...] the TSopt MUST be sent in every non-<RST> segment"
        room = MAX_TCP_OPTIONS_BYTES
        if options.timestamps is not None and self._profile.timestamps:
            self._has_timestamps = True
            receiver.ts_recent = options.timestamps[0]
            room -= TIMESTAMPS_BYTES
            # RFC 9293 §3.7.1: the options that a segment has come off what the MSS option allows
            mss = max(mss - TIMESTAMPS_BYTES, 1)
        # RFC 2018 §2: SACK-Permitted in both SYNs
        if options.sack_permitted and self._profile.sack:
            self._sack_blocks = (room - _SACK_OVERHEAD_BYTES) // SACK_BLOCK_BYTES
            receiver.report = SackReport()
        # RFC 3168 §6.1.1: an ECN-setup SYN has both flags, an ECN-setup SYN-ACK only ECE
        marks = syn.flags & (ECE | CWR)
        if self.state is State.SYN_SENT:
            sender.has_ecn = self._profile.ecn is Ecn.REQUEST and syn.flags & ACK > 0 and marks == ECE
        else:
            sender.has_ecn = self._profile.ecn is not Ecn.OFF and marks == ECE | CWR
        sender.take_syn(mss, syn.window, syn.sequence, has_sack=bool(self._sack_blocks))

    def _acknowledge_handshake(self, tcp: TcpHeader, ack: int, now: int) -> None:
        """Our SYN is acknowledged: ESTABLISHED."""
        self.state = State.ESTABLISHED
        # RFC 7323 §2.2: "The window field in a segment where the SYN bit is set [...] MUST NOT be scaled."
        window = tcp.window << (0 if tcp.flags & SYN else self.sender.shift)
        self.sender.on_handshake_done(ack, window, unwrap(tcp.sequence, self.receiver.rcv_nxt), now)
        if self._close_requested:
            self._queue_fin()

    def _queue_fin(self) -> None:
        # RFC 9293 §3.10.4: ESTABLISHED: "Queue this until all preceding SENDs have been segmentized, then form a FIN
        # segment and send it. In any case, enter FIN-WAIT-1 state."; CLOSE-WAIT: "[...] enter LAST-ACK state."
        if self.state is State.ESTABLISHED:
            self.state = State.FIN_WAIT_1
        elif self.state is State.CLOSE_WAIT:
            self.state = State.LAST_ACK
        self.sender.queue_fin()

    def _enter_time_wait(self, now: int) -> None:
        # "Start the time-wait timer, turn off the other timers."
        self.state = State.TIME_WAIT
        self.sender.stop_timers()
        self.receiver.ack_at = NEVER
        if self._liveness is not None:
            self._liveness.stop()
        self._time_wait_at = now + self._profile.time_wait_ps

    def _enter_closed(self, error: OSError | None) -> None:
        self.state = State.CLOSED
        self.error = error
        self.sender.stop_timers()
        self.receiver.ack_at = self._time_wait_at = NEVER
        if self._liveness is not None:
            self._liveness.stop()
        self.sender.buffer.clear()
        self._output.on_closed(self)
        self._notify()

    def _notify(self) -> None:
        if self.on_event is not None:
            self.on_event(self)

    # Segments without data -------------------------------------------------------------------------------------------

    def _send_control(self, position: int, flags: int, now: int) -> None:
        receiver = self.receiver
        if receiver.is_echoing:
            flags |= ECE
        urgent = 0
        if self.state in _MAY_TRANSMIT and not flags & RST:
            urgent = self._urgent_pointer(position)
            flags |= URG if urgent else 0
        options = self._options(now)
        self._output.output(self, wrap(position), flags, receiver.window_field(), options, [], 0, self.sender.mss,
                            False, NOT_ECT, urgent)

    def _timestamp(self, now: int) -> int:
        return timestamp(now, self.timestamp_offset, self._profile.timestamp_tick_ps)

    def _options(self, now: int) -> bytes:
        """The options of a segment that is no SYN."""
        report = self.receiver.report
        if report is not None and report.has_news:
            sack = tuple((wrap(start), wrap(end)) for start, end in report.take(self._sack_blocks))
            timestamps = (self._timestamp(now), self.receiver.ts_recent) if self._has_timestamps else None
            return TcpOptions(timestamps=timestamps, sack=sack).pack()
        if self._has_timestamps:
            stamps = self._timestamp(now), self.receiver.ts_recent
            if stamps != self._stamps:
                self._stamps, self._stamps_option = stamps, pack_timestamps(*stamps)
            return self._stamps_option
        return b""

    def _send_ack(self, now: int) -> None:
        self._send_control(self.sender.ack_position, ACK, now)

    def _send_challenge_ack(self, now: int) -> None:
        # RFC 5961 §7: "an implementation SHOULD include an ACK throttling mechanism"
        if now >= self._challenge_after:
            self._challenge_after = now + self._profile.challenge_ack_ps
            self._send_ack(now)

    def _send_syn(self, now: int) -> None:
        is_answer = self.state is State.SYN_RECEIVED
        profile, sender, receiver = self._profile, self.sender, self.receiver
        # RFC 7323 §2.2, §3.2, RFC 2018 §2: in a SYN-ACK an option is sent only if the SYN had it
        timestamps = None
        if self._has_timestamps if is_answer else profile.timestamps:
            timestamps = self._timestamp(now), receiver.ts_recent
        options = TcpOptions(
            mss=self._advertised_mss,
            window_scale=profile.window_scale if not is_answer or self._is_scaled else None,
            sack_permitted=self._sack_blocks > 0 if is_answer else profile.sack,
            timestamps=timestamps)
        flags = SYN | ACK if is_answer else SYN
        is_again = sender.note_syn(now)
        if is_answer:
            flags |= ECE if sender.has_ecn else 0
        elif profile.ecn is Ecn.REQUEST and not is_again:
            # RFC 3168 §6.1.1.1: a SYN that was lost is sent again without, as the flags may be what was disliked
            flags |= ECE | CWR
        self._output.output(self, wrap(sender.iss), flags, receiver.syn_window, options.pack(), [], 0, sender.mss,
                            is_again, NOT_ECT)
