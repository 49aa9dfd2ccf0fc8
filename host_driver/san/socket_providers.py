"""The three designs of a TCP server node's socket provider (Rangarajan et al. 2002, Fig. 5), over the node's own TCP.

    OrdinarySockets   in user space, over the system's sockets: each call crosses into the kernel, and bytes are copied
    HostTcp           in user space, with buffers that kernel and provider share: calls cross, sent bytes are not copied
    HostTcp, charged by InKernel accounts: in the kernel: no crossing, no copy

Received bytes are copied once in all three, from packets into the buffer that the SAN adapter reads.
"""

from __future__ import annotations

from host_driver.account import Account
from host_driver.host_tcp import HostTcp, HostTcpConnection
from host_driver.kernel_sockets import Socket
from host_driver.memnet.provider import Transfer


class OrdinarySockets(HostTcp):
    """Sends and receives as `read` and `write` do: the caller sleeps, and the bytes are copied both ways."""

    async def send(self, connection: HostTcpConnection, transfer: Transfer, account: Account) -> None:
        """Return when the kernel has copied all of it. Raises NetworkError."""
        # Several parts are one call, as with writev().
        first, *others = (part.view() for part in transfer.parts)
        await Socket(connection.endpoint, account).write(b"".join([first, *others]) if others else first)
        transfer.is_taken = True
        transfer.done(transfer.length_bytes, None)

    async def receive(self, connection: HostTcpConnection, transfer: Transfer, account: Account) -> None:
        """Return with the bytes that were there first. Raises NetworkError."""
        socket = Socket(connection.endpoint, account)
        data = await socket.read(transfer.parts[0].length_bytes)
        transfer.parts[0].view()[: len(data)] = data
        transfer.is_taken = True
        transfer.done(len(data), None)

    async def close(self, connection: HostTcpConnection, account: Account) -> None:
        """A FIN behind all that was written; who sleeps in a receive is woken."""
        await connection.endpoint.close(account)


class InKernel:
    """An account of work in the kernel: what a system call costs beside copies and TCP is not charged."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def charge(self, category: str, item: str, count: int = 1) -> None:
        """Charge all but system calls; what is done under locks for a connection is done all the same."""
        if category != "syscall" or item == "smp_connection":
            self._account.charge(category, item, count)

    async def settle(self) -> None:
        """Wait as the account does."""
        await self._account.settle()


async def is_readable(connection: HostTcpConnection, account: Account) -> bool:
    """What a `poll` call says at once."""
    account.charge("syscall", "poll")
    await account.settle()
    return connection.endpoint.connection.readable


async def wait_until_readable(connection: HostTcpConnection, account: Account) -> None:
    """Sleep until a `poll` call would say yes, or the connection is closed here."""
    endpoint = connection.endpoint
    await endpoint.sleep(lambda: endpoint.connection.readable or endpoint.released or endpoint.ended, account)
