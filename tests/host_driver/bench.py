"""What the driver's tests run on: a model device on a trivial wire, a software TCP peer behind it, counted work."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from ipaddress import ip_address
from typing import Any, TypeVar

from cosim.engines.model import ModelPort
from cosim.mac import MacTiming, SentFrame
from cosim.memory import HostMemory
from host_driver.account import ITEMS, NullAccount
from host_driver.interface import NetworkInterface, Offloads
from host_driver.nic import Nic
from host_driver.notification import Notification
from host_driver.port import Port
from host_driver.runtime import Kernel
from host_driver.softirq import PerProcessor
from host_driver.tcp.connection import Connection
from host_driver.tcp.profile import RFC, Profile
from host_driver.tcp.stack import Stack
from nic_model.contract import CONFIGS
from tests.host_driver.posted_port import PostedMemory, PostedPort

T = TypeVar("T")

HOST_MAC = bytes.fromhex("02000000aa01")
PEER_MAC = bytes.fromhex("02000000bb02")
ADDRESSES = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}
MS = 10**9
DELAY_PS = 20_000_000


class CountingAccount:
    """An account without a processor: counts what is charged, and lets a little time pass when it settles."""

    def __init__(self, kernel: Kernel, settle_ps: int = 1000) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._kernel = kernel
        self._settle_ps = settle_ps

    def charge(self, category: str, item: str, count: int = 1) -> None:
        assert item in ITEMS[category]
        self.counts[category, item] += count

    async def settle(self) -> None:
        await self._kernel.sleep(self._settle_ps)


class TrivialWire:
    """Implements `cosim.mac.Mac`: a delay, and a FIFO for a few frames; `lose` says which frames vanish."""

    def __init__(self, kernel: Kernel) -> None:
        self.timing = MacTiming(bit_rate=10**10)
        self.deliver: Callable[[bytes, bool, int], None] = lambda frame, bad, time: None
        self.to_peer: Callable[[bytes], None] = lambda frame: None
        self.lose: Callable[[bytes], bool] = lambda frame: False
        self.frames: list[bytes] = []
        self._kernel = kernel

    def transmitted(self, frames: Sequence[SentFrame]) -> None:
        for frame in frames:
            self.frames.append(frame.data)
            if not self.lose(frame.data):
                self._kernel.call_at(frame.taken_ps + DELAY_PS, lambda data=frame.data: self.to_peer(data))

    def from_peer(self, frame: bytes) -> None:
        if not self.lose(frame):
            self._kernel.call_at(self._kernel.now + DELAY_PS,
                                 lambda: self.deliver(frame, False, self._kernel.now))


class Peer:
    """A TCP stack at the other end of the wire, without a device and without cost."""

    def __init__(self, kernel: Kernel, wire: TrivialWire, version: int, seed: int, mtu: int, *,
                 static_neighbours: bool = True) -> None:
        host_ip, own_ip = ADDRESSES[version]
        self.stack = Stack(mac=PEER_MAC, ip=ip_address(own_ip), profile=RFC, mtu=mtu,
                           account=NullAccount(), rng=random.Random(seed))
        if static_neighbours:
            self.stack.add_neighbour(ip_address(host_ip), HOST_MAC)
        self.kernel = kernel
        self._wire = wire
        wire.to_peer = self._receive

    def _receive(self, frame: bytes) -> None:
        self.stack.receive(frame, self.kernel.now)
        self.push()

    def push(self) -> None:
        """Send what may be sent, and look again when a timer is due."""
        self.stack.poll(self.kernel.now)
        for segment in self.stack.transmit(self.kernel.now):
            self._wire.from_peer(segment.frame())
        deadline = self.stack.next_deadline()
        if deadline is not None:
            self.kernel.call_at(deadline, self._timer)

    def _timer(self) -> None:
        deadline = self.stack.next_deadline()
        if deadline is not None and deadline <= self.kernel.now:
            self.push()

    async def wait(self, until: Callable[[], bool]) -> None:
        """Look every 10 us until something holds."""
        while not until():
            await self.kernel.sleep(10**7)

    async def read_all(self, connection: Connection, length: int | None = None) -> bytes:
        """Bytes up to the FIN, or so many."""
        data = bytearray()
        while length is None or len(data) < length:
            await self.wait(lambda: connection.readable)
            part = connection.recv(1 << 20)
            self.push()
            if not part and connection.peer_closed:
                break
            data += part
        return bytes(data)


class Bench:
    """Kernel, memory, port, wire and peer. `run` drives the clock until a coroutine ends."""

    def __init__(self, *, barriers: bool = False, version: int = 4, seed: int = 1, config: str = "tiny",
                 profile: Profile = RFC, peer_mtu: int = 1500, memory_bytes: int = 1 << 22,
                 static_neighbours: bool = True) -> None:
        self.kernel = Kernel()
        self.wire = TrivialWire(self.kernel)
        self.version = version
        self.profile = profile
        self.seed = seed
        self.host_ip, self.peer_ip = ADDRESSES[version]
        self.port: Port
        self.model: ModelPort
        if barriers:
            self.model = PostedPort(CONFIGS[config], self.kernel, PostedMemory(memory_bytes), self.wire)
        else:
            self.model = ModelPort(CONFIGS[config], self.kernel, HostMemory(memory_bytes), self.wire)
        self.port = self.model
        self.static_neighbours = static_neighbours
        self.peer = Peer(self.kernel, self.wire, version, seed, peer_mtu, static_neighbours=static_neighbours)
        self.interrupt = CountingAccount(self.kernel)
        self.softirq = CountingAccount(self.kernel)
        self.background = CountingAccount(self.kernel)
        self.process = CountingAccount(self.kernel)

    async def interface(self, offloads: Offloads | None = None,
                        notification: Notification | None = None, mtu: int = 1500,
                        softirqs: PerProcessor | None = None) -> NetworkInterface:
        nic = await Nic.probe(self.port)
        interface = await NetworkInterface.open(
            nic, mac=HOST_MAC, ip=ip_address(self.host_ip), profile=self.profile, rng=random.Random(self.seed),
            interrupt_account=self.interrupt, softirq_account=softirqs or self.softirq,
            background_account=self.background, offloads=offloads,
            notification=notification, mtu=mtu)
        if self.static_neighbours:
            interface.stack.add_neighbour(ip_address(self.peer_ip), PEER_MAC)
        return interface

    def run(self, coroutine: Coroutine[Any, None, T], limit_ps: int = 100_000 * MS) -> T:
        task = self.kernel.spawn(coroutine, "test")
        task.add_callback(lambda _task: None)
        while not task.done:
            due = self.kernel.next_time()
            waiting = {t.name: t.waits_for for t in self.kernel.tasks}
            assert due is not None, f"deadlock: {waiting}"
            assert due <= limit_ps, f"not done after {limit_ps} ps: {waiting}"
            self.kernel.run_until(due)
        return task.result()

    @property
    def charged(self) -> Counter[tuple[str, str]]:
        """Everything that was charged, whoever paid."""
        return self.interrupt.counts + self.softirq.counts + self.background.counts + self.process.counts
