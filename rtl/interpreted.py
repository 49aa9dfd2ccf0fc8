"""The form of a component's Verilog for Icarus, which interprets it, with four values.

As in `rtl.gated`, one process executes at the clock what is active, and computes anew what has changed. What costs time
is another thing, though: Icarus looks for a variable's value behind a cast that takes longer than most operations, but
finds a word of an array, at a constant place, at once. So all registers and variables of one width are the words of one
array; their names stand beside in comments. There are no nets, and hence no events, but those of ports. What is
computed under a test has a variable of one bit that says whether it must be computed anew, and whoever changes
something that it depends on sets it: that is dear, but happens a few times in a cycle, and a test is asked in each.

What is unknown stays unknown. An X of an operand makes X of the result where it matters, as Verilog's operators do. If
a condition is X, all that depends on it becomes X, in statements as in expressions, where Verilog's own `if` takes an
unknown condition for false; so does a memory, all of it, that is written at an unknown address. An unknown `active`
counts as 1, and then the conditions inside decide. Nothing is unknown by itself: registers and memories have initial
values, and what Amaranth reads beyond an end is 0. So an X comes from an input.
"""

import sys

from rtl.gated import ALWAYS, GatedWriter, in_order
from rtl.netlist import Case, If, Set, Write, read
from rtl.systemverilog import branches_of, indented, vector


def convert(component, name: str) -> str:
    """Verilog of a component for Icarus, with `-g2012`; otherwise as `rtl.systemverilog.convert` with `gated`, but that
    inputs may change at any time."""
    return InterpretedWriter(read(component, name), name, busy=()).module()


class InterpretedWriter(GatedWriter):
    """See above."""

    TEST_COST, TOGETHER = 1.2, 1  # reading an operand is what takes time, and a test reads one
    WORTH_AN_EXIT = sys.maxsize  # never: after an X the others may still decide
    MERGES = False  # an X of what is tested first would make X of what the rest leaves alone
    differs, show = "!==", "<="
    header = "/* words of the arrays are registers and variables */"

    def __init__(self, netlist, name, busy):
        super().__init__(netlist, name, busy)
        self._arrays = {}  # width -> the array's name, and its words' names
        self._initial = []  # assignments of initial values
        self._words_of = {}  # names -> words
        self._stale = []  # of what is computed under a test: its support, and the variable
        for piece in netlist.registers:
            self.names[piece] = self.variable(self.names[piece], piece.width, f"{piece.width}'h{piece.init:x}")

    # ---- variables

    def variable(self, name, width, init=None):
        """A word of an array."""
        if name not in self._words_of:
            if width not in self._arrays:
                self._arrays[width] = self.unique(f"w{width}"), []
            array, words = self._arrays[width]
            words.append(name)
            self._words_of[name] = text = f"{array}[{len(words) - 1}]"
            if init is not None:
                self._initial.append(f"{text} = {init};")
        return self._words_of[name]

    def temporary(self, name, width):
        """The same: nothing here has a stack."""
        return self.variable(name, width)

    def state(self):
        """Nothing: `body` declares all, and gives it its initial values in the process that needs them."""
        return []

    # ---- what must be computed anew

    def _tested(self, support, lines):
        """See `GatedWriter._tested`. All is computed in one pass that changes no register, so the variables need no
        copy of what they were."""
        if support == ALWAYS:
            return lines
        name = self.variable(self.unique("_stale", len(self._stale)), 1, "1'b1")
        self._stale.append((support, name))
        return [f"if ({name}) begin", *indented([f"{name} = 1'b0;", *lines]), "end"]

    def _mark(self, source, word_of=None):
        """Statements that say that a gate's registers, or an input, have changed."""
        bit = 1 << self._bits[source]
        return " ".join(f"{name} = 1'b1;" for support, name in self._stale if support & bit)

    def _all_changed(self):
        return [f"{name} = 1'b1;" for _support, name in self._stale]

    def _words(self):
        return range(0)

    # ---- what is unknown

    def holds(self, active):
        """See `GatedWriter.holds`."""
        return f"{super().holds(active)} !== 1'b0"

    def set(self, statement, names):
        """See `Writer.set`."""
        text = super().set(statement, names)
        if isinstance(statement, Write) and statement.address.op != "const":
            text += f" if (^{self.text(statement.address, names)} === 1'bx) {self._forget(statement)}"
        return text

    def branches(self, statement, names, bodies):
        """See `Writer.branches`. A condition is computed once more if it does not hold."""
        if isinstance(statement, If):
            return self._chain(statement.branches, names, bodies)
        *heads, (last, _inner) = statement.branches
        lines = [f"if (^{self.text(statement.test, names)} === 1'bx) begin", *self._unknown([statement]), "end"]
        if last is None:
            statement, bodies, default = Case(statement.test, heads), bodies[:-1], bodies[-1]
            lines += ["else begin", *indented(default), "end"]
        found = super().branches(statement, names, bodies)
        place = found.index("  default: ;")
        return [*found[:place], "  default: begin", *indented(indented(lines)), "  end", *found[place + 1:]]

    def _chain(self, branches, names, bodies):
        """An If."""
        lines = []
        for number, ((head, _inner), body) in enumerate(zip(branches, bodies, strict=True)):
            start = "else " if number else ""
            if head is None:
                lines += [f"{start}begin", *indented(body), "end"]
                continue
            test = self.text(head, names)
            unknown = self._unknown([If(branches[number:])])
            lines += [f"{start}if ({test}) begin", *indented(body), "end"]
            lines += [f"else if ({test} !== 1'b0) begin", *indented(unknown), "end"]
        return lines

    def _unknown(self, statements):
        """Lines that make X of all that statements may write."""
        lines = {}
        for item in _sets(statements):
            if isinstance(item, Set):
                part = "" if item.value.width == item.piece.width else f"[{item.low}+:{item.value.width}]"
                lines[f"{self.names[item.piece]}{part} = 'x;"] = None
                if item.piece in self._calm:
                    lines[self._mark(item.piece)] = None
            else:
                lines[self._forget(item)] = None
        return list(lines)

    def _forget(self, item):
        """A statement that makes X of what may be written of a memory."""
        column, width = item.column, item.value.width
        part = "" if width == column.width else f"[{item.low}+:{width}]"
        return f"for (int i = 0; i < {column.memory.depth}; i++) {self.names[column]}[i]{part} = 'x;"

    def _reset(self):
        found = super()._reset()
        if found:
            unknown = [f"{self.names[piece]} = 'x;" for piece in self.netlist.registers if piece.reset]
            test = self.text(self.netlist.reset, {})
            found += [f"else if ({test} !== 1'b0) begin", *indented(unknown + self._all_changed()), "end"]
        return found

    # ---- the module

    def body(self):
        """See `Writer.body`. What must be known before the clock is computed when the edge before, or an input's
        change, is over: so the outputs are those of the cycle that has begun."""
        netlist = self.netlist
        parts = self._combinational()
        combinational = [*self._entering(), *in_order(parts)]
        edge = [*self._clocked(parts), *self._reset()] if netlist.clock is not None else []
        lines, start = [], []
        for declaration, statements in self.arrays():
            lines.append(declaration)
            start += statements
        start += self._initial
        for width, (array, words) in self._arrays.items():
            lines.append(f"{vector(width)}{array} [0:{len(words) - 1}];")
            lines += [f"// {array}[{n}]: {name}" for n, name in enumerate(words)]
        task = self.unique("combinational")
        lines += [f"task {task};", "  begin", *indented(indented(combinational)), "  end", "endtask"]
        lines += ["initial begin", *indented([*start, f"{task};"])]
        if edge:
            lines += [f"  forever @(posedge {netlist.clock}) begin", *indented(indented([*edge, f"{task};"])), "  end"]
        lines.append("end")
        ports = dict.fromkeys(self.names[piece].split("[")[0] for piece in self._entering_pieces())
        if ports:
            lines.append(f"always @({' or '.join(ports)}) {task};")
        return lines


def _sets(statements):
    """All that is assigned somewhere in statements."""
    for statement in statements:
        inner = branches_of(statement)
        if inner:
            for block in inner:
                yield from _sets(block)
        else:
            yield statement
