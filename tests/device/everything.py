"""A scenario that tells all that two engines must agree in, with its time."""

from __future__ import annotations

import hashlib
from typing import Any

from tests.device.programs import run_seeds
from tests.device.rig import Rig


async def run_and_tell(rig: Rig, arguments: dict[str, Any]) -> dict[str, Any]:
    """Random programs, see `run_seeds`; then all that crossed the device's ports, and all of host memory."""
    programs = await run_seeds(rig, arguments)
    assert rig.bus is not None
    port: Any = rig.port
    return {
        "programs": programs, "end_ps": rig.kernel.now,
        "frames": [[time_ps, frame.hex()] for time_ps, frame in rig.mac.sent],
        "bursts": [list(burst) for burst in rig.bus.events], "interrupts": [list(rise) for rise in rig.irqs],
        "most_reads": rig.bus.most_reads, "counts": [port.dma_read_bytes, port.dma_write_bytes, port.interrupts],
        # The rings are in it, with all completions and their timestamps.
        "memory": hashlib.sha256(rig.memory.view(rig.memory.base, rig.memory.size_bytes)).hexdigest(),
    }
