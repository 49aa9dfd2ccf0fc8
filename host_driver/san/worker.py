"""What serves one VI at a TCP server node: two threads that make socket calls of the host's messages."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from host_driver.account import Account
from host_driver.errors import BadSocket, CreditError, NetworkError, SocketClosed
from host_driver.host_tcp import HostTcpConnection
from host_driver.memnet.channels import ChannelRange
from host_driver.memnet.credits import ControlRegion, DrainingEnd, Word
from host_driver.memnet.options import Option
from host_driver.memnet.provider import Direction, Transfer
from host_driver.nic import MemoryKey
from host_driver.runtime import Cancelled, Future, Task
from host_driver.san.messages import (
    CREDIT_BYTES,
    MESSAGE_BYTES,
    WINDOW,
    Answered,
    Call,
    Control,
    Lane,
    Opened,
    Request,
    Welcome,
    answer_immediate,
    answered_with,
    format_opened,
    format_welcome,
)
from host_driver.san.port import Remote, Segment, Send
from host_driver.san.receive_ahead import ReceiveAhead

if TYPE_CHECKING:
    from host_driver.san.node import TcpServerNode

RECEIVES = WINDOW + 1
"""Receives that are posted on a VI."""

Message = Request | tuple[int, bool]
"""A request; or bytes that were written into the send ring, and whether to confirm them."""


class _Thread:
    """A thread of the worker: messages for it, and whether it sleeps."""

    def __init__(self, worker: Worker, account: Account, handle: Callable[[Message], Awaitable[None]],
                 name: str) -> None:
        self.account = account
        self.messages: deque[Message] = deque()
        self.is_over = False
        self._name = name
        self._worker = worker
        self._handle = handle
        self._asleep: Future[None] | None = None

    def wake(self, account: Account) -> None:
        """There is something to do, says whoever's account it is."""
        if self._asleep is not None:
            asleep, self._asleep = self._asleep, None
            account.charge("context_switch", "wake")
            asleep.set_result(None)

    async def run(self) -> None:
        """Carry messages out, one after the other."""
        while not self._worker.is_over:
            if not self.messages:
                asleep: Future[None] = Future(self._name)
                self._asleep = asleep
                await asleep
                self.account.charge("context_switch", "switch")
                continue
            await self._handle(self.messages.popleft())
            await self.account.settle()
        self.is_over = True
        await self._worker.leave()


class Arena(NamedTuple):
    """Memory of several VIs."""

    address: int
    key: MemoryKey | None
    """The network adapter's, if it reads send rings."""
    free: list[int]
    """Offsets of places that no VI has."""


class Worker:
    """Attributes: `vi`; `arena`, `place` in it, `address` and `handle` of its memory; `welcome`, what the host is told
    of it."""

    def __init__(self, node: TcpServerNode, vi: int, arena: Arena, place: int, handle: int, control: Control) -> None:
        settings, memory = node.settings, node.port.memory
        address = arena.address + place
        self.vi = vi
        self.arena = arena
        self.place = place
        self.address = address
        self.handle = handle
        self.is_over = False
        self._has_left = False
        self._node = node
        self._remote = Remote(control.handle, control.address)
        self._receive_at = address + settings.ring_bytes
        self._slots_at = self._receive_at + settings.receive_bytes
        self._answer_at = self._slots_at + RECEIVES * MESSAGE_BYTES
        self._control_at = self._answer_at + MESSAGE_BYTES
        self._control = ControlRegion(memory.view(self._control_at, node.settings.vi_bytes
                                                  - (self._control_at - address)))
        self._control.clear()
        self._ring = DrainingEnd(settings.ring_bytes, settings.ring_bytes, self._control, Word.QUEUED, self, Word.SENT)
        self._queued_bytes = 0
        self._unfreed: deque[list[int]] = deque()
        """[length, whether it is free] of what was taken from the ring, the oldest first."""
        self._taken = 0
        self._taken_told = 0
        self._is_wanted = False
        """The host waits for credit, and must be told of it."""
        self._connection: HostTcpConnection | None = None
        self._number = 0
        self._accepting: tuple[int, Task[HostTcpConnection]] | None = None
        self._aborting: Task[None] | None = None
        self._ahead: ReceiveAhead | None = None
        self._received_is_read: Future[None] | None = None
        """Of received bytes that the adapter still has to read."""
        self._calls = _Thread(self, node.make_account(f"worker {vi}"), self._carry_out, f"a message on VI {vi}")
        self._receives = _Thread(self, node.make_account(f"worker {vi}, receiving"), self._receive,
                                 f"a receive on VI {vi}")
        for thread in (self._calls, self._receives):
            node.port.kernel.spawn(thread.run(), f"TCP server's worker of VI {vi}")

    def __repr__(self) -> str:
        return f"<Worker of VI {self.vi}>"

    @property
    def welcome(self) -> bytes:
        """Where the send ring is."""
        return format_welcome(Welcome(self.handle, self.address, self._node.settings.ring_bytes))

    def slot_address(self, slot: int) -> int:
        """Of a message buffer."""
        return self._slots_at + slot * MESSAGE_BYTES

    # ------------------------------------------------------------------------------------------ messages

    def take(self, message: Message, account: Account) -> None:
        """A message has come; `account` is the dispatching thread's."""
        if isinstance(message, Request) and message.call is Call.WANT_CREDIT:
            self._is_wanted = True
            if message.length < self._control.read(Word.SENT) or message.address < self._taken:
                self._tell(account)
            return
        self._taken += 1
        if (self._taken - self._taken_told) * 4 >= WINDOW:
            self._tell(account)
        thread = self._calls
        if isinstance(message, Request):
            if message.call is Call.RECEIVE:
                thread = self._receives
            elif message.call is Call.ABORT and self._connection is not None and message.number == self._number:
                self._abort(self._connection)
        thread.messages.append(message)
        thread.wake(account)

    def _tell(self, account: Account) -> None:
        """Write the words of the host's control region."""
        self._taken_told = self._taken
        self._control.store(Word.TAKEN, self._taken)
        immediate = answer_immediate(Lane.CREDIT, Answered.OK) if self._is_wanted else None
        self._is_wanted = False
        self._post(account, Send(segments=(Segment(self.handle, self._control_at, CREDIT_BYTES),), remote=self._remote,
                                 immediate=immediate, tag=(account, None)))

    def write(self, word: Word, value: int) -> None:
        """Implements `credits.RemoteWords`: bytes of the ring are free again."""
        self._control.store(word, value)
        self._tell(self._calls.account)

    def _post(self, account: Account, send: Send) -> None:
        if not self.is_over:
            account.charge("san", "post")
            self._node.port.post_send(self.vi, send)

    def _answer(self, lane: Lane, answered: Answered, value: int = 0) -> None:
        account = (self._calls if lane is Lane.CALLS else self._receives).account
        self._post(account, Send(immediate=answer_immediate(lane, answered, value), tag=(account, None)))

    # ------------------------------------------------------------------------------------------ calls

    async def _carry_out(self, message: Message) -> None:
        if not isinstance(message, Request):
            await self._send(*message)
            return
        try:
            value = await self._call(message)
        except NetworkError as error:
            self._answer(Lane.CALLS, answered_with(error))
            return
        if isinstance(value, int):
            self._answer(Lane.CALLS, Answered.OK, value)
            return
        data, account = format_opened(value), self._calls.account
        self._node.port.memory.view(self._answer_at, len(data))[:] = data
        self._post(account, Send(segments=(Segment(self.handle, self._answer_at, len(data)),),
                                 immediate=answer_immediate(Lane.CALLS, Answered.OK), tag=(account, None)))

    async def _call(self, request: Request) -> int | Opened:
        node, account, call = self._node, self._calls.account, request.call
        if call is Call.LISTEN:
            await node.listen(request.number, request.length)
        elif call is Call.STOP_LISTENING:
            await node.stop_listening(request.number, account)
        elif call is Call.ACCEPT:
            return self._open(await self._accept(request.number))
        elif call is Call.CONNECT:
            more = request.more
            return self._open(await node.provider.connect(more["ip"], request.number, more["local_port"],
                                                          _options(more["options"]), account))
        elif call is Call.REST:
            return int(node.is_at_rest(request.number))
        elif call is Call.DROP:
            await node.drop(request.number, account)
        else:
            await self._call_connection(request, account)
        return 0

    async def _call_connection(self, request: Request, account: Account) -> None:
        provider, connection, call = self._node.provider, self._connection, request.call
        if call is Call.ABORT:
            if self._aborting is not None:
                await self._aborting
                self._aborting = None
            self._end_connection()
            # It may have been closed in the meantime.
            await self._node.drop(request.number, account)
            return
        if connection is None:
            raise SocketClosed(f"{call.name}: the connection has ended")
        if call is Call.SHUTDOWN:
            await provider.shutdown(connection, Direction(request.number), account)
        elif call is Call.SET_OPTIONS:
            provider.set_options(connection, _options(request.more["options"]), account)
        elif call is Call.CLOSE:
            self._end_connection()
            await provider.close(connection, account)
            self._node.keep(connection, self._number)
        else:
            raise BadSocket(f"{call.name} means nothing here")

    async def _accept(self, port: int) -> HostTcpConnection:
        """A call that `stop_accepting` ends."""
        task = self._node.port.kernel.spawn(self._node.accept(port, self._calls.account), f"accept on port {port}")
        self._accepting = (port, task)
        ended: Future[None] = Future(task.name)
        task.add_callback(lambda _task: ended.set_result(None))
        await ended
        self._accepting = None
        try:
            return task.result()
        except Cancelled:
            raise SocketClosed(f"accept: nobody listens on port {port} any more") from None

    def stop_accepting(self, port: int | None) -> None:
        """End an accept under way on this port, None: on any."""
        if self._accepting is not None and port in (None, self._accepting[0]):
            self._accepting[1].cancel()

    def _open(self, connection: HostTcpConnection) -> Opened:
        node = self._node
        node.connections += 1
        self._connection, self._number = connection, node.connections
        if self.is_over:
            self._abort(connection)
        elif node.settings.eager_receive_bytes:
            self._ahead = ReceiveAhead(node, connection, self._receive_range, node.settings.eager_receive_bytes,
                                       self._node.make_account(f"receiving ahead on VI {self.vi}"))
        return Opened(self._number, *node.provider.addresses(connection))

    def _end_connection(self) -> None:
        self._connection = None
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _abort(self, connection: HostTcpConnection) -> None:
        """Ends whatever the threads wait for."""
        self._aborting = self._node.port.kernel.spawn(self._node.provider.abort(connection, self._calls.account),
                                                      f"the end of {connection!r}")

    # ------------------------------------------------------------------------------------------ sends

    async def _send(self, length: int, is_confirmed: bool) -> None:
        """Hand bytes of the ring to TCP."""
        self._queued_bytes += length
        self._control.store(Word.QUEUED, self._queued_bytes)
        pieces, left = [], length
        try:
            while left:
                offset, piece = self._ring.next(left)
                if not piece:
                    raise CreditError(f"{left} bytes were told of that are not in the send ring")
                pieces.append(self._range(offset, piece))
                self._ring.take(piece)
                left -= piece
        except CreditError:
            self._node.server.counters.credit_errors += 1
            self.end()
            return
        entry = [length, False]
        self._unfreed.append(entry)

        def done(_moved_bytes: int, _error: NetworkError | None) -> None:
            entry[1] = True
            while self._unfreed and self._unfreed[0][1]:
                self._ring.give_back(self._unfreed.popleft()[0])
            if self.is_over:
                self._node.port.kernel.spawn(self.leave(), f"the end of {self!r}")

        transfer, answered = Transfer(pieces, done), Answered.OK
        try:
            if self._connection is None:
                raise SocketClosed("send: the connection has ended")
            await self._node.provider.send(self._connection, transfer, self._calls.account)
        except NetworkError as error:
            answered = answered_with(error)
            if not transfer.is_taken:
                done(0, error)
        if is_confirmed:
            self._answer(Lane.CALLS, answered, length)
        elif answered is not Answered.OK:
            self._post(self._calls.account, Send(immediate=answer_immediate(Lane.CREDIT, answered),
                                                 tag=(self._calls.account, None)))

    def _range(self, offset: int, length: int) -> ChannelRange:
        view = self._node.port.memory.view(self.address + offset, length)
        key = self.arena.key
        return ChannelRange(0 if key is None else key.value, self.place + offset, view)

    # ------------------------------------------------------------------------------------------ receives

    def _receive_range(self, offset: int, length: int) -> ChannelRange:
        """Bytes of the receive buffer, as a provider is given them."""
        return self._range(self._node.settings.ring_bytes + offset, length)

    async def _receive(self, message: Message) -> None:
        assert isinstance(message, Request)
        connection = self._connection
        try:
            if connection is None:
                raise SocketClosed("receive: the connection has ended")
            if self._ahead is not None:
                await self._receive_from_ahead(self._ahead, message)
            else:
                await self._receive_now(connection, message)
        except NetworkError as error:
            self._answer(Lane.RECEIVES, answered_with(error))

    async def _receive_now(self, connection: HostTcpConnection, request: Request) -> None:
        if self._received_is_read is not None:
            await self._received_is_read
        node, account = self._node, self._receives.account
        over: Future[int] = Future(f"bytes for VI {self.vi}")
        is_asleep = False

        def done(moved_bytes: int, error: NetworkError | None) -> None:
            if is_asleep:
                node.provider.charge_waking()
            if error is None:
                over.set_result(moved_bytes)
            else:
                over.set_exception(error)

        length = min(request.length, node.settings.receive_bytes)
        await node.provider.receive(connection, Transfer([self._receive_range(0, length)], done), account)
        if not over.done:
            is_asleep = True
            await _ended(over)
            account.charge("context_switch", "switch")
        self._check_open(connection)
        read: Future[None] = Future(f"the adapter's reading of what VI {self.vi} received")
        self._received_is_read = read
        self._write(request, 0, over.result(), lambda: read.set_result(None))

    async def _receive_from_ahead(self, ahead: ReceiveAhead, request: Request) -> None:
        connection, account = ahead.connection, self._receives.account
        await ahead.wait(account)
        self._check_open(connection)
        offset, length = ahead.take(request.length)
        self._write(request, offset, length, lambda: ahead.give_back(length))

    def _check_open(self, connection: HostTcpConnection) -> None:
        if self._connection is not connection:
            raise SocketClosed("receive: the connection was closed")

    def _write(self, request: Request, offset: int, length: int, over: Callable[[], None]) -> None:
        """Write received bytes straight into the application's memory, and say how many."""
        account = self._receives.account
        segments = (Segment(self.handle, self._receive_at + offset, length),) if length else ()
        self._post(account, Send(segments=segments, remote=Remote(request.handle, request.address) if length else None,
                                 immediate=answer_immediate(Lane.RECEIVES, Answered.OK, length), tag=(account, over)))

    # ------------------------------------------------------------------------------------------ the end

    def end(self) -> None:
        """The VI is broken: the host has gone."""
        if self.is_over:
            return
        self.is_over = True
        self.stop_accepting(None)
        connection = self._connection
        self._end_connection()
        if connection is not None:
            self._abort(connection)
        for thread in (self._calls, self._receives):
            thread.wake(thread.account)

    async def leave(self) -> None:
        """Give the memory back when nothing uses it."""
        if self._calls.is_over and self._receives.is_over and not self._unfreed and not self._has_left:
            self._has_left = True
            await self._node.forget(self)


async def _ended(future: Future[Any]) -> None:
    """Wait for it, whatever comes of it."""
    ended: Future[None] = Future(future.name)
    future.add_callback(lambda _future: ended.set_result(None))
    await ended


def _options(plain: dict[str, Any]) -> dict[Option, Any]:
    return {Option(name): value for name, value in plain.items()}
