"""Whose work a segment is that comes while a system call holds the socket: the caller's, when the call lets go."""

from __future__ import annotations

from collections import Counter

import pytest

from cosim.world import World
from host_driver.account import Account
from host_driver.kernel_sockets import KernelSockets, Socket
from host_driver.memnet import MemNet
from host_driver.runtime import Task
from host_driver.tcp import LINUX24
from host_driver.tcp.connection import Connection
from tests.host_driver.worlds import MS, PORT, connected, data, receive_all

US = 10**6


class Watched:
    """An account, and what it was charged."""

    def __init__(self, account: Account) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._account = account

    def charge(self, category: str, item: str, count: int = 1) -> None:
        self.counts[category, item] += count
        self._account.charge(category, item, count)

    async def settle(self) -> None:
        await self._account.settle()


def over_tcp(length: int, pause_ps: int = 0) -> tuple[World, Watched, bytes]:
    """A server process that writes `length` bytes to a client, which takes a pause before it reads."""
    world = World(machine="p2-300-smp2", profile=LINUX24, seed=3)
    watched = Watched(world.server.process_account("writer"))
    sent, got = data(length), bytearray()

    async def serve(memnet: MemNet) -> None:
        sockets = KernelSockets(world.server.interface, watched)
        socket = await sockets.accept(sockets.listen(PORT))
        await socket.write(sent)
        await socket.close()

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        await world.kernel.sleep(pause_ps)
        got.extend(await receive_all(memnet, socket))

    world.start(world.server, serve, "server")
    world.start(world.client, ask, "client")
    world.run()
    assert bytes(got) == sent
    return world, watched, bytes(got)


def test_acknowledgements_that_come_during_a_write_are_the_work_of_its_caller() -> None:
    world, watched, _ = over_tcp(32 * 1024)
    assert world.server.processors is not None
    counts = world.server.processors.counts
    # Each packet comes up to IP in the softirq; TCP's part of those that come while the process copies is its own.
    assert watched.counts["softirq", "packet"] == watched.counts["ip", "receive"] == 0
    own = watched.counts["tcp_recv", "ack"]
    assert own == 2
    assert own < counts["tcp_recv", "ack"]
    # So it sends what they let go: more than the first two segments, which TCP may send before any has come.
    assert watched.counts["copy", "retransmit_byte"] > 2 * 1460


def test_a_process_that_sleeps_in_a_write_leaves_them_to_the_softirq() -> None:
    # The client reads late: the kernel's buffers fill, and the process sleeps in its call until there is room.
    world, watched, _ = over_tcp(400 * 1024, pause_ps=100 * MS)
    assert world.server.processors is not None
    counts = world.server.processors.counts
    assert counts["context_switch", "wake"] > 3
    assert counts["tcp_recv", "ack"] > watched.counts["tcp_recv", "ack"] > 0


class Locked:
    """A connection of a server that nothing else works on, and its process."""

    def __init__(self) -> None:
        self.world = World(machine="p2-300-smp2", seed=3)
        self.socket: Socket
        self.connection: Connection
        self.account = Watched(self.world.server.process_account("holder"))
        self.got = bytearray()

    def run(self, serve, send: bytes = b"late") -> None:  # type: ignore[no-untyped-def]
        """`serve(self)` on the server; the client sends 5 ms after its connection is there, and ends 5 ms later."""
        world = self.world

        async def accept(memnet: MemNet) -> None:
            sockets = KernelSockets(world.server.interface, self.account)
            self.socket = await sockets.accept(sockets.listen(PORT))
            self.connection = self.socket._connection
            await serve(self)

        async def ask(memnet: MemNet) -> None:
            socket = await connected(memnet, world)
            region = await memnet.register_mem(1 << 12)
            region.view[: len(send)] = send
            await world.kernel.sleep(5 * MS)
            job = await memnet.async_send(socket, region, 0, len(send))
            await world.kernel.sleep(5 * MS)
            await job
            await memnet.close(socket)

        world.start(world.server, accept, "server")
        world.start(world.client, ask, "client")
        world.run()


def test_what_comes_waits_for_the_lock_and_is_answered_when_it_is_free() -> None:
    bench = Locked()

    async def serve(bench: Locked) -> None:
        endpoint, kernel = bench.socket._endpoint, bench.world.kernel
        async with endpoint.lock.held(bench.account):
            await kernel.sleep(8 * MS)
            assert bench.connection.backlog is not None
            assert len(bench.connection.backlog) == 1
            assert bench.connection.recv_available == 0
            assert bench.account.counts["tcp_recv", "data_segment"] == 0
        assert endpoint.lock.is_free
        assert bench.connection.recv_available == 4
        assert bench.account.counts["tcp_recv", "data_segment"] == 1
        assert await bench.socket.read(100) == b"late"
        assert await bench.socket.read(100) == b""
        await bench.socket.close()

    bench.run(serve)


def test_the_second_who_wants_the_lock_sleeps_until_the_first_lets_go() -> None:
    bench, log = Locked(), list[str]()

    async def serve(bench: Locked) -> None:
        endpoint, kernel = bench.socket._endpoint, bench.world.kernel
        other = Watched(bench.world.server.process_account("other"))

        async def second() -> None:
            async with endpoint.lock.held(other):
                log.append("second has it")

        async with endpoint.lock.held(bench.account):
            task = kernel.spawn(second(), "second")
            await kernel.sleep(MS)
            log.append("first lets go")
        await task
        assert other.counts["context_switch", "switch"] == 1
        assert bench.account.counts["context_switch", "wake"] == 1
        await bench.socket.read(100)
        await bench.socket.close()

    bench.run(serve)
    assert log == ["first lets go", "second has it"]


@pytest.mark.parametrize("when", ["holds it", "waits for it", "sleeps"])
def test_a_process_that_is_killed_leaves_the_lock_free_and_what_came_is_done(when: str) -> None:
    bench = Locked()

    async def serve(bench: Locked) -> None:
        endpoint, kernel = bench.socket._endpoint, bench.world.kernel
        victim = Watched(bench.world.server.process_account("victim"))

        async def work() -> None:
            async with endpoint.lock.held(victim) as held:
                if when == "sleeps":
                    await held.sleep(lambda: False, endpoint.sleep)
                await kernel.sleep(1000 * MS)

        async def holder() -> None:
            async with endpoint.lock.held(bench.account):
                await kernel.sleep(7 * MS)

        first: Task[None] | None = kernel.spawn(holder(), "holder") if when == "waits for it" else None
        await kernel.sleep(MS)
        task = kernel.spawn(work(), "victim")
        await kernel.sleep(5 * MS)
        assert endpoint.lock.is_free == (when == "sleeps")
        task.cancel()
        if first is not None:
            await first
        await kernel.sleep(10 * US)
        assert endpoint.lock.is_free
        assert await bench.socket.read(100) == b"late"
        await bench.socket.close()

    bench.run(serve)
