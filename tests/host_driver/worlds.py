"""Two hosts and what tests of MemNet do with them; every run ends by looking whether anything was left behind."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any

from cosim.world import Started, World
from host_driver.memnet import MemNet, MemNetSocket
from host_driver.tcp.states import State

MS = 10**9
SECOND = 10**12
PORT = 7

Main = Callable[[MemNet], Coroutine[Any, Any, Any]]


def data(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


class LeakCheck:
    """What the server's host had before its applications began, compared with what it has behind them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._memory: set[int] = set()
        self._keys: set[int] = set()
        world.kernel.spawn(self._look(), "leak check")

    async def _look(self) -> None:
        await self._world.server.up.wait()
        self._memory = set(self._world.memory._taken)
        self._keys = set(self._world.server.interface.nic._free_keys)

    def check(self) -> None:
        world, server = self._world, self._world.server
        world.kernel.run_until(world.kernel.now + 10 * SECOND)  # the last handshakes of TCP
        assert self._memory, "the server never came up"
        assert set(world.memory._taken) == self._memory, "host memory was not given back"
        assert set(server.interface.nic._free_keys) == self._keys, "memory keys were not given back"
        left = [c for c in server.interface.stack.connections if c.state not in (State.TIME_WAIT, State.FIN_WAIT_2)]
        assert left == [], f"connections were left open: {left}"
        assert server.tcp_server.channels == 0, "channels were not given back"
        assert len(server.tcp_server.grants) == 0, "capabilities are still open"
        ours = [task.name for task in world.kernel.tasks if "TCP server's worker" in task.name
                or "accepting ahead" in task.name]
        assert ours == [], "tasks of the TCP server were left behind"


def run(world: World, serve: Main, ask: Main, **memnet: Any) -> tuple[Any, Any]:
    """Both applications, to their ends, and what they returned; `memnet` are arguments of the server's."""
    check = LeakCheck(world)
    server: Started = world.start(world.server, serve, "server", **memnet)
    client: Started = world.start(world.client, ask, "client")
    world.run()
    check.check()
    return server.result, client.result


async def accepted(memnet: MemNet) -> MemNetSocket:
    """The first connection; nothing listens any more."""
    listening = memnet.listen(PORT)
    socket = await memnet.accept(listening)
    await memnet.close(listening)
    return socket


async def connected(memnet: MemNet, world: World) -> MemNetSocket:
    """A connection to the server, which has had time to listen."""
    await world.kernel.sleep(MS)
    return await memnet.create_connection(world.server.ip, PORT)


async def receive_all(memnet: MemNet, socket: MemNetSocket) -> bytes:
    """All up to the peer's end."""
    region = await memnet.register_mem(1 << 16)
    got = bytearray()
    while length := await memnet.sync_recv(socket, region):
        got += region.view[:length]
    await memnet.deregister_mem(region)
    return bytes(got)
