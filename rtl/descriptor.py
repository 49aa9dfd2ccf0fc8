"""Submission descriptors: from bus beats to jobs. In packet order: slots, cutter, parser, keys of the pieces, checks,
issue."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
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
from nic_model.contract.sockets import SOCKET_HEAD, SOCKET_PARAMETERS
from rtl.interfaces import (
    CHANNEL_BITS,
    INDEX_BITS,
    LENGTH_BITS,
    SOCKET_OPERATION,
    ChannelFault,
    ChannelNumber,
    IndexReport,
    KeyAnswer,
    KeyRequest,
    Strobe,
    TxJob,
    TxPiece,
    contract_view,
    is_operation,
    read_beat,
    row,
    tx_row,
)
from rtl.primitives import SkidBuffer, SmallRam, StreamFifo
from rtl.small_fifo import SmallFifo

SLOT_BITS = 8 * SUBMISSION_SLOT_BYTES
FETCH_SLOTS = 64
"""Slots of the longest fetch."""

PAYLOAD_BITS = (MAX_PIECES * MAX_PIECE_BYTES).bit_length()


WORD_BITS = 64
OPERATION_WORDS = 2
"""Words of a socket operation's slot behind its first half; the pieces' places keep them."""

Head = contract_view(SUBMISSION_HEAD)
SocketHead = contract_view(SOCKET_HEAD)
Piece = contract_view(PIECE)

# What was asked of the bus: `count` slots from `index` on; `more` slots stood behind them in the ring. A `pushed` one
# asks for nothing: it is one whole descriptor, whose slots the host wrote.
Fetch = data.StructLayout({
    "channel": CHANNEL_BITS, "count": range(FETCH_SLOTS + 1), "more": 1, "index": INDEX_BITS, "pushed": 1,
})

# All slots of a fetch have been taken; `cut`: its last descriptor, at `index`, was cut off and must be fetched again.
FetchEnd = data.StructLayout({"channel": CHANNEL_BITS, "cut": 1, "index": INDEX_BITS})

Slot = data.StructLayout({"data": SLOT_BITS, "error": 1})

# A slot of a whole descriptor, `first` or `last` of it; `ring_index` is the index behind the descriptor. `broken`,
# beside the last: a slot could not be read. `pushed`: they are all there, and none is broken.
Part = data.StructLayout({
    "channel": CHANNEL_BITS, "ring_index": INDEX_BITS, "data": SLOT_BITS, "first": 1, "last": 1, "broken": 1,
    "pushed": 1,
})

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
# nothing. Pieces and inline slots went ahead on streams of their own, if `has_pieces`, `has_inline`. The sums are what
# the checks compare: inline and payload bytes, and where the longest segment, the TCP and IP headers without options
# and the checksum field end.
Parsed = data.StructLayout({
    "channel": CHANNEL_BITS, "ring_index": INDEX_BITS, "head": Head, "payload_bytes": PAYLOAD_BITS,
    "total_bytes": PAYLOAD_BITS + 1, "longest_bytes": 17, "tcp_end": 9, "l3_end": 9, "checksum_end": 9,
    "unknown": 1, "forbidden": 1, "misshapen": 1, "broken": 1, "has_pieces": 1, "has_inline": 1,
})

# The same with all its checks done but that of its keys.
Checked = data.StructLayout({"job": TxJob, "broken": 1, "has_pieces": 1, "has_inline": 1})


def names_operation(opcode):
    """Whether an Opcode is a socket operation's: those are the eight from SOCKET_CONNECT on."""
    return opcode[3:] == Opcode.SOCKET_CONNECT >> 3


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
        # whoever takes slots may look at them first, which must not reach back to the bus
        m.submodules.output = output = SkidBuffer(shape=Slot)
        wiring.connect(m, output.o, wiring.flipped(self.o))
        beat, slot = self.i.payload, output.i.payload
        free, fills = Signal(), Signal()
        m.d.comb += [free.eq(output.i.ready), output.i.valid.eq(fills)]
        taken = self.i.valid & self.i.ready

        if self.config.host_bytes == 16:
            # bursts start at a slot's border, so both beats of a slot have the same error
            lower, has_lower = Signal(SLOT_BITS // 2), Signal()
            m.d.comb += [self.i.ready.eq(~has_lower | free), fills.eq(taken & has_lower)]
            with m.If(taken):
                m.d.sync += has_lower.eq(~has_lower)
            with m.If(taken & ~has_lower):
                m.d.sync += lower.eq(beat.data)
            m.d.comb += [slot.data.eq(Cat(lower, beat.data)), slot.error.eq(beat.error)]
        elif self.config.host_bytes == 32:
            m.d.comb += [self.i.ready.eq(free), fills.eq(taken)]
            m.d.comb += [slot.data.eq(beat.data), slot.error.eq(beat.error)]
        else:
            lower_given, has_two, takes_upper = Signal(), Signal(), Signal()
            m.d.comb += [
                has_two.eq(beat.count == 2 * SUBMISSION_SLOT_BYTES),
                takes_upper.eq(lower_given | (beat.start == SUBMISSION_SLOT_BYTES)),
                self.i.ready.eq(free & (~has_two | lower_given)),
                fills.eq(self.i.valid & free),
                slot.data.eq(Mux(takes_upper, beat.data[SLOT_BITS:], beat.data[:SLOT_BITS])),
                slot.error.eq(beat.error),
            ]
            with m.If(fills):
                m.d.sync += lower_given.eq(has_two & ~lower_given)

        m.d.comb += self.active.eq(taken | output.active)
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


class DescriptorCutter(wiring.Component):
    """Cuts the slots of fetches into whole descriptors.

    Enters: fetches in the order in which they were asked for, and their slots, fetched or pushed. Leaves: the slots of
    each whole descriptor; its channel's new index as `consumed`, when its last slot is taken; when all slots of a fetch
    are, `finished`. A descriptor that a fetch cuts off goes on into the next fetch, if that is there and follows
    directly; otherwise it is left, and `finished` says where. Whatever was asked for behind a descriptor that was left,
    or that was at fault, is thrown away: it does not begin at the channel's index. So is a fetch of a channel that does
    not run. A descriptor that cannot be one stops its channel, by a fault.

    Latency 1 cycle, throughput one slot a cycle, 2 cycles more for each fetch.

    Parameters
    ----------
    channels : int
        Channels of the device.

    Members
    -------
    fetch, slot, pushed_slot : what was asked for, and what came.
    running : level for each channel.
    empties : strobe, the channel's index is 0 now. `hold` must be 1 then, and may be before: no slot is taken.
    part : slots of descriptors.
    begun : strobe, with or before the strobe `finished` of its fetch: a descriptor's last slot was taken.
    consumed, finished : strobes, see above.
    fault : TRUNCATED_DESCRIPTOR or FETCH_BUS_ERROR.
    """

    def __init__(self, *, channels: int):
        if not isinstance(channels, int) or channels < 2:
            raise ValueError(f"channels must be an integer of at least 2, not {channels!r}")
        self.channels = channels
        super().__init__({
            "fetch": In(stream.Signature(Fetch)), "slot": In(stream.Signature(Slot)),
            "pushed_slot": In(stream.Signature(Slot)), "running": In(channels),
            "empties": In(Strobe(ChannelNumber)), "hold": In(1),
            "part": Out(stream.Signature(Part)), "begun": Out(1),
            "consumed": Out(Strobe(IndexReport)), "finished": Out(Strobe(FetchEnd)),
            "fault": Out(stream.Signature(ChannelFault)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        # whether a slot is taken is known late
        m.submodules.output = output = SkidBuffer(shape=Part, early=True)
        wiring.connect(m, output.o, wiring.flipped(self.part))
        part, fetch = output.i.payload, self.fetch.payload
        moves = Signal()

        # The fetch under way.
        channel, index = Signal(CHANNEL_BITS), Signal(INDEX_BITS)
        left = Signal(range(2 * FETCH_SLOTS + 1))
        more, pushed, cut, stale, joins = Signal(), Signal(), Signal(), Signal(), Signal()
        fetch_end = Signal(INDEX_BITS)
        # The descriptor under way: slots to come, 0 between two of them; its slots, and the index behind it.
        rest, slots, behind = Signal(4), Signal(5), Signal(INDEX_BITS)
        broken = Signal()

        # Each channel's index: where the next descriptor begins.
        m.submodules.indices = indices = SmallRam(shape=INDEX_BITS, depth=self.channels)
        m.d.comb += [
            indices.read_addr.eq(channel), indices.write_en.eq(self.consumed.valid | self.empties.valid),
            indices.write_addr.eq(Mux(self.empties.valid, self.empties.payload.channel, self.consumed.payload.channel)),
            indices.write_data.eq(Mux(self.empties.valid, 0, self.consumed.payload.index)),
        ]

        # Slots come from one of two places.
        has_slot, takes_slot, slot = Signal(), Signal(), Signal(Slot)
        m.d.comb += [
            has_slot.eq(Mux(pushed, self.pushed_slot.valid, self.slot.valid)),
            slot.eq(Mux(pushed, self.pushed_slot.payload, self.slot.payload)),
            self.slot.ready.eq(takes_slot & ~pushed), self.pushed_slot.ready.eq(takes_slot & pushed),
        ]

        ended, accepts, ends_descriptor = Signal(), Signal(), Signal()
        is_head, runs, impossible, cut_off, is_last = Signal(), Signal(), Signal(), Signal(), Signal()
        part_free, breaks, claimed = Signal(), Signal(), Signal(8)
        end_of_head = Signal(INDEX_BITS)
        m.d.comb += [
            is_head.eq(rest == 0), claimed.eq(Head(slot.data[:Head.size]).slots),
            runs.eq(self.running.bit_select(channel[:len(indices.read_addr)], 1)),
            impossible.eq((claimed == 0) | (claimed > MAX_DESCRIPTOR_SLOTS)), cut_off.eq(claimed > left),
            is_last.eq(Mux(is_head, claimed == 1, rest == 1)),
            end_of_head.eq(index + claimed[:5]),
            part_free.eq(output.i.ready), output.i.valid.eq(accepts),
            breaks.eq(slot.error | (broken & ~is_head)),
            self.fault.payload.channel.eq(channel),
            part.channel.eq(channel), part.data.eq(slot.data), part.first.eq(is_head), part.last.eq(is_last),
            part.broken.eq(breaks), part.pushed.eq(pushed), part.ring_index.eq(Mux(is_head, end_of_head, behind)),
        ]

        def accept():
            m.d.comb += [accepts.eq(1), takes_slot.eq(1), moves.eq(1), ends_descriptor.eq(is_last)]
            m.d.sync += [rest.eq(Mux(is_head, claimed, rest) - 1), broken.eq(breaks)]
            with m.If(is_head):
                m.d.sync += [behind.eq(end_of_head), slots.eq(claimed)]
            with m.If(is_last):
                m.d.sync += index.eq(Mux(is_head, end_of_head, behind))
                with m.If(breaks):
                    stop_channel(ChannelError.FETCH_BUS_ERROR)
                with m.Elif(left == 1):
                    m.d.comb += ended.eq(1)
                    m.next = "WAIT_FOR_FETCH"

        def stop_channel(code):
            m.d.sync += self.fault.payload.code.eq(code)
            m.next = "FAULT"

        with m.If(has_slot & takes_slot):
            m.d.sync += left.eq(left - 1)
        m.d.sync += [
            self.begun.eq(ends_descriptor), self.consumed.valid.eq(ends_descriptor & ~breaks),
            self.finished.valid.eq(ended),
        ]
        with m.If(ends_descriptor):
            m.d.sync += [
                self.consumed.payload.channel.eq(channel),
                self.consumed.payload.index.eq(Mux(is_head, end_of_head, behind)),
            ]
        with m.If(ended):
            m.d.sync += [
                self.finished.payload.channel.eq(channel), self.finished.payload.cut.eq(cut),
                self.finished.payload.index.eq(index),
            ]
        with m.FSM(name="cutter"):
            with m.State("WAIT_FOR_FETCH"):
                m.d.comb += [self.fetch.ready.eq(1), moves.eq(self.fetch.valid)]
                with m.If(self.fetch.valid):
                    m.d.sync += [
                        channel.eq(fetch.channel), left.eq(fetch.count), more.eq(fetch.more), index.eq(fetch.index),
                        pushed.eq(fetch.pushed), fetch_end.eq(fetch.index + fetch.count), stale.eq(0), cut.eq(0),
                    ]
                    m.next = "COMPARE"
                    with m.If(fetch.pushed):
                        m.next = "SLOTS"  # its channel had nothing else under way
            with m.State("COMPARE"):
                m.d.comb += moves.eq(1)
                m.d.sync += stale.eq(indices.read_data != index)
                m.next = "SLOTS"
            with m.State("SLOTS"):
                m.d.comb += output.may_enter.eq(has_slot & ~self.hold)
                with m.If(has_slot & ~self.hold):
                    with m.If(is_head & (~runs | stale)):
                        m.d.comb += moves.eq(1)
                        m.next = "THROW_AWAY"
                    with m.Elif(is_head & slot.error):
                        m.d.comb += moves.eq(1)
                        stop_channel(ChannelError.FETCH_BUS_ERROR)
                    with m.Elif(is_head & (impossible | (cut_off & ~more))):
                        m.d.comb += moves.eq(1)
                        stop_channel(ChannelError.TRUNCATED_DESCRIPTOR)
                    with m.Elif(is_head & cut_off):
                        m.d.comb += moves.eq(1)
                        m.next = "CUT_OFF"
                    with m.Elif(part_free):
                        accept()
            with m.State("CUT_OFF"):
                m.d.comb += moves.eq(1)
                m.d.sync += joins.eq(self.fetch.valid & ~fetch.pushed & (fetch.channel == channel)
                                     & (fetch.index == fetch_end))
                m.next = "JOIN"
            with m.State("JOIN"):
                m.d.comb += [moves.eq(1), self.fetch.ready.eq(joins), ended.eq(joins)]
                with m.If(joins):
                    m.d.sync += [
                        left.eq(left + fetch.count), more.eq(fetch.more), fetch_end.eq(fetch_end + fetch.count),
                    ]
                    m.next = "SLOTS"
                with m.Else():
                    m.d.sync += cut.eq(1)
                    m.next = "THROW_AWAY"
            with m.State("FAULT"):
                m.d.comb += [self.fault.valid.eq(1), moves.eq(self.fault.ready)]
                with m.If(self.fault.ready):
                    m.next = "THROW_AWAY"
            with m.State("THROW_AWAY"):
                m.d.comb += [takes_slot.eq(left != 0), moves.eq((left == 0) | has_slot)]
                with m.If(left == 0):
                    m.d.comb += ended.eq(1)
                    m.next = "WAIT_FOR_FETCH"

        m.d.comb += self.active.eq(
            moves | output.active | self.begun | self.finished.valid | self.empties.valid)
        return m


class DescriptorParser(wiring.Component):
    """Takes descriptors apart.

    Enters: the slots of whole descriptors. Leaves: of each descriptor the pieces and the inline slots, then the
    descriptor itself. One whose operation or shape is refused leaves neither pieces nor inline slots. A pushed one that
    has no pieces behind its head leaves before its inline slots.

    Of a socket operation the second half of its slot leaves as if it were two pieces, `unasked`: each is a word of 64
    bits, in the places of offset and key. Its parameters leave as inline slots.

    Latency 2 cycles, 1 for pieces and inline slots; a slot a cycle, but two for a slot with two pieces, and on a
    16-byte bus for an inline slot.

    Parameters
    ----------
    has_sockets : bool
        Whether socket operations are known.

    Members
    -------
    part : slots.
    channel, operations : a channel's OperationMask is looked up: in the same cycle.
    piece, inline, parsed : what leaves.
    unasked : beside `piece`, if there are socket operations: it is one's word, and names no memory.
    """

    def __init__(self, *, has_sockets: bool = False):
        self.has_sockets = has_sockets
        super().__init__({
            "part": In(stream.Signature(Part)), "channel": Out(CHANNEL_BITS), "operations": In(len(OperationMask)),
            "piece": Out(stream.Signature(NamedPiece)), "inline": Out(stream.Signature(InlineSlot)),
            "parsed": Out(stream.Signature(Parsed)), "active": Out(1),
            **({"unasked": Out(1)} if has_sockets else {}),
        })

    def elaborate(self, platform):
        m = Module()
        part, parsed = self.part.payload, self.parsed.payload

        # The slot at hand, and its descriptor.
        has_slot, enters, leaves = Signal(), Signal(), Signal()
        slot, first, last, broken = Signal(SLOT_BITS), Signal(), Signal(), Signal()
        may_be_early, early, given, short = Signal(), Signal(), Signal(), Signal()
        head, channel, ring_index = Signal(Head), Signal(CHANNEL_BITS), Signal(INDEX_BITS)
        unknown, forbidden, bad_shape, refused = Signal(), Signal(), Signal(), Signal()
        inline_left, pieces_left, in_upper = Signal(4), Signal(range(MAX_PIECES + 1)), Signal()
        payload_bytes, total_bytes, bad_length = Signal(PAYLOAD_BITS), Signal(PAYLOAD_BITS + 1), Signal()

        arriving = Head(part.data[:Head.size])
        is_frame, is_segmented = Signal(), Signal()
        m.d.comb += [
            self.channel.eq(part.channel),
            is_frame.eq(arriving.opcode == Opcode.SEND_FRAME),
            is_segmented.eq(arriving.opcode == Opcode.SEND_SEGMENTED),
            self.part.ready.eq(~has_slot | leaves), enters.eq(self.part.valid & self.part.ready),
        ]
        with m.If(enters):
            m.d.sync += [has_slot.eq(1), slot.eq(part.data), first.eq(part.first), last.eq(part.last),
                         broken.eq(part.broken),
                         may_be_early.eq(part.pushed & part.first & (arriving.pieces <= 1))]
        with m.Elif(leaves):
            m.d.sync += has_slot.eq(0)

        # Of a socket operation's head two words leave, the second as if the first were a piece and this the upper one.
        operation, is_send_head = Signal(), Signal()
        if self.has_sockets:
            m.d.comb += self.unasked.eq(operation)
            with m.If(enters):
                m.d.sync += is_send_head.eq(part.first & ~names_operation(arriving.opcode))

        # What of it leaves in this cycle. The descriptor itself goes with its last slot, or already with its head.
        named, names_piece, gives_inline, has_piece, last_piece = (
            Signal(Piece), Signal(), Signal(), Signal(), Signal())
        may_go = Signal()
        head_names, is_last, ends_head, upper_next = pieces_left != 0, pieces_left == 1, first, ~first & ~last_piece
        if self.has_sockets:
            head_names |= operation
            is_last = Mux(operation, in_upper, is_last)
            ends_head, upper_next = is_send_head, operation | upper_next
        m.d.comb += [
            early.eq(may_be_early & ~refused),
            may_go.eq(has_slot & (~((last & ~given) | early) | ~self.parsed.valid | self.parsed.ready)),
            has_piece.eq(~refused & Mux(first, head_names, inline_left == 0)),
            self.piece.valid.eq(may_go & has_piece), names_piece.eq(self.piece.valid & self.piece.ready),
            last_piece.eq(is_last),
            named.eq(slot.word_select(first | in_upper, SLOT_BITS // 2)),
            gives_inline.eq(~refused & ~first & (inline_left != 0)),
            self.inline.valid.eq(may_go & gives_inline),
            leaves.eq(may_go & Mux(
                gives_inline, self.inline.ready,
                ~has_piece | (self.piece.ready & (ends_head | last_piece | in_upper)))),
            self.piece.payload.channel.eq(channel),
            self.piece.payload.key.eq(named.key), self.piece.payload.offset.eq(named.offset),
            self.piece.payload.length.eq(named.length), self.piece.payload.last.eq(last_piece),
        ]
        if self.has_sockets:
            with m.If(operation):
                word = named.as_value().word_select(in_upper, WORD_BITS)
                m.d.comb += Cat(self.piece.payload.offset, self.piece.payload.key).eq(word)
        with m.If(names_piece):
            m.d.sync += [pieces_left.eq(pieces_left - 1), in_upper.eq(upper_next & ~in_upper)]
        with m.If(self.inline.valid & self.inline.ready):
            m.d.sync += inline_left.eq(inline_left - 1)
        m.d.comb += [
            self.inline.payload.data.eq(slot), self.inline.payload.last.eq(inline_left == 1),
            self.inline.payload.short.eq(short),
        ]

        # A head takes the place of the descriptor before it, which may leave in the same cycle. Whether it is refused
        # is needed early, so that is a register.
        inline_slots, is_unknown, is_forbidden, is_bad_shape = Signal(4), Signal(), Signal(), Signal()
        counted = MAX_DESCRIPTOR_SLOTS.bit_length()
        full_slots = arriving.inline_bytes[5:MAX_INLINE_BYTES.bit_length()]
        begun_slot = arriving.inline_bytes[:5].any()
        is_none = ~is_frame & ~is_segmented
        forbids = ((is_frame & ~(self.operations & OperationMask.SEND_FRAME).any())
                   | (is_segmented & ~(self.operations & OperationMask.SEND_SEGMENTED).any()))
        # the head's slot has a piece too; within the limits few bits say the rest
        misfits = ((arriving.inline_bytes > MAX_INLINE_BYTES) | (arriving.pieces > MAX_PIECES)
                   | arriving.slots[counted:].any()
                   | ((arriving.slots[:counted] - (arriving.pieces >> 1)[:counted])[:counted]
                      != full_slots + Mux(begun_slot, 2, 1)))
        if self.has_sockets:
            is_socket, parameters = Signal(), arriving.inline_bytes
            m.d.comb += is_socket.eq(names_operation(arriving.opcode))
            is_none &= ~is_socket
            forbids |= is_socket & ~(self.operations & OperationMask.SOCKET).any()
            misfits |= is_socket & (
                ((parameters != 0) & (parameters != SOCKET_PARAMETERS.size_bytes)) | (arriving.pieces > 1))
            with m.If(enters & part.first):
                m.d.sync += operation.eq(is_socket)
        m.d.comb += [
            inline_slots.eq(full_slots + begun_slot), is_unknown.eq(is_none), is_forbidden.eq(forbids),
            is_bad_shape.eq(misfits),
        ]
        with m.If(enters & part.first):
            m.d.sync += [
                head.eq(arriving), channel.eq(part.channel), ring_index.eq(part.ring_index),
                unknown.eq(is_unknown), forbidden.eq(is_forbidden), bad_shape.eq(is_bad_shape),
                refused.eq(is_unknown | is_forbidden | is_bad_shape),
                inline_left.eq(inline_slots), pieces_left.eq(arriving.pieces),
                short.eq(begun_slot & (arriving.inline_bytes[:5] <= 16)),
            ]

        # Sums over the pieces, with the one at hand.
        payload_now, total_now, bad_now = Signal.like(payload_bytes), Signal.like(total_bytes), Signal()
        is_piece = has_piece & ~operation if self.has_sockets else has_piece
        length = Mux(is_piece, named.length, 0)
        m.d.comb += [
            payload_now.eq(Mux(first, 0, payload_bytes) + length),
            total_now.eq(Mux(first, head.inline_bytes, total_bytes) + length),
            bad_now.eq((bad_length & ~first)
                       | (is_piece & ((named.length == 0) | (named.length > MAX_PIECE_BYTES)))),
        ]
        with m.If(names_piece | leaves & first):
            m.d.sync += [payload_bytes.eq(payload_now), total_bytes.eq(total_now), bad_length.eq(bad_now)]

        gives_parsed = Signal()
        m.d.comb += gives_parsed.eq(leaves & ((last & ~given) | early))
        with m.If(leaves):
            m.d.sync += given.eq((given | early) & ~last)
        with m.If(self.parsed.ready):
            m.d.sync += self.parsed.valid.eq(0)
        with m.If(gives_parsed):
            is_ipv6 = (head.opcode == Opcode.SEND_SEGMENTED) & (head.flags & SendFlag.IPV6).any()
            counts = has_piece | first
            has_pieces = head.pieces != 0
            if self.has_sockets:
                has_pieces |= operation
            m.d.sync += [
                self.parsed.valid.eq(1),
                parsed.channel.eq(channel), parsed.ring_index.eq(ring_index), parsed.head.eq(head),
                parsed.payload_bytes.eq(Mux(counts, payload_now, payload_bytes)),
                parsed.total_bytes.eq(Mux(counts, total_now, total_bytes)),
                parsed.longest_bytes.eq(head.inline_bytes + head.mss),
                parsed.tcp_end.eq(head.l4_offset + TCP_HEADER_BYTES),
                parsed.l3_end.eq(head.l3_offset + Mux(is_ipv6, IPV6_HEADER_BYTES, IPV4_HEADER_BYTES)),
                parsed.checksum_end.eq(head.checksum_offset + 2),
                parsed.unknown.eq(unknown), parsed.forbidden.eq(forbidden),
                parsed.misshapen.eq(bad_shape | Mux(counts, bad_now, bad_length)),
                parsed.broken.eq(broken), parsed.has_pieces.eq(~refused & has_pieces),
                parsed.has_inline.eq(~refused & (head.inline_bytes != 0)),
            ]
        m.d.comb += self.active.eq(
            enters | leaves | names_piece
            | (self.inline.valid & self.inline.ready) | (self.parsed.valid & self.parsed.ready))
        return m


class PieceTranslator(wiring.Component):
    """Shows the pieces of descriptors to the key table.

    Enters: pieces as the descriptors name them. Leaves: the same pieces with their bus addresses, and one verdict for
    each descriptor that has pieces: OK, or the status of the first piece that was refused; then its pieces mean
    nothing. A whole descriptor's pieces and the verdict are there before any of them need be taken. What is `unasked`
    keeps its place among the pieces, but the key table does not see it, and what it names stands for an address.

    Latency is the key table's and 1 cycle, or with operations 2; one piece a cycle.

    Parameters
    ----------
    has_sockets : bool
        Whether there are words of socket operations among the pieces.

    Members
    -------
    i : pieces.
    unasked : beside `i`, see `DescriptorParser`.
    key_request, key_answer : the key table.
    piece, verdict : what leaves.
    """

    QUESTIONS = 16
    """Questions under way: more than the key table takes."""
    STORED_PIECES = 64
    """Two descriptors' pieces: one may be issued while the next is checked."""

    def __init__(self, *, has_sockets: bool = False):
        self.has_sockets = has_sockets
        super().__init__({
            "i": In(stream.Signature(NamedPiece)), **({"unasked": In(1)} if has_sockets else {}),
            "key_request": Out(stream.Signature(KeyRequest)), "key_answer": In(stream.Signature(KeyAnswer)),
            "piece": Out(stream.Signature(BusPiece)), "verdict": Out(stream.Signature(KeyVerdict)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        Question = data.StructLayout({
            "length": LENGTH_BITS, "last": 1, **({"unasked": 1, "word": WORD_BITS} if self.has_sockets else {}),
        })
        m.submodules.questions = questions = SmallFifo(shape=Question, depth=self.QUESTIONS)
        m.submodules.pieces = pieces = StreamFifo(shape=BusPiece, depth=self.STORED_PIECES, bypass=True)
        wiring.connect(m, pieces.o, wiring.flipped(self.piece))

        entering = self.i
        if self.has_sockets:
            # whether it is asked decides what the parser waits for: that does not reach back to it in the same cycle
            m.submodules.entry = entry = SkidBuffer(shape=data.StructLayout({"piece": NamedPiece, "unasked": 1}))
            entering, unasked = entry.o, entry.o.payload.unasked
            m.d.comb += [
                entry.i.valid.eq(self.i.valid), entry.i.payload.piece.eq(self.i.payload),
                entry.i.payload.unasked.eq(self.unasked), self.i.ready.eq(entry.i.ready),
            ]
        asked, request = entering.payload, self.key_request.payload
        asks, may_ask = entering.valid & questions.i.ready, self.key_request.ready
        if self.has_sockets:
            asked = asked.piece
            asks &= ~unasked
            may_ask |= unasked
            m.d.comb += [
                questions.i.payload.unasked.eq(unasked),
                questions.i.payload.word.eq(Cat(asked.offset, asked.key)),
            ]
        m.d.comb += [
            self.key_request.valid.eq(asks),
            questions.i.valid.eq(entering.valid & may_ask),
            entering.ready.eq(may_ask & questions.i.ready),
            request.channel.eq(asked.channel), request.key.eq(asked.key), request.offset.eq(asked.offset),
            request.length.eq(asked.length), request.write.eq(0),
            questions.i.payload.length.eq(asked.length), questions.i.payload.last.eq(asked.last),
        ]

        # The last answer of a descriptor waits for the verdict's place.
        asking = questions.o
        if self.has_sockets:
            # what is unasked decides more than a question does: it comes out of a register
            m.submodules.question = stage = SkidBuffer(shape=Question)
            wiring.connect(m, questions.o, stage.i)
            asking = stage.o
        question, answer = asking.payload, self.key_answer.payload
        has_place, answered = Signal(), Signal()
        first_refusal = Signal(8)
        has_answer, takes, comes = self.key_answer.valid, has_place & asking.valid, self.key_answer.ready
        address, status = answer.address, answer.status
        if self.has_sockets:
            comes = takes
            takes = takes & ~question.unasked
            has_answer |= question.unasked
            address, status = Mux(question.unasked, question.word, address), Mux(question.unasked, Status.OK, status)
        m.d.comb += [
            has_place.eq(pieces.i.ready & ~(question.last & self.verdict.valid)),
            self.key_answer.ready.eq(takes),
            answered.eq(has_answer & comes),
            asking.ready.eq(has_answer & has_place),
            pieces.i.valid.eq(answered),
            pieces.i.payload.address.eq(address), pieces.i.payload.length.eq(question.length),
            pieces.i.payload.last.eq(question.last),
        ]
        with m.If(self.verdict.ready):
            m.d.sync += self.verdict.valid.eq(0)
        with m.If(answered):
            so_far = Mux(first_refusal == Status.OK, status, first_refusal)
            m.d.sync += first_refusal.eq(Mux(question.last, Status.OK, so_far))
            with m.If(question.last):
                m.d.sync += [self.verdict.valid.eq(1), self.verdict.payload.status.eq(so_far)]
        active = questions.active | pieces.active | answered | (self.verdict.valid & self.verdict.ready)
        if self.has_sockets:
            active |= stage.active | entry.active
        m.d.comb += self.active.eq(active)
        return m


class DescriptorCheck(wiring.Component):
    """Checks what a descriptor asks for, but for its keys, by the contract's rules.

    Enters: descriptors. Leaves: jobs with OK, BAD_OPCODE, NOT_PERMITTED or BAD_DESCRIPTOR, the first that applies; or
    with SOCKET_OPERATION, which has its operation in `l4_offset`, its flags in `checksum_offset` and its socket in
    `vlan_tci`. Latency 2 cycles, throughput one a cycle, or with socket operations one in 2.

    Parameters
    ----------
    has_sockets : bool
        Whether there are socket operations among the descriptors.

    Members
    -------
    i, o : descriptors in, jobs out.
    """

    def __init__(self, *, has_sockets: bool = False):
        self.has_sockets = has_sockets
        super().__init__({"i": In(stream.Signature(Parsed)), "o": Out(stream.Signature(Checked)), "active": Out(1)})

    def elaborate(self, platform):
        m = Module()
        parsed = self.i.payload
        head, payload_bytes = parsed.head, parsed.payload_bytes
        compared, has_compared = Signal(Checked), Signal()
        moves_on, leaves = Signal(), Signal()
        # Behind it two sources of jobs take turns, 2 cycles or more each: that must not reach back to the parser.
        is_free = ~self.o.valid if self.has_sockets else ~self.o.valid | self.o.ready
        m.d.comb += [leaves.eq(is_free), moves_on.eq(~has_compared | leaves), self.i.ready.eq(moves_on)]
        enters = self.i.valid & moves_on

        def flag(which):
            return (head.flags & which).any()

        job = compared.job
        unknown, forbidden, misshapen = Signal(), Signal(), Signal()
        bad_size, bad_segments, bad_template = Signal(), Signal(), Signal()
        bad_l4, bad_l3, bad_tag = Signal(), Signal(), Signal()
        checksum_beyond_frame, l4_beyond_frame, checksum_beyond_inline = Signal(), Signal(), Signal()

        tagged, segmented = flag(SendFlag.VLAN_INSERT), head.opcode == Opcode.SEND_SEGMENTED
        most = Mux(tagged, MAX_FRAME_BYTES - VLAN_TAG_BYTES, MAX_FRAME_BYTES)
        with m.If(moves_on):
            m.d.sync += has_compared.eq(self.i.valid)
        with m.If(enters):
            m.d.sync += [
                job.channel.eq(parsed.channel), job.tag.eq(head.tag), job.ring_index.eq(parsed.ring_index),
                job.slots.eq(head.slots),
                job.complete.eq(flag(SendFlag.COMPLETE)), job.timestamp.eq(flag(SendFlag.TIMESTAMP)),
                job.segmented.eq(segmented), job.ipv6.eq(flag(SendFlag.IPV6)),
                job.ipv4_checksum.eq(flag(SendFlag.IPV4_CHECKSUM)), job.l4_checksum.eq(flag(SendFlag.L4_CHECKSUM)),
                job.udp.eq(flag(SendFlag.UDP)),
                job.inline_bytes.eq(head.inline_bytes), job.l3_offset.eq(head.l3_offset),
                job.l4_offset.eq(head.l4_offset), job.checksum_offset.eq(head.checksum_offset), job.mss.eq(head.mss),
                job.payload_bytes.eq(payload_bytes), job.tagged.eq(tagged), job.vlan_tci.eq(head.vlan_tci),
                compared.broken.eq(parsed.broken), compared.has_pieces.eq(parsed.has_pieces),
                compared.has_inline.eq(parsed.has_inline),
                unknown.eq(parsed.unknown), forbidden.eq(parsed.forbidden), misshapen.eq(parsed.misshapen),
                bad_size.eq((parsed.total_bytes < ETHERNET_HEADER_BYTES) | (parsed.total_bytes > most)),
                bad_tag.eq(tagged & (
                    (head.inline_bytes < VLAN_INLINE_BYTES.start) | (head.inline_bytes >= VLAN_INLINE_BYTES.stop)
                    | ((segmented | flag(SendFlag.L4_CHECKSUM)) & (head.checksum_offset > VLAN_MAX_OFFSET))
                    | ((segmented | flag(SendFlag.IPV4_CHECKSUM)) & (head.l4_offset > VLAN_MAX_OFFSET)))),
                bad_segments.eq((head.mss < MIN_MSS) | (parsed.longest_bytes > most)
                                | (payload_bytes == 0) | (payload_bytes > MAX_SEGMENTED_BYTES)),
                bad_template.eq(head.inline_bytes < parsed.tcp_end),
                bad_l4.eq(head.l4_offset[0] | head.checksum_offset[0] | (head.checksum_offset < head.l4_offset)),
                bad_l3.eq(head.l3_offset[0] | (head.l4_offset < parsed.l3_end)),
                checksum_beyond_frame.eq(parsed.checksum_end > parsed.total_bytes),
                checksum_beyond_inline.eq(parsed.checksum_end > head.inline_bytes),
                l4_beyond_frame.eq(head.l4_offset > parsed.total_bytes),
            ]
        operation = Signal()
        if self.has_sockets:
            socket_head = SocketHead(Cat(head, Const(0, SLOT_BITS - Head.size)))
            with m.If(enters):
                m.d.sync += operation.eq(names_operation(head.opcode))
                with m.If(names_operation(head.opcode)):
                    m.d.sync += [
                        job.tagged.eq(0), job.l4_offset.eq(socket_head.opcode),
                        job.checksum_offset.eq(socket_head.flags), job.vlan_tci.eq(socket_head.socket),
                    ]

        if self.has_sockets:
            with m.If(self.o.ready):
                m.d.sync += self.o.valid.eq(0)
        with m.If(leaves):
            m.d.sync += self.o.valid.eq(has_compared)
        with m.If(leaves & has_compared):
            bad_frame = (bad_size
                         | (job.l4_checksum & (bad_l4 | checksum_beyond_frame))
                         | (job.ipv4_checksum & (bad_l3 | l4_beyond_frame)))
            bad_segmented = bad_segments | bad_template | bad_l4 | bad_l3 | checksum_beyond_inline
            bad = misshapen | bad_tag | Mux(job.segmented, bad_segmented, bad_frame)
            if self.has_sockets:
                bad = Mux(operation, misshapen, bad)
            status = self.o.payload.job.status
            m.d.sync += self.o.payload.eq(compared)
            with m.If(unknown):
                m.d.sync += status.eq(Status.BAD_OPCODE)
            with m.Elif(forbidden):
                m.d.sync += status.eq(Status.NOT_PERMITTED)
            with m.Elif(bad):
                m.d.sync += status.eq(Status.BAD_DESCRIPTOR)
            with m.Else():
                m.d.sync += status.eq(Mux(operation, SOCKET_OPERATION, Status.OK) if self.has_sockets else Status.OK)
        m.d.comb += self.active.eq(enters | (leaves & has_compared) | (self.o.valid & self.o.ready))
        return m


class JobIssue(wiring.Component):
    """Lets a descriptor go: hands its inline rows, its pieces and its job to the scheduler's store, or throws the
    former two away.

    Enters: jobs with the checks done, the verdict of their keys, their translated pieces and inline rows. Leaves: if
    all is well the inline rows and the pieces, side by side; then, or with the last of them, the job with its final
    status. A broken descriptor leaves nothing. 2 cycles for a job with one piece and one row, one more for each
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
        def is_good(status):
            return (status == Status.OK) | is_operation(status) if self.config.flows else status == Status.OK

        # what is decided counts in the same cycle
        status, decided, good_now, rows_now, pieces_now = Signal(8), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            good_now.eq(Mux(decided, is_good(status) & ~broken, good)),
            rows_now.eq(Mux(decided, has_rows, rows_open)), pieces_now.eq(Mux(decided, has_pieces, pieces_open)),
            self.row.ready.eq(rows_now), self.piece.ready.eq(pieces_now),
            self.stored_row.valid.eq(self.row.valid & rows_now & good_now),
            self.stored_row.payload.channel.eq(job.channel), self.stored_row.payload.data.eq(self.row.payload.data),
            self.stored_piece.valid.eq(self.piece.valid & pieces_now & good_now),
            self.stored_piece.payload.channel.eq(job.channel),
            self.stored_piece.payload.address.eq(self.piece.payload.address),
            self.stored_piece.payload.length.eq(self.piece.payload.length),
            self.job.payload.eq(job), self.job.payload.epoch.eq(self.epoch), self.job.payload.status.eq(status),
            self.job.valid.eq(self.done & ~broken),
        ]
        row_leaves, piece_leaves = self.row.valid & self.row.ready, self.piece.valid & self.piece.ready
        rows_close, pieces_close = row_leaves & self.row.payload.last, piece_leaves & self.piece.payload.last
        all_stored = Signal()
        m.d.comb += all_stored.eq((~rows_now | rows_close) & (~pieces_now | pieces_close))
        with m.If(rows_close | decided):
            m.d.sync += rows_open.eq(rows_now & ~rows_close)
        with m.If(pieces_close | decided):
            m.d.sync += pieces_open.eq(pieces_now & ~pieces_close)
        m.d.comb += status.eq(job.status)

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
                m.d.comb += [
                    decided.eq(self.verdict.valid | ~has_pieces), self.verdict.ready.eq(has_pieces), moves.eq(decided),
                ]
                with m.If(has_pieces & (job.status == Status.OK)):
                    m.d.comb += status.eq(self.verdict.payload.status)
                with m.If(decided):
                    m.d.sync += [job.status.eq(status), good.eq(good_now)]
                    m.next = "STORE"
                    with m.If(all_stored):
                        m.d.comb += self.done.eq(1)
                        m.next = "TAKE"
            with m.State("STORE"):
                with m.If(all_stored):
                    m.d.comb += [self.done.eq(1), moves.eq(1)]
                    m.next = "TAKE"
        m.d.comb += self.active.eq(moves | row_leaves | piece_leaves)
        return m
