"""Sends through the transmit back end. Frames are compared bit for bit: with scapy's where headers matter, with the
device model's (which has scapy tests of its own) for random and odd descriptors."""

import itertools
import logging
import random
import struct
from dataclasses import dataclass, field, replace

import pytest

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6  # noqa: E402
from scapy.layers.l2 import GRE, Dot1Q, Ether  # noqa: E402
from scapy.packet import Raw  # noqa: E402

from nic_model.contract import NicConfig, SendFlag, Status  # noqa: E402
from nic_model.segmentation import finish_frame, segment  # noqa: E402
from rtl.transmit_back import TransmitBack  # noqa: E402
from tests.rtl.harness import Bench, plain, shared  # noqa: E402

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
    """Payload byte from which on the bus fails, to the end of that byte's piece. A command starts there."""
    channel: int | None = None
    """None for a channel by the send's number."""
    discarded: bool = False
    stopped_after: int | None = None
    """Its channel stops behind so many frames, at least 1: what is left of the job is discarded."""

    def flags(self) -> int:
        return self.head.get("flags", 0)

    def job(self, number: int) -> dict:
        flags = self.flags()
        return {
            "channel": number % 4 if self.channel is None else self.channel, "tag": number * 7 % 65536,
            "status": int(self.status), "ring_index": number,
            "complete": self.complete, "timestamp": bool(flags & SendFlag.TIMESTAMP), "segmented": self.segmented,
            "ipv6": bool(flags & SendFlag.IPV6), "ipv4_checksum": bool(flags & SendFlag.IPV4_CHECKSUM),
            "l4_checksum": bool(flags & SendFlag.L4_CHECKSUM), "udp": bool(flags & SendFlag.UDP),
            "inline_bytes": len(self.inline), "l3_offset": self.head.get("l3_offset", 0),
            "l4_offset": self.head.get("l4_offset", 0), "checksum_offset": self.head.get("checksum_offset", 0),
            "mss": self.head.get("mss", 0), "payload_bytes": len(self.payload), "epoch": number // 3 % 2,
            "slots": 1, "tagged": 0, "vlan_tci": 0,
        }

    @property
    def passes(self) -> bool:
        """Whether anything of it passes."""
        return self.status == Status.OK and not self.discarded

    @property
    def cuts(self) -> list[range]:
        """Payload bytes of each of its frames, as the scheduler cuts them."""
        if not self.passes:
            return [range(0)]
        step = self.head["mss"] if self.segmented else max(len(self.payload), 1)
        cuts = [range(at, min(at + step, len(self.payload))) for at in range(0, max(len(self.payload), 1), step)]
        return cuts if self.stopped_after is None else [*cuts[:self.stopped_after], range(0)]

    def is_discarded(self, frame: int) -> bool:
        """Whether a slice is only the end of what its channel discards."""
        return self.discarded or frame == self.stopped_after

    def model_frames(self) -> list[bytes]:
        """What the device model makes of it without bus errors."""
        if not self.passes:
            return []
        if self.segmented:
            # a segmented send always gets its checksums
            checks = SendFlag.L4_CHECKSUM | (SendFlag(0) if self.flags() & SendFlag.IPV6 else SendFlag.IPV4_CHECKSUM)
            flags = self.flags() & ~SendFlag.IPV4_CHECKSUM | checks
            return list(segment(self.inline, {**self.head, "flags": flags}, self.payload))
        frame = bytearray(self.inline + self.payload)
        finish_frame(frame, {"flags": 0, **self.head})
        return [bytes(frame)]

    def expected(self) -> tuple[list[bytes], int, int]:
        """Frames, status and payload bytes sent."""
        frames = self.model_frames()[:self.stopped_after]
        if self.bad_from is None or not self.passes:
            return frames, self.status, sum(len(f) - len(self.inline) for f in frames)
        mss = self.head["mss"] if self.segmented else max(len(self.payload), 1)
        good = self.bad_from // mss
        return frames[:good], Status.BUS_ERROR, good * mss


def beats_of(rng, width: int, send: Send) -> list[dict]:
    """The payload as the read engine gives it: each piece at an address of its own; commands end with frames."""
    beats, position = [], 0
    ends = set(itertools.accumulate(send.pieces or [len(send.payload)]))
    failed = range(0)
    if send.bad_from is not None:
        failed = range(send.bad_from, min(end for end in ends if end > send.bad_from))
        ends.add(send.bad_from)
    ends |= {cut.stop for cut in send.cuts}
    for end in sorted(ends - {0}):
        start = rng.randrange(width)
        while position < end:
            count = min(width - start, end - position)
            word = bytearray(rng.randbytes(width))
            word[start:start + count] = send.payload[position:position + count]
            beats.append({"data": int.from_bytes(word, "little"), "start": start, "count": count,
                          "last": position + count == end, "error": position in failed})
            position += count
            start = 0
    assert position == len(send.payload)
    return beats


def in_turn(rng, sends: list[Send], strict: bool) -> list[tuple[int, int]]:
    """All slices, as (number of the send, number of the frame), in an order that the scheduler might give: any
    channel's next frame may be next; or `strict`ly one of each channel in turn."""
    waiting: dict[int, list[tuple[int, int]]] = {}
    for number, send in enumerate(sends):
        waiting.setdefault(send.job(number)["channel"], []).extend((number, n) for n in range(len(send.cuts)))
    order = []
    while waiting and strict:
        for channel in list(waiting):
            order.append(waiting[channel].pop(0))
            if not waiting[channel]:
                del waiting[channel]
    while waiting:
        channel = rng.choice(list(waiting))
        for _ in range(rng.choice((1, 1, 2, 5))):
            if waiting[channel]:
                order.append(waiting[channel].pop(0))
        if not waiting[channel]:
            del waiting[channel]
    return order


@dataclass
class Run:
    """What came of a run."""

    bench: Bench
    frames: list[bytes]
    beats: list[tuple[int, dict]]
    done: list[dict]
    frame_starts: list[int]


def run(config: NicConfig, sends: list[Send], *, stall: float = 0.0, mac_stall: float = 0.0, done_stall: float = 0.0,
        mac_held_cycles: int = 0, seed: int = SEED, max_cycles: int = 60_000, interleaved: bool | str = False) -> Run:
    """Send all, one after the other or channels interleaved frame by frame, and check what leaves against what is
    expected: frames, their order, reports, counters, time stamps."""
    rng = random.Random(seed)
    width, mac_width = config.host_bytes, config.mac_bytes
    dut = shared(TransmitBack, config)
    bench = Bench(dut, seed=seed)
    jobs = [send.job(number) for number, send in enumerate(sends)]
    order = [(number, frame) for number, send in enumerate(sends) for frame in range(len(send.cuts))]
    if interleaved:
        order = in_turn(random.Random(seed), sends, strict=interleaved == "frame by frame")
    slices, rows, payload = [], [], []
    all_beats = [beats_of(rng, width, send) if send.passes else [] for send in sends]
    for number, frame in order:
        send, cut = sends[number], sends[number].cuts[frame]
        slices.append({
            "job": jobs[number], "offset": cut.start, "number": frame, "count": len(cut), "first": frame == 0,
            "last": frame == len(send.cuts) - 1, "discarded": send.is_discarded(frame)})
        if not send.passes or send.is_discarded(frame):
            continue
        if frame == 0:
            rows += [{"data": int.from_bytes(send.inline[at:at + width].ljust(width, b"\xa5"), "little"),
                      "last": at + width >= len(send.inline)} for at in range(0, len(send.inline), width)]
        left = len(cut)
        while left:
            payload.append(all_beats[number].pop(0))
            left -= payload[-1]["count"]
    bench.source(dut.slice, slices, stall=stall)
    bench.source(dut.inline, rows, stall=stall)
    bench.source(dut.payload, payload, stall=stall)
    done, counted_frames, counted_bytes, beats = [], [], [], []
    bench.sink(dut.done, done, stall=done_stall)
    bench.strobes(dut.count_tx_frames, counted_frames)
    bench.strobes(dut.count_tx_bytes, counted_bytes)

    async def clock(ctx):
        async for _ in ctx.tick():
            ctx.set(dut.now, bench.cycle + 1000)
    bench.background(clock)

    async def mac_side(ctx):
        mac, refused = dut.mac, None
        async for _, _, valid, ready, word, now, active in ctx.tick().sample(
                mac.valid, mac.ready, mac.payload, dut.now, dut.active):
            beat = plain(word)
            assert refused is None or (valid and beat == refused), f"cycle {bench.cycle}: an offer was not kept"
            if valid and ready:
                beats.append((now, beat))
            refused = beat if valid and not ready else None
            held = bench.cycle < mac_held_cycles
            ctx.set(mac.ready, not held and bench.rng.random() >= mac_stall)
            if bench.cycle == mac_held_cycles - 1:
                assert not active, "everything waits for the MAC, and that is no work"
    bench.background(mac_side)

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
    sent, wanted = [], []
    for number, frame in order:
        if frame < len(expected[number][0]):
            sent.append(number)
            wanted.append(expected[number][0][frame])
    assert [len(f) for f in frames] == [len(f) for f in wanted]
    for number, (got, want) in enumerate(zip(frames, wanted, strict=True)):
        assert got == want, f"frame {number}: {got.hex()} is not {want.hex()}"
    ended = [number for number, frame in order if frame == len(sends[number].cuts) - 1]
    for number, report in zip(ended, done, strict=True):
        (of_send, status, length), job, send = expected[number], jobs[number], sends[number]
        discarded = send.is_discarded(len(send.cuts) - 1)
        stamped = send.flags() & SendFlag.TIMESTAMP and not discarded and status == Status.OK
        wanted_report = {
            **{name: job[name] for name in ("channel", "tag", "ring_index", "complete", "epoch")},
            "status": status, "length": length, "segments": len(of_send), "discarded": discarded,
            "timestamp": [at for at, who in zip(starts, sent, strict=True) if who == number][-1] if stamped else 0,
        }
        if discarded:
            for name in ("length", "segments", "status"):
                wanted_report[name] = report[name]
        assert report == wanted_report
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


def test_segments_are_what_scapy_builds():
    sizes = ((1, 536, ()), (536, 536, OPTIONS), (537, 536, ()), (1453, 1449, OPTIONS), (100, 33, OPTIONS))
    cases = [tcp_send(payload_of(length), mss, ipv6=ipv6, vlan=vlan, options=options)
             for length, mss, options in sizes for ipv6 in (False, True) for vlan in (False, True)]
    result = run(config_of(16), [send for send, _ in cases])
    assert result.frames == [frame for _, frames in cases for frame in frames]


def test_flags_and_numbers_from_segment_to_segment():
    cases = [tcp_send(payload_of(200), 64, flags=flags, seq=(1 << 32) - 70, ip_id=0xFFFE)
             for flags in ("A", "PA", "FPA", "CA", "CEFPAU")]
    cases.append(tcp_send(payload_of(64), 64, flags="CFPA"))
    result = run(config_of(64), [send for send, _ in cases])
    assert result.frames == [frame for _, frames in cases for frame in frames]


def test_64_kilobytes_fill_the_wide_link():
    send, frames = tcp_send(payload_of(65_535), 1460, send_flags=SendFlag.TIMESTAMP)
    result = run(config_of(64), [send])
    assert result.frames == frames
    assert share_of_cycles_with_a_beat(result) >= 0.98


@pytest.mark.parametrize(("mss", "share"), [(1460, 0.98), (536, 0.95)])
def test_channels_that_take_turns_fill_the_wide_link(mss, share):
    """Each frame is of another channel than the one before."""
    cases = [tcp_send(payload_of(16_384), mss, channel=n) for n in range(3)]
    result = run(config_of(64), [send for send, _ in cases], interleaved="frame by frame")
    assert share_of_cycles_with_a_beat(result) >= share


@pytest.mark.parametrize(("mac_bytes", "cycles"), [(8, 24), (64, 18)])
def test_latency_of_a_small_frame(mac_bytes, cycles):
    """From the slice to the first beat, of a frame without checksums: all of it inline, or with its payload there."""
    for send, less in ((Send(inline=payload_of(60)), 0), (Send(payload=payload_of(60)), 3)):
        result = run(config_of(mac_bytes), [send])
        assert result.frame_starts[0] - 1000 <= cycles - less


def test_segments_fill_the_narrow_link():
    send, frames = tcp_send(payload_of(5 * 1460), 1460)
    result = run(config_of(8), [send])
    assert result.frames == frames
    assert share_of_cycles_with_a_beat(result) >= 0.98


def test_small_frames_take_ten_cycles_at_most():
    cases = [udp_send(payload_of(18), inline) for inline in [60] * 12 + [42] * 12]
    result = run(config_of(8), [send for send, _ in cases])
    assert result.frames == [frame for _, frame in cases]
    assert len(result.frames[0]) == 60
    for starts in (result.frame_starts[:12], result.frame_starts[12:]):
        assert starts[-1] - starts[0] <= 10 * (len(starts) - 1)


def share_of_cycles_with_a_beat(result: Run) -> float:
    return len(result.beats) / (result.beats[-1][0] - result.beats[0][0] + 1)


def test_a_frame_has_no_gap():
    # payload comes slower than the MAC takes it, so a frame that started early would run dry
    cases = [tcp_send(payload_of(700), 300), udp_send(payload_of(400), 42)]
    result = run(config_of(8), [send for send, _ in cases], stall=0.8)
    moment = None
    for now, beat in result.beats:
        assert moment is None or now == moment + 1
        moment = None if beat["last"] else now
    assert len(result.frames) == 4


@pytest.mark.parametrize("mac_bytes", [8, 64])
def test_frames_with_checksums_wherever_the_inline_bytes_end(mac_bytes):
    # from "nothing inline" over the middle of each checksum field to "all inline"
    cases = [udp_send(payload_of(length), inline) for length in (0, 1, 22)
             for inline in (0, 14, 24, 25, 26, 33, 34, 40, 41, 42, 42 + length)]
    result = run(config_of(mac_bytes), [send for send, _ in cases])
    assert result.frames == [frame for _, frame in cases]


def test_frames_are_left_alone_without_flags():
    frame = bytearray(udp_send(b"abc", 0)[1])
    frame[24:26] = b"\xbe\xef"
    frame[40:42] = b"\xca\xfe"
    sends = [Send(inline=bytes(frame[:n]), payload=bytes(frame[n:]), head={"flags": flags, "l3_offset": 200})
             for n in (0, 20, len(frame)) for flags in (0, SendFlag.TIMESTAMP)]
    result = run(config_of(8), sends)
    assert result.frames == [bytes(frame)] * 6
    assert [report["timestamp"] != 0 for report in result.done] == [False, True] * 3


@pytest.mark.parametrize("mac_bytes", [8, 64])
def test_checksums_of_protocols_that_the_device_does_not_know(mac_bytes):
    """Start, offset and a field seeded by software: GRE, which sums itself alone, and ICMPv6, with a pseudo-header; the
    field inline, split, and beyond the inline bytes; odd lengths."""
    cases = []
    for length in (0, 1, 36, 301):
        payload = payload_of(length)
        gre = Ether(**MACS) / ip_layer(False, proto=47) / GRE(chksum_present=1) / Raw(payload)
        echo = Ether(**MACS) / ip_layer(True) / ICMPv6EchoRequest(id=7, seq=1, data=payload)
        for packet, l4, field_at in ((gre, 34, 38), (echo, 54, 56)):
            frame = bytes(packet)
            raw, seed = bytearray(frame), 0
            if packet is echo:
                seed = add_words(frame[22:54] + (len(frame) - 54).to_bytes(4, "big") + b"\0\0\0\x3a")
            raw[field_at:field_at + 2] = seed.to_bytes(2, "big")
            head = {"flags": SendFlag.L4_CHECKSUM, "l4_offset": l4, "checksum_offset": field_at}
            for inline in {0, 14, field_at, field_at + 1, field_at + 2, min(len(frame), 128)}:
                cases.append((Send(inline=bytes(raw[:inline]), payload=bytes(raw[inline:]), head=head), frame))
    result = run(config_of(mac_bytes), [send for send, _ in cases])
    assert result.frames == [frame for _, frame in cases]


def test_udp_checksum_of_zero_is_sent_as_all_ones():
    # RFC 768. The payload word is chosen so that the sum becomes 0xffff, whose complement is 0.
    _, plain = udp_send(b"\0\0", 42)
    payload = plain[40:42]
    sends = [udp_send(payload, 42, flags=flags)[0] for flags in (SendFlag.L4_CHECKSUM,
                                                                 SendFlag.L4_CHECKSUM | SendFlag.UDP)]
    result = run(config_of(8), sends)
    assert [frame[40:42] for frame in result.frames] == [b"\0\0", b"\xff\xff"]


def test_longest_frames():
    sends = [udp_send(payload_of(9014 - 42), 42)[0], tcp_send(payload_of(9000), 9014 - 54)[0]]
    result = run(config_of(64), sends)
    assert [len(frame) for frame in result.frames] == [9014, 9014, 54 + 9000 - 8960]


@pytest.mark.parametrize("mac_bytes", [8, 64])
def test_bus_error_ends_a_send_before_the_frame_that_needed_the_bytes(mac_bytes):
    before, _ = tcp_send(payload_of(150), 100)
    whole, _ = udp_send(payload_of(60), 42, bad_from=5)
    after, _ = udp_send(payload_of(60), 42)
    sends, frames = [], 0
    for bad_from, sent in ((0, 0), (99, 0), (100, 1), (150, 1), (399, 3)):
        failed, _ = tcp_send(payload_of(400), 100, send_flags=SendFlag.TIMESTAMP, bad_from=bad_from, pieces=[250, 150])
        sends += [before, failed, whole, after]
        frames += 2 + sent + 1
    assert len(run(config_of(mac_bytes), sends).frames) == frames


def test_refused_sends_pass_in_order():
    good, _ = udp_send(payload_of(30), 42, complete=False)
    inline, _ = udp_send(b"", 42)
    refused = Send(status=Status.KEY_BOUNDS, payload=b"", head={"flags": SendFlag.TIMESTAMP})
    result = run(config_of(64), [refused, good, refused, refused, inline, refused] * 6, done_stall=0.9)
    assert [report["status"] for report in result.done] == [7, 0, 7, 7, 0, 7] * 6


def test_nothing_is_lost_when_the_mac_stands_still():
    # more than the payload ring, the header ring and the queues of sends hold
    small = [udp_send(payload_of(18), 42)[0] for _ in range(50)]
    large = [Send(payload=payload_of(7000)) for _ in range(3)]
    refused = [Send(status=Status.BAD_OPCODE)] * 20
    for sends in (small + refused, large + small[:12]):
        result = run(config_of(64), sends, mac_held_cycles=420)
        assert result.frame_starts[0] >= 1420


@pytest.mark.parametrize("frames", [30, 31, 32])
def test_the_header_ring_fills_up_with_the_end_of_a_failed_send(frames):
    failed, _ = tcp_send(payload_of(32 * 40), 32, bad_from=32 * frames)
    inline, _ = udp_send(payload_of(18), 60)
    result = run(config_of(8), [failed, inline, Send(status=Status.BAD_OPCODE), inline, inline], mac_held_cycles=900)
    assert len(result.frames) == frames + 3


def random_send(rng) -> Send:
    """Any send, sensible or not: inline bytes, offsets and flags as the transmit front lets them through."""
    def pieces(length: int) -> list[int]:
        found = []
        while length:
            found.append(rng.randint(1, min(length, rng.choice([3, 40, 400]))))
            length -= found[-1]
        return found

    if rng.random() < 0.1:
        return Send(status=rng.choice([Status.BAD_DESCRIPTOR, Status.KEY_INVALID]))
    flags = SendFlag(rng.choice([0, SendFlag.TIMESTAMP]))
    if rng.random() < 0.5:
        ipv6 = rng.random() < 0.5
        l3 = rng.choice([0, 14, 18])
        l4 = l3 + rng.choice([40, 44] if ipv6 else [20, 24, 36])
        inline = rng.randbytes(min(l4 + rng.choice([20, 21, 32, 40]), 128))
        flags |= SendFlag.IPV6 if ipv6 else SendFlag(0)
        flags |= rng.choice([SendFlag(0), SendFlag.IPV4_CHECKSUM, SendFlag.L4_CHECKSUM, SendFlag.UDP])
        payload = rng.randbytes(rng.choice([1, 32, 100, rng.randint(1, 600)]))
        head = {"flags": flags, "l3_offset": l3, "l4_offset": l4, "mss": rng.choice([32, 33, 64, 101, 536]),
                "checksum_offset": rng.randrange(l4, len(inline) - 1, 2)}
        bad_from = rng.randrange(len(payload)) if rng.random() < 0.15 else None
        return Send(inline=inline, payload=payload, head=head, segmented=True, pieces=pieces(len(payload)),
                    bad_from=bad_from)
    total = rng.randint(60, 300)
    split = rng.choice([0, 1, 33, 60, min(total, 128)])
    frame = rng.randbytes(total)
    flags |= rng.choice([SendFlag(0), SendFlag.IPV4_CHECKSUM]) | rng.choice([SendFlag(0), SendFlag.L4_CHECKSUM])
    flags |= rng.choice([SendFlag(0), SendFlag.UDP])
    l3 = rng.randrange(0, 32, 2)
    l4 = rng.randrange(l3 + 20, 58, 2)
    head = {"flags": flags, "l3_offset": l3, "l4_offset": l4, "checksum_offset": rng.randrange(l4, total - 1, 2) % 256}
    head["checksum_offset"] = max(head["checksum_offset"], l4)
    return Send(inline=frame[:split], payload=frame[split:], head=head, pieces=pieces(total - split),
                bad_from=rng.randrange(total - split) if split < total and rng.random() < 0.15 else None)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("mac_bytes", "host_bytes", "stall", "mac_stall", "seed"), [
    (8, 16, 0.0, 0.0, 1), (8, 16, 0.2, 0.5, 2), (8, 64, 0.5, 0.1, 3), (64, 64, 0.0, 0.0, 4), (16, 32, 0.0, 0.4, 5),
])
def test_random_sends(mac_bytes, host_bytes, stall, mac_stall, seed, interleaved):
    rng = random.Random(seed)
    result = run(config_of(mac_bytes, host_bytes), [random_send(rng) for _ in range(20)], stall=stall,
                 mac_stall=mac_stall, done_stall=mac_stall, seed=seed, interleaved=interleaved)
    assert result.bench.idle_cycles > 0
    assert len(result.frames) > 15


@pytest.mark.parametrize("mac_bytes", [8, 64])
def test_four_channels_take_turns_frame_by_frame(mac_bytes):
    cases = [tcp_send(payload_of(1000 + 64 * n), 64 + 7 * n, ipv6=n == 2, flags="CFPA", channel=n, options=OPTIONS[:n],
                      bad_from=500 if n == 1 else None, pieces=[500, 564] if n == 1 else None)[0] for n in range(4)]
    result = run(config_of(mac_bytes), cases, interleaved=True)
    assert len(result.frames) > 30


def test_a_failed_job_does_not_touch_the_next_of_its_channel():
    failed = tcp_send(payload_of(400), 100, bad_from=0, pieces=[50, 350], channel=1)[0]
    late = tcp_send(payload_of(400), 100, bad_from=350, channel=1)[0]
    good = tcp_send(payload_of(300), 100, channel=1)[0]
    other = tcp_send(payload_of(500), 50, channel=2)[0]
    result = run(config_of(8), [failed, good, other, late, good], interleaved=True)
    assert len(result.frames) == 3 + 10 + 3 + 3


def test_jobs_that_are_discarded_half_way_keep_no_template():
    """More of them than there are places for templates."""
    good = tcp_send(payload_of(300), 100, channel=3)[0]
    stopped = [replace(tcp_send(payload_of(400), 100, channel=n % 3)[0], stopped_after=1 + n % 3) for n in range(24)]
    result = run(config_of(8), [*stopped, good], interleaved=True)
    assert len(result.frames) == 8 * (1 + 2 + 3) + 3


def test_discarded_jobs_leave_no_frame():
    good = udp_send(payload_of(30), 42, channel=0)[0]
    whole = Send(discarded=True, payload=payload_of(100), inline=bytes(40), channel=1)
    refused = Send(discarded=True, status=Status.KEY_BOUNDS, channel=2)
    result = run(config_of(64), [good, whole, refused, whole, good])
    assert [report["discarded"] for report in result.done] == [0, 1, 1, 1, 0]


def test_every_alignment_of_pieces():
    # 40 pieces of 17 bytes at random lanes, cut into segments that start at every lane
    sends = [tcp_send(payload_of(40 * 17), 33, pieces=[17] * 40)[0],
             tcp_send(payload_of(600), 47, pieces=[1] * 30 + [100] * 5 + [7] * 10)[0]]
    run(config_of(8), sends)
