"""Channels: what a socket owns on its way to the TCP server, made in advance because making one is expensive.

A channel has a send ring, a receive ring and a control region, all registered memory, and belongs to one socket from
accept or connect until its last job is over. A pool asks the TCP server for its channels when the application starts,
and for more when it runs out; the TCP server accepts or rejects each request by its load.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from host_driver.account import Account
from host_driver.errors import ChannelRefused
from host_driver.memnet.credits import CONTROL_BYTES, LINE_BYTES, ControlRegion, DrainingEnd, FillingEnd, Word
from host_driver.runtime import Cancelled
from host_driver.waiting import WaitQueue

if TYPE_CHECKING:
    from host_driver.memnet.server import TcpServer

PAGE_BYTES = 4096


class Load(NamedTuple):
    """What a TCP server has to do when a channel is asked for."""

    channels: int
    """Channels granted, and not given back."""
    busy: float
    """Share of its processor's time that it was busy lately, 0 to 1; 0 where nobody measures it."""


class AdmissionPolicy(Protocol):
    """Decides on requests for channels."""

    def admits(self, load: Load) -> bool:
        """Whether one more channel is granted."""


@dataclass(frozen=True, kw_only=True)
class AdmitByLoad:
    """Grants channels up to a number, as long as the TCP server is not busier than a share of its time."""

    max_channels: int = 4096
    max_busy: float = 1.0

    def admits(self, load: Load) -> bool:
        """Whether both limits allow one more."""
        return load.channels < self.max_channels and load.busy <= self.max_busy


@dataclass(frozen=True, kw_only=True)
class ChannelSettings:
    """What an application's pool asks for. Raises ValueError for sizes that cannot be."""

    channels: int = 8
    """Made at the start."""
    max_channels: int = 1024
    """Asked for in all, when those are in use: as many again each time."""
    send_bytes: int = 16384
    """Send ring of each."""
    receive_bytes: int = 16384
    """Receive ring of each."""

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= self.max_channels:
            raise ValueError(f"channels must be 1 to max_channels ({self.max_channels}), not {self.channels}")
        for name, size in (("send_bytes", self.send_bytes), ("receive_bytes", self.receive_bytes)):
            if size < LINE_BYTES or size % LINE_BYTES:
                raise ValueError(f"{name} must be a multiple of {LINE_BYTES}, not {size}")

    @property
    def channel_bytes(self) -> int:
        """Host memory of one channel."""
        return self.send_bytes + self.receive_bytes + CONTROL_BYTES


def pool_bytes(settings: ChannelSettings) -> int:
    """Host memory that a pool takes at the start, in whole pages."""
    return -(-settings.channels * settings.channel_bytes // PAGE_BYTES) * PAGE_BYTES


class ChannelRange:
    """Bytes of a channel's ring (implements `provider.Range`)."""

    __slots__ = ("_view", "key", "length_bytes", "offset")

    def __init__(self, key: int, offset: int, view: memoryview) -> None:
        self.key = key
        self.offset = offset
        self.length_bytes = len(view)
        self._view = view

    def view(self) -> memoryview:
        """The bytes, writable."""
        return self._view


class Channel:
    """One channel. Attributes: `number`; `send` and `receive`, the rings; `control`.

    Both ends see the same memory here, so a remote write is a store, and telling is a call: `on_server_news` when the
    application's end wrote, `on_application_news` when the TCP server's did.
    """

    def __init__(self, number: int, key: int, offset: int, memory: memoryview, settings: ChannelSettings,
                 server: TcpServer) -> None:
        self.number = number
        self.settings = settings
        self.send = memory[: settings.send_bytes]
        self.receive = memory[settings.send_bytes : settings.send_bytes + settings.receive_bytes]
        self.control = ControlRegion(memory[settings.send_bytes + settings.receive_bytes :])
        self.on_server_news: Callable[[], None] = _nobody
        self.on_application_news: Callable[[], None] = _nobody
        self._key = key
        self._offset = offset
        self._server = server

    def __repr__(self) -> str:
        return f"<Channel {self.number}>"

    def write(self, word: Word, value: int) -> None:
        """Implements `credits.RemoteWords` for both ends."""
        self._server.counters.credit_writes += 1
        self.control.store(word, value)
        if word < LINE_BYTES:
            self.on_application_news()
        else:
            self.on_server_news()

    def send_range(self, offset: int, length_bytes: int) -> ChannelRange:
        """Bytes of the send ring, for the provider."""
        return ChannelRange(self._key, self._offset + offset, self.send[offset : offset + length_bytes])

    def receive_range(self, offset: int, length_bytes: int) -> ChannelRange:
        """Bytes of the receive ring, for the provider."""
        return ChannelRange(self._key, self._offset + self.settings.send_bytes + offset,
                            self.receive[offset : offset + length_bytes])

    def application_rings(self, receive_limit_bytes: int) -> tuple[FillingEnd, DrainingEnd]:
        """The application's ends of the send and the receive ring."""
        sizes = self.settings
        return (FillingEnd(sizes.send_bytes, sizes.send_bytes, self.control, Word.SENT, self, Word.QUEUED),
                DrainingEnd(sizes.receive_bytes, receive_limit_bytes, self.control, Word.RECEIVED, self, Word.CONSUMED))

    def server_rings(self, receive_limit_bytes: int) -> tuple[DrainingEnd, FillingEnd]:
        """The TCP server's ends of the send and the receive ring."""
        sizes = self.settings
        return (DrainingEnd(sizes.send_bytes, sizes.send_bytes, self.control, Word.QUEUED, self, Word.SENT),
                FillingEnd(sizes.receive_bytes, receive_limit_bytes, self.control, Word.CONSUMED, self, Word.RECEIVED))

    def reset(self) -> None:
        """As new: nobody has it, all words are 0."""
        self.on_server_news = self.on_application_news = _nobody
        self.control.clear()


class ChannelPool:
    """The channels of one application. `open` makes it.

    Their memory is registered once for all that are made together, and is the system's: no application has its key.
    """

    def __init__(self, server: TcpServer, settings: ChannelSettings) -> None:
        self.settings = settings
        self.channels: list[Channel] = []
        """All, in the order in which they were granted."""
        self._server = server
        self._free: deque[Channel] = deque()
        self._arenas: list[tuple[int, Any]] = []
        self._is_closing = False
        self._waiting = WaitQueue(server.provider.charge_waking, "a free channel")

    @classmethod
    async def open(cls, server: TcpServer, settings: ChannelSettings, account: Account) -> ChannelPool:
        """Ask for channels. Raises ChannelRefused if the TCP server grants none, MemoryError if memory is short."""
        pool = cls(server, settings)
        if not await pool._grow(settings.channels, account):
            raise ChannelRefused(f"the TCP server rejected all of {settings.channels} channels: {server.load!r}")
        return pool

    @property
    def free(self) -> int:
        """Channels that no socket has."""
        return len(self._free)

    async def take(self, account: Account) -> Channel:
        """A channel for a socket: a free one; a further one; or the next that is given back, if the TCP server grants
        no further ones, or there is no memory for them."""
        room = self.settings.max_channels - len(self.channels)
        if not self._free and room:
            try:
                # As many again: each time takes a memory key.
                await self._grow(min(room, len(self.channels)), account)
            except MemoryError:
                self._server.counters.channels_without_memory += 1
        if not self._free:
            self._server.counters.channel_waits += 1
            await self._waiting.sleep(lambda: bool(self._free), account)
        return self._free.popleft()

    def take_now(self) -> Channel | None:
        """A free channel, or None."""
        return self._free.popleft() if self._free else None

    def give_back(self, channel: Channel) -> None:
        """A socket does not need it any more; nothing uses its rings."""
        channel.reset()
        self._free.append(channel)
        self._waiting.wake(only_one=not self._is_closing)

    async def close(self, account: Account) -> None:
        """Give all memory back, when the last channel is free."""
        self._is_closing = True
        await self._waiting.sleep(lambda: self.free == len(self.channels), account)
        count = len(self.channels)
        self.channels.clear()
        self._free.clear()
        for address, key in self._arenas:
            await self._server.provider.deregister(key, account)
            self._server.provider.memory.free(address)
        self._arenas.clear()
        await self._server.take_back(count, account)

    async def _grow(self, wanted: int, account: Account) -> int:
        """Ask for channels; how many were granted."""
        server, settings = self._server, self.settings
        granted = await server.grant(wanted, account)
        if not granted:
            return 0
        memory, length = server.provider.memory, granted * settings.channel_bytes
        try:
            address = memory.allocate(length, PAGE_BYTES)
            try:
                key = await server.provider.register(address, length, account)
            except (Exception, Cancelled):
                memory.free(address)
                raise
        except (Exception, Cancelled):
            await server.take_back(granted, account)
            raise
        self._arenas.append((address, key))
        for offset in range(0, length, settings.channel_bytes):
            channel = Channel(len(self.channels), key.value, offset,
                              memory.view(address + offset, settings.channel_bytes), settings, server)
            channel.reset()
            self.channels.append(channel)
            self._free.append(channel)
        return granted


def _nobody() -> None:
    """Nobody is at this end."""
