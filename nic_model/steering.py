"""Which channel a received frame goes to: flow rules, the Toeplitz hash, the indirection table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from nic_model.contract import (
    DEFAULT_HASH_TYPES,
    FLOW_KEY_WORDS,
    FLOW_RULE_COMMIT,
    MICROSOFT_RSS_KEY,
    RAW_CHANNEL,
    RSS_CONTROL,
    RSS_INDIRECTION_ENTRIES,
    RSS_KEY_BYTES,
    HashType,
    flow_fingerprint,
    flow_rule_places,
)
from nic_model.receive_parser import Parsed
from nic_model.toeplitz import toeplitz_hash

_OF_ADDRESSES: dict[HashType, HashType] = {
    HashType.TCP_IPV4: HashType.IPV4, HashType.UDP_IPV4: HashType.IPV4,
    HashType.TCP_IPV6: HashType.IPV6, HashType.UDP_IPV6: HashType.IPV6,
}
"""Types with ports, and what is hashed instead where they are not allowed."""


class Verdict(NamedTuple):
    """Where a frame goes, and why."""

    channel: int
    hash_value: int
    hash_type: HashType
    by_rule: bool
    by_hash: bool


@dataclass(frozen=True, slots=True)
class _Rule:
    fingerprint: int
    channel: int
    ipv6: bool
    udp: bool
    key: bytes
    """Source address, destination address, ports; zeros to 36 bytes."""


@dataclass(slots=True)
class Steering:
    """The registers of steering, and what they mean for a frame."""

    channels: int
    flow_rules: int
    key: bytearray = field(default_factory=lambda: bytearray(MICROSOFT_RSS_KEY))
    enabled: bool = False
    types: int = DEFAULT_HASH_TYPES
    indirection: list[int] = field(default_factory=lambda: [0] * RSS_INDIRECTION_ENTRIES)
    _rules: dict[int, _Rule] = field(default_factory=dict)
    _words: dict[int, bytearray] = field(default_factory=dict)
    """Key words by place: they stay where they were written."""
    _place: int = 0

    def write(self, name: str, value: int) -> None:
        """Write a register of the steering block."""
        kind, _, number = name.rpartition("_")
        if name == "RSS_CONTROL":
            control = RSS_CONTROL.unpack_word(value & (1 << 16) - 1)
            self.enabled, self.types = bool(control["enable"]), control["types"]
        elif kind == "RSS_KEY":
            at = 4 * int(number)
            self.key[at : at + 4] = value.to_bytes(4, "little")
        elif name == "FLOW_RULE_PLACE":
            self._place = value % self.flow_rules
            self._rules.pop(self._place, None)
        elif kind == "FLOW_RULE_KEY":
            self._rules.pop(self._place, None)
            at = 4 * int(number)
            self._key_at(self._place)[at : at + 4] = value.to_bytes(4, "little")
        elif name == "FLOW_RULE_COMMIT":
            self._rules.pop(self._place, None)
            rule = FLOW_RULE_COMMIT.unpack_word(value)
            if rule["valid"]:
                self._rules[self._place] = _Rule(
                    rule["fingerprint"], rule["channel"] % self.channels, bool(rule["ipv6"]), bool(rule["udp"]),
                    bytes(self._key_at(self._place)))

    def _key_at(self, place: int) -> bytearray:
        return self._words.setdefault(place, bytearray(4 * FLOW_KEY_WORDS))

    def reset(self) -> None:
        """Take all rules out."""
        self._rules.clear()

    def steer(self, frame: Parsed) -> Verdict:
        """The channel of a parsed frame."""
        if frame.kind == HashType.NONE:
            return Verdict(RAW_CHANNEL, 0, HashType.NONE, False, False)
        hash_type: HashType = frame.kind
        if not self.types >> hash_type & 1:
            hash_type = _OF_ADDRESSES.get(hash_type, hash_type)
        if not self.types >> hash_type & 1:
            hash_type = HashType.NONE
        covered = frame.addresses + (frame.ports if hash_type in _OF_ADDRESSES else b"")
        hash_value = 0 if hash_type is HashType.NONE else self._hash(covered)
        rule = self._find_rule(frame) if frame.ports else None
        if rule is not None:
            return Verdict(rule.channel, hash_value, hash_type, True, False)
        if self.enabled and hash_type is not HashType.NONE:
            return Verdict(self.indirection[hash_value % RSS_INDIRECTION_ENTRIES] % self.channels, hash_value,
                           hash_type, False, True)
        return Verdict(RAW_CHANNEL, hash_value, hash_type, False, False)

    def _hash(self, data: bytes) -> int:
        assert len(self.key) == RSS_KEY_BYTES
        return toeplitz_hash(bytes(self.key), data)

    def _find_rule(self, frame: Parsed) -> _Rule | None:
        key = frame.addresses + frame.ports
        is_udp = frame.kind in (HashType.UDP_IPV4, HashType.UDP_IPV6)
        hash_value = self._hash(key)
        candidates = (self._rules.get(place) for place in flow_rule_places(hash_value, self.flow_rules))
        first = next((rule for rule in candidates
                      if rule is not None and rule.fingerprint == flow_fingerprint(hash_value, udp=is_udp)), None)
        if first is None:
            return None
        is_same = (first.key == key.ljust(len(first.key), b"\0")
                   and first.ipv6 == (frame.kind in (HashType.TCP_IPV6, HashType.UDP_IPV6))
                   and first.udp == is_udp)
        return first if is_same else None
