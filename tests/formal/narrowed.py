"""Blocks as proofs need them: with fewer places, and deliberately broken, to show that a proof can fail."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from amaranth.hdl import Fragment

from nic_model.contract import NicConfig
from tests.formal.prover import Proof, check


class SmallConfig(NicConfig):
    """A device too small to be built: a proof's memories are registers, and what is cleared first takes its cycles."""

    def _check(self, field: str, good: bool, wanted: str) -> None:
        """Anything goes."""


def narrowed(make: Callable[[], Any], patches: Mapping[str, Any]) -> Any:
    """The block that `make` makes, elaborated with all that is in it while the names in `patches` stand for something
    else: full name -> constant, function or class."""

    def patched(run: Callable[[], Any]) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in patches.items():
                patch.setattr(name, value)
            return run()

    block = patched(make)
    elaborate = block.elaborate
    block.elaborate = lambda platform: patched(lambda: Fragment.get(elaborate(platform), platform))
    return block


def broken(block: type, sound: str, wrong: str) -> type:
    """The block with one piece of the source of its class, which must be there once, replaced by another."""
    source = textwrap.dedent(inspect.getsource(block))
    assert source.count(sound) == 1, f"{block.__name__} has {source.count(sound)} times {sound!r}, not once"
    made: dict[str, type] = {}
    # Its names are looked up in the block's own module, so that `narrowed` reaches them.
    code = compile(source.replace(sound, wrong), f"<broken {block.__name__}>", "exec")
    exec(code, vars(sys.modules[block.__module__]), made)
    return made[block.__name__]


class Fault(NamedTuple):
    """A broken block that a proof must refute."""

    name: str
    """What is wrong with it, in words."""
    proof: Proof
    block: Callable[[], Any]


def fault_cases(faults: Sequence[Fault]) -> list[Any]:
    """Parameters of a test; those of a long proof are long."""
    return [pytest.param(fault, id=fault.name, marks=[pytest.mark.long] if fault.proof.long else [])
            for fault in faults]


def check_refuted(fault: Fault, folder: Path) -> None:
    """AssertionError if the proof holds for the broken block too."""
    with pytest.raises(AssertionError, match="not bounded"):
        check(fault.proof._replace(block=fault.block), folder)
