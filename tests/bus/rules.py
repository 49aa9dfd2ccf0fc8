"""Watches the device's AXI and AXI-Stream ports in each cycle and asserts the protocols' rules."""

# Ref: AMBA AXI and ACE Protocol Specification, ARM IHI 0022H, A3.1.2 (reset), A3.2 (handshake), A3.4 (bursts);
# AMBA AXI-Stream Protocol Specification, ARM IHI 0051B, 2.2 (handshake)

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import cocotb
from cocotb.triggers import FallingEdge

PAGE_BYTES = 4096
BURST_INCR = 1

FROM_DEVICE = {
    "m_axi_ar": ("id", "addr", "len", "size", "burst", "lock", "cache", "prot"),
    "m_axi_aw": ("id", "addr", "len", "size", "burst", "lock", "cache", "prot"),
    "m_axi_w": ("data", "strb", "last"),
    "m_axis_tx_t": ("data", "keep", "last", "user"),
    "s_axil_b": ("resp",),
    "s_axil_r": ("data", "resp"),
    "s_axi_b": ("id", "resp"),
    "s_axi_r": ("id", "data", "resp", "last"),
}
"""What the device drives: it must hold what it offers until it is taken."""

TO_DEVICE = {
    "m_axi_r": ("id", "last"),
    "m_axi_b": ("id",),
    "s_axil_aw": (), "s_axil_w": (), "s_axil_ar": (), "s_axi_aw": (), "s_axi_w": (), "s_axi_ar": (),
    "s_axis_rx_t": ("last",),
}

_MAY_BE_UNKNOWN = ("data",)
"""Lanes that no strobe and no TKEEP selects may hold anything."""


class Address(NamedTuple):
    """A burst that the device asked for."""

    id: int
    addr: int
    beats: int


class _Channel:
    def __init__(self, dut: Any, name: str, fields: tuple[str, ...]) -> None:
        self.name = name
        self.valid = getattr(dut, f"{name}valid")
        self.ready = getattr(dut, f"{name}ready")
        self.fields = {field: getattr(dut, f"{name}{field}") for field in fields}
        self.waiting: dict[str, str] | None = None
        """What was offered and not taken in the last cycle."""

    def payload(self) -> dict[str, str]:
        """Bits of all fields, as text."""
        return {field: str(handle.value) for field, handle in self.fields.items()}


class Rules:
    """Starts to watch when it is made; an AssertionError ends the test.

    `memory` are the addresses that DMA may touch. Attributes: `beats` counts what was taken on each channel;
    `reads_in_flight`, `most_reads_in_flight` count DMA bursts; `rx_starts` and `tx_starts` have `now` at the first beat
    of each frame.
    """

    def __init__(self, dut: Any, memory: range) -> None:
        self.beats: Counter[str] = Counter()
        self.rx_starts: list[int] = []
        self.tx_starts: list[int] = []
        self.most_reads_in_flight = 0
        self._dut = dut
        self._memory = memory
        self._width_bytes = len(dut.m_axi_wstrb)
        self._channels = [_Channel(dut, name, fields) for name, fields in (FROM_DEVICE | TO_DEVICE).items()]
        self._reads: dict[int, int] = {}
        self._writes: deque[Address] = deque()
        self._write_beats: deque[tuple[int, bool]] = deque()
        self._write_beat = 0
        self._unanswered: Counter[int] = Counter()
        """Write bursts whose last beat has been taken, by ID; one ID's answers come in order."""
        self._between_frames = {"s_axis_rx_t": True, "m_axis_tx_t": True}
        self._taken: dict[str, Callable[[dict[str, str]], None]] = {
            "m_axi_ar": self._read_address, "m_axi_r": self._read_beat, "m_axi_aw": self._write_address,
            "m_axi_w": self._write_data, "m_axi_b": self._write_answer, "m_axis_tx_t": self._tx_beat,
            "s_axis_rx_t": self._rx_beat,
        }
        cocotb.start_soon(self._watch())

    @property
    def reads_in_flight(self) -> int:
        """DMA reads whose last beat has not come."""
        return len(self._reads)

    def assert_nothing_left(self) -> None:
        """All bursts and frames have ended, and each channel carried something."""
        assert not self._reads
        assert not self._writes
        assert not self._write_beats
        assert not self._unanswered.total()
        assert all(self._between_frames.values())
        idle = [channel.name for channel in self._channels if not self.beats[channel.name]]
        assert not idle, f"nothing was carried on {idle}"

    async def _watch(self) -> None:
        dut = self._dut
        edge = FallingEdge(dut.clk)
        cycles_in_reset = 0
        while True:
            # At the falling edge all of this cycle's values stand; the next rising edge takes them.
            await edge
            if dut.rst.value != 0:
                cycles_in_reset += 1
                if cycles_in_reset > 1:
                    for name in FROM_DEVICE:
                        assert getattr(dut, f"{name}valid").value == 0, f"{name}valid is not low in reset"
                continue
            assert dut.m_axi_rready.value == 1
            assert dut.m_axi_bready.value == 1
            for channel in self._channels:
                self._look(channel)

    def _look(self, channel: _Channel) -> None:
        valid, ready = int(channel.valid.value), int(channel.ready.value)
        held = channel.waiting
        channel.waiting = None
        if not valid:
            assert held is None, f"{channel.name}valid fell before ready"
            return
        payload = channel.payload()
        assert held is None or held == payload, f"{channel.name} changed before ready: {held} -> {payload}"
        for field, bits in payload.items():
            assert field in _MAY_BE_UNKNOWN or set(bits) <= {"0", "1"}, f"{channel.name}{field} is {bits}"
        if not ready:
            channel.waiting = payload
            return
        self.beats[channel.name] += 1
        if channel.name in self._taken:
            self._taken[channel.name](payload)

    def _burst(self, payload: dict[str, str]) -> Address:
        address = Address(int(payload["id"], 2), int(payload["addr"], 2), int(payload["len"], 2) + 1)
        assert 1 << int(payload["size"], 2) == self._width_bytes
        assert int(payload["burst"], 2) == BURST_INCR
        assert (payload["lock"], payload["cache"], payload["prot"]) == ("0", "0011", "000")
        end = address.addr // self._width_bytes * self._width_bytes + address.beats * self._width_bytes
        assert address.addr // PAGE_BYTES == (end - 1) // PAGE_BYTES, f"{address} crosses 4 KB"
        assert address.addr in self._memory, f"{address} outside of the memory"
        return address

    def _read_address(self, payload: dict[str, str]) -> None:
        burst = self._burst(payload)
        assert burst.id not in self._reads, f"read ID {burst.id} used again before its last beat"
        self._reads[burst.id] = burst.beats
        self.most_reads_in_flight = max(self.most_reads_in_flight, len(self._reads))

    def _read_beat(self, payload: dict[str, str]) -> None:
        tag = int(payload["id"], 2)
        self._reads[tag] -= 1
        assert (self._reads[tag] == 0) == (payload["last"] == "1")
        if not self._reads[tag]:
            del self._reads[tag]

    def _write_address(self, payload: dict[str, str]) -> None:
        self._writes.append(self._burst(payload))
        self._match()

    def _write_data(self, payload: dict[str, str]) -> None:
        for lane, strobe in enumerate(reversed(payload["strb"])):
            bits = payload["data"][len(payload["data"]) - 8 * lane - 8 : len(payload["data"]) - 8 * lane]
            assert strobe == "0" or set(bits) <= {"0", "1"}, f"written lane {lane} is {bits}"
        self._write_beats.append((int(payload["strb"], 2), payload["last"] == "1"))
        self._match()

    def _match(self) -> None:
        while self._writes and self._write_beats:
            burst = self._writes[0]
            strobes, last = self._write_beats.popleft()
            self._write_beat += 1
            assert last == (self._write_beat == burst.beats), f"WLAST in beat {self._write_beat} of {burst}"
            if self._write_beat == 1:
                assert strobes % (1 << burst.addr % self._width_bytes) == 0, f"strobes below the address of {burst}"
            if last:
                self._unanswered[self._writes.popleft().id] += 1
                self._write_beat = 0

    def _write_answer(self, payload: dict[str, str]) -> None:
        tag = int(payload["id"], 2)
        self._unanswered[tag] -= 1
        assert self._unanswered[tag] >= 0, f"write ID {tag} is answered before its last beat"

    def _tx_beat(self, payload: dict[str, str]) -> None:
        lanes = len(payload["keep"])
        kept = payload["keep"].count("1")
        assert payload["keep"] == "0" * (lanes - kept) + "1" * kept, "TKEEP is not contiguous from lane 0"
        assert kept == lanes or (payload["last"] == "1" and kept), "TKEEP has holes before TLAST"
        assert set(payload["data"][8 * (lanes - kept) :]) <= {"0", "1"}, "unknown bits are sent"
        assert payload["user"] == "0"
        if self._between_frames["m_axis_tx_t"]:
            self.tx_starts.append(int(self._dut.now.value))
        self._between_frames["m_axis_tx_t"] = payload["last"] == "1"

    def _rx_beat(self, payload: dict[str, str]) -> None:
        if self._between_frames["s_axis_rx_t"]:
            self.rx_starts.append(int(self._dut.now.value))
        self._between_frames["s_axis_rx_t"] = payload["last"] == "1"
