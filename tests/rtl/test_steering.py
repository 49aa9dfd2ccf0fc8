"""Toeplitz hash, indirection and flow rules in RTL: published hashes, and random flows and rules against the model."""

import random
from ipaddress import ip_address

import pytest

from nic_model.contract import (
    FLOW_RULE_COMMIT,
    MICROSOFT_RSS_KEY,
    RSS_CONTROL,
    RSS_INDIRECTION_ENTRIES,
    HashType,
    NicConfig,
    RxInfo,
    flow_fingerprint,
    flow_rule_places,
    indirection_register,
    key_words,
    register,
    steering_register,
)
from nic_model.contract.registers import STEERING_BASE
from nic_model.receive_parser import Parsed
from nic_model.steering import Steering as Model
from nic_model.toeplitz import toeplitz_hash
from rtl.steering import Steering, steering_latency
from tests.nic_model.test_steering import VECTORS
from tests.rtl.harness import Bench, idle, plain, shared

CONFIGS = {width: NicConfig(name=f"{8 * width} bits", mac_bytes=width, channels=8, flow_rules=16)
           for width in (8, 16, 32, 64)}
SPACING = {8: 5, 16: 3, 32: 2, 64: 1}
"""Cycles between two frames that have a hash, at least: the beats of one of 34 bytes."""


def as_flow(addresses: bytes, ports: bytes, *, udp: bool) -> dict[str, int]:
    """The block's input."""
    words = (addresses + ports).ljust(36, b"\0")
    return {**{f"word_{n}": int.from_bytes(words[4 * n:4 * n + 4], "big") for n in range(9)},
            "ipv6": int(len(addresses) == 32), "tcp": int(bool(ports) and not udp), "udp": int(bool(ports) and udp)}


def as_parsed(addresses: bytes, ports: bytes, *, udp: bool) -> Parsed:
    """The model's input."""
    info = RxInfo.IPV6 if len(addresses) == 32 else RxInfo.IPV4
    if ports:
        info |= RxInfo.UDP if udp else RxInfo.TCP
    return Parsed(info, 0, 0, 0, addresses, ports)


class Device:
    """The block with its model beside it: register writes go to both, and each flow's verdict is compared."""

    def __init__(self, config, seed):
        self.config = config
        self.dut = shared(Steering, config)
        self.latency = steering_latency(config)
        self.bench = Bench(self.dut, seed=seed)
        self.model = Model(config.channels, config.flow_rules)
        self.expected, self.verdicts, self.due = [], [], []
        self.bench.background(self._watch)

    async def _watch(self, ctx):
        async for _, _, verdict in ctx.tick().sample(self.dut.verdict):
            if self.bench.cycle in self.due:
                self.verdicts.append(plain(verdict))

    async def write(self, ctx, name, value):
        """A register write, six cycles apart as from the bus."""
        address = register(name) if name == "DEVICE_RESET" else steering_register(name)
        await self.bench.strobe(ctx, self.dut.write, {"address": address, "data": value})
        if name == "DEVICE_RESET":
            if value & 1:
                self.model.reset()
        else:
            self.model.write(name, value)
        await idle(ctx, 5)

    async def set_entry(self, ctx, entry, channel):
        await self.bench.strobe(ctx, self.dut.write, {"address": indirection_register(entry), "data": channel})
        self.model.indirection[entry] = channel
        await idle(ctx, 5)

    async def flow(self, ctx, addresses, ports, *, udp):
        """One flow; the next may come `SPACING` cycles later."""
        verdict = self.model.steer(as_parsed(addresses, ports, udp=udp))
        self.expected.append({"channel": verdict.channel, "hash": verdict.hash_value, "hash_type": verdict.hash_type,
                              "by_rule": int(verdict.by_rule), "by_hash": int(verdict.by_hash)})
        self.due.append(self.bench.cycle + self.latency + 1)
        await self.bench.strobe(ctx, self.dut.flow, as_flow(addresses, ports, udp=udp))
        await idle(ctx, SPACING[self.config.mac_bytes] - 1)

    async def settle(self, ctx):
        """Until the last flow's verdict is out."""
        await idle(ctx, self.latency + 2)

    def run(self, main, **limits):
        self.bench.add(main)
        self.bench.run(**limits)
        assert self.bench.idle_cycles > 0
        assert self.verdicts == self.expected


@pytest.mark.parametrize("width", CONFIGS)
def test_published_hashes(width):
    device = Device(CONFIGS[width], 1)
    wanted = []

    async def main(ctx):
        for types, column in (((HashType.IPV4, HashType.IPV6), 4), ((HashType.TCP_IPV4, HashType.TCP_IPV6), 5)):
            await device.write(ctx, "RSS_CONTROL", RSS_CONTROL.pack_word(types=sum(1 << t for t in types)))
            for vector in VECTORS:
                addresses = ip_address(vector[0]).packed + ip_address(vector[2]).packed
                ports = vector[1].to_bytes(2, "big") + vector[3].to_bytes(2, "big")
                wanted.append(vector[column])
                await device.flow(ctx, addresses, ports, udp=False)
            await device.settle(ctx)

    device.run(main)
    assert [verdict["hash"] for verdict in device.verdicts] == wanted


def random_flow(rng):
    addresses = rng.randbytes(rng.choice((8, 32)))
    return addresses, rng.choice((b"", rng.randbytes(4), rng.randbytes(4), rng.randbytes(4))), rng.random() < 0.5


def steer(width, rng, steps):
    """Flows as fast as frames can come, from a small set, so that many have rules; between the bursts the registers
    change in every way, right and wrong. Compares with the model; returns the device."""
    config = CONFIGS[width]
    device = Device(config, width)
    pool = [random_flow(rng) for _ in range(24)]
    ruled = pool[:1]

    async def put_rule(ctx):
        addresses, ports, udp = flow = rng.choice(pool)
        ruled[:] = [*ruled[-5:], flow]
        hash_value = toeplitz_hash(bytes(device.model.key), addresses + ports)
        place = rng.choice(flow_rule_places(hash_value, config.flow_rules))
        wrong = rng.random() < 0.15
        await device.write(ctx, "FLOW_RULE_PLACE", place if not wrong else rng.getrandbits(32))
        for n, word in enumerate(key_words((addresses + ports).ljust(36, b"\0"))):
            if not wrong or rng.random() < 0.9:
                await device.write(ctx, f"FLOW_RULE_KEY_{n}", word)
        udp ^= rng.random() < 0.1
        await device.write(ctx, "FLOW_RULE_COMMIT", FLOW_RULE_COMMIT.pack_word(
            fingerprint=flow_fingerprint(hash_value, udp=udp), channel=rng.randrange(256),
            ipv6=int((len(addresses) == 32) ^ (rng.random() < 0.1)), udp=int(udp), valid=int(rng.random() < 0.9)))

    async def main(ctx):
        for step in range(steps):
            action = rng.choice((*["rule"] * 8, "out", "out", "word", "word", "control", "control", "table", "key",
                                 "reset"))
            if action == "rule" or step < 4:
                await put_rule(ctx)
            elif action == "out":
                await device.write(ctx, "FLOW_RULE_PLACE", rng.randrange(config.flow_rules))
            elif action == "word":
                await device.write(ctx, f"FLOW_RULE_KEY_{rng.randrange(9)}", rng.getrandbits(32))
            elif action == "control":
                await device.write(ctx, "RSS_CONTROL", rng.getrandbits(32) | (rng.random() < 0.8))
            elif action == "table":
                for _ in range(20):
                    await device.set_entry(ctx, rng.randrange(RSS_INDIRECTION_ENTRIES), rng.getrandbits(32))
            elif action == "key":
                for n in range(10) if rng.random() < 0.3 else (rng.randrange(10),):
                    await device.write(ctx, f"RSS_KEY_{n}", rng.getrandbits(32))
            else:
                await device.write(ctx, "DEVICE_RESET", rng.getrandbits(1))
                await idle(ctx, 8)
                if not device.bench.cycle % 2:
                    await put_rule(ctx)
            for _ in range(rng.randrange(1, 30)):
                flow = rng.choice(rng.choice((pool, ruled))) if rng.random() < 0.9 else random_flow(rng)
                await device.flow(ctx, flow[0], flow[1], udp=flow[2])
                await idle(ctx, rng.choice((0, 0, 0, 1, 7)))
            await device.settle(ctx)

    device.run(main, max_cycles=40_000)
    return device


@pytest.mark.parametrize("width", CONFIGS)
def test_random_flows_and_rules(width):
    seed = width
    device = steer(width, random.Random(seed), 26)
    for why in ("by_rule", "by_hash"):
        assert sum(verdict[why] for verdict in device.verdicts) > 10, f"seed {seed}"
    assert len({verdict["channel"] for verdict in device.verdicts}) > 4, f"seed {seed}"


@pytest.mark.parametrize("width", [8, 64])
def test_a_rule_that_is_written_while_flows_pass(width):
    # Its flow goes to the rule's channel or to channel 0, never anywhere else, and others do not notice. No word of a
    # memory is read while it is written: `rtl.primitives.Ram` asserts that.
    config = CONFIGS[width]
    device = Device(config, 5)
    addresses, ports = bytes(range(8)), bytes(range(4))
    hash_value = toeplitz_hash(MICROSOFT_RSS_KEY, addresses + ports)
    done = []

    async def rules(ctx):
        places = flow_rule_places(hash_value, config.flow_rules)
        for turn in range(12):
            for name, value in (("FLOW_RULE_PLACE", places[turn % 2]),
                                *((f"FLOW_RULE_KEY_{n}", word) for n, word in enumerate(
                                    key_words((addresses + ports).ljust(36, b"\0")))),
                                ("FLOW_RULE_COMMIT", FLOW_RULE_COMMIT.pack_word(
                                    fingerprint=flow_fingerprint(hash_value, udp=False), channel=turn % 7 + 1,
                                    valid=1))):
                await device.bench.strobe(ctx, device.dut.write, {"address": steering_register(name), "data": value})
                await idle(ctx, 5)
        done.append(True)

    async def flows(ctx):
        while not done:
            await device.bench.strobe(ctx, device.dut.flow, as_flow(addresses, ports, udp=False))
            device.due.append(device.bench.cycle + device.latency)
            await idle(ctx, SPACING[width] - 1)
        await device.settle(ctx)

    device.bench.add(rules)
    device.bench.add(flows)
    device.bench.run(max_cycles=8000)
    seen = [verdict["channel"] for verdict in device.verdicts]
    assert len(seen) == len(device.due) > 100
    assert set(seen) == set(range(8))
    assert steering_register("RSS_CONTROL") == STEERING_BASE
