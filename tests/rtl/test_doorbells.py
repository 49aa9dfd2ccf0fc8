"""Doorbell pages: random AXI4 bursts against a byte-by-byte reading of them."""

import random

import pytest

from nic_model.contract import CONFIGS, DOORBELL_STRIDE, REGISTERS, NicConfig
from rtl.doorbells import KINDS, Doorbells
from tests.rtl.harness import Bench, idle, shared

INCR, FIXED = 1, 0
OKAY, SLVERR = 0, 2
DEVICES = {16: CONFIGS["tiny"], 32: NicConfig(name="middle", mac_bytes=16, channels=8), 64: CONFIGS["wide"]}


class Burst:
    """One write burst with random data, mostly at the start of a page."""

    def __init__(self, rng, width, channels):
        size = rng.choice([2, width.bit_length() - 1, rng.randrange(width.bit_length())])
        page = rng.randrange(rng.choice([channels, channels, 64]))
        offset = rng.choice([0, 0, 4, 8, rng.randrange(16), 0x400, rng.randrange(DOORBELL_STRIDE)])
        most = (DOORBELL_STRIDE - (offset & -(1 << size))) >> size  # AXI4: no burst crosses 4 KB
        self.address = page * DOORBELL_STRIDE + offset
        self.size, self.kind = size, rng.choice([INCR] * 9 + [FIXED])
        self.id = rng.randrange(256)
        self.beats = []
        self.bytes_of_beats = []
        for n in range(rng.randint(1, min(6, most))):
            first = self.address if n == 0 else (self.address & -(1 << size)) + (n << size)
            end = (first & -(1 << size)) + (1 << size)
            covered = {a: rng.randrange(256) for a in range(first, end) if rng.random() < 0.97}
            self.bytes_of_beats.append(covered)
            data = sum(value << 8 * (a % width) for a, value in covered.items())
            strobes = sum(1 << a % width for a in covered)
            self.beats.append({"data": data, "strb": strobes, "last": 0})
        self.beats[-1]["last"] = 1

    def address_beat(self):
        return {"id": self.id, "addr": self.address, "len": len(self.beats) - 1, "size": self.size, "burst": self.kind}

    def doorbells(self, channels):
        """(kind, channel, index) of each doorbell that the burst rings."""
        if self.kind != INCR:
            return
        for covered in self.bytes_of_beats:
            for kind, name in KINDS.items():
                for channel in {a // DOORBELL_STRIDE for a in covered}:
                    word = [covered.get(channel * DOORBELL_STRIDE + REGISTERS[name].offset + i) for i in range(4)]
                    if channel < channels and None not in word:
                        yield kind, channel, word[0] | word[1] << 8


def plain_doorbell(doorbell):
    """Channel and index of a doorbell of the submission ring that is not pushed."""
    assert not doorbell["pushed"]
    return {"channel": doorbell["channel"], "index": doorbell["index"]}


def ring(width, bursts, *, stall=0.0, seed=0):
    """Write the bursts, and compare the doorbells and the answers with what their bytes say; returns the doorbells."""
    config = DEVICES[width]
    dut = shared(Doorbells, config)
    bench = Bench(dut, seed=seed)
    bench.source(dut.axi.aw, [b.address_beat() for b in bursts], stall=stall)
    bench.source(dut.axi.w, [beat for b in bursts for beat in b.beats], stall=stall / 2)
    rung = {kind: [] for kind in KINDS}
    for kind in KINDS:
        bench.sink(getattr(dut, kind), rung[kind], stall=stall)
    answers = []
    bench.sink(dut.axi.b, answers, stall=stall)

    async def end(ctx):
        while len(answers) < len(bursts):
            await ctx.tick()
        await idle(ctx, 200)
    bench.add(end)
    bench.run()

    expected = {kind: [] for kind in KINDS}
    for burst in bursts:
        for kind, channel, index in burst.doorbells(config.channels):
            expected[kind].append({"channel": channel, "index": index})
    rung["tx"] = [plain_doorbell(d) for d in rung["tx"] if not d["pushed"]]  # random bytes may make a descriptor
    assert rung == expected
    assert answers == [{"id": b.id, "resp": OKAY if b.kind == INCR else SLVERR} for b in bursts]
    assert bench.idle_cycles > 100
    return rung


@pytest.mark.parametrize("width", DEVICES)
@pytest.mark.parametrize("stall", [0.0, 0.7])
def test_random_bursts(width, stall):
    seed = width + round(10 * stall)
    rng = random.Random(seed)
    rung = ring(width, [Burst(rng, width, DEVICES[width].channels) for _ in range(300)], stall=stall, seed=seed)
    assert all(len(doorbells) > 10 for doorbells in rung.values())


def test_a_full_fifo_holds_the_bus_and_loses_nothing():
    """Nobody takes the receive doorbells: their burst is not answered until somebody does; the others went ahead."""
    config = CONFIGS["tiny"]
    dut = shared(Doorbells, config)
    bench = Bench(dut)
    count = 40
    bench.source(dut.axi.aw, [{"id": n, "addr": 0, "len": 0, "size": 4, "burst": INCR} for n in range(count)])
    bench.source(dut.axi.w, [{"data": n | n << 32 | n << 64, "strb": 0xFFFF, "last": 1} for n in range(count)])
    taken = {"tx": [], "rx": [], "arm": []}
    answers = []
    bench.sink(dut.axi.b, answers)
    bench.sink(dut.tx, taken["tx"])
    bench.sink(dut.arm, taken["arm"])

    async def check(ctx):
        await idle(ctx, 200)
        held = len(answers)
        assert held < count
        assert len(taken["tx"]) == len(taken["arm"]) == held + 1
        ctx.set(dut.rx.ready, 1)
        while len(taken["rx"]) < count:
            _, _, valid, payload = await ctx.tick().sample(dut.rx.valid, dut.rx.payload)
            if valid:
                taken["rx"].append({"channel": payload.channel, "index": payload.index})
        await idle(ctx, 8)
    bench.add(check)
    bench.run()
    taken["tx"] = [plain_doorbell(doorbell) for doorbell in taken["tx"]]
    for kind in KINDS:
        assert taken[kind] == [{"channel": 0, "index": n} for n in range(count)]
    assert [a["id"] for a in answers] == list(range(count))


@pytest.mark.parametrize("width", DEVICES)
@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_pushed_descriptors_among_doorbells(width, stall):
    """Two channels push in turn, some descriptors in part or with a hole, each before its doorbell. What is whole comes
    out before the doorbell, in a buffer that holds its bytes."""
    config = DEVICES[width]
    seed = 100 + width + round(10 * stall)
    rng = random.Random(seed)
    dut = shared(Doorbells, config)
    bench = Bench(dut, seed=seed)
    addresses, beats, expected, contents = [], [], [], []

    def write(address, data, *, hole=None):
        """One burst; the byte at offset `hole` is not written."""
        size = min(width, len(data))
        count = len(data) // size
        addresses.append({"id": 5, "addr": address, "len": count - 1, "size": size.bit_length() - 1, "burst": INCR})
        for n in range(count):
            lane = (address + n * size) % width
            strobes = sum(1 << lane + i for i in range(size) if n * size + i != hole)
            beats.append({"data": int.from_bytes(data[n * size:(n + 1) * size], "little") << 8 * lane, "strb": strobes,
                          "last": n == count - 1})

    indices = [rng.randrange(1 << 16) for _ in range(2)]
    for _ in range(40):
        channel = rng.randrange(2)
        index, slots = indices[channel], rng.choice((1, 2, 3, 3, 5, 16))
        page, first = channel * DOORBELL_STRIDE, index % 32
        data = bytearray(rng.randbytes(32 * slots))
        data[1::32] = bytes([slots] + [0xEE] * (slots - 1))  # no other slot looks like a head
        padded = bytes(32 * (first % 2)) + data
        padded += bytes(-len(padded) % 64)
        blocks = [(page + 0x400 + (32 * (first & -2) + at) % 0x400, padded[at:at + 64])
                  for at in range(0, len(padded), 64)]
        how = rng.choice(("whole", "whole", "whole", "lacks one", "hole", "in two bursts"))
        lost = rng.randrange(len(blocks))
        for n, (address, block) in enumerate(blocks):
            if n == lost and how == "in two bursts":
                write(address, block[:32])
                write(address + 32, block[32:])
            elif n != lost or how != "lacks one":
                write(address, block, hole=rng.randrange(64) if n == lost and how == "hole" else None)
        if how == "whole":
            expected.append({"channel": channel, "index": first, "pushed": 1, "slots": slots})
            contents.append(data)
        index = indices[channel] = (index + slots) % (1 << 16)
        write(page, index.to_bytes(4, "little"))
        expected.append({"channel": channel, "index": index, "pushed": 0, "slots": 0})

    memory = [bytearray(1024) for _ in range(4)]
    found, kept = [], []
    bench.source(dut.axi.aw, addresses, stall=stall)
    bench.source(dut.axi.w, beats, stall=stall / 2)
    answers = []
    bench.sink(dut.axi.b, answers, stall=stall)

    async def take(ctx):
        to_free = []
        while True:
            ctx.set(dut.tx.ready, rng.random() >= stall)
            ctx.set(dut.push_free.valid, bool(to_free))
            if to_free:
                ctx.set(dut.push_free.payload, {"buffer": to_free.pop(0)})
            _, _, valid, ready, doorbell, writes, write = await ctx.tick().sample(
                dut.tx.valid, dut.tx.ready, dut.tx.payload, dut.push_write.valid, dut.push_write.payload)
            if writes:
                at = write.place * width
                memory[write.buffer][at:at + width] = write.data.to_bytes(width, "little")
            if valid and ready:
                found.append({name: int(doorbell[name]) for name in ("channel", "index", "pushed", "slots")})
                if doorbell.pushed:
                    image = memory[doorbell.buffer] * 2
                    at = 32 * doorbell.index
                    kept.append(bytes(image[at:at + 32 * doorbell.slots]))
                    to_free.append(int(doorbell.buffer))

    async def end(ctx):
        while len(answers) < len(addresses):
            await ctx.tick()
        await idle(ctx, 100)

    bench.background(take)
    bench.add(end)
    bench.run()
    assert found == expected
    assert kept == contents
    assert 5 < len(kept) < 40


def test_throughput_within_a_burst():
    """A pushed block of 4 KB takes one cycle a beat."""
    dut = Doorbells(CONFIGS["tiny"])
    bench = Bench(dut)
    bench.source(dut.axi.aw, [{"id": 1, "addr": 0x400, "len": 191, "size": 4, "burst": INCR}])
    bench.source(dut.axi.w, [{"data": n, "strb": 0xFFFF, "last": n == 191} for n in range(192)])
    answers = []
    bench.sink(dut.axi.b, answers)

    async def end(ctx):
        while not answers:
            await ctx.tick()
    bench.add(end)
    bench.run()
    assert bench.cycle <= 192 + 8


@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_reads_give_zeros(stall):
    dut = Doorbells(CONFIGS["default"])
    bench = Bench(dut, seed=4)
    reads = [{"id": n, "addr": 64 * n, "len": length, "size": 4, "burst": INCR}
             for n, length in enumerate((0, 1, 7, 255, 0, 3))]
    bench.source(dut.axi.ar, reads, stall=stall)
    beats = []
    bench.sink(dut.axi.r, beats, stall=stall)
    expected = [{"id": r["id"], "data": 0, "resp": OKAY, "last": n == r["len"]}
                for r in reads for n in range(r["len"] + 1)]

    async def end(ctx):
        while len(beats) < len(expected):
            await ctx.tick()
        await idle(ctx, 20)
    bench.add(end)
    bench.run()
    assert beats == expected
