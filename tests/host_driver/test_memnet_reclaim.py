"""Applications that return, raise or are killed anywhere: all is given back, and the others go on."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cosim.impairments import BothWays, Impairments
from cosim.world import Started, World
from host_driver import streams
from host_driver.errors import NetworkError
from host_driver.memnet import ChannelSettings, Direction, MemNet, Outcome
from host_driver.tcp import LINUX24
from tests.host_driver.worlds import MS, PORT, SECOND, LeakCheck, accepted, connected, data, receive_all, run

ADDRESS_OF_CLIENT = "10.0.0.2"


async def leave_everything(memnet: MemNet) -> None:
    """Opens all there is and closes nothing."""
    listening = memnet.listen(PORT)
    memnet.listen(PORT + 1)
    socket = await memnet.accept(listening)
    region = await memnet.register_mem(1 << 18)
    await memnet.async_send(socket, region)
    await memnet.async_recv(socket, await memnet.register_mem(100))
    await memnet.grant(socket, 500)
    await memnet.async_send(socket, region, 0, 10)
    memnet.socket()


@pytest.mark.parametrize("eager", [{}, {"eager_accept": 2, "eager_receive_bytes": 1024}], ids=["plain", "eager"])
@pytest.mark.parametrize("end", ["return", "raise", "kill"])
def test_what_an_application_leaves_is_given_back(end: str, eager: dict[str, int]) -> None:
    world = World(profile=LINUX24)  # whose window does not take all that is sent
    check = LeakCheck(world)

    async def serve(memnet: MemNet) -> None:
        await leave_everything(memnet)
        if end == "raise":
            raise ZeroDivisionError("a bug")
        if end == "kill":
            await world.kernel.sleep(100 * SECOND)

    async def ask(memnet: MemNet) -> bytes:
        socket = await connected(memnet, world)
        await world.kernel.sleep(100 * MS)
        if end == "kill":
            server.kill()
        try:
            return await receive_all(memnet, socket)
        except NetworkError as error:
            return repr(error).encode()

    server: Started = world.start(world.server, serve, "server", **eager)
    client = world.start(world.client, ask, "client")
    if end == "raise":
        with pytest.raises(ZeroDivisionError):
            world.run()
    else:
        world.run()
    check.check()
    counters = world.server.counters
    assert server.application is not None
    if end == "return":
        assert client.result == bytes((1 << 18) + 10), "the sends that were posted, before and behind the capability"
        assert server.application.outcome is Outcome.RETURNED
    else:
        assert b"PeerReset" in client.result
        assert (counters.applications_failed, counters.applications_killed) == ((1, 0) if end == "raise" else (0, 1))
        assert server.application.outcome is (Outcome.RAISED if end == "raise" else Outcome.KILLED)
    assert counters.connections_reclaimed == 1
    assert counters.regions_reclaimed == 2
    assert counters.jobs_reclaimed == 4
    assert counters.capabilities_revoked == 1


@pytest.mark.parametrize("seed", range(30))
def test_killed_anywhere_nothing_is_left_and_the_others_go_on(seed: int) -> None:
    """A victim and a bystander serve from one host; the victim is killed at a random moment, in a random occupation."""
    rng = random.Random(seed)
    world = World(machine="p2-300-smp2", seed=seed,
                  impairments=BothWays(outbound=Impairments(loss=0.02), inbound=Impairments(loss=0.02), seed=seed))
    check = LeakCheck(world)
    contents = data(40_000, seed)
    eager = {"eager_accept": rng.randrange(3), "eager_receive_bytes": rng.choice([0, 4096])}

    def echo(port: int) -> Any:
        async def serve(memnet: MemNet) -> None:
            listening = memnet.listen(port)
            while True:
                socket = await memnet.accept(listening)
                region = await memnet.register_mem(8192)
                try:
                    while length := await memnet.sync_recv(socket, region):
                        half = length // 2
                        jobs = [await memnet.async_send(socket, part) for part in
                                (region.part(0, half), region.part(half, length - half)) if part.length_bytes]
                        await memnet.job_wait_all(jobs)
                    await memnet.close(socket)
                finally:
                    if not region.jobs:
                        await memnet.deregister_mem(region)
        return serve

    def asking(port: int, times: int) -> Any:
        async def ask(memnet: MemNet) -> int:
            good = 0
            region = await memnet.register_mem(contents)
            await world.kernel.sleep(10 * MS)
            for _ in range(times):
                try:
                    socket = await memnet.create_connection(world.server.ip, port)
                    # The reset of a connection whose server was killed may be lost.
                    for option, value in (("SO_KEEPALIVE", 1), ("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 1)):
                        memnet.set_option(socket, option, value)
                    job = await memnet.async_send(socket, region)
                    await memnet.shutdown(socket, Direction.SEND)
                    good += await receive_all(memnet, socket) == contents
                    await job
                    await memnet.close(socket)
                except NetworkError:
                    continue
            return good
        return ask

    victim = world.start(world.server, echo(PORT), "victim", background=True, **eager)
    world.start(world.server, echo(PORT + 1), "bystander", background=True)
    asks = [world.start(world.client, asking(PORT, 3), "client of the victim"),
            world.start(world.client, asking(PORT + 1, 3), "client of the bystander")]
    at_ps = rng.randrange(10 * MS, 120 * MS)
    world.kernel.call_at(at_ps, victim.kill)
    world.run()
    check.check()
    assert asks[1].result == 3, f"seed {seed}: the bystander's clients got what they asked for"
    assert world.server.counters.applications_killed == 2


class Fuse:
    """An account whose process is killed while it waits for the processor for the n-th time."""

    def __init__(self, world: World, after: int) -> None:
        self.settled = 0
        self.started: Started | None = None
        self._world = world
        self._after = after

    def charge(self, category: str, item: str, count: int = 1) -> None:
        """Costs nothing."""

    async def settle(self) -> None:
        self.settled += 1
        if self.settled == self._after:
            assert self.started is not None
            self.started.kill()
        await self._world.kernel.sleep(1000)


@pytest.mark.parametrize("settings", [{"check": True}, {"eager_accept": 2, "eager_receive_bytes": 2048}],
                         ids=["checking", "eager"])
def test_killed_in_each_of_its_steps(settings: dict[str, Any]) -> None:
    """A run through all calls, killed at its first wait for the processor, at its second, and so on to its last."""
    async def victim(memnet: MemNet) -> None:
        await memnet.start()
        region = await memnet.register_mem(3000)
        listening = memnet.listen(PORT)
        socket = await memnet.accept(listening)
        memnet.set_option(socket, "SO_KEEPALIVE", 1)
        await memnet.sync_recv(socket, region, 0, 10)
        await memnet.sync_send(socket, [region.part(0, 5), region.part(100, 50)])
        capability = await memnet.grant(socket, 10)
        held = await memnet.async_send(socket, region, 0, 100)
        await memnet.sync_write(capability.token, region, 200, 4)
        await memnet.revoke(capability)
        await held
        waiting = await memnet.async_recv(socket, region, 500, 10)
        other = await memnet.create_connection(ADDRESS_OF_CLIENT, PORT)
        await memnet.sync_send(other, region, 1000, 100)
        await memnet.shutdown(other, Direction.SEND)
        await memnet.abort(other)
        await memnet.close(socket)
        assert waiting.is_done or settings.get("eager_receive_bytes")
        await memnet.close(listening)
        await memnet.job_wait_all([held])
        await memnet.deregister_mem(region)

    def once(after: int) -> tuple[int, Outcome]:
        world = World(memory_bytes=3 << 20)
        check = LeakCheck(world)
        fuse = Fuse(world, after)
        world.server.process_account = lambda name: fuse  # type: ignore[method-assign]

        async def ask(memnet: MemNet) -> None:
            listening = memnet.listen(PORT)
            try:
                socket = await connected(memnet, world)
                memnet.set_option(socket, "TCP_USER_TIMEOUT", 1000)
                await memnet.async_send(socket, await memnet.register_mem(b"0123456789"))
                await receive_all(memnet, socket)
                accepted_one = await memnet.accept(listening)
                await receive_all(memnet, accepted_one)
            except NetworkError:
                return

        fuse.started = world.start(world.server, victim, "victim", **settings)
        world.start(world.client, ask, "client", background=True)
        world.run()
        check.check()
        assert fuse.started.application is not None
        return fuse.settled, fuse.started.application.outcome

    steps, outcome = once(0)
    assert outcome is Outcome.RETURNED
    assert steps > 30
    outcomes = [once(after)[1] for after in range(1, steps + 1)]
    assert outcomes[: steps // 2] == [Outcome.KILLED] * (steps // 2)


def test_streams_killed_in_many_of_their_steps() -> None:
    """A server of three connections at a time with one channel, killed in every so-manieth wait for the processor."""
    async def serve(_memnet: MemNet) -> None:
        async def handle(reader: streams.StreamReader, writer: streams.StreamWriter) -> None:
            while data := await reader.read(5000):
                writer.write(data)
                await writer.drain()
            writer.close()
            await writer.wait_closed()

        async with await streams.start_server(handle, port=PORT):
            await streams.sleep(0.05)

    def once(after: int) -> int:
        world = World(memory_bytes=3 << 20)
        check = LeakCheck(world)
        fuse = Fuse(world, after)
        world.server.process_account = lambda name: fuse  # type: ignore[method-assign]

        async def ask(memnet: MemNet) -> None:
            async def one(kilobytes: int) -> None:
                try:
                    reader, writer = await streams.open_connection(world.server.ip, PORT)
                    memnet.set_option(writer.get_extra_info("socket"), "SO_KEEPALIVE", 1)
                    writer.write(bytes(kilobytes * 1000))
                    writer.write_eof()
                    await reader.read()
                    writer.close()
                except NetworkError:
                    return

            await streams.sleep(0.001)
            await streams.gather(*[one(kilobytes) for kilobytes in (10, 20, 30)])

        fuse.started = world.start(world.server, serve, "server", eager_accept=1, channels=ChannelSettings(
            channels=1, send_bytes=2048, receive_bytes=1024))
        world.start(world.client, ask, "client")
        world.run()
        check.check()
        return fuse.settled

    steps = once(0)
    assert steps > 400
    for after in [*range(1, 20), *range(20, steps, steps // 30)]:
        once(after)


def test_a_handler_that_raises_loses_its_connection_and_is_counted() -> None:
    world = World()

    async def serve(_memnet: MemNet) -> None:
        async def handle(reader: streams.StreamReader, writer: streams.StreamWriter) -> None:
            line = await reader.readline()
            if line == b"die\n":
                raise KeyError("a bug")
            writer.write(line)
            writer.close()

        server = await streams.start_server(handle, port=PORT)
        await streams.sleep(10)
        server.close()

    async def ask(memnet: MemNet) -> list[Any]:
        answers: list[Any] = []
        await streams.sleep(0.001)
        for line in (b"one\n", b"die\n", b"two\n"):
            reader, writer = await streams.open_connection(world.server.ip, PORT)
            writer.write(line)
            try:
                answers.append(await reader.read())
            except ConnectionResetError as error:
                answers.append(type(error).__name__)
            writer.close()
        return answers

    assert run(world, serve, ask)[1] == [b"one\n", "PeerReset", b"two\n"]
    assert world.server.counters.tasks_failed == 1
    errors = [error for application in world.applications for error in application.task_errors]
    assert [type(error) for error in errors] == [KeyError]


def test_the_same_seed_gives_the_same_run() -> None:
    def once(seed: int) -> tuple[Any, ...]:
        world = World(machine="p2-300-smp2", seed=seed,
                      impairments=BothWays(outbound=Impairments(loss=0.03), inbound=Impairments(loss=0.03), seed=seed))
        tokens = []

        async def serve(memnet: MemNet) -> None:
            socket = await accepted(memnet)
            region = await memnet.register_mem(data(100_000))
            tokens.append((await memnet.grant(socket, 5)).token)
            await memnet.async_write(tokens[0], region, 0, 5)
            await memnet.sync_send(socket, region)
            await memnet.close(socket)

        async def ask(memnet: MemNet) -> bytes:
            return await receive_all(memnet, await connected(memnet, world))

        got = run(world, serve, ask, eager_receive_bytes=1024)[1]
        processors = world.server.processors
        assert processors is not None
        return (got, tokens, world.kernel.now, world.wire.frames_from_device, dict(processors.counts),
                world.server.counters)

    first, again, other = once(5), once(5), once(6)
    assert first == again
    assert first[0] == other[0]
    assert first[1:4] != other[1:4]


def test_an_application_that_returns_waits_a_minute_for_a_peer_that_does_not_read() -> None:
    world = World(profile=LINUX24)
    returned: list[int] = []

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        await memnet.async_send(socket, await memnet.register_mem(1 << 18))
        returned.append(world.kernel.now)

    async def ask(memnet: MemNet) -> str:
        socket = await connected(memnet, world)
        await world.kernel.sleep(90 * SECOND)
        try:
            await receive_all(memnet, socket)
        except NetworkError as error:
            return type(error).__name__
        return "all of it"

    check = LeakCheck(world)
    server = world.start(world.server, serve, "server")
    client = world.start(world.client, ask, "client")
    over: list[int] = []
    world.kernel.call_at(SECOND, lambda: server.application.over.add_callback(  # type: ignore[union-attr]
        lambda _task: over.append(world.kernel.now)))
    world.run()
    check.check()
    assert client.result == "PeerReset"
    assert 60 * SECOND <= over[0] - returned[0] < 61 * SECOND
