"""Connections and listening ports as processes wait for them: who sleeps, who is woken, what that costs.

What kernel sockets and MemNet over the host's TCP share. A process sleeps in `WaitQueue.sleep`; whoever changes what it
waits for (mostly the softirq) is charged the waking, the process the switch back to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from host_driver.account import Account
from host_driver.errors import network_error
from host_driver.interface import NetworkInterface
from host_driver.runtime import Future
from host_driver.tcp.connection import Connection, State
from host_driver.tcp.listener import Listener


class WaitQueue:
    """Processes that sleep until something holds, the longest sleeper first."""

    def __init__(self, interface: NetworkInterface, name: str) -> None:
        self._interface = interface
        self._name = name
        self._sleepers: deque[tuple[Callable[[], bool], Future[None]]] = deque()

    async def sleep(self, until: Callable[[], bool], account: Account) -> None:
        """Return when `until` holds; a process that slept pays the switch back to it."""
        while not until():
            future: Future[None] = Future(self._name)
            self._sleepers.append((until, future))
            await future
            account.charge("context_switch", "switch")
            await account.settle()

    def wake(self, *, only_one: bool = False) -> None:
        """Wake those whose condition holds now, on behalf of whoever runs the stack."""
        still_asleep: deque[tuple[Callable[[], bool], Future[None]]] = deque()
        woken = 0
        for until, future in self._sleepers:
            if (only_one and woken) or not until():
                still_asleep.append((until, future))
                continue
            woken += 1
            self._interface.account.charge("context_switch", "wake")
            future.set_result(None)
        self._sleepers = still_asleep


class Listening:
    """A port that processes accept connections on; several may wait, and each connection wakes one."""

    def __init__(self, interface: NetworkInterface, port: int, backlog: int) -> None:
        self.interface = interface
        self.listener: Listener = interface.stack.listen(port, backlog)
        self._waiting = WaitQueue(interface, f"a connection to port {port}")
        self.listener.on_event = lambda _listener: self._waiting.wake(only_one=True)

    async def accept(self, account: Account) -> Endpoint:
        """The next connection that completed its handshake."""
        account.charge("syscall", "accept")
        await account.settle()
        while True:
            await self._waiting.sleep(lambda: self.listener.acceptable, account)
            connection = self.listener.accept()
            # Another process may have been quicker while this one was on its way back.
            if connection is not None:
                break
        if self.interface.multiprocessor:
            account.charge("syscall", "smp_connection")
        await account.settle()
        return Endpoint(self.interface, connection)

    async def close(self, account: Account) -> None:
        """Stop listening; connections that nobody accepted are aborted."""
        account.charge("syscall", "close")
        self.interface.account.target = account
        self.listener.close(self.interface.nic.port.now())
        await self.interface.push(account)


class Endpoint:
    """A connection with its sleepers.

    `on_change`, if set, is called before they are woken, and must be cheap. `closed_here`: `close` was called.
    """

    def __init__(self, interface: NetworkInterface, connection: Connection) -> None:
        self.interface = interface
        self.connection = connection
        self.on_change: Callable[[], None] | None = None
        self.closed_here = False
        self._waiting = WaitQueue(interface, f"connection {connection!r}")
        connection.on_event = self._changed

    @classmethod
    async def connect(cls, interface: NetworkInterface, ip: IPv4Address | IPv6Address | str, port: int,
                      account: Account) -> Endpoint:
        """Open a connection and wait until it is established. Raises NetworkError if it is not to be."""
        account.charge("syscall", "connect")
        if interface.multiprocessor:
            account.charge("syscall", "smp_connection")
        await account.settle()
        interface.account.target = account
        endpoint = cls(interface, interface.stack.connect(ip, port, interface.nic.port.now()))
        await interface.push(account)
        await endpoint.sleep(lambda: endpoint.connection.established or endpoint.ended, account)
        if not endpoint.connection.established:
            raise network_error(endpoint.connection.error, f"connect to {ip}:{port}")
        return endpoint

    @property
    def ended(self) -> bool:
        """Whether nothing will happen on the connection any more."""
        return self.connection.state is State.CLOSED

    def _changed(self, _connection: Connection) -> None:
        if self.on_change is not None:
            self.on_change()
        self._waiting.wake()

    async def sleep(self, until: Callable[[], bool], account: Account) -> None:
        """Return when `until` holds."""
        await self._waiting.sleep(until, account)

    async def close(self, account: Account) -> None:
        """Send a FIN behind all that was queued; returns without waiting for the peer."""
        account.charge("syscall", "close")
        await account.settle()
        self.closed_here = True
        self.interface.account.target = account
        self.connection.close(self.interface.nic.port.now())
        await self.interface.push(account)

    async def abort(self, account: Account) -> None:
        """Drop the connection; the peer gets a reset."""
        account.charge("syscall", "close")
        await account.settle()
        self.interface.account.target = account
        self.connection.abort(self.interface.nic.port.now())
        await self.interface.push(account)
