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
    """Attributes: `frames`, not yet handed to the host; `report_by`, the edge by which the host must have seen the
    oldest of them; `ready`, whether the MAC takes a beat in the next cycle; `frames_sent` and `frames_received` by the
    device."""

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
        self._all_data, self._all_kept = (1 << 8 * self._width) - 1, (1 << self._width) - 1
        self._entering: list[int] = []
        self._maybe_full = True
        self._last_free_ps = 0
        self.report_by = self._held_since = NEVER
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
            word = self._read_tx()
            self._entering.append(word)
            if word >> self._tx_last & 1:
                self._leave(edge)
        if self._maybe_full or self._timing.sink_percent < 100:
            self.ready = self._may_come(edge, flags)
        else:
            self.ready = True
        if moves or not flags & _TX or self.drains(edge):
            self._held_since = NEVER
        else:
            self._held_since = min(self._held_since, edge)
        return moves

    def _may_come(self, edge: int, flags: int) -> bool:
        self._maybe_full = not self._fifo.has_room(self._edges.time_of(edge))
        if self._maybe_full and not self._entering:
            return False
        if self._timing.sink_percent < 100:
            if not flags & _TX:
                return False
            self._sink_credit += self._timing.sink_percent
            if self._sink_credit < 100:
                return False
            self._sink_credit -= 100
        return True

    def _leave(self, edge: int) -> None:
        """All beats of a frame have come."""
        data, keep, width = self._tx_data, self._tx_keep, self._width
        frame = self._fifo.push(b"".join([
            (word >> data & self._all_data).to_bytes(width, "little")[: (word >> keep & self._all_kept).bit_count()]
            for word in self._entering]), self._edges.time_of(edge))
        self._entering = []
        self._maybe_full = True
        self._last_free_ps = frame.free_ps
        self.frames.append(frame)
        if len(self.frames) == 1:
            self.report_by = max(edge, self._edges.at(frame.end_ps + self._timing.lookahead_ps))
        self.frames_sent += 1

    def source(self, edge: int, flags: int) -> bool:
        """Offer a beat of what has arrived. Returns whether one left."""
        offered = self._inputs.valid & _RX_VALID
        if offered:
            if not flags & _RX_READY:
                return False
        elif not self._arriving:
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

    def reported(self) -> list[SentFrame]:
        """The frames that the host has not seen; now it has."""
        frames, self.frames = self.frames, []
        self.report_by = NEVER
        return frames

    def next(self) -> int:
        """The edge at which something happens next by itself."""
        edge = max(self._arriving[0][0], self._resume) if self._arriving else NEVER
        room_ps = None if self.ready else self._fifo.next_room_ps()
        if room_ps is not None:
            edge = min(edge, self._edges.from_(room_ps))
        return min(edge, self.report_by)

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
