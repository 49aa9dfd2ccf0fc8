"""What carries MemNet's operations out: TCP on the host (`host_tcp`); the device's rings and a SAN can stand here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Flag
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol

from host_driver.account import Account
from host_driver.errors import NetworkError
from host_driver.memnet.options import Option
from host_driver.port import HostMemory
from host_driver.runtime import Kernel

Done = Callable[[int, NetworkError | None], None]
"""Called once when a transfer is over, with the bytes it moved and why it failed, if it did."""


class Range(Protocol):
    """Bytes of registered memory that a provider is asked to move."""

    @property
    def key(self) -> int:
        """Memory key of the region."""

    @property
    def offset(self) -> int:
        """Of the first byte inside the key's memory."""

    @property
    def length_bytes(self) -> int:
        """How many."""

    def view(self) -> memoryview:
        """The bytes, writable."""


class Transfer:
    """One send or receive, of bytes in one or several ranges, as a provider carries it out.

    Attributes: `parts`; `length_bytes`, the sum; `done`, to be called once when it is over; `is_taken`, set by the
    provider when it will call `done`, so that whoever was killed while he posted knows whether it will come;
    `is_confirmed`: of a send that is over only when TCP has it, where TCP is elsewhere; `is_waited`: whether a process
    sleeps for it now, so that its end must interrupt somebody.
    """

    __slots__ = ("done", "is_confirmed", "is_taken", "is_waited", "length_bytes", "parts")

    def __init__(self, parts: Sequence[Range], done: Done, *, is_confirmed: bool = False,
                 is_waited: Callable[[], bool] = lambda: True) -> None:
        self.parts = parts
        self.length_bytes = sum(part.length_bytes for part in parts)
        self.done = done
        self.is_taken = False
        self.is_confirmed = is_confirmed
        self.is_waited = is_waited


class Direction(Flag):
    """Which way of a connection `shutdown` ends."""

    RECEIVE = 1
    SEND = 2
    BOTH = 3


class Provider(Protocol):
    """What carries out MemNet's operations. Listening ports and connections are the provider's own objects.

    Transfers of one connection and direction are carried out, and are over, in the order in which they were taken.
    """

    memory: HostMemory
    kernel: Kernel
    """The clock."""

    async def register(self, address: int, length_bytes: int, account: Account) -> Any:
        """Let the device use memory; returns a key object with the attribute `value`."""

    async def deregister(self, key: Any, account: Account) -> None:
        """Take it back; on return nothing reads or writes it."""

    async def open_channels(self, wanted: int, account: Account) -> int:
        """Make what this provider needs for so many channels; for how many it could."""

    async def close_channels(self, count: int, account: Account) -> None:
        """Give that back, of channels that no socket has."""

    @property
    def own_address(self) -> str:
        """The host's IP address, or the first of them."""

    def find_port(self, ip: str | None, port: int, *, reuse: bool) -> int:
        """The port that a socket gets which is bound to this address; any that is free for 0. `reuse`: a connection
        that is about to be forgotten does not count. Raises AddressNotAvailable, AddressInUse."""

    def listen(self, port: int, backlog: int) -> Any:
        """Listen on a port."""

    async def accept(self, listening: Any, account: Account) -> Any:
        """The next connection."""

    async def stop_listening(self, listening: Any, account: Account) -> None:
        """Give a port back; connections that nobody accepted are aborted."""

    async def connect(self, ip: IPv4Address | IPv6Address | str, port: int, local_port: int | None,
                      options: dict[Option, Any], account: Account) -> Any:
        """An established connection. Raises NetworkError."""

    def addresses(self, connection: Any) -> tuple[tuple[str, int], tuple[str, int]]:
        """Own and peer's address and port."""

    def set_options(self, connection: Any, options: dict[Option, Any], account: Account) -> None:
        """Let a connection have these options; what others are stays. Raises OptionRefused for one that this provider
        cannot give."""

    async def send(self, connection: Any, transfer: Transfer, account: Account) -> None:
        """Take a send, behind those taken before; it is done when its memory is free again."""

    async def receive(self, connection: Any, transfer: Transfer, account: Account) -> None:
        """Take a receive, behind those taken before; it is done with the bytes stored, 0 when the peer has closed."""

    def charge_waking(self) -> None:
        """Charge whoever runs now for waking a process that waits."""

    def charge_sleep(self, account: Account) -> None:
        """Charge a process that slept for a transfer what going on costs it."""

    async def shutdown(self, connection: Any, direction: Direction, account: Account) -> None:
        """Send no more, behind all sends taken; or receive no more: receives give 0 bytes, what comes is dropped."""

    async def close(self, connection: Any, account: Account) -> None:
        """Close a connection both ways, behind all sends taken; receives that wait fail."""

    async def abort(self, connection: Any, account: Account) -> None:
        """Drop a connection: the peer gets a reset, all transfers fail."""

    async def wait_for_rest(self, connection: Any, timeout_ps: int | None, account: Account) -> bool:
        """Sleep until all that was sent is acknowledged, the end of sending too, or the connection is gone; False if
        that is not so in time."""
