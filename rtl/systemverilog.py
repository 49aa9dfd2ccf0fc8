"""SystemVerilog of a component for Verilator, written from Amaranth's statements rather than from cells."""

import re
from typing import NamedTuple

from rtl.netlist import Column, If, Netlist, Piece, Set, Write, read

HEADER = """\
/* verilator lint_off LATCH */
/* verilator lint_off BLKSEQ */
/* verilator lint_off CASEINCOMPLETE */
/* verilator lint_off UNUSEDSIGNAL */
/* verilator lint_off UNSIGNED */
/* verilator lint_off CMPCONST */"""


class Place(NamedTuple):
    """Where a part of a port, bits low .. low+width-1, stands in a vector: from bit `at` on, with zeros above it up to
    `span` bits."""

    port: str
    low: int
    width: int
    at: int
    span: int
    guard: tuple[str, int] | None = None
    """Of an output: the bit of another, (port, number), that must be 1 for this part to be looked at."""


class Packed(NamedTuple):
    """Two vectors in place of ports: `inputs` and `outputs`. Outputs without a place are left out."""

    inputs: list[Place]
    input_bits: int
    outputs: list[Place]
    output_bits: int


def convert(component, name: str, *, gated: bool, busy=(), seldom=(), lively=(),
            packed: Packed | None = None) -> str:
    """SystemVerilog of a component, written from Amaranth's statements, for Verilator; module `name`, ports as
    Amaranth's own back ends name them, with `clk` and `rst`.

    Parameters
    ----------
    component : wiring.Component
        With one clock domain. A component inside it that has a port `active` promises (see `rtl.interfaces`) that
        nothing inside that component changes at the end of a cycle in which it is 0, with or without a reset.
    gated : bool
        The fast form: what is not active costs next to nothing, but no signal inside has a name, and the outputs stand
        still between two rising edges of the clock: after one they are what they were before it. Otherwise, the form
        for waves: every named signal stands under its name in a scope named as its component.
    busy : collection of str
        Paths, with dots, of components that are active in most cycles; those are not gated. It is a hint: only the
        speed depends on it.
    seldom : collection of str
        Names of inputs that are hardly ever 1, or whose lowest bit is, a stream's valid: a hint, too.
    lively : collection of str
        Patterns of paths, as `fnmatch` knows them, of busy components' small registers that change in many cycles; of
        the others it is thought that they hardly do. A hint, too.
    packed : Packed
        Of the fast form: vectors in place of ports.

    Raises
    ------
    Unsupported
        For constructs of Amaranth that cannot be written: instances, several clocks, signed division.
    """
    # imported late: the writers build on this module
    from rtl.gated import GatedWriter

    netlist = read(component, name, keep_all=not gated)
    if gated:
        return GatedWriter(netlist, name, busy, packed, seldom, lively).module()
    return NamedWriter(netlist, name).module()


_BINARY = {"and": "&", "or": "|", "xor": "^", "add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "%",
           "eq": "==", "ne": "!=", "ult": "<", "ule": "<=", "shl": "<<", "shr": ">>"}

_EVEN_BYTES = "64'h00ff00ff00ff00ff"


def vector(width: int) -> str:
    """Type of a variable of so many bits."""
    return "logic " if width == 1 else f"logic [{width - 1}:0] "


class Writer:
    """What all forms have in common: names, expressions and statements as text."""

    assign = "="
    header = HEADER

    def __init__(self, netlist: Netlist, name: str, packed: Packed | None = None):
        self.netlist, self.name, self.packed = netlist, name, packed
        self._taken = {name, "inputs", "outputs"}
        self._taken |= {port for port, _piece in netlist.inputs} | {port for port, _w, _node in netlist.outputs}
        self.tables: set[tuple[int, int]] = set()  # (bits, width) of tables that repeat each bit
        self.names: dict[Piece | Column, str] = {}
        if netlist.clock is not None and netlist.clock_piece is not None:
            self._taken.add(netlist.clock)
            self.names[netlist.clock_piece] = netlist.clock
        for port, piece in netlist.inputs:
            self.names[piece] = self._input_name(port, piece)
        for piece in netlist.registers:
            path, signal_name = netlist.names.get(id(piece.signal), ((), piece.signal.name))
            part = "" if piece.width == len(piece.signal) else piece.low
            self.names[piece] = self.unique("_r", *path, signal_name, part)
        for memory in netlist.memories:
            for column in memory.columns:
                self.names[column] = self.unique("_m", memory.name, column.low)

    def _input_name(self, port, piece) -> str:
        places = [] if self.packed is None else [place for place in self.packed.inputs if place.port == port]
        if not places:
            return port if piece.width == len(piece.signal) else f"{port}[{piece.low}+:{piece.width}]"
        found = []
        for place in sorted(places, key=lambda place: -place.low):
            low, high = max(piece.low, place.low), min(piece.low + piece.width, place.low + place.width)
            if low < high:
                found.append(f"inputs[{place.at + low - place.low}+:{high - low}]")
        return found[0] if len(found) == 1 else "{" + ", ".join(found) + "}"

    def targets(self) -> list:
        """What is shown: (name, expression, expression of what says whether it counts or None) of each output or part
        of one."""
        make, nodes = self.netlist.make, {port: node for port, _width, node in self.netlist.outputs}
        packed = [] if self.packed is None else self.packed.outputs
        found = []
        for place in packed:
            node = make.bits(nodes[place.port], place.low, place.low + place.width)
            guard = None if place.guard is None else make.bits(nodes[place.guard[0]], place.guard[1],
                                                               place.guard[1] + 1)
            found.append((f"outputs[{place.at}+:{place.span}]", make.extend(node, place.span), guard))
        return found if packed else [(port, node, None) for port, node in nodes.items()]

    def ports(self) -> list[str]:
        """Declarations of all ports."""
        netlist, packed = self.netlist, self.packed
        found = [f"input {netlist.clock}"] if netlist.clock else []
        if packed is not None:
            found += [f"input {vector(packed.input_bits)}inputs", f"output {vector(packed.output_bits)}outputs"]
            return found
        for port in dict.fromkeys(port for port, _piece in netlist.inputs):
            found.append(f"input {vector(sum(p.width for name, p in netlist.inputs if name == port))}{port}")
        return found + [f"output {vector(width)}{port}" for port, width, _node in netlist.outputs]

    def unique(self, *parts) -> str:
        """A name that nothing else has."""
        base = re.sub(r"\W", "_", "_".join(str(part) for part in parts if str(part)))
        name, count = base, 1
        while name in self._taken:
            name, count = f"{base}_{count}", count + 1
        self._taken.add(name)
        return name

    def read(self, piece) -> str:
        """A register or an input in an expression."""
        return self.names[piece]

    def text(self, node, names) -> str:
        """An expression, all of whose operands have the width that they need; `names` has those that stand in
        variables."""
        found = names.get(node)
        if found is not None:
            return found
        op, width = node.op, node.width
        if op == "const":
            return f"{width}'h{node.value:x}"
        if op == "leaf":
            return self.read(node.value)
        first = node.args[0]
        if op == "word":
            return f"{self.names[node.value]}[{self.text(first, names) if first.width else '0'}]"
        if op == "slice":
            return self._slice(node, names)
        if op == "cat":
            # not a cast: Verilator would widen what stands inside before it computes it
            return "{" + ", ".join(self.text(part, names) for part in reversed(node.args)) + "}"
        texts = [self.text(arg, names) for arg in node.args]
        if op == "replicate":
            return f"{{{width}{{{texts[0]}}}}}"
        if op == "spread":
            self.tables.add((first.width, node.value))
            return f"_spread_{first.width}_{node.value}[{texts[0]}]"
        if op == "swap":
            return f"((({texts[0]} >> 8) & {_EVEN_BYTES}) | (({texts[0]} & {_EVEN_BYTES}) << 8))"
        if op in ("not", "parity"):
            return f"({'~' if op == 'not' else '^'}{texts[0]})"
        if op == "mux":
            return f"({texts[0]} ? {texts[1]} : {texts[2]})"
        if op in ("slt", "sle"):
            return f"($signed({texts[0]}) {'<' if op == 'slt' else '<='} $signed({texts[1]}))"
        if op == "sar":
            return f"$unsigned($signed({texts[0]}) >>> {texts[1]})"
        return f"({texts[0]} {_BINARY[op]} {texts[1]})"

    def _slice(self, node, names):
        whole, low, width = node.args[0], node.value, node.width
        text = self.text(whole, names)
        if re.fullmatch(r"\w+(\[\d+\])?", text):
            return f"{text}[{low}]" if width == 1 else f"{text}[{low + width - 1}:{low}]"
        return f"{width}'({text} >> {low})" if low else f"{width}'({text})"

    # ---- statements

    def set(self, statement, names) -> str:
        """An assignment to a register or to a memory's word."""
        if isinstance(statement, Set):
            whole = statement.piece
            target = self.names[whole]
        else:
            whole = statement.column
            target = f"{self.names[whole]}[{self.text(statement.address, names) if statement.address.width else '0'}]"
        value = statement.value
        if value.width != whole.width:
            target += f"[{statement.low}+:{value.width}]"
        return f"{target} {self.assign} {self.text(value, names)};"

    def branches(self, statement, names, bodies) -> list[str]:
        """An If or a Case, with the texts of its branches."""
        lines = []
        if isinstance(statement, If):
            for number, ((head, _inner), body) in enumerate(zip(statement.branches, bodies, strict=True)):
                opening = "begin" if head is None else f"if ({self.text(head, names)}) begin"
                lines += [("else " if number else "") + opening, *indented(body), "end"]
            return lines
        width = statement.test.width
        lines.append(f"case ({self.text(statement.test, names)})")
        for (values, _inner), body in zip(statement.branches, bodies, strict=True):
            head = "default" if values is None else ", ".join(f"{width}'h{value:x}" for value in values)
            lines += [f"  {head}: begin", *indented(indented(body)), "  end"]
        if all(values is not None for values, _inner in statement.branches):
            lines.append("  default: ;")
        return [*lines, "endcase"]

    # ---- the module

    def body(self) -> list[str]:
        """All between the declarations of ports, registers and memories and `endmodule`."""
        raise NotImplementedError

    def module(self) -> str:
        """The whole text."""
        body = self.body()
        lines = [f"// {self.name}: written from Amaranth's statements", self.header, f"module {self.name} ("]
        lines += [",\n".join("  " + port for port in self.ports()), ");", *indented(self.state())]
        return "\n".join([*lines, *indented(body), "endmodule"]) + "\n"

    def state(self) -> list[str]:
        """Declarations of registers, memories and tables, with their initial values."""
        lines = [f"{vector(p.width)}{self.names[p]} = {p.width}'h{p.init:x};" for p in self.netlist.registers]
        for declaration, statements in self.arrays():
            lines += [declaration, *(f"initial {statement}" for statement in statements)]
        return lines

    def arrays(self):
        """Of each memory's column and each table: its declaration, and the statements that fill it."""
        for memory in self.netlist.memories:
            for column in memory.columns:
                name = self.names[column]
                words = [(index, word >> column.low & ((1 << column.width) - 1))
                         for index, word in enumerate(memory.words)]
                yield f"{vector(column.width)}{name} [0:{memory.depth - 1}];", [
                    f"for (int i = 0; i < {memory.depth}; i++) {name}[i] = 0;",
                    *(f"{name}[{index}] = {column.width}'h{value:x};" for index, value in words if value)]
        for count, width in sorted(self.tables):
            name = f"_spread_{count}_{width}"
            yield f"{vector(count * width)}{name} [0:{(1 << count) - 1}];", [
                f"for (int i = 0; i < {1 << count}; i++) for (int j = 0; j < {count}; j++) "
                f"{name}[i][{width} * j +: {width}] = {{{width}{{i[j]}}}};"]

    def resets(self) -> list[str]:
        """Every register's value after a reset."""
        return [f"{self.names[p]} {self.assign} {p.width}'h{p.init:x};" for p in self.netlist.registers if p.reset]


def indented(lines) -> list[str]:
    """Two columns to the right."""
    return ["  " + line for line in lines]


class NamedWriter(Writer):
    """The form for waves."""

    assign = "<="

    def body(self) -> list[str]:
        netlist = self.netlist
        shown = [(path, name, netlist.value_of(signal)) for path, name, signal in netlist.visible
                 if len(signal) and not name.startswith("$")]
        roots = [node for _path, _name, node in shown] + [node for _port, _width, node in netlist.outputs]
        roots += [node for gate in netlist.gates for node in expressions(gate.statements)]
        uses, order = count_uses(roots)
        names: dict = {}
        lines: list[str] = []
        # in a scope, a port's name may be a signal's
        for piece, name in list(self.names.items()):
            if isinstance(piece, Piece) and piece.kind == "input":
                self.names[piece] = self.unique("_i", piece.signal.name, piece.low)
                lines.append(f"wire {vector(piece.width)}{self.names[piece]} = {name};")
        for node in order:
            if uses[node] > 1 and node.op not in ("const", "leaf", "slice", "not"):
                name = f"_c_{node.serial}"
                lines.append(f"wire {vector(node.width)}{name} = {self.text(node, names)};")
                names[node] = name
        lines += [f"assign {port} = {self.text(node, names)};" for port, _width, node in netlist.outputs]
        statements = [line for gate in netlist.gates for line in self._statements(gate.statements, names)]
        if netlist.reset is not None:
            statements += [f"if ({self.text(netlist.reset, names)}) begin", *indented(self.resets()), "end"]
        if statements:
            lines += [f"always @(posedge {netlist.clock}) begin", *indented(statements), "end"]
        return lines + self._scopes(shown, names)

    def _statements(self, statements, names):
        lines = []
        for statement in statements:
            if isinstance(statement, (Set, Write)):
                lines.append(self.set(statement, names))
            else:
                bodies = [self._statements(inner, names) for _head, inner in statement.branches]
                lines += self.branches(statement, names, bodies)
        return lines

    def _scopes(self, shown, names):
        """Named signals, in a scope for each component. Names are escaped: they may be words of the language."""
        tree = {}
        ports = {port for port, _piece in self.netlist.inputs} | {port for port, _w, _n in self.netlist.outputs}
        for path, name, node in shown:
            if path or (name not in ports and name != self.netlist.clock):
                place = tree
                for part in path:
                    place = place.setdefault(part, {})
                place[name, None] = f"wire {vector(node.width)}\\{name} = {self.text(node, names)};"

        def lines_of(place):
            lines = []
            for key, inner in place.items():
                if isinstance(inner, str):
                    lines.append(inner)
                else:
                    lines += [f"if (1) begin : \\{key} ", *indented(lines_of(inner)), "end"]
            return lines

        return lines_of(tree)


def expressions(statements):
    """Every expression that statements hold, conditions before what depends on them."""
    for statement in statements:
        yield from own_expressions(statement)
        for inner in branches_of(statement):
            yield from expressions(inner)


def own_expressions(statement) -> tuple:
    """Expressions that a statement computes before its branches."""
    if isinstance(statement, Set):
        return (statement.value,)
    if isinstance(statement, Write):
        return (statement.address, statement.value)
    if isinstance(statement, If):
        return tuple(condition for condition, _inner in statement.branches if condition is not None)
    return (statement.test,)


def branches_of(statement) -> list:
    """Lists of statements inside a statement."""
    return [] if isinstance(statement, (Set, Write)) else [inner for _head, inner in statement.branches]


def count_uses(roots, args_of=lambda node: node.args) -> tuple[dict, list]:
    """How often each expression is an operand or a root; and all of them, operands first."""
    uses: dict = {}
    order: list = []

    def visit(node):
        uses[node] = uses.get(node, 0) + 1
        if uses[node] == 1:
            for arg in args_of(node):
                visit(arg)
            order.append(node)

    for root in roots:
        visit(root)
    return uses, order
