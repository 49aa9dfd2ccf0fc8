"""What is seen of a case at the device's ports, whatever the device is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cosim.engines.bench import CountingPort
from cosim.engines.bus import Bus
from cosim.engines.compiled import CompiledDevice
from cosim.engines.library import Library, PortEvent, PortEventKind
from cosim.engines.transactor_port import TransactorPort
from cosim.mac import PS_PER_S, SentFrame
from cosim.memory import HostMemory
from cosim.timing.cases import Case, drive, start_ps
from host_driver.runtime import Kernel
from nic_model.contract import COMPLETION_BYTES, NicConfig

MEMORY_BYTES = 1 << 26


@dataclass
class Observed:
    """Edges of the device's clock, counted from the case's start."""

    frames: list[tuple[int, int]] = field(default_factory=list)
    """(first beat, last beat) of each frame that was sent."""
    frame_bytes: list[bytes] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    """When each DMA read was asked for."""
    completions: dict[int, list[int]] = field(default_factory=dict)
    """Channel -> when the write of each of its completions left."""
    interrupts: list[tuple[int, int]] = field(default_factory=list)
    """(edge, vector) of each line that rose."""
    entries: dict[int, bytes] = field(default_factory=dict)
    """Channel -> its completion ring in host memory."""
    memory: bytes = b""
    events: list[PortEvent] = field(default_factory=list)
    """All that crossed the RTL's ports."""
    cycles: int = 0


class CaseBench:
    """Implements `cosim.engines.bench.Bench`: one case."""

    def __init__(self, config: NicConfig, case: Case) -> None:
        self.config = config
        self.case = case
        self.kernel = Kernel()
        self.memory = HostMemory(MEMORY_BYTES)
        self.bus = Bus(case.bus)
        self.timing = case.mac
        self.deliver = lambda frame, bad, time_ps: None
        self.mac = self
        self.sent: list[SentFrame] = []
        self._task = None

    def __enter__(self) -> CaseBench:
        return self

    def __exit__(self, *_error: object) -> None:
        return

    def transmitted(self, frames: Sequence[SentFrame]) -> None:
        self.sent += frames

    def start(self, port: CountingPort) -> None:
        self.port = port
        self._task = self.kernel.spawn(
            drive(self.config, self.case, port, self.kernel, self.memory,
                  lambda frame, bad, time_ps: self.deliver(frame, bad, time_ps)), "case")

    def finished(self) -> bool:
        return self._task is not None and self._task.done

    def outcome(self, port: CountingPort) -> None:
        self._task.result()

    def partial(self, port: CountingPort) -> None:
        return


def rings_of(kernel: Kernel) -> dict[int, object]:
    """Channel -> its completion ring, of a driver that ran over a kernel."""
    return {reporter.number: reporter.completed for reporter in kernel.reporters}


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
    start = start_ps(config) * config.clock_hz // PS_PER_S
    found = Observed(events=[event._replace(edge=event.edge - start) for event in events if event.edge >= start])
    found.frames = frames_of(found.events)
    found.frame_bytes = [frame.data for frame in bench.sent]
    found.reads = [event.edge for event in found.events if event.kind is PortEventKind.READ]
    found.completions, found.entries = {}, {}
    for number, ring in rings_of(bench.kernel).items():
        found.completions[number] = completion_edges(found.events, ring)
        found.entries[number] = bytes(bench.memory.view(ring.address, ring.entries * COMPLETION_BYTES))
    found.interrupts = [(_edge(config, time) - start, line) for time, line in port.rises if time >= start_ps(config)]
    found.memory = bytes(bench.memory.buffer)
    found.cycles = bench.kernel.now * config.clock_hz // PS_PER_S - start
    return found


def _edge(config: NicConfig, time_ps: int) -> int:
    """The edge that a time is of."""
    return -(-time_ps * config.clock_hz // PS_PER_S)


def frames_of(events: Sequence[PortEvent]) -> list[tuple[int, int]]:
    """(first beat, last beat) of each frame."""
    frames, first = [], 0
    for event in events:
        if event.kind is PortEventKind.SEND:
            first = event.edge
        elif event.kind is PortEventKind.SENT:
            frames.append((first, event.edge))
    return frames


def completion_edges(events: Sequence[PortEvent], ring) -> list[int]:
    """When each completion of a ring left. A write may have several: all up to the next write's first."""
    end = ring.address + ring.entries * COMPLETION_BYTES
    writes = [(event.edge, (event.number - ring.address) // COMPLETION_BYTES) for event in events
              if event.kind is PortEventKind.WRITE and ring.address <= event.number < end]
    found: list[int] = []
    for (edge, place), following in zip(writes, [*writes[1:], None]):
        if following is None:
            found.append(edge)  # how many more are in it nothing says
        else:
            count = (following[1] - place) % ring.entries
            found += [edge] * count
    return found
