"""What TCP gains on a node behind a SAN: `memnic bench san`.

Runs of the paper's third machine without RTL, beside what the paper says of it. Each is repeated: a seed sets how far
the clients are (50 to 150 us), and when each request is due. A row's value is the median, its note has the spread. No
price of the SAN is calibrated on any of them.

Ref: Rangarajan et al., "TCP Servers" (2002), Fig. 10 to 12
"""

from __future__ import annotations

import random
from collections.abc import Callable
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
from cosim.world import TcpNodes, World
from host_driver.kernel_sockets import KernelSockets
from host_driver.memnet import MemNet

US = 1_000_000
MS = 1000 * US
SEEDS = (1, 2, 3)
REQUESTS = 200
CLIENTS = 60
OVERLOAD = 1.5
"""What is offered for the systems' own limits, times what Reg TCP serves."""
MACHINE = "p2-300-via"
SEND_BYTES = 16384
SENDS = 5

TCPS = ("tcps-sock", "tcps-sync", "tcps-async", "tcps-async-eacc", "tcps-async-ercv")
REGULAR = "reg-tcp"

Runs = dict[tuple[str, bool], SystemResult]
"""(system, whether the load is what saturates Reg TCP rather than more than anyone can serve) -> its run."""


def served(system: str, seed: int, rate: float | None, requests: int = REQUESTS) -> SystemResult:
    """A run over the model with files of 16 KB; `rate`: requests a second that are due."""
    rng = random.Random(f"clients of {seed}")
    chosen, way = load_machine(MACHINE), Impairments(delay_ps=rng.randrange(50 * US, 150 * US))
    return in_process.run(RunSpec(
        system=SYSTEMS[system], machine=chosen, application=load_application("multithreaded"),
        requests=synthetic(requests).requests, clients=CLIENTS, offered_rate=rate, link_bit_rate=chosen.link_bit_rate,
        device="default", seed=seed, impairments=BothWays(outbound=way, inbound=way, seed=seed)), _nothing)


def idle_share(result: SystemResult) -> float:
    """The host's, without the first and the last fifth of the run, in which not all clients have a request."""
    times = [interval.until_ps for interval in result.over_time]
    spent = [(until - since, interval.processors[0].idle)
             for since, until, interval in zip([0, *times], times, result.over_time, strict=False)
             if 0.2 * times[-1] < since < until < 0.8 * times[-1]]
    return sum(length * idle for length, idle in spent) / sum(length for length, _ in spent)


def send_us(how: str, length_bytes: int = SEND_BYTES) -> float:
    """What one send takes its caller on a host with nothing else to do: `async` or `sync` over the SAN, or `host`, a
    socket's on a host that has its own TCP."""
    world = World(machine=MACHINE, tcp_nodes=None if how == "host" else TcpNodes())
    kernel, times = world.kernel, list[int]()

    async def by_socket(memnet: MemNet) -> None:
        sockets = KernelSockets(world.server.interface, memnet.account)
        socket = await sockets.accept(sockets.listen(7))
        for _ in range(SENDS):
            await kernel.sleep(20 * MS)
            start_ps = kernel.now
            await socket.write(bytes(length_bytes))
            times.append(kernel.now - start_ps)
        await socket.close()

    async def by_memnet(memnet: MemNet) -> None:
        socket = await memnet.accept(memnet.listen(7))
        region = await memnet.register_mem(length_bytes)
        for _ in range(SENDS):
            await kernel.sleep(20 * MS)
            start_ps = kernel.now
            if how == "sync":
                await memnet.sync_send(socket, region)
                times.append(kernel.now - start_ps)
            else:
                job = await memnet.async_send(socket, region)
                times.append(kernel.now - start_ps)
                await job
        await memnet.close(socket)

    async def ask(memnet: MemNet) -> None:
        await kernel.sleep(50 * MS)
        socket = await memnet.create_connection(world.server.ip, 7)
        region = await memnet.register_mem(1 << 16)
        while await memnet.sync_recv(socket, region):
            pass

    world.start(world.server, by_socket if how == "host" else by_memnet, "server")
    world.start(world.client, ask, "client")
    world.run()
    return sum(times) / len(times) / US


@dataclass(frozen=True)
class Shape:
    """Something that the paper says of runs."""

    claim: str
    figure: str
    value: Callable[[Runs], float]
    sense: str
    bar: float
    note: str = ""


def _idle(name: str) -> Callable[[Runs], float]:
    return lambda runs: 100 * idle_share(runs[name, True])


def _gain(name: str, over: str = REGULAR) -> Callable[[Runs], float]:
    return lambda runs: 100 * (runs[name, False].requests_per_s / runs[over, False].requests_per_s - 1)


def _system(runs: Runs) -> float:
    return 100 * runs["tcps-async", True].processors[0].system


SHAPES = (
    Shape("F11.reg", "requests/s that saturate reg-tcp", lambda runs: runs[REGULAR, False].requests_per_s, ">=", 700,
          "costs are those of p2-300-smp2"),
    Shape("F11.sock", "tcps-sock over reg-tcp", _gain("tcps-sock"), ">=", 15, "paper: +15 %"),
    Shape("F11.sync", "tcps-sync over reg-tcp", _gain("tcps-sync"), ">=", 22, "paper: +22 %"),
    Shape("F11.async", "tcps-async over reg-tcp", _gain("tcps-async"), ">=", 30, "paper: about +30 %"),
    Shape("F11.eacc", "Eager Accept over tcps-async", _gain("tcps-async-eacc", "tcps-async"), "<=", 3,
          "paper: adds nothing"),
    Shape("F11.ercv", "Eager Receive over tcps-async", _gain("tcps-async-ercv", "tcps-async"), "<=", 0,
          "paper: adds nothing, and costs slightly"),
    Shape("F12.idle", "host idle with tcps-sync, where reg-tcp saturates", _idle("tcps-sync"), ">=", 40,
          "paper: about 40 %"),
    Shape("F12.idle", "host idle with tcps-async", _idle("tcps-async"), ">=", 40,
          "paper: about 40 %; it waits once less than tcps-sync, 7 % of a request"),
    Shape("F12.sock", "host idle with tcps-sock", _idle("tcps-sock"), ">=", 29, "paper: 29 %"),
    Shape("F12.sys", "system time of the host with tcps-async", _system, ">=", 50,
          "paper: about 50 %, 30 of it VIA and 10 unexplained, which are in the application's cost here"),
    Shape("F12.tcps", "the node's processor busy with tcps-async, offered more",
          lambda runs: 100 * runs["tcps-async", False].nodes[0].processors[0].busy, ">=", 95, "paper: it saturates"),
)


def measure(options: BenchOptions) -> list[Row]:
    """A row for each shape."""
    host, sync, asynchronous = (send_us(how) for how in ("host", "sync", "async"))
    rows = [row("F10.async: async_send of 16 KB returns after", asynchronous, "us", "<=", 8, "paper: below 8 us"),
            row("F10.sync: sync_send of 16 KB over a host's send", sync / host, "times", ">=", 1,
                f"{sync:.0f} us, {host:.0f} us")]
    runs = [_runs(options, seed) for seed in SEEDS]
    for shape in SHAPES:
        values = [shape.value(found) for found in runs]
        spread = f"{min(values):.1f} to {max(values):.1f} over {len(SEEDS)} seeds"
        rows.append(row(f"{shape.claim}: {shape.figure}", median(values), "/s" if "requests/s" in shape.figure else "%",
                        shape.sense, shape.bar, f"{spread}; {shape.note}"))
    return rows


def _runs(options: BenchOptions, seed: int) -> Runs:
    """All of one seed: Reg TCP as fast as it can, the others at that rate, and all of them offered more."""
    options.say(f"{REGULAR}, seed {seed}")
    found: Runs = {}
    rate = served(REGULAR, seed, None).requests_per_s
    for name in (REGULAR, *TCPS):
        for saturates, offered in ((True, rate), (False, OVERLOAD * rate)):
            options.say(f"{name}, {offered:.0f} requests/s offered, seed {seed}")
            found[name, saturates] = served(name, seed, offered)
    return found


def _nothing(done: int, simulated_ps: int) -> None:
    """No progress is shown."""
