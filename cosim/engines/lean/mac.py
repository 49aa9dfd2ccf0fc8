"""The MAC, as `cosim/transactors/mac.h`: frames from the device enter a FIFO, frames for it arrive whole."""

from __future__ import annotations

from collections import deque

from cosim.engines.lean.pins import NEVER, READY_SHIFT, STREAM, VALID, Edges, Inputs, Pins
from cosim.engines.lean.said import count
from cosim.mac import MacTiming, SentFrame, TransmitFifo
from nic_model.contract import NicConfig
from rtl.simulation import vector_fields

_TX = VALID["m_axis_tx"]
_RX = STREAM["s_axis_rx"]
_RX_VALID = 1 << _RX
_RX_READY = _RX_VALID << READY_SHIFT


class LeanMac:
    """Attributes: `frames`, not yet handed to the host; `ready`, whether it takes a beat in the next cycle;
    `frames_sent` and `frames_received` by the device."""

    def __init__(self, config: NicConfig, edges: Edges, pins: Pins, inputs: Inputs, timing: MacTiming) -> None:
        self.frames: list[SentFrame] = []
        self.ready = False
        self.frames_sent = self.frames_received = 0
        self._edges = edges
        self._inputs = inputs
        self._timing = timing
        self._fifo = TransmitFifo(timing)
        self._width = config.mac_bytes
        self._read_tx = pins.reader("m_axis_tx")
        fields = vector_fields(config)
        tx, rx = fields["m_axis_tx"], fields["s_axis_rx"]
        self._tx_data, self._tx_keep, self._tx_last = (tx[name][0] for name in ("data", "keep", "last"))
        self._data, self._keep, self._last, self._user = (rx[name][0] + 1 for name in ("data", "keep", "last", "user"))
        self._entering: list[bytes] = []
        self._maybe_full = True
        self._last_free_ps = 0
        self._report_by = self._held_since = NEVER
        self._sink_credit = self._source_credit = 0
        self._arriving: deque[tuple[int, bytes, bool]] = deque()
        self._sent_bytes = 0
        self._resume = 0

    def deliver(self, time_ps: int, data: bytes, bad: bool) -> None:
        """A frame for the device, whose last bit arrives at a time. Times do not fall."""
        self._arriving.append((self._edges.at(time_ps) + 1, data, bad))

    def sink(self, edge: int, flags: int) -> bool:
        """Take a beat that the device sends, in the cycle before `edge`, and say whether the next may come."""
        moves = bool(self.ready and flags & _TX)
        if moves:
            self._take(edge, self._read_tx())
        percent = self._timing.sink_percent
        if self._maybe_full or percent < 100:
            self._maybe_full = not self._fifo.has_room(self._edges.time_of(edge))
        ready = bool(self._entering) or not self._maybe_full
        if percent < 100:
            if ready and flags & _TX:
                self._sink_credit += percent
                ready = self._sink_credit >= 100
            else:
                ready = False
            if ready:
                self._sink_credit -= 100
        self.ready = ready
        if flags & _TX and not moves and not self.drains(edge):
            self._held_since = min(self._held_since, edge)
        else:
            self._held_since = NEVER
        return moves

    def _take(self, edge: int, word: int) -> None:
        width = self._width
        keep = word >> self._tx_keep & (1 << width) - 1
        data = (word >> self._tx_data & (1 << 8 * width) - 1).to_bytes(width, "little")
        self._entering.append(data[: keep.bit_count()])
        if word >> self._tx_last & 1:
            frame = self._fifo.push(b"".join(self._entering), self._edges.time_of(edge))
            self._entering = []
            self._maybe_full = True
            self._last_free_ps = frame.free_ps
            self.frames.append(frame)
            if len(self.frames) == 1:
                self._report_by = max(edge, self._edges.at(frame.end_ps + self._timing.lookahead_ps))
            self.frames_sent += 1

    def source(self, edge: int, flags: int) -> bool:
        """Offer a beat of what has arrived. Returns whether one left."""
        offered = self._inputs.valid & _RX_VALID
        if offered and not flags & _RX_READY:
            return False
        self._inputs.offer(_RX, self._next_beat(edge))
        return bool(offered)

    def _next_beat(self, edge: int) -> int:
        if not self._arriving or self._arriving[0][0] > edge or edge < self._resume:
            return 0
        self._source_credit += self._timing.source_percent
        if self._source_credit < 100:
            return 0
        self._source_credit -= 100
        _, frame, bad = self._arriving[0]
        piece = frame[self._sent_bytes : self._sent_bytes + self._width]
        self._sent_bytes += len(piece)
        word = 1 | int.from_bytes(piece, "little") << self._data | (1 << len(piece)) - 1 << self._keep
        if self._sent_bytes == len(frame):
            word |= 1 << self._last | bad << self._user
            self._arriving.popleft()
            self._sent_bytes = 0
            self._resume = edge + 1 + self._timing.source_gap_cycles
            self.frames_received += 1
        return word

    def report_by(self) -> int:
        """The edge by which the host must have seen the oldest frame that it has not."""
        return self._report_by if self.frames else NEVER

    def reported(self) -> list[SentFrame]:
        """The frames that the host has not seen; now it has."""
        frames, self.frames = self.frames, []
        return frames

    def next(self) -> int:
        """The edge at which something happens next by itself."""
        edge = max(self._arriving[0][0], self._resume) if self._arriving else NEVER
        room_ps = None if self.ready else self._fifo.next_room_ps()
        if room_ps is not None:
            edge = min(edge, self._edges.from_(room_ps))
        return min(edge, self.report_by())

    def drains(self, edge: int) -> bool:
        """Whether frames are still leaving the FIFO."""
        return self._last_free_ps > self._edges.time_of(edge)

    def held_since(self) -> int:
        """The edge since which a frame waits, though none leaves before it."""
        return self._held_since

    def report(self) -> list[str]:
        """What is under way, in words."""
        said = []
        if self._held_since < NEVER:
            said.append("the MAC does not take a frame of the device")
        if self._entering:
            said.append("a frame that has entered the MAC in part")
        if len(self._fifo):
            said.append(f"{count(len(self._fifo), 'frame')} in the MAC's transmit FIFO")
        if self._arriving:
            said.append(f"{count(len(self._arriving), 'frame')} on the way to the device")
        return said
