"""What lies in host memory: submission slots, receive slots, completions.

A descriptor is 1 to 16 consecutive submission slots of 32 bytes; it may wrap round the ring's end, and a
doorbell never splits it. Its first slot is `SUBMISSION_HEAD` (16 bytes) and piece 0 (16 bytes). Then come
`inline_bytes` in whole slots, then the further pieces, two to a slot. `slots` must be exactly
`slots_needed(inline_bytes, pieces)`. With no pieces, piece 0 is all zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, NoReturn

SUBMISSION_SLOT_BYTES = 32
RECEIVE_SLOT_BYTES = 16
COMPLETION_BYTES = 32
PIECE_BYTES = 16

KEY_INDEX_BITS = 12
KEY_GENERATION_BITS = 12


class Field(NamedTuple):
    """One field of an entry: its bit offset, its width in bits, and what it means."""

    offset: int
    width: int
    meaning: str


@dataclass(frozen=True)
class Layout:
    """Fields of a fixed-size entry in host memory, or of a register, little-endian.

    `pack` and `unpack` are the executable meaning; the RTL slices the same offsets.
    """

    name: str
    size_bytes: int
    fields: dict[str, Field]

    def __post_init__(self) -> None:
        used = 0
        for name, field in self.fields.items():
            mask = ((1 << field.width) - 1) << field.offset
            if used & mask or field.offset + field.width > self.size_bytes * 8:
                raise ValueError(f"{self.name}.{name} overlaps another field or the end of the entry")
            used |= mask

    # Entries are made and read millions of times, and loops over the fields take longer: so for each layout both are
    # written out once, as one expression.

    @cached_property
    def _read(self) -> Callable[[int], dict[str, int]]:
        """Reads all fields of an entry that is one number."""
        fields = (f"{name!r}: word >> {field.offset} & {(1 << field.width) - 1}" for name, field in self.fields.items())
        read: Callable[[int], dict[str, int]] = eval(f"lambda word: {{{', '.join(fields)}}}")
        return read

    @cached_property
    def _write(self) -> Callable[..., int]:
        """Makes an entry, as one number, of fields by name; -1, which has no bytes, if one does not fit."""
        names = ", ".join(f"{name}=0" for name in self.fields)
        too_large = " or ".join(f"{name} >> {field.width}" for name, field in self.fields.items())
        word = " + ".join(f"({name} << {field.offset})" for name, field in self.fields.items())
        write: Callable[..., int] = eval(f"lambda {names}: -1 if {too_large} else {word}")
        return write

    def pack(self, **values: int) -> bytes:
        """Make the entry's bytes; fields not named are 0. Raises ValueError for a name or value that does not fit."""
        try:
            return self._write(**values).to_bytes(self.size_bytes, "little")
        except (TypeError, OverflowError):
            self._refuse(values)

    def pack_word(self, **values: int) -> int:
        """As `pack`, but the entry as one number: the value of a register."""
        return int.from_bytes(self.pack(**values), "little")

    def _refuse(self, values: dict[str, int]) -> NoReturn:
        for name, value in values.items():
            if name not in self.fields:
                raise ValueError(f"{self.name} has no field {name!r}; it has {', '.join(self.fields)}")
            width = self.fields[name].width
            if not 0 <= value < 1 << width:
                raise ValueError(f"{self.name}.{name} must fit {width} bits, not {value}")
        raise TypeError(f"{self.name}: fields must be whole numbers, not {values}")

    def unpack(self, entry: bytes | bytearray | memoryview) -> dict[str, int]:
        """Read all fields. Raises ValueError when `entry` has another size."""
        if len(entry) != self.size_bytes:
            raise ValueError(f"{self.name} takes {self.size_bytes} bytes, not {len(entry)}")
        return self._read(int.from_bytes(entry, "little"))

    def unpack_word(self, word: int) -> dict[str, int]:
        """Read all fields of an entry that is one number: the value of a register."""
        return self._read(word)


def _layout(name: str, size_bytes: int, *fields: tuple[str, int, int, str]) -> Layout:
    """Fields given as (name, byte offset, width in bits, meaning)."""
    return Layout(name, size_bytes, {n: Field(8 * at, width, meaning) for n, at, width, meaning in fields})


SUBMISSION_HEAD = _layout(
    "submission head", 16,
    ("opcode", 0, 8, "an Opcode"),
    ("slots", 1, 8, "submission slots of this descriptor, 1 to 16"),
    ("flags", 2, 16, "SendFlag bits"),
    ("tag", 4, 16, "returned in the completion"),
    ("mss", 6, 16, "SEND_SEGMENTED: payload bytes of a full segment"),
    ("inline_bytes", 8, 8, "inline bytes behind this slot, 0 to 128: header template, or first bytes of the frame"),
    ("l3_offset", 9, 8, "offset of the IP header from the frame's first byte, even"),
    ("l4_offset", 10, 8, "offset of the TCP or UDP header, even; where the L4 checksum starts"),
    ("checksum_offset", 11, 8, "offset of the L4 checksum field from the frame's first byte, even"),
    ("pieces", 12, 8, "pieces of host memory, 0 to 31"),
    ("vlan_tci", 14, 16, "802.1Q tag control, with VLAN_INSERT"),
)

PIECE = _layout(
    "piece", PIECE_BYTES,
    ("offset", 0, 40, "byte offset inside the key's memory"),
    ("key", 5, 24, "memory key: index 12 bits, generation 12 bits above it"),
    ("length", 8, 24, "bytes, 1 to 2^20"),
)

RECEIVE_SLOT = _layout(
    "receive slot", RECEIVE_SLOT_BYTES,
    ("offset", 0, 40, "byte offset inside the key's memory"),
    ("key", 5, 24, "memory key with the WRITE right"),
    ("length", 8, 24, "size of the buffer in bytes, at least 1: with 0, every frame of the channel counts as too long,"
     " and the slot stays"),
    ("buffer_id", 12, 16, "returned in the completion"),
)

COMPLETION = _layout(
    "completion", COMPLETION_BYTES,
    ("kind", 0, 8, "a CompletionKind"),
    ("status", 1, 8, "a Status"),
    ("tag", 2, 16, "SEND: the descriptor's tag; RECEIVE and RECEIVE_MORE: the buffer's id"),
    ("length", 4, 32, "SEND: payload bytes sent (inline bytes not counted); RECEIVE and RECEIVE_MORE: bytes in this"
     " buffer; the receive is as long as all its buffers together"),
    ("offset", 8, 32, "RECEIVE and RECEIVE_MORE: where the data starts in the buffer"),
    ("ring_index", 12, 16, "SEND: submission ring's index behind this descriptor; RECEIVE and RECEIVE_MORE: receive"
     " ring's index behind this buffer's slot. Buffers are taken in ring order and may complete in another: a driver"
     " counts them, and may post as many as have completed"),
    ("info", 14, 16, "RECEIVE: RxInfo bits"),
    ("timestamp", 16, 64, "RECEIVE: `now` at the frame's first beat; SEND with TIMESTAMP that is OK: at its last"
     " frame's; else 0"),
    ("segments", 24, 16, "SEND: frames sent; RECEIVE: frames in it, more than 1 if it was coalesced"),
    ("mss", 26, 16, "RECEIVE of more than one frame: payload bytes of each but the last, which may have fewer"),
    ("checksum", 28, 16, "RECEIVE with RAW_SUM: one's complement sum, not complemented, of the 16-bit big-endian"
     " words behind the Ethernet header (byte 14 on: tags, headers, padding, to the frame's end); an odd last byte is a"
     " word's upper half"),
    ("more", 30, 8, "RECEIVE: completions of kind RECEIVE_MORE that belong to it and follow it"),
    ("phase", 31, 1, "1 in the first pass over the ring, then 0, then 1 ..."),
)


def inline_slots(inline_bytes: int) -> int:
    """Submission slots that `inline_bytes` take."""
    return -(-inline_bytes // SUBMISSION_SLOT_BYTES)


def piece_slots(pieces: int) -> int:
    """Submission slots that the pieces behind piece 0 take."""
    return max(pieces, 1) // 2


def slots_needed(inline_bytes: int, pieces: int) -> int:
    """Submission slots of a descriptor.

    >>> slots_needed(0, 1), slots_needed(54, 1), slots_needed(0, 2), slots_needed(54, 4)
    (1, 3, 2, 5)
    """
    return 1 + inline_slots(inline_bytes) + piece_slots(pieces)


def make_key(index: int, generation: int) -> int:
    """A 24-bit memory key from its table index and its generation (taken modulo 2^12)."""
    if not 0 <= index < 1 << KEY_INDEX_BITS:
        raise ValueError(f"key index must lie in 0..{(1 << KEY_INDEX_BITS) - 1}, not {index}")
    return index | (generation % (1 << KEY_GENERATION_BITS)) << KEY_INDEX_BITS


def split_key(key: int) -> tuple[int, int]:
    """Index and generation of a memory key."""
    return key & ((1 << KEY_INDEX_BITS) - 1), key >> KEY_INDEX_BITS
