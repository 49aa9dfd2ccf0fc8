"""A web server whose responses leave registered memory: no byte of a file is copied by the processor.

Shows: files registered once; a response as one job of two parts, head and file; many connections at once, each a task;
what the host copied. Three clients, which use the sockets API, fetch every file and compare it.

    python examples/web_server.py [--engine compiled]
"""

from __future__ import annotations

import random

from cosim.world import world_from_command_line
from host_driver import streams
from host_driver.memnet import MemNet, MemNetSocket, MemoryRegion

PORT = 80
CLIENTS = 3
FILES = {f"/{name}": random.Random(name).randbytes(length)
         for name, length in {"empty": 0, "small": 100, "page": 16_384, "picture": 250_000}.items()}


class WebServer:
    """HTTP/1.0, GET only; a connection for each request."""

    def __init__(self, memnet: MemNet) -> None:
        self.memnet = memnet
        self.served = 0
        self._files: dict[str, MemoryRegion] = {}

    async def run(self) -> None:
        """Serve for ever."""
        memnet = self.memnet
        for path, contents in FILES.items():
            head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(contents)
            self._files[path] = await memnet.register_mem(head + contents)
        self._missing = await memnet.register_mem(b"HTTP/1.0 404 Not Found\r\n\r\n")
        listening = memnet.listen(PORT)
        while True:
            streams.create_task(self.serve(await memnet.accept(listening)))

    async def serve(self, socket: MemNetSocket) -> None:
        """One request."""
        memnet = self.memnet
        buffer = await memnet.register_mem(4096)
        length = 0
        while b"\r\n\r\n" not in bytes(buffer.view[:length]):
            received = await memnet.sync_recv(socket, buffer, length)
            if not received:
                break
            length += received
        path = bytes(buffer.view[:length]).split()[1].decode()
        job = await memnet.async_send(socket, self._files.get(path, self._missing))
        await memnet.close(socket)
        await memnet.job_wait(job)
        await memnet.deregister_mem(buffer)
        self.served += 1


async def fetch(host: str, path: str) -> bytes:
    """The body of a file."""
    reader, writer = await streams.open_connection(host, PORT)
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    status = await reader.readline()
    while (await reader.readline()).strip():
        pass
    body = await reader.read()
    writer.close()
    assert status.split()[1] == (b"200" if path in FILES else b"404"), status
    return body


def main() -> None:
    """Run it, and say what it took."""
    world = world_from_command_line(str(__doc__), machine="p2-300-smp2")
    servers: list[WebServer] = []

    async def serve(memnet: MemNet) -> None:
        servers.append(WebServer(memnet))
        await servers[0].run()

    async def ask(_memnet: MemNet) -> int:
        await streams.sleep(0.005)
        for path in [*FILES, "/missing"]:
            assert await fetch(world.server.ip, path) == FILES.get(path, b""), path
        return len(FILES) + 1

    world.start(world.server, serve, "web server", background=True)
    clients = [world.start(world.client, ask, f"client {number}") for number in range(CLIENTS)]
    world.run()
    processors = world.server.processors
    assert processors is not None
    copied = processors.counts["copy", "user_to_kernel_byte"] + processors.counts["copy", "retransmit_byte"]
    sent = CLIENTS * sum(map(len, FILES.values()))
    print(f"{servers[0].served} responses to {len(clients)} clients, {sent:,} bytes of files, all compared")
    print(f"copied by the processor to send them: {copied:,} bytes")
    print(f"simulated time: {world.kernel.now / 1e9:.1f} ms")


if __name__ == "__main__":
    main()
