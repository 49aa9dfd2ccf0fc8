"""SYN cookies: a listener that has no room for another handshake keeps it in the number that it answers with.

The number is what Linux's is: a hash of addresses, ports and the peer's number, which changes every minute, and two
bits' worth of MSS hidden in it. The acknowledgement brings it back. Window scale and SACK are kept in the timestamp, if
the peer has timestamps, and lost otherwise.
"""

# Ref: RFC 4987 §3.6 and appendix A

from __future__ import annotations

import struct
from hashlib import blake2s
from typing import NamedTuple

from host_driver.tcp.profile import SECOND
from nic_model.packets import TcpOptions
from nic_model.seqnum import MASK

COUNT_PERIOD_PS = 60 * SECOND
MAX_AGE_COUNTS = 2
"""A cookie is good in the minute in which it was made and in the next."""

COOKIE_LIFETIME_PS = MAX_AGE_COUNTS * COUNT_PERIOD_PS

MSS_CLASSES = {False: (536, 1300, 1440, 1460), True: (1220, 1420, 1440, 8940)}
"""What a cookie can say of the peer's MSS, by whether it is IPv6 (Linux's msstab)."""

_DATA_BITS = 24
_DATA_MASK = (1 << _DATA_BITS) - 1


class Peer(NamedTuple):
    """Whom a cookie is for: packed addresses, ports, and the peer's initial sequence number."""

    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    sequence: int

    @property
    def packed(self) -> bytes:
        """All of it; Linux leaves the sequence number out, and takes a wrong one for another MSS."""
        return self.source + self.destination + struct.pack("!HHI", *self[2:])


class SynCookies:
    """Makes and reads cookies. `secret`: 16 bytes or more, of the stack's."""

    def __init__(self, secret: bytes) -> None:
        self._key = blake2s(secret, person=b"cookies", digest_size=32).digest()

    def make(self, peer: Peer, mss: int, now: int) -> int:
        """The initial sequence number that answers a SYN with this MSS."""
        classes = MSS_CLASSES[len(peer.source) == 16]
        index = max((i for i, least in enumerate(classes) if least <= mss), default=0)
        count = now // COUNT_PERIOD_PS
        data = self._hash(peer, count + 1) + index & _DATA_MASK
        return self._hash(peer, 0) + peer.sequence + (count << _DATA_BITS) + data & MASK

    def read(self, peer: Peer, cookie: int, now: int) -> int | None:
        """The MSS of the SYN that a cookie answered; None for one that is too old, or none of ours."""
        count = now // COUNT_PERIOD_PS
        rest = cookie - self._hash(peer, 0) - peer.sequence & MASK
        age = count - (rest >> _DATA_BITS) & 0xFF
        if age >= MAX_AGE_COUNTS or age > count:
            return None
        index = rest - self._hash(peer, count - age + 1) & _DATA_MASK
        classes = MSS_CLASSES[len(peer.source) == 16]
        return classes[index] if index < len(classes) else None

    def _hash(self, peer: Peer, count: int) -> int:
        # 0 stands for no count
        key = blake2s(peer.packed, key=self._key, salt=count.to_bytes(8, "big"), digest_size=4)
        return int.from_bytes(key.digest(), "big")


# What the timestamp of the SYN-ACK keeps in its lowest bits, to come back in TSecr.
_OPTION_BITS = 6
_OPTION_MASK = (1 << _OPTION_BITS) - 1
_NO_SCALE = 15
_SACK_BIT = 1 << 4


def _packed(options: TcpOptions) -> int:
    """The bits that keep a SYN's window scale and SACK."""
    scale = _NO_SCALE if options.window_scale is None else min(options.window_scale, 14)
    return scale | (_SACK_BIT if options.sack_permitted else 0)


def hide_options(options: TcpOptions, clock: int) -> int:
    """A timestamp that is not later than `clock`, with the bits of `options`."""
    value = clock & ~_OPTION_MASK | _packed(options)
    return value - (1 << _OPTION_BITS if value > clock else 0) & MASK


def found_options(mss: int, timestamps: tuple[int, int] | None) -> TcpOptions:
    """The options of the SYN again, from the timestamps of the segment that brings the cookie back, if it has any."""
    if timestamps is None:
        return TcpOptions(mss=mss)
    bits = timestamps[1] & _OPTION_MASK
    scale = bits & _NO_SCALE
    return TcpOptions(mss=mss, window_scale=None if scale == _NO_SCALE else scale,
                      sack_permitted=bool(bits & _SACK_BIT), timestamps=(timestamps[0], 0))
