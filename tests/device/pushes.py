"""Pushed descriptors that the device must use, behind many that it must forget."""

from __future__ import annotations

from typing import Any

from host_driver.channel import Channel, push_blocks
from host_driver.rings import Descriptor
from nic_model import ring
from nic_model.contract import (
    SUBMISSION_HEAD,
    SUBMISSION_SLOT_BYTES,
    Opcode,
    OperationMask,
    SendFlag,
    doorbell,
)
from tests.device.faults import start
from tests.device.programs import STILL_PS
from tests.device.rig import Rig

ROUNDS = 24
"""More than there are buffers for pushes, in the device and in each channel's turn."""

CHANNELS = 4
HEAD = bytes.fromhex("0200000000bb 0200000000aa 0800")


def _put(rig: Rig, channel: Channel, number: int) -> tuple[int, bytes]:
    """A frame that says `number`, in the ring's next slots; its ring index and slots."""
    submissions = channel.submissions
    index = submissions.producer
    descriptor = Descriptor(Opcode.SEND_FRAME, HEAD + number.to_bytes(2) * 23, flags=SendFlag.COMPLETE)
    slots = descriptor.pack(number)
    for at in range(0, len(slots), SUBMISSION_SLOT_BYTES):
        _slot(rig, channel, submissions.producer)[:] = slots[at:at + SUBMISSION_SLOT_BYTES]
        submissions.producer = ring.advance(submissions.producer)
    return index, slots


def _slot(rig: Rig, channel: Channel, index: int) -> memoryview:
    submissions = channel.submissions
    at = submissions.address + ring.slot(index, submissions.log2) * SUBMISSION_SLOT_BYTES
    return rig.memory.view(at, SUBMISSION_SLOT_BYTES)


def push(rig: Rig, channel: Channel, index: int, slots: bytes) -> None:
    """Write a descriptor, whose first slot has this index, to the push window too."""
    rig.port.wmb()
    for offset, block in push_blocks(index, slots):
        rig.port.write_block(doorbell("PUSH", channel.number) + offset, block)


def _ring(rig: Rig, channel: Channel) -> None:
    rig.port.write32(doorbell("TX_DOORBELL", channel.number), channel.submissions.producer)


def _take(channel: Channel) -> list[list[int]]:
    """Tag and status of all completions."""
    found = []
    while channel.completed.has_completion:
        completion = channel.completed.take()
        channel.submissions.retire(completion.ring_index)
        found.append([completion.tag, completion.status])
    return found


async def pushes(rig: Rig, arguments: Any) -> list[Any]:
    """Scenario: on each channel in turn two sends of which the second is pushed, which is too early, so that it is
    forgotten; then one that is pushed, while its place in memory has nothing that could be sent.

    Returns the completions of each round, and all frames.
    """
    nic = await start(rig)
    channels = [await nic.open_channel(number, operations=OperationMask.SEND_FRAME, vector=0)
                for number in range(CHANNELS)]
    told: list[Any] = []
    for number in range(ROUNDS):
        channel = channels[number % CHANNELS]
        _put(rig, channel, 4 * number)
        index, slots = _put(rig, channel, 4 * number + 1)
        push(rig, channel, index, slots)
        _ring(rig, channel)
        await rig.port.sleep(STILL_PS)
        told.append(_take(channel))
        index, slots = _put(rig, channel, 4 * number + 2)
        _slot(rig, channel, index)[:] = SUBMISSION_HEAD.pack(
            opcode=0xFF, slots=len(slots) // SUBMISSION_SLOT_BYTES, tag=4 * number + 3).ljust(
                SUBMISSION_SLOT_BYTES, b"\0")
        push(rig, channel, index, slots)
        _ring(rig, channel)
        await rig.port.sleep(STILL_PS)
        told.append(_take(channel))
    for channel in channels:
        await nic.close_channel(channel)
    return [told, [frame.hex() for _, frame in rig.mac.sent]]


def expected() -> list[Any]:
    """What comes of it."""
    numbers = [[[4 * number, 4 * number + 1], [4 * number + 2]] for number in range(ROUNDS)]
    return [[[[tag, 0] for tag in tags] for of_round in numbers for tags in of_round],
            [(HEAD + tag.to_bytes(2) * 23).hex() for of_round in numbers for tags in of_round for tag in tags]]
