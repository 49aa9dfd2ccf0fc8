"""A scripted peer: what is sent to a stack and what it answers, in relative sequence numbers, judged by scapy."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from host_driver.tcp import RFC, Chunk, Connection, Ecn, Listener, OutSegment, Profile, Stack
from host_driver.tcp.profile import MS

STACK_MAC, PEER_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
PEER_ISS = 0xFFFF_FF00
"""Close to the wrap, so that every longer dialogue crosses it."""

PLAIN = replace(RFC, name="plain", window_scale=None, receive_buffer_bytes=65535, sack=False, timestamps=False,
                ecn=Ecn.OFF)


class Recorder:
    """An account that counts what was charged."""

    def __init__(self) -> None:
        self.items: Counter[tuple[str, str]] = Counter()

    def charge(self, category: str, item: str, count: int = 1) -> None:
        self.items[category, item] += count

    async def settle(self) -> None:
        raise AssertionError("TCP never waits")


@dataclass
class Seen:
    """A segment that the stack sent, as scapy reads it; numbers relative to the first ones."""

    flags: str
    seq: int
    ack: int
    window: int
    payload: bytes
    options: dict[str, Any]
    out: OutSegment
    urgent: int = 0


class Dialogue:
    """One stack and its scripted peer. `now` only moves by `advance` and `run_to_deadline`."""

    def __init__(self, profile: Profile = PLAIN, *, ipv6: bool = False, seed: int = 1, peer_port: int = 4000,
                 **stack_options: Any) -> None:
        self.ip = ("fd00::1", "fd00::2") if ipv6 else ("10.0.0.1", "10.0.0.2")
        self.ipv6 = ipv6
        self.account = Recorder()
        self.stack = Stack(mac=STACK_MAC, ip=self.ip[0], profile=profile, account=self.account,
                           rng=random.Random(seed), **stack_options)
        self.stack.add_neighbour(self.ip[1], PEER_MAC)
        self.now = 0
        self.iss: int | None = None
        self.port = 80
        self.peer_port = peer_port

    # the peer

    def send(self, flags: str, seq: int, ack: int | None = None, payload: bytes = b"", *, window: int = 60000,
             options: list[Any] | None = None, checksum_ok: bool | None = None, urgent: int = 0,
             merged_bytes: int = 0) -> None:
        """The peer sends a segment; `ack` counts from the stack's ISS."""
        number = 0 if ack is None else (ack + (self.iss or 0)) % (1 << 32)
        ip = IPv6(src=self.ip[1], dst=self.ip[0]) if self.ipv6 else IP(src=self.ip[1], dst=self.ip[0])
        packet = (Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / ip
                  / TCP(sport=self.peer_port, dport=self.port, flags=flags, seq=(PEER_ISS + seq) % (1 << 32),
                        ack=number, window=window, options=options or [], urgptr=urgent) / payload)
        self.stack.receive(bytes(packet), self.now, checksum_ok=checksum_ok, merged_bytes=merged_bytes)

    # what came out

    def sent(self) -> list[Seen]:
        """All that the stack sends now; every frame's checksums and lengths are verified."""
        return [self._read(out) for out in self.stack.transmit(self.now)]

    def one(self) -> Seen:
        """The only segment that the stack sends now."""
        segments = self.sent()
        assert len(segments) == 1, segments
        return segments[0]

    def nothing(self) -> None:
        """The stack has nothing to send."""
        assert self.sent() == []

    def _read(self, out: OutSegment) -> Seen:
        if out.payload_bytes <= out.mss:
            raw = out.frame()
            packet = Ether(raw)
            fresh = packet.copy()
            if self.ipv6:
                del fresh[IPv6].plen
            else:
                del fresh[IP].chksum, fresh[IP].len
            del fresh[TCP].chksum
            assert bytes(fresh) == raw, "a length or a checksum is wrong"
            payload = bytes(packet[TCP].payload)
        else:
            packet = Ether(out.header)
            payload = b"".join(bytes(chunk.view()) for chunk in out.payload)
        tcp = packet[TCP]
        flags = str(tcp.flags)
        if "S" in flags:
            self.iss = tcp.seq
            self.port, self.peer_port = tcp.sport, tcp.dport
        assert (tcp.sport, tcp.dport) == (self.port, self.peer_port)
        relative = (tcp.seq - (self.iss or 0)) % (1 << 32)
        ack = (tcp.ack - PEER_ISS) % (1 << 32) if "A" in flags else 0
        return Seen(flags, relative, ack, tcp.window, payload, dict(tcp.options), out, tcp.urgptr)

    # time

    def advance(self, ps: int) -> None:
        """Let time pass; timers that fall due run."""
        self.now += ps
        self.stack.poll(self.now)

    def run_to_deadline(self) -> int:
        """Go to the next deadline and run its timers; returns how long that took."""
        deadline = self.stack.next_deadline()
        assert deadline is not None
        waited = deadline - self.now
        assert waited >= 0
        self.now = deadline
        self.stack.poll(self.now)
        return waited

    # common beginnings

    def accepted(self, *, window: int = 60000, options: list[Any] | None = None) -> Connection:
        """A connection that the peer opened: its next sequence number is 1, the stack's too."""
        listener = self.stack.listen(80, 4)
        self.send("S", 0, window=window, options=[("MSS", 1460)] if options is None else options)
        assert self.one().flags == "SA"
        self.send("A", 1, 1, window=window)
        return accept(listener)

    def connected(self, *, window: int = 60000, options: list[Any] | None = None) -> Connection:
        """A connection that the stack opened, its handshake done."""
        self.port, self.peer_port = 0, 80
        connection = self.stack.connect(self.ip[1], 80, self.now)
        assert self.one().flags == "S"
        self.send("SA", 0, 1, window=window, options=[("MSS", 1460)] if options is None else options)
        ack = self.one()
        assert (ack.flags, ack.seq, ack.ack) == ("A", 1, 1)
        return connection


def accept(listener: Listener) -> Connection:
    """The next connection, which must be there."""
    connection = listener.accept()
    assert connection is not None
    return connection


def queue(connection: Connection, data: bytes) -> None:
    """Send `data`, which must find space."""
    assert connection.send(Chunk(data)) == len(data)


ROUND_TRIP = 10 * MS
