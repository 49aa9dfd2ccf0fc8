"""How long register accesses take at a device's port."""

from __future__ import annotations

from pathlib import Path

from cosim.benches import cycles
from cosim.engines.bus import BusTiming
from cosim.mac import PS_PER_S
from nic_model.contract import NicConfig, register

WRITES = 100
MMIO_CYCLES = 20


def register_cycles(config: NicConfig, library: Path) -> tuple[int, int]:
    """(from one posted write to the next, a read at the device's port)."""
    timing = BusTiming(read_latency_cycles=100, write_latency_cycles=100, mmio_read_cycles=MMIO_CYCLES,
                       mmio_write_cycles=MMIO_CYCLES // 2, bytes_per_cycle=1 << 30)

    async def load(rig: cycles.Rig) -> list[int]:
        found = []
        for count in (0, WRITES):
            await rig.sleep(1000)
            began = rig.kernel.now
            for _ in range(count):
                rig.port.write32(register("MAC_ADDRESS_LO"), 0)
            await rig.port.read32(register("ID"))
            found.append(round((rig.kernel.now - began) * config.clock_hz / PS_PER_S))
        return found

    alone, behind = cycles.run(config, library, timing, load)
    return round((behind - alone) / WRITES), alone - MMIO_CYCLES
