"""The driver, sockets and MemNet over a device, against a software peer: bytes both ways, compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from host_driver.host_tcp import HostTcp
from host_driver.interface import NetworkInterface, Offloads
from host_driver.kernel_sockets import KernelSockets
from host_driver.memnet import MemNet
from host_driver.nic import Nic
from host_driver.notification import Interrupts, Napi, Notification, Polling
from host_driver.tcp.buffers import Chunk
from host_driver.tcp.profile import RFC
from tests.device.faults import HIT, User, start
from tests.device.rig import MS, US, Rig
from tests.host_driver.bench import ADDRESSES, HOST_MAC, PEER_MAC, CountingAccount, Peer

PORT = 80
ALL_OFFLOADS = Offloads(rx_checksum=True, tx_checksum=True, segmentation=True)
NOTIFICATIONS: dict[str, Notification] = {
    "interrupts": Interrupts(),
    "moderated": Interrupts(rx_usecs=60, rx_frames=15, tx_usecs=200, tx_frames=35),
    "polling": Polling(period_ps=20 * US),
    "napi": Napi(interrupts=Interrupts(rx_usecs=60, rx_frames=15, tx_usecs=200, tx_frames=35), poll_weight=8),
}


class Host:
    """A host with one network interface on the rig's device, and a peer without cost at the wire's other end."""

    def __init__(self, rig: Rig, version: int) -> None:
        self.kernel = rig.kernel
        self.process = CountingAccount(rig.kernel)
        self.others = CountingAccount(rig.kernel)
        self.host_ip, self.peer_ip = ADDRESSES[version]
        self.peer = Peer(rig.kernel, rig.mac, version, 1, 1500)  # type: ignore[arg-type]
        self._rig = rig

    async def interface(self, offloads: Offloads, notification: Notification) -> NetworkInterface:
        nic = await Nic.probe(self._rig.port)
        interface = await NetworkInterface.open(
            nic, mac=HOST_MAC, ip=ip_address(self.host_ip), profile=RFC, rng=random.Random(1),
            interrupt_account=self.others, softirq_account=self.others, offloads=offloads, notification=notification)
        interface.stack.add_neighbour(ip_address(self.peer_ip), PEER_MAC)
        return interface


async def sockets(host: Host, interface: NetworkInterface, down: bytes, up: bytes) -> bytes:
    """Serve one connection through ordinary sockets; returns what the peer got."""
    kernel_sockets = KernelSockets(interface, host.process)
    listening = kernel_sockets.listen(PORT)
    connection = host.peer.stack.connect(host.host_ip, PORT, host.kernel.now)
    connection.send(Chunk(up))
    host.peer.push()
    socket = await kernel_sockets.accept(listening)
    read = bytearray()
    while len(read) < len(up):
        read += await socket.read(4096)
    assert bytes(read) == up, "the host did not get what the peer sent"
    await socket.write(down)
    await socket.close()
    got = await host.peer.read_all(connection)
    connection.close(host.kernel.now)
    host.peer.push()
    return got


async def memnet(host: Host, interface: NetworkInterface, down: bytes, up: bytes) -> bytes:
    """Serve one connection through MemNet; returns what the peer got."""
    net = MemNet(HostTcp(interface), host.process)
    source, target = await net.register_mem(down), await net.register_mem(len(up))
    listening = net.listen(PORT)
    connection = host.peer.stack.connect(host.host_ip, PORT, host.kernel.now)
    connection.send(Chunk(up))
    host.peer.push()
    socket = await net.accept(listening)
    received = 0
    while received < len(up):
        received += await net.sync_recv(socket, target, received)
    assert bytes(target.view) == up, "the host did not get what the peer sent"
    job = await net.async_send(socket, source)
    await net.close(socket)
    got = await host.peer.read_all(connection)
    assert await net.job_wait(job) == len(down)
    for region in (source, target):
        await net.deregister_mem(region)
    connection.close(host.kernel.now)
    host.peer.push()
    return got


SERVERS: dict[str, Callable[[Host, NetworkInterface, bytes, bytes], Coroutine[Any, None, bytes]]] = {
    "sockets": sockets, "memnet": memnet}


async def run_transfers(rig: Rig, arguments: list[dict[str, Any]]) -> list[str]:
    """Scenario: transfers one after the other, each given as api, length, notification, version and offloads."""
    wrong = []
    for case in arguments:
        try:
            await rig.within(_transfer(rig, **case), 2000 * MS, f"{case}")
            wrong.append("")
        except AssertionError as error:
            wrong.append(str(error) or "an assertion")
    return wrong


async def _transfer(rig: Rig, api: str, length: int, notification: str, version: int, offloads: bool,
                    coalescing_usecs: float = 0) -> None:
    host = Host(rig, version)
    wanted = replace(ALL_OFFLOADS, coalescing_usecs=coalescing_usecs) if offloads else Offloads()
    interface = await host.interface(wanted, NOTIFICATIONS[notification])
    down, up = random.Random(length).randbytes(length), random.Random(length + 1).randbytes(length)
    assert await SERVERS[api](host, interface, down, up) == down, "the peer did not get what the host sent"
    await rig.port.sleep(MS)
    assert interface.channel.sends_in_flight == 0, "sends are still on the ring"
    assert interface.send_errors == interface.receive_errors == 0
    bad = interface.stack.counters.bad_checksum, interface.stack.counters.malformed
    assert bad == (0, 0), f"bad checksums, malformed: {bad}"
    peer = host.peer.stack.counters
    assert (peer.bad_checksum, peer.malformed) == (0, 0), "the peer saw bad frames"
    if coalescing_usecs:
        assert (await interface.nic.read_counters())["rx_coalesced"] > 0, "nothing was merged"
    if host.others.counts["interrupt", "entry"]:
        assert notification != "polling"
    await interface.close()


async def without_barriers(rig: Rig, arguments: None) -> None:
    """Scenario: connect, as if the driver had forgotten its barriers. Fails."""
    host = Host(rig, 4)
    interface = await host.interface(Offloads(), NOTIFICATIONS["interrupts"])
    rig.port.wmb = lambda: None  # type: ignore[method-assign]
    await KernelSockets(interface, host.process).connect(host.peer_ip, PORT)


async def reads_in_flight(rig: Rig, arguments: None) -> dict[str, Any]:
    """Scenario: one long segmented send. How many reads were in flight, and whether their data came in order."""
    assert rig.bus is not None
    nic = await start(rig)
    user = await User.open(rig, nic, HIT)
    rig.bus.events.clear()
    user.send_segmented(60_000, 1460)
    user.bell()
    await user.until_finished(1)
    addresses = [address for _, write, address in rig.bus.events
                 if not write and user.area <= address < user.area + len(user.data)]
    payload = b"".join(frame[54:] for frame in user.sent())
    await user.close()
    return {"most": rig.bus.most_reads, "in_order": addresses == sorted(addresses),
            "good": payload == user.data[:60_000], "reads": len(addresses)}
