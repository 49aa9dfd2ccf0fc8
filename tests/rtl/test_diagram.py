"""Block diagrams: they say what is connected, and the one in `docs` is that of the RTL as it is."""

from pathlib import Path

from amaranth.hdl import Module, Mux
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import CONFIGS
from rtl.diagram import OUTSIDE, Kind, Wire, document, mermaid, wires
from rtl.interfaces import Strobe
from rtl.primitives import SkidBuffer

ROOT = Path(__file__).resolve().parents[2]


class _Source(wiring.Component):
    o: Out(stream.Signature(8))
    told: Out(Strobe(4))
    level: Out(1)

    def elaborate(self, platform):
        return Module()


class _Sink(wiring.Component):
    i: In(stream.Signature(8))
    told: In(Strobe(4))
    level: In(1)

    def elaborate(self, platform):
        return Module()


class _Pair(wiring.Component):
    """Two sources, one sink: a stream through a stage, a strobe, and a level through a register and a choice."""

    choice: In(1)
    done: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.submodules.one = one = _Source()
        m.submodules.other = other = _Source()
        m.submodules.sink = sink = _Sink()
        m.submodules.stage = stage = SkidBuffer(shape=8)
        connect(m, one.o, stage.i)
        connect(m, stage.o, sink.i)
        connect(m, other.told, sink.told)
        with m.If(self.choice):
            m.d.sync += sink.level.eq(Mux(one.level, 1, other.level))
        m.d.comb += self.done.eq(other.level)
        return m


def test_wires_are_what_is_connected() -> None:
    """Through stages, registers and choices, in the direction of the payload."""
    assert wires(_Pair()) == [
        Wire(OUTSIDE, "choice", Kind.LEVEL, "sink"),
        Wire("one", "o", Kind.STREAM, "sink"), Wire("one", "level", Kind.LEVEL, "sink"),
        Wire("other", "told", Kind.STROBE, "sink"), Wire("other", "level", Kind.LEVEL, OUTSIDE),
        Wire("other", "level", Kind.LEVEL, "sink"),
    ]


def test_a_chart_has_an_arrow_for_each_pair_of_blocks() -> None:
    """With all that goes the same way."""
    chart = mermaid(_Pair())
    assert "    one -->|o| sink\n" in chart
    assert "    other -.->|told, level| sink\n" in chart
    assert "stage" not in chart


def test_the_document_is_that_of_the_rtl() -> None:
    """Remake it with `memnic diagram > docs/block_diagram.md`."""
    assert (ROOT / "docs/block_diagram.md").read_text() == document(CONFIGS["default"])


def test_a_port_that_is_passed_on_leads_outside() -> None:
    """`connect` with `flipped`, as components do that contain others."""
    class _Passes(wiring.Component):
        o: Out(stream.Signature(8))

        def elaborate(self, platform):
            m = Module()
            m.submodules.source = source = _Source()
            connect(m, source.o, flipped(self.o))
            return m

    assert Wire("source", "o", Kind.STREAM, OUTSIDE) in wires(_Passes())
