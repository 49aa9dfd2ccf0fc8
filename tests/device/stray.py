"""Addresses where there is no register, each one bit away from one that can be written."""

from __future__ import annotations

from nic_model.contract import REGISTERS, NicConfig
from nic_model.contract.registers import (
    CHANNEL_STRIDE,
    CHANNELS_BASE,
    INDIRECTION_BASE,
    INDIRECTION_STRIDE,
    KEY_STRIDE,
    KEYS_BASE,
    REGISTER_SPACE_BYTES,
    STEERING_BASE,
    STEERING_STRIDE,
    VECTOR_STRIDE,
    VECTORS_BASE,
    Access,
    Block,
)
from nic_model.contract.steering import RSS_INDIRECTION_ENTRIES


def _addresses(config: NicConfig) -> dict[int, Access]:
    """Every register of a device."""
    places = {
        Block.GLOBAL: (0, 0, 1), Block.VECTOR: (VECTORS_BASE, VECTOR_STRIDE, config.vectors),
        Block.CHANNEL: (CHANNELS_BASE, CHANNEL_STRIDE, config.channels),
        Block.KEY: (KEYS_BASE, KEY_STRIDE, config.keys),
        Block.STEERING: (STEERING_BASE, STEERING_STRIDE, 1),
        Block.INDIRECTION: (INDIRECTION_BASE, INDIRECTION_STRIDE, RSS_INDIRECTION_ENTRIES),
    }
    return {base + number * stride + register.offset: register.access
            for register in REGISTERS.values() if register.block in places
            for base, stride, count in [places[register.block]] for number in range(count)}


def stray_addresses(config: NicConfig) -> list[int]:
    """Those where a write must have no effect, and would have one if a bit of the address did not count."""
    known = _addresses(config)
    written = [address for address, access in known.items() if access is not Access.RO]
    bits = [1 << bit for bit in range(2, (REGISTER_SPACE_BYTES - 1).bit_length())]
    return sorted({address ^ bit for address in written for bit in bits} - set(known))
