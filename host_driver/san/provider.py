"""MemNet over a system area network: the host's end. TCP runs on one or more other nodes (`host_driver.san.node`).

Each socket has a VI to itself, of a pool that is made when channels are asked for; the nodes accept or reject its VIs
by their load. An asynchronous send is one descriptor: an RDMA write of the application's registered memory into the
socket's send ring at the node. It is over when the node has the bytes; one that is to be confirmed, when TCP there has.

Everything runs in the application's processes. A completion that a process sleeps for raises an interrupt, which wakes
it; the kernel agent's part of the wait (`san.wait`) is the process's. The library finds others when it looks
(`san.poll`): here they have their effect at once, and whoever posted what is over is charged the look.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from host_driver.account import Account
from host_driver.errors import (
    AddressInUse,
    AddressNotAvailable,
    ChannelRefused,
    NetworkError,
    PeerReset,
    SocketClosed,
)
from host_driver.memnet.options import Option
from host_driver.memnet.provider import Direction, Transfer
from host_driver.port import HostMemory
from host_driver.runtime import Cancelled, Event, Future, Kernel
from host_driver.san.messages import (
    MAX_LENGTH_BYTES,
    Answer,
    Answered,
    Call,
    Control,
    Lane,
    Opened,
    Request,
    error_of,
    format_control,
    parse_opened,
    parse_welcome,
)
from host_driver.san.port import SanPort, Segment
from host_driver.san.socket_vi import VI_BYTES, Block, Pending, SocketVi
from host_driver.tcp.stack import FIRST_EPHEMERAL_PORT, LAST_EPHEMERAL_PORT
from host_driver.waiting import WaitQueue

PAGE_BYTES = 4096
PS_PER_MS = 10**9
LONGEST_REST_LOOK_PS = 100 * PS_PER_MS


class TcpNode(NamedTuple):
    """A TCP server node, as the host knows it."""

    number: int
    """Of its adapter in the network."""
    ip: str


class SanKey(NamedTuple):
    """Memory that the host's adapter knows."""

    value: int
    """The handle."""
    address: int


class SanConnection:
    """A connection that a node has for the host."""

    def __init__(self, vi: SocketVi, opened: Opened) -> None:
        self.vi: SocketVi | None = vi
        """None: it was closed or aborted, and the node has answered."""
        self.node = vi.node
        self.opened = opened
        self.is_closed = False
        self.receive_ended = False

    def __repr__(self) -> str:
        (local_ip, local_port), (remote_ip, remote_port) = self.opened.local, self.opened.remote
        return f"<SanConnection {local_ip}:{local_port} to {remote_ip}:{remote_port}>"


class SanListening:
    """A port that the nodes listen on."""

    def __init__(self, san: SanTcp, port: int) -> None:
        self.port = port
        self.opened = Event(f"the nodes' answers to listening on port {port}")
        self.error: NetworkError | None = None
        self.is_closed = False
        self.ready: deque[SanConnection] = deque()
        self.asked = dict.fromkeys(range(len(san.nodes)), 0)
        """Accepts under way at each node."""
        self.wanted = 0
        """Processes that want a connection and have none yet."""
        self.waiting = WaitQueue(san.charge_waking, f"a connection to port {port}")


class SanTcp:
    """Implements `memnet.Provider`. `open` makes it.

    Attributes: `nodes`; `account`, which the library's own calls are charged to; `credit_errors`; `interrupts`.
    """

    def __init__(self, port: SanPort, nodes: Sequence[TcpNode], account: Account, interrupt_account: Account) -> None:
        self.port = port
        self.memory: HostMemory = port.memory
        self.kernel: Kernel = port.kernel
        self.nodes = list(nodes)
        self.account = account
        self.credit_errors = 0
        self.interrupts = 0
        self.sends_done = port.create_queue("the host's sends")
        self.receives_done = port.create_queue("the host's receives")
        self._interrupt_account = interrupt_account
        self._runs = interrupt_account
        """Whoever runs the library at this moment."""
        self._due: list[tuple[Pending, Answer]] = []
        """Answers that processes sleep for, since the last interrupt."""
        self._control: list[SocketVi] = []
        self._free: list[deque[SocketVi]] = [deque() for _ in nodes]
        self._vis: list[list[SocketVi]] = [[] for _ in nodes]
        self._by_number: dict[int, SocketVi] = {}
        self._surplus = [0 for _ in nodes]
        """VIs that are to be destroyed when they are free."""
        self._room = WaitQueue(self.charge_waking, "a free VI")
        self._bases: dict[int, int] = {}
        self._listening: dict[int, SanListening] = {}
        self._local_ports: dict[int, int] = {}
        """Connections of each own port."""
        self._turn = 0
        self._look_for_sends()
        self._look_for_answers()

    @classmethod
    async def open(cls, port: SanPort, nodes: Sequence[TcpNode], account: Account,
                   interrupt_account: Account) -> SanTcp:
        """Connect to the nodes. Raises ChannelRefused if one does not answer."""
        san = cls(port, nodes, account, interrupt_account)
        for number in range(len(nodes)):
            control = await san._open_vis(number, 1, account)
            if not control:
                raise ChannelRefused(f"TCP server node {nodes[number].number} accepts no connection")
            san._control += control
        return san

    # ------------------------------------------------------------------------------------------ channels

    async def open_channels(self, wanted: int, account: Account) -> int:
        """Ask each node for so many VIs; for how many channels there are some."""
        opened = [0 for _ in self.nodes]
        try:
            for number in range(len(self.nodes)):
                vis = await self._open_vis(number, wanted, account)
                opened[number] = len(vis)
                self._vis[number] += vis
                self._free[number] += vis
                self._room.wake()
        except (Exception, Cancelled):
            for number, count in enumerate(opened):
                self._surplus[number] += count
                self._trim(number)
            raise
        return min(sum(opened), wanted)

    async def _open_vis(self, node: int, wanted: int, account: Account) -> list[SocketVi]:
        """Create VIs and have the node accept them; those that it did."""
        address = self.memory.allocate(wanted * VI_BYTES, PAGE_BYTES)
        account.charge("san", "register_memory")
        block = Block(address, self.port.register(address, wanted * VI_BYTES), wanted)
        accepted: list[SocketVi] = []
        made: list[SocketVi] = []
        try:
            for number in range(wanted):
                at = address + number * VI_BYTES
                vi = SocketVi(self, node, at, block)
                made.append(vi)
                self._by_number[vi.number] = vi
                account.charge("san", "create_vi")
                vi.post_answers()
                await account.settle()
                control = format_control(Control(block.handle, at))
                data = await self.port.connect(vi.number, self.nodes[node].number, control)
                if data is not None:
                    vi.connected(parse_welcome(data))
                    accepted.append(vi)
        except (Exception, Cancelled):
            block.left -= wanted - len(made)
            for vi in made:
                self._destroy(vi)
            raise
        for vi in made:
            if vi not in accepted:
                self._destroy(vi)
        return accepted

    async def close_channels(self, count: int, account: Account) -> None:
        """Give so many VIs of each node back, as soon as nothing is under way on them."""
        await account.settle()
        for node, vis in enumerate(self._vis):
            self._surplus[node] += min(count, len(vis) - self._surplus[node])
            self._trim(node)

    def _trim(self, node: int) -> None:
        """Destroy free VIs that are too many."""
        while self._surplus[node] and self._free[node]:
            vi = self._free[node].pop()
            self._vis[node].remove(vi)
            self._surplus[node] -= 1
            self._destroy(vi)

    def _destroy(self, vi: SocketVi) -> None:
        del self._by_number[vi.number]
        self.port.destroy_vi(vi.number)
        vi.block.left -= 1
        if not vi.block.left:
            self.port.deregister(vi.block.handle)
            self.memory.free(vi.block.address)

    def vi_broke(self, vi: SocketVi) -> None:
        """It cannot be used any more; it is destroyed when all that was posted on it is back."""
        self.port.disconnect(vi.number)
        for vis in (self._free[vi.node], self._vis[vi.node]):
            if vi in vis:
                vis.remove(vi)
        self._room.wake()
        self.kernel.call_soon(lambda: self._destroy_if_over(vi))

    def _destroy_if_over(self, vi: SocketVi) -> None:
        if vi.error is not None and not vi.sends_under_way and vi.number in self._by_number:
            self._destroy(vi)

    async def _take_vi(self, account: Account) -> SocketVi:
        """A free VI, of the nodes in turn. Raises ChannelRefused if all nodes have gone."""
        await self._room.sleep(lambda: any(self._free) or self._is_cut_off, account)
        if not any(self._free):
            raise ChannelRefused("the TCP server has gone")
        for step in range(len(self.nodes)):
            free = self._free[(self._turn + step) % len(self.nodes)]
            if free:
                self._turn = (self._turn + step + 1) % len(self.nodes)
                return free.popleft()
        raise AssertionError("a free VI has gone")

    @property
    def _is_cut_off(self) -> bool:
        return all(vi.error is not None for vi in self._control)

    def _release(self, connection: SanConnection | None, vi: SocketVi) -> None:
        """The socket does not need its VI any more; it is free when nothing is under way on it."""
        if vi.owner is not connection:
            return
        if connection is not None and connection.vi is not None:
            connection.vi = None
            self._count_port(connection.opened.local[1], -1)
        if not vi.is_quiet:
            return
        vi.owner = None
        if vi.error is None:
            self._free[vi.node].append(vi)
            self._trim(vi.node)
            self._room.wake(only_one=True)

    # ------------------------------------------------------------------------------------------ memory

    async def register(self, address: int, length_bytes: int, account: Account) -> SanKey:
        """Let the host's adapter use memory."""
        account.charge("san", "register_memory")
        handle = self.port.register(address, length_bytes)
        self._bases[handle] = address
        try:
            await account.settle()
        except Cancelled:
            self._deregister(handle)
            raise
        return SanKey(handle, address)

    async def deregister(self, key: SanKey, account: Account) -> None:
        """Take it back: no descriptor that names it is under way."""
        account.charge("san", "register_memory")
        await account.settle()
        self._deregister(key.value)

    def _deregister(self, handle: int) -> None:
        del self._bases[handle]
        self.port.deregister(handle)

    def segments(self, transfer: Transfer, offset: int, length: int) -> Iterator[Segment]:
        """So many bytes of a transfer, from an offset on, where they lie."""
        for part in transfer.parts:
            if offset < part.length_bytes and length:
                count = min(part.length_bytes - offset, length)
                yield Segment(part.key, self._bases[part.key] + part.offset + offset, count)
                length -= count
            offset = max(0, offset - part.length_bytes)

    # ------------------------------------------------------------------------------------------ being told

    def charge_waking(self) -> None:
        """The waking of a process is work of whoever runs the library."""
        self._runs.charge("context_switch", "wake")

    def charge_sleep(self, account: Account) -> None:
        """The kernel agent's part of a wait for a completion, and the switch back."""
        account.charge("san", "wait")
        account.charge("context_switch", "switch")

    def _look_for_sends(self) -> None:
        while (completion := self.sends_done.take()) is not None:
            pending: Pending | None = completion.tag
            vi = self._by_number.get(completion.vi)
            if vi is not None:
                vi.sends_under_way -= 1
                self._destroy_if_over(vi)
            if pending is not None:
                answered = Answered.OK if completion.error is None else Answered.RESET
                self.deliver(pending, Answer(Lane.CALLS, answered, 0))
        self.sends_done.call_at_entry(self._look_for_sends)

    def _look_for_answers(self) -> None:
        while (completion := self.receives_done.take()) is not None:
            vi, slot = completion.tag
            found = vi.take(slot, completion)
            if found is not None:
                self.deliver(*found)
        self.receives_done.call_at_entry(self._look_for_answers)

    def deliver(self, pending: Pending, answer: Answer) -> None:
        """Something is over: interrupt whoever sleeps for it, or leave it to his next look."""
        if not pending.is_waited():
            pending.account.charge("san", "poll")
            self._runs = pending.account
            pending.finish(answer)
            self._runs = self._interrupt_account
            return
        self._due.append((pending, answer))
        if len(self._due) == 1:
            self.kernel.spawn(self._interrupt(), "interrupt of the host's SAN adapter")

    async def _interrupt(self) -> None:
        account = self._interrupt_account
        self.interrupts += 1
        account.charge("interrupt", "entry")
        await account.settle()
        due, self._due = self._due, []
        for pending, answer in due:
            pending.finish(answer)
        await account.settle()

    async def _call(self, vi: SocketVi, request: Request, account: Account,
                    then: Callable[[Answer], None] = lambda _answer: None) -> Answer:
        """Ask the node, and sleep until it has answered; `then` is called with the answer even if the process is killed
        meanwhile."""
        answered: Future[Answer] = Future(f"the TCP server's answer to {request.call.name}")

        def finish(answer: Answer) -> None:
            then(answer)
            self.charge_waking()
            answered.set_result(answer)

        await vi.request(request, Pending(account, lambda: True, finish))
        answer = await answered
        self.charge_sleep(account)
        await account.settle()
        return answer

    # ------------------------------------------------------------------------------------------ connections

    @property
    def own_address(self) -> str:
        """The first node's."""
        return self.nodes[0].ip

    def find_port(self, ip: str | None, port: int, *, reuse: bool) -> int:
        """The port, or one that is free. Raises AddressNotAvailable or AddressInUse.

        Only what goes through this provider counts: what the nodes still have in TIME-WAIT they refuse themselves.
        """
        if ip is not None and ip not in ("0.0.0.0", "::", *(node.ip for node in self.nodes)):
            raise AddressNotAvailable(f"{ip} is not an address of this host; it has {self.own_address}")
        if not 0 <= port < 1 << 16:
            raise AddressNotAvailable(f"a port is 0 to 65535, not {port}")
        if not port:
            free = next((p for p in range(FIRST_EPHEMERAL_PORT, LAST_EPHEMERAL_PORT + 1)
                         if p not in self._local_ports and p not in self._listening), None)
            if free is None:
                raise AddressInUse("no port is free")
            return free
        if port in self._listening:
            raise AddressInUse(f"port {port} is listened on")
        if port in self._local_ports and not reuse:
            raise AddressInUse(f"port {port} is in use by {self._local_ports[port]} connections")
        return port

    def _count_port(self, port: int, change: int) -> None:
        self._local_ports[port] = self._local_ports.get(port, 0) + change
        if not self._local_ports[port]:
            del self._local_ports[port]

    def listen(self, port: int, backlog: int) -> SanListening:
        """Let every node listen on a port. Raises AddressInUse if that is so already."""
        if port in self._listening:
            raise AddressInUse(f"port {port} is listened on")
        listening = self._listening[port] = SanListening(self, port)
        self.kernel.spawn(self._start_listening(listening, backlog), f"listening on port {port}")
        return listening

    async def _start_listening(self, listening: SanListening, backlog: int) -> None:
        for vi in self._control:
            answer = await self._call(vi, Request(Call.LISTEN, listening.port, backlog), self.account)
            if answer.answered is not Answered.OK:
                listening.error = error_of(answer.answered, f"listen on port {listening.port}")
        listening.opened.set()
        listening.waiting.wake()

    async def accept(self, listening: SanListening, account: Account) -> SanConnection:
        """The next connection to any of the nodes. Raises SocketClosed if listening ends."""
        await listening.opened.wait()
        if listening.error is not None:
            raise listening.error
        if not listening.ready and not listening.is_closed:
            listening.wanted += 1
            try:
                await self._ask(listening, account)
                if not listening.ready:
                    account.charge("san", "wait")
                await listening.waiting.sleep(lambda: bool(listening.ready) or listening.is_closed, account)
            finally:
                listening.wanted -= 1
        if not listening.ready:
            raise SocketClosed(f"accept on port {listening.port}: nobody listens any more")
        return listening.ready.popleft()

    async def _ask(self, listening: SanListening, account: Account) -> None:
        """Have an accept under way at each node for each process that waits for one, as far as there are VIs."""
        if not any(listening.asked.values()) and not any(self._free):
            vi = await self._take_vi(account)
            await self._ask_on(vi, listening, account)
        for node, free in enumerate(self._free):
            while listening.asked[node] < listening.wanted and free:
                await self._ask_on(free.popleft(), listening, account)

    async def _ask_on(self, vi: SocketVi, listening: SanListening, account: Account) -> None:
        listening.asked[vi.node] += 1

        def finish(answer: Answer) -> None:
            listening.asked[vi.node] -= 1
            if answer.answered is not Answered.OK:
                self._release(None, vi)
                if not listening.is_closed and vi.error is None:
                    listening.error = error_of(answer.answered, f"accept on port {listening.port}")
                return
            connection = self._opened(vi, answer)
            if listening.is_closed:
                self._drop(connection)
                return
            listening.ready.append(connection)
            listening.waiting.wake(only_one=True)

        await vi.request(Request(Call.ACCEPT, listening.port),
                         Pending(account, lambda: len(listening.waiting) > 0, finish))

    def _opened(self, vi: SocketVi, answer: Answer) -> SanConnection:
        vi.failed = None
        connection = vi.owner = SanConnection(vi, parse_opened(answer.message))
        self._count_port(connection.opened.local[1], 1)
        return connection

    async def stop_listening(self, listening: SanListening, account: Account) -> None:
        """Give a port back; connections that nobody accepted are aborted."""
        listening.is_closed = True
        await listening.opened.wait()
        self._listening.pop(listening.port, None)
        for vi in self._control:
            await self._call(vi, Request(Call.STOP_LISTENING, listening.port), account)
        while listening.ready:
            await self.abort(listening.ready.popleft(), account)
        listening.waiting.wake()

    async def connect(self, ip: IPv4Address | IPv6Address | str, port: int, local_port: int | None,
                      options: dict[Option, Any], account: Account) -> SanConnection:
        """An established connection of one of the nodes. Raises NetworkError."""
        vi = await self._take_vi(account)
        more = {"ip": str(ip), "local_port": local_port, "options": _plain(options)}
        connection: SanConnection | None = None
        is_killed = False

        def opened(answer: Answer) -> None:
            nonlocal connection
            if answer.answered is not Answered.OK:
                self._release(None, vi)
                return
            connection = self._opened(vi, answer)
            if is_killed:
                self._drop(connection)

        try:
            answer = await self._call(vi, Request(Call.CONNECT, port, more=more), account, opened)
        except Cancelled:
            is_killed = True
            if connection is not None:
                self._drop(connection)
            raise
        if connection is None:
            raise error_of(answer.answered, f"connect to {ip}:{port}")
        return connection

    def _drop(self, connection: SanConnection) -> None:
        """Abort a connection that nobody has."""
        self.kernel.spawn(self.abort(connection, self.account), f"the end of {connection!r}")

    def addresses(self, connection: SanConnection) -> tuple[tuple[str, int], tuple[str, int]]:
        """Own and peer's address and port."""
        return connection.opened.local, connection.opened.remote

    def set_options(self, connection: SanConnection, options: dict[Option, Any], account: Account) -> None:
        """Let a connection have these options."""
        vi = connection.vi
        if vi is not None:
            request = Request(Call.SET_OPTIONS, more={"options": _plain(options)})
            pending = Pending(account, lambda: False, lambda _answer: self._end_if_over(connection, vi))
            self.kernel.spawn(vi.request(request, pending), f"options of {connection!r}")

    # ------------------------------------------------------------------------------------------ data

    async def send(self, connection: SanConnection, transfer: Transfer, account: Account) -> None:
        """Post an RDMA write of the bytes where they lie, as far as there is credit."""
        vi = self._usable(connection, "send")
        transfer.is_taken = True

        def finish(answer: Answer) -> None:
            if answer.answered is Answered.OK:
                transfer.done(transfer.length_bytes, None)
            else:
                transfer.done(0, error_of(answer.answered, f"send on {connection!r}"))
            self._end_if_over(connection, vi)

        await vi.send(transfer, Pending(account, transfer.is_waited, finish))

    async def receive(self, connection: SanConnection, transfer: Transfer, account: Account) -> None:
        """Ask for bytes, which the node writes into the first range that has room for any."""
        vi = self._usable(connection, "receive")
        transfer.is_taken = True
        if connection.receive_ended:
            transfer.done(0, None)
            return
        part = next(part for part in transfer.parts if part.length_bytes)

        def finish(answer: Answer) -> None:
            if answer.answered is Answered.OK:
                transfer.done(answer.value, None)
            else:
                transfer.done(0, error_of(answer.answered, f"receive on {connection!r}"))
            self._end_if_over(connection, vi)

        request = Request(Call.RECEIVE, length=min(part.length_bytes, MAX_LENGTH_BYTES),
                          address=self._bases[part.key] + part.offset, handle=part.key)
        await vi.request(request, Pending(account, transfer.is_waited, finish))

    def _usable(self, connection: SanConnection, doing: str) -> SocketVi:
        vi = connection.vi
        if connection.is_closed or vi is None:
            raise SocketClosed(f"{doing} on {connection!r}: the connection is closed")
        if vi.failed is not None:
            raise error_of(vi.failed, f"{doing} on {connection!r}")
        if vi.error is not None:
            raise PeerReset(f"{doing} on {connection!r}: the TCP server has gone ({vi.error})")
        return vi

    # ------------------------------------------------------------------------------------------ ends

    async def shutdown(self, connection: SanConnection, direction: Direction, account: Account) -> None:
        """A FIN behind all sends; or no more receives."""
        vi = connection.vi
        if vi is None:
            return
        if Direction.RECEIVE in direction:
            connection.receive_ended = True
        await self._call(vi, Request(Call.SHUTDOWN, direction.value), account,
                         lambda _answer: self._end_if_over(connection, vi))

    async def close(self, connection: SanConnection, account: Account) -> None:
        """A tunnelled call, as all are; but it waits for no sends that wait for credit."""
        vi = connection.vi
        if connection.is_closed or vi is None:
            return
        connection.is_closed = True

        def over(_answer: Answer) -> None:
            self._end_if_over(connection, vi, is_end=True)

        if vi.is_stalled:
            await vi.request(Request(Call.CLOSE), Pending(account, lambda: False, over))
        else:
            await self._call(vi, Request(Call.CLOSE), account, over)

    async def abort(self, connection: SanConnection, account: Account) -> None:
        """A reset; all transfers fail."""
        connection.is_closed = True
        vi = connection.vi
        if vi is None:
            await self._call(self._control[connection.node], Request(Call.DROP, connection.opened.number), account)
            return
        vi.drop_sends(SocketClosed(f"send on {connection!r}: the connection was aborted"))
        await self._call(vi, Request(Call.ABORT, connection.opened.number), account,
                         lambda _answer: self._end_if_over(connection, vi, is_end=True))

    def _end_if_over(self, connection: SanConnection, vi: SocketVi, *, is_end: bool = False) -> None:
        """Let the VI go when the node has answered the connection's end, and all else."""
        if is_end or connection.vi is None:
            self._release(connection, vi)

    async def wait_for_rest(self, connection: SanConnection, timeout_ps: int | None, account: Account) -> bool:
        """Ask the node, less and less often, until the connection is at rest or gone; False if that is not in time."""
        kernel, wait_ps = self.kernel, PS_PER_MS
        deadline_ps = None if timeout_ps is None else kernel.now + timeout_ps
        while True:
            if connection.vi is None:
                request = Request(Call.REST, connection.opened.number)
                answer = await self._call(self._control[connection.node], request, account)
                if answer.answered is not Answered.OK or answer.value:
                    return True
            if deadline_ps is not None and kernel.now >= deadline_ps:
                return False
            await kernel.sleep_until(kernel.now + wait_ps if deadline_ps is None
                                     else min(kernel.now + wait_ps, deadline_ps))
            wait_ps = min(2 * wait_ps, LONGEST_REST_LOOK_PS)


def _plain(options: dict[Option, Any]) -> dict[str, Any]:
    return {option.value: value for option, value in options.items()}
