"""TCP sequence numbers: arithmetic modulo 2^32.

Plain integers and functions, since they are used several times a packet. Code that holds a connection's state
does best to keep *unwrapped* numbers, which only grow and compare as integers do: `unwrap` on the way in,
`wrap` on the way out.
"""

# Ref: RFC 9293 §3.4

from __future__ import annotations

MODULUS = 1 << 32
MASK = MODULUS - 1
_HALF = 1 << 31


def wrap(number: int) -> int:
    """The 32 bits of `number` that go on the wire."""
    return number & MASK


def distance(start: int, end: int) -> int:
    """Signed way from `start` to `end`, -2^31 to 2^31 - 1.

    >>> distance(0xffff_fffe, 2), distance(2, 0xffff_fffe)
    (4, -4)
    """
    return (end - start + _HALF & MASK) - _HALF


def before(a: int, b: int) -> bool:
    """Whether `a` stands before `b` in the sequence space."""
    return distance(a, b) > 0


def unwrap(number: int, near: int) -> int:
    """The integer closest to `near` whose lower 32 bits are `number`.

    >>> hex(unwrap(3, 0x1_ffff_fff0))
    '0x200000003'
    """
    return near + (number - near + _HALF & MASK) - _HALF
