"""The MemNet API of one process: memory, sockets, jobs, capabilities. `docs/memnet.md` has each call and its errors."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from copy import copy
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from host_driver.account import Account
from host_driver.errors import (
    BadRegion,
    BadSocket,
    CapabilityRevoked,
    ConnectionTimedOut,
    JobTimeout,
    NetworkError,
    OptionRefused,
    RegionInUse,
    SocketClosed,
)
from host_driver.memnet import checking
from host_driver.memnet.application_end import ApplicationEnd
from host_driver.memnet.channels import PAGE_BYTES, ChannelPool, ChannelSettings
from host_driver.memnet.counters import MemNetCounters
from host_driver.memnet.eager_accept import EagerAccept
from host_driver.memnet.grants import Capability, Grant
from host_driver.memnet.jobs import Job, JobWaiter
from host_driver.memnet.options import Linger, Option, checked_value, find_option
from host_driver.memnet.order import SendLine
from host_driver.memnet.provider import Direction, Provider, Transfer
from host_driver.memnet.regions import MemoryRegion, Part, check_parts, parts_of
from host_driver.memnet.server import TcpServer
from host_driver.memnet.sockets import MemNetSocket, SocketState
from host_driver.memnet.worker import Ended, Worker
from host_driver.runtime import Cancelled, Event, Task

PS_PER_SECOND = 10**12

EXIT_LINGER_PS = 60 * PS_PER_SECOND
"""How long an application that has returned keeps its memory for sends that are not acknowledged."""

Buffers = MemoryRegion | Part | Sequence[Part]
"""What a job uses: bytes of a region, or parts of regions, one behind the other."""


class _HeldSend:
    """A send that waits in the line behind a capability; whoever ends the capability runs it."""

    def __init__(self, provider: Provider, socket: MemNetSocket, job: Job, transfer: Transfer) -> None:
        self.job = job
        self._provider = provider
        self._socket = socket
        self._transfer = transfer

    async def __call__(self, account: Account) -> None:
        try:
            await self._provider.send(self._socket.connection, self._transfer, account)
        except NetworkError as error:
            if not self._transfer.is_taken:
                self.job.finish(0, error)


class _Process:
    """What all threads of a process share."""

    def __init__(self) -> None:
        self.pool: ChannelPool | None = None
        self.opening: Event | None = None
        """Set when the thread that makes the pool has made it, or failed to."""
        self.regions: dict[MemoryRegion, None] = {}
        self.sockets: dict[MemNetSocket, None] = {}
        self.calls: dict[Task[None], None] = {}
        """Those under way that go on when the process is killed."""


class MemNet:
    """The MemNet API of one process, whose work is charged to `account`. All errors are NetworkErrors.

    Parameters: `server`, the TCP server; of a bare provider one is made. `channels` says what pool is made by `start`,
    or with the first socket. `eager_receive_bytes`: sockets receive so many bytes ahead of the application; 0: none.
    `eager_accept`: listening sockets accept so many connections ahead; 0: none. `check`: the checking mode; None: as
    the environment says (`MEMNET_CHECK`). Raises ValueError for limits that cannot be.
    """

    def __init__(self, server: TcpServer | Provider, account: Account, *, channels: ChannelSettings | None = None,
                 eager_receive_bytes: int = 0, eager_accept: int = 0, check: bool | None = None) -> None:
        self.server = server if isinstance(server, TcpServer) else TcpServer(server)
        self.account = account
        self.channel_settings = channels or ChannelSettings()
        self.eager_receive_bytes = eager_receive_bytes
        self.eager_accept = eager_accept
        if not 0 <= eager_receive_bytes <= self.channel_settings.receive_bytes:
            raise ValueError(f"eager_receive_bytes must be 0 to {self.channel_settings.receive_bytes}, a channel's "
                             f"receive ring, not {eager_receive_bytes}")
        if eager_accept < 0:
            raise ValueError(f"eager_accept must not be negative, not {eager_accept}")
        self._check_buffers = checking.is_wanted() if check is None else check
        self._provider: Provider = self.server.provider
        self._process = _Process()

    def thread(self, account: Account) -> MemNet:
        """The same MemNet for another thread of the process: memory, sockets and channels are shared, work is charged
        to `account`."""
        other = copy(self)
        other.account = account
        return other

    @property
    def counters(self) -> MemNetCounters:
        """The TCP server's."""
        return self.server.counters

    @property
    def own_address(self) -> str:
        """This host's, or the first of them."""
        return self._provider.own_address

    @property
    def pool(self) -> ChannelPool | None:
        """The channels; None before there are any."""
        return self._process.pool

    @property
    def _work(self) -> Account:
        """Whom the TCP server's own work is charged to."""
        return self.server.account or self.account

    async def start(self) -> None:
        """Make the pool of channels. Raises ChannelRefused if the TCP server grants none, MemoryError if memory is
        short. The first accept or connect does it where nobody has."""
        process = self._process
        while process.pool is None:
            if process.opening is not None:
                await process.opening.wait()
                continue
            opening = process.opening = Event("the pool of channels")
            try:
                process.pool = await ChannelPool.open(self.server, self.channel_settings, self.account)
            finally:
                process.opening = None
                opening.set()

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
        self.account.charge("user", "memnet_call")
        try:
            key = await self._provider.register(address, length, self.account)
        except (Exception, Cancelled):
            memory.free(address)
            raise
        region = MemoryRegion(memory, address, length, key, self._process, is_guarded=self._check_buffers)
        self._process.regions[region] = None
        return region

    async def deregister_mem(self, region: MemoryRegion) -> None:
        """Give a region back. Raises RegionInUse while jobs use it, BadRegion if it was given back already."""
        if region.owner is not self._process:
            raise BadRegion(f"deregister_mem: {region!r} was registered with another MemNet")
        if not region.is_registered:
            raise BadRegion(f"deregister_mem: {region!r} is not registered any more")
        if region.jobs:
            job, *others = region.jobs
            more = f" and {len(others)} more" if others else ""
            raise RegionInUse(f"deregister_mem: {region!r} is still in use by {job!r}{more}")
        region.is_registered = False
        self.account.charge("user", "memnet_call")
        await self._to_its_end(self._give_back(region), f"the end of {region!r}")

    async def _give_back(self, region: MemoryRegion) -> None:
        await self._provider.deregister(region.key, self.account)
        region.view.release()
        self._provider.memory.free(region.address)
        del self._process.regions[region]

    # ------------------------------------------------------------------------------------------ sockets

    def socket(self) -> MemNetSocket:
        """A new socket, to bind, listen or connect."""
        self.account.charge("user", "memnet_call")
        socket = MemNetSocket(self._process)
        self._process.sockets[socket] = None
        return socket

    def bind(self, socket: MemNetSocket, port: int, ip: IPv4Address | IPv6Address | str | None = None) -> None:
        """Give a socket its own port; 0: any that is free. Raises AddressInUse, AddressNotAvailable for an `ip` that is
        not this host's."""
        socket.check(self._process, "bind", SocketState.NEW)
        self.account.charge("user", "memnet_call")
        socket.bound_port = self._provider.find_port(None if ip is None else str(ip), port,
                                                     reuse=socket.option(Option.SO_REUSEADDR))

    def listen(self, socket: MemNetSocket | int, backlog: int = 128) -> MemNetSocket:
        """Let a bound socket listen; a port stands for a new socket bound to it. Raises AddressInUse."""
        if isinstance(socket, int):
            port, socket = socket, self.socket()
            try:
                self.bind(socket, port)
            except NetworkError:
                del self._process.sockets[socket]
                raise
        socket.check(self._process, "listen", SocketState.NEW)
        if socket.bound_port is None:
            raise BadSocket(f"listen: {socket!r} is bound to no port")
        socket.listening = self._provider.listen(socket.bound_port, backlog)
        socket.state = SocketState.LISTENING
        socket.holders.add(self._process)
        if self.eager_accept:
            socket.eager_accept = EagerAccept(self.server, socket.listening, self.eager_accept, self._work)
        return socket

    async def accept(self, listening: MemNetSocket) -> MemNetSocket:
        """Wait for the next connection; a socket that another process of this host listens with will do."""
        listening.check(listening.owner, "accept", SocketState.LISTENING)
        listening.holders.add(self._process)
        self._process.sockets[listening] = None
        self.account.charge("user", "memnet_call")
        socket = MemNetSocket(self._process)
        socket.options.update(listening.options)
        await self._take_channel(socket)
        try:
            if listening.eager_accept is not None:
                socket.connection = await listening.eager_accept.take(self.account)
            else:
                socket.connection = await self._provider.accept(listening.listening, self.account)
            if socket.options:
                self._provider.set_options(socket.connection, socket.options, self.account)
        except (Exception, Cancelled):
            await self._drop(socket)
            raise
        self._connected(socket)
        return socket

    async def connect(self, socket: MemNetSocket, ip: IPv4Address | IPv6Address | str, port: int) -> None:
        """Connect and wait until it is done. Raises ConnectionRefused, ConnectionTimedOut, PeerReset."""
        socket.check(self._process, "connect", SocketState.NEW)
        self.account.charge("user", "memnet_call")
        await self._take_channel(socket)
        try:
            socket.connection = await self._provider.connect(ip, port, socket.bound_port, socket.options, self.account)
        except (Exception, Cancelled):
            await self._drop(socket)
            raise
        self._connected(socket)

    async def create_connection(self, ip: IPv4Address | IPv6Address | str, port: int) -> MemNetSocket:
        """A new socket, connected. Raises as `connect`."""
        socket = self.socket()
        try:
            await self.connect(socket, ip, port)
        except (Exception, Cancelled):
            self._process.sockets.pop(socket, None)
            raise
        return socket

    async def shutdown(self, socket: MemNetSocket, direction: Direction = Direction.BOTH) -> None:
        """End one way of a connection, or both: SEND behind all sends that were posted; RECEIVE at once: receives give
        0 bytes from now on, and what comes is dropped."""
        socket.check(self._process, "shutdown", SocketState.CONNECTED)
        self.account.charge("user", "memnet_call")
        connection = socket.connection
        if Direction.RECEIVE in direction:
            await self._provider.shutdown(connection, Direction.RECEIVE, self.account)
        if Direction.SEND in direction:
            async def end(account: Account) -> None:
                if socket.worker is not None:
                    socket.worker.end_sending()
                else:
                    await self._provider.shutdown(connection, Direction.SEND, account)

            await socket.sends.take(end, self.account)

    async def close(self, socket: MemNetSocket) -> None:
        """Close, behind all sends that were posted; receives that wait fail. Does not wait, unless SO_LINGER says so.

        Raises ConnectionTimedOut if that waited in vain: the connection is dropped.
        """
        if socket.state is SocketState.LISTENING and self._process in socket.holders:
            self.account.charge("user", "memnet_call")
            await self._let_go(socket)
            return
        socket.check(self._process, "close", SocketState.NEW, SocketState.CONNECTED)
        self.account.charge("user", "memnet_call")
        before, socket.state = socket.state, SocketState.CLOSED
        if before is SocketState.NEW:
            self._process.sockets.pop(socket, None)
            return
        linger: Linger = socket.option(Option.SO_LINGER)
        if linger.is_on and not linger.seconds:
            await self._abort(socket)
            return
        await self._close_behind_sends(socket)
        if linger.is_on and not await self._provider.wait_for_rest(
                socket.connection, round(linger.seconds * PS_PER_SECOND), self.account):
            await self._abort(socket)
            raise ConnectionTimedOut(f"close: the peer of {socket!r} did not acknowledge all in {linger.seconds} s")

    async def abort(self, socket: MemNetSocket) -> None:
        """Drop a connection at once: the peer gets a reset, all jobs fail. No error on a closed one."""
        socket.check(self._process, "abort", SocketState.CONNECTED, SocketState.CLOSED)
        self.account.charge("user", "memnet_call")
        socket.state = SocketState.CLOSED
        await self._abort(socket)

    def set_option(self, socket: MemNetSocket, option: Option | str, value: Any) -> None:
        """Set a socket option; accepted sockets have those of the listening one. Raises OptionRefused for an option or
        a value that means nothing here."""
        socket.check(self._process, "set_option", SocketState.NEW, SocketState.LISTENING, SocketState.CONNECTED)
        self.account.charge("user", "memnet_call")
        option = find_option(option)
        value = checked_value(option, value)
        if option is Option.SO_REUSEADDR and socket.bound_port is not None:
            raise OptionRefused(f"{option.value} counts when a socket is bound, and {socket!r} is")
        options = {**socket.options, option: value}
        if socket.connection is not None:
            self._provider.set_options(socket.connection, options, self.account)
        socket.options = options

    def get_option(self, socket: MemNetSocket, option: Option | str) -> Any:
        """An option's value; None: what the TCP's profile says. Raises OptionRefused."""
        socket.check(self._process, "get_option", *SocketState)
        return socket.option(find_option(option))

    def getsockname(self, socket: MemNetSocket) -> tuple[str, int]:
        """Own address and port of a connected socket."""
        socket.check(self._process, "getsockname", SocketState.CONNECTED)
        return self._provider.addresses(socket.connection)[0]

    def getpeername(self, socket: MemNetSocket) -> tuple[str, int]:
        """The peer's address and port."""
        socket.check(self._process, "getpeername", SocketState.CONNECTED)
        return self._provider.addresses(socket.connection)[1]

    # ------------------------------------------------------------------------------------------ data

    async def async_send(self, socket: MemNetSocket, what: Buffers, offset: int = 0,
                         length_bytes: int | None = None) -> Job:
        """Post a send of bytes of a region (all behind `offset` by default), or of several parts, and return its job at
        once.

        The bytes must not be changed until the job is done: the device reads them where they lie.
        """
        return await self._post_send(socket, what, offset, length_bytes, "async_send", is_confirmed=False)

    async def _post_send(self, socket: MemNetSocket, what: Buffers, offset: int, length_bytes: int | None, call: str,
                         *, is_confirmed: bool) -> Job:
        parts, job = self._new_job(socket, what, offset, length_bytes, call, is_send=True)
        transfer = Transfer(parts, job.finish, is_confirmed=is_confirmed, is_waited=lambda: job.is_waited)
        self.account.charge("user", "memnet_call")
        if not socket.sends.is_free:
            await socket.sends.take(_HeldSend(self._provider, socket, job, transfer), self.account)
            return job
        try:
            await socket.sends.take(
                lambda account: self._provider.send(socket.connection, transfer, account), self.account)
        except (Exception, Cancelled):
            if not transfer.is_taken:
                self._forget(socket, job)
            raise
        return job

    async def async_recv(self, socket: MemNetSocket, what: Buffers, offset: int = 0,
                         length_bytes: int | None = None) -> Job:
        """Post a receive into bytes of a region, or into several parts, and return its job at once.

        It is done as soon as there are any bytes; its result is how many, 0 when the peer has closed.
        """
        parts, job = self._new_job(socket, what, offset, length_bytes, "async_recv", is_send=False)
        self.account.charge("user", "memnet_call")
        if socket.end is not None:
            await self._receive_from_ring(socket, socket.end, job, parts)
            return job
        transfer = Transfer(parts, job.finish, is_waited=lambda: job.is_waited)
        try:
            await self._provider.receive(socket.connection, transfer, self.account)
        except (Exception, Cancelled):
            if not transfer.is_taken:
                self._forget(socket, job)
            raise
        return job

    async def sync_send(self, socket: MemNetSocket, what: Buffers, offset: int = 0,
                        length_bytes: int | None = None) -> int:
        """Send and return, with the bytes sent, when TCP has them and the memory may be used again."""
        return await self.job_wait(await self._post_send(socket, what, offset, length_bytes, "sync_send",
                                                         is_confirmed=True))

    async def sync_recv(self, socket: MemNetSocket, what: Buffers, offset: int = 0,
                        length_bytes: int | None = None) -> int:
        """Receive and return, with the bytes received, when there are any; 0 when the peer has closed."""
        return await self.job_wait(await self.async_recv(socket, what, offset, length_bytes))

    async def job_wait(self, job: Job, timeout_ps: int | None = None) -> int:
        """Sleep until a job is done; its bytes. Raises the NetworkError that it failed with, JobTimeout if it is not
        done in time; then it goes on."""
        if not await self._sleep_for([job], 1, timeout_ps):
            raise JobTimeout(f"job_wait: {job!r} is not done after {timeout_ps} ps")
        return job.result()

    async def job_wait_any(self, jobs: Sequence[Job], timeout_ps: int | None = None) -> list[Job]:
        """Sleep until one of some jobs is done; all that are, in the order given. Raises JobTimeout."""
        if jobs and not await self._sleep_for(jobs, 1, timeout_ps):
            raise JobTimeout(f"job_wait_any: none of {len(jobs)} jobs is done after {timeout_ps} ps")
        return [job for job in jobs if job.is_done]

    async def job_wait_all(self, jobs: Sequence[Job], timeout_ps: int | None = None) -> list[int]:
        """Sleep until all of some jobs are done; their bytes. Raises the error of the first that failed, in the order
        given, when all are done; JobTimeout if they are not in time."""
        if jobs and not await self._sleep_for(jobs, len(jobs), timeout_ps):
            under_way = [job for job in jobs if not job.is_done]
            raise JobTimeout(f"job_wait_all: {len(under_way)} of {len(jobs)} jobs are not done after {timeout_ps} ps, "
                             f"first {under_way[0]!r}")
        return [job.result() for job in jobs]

    def job_done(self, job: Job) -> bool:
        """Whether a job is done; `job_wait` then returns at once."""
        self.account.charge("user", "memnet_call")
        return job.is_done

    # ------------------------------------------------------------------------------------------ capabilities

    async def grant(self, socket: MemNetSocket, length_bytes: int) -> Capability:
        """Let somebody else write so many bytes to the connection, at this place of what is sent. What is sent behind
        them waits until they were written, or the capability is revoked."""
        doing = f"grant of {length_bytes} bytes on {socket!r}"
        socket.check(self._process, doing, SocketState.CONNECTED)
        if length_bytes < 1:
            raise ValueError(f"a capability is for at least 1 byte, not {length_bytes}")
        if socket.is_stream:
            raise BadSocket(f"{doing}: the socket belongs to a stream, whose sends pass through its channel's ring")
        self.account.charge("user", "memnet_call")
        job = Job(self, (), doing, is_send=True)
        self._begin(socket, job)
        grant = self.server.grants.add(socket, length_bytes, job, self._grant_has_turn)
        socket.sends.put(grant.barrier)
        await self.account.settle()
        return Capability(grant)

    async def revoke(self, capability: Capability) -> int:
        """Take a capability back; the bytes that were written with it. Its job fails, unless it was used up."""
        self.account.charge("user", "memnet_call")
        self._end_grant(capability.grant, "the application took it back")
        await self.account.settle()
        return capability.grant.handed_bytes

    async def async_write(self, token: bytes, what: Buffers, offset: int = 0, length_bytes: int | None = None) -> Job:
        """Post a send of own memory to the connection that a capability is for.

        Raises CapabilityForged, CapabilityRevoked, CapabilityUsed, or CapabilityOverrun; then nothing is written.
        """
        parts = parts_of(what, offset, length_bytes)
        total = sum(part.length_bytes for part in parts)
        doing = f"async_write of {total} bytes with a capability"
        check_parts(parts, self._process, doing)
        self.account.charge("user", "memnet_call")
        grant = self.server.grants.reserve(token, total, self._process)
        job = Job(self, parts, doing, is_send=True)
        job.begin(is_watched=self._check_buffers)
        transfer = grant.transfer(parts, job.finish)

        async def turn(account: Account) -> None:
            if not grant.is_open:
                job.finish(0, CapabilityRevoked(f"{doing}: it was revoked while the write waited for its turn"))
                return
            try:
                await self._provider.send(grant.socket.connection, transfer, account)
            except NetworkError as error:
                self._end_grant(grant, f"the connection failed ({error})")
                if not transfer.is_taken:
                    job.finish(0, error)
            finally:
                if transfer.is_taken and self.server.grants.handed(grant, total):
                    self._go_on(grant)

        try:
            await grant.writes.take(turn, self.account)
        except (Exception, Cancelled):
            if not transfer.is_taken:
                job.forget()
            raise
        return job

    async def sync_write(self, token: bytes, what: Buffers, offset: int = 0, length_bytes: int | None = None) -> int:
        """As `async_write`; returns when the memory may be used again."""
        return await self.job_wait(await self.async_write(token, what, offset, length_bytes))

    # ------------------------------------------------------------------------------------------ the end

    async def exit(self, *, is_dead: bool = False) -> None:
        """Give everything back, of all threads: connections, channels, capabilities, memory.

        Open sockets are closed, and sends that were posted get `EXIT_LINGER_PS` to be acknowledged. `is_dead`: the
        application raised or was killed, and its connections are dropped at once.
        """
        sockets, counters = list(self._process.sockets), self.counters
        counters.jobs_reclaimed += sum(len(socket.jobs) for socket in sockets)
        for grant in self.server.grants.of_holder(self._process):
            self._end_grant(grant, "who wrote with it has gone")
        for socket in sockets:
            for grant in self.server.grants.of_socket(socket):
                self._end_grant(grant, "the application has gone")
        for socket in sockets:
            if socket.state is SocketState.LISTENING:
                await self._let_go(socket)
                continue
            before, socket.state = socket.state, SocketState.CLOSED
            if socket.connection is None:
                self._process.sockets.pop(socket, None)
                continue
            if before is SocketState.CONNECTED:
                counters.connections_reclaimed += 1
                if not is_dead:
                    await self._close_behind_sends(socket)
            if is_dead or not await self._provider.wait_for_rest(socket.connection, EXIT_LINGER_PS, self.account):
                await self._abort(socket)
        while self._process.calls:
            await next(iter(self._process.calls))
        for region in list(self._process.regions):
            # Only writes to other applications' connections are left; their memory is theirs until they are over.
            while region.jobs:
                waiter = JobWaiter(f"the end of {next(iter(region.jobs))!r}", len(region.jobs),
                                   self._provider.charge_waking)
                for job in region.jobs:
                    job.add_waiter(waiter)
                await waiter.woken
            counters.regions_reclaimed += 1
            await self.deregister_mem(region)
        if self._process.pool is not None:
            await self._process.pool.close(self.account)
            self._process.pool = None

    # ------------------------------------------------------------------------------------------ jobs

    def _new_job(self, socket: MemNetSocket, what: Buffers, offset: int, length_bytes: int | None, call: str,
                 *, is_send: bool) -> tuple[tuple[Part, ...], Job]:
        parts = parts_of(what, offset, length_bytes)
        where = ", ".join(map(repr, parts)) if len(parts) < 4 else (
            f"{sum(part.length_bytes for part in parts)} bytes in {len(parts)} parts")
        doing = f"{call} of {where} on {socket!r}"
        check_parts(parts, self._process, doing)
        socket.check(self._process, doing, SocketState.CONNECTED)
        if socket.is_stream:
            raise BadSocket(f"{doing}: the socket belongs to a stream, which reads and writes by itself")
        if self._check_buffers:
            checking.refuse_overlap(parts, doing, is_send=is_send)
        job = Job(self, parts, doing, is_send=is_send)
        job.begin(is_watched=self._check_buffers)
        self._begin(socket, job)
        return parts, job

    def _begin(self, socket: MemNetSocket, job: Job) -> None:
        socket.jobs[job] = None
        job.on_over = lambda: self._forget(socket, job)

    def _forget(self, socket: MemNetSocket, job: Job) -> None:
        """A job is over, or was never taken."""
        job.forget()
        socket.jobs.pop(job, None)
        self._release_if_over(socket)

    async def _sleep_for(self, jobs: Sequence[Job], needed: int, timeout_ps: int | None) -> bool:
        """Sleep until `needed` of the jobs are done; False if they are not in time."""
        account = self.account

        def missing() -> int:
            return needed - sum(job.is_done for job in jobs)

        account.charge("user", "memnet_call")
        if missing() > 0:
            await account.settle()
        if missing() > 0:
            kernel = self._provider.kernel
            waiter = JobWaiter(jobs[0].description if len(jobs) == 1 else f"{missing()} of {len(jobs)} jobs",
                               missing(), self._provider.charge_waking)
            under_way = [job for job in jobs if not job.is_done]
            for job in under_way:
                job.add_waiter(waiter)
            timer = None if timeout_ps is None else kernel.call_at(kernel.now + timeout_ps, waiter.wake)
            try:
                await waiter.woken
            finally:
                for job in under_way:
                    job.remove_waiter(waiter)
                if timer is not None:
                    timer.cancel()
                self._provider.charge_sleep(account)
        await account.settle()
        return missing() <= 0

    async def _receive_from_ring(self, socket: MemNetSocket, end: ApplicationEnd, job: Job,
                                 parts: tuple[Part, ...]) -> None:
        """A receive of a socket that receives ahead."""
        socket.waiting_receives.append((job, parts))
        self._fill_receives(socket)
        if job.is_done:
            self.counters.receives_at_once += 1
        else:
            self.counters.receives_waited += 1
        await self.account.settle()

    def _fill_receives(self, socket: MemNetSocket) -> None:
        """Carry on with the receives of a socket that receives ahead."""
        end, worker, waiting = socket.end, socket.worker, socket.waiting_receives
        assert end is not None
        assert worker is not None
        while waiting and end.available_bytes:
            job, parts = waiting.pop(0)
            job.finish(sum(end.take(part.view()) for part in parts if end.available_bytes), None)
        while waiting and end.ended is not Ended.NOT and not end.available_bytes:
            job, _ = waiting.pop(0)
            job.finish(0, worker.error if end.ended is Ended.BY_ERROR else None)

    # ------------------------------------------------------------------------------------------ capabilities' turns

    def _grant_has_turn(self, grant: Grant) -> None:
        """All that the application sent before the grant has gone: its writes may go."""
        if grant.writes.open():
            self._spawn(grant.writes, f"writes with capability {grant.serial}")

    def _end_grant(self, grant: Grant, why: str) -> None:
        """Revoke a grant if it is open: writes that wait fail, and the application's own sends go on."""
        if self.server.grants.revoke(grant, why):
            if grant.writes.open():
                self._spawn(grant.writes, f"the end of capability {grant.serial}")
            self._go_on(grant)

    def _go_on(self, grant: Grant) -> None:
        """A grant has ended: what was sent behind it goes."""
        line = grant.socket.sends
        if line.lift(grant.barrier):
            self._spawn(line, f"sends behind capability {grant.serial}")

    def _spawn(self, line: SendLine, name: str) -> None:
        """Run a line on behalf of the TCP server, whatever becomes of whoever caused it."""
        self._provider.kernel.spawn(line.run(self._work), name)

    # ------------------------------------------------------------------------------------------ connections' ends

    async def _take_channel(self, socket: MemNetSocket) -> None:
        if self._process.pool is None:
            await self.start()
        pool = self._process.pool
        assert pool is not None
        socket.channel = pool.take_now() or await pool.take(self.account)

    def _connected(self, socket: MemNetSocket) -> None:
        socket.state = SocketState.CONNECTED
        self._process.sockets[socket] = None
        if self.eager_receive_bytes:
            self.use_rings(socket, self.eager_receive_bytes)
            assert socket.end is not None
            socket.end.on_news = lambda: self._fill_receives(socket)

    def use_rings(self, socket: MemNetSocket, receive_limit_bytes: int) -> ApplicationEnd:
        """Let a worker move bytes between the connection and the rings of the socket's channel; the application's end
        of them."""
        assert socket.channel is not None
        socket.end = ApplicationEnd(socket.channel, receive_limit_bytes, self.counters, self.account,
                                    self._provider.charge_waking)
        socket.worker = Worker(self.server, socket.channel, socket.connection, self._work, receive_limit_bytes)
        return socket.end

    async def _drop(self, socket: MemNetSocket) -> None:
        """A socket that did not come to be connected."""
        if socket.channel is not None and self._process.pool is not None:
            self._process.pool.give_back(socket.channel)
            socket.channel = None
        if socket.connection is not None:
            connection, socket.connection = socket.connection, None
            await self._provider.abort(connection, self.account)

    async def _let_go(self, socket: MemNetSocket) -> None:
        """Give a listening socket back, which ends when the last process that has it does so."""
        self._process.sockets.pop(socket, None)
        socket.holders.discard(self._process)
        if socket.holders:
            return
        socket.state = SocketState.CLOSED
        await self._to_its_end(self._stop_listening(socket), f"the end of {socket!r}")

    async def _stop_listening(self, socket: MemNetSocket) -> None:
        if socket.eager_accept is not None:
            await socket.eager_accept.close()
        await self._provider.stop_listening(socket.listening, self.account)

    async def _to_its_end(self, call: Coroutine[Any, Any, None], name: str) -> None:
        """Wait for a call that a process which is killed meanwhile does not leave half done."""
        task = self._provider.kernel.spawn(call, name)
        self._process.calls[task] = None
        task.add_callback(lambda _future: self._process.calls.pop(task))
        await task

    async def _close_behind_sends(self, socket: MemNetSocket) -> None:
        await socket.sends.take(lambda account: self._close_below(socket, account), self.account)

    async def _close_below(self, socket: MemNetSocket, account: Account) -> None:
        if socket.worker is not None:
            socket.worker.close(lambda: self._closed_below(socket))
        else:
            await self._provider.close(socket.connection, account)
            self._closed_below(socket)

    def _closed_below(self, socket: MemNetSocket) -> None:
        socket.is_closed_below = True
        for job, _ in socket.waiting_receives:
            job.finish(0, SocketClosed(f"{socket!r} is closed"))
        socket.waiting_receives.clear()
        self._release_if_over(socket)

    async def _abort(self, socket: MemNetSocket) -> None:
        for grant in self.server.grants.of_socket(socket):
            self._end_grant(grant, "the connection was dropped")
        socket.is_closed_below = True
        held = socket.sends.clear()
        await self._provider.abort(socket.connection, self.account)
        error = SocketClosed(f"{socket!r} was aborted")
        for entry in held:
            if isinstance(entry, _HeldSend) and not entry.job.is_done:
                entry.job.finish(0, error)
        for job, _ in socket.waiting_receives:
            job.finish(0, error)
        socket.waiting_receives.clear()
        self._release_if_over(socket)

    def _release_if_over(self, socket: MemNetSocket) -> None:
        """Give the channel of a closed socket back when its last job is over."""
        channel = socket.channel
        if not socket.is_closed_below or socket.jobs or channel is None:
            return
        socket.channel = None
        self._process.sockets.pop(socket, None)
        pool = self._process.pool
        assert pool is not None
        if socket.worker is None:
            pool.give_back(channel)
        else:
            socket.worker.stop(lambda: pool.give_back(channel))
