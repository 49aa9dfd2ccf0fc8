"""The receiving half of a connection: what arrived, what window to advertise, when to acknowledge.

It decides; the connection sends. Positions are unwrapped sequence numbers, with the standard's names.
"""

# Ref: RFC 9293 §3.4, §3.8.6.2.2, §3.8.6.3; RFC 5681 §4.2; RFC 7323 §2, §4.3, §5; RFC 2018 §4; RFC 3168 §6.1.3

from __future__ import annotations

from host_driver.tcp.buffers import ReceiveBuffer
from host_driver.tcp.profile import SECOND, Profile
from host_driver.tcp.sack import SackReport
from host_driver.tcp.states import FIN, MAX_UNSCALED_WINDOW, NEVER
from nic_model.seqnum import before

TS_RECENT_VALID_PS = 24 * 86_400 * SECOND
"""RFC 7323 §5.5: "24 days", after which the last timestamp says nothing about a new one."""


class Receiver:
    """What a connection knows of the peer's stream. In use from `take_syn` on."""

    __slots__ = (
        "_advertised_mss", "_bytes_since_ack", "_edge", "_largest_received", "_last_ack_sent", "_last_data_at",
        "_profile", "_quick_acks", "_ts_recent_at", "ack_at", "ack_due", "buffer", "fin_received_at", "irs",
        "is_echoing", "rcv_nxt", "received_bytes", "report", "shift", "ts_recent",
    )

    def __init__(self, profile: Profile, advertised_mss: int) -> None:
        self._profile = profile
        self._advertised_mss = advertised_mss
        self.irs = 0
        self.rcv_nxt = 0
        self.shift = 0
        """Window scale of the windows that are advertised."""
        self.buffer = ReceiveBuffer(0, profile.receive_buffer_bytes)
        self.fin_received_at: int | None = None
        """Position of the peer's FIN, once it arrived, in order or not."""
        self.received_bytes = 0
        """Bytes that arrived in order, read or not."""
        self.ack_due = False
        """An acknowledgement must leave with the next `emit`."""
        self.ack_at = NEVER
        """When the delayed acknowledgement is due."""
        self.report: SackReport | None = None
        """What selective acknowledgements say, if they are agreed on."""
        self.ts_recent = 0
        """The timestamp that acknowledgements echo."""
        self.is_echoing = False
        """Congestion was experienced, and the peer has not said that it knows."""
        self._ts_recent_at = 0
        self._last_ack_sent = 0
        self._edge = 0  # position behind the window that was advertised; it never moves back
        self._bytes_since_ack = 0
        self._largest_received = 0
        self._quick_acks = profile.quick_acks
        self._last_data_at = -NEVER

    @property
    def syn_window(self) -> int:
        """The window field of a SYN."""
        # RFC 7323 §2.2: "The window field in a segment where the SYN bit is set [...] MUST NOT be scaled."
        return min(self.buffer.capacity, MAX_UNSCALED_WINDOW)

    @property
    def fin_reached(self) -> bool:
        """Whether the FIN is the next that RCV.NXT has to pass."""
        return self.fin_received_at == self.buffer.next

    @property
    def peer_closed(self) -> bool:
        """Whether RCV.NXT passed the FIN: after the available bytes there will be no more."""
        return self.fin_received_at is not None and self.rcv_nxt > self.fin_received_at

    def take_syn(self, sequence: int) -> None:
        """The peer's SYN arrived."""
        self.irs = sequence
        self.rcv_nxt = sequence + 1
        self.buffer.next = self.rcv_nxt
        self._last_ack_sent = self.rcv_nxt
        self._edge = self.rcv_nxt + self.syn_window

    def is_old(self, timestamp: int, now: int) -> bool:
        """Whether a segment's timestamp shows it to be an old duplicate (PAWS)."""
        # RFC 7323 §5.3 R1: "If there is a Timestamps option in the arriving segment, SEG.TSval < TS.Recent, TS.Recent
        # is valid [...], and if the RST bit is not set, then treat the arriving segment as not acceptable"
        return before(timestamp, self.ts_recent) and now - self._ts_recent_at < TS_RECENT_VALID_PS

    def take_timestamp(self, timestamp: int, position: int, now: int) -> None:
        """The timestamp of an acceptable segment at `position`."""
        # RFC 7323 §4.3 (2): "If: SEG.TSval >= TS.Recent and SEG.SEQ <= Last.ACK.sent then SEG.TSval is copied to
        # TS.Recent"
        if position <= self._last_ack_sent and not before(timestamp, self.ts_recent):
            self.ts_recent = timestamp
            self._ts_recent_at = now

    def note_duplicate(self, position: int, end: int) -> None:
        """A segment in front of RCV.NXT arrived (again), with its SYN or FIN up to `end`."""
        if self.report is not None and position < self.rcv_nxt:
            self.report.on_duplicate(position, min(end, self.rcv_nxt))

    def is_acceptable(self, position: int, length: int) -> bool:
        """The four cases of RFC 9293 §3.4 table 6, by a segment's first position and its length."""
        if length == 0:
            # zero window: "SEG.SEQ = RCV.NXT"; otherwise: "RCV.NXT =< SEG.SEQ < RCV.NXT+RCV.WND". The edge itself is
            # let in too: there stands the acknowledgement of a peer that filled the window and lost some of it.
            return self.rcv_nxt <= position <= self._edge
        # "RCV.NXT =< SEG.SEQ < RCV.NXT+RCV.WND or RCV.NXT =< SEG.SEQ+SEG.LEN-1 < RCV.NXT+RCV.WND"; and with a zero
        # window, RFC 9293 §3.10.7.4: "special allowance should be made to accept valid ACKs, URGs, and RSTs"
        return (position < self._edge and position + length > self.rcv_nxt) or position == self.rcv_nxt

    def take(self, position: int, payload: memoryview, flags: int, now: int) -> bool:
        """Take in data and FIN of an acceptable segment; returns whether it must be acknowledged at once.

        When `fin_reached` is true afterwards, the connection acts on the FIN and acknowledges it.
        """
        buffer = self.buffer
        length = len(payload)
        end = position + length
        if end > self._edge:
            # "[...] trimming off any portions that lie outside the window (including SYN and FIN)"
            payload = payload[: max(self._edge - position, 0)]
            flags &= ~FIN
            self.ack_due = True
        had_gap = buffer.has_gap
        next_before = buffer.next
        if payload:
            if self.report is not None and (position != next_before or had_gap):
                self._report(position, position + len(payload))
            buffer.insert(position, payload)
            # Several segments may come as one that the device merged.
            self._largest_received = max(self._largest_received, min(length, self._advertised_mss))
        if flags & FIN:
            self.fin_received_at = end
        news = buffer.next - next_before
        self.rcv_nxt = buffer.next
        if had_gap and news and self.report is not None:
            self.report.on_advance(self.rcv_nxt)
        self.received_bytes += news
        self._bytes_since_ack += news
        self._last_data_at = now
        if self.fin_received_at == buffer.next:
            return False
        # RFC 5681 §4.2: "A TCP receiver SHOULD send an immediate duplicate ACK when an out-of-order segment arrives
        # [...] a TCP receiver SHOULD send an immediate ACK when the incoming segment fills in all or part of a gap"
        if had_gap or buffer.has_gap or not news or self.ack_due:
            return True
        # RFC 5681 §4.2: "an ACK SHOULD be generated for at least every second full-sized segment"
        if self._bytes_since_ack >= 2 * self._largest_received:
            return True
        if self._quick_acks:
            self._quick_acks -= 1
            return True
        self.acknowledge_soon(now)
        return False

    def _report(self, position: int, end: int) -> None:
        """Have the next acknowledgements tell of bytes that are not simply the next."""
        report = self.report
        assert report is not None
        if position < self.rcv_nxt:
            report.on_duplicate(position, min(end, self.rcv_nxt))
        elif position > self.rcv_nxt:
            report.on_late(position, end)

    def pass_fin(self) -> None:
        """RCV.NXT passes the FIN."""
        self.rcv_nxt += 1
        self._edge = max(self._edge, self.rcv_nxt)

    def acknowledge_soon(self, now: int) -> None:
        """Start the delayed acknowledgement's timer, unless it runs."""
        if self.ack_at == NEVER:
            self.ack_at = now + self._profile.delayed_ack_ps

    def on_data_sent(self, now: int) -> None:
        """Data leaves the other way."""
        if self._quick_acks and now - self._last_data_at < self._profile.delayed_ack_ps:
            self._quick_acks = 0  # data is answered with data: acknowledgements can ride on it

    def on_read(self) -> bool:
        """The user took bytes out of the buffer; returns whether the peer must hear of the larger window."""
        # The window that the peer knows has shrunk to less than half of what could be offered: tell it. Less
        # often would stall a peer, more often would send an acknowledgement for every read.
        known = self._edge - self.rcv_nxt
        return self._window_edge() - self.rcv_nxt >= max(2 * known, 1)

    def window_field(self) -> int:
        """The window field of a segment that leaves now; moves the advertised edge and settles all owed ACKs."""
        self._edge = self._window_edge()
        self._last_ack_sent = self.rcv_nxt
        self.ack_at = NEVER
        self.ack_due = False
        self._bytes_since_ack = 0
        window = self._edge - self.rcv_nxt
        if 0 < window < 1 << self.shift and self.buffer.waits_beyond(self.rcv_nxt):
            return 1  # or the peer would never send what the receive lacks; what it sends beyond is cut off
        return min(window >> self.shift, MAX_UNSCALED_WINDOW)

    def _window_edge(self) -> int:
        """Right edge of the window that may be advertised now."""
        buffer = self.buffer
        free = min(buffer.room, MAX_UNSCALED_WINDOW << self.shift)
        edge = self.rcv_nxt + free
        # RFC 9293 §3.8.6.2.2: "keep RCV.NXT+RCV.WND fixed until: RCV.BUFF - RCV.USER - RCV.WND >= min(Fr * RCV.BUFF,
        # Eff.snd.MSS)", Fr = 1/2
        if edge - self._edge >= min(buffer.capacity // 2, self._advertised_mss) or buffer.waits_beyond(self._edge):
            return edge
        return self._edge
