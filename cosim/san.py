"""A system area network like VIA: adapters on a PCI bus of their own each, links, and a switch. Bytes really move.

An adapter takes the doorbells of all its VIs in turn. For each it fetches the descriptor over its PCI bus, reads the
data packet by packet, and puts the packets on its link; the peer's adapter writes each over its own PCI bus where it
belongs, and behind the last one the completion. The sender's completes when word of that is back. Both directions of a
node share its bus. Packets cut through the switch; those for one node wait for each other at its output.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from typing import NamedTuple

from cosim.machine import PS_PER_SECOND, San
from cosim.memory import HostMemory
from host_driver.runtime import Future, Kernel, Queue
from host_driver.san.port import CompletionQueue, ConnectionRequest, Receive, Remote, SanCompletion, Segment, Send

PS_PER_NS = 1000

DESCRIPTOR_BYTES = 64
"""What an adapter fetches for a descriptor: a control segment, an address segment and a data segment or two."""
COMPLETION_BYTES = 16
PACKET_HEADER_BYTES = 16


class _Line:
    """A bus or a link: one transfer at a time, first come, first served."""

    def __init__(self, kernel: Kernel) -> None:
        self.free_at_ps = 0
        self._kernel = kernel

    def take(self, duration_ps: int) -> int:
        """Use it as soon as it is free; when that begins."""
        start_ps = max(self._kernel.now, self.free_at_ps)
        self.free_at_ps = start_ps + duration_ps
        return start_ps

    async def use(self, duration_ps: int) -> None:
        """Use it, and return when that is over."""
        self.take(duration_ps)
        await self._kernel.sleep_until(self.free_at_ps)


class _Queue:
    """Implements `CompletionQueue`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._entries: deque[SanCompletion] = deque()
        self._callback: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<completion queue of {self.name}: {len(self._entries)}>"

    def __len__(self) -> int:
        return len(self._entries)

    def take(self) -> SanCompletion | None:
        """The oldest, or None."""
        return self._entries.popleft() if self._entries else None

    def call_at_entry(self, callback: Callable[[], None]) -> None:
        """Call back once when there is an entry."""
        self._callback = callback
        self._look()

    def put(self, entry: SanCompletion) -> None:
        """The adapter has written one."""
        self._entries.append(entry)
        self._look()

    def _look(self) -> None:
        if self._entries and self._callback is not None:
            callback, self._callback = self._callback, None
            callback()


class ViState(Enum):
    """Of one end of a connection."""

    IDLE = "idle"
    CONNECTED = "connected"
    BROKEN = "broken"


class _Vi:
    def __init__(self, adapter: Adapter, number: int, sends: _Queue, receives: _Queue) -> None:
        self.adapter = adapter
        self.number = number
        self.sends = sends
        self.receives = receives
        self.state = ViState.IDLE
        self.peer: _Vi | None = None
        self.posted: deque[Receive] = deque()
        self.is_destroyed = False

    def complete(self, tag: object, *, is_send: bool, length_bytes: int = 0, immediate: int | None = None,
                 error: str | None = None) -> None:
        if not self.is_destroyed:
            queue = self.sends if is_send else self.receives
            queue.put(SanCompletion(self.number, tag, is_send, length_bytes, immediate, error))

    def break_up(self, why: str) -> None:
        """Both ends are broken: what was posted completes with the reason."""
        for end in (self, self.peer):
            if end is None or end.state is ViState.BROKEN:
                continue
            end.state = ViState.BROKEN
            posted, end.posted = end.posted, deque()
            for receive in posted:
                end.complete(receive.tag, is_send=False, error=why)


class _Packet(NamedTuple):
    """Part of a send on its way. `offset`: of its first byte in what is sent."""

    source: _Vi
    send: Send
    offset: int
    data: bytes
    is_last: bool


class _Request:
    """Implements `ConnectionRequest`."""

    def __init__(self, network: SanNetwork, adapter: Adapter, vi: _Vi, data: bytes,
                 answer: Future[bytes | None]) -> None:
        self.data = data
        self._network = network
        self._adapter = adapter
        self._vi = vi
        self._answer = answer

    def accept(self, vi: int, data: bytes) -> None:
        """Connect it to an own VI."""
        own = self._adapter.vi(vi)
        if own.state is not ViState.IDLE:
            raise ValueError(f"VI {vi} is {own.state.value}, not idle")
        own.peer, self._vi.peer = self._vi, own
        own.state = ViState.CONNECTED
        self._network.later(partial(self._accepted, data))

    def _accepted(self, data: bytes) -> None:
        if self._vi.is_destroyed:
            assert self._vi.peer is not None
            self._vi.peer.break_up("the peer has gone")
            self._answer.set_result(None)
            return
        self._vi.state = ViState.CONNECTED
        self._answer.set_result(data)

    def reject(self) -> None:
        """Refuse it."""
        self._network.later(lambda: self._answer.set_result(None))


class SanNetwork:
    """The switch, and the adapters at it, each of which is a node by its number from 0."""

    def __init__(self, kernel: Kernel, parameters: San) -> None:
        self.kernel = kernel
        self.parameters = parameters
        self.latency_ps = parameters.latency_ns * PS_PER_NS
        self.adapters: list[Adapter] = []

    def attach(self, memory: HostMemory, name: str) -> Adapter:
        """One more node."""
        adapter = Adapter(self, memory, len(self.adapters), name)
        self.adapters.append(adapter)
        return adapter

    def later(self, callback: Callable[[], None]) -> None:
        """When a small message is at the other end."""
        self.kernel.call_at(self.kernel.now + self.latency_ps, callback)

    def link_ps(self, length_bytes: int) -> int:
        """Time that a packet takes on a link."""
        return -(-(length_bytes + PACKET_HEADER_BYTES) * PS_PER_SECOND // self.parameters.link_bytes_per_s)

    def bus_ps(self, length_bytes: int) -> int:
        """Time that so many bytes take on a node's bus, in bursts, each with what a transaction costs."""
        parameters = self.parameters
        bursts = max(1, -(-length_bytes // parameters.bus_burst_bytes))
        return (-(-length_bytes * PS_PER_SECOND // parameters.bus_bytes_per_s)
                + bursts * parameters.bus_transaction_ns * PS_PER_NS)


class Adapter:
    """One node's adapter: implements `host_driver.san.port.SanPort`.

    Attributes: `node`, its number; `bus_bytes`, what crossed its PCI bus; `doorbells` rung so far.
    """

    def __init__(self, network: SanNetwork, memory: HostMemory, node: int, name: str) -> None:
        self.memory = memory
        self.kernel = network.kernel
        self.node = node
        self.bus_bytes = 0
        self.doorbells = 0
        self._network = network
        self._name = name
        self._ranges: dict[int, tuple[int, int]] = {}
        self._next_handle = 1
        self._vis: dict[int, _Vi] = {}
        self._next_vi = 1
        self._on_request: Callable[[ConnectionRequest], None] | None = None
        self._bus = _Line(self.kernel)
        self._link = _Line(self.kernel)
        self._switch_output = _Line(self.kernel)
        self._posted: Queue[tuple[_Vi, Send]] = Queue(f"doorbells of {name}'s SAN adapter")
        self._arrived: Queue[_Packet] = Queue(f"packets for {name}'s SAN adapter")
        self.kernel.spawn(self._send_all(), f"sending by {name}'s SAN adapter")
        self.kernel.spawn(self._receive_all(), f"receiving by {name}'s SAN adapter")

    # ------------------------------------------------------------------------------------------ software's side

    def register(self, address: int, length_bytes: int) -> int:
        """Let descriptors and peers use memory. Raises ValueError for a range outside of it."""
        self.memory.view(address, length_bytes)
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._ranges[handle] = (address, address + length_bytes)
        return handle

    def deregister(self, handle: int) -> None:
        """Take it back."""
        del self._ranges[handle]

    @property
    def registered(self) -> int:
        """Ranges that are registered."""
        return len(self._ranges)

    def create_queue(self, name: str) -> CompletionQueue:
        """A completion queue."""
        return _Queue(name)

    def create_vi(self, sends: CompletionQueue, receives: CompletionQueue) -> int:
        """A VI whose work queues complete in these."""
        assert isinstance(sends, _Queue)
        assert isinstance(receives, _Queue)
        number, self._next_vi = self._next_vi, self._next_vi + 1
        self._vis[number] = _Vi(self, number, sends, receives)
        return number

    def disconnect(self, vi: int) -> None:
        """Break the connection."""
        self._vis[vi].break_up("the connection was broken off")

    def destroy_vi(self, vi: int) -> None:
        """Disconnect it and forget it."""
        gone = self._vis.pop(vi)
        gone.is_destroyed = True
        gone.break_up("the peer has gone")

    def vi(self, number: int) -> _Vi:
        """Raises KeyError for a VI that is none."""
        return self._vis[number]

    def listen(self, on_request: Callable[[ConnectionRequest], None]) -> None:
        """Hear of peers that want a connection."""
        self._on_request = on_request

    def connect(self, vi: int, node: int, data: bytes) -> Future[bytes | None]:
        """Ask a node for a connection."""
        answer: Future[bytes | None] = Future(f"the answer of node {node} to a connection request of {self._name}")
        adapters = self._network.adapters
        target = adapters[node] if 0 <= node < len(adapters) else None
        request = _Request(self._network, target or self, self._vis[vi], data, answer)

        def arrived() -> None:
            if target is None or target._on_request is None:
                request.reject()
            else:
                target._on_request(request)

        self._network.later(arrived)
        return answer

    def post_send(self, vi: int, send: Send) -> None:
        """Put a descriptor on a send queue."""
        self.doorbells += 1
        entry = (self._vis[vi], send)
        self.kernel.call_at(self.kernel.now + self._network.parameters.doorbell_ns * PS_PER_NS,
                            lambda: self._posted.put(entry))

    def post_receive(self, vi: int, receive: Receive) -> None:
        """Put a descriptor on a receive queue."""
        self.doorbells += 1
        target = self._vis[vi]
        if target.state is ViState.BROKEN:
            target.complete(receive.tag, is_send=False, error="the connection is broken")
        else:
            target.posted.append(receive)

    # ------------------------------------------------------------------------------------------ sending

    async def _send_all(self) -> None:
        while True:
            vi, send = await self._posted.get()
            await self._use_bus(DESCRIPTOR_BYTES)
            if vi.state is not ViState.CONNECTED:
                vi.complete(send.tag, is_send=True, error=f"the connection is {vi.state.value}")
                continue
            wrong = next((segment for segment in send.segments if not self._covers(
                segment.handle, segment.address, segment.length_bytes)), None)
            if wrong is not None:
                why = f"{wrong} lies in no registered memory of {self._name}"
                vi.complete(send.tag, is_send=True, error=why)
                vi.break_up(why)
                continue
            await self._send(vi, send)

    async def _send(self, vi: _Vi, send: Send) -> None:
        network, link, peer = self._network, self._link, vi.peer
        assert peer is not None
        offset, total = 0, sum(segment.length_bytes for segment in send.segments)
        for views in self._packets(send.segments):
            # Read now, not when it was posted: who touches the buffer too soon is heard at the other end.
            await self._use_bus(sum(map(len, views)))
            data = b"".join(views)
            packet = _Packet(vi, send, offset, data, offset + len(data) == total)
            offset += len(data)
            start_ps = link.take(network.link_ps(len(data)))
            self.kernel.call_at(start_ps + network.latency_ps, partial(peer.adapter._enter, packet))
            # One packet is read ahead of the one on the link.
            await self.kernel.sleep_until(max(start_ps, self.kernel.now))

    def _packets(self, segments: tuple[Segment, ...]) -> Iterator[list[memoryview]]:
        """The bytes of segments where they lie, packet by packet; one empty packet if there are none."""
        size = room = self._network.parameters.packet_bytes
        gathered: list[memoryview] = []
        for segment in segments:
            address, left = segment.address, segment.length_bytes
            while left:
                length = min(room, left)
                gathered.append(self.memory.view(address, length))
                address, left, room = address + length, left - length, room - length
                if not room:
                    yield gathered
                    gathered, room = [], size
        if gathered or not any(segment.length_bytes for segment in segments):
            yield gathered

    # ------------------------------------------------------------------------------------------ receiving

    def _enter(self, packet: _Packet) -> None:
        """The head of a packet is at the switch's output to this node."""
        duration_ps = self._network.link_ps(len(packet.data))
        start_ps = self._switch_output.take(duration_ps)
        self.kernel.call_at(start_ps + duration_ps, lambda: self._arrived.put(packet))

    async def _receive_all(self) -> None:
        while True:
            packet = await self._arrived.get()
            source, send = packet.source, packet.send
            vi = source.peer
            assert vi is not None
            why = self._find_wrong(vi, packet) if vi.state is ViState.CONNECTED else None
            if why is not None:
                vi.break_up(why)
            if vi.state is not ViState.CONNECTED:
                if packet.is_last:
                    self._network.later(partial(source.complete, send.tag, is_send=True,
                                                error=why or f"the connection is {vi.state.value}"))
                continue
            await self._use_bus(len(packet.data))
            if vi.state is not ViState.CONNECTED:
                continue
            self._store(vi, packet)
            if not packet.is_last:
                continue
            if send.remote is None or send.immediate is not None:
                receive = vi.posted.popleft()
                await self._use_bus(COMPLETION_BYTES)
                vi.complete(receive.tag, is_send=False, immediate=send.immediate,
                            length_bytes=packet.offset + len(packet.data) if send.remote is None else 0)
            self._network.later(partial(source.complete, send.tag, is_send=True))

    def _find_wrong(self, vi: _Vi, packet: _Packet) -> str | None:
        """Why a packet cannot be stored; None: it can."""
        send, end = packet.send, packet.offset + len(packet.data)
        if (send.remote is None or (send.immediate is not None and packet.is_last)) and not vi.posted:
            return f"{self._name} had posted no receive"
        if send.remote is None and end > vi.posted[0].segment.length_bytes:
            return f"a send of {end} bytes or more came to a receive of {vi.posted[0].segment.length_bytes}"
        target = self._target(vi, send)
        if len(packet.data) and not self._covers(target.handle, target.address + packet.offset, len(packet.data)):
            return f"{target} lies in no registered memory of {self._name}"
        return None

    def _store(self, vi: _Vi, packet: _Packet) -> None:
        if packet.data:
            address = self._target(vi, packet.send).address + packet.offset
            self.memory.view(address, len(packet.data))[:] = packet.data

    def _target(self, vi: _Vi, send: Send) -> Remote:
        """Where a send's bytes go."""
        if send.remote is not None:
            return send.remote
        segment = vi.posted[0].segment
        return Remote(segment.handle, segment.address)

    # ------------------------------------------------------------------------------------------ bus

    def _covers(self, handle: int, address: int, length_bytes: int) -> bool:
        start, end = self._ranges.get(handle, (0, 0))
        return start <= address and address + length_bytes <= end

    async def _use_bus(self, length_bytes: int) -> None:
        self.bus_bytes += length_bytes
        await self._bus.use(self._network.bus_ps(length_bytes))

