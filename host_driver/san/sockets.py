"""Ordinary sockets for a program that registers nothing, over MemNet on a SAN: what the paper calls TCPS_Sock.

The library copies: what is written goes through registered memory of the socket's process, piece by piece, and `write`
returns when the TCP server's TCP has all of it; what is read is copied out.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress

from host_driver.errors import NetworkError
from host_driver.memnet import Direction, Job, MemNet, MemNetSocket, MemoryRegion

PIECE_BYTES = 8192
PIECES = 4
READ_BYTES = 4096


class SanSocket:
    """A connected socket of one process."""

    def __init__(self, sockets: SanSockets, socket: MemNetSocket) -> None:
        self._sockets = sockets
        self._socket = socket

    async def read(self, max_bytes: int) -> bytes:
        """Up to `max_bytes` as soon as there are any; b"" when the peer has closed. Raises NetworkError."""
        return await self._sockets.read(self._socket, max_bytes)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Return when TCP has all of `data`. Raises NetworkError."""
        await self._sockets.write(self._socket, memoryview(data))

    async def shutdown(self) -> None:
        """Send what was written, then a FIN; reading goes on."""
        await self._sockets.memnet.shutdown(self._socket, Direction.SEND)

    async def close(self) -> None:
        """Send what was written, then a FIN."""
        await self._sockets.memnet.close(self._socket)


class SanSockets:
    """The sockets of one process over its MemNet; `open` makes it. One call at a time."""

    def __init__(self, memnet: MemNet, incoming: MemoryRegion, outgoing: MemoryRegion) -> None:
        self.memnet = memnet
        self._incoming = incoming
        self._outgoing = outgoing
        self._free = deque(range(0, PIECES * PIECE_BYTES, PIECE_BYTES))
        self._sending: deque[tuple[Job, int]] = deque()

    @classmethod
    async def open(cls, memnet: MemNet) -> SanSockets:
        """Make channels, and register the memory that all is copied through. Raises MemoryError, ChannelRefused."""
        await memnet.start()
        return cls(memnet, await memnet.register_mem(READ_BYTES), await memnet.register_mem(PIECES * PIECE_BYTES))

    def listen(self, port: int, backlog: int = 128) -> MemNetSocket:
        """Listen on a port; other processes may accept on it too. Raises AddressInUse."""
        return self.memnet.listen(port, backlog)

    async def accept(self, listening: MemNetSocket) -> SanSocket:
        """Wait for the next connection."""
        return SanSocket(self, await self.memnet.accept(listening))

    async def read(self, socket: MemNetSocket, max_bytes: int) -> bytes:
        """The next bytes, copied out."""
        length = await self.memnet.sync_recv(socket, self._incoming, 0, min(max_bytes, READ_BYTES))
        self.memnet.account.charge("copy", "kernel_to_user_byte", length)
        return bytes(self._incoming.view[:length])

    async def write(self, socket: MemNetSocket, data: memoryview) -> None:
        """Copy and post piece by piece, so that the adapter reads one while the next is copied; wait for the last."""
        memnet = self.memnet
        while True:
            piece, data = data[:PIECE_BYTES], data[PIECE_BYTES:]
            offset = await self._take_piece()
            memnet.account.charge("copy", "user_to_kernel_byte", len(piece))
            self._outgoing.view[offset : offset + len(piece)] = piece
            await memnet.account.settle()
            if not len(data):
                try:
                    await memnet.sync_send(socket, self._outgoing, offset, len(piece))
                finally:
                    self._free.append(offset)
                return
            self._sending.append((await memnet.async_send(socket, self._outgoing, offset, len(piece)), offset))

    async def _take_piece(self) -> int:
        """Offset of a piece of memory that the adapter does not read any more."""
        sending = self._sending
        while sending and (sending[0][0].is_done or not self._free):
            job, offset = sending.popleft()
            with suppress(NetworkError):  # the next call on the socket says so
                await self.memnet.job_wait(job)
            self._free.append(offset)
        return self._free.popleft()
