"""Block diagrams, read from the connections that a component makes between its blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, NamedTuple

from amaranth.hdl import Fragment, Value
from amaranth.hdl._ast import Assign, Statement, Switch
from amaranth.lib import stream, wiring

from nic_model.contract import NicConfig
from rtl.fetch import TransmitFetch
from rtl.nic import Nic
from rtl.primitives import SkidBuffer
from rtl.receive import Receive
from rtl.transmit_back import TransmitBack
from rtl.tx_scheduler import TransmitScheduler

OUTSIDE = "outside"
"""Stands for whatever the component's own ports lead to."""

BROADCAST = 3
"""A port that leads to so many blocks or more is left out of a drawing; the table has it."""

UNDRAWN = {"active", "now"}
"""Ports that every block has or may have: whether it moves, and the time."""


class Kind(Enum):
    """How a connection behaves."""

    STREAM = "stream"
    """`valid`, `ready` and a payload."""
    STROBE = "strobe"
    """`valid` and a payload, for one cycle, always taken."""
    BUS = "bus"
    """AMBA: several streams in both directions."""
    LEVEL = "level"
    """A signal."""


class Wire(NamedTuple):
    """A connection: the port's name at its source, and the blocks at its ends."""

    source: str
    port: str
    kind: Kind
    sink: str


class _End(NamedTuple):
    block: str
    port: str
    kind: Kind


def wires(component: wiring.Component) -> list[Wire]:
    """All connections between the blocks of a component, and with `OUTSIDE`, in order of the blocks and their ports.

    Stages that only register a stream (`SkidBuffer`) are part of the connection. A stream's way is its payload's.
    """
    fragment = Fragment.get(component, None)
    blocks: dict[str, Any] = {OUTSIDE: component}
    for inside, name, _where in fragment.subfragments:
        if inside.origins and isinstance(inside.origins[0], wiring.Component):
            blocks[name or ""] = inside.origins[0]
    sources: dict[int, _End] = {}
    sinks: list[tuple[_End, Any]] = []
    for name, block in blocks.items():
        for end, signal, is_output in _ports(name, block):
            if is_output == (name != OUTSIDE):
                sources[id(signal)] = end
            else:
                sinks.append((end, signal))

    drivers: dict[int, list[Any]] = defaultdict(list)
    for statements in fragment.statements.values():
        for left, right in _assignments(statements):
            for signal in left:
                drivers[id(signal)].extend(right)

    found: dict[tuple[str, str], set[_End]] = defaultdict(set)  # from block and port to the ends
    kinds: dict[tuple[str, str], Kind] = {}
    for end, signal in sinks:
        for source in _origins(signal, sources, drivers):
            if end.block == source.block == OUTSIDE:
                continue
            found[source.block, source.port].add(end)
            kinds[source.block, source.port] = source.kind

    stages = {name for name, block in blocks.items() if isinstance(block, SkidBuffer)}

    def beyond(end: _End) -> Iterator[_End]:
        """Where a connection ends when stages are passed through."""
        if end.block in stages:
            for behind in found[end.block, "o"]:
                yield from beyond(behind)
        else:
            yield end

    order = {name: number for number, name in enumerate(blocks)}
    drawn = {
        Wire(block, port, kinds[block, port], target.block)
        for (block, port), ends in found.items() if block not in stages
        for end in ends for target in beyond(end)}
    ports = {
        (name, port): number for name, block in blocks.items() for number, port in enumerate(block.signature.members)}
    return sorted(drawn, key=lambda w: (order[w.source], ports[w.source, w.port], order[w.sink]))


def _ports(name: str, block: wiring.Component) -> Iterator[tuple[_End, Any, bool]]:
    """Signals of a block's ports but for `ready`, and whether the block drives them."""
    for port, member in block.signature.members.items():
        kind = _kind_of(member)
        inside = wiring.Signature({port: member})
        for path, leaf, value in inside.flatten(block):
            if kind is Kind.STREAM and path[-1] == "ready":
                continue
            for signal in Value.cast(value)._lhs_signals():
                yield _End(name, port, kind), signal, leaf.flow == wiring.Out


def _kind_of(member: wiring.Member) -> Kind:
    if member.is_port:
        return Kind.LEVEL
    if isinstance(member.signature, stream.Signature):
        return Kind.STREAM
    if any(inside.is_signature for inside in member.signature.members.values()):
        return Kind.BUS
    return Kind.STROBE


def _assignments(statements: Iterable[Statement], conditions: tuple[Any, ...] = ()) -> Iterator[tuple[Any, list[Any]]]:
    for statement in statements:
        if isinstance(statement, Assign):
            yield statement.lhs._lhs_signals(), [*statement.rhs._rhs_signals(), *conditions]
        elif isinstance(statement, Switch):
            tests = (*conditions, *statement.test._rhs_signals())
            for _patterns, inside, *_where in statement.cases:
                yield from _assignments(inside, tests)


def _origins(signal: Any, sources: dict[int, _End], drivers: dict[int, list[Any]]) -> set[_End]:
    """The block ports that a signal's value comes from, through the component's own logic."""
    seen, todo, origins = {id(signal)}, list(drivers[id(signal)]), set()
    while todo:
        driver = todo.pop()
        if id(driver) in seen:
            continue
        seen.add(id(driver))
        if id(driver) in sources:
            origins.add(sources[id(driver)])
        else:
            todo.extend(drivers[id(driver)])
    return origins


# -------------------------------------------------------------------------------------------------- as a document

_ARROWS = {Kind.STREAM: "-->", Kind.BUS: "<==>", Kind.STROBE: "-.->", Kind.LEVEL: "-.->"}


def mermaid(component: wiring.Component) -> str:
    """A flow chart in Mermaid's language: streams as arrows, buses thick, strobes and levels dashed."""
    found = _told(component)
    fan_out: dict[tuple[str, str], int] = defaultdict(int)
    for wire in found:
        fan_out[wire.source, wire.port] += 1
    labels: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for wire in found:
        if fan_out[wire.source, wire.port] >= BROADCAST or wire.port.startswith("count_"):
            continue
        labels[wire.source, _ARROWS[wire.kind], wire.sink].append(wire.port)
    lines = ["flowchart LR"]
    for name in dict.fromkeys(end for source, _arrow, sink in labels for end in (source, sink)):
        lines.append(f"    {name}([{name}])" if name == OUTSIDE else f"    {name}[{name}]")
    for (source, arrow, sink), ports in labels.items():
        lines.append(f"    {source} {arrow}|{', '.join(ports)}| {sink}")
    return "\n".join(lines) + "\n"


def _told(component: wiring.Component) -> list[Wire]:
    """What a reader wants to know of: without ports that all blocks have, and buses once, from the outside."""
    return [wire for wire in wires(component)
            if wire.port not in UNDRAWN and not (wire.kind is Kind.BUS and wire.sink == OUTSIDE)]


def table(component: wiring.Component) -> str:
    """All connections as a table in Markdown."""
    ends: dict[tuple[str, str, Kind], list[str]] = defaultdict(list)
    for wire in _told(component):
        ends[wire.source, wire.port, wire.kind].append(wire.sink)
    lines = ["| from | port | | to |", "|---|---|---|---|"]
    for (source, port, kind), sinks in ends.items():
        lines.append(f"| {source} | `{port}` | {kind.value} | {', '.join(sinks)} |")
    return "\n".join(lines) + "\n"


_DRAWN = (
    ("The device", Nic), ("Transmit: doorbell to job", TransmitFetch), ("Transmit: the scheduler", TransmitScheduler),
    ("Transmit: slices to frames", TransmitBack), ("Receive", Receive),
)
"""What is drawn: the top, and the blocks that are made of several."""

_LEGEND = f"""\
# Block diagrams

Made by `memnic diagram` from the connections in the RTL; `tests/rtl/test_diagram.py` compares. Streams (`valid`,
`ready`, payload) are arrows, AMBA buses thick ones, strobes and levels dashed; skid buffers between blocks are not
drawn. What goes to {BROADCAST} blocks or more, and what goes to the counters, stands in the tables only.
"""


def document(config: NicConfig) -> str:
    """Charts and tables of the device and of its larger blocks, in Markdown."""
    parts = [_LEGEND]
    for title, block in _DRAWN:
        component = block(config)
        module = block.__module__.replace(".", "/")
        parts += [f"## {title}\n\n`{module}.py::{block.__name__}`\n", f"```mermaid\n{mermaid(component)}```\n",
                  table(component)]
    return "\n".join(parts)
