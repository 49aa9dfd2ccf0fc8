"""The processor's side of registers and doorbell pages, as `cosim/transactors/registers.h`: one access after the other,
in program order."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from cosim.engines.lean.pins import NEVER, READY_SHIFT, STREAM, VALID, Inputs, Pins
from cosim.engines.lean.said import count
from nic_model.contract import DOORBELL_BASE, NicConfig
from rtl.simulation import vector_fields

_ANSWERS = VALID["s_axil_b"] | VALID["s_axi_b"]
_AXIL_R = VALID["s_axil_r"]
_AXIL_AW, _AXIL_W, _AXIL_AR = (STREAM[f"s_axil_{name}"] for name in ("aw", "w", "ar"))
_AXI_AW, _AXI_W = (STREAM[f"s_axi_{name}"] for name in ("aw", "w"))
_MINE = (_AXIL_AR, _AXIL_AW, _AXIL_W, _AXI_AW, _AXI_W)

BURST_INCR = 1


class _Access(NamedTuple):
    due: int
    address: int
    data: bytes
    ticket: int
    """Of a read; -1 for a write."""


class Registers:
    """Attributes: `answered`, of reads (due, ticket, value) on their way back to the processor, in order; `busy` while
    an access is at the device; `accesses` on their way there. Without either there is nothing to do for `step`."""

    def __init__(self, config: NicConfig, pins: Pins, inputs: Inputs) -> None:
        self.answered: deque[tuple[int, int, int]] = deque()
        self.busy = False
        self._inputs = inputs
        self._width = config.host_bytes
        self._read_value = pins.reader("s_axil_r")
        fields = vector_fields(config)
        self._value_at = fields["s_axil_r"]["data"][0]
        # In a word of a stream that enters, valid stands below the payload.
        self._at = {name: {field: offset + 1 for field, (offset, _) in fields[name].items()}
                    for name in ("s_axil_aw", "s_axil_w", "s_axil_ar", "s_axi_aw", "s_axi_w")}
        self.accesses: deque[_Access] = deque()
        self._current = _Access(0, 0, b"", -1)
        self._beats: deque[int] = deque()

    def write(self, due: int, address: int, data: bytes) -> None:
        """A posted write that reaches the device at edge `due` or later."""
        self.accesses.append(_Access(due, address, data, -1))

    def read(self, due: int, address: int, ticket: int) -> None:
        """A read."""
        self.accesses.append(_Access(due, address, b"", ticket))

    def step(self, edge: int, flags: int, back_cycles: int) -> bool:
        """Follow the access under way, and begin the next one. Returns whether anything moved.

        `back_cycles`: from the device's answer to the processor.
        """
        moved = self.busy and self._follow(edge, flags, back_cycles)
        if not self.busy and self.accesses and self.accesses[0].due <= edge:
            self._start(self.accesses.popleft())
            moved = True
        return moved

    def next(self) -> int:
        """The edge at which something happens next by itself."""
        edge = self.accesses[0].due if self.accesses else NEVER
        return min(edge, self.answered[0][0]) if self.answered else edge

    def report(self) -> list[str]:
        """What is under way, in words."""
        said = []
        if self.busy:
            what = "read" if self._current.ticket >= 0 else "write"
            said.append(f"the device has not answered a {what} of register {self._current.address:#x}")
        if self.accesses:
            said.append(f"{count(len(self.accesses), 'register access')} on the way to the device")
        return said

    def _start(self, access: _Access) -> None:
        self._current = access
        self.busy = True
        address, data, inputs, at = access.address, access.data, self._inputs, self._at
        if access.ticket >= 0:
            inputs.offer(_AXIL_AR, 1 | address << at["s_axil_ar"]["addr"])
        elif address < DOORBELL_BASE:
            inputs.offer(_AXIL_AW, 1 | address << at["s_axil_aw"]["addr"])
            inputs.offer(_AXIL_W, 1 | int.from_bytes(data, "little") << at["s_axil_w"]["data"]
                         | 0xF << at["s_axil_w"]["strb"])
        else:
            width, place = self._width, at["s_axi_aw"]
            beats = max(1, len(data) // width)
            size = min(len(data), width).bit_length() - 1
            inputs.offer(_AXI_AW, 1 | address - DOORBELL_BASE << place["addr"] | beats - 1 << place["len"]
                         | size << place["size"] | BURST_INCR << place["burst"])
            self._split(address, data)
            inputs.offer(_AXI_W, self._beats.popleft())

    def _split(self, address: int, data: bytes) -> None:
        """Beats of a doorbell write."""
        width, place, sent = self._width, self._at["s_axi_w"], 0
        while sent < len(data):
            lane = (address + sent) % width
            piece = data[sent : sent + width - lane]
            sent += len(piece)
            self._beats.append(1 | int.from_bytes(piece, "little") << place["data"] + 8 * lane
                               | (1 << len(piece)) - 1 << place["strb"] + lane | (sent == len(data)) << place["last"])

    def _follow(self, edge: int, flags: int, back_cycles: int) -> bool:
        inputs = self._inputs
        taken = inputs.valid & flags >> READY_SHIFT
        moved = False
        for stream in _MINE:
            if taken >> stream & 1:
                inputs.offer(stream, self._beats.popleft() if stream == _AXI_W and self._beats else 0)
                moved = True
        if flags & _ANSWERS:
            self.busy = False
        elif flags & _AXIL_R:
            value = self._read_value() >> self._value_at & 0xFFFF_FFFF
            self.answered.append((edge + back_cycles, self._current.ticket, value))
            self.busy = False
        return moved or not self.busy
