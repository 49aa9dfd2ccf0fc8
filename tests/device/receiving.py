"""Receive buffers as a driver posts them at its worst: so small that frames and aggregates need as many as they may
have, and a few at a time while the device fetches the ones before.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import Any

from host_driver.rings import Piece
from nic_model.contract import MAX_FRAME_BUFFERS, CompletionKind, KeyRight, OperationMask, doorbell, register
from tests.device.faults import NOBODY, OWN_MAC, start
from tests.device.programs import POISON, STILL_PS
from tests.device.rig import US, Rig
from tests.device.wide_values import NEVER_US, OWN_TEXT, flush
from tests.gro import Segment

OPERATIONS = OperationMask.RECEIVE_RAW | OperationMask.COALESCE

# ---------------------------------------------------------------------------------------------- many buffers, segments

TRIALS = 12
RING_LOG2 = 8
SPAN = 64
SEGMENTS = 72
"""Of a stream; more than two buffers for each are more than an aggregate may have."""


async def small_buffers(rig: Rig, arguments: dict[str, int]) -> list[Any]:
    """Scenario: frames of about MAX_FRAME_BUFFERS buffers, and streams of many small segments, whose aggregates have as
    many buffers as they may, or as many segments as there are. Returns what each trial has completed, with a digest of
    all bytes."""
    rng = random.Random(f"small buffers {arguments['seed']}")
    nic = await start(rig)
    told = []
    for trial in range(TRIALS):
        # Anew, so that no buffers of another size stand at the ring's head.
        channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=4, rx_log2=RING_LOG2)
        area = rig.memory.allocate(SPAN << RING_LOG2, 4096)
        view = rig.memory.view(area, SPAN << RING_LOG2)
        view[:] = bytes([POISON]) * len(view)
        key = nic.register_memory(area, len(view), KeyRight.WRITE, 0, NOBODY)
        size = rng.randrange(20, SPAN + 1)
        for place in range(1 << RING_LOG2):
            channel.buffers.put(Piece(key.value, place * SPAN, size), place)
        rig.port.wmb()
        rig.port.write32(doorbell("RX_DOORBELL", 0), channel.buffers.producer)
        nic.set_coalescing(NEVER_US)
        await rig.port.read32(register("ID"))
        await rig.port.sleep(4 * US)
        for buffers in (MAX_FRAME_BUFFERS - 1, MAX_FRAME_BUFFERS, MAX_FRAME_BUFFERS + 1):
            length = size * buffers - rng.choice((0, size - 1, rng.randrange(size)))
            rig.mac.arrive(OWN_MAC + bytes(6) + b"\x08\x01" + rng.randbytes(length - 14), False)
        await rig.port.sleep(STILL_PS)
        # Every other stream stays in few buffers, so that it has all its segments.
        payload = rng.choice((size, size + 1, 2 * size - 1)) if trial % 2 else rng.randrange(1, 9)
        segment = Segment(0, rng.random() < 0.3, None, rng.getrandbits(32), ident=rng.getrandbits(16),
                          destination=OWN_TEXT)
        for number in range(SEGMENTS):
            rig.mac.arrive(replace(segment, payload=rng.randbytes(payload)).frame(), False)
            segment = replace(segment, seq=segment.seq + payload & 0xFFFF_FFFF, ident=segment.ident + 1 & 0xFFFF)
            if number % 24 == 23:
                await rig.port.sleep(STILL_PS)
        entries, tags = await flush(rig, nic, channel)
        assert tags == list(range(len(tags))), f"trial {trial}: buffers {tags}"
        assert len(tags) > 2 * MAX_FRAME_BUFFERS - 1, f"trial {trial}: {len(tags)} buffers came back"
        told.append([size, payload, entries, hashlib.sha256(view).hexdigest()])
        await nic.close_channel(channel)
        await nic.deregister_memory(key)
        view.release()
        rig.memory.free(area)
    return told


# ---------------------------------------------------------------------------------------------- full to the last byte

FIT_TRIALS, FIT_SEGMENTS, FIT_BUFFERS, FIT_SPAN = 16, 14, 16, 4096


async def exact_fits(rig: Rig, arguments: dict[str, int]) -> list[Any]:
    """Scenario: streams into buffers that end where a segment ends, or a byte before or behind. Returns what each trial
    has completed, with a digest of all bytes."""
    rng = random.Random(f"exact fits {arguments['seed']}")
    nic = await start(rig)
    area = rig.memory.allocate(FIT_SPAN * FIT_BUFFERS, 4096)
    view = rig.memory.view(area, FIT_SPAN * FIT_BUFFERS)
    key = nic.register_memory(area, len(view), KeyRight.WRITE, 0, NOBODY)
    told = []
    for trial in range(FIT_TRIALS):
        channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=4, rx_log2=4)
        view[:] = bytes([POISON]) * len(view)
        payload = rng.randrange(20, 700)
        segment = Segment(0, rng.random() < 0.3, None, rng.getrandbits(32), rng.randbytes(payload),
                          ident=rng.getrandbits(16), destination=OWN_TEXT)
        for place in range(FIT_BUFFERS):
            size = rng.randrange(1, 5) * payload + (0 if place else len(segment.frame()) - payload)
            # Every other trial has only full ones.
            size += rng.choice((-1, 0, 0, 1)) if trial % 2 else 0
            channel.buffers.put(Piece(key.value, place * FIT_SPAN, size), place)
        rig.port.wmb()
        rig.port.write32(doorbell("RX_DOORBELL", 0), channel.buffers.producer)
        nic.set_coalescing(NEVER_US)
        await rig.port.read32(register("ID"))
        await rig.port.sleep(4 * US)
        for _ in range(FIT_SEGMENTS):
            rig.mac.arrive(segment.frame(), False)
            segment = replace(segment, seq=segment.seq + payload & 0xFFFF_FFFF, ident=segment.ident + 1 & 0xFFFF,
                              payload=rng.randbytes(payload))
        await rig.port.sleep(STILL_PS)
        entries, tags = await flush(rig, nic, channel)
        assert tags == list(range(len(tags))), f"trial {trial}: buffers {tags}"
        assert len(tags) > 1, f"trial {trial}: {len(tags)} buffers came back"
        told.append([payload, entries, hashlib.sha256(view).hexdigest()])
        await nic.close_channel(channel)
    await nic.deregister_memory(key)
    view.release()
    rig.memory.free(area)
    return told


# ---------------------------------------------------------------------------------------------- a few at a time

ROUNDS, EACH = 40, 60
"""So many buffers are fetched ahead."""


async def refills(rig: Rig, arguments: dict[str, int]) -> list[int]:
    """Scenario: doorbells for a few buffers each, at any distance, so that fetches begin as others end. Returns how
    many buffers were posted by each doorbell; asserts that each frame is in the buffer whose turn it is."""
    rng = random.Random(f"refills {arguments['seed']}")
    nic = await start(rig)
    channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=4, rx_log2=6)
    area = rig.memory.allocate(SPAN * EACH, 4096)
    key = nic.register_memory(area, SPAN * EACH, KeyRight.WRITE, 0, NOBODY)
    cycle_ps = nic.cycles_to_ps(1)
    told = []
    for number in range(ROUNDS):
        most, posted = rng.choice((2, 5, 20)), 0
        while posted < EACH:
            count = min(rng.randrange(1, most + 1), EACH - posted)
            for place in range(posted, posted + count):
                channel.buffers.put(Piece(key.value, place * SPAN, SPAN), number << 8 | place)
            posted += count
            told.append(count)
            rig.port.wmb()
            rig.port.write32(doorbell("RX_DOORBELL", 0), channel.buffers.producer)
            await rig.port.sleep(rng.randrange(24) * cycle_ps)
        frames = [OWN_MAC + bytes(6) + b"\x08\x01" + rng.randbytes(SPAN - 14) for _ in range(EACH)]
        for frame in frames:
            rig.mac.arrive(frame, False)
        await rig.port.sleep(STILL_PS)
        found = [channel.completed.take() for _ in range(EACH) if channel.completed.has_completion]
        for place, completion in enumerate(found):
            assert completion.kind is CompletionKind.RECEIVE
            assert completion.tag == number << 8 | place, f"{completion} of round {number}, for buffer {place}"
            assert rig.memory.view(area + place * SPAN, SPAN) == frames[place], f"the bytes of {completion}"
            channel.buffers.give_back()
        assert len(found) == EACH, f"round {number}: {len(found)} receives of {EACH} frames"
    await nic.close_channel(channel)
    await nic.deregister_memory(key)
    rig.memory.free(area)
    return told
