"""Primitives: nothing is lost, doubled or reordered; FIFOs neither over- nor underflow; the arbiter starves no one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rtl.primitives import SkidBuffer, StreamArbiter, StreamFifo
from rtl.small_fifo import SmallFifo
from tests.formal.claims import Claims
from tests.formal.prover import Proof, cases, check

ARBITER_INPUTS = 4


def passes_on(capacity: int):
    """A block between two streams that holds `capacity` at most, which leave as they came."""
    def properties(claims: Claims, block) -> None:
        claims.stream(block.i, given=True)
        claims.stream(block.o)
        inside = claims.same_order(block.i, block.o, bits=4)
        claims.holds(inside <= capacity)
        claims.reached(inside == capacity)
    return properties


def counts(inside_of: Callable[[Any], Any]):
    """What has entered and not left is what the block says is inside; so it neither over- nor underflows. While its
    `active` is 0, nothing moves."""
    def properties(claims: Claims, block) -> None:
        claims.stream(block.i, given=True)
        claims.stream(block.o)
        enters, leaves = block.i.valid & block.i.ready, block.o.valid & block.o.ready
        claims.holds(claims.inside(enters, leaves, bits=5) == inside_of(block))
        claims.holds(block.active, enters | leaves)
    return properties


def arbiter(claims: Claims, block: StreamArbiter) -> None:
    """An input that waits is taken when every other has been taken once, at most, while the output is taken."""
    for i in block.i:
        claims.stream(i, given=True)
    claims.stream(block.o)
    for number, i in enumerate(block.i):
        others = sum((j.valid & j.ready for n, j in enumerate(block.i) if n != number), 0)
        passed = claims.inside(others, 0, bits=6, name=f"passed_{number}")
        with claims.m.If(~i.valid | i.ready):
            claims.m.d.sync += passed.eq(0)
        claims.holds(passed <= ARBITER_INPUTS - 1)
        claims.reached(passed == ARBITER_INPUTS - 1)
    # It takes one whenever its output is free.
    free = ~block.o.valid | block.o.ready
    claims.holds(sum((i.valid & i.ready for i in block.i), 0) == 1, free & sum((i.valid for i in block.i), 0).bool())


PROOFS = [
    Proof("a skid buffer passes on", lambda: SkidBuffer(shape=2), passes_on(2), depth=14, cover=8),
    Proof("a stream FIFO passes on", lambda: StreamFifo(shape=2, depth=2), passes_on(4), depth=14, cover=12),
    Proof("a small FIFO passes on", lambda: SmallFifo(shape=2, depth=2), passes_on(2), depth=14, cover=10),
    Proof("a skid buffer never overflows", lambda: SkidBuffer(shape=2), counts(lambda b: b.o.valid + ~b.i.ready),
          depth=6, induction=2),
    Proof("a stream FIFO never overflows", lambda: StreamFifo(shape=2, depth=4), counts(lambda b: b.level),
          depth=10, induction=3),
    Proof("an arbiter starves no one", lambda: StreamArbiter(shape=2, count=ARBITER_INPUTS), arbiter, depth=12,
          cover=8),
]


@pytest.mark.parametrize("proof", cases(PROOFS))
def test_primitives(proof: Proof, tmp_path: Path) -> None:
    check(proof, tmp_path)
