"""Expressions of unsigned words, each made once and simplified on the way.

Two equal expressions are one object, so a writer can count how often one is used. What a description writes lane by
lane (a multiplexer for each byte, a compare for each word) becomes operations on whole words where that is less work.
"""

from itertools import pairwise

LIMB_BITS = 64
"""Widest word that a processor works on at once."""

LANES = 4
"""So many neighbouring slices of equal width make a vector of lanes, which stays whole."""


class Node:
    """An expression of `width` bits, unsigned. `value` holds what is not an operand: a constant, a register, an
    offset. Made by `Expressions` only."""

    __slots__ = ("args", "op", "serial", "value", "width")

    def __init__(self, op, width, args, value, serial):
        self.op, self.width, self.args, self.value, self.serial = op, width, args, value, serial

    def __repr__(self):
        inner = ", ".join([*map(repr, self.args), *([] if self.value is None else [repr(self.value)])])
        return f"{self.op}{self.width}({inner})"


class Expressions:
    """Makes expressions, each once, and simplifies them on the way."""

    def __init__(self):
        self._known, self._rolls, self._costs = {}, {}, {}

    def _make(self, op, width, args=(), value=None):
        key = (op, width, value, *(a.serial for a in args))
        node = self._known.get(key)
        if node is None:
            node = self._known[key] = Node(op, width, args, value, len(self._known))
        return node

    def const(self, value, width):
        return self._make("const", width, (), value & ((1 << width) - 1))

    def leaf(self, piece):
        """A register's or an input's piece."""
        return self._make("leaf", piece.width, (), piece)

    def word(self, column, address):
        """A word of a memory's column, read without a clock."""
        return self._make("word", column.width, (address,), column)

    def cat(self, *parts):
        """Parts side by side, lowest first."""
        flat = []
        for part in parts:
            for piece in (part.args if part.op == "cat" else (part,)):
                if not piece.width:
                    continue
                last = flat[-1] if flat else None
                if last is not None and last.op == "const" and piece.op == "const":
                    flat[-1] = self.const(last.value | piece.value << last.width, last.width + piece.width)
                elif (last is not None and last.op == "slice" and piece.op == "slice" and last.args == piece.args
                        and last.value + last.width == piece.value):
                    flat[-1] = self.bits(last.args[0], last.value, piece.value + piece.width)
                else:
                    flat.append(piece)
        if not flat:
            return self.const(0, 0)
        if len(flat) == 1:
            return flat[0]
        whole = self._make("cat", sum(p.width for p in flat), tuple(flat))
        found = self._rolls.get(whole)
        if found is None:
            self._rolls[whole] = whole
            found = self._rolls[whole] = self._lanes(whole)
        return found

    # Lanes. What a description writes lane by lane, this writes with whole words: a cat of parts that differ only in
    # the place of their bits becomes one operation on words, if that is less work.

    def _lanes(self, whole):
        parts = whole.args
        if len(parts) == 2 and whole.width == 16 and all(p.width == 8 and p.op == "slice" for p in parts):
            low, high = parts
            if (low.args == high.args and low.value == high.value + 8 and high.value % 16 == 0
                    and low.args[0].width == LIMB_BITS):
                return self.bits(self._make("swap", LIMB_BITS, low.args), high.value, high.value + 16)
        if len(parts) < LANES:
            return whole
        joined = self._join_choices(parts)
        if len(joined) < len(parts):
            return self.cat(*joined)
        found, at = [], 0
        while at < len(parts):
            end = at
            while end < len(parts) and parts[end].width == parts[at].width:
                end += 1
            rolled = self._roll(parts[at:end]) if end - at >= LANES else None
            if rolled is None and end - at >= LANES:
                # the first or last lanes may be of another kind
                alike = at
                while alike < end and parts[alike].op == parts[at].op:
                    alike += 1
                if LANES <= alike - at < end - at:
                    end, rolled = alike, self._roll(parts[at:alike])
            if rolled is not None and 2 * self.cost(rolled) < sum(self.cost(p) + 2 for p in parts[at:end]):
                found.append(rolled)
            else:
                found += parts[at:end]
            at = end
        if len(found) == len(parts):
            return whole
        return self.cat(*found)

    def _join_choices(self, parts):
        """Neighbours that one bit chooses, as one choice between words where that is less work."""
        found, at = [], 0
        while at < len(parts):
            end = at + 1
            while (end < len(parts) and parts[at].op == parts[end].op == "mux"
                   and parts[end].args[0] is parts[at].args[0]):
                end += 1
            run = parts[at:end]
            if len(run) >= LANES and sum(part.width for part in run) <= LIMB_BITS:
                ones, zeros = (self.cat(*(part.args[n] for part in run)) for n in (1, 2))
                whole = self._make("mux", ones.width, (run[0].args[0], ones, zeros))
                if self.cost(whole) < sum(self.cost(part) + 2 for part in run):
                    run = [whole]
            found += run
            at = end
        return found

    def _roll(self, parts):
        """Parts of equal width side by side, as operations on words; None if they differ in kind."""
        first, count = parts[0], len(parts)
        width, op = first.width, first.op
        if all(part is first for part in parts):
            return self.replicate(first, count) if width == 1 else None
        if all(part.op == "const" for part in parts):
            return self.cat(*parts)
        if count % 2 == 0 and count > 2 and width == 1 and all(a is b for a, b in zip(parts[::2], parts[1::2])):
            inner = self._roll(parts[::2])
            return None if inner is None else self.spread(inner, 2)
        if any(part.op != op or len(part.args) != len(first.args) for part in parts):
            return None
        if op == "slice":
            if all(p.args == first.args and p.value == first.value + n * width for n, p in enumerate(parts)):
                return self.bits(first.args[0], first.value, first.value + count * width)
            return None
        if op == "not":
            inner = self._roll([part.args[0] for part in parts])
            return None if inner is None else self.not_(inner)
        if op in ("and", "or", "xor"):
            common = set(first.args).intersection(*(part.args for part in parts))
            ordered = []
            for part in parts:
                a, b = part.args
                if b in common or (not common and self._kind(b) < self._kind(a)):
                    a, b = b, a
                ordered.append((a, b))
            one, other = self._roll([a for a, _b in ordered]), self._roll([b for _a, b in ordered])
            return None if one is None or other is None else self.bitwise(op, one, other)
        if op == "replicate":
            inner = self._roll([part.args[0] for part in parts])
            return None if inner is None else self.spread(inner, width)
        if op == "mux":
            conditions, ones, zeros = (self._roll([part.args[n] for part in parts]) for n in range(3))
            if conditions is None or ones is None or zeros is None:
                return None
            mask = self.spread(conditions, width)
            return self.or_(self.and_(ones, mask), self.and_(zeros, self.not_(mask)))
        if op in ("ult", "ule", "eq"):
            return self._roll_compares(parts)
        return None

    @staticmethod
    def _kind(node):
        """What the operands of one side have in common from lane to lane."""
        return node.op, node.args[0].serial if node.args else -1

    def _roll_compares(self, parts):
        """Compares of one word with numbers that ascend by one."""
        op, count = parts[0].op, len(parts)
        for side in (0, 1):
            number, word = parts[0].args[side], parts[0].args[1 - side]
            if number.op != "const" or any(
                    p.args[1 - side] is not word or p.args[side].op != "const" or p.args[side].value != number.value + n
                    for n, p in enumerate(parts)):
                continue
            end = number.value + count
            if op == "eq":
                return self.bits(self.shift("left", self.const(1, end), word), number.value, end)
            # bit n of `from_word`: word <= n
            from_word = self.shift("left", self.const(-1, end), word)
            if (op == "ule") == (side == 0):  # numbers <= word, or word < numbers: one place further
                from_word = self.bits(self.cat(self.const(0, 1), from_word), 0, end)
            found = self.bits(from_word, number.value, end)
            return self.not_(found) if side == 0 else found
        return None

    def spread(self, bits, width):
        """Each bit `width` times."""
        if width == 1:
            return bits
        if bits.width == 1:
            return self.replicate(bits, width)
        if bits.op in ("const", "replicate", "cat"):
            return self.cat(*(self.replicate(self.bits(bits, n, n + 1), width) for n in range(bits.width)))
        if bits.op == "not":
            return self.not_(self.spread(bits.args[0], width))
        if bits.width * width > LIMB_BITS or bits.width > 8:
            half = min(8, bits.width // 2)
            return self.cat(self.spread(self.bits(bits, 0, half), width),
                            self.spread(self.bits(bits, half, bits.width), width))
        return self._make("spread", bits.width * width, (bits,), width)

    def _lift(self, bit, lane):
        """The 8 bits of which `bit` is number `lane`, if it is a function of bits at one place of words."""
        if bit.op == "slice" and bit.args[0].op == "leaf":
            base = bit.value - lane
            if base >= 0 and base % 8 == 0 and base + 8 <= bit.args[0].width:
                return self.bits(bit.args[0], base, base + 8)
        elif bit.op in ("and", "or", "xor", "not"):
            found = [self._lift(arg, lane) for arg in bit.args]
            if None not in found:
                return self.not_(found[0]) if bit.op == "not" else self.bitwise(bit.op, *found)
        return None

    def cost(self, node):
        """Operations of an expression down to its leaves, shared ones counted each time."""
        found = self._costs.get(node)
        if found is None:
            found = self._costs[node] = min(own_cost(node) + sum(self.cost(a) for a in node.args), 1 << 20)
        return found

    def bits(self, node, low, high):
        """Bits low .. high-1."""
        if low == 0 and high == node.width:
            return node
        if low >= high:
            return self.const(0, 0)
        op = node.op
        if op == "const":
            return self.const(node.value >> low, high - low)
        if op == "slice":
            return self.bits(node.args[0], node.value + low, node.value + high)
        if op == "cat":
            at, found = 0, []
            for part in node.args:
                if at < high and at + part.width > low:
                    found.append(self.bits(part, max(low - at, 0), min(high - at, part.width)))
                at += part.width
            return self.cat(*found)
        if op == "not":
            return self.not_(self.bits(node.args[0], low, high))
        if op in ("and", "or", "xor"):
            return self.bitwise(op, *(self.bits(a, low, high) for a in node.args))
        if op == "mux":
            condition, one, zero = node.args
            return self.mux(condition, self.bits(one, low, high), self.bits(zero, low, high))
        if op in ("add", "sub", "mul") and low == 0:
            return self.arithmetic(op, *(self.bits(a, 0, high) for a in node.args))
        if op == "replicate":
            return self.replicate(node.args[0], high - low)
        if op == "spread" and low % node.value == 0 and high % node.value == 0:
            return self.spread(self.bits(node.args[0], low // node.value, high // node.value), node.value)
        if op == "spread" and low // node.value == (high - 1) // node.value:
            at = low // node.value
            return self.replicate(self.bits(node.args[0], at, at + 1), high - low)
        return self._make("slice", high - low, (node,), low)

    def extend(self, node, width, signed=False):
        if width <= node.width:
            return self.bits(node, 0, width)
        more = width - node.width
        if signed and node.width:
            sign = self.bits(node, node.width - 1, node.width)
            return self.cat(node, self.replicate(sign, more))
        return self.cat(node, self.const(0, more))

    def replicate(self, bit, count):
        """`count` copies of one bit."""
        if bit.op == "const":
            return self.const(-bit.value, count)
        return bit if count == 1 else self._make("replicate", count, (bit,))

    def not_(self, a):
        if a.op == "const":
            return self.const(~a.value, a.width)
        if a.op == "not":
            return a.args[0]
        if a.op == "eq":
            return self._make("ne", 1, a.args)
        if a.op == "ne":
            return self._make("eq", 1, a.args)
        if a.op == "cat":
            return self.cat(*(self.not_(p) for p in a.args))
        return self._make("not", a.width, (a,))

    def bitwise(self, op, a, b):
        if a.width != b.width:
            raise ValueError(f"{op} of {a.width} and {b.width} bits")
        if a.serial > b.serial:
            a, b = b, a
        if "cat" in (a.op, b.op) and a.width > 1:
            cuts = sorted({0, a.width} | _cuts_of(a) | _cuts_of(b))
            return self.cat(*(self.bitwise(op, self.bits(a, low, high), self.bits(b, low, high))
                              for low, high in pairwise(cuts)))
        ones = (1 << a.width) - 1
        for this, other in ((a, b), (b, a)):
            if this.op != "const":
                continue
            if this.value == 0:
                return this if op == "and" else other
            if this.value == ones:
                return {"and": other, "or": this, "xor": None}[op] or self.not_(other)
        if a is b:
            return self.const(0, a.width) if op == "xor" else a
        if op != "xor" and self.not_(a) is b:
            return self.const(0 if op == "and" else -1, a.width)
        if op == "and" and a.width == 8:
            for byte, mask in ((a, b), (b, a)):
                if (byte.op == "slice" and byte.args[0].width == LIMB_BITS and byte.value % 8 == 0
                        and byte.args[0].op == "leaf" and mask.op == "replicate"):
                    lifted = self._lift(mask.args[0], byte.value // 8)
                    if lifted is not None:
                        masked = self.and_(byte.args[0], self.spread(lifted, 8))
                        return self._make("slice", 8, (masked,), byte.value)
        return self._make(op, a.width, (a, b))

    def and_(self, a, b):
        return self.bitwise("and", a, b)

    def or_(self, a, b):
        return self.bitwise("or", a, b)

    def mux(self, condition, one, zero):
        """`one` where `condition` (a bit) is 1, else `zero`."""
        if condition.op == "const":
            return one if condition.value else zero
        if one is zero:
            return one
        if condition.op == "not":
            return self.mux(condition.args[0], zero, one)
        if zero.op == "mux" and zero.args[0] is condition:
            zero = zero.args[2]
        if one.op == "mux" and one.args[0] is condition:
            one = one.args[1]
        if one.width == 1:
            if one.op == "const":
                return self.or_(condition, zero) if one.value else self.and_(self.not_(condition), zero)
            if zero.op == "const":
                return self.or_(self.not_(condition), one) if zero.value else self.and_(condition, one)
        if one.width == 8 and zero.op == "const" and zero.value == 0:
            return self.and_(one, self.replicate(condition, 8))
        if one.op == "cat" and zero.op == "cat":
            cuts = sorted({0, one.width} | (_cuts_of(one) & _cuts_of(zero)))
            if len(cuts) > 2:
                return self.cat(*(self.mux(condition, self.bits(one, low, high), self.bits(zero, low, high))
                                  for low, high in pairwise(cuts)))
        return self._make("mux", one.width, (condition, one, zero))

    def given(self, node, condition, value):
        """What an expression is where `condition`, a bit, is `value`, as far as that is easily seen."""
        if node is condition:
            return self.const(value, 1)
        if node.op == "mux":
            which, one, zero = (self.given(arg, condition, value) for arg in node.args)
            return self.mux(which, one, zero)
        if node.op == "cat":
            return self.cat(*(self.given(arg, condition, value) for arg in node.args))
        if node.op in ("and", "or"):
            return self.bitwise(node.op, *(self.given(arg, condition, value) for arg in node.args))
        if node.op == "not":
            return self.not_(self.given(node.args[0], condition, value))
        if node.op == "replicate":
            return self.replicate(self.given(node.args[0], condition, value), node.width)
        return node

    def arithmetic(self, op, a, b):
        """Sum, difference or product of two words, of their width."""
        if a.op == "const" and b.op == "const":
            result = {"add": a.value + b.value, "sub": a.value - b.value, "mul": a.value * b.value}[op]
            return self.const(result, a.width)
        if op != "mul" and b.op == "const" and b.value == 0:
            return a
        if op == "add" and a.op == "const" and a.value == 0:
            return b
        return self._make(op, a.width, (a, b))

    def equal(self, a, b):
        if a is b:
            return self.const(1, 1)
        if a.op == "const":
            a, b = b, a
        if b.op == "const":
            if a.op == "const":
                return self.const(a.value == b.value, 1)
            if a.width == 1:
                return a if b.value else self.not_(a)
            if a.op == "cat" and a.args[-1].op == "const":  # a zero-extended word
                low = a.width - a.args[-1].width
                if a.args[-1].value != b.value >> low:
                    return self.const(0, 1)
                return self.equal(self.bits(a, 0, low), self.const(b.value, low))
        if a.width > LIMB_BITS:
            result = self.const(1, 1)
            for low in range(0, a.width, LIMB_BITS):
                high = min(low + LIMB_BITS, a.width)
                result = self.and_(result, self.equal(self.bits(a, low, high), self.bits(b, low, high)))
            return result
        if b.op != "const" and a.serial > b.serial:
            a, b = b, a
        return self._make("eq", 1, (a, b))

    def less(self, a, b, or_equal, signed):
        if a.op == "const" and b.op == "const" and not signed:
            return self.const(a.value <= b.value if or_equal else a.value < b.value, 1)
        return self._make(("s" if signed else "u") + ("le" if or_equal else "lt"), 1, (a, b))

    def reduce(self, op, a):
        """`or`, `and` or `xor` of a word's bits."""
        if a.width == 0:
            return self.const(op == "and", 1)
        if a.width == 1:
            return a
        if a.op == "const":
            ones = bin(a.value).count("1")
            return self.const({"or": ones > 0, "and": ones == a.width, "xor": ones & 1}[op], 1)
        if a.op == "cat" or a.width > LIMB_BITS:
            parts = a.args if a.op == "cat" else [self.bits(a, low, min(low + LIMB_BITS, a.width))
                                                  for low in range(0, a.width, LIMB_BITS)]
            result = self.const(op == "and", 1)
            for part in parts:
                result = self.bitwise(op, result, self.reduce(op, part))
            return result
        if op == "and":
            return self.equal(a, self.const(-1, a.width))
        if op == "or":
            return self.not_(self.equal(a, self.const(0, a.width)))
        return self._make("parity", 1, (a,))

    def shift(self, op, a, amount):
        """`left`, `right` (zeros enter) or `signed` (copies of the highest bit enter)."""
        if amount.op == "const":
            by = min(amount.value, a.width)
            if op == "left":
                return self.cat(self.const(0, by), self.bits(a, 0, a.width - by))
            return self.extend(self.bits(a, by, a.width), a.width) if op == "right" or by == 0 else \
                self.cat(self.bits(a, by, a.width), self.replicate(self.bits(a, a.width - 1, a.width), by))
        if a.op == "const" and a.value == 0:
            return a
        return self._make({"left": "shl", "right": "shr", "signed": "sar"}[op], a.width, (a, amount))

    def divide(self, op, a, b):
        """Unsigned `div` or `mod`; 0 when divided by 0."""
        return self.mux(self.reduce("or", b), self._make(op, a.width, (a, b)), self.const(0, a.width))

    def matches(self, test, pattern):
        """Whether `test` has the bits of `pattern`: highest first, `-` for any."""
        result, at, width = self.const(1, 1), 0, len(pattern)
        while at < width:
            if pattern[width - 1 - at] == "-":
                at += 1
                continue
            end = at
            while end < width and pattern[width - 1 - end] != "-":
                end += 1
            wanted = int(pattern[width - end:width - at], 2)
            result = self.and_(result, self.equal(self.bits(test, at, end), self.const(wanted, end - at)))
            at = end
        return result

    def choose(self, test, cases, default):
        """The first of `cases`, (patterns, node), whose patterns match, else `default`."""
        plain = {}
        for patterns, node in cases:
            for pattern in patterns:
                if "-" in pattern:
                    plain = None
                    break
                plain.setdefault(int(pattern or "0", 2), node)
            if plain is None:
                break
        if plain is None:
            result = default
            for patterns, node in reversed(cases):
                condition = self.const(0, 1)
                for pattern in patterns:
                    condition = self.or_(condition, self.matches(test, pattern))
                result = self.mux(condition, node, result)
            return result
        # disjoint: those that give what the default gives need no compare, and the order is free
        groups = {}
        for value, node in plain.items():
            groups.setdefault(node, []).append(value)
        if len(plain) == 1 << test.width:
            default = max(groups, key=lambda node: len(groups[node]))
        groups.pop(default, None)
        if test.width > 2 and len(groups) > 4 and len(plain) == 1 << test.width:
            return self._tree(test, [plain[value] for value in range(1 << test.width)])
        result = default
        for node, values in groups.items():
            condition = self.const(0, 1)
            for value in values:
                condition = self.or_(condition, self.equal(test, self.const(value, test.width)))
            result = self.mux(condition, node, result)
        return result

    def _tree(self, test, nodes):
        if len(nodes) == 1:
            return nodes[0]
        half = len(nodes) // 2
        top = test.width - 1
        rest = self.bits(test, 0, top)
        return self.mux(self.bits(test, top, top + 1), self._tree(rest, nodes[half:]), self._tree(rest, nodes[:half]))


def _cuts_of(node):
    if node.op != "cat":
        return set() if node.op != "const" else set(range(1, node.width))
    at, found = 0, set()
    for part in node.args:
        if part.op == "const":
            found |= set(range(at, at + part.width))
        at += part.width
        found.add(at)
    return found


_COSTS = {"const": 0, "leaf": 1, "slice": 1, "not": 1, "word": 3, "mux": 2, "mul": 3, "div": 20, "mod": 20, "parity": 6,
          "sar": 4, "slt": 4, "sle": 4, "spread": 2, "swap": 5, "replicate": 2}


def own_cost(node):
    """Operations of an expression without those of its operands, roughly."""
    if node.op == "cat":
        return 2 * sum(part.op != "const" for part in node.args) - 1
    limbs = -(-node.width // LIMB_BITS)
    return _COSTS.get(node.op, 1) * (1 if limbs == 1 else 4 * limbs)
