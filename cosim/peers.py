"""Simulated clients: each a machine of its own with a TCP stack, a link, and a loop of one request at a time.

Their processor time costs nothing. Every byte of a response is compared with the file's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import NoReturn

from cosim import http
from cosim.wire import Wire
from cosim.workload import Request
from host_driver.account import NullAccount
from host_driver.runtime import Event, Kernel, Timer
from host_driver.tcp import LINUX24, Chunk, Connection, Stack, State

RECEIVE_BYTES = 1 << 20
"""Most that a client takes from its stack at once."""

LOCALLY_ADMINISTERED = 0x02
FIRST_CLIENT_IP = IPv4Address("10.1.0.1")


class VerificationError(RuntimeError):
    """A client received something else than the file: names request, offset and simulated time."""


def client_addresses(number: int) -> tuple[bytes, IPv4Address]:
    """MAC and IP address of client `number`, from 0."""
    return bytes([LOCALLY_ADMINISTERED, 0, 0, 1]) + number.to_bytes(2, "big"), FIRST_CLIENT_IP + number


class Client:
    """One client machine.

    Parameters: its `number`; the `server`'s addresses; `wire`, to which it attaches itself; `rng`, for its sequence
    numbers and ports.
    """

    def __init__(self, kernel: Kernel, wire: Wire, *, number: int, server_mac: bytes, server_ip: IPv4Address,
                 server_port: int, rng: random.Random) -> None:
        self._kernel = kernel
        self._server = (server_ip, server_port)
        mac, ip = client_addresses(number)
        self._stack = Stack(mac=mac, ip=ip, profile=LINUX24, account=NullAccount(), rng=rng)
        self._stack.add_neighbour(server_ip, server_mac)
        self._link = wire.attach(mac, self._receive)
        self._timer: Timer | None = None

    async def run(self, requests: Iterator[tuple[int, Request]], done: Callable[[Request, int], None],
                  due_ps: Callable[[int], int] = lambda _index: 0) -> None:
        """Take requests until there are none left, each not before it is due; `done(request, latency_ps)` after each.
        Raises VerificationError."""
        for index, request in requests:
            await self._kernel.sleep_until(max(due_ps(index), self._kernel.now))
            done(request, await self.fetch(index, request))

    async def fetch(self, index: int, request: Request) -> int:
        """One request on a connection of its own; its latency in picoseconds. Raises VerificationError."""
        kernel = self._kernel
        start_ps = kernel.now
        news = Event(f"client: answer to request {index}")
        connection = self._stack.connect(*self._server, kernel.now)
        connection.on_event = lambda _: news.set()
        self._pump()
        answer = _Answer(index, request)
        asked = False
        while not (connection.peer_closed and not connection.recv_available):
            await news.wait()
            news.clear()
            if connection.state is State.CLOSED:
                raise VerificationError(f"request {index} ({request.path}): the connection was refused or reset after "
                                        f"{answer.received_bytes} bytes, at {kernel.now} ps")
            if not asked and connection.writable:
                connection.send(Chunk(http.format_request(request.method, request.path, index)))
                asked = True
            while data := connection.recv(RECEIVE_BYTES):
                answer.take(data, kernel.now)
            self._pump()
        answer.finish(kernel.now)
        latency_ps = kernel.now - start_ps
        self._hang_up(connection)
        return latency_ps

    def _hang_up(self, connection: Connection) -> None:
        connection.on_event = None
        connection.close(self._kernel.now)
        self._pump()

    def _receive(self, frame: bytes) -> None:
        self._stack.receive(frame, self._kernel.now)
        self._pump()

    def _pump(self) -> None:
        """Send all that may be sent, and be there for the next deadline."""
        now = self._kernel.now
        for segment in self._stack.transmit(now):
            self._link.transmit(segment.frame())
        deadline = self._stack.next_deadline()
        if self._timer is not None and self._timer.time == deadline:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if deadline is None else self._kernel.call_at(deadline, self._due)

    def _due(self) -> None:
        self._timer = None
        self._stack.poll(self._kernel.now)
        self._pump()


class _Answer:
    """A response as it arrives: the head, then each byte of the body compared at once."""

    def __init__(self, index: int, request: Request) -> None:
        self._index = index
        self._request = request
        self._expected = http.content(request.path, request.body_bytes)
        self._head: bytes | None = None
        self._pending = b""
        self._offset = 0
        self.received_bytes = 0

    def take(self, data: bytes, now: int) -> None:
        """More bytes of the response. Raises VerificationError."""
        self.received_bytes += len(data)
        if self._head is None:
            self._pending += data
            head, found, data = self._pending.partition(http.END_OF_HEAD)
            if not found:
                return
            self._head = head + found
            self._check_head(now)
        stop = self._offset + len(data)
        if data != self._expected[self._offset : stop]:
            expected = self._expected[self._offset : stop]
            wrong = next((at for at, (got, due) in enumerate(zip(data, expected, strict=False)) if got != due),
                         len(expected))
            self._fail(f"byte {self._offset + wrong} of {len(self._expected)} differs from the file", now)
        self._offset = stop

    def finish(self, now: int) -> None:
        """The server has closed. Raises VerificationError if something is missing."""
        if self._head is None:
            self._fail(f"the response ended within its head, after {self.received_bytes} bytes", now)
        if self._offset != len(self._expected):
            self._fail(f"the response ended at byte {self._offset} of {len(self._expected)}", now)

    def _check_head(self, now: int) -> None:
        assert self._head is not None
        try:
            head = http.parse_response_head(self._head)
        except http.HttpError as error:
            self._fail(str(error), now)
        if head.status != self._request.status:
            self._fail(f"status {head.status} instead of {self._request.status}", now)

    def _fail(self, what: str, now: int) -> NoReturn:
        raise VerificationError(f"request {self._index} ({self._request.method} {self._request.path}): {what}, "
                                f"at {now} ps")
