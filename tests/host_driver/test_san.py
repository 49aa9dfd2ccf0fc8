"""MemNet over a SAN: host and TCP server node, what passes between them, and that nothing is left behind."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cosim.impairments import BothWays, Impairments
from cosim.world import Started, TcpNodes, World
from host_driver import streams
from host_driver.errors import (
    AddressInUse,
    ChannelRefused,
    ConnectionRefused,
    NetworkError,
    PeerReset,
    SocketClosed,
)
from host_driver.memnet import AdmitByLoad, ChannelSettings, MemNet, Outcome
from host_driver.memnet.credits import Word
from host_driver.san.messages import (
    Answer,
    Answered,
    Call,
    Lane,
    Request,
    answer_immediate,
    data_immediate,
    format_request,
    parse_answer,
    parse_data_immediate,
    parse_request,
)
from host_driver.san.node import NodeSettings
from host_driver.san.provider import SanTcp
from tests.host_driver.worlds import MS, SECOND, accepted, connected, data, receive_all

DESIGNS = ("sockets", "shared", "kernel")


def san_world(design: Any = "sockets", count: int = 1, settings: NodeSettings | None = None, **more: Any) -> World:
    return World(tcp_nodes=TcpNodes(design=design, count=count, settings=settings or NodeSettings()), **more)


def san_of(world: World) -> SanTcp:
    san = world.server.tcp_server.provider
    assert isinstance(san, SanTcp)
    return san


def check_left(world: World) -> None:
    """Nothing is left of the applications, at either end of the SAN."""
    world.kernel.run_until(world.kernel.now + 10 * SECOND)
    san = san_of(world)
    assert not any(san._vis)
    assert not any(san._free)
    assert (san._bases, san._local_ports, san._listening) == ({}, {}, {})
    assert len(san.memory._taken) == len(world.nodes)  # type: ignore[attr-defined]
    assert world.server.tcp_server.channels == 0
    for node in world.nodes:
        assert node.vis == len(node.workers) == 1, "VIs were not given back"
        assert (node.listening, node.eager) == ({}, {})
    waiting = [task.name for task in world.kernel.tasks if "receiving ahead" in task.name or "accept" in task.name]
    assert waiting == []


def run(world: World, serve: Any, ask: Any, **memnet: Any) -> tuple[Any, Any]:
    server: Started = world.start(world.server, serve, "server", **memnet)
    client: Started = world.start(world.client, ask, "client")
    world.run()
    check_left(world)
    return server.result, client.result


# ---------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("design", "count", "ring_bytes"), [("sockets", 1, 65536), ("sockets", 2, 1024),
                                                             ("shared", 1, 4096), ("kernel", 2, 65536)])
def test_many_jobs_both_ways_over_a_lossy_wire(design: str, count: int, ring_bytes: int, seed: int) -> None:
    """Random lengths and parts, some longer than the send ring, and more than may be under way; every byte is
    compared."""
    rng = random.Random(seed)
    lossy = BothWays(outbound=Impairments(loss=0.02), inbound=Impairments(loss=0.02), seed=seed)
    world = san_world(design, count, NodeSettings(ring_bytes=ring_bytes, receive_bytes=2048), impairments=lossy,
                      seed=seed)
    lengths = [rng.choice([1, 1, 7, 100, 1460, rng.randrange(1, 20000)]) for _ in range(40)]
    there, back = data(sum(lengths), seed), data(50000, seed + 100)

    async def serve(memnet: MemNet) -> bytes:
        socket = await accepted(memnet)
        region = await memnet.register_mem(there)
        jobs, at = [], 0
        for length in lengths:
            split = rng.randrange(length)
            parts = [part for part in (region.part(at, split), region.part(at + split, length - split))
                     if part.length_bytes]
            jobs.append(await memnet.async_send(socket, parts))
            at += length
        got = await receive_all(memnet, socket)
        assert await memnet.job_wait_all(jobs) == lengths
        await memnet.close(socket)
        return got

    async def ask(memnet: MemNet) -> bytes:
        socket = await connected(memnet, world)
        await memnet.async_send(socket, await memnet.register_mem(back))
        got = bytearray()
        region = await memnet.register_mem(4096)
        while len(got) < len(there):
            got += region.view[: await memnet.sync_recv(socket, region)]
        await memnet.close(socket)
        return bytes(got)

    assert run(world, serve, ask) == (back, there), f"seed {seed}"


def test_a_connection_from_the_host() -> None:
    """The nodes in turn; a port that nobody listens on refuses."""
    world = san_world(count=2)

    async def serve(memnet: MemNet) -> list[str]:
        await world.kernel.sleep(MS)
        with pytest.raises(ConnectionRefused):
            await memnet.create_connection(world.client.ip, 99)
        own = []
        for _ in range(2):
            socket = await memnet.create_connection(world.client.ip, 7)
            own.append(memnet.getsockname(socket)[0])
            assert memnet.getpeername(socket) == (world.client.ip, 7)
            await memnet.sync_send(socket, await memnet.register_mem(b"hello"))
            await memnet.close(socket)
        return own

    async def ask(memnet: MemNet) -> bytes:
        listening = memnet.listen(7)
        got = b""
        for _ in range(2):
            socket = await memnet.accept(listening)
            got += await receive_all(memnet, socket)
            await memnet.close(socket)
        return got

    own, got = run(world, serve, ask)
    assert len(set(own)) == 2
    assert got == b"hellohello"


def test_streams_over_a_san() -> None:
    world = san_world()

    async def upper(reader: streams.StreamReader, writer: streams.StreamWriter) -> None:
        async for line in reader:
            writer.write(line.upper())
            await writer.drain()
        writer.close()

    async def serve(_memnet: MemNet) -> None:
        server = await streams.start_server(upper, world.server.ip, 7)
        async with server:
            await streams.sleep(1)

    async def ask(_memnet: MemNet) -> bytes:
        await streams.sleep(0.002)
        reader, writer = await streams.open_connection(world.server.ip, 7)
        writer.write(b"hello\nworld\n")
        writer.write_eof()
        return await reader.read()

    assert run(world, serve, ask)[1] == b"HELLO\nWORLD\n"


# ---------------------------------------------------------------------------------------------- eager nodes


@pytest.mark.parametrize("design", DESIGNS)
def test_a_node_receives_ahead_up_to_its_limit(design: str) -> None:
    world = san_world(design, settings=NodeSettings(eager_receive_bytes=3000))
    sent = data(100_000)

    async def serve(memnet: MemNet) -> bytes:
        socket = await accepted(memnet)
        await world.kernel.sleep(100 * MS)
        ahead = world.nodes[0].server.counters.received_ahead_bytes
        assert ahead == 3000
        got = await receive_all(memnet, socket)
        await memnet.close(socket)
        return got

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        await memnet.sync_send(socket, await memnet.register_mem(sent))
        await memnet.close(socket)

    assert run(world, serve, ask)[0] == sent
    counters = world.nodes[0].server.counters
    assert counters.received_ahead_bytes == len(sent)
    assert counters.receive_ahead_stops > 0


def test_a_node_accepts_ahead_up_to_its_maximum() -> None:
    world = san_world(settings=NodeSettings(eager_accept=3))

    async def serve(memnet: MemNet) -> int:
        listening = memnet.listen(7)
        await memnet.start()
        await world.kernel.sleep(100 * MS)
        counters = world.nodes[0].server.counters
        assert (counters.accepted_ahead, counters.accept_ahead_stops) == (3, 1)
        sockets = [await memnet.accept(listening) for _ in range(5)]
        for socket in sockets:
            await memnet.close(socket)
        await memnet.close(listening)
        return counters.accepts_at_once

    async def ask(memnet: MemNet) -> None:
        sockets = [await connected(memnet, world) for _ in range(5)]
        for socket in sockets:
            assert await receive_all(memnet, socket) == b""
            await memnet.close(socket)

    assert run(world, serve, ask)[0] >= 3


# ---------------------------------------------------------------------------------------------- VIs by load


def test_the_node_rejects_vis_by_its_load_and_the_pool_makes_do() -> None:
    world = san_world(admission=AdmitByLoad(max_channels=2))

    async def serve(memnet: MemNet) -> int:
        await memnet.start()
        assert memnet.pool is not None
        granted = len(memnet.pool.channels)
        listening = memnet.listen(7)
        for _ in range(3):
            socket = await memnet.accept(listening)
            assert await receive_all(memnet, socket) == b"x"
            await memnet.close(socket)
        await memnet.close(listening)
        return granted

    async def ask(memnet: MemNet) -> None:
        for _ in range(3):
            socket = await connected(memnet, world)
            await memnet.sync_send(socket, await memnet.register_mem(b"x"))
            await memnet.close(socket)

    assert run(world, serve, ask, channels=ChannelSettings(channels=4, max_channels=4))[0] == 2
    assert world.nodes[0].server.counters.channels_rejected == 2


def test_a_node_that_grants_none_is_an_error() -> None:
    world = san_world(admission=AdmitByLoad(max_channels=0))

    async def serve(memnet: MemNet) -> None:
        with pytest.raises(ChannelRefused):
            await memnet.start()

    async def nothing(_memnet: MemNet) -> None:
        pass

    run(world, serve, nothing)


# ---------------------------------------------------------------------------------------------- ends


def test_close_and_abort_fail_what_waits() -> None:
    world = san_world()

    async def serve(memnet: MemNet) -> None:
        for end in (memnet.close, memnet.abort):
            socket = await accepted(memnet)
            job = await memnet.async_recv(socket, await memnet.register_mem(10))
            await end(socket)
            with pytest.raises(NetworkError):
                await job
            with pytest.raises(SocketClosed):
                await memnet.async_send(socket, await memnet.register_mem(10))

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        assert await receive_all(memnet, socket) == b""
        await memnet.close(socket)
        socket = await connected(memnet, world)
        with pytest.raises(PeerReset):
            await receive_all(memnet, socket)

    run(world, serve, ask)


def test_a_reset_of_the_peer_is_told_with_the_next_call() -> None:
    """An asynchronous send is over when the node has it; what becomes of it there, later calls say."""
    world = san_world()

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        region = await memnet.register_mem(1000)
        with pytest.raises(PeerReset):
            await memnet.sync_recv(socket, region)
        assert await (await memnet.async_send(socket, region)) == 1000
        await world.kernel.sleep(MS)
        with pytest.raises(NetworkError):
            await memnet.async_send(socket, region)
        await memnet.close(socket)

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        await world.kernel.sleep(MS)
        await memnet.abort(socket)

    run(world, serve, ask)


def test_a_port_is_listened_on_once() -> None:
    world = san_world(count=2)

    async def serve(memnet: MemNet) -> None:
        listening = memnet.listen(7)
        with pytest.raises(AddressInUse):
            memnet.listen(7)
        await memnet.close(listening)
        again = memnet.listen(7)
        socket = await memnet.accept(again)
        await memnet.close(socket)
        await memnet.close(again)

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        await receive_all(memnet, socket)

    run(world, serve, ask)


@pytest.mark.parametrize("settings", [NodeSettings(), NodeSettings(eager_accept=2, eager_receive_bytes=1000)],
                         ids=["plain", "eager"])
def test_an_application_that_is_killed_at_any_time_leaves_nothing(settings: NodeSettings) -> None:
    """Killed a little later each time, from its first call to its end; the next one is served."""
    sent = data(30_000)
    for step in range(18):
        world = san_world(settings=settings, seed=step)

        async def victim(memnet: MemNet) -> None:
            listening = memnet.listen(8)
            region = await memnet.register_mem(sent)
            socket = await memnet.accept(listening)
            await memnet.async_recv(socket, await memnet.register_mem(10))
            await memnet.async_send(socket, region)
            await memnet.sync_send(socket, region)
            await memnet.close(socket)

        async def serve(memnet: MemNet) -> None:
            socket = await accepted(memnet)
            await memnet.sync_send(socket, await memnet.register_mem(sent))
            await memnet.close(socket)

        async def ask(memnet: MemNet, world: World = world) -> bytes:
            await world.kernel.sleep(MS)
            try:
                lost = await memnet.create_connection(world.server.ip, 8)
                await receive_all(memnet, lost)
            except NetworkError:
                pass
            return await receive_all(memnet, await connected(memnet, world))

        killed = world.start(world.server, victim, "victim")

        async def kill(world: World = world, killed: Started = killed, step: int = step) -> None:
            await world.server.up.wait()
            await world.kernel.sleep(1 + step * 130_000_000)
            killed.kill()

        world.kernel.spawn(kill(), "killer")
        world.start(world.server, serve, "server")
        client = world.start(world.client, ask, "client")
        world.run()
        assert client.result == sent, f"step {step}"
        assert killed.application is not None
        assert killed.application.outcome in (Outcome.KILLED, Outcome.RETURNED)
        check_left(world)


# ---------------------------------------------------------------------------------------------- the wire between


def test_a_node_that_claims_too_much_credit_loses_the_vi() -> None:
    world = san_world()

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        region = await memnet.register_mem(1000)
        vi = socket.connection.vi
        vi.control.store(Word.SENT, 1 << 40)
        with pytest.raises(NetworkError):
            await memnet.sync_send(socket, region)

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        with pytest.raises(NetworkError):
            await receive_all(memnet, socket)

    server = world.start(world.server, serve, "server")
    world.start(world.client, ask, "client")
    world.run()
    assert server.result is None
    assert san_of(world).credit_errors == 1
    check_left(world)


def test_messages_are_what_they_were() -> None:
    rng = random.Random(5)
    for _ in range(200):
        request = Request(rng.choice(list(Call)), rng.randrange(1 << 32), rng.randrange(1 << 64),
                          rng.randrange(1 << 64), rng.randrange(1 << 32), rng.choice([{}, {"ip": "10.0.0.1"}]))
        assert parse_request(format_request(request)) == request
        length, is_confirmed = rng.randrange(1 << 24), rng.random() < 0.5
        assert parse_data_immediate(data_immediate(length, is_confirmed=is_confirmed)) == (length, is_confirmed)
        answer = Answer(rng.choice(list(Lane)), rng.choice(list(Answered)), length, b"more")
        assert parse_answer(answer_immediate(answer.lane, answer.answered, length), b"more") == answer
        assert answer_immediate(answer.lane, answer.answered, length) < 1 << 32


def test_a_node_that_has_gone_ends_its_connections_and_gives_no_more() -> None:
    world = san_world()

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        region = await memnet.register_mem(1000)
        waiting = await memnet.async_recv(socket, region)
        port = world.nodes[0].port
        for worker in list(world.nodes[0].workers):
            port.disconnect(worker.vi)
        with pytest.raises(PeerReset):
            await waiting
        with pytest.raises(PeerReset):
            await memnet.sync_send(socket, region)
        with pytest.raises(ChannelRefused):
            await memnet.create_connection(world.client.ip, 7)

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        with pytest.raises(PeerReset):
            await receive_all(memnet, socket)

    server = world.start(world.server, serve, "server")
    world.start(world.client, ask, "client")
    world.run()
    assert server.result is None
    assert [node.vis for node in world.nodes] == [0]
    assert world.memory.taken_bytes == world_without_nodes_bytes()


def world_without_nodes_bytes() -> int:
    """Memory of a host's driver alone."""
    world = World()

    async def nothing(_memnet: MemNet) -> None:
        pass

    world.start(world.server, nothing, "nothing")
    world.run()
    return world.memory.taken_bytes
