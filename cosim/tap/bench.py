"""A run with the kernel as peer, round a device that an engine brings: server or client, wire and real time."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from types import TracebackType

import msgspec

from cosim.control_port import device_config
from cosim.engines.bench import CountingPort, bus_timing
from cosim.engines.bus import Bus
from cosim.engines.model import ModelPort
from cosim.file_server import BODY_RECEIVE_BYTES, SEND_BYTES, FileServer, ServerCounts, Thread
from cosim.impairments import BothWays, PathCounts
from cosim.machine import Application, Machine
from cosim.memory import PAGE_BYTES, HostMemory
from cosim.pcapng import PcapngWriter
from cosim.processor import Processors
from cosim.systems import System
from cosim.tap.fetch import FetchClient, Fetched, FetchSockets, MemNetSockets
from cosim.tap.host import RINGS_BYTES, HostSettings, TapHost, TcpOnDevice, TcpOnHost, open_host
from cosim.tap.namespace import open_tap
from cosim.tap.real_time import RealTime
from cosim.tap.replay import Played, Replayer, Server, read_recording
from cosim.tap.threads import MemNetMemory, memnet_thread, socket_thread
from cosim.wire import Wire
from host_driver.kernel_sockets import KernelSockets
from host_driver.memnet import ChannelSettings, MemNet, pool_bytes
from host_driver.runtime import Kernel
from host_driver.tcp import PROFILES
from nic_model.contract import NicConfig

SERVER_MAC = bytes([0x02, 0, 0, 0, 0, 1])
PEER_MAC = bytes([0x02, 0, 0, 0, 0, 2])
SERVER_ADDRESSES = (IPv4Interface("10.0.0.1/24"), IPv6Interface("fd00::1/64"))
PEER_ADDRESSES = (IPv4Interface("10.0.0.2/24"), IPv6Interface("fd00::2/64"))

BACKLOG = 1024
MAX_CONNECTIONS = 1100
"""At a time, of a MemNet server: it registers memory for each. Others wait to be accepted."""
MEMNET_SENDS = 256
"""Sends of 64 KB under way, of all connections together."""
CHANNELS = ChannelSettings(channels=MAX_CONNECTIONS, max_channels=MAX_CONNECTIONS, send_bytes=64, receive_bytes=64)
"""MemNet's, one for each connection. What is sent and received does not pass their rings."""

DRIVER_BYTES = 4 << 20

SETTLE_PS = 100_000_000_000
"""100 ms: more than a delayed acknowledgement waits."""

STATUS_INTERVAL_S = 0.5


class TapSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run with the kernel depends on; it survives JSON, so that a simulator process may be given it."""

    namespace: str
    """Where the TAP interface is."""
    root: str
    """Folder of the files that are served, or that the real server serves."""
    port: int
    replay: str | None = None
    """A capture that plays the clients: then there is no TAP interface, and no bond to real time."""
    paths: list[str] = []
    """What the simulated host fetches, as client, below the root. Empty: it serves."""
    requests: int | None = None
    """The run ends when so many were served; None: when it is interrupted."""
    system: System
    machine: Machine
    application: Application
    profile: str
    device: str
    link_bit_rate: int
    seed: int = 1
    jump: bool = True
    impairments: BothWays | None = None
    capture_path: str | None = None

    @property
    def config(self) -> NicConfig:
        """The device, with a control port if the system needs one."""
        return device_config(self.device, control_port=self.system.is_on_device)


class TapStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run is."""

    requests: int
    connections: int = 0
    body_bytes: int = 0
    simulated_ps: int


class TapResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to, and what is left of it."""

    simulated_ps: int
    real_s: float
    behind_s: float
    """How much simulated time fell behind real time."""
    server: ServerCounts
    fetched: list[Fetched]
    played: list[Played]
    frames_from_device: int
    frames_to_device: int
    unsent_frames: int
    """The TAP interface did not take them: it was down."""
    outbound: PathCounts | None
    inbound: PathCounts | None
    stack: dict[str, int]
    """The stack's counters."""
    connections: dict[str, int]
    """Those that the stack still has, by state."""
    half_open: int
    waiting_to_be_accepted: int
    left_over: dict[str, int]
    """What a server at rest has none of: frames, sends and buffers that somebody still holds."""
    interface: dict[str, int]
    """What the driver, or the firmware on the device, dropped or failed."""
    control: dict[str, int]
    """Counters of the device's control port, where the engine shows them."""


class TapBench:
    """Implements `cosim.engines.bench.Bench`."""

    def __init__(self, spec: TapSpec, on_status: Callable[[TapStatus], None]) -> None:
        self.config = spec.config
        self.kernel = Kernel()
        self.memory = HostMemory(_memory_bytes(spec))
        self.bus = Bus(bus_timing(spec.machine, self.config, spec.seed))
        self._capture = None if spec.capture_path is None else PcapngWriter(Path(spec.capture_path), spec.system.name)
        self.mac = Wire(self.kernel, bit_rate=spec.link_bit_rate, capture=self._capture, impairments=spec.impairments)
        self._spec = spec
        self._on_status = on_status
        self._processors = Processors(self.kernel, spec.machine, spec.application)
        self._real_time = RealTime(self.kernel, self._look)
        self._on_device: TcpOnDevice | None = None
        self._tap = -1
        self._started_s = self._told_s = time.monotonic()
        self._host: TapHost | None = None
        self._server: FileServer | None = None
        self._memory: MemNetMemory | None = None
        self._keys = 0
        """Memory keys in use before the first client came."""
        self._client: FetchClient | None = None
        self._replayer = None if spec.replay is None else Replayer(
            self.kernel, read_recording(Path(spec.replay), spec.port), PEER_MAC,
            Server(SERVER_MAC, SERVER_ADDRESSES[0].ip, SERVER_ADDRESSES[1].ip, spec.port))
        self._done = False

    def __enter__(self) -> TapBench:
        if self._spec.replay is None:
            self._tap = open_tap(self._spec.namespace)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._tap >= 0:
            os.close(self._tap)
        if self._capture is not None:
            self._capture.close()

    def start(self, port: CountingPort) -> None:
        """The device is out of reset: bring the host up, and let the peer's frames in."""
        if self._replayer is not None:
            self._replayer.send = self.mac.attach(PEER_MAC, self._replayer.receive).transmit
        else:
            link = self.mac.attach(PEER_MAC, lambda frame: send(frame))
            send = self._real_time.add(self._tap, link.transmit)
        spec = self._spec
        settings = HostSettings(
            system=spec.system, machine=spec.machine, profile=PROFILES[spec.profile], mac=SERVER_MAC, seed=spec.seed,
            # The clients of a capture have any address: then all are on the link.
            addresses=SERVER_ADDRESSES if self._replayer is None else [address.ip for address in SERVER_ADDRESSES])
        if spec.system.is_on_device:
            self._on_device = TcpOnDevice(port, self.config.port_facts, settings, self._processors)
            if isinstance(port, ModelPort):
                # Its clock ticks as a timer of this kernel, the RTL's by itself.
                self._real_time.activity = self._on_device.device.activity
        self.kernel.spawn(self._main(port, settings), "tap")

    def finished(self) -> bool:
        """Whether all that was asked for is done."""
        return self._done

    def end(self) -> None:
        """Finish with the next tick."""
        self._done = True

    def outcome(self, port: CountingPort) -> TapResult:
        """What it came to."""
        return self._result()

    def partial(self, port: CountingPort) -> TapResult | None:
        """The same of a run that is interrupted; None before the host is up."""
        return self._result() if self._host is not None else None

    # ------------------------------------------------------------------------------------------ the simulated host

    async def _main(self, port: CountingPort, settings: HostSettings) -> None:
        self._host = host = await open_host(port, settings, self._processors, self._on_device)
        if self._replayer is not None:
            await self._serve(host)
            await self._replay(host, self._replayer)
            return
        self._real_time.start()
        if self._spec.paths:
            await self._fetch(host)
            # What was closed last comes to rest.
            await self.kernel.sleep(SETTLE_PS)
            self._done = True
        else:
            await self._serve(host)

    async def _serve(self, host: TapHost) -> None:
        """Listen, and let the first thread wait for a client."""
        spec, processors = self._spec, self._processors
        first = processors.process_context(f"{spec.application.name}, main thread")
        if spec.system.api == "sockets":
            assert isinstance(host, TcpOnHost)
            interface = host.interface
            listening = KernelSockets(interface, first).listen(spec.port, BACKLOG)
        else:
            memnet = MemNet(host.provider, first, channels=CHANNELS)
            await memnet.start()
            socket = memnet.listen(spec.port, BACKLOG)
            self._memory = memory = await MemNetMemory.register(memnet, MAX_CONNECTIONS, MEMNET_SENDS)
        self._keys = host.keys_in_use

        def thread(number: int) -> Thread:
            account = first.thread(f"{spec.application.name}, thread {number}")
            if spec.system.api == "sockets":
                return socket_thread(interface, listening, account)
            return memnet_thread(memnet, socket, memory, account)

        self._server = FileServer(self.kernel, Path(spec.root), thread, self._changed)
        self._server.start()
        self._tell()

    async def _replay(self, host: TapHost, replayer: Replayer) -> None:
        for ip in replayer.clients:
            host.stack.add_neighbour(ip, PEER_MAC)
        await replayer.run()
        await self.kernel.sleep(SETTLE_PS)
        self._done = True

    async def _fetch(self, host: TapHost) -> None:
        account = self._processors.process_context("client")
        sockets: FetchSockets
        if isinstance(host, TcpOnHost):
            sockets = KernelSockets(host.interface, account)
        else:
            sockets = await MemNetSockets.open(MemNet(host.provider, account))
        self._keys = host.keys_in_use
        self._client = FetchClient(sockets, self.kernel, Path(self._spec.root), self._changed)
        for address in PEER_ADDRESSES:
            await self._client.fetch(str(address.ip), self._spec.port, self._spec.paths)

    def _changed(self) -> None:
        """A request was served, or a connection has ended."""
        wanted, server = self._spec.requests, self._server
        if server is not None and wanted is not None:
            self._done = server.counts.requests >= wanted and not server.counts.open_connections
        if self._done:
            self._tell()

    # ------------------------------------------------------------------------------------------ what is told

    def _look(self) -> None:
        if time.monotonic() - self._told_s >= STATUS_INTERVAL_S:
            self._tell()

    def _tell(self) -> None:
        self._told_s = time.monotonic()
        counts = self._server.counts if self._server is not None else ServerCounts()
        fetched = self._client.fetched if self._client is not None else []
        self._on_status(TapStatus(
            requests=counts.requests + len(fetched), connections=counts.open_connections,
            body_bytes=counts.sent_body_bytes + counts.received_body_bytes + sum(file.body_bytes for file in fetched),
            simulated_ps=self.kernel.now))

    def _result(self) -> TapResult:
        host, wire = self._host, self.mac
        assert host is not None
        stack, memory = host.stack, self._memory
        listener = stack.listener(self._spec.port)
        left_over = {**host.left_over(), "keys": host.keys_in_use - self._keys}
        if memory is not None:
            waiting = self._server.counts.open_connections if self._server is not None else 0
            left_over["memnet_sends"] = memory.sends.count - len(memory.sends)
            left_over["memnet_receives"] = memory.receives.count - len(memory.receives) - waiting
        return TapResult(
            simulated_ps=self.kernel.now, real_s=time.monotonic() - self._started_s,
            behind_s=self._real_time.behind_ps / 1e12,
            server=deepcopy(self._server.counts) if self._server is not None else ServerCounts(),
            fetched=self._client.fetched if self._client is not None else [],
            played=self._replayer.played if self._replayer is not None else [],
            frames_from_device=wire.frames_from_device, frames_to_device=wire.frames_to_device,
            unsent_frames=self._real_time.unsent_frames,
            outbound=wire.outbound.counts if wire.outbound else None,
            inbound=wire.inbound.counts if wire.inbound else None,
            stack=msgspec.to_builtins(stack.counters),
            connections=dict(Counter(connection.state.name for connection in stack.connections)),
            half_open=listener.half_open if listener is not None else 0,
            waiting_to_be_accepted=int(listener is not None and listener.acceptable),
            left_over=left_over, interface=host.dropped(), control=host.control_counters())


def _memory_bytes(spec: TapSpec) -> int:
    """Host memory that a run needs for what the device reads and writes."""
    memnet = MAX_CONNECTIONS * BODY_RECEIVE_BYTES + MEMNET_SENDS * SEND_BYTES + pool_bytes(CHANNELS)
    rings = RINGS_BYTES if spec.system.is_on_device else 0
    return DRIVER_BYTES + (memnet if spec.system.api == "memnet" else 0) + rings + 2 * PAGE_BYTES
