"""The Internet checksum and the pseudo-headers of IPv4 and IPv6.

All sums here are *uncomplemented* 16-bit one's complement sums unless the name says `checksum`.
A sum of data is 0 only if all its bytes are 0; otherwise zero is represented by 0xffff, as adding with
end-around carry gives it.
"""

# Ref: RFC 1071 §1, §2; RFC 9293 §3.1 (pseudo-header); RFC 8200 §8.1

from __future__ import annotations

import numpy as np

Buffer = bytes | bytearray | memoryview

LONG_BYTES = 512
"""From so many bytes on, numpy is quicker than the interpreter's long integers."""

_WORDS = np.dtype("<u4")
_from_buffer, _sum = np.frombuffer, np.add.reduce  # looked up twice a packet


def fold(total: int) -> int:
    """Add the carries of a non-negative sum of 16-bit words back in, until 16 bits are left."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ones_sum(data: Buffer, initial: int = 0) -> int:
    """One's complement sum of the big-endian 16-bit words of `data`, on top of the sum `initial`, folded.

    An odd last byte counts as a word's upper half.
    """
    # 2^16 is 1 modulo 0xffff, so a number's remainder is the one's complement sum of its 16-bit digits; the
    # interpreter computes it in one pass, many times faster than a loop over words.
    length = len(data)
    if length >= LONG_BYTES and not length & 3:
        # RFC 1071 §2 (B) and (C): the sum may be taken in either byte order, and over larger words
        value = int(_sum(_from_buffer(data, _WORDS), dtype=np.uint64))
        value = value % 0xFFFF or (0xFFFF if value else 0)
        total = (value >> 8 | (value & 0xFF) << 8) + initial
    else:
        value = int.from_bytes(data, "big")
        if length & 1:
            value <<= 8
        total = (value % 0xFFFF or (0xFFFF if value else 0)) + initial
    while total >> 16:  # as `fold` does; the call shows in the profile
        total = (total & 0xFFFF) + (total >> 16)
    return total


def internet_checksum(data: Buffer, initial: int = 0) -> int:
    """Checksum of `data` on top of the sum `initial`: what a header field must hold, its own bytes being 0."""
    return ones_sum(data, initial) ^ 0xFFFF


def checksum_seed(source: bytes, destination: bytes, protocol: int, l4_bytes: int | None) -> int:
    """Folded, uncomplemented sum of the pseudo-header of a TCP or UDP packet.

    `source` and `destination` are 4 bytes (IPv4) or 16 bytes (IPv6). `l4_bytes` is the length of the L4 header and
    its data; None leaves the length out, as a segmented send wants it (`SendFlag.L4_CHECKSUM`).
    """
    # RFC 9293 §3.1 and RFC 8200 §8.1: both pseudo-headers hold the addresses, the protocol and the length, each
    # padded with zeros, so they differ in the addresses' size only.
    return fold(ones_sum(source + destination) + protocol + (0 if l4_bytes is None else l4_bytes))
