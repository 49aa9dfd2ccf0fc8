"""The fast form of a component's SystemVerilog: what is not active costs next to nothing.

One process at the clock executes the statements of each component under `if (active)`, with what they need computed
inside, before its first use. It assigns at once rather than at the end of the time step, so statements stand in an
order in which a register is read before it is written; where there is no such order, its old value is kept aside.

Before them it computes what must be known first: each `active`, and the outputs. So an edge is one pass over a text,
without a second for what hangs on the registers; the outputs are those of the cycle that the edge ends. An expression
is computed anew only if something that it depends on has changed; neighbours that depend on the same things share the
test, and so does a group of them that belongs to one block. Each test has one bit, which every gated component, calm
register or input that it looks for sets for the next edge when it changes: tests are many at each edge, changes few.
What may change in each cycle lives in variables of the process, which a compiler keeps in registers or moves to where
they are needed; the rest in variables of the module. Statements under one condition are brought together under it.
"""

import fnmatch
import functools
import itertools
import operator
import re

from rtl.expressions import own_cost
from rtl.netlist import Gate, If, Piece, Set, Unsupported, Write, written
from rtl.systemverilog import Writer, branches_of, count_uses, expressions, indented, own_expressions, vector

WORTH_KEEPING = 3
"""An expression of so many operations is computed once and kept in a variable, if several places need it."""

WORTH_A_TEST = 4
"""One of so many operations is not computed with another that changes more often."""

IDLE = 0.03
"""Part of all cycles in which a gated component is thought to be active."""

WORTH_A_GROUP = 6
"""Terms of so many operations that hardly ever change are brought together."""

WIDEST_CALM = 8
"""A register with more bits is a counter or data, which change all the time."""

EXIT_TERMS = 6
"""Terms that are looked at together."""

WORTH_A_BRANCH = 5
"""Further parts of a condition with so many operations are looked at only if the first holds."""

ALWAYS = 1
"""The support of what may change in each cycle: bit 0 of the change bits is always set."""


class GatedWriter(Writer):
    """See above. `busy`: paths of components that are not gated."""

    WORD_BITS = 64
    """Change bits that stand in one variable."""

    TEST_COST = 3.5
    """Operations that a test for changes costs."""

    TOGETHER = 8
    """So many neighbours that hardly ever are active are looked at together."""

    MERGES = True
    """Statements under a condition that others have, too, are brought together under one test of it."""

    WORTH_AN_EXIT = 16
    """A sum of so many terms is not computed beyond the first that decide it."""

    differs, show = "!=", "="
    """How a value is compared with what it was, and how an output is assigned."""

    def __init__(self, netlist, name, busy, packed=None, seldom=(), lively=()):
        super().__init__(netlist, name, packed)
        self._lively = re.compile("|".join(map(fnmatch.translate, lively)) or "(?!)")
        self._resting = set(seldom)
        self._seldom = self._take_seldom(self._resting)
        self._analyse(set(busy))
        self._kept = {}  # expressions that the combinational process keeps -> their variables
        self._hazards = None  # while statements at the clock are written: see `read`
        self._aside = {}  # registers whose old value other gates need -> those gates
        self._tests = {}  # supports that are asked for -> the numbers of their bits
        self._variables = {}  # of the module -> (width, initial value or None)
        self._temporaries = {}  # variables of the process -> their widths

    # ---- variables

    def variable(self, name, width, init=None):
        """How a variable of the module is written, which is declared when it is asked for first."""
        self._variables.setdefault(name, (width, init))
        return name

    def temporary(self, name, width):
        """The same, of the process. It has a value from the beginning: otherwise Verilator would take it for one that
        keeps its own from edge to edge."""
        self._temporaries.setdefault(name, width)
        return name

    def _changed(self, word):
        """Bits that say which tests hold after the last edge."""
        return self.variable(f"_changed_{word}", self.WORD_BITS, "'1")

    def _now(self, word):
        """The same, with inputs that have changed since then."""
        return self.temporary(f"now_{word}", self.WORD_BITS)

    def _old(self, piece):
        """The value that a register had before the clock, in a gate that reads it after it is written."""
        return self.temporary("_old" + self.names[piece], piece.width)

    def _saved(self, piece):
        """The same, kept by the gate that writes it, if another reads it later. A variable of the module: it has no
        value that a compiler would have to give it in the cycles in which it is not asked for."""
        return self.variable("_save" + self.names[piece], piece.width)

    def _was(self, piece):
        """A calm register's value before what may write it more than once."""
        return self.temporary("_was" + self.names[piece], piece.width)

    def _bits_text(self, value):
        """A constant of as many bits as such a word has."""
        return f"{self.WORD_BITS}'h{value:x}"

    def _mark(self, source, word_of=None):
        """Statements that set the bits of all tests that depend on a gate or an input."""
        bit, masks = 1 << self._bits[source], {}
        for support, place in self._tests.items():
            if support & bit:
                word, at = divmod(place, self.WORD_BITS)
                masks[word] = masks.get(word, 0) | 1 << at
        targets = {(word_of or self._changed)(word): mask for word, mask in masks.items()}
        return " ".join(f"{target} = {target} | {self._bits_text(mask)};" for target, mask in targets.items())

    # ---- what depends on what

    def _take_seldom(self, seldom):
        """Statements under inputs that are seldom 1, taken out of their gates; what they need is computed there."""
        found = Gate(())
        for gate in self.netlist.gates:
            mine = [statement for statement in gate.statements
                    if isinstance(statement, If) and len(statement.branches) == 1
                    and statement.branches[0][0].op == "leaf" and statement.branches[0][0].value.kind == "input"
                    and statement.branches[0][0].value.signal.name in seldom
                    and statement.branches[0][0].value.width == len(statement.branches[0][0].value.signal)]
            found.statements += mine
            gate.statements = [statement for statement in gate.statements if statement not in mine]
        for piece in set(written(found.statements)).difference(*(written(g.statements) for g in self.netlist.gates)):
            piece.gate = found
        return found

    def _analyse(self, busy):
        netlist, make = self.netlist, self.netlist.make
        for gate in netlist.gates:
            if ".".join(gate.path) in busy:
                gate.active = None
        gated = [gate for gate in netlist.gates if gate.active is not None]
        # of gates, then of calm registers and of pieces of inputs
        self._bits = {gate: bit for bit, gate in enumerate([*gated, self._seldom], start=1)}
        self._calm = self._find_calm(gated)
        for piece in self._calm:
            self._bits[piece] = len(self._bits) + 1
        self._supports = {}
        self._terms = {}  # and, or, or nor of many -> (operation, operands) in another order
        # what is shown only while it counts needs no value otherwise, and none that is kept
        self._shown = [(target, node, guard if self._support(node) == ALWAYS else None)
                       for target, node, guard in self.targets()]
        roots = [gate.active for gate in gated]
        roots += [node if guard is None else guard for _target, node, guard in self._shown]
        uses, order = count_uses(roots, self._args)
        known = set(order)
        self._needed = set().union(*(self._known_before(gate, known) for gate in netlist.gates))
        self._chunks = self._find_chunks()
        roots += [active for active, groups in self._chunks if len(groups) > 1]
        self._regroup(order, uses, {gate.active for gate in gated})
        uses, order = count_uses(roots, self._args)
        parents = {}
        for node in order:
            for arg in self._args(node):
                parents.setdefault(arg, []).append(node)
        kept = {node for node in roots if make.cost(node) >= WORTH_KEEPING} | self._needed
        # read when registers have been written
        kept |= {node for node in (*(gate.active for gate in gated), *(active for active, _groups in self._chunks))
                 if node is not None and node.op != "const"}
        kept |= {node for node in order if uses[node] > 1 and make.cost(node) >= WORTH_KEEPING}
        kept |= self._terms.keys() & set(order)
        for node in reversed(order):
            if make.cost(node) >= WORTH_A_TEST and self._support(node) != ALWAYS and any(
                    self._support(parent) != self._support(node) for parent in parents.get(node, ())):
                kept.add(node)
        self._order = [node for node in order if node in kept]
        self._is_kept = kept

    def _find_calm(self, gated):
        """Registers of components that are not gated, which nevertheless change in few cycles: when one is written, it
        is compared first."""
        found, seen = {}, set()
        stack = [gate.active for gate in gated] + [node for _port, _width, node in self.netlist.outputs]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            stack.extend(node.args)
            piece = node.value
            if (node.op == "leaf" and piece.kind == "register" and piece.gate.active is None
                    and piece.gate is not self._seldom and piece.width <= WIDEST_CALM):
                path, name = self.netlist.names.get(id(piece.signal), ((), piece.signal.name))
                if not self._lively.fullmatch(".".join((*path, name))):
                    found[piece] = None
        return found

    def _args(self, node):
        """An expression's operands; all terms of one that was regrouped."""
        return self._terms[node][1] if node in self._terms else node.args

    def _regroup(self, order, uses, actives):
        """Long sums of terms of which some may always change and others hardly do: those become one term, which is
        computed only when it may have changed. A bit that is shown, but hardly ever 1, is looked at from its most
        lively terms on, no further than to the first that decides."""
        make = self.netlist.make
        apart = actives | self._needed | {node for node in order if uses[node] > 1}

        def terms(node, op):
            """What the node's operation joins; `nor` of what must be 0."""
            if op == "nor" and node.op == "not":
                return terms(node.args[0], "or")
            if node.op != ("and" if op == "nor" else op):
                return [make.not_(node) if op == "nor" else node]
            return [term for arg in node.args
                    for term in (([make.not_(arg)] if op == "nor" else [arg]) if arg in apart else terms(arg, op))]

        for _target, shown, guard in self._shown:
            for node in (shown.args if shown.op == "cat" else (shown,)) if guard is None else ():
                if node.op == "and" and self._support(node) == ALWAYS and node not in apart:
                    found = terms(node, "nor")
                    if len(found) >= self.WORTH_AN_EXIT:
                        found.sort(key=lambda term: (self._support(term) != ALWAYS, make.cost(term), term.serial))
                        self._terms[node] = "nor", found
        for node in order:
            if node.op not in ("and", "or") or node.width > 1 or self._support(node) != ALWAYS or node not in apart:
                continue
            found = terms(node, node.op)
            quiet = [term for term in found if self._support(term) != ALWAYS]
            if len(quiet) > 1 and sum(make.cost(term) for term in quiet) >= WORTH_A_GROUP:
                joined = quiet[0]
                for term in quiet[1:]:
                    joined = make.bitwise(node.op, joined, term)
                self._terms[node] = node.op, [joined, *(term for term in found if self._support(term) == ALWAYS)]

    def _known_before(self, gate, known):
        """Expressions of those that the combinational process computes that a gate's statements use."""
        found, seen, stack = set(), set(), list(expressions(gate.statements))
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in known and self.netlist.make.cost(node) >= WORTH_KEEPING:
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
                elif piece in self._calm:
                    found = 1 << self._bits[piece]
                elif piece.gate.active is not None or piece.gate is self._seldom:
                    found = 1 << self._bits[piece.gate]
                else:
                    found = ALWAYS
            elif node.op == "word":
                for gate in node.value.memory.gates:
                    found |= ALWAYS if gate.active is None else 1 << self._bits[gate]
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
        found, stack = set(), list(self._args(node))
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
            path = source.path[:2] if isinstance(source, Gate) else source.gate.path[:2] if source in self._calm else ()
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
            stack.extend(arg for arg in self._args(this) if arg not in self._is_kept)
        return cost

    def _words(self):
        return range(-(-len(self._tests) // self.WORD_BITS))

    def _test(self, support):
        """Whether something of a support has changed: its test's bit, which whoever changes something of it sets."""
        word, bit = divmod(self._tests.setdefault(support, len(self._tests)), self.WORD_BITS)
        return f"({self._now(word)} & {self._bits_text(1 << bit)}) != 0"

    def _combinational(self):
        """The parts of what is computed before the clock."""
        clusters, users = self._schedule()
        blocks = [list(run) for _block, run in itertools.groupby(clusters, key=lambda cluster: cluster[0])]
        quiet = [self._quiet_part(node) if guard is None else None for _target, node, guard in self._shown]
        unions = [functools.reduce(operator.or_, (support for _block, support, _cluster in run)) for run in blocks]
        known_outside = self._needed | {g.active for g in self._bits if not isinstance(g, Piece)}
        known_outside |= {active for active, _groups in self._chunks}
        for target, node, guard in self._shown:
            known_outside.add(node if guard is None else guard)
        parts = []
        for run, union in zip(blocks, unions, strict=True):
            inner, computed = [], []
            for _block, support, cluster in run:
                body = self._cluster(support, cluster, users, known_outside)
                if support == ALWAYS:
                    parts += [self._part(lines, [node]) for lines, node in zip(body, cluster, strict=True)]
                    continue
                body = [line for lines in body for line in lines]
                inner += body if support == union else self._tested(support, body)
                computed += cluster
            if computed:
                parts.append(self._part(self._tested(union, inner), computed))
        shown = {}
        for (target, node, guard), still in zip(self._shown, quiet, strict=True):
            support = ALWAYS if guard is not None else self._support(node) or ALWAYS
            if still is not None:
                node, kept = self._live_part(node), self.variable(f"_s_{still.serial}", still.width)
                parts.append(self._part(
                    self._tested(self._support(still), [f"{kept} = {self.text(still, self._kept)};"]), [still]))
                self._kept[still] = kept
                self._is_kept.add(still)
                line, nodes = f"{target} {self.show} {kept} | {self.text(node, self._kept)};", [still, node]
            else:
                line, nodes = f"{target} {self.show} {self.text(node, self._kept)};", [node]
            shown.setdefault((support, guard), []).append((line, nodes))
        for (support, guard), copies in shown.items():
            lines, nodes = [line for line, _nodes in copies], [node for _line, nodes in copies for node in nodes]
            if guard is not None:
                lines = [f"if ({self.text(guard, self._kept)}) begin", *indented(lines), "end"]
                nodes.append(guard)
            parts.append(self._part(self._tested(support, lines), nodes, sink=True))
        return parts

    def _quiet_part(self, node):
        """Of bits side by side, some of which may always change: the others, with 0 in place of those; None if there is
        nothing to be gained."""
        if node.op != "cat" or self._support(node) != ALWAYS:
            return None
        still = [part for part in node.args if part.op != "const" and self._support(part) != ALWAYS]
        if sum(self._local_cost(part) for part in still) < WORTH_A_GROUP:
            return None
        make = self.netlist.make
        return make.cat(*(make.const(0, part.width) if self._support(part) == ALWAYS else part for part in node.args))

    def _live_part(self, node):
        """What `_quiet_part` leaves."""
        make = self.netlist.make
        return make.cat(*(part if self._support(part) == ALWAYS else make.const(0, part.width) for part in node.args))

    def _part(self, lines, nodes, sink=False):
        """Lines that compute nodes, or show them."""
        reads, operands = set(), set()
        stack, seen = list(nodes), set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in self._is_kept and (sink or node not in nodes):
                operands.add(node)
                continue
            if node.op == "word" or (node.op == "leaf" and node.value.kind == "register"):
                reads.add(node.value)
            stack.extend(self._args(node))
        return _Part(lines, () if sink else nodes, reads, operands)

    def _tested(self, support, lines):
        """Lines that are needed only if something of a support has changed."""
        return lines if support == ALWAYS else [f"if ({self._test(support)}) begin", *indented(lines), "end"]

    def _cluster(self, support, cluster, users, known_outside):
        lines, inside = [], set(cluster)
        for node in cluster:
            op, terms = self._terms.get(node, (None, ()))
            texts = [self.text(term, self._kept) for term in terms] if op else [self.text(node, self._kept)]
            name = f"_c_{node.serial}"
            if support == ALWAYS:
                name = self.temporary(name, node.width)
            elif node in known_outside or not inside.issuperset(users[node]):
                name = self.variable(name, node.width)
            else:
                name = self.temporary(f"_t_{node.serial}", node.width)
            self._kept[node] = name
            if op == "nor":
                line = f"{name} = 1;"
                for at in reversed(range(0, len(texts), EXIT_TERMS)):
                    line = f"if (({' | '.join(texts[at:at + EXIT_TERMS])}) == 0) begin {line} end"
                lines.append([f"{name} = 0;", line])
            else:
                lines.append([f"{name} = {(' & ' if op == 'and' else ' | ').join(texts)};"])
        return lines

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

    def _find_chunks(self):
        """Neighbours among the groups that hardly ever are active: (whether one of them is, groups), so that one look
        is enough for all of them. Others stand alone."""
        chunks = []
        for group in self._groups():
            active = min(group, key=lambda gate: len(gate.path)).active
            quiet = active is not None and active.op != "const" and self._support(active) != ALWAYS
            last = chunks[-1] if chunks else None
            if quiet and last is not None and last[0] is not None and len(last[1]) < self.TOGETHER:
                chunks[-1] = self.netlist.make.or_(last[0], active), [*last[1], group]
            else:
                chunks.append((active if quiet else None, [group]))
        return chunks

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

    def _ordered(self, statements, kept):
        """Statements in an order in which few read what another wrote before. Those that write the same stay in their
        order, as one. Those under one condition stand under one test; `kept`: expressions that stand in variables."""
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
        if self.MERGES:
            groups = self._merged(groups, kept)
        ordered = _before_writers([(tuple(group), self._reads(group), set(written(group))) for group in groups])
        found = []
        for statement in (statement for group in ordered for statement in group):
            last = found[-1] if found else None
            if self.MERGES and all(isinstance(s, If) and len(s.branches) == 1 for s in (last, statement)) and (
                    last.branches[0][0] is statement.branches[0][0]):
                found[-1] = If([(last.branches[0][0], last.branches[0][1] + statement.branches[0][1])])
            else:
                found.append(statement)
        return found

    def _merged(self, groups, kept):
        """The same groups, but those whose statements all stand under one condition, or a part of it, as one `If` for
        each such part. Those that write a memory that others read stand apart from those that do not, so that there is
        an order of all; who does both stays alone."""
        reads = [{item for item in self._reads(group) if not isinstance(item, Piece)} for group in groups]
        writes = [{item for item in written(group) if not isinstance(item, Piece)} for group in groups]
        shared = set().union(*reads) & set().union(*writes)
        parts_of, counts = {}, {}
        for number, group in enumerate(groups):
            parts = [_conjuncts(statement.branches[0][0], kept)
                     if isinstance(statement, If) and len(statement.branches) == 1 else {} for statement in group]
            common = [part for part in parts[0] if all(part in other for other in parts[1:])]
            if common:
                parts_of[number] = parts, common
                for part in common:
                    counts[part] = counts.get(part, 0) + len(group)
        chosen = {}
        for number, (_parts, common) in parts_of.items():
            best = max(common, key=lambda part: (counts[part], -part.serial))
            is_writer, is_reader = not shared.isdisjoint(writes[number]), not shared.isdisjoint(reads[number])
            chosen.setdefault((best, number if is_writer and is_reader else -1 - is_writer), []).append(number)
        found, taken = [], set()
        for (part, _kind), numbers in chosen.items():
            body = []
            for number in numbers:
                for statement, parts in zip(groups[number], parts_of[number][0], strict=True):
                    rest = [other for other in parts if other is not part]
                    inner = statement.branches[0][1]
                    body += [If([(functools.reduce(self.netlist.make.and_, rest), inner)])] if rest else inner
            if sum(len(groups[number]) for number in numbers) > 1 or any(
                    isinstance(statement, If) and self._cost_to(statement.branches[0][0], kept) >= WORTH_A_BRANCH
                    for statement in body):
                taken.update(numbers)
                found.append([If([(part, self._ordered(body, kept))])])
        return [*(group for number, group in enumerate(groups) if number not in taken), *found]

    def _cost_to(self, node, kept):
        """Operations of an expression down to those that stand in variables; 0 of None."""
        if node is None or node in kept:
            return 0
        return own_cost(node) + sum(self._cost_to(arg, kept) for arg in node.args)

    def read(self, piece):
        hazards = self._hazards
        if hazards is None or piece not in hazards.written:
            return self.names[piece]
        (hazards.old_there if piece in hazards.before else hazards.old_here).add(piece)
        return self._old(piece)

    def text(self, node, names):
        hazards = self._hazards
        if node.op == "word" and node not in names and hazards is not None and node.value in hazards.written:
            name = self.names[node.value]
            raise Unsupported(f"memory {name} is read after it was written, whatever the order of the gates")
        return super().text(node, names)

    def _clocked(self, parts):
        """The statements at the clock, and each of `parts` that has not been placed yet: before the first statement
        that needs it or would overwrite what it reads, and no sooner, so that little must be kept for long."""
        part_of = {node: part for part in parts for node in part.nodes}
        lines, hazards = [], _Hazards()

        def place(part):
            if part.placed:
                return
            part.placed = True
            for node in sorted(part.operands, key=lambda node: node.serial):
                place(part_of[node])
            lines.extend(part.lines)

        self._hazards = hazards
        bodies = {}
        hazards.enter_gate()
        seldom = self._gate_body(self._seldom, {})
        for group in (group for _active, groups in self._chunks for group in groups):
            for gate in group:
                hazards.enter_gate()
                body = self._gate_body(gate, self._kept)
                there, here = (sorted(pieces, key=self.names.get) for pieces in (hazards.old_there, hazards.old_here))
                for piece in there:
                    self._aside.setdefault(piece, []).append(gate)
                    body = _with_first(f"{self._old(piece)} = {self._before(piece)};", self._old(piece), body)
                bodies[gate] = [f"{self._old(piece)} = {self.names[piece]};" for piece in here] + body
        self._hazards = None
        changes = set(written(self._seldom.statements))
        for part in parts:
            if not part.reads.isdisjoint(changes):
                place(part)
        if seldom:
            asked = " || ".join({self.text(test, {}): None for statement in self._seldom.statements
                                 for test, _inner in statement.branches})
            lines += [f"if ({asked}) begin", *indented([self._mark(self._seldom), *seldom]), "end"]
        for active, groups in self._chunks:
            saves, asked = {}, [] if active is None else [active]
            gates = [gate for group in groups for gate in group]
            for gate in gates:
                saves[gate], more = self._saves(gate)
                asked += more
            needed = self._kept_of([node for gate in gates for node in expressions(gate.statements)]
                                   + [gate.active for gate in gates if gate.active is not None] + asked)
            for node in needed:
                place(part_of[node])
            changes = {item for gate in gates for item in written(gate.statements)}
            for part in parts:
                if not part.reads.isdisjoint(changes):
                    place(part)
            inner = [line for group in groups for line in self._group_lines(group, saves, bodies)]
            if len(groups) > 1:
                inner = [f"if ({self.holds(active)}) begin", *indented(inner), "end"]
            lines += inner
        for part in parts:
            place(part)
        return lines

    def _group_lines(self, group, saves, bodies):
        """The statements of a gate, and of those inside it, under whether they are active."""
        lines = []
        for gate in group:
            rest = saves[gate] + bodies[gate]
            if gate.active is not None:
                rest.insert(0, self._mark(gate))
            head = "" if gate.active is None else f"if ({self.holds(gate.active)}) "
            lines += [f"{head}begin  // {'.'.join(gate.path)}", *indented(rest), "end"]
        if len(group) > 1:
            outer = min(group, key=lambda gate: len(gate.path))
            lines = [f"if ({self.holds(outer.active)}) begin", *indented(lines), "end"]
        return lines

    def _saves(self, gate):
        """Lines that keep aside what a gate writes before others read it; and each `active` that they look at: several
        registers are kept only for those that will read them in this cycle."""
        found, asked = {}, []
        for piece in sorted((piece for piece in self._aside if piece.gate is gate), key=self.names.get):
            found.setdefault(tuple(self._aside[piece]), []).append(f"{self._saved(piece)} = {self.names[piece]};")
        lines = []
        for readers, kept in found.items():
            actives = [reader.active for reader in readers]
            if len(kept) > len(actives) and None not in actives:
                asked += actives
                kept = [f"if ({' || '.join(map(self.holds, actives))}) begin", *indented(kept), "end"]
            lines += kept
        return lines, asked

    def holds(self, active):
        """Whether a gate's statements must be executed."""
        return self.text(active, self._kept)

    def _kept_of(self, nodes):
        """The kept expressions that some are made of, in the order of their use."""
        found, seen, stack = {}, set(), nodes[::-1]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in self._is_kept:
                found[node] = None
            else:
                stack.extend(reversed(node.args))
        return list(found)

    def _before(self, piece):
        """The value before the clock of a register that another gate may have written."""
        if piece.gate.active is None:
            return self._saved(piece)
        return f"({self.holds(piece.gate.active)}) ? {self._saved(piece)} : {self.names[piece]}"

    def _gate_body(self, gate, kept):
        """Lines of a gate's statements; `kept`: expressions that stand in variables."""
        root = _Block(self._ordered(gate.statements, kept), None, 0)
        self._watch(root)
        places, order, seen = {}, [], set()

        def visit(node):
            seen.add(node)
            if node not in kept:
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
        names = dict(kept)
        for node in reversed(order):
            if node in kept or node.op in ("leaf", "const"):
                continue
            spots = places[node]
            if len(spots) > 1 and self.netlist.make.cost(node) >= WORTH_KEEPING:
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

    def _watch(self, root):
        """Calm registers that more than one statement may write at an edge are compared when all is done."""
        places = {}
        for index, statement in enumerate(root.statements):
            for piece in self._calm.keys() & set(written([statement])):
                places.setdefault(piece, []).append(index)
        self._watched = {piece for piece, indices in places.items()
                         if len(indices) > 1 or not _once(root.statements[indices[0]], piece)}
        for piece in sorted(self._watched, key=self.names.get):
            root.begins.setdefault(places[piece][0], []).append(piece)
            root.ends.setdefault(places[piece][-1], []).append(piece)

    def set(self, statement, names):
        text = super().set(statement, names)
        if not isinstance(statement, Set) or statement.piece not in self._calm or statement.piece in self._watched:
            return text
        target, _, value = text.removesuffix(";").partition(f" {self.assign} ")
        return f"if ({target} {self.differs} {value}) begin {text} {self._mark(statement.piece)} end"

    def _block_lines(self, block, names):
        lines, hazards = [], self._hazards
        for index, statement in enumerate(block.statements):
            lines += [f"{self._was(p)} = {self.names[p]};" for p in block.begins.get(index, ())]
            ends = [f"if ({self._was(p)} {self.differs} {self.names[p]}) begin {self._mark(p)} end"
                    for p in block.ends.get(index, ())]
            for node in block.temporaries.get(index, ()):
                name = self.temporary(names.pop(node), node.width)
                lines.append(f"{name} = {self.text(node, names)};")
                names[node] = name
            if isinstance(statement, (Set, Write)):
                lines += [self.set(statement, names), *ends]
                hazards.written.add(statement.piece if isinstance(statement, Set) else statement.column)
                continue
            # the conditions are read before any branch writes
            before, after, bodies = set(hazards.written), set(hazards.written), []
            for inner in block.inner[index]:
                hazards.written = set(before)
                bodies.append(self._block_lines(inner, names))
                after |= hazards.written
            hazards.written = before
            lines += self.branches(statement, names, bodies) + ends
            hazards.written = after
        return lines

    # ---- the module

    def body(self):
        """See `Writer.body`."""
        netlist = self.netlist
        parts = self._combinational()
        if netlist.clock is None:
            head = "always_comb begin"
            process = [*(f"{self._now(word)} = '1;" for word in self._words()), *in_order(parts)]
        else:
            head = f"always @(posedge {netlist.clock}) begin"
            process = [*self._entering(), *self._clocked(parts), *self._reset()]
        lines = [f"{vector(width)}{name}{'' if init is None else f' = {init}'};"
                 for name, (width, init) in self._variables.items()]
        automatic = [f"automatic {vector(width)}{name} = 0;" for name, width in self._temporaries.items()]
        return [*lines, head, *indented(automatic + process), "end"]

    def _entering(self):
        """Lines that say what has changed since the last time: at the last edge, and of the inputs. Those that hardly
        ever are 1 are looked at together."""
        resting = []
        lines = [f"{self._now(word)} = {self._changed(word)};" for word in self._words()]
        still = []
        for piece in self._entering_pieces():
            before = self.variable(self.unique("_before", piece.signal.name, piece.low), piece.width, 0)
            name = self.names[piece]
            rests = piece.signal.name in self._resting and piece.low == 0 and piece.width == 1
            (still if rests else lines).append(
                f"if ({before} {self.differs} {name}) begin {before} = {name}; {self._mark(piece, self._now)} end")
            if rests:
                resting.append(name)
        if still:
            any_now, any_before = " | ".join(resting), self.variable(self.unique("_before_any"), 1, 0)
            lines += [f"if (({any_now} | {any_before}) {self.differs} 0) begin", *indented(still),
                      f"  {any_before} = {any_now};", "end"]
        return lines + [f"{self._changed(word)} = {self._bits_text(0)};" for word in self._words()]

    def _entering_pieces(self):
        """Inputs that what is computed before the clock depends on."""
        return [source for source in self._bits if isinstance(source, Piece) and source.kind == "input"]

    def _reset(self):
        """What happens in reset."""
        if self.netlist.reset is None:
            return []
        lines = self.resets() + self._all_changed()
        return [f"if ({self.text(self.netlist.reset, {})}) begin", *indented(lines), "end"]

    def _all_changed(self):
        return [f"{self._changed(word)} = '1;" for word in self._words()]


class _Part:
    """Lines that compute expressions before the clock: `nodes`, from registers and memories, `reads`, and from other
    kept expressions, `operands`."""

    def __init__(self, lines, nodes, reads, operands):
        self.lines, self.nodes, self.reads, self.operands, self.placed = lines, nodes, reads, operands, False


def in_order(parts):
    """Lines of all parts, which are placed so."""
    for part in parts:
        part.placed = True
    return [line for part in parts for line in part.lines]


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
        self.begins, self.ends = {}, {}  # registers that are compared from one statement to another


def _conjuncts(node, kept):
    """Bits that must all be 1 for a bit to be so; `kept`: expressions that are not taken apart."""
    if node is None:
        return {}
    if node.op != "and" or node in kept:
        return {node: None}
    return {part: None for arg in node.args for part in _conjuncts(arg, kept)}


def _with_first(line, name, body):
    """Lines of statements, and `line` at the beginning of the innermost block that has all uses of a name."""
    block, common = [], None
    for number, text in enumerate(body):
        stripped = text.strip()
        if stripped == "end":
            block.pop()
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text):
            common = block[:] if common is None else [a for a, b in zip(common, block, strict=False) if a == b]
        if stripped.endswith("begin"):
            block.append(number)
    if not common:
        return [line, *body]
    at = common[-1] + 1
    space = " " * (len(body[common[-1]]) - len(body[common[-1]].lstrip()) + 2)
    return [*body[:at], space + line, *body[at:]]


def _once(statement, piece):
    """Whether a statement writes a piece at most once, whatever happens."""
    for inner in branches_of(statement):
        mine = [other for other in inner if piece in set(written([other]))]
        if len(mine) > 1 or (mine and not _once(mine[0], piece)):
            return False
    return True


def _last_before(a, b):
    """The last place, (block, index), that comes before both places."""
    while a[0] is not b[0]:
        if a[0].depth >= b[0].depth:
            a = (a[0].parent, a[0].index)
        else:
            b = (b[0].parent, b[0].index)
    return a[0], min(a[1], b[1])


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
