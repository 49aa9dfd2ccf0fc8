"""Host memory: bounds and the allocator."""

from __future__ import annotations

import random

import pytest

from cosim.memory import HostMemory


def test_bounds() -> None:
    memory = HostMemory(8192, base=0x1000)
    memory.view(0x1000, 8192)[:3] = b"abc"
    assert memory.read(0x1000, 4) == b"abc\0"
    assert memory.write(0x2FFF, b"z")
    for address, length in ((0xFFF, 2), (0x2FFF, 2), (0x3000, 1), (0x1000, 8193), (0x1000, -1)):
        assert memory.read(address, length) is None
        with pytest.raises(ValueError, match="outside host memory"):
            memory.view(address, length)
    assert not memory.write(0x2FFF, b"zz")
    assert memory.read(0x2FFF, 1) == b"z"


@pytest.mark.parametrize(("size", "base"), [(0, 0), (5000, 0), (4096, 7), (4096, -4096)])
def test_sizes(size: int, base: int) -> None:
    with pytest.raises(ValueError, match="multiple of 4096"):
        HostMemory(size, base)


def test_first_fit_alignment_zeroing_and_exhaustion() -> None:
    memory = HostMemory(16384)
    a = memory.allocate(100)
    b = memory.allocate(4096, 4096)
    c = memory.allocate(100)
    assert (a - memory.base, b - memory.base, c - memory.base) == (0, 4096, 128)
    memory.view(b, 4096)[:] = b"x" * 4096
    memory.free(b)
    assert memory.view(memory.allocate(4096, 4096), 4096) == bytes(4096)
    with pytest.raises(MemoryError, match="16384 bytes"):
        memory.allocate(16384)
    for address in (a + 1, b + 64):
        with pytest.raises(ValueError, match="was not allocated"):
            memory.free(address)
    for length, alignment in ((0, 64), (10, 48), (10, 0)):
        with pytest.raises(ValueError, match=r"length|alignment"):
            memory.allocate(length, alignment)


@pytest.mark.parametrize("seed", range(5))
def test_random_allocations_never_overlap_and_all_come_back(seed: int) -> None:
    rng = random.Random(seed)
    memory = HostMemory(1 << 16)
    taken: dict[int, int] = {}
    for _ in range(500):
        if taken and rng.random() < 0.5:
            address = rng.choice(list(taken))
            del taken[address]
            memory.free(address)
            continue
        length, alignment = rng.randrange(1, 3000), 1 << rng.randrange(13)
        try:
            address = memory.allocate(length, alignment)
        except MemoryError:
            continue
        assert address % alignment == 0
        assert all(address + length <= a or a + n <= address for a, n in taken.items()), f"seed {seed}"
        taken[address] = length
    for address in taken:
        memory.free(address)
    assert memory.allocate(1 << 16) == memory.base
