"""The decider's side of the control port, as `cosim/transactors/control.h`: two streams of messages down, one up."""

from __future__ import annotations

from collections import deque

from cosim.engines.lean.pins import NEVER, Edges, Pins
from cosim.engines.lean.said import count
from nic_model.contract import NicConfig
from rtl.simulation import PORT_INPUTS, PORT_OUTPUTS, flag_names, outputs, vector_fields

ROOM = 8
"""Messages up that may wait for the decider."""


class MessagesDown:
    """A stream of messages into the device: a beat in each cycle in which it takes one."""

    def __init__(self, config: NicConfig, pins: Pins, name: str) -> None:
        self.valid = False
        self._write = pins.writer(name)
        self._write(0)
        self._ready = 1 << flag_names(config).index(f"{name}_ready")
        self._width = config.host_bytes
        fields = vector_fields(config)[name]
        self._data, self._last = fields["data"][0] + 1, fields["last"][0] + 1
        self._messages: deque[tuple[int, bytes]] = deque()
        self._sent_bytes = 0

    def give(self, due: int, message: bytes) -> None:
        """A message, from edge `due` on."""
        self._messages.append((due, message))

    def step(self, edge: int, flags: int) -> bool:
        """Offer the next beat. Returns whether one left."""
        moves = self.valid and bool(flags & self._ready)
        if self.valid and not moves:
            return False
        if not self._messages or self._messages[0][0] > edge:
            if self.valid:
                self._write(0)
                self.valid = False
            return moves
        message = self._messages[0][1]
        beat = message[self._sent_bytes : self._sent_bytes + self._width]
        self._sent_bytes += self._width
        is_last = self._sent_bytes == len(message)
        self._write(1 | int.from_bytes(beat, "little") << self._data | is_last << self._last)
        self.valid = True
        if is_last:
            self._messages.popleft()
            self._sent_bytes = 0
        return moves

    def next(self) -> int:
        """The edge at which something happens next by itself."""
        return self._messages[0][0] if self._messages else NEVER

    def __len__(self) -> int:
        return len(self._messages)


class LeanControl:
    """Attributes: `told`, messages that the host has not been handed; `ready`, whether a beat is taken in the next
    cycle."""

    def __init__(self, config: NicConfig, edges: Edges, pins: Pins) -> None:
        self.told: list[bytes] = []
        self.ready = False
        self.taken_bit = 1 << outputs(config).index(*PORT_OUTPUTS)
        self._edges = edges
        self._release, self._emit = (MessagesDown(config, pins, name) for name in PORT_INPUTS)
        self._read = pins.reader(*PORT_OUTPUTS)
        self._valid = 1 << flag_names(config).index(f"{PORT_OUTPUTS[0]}_valid")
        fields = vector_fields(config)[PORT_OUTPUTS[0]]
        self._data, self._last = fields["data"][0], fields["last"][0]
        self._width = config.host_bytes
        self._entered = b""
        self._held = 0

    def order(self, now_ps: int, message: bytes, *, is_emit: bool) -> None:
        """A message down."""
        (self._emit if is_emit else self._release).give(self._edges.at(now_ps) + 1, message)

    def heard(self, messages: int) -> None:
        """The decider has taken so many."""
        self._held -= messages

    def step(self, edge: int, flags: int) -> bool:
        """One edge. Returns whether anything moved."""
        moved = self._release.step(edge, flags) | self._emit.step(edge, flags)
        if flags & self._valid and self.ready:
            moved = True
            word = self._read()
            self._entered += (word >> self._data & (1 << 8 * self._width) - 1).to_bytes(self._width, "little")
            if word >> self._last & 1:
                self.told.append(self._entered)
                self._entered = b""
                self._held += 1
        self.ready = bool(self._entered) or self._held < ROOM
        return moved

    @property
    def offers(self) -> bool:
        """Whether something stands before the device."""
        return self._release.valid or self._emit.valid

    def next(self) -> int:
        """The edge at which something happens next by itself."""
        return min(self._release.next(), self._emit.next())

    def report(self) -> list[str]:
        """What is under way, in words."""
        said = []
        if self._held >= ROOM:
            said.append(f"the decider has not taken {count(self._held, 'message')}")
        down = len(self._release) + len(self._emit)
        if down:
            said.append(f"{count(down, 'order')} of the control port on the way to the device")
        return said
