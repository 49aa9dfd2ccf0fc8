"""Measures the cycles of a device's stages on the RTL: `memnic characterize`.

For each figure there is a stimulus in which it decides something that shows at the device's ports: when a read is
asked for, a frame begins, a completion leaves. The RTL runs it once; then the figure is the number with which the
timing rules give the same edge. Figures are solved in packet order, so that each depends on those before it only. If
several numbers give the same, the smallest is taken, and the file says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cosim.benches.rtl import DEVICES as BENCH_DEVICES
from cosim.benches.rtl import build
from cosim.engines.bus import BusTiming
from cosim.engines.library import PortEventKind
from cosim.mac import PS_PER_S, MacTiming
from cosim.timing import device_file
from cosim.timing.cases import Arrival, Case, Moderation, Send, Sender
from cosim.timing.device_file import DeviceFile, Figure, Measured
from cosim.timing.observed import BUFFERS, PAYLOAD, SLOTS, Observed, on_rtl, on_rules
from nic_model.contract import CONFIGS, DOORBELL_BASE, NicConfig, doorbell
from nic_model.contract.config import BURST_BYTES
from nic_model.timing.parameters import DeviceModel, Queues, StageTiming

ROOT = Path(__file__).parents[2]
SOURCES = ("rtl", "nic_model/contract")

CONFIGURATIONS: dict[str, NicConfig] = {
    **CONFIGS, **{config.name: config for config in BENCH_DEVICES.values() if config.name not in CONFIGS},
}
"""Devices that can be characterized: the named ones, and those of `memnic bench rtl`."""

LATENCY = 400
"""Of host memory in most stimuli, in cycles."""

AGAIN = 2
"""Times that all figures are solved, since a few depend on later ones."""

Say = Callable[[str], None]


def rtl_hash() -> str:
    """Of the sources that a device is made from."""
    found = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(f"{path.relative_to(ROOT)}\0".encode())
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def bus(latency: int = LATENCY, write_latency: int = 100, bytes_per_cycle: float = 1 << 30) -> BusTiming:
    """A bus that has nothing but latency."""
    return BusTiming(read_latency_cycles=latency, write_latency_cycles=write_latency, mmio_read_cycles=20,
                     mmio_write_cycles=10, bytes_per_cycle=bytes_per_cycle, duplex=True, tags=4096)


class Probe(NamedTuple):
    """How one figure is found."""

    figure: str
    case: Case
    look: Callable[[Observed], float | list[float]]
    """What of the case it decides: one number, or several of which each should agree."""
    words: str
    low: int = 0
    high: int = 64


def _send(payload: int, **more: int | bool) -> Send:
    return Send(payload=payload, **more)  # type: ignore[arg-type]


def _sender(sends: Sequence[Send], channel: int = 1, bells: Sequence[tuple[int, int]] = ()) -> Sender:
    return Sender(channel=channel, sends=tuple(sends), bells=tuple(bells) or ((100, len(sends)),))


def _arrivals(count: int, length: int, period: float = 1) -> tuple[Arrival, ...]:
    return tuple(Arrival(cycle=100 + round(number * period), length=length) for number in range(count))


def _first_frame(found: Observed) -> float:
    return found.frames[0][0]


def _last_frame(found: Observed) -> float:
    return found.frames[-1][1]


def _all_frames(found: Observed) -> list[float]:
    return [first for first, _ in found.frames]


def _first_done(found: Observed) -> float:
    return min(edges[0] for edges in found.completions.values())


def _all_done(found: Observed) -> list[float]:
    return sorted(edge for its in found.completions.values() for edge in its)


def _read(client: int, number: int) -> Callable[[Observed], float]:
    return lambda found: found.reads[client][number]


def _reads_spacing(client: int, since: int, until: int) -> Callable[[Observed], float]:
    return lambda found: (found.reads[client][until] - found.reads[client][since]) / (until - since)


def _reads(client: int) -> Callable[[Observed], list[float]]:
    return lambda found: list(found.reads[client])


def probes(config: NicConfig) -> Iterator[Probe]:
    """All that are solved by the rules, in packet order."""

    reads = config.payload_reads
    small = [_send(14)] * 60

    def case(*senders: Sender, **more: object) -> Case:
        return Case(name="characterize", **{"bus": bus(), "senders": senders, **more})  # type: ignore[arg-type]

    one = case(_sender([_send(60)]))
    yield Probe("bell_to_fetch", one, _read(SLOTS, 0), "one send of one slot: doorbell to the read of the slot")
    yield Probe("slot_to_payload", one, _read(PAYLOAD, 0), "the same: the slot's last beat to the payload's read")
    yield Probe("plain_to_frame", one, _first_frame,
                "the same, a 60-byte frame without checksums: the payload's last beat to the frame's first")
    yield Probe("sent_to_write", one, _first_done, "the same: the frame's last beat to the completion's first")
    yield Probe("fetch_interval", case(*(_sender([_send(60)], channel) for channel in (1, 2, 3))),
                lambda found: sum(found.reads[SLOTS][:3]),
                "one send on each of three channels at a time: reads of slots", 1)
    yield Probe("decision_interval", case(_sender(small)), _reads_spacing(PAYLOAD, 4, min(20, reads - 1)),
                "60 sends of 14 bytes: from one payload's read to the next", 1)
    yield Probe("piece_first", case(_sender([_send(240, pieces=12)])), _reads_spacing(PAYLOAD, 0, 7),
                "one frame of 12 pieces: from one piece's read to the next", 1)
    yield Probe("piece_further", case(_sender([_send(1024, pieces=16, mss=96)])),
                _reads_spacing(PAYLOAD, 0, 18),
                "a send of 16 pieces of 64 bytes in segments of 96: reads of payload", 1)
    yield Probe("busy_to_payload", case(_sender([_send(14)] * 3)), _read(PAYLOAD, 1),
                "sends of one slot, one right behind the other: the second's read of payload")
    yield Probe("job_interval", case(_sender(small)), _reads(PAYLOAD), "60 sends of 14 bytes: all reads of payload", 1)
    yield Probe("header_to_frame", case(_sender([_send(200, inline=54)])), _first_frame,
                "a frame of 54 bytes inline and 200 of payload: the payload's last beat to the frame's first")
    yield Probe("sum_cycles", case(_sender([_send(200, inline=54, checksums=True)])), _first_frame,
                "the same with checksums")
    yield Probe("header_overhead", case(_sender([_send(32 * 60, mss=32)]), bus=bus(100)), _last_frame,
                "a send of 60 segments of 32 bytes: its last beat")
    yield Probe("template_cycles", case(_sender([_send(32, mss=32)] * 20)), _all_frames,
                "20 sends of one segment of 32 bytes each: their first beats")
    yield Probe("decision_to_rows", case(_sender([_send(0, inline=60)])), _first_frame,
                "a frame of 60 bytes inline: the slots' last beat to the frame's first", -32, 32)
    pushed = Sender(channel=1, sends=(_send(0, inline=32),), bells=((100, 1),), pushes=True)
    yield Probe("push_to_payload", case(pushed),
                _first_frame, "a frame of 32 bytes that is pushed: its last beat to the frame's first")
    yield Probe("slot_to_read", case(_sender([_send(14)] * (reads + 20)), bus=bus(1000)), _read(PAYLOAD, reads),
                f"more sends of 14 bytes than reads in flight ({reads}): the first read that waits for a landing slot")
    slow = MacTiming(bit_rate=200_000_000, fifo_bytes=10_000, lookahead_ps=PS_PER_S)
    frames = 3 * (reads * 256 // 1024 + 12)
    yield Probe("begun_to_payload", case(_sender([_send(1024)] * frames), mac=slow), _read(PAYLOAD, 4 * (frames - 1)),
                "frames of 1,024 bytes to a slow wire: reads that wait for frames to leave", 0, 256)
    yield Probe("freed_to_fetch", case(_sender([_send(14)] * 200), bus=bus(1000)),
                lambda found: min(edge for edge in found.reads[SLOTS] if edge > 1000),
                "200 sends of 14 bytes: the first fetch that waits for room")
    yield Probe("freed_before_fetch", case(_sender([_send(0, inline=60)] * 100), bus=bus(1000)), _all_frames,
                "100 frames of 60 bytes inline, 1,000 cycles of latency: their first beats", 0, 16)
    yield Probe("refetch", case(_sender([_send(0, inline=60)] * 100)), _all_frames,
                "100 frames of 60 bytes inline: their first beats")
    yield Probe("fetch_overhead", case(_sender([_send(0, inline=60)] * 100), bus=bus(100)), _all_frames,
                "100 frames of 60 bytes inline, 100 cycles of latency: their first beats")

    arrived = case(arrivals=_arrivals(1, 60))
    yield Probe("arrived_to_write", arrived, _first_done,
                "one frame of 60 bytes: its last beat to the first that is written", 0, 128)
    yield Probe("match_interval", case(arrivals=_arrivals(200, 14)), _all_done,
                "200 frames of 14 bytes without a pause: their completions", 1)
    yield Probe("burst_interval", case(_sender([_send(14)] * 100), arrivals=_arrivals(200, 14, 3)), _all_done,
                "frames of 14 bytes both ways: all completions", 1)
    yield Probe("match_further", case(arrivals=_arrivals(1, 240), buffer_bytes=16), _first_done,
                "one frame of 240 bytes in buffers of 16: its first completion")
    yield Probe("gather_interval", case(arrivals=_arrivals(1, 240), buffer_bytes=16), _all_done,
                "the same: all its completions", 1)
    yield Probe("response_to_room", case(arrivals=_arrivals(120, 1514, 1600 / config.mac_bytes), bus=bus(250, 1500)),
                _all_done, "120 frames of 1,514 bytes, 1,500 cycles of latency of writes: their completions", 0, 32)
    yield Probe("used_to_fetch", case(arrivals=_arrivals(150, 60, 12)), _read(BUFFERS, 0),
                "150 frames of 60 bytes, one each 12 cycles: the first read of slots that buffers made room for", 0,
                128)
    yield Probe("slots_to_write", case(arrivals=_arrivals(200, 60, 4), bus=bus(1000)), _all_done,
                "200 frames of 60 bytes without a pause, 1,000 cycles of latency: their completions", 0, 128)


# Figures that the ports show directly.


def _directly(config: NicConfig, library: Path) -> dict[str, Figure]:
    bells = on_rtl(config, library, Case(name="bells", bus=bus(), senders=tuple(
        _sender([_send(60)], channel) for channel in (1, 2, 3))))
    rung = [event.edge for event in bells.events if event.kind is PortEventKind.DOORBELL and event.edge > 0]
    events = on_rtl(config, library, Case(name="receive", bus=bus(), arrivals=_arrivals(1, 60))).events
    posted = [event.edge for event in events if event.kind is PortEventKind.DOORBELL
              and event.number >= DOORBELL_BASE]
    fetched = [event.edge for event in on_rtl(config, library, Case(
        name="fetches", bus=bus(), arrivals=_arrivals(60, 60, 50))).events if event.kind is PortEventKind.READ]
    asked = [event.edge for event in events if event.kind is PortEventKind.READ]
    response = on_rtl(config, library, Case(name="response", bus=bus(), arrivals=_arrivals(1, 60)))
    written = [event.edge for event in response.events if event.kind is PortEventKind.WRITTEN]
    done = response.completions[0][0]
    answered = next(event.edge for event in response.events if event.kind is PortEventKind.WRITTEN)
    assert written[0] == answered
    waits = 300
    rises, responses = [], []
    for ticks in (0, waits):
        seen = on_rtl(config, library, Case(
            name="interrupt", bus=bus(), senders=(_sender([_send(60)]),),
            moderation=Moderation(tx_ticks=ticks, rx_ticks=ticks, tx_frames=9 if ticks else 0)))
        rises.append(seen.interrupts[0][0])
        responses.append(next(event.edge for event in seen.events if event.kind is PortEventKind.WRITTEN))
    # the second completion is in memory when the host looks, but the bus has not answered it: the arm is ahead of it
    ahead = on_rtl(config, library, Case(
        name="arm", bus=bus(LATENCY, 400), senders=(_sender([_send(60)] * 2, bells=((100, 1), (500, 1))),),
        moderation=Moderation(host_cycles=200)))
    risen = [edge for edge, _ in ahead.interrupts]
    armed = [event.edge for event in ahead.events if event.kind is PortEventKind.DOORBELL
             and event.number == doorbell("CQ_ARM", 1) and risen[0] < event.edge < risen[1]]
    # two segments of one flow, far from each other: the first opens an aggregate, the second goes behind it
    length = 54 + 100
    merged = on_rtl(config, library, Case(
        name="coalesced", bus=bus(), coalesce_ticks=20_000, buffer_bytes=4096, arrivals=(
            Arrival(cycle=100, length=length, sequence=1000), Arrival(cycle=2100, length=length, sequence=1100))))
    ends = [event.edge for event in merged.events if event.kind is PortEventKind.ARRIVED]
    writes = [event.edge for event in merged.events if event.kind is PortEventKind.WRITE]
    alone = on_rtl(config, library, Case(name="alone", bus=bus(), buffer_bytes=4096, arrivals=(
        Arrival(cycle=100, length=length), Arrival(cycle=2100, length=100))))
    plain = [event.edge for event in alone.events if event.kind is PortEventKind.WRITE]
    alone_ends = [event.edge for event in alone.events if event.kind is PortEventKind.ARRIVED]
    first = next(edge for edge in writes if edge > ends[0]) - ends[0]
    second = next(edge for edge in writes if edge > ends[1]) - ends[1]
    rows = [-(-(at + count) // config.host_bytes) - at // config.host_bytes for at, count in ((length, 100), (0, 100))]
    plain_first = next(edge for edge in plain if edge > alone_ends[0]) - alone_ends[0]
    plain_second = next(edge for edge in plain if edge > alone_ends[1]) - alone_ends[1] - rows[1] + rows[0]
    return {
        "coalesce_open": Figure(first - plain_first, "a segment that opens an aggregate, beside one by itself"),
        "coalesce_append": Figure(second - plain_second,
                                  "a segment of 100 bytes behind another, beside a frame by itself"),
        "arm_to_irq": Figure(risen[1] - armed[-1],
                             "an arm whose index is not the device's: its beat to the interrupt"),
        "bell_to_port": Figure(rung[0] - 110, "a doorbell that is written alone: the end of its way to its beat"),
        "bell_write": Figure(rung[1] - rung[0], "doorbells written at one time: from one's beat to the next's"),
        "post_to_fetch": Figure(asked[0] - posted[0], "a doorbell of a receive ring to the read of its slots"),
        "prefetch_interval": Figure(fetched[1] - fetched[0],
                                    "60 buffers posted at one time: from one read to the next"),
        "response_to_write": Figure(
            done - answered - max(1, 32 // config.host_bytes) + 1,
            "one frame of 60 bytes: the bus's response to it to its completion's first beat"),
        "response_to_irq": Figure(rises[0] - responses[0], "one send without moderation: response to interrupt"),
        "deadline_to_irq": Figure(rises[1] - responses[1] - waits,
                                  f"one send, moderation of {waits} cycles: response to interrupt, without them"),
    }


def _registers(config: NicConfig, library: Path) -> dict[str, Figure]:
    from cosim.timing.registers import register_cycles

    write, read = register_cycles(config, library)
    return {
        "register_write": Figure(write, "100 register writes at one time, and a read behind them"),
        "register_read": Figure(read, "a register read, without the bus's time"),
    }


# ---------------------------------------------------------------------------------------------- solving


def characterize(config: NicConfig, say: Say, library: Path | None = None) -> DeviceFile:
    """All figures of a device, measured now."""
    say(f"{config.name}: building")
    library = library or build(config)
    queues = rtl_queues(config)
    say(f"{config.name}: what the ports show")
    figures = {**_registers(config, library), **_directly(config, library)}
    todo = list(probes(config))
    wanted = {}
    for probe in todo:
        say(f"{config.name}: {probe.figure}")
        wanted[probe.figure] = probe.look(on_rtl(config, library, probe.case))
    known = {name: figures[name].cycles if name in figures else START.get(name, 1) for name in StageTiming.names()}
    model = DeviceModel(config=config, timing=StageTiming(**known), **queues)
    words: dict[str, str] = {}
    for turn in range(AGAIN):
        say(f"{config.name}: solving, {turn + 1} of {AGAIN}")
        before = model
        for probe in todo:
            model, words[probe.figure] = _solve(model, probe, wanted[probe.figure])
        if model == before:
            break
    for probe in todo:
        figures[probe.figure] = Figure(getattr(model.timing, probe.figure), words[probe.figure])
    return DeviceFile(
        name=config.name,
        description=f"The RTL's {config.name}: {8 * config.mac_bytes}-bit MAC, {config.channels} channels",
        sizes=device_file.sizes_of(config), queues=queues, timing={name: figures[name] for name in StageTiming.names()},
        measured=Measured(device=config.name, rtl=rtl_hash()))


START = {"header_to_frame": 16, "plain_to_frame": 16, "sent_to_write": 15, "arrived_to_write": 40,
         "slot_to_payload": 20, "bell_to_fetch": 14, "used_to_fetch": 30, "slots_to_write": 30,
         "refetch": 12, "freed_to_fetch": 10, "piece_first": 3, "piece_further": 4,
         "freed_before_fetch": 4, "match_interval": 3, "burst_interval": 2, "decision_interval": 4,
         "match_further": 4, "gather_interval": 3, "response_to_room": 5, "fetch_overhead": 2, "slot_to_read": 4,
         "begun_to_payload": 8}
"""Where solving begins."""


def _apart(found: float | list[float], wanted: float | list[float]) -> float:
    """Cycles between what the rules and what the RTL does, on the average."""
    if not isinstance(found, list) or not isinstance(wanted, list):
        assert not isinstance(found, list)
        assert not isinstance(wanted, list)
        return abs(found - wanted)
    lacks = abs(len(found) - len(wanted)) * MISSING_CYCLES
    return (lacks + sum(abs(one - other) for one, other in zip(found, wanted, strict=False))) / max(1, len(wanted))


MISSING_CYCLES = 1000
"""What an event counts that only one of both has."""


def _solve(model: DeviceModel, probe: Probe, wanted: float | list[float]) -> tuple[DeviceModel, str]:
    """The device with the figure that comes nearest, and how it was measured."""
    seen: dict[int, float] = {}

    def miss(value: int) -> float:
        if value not in seen:
            timing = replace(model.timing, **{probe.figure: value})
            seen[value] = _apart(probe.look(on_rules(replace(model, timing=timing), probe.case)), wanted)
        return seen[value]

    # coarse, then fine: what a figure does need not be monotone
    step = max(1, (probe.high - probe.low) // 16)
    best = min(range(probe.low, probe.high + 1, step), key=lambda value: (miss(value), value))
    while step > 1:
        step = max(1, step // 4)
        around = range(max(probe.low, best - 4 * step), min(probe.high, best + 4 * step) + 1, step)
        best = min(around, key=lambda value: (miss(value), value))
    best_miss = miss(best)
    least = _furthest(best, probe.low, lambda value: miss(value) == best_miss)
    most = _furthest(best, probe.high, lambda value: miss(value) == best_miss)
    words = probe.words
    if most > least:
        words += f"; any number from {least} to {most} gives the same"
    if best_miss >= 0.5:
        words += f"; {best_miss:.1f} cycles from the RTL" + (" on the average" if isinstance(wanted, list) else "")
    return replace(model, timing=replace(model.timing, **{probe.figure: least})), words


def _furthest(begin: int, end: int, same: Callable[[int], bool]) -> int:
    """The number nearest to `end` up to which all are the same, found by halving."""
    if same(end):
        return end
    while abs(end - begin) > 1:
        middle = (begin + end) // 2
        begin, end = (middle, end) if same(middle) else (begin, middle)
    return begin


def rtl_queues(config: NicConfig) -> dict[str, int]:
    """What the RTL's sources say of its queues."""
    from rtl.coalescer import WAYS
    from rtl.dma_read import DESCRIPTOR_READS, RECEIVE_READS
    from rtl.dma_write import RECEIVE_BURSTS_BUFFERED, RECEIVE_WRITES, completion_writes
    from rtl.fetch import fetches_of_a_channel
    from rtl.headers import FRAMES
    from rtl.interfaces import queue_slots
    from rtl.rx_rings import prefetch_slots

    # `FrameScheduler`'s decision, `PieceWalker`'s, two in the stage between, two in `BurstCutter`
    return dataclasses.asdict(Queues(
        queue_slots=queue_slots(config), channel_fetches=fetches_of_a_channel(config),
        descriptor_reads=DESCRIPTOR_READS, receive_reads=RECEIVE_READS, prefetch_slots=prefetch_slots(config),
        receive_writes=RECEIVE_WRITES, completion_writes=completion_writes(config),
        rows_buffered=RECEIVE_BURSTS_BUFFERED * BURST_BYTES // config.host_bytes, coalesce_ways=WAYS,
        frames_ready=FRAMES - 1, commands_ahead=6))


def moved(before: DeviceFile, now: DeviceFile) -> list[str]:
    """Figures, queues and sizes that are not what they were, in words."""
    found = [f"timing.{name}: {before.timing[name].cycles}, now {now.timing[name].cycles} ({now.timing[name].measured})"
             for name in StageTiming.names() if before.timing[name].cycles != now.timing[name].cycles]
    return found + [f"{table}.{name}: {was[name]}, now {value}"
                    for table, was, is_now in (("queues", before.queues, now.queues),
                                               ("sizes", before.sizes, now.sizes))
                    for name, value in is_now.items() if was[name] != value]
