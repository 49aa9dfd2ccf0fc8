"""A bulk sender with overlapped jobs: what is gained by having the next one posted while the last one is under way.

Shows: `async_send` of the next buffer while earlier ones are with the device and the peer, and `job_wait_any` to refill
whichever is free first. A job is done when the peer has acknowledged it: who posts one at a time waits for a delayed
acknowledgement each time, with two in flight the processor is the limit.

    python examples/bulk_sender.py [--engine compiled]
"""

from __future__ import annotations

import random

from cosim.world import world_from_command_line
from host_driver.errors import NetworkError
from host_driver.memnet import Job, MemNet

PORT = 5001
TOTAL_BYTES = 1 << 20
BUFFER_BYTES = 16_384
IN_FLIGHT = (1, 2, 4, 8)


async def send(memnet: MemNet, host: str, contents: bytes, in_flight: int) -> None:
    """All of `contents`, through `in_flight` buffers, each filled anew when its job is done."""
    socket = await memnet.create_connection(host, PORT)
    region = await memnet.register_mem(in_flight * BUFFER_BYTES)
    free, posted = [n * BUFFER_BYTES for n in range(in_flight)], dict[Job, int]()
    for at in range(0, len(contents), BUFFER_BYTES):
        if not free:
            for job in await memnet.job_wait_any(list(posted)):
                free.append(posted.pop(job))
        offset, piece = free.pop(0), contents[at : at + BUFFER_BYTES]
        region.view[offset : offset + len(piece)] = piece
        posted[await memnet.async_send(socket, region, offset, len(piece))] = offset
    await memnet.close(socket)  # behind what was posted
    await memnet.job_wait_all(list(posted))
    await memnet.deregister_mem(region)


async def receive(memnet: MemNet) -> bytes:
    """All of one connection, by two receives that are posted in turn."""
    listening = memnet.listen(PORT)
    socket = await memnet.accept(listening)
    await memnet.close(listening)
    region, got = await memnet.register_mem(2 * 65536), bytearray()
    halves = [region.part(0, 65536), region.part(65536, 65536)]
    jobs = [await memnet.async_recv(socket, half) for half in halves]
    while length := await memnet.job_wait(jobs[0]):
        got += halves[0].view()[:length]
        jobs, halves = jobs[1:], halves[::-1]
        jobs.append(await memnet.async_recv(socket, halves[1]))
    await memnet.close(socket)
    return bytes(got)


def main() -> None:
    """Run it with more and more jobs in flight, and print the rates."""
    contents = random.Random(1).randbytes(TOTAL_BYTES)
    for in_flight in IN_FLIGHT:
        world = world_from_command_line(str(__doc__), machine="p2-300-smp2")
        took: list[int] = []

        async def sender(memnet: MemNet, in_flight: int = in_flight, took: list[int] = took) -> None:
            kernel = memnet.server.provider.kernel
            await kernel.sleep(5_000_000_000)
            start = kernel.now
            await send(memnet, "10.0.0.2", contents, in_flight)
            took.append(kernel.now - start)

        got = world.start(world.client, receive, "receiver")
        world.start(world.server, sender, "sender")
        try:
            world.run()
        except NetworkError as error:
            raise SystemExit(f"bulk_sender: {error}") from None
        assert got.result == contents
        rate = TOTAL_BYTES * 8 * 1e12 / took[0]
        print(f"{in_flight} jobs of {BUFFER_BYTES:,} bytes in flight: {rate / 1e6:6.1f} Mbit/s")


if __name__ == "__main__":
    main()
