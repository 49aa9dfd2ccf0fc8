"""What can go wrong for an application, whichever way it reaches the network. One hierarchy, under `NetworkError`."""

from __future__ import annotations


class NetworkError(Exception):
    """An operation of sockets or MemNet failed; the text says which, on what, and why."""


class PeerReset(NetworkError):
    """The peer ended the connection with a reset."""


class ConnectionRefused(NetworkError):
    """Nobody listens where the connection was to go."""


class ConnectionTimedOut(NetworkError):
    """The peer does not answer any more."""


class SocketClosed(NetworkError):
    """The socket was closed or aborted on this side."""


class RegionError(NetworkError):
    """A memory region cannot be used as asked."""


class BadRegion(RegionError):
    """The region is not registered, or not any more, or not with this MemNet."""


class RangeOutsideRegion(RegionError):
    """The bytes named do not lie within the region."""


class RegionInUse(RegionError):
    """Jobs still use the region; the text names one."""


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
