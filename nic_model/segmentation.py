"""What the device makes of a send: TCP segmentation, and checksum insertion by flags.

Pure and untimed; the contract (`nic_model.contract.codes.SendFlag`, `SUBMISSION_HEAD`) says what each flag means.
`head` is a submission head as `SUBMISSION_HEAD.unpack` gives it.
"""

# Ref: RFC 791 §3.1; RFC 8200 §3; RFC 9293 §3.1; RFC 3168 §6.1.2 (CWR)

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from nic_model.checksum import Buffer, fold, internet_checksum, ones_sum
from nic_model.contract.protocols import (
    IPV4_CHECKSUM_OFFSET,
    IPV4_IDENTIFICATION_OFFSET,
    IPV4_TOTAL_LENGTH_OFFSET,
    IPV6_HEADER_BYTES,
    IPV6_PAYLOAD_LENGTH_OFFSET,
    MAC_ADDRESSES_BYTES,
    TCP_FLAGS_OFFSET,
    TCP_SEQUENCE_OFFSET,
    EtherType,
    TcpFlags,
)
from nic_model.flags import IPV4_CHECKSUM, IPV6, L4_CHECKSUM, UDP, VLAN_INSERT
from nic_model.seqnum import wrap

_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")

_ONLY_LAST = int(TcpFlags.PSH | TcpFlags.FIN)
_ONLY_FIRST = int(TcpFlags.CWR)


def finish_frame(frame: bytearray, head: Mapping[str, int], extra_sum: int = 0) -> None:
    """Insert the checksums that `head["flags"]` asks for into a whole frame, in place.

    The IPv4 header's checksum field must hold 0 and the L4 checksum field the seed, as the contract says: both are
    summed as they stand. `extra_sum` is added to the L4 sum.
    """
    flags = head["flags"]
    if flags & IPV4_CHECKSUM:
        l3 = head["l3_offset"]
        _U16.pack_into(frame, l3 + IPV4_CHECKSUM_OFFSET, internet_checksum(frame[l3 : head["l4_offset"]]))
    if flags & L4_CHECKSUM:
        checksum = ones_sum(memoryview(frame)[head["l4_offset"] :], extra_sum) ^ 0xFFFF
        if checksum == 0 and flags & UDP:
            # RFC 768: "If the computed checksum is zero, it is transmitted as all ones"
            checksum = 0xFFFF
        _U16.pack_into(frame, head["checksum_offset"], checksum)


def segment(template: bytes, head: Mapping[str, int], payload: Buffer) -> Iterator[bytes]:
    """Cut `payload` into whole frames of at most `head["mss"]` payload bytes behind the header `template`.

    Per segment: TCP sequence number; IPv4 total length and identification (one more for each segment), or IPv6
    payload length; PSH and FIN only on the last, CWR only on the first; checksums as `flags` asks. The template's
    checksum field holds the pseudo-header's sum without the length, which is added here. An empty payload gives one
    frame without data. Raises ValueError if `mss` is 0.
    """
    mss = head["mss"]
    if mss <= 0:
        raise ValueError(f"mss must be at least 1, not {mss}")
    l3, l4 = head["l3_offset"], head["l4_offset"]
    is_ipv6 = head["flags"] & IPV6
    (sequence,) = _U32.unpack_from(template, l4 + TCP_SEQUENCE_OFFSET)
    (identification,) = _U16.unpack_from(template, l3 + IPV4_IDENTIFICATION_OFFSET)
    tcp_flags = template[l4 + TCP_FLAGS_OFFSET]
    payload = memoryview(payload)

    for number, start in enumerate(range(0, max(len(payload), 1), mss)):
        frame = bytearray(template)
        frame += payload[start : start + mss]
        l3_bytes = len(frame) - l3
        if is_ipv6:
            _U16.pack_into(frame, l3 + IPV6_PAYLOAD_LENGTH_OFFSET, l3_bytes - IPV6_HEADER_BYTES)
        else:
            _U16.pack_into(frame, l3 + IPV4_TOTAL_LENGTH_OFFSET, l3_bytes)
            _U16.pack_into(frame, l3 + IPV4_IDENTIFICATION_OFFSET, identification + number & 0xFFFF)
        _U32.pack_into(frame, l4 + TCP_SEQUENCE_OFFSET, wrap(sequence + start))
        cleared = (_ONLY_FIRST if number else 0) | (_ONLY_LAST if start + mss < len(payload) else 0)
        frame[l4 + TCP_FLAGS_OFFSET] = tcp_flags & ~cleared
        finish_frame(frame, head, extra_sum=fold(len(frame) - l4))
        yield bytes(frame)


def insert_tag(frame: bytes, head: Mapping[str, int]) -> bytes:
    """The frame with the 802.1Q tag that `head` asks for, if it does: behind the addresses, when all sums are made."""
    if not head["flags"] & VLAN_INSERT:
        return frame
    at = MAC_ADDRESSES_BYTES
    return frame[:at] + _U16.pack(EtherType.VLAN) + _U16.pack(head["vlan_tci"]) + frame[at:]
