"""Scenarios with several channels that send at once: whose frames leave when."""

from __future__ import annotations

from typing import Any

from host_driver.account import NullAccount
from host_driver.nic import Nic
from host_driver.rings import Descriptor, Piece
from nic_model.contract import KeyRight, Opcode, OperationMask
from tests.device.rig import US, Rig

NOBODY = NullAccount()
OPERATIONS = OperationMask.SEND_FRAME | OperationMask.SEND_SEGMENTED
MSS = 1460
HEADER_BYTES = 54


def _template(channel: int) -> bytes:
    """An IPv4 and TCP header that names its channel in the source address."""
    ethernet = bytes((2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0xCC, channel, 8, 0))
    return ethernet + bytes((0x45, 0)).ljust(20, b"\0") + bytes(12) + bytes((0x50, 0x18)) + bytes(6)


async def send_all(rig: Rig, arguments: dict[str, Any]) -> Any:
    """Each channel sends as `arguments` says: {"channels": [{"bytes": n, "after_us": t, "weight": w, "rate": bit/s,
    "burst": bytes}, ...]}. Returns (picoseconds, channel, bytes) of each frame, and when each channel's doorbell was
    rung."""
    nic = await Nic.probe(rig.port)
    wanted = arguments["channels"]
    area_bytes = max(each["bytes"] for each in wanted)
    area = rig.memory.allocate(area_bytes, 256)
    channels, rung = [], []
    for number, each in enumerate(wanted):
        channel = await nic.open_channel(number, operations=OPERATIONS, vector=0, tx_log2=4, rx_log2=4)
        key = nic.register_memory(area, area_bytes, KeyRight.READ, number, NOBODY)
        nic.set_tx_weight(number, each.get("weight", 0))
        nic.set_tx_rate(number, each.get("rate", 0), each.get("burst", 0))
        channel.submit(Descriptor(
            Opcode.SEND_SEGMENTED, _template(number), (Piece(key.value, 0, each["bytes"]),), mss=MSS, l3_offset=14,
            l4_offset=34, checksum_offset=50), None)
        channels.append(channel)
    for number in sorted(range(len(wanted)), key=lambda n: wanted[n].get("after_us", 0)):
        due = wanted[number].get("after_us", 0) * US
        if due:
            await rig.port.sleep(due)
        channels[number].ring_doorbell(NOBODY)
        rung.append((number, rig.kernel.now))
    for channel in channels:
        while not channel.completed.has_completion:
            await rig.port.sleep(5 * US)
        assert channel.completed.take().status == 0
    return [[time, frame[11], len(frame)] for time, frame in rig.mac.sent], dict(rung)
