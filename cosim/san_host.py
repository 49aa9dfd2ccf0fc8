"""The server's machines where TCP runs on nodes behind a system area network: the application host, and those nodes.

The device under study is in the first node; further nodes have the untimed model. The host has a SAN adapter alone.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address

from cosim.engines.base import RunSpec
from cosim.engines.model import ModelPort
from cosim.host import BACKLOG, DRIVER_BYTES, RESPONSE_BUFFERS, MemNetTransport, most_processes, offloads
from cosim.memory import PAGE_BYTES, HostMemory
from cosim.notification import driver_notification
from cosim.peer_mac import PeerMac
from cosim.pool import ProcessPool
from cosim.processor import Context, Processors
from cosim.san import Adapter, SanNetwork
from cosim.server import RECEIVE_BYTES, ServerProcess, longest_response_bytes
from cosim.socket_transport import SocketTransport
from cosim.systems import Node, Placed
from cosim.tcp_node import start_node
from cosim.wire import Wire
from host_driver.memnet import ChannelSettings, MemNet, MemNetSocket, TcpServer, pool_bytes
from host_driver.multiprocessor import Multiprocessor
from host_driver.port import Port
from host_driver.runtime import Kernel
from host_driver.san.node import ARENA_VIS, NodeSettings, TcpServerNode
from host_driver.san.provider import SanTcp, TcpNode
from host_driver.san.socket_vi import VI_BYTES
from host_driver.san.sockets import PIECE_BYTES, PIECES, READ_BYTES, SanSockets
from host_driver.tcp import LINUX24
from nic_model.contract import CONFIGS

CHANNELS = ChannelSettings(channels=4, send_bytes=4096, receive_bytes=4096)
"""What a process asks for at its start, of each node. Nothing passes through the channels' own rings, so that they can
be small."""


def node_settings(node: Node) -> NodeSettings:
    """How a system's nodes serve."""
    return NodeSettings(eager_accept=node.eager_accept, eager_receive_bytes=node.eager_receive_bytes)


def _pages(length_bytes: int) -> int:
    return -(-length_bytes // PAGE_BYTES) * PAGE_BYTES


def node_memory_bytes(spec: RunSpec) -> int:
    """Memory of a node, of which the device under study reads and writes the first one's."""
    assert spec.system.node is not None
    vis = 1 + most_processes(spec) * CHANNELS.channels
    return DRIVER_BYTES + -(-vis // ARENA_VIS) * ARENA_VIS * node_settings(spec.system.node).vi_bytes


def host_memory_bytes(spec: RunSpec) -> int:
    """Memory of the application host that its SAN adapter reads and writes."""
    assert spec.system.node is not None
    buffers = (RESPONSE_BUFFERS * longest_response_bytes(spec.requests) + RECEIVE_BYTES + READ_BYTES
               + PIECES * PIECE_BYTES)
    vis = _pages(CHANNELS.channels * VI_BYTES) * spec.system.node.nodes
    process_bytes = _pages(buffers) + pool_bytes(CHANNELS) + vis + 4 * PAGE_BYTES
    return _pages(VI_BYTES) * spec.system.node.nodes + most_processes(spec) * process_bytes


class SanServerHost:
    """The server's machines. `start` brings them up; they then serve for ever.

    Parameters: `spec`, which names the system; `port`, the device of the first node, whose SAN adapter is made here;
    `processors` of the application host, and `node_processors` of each node; `wire`, to which further nodes are
    attached; `addresses`, MAC and IP address of each node; `neighbours`, those of each client.

    Attributes: `pool`, the application's processes; `nodes`; `network`.
    """

    def __init__(self, spec: RunSpec, port: Port, node_memory: HostMemory, processors: Processors,
                 node_processors: Sequence[Processors], wire: Wire, *,
                 addresses: Sequence[tuple[bytes, IPv4Address]], server_port: int,
                 neighbours: Sequence[tuple[bytes, IPv4Address]]) -> None:
        assert spec.system.node is not None
        assert spec.machine.san is not None
        self._spec = spec
        self._port = port
        self._node = spec.system.node
        self._kernel: Kernel = port.kernel
        self._processors = processors
        self._placed = spec.system.placed_on(spec.machine)
        self._node_processors = node_processors
        self._wire = wire
        self._addresses = addresses
        self._server_port = server_port
        self._neighbours = neighbours
        self.network = SanNetwork(self._kernel, spec.machine.san)
        self.nodes: list[TcpServerNode] = []
        self._host: Adapter = self.network.attach(HostMemory(host_memory_bytes(spec)), "the host")
        self._first: Adapter = self.network.attach(node_memory, "TCP server node 0")

    async def start(self) -> None:
        """Bring the nodes up, connect to them, listen, and start the processes."""
        spec, processors = self._spec, self._processors
        known = [await self._start_node(number) for number in range(self._node.nodes)]
        library = processors.process_context("MemNet's own calls", self._placed.processes_on)
        steering = processors.steering(self._placed.interrupts_on)
        san = await SanTcp.open(self._host, known, library, processors.interrupt_context("SAN adapter", steering))
        server = TcpServer(san, rng=random.Random(f"capabilities of {spec.seed}"))
        parent = processors.process_context(f"{spec.application.name}'s parent", self._placed.processes_on)
        self.pool = ProcessPool(self._kernel, spec.application, parent, most=most_processes(spec),
                                make=self._transports(server))
        await self.pool.start()

    @property
    def connections_on(self) -> dict[str, int]:
        """How many connections each node got; empty for a single one."""
        if len(self.nodes) == 1:
            return {}
        return {f"node {number}": node.connections for number, node in enumerate(self.nodes)}

    async def _start_node(self, number: int) -> TcpNode:
        spec, (mac, ip), port = self._spec, self._addresses[number], self._port
        adapter = self._first
        if number:
            memory = HostMemory(node_memory_bytes(spec))
            port = ModelPort(CONFIGS["default"], self._kernel, memory, PeerMac(self._kernel, self._wire, mac))
            adapter = self.network.attach(memory, f"TCP server node {number}")
        processors = self._node_processors[number]
        interface, node = await start_node(
            port, adapter, processors=processors, design=self._node.socket_provider,
            settings=node_settings(self._node), seed=f"node {number} of {spec.seed}", mac=mac, ip=ip, profile=LINUX24,
            offloads=offloads(spec.system),
            notification=driver_notification(spec.system, spec.machine, Placed(spec.machine.processors, None, None),
                                             processors.trigger_states),
            background_account=processors.process_context("ksoftirqd"),
            multiprocessor=Multiprocessor.of(spec.machine.processors))
        for client_mac, client_ip in self._neighbours:
            interface.stack.add_neighbour(client_ip, client_mac)
        self.nodes.append(node)
        return TcpNode(adapter.node, str(ip))

    def _transports(self, server: TcpServer) -> Callable[[int], Awaitable[ServerProcess]]:
        """What makes processes with their way to the clients. The first one listens for all."""
        spec = self._spec
        response_bytes = longest_response_bytes(spec.requests)
        listening: MemNetSocket | None = None

        def context(number: int) -> Context:
            return self._processors.process_context(f"{spec.application.name} {number}", self._placed.processes_on)

        async def make(number: int) -> ServerProcess:
            nonlocal listening
            account = context(number)
            memnet = MemNet(server, account, channels=CHANNELS)
            listening = listening or memnet.listen(self._server_port, BACKLOG)
            if spec.system.api == "sockets":
                transport = SocketTransport(await SanSockets.open(memnet), listening)
                return ServerProcess(transport, account, spec.requests)
            return ServerProcess(await MemNetTransport.open(memnet, listening, response_bytes,
                                                            is_sync=spec.system.api == "memnet-sync"),
                                 account, spec.requests)

        return make
