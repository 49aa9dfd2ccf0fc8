"""Capabilities: a file server writes to an application's connection, and nobody else does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cosim.world import World
from host_driver import streams
from host_driver.errors import (
    BadSocket,
    CapabilityForged,
    CapabilityOverrun,
    CapabilityRevoked,
    CapabilityUsed,
    NetworkError,
    PeerReset,
)
from host_driver.memnet import Capability, Job, MemNet
from host_driver.memnet.grants import TOKEN_BYTES
from host_driver.runtime import Queue
from tests.host_driver.worlds import MS, PORT, SECOND, Main, accepted, connected, data, receive_all, run

FILE = data(60_000, 9)


class FileServer:
    """A process of its own: writes its file with each token that it is given, so many bytes at a time."""

    def __init__(self, world: World, *, piece_bytes: int = 7000, length_bytes: int = len(FILE),
                 before_each: Callable[[int], object] = lambda at: None) -> None:
        self.asked: Queue[bytes] = Queue("requests for files")
        self.errors: list[NetworkError] = []
        self.written = 0
        self._world = world
        self._piece_bytes = piece_bytes
        self._length_bytes = length_bytes
        self._before_each = before_each
        self.started = world.start(world.server, self.run, "file server", background=True)

    async def run(self, memnet: MemNet) -> None:
        region = await memnet.register_mem(FILE)
        while True:
            token = await self.asked.get()
            try:
                for at in range(0, self._length_bytes, self._piece_bytes):
                    self._before_each(at)
                    length = min(self._piece_bytes, self._length_bytes - at)
                    await memnet.async_write(token, region, at, length)
                    self.written += length
                    await self._world.kernel.sleep(1000)
            except NetworkError as error:
                self.errors.append(error)


def reader(world: World) -> Main:
    async def ask(memnet: MemNet) -> bytes:
        return await receive_all(memnet, await connected(memnet, world))
    return ask


def test_a_file_goes_from_the_file_server_to_the_client_past_the_application() -> None:
    world = World(machine="p2-300-smp2")
    files = FileServer(world)

    async def serve(memnet: MemNet) -> tuple[int, bytes]:
        socket = await accepted(memnet)
        region = await memnet.register_mem(b"head." + b"tail." + bytes(90))
        await memnet.async_send(socket, region, 0, 5)
        capability = await memnet.grant(socket, len(FILE))
        files.asked.put(capability.token)
        tail = await memnet.async_send(socket, region, 5, 5)
        assert await capability.job == len(FILE)
        assert await tail == 5
        await memnet.close(socket)
        return len(capability.token), bytes(region.view)

    result, got = run(world, serve, reader(world))
    assert got == b"head." + FILE + b"tail."
    assert result == (TOKEN_BYTES, b"head." + b"tail." + bytes(90)), "the application's memory never held the file"
    counters = world.server.counters
    assert (counters.capabilities_granted, counters.capabilities_used, counters.capability_bytes) == (1, 1, len(FILE))
    assert files.errors == []


def test_grants_and_sends_keep_their_order_even_when_the_later_file_server_is_quicker() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        other = MemNet(memnet.server, memnet.account)
        socket = await accepted(memnet)
        region = await memnet.register_mem(b"ABCDEFGHIJ")
        first = await memnet.grant(socket, 4)
        await memnet.async_send(socket, region, 0, 1)
        second = await memnet.grant(socket, 3)
        last = await memnet.async_send(socket, region, 1, 1)
        await memnet.close(socket)
        file = await other.register_mem(b"1234567")
        await other.async_write(second.token, file, 4, 3)
        await other.async_write(first.token, file, 0, 2)
        await world.kernel.sleep(MS)
        assert not last.is_done
        await other.async_write(first.token, file, 2, 2)
        await memnet.job_wait_all([first.job, second.job, last])
        await other.exit()

    assert run(world, serve, reader(world))[1] == b"1234A567B"


def test_what_is_refused_and_counted() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        other = MemNet(memnet.server, memnet.account)
        socket = await accepted(memnet)
        file = await other.register_mem(b"0123456789")
        capability = await memnet.grant(socket, 6)
        token, counters = capability.token, memnet.counters
        longer = token[:8] + (1000).to_bytes(8, "big") + token[16:]
        other_serial = (5).to_bytes(8, "big") + token[8:]
        for forged in (longer, other_serial, token[:-1], token + b"\0", b"", bytes(TOKEN_BYTES)):
            with pytest.raises(CapabilityForged, match="never made the token"):
                await other.async_write(forged, file, 0, 1)
        assert counters.refused_forged == 6
        with pytest.raises(CapabilityOverrun, match="for 6 bytes, 0 of them written: 7 more do not fit"):
            await other.async_write(token, file, 0, 7)
        assert await other.sync_write(token, file, 0, 4) == 4
        with pytest.raises(CapabilityOverrun, match="4 of them written: 3 more"):
            await other.async_write(token, file, 4, 3)
        assert counters.refused_overrun == 2
        assert await other.sync_write(token, file, 4, 2) == 2
        assert await capability.job == 6
        with pytest.raises(CapabilityUsed, match="all its 6 bytes were written"):
            await other.async_write(token, file, 0, 1)
        assert counters.refused_reused == 1
        revoked = await memnet.grant(socket, 6)
        assert await memnet.revoke(revoked) == 0
        with pytest.raises(CapabilityRevoked, match="was revoked"):
            await other.async_write(revoked.token, file, 0, 1)
        with pytest.raises(CapabilityRevoked, match="0 of 6 bytes"):
            await revoked.job
        assert (counters.refused_revoked, counters.capabilities_revoked) == (1, 1)
        assert await memnet.revoke(capability) == 6, "one that is used up is not revoked any more"
        assert counters.capabilities_revoked == 1
        assert file.jobs == {}
        with pytest.raises(ValueError, match="at least 1 byte"):
            await memnet.grant(socket, 0)
        await memnet.close(socket)
        with pytest.raises(NetworkError):
            await memnet.grant(socket, 1)
        await other.exit()

    assert run(world, serve, reader(world))[1] == b"012345"


def test_a_token_of_another_tcp_server_is_worth_nothing() -> None:
    world = World()

    async def serve(memnet: MemNet) -> bytes:
        socket = await accepted(memnet)
        capability = await memnet.grant(socket, 3)
        await world.kernel.sleep(SECOND)
        await memnet.abort(socket)
        return capability.token

    async def ask(memnet: MemNet) -> None:
        await connected(memnet, world)
        await world.kernel.sleep(MS)
        grant = next(iter(world.server.tcp_server.grants._open.values()))
        with pytest.raises(CapabilityForged):
            await memnet.async_write(grant.token, await memnet.register_mem(b"abc"))

    run(world, serve, ask)


def test_revoked_in_the_middle_what_was_written_stays_and_the_application_goes_on() -> None:
    world = World()
    capabilities: list[Capability] = []
    files = FileServer(world, before_each=lambda at: at == 14_000 and world.kernel.call_soon(take_back.set_now))

    class TakeBack:
        def __init__(self) -> None:
            self.is_due = False

        def set_now(self) -> None:
            self.is_due = True

    take_back = TakeBack()

    async def serve(memnet: MemNet) -> int:
        socket = await accepted(memnet)
        capabilities.append(await memnet.grant(socket, len(FILE)))
        files.asked.put(capabilities[0].token)
        job = await memnet.async_send(socket, await memnet.register_mem(b"behind"))
        while not take_back.is_due:
            await world.kernel.sleep(100)
        written = await memnet.revoke(capabilities[0])
        assert await job == 6
        with pytest.raises(CapabilityRevoked, match="the application took it back"):
            await capabilities[0].job
        await memnet.close(socket)
        return written

    written, got = run(world, serve, reader(world))
    assert 0 < written < len(FILE)
    assert got == FILE[:written] + b"behind"
    assert len(files.errors) == 1
    assert isinstance(files.errors[0], CapabilityRevoked)


def test_a_file_server_that_dies_frees_the_application() -> None:
    world = World()
    files = FileServer(world, length_bytes=20_000)  # writes less than it was asked for, and waits

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        capability = await memnet.grant(socket, len(FILE))
        files.asked.put(capability.token)
        behind = await memnet.async_send(socket, await memnet.register_mem(b"sorry"))
        await world.kernel.sleep(10 * MS)
        assert not behind.is_done
        files.started.kill()
        with pytest.raises(CapabilityRevoked, match="who wrote with it has gone, 20000 of 60000 bytes"):
            await capability.job
        await behind
        await memnet.close(socket)

    assert run(world, serve, reader(world))[1] == FILE[:20_000] + b"sorry"


def test_memory_of_a_dead_file_server_is_kept_until_the_client_has_what_was_written() -> None:
    world = World()
    files = FileServer(world)

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        capability = await memnet.grant(socket, len(FILE))
        files.asked.put(capability.token)
        while files.written < len(FILE):
            await world.kernel.sleep(1000)
        files.started.kill()
        assert not capability.job.is_done
        assert await capability.job == len(FILE)
        await memnet.close(socket)

    async def ask(memnet: MemNet) -> bytes:
        socket = await connected(memnet, world)
        await world.kernel.sleep(SECOND)  # its window is full meanwhile
        return await receive_all(memnet, socket)

    assert run(world, serve, ask)[1] == FILE


def test_a_connection_that_fails_ends_its_capabilities() -> None:
    world = World()
    files = FileServer(world)

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        await world.kernel.sleep(10 * MS)
        capability = await memnet.grant(socket, len(FILE))
        behind = await memnet.async_send(socket, await memnet.register_mem(b"behind"))
        files.asked.put(capability.token)
        with pytest.raises(CapabilityRevoked, match="the connection failed"):
            await capability.job
        with pytest.raises(PeerReset):
            await behind

    async def ask(memnet: MemNet) -> None:
        await memnet.abort(await connected(memnet, world))

    run(world, serve, ask)
    assert len(files.errors) == 1


def test_a_socket_that_is_dropped_ends_its_capabilities_and_what_waits_behind_them() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        region = await memnet.register_mem(10)
        capability = await memnet.grant(socket, 5)
        behind: Job = await memnet.async_send(socket, region)
        await memnet.abort(socket)
        for job in (capability.job, behind):
            with pytest.raises(NetworkError):
                await job
        assert region.jobs == {}

    async def ask(memnet: MemNet) -> None:
        with pytest.raises(PeerReset):
            await receive_all(memnet, await connected(memnet, world))

    run(world, serve, ask)


def test_streams_grant_nothing() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        socket = memnet.listen(PORT)
        connection = await memnet.accept(socket)
        streams._Stream(memnet, connection, streams.Application.current())
        with pytest.raises(BadSocket, match="belongs to a stream"):
            await memnet.grant(connection, 5)
        with pytest.raises(BadSocket, match="belongs to a stream"):
            await memnet.async_send(connection, await memnet.register_mem(5))

    run(world, serve, reader(world))
