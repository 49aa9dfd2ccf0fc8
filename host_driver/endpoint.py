"""Connections and listening ports as processes wait for them: who sleeps, who is woken, what that costs.

What kernel sockets and MemNet over the host's TCP share. A process that is killed in one of these calls leaves nothing
behind: no half-open connection, and nobody who sleeps on because the wrong one was woken.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from host_driver.account import Account
from host_driver.errors import network_error
from host_driver.interface import NetworkInterface
from host_driver.runtime import Cancelled
from host_driver.socket_lock import SocketLock
from host_driver.softirq import Softirq, leave_job
from host_driver.tcp.connection import Connection
from host_driver.tcp.listener import Listener
from host_driver.tcp.states import State
from host_driver.waiting import WaitQueue


def charge_waking(interface: NetworkInterface) -> None:
    """The waking of a process is work of whoever runs the stack."""
    interface.account.charge("context_switch", "wake")


class Listening:
    """A port that processes accept connections on; several may wait, and each connection wakes one."""

    def __init__(self, interface: NetworkInterface, port: int, backlog: int) -> None:
        self.interface = interface
        self.listener: Listener = interface.stack.listen(port, backlog)
        self._waiting = WaitQueue(lambda: charge_waking(interface), f"a connection to port {port}")
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
        endpoint = Endpoint(self.interface, connection)
        if self.interface.multiprocessor is not None:
            self.interface.multiprocessor.connect(account)
        try:
            await account.settle()
        except (Exception, Cancelled):
            endpoint.drop(account)
            raise
        return endpoint

    async def close(self, account: Account) -> None:
        """Stop listening; connections that nobody accepted are aborted."""
        account.charge("syscall", "close")
        self.interface.account.target = account
        self.listener.close(self.interface.nic.port.now())
        await self.interface.push(account)


class Endpoint:
    """A connection with its sleepers.

    `on_change`, if set, is called before they are woken, and must be cheap. `closed_here`: `shutdown` or `close` was
    called; `released`: `close` was. `lock` is held by system calls that work on it.
    """

    def __init__(self, interface: NetworkInterface, connection: Connection) -> None:
        self.interface = interface
        self.connection = connection
        self.on_change: Callable[[], None] | None = None
        self.closed_here = False
        self.released = False
        self.left_bytes = 0
        """Copied, and left to a bottom half that has not yet given them to TCP."""
        self.lock = SocketLock(interface, connection, lambda: charge_waking(interface))
        self._waiting = WaitQueue(lambda: charge_waking(interface), f"connection {connection!r}")
        connection.on_event = self._changed

    @classmethod
    async def connect(cls, interface: NetworkInterface, ip: IPv4Address | IPv6Address | str, port: int,
                      account: Account, local_port: int | None = None,
                      prepare: Callable[[Connection], None] = lambda _connection: None) -> Endpoint:
        """Open a connection and wait until it is established; `prepare` is called before its SYN leaves.

        Raises NetworkError if it is not to be.
        """
        account.charge("syscall", "connect")
        if interface.multiprocessor is not None:
            interface.multiprocessor.connect(account)
        await account.settle()
        interface.account.target = account
        endpoint = cls(interface, interface.stack.connect(ip, port, interface.nic.port.now(), local_port))
        try:
            prepare(endpoint.connection)
            await interface.push(account)
            await endpoint.sleep(lambda: endpoint.connection.established or endpoint.ended, account)
        except (Exception, Cancelled):
            endpoint.drop(account)
            raise
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

    def wake(self) -> None:
        """Wake those whose condition holds now."""
        self._waiting.wake()

    async def shutdown(self, account: Account) -> None:
        """Send a FIN behind all that was queued; receiving goes on. Returns without waiting for the peer."""
        account.charge("syscall", "close")
        await account.settle()
        async with self.lock.held(account):
            self.closed_here = True
            self.interface.account.target = account
            self.connection.close(self.interface.nic.port.now())
            await self.interface.push(account)

    async def close(self, account: Account) -> None:
        """The same, and nobody will read any more: what was not read, or comes later, is answered with a reset."""
        account.charge("syscall", "close")
        await account.settle()
        async with self.lock.held(account):
            self.closed_here = self.released = True
            self.interface.account.target = account
            self.connection.release(self.interface.nic.port.now())
            self.wake()
            await self.interface.push(account)

    async def end_behind(self, softirq: Softirq, account: Account, *, release: bool) -> None:
        """`close`, or without `release` `shutdown`, by a bottom half, behind the sends that were left to it."""
        async def job(account: Account) -> None:
            self.interface.account.target = account
            end = self.connection.release if release else self.connection.close
            end(self.interface.nic.port.now())
            await self.interface.push(account)

        account.charge("syscall", "close")
        self.closed_here = True
        self.released |= release
        self.wake()
        await leave_job(softirq, job, account)

    async def abort(self, account: Account) -> None:
        """Drop the connection; the peer gets a reset."""
        account.charge("syscall", "close")
        try:
            await account.settle()
        except Cancelled:
            self.drop(account)
            raise
        async with self.lock.held(account):
            self.interface.account.target = account
            self.connection.abort(self.interface.nic.port.now())
            await self.interface.push(account)

    def drop(self, account: Account) -> None:
        """Drop the connection of a process that was killed: at once, the reset follows by itself."""
        interface = self.interface
        interface.account.target = account
        self.connection.abort(interface.nic.port.now())
        interface.nic.port.kernel.spawn(interface.push(account), f"the end of {self.connection!r}")
