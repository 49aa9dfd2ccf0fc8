"""How received frames are spread over channels: the Toeplitz hash's key, its table, and where a flow rule may stand.

The hash covers source address, destination address, source port and destination port, in this order, as they stand
in the packet. A flow rule names all of them, and its place follows from their hash: a bucket of `RULES_PER_BUCKET`
places in each of two tables, by two fields of the hash. The device looks at both buckets at once for the first place,
lowest number first, that holds the flow's *fingerprint*, and then compares the whole key of that one alone. So of the
rules in the two buckets of a rule no other may have the same fingerprint: the driver sees to it.
"""

# Ref: Microsoft, "RSS Hashing Functions" and "Verifying the RSS Hash Calculation" (Windows drivers documentation)

from __future__ import annotations

RSS_KEY_BYTES = 40

RSS_INDIRECTION_ENTRIES = 128

FLOW_KEY_WORDS = 9
"""32-bit words of what is hashed at most: two IPv6 addresses, two ports."""

MICROSOFT_RSS_KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
"""The key of Microsoft's verification suite, which most devices begin with."""

RULES_PER_BUCKET = 4

FLOW_TABLES = 2

MAX_FLOW_RULES = 2048

FINGERPRINT_SHIFT = 16
"""The fingerprint is the hash above this bit, with the lowest bit changed for UDP."""

BUCKET_SHIFTS = (0, 8)
"""Where each table's bucket number stands in the hash."""


def key_words(key: bytes) -> tuple[int, ...]:
    """Bytes as 32-bit registers hold them: first byte lowest."""
    return tuple(int.from_bytes(key[at : at + 4], "little") for at in range(0, len(key), 4))


def flow_fingerprint(hash_value: int, *, udp: bool) -> int:
    """What a rule's place holds beside its key, 16 bits."""
    return hash_value >> FINGERPRINT_SHIFT ^ int(udp)


def flow_rule_places(hash_value: int, flow_rules: int) -> list[int]:
    """Places where a rule with this hash may stand, in a device of `flow_rules` places, in the order of looking."""
    buckets = flow_rules // RULES_PER_BUCKET // FLOW_TABLES
    return [(table * buckets + (hash_value >> shift) % buckets) * RULES_PER_BUCKET + place
            for table, shift in enumerate(BUCKET_SHIFTS) for place in range(RULES_PER_BUCKET)]
