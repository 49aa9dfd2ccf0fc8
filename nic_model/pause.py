"""PAUSE frames as bytes."""

# Ref: IEEE 802.3 clause 31 (MAC Control), annex 31B (PAUSE)

from __future__ import annotations

from nic_model.contract.protocols import (
    MAC_CONTROL_ADDRESS,
    MIN_FRAME_BYTES,
    PAUSE_OPCODE,
    EtherType,
)

_TYPE_AND_OPCODE = EtherType.MAC_CONTROL.to_bytes(2, "big") + PAUSE_OPCODE.to_bytes(2, "big")


def claims_pause(frame: bytes, own_address: bytes) -> bool:
    """Whether a frame for the MAC Control address or `own_address` (6 bytes) has the PAUSE opcode."""
    return frame[:6] in (MAC_CONTROL_ADDRESS, own_address) and frame[12:16] == _TYPE_AND_OPCODE


def pause_frame(source: bytes, quanta: int, destination: bytes = MAC_CONTROL_ADDRESS) -> bytes:
    """A PAUSE frame without FCS, padded to the shortest frame; `quanta` in units of 512 bit times, 0 lets go on.

    Raises ValueError for more than 16 bits of quanta, or an address of other than 6 bytes.

    >>> pause_frame(bytes.fromhex("020000000001"), 0xFFFF)[:18].hex()
    '0180c200000102000000000188080001ffff'
    """
    if not 0 <= quanta <= 0xFFFF:
        raise ValueError(f"pause_time is 0 to 65,535 quanta, not {quanta}")
    if len(source) != 6 or len(destination) != 6:
        raise ValueError(f"a MAC address has 6 bytes, not {len(source)} and {len(destination)}")
    frame = destination + source + _TYPE_AND_OPCODE + quanta.to_bytes(2, "big")
    return frame.ljust(MIN_FRAME_BYTES, b"\0")
