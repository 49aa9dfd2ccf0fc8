# amaranth: UnusedElaboratable=no
"""Verilog for Icarus: it must see what Amaranth's own simulator sees, and keep what is unknown.

All designs stand side by side in one bench. It runs three times: with known inputs; with the same, but here and there
unknown; and with other values in the places of the unknown ones.
"""

import functools
import random
import shutil
import subprocess

import pytest
from amaranth.lib.wiring import In, Out

from rtl.interpreted import convert
from rtl.netlist import Unsupported
from tests.rtl.test_systemverilog import CYCLES, DESIGNS, SEED, Design, amaranth_outputs, loop, ports, stimulus

UNKNOWN_PART = 0.04
"""Of the values that enter."""


@functools.cache
def entering(name):
    """Name and width of each port that enters, the reset first."""
    return [("rst", 1), *((port, len(value)) for port, value in ports(DESIGNS[name](), In))]


@functools.cache
def leaving(name):
    """Name and width of each port that leaves."""
    return [(port, len(value)) for port, value in ports(DESIGNS[name](), Out)]


def unknown_bits(name):
    """For each cycle a mask of each input, the reset first: which of its bits are unknown."""
    rng, masks = random.Random(f"{SEED} {name} unknown"), []
    for _ in range(CYCLES):
        masks.append([0 if rng.random() > UNKNOWN_PART else rng.choice(((1 << width) - 1, 1 << rng.randrange(width)))
                      for _port, width in entering(name)])
    return masks


def as_bits(value, unknown, width):
    """In Verilog's digits."""
    return "".join("x" if unknown >> bit & 1 else str(value >> bit & 1) for bit in reversed(range(width)))


def rows_of(kind):
    """For each cycle the bits of all inputs: `known`, `unknown`, or `other`."""
    rng, rows = random.Random(SEED), ["" for _ in range(CYCLES)]
    for name in DESIGNS:
        widths = [width for _port, width in entering(name)]
        masks = unknown_bits(name)
        for cycle, (rst, values) in enumerate(stimulus(name)):
            for value, mask, width in zip([int(rst), *values], masks[cycle], widths, strict=True):
                shown = value ^ (rng.getrandbits(width) & mask if kind == "other" else 0)
                rows[cycle] += as_bits(shown, mask if kind == "unknown" else 0, width)
    return rows


@pytest.fixture(scope="module")
def icarus(tmp_path_factory):
    """Kind of inputs, and name of a design -> for each cycle the bits of all outputs before its end."""
    if shutil.which("iverilog") is None:
        pytest.skip("no Icarus")
    folder = tmp_path_factory.mktemp("interpreted")
    in_bits = sum(width for name in DESIGNS for _port, width in entering(name))
    texts, lines, at = [], [], in_bits
    shown, spans, start = [], {}, 0
    for name in DESIGNS:
        texts.append(convert(DESIGNS[name](), name))
        pins = [".clk(clk)"]
        for port, width in entering(name):
            at -= width
            pins.append(f".{port}(i[{at} +: {width}])")
        spans[name] = start
        for port, width in leaving(name):
            wire = f"{name}_{port}"
            lines.append(f"wire [{width - 1}:0] {wire};")
            pins.append(f".{port}({wire})")
            shown.append(wire)
            start += width
        lines.append(f"{name} dut_{name}({', '.join(pins)});")
    (folder / "designs.v").write_text("\n".join(texts))
    (folder / "bench.v").write_text("\n".join([
        "module bench;", "reg clk = 0;", f"reg [{in_bits - 1}:0] i = 0;",
        f"reg [{in_bits - 1}:0] rows [0:{CYCLES - 1}];", *lines, "integer n;", "reg [8*16-1:0] kind;", "initial begin",
        '  n = $value$plusargs("kind=%s", kind); $readmemb(kind, rows);',
        f"  for (n = 0; n < {CYCLES}; n = n + 1) begin",
        # inputs change more than once in a cycle, some there and back
        f"    i = rows[{CYCLES - 1} - n]; #1 ;",
        f'    i = rows[n]; clk = 0; #1 $display("%b", {{{", ".join(shown)}}}); clk = 1; #1;',
        "  end", "end", "endmodule\n"]))
    done = subprocess.run(["iverilog", "-g2012", "-Wall", "-Wno-timescale", "-s", "bench", "-o", "bench.vvp", "bench.v",
                           "designs.v"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for kind in ("known", "unknown", "other"):
        (folder / kind).write_text("\n".join(rows_of(kind)) + "\n")
        done = subprocess.run(["vvp", "bench.vvp", f"+kind={kind}"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]
        found[kind] = done.stdout.split()
        assert {len(row) for row in found[kind]} == {start}
        assert len(found[kind]) == CYCLES

    def outputs(kind, name):
        begin, width = spans[name], sum(width for _port, width in leaving(name))
        return [row[begin:begin + width] for row in found[kind]]

    return outputs


@pytest.mark.parametrize("name", DESIGNS)
def test_icarus_sees_what_amaranth_sees(icarus, name):
    for cycle, (right, row) in enumerate(zip(amaranth_outputs(name), icarus("known", name), strict=True)):
        wrong, at = {}, 0
        for value, (port, width) in zip(right, leaving(name), strict=True):
            seen = row[at:at + width]
            if seen != as_bits(value, 0, width):
                wrong[port] = hex(value), seen
            at += width
        assert not wrong, f"cycle {cycle}: Amaranth and Icarus say {wrong}"


@pytest.mark.parametrize("name", DESIGNS)
def test_what_is_known_does_not_depend_on_what_is_not(icarus, name):
    """With unknown inputs, an output's bit is unknown, or what it is for any values of those inputs."""
    seen = icarus("unknown", name)
    for kind in ("known", "other"):
        for cycle, (row, right) in enumerate(zip(seen, icarus(kind, name), strict=True)):
            wrong = [bit for bit, (a, b) in enumerate(zip(row, right, strict=True)) if a not in ("x", b)]
            assert not wrong, f"cycle {cycle}: bits {wrong} of {row} are those of {right} by chance"
    bits = "".join(seen)
    assert "x" in bits
    assert set(bits) - {"x"} == {"0", "1"}


@pytest.mark.parametrize("name", DESIGNS)
def test_the_other_values_make_a_difference(icarus, name):
    assert icarus("other", name) != icarus("known", name)


def test_no_expression_reads_a_variable_of_its_own():
    """A variable, not a word of an array, costs several times as much."""
    text = convert(DESIGNS["aligner"](), "top")
    assert "reg " not in text
    assert "wire " not in text
    assert "// w1[0]: _r_" in text


def test_what_cannot_be_written_is_named():
    with pytest.raises(Unsupported, match="depends on itself"):
        convert(Design(loop, a=5), "top")
