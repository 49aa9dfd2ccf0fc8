"""What TCP gains on processors of its own: `memnic bench placements`.

Runs of the paper's first two machines at full load, without RTL, beside what the paper says of them; with its
applications: a simple multi-threaded server on the two-way machine, Apache on the four-way one. Each is repeated:
a seed sets how far the clients are (50 to 150 us) and how many (28 to 36). A row's value is the median, its note has
the spread. Where only interrupts and receive are moved, small things decide who sends what an acknowledgement lets go,
the host or the dedicated processor, and the spread is large.

Ref: Rangarajan et al., "TCP Servers" (2002), 5.1 and 5.2, Fig. 6, 8, 9
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from cosim.benches import BenchOptions
from cosim.benches.rows import Row, row
from cosim.engines import in_process
from cosim.engines.base import RunSpec, SystemResult
from cosim.impairments import BothWays, Impairments
from cosim.machine import load_application, load_machine
from cosim.systems import SYSTEMS
from cosim.workload import synthetic

US = 1_000_000
SEEDS = (1, 2, 3)
REQUESTS = 150

TWO_WAY, FOUR_WAY = "p2-300-smp2", "xeon-550-smp4"
APPLICATIONS = {TWO_WAY: "multithreaded", FOUR_WAY: "apache"}

ONE = ("ded1", "ded1-send", "ded1-poll", "ded1-send-poll")
TWO = ("ded2", "ded2-send", "ded2-poll", "ded2-send-poll")

Runs = dict[str, SystemResult]
"""System -> its run, of one seed."""


def served(system: str, machine: str, seed: int, requests: int = REQUESTS) -> SystemResult:
    """A run over the model: files of 16 KB, and clients that depend on the seed."""
    rng = random.Random(f"clients of {seed}")
    chosen, way = load_machine(machine), Impairments(delay_ps=rng.randrange(50 * US, 150 * US))
    return in_process.run(RunSpec(
        system=SYSTEMS[system], machine=chosen, application=load_application(APPLICATIONS[machine]),
        requests=synthetic(requests).requests, clients=rng.randrange(28, 37), link_bit_rate=chosen.link_bit_rate,
        device="default", seed=seed, impairments=BothWays(outbound=way, inbound=way, seed=seed)), _nothing)


def gain_percent(runs: Runs, name: str, over: str) -> float:
    """Requests a second more than another system serves."""
    return 100 * (runs[name].requests_per_s / runs[over].requests_per_s - 1)


def best_gain_percent(runs: Runs, names: Sequence[str], over: str) -> float:
    """Of the best of some, as the paper compares."""
    return max(gain_percent(runs, name, over) for name in names)


def idle_percent(runs: Runs, names: Sequence[str], dedicated: int, *, of_dedicated: bool) -> float:
    """Idle time of the dedicated processors, or of those that run processes; the least of some systems."""
    chosen = slice(-dedicated, None) if of_dedicated else slice(None, -dedicated)
    shares = [[100 * share.idle for share in runs[name].processors[chosen]] for name in names]
    return min(sum(idle) / len(idle) for idle in shares)


@dataclass(frozen=True)
class Shape:
    """Something that the paper says."""

    claim: str
    figure: str
    machine: str
    systems: tuple[str, ...]
    value: Callable[[Runs], float]
    sense: str
    bar: float
    note: str = ""


def _pairs(names: Sequence[str], others: Sequence[str]) -> Callable[[Runs], float]:
    """The least gain of each over its counterpart."""
    return lambda runs: min(gain_percent(runs, name, other) for name, other in zip(names, others, strict=True))


SHAPES = (
    Shape("F6", "best of one dedicated processor over smp", TWO_WAY, ("smp", *ONE),
          lambda runs: best_gain_percent(runs, ONE, "smp"), ">=", 26, "paper: up to +26 %"),
    Shape("F6.send", "best that also sends over best that does not", TWO_WAY, ("smp", *ONE),
          lambda runs: (best_gain_percent(runs, ("ded1-send", "ded1-send-poll"), "smp")
                        - best_gain_percent(runs, ("ded1", "ded1-poll"), "smp")), ">=", 0,
          "paper: helps only a little; here both are busy without it, since the dedicated one sends ten of twelve "
          "segments as acknowledgements let them go"),
    Shape("F6.poll", "polling over interrupts, one that also sends", TWO_WAY, ("ded1-send", "ded1-send-poll"),
          _pairs(["ded1-send-poll"], ["ded1-send"]), ">=", 0),
    Shape("F6.poll", "polling over interrupts, receive only", TWO_WAY, ("ded1", "ded1-poll"),
          _pairs(["ded1-poll"], ["ded1"]), ">=", 0, "fragile"),
    Shape("F8.gain", "two that poll, the better, over smp", FOUR_WAY, ("smp", "ded2-poll", "ded2-send-poll"),
          lambda runs: best_gain_percent(runs, ("ded2-poll", "ded2-send-poll"), "smp"), ">=", 25,
          "paper: +25 to 30 %; the machine is calibrated on it"),
    Shape("F8.two", "two dedicated processors over one, the least of four", FOUR_WAY, (*ONE, *TWO),
          _pairs(TWO, ONE), ">=", 0),
    Shape("F8.send", "two that also send over two that do not, the least of two", FOUR_WAY, TWO,
          _pairs(("ded2-send", "ded2-send-poll"), ("ded2", "ded2-poll")), ">=", 0,
          "paper: pays with two"),
    Shape("F8.send", "one that also sends over one that does not, the most of two", FOUR_WAY, ONE,
          lambda runs: -_pairs(("ded1", "ded1-poll"), ("ded1-send", "ded1-send-poll"))(runs), "<=", 0,
          "paper: does not pay with one"),
    Shape("F9.one", "idle time of the others, beside one that also sends", FOUR_WAY, ONE,
          lambda runs: idle_percent(runs, ("ded1-send", "ded1-send-poll"), 1, of_dedicated=False), ">=", 20,
          "paper: it is the bottleneck, and they idle"),
    Shape("F9.one", "its own idle time", FOUR_WAY, ONE,
          lambda runs: idle_percent(runs, ONE, 1, of_dedicated=True), "<=", 5),
    Shape("F9.two", "idle time of the others, beside two", FOUR_WAY, TWO,
          lambda runs: idle_percent(runs, ("ded2", "ded2-poll"), 2, of_dedicated=False), "<=", 5,
          "paper: they are the bottleneck"),
)


def measure(options: BenchOptions) -> list[Row]:
    """A row for each shape."""
    found: dict[tuple[str, str, int], SystemResult] = {}
    rows = []
    for shape in SHAPES:
        values = []
        for seed in SEEDS:
            for name in shape.systems:
                if (name, shape.machine, seed) not in found:
                    options.say(f"{name} on {shape.machine}, seed {seed}")
                    found[name, shape.machine, seed] = served(name, shape.machine, seed)
            values.append(shape.value({name: found[name, shape.machine, seed] for name in shape.systems}))
        spread = f"{min(values):.1f} to {max(values):.1f} over {len(SEEDS)} seeds"
        rows.append(row(f"{shape.claim}: {shape.figure}, {shape.machine}", median(values), "%", shape.sense, shape.bar,
                        f"{spread}; {shape.note}" if shape.note else spread))
    return rows


def _nothing(done: int, simulated_ps: int) -> None:
    """No progress is shown."""
