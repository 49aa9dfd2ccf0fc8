"""What an engine takes and gives: one run of one system over one device."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from cosim.control_port import device_config
from cosim.impairments import BothWays, PathCounts
from cosim.machine import Application, Machine
from cosim.shares import Interval, Share
from cosim.systems import System
from cosim.workload import Request
from host_driver.runtime import TaskFailed
from nic_model.contract import NicConfig


class Wave(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A wave of the device's signals: a part of a run. Without a beginning it begins with the run."""

    path: str
    format: str = "vcd"
    """vcd or fst."""
    from_ps: int | None = None
    """It begins at this time,"""
    frame: int | None = None
    """or when so many frames have crossed the MAC, both ways together,"""
    error: bool = False
    """or when a completion tells of an error."""
    length_ps: int | None = None
    """None: to the run's end."""
    jump: bool = False
    """Jump over idle time in it."""


class RunSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that a run depends on; it survives JSON, so that it may be handed to another process."""

    system: System
    machine: Machine
    application: Application
    requests: list[Request]
    clients: int = 8
    offered_rate: float | None = None
    """Requests a second that are due, each at a random place in its own interval; None: each client sends its next one
    when it has its answer."""
    link_bit_rate: int
    device: str = "default"
    seed: int = 1
    jump: bool = True
    """Jump over times in which the device does nothing; the result is the same."""
    impairments: BothWays | None = None
    """What the wire does to frames; None: nothing."""
    capture_path: str | None = None
    """Where every frame at the device's end of the wire is kept, as pcapng."""
    wave: Wave | None = None
    """What is kept of the device's signals."""
    simulator: str = "verilator"
    """Of the cocotb engine."""
    transactors: str | None = None
    """Of the cocotb engine; None: the simulator's own, see `cosim.engines.cocotb_engine.TARGETS`."""
    port_log_path: str | None = None
    """Where all messages of the control port are kept, if TCP is done on the device."""

    @property
    def config(self) -> NicConfig:
        """The named device; with a control port, if TCP is done on it. Raises KeyError for a device file."""
        return device_config(self.device, control_port=self.system.is_on_device)


class DeviceCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Counted at the device's own ports since it was made."""

    dma_read_bytes: int
    dma_write_bytes: int
    interrupts: int
    """Times that an interrupt line rose."""


class ItemFigure(msgspec.Struct, frozen=True, kw_only=True):
    """One item of the account, for each request."""

    count: float
    cycles: float


class NodeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one TCP server node did."""

    cycles: dict[str, float]
    """Processor cycles for each request of the whole run, by category of the account."""
    items: dict[str, dict[str, ItemFigure]]
    """The same by category and item."""
    processors: list[Share]
    """Shares of the load's time, for each processor,"""
    processor_categories: list[dict[str, float]]
    """and by category."""
    over_time: list[Interval]
    """The same as `processors`, interval by interval."""


class DeviceProcessorFigure(msgspec.Struct, frozen=True, kw_only=True):
    """What a processor of the device did, where TCP is done there. For each request, but for the share."""

    utilisation: float
    """Busy share of `duration_ps`."""
    messages: float
    """Taken from the control port."""
    orders: float
    """Given to it."""
    cycles: float


class SystemResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one run measured. Everything but `requests` and times is for each request, or a share."""

    system: str
    complete: bool = True
    """False for a run that was interrupted: then these are figures of the requests served until then."""
    requests: int
    body_bytes: int
    """Bytes of all bodies that clients received and compared."""
    duration_ps: int
    """From the first connection to the last byte of the last response."""
    requests_per_s: float
    cycles: dict[str, float]
    """Processor cycles a request, by category of the account."""
    items: dict[str, dict[str, ItemFigure]]
    """The same by category and item."""
    utilisation: list[float]
    """Busy share of `duration_ps`, for each processor."""
    processors: list[Share] = []
    """What that was for, for each processor."""
    processor_categories: list[dict[str, float]] = []
    """The same by category of the account: share of `duration_ps`, for each processor."""
    over_time: list[Interval] = []
    """The same as `processors`, interval by interval."""
    nodes: list[NodeResult] = []
    """The TCP server nodes, where there are any; all else that is said of processors is of the application host."""
    device_processors: list[DeviceProcessorFigure] = []
    """Processors of the device that did TCP."""
    device_items: dict[str, dict[str, ItemFigure]] = {}
    """What they did, as `items`, in their cycles."""
    interrupts: float
    dma_read_bytes: float
    dma_write_bytes: float
    bus_polls: float = 0.0
    """Share of `duration_ps` that polls had the device's bus, so that DMA waited."""
    frames_sent: float
    """By the device, a request."""
    frames_received: float
    latency_p50_ps: int
    """From a client's SYN to the end of its response."""
    latency_p99_ps: int
    connections_on: dict[str, int] = {}
    """Where connections have processors of their own: how many each got ("processor 3"), and how many "the host" kept.
    """
    outbound: PathCounts | None = None
    """What an impaired wire did to frames from the device, and `inbound` to those for it, from the very beginning."""
    inbound: PathCounts | None = None

    @property
    def total_cycles(self) -> float:
        """Processor cycles a request."""
        return sum(self.cycles.values())


def failed_task(error: TaskFailed) -> RunError:
    """What a run says when a task raised that nobody awaits."""
    cause = error.__cause__
    return RunError(str(error), "".join(traceback.format_exception(cause)) if cause is not None else "")


class Interrupted(KeyboardInterrupt):
    """A run that was interrupted from the keyboard. `partial`: what it had measured by then, if anything."""

    def __init__(self, partial: Any) -> None:
        super().__init__()
        self.partial = partial


Progress = Callable[[int, int], None]
"""`progress(requests_done, simulated_ps)`, called when a request is done, and now and then."""


class RunError(RuntimeError):
    """A run that could not go on: says what happened, and at what simulated time.

    Attribute: `trace`, the traceback of what a peer, an application or the driver raised; empty if nobody did.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace


class Engine(Protocol):
    """Runs one system.

    Raises RunError when the run fails, InputError for a spec that it cannot run, OSError when a file cannot be
    written, Interrupted on Ctrl-C; by then no process is left, and capture and wave are closed.
    """

    def __call__(self, spec: RunSpec, on_progress: Progress) -> SystemResult:
        """Run it to its end."""
