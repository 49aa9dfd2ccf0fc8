"""Hosts on one wire, and applications on them: for programs that use MemNet or its streams.

One host, `server`, is over the device under study: the RTL compiled, or the untimed model. With `TcpNodes` the device
is in a node of its own, whose TCP the server reaches through a system area network; further such nodes are over the
untimed model. The other hosts are over the untimed model too, and their processor time costs nothing. `World.start`
starts an application on a host, `World.run` lets time pass until all that were started in the foreground have ended.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from cosim.control_port import device_config
from cosim.device_processor import DeviceProcessors, FirmwareAccount
from cosim.engines.base import RunError, failed_task
from cosim.engines.bench import CountingPort, bus_timing, control_streams
from cosim.engines.bus import Bus
from cosim.engines.compiled import run_bench
from cosim.engines.model import ModelPort
from cosim.errors import InputError
from cosim.impairments import BothWays
from cosim.mac import Mac
from cosim.machine import DeviceProcessor, load_application, load_machine
from cosim.memory import HostMemory
from cosim.pcapng import PcapngWriter
from cosim.peer_mac import PeerMac
from cosim.processor import Processors
from cosim.san import Adapter, SanNetwork
from cosim.tcp_node import SocketProvider, start_node
from cosim.wire import Wire
from host_driver.account import Account, NullAccount
from host_driver.firmware import Firmware
from host_driver.host_tcp import HostTcp
from host_driver.interface import NetworkInterface, Offloads
from host_driver.memnet import AdmissionPolicy, Application, MemNet, MemNetCounters, Outcome, TcpServer
from host_driver.nic import Nic
from host_driver.notification import Interrupts
from host_driver.offload_interface import OffloadInterface
from host_driver.offload_tcp import OffloadTcp
from host_driver.runtime import Event, Kernel, TaskFailed
from host_driver.san.node import NodeSettings, TcpServerNode
from host_driver.san.provider import SanTcp, TcpNode
from host_driver.tcp import LINUX, Profile
from nic_model.contract import CONFIGS
from nic_model.contract.config import PortFacts

ENGINES = ("model", "compiled")

DEFAULT_MEMORY_BYTES = 8 << 20
FIRST_IP = IPv4Address("10.0.0.1")
NODE_NUMBERS = 128
"""Further TCP server nodes have addresses from here on."""

Main = Callable[[MemNet], Coroutine[Any, Any, Any]]


def mac_of(number: int) -> bytes:
    """Ethernet address of host `number`."""
    return bytes([0x02, 0, 0, 2]) + number.to_bytes(2, "big")


class WorldHost:
    """One host. Attributes: `name`, `ip`; `interface` and `tcp_server`, when it is `up`; `device_processor`, what does
    TCP on its device, if that is so, and `port_facts`, what its firmware knows of it: then there are `offload` and
    `firmware` instead of `interface`."""

    def __init__(self, kernel: Kernel, number: int, name: str, seed: int, processors: Processors | None,
                 notification: Interrupts | None, profile: Profile, admission: AdmissionPolicy | None) -> None:
        self.name = name
        self.mac = mac_of(number)
        self.ip = str(FIRST_IP + number)
        self.up = Event(f"{name} coming up")
        self.interface: NetworkInterface
        self.device_processor: DeviceProcessor | None = None
        self.port_facts: PortFacts
        self.offload: OffloadInterface
        self.firmware: Firmware
        self.tcp_server: TcpServer
        self.processors = processors
        self._kernel = kernel
        self._seed = seed
        self._notification = notification
        self._profile = profile
        self._admission = admission

    @property
    def counters(self) -> MemNetCounters:
        """What its TCP server did."""
        return self.tcp_server.counters

    def process_account(self, name: str) -> Account:
        """An account for a process of this host."""
        return NullAccount() if self.processors is None else self.processors.process_context(name)

    async def bring_up(self, port: CountingPort) -> None:
        """Over a device that is out of reset."""
        processors, seed = self.processors, f"{self.name} of {self._seed}"
        if self.device_processor is not None:
            await self._bring_up_offload(port, self.device_processor, seed)
            return
        self.interface = await NetworkInterface.open(
            await Nic.probe(port), mac=self.mac, ip=self.ip, profile=self._profile, rng=random.Random(seed),
            interrupt_account=NullAccount() if processors is None else processors.interrupt_context("interrupts"),
            softirq_account=NullAccount() if processors is None else processors.softirq_context("softirq"),
            offloads=Offloads(rx_checksum=True, tx_checksum=True, segmentation=True),
            notification=self._notification)
        self.tcp_server = TcpServer(
            HostTcp(self.interface), admission=self._admission, rng=random.Random(f"capabilities of {seed}"),
            account=None if processors is None else self.process_account(f"TCP server of {self.name}"))
        self.up.set()

    async def join(self, adapter: Adapter, nodes: Sequence[TcpNode]) -> None:
        """Reach TCP on other nodes, which are up."""
        processors = self.processors
        library = self.process_account(f"MemNet of {self.name}")
        san = await SanTcp.open(adapter, nodes, library,
                                NullAccount() if processors is None else processors.interrupt_context("SAN adapter"))
        self.ip = san.own_address
        self.tcp_server = TcpServer(san, rng=random.Random(f"capabilities of {self.name} of {self._seed}"))
        self.up.set()

    async def _bring_up_offload(self, port: CountingPort, device: DeviceProcessor, seed: str) -> None:
        """The same with TCP on the device."""
        account = FirmwareAccount(device)
        self.firmware = Firmware(self.port_facts, mac=self.mac, ip=self.ip, profile=self._profile, seed=seed,
                                 account=account, shards=device.processors)
        DeviceProcessors(self._kernel, control_streams(port), self.firmware, account, device.processors)
        processors = self.processors
        self.offload = await OffloadInterface.open(
            await Nic.probe(port), mac=self.mac, ip=self.ip,
            interrupt_account=NullAccount() if processors is None else processors.interrupt_context("interrupts"),
            softirq_account=NullAccount() if processors is None else processors.softirq_context("softirq"),
            notification=self._notification)
        self.tcp_server = TcpServer(OffloadTcp(self.offload), admission=self._admission,
                                    rng=random.Random(f"capabilities of {seed}"))
        self.up.set()


@dataclass(frozen=True, kw_only=True)
class TcpNodes:
    """Nodes that run the server's TCP behind a system area network."""

    count: int = 1
    design: SocketProvider = "sockets"
    settings: NodeSettings = field(default_factory=NodeSettings)


class World:
    """Hosts on one wire.

    Parameters: `engine` ("model" or "compiled") and `device`, of the server; `machine` and `application`, what its
    processor time costs (names or TOML files; without a machine it costs nothing); `profile` of every TCP;
    `link_bit_rate`, and `impairments` of the server's link; `capture`, a pcapng file of it; `memory_bytes` of each
    host; `admission`, which decides on the server's channels; `tcp_nodes`, if the server's TCP runs on nodes of such
    machines behind a SAN; `seed`: the same gives the same run. Raises InputError for an engine, a device or a machine
    that is not there, or that has no SAN.

    Attributes: `server`, `client`, `kernel`, `wire`; `memory`, the device's; `nodes`, the TCP server nodes that are up,
    and `node_processors`; `applications`, all that were started; `is_over`, when `run` is.
    """

    def __init__(self, *, engine: str = "model", device: str = "tiny", machine: str | None = None,
                 application: str = "simple", profile: Profile = LINUX, link_bit_rate: int = 10**9,
                 impairments: BothWays | None = None, capture: Path | None = None,
                 memory_bytes: int = DEFAULT_MEMORY_BYTES, admission: AdmissionPolicy | None = None,
                 tcp_nodes: TcpNodes | None = None, seed: int = 1, on_device: bool = False) -> None:
        if engine not in ENGINES:
            raise InputError(f"no engine {engine!r} for a world: choose from {', '.join(ENGINES)}")
        if device not in CONFIGS:
            raise InputError(f"no device {device!r}: choose from {', '.join(CONFIGS)}")
        self.kernel = Kernel()
        self.config = device_config(device, control_port=on_device)
        self.memory = HostMemory(memory_bytes)
        self._capture = None if capture is None else PcapngWriter(capture, "server")
        self.wire = Wire(self.kernel, bit_rate=link_bit_rate, capture=self._capture, impairments=impairments)
        self.applications: list[Application] = []
        self._engine = engine
        self._memory_bytes = memory_bytes
        self._profile = profile
        self._seed = seed
        self._hosts: list[WorldHost] = []
        self._foreground = 0
        self._all_ended = Event("the end of all applications")
        self.is_over = False
        chosen = load_machine(machine or "p2-300-smp2")
        processors = None
        notification = None
        if machine is not None:
            processors = Processors(self.kernel, chosen, load_application(application))
            moderation = chosen.moderation
            notification = Interrupts(rx_usecs=moderation.rx_usecs, rx_frames=moderation.rx_frames,
                                      tx_usecs=moderation.tx_usecs, tx_frames=moderation.tx_frames)
        self.bus = Bus(bus_timing(chosen, self.config, seed))
        self.nodes: list[TcpServerNode] = []
        self.node_processors: list[Processors] = []
        self._tcp_nodes = tcp_nodes
        self._chosen = chosen if machine is not None else load_machine("p2-300-via")
        self._application = application
        self._notification = notification
        self._admission = admission
        if tcp_nodes is not None and self._chosen.san is None:
            raise InputError(f"machine {chosen.name} has no `[san]`, which TCP server nodes need")
        self.server = self._new_host("server", processors, notification, admission)
        if on_device:
            self.server.device_processor, self.server.port_facts = chosen.device_processor, self.config.port_facts
        self.client = self.add_host("client")

    def _new_host(self, name: str, processors: Processors | None, notification: Interrupts | None,
                  admission: AdmissionPolicy | None) -> WorldHost:
        host = WorldHost(self.kernel, len(self._hosts), name, self._seed, processors, notification, self._profile,
                         admission)
        self._hosts.append(host)
        return host

    def add_host(self, name: str, *, admission: AdmissionPolicy | None = None) -> WorldHost:
        """One more host, over an untimed model of its own."""
        host = self._new_host(name, None, None, admission)
        port = ModelPort(CONFIGS["default"], self.kernel, HostMemory(self._memory_bytes),
                         PeerMac(self.kernel, self.wire, host.mac))
        self.kernel.spawn(host.bring_up(port), f"{name} coming up")
        return host

    async def bring_up(self, port: CountingPort) -> None:
        """The server, over the device under study."""
        wanted, san = self._tcp_nodes, self._chosen.san
        if wanted is None:
            await self.server.bring_up(port)
            return
        assert san is not None
        network = SanNetwork(self.kernel, san)
        adapter = network.attach(HostMemory(self._memory_bytes), "host")
        addresses = []
        for number in range(wanted.count):
            mac = self.server.mac if not number else mac_of(NODE_NUMBERS + number)
            ip = self.server.ip if not number else str(FIRST_IP + NODE_NUMBERS + number)
            if number:
                port = ModelPort(CONFIGS["default"], self.kernel, HostMemory(self._memory_bytes),
                                 PeerMac(self.kernel, self.wire, mac))
            processors = None
            if self.server.processors is not None:
                processors = Processors(self.kernel, self._chosen, load_application(self._application))
                self.node_processors.append(processors)
            own = network.attach(port.memory, f"TCP server node {number}")  # type: ignore[arg-type]
            interface, node = await start_node(
                port, own, processors=processors, design=wanted.design, settings=wanted.settings,
                seed=f"node {number} of {self._seed}", admission=self._admission, mac=mac, ip=ip,
                profile=self._profile, offloads=Offloads(rx_checksum=True, tx_checksum=True, segmentation=True),
                notification=self._notification)
            self.nodes.append(node)
            addresses.append(TcpNode(own.node, ip))
            if not number:
                self.server.interface = interface
        await self.server.join(adapter, addresses)

    def start(self, host: WorldHost, main: Main, name: str, *, background: bool = False,
              **memnet: Any) -> Started:
        """Start `main(memnet)` on a host, as soon as it is up. A background application, such as a server, is killed
        when all others have ended. Further arguments are MemNet's (`channels`, `eager_accept`, ...)."""
        started = Started(self, host, main, name, is_background=background, memnet=memnet)
        self._foreground += not background
        self.kernel.spawn(started.run(), f"starting {name}")
        return started

    def ended(self, started: Started) -> None:
        """An application has given everything back; called by itself."""
        self._foreground -= not started.is_background
        if not self._foreground:
            self._all_ended.set()

    def run(self) -> None:
        """Let time pass until the applications in the foreground have ended, those in the background were killed, and
        all gave back what they had. Raises what the first of them raised that raised anything, RunError for a run that
        cannot go on."""
        self.kernel.spawn(self._end(), "the end of the world")
        bench = _WorldBench(self)
        if self._engine == "compiled":
            run_bench(bench)
        else:
            with bench:
                bench.start(ModelPort(self.config, self.kernel, self.memory, self.wire))
                try:
                    if not self.kernel.run_while(lambda: not self.is_over):
                        raise RunError(self.stall_report())
                except TaskFailed as error:
                    raise failed_task(error) from error
        failed = [application for application in self.applications if application.error is not None]
        if failed:
            first = min(failed, key=lambda application: application.failed_at_ps)
            assert first.error is not None
            raise first.error

    async def _end(self) -> None:
        if self._foreground:
            await self._all_ended.wait()
        for application in self.applications:
            application.kill()
        for application in self.applications:
            await application.over
        self.is_over = True

    def close_capture(self) -> None:
        """The run is over."""
        if self._capture is not None:
            self._capture.close()

    def stall_report(self) -> str:
        """Why nothing goes on."""
        waiting = ", ".join(sorted(f"{task.name} for {task.waits_for}" for task in self.kernel.tasks))
        return f"nothing goes on at {self.kernel.now} ps; waiting: {waiting}"


class _WorldBench:
    """Implements `cosim.engines.bench.Bench`: a world round the server's device."""

    def __init__(self, world: World) -> None:
        self.config = world.config
        self.kernel = world.kernel
        self.memory = world.memory
        self.mac: Mac = world.wire
        self.bus = world.bus
        self._world = world

    def __enter__(self) -> _WorldBench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._world.close_capture()

    def start(self, port: CountingPort) -> None:
        """The server's device is out of reset."""
        self.kernel.spawn(self._world.bring_up(port), "server coming up")

    def finished(self) -> bool:
        """Whether all is over."""
        return self._world.is_over

    def outcome(self, port: CountingPort) -> None:
        """The applications have it."""

    def partial(self, port: CountingPort) -> None:
        """The applications have it."""


class _OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        self.exit(2, f"{self.prog}: {message}\n")


def world_from_command_line(description: str, **settings: Any) -> World:
    """A world as a program's command line asks for it (`--engine`, `--device`, `--capture`, `--seed`); `settings` are
    the rest of it. Ends the program, with one line, for what cannot be."""
    parser = _OneLineParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="what the server's device runs on")
    parser.add_argument("--device", choices=list(CONFIGS), default="tiny", help="its size")
    parser.add_argument("--capture", type=Path, help="keep the frames of the server's link, as pcapng")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same run")
    chosen = parser.parse_args()
    try:
        return World(engine=chosen.engine, device=chosen.device, capture=chosen.capture, seed=chosen.seed, **settings)
    except OSError as error:
        parser.error(f"cannot write {chosen.capture}: {error.strerror}")


class Started:
    """An application that was started. Attributes: `application`, None until its host is up; `is_background`."""

    def __init__(self, world: World, host: WorldHost, main: Main, name: str, *, is_background: bool,
                 memnet: dict[str, Any]) -> None:
        self.application: Application | None = None
        self.is_background = is_background
        self._world = world
        self._host = host
        self._main = main
        self._name = name
        self._memnet = memnet

    async def run(self) -> None:
        """Wait for the host, and run it to its end."""
        await self._host.up.wait()
        memnet = MemNet(self._host.tcp_server, self._host.process_account(self._name), **self._memnet)
        self.application = Application(self._world.kernel, memnet, self._main, self._name)
        self._world.applications.append(self.application)
        await self.application.over
        self._world.ended(self)

    @property
    def result(self) -> Any:
        """What it returned. Raises what it raised, RuntimeError if it has not ended."""
        application = self.application
        if application is None or application.outcome is Outcome.RUNNING:
            raise RuntimeError(f"{self._name} has not ended")
        if application.error is not None:
            raise application.error
        return application.result

    def kill(self) -> None:
        """End it where it stands. Raises RuntimeError before its host is up."""
        if self.application is None:
            raise RuntimeError(f"{self._name} has not begun")
        self.application.kill()
