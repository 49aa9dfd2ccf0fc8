"""cocotb as a pump: it moves the clock, and wakes the host when the transactors have stopped for it.

The host's coroutines run on `host_driver.runtime`, not on cocotb's scheduler. With the compiled transactors no Python
runs until they toggle `wake`; with the lean ones it is one call a cycle, and none over idle time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import cocotb
import cocotb.simulator
from cocotb._gpi_triggers import GPITrigger
from cocotb.clock import Clock
from cocotb.task import Task
from cocotb.triggers import FallingEdge, First, Timer, ValueChange

from cosim.engines.base import RunError
from cosim.engines.bench import Bench
from cosim.engines.lean.transactors import ALWAYS_READY, RESET_EDGES, LeanTransactors
from cosim.engines.library import Library
from cosim.engines.transactor_port import TransactorPort
from nic_model.contract import NicConfig
from rtl.simulation import inputs

LISTEN_CYCLES = 20_000
"""So often Python gets a turn whatever happens, so that an interrupt from the keyboard is heard."""


def clock_period_ps(config: NicConfig) -> int:
    """Period of the simulator's clock: what a waveform shows. Time itself is counted in cycles and is exact."""
    return max(2, round(10**12 / config.clock_hz / 2) * 2)


async def compiled_transactors(dut: Any, bench: Bench, jump: bool, interrupted: list[int]) -> TransactorPort:
    """Run a bench over `memnic_wrapper`, whose tick calls the C++ in this process."""
    config = bench.config
    library = Library(ctypes.CDLL(None))
    port = TransactorPort(library, config, bench.kernel, bench.memory, bench.mac, bench.bus)
    bench.start(port)
    bench.kernel.run_until(0)
    port.expect()
    library.jump(jump, True)
    # The clock is cocotb's compiled one.
    Clock(dut.clk, clock_period_ps(config), unit="ps", impl="gpi").start()
    running = cocotb.start_soon(_wake(dut, bench, port))
    listening = cocotb.start_soon(_listen(interrupted, clock_period_ps(config)))
    await First(running, listening)
    _end(running, listening)
    return port


async def _wake(dut: Any, bench: Bench, port: TransactorPort) -> None:
    woken = ValueChange(dut.wake)
    while not bench.finished():
        await woken
        # This is the time step of the edge: what is said here is heard before the next one.
        port.deliver()
        port.expect()


async def _listen(interrupted: list[int], period_ps: int) -> None:
    while not interrupted:
        await Timer(LISTEN_CYCLES * period_ps, unit="ps")


def _end(running: Task[None], listening: Task[None]) -> None:
    """One of both has ended. Raises what the run raised."""
    listening.cancel()
    if running.done():
        running.result()
    else:
        running.cancel()


class CocotbPins:
    """Implements `cosim.engines.lean.pins.Pins` over cocotb handles, at their lowest layer: LogicArray is too slow."""

    def __init__(self, dut: Any) -> None:
        self._dut = dut
        self._watches: dict[str, Any] = {}

    def reader(self, name: str) -> Callable[[], int]:
        """A function that reads an output. It raises RunError when a bit of it is X or Z."""
        get = getattr(self._dut, name)._handle.get_signal_val_binstr

        def read() -> int:
            try:
                return int(get(), 2)
            except ValueError:
                raise RunError(f"output {name} of the device has unknown bits: {get()}") from None

        return read

    def watcher(self, name: str) -> Callable[[], int]:
        """The same, of an output that seldom changes: it is only read when it has."""
        read, handle = self.reader(name), getattr(self._dut, name)._handle
        value: int | None = None

        def changed() -> None:
            nonlocal value
            value = None
            watch()

        def watch() -> None:
            self._watches[name] = cocotb.simulator.register_value_change_callback(
                handle, changed, cocotb.simulator.VALUE_CHANGE)

        def current() -> int:
            nonlocal value
            if value is None:
                value = read()
            return value

        watch()
        return current

    def writer(self, name: str) -> Callable[[int], None]:
        """A function that drives an input from now on."""
        handle = getattr(self._dut, name)
        put, form = handle._handle.set_signal_val_binstr, f"0{len(handle)}b"
        return lambda value: put(DEPOSIT, format(value, form))


DEPOSIT = 0
"""GPI's action code of an inertial write."""


class TickedEdge(GPITrigger):
    """Fires at a falling edge at which the host must be called, no tick is needed for a time, the run was interrupted,
    or a tick raised. Attributes: `stopped`, what the last tick returned; `error`, what it raised.

    `FallingEdge` would wake a task in each cycle, and cocotb's way there costs as much as half a tick.
    """

    def __init__(self, clock: Any, transactors: LeanTransactors, interrupted: list[int]) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.stopped = False
        self._clock, self._tick = clock._handle, transactors.tick
        self._transactors, self._interrupted = transactors, interrupted

    def _prime(self) -> None:
        self._cbhdl = cocotb.simulator.register_value_change_callback(self._clock, self._edge, cocotb.simulator.FALLING)

    def _edge(self) -> None:
        try:
            self.stopped = self._tick()
        except Exception as error:
            self.error = error
        if self.stopped or self._transactors.idle_cycles or self._interrupted or self.error is not None:
            self._react()
        else:
            self._prime()


async def lean_transactors(dut: Any, bench: Bench, jump: bool, interrupted: list[int]) -> TransactorPort:
    """Run a bench over `simulation_top`, whose inputs pass a register, with transactors in Python."""
    config = bench.config
    pins = CocotbPins(dut)
    transactors = LeanTransactors(config, pins)
    port = TransactorPort(transactors, config, bench.kernel, bench.memory, bench.mac, bench.bus)
    bench.start(port)
    bench.kernel.run_until(0)
    port.expect()
    transactors.jump(jump, True)
    await _reset(dut, pins, config)
    period_ps = clock_period_ps(config)
    edge = TickedEdge(dut.clk, transactors, interrupted)
    edge.stopped = transactors.tick()  # of the cycle before edge 0, which reset has ended in
    while True:
        if edge.error is not None:
            raise edge.error
        if edge.stopped:
            port.deliver()
            if bench.finished():
                return port
            port.expect()
        if interrupted:
            transactors.count()
            return port
        idle = min(transactors.idle_cycles, LISTEN_CYCLES)
        if idle:
            # End in the second half of the last of these cycles: the edge awaited next is that of the one behind it.
            await Timer(idle * period_ps + period_ps // 4, unit="ps")
            transactors.skip(idle)
        await edge


async def _reset(dut: Any, pins: CocotbPins, config: NicConfig) -> None:
    """Start the clock and reset the device. Ends in the cycle before edge 0, as a tick expects it."""
    idle = [(name, 0) for name in (*inputs(config), "jump_to", "jump")]
    for name, value in (*idle, ("ready", ALWAYS_READY), ("rst", 1)):
        pins.writer(name)(value)
    Clock(dut.clk, clock_period_ps(config), unit="ps", impl="gpi").start()
    for _ in range(RESET_EDGES):
        await FallingEdge(dut.clk)
    pins.writer("jump")(1)  # the first edge without reset is number 0; registers of inputs work in reset, too
    await FallingEdge(dut.clk)
    pins.writer("rst")(0)
    pins.writer("jump")(0)
