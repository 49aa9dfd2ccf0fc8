"""Ring arithmetic: free-running indices modulo 2^16 over rings of a power of two of entries.

Producer and consumer each count for ever; an index's lower bits are the slot. A ring has at most 2^15 entries, so
that full (distance = size) and empty (distance = 0) differ and the phase bit alternates over every pass.
"""

from __future__ import annotations

from nic_model.contract import INDEX_BITS

INDEX_MASK = (1 << INDEX_BITS) - 1


def advance(index: int, count: int = 1) -> int:
    """The index `count` entries further on."""
    return index + count & INDEX_MASK


def distance(consumer: int, producer: int) -> int:
    """Entries from `consumer` up to `producer`: how many are used. 0 to 2^16 - 1.

    >>> distance(0xfffe, 3)
    5
    """
    return producer - consumer & INDEX_MASK


def free(consumer: int, producer: int, log2: int) -> int:
    """Entries that may still be produced; negative if the producer has overrun the ring."""
    return (1 << log2) - distance(consumer, producer)


def slot(index: int, log2: int) -> int:
    """Which entry of a ring of 2^`log2` entries the index names."""
    return index & ((1 << log2) - 1)


def phase(index: int, log2: int) -> int:
    """Phase bit of the completion written at `index`: 1 in the first pass over the ring, then 0, then 1 ...

    >>> [phase(i, 4) for i in (0, 15, 16, 31, 32)]
    [1, 1, 0, 0, 1]
    """
    return ~index >> log2 & 1
