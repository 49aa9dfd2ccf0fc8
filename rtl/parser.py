"""What a received frame is: its headers, their checksums, the address filter, and the channel that it goes to."""

# Ref: IEEE 802.3 §3.2, 802.1Q §9.6; RFC 791 §3.1; RFC 8200 §3, §8.1; RFC 9293 §3.1; RFC 768; RFC 1071 §1

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2, exact_log2

from nic_model.contract import MAX_FRAME_BYTES, RAW_CHANNEL, HashType, NicConfig, RxFilter, RxInfo, register
from nic_model.contract.protocols import ETHERNET_HEADER_BYTES
from rtl.header_fields import (
    FRAME_LENGTH_BITS,
    L3_BITS,
    L4_BITS,
    Edges,
    Flow,
    Units,
    capture_flow,
    choose_fields,
    find_places,
    judge_headers,
    keep_header,
    walk_extensions,
)
from rtl.interfaces import CHANNEL_BITS, CountAmount, RegisterWrite, Strobe, lane_bits
from rtl.mac_rx import rx_row
from rtl.primitives import SmallRam
from rtl.steering import HASH_TYPE_BITS, Steering, steering_latency
from rtl.toeplitz import WORD_BITS

INFO_BITS = 16

CHECKSUM_BITS = 16

DELAY_ROWS = 32
"""Places where rows, and the verdicts of frames, wait for the channel: more than the parser has stages."""

FOUND_STAGE = 5
"""Where the headers are judged."""

_ALL_ONES = 0xFFFF

# What stands beside a frame's last row, but for what steering says: see `parsed_row`.
_Judgement = data.StructLayout({
    "length": FRAME_LENGTH_BITS, "info": INFO_BITS, "passes": 1, "is_ip": 1, "l3": L3_BITS, "l4": L4_BITS,
    "checksum": CHECKSUM_BITS,
})


def parsed_row(config: NicConfig) -> data.StructLayout:
    """A row as `rx_row` has it; with `last`, what the parser says of the whole frame: its length in bytes, whether that
    is too `short` or too `long` for a frame, RxInfo bits, whether the address filter lets it in, and the channel that
    it goes to. `checksum` is the raw sum with RxInfo.RAW_SUM, else 0. `l3` and `l4` are where the IP header and what is
    behind the IP headers begin, in 16-bit words from the frame's first byte: `l3` means something with IPV4 or IPV6,
    `l4` with TCP or UDP. `hash` is the Toeplitz hash over what `hash_type`, a HashType, says, 0 with NONE."""
    return data.StructLayout({
        **{name: field.shape for name, field in rx_row(config)},
        "length": FRAME_LENGTH_BITS, "short": 1, "long": 1, "info": INFO_BITS, "passes": 1, "channel": CHANNEL_BITS,
        "checksum": CHECKSUM_BITS, "l3": L3_BITS, "l4": L4_BITS, "hash": WORD_BITS, "hash_type": HASH_TYPE_BITS,
    })


def parser_latency(config: NicConfig) -> int:
    """Cycles from a row to the same row with its verdict."""
    return FOUND_STAGE + steering_latency(config) + 1


class Parser(wiring.Component):
    """Parses frames, verifies IPv4, TCP and UDP checksums, filters by destination address, and steers.

    Enters: `row`, a row in each cycle if need be. Leaves: `parsed`, the same rows `latency` cycles later, with the
    frame's verdict beside its last row. That is 15 cycles with a MAC of 8 or 16 bytes, 14 with 32, 13 with 64:
    5 until all headers are judged, and then what steering takes. The sums are ready before.

    A row's part in the sums depends on its own bytes and on those before it only; so the stages move in step and
    nothing ever waits. The rows themselves stay in a small memory meanwhile.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes`, `mac_bytes`, `channels` and `flow_rules` are used.

    Members
    -------
    row : rows of `rx_row`.
    write : register writes, for MAC_ADDRESS, RX_FILTER, RSS and flow rules.
    parsed : rows of `parsed_row`.
    count_steered_rule, count_steered_rss : strobes; frames that are let in.
    flow : of a device with a control port: of each frame that has one, when its headers have been judged.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "row": In(Strobe(rx_row(config))),
            "write": In(Strobe(RegisterWrite)),
            "parsed": Out(Strobe(parsed_row(config))),
            **{f"count_steered_{name}": Out(Strobe(CountAmount)) for name in ("rule", "rss")},
            **({"flow": Out(Strobe(Flow))} if config.flows else {}),
            "active": Out(1),
        })

    @property
    def latency(self) -> int:
        """Cycles from a row to the same row with its verdict."""
        return parser_latency(self.config)

    @property
    def _words(self) -> int:
        return self.config.host_bytes // 2

    @property
    def _adder_stages(self) -> int:
        return -(-exact_log2(self._words) // 2)

    def elaborate(self, platform):
        m = Module()
        m.submodules.steering = steering = Steering(self.config)
        connect(m, flipped(self.write), steering.write)
        # valid[n]: the registers of stage n hold a row, and what is known of its frame by then.
        valid = [self.row.valid, *(Signal(name=f"valid_{n}") for n in range(1, self.latency)), self.parsed.valid]
        for n in range(1, self.latency + 1):
            m.d.sync += valid[n].eq(valid[n - 1])

        def carry(source, name, first_stage, last_stage, of=None):
            """`source`, of the stage before `first_stage`, in registers of each stage to the last: stage -> Value.
            `of`: it is carried for those rows only that have that bit in each stage."""
            carried = {first_stage - 1: source}
            for n in range(first_stage, last_stage + 1):
                carried[n] = Signal.like(source, name=f"{name}_{n}")
                with m.If(valid[n - 1] if of is None else valid[n - 1] & of[n - 1]):
                    m.d.sync += carried[n].eq(carried[n - 1])
            return carried

        row = self.row.payload
        added = 5 + self._adder_stages  # the stage that holds a row's sums
        is_first = carry(row.first, "first", 1, added)
        is_last = carry(row.last, "last", 1, self.latency - 1)
        row_data = carry(row.data, "data", 1, 5)
        count = carry(row.count, "count", 1, 4)

        # Headers.
        number, early, window, tagged = keep_header(m, self.config, row, valid[0])
        number, early = carry(number, "number", 2, 4), carry(early, "early", 2, added)
        passes, sets_register = self._filter(m, valid)
        fields = choose_fields(m, valid[1] & early[1], window, tagged)
        units = Units(m, valid[1] & early[1], row_data[1], tagged)
        walk = walk_extensions(m, valid[2] & early[2], fields, units, number[2])
        places = find_places(m, valid[2] & early[2], fields, walk)
        length = Signal(FRAME_LENGTH_BITS)
        with m.If(valid[2]):
            m.d.sync += length.eq((number[2] << lane_bits(self.config)) + count[2])
        found, pseudo, places_4 = judge_headers(m, valid, early, is_last, places, length, passes)
        edges = Edges(m, valid[3], early[3], self.config, places, number[3])
        flow = capture_flow(m, valid[4] & early[4], self.config, row_data[4], number[4], places_4, edges, found)
        m.d.comb += [
            steering.flow.valid.eq(valid[FOUND_STAGE] & is_last[FOUND_STAGE] & (found.ipv4 | found.ipv6)),
            steering.flow.payload.eq(flow),
        ]
        if self.config.flows:
            m.d.comb += [self.flow.valid.eq(steering.flow.valid), self.flow.payload.eq(flow)]

        # Sums.
        header_mask, l4_mask, raw_mask, checksum_mask = self._mask(m, valid, early, edges, number[4], count[4])
        zero_words = self._zero_words(m, valid[4] & early[4], row_data[4])
        is_zero = Signal()
        with m.If(valid[5] & early[5]):
            m.d.sync += is_zero.eq(Mux(is_first[5], 0, is_zero) | (checksum_mask & zero_words).any())
        # An IPv4 header, the only one with a sum, ends in early rows.
        has_header = [None, *(valid[n] & early[n] for n in range(1, added + 1))]
        sums = [self._add(m, enable, name, row_data[5], mask, is_first[added])
                for name, mask, enable in (("header", header_mask, has_header), ("l4", l4_mask, valid),
                                           ("raw", raw_mask, valid))]

        # Carries added back in; a sum is right if that leaves 0xffff.
        header_folded, l4_folded, raw_folded = (Signal(17, name=f"{n}_folded") for n in ("header", "l4", "raw"))
        header_right, l4_total, raw_sum, l4_right = Signal(), Signal(18), Signal(CHECKSUM_BITS), Signal()
        pseudo = carry(pseudo, "pseudo", 6, added + 2, of=is_last)[added + 2]
        with m.If(valid[added + 1] & is_last[added + 1]):
            m.d.sync += [folded.eq(total[:16] + total[16:]) for folded, total in zip(
                (header_folded, l4_folded, raw_folded), sums, strict=True)]
        with m.If(valid[added + 2] & is_last[added + 2]):
            m.d.sync += [
                header_right.eq((header_folded == _ALL_ONES) | (header_folded == 2 * _ALL_ONES)),
                l4_total.eq(l4_folded + pseudo), raw_sum.eq(raw_folded[:16] + raw_folded[16]),
            ]
        m.d.comb += l4_right.eq(l4_total[2:16].all() & (l4_total[:2] + l4_total[16:] == 3))
        found = carry(found, "found", FOUND_STAGE + 1, added + 3, of=is_last)[added + 3]
        info = Signal(INFO_BITS)
        m.d.comb += info.eq(_info(
            found=found,
            is_zero=carry(is_zero, "is_zero", 7, added + 3, of=is_last)[added + 3],
            header_right=header_right, l4_right=l4_right,
        ))

        self._join(m, valid, is_last, added + 3, found, info, raw_sum, steering.verdict)
        m.d.comb += self.active.eq(
            Cat(valid).any() | sets_register | steering.active
            | self.count_steered_rule.valid | self.count_steered_rss.valid)
        return m

    def _join(self, m, valid, is_last, judged, found, info, raw_sum, verdict):
        """The judgement of stage `judged` waits for the channel; both meet the row."""
        parsed = self.parsed.payload
        m.submodules.delay = delay = SmallRam(shape=rx_row(self.config), depth=DELAY_ROWS)
        m.submodules.judgements = judgements = SmallRam(shape=_Judgement, depth=DELAY_ROWS)
        judgement = Signal(_Judgement)
        needs_sum = ~(found.tcp | found.udp)
        m.d.comb += [
            delay.write_en.eq(valid[0]), Value.cast(delay.write_data).eq(self.row.payload),
            judgement.length.eq(found.length), judgement.info.eq(info), judgement.passes.eq(found.passes),
            judgement.is_ip.eq(found.ipv4 | found.ipv6), judgement.l3.eq(found.l3), judgement.l4.eq(found.l4),
            judgement.checksum.eq(raw_sum & needs_sum.replicate(CHECKSUM_BITS)),
            judgements.write_en.eq(valid[judged] & is_last[judged]), judgements.write_data.eq(judgement),
        ]
        last_stage = self.latency - 1
        ends = Signal()
        m.d.comb += ends.eq(valid[last_stage] & is_last[last_stage])
        for memory, enters, leaves in ((delay, valid[0], valid[last_stage]), (judgements, judgements.write_en, ends)):
            with m.If(enters):
                m.d.sync += memory.write_addr.eq(memory.write_addr + 1)
            with m.If(leaves):
                m.d.sync += memory.read_addr.eq(memory.read_addr + 1)

        delayed = data.View(rx_row(self.config), delay.read_data)
        at_end = data.View(_Judgement, judgements.read_data)
        too_short, too_long = at_end.length < ETHERNET_HEADER_BYTES, at_end.length > MAX_FRAME_BYTES
        with m.If(valid[last_stage]):
            m.d.sync += [parsed[name].eq(delayed[name]) for name, _ in rx_row(self.config)]
            m.d.sync += [parsed[name].eq(at_end[name]) for name in ("length", "info", "passes", "checksum", "l3", "l4")]
            m.d.sync += [
                parsed.short.eq(too_short), parsed.long.eq(too_long),
                parsed.channel.eq(Mux(at_end.is_ip, verdict.channel, RAW_CHANNEL)),
                parsed.hash.eq(verdict.hash & at_end.is_ip.replicate(WORD_BITS)),
                parsed.hash_type.eq(Mux(at_end.is_ip, verdict.hash_type, HashType.NONE)),
            ]
        let_in = ends & at_end.is_ip & at_end.passes & ~delayed.bad & ~too_short & ~too_long
        counts = self.count_steered_rule.valid | self.count_steered_rss.valid
        for strobe, steered in ((self.count_steered_rule, verdict.by_rule), (self.count_steered_rss, verdict.by_hash)):
            with m.If(ends | counts):
                m.d.sync += strobe.valid.eq(let_in & steered)
            m.d.comb += strobe.payload.amount.eq(1)

    def _filter(self, m, valid):
        """Stages 1 to 3: whether the frame's destination address is let in. The compares take two stages."""
        address = Signal(48)
        rx_filter = Signal(max(RxFilter).bit_length())
        write = self.write.payload
        sets = Signal(3)
        m.d.comb += sets.eq(Cat(
            self.write.valid & (write.address == register(name))
            for name in ("MAC_ADDRESS_LO", "MAC_ADDRESS_HI", "RX_FILTER")
        ))
        with m.If(sets[0]):
            m.d.sync += address[:32].eq(write.data)
        with m.If(sets[1]):
            m.d.sync += address[32:].eq(write.data)
        with m.If(sets[2]):
            m.d.sync += rx_filter.eq(write.data)

        destination = self.row.payload.data[:48]
        parts = [slice(start, start + 12) for start in range(0, 48, 12)]
        is_own, is_broadcast = Signal(len(parts)), Signal(len(parts))
        is_group = Signal()
        with m.If(valid[0] & self.row.payload.first):
            m.d.sync += [
                is_own.eq(Cat(destination[part] == address[part] for part in parts)),
                is_broadcast.eq(Cat(destination[part].all() for part in parts)),
                is_group.eq(destination[0]),
            ]
        passes_2, passes_3 = Signal(), Signal()
        with m.If(valid[1]):
            m.d.sync += passes_2.eq(
                is_own.all() | _has(rx_filter, RxFilter.PROMISCUOUS)
                | (_has(rx_filter, RxFilter.BROADCAST) & is_broadcast.all())
                | (_has(rx_filter, RxFilter.MULTICAST) & is_group))
        with m.If(valid[2]):
            m.d.sync += passes_3.eq(passes_2)
        return passes_3, sets.any()

    def _mask(self, m, valid, early, edges, number, count):
        """Stage 5: which words of the row the header sum takes, which bytes the L4 sum and the raw sum take, and which
        word is the UDP checksum."""
        def behind(edge, lane):
            return edge.passed | (edge.here & (edge.lane <= lane))

        header_mask, l4_mask, raw_mask = (Signal(2 * self._words, name=f"{n}_mask") for n in ("header", "l4", "raw"))
        checksum_mask = Signal(self._words)
        had_end = Signal()
        with m.If(valid[4]):
            m.d.sync += had_end.eq(edges.end.here)
            m.d.sync += [raw_mask[byte].eq((count > byte) & ((number != 0) | (byte >= ETHERNET_HEADER_BYTES)))
                         for byte in range(2 * self._words)]
        with m.If(valid[4] & (early[4] | edges.end.here | had_end)):  # the others do not change in other rows
            for word in range(self._words):
                in_header = behind(edges.l3, word) & ~behind(edges.l4, word)
                in_l4 = ((behind(edges.addresses, word) & ~behind(edges.addresses_end, word))
                         | behind(edges.l4, word))
                m.d.sync += checksum_mask[word].eq(edges.udp_checksum.here & (edges.udp_checksum.lane == word))
                for byte in (2 * word, 2 * word + 1):
                    m.d.sync += [header_mask[byte].eq(in_header), l4_mask[byte].eq(in_l4 & ~behind(edges.end, byte))]
        return header_mask, l4_mask, raw_mask, checksum_mask

    def _zero_words(self, m, valid, row_data):
        """Stage 5: which words of the row are zero."""
        zero_words = Signal(self._words)
        with m.If(valid):
            m.d.sync += zero_words.eq(Cat(row_data.word_select(word, 16) == 0 for word in range(self._words)))
        return zero_words

    def _add(self, m, valid, name, row_data, mask, is_first):
        """Stages 6 and on: adds a row's big-endian words, but for the bytes out of `mask`, up to four numbers a stage;
        then those of a frame's rows."""
        def byte(lane):
            return row_data.word_select(lane, 8) & mask[lane].replicate(8)

        numbers = [Cat(byte(lane + 1), byte(lane)) for lane in range(0, 2 * self._words, 2)]
        stage = 5
        while len(numbers) > 1:
            sums = [Signal(len(numbers[0]) + 2, name=f"{name}_sum_{stage + 1}_{n // 4}")
                    for n in range(0, len(numbers), 4)]
            with m.If(valid[stage]):
                for n, total in enumerate(sums):
                    m.d.sync += total.eq(sum(numbers[4 * n:4 * n + 4]))
            numbers, stage = sums, stage + 1
        total = Signal(16 + ceil_log2(MAX_FRAME_BYTES), name=f"{name}_sum")
        with m.If(valid[stage]):
            m.d.sync += total.eq(Mux(is_first, 0, total) + numbers[0])
        return total


def _has(register_bits, flag):
    return (register_bits & int(flag)).any()


def _info(*, found, is_zero, header_right, l4_right):
    """RxInfo bits of a frame."""
    has_l4 = found.tcp | found.udp
    # RFC 768: "An all zero transmitted checksum value means that the transmitter generated no checksum"
    l4_good = l4_right | (found.udp & found.ipv4 & is_zero)
    bits = {
        RxInfo.IPV4: found.ipv4, RxInfo.IPV6: found.ipv6, RxInfo.TCP: found.tcp, RxInfo.UDP: found.udp,
        RxInfo.L3_CHECKSUM_OK: found.ipv4 & header_right,
        RxInfo.L4_CHECKSUM_OK: has_l4 & l4_good,
        RxInfo.CHECKSUM_BAD: (found.ipv4 & ~header_right) | (has_l4 & ~l4_good),
        RxInfo.VLAN: found.tagged, RxInfo.FRAGMENT: found.fragment, RxInfo.RAW_SUM: ~has_l4,
    }
    return Cat(bits[RxInfo(1 << n)] for n in range(len(bits)))
