"""The server's machine: driver and TCP over a port, and the server's processes with their way to the clients."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Any

from cosim.engines.base import RunSpec
from cosim.memory import PAGE_BYTES
from cosim.notification import driver_notification
from cosim.pool import MAX_SPAWN_RATE, ProcessPool
from cosim.processor import Context, Processors
from cosim.server import RECEIVE_BYTES, ServerConnection, ServerProcess, longest_response_bytes
from cosim.socket_transport import SocketTransport
from cosim.systems import System
from host_driver.account import Account
from host_driver.endpoint import Listening
from host_driver.errors import NetworkError
from host_driver.firmware import Firmware
from host_driver.host_tcp import HostTcp
from host_driver.interface import NetworkInterface, Offloads
from host_driver.kernel_sockets import KernelSockets
from host_driver.memnet import ChannelSettings, Job, MemNet, MemNetSocket, MemoryRegion, TcpServer, pool_bytes
from host_driver.memnet.provider import Provider
from host_driver.multiprocessor import Multiprocessor, SharedWork
from host_driver.nic import Nic
from host_driver.offload_interface import OffloadInterface
from host_driver.offload_tcp import OffloadTcp, ring_pool_bytes
from host_driver.placement import OffloadBelow
from host_driver.port import Port
from host_driver.queued_tcp import QueuedTcp
from host_driver.softirq import PerProcessor
from host_driver.tcp import LINUX24
from nic_model.contract.config import PortFacts

BACKLOG = 511
"""Apache's ListenBacklog."""

RESPONSE_BUFFERS = 4
"""Registered response buffers of a MemNet process."""

CHANNELS = ChannelSettings(channels=16, send_bytes=4096, receive_bytes=4096)
"""What a MemNet process asks for at its start. Its sends come from its own memory, so that the rings can be small."""

DRIVER_BYTES = 4 << 20
"""Host memory for the driver's rings and packet buffers, with room to spare."""


class ServerHost:
    """The server's machine. `start` brings it up; it then serves for ever, and has `pool`.

    Parameters: `spec`, which names the system; `port`, the device; `processors`, which the work is charged to; the
    server's addresses; `neighbours`, MAC and IP address of each client.
    """

    def __init__(self, spec: RunSpec, port: Port, processors: Processors, *, mac: bytes, ip: IPv4Address,
                 server_port: int, neighbours: Sequence[tuple[bytes, IPv4Address]]) -> None:
        self._spec = spec
        self._port = port
        self._processors = processors
        self._placed = spec.system.placed_on(spec.machine)
        self._mac = mac
        self._ip = ip
        self._server_port = server_port
        self._neighbours = neighbours
        self.interface: NetworkInterface | None = None
        """Of the host's own TCP."""

    async def start(self) -> None:
        """Probe the device, bring the interface up, listen, and start the processes."""
        spec, processors, placed = self._spec, self._processors, self._placed
        nic = await Nic.probe(self._port)
        if spec.system.is_on_device:
            make = self._memnet_transports(OffloadTcp(await self._open_offload(nic)))
        else:
            self.interface = await self._open_interface(nic)
            make = self._transports(self.interface)
        parent = processors.process_context(f"{spec.application.name}'s parent", placed.processes_on)
        self.pool = ProcessPool(self._port.kernel, spec.application, parent, most=most_processes(spec), make=make)
        await self.pool.start()

    async def _open_interface(self, nic: Nic) -> NetworkInterface:
        """The host's own TCP/IP."""
        spec, processors, placed = self._spec, self._processors, self._placed
        steering = processors.steering(placed.interrupts_on)
        softirqs = self._softirqs(steering)
        interface = await NetworkInterface.open(
            nic, mac=self._mac, ip=self._ip, profile=LINUX24, rng=random.Random(f"server of {spec.seed}"),
            interrupt_account=processors.interrupt_context("interrupts", steering),
            softirq_account=softirqs,
            offloads=offloads(spec.system),
            notification=driver_notification(spec.system, spec.machine, placed,
                                             lambda: processors.trigger_states(steering)),
            background_account=(None if spec.system.dedicated is not None
                                else processors.process_context("ksoftirqd", placed.interrupts_on)),
            multiprocessor=multiprocessor(spec, len(softirqs.accounts)))
        for mac, ip in self._neighbours:
            interface.stack.add_neighbour(ip, mac)
        return interface

    async def _open_offload(self, nic: Nic) -> OffloadInterface:
        """The device's, whose firmware has the same addresses."""
        spec, processors, placed = self._spec, self._processors, self._placed
        steering = processors.steering(placed.interrupts_on)
        return await OffloadInterface.open(
            nic, mac=self._mac, ip=str(self._ip),
            interrupt_account=processors.interrupt_context("interrupts", steering),
            softirq_account=processors.softirq_context("softirq", steering),
            notification=driver_notification(spec.system, spec.machine, placed,
                                             lambda: processors.trigger_states(steering)),
            background_account=processors.process_context("ksoftirqd", placed.interrupts_on))

    def firmware(self, facts: PortFacts, account: Account, shards: int) -> Firmware:
        """What does TCP on the device of this host."""
        firmware = Firmware(facts, mac=self._mac, ip=str(self._ip), profile=LINUX24, seed=f"of {self._spec.seed}",
                            account=account, shards=shards)
        for mac, ip in self._neighbours:
            firmware.stack.add_neighbour(ip, mac)
        return firmware

    @property
    def connections_on(self) -> dict[str, int]:
        """How many connections each dedicated processor got, and how many the host kept; empty without such."""
        placement = None if self.interface is None else self.interface.placement
        if placement is None:
            return {}
        processors = self._placed.interrupts_on or ()
        counts = {f"processor {index}": placement.placed[number] for number, index in enumerate(processors)}
        return counts if self._spec.system.policy is None else {**counts, "the host": placement.placed[None]}

    def _softirqs(self, steering: Any) -> PerProcessor:
        """The bottom halves: one for each dedicated processor, as the machine has them, or a single one."""
        spec, processors = self._spec, self._processors
        if spec.system.dedicated is not None:
            policy = spec.system.policy
            return processors.softirq_contexts(
                steering, by_connection=True, policy=None if policy is None else OffloadBelow(policy.offload_below),
                others=processors.steering(self._placed.processes_on))
        if spec.machine.parallel_softirqs and spec.system.told_by(spec.machine) == "interrupt":
            return processors.softirq_contexts(steering)
        return PerProcessor.one(processors.softirq_context("softirq", steering))

    def _transports(self, interface: NetworkInterface) -> Callable[[int], Awaitable[ServerProcess]]:
        """What makes processes with their way to the clients, as the system says. The first one listens for all."""
        spec = self._spec
        runs_on = spec.system.runs_on
        shared_port: Listening | None = None

        async def with_sockets(number: int) -> ServerProcess:
            nonlocal shared_port
            account = self._context(number)
            sockets = KernelSockets(interface, account, leaves_sends=runs_on.transmit == "dedicated")
            shared_port = shared_port or sockets.listen(self._server_port, BACKLOG)
            return ServerProcess(SocketTransport(sockets, shared_port), account, spec.requests)

        if spec.system.api == "sockets":
            return with_sockets
        return self._memnet_transports(QueuedTcp(interface, copies=not spec.system.device.tx_checksum)
                                       if runs_on.send == "dedicated" else HostTcp(interface))

    def _memnet_transports(self, provider: Provider) -> Callable[[int], Awaitable[ServerProcess]]:
        """The same of MemNet over a provider."""
        spec = self._spec
        shared_socket: MemNetSocket | None = None
        server = TcpServer(provider, rng=random.Random(f"capabilities of {spec.seed}"))
        response_bytes = longest_response_bytes(spec.requests)

        async def with_memnet(number: int) -> ServerProcess:
            nonlocal shared_socket
            account = self._context(number)
            memnet = MemNet(server, account, channels=CHANNELS)
            shared_socket = shared_socket or memnet.listen(self._server_port, BACKLOG)
            transport = await MemNetTransport.open(memnet, shared_socket, response_bytes)
            return ServerProcess(transport, account, spec.requests)

        return with_memnet

    def _context(self, number: int) -> Context:
        """An account for a server process."""
        return self._processors.process_context(f"{self._spec.application.name} {number}", self._placed.processes_on)


def multiprocessor(spec: RunSpec, bottom_halves: int) -> Multiprocessor | None:
    """Among whom the work of the kernel is shared. Where the processors that interrupts go to and those that run
    processes are the same in part, all do everything."""
    placed, machine = spec.system.placed_on(spec.machine), spec.machine.processors
    if placed.processors == 1:
        return None
    everywhere = tuple(range(placed.processors))
    network, host = placed.interrupts_on or everywhere, placed.processes_on or everywhere
    if not placed.has_dedicated:
        network = host = tuple({*network, *host})
    works = [SharedWork(len(network), machine)] * bottom_halves
    if spec.system.dedicated is not None:
        # The bottom half of each has its connections to itself; a further one is of the host.
        works = [SharedWork(1 if number < len(network) else len(host), machine) for number in range(bottom_halves)]
    return Multiprocessor(bottom_halves=works, processes=SharedWork(len(host), machine))


def offloads(system: System) -> Offloads:
    """What the device of a system does instead of its host."""
    device = system.device
    return Offloads(rx_checksum=device.rx_checksum, tx_checksum=device.tx_checksum, segmentation=device.segmentation,
                    coalescing_usecs=device.coalescing_usecs)


def most_processes(spec: RunSpec) -> int:
    """Processes that the server may have at a time in this run: idle ones are forked only while too few are idle."""
    application = spec.application
    if application.most_processes is None:
        return application.processes
    needed = spec.clients + application.least_spare + MAX_SPAWN_RATE
    return max(application.processes, min(application.most_processes, needed))


def memory_bytes(spec: RunSpec) -> int:
    """Host memory that a run needs for what the device reads and writes, in whole pages."""
    process_bytes = (RECEIVE_BYTES + RESPONSE_BUFFERS * longest_response_bytes(spec.requests) + pool_bytes(CHANNELS)
                     + 2 * PAGE_BYTES)
    rings_bytes = ring_pool_bytes(BACKLOG) if spec.system.is_on_device else 0
    return -(-(DRIVER_BYTES + rings_bytes + most_processes(spec) * process_bytes) // PAGE_BYTES) * PAGE_BYTES


class MemNetTransport:
    """MemNet: a response is put together in registered memory and sent from there; the process goes on at once.

    Each process has a few response buffers. When all are still being sent it waits for the oldest.
    """

    def __init__(self, memnet: MemNet, listening: MemNetSocket, requests: MemoryRegion, responses: MemoryRegion,
                 response_bytes: int) -> None:
        self._memnet = memnet
        self._listening = listening
        self._requests = requests
        self._responses = responses
        self._response_bytes = response_bytes
        self._free = deque(range(0, responses.length_bytes, response_bytes))
        self._sending: deque[tuple[Job, int]] = deque()

    @classmethod
    async def open(cls, memnet: MemNet, listening: MemNetSocket, response_bytes: int) -> MemNetTransport:
        """Make the channels, register memory for requests, and for responses of up to `response_bytes`."""
        try:
            await memnet.start()
            return cls(memnet, listening, await memnet.register_mem(RECEIVE_BYTES),
                       await memnet.register_mem(RESPONSE_BUFFERS * response_bytes), response_bytes)
        except MemoryError:
            await memnet.exit(is_dead=True)
            raise

    async def accept(self) -> ServerConnection:
        """The next client."""
        return _MemNetConnection(self, await self._memnet.accept(self._listening))

    async def exit(self) -> None:
        """Channels and memory go back."""
        await self._memnet.exit(is_dead=True)

    async def receive(self, socket: MemNetSocket, max_bytes: int) -> bytes:
        """The next bytes of a client."""
        length = await self._memnet.sync_recv(socket, self._requests, 0, min(max_bytes, RECEIVE_BYTES))
        return bytes(self._requests.view[:length])

    async def take_buffer(self) -> int:
        """Offset of a response buffer that nothing reads any more."""
        memnet, sending = self._memnet, self._sending
        while sending and memnet.job_done(sending[0][0]):
            self._free.append(sending.popleft()[1])
        if not self._free:
            job, offset = sending.popleft()
            # A client that has gone fails its job; the memory is free all the same.
            with suppress(NetworkError):
                await memnet.job_wait(job)
            self._free.append(offset)
        return self._free.popleft()

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes of a response buffer."""
        return self._responses.view[offset : offset + length]

    async def send(self, socket: MemNetSocket, offset: int, length: int) -> None:
        """Post the send of a response buffer, which comes back when its job is done."""
        try:
            job = await self._memnet.async_send(socket, self._responses, offset, length)
        except NetworkError:
            self._free.append(offset)
            raise
        self._sending.append((job, offset))

    async def close(self, socket: MemNetSocket) -> None:
        """Close behind what was sent."""
        await self._memnet.close(socket)


class _MemNetConnection:
    """Implements `cosim.server.ServerConnection`."""

    def __init__(self, transport: MemNetTransport, socket: MemNetSocket) -> None:
        self._transport = transport
        self._socket = socket
        self._offset = 0
        self._length = 0

    async def receive(self, max_bytes: int) -> bytes:
        return await self._transport.receive(self._socket, max_bytes)

    async def buffer(self, length: int) -> memoryview:
        self._offset, self._length = await self._transport.take_buffer(), length
        return self._transport.view(self._offset, length)

    async def send(self) -> None:
        await self._transport.send(self._socket, self._offset, self._length)

    async def close(self) -> None:
        await self._transport.close(self._socket)
