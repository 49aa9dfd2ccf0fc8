"""The prover itself: what is false is refuted, with a trace; what cannot happen is not covered."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtl.primitives import SkidBuffer
from tests.formal.claims import Claims
from tests.formal.prover import Proof, check


def _proof(properties, **reach: int) -> Proof:
    return Proof("claim", lambda: SkidBuffer(shape=2), properties, depth=6, **reach)


def test_a_false_claim_is_refuted_with_a_trace(tmp_path: Path) -> None:
    def never_full(claims: Claims, block: SkidBuffer) -> None:
        claims.holds(block.i.ready)

    with pytest.raises(AssertionError, match=r"claim: not bounded .*test_prover\.py.*trace\.vcd"):
        check(_proof(never_full), tmp_path)
    assert (tmp_path / "trace.vcd").stat().st_size > 0


def test_what_holds_for_some_cycles_only_is_no_induction(tmp_path: Path) -> None:
    def few(claims: Claims, block: SkidBuffer) -> None:
        claims.holds(claims.inside(block.i.valid, 0, 8) < 7)

    with pytest.raises(AssertionError, match="not inductive"):
        check(_proof(few, induction=2), tmp_path)


def test_what_is_not_reached_is_said(tmp_path: Path) -> None:
    def impossible(claims: Claims, block: SkidBuffer) -> None:
        claims.given(~block.i.valid)
        claims.reached(block.o.valid)

    with pytest.raises(AssertionError, match="not covered"):
        check(_proof(impossible, cover=6), tmp_path)


def test_invariants_of_parts_are_claims(tmp_path: Path) -> None:
    class Broken(SkidBuffer):
        def elaborate(self, platform):
            m = super().elaborate(platform)
            self.invariants = [(self.i.ready, "is full")]
            return m

    with pytest.raises(AssertionError, match="not bounded"):
        check(Proof("claim", lambda: Broken(shape=2), lambda claims, block: None, depth=6), tmp_path)
