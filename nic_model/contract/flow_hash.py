"""The hash by which the control port finds a connection: CRC-32C over the words of its key.

It has no key that a driver could change under flows that are in the table; so it is not the hash of receive-side
scaling. The words are the source address, the destination address, then both ports in one, as they stand in a received
packet, each word's first byte highest.
"""

# Ref: RFC 3720 §12.1 (CRC-32C, polynomial 0x1EDC6F41)

from __future__ import annotations

from collections.abc import Iterable

WORD_BITS = 32

POLYNOMIAL = 0x1EDC6F41


def crc_of_word(crc: int, word: int) -> int:
    """The CRC behind one more 32-bit word, its bit 31 first; nothing reflected, no preset, no final complement."""
    crc ^= word
    for _ in range(WORD_BITS):
        crc = (crc << 1 ^ (POLYNOMIAL if crc >> WORD_BITS - 1 else 0)) & (1 << WORD_BITS) - 1
    return crc


def flow_hash(words: Iterable[int]) -> int:
    """Hash of a key, 32 bits. Bits 0 and up give the bucket in the flow table's first half, 8 and up that in its
    second, 16 to 31 the fingerprint: in one bucket no two flows have the same."""
    crc = 0
    for word in words:
        crc = crc_of_word(crc, word)
    return crc
