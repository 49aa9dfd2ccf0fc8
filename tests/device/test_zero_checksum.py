"""A transmit checksum that comes out as 0: one in 65,536, so no random program is likely to meet it."""

# Ref: RFC 768

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from host_driver.rings import Descriptor
from nic_model.checksum import ones_sum
from nic_model.contract import Opcode, SendFlag
from tests.device.faults import HIT, User, start
from tests.device.rig import US, Rig, RigSpec, on_model, on_rtl

L4_OFFSET = 34
CHECKSUM_OFFSET = {False: L4_OFFSET + 16, True: L4_OFFSET + 6}
"""Of TCP, and of UDP."""


async def zero_checksums(rig: Rig, arguments: None) -> list[list[str]]:
    """Scenario: frames whose checksum is 0, 1 and 0xFFFE, as TCP and as UDP. Returns the checksums that left."""
    nic = await start(rig)
    user = await User.open(rig, nic, HIT)
    rng = random.Random(7)
    told = []
    for udp in (False, True):
        before = len(user.sent())
        for wanted in (0, 1, 0xFFFE):
            frame = bytearray(user.frame(14) + rng.randbytes(90))
            at = CHECKSUM_OFFSET[udp]
            frame[at:at + 2] = bytes(2)
            frame[-2:] = bytes(2)
            # The last word makes the sum what it must be.
            frame[-2:] = ((0xFFFF - wanted - ones_sum(bytes(frame[L4_OFFSET:]))) % 0xFFFF).to_bytes(2, "big")
            flags = SendFlag.L4_CHECKSUM | (SendFlag.UDP if udp else SendFlag(0))
            user.channel.submit(Descriptor(Opcode.SEND_FRAME, bytes(frame), (), flags, l3_offset=14,
                                           l4_offset=L4_OFFSET, checksum_offset=at), wanted)
            user.bell()
            await rig.port.sleep(20 * US)
        await user.until_finished(3)
        told.append([frame[CHECKSUM_OFFSET[udp]:][:2].hex() for frame in user.sent()[before:]])
    await user.close()
    return told


SPEC = RigSpec(scenario="tests.device.test_zero_checksum:zero_checksums")
EXPECTED = [["0000", "0001", "fffe"], ["ffff", "0001", "fffe"]]


@pytest.mark.parametrize("run", [on_model, on_rtl])
def test_a_checksum_of_zero(tiny_compiled: Path, run: Any) -> None:
    """RFC 768: If the computed checksum is zero, it is transmitted as all ones. TCP has no such rule."""
    assert run(SPEC) == EXPECTED
