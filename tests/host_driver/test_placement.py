"""Who serves a connection, what is left to him through queues, and what sharing costs."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from host_driver.errors import NetworkError
from host_driver.interface import NetworkInterface, Offloads
from host_driver.kernel_sockets import KernelSockets
from host_driver.memnet import MemNet
from host_driver.multiprocessor import Multiprocessor, SharedWork
from host_driver.notification import Interrupts, Napi, Notification, Polling, SoftTimers
from host_driver.placement import Flow, OffloadBelow, Placement, flow_of
from host_driver.queued_tcp import QueuedTcp
from host_driver.softirq import PerProcessor, Softirq
from host_driver.tcp.buffers import Chunk
from tests.host_driver.bench import MS, Bench, CountingAccount
from tests.host_driver.worlds import data

ZERO_COPY = Offloads(rx_checksum=True, tx_checksum=True, segmentation=True)


# ------------------------------------------------------------------------------------------ sharing


@pytest.mark.parametrize(("sharers", "processors", "pattern"), [
    (1, 1, "0000"), (1, 4, "00000000"), (2, 2, "1111"), (4, 4, "1111"), (2, 4, "001001001"), (3, 4, "011011011")])
def test_each_further_sharer_adds_its_part_of_the_price(sharers: int, processors: int, pattern: str) -> None:
    work = SharedWork(sharers, processors)
    assert "".join(str(work.taxed(1)) for _ in pattern) == pattern
    work = SharedWork(sharers, processors)
    assert work.taxed(300) == 300 * (sharers - 1) // max(processors - 1, 1)


@pytest.mark.parametrize(("sharers", "processors"), [(0, 2), (3, 2)])
def test_impossible_sharers_are_refused(sharers: int, processors: int) -> None:
    with pytest.raises(ValueError, match=f"sharers must be 1 to {processors}, not {sharers}"):
        SharedWork(sharers, processors)


def test_one_processor_has_no_kernel_for_several() -> None:
    assert Multiprocessor.of(1) is None


# ------------------------------------------------------------------------------------------ decisions


@dataclass
class Queue:
    waiting: int = 0


def syn(flow: Flow) -> bytes:
    """A SYN from there, as bytes on the wire."""
    ip = b"\x45\0\0\x28\0\0\0\0\x40\x06\0\0" + flow.remote + bytes([10, 0, 0, 1])
    ports = flow.remote_port.to_bytes(2, "big") + flow.local_port.to_bytes(2, "big")
    return bytes(12) + b"\x08\0" + ip + ports + bytes(8) + b"\x50\x02\xff\xff\0\0\0\0"


def flows(number: int) -> list[Flow]:
    return [Flow(bytes([10, 0, 0, 2 + at % 8]), 40000 + at, 80) for at in range(number)]


def test_a_frame_tells_its_connection_whatever_else_it_is() -> None:
    flow = Flow(bytes([10, 0, 0, 9]), 4711, 80)
    assert flow_of(syn(flow)) == (flow, 2)
    assert flow_of(bytes(14)) is None
    assert flow_of(syn(flow)[:40]) is None


def test_connections_are_spread_and_stay_where_they_are() -> None:
    placement = Placement([Queue(), Queue(), Queue()], None, lambda flow: False)
    chosen = [placement.of_frame(syn(flow)) for flow in flows(300)]
    assert chosen == [placement.of_flow(flow) for flow in flows(300)]
    assert min(placement.placed[number] for number in range(3)) > 60
    assert sum(placement.placed.values()) == 300
    assert placement.of_frame(bytes(60)) == 0


def test_a_policy_is_asked_at_each_syn_and_what_it_said_holds() -> None:
    queue, open_flows = Queue(), set[Flow]()
    placement = Placement([queue], OffloadBelow(4), open_flows.__contains__)
    first, second, third = flows(3)
    queue.waiting = 3
    assert placement.of_frame(syn(first)) == 0
    queue.waiting = 4
    assert placement.of_frame(syn(second)) is None
    open_flows.update((first, second))
    # A SYN again of a connection that TCP knows, or a change of the queue, moves none of them.
    queue.waiting = 9
    assert placement.of_frame(syn(first)) == 0
    queue.waiting = 0
    assert placement.of_frame(syn(second)) is placement.of_flow(second) is None
    assert placement.of_frame(syn(third)) == 0
    # Once it is gone, the same ports are another connection.
    open_flows.discard(second)
    assert placement.of_frame(syn(second)) == 0
    assert placement.placed == {0: 3, None: 1}


def test_decisions_on_connections_that_are_gone_are_forgotten() -> None:
    open_flows = set[Flow]()
    placement = Placement([Queue(waiting=1)], OffloadBelow(1), open_flows.__contains__)
    for flow in flows(5000):
        assert placement.of_frame(syn(flow)) is None
        open_flows.add(flow)
        assert all(placement.of_flow(other) is None for other in list(open_flows)[-10:])
        if len(open_flows) > 20:
            open_flows.clear()
    assert len(placement._kept) < 200


def test_a_mark_that_nothing_is_below_is_refused() -> None:
    with pytest.raises(ValueError, match="the mark must be at least 1, not 0"):
        OffloadBelow(0)


# ------------------------------------------------------------------------------------------ transfers


class Servers:
    """A bench whose interface has bottom halves of dedicated processors, and maybe one of the host."""

    def __init__(self, servers: int, *, policy: OffloadBelow | None = None, notification: Notification | None = None,
                 offloads: Offloads | None = None) -> None:
        self.bench = Bench()
        self.accounts = [CountingAccount(self.bench.kernel) for _ in range(servers + (policy is not None))]
        rng = random.Random(7)
        self.softirqs = PerProcessor(self.accounts, lambda: rng.randrange(servers), True, policy)
        self.notification = notification
        self.offloads = offloads or Offloads()
        self.interface: NetworkInterface

    async def open(self) -> NetworkInterface:
        self.interface = await self.bench.interface(self.offloads, self.notification, softirqs=self.softirqs)
        return self.interface

    def run(self, coroutine: Coroutine[Any, None, Any]) -> Any:
        return self.bench.run(coroutine)

    def count(self, category: str, item: str) -> list[int]:
        """By bottom half."""
        return [account.counts[category, item] for account in self.accounts]


KINDS = [Interrupts(), Polling(period_ps=20_000_000), Napi(poll_weight=4)]


@pytest.mark.parametrize("notification", KINDS, ids=["interrupts", "polling", "napi"])
@pytest.mark.parametrize("policy", [None, OffloadBelow(1)], ids=["all", "policy"])
def test_each_bottom_half_carries_its_connections_whoever_took_the_interrupt(
        notification: Notification, policy: OffloadBelow | None) -> None:
    servers, number = Servers(2, policy=policy, notification=notification), 12

    async def main() -> None:
        bench, interface = servers.bench, await servers.open()
        memnet = MemNet(QueuedTcp(interface, copies=True), bench.process)
        region, listening = await memnet.register_mem(data(20_000)), memnet.listen(80)
        connections = []
        for at in range(number):
            connections.append(bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now))
            if at % 3 == 2:
                await bench.kernel.sleep(MS)
            bench.peer.push()
        sockets = [await memnet.accept(listening) for _ in connections]
        jobs = [await memnet.async_send(socket, region) for socket in sockets]
        for job in jobs:
            await memnet.job_wait(job)
        for socket in sockets:
            await memnet.close(socket)
        for connection in connections:
            assert await bench.peer.read_all(connection) == data(20_000)
        await bench.kernel.sleep(MS)
        assert interface.left_over["backlog"] == 0
        for softirq in interface.softirqs:
            assert not softirq.waiting

    servers.run(main())
    placed = servers.interface.placement
    assert placed is not None
    assert sum(placed.placed.values()) == number
    segments = servers.count("tcp_send", "segment")
    for at, count in enumerate(segments[:2]):
        assert count >= placed.placed[at] * 14, "each sends all of what its connections sent"
    kept = placed.placed[None]
    if policy is None:
        assert servers.bench.process.counts["tcp_send", "segment"] == kept == 0
        assert min(placed.placed[0], placed.placed[1]) > 0
    else:
        assert 0 < kept < number
        assert servers.bench.process.counts["tcp_send", "segment"] > 0, "the process sends on what the host kept"
    assert sum(servers.count("tcp_send", "queue_take")) == 2 * (number - kept)
    assert servers.bench.charged["tcp_send", "queue_put"] == 2 * (number - kept)


@pytest.mark.parametrize("offloads", [Offloads(), ZERO_COPY], ids=["copies", "reads"])
def test_a_send_is_over_when_its_memory_is_free(offloads: Offloads) -> None:
    """Copied: at once, though the peer reads nothing. Read by the device: when all is acknowledged."""
    servers = Servers(1, offloads=offloads)

    async def main() -> bytes:
        bench, interface = servers.bench, await servers.open()
        copies = not offloads.tx_checksum
        memnet = MemNet(QueuedTcp(interface, copies=copies), bench.process)
        region, listening = await memnet.register_mem(data(30_000)), memnet.listen(80)
        connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
        bench.peer.push()
        socket = await memnet.accept(listening)
        bench.wire.lose = lambda frame: len(frame) > 1000
        job = await memnet.async_send(socket, region)
        await bench.kernel.sleep(MS)
        assert memnet.job_done(job) is copies
        if copies:
            region.view[:] = bytes(30_000)
        bench.wire.lose = lambda frame: False
        await memnet.job_wait(job)
        await memnet.close(socket)
        return await bench.peer.read_all(connection)

    assert servers.run(main()) == data(30_000)
    (copied,) = servers.count("copy", "user_to_kernel_byte")
    assert copied == (0 if offloads.tx_checksum else 30_000)
    assert servers.bench.process.counts["syscall", "write"] == 0


def test_a_send_on_a_connection_that_the_peer_reset_fails_and_gives_its_memory_back() -> None:
    servers = Servers(1)

    async def main() -> None:
        bench, interface = servers.bench, await servers.open()
        memnet = MemNet(QueuedTcp(interface, copies=True), bench.process)
        region, listening = await memnet.register_mem(data(3_000)), memnet.listen(80)
        connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
        bench.peer.push()
        socket = await memnet.accept(listening)
        connection.abort(bench.kernel.now)
        bench.peer.push()
        await bench.kernel.sleep(MS)
        with pytest.raises(NetworkError):
            await memnet.job_wait(await memnet.async_send(socket, region))
        await memnet.deregister_mem(region)

    servers.run(main())


def test_a_process_that_is_killed_leaves_its_send_to_the_server_or_takes_it_along() -> None:
    """Killed at each moment of an `async_send`: the peer gets all of it or nothing, and nobody waits for ever."""
    outcomes = set()
    for steps in range(12):
        servers = Servers(1)

        async def main(servers: Servers = servers, steps: int = steps) -> bytes:
            bench, interface = servers.bench, await servers.open()
            memnet = MemNet(QueuedTcp(interface, copies=True), bench.process)
            region, listening = await memnet.register_mem(data(3_000)), memnet.listen(80)
            connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
            bench.peer.push()
            socket = await memnet.accept(listening)
            task = bench.kernel.spawn(memnet.async_send(socket, region), "to be killed")
            await bench.kernel.sleep(400 * steps)
            task.cancel()
            await bench.kernel.sleep(MS)
            await memnet.close(socket)
            return await bench.peer.read_all(connection)

        got = servers.run(main())
        assert got in (b"", data(3_000))
        outcomes.add(bool(got))
    assert outcomes == {False, True}


@pytest.mark.parametrize("length", [10, 5_000, 150_000])
def test_copied_writes_are_sent_by_the_server_with_their_order_and_end(length: int) -> None:
    """Ordinary sockets: copied in the call, sent by the bottom half; more than the send buffer holds waits."""
    servers = Servers(2)

    async def main() -> bytes:
        bench, interface = servers.bench, await servers.open()
        sockets = KernelSockets(interface, bench.process, leaves_sends=True)
        listening = sockets.listen(80)
        connection = bench.peer.stack.connect(bench.host_ip, 80, bench.kernel.now)
        connection.send(Chunk(b"question"))
        bench.peer.push()
        socket = await sockets.accept(listening)
        assert await socket.read(100) == b"question"
        await socket.write(data(length)[: length // 2])
        await socket.write(data(length)[length // 2 :])
        await socket.shutdown()
        got = await bench.peer.read_all(connection)
        with pytest.raises(NetworkError, match="write on"):
            await socket.write(b"more")
        await socket.close()
        return got

    assert servers.run(main()) == data(length)
    counts = servers.bench.process.counts
    assert counts["copy", "user_to_kernel_byte"] >= length
    assert counts["tcp_send", "segment"] == 0
    assert sum(servers.count("tcp_send", "queue_take")) == counts["tcp_send", "queue_put"] > 0


def test_a_bottom_half_that_looks_by_itself_is_sent_no_signal() -> None:
    account = CountingAccount(Bench().kernel)
    softirq = Softirq(account, "softirq")
    softirq.tell(account)
    softirq.tell(account)
    softirq.charge_start()
    softirq.charge_start()
    assert account.counts["interrupt", "signal"] == account.counts["interrupt", "entry"] == 1
    assert account.counts["softirq", "run"] == 2
    looks = Softirq(account, "softirq")
    looks.looks = True
    looks.tell(account)
    assert account.counts["interrupt", "signal"] == 1
    assert looks.pending.is_set()


def test_soft_timers_have_one_bottom_half() -> None:
    class Never:
        def next(self, tick_ps: int) -> Any:
            raise AssertionError

    servers = Servers(2, notification=SoftTimers(states=Never(), period_ps=1))

    async def opening() -> None:
        with pytest.raises(ValueError, match="SoftTimers has one softirq, not 2"):
            await servers.open()

    servers.run(opening())
