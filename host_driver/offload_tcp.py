"""MemNet over TCP on the device: what each call becomes is an operation on the ring.

A send is a descriptor that names the application's memory, and a receive too: bytes go where they belong without a
copy, but those that came before they were asked for. These are in the connection's eager ring; the host copies them
when the receive is over, and says with the next operation how far it has read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from host_driver.account import Account
from host_driver.device_memory import DeviceMemory
from host_driver.errors import (
    AddressInUse,
    AddressNotAvailable,
    ConnectionRefused,
    ConnectionTimedOut,
    NetworkError,
    OptionRefused,
    PeerReset,
    SocketClosed,
)
from host_driver.memnet.options import Option
from host_driver.memnet.provider import Direction, Transfer
from host_driver.nic import MemoryKey
from host_driver.offload_interface import SOCKET_CHANNEL, OffloadInterface
from host_driver.rings import Piece, SocketCompletion
from host_driver.runtime import Cancelled
from host_driver.socket_channel import SocketDescriptor
from host_driver.tcp.stack import FIRST_EPHEMERAL_PORT, LAST_EPHEMERAL_PORT
from host_driver.waiting import WaitQueue
from nic_model.contract import Opcode
from nic_model.contract.sockets import EAGER_RESULT, SOCKET_PARAMETERS, SocketFlag, SocketOption, SocketStatus

DEFAULT_RING_BYTES = 8192
DEFAULT_RINGS = 512
"""Eager rings of a listening socket, at most as many as its backlog: connections that it may have at a time."""

_ALIGNMENT_BYTES = 4096

_OPTIONS = {Option.TCP_NODELAY: SocketOption.NO_DELAY, Option.SO_KEEPALIVE: SocketOption.KEEP_ALIVE,
            Option.TCP_USER_TIMEOUT: SocketOption.USER_TIMEOUT_MS}
_HOST_OPTIONS = (Option.SO_REUSEADDR, Option.SO_LINGER)
"""Those that are no business of the device."""

_ERRORS: dict[SocketStatus, Callable[[str], NetworkError]] = {
    SocketStatus.REFUSED: ConnectionRefused, SocketStatus.RESET: PeerReset, SocketStatus.TIMED_OUT: ConnectionTimedOut,
    SocketStatus.IN_USE: AddressInUse, SocketStatus.UNREACHABLE: ConnectionTimedOut}


def ring_pool_bytes(backlog: int, ring_bytes: int = DEFAULT_RING_BYTES, rings: int = DEFAULT_RINGS) -> int:
    """Host memory that the eager rings of a listening socket take."""
    return min(backlog, rings) * ring_bytes


def _error(status: SocketStatus, doing: str) -> NetworkError | None:
    """What a completion says went wrong."""
    if status is SocketStatus.OK:
        return None
    return _ERRORS.get(status, SocketClosed)(f"{doing}: the device says {status.name}")


class OffloadListening:
    """A port that the device listens on. Made by `OffloadTcp.listen`."""

    def __init__(self, tcp: OffloadTcp, port: int) -> None:
        self.port = port
        self.number: int | None = None
        """The socket, when the device has it."""
        self.error: NetworkError | None = None
        self.address = 0
        self.key: MemoryKey
        self.asked = 0
        """ACCEPTs under way."""
        self.acceptors = 0
        """Processes in `accept`: those that sleep, and those that were woken and may find that another was quicker."""
        self.connections = 0
        """That have one of its eager rings."""
        self.is_closed = False
        self.ready: deque[OffloadConnection] = deque()
        self.waiting = WaitQueue(tcp.charge_waking, f"a connection to port {port}")

    def __repr__(self) -> str:
        return f"<port {self.port} on the device>"


class OffloadConnection:
    """A connection of the device, and what is under way on it."""

    def __init__(self, socket: int, local: tuple[str, int], remote: tuple[str, int], ring: memoryview) -> None:
        self.socket = socket
        self.local = local
        self.remote = remote
        self.ring = ring
        self.consumed = 0
        """Bytes of the ring read so far."""
        self.told = 0
        """What the device knows of that."""
        self.sends = 0
        """Under way."""
        self.closing = False
        self.is_over = False
        """The device has no such socket any more."""
        self.has_ended = False
        """The peer has acknowledged all and the end."""
        self.at_rest: WaitQueue
        self.release: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<connection {self.local[0]}:{self.local[1]} {self.remote[0]}:{self.remote[1]} on the device>"

    @property
    def is_at_rest(self) -> bool:
        """Whether the peer has all that was sent, the end too, or the connection is gone."""
        return not self.sends and (self.has_ended or self.is_over)


class OffloadTcp(DeviceMemory):
    """Implements `memnet.Provider` over TCP on the device.

    Parameters: `interface`; `ring_bytes`, size of each connection's eager ring, a power of two; `rings` of a listening
    socket, at most as many as its backlog. Attributes: `memory`, `kernel`.
    """

    def __init__(self, interface: OffloadInterface, *, ring_bytes: int = DEFAULT_RING_BYTES,
                 rings: int = DEFAULT_RINGS) -> None:
        super().__init__(interface.nic, SOCKET_CHANNEL)
        self.eager_bytes = 0
        """Bytes that the host had to copy."""
        self._interface = interface
        self._ring_bytes = ring_bytes
        self._rings = rings
        self._ports: dict[int, OffloadListening] = {}
        self._connections: set[OffloadConnection] = set()

    # ------------------------------------------------------------------------------------------ memory

    async def _give_back(self, address: int, key: MemoryKey) -> None:
        await self._interface.nic.deregister_memory(key)
        self.memory.free(address)

    # ------------------------------------------------------------------------------------------ connections

    @property
    def own_address(self) -> str:
        """The firmware's, or the first of them."""
        return self._interface.ip[0]

    def find_port(self, ip: str | None, port: int, *, reuse: bool) -> int:
        """The port, or one that is free. Raises AddressNotAvailable or AddressInUse. What the device keeps of
        connections that were closed, the host does not know."""
        if ip is not None and not (found := ip_address(ip)).is_unspecified and str(found) not in self._interface.ip:
            raise AddressNotAvailable(f"{ip} is not an address of this host; it has {', '.join(self._interface.ip)}")
        if not 0 <= port < 1 << 16:
            raise AddressNotAvailable(f"a port is 0 to 65535, not {port}")
        taken = {connection.local[1] for connection in self._connections} | set(self._ports)
        if not port:
            free = next((p for p in range(FIRST_EPHEMERAL_PORT, LAST_EPHEMERAL_PORT + 1) if p not in taken), None)
            if free is None:
                raise AddressInUse("no port is free")
            return free
        if port in self._ports or (port in taken and not reuse):
            raise AddressInUse(f"port {port} is in use")
        return port

    def listen(self, port: int, backlog: int) -> OffloadListening:
        """Listen on a port, with eager rings for its connections. Raises AddressInUse if something already does,
        MemoryError without memory for the rings."""
        if port in self._ports:
            raise AddressInUse(f"port {port} is listened on")
        listening = self._ports[port] = OffloadListening(self, port)
        length = ring_pool_bytes(backlog, self._ring_bytes, self._rings)
        account = self._interface.account
        try:
            listening.address = self.memory.allocate(length, _ALIGNMENT_BYTES)
            listening.key = self.make_key(listening.address, length, account)
        except MemoryError:
            del self._ports[port]
            raise
        parameters = SOCKET_PARAMETERS.pack(local_port=port, backlog=backlog, ring_bytes=self._ring_bytes)

        def over(completion: SocketCompletion) -> None:
            listening.number = completion.socket
            listening.error = _error(completion.status, f"listen on port {port}")
            listening.waiting.wake()

        self._interface.post_now([SocketDescriptor(Opcode.SOCKET_LISTEN, piece=Piece(listening.key.value, 0, length),
                                                   parameters=parameters)], over, account)
        return listening

    @property
    def waiting_accepts(self) -> int:
        """Operations that are over when a client comes."""
        return sum(listening.asked for listening in self._ports.values())

    async def accept(self, listening: OffloadListening, account: Account) -> OffloadConnection:
        """The next connection: an operation that waits on the device."""
        waiting = listening.waiting
        if listening.number is None and listening.error is None:
            await waiting.sleep(lambda: listening.number is not None or listening.error is not None, account)
        if listening.error is not None:
            raise listening.error
        listening.acceptors += 1
        try:
            if listening.asked + len(listening.ready) < listening.acceptors:
                self._ask(listening, account)
                await account.settle()
            while True:
                await waiting.sleep(lambda: bool(listening.ready) or listening.error is not None, account)
                if listening.ready:
                    return listening.ready.popleft()
                if listening.error is not None:
                    raise listening.error
        finally:
            listening.acceptors -= 1

    def _ask(self, listening: OffloadListening, account: Account) -> None:
        listening.asked += 1
        self._interface.post_now([SocketDescriptor(Opcode.SOCKET_ACCEPT, listening.number or 0)],
                                 lambda completion: self._accepted(listening, completion), account)

    def _accepted(self, listening: OffloadListening, completion: SocketCompletion) -> None:
        listening.asked -= 1
        if completion.status is not SocketStatus.OK:
            if completion.status is SocketStatus.CLOSED:
                listening.error = SocketClosed(f"accept on {listening!r}: it was closed")
                listening.waiting.wake()
            else:
                self._ask(listening, self._interface.account)  # the connection was lost: whoever waits still does
            return
        ring = self.memory.view(listening.address + completion.length, self._ring_bytes)
        connection = self._connection(completion, ring)
        listening.connections += 1

        def release() -> None:
            listening.connections -= 1
            self._release_rings(listening)

        connection.release = release
        listening.ready.append(connection)
        listening.waiting.wake(only_one=True)

    def _connection(self, completion: SocketCompletion, ring: memoryview) -> OffloadConnection:
        remote = _address(completion.result)
        own = next((ip for ip in self._interface.ip if ip_address(ip).version == remote.version), self.own_address)
        connection = OffloadConnection(completion.socket, (own, completion.local_port),
                                       (str(remote), completion.remote_port), ring)
        connection.at_rest = WaitQueue(self.charge_waking, f"the end of {connection!r}")
        self._connections.add(connection)
        return connection

    async def stop_listening(self, listening: OffloadListening, account: Account) -> None:
        """Give a port back; connections that nobody accepted are aborted. Rings of those that were go with the last of
        them."""
        self._ports.pop(listening.port, None)
        if listening.number is None and listening.error is None:
            await listening.waiting.sleep(lambda: listening.number is not None or listening.error is not None, account)
        while listening.ready:
            await self.abort(listening.ready.popleft(), account)

        def over(_completion: SocketCompletion) -> None:
            listening.is_closed = True
            self._release_rings(listening)

        await self._interface.post([SocketDescriptor(Opcode.SOCKET_CLOSE, listening.number or 0)], over, account)
        await account.settle()

    def _release_rings(self, listening: OffloadListening) -> None:
        """When nobody listens, and the last connection is closed."""
        if listening.is_closed and not listening.connections:
            self.kernel.spawn(self._give_back(listening.address, listening.key), f"eager rings of {listening!r}")

    async def connect(self, ip: IPv4Address | IPv6Address | str, port: int, local_port: int | None,
                      options: dict[Option, Any], account: Account) -> OffloadConnection:
        """An established connection. Raises NetworkError."""
        remote = ip_address(str(ip))
        address = self.memory.allocate(self._ring_bytes, _ALIGNMENT_BYTES)
        try:
            key = self.make_key(address, self._ring_bytes, account)
        except MemoryError:
            self.memory.free(address)
            raise
        waiting = WaitQueue(self.charge_waking, f"the connection to {ip}:{port}")
        ended: list[SocketCompletion] = []

        def give_back() -> None:
            self.kernel.spawn(self._give_back(address, key), f"the eager ring towards {ip}:{port}")

        is_wanted = True

        def over(completion: SocketCompletion) -> None:
            ended.append(completion)
            if not is_wanted:
                self._end_unwanted(completion, give_back)
            waiting.wake()

        parameters = SOCKET_PARAMETERS.pack(
            remote_address=int.from_bytes(remote.packed, "little"), remote_port=port, local_port=local_port or 0,
            ip_version=remote.version)
        descriptor = SocketDescriptor(Opcode.SOCKET_CONNECT, piece=Piece(key.value, 0, self._ring_bytes),
                                      parameters=parameters)
        await self._interface.post([descriptor], over, account)
        try:
            await account.settle()
            await waiting.sleep(lambda: bool(ended), account)
        except (Exception, Cancelled):
            is_wanted = False
            if ended:
                self._end_unwanted(ended[0], give_back)
            raise
        error = _error(ended[0].status, f"connect to {ip}:{port}")
        if error is not None:
            give_back()
            raise error
        connection = self._connection(ended[0], self.memory.view(address, self._ring_bytes))
        connection.release = give_back
        if options:
            self.set_options(connection, options, account)
        return connection

    def _end_unwanted(self, completion: SocketCompletion, give_back: Callable[[], None]) -> None:
        """Of a connection whose process was killed while it waited for it."""
        if completion.status is not SocketStatus.OK:
            give_back()
            return
        self._interface.post_now([SocketDescriptor(Opcode.SOCKET_CLOSE, completion.socket, flags=SocketFlag.ABORT)],
                                 lambda _completion: give_back(), self._interface.account)

    def addresses(self, connection: OffloadConnection) -> tuple[tuple[str, int], tuple[str, int]]:
        """Own and peer's address and port."""
        return connection.local, connection.remote

    def set_options(self, connection: OffloadConnection, options: dict[Option, Any], account: Account) -> None:
        """Let a connection have these options. Raises OptionRefused for those that the firmware does not have."""
        for option in options:
            if option not in _OPTIONS and option not in _HOST_OPTIONS:
                raise OptionRefused(f"{option.value} cannot be set on a connection of the device; "
                                    f"{', '.join(o.value for o in (*_OPTIONS, *_HOST_OPTIONS))} can")
        for option, value in options.items():
            if option in _OPTIONS:
                parameters = SOCKET_PARAMETERS.pack(option=_OPTIONS[option], value=int(value))
                self._interface.post_now(
                    [SocketDescriptor(Opcode.SOCKET_OPTION, connection.socket, parameters=parameters)],
                    lambda _completion: None, account)

    # ------------------------------------------------------------------------------------------ data

    async def send(self, connection: OffloadConnection, transfer: Transfer, account: Account) -> None:
        """A descriptor for each part, and a doorbell."""
        if connection.closing:
            raise SocketClosed(f"send on {connection!r}: it was closed")
        parts = [part for part in transfer.parts if part.length_bytes]
        last = len(parts) - 1
        descriptors = [
            SocketDescriptor(Opcode.SOCKET_SEND, connection.socket, Piece(part.key, part.offset, part.length_bytes),
                             SocketFlag.PUSH if number == last else SocketFlag.MORE, self._consumed(connection))
            for number, part in enumerate(parts)]
        transfer.is_taken = True
        if not descriptors:
            transfer.done(0, None)
            return
        connection.sends += 1

        def over(completion: SocketCompletion) -> None:
            connection.sends -= 1
            transfer.done(completion.length, _error(completion.status, f"send on {connection!r}"))
            self._note_rest(connection)

        await self._interface.post(descriptors, over, account)
        await account.settle()

    async def receive(self, connection: OffloadConnection, transfer: Transfer, account: Account) -> None:
        """A descriptor and a doorbell. Of several parts only the first that is not empty is filled: a receive may be
        short."""
        if connection.closing:
            raise SocketClosed(f"receive on {connection!r}: it was closed")
        transfer.is_taken = True
        part = next((part for part in transfer.parts if part.length_bytes), None)
        if part is None:
            transfer.done(0, None)
            return
        wanted = part

        def over(completion: SocketCompletion) -> None:
            error = _error(completion.status, f"receive on {connection!r}")
            if error is None and completion.length:
                self._copy_eager(connection, completion, wanted.view())
            transfer.done(0 if error is not None else completion.length, error)

        await self._interface.post(
            [SocketDescriptor(Opcode.SOCKET_RECEIVE, connection.socket,
                              Piece(part.key, part.offset, part.length_bytes), consumed=self._consumed(connection))],
            over, account)
        await account.settle()

    def _consumed(self, connection: OffloadConnection) -> int:
        """What the device is told of the eager ring with the next operation."""
        connection.told = connection.consumed
        return connection.consumed & 0xFFFF_FFFF

    def _copy_eager(self, connection: OffloadConnection, completion: SocketCompletion, target: memoryview) -> None:
        """Bytes that came before they were asked for: out of the eager ring."""
        eager = EAGER_RESULT.unpack(completion.result.to_bytes(16, "little"))
        length, position, ring = eager["bytes"], eager["position"], connection.ring
        if not length:
            return
        straight = min(length, len(ring) - position)
        target[:straight] = ring[position : position + straight]
        target[straight:length] = ring[: length - straight]
        connection.consumed += length
        self.eager_bytes += length
        self._interface.account.charge("copy", "kernel_to_user_byte", length)
        if 2 * (connection.consumed - connection.told) >= len(ring) and not connection.closing:
            # The device may be waiting for room, and the application need not ask for anything soon.
            self._interface.post_now(
                [SocketDescriptor(Opcode.SOCKET_RECEIVE, connection.socket, consumed=self._consumed(connection))],
                lambda _completion: None, self._interface.account)

    def charge_waking(self) -> None:
        """The waking of a process is work of whoever takes completions."""
        self._interface.account.charge("context_switch", "wake")

    # ------------------------------------------------------------------------------------------ ends

    async def shutdown(self, connection: OffloadConnection, direction: Direction, account: Account) -> None:
        """Send no more, behind all sends taken; or receive no more."""
        flags = SocketFlag(0)
        if Direction.RECEIVE in direction:
            flags |= SocketFlag.END_RECEIVE
        if Direction.SEND in direction:
            flags |= SocketFlag.END_SEND

        def over(completion: SocketCompletion) -> None:
            connection.has_ended = connection.has_ended or Direction.SEND in direction
            self._note_rest(connection)

        await self._interface.post([SocketDescriptor(Opcode.SOCKET_SHUTDOWN, connection.socket, flags=flags)], over,
                                   account)
        await account.settle()

    async def close(self, connection: OffloadConnection, account: Account) -> None:
        """Close both ways, behind all sends taken; receives that wait fail."""
        await self._close(connection, SocketFlag(0), account)

    async def abort(self, connection: OffloadConnection, account: Account) -> None:
        """Drop it: the peer gets a reset, all transfers fail."""
        await self._close(connection, SocketFlag.ABORT, account)

    async def _close(self, connection: OffloadConnection, flags: SocketFlag, account: Account) -> None:
        if connection.is_over or (connection.closing and not flags):
            return
        connection.closing = True

        def over(completion: SocketCompletion) -> None:
            if not connection.is_over:
                connection.is_over = True
                self._connections.discard(connection)
                connection.ring.release()
                connection.release()
            self._note_rest(connection)

        await self._interface.post([SocketDescriptor(Opcode.SOCKET_CLOSE, connection.socket, flags=flags)], over,
                                   account)
        await account.settle()

    def _note_rest(self, connection: OffloadConnection) -> None:
        if connection.is_at_rest:
            connection.at_rest.wake()

    def is_at_rest(self, connection: OffloadConnection) -> bool:
        """Whether all that was sent is acknowledged, the end of sending too."""
        return connection.is_at_rest

    async def wait_for_rest(self, connection: OffloadConnection, timeout_ps: int | None, account: Account) -> bool:
        """Sleep until `is_at_rest`; False if that is not so in time."""
        late = False

        def expire() -> None:
            nonlocal late
            late = True
            connection.at_rest.wake()

        timer = None if timeout_ps is None else self.kernel.call_at(self.kernel.now + timeout_ps, expire)
        try:
            await connection.at_rest.sleep(lambda: late or connection.is_at_rest, account)
        finally:
            if timer is not None:
                timer.cancel()
        return connection.is_at_rest


def _address(result: int) -> IPv4Address | IPv6Address:
    """The peer's address of a completion: IPv4's leaves all behind its four bytes 0."""
    data = result.to_bytes(16, "little")
    return IPv4Address(data[:4]) if not any(data[4:]) else IPv6Address(data)
