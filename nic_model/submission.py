"""Submission descriptors as the device reads them: the slots taken apart, and checked before any payload is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nic_model.contract import (
    MAX_FRAME_BYTES,
    MAX_INLINE_BYTES,
    MAX_PIECE_BYTES,
    MAX_PIECES,
    MAX_SEGMENTED_BYTES,
    MIN_MSS,
    PIECE,
    PIECE_BYTES,
    SUBMISSION_HEAD,
    SUBMISSION_SLOT_BYTES,
    VLAN_INLINE_BYTES,
    VLAN_MAX_OFFSET,
    Opcode,
    OperationMask,
    Status,
    inline_slots,
    slots_needed,
)
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    TCP_HEADER_BYTES,
    VLAN_TAG_BYTES,
)
from nic_model.contract.sockets import SOCKET_HEAD, SOCKET_PARAMETERS
from nic_model.flags import IPV4_CHECKSUM, IPV6, L4_CHECKSUM, VLAN_INSERT

_OPERATION = {
    int(Opcode.SEND_FRAME): int(OperationMask.SEND_FRAME),
    int(Opcode.SEND_SEGMENTED): int(OperationMask.SEND_SEGMENTED),
}
_SOCKET_OPERATIONS = range(Opcode.SOCKET_CONNECT, Opcode.SOCKET_OPTION + 1)


class Piece(NamedTuple):
    """A piece of host memory that a descriptor names."""

    key: int
    offset: int
    length_bytes: int


class Submission(NamedTuple):
    """A descriptor taken apart. `inline` and `pieces` are empty if `status` is not OK."""

    head: Mapping[str, int]
    status: Status
    inline: bytes = b""
    pieces: tuple[Piece, ...] = ()
    payload_bytes: int = 0
    """Of all pieces."""


def read_submission(slots: bytes, operations: int, *, has_sockets: bool = False) -> Submission:
    """Take apart and check the descriptor in `slots` (all of its slots, unwrapped), but for its keys.

    `operations` is the channel's OperationMask. The first check that fails gives the status: the operation, its
    permission, then the shape. Of a socket operation, which a device with a control port has, `head` is a SOCKET_HEAD
    and `inline` its parameters; its piece is for whoever sits at the port.
    """
    head = SUBMISSION_HEAD.unpack(slots[: SUBMISSION_HEAD.size_bytes])
    opcode = head["opcode"]
    if has_sockets and opcode in _SOCKET_OPERATIONS:
        return _read_socket_operation(slots, operations)
    needed = _OPERATION.get(opcode)
    if needed is None:
        return Submission(head, Status.BAD_OPCODE)
    if not operations & needed:
        return Submission(head, Status.NOT_PERMITTED)

    inline_bytes, piece_count = head["inline_bytes"], head["pieces"]
    if (inline_bytes > MAX_INLINE_BYTES or piece_count > MAX_PIECES
            or head["slots"] != slots_needed(inline_bytes, piece_count)):
        return Submission(head, Status.BAD_DESCRIPTOR)
    inline, pieces = _read_body(slots, inline_bytes, piece_count)
    payload_bytes = 0
    for piece in pieces:
        if not 1 <= piece.length_bytes <= MAX_PIECE_BYTES:
            return Submission(head, Status.BAD_DESCRIPTOR)
        payload_bytes += piece.length_bytes
    fits = _frame_fits if opcode == Opcode.SEND_FRAME else _segmented_fits
    if not fits(head, payload_bytes) or (head["flags"] & VLAN_INSERT and not _tag_fits(head)):
        return Submission(head, Status.BAD_DESCRIPTOR)
    return Submission(head, Status.OK, inline, pieces, payload_bytes)


def _read_socket_operation(slots: bytes, operations: int) -> Submission:
    head = SOCKET_HEAD.unpack(slots[: SOCKET_HEAD.size_bytes])
    if not operations & OperationMask.SOCKET:
        return Submission(head, Status.NOT_PERMITTED)
    inline_bytes, pieces = head["inline_bytes"], head["pieces"]
    if (inline_bytes not in (0, SOCKET_PARAMETERS.size_bytes) or pieces > 1
            or head["slots"] != slots_needed(inline_bytes, pieces)):
        return Submission(head, Status.BAD_DESCRIPTOR)
    return Submission(head, Status.OK, slots[SOCKET_HEAD.size_bytes :])


def is_socket_operation(opcode: int) -> bool:
    """Whether an Opcode is for the control port."""
    return opcode in _SOCKET_OPERATIONS


def _read_body(slots: bytes, inline_bytes: int, piece_count: int) -> tuple[bytes, tuple[Piece, ...]]:
    inline = slots[SUBMISSION_SLOT_BYTES : SUBMISSION_SLOT_BYTES + inline_bytes]
    further = SUBMISSION_SLOT_BYTES * (1 + inline_slots(inline_bytes))
    starts = [SUBMISSION_HEAD.size_bytes, *range(further, len(slots), PIECE_BYTES)][:piece_count]
    pieces = []
    for start in starts:
        fields = PIECE.unpack(slots[start : start + PIECE_BYTES])
        pieces.append(Piece(fields["key"], fields["offset"], fields["length"]))
    return inline, tuple(pieces)


def _tag_bytes(head: Mapping[str, int]) -> int:
    return VLAN_TAG_BYTES if head["flags"] & VLAN_INSERT else 0


def _tag_fits(head: Mapping[str, int]) -> bool:
    flags = head["flags"]
    segmented = head["opcode"] == Opcode.SEND_SEGMENTED
    return (head["inline_bytes"] in VLAN_INLINE_BYTES
            and (head["checksum_offset"] <= VLAN_MAX_OFFSET or not (segmented or flags & L4_CHECKSUM))
            and (head["l4_offset"] <= VLAN_MAX_OFFSET or not (segmented or flags & IPV4_CHECKSUM)))


def _frame_fits(head: Mapping[str, int], payload_bytes: int) -> bool:
    flags = head["flags"]
    total = head["inline_bytes"] + payload_bytes
    if not ETHERNET_HEADER_BYTES <= total <= MAX_FRAME_BYTES - _tag_bytes(head):
        return False
    if flags & L4_CHECKSUM and not _l4_offsets_fit(head, total):
        return False
    return not flags & IPV4_CHECKSUM or _ipv4_offsets_fit(head, total)


def _segmented_fits(head: Mapping[str, int], payload_bytes: int) -> bool:
    flags = head["flags"]
    inline_bytes, l3_offset, l4_offset = head["inline_bytes"], head["l3_offset"], head["l4_offset"]
    l3_header_bytes = IPV6_HEADER_BYTES if flags & IPV6 else IPV4_HEADER_BYTES
    return (inline_bytes >= l4_offset + TCP_HEADER_BYTES
            and head["mss"] >= MIN_MSS
            and inline_bytes + head["mss"] <= MAX_FRAME_BYTES - _tag_bytes(head)
            and 1 <= payload_bytes <= MAX_SEGMENTED_BYTES
            and l3_offset % 2 == 0
            and l4_offset >= l3_offset + l3_header_bytes
            and _l4_offsets_fit(head, inline_bytes))


def _l4_offsets_fit(head: Mapping[str, int], end: int) -> bool:
    l4_offset, checksum_offset = head["l4_offset"], head["checksum_offset"]
    return (l4_offset % 2 == 0 and checksum_offset % 2 == 0 and checksum_offset >= l4_offset
            and checksum_offset + 2 <= end)


def _ipv4_offsets_fit(head: Mapping[str, int], end: int) -> bool:
    l3_offset, l4_offset = head["l3_offset"], head["l4_offset"]
    return l3_offset % 2 == 0 and l4_offset >= l3_offset + IPV4_HEADER_BYTES and l4_offset <= end
