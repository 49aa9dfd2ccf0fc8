"""The Toeplitz hash of RSS, as its definition says it."""

# Ref: Microsoft, "RSS Hashing Functions" (Windows drivers documentation)

from __future__ import annotations


def toeplitz_hash(key: bytes, data: bytes) -> int:
    """32-bit hash of `data`, whose first byte is the first on the wire; the key must have four bytes more at least.

    For every bit of the input that is 1, from the first on, the key's leftmost 32 bits are added modulo 2; then the key
    moves left by one bit.
    """
    if len(key) < len(data) + 4:
        raise ValueError(f"to hash {len(data)} bytes the key must have {len(data) + 4}, not {len(key)}")
    key_bits, bits = int.from_bytes(key, "big"), int.from_bytes(data, "big")
    result = 0
    for place in range(8 * len(data)):
        if bits >> (8 * len(data) - 1 - place) & 1:
            result ^= key_bits >> (8 * len(key) - 32 - place) & 0xFFFF_FFFF
    return result
