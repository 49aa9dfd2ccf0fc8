"""MemNet over TCP on processors of the host that are dedicated to it: sends go through a queue in shared memory.

A process leaves a send, or the end of sending, to the bottom half of the processor that has the connection, and goes on
at once, without a system call. That processor copies the bytes into kernel buffers, unless the device can read
registered memory, and does all of TCP's work. Where a policy has kept a connection from them, the process itself does.
"""

from __future__ import annotations

from host_driver.account import Account
from host_driver.endpoint import Endpoint
from host_driver.errors import NetworkError
from host_driver.host_tcp import HostTcp, HostTcpConnection
from host_driver.interface import NetworkInterface
from host_driver.memnet.provider import Direction, Transfer
from host_driver.softirq import leave_job
from host_driver.tcp.buffers import Chunk


class CopiedSends(HostTcpConnection):
    """A connection whose sends are copied into kernel buffers, at most a segment's worth at a time; a send is over when
    it is copied."""

    def _queue_next_part(self) -> None:
        send, connection = self._sends[0], self._connection
        part = send.transfer.parts[send.next_part]
        begin = send.copied_bytes
        data = bytes(part.view()[begin : begin + connection.mss])
        self.endpoint.interface.account.charge("copy", "user_to_kernel_byte", len(data))
        connection.send(Chunk(data))
        send.copied_bytes += len(data)
        if send.copied_bytes < part.length_bytes:
            return
        send.copied_bytes = 0
        send.next_part += 1
        send.unread_parts -= 1
        if send.next_part == len(send.transfer.parts):
            self._sends.popleft()
            self._end_sends()

    def post_send(self, transfer: Transfer) -> None:
        """Queue a send, of which nothing is copied before `carry_on_sending`. Raises NetworkError."""
        self._take_send(transfer)

    def carry_on_sending(self) -> bool:
        """Copy one piece more; whether there was one, and room for it."""
        if not self._sends or self._connection.send_space <= 0:
            return False
        self._queue_next_part()
        return True


class QueuedTcp(HostTcp):
    """Implements `memnet.Provider`. `copies`: sends are copied, since the device cannot read registered memory."""

    def __init__(self, interface: NetworkInterface, *, copies: bool) -> None:
        super().__init__(interface)
        self._copies = copies

    def _connection(self, endpoint: Endpoint) -> HostTcpConnection:
        return CopiedSends(endpoint) if self._copies else HostTcpConnection(endpoint)

    async def send(self, connection: HostTcpConnection, transfer: Transfer, account: Account) -> None:
        """Leave it to the server of the connection; without one it is a system call."""
        server = self._interface.server_of(connection.endpoint.connection)
        if server is None:
            account.charge("syscall", "write")
            await account.settle()
            async with connection.endpoint.lock.held(account):
                await self._send(connection, transfer, account)
            return

        async def job(account: Account) -> None:
            try:
                await self._send(connection, transfer, account)
            except NetworkError as error:
                transfer.done(0, error)

        def taken() -> None:
            transfer.is_taken = True

        await leave_job(server, job, account, taken)

    async def _send(self, connection: HostTcpConnection, transfer: Transfer, account: Account) -> None:
        """TCP takes the send, piece by piece, so that the wire works while the processor copies."""
        interface = self._interface
        interface.account.target = account
        connection.post_send(transfer)
        while connection.carry_on_sending():
            await interface.push(account)
            interface.account.target = account
        await interface.push(account)

    async def shutdown(self, connection: HostTcpConnection, direction: Direction, account: Account) -> None:
        """A FIN behind all sends that were left to the server; or no more receives."""
        server = self._interface.server_of(connection.endpoint.connection)
        if server is None:
            await super().shutdown(connection, direction, account)
            return

        async def job(account: Account) -> None:
            self._shut_down(connection, direction, account)
            await self._interface.push(account)

        account.charge("syscall", "close")
        await leave_job(server, job, account)

    async def close(self, connection: HostTcpConnection, account: Account) -> None:
        """A FIN behind all sends that were left to the server."""
        server = self._interface.server_of(connection.endpoint.connection)
        if server is None:
            await super().close(connection, account)
            return

        async def job(account: Account) -> None:
            self._interface.account.target = account
            if connection.close():
                connection.finish_close()
            await self._interface.push(account)

        account.charge("syscall", "close")
        await leave_job(server, job, account)
