"""Pushed descriptors: which blocks make one, against the rules block by block; and their slots as they were written."""

import collections
import random

import pytest

from nic_model.contract import CONFIGS, PUSH_BLOCK_BYTES, PUSH_WINDOW_BYTES, PUSH_WINDOW_SLOTS, SUBMISSION_SLOT_BYTES
from rtl.interfaces import PUSH_BUFFERS
from rtl.push import PushCollector, PushReader
from tests.rtl.harness import Bench, idle, shared
from tests.rtl.test_doorbells import DEVICES

BLOCKS = PUSH_WINDOW_BYTES // PUSH_BLOCK_BYTES
IDLE, FILLING, HANDED = "idle", "filling", "handed"


class Buffer:
    """State of one buffer, as the rules tell it."""

    def __init__(self):
        self.state, self.channel, self.next, self.left, self.first, self.slots = IDLE, 0, 0, 0, 0, 0
        self.data = b""


class Rules:
    """The rules of PushCollector's docstring, for whole blocks."""

    def __init__(self):
        self.buffers = [Buffer() for _ in range(PUSH_BUFFERS)]
        self.complete = []

    def forget(self, channel):
        for buffer in self.buffers:
            if buffer.state == FILLING and buffer.channel == channel:
                buffer.state = IDLE

    def block(self, channel, number, data, whole_beats, beats):
        """A block whose first `whole_beats` came; the others came too, but not whole, if `whole_beats < beats`."""
        if whole_beats:
            def states(state):
                return [b for b in self.buffers if b.state == state]
            own = [b for b in states(FILLING) if b.channel == channel]
            target = next(iter(own + states(IDLE) + states(FILLING)), None)
            goes_on = bool(own) and own[0].next == number
            if target is not None and not goes_on:
                target.state = IDLE
            if target is not None and whole_beats == beats:
                self._keep(target, goes_on, channel, number, data)
        if whole_beats < beats:
            self.forget(channel)

    def _keep(self, buffer, goes_on, channel, number, data):
        if goes_on:
            buffer.data += data
        else:
            claims = data[1], data[SUBMISSION_SLOT_BYTES + 1]
            second = claims[0] == 0
            slots = claims[second]
            if not 1 <= slots <= 16:
                return
            buffer.state, buffer.channel, buffer.slots = FILLING, channel, slots
            buffer.first = 2 * number + second
            buffer.data = data[SUBMISSION_SLOT_BYTES * second:]
        buffer.next = (number + 1) % BLOCKS
        if len(buffer.data) >= buffer.slots * SUBMISSION_SLOT_BYTES:
            buffer.state = HANDED
            self.complete.append((channel, buffer.first, buffer.slots, self.buffers.index(buffer),
                                  buffer.data[:buffer.slots * SUBMISSION_SLOT_BYTES]))


def pushed_blocks(rng, first, slots):
    """(number, bytes) of the blocks of a descriptor at place `first` of the window; other slots are zeros."""
    data = bytearray(rng.randbytes(slots * SUBMISSION_SLOT_BYTES))
    data[1] = slots
    padded = bytes(SUBMISSION_SLOT_BYTES * (first % 2)) + data
    padded += bytes(-len(padded) % PUSH_BLOCK_BYTES)
    return [((first // 2 + n) % BLOCKS, padded[at:at + PUSH_BLOCK_BYTES])
            for n, at in enumerate(range(0, len(padded), PUSH_BLOCK_BYTES))]


def channel_writes(rng, channel, count):
    """Blocks and doorbells (None) of one channel: good pushes, and such as lack, repeat or exchange blocks."""
    first = rng.randrange(PUSH_WINDOW_SLOTS)
    for _ in range(count):
        slots = rng.choice((1, 1, 2, 3, 3, 4, 16, rng.randint(1, 16)))
        blocks = pushed_blocks(rng, first, slots)
        spoilt = rng.randrange(8)
        if spoilt == 0:
            del blocks[rng.randrange(len(blocks))]
        elif spoilt == 1:
            rng.shuffle(blocks)
        elif spoilt == 2:
            blocks.insert(0, blocks[0])
        elif spoilt == 3:
            number, data = blocks[0]
            at = 1 + SUBMISSION_SLOT_BYTES * (first % 2)
            blocks[0] = number, data[:at] + bytes([rng.choice((0, 17, 255))]) + data[at + 1:]
        for number, data in blocks:
            yield channel, number, data
        if rng.random() < 0.7:
            yield channel, None, None
        first = (first + slots) % PUSH_WINDOW_SLOTS


@pytest.mark.parametrize("width", DEVICES)
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_collector_against_the_rules(width, channels):
    """Channels push in any mixture, some beats are not whole, and buffers are given back early or late."""
    seed = 10 * width + channels
    rng = random.Random(seed)
    collector = shared(PushCollector, DEVICES[width])
    bench = Bench(collector, seed=seed)
    beats = PUSH_BLOCK_BYTES // width
    rules, found, handed = Rules(), [], collections.deque()
    memory = [bytearray(PUSH_WINDOW_BYTES) for _ in range(PUSH_BUFFERS)]
    sources = [channel_writes(rng, c, 60) for c in range(channels)]

    async def step(ctx):
        """One cycle; what leaves in it is kept."""
        _, _, writes, write, valid, token = await ctx.tick().sample(
            collector.write.valid, collector.write.payload, collector.complete.valid, collector.complete.payload)
        if writes:
            at = write.place * width
            memory[write.buffer][at:at + width] = write.data.to_bytes(width, "little")
        if valid:
            assert token.pushed == 1
            slots = [memory[token.buffer][n % PUSH_WINDOW_SLOTS * 32:][:32]
                     for n in range(token.index, token.index + token.slots)]
            found.append((token.channel, token.index, token.slots, token.buffer, b"".join(slots)))
            handed.append(token.buffer)

    async def give_back(ctx):
        if handed and rng.random() < 0.4:
            buffer = handed.popleft()
            ctx.set(collector.free.payload, {"buffer": buffer})
            ctx.set(collector.free.valid, 1)
            await step(ctx)
            ctx.set(collector.free.valid, 0)
            rules.buffers[buffer].state = IDLE

    async def testbench(ctx):
        ctx.set(collector.complete.ready, 1)
        while sources:
            source = rng.choice(sources)
            try:
                channel, number, data = next(source)
            except StopIteration:
                sources.remove(source)
                continue
            ctx.set(collector.channel, channel)
            if number is None:
                ctx.set(collector.rung, 1)
                await step(ctx)
                ctx.set(collector.rung, 0)
                rules.forget(channel)
            else:
                whole_beats = rng.randrange(beats) if rng.random() < 0.05 else beats
                for n in range(beats):
                    ctx.set(collector.beat.payload, {
                        "block": number, "beat": n, "whole": n < whole_beats,
                        "data": int.from_bytes(data[n * width:(n + 1) * width], "little")})
                    ctx.set(collector.beat.valid, 1)
                    await step(ctx)
                    ctx.set(collector.beat.valid, 0)
                    while rng.random() < 0.2:
                        await step(ctx)
                rules.block(channel, number, data, whole_beats, beats)
            await step(ctx)
            await give_back(ctx)
        await step(ctx)

    bench.add(testbench)
    bench.run(max_cycles=60_000)
    assert found == rules.complete
    assert len(found) > 15 * channels, "too few were complete"
    assert len(found) < 58 * channels, "nothing was forgotten"
    assert max(slots for _, _, slots, _, _ in found) == 16
    assert any(first + slots > PUSH_WINDOW_SLOTS for _, first, slots, _, _ in found), "none wraps"


def test_what_is_complete_while_the_last_is_not_taken_is_forgotten():
    collector = PushCollector(CONFIGS["wide"])
    bench = Bench(collector)
    taken = []

    async def push(ctx, number):
        data = int.from_bytes(pushed_blocks(random.Random(number), 2 * number, 2)[0][1], "little")
        await bench.strobe(ctx, collector.beat, {"block": number, "whole": 1, "data": data})

    async def testbench(ctx):
        for number in range(3):
            await push(ctx, number)
        for number in range(3, 9):
            ctx.set(collector.complete.ready, 1)
            _, _, valid, token = await ctx.tick().sample(collector.complete.valid, collector.complete.payload)
            if valid:
                taken.append((token.index, token.buffer))
            ctx.set(collector.complete.ready, 0)
            await push(ctx, number)

    bench.add(testbench)
    bench.run()
    # the first, then one at a time until all buffers are handed over and none came back
    assert [index for index, _ in taken] == [0, 6, 8, 10]
    assert sorted(buffer for _, buffer in taken) == list(range(PUSH_BUFFERS))


@pytest.mark.parametrize("width", DEVICES)
@pytest.mark.parametrize("stall", [0.0, 0.6])
def test_reader_gives_the_slots_and_then_the_buffer(width, stall):
    seed = width + round(10 * stall)
    rng = random.Random(seed)
    reader = PushReader(DEVICES[width])
    bench = Bench(reader, seed=seed)
    slots, freed, expected = [], [], []
    free = list(range(PUSH_BUFFERS))
    bench.sink(reader.o, slots, stall=stall)

    async def watch(ctx):
        async for _, _, valid, payload in ctx.tick().sample(reader.free.valid, reader.free.payload):
            if valid:
                freed.append(payload.buffer)
                free.append(payload.buffer)

    async def testbench(ctx):
        for _ in range(60):
            while not free:
                await ctx.tick()
            buffer = free.pop(rng.randrange(len(free)))
            first, count = rng.randrange(PUSH_WINDOW_SLOTS), rng.choice((1, 1, 3, 16))
            blocks = pushed_blocks(rng, first, count)
            for number, data in blocks:
                for n in range(0, PUSH_BLOCK_BYTES, width):
                    await bench.strobe(ctx, reader.write, {
                        "buffer": buffer, "place": (number * PUSH_BLOCK_BYTES + n) // width,
                        "data": int.from_bytes(data[n:n + width], "little")})
            await ctx.tick()
            if rng.random() < 0.2:
                await bench.send(ctx, reader.forgotten, {"buffer": buffer})
            else:
                written = b"".join(data for _, data in blocks)[SUBMISSION_SLOT_BYTES * (first % 2):]
                expected.extend(written[SUBMISSION_SLOT_BYTES * n:][:SUBMISSION_SLOT_BYTES] for n in range(count))
                await bench.strobe(ctx, reader.i, {"buffer": buffer, "position": first, "slots": count})
            await idle(ctx, rng.choice((0, 0, 1, 20)))
        await idle(ctx, 200)

    bench.background(watch)
    bench.add(testbench)
    bench.run()
    assert [slot["data"].to_bytes(32, "little") for slot in slots] == expected
    assert not any(slot["error"] for slot in slots)
    assert len(freed) == 60
    assert len(slots) > 50
    assert bench.idle_cycles > 20
