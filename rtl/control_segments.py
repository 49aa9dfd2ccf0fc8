"""What the decider is told of a received frame: SEGMENT and UNKNOWN messages, made of the frame's first bytes."""

# Ref: RFC 9293 §3.1 (TCP header), RFC 7323 §3.2 (timestamps), RFC 2018 §3 (SACK), RFC 791 §3.1, RFC 8200 §3,
# RFC 3168 §5 (ECN)

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from nic_model.contract import NicConfig, RxInfo
from nic_model.contract.control import (
    CONTROL_VERSION,
    HEADER_PREFIX_BYTES,
    MAX_SACK_BLOCKS,
    NO_FLOW,
    NO_LISTENER,
    SEGMENT,
    SEGMENT_OPTIONS,
    SEGMENT_SACK,
    TIME_SHIFT,
    UNIT_BYTES,
    UNKNOWN,
    ControlType,
    UnknownReason,
    UpFlag,
)
from nic_model.contract.protocols import IPV6_HEADER_BYTES, TCP_HEADER_BYTES
from rtl.align import Aligner
from rtl.control_cells import cell_row, handle_bits
from rtl.control_messages import message_beat
from rtl.flow_table import GENERATION_BITS
from rtl.header_fields import L3_BITS, L4_BITS
from rtl.interfaces import TIME_BITS, CountAmount, Strobe, contract_view, lane_bits
from rtl.parser import CHECKSUM_BITS, INFO_BITS
from rtl.primitives import Ram, StreamFifo
from rtl.rx_buffer import LENGTH_BITS
from rtl.small_fifo import BypassFifo

TCP_HEADER_BYTES_MOST = 60

LAST_L4_WORDS = (HEADER_PREFIX_BYTES - TCP_HEADER_BYTES_MOST) // 2
"""Where a TCP header may begin at most, in 16-bit words of the frame, so that all of it is in what is kept."""

FRAMES_UNDER_WAY = 4
"""Frames between the reading of their headers and their message."""

_FLOW_BITS = SEGMENT.fields["flow"].width
_OPTIONS_BYTES = TCP_HEADER_BYTES_MOST - TCP_HEADER_BYTES
_TIMESTAMPS_BYTES = 12
_NOPS = bytes((1, 1))
_SECOND_OF_UNKNOWN = data.FlexibleLayout(8 * UNIT_BYTES, {
    name: data.Field(field.width, field.offset - 8 * UNIT_BYTES) for name, field in UNKNOWN.fields.items()
    if 8 * UNIT_BYTES <= field.offset < 2 * 8 * UNIT_BYTES})
_TIMESTAMPS_KIND, _TIMESTAMPS_LENGTH = 8, 10
_SACK_KIND, _SACK_BLOCK_BYTES = 5, 8


def arrival(config: NicConfig) -> data.StructLayout:
    """What is known of a frame that is kept: `found` a flow, or `listened` for by a listener, or neither; RxInfo bits,
    where its headers begin in 16-bit words, and what a channel would be told of it if it was passed."""
    return data.StructLayout({
        "found": 1, "flow": _FLOW_BITS, "generation": GENERATION_BITS, "listened": 1,
        "listener": range(max(config.listeners, 2)), "handle": handle_bits(config), "length": LENGTH_BITS,
        "info": INFO_BITS, "l3": L3_BITS, "l4": L4_BITS, "checksum": CHECKSUM_BITS, "time": TIME_BITS,
    })


def held_frame(config: NicConfig) -> data.StructLayout:
    """What has to be known of a frame until its handle ends. `flow` is NO_FLOW for an UNKNOWN."""
    return data.StructLayout({
        "handle": handle_bits(config), "flow": _FLOW_BITS, "payload_offset": 8, "payload_bytes": LENGTH_BITS,
        "length": LENGTH_BITS, "info": INFO_BITS, "checksum": CHECKSUM_BITS, "time": TIME_BITS,
    })


def has_tcp_header(frame):
    """Whether an arrival's frame has a TCP header, all of which is in what is kept; one that lies deeper is no TCP
    here, and its frame no flow's."""
    return (frame.info & int(RxInfo.TCP)).any() & (frame.l4 <= LAST_L4_WORDS)


class SegmentMessages(wiring.Component):
    """Makes a message of each frame that is kept for the control port.

    Enters: `row`, rows of frames, one in each cycle if need be; beside the last of one that is kept, `arrival`.
    Leaves: `o`, a message of each, and `held`, right before its first beat.

    The first `HEADER_PREFIX_BYTES` of each frame are written into a slot before it is known whether it is kept; there
    is a slot for two units of `control_slots`. `has_room` says beside a frame's last row whether it had one; a frame
    without must not be kept. The IP and TCP headers are read, moved to lane 0, and stand in registers until the message
    has been made; meanwhile the next frame's are on their way. A SEGMENT of one unit takes 6 cycles with a bus of 16
    bytes, if its headers lie in four rows.

    A segment of a flow that cuts its TCP header off makes an UNKNOWN, with zeros for addresses and `frame`.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    row, arrival : see above.
    has_room : combinational, of the frame whose row is at `row`.
    now : cycle count.
    o : beats of messages.
    held : strobe, what its handle stands for.
    count_segments, count_unknown, count_bytes : strobes.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "row": In(Strobe(cell_row(config))), "arrival": In(arrival(config)), "has_room": Out(1),
            "now": In(TIME_BITS),
            "o": Out(stream.Signature(message_beat(config))),
            "held": Out(Strobe(held_frame(config))),
            **{f"count_{name}": Out(Strobe(CountAmount)) for name in ("segments", "unknown", "bytes")},
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        width = config.host_bytes
        # Places of the aligned headers: the IP header's first bytes, the TCP header.
        self._ip = Signal(8 * width * -(-IPV6_HEADER_BYTES // width), name="ip_header")
        self._tcp = Signal(8 * width * -(-TCP_HEADER_BYTES_MOST // width), name="tcp_header")
        m.submodules.aligner = self._aligner = Aligner(width_bytes=width, tag_bits=1)
        m.submodules.under_way = self._under_way = BypassFifo(shape=arrival(config), depth=FRAMES_UNDER_WAY)

        headers, entry, releases, keep_moves = self._keep(m)
        self._row_kind, self._row, self._row_valid, self._row_ready = (
            Signal(data.StructLayout({"tcp": 1, "whole": 1}), name="header_kind"), Signal(8 * width, name="header_row"),
            Signal(name="has_header_row"), Signal(name="takes_header_row"))
        read_moves = self._read(m, headers, entry, releases)
        tell_moves = self._tell(m)
        m.d.comb += self.active.eq(
            keep_moves | read_moves | tell_moves | self._aligner.active | self._under_way.active)
        return m

    def _keep(self, m):
        """First rows of each frame into the next slot; what is known of those that are kept into a queue."""
        config = self.config
        row = self.row.payload
        in_slot, slots = HEADER_PREFIX_BYTES // config.host_bytes, config.control_slots // 2
        m.submodules.headers = headers = Ram(shape=8 * config.host_bytes, depth=in_slot * slots)
        m.submodules.entries = entries = StreamFifo(shape=arrival(config), depth=slots)
        head, tail = Signal(exact_log2(slots) + 1, name="head"), Signal(exact_log2(slots) + 1, name="tail")
        following, number = Signal(range(in_slot + 1)), Signal(range(in_slot + 1), name="row_number")
        has_slot, had_slot, keeps, releases = (
            Signal(name=name) for name in ("has_slot", "had_slot", "keeps", "releases_slot"))
        m.d.comb += [
            number.eq(Mux(row.first, 0, following)),
            # One that comes free in the middle of a frame is too late for it.
            has_slot.eq((tail ^ head) != 1 << (len(head) - 1)), self.has_room.eq(Mux(row.first, has_slot, had_slot)),
            headers.write_en.eq(self.row.valid & (number != in_slot) & self.has_room),
            headers.write_addr.eq(Cat(number[:exact_log2(in_slot)], tail[:-1])), headers.write_data.eq(row.data),
            keeps.eq(self.row.valid & row.last & row.keep),
            entries.i.valid.eq(keeps), entries.i.payload.eq(self.arrival),
        ]
        self.invariants = [(~keeps | (self.has_room & entries.i.ready), "a frame is kept without a slot")]
        with m.If(self.row.valid):
            m.d.sync += [following.eq(number + (number != in_slot)), had_slot.eq(self.has_room)]
        with m.If(keeps):
            m.d.sync += tail.eq(tail + 1)
        with m.If(releases):
            m.d.sync += head.eq(head + 1)
        self._slot = head[:-1]
        return headers, entries, releases, self.row.valid | releases | entries.active

    def _read(self, m, headers, entries, releases):
        """Rows of the IP header, of the TCP header, and for an UNKNOWN all that are kept, of one frame after the other.
        The first two go to the aligner."""
        config = self.config
        width, lanes = config.host_bytes, lane_bits(config)
        bits = exact_log2(HEADER_PREFIX_BYTES)
        entry = entries.o.payload
        is_ip, is_tcp = (entry.info & int(RxInfo.IPV4 | RxInfo.IPV6)).any(), has_tcp_header(entry)

        # A run of rows: what it begins with and what it ends behind, in bytes of the slot.
        begin, end, kind = Signal(bits, name="run_begin"), Signal(bits + 1, name="run_end"), Signal(
            self._row_kind.shape(), name="run_kind")
        place = Signal(bits - lanes, name="run_row")
        running, is_first, is_last = Signal(name="running"), Signal(name="run_first"), Signal(name="run_last")
        waiting, waiting_row = Signal(name="row_waits"), Signal(data.StructLayout(
            {"kind": self._row_kind.shape(), "start": lanes, "count": lanes + 1, "last": 1}), name="waiting_row")
        out = Signal(waiting_row.shape(), name="header_place")
        read, advance, leave = Signal(name="reads_row"), Signal(name="row_advances"), Signal(name="row_leaves")
        low, high = Signal(lanes), Signal(lanes + 1)
        m.d.comb += [
            leave.eq(self._row_valid & self._row_ready), advance.eq(waiting & (~self._row_valid | self._row_ready)),
            read.eq(running & (~waiting | advance)), is_last.eq(place == (end - 1)[lanes:]),
            headers.read_en.eq(read), headers.read_addr.eq(Cat(place, self._slot)),
            low.eq(Mux(is_first, begin[:lanes], 0)),
            high.eq(Mux(is_last & end[:lanes].any(), end[:lanes], width)),
        ]
        with m.If(read):
            m.d.sync += [
                waiting.eq(1), waiting_row.kind.eq(kind), waiting_row.start.eq(low), waiting_row.count.eq(high - low),
                waiting_row.last.eq(is_last), place.eq(place + 1), is_first.eq(0),
            ]
        with m.Elif(advance):
            m.d.sync += waiting.eq(0)
        with m.If(advance):
            m.d.sync += [self._row_valid.eq(1), self._row.eq(headers.read_data), out.eq(waiting_row),
                         self._row_kind.eq(waiting_row.kind)]
        with m.Elif(leave):
            m.d.sync += self._row_valid.eq(0)

        def start(of_kind, first_byte, behind):
            m.d.sync += [running.eq(1), is_first.eq(1), begin.eq(first_byte), place.eq(first_byte[lanes:]),
                         end.eq(behind), kind.eq(of_kind)]

        # Bytes of headers that are there; a frame without TCP has none of it, and one of a flow needs no addresses.
        ip_begin, l4_begin = Signal(bits), Signal(bits)
        tcp_end = Signal(LENGTH_BITS)
        m.d.comb += [
            ip_begin.eq(entry.l3 << 1), l4_begin.eq(entry.l4 << 1),
            tcp_end.eq(Mux(entry.length < l4_begin + TCP_HEADER_BYTES_MOST, entry.length,
                           l4_begin + TCP_HEADER_BYTES_MOST)),
        ]
        moves, ends_run = Signal(), Signal()
        m.d.comb += ends_run.eq(read & is_last)
        with m.If(ends_run):
            m.d.sync += running.eq(0)
        with m.FSM(name="read_state"):
            with m.State("IP"):
                with m.If(entries.o.valid & self._under_way.i.ready):
                    m.d.comb += [moves.eq(1), self._under_way.i.valid.eq(1)]
                    with m.If(is_ip):
                        start(0, ip_begin, ip_begin + Mux(entry.found, 6, IPV6_HEADER_BYTES))
                        m.next = "TCP"
                    with m.Else():
                        m.next = "WHOLE"
            with m.State("TCP"):
                with m.If(ends_run):
                    m.next = "WHOLE"
                    with m.If(is_tcp):
                        start(1, l4_begin, tcp_end)
            with m.State("WHOLE"):
                with m.If(~running | ends_run):
                    with m.If(entry.found):
                        m.next = "NEXT"
                    with m.Else():
                        m.d.comb += moves.eq(1)
                        start(2, Const(0, bits), Const(HEADER_PREFIX_BYTES, bits + 1))
                        m.next = "NEXT"
            with m.State("NEXT"):
                with m.If(~running | ends_run):
                    m.d.comb += [moves.eq(1), entries.o.ready.eq(1), releases.eq(1)]
                    m.next = "IP"
        m.d.comb += self._under_way.i.payload.eq(entry)

        i = self._aligner.i
        m.d.comb += [
            i.valid.eq(self._row_valid & ~self._row_kind.whole), i.payload.data.eq(self._row),
            i.payload.start.eq(out.start), i.payload.count.eq(out.count), i.payload.last.eq(out.last),
            i.payload.tag.eq(self._row_kind.tcp),
        ]
        self._takes_whole = Signal(name="takes_whole_row")
        m.d.comb += self._row_ready.eq(Mux(self._row_kind.whole, self._takes_whole, i.ready))
        return moves | read | advance | leave

    def _tell(self, m):
        """The aligned headers in registers, and the message that they make."""
        config = self.config
        width = config.host_bytes
        entry = self._under_way.o.payload
        o = self._aligner.o

        # Collect: rows go where they belong; of each run the last says that it is there.
        collecting, row_place = Signal(init=1, name="collecting"), Signal(
            range(-(-TCP_HEADER_BYTES_MOST // width) + 1), name="collected_rows")
        takes, has_ip, has_tcp = Signal(name="takes_aligned"), Signal(name="has_ip"), Signal(name="has_tcp")
        needs_ip, needs_tcp = (entry.info & int(RxInfo.IPV4 | RxInfo.IPV6)).any(), has_tcp_header(entry)
        collected = self._under_way.o.valid & (has_ip | ~needs_ip) & (has_tcp | ~needs_tcp)
        m.d.comb += [o.ready.eq(collecting & ~collected), takes.eq(o.valid & o.ready)]
        with m.If(takes):
            m.d.sync += row_place.eq(Mux(o.payload.last, 0, row_place + 1))
            for is_tcp, header, done in ((0, self._ip, has_ip), (1, self._tcp, has_tcp)):
                with m.If(o.payload.tag == is_tcp):
                    for n in range(len(header) // (8 * width)):
                        with m.If(row_place == n):
                            m.d.sync += header.word_select(n, 8 * width).eq(o.payload.data)
                    with m.If(o.payload.last):
                        m.d.sync += done.eq(1)

        # Judge, then make the first unit; one that is alone leaves the registers to the next frame.
        message = self._decode(m, entry, needs_tcp, collecting)
        decodes, loads, loading = Signal(name="decodes"), Signal(name="loads_unit"), Signal(name="loading")
        took, telling = Signal(name="took_aligned"), Signal(name="telling")
        is_alone = ~message["unknown"] & ~message["two"]
        m.d.comb += [decodes.eq(collecting & collected), loads.eq(loading & ~telling)]
        m.d.sync += took.eq(takes)
        with m.If(decodes):
            m.d.sync += [collecting.eq(0), loading.eq(1), *(signal.eq(value) for signal, value in message["sets"])]
        unit, unknown, two, cut = Signal(8 * UNIT_BYTES, name="told_unit"), Signal(name="told_unknown"), Signal(
            name="told_two"), Signal(name="told_cut")
        with m.If(loads):
            m.d.sync += [
                unit.eq(message["unit"]), unknown.eq(message["unknown"]), two.eq(message["two"]),
                cut.eq(message["cut"]), loading.eq(0), telling.eq(1), collecting.eq(is_alone),
            ]

        # Tell: the message's own units, then of an UNKNOWN the frame's rows.
        beats = UNIT_BYTES // width
        units = Cat(unit, message["second"])
        beat, offers, ends, leaves = Signal(range(4 * beats)), Signal(), Signal(name="ends_message"), Signal()
        in_frame = Signal(name="in_frame")
        free = ~self.o.valid | self.o.ready
        own = Array(units.word_select(n, 8 * width) for n in range(2 * beats))[beat[:exact_log2(2 * beats)]]
        # In UNKNOWN's second half, bytes of the frame that are left, none of one that is cut.
        left, beyond = Signal(LENGTH_BITS, name="frame_bytes_left"), Signal(name="is_beyond")
        m.d.comb += beyond.eq(left < width)
        with m.If(loads):
            m.d.sync += left.eq(Mux(message["cut"], 0, entry.length))
        with m.Elif(offers & in_frame):
            m.d.sync += left.eq(Mux(beyond, 0, left - width))
        frame_row = Cat(self._row.word_select(lane, 8) & (~beyond | (left[:lane_bits(config)] > lane)).replicate(8)
                        for lane in range(width))
        m.d.comb += [
            in_frame.eq(unknown & (beat >= 2 * beats)),
            offers.eq(telling & (~in_frame | cut | (self._row_valid & self._row_kind.whole)) & free),
            self._takes_whole.eq(telling & in_frame & ~cut & free),
            ends.eq(Mux(unknown, beat == 4 * beats - 1, Mux(two, beat == 2 * beats - 1, beat == beats - 1))),
            leaves.eq(offers & ends),
            self._under_way.o.ready.eq((loads & is_alone) | (leaves & (unknown | two))),
        ]
        with m.If(offers):
            m.d.sync += [
                self.o.valid.eq(1), self.o.payload.last.eq(ends), beat.eq(Mux(ends, 0, beat + 1)),
                self.o.payload.data.eq(Mux(in_frame, frame_row, own)),
            ]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(leaves):
            m.d.sync += telling.eq(0)
        with m.If(leaves & (unknown | two)):
            m.d.sync += collecting.eq(1)
        with m.If(decodes):
            m.d.sync += [has_ip.eq(0), has_tcp.eq(0)]

        # What is told beside it.
        held = self.held.payload
        m.d.comb += [
            self.held.valid.eq(loads), held.handle.eq(entry.handle),
            held.flow.eq(Mux(message["unknown"], NO_FLOW, entry.flow)),
            held.payload_offset.eq(message["payload_offset"]), held.payload_bytes.eq(message["payload_bytes"]),
            *(held[name].eq(entry[name]) for name in ("length", "info", "checksum", "time")),
        ]
        for name, event, amount in (("segments", ~message["unknown"], 1), ("unknown", message["unknown"], 1),
                                    ("bytes", 1, entry.length)):
            strobe = getattr(self, f"count_{name}")
            m.d.comb += [strobe.valid.eq(loads & event), strobe.payload.amount.eq(amount)]
        return takes | took | decodes | loads | offers | (self.o.valid & self.o.ready)

    def _decode(self, m, entry, is_tcp, collecting):
        """The message's own units, from the headers and from what is set when all of them are collected."""
        def byte(header, at):
            return header.word_select(at, 8)

        def u16(header, at):
            return Cat(byte(header, at + 1), byte(header, at))

        def u32(header, at):
            return Cat(u16(header, at + 2), u16(header, at))

        ip, tcp = self._ip, self._tcp
        ipv4, ipv6 = ((entry.info & int(flag)).any() for flag in (RxInfo.IPV4, RxInfo.IPV6))

        # Lengths in bytes: of the TCP segment, of its header.
        ip_bytes, l4_bytes = Signal(17, name="ip_bytes"), Signal(17, name="l4_bytes")
        data_offset, option_bytes = Signal(4, name="data_offset"), Signal(6, name="option_bytes")
        is_cut, payload_bytes = Signal(name="is_cut"), Signal(LENGTH_BITS, name="payload_bytes")
        frame_offset = Signal(8, name="payload_offset")
        with m.If(collecting):  # it stands when the TCP header is collected, which comes behind
            m.d.sync += l4_bytes.eq(ip_bytes - ((entry.l4 - entry.l3)[:L4_BITS] << 1))
        m.d.comb += [
            ip_bytes.eq(Mux(ipv6, u16(ip, 4) + IPV6_HEADER_BYTES, u16(ip, 2))),
            data_offset.eq(byte(tcp, 12)[4:]),
            is_cut.eq(is_tcp & ((data_offset < TCP_HEADER_BYTES // 4) | ((data_offset << 2) > l4_bytes))),
        ]

        # Options of the shapes that are known.
        def starts(at, *values):
            return Cat(byte(tcp, TCP_HEADER_BYTES + at + n) == value for n, value in enumerate(values)).all()

        at_timestamps = starts(0, *_NOPS, _TIMESTAMPS_KIND, _TIMESTAMPS_LENGTH)
        words = data_offset - TCP_HEADER_BYTES // 4
        blocks_first, blocks_second = Signal(3), Signal(3)
        for n in range(1, MAX_SACK_BLOCKS + 1):
            length = 2 + _SACK_BLOCK_BYTES * n
            with m.If((words == (2 + length) // 4) & starts(0, *_NOPS, _SACK_KIND, length)):
                m.d.comb += blocks_first.eq(n)
            if n < MAX_SACK_BLOCKS:
                with m.If((words == (_TIMESTAMPS_BYTES + 2 + length) // 4)
                          & starts(_TIMESTAMPS_BYTES, *_NOPS, _SACK_KIND, length) & at_timestamps):
                    m.d.comb += blocks_second.eq(n)
        timestamps = at_timestamps & ((words == _TIMESTAMPS_BYTES // 4) | blocks_second.any())
        is_known = (words == 0) | timestamps | blocks_first.any()

        # What is set.
        unknown, cut, shown, has_ts, raw, is_second = (
            Signal(name=f"message_{name}") for name in ("unknown", "cut", "shown", "timestamps", "raw", "sack_behind"))
        blocks, time = Signal(3, name="message_blocks"), Signal(32, name="message_time")
        flags_of_tcp = Signal(9, name="message_tcp_flags")
        is_unknown = ~entry.found | is_cut
        tcp_flags = Cat(byte(tcp, 13), byte(tcp, 12)[0])
        bad_sum = ~(entry.info & int(RxInfo.L4_CHECKSUM_OK)).any() | (
            ipv4 & ~(entry.info & int(RxInfo.L3_CHECKSUM_OK)).any())
        is_good = is_tcp & ~bad_sum & ~is_cut  # a header that is not, is not shown
        reason = Signal(8, name="message_reason")
        is_syn = tcp_flags[1]
        sets = [
            (unknown, is_unknown), (cut, entry.found & is_cut), (shown, is_good), (has_ts, timestamps & is_good),
            (raw, ~is_known & is_good),
            (blocks, Mux(is_unknown, 0, blocks_first | blocks_second)), (is_second, blocks_second.any()),
            (time, self.now[TIME_SHIFT:TIME_SHIFT + 32]), (flags_of_tcp, Mux(is_good, tcp_flags, 0)),
            (option_bytes, Mux(is_good, words << 2, 0)),
            (payload_bytes, Mux(is_good, l4_bytes - (data_offset << 2), entry.length)),
            (frame_offset, Mux(is_good, (entry.l4 << 1) + (data_offset << 2), 0)),
            (reason, Mux(~is_tcp, UnknownReason.NOT_TCP, Mux(bad_sum | is_cut, UnknownReason.CHECKSUM, Mux(
                is_syn, UnknownReason.SYN, UnknownReason.NO_FLOW)))),
        ]
        two = ~unknown & (raw | (blocks != 0))

        # The first unit, as the contract has it.
        unit, second, behind = Signal(8 * UNIT_BYTES, name="unit"), Signal(8 * UNIT_BYTES, name="second_unit"), Signal(
            8 * UNIT_BYTES, name="unknown_unit")
        fields = contract_view(SEGMENT)(unit)
        of_tcp = {
            "sequence": u32(tcp, 4), "acknowledgement": u32(tcp, 8), "window": u16(tcp, 14), "urgent": u16(tcp, 18),
        }
        ts_at = TCP_HEADER_BYTES + 4
        m.d.comb += [
            fields.type.eq(Mux(unknown, ControlType.UNKNOWN, ControlType.SEGMENT)),
            fields.units.eq(Mux(unknown, 4, Mux(two, 2, 1))), fields.version.eq(CONTROL_VERSION),
            fields.flow.eq(Mux(unknown, NO_FLOW, entry.flow)),
            fields.generation.eq(Mux(unknown, 0, entry.generation)),
            fields.flags.eq(
                Mux(has_ts, UpFlag.TIMESTAMPS, 0) | Mux(raw, UpFlag.RAW_OPTIONS, 0) | Mux(ipv6, UpFlag.IPV6, 0)
                | Mux((entry.info & int(RxInfo.VLAN)).any(), UpFlag.VLAN, 0)),
            fields.handle.eq(entry.handle), fields.length.eq(payload_bytes), fields.payload_offset.eq(frame_offset),
            fields.segments.eq(1), fields.tcp_flags.eq(flags_of_tcp), fields.sack_blocks.eq(blocks),
            fields.ecn.eq(Mux(ipv4, byte(ip, 1)[:2], 0) | Mux(ipv6, byte(ip, 1)[4:6], 0)),
            *(fields[name].eq(value & shown.replicate(len(value))) for name, value in of_tcp.items()),
            fields.ts_value.eq(u32(tcp, ts_at) & has_ts.replicate(32)),
            fields.ts_echo.eq(u32(tcp, ts_at + 4) & has_ts.replicate(32)),
            fields.option_bytes.eq(option_bytes), fields.frame_bytes.eq(entry.length), fields.time.eq(time),
        ]
        # A SEGMENT's second unit.
        sack, options = contract_view(SEGMENT_SACK)(second), contract_view(SEGMENT_OPTIONS)(second)
        with m.If(raw):
            for n in range(_OPTIONS_BYTES):
                with m.If(option_bytes > n):
                    m.d.comb += options.options.word_select(n, 8).eq(byte(tcp, TCP_HEADER_BYTES + n))
        with m.Else():
            for n in range(MAX_SACK_BLOCKS):
                at = TCP_HEADER_BYTES + 4 + _SACK_BLOCK_BYTES * n
                for edge, inside in (("left", 0), ("right", 4)):
                    value = u32(tcp, at + inside)
                    if at + _TIMESTAMPS_BYTES + inside + 4 <= TCP_HEADER_BYTES_MOST:
                        value = Mux(is_second, u32(tcp, at + _TIMESTAMPS_BYTES + inside), value)
                    with m.If(blocks > n):
                        m.d.comb += sack[f"{edge}_{n}"].eq(value)
        # An UNKNOWN's.
        of_unknown = data.View(_SECOND_OF_UNKNOWN, behind)

        def address(version6_at, version4_at):
            return Mux(cut, 0, Mux(ipv6, ip[8 * version6_at:8 * (version6_at + 16)],
                                   Mux(ipv4, ip[8 * version4_at:8 * (version4_at + 4)], 0)))

        m.d.comb += [
            of_unknown.remote_address.eq(address(8, 12)), of_unknown.local_address.eq(address(24, 16)),
            of_unknown.remote_port.eq(Mux(is_tcp, u16(tcp, 0), 0)),
            of_unknown.local_port.eq(Mux(is_tcp, u16(tcp, 2), 0)),
            of_unknown.listener.eq(Mux(entry.listened & ~entry.found, entry.listener, NO_LISTENER)),
            of_unknown.reason.eq(reason), of_unknown.info.eq(entry.info),
        ]
        return {"sets": sets, "unknown": unknown, "cut": cut, "two": two, "unit": unit,
                "second": Mux(unknown, behind, second), "payload_offset": frame_offset,
                "payload_bytes": payload_bytes}
