"""Peers that mean no good: raw frames into the TAP interface, beside the kernel's."""

from __future__ import annotations

import logging
import random
import threading
import time

from tests.tap.harness import PORT, SERVER, Tap

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP  # noqa: E402
from scapy.layers.inet6 import IPv6  # noqa: E402
from scapy.layers.l2 import ARP, Ether  # noqa: E402
from scapy.packet import Raw  # noqa: E402

SERVER_MAC, KERNEL_MAC, SPOOFED_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:02"
SPOOFED_IP = "10.0.0.77"
RESETS_AT_ONCE = 100


class SynFlood:
    """SYNs from an address that nobody has, whose neighbour is found, and which never completes a handshake.

    A context manager: at its end it resets what it opened, so that nothing is left half open. Attribute: `answered`.
    """

    def __init__(self, tap: Tap) -> None:
        self.answered = 0
        self._socket = tap.packet_socket()
        self._socket.settimeout(0.05)
        self._ports: list[int] = []
        self._stopped = threading.Event()
        self._listener = threading.Thread(target=self._listen)

    def __enter__(self) -> SynFlood:
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Whoever still waits for the third part of a handshake is told that there will be none.
        # Twice and not too fast: a device with TCP on it drops frames for which it has no room.
        for port in 2 * self._ports:
            self._send(port, "R", 1)
            if port % RESETS_AT_ONCE == 0:
                time.sleep(0.05)
        time.sleep(0.5)
        self._stopped.set()
        self._listener.join()
        self._socket.close()

    def send(self, number: int) -> None:
        """So many SYNs, from a port each."""
        for port in range(20_000, 20_000 + number):
            self._ports.append(port)
            self._send(port, "S", 0)

    def _send(self, port: int, flags: str, sequence: int) -> None:
        segment = TCP(sport=port, dport=PORT, flags=flags, seq=sequence)
        self._socket.send(bytes(Ether(src=SPOOFED_MAC, dst=SERVER_MAC) / IP(src=SPOOFED_IP, dst=SERVER[4]) / segment))

    def _listen(self) -> None:
        """Answer who asks for the spoofed address, and count what the server answers."""
        while not self._stopped.is_set():
            try:
                frame = self._socket.recv(2048)
            except TimeoutError:
                continue
            if frame[12:14] == b"\x08\x06":
                arp = Ether(frame)[ARP]
                if arp.op == 1 and arp.pdst == SPOOFED_IP:
                    answer = ARP(op=2, hwsrc=SPOOFED_MAC, psrc=SPOOFED_IP, hwdst=arp.hwsrc, pdst=arp.psrc)
                    self._socket.send(bytes(Ether(src=SPOOFED_MAC, dst=SERVER_MAC) / answer))
            elif frame[12:14] == b"\x08\x00" and frame[26:30] == bytes([10, 0, 0, 1]) and frame[30:34] == bytes(
                    [10, 0, 0, 77]):
                self.answered += 1


class Garbage:
    """Frames of noise, cut and damaged packets, and TCP segments that are well formed and make no sense.

    A context manager: it sends until its end. Attribute: `sent`. The same seed sends the same.
    """

    def __init__(self, tap: Tap, seed: int, pause_s: float = 0.002) -> None:
        self.sent = 0
        self._socket = tap.packet_socket()
        self._rng = random.Random(seed)
        self._pause_s = pause_s
        self._stopped = threading.Event()
        self._sender = threading.Thread(target=self._run)

    def __enter__(self) -> Garbage:
        self._sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._sender.join()
        self._socket.close()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._socket.send(self._frame())
            self.sent += 1
            time.sleep(self._pause_s)

    def _frame(self) -> bytes:
        rng = self._rng
        kind = rng.randrange(5)
        if kind == 0:
            # Noise, of any EtherType.
            return bytes(Ether(src=KERNEL_MAC, dst=SERVER_MAC, type=rng.randrange(0x600, 0x10000))) + rng.randbytes(
                rng.randrange(46, 1400))
        ip = IP(src="10.0.0.2", dst=SERVER[4]) if rng.random() < 0.5 else IPv6(src="fd00::2", dst=SERVER[6])
        if kind == 1:
            # Noise behind an IP header.
            payload: object = Raw(rng.randbytes(rng.randrange(1, 1000)))
        else:
            # Ports outside the kernel's own, so that no connection of a test is meant.
            payload = TCP(sport=rng.randrange(1, 1024), dport=rng.choice([PORT, rng.randrange(1 << 16)]),
                          flags=rng.randrange(256) & ~2, seq=rng.randrange(1 << 32), ack=rng.randrange(1 << 32),
                          window=rng.randrange(1 << 16), dataofs=rng.choice([None, rng.randrange(16)]),
                          ) / Raw(rng.randbytes(rng.randrange(0, 800)))
        frame = bytearray(bytes(Ether(src=KERNEL_MAC, dst=SERVER_MAC) / ip / payload))
        if kind == 3:
            frame[rng.randrange(14, len(frame))] ^= 1 << rng.randrange(8)
        if kind == 4:
            del frame[rng.randrange(15, len(frame)) :]
        return bytes(frame)
