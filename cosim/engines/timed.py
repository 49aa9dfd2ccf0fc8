"""A Port over the device in time, without RTL: `nic_model.timed_device` between the host and the wire.

Register accesses and doorbells take the way that `cosim/transactors/registers.h` gives them, DMA the bus of the machine
file, frames the MAC: the same as round the RTL.
"""

from __future__ import annotations

from cosim.engines.bus import BusTiming, fractions_of
from cosim.engines.host_port import check_block
from cosim.engines.model import WithoutRtl
from cosim.mac import PS_PER_S, Mac, TransmitFifo
from cosim.memory import HostMemory
from host_driver.runtime import Future, Kernel, Timer
from nic_model.contract import DOORBELL_BASE, DOORBELL_STRIDE
from nic_model.timed_device import TimedDevice
from nic_model.timing.parameters import DeviceModel

FOREVER = 1 << 50


class TimedPort(WithoutRtl):
    """Implements `host_driver.port.Port`.

    Attributes: `device`, and what the bus carried so far: `dma_read_bytes`, `dma_write_bytes`, `interrupts` (times
    that a line rose), `rises` ((time, line) of each).
    """

    def __init__(self, model: DeviceModel, kernel: Kernel, memory: HostMemory, mac: Mac, bus: BusTiming) -> None:
        super().__init__(kernel, memory)
        self.device = TimedDevice(model, bus, mac.timing, self._dma_read, self._dma_write)
        self.rises: list[tuple[int, int]] = []
        self._timing = model.timing
        self._host_bytes = model.config.host_bytes
        self._bus = bus
        self._clock_hz = model.config.clock_hz
        self._mac = mac
        self._fifo = TransmitFifo(mac.timing)
        self._free = 0
        self._arrives = 0
        self._timer: Timer | None = None
        self.device.on_frame = self._send
        self.device.doing.on_irq = self._show_irq
        mac.deliver = self._deliver

    @property
    def interrupts(self) -> int:
        """Times that an interrupt line rose."""
        return self.device.doing.counters["interrupts"]

    # ------------------------------------------------------------------------------------------ time

    def _time_of(self, edge: int) -> int:
        return edge * PS_PER_S // self._clock_hz

    def _edge_at(self, time_ps: int) -> int:
        """The last edge at or before a time."""
        return -(-(time_ps + 1) * self._clock_hz // PS_PER_S) - 1

    def _schedule(self) -> None:
        """Wake when the device does something by itself."""
        if self._timer is not None:
            self._timer.cancel()
        time_ps = self._next_time()
        self._timer = None if time_ps is None else self.kernel.call_at(time_ps, self._wake)

    def _next_time(self) -> int | None:
        """When the device does something by itself."""
        kernel = self.kernel
        # nobody acts or looks before that
        due = kernel.next_time()
        self.device.look_ahead(FOREVER if due is None else self._edge_at(due) - 1)
        edge = self.device.next_edge()
        return None if edge is None else max(kernel.now, self._time_of(edge))

    def _wake(self) -> None:
        kernel = self.kernel
        self._timer = None
        self.device.advance(self._edge_at(kernel.now))
        time_ps = self._next_time()
        while time_ps is not None and kernel.pass_to(time_ps):
            self.device.advance(self._edge_at(time_ps))
            time_ps = self._next_time()
        self._timer = None if time_ps is None else kernel.call_at(time_ps, self._wake)

    # ------------------------------------------------------------------------------------------ driver's side

    def read32(self, address: int) -> Future[int]:
        """Read a register: a round trip on the bus. Never overtakes posted writes."""
        future: Future[int] = Future(f"read of register {address:#x}")
        there = self._bus.mmio_read_cycles // 2
        begin = max(self._edge_at(self.kernel.now) + there, self._free)
        answer = begin + self._timing.register_read
        self._free = answer

        def look() -> None:
            self.device.enter(answer)
            value = self.device.read_register(address)
            back = self._time_of(answer + self._bus.mmio_read_cycles - there)
            self.kernel.call_at(back, lambda: future.set_result(value))
            self._schedule()

        self.kernel.call_at(max(self.kernel.now, self._time_of(answer)), look)
        return future

    def write32(self, address: int, value: int) -> None:
        """Write a register or doorbell; posted, in order."""
        data = value.to_bytes(4, "little")
        begin = max(self._edge_at(self.kernel.now) + self._bus.mmio_write_cycles, self._free)
        if address >= DOORBELL_BASE:
            self._free = begin + self._timing.bell_write
            self._post(begin + self._timing.bell_to_port, address, data)
        else:
            self._free = begin + self._timing.register_write
            self._post(begin + self._timing.register_write, address, data)

    def write_block(self, address: int, data: bytes) -> None:
        """Write 64 bytes to a doorbell page as one burst. Raises ValueError for another size or place."""
        check_block(address, data)
        begin = max(self._edge_at(self.kernel.now) + self._bus.mmio_write_cycles, self._free)
        beats = len(data) // self._host_bytes
        self._free = begin + self._timing.bell_write + beats - 1
        self._post(begin + self._timing.bell_to_port + beats - 1, address, bytes(data))

    def _post(self, edge: int, address: int, data: bytes) -> None:
        def act() -> None:
            self.device.enter(edge)
            if address >= DOORBELL_BASE:
                channel, offset = divmod(address - DOORBELL_BASE, DOORBELL_STRIDE)
                self.device.write_doorbell(channel, offset, data)
            else:
                self.device.write_register(address, int.from_bytes(data, "little"))
            self._schedule()

        self.kernel.call_at(max(self.kernel.now, self._time_of(edge)), act)

    def take_bus(self, duration_ps: int) -> None:
        """DMA waits for so long, from the next edge on."""
        edge = self._edge_at(self.kernel.now) + 1
        fractions = fractions_of(duration_ps, self._clock_hz)

        def act() -> None:
            self.device.take_bus(edge, fractions)
            self._schedule()

        self.kernel.call_at(max(self.kernel.now, self._time_of(edge)), act)

    # ------------------------------------------------------------------------------------------ device's side

    def _is_high(self, vector: int) -> bool:
        return bool(self.device.doing.irq[vector])

    def _show_irq(self, vector: int, level: bool) -> None:
        if level:
            self.rises.append((self.kernel.now, vector))
            self._wake_waiters()

    # ------------------------------------------------------------------------------------------ wire's side

    def _deliver(self, frame: bytes, bad: bool, time_ps: int) -> None:
        edge = max(self._edge_at(time_ps) + 1, self._arrives)
        self._arrives = edge

        def act() -> None:
            self.device.enter(edge)
            self.device.receive(frame, bad)
            self._schedule()

        self.kernel.call_at(max(self.kernel.now, self._time_of(edge)), act)

    def _send(self, frame: bytes, edge: int) -> None:
        self._mac.transmitted([self._fifo.push(frame, self._time_of(edge))])
