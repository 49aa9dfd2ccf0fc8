"""What the tests of the whole device run on: a port over either device, a MAC that records, a bus that can fail.

A *scenario* is a coroutine `async def scenario(rig, arguments)` that returns what JSON can hold. `on_model` runs it
over `nic_model`, `on_rtl` over the RTL: compiled, in this process too, or under cocotb in a simulator's.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar, cast

import msgspec

from cosim.control_port import with_control_port
from cosim.engines import compiled
from cosim.engines.base import Wave
from cosim.engines.bench import CountingPort
from cosim.engines.bus import Bus, BusTiming
from cosim.engines.model import ModelPort
from cosim.mac import MacTiming, SentFrame
from cosim.memory import DEFAULT_BASE, HostMemory
from cosim.pcapng import PcapngWriter
from host_driver.port import Port
from host_driver.runtime import Kernel, first_of
from nic_model.contract import CONFIGS, NicConfig
from nic_model.contract.config import BURST_BYTES
from tests.host_driver.posted_port import PostedMemory

T = TypeVar("T")

US = 10**6
MS = 10**9
"""Picoseconds."""

MEMORY_BYTES = 1 << 24
POSTED_MEMORY_BYTES = 1 << 22

WIRE_DELAY_PS = 20 * US

FAST = BusTiming(read_latency_cycles=4, write_latency_cycles=2, mmio_read_cycles=20, mmio_write_cycles=4,
                 bytes_per_cycle=64.0)
"""A bus that answers at once and in order."""

FAR = BusTiming(read_latency_cycles=250, write_latency_cycles=60, mmio_read_cycles=100, mmio_write_cycles=20,
                bytes_per_cycle=32.0, reorder_cycles=200, interleave=True, seed=1)
"""A bus as far away as a slow PCIe path, with data out of order and interleaved."""

WIDE_ICARUS = NicConfig(name="wide-test", mac_bytes=64, channels=4, vectors=2, keys=64, payload_reads=8,
                        tx_buffer_bytes=16384, rx_buffer_bytes=16384)
"""The widest bus in a device that is otherwise small."""

DEVICES = {"tiny": CONFIGS["tiny"], WIDE_ICARUS.name: WIDE_ICARUS, "offloading": with_control_port(CONFIGS["tiny"])}


class CaseFailed(AssertionError):
    """A scenario's case did not end in time."""


class RecordingMac:
    """Implements `cosim.mac.Mac`: takes frames at a random pace, and keeps each with the time when it was whole."""

    def __init__(self, kernel: Kernel, seed: int, slowest_frame_ps: int = 2 * US, fifo_bytes: int = 27_100) -> None:
        # Whoever answers a frame is `WIRE_DELAY_PS` away.
        self.timing = MacTiming(bit_rate=10**10, fifo_bytes=fifo_bytes, jitter_ps=slowest_frame_ps,
                                lookahead_ps=WIRE_DELAY_PS, seed=seed)
        self.deliver: Callable[[bytes, bool, int], None] = lambda frame, bad, time: None
        self.to_peer: Callable[[bytes], None] = lambda frame: None
        self.sent: list[tuple[int, bytes]] = []
        self._kernel = kernel

    def transmitted(self, frames: Sequence[SentFrame]) -> None:
        for frame in frames:
            self.sent.append((frame.taken_ps, frame.data))
            self._kernel.call_at(frame.end_ps + WIRE_DELAY_PS, lambda frame=frame: self.to_peer(frame.data))

    def arrive(self, frame: bytes, bad: bool) -> None:
        """A frame for the device, now."""
        self.deliver(frame, bad, self._kernel.now)

    def from_peer(self, frame: bytes) -> None:
        """A frame from the other end of the wire."""
        self._kernel.call_at(self._kernel.now + WIRE_DELAY_PS, lambda: self.arrive(frame, False))


class Faults:
    """Which accesses of the device the bus answers with an error.

    `blocks` are addresses // 256 that fail always. `judge(address, is_write)` may fail others; it is asked once for
    each burst by the RTL's bus, and once for each block that the model touches.
    """

    def __init__(self) -> None:
        self.blocks: set[int] = set()
        self.judge: Callable[[int, bool], bool] = never

    def __call__(self, address: int, write: bool) -> bool:
        # A burst lies in one block.
        return self.judge(address, write) or address // BURST_BYTES in self.blocks

    def hits(self, address: int, length: int, write: bool) -> bool:
        """Whether an access of any length fails."""
        starts = [address, *range((address // BURST_BYTES + 1) * BURST_BYTES, address + length, BURST_BYTES)]
        failed = [self(start, write) for start in starts]  # each is judged
        return any(failed)


def never(address: int, write: bool) -> bool:
    """No access fails."""
    return False


class FaultyMemory(HostMemory):
    """Host memory whose device side fails as `faults` says: for the model, which has no bus."""

    def __init__(self, size_bytes: int, faults: Faults, base: int) -> None:
        super().__init__(size_bytes, base)
        self._faults = faults

    def read(self, address: int, length: int) -> bytes | None:
        return None if self._faults.hits(address, length, False) else super().read(address, length)

    def write(self, address: int, data: bytes) -> bool:
        return not self._faults.hits(address, len(data), True) and super().write(address, data)


class WatchedPort(CountingPort, Protocol):
    """A port over RTL that keeps what crosses it."""

    bursts: list[tuple[int, bool, int]]
    rises: list[tuple[int, int]]

    @property
    def cycles_simulated(self) -> int:
        """Edges that ran."""

    @property
    def most_reads_in_flight(self) -> int:
        """DMA reads at a time, ever."""

    def watch(self) -> None:
        """Keep bursts and rises from now on."""

    def set_bus_timing(self) -> None:
        """The bus's timing was changed."""


class WatchedBus:
    """The host bus of a device of RTL: `events`, (time, is_write, address) of bursts as they reach memory."""

    def __init__(self, bus: Bus, port: WatchedPort) -> None:
        self._bus = bus
        self._port = port
        self.events = port.bursts

    @property
    def most_reads(self) -> int:
        """Reads in flight at a time, ever."""
        return self._port.most_reads_in_flight

    @property
    def timing(self) -> BusTiming:
        """How far away memory is."""
        return self._bus.timing

    @timing.setter
    def timing(self, timing: BusTiming) -> None:
        self._bus.timing = timing
        self._port.set_bus_timing()


@dataclass
class Rig:
    """What a scenario gets."""

    config: NicConfig
    kernel: Kernel
    memory: HostMemory
    mac: RecordingMac
    faults: Faults
    port: Port
    is_model: bool
    bus: WatchedBus | None = None
    """None for the model."""
    irqs: list[tuple[int, int]] = field(default_factory=list)
    """Time and vector of each rise of an interrupt line; of the RTL only."""

    async def within(self, coroutine: Coroutine[Any, None, T], limit_ps: int, name: str) -> T:
        """The coroutine's result. Raises CaseFailed, saying what it waits for, if it takes longer."""
        task = self.kernel.spawn(coroutine, name)
        if await first_of(task, self.kernel.sleep(limit_ps)) == 1:
            waits_for = task.waits_for
            task.cancel()
            raise CaseFailed(f"{name}: not done after {limit_ps // US} us, waits for {waits_for}")
        return task.result()


class RigSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario and what it runs on; survives JSON."""

    scenario: str
    """`module:function`."""
    arguments: Any = None
    device: str = "tiny"
    timing: BusTiming = FAST
    seed: int = 0
    posted: bool = False
    """Host writes reach the RTL only after a barrier."""
    base: int = DEFAULT_BASE
    """Bus address of host memory."""
    limit_ps: int = 1000 * MS
    capture: str | None = None
    """Where to keep all frames, as pcapng."""

    def make(self, rig: Rig) -> Coroutine[Any, None, Any]:
        """The scenario's coroutine."""
        module, _, function = self.scenario.partition(":")
        coroutine: Coroutine[Any, None, Any] = getattr(importlib.import_module(module), function)(rig, self.arguments)
        return coroutine


class RigBench:
    """Implements `cosim.engines.bench.Bench`: runs one scenario round a device of RTL."""

    def __init__(self, spec: RigSpec) -> None:
        self._spec = spec
        self.config = DEVICES[self._spec.device]
        self.kernel = Kernel()
        self.memory = PostedMemory(POSTED_MEMORY_BYTES) if self._spec.posted else HostMemory(
            MEMORY_BYTES, self._spec.base)
        self._faults = Faults()
        self.mac = RecordingMac(self.kernel, self._spec.seed)
        self.bus = Bus(self._spec.timing, self._faults)
        self._late = False

    def __enter__(self) -> RigBench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._spec.capture is not None:
            keep_frames(Path(self._spec.capture), self.mac.sent)

    def start(self, port: CountingPort) -> None:
        """Start the scenario."""
        watched = cast(WatchedPort, port)
        watched.watch()
        rig = Rig(self.config, self.kernel, self.memory, self.mac, self._faults, watched, False,
                  WatchedBus(self.bus, watched), watched.rises)
        if isinstance(self.memory, PostedMemory):
            port.wmb = self.memory.publish  # type: ignore[method-assign]
        self._task = self.kernel.spawn(self._spec.make(rig), "scenario")
        self._task.add_callback(lambda _task: None)
        self.kernel.call_at(self._spec.limit_ps, self._stop)

    def _stop(self) -> None:
        self._late = True

    def finished(self) -> bool:
        """Whether the scenario has ended, or should have."""
        return self._task.done or self._late

    def outcome(self, port: CountingPort) -> Any:
        """What the scenario returned. Raises what it raised."""
        if not self._task.done:
            waiting = {task.name: task.waits_for for task in self.kernel.tasks}
            raise CaseFailed(f"scenario not done after {self._spec.limit_ps} ps: {waiting}")
        return self._task.result()

    def partial(self, port: CountingPort) -> None:
        """Nothing."""


def make_bench(arguments: Any, folder: Path) -> RigBench:
    """The maker that a simulator process calls."""
    return RigBench(msgspec.convert(arguments, RigSpec))


def on_rtl(spec: RigSpec, *, jump: bool = True, engine: str = "compiled", wave: Wave | None = None,
           library: Path | None = None) -> Any:
    """Run a scenario over the RTL: "compiled", or under cocotb by DPI on Verilator ("cocotb") or on Icarus ("icarus").

    `library`: a compiled device that is not the cache's own.

    Raises what the scenario raised; from a simulator's process it comes as RunError.
    """
    if engine == "compiled":
        return json.loads(json.dumps(compiled.run_bench(RigBench(spec), jump=jump, wave=wave, path=library)))
    from cosim.engines.cocotb_engine import BenchSpec, run_bench

    simulator = {"cocotb": "verilator", "icarus": "icarus"}[engine]
    return run_bench(DEVICES[spec.device], BenchSpec("tests.device.rig:make_bench", msgspec.to_builtins(spec), jump),
                     simulator=simulator, wave=wave)


def on_model(spec: RigSpec) -> Any:
    """Run a scenario over the model."""
    kernel, faults = Kernel(), Faults()
    memory = FaultyMemory(MEMORY_BYTES, faults, spec.base)
    # Its frames wait behind their completions for room in the MAC, so there always is.
    mac = RecordingMac(kernel, spec.seed, fifo_bytes=1 << 40)
    config = DEVICES[spec.device]
    rig = Rig(config, kernel, memory, mac, faults, ModelPort(config, kernel, memory, mac), True)
    task = kernel.spawn(spec.make(rig), "scenario")
    task.add_callback(lambda _task: None)
    while not task.done:
        due = kernel.next_time()
        if due is None or due > spec.limit_ps:
            raise CaseFailed(f"model: nothing more happens: { {t.name: t.waits_for for t in kernel.tasks} }")
        kernel.run_until(due)
    if spec.capture is not None:
        keep_frames(Path(spec.capture), mac.sent)
    return json.loads(json.dumps(task.result()))


def keep_frames(path: Path, frames: list[tuple[int, bytes]]) -> None:
    """Write a capture."""
    with PcapngWriter(path, "memnic") as capture:
        for time_ps, frame in frames:
            capture.write(time_ps, frame, outbound=True)
