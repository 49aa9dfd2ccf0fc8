"""The random numbers of bus and MAC, the same in Python as in C++ (`cosim/transactors/splitmix.h`)."""

# Ref: Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014

from __future__ import annotations

_MASK = (1 << 64) - 1


class SplitMix:
    """SplitMix64."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def next(self) -> int:
        """64 random bits."""
        self._state = z = self._state + 0x9E37_79B9_7F4A_7C15 & _MASK
        z = (z ^ z >> 30) * 0xBF58_476D_1CE4_E5B9 & _MASK
        z = (z ^ z >> 27) * 0x94D0_49BB_1331_11EB & _MASK
        return z ^ z >> 31

    def below(self, n: int) -> int:
        """A number from 0 to n - 1."""
        return (self.next() >> 32) * n >> 32
