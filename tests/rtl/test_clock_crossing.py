# amaranth: UnusedElaboratable=no
"""The MAC's border between two clocks: random frequencies, phases and drift, crossing bits that come late at random."""

import random
from itertools import pairwise

import pytest
from amaranth.hdl import ClockDomain, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from nic_model.contract import CONFIGS, NicConfig
from rtl.clock_crossing import DEVICE, MAC, FrameCrossing, MacClockCrossing, Synchronizer, binary, constraints, gray
from tests.rtl.harness import plain
from tests.rtl.rx_frames import beats

CONFIG = NicConfig(name="test", mac_bytes=8, channels=4, vectors=4, keys=64)
PERIOD_FS = 6_400_000
RATIOS = [0.5, 0.77, 0.999, 1.0, 1.001, 1.3, 2.0]
"""Periods of the MAC's clock by the device's."""


class Clocks:
    """A crossing in the simulator, on two clocks whose periods wander by a thousandth, with random phase."""

    def __init__(self, dut, ratio: float, seed: int, synchronizers: list[Synchronizer]):
        self.rng = rng = random.Random(seed)
        m = Module()
        m.domains.sync, m.domains.mac = sync, mac = ClockDomain("sync"), ClockDomain("mac")
        m.submodules.dut = dut
        self.simulator = Simulator(m)
        self.limit_fs = 0
        self.now_fs = {DEVICE: 0, MAC: 0}
        self.domains = {DEVICE: sync, MAC: mac}
        self._done: list[bool] = []
        for domain, period in ((sync, PERIOD_FS), (mac, PERIOD_FS * ratio)):
            self.simulator.add_testbench(self._clock(domain, period, rng.random() * period), background=True)
        for synchronizer in synchronizers:
            self.simulator.add_testbench(self._doubt(synchronizer), background=True)

    def _clock(self, domain: ClockDomain, period: float, phase: float):
        async def testbench(ctx):
            drift, elapsed = 0.0, phase
            await ctx.delay(phase * 1e-15)
            while True:
                drift = max(-1e-3, min(1e-3, drift + self.rng.uniform(-1e-4, 1e-4)))
                half = period * (1 + drift) / 2
                for level in (1, 0):
                    ctx.set(domain.clk, level)
                    await ctx.delay(half * 1e-15)
                elapsed += 2 * half
        return testbench

    def _doubt(self, synchronizer: Synchronizer):
        async def testbench(ctx):
            while True:
                ctx.set(synchronizer.late, self.rng.getrandbits(synchronizer.width))
                await ctx.tick(synchronizer.target)
        return testbench

    def source(self, stream, payloads, domain: str, *, stall: float = 0.0, gaps=None) -> None:
        """Offer payloads; the run lasts until all are taken."""
        async def testbench(ctx):
            for payload in payloads:
                while self.rng.random() < stall:
                    await ctx.tick(domain)
                ctx.set(stream.payload, payload)
                ctx.set(stream.valid, 1)
                while True:
                    _, _, ready = await ctx.tick(domain).sample(stream.ready)
                    if ready:
                        break
                ctx.set(stream.valid, 0)
        self.simulator.add_testbench(testbench)

    def sink(self, stream, frames: list, domain: str, *, stall: float = 0.0, whole: bool = False) -> None:
        """Gather frames as (bytes, bad). With `whole`, a frame that has begun is offered in each cycle to its end."""
        async def testbench(ctx):
            got, inside, refused = b"", False, None
            ctx.set(stream.ready, 1)
            while True:
                _, _, valid, ready, payload = await ctx.tick(domain).sample(stream.valid, stream.ready, stream.payload)
                assert valid or not (whole and inside), "a frame was interrupted"
                beat = plain(payload)
                assert refused is None or (valid and beat == refused), "an offer was not kept"
                refused = beat if valid and not ready else None
                if valid and ready:
                    lanes = beat["keep"].bit_count()
                    got += beat["data"].to_bytes(CONFIG.mac_bytes, "little")[:lanes]
                    inside = not beat["last"]
                    if beat["last"]:
                        frames.append((got, bool(beat["user"])))
                        got = b""
                ctx.set(stream.ready, self.rng.random() >= stall)
        self.simulator.add_testbench(testbench, background=True)

    def wait(self, holds, domain: str, cycles: int = 60_000) -> None:
        """The run lasts until `holds()`, and a while longer."""
        async def testbench(ctx):
            for _ in range(cycles):
                await ctx.tick(domain)
                if holds():
                    break
            else:
                raise AssertionError(f"not done after {cycles} cycles")
            for _ in range(40):
                await ctx.tick(domain)
        self.simulator.add_testbench(testbench)

    def run(self) -> None:
        self.simulator.run()


def random_frames(rng: random.Random, count: int, largest: int) -> list[bytes]:
    return [rng.randbytes(rng.choice((1, 8, 60, 64, rng.randrange(1, largest)))) for _ in range(count)]


def as_beats(frames: list[bytes]) -> list[dict[str, int]]:
    return [beat for frame in frames for beat in beats(CONFIG, frame)]


def crossing(**options) -> MacClockCrossing:
    return MacClockCrossing(CONFIG, modelled=True, **options)


def synchronizers(dut: MacClockCrossing) -> list[Synchronizer]:
    return [side for fifo in (dut.tx_crossing, dut.rx_crossing) for side in (fifo.frames, fifo.heads)]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("stall", [0.0, 0.3])
def test_frames_pass_unchanged_both_ways(ratio: float, stall: float) -> None:
    seed = int(1000 * ratio) + int(10 * stall)
    rng = random.Random(seed)
    dut = crossing(depth=64)
    clocks = Clocks(dut, ratio, seed, synchronizers(dut))
    sent, received = random_frames(rng, 60, 300), random_frames(rng, 60, 300)
    at_mac: list[tuple[bytes, bool]] = []
    at_device: list[tuple[bytes, bool]] = []
    clocks.source(dut.tx, as_beats(sent), DEVICE, stall=stall)
    # From the MAC as fast as the device can take it: gaps if its clock is the faster one.
    clocks.source(dut.s_axis_rx, as_beats(received), MAC, stall=max(stall, 0.55 if ratio < 1 else 0.1))
    clocks.sink(dut.m_axis_tx, at_mac, MAC, stall=stall, whole=True)
    clocks.sink(dut.rx, at_device, DEVICE, whole=True)
    clocks.wait(lambda: len(at_mac) >= len(sent) and len(at_device) >= len(received), DEVICE)
    clocks.run()
    assert at_mac == [(frame, False) for frame in sent], f"seed {seed}"
    assert at_device == [(frame, False) for frame in received], f"seed {seed}"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_receive_that_finds_no_room_comes_as_one_bad_frame(seed: int) -> None:
    """The MAC's clock is twice the device's and gives a beat in each cycle: each frame is whole, or told as bad."""
    rng = random.Random(seed)
    dut = crossing(depth=16)
    clocks = Clocks(dut, 0.5, seed, synchronizers(dut))
    # Some are longer than the FIFO; the first byte numbers them.
    frames = [bytes([n]) + rng.randbytes(rng.choice((0, 7, 20, 63, 90, 200))) for n in range(200)]
    got: list[tuple[bytes, bool]] = []
    clocks.source(dut.s_axis_rx, as_beats(frames), MAC)
    clocks.sink(dut.rx, got, DEVICE, whole=True)
    clocks.wait(lambda: len(got) >= len(frames), DEVICE)
    clocks.run()
    good = [frame for frame, bad in got if not bad]
    assert len(got) == len(frames), f"seed {seed}: {len(got)} frames told of {len(frames)}"
    assert 10 < len(good) < len(frames) - 10, f"seed {seed}"
    left = iter(frames)
    assert all(frame in left for frame in good), f"seed {seed}: not those that were sent, in their order"
    assert all(len(frame) == 1 for frame, bad in got if bad)


def test_frames_that_came_bad_stay_bad() -> None:
    dut = crossing()
    clocks = Clocks(dut, 1.3, 7, synchronizers(dut))
    frames = random_frames(random.Random(7), 10, 100)
    got: list[tuple[bytes, bool]] = []
    clocks.source(dut.s_axis_rx, [beat for n, frame in enumerate(frames) for beat in beats(CONFIG, frame, bad=n % 2)],
                  MAC, stall=0.1)
    clocks.sink(dut.rx, got, DEVICE)
    clocks.wait(lambda: len(got) >= len(frames), DEVICE)
    clocks.run()
    assert got == [(frame, bool(n % 2)) for n, frame in enumerate(frames)]


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_throughput_is_a_beat_a_cycle_of_the_slower_clock(ratio: float) -> None:
    dut = crossing(depth=256)
    clocks = Clocks(dut, ratio, 9, synchronizers(dut))
    frames = [bytes(400)] * 60
    got: list[tuple[bytes, bool]] = []
    cycles = [0]

    async def count(ctx):
        while True:
            await ctx.tick(MAC if ratio > 1 else DEVICE)
            cycles[0] += bool(got) and len(got) < len(frames)

    clocks.simulator.add_testbench(count, background=True)
    clocks.source(dut.tx, as_beats(frames), DEVICE)
    clocks.sink(dut.m_axis_tx, got, MAC, whole=True)
    clocks.wait(lambda: len(got) >= len(frames), DEVICE)
    clocks.run()
    assert cycles[0] <= 59 * 50 * 1.01 + 3


class Doubtful(wiring.Component):
    """A counter of one domain, seen as Gray code from the other."""

    def __init__(self, width: int):
        self.synchronizer = Synchronizer(width=width, source=MAC, target=DEVICE, modelled=True)
        super().__init__({"step": In(1), "count": Out(width), "seen": Out(width)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.synchronizer = synchronizer = self.synchronizer
        m.d.mac += self.count.eq(self.count + self.step)
        m.d.comb += [synchronizer.i.eq(self.count), self.seen.eq(synchronizer.o)]
        return m


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_pointer_is_never_seen_where_it_was_not(ratio: float) -> None:
    """What arrives is a count that was there a short while ago, whichever bits come late, and never runs backwards."""
    dut = Doubtful(4)
    clocks = Clocks(dut, ratio, 11, [dut.synchronizer])
    history = [0]
    seen: list[int] = []

    async def move(ctx):
        for _ in range(800):
            ctx.set(dut.step, clocks.rng.random() < 0.8)
            await ctx.tick(MAC)
            history.append(ctx.get(dut.count))

    async def watch(ctx):
        last = 0
        while True:
            _, _, now = await ctx.tick(DEVICE).sample(dut.seen)
            steps = (now - last) % 16
            assert steps <= 5, f"it jumped from {last} to {now}"
            behind = (history[-1] - now) % 16
            assert behind <= 10, f"{now} seen, {history[-1]} there"
            seen.append(now)
            last = now

    clocks.simulator.add_testbench(move)
    clocks.simulator.add_testbench(watch, background=True)
    clocks.run()
    assert len(set(seen)) == 16
    assert all((after - before) % 16 <= 1 for before, after in pairwise(history))


@pytest.mark.parametrize("width", [1, 2, 5, 9])
def test_gray_codes_differ_in_one_bit_and_decode(width: int) -> None:
    value, code, back = Signal(width), Signal(width), Signal(width)
    m = Module()
    m.d.comb += [code.eq(gray(value)), back.eq(binary(m, code, "decoded"))]
    codes = []

    async def testbench(ctx):
        for number in range(1 << width):
            ctx.set(value, number)
            await ctx.delay(1e-9)
            assert ctx.get(back) == number
            codes.append(ctx.get(code))

    simulator = Simulator(m)
    simulator.add_testbench(testbench)
    simulator.run()
    assert len(set(codes)) == 1 << width
    assert all((a ^ b).bit_count() == 1 for a, b in zip(codes, codes[1:] + codes[:1], strict=True))


def test_constraints_name_what_is_there() -> None:
    found = constraints(CONFIGS["default"], mac_clock_hz=125_000_000)
    assert set(found) == {"xdc", "sdc", "lpf"}
    assert found["xdc"].count("set_max_delay -datapath_only 6.400 ") == 2
    assert found["xdc"].count("set_max_delay -datapath_only 8.000 ") == 2
    assert "set_clock_groups -asynchronous" in found["sdc"]
    assert 'FREQUENCY PORT "mac_clk" 125.000000 MHZ;' in found["lpf"]


def test_a_depth_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="depth must be a power of two"):
        FrameCrossing(config=CONFIG, source=DEVICE, target=MAC, drops=False, depth=24)
