"""MemNet over the host's own TCP: the first provider.

A send is queued as a reference to registered memory, which the device reads when it sends and, if need be, sends
again; its job is done when the peer has acknowledged all of it and no send that reads it is left on the ring. Received
bytes are copied into the region by whoever brings them, mostly the softirq.
"""

from __future__ import annotations

from collections import deque
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from host_driver.account import Account
from host_driver.endpoint import Endpoint, Listening
from host_driver.errors import network_error
from host_driver.interface import NetworkInterface
from host_driver.memnet import Done, Range
from host_driver.nic import MemoryKey
from host_driver.port import HostMemory
from host_driver.tcp.buffers import Chunk
from nic_model.contract import RAW_CHANNEL, KeyRight


class _Posted(NamedTuple):
    """A job that waits for its turn."""

    part: Range
    done: Done


class HostTcpConnection:
    """One connection with its posted jobs."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._connection = endpoint.connection
        self._sends: deque[_Posted] = deque()
        self._receives: deque[_Posted] = deque()
        self._close_behind_sends = False
        endpoint.on_change = self._pump

    def __repr__(self) -> str:
        return repr(self._connection)

    def post_send(self, posted: _Posted) -> None:
        """Queue a send. Raises NetworkError on a connection that takes none."""
        if self.endpoint.ended or self.endpoint.closed_here or self._close_behind_sends:
            raise network_error(self._connection.error, f"send on {self!r}")
        self._sends.append(posted)
        self._pump()

    def post_receive(self, posted: _Posted) -> None:
        """Queue a receive."""
        self._receives.append(posted)
        self._pump()

    def close_behind_sends(self) -> bool:
        """Close as soon as all posted sends are with TCP; whether that is now."""
        self._close_behind_sends = True
        return not self._sends

    def _pump(self) -> None:
        """Carry on with what was posted, as far as the connection allows now."""
        connection = self._connection
        while self._sends and connection.send_space > 0:
            self._queue(self._sends.popleft())
        if self._close_behind_sends and not self._sends and not self.endpoint.closed_here:
            self.endpoint.closed_here = True
            connection.close(self.endpoint.interface.nic.port.now())
        while self._receives and connection.recv_available:
            self._store(self._receives.popleft())
        if self._receives and connection.peer_closed:
            self._end_receives(None)
        if self.endpoint.ended:
            while self._sends:
                self._sends.popleft().done(0, network_error(connection.error, f"send on {self!r}"))
            self._end_receives(connection.error)

    def _queue(self, posted: _Posted) -> None:
        """Hand a send to TCP: from now on it and the device read the memory when they need it."""
        part, connection, interface = posted.part, self._connection, self.endpoint.interface
        chunk = Chunk(part.view(), key=part.key, offset=part.offset)
        end = connection.queued_bytes + len(chunk)

        def unread() -> None:
            if connection.acked_bytes >= end:
                posted.done(part.length_bytes, None)
            else:
                posted.done(0, network_error(connection.error, f"send on {self!r}"))

        chunk.release = lambda: interface.when_unread(connection, chunk, unread)
        connection.send(chunk)

    def _store(self, posted: _Posted) -> None:
        data = self._connection.recv(posted.part.length_bytes)
        posted.part.view()[: len(data)] = data
        self.endpoint.interface.account.charge("copy", "kernel_to_user_byte", len(data))
        posted.done(len(data), None)

    def _end_receives(self, error: OSError | None) -> None:
        """No more bytes will come: 0 bytes for all who wait, or the error."""
        while self._receives:
            failure = network_error(error, f"receive on {self!r}") if error is not None else None
            self._receives.popleft().done(0, failure)


class HostTcp:
    """Implements `memnet.Provider` over a network interface. Attribute: `memory`, where regions are allocated."""

    def __init__(self, interface: NetworkInterface) -> None:
        self.memory: HostMemory = interface.nic.port.memory
        self._interface = interface

    async def register(self, address: int, length_bytes: int, account: Account) -> MemoryKey:
        """A key with both rights. Raises MemoryError when the device has none left."""
        key = self._interface.nic.register_memory(address, length_bytes, KeyRight.READ | KeyRight.WRITE, RAW_CHANNEL,
                                                  account)
        await account.settle()
        return key

    async def deregister(self, key: MemoryKey, account: Account) -> None:
        """Take a key back; on return the device neither reads nor writes its memory."""
        await self._interface.nic.deregister_memory(key)
        await account.settle()

    def listen(self, port: int, backlog: int) -> Listening:
        """Listen on a port. Raises ValueError if something already does."""
        return Listening(self._interface, port, backlog)

    async def accept(self, listening: Listening, account: Account) -> HostTcpConnection:
        """The next connection."""
        return HostTcpConnection(await listening.accept(account))

    async def connect(self, ip: IPv4Address | IPv6Address | str, port: int, account: Account) -> HostTcpConnection:
        """An established connection. Raises NetworkError."""
        return HostTcpConnection(await Endpoint.connect(self._interface, ip, port, account))

    async def send(self, connection: HostTcpConnection, part: Range, done: Done, account: Account) -> None:
        """A system call: TCP queues the bytes by reference."""
        account.charge("syscall", "write")
        await account.settle()
        self._interface.account.target = account
        connection.post_send(_Posted(part, done))
        await self._interface.push(account)

    async def receive(self, connection: HostTcpConnection, part: Range, done: Done, account: Account) -> None:
        """A system call: bytes that are there are copied at once, others when they come."""
        account.charge("syscall", "read")
        await account.settle()
        self._interface.account.target = account
        connection.post_receive(_Posted(part, done))
        await self._interface.push(account)

    def job_waking(self) -> None:
        """The waking of a process is work of whoever runs the stack."""
        self._interface.account.charge("context_switch", "wake")

    async def close(self, connection: HostTcpConnection, account: Account) -> None:
        """A FIN behind all sends that were posted."""
        if connection.close_behind_sends():
            await connection.endpoint.close(account)
        else:
            account.charge("syscall", "close")
            await account.settle()
