"""MemNet's jobs: several ranges in one, many at once, in order, and the ways to wait for them."""

from __future__ import annotations

import pytest

from cosim.impairments import BothWays, Impairments
from cosim.world import World
from host_driver.errors import BadRegion, JobTimeout, PeerReset, RangeOutsideRegion, RegionInUse, SocketClosed
from host_driver.memnet import Job, MemNet
from host_driver.runtime import first_of
from tests.host_driver.worlds import MS, PORT, accepted, connected, data, receive_all, run


def test_parts_of_several_regions_are_sent_and_received_in_one_job() -> None:
    world = World()
    head, body = data(100, 1), data(30_000, 2)

    async def serve(memnet: MemNet) -> int:
        socket = await accepted(memnet)
        first, second = await memnet.register_mem(head), await memnet.register_mem(b"....." + body)
        job = await memnet.async_send(socket, [first.part(), second.part(5), first.part(90, 10)])
        with pytest.raises(RegionInUse, match="async_send of 100 bytes at 0, 30000 bytes at 5, 10 bytes at 90"):
            await memnet.deregister_mem(first)
        sent = await memnet.job_wait(job)
        await memnet.close(socket)
        return sent

    async def ask(memnet: MemNet) -> bytes:
        socket = await connected(memnet, world)
        small, large = await memnet.register_mem(64), await memnet.register_mem(1 << 16)
        got = bytearray()
        parts = [small.part(10, 20), large.part(100, 400), small.part(40, 24)]
        while length := await memnet.sync_recv(socket, parts):
            stored = bytes(small.view[10:30]) + bytes(large.view[100:500]) + bytes(small.view[40:64])
            got += stored[:length]
        return bytes(got)

    assert run(world, serve, ask) == (30_110, head + body + head[90:])


def test_many_jobs_in_flight_finish_in_order_over_a_lossy_wire() -> None:
    """Later sends are acknowledged while an earlier one is still on the ring again; jobs end in their order all the
    same."""
    world = World(impairments=BothWays(outbound=Impairments(loss=0.05), inbound=Impairments(loss=0.05), seed=3))
    contents = data(200_000)
    order: list[int] = []

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        region = await memnet.register_mem(contents)
        jobs = [await memnet.async_send(socket, region, at, 2000) for at in range(0, len(contents), 2000)]
        for number, job in enumerate(jobs):
            job.on_over = lambda number=number, before=job.on_over: (order.append(number), before())  # type: ignore
        assert await memnet.job_wait_all(jobs) == [2000] * 100
        await memnet.close(socket)

    async def ask(memnet: MemNet) -> bytes:
        return await receive_all(memnet, await connected(memnet, world))

    assert run(world, serve, ask)[1] == contents
    assert order == list(range(100))


def test_job_wait_any_all_and_timeouts() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        listening = memnet.listen(PORT)
        first, second = await memnet.accept(listening), await memnet.accept(listening)
        region = await memnet.register_mem(100)
        jobs = [await memnet.async_recv(first, region, 0, 10), await memnet.async_recv(second, region, 50, 10)]
        assert await memnet.job_wait_any([]) == []
        start = world.kernel.now
        for wait in (memnet.job_wait(jobs[0], MS), memnet.job_wait_any(jobs, MS), memnet.job_wait_all(jobs, MS)):
            with pytest.raises(JobTimeout, match="after 1000000000 ps"):
                await wait
        assert world.kernel.now - start == 3 * MS
        assert [job._waiters for job in jobs] == [[], []]
        assert await memnet.job_wait_any(jobs) == [jobs[1]]  # the second client speaks first
        assert not jobs[0].is_done
        with pytest.raises(RuntimeError, match="is not done"):
            jobs[0].result()
        with pytest.raises(JobTimeout, match="1 of 2 jobs"):
            await memnet.job_wait_all(jobs, MS // 10)
        assert await memnet.job_wait_all(jobs) == [5, 6]
        assert await memnet.job_wait(jobs[0], 0) == 5
        assert await jobs[1] == 6, "a job is an awaitable"
        assert bytes(region.view[:5]) + bytes(region.view[50:56]) == b"firstsecond"

    async def ask(memnet: MemNet) -> None:
        first = await connected(memnet, world)
        await world.kernel.sleep(MS)
        second = await memnet.create_connection(world.server.ip, PORT)
        region = await memnet.register_mem(b"firstsecond")
        await world.kernel.sleep(10 * MS)
        await memnet.sync_send(second, region, 5, 6)
        await world.kernel.sleep(10 * MS)
        await memnet.sync_send(first, region, 0, 5)

    run(world, serve, ask)


def test_job_wait_all_raises_what_the_first_failed_job_met_when_all_are_done() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        region = await memnet.register_mem(1 << 20)
        jobs = [await memnet.async_send(socket, region, 0, 1 << 19), await memnet.async_recv(socket, region, 1 << 19)]
        with pytest.raises(PeerReset, match="send on"):
            await memnet.job_wait_all(jobs)
        assert all(job.is_done for job in jobs)
        assert isinstance(jobs[1].error, PeerReset)
        with pytest.raises(PeerReset, match="receive on"):
            jobs[1].result()
        with pytest.raises(ConnectionResetError):
            await jobs[1]

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        region = await memnet.register_mem(1000)
        await memnet.sync_recv(socket, region)
        await memnet.abort(socket)

    run(world, serve, ask)


def test_a_wait_costs_one_waking_and_one_switch_however_many_jobs() -> None:
    world = World(machine="p2-300-smp2")
    counted: list[int] = []

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        region = await memnet.register_mem(bytes(30_000))
        processors = world.server.processors
        assert processors is not None
        jobs = [await memnet.async_send(socket, region, at, 1000) for at in range(0, 30_000, 1000)]
        before = processors.counts.copy()
        await memnet.job_wait_all(jobs)
        spent = processors.counts - before
        counted.extend(spent["context_switch", item] for item in ("wake", "switch"))
        counted.append(spent["user", "memnet_call"])

    async def ask(memnet: MemNet) -> bytes:
        return await receive_all(memnet, await connected(memnet, world))

    run(world, serve, ask)
    assert counted == [1, 1, 1]


def test_errors_of_ranges_and_regions() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        region = await memnet.register_mem(1000)
        stranger = MemNet(memnet.server, memnet.account)
        other = await stranger.register_mem(10)
        for offset, length in ((1, 1000), (-1, 5), (1000, 1), (0, 0), (0, -1)):
            with pytest.raises(RangeOutsideRegion):
                await memnet.async_send(socket, region, offset, length)
        with pytest.raises(RangeOutsideRegion, match="bytes 5 to 1005"):
            await memnet.async_recv(socket, [region.part(0, 10), region.part(5, 1000)])
        with pytest.raises(RangeOutsideRegion, match="at least one byte"):
            await memnet.async_send(socket, [])
        with pytest.raises(RangeOutsideRegion, match="belong to a region"):
            await memnet.async_send(socket, [region.part()], 5)
        for call in (memnet.async_send(socket, other), memnet.deregister_mem(other)):
            with pytest.raises(BadRegion, match="another MemNet"):
                await call
        await stranger.exit()
        with pytest.raises(ValueError, match="positive"):
            await memnet.register_mem(0)
        with pytest.raises(MemoryError):
            await memnet.register_mem(1 << 30)
        assert (region.jobs, socket.jobs) == ({}, {}), "what is refused leaves nothing behind"
        await memnet.close(socket)
        with pytest.raises(SocketClosed, match="async_send of 1000 bytes"):
            await memnet.async_send(socket, region)

    async def ask(memnet: MemNet) -> None:
        await receive_all(memnet, await connected(memnet, world))

    run(world, serve, ask)


def test_registration_fails_when_the_device_has_no_key_left_and_takes_no_memory() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        nic = world.server.interface.nic
        regions = [await memnet.register_mem(64) for _ in range(len(nic._free_keys))]
        assert len(regions) > 50
        taken = len(world.memory._taken)
        with pytest.raises(MemoryError):
            await memnet.register_mem(64)
        assert len(world.memory._taken) == taken
        await memnet.deregister_mem(regions[0])
        await memnet.register_mem(64)

    async def ask(memnet: MemNet) -> None:
        return

    run(world, serve, ask)


def test_a_killed_waiter_leaves_the_job_alone() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        region = await memnet.register_mem(100)
        job = await memnet.async_recv(socket, region)

        async def wait(job: Job) -> int:
            return await memnet.job_wait(job)

        task = world.kernel.spawn(wait(job), "waiter")
        await world.kernel.sleep(MS)
        task.cancel()
        await first_of(task)
        assert not job._waiters
        assert await memnet.job_wait(job) == 4

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        await world.kernel.sleep(10 * MS)
        await memnet.sync_send(socket, await memnet.register_mem(b"late"))

    run(world, serve, ask)
