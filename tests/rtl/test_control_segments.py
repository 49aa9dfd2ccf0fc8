"""SEGMENT and UNKNOWN messages against frames that scapy made: every field, and how fast they come."""

import logging
import random
import struct

import pytest

from nic_model.contract import NicConfig, RxInfo
from nic_model.contract.control import (
    NO_FLOW,
    NO_LISTENER,
    SEGMENT_OPTIONS,
    SEGMENT_SACK,
    TIME_SHIFT,
    ControlType,
    UnknownReason,
    UpFlag,
    unpack_message,
)
from nic_model.receive_parser import parse_received
from rtl.control_segments import SegmentMessages
from tests.rtl.harness import Bench, idle, plain
from tests.rtl.rx_frames import data, ether, flipped

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP  # noqa: E402
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, PadN  # noqa: E402
from scapy.layers.l2 import ARP, Dot1Q, Ether  # noqa: E402

CONFIGS = {bits: NicConfig(name=f"{bits} bits", mac_bytes=bits // 8, flows=16, control_slots=16, control_cells=64)
           for bits in (64, 128, 512)}

TS = [("NOP", None), ("NOP", None), ("Timestamp", (0x01020304, 0x05060708))]


def sack(blocks):
    return [("NOP", None), ("NOP", None), ("SAck", tuple(range(0x1000, 0x1000 + 2 * blocks)))]


def tcp4(options=(), payload=b"", *, vlan=None, tos=0, **fields):
    given = {"sport": 0x1234, "dport": 80, "seq": 0x89ABCDEF, "ack": 0x76543210, "window": 0xFEDC, "flags": "PA",
             **fields}
    return bytes(ether(vlan=vlan) / IP(src="10.0.0.1", dst="10.0.0.2", tos=tos) / TCP(options=list(options), **given)
                 / payload)


def tcp6(options=(), payload=b"", *, vlan=None, tc=0, extension=None):
    layer = IPv6(src="fd00::1", dst="fd00::2", tc=tc, fl=0xABCDE)
    if extension is not None:
        layer = layer / extension
    return bytes(ether(vlan=vlan) / layer / TCP(options=list(options), sport=0x1234, dport=80, seq=1, ack=2, flags="A")
                 / payload)


FRAMES = {
    "acknowledgement, padded": tcp4() + bytes(6),
    "payload": tcp4((), data(1000)),
    "all flags, urgent": tcp4((), data(3), flags="FSRPAUECN", urgptr=0x4321),
    "congestion experienced": tcp4((), data(7), tos=0xFF),
    "timestamps": tcp4(TS, data(100)),
    "one SACK block": tcp4(sack(1)),
    "four SACK blocks": tcp4(sack(4)),
    "timestamps and a SACK block": tcp4(TS + sack(1), data(4)),
    "timestamps and three SACK blocks": tcp4(TS + sack(3)),
    "options of a SYN": tcp4([("MSS", 1460), ("SAckOK", b""), ("Timestamp", (7, 8)), ("NOP", None), ("WScale", 7)],
                             flags="S"),
    "timestamps without NOPs": tcp4([("Timestamp", (7, 8)), ("NOP", None), ("NOP", None)]),
    "three NOPs and an end": tcp4([("NOP", None)] * 3 + [("EOL", None)]),
    "forty bytes of options": tcp4([("NOP", None)] * 40, data(5)),
    "timestamps and something": tcp4([*TS, ("NOP", None), ("NOP", None), ("NOP", None), ("NOP", None)], data(5)),
    "a tag": tcp4(TS + sack(2), data(77), vlan=99, tos=0x02),
    "IPv6": tcp6((), data(64), tc=0x55),
    "IPv6, timestamps, a tag": tcp6(TS, data(999), vlan=5, tc=0xFE),
    "IPv6, an extension header": tcp6((), data(9), extension=IPv6ExtHdrDestOpt()),
}

OTHERS = {
    "ARP": (bytes(ether() / ARP()), UnknownReason.NOT_TCP),
    "ICMP": (bytes(ether() / IP(src="10.0.0.1", dst="10.0.0.2") / ICMP() / data(300)), UnknownReason.NOT_TCP),
    "UDP over IPv6": (bytes(ether(vlan=3) / IPv6(src="fd00::1", dst="fd00::2") / UDP() / data(30)),
                      UnknownReason.NOT_TCP),
    "deep extension headers": (tcp6((), data(9), extension=IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(20))])),
                               UnknownReason.NOT_TCP),
    "IPv4 options": (bytes(ether() / IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_NOP()] * 40)
                           / TCP(sport=1, dport=2, flags="A") / data(20)), UnknownReason.NOT_TCP),
    "SYN": (FRAMES["options of a SYN"], UnknownReason.SYN),
    "no flow": (FRAMES["timestamps and three SACK blocks"], UnknownReason.NO_FLOW),
    "long, no flow": (FRAMES["IPv6, timestamps, a tag"], UnknownReason.NO_FLOW),
    "wrong checksum": (flipped(FRAMES["payload"], 200), UnknownReason.CHECKSUM),
    "wrong IPv4 checksum": (flipped(FRAMES["payload"], 22), UnknownReason.CHECKSUM),
    "header cut off": (tcp4((), b"", dataofs=6) + bytes(6), UnknownReason.CHECKSUM),
    "header too short": (tcp4((), data(40), dataofs=4), UnknownReason.CHECKSUM),
}


def expected(frame, arrival):
    """The message, by what scapy finds in the frame."""
    packet = Ether(frame)
    info = RxInfo(arrival["info"])
    l3 = packet.getlayer(IP) or packet.getlayer(IPv6)
    is_tcp = bool(info & RxInfo.TCP) and arrival["l4"] <= 34
    found = arrival["found"]
    want = {"handle": arrival["handle"], "segments": 1, "frame_bytes": len(frame), "length": len(frame), "ecn": 0}
    flags = (UpFlag.IPV6 if isinstance(l3, IPv6) else 0) | (UpFlag.VLAN if packet.haslayer(Dot1Q) else 0)
    options = b""
    if l3 is not None:
        want["ecn"] = (l3.tos if isinstance(l3, IP) else l3.tc) & 3
    if is_tcp:
        at = 2 * arrival["l4"]
        # The fixed header and the end of the IP packet, by hand: scapy hides options that it does not like.
        (sport, dport, sequence, acknowledgement, offset_flags, window, _, urgent) = struct.unpack_from(
            ">HHIIHHHH", frame, at)
        end = 2 * arrival["l3"] + (l3.len if isinstance(l3, IP) else 40 + l3.plen)
        header = 4 * (offset_flags >> 12)
        cut = header < 20 or at + header > end
        good = not cut and not info & RxInfo.CHECKSUM_BAD
        found = found and not cut
        if good:
            want |= {"sequence": sequence, "acknowledgement": acknowledgement, "window": window, "urgent": urgent,
                     "tcp_flags": offset_flags & 0x1FF, "length": end - at - header, "payload_offset": at + header,
                     "option_bytes": header - 20}
            options = frame[at + 20:at + header]
        if options[:4] == b"\1\1\x08\x0a" and (
                len(options) == 12 or (options[12:15] == b"\1\1\x05" and len(options) == 14 + options[15])):
            flags |= UpFlag.TIMESTAMPS
            want["ts_value"], want["ts_echo"] = struct.unpack(">II", options[4:12])
    further = b""
    rest = options[12:] if flags & UpFlag.TIMESTAMPS else options
    has_blocks = rest[:3] == b"\1\1\x05" and len(rest) == 2 + rest[3]
    if rest and not has_blocks:
        flags |= UpFlag.RAW_OPTIONS
    if found:
        if has_blocks:
            blocks = (rest[3] - 2) // 8
            edges = struct.unpack(f">{2 * blocks}I", rest[4:])
            want["sack_blocks"] = blocks
            further = SEGMENT_SACK.pack(**{
                f"{('left', 'right')[n % 2]}_{n // 2}": edge for n, edge in enumerate(edges)})
        elif rest:
            further = SEGMENT_OPTIONS.pack(options=int.from_bytes(options, "little"))
        want |= {"type": ControlType.SEGMENT, "flow": arrival["flow"], "generation": arrival["generation"],
                 "units": 1 + bool(further)}
    else:
        addresses = b"", b""
        if l3 is not None and not arrival["found"]:
            addresses = ((bytes.fromhex("0a000001"), bytes.fromhex("0a000002")) if isinstance(l3, IP)
                         else (bytes.fromhex("fd" + "00" * 14 + "01"), bytes.fromhex("fd" + "00" * 14 + "02")))
        want |= {
            "type": ControlType.UNKNOWN, "units": 4, "flow": NO_FLOW, "info": arrival["info"],
            "listener": arrival["listener"] if arrival["listened"] and not arrival["found"] else NO_LISTENER,
            "remote_address": int.from_bytes(addresses[0], "little"),
            "local_address": int.from_bytes(addresses[1], "little"),
            "frame": 0 if arrival["found"] else int.from_bytes(frame[:128], "little"),
        }
        if is_tcp:
            want |= {"remote_port": sport, "local_port": dport}
    return {**want, "version": 1, "flags": int(flags)}, further


def arrival_of(frame, rng, *, found):
    parsed = parse_received(frame)
    return {"found": int(found), "flow": rng.randrange(16) if found else 0, "generation": rng.randrange(256),
            "listened": int(not found and rng.random() < 0.5), "listener": rng.randrange(64),
            "handle": rng.randrange(64), "length": len(frame), "info": int(parsed.info),
            "l3": parsed.l3_offset // 2, "l4": parsed.l4_offset // 2, "checksum": rng.getrandbits(16),
            "time": rng.getrandbits(64)}


class Device:
    """The block; frames go in, messages are compared."""

    def __init__(self, config, *, seed=0, stall=0.0):
        self.config, self.width = config, config.host_bytes
        self.dut = SegmentMessages(config)
        self.bench = Bench(self.dut, seed=seed)
        self.beats, self.held, self.expected, self.refused, self.reasons = [], [], [], 0, []
        self.counted = {name: [] for name in ("segments", "unknown", "bytes")}
        self.bench.sink(self.dut.o, self.beats, stall=stall)
        self.bench.strobes(self.dut.held, self.held)
        for name, seen in self.counted.items():
            self.bench.strobes(getattr(self.dut, f"count_{name}"), seen)

    async def frame(self, ctx, frame, arrival, *, keep=True, gap=0):
        dut = self.dut
        ctx.set(dut.now, 0x123456 << TIME_SHIFT)
        pieces = [frame[at:at + self.width] for at in range(0, len(frame), self.width)]
        for n, piece in enumerate(pieces):
            row = {"data": int.from_bytes(piece, "little"), "first": int(n == 0), "last": int(n == len(pieces) - 1)}
            ctx.set(dut.row.payload, row)
            ctx.set(dut.row.valid, 1)
            has_room = ctx.get(dut.has_room)
            keeps = row["last"] and keep and has_room
            ctx.set(dut.row.payload, {**row, "keep": int(keeps)})
            ctx.set(dut.arrival, arrival)
            await ctx.tick()
            ctx.set(dut.row.valid, 0)
            await idle(ctx, gap)
        if keeps:
            self.expected.append((*expected(frame, arrival), arrival))
        self.refused += keep and not keeps
        return keeps

    def run(self, *mains, **limits):
        for main in mains:
            self.bench.add(main)
        self.bench.run(**limits)
        assert self.bench.idle_cycles > 0
        messages, message = [], b""
        for beat in self.beats:
            message += beat["data"].to_bytes(self.width, "little")
            if beat["last"]:
                messages.append(message)
                message = b""
        assert not message
        assert len(messages) == len(self.expected) == len(self.held)
        for message, (want, further, arrival), held in zip(messages, self.expected, self.held, strict=True):
            kind, fields, rest = unpack_message(message)
            reason = fields.pop("reason", None)
            assert fields.pop("time") == 0x123456
            assert kind == want["type"]
            assert {name: value for name, value in fields.items() if value or name in want} == want
            assert rest == further
            assert held == {
                "handle": want["handle"], "flow": want["flow"], "payload_offset": want.get("payload_offset", 0),
                "payload_bytes": want["length"],
                "length": arrival["length"], **{n: arrival[n] for n in ("info", "checksum", "time")}}
            self.reasons.append(reason)
        for name, count in (("segments", ControlType.SEGMENT), ("unknown", ControlType.UNKNOWN)):
            assert len(self.counted[name]) == sum(want["type"] == count for want, *_ in self.expected)
        assert sum(c["amount"] for c in self.counted["bytes"]) == sum(a["length"] for *_, a in self.expected)


@pytest.mark.parametrize(("bits", "which"), [(64, 1), (128, 2), (512, 6)])  # the widest takes long to simulate
def test_every_shape_of_segment(bits, which):
    device = Device(CONFIGS[bits])
    rng = random.Random(1)
    frames = list(FRAMES.values())[which - 1::which]

    async def main(ctx):
        for frame in frames:
            while not await device.frame(ctx, frame, arrival_of(frame, rng, found=True)):
                await idle(ctx, 20)
        await idle(ctx, 100)

    device.run(main)
    assert len(device.expected) == len(frames)


@pytest.mark.parametrize("bits", [64, 128])
def test_every_reason_for_an_unknown(bits):
    device = Device(CONFIGS[bits])
    rng = random.Random(2)

    async def main(ctx):
        for frame, _ in OTHERS.values():
            await device.frame(ctx, frame, arrival_of(frame, rng, found=False))
            await idle(ctx, 60)
        for name in ("header cut off", "header too short"):  # of a flow that is in the table
            await device.frame(ctx, OTHERS[name][0], arrival_of(OTHERS[name][0], rng, found=True))
            await idle(ctx, 60)

    device.run(main)
    assert device.reasons == [reason for _, reason in OTHERS.values()] + [UnknownReason.CHECKSUM] * 2


@pytest.mark.parametrize(("bits", "stall"), [(64, 0.0), (64, 0.6)])
def test_random_frames(bits, stall):
    seed = bits + int(10 * stall)
    rng = random.Random(seed)
    device = Device(CONFIGS[bits], seed=seed, stall=stall)

    async def main(ctx):
        for _ in range(60):
            found = rng.random() < 0.8
            frame = rng.choice(list(FRAMES.values())) if found else rng.choice([f for f, _ in OTHERS.values()])
            await device.frame(ctx, frame, arrival_of(frame, rng, found=found), keep=rng.random() < 0.8,
                               gap=rng.choice((0, 0, 1)))
            await idle(ctx, rng.choice((0, 0, 0, 5, 30)))
        await idle(ctx, 800)

    device.run(main)
    assert len(device.expected) > 10, f"seed {seed}"


def test_slots_run_out_and_come_back():
    # Whoever takes the messages is slow: frames are refused, and none that was not is lost.
    device = Device(CONFIGS[64], seed=5, stall=0.9)
    rng = random.Random(5)
    frame = FRAMES["timestamps and a SACK block"]

    async def main(ctx):
        for _ in range(30):
            await device.frame(ctx, frame, arrival_of(frame, rng, found=True), gap=1)
        await idle(ctx, 3000)

    device.run(main)
    assert device.refused > 5
    assert len(device.expected) >= CONFIGS[64].control_slots // 2


@pytest.mark.parametrize("name", ["acknowledgement, padded", "timestamps"])
def test_shortest_segments_at_line_rate(name):
    # A frame of 60 bytes and what stands between frames, 84 bytes, in 10.5 cycles: it takes less, for ever.
    device = Device(CONFIGS[64])
    frame = (FRAMES[name] if name != "timestamps" else tcp4(TS, b"")).ljust(60, b"\0")
    rng = random.Random(3)
    times = []

    async def watch(ctx):
        async for _, _, held in ctx.tick().sample(device.dut.held.valid):
            if plain(held):
                times.append(device.bench.cycle)

    async def main(ctx):
        for _ in range(40):
            kept = await device.frame(ctx, frame, arrival_of(frame, rng, found=True), gap=1)
            assert kept
            await idle(ctx, 1 if len(frame) == 60 else 0)
        await idle(ctx, 60)

    device.bench.background(watch)
    device.run(main)
    assert len(times) == 40
    assert (times[-1] - times[0]) / 39 <= 10.5
