"""The model's push window: which writes make a descriptor, and what the device does with one."""

from __future__ import annotations

import random

import pytest

from host_driver.channel import push_blocks
from nic_model.contract import (
    CONFIGS,
    SUBMISSION_HEAD,
    ChannelCommand,
    Opcode,
    OperationMask,
    channel_register,
)
from nic_model.device import Device
from nic_model.push import PushWindow

SLOT = 32
WINDOW = 0x400


def descriptor(slots: int) -> bytes:
    """A frame in as many slots; none but the first looks like a head."""
    inline_bytes = 32 * (slots - 1)
    head = SUBMISSION_HEAD.pack(opcode=Opcode.SEND_FRAME, slots=slots, inline_bytes=inline_bytes)
    return head + bytes(16) + bytes([0xEE]) * inline_bytes


@pytest.mark.parametrize("slots", range(1, 17))
def test_a_descriptor_is_complete_with_its_last_block(slots: int) -> None:
    window = PushWindow()
    for index in range(40):
        made = descriptor(1) if slots == 1 else SUBMISSION_HEAD.pack(slots=slots) + random.Random(index).randbytes(
            SLOT * slots - SUBMISSION_HEAD.size_bytes)
        found = [window.write(offset, block) for offset, block in push_blocks(index, made)]
        assert found == [False] * (len(found) - 1) + [True]
        assert (window.first, window.slots) == (index % 32, slots)


def test_what_lacks_or_comes_otherwise_is_not() -> None:
    blocks = push_blocks(5, descriptor(5))
    assert len(blocks) == 3
    for order in ([0, 1], [0, 2], [1, 2], [2, 1, 0], [0, 2, 1], [1, 0, 2]):
        window = PushWindow()
        assert not any(window.write(*blocks[n]) for n in order)
    window = PushWindow()
    assert [window.write(*blocks[n]) for n in (0, 0, 1, 2)] == [False, False, False, True]
    window = PushWindow()
    assert not any([window.write(*blocks[0]), window.write(0, bytes(4)), window.write(*blocks[1]),
                    window.write(*blocks[2])]), "a write of another size ends it"
    window = PushWindow()
    window.write(*blocks[0])
    window.forget()
    assert not any(window.write(*blocks[n]) for n in (1, 2))


@pytest.mark.parametrize("claimed", [0, 17, 255])
def test_no_descriptor_has_so_many_slots(claimed: int) -> None:
    assert not PushWindow().write(0, bytes([1, claimed]) + bytes(62))


def test_a_push_is_a_doorbell_if_it_is_the_next() -> None:
    """And none if it is not, or the channel does not run."""
    memory = bytearray(1 << 16)
    device = Device(CONFIGS["tiny"], lambda address, length: bytes(memory[address:address + length]),
                    lambda address, data: True)

    def push(index: int) -> int:
        """Frames sent by pushing a descriptor of three slots that is to stand at `index`."""
        made = descriptor(3)
        for at in range(3):
            place = 0x1000 + (index + at) % 16 * SLOT
            memory[place:place + SLOT] = made[SLOT * at:SLOT * at + SLOT]
        before = len(device.sent)
        for offset, block in push_blocks(index, made):
            device.write_doorbell(1, WINDOW + offset, block)
        return len(device.sent) - before

    assert push(0) == 0
    for name, value in (("CHANNEL_OPERATIONS", OperationMask.SEND_FRAME), ("TX_BASE_LO", 0x1000), ("TX_LOG2", 4),
                        ("RX_BASE_LO", 0x2000), ("RX_LOG2", 4), ("CQ_BASE_LO", 0x3000), ("CQ_LOG2", 5),
                        ("CHANNEL_CONTROL", ChannelCommand.ENABLE)):
        device.write_register(channel_register(name, 1), int(value))
    assert [push(index) for index in (0, 0, 3, 9, 6)] == [1, 0, 1, 0, 1]
    device.write_doorbell(1, 0, (9).to_bytes(4, "little"))
    assert device.read_register(channel_register("TX_INDEX", 1)) == 9
    assert len(device.sent) == 3
    assert device.sent[0] == bytes([0xEE]) * 64
