"""Above which clock of its processor TCP on the device pays: `memnic bench crossover`.

Full load (32 clients, files of 16 KB) without RTL, `nic-tcp` beside `nic-tso`, while the device processor's clock goes
up and all else stays. Below the crossover the device processor is the bottleneck and the host waits for it; above it
the host has cycles to spare. The crossover is found by halving the range between the last clock that loses and the
first that wins. A faster device should not serve less: that is the bar of the sweep.
"""

from __future__ import annotations

import msgspec

from cosim.benches import BenchOptions
from cosim.benches.rows import Row, row
from cosim.engines import in_process
from cosim.engines.base import RunSpec, SystemResult
from cosim.machine import Machine, load_application, load_machine
from cosim.systems import SYSTEMS
from cosim.workload import synthetic

MHZ = 1_000_000
CLIENTS = 32
REQUESTS = 100
MACHINES = ("p2-300-smp2", "x86-server")
OFFLOADED, HOST = "nic-tcp", "nic-tso"
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Clocks of the sweep, of the host's clock."""
HALVINGS = 5
BREAK_EVEN_SHARE = 0.78
"""Device speed over host speed at which offload breaks even, as a model of such a server predicts."""


def served(system: str, machine: Machine, requests: int = REQUESTS, clients: int = CLIENTS) -> SystemResult:
    """One run over the model."""
    return in_process.run(RunSpec(
        system=SYSTEMS[system], machine=machine, application=load_application("apache"),
        requests=synthetic(requests).requests, clients=clients, link_bit_rate=machine.link_bit_rate,
        device="default"), lambda done, simulated_ps: None)


def with_device_clock(machine: Machine, clock_hz: int) -> Machine:
    """The machine with another clock of its device processor."""
    assert machine.device_processor is not None
    return msgspec.structs.replace(
        machine, device_processor=msgspec.structs.replace(machine.device_processor, clock_hz=clock_hz))


def gain(machine: Machine, clock_hz: int, host_requests_per_s: float) -> float:
    """Requests a second with TCP on a device of this clock, over those with TCP on the host."""
    return served(OFFLOADED, with_device_clock(machine, clock_hz)).requests_per_s / host_requests_per_s


def measure(options: BenchOptions) -> list[Row]:
    """The sweep of each machine, and where it crosses 1."""
    rows = []
    for name in MACHINES:
        machine = load_machine(name)
        options.say(f"{name}: {HOST}, then {OFFLOADED} at {len(SHARES)} clocks and {HALVINGS} more")
        host = served(HOST, machine).requests_per_s
        found = {round(machine.clock_hz * share): 0.0 for share in SHARES}
        for clock_hz in found:
            found[clock_hz] = gain(machine, clock_hz, host)
        loses = max((clock for clock, ratio in found.items() if ratio < 1), default=0)
        wins = min((clock for clock, ratio in found.items() if ratio >= 1 and clock > loses), default=None)
        before = 0.0
        for clock_hz, ratio in found.items():
            rows.append(row(f"{name}: {OFFLOADED} over {HOST}, device at {clock_hz / MHZ:,.0f} MHz", ratio, "times",
                            ">=", before, f"{100 * clock_hz / machine.clock_hz:.0f} % of the host's clock"))
            before = ratio
        crossover = None if wins is None else _crossover(machine, loses, wins, host)
        rows.append(row(
            f"{name}: crossover", None if crossover is None else crossover / MHZ, "MHz", "<=",
            BREAK_EVEN_SHARE * machine.clock_hz / MHZ,
            "no clock of the sweep wins" if crossover is None else
            f"{crossover / machine.clock_hz:.2f} of the host's clock; {HOST} serves {host:,.0f} requests/s"))
    return rows


def _crossover(machine: Machine, loses: int, wins: int, host: float) -> int:
    """The lowest clock that wins, to a part of the range."""
    for _ in range(HALVINGS):
        middle = (loses + wins) // 2
        if gain(machine, middle, host) >= 1:
            wins = middle
        else:
            loses = middle
    return wins
