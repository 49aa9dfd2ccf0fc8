"""The system area network: bytes that arrive, their time, the bus that both directions share, and what breaks."""

from __future__ import annotations

import random

import pytest

from cosim.machine import load_machine
from cosim.memory import PAGE_BYTES, HostMemory
from cosim.san import Adapter, SanNetwork
from host_driver.runtime import Kernel
from host_driver.san.port import CompletionQueue, Receive, Remote, SanCompletion, Segment, Send

US = 10**6
MEMORY_BYTES = 1 << 20


class Node:
    """An adapter with one VI, whose work queues complete in a queue each, and all of its memory registered."""

    def __init__(self, network: SanNetwork, name: str) -> None:
        self.memory = HostMemory(MEMORY_BYTES)
        self.adapter: Adapter = network.attach(self.memory, name)
        self.sends: CompletionQueue = self.adapter.create_queue(f"{name}'s sends")
        self.receives: CompletionQueue = self.adapter.create_queue(f"{name}'s receives")
        self.handle = self.adapter.register(self.memory.base, MEMORY_BYTES)
        self.vi = self.adapter.create_vi(self.sends, self.receives)

    def segment(self, offset: int, length: int) -> Segment:
        return Segment(self.handle, self.memory.base + offset, length)

    def remote(self, offset: int) -> Remote:
        return Remote(self.handle, self.memory.base + offset)

    def write(self, offset: int, data: bytes) -> None:
        self.memory.view(self.memory.base + offset, len(data))[:] = data

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.memory.view(self.memory.base + offset, length))

    def post(self, *segments: Segment, remote: Remote | None = None, immediate: int | None = None,
             tag: object = None) -> None:
        self.adapter.post_send(self.vi, Send(segments=segments, remote=remote, immediate=immediate, tag=tag))

    def post_receive(self, offset: int, length: int, tag: object = None) -> None:
        self.adapter.post_receive(self.vi, Receive(self.segment(offset, length), tag))


class Pair:
    """Two nodes, connected VI to VI."""

    def __init__(self) -> None:
        machine = load_machine("p2-300-via")
        assert machine.san is not None
        self.kernel = Kernel()
        self.network = SanNetwork(self.kernel, machine.san)
        self.a, self.b = Node(self.network, "a"), Node(self.network, "b")
        self.connect(self.a, self.b)

    def connect(self, caller: Node, called: Node) -> None:
        called.adapter.listen(lambda request: request.accept(called.vi, b"welcome " + request.data))
        answer = caller.adapter.connect(caller.vi, called.adapter.node, b"a")
        self.run()
        assert answer.result() == b"welcome a"

    def run(self) -> None:
        self.kernel.run_while(lambda: True)


def taken(queue: CompletionQueue) -> list[SanCompletion]:
    found = []
    while (entry := queue.take()) is not None:
        found.append(entry)
    return found


@pytest.mark.parametrize("length", [1, 1023, 1024, 1025, 16384])
def test_a_send_goes_into_the_receive_that_was_posted_first(length: int) -> None:
    pair, data = Pair(), random.Random(length).randbytes(length)
    pair.a.write(100, data)
    pair.b.post_receive(5000, length, "first")
    pair.b.post_receive(60000, length, "second")
    pair.a.post(pair.a.segment(100, length), tag="sent", immediate=7)
    pair.run()
    assert pair.b.read(5000, length) == data
    assert taken(pair.b.receives) == [SanCompletion(pair.b.vi, "first", False, length, 7, None)]
    assert taken(pair.a.sends) == [SanCompletion(pair.a.vi, "sent", True, 0, None, None)]


def test_an_rdma_write_gathers_and_takes_a_receive_only_for_immediate_data() -> None:
    pair = Pair()
    pair.a.write(0, b"head")
    pair.a.write(9000, b"body" * 1000)
    pair.b.post_receive(0, 0, "told")
    pair.a.post(pair.a.segment(0, 4), pair.a.segment(9000, 4000), remote=pair.b.remote(333))
    pair.run()
    assert pair.b.read(333, 4004) == b"head" + b"body" * 1000
    assert not len(pair.b.receives)
    pair.a.post(remote=pair.b.remote(333), immediate=0xFFFF_FFFF)
    pair.run()
    assert taken(pair.b.receives) == [SanCompletion(pair.b.vi, "told", False, 0, 0xFFFF_FFFF, None)]


@pytest.mark.parametrize("seed", range(3))
def test_random_writes_of_both_nodes_arrive_in_order(seed: int) -> None:
    rng, pair = random.Random(seed), Pair()
    shadow = {pair.a: bytearray(65536), pair.b: bytearray(65536)}
    place = 1 << 19
    for _ in range(60):
        source, target = rng.choice([(pair.a, pair.b), (pair.b, pair.a)])
        data = rng.randbytes(rng.choice([1, 7, 1024, rng.randrange(1, 5000)]))
        at = rng.randrange(65536 - len(data))
        source.write(place, data)
        source.post(source.segment(place, len(data)), remote=target.remote(at))
        shadow[target][at : at + len(data)] = data
        place += len(data)  # nothing that waits to be read is written over
        pair.kernel.run_until(pair.kernel.now + rng.choice([0, 1, 20, 400]) * US)
    pair.run()
    for node, expected in shadow.items():
        assert node.read(0, 65536) == expected, f"seed {seed}"


def test_the_data_are_read_when_they_leave() -> None:
    """Who touches a buffer before the send is done is heard at the other end."""
    pair = Pair()
    pair.a.write(0, b"o" * 16384)
    pair.a.post(pair.a.segment(0, 16384), remote=pair.b.remote(0))
    pair.kernel.run_until(pair.kernel.now + 80 * US)
    pair.a.write(0, b"n" * 16384)
    pair.run()
    arrived = pair.b.read(0, 16384)
    assert arrived.startswith(b"o" * 1024)
    assert arrived.endswith(b"n" * 1024)


def test_the_smallest_message_takes_10_us() -> None:
    """Published: 10.5 us one way."""
    pair = Pair()
    pair.b.post_receive(0, 64)
    start_ps = pair.kernel.now
    pair.a.post(pair.a.segment(0, 4))
    pair.kernel.run_while(lambda: not len(pair.b.receives))
    assert 10 * US <= pair.kernel.now - start_ps <= 11 * US


def stream_bytes_per_s(pair: Pair, *sources: Node, messages: int = 20, length: int = 32768) -> float:
    start_ps = pair.kernel.now
    for source in sources:
        target = pair.b if source is pair.a else pair.a
        for _ in range(messages):
            source.post(source.segment(0, length), remote=target.remote(0))
    queues = [source.sends for source in sources]
    pair.kernel.run_while(lambda: sum(map(len, queues)) < messages * len(sources))
    rate = messages * length * len(sources) * 1e12 / (pair.kernel.now - start_ps)
    for queue in queues:
        taken(queue)
    return rate


def test_a_stream_has_what_the_bus_gives() -> None:
    """Published: 814 Mb/s."""
    pair = Pair()
    assert 98e6 < stream_bytes_per_s(pair, pair.a) < 102e6


def test_both_directions_share_each_node_s_bus() -> None:
    pair = Pair()
    one = stream_bytes_per_s(pair, pair.a)
    both = stream_bytes_per_s(pair, pair.a, pair.b)
    assert 0.95 * one < both < 1.03 * one


def test_two_senders_share_the_receiver_s_link_and_bus() -> None:
    pair = Pair()
    c = Node(pair.network, "c")
    other = pair.b.adapter.create_vi(pair.b.sends, pair.b.receives)
    pair.b.adapter.listen(lambda request: request.accept(other, b""))
    assert c.adapter.connect(c.vi, pair.b.adapter.node, b"").done is False
    pair.run()
    both = stream_bytes_per_s(pair, pair.a, c)
    assert 95e6 < both < 102e6


# ---------------------------------------------------------------------------------------------- what breaks


def test_nobody_listens_or_he_refuses() -> None:
    pair = Pair()
    vi = pair.a.adapter.create_vi(pair.a.sends, pair.a.receives)
    nobody = pair.b.adapter.connect(pair.b.vi, pair.a.adapter.node, b"")
    nowhere = pair.a.adapter.connect(vi, 99, b"")
    pair.b.adapter.listen(lambda request: request.reject())
    refused = pair.a.adapter.connect(vi, pair.b.adapter.node, b"")
    pair.run()
    assert [answer.result() for answer in (nobody, nowhere, refused)] == [None] * 3


@pytest.mark.parametrize(("what", "why"), [
    ("no receive", "b had posted no receive"),
    ("short receive", "a send of 100 bytes or more came to a receive of 99"),
    ("beyond", "lies in no registered memory of b"),
    ("wrong handle", "lies in no registered memory of b"),
    ("own", "lies in no registered memory of a"),
    ("deregistered", "lies in no registered memory of b"),
])
def test_what_cannot_be_delivered_breaks_the_connection(what: str, why: str) -> None:
    pair = Pair()
    before = pair.b.read(0, PAGE_BYTES)
    pair.a.write(0, b"x" * 100)
    pair.a.post_receive(0, 10, "a's receive")
    segment, remote = pair.a.segment(0, 100), None
    if what != "no receive":
        pair.b.post_receive(0, 99 if what == "short receive" else 100, "b's receive")
    if what == "beyond":
        remote = pair.b.remote(MEMORY_BYTES - 99)
    elif what == "wrong handle":
        remote = pair.b.remote(0)._replace(handle=77)
    elif what == "own":
        segment = segment._replace(address=pair.a.memory.base - 1)
    elif what == "deregistered":
        remote = pair.b.remote(0)
        pair.b.adapter.deregister(pair.b.handle)
    pair.a.post(segment, remote=remote, tag="sent")
    pair.a.post(segment, remote=remote, tag="behind")
    pair.run()
    sent, behind = taken(pair.a.sends)
    assert (sent.tag, behind.tag) == ("sent", "behind")
    assert str(sent.error).endswith(why)
    assert behind.error == "the connection is broken"
    assert [entry.tag for entry in taken(pair.a.receives)] == ["a's receive"]
    assert all(entry.error for entry in taken(pair.b.receives))
    assert pair.b.read(0, PAGE_BYTES) == before


def test_a_destroyed_vi_breaks_its_peer() -> None:
    pair = Pair()
    pair.b.post_receive(0, 100)
    pair.a.post_receive(0, 100, "waits")
    pair.b.adapter.destroy_vi(pair.b.vi)
    pair.run()
    assert not len(pair.b.receives)
    assert [(entry.tag, entry.error) for entry in taken(pair.a.receives)] == [("waits", "the peer has gone")]
    pair.a.post(pair.a.segment(0, 1), tag="late")
    pair.run()
    assert [entry.error for entry in taken(pair.a.sends)] == ["the connection is broken"]
