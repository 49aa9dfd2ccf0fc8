"""What proofs claim: assumptions about who drives a block, assertions about the block, and rules of whole ports."""

# Ref: AMBA AXI and ACE Protocol Specification, ARM IHI 0022H, A3.2.1 (handshake), A3.4.1 (bursts)

from __future__ import annotations

from typing import Any

from amaranth.hdl import Assert, Assume, Cover, Fragment, Module, Signal, Value


class Claims:
    """Adds claims to a module round a block. `inputs`: signals that the solver picks anew in each cycle."""

    def __init__(self, m: Module, fragment: Fragment) -> None:
        self.m = m
        self._fragment = fragment
        self.inputs: list[Signal] = []
        self.started = Signal(name="started")
        """1 from the second cycle on: what `past` gives means something."""
        m.d.sync += self.started.eq(1)

    # ---------------------------------------------------------------------------------------------- statements

    def holds(self, condition: Any, when: Any = 1) -> None:
        """Assert `condition` in each cycle in which `when`."""
        self.m.d.comb += Assert(~_bit(when) | _bit(condition), src_loc_at=1)

    def given(self, condition: Any, when: Any = 1) -> None:
        """Assume it."""
        self.m.d.comb += Assume(~_bit(when) | _bit(condition))

    def reached(self, condition: Any) -> None:
        """The solver must find a way there."""
        self.m.d.comb += Cover(_bit(condition), src_loc_at=1)

    # ---------------------------------------------------------------------------------------------- helpers

    def any(self, shape: Any = 1, name: str = "any") -> Signal:
        """A value that the solver picks anew in each cycle."""
        picked = Signal(shape, name=name)
        self.inputs.append(picked)
        return picked

    def constant(self, shape: Any, name: str = "constant") -> Signal:
        """A value that the solver picks once."""
        picked, kept = self.any(shape, name), Signal(shape, name=f"{name}_kept")
        self.m.d.sync += kept.eq(picked)
        self.given(picked == kept, self.started)
        return picked

    def part(self, *names: str) -> Any:
        """The component of that path inside the block, for claims about what passes between its parts."""
        fragment = self._fragment
        for name in names:
            fragment = next(inside for inside, given, _where in fragment.subfragments if given == name)
        return (fragment.origins or [None])[0]

    def past(self, value: Any, name: str = "past") -> Signal:
        """A value in the cycle before; 0 in the first."""
        kept = Signal(len(Value.cast(value)), name=name)
        self.m.d.sync += kept.eq(value)
        return kept

    def inside(self, enters: Any, leaves: Any, bits: int, name: str = "inside") -> Signal:
        """How many have entered and not left, before this cycle's moves."""
        count = Signal(bits, name=name)
        self.m.d.sync += count.eq(count + enters - leaves)
        return count

    # ---------------------------------------------------------------------------------------------- rules

    def stream(self, stream: Any, *, given: bool = False) -> None:
        """A3.2.1: "Once VALID is asserted it must remain asserted until the handshake occurs", and the payload with
        it. `given`: the block's environment does so; else the block must."""
        claim = self.given if given else self.holds
        waits = self.past(stream.valid & ~stream.ready, "waits")
        payload = self.past(Value.cast(stream.payload), "payload_before")
        claim(stream.valid & (Value.cast(stream.payload) == payload), waits)

    def same_order(self, i: Any, o: Any, bits: int) -> Signal:
        """What enters stream `i` leaves `o` once, in its order, unchanged: shown for one entry that the solver picks.
        Returns how many are inside."""
        m, enters, leaves = self.m, i.valid & i.ready, o.valid & o.ready
        inside = self.inside(enters, leaves, bits)
        watched = self.any(name="watched")
        seen, kept = Signal(name="seen"), Signal(len(Value.cast(i.payload)), name="kept")
        ahead = Signal(bits, name="ahead")  # up to the watched one, itself included; 0 when it has left
        with m.If(enters & watched & ~seen):
            m.d.sync += [seen.eq(1), kept.eq(i.payload), ahead.eq(inside + 1 - leaves)]
        with m.Elif((ahead != 0) & leaves):
            m.d.sync += ahead.eq(ahead - 1)
        self.holds(Value.cast(o.payload) == kept, (ahead == 1) & leaves)
        self.holds(inside != 0, leaves)
        self.reached((ahead == 1) & leaves & (inside > 1))
        return inside

    def answered_within(self, waits: Any, served: Any, bound: int, name: str = "waited") -> None:
        """Who waits is served within `bound` cycles."""
        waited = Signal(range(bound + 2), name=name)
        with self.m.If(_bit(waits) & ~_bit(served)):
            self.m.d.sync += waited.eq(waited + 1)
        with self.m.Else():
            self.m.d.sync += waited.eq(0)
        self.holds(waited <= bound)


def _bit(value: Any) -> Value:
    return Value.cast(value).bool() if len(Value.cast(value)) != 1 else Value.cast(value)
