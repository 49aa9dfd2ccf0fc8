"""An echo pair for asyncio's streams: the same text runs in simulated time, and on this machine's loopback.

Shows: that a program ports by changing its import; and how long a round trip takes over the simulated hosts, device and
wire, beside one through this machine's kernel.

    python examples/echo.py [--engine compiled]
    python examples/echo.py --asyncio
"""

from __future__ import annotations

import sys
from typing import Any

if "--asyncio" in sys.argv:
    import asyncio
else:
    from host_driver import streams as asyncio  # type: ignore[no-redef]

PORT = 7007
MESSAGES = [b"x" * length for length in (1, 100, 1460, 10_000, 100_000)]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve(host: str, serving: asyncio.Event, stop: asyncio.Event) -> None:
    """Until it is told to stop."""
    server = await asyncio.start_server(echo, host, PORT)
    async with server:
        serving.set()
        await stop.wait()


async def ask(host: str) -> list[tuple[int, float]]:
    """Length and round-trip time of each message, in seconds."""
    reader, writer = await asyncio.open_connection(host, PORT)
    clock, times = asyncio.get_running_loop(), []
    for message in MESSAGES:
        start = clock.time()
        writer.write(message)
        assert await reader.readexactly(len(message)) == message
        times.append((len(message), clock.time() - start))
    writer.close()
    await writer.wait_closed()
    return times


def on_this_machine() -> list[tuple[int, float]]:
    """Both in one process, over the loopback."""
    async def both() -> list[tuple[int, float]]:
        serving, stop = asyncio.Event(), asyncio.Event()
        server = asyncio.create_task(serve("127.0.0.1", serving, stop))
        await serving.wait()
        times = await ask("127.0.0.1")
        stop.set()
        await server
        return times

    import asyncio as real
    return real.run(both())


def simulated() -> list[tuple[int, float]]:
    """Each on a host of its own."""
    from cosim.world import world_from_command_line

    world = world_from_command_line(str(__doc__))
    serving, stop = asyncio.Event(), asyncio.Event()

    async def client(_memnet: Any) -> list[tuple[int, float]]:
        await serving.wait()
        times = await ask(world.server.ip)
        stop.set()
        return times

    world.start(world.server, lambda _memnet: serve(world.server.ip, serving, stop), "echo server")
    started = world.start(world.client, client, "client")
    world.run()
    times: list[tuple[int, float]] = started.result
    return times


def main() -> None:
    """Run it, and print the times."""
    is_real = "--asyncio" in sys.argv
    for length, seconds in on_this_machine() if is_real else simulated():
        print(f"{length:>7,} bytes there and back: {seconds * 1e6:8,.1f} us {'real' if is_real else 'simulated'}")


if __name__ == "__main__":
    main()
