"""Scenarios for several engines: one tells all that they must agree in, with its time; one gets stuck."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from host_driver.account import NullAccount
from host_driver.nic import Nic
from host_driver.rings import Descriptor, Piece
from nic_model.contract import KeyRight, Opcode, OperationMask
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


async def wait_for_lost_reads(rig: Rig, arguments: Any) -> None:
    """A send whose reads of host memory are never answered."""
    nobody, length = NullAccount(), 1000
    assert rig.bus is not None
    nic = await Nic.probe(rig.port)
    channel = await nic.open_channel(1, operations=OperationMask.SEND_FRAME, vector=0, tx_log2=4, rx_log2=4)
    data = rig.memory.allocate(length, 4096)
    key = nic.register_memory(data, length, KeyRight.READ, channel.number, nobody)
    rig.bus.timing = replace(rig.bus.timing, read_latency_cycles=1 << 40)
    channel.submit(Descriptor(Opcode.SEND_FRAME, bytes(14), (Piece(key.value, 0, length),)), None)
    channel.ring_doorbell(nobody)
    channel.arm(nobody)
    await rig.port.interrupt(0)
