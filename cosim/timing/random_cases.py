"""Random workloads, of which none was used to characterize the device: for `memnic bench accuracy` and its tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from cosim.engines.bus import BusTiming
from cosim.mac import PS_PER_S, MacTiming
from cosim.timing.cases import HEADER_BYTES, Arrival, Case, Moderation, Send, Sender
from nic_model.contract import NicConfig, slots_needed

LATENCIES = (50, 100, 250, 400, 700, 1000)
"""Of DMA, in cycles."""

FAST = MacTiming(bit_rate=1 << 40, lookahead_ps=PS_PER_S)
SIZES = (60, 64, 100, 128, 200, 256, 400, 512, 700, 1000, 1280, 1514)


def _bus(rng: random.Random, **more: float) -> BusTiming:
    latency = rng.choice(LATENCIES)
    values: dict[str, float] = {
        "read_latency_cycles": latency, "write_latency_cycles": rng.choice((50, 100, 200, 400)),
        "mmio_read_cycles": 100, "mmio_write_cycles": 20, "bytes_per_cycle": 1 << 30, "duplex": True, "tags": 4096,
        "seed": rng.randrange(1 << 30), **more}
    return BusTiming(**values)  # type: ignore[arg-type]


def _random_send(rng: random.Random) -> Send:
    """A send of any size and shape."""
    kind = rng.random()
    offset = rng.choice((0, 64, 2, 130, 1000))
    if kind < 0.4:
        return Send(payload=rng.choice(SIZES), offset=offset, pieces=rng.choice((1, 1, 2)))
    if kind < 0.55:
        return Send(payload=rng.choice((20, 200, 800, 1460)), inline=HEADER_BYTES, checksums=rng.random() < 0.7,
                    offset=offset)
    if kind < 0.7:
        return Send(payload=0, inline=rng.choice((60, 64, 90)))
    return Send(payload=rng.choice((1460, 3000, 9000, 20_000, 65_536)), mss=rng.choice((536, 1000, 1460)),
                offset=offset, pieces=rng.choice((1, 1, 3)))


def _bells(rng: random.Random, count: int, spread: int) -> tuple[tuple[int, int], ...]:
    """Doorbells for so many sends, in some cycles."""
    bells, left, at = [], count, 100
    while left:
        here = min(left, rng.choice((1, 2, 5, 20, 100)))
        bells.append((at, here))
        left -= here
        at += rng.randrange(1, spread)
    return tuple(bells)


def _sender(rng: random.Random, config: NicConfig, channel: int, sends: list[Send], spread: int) -> Sender:
    """As many of the sends as its ring has room for."""
    room, kept = 1 << config.max_ring_log2, []
    for send in sends:
        room -= slots_needed(HEADER_BYTES if send.mss else send.inline, len(send.cut()))
        if room < 0:
            break
        kept.append(send)
    return Sender(channel=channel, sends=tuple(kept), bells=_bells(rng, len(kept), spread))


def _arrivals(rng: random.Random, config: NicConfig, count: int, load: float, flows: int,
              sizes: tuple[int, ...] = SIZES) -> tuple[Arrival, ...]:
    """Frames at a share of the MAC's rate, in bursts."""
    found, at = [], 100.0
    for _ in range(count):
        length = rng.choice(sizes)
        found.append(Arrival(cycle=int(at), length=length, flow=rng.randrange(flows)))
        at += length / config.mac_bytes / load * rng.choice((0.2, 1.0, 1.8))
    return tuple(found)


def large_sends(rng: random.Random, config: NicConfig) -> Case:
    """64 KB sends of one to three channels."""
    count = 4 * config.mac_bytes // 8 + 2
    sends = [Send(payload=65_536, mss=rng.choice((536, 1460)), offset=rng.choice((0, 64, 100))) for _ in range(count)]
    channels = rng.choice((1, 2, 3))
    return Case(name="64 KB sends", bus=_bus(rng), senders=tuple(
        _sender(rng, config, 1 + number, sends[number::channels], 3000) for number in range(channels)))


def mixed_sends(rng: random.Random, config: NicConfig) -> Case:
    """Sends of all sizes and shapes from one channel."""
    sends = [_random_send(rng) for _ in range(200)]
    return Case(name="mixed sends", bus=_bus(rng), senders=(_sender(rng, config, 1, sends, 2000),))


def several_channels(rng: random.Random, config: NicConfig) -> Case:
    """The same from two or three."""
    return Case(name="mixed sends, several channels", bus=_bus(rng), senders=tuple(
        _sender(rng, config, channel, [_random_send(rng) for _ in range(100)], 2000)
        for channel in range(1, 1 + rng.choice((2, 3)))))


def small_sends(rng: random.Random, config: NicConfig) -> Case:
    """Small frames as fast as they go."""
    sends = [Send(payload=rng.choice((60, 64, 100)), offset=64 * number) for number in range(600)]
    return Case(name="small frames", bus=_bus(rng), senders=(_sender(rng, config, 1, sends, 500),))


def out_of_order(rng: random.Random, config: NicConfig) -> Case:
    """Mixed sends over a bus out of order."""
    case = mixed_sends(rng, config)
    return replace(case, name="mixed sends, out of order", bus=_bus(rng, reorder_cycles=rng.choice((50, 100, 200))))


def narrow_bus(rng: random.Random, config: NicConfig) -> Case:
    """Mixed sends over a bus with PCIe's limits."""
    case = mixed_sends(rng, config)
    return replace(case, name="mixed sends, PCIe's limits", bus=_bus(
        rng, bytes_per_cycle=config.mac_bytes * rng.choice((0.7, 1.3, 2.5)), tlp_overhead_bytes=24,
        max_payload_bytes=256, max_read_request_bytes=512, tags=rng.choice((16, 32, 64)), duplex=rng.random() < 0.7))


def slow_wire(rng: random.Random, config: NicConfig) -> Case:
    """Mixed sends to a wire that holds them up."""
    rate = int(config.clock_hz * config.mac_bytes * 8 * rng.choice((0.3, 0.6, 0.9)))
    case = mixed_sends(rng, config)
    return replace(case, name="mixed sends, back-pressure",
                   mac=MacTiming(bit_rate=rate, fifo_bytes=rng.choice((10_000, 16_384)), lookahead_ps=PS_PER_S))


def receive(rng: random.Random, config: NicConfig) -> Case:
    """Frames of all sizes."""
    return Case(name="receive", bus=_bus(rng), arrivals=_arrivals(rng, config, 400, rng.choice((0.3, 0.6, 0.95)), 1))


def receive_spread(rng: random.Random, config: NicConfig) -> Case:
    """The same, spread over channels."""
    return Case(name="receive, several channels", bus=_bus(rng), receivers=rng.choice((2, 4)),
                arrivals=_arrivals(rng, config, 400, rng.choice((0.3, 0.6, 0.95)), 32))


def duplex(rng: random.Random, config: NicConfig) -> Case:
    """Both ways."""
    sends = [_random_send(rng) for _ in range(150)]
    return Case(name="both ways", bus=_bus(rng), senders=(_sender(rng, config, 1, sends, 1500),),
                arrivals=_arrivals(rng, config, 300, rng.choice((0.2, 0.5)), 1))


def moderated(rng: random.Random, config: NicConfig) -> Case:
    """Both ways, with interrupts that are moderated and answered."""
    case = duplex(rng, config)
    sender = case.senders[0]
    bells, at = [], 100
    for _ in sender.sends:
        bells.append((at, 1))
        at += rng.randrange(200, 900)
    rounds = [Arrival(cycle=100 + number * rng.randrange(150, 160), length=rng.choice(SIZES)) for number in range(300)]
    return replace(case, name="interrupts", senders=(replace(sender, bells=tuple(bells)),),
                   arrivals=tuple(sorted(rounds, key=lambda arrival: arrival.cycle)), moderation=Moderation(
        rx_ticks=rng.choice((0, 300, 2000)), rx_frames=rng.choice((1, 8, 32)), tx_ticks=rng.choice((0, 300, 2000)),
        tx_frames=rng.choice((1, 8, 32)), host_cycles=rng.choice((200, 1000))))


def coalesced(rng: random.Random, config: NicConfig) -> Case:
    """Segments of some flows, which are coalesced."""
    sequences = dict.fromkeys(range(rng.choice((1, 3))), 1000)
    found, at = [], 100.0
    load = rng.choice((0.4, 0.8))
    for _ in range(300):
        flow, payload = rng.choice(list(sequences)), rng.choice((1460, 1460, 1460, 500))
        found.append(Arrival(cycle=int(at), length=HEADER_BYTES + payload, flow=flow, sequence=sequences[flow]))
        sequences[flow] += payload
        at += (HEADER_BYTES + payload) / config.mac_bytes / load
    return Case(name="coalesced", bus=_bus(rng), arrivals=tuple(found), coalesce_ticks=rng.choice((2000, 8000)),
                buffer_bytes=4096)


KINDS: tuple[Callable[[random.Random, NicConfig], Case], ...] = (
    large_sends, mixed_sends, several_channels, small_sends, out_of_order, narrow_bus, slow_wire, receive,
    receive_spread, duplex, moderated, coalesced)


def random_case(number: int, config: NicConfig, seed: int) -> Case:
    """Number `number` of a seed: kinds in turn. The same arguments give the same case."""
    kind = KINDS[number % len(KINDS)]
    rng = random.Random(f"{seed} {number} {config.mac_bytes}")
    case = kind(rng, config)
    return replace(case, name=f"{case.name} (case {number} of seed {seed})", seed=number)
