"""What is seen of a case at the device's ports: of the RTL, or of the timing rules without bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from cosim.engines.bench import CountingPort
from cosim.engines.bus import Bus
from cosim.engines.compiled import CompiledDevice
from cosim.engines.library import Library, PortEvent, PortEventKind
from cosim.engines.timed import TimedPort
from cosim.engines.transactor_port import TransactorPort
from cosim.mac import PS_PER_S, SentFrame
from cosim.memory import HostMemory
from cosim.timing.cases import HEADER_BYTES, Case, drive, receive_ring_log2, start_ps
from host_driver.rings import CompletionRing
from host_driver.runtime import Kernel, Task
from nic_model.contract import COMPLETION_BYTES, NicConfig
from nic_model.timing import rules
from nic_model.timing.machine import Machine
from nic_model.timing.parameters import DeviceModel

MEMORY_BYTES = 1 << 26
QUIET_CYCLES = 20_000
"""Before a case's start, when the rules run without a host: receive slots are fetched in them."""

PAYLOAD, SLOTS, BUFFERS = rules.PAYLOAD, rules.SLOTS, rules.BUFFERS


@dataclass
class Observed:
    """Edges of the device's clock, counted from the case's start."""

    frames: list[tuple[int, int]] = field(default_factory=list)
    """(first beat, last beat) of each frame that was sent."""
    frame_bytes: list[bytes] = field(default_factory=list)
    reads: dict[int, list[int]] = field(default_factory=dict)
    """When each DMA read was asked for, by who reads: PAYLOAD, SLOTS, BUFFERS."""
    completions: dict[int, list[int]] = field(default_factory=dict)
    """Channel -> when the write of each of its completions left."""
    interrupts: list[tuple[int, int]] = field(default_factory=list)
    """(edge, vector) of each line that rose."""
    rings: dict[int, bytes] = field(default_factory=dict)
    """Channel -> its completion ring in host memory."""
    memory: bytes = b""
    events: list[PortEvent] = field(default_factory=list)
    """All that crossed the RTL's ports, from its reset on."""
    cycles: int = 0
    """From the case's start to its end."""
    dropped: int = 0
    """Frames that arrived and were not delivered; of the rules only."""
    waited: dict[tuple[str, str], int] = field(default_factory=dict)
    worked: dict[str, int] = field(default_factory=dict)
    """Cycles that stages have waited for another, and worked; of the rules only: `nic_model.timing.rules.WAITS`."""


class CaseBench:
    """Implements `cosim.engines.bench.Bench`: one case."""

    def __init__(self, config: NicConfig, case: Case) -> None:
        self.config = config
        self.case = case
        self.kernel = Kernel()
        self.memory = HostMemory(MEMORY_BYTES)
        self.bus = Bus(case.bus)
        self.timing = case.mac
        self.deliver: Callable[[bytes, bool, int], None] = lambda frame, bad, time_ps: None
        self.mac = self
        self.sent: list[SentFrame] = []
        self._task: Task[None] | None = None

    def __enter__(self) -> CaseBench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        return

    def transmitted(self, frames: Sequence[SentFrame]) -> None:
        """Keep them."""
        self.sent += frames

    def start(self, port: CountingPort) -> None:
        """Begin."""
        self._task = self.kernel.spawn(
            drive(self.config, self.case, port, self.kernel, self.memory,
                  lambda frame, bad, time_ps: self.deliver(frame, bad, time_ps)), "case")
        for cycle, cycles in self.case.polls:
            self.kernel.call_at(start_ps(self.config) + cycle * PS_PER_S // self.config.clock_hz,
                                partial(port.take_bus, cycles * PS_PER_S // self.config.clock_hz))

    def finished(self) -> bool:
        """Whether the case has come to its end."""
        return self._task is not None and self._task.done

    def outcome(self, port: CountingPort) -> None:
        """Raises what the case raised."""
        assert self._task is not None
        self._task.result()

    def partial(self, port: CountingPort) -> None:
        """Nothing."""


def completion_rings(kernel: Kernel) -> dict[int, CompletionRing]:
    """Channel -> its completion ring, of a driver that runs over a kernel."""
    found: list[Any] = kernel.reporters
    return {channel.number: channel.completed for channel in found}


def keep_memory(found: Observed, bench: CaseBench) -> None:
    """What host memory has in the end."""
    for number, ring in completion_rings(bench.kernel).items():
        found.rings[number] = bytes(bench.memory.view(ring.address, ring.entries * COMPLETION_BYTES))
    found.memory = bytes(bench.memory.buffer)
    found.frame_bytes = [frame.data for frame in bench.sent]
    found.cycles = edge_of(bench.config, bench.kernel.now) - start_edge(bench.config)


def start_edge(config: NicConfig) -> int:
    """The edge at which a case begins."""
    return edge_of(config, start_ps(config))


def edge_of(config: NicConfig, time_ps: int) -> int:
    """The first edge at or after a time."""
    return -(-time_ps * config.clock_hz // PS_PER_S)


# ---------------------------------------------------------------------------------------------- the RTL


def on_rtl(config: NicConfig, library: Path, case: Case) -> Observed:
    """A case over the RTL, compiled."""
    bench = CaseBench(config, case)
    with CompiledDevice(config, path=library) as device:
        port = TransactorPort(device.library, config, bench.kernel, bench.memory, bench, bench.bus)
        assert isinstance(port.library, Library)
        port.library.trace(on=True)
        port.watch()
        bench.start(port)
        device.run(port, bench, jump=True)
        bench.outcome(port)
        events = port.library.take_trace()
    start = start_edge(config)
    found = Observed(events=[event._replace(edge=event.edge - start) for event in events])
    behind = [event for event in found.events if event.edge >= 0]
    found.frames = frames_of(behind)
    clients = read_clients(config)
    for client in (PAYLOAD, SLOTS, BUFFERS):
        found.reads[client] = [event.edge for event in behind
                               if event.kind is PortEventKind.READ and event.id in clients[client]]
    for number, ring in completion_rings(bench.kernel).items():
        found.completions[number] = completion_edges(behind, ring)
    found.interrupts = [(edge_of(config, time) - start, line) for time, line in port.rises
                        if time >= start_ps(config)]
    keep_memory(found, bench)
    return found


def read_clients(config: NicConfig) -> dict[int, range]:
    """Who reads -> the AXI ids of its reads, as `rtl.dma_read.DmaRead` gives them: the larger a client, the lower."""
    from rtl.dma_read import DESCRIPTOR_READS, RECEIVE_READS

    slots = {PAYLOAD: config.payload_reads, SLOTS: DESCRIPTOR_READS, BUFFERS: RECEIVE_READS}
    found, behind = {}, 0
    for client in sorted(slots, key=lambda client: -slots[client]):
        found[client] = range(behind, behind + slots[client])
        behind += slots[client]
    return found


def frames_of(events: Sequence[PortEvent]) -> list[tuple[int, int]]:
    """(first beat, last beat) of each frame."""
    frames, first = [], 0
    for event in events:
        if event.kind is PortEventKind.SEND:
            first = event.edge
        elif event.kind is PortEventKind.SENT:
            frames.append((first, event.edge))
    return frames


def completion_edges(events: Sequence[PortEvent], ring: CompletionRing) -> list[int]:
    """When each completion of a ring left. A write may have several: all up to the next write's first, and the last
    write all that were taken by the case."""
    end = ring.address + ring.entries * COMPLETION_BYTES
    writes = [(event.edge, (event.number - ring.address) // COMPLETION_BYTES) for event in events
              if event.kind is PortEventKind.WRITE and ring.address <= event.number < end]
    found: list[int] = []
    for number, (edge, place) in enumerate(writes):
        if number + 1 < len(writes):
            found += [edge] * ((writes[number + 1][1] - place) % ring.entries or ring.entries)
        else:
            found += [edge] * ((ring.consumer - place) % ring.entries)
    return found


# ---------------------------------------------------------------------------------------------- the rules alone


def on_rules(model: DeviceModel, case: Case) -> Observed:
    """A case over the timing rules: no bytes, and no host that answers."""
    timing, largest = model.timing, model.config.max_ring_log2
    machine = Machine(model, case.bus, case.mac, buffer_bytes=case.buffer_bytes, traced=True)
    begin = QUIET_CYCLES
    sends = {sender.channel: list(sender.sends) for sender in case.senders}
    for channel, its in sends.items():
        slots = sum(send.slots for send in its)
        machine.tables["channels"]["ring_slots"][channel] = 1 << min(max(4, (slots - 1).bit_length()), largest)
    if case.arrivals:
        for channel in range(case.receivers):
            machine.call("post_buffers", 1000, channel, 1 << receive_ring_log2(case, largest))
    pushing = {sender.channel for sender in case.senders if sender.pushes}
    inputs: list[tuple[int, int, int, int]] = []
    free = 0
    for cycle, channel, count in sorted((cycle, sender.channel, count) for sender in case.senders
                                        for cycle, count in sender.bells):
        edge = max(begin + cycle + case.bus.mmio_write_cycles + timing.bell_to_port, free)
        free = edge + timing.bell_write
        inputs.append((edge, 0, channel, count))
    inputs += [(begin + arrival.cycle + 1, 1, arrival.flow % case.receivers, number)
               for number, arrival in enumerate(case.arrivals)]
    taken = dict.fromkeys(sends, 0)
    out: list[list[int]] = []

    def advance(until: int) -> None:
        while not machine.advance(until):
            out.extend(machine.taken())

    for edge, kind, channel, number in sorted(inputs):
        advance(edge - 1)
        if kind:
            machine.call("arrive", edge, channel, case.arrivals[number].length, number)
            continue
        slots = 0
        for send in sends[channel][taken[channel] : taken[channel] + number]:
            inline, pieces = HEADER_BYTES if send.mss else send.inline, send.cut()
            takes = send.slots
            machine.call("put_send", channel, send.payload, send.mss, inline,
                         2 if send.mss or send.checksums else 0, takes, send.complete)
            for offset, length in pieces:
                machine.call("put_piece", channel, offset, length)
            slots += takes
        taken[channel] += number
        if channel in pushing:  # the host writes a block of 64 bytes, whose last beat counts
            machine.call("push", edge + 64 // model.config.host_bytes - 1, channel, slots)
        else:
            machine.call("ring_bell", edge, channel, slots)
    advance(rules.NEVER - 1)
    found = _observed(out + machine.taken(), begin)
    found.waited, found.worked = machine.shares()
    return found


def _observed(events: list[list[int]], begin: int) -> Observed:
    """What came out of the rules, from a case's start on."""
    found = Observed(reads={PAYLOAD: [], SLOTS: [], BUFFERS: []})
    for kind, a, b, c, d, _ in events:
        if kind == rules.FRAME:
            found.frames.append((c - begin, d - begin))
        elif kind == rules.READ and a >= begin:
            found.reads[b].append(a - begin)
        elif kind == rules.COMPLETED and b >= 0:
            found.completions.setdefault(a, []).append(c - begin)
        elif kind == rules.DROPPED:
            found.dropped += 1
    return found


# ---------------------------------------------------------------------------------------------- the device in time


def on_model(model: DeviceModel, case: Case) -> Observed:
    """A case over the timed device, with bytes and its host."""
    config = model.config
    bench = CaseBench(config, case)
    port = TimedPort(model, bench.kernel, bench.memory, bench, case.bus)
    start = start_edge(config)
    taken: list[list[int]] = []
    machine_taken = port.device.machine.taken

    def keep() -> list[list[int]]:
        events = machine_taken()
        taken.extend(events)
        return events

    port.device.machine.taken = keep  # type: ignore[method-assign]
    bench.start(port)
    if not bench.kernel.run_while(lambda: not bench.finished()):
        raise RuntimeError(f"{case.name}: nothing goes on at {bench.kernel.now} ps")
    bench.outcome(port)
    found = _observed(taken, start)
    found.interrupts = [(edge_of(config, time) - start, line) for time, line in port.rises
                        if time >= start_ps(config)]
    keep_memory(found, bench)
    return found
