"""Rings over plain host memory, without any device: wrap, space, phase."""

from __future__ import annotations

import random

import pytest

from cosim.memory import HostMemory
from host_driver.rings import CompletionRing, Descriptor, Piece, ReceiveRing, RingFull, SubmissionRing
from nic_model.contract import (
    COMPLETION,
    RECEIVE_SLOT,
    SUBMISSION_HEAD,
    CompletionKind,
    Opcode,
    RxInfo,
    SendFlag,
    Status,
    slots_needed,
)
from nic_model.contract.descriptors import PIECE

MEMORY_BYTES = 1 << 20


def memory() -> HostMemory:
    return HostMemory(MEMORY_BYTES)


def test_descriptor_layout() -> None:
    pieces = [Piece(0x123456, 5, 100), Piece(0x000001, 1 << 39, 1 << 20), Piece(7, 0, 1), Piece(8, 9, 10)]
    descriptor = Descriptor(Opcode.SEND_SEGMENTED, b"h" * 54, pieces, SendFlag.IPV6, 1448, 14, 34, 50)
    packed = descriptor.pack(tag=0xBEEF)
    assert len(packed) == 32 * slots_needed(54, 4) == 32 * descriptor.slots
    assert SUBMISSION_HEAD.unpack(packed[:16]) == {
        "opcode": 2, "slots": 5, "flags": SendFlag.IPV6, "tag": 0xBEEF, "mss": 1448, "inline_bytes": 54,
        "l3_offset": 14, "l4_offset": 34, "checksum_offset": 50, "pieces": 4, "vlan_tci": 0}
    assert PIECE.unpack(packed[16:32]) == {"offset": 5, "key": 0x123456, "length": 100}
    assert packed[32:86] == b"h" * 54
    assert packed[86:96] == bytes(10)
    assert PIECE.unpack(packed[96:112]) == {"offset": 1 << 39, "key": 1, "length": 1 << 20}
    assert PIECE.unpack(packed[128:144]) == {"offset": 9, "key": 8, "length": 10}
    assert packed[144:] == bytes(16)
    assert Descriptor(Opcode.SEND_FRAME, b"x" * 60).pack(1)[16:32] == bytes(16)


@pytest.mark.parametrize("bad", [Descriptor(Opcode.SEND_FRAME, bytes(129)),
                                 Descriptor(Opcode.SEND_FRAME, b"", [Piece(0, 0, 1)] * 32)])
def test_descriptor_limits(bad: Descriptor) -> None:
    with pytest.raises(ValueError, match="at most 128 inline bytes and 31 pieces"):
        bad.pack(0)


def test_submission_ring_wraps_inside_a_descriptor() -> None:
    host = memory()
    ring = SubmissionRing(host, 4)
    assert ring.address % 4096 == 0
    for _ in range(5):
        ring.put(Descriptor(Opcode.SEND_FRAME, bytes(60)), 0)
    assert (ring.free, ring.used) == (1, 15)
    with pytest.raises(RingFull, match="3 entries for a ring with 1 free of 16"):
        ring.put(Descriptor(Opcode.SEND_FRAME, b"a" * 60), 0)
    assert ring.producer == 15
    ring.retire(6)
    ring.put(Descriptor(Opcode.SEND_FRAME, b"a" * 60), 1)
    image = host.view(ring.address, 512)
    assert SUBMISSION_HEAD.unpack(image[480:496])["tag"] == 1
    assert image[:60] == b"a" * 60
    assert (ring.producer, ring.free) == (18, 4)


def test_indices_run_through_two_to_the_sixteen() -> None:
    ring = SubmissionRing(memory(), 4)
    for _ in range((1 << 16) // 16 + 1):
        for tag in range(8):
            ring.put(Descriptor(Opcode.SEND_FRAME, pieces=[Piece(1, 2, 60), Piece(1, 2, 60)]), tag)
        assert ring.free == 0
        ring.retire(ring.producer)
    assert ring.producer == 16


def test_retiring_what_was_never_put_is_an_error() -> None:
    ring = SubmissionRing(memory(), 4)
    ring.put(Descriptor(Opcode.SEND_FRAME, pieces=[Piece(1, 2, 60)]), 0)
    for index in (2, 0xFFFF):
        with pytest.raises(ValueError, match=f"ring index {index}"):
            ring.retire(index)
    ring.retire(1)
    assert ring.used == 0


def test_receive_ring() -> None:
    host = memory()
    ring = ReceiveRing(host, 4)
    for number in range(16):
        ring.put(Piece(0xABCDEF, number * 2048, 2048), number)
    with pytest.raises(RingFull):
        ring.put(Piece(1, 0, 1), 16)
    image = host.view(ring.address, 256)
    assert RECEIVE_SLOT.unpack(image[48:64]) == {"offset": 6144, "key": 0xABCDEF, "length": 2048, "buffer_id": 3}
    for _ in range(16):
        ring.give_back()
    assert ring.free == 16
    with pytest.raises(ValueError, match="none is posted"):
        ring.give_back()


@pytest.mark.parametrize("log2", [4, 5])
def test_completions_by_phase_over_many_passes(log2: int) -> None:
    host = memory()
    ring = CompletionRing(host, log2)
    entries = 1 << log2
    rng = random.Random(log2)
    written = 0
    for _ in range(200):
        batch = rng.randrange(entries + 1)
        for number in range(written, written + batch):
            entry = COMPLETION.pack(kind=CompletionKind.RECEIVE, status=Status.KEY_OWNER, tag=number & 0xFFFF,
                                    length=number, ring_index=number & 0xFFFF, info=RxInfo.TCP | RxInfo.VLAN,
                                    timestamp=number << 33, segments=1, phase=(number // entries + 1) % 2)
            host.view(ring.address + number % entries * 32, 32)[:] = entry
        written += batch
        for number in range(written - batch, written):
            assert ring.has_completion
            completion = ring.take()
            assert completion.tag == number & 0xFFFF
            assert completion.timestamp == number << 33
            assert completion.info == RxInfo.TCP | RxInfo.VLAN
            assert completion.status is Status.KEY_OWNER
        assert not ring.has_completion
        assert ring.consumer == written & 0xFFFF
    assert written > 10 * entries


def test_largest_completion_ring_has_its_phase_beyond_the_index() -> None:
    host = HostMemory(1 << 21)
    ring = CompletionRing(host, 16)
    image = host.view(ring.address, 1 << 21)
    for phase in (1, 0):
        entry = COMPLETION.pack(kind=CompletionKind.SEND, phase=phase)
        assert not ring.has_completion
        image[:] = entry * (1 << 16)
        for _ in range(1 << 16):
            assert ring.has_completion
            ring.take()
    assert not ring.has_completion
    assert ring.consumer == 0


@pytest.mark.parametrize("log2", [3, 17])
def test_ring_sizes(log2: int) -> None:
    with pytest.raises(ValueError, match=r"4\.\.16"):
        CompletionRing(memory(), log2)


def test_released_rings_give_their_memory_back() -> None:
    host = HostMemory(8192)
    for _ in range(3):
        rings = [SubmissionRing(host, 7), ReceiveRing(host, 4)]
        with pytest.raises(MemoryError):
            CompletionRing(host, 4)
        for ring in rings:
            ring.release()
