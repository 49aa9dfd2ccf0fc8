"""The engine without RTL: a Port over `nic_model.device`, in the host's own process.

The device's work takes no time: a posted write has its effect at once, a read returns after a fixed latency, and
only moderation's deadlines are timers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from cosim.engines.host_port import HostPort, check_block
from cosim.mac import PS_PER_S, Mac, TransmitFifo
from cosim.memory import HostMemory
from host_driver.runtime import Future, Kernel, Timer
from nic_model.contract import DOORBELL_BASE, DOORBELL_STRIDE, NicConfig
from nic_model.control_port import ControlPort
from nic_model.device import Device

DEFAULT_READ_LATENCY_PS = 1_000_000
"""A register's round trip: 1 us unless the machine says otherwise."""


class WithoutRtl(HostPort):
    """Part of a Port over a device in Python, which reads and writes host memory as `_dma_read` and `_dma_write` say.

    Attributes: `dma_read_bytes`, `dma_write_bytes`, what the bus carried so far.
    """

    def __init__(self, kernel: Kernel, memory: HostMemory) -> None:
        super().__init__(kernel, memory)
        self.dma_read_bytes = 0
        self.dma_write_bytes = 0

    def _dma_read(self, address: int, length: int) -> bytes | None:
        data = self.memory.read(address, length)
        if data is not None:
            self.dma_read_bytes += length
        return data

    def _dma_write(self, address: int, data: bytes) -> bool:
        self.dma_write_bytes += len(data)
        return self.memory.write(address, data)


class ModelPort(WithoutRtl):
    """Implements `host_driver.port.Port`.

    Attributes: `device`, and what the bus carried so far: `dma_read_bytes`, `dma_write_bytes`, `interrupts` (times
    that a line rose).
    """

    def __init__(self, config: NicConfig, kernel: Kernel, memory: HostMemory, mac: Mac,
                 read_latency_ps: int = DEFAULT_READ_LATENCY_PS) -> None:
        super().__init__(kernel, memory)
        self.device = Device(config, self._dma_read, self._dma_write)
        self._clock_hz = config.clock_hz
        self._read_latency_ps = read_latency_ps
        self._mac = mac
        self._fifo = TransmitFifo(mac.timing)
        self._waiting_frames: deque[bytes] = deque()
        self._arriving = 0
        self._deadline_timer: Timer | None = None
        self.device.on_frame = self._send
        self.device.on_irq = self._show_irq
        mac.deliver = self._deliver

    @property
    def interrupts(self) -> int:
        """Times that an interrupt line rose."""
        return self.device.counters["interrupts"]

    # ------------------------------------------------------------------------------------------ driver's side

    def read32(self, address: int) -> Future[int]:
        """Read a register: a round trip on the bus. Never overtakes posted writes."""
        self._catch_up()
        value = self.device.read_register(address)
        future: Future[int] = Future(f"read of register {address:#x}")
        self.kernel.call_at(self.kernel.now + self._read_latency_ps, lambda: future.set_result(value))
        return future

    def write32(self, address: int, value: int) -> None:
        """Write a register or doorbell; has its effect now."""
        self._catch_up()
        if address >= DOORBELL_BASE:
            self._write_doorbell(address, value.to_bytes(4, "little"))
        else:
            self.device.write_register(address, value)
        self._schedule_deadline()

    def write_block(self, address: int, data: bytes) -> None:
        """Write 64 bytes to a doorbell page as one burst. Raises ValueError for another size or place."""
        check_block(address, data)
        self._catch_up()
        self._write_doorbell(address, data)
        self._schedule_deadline()

    # ------------------------------------------------------------------------------------------ device's side

    def _write_doorbell(self, address: int, data: bytes) -> None:
        channel, offset = divmod(address - DOORBELL_BASE, DOORBELL_STRIDE)
        self.device.write_doorbell(channel, offset, data)

    def _is_high(self, vector: int) -> bool:
        return bool(self.device.irq[vector])

    def _show_irq(self, vector: int, level: bool) -> None:
        if level:
            self._wake_waiters()

    @property
    def _now_cycles(self) -> int:
        return self.kernel.now * self._clock_hz // PS_PER_S

    def _catch_up(self) -> None:
        self.device.advance(self._now_cycles)

    def _schedule_deadline(self) -> None:
        deadline = self.device.next_deadline()
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
            self._deadline_timer = None
        if deadline is not None:
            # The first picosecond at which the cycle count has reached the deadline.
            time = -(-deadline * PS_PER_S // self._clock_hz)
            self._deadline_timer = self.kernel.call_at(time, self._deadline_reached)

    def _deadline_reached(self) -> None:
        self._deadline_timer = None
        self._catch_up()
        self._schedule_deadline()

    # ------------------------------------------------------------------------------------------ control port's side

    @property
    def control(self) -> ModelStreams:
        """The device's control port, which it must have."""
        assert self.device.control is not None
        return ModelStreams(self, self.device.control)

    def catch_up(self) -> None:
        """The device's time is now."""
        self._catch_up()

    def settle(self) -> None:
        """What the device did may have set a deadline."""
        self._schedule_deadline()

    # ------------------------------------------------------------------------------------------ wire's side

    def _deliver(self, frame: bytes, bad: bool, time_ps: int) -> None:
        if time_ps <= self.kernel.now and not self._arriving:
            self._take(frame, bad)
        else:
            self._arriving += 1
            self.kernel.call_at(time_ps, lambda: self._arrive(frame, bad))

    def _arrive(self, frame: bytes, bad: bool) -> None:
        self._arriving -= 1
        self._take(frame, bad)

    def _take(self, frame: bytes, bad: bool) -> None:
        self.device.receive(frame, bad, self._now_cycles)
        self._schedule_deadline()

    def _send(self, frame: bytes) -> None:
        self._waiting_frames.append(frame)
        if len(self._waiting_frames) == 1:
            self._drain_frames()

    def _drain_frames(self) -> None:
        waiting, fifo = self._waiting_frames, self._fifo
        while waiting and fifo.has_room(self.kernel.now):
            self._mac.transmitted([fifo.push(waiting[0], self.kernel.now)])
            waiting.popleft()
        if waiting:
            room = fifo.next_room_ps()
            assert room is not None
            self.kernel.call_at(room, self._drain_frames)


class ModelStreams:
    """The streams of a model's control port: implements `cosim.device_processor.ControlStreams`."""

    def __init__(self, port: ModelPort, control: ControlPort) -> None:
        self._port = port
        self._control = control

    @property
    def on_up(self) -> Callable[[], None]:
        """Called when a message is there."""
        return self._control.on_up

    @on_up.setter
    def on_up(self, callback: Callable[[], None]) -> None:
        self._control.on_up = callback

    def take(self) -> bytes | None:
        """The next message up, or None."""
        self._port.catch_up()
        message = self._control.take()
        self._port.settle()
        return message

    def release(self, message: bytes) -> None:
        """An order of the release stream; what it starts is done on return."""
        self._port.catch_up()
        self._control.release(message)
        self._port.settle()

    def emit(self, message: bytes) -> None:
        """An order of the emit stream, likewise."""
        self._port.catch_up()
        self._control.emit(message)
        self._port.settle()
