"""MemNet's sockets: from socket to close, the options, and what is refused."""

from __future__ import annotations

import pytest

from cosim.world import World
from host_driver.errors import (
    AddressInUse,
    AddressNotAvailable,
    BadSocket,
    ConnectionRefused,
    ConnectionTimedOut,
    NetworkError,
    OptionRefused,
    PeerReset,
    SocketClosed,
)
from host_driver.memnet import Direction, Linger, MemNet, Option
from host_driver.tcp import LINUX24, Nagle
from host_driver.tcp.states import State
from tests.host_driver.worlds import MS, PORT, SECOND, accepted, connected, data, receive_all, run


async def nothing(_memnet: MemNet) -> None:
    """An application without wishes."""


def test_socket_bind_listen_accept_connect_close() -> None:
    world = World()

    async def serve(memnet: MemNet) -> tuple[object, ...]:
        listening = memnet.socket()
        memnet.bind(listening, PORT, world.server.ip)
        assert memnet.listen(listening, backlog=5) is listening
        socket = await memnet.accept(listening)
        names = memnet.getsockname(socket), memnet.getpeername(socket)
        await memnet.close(socket)
        await memnet.close(listening)
        return names

    async def ask(memnet: MemNet) -> tuple[object, ...]:
        await world.kernel.sleep(MS)
        socket = memnet.socket()
        memnet.bind(socket, 4321)
        await memnet.connect(socket, world.server.ip, PORT)
        names = memnet.getpeername(socket), memnet.getsockname(socket)
        assert await memnet.sync_recv(socket, await memnet.register_mem(1)) == 0
        await memnet.close(socket)
        return names

    server, client = run(world, serve, ask)
    assert server == client == (("10.0.0.1", PORT), ("10.0.0.2", 4321))


def test_what_bind_and_connect_refuse() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        listening = memnet.listen(PORT)
        socket = memnet.socket()
        with pytest.raises(AddressInUse, match="port 7 is listened on"):
            memnet.bind(socket, PORT)
        with pytest.raises(AddressInUse):
            memnet.listen(PORT)
        with pytest.raises(AddressNotAvailable, match=r"10\.9\.9\.9 is not an address of this host"):
            memnet.bind(socket, 80, "10.9.9.9")
        with pytest.raises(AddressNotAvailable, match="0 to 65535"):
            memnet.bind(socket, 70000)
        with pytest.raises(BadSocket, match="bound to no port"):
            memnet.listen(socket)
        memnet.bind(socket, 0, "0.0.0.0")
        assert socket.bound_port == 32768
        with pytest.raises(BadSocket, match="is new, not connected"):
            await memnet.shutdown(socket)
        with pytest.raises(BadSocket, match="listening, not connected"):
            await memnet.async_send(listening, await memnet.register_mem(1))
        with pytest.raises(BadSocket, match="new, not listening"):
            await memnet.accept(socket)
        other = MemNet(memnet.server, memnet.account)
        with pytest.raises(BadSocket, match="another MemNet's"):
            await other.close(socket)
        await memnet.close(socket)
        with pytest.raises(SocketClosed):
            await memnet.close(socket)
        with pytest.raises(ConnectionRefused, match=r"connect to 10\.0\.0\.2:9"):
            await memnet.create_connection(world.client.ip, 9)
        assert list(memnet._process.sockets) == [listening]
        assert memnet.pool is not None
        assert memnet.pool.free == len(memnet.pool.channels)

    run(world, serve, nothing)


def test_reuse_of_an_address_that_a_closed_connection_still_holds() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        await memnet.close(await accepted(memnet))  # closes first: its end stays in TIME-WAIT
        await world.kernel.sleep(100 * MS)
        assert [c.state for c in world.server.interface.stack.connections] == [State.TIME_WAIT]
        socket = memnet.socket()
        with pytest.raises(AddressInUse, match="TIME_WAIT"):
            memnet.bind(socket, PORT)
        memnet.set_option(socket, Option.SO_REUSEADDR, 1)
        memnet.bind(socket, PORT)
        with pytest.raises(OptionRefused, match="when a socket is bound"):
            memnet.set_option(socket, "SO_REUSEADDR", 0)

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        await memnet.sync_recv(socket, await memnet.register_mem(1))
        await memnet.close(socket)

    run(world, serve, ask)


def test_options_and_what_they_refuse() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        listening = memnet.listen(PORT)
        memnet.set_option(listening, "TCP_NODELAY", 1)
        socket = await memnet.accept(listening)
        assert memnet.get_option(socket, Option.TCP_NODELAY) is True, "accepted sockets have the listening one's"
        connection = socket.connection.endpoint.connection
        assert connection.nagle is Nagle.OFF
        memnet.set_option(socket, Option.TCP_NODELAY, 0)
        assert connection.nagle is world.server.interface.stack.profile.nagle
        assert memnet.get_option(socket, "SO_LINGER") == Linger(False, 0)
        memnet.set_option(socket, "SO_LINGER", (1, 2.5))
        assert memnet.get_option(socket, "SO_LINGER") == Linger(True, 2.5)
        for name, value, why in (("SO_BROADCAST", 1, "'SO_BROADCAST' means nothing here; there are SO_REUSEADDR"),
                                 ("TCP_NODELAY", 2, "0 or 1, not 2"), ("SO_SNDBUF", 0, "1 to 1,073,741,824, not 0"),
                                 ("TCP_KEEPCNT", True, "whole number"), ("SO_LINGER", 5, "a pair"),
                                 ("SO_LINGER", (1, -1), "a pair")):
            with pytest.raises(OptionRefused, match=why):
                memnet.set_option(socket, name, value)
        with pytest.raises(OptionRefused, match="SO_ERROR"):
            memnet.get_option(socket, "SO_ERROR")
        await memnet.close(socket)
        with pytest.raises(SocketClosed):
            memnet.set_option(socket, "TCP_NODELAY", 1)

    async def ask(memnet: MemNet) -> None:
        await receive_all(memnet, await connected(memnet, world))

    run(world, serve, ask)


def test_half_close_both_ways() -> None:
    world = World()

    async def serve(memnet: MemNet) -> bytes:
        socket = await accepted(memnet)
        got = await receive_all(memnet, socket)
        await memnet.sync_send(socket, await memnet.register_mem(b"answer to " + got))
        await memnet.close(socket)
        return got

    async def ask(memnet: MemNet) -> bytes:
        socket = await connected(memnet, world)
        job = await memnet.async_send(socket, await memnet.register_mem(b"question"))
        await memnet.shutdown(socket, Direction.SEND)
        with pytest.raises(SocketClosed):
            await memnet.async_send(socket, job.parts[0])
        assert await job == 8
        return await receive_all(memnet, socket)

    assert run(world, serve, ask) == (b"question", b"answer to question")


def test_shutdown_of_receiving_ends_receives_and_drops_what_comes() -> None:
    world = World()

    async def serve(memnet: MemNet) -> int:
        socket = await accepted(memnet)
        region = await memnet.register_mem(100)
        job = await memnet.async_recv(socket, region)
        await memnet.shutdown(socket, Direction.RECEIVE)
        assert await job == 0
        await world.kernel.sleep(SECOND)
        assert await memnet.sync_recv(socket, region) == 0
        await memnet.close(socket)
        return job.result()

    async def ask(memnet: MemNet) -> int:
        socket = await connected(memnet, world)
        await world.kernel.sleep(10 * MS)
        region = await memnet.register_mem(300_000)  # far more than the server's receive buffer
        return await memnet.sync_send(socket, region)

    assert run(world, serve, ask) == (0, 300_000)


def test_close_fails_receives_that_wait_and_answers_late_bytes_with_a_reset() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        send = await memnet.async_send(socket, await memnet.register_mem(data(50_000)))
        receive = await memnet.async_recv(socket, await memnet.register_mem(10))
        await memnet.close(socket)
        with pytest.raises(SocketClosed, match="the connection is closed"):
            await receive
        assert await send == 50_000, "what was posted is sent all the same"

    async def ask(memnet: MemNet) -> bytes:
        socket = await connected(memnet, world)
        got = await receive_all(memnet, socket)
        region = await memnet.register_mem(b"too late")
        await memnet.async_send(socket, region)
        await world.kernel.sleep(SECOND)
        with pytest.raises(PeerReset):
            await memnet.sync_send(socket, region)
        return got

    assert run(world, serve, ask)[1] == data(50_000)


@pytest.mark.parametrize("api", ["abort", "linger"])
def test_a_reset_instead_of_an_end(api: str) -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        job = await memnet.async_send(socket, await memnet.register_mem(1 << 20))
        if api == "abort":
            await memnet.abort(socket)
            await memnet.abort(socket)
        else:
            memnet.set_option(socket, Option.SO_LINGER, (1, 0))
            await memnet.close(socket)
        with pytest.raises(SocketClosed):
            await job

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        with pytest.raises(PeerReset):
            await receive_all(memnet, socket)

    run(world, serve, ask)


@pytest.mark.parametrize("peer_reads", [True, False])
def test_lingering_close_waits_for_the_peer(peer_reads: bool) -> None:
    world = World(profile=LINUX24)  # whose window does not take all that is sent

    async def serve(memnet: MemNet) -> int:
        socket = await accepted(memnet)
        memnet.set_option(socket, Option.SO_LINGER, (1, 3))
        job = await memnet.async_send(socket, await memnet.register_mem(1 << 20))
        start = world.kernel.now
        if peer_reads:
            await memnet.close(socket)
            assert job.is_done
        else:
            with pytest.raises(ConnectionTimedOut, match="in 3 s"):
                await memnet.close(socket)
            with pytest.raises(SocketClosed):
                await job
        return world.kernel.now - start

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        if peer_reads:
            await receive_all(memnet, socket)
            await memnet.close(socket)
        else:
            await world.kernel.sleep(5 * SECOND)
            with pytest.raises(NetworkError):
                await receive_all(memnet, socket)

    took, _ = run(world, serve, ask)
    assert took < 3 * SECOND if peer_reads else 3 * SECOND <= took < 4 * SECOND


def test_a_listening_socket_is_shared_and_ends_with_the_last_process_that_has_it() -> None:
    world = World()
    listening: list[object] = []

    async def first(memnet: MemNet) -> None:
        listening.append(memnet.listen(PORT))
        await memnet.close(await memnet.accept(listening[0]))  # type: ignore[arg-type]

    async def second(memnet: MemNet) -> None:
        await world.kernel.sleep(MS // 2)
        for _ in range(3):
            await memnet.close(await memnet.accept(listening[0]))  # type: ignore[arg-type]

    async def ask(memnet: MemNet) -> None:
        for _ in range(4):
            socket = await connected(memnet, world)
            assert await memnet.sync_recv(socket, await memnet.register_mem(1)) == 0
            await memnet.close(socket)
        await world.kernel.sleep(SECOND)
        with pytest.raises(ConnectionRefused):
            await connected(memnet, world)

    world.start(world.server, second, "second")
    run(world, first, ask)


class Vanishing:
    """A wire that the client can be cut off from."""

    def __init__(self, world: World) -> None:
        self.is_cut = False
        switch = world.wire._switch

        def maybe(frame: bytes, source: bytes | None) -> None:
            if not self.is_cut:
                switch(frame, source=source)

        world.wire._switch = maybe  # type: ignore[method-assign]


@pytest.mark.parametrize(("options", "within_s"), [
    ({"SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}, (15, 20)),
    ({"TCP_USER_TIMEOUT": 5000}, (4, 10)),
], ids=["keep-alive", "user timeout"])
def test_a_client_that_vanishes_is_given_up(options: dict[str, int], within_s: tuple[int, int]) -> None:
    world = World()
    wire = Vanishing(world)

    async def serve(memnet: MemNet) -> float:
        listening = memnet.listen(PORT)
        for name, value in options.items():
            memnet.set_option(listening, name, value)
        socket = await memnet.accept(listening)
        region = await memnet.register_mem(10_000)
        await memnet.sync_recv(socket, region)
        wire.is_cut = True
        start = world.kernel.now
        if "SO_KEEPALIVE" in options:
            job = await memnet.async_recv(socket, region)
        else:
            job = await memnet.async_send(socket, region)
        with pytest.raises(ConnectionTimedOut):
            await job
        return (world.kernel.now - start) / SECOND

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        await memnet.async_send(socket, await memnet.register_mem(b"hello"))
        await world.kernel.sleep(60 * SECOND)
        await memnet.abort(socket)

    took_s, _ = run(world, serve, ask)
    assert within_s[0] <= took_s <= within_s[1]


def test_buffer_sizes_set_how_much_is_taken_and_offered() -> None:
    world = World()

    async def serve(memnet: MemNet) -> int:
        listening = memnet.listen(PORT)
        memnet.set_option(listening, "SO_RCVBUF", 10_000)
        socket = await memnet.accept(listening)
        await world.kernel.sleep(SECOND)
        connection = socket.connection.endpoint.connection
        waiting: int = connection.recv_available
        await receive_all(memnet, socket)
        return waiting

    async def ask(memnet: MemNet) -> int:
        socket = memnet.socket()
        memnet.set_option(socket, Option.SO_SNDBUF, 5000)
        await world.kernel.sleep(MS)
        await memnet.connect(socket, world.server.ip, PORT)
        region = await memnet.register_mem(100_000)
        for at in range(0, 100_000, 1000):
            await memnet.async_send(socket, region, at, 1000)
        connection = socket.connection.endpoint.connection
        queued: int = connection.queued_bytes
        await memnet.close(socket)
        return queued

    waiting, queued = run(world, serve, ask)
    assert 10_000 <= waiting < 70_000, "the window of the handshake was out already; nothing was added to it"
    assert queued < 10_000


def test_threads_of_a_process_share_memory_sockets_and_channels() -> None:
    world = World(machine="p2-300-smp2")

    async def serve(memnet: MemNet) -> list[bytes]:
        accounts = [world.server.process_account(f"thread {number}") for number in range(3)]
        threads = [memnet.thread(account) for account in accounts]
        region = await memnet.register_mem(300)
        listening = memnet.listen(PORT)

        async def one(number: int) -> bytes:
            thread = threads[number]
            socket = await thread.accept(listening)
            part = region.part(number * 100, 100)
            length = await thread.sync_recv(socket, part)
            await thread.sync_send(socket, [region.part(number * 100, length)])
            await thread.close(socket)
            return bytes(region.view[number * 100 :][:length])

        tasks = [world.kernel.spawn(one(number), f"thread {number}") for number in range(3)]
        got = [await task for task in tasks]
        assert [thread.pool for thread in threads] == [memnet.pool] * 3
        await threads[0].deregister_mem(region)
        return got

    async def ask(memnet: MemNet) -> list[bytes]:
        answers = []
        for text in (b"one", b"two", b"three"):
            socket = await connected(memnet, world)
            await memnet.sync_send(socket, await memnet.register_mem(text))
            answers.append(await receive_all(memnet, socket))
        return answers

    got, answers = run(world, serve, ask)
    assert sorted(got) == sorted(answers) == [b"one", b"three", b"two"]
