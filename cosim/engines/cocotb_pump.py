"""cocotb as a pump: it moves the clock and one Python call a cycle, and knows nothing of what runs.

The host's coroutines run on `host_driver.runtime`, not on cocotb's scheduler; one cocotb task awaits the clock and
calls `LeanPort.step`. When the device is quiet and nothing is due, `now` is set ahead; or, without jumping, the
clock runs on without Python until something is due.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, Timer

from cosim.engines.lean import LeanPort
from nic_model.contract import NicConfig
from rtl.simulation import INPUTS

RESET_CYCLES = 4


class CocotbPins:
    """Implements `cosim.engines.lean.Pins` over cocotb handles, at their lowest layer: LogicArray is too slow here."""

    def __init__(self, dut: Any) -> None:
        self._get: dict[str, Callable[[], str]] = {}
        self._put: dict[str, tuple[Callable[[int, str], None], int]] = {}
        self._dut = dut

    def read(self, name: str) -> int:
        """Value of an output. Raises ValueError when a bit of it is X or Z."""
        get = self._get.get(name)
        if get is None:
            get = self._get[name] = getattr(self._dut, name)._handle.get_signal_val_binstr
        try:
            return int(get(), 2)
        except ValueError:
            raise ValueError(f"output {name} of the device has unknown bits: {get()}") from None

    def set(self, name: str, value: int) -> None:
        """Drive an input from now on."""
        put = self._put.get(name)
        if put is None:
            handle = getattr(self._dut, name)
            put = self._put[name] = (handle._handle.set_signal_val_binstr, len(handle))
        put[0](DEPOSIT, f"{value:0{put[1]}b}")


DEPOSIT = 0
"""GPI's action code of an inertial write."""


def clock_period_ps(config: NicConfig) -> int:
    """Period of the simulator's clock: what a waveform shows. Time itself is counted in cycles and is exact."""
    return max(2, round(10**12 / config.clock_hz / 2) * 2)


async def reset(dut: Any, config: NicConfig) -> CocotbPins:
    """Start the clock, hold all inputs at 0, and reset the device. Ends in the cycle behind clock edge 0."""
    pins = CocotbPins(dut)
    for name in (*INPUTS, "ready", "jump", "jump_to"):
        pins.set(name, 0)
    dut.rst.value = 1
    Clock(dut.clk, clock_period_ps(config), unit="ps").start()
    for _ in range(RESET_CYCLES):
        await FallingEdge(dut.clk)
    dut.rst.value = 0
    pins.set("jump", 1)  # the edge that ends the reset is number 0
    await FallingEdge(dut.clk)
    pins.set("jump", 0)
    return pins


async def pump(dut: Any, config: NicConfig, port: LeanPort, pins: CocotbPins, finished: Callable[[], bool], *,
               jump: bool = True) -> None:
    """Run device and host until `finished()`; see the module. Raises what a task that nobody awaits raised."""
    cycle = 0
    edge = FallingEdge(dut.clk)
    period_ps = clock_period_ps(config)
    while True:
        port.step(cycle)
        if finished():
            return
        target = port.idle_until()
        if target is None:
            cycle += 1
            await edge
        elif jump:
            pins.set("jump_to", target)
            pins.set("jump", 1)
            await edge
            pins.set("jump", 0)
            cycle = target
        else:
            # End inside the cycle's first half, so that the edge awaited next is this cycle's own.
            await Timer((target - cycle) * period_ps - period_ps // 4, unit="ps")
            await edge
            cycle = target
