"""The engines there are. Each name stands for a function that is looked up when it is used, so that one engine's
tools need not be there for another."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from cosim.engines.base import Engine, RunSpec
from cosim.errors import InputError

ENGINES: dict[str, str] = {
    "compiled": "cosim.engines.compiled:run",
    "cocotb": "cosim.engines.cocotb_engine:run",
    "model": "cosim.engines.in_process:run",
}
"""Name -> `module:function` that is an `Engine`, the preferred one first."""


def available() -> list[str]:
    """Names of the engines whose modules are there, the preferred one first."""
    return [name for name, place in ENGINES.items() if importlib.util.find_spec(place.partition(":")[0]) is not None]


def check_engine(name: str, simulator: str, transactors: str | None) -> None:
    """Raises InputError for a simulator or transactors that are not there, ToolError when they are not installed."""
    select = getattr(importlib.import_module(ENGINES[name].partition(":")[0]), "select", None)
    if select is not None:
        select(simulator, transactors)


def prepare_engine(name: str, spec: RunSpec, say: Callable[[str], None]) -> None:
    """Build what an engine will need for a run, if it needs anything; `say` is told of what is being built.

    Raises ToolError when it cannot be built, InputError for what is not there.
    """
    prepare = getattr(importlib.import_module(ENGINES[name].partition(":")[0]), "prepare", None)
    if prepare is not None:
        prepare(spec, say)


def select_engine(name: str | None) -> tuple[str, Engine]:
    """The engine of a name, or the preferred one. Raises InputError for one that is not there."""
    names = available()
    chosen = name or names[0]
    if chosen not in names:
        raise InputError(f"no engine {chosen!r}: choose from {', '.join(names)}")
    module, _, function = ENGINES[chosen].partition(":")
    engine: Engine = getattr(importlib.import_module(module), function)
    return chosen, engine
