"""Goodput of the software TCP under loss, beside the Linux kernel's through the same wire model.

The kernel's: two network namespaces, each with a TAP interface, and this process between them, which lets every frame
through a `cosim.impairments.Path` in real time, with CUBIC on its sockets as in the profile `linux`. Ours: two stacks,
in simulated time, through paths with the same settings and seed. Neither has a device, a processor's cost or a link's
rate in it. Several connections run at a time, each a sample by itself, since nothing on the way is shared that could be
full. Both are measured by the wire's time, so that a process that falls behind real time does not make the kernel
slower than it is.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Interface
from statistics import harmonic_mean

from cosim.benches import BenchOptions
from cosim.benches.rows import Row, row
from cosim.impairments import BothWays, Impairments
from cosim.machine import PS_PER_SECOND
from cosim.tap.namespace import Namespace, why_not
from cosim.tap.real_time import RealTime
from host_driver.account import NullAccount
from host_driver.runtime import Kernel, Timer
from host_driver.tcp import PROFILES, Chunk, Connection, Stack

BAR_PERCENT = 80.0

CASES = ((1, 20, 5 << 20), (1, 100, 3 << 19), (5, 20, 1 << 19))
"""Loss each way in percent, round-trip time in ms, bytes of each connection: some seconds of the kernel's time."""

CONNECTIONS = 12
"""At a time, for each of `SEEDS`: single connections differ by a factor of three."""

SEEDS = (1, 2)
PORT = 5001
ADDRESSES = (IPv4Interface("10.0.0.1/24"), IPv4Interface("10.0.0.2/24"))
MACS = tuple(bytes([2, 0, 0, 0, 0, number]) for number in (1, 2))
RECEIVE_BYTES = 1 << 20
DEADLINE_S = 120.0

_KERNEL_SETTINGS = {"ipv4/tcp_no_metrics_save": "1", "ipv6/conf/all/disable_ipv6": "1"}


def measure(options: BenchOptions) -> list[Row]:
    """A row for each case: our goodput in percent of the kernel's."""
    missing = why_not()
    rows = []
    for loss_percent, rtt_ms, size_bytes in CASES:
        figure = f"of the kernel's goodput at {loss_percent} % loss, {rtt_ms} ms"
        if missing is not None:
            rows.append(row(figure, None, "%", ">=", BAR_PERCENT, f"not measured: {missing}"))
            continue
        options.say(figure)
        way = Impairments(loss=loss_percent / 100, delay_ps=rtt_ms * 10**9 // 2)
        wires = [BothWays(outbound=way, inbound=way, seed=seed) for seed in SEEDS]
        ours = [rate for wire in wires for rate in _ours(wire, size_bytes)]
        kernels = [rate for wire in wires for rate in _kernels(wire, size_bytes)]
        note = f"{_spread(ours)} Mbit/s beside {_spread(kernels)}: harmonic means of {len(ours)} connections"
        rows.append(row(figure, 100 * harmonic_mean(ours) / harmonic_mean(kernels), "%", ">=", BAR_PERCENT, note))
    return rows


def _spread(rates: list[float]) -> str:
    """Rates in bytes a second, as Mbit/s: their mean, and from what to what."""
    middle, least, most = (8 * rate / 1e6 for rate in (harmonic_mean(rates), min(rates), max(rates)))
    return f"{middle:.2f} ({least:.2f} to {most:.2f})"


# ---------------------------------------------------------------------------------------------- ours


class _Host:
    """A stack with nothing round it. Attribute: `send`, where its frames go."""

    def __init__(self, kernel: Kernel, number: int) -> None:
        self.send: Callable[[bytes], None] = lambda _frame: None
        self._kernel = kernel
        self.stack = Stack(mac=MACS[number], ip=ADDRESSES[number], profile=PROFILES["linux"], account=NullAccount(),
                           rng=random.Random(f"host {number} of the bench"))
        self._timer: Timer | None = None

    def receive(self, frame: bytes) -> None:
        """A frame of the wire."""
        self.stack.receive(frame, self._kernel.now)
        self.pump()

    def pump(self) -> None:
        """Send all that may be sent, and be there for the next deadline."""
        for segment in self.stack.transmit(self._kernel.now):
            self.send(segment.frame())
        deadline = self.stack.next_deadline()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if deadline is None else self._kernel.call_at(deadline, self._due)

    def _due(self) -> None:
        self._timer = None
        self.stack.poll(self._kernel.now)
        self.pump()


def _ours(wire: BothWays, size_bytes: int) -> list[float]:
    """Bytes a second of simulated time, of each connection, from its SYN to the last byte."""
    kernel = Kernel()
    server, client = _Host(kernel, 0), _Host(kernel, 1)
    _join(kernel, wire, server, client)
    listener = server.stack.listen(PORT, CONNECTIONS)
    data = bytes(size_bytes)
    ended_ps: list[int] = []

    def accept(_listener: object) -> None:
        while (connection := listener.accept()) is not None:
            connection.send(Chunk(data))
            connection.close(kernel.now)

    def read(connection: Connection) -> None:
        while connection.recv(RECEIVE_BYTES):
            pass
        if connection.received_bytes == size_bytes and connection.on_event is not None:
            connection.on_event = None
            ended_ps.append(kernel.now)

    listener.on_event = accept
    for _ in range(CONNECTIONS):
        client.stack.connect(ADDRESSES[0].ip, PORT, kernel.now).on_event = read
    client.pump()
    kernel.run_while(lambda: len(ended_ps) < CONNECTIONS)
    return [size_bytes * PS_PER_SECOND / end_ps for end_ps in ended_ps]


def _join(kernel: Kernel, wire: BothWays, server: _Host, client: _Host) -> None:
    for source, target, outbound in ((server, client, True), (client, server, False)):
        source.send = _through(kernel, wire, target.receive, outbound=outbound)


def _through(kernel: Kernel, wire: BothWays, arrives: Callable[[bytes], None], *,
             outbound: bool) -> Callable[[bytes], None]:
    """One direction of a wire: takes a frame, and gives what comes out of it to `arrives` at its time."""
    path = wire.path(outbound=outbound)

    def send(frame: bytes) -> None:
        for time_ps, copy in path.through(kernel.now, frame):
            kernel.call_at(time_ps, partial(arrives, copy))

    return send


# ---------------------------------------------------------------------------------------------- the kernel's


def _kernels(wire: BothWays, size_bytes: int) -> list[float]:
    """The same of the kernel's connections, whose wire goes with real time."""
    kernel = Kernel()
    with ExitStack() as stack, ThreadPoolExecutor(CONNECTIONS) as pool:
        namespaces = [stack.enter_context(Namespace(f"memnic-bench-{os.getpid()}-{number}")) for number in (0, 1)]
        real_time = RealTime(kernel)
        files = []
        for namespace, mac, address in zip(namespaces, MACS, ADDRESSES, strict=True):
            namespace.add_tap(mac, address, settings=_KERNEL_SETTINGS)
            files.append(namespace.open_tap())
            stack.callback(os.close, files[-1])
        sends: list[Callable[[bytes], None]] = []
        for number, file in enumerate(files):
            # What one side sends goes through its direction to the other side's file.
            send = _through(kernel, wire, partial(_late, sends, 1 - number), outbound=number == 0)
            sends.append(real_time.add(file, send))
        listening = namespaces[0].inside(lambda: socket.create_server(("", PORT), backlog=CONNECTIONS))
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        stack.callback(listening.close)
        threading.Thread(target=_serve, args=(listening, size_bytes), daemon=True).start()
        real_time.start()
        clients = [namespaces[1].inside(partial(socket.socket, socket.AF_INET)) for _ in range(CONNECTIONS)]
        downloads = [pool.submit(_download, client, size_bytes) for client in clients]
        until_s = time.monotonic() + DEADLINE_S
        ended_ps: dict[int, int] = {}

        def goes_on() -> bool:
            for number, download in enumerate(downloads):
                if download.done():
                    ended_ps.setdefault(number, kernel.now)
            return len(ended_ps) < CONNECTIONS and time.monotonic() < until_s

        kernel.run_while(goes_on)
        for client, download in zip(clients, downloads, strict=True):
            client.close()
            download.result()  # raises what it raised
        return [size_bytes * PS_PER_SECOND / end_ps for end_ps in ended_ps.values()]


def _late(sends: list[Callable[[bytes], None]], number: int, frame: bytes) -> None:
    sends[number](frame)


def _serve(listening: socket.socket, size_bytes: int) -> None:
    """Send each client its bytes."""
    data = bytes(size_bytes)

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.sendall(data)

    for _ in range(CONNECTIONS):
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def _download(client: socket.socket, size_bytes: int) -> None:
    """Connect, and take all bytes."""
    client.settimeout(DEADLINE_S)
    client.connect((str(ADDRESSES[0].ip), PORT))
    received = 0
    while received < size_bytes:
        received += len(client.recv(RECEIVE_BYTES))
