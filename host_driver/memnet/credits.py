"""Flow control of a channel's rings by remote memory writes.

A ring of bytes has one end that fills it and one that drains it. Each tells the other how far it has come, by writing
one word into the other's control region: an absolute count of bytes, which only grows. The filling end has credit for
what the draining one has given back; so nothing is ever overwritten, and no message asks for anything. Neither end
believes a word that claims more than it can be.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

from host_driver.errors import CreditError

WORD_BYTES = 8
LINE_BYTES = 64


class Word(IntEnum):
    """Words of a control region, by their offset in bytes. Each end writes a cache line of its own."""

    SENT = 0
    """Written by the TCP server: bytes of the send ring that are free again."""
    RECEIVED = 8
    """Bytes stored in the receive ring."""
    ENDED = 16
    """1: nothing will be added to the receive ring, the peer has closed; 2: the connection has failed."""
    TAKEN = 24
    """Messages that a TCP server behind a SAN has taken from its receive queue."""
    QUEUED = LINE_BYTES
    """Written by the application: bytes put into the send ring."""
    CONSUMED = LINE_BYTES + 8
    """Bytes of the receive ring that were taken."""


CONTROL_BYTES = 2 * LINE_BYTES
GIVE_BACK_SHARE = 4
"""Credit is given back when it is a quarter of the limit, so that a word is not written for each byte."""


class RemoteWords(Protocol):
    """Writes into the control region as the other end sees it."""

    def write(self, word: Word, value: int) -> None:
        """Posted; writes keep their order, and come behind the bytes that were written before."""


class ControlRegion:
    """The words as this end sees them."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def read(self, word: Word) -> int:
        """Its value."""
        return int.from_bytes(self._view[word : word + WORD_BYTES], "little")

    def store(self, word: Word, value: int) -> None:
        """What a remote write does when it arrives."""
        self._view[word : word + WORD_BYTES] = value.to_bytes(WORD_BYTES, "little")

    def clear(self) -> None:
        """For the next user."""
        self._view[:] = bytes(len(self._view))


class FillingEnd:
    """The end of a ring that puts bytes in. `limit_bytes`: most that may be in it; at most the ring.

    Attribute: `position`, bytes put in so far.
    """

    def __init__(self, ring_bytes: int, limit_bytes: int, own: ControlRegion, freed: Word, remote: RemoteWords,
                 filled: Word) -> None:
        if not 0 < limit_bytes <= ring_bytes:
            raise ValueError(f"a limit is 1 to {ring_bytes} bytes, the ring's size, not {limit_bytes}")
        self.position = 0
        self._ring_bytes = ring_bytes
        self._limit_bytes = limit_bytes
        self._own = own
        self._freed = freed
        self._freed_bytes = 0
        self._remote = remote
        self._filled = filled

    @property
    def credit_bytes(self) -> int:
        """Bytes that may be put in now. Raises CreditError when the other end claims to have freed what was not in."""
        freed = self._own.read(self._freed)
        if not self._freed_bytes <= freed <= self.position:
            raise CreditError(f"{self._freed.name} went from {self._freed_bytes} to {freed}, and only {self.position} "
                              "bytes were put in")
        self._freed_bytes = freed
        return self._limit_bytes - (self.position - freed)

    def room(self, most_bytes: int) -> tuple[int, int]:
        """Offset and length of the next free bytes in one piece, as far as there is credit."""
        offset = self.position % self._ring_bytes
        return offset, min(self.credit_bytes, self._ring_bytes - offset, most_bytes)

    def fill(self, length_bytes: int) -> None:
        """So many bytes stand there now."""
        self.position += length_bytes
        self._remote.write(self._filled, self.position)


class DrainingEnd:
    """The end of a ring that takes bytes out. Bytes are taken first, and given back when they may be overwritten.

    Attribute: `position`, bytes taken so far.
    """

    def __init__(self, ring_bytes: int, limit_bytes: int, own: ControlRegion, filled: Word, remote: RemoteWords,
                 freed: Word) -> None:
        self.position = 0
        self._ring_bytes = ring_bytes
        self._limit_bytes = limit_bytes
        self._own = own
        self._filled = filled
        self._filled_bytes = 0
        self._remote = remote
        self._freed = freed
        self._freed_bytes = 0
        self._told_bytes = 0

    @property
    def available_bytes(self) -> int:
        """Bytes that may be taken. Raises CreditError when the other end claims to have overrun its credit."""
        filled = self._own.read(self._filled)
        if not self._filled_bytes <= filled <= self._freed_bytes + self._limit_bytes:
            raise CreditError(f"{self._filled.name} went from {self._filled_bytes} to {filled}, and there was credit "
                              f"up to {self._freed_bytes + self._limit_bytes}")
        self._filled_bytes = filled
        return filled - self.position

    def next(self, most_bytes: int) -> tuple[int, int]:
        """Offset and length of the next bytes in one piece."""
        offset = self.position % self._ring_bytes
        return offset, min(self.available_bytes, self._ring_bytes - offset, most_bytes)

    def take(self, length_bytes: int) -> None:
        """So many bytes are in use by this end."""
        self.position += length_bytes

    def give_back(self, length_bytes: int) -> None:
        """The oldest so many bytes that were taken may be overwritten; the other end is told now and then."""
        self._freed_bytes += length_bytes
        untold = self._freed_bytes - self._told_bytes
        # Of an empty ring all is given back: the other end may be waiting for the last of it.
        if untold * GIVE_BACK_SHARE >= self._limit_bytes or (untold and self._freed_bytes == self._filled_bytes):
            self._told_bytes = self._freed_bytes
            self._remote.write(self._freed, self._freed_bytes)
