"""The three rings of a channel, as entries in host memory. No registers, no device: who rings is `channel`.

Indices are free-running modulo 2^16 (`nic_model.ring`). A ring raises ValueError for a size that the contract does
not allow; `RingFull` when something is put where there is no room.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, Protocol

from host_driver.port import HostMemory
from nic_model import ring
from nic_model.contract import (
    COMPLETION,
    COMPLETION_BYTES,
    LARGEST_CQ_LOG2,
    MAX_DESCRIPTOR_SLOTS,
    MAX_INLINE_BYTES,
    MAX_PIECES,
    PIECE,
    PIECE_BYTES,
    RECEIVE_SLOT,
    RECEIVE_SLOT_BYTES,
    RING_ALIGNMENT_BYTES,
    SMALLEST_RING_LOG2,
    SUBMISSION_HEAD,
    SUBMISSION_SLOT_BYTES,
    CompletionKind,
    Opcode,
    RxInfo,
    SendFlag,
    Status,
    inline_slots,
    slots_needed,
)
from nic_model.contract.sockets import SOCKET_COMPLETION, SocketStatus

_COMPLETE = int(SendFlag.COMPLETE)
"""A plain number: IntFlag's own `|` takes as long as a dozen other operations."""

_kind, _status, _info = cache(CompletionKind), cache(Status), cache(RxInfo)
"""The codes of numbers; an enum's own call takes several times as long."""


class RingFull(RuntimeError):
    """More was put on a ring than it has room for."""


class Piece(NamedTuple):
    """A piece of registered memory: what the device reads or writes."""

    key: int
    offset: int
    length_bytes: int


class Descriptor(NamedTuple):
    """A send, as the driver thinks of it; `pack` makes its slots."""

    opcode: Opcode
    inline: bytes = b""
    pieces: Sequence[Piece] = ()
    flags: SendFlag = SendFlag(0)
    mss: int = 0
    l3_offset: int = 0
    l4_offset: int = 0
    checksum_offset: int = 0
    vlan_tci: int = 0
    """With SendFlag.VLAN_INSERT, where the device has Feature.VLAN."""

    @property
    def slots(self) -> int:
        """Submission slots it takes."""
        return slots_needed(len(self.inline), len(self.pieces))

    def pack(self, tag: int, *, completes: bool = False) -> bytes:
        """All slots, in order. `completes`: with SendFlag.COMPLETE, whatever `flags` say. Raises ValueError for more
        inline bytes or pieces than a descriptor may have."""
        inline, inline_bytes, pieces, slots = self.inline, len(self.inline), len(self.pieces), self.slots
        if inline_bytes > MAX_INLINE_BYTES or pieces > MAX_PIECES:
            raise ValueError(f"a descriptor has at most {MAX_INLINE_BYTES} inline bytes and {MAX_PIECES} pieces, "
                             f"not {inline_bytes} and {pieces}")
        head = SUBMISSION_HEAD.pack(
            opcode=self.opcode, slots=slots, flags=int(self.flags) | (_COMPLETE if completes else 0), tag=tag,
            mss=self.mss, inline_bytes=inline_bytes, l3_offset=self.l3_offset, l4_offset=self.l4_offset,
            checksum_offset=self.checksum_offset, pieces=pieces, vlan_tci=self.vlan_tci)
        packed = [PIECE.pack(offset=p.offset, key=p.key, length=p.length_bytes) for p in self.pieces]
        first = packed[0] if packed else bytes(PIECE_BYTES)
        if slots == 1:
            return head + first
        inline = inline.ljust(inline_slots(inline_bytes) * SUBMISSION_SLOT_BYTES, b"\0")
        return (head + first + inline + b"".join(packed[1:])).ljust(slots * SUBMISSION_SLOT_BYTES, b"\0")


class Completion(NamedTuple):
    """A completion that was read; the fields are those of the contract."""

    kind: CompletionKind
    status: Status
    tag: int
    length: int
    offset: int
    ring_index: int
    info: RxInfo
    timestamp: int
    segments: int
    mss: int
    more: int
    checksum: int
    """With RxInfo.RAW_SUM."""


class SocketCompletion(NamedTuple):
    """The completion of a socket operation; the fields are those of the contract."""

    status: SocketStatus
    tag: int
    length: int
    result: int
    remote_port: int
    local_port: int
    socket: int


class Packable(Protocol):
    """What a submission ring takes."""

    @property
    def slots(self) -> int:
        """Submission slots it takes."""

    def pack(self, tag: int, *, completes: bool = False) -> bytes:
        """All slots, in order."""


class _Ring:
    """Memory and size of one ring."""

    def __init__(self, memory: HostMemory, log2: int, entry_bytes: int) -> None:
        if not SMALLEST_RING_LOG2 <= log2 <= LARGEST_CQ_LOG2:
            raise ValueError(f"log2 of a ring's entries must lie in {SMALLEST_RING_LOG2}..{LARGEST_CQ_LOG2}, "
                             f"not {log2}")
        self.log2 = log2
        self.entries = 1 << log2
        self.entry_bytes = entry_bytes
        self._memory = memory
        self.address = memory.allocate(entry_bytes << log2, RING_ALIGNMENT_BYTES)
        """Bus address of the first entry."""
        self._bytes = memory.view(self.address, entry_bytes << log2)

    def release(self) -> None:
        """Give the memory back; only when the device no longer uses it."""
        self._bytes.release()
        self._memory.free(self.address)

    def _entry(self, index: int) -> memoryview:
        start = ring.slot(index, self.log2) * self.entry_bytes
        return self._bytes[start : start + self.entry_bytes]


class _ProducedRing(_Ring):
    """A ring that the driver fills. Attributes: `producer`, `consumer`: free-running indices."""

    def __init__(self, memory: HostMemory, log2: int, entry_bytes: int) -> None:
        super().__init__(memory, log2, entry_bytes)
        self.producer = 0
        self.consumer = 0

    @property
    def free(self) -> int:
        """Entries that may still be put."""
        return ring.free(self.consumer, self.producer, self.log2)

    @property
    def used(self) -> int:
        """Entries that the device has not given back."""
        return ring.distance(self.consumer, self.producer)

    def holds(self, ring_index: int) -> bool:
        """Whether the entries before this index were put, and not all given back."""
        return ring.distance(self.consumer, ring_index) <= self.used

    def retire(self, ring_index: int) -> None:
        """A completion said that the device is done with all entries before `ring_index`.

        Raises ValueError for an index that lies outside what was put.
        """
        if not self.holds(ring_index):
            raise ValueError(f"completion names ring index {ring_index}, the ring holds {self.consumer} to "
                             f"{self.producer}")
        self.consumer = ring_index

    def _put(self, entries: bytes) -> None:
        count = len(entries) // self.entry_bytes
        if count > self.free:
            raise RingFull(f"{count} entries for a ring with {self.free} free of {self.entries}")
        start = ring.slot(self.producer, self.log2) * self.entry_bytes
        straight = min(len(entries), len(self._bytes) - start)
        self._bytes[start : start + straight] = entries[:straight]
        self._bytes[: len(entries) - straight] = entries[straight:]
        self.producer = ring.advance(self.producer, count)


class SubmissionRing(_ProducedRing):
    """Sends for the device."""

    def __init__(self, memory: HostMemory, log2: int) -> None:
        super().__init__(memory, log2, SUBMISSION_SLOT_BYTES)

    def put(self, descriptor: Packable, tag: int, *, completes: bool = False) -> None:
        """Write a descriptor at the producer index; it may wrap. `completes`: as `Descriptor.pack` has it. Raises
        RingFull, and then nothing was written."""
        self._put(descriptor.pack(tag, completes=completes))

    def waiting(self, index: int) -> bytes:
        """The slots from `index` on, as they stand in the ring; of many, one more than a descriptor may have."""
        count = min(ring.distance(index, self.producer), MAX_DESCRIPTOR_SLOTS + 1)
        return b"".join(bytes(self._entry(ring.advance(index, n))) for n in range(count))


class ReceiveRing(_ProducedRing):
    """Empty buffers for the device."""

    def __init__(self, memory: HostMemory, log2: int) -> None:
        super().__init__(memory, log2, RECEIVE_SLOT_BYTES)

    def put(self, buffer: Piece, buffer_id: int) -> None:
        """Post a buffer. Raises RingFull."""
        self._put(RECEIVE_SLOT.pack(offset=buffer.offset, key=buffer.key, length=buffer.length_bytes,
                                    buffer_id=buffer_id))


    def give_back(self) -> None:
        """One buffer has completed. The device takes slots in ring order, though it may complete buffers in another: so
        as many slots are free as buffers have completed. Raises ValueError if none is posted."""
        if not self.used:
            raise ValueError("a buffer completed, and none is posted")
        self.consumer = ring.advance(self.consumer)


class CompletionRing(_Ring):
    """What the device has done."""

    _PHASE_AT, _PHASE_BIT = divmod(COMPLETION.fields["phase"].offset, 8)

    def __init__(self, memory: HostMemory, log2: int) -> None:
        super().__init__(memory, log2, COMPLETION_BYTES)
        self._position = 0  # not wrapped, since the largest ring has its phase in bit 16

    @property
    def consumer(self) -> int:
        """Free-running index of the next completion, modulo 2^16."""
        return self._position & ring.INDEX_MASK

    @property
    def has_completion(self) -> bool:
        """Whether the next completion is there: its phase bit is the one of this pass over the ring."""
        start = ring.slot(self._position, self.log2) * COMPLETION_BYTES
        seen = self._bytes[start + self._PHASE_AT] >> self._PHASE_BIT & 1
        return seen == ring.phase(self._position, self.log2)

    @property
    def is_socket(self) -> bool:
        """Whether the next completion, which must be there, is a socket operation's."""
        return self._entry(self._position)[0] == CompletionKind.SOCKET

    def take_socket(self) -> SocketCompletion:
        """As `take`, of a socket operation."""
        found = SOCKET_COMPLETION.unpack(self._entry(self._position))
        self._position += 1
        return SocketCompletion(SocketStatus(found["status"]), found["tag"], found["length"], found["result"],
                                found["remote_port"], found["local_port"], found["socket"])

    def take(self) -> Completion:
        """Read the next completion, which must be there, and go on to the one behind it."""
        fields = COMPLETION.unpack(self._entry(self._position))
        self._position += 1
        return Completion(
            _kind(fields["kind"]), _status(fields["status"]), fields["tag"], fields["length"],
            fields["offset"], fields["ring_index"], _info(fields["info"]), fields["timestamp"], fields["segments"],
            fields["mss"], fields["more"], fields["checksum"])
