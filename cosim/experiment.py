"""One run of one system: the server's machine, the wire and the clients, round a device that an engine brings.

An engine makes an `Experiment`, makes a `Port` over its kernel, memory and wire, attaches it, and lets the kernel's
time pass until `done`. The figures are differences between the start of the load and its end, so that setting up the
driver is not in them.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec

from cosim.device_processor import ControlStreams, DeviceProcessors, FirmwareAccount, ProcessorCounts
from cosim.engines.base import (
    DeviceCounts,
    DeviceProcessorFigure,
    ItemFigure,
    NodeResult,
    Progress,
    RunError,
    RunSpec,
    SystemResult,
)
from cosim.errors import InputError
from cosim.host import ServerHost, memory_bytes
from cosim.machine import PS_PER_SECOND
from cosim.memory import HostMemory
from cosim.pcapng import PcapngWriter
from cosim.peers import Client, client_addresses
from cosim.processor import Item, Processors
from cosim.san_host import SanServerHost, node_memory_bytes
from cosim.shares import ShareRecorder, shares
from cosim.wire import Wire
from cosim.workload import Request
from host_driver.port import Port
from host_driver.runtime import Kernel
from nic_model.contract.config import PortFacts
from nic_model.control_log import PortLog

SERVER_MAC = bytes([0x02, 0, 0, 0, 0, 1])
SERVER_IP = IPv4Address("10.0.0.1")
SERVER_PORT = 80

SETTLE_PS = 1_000_000_000
"""Between the last byte of the load and the last look at the books: 1 ms, longer than any moderation."""

WATCH_PS = 300 * PS_PER_SECOND
"""A load in which no frame moved for so long will not go on: no retransmission waits so long."""


class _ProcessorBooks(NamedTuple):
    """What is counted of the processors of one machine."""

    booked_ps: Counter[Item]
    counts: Counter[Item]
    busy_ps: list[Mapping[str, int]]


class _Books(NamedTuple):
    """Everything that is counted, at one moment."""

    time_ps: int
    host: _ProcessorBooks
    nodes: list[_ProcessorBooks]
    device: DeviceCounts
    bus_taken_ps: int
    frames_from_device: int
    frames_to_device: int
    device_processors: list[ProcessorCounts]
    device_booked_ps: Counter[Item]
    device_item_counts: Counter[Item]


class Experiment:
    """A run as `spec` says. A context manager: its end closes the capture.

    Attributes: `kernel`, `memory` and `wire` (the device's MAC) for the engine's port; `processors`, and those of each
    TCP server node; `done`; `host`, once a device is attached. Raises OSError when the capture cannot be written.
    """

    def __init__(self, spec: RunSpec, on_progress: Progress) -> None:
        self.spec = spec
        self.done = False
        self.kernel = Kernel()
        nodes = spec.system.node.nodes if spec.system.node is not None else 0
        self.memory = HostMemory(node_memory_bytes(spec) if nodes else memory_bytes(spec))
        used = spec.system.placed_on(spec.machine).processors
        self.processors = Processors(self.kernel, msgspec.structs.replace(spec.machine, processors=used),
                                     spec.application)
        self.node_processors = [Processors(self.kernel, spec.machine, spec.application) for _ in range(nodes)]
        self._recorders = [ShareRecorder(self.kernel, processors) for processors in (
            self.processors, *self.node_processors)]
        self._capture = None if spec.capture_path is None else PcapngWriter(Path(spec.capture_path), spec.system.name)
        self.wire = Wire(self.kernel, bit_rate=spec.link_bit_rate, capture=self._capture,
                         impairments=spec.impairments)
        self._on_progress = on_progress
        self._latencies_ps: list[int] = []
        self._body_bytes = 0
        self._device_counts: Callable[[], DeviceCounts] = _no_device
        self._books: list[_Books] = []
        self._device_processors: DeviceProcessors | None = None
        self._port_log: PortLog | None = None

    def __enter__(self) -> Experiment:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._capture is not None:
            self._capture.close()
        if self._port_log is not None:
            with Path(self.spec.port_log_path or "").open("w", encoding="ascii") as file:
                self._port_log.write(file)

    def attach(self, port: Port, device_counts: Callable[[], DeviceCounts],
               take_bus: Callable[[int], None] | None = None) -> None:
        """Begin, over a device that is out of reset; `device_counts` is asked whenever the books are looked at, and
        `take_bus` told for how long a poll has the device's bus."""
        if take_bus is not None:
            self._at_the_device.on_bus_taken = take_bus
        self._device_counts = device_counts
        spec = self.spec
        neighbours = [client_addresses(number) for number in range(spec.clients)]
        if self.node_processors:
            self.host: ServerHost | SanServerHost = SanServerHost(
                spec, port, self.memory, self.processors, self.node_processors, self.wire,
                addresses=[_server_address(number) for number in range(len(self.node_processors))],
                server_port=SERVER_PORT, neighbours=neighbours)
        else:
            self.host = ServerHost(spec, port, self.processors, mac=SERVER_MAC, ip=SERVER_IP, server_port=SERVER_PORT,
                                   neighbours=neighbours)
        self.kernel.spawn(self._main(), "experiment")

    @property
    def _at_the_device(self) -> Processors:
        """The processors of the machine that has the device."""
        return self.node_processors[0] if self.node_processors else self.processors

    def attach_firmware(self, streams: ControlStreams, facts: PortFacts) -> None:
        """Let the machine's device processors do TCP behind a control port; after `attach`.

        Raises InputError for a machine that has none.
        """
        spec = self.spec
        device = spec.machine.device_processor
        if device is None:
            raise InputError(f"machine {spec.machine.name} has no `device_processor`, which system {spec.system.name} "
                             "does TCP on: add that table")
        processors = spec.system.device.processors or device.processors
        account = FirmwareAccount(device)
        assert isinstance(self.host, ServerHost), "a system has its TCP on nodes or on the device"
        self._port_log = None if spec.port_log_path is None else PortLog(facts)
        self._device_processors = DeviceProcessors(
            self.kernel, streams, self.host.firmware(facts, account, processors), account, processors, self._port_log)

    def result(self) -> SystemResult:
        """What was measured. Raises RuntimeError before the run is done."""
        if not self.done:
            raise RuntimeError("the experiment is not done")
        start, end, rest = self._books
        return self._figures(start, end, rest)

    def partial(self) -> SystemResult | None:
        """What was measured so far, of a run that is not done; None before the first answer."""
        if not self._latencies_ps:
            return None
        self._look()
        return self._figures(self._books[0], self._books[-1], self._books[-1])

    def _figures(self, start: _Books, end: _Books, rest: _Books) -> SystemResult:
        """From the start of the load to its end, and what came to rest behind it."""
        requests = len(self._latencies_ps)
        cycles, items = self._cycles(start.host, rest.host)
        duration_ps = end.time_ps - start.time_ps
        ordered_ps = sorted(self._latencies_ps)
        return SystemResult(
            system=self.spec.system.name,
            complete=self.done,
            requests=requests,
            body_bytes=self._body_bytes,
            duration_ps=duration_ps,
            requests_per_s=requests * PS_PER_SECOND / duration_ps,
            cycles=cycles,
            items=items,
            utilisation=[(sum(busy.values()) - sum(before.values())) / duration_ps
                         for busy, before in zip(end.host.busy_ps, start.host.busy_ps, strict=True)],
            processors=shares(start.host.busy_ps, end.host.busy_ps, duration_ps),
            processor_categories=_by_category(start.host, end.host, duration_ps),
            over_time=self._recorders[0].intervals(end.time_ps, end.host.busy_ps),
            nodes=[self._node_figures(number, start, end, rest) for number in range(len(self.node_processors))],
            device_processors=self._device_figures(start, end, rest, requests),
            device_items=self._device_items(start, rest, requests),
            interrupts=(rest.device.interrupts - start.device.interrupts) / requests,
            dma_read_bytes=(rest.device.dma_read_bytes - start.device.dma_read_bytes) / requests,
            dma_write_bytes=(rest.device.dma_write_bytes - start.device.dma_write_bytes) / requests,
            bus_polls=(end.bus_taken_ps - start.bus_taken_ps) / duration_ps,
            frames_sent=(rest.frames_from_device - start.frames_from_device) / requests,
            frames_received=(rest.frames_to_device - start.frames_to_device) / requests,
            latency_p50_ps=percentile(ordered_ps, 50),
            latency_p99_ps=percentile(ordered_ps, 99),
            connections_on=self.host.connections_on,
            outbound=self.wire.outbound.counts if self.wire.outbound else None,
            inbound=self.wire.inbound.counts if self.wire.inbound else None,
        )

    def _cycles(self, start: _ProcessorBooks, rest: _ProcessorBooks
                ) -> tuple[dict[str, float], dict[str, dict[str, ItemFigure]]]:
        """Cycles a request of one machine's processors, by category, and by category and item."""
        requests = len(self._latencies_ps)
        cycles: dict[str, float] = {}
        items: dict[str, dict[str, ItemFigure]] = {}
        # Sorted, so that the sums and the result do not depend on the order in which items were first charged.
        for (category, item), ps in sorted((rest.booked_ps - start.booked_ps).items()):
            figure = ItemFigure(count=(rest.counts[category, item] - start.counts[category, item]) / requests,
                                cycles=self.processors.cycles(ps) / requests)
            items.setdefault(category, {})[item] = figure
            cycles[category] = cycles.get(category, 0.0) + figure.cycles
        return cycles, items

    def _node_figures(self, number: int, start: _Books, end: _Books, rest: _Books) -> NodeResult:
        before, after, duration_ps = start.nodes[number], end.nodes[number], end.time_ps - start.time_ps
        cycles, items = self._cycles(before, rest.nodes[number])
        return NodeResult(cycles=cycles, items=items, processors=shares(before.busy_ps, after.busy_ps, duration_ps),
                          processor_categories=_by_category(before, after, duration_ps),
                          over_time=self._recorders[1 + number].intervals(end.time_ps, after.busy_ps))

    def _device_figures(self, start: _Books, end: _Books, rest: _Books, requests: int) -> list[DeviceProcessorFigure]:
        duration_ps = end.time_ps - start.time_ps
        return [DeviceProcessorFigure(
            utilisation=(until.busy_ps - before.busy_ps) / duration_ps,
            messages=(last.messages - before.messages) / requests, orders=(last.orders - before.orders) / requests,
            cycles=self._device_cycles(last.busy_ps - before.busy_ps) / requests)
            for before, until, last in zip(start.device_processors, end.device_processors, rest.device_processors,
                                           strict=True)]

    def _device_items(self, start: _Books, rest: _Books, requests: int) -> dict[str, dict[str, ItemFigure]]:
        items: dict[str, dict[str, ItemFigure]] = {}
        for (category, item), ps in sorted((rest.device_booked_ps - start.device_booked_ps).items()):
            count = rest.device_item_counts[category, item] - start.device_item_counts[category, item]
            items.setdefault(category, {})[item] = ItemFigure(count=count / requests,
                                                              cycles=self._device_cycles(ps) / requests)
        return items

    def _device_cycles(self, ps: int) -> float:
        device = self.spec.machine.device_processor
        return 0.0 if device is None else ps * device.clock_hz / PS_PER_SECOND

    def stall_report(self) -> str:
        """Why nothing goes on: the tasks that wait, and for what."""
        waiting = ", ".join(sorted(f"{task.name} for {task.waits_for}" for task in self.kernel.tasks))
        return f"nothing goes on at {self.kernel.now} ps; waiting: {waiting}"

    async def _main(self) -> None:
        spec, kernel = self.spec, self.kernel
        await self.host.start()
        await kernel.sleep(SETTLE_PS)
        self._look()
        for recorder in self._recorders:
            recorder.start()
        requests = iter(enumerate(spec.requests))
        due_ps = self._due_times_ps()
        tasks = [kernel.spawn(self._client(number).run(requests, self._answered, lambda index: due_ps[index]),
                              f"client {number}")
                 for number in range(spec.clients)]
        watchdog = kernel.spawn(self._watch(), "watchdog")
        for task in tasks:
            await task
        watchdog.cancel()
        for recorder in self._recorders:
            recorder.stop()
        self._look()
        await kernel.sleep(SETTLE_PS)
        self._look()
        self.done = True

    def _due_times_ps(self) -> list[int]:
        """When each request is due: now; or each somewhere in its own interval of an offered rate."""
        rate, now = self.spec.offered_rate, self.kernel.now
        if rate is None:
            return [now] * len(self.spec.requests)
        rng = random.Random(f"due times of {self.spec.seed}")
        return [now + round((index + rng.random()) * PS_PER_SECOND / rate) for index in range(len(self.spec.requests))]

    def _client(self, number: int) -> Client:
        rng = random.Random(f"client {number} of {self.spec.seed}")
        mac, ip = _server_address(number % max(1, len(self.node_processors)))
        return Client(self.kernel, self.wire, number=number, server_mac=mac, server_ip=ip, server_port=SERVER_PORT,
                      rng=rng)

    def _answered(self, request: Request, latency_ps: int) -> None:
        self._latencies_ps.append(latency_ps)
        self._body_bytes += request.body_bytes
        self._on_progress(len(self._latencies_ps), self.kernel.now)

    async def _watch(self) -> None:
        """End a run in which nothing moves any more."""
        frames = -1
        while frames != (frames := self.wire.frames_from_device + self.wire.frames_to_device):
            await self.kernel.sleep(WATCH_PS)
        raise RunError(self.stall_report())

    def _look(self) -> None:
        device = self._device_processors
        self._books.append(_Books(
            time_ps=self.kernel.now, host=_booked(self.processors),
            nodes=[_booked(processors) for processors in self.node_processors], device=self._device_counts(),
            bus_taken_ps=self._at_the_device.bus_taken_ps,
            frames_from_device=self.wire.frames_from_device, frames_to_device=self.wire.frames_to_device,
            device_processors=[] if device is None else [replace(counts) for counts in device.counts],
            device_booked_ps=Counter() if device is None else device.account.booked_ps.copy(),
            device_item_counts=Counter() if device is None else device.account.counts.copy()))


def _server_address(node: int) -> tuple[bytes, IPv4Address]:
    """MAC and IP address of a TCP server node; the first one's are the server's wherever its TCP runs."""
    return (SERVER_MAC, SERVER_IP) if not node else (SERVER_MAC[:-1] + bytes([1 + node]), SERVER_IP + node)


def _booked(processors: Processors) -> _ProcessorBooks:
    return _ProcessorBooks(processors.booked_ps.copy(), processors.counts.copy(), processors.busy_ps)


def _by_category(start: _ProcessorBooks, end: _ProcessorBooks, duration_ps: int) -> list[dict[str, float]]:
    """Shares of each processor's time by category."""
    return [{category: (ps - before.get(category, 0)) / duration_ps for category, ps in sorted(busy.items())
             if ps > before.get(category, 0)}
            for busy, before in zip(end.busy_ps, start.busy_ps, strict=True)]


def percentile(ordered: list[int], percent: int) -> int:
    """The value below or at which `percent` of an ascending, non-empty list lie (nearest rank)."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def _no_device() -> DeviceCounts:
    raise RuntimeError("no device is attached to the experiment")
