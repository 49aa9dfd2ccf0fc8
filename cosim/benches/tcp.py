"""How fast the software TCP is, what a connection takes, and what it makes of a path that loses: `memnic bench tcp`.

Speed is that of one processor, both stacks on it, best of some repetitions, since machines are shared. Goodput is in
simulated time: a path of one bottleneck with a queue, a delay each way, and random loss of what carries data. Its bars
are 80 % of what arithmetic expects: of the bottleneck or the window, whichever is less, without loss; with loss of the
model of Padhye et al. (timeouts included), and for CUBIC of RFC 9438's, if that is more.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
import tracemalloc
from collections.abc import Callable
from typing import NamedTuple

from cosim.benches import BenchOptions
from cosim.benches.rows import Row, row
from cosim.mac import PS_PER_S
from host_driver.account import NullAccount
from host_driver.tcp import PROFILES, Chunk, Connection, Profile, Stack
from host_driver.tcp.profile import MS
from nic_model.contract.protocols import ETHERNET_HEADER_BYTES, IPV4_HEADER_BYTES, TCP_HEADER_BYTES

ADDRESSES = (("10.0.0.1", bytes.fromhex("020000000001")), ("10.0.0.2", bytes.fromhex("020000000002")))
PORT = 80
MSS = 1500 - IPV4_HEADER_BYTES - TCP_HEADER_BYTES
FRAME_OVERHEAD_BYTES = 24
"""Preamble, FCS and gap."""

SPEED_BAR = 30_000
MEMORY_BAR_BYTES = 10_000
SHARE_OF_EXPECTED = 0.8

SPEED_SEGMENTS = 12_000
REPETITIONS = 3
IDLE_CONNECTIONS = 1_000

LINK_BIT_RATE = 100_000_000
QUEUE_FRAMES = 200
ROUND_TRIPS_MS = (1, 20, 100)
LOSS_PERCENT = (0, 1, 5)
LEAST_BYTES = 6_000_000
LEAST_SECONDS = 5
"""At the expected rate: the start of a transfer must not count for much."""
SEED = 1

ACKED_PER_ACK = 2
"""RFC 5681 §4.2's delayed acknowledgements: b in the model of Padhye et al."""


def stacks(profile: Profile) -> tuple[Stack, Stack]:
    """Two stacks that know each other."""
    (ip_a, mac_a), (ip_b, mac_b) = ADDRESSES
    a = Stack(mac=mac_a, ip=ip_a, profile=profile, account=NullAccount(), rng=random.Random(f"{SEED} a"))
    b = Stack(mac=mac_b, ip=ip_b, profile=profile, account=NullAccount(), rng=random.Random(f"{SEED} b"))
    a.add_neighbour(ip_b, mac_b)
    b.add_neighbour(ip_a, mac_a)
    return a, b


# ---------------------------------------------------------------------------------------------- speed and memory


def exchange(a: Stack, b: Stack, now: int) -> None:
    """Carry frames over at once, until neither has any left."""
    while a.has_output or b.has_output:
        for sender, receiver in ((a, b), (b, a)):
            for out in sender.transmit(now):
                receiver.receive(out.frame(), now)


def segments_per_second(profile: Profile, segments: int = SPEED_SEGMENTS) -> float:
    """Full segments that one processor carries from one stack's user to the other's, both stacks' work counted.

    Frames are built and taken apart, and their sums are made and verified in software.
    """
    a, b = stacks(profile)
    listener = b.listen(PORT, 1)
    connection = a.connect(ADDRESSES[1][0], PORT, 0)
    exchange(a, b, 0)
    server = listener.accept()
    if server is None:
        raise RuntimeError("the handshake failed")
    data = bytes(64 * connection.mss)
    total, got, now = segments * connection.mss, 0, 0
    begin = time.process_time()
    while got < total:
        now += MS
        while connection.writable and connection.queued_bytes < total:
            connection.send(Chunk(data))
        a.poll(now)
        b.poll(now)
        exchange(a, b, now)
        got += len(server.recv(total))
    seconds = time.process_time() - begin
    return got / connection.mss / seconds


def idle_connection_bytes(profile: Profile, count: int = IDLE_CONNECTIONS) -> float:
    """Memory of one end of an established connection without data, its share of the stack's tables included."""
    a, b = stacks(profile)
    listener = b.listen(PORT, count)
    kept: list[Connection | None] = []
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(count):
            kept.append(a.connect(ADDRESSES[1][0], PORT, 0))
            exchange(a, b, 0)
            kept.append(listener.accept())
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    if any(connection is None or not connection.established for connection in kept):
        raise RuntimeError("not all connections were established")
    return used / len(kept)


# ---------------------------------------------------------------------------------------------- goodput


class Bottleneck(NamedTuple):
    """A path: rate and queue of its narrowest link, its delay both ways together, and its random loss."""

    round_trip_ps: int
    loss: float
    bit_rate: int = LINK_BIT_RATE
    queue_frames: int = QUEUE_FRAMES


class _Direction:
    """One way of a path: frames leave one behind the other, as long as the queue has room for them."""

    def __init__(self, path: Bottleneck, loss: float, rng: random.Random) -> None:
        self._path = path
        self._loss = loss
        self._rng = rng
        self._free_at = 0

    def arrival(self, length_bytes: int, now: int) -> int | None:
        """When a frame arrives that is sent now; None if it does not."""
        path = self._path
        duration = (length_bytes + FRAME_OVERHEAD_BYTES) * 8 * PS_PER_S // path.bit_rate
        if self._free_at - now > path.queue_frames * duration or self._rng.random() < self._loss:
            return None
        self._free_at = max(self._free_at, now) + duration
        return self._free_at + path.round_trip_ps // 2


def goodput(profile: Profile, path: Bottleneck, total_bytes: int, seed: int = SEED) -> float:
    """Bits a second of simulated time at which a user gets `total_bytes`, from the SYN on."""
    a, b = stacks(profile)
    rng = random.Random(f"{seed} {profile.name} {path}")
    ways = (_Direction(path, path.loss, rng), _Direction(path, 0, rng))
    listener = b.listen(PORT, 1)
    connection = a.connect(ADDRESSES[1][0], PORT, 0)
    server: Connection | None = None
    wire: list[tuple[int, int, int, bytes]] = []
    order = itertools.count()
    block = bytes(1 << 16)
    now, got = 0, 0
    while got < total_bytes:
        if connection.established:
            while connection.writable and connection.queued_bytes < total_bytes:
                connection.send(Chunk(block))
        server = server or listener.accept()
        if server is not None:
            got += len(server.recv(total_bytes))
        for to, (stack, way) in enumerate(zip((a, b), ways, strict=True)):
            for out in stack.transmit(now):
                frame = out.frame()
                arrives = way.arrival(len(frame), now)
                if arrives is not None:
                    heapq.heappush(wire, (arrives, next(order), 1 - to, frame))
        times = [t for t in (a.next_deadline(), b.next_deadline()) if t is not None]
        if wire:
            times.append(wire[0][0])
        if not times or connection.error is not None:
            raise RuntimeError(f"{profile.name}: the transfer ended after {got} of {total_bytes} bytes: "
                               f"{connection.error}")
        now = max(now, min(times))
        while wire and wire[0][0] <= now:
            _, _, to, frame = heapq.heappop(wire)
            (a, b)[to].receive(frame, now, checksum_ok=True)
        a.poll(now)
        b.poll(now)
    return got * 8 * PS_PER_S / now


def expected_goodput(profile: Profile, path: Bottleneck) -> float:
    """Bits a second that arithmetic expects of a long transfer."""
    mss_bits = 8 * (MSS - (12 if profile.timestamps else 0))
    frame_bits = 8 * (1500 + ETHERNET_HEADER_BYTES + FRAME_OVERHEAD_BYTES)
    round_trip = path.round_trip_ps / PS_PER_S
    window_bits = 8 * min(profile.receive_buffer_bytes, 0xFFFF << (profile.window_scale or 0))
    limits = [path.bit_rate * mss_bits / frame_bits, window_bits / round_trip]
    if path.loss:
        segments = padhye(path.loss, round_trip, max(profile.min_rto_ps / PS_PER_S, 2 * round_trip))
        if profile.congestion_control == "cubic":
            segments = max(segments, cubic_segments(path.loss, round_trip))
        limits.append(segments * mss_bits)
    return min(limits)


def padhye(loss: float, round_trip_s: float, timeout_s: float) -> float:
    """Segments a second of Reno under random loss: Padhye, Firoiu, Towsley, Kurose: "Modeling TCP Throughput" (1998),
    equation 30."""
    b = ACKED_PER_ACK
    waits = timeout_s * min(1.0, 3 * math.sqrt(3 * b * loss / 8)) * loss * (1 + 32 * loss**2)
    return 1 / (round_trip_s * math.sqrt(2 * b * loss / 3) + waits)


def cubic_segments(loss: float, round_trip_s: float) -> float:
    """Segments a second of CUBIC under random loss: RFC 9438 §5.1, equation 6, over the round trip."""
    # "AVG_W_cubic = ((C * (3 + beta_cubic)) / (4 * (1 - beta_cubic)))^(1/4) * RTT^(3/4) / p^(3/4)", C = 0.4, beta = 0.7
    factor = (0.4 * (3 + 0.7) / (4 * (1 - 0.7))) ** 0.25
    return float(factor * round_trip_s**0.75 / loss**0.75 / round_trip_s)


# ---------------------------------------------------------------------------------------------- rows


def _best(measure_once: Callable[[Profile], float], profile: Profile) -> float:
    return max(measure_once(profile) for _ in range(REPETITIONS))


def measure(options: BenchOptions) -> list[Row]:
    """All rows."""
    rows = []
    for profile in PROFILES.values():
        options.say(f"speed, {profile.name}")
        rows.append(row(f"{profile.name}: data segments through both stacks on one processor",
                        _best(segments_per_second, profile), "segments/s", ">=", SPEED_BAR,
                        f"{MSS - (12 if profile.timestamps else 0):,} bytes each, all sums in software"))
    for profile in PROFILES.values():
        options.say(f"memory, {profile.name}")
        rows.append(row(f"{profile.name}: memory of an idle connection", idle_connection_bytes(profile), "bytes", "<=",
                        MEMORY_BAR_BYTES, f"of {IDLE_CONNECTIONS:,}, each end by itself"))
    for profile, round_trip_ms, percent in itertools.product(PROFILES.values(), ROUND_TRIPS_MS, LOSS_PERCENT):
        options.say(f"goodput, {profile.name}, {round_trip_ms} ms, {percent} % loss")
        path = Bottleneck(round_trip_ms * MS, percent / 100)
        expected = expected_goodput(profile, path)
        total_bytes = max(LEAST_BYTES, int(expected / 8 * LEAST_SECONDS))
        rows.append(row(f"{profile.name}: goodput, round trip {round_trip_ms} ms, {percent} % loss",
                        goodput(profile, path, total_bytes) / 1e6, "Mb/s", ">=", SHARE_OF_EXPECTED * expected / 1e6,
                        f"{total_bytes / 1e6:.0f} MB over {LINK_BIT_RATE / 1e6:g} Mb/s; expected {expected / 1e6:.3g}"))
    return rows
