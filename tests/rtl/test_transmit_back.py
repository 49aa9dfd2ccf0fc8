"""Sends through the transmit back end. Frames are compared bit for bit: with scapy's where headers matter, with the
device model's (which has scapy tests of its own) for random and odd descriptors."""

import logging
import random
import struct
from dataclasses import dataclass, field

import pytest

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import IPv6  # noqa: E402
from scapy.layers.l2 import Dot1Q, Ether  # noqa: E402

from nic_model.contract import NicConfig, SendFlag, Status  # noqa: E402
from nic_model.segmentation import finish_frame, segment  # noqa: E402
from rtl.transmit_back import TransmitBack  # noqa: E402
from tests.rtl.harness import Bench  # noqa: E402

SEED = 7_301
MACS = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}


def config_of(mac_bytes: int, host_bytes: int = 0) -> NicConfig:
    return NicConfig(name="test", mac_bytes=mac_bytes, host_bytes=host_bytes, channels=4, vectors=4, keys=64)


@dataclass
class Send:
    """One send as the transmit front hands it on, and what should come of it."""

    inline: bytes = b""
    payload: bytes = b""
    head: dict = field(default_factory=dict)
    segmented: bool = False
    status: int = Status.OK
    complete: bool = True
    pieces: list[int] | None = None
    """Lengths of the payload's pieces; None for one piece."""
    bad_from: int | None = None
    """Payload byte from which on the bus fails, to the end of that byte's piece."""

    def flags(self) -> int:
        return self.head.get("flags", 0)

    def job(self, number: int) -> dict:
        flags = self.flags()
        return {
            "channel": number % 4, "tag": number * 7 % 65536, "status": int(self.status), "ring_index": number,
            "complete": self.complete, "timestamp": bool(flags & SendFlag.TIMESTAMP), "segmented": self.segmented,
            "ipv6": bool(flags & SendFlag.IPV6), "ipv4_checksum": bool(flags & SendFlag.IPV4_CHECKSUM),
            "l4_checksum": bool(flags & SendFlag.L4_CHECKSUM), "udp": bool(flags & SendFlag.UDP),
            "inline_bytes": len(self.inline), "l3_offset": self.head.get("l3_offset", 0),
            "l4_offset": self.head.get("l4_offset", 0), "checksum_offset": self.head.get("checksum_offset", 0),
            "mss": self.head.get("mss", 0), "payload_bytes": len(self.payload),
        }

    def model_frames(self) -> list[bytes]:
        """What the device model makes of it without bus errors."""
        if self.status != Status.OK:
            return []
        if self.segmented:
            return list(segment(self.inline, self.head, self.payload))
        frame = bytearray(self.inline + self.payload)
        finish_frame(frame, {"flags": 0, **self.head})
        return [bytes(frame)]

    def expected(self) -> tuple[list[bytes], int, int]:
        """Frames, status and payload bytes sent."""
        frames = self.model_frames()
        if self.bad_from is None or self.status != Status.OK:
            return frames, self.status, sum(len(f) - len(self.inline) for f in frames)
        mss = self.head["mss"] if self.segmented else max(len(self.payload), 1)
        good = self.bad_from // mss
        return frames[:good], Status.BUS_ERROR, good * mss


def beats_of(rng, width: int, send: Send) -> list[dict]:
    """The payload as the read engine gives it: each piece at an address of its own."""
    beats, position = [], 0
    for length in send.pieces or ([len(send.payload)] if send.payload else []):
        end, start = position + length, rng.randrange(width)
        while position < end:
            count = min(width - start, end - position)
            word = bytearray(rng.randbytes(width))
            word[start:start + count] = send.payload[position:position + count]
            error = send.bad_from is not None and position + count > send.bad_from
            position += count
            beats.append({"data": int.from_bytes(word, "little"), "start": start, "count": count,
                          "last": position == end, "error": error})
            start = 0
    assert position == len(send.payload)
    return beats


@dataclass
class Run:
    """What came of a run."""

    bench: Bench
    frames: list[bytes]
    beats: list[tuple[int, dict]]
    done: list[dict]
    frame_starts: list[int]


def run(config: NicConfig, sends: list[Send], *, stall: float = 0.0, mac_stall: float = 0.0, done_stall: float = 0.0,
        seed: int = SEED, max_cycles: int = 60_000) -> Run:
    """Send all, and check what leaves against what is expected: frames, their order, reports, counters, time stamps."""
    rng = random.Random(seed)
    width, mac_width = config.host_bytes, config.mac_bytes
    dut = TransmitBack(config)
    bench = Bench(dut, seed=seed)
    jobs = [send.job(number) for number, send in enumerate(sends)]
    good = [send for send in sends if send.status == Status.OK]
    rows = [{"data": int.from_bytes(send.inline[at:at + width].ljust(width, b"\xa5"), "little"),
             "last": at + width >= len(send.inline)} for send in good for at in range(0, len(send.inline), width)]
    payload = [beat for send in good for beat in beats_of(rng, width, send)]
    bench.source(dut.job, jobs, stall=stall)
    bench.source(dut.inline, rows, stall=stall)
    bench.source(dut.payload, payload, stall=stall)
    done, counted_frames, counted_bytes, beats = [], [], [], []
    bench.sink(dut.done, done, stall=done_stall)
    bench.strobes(dut.count_tx_frames, counted_frames)
    bench.strobes(dut.count_tx_bytes, counted_bytes)
    bench.sink(dut.mac, [], stall=mac_stall)

    async def clock(ctx):
        async for _ in ctx.tick():
            ctx.set(dut.now, bench.cycle + 1000)
    bench.background(clock)

    async def watch_mac(ctx):
        mac = dut.mac
        async for _, _, valid, ready, word, now in ctx.tick().sample(mac.valid, mac.ready, mac.payload, dut.now):
            if valid and ready:
                beats.append((now, {name: int(word[name]) for name in ("data", "keep", "last", "user")}))
    bench._simulator.add_process(watch_mac)

    async def until_all_is_done(ctx):
        while len(done) < len(sends):
            await ctx.tick()
        await ctx.tick().repeat(20)
    bench.add(until_all_is_done)
    bench.run(max_cycles=max_cycles)

    frames, starts, current = [], [], b""
    for now, beat in beats:
        if not current:
            starts.append(now)
        count = beat["keep"].bit_count()
        assert beat["keep"] == (1 << count) - 1
        assert beat["last"] or count == mac_width
        assert beat["user"] == 0
        current += beat["data"].to_bytes(mac_width, "little")[:count]
        if beat["last"]:
            frames.append(current)
            current = b""
    assert current == b"", "a frame without an end is left over"

    expected = [send.expected() for send in sends]
    wanted = [frame for of_send, _, _ in expected for frame in of_send]
    assert [len(f) for f in frames] == [len(f) for f in wanted]
    for number, (got, want) in enumerate(zip(frames, wanted, strict=True)):
        assert got == want, f"frame {number}: {got.hex()} is not {want.hex()}"
    sent = 0
    for job, send, report, (of_send, status, length) in zip(jobs, sends, done, expected, strict=True):
        sent += len(of_send)
        stamp = starts[sent - 1] if send.flags() & SendFlag.TIMESTAMP and of_send else 0
        assert report == {
            **{name: job[name] for name in ("channel", "tag", "ring_index", "complete")},
            "status": status, "length": length, "segments": len(of_send), "timestamp": stamp,
        }
    assert [c["amount"] for c in counted_bytes] == [len(f) for f in frames]
    assert [c["amount"] for c in counted_frames] == [1] * len(frames)
    return Run(bench, frames, beats, done, starts)


# Headers, made by scapy.

def add_words(data: bytes) -> int:
    """Sum of 16-bit words with end-around carry, the way RFC 1071 says it."""
    total = 0
    for (word,) in struct.iter_unpack("!H", data + b"\0" * (len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ip_layer(ipv6: bool, **fields):
    if ipv6:
        return IPv6(src="fd00::1", dst="fd00::2", hlim=64, **fields)
    return IP(src="10.0.0.1", dst="10.0.0.2", ttl=64, flags="DF", **fields)


def tcp_send(payload: bytes, mss: int, *, ipv6: bool = False, vlan: bool = False, options=(), flags: str = "PA",
             seq: int = 1000, ip_id: int = 77, send_flags: int = 0, **more) -> tuple[Send, list[bytes]]:
    """A segmented send, and its frames as scapy builds them."""
    link = Ether(**MACS) / Dot1Q(vlan=5) if vlan else Ether(**MACS)
    l3 = len(bytes(Ether(**MACS))) + (4 if vlan else 0)
    l4 = l3 + (40 if ipv6 else 20)

    def frame(start: int) -> bytes:
        last = start + mss >= len(payload)
        kept = "".join(f for f in flags if not ((f in "PF" and not last) or (f == "C" and start)))
        ip = ip_layer(ipv6) if ipv6 else ip_layer(ipv6, id=(ip_id + start // mss) % 65536)
        tcp = TCP(sport=80, dport=40_000, seq=(seq + start) % (1 << 32), ack=99, flags=kept, window=500,
                  options=list(options))
        return bytes(link / ip / tcp / payload[start:start + mss])

    frames = [frame(start) for start in range(0, len(payload), mss)]
    ip = ip_layer(ipv6) if ipv6 else ip_layer(ipv6, id=ip_id)
    whole = bytes(link / ip / TCP(sport=80, dport=40_000, seq=seq, ack=99, flags=flags, window=500,
                                  options=list(options)))
    template = bytearray(whole)
    length_at, addresses = (l3 + 4, template[l3 + 8:l3 + 40]) if ipv6 else (l3 + 2, template[l3 + 12:l3 + 20])
    template[length_at:length_at + 2] = b"\0\0"
    if not ipv6:
        template[l3 + 10:l3 + 12] = b"\0\0"
    template[l4 + 16:l4 + 18] = add_words(bytes(addresses) + b"\0\x06").to_bytes(2, "big")
    checks = SendFlag.L4_CHECKSUM | (SendFlag.IPV6 if ipv6 else SendFlag.IPV4_CHECKSUM)
    head = {"flags": checks | send_flags, "l3_offset": l3, "l4_offset": l4, "checksum_offset": l4 + 16, "mss": mss}
    return Send(inline=bytes(template), payload=payload, head=head, segmented=True, **more), frames


def udp_send(payload: bytes, inline_bytes: int, *, flags=SendFlag.L4_CHECKSUM | SendFlag.IPV4_CHECKSUM | SendFlag.UDP,
             **more) -> tuple[Send, bytes]:
    """A frame of which the first `inline_bytes` are inline, and as scapy builds it."""
    frame = bytes(Ether(**MACS) / ip_layer(False) / UDP(sport=5, dport=6) / payload)
    raw = bytearray(frame)
    if flags & SendFlag.IPV4_CHECKSUM:
        raw[24:26] = b"\0\0"
    if flags & SendFlag.L4_CHECKSUM:
        seed = add_words(bytes(raw[26:34]) + b"\0\x11" + (8 + len(payload)).to_bytes(2, "big"))
        raw[40:42] = seed.to_bytes(2, "big")
    head = {"flags": flags, "l3_offset": 14, "l4_offset": 34, "checksum_offset": 40}
    return Send(inline=bytes(raw[:inline_bytes]), payload=bytes(raw[inline_bytes:]), head=head, **more), frame


OPTIONS = [("NOP", None), ("NOP", None), ("Timestamp", (123_456, 654_321))]


def payload_of(length: int) -> bytes:
    return random.Random(length).randbytes(length)


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("vlan", [False, True])
def test_segments_are_what_scapy_builds(ipv6, vlan):
    cases = [tcp_send(payload_of(length), mss, ipv6=ipv6, vlan=vlan, options=options)
             for length, mss, options in ((1, 536, ()), (536, 536, OPTIONS), (537, 536, ()), (1449 * 2 + 3, 1449, OPTIONS),
                                          (2920, 1460, ()), (100, 33, OPTIONS))]
    result = run(config_of(8), [send for send, _ in cases])
    assert result.frames == [frame for _, frames in cases for frame in frames]
