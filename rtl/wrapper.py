# amaranth: UnusedElaboratable=no
"""The wrapper round `SimulationTop` whose only input is the clock, and the C++ structs of what crosses it.

It holds all inputs of the device in registers, and at each rising edge calls one function of C++,
`void memnic_tick(const uint32_t *outputs, uint32_t *inputs)`: `outputs` is what the device shows in the cycle that
ends, `inputs` what it gets in the one that begins. Both are packed vectors, laid out as the structs that `pins_header`
writes: each field of each stream in 32-bit words of its own, so that C++ shifts nothing.

So it is under cocotb and where waves are written. Otherwise the compiled engine has no wrapper: the device itself has
the two vectors as ports, see `packed`, and C++ reads and writes them in place.

Two edges after C++ has asked, `void memnic_probe(const uint32_t *probes)` comes before it, with what `rtl.probes`
explains; unless it asks, nothing of that is computed.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from nic_model.contract import DOORBELL_BASE, NicConfig
from nic_model.contract.config import BURST_BYTES
from rtl.probes import probes_document, probes_width
from rtl.simulation import flag_names, inputs, outputs, port_widths, vector_fields
from rtl.systemverilog import Packed, Place

WORD_BITS = 32

PLAIN_OUTPUTS = ("flags", "irq", "next_deadline")
PLAIN_INPUTS = ("rst", "ready", "jump", "jump_to")
WAKE = "wake"
"""A bit of the inputs that does not enter the device: it toggles when the host has something to see."""
ASKED = "asked"
"""The probes are wanted: the device takes them at the next edge, and shows them at the one behind it."""


class Field(NamedTuple):
    """A field of a struct: its place in words, and the bits of the port that it holds."""

    port: str
    name: str
    word: int
    width: int
    offset: int
    """In the port's vector."""

    @property
    def words(self) -> int:
        """Words that it takes."""
        return -(-self.width // WORD_BITS)


def output_fields(config: NicConfig) -> list[Field]:
    """What leaves the device, in the struct's order."""
    widths, streams = port_widths(config), vector_fields(config)
    wanted = [(name, name, widths[name], 0) for name in PLAIN_OUTPUTS]
    for stream in outputs(config):
        wanted += [(stream, field, width, offset) for field, (offset, width) in streams[stream].items()]
    return _placed(wanted)


def input_fields(config: NicConfig) -> list[Field]:
    """What enters it. The lowest bit of a stream's vector is its valid."""
    widths, streams = port_widths(config), vector_fields(config)
    wanted = [(name, name, widths.get(name, 1), 0) for name in (*PLAIN_INPUTS, WAKE, ASKED)]
    for stream in inputs(config):
        wanted.append((stream, "valid", 1, 0))
        wanted += [(stream, field, width, offset + 1) for field, (offset, width) in streams[stream].items()]
    return _placed(wanted)


def _placed(wanted: list[tuple[str, str, int, int]]) -> list[Field]:
    fields: list[Field] = []
    word = 0
    for port, name, width, offset in wanted:
        if width:
            fields.append(Field(port, name, word, width, offset))
            word += fields[-1].words
    return fields


def words(fields: list[Field]) -> int:
    """Size of a struct."""
    return fields[-1].word + fields[-1].words


def packed(config: NicConfig) -> Packed:
    """The same two vectors in place of the ports of `SimulationTop` with probes, which stand behind the outputs."""
    leaving, entering, flags = output_fields(config), input_fields(config), flag_names(config)
    end, width = WORD_BITS * words(leaving), probes_width(probes_document(config))

    def place(field: Field, guard: tuple[str, int] | None = None) -> Place:
        return Place(field.port, field.offset, field.width, WORD_BITS * field.word, WORD_BITS * field.words, guard)

    probes = Place("probes", 0, width, end, -(-width // WORD_BITS) * WORD_BITS)
    return Packed(
        [place(field) for field in entering if field.port != WAKE], WORD_BITS * words(entering),
        [*(place(field, ("flags", flags.index(f"{field.port}_valid")) if field.port in outputs(config) else None)
           for field in leaving),
         probes], end + probes.span)


def wrapper(config: NicConfig) -> str:
    """SystemVerilog of module `memnic_wrapper`, which has an instance `top` of `simulation_top`, with probes."""
    leaving, entering = output_fields(config), input_fields(config)
    out_bits, in_bits = WORD_BITS * words(leaving), WORD_BITS * words(entering)
    probe_bits = probes_width(probes_document(config))
    lines = [
        f"module memnic_wrapper(input bit clk, output bit {WAKE});",
        f"  import \"DPI-C\" function void memnic_tick(input bit [{out_bits - 1}:0] outputs, "
        f"output bit [{in_bits - 1}:0] inputs);",
        f"  import \"DPI-C\" function void memnic_probe(input bit [{probe_bits - 1}:0] probes);",
        f"  bit [{in_bits - 1}:0] held, next;",
        "  bit answered;",
        f"  wire [{probe_bits - 1}:0] probes;",
        f"  wire [{out_bits - 1}:0] shown;",
    ]
    for port in dict.fromkeys(field.port for field in leaving):
        width = sum(field.width for field in leaving if field.port == port)
        lines.append(f"  wire [{width - 1}:0] {port};")
    for field in leaving:
        pad = field.words * WORD_BITS - field.width
        value = f"{field.port}[{field.offset} +: {field.width}]"
        lines.append(f"  assign shown[{field.word * WORD_BITS} +: {field.words * WORD_BITS}] = "
                     + (f"{{{pad}'b0, {value}}};" if pad else f"{value};"))
    shown = dict.fromkeys(field.port for field in leaving)
    connections = [".clk(clk)", *(f".{port}({port})" for port in (*shown, "probes"))]
    for port in dict.fromkeys(field.port for field in entering if field.port != WAKE):
        parts = sorted((field for field in entering if field.port == port), key=lambda field: -field.offset)
        joined = ", ".join(f"held[{field.word * WORD_BITS} +: {field.width}]" for field in parts)
        connections.append(f".{port}({{{joined}}})")
    wake, asked = (next(field.word for field in entering if field.port == name) for name in (WAKE, ASKED))
    lines += [
        "  simulation_top top(" + ",\n    ".join(connections) + ");",
        f"  assign {WAKE} = held[{wake * WORD_BITS}];",
        "  always @(posedge clk) begin",
        "    if (answered) memnic_probe(probes);",
        f"    answered <= held[{asked * WORD_BITS}];",
        "    memnic_tick(shown, next);",
        "    held <= next;",
        "  end",
        "endmodule",
        "",
    ]
    return "\n".join(lines)


def probes_header(config: NicConfig) -> str:
    """C++ of what the probes mean, as JSON, and how many words they take."""
    document = probes_document(config)
    return "\n".join([
        "// Written by rtl/wrapper.py: the names of what can be asked about a running device; see rtl/probes.py.",
        "#pragma once", "", "namespace memnic {", "",
        f"constexpr unsigned PROBE_WORDS = {-(-probes_width(document) // WORD_BITS)};",
        f'constexpr char PROBE_NAMES[] = R"json({json.dumps(document)})json";', "",
        "}  // namespace memnic", ""])


def pins_header(config: NicConfig) -> str:
    """C++ of `struct Outputs`, `struct Inputs`, and the constants that depend on the configuration."""
    lines = [
        "// Written by rtl/wrapper.py: what crosses the wrapper of one configuration.",
        "#pragma once", "#include <cstdint>", "", "namespace memnic {", "",
        f"constexpr unsigned HOST_BYTES = {config.host_bytes}, MAC_BYTES = {config.mac_bytes};",
        f"constexpr uint64_t CLOCK_HZ = {config.clock_hz};",
        f"constexpr unsigned VECTORS = {config.vectors}, BURST_BYTES = {BURST_BYTES};",
        f"constexpr uint32_t DOORBELL_BASE = {DOORBELL_BASE:#x};",
        f"#define MEMNIC_CONTROL_PORT {int(bool(config.flows))}",
        "// Bits of Outputs::flags: valid of streams that leave, ready of streams that enter, marks.",
    ]
    lines += [f"constexpr uint32_t {name.upper()} = 1u << {bit};" for bit, name in enumerate(flag_names(config))]
    lines.append("// Bits of Inputs::ready.")
    lines += [f"constexpr uint32_t {name.upper()}_TAKEN = 1u << {bit};" for bit, name in enumerate(outputs(config))]
    lines += ["", "#pragma pack(push, 4)",
              *_struct("Outputs", output_fields(config)), "", *_struct("Inputs", input_fields(config)),
              "#pragma pack(pop)", "",
              f"static_assert(sizeof(Outputs) == {4 * words(output_fields(config))});",
              f"static_assert(sizeof(Inputs) == {4 * words(input_fields(config))});", "",
              "}  // namespace memnic", ""]
    return "\n".join(lines)


def _struct(name: str, fields: list[Field]) -> list[str]:
    lines = [f"struct {name} {{"]
    for port in dict.fromkeys(field.port for field in fields):
        parts = [field for field in fields if field.port == port]
        if len(parts) == 1 and parts[0].name == port:
            lines.append(f"  {_declared(parts[0])}")
        else:
            lines += ["  struct {", *(f"    {_declared(part)}" for part in parts), f"  }} {port};"]
    return [*lines, "};"]


def _declared(field: Field) -> str:
    """Fields of bytes are arrays of bytes, others unsigned integers."""
    if field.name == "data" and field.width > WORD_BITS:
        return f"alignas(4) uint8_t {field.name}[{field.width // 8}];"
    return f"uint{64 if field.words == 2 else 32}_t {field.name};"
