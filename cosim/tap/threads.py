"""The threads of the server behind a TAP interface: sockets or MemNet as the way to clients."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import NamedTuple

from cosim.file_server import BODY_RECEIVE_BYTES, SEND_BYTES, FileConnection, Thread
from cosim.socket_transport import SocketTransport
from host_driver.account import Account
from host_driver.endpoint import Listening
from host_driver.errors import NetworkError
from host_driver.interface import NetworkInterface
from host_driver.kernel_sockets import KernelSockets
from host_driver.memnet import Direction, Job, MemNet, MemNetSocket, MemoryRegion
from host_driver.runtime import Queue

SENDS_OF_A_CONNECTION = 2
"""Under way at a time: a client that reads slowly keeps no more memory than these."""


def socket_thread(interface: NetworkInterface, listening: Listening, account: Account) -> Thread:
    """A thread that uses ordinary sockets."""
    return Thread(account, SocketTransport(KernelSockets(interface, account), listening))


class Slots:
    """Equal parts of a registered region. Attribute `bytes`: of each. `take` waits until one is free."""

    def __init__(self, region: MemoryRegion, slot_bytes: int) -> None:
        self.region = region
        self.bytes = slot_bytes
        self.count = region.length_bytes // slot_bytes
        self._free: Queue[int] = Queue("a free part of a registered region")
        for number in range(self.count):
            self._free.put(number * slot_bytes)

    def __len__(self) -> int:
        """Those that are free."""
        return len(self._free)

    async def take(self) -> int:
        """The offset of a free slot."""
        return await self._free.get()

    def give(self, offset: int) -> None:
        """A slot is free again."""
        self._free.put(offset)

    def view(self, offset: int, length: int) -> memoryview:
        """Bytes of a slot."""
        return self.region.view[offset : offset + length]


class MemNetMemory(NamedTuple):
    """What the threads of a MemNet server share: a key for each thread would be more than a device has."""

    receives: Slots
    sends: Slots

    @classmethod
    async def register(cls, memnet: MemNet, connections: int, sends: int) -> MemNetMemory:
        """Register memory for so many connections at a time, and so many sends under way."""
        return cls(Slots(await memnet.register_mem(connections * BODY_RECEIVE_BYTES), BODY_RECEIVE_BYTES),
                   Slots(await memnet.register_mem(sends * SEND_BYTES), SEND_BYTES))


def memnet_thread(process: MemNet, listening: MemNetSocket, memory: MemNetMemory, account: Account) -> Thread:
    """A thread of a process that uses MemNet."""
    return Thread(account, _MemNetTransport(process.thread(account), listening, memory))


class _MemNetTransport:
    """Implements `cosim.file_server.FileTransport`."""

    def __init__(self, memnet: MemNet, listening: MemNetSocket, memory: MemNetMemory) -> None:
        self._memnet = memnet
        self._listening = listening
        self._memory = memory

    async def accept(self) -> FileConnection:
        """The next client."""
        return _MemNetConnection(self._memnet, await self._memnet.accept(self._listening), self._memory)


class _MemNetConnection:
    """Implements `cosim.file_server.FileConnection`. Sends are posted, and the thread goes on; before it waits for the
    client it waits until they are over, so that a thread that waits has no memory that another one could use."""

    def __init__(self, memnet: MemNet, socket: MemNetSocket, memory: MemNetMemory) -> None:
        self._memnet = memnet
        self._socket = socket
        self._memory = memory
        self._sending: deque[tuple[Job, int]] = deque()
        self._offset = 0
        self._length = 0

    async def receive(self, max_bytes: int) -> bytes:
        await self._finish_sends()
        receives = self._memory.receives
        offset = await receives.take()
        try:
            length = await self._memnet.sync_recv(self._socket, receives.region, offset, min(max_bytes, receives.bytes))
            return bytes(receives.view(offset, length))
        finally:
            receives.give(offset)

    async def buffer(self, length: int) -> memoryview:
        sends = self._memory.sends
        # Who waits for memory has none that it could give back itself: so they cannot all wait for each other.
        while self._sending and (len(self._sending) >= SENDS_OF_A_CONNECTION or not len(sends)):
            await self._finish_first()
        self._offset, self._length = await sends.take(), length
        return sends.view(self._offset, length)

    async def send(self) -> None:
        try:
            job = await self._memnet.async_send(self._socket, self._memory.sends.region, self._offset, self._length)
        except NetworkError:
            self._memory.sends.give(self._offset)
            raise
        self._sending.append((job, self._offset))

    async def shutdown(self) -> None:
        await self._memnet.shutdown(self._socket, Direction.SEND)

    async def close(self) -> None:
        with suppress(NetworkError):
            await self._memnet.close(self._socket)
        while self._sending:
            with suppress(NetworkError):
                await self._finish_first()

    async def _finish_first(self) -> None:
        job, offset = self._sending.popleft()
        try:
            await self._memnet.job_wait(job)
        finally:
            self._memory.sends.give(offset)

    async def _finish_sends(self) -> None:
        while self._sending:
            await self._finish_first()
