"""MemNet over TCP on the device: every operation of the provider, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest

from cosim.impairments import BothWays, Impairments
from cosim.world import World
from host_driver.errors import (
    AddressInUse,
    AddressNotAvailable,
    ConnectionRefused,
    ConnectionTimedOut,
    OptionRefused,
    PeerReset,
    SocketClosed,
)
from host_driver.memnet import Direction, Linger, MemNet, Option
from host_driver.offload_tcp import OffloadTcp
from tests.host_driver.worlds import MS, PORT, SECOND, Main, accepted, connected, data, receive_all

BAD = Impairments(loss=0.02, reorder=0.03, delay_ps=50_000_000)


def offload_world(**settings: Any) -> World:
    return World(device="default", on_device=True, **settings)


def too_late() -> None:
    raise AssertionError("200 simulated seconds, and no end")


def run(world: World, serve: Main, ask: Main) -> tuple[Any, Any]:
    """Both applications to their ends, and what each returned; the server's host has TCP on its device."""
    before: list[tuple[set[int], set[int]]] = []

    async def look() -> None:
        await world.server.up.wait()
        world.kernel.call_at(200 * SECOND, too_late)  # the device's ticks would go on for ever
        before.append((set(world.memory._taken), set(world.server.offload.nic._free_keys)))

    world.kernel.spawn(look(), "leak check")
    server = world.start(world.server, serve, "server")
    client = world.start(world.client, ask, "client")
    world.run()
    world.kernel.run_until(world.kernel.now + 10 * SECOND)  # the last handshakes of TCP
    memory, keys = before[0]
    assert set(world.memory._taken) == memory, "host memory was not given back"
    assert set(world.server.offload.nic._free_keys) == keys, "memory keys were not given back"
    assert world.server.offload.sockets.under_way == 0, "operations were never completed"
    assert world.server.firmware.sockets.open_sockets == 0, "sockets were left on the device"
    return server.result, client.result


@pytest.mark.parametrize("impairments", [None, BothWays(outbound=BAD, inbound=BAD, seed=3)], ids=["good", "bad"])
def test_bytes_go_both_ways(impairments: BothWays | None) -> None:
    world = offload_world(impairments=impairments)
    there, back = data(200_000, 1), data(150_000, 2)

    async def serve(memnet: MemNet) -> bytes:
        socket = await accepted(memnet)
        region = await memnet.register_mem(back)
        job = await memnet.async_send(socket, region, 0, len(back))
        got = await receive_all(memnet, socket)
        await memnet.job_wait(job)
        await memnet.close(socket)
        return got

    async def ask(memnet: MemNet) -> bytes:
        socket = await connected(memnet, world)
        region = await memnet.register_mem(there)
        job = await memnet.async_send(socket, region, 0, len(there))
        await memnet.job_wait(job)
        await memnet.shutdown(socket, Direction.SEND)
        got = await receive_all(memnet, socket)
        await memnet.close(socket)
        return got

    got, answered = run(world, serve, ask)
    assert got == there
    assert answered == back


def test_the_device_connects() -> None:
    world = offload_world()

    async def serve(memnet: MemNet) -> tuple[bytes, Any]:
        await world.kernel.sleep(MS)
        socket = await memnet.create_connection(world.client.ip, PORT)
        memnet.set_option(socket, Option.TCP_NODELAY, 1)
        memnet.set_option(socket, Option.SO_KEEPALIVE, 1)
        region = await memnet.register_mem(b"a question")
        await memnet.sync_send(socket, region)
        got = await receive_all(memnet, socket)
        addresses = memnet.server.provider.addresses(socket.connection)
        await memnet.close(socket)
        return got, addresses

    async def ask(memnet: MemNet) -> bytes:
        socket = await accepted(memnet)
        region = await memnet.register_mem(1000)
        length = await memnet.sync_recv(socket, region)
        got = bytes(region.view[:length])
        await memnet.sync_send(socket, await memnet.register_mem(b"an answer"))
        await memnet.close(socket)
        return got

    (answer, (local, remote)), question = run(world, serve, ask)
    assert (question, answer) == (b"a question", b"an answer")
    assert local[0] == world.server.ip
    assert remote == (world.client.ip, PORT)


def test_connections_that_are_not_to_be() -> None:
    world = offload_world()

    async def serve(memnet: MemNet) -> None:
        with pytest.raises(ConnectionRefused, match=f"connect to {world.client.ip}:99: the device says REFUSED"):
            await memnet.create_connection(world.client.ip, 99)
        listening = memnet.listen(PORT)
        with pytest.raises(AddressInUse):
            memnet.listen(PORT)
        with pytest.raises(AddressNotAvailable, match=r"10\.9\.9\.9 is not an address of this host"):
            memnet.bind(memnet.socket(), 0, "10.9.9.9")
        await memnet.close(listening)

    async def ask(memnet: MemNet) -> None:
        await world.kernel.sleep(20 * MS)
        with pytest.raises(ConnectionRefused):
            await memnet.create_connection(world.server.ip, 98)

    run(world, serve, ask)


def test_a_reset_from_either_end() -> None:
    world = offload_world()

    async def serve(memnet: MemNet) -> None:
        listening = memnet.listen(PORT)
        region = await memnet.register_mem(1 << 16)
        socket = await memnet.accept(listening)
        with pytest.raises(PeerReset):
            await memnet.sync_recv(socket, region)
        with pytest.raises((PeerReset, SocketClosed)):
            await memnet.sync_send(socket, region)
        await memnet.close(socket)
        socket = await memnet.accept(listening)
        job = await memnet.async_send(socket, region)
        await memnet.abort(socket)
        with pytest.raises(SocketClosed):
            await memnet.job_wait(job)
        await memnet.close(listening)

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        await world.kernel.sleep(5 * MS)
        await memnet.abort(socket)
        await world.kernel.sleep(5 * MS)
        socket = await memnet.create_connection(world.server.ip, PORT)
        with pytest.raises(PeerReset):
            await receive_all(memnet, socket)
        await memnet.close(socket)

    run(world, serve, ask)


def test_what_comes_before_it_is_asked_for_is_copied_once_and_counted() -> None:
    world = offload_world()
    sent = data(30_000, 5)

    async def serve(memnet: MemNet) -> bytes:
        socket = await accepted(memnet)
        await world.kernel.sleep(100 * MS)
        got = await receive_all(memnet, socket)
        await memnet.close(socket)
        return got

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        await memnet.sync_send(socket, await memnet.register_mem(sent))
        await memnet.close(socket)

    got, _ = run(world, serve, ask)
    provider = world.server.tcp_server.provider
    assert isinstance(provider, OffloadTcp)
    assert got == sent
    assert 8192 <= provider.eager_bytes < len(sent)


def test_options_and_ends() -> None:
    world = offload_world()

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        with pytest.raises(OptionRefused, match="SO_RCVBUF cannot be set on a connection of the device; TCP_NODELAY"):
            memnet.set_option(socket, Option.SO_RCVBUF, 4096)
        memnet.set_option(socket, Option.TCP_USER_TIMEOUT, 5000)
        region = await memnet.register_mem(100)
        await memnet.shutdown(socket, Direction.RECEIVE)
        assert await memnet.sync_recv(socket, region) == 0
        memnet.set_option(socket, Option.SO_LINGER, Linger(True, 5))
        await memnet.sync_send(socket, region)
        await memnet.close(socket)

    async def ask(memnet: MemNet) -> int:
        socket = await connected(memnet, world)
        got = await receive_all(memnet, socket)
        await memnet.close(socket)
        return len(got)

    assert run(world, serve, ask)[1] == 100


def test_many_connections_wait_for_their_turn_and_a_killed_process_leaves_nothing() -> None:
    world = offload_world()

    async def serve(memnet: MemNet) -> int:
        listening = memnet.listen(PORT, backlog=4)
        region = await memnet.register_mem(100)
        served = 0
        while served < 12:
            socket = await memnet.accept(listening)
            length = await memnet.sync_recv(socket, region)
            await memnet.sync_send(socket, region, 0, length)
            await memnet.close(socket)
            served += 1
        await memnet.accept(listening)  # nobody comes: it is killed here
        return served

    async def ask(memnet: MemNet) -> list[bytes]:
        await world.kernel.sleep(MS)
        region = await memnet.register_mem(100)
        sockets = [await memnet.create_connection(world.server.ip, PORT) for _ in range(3)]
        answers = []
        for number in range(12):
            if not sockets:
                sockets = [await memnet.create_connection(world.server.ip, PORT) for _ in range(3)]
            socket = sockets.pop(0)
            region.view[:2] = number.to_bytes(2, "big")
            await memnet.sync_send(socket, region, 0, 2)
            length = await memnet.sync_recv(socket, region)
            answers.append(bytes(region.view[:length]))
            await memnet.close(socket)
        return answers

    before = set(world.memory._taken)
    server = world.start(world.server, serve, "server", background=True)
    client = world.start(world.client, ask, "client")
    world.run()
    world.kernel.run_until(world.kernel.now + 10 * SECOND)
    assert client.result == [number.to_bytes(2, "big") for number in range(12)]
    assert server.application is not None
    assert world.server.firmware.sockets.open_sockets == 0
    assert before <= set(world.memory._taken)


def test_an_accept_is_under_way_for_each_process_though_another_took_what_it_was_woken_for() -> None:
    world = offload_world(machine="p2-300-smp2")
    processes, clients = 4, 24
    served: list[int] = []

    async def serve(memnet: MemNet) -> None:
        listening = memnet.listen(PORT, backlog=clients)

        async def worker(number: int) -> None:
            while True:
                # Another thread may be woken for a connection while this one comes for its next, and takes it.
                socket = await memnet.accept(listening)
                served.append(number)
                await memnet.close(socket)

        workers = [world.kernel.spawn(worker(number), f"worker {number}") for number in range(processes)]
        while len(served) < clients:
            await world.kernel.sleep(MS)
        await world.kernel.sleep(10 * MS)
        (port,) = world.server.tcp_server.provider._ports.values()  # type: ignore[attr-defined]
        assert (port.asked, len(port.waiting)) == (processes, processes)
        for each in workers:
            each.cancel()
        await world.kernel.sleep(MS)
        await memnet.close(listening)

    async def ask(memnet: MemNet) -> None:
        await world.kernel.sleep(MS)
        for _ in range(clients // 6):
            sockets = [await memnet.create_connection(world.server.ip, PORT) for _ in range(6)]
            for socket in sockets:
                await memnet.close(socket)

    run(world, serve, ask)
    assert len(set(served)) == processes


def test_an_address_that_nobody_has() -> None:
    world = offload_world()

    async def serve(memnet: MemNet) -> None:
        with pytest.raises(ConnectionTimedOut, match="the device says UNREACHABLE"):
            await memnet.create_connection("10.0.0.77", PORT)

    async def ask(memnet: MemNet) -> None:
        await world.kernel.sleep(MS)

    run(world, serve, ask)
    assert world.kernel.now > 2 * SECOND, "it asked more than once who has it"
