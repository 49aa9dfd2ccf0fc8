"""MemNet over a provider without TCP, driver and device: what it needs of one is the Protocol, and no more."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from cosim.memory import HostMemory
from host_driver import streams
from host_driver.account import Account, NullAccount
from host_driver.errors import AddressInUse, ConnectionRefused, NetworkError, SocketClosed
from host_driver.memnet import Application, ChannelSettings, Direction, MemNet, Option, TcpServer, Transfer
from host_driver.runtime import Kernel, Queue
from tests.host_driver.worlds import data

LATENCY_PS = 3_000_000
WINDOW_BYTES = 5000


@dataclass
class Key:
    value: int


class Pipe:
    """One direction of a connection: so many bytes under way at most, each transfer over when the other end has it."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.sends: deque[tuple[Transfer, deque[bytes]]] = deque()
        self.arrived = bytearray()
        self.under_way = 0
        self.receives: deque[Transfer] = deque()
        self.ended = False
        self.has_arrived_end = False
        self.is_dead = False

    def pump(self) -> None:
        while self.sends and self.under_way + len(self.arrived) < WINDOW_BYTES and not self.is_dead:
            transfer, pieces = self.sends[0]
            piece = pieces.popleft()
            self.under_way += len(piece)
            last = not pieces
            if last:
                self.sends.popleft()
            self._kernel.call_at(self._kernel.now + LATENCY_PS,
                                 lambda piece=piece, over=transfer if last else None: self._arrive(piece, over))
        if self.ended and not self.sends and not self.under_way and not self.has_arrived_end:
            self.has_arrived_end = True
        self.fill()

    def _arrive(self, piece: bytes, over: Transfer | None) -> None:
        self.under_way -= len(piece)
        if self.is_dead:
            return
        self.arrived += piece
        if over is not None:
            over.done(over.length_bytes, None)
        self.pump()

    def fill(self) -> None:
        while self.receives and (self.arrived or self.has_arrived_end):
            transfer, stored = self.receives.popleft(), 0
            for part in transfer.parts:
                take = bytes(self.arrived[: part.length_bytes])
                del self.arrived[: len(take)]
                part.view()[: len(take)] = take
                stored += len(take)
            transfer.done(stored, None)
            self._kernel.call_soon(self.pump)

    def die(self) -> None:
        self.is_dead = True
        error = SocketClosed("the pipe is gone")
        for queue in (deque(t for t, _ in self.sends), self.receives):
            for transfer in list(queue):
                transfer.done(0, error)
        self.sends.clear()
        self.receives.clear()


@dataclass
class End:
    out: Pipe
    into: Pipe
    names: tuple[tuple[str, int], tuple[str, int]]
    options: dict[Option, Any] = field(default_factory=dict)
    is_closed: bool = False


class Pipes:
    """Implements `Provider`: all connections lead back to this host."""

    own_address = "127.0.0.1"

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.memory = HostMemory(1 << 22)
        self.wakings = 0
        self.keys: set[int] = set()
        self._numbers = count(1)
        self._listening: dict[int, Queue[End]] = {}

    async def register(self, address: int, length_bytes: int, account: Account) -> Key:
        key = Key(next(self._numbers))
        self.keys.add(key.value)
        return key

    async def deregister(self, key: Key, account: Account) -> None:
        self.keys.remove(key.value)

    def find_port(self, ip: str | None, port: int, *, reuse: bool) -> int:
        if port in self._listening:
            raise AddressInUse(f"port {port}")
        return port

    def listen(self, port: int, backlog: int) -> Queue[End]:
        self._listening[port] = Queue(f"port {port}")
        return self._listening[port]

    async def accept(self, listening: Queue[End], account: Account) -> End:
        return await listening.get()

    async def stop_listening(self, listening: Queue[End], account: Account) -> None:
        self._listening = {port: queue for port, queue in self._listening.items() if queue is not listening}

    async def connect(self, ip: Any, port: int, local_port: int | None, options: dict[Option, Any],
                      account: Account) -> End:
        await self.kernel.sleep(LATENCY_PS)
        if port not in self._listening:
            raise ConnectionRefused(f"port {port}")
        there, back = Pipe(self.kernel), Pipe(self.kernel)
        names = (self.own_address, local_port or 40_000), (self.own_address, port)
        self._listening[port].put(End(back, there, names[::-1]))
        return End(there, back, names, options)

    def addresses(self, connection: End) -> tuple[tuple[str, int], tuple[str, int]]:
        return connection.names

    def set_options(self, connection: End, options: dict[Option, Any], account: Account) -> None:
        connection.options = options

    async def send(self, connection: End, transfer: Transfer, account: Account) -> None:
        if connection.out.ended or connection.out.is_dead:
            raise SocketClosed("send")
        transfer.is_taken = True
        contents = b"".join(part.view() for part in transfer.parts)
        pieces = deque(contents[at : at + 1000] for at in range(0, len(contents), 1000))
        connection.out.sends.append((transfer, pieces))
        connection.out.pump()

    async def receive(self, connection: End, transfer: Transfer, account: Account) -> None:
        if connection.is_closed or connection.into.is_dead:
            raise SocketClosed("receive")
        transfer.is_taken = True
        connection.into.receives.append(transfer)
        connection.into.fill()

    def charge_waking(self) -> None:
        self.wakings += 1

    async def shutdown(self, connection: End, direction: Direction, account: Account) -> None:
        if Direction.SEND in direction:
            connection.out.ended = True
            connection.out.pump()

    async def close(self, connection: End, account: Account) -> None:
        connection.is_closed = True
        while connection.into.receives:
            connection.into.receives.popleft().done(0, SocketClosed("closed"))
        await self.shutdown(connection, Direction.SEND, account)

    async def open_channels(self, wanted: int, account: Account) -> int:
        return wanted

    def charge_sleep(self, account: Account) -> None:
        account.charge("context_switch", "switch")

    async def close_channels(self, count: int, account: Account) -> None:
        pass

    async def abort(self, connection: End, account: Account) -> None:
        connection.is_closed = connection.out.ended = True
        connection.out.die()
        connection.into.die()

    def is_at_rest(self, connection: End) -> bool:
        return connection.out.is_dead or connection.out.has_arrived_end

    async def wait_for_rest(self, connection: End, timeout_ps: int | None, account: Account) -> bool:
        until = self.kernel.now + (timeout_ps or 0)
        while not self.is_at_rest(connection) and (timeout_ps is None or self.kernel.now < until):
            await self.kernel.sleep(LATENCY_PS)
        return self.is_at_rest(connection)


def run(serve: Any, ask: Any, **memnet: Any) -> tuple[Any, Any, TcpServer]:
    kernel = Kernel()
    provider = Pipes(kernel)
    server = TcpServer(provider, rng=random.Random(4))
    applications = [Application(kernel, MemNet(server, NullAccount(), **memnet), main, name)
                    for main, name in ((serve, "server"), (ask, "client"))]
    for application in applications:
        application.over.add_callback(lambda _task: None)
    kernel.run_while(lambda: not all(application.over.done for application in applications))
    for application in applications:
        assert application.over.done, f"{application!r}: {[(t.name, t.waits_for) for t in kernel.tasks]}"
        application.over.result()
        if application.error is not None:
            raise application.error
    assert provider.keys == set()
    assert provider.memory._taken == {}
    assert server.channels == 0
    return applications[0].result, applications[1].result, server


@pytest.mark.parametrize("ahead", [0, 4096])
@pytest.mark.parametrize("check", [False, True])
def test_jobs_both_ways(ahead: int, check: bool) -> None:
    contents = data(60_000)

    async def serve(memnet: MemNet) -> bytes:
        socket = await memnet.accept(memnet.listen(7))
        region, got = await memnet.register_mem(3000), bytearray()
        while length := await memnet.sync_recv(socket, region):
            got += region.view[:length]
        region = await memnet.register_mem(got)
        jobs = [await memnet.async_send(socket, [region.part(at, 300), region.part(at + 300, 700)])
                for at in range(0, len(got), 1000)]
        await memnet.close(socket)
        assert await memnet.job_wait_all(jobs) == [1000] * 60
        return bytes(got)

    async def ask(memnet: MemNet) -> bytes:
        socket = await memnet.create_connection("127.0.0.1", 7)
        await memnet.sync_send(socket, await memnet.register_mem(contents))
        await memnet.shutdown(socket, Direction.SEND)
        region, got = await memnet.register_mem(10_000), bytearray()
        while length := await memnet.sync_recv(socket, region):
            got += region.view[:length]
        await memnet.close(socket)
        return bytes(got)

    server, client, tcp_server = run(serve, ask, eager_receive_bytes=ahead, check=check)
    assert server == client == contents
    assert (tcp_server.counters.received_ahead_bytes > 0) == bool(ahead)


def test_capabilities_and_what_is_behind_them() -> None:
    tokens: Queue[bytes] = Queue("tokens")

    async def serve(memnet: MemNet) -> None:
        socket = await memnet.accept(memnet.listen(7))
        region = await memnet.register_mem(b"ab")
        await memnet.async_send(socket, region, 0, 1)
        capability = await memnet.grant(socket, 9000)
        behind = await memnet.async_send(socket, region, 1, 1)
        tokens.put(capability.token)
        await memnet.job_wait_all([capability.job, behind])
        await memnet.close(socket)

    async def ask(memnet: MemNet) -> bytes:
        socket = await memnet.create_connection("127.0.0.1", 7)
        job = await memnet.async_write(await tokens.get(), await memnet.register_mem(data(9000)))
        region, got = await memnet.register_mem(1000), b""
        while length := await memnet.sync_recv(socket, region):
            got += region.view[:length]
        assert await job == 9000
        return got

    assert run(serve, ask)[1] == b"a" + data(9000) + b"b"


def test_streams_and_a_refused_connection() -> None:
    contents = data(100_000)

    async def serve(_memnet: MemNet) -> None:
        async def handle(reader: streams.StreamReader, writer: streams.StreamWriter) -> None:
            writer.write(await reader.read())
            writer.close()
            await writer.wait_closed()
            done.set()

        done = streams.Event()
        async with await streams.start_server(handle, port=7):
            await done.wait()

    async def ask(memnet: MemNet) -> bytes:
        with pytest.raises(ConnectionRefused):
            await streams.open_connection("127.0.0.1", 8)
        reader, writer = await streams.open_connection("127.0.0.1", 7)
        writer.write(contents)
        writer.write_eof()
        return await reader.read()

    settings = ChannelSettings(channels=1, send_bytes=4096, receive_bytes=2048)
    _, got, server = run(serve, ask, channels=settings)
    assert got == contents
    assert server.counters.credit_stalls > 10


def test_an_aborted_connection_fails_both_ends() -> None:
    async def serve(memnet: MemNet) -> None:
        socket = await memnet.accept(memnet.listen(7))
        job = await memnet.async_send(socket, await memnet.register_mem(50_000))
        await memnet.abort(socket)
        with pytest.raises(NetworkError):
            await job

    async def ask(memnet: MemNet) -> None:
        socket = await memnet.create_connection("127.0.0.1", 7)
        region = await memnet.register_mem(100)
        with pytest.raises(NetworkError):
            await memnet.job_wait_all([await memnet.async_recv(socket, region.part(at, 1)) for at in range(100)])

    run(serve, ask)
