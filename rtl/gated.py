"""The fast form of a component's SystemVerilog: what is not active costs next to nothing.

One process at the clock executes the statements of each component under `if (active)`, with what they need computed
inside, before its first use. It assigns at once rather than at the end of the time step, so statements stand in an
order in which a register is read before it is written; where there is no such order, its old value is kept aside.

One combinational process computes what must be known before the clock: each `active`, and the outputs. Every gated
component and every input has a bit that says whether it changed at the last edge. An expression is computed anew only
if something that it depends on has changed; neighbours that depend on the same things share the test, and so does a
group of them that belongs to one block.

Verilator runs the process at the clock, as any other at that edge, before it computes what hangs on its registers. All
combinational assignments stand under a condition; so Verilator cannot copy an output's expression to where it is read,
which may be a process that runs after this one. Outputs that are registers are assigned at the end of the time step.
"""

from rtl.expressions import own_cost
from rtl.netlist import Piece, Set, Unsupported, Write, written
from rtl.systemverilog import Writer, branches_of, count_uses, expressions, indented, own_expressions, vector

IDLE = 0.03
"""Part of all cycles in which a gated component is thought to be active."""

ALWAYS = 1
"""The support of what may change in each cycle: bit 0 of the change bits is always set."""


class GatedWriter(Writer):
    """See above. `busy`: paths of components that are not gated."""

    WORTH_KEEPING = 3
    """An expression of so many operations is computed once and kept in a variable, if several places need it."""

    WORTH_A_TEST = 4
    """One of so many operations is not computed with another that changes more often."""

    TEST_COST = 3.5
    """Operations that a test for changes costs."""

    WORD_BITS = 64
    """Change bits that stand in one variable."""

    differs, show = "!=", "="
    """How an input is compared with what it was, and how an output is assigned that is no register."""

    def __init__(self, netlist, name, busy):
        super().__init__(netlist, name)
        self._analyse(set(busy))
        self._kept = {}  # expressions that the combinational process keeps -> their variables
        self._hazards = None  # while statements at the clock are written: see `read`
        self._aside = set()  # registers whose old value another gate needs
        self._declared = []  # lines that declare variables

    # ---- variables

    def variable(self, name, width, init=None):
        """How a variable is written that is declared here, for the whole module."""
        self._declared.append(f"{vector(width)}{name}{'' if init is None else f' = {init}'};")
        return name

    def local(self, lines, name, width):
        """How a variable is written that is declared at the head of a block, in `lines`."""
        lines.append(f"automatic {vector(width)}{name};")
        return name

    def old(self, piece):
        """How the value is written that a register had before the clock, in a gate that reads it."""
        return f"_old{self.names[piece]}"

    def saved(self, piece):
        """The same, of a register that its gate may have written when another reads it."""
        return f"_save{self.names[piece]}"

    def changed(self, word):
        """How a variable of bits is written that say what changed at the last edge."""
        return f"_changed_{word}"

    def now(self, word):
        """The same, with what has changed since then."""
        return f"now_{word}"

    def bits_of(self, value):
        """A constant of as many bits as such a variable."""
        return f"{self.WORD_BITS}'h{value:x}"

    # ---- what depends on what

    def _analyse(self, busy):
        netlist, make = self.netlist, self.netlist.make
        for gate in netlist.gates:
            if ".".join(gate.path) in busy:
                gate.active = None
        gated = [gate for gate in netlist.gates if gate.active is not None]
        self._bits = {gate: bit for bit, gate in enumerate(gated, start=1)}  # of gates, then of pieces of inputs
        self._supports = {}
        self._computed = [(port, node) for port, _width, node in netlist.outputs if not _is_register(node)]
        roots = [gate.active for gate in gated] + [node for _port, node in self._computed]
        uses, order = count_uses(roots)
        parents = {}
        for node in order:
            for arg in node.args:
                parents.setdefault(arg, []).append(node)
        known = set(order)
        self._needed = set().union(*(self._known_before(gate, known) for gate in netlist.gates))
        kept = {node for node in roots if make.cost(node) >= self.WORTH_KEEPING} | self._needed
        kept |= {node for node in order if uses[node] > 1 and make.cost(node) >= self.WORTH_KEEPING}
        for node in reversed(order):
            if make.cost(node) >= self.WORTH_A_TEST and self._support(node) != ALWAYS and any(
                    self._support(parent) != self._support(node) for parent in parents.get(node, ())):
                kept.add(node)
        self._order = [node for node in order if node in kept]
        self._is_kept = kept

    def _known_before(self, gate, known):
        """Expressions of those that the combinational process computes that a gate's statements use."""
        found, seen, stack = set(), set(), list(expressions(gate.statements))
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in known and self.netlist.make.cost(node) >= self.WORTH_KEEPING:
                found.add(node)
            else:
                stack.extend(node.args)
        return found

    def _support(self, node):
        """Change bits of all that an expression depends on."""
        found = self._supports.get(node)
        if found is None:
            found = 0
            if node.op == "leaf":
                piece = node.value
                if piece.kind == "input":
                    found = 1 << self._bits.setdefault(piece, len(self._bits) + 1)
                else:
                    found = 1 << self._bits.get(piece.gate, 0)
            elif node.op == "word":
                for gate in node.value.memory.gates:
                    found |= 1 << self._bits.get(gate, 0)
            for arg in node.args:
                found |= self._support(arg)
            if found & ALWAYS:
                found = ALWAYS
            self._supports[node] = found
        return found

    # ---- the combinational process

    def _schedule(self):
        """Kept expressions, each after those that it needs: a list of (block, support, expressions)."""
        needs, users = {}, {node: [] for node in self._order}
        for node in self._order:
            operands = self._kept_operands(node)
            needs[node] = len(operands)
            for operand in operands:
                users[operand].append(node)
        blocks = {support: self._block_of(support) for support in map(self._support, self._order)}
        ready, left = {}, {}
        for node in self._order:
            support = self._support(node)
            left[support] = left.get(support, 0) + 1
            if not needs[node]:
                ready.setdefault(support, []).append(node)

        def reach(support):
            """Whether all of one support can be computed now, on how little they depend, and how many can be."""
            count, stack, waits = 0, list(ready[support]), {}
            while stack:
                count += 1
                for user in users[stack.pop()]:
                    if self._support(user) == support:
                        waits[user] = waits.get(user, needs[user]) - 1
                        if not waits[user]:
                            stack.append(user)
            return count == left[support], -support.bit_count(), count

        clusters, block = [], None
        while ready:
            near = [support for support in ready if blocks[support] == block]
            if not near:
                waiting = {}
                for support, nodes in ready.items():
                    waiting[blocks[support]] = waiting.get(blocks[support], 0) + len(nodes)
                block = max(waiting, key=waiting.get)
                near = [support for support in ready if blocks[support] == block]
            support = max(near, key=reach)
            cluster, stack = [], ready.pop(support)[::-1]
            while stack:
                node = stack.pop()
                cluster.append(node)
                left[support] -= 1
                for user in users[node]:
                    needs[user] -= 1
                    if not needs[user]:
                        other = self._support(user)
                        (stack if other == support else ready.setdefault(other, [])).append(user)
            clusters.append((block, support, cluster))
        return self._joined(clusters), users

    def _kept_operands(self, node):
        found, stack = set(), list(node.args)
        while stack:
            arg = stack.pop()
            if arg in self._is_kept:
                found.add(arg)
            else:
                stack.extend(arg.args)
        return found

    def _block_of(self, support):
        """The path of the largest block, of those that a support has a part of; None for what may always change."""
        if support == ALWAYS:
            return None
        sizes, found = {}, set()
        for source, bit in self._bits.items():
            path = () if isinstance(source, Piece) else source.path[:2]
            sizes[path] = sizes.get(path, 0) + bool(path)
            if support >> bit & 1:
                found.add(path)
        return max(found, key=lambda path: (sizes[path], path))

    def _joined(self, clusters):
        """Neighbours of one block become one where that saves more in tests than it costs in needless operations."""
        def chance(support):
            return 1.0 if support == ALWAYS else 1 - (1 - IDLE) ** support.bit_count()

        found = []
        for block, support, cluster in clusters:
            cost = sum(self._local_cost(node) for node in cluster)
            if found and found[-1][0] == block:
                _block, before, nodes, total = found[-1]
                both = chance(before | support)
                if (both - chance(before)) * total + (both - chance(support)) * cost < self.TEST_COST:
                    found[-1] = (block, before | support, nodes + cluster, total + cost)
                    continue
            found.append((block, support, cluster, cost))
        return [(block, support, cluster) for block, support, cluster, _cost in found]

    def _local_cost(self, node):
        """Operations from a kept expression down to others that are kept."""
        cost, stack = 1, [node]
        while stack:
            this = stack.pop()
            cost += own_cost(this)
            stack.extend(arg for arg in this.args if arg not in self._is_kept)
        return cost

    def _words(self):
        return range(len(self._bits) // self.WORD_BITS + 1)

    def _test(self, support, variable):
        """Whether something of a support has changed; `variable`: `changed` or `now`."""
        masks = [(word, support >> word * self.WORD_BITS & ((1 << self.WORD_BITS) - 1)) for word in self._words()]
        return " || ".join(f"({variable(word)} & {self.bits_of(mask)}) != 0" for word, mask in masks if mask)

    def _combinational(self):
        """The lines of the process."""
        clusters, users = self._schedule()
        ports = {}
        for port, node in self._computed:
            ports.setdefault(node, []).append(port)
        known_outside = self._needed | set(ports) | {g.active for g in self._bits if not isinstance(g, Piece)}
        lines, at = [], 0
        while at < len(clusters):
            end, union = at, 0
            while end < len(clusters) and clusters[end][0] == clusters[at][0]:
                union |= clusters[end][1]
                end += 1
            inner = []
            for _block, support, cluster in clusters[at:end]:
                body = self._cluster(cluster, users, known_outside, ports)
                if support != union:
                    body = [f"if ({self._test(support, self.now)}) begin", *indented(body), "end"]
                inner += body
            lines += [f"if ({self._test(union, self.now)}) begin", *indented(inner), "end"]
            at = end
        for node, names in ports.items():
            text = self.text(node, self._kept)
            copies = [f"{port} {self.show} {text};" for port in names if self._kept.get(node) != port]
            if copies:
                lines += [f"if ({self._test(self._support(node) or ALWAYS, self.now)}) begin", *indented(copies), "end"]
        return lines

    def _cluster(self, cluster, users, known_outside, ports):
        local, lines, inside = [], [], set(cluster)
        for node in cluster:
            text = self.text(node, self._kept)
            if node in ports and self.show == "=":
                name = ports[node][0]
            elif node in known_outside or not inside.issuperset(users[node]):
                name = self.variable(f"_c_{node.serial}", node.width)
            else:
                name = self.local(local, f"_t_{node.serial}", node.width)
            self._kept[node] = name
            lines.append(f"{name} = {text};")
        return ["begin", *indented(local + lines), "end"] if local else lines

    # ---- the process at the clock

    def _groups(self):
        """Gates in an order in which few read what another wrote before: lists of a gate and of those inside it."""
        groups = []
        for gate in self.netlist.gates:
            outer = next((group for group in groups
                          if group[0].active is not None and group[0].path == gate.path[:len(group[0].path)]), None)
            if outer is None or gate.active is None:
                groups.append([gate])
            else:
                outer.append(gate)

        def item(thing, gates):
            statements = [statement for gate in gates for statement in gate.statements]
            return thing, self._reads(statements), set(written(statements))

        ordered = _before_writers([item(tuple(group), group) for group in groups])
        return [_before_writers([item(gate, [gate]) for gate in group]) for group in ordered]

    def _reads(self, statements):
        """Registers and columns of memories that statements read."""
        found, seen, stack = set(), set(), list(expressions(statements))
        while stack:
            node = stack.pop()
            if node not in seen and node not in self._needed:
                seen.add(node)
                if node.op == "word" or (node.op == "leaf" and node.value.kind == "register"):
                    found.add(node.value)
                stack.extend(node.args)
        return found

    def _ordered(self, statements):
        """Statements in an order in which few read what another wrote before. Those that write the same stay in their
        order, as one."""
        groups, group_of = [], {}
        for statement in statements:
            joined = [statement]
            same = {id(group_of[item]): group_of[item] for item in written([statement]) if item in group_of}
            for other in same.values():
                joined = other + joined
                groups.remove(other)
            joined.sort(key=statements.index)
            groups.append(joined)
            for item in written(joined):
                group_of[item] = joined
        ordered = _before_writers([(tuple(group), self._reads(group), set(written(group))) for group in groups])
        return [statement for group in ordered for statement in group]

    def read(self, piece):
        hazards = self._hazards
        if hazards is None or piece not in hazards.written:
            return self.names[piece]
        (hazards.old_there if piece in hazards.before else hazards.old_here).add(piece)
        return self.old(piece)

    def text(self, node, names):
        hazards = self._hazards
        if node.op == "word" and node not in names and hazards is not None and node.value in hazards.written:
            name = self.names[node.value]
            raise Unsupported(f"memory {name} is read after it was written, whatever the order of the gates")
        return super().text(node, names)

    def _clocked(self):
        lines, hazards = [], _Hazards()
        self._hazards = hazards
        bodies = {}
        groups = self._groups()
        for group in groups:
            for gate in group:
                hazards.enter_gate()
                body = self._gate_body(gate)
                there, here = (sorted(pieces, key=self.names.get) for pieces in (hazards.old_there, hazards.old_here))
                aside = [self._old(piece, self._before(piece)) for piece in there]
                aside += [self._old(piece, self.names[piece]) for piece in here]
                self._aside |= hazards.old_there
                bodies[gate] = aside + body
        self._hazards = None
        for group in groups:
            inner = []
            for gate in group:
                saves = [f"{self.saved(p)} = {self.names[p]};"
                         for p in sorted(self._aside, key=self.names.get) if p.gate is gate]
                declarations = [line for line in bodies[gate] if line.startswith("automatic ")]
                rest = saves + bodies[gate][len(declarations):]
                if gate.active is not None:
                    word, bit = divmod(self._bits[gate], self.WORD_BITS)
                    changed = self.changed(word)
                    rest.insert(0, f"{changed} = {changed} | {self.bits_of(1 << bit)};")
                head = "" if gate.active is None else f"if ({self.holds(gate.active)}) "
                inner += [f"{head}begin  // {'.'.join(gate.path)}", *indented(declarations + rest), "end"]
            if len(group) > 1:
                outer = min(group, key=lambda gate: len(gate.path))
                inner = [f"if ({self.holds(outer.active)}) begin", *indented(inner), "end"]
            lines += inner
        return lines

    def holds(self, active):
        """Whether a gate's statements must be executed."""
        return self.text(active, self._kept)

    def _old(self, piece, value):
        return f"automatic {vector(piece.width)}{self.old(piece)} = {value};"

    def _before(self, piece):
        """The value before the clock of a register that another gate may have written."""
        if piece.gate.active is None:
            return self.saved(piece)
        word, bit = divmod(self._bits[piece.gate], self.WORD_BITS)
        return f"{self.changed(word)}[{bit}] ? {self.saved(piece)} : {self.names[piece]}"

    def _gate_body(self, gate):
        root = _Block(self._ordered(gate.statements), None, 0)
        places, order, seen = {}, [], set()

        def visit(node):
            seen.add(node)
            if node not in self._kept:
                for arg in node.args:
                    if arg not in seen:
                        visit(arg)
            order.append(node)

        def scan(block):
            for index, statement in enumerate(block.statements):
                for node in own_expressions(statement):
                    places.setdefault(node, []).append((block, index))
                    if node not in seen:
                        visit(node)
                block.inner.append([_Block(inner, block, index) for inner in branches_of(statement)])
                for inner in block.inner[-1]:
                    scan(inner)

        scan(root)
        names = dict(self._kept)
        for node in reversed(order):
            if node in self._kept or node.op in ("leaf", "const"):
                continue
            spots = places[node]
            if len(spots) > 1 and self.netlist.make.cost(node) >= self.WORTH_KEEPING:
                spot = spots[0]
                for other in spots[1:]:
                    spot = _last_before(spot, other)
                # operands come later in this loop, and must stand before it
                spot[0].temporaries.setdefault(spot[1], []).insert(0, node)
                names[node] = f"_t_{node.serial}"
                spots = [spot]
            for arg in node.args:
                places.setdefault(arg, []).extend(spots)
        return self._block_lines(root, names)

    def _block_lines(self, block, names):
        lines, local, hazards = [], [], self._hazards
        for index, statement in enumerate(block.statements):
            for node in block.temporaries.get(index, ()):
                name = names.pop(node)
                text = self.text(node, names)
                names[node] = name = self.local(local, name, node.width)
                lines.append(f"{name} = {text};")
            if isinstance(statement, (Set, Write)):
                lines.append(self.set(statement, names))
                hazards.written.add(statement.piece if isinstance(statement, Set) else statement.column)
                continue
            # the conditions are read before any branch writes
            before, after, bodies = set(hazards.written), set(hazards.written), []
            for inner in block.inner[index]:
                hazards.written = set(before)
                bodies.append(self._block_lines(inner, names))
                after |= hazards.written
            hazards.written = before
            lines += self.branches(statement, names, bodies)
            hazards.written = after
        return local + lines

    # ---- the module

    def body(self):
        netlist = self.netlist
        combinational = self._combinational()
        clocked = self._clocked()
        self._declared += [f"{vector(p.width)}{self.saved(p)};" for p in sorted(self._aside, key=self.names.get)]
        self._declared += [f"logic [{self.WORD_BITS - 1}:0] {self.changed(word)} = '1;" for word in self._words()]
        before, entering = self._entering()
        lines = ["always_comb begin",
                 *(f"  automatic logic [{self.WORD_BITS - 1}:0] {self.now(word)};" for word in self._words())]
        lines += [*indented(entering + combinational), "end"]
        if netlist.clock is None:
            return self._declared + lines
        lines += [f"initial {line}" for line in self._registered()]
        lines += [f"always @(posedge {netlist.clock}) begin", *indented(self._edge(clocked, before)), "end"]
        return self._declared + lines

    def _entering(self):
        """Inputs that expressions depend on -> the variables with what they were; lines that say what has changed."""
        before, entered = {}, {word: [self.changed(word)] for word in self._words()}
        for piece, bit in self._bits.items():
            if isinstance(piece, Piece):
                before[piece] = self.variable(self.unique("_before", self.names[piece]), piece.width, 0)
                word, bit = divmod(bit, self.WORD_BITS)
                entered[word].append(f"({before[piece]} {self.differs} {self.names[piece]} ? "
                                     f"{self.bits_of(1 << bit)} : {self.bits_of(0)})")
        return before, [f"{self.now(word)} = {' | '.join(parts)};" for word, parts in entered.items()]

    def _edge(self, clocked, before):
        """All that happens at the clock."""
        netlist = self.netlist
        lines = [f"{self.changed(word)} = {self.bits_of(ALWAYS if word == 0 else 0)};" for word in self._words()]
        lines += [f"{name} = {self.names[piece]};" for piece, name in before.items()]
        lines += clocked
        if netlist.reset is not None:
            lines += self._reset([f"{self.changed(word)} = '1;" for word in self._words()])
        for port, _width, node in netlist.outputs:
            if _is_register(node):
                lines.append(f"if ({self._test(self._support(node), self.changed)}) {port} <= {self.text(node, {})};")
        return lines

    def _reset(self, marks):
        """What happens in reset; `marks`: lines that say that all has changed."""
        return [f"if ({self.text(self.netlist.reset, {})}) begin", *indented(self.resets() + marks), "end"]

    def _registered(self):
        """Assignments of their initial values to outputs that are registers."""
        return [f"{port} = {self.text(node, {})};" for port, _width, node in self.netlist.outputs
                if _is_register(node)]


class _Hazards:
    """What has been written on the way through the statements at the clock."""

    def __init__(self):
        self.written, self.before, self.old_here, self.old_there = set(), set(), set(), set()

    def enter_gate(self):
        self.before, self.old_here, self.old_there = set(self.written), set(), set()


class _Block:
    """A list of statements; `temporaries`: what is computed before each of them."""

    def __init__(self, statements, parent, index):
        self.statements, self.parent, self.index = statements, parent, index
        self.depth = 0 if parent is None else parent.depth + 1
        self.temporaries, self.inner = {}, []


def _last_before(a, b):
    """The last place, (block, index), that comes before both places."""
    while a[0] is not b[0]:
        if a[0].depth >= b[0].depth:
            a = (a[0].parent, a[0].index)
        else:
            b = (b[0].parent, b[0].index)
    return a[0], min(a[1], b[1])


def _is_register(node):
    """Whether an output is a register as it is."""
    if node.op == "leaf":
        return node.value.kind == "register"
    return node.op in ("cat", "slice") and all(_is_register(arg) for arg in node.args)


def _before_writers(items):
    """An order of things, from (thing, what it reads, what it writes), in which most read before others write; who
    reads a memory does, if there is such an order, since a memory's word cannot be kept aside."""
    writers = {}
    for thing, _reads, writes in items:
        for item in writes:
            writers.setdefault(item, []).append(thing)
    wish, must = {}, {thing: set() for thing, _reads, _writes in items}  # how much a should precede b; who must precede
    for thing, reads, _writes in items:
        for item in reads:
            for other in writers.get(item, ()):
                if other is not thing:
                    wish[thing, other] = wish.get((thing, other), 0) + 1 + item.width // 32
                    if not isinstance(item, Piece):
                        must[other].add(thing)
    rest = list(must)
    first, last = [], []
    out, into = dict.fromkeys(rest, 0), dict.fromkeys(rest, 0)
    for (a, b), cost in wish.items():
        out[a] += cost
        into[b] += cost
    while rest:
        thing = next((t for t in reversed(rest) if not out[t]), None)
        if thing is not None:
            last.append(thing)
        else:
            free = [t for t in rest if not must[t]] or rest
            thing = max(free, key=lambda t: (not into[t], out[t] - into[t]))
            first.append(thing)
        rest.remove(thing)
        for other in rest:
            must[other].discard(thing)
            into[other] -= wish.get((thing, other), 0)
            out[other] -= wish.get((other, thing), 0)
    return first + last[::-1]
