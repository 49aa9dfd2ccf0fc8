"""The bus slaves keep AXI's rules, and answer each access once."""

# Ref: AMBA AXI and ACE Protocol Specification, ARM IHI 0022H, A3.2.1, A3.3.1 (dependencies), A3.4.4

from __future__ import annotations

from pathlib import Path

import pytest

from nic_model.contract import NicConfig
from rtl.axi_lite import AxiLiteAccesses
from rtl.doorbells import Doorbells
from tests.formal.claims import Claims
from tests.formal.prover import Proof, cases, check

CONFIG = NicConfig(name="proof", channels=4, vectors=1, keys=16)


def lite(claims: Claims, block: AxiLiteAccesses) -> None:
    """B and R hold still; each answers one access, and none comes before its address and data."""
    axil = block.axil
    for stream in (axil.aw, axil.w, axil.ar, block.answer):
        claims.stream(stream, given=True)
    asked = claims.inside(block.request.valid & block.request.ready, block.answer.valid & block.answer.ready, 3)
    claims.given(asked != 0, block.answer.valid)
    claims.stream(block.request)
    claims.stream(axil.b)
    claims.stream(axil.r)
    answered = axil.b.valid & axil.b.ready
    for name, taken in (("addresses", axil.aw), ("data", axil.w)):
        waiting = claims.inside(taken.valid & taken.ready, answered, 3, name)
        claims.holds(waiting != 0, axil.b.valid)
        claims.holds(waiting <= 2)
    reads = claims.inside(axil.ar.valid & axil.ar.ready, axil.r.valid & axil.r.ready, 3, "reads")
    claims.holds(reads != 0, axil.r.valid)
    claims.reached(answered & (reads != 0))


def pages(claims: Claims, block: Doorbells) -> None:
    """B and R hold still; one response for each burst, after its last beat."""
    axi = block.axi
    for stream in (axi.aw, axi.w, axi.ar):
        claims.stream(stream, given=True)
    claims.given(axi.aw.payload.len <= 1)
    for stream in (axi.b, axi.r, block.tx, block.rx, block.arm):
        claims.stream(stream)
    answered = axi.b.valid & axi.b.ready
    ended = axi.w.valid & axi.w.ready & axi.w.payload.last
    claims.holds(claims.inside(ended, answered, 4, "ended") != 0, axi.b.valid)
    claims.holds(claims.inside(axi.aw.valid & axi.aw.ready, answered, 4, "addressed") != 0, axi.b.valid)
    reading = claims.inside(axi.ar.valid & axi.ar.ready, axi.r.valid & axi.r.ready & axi.r.payload.last, 3, "reading")
    claims.holds(reading != 0, axi.r.valid)
    claims.holds(reading <= 1)
    claims.reached(answered & (axi.w.valid | axi.r.valid))


PROOFS = [
    Proof("registers answer each access once", AxiLiteAccesses, lite, depth=14, cover=10),
    Proof("doorbell pages answer each burst once", lambda: Doorbells(CONFIG), pages, depth=12, cover=10),
]


@pytest.mark.parametrize("proof", cases(PROOFS))
def test_slaves(proof: Proof, tmp_path: Path) -> None:
    check(proof, tmp_path)
