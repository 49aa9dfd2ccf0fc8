"""A receive path with a control port: what is for the port leaves it, and all else goes its way as without one."""

import random

import pytest

from nic_model.contract import NicConfig, OperationMask, register
from nic_model.contract.control import ControlEnable, ControlType, DoneStatus, OrderFlag, unpack_message
from tests.rtl.control_twins import Twins, key_of
from tests.rtl.harness import idle
from tests.rtl.rx_frames import IP, TCP, data, ether
from tests.rtl.test_control_receive import flow_fields, tcp
from tests.rtl.test_receive import Host, frame_of

CONFIG = NicConfig(name="control", channels=8, flows=16, listeners=4)
WIDE = NicConfig(name="wide", channels=8, mac_bytes=64, flows=16, listeners=4)


def test_frames_for_the_port_leave_the_path():
    host = Host(CONFIG, seed=1)
    up = []
    host.bench.sink(host.dut.control_up, up)
    segment = bytes(ether() / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=80, flags="A") / data(40))
    others = [frame_of(60, 1), frame_of(200, 2)]

    async def main(ctx):
        await host.open(ctx)
        await host.enable(ctx)
        for n in range(6):
            await host.post(ctx, 0x4000 + 0x400 * n, 0x400)
        await host.send(ctx, others[0])
        await host.send(ctx, segment)  # nobody sits at the port
        await host.settle(ctx, 2)
        await host.write(ctx, register("CONTROL_ENABLE"), ControlEnable.FLOWS)
        await host.send(ctx, segment)  # there is no flow
        await host.send(ctx, bytes(60))  # nor is it for this host
        await host.settle(ctx, 4)
        await host.write(ctx, register("CONTROL_ENABLE"), ControlEnable.FLOWS | ControlEnable.REST)
        for frame in (segment, others[1], bytes(60)):
            await host.send(ctx, frame)
        await idle(ctx, 300)
        await host.write(ctx, register("CONTROL_ENABLE"), 0)
        await host.send(ctx, others[1])
        await host.settle(ctx, 6)

    host.bench.add(main)
    host.bench.run(max_cycles=4000)
    delivered = [others[0], segment, segment, others[1]]
    assert [bytes(host.memory[0x4000 + 0x400 * n:][:len(frame)]) for n, frame in enumerate(delivered)] == delivered
    assert [token["length"] for token in host.done] == [len(frame) for frame in delivered]
    assert host.count("frames_in") == 8
    assert host.count("filtered") == 2  # those that went to the port are not among them
    assert host.ended == 6
    messages = b"".join(beat["data"].to_bytes(16, "little") for beat in up)
    found = [unpack_message(messages[at:at + 256])[:2] for at in range(0, len(messages), 256)]
    assert [(kind, fields["frame"].to_bytes(128, "little")[:60]) for kind, fields in found] == [
        (ControlType.UNKNOWN, frame[:60]) for frame in (segment, others[1])]


FLOWS = (("10.0.0.1", 1000, "10.0.0.2", 80), ("fd00::1", 1001, "fd00::2", 80))
GONE = ("10.0.0.9", 1009, "10.0.0.2", 80)


async def add_flow(twins, ctx, number, flow, channel=1):
    await twins.order(ctx, ControlType.FLOW_ADD, flow=number, generation=1, **flow_fields(flow, channel=channel))
    await idle(ctx, 120)
    assert [fields["status"] for _, fields in twins.take()] == [DoneStatus.OK]


def shuffled(rng, *cards):
    """Each of the cards once, in any order, and so on."""
    while True:
        yield from rng.sample(cards, len(cards))


def random_frame(rng, kind, n):
    """A frame for a flow, a listener or neither."""
    payload = rng.randbytes(rng.choice((0, 1, 6, 100, 400)))
    if kind == "flow":
        return tcp(rng.choice(FLOWS), payload)
    if kind == "listener":
        return tcp(("10.0.0.7", n, "10.0.0.2", 443), flags="S")
    if kind == "coalesced":
        return tcp(("10.0.0.8", 4000, "10.0.0.2", 22), payload, seq=1000)
    return frame_of(rng.choice((60, 61, 200, 300)), n)


@pytest.mark.parametrize(("config", "seed", "stall"), [
    (CONFIG, 2, 0.3), *(pytest.param(config, seed, seed % 3 * 0.2, marks=pytest.mark.long)
                        for seed in range(3, 9) for config in (CONFIG, WIDE))],
                         ids=lambda value: getattr(value, "name", str(value)))
def test_frames_are_passed_on_beside_others(config, seed, stall):
    """Frames to channel 0 at random, without a gap for long; those of flows and listeners come up, and are placed,
    dropped, or passed on to a channel with buffers, to one that runs out of them, and to one that does not run."""
    rng = random.Random(seed)
    twins = Twins(config, seed=seed, stall=stall, log2=7)
    frames = 24
    kinds = shuffled(rng, "flow", "flow", "flow", "listener", "coalesced", "other")
    ends = shuffled(rng, 1, 1, 1, 2, 2, 3, "place", "place", "drop", "nowhere")
    held, statuses, begun, sent = [], set(), [], []

    async def main(ctx):
        operations = OperationMask.RECEIVE_RAW | OperationMask.COALESCE
        await twins.begin(ctx, (0, 1, 2), operations=operations)
        await twins.set(ctx, register("COALESCE_TICKS"), 1 << 30)
        for n in range(24):
            await twins.give(ctx, 0, 0x1000 + 0x600 * n + n % 16, 0x5F0)
        for n in range(30):
            await twins.give(ctx, 1, 0xE400 + 0x80 * n + n % 7, 0x80)
        for n in range(1):
            await twins.give(ctx, 2, 0x14000 + 0x400 * n, 0x400)
        for number, flow in enumerate(FLOWS):
            await add_flow(twins, ctx, number, flow)
        await twins.order(ctx, ControlType.LISTEN_ADD, flow=0, local_port=443)
        await idle(ctx, 60)
        twins.take()
        begun.append(True)
        for n in range(frames):
            await twins.frame(ctx, random_frame(rng, next(kinds), n), now=1000 + n, gap=rng.choice((0, 0, 0, 0.5)))
            await idle(ctx, rng.choice((0, 0, 1, 1, 60)))
        sent.append(True)

    async def decide(ctx):
        still, at = 0, 0x18000
        while not begun:
            await ctx.tick()
        while still < 40:
            await ctx.tick()
            for kind, fields in twins.take():
                if kind == ControlType.DONE:
                    statuses.add((ControlType(fields["order"]), DoneStatus(fields["status"])))
                else:
                    held.append(fields)
            if held and (rng.random() < 0.1 or sent):
                fields = held.pop(rng.randrange(len(held)))
                asked = rng.choice((0, OrderFlag.DONE))
                what = next(ends)
                if isinstance(what, int):
                    await twins.order(ctx, ControlType.PASS, handle=fields["handle"], channel=what, flags=asked)
                elif what == "place" and fields["flow"] != 0xFFFF and fields["length"]:
                    await twins.order(ctx, ControlType.PLACE, handle=fields["handle"], flow=fields["flow"],
                                      generation=1, key=key_of(1), offset=at, length=fields["length"],
                                      flags=asked | OrderFlag.LAST)
                    at += fields["length"] + 5
                elif what == "nowhere":
                    await twins.order(ctx, ControlType.PASS, handle=fields["handle"], channel=config.channels)
                    held.append(fields)
                else:
                    await twins.order(ctx, ControlType.DROP, handle=fields["handle"], flags=asked)
            busy = not sent or held or ctx.get(twins.dut.active) or twins.retired < len(twins.done)
            still = 0 if busy else still + 1
            if sent and still == 20:
                await twins.set(ctx, register("COALESCE_TICKS"), 0)  # ends what is open

    twins.bench.add(decide)
    twins.run(main, max_cycles=30_000)
    twins.compare()
    counters = twins.model.counters | twins.model.control.counters
    assert min(counters[name] for name in (
        "control_passes", "control_drops", "control_placed", "rx_no_buffer", "rx_frames")) > 0, f"seed {seed}"
    assert {(ControlType.PASS, DoneStatus.OK), (ControlType.PASS, DoneStatus.BAD)} <= statuses, f"seed {seed}"
    assert {token["channel"] for token in twins.done} == {0, 1, 2}, f"seed {seed}"


def test_a_passed_frame_neither_joins_nor_ends_an_aggregate():
    """Its flow's later segments are merged as if it was not there, and by their age end when they would."""
    twins = Twins(CONFIG)
    remote, sport, local, dport = GONE
    segments = [bytes(ether() / IP(src=remote, dst=local, id=7 + n) / TCP(
        sport=sport, dport=dport, flags="A", seq=5000 + 100 * n) / data(100, n)) for n in range(6)]

    async def main(ctx):
        await twins.begin(ctx, (0, 1), operations=OperationMask.RECEIVE_RAW | OperationMask.COALESCE)
        await twins.set(ctx, register("COALESCE_TICKS"), 1000)
        for channel in (0, 1):
            for n in range(8):
                await twins.give(ctx, channel, 0x4000 + 0x4000 * channel + 0x400 * n, 0x400)
        await add_flow(twins, ctx, 0, GONE)
        handles = []
        for n in (0, 1):
            await twins.frame(ctx, segments[n], now=100 + n)
        await idle(ctx, 100)
        handles = [fields["handle"] for _, fields in twins.take()]
        await twins.order(ctx, ControlType.FLOW_DEL, flow=0, generation=1)
        await idle(ctx, 300)
        twins.take()
        # Two that are merged, one passed on between them, and one behind the aggregate's end beside a passed one.
        for n, now, passed in ((2, 5000, None), (3, 5100, handles[0]), (4, 5999, handles[1]), (5, 6000, None)):
            if passed is not None:
                await twins.order(ctx, ControlType.PASS, handle=passed, channel=1)
            await twins.frame(ctx, segments[n], now=now)
            await idle(ctx, 100)
        ctx.set(twins.dut.now, 7000)
        twins.model.advance(7000)
        await twins.settle(ctx, 6)

    twins.run(main)
    twins.compare()
    assert [(token["channel"], token["segments"]) for token in twins.done] == [(1, 1), (1, 1), (0, 3), (0, 1)]
    assert [token["timestamp"] for token in twins.done] == [100, 101, 5000, 6000]


@pytest.mark.long
def test_a_full_buffer_drops_what_is_passed_and_release_goes_on():
    twins = Twins(WIDE)  # where large frames take few cycles
    payload = data(20)

    async def main(ctx):
        await twins.begin(ctx, (0, 1))
        for n in range(2):
            await twins.give(ctx, 0, 0x4000 + 0x2000 * n, 0x2000)
        await twins.give(ctx, 1, 0x8000, 0x2000)
        await add_flow(twins, ctx, 0, FLOWS[0])
        for n, size in enumerate((1000, 20)):
            await twins.frame(ctx, tcp(FLOWS[0], data(size)), now=1 + n)
        await idle(ctx, 100)
        (_, large), (_, small) = twins.take()
        twins.holds_writes = True
        for n in range(2):
            await twins.frame(ctx, frame_of(8000, n), now=10 + n)
        await idle(ctx, 200)
        assert twins.count("fifo_full") == 0
        assert ctx.get(twins.dut.fill) > (WIDE.rx_buffer_bytes - 1054) // WIDE.host_bytes
        await twins.order(ctx, ControlType.PASS, handle=large["handle"], channel=1)
        await twins.order(ctx, ControlType.PLACE, handle=small["handle"], flow=0, generation=1, key=key_of(1),
                          offset=0x18000, length=20, flags=OrderFlag.LAST | OrderFlag.DONE)
        await idle(ctx, 300)
        assert twins.count("fifo_full") == 1
        assert [fields["order"] for _, fields in twins.take()] == [ControlType.PLACE]
        assert twins.memory[0x18000:0x18014] == payload
        twins.holds_writes = False
        await twins.settle(ctx, 3)

    twins.run(main)
    assert (twins.count("frames"), twins.count("fifo_full")) == (2, 1)
    assert {token["channel"] for token in twins.done} == {0}


def test_nothing_is_lost_at_line_rate():
    """Frames of 60 bytes in 10.5 cycles each, every one and then every other of a flow, which is passed on at once."""
    twins = Twins(CONFIG, log2=7)
    count = 40
    of_flow = [n < count // 2 or n % 2 == 0 for n in range(count)]
    held, begun, done = [], [], []

    async def main(ctx):
        await twins.begin(ctx, (0, 1))
        for channel in (0, 1):
            for n in range(count):
                await twins.give(ctx, channel, 0x1000 + 0x4000 * channel + 0x80 * n, 0x80)
        await add_flow(twins, ctx, 0, FLOWS[0])
        begun.append(True)
        for n in range(count):
            frame = tcp(FLOWS[0], data(6, n)) if of_flow[n] else frame_of(60, n)
            await twins.frame(ctx, frame, now=1000 + n)
            await idle(ctx, 2 + n % 2)
        done.append(twins.bench.cycle)
        while twins.ended < count:
            await ctx.tick()
        done.append(twins.bench.cycle)
        await twins.settle(ctx, count)

    async def decide(ctx):
        passed = 0
        while not begun:
            await ctx.tick()
        while passed < sum(of_flow):
            await ctx.tick()
            held.extend(fields["handle"] for kind, fields in twins.take() if kind != ControlType.DONE)
            if held:
                await twins.order(ctx, ControlType.PASS, handle=held.pop(0), channel=1)
                passed += 1

    twins.bench.add(decide)
    twins.run(main)
    twins.compare()
    assert twins.count("frames") == count
    assert done[1] - done[0] < 150  # and so nothing has piled up: that is one frame's way through the port
