"""Two stacks with a path between them: a bulk transfer in simulated time, over delay, rate, queue and random loss."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass

from host_driver.account import NullAccount
from host_driver.tcp import Chunk, Connection, Profile, Stack
from host_driver.tcp.profile import MS, SECOND

MACS = (bytes.fromhex("020000000001"), bytes.fromhex("020000000002"))
IPS = ("10.0.0.1", "10.0.0.2")


@dataclass
class Path:
    """What lies between the stacks; the same both ways, but the queue, which only the data's way has."""

    delay_ps: int = 10 * MS
    """One way."""
    loss: float = 0.0
    """Of data segments and acknowledgements alike."""
    rate: float = 0.0
    """Bytes a second of the data's way; 0: as fast as they come."""
    queue_bytes: int = 1 << 30
    """Waiting at the bottleneck; what does not fit is dropped."""
    jitter_ps: int = 0
    """Up to this much more delay, so that segments overtake each other."""


@dataclass
class Transfer:
    """What became of it."""

    seconds: float
    goodput: float
    """Bytes a second."""
    sender: Connection
    sent_segments: int
    dropped_at_queue: int


def transfer(profile: Profile, path: Path, total_bytes: int, *, seed: int = 1, limit_s: int = 3600) -> Transfer:
    """Send `total_bytes` from one stack to the other, which reads at once; ends when all has arrived."""
    rng = random.Random(seed)
    stacks = [Stack(mac=MACS[n], ip=IPS[n], profile=profile, account=NullAccount(), rng=random.Random(n))
              for n in (0, 1)]
    for n in (0, 1):
        stacks[n].add_neighbour(IPS[1 - n], MACS[1 - n])
    listener = stacks[1].listen(80, 1)
    client = stacks[0].connect(IPS[1], 80, 0)
    server: Connection | None = None
    block = bytes(65536)
    wire: list[tuple[int, int, int, bytes]] = []
    order = itertools.count()
    now = got = queued = segments = dropped = 0
    free_at = 0  # when the bottleneck has sent all that waits
    while got < total_bytes:
        while queued < total_bytes and client.established and client.writable:
            queued += client.send(Chunk(block[: min(len(block), total_bytes - queued)]))
        for n in (0, 1):
            for out in stacks[n].transmit(now):
                leaves_at = now
                if n == 0:
                    segments += out.payload_bytes > 0
                    if path.rate:
                        waiting_s = max(free_at - now, 0) / SECOND
                        if waiting_s * path.rate > path.queue_bytes:
                            dropped += 1
                            continue
                        free_at = max(free_at, now) + int((out.payload_bytes + 66) / path.rate * SECOND)
                        leaves_at = free_at
                if rng.random() >= path.loss:
                    jitter = rng.randrange(path.jitter_ps) if path.jitter_ps else 0
                    heapq.heappush(wire, (leaves_at + path.delay_ps + jitter, next(order), 1 - n, out.frame()))
        times = [t for t in (stacks[0].next_deadline(), stacks[1].next_deadline()) if t is not None]
        now = max(now, min([*times, *([wire[0][0]] if wire else [])]))
        assert now < limit_s * SECOND, f"{got} bytes of {total_bytes} in {limit_s} s: {client}"
        if wire and wire[0][0] <= now:
            _, _, to, frame = heapq.heappop(wire)
            stacks[to].receive(frame, now, checksum_ok=True)
        for stack in stacks:
            stack.poll(now)
        server = server or listener.accept()
        if server is not None:
            got += len(server.recv(1 << 30))
    seconds = now / SECOND
    return Transfer(seconds, total_bytes / seconds, client, segments, dropped)
