"""MemNet: send and receive straight from and to registered memory, synchronously or as jobs.

One `MemNet` for each process. Memory is registered once; a job names bytes of it and must be left alone until it is
done. What carries jobs out is a `Provider`: TCP on the host (`host_tcp`), later the device itself.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol

from host_driver.account import Account
from host_driver.errors import BadRegion, NetworkError, RangeOutsideRegion, RegionInUse
from host_driver.port import HostMemory
from host_driver.runtime import Future

PAGE_BYTES = 4096

Done = Callable[[int, NetworkError | None], None]
"""Called once when a job is over, with the bytes it moved and why it failed, if it did."""


class Range(Protocol):
    """Bytes of registered memory that a provider is asked to move."""

    key: int
    """Memory key of the region."""
    offset: int
    length_bytes: int

    def view(self) -> memoryview:
        """The bytes, writable."""


class Provider(Protocol):
    """What carries out MemNet's operations. Listening ports and connections are the provider's own objects."""

    memory: HostMemory

    async def register(self, address: int, length_bytes: int, account: Account) -> Any:
        """Let the device use memory; returns a key object with the attribute `value`."""

    async def deregister(self, key: Any, account: Account) -> None:
        """Take it back; on return nothing reads or writes it."""

    def listen(self, port: int, backlog: int) -> Any:
        """Listen on a port."""

    async def accept(self, listening: Any, account: Account) -> Any:
        """The next connection."""

    async def connect(self, ip: IPv4Address | IPv6Address | str, port: int, account: Account) -> Any:
        """An established connection. Raises NetworkError."""

    async def send(self, connection: Any, part: Range, done: Done, account: Account) -> None:
        """Take a send, behind those taken before; `done` when its memory is free again."""

    async def receive(self, connection: Any, part: Range, done: Done, account: Account) -> None:
        """Take a receive, behind those taken before; `done` with the bytes stored, 0 when the peer has closed."""

    def job_waking(self) -> None:
        """Charge whoever runs now for waking a process that waits for a job."""

    async def close(self, connection: Any, account: Account) -> None:
        """Close a connection, behind all sends taken."""


class MemoryRegion:
    """Registered memory of one MemNet. Attributes: `address`, `length_bytes`, and `view`, its writable bytes."""

    def __init__(self, memory: HostMemory, address: int, length_bytes: int, key: Any) -> None:
        self.address = address
        self.length_bytes = length_bytes
        self.view = memory.view(address, length_bytes)
        self.is_registered = True
        self._key = key
        self._jobs: dict[Job, None] = {}

    def __repr__(self) -> str:
        return f"<MemoryRegion {self.length_bytes} bytes at {self.address:#x}>"


class _Part:
    """A range of a region (implements `Range`)."""

    __slots__ = ("_view", "key", "length_bytes", "offset")

    def __init__(self, region: MemoryRegion, offset: int, length_bytes: int) -> None:
        self.key: int = region._key.value
        self.offset = offset
        self.length_bytes = length_bytes
        self._view = region.view[offset : offset + length_bytes]

    def view(self) -> memoryview:
        """The bytes, writable."""
        return self._view


class Job:
    """An asynchronous operation. Attributes: `region`, `description`."""

    def __init__(self, region: MemoryRegion, description: str) -> None:
        self.region = region
        self.description = description
        self._finished: Future[int] = Future(description)
        self._has_waiter = False

    def __repr__(self) -> str:
        return f"<Job {self.description}{' (done)' if self._finished.done else ''}>"


class MemNetSocket:
    """A connected socket of one MemNet."""

    def __init__(self, connection: Any, name: str) -> None:
        self._connection = connection
        self._name = name

    def __repr__(self) -> str:
        return f"<MemNetSocket {self._name}>"


class MemNet:
    """The MemNet API of one process, whose work is charged to `account`. All errors are NetworkErrors."""

    def __init__(self, provider: Provider, account: Account) -> None:
        self._provider = provider
        self._account = account

    # ------------------------------------------------------------------------------------------ memory

    async def register_mem(self, contents: int | bytes | bytearray | memoryview) -> MemoryRegion:
        """Memory that jobs may use: so many zero bytes, or a copy of `contents`.

        Raises MemoryError if there is no memory or no key left, ValueError for an empty region.
        """
        length = contents if isinstance(contents, int) else len(contents)
        memory = self._provider.memory
        address = memory.allocate(length, PAGE_BYTES)
        if not isinstance(contents, int):
            memory.view(address, length)[:] = contents
        self._account.charge("user", "memnet_call")
        try:
            key = await self._provider.register(address, length, self._account)
        except MemoryError:
            memory.free(address)
            raise
        return MemoryRegion(memory, address, length, key)

    async def deregister_mem(self, region: MemoryRegion) -> None:
        """Give a region back. Raises RegionInUse while jobs use it, BadRegion if it was given back already."""
        self._check(region, 0, 0, "deregister_mem")
        if region._jobs:
            job, *others = region._jobs
            more = f" and {len(others)} more" if others else ""
            raise RegionInUse(f"deregister_mem: {region!r} is still in use by {job!r}{more}")
        region.is_registered = False
        self._account.charge("user", "memnet_call")
        await self._provider.deregister(region._key, self._account)
        region.view.release()
        self._provider.memory.free(region.address)

    @staticmethod
    def _check(region: MemoryRegion, offset: int, length_bytes: int, doing: str) -> None:
        if not region.is_registered:
            raise BadRegion(f"{doing}: {region!r} is not registered any more")
        if offset < 0 or length_bytes < 0 or offset + length_bytes > region.length_bytes:
            raise RangeOutsideRegion(f"{doing}: bytes {offset} to {offset + length_bytes} do not lie in {region!r}")

    # ------------------------------------------------------------------------------------------ connections

    def listen(self, port: int, backlog: int = 128) -> Any:
        """Listen on a port; `accept` takes what this returns. Raises ValueError if something already listens."""
        return self._provider.listen(port, backlog)

    async def accept(self, listening: Any) -> MemNetSocket:
        """Wait for the next connection."""
        self._account.charge("user", "memnet_call")
        return self._socket(await self._provider.accept(listening, self._account))

    async def connect(self, ip: IPv4Address | IPv6Address | str, port: int) -> MemNetSocket:
        """Connect and wait until it is done."""
        self._account.charge("user", "memnet_call")
        return self._socket(await self._provider.connect(ip, port, self._account))

    async def close(self, socket: MemNetSocket) -> None:
        """Close behind all sends that were posted; does not wait for them."""
        self._account.charge("user", "memnet_call")
        await self._provider.close(socket._connection, self._account)

    @staticmethod
    def _socket(connection: Any) -> MemNetSocket:
        return MemNetSocket(connection, repr(connection))

    # ------------------------------------------------------------------------------------------ data

    async def async_send(self, socket: MemNetSocket, region: MemoryRegion, offset: int = 0,
                         length_bytes: int | None = None) -> Job:
        """Post a send of bytes of `region` (all behind `offset` by default) and return its job at once.

        The bytes must not be changed until the job is done: the device reads them where they lie.
        """
        return await self._post(socket, region, offset, length_bytes, "send", self._provider.send)

    async def async_recv(self, socket: MemNetSocket, region: MemoryRegion, offset: int = 0,
                         length_bytes: int | None = None) -> Job:
        """Post a receive into bytes of `region` and return its job at once.

        It is done as soon as there are any bytes; its result is how many, 0 when the peer has closed.
        """
        return await self._post(socket, region, offset, length_bytes, "recv", self._provider.receive)

    async def sync_send(self, socket: MemNetSocket, region: MemoryRegion, offset: int = 0,
                        length_bytes: int | None = None) -> int:
        """Send and return, with the bytes sent, when the memory may be used again."""
        return await self.job_wait(await self.async_send(socket, region, offset, length_bytes))

    async def sync_recv(self, socket: MemNetSocket, region: MemoryRegion, offset: int = 0,
                        length_bytes: int | None = None) -> int:
        """Receive and return, with the bytes received, when there are any; 0 when the peer has closed."""
        return await self.job_wait(await self.async_recv(socket, region, offset, length_bytes))

    async def job_wait(self, job: Job) -> int:
        """Sleep until a job is done; its bytes. Raises the NetworkError that it failed with."""
        account = self._account
        account.charge("user", "memnet_call")
        if not job._finished.done:
            await account.settle()
        if not job._finished.done:
            job._has_waiter = True
            try:
                await job._finished
            finally:
                account.charge("context_switch", "switch")
        await account.settle()
        return job._finished.result()

    def job_done(self, job: Job) -> bool:
        """Whether a job is done; `job_wait` then returns at once."""
        self._account.charge("user", "memnet_call")
        return job._finished.done

    async def _post(self, socket: MemNetSocket, region: MemoryRegion, offset: int, length_bytes: int | None, kind: str,
                    take: Callable[[Any, Range, Done, Account], Any]) -> Job:
        if length_bytes is None:
            length_bytes = region.length_bytes - offset
        doing = f"async_{kind} of {length_bytes} bytes at {offset} on {socket!r}"
        self._check(region, offset, length_bytes, doing)
        if length_bytes == 0:
            raise RangeOutsideRegion(f"{doing}: there must be at least one byte")
        job = Job(region, doing)
        region._jobs[job] = None

        def done(moved_bytes: int, error: NetworkError | None) -> None:
            del region._jobs[job]
            if job._has_waiter:
                self._provider.job_waking()
            if error is None:
                job._finished.set_result(moved_bytes)
            else:
                job._finished.set_exception(error)

        self._account.charge("user", "memnet_call")
        try:
            await take(socket._connection, _Part(region, offset, length_bytes), done, self._account)
        except NetworkError:
            region._jobs.pop(job, None)
            raise
        return job
