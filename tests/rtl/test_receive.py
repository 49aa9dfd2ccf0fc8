"""The receive path as a whole: frames at the MAC, a host that posts buffers, a bus with latency and errors."""

import random
from collections import deque

import pytest

from nic_model.aggregates import resegment
from nic_model.contract import (
    RECEIVE_SLOT,
    RECEIVE_SLOT_BYTES,
    ChannelError,
    NicConfig,
    OperationMask,
    RxInfo,
    Status,
    channel_register,
    register,
)
from rtl.receive import Receive
from tests.gro import LinuxGro, Segment, Streams
from tests.rtl import rx_frames
from tests.rtl.harness import Bench, idle, shared
from tests.rtl.rx_frames import OWN_BYTES, beats

DEFAULT = NicConfig(name="default", mac_bytes=8, channels=4)
MIDDLE = NicConfig(name="middle", mac_bytes=16, channels=4)
WIDE = NicConfig(name="wide", mac_bytes=64, channels=64)
QUICK = NicConfig(name="quick", mac_bytes=64, channels=4)  # for tests with long frames
RING = 0x10000
MEMORY_BYTES = 1 << 17
BAD_KEY, BAD_ADDRESS = 0x666, 0x1F000
GUARD = 0xA5
DROPS = ("bad_frames", "oversize", "filtered", "fifo_full", "no_buffer", "errors")


class Host:
    """What surrounds the receive path: registers, host memory and its bus, the key table, completions, a driver."""

    def __init__(self, config, *, seed=0, latency=20, stall=0.0, log2=5):
        self.config, self.log2, self.stall, self.latency = config, log2, stall, latency
        self.dut = dut = shared(Receive, config)
        self.bench = bench = Bench(dut, seed=seed)
        self.memory = bytearray([GUARD]) * MEMORY_BYTES
        self.producer = 0
        self.holds_writes = self.holds_reads = self.holds_retired = False
        self.reads_fail = False
        self.retired = 0
        self.read_commands, self.key_requests, self.write_commands, self.write_rows = [], [], [], []
        self.done, self.faults, self.indices = [], [], []
        self.counted = {name: [] for name in (
            "frames_in", "frames", "bytes", "checksum_errors", "aggregates", "coalesced", *DROPS)}
        self._ring_beats, self._answers, self._write_dones = deque(), deque(), deque()
        for stream, taken in ((dut.ring_cmd, self.read_commands), (dut.key_request, self.key_requests),
                              (dut.done, self.done), (dut.fault, self.faults)):
            bench.sink(stream, taken, stall=stall)
        for name, seen in self.counted.items():
            bench.strobes(getattr(dut, f"count_rx_{name}"), seen)
        bench.strobes(dut.index, self.indices)
        for testbench in (self._bus, self._take_writes, self._retire):
            bench.background(testbench)
        for stream, queue in ((dut.ring_beat, self._ring_beats), (dut.key_answer, self._answers),
                              (dut.write_done, self._write_dones)):
            bench.feed(stream, queue)

    def count(self, name):
        return sum(strobe["amount"] for strobe in self.counted[name])

    @property
    def reads_in_flight(self):
        """Reads whose last beat has not been taken."""
        return len(self.read_commands) + sum(beat["last"] for _, beat in self._ring_beats)

    @property
    def ended(self):
        """Frames that were delivered or dropped."""
        return sum(self.count(name) for name in ("frames", *DROPS))

    async def _take_writes(self, ctx):
        dut = self.dut
        pairs = ((dut.write_cmd, self.write_commands), (dut.write_row, self.write_rows))
        while True:
            for stream, _ in pairs:
                ctx.set(stream.ready, not self.holds_writes and self.bench.rng.random() >= self.stall)
            taken = await ctx.tick().sample(*(part for stream, _ in pairs
                                              for part in (stream.valid & stream.ready, stream.payload)))
            for (_, got), took, payload in zip(pairs, taken[2::2], taken[3::2], strict=True):
                if took:
                    got.append({name: int(payload[name]) for name, _ in payload.shape()})

    async def _bus(self, ctx):
        rows = []
        while True:
            await ctx.tick()
            due = self.bench.cycle + self.latency
            while self.read_commands and not self.holds_reads:
                self._answer_read(due, self.read_commands.pop(0))
            while self.key_requests:
                self._answers.append((self.bench.cycle + 5, self._answer_key(self.key_requests.pop(0))))
            while self.write_rows:
                rows.append(self.write_rows.pop(0))
                if rows[-1]["last"]:
                    self._write(due, self.write_commands.pop(0), rows)
                    rows = []

    def _answer_read(self, due, command):
        width, address, end = self.config.host_bytes, command["address"], command["address"] + command["length"]
        assert address % RECEIVE_SLOT_BYTES == 0
        assert address // 256 == (end - 1) // 256, "a fetch is one burst"
        for line in range(address - address % width, end, width):
            first, behind = max(line, address), min(line + width, end)
            self._ring_beats.append((due, {
                "data": int.from_bytes(self.memory[line:line + width], "little"), "start": first - line,
                "count": behind - first, "last": int(behind == end), "error": int(self.reads_fail)}))

    def _answer_key(self, request):
        """Keys cover all of memory, but for one that is not valid."""
        assert request["write"] == 1
        if request["key"] == BAD_KEY:
            return {"status": Status.KEY_INVALID, "address": 0}
        return {"status": Status.OK, "address": request["offset"]}

    def _write(self, due, command, rows):
        width = self.config.host_bytes
        address, length = command["address"], command["length"]
        end = address + length
        assert len(rows) == (end - 1) // width - address // width + 1
        raw = b"".join(row["data"].to_bytes(width, "little") for row in rows)
        if address != BAD_ADDRESS:
            self.memory[address:end] = raw[address % width:address % width + length]
        self._write_dones.append((due, {"error": int(address == BAD_ADDRESS)}))

    async def _retire(self, ctx):
        while True:
            await ctx.tick()
            more = self.retired < len(self.done) and not self.holds_retired
            self.retired += more
            ctx.set(self.dut.rx_retired, more)

    async def write(self, ctx, address, value):
        await self.bench.strobe(ctx, self.dut.write, {"address": address, "data": value})

    async def open(self, ctx, *, channel=0, operations=OperationMask.RECEIVE_RAW, base=RING):
        """Set the channel's registers, and start it."""
        for name, value in (("RX_BASE_LO", base & 0xFFFF_FFFF), ("RX_BASE_HI", base >> 32), ("RX_LOG2", self.log2),
                            ("CHANNEL_OPERATIONS", operations)):
            await self.write(ctx, channel_register(name, channel), value)
        await self.start(ctx, channel)

    async def start(self, ctx, channel=0):
        await self.bench.strobe(ctx, self.dut.start, {"channel": channel})
        ctx.set(self.dut.running, ctx.get(self.dut.running) | 1 << channel)

    async def enable(self, ctx, rx_filter=0):
        for name, value in (("MAC_ADDRESS_LO", int.from_bytes(OWN_BYTES[:4], "little")),
                            ("MAC_ADDRESS_HI", int.from_bytes(OWN_BYTES[4:], "little")),
                            ("RX_FILTER", rx_filter), ("RX_ENABLE", 1)):
            await self.write(ctx, register(name), value)

    def place(self, address, length, *, key=0x111, base=RING, producer=None):
        """Write the next receive slot; its buffer's id is its index."""
        index = self.producer if producer is None else producer
        at = base + index % (1 << self.log2) * RECEIVE_SLOT_BYTES
        self.memory[at:at + RECEIVE_SLOT_BYTES] = RECEIVE_SLOT.pack(
            offset=address, key=key, length=length, buffer_id=index % (1 << 16))
        if producer is None:
            self.producer += 1

    async def ring(self, ctx, *, channel=0, index=None):
        """The doorbell."""
        index = self.producer if index is None else index
        await self.bench.send(ctx, self.dut.doorbell, {"channel": channel, "index": index % (1 << 16)})

    async def post(self, ctx, address, length, **slot):
        self.place(address, length, **slot)
        await self.ring(ctx)

    async def send(self, ctx, frame, *, bad=False, gap=0.0):
        for beat in beats(self.config, frame, bad=bad):
            await self.bench.send(ctx, self.dut.mac, beat, stall=gap)

    async def settle(self, ctx, frames):
        """Wait until so many frames have ended, and nothing moves any more."""
        still = 0
        while still < 40:
            await ctx.tick()
            is_busy = self.ended < frames or self.retired < len(self.done) or ctx.get(self.dut.active)
            still = 0 if is_busy else still + 1

    def run(self, main, *, max_cycles=12_000):
        self.bench.add(main)
        self.bench.run(max_cycles=max_cycles)
        assert self.bench.idle_cycles > 0
        assert self.count("frames_in") == self.ended
        assert not self.write_rows
        assert not self.write_commands


def frame_of(size, seed=0):
    """A frame for this host that is no IP."""
    return OWN_BYTES + bytes(6) + b"\x12\x34" + rx_frames.data(size - 14, seed)


@pytest.mark.parametrize(("config", "stall", "seed"), [(DEFAULT, 0.3, 2), (MIDDLE, 0.2, 3),
                                                       (WIDE, 0.0, 4)], ids=lambda v: getattr(v, "name", str(v)))
def test_frames_arrive_in_posted_buffers(config, stall, seed):
    # Each frame in a buffer at another alignment, through a ring that wraps several times.
    rng = random.Random(seed)
    host = Host(config, seed=seed, stall=stall, log2=4)
    cases = [rx_frames.random_case(rng, max_payload=200) for _ in range(34)]
    pitch = 1024

    def address_of(n):
        return 0x4000 + n % 16 * pitch + n * 7 % config.host_bytes

    delivered = []

    async def main(ctx):
        await host.open(ctx)
        await host.enable(ctx)
        for n, case in enumerate(cases):
            while host.producer <= n or (rng.random() < 0.4 and host.producer < len(cases)):
                while host.producer - host.retired >= 16:
                    await ctx.tick()
                # The driver takes a buffer's content before it posts the buffer again.
                keep(host.retired)
                for line in range(pitch):
                    host.memory[0x4000 + host.producer % 16 * pitch + line] = GUARD
                await host.post(ctx, address_of(host.producer), rng.choice((600, 5000, 1 << 20)))
            ctx.set(host.dut.now, 1000 + n)
            await host.send(ctx, case.frame, gap=rng.choice((0, 0, 0.5)))
        await host.settle(ctx, len(cases))
        keep(host.retired)

    def keep(behind):
        for n in range(len(delivered), behind):
            at = address_of(n)
            delivered.append(bytes(host.memory[at - 16:at + 640]))

    host.run(main)
    assert len(host.done) == len(cases), f"seed {seed}"
    for n, (case, token, found) in enumerate(zip(cases, host.done, delivered, strict=True)):
        assert found == bytes([GUARD] * 16) + case.frame + bytes([GUARD] * (640 - len(case.frame))), f"seed {seed}, {n}"
        assert token == {
            "channel": 0, "buffer_id": n, "status": Status.OK, "ring_index": n + 1, "length": len(case.frame),
            "info": case.info, "checksum": 0, "segments": 1,
            "timestamp": 1000 + n, "mss": 0, "more": 0, "further": 0, "last": 1}
    assert host.count("frames") == len(cases)
    assert host.count("bytes") == sum(len(case.frame) for case in cases)
    assert host.count("checksum_errors") == sum(RxInfo.CHECKSUM_BAD in case.info for case in cases)
    assert host.indices == [{"channel": 0, "index": n + 1} for n in range(len(cases))]


def test_every_reason_to_drop_a_frame():
    host = Host(QUICK)
    ended = {}

    async def main(ctx):
        async def one(name, frame, **how):
            before = {counter: host.count(counter) for counter in ("frames", *DROPS)}
            sent = host.ended
            await host.send(ctx, frame, **how)
            await host.settle(ctx, sent + 1)
            changed = [counter for counter, value in before.items() if host.count(counter) != value]
            ended[name] = (changed, len(host.done))

        await host.send(ctx, frame_of(60))  # RX_ENABLE is 0: not even seen
        await host.enable(ctx)
        await one("does not run", frame_of(60))
        await host.open(ctx, operations=OperationMask.SEND_FRAME)
        await host.post(ctx, 0x4000, 100)
        await one("not permitted", frame_of(60))
        await host.write(ctx, channel_register("CHANNEL_OPERATIONS", 0), OperationMask.RECEIVE_RAW)
        await one("bad", frame_of(60), bad=True)
        await one("short", frame_of(60)[:13])
        await one("bad, long and not for us", bytes(9100), bad=True)
        await one("long", frame_of(9015))
        await one("long and not for us", bytes(9015))
        await one("not for us", bytes(60))
        await one("longer than the buffer", frame_of(101))
        await one("as long as the buffer", frame_of(100))
        await one("nothing posted", frame_of(60))
        await host.post(ctx, 0x4000, 100, key=BAD_KEY)
        await host.post(ctx, BAD_ADDRESS, 100)
        await host.post(ctx, 0x4000, 100)
        await one("key refused", frame_of(60))
        await one("bus error", frame_of(60))
        await one("good", frame_of(60))

    host.run(main, max_cycles=8_000)
    assert ended == {
        "does not run": (["no_buffer"], 0), "not permitted": (["no_buffer"], 0), "bad": (["bad_frames"], 0),
        "short": (["bad_frames"], 0), "bad, long and not for us": (["bad_frames"], 0), "long": (["oversize"], 0),
        "long and not for us": (["oversize"], 0), "not for us": (["filtered"], 0),
        "longer than the buffer": (["no_buffer"], 0), "as long as the buffer": (["frames"], 1),
        "nothing posted": (["no_buffer"], 1), "key refused": (["errors"], 2), "bus error": (["errors"], 3),
        "good": (["frames"], 4),
    }
    assert [(t["status"], t["length"], t["segments"], t["buffer_id"], t["ring_index"]) for t in host.done] == [
        (Status.OK, 100, 1, 0, 1), (Status.KEY_INVALID, 0, 0, 1, 2), (Status.BUS_ERROR, 0, 0, 2, 3),
        (Status.OK, 60, 1, 3, 4)]
    assert host.faults == []


@pytest.mark.parametrize(("config", "stall", "seed"), [(DEFAULT, 0.2, 21), (MIDDLE, 0.0, 22), (WIDE, 0.2, 23)],
                         ids=lambda v: getattr(v, "name", str(v)))
def test_frames_larger_than_their_buffers(config, stall, seed):
    """Each frame fills the next buffers in turn, whatever their sizes and places; a guard byte beyond each stays."""
    rng = random.Random(seed)
    host = Host(config, seed=seed, stall=stall, log2=10)
    frames = [frame_of(rng.choice((14, 60, 61, 200, 500, rng.randrange(14, 700))), n) for n in range(30)]
    sizes, at = [], 0x4000
    places = []
    while sum(sizes) < 4 * sum(len(frame) for frame in frames):
        size = rng.choice((1, 2, 15, 16, 17, 63, 64, 65, 100, 100, rng.randrange(1, 300), 1000))
        # Not more than 32 of the smallest for a frame.
        size = max(size, 24)
        at += rng.randrange(1, 70)
        places.append(at)
        sizes.append(size)
        at += size + 1

    async def main(ctx):
        await host.open(ctx)
        await host.enable(ctx)
        for place, size in zip(places, sizes, strict=True):
            host.place(place, size)
        await host.ring(ctx)
        for frame in frames:
            await host.send(ctx, frame, gap=rng.choice((0, 0.5)))
        await host.settle(ctx, len(frames))

    host.run(main, max_cycles=20_000)
    tokens = list(host.done)
    number = 0
    for n, frame in enumerate(frames):
        expected = []
        left = frame
        while left:
            part, left = left[:sizes[number]], left[sizes[number]:]
            expected.append((number, len(part)))
            assert host.memory[places[number]:places[number] + len(part)] == part, f"seed {seed}, frame {n}"
            assert host.memory[places[number] - 1] == host.memory[places[number] + len(part)] == GUARD
            number += 1
        got, tokens = tokens[:len(expected)], tokens[len(expected):]
        assert [(t["buffer_id"], t["length"]) for t in got] == expected, f"seed {seed}, frame {n}"
        assert [t["ring_index"] for t in got] == [b + 1 for b, _ in expected]
        assert [t["more"] for t in got] == [len(expected) - 1] + [0] * (len(expected) - 1)
        assert [t["further"] for t in got] == [0] + [1] * (len(expected) - 1)
        assert [t["last"] for t in got] == [0] * (len(expected) - 1) + [1]
        assert [t["segments"] for t in got] == [1] + [0] * (len(expected) - 1)
        assert all(t["status"] == Status.OK for t in got)
    assert tokens == []
    assert number > 2 * len(frames)
    assert host.indices[-1] == {"channel": 0, "index": number}
    assert host.count("frames") == len(frames)
    assert host.count("bytes") == sum(map(len, frames))


def test_a_frame_gets_all_its_buffers_or_none():
    host = Host(QUICK, log2=6)
    ended = {}

    async def main(ctx):
        async def one(name, frame):
            before = {counter: host.count(counter) for counter in ("frames", *DROPS)}
            tokens, sent = len(host.done), host.ended
            await host.send(ctx, frame)
            await host.settle(ctx, sent + 1)
            changed = [counter for counter, value in before.items() if host.count(counter) != value]
            ended[name] = (changed, [(t["status"], t["length"], t["more"]) for t in host.done[tokens:]])

        await host.open(ctx)
        await host.enable(ctx)
        for _ in range(2):
            host.place(0x4000 + 200 * host.producer, 100)
        await host.ring(ctx)
        await one("a byte too long", frame_of(201))
        await one("both", frame_of(200))
        host.place(0x4000, 40)
        host.place(0x5100, 40, key=BAD_KEY)
        host.place(0x4200, 40)
        await host.ring(ctx)
        await one("second key refused", frame_of(100, 7))
        host.place(BAD_ADDRESS, 40)
        host.place(0x4400, 40)
        await host.ring(ctx)
        await one("first write fails", frame_of(60))
        for _ in range(33):
            host.place(0x6000 + 16 * host.producer, 10)
        await host.ring(ctx)
        await one("33 buffers", frame_of(321))
        await one("32 buffers", frame_of(320))

    host.run(main, max_cycles=8_000)
    ok, more = (Status.OK, 10, 31), (Status.OK, 10, 0)
    assert ended == {
        "a byte too long": (["no_buffer"], []), "both": (["frames"], [(Status.OK, 100, 1), (Status.OK, 100, 0)]),
        "second key refused": (["errors"], [(Status.KEY_INVALID, 0, 2), (Status.OK, 0, 0), (Status.OK, 0, 0)]),
        "first write fails": (["errors"], [(Status.BUS_ERROR, 0, 1), (Status.OK, 0, 0)]),
        "33 buffers": (["oversize"], []), "32 buffers": (["frames"], [ok] + [more] * 31),
    }
    # What is beside the refused part is written all the same.
    assert host.memory[0x4000:0x4000 + 40] == frame_of(100, 7)[:40]
    assert host.memory[0x4200:0x4200 + 20] == frame_of(100, 7)[80:]
    assert host.memory[0x5100] == GUARD


def test_a_full_buffer_drops_whole_frames_and_keeps_the_others():
    host = Host(QUICK, log2=6)
    frames = [frame_of(1000 + n, n) for n in range(24)]

    async def main(ctx):
        await host.open(ctx)
        await host.enable(ctx)
        for n in range(len(frames)):
            host.place(0x4000 + n * 1200, 1200)
        await host.ring(ctx)
        host.holds_writes = True
        for frame in frames:
            await host.send(ctx, frame)
        await idle(ctx, 40)  # until the last one has come to the buffer
        host.holds_writes = False
        await host.settle(ctx, len(frames))
        for n in range(2):  # it has recovered
            await host.send(ctx, frames[n])
        await host.settle(ctx, len(frames) + 2)

    host.run(main)
    fits = QUICK.rx_buffer_bytes // 1024
    assert host.count("fifo_full") == pytest.approx(len(frames) - fits, abs=1)
    assert host.count("frames") + host.count("fifo_full") == len(frames) + 2
    kept = [bytes(host.memory[0x4000 + n * 1200:0x4000 + n * 1200 + token["length"]])
            for n, token in enumerate(host.done)]
    assert kept == frames[:len(kept) - 2] + frames[:2]


@pytest.mark.parametrize(("size", "number"), [(60, 90), (1514, 4)])
def test_line_rate(size, number):
    # Frames without a gap but for the time that FCS, preamble and the least gap take in no MAC stream: harder than a
    # wire. Receive slots come with 250 cycles of latency.
    host = Host(DEFAULT, latency=250, log2=8)
    frames = [frame_of(size, n) for n in range(number)]
    cycles = []

    async def main(ctx):
        await host.open(ctx)
        await host.enable(ctx)
        for n in range(number):
            host.place(0x4002 + n % 16 * 2048, 2048)
        await host.ring(ctx)
        await idle(ctx, 600)
        begin = host.bench.cycle
        for frame in frames:
            await host.send(ctx, frame)
        while host.ended < number:
            await ctx.tick()
        cycles.append(host.bench.cycle - begin)
        await host.settle(ctx, number)

    host.run(main)
    assert host.count("frames") == number
    beats_in_all = number * -(-size // DEFAULT.mac_bytes)
    last_one = host.latency + size // DEFAULT.host_bytes + 60
    assert cycles[0] < beats_in_all + last_one, "nothing may pile up"
    assert host.memory[0x4002 + (number - 1) % 16 * 2048:][:size] == frames[-1]


def test_a_frame_waits_for_the_slot_that_is_being_fetched():
    host = Host(DEFAULT, latency=100)

    async def main(ctx):
        await host.open(ctx)
        await host.enable(ctx)
        await host.post(ctx, 0x4000, 100)
        await host.send(ctx, frame_of(60))
        await host.settle(ctx, 1)

    host.run(main)
    assert host.count("frames") == 1


def test_a_frame_that_waits_is_dropped_when_its_channel_stops():
    host = Host(DEFAULT)

    async def main(ctx):
        await host.open(ctx)
        await host.enable(ctx)
        host.holds_reads = True
        await host.post(ctx, 0x4000, 100)
        await host.send(ctx, frame_of(60))
        await idle(ctx, 100)
        assert not ctx.get(host.dut.active)
        ctx.set(host.dut.running, 0)
        await host.settle(ctx, 1)

    host.run(main)
    assert host.count("no_buffer") == 1


def test_a_doorbell_beyond_the_ring_is_a_fault():
    host = Host(DEFAULT, log2=4)

    async def main(ctx):
        await host.ring(ctx, index=3)  # not running: ignored
        await host.open(ctx)
        await host.enable(ctx)
        for n in range(16):
            host.place(0x4000 + 128 * n, 128)
        await host.ring(ctx)  # as far as the ring goes
        await host.send(ctx, frame_of(60))
        await host.settle(ctx, 1)
        await host.ring(ctx, index=18)
        await idle(ctx, 30)

    host.run(main)
    assert host.faults == [{"channel": 0, "code": ChannelError.DOORBELL_OVERRUN}]
    assert host.count("frames") == 1


def test_a_failed_fetch_is_a_fault_and_nothing_of_it_is_used():
    host = Host(DEFAULT)

    async def main(ctx):
        await host.open(ctx)
        await host.enable(ctx)
        host.reads_fail = True
        await host.post(ctx, 0x4000, 100)
        await host.send(ctx, frame_of(60))
        await idle(ctx, 100)
        assert host.faults == [{"channel": 0, "code": ChannelError.FETCH_BUS_ERROR}]
        host.reads_fail = False
        await host.post(ctx, 0x4000, 100)  # the channel is on its way down: no further fetch
        await idle(ctx, 100)
        ctx.set(host.dut.running, 0)
        await host.settle(ctx, 1)
        host.producer = 0
        await host.start(ctx)
        await host.post(ctx, 0x4000, 100)
        await host.send(ctx, frame_of(60))
        await host.settle(ctx, 2)

    host.run(main)
    assert host.count("no_buffer") == 1
    assert host.count("frames") == 1
    assert len(host.faults) == 1
    assert [token["ring_index"] for token in host.done] == [1]


def test_a_fetch_of_an_earlier_life_is_discarded():
    host = Host(DEFAULT)

    async def main(ctx):
        await host.open(ctx)
        await host.enable(ctx)
        host.holds_reads = True
        await host.post(ctx, 0x4000, 100)
        await idle(ctx, 30)
        await host.post(ctx, 0x4100, 100)
        await idle(ctx, 30)
        assert len(host.read_commands) == 2
        old, host.read_commands[:] = list(host.read_commands), []
        ctx.set(host.dut.running, 0)
        await idle(ctx, 5)
        for command in old:
            host._answer_read(host.bench.cycle + 60, command)
        host.holds_reads = False
        host.producer = 0
        await host.start(ctx)
        await host.post(ctx, 0x8000, 100)
        await host.send(ctx, frame_of(60, 1))
        await host.settle(ctx, 1)
        await host.send(ctx, frame_of(60, 2))
        await host.settle(ctx, 2)

    host.run(main)
    assert host.memory[0x8000:0x8000 + 60] == frame_of(60, 1)
    assert (host.count("frames"), host.count("no_buffer")) == (1, 1)


def test_drain_waits_for_frames_and_fetches_and_not_for_later_work():
    host = Host(DEFAULT)
    seen = []

    async def main(ctx):
        async def drained(name):
            await idle(ctx, 30)
            seen.append((name, ctx.get(host.dut.drain_done)))

        await host.open(ctx)
        await host.open(ctx, channel=1, base=RING + 0x1000)
        await host.enable(ctx)
        for n in range(8):
            host.place(0x4000 + 128 * n, 128)
        await host.ring(ctx)
        ctx.set(host.dut.drain_request, 1)
        await drained("nothing to wait for but the fetch")
        ctx.set(host.dut.drain_request, 0)
        await drained("no request")
        host.holds_retired = True
        await host.send(ctx, frame_of(60))
        await idle(ctx, 40)
        ctx.set(host.dut.drain_request, 1)
        await drained("a frame without its completion")
        await host.send(ctx, frame_of(60))
        await drained("and one more behind the request")
        host.retired += 1
        ctx.set(host.dut.rx_retired, 1)
        await ctx.tick()
        ctx.set(host.dut.rx_retired, 0)
        await drained("only the one behind the request is left")
        ctx.set(host.dut.drain_request, 0)
        host.holds_retired = False
        await idle(ctx, 5)
        host.holds_reads = True
        host.place(0x4000, 128, base=RING + 0x1000, producer=0)
        await host.ring(ctx, channel=1, index=1)
        await idle(ctx, 20)
        ctx.set(host.dut.running, 1)
        ctx.set(host.dut.drain_request, 1)
        await drained("a fetch of the channel that stopped")
        host.holds_reads = False
        await drained("is back")
        ctx.set(host.dut.drain_request, 0)
        await host.settle(ctx, 2)

    host.run(main)
    assert seen == [
        ("nothing to wait for but the fetch", 1), ("no request", 0), ("a frame without its completion", 0),
        ("and one more behind the request", 0), ("only the one behind the request is left", 1),
        ("a fetch of the channel that stopped", 0), ("is back", 1),
    ]


def test_channels_fetch_at_the_same_time():
    host = Host(DEFAULT)

    async def main(ctx):
        host.holds_reads = True
        for channel in range(3):
            await host.open(ctx, channel=channel, base=RING + 0x1000 * channel)
            for n in range(20):
                host.place(0x4000, 128, base=RING + 0x1000 * channel, producer=n)
            await host.ring(ctx, channel=channel, index=20)
        await idle(ctx, 60)

    host.run(main)
    reads = [((c["address"] - RING) // 0x1000, c["address"] % 0x1000, c["length"]) for c in host.read_commands]
    assert sorted(reads) == [(channel, *part) for channel in range(3) for part in ((0, 256), (256, 64))]


def live(config, rng, count, *, seed=0, stall=0.2):
    """So many frames come while the channel is posted to, fails, is stopped, drained and started again. Whatever
    happens: no frame is lost uncounted, each delivered one is whole, in order, and in the buffer that its token names.
    Returns (frames delivered, lives of the channel)."""
    host = Host(config, seed=seed, stall=stall, log2=4, latency=30)
    frames = [frame_of(rng.choice((60, 61, 100, 300)), n) for n in range(count)]
    delivered, lives, sent = [], [], []

    async def sender(ctx):
        await idle(ctx, 20)
        for frame in frames:
            await host.send(ctx, frame, gap=rng.choice((0, 0.6)))
            await idle(ctx, rng.choice((0, 0, 10, 60)))
            sent.append(frame)

    def collect(behind):
        for token in host.done[len(delivered):behind]:
            at = 0x4000 + token["buffer_id"] % 16 * 1024
            delivered.append(bytes(host.memory[at:at + token["length"]]))

    async def main(ctx):
        await host.enable(ctx)
        while len(sent) < len(frames):
            lives.append(len(host.done))
            host.producer = 0
            await host.open(ctx)
            for _ in range(rng.randrange(3, 10)):
                while host.producer - (host.retired - lives[-1]) > 12 and len(sent) < len(frames):
                    await ctx.tick()
                if len(sent) == len(frames):
                    break
                collect(host.retired)
                for _ in range(rng.randrange(1, 5)):
                    host.place(0x4000 + host.producer % 16 * 1024, 512)
                await host.ring(ctx)
                await idle(ctx, rng.randrange(40))
            host.reads_fail = rng.random() < 0.3
            await idle(ctx, rng.randrange(60))
            ctx.set(host.dut.running, 0)
            ctx.set(host.dut.drain_request, 1)
            while not ctx.get(host.dut.drain_done):
                await ctx.tick()
            assert host.retired == len(host.done)
            assert host.reads_in_flight == 0
            collect(host.retired)
            host.reads_fail = False
            ctx.set(host.dut.drain_request, 0)
            await idle(ctx, rng.randrange(1, 20))
        await host.settle(ctx, len(frames))
        collect(host.retired)

    host.bench.add(sender)
    host.run(main)
    assert len(delivered) == host.count("frames"), f"seed {seed}"
    order = iter(frames)
    assert all(frame in order for frame in delivered), f"seed {seed}: a frame out of order, or not whole"
    for begin, end in zip(lives, [*lives[1:], len(host.done)], strict=True):
        indices = [token["ring_index"] for token in host.done[begin:end]]
        assert indices == list(range(1, len(indices) + 1)), f"seed {seed}"
    assert {fault["code"] for fault in host.faults} <= {ChannelError.FETCH_BUS_ERROR}
    return len(delivered), len(lives)


@pytest.mark.parametrize(("config", "seed"), [(DEFAULT, 11), (WIDE, 12)], ids=lambda v: getattr(v, "name", str(v)))
def test_a_random_life(config, seed):
    delivered, lives = live(config, random.Random(seed), 45, seed=seed)
    assert lives > 2
    assert delivered > 15, f"seed {seed}"


@pytest.mark.parametrize(("config", "stall", "seed", "buffer_bytes"), [
    (DEFAULT, 0.1, 31, 100), (MIDDLE, 0.0, 32, 450), (WIDE, 0.2, 33, 333)],
    ids=lambda v: getattr(v, "name", str(v)))
def test_coalesced_receives(config, stall, seed, buffer_bytes):
    """Streams of several flows: each receive, cut again, is exactly the frames that Linux's rules put together; now and
    then a drain ends all."""
    rng = random.Random(seed)
    host = Host(config, seed=seed, stall=stall, log2=10)
    streams = Streams(rng, 7, deviation=0.08, sizes=(20, 64, 150))
    rounds = [[streams.segment() for _ in range(60)] for _ in range(2)]
    pitch = buffer_bytes + 1
    buffers = min(600, (RING - 0x4000) // pitch)

    async def main(ctx):
        await host.write(ctx, register("COALESCE_TICKS"), 1 << 30)
        await host.open(ctx, operations=OperationMask.RECEIVE_RAW | OperationMask.COALESCE)
        await host.enable(ctx)
        for n in range(buffers):
            host.place(0x4000 + n * pitch, buffer_bytes)
        await host.ring(ctx)
        for number, segments in enumerate(rounds):
            for segment in segments:
                await host.send(ctx, segment.frame())
            while host.ended < 60 * (number + 1):
                await ctx.tick()
            await idle(ctx, 100)
            told = len(host.done)
            ctx.set(host.dut.drain_request, 1)
            while not ctx.get(host.dut.drain_done):
                await ctx.tick()
            assert len(host.done) > told
            assert host.retired == len(host.done) == host.indices[-1]["index"]
            ctx.set(host.dut.drain_request, 0)
            await ctx.tick()
        await host.settle(ctx, 120)

    linux, groups = LinuxGro(), {}
    for segments in rounds:
        for segment in segments:
            linux.receive(segment)
        linux.flush()
    frames = [segment.frame() for segments in rounds for segment in segments]
    for event, number, *first in linux.events:
        if event != "end":
            groups.setdefault(*first or (number,), []).append(frames[number])
    host.run(main, max_cycles=40_000)
    assert host.count("no_buffer") == 0
    tokens, receives = list(host.done), []
    while tokens:
        head = tokens[0]
        parts, tokens = tokens[:head["more"] + 1], tokens[head["more"] + 1:]
        assert [p["further"] for p in parts] == [0] + [1] * (len(parts) - 1), f"seed {seed}"
        data = b"".join(host.memory[0x4000 + p["buffer_id"] * pitch:][:p["length"]] for p in parts)
        receives.append(resegment(bytes(data), head["segments"], head["mss"], RxInfo(head["info"])))
    assert sorted(receives) == sorted(groups.values()), f"seed {seed}"
    assert host.count("aggregates") == sum(len(group) > 1 for group in groups.values()) > 5
    assert host.count("coalesced") == sum(len(group) - 1 for group in groups.values())
    for n in range(buffers):
        assert host.memory[0x4000 + n * pitch + buffer_bytes] == GUARD


def test_an_aggregate_ends_where_a_buffer_is_missing():
    host = Host(MIDDLE)
    segments = [Segment(1, seq=50 * n, ident=n, payload=bytes([n]) * 50) for n in range(5)]

    async def main(ctx):
        await host.write(ctx, register("COALESCE_TICKS"), 1 << 30)
        await host.open(ctx, operations=OperationMask.RECEIVE_RAW | OperationMask.COALESCE)
        await host.enable(ctx)
        await host.post(ctx, 0x4000, 190)
        for segment in segments[:3]:
            await host.send(ctx, segment.frame())
        await host.settle(ctx, 3)
        assert [(t["segments"], t["length"]) for t in host.done] == [(2, 154)]
        await host.post(ctx, BAD_ADDRESS, 110)
        await host.post(ctx, 0x5000, 200)
        for segment in segments[3:]:
            await host.send(ctx, segment.frame())
        await host.settle(ctx, 5)
        ctx.set(host.dut.drain_request, 1)
        await host.settle(ctx, 5)

    host.run(main)
    assert host.count("no_buffer") == 1
    assert [(t["status"], t["segments"], t["length"], t["more"], t["buffer_id"]) for t in host.done] == [
        (Status.OK, 2, 154, 0, 0), (Status.BUS_ERROR, 0, 0, 1, 1), (Status.OK, 0, 0, 0, 2)]
    assert host.memory[0x4000 + 154] == GUARD


def test_a_backlog_longer_than_the_memory_of_headers():
    """Segments whose headers found no place are delivered by themselves, and in order."""
    host = Host(DEFAULT, log2=8)
    segments = [Segment(1, seq=20 * n, ident=n, payload=rx_frames.data(20, n)) for n in range(130)]

    async def main(ctx):
        await host.write(ctx, register("COALESCE_TICKS"), 1 << 30)
        await host.open(ctx, operations=OperationMask.RECEIVE_RAW | OperationMask.COALESCE)
        await host.enable(ctx)
        for n in range(140):
            host.place(0x4000 + 256 * n, 256)
        await host.ring(ctx)
        host.holds_writes = True
        for segment in segments:
            await host.send(ctx, segment.frame())
        host.holds_writes = False
        while host.ended < 130:
            await ctx.tick()
        ctx.set(host.dut.drain_request, 1)
        await host.settle(ctx, 130)

    host.run(main, max_cycles=20_000)
    assert host.count("fifo_full") == host.count("no_buffer") == 0
    tokens, frames, alone = list(host.done), [], 0
    while tokens:
        head = tokens[0]
        parts, tokens = tokens[:head["more"] + 1], tokens[head["more"] + 1:]
        data = b"".join(host.memory[0x4000 + p["buffer_id"] * 256:][:p["length"]] for p in parts)
        frames += resegment(bytes(data), head["segments"], head["mss"], RxInfo(head["info"]))
        alone += head["segments"] == 1
    assert frames == [segment.frame() for segment in segments]
    assert 10 < alone < 100
