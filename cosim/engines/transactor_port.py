"""A Port over transactors, whoever moves the clock: the compiled engine, or a simulator under cocotb."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from cosim.engines.base import RunError
from cosim.engines.bus import Bus, BusTiming, fractions_of
from cosim.engines.host_port import BLOCK_BYTES, HostPort, check_block
from cosim.engines.library import Status, Stop, Taken
from cosim.engines.stall import with_register_names
from cosim.mac import Mac, MacTiming
from cosim.memory import HostMemory
from host_driver.runtime import Future, Kernel
from nic_model.contract import NicConfig

STUCK_CYCLES = 1_000_000
"""A device that has something under way, of which nothing moves for so long, will not go on."""

FOREVER_PS = 1 << 62


class Transactors(Protocol):
    """What surrounds the device: `cosim.engines.library.Library`, which says what each does, or the same in Python."""

    status: Status

    def open(self, bus: BusTiming, mac: MacTiming, base: int, reads_from: bytearray, writes_to: bytearray,
             stuck_cycles: int) -> None: ...

    def set_bus(self, bus: BusTiming) -> None: ...

    def take_bus(self, now_ps: int, fractions: int, /) -> None: ...

    def watch(self, judge: Callable[[int, int, bool], bool] | None, *, watched: bool) -> None: ...

    def write(self, now_ps: int, address: int, data: bytes, length: int, /) -> None: ...

    def read(self, now_ps: int, address: int, ticket: int, /) -> None: ...

    def deliver(self, frames: Sequence[tuple[int, bytes, bool]]) -> None: ...

    def expect(self, limit_ps: int, lines: int, error: int, /) -> None: ...

    def take(self) -> Taken: ...

    def order(self, now_ps: int, message: bytes, *, is_emit: bool) -> None: ...

    def hear(self) -> list[bytes]: ...

    def heard(self, messages: int) -> None: ...

    def report(self) -> str: ...


class TransactorPort(HostPort):
    """Implements `host_driver.port.Port`.

    Parameters: the transactors; the device's configuration; the kernel, whose clock this drives; host memory, the
    MAC, the bus; how many cycles without progress end the run. Attributes: `traffic`, counted at the device's ports.
    Whoever owns the simulator calls `expect`, lets it run until the transactors stop it, and calls `deliver`.
    """

    def __init__(self, library: Transactors, config: NicConfig, kernel: Kernel, memory: HostMemory, mac: Mac,
                 bus: Bus, stuck_cycles: int = STUCK_CYCLES) -> None:
        super().__init__(kernel, memory)
        self.library = library
        self._config = config
        self._mac = mac
        self._bus = bus
        self._stuck_cycles = stuck_cycles
        self._reads: dict[int, Future[int]] = {}
        self._tickets = 0
        self._frames: list[tuple[int, bytes, bool]] = []
        self.control = TransactorStreams(library, kernel)
        """The streams of the device's control port, if it has one."""
        self.bursts: list[tuple[int, bool, int]] = []
        """(time, is_write, address) of bursts that reached memory, after `watch`."""
        self.rises: list[tuple[int, int]] = []
        """(time, line) of interrupt lines that rose, after `watch`."""
        library.open(bus.timing, mac.timing, memory.base, memory.device_buffer, memory.buffer, stuck_cycles)
        self._status = library.status
        self._write = library.write
        if bus.judge is not None:
            library.watch(self._judge, watched=False)
        mac.deliver = self._deliver

    # ------------------------------------------------------------------------------------------ driver's side

    def read32(self, address: int) -> Future[int]:
        """Read a register: a round trip on the bus. Never overtakes posted writes."""
        future: Future[int] = Future(f"read of register {address:#x}")
        self._tickets += 1
        self._reads[self._tickets] = future
        self.library.read(self.kernel.now, address, self._tickets)
        return future

    def write32(self, address: int, value: int) -> None:
        """Write a register or doorbell; posted, in order."""
        self._write(self.kernel.now, address, value.to_bytes(4, "little"), 4)

    def write_block(self, address: int, data: bytes) -> None:
        """Write 64 bytes to a doorbell page as one burst. Raises ValueError for another size or place."""
        check_block(address, data)
        self._write(self.kernel.now, address, bytes(data), BLOCK_BYTES)

    def take_bus(self, duration_ps: int) -> None:
        """DMA waits for so long, from the next edge on."""
        self.library.take_bus(self.kernel.now, fractions_of(duration_ps, self._config.clock_hz))

    # ------------------------------------------------------------------------------------------ what crossed

    @property
    def dma_read_bytes(self) -> int:
        """Bytes that the device has asked for."""
        return self._status.dma_read_bytes

    @property
    def dma_write_bytes(self) -> int:
        """Bytes that it has written."""
        return self._status.dma_write_bytes

    @property
    def interrupts(self) -> int:
        """Times that an interrupt line rose."""
        return self._status.interrupts

    @property
    def cycles_simulated(self) -> int:
        """Edges that ran; others were jumped over."""
        return self._status.cycles

    @property
    def most_reads_in_flight(self) -> int:
        """DMA reads on their way at a time, ever."""
        return self._status.most_reads_in_flight

    def watch(self) -> None:
        """Keep bursts and rises of interrupt lines from now on."""
        self.library.watch(self._judge if self._bus.judge is not None else None, watched=True)

    def set_bus_timing(self) -> None:
        """The bus's timing was changed."""
        self.library.set_bus(self._bus.timing)

    # ------------------------------------------------------------------------------------------ simulator's side

    def expect(self) -> None:
        """Tell the transactors what the host waits for."""
        if self._frames:
            self.library.deliver(self._frames)
            self._frames = []
        due = self.kernel.next_time()
        lines = sum(1 << vector for vector in self._waiters)
        error = lines >> self._config.vectors & 1
        self.library.expect(FOREVER_PS if due is None else due, lines & (1 << self._config.vectors) - 1, error)

    def deliver(self) -> None:
        """The transactors have stopped: let the host see what came, and act at that time.

        Raises RunError when the device cannot go on, TaskFailed when a task that nobody awaits raised.
        """
        kernel, status = self.kernel, self._status
        kernel.now = max(kernel.now, status.now_ps)
        stop = status.stop
        if stop & (Stop.DEAD | Stop.STUCK | Stop.BROKEN):
            raise RunError(self.stall_report(Stop(stop)))
        if stop & Stop.INTERRUPT:
            self._wake_waiters()
        if status.frames_waiting or status.reads_waiting or status.bursts_waiting or status.rises_waiting:
            taken = self.library.take()
            for ticket, value in taken.values:
                self._reads.pop(ticket).set_result(value)
            if taken.frames:
                self._mac.transmitted(taken.frames)
            self.bursts += taken.bursts
            self.rises += taken.rises
        if stop & Stop.MESSAGE:
            self.control.hear()
        # All that the host does before the next edge.
        kernel.run_until(status.next_ps - 1)

    def stall_report(self, stop: Stop) -> str:
        """Why nothing goes on, by the names of who waits for what: tasks, rings, queues of the bus and the MAC, and the
        device's FSMs and streams."""
        what = {Stop.BROKEN: "the device broke a rule of its bus",
                Stop.DEAD: "nothing will ever happen again",
                Stop.STUCK: f"nothing has moved for {self._stuck_cycles:,} idle cycles, though something is under way"}
        why = next(text for reason, text in what.items() if stop & reason)
        rings = [reporter.report() for reporter in self.kernel.reporters]
        said = [*self._waiting_tasks(), *rings, self.library.report()]
        return f"{why} at {self.kernel.now} ps: {with_register_names('; '.join(filter(None, said)))}"

    def _is_high(self, vector: int) -> bool:
        status = self._status
        return bool(status.error_irq if vector == self._config.error_vector else status.irq >> vector & 1)

    def _deliver(self, frame: bytes, bad: bool, time_ps: int) -> None:
        self._frames.append((time_ps, frame, bad))

    def _judge(self, time_ps: int, address: int, is_write: bool) -> bool:
        self.kernel.now = max(self.kernel.now, time_ps)
        assert self._bus.judge is not None
        return self._bus.judge(address, is_write)


class TransactorStreams:
    """The control port's streams over transactors: implements `cosim.device_processor.ControlStreams`."""

    def __init__(self, library: Transactors, kernel: Kernel) -> None:
        self.on_up: Callable[[], None] = lambda: None
        self._library = library
        self._kernel = kernel
        self._messages: deque[bytes] = deque()

    def hear(self) -> None:
        """Messages have come up."""
        self._messages.extend(self._library.hear())
        self.on_up()

    def take(self) -> bytes | None:
        """The next message up, or None."""
        if not self._messages:
            return None
        self._library.heard(1)
        return self._messages.popleft()

    def release(self, message: bytes) -> None:
        """An order of the release stream; it enters from the next edge on."""
        self._library.order(self._kernel.now, message, is_emit=False)

    def emit(self, message: bytes) -> None:
        """An order of the emit stream, likewise."""
        self._library.order(self._kernel.now, message, is_emit=True)
