"""What a flood of packets leaves of a host: `memnic bench overload`.

A client sends small TCP segments that nobody asked for at a fixed rate to a host with one processor, on which a process
computes without end. Counted are the packets that reach TCP, and the processor's share that the process gets, for each
way of being told. Without RTL: the device takes no time here, and drops what finds no posted buffer.

Ref: Mogul, Ramakrishnan, "Eliminating receive livelock in an interrupt-driven kernel" (1997): beyond some rate the
packets delivered become fewer, down to none, since all time goes to packets that are dropped later.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address

import msgspec

from cosim.benches import BenchOptions
from cosim.benches.rows import Row, row
from cosim.engines.model import ModelPort
from cosim.host import DRIVER_BYTES
from cosim.machine import PS_PER_SECOND, load_application, load_machine
from cosim.memory import HostMemory
from cosim.notification import driver_notification, with_notification
from cosim.processor import Processors
from cosim.systems import SYSTEMS
from cosim.wire import Wire
from host_driver.interface import NetworkInterface, Offloads
from host_driver.nic import Nic
from host_driver.runtime import Kernel
from host_driver.tcp import LINUX24
from host_driver.tcp.frames import packet
from nic_model.checksum import checksum_seed, internet_checksum
from nic_model.contract import CONFIGS
from nic_model.contract.protocols import EtherType, IpProtocol, TcpFlags
from nic_model.packets import EthernetHeader, pack_tcp

MACHINE = "p2-300-smp2"
RATES = (10_000, 40_000, 80_000, 160_000, 320_000, 640_000)
"""Packets a second; a gigabit carries 1,488,000 of them."""

DURATION_PS = 20 * 10**9
WARM_UP_PS = 10 * 10**9
CHUNK_CALLS = 100
"""The process computes for so many of `user.memnet_call`, then looks at its count: some 130 us."""

HOST_MAC, FLOOD_MAC = bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 9])
HOST_IP, FLOOD_IP = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.9")

LIVELOCK_PERCENT = 20.0
"""Of the best rate: what is delivered of the strongest flood where there is livelock."""
STEADY_PERCENT = 80.0
"""The same where there is none."""

KINDS: dict[str, str] = {
    "each": "an interrupt for each packet", "moderated": "moderated interrupts",
    "poll:200us": "polling every 200 us by the clock", "soft:200us": "soft timers, 200 us at least", "napi": "NAPI"}


@dataclass(frozen=True, kw_only=True)
class Overload:
    """What became of a flood."""

    offered_per_s: int
    delivered_per_s: float
    """Packets that reached TCP."""
    dropped_late_per_s: float
    """Packets that the interrupt handler took and nobody had room for: work for nothing."""
    process_share: float
    """Of the processor, for the process that computes."""


def flood(kind: str, rate_per_s: int, duration_ps: int = DURATION_PS) -> Overload:
    """Measure one rate, told as `cosim.notification.with_notification` has it."""
    machine = msgspec.structs.replace(load_machine(MACHINE), processors=1)
    kernel = Kernel()
    wire = Wire(kernel, bit_rate=machine.link_bit_rate)
    port = ModelPort(CONFIGS["default"], kernel, HostMemory(DRIVER_BYTES), wire,
                     read_latency_ps=machine.bus.mmio_read_ns * 1000)
    processors = Processors(kernel, machine, load_application("apache"))
    system = with_notification(SYSTEMS["nic-tso"], kind)
    process, link = processors.process_context("computes"), wire.attach(FLOOD_MAC, lambda frame: None)
    found: list[tuple[int, int, int]] = []

    async def compute() -> None:
        while True:
            process.charge("user", "memnet_call", CHUNK_CALLS)
            await process.settle()

    async def send() -> None:
        period_ps = PS_PER_SECOND // rate_per_s
        next_ps, frame = kernel.now, _frame()
        while True:
            link.transmit(frame)
            next_ps += period_ps
            await kernel.sleep_until(next_ps)

    async def main() -> None:
        interface = await NetworkInterface.open(
            await Nic.probe(port), mac=HOST_MAC, ip=HOST_IP, profile=LINUX24, rng=random.Random(rate_per_s),
            interrupt_account=processors.interrupt_context("interrupts"),
            softirq_account=processors.softirq_context("softirq"),
            background_account=processors.process_context("ksoftirqd"), offloads=Offloads(rx_checksum=True),
            notification=driver_notification(system, machine, system.placed_on(machine),
                                             processors.trigger_states))
        kernel.spawn(compute(), "process")
        kernel.spawn(send(), "flood")
        for wait_ps in (WARM_UP_PS, duration_ps):
            await kernel.sleep(wait_ps)
            found.append((processors.counts["tcp_recv", "rst"], interface.backlog_drops,
                          processors.busy_ps[0].get("user", 0)))

    task = kernel.spawn(main(), "overload")
    kernel.run_while(lambda: not task.done)
    task.result()
    delivered, dropped, user_ps = (after - before for before, after in zip(*found, strict=True))
    return Overload(offered_per_s=rate_per_s, delivered_per_s=delivered * PS_PER_SECOND / duration_ps,
                    dropped_late_per_s=dropped * PS_PER_SECOND / duration_ps, process_share=user_ps / duration_ps)


@cache
def _frame() -> bytes:
    """A reset of a connection that there is not: TCP looks for it, and is silent."""
    source, destination = FLOOD_IP.packed, HOST_IP.packed
    segment = pack_tcp(1234, 80, 1, 0, TcpFlags.RST, 0)
    seed = checksum_seed(source, destination, IpProtocol.TCP, len(segment))
    segment = pack_tcp(1234, 80, 1, 0, TcpFlags.RST, 0, checksum=internet_checksum(segment, seed))
    return (EthernetHeader(HOST_MAC, FLOOD_MAC, EtherType.IPV4).pack()
            + packet(source, destination, IpProtocol.TCP, segment))


def share_of_best(found: Sequence[Overload]) -> float:
    """Packets delivered of the strongest flood, in percent of the best rate."""
    return 100 * found[-1].delivered_per_s / max(one.delivered_per_s for one in found)


def measure(options: BenchOptions) -> list[Row]:
    """A row for each way of being told; by interrupts alone there should be livelock, as on a real host."""
    rows = []
    for kind, name in KINDS.items():
        found = []
        for rate in RATES:
            options.say(f"{name}, {rate:,} packets/s")
            found.append(flood(kind, rate))
        curve = ", ".join(f"{one.delivered_per_s / 1000:.1f} of {one.offered_per_s // 1000}" for one in found)
        left = 100 * found[-1].process_share
        late = f"{found[-1].dropped_late_per_s:,.0f} packets/s dropped behind the handler"
        livelock = kind in ("each", "moderated")
        rows.append(row(f"{name}: delivered of {RATES[-1]:,} packets/s, of the best rate", share_of_best(found), "%",
                        "<=" if livelock else ">=", LIVELOCK_PERCENT if livelock else STEADY_PERCENT,
                        f"thousands a second: {curve}; {late}; {left:.0f} % left to a process"))
    return rows
