"""What a design computes, as expressions of unsigned words: read from Amaranth's own statements.

`read(component)` elaborates a component and gives a `Netlist`: registers with the statements that write them, memories,
and the expressions of the outputs. Combinational signals dissolve: an expression's leaves are registers, inputs, words
of memories and constants. Signals are cut into pieces of at most 64 bits, where their fields end.

Expressions are shared: two equal ones are one object, so that a writer can count how often one is used.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

# The only place that reads Amaranth's private modules; its version is locked.
from amaranth.hdl import Const, Signal, Value
from amaranth.hdl._ast import (
    Assign,
    Concat,
    Format,
    Operator,
    Part,
    Print,
    Property,
    SignalDict,
    Slice,
    Switch,
    SwitchValue,
)
from amaranth.hdl._ir import Fragment, Instance, IOBufferInstance, PortDirection, RequirePosedge
from amaranth.hdl._mem import MemoryInstance
from amaranth.lib import wiring

from rtl.expressions import LANES, LIMB_BITS, Expressions, Node


class Unsupported(Exception):
    """A construct of Amaranth that this reader does not know."""


# ---- what a netlist holds -------------------------------------------------------------------------------------------

class Piece:
    """A part of a signal: bits low .. low+width-1 of it, a register or an input. `gate` is the gate of the statements
    that write it."""

    __slots__ = ("gate", "init", "kind", "low", "reset", "signal", "width")

    def __init__(self, signal, low, width):
        self.signal, self.low, self.width = signal, low, width
        self.init = signal.init >> low & ((1 << width) - 1)
        self.kind, self.gate, self.reset = None, None, not signal.reset_less

    def __repr__(self):
        return f"{self.signal.name}[{self.low}+:{self.width}]"


@dataclass(eq=False)
class Column:
    """Bits low .. low+width-1 of each of a memory's words."""

    memory: "Memory"
    low: int
    width: int


@dataclass(eq=False)
class Memory:
    name: str
    depth: int
    words: list  # initial values
    columns: list = field(default_factory=list)
    gates: set = field(default_factory=set)  # of its write ports


@dataclass(eq=False)
class Gate:
    """A component with a port `active`, and all inside it that have none of their own: statements that need no
    execution in a cycle in which `active` is 0."""

    path: tuple
    active: Node | None = None  # None: always
    statements: list = field(default_factory=list)


@dataclass(eq=False)
class Set:
    """Bits low .. of a piece become `value`."""

    piece: Piece
    low: int
    value: Node


@dataclass(eq=False)
class Write:
    """A memory's word becomes `value`."""

    column: Column
    address: Node
    low: int
    value: Node


@dataclass(eq=False)
class If:
    """The first branch, (condition, statements), whose condition holds; a condition of None always holds."""

    branches: list


@dataclass(eq=False)
class Case:
    """The branch, (values, statements), that lists the value of `test`; None lists all others."""

    test: Node
    branches: list


@dataclass(eq=False)
class Netlist:
    make: Expressions
    inputs: list  # (name, Piece)
    outputs: list  # (name, width, Node)
    registers: list  # Piece
    memories: list
    gates: list
    reset: Node | None
    names: dict  # id of a signal -> (path, name) at the highest place where it stands
    visible: list  # (path, name, signal) wherever a signal stands
    clock: str | None
    clock_piece: Piece | None
    value_of: Callable[[Signal], Node]


# ---- reading --------------------------------------------------------------------------------------------------------

def ports_of(component):
    """Name -> (value, direction), as Amaranth's own back ends name them."""
    ports = {}
    for path, member, value in component.signature.flatten(component):
        way = PortDirection.Input if member.flow == wiring.In else PortDirection.Output
        ports["__".join(map(str, path))] = (Value.cast(value), way)
    return ports


def read(component, name="top", *, keep_all=False) -> Netlist:
    """The netlist of a component with a signature. It may use one clock, rising, with a synchronous reset. Registers
    that no output depends on are left out, unless `keep_all`."""
    fragment = Fragment.get(component, None)
    design = fragment.prepare(ports=ports_of(component), hierarchy=(name,))
    return _Reader(design, keep_all).netlist


class _Reader:
    def __init__(self, design, keep_all):
        self.design, self.make, self.keep_all = design, Expressions(), keep_all
        self._drivers = SignalDict()  # signal -> [(low, high, fragment, domain)]
        self._cuts = SignalDict()  # signal -> set of bit numbers
        self._pieces = SignalDict()  # signal -> [Piece]
        self._values, self._comb, self._busy = {}, {}, set()
        self._keep = []  # values whose ids are keys
        self._lhs_of = {}
        self._fragments = []  # (fragment, path, gate), parents first
        self._memory_of = {}
        self._walk(design.fragment, (), None)
        self.domain = self._find_domain()
        self._inputs = SignalDict()
        for port, signal, way in design.ports:
            if way is PortDirection.Input:
                self._inputs[signal] = port
            elif way is not PortDirection.Output:
                raise Unsupported(f"port {port} must be an input or an output")
        self._find_drivers()
        self._find_cuts()
        self.netlist = self._read()

    # -- hierarchy

    def _walk(self, fragment, path, gate):
        if isinstance(fragment, (Instance, IOBufferInstance)):
            raise Unsupported(f"{'.'.join(path)} is an instance of something that is not in Amaranth")
        if isinstance(fragment, RequirePosedge):
            return
        for origin in fragment.origins or ():
            active = getattr(origin, "active", None)
            if isinstance(active, Signal) and len(active) == 1:
                gate = Gate(path)
                gate.signal = active
        if gate is None:
            gate = Gate(path)
            gate.signal = None
        self._fragments.append((fragment, path, gate))
        for sub, _name, _where in fragment.subfragments:
            self._walk(sub, (*path, self.design.fragments[sub].name[-1]), gate)

    def _find_domain(self):
        used = set()
        for fragment, _path, _gate in self._fragments:
            used |= {fragment.domains[name] for name in fragment.statements if name != "comb"}
            if isinstance(fragment, MemoryInstance):
                used |= {fragment.domains[port._domain] for port in (*fragment._read_ports, *fragment._write_ports)
                         if port._domain != "comb"}
        if len(used) > 1:
            raise Unsupported(f"clock domains {', '.join(sorted(d.name for d in used))}: there must be one")
        if not used:
            return None
        domain = used.pop()
        if domain.clk_edge != "pos" or domain.async_reset:
            raise Unsupported(f"clock domain {domain.name} must have a rising edge and a synchronous reset")
        return domain

    # -- who drives what

    def _find_drivers(self):
        def note(value, low, high, fragment, domain):
            """Bits low .. high of `value` are driven."""
            if isinstance(value, Signal):
                self._drivers.setdefault(value, []).append((low, min(high, len(value)), fragment, domain))
            elif isinstance(value, Slice):
                note(value.value, value.start + low, value.start + min(high, len(value)), fragment, domain)
            elif isinstance(value, Concat):
                at = 0
                for part in value.parts:
                    if at < high and at + len(part) > low:
                        note(part, max(low - at, 0), min(high - at, len(part)), fragment, domain)
                    at += len(part)
            elif isinstance(value, Part):
                note(value.value, 0, len(value.value), fragment, domain)
            elif isinstance(value, SwitchValue):
                for _patterns, case in value.cases:
                    note(case, low, high, fragment, domain)
            elif isinstance(value, Operator) and value.operator in ("u", "s"):
                note(value.operands[0], low, high, fragment, domain)
            else:
                raise Unsupported(f"assignment to {value!r}")

        def visit(statements, fragment, domain):
            for statement in statements:
                if isinstance(statement, Assign):
                    note(statement.lhs, 0, len(statement.lhs), fragment, domain)
                elif isinstance(statement, Switch):
                    for _patterns, inner, _where in statement.cases:
                        visit(inner, fragment, domain)
                elif not isinstance(statement, (Property, Print)):
                    raise Unsupported(f"statement {statement!r}")

        for fragment, _path, _gate in self._fragments:
            for domain, statements in fragment.statements.items():
                visit(statements, fragment, domain)
            if isinstance(fragment, MemoryInstance):
                for port in fragment._read_ports:
                    note(port._data, 0, len(port._data), fragment, port._domain)

    # -- where signals are cut

    def _find_cuts(self):
        """Fields of layouts, what is assigned apart, and the same places of all signals that these are copied to."""
        signals, moves, seen = SignalDict(), [], SignalDict()

        def fields(form, found):
            if isinstance(form, Format.Struct):
                for inner in form._fields.values():
                    fields(inner, found)
            for chunk in getattr(form, "_chunks", ()):
                if not isinstance(chunk, str):
                    where = _static(chunk[0])
                    if where is not None:
                        found |= {where[1], where[2]}

        def meet(value):
            if isinstance(value, Signal) and value not in seen:
                seen[value] = None
                found = set()
                fields(value._format, found)
                signals[value] = found
            if isinstance(value, Slice):
                where = _static(value)
                if where is not None and where[0] in self._inputs:
                    meet(where[0])
                    signals[where[0]] |= {where[1], where[2]}
            for inner in _inside(value):
                meet(inner)

        def assigned(value):
            if isinstance(value, Slice):
                where = _static(value)
                if where is not None:
                    signals[where[0]] |= {where[1], where[2]}
                    return
            for inner in _inside(value):
                assigned(inner)

        def visit(statements):
            for statement in statements:
                if isinstance(statement, Assign):
                    meet(statement.lhs)
                    meet(statement.rhs)
                    assigned(statement.lhs)
                    move(statement.lhs, 0, len(statement.lhs), statement.rhs, 0)
                elif isinstance(statement, Switch):
                    meet(statement.test)
                    for _patterns, inner, _where in statement.cases:
                        visit(inner)

        def move(lhs, low, high, rhs, rhs_low):
            """Bits low .. high of `lhs` take those of `rhs` from `rhs_low` on."""
            for target, at, count, offset in _structure(lhs, low, high):
                for source, start, length, where in _structure(rhs, rhs_low + offset, rhs_low + offset + count):
                    if length > 8:
                        moves.append((target, at + where, source, start, length))

        memories = []
        for fragment, _path, _gate in self._fragments:
            for statements in fragment.statements.values():
                visit(statements)
            if isinstance(fragment, MemoryInstance):
                width = len(Value.cast(fragment._data[0])) if fragment._data.depth else 0
                column = Signal(width, name="column")
                signals[column] = set()
                memories.append((fragment, column))
                for port in (*fragment._read_ports, *fragment._write_ports):
                    for value in (port._addr, port._en, port._data):
                        meet(value)
                    for source, start, length, where in _structure(port._data, 0, len(port._data)):
                        moves.append((column, where, source, start, length))
        for signal, ranges in self._drivers.items():
            if signal not in signals:
                meet(signal)
            for low, high, _fragment, _domain in ranges:
                signals[signal] |= {low, high}
        for _port, signal, _way in self.design.ports:
            if signal not in signals:
                meet(signal)

        whole = SignalDict()  # stretches that no copy cuts: a number, an array of bits
        for signal, found in signals.items():
            signals[signal] = found = _without_lanes(found, len(signal))
            edges = sorted({0, len(signal)} | found)
            laid_out = isinstance(signal._format, Format.Struct)
            whole[signal] = {c for low, high in pairwise(edges) if laid_out or high - low <= LIMB_BITS
                             for c in range(low + 1, high)}
        around = {}
        for index, (target, _at, source, _start, _length) in enumerate(moves):
            for signal in (target, source):
                around.setdefault(id(signal), []).append(index)
        waiting = set(range(len(moves)))
        while waiting:
            index = waiting.pop()
            target, at, source, start, length = moves[index]
            there = {c - at for c in signals[target] if at < c < at + length}
            here = {c - start for c in signals[source] if start < c < start + length}
            for signal, new, offset in ((target, here - there, at), (source, there - here, start)):
                new = {c + offset for c in new} - whole[signal]
                if new:
                    signals[signal] |= new
                    waiting.update(around[id(signal)])
        # What must be apart because two drive it, must be; and no piece is wider than a limb.
        for signal, found in signals.items():
            edges = sorted({0, len(signal)} | {c for c in found if 0 < c < len(signal)})
            for low, high in pairwise(edges):
                found |= set(range(low, high, LIMB_BITS))
            self._cuts[signal] = found
        for fragment, column in memories:
            self._memory_of[fragment] = self._cuts[column]

    def _edges(self, signal):
        return sorted({0, len(signal)} | {c for c in self._cuts.get(signal, ()) if 0 < c < len(signal)})

    def pieces(self, signal):
        found = self._pieces.get(signal)
        if found is None:
            edges = self._edges(signal) if len(signal) else []
            found = [Piece(signal, low, high - low) for low, high in pairwise(edges)]
            self._pieces[signal] = found
            for piece in found:
                drivers = {(id(f), d): (f, d) for low, high, f, d in self._drivers.get(signal, ())
                           if low < piece.low + piece.width and high > piece.low}
                if len(drivers) > 1:
                    raise Unsupported(f"{piece} is driven from {len(drivers)} places")
                if drivers:
                    fragment, domain = next(iter(drivers.values()))
                    piece.kind = "comb" if domain == "comb" else "register"
                    piece.gate = fragment
                else:
                    piece.kind = "input" if signal in self._inputs else "constant"
        return found

    # -- values

    def signal(self, signal):
        """A signal's value."""
        return self.make.cat(*(self._piece(piece) for piece in self.pieces(signal)))

    def _piece(self, piece):
        if piece.kind in ("register", "input"):
            return self.make.leaf(piece)
        if piece.kind == "constant":
            return self.make.const(piece.init, piece.width)
        found = self._comb.get(piece)
        if found is None:
            if piece in self._busy:
                raise Unsupported(f"{piece} depends on itself without a register")
            self._busy.add(piece)
            fragment = piece.gate
            if isinstance(fragment, MemoryInstance):
                found = self._read_word(fragment, piece)
            else:
                found = self._fold(fragment.statements["comb"], piece, self.make.const(piece.init, piece.width))
            self._busy.discard(piece)
            self._comb[piece] = found
        return found

    def _targets(self, statement):
        found = self._lhs_of.get(id(statement))
        if found is None:
            found = self._lhs_of[id(statement)] = statement._lhs_signals()
        return found

    def _fold(self, statements, piece, value):
        """What a piece is after combinational statements."""
        make = self.make
        for statement in statements:
            if isinstance(statement, (Property, Print)) or piece.signal not in self._targets(statement):
                continue
            if isinstance(statement, Assign):
                for condition, low, new in self._assignments(statement, piece):
                    changed = make.cat(make.bits(value, 0, low), new, make.bits(value, low + new.width, value.width))
                    value = make.mux(condition, changed, value)
            else:
                cases = [(patterns, self._fold(inner, piece, value)) for patterns, inner, _w in statement.cases]
                value = self._choose(self.value(statement.test), cases, value)
        return value

    def _choose(self, test, cases, default):
        plain = []
        for patterns, node in cases:
            if patterns is None:
                default = node
                break
            plain.append((patterns, node))
        return self.make.choose(test, plain, default)

    def _assignments(self, statement, piece=None):
        """(condition, bit within the piece, value) for a piece, or (condition, piece, bit, value) for all."""
        one = self.make.const(1, 1)
        for condition, signal, low, width, at in self._places(statement.lhs, 0, len(statement.lhs), one):
            if piece is not None and signal is not piece.signal:
                continue
            for target in ((piece,) if piece is not None else self.pieces(signal)):
                start, end = max(low, target.low), min(low + width, target.low + target.width)
                if start < end:
                    new = self.bits(statement.rhs, at + start - low, at + end - low)
                    place = (condition, start - target.low, new)
                    yield place if piece is not None else (condition, target, start - target.low, new)

    def _places(self, value, low, high, condition):
        """Where bits low .. high of what is assigned to lie: (condition, signal, its bit, count, bit of the value)."""
        make = self.make
        high = min(high, len(value))
        if low >= high or (condition.op == "const" and not condition.value):
            return
        if isinstance(value, Signal):
            yield condition, value, low, high - low, low
        elif isinstance(value, Slice):
            start = value.start
            for c, signal, at, count, bit in self._places(value.value, start + low, start + high, condition):
                yield c, signal, at, count, bit - start
        elif isinstance(value, Operator):
            yield from self._places(value.operands[0], low, high, condition)
        elif isinstance(value, Concat):
            offset = 0
            for part in value.parts:
                start = max(low - offset, 0)
                for c, signal, at, count, bit in self._places(part, start, high - offset, condition):
                    yield c, signal, at, count, bit + offset
                offset += len(part)
        elif isinstance(value, SwitchValue):
            test, others = self.value(value.test), make.const(1, 1)
            for patterns, case in value.cases:
                here = make.const(1, 1)
                if patterns is not None:
                    here = make.const(0, 1)
                    for pattern in patterns:
                        here = make.or_(here, make.matches(test, pattern))
                exact = patterns is not None and not any("-" in p for p in patterns)
                chosen = here if exact else make.and_(here, others)
                yield from self._places(case, low, high, make.and_(condition, chosen))
                others = make.and_(others, make.not_(here))
        elif isinstance(value, Part):
            offset = self.value(value.offset)
            for step in range(min(1 << offset.width, -(-len(value.value) // value.stride))):
                start = step * value.stride
                here = make.and_(condition, make.equal(offset, make.const(step, offset.width)))
                for c, signal, at, count, bit in self._places(value.value, start + low, start + high, here):
                    yield c, signal, at, count, bit - start
        else:
            raise Unsupported(f"assignment to {value!r}")

    def value(self, value):
        return self.bits(value, 0, len(value))

    def bits(self, value, low, high):
        """Bits low .. high-1 of a value that is extended as its sign says."""
        key = (id(value), low, high)
        found = self._values.get(key)
        if found is None:
            self._keep.append(value)
            shape = value.shape()
            if high > shape.width:
                make, width = self.make, shape.width
                if low >= width:
                    sign = self.bits(value, width - 1, width) if shape.signed and width else make.const(0, 1)
                    found = make.replicate(sign, high - low)
                else:
                    known = self.bits(value, low, width)
                    found = make.extend(known, high - low, shape.signed)
            else:
                found = self._bits(value, low, high)
            self._values[key] = found
        return found

    def _bits(self, value, low, high):
        make = self.make
        if low >= high:
            return make.const(0, 0)
        if isinstance(value, Const):
            return make.const(value.value >> low, high - low)
        if isinstance(value, Signal):
            found, at = [], 0
            for piece in self.pieces(value):
                at = piece.low
                if at < high and at + piece.width > low:
                    found.append(make.bits(self._piece(piece), max(low - at, 0), min(high - at, piece.width)))
            return make.cat(*found)
        if isinstance(value, Slice):
            return self.bits(value.value, value.start + low, value.start + high)
        if isinstance(value, Concat):
            found, at = [], 0
            for part in value.parts:
                if at < high and at + len(part) > low:
                    found.append(self.bits(part, max(low - at, 0), min(high - at, len(part))))
                at += len(part)
            return make.cat(*found)
        if isinstance(value, SwitchValue):
            cases = [(patterns, self.bits(case, low, high)) for patterns, case in value.cases]
            return self._choose(self.value(value.test), cases, make.const(0, high - low))
        if isinstance(value, Part):
            return self._part(value, low, high)
        if isinstance(value, Operator):
            return self._operator(value, low, high)
        raise Unsupported(f"value {value!r}")

    def _part(self, value, low, high):
        make, offset = self.make, self.value(value.offset)
        inner, stride = value.value, value.stride
        if 1 << offset.width <= 64 and stride >= 8:
            nodes = [self.bits(inner, step * stride + low, step * stride + high) for step in range(1 << offset.width)]
            cases = [((format(step, f"0{offset.width}b"),), node) for step, node in enumerate(nodes)]
            return make.choose(offset, cases, make.const(0, high - low))
        reach = ((1 << offset.width) - 1) * stride + high
        whole = self.bits(inner, 0, min(reach, max(len(inner), 1)))
        amount = offset
        if stride != 1:
            width = offset.width + stride.bit_length()
            amount = make.arithmetic("mul", make.extend(offset, width), make.const(stride, width))
        signed = inner.shape().signed
        wide = make.extend(whole, max(whole.width, high), signed)
        return make.bits(make.shift("signed" if signed else "right", wide, amount), low, high)

    def _operator(self, value, low, high):
        make, operator, operands = self.make, value.operator, value.operands
        a = operands[0]
        if len(operands) == 1:
            if operator == "~":
                return make.not_(self.bits(a, low, high))
            if operator in ("u", "s", "+"):
                return self.bits(a, low, high)
            if operator == "-":
                return make.bits(make.arithmetic("sub", make.const(0, high), self.bits(a, 0, high)), low, high)
            if operator in ("b", "r|"):
                return make.reduce("or", self.value(a))
            if operator in ("r&", "r^"):
                return make.reduce("and" if operator == "r&" else "xor", self.value(a))
        b = operands[1] if len(operands) == 2 else None
        if operator in ("&", "|", "^"):
            name = {"&": "and", "|": "or", "^": "xor"}[operator]
            return make.bitwise(name, self.bits(a, low, high), self.bits(b, low, high))
        if operator in ("+", "-", "*"):
            name = {"+": "add", "-": "sub", "*": "mul"}[operator]
            return make.bits(make.arithmetic(name, self.bits(a, 0, high), self.bits(b, 0, high)), low, high)
        if operator in ("==", "!=", "<", "<=", ">", ">="):
            signed = a.shape().signed or b.shape().signed
            width = max(len(v) + (signed and not v.shape().signed) for v in (a, b))
            left, right = self.bits(a, 0, width), self.bits(b, 0, width)
            if operator in ("==", "!="):
                same = make.equal(left, right)
                return same if operator == "==" else make.not_(same)
            if operator in (">", ">="):
                left, right = right, left
            return make.less(left, right, operator in ("<=", ">="), signed)
        if operator == "<<":
            return make.bits(make.shift("left", self.bits(a, 0, high), self.value(b)), low, high)
        if operator == ">>":
            way = "signed" if a.shape().signed else "right"
            return make.bits(make.shift(way, self.value(a), self.value(b)), low, high)
        if operator in ("//", "%") and not (a.shape().signed or b.shape().signed):
            width = max(len(a), len(b))
            name = "div" if operator == "//" else "mod"
            return make.bits(make.divide(name, self.bits(a, 0, width), self.bits(b, 0, width)), low, high)
        raise Unsupported(f"operator {operator} of {', '.join(repr(o.shape()) for o in operands)}")

    # -- statements at the clock

    def _statements(self, statements):
        """Statements of a clock domain, with adjoining assignments to parts of one piece joined."""
        found, parts = [], {}  # parts: piece -> list of Set that nothing has overwritten yet

        def settle(piece):
            sets = parts.pop(piece, None)
            if sets is None:
                return
            sets.sort(key=lambda s: s.low)
            at = 0
            for part in sets:
                if part.low != at:
                    break
                at += part.value.width
            if at == piece.width and len(sets) > 1:
                sets = [Set(piece, 0, self.make.cat(*(part.value for part in sets)))]
            found.extend(sets)

        def assign(piece, low, value):
            before = parts.setdefault(piece, [])
            if any(part.low < low + value.width and low < part.low + part.value.width for part in before):
                if any(part.low != low or part.value.width != value.width for part in before
                       if part.low < low + value.width and low < part.low + part.value.width):
                    settle(piece)
                    before = parts.setdefault(piece, [])
                else:
                    before[:] = [part for part in before if part.low != low]
            before.append(Set(piece, low, value))

        for statement in statements:
            if isinstance(statement, Assign):
                for condition, piece, low, value in self._assignments(statement):
                    if condition.op == "const":
                        assign(piece, low, value)
                    else:
                        settle(piece)
                        found.append(If([(condition, [Set(piece, low, value)])]))
            elif isinstance(statement, Switch):
                for signal in self._targets(statement):
                    for piece in self.pieces(signal):
                        settle(piece)
                found.extend(self._switch(statement))
        for piece in list(parts):
            settle(piece)
        return found

    def _join_lanes(self, statements):
        """Lanes of a piece, each written under a condition of its own, as one assignment; if nothing else writes it."""
        counts = {}
        for piece in (item for item in written(statements) if isinstance(item, Piece)):
            counts[piece] = counts.get(piece, 0) + 1

        def visit(statements):
            found, at = [], 0
            while at < len(statements):
                lanes = []
                while at + len(lanes) < len(statements):
                    lane = statements[at + len(lanes)]
                    if not (isinstance(lane, If) and len(lane.branches) == 1 and len(lane.branches[0][1]) == 1):
                        break
                    inner = lane.branches[0][1][0]
                    if not isinstance(inner, Set) or inner.low != sum(s.value.width for _c, s in lanes):
                        break
                    if lanes and inner.piece is not lanes[0][1].piece:
                        break
                    lanes.append((lane.branches[0][0], inner))
                if len(lanes) >= LANES:
                    piece = lanes[0][1].piece
                    if counts[piece] == len(lanes) and sum(s.value.width for _c, s in lanes) == piece.width:
                        old = self.make.leaf(piece)
                        parts = [self.make.mux(c, s.value, self.make.bits(old, s.low, s.low + s.value.width))
                                 for c, s in lanes]
                        found.append(Set(piece, 0, self.make.cat(*parts)))
                        at += len(lanes)
                        continue
                statement = statements[at]
                if isinstance(statement, (If, Case)):
                    statement.branches = [(head, visit(inner)) for head, inner in statement.branches]
                found.append(statement)
                at += 1
            return found

        return visit(statements)

    def _switch(self, statement):
        test = self.value(statement.test)
        cases = [(patterns, self._statements(inner)) for patterns, inner, _where in statement.cases]
        plain = [p for patterns, _inner in cases if patterns is not None for p in patterns]
        if test.op != "const" and test.width > 1 and len(plain) > 2 and not any("-" in p for p in plain):
            branches, known = [], set()
            for patterns, inner in cases:
                values = None if patterns is None else [v for v in (int(p, 2) for p in patterns) if v not in known]
                known |= set(values or ())
                if values is None or values:
                    branches.append((values, inner))
                if values is None:
                    break
            return [Case(test, branches)]
        branches = []
        for patterns, inner in cases:
            condition = None
            if patterns is not None:
                condition = self.make.const(0, 1)
                for pattern in patterns:
                    condition = self.make.or_(condition, self.make.matches(test, pattern))
                if condition.op == "const":
                    if not condition.value:
                        continue
                    condition = None
            branches.append((condition, inner))
            if condition is None:
                break
        while branches and not branches[-1][1]:
            branches.pop()
        if branches and branches[0][0] is None:
            return branches[0][1]
        return [If(branches)] if branches else []

    # -- memories

    def _columns(self, fragment):
        found = self._memory_of[fragment]
        if not isinstance(found, Memory):
            data = fragment._data
            words = [Const.cast(w).value if not isinstance(w, int) else w for w in data.init._raw]
            width = len(Value.cast(data[0]))
            memory = Memory(data.name, data.depth, [w & ((1 << width) - 1) for w in words])
            edges = sorted({0, width} | {c for c in found if 0 < c < width})
            memory.columns = [Column(memory, low, high - low) for low, high in pairwise(edges)]
            found = self._memory_of[fragment] = memory
        return found

    def _word(self, memory, address, low, high):
        """Bits of a word; 0 beyond the end."""
        make, found = self.make, []
        for column in memory.columns:
            if column.low < high and column.low + column.width > low:
                word = make.word(column, address)
                if memory.depth < 1 << address.width:
                    inside = make.less(address, make.const(memory.depth, address.width), False, False)
                    word = make.mux(inside, word, make.const(0, column.width))
                found.append(make.bits(word, max(low - column.low, 0), min(high - column.low, column.width)))
        return make.cat(*found)

    def _data_bits(self, data, piece):
        """Which bits of a read port's data a piece is."""
        for _condition, signal, low, width, at in self._places(data, 0, len(data), self.make.const(1, 1)):
            if signal is piece.signal and low <= piece.low and piece.low + piece.width <= low + width:
                return at + piece.low - low
        return None

    def _read_word(self, fragment, piece):
        for port in fragment._read_ports:
            if port._domain == "comb":
                at = self._data_bits(port._data, piece)
                if at is not None:
                    return self._word(self._columns(fragment), self.value(port._addr), at, at + piece.width)
        raise Unsupported(f"{piece} is no data of a memory")

    def _enable(self, port, low, high):
        """(first bit, end, enable) of each part of a write port's word within low .. high."""
        grain = port._granularity
        for index in range(low // grain, -(-high // grain)):
            yield max(low, index * grain), min(high, index * grain + grain), self.bits(port._en, index, index + 1)

    def _memory_statements(self, fragment, gate):
        """Reads at the clock, then writes, so that a read sees the old word."""
        make, memory = self.make, self._columns(fragment)
        reads, writes = [], []
        for port in fragment._read_ports:
            if port._domain == "comb":
                continue
            address, sets = self.value(port._addr), []
            for signal, at, count, offset in _structure(port._data, 0, len(port._data)):
                for piece in self.pieces(signal):
                    if not at <= piece.low < at + count:
                        continue
                    piece.reset = False
                    low = offset + piece.low - at
                    word = self._word(memory, address, low, low + piece.width)
                    for index in port._transparent_for:
                        other = fragment._write_ports[index]
                        hit = make.equal(address, self.value(other._addr))
                        for start, end, enable in self._enable(other, low, low + piece.width):
                            new = make.cat(make.bits(word, 0, start - low), self.bits(other._data, start, end),
                                           make.bits(word, end - low, piece.width))
                            word = make.mux(make.and_(hit, enable), new, word)
                    sets.append(Set(piece, 0, word))
            reads.extend(self._when(self.value(port._en), sets))
        for port in fragment._write_ports:
            memory.gates.add(gate)
            address = self.value(port._addr)
            inside = make.less(address, make.const(memory.depth, address.width), False, False) \
                if memory.depth < 1 << address.width else make.const(1, 1)
            parts = [(enable, column, start - column.low, self.bits(port._data, start, end))
                     for column in memory.columns
                     for start, end, enable in self._enable(port, column.low, column.low + column.width)]
            chosen = {enable.args[0] if enable.op == "mux" else None for enable, _column, _low, _value in parts}
            if len({enable for enable, _column, _low, _value in parts}) > 1 and len(chosen) == 1 and None not in chosen:
                # two share the port
                who = chosen.pop()
                branches = [(who if given else None, self._writes([
                    (make.given(enable, who, given), column, low, make.given(value, who, given))
                    for enable, column, low, value in parts], make.given(address, who, given))) for given in (1, 0)]
                writes.extend(self._when(inside, [If(branches)]))
            else:
                writes.extend(self._when(inside, self._writes(parts, address)))
        return reads + writes

    def _writes(self, parts, address):
        """Statements that write parts of a word: (enable, column, bit, value); those that always come together as
        one."""
        by_enable = {}
        for enable, column, low, value in parts:
            found = by_enable.setdefault(enable, [])
            last = found[-1] if found else None
            if last is not None and last.column is column and last.low + last.value.width == low:
                last.value = self.make.cat(last.value, value)
            else:
                found.append(Write(column, address, low, value))
        return [statement for enable, found in by_enable.items() for statement in self._when(enable, found)]

    @staticmethod
    def _when(condition, statements):
        if condition.op == "const":
            return statements if condition.value else []
        return [If([(condition, statements)])] if statements else []

    # -- all of it

    @staticmethod
    def _drop_unread(gates, roots):
        """Without the statements that nothing depends on; what is left, (registers, memory columns)."""
        live, seen = set(), set()

        def need(node):
            stack = [node]
            while stack:
                node = stack.pop()
                if node in seen:
                    continue
                seen.add(node)
                if node.op in ("leaf", "word"):
                    live.add(node.value)
                stack.extend(node.args)

        def mark(statements):
            """Whether any of them matters."""
            matters = False
            for statement in statements:
                if isinstance(statement, (Set, Write)):
                    if (statement.piece if isinstance(statement, Set) else statement.column) in live:
                        need(statement.value)
                        if isinstance(statement, Write):
                            need(statement.address)
                        matters = True
                elif sum(mark(inner) for _head, inner in statement.branches):  # all of them, not the first
                    for head in ([c for c, _i in statement.branches if c is not None]
                                 if isinstance(statement, If) else [statement.test]):
                        need(head)
                    matters = True
            return matters

        def keep(statements):
            kept = []
            for statement in statements:
                if isinstance(statement, (Set, Write)):
                    if (statement.piece if isinstance(statement, Set) else statement.column) in live:
                        kept.append(statement)
                    continue
                branches = [(head, keep(inner)) for head, inner in statement.branches]
                # the last branch of a Case may go, unless it is the default
                droppable = isinstance(statement, If) or all(head is not None for head, _inner in branches)
                while droppable and branches and not branches[-1][1]:
                    branches.pop()
                if any(inner for _head, inner in branches):
                    statement.branches = branches
                    kept.append(statement)
            return kept

        for root in roots:
            need(root)
        before = -1
        while before != len(seen):
            before = len(seen)
            for gate in gates:
                mark(gate.statements)
        for gate in gates:
            gate.statements = keep(gate.statements)
        return live

    def _read(self):
        make, gates = self.make, []
        memories = []
        for fragment, path, gate in self._fragments:
            statements = []
            for domain, found in fragment.statements.items():
                if domain != "comb":
                    statements += self._statements(found)
            if isinstance(fragment, MemoryInstance):
                memory = self._columns(fragment)
                memory.name = "_".join((*path, memory.name))
                memories.append(memory)
                statements += self._memory_statements(fragment, gate)
            if statements:
                if gate not in gates:
                    gates.append(gate)
                gate.statements += statements
        for gate in gates:
            gate.active = None if gate.signal is None else self.signal(gate.signal)
        for gate in gates:
            gate.statements = self._join_lanes(gate.statements)
        gate_of = {id(fragment): gate for fragment, _path, gate in self._fragments}
        outputs = [(name, len(signal), self.signal(signal)) for name, signal, way in self.design.ports
                   if way is PortDirection.Output]
        clock = self.domain.clk if self.domain is not None else None
        inputs = [(name, piece) for name, signal, way in self.design.ports
                  if way is PortDirection.Input and signal is not clock for piece in self.pieces(signal)]
        registers = []
        for signal in list(self._pieces):
            for piece in self.pieces(signal):
                if piece.kind == "register":
                    registers.append(piece)
                    piece.gate = gate_of[id(piece.gate)]
        reset = None
        if self.domain is not None and self.domain.rst is not None:
            reset = self.signal(self.domain.rst)
        if not self.keep_all:
            live = self._drop_unread(gates, [node for _n, _w, node in outputs]
                                     + [node for node in (reset, *(g.active for g in gates)) if node is not None])
            gates = [gate for gate in gates if gate.statements]
            registers = [piece for piece in registers if piece in live]
            for memory in memories:
                memory.columns = [column for column in memory.columns if column in live]
        names, visible = {}, []
        for fragment, path, _gate in self._fragments:
            for signal, name in self.design.fragments[fragment].signal_names.items():
                names.setdefault(id(signal), (path, name))
                visible.append((path, name, signal))
        clock_name = next((name for name, signal, _way in self.design.ports if signal is clock), None)
        clock_piece = None if clock is None else self.pieces(clock)[0]
        return Netlist(make, inputs, outputs, registers, memories, gates, reset, names, visible, clock_name,
                       clock_piece, self.signal)


def written(statements):
    """What statements write: pieces and columns, each time."""
    for statement in statements:
        if isinstance(statement, Set):
            yield statement.piece
        elif isinstance(statement, Write):
            yield statement.column
        else:
            for _head, inner in statement.branches:
                yield from written(inner)


def _inside(value):
    """The values that a value is made of."""
    if isinstance(value, Slice):
        return (value.value,)
    if isinstance(value, Part):
        return (value.value, value.offset)
    if isinstance(value, Concat):
        return value.parts
    if isinstance(value, Operator):
        return value.operands
    if isinstance(value, SwitchValue):
        return (value.test, *(case for _patterns, case in value.cases))
    return ()


def _static(value):
    """(signal, first bit, end) of a slice of a slice of ... a signal, else None."""
    low, high = 0, len(value)
    while isinstance(value, Slice):
        low, high, value = low + value.start, high + value.start, value.value
    while isinstance(value, Operator) and value.operator in ("u", "s"):
        value = value.operands[0]
    return (value, low, high) if isinstance(value, Signal) else None


def _structure(value, low, high):
    """Signals that bits low .. high of a value are copied from: (signal, its bit, count, offset from low)."""
    high = min(high, len(value))
    if low >= high:
        return
    if isinstance(value, Signal):
        yield value, low, high - low, 0
    elif isinstance(value, Slice):
        yield from _structure(value.value, value.start + low, value.start + high)
    elif isinstance(value, Concat):
        at = 0
        for part in value.parts:
            if at < high and at + len(part) > low:
                start = max(low - at, 0)
                for signal, bit, count, offset in _structure(part, start, min(high - at, len(part))):
                    yield signal, bit, count, offset + at + start - low
            at += len(part)
    elif isinstance(value, SwitchValue):
        for _patterns, case in value.cases:
            yield from _structure(case, low, high)
    elif isinstance(value, Operator) and value.operator in ("u", "s"):
        yield from _structure(value.operands[0], low, high)


def _without_lanes(cuts, width):
    """Cuts without those between many neighbours of equal width."""
    edges = sorted({0, width} | {c for c in cuts if 0 < c < width})
    keep, at = set(edges), 0
    while at + 1 < len(edges):
        size = edges[at + 1] - edges[at]
        end = at + 1
        while end + 1 < len(edges) and edges[end + 1] - edges[end] == size:
            end += 1
        if end - at >= LANES and size < LIMB_BITS // 2:
            keep -= set(edges[at + 1:end])
        at = end
    return keep
