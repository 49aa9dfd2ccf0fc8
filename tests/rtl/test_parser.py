"""The receive path's front: MAC beats to rows, and what the parser finds in them."""

import random

import pytest
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import (
    RSS_CONTROL,
    HashType,
    NicConfig,
    RxFilter,
    RxInfo,
    indirection_register,
    register,
    steering_register,
)
from nic_model.receive_parser import parse_received
from nic_model.steering import Steering
from rtl.interfaces import TIME_BITS, RegisterWrite, Strobe, mac_beat
from rtl.mac_rx import MacRx
from rtl.parser import Parser, parsed_row
from tests.rtl import rx_frames
from tests.rtl.harness import Bench, idle, shared
from tests.rtl.rx_frames import OWN_BYTES, beats

CONFIGS = [
    NicConfig(name="default", mac_bytes=8),
    NicConfig(name="equal", mac_bytes=16, host_bytes=16),
    NicConfig(name="middle", mac_bytes=8, host_bytes=32),
    NicConfig(name="wide", mac_bytes=64),
]


class Front(wiring.Component):
    """MacRx and Parser, as the receive path connects them."""

    def __init__(self, config):
        self.config = config
        super().__init__({
            "mac": In(stream.Signature(mac_beat(config))), "write": In(Strobe(RegisterWrite)), "now": In(TIME_BITS),
            "parsed": Out(Strobe(parsed_row(config))), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.mac_rx = mac_rx = MacRx(self.config)
        m.submodules.parser = parser = Parser(self.config)
        connect(m, flipped(self.mac), mac_rx.mac)
        connect(m, mac_rx.row, parser.row)
        connect(m, parser.parsed, flipped(self.parsed))
        for block in (mac_rx, parser):
            connect(m, flipped(self.write), block.write)
        m.d.comb += [mac_rx.now.eq(self.now), self.active.eq(mac_rx.active | parser.active)]
        return m


def parse(config, frames, *, stall=0.0, seed=0, rx_filter=0, enable=1, bad=(), writes=()):
    """Rows by frame that leave the front for `frames`, and the cycle of each frame's first beat. `writes` are of other
    registers, (address, value)."""
    dut = shared(Front, config)
    bench = Bench(dut, seed=seed)
    rows, starts = [], []
    bench.strobes(dut.parsed, rows)

    async def now(ctx):
        while True:
            await ctx.tick()
            ctx.set(dut.now, bench.cycle)

    async def main(ctx):
        for name, value in (("MAC_ADDRESS_LO", int.from_bytes(OWN_BYTES[:4], "little")),
                            ("MAC_ADDRESS_HI", int.from_bytes(OWN_BYTES[4:], "little")),
                            ("RX_FILTER", rx_filter), ("RX_ENABLE", enable)):
            await bench.strobe(ctx, dut.write, {"address": register(name), "data": value})
        for address, value in writes:
            await bench.strobe(ctx, dut.write, {"address": address, "data": value})
            await idle(ctx, 5)
        for number, frame in enumerate(frames):
            for n, beat in enumerate(beats(config, frame, bad=number in bad)):
                while bench.rng.random() < stall:
                    await ctx.tick()
                assert ctx.get(dut.mac.ready)
                ctx.set(dut.mac.payload, beat)
                ctx.set(dut.mac.valid, 1)
                if n == 0:
                    starts.append(ctx.get(dut.now))
                await ctx.tick()
                ctx.set(dut.mac.valid, 0)
        await idle(ctx, 40)

    bench.background(now)
    bench.add(main)
    bench.run(max_cycles=60_000)
    assert bench.idle_cycles > 0
    by_frame, current = [], []
    for row in rows:
        assert row["first"] == (not current)
        current.append(row)
        if row["last"]:
            by_frame.append(current)
            current = []
    assert not current
    return by_frame, starts


def content(config, rows):
    """Bytes of a frame's rows."""
    assert all(row["count"] == config.host_bytes for row in rows[:-1])
    return b"".join(row["data"].to_bytes(config.host_bytes, "little")[:row["count"]] for row in rows)


def assert_as_model(verdict, frame, name, model=None):
    """Everything beside the row that the model knows too; steering is as after reset without a `model` of it."""
    parsed = parse_received(frame)
    steered = (model or Steering(16, 256)).steer(parsed)
    expected = {
        "info": parsed.info, "checksum": parsed.raw_sum if RxInfo.RAW_SUM in parsed.info else 0,
        "channel": steered.channel, "hash": steered.hash_value, "hash_type": steered.hash_type,
    }
    if parsed.info & (RxInfo.IPV4 | RxInfo.IPV6):
        expected["l3"] = parsed.l3_offset // 2
    if parsed.info & (RxInfo.TCP | RxInfo.UDP):
        expected["l4"] = parsed.l4_offset // 2
    assert {key: verdict[key] for key in expected} == expected, name


@pytest.mark.parametrize(("config", "stall"), [
    pytest.param(config, stall, id=f"{config.name}-{stall}")
    for config, stall in zip(CONFIGS, (0.4, 0.0, 0.4, 0.0), strict=True)
] + [pytest.param(CONFIGS[0], 0.0, id="default-0.0")])
def test_named_frames(config, stall):
    cases = rx_frames.named_cases()
    found, starts = parse(config, [case.frame for case in cases], stall=stall)
    assert len(found) == len(cases)
    for case, rows, start in zip(cases, found, starts, strict=True):
        verdict = rows[-1]
        assert content(config, rows) == case.frame
        assert verdict["length"] == len(case.frame), case.name
        assert RxInfo(verdict["info"]) == case.info, case.name
        assert rows[0]["time"] == start, case.name
        assert (verdict["bad"], verdict["short"], verdict["long"]) == (0, 0, 0)
        assert verdict["passes"] == (case.frame[:6] == OWN_BYTES), case.name
        assert_as_model(verdict, case.frame, case.name)


@pytest.mark.parametrize("config", CONFIGS[:3:2] + CONFIGS[3:], ids=lambda c: c.name)
@pytest.mark.parametrize("seed", [1, 2])
def test_random_frames(config, seed):
    rng = random.Random(seed)
    cases = [rx_frames.random_case(rng) for _ in range(40)]
    found, _ = parse(config, [case.frame for case in cases], stall=rng.choice((0, 0.2)), seed=seed)
    assert [RxInfo(rows[-1]["info"]) for rows in found] == [case.info for case in cases], f"seed {seed}"
    for case, rows in zip(cases, found, strict=True):
        assert_as_model(rows[-1], case.frame, f"seed {seed}: {case.frame.hex()}")


def spread(seed):
    """A model of steering with everything on and a table of channels, and the register writes that do the same."""
    rng = random.Random(seed)
    control = RSS_CONTROL.pack_word(enable=1, types=sum(1 << t for t in HashType if rng.random() < 0.8))
    model = Steering(16, 256)
    model.write("RSS_CONTROL", control)
    writes = [(steering_register("RSS_CONTROL"), control)]
    for entry in range(128):
        model.indirection[entry] = rng.randrange(16)
        writes.append((indirection_register(entry), model.indirection[entry]))
    return model, writes


@pytest.mark.parametrize("config", CONFIGS[::3], ids=lambda c: c.name)
@pytest.mark.parametrize("seed", [7, 8])
def test_every_header_field_changed(config, seed):
    # Each of a good frame's first bytes changed at random, one or a few at a time, or the frame cut: the verdict is the
    # model's, and the next good frame gets its own.
    rng = random.Random(seed)
    model, writes = spread(seed)
    goods = [case.frame for case in rx_frames.named_cases() if len(case.frame) < 220]
    frames = []
    for _ in range(130):
        frame = bytearray(rng.choice(goods))
        way = rng.random()
        for _ in range(rng.choice((1, 1, 2, 4)) if way < 0.8 else 0):
            at = rng.randrange(12, min(len(frame), 90))
            frame[at] = rng.choice((frame[at] ^ 1 << rng.randrange(8), rng.getrandbits(8), 0, 6, 17, 43, 44, 60))
        if way > 0.7:
            del frame[rng.randrange(1, len(frame)):]
        frames += [bytes(frame), rng.choice(goods)] if rng.random() < 0.4 else [bytes(frame)]
    frames += [rng.randbytes(rng.randrange(1, 200)) for _ in range(15)]
    frames += [bytes([*rng.randbytes(12), *rng.choice((b"\x08\0\x45", b"\x86\xdd\x60")), *rng.randbytes(100)])
               for _ in range(15)]
    found, _ = parse(config, frames, seed=seed, writes=writes, stall=rng.choice((0, 0.2)))
    assert len(found) == len(frames)
    channels = set()
    for frame, rows in zip(frames, found, strict=True):
        assert content(config, rows) == frame
        if len(frame) >= 14:
            assert_as_model(rows[-1], frame, f"seed {seed}: {frame.hex()}", model)
            channels.add(rows[-1]["channel"])
    assert len(channels) > 10


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_shortest_frames_back_to_back(config):
    # The shortest frames of each kind that has a hash, in any order, without a gap at the MAC: faster than any wire.
    rng = random.Random(3)
    model, writes = spread(3)
    v4, v6 = rx_frames.IP(src="10.0.0.1", dst="10.0.0.2"), rx_frames.IPv6(src="fd00::1", dst="fd00::2")
    frames = []
    for _ in range(60):
        port = rng.randrange(1 << 16)
        frames.append(bytes(rng.choice((
            rx_frames.ether() / v4, rx_frames.ether() / v4 / rx_frames.UDP(sport=port),
            rx_frames.ether() / v4 / rx_frames.TCP(sport=port), rx_frames.ether() / v6 / rx_frames.UDP(sport=port),
            rx_frames.ether() / v6, rx_frames.ether(vlan=1) / v4 / rx_frames.UDP(sport=port),
            rx_frames.ether(vlan=1) / v6 / rx_frames.TCP(sport=port)))))
    found, _ = parse(config, frames, writes=writes)
    for number, (frame, rows) in enumerate(zip(frames, found, strict=True)):
        assert_as_model(rows[-1], frame, f"frame {number}: {frame.hex()}", model)


def test_every_length_round_a_row():
    # A one's complement sum of each odd and even length that ends in each lane, verified by scapy's own checksum.
    config = CONFIGS[0]
    cases = [rx_frames.IP(dst="10.0.0.2") / rx_frames.UDP() / rx_frames.data(size, size) for size in range(40, 73)]
    frames = [bytes(rx_frames.ether() / packet) for packet in cases]
    found, _ = parse(config, frames)
    expected = RxInfo.IPV4 | RxInfo.UDP | RxInfo.L3_CHECKSUM_OK | RxInfo.L4_CHECKSUM_OK
    assert [RxInfo(rows[-1]["info"]) for rows in found] == [expected] * len(frames)


@pytest.mark.parametrize(("rx_filter", "let_in"), [
    (0, ["own"]),
    (RxFilter.BROADCAST, ["own", "broadcast"]),
    (RxFilter.MULTICAST, ["own", "broadcast", "group"]),
    (RxFilter.PROMISCUOUS, ["own", "broadcast", "group", "other", "nearly"]),
])
def test_address_filter(rx_filter, let_in):
    addresses = {"own": rx_frames.OWN, "broadcast": "ff:ff:ff:ff:ff:ff", "group": "01:00:5e:00:00:01",
                 "other": "02:aa:bb:cc:dd:ee", "nearly": "02:00:00:00:00:03"}
    frames = [bytes(rx_frames.ether(dst=dst)) + bytes(46) for dst in addresses.values()]
    found, _ = parse(CONFIGS[0], frames, rx_filter=rx_filter)
    assert [name for name, rows in zip(addresses, found, strict=True) if rows[-1]["passes"]] == let_in


def test_flags_of_a_frame():
    sizes = [1, 13, 14, 9014, 9015, 12000, 16400, 60]
    frames = [OWN_BYTES[:size] + bytes(max(size - 6, 0)) for size in sizes]
    found, _ = parse(CONFIGS[3], frames, bad={2, 7})
    assert [rows[-1]["short"] for rows in found] == [size < 14 for size in sizes]
    assert [rows[-1]["long"] for rows in found] == [size > 9014 for size in sizes]
    assert [n for n, rows in enumerate(found) if rows[-1]["bad"]] == [2, 7]


def test_a_disabled_receiver_gives_nothing():
    found, _ = parse(CONFIGS[0], [rx_frames.named_cases()[0].frame], enable=0)
    assert found == []


def test_enable_in_the_middle_of_a_frame_takes_the_next_one():
    config = CONFIGS[0]
    dut = Front(config)
    bench = Bench(dut)
    rows = []
    bench.strobes(dut.parsed, rows)
    first, second = bytes(range(100)), bytes(range(60))

    async def main(ctx):
        for n, beat in enumerate(beats(config, first)):
            if n == 3:
                await bench.strobe(ctx, dut.write, {"address": register("RX_ENABLE"), "data": 1})
            await bench.send(ctx, dut.mac, beat)
        for n, beat in enumerate(beats(config, second)):
            if n == 3:
                await bench.strobe(ctx, dut.write, {"address": register("RX_ENABLE"), "data": 0})
            await bench.send(ctx, dut.mac, beat)
        await idle(ctx, 40)

    bench.add(main)
    bench.run()
    assert content(config, rows) == second


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_latency(config):
    dut = Front(config)
    bench = Bench(dut)
    waited = []

    async def main(ctx):
        await bench.strobe(ctx, dut.write, {"address": register("RX_ENABLE"), "data": 1})
        for beat in beats(config, bytes(60)):
            await bench.send(ctx, dut.mac, beat)
        waited.append(1)  # the cycle behind the last beat's
        while not ctx.get(dut.parsed.valid & dut.parsed.payload.last):
            await ctx.tick()
            waited[0] += 1

    bench.add(main)
    bench.run()
    of_parser = {8: 15, 16: 15, 32: 14, 64: 13}[config.mac_bytes]
    assert waited == [2 + of_parser]
