"""Capabilities: the right to write so many bytes to another application's connection, once.

The application grants a place in its socket's send stream and hands the token to a file server, which writes file data
there from its own memory; they never come near the application's. The TCP server made the token and checks it: a keyed
digest over serial number and length, so that none can be forged; a table of those that are open, so that none is used
twice, beyond its length, or after it was revoked. What the application sends behind the grant waits for its end.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2s
from hmac import compare_digest
from typing import TYPE_CHECKING

from host_driver.errors import (
    CapabilityForged,
    CapabilityOverrun,
    CapabilityRevoked,
    CapabilityUsed,
    NetworkError,
)
from host_driver.memnet.counters import MemNetCounters
from host_driver.memnet.order import Barrier, SendLine
from host_driver.memnet.provider import Range, Transfer

if TYPE_CHECKING:
    from host_driver.memnet.jobs import Job
    from host_driver.memnet.sockets import MemNetSocket

_SERIAL_BYTES = 8
_LENGTH_BYTES = 8
_DIGEST_BYTES = 16
TOKEN_BYTES = _SERIAL_BYTES + _LENGTH_BYTES + _DIGEST_BYTES

REMEMBERED = 65536
"""Revoked capabilities whose end is remembered as such; older ones count as used."""


class Capability:
    """A grant as the application has it.

    Attributes: `token`, for whoever is to write, in any message; `length_bytes`; `job`, done when the peer has
    acknowledged all of them.
    """

    def __init__(self, grant: Grant) -> None:
        self.token = grant.token
        self.length_bytes = grant.length_bytes
        self.job = grant.job
        self.grant = grant

    def __repr__(self) -> str:
        return f"<Capability {self.grant.serial} for {self.length_bytes} bytes on {self.grant.socket!r}>"


class Grant:
    """A grant as the TCP server has it."""

    def __init__(self, serial: int, token: bytes, length_bytes: int, socket: MemNetSocket, job: Job,
                 on_turn: Callable[[Grant], None]) -> None:
        self.serial = serial
        self.token = token
        self.length_bytes = length_bytes
        self.socket = socket
        self.job = job
        self.holders: set[object] = set()
        """Processes that wrote with it."""
        self.barrier = Barrier(lambda: on_turn(self))
        self.writes = SendLine(is_open=False)
        """Writes wait here until all that the application sent before the grant has gone."""
        self.reserved_bytes = 0
        """Of writes that were let in."""
        self.handed_bytes = 0
        """Of writes that the provider has taken."""
        self.done_bytes = 0
        """Of writes that are over."""
        self.is_open = True

    def transfer(self, parts: tuple[Range, ...], done: Callable[[int, NetworkError | None], None]) -> Transfer:
        """A write's transfer: counts for the application's job too."""
        def over(moved_bytes: int, error: NetworkError | None) -> None:
            done(moved_bytes, error)
            self.done_bytes += moved_bytes
            if self.job.is_done:
                return
            if error is not None:
                self.job.finish(0, error)
            elif self.done_bytes == self.length_bytes:
                self.job.finish(self.done_bytes, None)

        return Transfer(parts, over)


class GrantTable:
    """All grants of one TCP server. `secret` makes its tokens."""

    def __init__(self, secret: bytes, counters: MemNetCounters) -> None:
        self._secret = secret
        self._counters = counters
        self._serial = 0
        self._open: dict[int, Grant] = {}
        self._revoked: dict[int, None] = {}

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def add(self, socket: MemNetSocket, length_bytes: int, job: Job, on_turn: Callable[[Grant], None]) -> Grant:
        """A new grant."""
        self._serial += 1
        grant = Grant(self._serial, self._token(self._serial, length_bytes), length_bytes, socket, job, on_turn)
        self._open[grant.serial] = grant
        self._counters.capabilities_granted += 1
        return grant

    def reserve(self, token: bytes, length_bytes: int, holder: object) -> Grant:
        """Let a write of so many bytes in. Raises the CapabilityError that says why not, and counts it."""
        counters = self._counters
        serial, length = int.from_bytes(token[:_SERIAL_BYTES], "big"), int.from_bytes(
            token[_SERIAL_BYTES : _SERIAL_BYTES + _LENGTH_BYTES], "big")
        if len(token) != TOKEN_BYTES or not compare_digest(token, self._token(serial, length)):
            counters.refused_forged += 1
            raise CapabilityForged(f"the TCP server never made the token {token[:TOKEN_BYTES].hex() or 'of no bytes'}")
        grant = self._open.get(serial)
        if grant is None and serial in self._revoked:
            counters.refused_revoked += 1
            raise CapabilityRevoked(f"capability {serial} for {length} bytes was revoked")
        if grant is None or grant.reserved_bytes == length:
            counters.refused_reused += 1
            raise CapabilityUsed(f"capability {serial}: all its {length} bytes were written")
        if grant.reserved_bytes + length_bytes > length:
            counters.refused_overrun += 1
            raise CapabilityOverrun(f"capability {serial} is for {length} bytes, {grant.reserved_bytes} of them "
                                    f"written: {length_bytes} more do not fit")
        grant.reserved_bytes += length_bytes
        grant.holders.add(holder)
        return grant

    def handed(self, grant: Grant, length_bytes: int) -> bool:
        """The provider took so many bytes of a write; whether the grant has ended thereby."""
        grant.handed_bytes += length_bytes
        self._counters.capability_bytes += length_bytes
        if grant.handed_bytes < grant.length_bytes or not grant.is_open:
            return False
        self._counters.capabilities_used += 1
        self._close(grant)
        return True

    def revoke(self, grant: Grant, why: str) -> bool:
        """End a grant that is not used up; whether it was open."""
        if not grant.is_open:
            return False
        self._close(grant)
        self._counters.capabilities_revoked += 1
        self._revoked[grant.serial] = None
        if len(self._revoked) > REMEMBERED:
            del self._revoked[next(iter(self._revoked))]
        if not grant.job.is_done:
            grant.job.finish(0, CapabilityRevoked(f"capability {grant.serial}: {why}, {grant.handed_bytes} of "
                                                  f"{grant.length_bytes} bytes were written"))
        return True

    def of_holder(self, holder: object) -> list[Grant]:
        """Open grants that a process has written with."""
        return [grant for grant in self._open.values() if holder in grant.holders]

    def of_socket(self, socket: MemNetSocket) -> list[Grant]:
        """Open grants on a socket."""
        return [grant for grant in self._open.values() if grant.socket is socket]

    def _close(self, grant: Grant) -> None:
        grant.is_open = False
        del self._open[grant.serial]

    def _token(self, serial: int, length_bytes: int) -> bytes:
        head = serial.to_bytes(_SERIAL_BYTES, "big") + length_bytes.to_bytes(_LENGTH_BYTES, "big")
        return head + blake2s(head, key=self._secret, digest_size=_DIGEST_BYTES).digest()
