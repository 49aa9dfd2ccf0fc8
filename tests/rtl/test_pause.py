"""PAUSE frames: what the receive path takes out of the stream, and the gate before the MAC. scapy makes the frames."""

import logging
import random
from itertools import pairwise

import pytest
from amaranth.sim import Simulator

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.contrib.mac_control import MACControlPause  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402

from nic_model.contract import NicConfig, PauseControl, register  # noqa: E402
from nic_model.pause import pause_frame  # noqa: E402
from rtl.pause import PauseTransmit  # noqa: E402
from rtl.primitives import EarliestDeadline  # noqa: E402
from tests.rtl.harness import Bench, idle, plain, shared  # noqa: E402
from tests.rtl.rx_frames import OWN, OWN_BYTES, PEER, beats  # noqa: E402
from tests.rtl.test_receive import Host, frame_of  # noqa: E402

GROUP = "01:80:c2:00:00:01"
CONFIGS = [NicConfig(name=f"{width} bytes", mac_bytes=width, channels=4, vectors=4, keys=64)
           for width in (8, 16, 32, 64)]
by_width = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


def scapy_pause(quanta: int, *, dst: str = GROUP, src: str = PEER) -> bytes:
    return bytes(Ether(dst=dst, src=src) / MACControlPause(pause_time=quanta)).ljust(60, b"\0")


# ---------------------------------------------------------------------------------------------- received

@by_width
@pytest.mark.parametrize("seed", [1, 2])
def test_pause_frames_are_taken_out_of_the_stream(config, seed):
    rng = random.Random(seed)
    host = Host(config, seed=seed, log2=6)
    pauses, seen = [], []
    host.bench.strobes(host.dut.pause, seen)
    counted = []
    host.bench.strobes(host.dut.count_rx_pause, counted)
    plan = [rng.choice(("frame", "group", "own")) for _ in range(40)]

    async def main(ctx):
        await host.open(ctx)
        await host.enable(ctx)
        for n in range(plan.count("frame")):
            host.place(0x4000 + 256 * n, 256)
        await host.ring(ctx)
        for n, kind in enumerate(plan):
            if kind == "frame":
                frame = frame_of(rng.randrange(14, 256), n)
            else:
                pauses.append(rng.choice((0, 1, 0xFFFF, rng.randrange(1 << 16))))
                frame = scapy_pause(pauses[-1], dst=GROUP if kind == "group" else OWN)
            await host.send(ctx, frame, gap=rng.choice((0, 0, 0, 0.5)))
        await host.settle(ctx, plan.count("frame"))

    host.run(main)
    assert pauses, f"seed {seed}"
    assert [strobe["quanta"] for strobe in seen] == pauses, f"seed {seed}"
    assert len(counted) == len(pauses)
    assert host.count("frames_in") == host.count("frames") == plan.count("frame")
    frames = [n for n, kind in enumerate(plan) if kind == "frame"]
    for place, (n, token) in enumerate(zip(frames, host.done, strict=True)):
        at = 0x4000 + 256 * place
        assert bytes(host.memory[at:at + token["length"]]) == frame_of(token["length"], n), f"seed {seed}, frame {n}"


@by_width
def test_frames_that_are_like_pause_frames(config):
    """What is no PAUSE frame goes the usual way; a damaged one is a bad frame, and the next good frame passes."""
    good = scapy_pause(7)
    host = Host(config)
    seen = []
    host.bench.strobes(host.dut.pause, seen)
    ended = {}

    async def main(ctx):
        await host.send(ctx, good)  # whatever RX_ENABLE says
        await host.open(ctx)
        await host.enable(ctx)

        async def one(name, frame, **how):
            before = {counter: host.count(counter) for counter in ("frames_in", *host.counted)}
            await host.send(ctx, frame, **how)
            await host.settle(ctx, host.ended + 1)
            ended[name] = [c for c, value in before.items() if host.count(c) != value]

        await one("bad", good, bad=True)
        for size in (16, 17):
            await one(f"{size} bytes", good[:size])
        await one("15 bytes", good[:15])
        await one("to another", bytes.fromhex("0180c2000002") + good[6:])
        await one("to a peer", bytes.fromhex("020000000002") + good[6:])
        await one("another opcode", good[:14] + b"\x01\x01" + good[16:])
        await one("another type", good[:12] + b"\x88\x09" + good[14:])
        await one("one beat behind", good[:6] + bytes(8) + good[6:])
        await host.post(ctx, 0x4000, 100)
        await one("a good frame", frame_of(60))
        await host.send(ctx, good[:18])
        await host.send(ctx, good + bytes(200))
        await idle(ctx, 20)

    host.run(main)
    assert ended == {
        "bad": ["frames_in", "bad_frames"], "16 bytes": ["frames_in", "bad_frames"],
        "17 bytes": ["frames_in", "bad_frames"], "15 bytes": ["frames_in", "filtered"],
        "to another": ["frames_in", "filtered"], "to a peer": ["frames_in", "filtered"],
        "another opcode": ["frames_in", "filtered"], "another type": ["frames_in", "filtered"],
        "one beat behind": ["frames_in", "filtered"], "a good frame": ["frames_in", "frames", "bytes"],
    }
    assert seen == [{"quanta": 7}] * 3


# ---------------------------------------------------------------------------------------------- sent

class Gate:
    """The gate under test with time, a MAC that takes frames, and registers."""

    def __init__(self, config, *, seed=0, stall=0.0, jump=False):
        self.config, self.jump, self.stall = config, jump, stall
        self.dut = shared(PauseTransmit, config)
        self.bench = Bench(self.dut, seed=seed)
        self.now = (1 << 32) - 5_000  # a carry into the upper half comes soon
        self.next_action = 0
        self.frames = []
        """Each frame that left: cycle of the first beat, of the last beat, bytes."""
        self.pauses = []
        self.counted = []
        self.bench.strobes(self.dut.count_tx_pause, self.counted)
        self.bench.background(self._clock)
        self.bench.background(self._mac)

    async def _clock(self, ctx):
        """Drive `now`; while nothing happens it may jump to the deadline or the next action."""
        while True:
            ctx.set(self.dut.now, self.now)
            _, _, active, valid, deadline, waits = await ctx.tick().sample(
                self.dut.active, self.dut.deadline_valid, self.dut.next_deadline,
                self.dut.o.valid | (self.dut.i.valid & self.dut.i.ready))
            self.now += 1
            goals = [self.next_action] + [deadline] * bool(valid)
            if self.jump and not active and not waits and min(goals) > self.now:
                self.now = min(goals)

    async def _mac(self, ctx):
        o, rng = self.dut.o, self.bench.rng
        got, first, refused = b"", None, None
        ctx.set(o.ready, 0)
        async for _, _, valid, ready, payload, now in ctx.tick().sample(o.valid, o.ready, o.payload, self.dut.now):
            beat = plain(payload)
            assert refused is None or (valid and beat == refused), "an offer was not kept"
            refused = beat if valid and not ready else None
            if valid and ready:
                first = now if first is None else first
                lanes = beat["keep"].bit_count()
                assert beat["keep"] == (1 << lanes) - 1
                assert beat["last"] or lanes == self.config.mac_bytes
                assert beat["user"] == 0
                got += beat["data"].to_bytes(self.config.mac_bytes, "little")[:lanes]
                if beat["last"]:
                    kept = self.pauses if got[12:14] == b"\x88\x08" else self.frames
                    kept.append((first, now, got))
                    got, first = b"", None
            ctx.set(o.ready, rng.random() >= self.stall)

    async def set(self, ctx, **registers):
        for name, value in registers.items():
            await self.bench.strobe(ctx, self.dut.write, {"address": register(name), "data": value})

    async def set_up(self, ctx, control, **registers):
        await self.set(ctx, MAC_ADDRESS_LO=int.from_bytes(OWN_BYTES[:4], "little"),
                       MAC_ADDRESS_HI=int.from_bytes(OWN_BYTES[4:], "little"), PAUSE_CONTROL=control, **registers)

    async def pause(self, ctx, quanta):
        await self.bench.strobe(ctx, self.dut.pause, {"quanta": quanta})

    async def until(self, ctx, now):
        self.next_action = now
        while self.now < now:
            await ctx.tick()

    @property
    def quantum(self):
        """Cycles of 512 bit times."""
        return 512 // (8 * self.config.mac_bytes)


def frames_of(rng, count, largest=400):
    return [OWN_BYTES + bytes(6) + b"\x12\x34" + rng.randbytes(rng.randrange(46, largest)) for _ in range(count)]


@by_width
def test_without_pause_a_beat_leaves_in_each_cycle(config):
    gate = Gate(config)
    rng = random.Random(1)
    frames = frames_of(rng, 20)

    async def main(ctx):
        ctx.set(gate.dut.o.ready, 1)
        for frame in frames:
            for beat in beats(config, frame):
                await gate.bench.send(ctx, gate.dut.i, beat)
        await idle(ctx, 3)

    gate.bench.add(main)
    gate.bench.run()
    assert [frame for _, _, frame in gate.frames] == frames
    total = sum(-(-len(frame) // config.mac_bytes) for frame in frames)
    assert gate.frames[-1][1] - gate.frames[0][0] + 1 == total
    assert not gate.pauses


@by_width
@pytest.mark.parametrize(("seed", "stall"), [(1, 0.0), (2, 0.3)])
def test_no_frame_begins_while_the_peer_wants_a_pause(config, seed, stall):
    rng = random.Random(seed)
    gate = Gate(config, seed=seed, stall=stall)
    frames = frames_of(rng, 60)
    told = []

    async def peer(ctx):
        await gate.set_up(ctx, PauseControl.HONOUR)
        for _ in range(14):
            await idle(ctx, rng.randrange(1, 40 * gate.quantum))
            quanta = rng.choice((0, 1, 3, 20, 20))
            told.append((gate.now, quanta))
            await gate.pause(ctx, quanta)

    gate.bench.source(gate.dut.i, [beat for frame in frames for beat in beats(config, frame)], stall=stall)
    gate.bench.add(peer)
    gate.bench.run(max_cycles=60_000)
    assert [frame for _, _, frame in gate.frames] == frames, f"seed {seed}"
    begun = [first for first, _, _ in gate.frames]
    held = 0
    for (at, quanta), (next_at, _) in pairwise([*told, (gate.now, 0)]):
        # 2 cycles until it holds, and a frame that was offered by then goes on when the MAC takes it
        end = min(at + quanta * gate.quantum, next_at + 2)
        inside = [first for first in begun if at + 2 <= first < end]
        assert len(inside) <= (1 if stall else 0), f"seed {seed}: frames began at {inside} in pause {at} to {end}"
        held += end > at + 2
        if not stall and end == at + quanta * gate.quantum and end > at + 2 and gate.frames[-1][0] > end + 60:
            # it is over: the next frame begins at once, unless one is still under way
            assert any(end < first <= end + 60 for first in begun), f"seed {seed}: nothing after {end}"
    assert held >= 5, f"seed {seed}"


def test_a_pause_ends_at_its_deadline_and_time_may_jump_there():
    gate = Gate(CONFIGS[0], jump=True)
    frame = frames_of(random.Random(1), 1)[0]
    seen = {}

    async def main(ctx):
        await gate.set_up(ctx, PauseControl.HONOUR)
        await gate.pause(ctx, 0xFFFF)
        seen["paused at"] = gate.now - 1
        await idle(ctx, 3)
        gate.next_action = 1 << 63
        for beat in beats(CONFIGS[0], frame):
            await gate.bench.send(ctx, gate.dut.i, beat)

    gate.bench.add(main)
    gate.bench.run(max_cycles=200)  # of 524,280 cycles all but these are jumped over
    (first, _, got), = gate.frames
    assert got == frame
    assert first == seen["paused at"] + 0xFFFF * 8 + 1


def test_switching_honour_off_ends_a_pause():
    gate = Gate(CONFIGS[0])
    frame = frames_of(random.Random(1), 1)[0]

    async def main(ctx):
        await gate.set_up(ctx, PauseControl.HONOUR)
        await gate.pause(ctx, 0xFFFF)
        await idle(ctx, 10)
        assert ctx.get(gate.dut.pause_active)
        await gate.set(ctx, PAUSE_CONTROL=0)
        for beat in beats(CONFIGS[0], frame):
            await gate.bench.send(ctx, gate.dut.i, beat)
        await gate.pause(ctx, 0xFFFF)
        await idle(ctx, 5)
        assert not ctx.get(gate.dut.pause_active)
    gate.bench.add(main)
    gate.bench.run()
    assert len(gate.frames) == 1


@by_width
def test_a_filling_buffer_stops_the_peer_and_lets_it_go_on(config):
    """XOFF at the high mark, again at half of its time, XON below the low mark."""
    gate = Gate(config)
    rows = config.host_bytes
    high, low, quanta = 64 * rows, 16 * rows, 64
    seen = {}

    async def main(ctx):
        await gate.set_up(ctx, PauseControl.SEND, PAUSE_QUANTA=quanta, PAUSE_HIGH=high, PAUSE_LOW=low)
        ctx.set(gate.dut.o.ready, 1)
        ctx.set(gate.dut.fill, 63)
        await idle(ctx, 50)
        assert not gate.pauses
        assert not ctx.get(gate.dut.pause_request)
        seen["full"] = gate.now
        ctx.set(gate.dut.fill, 64)
        await idle(ctx, 100)
        assert ctx.get(gate.dut.pause_request)
        ctx.set(gate.dut.fill, 16)  # not below the low mark
        await idle(ctx, 2 * quanta * gate.quantum)
        assert ctx.get(gate.dut.pause_request)
        seen["low"] = gate.now
        ctx.set(gate.dut.fill, 15)
        await idle(ctx, 200)
        seen["end"] = len(gate.pauses)
        await idle(ctx, 2 * quanta * gate.quantum)

    gate.bench.add(main)
    gate.bench.run(max_cycles=10_000)
    assert seen["end"] == len(gate.pauses) == len(gate.counted)
    *stops, go = gate.pauses
    assert all(frame == scapy_pause(quanta, src=OWN) == pause_frame(OWN_BYTES, quanta) for _, _, frame in stops)
    assert go[2] == scapy_pause(0, src=OWN)
    assert 0 < stops[0][0] - seen["full"] <= 5
    assert 0 < go[0] - seen["low"] <= 5 + -(-60 // config.mac_bytes)
    for (_, before, _), (_, after, _) in pairwise(stops):
        # never later than the peer's timer, and not much more often than at its half
        assert quanta * gate.quantum // 2 <= after - before < quanta * gate.quantum
    assert len(stops) >= 4


@by_width
@pytest.mark.parametrize(("seed", "stall"), [(5, 0.0), (6, 0.4)])
def test_pause_frames_go_between_frames_and_before_waiting_ones(config, seed, stall):
    """Random fills under load, and the peer pauses us meanwhile: that does not hold PAUSE frames back."""
    rng = random.Random(seed)
    gate = Gate(config, seed=seed, stall=stall)
    frames = frames_of(rng, 50)
    changes = []

    async def buffer(ctx):
        await gate.set_up(ctx, PauseControl.SEND | PauseControl.HONOUR, PAUSE_HIGH=40 * config.host_bytes,
                          PAUSE_LOW=20 * config.host_bytes)
        for _ in range(12):
            await idle(ctx, rng.randrange(60, 250))
            full = not changes or not changes[-1][1]
            changes.append((gate.now, full))
            ctx.set(gate.dut.fill, 40 if full else 19)
            if rng.random() < 0.5:
                await gate.pause(ctx, rng.randrange(1, 30))
        await idle(ctx, 300)

    gate.bench.source(gate.dut.i, [beat for frame in frames for beat in beats(config, frame)], stall=stall)
    gate.bench.add(buffer)
    gate.bench.run(max_cycles=60_000)
    assert [frame for _, _, frame in gate.frames] == frames, f"seed {seed}"
    assert [frame for _, _, frame in gate.pauses] == [
        scapy_pause(0xFFFF if full else 0, src=OWN) for _, full in changes], f"seed {seed}"
    longest = -(-460 // config.mac_bytes)
    for (at, _), (first, _, _) in zip(changes, gate.pauses, strict=True):
        ahead = [begun for begun, _, _ in gate.frames if at + 4 <= begun < first]
        assert len(ahead) <= (1 if stall else 0), f"seed {seed}: {len(ahead)} frames went ahead"
        if not stall:
            assert first - at <= longest + 4, f"seed {seed}"


def test_send_off_no_quanta_or_a_mark_beyond_the_buffer_send_nothing():
    gate = Gate(CONFIGS[0])

    async def main(ctx):
        await gate.set_up(ctx, PauseControl.HONOUR)
        ctx.set(gate.dut.fill, 1024)
        await idle(ctx, 40)
        assert ctx.get(gate.dut.pause_request)  # for a MAC that sends them itself
        await gate.set(ctx, PAUSE_QUANTA=0, PAUSE_CONTROL=PauseControl.SEND)
        await idle(ctx, 40)
        await gate.set(ctx, PAUSE_HIGH=1 << 20, PAUSE_LOW=1 << 20, PAUSE_QUANTA=9)
        await idle(ctx, 40)
        assert not gate.pauses
        assert not ctx.get(gate.dut.pause_request)
        await gate.set(ctx, PAUSE_HIGH=16384, PAUSE_LOW=16384)
        await idle(ctx, 20)
        assert len(gate.pauses) == 1
        await gate.set(ctx, PAUSE_CONTROL=0)  # who was told to stop is told to go on
        await idle(ctx, 40)
    gate.bench.add(main)
    gate.bench.run()
    assert [frame[16:18] for _, _, frame in gate.pauses] == [b"\0\x09", b"\0\0"]


def test_the_earliest_deadline():
    rng = random.Random(3)
    dut = EarliestDeadline(count=3)

    async def main(ctx):
        for _ in range(300):
            base = rng.choice((0, 1 << 33, (1 << 34) - 50, rng.randrange(1 << 62)))
            entries = [(rng.random() < 0.6, base + rng.choice((rng.randrange(100), rng.randrange(1 << 33))))
                       for _ in range(3)]
            for port, (valid, deadline) in zip(dut.i, entries, strict=True):
                ctx.set(port.valid, valid)
                ctx.set(port.payload, deadline)
            await ctx.delay(1e-9)
            there = [deadline for valid, deadline in entries if valid]
            assert ctx.get(dut.deadline_valid) == bool(there)
            assert not there or ctx.get(dut.next_deadline) == min(there)
    simulator = Simulator(dut)
    simulator.add_testbench(main)
    simulator.run()
