"""The `tiny` device with counters at each branch and bit, from the Verilog that Amaranth writes.

That is the Verilog which goes to an FPGA: it has a module for each block and an `if` or `case` for each of Amaranth's,
in an `always @*` for each signal. The compiled engine's own SystemVerilog has neither: it is one module, in which a
block is skipped while nothing happens in it.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec
from amaranth.back import verilog

from cosim import builds
from nic_model.contract import CONFIGS, NicConfig
from rtl.simulation import SimulationTop
from rtl.verilog import hide_unnamed
from rtl.wrapper import wrapper

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

WIDEST_BITS = 64
"""Bits of wider signals are not counted: they are frames' and descriptors' data, which every random frame toggles."""

VERILOG, SOURCES = "top.v", "sources.json"

_STARTER = re.compile(r"^ *if \(\\\S*verilog_backend\S* *\) begin end$", re.MULTILINE)
"""Lets a process run once in other simulators; no branch of the design."""

_SOURCE = re.compile(r"\(\* src = \"([^\"]*)\" \*\)")
_ATTRIBUTE = re.compile(r"\(\* [^*]*\*\) *")
_NAME = r"(\\\S+|[A-Za-z_]\w*)"
_FIELD = re.compile(r"^ *(?:(?:wire|reg) (?:\[[\d:]+\] )?|assign )\\[^\s$]\S*\.\S+ +(?:;|=.*;)$", re.MULTILINE)
"""A name for a part of a signal; nothing reads it, and its bits are the signal's own."""


class Text(NamedTuple):
    """Verilog for Verilator, and where its signals come from."""

    verilog: str
    sources: dict[str, str]
    """`module:signal` -> file:line of the signal's declaration in Amaranth."""


def prepare(text: str) -> Text:
    """Take out what is no part of the design, and keep line numbers."""
    sources, module, source = {}, "", ""
    for line in text.splitlines():
        if found := re.match(rf"module {_NAME}", line):
            module = plain(found[1])
        elif found := re.match(rf" *(?:wire|reg|output|input)(?: reg)? (?:\[[\d:]+\] )?{_NAME} *[;=]", line):
            if source:
                sources.setdefault(f"{module}:{plain(found[1])}", source)
        elif found := re.match(rf" +{_NAME} +<= {_NAME} *;", line):
            # The next value of a register is the register's.
            sources[f"{module}:{plain(found[2])}"] = sources.get(f"{module}:{plain(found[1])}", source)
        source = found[1] if (found := _SOURCE.search(line)) and line.strip() == found[0] else ""
    text = _ATTRIBUTE.sub("", _STARTER.sub("", text))
    return Text(hide_unnamed(_FIELD.sub("", text)), sources)


def plain(name: str) -> str:
    """A Verilog name as `hide_unnamed` leaves it, without a backslash."""
    return re.sub(r"\W", "_", name[1:]) if name.startswith("\\$") else name.removeprefix("\\")


def _build(config: NicConfig, work: Path, target: builds.Target) -> None:
    made = prepare(verilog.convert(SimulationTop(config, probed=True), name="simulation_top", emit_src=True))
    (work / SOURCES).write_bytes(msgspec.json.encode(made.sources))
    builds.compile_library(config, work, target, made.verilog, wrapper(config), sources=[HERE / "writer.cpp"],
                           options=["--coverage-line", "--coverage-toggle", "--coverage-max-width", str(WIDEST_BITS)])


TARGET = builds.Target("coverage", "coverage", "three minutes", "memnic_wrapper", _build, trained=False,
                       sources=(Path(__file__), HERE / "writer.cpp"))


class Covered(NamedTuple):
    """What was built."""

    library: Path
    verilog: list[str]
    """Its lines."""
    sources: dict[str, str]


@cache
def build() -> Covered:
    """Build it, or take it from the cache."""
    folder = builds.build(CONFIGS["tiny"], TARGET, lambda line: print(line, flush=True))
    return Covered(folder / "obj" / builds.LIBRARY_NAME, (folder / VERILOG).read_text().splitlines(),
                   msgspec.json.decode((folder / SOURCES).read_bytes(), type=dict[str, str]))
