"""Two stacks over a wire that loses, reorders, duplicates and damages: all arrives once, in order, and it ends."""

from __future__ import annotations

import heapq
import itertools
import random
import struct
from dataclasses import replace
from functools import partial

import pytest

from host_driver.account import NullAccount
from host_driver.tcp import PROFILES, RFC, Chunk, Connection, Nagle, Profile, Stack, State
from host_driver.tcp.profile import MS, SECOND, US
from nic_model.checksum import internet_checksum

MACS = (bytes.fromhex("020000000001"), bytes.fromhex("020000000002"))
FIN, SYN, ACK = 0x01, 0x02, 0x10


class WindowWatch:
    """Reads frames as they pass and knows which part of a direction's sequence space its receiver has opened."""

    def __init__(self, l4_offset: int) -> None:
        self.l4 = l4_offset
        self.shift: int | None = None
        """What the receiver offered in its SYN."""
        self.other = self
        """The watch of the other direction."""
        self.edge: int | None = None
        """Highest edge that reached the sender."""
        self.beyond = 0
        """Window probes seen."""

    def _fields(self, frame: bytes) -> tuple[int, int, int, int, int]:
        sequence, ack, offset, flags, window = struct.unpack_from("!IIBBH", frame, self.l4 + 4)
        return sequence, ack, flags, window, len(frame) - self.l4 - (offset >> 4) * 4

    def on_sent(self, frame: bytes) -> None:
        """The sender puts a frame on the wire."""
        sequence, _, flags, _, length = self._fields(frame)
        if self.edge is None or flags & SYN:
            return
        end = sequence + length + (flags & FIN)
        over = (end - self.edge + (1 << 31)) % (1 << 32) - (1 << 31)
        if over > 0:
            assert (over, end - sequence) == (1, 1), f"{over} bytes beyond the window"
            self.beyond += 1

    def on_delivered_back(self, frame: bytes) -> None:
        """A frame of the receiver reaches the sender."""
        _, ack, flags, window, _ = self._fields(frame)
        if flags & SYN:
            options = frame[self.l4 + 20 : self.l4 + (frame[self.l4 + 12] >> 4) * 4]
            self.shift = options[options.index(b"\x03\x03") + 2] if b"\x03\x03" in options else None
        if flags & ACK:
            is_scaled = self.shift is not None and self.other.shift is not None and not flags & SYN
            scaled = window << (self.shift or 0) if is_scaled else window
            edge = (ack + scaled) % (1 << 32)
            if self.edge is None or (edge - self.edge) % (1 << 32) < 1 << 31:
                self.edge = edge


class Application:
    """Sends `data`, reads what comes at its own pace, closes when all is queued."""

    def __init__(self, connection: Connection, data: bytes, rng: random.Random) -> None:
        self.connection = connection
        self.data = data
        self.rng = rng
        self.reads_from = rng.choice([0, 0, 3 * SECOND])
        """A reader that sleeps lets its window close."""
        self.queued = 0
        self.released = 0
        self.got = bytearray()

    @property
    def has_work(self) -> bool:
        """Whether `step` could do anything."""
        c = self.connection
        if c.state is State.CLOSED:
            return False  # what is left to read is read at the end
        return (self.queued < len(self.data) and c.writable) or c.recv_available > 0 or self.may_close

    @property
    def may_close(self) -> bool:
        """Whether all is queued and nothing was said yet about the end."""
        c = self.connection
        return self.queued == len(self.data) and c.state in (State.ESTABLISHED, State.CLOSE_WAIT)

    def step(self, now: int) -> None:
        """Do some of what can be done."""
        c, rng = self.connection, self.rng
        if c.state is State.CLOSED:
            return
        while self.queued < len(self.data) and c.writable:
            size = rng.choice([1, 100, 3000, 40000])
            part = self.data[self.queued : self.queued + size]
            self.queued += c.send(Chunk(part, release=partial(self._release, len(part))))
            if rng.random() < 0.3:
                break
        if now >= self.reads_from and rng.random() < 0.7:
            self.got += c.recv(rng.choice([10, 1000, 100000]))
        if self.may_close:
            c.close(now)

    def _release(self, count: int) -> None:
        self.released += count


def profiles(rng: random.Random) -> Profile:
    """One of those that are shipped, with other buffers. Acknowledgements come before the shortest timeout of the other
    side, and TIME-WAIT outlasts the longest, so that what happens is the wire's doing."""
    base = rng.choice(list(PROFILES.values()))
    return replace(base, receive_buffer_bytes=rng.choice([2000, 20000, base.receive_buffer_bytes]),
                   send_buffer_bytes=rng.choice([3000, base.send_buffer_bytes]), nagle=rng.choice(list(Nagle)),
                   window_scale=rng.choice([None, 0, 3]), max_retransmissions=60, max_syn_retransmissions=60,
                   delayed_ack_ps=40 * MS, time_wait_ps=1000 * SECOND)


def damaged(frame: bytes, rng: random.Random) -> bytes:
    """The frame with one bit flipped that a checksum covers: not of Ethernet's header, nor of IPv6's."""
    bit = rng.randrange((14 if frame[12] == 0x08 else 54) * 8, len(frame) * 8)
    changed = bytearray(frame)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def marked(frame: bytes) -> bytes:
    """The frame as a congested router forwards it: marked, if it says that its sender understands."""
    if frame[12:14] != b"\x08\x00" or frame[15] & 3 != 2:
        return frame
    changed = bytearray(frame)
    changed[15] |= 3
    changed[24:26] = bytes(2)
    changed[24:26] = internet_checksum(changed[14:34]).to_bytes(2, "big")
    return bytes(changed)


def drops(stack: Stack) -> int:
    """Frames that were found to be no good."""
    counters = stack.counters
    return counters.bad_checksum + counters.malformed + counters.not_for_us


def exchange(seed: int) -> None:
    """Two connected applications send each other data over a bad wire; all that must hold is asserted."""
    rng = random.Random(seed)
    ipv6 = rng.random() < 0.3
    ips = ("fd00::1", "fd00::2") if ipv6 else ("10.0.0.1", "10.0.0.2")
    loss, twice, late = rng.choice([0, 0.02, 0.2]), rng.choice([0, 0.1]), rng.choice([0, 0.3])
    damage, mark = rng.choice([0, 0, 0.05]), rng.choice([0, 0.05])
    stacks = [Stack(mac=MACS[n], ip=ips[n], profile=profiles(rng), mtu=rng.choice([576, 1500, 9000]),
                    account=NullAccount(), rng=random.Random(rng.random())) for n in (0, 1)]
    for n in (0, 1):
        stacks[n].add_neighbour(ips[1 - n], MACS[1 - n])
    watches = [WindowWatch(54 if ipv6 else 34) for _ in (0, 1)]
    watches[0].other, watches[1].other = watches[1], watches[0]
    listener = stacks[1].listen(80, 1)
    now = 0
    client = stacks[0].connect(ips[1], 80, now)
    data = [rng.randbytes(rng.choice([0, 1, 5000, 60000, 200000])) for _ in (0, 1)]
    applications = [Application(client, data[0], rng)]
    wire: list[tuple[int, int, int, bytes]] = []
    order = itertools.count()
    next_step = 0
    bad = 0
    for turn in itertools.count():
        assert turn < 100_000, f"no rest in sight: {[a.connection for a in applications]}"
        if len(applications) < 2 and (server := listener.accept()) is not None:
            applications.append(Application(server, data[1], rng))
        if now >= next_step:
            for application in applications:
                application.step(now)
            next_step = now + 2 * MS
        for n in (0, 1):
            for out in stacks[n].transmit(now):
                frame = out.frame()
                watches[n].on_sent(frame)
                for _ in range(1 + (rng.random() < twice)):
                    if rng.random() >= loss:
                        copy = frame
                        if rng.random() < damage:
                            copy = damaged(frame, rng)
                            bad += 1
                        elif rng.random() < mark:
                            copy = marked(frame)
                        delay = 1 * MS + (rng.randrange(5 * MS) if rng.random() < late else 0)
                        heapq.heappush(wire, (now + delay, next(order), 1 - n, copy))
        times = [t for t in (stacks[0].next_deadline(), stacks[1].next_deadline()) if t is not None]
        times += [wire[0][0]] if wire else []
        if any(a.has_work for a in applications):
            times.append(next_step)
        if not times:
            break
        now = max(now, min(times))
        while wire and wire[0][0] <= now:
            _, _, to, frame = heapq.heappop(wire)
            dropped = drops(stacks[to])
            stacks[to].receive(frame, now)
            if drops(stacks[to]) == dropped:
                watches[to].on_delivered_back(frame)
        for stack in stacks:
            stack.poll(now)
    assert len(applications) == 2
    assert sum(drops(stack) for stack in stacks) == bad
    for application, other in zip(applications, reversed(applications), strict=True):
        connection = application.connection
        application.got += connection.recv(1 << 30)
        assert bytes(application.got) == other.data
        assert application.released == len(application.data)
        assert connection.acked_bytes == connection.sent_bytes == len(application.data)
        assert connection.state is State.CLOSED
        assert connection.error is None
    assert all(s.next_deadline() is None and not s.has_output and s.connections == [] for s in stacks)
    again = sum(a.connection.retransmitted_segments for a in applications)
    if loss == late == twice == damage == 0:
        # a window probe counts as sent, so what follows it starts with a repetition; a tail loss probe is one when the
        # peer takes its time to acknowledge
        probes = sum(a.connection.sender.tail_probes for a in applications)
        assert again <= watches[0].beyond + watches[1].beyond + probes
    if loss == 0.2 and sum(map(len, data)) > 100 * client.mss:  # one in 10**9 would be lucky
        assert again > 0


@pytest.mark.parametrize("seed", range(60))
def test_everything_arrives_once_in_order(seed: int) -> None:
    exchange(seed)


@pytest.mark.long
@pytest.mark.parametrize("hundred", range(100))
def test_everything_arrives_over_thousands_of_wires(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * (hundred + 1)):
        try:
            exchange(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


def test_runs_are_repeatable() -> None:
    """The same seed gives the same frames."""
    def frames() -> list[bytes]:
        stack = Stack(mac=MACS[0], ip="10.0.0.1", profile=RFC, account=NullAccount(), rng=random.Random(5))
        stack.add_neighbour("10.0.0.2", MACS[1])
        for _ in range(3):
            stack.connect("10.0.0.2", 80, 7 * US)
        return [out.frame() for out in stack.transmit(7 * US)]

    first = frames()
    assert len(first) == 3
    assert first == frames()
