"""Delivers received frames: asks for the buffers' keys, sends the rows to host memory, tells when they are there."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from nic_model.contract import NicConfig, RxInfo, Status
from rtl.align import Aligner
from rtl.interfaces import (
    CountAmount,
    KeyAnswer,
    KeyRequest,
    Strobe,
    WriteCommand,
    WriteDone,
    lane_bits,
    row,
)
from rtl.primitives import StreamFifo
from rtl.rx_buffer import LENGTH_BITS, buffered_row, rx_order
from rtl.rx_gather import rx_part
from rtl.rx_rings import Match, matched_frame

PARTS_ASKED = 8
"""Parts of frames that may wait for their key's answer."""

PARTS_IN_FLIGHT = 32
"""Parts of frames that may wait for the bus's answer to their writes."""

def _asked(config):
    """A part whose key is being asked for, or what else passes. The part lies at begin .. end-1, in bytes from the
    first lane of the row that the part before it left off in."""
    return data.StructLayout({
        "match": Match, "begin": 8, "end": LENGTH_BITS + 1, "part": rx_part(config), "frame_bytes": LENGTH_BITS,
    })


def _token(config):
    """A part, or the end of an aggregate, on its way; `writes` if a WriteDone comes for it."""
    return data.StructLayout({"part": rx_part(config), "writes": 1, "frame_bytes": LENGTH_BITS})


class RxDeliver(wiring.Component):
    """Takes each part of a frame to its end: dropped, refused by its buffer's key, or written and answered by the bus.

    Enters: `matched`, frames that are dropped and parts of the others, in order, and ends of aggregates. Leaves:
    `order`, for each what the receive buffer has to do; for those that are written a command and rows; `part`, for each
    that was given a buffer, in order, when the bus has answered. A part in 2 cycles. 4 cycles lie between a row and the
    same row in the host's lanes.
    If one part of a frame is refused or its write fails, the others are written all the same, and the frame counts
    as an error.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` and `coalesce_contexts` are used.

    Members
    -------
    matched : frames with their buffers.
    key_request, key_answer : client of the key table.
    order, row : to and from the receive buffer.
    write_cmd, write_row, write_done : client of the DMA write engine.
    part : what has found its end.
    count_no_buffer, count_oversize, count_errors, count_frames, count_bytes, count_checksum_errors : strobes.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "matched": In(stream.Signature(matched_frame(config))),
            "key_request": Out(stream.Signature(KeyRequest)),
            "key_answer": In(stream.Signature(KeyAnswer)),
            "order": Out(stream.Signature(rx_order(config))),
            "row": In(stream.Signature(buffered_row(config))),
            "write_cmd": Out(stream.Signature(WriteCommand)),
            "write_row": Out(stream.Signature(row(config))),
            "write_done": In(stream.Signature(WriteDone)),
            "part": Out(stream.Signature(rx_part(config))),
            **{f"count_{name}": Out(Strobe(CountAmount)) for name in
               ("no_buffer", "oversize", "errors", "frames", "bytes", "checksum_errors")},
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.asked = asked = StreamFifo(shape=_asked(self.config), depth=PARTS_ASKED)
        m.submodules.tokens = tokens = StreamFifo(shape=_token(self.config), depth=PARTS_IN_FLIGHT)
        asks = self._ask(m, asked)
        orders = self._order(m, asked, tokens)
        aligns = self._align(m)
        finishes = self._finish(m, tokens)
        m.d.comb += self.active.eq(asks | orders | aligns | finishes | asked.active | tokens.active)
        return m

    def _count(self, m, name, event, amount=1):
        strobe = getattr(self, f"count_{name}")
        m.d.sync += strobe.valid.eq(event)
        with m.If(event):
            m.d.sync += strobe.payload.amount.eq(amount)
        return event | strobe.valid

    def _ask(self, m, asked):
        """A part with a buffer: may it be written there?"""
        matched, request = self.matched.payload, self.key_request.payload
        has_buffer, takes = Signal(), Signal()
        m.d.comb += [
            has_buffer.eq(matched.match == Match.BUFFER),
            # `asked` stays ready until it gets an entry, so the request is not withdrawn.
            self.key_request.valid.eq(self.matched.valid & has_buffer & asked.i.ready),
            self.matched.ready.eq(asked.i.ready & (~has_buffer | self.key_request.ready)),
            takes.eq(self.matched.valid & self.matched.ready),
            request.channel.eq(matched.frame.channel), request.key.eq(matched.key), request.write.eq(1),
            request.offset.eq(matched.offset), request.length.eq(matched.length),
        ]

        # Nothing of a frame that is dropped has gone before.
        at, begin, end = Signal(lane_bits(self.config)), Signal(8), Signal(LENGTH_BITS + 1)
        entry = asked.i.payload
        part = entry.part
        m.d.comb += [
            begin.eq(at + matched.skip), end.eq(begin + matched.length), entry.begin.eq(begin), entry.end.eq(end),
            entry.match.eq(matched.match), entry.frame_bytes.eq(matched.frame.length),
            part.close.eq(matched.match == Match.CLOSE),
            part.channel.eq(matched.frame.channel), part.info.eq(matched.frame.info),
            part.checksum.eq(matched.frame.checksum), part.timestamp.eq(matched.frame.time),
            *(part[name].eq(matched[name]) for name in (
                "context", "first", "last", "takes", "opens", "closes", "buffer_id", "ring_index", "length", "mss")),
            asked.i.valid.eq(takes),
        ]
        with m.If(takes & has_buffer):
            m.d.sync += at.eq(Mux(matched.last, 0, end))
        counts = [
            self._count(m, "no_buffer", takes & (matched.match == Match.NONE)),
            self._count(m, "oversize", takes & (matched.match == Match.TOO_SMALL)),
        ]
        return takes | counts[0] | counts[1]

    def _order(self, m, asked, tokens):
        """The answer decides what happens to the rows, which were counted meanwhile. The decision stands in registers
        until all that it concerns have taken it."""
        width, lanes = self.config.host_bytes, lane_bits(self.config)
        entry, answer = asked.o.payload, self.key_answer.payload
        order, command = self.order.payload, self.write_cmd.payload
        token, token_valid = Signal(_token(self.config)), Signal()
        has_buffer, writes, closes, decides = Signal(), Signal(), Signal(), Signal()

        # Rows before the part's first, and those up to its end; if it is not written, all that it is done with.
        dropped, start, tail = entry.begin[lanes:], entry.begin[:lanes], entry.end[:lanes]
        whole_rows = entry.end[lanes:]
        rows, rows_in_all = Signal.like(order.rows), Signal.like(order.rows)
        has_tail, is_one = Signal(), Signal()
        m.d.comb += [
            has_tail.eq(tail.any()), rows.eq(whole_rows - dropped + has_tail),
            is_one.eq((whole_rows == dropped) | ((whole_rows == dropped + 1) & ~has_tail)),
            rows_in_all.eq(Mux(has_buffer, whole_rows, entry.frame_bytes[lanes:])
                           + Mux(has_buffer, has_tail & entry.part.last, entry.frame_bytes[:lanes].any())),
        ]
        m.d.comb += [
            has_buffer.eq(entry.match == Match.BUFFER), closes.eq(entry.match == Match.CLOSE),
            writes.eq(has_buffer & (answer.status == Status.OK)),
            decides.eq(asked.o.valid & (~has_buffer | self.key_answer.valid)
                       & ~self.order.valid & ~self.write_cmd.valid & ~token_valid),
            asked.o.ready.eq(decides), self.key_answer.ready.eq(decides & has_buffer),
            tokens.i.valid.eq(token_valid), tokens.i.payload.eq(token),
        ]
        with m.If(decides):
            m.d.sync += [
                self.order.valid.eq(~closes),
                order.advance.eq(Mux(writes, dropped, rows_in_all)), order.rows.eq(Mux(writes, rows, 0)),
                order.start.eq(start), order.first_count.eq(Mux(is_one, entry.part.length, width - start)),
                order.last_count.eq(Mux(has_tail, tail, width)), order.shares.eq(~entry.part.last & has_tail),
                order.at.eq(answer.address[:lanes]),
                self.write_cmd.valid.eq(writes), command.address.eq(answer.address),
                command.length.eq(entry.part.length),
                token_valid.eq(has_buffer | closes), token.writes.eq(writes), token.frame_bytes.eq(entry.frame_bytes),
                token.part.eq(entry.part), token.part.status.eq(Mux(has_buffer, answer.status, Status.OK)),
            ]
        leaves = []
        for valid, ready in ((self.order.valid, self.order.ready), (self.write_cmd.valid, self.write_cmd.ready),
                             (token_valid, tokens.i.ready)):
            with m.If(valid & ready):
                m.d.sync += valid.eq(0)
            leaves.append(valid & ready)
        return decides | Cat(leaves).any()

    def _align(self, m):
        """The rows in the lanes of their address."""
        m.submodules.aligner = aligner = Aligner(width_bytes=self.config.host_bytes)
        i, o = aligner.i.payload, aligner.o.payload
        m.d.comb += [
            aligner.i.valid.eq(self.row.valid), self.row.ready.eq(aligner.i.ready),
            i.data.eq(self.row.payload.data), i.start.eq(self.row.payload.start), i.count.eq(self.row.payload.count),
            i.last.eq(self.row.payload.last), i.at.eq(self.row.payload.at),
            self.write_row.valid.eq(aligner.o.valid), aligner.o.ready.eq(self.write_row.ready),
            self.write_row.payload.data.eq(o.data), self.write_row.payload.last.eq(o.last),
        ]
        return aligner.active

    def _finish(self, m, tokens):
        """The bus has answered, or nothing was written: the part goes on."""
        token, part = tokens.o.payload, self.part.payload
        can_finish, finishes, failed = Signal(), Signal(), Signal()
        failed_before, ends, delivered = Signal(), Signal(), Signal()
        m.d.comb += [
            can_finish.eq(tokens.o.valid & (~self.part.valid | self.part.ready)),
            finishes.eq(can_finish & (~token.writes | self.write_done.valid)),
            failed.eq(Mux(token.writes, self.write_done.payload.error, 1) | (failed_before & ~token.part.first)),
            ends.eq(finishes & token.part.last & ~token.part.close), delivered.eq(ends & ~failed),
            tokens.o.ready.eq(finishes), self.write_done.ready.eq(can_finish & token.writes),
        ]
        with m.If(finishes):
            m.d.sync += [
                self.part.valid.eq(1), part.eq(token.part),
                part.status.eq(Mux(token.writes & self.write_done.payload.error, Status.BUS_ERROR, token.part.status)),
                failed_before.eq(failed),
            ]
        with m.Elif(self.part.ready):
            m.d.sync += self.part.valid.eq(0)
        is_bad = (token.part.info & int(RxInfo.CHECKSUM_BAD)).any()
        counts = [
            self._count(m, "frames", delivered),
            self._count(m, "bytes", delivered, token.frame_bytes),
            self._count(m, "checksum_errors", delivered & is_bad),
            self._count(m, "errors", ends & failed),
        ]
        return finishes | (self.part.valid & self.part.ready) | counts[0] | counts[1] | counts[2] | counts[3]
