"""The transmit front against the executable model's reading of the same descriptors; channels' life and faults."""

import bisect
import collections
import itertools
import random
from dataclasses import dataclass, field

import pytest

from host_driver.channel import push_blocks
from nic_model.contract import (
    PIECE,
    SUBMISSION_HEAD,
    SUBMISSION_SLOT_BYTES,
    ChannelError,
    KeyRight,
    NicConfig,
    Opcode,
    OperationMask,
    SendFlag,
    Status,
    channel_register,
    make_key,
    slots_needed,
)
from nic_model.keys import KeyEntry, KeyTable
from nic_model.submission import read_submission
from rtl.descriptor import FETCH_SLOTS, DescriptorCheck, DescriptorCutter, DescriptorParser
from rtl.fetch import DrainWatch, FetchScheduler, TransmitFetch
from rtl.interfaces import TxJob
from tests.rtl.harness import Bench, idle, shared, until

CHANNELS = 4
QUEUE_SLOTS = {16: 64, 32: 64, 64: 128}
"""By the bytes of the host bus."""
ALL_OPERATIONS = OperationMask.SEND_FRAME | OperationMask.SEND_SEGMENTED
BURST_BYTES = 256


@dataclass
class Ring:
    """The driver's side of one channel's submission ring."""

    channel: int
    log2: int
    base: int
    operations: int = ALL_OPERATIONS
    memory: bytearray = field(init=False)
    producer: int = 0
    consumed: int = 0
    posted: list = field(default_factory=list)

    def __post_init__(self):
        self.memory = bytearray(SUBMISSION_SLOT_BYTES << self.log2)

    @property
    def free(self):
        return (1 << self.log2) - (self.producer - self.consumed) % (1 << 16)

    def post(self, descriptor, *, slots=None):
        """Write a descriptor's slots behind the producer index; `slots` counts those that the doorbell covers."""
        for at in range(0, len(descriptor), SUBMISSION_SLOT_BYTES):
            place = (self.producer * SUBMISSION_SLOT_BYTES + at) % len(self.memory)
            self.memory[place:place + SUBMISSION_SLOT_BYTES] = descriptor[at:at + SUBMISSION_SLOT_BYTES]
        self.posted.append(descriptor)
        self.producer = (self.producer + (slots or len(descriptor) // SUBMISSION_SLOT_BYTES)) % (1 << 16)


ORDER_TAG = 0xE317
"""Of jobs that are no descriptor's."""


class DescriptorJobs(list):
    """Jobs of descriptors; those of the control port are left out."""

    def append(self, job):
        if job["tag"] != ORDER_TAG:
            super().append(job)



class Host:
    """Everything round a TransmitFetch: rings, DMA of slots, the key table, the consumers of what it gives.

    Parameters
    ----------
    rings : list of Ring
    host_bytes, seed : as their names say.
    stall : probability of a refusal or a pause, everywhere.
    latency : cycles from a fetch command to its first beat, at least and at most.
    flows : of the control port, which is a second source of jobs; 0: there is none.
    """

    FRONT = TransmitFetch
    """The block, or one that has its members."""
    DEVICE_CHANNELS = CHANNELS

    def __init__(self, rings, *, host_bytes=16, seed=0, stall=0.0, latency=(10, 30), flows=0):
        self.config = NicConfig(
            name="test", mac_bytes=8, host_bytes=host_bytes, channels=self.DEVICE_CHANNELS, vectors=4, flows=flows)
        self.width, self.stall, self.latency = host_bytes, stall, latency
        self.rings = {ring.channel: ring for ring in rings}
        self.front = shared(self.FRONT, self.config)
        self.bench = Bench(self.front, seed=seed)
        self.rng = random.Random(seed + 1)
        self.keys = KeyTable(self.config.keys)
        self.bad_bursts = set()
        self.reads, self.rows, self.commands, self.faults, self.indices = [], [], [], [], []
        self.jobs = DescriptorJobs()
        self.running = 0
        self.may_retire = 1 << 20
        self.may_free = 1 << 20
        self.retired = 0
        self.freed = 0
        self.bench.sink(self.front.fault, self.faults, stall=stall)
        for name, seen in (("job", self.jobs), ("stored_row", self.rows), ("stored_piece", self.commands)):
            self.bench.strobes(getattr(self.front, name), seen)
        self.bench.strobes(self.front.index, self.indices)
        self._waiting_reads, self._waiting_keys = collections.deque(), collections.deque()
        for testbench in (self._take_reads, self._give_beats, self._take_keys, self._give_answers, self._retire,
                          self._free):
            self.bench.background(testbench)

    async def _take_reads(self, ctx):
        await self._take(ctx, self.front.descriptor_cmd, self._waiting_reads, self.reads)

    async def _take_keys(self, ctx):
        await self._take(ctx, self.front.key_request, self._waiting_keys, [])

    async def _take(self, ctx, stream, waiting, log):
        while True:
            ctx.set(stream.ready, self.rng.random() >= self.stall)
            _, _, valid, ready, payload = await ctx.tick().sample(stream.valid, stream.ready, stream.payload)
            if valid and ready:
                found = {name: int(payload[name]) for name, _ in payload.shape()}
                waiting.append((self.bench.cycle, found))
                log.append(found)

    async def _give_beats(self, ctx):
        while True:
            while not self._waiting_reads:
                await ctx.tick()
            asked_at, command = self._waiting_reads[0]
            ready_at = asked_at + self.rng.randint(*self.latency)
            await idle(ctx, max(0, ready_at - self.bench.cycle))
            for beat in self._beats(**command):
                await self.bench.send(ctx, self.front.descriptor_beat, beat, stall=self.stall)
            self._waiting_reads.popleft()

    def _beats(self, address, length):
        ring = next(r for r in self.rings.values() if r.base <= address < r.base + len(r.memory))
        end = address + length
        assert end <= ring.base + len(ring.memory), "a fetch goes beyond its ring"
        assert length % SUBMISSION_SLOT_BYTES == 0
        assert 0 < length <= FETCH_SLOTS * SUBMISSION_SLOT_BYTES
        while address < end:
            lane = address % self.width
            count = min(self.width - lane, end - address)
            error = address // BURST_BYTES in self.bad_bursts
            found = ring.memory[address - ring.base:address - ring.base + count]
            if error:
                found = self.rng.randbytes(count)
            yield {"data": int.from_bytes(found, "little") << 8 * lane, "start": lane, "count": count,
                   "last": address + count == end, "error": error}
            address += count

    async def _give_answers(self, ctx):
        while True:
            while not self._waiting_keys:
                await ctx.tick()
            asked_at, asked = self._waiting_keys[0]
            await idle(ctx, max(0, asked_at + 4 - self.bench.cycle))
            assert asked["write"] == 0
            status, address = self.keys.check(asked["channel"], asked["key"], asked["offset"], asked["length"],
                                              KeyRight.READ)
            if status != Status.OK:
                address = self.rng.getrandbits(64)
            await self.bench.send(ctx, self.front.key_answer, {"status": status, "address": address}, stall=self.stall)
            self._waiting_keys.popleft()

    async def _retire(self, ctx):
        while True:
            retire = self.retired < min(len(self.jobs), self.may_retire) and self.rng.random() < 0.5
            ctx.set(self.front.tx_retired, retire)
            if retire:
                ctx.set(self.front.tx_retired_epoch, self.jobs[self.retired]["epoch"])
            self.retired += retire
            await ctx.tick()

    async def _free(self, ctx):
        """Give the slots of jobs back, some at a time."""
        while True:
            frees = self.freed < min(len(self.jobs), self.may_free) and self.rng.random() < 0.5
            ctx.set(self.front.freed.valid, frees)
            if frees:
                job = self.jobs[self.freed]
                ctx.set(self.front.freed.payload, {"channel": job["channel"], "slots": job["slots"]})
            self.freed += frees
            await ctx.tick()

    async def enable(self, ctx, ring):
        """Write the ring registers and start the channel."""
        values = {"TX_BASE_LO": ring.base & 0xFFFF_FFFF, "TX_BASE_HI": ring.base >> 32, "TX_LOG2": ring.log2,
                  "CHANNEL_OPERATIONS": ring.operations}
        for name, value in values.items():
            await self.write(ctx, channel_register(name, ring.channel), value)
        self.running |= 1 << ring.channel
        ctx.set(self.front.running, self.running)
        await self.bench.strobe(ctx, self.front.start, {"channel": ring.channel})

    async def write(self, ctx, address, value):
        await self.bench.strobe(ctx, self.front.write, {"address": address, "data": value})

    def stop(self, ctx, channel):
        """Let a channel's `running` fall."""
        self.running &= ~(1 << channel)
        ctx.set(self.front.running, self.running)

    async def ring_doorbell(self, ctx, ring, *, index=None):
        index = ring.producer if index is None else index
        await self.bench.send(ctx, self.front.doorbell, {"channel": ring.channel, "index": index % (1 << 16)})

    async def settle(self, ctx, *, quiet_cycles=12):
        """Wait until nothing has been active for a while, and neither slots nor answers are awaited."""
        quiet = 0
        while quiet < quiet_cycles:
            _, _, active = await ctx.tick().sample(self.front.active)
            quiet = 0 if active or self._waiting_reads or self._waiting_keys else quiet + 1
        await idle(ctx, self.latency[1])
        for index in self.indices:
            self.rings[index["channel"]].consumed = index["index"]

    def add_key(self, index, *, address, length, owner, generation=1, rights=KeyRight.READ):
        self.keys.store(index, KeyEntry(address, length, generation, rights, owner, True))

    def check(self, *, only=None):
        """Compare all that left with what the posted descriptors mean. `only`: how many of each channel count."""
        left = {c: collections.deque(r.posted[:(only or {}).get(c)]) for c, r in self.rings.items()}
        consumed = dict.fromkeys(self.rings, 0)
        rows, commands = collections.deque(self.rows), collections.deque(self.commands)
        for job in self.jobs:
            channel = job["channel"]
            descriptor = left[channel].popleft()
            consumed[channel] += len(descriptor) // SUBMISSION_SLOT_BYTES
            submission = read_submission(descriptor, self.rings[channel].operations)
            head, status, wanted = submission.head, submission.status, []
            if status == Status.OK:
                for piece in submission.pieces:
                    status, address = self.keys.check(channel, piece.key, piece.offset, piece.length_bytes,
                                                      KeyRight.READ)
                    if status != Status.OK:
                        break
                    wanted.append({"channel": channel, "address": address, "length": piece.length_bytes})
            assert job["status"] == status, f"{head} on channel {channel}"
            assert job["tag"] == head["tag"]
            assert job["slots"] == head["slots"]
            assert job["ring_index"] == consumed[channel] % (1 << 16)
            assert job["complete"] == bool(head["flags"] & SendFlag.COMPLETE)
            if status == Status.OK:
                self._check_good(job, submission, rows, commands, wanted)
        assert not rows, "inline rows without a job"
        assert not commands, "payload commands without a job"
        assert not any(left.values()), f"descriptors were lost: {left}"
        for channel, count in consumed.items():
            reported = [i["index"] for i in self.indices if i["channel"] == channel]
            assert (reported[-1] if reported else 0) == count % (1 << 16)

    def _check_good(self, job, submission, rows, commands, wanted):
        head, flags = submission.head, submission.head["flags"]
        expected = {
            "timestamp": bool(flags & SendFlag.TIMESTAMP), "segmented": head["opcode"] == Opcode.SEND_SEGMENTED,
            "ipv6": bool(flags & SendFlag.IPV6), "ipv4_checksum": bool(flags & SendFlag.IPV4_CHECKSUM),
            "l4_checksum": bool(flags & SendFlag.L4_CHECKSUM), "udp": bool(flags & SendFlag.UDP),
            "inline_bytes": head["inline_bytes"], "l3_offset": head["l3_offset"], "l4_offset": head["l4_offset"],
            "checksum_offset": head["checksum_offset"], "payload_bytes": submission.payload_bytes,
        }
        assert {name: job[name] for name in expected} == expected
        if expected["segmented"]:
            assert job["mss"] == head["mss"]
        inline = b""
        for _ in range(0, head["inline_bytes"], self.width):
            row = rows.popleft()
            inline += row["data"].to_bytes(self.width, "little")
            assert row["channel"] == job["channel"]
        assert inline[:head["inline_bytes"]] == submission.inline
        assert [commands.popleft() for _ in wanted] == wanted


def make_descriptor(*, pieces=(), inline=b"", opcode=Opcode.SEND_FRAME, **fields):
    """Bytes of a descriptor. `pieces` are (key, offset, length); `fields` override those of the head."""
    slots = slots_needed(len(inline), len(pieces))
    values = {"opcode": opcode, "slots": slots, "inline_bytes": len(inline), "pieces": len(pieces)} | fields
    packed = [PIECE.pack(key=key, offset=offset, length=length) for key, offset, length in pieces]
    first, further = packed[:1] or [bytes(16)], packed[1:]
    body = SUBMISSION_HEAD.pack(**values) + first[0]
    body += inline + bytes(-len(inline) % SUBMISSION_SLOT_BYTES) + b"".join(further)
    claimed_bytes = SUBMISSION_SLOT_BYTES * values["slots"]
    return body[:claimed_bytes].ljust(claimed_bytes, b"\0")


KEY = make_key(7, 1)
"""64 KB that channel 1 may read, in the named cases."""
STALE, FOREIGN, WRITE_ONLY = make_key(7, 0), make_key(8, 1), make_key(9, 1)
HEADER = bytes(range(54))
SEGMENTED = {"opcode": Opcode.SEND_SEGMENTED, "inline": HEADER, "l3_offset": 14, "l4_offset": 34,
             "checksum_offset": 50, "mss": 1460}
CHECKSUMMED = {"flags": SendFlag.L4_CHECKSUM | SendFlag.IPV4_CHECKSUM, "l3_offset": 14, "l4_offset": 34,
               "checksum_offset": 40}

OK, BAD = Status.OK, Status.BAD_DESCRIPTOR
CASES = {
    "one piece": (OK, {"pieces": [(KEY, 0, 60)]}),
    "all inline": (OK, {"inline": HEADER}),
    "most inline": (OK, {"inline": bytes(range(128))}),
    "inline and pieces": (OK, {"inline": HEADER, "pieces": [(KEY, 5, 1), (KEY, 0x1000, 60), (KEY, 9, 3)]}),
    "most pieces": (OK, {"pieces": [(KEY, n, n + 1) for n in range(31)]}),
    "shortest frame": (OK, {"pieces": [(KEY, 0, 14)]}),
    "longest frame": (OK, {"inline": HEADER, "pieces": [(KEY, 0, 9014 - 54)]}),
    "checksums": (OK, {"pieces": [(KEY, 0, 64)], **CHECKSUMMED}),
    "checksum field ends the frame": (OK, {"pieces": [(KEY, 0, 42)], **CHECKSUMMED}),
    "segmented": (OK, {"pieces": [(KEY, 0, 0x10000)], **SEGMENTED}),
    "segmented, longest payload": (OK, {"pieces": [(make_key(10, 1), 0, 1 << 20)], **SEGMENTED}),
    "segmented, smallest mss": (OK, {"pieces": [(KEY, 0, 100)], **SEGMENTED, "mss": 32}),
    "segmented, greatest mss": (OK, {"pieces": [(KEY, 0, 100)], **SEGMENTED, "mss": 9014 - 54}),
    "segmented IPv6": (OK, {"pieces": [(KEY, 0, 100)], **SEGMENTED, "flags": SendFlag.IPV6, "inline": bytes(74),
                            "l4_offset": 54, "checksum_offset": 70}),
    "unknown operation": (Status.BAD_OPCODE, {"opcode": 3, "pieces": [(KEY, 0, 60)]}),
    "socket operation, and bad too": (Status.BAD_OPCODE, {"opcode": Opcode.SOCKET_SEND, "inline": bytes(4)}),
    "one slot too many": (BAD, {"pieces": [(KEY, 0, 60)], "slots": 2}),
    "one slot too few": (BAD, {"pieces": [(KEY, 0, 60)] * 2, "slots": 1}),
    "too much inline": (BAD, {"inline": bytes(129)}),
    "too many pieces": (BAD, {"pieces": [(KEY, 0, 60)] * 31, "pieces_claimed": 32}),
    "empty piece": (BAD, {"inline": HEADER, "pieces": [(KEY, 0, 4), (KEY, 0, 0)]}),
    "piece too long": (BAD, {"pieces": [(KEY, 0, (1 << 20) + 1)], **SEGMENTED}),
    "piece whose length is beyond all": (BAD, {"inline": HEADER, "pieces": [(KEY, 0, 1 << 21), (KEY, 0, 4)]}),
    "frame too short": (BAD, {"pieces": [(KEY, 0, 13)]}),
    "nothing at all": (BAD, {}),
    "frame too long": (BAD, {"inline": HEADER, "pieces": [(KEY, 0, 9014 - 53)]}),
    "bad shape before a bad key": (BAD, {"pieces": [(STALE, 0, 13)]}),
    "checksum field beyond the frame": (BAD, {"pieces": [(KEY, 0, 41)], **CHECKSUMMED}),
    "checksum field before L4": (BAD, {"pieces": [(KEY, 0, 60)], **CHECKSUMMED, "checksum_offset": 32}),
    "odd checksum field": (BAD, {"pieces": [(KEY, 0, 60)], **CHECKSUMMED, "checksum_offset": 41}),
    "odd l4": (BAD, {"pieces": [(KEY, 0, 60)], **CHECKSUMMED, "l4_offset": 35}),
    "odd l3": (BAD, {"pieces": [(KEY, 0, 60)], **CHECKSUMMED, "l3_offset": 13}),
    "IPv4 header too short": (BAD, {"pieces": [(KEY, 0, 60)], **CHECKSUMMED, "l3_offset": 16}),
    "IPv4 header beyond the frame": (BAD, {"pieces": [(KEY, 0, 33)], **CHECKSUMMED, "flags": SendFlag.IPV4_CHECKSUM}),
    "odd offsets without checksums": (OK, {"pieces": [(KEY, 0, 60)], **CHECKSUMMED, "flags": 0, "l4_offset": 1}),
    "segmented without payload": (BAD, SEGMENTED),
    "segmented, payload too long": (BAD, {"pieces": [(KEY, 0, 1 << 20), (KEY, 0, 1)], **SEGMENTED}),
    "segmented, mss too small": (BAD, {"pieces": [(KEY, 0, 100)], **SEGMENTED, "mss": 31}),
    "segmented, mss too great": (BAD, {"pieces": [(KEY, 0, 100)], **SEGMENTED, "mss": 9014 - 53}),
    "segmented, mss beyond 14 bits": (BAD, {"pieces": [(KEY, 0, 100)], **SEGMENTED, "mss": 0x4000 + 1460}),
    "segmented, header too short": (BAD, {"pieces": [(KEY, 0, 100)], **SEGMENTED, "inline": bytes(52)}),
    "segmented, IPv6 header too short": (BAD, {"pieces": [(KEY, 0, 100)], **SEGMENTED, "flags": SendFlag.IPV6}),
    "segmented, checksum beyond header": (BAD, {"pieces": [(KEY, 0, 100)], **SEGMENTED, "checksum_offset": 54}),
    "stale key": (Status.KEY_INVALID, {"pieces": [(STALE, 0, 60)]}),
    "another channel's key": (Status.KEY_OWNER, {"pieces": [(FOREIGN, 0, 60)]}),
    "no right to read": (Status.KEY_RIGHTS, {"pieces": [(WRITE_ONLY, 0, 60)]}),
    "beyond the key's end": (Status.KEY_BOUNDS, {"inline": HEADER, "pieces": [(KEY, 0, 4), (KEY, 0xFFFF, 2)]}),
    "the first refusal counts": (Status.KEY_OWNER, {"inline": HEADER, "pieces": [
        (KEY, 0, 4), (FOREIGN, 0, 4), (STALE, 0, 4), (KEY, 0, 5)]}),
    "good again": (OK, {"inline": HEADER, "pieces": [(KEY, 0, 6)], "flags": SendFlag.COMPLETE | SendFlag.TIMESTAMP}),
}


def case_descriptor(number, fields):
    fields = dict(fields)
    claimed = fields.pop("pieces_claimed", None)
    descriptor = bytearray(make_descriptor(tag=number, **fields))
    if claimed is not None:
        descriptor[SUBMISSION_HEAD.fields["pieces"].offset // 8] = claimed
    return bytes(descriptor)


def named_keys(host):
    host.add_key(7, address=0xFFFF_8000, length=0x10000, owner=1)
    host.add_key(8, address=0x2000, length=0x10000, owner=2)
    host.add_key(9, address=0x3000, length=0x10000, owner=1, rights=KeyRight.WRITE)
    host.add_key(10, address=0x40_0000_0000, length=1 << 20, owner=1)


@pytest.fixture(scope="module")
def named_case_jobs():
    """All named cases in one ring; their tags are their numbers. All that left agrees with the model's reading."""
    ring = Ring(channel=1, log2=8, base=0x12_FFFF_F000)
    host = Host([ring])
    named_keys(host)

    async def testbench(ctx):
        await host.enable(ctx, ring)
        for number, (_, fields) in enumerate(CASES.values()):
            descriptor = case_descriptor(number, fields)
            if ring.free < len(descriptor) // SUBMISSION_SLOT_BYTES:
                await host.ring_doorbell(ctx, ring)
                await host.settle(ctx)
            ring.post(descriptor)
        await host.ring_doorbell(ctx, ring)
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run()
    assert not host.faults
    host.check()
    return host


@pytest.mark.parametrize("number", range(len(CASES)), ids=list(CASES))
def test_status_of_a_named_case(named_case_jobs, number):
    status, _ = list(CASES.values())[number]
    jobs = [job for job in named_case_jobs.jobs if job["tag"] == number]
    assert [Status(job["status"]) for job in jobs] == [status]


def test_operations_are_looked_up_for_each_channel():
    rings = [Ring(channel=c, log2=4, base=0x1000 * (c + 1), operations=ops)
             for c, ops in enumerate((0, OperationMask.SEND_FRAME, OperationMask.SEND_SEGMENTED, ALL_OPERATIONS))]
    host = Host(rings)
    for ring in rings:
        host.add_key(ring.channel, address=0x9000, length=0x1000, owner=ring.channel)
        key = make_key(ring.channel, 1)
        ring.post(make_descriptor(pieces=[(key, 0, 60)]))
        ring.post(make_descriptor(pieces=[(key, 0, 60)], **SEGMENTED))

    async def testbench(ctx):
        for ring in rings:
            await host.enable(ctx, ring)
            await host.ring_doorbell(ctx, ring)
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run()
    host.check()
    statuses = {c: [Status(j["status"]) for j in host.jobs if j["channel"] == c] for c in range(CHANNELS)}
    refused = Status.NOT_PERMITTED
    assert statuses == {0: [refused, refused], 1: [OK, refused], 2: [refused, OK], 3: [OK, OK]}


def random_descriptor(rng, channel):
    """Good ones of all shapes, and one in three with something wrong."""
    key = make_key(channel, 1)
    pieces = [(key, rng.randrange(0x2000), rng.randrange(1, 900)) for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 5, 23]))]
    fields = {"inline": rng.randbytes(rng.choice([0, 14, 31, 32, 33, 54, 54, 64, 66, 96, 128])), "pieces": pieces,
              "flags": rng.getrandbits(7), "tag": rng.getrandbits(16), "l3_offset": 14, "l4_offset": 34,
              "checksum_offset": 40}
    if rng.random() < 0.4:
        fields |= SEGMENTED | {"inline": rng.randbytes(rng.choice([54, 66, 74, 128])), "mss": rng.randrange(32, 8000)}
    wrong = rng.randrange(24)
    if wrong == 0 and pieces:
        pieces[rng.randrange(len(pieces))] = (make_key(channel, 0), 0, 60)
    elif wrong == 1 and pieces:
        pieces[-1] = (key, 0x3000, 1)
    elif wrong == 2 and pieces:
        pieces[-1] = (make_key((channel + 1) % CHANNELS, 1), 0, 60)
    elif wrong == 3 and pieces:
        pieces[rng.randrange(len(pieces))] = (key, 0, rng.choice([0, (1 << 24) - 1]))
    elif wrong == 4:
        fields["opcode"] = rng.randrange(256)
    elif wrong == 5:
        fields["slots"] = rng.randrange(1, 17)
    elif wrong == 6:
        fields[rng.choice(["l3_offset", "l4_offset", "checksum_offset"])] = rng.randrange(256)
    elif wrong == 7:
        descriptor = bytearray(rng.randbytes(32 * rng.randrange(1, 17)))
        descriptor[0], descriptor[1] = rng.randrange(4), len(descriptor) // 32
        return bytes(descriptor)
    return make_descriptor(**fields)


def driver(host, ring, rng, count):
    """A test bench that posts `count` random descriptors as the ring has room, several to a doorbell."""
    async def testbench(ctx):
        await idle(ctx, 60)
        for _ in range(count):
            descriptor = random_descriptor(rng, ring.channel)
            while ring.free < len(descriptor) // SUBMISSION_SLOT_BYTES:
                await host.ring_doorbell_of[ring.channel](ctx)
                await idle(ctx, 20)
                reported = [i["index"] for i in host.indices if i["channel"] == ring.channel]
                ring.consumed = reported[-1] if reported else 0
            ring.post(descriptor)
            if rng.random() < 0.5:
                await host.ring_doorbell_of[ring.channel](ctx)
        await host.ring_doorbell_of[ring.channel](ctx)
    return testbench


def fetch(rng, host_bytes, each, *, seed=0, stall=0.0, latency=(5, 20)):
    """Random descriptors on all channels, so many on each; what becomes of them is checked. Returns (host, rings)."""
    rings = [Ring(channel=c, log2=rng.choice([4, 5, 6]), base=0xFFFF_F000 + 0x10000 * c) for c in range(CHANNELS)]
    host = Host(rings, host_bytes=host_bytes, seed=seed, stall=stall, latency=latency)
    for c in range(CHANNELS):
        host.add_key(c, address=rng.getrandbits(64), length=0x3000, owner=c)
    share_doorbells(host)
    finished = []

    def posting(ring):
        post = driver(host, ring, rng, each)

        async def testbench(ctx):
            await post(ctx)
            finished.append(ring)
        return testbench

    async def testbench(ctx):
        for ring in rings:
            await host.enable(ctx, ring)
        while len(finished) < len(rings):
            await idle(ctx, 50)
        await host.settle(ctx)

    host.bench.add(testbench)
    for ring in rings:
        host.bench.add(posting(ring))
    host.bench.run(max_cycles=30_000)
    assert not host.faults
    host.check()
    assert len(host.jobs) == CHANNELS * each
    return host, rings


@pytest.mark.parametrize(("host_bytes", "seed", "stall", "latency"), [
    (16, 11, 0.0, (5, 20)), (16, 12, 0.4, (20, 60)), (32, 13, 0.2, (10, 30)), (64, 14, 0.0, (5, 20)),
    (64, 15, 0.4, (10, 30)),
])
def test_random_descriptors_on_all_channels(host_bytes, seed, stall, latency):
    host, rings = fetch(random.Random(seed), host_bytes, 10, seed=seed, stall=stall, latency=latency)
    assert len({job["status"] for job in host.jobs}) >= 4
    assert any(ring.producer > 1 << ring.log2 for ring in rings), "no ring wrapped"
    assert host.bench.idle_cycles > 20, "the block was never seen idle"


def share_doorbells(host):
    """Several test benches ring on one stream: each waits its turn."""
    busy = []

    def bell(ring):
        async def send(ctx):
            while busy:
                await ctx.tick()
            busy.append(ring)
            await host.ring_doorbell(ctx, ring)
            busy.clear()
        return send

    host.ring_doorbell_of = {c: bell(ring) for c, ring in host.rings.items()}


# ---------------------------------------------------------------------------------------------- faults

GOOD = make_descriptor(pieces=[(KEY, 0, 60)])
LONG = make_descriptor(inline=HEADER, pieces=[(KEY, 0, 60)])


def run_one_channel(before, *, then=None, log2=4, bad_burst=None, **host_options):
    """Post `before` on channel 1 in one doorbell, settle, call `then`; returns the host and its ring."""
    ring = Ring(channel=1, log2=log2, base=0x10000)
    host = Host([ring], **host_options)
    named_keys(host)
    if bad_burst is not None:
        host.bad_bursts.add(ring.base // BURST_BYTES + bad_burst)

    async def testbench(ctx):
        await host.enable(ctx, ring)
        for descriptor in before:
            ring.post(descriptor)
        await host.ring_doorbell(ctx, ring)
        await host.settle(ctx)
        if then is not None:
            await then(ctx, host, ring)
            await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run()
    return host, ring


@pytest.mark.parametrize("host_bytes", [16, 64])
@pytest.mark.parametrize("slots", [0, 17, 2], ids=["no slots", "17 slots", "beyond the producer"])
def test_truncated_descriptor_stops_the_channel(slots, host_bytes):
    last = GOOD[:1] + bytes([slots]) + GOOD[2:]
    host, _ = run_one_channel([GOOD, LONG, last], host_bytes=host_bytes)
    assert host.faults == [{"channel": 1, "code": ChannelError.TRUNCATED_DESCRIPTOR}]
    host.check(only={1: 2})
    assert len(host.reads) == 1


@pytest.mark.parametrize("host_bytes", [16, 64])
@pytest.mark.parametrize(("whole", "broken"), [
    (8, LONG), (7, LONG), (6, LONG), (5, make_descriptor(inline=HEADER, pieces=[(KEY, 0, 60)] * 2)),
    (7, make_descriptor(pieces=[(KEY, 0, 1)] * 31)),
], ids=["head", "all behind the head", "last inline slot", "last piece slot", "slots in the middle"])
def test_bus_error_in_a_descriptor_stops_the_channel(whole, broken, host_bytes):
    """The second burst of eight slots fails, behind `whole` good descriptors of one slot."""
    host, _ = run_one_channel([GOOD] * whole + [broken, GOOD], log2=5, bad_burst=1, host_bytes=host_bytes)
    assert host.faults == [{"channel": 1, "code": ChannelError.FETCH_BUS_ERROR}]
    host.check(only={1: whole})
    assert len(host.jobs) == whole


def test_bus_error_behind_a_channel_does_not_touch_another():
    rings = [Ring(channel=c, log2=4, base=0x10000 * (c + 1)) for c in (1, 2)]
    host = Host(rings)
    named_keys(host)
    host.bad_bursts.add(rings[0].base // BURST_BYTES)
    rings[0].post(GOOD)
    for _ in range(3):
        rings[1].post(make_descriptor(pieces=[(FOREIGN, 0, 60)]))

    async def testbench(ctx):
        for ring in rings:
            await host.enable(ctx, ring)
        for ring in rings:
            await host.ring_doorbell(ctx, ring)
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run()
    assert host.faults == [{"channel": 1, "code": ChannelError.FETCH_BUS_ERROR}]
    host.check(only={1: 0})
    assert [job["status"] for job in host.jobs] == [OK] * 3


@pytest.mark.parametrize(("index", "overruns"), [(2 + 16, False), (2 + 17, True), (1, True), (2, False)])
def test_doorbell_against_the_rings_size(index, overruns):
    async def then(ctx, host, ring):
        ring.memory[:] = GOOD * 16
        ring.posted += [GOOD] * (index - 2)
        await host.ring_doorbell(ctx, ring, index=index)

    host, _ = run_one_channel([GOOD, GOOD], then=then)
    assert host.faults == ([{"channel": 1, "code": ChannelError.DOORBELL_OVERRUN}] if overruns else [])
    host.check(only={1: 2} if overruns else None)
    assert len(host.jobs) == (2 if overruns else index)


@pytest.mark.parametrize("wrong", [17, 15])
def test_doorbell_counts_slots_that_are_not_yet_parsed(wrong):
    """16 slots stand in the ring of 16, none is parsed: one more is an overrun, and so is an index that goes back."""
    ring = Ring(channel=1, log2=4, base=0x10000)
    host = Host([ring], latency=(100, 100))
    named_keys(host)
    ring.memory[:] = GOOD * 16

    async def testbench(ctx):
        await host.enable(ctx, ring)
        for index in (10, 16, wrong):
            await host.ring_doorbell(ctx, ring, index=index)
        await idle(ctx, 20)
        assert host.faults == [{"channel": 1, "code": ChannelError.DOORBELL_OVERRUN}]
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run()
    assert len(host.jobs) == 16


class SchedulerBench:
    """A FetchScheduler alone, with a plain reading of everything behind it.

    Fetches are answered after a while, in order; descriptors of known sizes are cut out of them, and freed later.

    Parameters
    ----------
    sizes : slots of each channel's descriptors, in order.
    log2 : log2 of the rings' entries.
    """

    def __init__(self, sizes, *, seed, log2, base=0x7_FFFF_F000, answer_cycles=(0, 60), free_cycles=(2, 60),
                 host_bytes=16):
        self.scheduler = shared(
            FetchScheduler, NicConfig(name="test", channels=CHANNELS, vectors=4, mac_bytes=8, host_bytes=host_bytes))
        self.queue_slots = QUEUE_SLOTS[host_bytes]
        self.bench = Bench(self.scheduler, seed=seed)
        self.rng = random.Random(seed)
        self.sizes, self.log2, self.base = sizes, log2, base
        self.ends = [list(itertools.accumulate(s)) for s in sizes]
        self.produced, self.consumed, self.freed = ([0] * len(sizes) for _ in range(3))
        self.cut_off = self.thrown_away = 0
        self.faults, self.asked = [], []
        self.fetches, self.commands, self.waiting, self.to_free = (collections.deque() for _ in range(4))
        self._answer_cycles, self._free_cycles = answer_cycles, free_cycles
        self.bench.sink(self.scheduler.fault, self.faults)
        for testbench in (self._take_fetches, self._take_commands, self._answer, self._free):
            self.bench.background(testbench)

    async def start(self, ctx):
        for c in range(len(self.sizes)):
            base = self.base + 0x10_0000 * c
            for name, value in (("TX_BASE_LO", base & 0xFFFF_FFFF), ("TX_BASE_HI", base >> 32), ("TX_LOG2", self.log2)):
                await self.bench.strobe(ctx, self.scheduler.write,
                                        {"address": channel_register(name, c), "data": value})
            await self.bench.strobe(ctx, self.scheduler.start, {"channel": c})
        ctx.set(self.scheduler.running, (1 << len(self.sizes)) - 1)
        await ctx.tick()

    def post(self, c, count):
        """Let the ring have up to `count` descriptors more, as many as there is room for; returns whether any."""
        place = bisect.bisect_right(self.ends[c], self.produced[c])
        wanted = [end for end in self.ends[c][place:place + count] if end - self.freed[c] <= 1 << self.log2]
        self.produced[c] = max([self.produced[c], *wanted])
        return bool(wanted)

    async def ring_doorbell(self, ctx, c):
        await self.bench.send(ctx, self.scheduler.doorbell, {"channel": c, "index": self.produced[c] % (1 << 16)})

    async def _take_commands(self, ctx):
        cmd = self.scheduler.cmd
        while True:
            ctx.set(cmd.ready, self.rng.random() < 0.7)
            _, _, valid, ready, payload = await ctx.tick().sample(cmd.valid, cmd.ready, cmd.payload)
            if valid and ready:
                self.commands.append((payload.address, payload.length))

    async def _take_fetches(self, ctx):
        """Each fetch as it is described, against what may be asked for."""
        ctx.set(self.scheduler.fetch.ready, 1)
        freed = list(self.freed)
        while True:
            before, freed = freed, list(self.freed)
            _, _, valid, fetch = await ctx.tick().sample(self.scheduler.fetch.valid, self.scheduler.fetch.payload)
            if valid:
                c = fetch.channel
                start = self.consumed[c] + (fetch.index - self.consumed[c]) % (1 << 16)
                end = start + fetch.count
                assert fetch.count > 0
                assert end <= self.produced[c]
                assert end - before[c] <= self.queue_slots, "more slots than there is room for"
                self.asked.append(c)
                self.waiting.append((self.bench.cycle + self.rng.randint(*self._answer_cycles), c, start, fetch.count,
                                     fetch.more))

    async def _answer(self, ctx):
        while True:
            while not self.waiting:
                await ctx.tick()
            due, c, start, count, more = self.waiting.popleft()
            await idle(ctx, max(0, due - self.bench.cycle))
            await self._check_commands(ctx, c, start, count)
            cut = False
            if start != self.consumed[c]:
                self.thrown_away += 1
            else:
                end = start + count
                for descriptor_end in self.ends[c][bisect.bisect_right(self.ends[c], start):]:
                    if self.consumed[c] == end:
                        break
                    if descriptor_end > end:
                        assert more, "a descriptor is cut off, and nothing said to stand behind it"
                        cut = True
                        break
                    slots = descriptor_end - self.consumed[c]
                    self.to_free.append((self.bench.cycle + self.rng.randint(*self._free_cycles), c, slots))
                    await self.bench.strobe(ctx, self.scheduler.consumed,
                                            {"channel": c, "index": descriptor_end % (1 << 16)})
                    self.consumed[c] = descriptor_end
            self.cut_off += cut
            await self.bench.strobe(ctx, self.scheduler.finished, {
                "channel": c, "cut": cut, "index": self.consumed[c] % (1 << 16)})

    async def _check_commands(self, ctx, c, start, count):
        """The commands of a fetch: its slots, in order, not beyond the ring's end."""
        size, base = 1 << self.log2, self.base + 0x10_0000 * c
        at = start % size
        parts = [(at, min(count, size - at)), (0, count - (size - at))]
        for first, slots in parts:
            if slots > 0:
                while not self.commands:
                    await ctx.tick()
                assert self.commands.popleft() == (base + first * SUBMISSION_SLOT_BYTES, slots * SUBMISSION_SLOT_BYTES)

    async def _free(self, ctx):
        while True:
            await ctx.tick()
            if self.to_free and self.to_free[0][0] <= self.bench.cycle:
                _, c, slots = self.to_free.popleft()
                await self.bench.strobe(ctx, self.scheduler.freed, {"channel": c, "slots": slots})
                self.freed[c] += slots


@pytest.mark.parametrize("host_bytes", [16, 64])
@pytest.mark.parametrize(("seed", "free_cycles"), [(31, (2, 60)), (32, (150, 400))], ids=["room", "little room"])
def test_scheduler_loses_no_doorbell_and_keeps_to_the_credits(seed, free_cycles, host_bytes):
    """Doorbells at all distances, to channels that are being looked at; descriptors of all sizes, cut off or not."""
    rng = random.Random(seed)
    sizes = [[rng.choice((1, 1, 3, 4, 16, rng.randint(1, 16))) for _ in range(300)] for _ in range(3)]
    rig = SchedulerBench(sizes, seed=seed, log2=8, free_cycles=free_cycles, host_bytes=host_bytes)

    async def testbench(ctx):
        await rig.start(ctx)
        idle_since = 0
        while any(p < ends[-1] for p, ends in zip(rig.produced, rig.ends, strict=True)):
            c = rng.randrange(3)
            if rig.post(c, rng.choice((1, 1, 2, 8, 40))):
                await rig.ring_doorbell(ctx, c)
            if rng.random() < 0.03:
                idle_since = rig.bench.cycle
                while rig.freed != rig.produced:
                    await ctx.tick()
                    assert rig.bench.cycle - idle_since < 6000, f"seed {seed}: {rig.produced}, but {rig.consumed} taken"
            await idle(ctx, rng.randrange(3))
        while rig.freed != rig.produced:
            await ctx.tick()
        await idle(ctx, 20)

    rig.bench.add(testbench)
    rig.bench.run(max_cycles=200_000)
    assert rig.consumed == [ends[-1] for ends in rig.ends]
    assert not rig.faults
    assert not rig.commands
    assert not rig.waiting
    assert rig.cut_off > 5
    assert rig.thrown_away > 5


def test_indices_wrap_at_16_bits():
    """2^16 slots and more through a ring of 2^12 entries, and then a doorbell that is one too far."""
    rig = SchedulerBench([[16] * 4200], seed=33, log2=12, answer_cycles=(0, 0), free_cycles=(0, 0))

    async def testbench(ctx):
        await rig.start(ctx)
        while rig.produced[0] < rig.ends[0][-1]:
            if rig.post(0, 200):
                await rig.ring_doorbell(ctx, 0)
            await idle(ctx, 20)
        while rig.freed != rig.produced:
            await ctx.tick()
        assert not rig.faults
        rig.produced[0] += (1 << 12) + 1
        await rig.ring_doorbell(ctx, 0)
        await idle(ctx, 20)
        assert rig.faults == [{"channel": 0, "code": ChannelError.DOORBELL_OVERRUN}]

    rig.bench.add(testbench)
    rig.bench.run(max_cycles=100_000)
    assert rig.consumed[0] == 16 * 4200


def test_no_channel_starves():
    """All channels always have work; each is asked for in turn, whatever the others have."""
    rig = SchedulerBench([[1] * 4000, [16] * 400, [3] * 1000], seed=34, log2=9, answer_cycles=(40, 40),
                         free_cycles=(2, 20))

    async def testbench(ctx):
        await rig.start(ctx)
        while rig.bench.cycle < 6000:
            for c in range(3):
                if rig.post(c, 400):
                    await rig.ring_doorbell(ctx, c)
            await idle(ctx, 10)

    rig.bench.add(testbench)
    rig.bench.run(max_cycles=10_000)
    turns = [[n for n, asked in enumerate(rig.asked) if asked == c] for c in range(3)]
    gaps = [later - earlier for mine in turns for earlier, later in itertools.pairwise(mine)]
    assert max(gaps) <= 12, gaps
    assert len(rig.asked) > 100


# ---------------------------------------------------------------------------------------------- life of a channel


def test_a_channel_that_does_not_run_ignores_its_doorbell():
    ring = Ring(channel=1, log2=4, base=0x10000)
    host = Host([ring])

    async def testbench(ctx):
        ring.post(GOOD)
        await host.ring_doorbell(ctx, ring)
        await host.enable(ctx, ring)
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run()
    assert not host.reads
    assert not host.jobs
    assert not host.faults


def test_ring_registers_count_as_they_stand_at_start():
    async def then(ctx, host, ring):
        await host.write(ctx, channel_register("TX_BASE_LO", 1), 0x90000)
        await host.write(ctx, channel_register("TX_LOG2", 1), 12)
        for channel in (0, 2):
            await host.write(ctx, channel_register("TX_LOG2", channel), 15)
        for _ in range(15):
            ring.post(GOOD)
        await host.ring_doorbell(ctx, ring)

    host, _ = run_one_channel([GOOD] * 2, then=then)
    host.check()
    assert len(host.jobs) == 17


def test_a_stopped_channels_fetch_is_thrown_away_and_it_starts_again_at_0():
    ring = Ring(channel=1, log2=5, base=0x10000)
    host = Host([ring], latency=(60, 60))
    named_keys(host)

    async def testbench(ctx):
        await host.enable(ctx, ring)
        for _ in range(20):
            ring.post(GOOD)
        await host.ring_doorbell(ctx, ring)
        while not host.reads:
            await ctx.tick()
        host.stop(ctx, 1)
        ctx.set(host.front.drain_request, 1)
        await idle(ctx, 20)
        assert not ctx.get(host.front.drain_done), "the fetch has not come back"
        await until(ctx, host.front.drain_done)
        assert not host.jobs
        ctx.set(host.front.drain_request, 0)
        await idle(ctx, 2)

        ring.producer, ring.posted = 0, []
        await host.enable(ctx, ring)
        ring.post(LONG)
        await host.ring_doorbell(ctx, ring)
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run()
    host.check()
    assert len(host.jobs) == 1
    assert host.jobs[0]["ring_index"] == 3


@pytest.mark.parametrize("flows", [0, 16])
def test_drain_waits_for_the_completion_of_all_that_began_and_for_nothing_else(flows):
    """With a control port, whose orders begin meanwhile, as without."""
    rings = [Ring(channel=c, log2=6, base=0x10000 * (c + 1)) for c in (1, 2)]
    host = Host(rings, latency=(30, 30), flows=flows)
    named_keys(host)
    host.may_retire = 0
    done = []
    if flows:
        no_job = dict.fromkeys(TxJob.members, 0) | {"tag": ORDER_TAG}
        host.bench.source(host.front.emit_checked, [
            {"job": no_job, "broken": 0, "has_pieces": 0, "has_inline": 0}] * 40, stall=0.9)

    async def watch(ctx):
        async for _, _, is_done in ctx.tick().sample(host.front.drain_done):
            if is_done:
                done.append(host.bench.cycle)

    async def testbench(ctx):
        for ring in rings:
            await host.enable(ctx, ring)
            for _ in range(3):
                ring.post(make_descriptor(pieces=[(KEY if ring.channel == 1 else FOREIGN, 0, 60)]))
        for ring in rings:
            await host.ring_doorbell(ctx, ring)
        while len(host.reads) < 2:
            await ctx.tick()
        host.stop(ctx, 1)
        ctx.set(host.front.drain_request, 1)
        await idle(ctx, 80)
        # channel 1's fetch was thrown away; channel 2 goes on, and gets more to do
        assert [job["channel"] for job in host.jobs] == [2] * 3
        assert not done
        for _ in range(40):
            rings[1].post(make_descriptor(pieces=[(FOREIGN, 0, 60)]))
        await host.ring_doorbell(ctx, rings[1])
        while len(host.jobs) < 10:
            await ctx.tick()
        host.may_retire = 2
        await idle(ctx, 40)
        assert not done
        host.may_retire = 3
        await idle(ctx, 20)
        assert done, "the jobs that came later hold the drain up"
        host.may_retire = 1 << 20
        await host.settle(ctx)
        assert done[-1] - done[0] >= 50, "drain_done must stay while the request does"
        ctx.set(host.front.drain_request, 0)
        await idle(ctx, 2)
        assert not ctx.get(host.front.drain_done)

    host.bench.background(watch)
    host.bench.add(testbench)
    host.bench.run()
    host.check(only={1: 0})


def test_drain_with_nothing_under_way():
    host, _ = run_one_channel([GOOD], then=drain_at_once)
    assert len(host.jobs) == 1


def test_drain_watch_against_a_count_of_each_kind():
    """Random begins and ends of all kinds, of jobs in any order: done when all of each kind have ended that were under
    way when its turn came, not before, and also if nothing new begins."""
    seed = 21
    rng = random.Random(seed)
    watch = DrainWatch(job_bits=4)
    bench = Bench(watch, seed=seed)
    ordered = [kind for kind, _ in watch.ORDERED]
    kinds = [*ordered, "job"]
    numbers = itertools.count()
    under_way, waits = {kind: [] for kind in kinds}, []

    async def step(ctx, rate):
        """One cycle in which things begin and end; returns `done` as it was before."""
        epoch = ctx.get(watch.epoch)
        for kind in kinds:
            begins = len(under_way[kind]) < 6 and rng.random() < rate
            ends = bool(under_way[kind]) and rng.random() < 0.5
            ctx.set(getattr(watch, f"{kind}_begins"), begins)
            ctx.set(getattr(watch, f"{kind}_ends"), ends)
            if ends:
                _, its_epoch = under_way[kind].pop(rng.randrange(len(under_way[kind])) if kind == "job" else 0)
                ctx.set(watch.job_ends_epoch, its_epoch) if kind == "job" else None
            if begins:
                under_way[kind].append((next(numbers), epoch))
        _, _, done = await ctx.tick().sample(watch.done)
        return done

    async def testbench(ctx):
        for _ in range(150):
            for _ in range(rng.randrange(8)):
                await step(ctx, 0.5)
            ctx.set(watch.request, 1)
            began, rate = bench.cycle, rng.choice([0.0, 0.5])
            awaited = {"fetch": set(under_way["fetch"])}
            while True:
                # what is under way in this cycle, before its strobes, is the least that must end
                over = [kind for kind in kinds if kind in awaited and not awaited[kind] & set(under_way[kind])]
                for kind, behind in itertools.pairwise(kinds):
                    if kind in over:
                        awaited.setdefault(behind, set(under_way[behind]))
                complete = len(over) == len(kinds)
                if await step(ctx, rate):
                    assert complete, f"seed {seed}: done before {awaited} had ended: {under_way}"
                    break
            waits.append(bench.cycle - began)
            ctx.set(watch.request, 0)
            await step(ctx, 0.5)
            await step(ctx, 0.5)

    bench.add(testbench)
    bench.run()
    assert len(waits) == 150
    assert max(waits) < 100, "new work holds the drain up"


@pytest.mark.parametrize(("host_bytes", "most", "least"), [(16, 64, 16), (64, 128, 32)])
def test_a_channel_has_no_more_slots_behind_its_fetch_than_there_is_room_for(host_bytes, most, least):
    """Nothing is freed: `most` slots of one-slot descriptors are fetched, and no more; another channel goes on; with
    room for `least` the first goes on too."""
    rings = [Ring(channel=c, log2=8, base=0x10000 * (c + 1)) for c in (1, 2)]
    host = Host(rings, host_bytes=host_bytes)
    named_keys(host)
    host.may_free = 0

    async def testbench(ctx):
        for ring in rings:
            await host.enable(ctx, ring)
        for _ in range(200):
            rings[0].post(GOOD)
        await host.ring_doorbell(ctx, rings[0])
        await host.settle(ctx)
        assert [job["channel"] for job in host.jobs] == [1] * most
        for _ in range(3):
            rings[1].post(make_descriptor(pieces=[(FOREIGN, 0, 60)]))
        await host.ring_doorbell(ctx, rings[1])
        await host.settle(ctx)
        assert len(host.jobs) == most + 3
        host.may_free = least - 1
        await host.settle(ctx)
        assert len(host.jobs) == most + 3, "there is less room than a fetch needs"
        host.may_free = least
        await host.settle(ctx)
        assert len(host.jobs) == most + 3 + least
        host.may_free = 1 << 20
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run()
    host.check()
    assert len(host.jobs) == 203


async def drain_at_once(ctx, host, ring):
    began = host.bench.cycle
    ctx.set(host.front.drain_request, 1)
    await until(ctx, host.front.drain_done)
    assert host.bench.cycle - began <= 6
    ctx.set(host.front.drain_request, 0)


# ---------------------------------------------------------------------------------------------- flow


def test_a_descriptor_that_wraps_round_the_rings_end():
    """15 slots, then one of 16 slots in a ring of 16: it starts in the last slot and wraps."""
    async def then(ctx, host, ring):
        ring.post(make_descriptor(pieces=[(KEY, n, 1 + n) for n in range(31)]))
        await host.ring_doorbell(ctx, ring)

    host, ring = run_one_channel([GOOD] * 15, then=then)
    host.check()
    assert len(host.jobs) == 16
    assert [(r["address"] - ring.base, r["length"]) for r in host.reads[1:]] == [(15 * 32, 32), (0, 15 * 32)]


def test_a_descriptor_that_a_fetch_cuts_off_goes_on_into_the_next():
    """64 slots a fetch; descriptors of 3 slots, so the 22nd is cut off by the first fetch, and the second is there."""
    host, ring = run_one_channel([LONG] * 40, log2=7, latency=(60, 60))
    host.check()
    assert len(host.jobs) == 40
    starts = [(r["address"] - ring.base) // 32 for r in host.reads]
    lengths = [r["length"] // 32 for r in host.reads]
    assert lengths[0] == 64
    assert starts == [0, *itertools.accumulate(lengths[:-1])], "nothing is fetched twice"


def test_a_descriptor_that_a_fetch_cuts_off_is_fetched_again():
    """The bus takes no command for so long that the second fetch is not there when the first ends: it is of another
    channel. So the 22nd descriptor is left, and fetched with what follows."""
    rings = [Ring(channel=c, log2=7, base=0x10000 * (c + 1)) for c in (1, 2)]
    host = Host(rings, latency=(60, 60))
    named_keys(host)

    async def testbench(ctx):
        for ring, descriptor in zip(rings, (LONG, make_descriptor(inline=HEADER)), strict=True):
            await host.enable(ctx, ring)
            for _ in range(40):
                ring.post(descriptor)
        for ring in rings:
            await host.ring_doorbell(ctx, ring)
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run()
    host.check()
    assert len(host.jobs) == 80
    starts = [(r["address"] - rings[0].base) // 32 for r in host.reads if r["address"] < rings[1].base]
    assert starts[0] == 0
    assert 63 in starts, "the descriptor at 63 was cut off"


async def push(ctx, host, ring, descriptor, *, buffer=1, position=None):
    """Write a descriptor into a push buffer, and tell that it is complete."""
    for offset, block in push_blocks(ring.producer, descriptor):
        for at in range(0, len(block), host.width):
            await host.bench.strobe(ctx, host.front.push_write, {
                "buffer": buffer, "place": (offset + at) // host.width,
                "data": int.from_bytes(block[at:at + host.width], "little")})
    position = ring.producer if position is None else position
    await host.bench.send(ctx, host.front.doorbell, {
        "channel": ring.channel, "index": position % 32, "pushed": 1,
        "slots": len(descriptor) // SUBMISSION_SLOT_BYTES, "buffer": buffer})


FRAME = make_descriptor(inline=bytes(range(60)))


@pytest.mark.parametrize("host_bytes", [16, 32, 64])
def test_pushed_descriptors_need_no_read(host_bytes):
    """Descriptors of all shapes, one after the other, each with its doorbell behind it."""
    rng = random.Random(host_bytes)
    ring = Ring(channel=1, log2=6, base=0x10000)
    host = Host([ring], host_bytes=host_bytes)
    named_keys(host)
    host.add_key(1, address=0x4000, length=0x3000, owner=1)
    freed, begun, offered = [], [], []
    host.bench.strobes(host.front.push_free, freed)

    async def watch(ctx):
        async for _, _, valid in ctx.tick().sample(host.front.job.valid):
            if valid:
                offered.append(host.bench.cycle)

    async def testbench(ctx):
        await host.enable(ctx, ring)
        for n in range(30):
            descriptor = FRAME if n % 5 == 0 else random_descriptor(rng, 1)
            if not 1 <= descriptor[1] <= 16 or descriptor[1] * 32 != len(descriptor):
                continue
            await push(ctx, host, ring, descriptor, buffer=n % 4)
            begun.append((n % 5 == 0, host.bench.cycle))
            ring.post(descriptor)
            await host.ring_doorbell(ctx, ring)
            await host.settle(ctx)

    host.bench.background(watch)
    host.bench.add(testbench)
    host.bench.run()
    host.check()
    assert not host.reads
    assert not host.faults
    assert len(host.jobs) == len(freed) == len(begun) > 20
    assert ring.producer > 64, "the ring did not wrap"
    latencies = [min(at for at in offered if at > told) - told for is_frame, told in begun if is_frame]
    rows = -(-60 // host_bytes)
    assert max(latencies) <= 10 + rows, "cycles from a pushed descriptor to its job, behind its inline rows"


@pytest.mark.parametrize("why", ["not the next", "others wait", "it does not run"])
def test_a_push_that_comes_at_the_wrong_time_is_forgotten(why):
    """Its buffer is free again, and the doorbell behind it makes the device fetch."""
    ring = Ring(channel=1, log2=5, base=0x10000)
    host = Host([ring], latency=(60, 60))
    named_keys(host)
    freed = []
    host.bench.strobes(host.front.push_free, freed)

    async def testbench(ctx):
        if why != "it does not run":
            await host.enable(ctx, ring)
        if why == "others wait":
            ring.post(GOOD)
            await host.ring_doorbell(ctx, ring)
        await push(ctx, host, ring, FRAME, position=ring.producer + (why == "not the next"))
        ring.post(FRAME)
        await idle(ctx, 20)
        assert freed == [{"buffer": 1}]
        assert not host.jobs
        if why == "it does not run":
            await host.enable(ctx, ring)
        await host.ring_doorbell(ctx, ring)
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run()
    host.check()
    assert len(host.reads) == (2 if why == "others wait" else 1)
    assert freed == [{"buffer": 1}]


def test_a_push_waits_for_what_was_asked_for_before():
    """Another channel's fetch is under way: the pushed descriptor follows it, and both give what they should."""
    rings = [Ring(channel=c, log2=5, base=0x10000 * (c + 1)) for c in (1, 2)]
    host = Host(rings, latency=(100, 100))
    named_keys(host)

    async def testbench(ctx):
        for ring in rings:
            await host.enable(ctx, ring)
        rings[0].post(LONG)
        await host.ring_doorbell(ctx, rings[0])
        await idle(ctx, 20)
        await push(ctx, host, rings[1], FRAME)
        rings[1].post(FRAME)
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run()
    host.check()
    assert [job["channel"] for job in host.jobs] == [1, 2]
    assert len(host.reads) == 1


def steady_cycles(host, rings):
    """Cycles for each of many descriptors of one slot that stand in `rings`, once the first have come."""
    jobs = []

    async def watch(ctx):
        async for _, _, valid in ctx.tick().sample(host.front.job.valid):
            if valid:
                jobs.append(host.bench.cycle)

    async def testbench(ctx):
        for ring in rings:
            await host.enable(ctx, ring)
            while ring.free:
                ring.post(make_descriptor(pieces=[(make_key(6 + ring.channel, 1), 0, 60)]))
        for ring in rings:
            await host.ring_doorbell(ctx, ring)
        while len(jobs) < sum(len(ring.posted) for ring in rings):
            await ctx.tick()
        await host.settle(ctx)

    host.bench.background(watch)
    host.bench.add(testbench)
    host.bench.run()
    host.check()
    first = 64 * len(rings)
    return (jobs[-1] - jobs[first]) / (len(jobs) - 1 - first)


@pytest.mark.parametrize(("host_bytes", "most"), [(16, 7), (64, 4)])
def test_rate_of_one_channel_with_memory_far_away(host_bytes, most):
    """64 or 128 slots of a channel in a round trip of 250 cycles and what the blocks take."""
    ring = Ring(channel=1, log2=9, base=0x10000)
    host = Host([ring], host_bytes=host_bytes, latency=(250, 250))
    named_keys(host)
    assert steady_cycles(host, [ring]) <= most


def test_rate_of_several_channels_with_memory_far_away():
    """As fast as JobIssue, which takes 4 cycles for a descriptor."""
    rings = [Ring(channel=c, log2=8, base=0x10000 * (c + 1)) for c in (1, 2)]
    host = Host(rings, host_bytes=64, latency=(250, 250))
    named_keys(host)
    assert steady_cycles(host, rings) <= 4.0


def one_slot_descriptors(count):
    """Slots of `count` descriptors with one piece each."""
    return [int.from_bytes(make_descriptor(pieces=[(KEY, 0, 60)], tag=n), "little") for n in range(count)]


def test_throughput_of_the_cutter():
    """A slot a cycle, 2 cycles more for each fetch; with or without the refusals of what follows."""
    cutter = DescriptorCutter(channels=CHANNELS)
    bench = Bench(cutter)
    parts, finished = [], []
    bench.source(cutter.fetch, [{"channel": 1, "count": 64, "more": n == 0, "index": 64 * n} for n in range(2)])
    bench.source(cutter.slot, [{"data": data} for data in one_slot_descriptors(128)])
    bench.sink(cutter.part, parts)
    bench.strobes(cutter.finished, finished, with_cycle=True)

    async def testbench(ctx):
        ctx.set(cutter.running, 0xF)
        while len(parts) < 128:
            await ctx.tick()
        await idle(ctx, 2)

    bench.add(testbench)
    bench.run()
    assert [part["ring_index"] for part in parts] == [n + 1 for n in range(128)]
    assert finished[1][0] - finished[0][0] == 64 + 2


def pass_through(dut, source, sink, given, inputs):
    """Give a block what it takes without a pause; what leaves it, and the cycles from the first to the last.

    `inputs`: (signal, value) of its other inputs.
    """
    bench = Bench(dut)
    taken, times = [], []
    bench.source(source, given)
    bench.sink(sink, taken)

    async def testbench(ctx):
        for signal, value in inputs:
            ctx.set(signal, value)
        while len(times) < len(given):
            _, _, valid, ready = await ctx.tick().sample(sink.valid, sink.ready)
            if valid and ready:
                times.append(bench.cycle)
        await ctx.tick()

    bench.add(testbench)
    bench.run()
    return taken, times[-1] - times[0]


def test_throughput_of_parser_and_check():
    """A descriptor of one slot in each cycle."""
    parser, check = DescriptorParser(), DescriptorCheck()
    parts = [{"channel": 1, "ring_index": n + 1, "data": data, "first": 1, "last": 1}
             for n, data in enumerate(one_slot_descriptors(40))]
    parsed, cycles = pass_through(parser, parser.part, parser.parsed, parts,
                                  [(parser.operations, int(ALL_OPERATIONS)), (parser.piece.ready, 1)])
    assert cycles == 39
    checked, cycles = pass_through(check, check.i, check.o, parsed, [])
    assert cycles == 39
    assert [descriptor["job"]["ring_index"] for descriptor in checked] == [n + 1 for n in range(40)]
    assert not any(descriptor["job"]["status"] for descriptor in checked)


@pytest.mark.parametrize("host_bytes", [16, 32, 64])
def test_rate_and_latency(host_bytes):
    """28 descriptors of one slot with one piece: cycles for each, and from the first's last beat to its job."""
    ring = Ring(channel=1, log2=5, base=0x10000)
    host = Host([ring], host_bytes=host_bytes, latency=(20, 20))
    named_keys(host)
    beats, jobs = [], []

    async def watch(ctx):
        beat = host.front.descriptor_beat
        async for _, _, *found in ctx.tick().sample(beat.valid & beat.ready, host.front.job.valid):
            for happened, times in zip(found, (beats, jobs), strict=True):
                if happened:
                    times.append(host.bench.cycle)

    async def testbench(ctx):
        await host.enable(ctx, ring)
        for _ in range(28):
            ring.post(GOOD)
        await host.ring_doorbell(ctx, ring)
        await host.settle(ctx)

    host.bench.background(watch)
    host.bench.add(testbench)
    host.bench.run()
    host.check()
    assert len(jobs) == 28
    assert (jobs[-1] - jobs[0]) / 27 <= 4
    assert jobs[0] - beats[0 if host_bytes > 16 else 1] <= 9


def test_parameters_are_checked():
    with pytest.raises(TypeError, match="config must be a NicConfig, not 16"):
        TransmitFetch.__init__(object(), 16)
