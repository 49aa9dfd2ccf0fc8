"""Channels: the pool and who admits to it, credits by remote writes, and what is done ahead of the application."""

from __future__ import annotations

import random

import pytest

from cosim.world import World
from host_driver.account import Account, NullAccount
from host_driver.errors import ChannelRefused, CreditError, PeerReset, SocketClosed
from host_driver.memnet import AdmitByLoad, ChannelSettings, Load, MemNet, TcpServer, Transfer, pool_bytes
from host_driver.memnet.channels import Channel
from host_driver.memnet.credits import CONTROL_BYTES, ControlRegion, DrainingEnd, FillingEnd, Word
from host_driver.memnet.worker import Ended, Worker
from host_driver.runtime import Kernel
from host_driver.tcp import LINUX24
from tests.host_driver.worlds import MS, PORT, SECOND, accepted, connected, data, receive_all, run

# ---------------------------------------------------------------------------------------------- credits


class Ends:
    """Both ends of a receive ring, whose remote writes arrive at once or when `deliver` says so."""

    def __init__(self, ring_bytes: int = 64, limit_bytes: int = 64) -> None:
        self.ring = bytearray(ring_bytes)
        self.control = ControlRegion(memoryview(bytearray(CONTROL_BYTES)))
        self.under_way: list[tuple[Word, int]] = []
        self.filling = FillingEnd(ring_bytes, limit_bytes, self.control, Word.CONSUMED, self, Word.RECEIVED)
        self.draining = DrainingEnd(ring_bytes, limit_bytes, self.control, Word.RECEIVED, self, Word.CONSUMED)

    def write(self, word: Word, value: int) -> None:
        self.under_way.append((word, value))

    def deliver(self) -> None:
        for word, value in self.under_way:
            self.control.store(word, value)
        self.under_way.clear()


@pytest.mark.parametrize("seed", range(5))
def test_bytes_cross_a_ring_in_order_and_never_overtake_the_credit(seed: int) -> None:
    rng = random.Random(seed)
    limit = rng.choice([64, 64, 40, 7])
    ends = Ends(64, limit)
    stream, put, got = rng.randbytes(5000), 0, bytearray()
    while len(got) < len(stream):
        if rng.random() < 0.5:
            offset, length = ends.filling.room(rng.randrange(1, 50))
            length = min(length, len(stream) - put)
            ends.ring[offset : offset + length] = stream[put : put + length]
            put += length
            if length:
                ends.filling.fill(length)
        else:
            offset, length = ends.draining.next(rng.randrange(1, 50))
            got += ends.ring[offset : offset + length]
            ends.draining.take(length)
            ends.draining.give_back(length)
        assert ends.filling.position - len(got) <= limit
        if rng.random() < 0.7:
            ends.deliver()
    assert bytes(got) == stream, f"seed {seed}"


def test_credit_is_given_back_in_quarters_and_when_the_ring_is_empty() -> None:
    ends = Ends()
    ends.filling.fill(64)
    ends.deliver()
    assert ends.filling.room(10) == (0, 0), "no credit is left"
    for _ in range(15):
        assert ends.draining.next(1)[1] == 1
        ends.draining.take(1)
        ends.draining.give_back(1)
    assert ends.under_way == []
    ends.draining.take(1)
    ends.draining.give_back(1)
    assert ends.under_way == [(Word.CONSUMED, 16)]
    ends.deliver()
    assert ends.filling.room(100) == (0, 16)


@pytest.mark.parametrize(("position", "freed"), [(10, 11), (10, (1 << 64) - 1)])
def test_a_draining_end_that_frees_what_was_not_there_is_not_believed(position: int, freed: int) -> None:
    ends = Ends()
    ends.filling.fill(position)
    ends.control.store(Word.CONSUMED, freed)
    with pytest.raises(CreditError, match=f"from 0 to {freed}, and only {position} bytes"):
        _ = ends.filling.credit_bytes


def test_counts_that_go_back_are_not_believed() -> None:
    ends = Ends()
    ends.control.store(Word.RECEIVED, 20)
    assert ends.draining.available_bytes == 20
    ends.control.store(Word.RECEIVED, 19)
    with pytest.raises(CreditError, match="RECEIVED went from 20 to 19"):
        _ = ends.draining.available_bytes
    ends.control.store(Word.RECEIVED, 65)
    with pytest.raises(CreditError, match="credit up to 64"):
        _ = ends.draining.available_bytes


def test_an_application_that_overruns_its_credit_loses_the_connection_and_nobody_else_does() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        listening = memnet.listen(PORT)
        bad, good = await memnet.accept(listening), await memnet.accept(listening)
        end = memnet.use_rings(bad, 4096)
        assert bad.channel is not None
        bad.channel.write(Word.QUEUED, 1 << 20)
        await end.sleep(lambda: end.ended is Ended.BY_ERROR)
        assert bad.worker is not None
        assert isinstance(bad.worker.error, CreditError)
        assert memnet.counters.credit_errors == 1
        await memnet.close(bad)
        await memnet.sync_send(good, await memnet.register_mem(b"still here"))

    async def ask(memnet: MemNet) -> bytes:
        bad = await connected(memnet, world)
        good = await memnet.create_connection(world.server.ip, PORT)
        with pytest.raises(PeerReset):
            await receive_all(memnet, bad)
        return await receive_all(memnet, good)

    assert run(world, serve, ask)[1] == b"still here"


class SlowProvider:
    """Takes a send at once, and returns late."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.taken: list[Transfer] = []

    async def send(self, connection: object, transfer: Transfer, account: Account) -> None:
        transfer.is_taken = True
        self.taken.append(transfer)
        await self.kernel.sleep(1000)

    async def receive(self, connection: object, transfer: Transfer, account: Account) -> None:
        raise SocketClosed("receive")


def test_a_worker_gives_its_channel_up_only_when_it_has_left_it() -> None:
    """The connection is dropped while the worker is in a call: the channel's next user must not meet it."""
    kernel = Kernel()
    provider = SlowProvider(kernel)
    server = TcpServer(provider)  # type: ignore[arg-type]
    settings = ChannelSettings(channels=1, send_bytes=64, receive_bytes=64)
    channel = Channel(0, 1, 0, memoryview(bytearray(settings.channel_bytes)), settings, server)
    worker = Worker(server, channel, object(), NullAccount(), 64)
    sends, _ = channel.application_rings(64)
    sends.fill(10)
    kernel.run_until(10)
    assert len(provider.taken) == 1
    over: list[int] = []
    worker.stop(lambda: over.append(kernel.now))
    provider.taken[0].done(0, SocketClosed("dropped"))
    kernel.run_until(500)
    assert over == [], "it is still in its call"
    kernel.run_until(2000)
    assert over == [1000]


# ---------------------------------------------------------------------------------------------- pool


def test_a_pool_is_made_at_the_start_from_one_registration() -> None:
    world = World()
    settings = ChannelSettings(channels=5, send_bytes=1024, receive_bytes=2048)

    async def serve(memnet: MemNet) -> None:
        keys = len(world.server.interface.nic._free_keys)
        await memnet.start()
        assert memnet.pool is not None
        assert len(world.server.interface.nic._free_keys) == keys - 1
        assert memnet.pool.free == 5
        assert memnet.counters.channels_granted == 5 == memnet.server.channels
        first, second = memnet.pool.channels[:2]
        ranges = first.send_range(0, 1024), first.receive_range(0, 2048), second.send_range(0, 1024)
        assert [part.offset for part in ranges] == [0, 1024, settings.channel_bytes]
        assert len({part.key for part in ranges}) == 1
        assert pool_bytes(settings) == 16384

    async def ask(memnet: MemNet) -> None:
        return

    run(world, serve, ask, channels=settings)
    with pytest.raises(ValueError, match="channels must be 1 to max_channels"):
        ChannelSettings(channels=0)
    with pytest.raises(ValueError, match="send_bytes must be a multiple of 64"):
        ChannelSettings(send_bytes=100)


def test_admission_by_load() -> None:
    policy = AdmitByLoad(max_channels=3, max_busy=0.8)
    assert policy.admits(Load(2, 0.8))
    assert not policy.admits(Load(3, 0.0))
    assert not policy.admits(Load(0, 0.81))


def test_channels_are_rejected_by_load_and_the_pool_makes_do_with_what_it_has() -> None:
    world = World(admission=AdmitByLoad(max_channels=2))

    async def serve(memnet: MemNet) -> None:
        await memnet.start()
        counters = memnet.counters
        assert (counters.channels_granted, counters.channels_rejected) == (2, 6)
        with pytest.raises(ChannelRefused, match="rejected all of 8 channels"):
            await MemNet(memnet.server, memnet.account).start()
        listening = memnet.listen(PORT)
        first, second = await memnet.accept(listening), await memnet.accept(listening)
        assert counters.channel_waits == 0
        # The third client is accepted when a channel comes back.
        started = world.kernel.now

        async def end_one() -> None:
            await world.kernel.sleep(SECOND)
            await memnet.close(first)

        world.kernel.spawn(end_one(), "end one")
        third = await memnet.accept(listening)
        assert world.kernel.now - started >= SECOND
        assert counters.channel_waits == 1
        assert third.channel in memnet.pool.channels  # type: ignore[union-attr]
        for socket in (second, third):
            await memnet.close(socket)

    async def ask(memnet: MemNet) -> None:
        await world.kernel.sleep(MS)
        sockets = [await memnet.create_connection(world.server.ip, PORT) for _ in range(3)]
        for socket in sockets:
            assert await receive_all(memnet, socket) == b""

    run(world, serve, ask)


def test_a_busy_tcp_server_rejects() -> None:
    world = World()
    busy = [0.5]

    async def serve(memnet: MemNet) -> None:
        server = TcpServer(memnet.server.provider, admission=AdmitByLoad(max_busy=0.7), busy=lambda: busy[0])
        other = MemNet(server, memnet.account, channels=ChannelSettings(channels=1, send_bytes=64, receive_bytes=64))
        await other.start()
        busy[0] = 0.9
        with pytest.raises(ChannelRefused, match=r"busy=0\.9"):
            await MemNet(server, memnet.account).start()
        await other.exit()
        assert server.channels == 0

    async def ask(memnet: MemNet) -> None:
        return

    run(world, serve, ask)


def test_a_pool_without_memory_for_further_channels_makes_do_with_what_it_has() -> None:
    world = World(memory_bytes=32 << 20)
    settings = ChannelSettings(channels=1, send_bytes=1 << 22, receive_bytes=64)  # 4 MB of 32

    async def serve(memnet: MemNet) -> None:
        await memnet.start()
        taken = world.memory.allocate(25 << 20)
        listening = memnet.listen(PORT)
        await memnet.close(await memnet.accept(listening))
        second = await memnet.accept(listening)
        await memnet.close(second)
        world.memory.free(taken)

    async def ask(memnet: MemNet) -> None:
        await world.kernel.sleep(MS)
        sockets = [await memnet.create_connection(world.server.ip, PORT) for _ in range(2)]
        await world.kernel.sleep(SECOND)
        for socket in sockets:
            assert await receive_all(memnet, socket) == b""

    run(world, serve, ask, channels=settings)
    counters = world.server.counters
    assert counters.channels_without_memory <= 1
    assert counters.channels_granted - counters.channels_without_memory == 1


def test_the_pool_grows_while_the_tcp_server_admits() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        listening = memnet.listen(PORT)
        sockets = [await memnet.accept(listening) for _ in range(4)]
        assert memnet.pool is not None
        assert [socket.channel.number for socket in sockets if socket.channel] == [0, 1, 2, 3]
        for socket in sockets:
            await memnet.close(socket)
        assert memnet.pool.free == 4
        assert len(memnet.pool._arenas) == 3, "1, 1 more, 2 more"

    async def ask(memnet: MemNet) -> None:
        await world.kernel.sleep(MS)
        sockets = [await memnet.create_connection(world.server.ip, PORT) for _ in range(4)]
        for socket in sockets:
            await receive_all(memnet, socket)

    run(world, serve, ask, channels=ChannelSettings(channels=1, max_channels=4, send_bytes=64, receive_bytes=64))


def test_a_channel_comes_back_only_when_the_last_job_on_it_is_over() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        job = await memnet.async_send(socket, await memnet.register_mem(1 << 19))
        await memnet.close(socket)
        assert memnet.pool is not None
        assert memnet.pool.free == 7
        assert not job.is_done
        await job
        assert memnet.pool.free == 8

    async def ask(memnet: MemNet) -> None:
        await receive_all(memnet, await connected(memnet, world))

    run(world, serve, ask)


# ---------------------------------------------------------------------------------------------- ahead


def test_eager_receive_goes_ahead_to_its_limit_and_on_at_the_consumers_pace() -> None:
    world = World()
    contents = data(300_000)
    limit = 8192

    async def serve(memnet: MemNet) -> bytes:
        socket = await accepted(memnet)
        counters = memnet.counters
        await world.kernel.sleep(SECOND)
        assert counters.received_ahead_bytes == limit, "the application has taken nothing yet"
        assert counters.receive_ahead_stops == 1
        region = await memnet.register_mem(3000)
        got = bytearray()
        while length := await memnet.sync_recv(socket, [region.part(0, 1000), region.part(1000)]):
            got += region.view[:length]
            assert counters.received_ahead_bytes <= len(got) + limit
        assert counters.received_ahead_bytes == len(contents)
        assert counters.receives_at_once > 0
        await memnet.close(socket)
        return bytes(got)

    async def ask(memnet: MemNet) -> int:
        socket = await connected(memnet, world)
        sent = await memnet.sync_send(socket, await memnet.register_mem(contents))
        await memnet.close(socket)
        return sent

    assert run(world, serve, ask, eager_receive_bytes=limit) == (contents, len(contents))
    assert world.server.counters.receives_at_once > 10


def test_eager_receive_with_jobs_that_wait_and_a_peer_that_resets() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        region = await memnet.register_mem(100)
        jobs = [await memnet.async_recv(socket, region, at, 10) for at in (0, 20, 40)]
        assert await jobs[0] == 10
        assert await jobs[1] == 5
        assert bytes(region.view[:25]) == b"0123456789" + bytes(10) + b"abcde"
        with pytest.raises(PeerReset):
            await jobs[2]
        with pytest.raises(PeerReset):
            await memnet.sync_recv(socket, region)
        assert memnet.counters.receives_waited == 3

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        await world.kernel.sleep(MS)
        await memnet.sync_send(socket, await memnet.register_mem(b"0123456789abcde"))
        await world.kernel.sleep(MS)
        await memnet.abort(socket)

    run(world, serve, ask, eager_receive_bytes=1024)


def test_eager_receive_opens_the_window_of_a_peer_that_a_lazy_application_would_stop() -> None:
    """With it, a peer can be rid of more than TCP's receive buffer before the application looks."""
    taken = {}
    for ahead in (0, 16384):
        world = World(profile=LINUX24)

        async def serve(memnet: MemNet, world: World = world) -> None:
            socket = await accepted(memnet)
            await world.kernel.sleep(20 * SECOND)
            await receive_all(memnet, socket)

        async def ask(memnet: MemNet, world: World = world, ahead: int = ahead) -> None:
            socket = await connected(memnet, world)
            await memnet.async_send(socket, await memnet.register_mem(1 << 20))
            await world.kernel.sleep(10 * SECOND)
            taken[ahead] = socket.connection.endpoint.connection.acked_bytes

        run(world, serve, ask, eager_receive_bytes=ahead)
    assert taken[0] > 60_000
    assert taken[16384] == pytest.approx(taken[0] + 16384, abs=3000)


def test_eager_accept_accepts_ahead_up_to_its_maximum() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        counters = memnet.counters
        listening = memnet.listen(PORT)
        await world.kernel.sleep(SECOND)
        assert (counters.accepted_ahead, counters.accept_ahead_stops) == (3, 1)
        sockets = [await memnet.accept(listening) for _ in range(5)]
        assert counters.accepted_ahead == 5
        assert counters.accepts_at_once == 4, "the last two come when there is room; one of them was waited for"
        peers = [memnet.getpeername(socket)[1] for socket in sockets]
        for socket in sockets:
            await memnet.close(socket)
        assert peers == sorted(peers), "in the order in which they came"

    async def ask(memnet: MemNet) -> None:
        await world.kernel.sleep(MS)
        for socket in [await memnet.create_connection(world.server.ip, PORT) for _ in range(5)]:
            assert await receive_all(memnet, socket) == b""

    run(world, serve, ask, eager_accept=3)


def test_connections_accepted_ahead_that_nobody_takes_are_aborted() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        listening = memnet.listen(PORT)
        await world.kernel.sleep(SECOND)
        await memnet.close(listening)
        with pytest.raises(SocketClosed):
            await memnet.accept(listening)

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        with pytest.raises(PeerReset):
            await receive_all(memnet, socket)

    run(world, serve, ask, eager_accept=3)


def test_limits_that_cannot_be() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        with pytest.raises(ValueError, match="eager_receive_bytes must be 0 to 16384"):
            MemNet(memnet.server, memnet.account, eager_receive_bytes=20_000)
        with pytest.raises(ValueError, match="eager_accept must not be negative"):
            MemNet(memnet.server, memnet.account, eager_accept=-1)

    async def ask(memnet: MemNet) -> None:
        return

    run(world, serve, ask)
