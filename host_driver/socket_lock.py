"""Who works on a connection in a system call: segments that come meanwhile wait, and that process carries them out.

A system call holds the lock while it works, not while it sleeps. A bottom half that brings a segment of a locked
connection leaves it on the connection's backlog; who unlocks takes it from there, does TCP's work for it, and sends
what it lets go, all on his own account.
"""

# Ref: Linux 2.4: net/ipv4/tcp_ipv4.c, tcp_v4_rcv(); include/net/sock.h, lock_sock(), sk_add_backlog(); net/core/sock.c,
#      __lock_sock(), __release_sock()

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType

from host_driver.account import Account
from host_driver.interface import NetworkInterface
from host_driver.tcp.connection import Connection
from host_driver.waiting import WaitQueue


class SocketLock:
    """The lock of one connection. `charge_waking` charges whoever unlocks for the waking of one that waits for it."""

    def __init__(self, interface: NetworkInterface, connection: Connection, charge_waking: Callable[[], None]) -> None:
        self._interface = interface
        self._connection = connection
        self._waiting = WaitQueue(charge_waking, f"the lock of {connection!r}")

    @property
    def is_free(self) -> bool:
        """Whether nobody holds it."""
        return self._connection.backlog is None

    def held(self, account: Account) -> Held:
        """A context manager: within it, the process that pays as `account` holds the lock."""
        return Held(self, account)

    async def acquire(self, account: Account) -> None:
        """Return with the lock; a process that has to wait for it sleeps."""
        await self._waiting.sleep(lambda: self.is_free, account)
        self._connection.backlog = deque()

    async def release(self, account: Account) -> None:
        """Carry out what has come meanwhile, and what comes while that is done; then unlock."""
        interface, connection = self._interface, self._connection
        try:
            while connection.backlog:
                self._carry_out_one(account)
                await interface.push(account)
        except GeneratorExit:  # of a run that is over, in which nothing follows
            raise
        except BaseException:
            self.drop(account)
            raise
        self.drop(account)

    def drop(self, account: Account) -> None:
        """Unlock at once, as the lock of a process that is killed: what it has left to do follows by itself."""
        interface, connection = self._interface, self._connection
        if connection.backlog:
            while connection.backlog:
                self._carry_out_one(account)
            interface.nic.port.kernel.spawn(interface.push(account), f"the backlog of {connection!r}")
        connection.backlog = None
        interface.account.target = account
        self._waiting.wake(only_one=True)

    def _carry_out_one(self, account: Account) -> None:
        self._interface.account.target = account
        self._interface.stack.carry_out_waiting(self._connection, self._interface.nic.port.now())


class Held:
    """A lock, as its holder sees it."""

    def __init__(self, lock: SocketLock, account: Account) -> None:
        self._lock = lock
        self._account = account
        self._holds = False

    async def __aenter__(self) -> Held:
        await self._lock.acquire(self._account)
        self._holds = True
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        if not self._holds:
            return
        self._holds = False
        if error is None or isinstance(error, Exception):
            await self._lock.release(self._account)
        elif not isinstance(error, GeneratorExit):  # of a run that is over, in which nothing follows
            self._lock.drop(self._account)

    async def sleep(self, until: Callable[[], bool],
                    sleep: Callable[[Callable[[], bool], Account], Awaitable[None]]) -> None:
        """Return when `until` holds, by `sleep(until, account)`, during which the lock is free."""
        while not until():
            self._holds = False
            await self._lock.release(self._account)
            await sleep(until, self._account)
            await self._lock.acquire(self._account)
            self._holds = True
