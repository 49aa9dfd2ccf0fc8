"""Which channel a received flow goes to: an exact-match rule of its own, or else its hash's entry of a table."""

from itertools import pairwise

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from nic_model.contract import (
    DEFAULT_HASH_TYPES,
    FLOW_KEY_WORDS,
    FLOW_RULE_COMMIT,
    RAW_CHANNEL,
    RSS_CONTROL,
    RSS_INDIRECTION_ENTRIES,
    RULES_PER_BUCKET,
    HashType,
    NicConfig,
    indirection_register,
    register,
    steering_register,
)
from nic_model.contract.steering import BUCKET_SHIFTS, FINGERPRINT_SHIFT, FLOW_TABLES
from rtl.header_fields import Flow
from rtl.interfaces import CHANNEL_BITS, RegisterWrite, Strobe
from rtl.primitives import Ram, SmallRam
from rtl.toeplitz import WORD_BITS, Toeplitz, hash_latency

HASH_TYPE_BITS = max(HashType).bit_length()
FINGERPRINT_BITS = FLOW_RULE_COMMIT.fields["fingerprint"].width

FLOWS_UNDER_WAY = 16
"""Places for flows that are being looked up: more than the lookup has stages, since with the widest MAC one may come in
each cycle."""

_SETTLE_CYCLES = 3
"""Cycles from a write to its being stored: one until the rule is out, one in which a lookup still reads its words."""

# What a flow's lookup gave. `hash` is 0 without a type that is allowed.
Verdict = data.StructLayout({
    "channel": CHANNEL_BITS, "hash": WORD_BITS, "hash_type": HASH_TYPE_BITS, "by_rule": 1, "by_hash": 1,
})

_Kind = data.StructLayout({"ipv6": 1, "udp": 1})
_Target = data.StructLayout({"channel": CHANNEL_BITS, "kind": _Kind})


def steering_latency(config: NicConfig) -> int:
    """Cycles from a flow to its verdict."""
    return hash_latency(config) + 4


class Steering(wiring.Component):
    """Finds the channel of a flow.

    Enters: `flow`, at most one in as many cycles as its hash takes. Leaves: `verdict`, combinational, right in the
    cycle `steering_latency` cycles behind the flow's, whatever else is under way.

    First the Toeplitz hash; then in one cycle the fingerprints of both buckets; then the whole key of the one rule
    that they leave; and meanwhile the indirection table. A rule that is written while a flow is looked up counts for it
    or does not. Each write to a rule's words first takes out the rule that is in its place, and is stored when no
    lookup reads there any more. DEVICE_RESET takes out all rules, a bucket a cycle.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `mac_bytes`, `channels` and `flow_rules` are used.

    Members
    -------
    write : register writes.
    flow : of each frame that has one, at its last row.
    verdict : see above.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "write": In(Strobe(RegisterWrite)), "flow": In(Strobe(Flow)), "verdict": Out(Verdict), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.toeplitz = toeplitz = Toeplitz(self.config)
        connect(m, flipped(self.write), toeplitz.write)
        m.d.comb += [toeplitz.flow.valid.eq(self.flow.valid), toeplitz.flow.payload.eq(self.flow.payload)]

        # valid[n]: a flow is n cycles behind its entry.
        valid = [self.flow.valid, *(Signal(name=f"valid_{n}") for n in range(1, steering_latency(self.config) + 1))]
        m.d.sync += [later.eq(earlier) for earlier, later in pairwise(valid)]
        hashed = hash_latency(self.config)
        flow = self._keep_flow(m, valid[0], valid[hashed + 2])
        hash_types, types_written = self._choose_type(m, valid, hashed)
        is_udp = [self.flow.payload.udp, *(Signal(name=f"is_udp_{n}") for n in range(1, hashed + 1))]
        for n in range(hashed):
            with m.If(valid[n]):
                m.d.sync += is_udp[n + 1].eq(is_udp[n])
        written = self._take_writes(m)
        is_candidate, candidate, clears = self._find_candidate(
            m, valid[hashed], toeplitz.hashes.flow, is_udp[hashed], written)
        by_rule, rule_channel = self._compare(m, valid, hashed, is_candidate, candidate, flow, written)
        by_hash, hash_channel, hash_value, hash_type, spread_written = self._spread(
            m, valid, hashed, toeplitz.hashes, hash_types)
        verdict = self.verdict
        m.d.comb += [
            verdict.by_rule.eq(by_rule), verdict.by_hash.eq(by_hash & ~by_rule),
            verdict.hash.eq(hash_value), verdict.hash_type.eq(hash_type),
            verdict.channel.eq(Mux(by_rule, rule_channel, Mux(by_hash, hash_channel, RAW_CHANNEL))),
            self.active.eq(
                Cat(valid).any() | toeplitz.active | types_written | spread_written | clears | written.active),
        ]
        return m

    def _writes(self, name):
        return self.write.valid & (self.write.payload.address == steering_register(name))

    def _keep_flow(self, m, enters, leaves):
        """What was hashed, for the compare in the cycle behind `leaves`; in a register, since the memory is wide and
        its address comes late everywhere."""
        m.submodules.flows = flows = SmallRam(shape=Flow, depth=FLOWS_UNDER_WAY)
        m.d.comb += [flows.write_en.eq(enters), flows.write_data.eq(self.flow.payload)]
        with m.If(enters):
            m.d.sync += flows.write_addr.eq(flows.write_addr + 1)
        kept = Signal(Flow, name="kept_flow")
        with m.If(leaves):
            m.d.sync += [flows.read_addr.eq(flows.read_addr + 1), Value.cast(kept).eq(flows.read_data)]
        return kept

    def _choose_type(self, m, valid, hashed):
        """What the hash covers that RSS uses. Returns it, beside the hashes, and a Value: registers were written."""
        write = self.write.payload
        types = Signal(RSS_CONTROL.fields["types"].width, init=DEFAULT_HASH_TYPES)
        field = RSS_CONTROL.fields["types"]
        sets = Signal()
        m.d.comb += sets.eq(self._writes("RSS_CONTROL"))
        with m.If(sets):
            m.d.sync += types.eq(write.data[field.offset:field.offset + field.width])

        flow = self.flow.payload
        found = [Signal(HashType, name=f"hash_type_{n}") for n in range(1, hashed + 1)]
        with m.If(valid[0]):
            m.d.sync += found[0].eq(HashType.NONE)
            for is_version, of_addresses, tcp, udp in (
                    (~flow.ipv6, HashType.IPV4, HashType.TCP_IPV4, HashType.UDP_IPV4),
                    (flow.ipv6, HashType.IPV6, HashType.TCP_IPV6, HashType.UDP_IPV6)):
                with m.If(is_version & types[of_addresses]):
                    m.d.sync += found[0].eq(of_addresses)
                for is_kind, hash_type in ((flow.tcp, tcp), (flow.udp, udp)):
                    with m.If(is_version & is_kind & types[hash_type]):
                        m.d.sync += found[0].eq(hash_type)
        for n in range(1, hashed):
            with m.If(valid[n]):
                m.d.sync += found[n].eq(found[n - 1])
        return found[-1], sets

    def _spread(self, m, valid, hashed, hashes, hash_type):
        """The hash that RSS uses, and its entry of the indirection table, at the end of the lookup."""
        write = self.write.payload
        channel_bits = exact_log2(self.config.channels)
        enabled, sets_enabled, sets_entry = Signal(), Signal(), Signal()
        index_bits = exact_log2(RSS_INDIRECTION_ENTRIES)
        first = indirection_register(0)
        m.submodules.indirection = table = SmallRam(shape=channel_bits, depth=RSS_INDIRECTION_ENTRIES)
        m.d.comb += [
            sets_enabled.eq(self._writes("RSS_CONTROL")),
            sets_entry.eq(self.write.valid & (write.address[2 + index_bits:] == first >> 2 + index_bits)),
            table.write_en.eq(sets_entry), table.write_addr.eq(write.address[2:]), table.write_data.eq(write.data),
        ]
        with m.If(sets_enabled):
            m.d.sync += enabled.eq(write.data[RSS_CONTROL.fields["enable"].offset])

        # Stage 1: which of the hashes. Stage 2: the entry. Then both wait for the rule.
        has_ports = Cat(hash_type == of_ports for of_ports in (
            HashType.TCP_IPV4, HashType.UDP_IPV4, HashType.TCP_IPV6, HashType.UDP_IPV6)).any()
        chosen = [(Signal(WORD_BITS, name=f"hash_{n}"), Signal(HashType, name=f"type_{n}")) for n in range(4)]
        with m.If(valid[hashed]):
            m.d.sync += [
                chosen[0][0].eq(Mux(hash_type == HashType.NONE, 0, Mux(has_ports, hashes.flow, hashes.addresses))),
                chosen[0][1].eq(hash_type),
            ]
        for n in range(1, 4):
            with m.If(valid[hashed + n]):
                m.d.sync += [later.eq(earlier) for earlier, later in zip(chosen[n - 1], chosen[n], strict=True)]
        m.d.comb += table.read_addr.eq(chosen[0][0])
        entries = [Signal(channel_bits, name=f"entry_{n}") for n in range(3)]
        with m.If(valid[hashed + 1]):
            m.d.sync += entries[0].eq(table.read_data)
        for n in range(1, 3):
            with m.If(valid[hashed + 1 + n]):
                m.d.sync += entries[n].eq(entries[n - 1])
        hash_value, hash_type = chosen[-1]
        return enabled & (hash_type != HashType.NONE), entries[-1], hash_value, hash_type, sets_entry | sets_enabled

    def _take_writes(self, m):
        """What is written to the rules. A write is stored `_SETTLE_CYCLES` after it, when the lookups have left that
        saw the rule that was there; so never while its words are read."""
        write = self.write.payload
        names = (*(f"FLOW_RULE_KEY_{n}" for n in range(FLOW_KEY_WORDS)), "FLOW_RULE_COMMIT")
        places = self._writes("FLOW_RULE_PLACE")
        selects = Cat(self._writes(name) for name in names)
        written = _Written(self.config.flow_rules)
        taken = [Signal(name=f"written_{n}") for n in range(1, _SETTLE_CYCLES + 2)]
        which = Signal(len(names), name="written_word")
        m.d.sync += [taken[0].eq(places | selects.any()),
                     *(later.eq(earlier) for earlier, later in pairwise(taken))]
        with m.If(places | selects.any()):
            m.d.sync += [which.eq(selects), written.data.eq(write.data)]
        with m.If(places):
            m.d.sync += written.place.eq(write.data)
        m.d.comb += [
            written.takes_out.eq(taken[0]),
            written.stores.eq(which & taken[_SETTLE_CYCLES - 1].replicate(len(names))),
            written.commits.eq(which[-1] & taken[_SETTLE_CYCLES]),
            written.active.eq(places | selects.any() | Cat(taken).any()),
        ]
        return written

    def _find_candidate(self, m, valid, flow_hash, is_udp, written):
        """The first place of both buckets that holds the flow's fingerprint: whether there is one, and its number."""
        buckets = self.config.flow_rules // RULES_PER_BUCKET // FLOW_TABLES
        bucket_bits, slot_bits = exact_log2(buckets), exact_log2(RULES_PER_BUCKET)
        resets, clearing, cleared = Signal(), Signal(), Signal(bucket_bits)
        m.d.comb += resets.eq(
            self.write.valid & (self.write.payload.address == register("DEVICE_RESET")) & self.write.payload.data[0])
        with m.If(resets):
            m.d.sync += [clearing.eq(1), cleared.eq(0)]
        with m.Elif(clearing):
            m.d.sync += [cleared.eq(cleared + 1), clearing.eq(~cleared.all())]

        fields = FLOW_RULE_COMMIT.fields
        entry = Cat(written.data[fields["valid"].offset], written.data[:FINGERPRINT_BITS])
        place = written.place
        matches = Signal(FLOW_TABLES * RULES_PER_BUCKET, name="fingerprint_matches")
        looked_for = flow_hash[FINGERPRINT_SHIFT:] ^ is_udp  # `flow_fingerprint`
        found_buckets = []
        for table, shift in enumerate(BUCKET_SHIFTS):
            bucket = flow_hash[shift:shift + bucket_bits]
            kept_bucket = Signal(bucket_bits, name=f"bucket_{table}")
            with m.If(valid):
                m.d.sync += kept_bucket.eq(bucket)
            found_buckets.append(kept_bucket)
            for slot in range(RULES_PER_BUCKET):
                m.submodules[f"fingerprints_{table}_{slot}"] = memory = SmallRam(
                    shape=1 + FINGERPRINT_BITS, depth=buckets)
                here = (place[:slot_bits] == slot) & (place[slot_bits + bucket_bits:] == table)
                m.d.comb += [
                    memory.write_en.eq(clearing | ((written.takes_out | written.commits) & here)),
                    memory.write_addr.eq(Mux(clearing, cleared, place[slot_bits:slot_bits + bucket_bits])),
                    memory.write_data.eq(Mux(clearing | written.takes_out, 0, entry)),
                    memory.read_addr.eq(bucket),
                ]
                with m.If(valid):
                    m.d.sync += matches[table * RULES_PER_BUCKET + slot].eq(
                        (memory.read_data[1:] == looked_for) & memory.read_data[0])

        candidate = Signal(exact_log2(self.config.flow_rules), name="candidate")
        for at in reversed(range(len(matches))):
            table, slot = divmod(at, RULES_PER_BUCKET)
            with m.If(matches[at]):
                m.d.comb += candidate.eq(Cat(Const(slot, slot_bits), found_buckets[table], Const(table, 1)))
        return matches.any(), candidate, resets | clearing

    def _compare(self, m, valid, hashed, is_candidate, candidate, flow, written):
        """The candidate's whole key, one cycle from its memory, one in a register, one compared by words."""
        fields, rules = FLOW_RULE_COMMIT.fields, self.config.flow_rules
        target = Signal(_Target, name="written_target")
        m.d.comb += [
            target.channel.eq(written.data[fields["channel"].offset:][:exact_log2(self.config.channels)]),
            target.kind.ipv6.eq(written.data[fields["ipv6"].offset]),
            target.kind.udp.eq(written.data[fields["udp"].offset]),
        ]
        key_word = Cat(written.data[at:at + 8] for at in range(WORD_BITS - 8, -1, -8))  # first byte highest
        keys = []
        for n in range(FLOW_KEY_WORDS + 1):
            is_key = n < FLOW_KEY_WORDS
            memory = Ram(shape=WORD_BITS if is_key else _Target, depth=rules)
            m.submodules[f"key_{n}" if is_key else "targets"] = memory
            m.d.comb += [
                memory.write_en.eq(written.stores[n]), memory.write_addr.eq(written.place),
                memory.write_data.eq(key_word if is_key else target),
                memory.read_en.eq(valid[hashed + 1] & is_candidate), memory.read_addr.eq(candidate),
            ]
            keys.append(memory)

        has_key = [Signal(name=f"has_key_{n}") for n in range(3)]
        rule = Signal(data.StructLayout({
            **{f"word_{n}": WORD_BITS for n in range(FLOW_KEY_WORDS)}, "target": _Target}), name="rule")
        with m.If(valid[hashed + 1]):
            m.d.sync += has_key[0].eq(is_candidate)
        with m.If(valid[hashed + 2]):
            m.d.sync += [has_key[1].eq(has_key[0]), rule.eq(Cat(memory.read_data for memory in keys))]
        equal, channel = Signal(FLOW_KEY_WORDS), Signal(CHANNEL_BITS, name="rule_channel")
        with m.If(valid[hashed + 3]):
            m.d.sync += [
                equal.eq(Cat(rule[f"word_{n}"] == flow[f"word_{n}"] for n in range(FLOW_KEY_WORDS))),
                has_key[2].eq(has_key[1] & (flow.tcp | flow.udp) & (rule.target.kind.ipv6 == flow.ipv6)
                              & (rule.target.kind.udp == flow.udp)),
                channel.eq(rule.target.channel),
            ]
        return equal.all() & has_key[2], channel


class _Written:
    """A write to a rule on its way to the memories: signals."""

    def __init__(self, rules):
        self.data, self.place = Signal(32, name="written_data"), Signal(exact_log2(rules), name="written_place")
        self.takes_out, self.commits = Signal(name="takes_rule_out"), Signal(name="commits_rule")
        self.stores = Signal(FLOW_KEY_WORDS + 1, name="stores_word")
        self.active = Signal(name="writes_rule")
