"""Orders to send, from the message to the wire: EMIT and RAW through headers, keys, scheduler, segmenter and checksums.

Frames are compared bit for bit with scapy's; DONEs with what the orders asked for."""

import ipaddress
import logging
import random
import struct
from dataclasses import dataclass, field, replace

import pytest
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import IP, UDP, in4_chksum  # noqa: E402
from scapy.layers.inet6 import IPv6, in6_chksum  # noqa: E402
from scapy.layers.l2 import Dot1Q, Ether  # noqa: E402
from scapy.packet import Raw  # noqa: E402

from nic_model.contract import NicConfig, Status, make_key  # noqa: E402
from nic_model.contract.control import (  # noqa: E402
    CONTROL_VERSION,
    DONE,
    EMIT,
    EMIT_OPTIONS,
    EMIT_PIECES,
    NO_FLOW,
    RAW,
    TIME_SHIFT,
    TIMESTAMP_SHIFT,
    UNIT_BYTES,
    ControlType,
    DoneStatus,
    OrderFlag,
)
from rtl.control_messages import message_beat  # noqa: E402
from rtl.descriptor import JobIssue  # noqa: E402
from rtl.emit_front import EmitFront  # noqa: E402
from rtl.flow_entries import FlowWrite  # noqa: E402
from rtl.interfaces import KeyAnswer, KeyRequest, ReadCommand, mac_beat, read_beat  # noqa: E402
from rtl.transmit_back import TransmitBack  # noqa: E402
from rtl.tx_scheduler import TransmitScheduler  # noqa: E402
from tests.rtl.harness import Bench, idle, plain  # noqa: E402

SEED = 7_513
OWN_MAC = "02:00:00:00:00:01"
KEY = make_key(5, 9)
KEY_BASE, KEY_BYTES = 0x12_3456_7000, 1 << 21


def config_of(host_bytes: int = 16, mac_bytes: int = 8) -> NicConfig:
    return NicConfig(name="test", mac_bytes=mac_bytes, host_bytes=host_bytes, channels=4, vectors=4, keys=64, flows=16)


class EmitPath(wiring.Component):
    """Orders to send, and the transmit path behind them, without other senders. Whether `active` is right is looked at
    if asked: that takes most of a run's time."""

    def __init__(self, config: NicConfig, *, watched: bool):
        self.config, self.watched = config, watched
        super().__init__({
            "i": In(stream.Signature(message_beat(config))), "flow_write": In(stream.Signature(FlowWrite)),
            "source_mac": In(48), "now": In(64),
            "key_request": Out(stream.Signature(KeyRequest)), "key_answer": In(stream.Signature(KeyAnswer)),
            "cmd": Out(stream.Signature(ReadCommand)), "payload": In(stream.Signature(read_beat(config))),
            "mac": Out(stream.Signature(mac_beat(config))), "o": Out(stream.Signature(message_beat(config))),
            "left": Out(1), **({"active": Out(1)} if watched else {}),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.front = front = EmitFront(self.config)
        m.submodules.issue = issue = JobIssue(self.config)
        m.submodules.scheduler = scheduler = TransmitScheduler(self.config)
        m.submodules.back = back = TransmitBack(self.config)
        for name in ("i", "flow_write", "key_answer"):
            connect(m, flipped(getattr(self, name)), getattr(front, name))
        for name in ("key_request", "o"):
            connect(m, getattr(front, name), flipped(getattr(self, name)))
        m.d.comb += [
            front.source_mac.eq(self.source_mac), front.now.eq(self.now), back.now.eq(self.now),
            scheduler.now.eq(self.now), scheduler.running.eq(~0), self.left.eq(front.left),
        ]
        connect(m, front.checked, issue.i)
        for name in ("verdict", "piece", "row"):
            connect(m, getattr(front, name), getattr(issue, name))
        for name in ("job", "stored_row", "stored_piece"):
            connect(m, getattr(issue, name), getattr(scheduler, name))
        connect(m, scheduler.payload_cmd, flipped(self.cmd))
        connect(m, flipped(self.payload), back.payload)
        connect(m, scheduler.slice, back.slice)
        connect(m, scheduler.inline, back.inline)
        connect(m, back.begun, scheduler.begun)
        connect(m, back.dropped, scheduler.dropped)
        connect(m, back.mac, flipped(self.mac))
        connect(m, back.done, front.done)
        m.d.comb += [
            front.freed.valid.eq(scheduler.freed.valid), front.freed.payload.eq(scheduler.freed.payload),
        ]
        if self.watched:
            m.d.comb += self.active.eq(front.active | issue.active | scheduler.active | back.active)
        return m


@dataclass(frozen=True)
class Flow:
    """A connection, as FLOW_ADD tells of it."""

    number: int = 3
    generation: int = 7
    channel: int = 1
    ipv6: bool = False
    vlan_tci: int | None = None
    valid: bool = True
    own: str = "10.1.2.3"
    peer: str = "198.51.100.77"
    own_port: int = 80
    peer_port: int = 51_234
    next_hop: str = "02:00:00:00:00:02"
    hop_limit: int = 61
    traffic_class: int = 0x2A
    flow_label: int = 0xABCDE
    timestamp_offset: int = 0xFFFF_FF00

    def fields(self) -> dict:
        def address(text: str) -> int:
            return int.from_bytes(ipaddress.ip_address(text).packed, "little")
        return {"flow": self.number, "entry": {
            "valid": self.valid, "generation": self.generation, "channel": self.channel, "ipv6": self.ipv6,
            "tagged": self.vlan_tci is not None, "vlan_tci": self.vlan_tci or 0,
            "remote_port": self.peer_port, "local_port": self.own_port,
            "remote_address": address(self.peer), "local_address": address(self.own),
            "next_hop": int.from_bytes(bytes.fromhex(self.next_hop.replace(":", "")), "little"),
            "hop_limit": self.hop_limit, "traffic_class": self.traffic_class, "flow_label": self.flow_label,
            "timestamp_offset": self.timestamp_offset}}


V4 = Flow()
V6 = Flow(number=9, generation=200, ipv6=True, own="2001:db8::1:80", peer="2001:db8:ffff:1::beef", vlan_tci=0x6123)
FLOWS = (V4, V6, replace(V4, number=0, generation=1, vlan_tci=5, peer="10.9.8.7", peer_port=1))
"""In the table."""


def memory_byte(offset: int) -> int:
    """What stands at a byte of the registered memory."""
    return (offset * 37 + (offset >> 8) * 11 + 5) & 0xFF


def memory(offset: int, length: int) -> bytes:
    return bytes(memory_byte(at) for at in range(offset, offset + length))


@dataclass
class Order:
    """An order to send, and what should come of it."""

    flow: Flow = V4
    pieces: list[tuple[int, int]] = field(default_factory=list)
    """Offset in the key's memory, and length."""
    mss: int = 1448
    tcp_flags: int = 0x10
    sequence: int = 0xFFFF_FF80
    acknowledgement: int = 0x1234_5678
    window: int = 4321
    ecn: int = 0
    timestamps: int | None = None
    """TSecr."""
    options: bytes = b""
    tag: int = 0
    done: bool = True
    generation: int | None = None
    key: int = KEY
    length: int | None = None
    """None: what the pieces are together."""
    raw: bytes | None = None
    """The header of a RAW."""
    raw_offsets: tuple[int, int, int] = (0, 0, 0)
    raw_flags: int = 0
    status: DoneStatus = DoneStatus.OK
    last: bool = False
    """Nothing is sent; its DONE tells that all before it is over."""
    more_units: int = 0
    """Units that the message has too many."""

    @property
    def payload_bytes(self) -> int:
        return sum(length for _, length in self.pieces)

    @property
    def payload(self) -> bytes:
        return b"".join(memory(offset, length) for offset, length in self.pieces)

    def message(self) -> bytes:
        flags = (OrderFlag.DONE if self.done else OrderFlag(0)) | (OrderFlag.LAST if self.last else OrderFlag(0))
        head = {"version": CONTROL_VERSION, "flow": self.flow.number, "tag": self.tag,
                "generation": self.flow.generation if self.generation is None else self.generation}
        length = self.payload_bytes if self.length is None else self.length
        if self.raw is not None:
            units = 1 + -(-len(self.raw) // UNIT_BYTES)
            (offset, _), = self.pieces or [(0, 0)]
            return RAW.pack(
                type=ControlType.RAW, units=units + self.more_units,
                flags=flags | self.raw_flags, **head, header_bytes=len(self.raw), l3_offset=self.raw_offsets[0],
                l4_offset=self.raw_offsets[1], checksum_offset=self.raw_offsets[2], length=length,
                channel=self.flow.channel, offset_0=offset, key_0=self.key if self.pieces else 0,
            ) + self.raw.ljust(UNIT_BYTES * (units - 1), b"\xee") + bytes(UNIT_BYTES * self.more_units)
        if self.timestamps is not None:
            flags |= OrderFlag.TIMESTAMP

        def named(number: int, at: int) -> dict:
            if number >= len(self.pieces):
                return {}
            offset, size = self.pieces[number]
            return {f"offset_{at}": offset, f"key_{at}": self.key, f"length_{at}": size}

        further = [EMIT_OPTIONS.pack(options=int.from_bytes(self.options, "little"))] if self.options else []
        for first in range(2, len(self.pieces), 4):
            further.append(EMIT_PIECES.pack(**{k: v for n in range(4) for k, v in named(first + n, n).items()}))
        further += [bytes(UNIT_BYTES)] * self.more_units
        return b"".join([EMIT.pack(
            type=ControlType.EMIT, units=1 + len(further), flags=flags, **head,
            length=length, pieces=len(self.pieces), window=self.window, mss=self.mss, sequence=self.sequence,
            acknowledgement=self.acknowledgement, ts_echo=self.timestamps or 0, tcp_flags=self.tcp_flags, ecn=self.ecn,
            option_words=len(self.options) // 4, **named(0, 0), **named(1, 1)), *further])

    def frames(self, now: int) -> list[bytes]:
        """As scapy builds them, `now` cycles after the start."""
        if self.status != DoneStatus.OK or self.last:
            return []
        if self.raw is not None:
            return [self.raw_frame()]
        flow, frames = self.flow, []
        step = self.mss if self.pieces else 1
        starts = list(range(0, self.payload_bytes, step)) or [0]
        for number, start in enumerate(starts):
            flags = self.tcp_flags
            if start != starts[-1]:
                flags &= ~0x09
            if start != 0:
                flags &= ~0x80
            traffic_class = flow.traffic_class & 0xFC | self.ecn
            ip = (IPv6(src=flow.own, dst=flow.peer, nh=6, hlim=flow.hop_limit, tc=traffic_class, fl=flow.flow_label)
                  if flow.ipv6 else
                  IP(src=flow.own, dst=flow.peer, ttl=flow.hop_limit, tos=traffic_class, flags="DF", id=number,
                     proto=6))
            options = b""
            if self.timestamps is not None:
                value = ((now >> TIMESTAMP_SHIFT) + flow.timestamp_offset) % (1 << 32)
                options = struct.pack("!BBBBII", 1, 1, 8, 10, value, self.timestamps)
            options += self.options
            ether = Ether(src=OWN_MAC, dst=flow.next_hop)
            if flow.vlan_tci is not None:
                ether /= Dot1Q(vlan=flow.vlan_tci & 0xFFF, prio=flow.vlan_tci >> 13, dei=flow.vlan_tci >> 12 & 1)
            segment = bytearray(struct.pack(
                "!HHIIHHHH", flow.own_port, flow.peer_port, (self.sequence + start) % (1 << 32), self.acknowledgement,
                5 + len(options) // 4 << 12 | flags, self.window, 0, 0)
                + options + self.payload[start:start + step])
            sum_of = in6_chksum if flow.ipv6 else in4_chksum
            segment[16:18] = sum_of(6, ip, bytes(segment)).to_bytes(2, "big")
            frames.append(bytes(ether / ip / Raw(bytes(segment))))
        return frames

    def raw_frame(self) -> bytes:
        frame = bytearray(self.raw + self.payload)
        l3, l4, at = self.raw_offsets
        if self.raw_flags & OrderFlag.IPV4_CHECKSUM:
            frame[l3 + 10:l3 + 12] = bytes(IP(bytes(frame[l3:l4])))[10:12]
            header = IP(bytes(frame[l3:]))
            del header.chksum
            frame[l3:l4] = bytes(header)[:l4 - l3]
        if self.raw_flags & OrderFlag.L4_CHECKSUM:
            words = bytes(frame[l4:]) + b"\0" * (len(frame) - l4 & 1)
            total = sum(int.from_bytes(words[n:n + 2], "big") for n in range(0, len(words), 2))
            while total >> 16:
                total = (total & 0xFFFF) + (total >> 16)
            frame[at:at + 2] = (total ^ 0xFFFF).to_bytes(2, "big")
        return bytes(frame)


NOW = (1 << 50) + (0x77 << TIMESTAMP_SHIFT)


def run(orders: list[Order], *, config: NicConfig | None = None, stall: float = 0.0, mac_stall: float = 0.0,
        up_stall: float = 0.0, seed: int = SEED, flows=FLOWS, bad_bus: bool = False, watched: bool = False,
        max_cycles: int = 6_000):
    """Give all orders, and check frames and DONEs. Returns the bench and the cycles at which frames began."""
    config = config or config_of()
    width = config.host_bytes
    dut = EmitPath(config, watched=watched)
    bench = Bench(dut, seed=seed, now_registers=("now",))
    frames, frame_starts, ups, left = [], [], [], []

    async def setup_and_orders(ctx):
        ctx.set(dut.source_mac, int.from_bytes(bytes.fromhex(OWN_MAC.replace(":", "")), "little"))
        ctx.set(dut.now, NOW)
        for flow in flows:
            await bench.send(ctx, dut.flow_write, flow.fields())
        for number, order in enumerate(orders):
            order.tag = number * 7 + 3
            message = order.message()
            for at in range(0, len(message), width):
                await bench.send(ctx, dut.i, {"data": int.from_bytes(message[at:at + width], "little"),
                                              "last": at + width == len(message)}, stall=stall)
        wanted = sum(len(order.frames(NOW)) for order in orders)
        answers = sum(order.done or order.status != DoneStatus.OK for order in orders)
        while len(frames) < wanted or len(ups) < answers * (UNIT_BYTES // width):
            await ctx.tick()
        await idle(ctx, 150)
    bench.add(setup_and_orders)

    asked: list[dict] = []
    bench.sink(dut.key_request, asked, stall=stall / 2)

    async def answer_keys(ctx):
        answered = 0
        while True:
            while answered == len(asked):
                await ctx.tick()
            request = asked[answered]
            answered += 1
            status = Status.OK
            if request["key"] != KEY:
                status = Status.KEY_INVALID
            elif request["offset"] + request["length"] > KEY_BYTES:
                status = Status.KEY_BOUNDS
            await bench.send(ctx, dut.key_answer, {"status": int(status), "address": KEY_BASE + request["offset"]},
                             stall=stall / 2)
    bench.background(answer_keys)

    commands: list[dict] = []
    bench.sink(dut.cmd, commands)

    async def read_memory(ctx):
        served = 0
        while True:
            while served == len(commands):
                await ctx.tick()
            command = commands[served]
            served += 1
            at, end = command["address"], command["address"] + command["length"]
            while at < end:
                start = at % width
                count = min(width - start, end - at)
                data = bytes(start) + memory(at - KEY_BASE, count)
                await bench.send(ctx, dut.payload, {
                    "data": int.from_bytes(data, "little"), "start": start, "count": count, "last": at + count == end,
                    "error": bad_bus}, stall=stall / 2)
                at += count
    bench.background(read_memory)

    async def mac_side(ctx):
        current = b""
        async for _, _, valid, ready, word in ctx.tick().sample(dut.mac.valid, dut.mac.ready, dut.mac.payload):
            if valid and ready:
                beat = plain(word)
                if not current:
                    frame_starts.append(bench.cycle)
                current += beat["data"].to_bytes(config.mac_bytes, "little")[:beat["keep"].bit_count()]
                if beat["last"]:
                    frames.append(current)
                    current = b""
            ctx.set(dut.mac.ready, bench.rng.random() >= mac_stall)
    bench.background(mac_side)
    bench.sink(dut.o, ups, stall=up_stall)

    async def watch_left(ctx):
        async for _, _, leaves in ctx.tick().sample(dut.left):
            if leaves:
                left.append(bench.cycle)
    bench.background(watch_left)
    bench.run(max_cycles=max_cycles)

    # Orders of a flow leave in order, and those of no flow if both have payload or none has.
    groups: dict[tuple[int, bool], list[Order]] = {}
    for order in orders:
        of_no_flow = order.flow.number >= config.flows
        groups.setdefault((order.flow.number, of_no_flow and bool(order.payload_bytes)), []).append(order)
    for group in groups.values():
        wanted = [frame.hex() for order in group for frame in order.frames(NOW)]
        for frame in wanted:
            assert frame in (f.hex() for f in frames), f"seed {seed}: missing {frame}"
        assert [frame.hex() for frame in frames if frame.hex() in wanted] == wanted, f"seed {seed}"
    assert len(frames) == sum(len(order.frames(NOW)) for order in orders), f"seed {seed}: more frames than expected"
    assert len(left) == len(orders), "a credit for each order"

    messages, message = [], b""
    for beat in ups:
        message += beat["data"].to_bytes(width, "little")
        if beat["last"]:
            messages.append(DONE.unpack(message))
            message = b""
    assert message == b""
    told = [order for order in orders if order.done or order.status != DoneStatus.OK]
    assert sorted(m["tag"] for m in messages) == [order.tag for order in told], f"seed {seed}"
    by_tag = {m["tag"]: m for m in messages}
    for order in told:
        generation = order.flow.generation if order.generation is None else order.generation
        length = order.payload_bytes if order.status == DoneStatus.OK else 0
        assert by_tag[order.tag] == DONE.unpack(DONE.pack(
            type=ControlType.DONE, units=1, version=CONTROL_VERSION, flow=order.flow.number, generation=generation,
            tag=order.tag, status=order.status, length=length, time=NOW >> TIME_SHIFT & 0xFFFF_FFFF,
            order=ControlType.EMIT if order.raw is None else ControlType.RAW)), f"seed {seed}: {order}"
    return bench, frame_starts


SACK = bytes.fromhex("0101050a") + bytes(range(1, 9))

ORDERS = {
    "acknowledgement": [Order()],
    "acknowledgement, IPv6, tagged": [Order(flow=V6, ecn=2)],
    "with timestamps": [Order(timestamps=0xDEAD_BEEF), Order(flow=V6, timestamps=1)],
    "with SACK": [Order(options=SACK), Order(options=SACK, timestamps=7, flow=FLOWS[2])],
    "with all options": [Order(options=bytes(range(1, 41))), Order(options=bytes(range(1, 29)), timestamps=3, flow=V6)],
    "one byte": [Order(pieces=[(77, 1)], tcp_flags=0x18)],
    "six bytes": [Order(pieces=[(4096, 6)]), Order(pieces=[(4090, 6)], flow=V6)],
    "MSS": [Order(pieces=[(3, 1448)], tcp_flags=0x19)],
    "two segments": [Order(pieces=[(3, 1449)], tcp_flags=0x99, sequence=0xFFFF_FFFF)],
    "many segments": [Order(pieces=[(3, 700)], mss=100, timestamps=9), Order(pieces=[(0, 999)], mss=64, flow=V6)],
    "eight pieces": [Order(pieces=[(n * 1000 + n, 10 + 7 * n) for n in range(8)]),
                     Order(pieces=[(n * 1000 + n, 90 + n) for n in range(7)], mss=64, flow=V6, options=SACK)],
    "two and three pieces": [Order(pieces=[(0, 5), (9, 5)]), Order(pieces=[(0, 5), (9, 5), (100, 1)], options=SACK)],
    "stale": [Order(generation=8, status=DoneStatus.STALE, done=False), Order(),
              Order(flow=Flow(number=5), status=DoneStatus.STALE, pieces=[(0, 10)]),
              Order(flow=Flow(number=99), status=DoneStatus.STALE, options=SACK, pieces=[(0, 1)] * 8)],
    "revoked key": [Order(pieces=[(0, 10)], key=KEY + 1, status=DoneStatus.KEY, done=False), Order(pieces=[(0, 10)])],
    "beyond the key's end": [Order(pieces=[(0, 100), (KEY_BYTES - 5, 6), (4, 4)], status=DoneStatus.KEY), Order()],
    "wrong lengths": [
        Order(pieces=[(0, 10), (20, 10)], length=21, status=DoneStatus.BAD), Order(),
        Order(pieces=[(0, 10), (20, 0)], status=DoneStatus.BAD), Order(length=5, status=DoneStatus.BAD),
        Order(pieces=[(0, 10)], length=0, status=DoneStatus.BAD), Order(pieces=[(0, 10)])],
    "bad MSS": [Order(pieces=[(0, 10)], mss=31, status=DoneStatus.BAD), Order(pieces=[(0, 32)], mss=32),
                Order(pieces=[(0, 9)], mss=9014 - 53, status=DoneStatus.BAD), Order(pieces=[(0, 9)], mss=9014 - 54),
                Order(pieces=[(0, 9)], mss=9014 - 77, flow=V6, status=DoneStatus.BAD),
                Order(pieces=[(0, 9)], mss=9014 - 78, flow=V6)],
    "too many options": [Order(options=bytes(44), status=DoneStatus.BAD), Order(),
                         Order(options=bytes(32), timestamps=1, status=DoneStatus.BAD, pieces=[(0, 4)]), Order()],
    "a mark that all is over": [Order(pieces=[(0, 99)], done=False), Order(last=True), Order(last=True, options=SACK),
                                Order(last=True, generation=8, status=DoneStatus.STALE, done=False)],
    "too many units": [Order(more_units=1, pieces=[(0, 4)], status=DoneStatus.BAD), Order(pieces=[(0, 4)]),
                       Order(more_units=3, status=DoneStatus.BAD), Order()],
}


@pytest.mark.parametrize("host_bytes", [16, pytest.param(32, marks=pytest.mark.long), 64])
def test_frames_are_scapys_and_each_order_is_answered(host_bytes: int) -> None:
    run([replace(order) for orders in ORDERS.values() for order in orders], config=config_of(host_bytes))


def random_order(rng: random.Random) -> Order:
    """Any order that is obeyed, and some that are refused."""
    flow = rng.choice(FLOWS)
    pieces = [(rng.randrange(1 << 16), rng.choice((1, 6, 64, rng.randint(1, 300)))) for _ in range(
        rng.choice((0, 0, 1, 1, 2, 3, 8)))]
    order = Order(
        flow=flow, pieces=pieces, mss=rng.choice((64, 100, 1448)), tcp_flags=rng.randrange(256) & ~0x02,
        sequence=rng.getrandbits(32), acknowledgement=rng.getrandbits(32), window=rng.getrandbits(16),
        ecn=rng.randrange(4), timestamps=rng.choice((None, rng.getrandbits(32))),
        options=rng.randbytes(4 * rng.choice((0, 0, 1, 3, 7))), done=rng.random() < 0.5)
    refusal = rng.randrange(12)
    if refusal == 0:
        order.generation, order.status = flow.generation ^ 1, DoneStatus.STALE
    elif refusal == 1 and pieces:
        order.key, order.status = KEY ^ 1, DoneStatus.KEY
    elif refusal == 2 and pieces:
        order.length, order.status = order.payload_bytes + 1, DoneStatus.BAD
    return order


def test_random_orders_with_stalls_everywhere() -> None:
    rng = random.Random(SEED)
    run([random_order(rng) for _ in range(18)], stall=0.3, mac_stall=0.2, up_stall=0.5, watched=True,
        max_cycles=8_000)


@pytest.mark.long
@pytest.mark.parametrize("host_bytes", [16, 32, 64])
@pytest.mark.parametrize("seed", range(8))
def test_many_random_orders(seed: int, host_bytes: int) -> None:
    rng = random.Random(seed)
    run([random_order(rng) for _ in range(120)], config=config_of(host_bytes), stall=rng.choice((0.0, 0.4)),
        mac_stall=rng.choice((0.0, 0.3)), up_stall=rng.choice((0.0, 0.8)), seed=seed, max_cycles=30_000)


RAW_IPV4 = bytes(Ether(src=OWN_MAC, dst="02:00:00:00:00:09") / IP(src="10.1.2.3", dst="10.0.0.1", id=77, chksum=0)
                 / UDP(sport=53, dport=1000, len=8 + 21, chksum=0x1234))
RAW_ARP = bytes(Ether(src=OWN_MAC, dst="ff:ff:ff:ff:ff:ff", type=0x0806)) + bytes(range(28))
NO_ONE = Flow(number=NO_FLOW, generation=0, channel=2)


def test_raw_frames_are_sent_as_they_are_but_for_the_sums_that_are_asked_for() -> None:
    sums = OrderFlag.IPV4_CHECKSUM | OrderFlag.L4_CHECKSUM
    run([
        Order(flow=NO_ONE, raw=RAW_ARP), Order(flow=NO_ONE, raw=RAW_ARP[:14]),
        Order(flow=NO_ONE, raw=bytes(range(64, 128)) + bytes(range(64))),
        Order(flow=NO_ONE, raw=RAW_IPV4, raw_offsets=(14, 34, 40), raw_flags=sums, pieces=[(1001, 21)]),
        Order(flow=V4, raw=RAW_IPV4 + bytes(30), raw_offsets=(14, 34, 40), raw_flags=sums),
        # refused: an old flow, a frame that is too short or too long, a header that the message has no room for
        Order(flow=V4, generation=1, raw=RAW_ARP, status=DoneStatus.STALE),
        Order(flow=NO_ONE, raw=RAW_ARP[:13], status=DoneStatus.BAD),
        Order(flow=NO_ONE, raw=RAW_ARP, pieces=[(0, 9000)], status=DoneStatus.BAD),
        Order(flow=NO_ONE, raw=RAW_ARP, more_units=1, status=DoneStatus.BAD),
        Order(flow=NO_ONE, raw=RAW_ARP, pieces=[(0, 9)], key=KEY ^ 8, status=DoneStatus.KEY),
        Order(flow=NO_ONE, raw=RAW_ARP),
    ])


def test_a_failed_read_sends_nothing_and_says_so() -> None:
    run([Order(pieces=[(0, 100)], status=DoneStatus.BUS, done=False), Order(),
         Order(pieces=[(0, 300)], mss=100, status=DoneStatus.BUS)], bad_bus=True)


@pytest.mark.parametrize("order", [Order(pieces=[(64, 6)]), Order(timestamps=5)], ids=["60 bytes", "no payload"])
def test_small_segments_leave_at_line_rate(order: Order) -> None:
    """60 bytes take 10.5 cycles on the wire at 64 bits."""
    _, starts = run([replace(order, done=False, sequence=number) for number in range(28)])
    steady = starts[8:]
    assert (steady[-1] - steady[0]) / (len(steady) - 1) <= 10.5
