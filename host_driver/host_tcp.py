"""MemNet over the host's own TCP: the first provider.

A send is queued as references to registered memory, which the device reads when it sends and, if need be, sends
again; it is over when the peer has acknowledged all of it and no send that reads it is left on the ring. Received bytes
are copied into the region by whoever brings them, mostly the softirq.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from host_driver.account import Account
from host_driver.device_memory import DeviceMemory
from host_driver.endpoint import Endpoint, Listening, charge_waking
from host_driver.errors import (
    AddressInUse,
    AddressNotAvailable,
    NetworkError,
    SocketClosed,
    network_error,
)
from host_driver.interface import NetworkInterface
from host_driver.memnet.options import Option
from host_driver.memnet.provider import Direction, Transfer
from host_driver.tcp.buffers import Chunk
from host_driver.tcp.connection import Connection
from host_driver.tcp.profile import MS, SECOND, Nagle
from host_driver.tcp.stack import FIRST_EPHEMERAL_PORT, LAST_EPHEMERAL_PORT
from host_driver.tcp.states import State
from nic_model.contract import RAW_CHANNEL

_CONSTANTS = {
    Option.SO_SNDBUF: ("send_buffer_bytes", 1),
    Option.SO_RCVBUF: ("receive_buffer_bytes", 1),
    Option.TCP_KEEPIDLE: ("keep_alive_idle_ps", SECOND),
    Option.TCP_KEEPINTVL: ("keep_alive_interval_ps", SECOND),
    Option.TCP_KEEPCNT: ("keep_alive_probes", 1),
}
"""Option -> the constant of TCP's profile that it sets, and its unit."""


class _Send:
    """A send: which of its parts are with TCP, and how many of these are still needed."""

    __slots__ = ("copied_bytes", "error", "next_part", "transfer", "unread_parts")

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.next_part = 0
        self.copied_bytes = 0
        """Of that part, by a provider that copies."""
        self.unread_parts = len(transfer.parts)
        self.error: NetworkError | None = None


class HostTcpConnection:
    """One connection with its transfers."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._connection = endpoint.connection
        self._sends: deque[_Send] = deque()
        """Those that TCP has not taken whole."""
        self._unread: deque[_Send] = deque()
        """All that are not over, in order."""
        self._receives: deque[Transfer] = deque()
        self._end_behind_sends = False
        self._receive_ended = False
        self._is_closed = False
        self._is_released = False
        endpoint.on_change = self._pump

    def __repr__(self) -> str:
        return repr(self._connection)

    def post_send(self, transfer: Transfer) -> None:
        """Queue a send. Raises NetworkError on a connection that takes none."""
        self._take_send(transfer)
        self._pump()

    def carry_on_sending(self) -> bool:
        """Do a further piece of work for posted sends, if that needs any; whether there was one."""
        return False

    def _take_send(self, transfer: Transfer) -> None:
        if self.endpoint.ended or self.endpoint.closed_here or self._end_behind_sends:
            raise network_error(self._connection.error, f"send on {self!r}")
        transfer.is_taken = True
        send = _Send(transfer)
        self._sends.append(send)
        self._unread.append(send)

    def post_receive(self, transfer: Transfer) -> None:
        """Queue a receive."""
        if self._is_closed:
            raise network_error(self._connection.error, f"receive on {self!r}")
        transfer.is_taken = True
        self._receives.append(transfer)
        self._pump()

    def end_behind_sends(self) -> bool:
        """Send no more, as soon as all posted sends are with TCP; whether that is now."""
        self._end_behind_sends = True
        return not self._sends

    def end_sending(self) -> None:
        """A FIN behind what is with TCP."""
        self.endpoint.closed_here = True
        self._connection.close(self._now)

    def end_receiving(self) -> None:
        """Receives give 0 bytes from now on; what comes is dropped."""
        self._receive_ended = True
        self._pump()

    def close(self) -> bool:
        """Both; but receives fail, and bytes that come are answered with a reset. Whether all sends are with TCP: then
        `finish_close` is due."""
        self._is_closed = True
        while self._receives:
            self._receives.popleft().done(0, SocketClosed(f"receive on {self!r}: the connection is closed"))
        return self.end_behind_sends()

    def finish_close(self) -> None:
        """End sending now."""
        self.end_sending()
        self._pump()

    @property
    def is_at_rest(self) -> bool:
        """Whether the peer has acknowledged all that was sent and the end, or the connection is gone."""
        connection = self._connection
        return not self._unread and (self.endpoint.ended or (
            self.endpoint.closed_here and connection.acked_bytes == connection.queued_bytes
            and connection.state in (State.FIN_WAIT_2, State.TIME_WAIT)))

    def _pump(self) -> None:
        """Carry on with what was posted, as far as the connection allows now."""
        connection = self._connection
        while self._sends and connection.send_space > 0:
            self._queue_next_part()
        if self._end_behind_sends and not self._sends and not self.endpoint.closed_here:
            self.end_sending()
        while self._receives and connection.recv_available and not self._receive_ended:
            self._store(self._receives.popleft())
        if self._receives and (connection.peer_closed or self._receive_ended):
            self._end_receives(None)
        if self._receive_ended and connection.recv_available:
            connection.recv(connection.recv_available)
        if self._is_closed and self.endpoint.closed_here and not self._unread and not self._is_released:
            # Bytes that nobody will read make the end a reset; but not before the last send has arrived.
            self._is_released = True
            connection.release(self._now)
        if self.endpoint.ended:
            while self._sends:
                send = self._sends.popleft()
                send.error = network_error(connection.error, f"send on {self!r}")
                send.unread_parts -= len(send.transfer.parts) - send.next_part
            self._end_sends()
            self._end_receives(connection.error)

    def _queue_next_part(self) -> None:
        """Hand one part to TCP: from now on it and the device read the memory when they need it."""
        send, connection, interface = self._sends[0], self._connection, self.endpoint.interface
        part = send.transfer.parts[send.next_part]
        send.next_part += 1
        if send.next_part == len(send.transfer.parts):
            self._sends.popleft()
        chunk = Chunk(part.view(), key=part.key, offset=part.offset)
        end = connection.queued_bytes + len(chunk)

        def unread() -> None:
            send.unread_parts -= 1
            if connection.acked_bytes < end:
                send.error = network_error(connection.error, f"send on {self!r}")
            self._end_sends()

        chunk.release = lambda: interface.when_unread(connection, chunk, unread)
        connection.send(chunk)

    def _end_sends(self) -> None:
        """Tell of sends that are over, in order: a later one may be over while an earlier one is being sent again."""
        while self._unread and not self._unread[0].unread_parts:
            send = self._unread.popleft()
            send.transfer.done(send.transfer.length_bytes if send.error is None else 0, send.error)

    def _store(self, transfer: Transfer) -> None:
        stored = 0
        for part in transfer.parts:
            data = self._connection.recv(part.length_bytes)
            part.view()[: len(data)] = data
            stored += len(data)
            if not self._connection.recv_available:
                break
        self.endpoint.interface.account.charge("copy", "kernel_to_user_byte", stored)
        transfer.done(stored, None)

    def _end_receives(self, error: OSError | None) -> None:
        """No more bytes will come: 0 bytes for all who wait, or the error."""
        while self._receives:
            failure = network_error(error, f"receive on {self!r}") if error is not None else None
            self._receives.popleft().done(0, failure)

    @property
    def _now(self) -> int:
        return self.endpoint.interface.nic.port.now()


class HostTcp(DeviceMemory):
    """Implements `memnet.Provider` over a network interface.

    Attributes: `memory`, where regions are allocated; `kernel`, the clock.
    """

    def __init__(self, interface: NetworkInterface) -> None:
        super().__init__(interface.nic, RAW_CHANNEL)
        self._interface = interface

    # ------------------------------------------------------------------------------------------ connections

    @property
    def own_address(self) -> str:
        """The stack's, or the first of them."""
        return str(self._interface.stack.ip)

    def find_port(self, ip: str | None, port: int, *, reuse: bool) -> int:
        """The port, or one that is free. Raises AddressNotAvailable or AddressInUse."""
        stack = self._interface.stack
        if ip is not None and not (address := ip_address(ip)).is_unspecified and not stack.has_address(address):
            raise AddressNotAvailable(f"{ip} is not an address of this host; it has {stack.ip}")
        if not 0 <= port < 1 << 16:
            raise AddressNotAvailable(f"a port is 0 to 65535, not {port}")
        if not port:
            taken = {connection.local.port for connection in stack.connections}
            free = next((p for p in range(FIRST_EPHEMERAL_PORT, LAST_EPHEMERAL_PORT + 1)
                         if p not in taken and not stack.is_listening(p)), None)
            if free is None:
                raise AddressInUse("no port is free")
            return free
        if stack.is_listening(port):
            raise AddressInUse(f"port {port} is listened on")
        others = [connection for connection in stack.connections if connection.local.port == port
                  and not (reuse and connection.state is State.TIME_WAIT)]
        if others:
            raise AddressInUse(f"port {port} is in use by {others[0]!r}")
        return port

    def listen(self, port: int, backlog: int) -> Listening:
        """Listen on a port. Raises AddressInUse if something already does."""
        try:
            return Listening(self._interface, port, backlog)
        except ValueError as error:
            raise AddressInUse(str(error)) from None

    async def accept(self, listening: Listening, account: Account) -> HostTcpConnection:
        """The next connection."""
        return self._connection(await listening.accept(account))

    async def stop_listening(self, listening: Listening, account: Account) -> None:
        """Give a port back."""
        await listening.close(account)

    async def connect(self, ip: IPv4Address | IPv6Address | str, port: int, local_port: int | None,
                      options: dict[Option, Any], account: Account) -> HostTcpConnection:
        """An established connection. Raises NetworkError."""
        return self._connection(await Endpoint.connect(self._interface, ip, port, account, local_port,
                                                       lambda connection: self._set_options(connection, options)))

    def _connection(self, endpoint: Endpoint) -> HostTcpConnection:
        return HostTcpConnection(endpoint)

    def addresses(self, connection: HostTcpConnection) -> tuple[tuple[str, int], tuple[str, int]]:
        """Own and peer's address and port."""
        local, remote = connection.endpoint.connection.local, connection.endpoint.connection.remote
        return (str(local.ip), local.port), (str(remote.ip), remote.port)

    def set_options(self, connection: HostTcpConnection, options: dict[Option, Any], account: Account) -> None:
        """Let a connection have these options."""
        self._set_options(connection.endpoint.connection, options)
        self.kernel.spawn(self._interface.push(account), f"timers of {connection!r}")

    def _set_options(self, connection: Connection, options: dict[Option, Any]) -> None:
        profile = self._interface.stack.profile
        own = {name: options[option] * unit for option, (name, unit) in _CONSTANTS.items() if option in options}
        if own:
            connection.set_profile(replace(profile, **own))
        if Option.TCP_NODELAY in options:
            connection.nagle = Nagle.OFF if options[Option.TCP_NODELAY] else profile.nagle
        if Option.TCP_USER_TIMEOUT in options:
            connection.user_timeout_ps = options[Option.TCP_USER_TIMEOUT] * MS or None
        if Option.SO_KEEPALIVE in options:
            connection.set_keep_alive(options[Option.SO_KEEPALIVE], self._interface.nic.port.now())

    # ------------------------------------------------------------------------------------------ data

    async def send(self, connection: HostTcpConnection, transfer: Transfer, account: Account) -> None:
        """A system call: TCP queues the bytes by reference."""
        account.charge("syscall", "write")
        await account.settle()
        async with connection.endpoint.lock.held(account):
            self._interface.account.target = account
            connection.post_send(transfer)
            await self._interface.push(account)

    async def receive(self, connection: HostTcpConnection, transfer: Transfer, account: Account) -> None:
        """A system call: bytes that are there are copied at once, others when they come."""
        account.charge("syscall", "read")
        await account.settle()
        async with connection.endpoint.lock.held(account):
            self._interface.account.target = account
            connection.post_receive(transfer)
            await self._interface.push(account)

    def charge_waking(self) -> None:
        """The waking of a process is work of whoever runs the stack."""
        charge_waking(self._interface)

    # ------------------------------------------------------------------------------------------ ends

    async def shutdown(self, connection: HostTcpConnection, direction: Direction, account: Account) -> None:
        """A FIN behind all sends that were posted; or no more receives."""
        account.charge("syscall", "close")
        await account.settle()
        async with connection.endpoint.lock.held(account):
            self._shut_down(connection, direction, account)
            await self._interface.push(account)

    def _shut_down(self, connection: HostTcpConnection, direction: Direction, account: Account) -> None:
        self._interface.account.target = account
        if Direction.RECEIVE in direction:
            connection.end_receiving()
        if Direction.SEND in direction and connection.end_behind_sends():
            connection.end_sending()

    async def close(self, connection: HostTcpConnection, account: Account) -> None:
        """A FIN behind all sends that were posted."""
        has_all = connection.close()
        account.charge("syscall", "close")
        await account.settle()
        if has_all:
            async with connection.endpoint.lock.held(account):
                self._interface.account.target = account
                connection.finish_close()
                await self._interface.push(account)

    async def abort(self, connection: HostTcpConnection, account: Account) -> None:
        """A reset; all transfers fail."""
        connection.close()
        await connection.endpoint.abort(account)

    async def wait_for_rest(self, connection: HostTcpConnection, timeout_ps: int | None, account: Account) -> bool:
        """Sleep until the peer has acknowledged all that was sent and the end, or the connection is gone; False if that
        is not so in time."""
        kernel, late = self.kernel, False

        def expire() -> None:
            nonlocal late
            late = True
            connection.endpoint.wake()

        timer = None if timeout_ps is None else kernel.call_at(kernel.now + timeout_ps, expire)
        try:
            await connection.endpoint.sleep(lambda: late or connection.is_at_rest, account)
        finally:
            if timer is not None:
                timer.cancel()
        return connection.is_at_rest
