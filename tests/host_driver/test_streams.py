"""The sockets API that copies: the same program text over asyncio on this machine's loopback, and over ours."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cosim.world import World
from host_driver import streams
from host_driver.errors import AddressInUse, AddressNotAvailable, ConnectionRefused, PeerReset
from host_driver.memnet import ChannelSettings, MemNet, Option
from tests.host_driver.worlds import PORT, LeakCheck, data, receive_all, run

ASYNCIO = "import asyncio"
OURS = "from host_driver import streams as asyncio"

PROGRAM = Path(__file__).with_name("asyncio_program.py").read_text(encoding="utf-8")


def program(import_line: str) -> SimpleNamespace:
    """The program, with its import changed and nothing else."""
    names: dict[str, Any] = {}
    assert PROGRAM.count(ASYNCIO) == 1
    exec(compile(PROGRAM.replace(ASYNCIO, import_line), f"<{import_line}>", "exec"), names)
    return SimpleNamespace(**names)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def over_asyncio(client: str, *arguments: Any) -> tuple[Any, list[Any]]:
    """Answers of the client, and what the server saw, on this machine's loopback."""
    text = program(ASYNCIO)
    port, unused = free_port(), free_port()

    async def main() -> tuple[Any, list[Any]]:
        serving, stop = asyncio.Event(), asyncio.Event()

        async def until_stopped() -> None:
            serving.set()
            await stop.wait()

        server = asyncio.create_task(text.serve("127.0.0.1", port, until_stopped))
        await serving.wait()
        extra = (unused,) if client == "errors" else arguments
        answers = await getattr(text, client)("127.0.0.1", port, *extra)
        stop.set()
        return answers, await server

    return asyncio.run(main())


def over_ours(client: str, *arguments: Any, **world_settings: Any) -> tuple[Any, list[Any]]:
    """The same over two simulated hosts."""
    text = program(OURS)
    settings = {name: world_settings.pop(name) for name in ("channels", "check") if name in world_settings}
    world = World(**world_settings)
    check = LeakCheck(world)
    serving, stop = streams.Event(), streams.Event()

    async def until_stopped() -> None:
        serving.set()
        await stop.wait()

    async def serve(_memnet: MemNet) -> Any:
        return await text.serve(world.server.ip, PORT, until_stopped)

    async def ask(_memnet: MemNet) -> Any:
        await serving.wait()
        extra = (PORT + 1,) if client == "errors" else arguments
        answers = await getattr(text, client)(world.server.ip, PORT, *extra)
        stop.set()
        return answers

    server = world.start(world.server, serve, "server", **settings)
    started = world.start(world.client, ask, "client", **settings)
    world.run()
    check.check()
    return started.result, server.result


def test_a_program_written_for_asyncio_gives_the_same_here() -> None:
    theirs, ours = over_asyncio("fetch"), over_ours("fetch")
    assert theirs[0] == ours[0]
    assert theirs[1] == [True, ("end", True)]
    assert ours[1] == ["other", ("end", True)], "here the client is another host"
    assert theirs[0][:2] == [b"hello", b"> first\n> second, a longer one\n> \n"]
    assert theirs[0][2:] == [True, True, b"last", (b"", True, b""), True]


def test_errors_are_those_of_asyncio() -> None:
    theirs, ours = over_asyncio("errors"), over_ours("errors")
    assert theirs[0] == ours[0] == [
        "refused", "timeout", (b"abc", 4), "overrun", "long line", b"the next one\n", False, "cancelled"]


def test_serving_for_ever_ends_with_whoever_waits_for_it() -> None:
    theirs = asyncio.run(program(ASYNCIO).serve_for_a_while("127.0.0.1", free_port()))
    world = World()
    check = LeakCheck(world)
    ours = world.start(world.server, lambda _: program(OURS).serve_for_a_while(world.server.ip, PORT), "server")
    world.run()
    check.check()
    assert ours.result == theirs == ("cancelled", False)


def test_many_clients_at_once() -> None:
    theirs, ours = over_asyncio("many", 25), over_ours("many", 25)
    assert theirs[0] == ours[0] == [True] * 25


@pytest.mark.parametrize("settings", [
    {"channels": ChannelSettings(channels=1, send_bytes=1024, receive_bytes=512)},
    {"check": True}, {"machine": "p2-300-smp2"},
], ids=["small rings", "checking", "costs"])
def test_it_does_not_depend_on_the_rings_nor_on_the_processor(settings: dict[str, Any]) -> None:
    assert over_ours("fetch", **settings)[0] == over_ours("fetch")[0]


def test_bytes_are_copied_once_each_way_beside_tcps_own_copy() -> None:
    world = World(machine="p2-300-smp2")
    up, down = data(30_000, 1), data(50_000, 2)

    async def serve(_memnet: MemNet) -> bytes:
        got: list[bytes] = []

        async def handle(reader: streams.StreamReader, writer: streams.StreamWriter) -> None:
            got.append(await reader.readexactly(len(up)))
            writer.write(down)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            done.set()

        done = streams.Event()
        server = await streams.start_server(handle, port=PORT)
        await done.wait()
        server.close()
        await server.wait_closed()
        return got[0]

    async def ask(_memnet: MemNet) -> bytes:
        await streams.sleep(0.001)
        reader, writer = await streams.open_connection(world.server.ip, PORT)
        writer.write(up)
        answer = await reader.read()
        writer.close()
        return answer

    assert run(world, serve, ask) == (up, down)
    processors = world.server.processors
    assert processors is not None
    assert processors.counts["copy", "user_to_kernel_byte"] == len(down)
    assert processors.counts["copy", "kernel_to_user_byte"] == 2 * len(up), "into the ring, and out of it"


def test_a_stream_and_jobs_speak_to_each_other() -> None:
    world = World()

    async def serve(memnet: MemNet) -> bytes:
        listening = memnet.listen(PORT)
        connection = await memnet.accept(listening)
        got = await receive_all(memnet, connection)
        await memnet.sync_send(connection, await memnet.register_mem(got[::-1]))
        await memnet.close(connection)
        return got

    async def ask(_memnet: MemNet) -> bytes:
        await streams.sleep(0.001)
        reader, writer = await streams.open_connection(world.server.ip, PORT)
        writer.write(data(100_000))
        writer.write_eof()
        answer = [line async for line in reader]
        writer.close()
        return b"".join(answer)

    assert run(world, serve, ask, channels=ChannelSettings(channels=2)) == (data(100_000), data(100_000)[::-1])


def test_what_start_server_and_open_connection_refuse() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        server = await streams.start_server(lambda reader, writer: writer.close(), "", PORT)
        with pytest.raises(AddressInUse):
            await streams.start_server(lambda reader, writer: None, port=PORT)
        with pytest.raises(AddressNotAvailable):
            await streams.start_server(lambda reader, writer: None, "10.9.9.9", 80)
        assert len(memnet._process.sockets) == 1
        await streams.sleep(1)
        server.close()
        await server.wait_closed()
        assert server.sockets == ()

    async def ask(_memnet: MemNet) -> None:
        await streams.sleep(0.001)
        with pytest.raises(ConnectionRefused):
            await streams.open_connection(world.server.ip, PORT + 1)
        reader, writer = await streams.open_connection(world.server.ip, PORT)
        assert writer.get_extra_info("socket").option(Option.TCP_NODELAY) is True
        assert writer.get_extra_info("nothing", 5) == 5
        assert await reader.read() == b""
        with pytest.raises(ValueError, match="less than zero"):
            await reader.readexactly(-1)
        with pytest.raises(ValueError, match="at least one-byte"):
            await reader.readuntil(b"")
        writer.close()

    run(world, serve, ask)
    with pytest.raises(RuntimeError, match="no application runs here"):
        streams.get_running_loop()


def test_a_reset_reaches_reader_and_writer() -> None:
    world = World()

    async def serve(memnet: MemNet) -> None:
        connection = await memnet.accept(memnet.listen(PORT))
        await streams.sleep(0.01)
        await memnet.abort(connection)

    async def ask(_memnet: MemNet) -> None:
        await streams.sleep(0.001)
        reader, writer = await streams.open_connection(world.server.ip, PORT)
        writer.write(bytes(1 << 20))
        assert writer.transport.get_write_buffer_size() > 100_000
        with pytest.raises(PeerReset):
            await writer.drain()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert writer.is_closing()
        writer.close()
        await writer.wait_closed()
        with pytest.raises(ConnectionResetError, match="Connection lost"):
            await writer.drain()
        assert await reader.read() == b""

    run(world, serve, ask)


def test_gather_and_wait_for() -> None:
    world = World()

    async def serve(_memnet: MemNet) -> list[Any]:
        async def after(seconds: float, result: Any) -> Any:
            await streams.sleep(seconds)
            if isinstance(result, Exception):
                raise result
            return result

        found: list[Any] = [await streams.gather(after(0.3, 1), after(0.1, 2), streams.create_task(after(0.2, 3)))]
        found.append(await streams.gather(after(0.2, 1), after(0.1, KeyError("k")), return_exceptions=True))
        with pytest.raises(KeyError):
            await streams.gather(after(0.1, KeyError("k")), after(0.1, 2))
        found.append(await streams.wait_for(after(0.1, "in time"), 0.2))
        found.append(await streams.wait_for(after(0.1, "without limit"), None))
        waiting: Coroutine[Any, Any, Any] = after(5, "late")
        start = streams.get_running_loop().time()
        with pytest.raises(TimeoutError, match=r"not done after 0\.25 s"):
            await streams.wait_for(waiting, 0.25)
        found.append(round(streams.get_running_loop().time() - start, 6))
        with pytest.raises(KeyError):
            await streams.wait_for(after(0.1, KeyError("k")), 1)
        return found

    async def ask(_memnet: MemNet) -> None:
        return

    found = run(world, serve, ask)[0]
    assert found[0] == [1, 2, 3]
    assert found[1][0] == 1
    assert isinstance(found[1][1], KeyError)
    assert found[2:] == ["in time", "without limit", 0.25]
