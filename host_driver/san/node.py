"""A TCP server node: takes the host's requests from its VIs and carries them out on the node's own TCP.

Its main thread accepts or rejects VIs by the node's load and hands each to a worker. A dispatching thread looks at the
completion queue of all VIs, and sleeps only when that is empty: a node that has enough to do takes no interrupts of its
SAN adapter. It hands each message to the worker of its VI, which has a thread for sends and calls and one for receives.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from host_driver.account import Account
from host_driver.errors import SocketClosed
from host_driver.host_tcp import HostTcp, HostTcpConnection
from host_driver.memnet.channels import AdmissionPolicy, AdmitByLoad, Load
from host_driver.memnet.credits import CONTROL_BYTES
from host_driver.memnet.eager_accept import EagerAccept
from host_driver.memnet.server import TcpServer
from host_driver.runtime import Future, Queue
from host_driver.san.messages import (
    MESSAGE_BYTES,
    Request,
    parse_control,
    parse_data_immediate,
    parse_request,
)
from host_driver.san.port import ConnectionRequest, Receive, SanCompletion, SanPort, Segment
from host_driver.san.worker import RECEIVES, Arena, Worker

PAGE_BYTES = 4096
ARENA_VIS = 16
"""VIs whose memory is allocated together."""


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """How a node serves. Raises ValueError for what cannot be."""

    ring_bytes: int = 65536
    """Send ring of each socket."""
    receive_bytes: int = 16384
    """Most that one receive is given, and that is kept for a socket that receives ahead."""
    eager_accept: int = 0
    """Connections accepted ahead on each port; 0: none."""
    eager_receive_bytes: int = 0
    """Bytes received ahead for each connection; 0: none."""

    def __post_init__(self) -> None:
        for name in ("ring_bytes", "receive_bytes"):
            if getattr(self, name) < MESSAGE_BYTES:
                raise ValueError(f"{name} must be at least {MESSAGE_BYTES}, not {getattr(self, name)}")
        if self.eager_accept < 0:
            raise ValueError(f"eager_accept must not be negative, not {self.eager_accept}")
        if not 0 <= self.eager_receive_bytes <= self.receive_bytes:
            raise ValueError(f"eager_receive_bytes must be 0 to receive_bytes ({self.receive_bytes}), not "
                             f"{self.eager_receive_bytes}")

    @property
    def vi_bytes(self) -> int:
        """Node memory of one VI, in whole pages: ring, received bytes, messages, control words."""
        used = self.ring_bytes + self.receive_bytes + (RECEIVES + 1) * MESSAGE_BYTES + CONTROL_BYTES
        return -(-used // PAGE_BYTES) * PAGE_BYTES


class TcpServerNode:
    """Serves for ever once it is made.

    Parameters: `port`, the SAN adapter; `provider`, the node's TCP; `make_account(name)`, an account for a thread;
    `interrupt_account`, of the SAN adapter's interrupts; `shares_memory`: the node's network adapter reads the send
    rings too, since TCP sends from them; `admission`, which decides on VIs; `busy`, the share of its
    processor that was in use lately.

    Attributes: `provider`, `settings`, `server` (counters), `vis` (granted, and not given back), `interrupts`,
    `messages` taken, `connections` so far, `listening` by port, `closed` connections that may not be at rest.
    """

    def __init__(self, port: SanPort, provider: HostTcp, *, make_account: Callable[[str], Account],
                 interrupt_account: Account, settings: NodeSettings | None = None, shares_memory: bool = False,
                 admission: AdmissionPolicy | None = None, busy: Callable[[], float] = lambda: 0.0,
                 rng: random.Random | None = None) -> None:
        self.port = port
        self.provider = provider
        self.settings = settings or NodeSettings()
        self.vis = 0
        self.interrupts = 0
        self.messages = 0
        self.workers: dict[Worker, None] = {}
        self.listening: dict[int, Any] = {}
        self.eager: dict[int, EagerAccept] = {}
        self.closed: dict[int, HostTcpConnection] = {}
        self.connections = 0
        self._arenas: list[Arena] = []
        self.server = TcpServer(provider, account=make_account("accepting ahead"), rng=rng)
        self.make_account = make_account
        self.sends_done = port.create_queue("the TCP server's sends")
        self._receives_done = port.create_queue("the TCP server's receives")
        self._interrupt_account = interrupt_account
        self._shares_memory = shares_memory
        self._admission = admission or AdmitByLoad()
        self._busy = busy
        self._account = make_account("dispatching")
        self._main_account = make_account("main thread")
        self._requests: Queue[ConnectionRequest] = Queue("VIs for the TCP server")
        self._reap_sends()
        port.listen(self._requests.put)
        port.kernel.spawn(self._admit_all(), "TCP server's main thread")
        port.kernel.spawn(self._dispatch(), "TCP server's dispatching thread")

    # ------------------------------------------------------------------------------------------ main thread

    async def _admit_all(self) -> None:
        account = self._main_account
        while True:
            request = await self._requests.get()
            account.charge("context_switch", "switch")
            # The first VI of a host is for calls without a socket; it is no load.
            if self.vis and not self._admission.admits(Load(self.vis - 1, self._busy())):
                self.server.counters.channels_rejected += 1
                await account.settle()
                request.reject()
                continue
            try:
                await self._make_worker(request, account)
            except MemoryError:
                self.server.counters.channels_without_memory += 1
                request.reject()

    async def _make_worker(self, request: ConnectionRequest, account: Account) -> None:
        arena = next((arena for arena in self._arenas if arena.free), None) or await self._make_arena(account)
        account.charge("san", "register_memory")
        account.charge("san", "create_vi")
        await account.settle()
        place = arena.free.pop()
        handle = self.port.register(arena.address + place, self.settings.vi_bytes)
        vi = self.port.create_vi(self.sends_done, self._receives_done)
        worker = Worker(self, vi, arena, place, handle, parse_control(request.data))
        self.workers[worker] = None
        for slot in range(RECEIVES):
            self.post_receive(worker, slot)
        self.vis += 1
        self.server.counters.channels_granted += 1
        request.accept(vi, worker.welcome)

    async def _make_arena(self, account: Account) -> Arena:
        """Memory for several VIs, of which the network adapter takes one key. Raises MemoryError."""
        memory, length = self.port.memory, ARENA_VIS * self.settings.vi_bytes
        address, key = memory.allocate(length, PAGE_BYTES), None
        if self._shares_memory:
            try:
                key = await self.provider.register(address, length, account)
            except MemoryError:
                memory.free(address)
                raise
        arena = Arena(address, key, list(range(0, length, self.settings.vi_bytes)))
        self._arenas.append(arena)
        return arena

    async def forget(self, worker: Worker) -> None:
        """A VI's other end has gone, and so has all that was done on it."""
        del self.workers[worker]
        self.port.destroy_vi(worker.vi)
        self.port.deregister(worker.handle)
        self.vis -= 1
        arena = worker.arena
        arena.free.append(worker.place)
        if len(arena.free) == ARENA_VIS:
            self._arenas.remove(arena)
            if arena.key is not None:
                await self.provider.deregister(arena.key, self._main_account)
            self.port.memory.free(arena.address)

    # ------------------------------------------------------------------------------------------ dispatching thread

    async def _dispatch(self) -> None:
        account = self._account
        while True:
            account.charge("san", "poll")
            completion = self._receives_done.take()
            if completion is not None:
                self._take(completion, account)
                await account.settle()
                continue
            await account.settle()
            if not len(self._receives_done):
                await self._sleep(account)

    def _take(self, completion: SanCompletion, account: Account) -> None:
        worker: Worker
        worker, slot = completion.tag
        if completion.error is not None:
            worker.end()
            return
        self.messages += 1
        data = bytes(self.port.memory.view(worker.slot_address(slot), completion.length_bytes))
        account.charge("san", "post")
        self.post_receive(worker, slot)
        if completion.immediate is None:
            message: Request | tuple[int, bool] = parse_request(data)
        else:
            message = parse_data_immediate(completion.immediate)
        worker.take(message, account)

    def post_receive(self, worker: Worker, slot: int) -> None:
        """Give a message buffer of a worker to the adapter."""
        segment = Segment(worker.handle, worker.slot_address(slot), MESSAGE_BYTES)
        self.port.post_receive(worker.vi, Receive(segment, (worker, slot)))

    async def _sleep(self, account: Account) -> None:
        """Until the adapter interrupts."""
        entry: Future[None] = Future("a message of the host")
        self._receives_done.call_at_entry(lambda: entry.set_result(None))
        await entry
        interrupt = self._interrupt_account
        self.interrupts += 1
        interrupt.charge("interrupt", "entry")
        interrupt.charge("context_switch", "wake")
        await interrupt.settle()
        account.charge("san", "wait")
        account.charge("context_switch", "switch")
        await account.settle()

    def _reap_sends(self) -> None:
        """Completions of own sends: found at the next post, and here at once."""
        while (completion := self.sends_done.take()) is not None:
            account, over = completion.tag
            account.charge("san", "poll")
            if over is not None:
                over()
        self.sends_done.call_at_entry(self._reap_sends)

    # ------------------------------------------------------------------------------------------ connections

    def keep(self, connection: HostTcpConnection, number: int) -> None:
        """A connection was closed: the host may ask whether it is at rest."""
        self.closed = {other: kept for other, kept in self.closed.items() if not kept.is_at_rest}
        self.closed[number] = connection

    async def drop(self, number: int, account: Account) -> None:
        """Abort a closed connection, if it is not forgotten."""
        closed = self.closed.pop(number, None)
        if closed is not None:
            await self.provider.abort(closed, account)

    def is_at_rest(self, number: int) -> bool:
        """Whether a closed connection is."""
        kept = self.closed.get(number)
        return kept is None or kept.is_at_rest

    async def listen(self, port: int, backlog: int) -> None:
        """Listen, and accept ahead if that is set."""
        self.listening[port] = self.provider.listen(port, backlog)
        if self.settings.eager_accept:
            self.eager[port] = EagerAccept(self.server, self.listening[port], self.settings.eager_accept,
                                           self.make_account(f"accepting ahead on port {port}"))

    async def stop_listening(self, port: int, account: Account) -> None:
        """Give a port back."""
        listening = self.listening.pop(port, None)
        if listening is None:
            return
        for worker in self.workers:
            worker.stop_accepting(port)
        if port in self.eager:
            await self.eager.pop(port).close()
        await self.provider.stop_listening(listening, account)

    async def accept(self, port: int, account: Account) -> HostTcpConnection:
        """The next connection to a port. Raises NetworkError if nobody listens there."""
        if port not in self.listening:
            raise SocketClosed(f"accept: nobody listens on port {port}")
        if port in self.eager:
            connection: HostTcpConnection = await self.eager[port].take(account)
            return connection
        return await self.provider.accept(self.listening[port], account)
