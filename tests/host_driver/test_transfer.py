"""Whole transfers: application, sockets or MemNet, driver, model device, wire, and a software peer."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from host_driver.errors import (
    BadRegion,
    ConnectionRefused,
    PeerReset,
    RangeOutsideRegion,
    RegionInUse,
    SocketClosed,
)
from host_driver.host_tcp import HostTcp
from host_driver.interface import NetworkInterface, Offloads
from host_driver.kernel_sockets import KernelSockets, Socket
from host_driver.memnet import MemNet
from host_driver.multiprocessor import Multiprocessor
from host_driver.nic import DeviceError
from host_driver.notification import Interrupts, Napi, Notification, Polling, SoftTimers
from host_driver.runtime import Future, TaskFailed
from host_driver.softirq import PerProcessor
from host_driver.tcp.buffers import Chunk
from host_driver.tcp.connection import Connection
from host_driver.tcp.profile import LINUX24
from host_driver.tcp.states import State
from tests.host_driver.bench import MS, Bench, CountingAccount

ALL_OFFLOADS = Offloads(rx_checksum=True, tx_checksum=True, segmentation=True)
MODERATED = Interrupts(rx_usecs=60, rx_frames=15, tx_usecs=200, tx_frames=35)
POLLING = Polling(period_ps=20_000_000)


class AlwaysIdle:
    """Trigger states of a host that idles."""

    def next(self, tick_ps: int) -> Future[bool]:
        future: Future[bool] = Future("a trigger state")
        future.set_result(True)
        return future


SOFT = SoftTimers(states=AlwaysIdle(), period_ps=20_000_000)
NOTIFICATIONS = {"each": Interrupts(), "moderated": MODERATED, "polling": POLLING, "soft": SOFT,
                 "napi": Napi(interrupts=MODERATED), "napi by one": Napi(poll_weight=1)}


def data(length: int, seed: int = 5) -> bytes:
    return random.Random(seed).randbytes(length)


async def uploaded(bench: Bench, interface: NetworkInterface, up: bytes, read_bytes: int) -> tuple[Connection, Socket]:
    """The peer connects to port 80 and sends; all of it has been read, as it was sent."""
    sockets = KernelSockets(interface, bench.process)
    listening = sockets.listen(80)
    connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
    connection.send(Chunk(up))
    bench.peer.push()
    socket = await sockets.accept(listening)
    read = bytearray()
    while len(read) < len(up):
        read += await socket.read(read_bytes)
    assert bytes(read) == up
    return connection, socket


@pytest.mark.parametrize("version", [4, 6])
def test_coalesced_receives(version: int) -> None:
    """The device merges the peer's segments; the stack takes the large ones, and far fewer of them."""
    bench = Bench(version=version)
    length = 300_000
    up = data(length, 6)
    offloads = replace(ALL_OFFLOADS, coalescing_usecs=20)

    async def server() -> None:
        interface = await bench.interface(offloads, MODERATED)
        connection, socket = await uploaded(bench, interface, up, 1 << 16)
        connection.close(bench.kernel.now)
        bench.peer.push()
        assert await socket.read(10) == b""
        counters = await interface.nic.read_counters()
        assert counters["rx_aggregates"] > 10
        assert counters["rx_coalesced"] > counters["rx_frames"] // 2
        assert interface.receive_errors == 0
        stack = interface.stack.counters
        assert (stack.bad_checksum, stack.malformed) == (0, 0)
        await interface.close()

    bench.run(server())
    assert bench.charged["softirq", "packet"] < 300_000 // 1460 // 2
    # RFC 5681 §4.2: at least every second segment of those that were merged is acknowledged by itself.
    acknowledgements = len(bench.wire.frames)
    assert acknowledgements > 0.9 * 300_000 / 1460 / 2


@pytest.mark.parametrize("offloads", [Offloads(), ALL_OFFLOADS], ids=["dumb", "offloads"])
@pytest.mark.parametrize("version", [4, 6])
def test_neighbours_are_found_on_the_wire(version: int, offloads: Offloads) -> None:
    """Nobody tells either end of the other: ARP and neighbour discovery pass driver and device too."""
    bench = Bench(version=version, static_neighbours=False)

    async def server() -> bytes:
        interface = await bench.interface(offloads)
        sockets = KernelSockets(interface, bench.process)
        listening = sockets.listen(80)
        connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
        bench.peer.push()
        socket = await sockets.accept(listening)
        await socket.write(b"found")
        return await bench.peer.read_all(connection, 5)

    assert bench.run(server()) == b"found"
    asked = bytes.fromhex("0806" if version == 4 else "86dd")
    assert bench.wire.frames[0][12:14] == asked, "the host's first frame answers who asked for its address"


def test_bottom_halves_of_several_processors_serve_what_each_was_left() -> None:
    bench, down, up = Bench(), data(100_000), data(100_000, 6)
    accounts = [CountingAccount(bench.kernel) for _ in range(3)]
    rng = random.Random(5)
    softirqs = PerProcessor(accounts, lambda: rng.randrange(3))

    async def server() -> bytes:
        interface = await bench.interface(softirqs=softirqs)
        connection, socket = await uploaded(bench, interface, up, 4096)
        await socket.write(down)
        await socket.close()
        got = await bench.peer.read_all(connection)
        await bench.kernel.sleep(MS)
        assert interface.left_over["backlog"] == interface.backlog_drops == 0
        return got

    assert bench.run(server()) == down
    packets = [account.counts["softirq", "packet"] for account in accounts]
    assert sum(packets) == bench.interrupt.counts["driver", "receive_frame"]
    assert min(packets) > 10


@pytest.mark.parametrize("notification", [POLLING, SOFT, Napi()], ids=["polling", "soft", "napi"])
def test_who_polls_has_one_bottom_half(notification: Notification) -> None:
    bench = Bench()
    softirqs = PerProcessor([bench.softirq, bench.softirq], lambda: 0)

    async def opening() -> None:
        with pytest.raises(ValueError, match="has one softirq, not 2"):
            await bench.interface(notification=notification, softirqs=softirqs)

    bench.run(opening())


def test_coalescing_needs_checksums() -> None:
    with pytest.raises(ValueError, match="coalescing"):
        Offloads(coalescing_usecs=5)


@pytest.mark.parametrize("barriers", [False, True])
@pytest.mark.parametrize("notification", NOTIFICATIONS.values(), ids=NOTIFICATIONS)
@pytest.mark.parametrize(("offloads", "version"), [(Offloads(), 4), (ALL_OFFLOADS, 4), (ALL_OFFLOADS, 6)],
                         ids=["dumb", "offloads", "offloads6"])
@pytest.mark.parametrize("length", [1, 100_000])
def test_sockets_both_ways(barriers: bool, notification: Notification, offloads: Offloads, version: int,
                           length: int) -> None:
    bench = Bench(barriers=barriers, version=version)
    down, up = data(length), data(length, 6)

    async def server() -> bytes:
        interface = await bench.interface(offloads, notification)
        connection, socket = await uploaded(bench, interface, up, 4096)
        await socket.write(down)
        await socket.close()
        got = await bench.peer.read_all(connection)
        connection.close(bench.kernel.now)
        bench.peer.push()
        assert await socket.read(10) == b""
        await bench.kernel.sleep(MS)
        assert interface.send_errors == interface.receive_errors == 0
        assert interface.channel.sends_in_flight == 0
        counters = interface.stack.counters
        assert (counters.bad_checksum, counters.malformed) == (0, 0)
        return got

    assert bench.run(server()) == down
    charged = bench.charged
    assert charged["copy", "user_to_kernel_byte"] == charged["copy", "kernel_to_user_byte"] == length
    assert charged["copy", "retransmit_byte"] == length
    assert charged["driver", "transmit_frame"] == charged["driver", "transmit_reclaim"] == len(bench.wire.frames)
    assert charged["driver", "receive_frame"] == charged["softirq", "packet"] == charged["ip", "receive"]
    assert (charged["tcp_recv", "checksum_byte"] > 0) == (not offloads.rx_checksum)
    assert (charged["interrupt", "entry"] == 0) == (notification in (POLLING, SOFT))
    assert (charged["poll", "batch"] == 0) == isinstance(notification, Interrupts)
    assert charged["interrupt", "entry"] == bench.model.interrupts, "an interrupt was taken twice, or not at all"


@pytest.mark.parametrize("barriers", [False, True])
@pytest.mark.parametrize("notification", NOTIFICATIONS.values(), ids=NOTIFICATIONS)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("length", [1, 100_000])
def test_memnet_both_ways(barriers: bool, notification: Notification, version: int, length: int) -> None:
    bench = Bench(barriers=barriers, version=version)
    down, up = data(length), data(length, 6)

    async def server() -> bytes:
        interface = await bench.interface(ALL_OFFLOADS, notification)
        memnet = MemNet(HostTcp(interface), bench.process)
        source = await memnet.register_mem(down)
        target = await memnet.register_mem(length)
        listening = memnet.listen(80)
        connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
        connection.send(Chunk(up))
        bench.peer.push()
        socket = await memnet.accept(listening)
        received = 0
        while received < length:
            received += await memnet.sync_recv(socket, target, received)
        assert bytes(target.view) == up
        job = await memnet.async_send(socket, source)
        assert not memnet.job_done(job)
        await memnet.close(socket)
        got = await bench.peer.read_all(connection)
        assert await memnet.job_wait(job) == length
        assert memnet.job_done(job)
        for region in (source, target):
            await memnet.deregister_mem(region)
        connection.close(bench.kernel.now)
        bench.peer.push()
        await bench.kernel.sleep(MS)
        assert interface.channel.sends_in_flight == 0
        assert interface.send_errors == interface.receive_errors == 0
        return got

    assert bench.run(server()) == down
    charged = bench.charged
    assert charged["copy", "user_to_kernel_byte"] == charged["copy", "retransmit_byte"] == 0
    assert charged["copy", "kernel_to_user_byte"] == length
    assert charged["tcp_send", "checksum_byte"] == charged["tcp_recv", "checksum_byte"] == 0
    if length > 1500:
        frames_with_data = sum(len(f) > 100 for f in bench.wire.frames)
        assert charged["tcp_send", "segment"] < frames_with_data / 2, "the device must have cut segments up"


@pytest.mark.parametrize("offloads", [Offloads(), ALL_OFFLOADS], ids=["dumb", "offloads"])
@pytest.mark.parametrize("multiprocessor", [False, True])
def test_multiprocessor_tax_falls_on_each_packet_up_and_each_segment_down(offloads: Offloads,
                                                                          multiprocessor: bool) -> None:
    bench = Bench()

    async def server() -> bytes:
        interface = await bench.interface(offloads)
        interface.multiprocessor = Multiprocessor.of(2 if multiprocessor else 1)
        memnet = MemNet(HostTcp(interface), bench.process)
        source = await memnet.register_mem(data(50_000))
        listening = memnet.listen(80)
        connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
        bench.peer.push()
        socket = await memnet.accept(listening)
        await memnet.sync_send(socket, source)
        await memnet.close(socket)
        return await bench.peer.read_all(connection)

    assert bench.run(server()) == data(50_000)
    charged, frames = bench.charged, len(bench.wire.frames)
    handed_down = charged["tcp_send", "segment"] + charged["tcp_send", "control"]
    assert (handed_down < frames - 10) if offloads.segmentation else (handed_down == frames)
    if multiprocessor:
        assert charged["tcp_send", "smp_packet"] == handed_down
        assert charged["softirq", "smp_packet"] == charged["softirq", "packet"] > 0
        assert charged["syscall", "smp_connection"] == 1
    else:
        assert not [item for item in charged if item[1].startswith("smp_")]


def test_host_connects_and_peer_accepts() -> None:
    bench = Bench()

    async def client() -> bytes:
        listener = bench.peer.stack.listen(7, 4)
        interface = await bench.interface()
        sockets = KernelSockets(interface, bench.process)
        with pytest.raises(ConnectionRefused, match=r"connect to 10\.0\.0\.2:8"):
            await sockets.connect(bench.peer_ip, 8)
        socket = await sockets.connect(bench.peer_ip, 7)
        await socket.write(b"ping")
        await bench.peer.wait(lambda: listener.acceptable)
        accepted = listener.accept()
        assert accepted is not None
        assert await bench.peer.read_all(accepted, 4) == b"ping"
        accepted.send(Chunk(b"pong"))
        bench.peer.push()
        return await socket.read(100)

    assert bench.run(client()) == b"pong"
    assert bench.process.counts["syscall", "connect"] == 2


@pytest.mark.parametrize("peer_mtu", [73, 83, 84, 500])
def test_segments_smaller_than_the_device_cuts_are_cut_in_software(peer_mtu: int) -> None:
    """Of 21, 31, 32 and 448 bytes behind timestamps: the device takes 32 at least; more frames than packet buffers."""
    bench = Bench(peer_mtu=peer_mtu)
    contents = data(40_000)

    async def server() -> bytes:
        interface = await bench.interface(ALL_OFFLOADS, MODERATED)
        memnet = MemNet(HostTcp(interface), bench.process)
        listening = memnet.listen(80)
        connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
        bench.peer.push()
        socket = await memnet.accept(listening)
        region = await memnet.register_mem(contents)
        job = await memnet.async_send(socket, region)
        got = await bench.peer.read_all(connection, len(contents))
        assert await memnet.job_wait(job) == len(contents)
        assert interface.send_errors == 0
        return got

    assert bench.run(server()) == contents
    assert (bench.charged["copy", "retransmit_byte"] > 30_000) == (peer_mtu < 84)


@pytest.mark.parametrize("offloads", [Offloads(), ALL_OFFLOADS], ids=["dumb", "offloads"])
def test_jumbo_frames(offloads: Offloads) -> None:
    bench = Bench(peer_mtu=9000, memory_bytes=1 << 23)
    contents = data(100_000)

    async def server() -> bytes:
        interface = await bench.interface(offloads, MODERATED, mtu=9000)
        sockets = KernelSockets(interface, bench.process)
        listening = sockets.listen(80)
        connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
        connection.send(Chunk(contents))
        bench.peer.push()
        socket = await sockets.accept(listening)
        echoed = 0
        while echoed < len(contents):
            part = await socket.read(20_000)
            await socket.write(part)
            echoed += len(part)
        return await bench.peer.read_all(connection, len(contents))

    assert bench.run(server()) == contents
    assert max(len(frame) for frame in bench.wire.frames) == 9014


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("api", ["sockets", "memnet"])
def test_transfer_over_a_lossy_wire(seed: int, api: str) -> None:
    bench = Bench(seed=seed)
    rng = random.Random(seed)
    bench.wire.lose = lambda frame: rng.random() < 0.05
    down = data(60_000, seed)

    async def server() -> bytes:
        interface = await bench.interface(ALL_OFFLOADS if api == "memnet" else None, MODERATED)
        connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
        if api == "sockets":
            sockets = KernelSockets(interface, bench.process)
            listening = sockets.listen(80)
            bench.peer.push()
            socket = await sockets.accept(listening)
            await socket.write(down)
            await socket.close()
            return await bench.peer.read_all(connection)
        memnet = MemNet(HostTcp(interface), bench.process)
        listening = memnet.listen(80)
        bench.peer.push()
        accepted = await memnet.accept(listening)
        region = await memnet.register_mem(down)
        job = await memnet.async_send(accepted, region)
        await memnet.close(accepted)
        got = await bench.peer.read_all(connection)
        await memnet.job_wait(job)
        await memnet.deregister_mem(region)
        return got

    assert bench.run(server()) == down, f"seed {seed}"


def test_many_jobs_on_one_socket_finish_in_order() -> None:
    bench = Bench(profile=LINUX24)  # its send buffer takes a third of the jobs, the others wait for their turn
    contents = data(200_000)

    async def server() -> bytes:
        interface = await bench.interface(ALL_OFFLOADS, MODERATED)
        memnet = MemNet(HostTcp(interface), bench.process)
        listening = memnet.listen(80)
        connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
        bench.peer.push()
        socket = await memnet.accept(listening)
        region = await memnet.register_mem(contents)
        jobs = [await memnet.async_send(socket, region, at, 1000) for at in range(0, 200_000, 1000)]
        await memnet.close(socket)
        reading = bench.kernel.spawn(bench.peer.read_all(connection), "peer")
        for number, job in enumerate(jobs):
            assert await memnet.job_wait(job) == 1000
            assert all(memnet.job_done(earlier) for earlier in jobs[:number])
        await memnet.deregister_mem(region)
        return await reading

    assert bench.run(server()) == contents


def test_region_errors() -> None:
    bench = Bench()

    async def run() -> None:
        interface = await bench.interface(ALL_OFFLOADS)
        memnet = MemNet(HostTcp(interface), bench.process)
        listening = memnet.listen(80)
        connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
        bench.peer.push()
        socket = await memnet.accept(listening)
        region = await memnet.register_mem(1000)
        for offset, length in ((1, 1000), (-1, 5), (1000, 1), (0, 0)):
            with pytest.raises(RangeOutsideRegion):
                await memnet.async_send(socket, region, offset, length)
        job = await memnet.async_recv(socket, region, 10, 20)
        with pytest.raises(RegionInUse, match="async_recv of 20 bytes at 10"):
            await memnet.deregister_mem(region)
        connection.send(Chunk(b"x" * 50))
        bench.peer.push()
        assert await memnet.job_wait(job) == 20
        await memnet.deregister_mem(region)
        with pytest.raises(BadRegion, match="not registered"):
            await memnet.async_send(socket, region, 0, 1)
        with pytest.raises(BadRegion, match="not registered"):
            await memnet.deregister_mem(region)
        await memnet.close(socket)
        other = await memnet.register_mem(10)
        with pytest.raises(SocketClosed):
            await memnet.async_send(socket, other)
        await memnet.deregister_mem(other)

    bench.run(run())


def test_peer_reset_fails_jobs_and_frees_their_memory() -> None:
    bench = Bench()

    async def run() -> None:
        interface = await bench.interface(ALL_OFFLOADS, MODERATED)
        memnet = MemNet(HostTcp(interface), bench.process)
        listening = memnet.listen(80)
        connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
        bench.peer.push()
        socket = await memnet.accept(listening)
        region = await memnet.register_mem(1 << 19)
        send = await memnet.async_send(socket, region)
        late = await memnet.async_send(socket, region)
        receive = await memnet.async_recv(socket, await memnet.register_mem(100))
        await bench.peer.wait(lambda: connection.recv_available > 20_000)
        connection.abort(bench.kernel.now)
        bench.peer.push()
        for job in (send, late, receive):
            with pytest.raises(PeerReset):
                await memnet.job_wait(job)
        await memnet.deregister_mem(region)
        assert interface.send_errors == 0

    bench.run(run())


def test_peer_reset_on_sockets() -> None:
    bench = Bench()

    async def run() -> None:
        sockets = KernelSockets(await bench.interface(), bench.process)
        listening = sockets.listen(80)
        connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
        bench.peer.push()
        socket = await sockets.accept(listening)
        connection.abort(bench.kernel.now)
        bench.peer.push()
        with pytest.raises(PeerReset, match="read on"):
            await socket.read(10)
        with pytest.raises(PeerReset, match="write on"):
            await socket.write(bytes(10))

    bench.run(run())


def test_memory_of_a_job_is_held_until_no_send_reads_it() -> None:
    """The peer acknowledges while the send's completion is still out: the job must wait for it."""
    bench = Bench()

    async def run() -> None:
        interface = await bench.interface(ALL_OFFLOADS, Interrupts())
        memnet = MemNet(HostTcp(interface), bench.process)
        listening = memnet.listen(80)
        bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
        bench.peer.push()
        socket = await memnet.accept(listening)
        region = await memnet.register_mem(data(1000))
        await bench.kernel.sleep(MS)
        channel = interface.channel
        ring_doorbell = channel.ring_doorbell
        channel.ring_doorbell = lambda account: None  # type: ignore[method-assign]
        job = await memnet.async_send(socket, region)
        # The peer has all of it although the device has not: as if a retransmission were still on the ring.
        connection_here = interface.stack.connections[0]
        connection_here.sender.acked_bytes = 1000
        connection_here.sender.buffer.clear()
        assert not memnet.job_done(job)
        with pytest.raises(RegionInUse):
            await memnet.deregister_mem(region)
        channel.ring_doorbell = ring_doorbell  # type: ignore[method-assign]
        channel.ring_doorbell(bench.process)
        assert await memnet.job_wait(job) == 1000
        await memnet.deregister_mem(region)

    bench.run(run())


def test_interface_closes_and_gives_all_memory_back() -> None:
    bench = Bench()
    before = list(bench.model.memory._free)  # type: ignore[attr-defined]

    async def run() -> None:
        interface = await bench.interface()
        await interface.close()
        again = await bench.interface(ALL_OFFLOADS, POLLING)
        await again.close()

    bench.run(run())
    assert bench.model.memory._free == before  # type: ignore[attr-defined]
    assert bench.kernel.next_time() is None or not bench.kernel.tasks


def test_missing_barrier_is_seen() -> None:
    bench = Bench(barriers=True)

    async def run() -> None:
        sockets = KernelSockets(await bench.interface(), bench.process)
        bench.port.wmb = lambda: None  # type: ignore[method-assign]
        await sockets.connect(bench.peer_ip, 7)

    with pytest.raises(TaskFailed, match="TRUNCATED_DESCRIPTOR"):
        bench.run(run())


def test_missing_offload_is_refused() -> None:
    bench = Bench()
    with pytest.raises(ValueError, match="needs tx_checksum"):
        Offloads(segmentation=True)
    bench.model.device._globals["FEATURES"] = 0
    with pytest.raises(DeviceError, match="TX_CHECKSUM"):
        bench.run(bench.interface(ALL_OFFLOADS))


def test_peer_reset_leaves_no_connection() -> None:
    bench = Bench()

    async def run() -> None:
        interface = await bench.interface()
        sockets = KernelSockets(interface, bench.process)
        listening = sockets.listen(80)
        connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
        bench.peer.push()
        await sockets.accept(listening)
        assert [c.state for c in interface.stack.connections] == [State.ESTABLISHED]
        connection.abort(bench.kernel.now)
        bench.peer.push()
        await bench.kernel.sleep(MS)
        assert interface.stack.connections == []

    bench.run(run())
