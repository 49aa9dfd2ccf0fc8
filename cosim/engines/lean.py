"""Lean transactors: the bus, the MAC and the register path of a simulated device, one Python call a cycle.

`LeanPort` implements `host_driver.port.Port` above, and moves the pins of `rtl.simulation.SimulationTop` below. It
knows no simulator: it is given functions that read and set pins. Cycle n is the time from clock edge n to edge
n + 1; `step(n)` is called once in it, when all outputs have settled. What the device shows then happens at edge
n's time; what the host did before edge n + 1 is set up for that edge.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from cosim.engines.bus import Bus
from cosim.mac import Mac
from cosim.memory import HostMemory
from host_driver.runtime import Future, Kernel
from nic_model.contract import DOORBELL_BASE, NicConfig
from rtl.simulation import DEADLINE_BIT, INPUTS, IRQ_BIT, OUTPUTS, QUIET_BIT, vector_fields

PS_PER_S = 10**12

BLOCK_BYTES = 64
"""Size of a write-combined block."""

SETTLE_CYCLES = 4
"""Cycles simulated before the end of a jump, so that registered copies of `now` inside the device are fresh."""

RESP_OKAY, RESP_SLVERR = 0, 2

_VALID = {name: 1 << index for index, name in enumerate(OUTPUTS)}
_READY = {name: 1 << (len(OUTPUTS) + index) for index, name in enumerate(INPUTS)}
_QUIET = 1 << QUIET_BIT
_DEADLINE = 1 << DEADLINE_BIT
_ALWAYS_READY = sum(_VALID.values()) & ~_VALID["m_axis_tx"]


class Pins(Protocol):
    """Access to the pins of a running `SimulationTop`."""

    def read(self, name: str) -> int:
        """Value of an output."""

    def set(self, name: str, value: int) -> None:
        """Drive an input from now on."""


class _Operation(NamedTuple):
    """A register access on its way: `reading` is the future of a read's value, None for a write."""

    due: int
    address: int
    data: bytes
    reading: Future[int] | None


class DeviceTraffic:
    """What crossed the device's ports: bytes of DMA, and times that an interrupt line rose."""

    def __init__(self) -> None:
        self.dma_read_bytes = 0
        self.dma_write_bytes = 0
        self.interrupts = 0


class LeanPort:
    """Implements `host_driver.port.Port` over the pins of a simulated device.

    Parameters: the device's configuration, the kernel whose clock this drives, host memory, the MAC, the bus.
    Attributes: `traffic` counts bytes and interrupts at the device's pins; `cycles_simulated` counts calls of `step`.
    """

    def __init__(self, config: NicConfig, kernel: Kernel, memory: HostMemory, mac: Mac, bus: Bus, pins: Pins) -> None:
        self.kernel = kernel
        self.memory = memory
        self.traffic = DeviceTraffic()
        self.cycles_simulated = 0
        self._config = config
        self._mac = mac
        self._bus = bus
        self._pins = pins
        self._width = config.host_bytes
        self._sequence = 0
        self._timeline: list[tuple[int, int, Callable[[], None]]] = []
        self._cycle = 0
        self._driven: dict[str, int] = {}
        self._offered: set[str] = set()
        self._changed = False
        self._flags = 0
        self._irq = 0
        self._waiters: dict[int, list[Future[None]]] = {}
        self._quiet_steps = 0
        self._deadline: int | None = None
        fields = vector_fields(config)
        self._read_id_bits = fields["m_axi_ar"]["id"][1]
        self._write_id_bits = fields["m_axi_aw"]["id"][1]
        self._doorbell_fields = {name: offset for name, (offset, _) in fields["s_axi_aw"].items()}
        # reads of host memory: beats that are due, by burst
        self._read_bursts: deque[deque[int]] = deque()
        # writes: addresses of bursts announced, beats that came before their address, beats of the burst under way
        self._write_addresses: deque[tuple[int, int]] = deque()
        self._write_beats: deque[tuple[int, int, bool]] = deque()
        self._write_open: list[tuple[int, bytes, int]] = []
        self._responses: deque[int] = deque()
        # registers and doorbells
        self._operations: deque[_Operation] = deque()
        self._operation: _Operation | None = None
        self._data_beats: deque[int] = deque()
        # frames
        self._frame_beats: list[bytes] = []
        self._rx_beats: deque[int] = deque()
        mac.deliver = self._deliver
        mac.on_room = lambda: None

    # ------------------------------------------------------------------------------------------ driver's side

    def read32(self, address: int) -> Future[int]:
        """Read a register: a round trip on the bus. Never overtakes posted writes."""
        future: Future[int] = Future(f"read of register {address:#x}")
        latency = self._bus.timing.mmio_read_cycles
        self._operations.append(_Operation(self._now_cycle + latency // 2, address, b"", future))
        return future

    def write32(self, address: int, value: int) -> None:
        """Write a register or doorbell; posted, in order."""
        due = self._now_cycle + self._bus.timing.mmio_write_cycles
        self._operations.append(_Operation(due, address, value.to_bytes(4, "little"), None))

    def write_block(self, address: int, data: bytes) -> None:
        """Write 64 bytes to a doorbell page as one burst. Raises ValueError for another size or place."""
        if len(data) != BLOCK_BYTES or address < DOORBELL_BASE or address % BLOCK_BYTES:
            raise ValueError(f"a block write is 64 aligned bytes on a doorbell page, not {len(data)} at {address:#x}")
        due = self._now_cycle + self._bus.timing.mmio_write_cycles
        self._operations.append(_Operation(due, address, data, None))

    def wmb(self) -> None:
        """Nothing to do: the device sees host memory as it stands, and writes to it are in program order."""

    def rmb(self) -> None:
        """Nothing to do: host memory is seen as it stands."""

    def interrupt(self, vector: int) -> Future[None]:
        """A future that finishes when the vector's line is high, or now if it is."""
        future: Future[None] = Future(f"interrupt of vector {vector}")
        if self._irq >> vector & 1:
            future.set_result(None)
        else:
            self._waiters.setdefault(vector, []).append(future)
        return future

    def sleep(self, duration_ps: int) -> Future[None]:
        """A future that finishes after `duration_ps`."""
        return self.kernel.sleep(duration_ps)

    def now(self) -> int:
        """Simulated time in picoseconds."""
        return self.kernel.now

    # ------------------------------------------------------------------------------------------ time

    def time_of(self, cycle: int) -> int:
        """Time of clock edge `cycle` in picoseconds."""
        return cycle * PS_PER_S // self._config.clock_hz

    @property
    def _now_cycle(self) -> int:
        """The last edge at or before the kernel's time."""
        return -(-(self.kernel.now + 1) * self._config.clock_hz // PS_PER_S) - 1

    def step(self, cycle: int) -> None:
        """Take what the device shows in `cycle`, let the host run up to the next edge, and set up its inputs for it."""
        self.cycles_simulated += 1
        self._cycle = cycle
        self._changed = False
        kernel = self.kernel
        kernel.now = max(kernel.now, self.time_of(cycle))
        pins = self._pins
        flags = pins.read("flags")

        irq = flags >> IRQ_BIT
        if irq != self._irq:
            self._show_irq(irq)
        if flags & _VALID["m_axi_ar"]:
            self._take_read_address(pins.read("m_axi_ar"))
        if flags & _VALID["m_axi_aw"]:
            self._take_write_address(pins.read("m_axi_aw"))
        if flags & _VALID["m_axi_w"]:
            self._take_write_beat(pins.read("m_axi_w"))
        if self._operation is not None:
            self._follow_operation(flags)
        timeline = self._timeline
        while timeline and timeline[0][0] <= cycle:
            heapq.heappop(timeline)[2]()

        kernel.run_until(self.time_of(cycle + 1) - 1)

        ready = _ALWAYS_READY
        if self._frame_beats or self._mac.has_room():
            ready |= _VALID["m_axis_tx"]
            if flags & _VALID["m_axis_tx"]:
                self._take_mac_beat(pins.read("m_axis_tx"))
        self._drive("ready", ready)
        self._drive("m_axi_r", self._next_read_beat())
        self._drive("m_axi_b", self._responses.popleft() if self._responses else 0)
        self._drive("s_axis_rx", self._rx_beats.popleft() if self._rx_beats else 0)
        if self._operation is None and self._operations and self._operations[0].due <= cycle:
            self._start_operation()
        self._flags = flags
        still = flags & _QUIET and not self._changed and not self._offered and self._operation is None
        self._quiet_steps = self._quiet_steps + 1 if still else 0
        self._deadline = pins.read("next_deadline") if self._quiet_steps > 1 and flags & _DEADLINE else None

    def idle_until(self) -> int | None:
        """The cycle up to which nothing will happen, when that is more than a few ahead; None when something may.

        Raises RuntimeError, naming the tasks that wait, when nothing will ever happen again.
        """
        if self._quiet_steps < 2:
            return None
        limits = []
        if self._timeline:
            limits.append(self._timeline[0][0])
        if self._operations:
            limits.append(self._operations[0].due)
        if self._deadline is not None:
            limits.append(self._deadline)
        host = self.kernel.next_time()
        if host is not None:
            limits.append(host * self._config.clock_hz // PS_PER_S)
        if not limits:
            waiting = "; ".join(sorted(f"{t.name} waits for {t.waits_for}" for t in self.kernel.tasks))
            raise RuntimeError(f"nothing will ever happen again at {self.kernel.now} ps: {waiting}")
        target = min(limits) - SETTLE_CYCLES
        return target if target > self._cycle + 1 else None

    # ------------------------------------------------------------------------------------------ pins

    def _drive(self, name: str, value: int) -> None:
        if self._driven.get(name) == value:
            return
        self._driven[name] = value
        self._changed = True
        self._pins.set(name, value)
        if name != "ready":
            (self._offered.add if value & 1 else self._offered.discard)(name)

    def _at(self, cycle: int, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._timeline, (cycle, self._sequence, action))

    def _show_irq(self, irq: int) -> None:
        risen = irq & ~self._irq
        self._irq = irq
        while risen:
            vector = (risen & -risen).bit_length() - 1
            risen &= risen - 1
            self.traffic.interrupts += 1
            for waiter in self._waiters.pop(vector, []):
                waiter.set_result(None)

    def _take_read_address(self, word: int) -> None:
        bits = self._read_id_bits
        tag, address, beats = word & (1 << bits) - 1, word >> bits & (1 << 64) - 1, (word >> bits + 64) + 1
        length = beats * self._width
        self.traffic.dma_read_bytes += length
        self._at(self._bus.read_due(self._cycle, length), lambda: self._read_data(tag, address, beats))

    def _read_data(self, tag: int, address: int, beats: int) -> None:
        width, bits = self._width, self._read_id_bits
        data = None if self._bus.fault(address, False) else self.memory.read(address, beats * width)
        resp = RESP_OKAY if data is not None else RESP_SLVERR
        data = data if data is not None else bytes(beats * width)
        fixed = 1 | tag << 1 | resp << 1 + bits + 8 * width
        burst = deque(fixed | int.from_bytes(data[at : at + width], "little") << 1 + bits
                      for at in range(0, beats * width, width))
        burst[-1] |= 1 << 3 + bits + 8 * width
        self._read_bursts.append(burst)

    def _next_read_beat(self) -> int:
        bursts = self._read_bursts
        if not bursts:
            return 0
        if self._bus.timing.interleave and len(bursts) > 1:
            bursts.rotate(self._bus.rng.randrange(len(bursts)))
        beat = bursts[0].popleft()
        if not bursts[0]:
            bursts.popleft()
        return beat

    def _take_write_address(self, word: int) -> None:
        bits = self._write_id_bits
        self._write_addresses.append((word & (1 << bits) - 1, word >> bits & (1 << 64) - 1))
        self._match_writes()

    def _take_write_beat(self, word: int) -> None:
        width = self._width
        strobes = word >> 8 * width & (1 << width) - 1
        self._write_beats.append((word & (1 << 8 * width) - 1, strobes, bool(word >> 9 * width)))
        self._match_writes()

    def _match_writes(self) -> None:
        """Pair beats with the oldest address; a whole burst goes on its way to memory."""
        width = self._width
        while self._write_addresses and self._write_beats:
            tag, address = self._write_addresses[0]
            data, strobes, last = self._write_beats.popleft()
            at = address // width * width + len(self._write_open) * width
            self._write_open.append((at, data.to_bytes(width, "little"), strobes))
            if last:
                burst, self._write_open = self._write_open, []
                self._write_addresses.popleft()
                length = sum(beat[2].bit_count() for beat in burst)
                self.traffic.dma_write_bytes += length
                arrives = self._bus.write_arrives(self._cycle, length)
                self._at(arrives, lambda tag=tag, burst=burst: self._write_data(tag, burst))  # type: ignore[misc]

    def _write_data(self, tag: int, burst: list[tuple[int, bytes, int]]) -> None:
        width = self._width
        good = not self._bus.fault(burst[0][0], True)
        for address, data, strobes in burst if good else ():
            if strobes == (1 << width) - 1:
                good &= self.memory.write(address, data)
            else:
                lanes = [lane for lane in range(width) if strobes >> lane & 1]
                if lanes:  # a device's strobes are one run
                    first, last = lanes[0], lanes[-1]
                    good &= self.memory.write(address + first, data[first : last + 1])
        response = 1 | tag << 1 | (RESP_OKAY if good else RESP_SLVERR) << 1 + self._write_id_bits
        self._at(self._cycle + self._bus.timing.write_latency_cycles, lambda: self._responses.append(response))

    # ------------------------------------------------------------------------------------------ frames

    def _take_mac_beat(self, word: int) -> None:
        width = self._config.mac_bytes
        keep = word >> 8 * width & (1 << width) - 1
        self._frame_beats.append((word & (1 << 8 * width) - 1).to_bytes(width, "little")[: keep.bit_length()])
        if word >> 9 * width & 1:
            frame = b"".join(self._frame_beats)
            self._frame_beats = []
            self._mac.transmit(frame)

    def _deliver(self, frame: bytes, bad: bool) -> None:
        width = self._config.mac_bytes
        for at in range(0, len(frame), width):
            piece = frame[at : at + width]
            last = at + width >= len(frame)
            self._rx_beats.append(1 | int.from_bytes(piece, "little") << 1 | ((1 << len(piece)) - 1) << 1 + 8 * width
                                  | last << 1 + 9 * width | (last and bad) << 2 + 9 * width)

    # ------------------------------------------------------------------------------------------ registers

    def _start_operation(self) -> None:
        operation = self._operations.popleft()
        self._operation = operation
        address, width = operation.address, self._width
        if operation.reading is not None:
            self._drive("s_axil_ar", 1 | address << 1)
        elif address < DOORBELL_BASE:
            self._drive("s_axil_aw", 1 | address << 1)
            self._drive("s_axil_w", 1 | int.from_bytes(operation.data, "little") << 1 | 0xF << 33)
        else:
            page = address - DOORBELL_BASE
            data, strobes = operation.data, (1 << len(operation.data)) - 1
            lane = page % width
            beats = max(1, len(data) // width)
            whole, mask = int.from_bytes(data, "little") << 8 * lane, strobes << lane
            for beat in range(beats):
                part = whole >> 8 * width * beat & (1 << 8 * width) - 1
                strobe = mask >> width * beat & (1 << width) - 1
                self._data_beats.append(1 | part << 1 | strobe << 1 + 8 * width | (beat == beats - 1) << 1 + 9 * width)
            size = (width if beats > 1 else 4).bit_length() - 1
            at = self._doorbell_fields
            word = page << at["addr"] | (beats - 1) << at["len"] | size << at["size"] | 1 << at["burst"]
            self._drive("s_axi_aw", 1 | word << 1)
            self._drive("s_axi_w", self._data_beats.popleft())

    def _follow_operation(self, flags: int) -> None:
        """Follow the access under way: what was offered and ready in the last cycle has been taken; is it answered?"""
        operation = self._operation
        assert operation is not None
        for name in ("s_axil_ar", "s_axil_aw", "s_axil_w", "s_axi_aw", "s_axi_w"):
            if name in self._offered and self._flags & _READY[name]:
                more = name == "s_axi_w" and self._data_beats
                self._drive(name, self._data_beats.popleft() if more else 0)
        if flags & (_VALID["s_axil_b"] | _VALID["s_axi_b"]):
            self._operation = None
        elif flags & _VALID["s_axil_r"]:
            value = self._pins.read("s_axil_r") & 0xFFFF_FFFF
            reading = operation.reading
            assert reading is not None
            latency = self._bus.timing.mmio_read_cycles
            self._at(self._cycle + latency - latency // 2, lambda: reading.set_result(value))
            self._operation = None
