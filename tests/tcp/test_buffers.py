"""The buffers against the plainest possible models."""

from __future__ import annotations

import random

import pytest

from host_driver.tcp.buffers import Chunk, ReceiveBuffer, SendBuffer


@pytest.mark.parametrize("seed", range(30))
def test_reassembly_of_random_overlapping_pieces(seed: int) -> None:
    rng = random.Random(seed)
    base = (1 << 32) - 50
    data = rng.randbytes(500)
    buffer = ReceiveBuffer(base, 10_000)
    there = [False] * len(data)
    got = b""
    while not all(there):
        start = rng.randrange(len(data))
        stop = min(start + rng.randrange(1, 60), len(data))
        buffer.insert(base + start, data[start:stop])
        there[start:stop] = [True] * (stop - start)
        first_missing = there.index(False) if False in there else len(data)
        assert buffer.next == base + first_missing
        assert buffer.has_gap == any(there[first_missing:])
        assert sum(map(len, buffer._late)) == sum(there[first_missing:])  # nothing is kept twice
        if rng.random() < 0.2:
            got += buffer.read(rng.randrange(40))
        assert buffer.available == first_missing - len(got)
    assert got + buffer.read(1000) == data
    assert buffer.read(10) == b""


@pytest.mark.parametrize("seed", range(30))
def test_send_buffer_slices_and_releases(seed: int) -> None:
    rng = random.Random(seed)
    base = rng.randrange(1 << 33)
    data = rng.randbytes(1000)
    buffer = SendBuffer(base)
    released: list[int] = []
    ends = []
    at = 0
    while at < len(data):
        size = min(rng.randrange(1, 200), len(data) - at)
        end = at + size
        ends.append(end)
        buffer.append(Chunk(memoryview(data)[at:end], key=7, offset=at, release=lambda end=end: released.append(end)))
        at = end
    acked = 0
    while acked < len(data):
        start = rng.randrange(acked, len(data))
        length = rng.randrange(len(data) - start + 1)
        pieces = buffer.pieces(base + start, length)
        assert b"".join(bytes(p.view()) for p in pieces) == data[start : start + length]
        assert b"".join(data[o : o + n] for _, o, n in (p.piece() for p in pieces)) == data[start : start + length]
        acked = min(acked + rng.randrange(300), len(data))
        buffer.acknowledge(base + acked)
        assert released == [end for end in ends if end <= acked]
    assert buffer.start == buffer.end == base + len(data)


def test_bytes_outside_the_buffer_are_refused() -> None:
    buffer = SendBuffer(100)
    buffer.append(Chunk(b"abc"))
    for position, length in ((99, 1), (100, 4), (104, 0)):
        with pytest.raises(ValueError, match="not within"):
            buffer.pieces(position, length)


def test_a_slice_is_a_view_of_the_same_memory() -> None:
    memory = bytearray(b"0123456789")
    part = Chunk(memory, key=3, offset=40, release=lambda: None).slice(2, 5)
    assert part.piece() == (3, 42, 3)
    assert part.release is None
    memory[2] = ord("X")
    assert part.view() == b"X34"
    with pytest.raises(ValueError, match="registered"):
        Chunk(b"abc").piece()
