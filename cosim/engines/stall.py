"""Why nothing goes on, in words: what a device's probes mean, and which register stands at an address."""

from __future__ import annotations

import re

import msgspec

from nic_model.contract import (
    CHANNEL_STRIDE,
    CHANNELS_BASE,
    COUNTERS,
    COUNTERS_BASE,
    DOORBELL_BASE,
    DOORBELL_STRIDE,
    KEY_STRIDE,
    KEYS_BASE,
    REGISTERS,
    VECTOR_STRIDE,
    VECTORS_BASE,
)
from nic_model.contract.registers import Block

_OWNERS = ((DOORBELL_BASE, DOORBELL_STRIDE, Block.DOORBELL, "channel"), (KEYS_BASE, KEY_STRIDE, Block.KEY, "key"),
           (CHANNELS_BASE, CHANNEL_STRIDE, Block.CHANNEL, "channel"),
           (VECTORS_BASE, VECTOR_STRIDE, Block.VECTOR, "vector"), (0, VECTORS_BASE, Block.GLOBAL, ""))
"""Where the registers of each block begin, from the highest, how far apart, and of what there is one set for each."""


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An FSM of the device, as `rtl.probes` describes it."""

    name: str
    width: int
    """Bits of its state."""
    states: list[str]
    """By their code."""
    first: str
    """The state that it rests in."""


class Stream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stream inside the device: where it begins, and who takes it."""

    name: str
    taker: str


class ProbeNames(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the bits of a device's probes mean, from the lowest: a bit for each block that may be at work, the state of
    each FSM, a bit for each stream."""

    workers: list[str]
    machines: list[Machine]
    streams: list[Stream]

    @property
    def width(self) -> int:
        """Bits of all."""
        return len(self.workers) + sum(machine.width for machine in self.machines) + len(self.streams)

    def waiting(self, probes: int) -> list[str]:
        """Blocks at work, by their smallest part; FSMs that do not rest; streams that nobody takes."""
        busy = [name for index, name in enumerate(self.workers) if probes >> index & 1]
        said = [f"{name} is at work" for name in busy if not any(part.startswith(f"{name}.") for part in busy)]
        probes >>= len(self.workers)
        for machine in self.machines:
            code = probes & (1 << machine.width) - 1
            probes >>= machine.width
            state = machine.states[code] if code < len(machine.states) else "no state that it has"
            if state != machine.first:
                said.append(f"{machine.name} is in {state}")
        for stream in self.streams:
            if probes & 1:
                said.append(f"{stream.name} waits for {stream.taker} to take it")
            probes >>= 1
        return said


def with_register_names(text: str) -> str:
    """The same text, where "register 0x..." has the register's name."""
    return re.sub(r"register (0x[0-9a-f]+)", lambda found: f"register {register_name(int(found[1], 16))}", text)


def register_name(address: int) -> str:
    """What the contract calls the register at an address, and whose it is; the address where it has no name."""
    counter, part = divmod(address - COUNTERS_BASE, 8)
    if 0 <= counter < len(COUNTERS):
        return f"of counter {COUNTERS[counter].name}" + (", upper half" if part else "")
    base, stride, block, owner = next(found for found in _OWNERS if address >= found[0])
    number, offset = divmod(address - base, stride)
    for name, register in REGISTERS.items():
        if register.block is block and register.offset == offset:
            return f"{name} of {owner} {number}" if owner else name
    return f"{address:#x}"
