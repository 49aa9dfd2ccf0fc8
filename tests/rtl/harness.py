"""What the tests of the RTL blocks share: streams with stalls, strobes, and a watch over `active`."""

import contextlib
import functools
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from amaranth.hdl import Cat, Const, Fragment, Module, ResetInserter, Signal, Value
from amaranth.lib.wiring import In, connect, flipped
from amaranth.sim import Simulator

PERIOD_SECONDS = 6.4e-9


def invariants(fragment: Fragment) -> Iterator[tuple[Value, str]]:
    """What the components of an elaborated block say of themselves (see `rtl.primitives`), and what is wrong if not."""
    for origin in fragment.origins or ():
        yield from getattr(origin, "invariants", ())
    for inside, _name, _where in fragment.subfragments:
        yield from invariants(inside)


@functools.lru_cache(maxsize=6)
def shared(block, *arguments, **named):
    """`block(*arguments, **named)` for a `Bench`: the same object for equal arguments. Each bench finds it as it is
    after power-up, but to elaborate it and to make code of it, which takes longer than many a run, happens once."""
    dut = block(*arguments, **named)
    dut._simulations = {}
    return dut


class _Simulation:
    """A block in Amaranth's simulator, which runs one bench after another.

    The simulator keeps all processes and test benches that it was ever given; so it is given *places*, each of which
    runs what stands in it.
    """

    def __init__(self, dut, *, now_registers: tuple[str, ...] = (), resets: bool = False):
        self.dut = dut
        self.reset = Signal() if resets else Const(0)
        fragment = Fragment.get(ResetInserter(self.reset)(dut) if resets else dut, None)
        self.registers = [s for s in _registers(fragment) if s.name not in now_registers]
        self.invariants = list(invariants(fragment))
        self.is_watched = hasattr(dut, "active") and bool(self.registers)
        top = Module()
        top.submodules.dut = fragment
        self.state = _computed(top, Cat(*self.registers)) if self.is_watched else Const(0)
        self.may_change = _computed(top, dut.active | self.reset) if self.is_watched else Const(0)
        self.held = _computed(top, Cat(Value.cast(condition).bool() for condition, _ in self.invariants))
        self.simulator = Simulator(top)
        self.simulator.add_clock(PERIOD_SECONDS)
        self._has_run = False
        self._processes: list[Callable[[Any], Any]] = []
        self._testbenches: list[tuple[Callable[[Any], Any], bool]] = []
        self._places = {"processes": 0, "testbenches": 0}

    def run(self, processes, testbenches, vcd: str | None) -> None:
        """From power-up on, until the test benches that are no background ones have ended."""
        if self._has_run:
            self.simulator.reset()
        self._has_run = True
        self._processes, self._testbenches = processes, testbenches
        for number in range(self._places["processes"], len(processes)):
            self.simulator.add_process(self._process(number))
        for number in range(self._places["testbenches"], len(testbenches)):
            self.simulator.add_testbench(self._testbench(number), background=True)
        for kind, there in (("processes", processes), ("testbenches", testbenches)):
            self._places[kind] = max(self._places[kind], len(there))
        try:
            with self.simulator.write_vcd(vcd) if vcd is not None else contextlib.nullcontext():
                self.simulator.run()
        except BaseException:
            shared.cache_clear()  # it stopped in the middle of an instant, from where no reset leads
            raise

    def _process(self, number: int):
        async def process(ctx):
            if number < len(self._processes):
                await self._processes[number](ctx)
        return process

    def _testbench(self, number: int):
        async def testbench(ctx):
            if number < len(self._testbenches):
                run, background = self._testbenches[number]
                with contextlib.nullcontext() if background else ctx.critical():
                    await run(ctx)
        return testbench


def lead_out(m, outer, block, names, *, prefix=""):
    """Make members of a block inside `outer` ports of `outer`: those of the same names, behind `prefix`."""
    for name in names:
        member, ours, theirs = block.signature.members[name], getattr(outer, prefix + name), getattr(block, name)
        if member.is_port:
            m.d.comb += theirs.eq(ours) if member.flow == In else ours.eq(theirs)
        elif member.flow == In:
            connect(m, flipped(ours), theirs)
        else:
            connect(m, theirs, flipped(ours))


class Bench:
    """One block under Amaranth's simulator.

    Sources, sinks and test benches are added, then `run` simulates until all test benches (and all sources) have ended.
    Meanwhile each clock edge at which `active` was 0 is checked to have changed no register of the block.

    Parameters
    ----------
    dut : Component
        The block, of its own or `shared`; if it has a member `active`, that is watched.
    seed : int
        Of all random stalls; print it, or make it a parameter of the test.
    now_registers : tuple of str
        Names of registers that may change although `active` is 0, since they follow `now`.
    resets : bool
        Whether `reset` may be called.
    """

    def __init__(self, dut, *, seed: int = 0, now_registers: tuple[str, ...] = (), resets: bool = False):
        self.dut = dut
        self.rng = random.Random(seed)
        self.cycle = 0
        self.idle_cycles = 0
        self._max_cycles = 0
        kept = getattr(dut, "_simulations", {})
        if (now_registers, resets) not in kept:
            kept[now_registers, resets] = _Simulation(dut, now_registers=now_registers, resets=resets)
        self._simulation = kept[now_registers, resets]
        self._processes = [self._count]
        self._testbenches = []
        if self._simulation.is_watched:
            self._processes.append(self._watch)
        if self._simulation.invariants:
            self._processes.append(self._check_invariants)

    async def _count(self, ctx):
        async for _ in ctx.tick():
            self.cycle += 1
            assert self.cycle < self._max_cycles, f"not done after {self.cycle} cycles"

    async def _watch(self, ctx):
        before, was_active = None, True
        async for _, _, active, now in ctx.tick().sample(self._simulation.may_change, self._simulation.state):
            if not was_active:
                self.idle_cycles += 1
                assert now == before, f"cycle {self.cycle}: {self._changed(before, now)} changed while active was 0"
            before, was_active = now, active

    async def _check_invariants(self, ctx):
        async for _, _, seen in ctx.tick().sample(self._simulation.held):
            wrong = [what for bit, (_, what) in enumerate(self._simulation.invariants) if not seen >> bit & 1]
            assert not wrong, f"cycle {self.cycle}: {', '.join(wrong)}"

    def _changed(self, before: int, now: int) -> str:
        names, offset = [], 0
        for register in self._simulation.registers:
            if (before ^ now) >> offset & ((1 << len(register)) - 1):
                names.append(register.name)
            offset += len(register)
        return ", ".join(names)

    def add(self, testbench: Callable[[Any], Any]) -> None:
        """Add `async def testbench(ctx)`; the run lasts until it ends."""
        self._testbenches.append((testbench, False))

    def source(self, stream, payloads, *, stall: float = 0.0) -> None:
        """Offer each of `payloads` (a list, or a generator that may be fed meanwhile) on `stream`, idle with
        probability `stall` before each; the run lasts until all are taken."""
        async def testbench(ctx):
            for payload in payloads:
                await self.send(ctx, stream, payload, stall=stall)
        self.add(testbench)

    def feed(self, stream, queue: deque) -> None:
        """Offer what stands in `queue`, pairs of a cycle and a payload, each from its cycle on; the run does not wait
        for it."""
        async def testbench(ctx):
            while True:
                if queue and queue[0][0] <= self.cycle:
                    await self.send(ctx, stream, queue.popleft()[1])
                else:
                    await ctx.tick()
        self.background(testbench)

    async def reset(self, ctx) -> None:
        """Reset all registers of the block; its memories keep what they hold."""
        ctx.set(self._simulation.reset, 1)
        await ctx.tick()
        ctx.set(self._simulation.reset, 0)

    async def send(self, ctx, stream, payload, *, stall: float = 0.0) -> None:
        """Offer one payload on `stream` and wait until it is taken."""
        while self.rng.random() < stall:
            await ctx.tick()
        ctx.set(stream.payload, payload)
        ctx.set(stream.valid, 1)
        await until(ctx, stream.ready)
        ctx.set(stream.valid, 0)

    def sink(self, stream, taken: list, *, stall: float = 0.0) -> None:
        """Take what `stream` offers into `taken` (as ints, or dicts for structures), refusing with probability
        `stall` in each cycle. A payload that changes or is withdrawn before it is taken fails the run."""
        async def testbench(ctx):
            refused = None
            ctx.set(stream.ready, self.rng.random() >= stall)
            async for _, _, valid, ready, payload in ctx.tick().sample(stream.valid, stream.ready, stream.payload):
                value = plain(payload)
                assert refused is None or (valid and value == refused), f"cycle {self.cycle}: an offer was not kept"
                if valid and ready:
                    taken.append(value)
                refused = value if valid and not ready else None
                ctx.set(stream.ready, self.rng.random() >= stall)
        self._testbenches.append((testbench, True))

    def strobes(self, strobe, seen: list, *, with_cycle: bool = False) -> None:
        """Collect each payload of a strobe into `seen`; as (cycle, payload) if asked."""
        async def process(ctx):
            async for _, _, valid, payload in ctx.tick().sample(strobe.valid, strobe.payload):
                if valid:
                    seen.append((self.cycle, plain(payload)) if with_cycle else plain(payload))
        self._processes.append(process)

    async def strobe(self, ctx, strobe, payload) -> None:
        """Give one strobe, which ends with the next clock edge."""
        ctx.set(strobe.payload, payload)
        ctx.set(strobe.valid, 1)
        await ctx.tick()
        ctx.set(strobe.valid, 0)

    def background(self, testbench: Callable[[Any], Any]) -> None:
        """Add a test bench that the run does not wait for."""
        self._testbenches.append((testbench, True))

    def run(self, *, max_cycles: int = 20_000, vcd: str | None = None) -> None:
        """Simulate until all test benches have ended; fails after `max_cycles`. `vcd` names a waveform file."""
        self._max_cycles = max_cycles
        self._simulation.run(self._processes, self._testbenches, vcd)


_MOST_BITS = 8192
"""Of one signal: the simulator writes its mask in decimal, and Python reads no more than 4300 digits."""


def _computed(m: Module, value: Value) -> Value:
    """What the design computes: the simulator compiles what stands in a design, but walks through an expression that a
    test bench samples, each time, which takes far longer."""
    signals = []
    for at in range(0, len(value), _MOST_BITS):
        part = value[at:at + _MOST_BITS]
        signals.append(Signal(len(part)))
        m.d.comb += signals[-1].eq(part)
    return Cat(*signals)


def plain(value):
    """A sampled payload as an int, or as a dict of ints for a structure."""
    if hasattr(value, "shape") and hasattr(value, "as_value"):
        return {name: plain(value[name]) for name, _ in value.shape()}
    return int(value)


async def idle(ctx, cycles: int) -> None:
    """Let `cycles` pass."""
    for _ in range(cycles):
        await ctx.tick()


async def until(ctx, condition, *sampled) -> list:
    """Let cycles pass up to and with the first at whose edge `condition` holds; the values of `sampled` at that edge.

    Use this and `idle`, not `until` and `repeat` of Amaranth's triggers: those complain when a background test bench
    still waits in them at the end of the run.
    """
    while True:
        _, _, holds, *values = await ctx.tick().sample(condition, *sampled)
        if holds:
            return values


def _registers(fragment) -> list[Signal]:
    """All signals that a clocked statement drives, in the block and what is inside it. Memory words are not among
    them; their write ports' data and addresses usually are."""
    found: dict[int, Signal] = {}
    for domain, statements in fragment.statements.items():
        if domain != "comb":
            for signal in statements._lhs_signals():
                found[id(signal)] = Value.cast(signal)
    for inner, *_ in fragment.subfragments:
        for signal in _registers(inner):
            found[id(signal)] = signal
    return list(found.values())
