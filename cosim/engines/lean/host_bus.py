"""The host's side of the AXI4 master, as `cosim/transactors/host_bus.h`: reads and writes meet host memory when the bus
has carried them."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from cosim.engines.bus import Bus, BusTiming
from cosim.engines.lean.pins import NEVER, READY_SHIFT, STREAM, VALID, Edges, Inputs, Pins
from cosim.engines.lean.said import count
from nic_model.contract import NicConfig
from nic_model.contract.config import BURST_BYTES
from rtl.simulation import vector_fields

RESP_OKAY, RESP_SLVERR = 0, 2

_AR, _AW, _W = VALID["m_axi_ar"], VALID["m_axi_aw"], VALID["m_axi_w"]
OFFERS = _AR | _AW | _W
"""Bits of `flags`: the device has something for the bus."""

_R, _B = STREAM["m_axi_r"], STREAM["m_axi_b"]
_R_VALID, _B_VALID = 1 << _R, 1 << _B
_R_READY, _B_READY = _R_VALID << READY_SHIFT, _B_VALID << READY_SHIFT


class _Written(NamedTuple):
    """A burst on its way to memory; of each beat its data and strobes."""

    due: int
    address: int
    tag: int
    beats: list[tuple[bytes, int]]


class HostBus:
    """Attributes: `bus`; `judge`, asked as `judge(time_ps, address, is_write)` whether a burst fails; `bursts`, kept
    while `watched`; `read_bytes` and `write_bytes`; `reads` in flight and the `most_reads` ever; `error`, the rule that
    the device broke.

    Parameters: the buffers are host memory from bus address `base` on, what the device reads and what it writes to.
    """

    def __init__(self, config: NicConfig, edges: Edges, pins: Pins, inputs: Inputs, timing: BusTiming, base: int,
                 reads_from: bytearray, writes_to: bytearray) -> None:
        self.bus = Bus(timing)
        self.judge: Callable[[int, int, bool], bool] | None = None
        self.watched = False
        self.bursts: list[tuple[int, bool, int]] = []
        self.read_bytes = self.write_bytes = 0
        self.reads = self.most_reads = 0
        self.error = ""
        self._edges = edges
        self._inputs = inputs
        self._base, self._end = base, base + len(writes_to)
        self._reads_from, self._writes_to = reads_from, writes_to
        self._width = config.host_bytes
        self._read_ar, self._read_aw, self._read_w = (pins.reader(f"m_axi_{name}") for name in ("ar", "aw", "w"))
        fields = vector_fields(config)
        self._ar, self._aw, self._w = (fields[f"m_axi_{name}"] for name in ("ar", "aw", "w"))
        # In a word of a stream that enters, valid stands below the payload.
        self._r = {name: offset + 1 for name, (offset, _) in fields["m_axi_r"].items()}
        self._b = {name: offset + 1 for name, (offset, _) in fields["m_axi_b"].items()}
        self._sequence = 0
        self._asked: list[tuple[int, int, int, int, int]] = []
        """A heap of (due, sequence, address, tag, beats)."""
        self._answers: list[deque[int]] = []
        self._addresses: deque[tuple[int, int]] = deque()
        self._beats: deque[tuple[bytes, int, bool]] = deque()
        self._open: list[tuple[bytes, int]] = []
        self._written: deque[_Written] = deque()
        self._responses: deque[tuple[int, int]] = deque()
        self._ready: deque[int] = deque()
        self._moved_at = 0

    def take(self, edge: int, flags: int) -> None:
        """Take what the device offers, in the cycle before `edge`: something."""
        self._moved_at = edge
        if flags & _AR:
            word = self._read_ar()
            beats = _field(word, self._ar["len"]) + 1
            length = beats * self._width
            if length > BURST_BYTES:
                self.error = "the device reads a burst longer than it may"
            self.read_bytes += length
            self.reads += 1
            self.most_reads = max(self.most_reads, self.reads)
            self._sequence += 1
            heapq.heappush(self._asked, (self.bus.read_due(edge, length), self._sequence,
                                         _field(word, self._ar["addr"]), _field(word, self._ar["id"]), beats))
        if flags & _AW:
            word = self._read_aw()
            self._addresses.append((_field(word, self._aw["addr"]), _field(word, self._aw["id"])))
        if flags & _W:
            word = self._read_w()
            data = _field(word, self._w["data"]).to_bytes(self._width, "little")
            self._beats.append((data, _field(word, self._w["strb"]), bool(_field(word, self._w["last"]))))
        while self._addresses and self._beats:
            self._match(edge)

    def _match(self, edge: int) -> None:
        """Pair the oldest beat with the oldest address; a whole burst goes on its way to memory."""
        data, strobes, last = self._beats.popleft()
        self._open.append((data, strobes))
        if last:
            burst, self._open = self._open, []
            address, tag = self._addresses.popleft()
            length = sum(strobes.bit_count() for _, strobes in burst)
            self.write_bytes += length
            self._written.append(_Written(self.bus.write_arrives(edge, length), address, tag, burst))

    def drive(self, edge: int, flags: int) -> None:
        """Let what is due reach memory, and offer answers to the device."""
        while self._asked and self._asked[0][0] <= edge:
            self._answer(edge)
            self._moved_at = edge
        while self._written and self._written[0].due <= edge:
            self._store(edge, self._written.popleft())
            self._moved_at = edge
        while self._responses and self._responses[0][0] <= edge:
            self._ready.append(self._responses.popleft()[1])
            self._moved_at = edge
        inputs = self._inputs
        if (self._answers or inputs.valid & _R_VALID) and (not inputs.valid & _R_VALID or flags & _R_READY):
            inputs.offer(_R, self._next_beat() if self._answers else 0)
        if (self._ready or inputs.valid & _B_VALID) and (not inputs.valid & _B_VALID or flags & _B_READY):
            inputs.offer(_B, self._ready.popleft() if self._ready else 0)

    def _answer(self, edge: int) -> None:
        _, _, address, tag, beats = heapq.heappop(self._asked)
        length, width, at = beats * self._width, self._width, self._r
        good = not self._fails(edge, address, False) and self._contains(address, length)
        start = address - self._base
        data = self._reads_from[start : start + length] if good else bytes(length)
        fixed = 1 | tag << at["id"] | (RESP_OKAY if good else RESP_SLVERR) << at["resp"]
        words = deque(fixed | int.from_bytes(data[place : place + width], "little") << at["data"]
                      for place in range(0, length, width))
        words[-1] |= 1 << at["last"]
        self._answers.append(words)
        self.reads -= 1

    def _next_beat(self) -> int:
        answers = self._answers
        several = self.bus.timing.interleave and len(answers) > 1
        chosen = self.bus.random.below(len(answers)) if several else 0
        beat = answers[chosen].popleft()
        if not answers[chosen]:
            del answers[chosen]
        return beat

    def _store(self, edge: int, burst: _Written) -> None:
        good = not self._fails(edge, burst.address, True)
        row = burst.address // self._width * self._width
        for index, (data, strobes) in enumerate(burst.beats):
            if not good:
                break
            if strobes:  # a device's strobes are one run
                first, last = (strobes & -strobes).bit_length() - 1, strobes.bit_length()
                address = row + index * self._width + first
                good = self._contains(address, last - first)
                if good:
                    start = address - self._base
                    for buffer in (self._reads_from, self._writes_to):
                        buffer[start : start + last - first] = data[first:last]
        resp = RESP_OKAY if good else RESP_SLVERR
        self._responses.append((edge + self.bus.timing.write_latency_cycles,
                                1 | burst.tag << self._b["id"] | resp << self._b["resp"]))

    def _fails(self, edge: int, address: int, is_write: bool) -> bool:
        time_ps = self._edges.time_of(edge)
        if self.watched:
            self.bursts.append((time_ps, is_write, address))
        return self.judge is not None and self.judge(time_ps, address, is_write)

    def _contains(self, address: int, length: int) -> bool:
        return self._base <= address and address + length <= self._end

    def next(self) -> int:
        """The edge at which something happens next by itself."""
        if self._answers or self._ready:
            return 0
        edge = NEVER
        if self._asked:
            edge = self._asked[0][0]
        if self._written:
            edge = min(edge, self._written[0].due)
        if self._responses:
            edge = min(edge, self._responses[0][0])
        return edge

    def waits_since(self) -> int:
        """The edge since which an access of the device waits while none moves on."""
        waits = self.reads or self._written or self._responses or self._addresses or self._open
        return self._moved_at if waits else NEVER

    def report(self) -> list[str]:
        """What is under way, in words."""
        said = []
        if self.reads:
            said.append(f"{count(self.reads, 'DMA read')} without an answer of host memory")
        if self._answers:
            said.append(f"data of {count(len(self._answers), 'DMA read')} on the way to the device")
        if self._written:
            said.append(f"{count(len(self._written), 'DMA write')} on the way to host memory")
        if back := len(self._responses) + len(self._ready):
            said.append(f"{count(back, 'write response')} on the way to the device")
        if self._addresses:
            said.append(f"{count(len(self._addresses), 'DMA write')} without its last data")
        if self._open and not self._addresses:
            said.append("data of a DMA write without its address")
        return said


def _field(word: int, place: tuple[int, int]) -> int:
    """A field of a word at (offset, width)."""
    return word >> place[0] & (1 << place[1]) - 1
