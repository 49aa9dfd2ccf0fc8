"""The coalescer by itself against Linux's rules."""

import random
from itertools import pairwise

import pytest

from nic_model.coalescing import Coalescer as ModelCoalescer
from nic_model.contract import NicConfig, OperationMask, RxInfo, channel_register, register
from nic_model.receive_parser import parse_received
from rtl.coalescer import OPENINGS, Coalescer
from rtl.rx_buffer import HEADER_BYTES, HEADER_ROWS
from rtl.rx_rings import TaskKind
from tests.gro import DEVIATIONS, LinuxGro, Segment, Streams
from tests.rtl.harness import Bench, idle, shared

NARROW = NicConfig(name="narrow", mac_bytes=8, channels=4)
MIDDLE = NicConfig(name="middle", mac_bytes=16, channels=4)
WIDE = NicConfig(name="wide", mac_bytes=64, channels=4)
FAR = 1 << 31


class Surroundings:
    """What stands round a coalescer: the buffer with frames and headers, and who takes tasks."""

    def __init__(self, config, *, seed=0, stall=0.0):
        self.config = config
        self.dut = dut = shared(Coalescer, config)
        self.bench = Bench(dut, seed=seed)
        self.headers = []
        self.released = 0
        self.tasks = []
        self.frames = 0
        self.bench.sink(dut.task, self.tasks, stall=stall)
        self.bench.background(self._read)

    async def _read(self, ctx):
        width = self.config.host_bytes
        rows = HEADER_BYTES // width
        async for _, _, read, row, released in ctx.tick().sample(
                self.dut.header_read, self.dut.header_row, self.dut.header_release):
            if read:
                slot, at = divmod(row, rows)
                assert slot == self.released % (HEADER_ROWS // rows)
                # What lies behind the frame's end is of another.
                header = self.headers[self.released][:HEADER_BYTES].ljust(HEADER_BYTES, b"\xe7")
                ctx.set(self.dut.header_data, int.from_bytes(header[at * width:(at + 1) * width], "little"))
            self.released += released

    async def set_up(self, ctx, *, ticks=FAR, limit=0xFFFF, operations=OperationMask.COALESCE):
        dut = self.dut
        ctx.set(dut.clear, 1)
        for address, value in ((register("COALESCE_TICKS"), ticks), (register("COALESCE_BYTES"), limit),
                               (channel_register("CHANNEL_OPERATIONS", 0), operations)):
            await self.bench.strobe(ctx, dut.write, {"address": address, "data": value})

    async def send(self, ctx, segment: Segment, *, time=0, kept=True):
        frame = segment.frame()
        info = parse_received(frame).info
        right = RxInfo.TCP in info and RxInfo.CHECKSUM_BAD not in info and not segment.ip_options
        header = right and kept
        if header:
            self.headers.append(frame)
        # The time of its first beat; the length tells which one it is.
        await self.bench.send(ctx, self.dut.frame, {
            "channel": 0, "length": len(frame), "info": int(info), "time": time,
            "hash": hash(segment.address) & 0xFFFF_FFFF, "header": int(header)})
        self.frames += 1

    async def settle(self, ctx):
        still = 0
        while still < 20:
            await ctx.tick()
            still = 0 if ctx.get(self.dut.active) or ctx.get(self.dut.task.valid) else still + 1

    def events(self):
        """As the reference has them."""
        events, heads, number = [], {}, 0
        for task in self.tasks:
            context = task["context"]
            if task["kind"] == TaskKind.CLOSE:
                events.append(("end", heads.pop(context)))
                continue
            if task["kind"] == TaskKind.FRAME:
                events.append(("open" if task["keeps_open"] else "alone", number))
                if task["keeps_open"]:
                    assert context not in heads
                    heads[context] = number
            else:
                events.append(("append", number, heads[context]))
                if not task["keeps_open"]:
                    events.append(("end", heads.pop(context)))
            number += 1
        return events


def against_linux(config, segments, *, stall=0.0, seed=0):
    """Give all to a coalescer and to Linux's rules; what they make of them must be the same. Returns the events."""
    around = Surroundings(config, seed=seed, stall=stall)

    async def main(ctx):
        await around.set_up(ctx)
        for segment in segments:
            await around.send(ctx, segment)
        await around.settle(ctx)

    around.bench.add(main)
    around.bench.run(max_cycles=60_000)
    linux = LinuxGro()
    for segment in segments:
        linux.receive(segment)
    got = around.events()
    for n, pair in enumerate(zip(linux.events, got, strict=False)):
        assert pair[0] == pair[1], f"seed {seed}, event {n}: {segments[pair[0][1]]}"
    assert len(got) == len(linux.events)
    assert around.released == len(around.headers)
    sizes = [task["payload_bytes"] for task in around.tasks if task["kind"] == TaskKind.APPEND]
    assert sizes == [len(segments[event[1]].payload) for event in got if event[0] == "append"]
    return got


@pytest.mark.parametrize(("config", "stall", "seed", "flows"), [
    (NARROW, 0.0, 1, 12), (NARROW, 0.5, 2, 16), (MIDDLE, 0.1, 3, 20), (WIDE, 0.2, 4, 16)],
    ids=lambda v: getattr(v, "name", str(v)))
def test_random_streams_against_linux(config, stall, seed, flows):
    streams = Streams(random.Random(seed), flows, deviation=0.12)
    events = against_linux(config, [streams.segment() for _ in range(300)], stall=stall, seed=seed)
    assert [event[0] for event in events].count("append") > 60


@pytest.mark.parametrize("name", DEVIATIONS)
@pytest.mark.parametrize("kind", ["ipv4", "ipv6"])
def test_each_rule_by_itself(name, kind):
    """Three segments, the one that deviates, and three that follow it; also behind a head only."""
    rng = random.Random(9)
    around = Surroundings(MIDDLE)
    segments = []
    for before in (1, 3):
        segment = Segment(before, kind == "ipv6", None, 77, bytes(40), options=b"\1\1\5\6\7\x08\1\1\5\6\7\x08")
        for n in range(before + 4):
            sent = DEVIATIONS[name](segment, rng) if n == before else segment
            segments.append(sent)
            segment = Segment(segment.flow, segment.ipv6, None, sent.seq + len(sent.payload), bytes(40),
                              options=segment.options, ident=sent.ident + 1 & 0xFFFF)

    async def main(ctx):
        await around.set_up(ctx)
        for segment in segments:
            await around.send(ctx, segment)
        await around.settle(ctx)

    around.bench.add(main)
    around.bench.run()
    linux = LinuxGro()
    for segment in segments:
        linux.receive(segment)
    assert around.events() == linux.events
    assert linux.events[-1][0] == "append"


def test_size_limit():
    around = Surroundings(MIDDLE)
    segments = [Segment(1, seq=100 * n, payload=bytes(100), ident=n) for n in range(9)]

    async def main(ctx):
        await around.set_up(ctx, limit=340)
        for segment in segments:
            await around.send(ctx, segment)
        await around.settle(ctx)

    around.bench.add(main)
    around.bench.run()
    linux = LinuxGro(limit_bytes=340)
    for segment in segments:
        linux.receive(segment)
    assert around.events() == linux.events
    assert [event for event in linux.events if event[0] == "end"] == [("end", 0), ("end", 3)]


def test_age_is_a_deadline_of_the_first_segment():
    around = Surroundings(MIDDLE)
    dut = around.dut
    told = []

    async def main(ctx):
        async def at(now):
            ctx.set(dut.now, now)
            await around.settle(ctx)
            told.append((now, len([e for e in around.events() if e[0] == "end"]),
                         ctx.get(dut.next_deadline) if ctx.get(dut.deadline_valid) else None))

        await around.set_up(ctx, ticks=1000)
        await at((1 << 32) - 500)
        for flow, time in ((1, (1 << 32) - 500), (2, (1 << 32) - 100), (1, (1 << 32) + 7), (3, 1 << 32)):
            count = sum(s[0] == flow for s in sent)
            await around.send(ctx, Segment(flow, seq=40 * count, payload=bytes(40), ident=count), time=time)
            sent.append((flow, time))
        await at((1 << 32) + 499)
        await at((1 << 32) + 500)
        # The second ends by a flag: its deadline goes with it.
        await around.send(ctx, Segment(2, seq=40, payload=bytes(40), ident=1, flags=0x18))
        await at((1 << 32) + 600)
        await at((1 << 32) + 1000)

    sent = []
    around.bench.add(main)
    around.bench.run()
    base = 1 << 32
    assert told == [(base - 500, 0, None), (base + 499, 0, base + 500), (base + 500, 1, base + 900),
                    (base + 600, 2, base + 1000), (base + 1000, 3, None)]


def test_without_a_frame_age_waits_for_what_is_on_its_way():
    """The deadline passes while a frame may be on its way that came before it; so nothing ends, until it is known that
    none is: because another was dropped that came later, or because all is clear."""
    around = Surroundings(MIDDLE)
    dut = around.dut
    told = []

    async def main(ctx):
        async def ends():
            await around.settle(ctx)
            told.append(len([event for event in around.events() if event[0] == "end"]))

        await around.set_up(ctx, ticks=1000)
        for flow, time in ((1, 0), (2, 600)):
            await around.send(ctx, Segment(flow, payload=bytes(40)), time=time)
        ctx.set(dut.clear, 0)
        ctx.set(dut.now, 5000)
        await ends()
        ctx.set(dut.clear_time, 999)
        await ends()
        ctx.set(dut.clear_time, 1000)
        await ends()
        ctx.set(dut.clear, 1)
        await ends()

    around.bench.add(main)
    around.bench.run()
    assert told == [0, 0, 1, 2]


@pytest.mark.parametrize(("config", "seed"), [(NARROW, 1), (MIDDLE, 2), (WIDE, 3)],
                         ids=lambda v: getattr(v, "name", v))
def test_the_times_of_frames_decide_and_not_when_they_are_offered(config, seed):
    """Frames come at times of their own, and are offered later, each by another delay, while nothing is clear. The
    model ends what is due when a frame came, and then looks at the frame."""
    rng = random.Random(f"times {seed}")
    streams = Streams(rng, 10, deviation=0.05)
    ticks, frames, time = 900, [], 1000
    for _ in range(250):
        time += rng.choice((1, 20, 100, 100, 400))
        frames.append((streams.segment() if rng.random() < 0.9 else None, time))
    around = Surroundings(config, seed=seed, stall=0.1)
    dut = around.dut

    async def main(ctx):
        await around.set_up(ctx, ticks=ticks)
        ctx.set(dut.clear, 0)
        for segment, came in frames:
            ctx.set(dut.now, came + rng.randrange(5000))
            if rng.random() < 0.3:
                await idle(ctx, rng.randrange(30))
            if segment is None:
                await around.bench.send(ctx, dut.frame, {"channel": 0, "length": 60, "info": 0, "time": came})
            else:
                await around.send(ctx, segment, time=came)
        await around.settle(ctx)

    around.bench.add(main)
    around.bench.run(max_cycles=80_000)

    model = ModelCoalescer(config.coalesce_contexts)
    model.ticks = ticks
    expected = []
    for number, (segment, came) in enumerate(frames):
        expected += [("end", ended.receive) for ended in model.take_due(came)]
        if segment is None:
            expected.append(("alone", number))
            continue
        frame = segment.frame()
        verdict = model.judge(frame, parse_received(frame).info, came, may_open=True)
        expected += [("end", ended.receive) for ended in verdict.ended]
        if verdict.aggregate is None:
            expected.append(("alone", number))
        elif verdict.opens:
            verdict.aggregate.receive = number
            expected.append(("open", number))
        else:
            expected.append(("append", number, verdict.aggregate.receive))
            if verdict.is_last:
                expected.append(("end", verdict.aggregate.receive))
    assert around.events() == expected, f"seed {seed}"
    by_age = sum(a[0] == "end" and b[0] == "end" for a, b in pairwise(expected))
    assert by_age > 10
    assert sum(event[0] == "append" for event in expected) > 40


@pytest.mark.parametrize("how", ["drain", "ticks", "operations"])
def test_what_ends_all(how):
    """A drain ends what is open, and lets nothing open; so does an age of 0. A channel that no longer coalesces ends
    its flows as they go on."""
    around = Surroundings(MIDDLE)
    dut = around.dut
    flushed = []

    async def main(ctx):
        await around.set_up(ctx)
        for flow in range(5):
            await around.send(ctx, Segment(flow, payload=bytes(40)))
        await around.settle(ctx)
        if how == "drain":
            ctx.set(dut.drain_request, 1)
        else:
            await around.set_up(ctx, ticks=0 if how == "ticks" else FAR,
                                operations=0 if how == "operations" else OperationMask.COALESCE)
        await around.settle(ctx)
        flushed.append(ctx.get(dut.flushed))
        await around.send(ctx, Segment(2, seq=40, payload=bytes(40), ident=1))
        await around.settle(ctx)
        ctx.set(dut.drain_request, 0)
        await idle(ctx, 3)
        flushed.append(ctx.get(dut.flushed))

    around.bench.add(main)
    around.bench.run()
    events = around.events()[5:]
    if how == "operations":
        assert events == [("end", 2), ("alone", 5)]
    else:
        assert events == [*(("end", n) for n in range(5)), ("alone", 5)]
    assert flushed == [int(how == "drain"), 0]


def test_the_oldest_makes_room():
    around = Surroundings(MIDDLE)

    async def main(ctx):
        await around.set_up(ctx)
        for flow in range(18):
            await around.send(ctx, Segment(flow, payload=bytes(40)))
        # One flow opens again and again; the others stay, until the oldest was open for too many of these.
        for n in range(OPENINGS + 10):
            await around.send(ctx, Segment(17, seq=1000 * n, payload=bytes(40)))
        await around.settle(ctx)

    around.bench.add(main)
    around.bench.run(max_cycles=40_000)
    ends = [event[1] for event in around.events() if event[0] == "end"]
    assert ends[:2] == [0, 1]
    assert set(ends[2:OPENINGS - 20]) & set(range(2, 17)) == set(), "nobody else has to go"
    assert 2 in ends[OPENINGS - 20:]


def test_segments_without_a_kept_header_pass():
    around = Surroundings(MIDDLE)

    async def main(ctx):
        await around.set_up(ctx)
        for n in range(4):
            await around.send(ctx, Segment(1, seq=40 * n, payload=bytes(40), ident=n), kept=n != 2)
        await around.settle(ctx)

    around.bench.add(main)
    around.bench.run()
    assert around.events() == [("open", 0), ("append", 1, 0), ("end", 0), ("alone", 2), ("open", 3)]
