"""Sockets whose application is on the other side of a ring: operations in, completions out."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from host_driver.firmware.flows import Flow
from host_driver.firmware.jobs import Completer, Job, status_of, status_of_failure
from host_driver.firmware.offload_stack import OffloadStack
from host_driver.firmware.orders import Orders
from host_driver.firmware.placing import NO_RING, PlacingBuffer, PostedReceive, Received, Ring
from host_driver.firmware.references import MemoryChunk
from host_driver.firmware.shards import shard_of_key
from host_driver.tcp.connection import Connection
from host_driver.tcp.listener import Listener
from host_driver.tcp.profile import MS, Nagle
from host_driver.tcp.states import State
from nic_model.contract import Opcode
from nic_model.contract.control import ControlType, DoneStatus, OrderFlag
from nic_model.contract.sockets import EAGER_RESULT, SOCKET_PARAMETERS, SocketFlag, SocketOption, SocketStatus

MAX_SOCKETS = 1 << 16
_MAX_BACKLOG = 4096


@dataclass(slots=True)
class _Send:
    """Bytes of a job on their way: positions in the stream."""

    job: Job
    start: int
    end: int
    length: int
    is_last: bool
    is_acknowledged: bool = False
    is_lost: bool = False


@dataclass(slots=True, eq=False)
class _Socket:
    """A connection with its jobs."""

    number: int
    connection: Connection
    ring: Ring
    listening: _Listening | None = None
    connecting: Job | None = None
    sends: deque[_Send] = field(default_factory=deque)
    sent_of_job: int = 0
    """Bytes of the parts of a send that is not over."""
    ending: list[Job] = field(default_factory=list)
    """Jobs that are over when the peer has our FIN."""
    closing: Job | None = None
    is_releasing: bool = False
    status: SocketStatus | None = None
    """Why the connection ended, if TCP does not know."""

    @property
    def buffer(self) -> PlacingBuffer:
        buffer = self.connection.receiver.buffer
        assert isinstance(buffer, PlacingBuffer)
        return buffer


@dataclass(slots=True, eq=False)
class _Listening:
    """A listening socket, with the eager rings of connections to its port."""

    number: int
    listener: Listener
    ring_bytes: int
    free_rings: deque[Ring]
    entries: list[int]
    """Of the device's listener table."""
    accepts: deque[Job] = field(default_factory=deque)


class SocketNumbers:
    """Numbers from 1 on; those of each of `shards` processors leave its remainder."""

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._free: list[list[int]] = [[] for _ in range(shards)]
        self._next = [shard or shards for shard in range(shards)]

    def take(self, shard: int) -> int | None:
        """The lowest free number for a processor, or None."""
        shard %= self._shards
        if self._free[shard]:
            return heapq.heappop(self._free[shard])
        number = self._next[shard]
        if number >= MAX_SOCKETS:
            return None
        self._next[shard] += self._shards
        return number

    def give_back(self, number: int) -> None:
        """A number is free again."""
        heapq.heappush(self._free[number % self._shards], number)


class OffloadSockets:
    """All sockets of a firmware. `operate` takes an OP; `pump` is to be called behind each message."""

    def __init__(self, stack: OffloadStack, orders: Orders, completer: Completer, listeners: int, shards: int) -> None:
        self._stack = stack
        self._orders = orders
        self._completer = completer
        self._shards = shards
        self._numbers = SocketNumbers(shards)
        self._sockets: dict[int, _Socket] = {}
        self._by_connection: dict[Connection, _Socket] = {}
        self._listening: dict[int, _Listening] = {}
        self._by_port: dict[int, _Listening] = {}
        self._rings: dict[Connection, tuple[_Listening, Ring]] = {}
        self._free_listeners = list(range(listeners))
        self._to_pump: dict[_Socket, None] = {}
        self._failures: list[tuple[Connection, SocketStatus]] = []
        self._operations = {
            Opcode.SOCKET_CONNECT: self._connect, Opcode.SOCKET_LISTEN: self._listen,
            Opcode.SOCKET_ACCEPT: self._accept, Opcode.SOCKET_SEND: self._send, Opcode.SOCKET_RECEIVE: self._receive,
            Opcode.SOCKET_SHUTDOWN: self._shutdown, Opcode.SOCKET_CLOSE: self._close,
            Opcode.SOCKET_OPTION: self._set_option}
        stack.owner = self

    @property
    def open_sockets(self) -> int:
        """Sockets that the application has, listening ones too."""
        return len(self._sockets) + len(self._listening)

    @property
    def left_over(self) -> dict[str, int]:
        """Sockets of connections, and eager rings that one has."""
        return {"sockets": len(self._sockets), "rings": len(self._rings)}

    # What the stack asks (`offload_stack.Owner`) ---------------------------------------------------------------------

    def has_ring(self, port: int) -> bool:
        """Whether there is one for a further connection to a port."""
        listening = self._by_port.get(port)
        return listening is not None and bool(listening.free_rings)

    def ring_bytes(self, port: int) -> int:
        """Size of the rings of a port."""
        listening = self._by_port.get(port)
        return 0 if listening is None else listening.ring_bytes

    def take_ring(self, connection: Connection) -> Ring:
        """The ring of a connection that a peer opened."""
        listening = self._by_port[connection.local.port]
        ring = listening.free_rings.popleft()
        self._rings[connection] = (listening, ring)
        return ring

    def failed(self, connection: Connection, status: DoneStatus) -> None:
        """The device refused an order of a connection: it is aborted, when the message under way is done with."""
        self._failures.append((connection, status_of_failure(status)))

    def was_read(self, connection: Connection) -> None:
        """A send may be over."""
        self._changed(connection)

    def closed(self, connection: Connection) -> None:
        """A connection is gone. Its ring is free, unless the host may still read it."""
        socket = self._by_connection.get(connection)
        if socket is not None:
            self._to_pump[socket] = None
        elif connection in self._rings:
            self._free_ring(connection)

    def _free_ring(self, connection: Connection) -> None:
        listening, ring = self._rings.pop(connection)
        listening.free_rings.append(ring)

    # Operations ------------------------------------------------------------------------------------------------------

    def operate(self, fields: Mapping[str, int], parameters: bytes, now: int) -> None:
        """Carry out an OP."""
        job = Job(fields["channel"], fields["job"], fields["socket"])
        socket = self._sockets.get(job.socket)
        if socket is not None:
            socket.buffer.consume(fields["consumed"])
            self._to_pump[socket] = None
        operation = fields["operation"]
        if operation in (Opcode.SOCKET_SEND, Opcode.SOCKET_RECEIVE, Opcode.SOCKET_SHUTDOWN) and socket is None:
            self._completer.complete(job, SocketStatus.CLOSED)
            return
        self._operations[Opcode(operation)](job, socket, fields, parameters, now)

    def _connect(self, job: Job, _socket: _Socket | None, fields: Mapping[str, int], parameters: bytes,
                 now: int) -> None:
        asked = SOCKET_PARAMETERS.unpack(parameters)
        ipv6 = asked["ip_version"] == 6
        remote = ip_address(asked["remote_address"].to_bytes(16, "little")[: 16 if ipv6 else 4])
        ring = Ring(fields["key"], fields["offset"], fields["length"])
        self._stack.channel = job.channel
        try:
            connection = self._stack.open(remote, asked["remote_port"], now, asked["local_port"] or None, ring)
        except ValueError as error:
            in_use = "in use" in str(error)
            self._completer.complete(job, SocketStatus.IN_USE if in_use else SocketStatus.UNREACHABLE)
            return
        local = connection.link.source
        number = self._numbers.take(shard_of_key(
            asked["remote_address"], int.from_bytes(local, "little"), asked["remote_port"], connection.local.port,
            self._shards))
        if number is None:
            connection.abort(now)
            self._completer.complete(job, SocketStatus.NO_ROOM)
            return
        self._add(_Socket(number, connection, ring, connecting=job))

    def _add(self, socket: _Socket) -> None:
        self._sockets[socket.number] = self._by_connection[socket.connection] = socket
        socket.connection.on_event = self._changed
        self._to_pump[socket] = None

    def _listen(self, job: Job, _socket: _Socket | None, fields: Mapping[str, int], parameters: bytes,
                now: int) -> None:
        asked = SOCKET_PARAMETERS.unpack(parameters)
        port, ring_bytes = asked["local_port"], asked["ring_bytes"]
        if not port or not ring_bytes or fields["length"] < ring_bytes:
            self._completer.complete(job, SocketStatus.INVALID)
            return
        versions = [version for version in (4, 6) if asked["ip_version"] in (0, version)
                    and (version == 4 or self._stack.has_ipv6)]
        number = self._numbers.take(0)
        if number is None or len(self._free_listeners) < len(versions):
            self._completer.complete(job, SocketStatus.NO_ROOM)
            return
        try:
            listener = self._stack.listen(port, min(asked["backlog"] or 1, _MAX_BACKLOG))
        except ValueError:
            self._numbers.give_back(number)
            self._completer.complete(job, SocketStatus.IN_USE)
            return
        self._stack.channel = job.channel
        rings = deque(Ring(fields["key"], fields["offset"] + at, ring_bytes)
                      for at in range(0, fields["length"] - ring_bytes + 1, ring_bytes))
        entries = [heapq.heappop(self._free_listeners) for _ in versions]
        listening = _Listening(number, listener, ring_bytes, rings, entries)
        self._listening[number] = self._by_port[port] = listening
        listener.on_event = lambda _listener: self._match(listening)
        answers: list[DoneStatus] = []

        def answered(status: DoneStatus) -> None:
            answers.append(status)
            if len(answers) == len(entries):
                self._end_listen(job, listening, answers)

        for entry, version in zip(entries, versions, strict=True):
            self._orders.enter(
                ControlType.LISTEN_ADD, answered=answered, flow=entry, local_port=port,
                local_address=int.from_bytes(self._own_address(version), "little"),
                flags=OrderFlag.IPV6 if version == 6 else OrderFlag(0))

    def _end_listen(self, job: Job, listening: _Listening, answers: list[DoneStatus]) -> None:
        """The device has the listener's entries, or has no place for one of them."""
        if all(status is DoneStatus.OK for status in answers):
            self._completer.complete(job, local_port=listening.listener.port, socket=listening.number)
            return
        entered = [entry for entry, status in zip(listening.entries, answers, strict=True) if status is DoneStatus.OK]
        for entry in set(listening.entries) - set(entered):
            heapq.heappush(self._free_listeners, entry)
        listening.entries = entered
        self._stop_listening(listening, self._stack.now)
        self._completer.complete(job, SocketStatus.NO_ROOM)

    def _own_address(self, version: int) -> bytes:
        return self._stack.local_address(version)

    def _accept(self, job: Job, _socket: _Socket | None, _fields: Mapping[str, int], _parameters: bytes,
                _now: int) -> None:
        listening = self._listening.get(job.socket)
        if listening is None:
            self._completer.complete(job, SocketStatus.CLOSED)
            return
        listening.accepts.append(job)
        self._match(listening)

    def _match(self, listening: _Listening) -> None:
        """Give connections to those who accept."""
        while listening.accepts and listening.listener.acceptable:
            connection = listening.listener.accept()
            assert connection is not None
            job = listening.accepts.popleft()
            remote = int.from_bytes(connection.link.destination, "little")
            number = self._numbers.take(shard_of_key(
                remote, int.from_bytes(connection.link.source, "little"), connection.remote.port,
                connection.local.port, self._shards))
            if number is None:
                connection.abort(self._stack.now)
                self._completer.complete(job, SocketStatus.NO_ROOM)
                continue
            _, ring = self._rings.get(connection, (None, NO_RING))
            socket = _Socket(number, connection, ring, listening)
            if isinstance(connection.error, ConnectionAbortedError):
                socket.status = SocketStatus.NO_ROOM  # nobody but the flow table aborts what is not accepted yet
            self._add(socket)
            self._completer.complete(job, length=ring.offset, result=remote, remote_port=connection.remote.port,
                                     local_port=connection.local.port, socket=number)

    def _send(self, job: Job, socket: _Socket | None, fields: Mapping[str, int], _parameters: bytes,
              _now: int) -> None:
        assert socket is not None
        connection, length = socket.connection, fields["length"]
        is_last = not fields["socket_flags"] & SocketFlag.MORE
        if socket.closing is not None or not connection.writable:
            if is_last:
                self._completer.complete(job, socket.status or status_of(connection.error))
            return
        start = connection.sender.buffer.end
        send = _Send(job, start, start + length, length, is_last)
        socket.sends.append(send)

        def acknowledged() -> None:
            send.is_acknowledged = True
            send.is_lost = connection.sender.snd_una < send.end
            self._to_pump[socket] = None

        connection.send(MemoryChunk(fields["key"], fields["offset"], length, acknowledged))

    def _receive(self, job: Job, socket: _Socket | None, fields: Mapping[str, int], _parameters: bytes,
                 _now: int) -> None:
        assert socket is not None
        flags, length = fields["socket_flags"], fields["length"]
        if not length or socket.buffer.is_discarding:
            self._completer.complete(job)  # it only told what was consumed, or nobody is to receive any more
            return
        if socket.closing is not None:
            self._completer.complete(job, SocketStatus.CLOSED)
            return
        socket.buffer.post(PostedReceive(
            fields["key"], fields["offset"], length, wait_all=bool(flags & SocketFlag.WAIT_ALL),
            done=lambda received: self._complete_receive(socket, job, received)))
        self._to_pump[socket] = None

    def _complete_receive(self, socket: _Socket, job: Job, received: Received) -> None:
        connection = socket.connection
        if not received.length_bytes and (connection.error is not None or socket.status is not None):
            self._completer.complete(job, socket.status or status_of(connection.error))
            return
        result = EAGER_RESULT.pack(bytes=received.eager_bytes, position=received.eager_position)
        self._completer.complete(job, flow=self._flow(socket), length=received.length_bytes,
                                 result=int.from_bytes(result, "little"))

    def _flow(self, socket: _Socket) -> Flow | None:
        return self._stack.flow_of(socket.connection)

    def _shutdown(self, job: Job, socket: _Socket | None, fields: Mapping[str, int], _parameters: bytes,
                  now: int) -> None:
        assert socket is not None
        flags = fields["socket_flags"]
        if flags & SocketFlag.END_RECEIVE:
            self._fail_receives(socket, SocketStatus.OK)
            socket.buffer.discard()
        if not flags & SocketFlag.END_SEND:
            self._completer.complete(job)
            return
        socket.ending.append(job)
        socket.connection.close(now)
        self._to_pump[socket] = None

    def _close(self, job: Job, socket: _Socket | None, fields: Mapping[str, int], _parameters: bytes,
               now: int) -> None:
        listening = self._listening.get(job.socket)
        if listening is not None:
            self._stop_listening(listening, now)
            self._completer.complete(job)
            return
        if socket is None:
            self._completer.complete(job, SocketStatus.CLOSED)
            return
        self._fail_receives(socket, SocketStatus.CLOSED)
        if socket.closing is not None:
            socket.ending.append(socket.closing)
        socket.closing = job
        if fields["socket_flags"] & SocketFlag.ABORT:
            socket.connection.abort(now)
        else:
            socket.connection.close(now)
        self._to_pump[socket] = None

    def _stop_listening(self, listening: _Listening, now: int) -> None:
        listening.listener.close(now)
        del self._listening[listening.number]
        self._by_port.pop(listening.listener.port, None)
        self._numbers.give_back(listening.number)
        while listening.accepts:
            self._completer.complete(listening.accepts.popleft(), SocketStatus.CLOSED)
        for entry in listening.entries:
            self._orders.enter(ControlType.LISTEN_DEL, answered=lambda _status: None, flow=entry)
            heapq.heappush(self._free_listeners, entry)

    def _set_option(self, job: Job, socket: _Socket | None, _fields: Mapping[str, int], parameters: bytes,
                    now: int) -> None:
        asked = SOCKET_PARAMETERS.unpack(parameters)
        if socket is None:
            self._completer.complete(job, SocketStatus.CLOSED)
            return
        connection, value = socket.connection, asked["value"]
        if asked["option"] == SocketOption.NO_DELAY:
            connection.nagle = Nagle.OFF if value else self._stack.profile.nagle
        elif asked["option"] == SocketOption.KEEP_ALIVE:
            connection.set_keep_alive(bool(value), now)
        elif asked["option"] == SocketOption.USER_TIMEOUT_MS:
            connection.user_timeout_ps = value * MS or None
        else:
            self._completer.complete(job, SocketStatus.INVALID)
            return
        self._completer.complete(job)

    # What is over ----------------------------------------------------------------------------------------------------

    def _changed(self, connection: Connection) -> None:
        socket = self._by_connection.get(connection)
        if socket is not None:
            self._to_pump[socket] = None

    def _fail_receives(self, socket: _Socket, status: SocketStatus) -> None:
        for receive in socket.buffer.take_all():
            if status is SocketStatus.OK:
                receive.done(Received(0, 0, 0))
            else:
                socket.status, before = status, socket.status
                receive.done(Received(0, 0, 0))
                socket.status = before

    def abort_failed(self, now: int) -> None:
        """Abort connections whose orders the device refused."""
        while self._failures:
            connection, status = self._failures.pop()
            socket = self._by_connection.get(connection)
            if socket is not None:
                socket.status = socket.status or status
            connection.abort(now)

    def pump(self, now: int) -> None:
        """Complete all jobs that are over."""
        while self._to_pump or self._failures:
            self.abort_failed(now)
            sockets, self._to_pump = self._to_pump, {}
            for socket in sockets:
                self._pump(socket, now)

    def _pump(self, socket: _Socket, now: int) -> None:
        connection = socket.connection
        is_gone = connection.state is State.CLOSED
        if socket.connecting is not None and (connection.established or is_gone):
            self._end_connect(socket, is_gone)
            if is_gone:
                self._remove(socket)
                return
        if socket.closing is None:
            socket.buffer.settle(is_at_end=connection.peer_closed or is_gone)
            # What was posted, or read, may be room that the peer must hear of.
            connection.note_room()
        self._end_sends(socket)
        if socket.closing is not None and not is_gone and not socket.sends and not socket.is_releasing:
            # What nobody will read makes the end a reset; but not before the last send has arrived.
            socket.is_releasing = True
            connection.release(now)
            is_gone = connection.state is State.CLOSED
        has_ended = is_gone or connection.state in (State.FIN_WAIT_2, State.TIME_WAIT)
        if has_ended and not socket.sends:
            failed = socket.status or (status_of(connection.error) if connection.error else None)
            for job in socket.ending:
                self._completer.complete(job, failed or SocketStatus.OK)
            socket.ending.clear()
            if socket.closing is not None:
                self._completer.complete(socket.closing)
                self._remove(socket)

    def _end_connect(self, socket: _Socket, is_gone: bool) -> None:
        job, socket.connecting = socket.connecting, None
        assert job is not None
        connection = socket.connection
        if is_gone:
            self._completer.complete(job, socket.status or status_of(connection.error))
            return
        self._completer.complete(job, result=int.from_bytes(connection.link.destination, "little"),
                                 remote_port=connection.remote.port, local_port=connection.local.port,
                                 socket=socket.number)

    def _end_sends(self, socket: _Socket) -> None:
        """Sends are over, in order, when they are acknowledged and no EMIT under way reads them."""
        flow = self._stack.any_flow_of(socket.connection)
        while socket.sends:
            send = socket.sends[0]
            if not send.is_acknowledged or (flow is not None and flow.reads(send.start, send.end)):
                return
            socket.sends.popleft()
            socket.sent_of_job += send.length
            if send.is_lost:
                socket.status = socket.status or status_of(socket.connection.error)
            if send.is_last:
                status = socket.status if send.is_lost and socket.status is not None else SocketStatus.OK
                length, socket.sent_of_job = socket.sent_of_job, 0
                self._completer.complete(send.job, status, length=0 if send.is_lost else length)

    def _remove(self, socket: _Socket) -> None:
        """The application has closed it, and knows that it is over; TCP may still be at work."""
        connection = socket.connection
        del self._sockets[socket.number], self._by_connection[connection]
        self._to_pump.pop(socket, None)
        self._numbers.give_back(socket.number)
        connection.on_event = None
        if connection in self._rings:
            # The peer may still send, as long as its half is open: what comes has nowhere to go.
            socket.buffer.discard()
            self._free_ring(connection)
