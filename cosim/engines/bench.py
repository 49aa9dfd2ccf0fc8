"""What runs round a simulated device: for `memnic run` an `Experiment`, for a test whatever it wants."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol

from cosim.device_processor import ControlStreams
from cosim.engines.base import DeviceCounts, Progress, RunSpec, SystemResult
from cosim.engines.bus import Bus, BusTiming, Judge
from cosim.errors import InputError
from cosim.experiment import Experiment
from cosim.mac import Mac
from cosim.machine import Fault, Machine
from cosim.memory import HostMemory
from host_driver.port import Port
from host_driver.runtime import Kernel
from nic_model.contract import NicConfig


class CountingPort(Port, Protocol):
    """A Port that counts what crosses the device's ports."""

    @property
    def dma_read_bytes(self) -> int:
        """Bytes that the device has asked for."""

    @property
    def dma_write_bytes(self) -> int:
        """Bytes that it has written."""

    @property
    def interrupts(self) -> int:
        """Times that an interrupt line rose."""

    def take_bus(self, duration_ps: int) -> None:
        """A processor has the bus for so long: DMA waits."""


class Bench(Protocol):
    """What runs round a simulated device; a context manager whose end closes its files."""

    @property
    def config(self) -> NicConfig:
        """The device's."""

    @property
    def kernel(self) -> Kernel:
        """The host's clock."""

    @property
    def memory(self) -> HostMemory:
        """The host's."""

    @property
    def mac(self) -> Mac:
        """The device's end of the wire."""

    @property
    def bus(self) -> Bus:
        """Between host and device."""

    def __enter__(self) -> Any: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...

    def start(self, port: CountingPort) -> None:
        """The device is out of reset."""

    def finished(self) -> bool:
        """Whether to stop; asked whenever the host has acted."""

    def outcome(self, port: CountingPort) -> Any:
        """What came of it, as msgspec can write it in JSON."""

    def partial(self, port: CountingPort) -> Any:
        """What came of it until it was interrupted; None if nothing."""


def control_streams(port: CountingPort) -> ControlStreams:
    """The streams of the device's control port. Raises InputError for a Port that does not drive them."""
    streams: ControlStreams | None = getattr(port, "control", None)
    if streams is None:
        raise InputError("TCP on the device needs transactors for its control port, which cocotbext-axi has not: leave "
                         "--transactors out")
    return streams


def bus_timing(machine: Machine, config: NicConfig, seed: int = 0) -> BusTiming:
    """A machine's bus in cycles of the device's clock, rounded up."""
    bus = machine.bus

    def cycles(ns: int) -> int:
        return -(-ns * config.clock_hz // 10**9)

    return BusTiming(
        read_latency_cycles=cycles(bus.dma_read_latency_ns), write_latency_cycles=cycles(bus.dma_write_latency_ns),
        mmio_read_cycles=cycles(bus.mmio_read_ns), mmio_write_cycles=cycles(bus.mmio_write_ns),
        bytes_per_cycle=bus.bandwidth_bytes_per_s / config.clock_hz, duplex=bus.duplex,
        tlp_overhead_bytes=bus.tlp_overhead_bytes, max_payload_bytes=bus.max_payload_bytes,
        max_read_request_bytes=bus.max_read_request_bytes, tags=bus.tags, reorder_cycles=cycles(bus.reorder_ns),
        interleave=bus.interleave, seed=seed)


def scripted(faults: list[Fault]) -> Judge | None:
    """What answers the bursts that a machine's faults name with an error; None when there are none."""
    if not faults:
        return None
    seen = {"read": 0, "write": 0}

    def judge(address: int, is_write: bool) -> bool:
        direction = "write" if is_write else "read"
        seen[direction] += 1
        return any(fault.direction == direction and fault.first <= seen[direction] < fault.first + fault.count
                   for fault in faults)

    return judge


class ExperimentBench:
    """Implements `Bench`: one run of `memnic run`."""

    def __init__(self, spec: RunSpec, on_progress: Progress) -> None:
        self._experiment = Experiment(spec, on_progress)
        self.config = spec.config
        self.kernel = self._experiment.kernel
        self.memory = self._experiment.memory
        self.mac = self._experiment.wire
        self.bus = Bus(bus_timing(spec.machine, self.config, spec.seed), scripted(spec.machine.bus.faults))

    def __enter__(self) -> ExperimentBench:
        self._experiment.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._experiment.__exit__(kind, error, trace)

    def start(self, port: CountingPort) -> None:
        """Attach the experiment to the device."""
        self._experiment.attach(port, lambda: DeviceCounts(
            dma_read_bytes=port.dma_read_bytes, dma_write_bytes=port.dma_write_bytes, interrupts=port.interrupts),
            port.take_bus)
        if self.config.flows:
            self._experiment.attach_firmware(control_streams(port), self.config.port_facts)

    def finished(self) -> bool:
        """Whether the load has been served."""
        return self._experiment.done

    def outcome(self, port: CountingPort) -> SystemResult:
        """What was measured."""
        return self._experiment.result()

    def partial(self, port: CountingPort) -> SystemResult | None:
        """What was measured so far."""
        return self._experiment.partial()
