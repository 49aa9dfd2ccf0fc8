"""Where the headers of a frame are and what they hold, found in its rows as they pass: stages 1 to 5 of the parser."""

# Ref: IEEE 802.3 §3.2, 802.1Q §9.6; RFC 791 §3.1; RFC 8200 §3, §4; RFC 9293 §3.1; RFC 768

from amaranth.hdl import Cat, Const, Mux, Signal
from amaranth.lib import data
from amaranth.utils import ceil_log2, exact_log2

from nic_model.contract import FLOW_KEY_WORDS, MAX_FRAME_BYTES, PARSED_BYTES
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV4_TOTAL_LENGTH_OFFSET,
    IPV6_EXTENSION_UNIT_BYTES,
    IPV6_HEADER_BYTES,
    IPV6_PAYLOAD_LENGTH_OFFSET,
    TCP_HEADER_BYTES,
    UDP_CHECKSUM_OFFSET,
    UDP_HEADER_BYTES,
    VLAN_TAG_BYTES,
    EtherType,
    IpProtocol,
)

FRAME_LENGTH_BITS = 15
"""Of a frame as it came. A frame that is too long shows some length beyond MAX_FRAME_BYTES."""

L3_BITS, L4_BITS = 4, 6
"""Offsets of the IP and L4 headers, in 16-bit words from the frame's first byte."""

_ETHERTYPE_OFFSET = ETHERNET_HEADER_BYTES - 2
_ETHERTYPE_BYTES = {_ETHERTYPE_OFFSET: EtherType.VLAN >> 8, _ETHERTYPE_OFFSET + 1: EtherType.VLAN & 0xFF}
_IPV4_FRAGMENT_OFFSET = 6
_IPV4_FRAGMENT_BITS = 14  # more fragments, and the fragment's offset
_IPV4_PROTOCOL_OFFSET = 9
_IPV4_ADDRESSES_OFFSET = 12
_IPV6_NEXT_HEADER_OFFSET = 6
_IPV6_ADDRESSES_OFFSET = 8
_KEPT = range(_ETHERTYPE_OFFSET, ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES + _IPV4_PROTOCOL_OFFSET + 1)
"""Header bytes that are kept of each frame."""

_EXTENSIONS = (IpProtocol.HOP_BY_HOP, IpProtocol.IPV6_ROUTING, IpProtocol.IPV6_DESTINATION_OPTIONS)
"""Extension headers that are passed over. A fragment header ends the walk."""

_SEGMENTS_LEFT_OFFSET = 3
"""In a routing header."""

_UNIT_WORDS = IPV6_EXTENSION_UNIT_BYTES // 2
_FIRST_UNIT = (ETHERNET_HEADER_BYTES + IPV6_HEADER_BYTES) // IPV6_EXTENSION_UNIT_BYTES
"""The frame's unit in which the IPv6 header ends, without a VLAN tag; with one it is the next."""
_UNTAGGED_LANE = (ETHERNET_HEADER_BYTES + IPV6_HEADER_BYTES) % IPV6_EXTENSION_UNIT_BYTES // 2
_TAGGED_LANE = (_UNTAGGED_LANE + VLAN_TAG_BYTES // 2) % _UNIT_WORDS
"""The word of a unit in which what follows the IPv6 header begins, without and with a VLAN tag."""
_LEFT_BITS = ceil_log2(PARSED_BYTES // IPV6_EXTENSION_UNIT_BYTES)
_LAST_HEADER_WORD = (1 << L4_BITS) - 1 + UDP_CHECKSUM_OFFSET // 2
"""No word behind it is looked for."""

# What a protocol number or a next header means to the parser; nothing set: something else.
Kind = data.StructLayout({"extension": 1, "routing": 1, "fragment": 1, "tcp": 1, "udp": 1})

# Header fields of the frame, once the rows that hold them have passed; before that, of no consequence.
Fields = data.StructLayout({
    "tagged": 1, "ipv4": 1, "ipv6": 1, "header_words": 4, "length": 16, "fragment": 1, "kind": Kind,
})

# Where a frame's parts begin and end, in 16-bit words from its first; `end` is in bytes. `l4_known`: by then the frame
# has shown where its IP headers end, and `kind` is of what is there.
Places = data.StructLayout({
    "tagged": 1, "ipv4": 1, "ipv6": 1, "fragment": 1, "kind": Kind, "length_fits": 1, "source_routed": 1,
    "l3": L3_BITS, "addresses": 4, "addresses_end": 5, "l4": L4_BITS, "l4_known": 1, "end": 17,
})

# What is known of a frame at its last row but for the checksums.
Found = data.StructLayout({
    "length": FRAME_LENGTH_BITS, "passes": 1, "tagged": 1, "ipv4": 1, "ipv6": 1, "fragment": 1, "tcp": 1, "udp": 1,
    "l3": L3_BITS, "l4": L4_BITS,
})

# What the hash covers, in its order, and what flow rules ask for: `word_0` first, its bit 31 first on the wire. IPv4
# has its addresses in words 0 and 1, its ports in word 2; IPv6 has words 0 to 3, 4 to 7 and 8. The others are 0, and so
# are the ports of a frame that is neither TCP nor UDP.
Flow = data.StructLayout({
    **{f"word_{n}": 32 for n in range(FLOW_KEY_WORDS)}, "ipv6": 1, "tcp": 1, "udp": 1,
})


def keep_header(m, config, row, valid):
    """Stage 1: number of the row in its frame; whether it is `early`, one of those with headers or the first behind
    them; header bytes by their offsets; and whether a VLAN tag is there. What all later rows find of the headers is
    what the last early one does, so nobody need look there again."""
    width = config.host_bytes
    behind = _LAST_HEADER_WORD // (width // 2) + 1
    assert PARSED_BYTES // width < behind
    early = Signal(name="early_1")
    number = Signal(ceil_log2(MAX_FRAME_BYTES // width + 2), name="number_1")
    following = Signal(number.shape())
    m.d.comb += following.eq(number + ~number.all())  # a frame that is too long must not start anew
    with m.If(valid):
        m.d.sync += [number.eq(Mux(row.first, 0, following)), early.eq(row.first | (number < behind))]
    window, is_tag = {}, Signal(2)
    for offset in _KEPT:
        window[offset] = Signal(8, name=f"byte_{offset}")
        row_number = offset // width
        passes_by = row.first if row_number == 0 else ~row.first & (number == row_number - 1)
        with m.If(valid & passes_by):
            m.d.sync += window[offset].eq(row.data.word_select(offset % width, 8))
            if offset in _ETHERTYPE_BYTES:
                m.d.sync += is_tag[offset - _ETHERTYPE_OFFSET].eq(
                    row.data.word_select(offset % width, 8) == _ETHERTYPE_BYTES[offset])
    return number, early, window, is_tag.all()


def _kind(number, *, ipv6):
    """Kind of a protocol number, as a Value of the layout's width."""
    is_extension = Cat(number == extension for extension in _EXTENSIONS).any() if ipv6 else Const(0)
    members = {
        "extension": is_extension,
        "routing": number == IpProtocol.IPV6_ROUTING if ipv6 else Const(0),
        "fragment": number == IpProtocol.IPV6_FRAGMENT if ipv6 else Const(0),
        "tcp": number == IpProtocol.TCP, "udp": number == IpProtocol.UDP,
    }
    return Cat(members[name] for name, _ in Kind)


def choose_fields(m, valid, window, tagged):
    """Stage 2: the IP header's fields, from where they are with and without a VLAN tag."""
    fields = Signal(Fields)
    ethertype = Signal(16)

    def chosen(offset, function=lambda byte: byte):
        """A function of a byte of the IP header."""
        untagged = ETHERNET_HEADER_BYTES + offset
        return Mux(tagged, function(window[untagged + VLAN_TAG_BYTES]), function(window[untagged]))

    def u16(offset):
        return Cat(chosen(offset + 1), chosen(offset))

    is_ipv6 = Signal()
    m.d.comb += [ethertype.eq(u16(-2)), is_ipv6.eq(ethertype == EtherType.IPV6)]
    version_and_length = chosen(0)
    with m.If(valid):
        m.d.sync += [
            fields.tagged.eq(tagged),
            fields.ipv4.eq((ethertype == EtherType.IPV4) & (version_and_length[4:] == 4)
                           & (version_and_length[:4] >= IPV4_HEADER_BYTES // 4)),
            fields.ipv6.eq(is_ipv6 & (version_and_length[4:] == 6)),
            fields.header_words.eq(version_and_length[:4]),
            fields.length.eq(Mux(is_ipv6, u16(IPV6_PAYLOAD_LENGTH_OFFSET), u16(IPV4_TOTAL_LENGTH_OFFSET))),
            fields.fragment.eq(u16(_IPV4_FRAGMENT_OFFSET)[:_IPV4_FRAGMENT_BITS].any()),
            fields.kind.eq(Mux(is_ipv6, chosen(_IPV6_NEXT_HEADER_OFFSET, lambda byte: _kind(byte, ipv6=True)),
                               chosen(_IPV4_PROTOCOL_OFFSET, lambda byte: _kind(byte, ipv6=False)))),
        ]
    return fields


class Units:
    """The row's units of 8 bytes as extension headers, if they are such: registers of stage 2.

    A header behind IPv6's begins in word 3 of a unit, or with a VLAN tag in word 1, and is a whole number of units
    long. So its first two bytes lie in one row, and each unit can be decoded before it is known whether it is one.
    """

    def __init__(self, m, valid, row_data, tagged):
        count = len(row_data) // (8 * IPV6_EXTENSION_UNIT_BYTES)

        def byte(word, odd):
            return row_data.word_select(2 * word + odd, 8)

        self.kinds, self.lengths, self.routes = [], [], []
        with m.If(valid):
            for unit in range(count):
                kind = Signal(Kind, name=f"unit_{unit}_kind")
                length, route = Signal(_LEFT_BITS, name=f"unit_{unit}_length"), Signal(name=f"unit_{unit}_route")
                at, tagged_at = _UNIT_WORDS * unit + _UNTAGGED_LANE, _UNIT_WORDS * unit + _TAGGED_LANE
                long = Mux(tagged, byte(tagged_at, 1), byte(at, 1))
                inside = _SEGMENTS_LEFT_OFFSET // 2
                route_at = at + inside
                untagged_route = byte(route_at, 1).any() if route_at < _UNIT_WORDS * count else Const(0)
                m.d.sync += [
                    kind.eq(Mux(tagged, _kind(byte(tagged_at, 0), ipv6=True), _kind(byte(at, 0), ipv6=True))),
                    length.eq(long[:_LEFT_BITS] | long[_LEFT_BITS:].any().replicate(_LEFT_BITS)),
                    route.eq(Mux(tagged, byte(tagged_at + inside, 1).any(), untagged_route)),
                ]
                self.kinds.append(kind)
                self.lengths.append(length)
                self.routes.append(route)
            # Without a tag, the segments that a routing header in the row's last unit has left stand in the next row.
            self.late_route = Signal(name="unit_late_route")
            m.d.sync += self.late_route.eq(~tagged & byte(0, 1).any())


def walk_extensions(m, valid, fields, units, number):
    """Stage 3: goes from header to header behind IPv6's. Returns registers: whether the last has been met, its offset
    in words, its Kind, and whether a routing header has segments left.

    All units of a row in one cycle. Of unit u it must be known whether an extension header begins there; it does if
    one that begins in an earlier unit of the row ends there and names an extension header as the next, or if that was
    known before the row. So the logic is as deep as the row has units, and no deeper.
    """
    count = len(units.kinds)
    first_row, first_unit = divmod(_FIRST_UNIT, count)
    bound = PARSED_BYTES // IPV6_EXTENSION_UNIT_BYTES // count  # rows in which a header may begin

    # From row to row: the header at work, and how many units lie between the next row's first and it.
    walking, left, kind = Signal(name="walk_on"), Signal(_LEFT_BITS, name="walk_left"), Signal(Kind, name="walk_kind")
    known, l4, routed = Signal(name="walk_known"), Signal(L4_BITS, name="walk_l4"), Signal(name="walk_routed")
    last_routes = Signal(name="walk_last_routes")

    begins = Signal(name="walk_begins")
    on, ahead, at_hand = Signal(name="walk_now"), Signal(_LEFT_BITS, name="walk_ahead"), Signal(Kind, name="walk_has")
    m.d.comb += [
        begins.eq(number == first_row),
        on.eq((begins | (walking & (number > first_row))) & (number < bound)),
        ahead.eq(Mux(begins, first_unit + fields.tagged, left)),
        at_hand.eq(Mux(begins, fields.kind, kind)),
    ]

    extends, ends, kinds, routes = [], [], [], []
    leaves, left_then, kind_then = [], [], []
    for unit in range(count):
        here = Signal(name=f"walk_here_{unit}")
        has_kind = Signal(Kind, name=f"walk_kind_{unit}")
        is_extension, is_routing = Signal(name=f"walk_extends_{unit}"), Signal(name=f"walk_routing_{unit}")
        m.d.comb += here.eq(on & (ahead == unit))
        jumps = [(earlier, extends[earlier] & (units.lengths[earlier] == unit - earlier - 1))
                 for earlier in range(unit)]
        m.d.comb += [
            is_extension.eq((here & at_hand.extension)
                            | Cat(jump & units.kinds[earlier].extension for earlier, jump in jumps).any()),
            is_routing.eq((here & at_hand.routing)
                          | Cat(jump & units.kinds[earlier].routing for earlier, jump in jumps).any()),
            has_kind.eq(_any([(here, at_hand)] + [(jump, units.kinds[earlier]) for earlier, jump in jumps])),
        ]
        extends.append(is_extension)
        kinds.append(has_kind)
        ends.append((here & ~at_hand.extension)
                    | Cat(jump & ~units.kinds[earlier].extension for earlier, jump in jumps).any())
        routes.append(is_routing)
        behind = count - 1 - unit
        leaves.append(is_extension & (units.lengths[unit] >= behind))
        left_then.append(units.lengths[unit] - behind)
        kind_then.append(units.kinds[unit])

    passes = on & (ahead >= count)
    ended = Signal(name="walk_ended")
    route_left = Cat(routing & route for routing, route in zip(routes, units.routes, strict=True)).any()
    place = _any([(end, Const(unit, exact_log2(count))) for unit, end in enumerate(ends)])
    m.d.comb += ended.eq(Cat(ends).any())
    with m.If(valid):
        m.d.sync += [
            walking.eq(passes | Cat(leaves).any()),
            left.eq(_any([(passes, (ahead - count)[:_LEFT_BITS]),
                          *((leave, then[:_LEFT_BITS]) for leave, then in zip(leaves, left_then, strict=True))])),
            kind.eq(_any([(passes, at_hand), *zip(leaves, kind_then, strict=True)])),
            known.eq((known & (number > first_row)) | ended),
            last_routes.eq(routes[-1]),
            routed.eq(route_left | ((number > first_row) & (routed | (last_routes & units.late_route)))),
        ]
    l4_kind = Signal(Kind, name="walk_l4_kind")
    with m.If(valid & ended):
        lane = Mux(fields.tagged, _TAGGED_LANE, _UNTAGGED_LANE)
        m.d.sync += [
            l4.eq(Cat(Const(0, exact_log2(_UNIT_WORDS)), place, number) | lane),
            l4_kind.eq(_any(list(zip(ends, kinds, strict=True)))),
        ]
    return known, l4, l4_kind, routed


def _any(choices):
    """The value whose condition holds, of (condition, value) of which at most one does; 0 if none does."""
    values = [(condition, value.as_value() if isinstance(value, data.View) else value) for condition, value in choices]
    width = max(len(value) for _, value in values)
    total = Const(0, width)
    for condition, value in values:
        total = total | (value & condition.any().replicate(len(value)))
    return total


def find_places(m, valid, fields, walk):
    """Stage 3: offsets of the headers, the addresses and the end. `walk` is what `walk_extensions` gave."""
    places, fixed = Signal(Places, name="places"), Signal(Places, name="fixed_places")
    known, l4, kind, routed = walk
    l3 = Mux(fields.tagged, (ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES) // 2, ETHERNET_HEADER_BYTES // 2)
    outside = Mux(fields.ipv6, IPV6_HEADER_BYTES, 0)  # IPv6 does not count its header
    with m.If(valid):
        m.d.sync += [
            fixed.tagged.eq(fields.tagged), fixed.ipv4.eq(fields.ipv4), fixed.ipv6.eq(fields.ipv6),
            fixed.fragment.eq(fields.fragment), fixed.kind.eq(fields.kind), fixed.l3.eq(l3),
            fixed.addresses.eq(l3 + Mux(fields.ipv6, _IPV6_ADDRESSES_OFFSET, _IPV4_ADDRESSES_OFFSET)[1:]),
            fixed.addresses_end.eq(l3 + Mux(fields.ipv6, IPV6_HEADER_BYTES, IPV4_HEADER_BYTES)[1:]),
            fixed.l4.eq(l3 + (fields.header_words << 1)),
            fixed.end.eq((l3 << 1) + outside + fields.length),
            fixed.length_fits.eq(fields.ipv6 | (fields.length >= fields.header_words << 2)),
        ]
    m.d.comb += [
        places.eq(fixed),
        places.l4_known.eq(~fixed.ipv6 | known),
    ]
    with m.If(fixed.ipv6):
        m.d.comb += [
            places.l4.eq(l4), places.kind.eq(kind), places.fragment.eq(known & kind.fragment),
            places.source_routed.eq(routed),
        ]
    return places


def judge_headers(m, valid, early, is_last, places, length, passes):
    """Stages 4 and 5: what the headers of the frame are, now that its length is known; and what the pseudo-header adds
    to the addresses' sum. Both mean something at the last row only. Returns them, and the places at stage 4."""
    judged = Signal(data.StructLayout({
        "whole": 1, "is_l4": 1, "l4_bytes": 18, "length": FRAME_LENGTH_BITS, "passes": 1, "places": Places,
    }), name="judged_4")
    with m.If(valid[3] & early[3]):
        m.d.sync += judged.places.eq(places)
    with m.If(valid[3] & is_last[3]):
        m.d.sync += [
            judged.whole.eq((places.end <= length) & places.length_fits),
            judged.is_l4.eq((places.ipv4 | places.ipv6) & places.l4_known & ~places.source_routed),
            judged.l4_bytes.eq(places.end - (places.l4 << 1)),
            judged.length.eq(length), judged.passes.eq(passes),
        ]
    found, pseudo = Signal(Found, name="found_5"), Signal(17, name="pseudo_5")
    at = judged.places
    l4_bytes, behind_end = judged.l4_bytes[:17], judged.l4_bytes[17]
    fragment = Signal(name="is_fragment")
    is_l4 = judged.whole & judged.is_l4 & ~fragment & ~behind_end
    m.d.comb += fragment.eq(at.fragment & (at.ipv4 | (~behind_end & (l4_bytes >= IPV6_EXTENSION_UNIT_BYTES))))
    with m.If(valid[4] & is_last[4]):
        m.d.sync += [
            found.length.eq(judged.length), found.passes.eq(judged.passes),
            found.tagged.eq(at.tagged & (judged.length >= ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES)),
            found.ipv4.eq(at.ipv4 & judged.whole), found.ipv6.eq(at.ipv6 & judged.whole),
            found.fragment.eq((at.ipv4 | at.ipv6) & judged.whole & fragment),
            found.tcp.eq(is_l4 & at.kind.tcp & (l4_bytes >= TCP_HEADER_BYTES)),
            found.udp.eq(is_l4 & at.kind.udp & (l4_bytes >= UDP_HEADER_BYTES)),
            found.l3.eq(at.l3), found.l4.eq(at.l4),
            pseudo.eq(l4_bytes[:16] + Mux(at.kind.tcp, IpProtocol.TCP, IpProtocol.UDP)),
        ]
    return found, pseudo, at


class Edges:
    """Stage 4: where the frame's parts lie, seen from its row: registers with `passed`, an earlier row; `here`, this
    one; and then `lane`."""

    def __init__(self, m, valid, early, config, places, number):
        word_bits = exact_log2(config.host_bytes // 2)
        layout = data.StructLayout({"passed": 1, "here": 1, "lane": word_bits + 1})

        def edge(name, offset, bits, known=1, enable=valid & early):
            found = Signal(layout, name=f"edge_{name}")
            with m.If(enable):
                m.d.sync += [
                    found.passed.eq((number > offset[bits:]) & known), found.here.eq((number == offset[bits:]) & known),
                    found.lane.eq(offset[:bits]),
                ]
            return found

        self.l3 = edge("l3", places.l3, word_bits)
        self.addresses = edge("addresses", places.addresses, word_bits)
        self.addresses_end = edge("addresses_end", places.addresses_end, word_bits)
        known = places.l4_known
        self.l4 = edge("l4", places.l4, word_bits, known)
        self.destination_port = edge("destination_port", places.l4 + 1, word_bits, known)
        self.udp_checksum = edge("udp_checksum", places.l4 + UDP_CHECKSUM_OFFSET // 2, word_bits, known)
        self.end = edge("end", places.end, word_bits + 1, enable=valid)


def capture_flow(m, valid, config, row_data, number, places, edges, found):
    """Stage 5: what the hash covers, kept as its rows pass; right at the last row. All of it stands at even offsets,
    so in 16-bit words. `number` and `places` are those of stage 4."""
    words = config.host_bytes // 2

    def halfword(lane):
        return Cat(row_data.word_select(2 * lane + 1, 8), row_data.word_select(2 * lane, 8))

    tag_words = VLAN_TAG_BYTES // 2
    ipv4_at = (ETHERNET_HEADER_BYTES + _IPV4_ADDRESSES_OFFSET) // 2
    ipv6_at = (ETHERNET_HEADER_BYTES + _IPV6_ADDRESSES_OFFSET) // 2
    addresses = []
    for place in range((IPV6_HEADER_BYTES - _IPV6_ADDRESSES_OFFSET) // 2):
        kept = Signal(16, name=f"address_{place}")
        is_ipv4 = places.ipv4 if place < (IPV4_HEADER_BYTES - _IPV4_ADDRESSES_OFFSET) // 2 else Const(0)
        # IPv4's offset is IPv6's with a tag more: three places at most.
        assert ipv4_at == ipv6_at + tag_words
        for tags in range(3):
            wanted = {0: ~is_ipv4 & ~places.tagged, 1: Mux(is_ipv4, ~places.tagged, places.tagged),
                      2: is_ipv4 & places.tagged}[tags]
            row_number, lane = divmod(ipv6_at + tags * tag_words + place, words)
            with m.If(valid & wanted & (number == row_number)):
                m.d.sync += kept.eq(halfword(lane))
        addresses.append(kept)
    ports = []
    for name, edge in (("source", edges.l4), ("destination", edges.destination_port)):
        port = Signal(16, name=f"{name}_port")
        with m.If(valid & edge.here):
            m.d.sync += port.eq(Cat(halfword(lane) for lane in range(words)).word_select(edge.lane[:-1], 16))
        ports.append(port)

    flow = Signal(Flow)
    has_ports = found.tcp | found.udp
    ports = Cat(ports[1], ports[0]) & has_ports.replicate(32)
    pairs = [Cat(addresses[n + 1], addresses[n]) for n in range(0, len(addresses), 2)]
    ipv6 = found.ipv6.replicate(32)
    m.d.comb += [
        *(flow[f"word_{n}"].eq(pair if n < 2 else pair & ipv6) for n, pair in enumerate(pairs)),
        flow.word_8.eq(ports & ipv6), flow.ipv6.eq(found.ipv6), flow.tcp.eq(found.tcp), flow.udp.eq(found.udp),
    ]
    with m.If(~found.ipv6):
        m.d.comb += flow.word_2.eq(ports)
    return flow
