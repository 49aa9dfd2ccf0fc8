"""The transmit scheduler alone: what leaves is exactly what was stored, cut into frames; and whose frame is next."""

import collections
import itertools
import random
from dataclasses import dataclass, field

import pytest

from nic_model.contract import NicConfig, Status, channel_register, slots_needed
from rtl.tx_scheduler import TransmitScheduler, bytes_ahead
from tests.rtl.harness import Bench, idle, plain, shared

QUEUE_SLOTS = {16: 64, 32: 64, 64: 128}
"""By the bytes of the host bus."""
MISSED_CYCLES = 6
"""A job that arrives so shortly before a decision is not seen by it."""
DECIDED = 4
"""Frames that are decided and not yet taken, when whoever takes them is slow."""


def config_of(channels: int = 4, host_bytes: int = 16) -> NicConfig:
    return NicConfig(name="test", mac_bytes=8, host_bytes=host_bytes, channels=channels, vectors=4, keys=64)


AHEAD_BYTES = bytes_ahead(config_of())


@dataclass
class Job:
    """A send as the transmit front stores it."""

    channel: int
    pieces: list[tuple[int, int]] = field(default_factory=list)
    inline: bytes = b""
    mss: int | None = None
    """None for a frame."""
    status: int = Status.OK
    vlan_tci: int | None = None
    tag: int = 0
    arrived: int = 0
    """Cycle in which it was stored."""

    @property
    def payload_bytes(self) -> int:
        return sum(length for _, length in self.pieces)

    @property
    def slots(self) -> int:
        return slots_needed(len(self.inline), len(self.pieces))

    @property
    def is_good(self) -> bool:
        """Whether its rows and pieces are stored."""
        return self.status == Status.OK

    def fields(self) -> dict:
        return {
            "channel": self.channel, "tag": self.tag, "status": int(self.status), "ring_index": self.tag * 3 % 65536,
            "complete": 1, "timestamp": self.tag & 1, "segmented": self.mss is not None, "ipv6": 0,
            "ipv4_checksum": 1, "l4_checksum": 0, "udp": 1, "inline_bytes": len(self.inline), "l3_offset": 14,
            "l4_offset": 34, "checksum_offset": 50, "mss": self.mss or 0, "payload_bytes": self.payload_bytes,
            "slots": self.slots, "epoch": self.tag >> 1 & 1, "tagged": self.vlan_tci is not None,
            "vlan_tci": self.vlan_tci or 0,
        }

    def sliced_fields(self) -> dict:
        """As they leave: with the tag."""
        fields, more = self.fields(), 0 if self.vlan_tci is None else 4
        names = ("inline_bytes", "l3_offset", "l4_offset", "checksum_offset")
        return fields | {name: (fields[name] + more) % 256 for name in names}

    @property
    def template(self) -> bytes:
        """Its inline bytes with the tag."""
        if self.vlan_tci is None:
            return self.inline
        return self.inline[:12] + b"\x81\x00" + self.vlan_tci.to_bytes(2, "big") + self.inline[12:]

    def frames(self) -> list[range]:
        """Its payload, cut; a job that is refused has one slice without any."""
        if self.status != Status.OK:
            return [range(0)]
        step = self.mss or max(self.payload_bytes, 1)
        total = self.payload_bytes
        return [range(at, min(at + step, total)) for at in range(0, max(total, 1), step)]

    def addresses(self, cut: range) -> list[tuple[int, int]]:
        """Runs of memory that hold these payload bytes."""
        found, at = [], 0
        for address, length in self.pieces:
            start, end = max(cut.start, at), min(cut.stop, at + length)
            if start < end:
                found.append((address + start - at, end - start))
            at += length
        return found


class Host:
    """Everything round a scheduler: who stores jobs, and who takes what leaves."""

    def __init__(self, config, *, seed: int = 0, stall: float = 0.0, frame_cycles: int = 0):
        self.config = config
        self.dut = shared(TransmitScheduler, config)
        self.bench = Bench(self.dut, seed=seed)
        self.rng = random.Random(seed)
        self.jobs: dict[int, list[Job]] = collections.defaultdict(list)
        self.slices: list[tuple[int, dict]] = []
        self.rows: list[dict] = []
        self.commands: list[dict] = []
        self.freed: list[dict] = []
        self.running = (1 << config.channels) - 1
        self.frame_cycles = frame_cycles
        self.bench.sink(self.dut.inline, self.rows, stall=stall)
        self.bench.sink(self.dut.payload_cmd, self.commands, stall=stall)
        self.bench.strobes(self.dut.freed, self.freed)
        self.stall = stall
        self.hold = False
        self.mac_waits = False
        self.bench.background(self._take_slices)

    async def _take_slices(self, ctx):
        """Take slices at the pace of a MAC that needs `frame_cycles` for each, or at random."""
        ctx.set(self.dut.running, self.running)
        while True:
            ctx.set(self.dut.slice.ready, not self.hold and self.rng.random() >= self.stall)
            _, _, valid, ready, payload = await ctx.tick().sample(
                self.dut.slice.valid, self.dut.slice.ready, self.dut.slice.payload)
            if not self.mac_waits:
                ctx.set(self.dut.begun.valid, 0)
            if valid and ready:
                taken = plain(payload)
                self.slices.append((self.bench.cycle, taken))
                if taken["job"]["status"] == Status.OK and not taken["discarded"] and not self.mac_waits:
                    ctx.set(self.dut.begun.payload.amount, taken["job"]["inline_bytes"] + taken["count"])
                    ctx.set(self.dut.begun.valid, 1)
                if self.frame_cycles:
                    ctx.set(self.dut.slice.ready, 0)
                    await ctx.tick()
                    ctx.set(self.dut.begun.valid, 0)
                    await idle(ctx, self.frame_cycles - 1)

    async def write(self, ctx, name: str, channel: int, value: int) -> None:
        await self.bench.strobe(ctx, self.dut.write, {"address": channel_register(name, channel), "data": value})

    def room(self, channel: int) -> int:
        stored = sum(job.slots for job in self.jobs[channel])
        freed = sum(f["slots"] for f in self.freed if f["channel"] == channel)
        return QUEUE_SLOTS[self.config.host_bytes] - stored + freed

    async def store(self, ctx, job: Job) -> None:
        """As `rtl.descriptor.JobIssue` does it: rows and pieces side by side, the job with the last of them."""
        while self.room(job.channel) < job.slots:
            await ctx.tick()
        width, dut = self.config.host_bytes, self.dut
        job.tag = sum(len(jobs) for jobs in self.jobs.values())
        good = job.is_good
        rows = [int.from_bytes(job.inline[at:at + width].ljust(width, b"\xee"), "little")
                for at in range(0, len(job.inline), width)] if good else []
        pieces = list(job.pieces) if good else []
        for n in range(max(len(rows), len(pieces), 1)):
            ctx.set(dut.stored_row.valid, n < len(rows))
            ctx.set(dut.stored_piece.valid, n < len(pieces))
            ctx.set(dut.job.payload, job.fields())
            if n < len(rows):
                ctx.set(dut.stored_row.payload, {"channel": job.channel, "data": rows[n]})
            if n < len(pieces):
                ctx.set(dut.stored_piece.payload,
                        {"channel": job.channel, "address": pieces[n][0], "length": pieces[n][1]})
            if n == max(len(rows), len(pieces), 1) - 1:
                ctx.set(dut.job.valid, 1)
                self.jobs[job.channel].append(job)
                job.arrived = self.bench.cycle
            await ctx.tick()
        for strobe in (dut.job, dut.stored_row, dut.stored_piece):
            ctx.set(strobe.valid, 0)

    async def settle(self, ctx, *, quiet_cycles: int = 30) -> None:
        quiet = 0
        while quiet < quiet_cycles:
            _, _, active, offers = await ctx.tick().sample(self.dut.active, self.dut.slice.valid)
            quiet = 0 if active or offers else quiet + 1

    def check(self) -> None:
        """Each job of each channel, in order, frame by frame; with the right commands, rows and freed slots."""
        left = {channel: [(job, n) for job in jobs for n in range(len(job.frames()))]
                for channel, jobs in self.jobs.items()}
        commands, rows = collections.deque(self.commands), collections.deque(self.rows)
        for _, slice_ in self.slices:
            channel = slice_["job"]["channel"]
            job, number = left[channel].pop(0)
            cuts = job.frames()
            cut = cuts[number]
            assert slice_ == {
                "job": job.sliced_fields(), "offset": cut.start, "number": number, "count": len(cut),
                "first": number == 0, "last": number == len(cuts) - 1, "discarded": 0,
            }
            for address, length in job.addresses(cut):
                assert commands.popleft() == {"address": address % (1 << 64), "length": length}
            if job.status == Status.OK and number == 0:
                width = self.config.host_bytes
                got = b""
                for at in range(0, len(job.template), width):
                    row = rows.popleft()
                    got += row["data"].to_bytes(width, "little")
                    assert row["last"] == (at + width >= len(job.template))
                assert got[:len(job.template)] == job.template
        assert not any(left.values()), "frames are missing"
        assert not commands
        assert not rows
        for channel, jobs in self.jobs.items():
            assert [f["slots"] for f in self.freed if f["channel"] == channel] == [job.slots for job in jobs]

    def check_turns(self) -> None:
        """Between two frames of a channel, no other that had something to send throughout is left out."""
        order = [(cycle, s["job"]["channel"], s["job"]["tag"]) for cycle, s in self.slices]
        arrival = {job.tag: job.arrived for jobs in self.jobs.values() for job in jobs}
        last_at = {}
        waiting = {c: [tag for _, channel, tag in order if channel == c] for c in self.jobs}
        turns, decided_cycles = 0, DECIDED * (self.frame_cycles + 1) + MISSED_CYCLES
        for place, (cycle, channel, _tag) in enumerate(order):
            waiting[channel].pop(0)
            if channel in last_at:
                since, since_cycle = last_at[channel]
                for other, tags in waiting.items():
                    if other != channel and tags and arrival[tags[0]] < since_cycle - decided_cycles:
                        between = {c for _, c, _ in order[since + 1:place]}
                        assert other in between, f"channel {other} waits for two frames of {channel} at {cycle}"
                        turns += 1
            last_at[channel] = (place, cycle)
        assert turns > 0


def random_job(rng, channels: int) -> Job:
    channel = rng.randrange(channels)
    if rng.random() < 0.1:
        return Job(channel, inline=rng.randbytes(rng.choice((0, 54))), status=Status.KEY_BOUNDS)
    count = rng.choice((0, 1, 1, 2, 5, 20))
    pieces = [(rng.getrandbits(64), rng.choice((1, 33, 100, rng.randrange(1, 700)))) for _ in range(count)]
    sizes = (0, 12, 13, 16, 54, 60, 61, 64, 66, 124, 128) if pieces else (14, 60, 128)
    inline = rng.randbytes(rng.choice(sizes))
    mss = rng.choice((32, 64, 100, 536)) if pieces and len(inline) >= 54 and rng.random() < 0.7 else None
    tci = rng.getrandbits(16) if 12 <= len(inline) <= 124 and rng.random() < 0.4 else None
    return Job(channel, pieces, inline, mss, vlan_tci=tci)


def schedule(rng, host_bytes, channels, count, *, stall=0.0, seed=0):
    """Random jobs at random times; what becomes of them is checked. Returns the host."""
    host = Host(config_of(channels, host_bytes), seed=seed, stall=stall)

    async def testbench(ctx):
        for _ in range(count):
            await host.store(ctx, random_job(rng, channels))
            await idle(ctx, rng.choice((0, 0, 1, 3, 40)))
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run(max_cycles=60_000)
    host.check()
    return host


@pytest.mark.parametrize(("host_bytes", "channels", "stall", "seed"), [
    (16, 4, 0.0, 1), (16, 4, 0.5, 2), (64, 4, 0.2, 3), (32, 16, 0.0, 4),
])
def test_random_jobs(host_bytes, channels, stall, seed):
    host = schedule(random.Random(seed), host_bytes, channels, 60, stall=stall, seed=seed)
    assert len(host.slices) > 100
    assert host.bench.idle_cycles > 0


def test_frames_of_all_channels_alternate_whenever_they_come():
    host = Host(config_of(), seed=5, frame_cycles=20)

    async def testbench(ctx):
        for n, (channel, length, delay) in enumerate([(0, 6000, 300), (2, 5000, 450), (1, 4000, 333), (3, 3000, 0)]):
            await host.store(ctx, Job(channel, [(0x1000 * n, length)], bytes(54), 100))
            await idle(ctx, delay)
        await host.settle(ctx, quiet_cycles=60)

    host.bench.add(testbench)
    host.bench.run()
    host.check()
    host.check_turns()
    # a late channel is served after one frame of each other: what was decided when it came, and one each
    for channel, others in ((2, 1), (1, 2), (3, 3)):
        came = host.jobs[channel][0].arrived
        before = [s["job"]["channel"] for cycle, s in host.slices if cycle > came]
        assert before.index(channel) <= DECIDED + others, f"channel {channel}: {before[:10]}"


@pytest.mark.parametrize("host_bytes", [16, 64])
def test_small_frames_take_four_cycles(host_bytes):
    """60-byte frames of one piece, of one channel and of several."""
    for channels in (1, 3):
        host = Host(config_of(host_bytes=host_bytes))

        async def testbench(ctx, host=host, channels=channels):
            for n in range(36):
                await host.store(ctx, Job(n % channels, [(64 * n, 60)]))
            await host.settle(ctx)

        host.bench.add(testbench)
        host.bench.run()
        host.check()
        times = [cycle for cycle, _ in host.slices]
        assert times[-1] - times[1] <= 4 * 34, f"{channels} channels"
        assert times[0] - host.jobs[0][0].arrived <= 5


class Reference:
    """Deficit round robin with a frame at a turn, as the textbook's round is defined, in plain Python."""

    def __init__(self, weights: dict[int, int], frames: dict[int, list[int]], channels: int):
        self.weights, self.frames, self.channels = weights, frames, channels
        self.credit = dict.fromkeys(frames, 0)
        self.owed, self.spent = set(frames), set()
        self.current = 0

    def next(self, among: set[int]) -> int:
        """The channel of the next frame, of those in `among` that have one."""
        while True:
            waiting = {c for c in among if self.frames[c]}
            may_go = waiting - self.spent
            if not may_go:
                self.spent, self.owed = set(), set(self.frames)
                continue
            self.current = min(may_go, key=lambda c: (c - self.current - 1) % self.channels)
            channel = self.current
            if channel in self.owed:
                self.owed.remove(channel)
                self.credit[channel] = min(self.credit[channel], 0) + self.weights[channel]
            if self.credit[channel] >= 0:
                self.credit[channel] -= self.frames[channel].pop(0)
                if self.credit[channel] < 0:
                    self.spent.add(channel)
                return channel
            self.spent.add(channel)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_weights_against_a_reference(seed):
    rng = random.Random(seed)
    host = Host(config_of(), seed=seed, frame_cycles=3)
    written = [rng.choice((0, 100, 1024, 1536, 3000, 4096, 1 << 20)) for _ in range(4)]
    written[rng.randrange(4)] = 2048
    in_force = {c: min(max(w or 1536, 1024), 65535) for c, w in enumerate(written)}
    frames: dict[int, list[int]] = {}
    host.hold = True

    async def testbench(ctx):
        for channel, weight in enumerate(written):
            await host.write(ctx, "TX_WEIGHT", channel, weight)
        for channel in range(4):
            mss, inline = rng.choice((60, 536, 1460, 8000)), rng.choice((54, 66))
            total = min(mss * rng.randrange(20, 50), 200_000)
            job = Job(channel, [(0x100000 * channel, total)], bytes(inline), mss)
            frames[channel] = [inline + len(cut) for cut in job.frames()]
            await host.store(ctx, job)
            if channel == 0:
                await idle(ctx, 300)  # until as many frames are decided as may be
        host.hold = False
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run(max_cycles=60_000)
    host.check()
    order = [s["job"]["channel"] for _, s in host.slices]
    reference = Reference(in_force, frames, 4)
    # what is decided, or about to be, before the others come: as many as there is room for, and as may be ahead of
    # the wire
    begins = itertools.accumulate(frames[0], initial=0)
    decided = min(DECIDED, 1 + sum(1 for _ in itertools.takewhile(lambda ahead: ahead < AHEAD_BYTES, begins)))
    wanted = [reference.next({0} if n < decided else set(range(4))) for n in range(len(order))]
    assert order == wanted


def test_shares_follow_weights_within_a_frame():
    """Shares of bytes while all wait, with frames of different length: weights 1 : 2 : 4, and the same again."""
    host = Host(config_of(), frame_cycles=3)
    weights, sizes = {0: 1500, 1: 3000, 2: 6000, 3: 1500}, {0: 1460, 1: 60, 2: 536, 3: 8000}

    async def testbench(ctx):
        for channel, weight in weights.items():
            await host.write(ctx, "TX_WEIGHT", channel, weight)
        for channel, mss in sizes.items():
            await host.store(ctx, Job(channel, [(0, 40_000 * weights[channel] // 1500)], bytes(54), mss))
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run(max_cycles=60_000)
    host.check()
    sent, left = dict.fromkeys(weights, 0), {c: len(host.jobs[c][0].frames()) for c in weights}
    for _, s in host.slices:
        channel = s["job"]["channel"]
        sent[channel] += 54 + s["count"]
        left[channel] -= 1
        if not left[channel]:
            break
    rounds = [sent[c] / weights[c] for c in weights]
    for channel in weights:
        slack = 1 + (54 + sizes[channel]) / weights[channel]
        assert abs(sent[channel] / weights[channel] - sum(rounds) / 4) <= slack + 8054 / 1500 / 4, (channel, rounds)
    assert min(rounds) > 15


def test_decisions_do_not_run_far_ahead_of_the_wire():
    """Slices are taken at once, but frames do not begin to leave: decisions end with the first that goes beyond."""
    host = Host(config_of())
    host.mac_waits = True

    async def testbench(ctx):
        await host.store(ctx, Job(1, [(0, 20 * 1000)], bytes(54), 1000))
        await host.settle(ctx)
        decided = len(host.slices)
        assert (decided - 1) * 1054 < AHEAD_BYTES <= decided * 1054
        await host.bench.strobe(ctx, host.dut.dropped, {"amount": 1054})
        await host.settle(ctx)
        assert len(host.slices) == decided + 1
        while len(host.slices) < 20:
            decided = len(host.slices)
            await host.bench.strobe(ctx, host.dut.begun, {"amount": 1054})
            await idle(ctx, 20)
            assert len(host.slices) == decided + 1

    host.bench.add(testbench)
    host.bench.run()
    host.check()


def test_what_is_queued_on_a_stopped_channel_is_discarded():
    host = Host(config_of(), frame_cycles=30)

    async def testbench(ctx):
        await host.store(ctx, Job(1, [(0, 2000)], bytes(54), 100))
        await host.store(ctx, Job(1, [(0, 2000)], bytes(54), 100))
        await host.store(ctx, Job(1, [(0, 60)]))
        await host.store(ctx, Job(2, [(0, 1000)], bytes(54), 100))
        await idle(ctx, 300)
        host.running &= ~2
        ctx.set(host.dut.running, host.running)
        await host.settle(ctx, quiet_cycles=60)
        host.running |= 2
        ctx.set(host.dut.running, host.running)
        await host.store(ctx, Job(1, [(77, 60)]))
        await host.settle(ctx, quiet_cycles=60)

    host.bench.add(testbench)
    host.bench.run()
    mine = [s for _, s in host.slices if s["job"]["channel"] == 1]
    discarded = [s for s in mine if s["discarded"]]
    assert [s["job"]["tag"] for s in discarded] == [0, 1, 2]
    assert all(s["last"] and s["count"] == 0 for s in discarded)
    assert mine[-1]["job"]["tag"] == 4
    assert not mine[-1]["discarded"]
    assert len(mine) < 20
    others = [s for _, s in host.slices if s["job"]["channel"] == 2]
    assert sum(s["count"] for s in others) == 1000
    assert len(host.freed) == 5
    assert host.commands[-1] == {"address": 77, "length": 60}
