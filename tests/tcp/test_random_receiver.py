"""A sender against a scripted receiver that throws away what it reported, and takes back window that it gave."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from host_driver.tcp import LINUX, RFC, Chunk, Ecn, Nagle, State
from host_driver.tcp.profile import MS
from tests.tcp.dialogue import Dialogue, Seen

WINDOW = 30_000


class FickleReceiver:
    """Keeps what arrives by its number, as RFC 2018 §8 allows not for long; positions count from the first byte."""

    def __init__(self, data: bytes, rng: random.Random) -> None:
        self.data = data
        self.rng = rng
        self.got = 0
        """Bytes that are acknowledged."""
        self.has_fin = False
        self.late: set[int] = set()
        self.edge = WINDOW
        self.reneging = rng.choice([0, 0.02, 0.2])
        self.shrinking = rng.choice([0, 0.05, 0.3])
        self.reneged = self.shrunk = 0

    def take(self, position: int, payload: bytes, *, is_last: bool) -> tuple[int, int, list[tuple[int, int]]]:
        """A segment arrives: the acknowledgement, window and blocks that answer it."""
        rng, end = self.rng, position + len(payload)
        assert payload == self.data[position:end]
        self.late.update(range(max(position, self.got), min(end, self.edge)))
        while self.got in self.late:
            self.late.remove(self.got)
            self.got += 1
        self.has_fin |= is_last and end == self.got == len(self.data)
        if self.late and rng.random() < self.reneging:
            self.late.clear()
            self.reneged += 1
        window = WINDOW
        if rng.random() < self.shrinking:
            window = rng.choice([0, 0, 100, 2000])
            self.shrunk += 1
        self.edge = self.got + window
        return self.got + self.has_fin, window, self.blocks()

    def blocks(self) -> list[tuple[int, int]]:
        """What lies behind a gap."""
        blocks: list[tuple[int, int]] = []
        for position in sorted(self.late):
            if blocks and blocks[-1][1] == position:
                blocks[-1] = blocks[-1][0], position + 1
            else:
                blocks.append((position, position + 1))
        return blocks


def cut(seen: Seen) -> list[tuple[int, bytes, bool]]:
    """Position, payload and FIN of the segments that a device makes of it."""
    mss, payload = seen.out.mss, seen.payload
    starts = range(0, max(len(payload), 1), mss)
    return [(seen.seq - 1 + start, payload[start : start + mss], "F" in seen.flags and start == starts[-1])
            for start in starts]


def converse(seed: int) -> FickleReceiver:
    """Everything arrives, and no segment lies beyond an edge that the sender was told of, but for probes."""
    rng = random.Random(seed)
    profile = replace(rng.choice([RFC, LINUX]), timestamps=False, window_scale=None, ecn=Ecn.OFF,
                      sack=rng.random() < 0.8, nagle=rng.choice(list(Nagle)), max_retransmissions=25)
    d = Dialogue(profile, seed=seed, max_segment_bytes=rng.choice([None, WINDOW]))
    c = d.accepted(window=WINDOW, options=[("MSS", rng.choice([536, 1460])), ("SAckOK", b"")])
    data = rng.randbytes(rng.choice([1, 5000, 60_000]))
    receiver = FickleReceiver(data, rng)
    loss = rng.choice([0, 0.1, 0.3])
    queued, told = 0, WINDOW
    for _ in range(5000):
        while queued < len(data) and c.writable:
            queued += c.send(Chunk(data[queued : queued + rng.choice([100, 3000, 20_000])]))
        if queued == len(data):
            c.close(d.now)
        answers = []
        for position, payload, is_last in [segment for seen in d.sent() for segment in cut(seen)]:
            over = position + len(payload) + is_last - told
            assert over <= 0 or (over == 1 and len(payload) + is_last == 1)
            if (payload or is_last) and rng.random() >= loss:
                answers.append(receiver.take(position, payload, is_last=is_last))
        d.now += rng.choice([1, 10, 20]) * MS
        for acknowledged, window, blocks in answers:
            if rng.random() >= loss:
                assert d.iss is not None
                edges = tuple((d.iss + 1 + edge) % (1 << 32) for block in blocks[-4:] for edge in block)
                options: list[Any] = [("NOP", None), ("NOP", None), ("SAck", edges)] if profile.sack and edges else []
                d.send("A", 1, 1 + acknowledged, window=window, options=options)
                told = max(told, acknowledged + window)
        d.stack.poll(d.now)
        assert c.error is None
        if c.state is State.FIN_WAIT_2:
            assert receiver.got == len(data)
            assert d.stack.next_deadline() is None
            return receiver
        if not answers and not d.stack.has_output:
            d.run_to_deadline()
    raise AssertionError(f"no end in sight: {c}, {receiver.got} bytes of {len(data)}")


def test_everything_arrives_at_a_fickle_receiver() -> None:
    reneged = shrunk = 0
    for seed in range(60):
        try:
            receiver = converse(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        reneged += receiver.reneged
        shrunk += receiver.shrunk
    assert reneged > 50
    assert shrunk > 50


@pytest.mark.long
@pytest.mark.parametrize("hundred", range(20))
def test_everything_arrives_at_thousands_of_fickle_receivers(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * (hundred + 1)):
        try:
            converse(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
