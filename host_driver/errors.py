"""What can go wrong for an application, whichever way it reaches the network. One hierarchy, under `NetworkError`.

Those that Python's own sockets raise too are also of Python's class, so that a program written for those catches them.
"""

from __future__ import annotations


class NetworkError(Exception):
    """An operation of sockets or MemNet failed; the text says which, on what, and why."""


class PeerReset(NetworkError, ConnectionResetError):
    """The peer ended the connection with a reset."""


class ConnectionRefused(NetworkError, ConnectionRefusedError):
    """Nobody listens where the connection was to go."""


class ConnectionTimedOut(NetworkError, TimeoutError):
    """The peer does not answer any more."""


class SocketClosed(NetworkError, BrokenPipeError):
    """The socket was closed or aborted on this side."""


class BadSocket(NetworkError, OSError):
    """The socket is not in a state for what was asked, or another MemNet's."""


class AddressInUse(NetworkError, OSError):
    """Something else has the port."""


class AddressNotAvailable(NetworkError, OSError):
    """The address is not this host's."""


class OptionRefused(NetworkError, OSError):
    """A socket option that means nothing here, or a value that it cannot have; the text lists those that exist."""


class JobTimeout(NetworkError, TimeoutError):
    """The jobs that were waited for are not done in time; they go on."""


class ChannelRefused(NetworkError, OSError):
    """The TCP server has no channel to give: its load forbids it."""


class CreditError(NetworkError):
    """The other end of a channel claims more than it was allowed: its word is not taken, the channel ends."""


class RegionError(NetworkError):
    """A memory region cannot be used as asked."""


class BadRegion(RegionError):
    """The region is not registered, or not any more, or not with this MemNet."""


class RangeOutsideRegion(RegionError):
    """The bytes named do not lie within the region."""


class RegionInUse(RegionError):
    """Jobs still use the region; the text names one."""


class BufferTouched(RegionError):
    """Bytes of a job were touched before it was done; the text names region, offset and job."""


class CapabilityError(NetworkError):
    """A capability does not allow what was asked with it."""


class CapabilityForged(CapabilityError):
    """The TCP server never made this token."""


class CapabilityRevoked(CapabilityError):
    """The application took it back, or has gone."""


class CapabilityUsed(CapabilityError):
    """All its bytes were written."""


class CapabilityOverrun(CapabilityError):
    """More bytes than it has left."""


_KINDS: tuple[tuple[type[OSError], type[NetworkError]], ...] = (
    (ConnectionResetError, PeerReset),
    (ConnectionRefusedError, ConnectionRefused),
    (TimeoutError, ConnectionTimedOut),
)


def network_error(error: OSError | None, doing: str) -> NetworkError:
    """The error of an operation (`doing`) on a connection that ended with `error`; None: it was closed here."""
    for cause, kind in _KINDS:
        if isinstance(error, cause):
            return kind(f"{doing}: {error}")
    return SocketClosed(f"{doing}: {error or 'the connection is closed'}")
