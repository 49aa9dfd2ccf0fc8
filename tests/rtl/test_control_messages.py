# amaranth: UnusedElaboratable=no
"""Messages of the control port: units of beats and back, and several sources in one stream, message by message."""

import random

import pytest
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from nic_model.contract import NicConfig
from nic_model.contract.control import CONTROL_HEADER, MAX_UNITS, UNIT_BYTES
from rtl.control_messages import MessageArbiter, MessageReader, MessageWriter, message_beat
from tests.rtl.harness import Bench, idle

WIDTHS = (16, 32, 64)
STALLS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.4, 0.4))
SEED = 7_411


def config_of(host_bytes: int) -> NicConfig:
    return NicConfig(name="test", mac_bytes=8, host_bytes=host_bytes, channels=4, vectors=4, keys=64)


def random_message(rng: random.Random, units: int) -> bytes:
    """So many units, whose header says so."""
    header = CONTROL_HEADER.pack(units=units, **{
        name: rng.getrandbits(field.width) for name, field in CONTROL_HEADER.fields.items() if name != "units"})
    return header + rng.randbytes(UNIT_BYTES * units - len(header))


def random_messages(seed: int, count: int) -> list[bytes]:
    rng = random.Random(seed)
    return [random_message(rng, rng.randint(1, MAX_UNITS)) for _ in range(count)]


def expect(bench: Bench, taken: list, count: int) -> None:
    """The run lasts until so many payloads are taken, and a little longer."""
    async def wait(ctx):
        while len(taken) < count:
            await ctx.tick()
        await idle(ctx, 10)
    bench.add(wait)


def beats_of(message: bytes, width: int) -> list[dict]:
    return [{"data": int.from_bytes(message[at:at + width], "little"), "last": at + width == len(message)}
            for at in range(0, len(message), width)]


def units_of(message: bytes) -> list[dict]:
    return [{"data": int.from_bytes(message[at:at + UNIT_BYTES], "little"), "first": at == 0,
             "last": at + UNIT_BYTES == len(message)} for at in range(0, len(message), UNIT_BYTES)]


@pytest.mark.parametrize(("offer_stall", "take_stall"), STALLS)
@pytest.mark.parametrize("width", WIDTHS)
def test_beats_become_units(width: int, offer_stall: float, take_stall: float) -> None:
    dut, messages, units = MessageReader(config_of(width)), random_messages(SEED, 30), []
    bench = Bench(dut, seed=SEED)
    bench.source(dut.i, [beat for m in messages for beat in beats_of(m, width)], stall=offer_stall)
    bench.sink(dut.o, units, stall=take_stall)
    wanted = [unit for m in messages for unit in units_of(m)]
    expect(bench, units, len(wanted))
    bench.run()
    assert units == wanted


def test_the_reader_takes_a_beat_a_cycle() -> None:
    dut, messages, units = MessageReader(config_of(16)), random_messages(SEED + 1, 40), []
    bench = Bench(dut)
    beats = [beat for m in messages for beat in beats_of(m, 16)]
    bench.source(dut.i, beats)
    bench.sink(dut.o, units)
    bench.run()
    assert bench.cycle <= len(beats) + 2
    assert len(units) >= len(beats) // 4 - 1


def test_the_header_alone_says_where_a_message_ends() -> None:
    """`last` counts for nothing, and 0 units are 1."""
    dut, messages, units = MessageReader(config_of(16)), random_messages(SEED + 1, 9), []
    empty = bytearray(random_message(random.Random(SEED), 1))
    empty[1] &= 0xF0
    messages.insert(3, bytes(empty))
    bench = Bench(dut)
    bench.source(dut.i, [beat | {"last": not beat["last"]} for m in messages for beat in beats_of(m, 16)])
    bench.sink(dut.o, units)
    wanted = [unit for m in messages for unit in units_of(m)]
    expect(bench, units, len(wanted))
    bench.run()
    assert units == wanted


@pytest.mark.parametrize(("offer_stall", "take_stall"), STALLS)
@pytest.mark.parametrize("width", WIDTHS)
def test_units_become_beats(width: int, offer_stall: float, take_stall: float) -> None:
    dut, messages, beats = MessageWriter(config_of(width)), random_messages(SEED + 2, 30), []
    bench = Bench(dut, seed=SEED)
    bench.source(dut.i, [unit for m in messages for unit in units_of(m)], stall=offer_stall)
    bench.sink(dut.o, beats, stall=take_stall)
    expect(bench, beats, sum(len(m) for m in messages) // width)
    bench.run()
    assert beats == [beat for m in messages for beat in beats_of(m, width)]


@pytest.mark.parametrize(("offer_stall", "take_stall"), STALLS)
@pytest.mark.parametrize("count", [1, 3])
def test_sources_take_turns_message_by_message(count: int, offer_stall: float, take_stall: float) -> None:
    width = 16
    dut, beats = MessageArbiter(config_of(width), count=count), []
    sources = [random_messages(SEED + n, 20) for n in range(count)]
    bench = Bench(dut, seed=SEED)
    for source, messages in zip(dut.i, sources, strict=True):
        bench.source(source, [beat for m in messages for beat in beats_of(m, width)], stall=offer_stall)
    bench.sink(dut.o, beats, stall=take_stall)
    expect(bench, beats, sum(len(m) for messages in sources for m in messages) // width)
    bench.run()

    came, message = [], b""
    for beat in beats:
        message += beat["data"].to_bytes(width, "little")
        if beat["last"]:
            came.append(message)
            message = b""
    assert message == b""
    assert len(came) == 20 * count
    for messages in sources:
        assert [m for m in came if m in messages] == messages
    if offer_stall == 0:  # everybody waits all the time: strictly in turn
        turns = [next(n for n, messages in enumerate(sources) if m in messages) for m in came]
        assert all(turns[at:at + count] == turns[:count] for at in range(0, len(turns), count))


class RoundTrip(wiring.Component):
    """Beats to units and back."""

    def __init__(self, config: NicConfig):
        self.config = config
        self.reader, self.writer = MessageReader(config), MessageWriter(config)
        beat = message_beat(config)
        super().__init__({"i": In(stream.Signature(beat)), "o": Out(stream.Signature(beat)), "active": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.reader, m.submodules.writer = self.reader, self.writer
        wiring.connect(m, wiring.flipped(self.i), self.reader.i)
        wiring.connect(m, self.reader.o, self.writer.i)
        wiring.connect(m, self.writer.o, wiring.flipped(self.o))
        m.d.comb += self.active.eq(self.reader.active | self.writer.active)
        return m


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_read_can_be_written_again(width: int) -> None:
    dut, messages, beats = RoundTrip(config_of(width)), random_messages(SEED + 5, 30), []
    bench = Bench(dut, seed=SEED)
    bench.source(dut.i, [beat for m in messages for beat in beats_of(m, width)], stall=0.3)
    bench.sink(dut.o, beats, stall=0.3)
    expect(bench, beats, sum(len(m) for m in messages) // width)
    bench.run()
    assert beats == [beat for m in messages for beat in beats_of(m, width)]


def test_impossible_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="count must be a positive integer, not 0"):
        MessageArbiter(config_of(16), count=0)
