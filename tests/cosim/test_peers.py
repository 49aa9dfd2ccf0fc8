"""Clients against a plain TCP stack at the device's end of the wire, which answers rightly or wrongly."""

from __future__ import annotations

import random
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from cosim import http
from cosim.mac import TransmitFifo
from cosim.peers import Client, client_addresses
from cosim.wire import Wire
from cosim.workload import Request
from host_driver.account import NullAccount
from host_driver.runtime import Kernel, TaskFailed
from host_driver.tcp import LINUX24, Chunk, Connection, Stack
from host_driver.tcp.listener import Listener

SERVER_MAC = bytes([2, 0, 0, 0, 0, 9])
SERVER_IP = IPv4Address("10.0.0.1")
REQUESTS = [Request("GET", "/a", 200, 50_000), Request("HEAD", "/a", 200, 50_000), Request("GET", "/b", 404, 0),
            Request("GET", "/c", 304, 17), Request("GET", "/d", 206, 1), Request("GET", "/e", 200, 200_000)]

Respond = Callable[[Request], bytes | None]


def right(request: Request) -> bytes:
    return (http.format_response_head(request.method, request.status, request.size_bytes)
            + http.content(request.path, request.body_bytes))


class Bench:
    """A wire, clients, and a server that answers each request with `respond(request)`; None: it resets."""

    def __init__(self, respond: Respond, clients: int = 1) -> None:
        self.kernel = Kernel()
        self.wire = Wire(self.kernel, bit_rate=10**9)
        self.respond = respond
        self.stack = Stack(mac=SERVER_MAC, ip=SERVER_IP, profile=LINUX24, account=NullAccount(), rng=random.Random(5))
        self.stack.listen(80, 16).on_event = self.accept
        self.wire.deliver = lambda frame, bad, time: self.kernel.call_at(time, lambda: self.receive(frame))
        self.fifo = TransmitFifo(self.wire.timing)
        self.clients = []
        for number in range(clients):
            mac, ip = client_addresses(number)
            self.stack.add_neighbour(ip, mac)
            self.clients.append(Client(self.kernel, self.wire, number=number, server_mac=SERVER_MAC,
                                       server_ip=SERVER_IP, server_port=80,
                                       rng=random.Random(number)))

    def receive(self, frame: bytes) -> None:
        self.stack.receive(frame, self.kernel.now)
        self.pump()

    def accept(self, listener: Listener) -> None:
        connection = listener.accept()
        assert connection is not None
        connection.on_event = self.answer

    def answer(self, connection: Connection) -> None:
        if not connection.recv_available:
            return
        head = http.parse_request(connection.recv(10_000))
        response = self.respond(REQUESTS[int(head.headers[http.INDEX_HEADER.lower()])])
        if response is None:
            connection.abort(self.kernel.now)
        else:
            connection.send(Chunk(response))
            connection.close(self.kernel.now)

    def pump(self) -> None:
        self.wire.transmitted([self.fifo.push(segment.frame(), self.kernel.now)
                               for segment in self.stack.transmit(self.kernel.now)])

    def run(self) -> list[int]:
        latencies_ps: list[int] = []
        requests = iter(enumerate(REQUESTS))
        for number, client in enumerate(self.clients):
            self.kernel.spawn(client.run(requests, lambda _, latency_ps: latencies_ps.append(latency_ps)),
                              f"client {number}")
        self.kernel.run_until(10**12)
        return latencies_ps


@pytest.mark.parametrize("clients", [1, 4])
def test_right_answers_are_taken_and_timed(clients: int) -> None:
    latencies_ps = Bench(right, clients).run()
    assert len(latencies_ps) == len(REQUESTS)
    # Two round trips over two links each way, 500 ns a link, and the frames' own time: at least 4 us.
    assert min(latencies_ps) > 4 * 10**6
    # 200,000 bytes alone take 1.6 ms at 1 Gb/s.
    assert max(latencies_ps) > 1600 * 10**6


def flipped(at: int) -> Respond:
    def respond(request: Request) -> bytes:
        data = bytearray(right(request))
        if request.path == "/e":
            data[at] ^= 1
        return bytes(data)
    return respond


HEAD_BYTES = len(http.format_response_head("GET", 200, 200_000))


@pytest.mark.parametrize(("respond", "message"), [
    (flipped(HEAD_BYTES), r"request 5 \(GET /e\): byte 0 of 200000 differs from the file, at \d+ ps"),
    (flipped(HEAD_BYTES + 123_456), r"request 5 \(GET /e\): byte 123456 of 200000 differs"),
    (lambda request: right(request)[:-1], r"request 0 \(GET /a\): the response ended at byte 49999 of 50000"),
    (lambda request: right(request) + b"x", r"request 0 \(GET /a\): byte 50000 of 50000 differs"),
    (lambda request: b"HTTP/1.0 200 OK\r\n", r"request 0 .*ended within its head, after 17 bytes"),
    (lambda request: b"HTTP/1.0 500 No\r\n\r\n", r"request 0 .*status 500 instead of 200"),
    (lambda request: b"SMTP\r\n\r\n", r"request 0 .*no status line"),
    (lambda request: None, r"request 0 .*refused or reset after 0 bytes"),
])
def test_a_wrong_answer_ends_the_run_with_request_place_and_time(respond: Respond, message: str) -> None:
    with pytest.raises(TaskFailed, match=message):
        Bench(respond).run()
