"""asyncio's streams in simulated time: ordinary sockets, whose bytes are copied, on top of MemNet's channels.

A program written for asyncio's streams runs here when its import is changed:

    from host_driver import streams as asyncio

It must run as a `host_driver.memnet.Application`, whose MemNet its sockets come from. There are `open_connection`,
`start_server`, `StreamReader`, `StreamWriter`, `Server`, `sleep`, `create_task`, `gather`, `wait_for`, `Event`,
and `get_running_loop().time()`. Times are simulated seconds.

This is the paper's `TCPS_Sock`: what is written is copied into the channel's send ring, what arrives is copied out of
its receive ring; the application registers nothing.
"""

from __future__ import annotations

import inspect
from asyncio import IncompleteReadError, LimitOverrunError
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable
from typing import Any, Generic, TypeVar

from host_driver import runtime
from host_driver.errors import NetworkError
from host_driver.memnet.api import MemNet
from host_driver.memnet.application import Application
from host_driver.memnet.application_end import ApplicationEnd
from host_driver.memnet.options import Option
from host_driver.memnet.provider import Direction
from host_driver.memnet.sockets import MemNetSocket
from host_driver.memnet.worker import Ended
from host_driver.runtime import Event

__all__ = [
    "CancelledError",
    "Event",
    "IncompleteReadError",
    "LimitOverrunError",
    "Server",
    "StreamReader",
    "StreamWriter",
    "Task",
    "TimeoutError",
    "create_task",
    "gather",
    "get_running_loop",
    "open_connection",
    "sleep",
    "start_server",
    "wait_for",
]

T = TypeVar("T")

CancelledError = runtime.Cancelled
TimeoutError = TimeoutError

PS_PER_SECOND = 10**12
DEFAULT_LIMIT_BYTES = 1 << 16
"""asyncio's: a line, and what is read ahead of the program."""
HIGH_WATER_BYTES = 1 << 16
"""asyncio's: `drain` waits while more than this was written and has found no place in the send ring."""
DEFAULT_BACKLOG = 100

Connected = Callable[["StreamReader", "StreamWriter"], Awaitable[None] | None]


class _Stream:
    """A socket, its end of the rings, and what was written beyond the credit; reader and writer share it."""

    def __init__(self, memnet: MemNet, socket: MemNetSocket, application: Application) -> None:
        self.memnet = memnet
        self.socket = socket
        self.application = application
        self.addresses = memnet.getsockname(socket), memnet.getpeername(socket)
        # asyncio does so for every TCP connection.
        memnet.set_option(socket, Option.TCP_NODELAY, 1)
        socket.is_stream = True
        self.end: ApplicationEnd = socket.end or memnet.use_rings(socket, memnet.channel_settings.receive_bytes)
        self.end.on_news = self.flush
        self.pending: deque[memoryview] = deque()
        self.pending_bytes = 0
        self.is_closed = False
        self.closed = Event(f"the end of {socket!r}")

    @property
    def error(self) -> NetworkError | None:
        """Why the connection failed, if it did."""
        worker = self.socket.worker
        return None if worker is None or self.is_closed else worker.error

    def write(self, data: memoryview) -> None:
        """Copy what there is credit for; keep the rest."""
        if self.is_closed or self.error is not None or not len(data):
            return
        if not self.pending:
            data = data[self.end.put(data) :]
        if len(data):
            self.pending.append(memoryview(bytes(data)))
            self.pending_bytes += len(data)

    def flush(self) -> None:
        """There may be credit again."""
        if self.error is not None:
            self.pending.clear()
            self.pending_bytes = 0
        while self.pending:
            data = self.pending[0]
            done = self.end.put(data)
            self.pending_bytes -= done
            if done < len(data):
                self.pending[0] = data[done:]
                return
            self.pending.popleft()

    async def sleep(self, until: Callable[[], bool]) -> None:
        """Return when `until` holds, or the connection was closed or has failed."""
        await self.end.sleep(lambda: until() or self.is_closed or self.error is not None)

    async def end_sending(self) -> None:
        """A FIN behind all that was written."""
        await self.sleep(lambda: not self.pending)
        if not self.is_closed and self.error is None:
            await self.memnet.shutdown(self.socket, Direction.SEND)

    async def close(self) -> None:
        """Close behind all that was written."""
        try:
            await self.end.sleep(lambda: not self.pending or self.error is not None)
            self.leave()
            await self.memnet.close(self.socket)
        except NetworkError:
            pass
        finally:
            self.closed.set()

    async def abort(self) -> None:
        """Drop it."""
        if not self.is_closed:
            self.leave()
            await self.memnet.abort(self.socket)
        self.closed.set()

    def leave(self) -> None:
        """Nobody looks at the channel any more, which will be another socket's."""
        self.is_closed = True
        self.end.on_news = None
        self.end.wake()


class StreamReader:
    """asyncio's `StreamReader`: bytes of a connection, as they come."""

    def __init__(self, stream: _Stream, limit_bytes: int) -> None:
        self._stream = stream
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()

    async def read(self, n: int = -1) -> bytes:
        """Up to `n` bytes as soon as there are any, b"" at the end; all up to the end for -1."""
        if n == 0:
            return b""
        if n < 0:
            while await self._more():
                pass
            return self._take(len(self._buffer))
        if not self._buffer:
            await self._more(n)
        return self._take(min(n, len(self._buffer)))

    async def readexactly(self, n: int) -> bytes:
        """`n` bytes. Raises IncompleteReadError, with those there are, if the peer ends before."""
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        while len(self._buffer) < n:
            if not await self._more(n):
                raise IncompleteReadError(self._take(len(self._buffer)), n)
        return self._take(n)

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """Bytes up to and with `separator`. Raises IncompleteReadError if the peer ends before, LimitOverrunError if it
        does not come within the limit; the bytes then stay."""
        if not separator:
            raise ValueError("Separator should be at least one-byte string")
        searched = 0
        while (at := self._buffer.find(separator, searched)) < 0:
            searched = max(0, len(self._buffer) + 1 - len(separator))
            if searched > self._limit_bytes:
                raise LimitOverrunError("Separator is not found, and chunk exceed the limit", searched)
            if not await self._more():
                raise IncompleteReadError(self._take(len(self._buffer)), None)
        if at > self._limit_bytes:
            raise LimitOverrunError("Separator is found, but chunk is longer than limit", at)
        return self._take(at + len(separator))

    async def readline(self) -> bytes:
        """A line with its end; at the end of all, what there is. Raises ValueError for a line beyond the limit."""
        try:
            return await self.readuntil(b"\n")
        except IncompleteReadError as error:
            return error.partial
        except LimitOverrunError as error:
            if self._buffer.startswith(b"\n", error.consumed):
                del self._buffer[: error.consumed + 1]
            else:
                self._buffer.clear()
            raise ValueError(error.args[0]) from None

    def at_eof(self) -> bool:
        """Whether the peer has closed and all was read."""
        stream = self._stream
        return not self._buffer and (stream.is_closed or (
            stream.end.ended is not Ended.NOT and not stream.end.available_bytes))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self.readline():
            yield line

    async def _more(self, wanted_bytes: int | None = None) -> int:
        """Wait for bytes, and take as many as to have `wanted_bytes`, or all there are; 0 at the end."""
        stream = self._stream
        end = stream.end
        if stream.is_closed:
            return 0
        await stream.sleep(lambda: end.available_bytes > 0 or end.ended is not Ended.NOT)
        if stream.is_closed:
            return 0
        most = end.available_bytes
        piece = bytearray(most if wanted_bytes is None else min(most, wanted_bytes - len(self._buffer)))
        got = end.take(memoryview(piece))
        if not got and stream.error is not None:
            raise stream.error
        self._buffer += piece[:got]
        await stream.memnet.account.settle()
        return got

    def _take(self, length: int) -> bytes:
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return data


class StreamWriter:
    """asyncio's `StreamWriter`. `transport` is itself: it has `abort` and `get_write_buffer_size` too."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._is_closing = False

    @property
    def transport(self) -> StreamWriter:
        """For `abort` and what else programs ask of it."""
        return self

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes; those that find no place at once are kept. `drain` waits until there are not too many."""
        self._stream.write(memoryview(data))

    def writelines(self, data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send each."""
        for part in data:
            self.write(part)

    async def drain(self) -> None:
        """Wait until most of what was written found a place. Raises what the connection failed with."""
        stream = self._stream
        await stream.sleep(lambda: stream.pending_bytes <= HIGH_WATER_BYTES)
        if stream.error is not None:
            raise stream.error
        if stream.is_closed:
            raise ConnectionResetError("Connection lost")

    def can_write_eof(self) -> bool:
        """Yes."""
        return True

    def write_eof(self) -> None:
        """Send no more, behind what was written; reading goes on."""
        self._stream.application.spawn(self._stream.end_sending(), f"the end of sending on {self._stream.socket!r}")

    def close(self) -> None:
        """Close, behind what was written."""
        if not self._is_closing:
            self._is_closing = True
            self._stream.application.spawn(self._stream.close(), f"closing {self._stream.socket!r}")

    def is_closing(self) -> bool:
        """Whether `close` was called, or the connection has failed."""
        return self._is_closing or self._stream.error is not None

    async def wait_closed(self) -> None:
        """Wait until it is closed."""
        await self._stream.closed.wait()

    def abort(self) -> None:
        """Drop the connection; what was written and not sent is lost."""
        self._is_closing = True
        self._stream.application.spawn(self._stream.abort(), f"dropping {self._stream.socket!r}")

    def get_write_buffer_size(self) -> int:
        """Bytes written that found no place yet."""
        return self._stream.pending_bytes

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`sockname`, `peername` or `socket` (MemNet's)."""
        sockname, peername = self._stream.addresses
        return {"sockname": sockname, "peername": peername, "socket": self._stream.socket}.get(name, default)


class Server:
    """asyncio's `Server`. Made by `start_server`."""

    def __init__(self, memnet: MemNet, listening: MemNetSocket, connected: Connected, limit_bytes: int,
                 application: Application) -> None:
        self._memnet = memnet
        self._listening = listening
        self._connected = connected
        self._limit_bytes = limit_bytes
        self._application = application
        self._closed = Event(f"the end of {listening!r}")
        self._task: runtime.Task[None] | None = application.spawn(self._accept(), f"accepting on {listening!r}")

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.close()
        await self.wait_closed()

    @property
    def sockets(self) -> tuple[_ListeningSocket, ...]:
        """What it listens with, for `getsockname`."""
        return () if self._task is None else (_ListeningSocket(self._memnet, self._listening),)

    def is_serving(self) -> bool:
        """Whether it accepts."""
        return self._task is not None

    def close(self) -> None:
        """Accept no more; connections go on."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
            self._application.spawn(self._stop(), f"the end of {self._listening!r}")

    async def wait_closed(self) -> None:
        """Wait until the port is given back."""
        await self._closed.wait()

    async def serve_forever(self) -> None:
        """Wait until it is closed."""
        try:
            await self._closed.wait()
        finally:
            self.close()

    async def _stop(self) -> None:
        await self._memnet.close(self._listening)
        self._closed.set()

    async def _accept(self) -> None:
        while True:
            socket = await self._memnet.accept(self._listening)
            self._application.spawn(self._serve(socket), f"serving {socket!r}")

    async def _serve(self, socket: MemNetSocket) -> None:
        stream = _Stream(self._memnet, socket, self._application)
        try:
            answer = self._connected(StreamReader(stream, self._limit_bytes), StreamWriter(stream))
            if inspect.isawaitable(answer):
                await answer
        except Exception:
            # The client hears of it; the application counts it.
            await stream.abort()
            raise


class _ListeningSocket:
    """What programs ask a server's socket for."""

    def __init__(self, memnet: MemNet, listening: MemNetSocket) -> None:
        self._memnet = memnet
        self._listening = listening

    def getsockname(self) -> tuple[str, int]:
        """Address and port."""
        assert self._listening.bound_port is not None
        return self._memnet.own_address, self._listening.bound_port


async def open_connection(host: str, port: int, *, limit: int = DEFAULT_LIMIT_BYTES
                          ) -> tuple[StreamReader, StreamWriter]:
    """Connect. Raises ConnectionRefusedError, TimeoutError or ConnectionResetError, all NetworkErrors."""
    application = Application.current()
    memnet = application.memnet
    stream = _Stream(memnet, await memnet.create_connection(host, int(port)), application)
    return StreamReader(stream, limit), StreamWriter(stream)


async def start_server(client_connected_cb: Connected, host: str | None = None, port: int = 0, *,
                       limit: int = DEFAULT_LIMIT_BYTES, backlog: int = DEFAULT_BACKLOG) -> Server:
    """Listen; `client_connected_cb(reader, writer)`, a function or a coroutine, is called for each connection. One that
    raises loses its connection, and is counted; the others go on. Raises AddressInUse, AddressNotAvailable."""
    application = Application.current()
    memnet = application.memnet
    listening = memnet.socket()
    memnet.set_option(listening, Option.SO_REUSEADDR, 1)
    try:
        memnet.bind(listening, int(port), host or None)
        memnet.listen(listening, backlog)
    except NetworkError:
        await memnet.close(listening)
        raise
    return Server(memnet, listening, client_connected_cb, limit, application)


# ---------------------------------------------------------------------------------------------- tasks and time


class Task(Generic[T]):
    """asyncio's `Task`, as far as programs use it."""

    def __init__(self, task: runtime.Task[T]) -> None:
        self._task = task

    def __await__(self) -> Generator[runtime.Future[T], None, T]:
        return self._task.__await__()

    def done(self) -> bool:
        """Whether it has ended."""
        return self._task.done

    def result(self) -> T:
        """What it returned; raises what it raised."""
        return self._task.result()

    def cancel(self) -> None:
        """Throw CancelledError into it."""
        self._task.cancel()


def create_task(coroutine: Coroutine[Any, Any, T], *, name: str | None = None) -> Task[T]:
    """Start a coroutine beside this one; it ends with the application."""
    return Task(Application.current().spawn(coroutine, name or str(getattr(coroutine, "__qualname__", "task"))))


async def sleep(seconds: float, result: Any = None) -> Any:
    """Return after some simulated time."""
    memnet = Application.current().memnet
    await memnet.account.settle()
    await memnet.server.provider.kernel.sleep(round(seconds * PS_PER_SECOND))
    return result


async def gather(*awaitables: Awaitable[Any], return_exceptions: bool = False) -> list[Any]:
    """Run all beside each other; their results in order. Raises the first exception, in the order given."""
    tasks = [create_task(a) if inspect.iscoroutine(a) else a for a in awaitables]
    results: list[Any] = []
    for task in tasks:
        try:
            results.append(await task)
        except Exception as error:
            if not return_exceptions:
                raise
            results.append(error)
    return results


async def wait_for(awaitable: Awaitable[T], timeout: float | None) -> T:
    """The awaitable's result. Raises TimeoutError, and cancels it, if it takes longer than `timeout` seconds."""
    application = Application.current()
    if timeout is None:
        return await awaitable

    async def run() -> T:
        return await awaitable

    kernel = application.kernel
    task = application.spawn(run(), "wait_for")
    late: runtime.Future[None] = runtime.Future("wait_for's timeout")
    timer = kernel.call_at(kernel.now + round(timeout * PS_PER_SECOND), lambda: late.set_result(None))
    try:
        await runtime.first_of(task, late)
    finally:
        timer.cancel()
        was_done = task.done
        task.cancel()
    if was_done:
        return task.result()
    try:
        return await task
    except CancelledError:
        raise TimeoutError(f"not done after {timeout} s") from None


class Loop:
    """asyncio's event loop, as far as programs ask it for the time."""

    def __init__(self, kernel: runtime.Kernel) -> None:
        self._kernel = kernel

    def time(self) -> float:
        """Simulated seconds."""
        return self._kernel.now / PS_PER_SECOND


def get_running_loop() -> Loop:
    """For its `time`."""
    return Loop(Application.current().kernel)
