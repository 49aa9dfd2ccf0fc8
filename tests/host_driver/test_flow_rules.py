"""RSS and flow rules through the driver, over the device model; where rules stand, and how full the tables get."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest

from host_driver.flow_rules import FlowRule, FlowRuleError, choose_place
from host_driver.nic import DeviceError, Nic
from nic_model.contract import MICROSOFT_RSS_KEY, Feature, HashType, flow_rule_places, steering_register
from nic_model.receive_parser import parse_received
from nic_model.toeplitz import toeplitz_hash
from tests.host_driver.bench import Bench
from tests.rtl.rx_frames import ether

from scapy.layers.inet import IP, TCP, UDP  # isort: skip
from scapy.layers.inet6 import IPv6  # isort: skip


def random_rule(rng: random.Random, channel: int = 1) -> FlowRule:
    bits = rng.choice((32, 128))
    if bits == 32:
        source, destination = (ip_address(rng.getrandbits(32)) for _ in range(2))
    else:
        source, destination = (ip_address(rng.getrandbits(128) | 1 << 127) for _ in range(2))
    return FlowRule(source, destination, rng.getrandbits(16), rng.getrandbits(16), channel, rng.random() < 0.5)


def frame_of(rule: FlowRule) -> bytes:
    network = IP if rule.source.version == 4 else IPv6
    transport = UDP if rule.is_udp else TCP
    return bytes(ether() / network(src=str(rule.source), dst=str(rule.destination))
                 / transport(sport=rule.source_port, dport=rule.destination_port))


def channel_of(bench: Bench, frame: bytes) -> int:
    """Where the model steers a frame."""
    return bench.model.device._steering.steer(parse_received(frame)).channel


@pytest.mark.parametrize("size", [64, 256])
def test_how_full_the_tables_get(size: int) -> None:
    # Two choices of buckets of four: half as many rules as places always fit, and more before the first is refused.
    fills = []
    for seed in range(5120 // size):
        rng = random.Random(seed)
        rules: dict[int, FlowRule] = {}
        while True:
            rule = random_rule(rng)
            try:
                place = choose_place(rule, rules, key=MICROSOFT_RSS_KEY, size=size)
            except FlowRuleError:
                break
            assert place not in rules
            assert place in flow_rule_places(toeplitz_hash(MICROSOFT_RSS_KEY, rule.flow), size)
            rules[place] = rule
        assert len(rules) >= size // 2, f"seed {seed}: refused after {len(rules)} rules"
        fills.append(len(rules) / size)
    assert sum(fills) / len(fills) > 0.6, f"refused on average at {sum(fills) / len(fills):.2f} of the places"


def test_rules_win_over_rss_and_only_their_flow_matches() -> None:
    bench = Bench(config="default")
    rng = random.Random(3)
    rules = [random_rule(rng, channel=n % 15 + 1) for n in range(180)]

    async def run() -> Nic:
        nic = await Nic.probe(bench.port)
        assert nic.capabilities.flow_rules == 256
        for rule in rules:
            nic.add_flow_rule(rule)
        return nic

    nic = bench.run(run())
    for rule in rules:
        frame = frame_of(rule)
        assert channel_of(bench, frame) == rule.channel
        near = bytearray(frame)
        near[rng.choice((26, 29, 33, 34, 37)) if rule.source.version == 4 else rng.randrange(22, 58)] ^= 1
        assert channel_of(bench, bytes(near)) == 0
    assert nic.flow_rules == sorted(rules, key=nic.flow_rules.index)

    nic.set_rss(indirection=[5])
    assert channel_of(bench, frame_of(rules[0])) == rules[0].channel
    nic.remove_flow_rule(rules[0])
    assert channel_of(bench, frame_of(rules[0])) in (0, 5)
    assert channel_of(bench, frame_of(FlowRule(ip_address("1.2.3.4"), ip_address("1.2.3.5"), 1, 2, 0))) == 5
    with pytest.raises(FlowRuleError, match="there is no such rule"):
        nic.remove_flow_rule(rules[0])

    # Another key: every rule moves, none is lost.
    nic.set_rss(key=bytes(range(1, 41)), indirection=[6])
    for rule in rules[1:]:
        assert channel_of(bench, frame_of(rule)) == rule.channel

    nic = bench.run(Nic.probe(bench.port))  # resets the device: no rules, no RSS
    assert {channel_of(bench, frame_of(rule)) for rule in rules} == {0}
    # What the last driver left of key and table is not believed.
    nic.set_rss(indirection=range(16), types=HashType)
    for rule in rules:
        assert channel_of(bench, frame_of(rule)) == toeplitz_hash(MICROSOFT_RSS_KEY, rule.flow) % 16


def test_rss_spreads_by_the_table() -> None:
    bench = Bench(config="default")
    nic = bench.run(Nic.probe(bench.port))
    rng = random.Random(4)
    flows = [random_rule(rng) for _ in range(60)]
    assert {channel_of(bench, frame_of(flow)) for flow in flows} == {0}
    key = rng.randbytes(40)
    nic.set_rss(key=key, indirection=range(16), types=HashType)
    for flow in flows:
        assert channel_of(bench, frame_of(flow)) == toeplitz_hash(key, flow.flow) % 16
    nic.set_rss(types=[HashType.IPV4, HashType.IPV6])
    for flow in flows:
        assert channel_of(bench, frame_of(flow)) == toeplitz_hash(key, flow.flow[:-4]) % 16
    nic.set_rss(types=[HashType.TCP_IPV4])
    for flow in flows:
        is_hashed = flow.source.version == 4 and not flow.is_udp
        assert channel_of(bench, frame_of(flow)) == (toeplitz_hash(key, flow.flow) % 16 if is_hashed else 0)
    nic.set_rss(enabled=False)
    assert {channel_of(bench, frame_of(flow)) for flow in flows} == {0}


def test_what_is_refused() -> None:
    bench = Bench()
    nic = bench.run(Nic.probe(bench.port))
    one, two, six = ip_address("10.0.0.1"), ip_address("10.0.0.2"), ip_address("fd00::1")
    for arguments, said in (
        ({"key": bytes(39)}, "an RSS key has 40 bytes, not 39"),
        ({"indirection": [0, 1, 2]}, "divides 128, not 3"),
        ({"indirection": []}, "divides 128, not 0"),
        ({"indirection": [4]}, "channel 4 is not one of the device's 4"),
    ):
        with pytest.raises(ValueError, match=said):
            nic.set_rss(**arguments)  # type: ignore[arg-type]
    with pytest.raises(FlowRuleError, match=r"addresses of one version, not 10\.0\.0\.1 and fd00::1"):
        FlowRule(one, six, 1, 2, 0)
    with pytest.raises(FlowRuleError, match="destination_port must be 0 to 65535, not 65536"):
        FlowRule(one, two, 1, 65536, 0)
    with pytest.raises(ValueError, match="channel 4 is not"):
        nic.add_flow_rule(FlowRule(one, two, 1, 2, 4))
    nic.add_flow_rule(FlowRule(one, two, 1, 2, 3))
    nic.add_flow_rule(FlowRule(one, two, 1, 2, 2, is_udp=True))
    assert [channel_of(bench, frame_of(rule)) for rule in nic.flow_rules] == [rule.channel for rule in nic.flow_rules]
    nic.remove_flow_rule(FlowRule(one, two, 1, 2, 2, is_udp=True))
    with pytest.raises(FlowRuleError, match="there is a rule for this flow already"):
        nic.add_flow_rule(FlowRule(one, two, 1, 2, 1))

    # With a key of zeros all rules share two buckets and a fingerprint, so the second finds no place.
    nic.remove_flow_rule(FlowRule(one, two, 1, 2, 3))
    nic.set_rss(key=bytes(40))
    nic.add_flow_rule(FlowRule(one, two, 1, 2, 3))
    with pytest.raises(FlowRuleError, match=r"no place for .* same fingerprint; it has 1 rules in 64 places"):
        nic.add_flow_rule(FlowRule(one, two, 1, 3, 3))

    nic.set_rss(key=MICROSOFT_RSS_KEY)
    nic.add_flow_rule(FlowRule(one, two, 1, 3, 3))
    before = nic.flow_rules
    with pytest.raises(FlowRuleError, match="fingerprint"):
        nic.set_rss(key=bytes(40))
    assert nic.flow_rules == before

    async def first_key_word() -> int:
        return await bench.port.read32(steering_register("RSS_KEY_0"))

    assert bench.run(first_key_word()) == int.from_bytes(MICROSOFT_RSS_KEY[:4], "little")


def test_a_device_without_steering() -> None:
    bench = Bench()
    bench.model.device._globals["FEATURES"] = int(Feature.RX_CHECKSUM)
    nic = bench.run(Nic.probe(bench.port))
    with pytest.raises(DeviceError, match="the device has no RSS"):
        nic.set_rss()
    with pytest.raises(DeviceError, match="the device has no FLOW_RULES"):
        nic.add_flow_rule(FlowRule(ip_address("10.0.0.1"), ip_address("10.0.0.2"), 1, 2, 0))
