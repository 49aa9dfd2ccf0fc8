"""Orders to send: from EMIT and RAW messages of the control port to jobs of the transmit path, and back to DONEs."""

# Ref: RFC 9293 §3.1, RFC 1071 §2 (checksum and its seed); RFC 7323 §3.2

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import (
    MAX_FRAME_BYTES,
    MAX_INLINE_BYTES,
    MAX_PIECE_BYTES,
    MAX_SEGMENTED_BYTES,
    MIN_MSS,
    NicConfig,
    Opcode,
    SendFlag,
    Status,
)
from nic_model.contract.control import (
    BEAT_BYTES,
    EMIT,
    MAX_EMIT_OPTION_BYTES,
    MAX_EMIT_PIECES,
    NO_FLOW,
    PIECE_IN_BEAT,
    RAW,
    TIMESTAMP_SHIFT,
    UNIT_BYTES,
    ControlType,
    OrderFlag,
)
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    TCP_CHECKSUM_OFFSET,
    TCP_HEADER_BYTES,
    VLAN_TAG_BYTES,
)
from rtl.control_messages import Unit
from rtl.descriptor import NamedPiece, Parsed
from rtl.emit_headers import TIMESTAMPS_BYTES, HeaderOrder, HeaderRows
from rtl.flow_entries import FLOW_BITS, StoredFlow
from rtl.interfaces import CHANNEL_BITS, TIME_BITS, contract_view, row
from rtl.primitives import SkidBuffer

REFUSED_STALE = Status.NOT_PERMITTED
"""Status inside the device of an order whose flow or generation is not there."""

NO_FRAME = Status.BAD_OPCODE
"""Status inside the device of an EMIT with LAST: nothing is sent, and all is well."""

Emit, Raw = contract_view(EMIT), contract_view(RAW)

# A piece as it stands in a beat.
_BeatPiece = data.FlexibleLayout(8 * BEAT_BYTES, {
    name: data.Field(width, 8 * at) for name, at, width, _meaning in PIECE_IN_BEAT})
BEATS = UNIT_BYTES // BEAT_BYTES
"""16-byte beats of a unit, whatever the width of the bus."""
_PIECES_AT, _RAW_PIECE_AT = (layout.fields["offset_0"].offset // (8 * BEAT_BYTES) for layout in (EMIT, RAW))
"""The beat of an EMIT's head in which piece 0 stands, and of a RAW's."""

# What must be known of an order when it is over, beside what its job says: `bulk`, its queue; `raw`, it was a RAW.
OrderRecord = data.StructLayout({"bulk": 1, "raw": 1, "generation": EMIT.fields["generation"].width})


# What an order's message alone says. `head_only`: no pieces stand in the message's head. `of_no_flow`: a RAW that names
# none, and so cannot be stale.
_Shown = data.StructLayout({
    "raw": 1, "pays": 1, "bulk": 1, "no_frame": 1, "unsound": 1, "of_no_flow": 1, "options": 1, "head_only": 1,
    "pieces": 4, "tcp_bytes": 7,
})


def _show(m, emit, raw):
    """What a message's head says, as a `_Shown`: combinational."""
    is_raw, pays, tcp_bytes, units, unsound_emit, unsound_raw = (
        Signal(), Signal(), Signal(7), Signal(4), Signal(), Signal())
    pieces, no_frame = Signal(4), Signal()
    m.d.comb += [
        is_raw.eq(emit.type == ControlType.RAW), no_frame.eq(~is_raw & (emit.flags & OrderFlag.LAST).any()),
        pays.eq(Mux(is_raw, raw.length.any(), emit.length.any())), pieces.eq(Mux(is_raw, pays, emit.pieces)),
        tcp_bytes.eq(TCP_HEADER_BYTES + Mux((emit.flags & OrderFlag.TIMESTAMP).any(), TIMESTAMPS_BYTES, 0)
                     + (emit.option_words << 2)),
        units.eq(Mux(
            is_raw, 1 + (raw.header_bytes > UNIT_BYTES) + raw.header_bytes.any(),
            1 + emit.option_words.any() + (emit.pieces > 2) + (emit.pieces > 6))),
        unsound_emit.eq(
            (emit.type != ControlType.EMIT) | (tcp_bytes > TCP_HEADER_BYTES + MAX_EMIT_OPTION_BYTES)
            | (emit.pieces > MAX_EMIT_PIECES) | (emit.length > MAX_SEGMENTED_BYTES)
            | (emit.length.any() & (emit.mss < MIN_MSS)) | (emit.length.any() ^ emit.pieces.any())),
        unsound_raw.eq((raw.header_bytes < ETHERNET_HEADER_BYTES) | (raw.header_bytes > MAX_INLINE_BYTES)
                       | (raw.length > MAX_PIECE_BYTES)),
    ]
    members = {
        "raw": is_raw, "pays": pays, "bulk": pays | no_frame, "no_frame": no_frame,
        "unsound": Mux(is_raw, unsound_raw, unsound_emit) | (units != emit.units),
        "of_no_flow": is_raw & (emit.flow == NO_FLOW), "options": ~is_raw & emit.option_words.any(),
        "head_only": pieces == 0, "pieces": pieces, "tcp_bytes": tcp_bytes,
    }
    return Cat(members[name] for name in _Shown.members)


class EmitDecoder(wiring.Component):
    """Takes orders to send apart, and builds their headers.

    Enters: units of EMIT and RAW messages; a flow's entry for each. Leaves, in the order of the messages: for each its
    pieces, for the key table in the name of the flow's channel; the rows of its header; a descriptor taken apart, as
    `rtl.descriptor.DescriptorParser` gives one, with which checks and issue of the transmit front go on; and beside it
    an `OrderRecord`. An order that is stale, or that cannot be taken apart, leaves the last two only.

    An EMIT that is no longer than its MSS is one frame, complete but for its checksums; a longer one is a template to
    be segmented. Its job says in `ring_index` which flow it is of. Orders with payload are given to one queue of the
    transmit scheduler, `bulk`, those without to another, and an EMIT with LAST, which sends nothing, to the first.

    A segment without payload takes 3 cycles and one for each row of its header, at 16-byte rows 7 to 8; one piece makes
    it a cycle more, and so does each unit behind the first.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` is used.
    queues : tuple of int
        Channel numbers of the scheduler's queues, that for orders without payload first, then `bulk`.

    Members
    -------
    i : units of messages.
    source_mac, now : own Ethernet address, first byte lowest; the device's cycle count.
    room : level, whether an order may begin.
    begun : 1 for a cycle behind that in which one has.
    flow, entry : client of `FlowEntries`.
    piece, row, parsed, record : what leaves.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig, *, queues: tuple[int, int]):
        self.config, self.queues = config, queues
        super().__init__({
            "i": In(stream.Signature(Unit)), "source_mac": In(48), "now": In(TIME_BITS), "room": In(1), "begun": Out(1),
            "flow": Out(stream.Signature(FLOW_BITS)), "entry": In(stream.Signature(StoredFlow)),
            "piece": Out(stream.Signature(NamedPiece)), "row": Out(stream.Signature(row(config))),
            "parsed": Out(stream.Signature(Parsed)), "record": Out(stream.Signature(OrderRecord)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.headers = headers = HeaderRows(self.config)
        unit = self.i.payload
        emit, raw = Emit(unit.data[:Emit.size]), Raw(unit.data[:Raw.size])

        # As soon as a message's head is there, the flow's entry is asked for, and what the message alone says is noted.
        shown, noted, shows = Signal(_Shown), Signal(), Signal()
        takes_unit, taken, begins = Signal(), Signal(), Signal()
        m.d.comb += [
            self.flow.valid.eq(self.i.valid & unit.first & ~noted), self.flow.payload.eq(emit.flow),
            shows.eq(self.flow.valid & self.flow.ready),
            self.i.ready.eq(takes_unit), taken.eq(self.i.valid & takes_unit),
        ]
        with m.If(taken & unit.first):
            m.d.sync += noted.eq(0)
        with m.Elif(shows):
            m.d.sync += noted.eq(1)
        with m.If(shows):
            m.d.sync += shown.eq(_show(m, emit, raw))

        # The order at hand. `unsound`: it cannot be taken apart; `wrong`: its pieces are not what it says.
        order, channel, flags = Signal(HeaderOrder), Signal(CHANNEL_BITS), Signal(len(emit.flags))
        flow, tag, generation = Signal(FLOW_BITS), Signal(len(emit.tag)), Signal(len(emit.generation))
        length, mss, segmented, pays = Signal(len(emit.length)), Signal(len(emit.mss)), Signal(), Signal()
        is_raw, bulk, no_frame, too_long = Signal(), Signal(), Signal(), Signal()
        l3_offset, l4_offset, checksum_offset, inline_bytes = (Signal(8) for _ in range(4))
        stale, unsound, wrong, refused = Signal(), Signal(), Signal(), Signal()
        pieces, pieces_left, total = Signal(4), Signal(4), Signal(len(emit.length) + 3)
        piece_beat, options_left, head_taken, ends_with_head = Signal(2), Signal(), Signal(), Signal()
        header_left, raw_last = Signal(8), Signal()  # bytes of a RAW's header that are still to come
        pseudo_sum, seed_sum, l3_base = Signal(16), Signal(17), Signal(8)

        # It begins when its entry is there too.
        found, ip_bytes, inline_now = self.entry.payload, Signal(6), Signal(8)
        width = self.config.host_bytes
        m.d.comb += [
            refused.eq(stale | unsound | no_frame),
            ip_bytes.eq(Mux(found.entry.ipv6, IPV6_HEADER_BYTES, IPV4_HEADER_BYTES)),
            inline_now.eq(Mux(shown.raw, raw.header_bytes, ETHERNET_HEADER_BYTES + ip_bytes + shown.tcp_bytes)),
            self.entry.ready.eq(begins),
        ]
        m.d.sync += self.begun.eq(begins)
        with m.If(begins):
            m.d.sync += [
                *(mine.eq(shown[name]) for name, mine in (
                    ("raw", is_raw), ("pays", pays), ("bulk", bulk), ("no_frame", no_frame), ("unsound", unsound),
                    ("pieces", pieces), ("pieces", pieces_left), ("options", options_left))),
                flags.eq(emit.flags), flow.eq(emit.flow), tag.eq(emit.tag), generation.eq(emit.generation),
                length.eq(Mux(shown.raw, raw.length, emit.length)), mss.eq(emit.mss),
                segmented.eq(~shown.raw & (emit.length > emit.mss)),
                channel.eq(Mux(shown.raw, raw.channel, found.entry.channel)),
                l3_offset.eq(Mux(shown.raw, raw.l3_offset, ETHERNET_HEADER_BYTES)),
                l4_offset.eq(Mux(shown.raw, raw.l4_offset, ETHERNET_HEADER_BYTES + ip_bytes)),
                checksum_offset.eq(Mux(shown.raw, raw.checksum_offset,
                                       ETHERNET_HEADER_BYTES + TCP_CHECKSUM_OFFSET + ip_bytes)),
                inline_bytes.eq(inline_now), wrong.eq(0), total.eq(0),
                stale.eq((~found.entry.valid | (found.entry.generation != emit.generation)) & ~shown.of_no_flow),
                piece_beat.eq(Mux(shown.raw, _RAW_PIECE_AT, _PIECES_AT)),
                head_taken.eq(takes_unit), ends_with_head.eq(unit.last),
                header_left.eq(raw.header_bytes), raw_last.eq(raw.header_bytes <= width),
                order.entry.eq(found.entry), order.timestamps.eq((emit.flags & OrderFlag.TIMESTAMP).any()),
                *(order[name].eq(emit[name]) for name in (
                    "sequence", "acknowledgement", "tcp_flags", "window", "ecn", "ts_echo")),
                order.ts_value.eq(self.now[TIMESTAMP_SHIFT:] + found.entry.timestamp_offset),
                order.tcp_bytes.eq(shown.tcp_bytes), order.inline_bytes.eq(inline_now),
                pseudo_sum.eq(found.pseudo_sum), seed_sum.eq(found.pseudo_sum + shown.tcp_bytes),
                l3_base.eq(shown.tcp_bytes + Mux(found.entry.ipv6, 0, IPV4_HEADER_BYTES)),
            ]

        # Pieces: two in an EMIT's head, four in each unit behind its options; one in a RAW's head.
        named = _BeatPiece(Array(unit.data.word_select(n, 8 * BEAT_BYTES) for n in range(BEATS))[piece_beat])
        # whoever takes them says so late, and a piece may free the message's registers
        m.submodules.named = named_pieces = SkidBuffer(shape=NamedPiece)
        connect(m, named_pieces.o, flipped(self.piece))
        piece, names, last_piece = named_pieces.i.payload, Signal(), Signal()
        m.d.comb += [
            last_piece.eq(pieces_left == 1), names.eq(named_pieces.i.valid & named_pieces.i.ready),
            piece.channel.eq(channel), piece.key.eq(named.key), piece.offset.eq(named.offset),
            piece.length.eq(Mux(is_raw, length, named.length)), piece.last.eq(last_piece),
        ]
        with m.If(names):
            m.d.sync += [
                pieces_left.eq(pieces_left - 1), piece_beat.eq(piece_beat + 1), total.eq(total + piece.length),
                wrong.eq(wrong | (piece.length == 0) | (piece.length > MAX_PIECE_BYTES)),
            ]

        # Rows: built from the order, or as a RAW brings them.
        rows_of_unit = UNIT_BYTES // width
        row_place, in_raw_rows, raw_row_leaves = Signal(range(max(rows_of_unit, 2))), Signal(), Signal()
        builds, built, gave = Signal(), Signal(), Signal()
        raw_row = Array(unit.data.word_select(n, 8 * width) for n in range(rows_of_unit))[row_place]
        m.d.comb += [
            headers.source_mac.eq(self.source_mac), headers.i.payload.eq(order), headers.i.valid.eq(builds & ~built),
            self.row.valid.eq(headers.o.valid | (in_raw_rows & self.i.valid)),
            self.row.payload.data.eq(Mux(headers.o.valid, headers.o.payload.data, raw_row)),
            self.row.payload.last.eq(Mux(headers.o.valid, headers.o.payload.last, raw_last)),
            headers.o.ready.eq(self.row.ready),
            raw_row_leaves.eq(in_raw_rows & self.i.valid & self.row.ready & ~headers.o.valid),
        ]
        with m.If(raw_row_leaves):
            m.d.sync += [
                header_left.eq(header_left - width), raw_last.eq(header_left <= 2 * width),
                row_place.eq(Mux(raw_last, 0, row_place + 1)),
            ]

        # What leaves at the end: a descriptor as the transmit front takes one of host memory apart, and the record.
        parsed, head = self.parsed.payload, self.parsed.payload.head
        gives, may_give, ipv6 = Signal(), Signal(), Signal()
        m.d.comb += [
            may_give.eq((~self.parsed.valid | self.parsed.ready) & (~self.record.valid | self.record.ready)),
            ipv6.eq(Mux(is_raw, (flags & OrderFlag.IPV6).any(), order.entry.ipv6)),
        ]
        for stream_ in (self.parsed, self.record):
            with m.If(gives):
                m.d.sync += stream_.valid.eq(1)
            with m.Elif(stream_.ready):
                m.d.sync += stream_.valid.eq(0)
        with m.If(gives):
            def send_flag(which, condition):
                return Mux(condition, which, 0)

            m.d.sync += [
                self.record.payload.bulk.eq(bulk), self.record.payload.raw.eq(is_raw),
                self.record.payload.generation.eq(generation),
                parsed.channel.eq(Mux(bulk, self.queues[1], self.queues[0])), parsed.ring_index.eq(flow),
                head.opcode.eq(Mux(segmented, Opcode.SEND_SEGMENTED, Opcode.SEND_FRAME)), head.slots.eq(1),
                head.flags.eq(
                    send_flag(SendFlag.COMPLETE, (flags & OrderFlag.DONE).any()) | send_flag(SendFlag.IPV6, ipv6)
                    | send_flag(SendFlag.IPV4_CHECKSUM,
                                Mux(is_raw, (flags & OrderFlag.IPV4_CHECKSUM).any(), ~order.entry.ipv6))
                    | send_flag(SendFlag.L4_CHECKSUM, ~is_raw | (flags & OrderFlag.L4_CHECKSUM).any())
                    | send_flag(SendFlag.VLAN_INSERT, order.entry.tagged & ~is_raw)),
                head.tag.eq(tag), head.mss.eq(mss), head.inline_bytes.eq(inline_bytes),
                head.l3_offset.eq(l3_offset), head.l4_offset.eq(l4_offset), head.checksum_offset.eq(checksum_offset),
                head.pieces.eq(pieces), head.vlan_tci.eq(order.entry.vlan_tci),
                parsed.payload_bytes.eq(length), parsed.total_bytes.eq(length + inline_bytes),
                parsed.longest_bytes.eq(inline_bytes + mss), parsed.tcp_end.eq(l4_offset + TCP_HEADER_BYTES),
                parsed.l3_end.eq(l3_offset + Mux(order.entry.ipv6 & ~is_raw, IPV6_HEADER_BYTES, IPV4_HEADER_BYTES)),
                parsed.checksum_end.eq(checksum_offset + 2),
                parsed.unknown.eq(no_frame & ~stale), parsed.forbidden.eq(stale), parsed.broken.eq(0),
                parsed.misshapen.eq(unsound | wrong | too_long | (total != length)),
                parsed.has_pieces.eq(~refused & (pieces != 0)), parsed.has_inline.eq(~refused),
            ]

        moves = Signal()

        def go_on():
            """Behind the pieces of a unit, or where there are none: what the message has next."""
            with m.If(options_left):
                m.next = "OPTIONS"
            with m.Elif((pieces_left != 0) & ~last_piece):
                m.next = "PIECES"
            with m.Elif(is_raw):
                m.next = "RAW_ROWS"
            with m.Else():
                m.next = "ROWS"

        with m.FSM(name="emit"):
            with m.State("HEAD"):
                m.d.comb += [
                    begins.eq(noted & self.entry.valid & self.room),
                    # what stands in the head is in registers then, but for pieces
                    takes_unit.eq(begins & shown.head_only), moves.eq(begins),
                ]
                with m.If(begins):
                    m.next = "SUMS"
            with m.State("SUMS"):
                m.d.comb += moves.eq(1)
                # the segmenter adds each frame's length to the template's seed; a single frame has it there
                folded = Mux(segmented, pseudo_sum, seed_sum[:16] + length[:16] + seed_sum[16])
                m.d.sync += [order.seed.eq(folded[:16] + folded[16]), order.l3_length.eq(l3_base + length)]
                most = Mux(order.entry.tagged, MAX_FRAME_BYTES - VLAN_TAG_BYTES, MAX_FRAME_BYTES)
                m.d.sync += too_long.eq(pays & ~is_raw & (inline_bytes + mss > most))
                with m.If(refused):
                    m.next = "SKIP"
                    with m.If(head_taken & ends_with_head):
                        m.next = "GIVE"
                with m.Elif(pieces != 0):
                    m.next = "PIECES"
                with m.Else():
                    go_on()
            with m.State("PIECES"):
                m.d.comb += [
                    named_pieces.i.valid.eq(self.i.valid), moves.eq(names),
                    takes_unit.eq(named_pieces.i.ready & (last_piece | (piece_beat == BEATS - 1))),
                ]
                with m.If(taken):
                    go_on()
            with m.State("OPTIONS"):
                m.d.comb += [takes_unit.eq(1), moves.eq(taken)]
                with m.If(taken):
                    m.d.sync += [order.options.eq(unit.data), options_left.eq(0)]
                    m.next = "ROWS"
                    with m.If(pieces_left != 0):
                        m.next = "PIECES"
            with m.State("ROWS"):
                rows_end = built | headers.i.ready
                m.d.comb += [builds.eq(1), gives.eq(may_give & ~gave), moves.eq(gives | headers.active)]
                m.d.sync += [built.eq(rows_end), gave.eq(gave | gives)]
                with m.If(rows_end & (gave | gives)):
                    m.d.sync += [built.eq(0), gave.eq(0)]
                    m.next = "HEAD"
            with m.State("RAW_ROWS"):
                m.d.comb += [
                    in_raw_rows.eq(1), moves.eq(raw_row_leaves),
                    takes_unit.eq(raw_row_leaves & (raw_last | (row_place == rows_of_unit - 1))),
                ]
                with m.If(raw_row_leaves & raw_last):
                    m.next = "GIVE"
            with m.State("SKIP"):
                m.d.comb += [takes_unit.eq(1), moves.eq(taken)]
                with m.If(taken & unit.last):
                    m.next = "GIVE"
            with m.State("GIVE"):
                m.d.comb += [gives.eq(may_give), moves.eq(gives)]
                with m.If(gives):
                    m.next = "HEAD"

        m.d.comb += self.active.eq(
            moves | self.begun | headers.active | named_pieces.active | taken | (self.flow.valid & self.flow.ready)
            | (self.row.valid & self.row.ready)
            | (self.parsed.valid & self.parsed.ready) | (self.record.valid & self.record.ready))
        return m
