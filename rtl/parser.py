"""What a received frame is: Ethernet, 802.1Q, IP, TCP and UDP headers, their checksums, and the address filter."""

# Ref: IEEE 802.3 §3.2, 802.1Q §9.6; RFC 791 §3.1; RFC 8200 §3, §8.1; RFC 9293 §3.1; RFC 768; RFC 1071 §1

import functools
import operator

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from nic_model.contract import MAX_FRAME_BYTES, RAW_CHANNEL, NicConfig, RxFilter, RxInfo, register
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV4_TOTAL_LENGTH_OFFSET,
    IPV6_HEADER_BYTES,
    IPV6_PAYLOAD_LENGTH_OFFSET,
    TCP_HEADER_BYTES,
    UDP_CHECKSUM_OFFSET,
    UDP_HEADER_BYTES,
    VLAN_TAG_BYTES,
    EtherType,
    IpProtocol,
)
from rtl.interfaces import CHANNEL_BITS, RegisterWrite, Strobe, lane_bits
from rtl.mac_rx import rx_row
from rtl.primitives import SmallRam

FRAME_LENGTH_BITS = 15
"""Of a frame as it came. A frame that is too long shows some length beyond MAX_FRAME_BYTES."""

INFO_BITS = 16

DELAY_ROWS = 16
"""Places where rows wait for their frame's verdict: more than the parser has stages."""

_ETHERTYPE_OFFSET = ETHERNET_HEADER_BYTES - 2
_IPV4_FRAGMENT_OFFSET = 6
_IPV4_FRAGMENT_BITS = 14  # more fragments, and the fragment's offset
_IPV4_PROTOCOL_OFFSET = 9
_IPV4_ADDRESSES_OFFSET = 12
_IPV6_NEXT_HEADER_OFFSET = 6
_IPV6_ADDRESSES_OFFSET = 8
_KEPT = range(_ETHERTYPE_OFFSET, ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES + _IPV4_PROTOCOL_OFFSET + 1)
"""Header bytes that the parser keeps of each frame."""

_ALL_ONES = 0xFFFF


def parsed_row(config: NicConfig) -> data.StructLayout:
    """A row as `rx_row` has it; with `last`, what the parser says of the whole frame: its length in bytes, whether that
    is too `short` or too `long` for a frame, RxInfo bits, whether the address filter lets it in, and the channel that
    it goes to; a hash of addresses and ports; and where the IP header and what follows it begin, in 16-bit words."""
    return data.StructLayout({
        **{name: field.shape for name, field in rx_row(config)},
        "length": FRAME_LENGTH_BITS, "short": 1, "long": 1, "info": INFO_BITS, "passes": 1, "channel": CHANNEL_BITS,
        "hash": 32, "l3": 4, "l4": 6,
    })


def steer(info):
    """Channel that a frame with these RxInfo bits goes to: RAW_CHANNEL has them all."""
    return Const(RAW_CHANNEL, CHANNEL_BITS)


# Header fields of the frame, once the rows that hold them have passed; before that, of no consequence.
_Fields = data.StructLayout({
    "tagged": 1, "ipv4": 1, "ipv6": 1, "header_words": 4, "length": 16, "fragment": 1, "protocol": 8,
})

# Where a frame's parts begin and end, in 16-bit words from its first; `end` and `l4_bytes` are in bytes.
_Places = data.StructLayout({
    "tagged": 1, "ipv4": 1, "ipv6": 1, "fragment": 1, "tcp": 1, "udp": 1, "protocol": 8, "length_fits": 1,
    "l3": 4, "addresses": 4, "addresses_end": 5, "l4": 6, "end": 17, "l4_bytes": 16,
})

# What is known of a frame at its last row but for the checksums.
_Found = data.StructLayout({
    "length": FRAME_LENGTH_BITS, "passes": 1, "tagged": 1, "ipv4": 1, "ipv6": 1, "fragment": 1, "tcp": 1, "udp": 1,
    "l3": 4, "l4": 6,
})


class Parser(wiring.Component):
    """Parses frames, verifies IPv4, TCP and UDP checksums, and filters by destination address.

    Enters: `row`, a row in each cycle if need be. Leaves: `parsed`, the same rows `latency` cycles later (11 at a host
    bus of 16 or 32 bytes, 12 at 64), with the frame's verdict beside its last row.

    A row's part in the sums depends on its own bytes and on those before it only; so the stages move in step and
    nothing ever waits. The rows themselves stay in a small memory meanwhile.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` is used.

    Members
    -------
    row : rows of `rx_row`.
    write : register writes, for MAC_ADDRESS and RX_FILTER.
    parsed : rows of `parsed_row`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "row": In(Strobe(rx_row(config))),
            "write": In(Strobe(RegisterWrite)),
            "parsed": Out(Strobe(parsed_row(config))),
            "active": Out(1),
        })

    @property
    def latency(self) -> int:
        """Cycles from a row to the same row with its verdict."""
        return 9 + self._adder_stages

    @property
    def _words(self) -> int:
        return self.config.host_bytes // 2

    @property
    def _adder_stages(self) -> int:
        return -(-exact_log2(self._words) // 2)

    def elaborate(self, platform):
        m = Module()
        # valid[n]: the registers of stage n hold a row, and what is known of its frame by then.
        valid = [self.row.valid, *(Signal(name=f"valid_{n}") for n in range(1, self.latency)), self.parsed.valid]
        for n in range(1, self.latency + 1):
            m.d.sync += valid[n].eq(valid[n - 1])

        def carry(source, name, first_stage, last_stage):
            """`source`, of the stage before `first_stage`, in registers of each stage to the last: stage -> Value."""
            carried = {first_stage - 1: source}
            for n in range(first_stage, last_stage + 1):
                carried[n] = Signal.like(source, name=f"{name}_{n}")
                with m.If(valid[n - 1]):
                    m.d.sync += carried[n].eq(carried[n - 1])
            return carried

        row = self.row.payload
        added = 5 + self._adder_stages  # the stage that holds a row's sums
        is_first = carry(row.first, "first", 1, added)
        is_last = carry(row.last, "last", 1, added + 3)
        row_data = carry(row.data, "data", 1, 5)
        count = carry(row.count, "count", 1, 2)
        number, window = self._keep_header(m, valid[0])
        number = carry(number, "number", 2, 3)

        passes, sets_register = self._filter(m, valid)
        fields = self._choose_fields(m, valid[1], window)
        places = self._find_places(m, valid[2], fields)
        length = Signal(FRAME_LENGTH_BITS)
        with m.If(valid[2]):
            m.d.sync += length.eq((number[2] << lane_bits(self.config)) + count[2])
        found, pseudo = self._judge_headers(m, valid[3], places, length, passes)
        header_mask, l4_mask, checksum_mask, hash_mask = self._mask(m, valid, places, number[3])

        zero_words = self._zero_words(m, valid[4], row_data[4])
        is_zero = Signal()
        with m.If(valid[5]):
            m.d.sync += is_zero.eq(Mux(is_first[5], 0, is_zero) | (checksum_mask & zero_words).any())
        hash_words = [row_data[5].word_select(word, 16) & hash_mask[word].replicate(16) for word in range(self._words)]
        folded = Signal(32)
        with m.If(valid[5]):
            fold = Cat(functools.reduce(operator.xor, hash_words[half::2]) for half in (0, 1))
            m.d.sync += folded.eq(Mux(is_first[5], 0, folded) ^ fold)
        header_sum = self._add(m, valid, "header", row_data[5], header_mask, is_first[added])
        l4_sum = self._add(m, valid, "l4", row_data[5], l4_mask, is_first[added])

        # Carries added back in; a sum is right if that leaves 0xffff.
        header_folded, l4_folded, l4_total = Signal(17), Signal(17), Signal(18)
        header_right, l4_right = Signal(), Signal()
        pseudo = carry(pseudo, "pseudo", 5, added + 2)[added + 2]
        with m.If(valid[added + 1] & is_last[added + 1]):
            m.d.sync += [
                header_folded.eq(header_sum[:16] + header_sum[16:]),
                l4_folded.eq(l4_sum[:16] + l4_sum[16:]),
            ]
        with m.If(valid[added + 2] & is_last[added + 2]):
            m.d.sync += [
                header_right.eq((header_folded == _ALL_ONES) | (header_folded == 2 * _ALL_ONES)),
                l4_total.eq(l4_folded + pseudo),
            ]
        m.d.comb += l4_right.eq(l4_total[2:16].all() & (l4_total[:2] + l4_total[16:] == 3))

        # The verdict meets the row.
        m.submodules.delay = delay = SmallRam(shape=rx_row(self.config), depth=DELAY_ROWS)
        m.d.comb += [delay.write_en.eq(valid[0]), Value.cast(delay.write_data).eq(row)]
        delayed = data.View(rx_row(self.config), delay.read_data)
        with m.If(valid[0]):
            m.d.sync += delay.write_addr.eq(delay.write_addr + 1)
        found = carry(found, "found", 5, added + 3)[added + 3]
        folded = carry(folded, "folded", 7, added + 3)[added + 3]
        info = Signal(INFO_BITS)
        m.d.comb += info.eq(_info(
            found=found,
            is_zero=carry(is_zero, "is_zero", 7, added + 3)[added + 3],
            header_right=header_right, l4_right=l4_right,
        ))
        with m.If(valid[added + 3]):
            m.d.sync += delay.read_addr.eq(delay.read_addr + 1)
            m.d.sync += [self.parsed.payload[name].eq(delayed[name]) for name, _ in rx_row(self.config)]
            m.d.sync += [
                self.parsed.payload.length.eq(found.length),
                self.parsed.payload.short.eq(found.length < ETHERNET_HEADER_BYTES),
                self.parsed.payload.long.eq(found.length > MAX_FRAME_BYTES),
                self.parsed.payload.info.eq(info), self.parsed.payload.passes.eq(found.passes),
                self.parsed.payload.channel.eq(steer(info)), self.parsed.payload.hash.eq(folded),
                self.parsed.payload.l3.eq(found.l3), self.parsed.payload.l4.eq(found.l4),
            ]
        m.d.comb += self.active.eq(Cat(valid).any() | sets_register)
        return m

    def _keep_header(self, m, valid):
        """Stage 1: number of the row in its frame, and header bytes by their offsets."""
        row = self.row.payload
        width = self.config.host_bytes
        number = Signal(ceil_log2(MAX_FRAME_BYTES // width + 2), name="number_1")
        following = Signal(number.shape())
        m.d.comb += following.eq(number + ~number.all())  # a frame that is too long must not start anew
        with m.If(valid):
            m.d.sync += number.eq(Mux(row.first, 0, following))
        window = {}
        for offset in _KEPT:
            window[offset] = Signal(8, name=f"byte_{offset}")
            row_number = offset // width
            passes_by = row.first if row_number == 0 else ~row.first & (number == row_number - 1)
            with m.If(valid & passes_by):
                m.d.sync += window[offset].eq(row.data.word_select(offset % width, 8))
        return number, window

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

    def _choose_fields(self, m, valid, window):
        """Stage 2: the IP header's fields, from where they are with and without a VLAN tag."""
        fields = Signal(_Fields)
        tagged, ethertype = Signal(), Signal(16)

        def u8(offset):
            """Byte of the IP header."""
            untagged = ETHERNET_HEADER_BYTES + offset
            return Mux(tagged, window[untagged + VLAN_TAG_BYTES], window[untagged])

        def u16(offset):
            return Cat(u8(offset + 1), u8(offset))

        outer = Cat(window[_ETHERTYPE_OFFSET + 1], window[_ETHERTYPE_OFFSET])
        is_ipv6 = Signal()
        m.d.comb += [tagged.eq(outer == EtherType.VLAN), ethertype.eq(u16(-2)), is_ipv6.eq(ethertype == EtherType.IPV6)]
        version_and_length = u8(0)
        with m.If(valid):
            m.d.sync += [
                fields.tagged.eq(tagged),
                fields.ipv4.eq((ethertype == EtherType.IPV4) & (version_and_length[4:] == 4)
                               & (version_and_length[:4] >= IPV4_HEADER_BYTES // 4)),
                fields.ipv6.eq(is_ipv6 & (version_and_length[4:] == 6)),
                fields.header_words.eq(version_and_length[:4]),
                fields.length.eq(Mux(is_ipv6, u16(IPV6_PAYLOAD_LENGTH_OFFSET), u16(IPV4_TOTAL_LENGTH_OFFSET))),
                fields.fragment.eq(u16(_IPV4_FRAGMENT_OFFSET)[:_IPV4_FRAGMENT_BITS].any()),
                fields.protocol.eq(Mux(is_ipv6, u8(_IPV6_NEXT_HEADER_OFFSET), u8(_IPV4_PROTOCOL_OFFSET))),
            ]
        return fields

    def _find_places(self, m, valid, fields):
        """Stage 3: offsets of the headers, the addresses and the end."""
        places = Signal(_Places)
        l3 = Mux(fields.tagged, (ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES) // 2, ETHERNET_HEADER_BYTES // 2)
        header_bytes = Mux(fields.ipv6, IPV6_HEADER_BYTES, fields.header_words << 2)
        outside = Mux(fields.ipv6, IPV6_HEADER_BYTES, 0)  # IPv6 does not count its header
        with m.If(valid):
            m.d.sync += [
                places.tagged.eq(fields.tagged), places.ipv4.eq(fields.ipv4), places.ipv6.eq(fields.ipv6),
                places.protocol.eq(fields.protocol),
                places.fragment.eq(Mux(
                    fields.ipv6, fields.protocol == IpProtocol.IPV6_FRAGMENT, fields.fragment)),
                places.tcp.eq(fields.protocol == IpProtocol.TCP),
                places.udp.eq(fields.protocol == IpProtocol.UDP),
                places.l3.eq(l3),
                places.addresses.eq(l3 + Mux(fields.ipv6, _IPV6_ADDRESSES_OFFSET, _IPV4_ADDRESSES_OFFSET)[1:]),
                places.addresses_end.eq(l3 + Mux(fields.ipv6, IPV6_HEADER_BYTES, IPV4_HEADER_BYTES)[1:]),
                places.l4.eq(l3 + header_bytes[1:]),
                places.end.eq((l3 << 1) + outside + fields.length),
                places.length_fits.eq(fields.ipv6 | (fields.length >= fields.header_words << 2)),
                places.l4_bytes.eq(fields.length - Mux(fields.ipv6, 0, fields.header_words << 2)),
            ]
        return places

    def _judge_headers(self, m, valid, places, length, passes):
        """Stage 4: what the headers of the frame are, now that its length is known; and what the pseudo-header adds to
        the addresses' sum. Both mean something at the last row only."""
        found, pseudo = Signal(_Found, name="found_4"), Signal(17, name="pseudo_4")
        whole, is_l4 = Signal(), Signal()
        m.d.comb += [
            whole.eq((places.end <= length) & places.length_fits),
            is_l4.eq(whole & (places.ipv4 | places.ipv6) & ~places.fragment),
        ]
        with m.If(valid):
            m.d.sync += [
                found.length.eq(length), found.passes.eq(passes), found.l3.eq(places.l3), found.l4.eq(places.l4),
                found.tagged.eq(places.tagged & (length >= ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES)),
                found.ipv4.eq(places.ipv4 & whole), found.ipv6.eq(places.ipv6 & whole),
                found.fragment.eq((places.ipv4 | places.ipv6) & whole & places.fragment),
                found.tcp.eq(is_l4 & places.tcp & (places.l4_bytes >= TCP_HEADER_BYTES)),
                found.udp.eq(is_l4 & places.udp & (places.l4_bytes >= UDP_HEADER_BYTES)),
                pseudo.eq(places.l4_bytes + places.protocol),
            ]
        return found, pseudo

    def _mask(self, m, valid, places, number):
        """Stages 4 and 5: which words of the row the header sum takes, which bytes the L4 sum takes, and which word is
        the UDP checksum. Stage 4 compares row numbers, stage 5 lanes."""
        word_bits = exact_log2(self._words)

        # Where an offset lies, seen from a row: in an earlier one, or in this one at a lane.
        edge_layout = data.StructLayout({"passed": 1, "here": 1, "lane": word_bits + 1})

        def edge(name, offset, bits):
            found = Signal(edge_layout, name=f"edge_{name}")
            with m.If(valid[3]):
                m.d.sync += [
                    found.passed.eq(number > offset[bits:]), found.here.eq(number == offset[bits:]),
                    found.lane.eq(offset[:bits]),
                ]
            return found

        def behind(edge, lane):
            return edge.passed | (edge.here & (edge.lane <= lane))

        l3, l4 = edge("l3", places.l3, word_bits), edge("l4", places.l4, word_bits)
        addresses = edge("addresses", places.addresses, word_bits)
        addresses_end = edge("addresses_end", places.addresses_end, word_bits)
        end = edge("end", places.end, word_bits + 1)
        ports_end = edge("ports_end", places.l4 + 2, word_bits)
        checksum = edge("checksum", places.l4 + UDP_CHECKSUM_OFFSET // 2, word_bits)

        header_mask, l4_mask = Signal(2 * self._words), Signal(2 * self._words)
        checksum_mask, hash_mask = Signal(self._words), Signal(self._words)
        with m.If(valid[4]):
            for word in range(self._words):
                in_header = behind(l3, word) & ~behind(l4, word)
                in_l4 = (behind(addresses, word) & ~behind(addresses_end, word)) | behind(l4, word)
                m.d.sync += checksum_mask[word].eq(checksum.here & (checksum.lane == word))
                m.d.sync += hash_mask[word].eq(
                    (behind(addresses, word) & ~behind(addresses_end, word))
                    | (behind(l4, word) & ~behind(ports_end, word)))
                for byte in (2 * word, 2 * word + 1):
                    m.d.sync += [header_mask[byte].eq(in_header), l4_mask[byte].eq(in_l4 & ~behind(end, byte))]
        return header_mask, l4_mask, checksum_mask, hash_mask

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
        RxInfo.VLAN: found.tagged, RxInfo.FRAGMENT: found.fragment,
    }
    return Cat(bits[RxInfo(1 << n)] for n in range(len(bits)))
