"""Flow rules, as `ethtool -N` has them: the channel of a connection's frames, and where the device keeps the rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from nic_model.contract import FLOW_KEY_WORDS, FLOW_RULE_COMMIT, flow_fingerprint, flow_rule_places
from nic_model.toeplitz import toeplitz_hash

IpAddress = IPv4Address | IPv6Address


class FlowRuleError(ValueError):
    """A flow rule that the device cannot have; the text says why."""


@dataclass(frozen=True, slots=True)
class FlowRule:
    """Frames of one TCP or UDP flow, as they arrive, and the channel that they go to.

    Fragments are never matched: they have no ports. Raises FlowRuleError, naming the field, for what is no flow.
    """

    source: IpAddress
    destination: IpAddress
    source_port: int
    destination_port: int
    channel: int
    is_udp: bool = False

    def __post_init__(self) -> None:
        if self.source.version != self.destination.version:
            raise FlowRuleError(f"a flow has addresses of one version, not {self.source} and {self.destination}")
        for name in ("source_port", "destination_port"):
            port = getattr(self, name)
            if not 0 <= port <= 0xFFFF:
                raise FlowRuleError(f"{name} must be 0 to 65535, not {port}")

    @property
    def flow(self) -> bytes:
        """What the device hashes: addresses and ports as on the wire."""
        return (self.source.packed + self.destination.packed
                + self.source_port.to_bytes(2, "big") + self.destination_port.to_bytes(2, "big"))

    @property
    def identity(self) -> tuple[bytes, bool]:
        """What no two rules may have in common."""
        return self.flow, self.is_udp

    def key_words(self) -> list[int]:
        """FLOW_RULE_KEY's values."""
        padded = self.flow.ljust(4 * FLOW_KEY_WORDS, b"\0")
        return [int.from_bytes(padded[at : at + 4], "little") for at in range(0, len(padded), 4)]

    def commit_word(self, key: bytes) -> int:
        """FLOW_RULE_COMMIT's value, in a device with this RSS key."""
        return FLOW_RULE_COMMIT.pack_word(
            fingerprint=flow_fingerprint(_hash(key, self.flow), udp=self.is_udp), channel=self.channel,
            ipv6=int(self.source.version == 6), udp=int(self.is_udp), valid=1)


@lru_cache(maxsize=8192)
def _hash(key: bytes, flow: bytes) -> int:
    return toeplitz_hash(key, flow)


def choose_place(rule: FlowRule, rules: Mapping[int, FlowRule], *, key: bytes, size: int) -> int:
    """A free place for one more rule, in the emptier of its two buckets.

    As many rules as half the places practically always fit; the first is refused at 3/4 or so. Rules never move.
    `rules` are those in the device, by place; `size` is how many places there are. Raises FlowRuleError if both buckets
    are full, or if the device could take this rule for another, or another for this: it looks at one rule only of those
    that have a frame's fingerprint in the frame's buckets.
    """
    def looked_at(other: FlowRule) -> tuple[int, list[int]]:
        hash_value = _hash(key, other.flow)
        return flow_fingerprint(hash_value, udp=other.is_udp), flow_rule_places(hash_value, size)

    fingerprint, places = looked_at(rule)
    alike = [(place, other) for place, other in rules.items() if looked_at(other)[0] == fingerprint]
    if any(place in places for place, _ in alike):
        raise FlowRuleError("a rule in one of its buckets has the same fingerprint")
    half = len(places) // 2
    buckets = [[place for place in bucket if place not in rules] for bucket in (places[:half], places[half:])]
    for free in sorted(buckets, key=len, reverse=True):
        # A rule elsewhere with this fingerprint must not find this one in its other bucket.
        if free and not any(free[0] in looked_at(other)[1] for _, other in alike):
            return free[0]
    raise FlowRuleError("both of its buckets are full" if not any(buckets)
                        else "a rule that looks into its bucket has the same fingerprint")
