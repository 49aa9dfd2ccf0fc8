"""The checking mode: a buffer that is touched while its job is in flight is found, by region, offset and job."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cosim.world import World
from host_driver.errors import BufferTouched
from host_driver.memnet import Direction, MemNet
from tests.host_driver.worlds import MS, accepted, connected, data, receive_all, run


@pytest.mark.parametrize("value", ["1", "0", None])
def test_the_environment_switches_it(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("MEMNET_CHECK", raising=False)
    else:
        monkeypatch.setenv("MEMNET_CHECK", value)
    world = World()

    async def serve(memnet: MemNet) -> bool:
        socket = await accepted(memnet)
        region = await memnet.register_mem(100)
        job = await memnet.async_recv(socket, region)
        found = False
        try:
            region.view[5] = 1
        except BufferTouched:
            found = True
        await job
        return found

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        await world.kernel.sleep(MS)
        await memnet.sync_send(socket, await memnet.register_mem(b"x"))

    assert run(world, serve, ask)[0] is (value == "1")


def test_the_view_forbids_what_jobs_forbid_and_nothing_else() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        region = await memnet.register_mem(data(1000))
        view = region.view
        before = bytes(view)
        assert before == data(1000) == view.tobytes()
        assert (len(view), view[3], view[-1]) == (1000, before[3], before[-1])
        assert view[10:20] == before[10:20]
        view[0:4] = b"abcd"
        view[4] = 5
        assert bytes(view[:5]) == b"abcd\x05"
        send = await memnet.async_send(socket, region, 100, 100)
        receive = await memnet.async_recv(socket, [region.part(300, 50), region.part(400, 50)])
        assert bytes(view[100:200]) == before[100:200], "a send's bytes may be read"
        view[99] = view[200] = view[299] = view[350] = 7
        forbidden: list[tuple[Callable[[], object], str]] = [
            (lambda: view.__setitem__(150, 0), r"byte 150 of <MemoryRegion 1000 bytes .* was written .*async_send"),
            (lambda: view.__setitem__(slice(90, 101), bytes(11)), "byte 100 .* was written"),
            (lambda: view[349], "byte 349 .* was read .*async_recv of 50 bytes at 300, 50 bytes at 400"),
            (lambda: bytes(view[200:500]), "byte 300 .* was read"),
            (lambda: view[999::-7], "byte 300 .* was read"),
            (lambda: view == b"", "byte 300 .* was read"),
            (lambda: view[300:301] == b"x", "byte 300 .* was read"),
            (lambda: view.__setitem__(449, 0), "byte 449 .* was written"),
        ]
        for touch, message in forbidden:
            with pytest.raises(BufferTouched, match=message):
                touch()
        for call in (memnet.async_recv(socket, region, 340, 20), memnet.async_send(socket, region, 340, 20),
                     memnet.async_recv(socket, region, 199, 1)):
            with pytest.raises(BufferTouched, match="is to be used by async_"):
                await call
        again = await memnet.async_send(socket, region, 150, 100)  # two sends of the same bytes are no harm
        assert await memnet.job_wait_all([send, receive, again]) == [100, 60, 100]
        assert bytes(view[300:350]) + bytes(view[400:410]) == b"y" * 60
        assert bytes(view[410:450]) == before[410:450], "what no byte reached is as it was"
        view[100:450] = bytes(350)
        assert bytes(view[::2]) == bytes(view)[::2]

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        await world.kernel.sleep(MS)
        await memnet.sync_send(socket, await memnet.register_mem(b"y" * 60))
        await receive_all(memnet, socket)

    run(world, serve, ask, check=True)


@pytest.mark.parametrize(("kind", "offset"), [("send", 5000), ("send", 0), ("recv", 999), ("recv", 40)])
def test_what_gets_round_the_view_is_found_when_the_job_is_over(kind: str, offset: int) -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        socket = await accepted(memnet)
        region = await memnet.register_mem(data(10_000))
        memory = world.memory.view(region.address, region.length_bytes)
        job = await (memnet.async_send(socket, region) if kind == "send" else
                     memnet.async_recv(socket, region, 0, 1000))
        memory[offset] ^= 0xFF
        with pytest.raises(BufferTouched, match=f"byte {offset} of {region!r} was changed while <Job async_{kind} of"):
            await job
        assert memnet.counters.buffers_touched == 1
        assert region.jobs == {}
        if kind == "send":
            assert await memnet.sync_send(socket, region) == 10_000, "the next one is judged by itself"

    async def ask(memnet: MemNet) -> None:
        socket = await connected(memnet, world)
        await world.kernel.sleep(MS)
        if kind == "recv":
            await memnet.sync_send(socket, await memnet.register_mem(b"y" * 40))
        await receive_all(memnet, socket)

    run(world, serve, ask, check=True)


@pytest.mark.parametrize("ahead", [0, 4096])
def test_whole_transfers_are_not_disturbed(ahead: int) -> None:
    world = World()
    contents = data(100_000)

    async def serve(memnet: MemNet) -> bytes:
        socket = await accepted(memnet)
        got = await receive_all(memnet, socket)
        region = await memnet.register_mem(got)
        jobs = [await memnet.async_send(socket, region, at, 1000) for at in range(0, 100_000, 1000)]
        await memnet.job_wait_all(jobs)
        await memnet.close(socket)
        return got

    async def ask(memnet: MemNet) -> bytes:
        socket = await connected(memnet, world)
        await memnet.sync_send(socket, await memnet.register_mem(contents))
        await memnet.shutdown(socket, Direction.SEND)
        return await receive_all(memnet, socket)

    assert run(world, serve, ask, check=True, eager_receive_bytes=ahead) == (contents, contents)
    assert world.server.counters.buffers_touched == 0
