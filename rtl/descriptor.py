"""Submission descriptors: from bus beats to jobs. In packet order: slots, parser, keys of the pieces, checks, issue."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from nic_model.contract import (
    MAX_DESCRIPTOR_SLOTS,
    MAX_FRAME_BYTES,
    MAX_INLINE_BYTES,
    MAX_PIECE_BYTES,
    MAX_PIECES,
    MAX_SEGMENTED_BYTES,
    MIN_MSS,
    PIECE,
    SUBMISSION_HEAD,
    SUBMISSION_SLOT_BYTES,
    VLAN_INLINE_BYTES,
    VLAN_MAX_OFFSET,
    ChannelError,
    NicConfig,
    Opcode,
    OperationMask,
    SendFlag,
    Status,
)
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    TCP_HEADER_BYTES,
    VLAN_TAG_BYTES,
)
from rtl.interfaces import (
    CHANNEL_BITS,
    INDEX_BITS,
    LENGTH_BITS,
    ChannelFault,
    IndexReport,
    KeyAnswer,
    KeyRequest,
    Strobe,
    TxJob,
    TxPiece,
    read_beat,
    row,
    tx_row,
)
from rtl.primitives import StreamFifo
from rtl.small_fifo import SmallFifo

SLOT_BITS = 8 * SUBMISSION_SLOT_BYTES
FETCH_SLOTS = 32
"""Slots of the longest fetch: two descriptors of the longest kind, so that each fetch brings at least one whole."""

PAYLOAD_BITS = (MAX_PIECES * MAX_PIECE_BYTES).bit_length()


def _view_of(layout):
    """The Amaranth view of a contract layout."""
    return data.FlexibleLayout(8 * layout.size_bytes, {
        name: data.Field(field.width, field.offset) for name, field in layout.fields.items()
    })


Head = _view_of(SUBMISSION_HEAD)
Piece = _view_of(PIECE)

# What was asked of the bus: `count` slots from `index` on; `more` slots stood behind them in the ring.
Fetch = data.StructLayout({"channel": CHANNEL_BITS, "count": range(FETCH_SLOTS + 1), "more": 1, "index": INDEX_BITS})

# All slots of a fetch have been taken; `faulty`: the channel must not be fetched from again.
FetchEnd = data.StructLayout({"channel": CHANNEL_BITS, "faulty": 1})

Slot = data.StructLayout({"data": SLOT_BITS, "error": 1})

# A slot of inline bytes; `last` of its descriptor, `short` if not more than its lower half counts.
InlineSlot = data.StructLayout({"data": SLOT_BITS, "last": 1, "short": 1})

# A piece as the descriptor names it, and as the bus knows it; `last` of its descriptor.
NamedPiece = data.StructLayout({
    "channel": CHANNEL_BITS, **{name: PIECE.fields[name].width for name in ("key", "offset", "length")}, "last": 1,
})
BusPiece = data.StructLayout({"address": 64, "length": LENGTH_BITS, "last": 1})

# What the keys said to all pieces of a descriptor: a Status.
KeyVerdict = data.StructLayout({"status": 8})

# A descriptor, taken apart; `ring_index` is the index behind it. `broken`: a slot could not be read, and it counts for
# nothing. Pieces and inline slots went ahead on streams of their own, if `has_pieces`, `has_inline`.
Parsed = data.StructLayout({
    "channel": CHANNEL_BITS, "ring_index": INDEX_BITS, "head": Head, "payload_bytes": PAYLOAD_BITS,
    "unknown": 1, "forbidden": 1, "misshapen": 1, "broken": 1, "has_pieces": 1, "has_inline": 1,
})

# The same with all its checks done but that of its keys.
Checked = data.StructLayout({"job": TxJob, "broken": 1, "has_pieces": 1, "has_inline": 1})


class SlotReader(wiring.Component):
    """Makes 32-byte slots of bus beats.

    Enters: beats of fetches, which start and end at a slot's border. Leaves: slots in order, `error` if their burst
    had one. Latency 1 cycle behind the slot's last beat; one slot a cycle, or one in two cycles on a 16-byte bus.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` is used.

    Members
    -------
    i, o : beats in, slots out.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(read_beat(config))), "o": Out(stream.Signature(Slot)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        beat, slot = self.i.payload, self.o.payload
        free, fills = Signal(), Signal()
        m.d.comb += free.eq(~self.o.valid | self.o.ready)
        taken = self.i.valid & self.i.ready

        if self.config.host_bytes == 16:
            # bursts start at a slot's border, so both beats of a slot have the same error
            lower, has_lower = Signal(SLOT_BITS // 2), Signal()
            m.d.comb += [self.i.ready.eq(~has_lower | free), fills.eq(taken & has_lower)]
            with m.If(taken):
                m.d.sync += has_lower.eq(~has_lower)
            with m.If(taken & ~has_lower):
                m.d.sync += lower.eq(beat.data)
            with m.If(fills):
                m.d.sync += [slot.data.eq(Cat(lower, beat.data)), slot.error.eq(beat.error)]
        elif self.config.host_bytes == 32:
            m.d.comb += [self.i.ready.eq(free), fills.eq(taken)]
            with m.If(fills):
                m.d.sync += [slot.data.eq(beat.data), slot.error.eq(beat.error)]
        else:
            lower_given, has_two, takes_upper = Signal(), Signal(), Signal()
            m.d.comb += [
                has_two.eq(beat.count == 2 * SUBMISSION_SLOT_BYTES),
                takes_upper.eq(lower_given | (beat.start == SUBMISSION_SLOT_BYTES)),
                self.i.ready.eq(free & (~has_two | lower_given)),
                fills.eq(self.i.valid & free),
            ]
            with m.If(fills):
                m.d.sync += [
                    slot.data.eq(Mux(takes_upper, beat.data[SLOT_BITS:], beat.data[:SLOT_BITS])),
                    slot.error.eq(beat.error), lower_given.eq(has_two & ~lower_given),
                ]

        with m.If(free):
            m.d.sync += self.o.valid.eq(fills)
        m.d.comb += self.active.eq(taken | fills | (self.o.valid & self.o.ready))
        return m


class InlineRows(wiring.Component):
    """Makes rows of the host bus's width of slots with inline bytes.

    Enters: the inline slots of a descriptor. Leaves: ceil(inline_bytes / W) rows, the last marked. No latency; a row a
    cycle.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` is used.

    Members
    -------
    i, o : slots in, rows out.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(InlineSlot)), "o": Out(stream.Signature(row(config))), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        slot, out = self.i.payload, self.o.payload
        taken = self.i.valid & self.i.ready

        if self.config.host_bytes == 16:
            upper, only_lower = Signal(), Signal()
            m.d.comb += [
                only_lower.eq(slot.last & slot.short),
                self.o.valid.eq(self.i.valid),
                out.data.eq(slot.data.word_select(upper, SLOT_BITS // 2)),
                out.last.eq(slot.last & (upper | slot.short)),
                self.i.ready.eq(self.o.ready & (upper | only_lower)),
            ]
            with m.If(self.o.valid & self.o.ready):
                m.d.sync += upper.eq(~upper & ~only_lower)
        elif self.config.host_bytes == 32:
            m.d.comb += [
                self.o.valid.eq(self.i.valid), self.i.ready.eq(self.o.ready),
                out.data.eq(slot.data), out.last.eq(slot.last),
            ]
        else:
            lower, has_lower, makes_row = Signal(SLOT_BITS), Signal(), Signal()
            m.d.comb += [
                makes_row.eq(has_lower | slot.last),
                self.o.valid.eq(self.i.valid & makes_row), self.i.ready.eq(self.o.ready | ~makes_row),
                out.data.eq(Mux(has_lower, Cat(lower, slot.data), slot.data)), out.last.eq(slot.last),
            ]
            with m.If(taken):
                m.d.sync += has_lower.eq(~makes_row)
                with m.If(~makes_row):
                    m.d.sync += lower.eq(slot.data)

        m.d.comb += self.active.eq(taken | (self.o.valid & self.o.ready))
        return m


class DescriptorParser(wiring.Component):
    """Takes descriptors out of fetched slots.

    Enters: fetches in the order in which they were asked for, and their slots. Leaves: of each whole descriptor the
    pieces and the inline slots, then the descriptor itself, and its channel's new index as `consumed`; when all slots
    of a fetch are taken, `finished`. A descriptor that a fetch cuts off is left for the next fetch. A fetch of a
    channel that does not run is thrown away. A descriptor that cannot be one stops its channel, by a fault; the rest of
    the fetch is thrown away.

    A descriptor whose operation or shape is refused leaves neither pieces nor inline slots. 5 cycles for a descriptor
    of one slot with one piece, then one for each further piece or inline slot; on a 16-byte bus two for the latter.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    fetch, slot : what was asked for, and what came.
    running : level for each channel.
    channel, operations : a channel's OperationMask is looked up: in the same cycle.
    piece, inline, parsed : what leaves.
    consumed, finished : strobes, see above.
    fault : TRUNCATED_DESCRIPTOR or FETCH_BUS_ERROR.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "fetch": In(stream.Signature(Fetch)), "slot": In(stream.Signature(Slot)),
            "running": In(config.channels),
            "channel": Out(CHANNEL_BITS), "operations": In(len(OperationMask)),
            "piece": Out(stream.Signature(NamedPiece)), "inline": Out(stream.Signature(InlineSlot)),
            "parsed": Out(stream.Signature(Parsed)),
            "consumed": Out(Strobe(IndexReport)), "finished": Out(Strobe(FetchEnd)),
            "fault": Out(stream.Signature(ChannelFault)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        slot, parsed = self.slot.payload, self.parsed.payload

        # The fetch under way.
        left = Signal(range(FETCH_SLOTS + 1))
        more, faulty = Signal(), Signal()
        index = Signal(INDEX_BITS)

        # The descriptor under way.
        head = Signal(Head)
        head_error, runs = Signal(), Signal()
        inline_slots = Signal(4)
        piece_slots = Signal(7)
        impossible, cut_off, over_limit = Signal(), Signal(), Signal()
        unknown, forbidden, misshapen, bad_length, broken = Signal(), Signal(), Signal(), Signal(), Signal()
        refused = Signal()
        slots_left = Signal(range(MAX_DESCRIPTOR_SLOTS + 1))
        inline_left = Signal(4)
        pieces_left = Signal(range(MAX_PIECES + 1))
        payload_bytes = Signal(PAYLOAD_BITS)
        m.d.comb += refused.eq(unknown | forbidden | misshapen)

        takes_slot, moves = Signal(), Signal()
        m.d.comb += self.slot.ready.eq(takes_slot)
        slot_taken = self.slot.valid & takes_slot
        with m.If(slot_taken):
            m.d.sync += [left.eq(left - 1), slots_left.eq(slots_left - 1), broken.eq(broken | slot.error)]

        # A piece stands in the lower or upper half of a slot.
        names_piece, in_lower, last_piece, piece_free = Signal(), Signal(), Signal(), Signal()
        named = Signal(Piece)
        m.d.comb += [
            piece_free.eq(~self.piece.valid | self.piece.ready),
            named.eq(slot.data.word_select(~in_lower, SLOT_BITS // 2)),
        ]
        with m.If(self.piece.ready):
            m.d.sync += self.piece.valid.eq(0)
        with m.If(names_piece):
            m.d.sync += [
                self.piece.valid.eq(1),
                self.piece.payload.channel.eq(self.channel),
                self.piece.payload.key.eq(named.key), self.piece.payload.offset.eq(named.offset),
                self.piece.payload.length.eq(named.length), self.piece.payload.last.eq(last_piece),
                payload_bytes.eq(payload_bytes + named.length),
                bad_length.eq(bad_length | (named.length == 0) | (named.length > MAX_PIECE_BYTES)),
                pieces_left.eq(pieces_left - 1),
            ]

        m.d.comb += [
            self.inline.payload.data.eq(slot.data),
            self.inline.payload.last.eq(inline_left == 1),
            self.inline.payload.short.eq((head.inline_bytes[:5] != 0) & (head.inline_bytes[:5] <= 16)),
            parsed.channel.eq(self.channel), parsed.ring_index.eq(index + head.slots), parsed.head.eq(head),
            parsed.payload_bytes.eq(payload_bytes), parsed.unknown.eq(unknown), parsed.forbidden.eq(forbidden),
            parsed.misshapen.eq(misshapen | bad_length), parsed.broken.eq(broken),
            parsed.has_pieces.eq(~refused & (head.pieces != 0)),
            parsed.has_inline.eq(~refused & (head.inline_bytes != 0)),
            self.consumed.payload.channel.eq(self.channel), self.consumed.payload.index.eq(parsed.ring_index),
            self.finished.payload.channel.eq(self.channel), self.finished.payload.faulty.eq(faulty),
            self.fault.payload.channel.eq(self.channel),
        ]

        def stop_channel(code):
            m.d.sync += [self.fault.payload.code.eq(code), faulty.eq(1)]
            m.next = "FAULT"

        def look_for_pieces(pieces):
            with m.If(pieces != 0):
                m.next = "LOWER_PIECE"
            with m.Else():
                m.next = "HAND_OVER"

        with m.FSM(name="parser"):
            with m.State("WAIT_FOR_FETCH"):
                m.d.comb += [self.fetch.ready.eq(1), moves.eq(self.fetch.valid)]
                with m.If(self.fetch.valid):
                    m.d.sync += [
                        self.channel.eq(self.fetch.payload.channel), left.eq(self.fetch.payload.count),
                        more.eq(self.fetch.payload.more), index.eq(self.fetch.payload.index), faulty.eq(0),
                    ]
                    m.next = "HEAD"
            with m.State("HEAD"):
                m.d.comb += moves.eq(self.slot.valid)
                with m.If(self.slot.valid):
                    m.d.sync += [
                        head.eq(slot.data[:len(head.as_value())]), head_error.eq(slot.error),
                        runs.eq(self.running.bit_select(self.channel, 1)),
                        payload_bytes.eq(0), bad_length.eq(0), broken.eq(0),
                    ]
                    m.next = "COUNT"
            with m.State("COUNT"):
                m.d.comb += moves.eq(1)
                is_frame = head.opcode == Opcode.SEND_FRAME
                is_segmented = head.opcode == Opcode.SEND_SEGMENTED
                m.d.sync += [
                    inline_slots.eq((head.inline_bytes + (SUBMISSION_SLOT_BYTES - 1)) >> 5),
                    piece_slots.eq(head.pieces >> 1),
                    over_limit.eq((head.inline_bytes > MAX_INLINE_BYTES) | (head.pieces > MAX_PIECES)),
                    unknown.eq(~is_frame & ~is_segmented),
                    forbidden.eq((is_frame & ~(self.operations & OperationMask.SEND_FRAME).any())
                                 | (is_segmented & ~(self.operations & OperationMask.SEND_SEGMENTED).any())),
                    impossible.eq((head.slots == 0) | (head.slots > MAX_DESCRIPTOR_SLOTS)),
                    cut_off.eq(head.slots > left),
                ]
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.comb += moves.eq(1)
                m.d.sync += [
                    misshapen.eq(over_limit | (head.slots != 1 + inline_slots + piece_slots)),
                    slots_left.eq(head.slots), inline_left.eq(inline_slots), pieces_left.eq(head.pieces),
                ]
                with m.If(~runs):
                    m.next = "THROW_AWAY"
                with m.Elif(head_error):
                    stop_channel(ChannelError.FETCH_BUS_ERROR)
                with m.Elif(impossible | (cut_off & ~more)):
                    stop_channel(ChannelError.TRUNCATED_DESCRIPTOR)
                with m.Elif(cut_off):
                    m.next = "THROW_AWAY"
                with m.Else():
                    m.next = "FIRST_SLOT"
            with m.State("FIRST_SLOT"):
                has_piece = pieces_left != 0
                m.d.comb += [
                    last_piece.eq(pieces_left == 1),
                    takes_slot.eq(~refused & (piece_free | ~has_piece)),
                    names_piece.eq(~refused & piece_free & has_piece),
                    moves.eq(refused | takes_slot),
                ]
                with m.If(refused):
                    m.next = "DROP_SLOTS"
                with m.Elif(takes_slot):
                    with m.If(inline_left != 0):
                        m.next = "INLINE_SLOTS"
                    with m.Else():
                        look_for_pieces(pieces_left[1:])
            with m.State("DROP_SLOTS"):
                m.d.comb += [takes_slot.eq(1), moves.eq(self.slot.valid)]
                with m.If(self.slot.valid & (slots_left == 1)):
                    m.next = "HAND_OVER"
            with m.State("INLINE_SLOTS"):
                m.d.comb += [
                    self.inline.valid.eq(self.slot.valid), takes_slot.eq(self.inline.ready),
                    moves.eq(slot_taken),
                ]
                with m.If(slot_taken):
                    m.d.sync += inline_left.eq(inline_left - 1)
                    with m.If(inline_left == 1):
                        look_for_pieces(pieces_left)
            with m.State("LOWER_PIECE"):
                m.d.comb += [
                    in_lower.eq(1), last_piece.eq(pieces_left == 1),
                    names_piece.eq(self.slot.valid & piece_free),
                    takes_slot.eq(piece_free & last_piece),
                    moves.eq(names_piece),
                ]
                with m.If(names_piece):
                    with m.If(last_piece):
                        m.next = "HAND_OVER"
                    with m.Else():
                        m.next = "UPPER_PIECE"
            with m.State("UPPER_PIECE"):
                # the slot is still there: its lower half came from it
                m.d.comb += [
                    last_piece.eq(pieces_left == 1),
                    names_piece.eq(piece_free), takes_slot.eq(piece_free), moves.eq(names_piece),
                ]
                with m.If(names_piece):
                    with m.If(last_piece):
                        m.next = "HAND_OVER"
                    with m.Else():
                        m.next = "LOWER_PIECE"
            with m.State("HAND_OVER"):
                m.d.comb += [
                    self.parsed.valid.eq(1), moves.eq(self.parsed.ready),
                    self.consumed.valid.eq(self.parsed.ready & ~broken),
                ]
                with m.If(self.parsed.ready):
                    m.d.sync += index.eq(parsed.ring_index)
                    with m.If(broken):
                        stop_channel(ChannelError.FETCH_BUS_ERROR)
                    with m.Elif(left == 0):
                        m.next = "FINISH"
                    with m.Else():
                        m.next = "HEAD"
            with m.State("FAULT"):
                m.d.comb += [self.fault.valid.eq(1), moves.eq(self.fault.ready)]
                with m.If(self.fault.ready):
                    m.next = "THROW_AWAY"
            with m.State("THROW_AWAY"):
                m.d.comb += [takes_slot.eq(left != 0), moves.eq((left == 0) | self.slot.valid)]
                with m.If(left == 0):
                    m.next = "FINISH"
            with m.State("FINISH"):
                m.d.comb += [self.finished.valid.eq(1), moves.eq(1)]
                m.next = "WAIT_FOR_FETCH"

        m.d.comb += self.active.eq(moves | (self.piece.valid & self.piece.ready))
        return m


class PieceTranslator(wiring.Component):
    """Shows the pieces of descriptors to the key table.

    Enters: pieces as the descriptors name them. Leaves: the same pieces with their bus addresses, and one verdict for
    each descriptor that has pieces: OK, or the status of the first piece that was refused; then its pieces mean
    nothing. A whole descriptor's pieces and the verdict are there before any of them need be taken.

    Latency is the key table's and 3 cycles (verdict: 1 cycle); one piece a cycle.

    Members
    -------
    i : pieces.
    key_request, key_answer : the key table.
    piece, verdict : what leaves.
    """

    QUESTIONS = 16
    """Questions under way: more than the key table takes."""
    STORED_PIECES = 64
    """Two descriptors' pieces: one may be issued while the next is checked."""

    def __init__(self):
        super().__init__({
            "i": In(stream.Signature(NamedPiece)),
            "key_request": Out(stream.Signature(KeyRequest)), "key_answer": In(stream.Signature(KeyAnswer)),
            "piece": Out(stream.Signature(BusPiece)), "verdict": Out(stream.Signature(KeyVerdict)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        Question = data.StructLayout({"length": LENGTH_BITS, "last": 1})
        m.submodules.questions = questions = SmallFifo(shape=Question, depth=self.QUESTIONS)
        m.submodules.pieces = pieces = StreamFifo(shape=BusPiece, depth=self.STORED_PIECES)
        wiring.connect(m, pieces.o, wiring.flipped(self.piece))

        asked, request = self.i.payload, self.key_request.payload
        m.d.comb += [
            self.key_request.valid.eq(self.i.valid & questions.i.ready),
            questions.i.valid.eq(self.i.valid & self.key_request.ready),
            self.i.ready.eq(self.key_request.ready & questions.i.ready),
            request.channel.eq(asked.channel), request.key.eq(asked.key), request.offset.eq(asked.offset),
            request.length.eq(asked.length), request.write.eq(0),
            questions.i.payload.length.eq(asked.length), questions.i.payload.last.eq(asked.last),
        ]

        # The last answer of a descriptor waits for the verdict's place.
        question, answer = questions.o.payload, self.key_answer.payload
        has_place, answered = Signal(), Signal()
        first_refusal = Signal(8)
        m.d.comb += [
            has_place.eq(pieces.i.ready & ~(question.last & self.verdict.valid)),
            self.key_answer.ready.eq(has_place & questions.o.valid),
            answered.eq(self.key_answer.valid & self.key_answer.ready),
            questions.o.ready.eq(self.key_answer.valid & has_place),
            pieces.i.valid.eq(answered),
            pieces.i.payload.address.eq(answer.address), pieces.i.payload.length.eq(question.length),
            pieces.i.payload.last.eq(question.last),
        ]
        with m.If(self.verdict.ready):
            m.d.sync += self.verdict.valid.eq(0)
        with m.If(answered):
            so_far = Mux(first_refusal == Status.OK, answer.status, first_refusal)
            m.d.sync += first_refusal.eq(Mux(question.last, Status.OK, so_far))
            with m.If(question.last):
                m.d.sync += [self.verdict.valid.eq(1), self.verdict.payload.status.eq(so_far)]
        m.d.comb += self.active.eq(
            questions.active | pieces.active | answered | (self.verdict.valid & self.verdict.ready))
        return m


class DescriptorCheck(wiring.Component):
    """Checks what a descriptor asks for, but for its keys, by the contract's rules.

    Enters: descriptors. Leaves: jobs with OK, BAD_OPCODE, NOT_PERMITTED or BAD_DESCRIPTOR, the first that applies.
    Latency 4 cycles, one descriptor in 5 cycles.

    Members
    -------
    i, o : descriptors in, jobs out.
    """

    def __init__(self):
        super().__init__({"i": In(stream.Signature(Parsed)), "o": Out(stream.Signature(Checked)), "active": Out(1)})

    def elaborate(self, platform):
        m = Module()
        parsed = Signal(Parsed)
        head, job, moves = parsed.head, self.o.payload.job, Signal()
        status = Signal(8)

        def flag(which):
            return (head.flags & which).any()

        segmented = Signal()
        m.d.comb += [
            segmented.eq(head.opcode == Opcode.SEND_SEGMENTED),
            job.channel.eq(parsed.channel), job.tag.eq(head.tag), job.ring_index.eq(parsed.ring_index),
            job.status.eq(status),
            job.complete.eq(flag(SendFlag.COMPLETE)), job.timestamp.eq(flag(SendFlag.TIMESTAMP)),
            job.segmented.eq(segmented), job.ipv6.eq(flag(SendFlag.IPV6)),
            job.ipv4_checksum.eq(flag(SendFlag.IPV4_CHECKSUM)), job.l4_checksum.eq(flag(SendFlag.L4_CHECKSUM)),
            job.udp.eq(flag(SendFlag.UDP)),
            job.inline_bytes.eq(head.inline_bytes), job.l3_offset.eq(head.l3_offset), job.l4_offset.eq(head.l4_offset),
            job.checksum_offset.eq(head.checksum_offset), job.mss.eq(head.mss),
            job.payload_bytes.eq(parsed.payload_bytes), job.slots.eq(head.slots),
            job.tagged.eq(flag(SendFlag.VLAN_INSERT)), job.vlan_tci.eq(head.vlan_tci),
            self.o.payload.broken.eq(parsed.broken), self.o.payload.has_pieces.eq(parsed.has_pieces),
            self.o.payload.has_inline.eq(parsed.has_inline),
        ]

        total_bytes, longest_bytes = Signal(PAYLOAD_BITS + 1), Signal(17)
        tcp_end, l3_end, checksum_end = Signal(9), Signal(9), Signal(9)

        def add_up():
            l3_header_bytes = Mux(segmented & flag(SendFlag.IPV6), IPV6_HEADER_BYTES, IPV4_HEADER_BYTES)
            m.d.sync += [
                total_bytes.eq(head.inline_bytes + parsed.payload_bytes),
                longest_bytes.eq(head.inline_bytes + head.mss),
                tcp_end.eq(head.l4_offset + TCP_HEADER_BYTES),
                l3_end.eq(head.l3_offset + l3_header_bytes),
                checksum_end.eq(head.checksum_offset + 2),
            ]

        bad_size, bad_segments, bad_template = Signal(), Signal(), Signal()
        bad_l4, bad_l3, bad_tag = Signal(), Signal(), Signal()
        checksum_beyond_frame, l4_beyond_frame, checksum_beyond_inline = Signal(), Signal(), Signal()

        def compare():
            payload_bytes = parsed.payload_bytes
            most = Mux(job.tagged, MAX_FRAME_BYTES - VLAN_TAG_BYTES, MAX_FRAME_BYTES)
            m.d.sync += [
                bad_size.eq((total_bytes < ETHERNET_HEADER_BYTES) | (total_bytes > most)),
                bad_tag.eq(job.tagged & (
                    (head.inline_bytes < VLAN_INLINE_BYTES.start) | (head.inline_bytes >= VLAN_INLINE_BYTES.stop)
                    | ((segmented | job.l4_checksum) & (head.checksum_offset > VLAN_MAX_OFFSET))
                    | ((segmented | job.ipv4_checksum) & (head.l4_offset > VLAN_MAX_OFFSET)))),
                bad_segments.eq((head.mss < MIN_MSS) | (longest_bytes > most)
                                | (payload_bytes == 0) | (payload_bytes > MAX_SEGMENTED_BYTES)),
                bad_template.eq(head.inline_bytes < tcp_end),
                bad_l4.eq(head.l4_offset[0] | head.checksum_offset[0] | (head.checksum_offset < head.l4_offset)),
                bad_l3.eq(head.l3_offset[0] | (head.l4_offset < l3_end)),
                checksum_beyond_frame.eq(checksum_end > total_bytes),
                checksum_beyond_inline.eq(checksum_end > head.inline_bytes),
                l4_beyond_frame.eq(head.l4_offset > total_bytes),
            ]

        def judge():
            bad_frame = (bad_size
                         | (job.l4_checksum & (bad_l4 | checksum_beyond_frame))
                         | (job.ipv4_checksum & (bad_l3 | l4_beyond_frame)))
            bad_segmented = bad_segments | bad_template | bad_l4 | bad_l3 | checksum_beyond_inline
            with m.If(parsed.unknown):
                m.d.sync += status.eq(Status.BAD_OPCODE)
            with m.Elif(parsed.forbidden):
                m.d.sync += status.eq(Status.NOT_PERMITTED)
            with m.Elif(parsed.misshapen | bad_tag | Mux(segmented, bad_segmented, bad_frame)):
                m.d.sync += status.eq(Status.BAD_DESCRIPTOR)
            with m.Else():
                m.d.sync += status.eq(Status.OK)

        with m.FSM(name="check"):
            with m.State("TAKE"):
                m.d.comb += [self.i.ready.eq(1), moves.eq(self.i.valid)]
                with m.If(self.i.valid):
                    m.d.sync += parsed.eq(self.i.payload)
                    m.next = "ADD_UP"
            with m.State("ADD_UP"):
                m.d.comb += moves.eq(1)
                add_up()
                m.next = "COMPARE"
            with m.State("COMPARE"):
                m.d.comb += moves.eq(1)
                compare()
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.comb += moves.eq(1)
                judge()
                m.next = "OFFER"
            with m.State("OFFER"):
                m.d.comb += [self.o.valid.eq(1), moves.eq(self.o.ready)]
                with m.If(self.o.ready):
                    m.next = "TAKE"
        m.d.comb += self.active.eq(moves)
        return m


class JobIssue(wiring.Component):
    """Lets a descriptor go: hands its inline rows, its pieces and its job to the scheduler's store, or throws the
    former two away.

    Enters: jobs with the checks done, the verdict of their keys, their translated pieces and inline rows. Leaves: if
    all is well the inline rows and the pieces, side by side; then, or with the last of them, the job with its final
    status. A broken descriptor leaves nothing. 3 cycles for a job with one piece and one row, one more for each
    further piece or row, whichever are more.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    i, verdict, piece, row : what enters.
    epoch : what the jobs are marked with, see `rtl.fetch.DrainWatch`.
    job, stored_row, stored_piece : strobes, what leaves.
    done : strobe, a descriptor has left; with its job, if it has one.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(Checked)), "verdict": In(stream.Signature(KeyVerdict)),
            "piece": In(stream.Signature(BusPiece)), "row": In(stream.Signature(row(config))), "epoch": In(1),
            "job": Out(Strobe(TxJob)), "stored_row": Out(Strobe(tx_row(config))), "stored_piece": Out(Strobe(TxPiece)),
            "done": Out(1), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        job = Signal(TxJob)
        good, broken, has_pieces, has_rows, moves = Signal(), Signal(), Signal(), Signal(), Signal()
        rows_open, pieces_open = Signal(), Signal()
        m.d.comb += [
            self.row.ready.eq(rows_open), self.piece.ready.eq(pieces_open),
            self.stored_row.valid.eq(self.row.valid & rows_open & good),
            self.stored_row.payload.channel.eq(job.channel), self.stored_row.payload.data.eq(self.row.payload.data),
            self.stored_piece.valid.eq(self.piece.valid & pieces_open & good),
            self.stored_piece.payload.channel.eq(job.channel),
            self.stored_piece.payload.address.eq(self.piece.payload.address),
            self.stored_piece.payload.length.eq(self.piece.payload.length),
            self.job.payload.eq(job), self.job.payload.epoch.eq(self.epoch), self.job.valid.eq(self.done & ~broken),
        ]
        row_leaves, piece_leaves = self.row.valid & self.row.ready, self.piece.valid & self.piece.ready
        rows_close, pieces_close = row_leaves & self.row.payload.last, piece_leaves & self.piece.payload.last
        with m.If(rows_close):
            m.d.sync += rows_open.eq(0)
        with m.If(pieces_close):
            m.d.sync += pieces_open.eq(0)

        with m.FSM(name="issue"):
            with m.State("TAKE"):
                m.d.comb += [self.i.ready.eq(1), moves.eq(self.i.valid)]
                with m.If(self.i.valid):
                    m.d.sync += [
                        job.eq(self.i.payload.job), broken.eq(self.i.payload.broken),
                        has_pieces.eq(self.i.payload.has_pieces), has_rows.eq(self.i.payload.has_inline),
                    ]
                    m.next = "DECIDE"
            with m.State("DECIDE"):
                status, decided = Signal(8), Signal()
                m.d.comb += [
                    status.eq(job.status),
                    decided.eq(self.verdict.valid | ~has_pieces), self.verdict.ready.eq(has_pieces), moves.eq(decided),
                ]
                with m.If(has_pieces & (job.status == Status.OK)):
                    m.d.comb += status.eq(self.verdict.payload.status)
                with m.If(decided):
                    m.d.sync += [
                        job.status.eq(status), good.eq((status == Status.OK) & ~broken),
                        rows_open.eq(has_rows), pieces_open.eq(has_pieces),
                    ]
                    m.next = "STORE"
            with m.State("STORE"):
                with m.If((~rows_open | rows_close) & (~pieces_open | pieces_close)):
                    m.d.comb += [self.done.eq(1), moves.eq(1)]
                    m.next = "TAKE"
        m.d.comb += self.active.eq(moves | row_leaves | piece_leaves)
        return m
