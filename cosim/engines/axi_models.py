"""cocotbext-axi's bus models as transactors: for those who bring their own, and as the check that owes nothing to ours.

The device has AMBA's port names here (`rtl/amba.py`). What the models do, they do in their own time: the slave on the
DMA port serves one burst at a time, in order, so latency and bandwidth of the machine's bus do not count. `now` is
counted here; it is set ahead when device and models are idle.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import cocotb
from cocotb.clock import Clock
from cocotb.queue import Queue
from cocotb.triggers import ClockCycles, RisingEdge, ValueChange

# cocotbext-axi 0.1.28 and cocotb-bus 0.3 still use names that cocotb 2 has renamed.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"cocotbext\.axi\..*|cocotb_bus\..*")

from cocotbext.axi import (  # noqa: E402
    AxiBus,
    AxiLiteBus,
    AxiLiteMaster,
    AxiMaster,
    AxiResp,
    AxiSlave,
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
)

from cosim.engines.base import RunError  # noqa: E402
from cosim.engines.bench import Bench  # noqa: E402
from cosim.engines.cocotb_pump import clock_period_ps  # noqa: E402
from cosim.engines.host_port import HostPort, check_block  # noqa: E402
from cosim.engines.lean.pins import Edges  # noqa: E402
from cosim.errors import InputError  # noqa: E402
from cosim.mac import SentFrame, TransmitFifo  # noqa: E402
from cosim.memory import HostMemory  # noqa: E402
from host_driver.runtime import Future  # noqa: E402
from nic_model.contract import DOORBELL_BASE  # noqa: E402

RESET_CYCLES = 8

IDLE_CYCLES = 8
"""Device and models are idle when they have been for so long."""

SETTLE_CYCLES = 4
"""Cycles before something is due that are not jumped over: registered copies of `now` inside the device are fresh."""

STUCK_CYCLES = 100_000
"""A device that works for so long while nothing moves at its ports will not go on."""


async def axi_models(dut: Any, bench: Bench, jump: bool, interrupted: list[int]) -> AxiPort:
    """Run a bench over the device as `memnic verilog` writes it; see `cosim.engines.cocotb_main.PUMPS`."""
    if bench.bus.judge is not None:
        raise InputError("cocotbext-axi's models put no faults on the bus: take other transactors")
    Clock(dut.clk, clock_period_ps(bench.config), unit="ps").start()
    dut.rst.value = 1
    dut.now.value = 0
    port = AxiPort(dut, bench)
    await ClockCycles(dut.clk, RESET_CYCLES)
    dut.rst.value = 0
    port.begin()
    bench.start(port)
    edge, rising = 0, RisingEdge(dut.clk)
    while True:
        await rising
        port.step(edge)
        if bench.finished() or interrupted:
            return port
        # A cycle has the number of the edge that it begins with.
        dut.now.value = edge
        edge = port.edge_behind(edge, jump=jump)


class _Access(NamedTuple):
    """A register access: `reading` is the future of a read's value, None for a write."""

    address: int
    data: bytes
    reading: Future[int] | None


class HostTarget:
    """Host memory as the slave on the DMA port calls it. Attributes: `read_bytes`, `write_bytes`."""

    def __init__(self, memory: HostMemory) -> None:
        self.read_bytes = 0
        self.write_bytes = 0
        self._memory = memory

    async def read(self, address: int, length: int) -> bytes:
        """A beat. Raises ValueError outside of memory, which the slave answers as a bus error."""
        self.read_bytes += length
        data = self._memory.read(address, length)
        if data is None:
            raise ValueError(f"no memory at {address:#x}")
        return data

    async def write(self, address: int, data: bytes) -> None:
        """Bytes of a beat. Raises ValueError outside of memory."""
        self.write_bytes += len(data)
        if not self._memory.write(address, bytes(data)):
            raise ValueError(f"no memory at {address:#x}")


class AxiPort(HostPort):
    """Implements `cosim.engines.bench.CountingPort`; `step` is called at each rising edge.

    Attributes: `interrupts`, times that an interrupt line rose; `cycles_simulated`.
    """

    def __init__(self, dut: Any, bench: Bench) -> None:
        super().__init__(bench.kernel, bench.memory)
        self.interrupts = 0
        self.cycles_simulated = 0
        self._dut = dut
        self._mac = bench.mac
        self._edges = Edges(bench.config.clock_hz)
        self._registers = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
        self._pages = AxiMaster(AxiBus.from_prefix(dut, "s_axi"), dut.clk, dut.rst)
        self._target = HostTarget(bench.memory)
        self._slave = AxiSlave(AxiBus.from_prefix(dut, "m_axi"), dut.clk, dut.rst, target=self._target)
        self._sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis_tx"), dut.clk, dut.rst)
        self._source = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis_rx"), dut.clk, dut.rst)
        self._fifo = TransmitFifo(bench.mac.timing)
        self._accesses: Queue[_Access] = Queue()
        self._accessing = 0
        self._failure = ""
        self._irq = 0
        self._idle_cycles = 0
        self._still_cycles = 0
        self._moved: tuple[int, ...] = ()
        self._frames = 0
        bench.mac.deliver = self._deliver

    def begin(self) -> None:
        """The device is out of reset."""
        cocotb.start_soon(self._access())
        cocotb.start_soon(self._watch_irq())

    # ------------------------------------------------------------------------------------------ driver's side

    def read32(self, address: int) -> Future[int]:
        """Read a register. Never overtakes posted writes."""
        future: Future[int] = Future(f"read of register {address:#x}")
        self._post(_Access(address, b"", future))
        return future

    def write32(self, address: int, value: int) -> None:
        """Write a register or doorbell; posted, in order."""
        self._post(_Access(address, value.to_bytes(4, "little"), None))

    def write_block(self, address: int, data: bytes) -> None:
        """Write 64 bytes to a doorbell page as one burst. Raises ValueError for another size or place."""
        check_block(address, data)
        self._post(_Access(address, bytes(data), None))

    @property
    def dma_read_bytes(self) -> int:
        """Bytes that the device has read."""
        return self._target.read_bytes

    @property
    def dma_write_bytes(self) -> int:
        """Bytes that it has written."""
        return self._target.write_bytes

    # ------------------------------------------------------------------------------------------ simulator's side

    def step(self, edge: int) -> None:
        """Let the host see what came by an edge, and act till the next one.

        Raises RunError when the device cannot go on, TaskFailed when a task that nobody awaits raised.
        """
        self.cycles_simulated += 1
        kernel, now_ps = self.kernel, self._edges.time_of(edge)
        kernel.now = max(kernel.now, now_ps)
        if self._failure:
            raise RunError(f"{self._failure} at {now_ps} ps")
        if self._waiters:
            self._wake_waiters()
        while not self._sink.empty():
            frame: SentFrame = self._fifo.push(bytes(self._sink.recv_nowait().tdata), now_ps)
            self._frames += 1
            self._mac.transmitted([frame])
        self._sink.pause = not self._fifo.has_room(now_ps)
        kernel.run_until(self._edges.time_of(edge + 1) - 1)
        self._follow()

    def edge_behind(self, edge: int, *, jump: bool) -> int:
        """The number of the next edge: one more, or with `jump` a later one when nothing will happen before.

        Raises RunError when nothing will ever happen again.
        """
        if self._idle_cycles < IDLE_CYCLES:
            return edge + 1
        due = []
        host_ps = self.kernel.next_time()
        if host_ps is not None:
            due.append(self._edges.at(host_ps))
        if self._dut.deadline_valid.value:
            due.append(int(self._dut.next_deadline.value))
        if not due:
            raise RunError(self._stall_report("nothing will ever happen again"))
        return max(edge + 1, min(due) - SETTLE_CYCLES) if jump else edge + 1

    def _follow(self) -> None:
        """Count for how long nothing has moved."""
        moved = (self._accessing, self._frames, self._target.read_bytes, self._target.write_bytes, self._irq)
        idle = not self._accessing and self._source.idle() and moved == self._moved and bool(self._dut.quiet.value)
        self._idle_cycles = self._idle_cycles + 1 if idle else 0
        self._still_cycles = 0 if idle or moved != self._moved else self._still_cycles + 1
        self._moved = moved
        if self._still_cycles > STUCK_CYCLES:
            raise RunError(self._stall_report(
                f"nothing has moved at the device's ports for {STUCK_CYCLES} cycles, though it works"))

    def _stall_report(self, why: str) -> str:
        under_way = f"{self._accessing} register accesses, {len(self._fifo)} frames in the MAC's transmit FIFO"
        return f"{why} at {self.kernel.now} ps: {'; '.join([*self._waiting_tasks(), under_way])}"

    def _post(self, access: _Access) -> None:
        self._accessing += 1
        self._accesses.put_nowait(access)

    async def _access(self) -> None:
        """One register access after the other."""
        while True:
            access = await self._accesses.get()
            address, data = access.address, access.data
            if access.reading is not None:
                answer = await self._registers.read(address, 4)
                access.reading.set_result(int.from_bytes(answer.data, "little"))
            elif address < DOORBELL_BASE:
                answer = await self._registers.write(address, data)
            else:
                size = (min(len(data), self._pages.write_if.byte_lanes)).bit_length() - 1
                answer = await self._pages.write(address - DOORBELL_BASE, data, size=size)
            self._accessing -= 1
            if answer.resp != AxiResp.OKAY:
                self._failure = f"an access of register {address:#x} was answered {answer.resp.name}"

    async def _watch_irq(self) -> None:
        changed = ValueChange(self._dut.irq)
        while True:
            irq = int(self._dut.irq.value)
            self.interrupts += (irq & ~self._irq).bit_count()
            self._irq = irq
            await changed

    def _is_high(self, vector: int) -> bool:
        return bool(self._irq >> vector & 1)

    def _deliver(self, frame: bytes, bad: bool, time_ps: int) -> None:
        user = [0] * (len(frame) - 1) + [int(bad)]
        self.kernel.call_at(time_ps, lambda: self._source.send_nowait(AxiStreamFrame(frame, tuser=user)))
