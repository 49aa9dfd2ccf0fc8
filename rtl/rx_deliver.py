"""Delivers received frames: asks for the buffer's key, sends the rows to host memory, tells when they are there."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from nic_model.contract import NicConfig, RxInfo, Status
from rtl.align import Aligner
from rtl.interfaces import (
    CountAmount,
    KeyAnswer,
    KeyRequest,
    RxDone,
    Strobe,
    WriteCommand,
    WriteDone,
    lane_bits,
    row,
)
from rtl.primitives import StreamFifo
from rtl.rx_buffer import buffered_row, rx_order
from rtl.rx_rings import Match, MatchedFrame

FRAMES_ASKED = 8
"""Frames that may wait for their key's answer."""

FRAMES_IN_FLIGHT = 32
"""Frames that may wait for the bus's answer to their writes."""

# A frame whose buffer was taken, on its way to completion; `writes` if a WriteDone comes for it.
_Token = data.StructLayout({**{name: field.shape for name, field in RxDone}, "writes": 1})

# A frame whose key is being asked for, if it has a buffer.
_Asked = data.StructLayout({
    name: MatchedFrame[name].shape for name in ("frame", "match", "buffer_id", "ring_index")
})


class RxDeliver(wiring.Component):
    """Takes each frame to its end: dropped, refused by its buffer's key, or written and answered by the bus.

    Enters: `matched`, frames in order. Leaves: `order`, for each what the receive buffer has to do; for those that
    are written a command and rows; `done`, for each frame that was given a buffer, in order, when the bus has answered.
    A frame in 2 cycles. 4 cycles lie between a row and the same row in the host's lanes.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` is used.

    Members
    -------
    matched : frames with their buffers.
    key_request, key_answer : client of the key table.
    order, row : to and from the receive buffer.
    write_cmd, write_row, write_done : client of the DMA write engine.
    done : tokens for completion.
    count_no_buffer, count_oversize, count_errors, count_frames, count_bytes, count_checksum_errors : strobes.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "matched": In(stream.Signature(MatchedFrame)),
            "key_request": Out(stream.Signature(KeyRequest)),
            "key_answer": In(stream.Signature(KeyAnswer)),
            "order": Out(stream.Signature(rx_order(config))),
            "row": In(stream.Signature(buffered_row(config))),
            "write_cmd": Out(stream.Signature(WriteCommand)),
            "write_row": Out(stream.Signature(row(config))),
            "write_done": In(stream.Signature(WriteDone)),
            "done": Out(stream.Signature(RxDone)),
            **{f"count_{name}": Out(Strobe(CountAmount)) for name in
               ("no_buffer", "oversize", "errors", "frames", "bytes", "checksum_errors")},
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.asked = asked = StreamFifo(shape=_Asked, depth=FRAMES_ASKED)
        m.submodules.tokens = tokens = StreamFifo(shape=_Token, depth=FRAMES_IN_FLIGHT)
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
        """A frame with a buffer: may it be written there?"""
        matched, request = self.matched.payload, self.key_request.payload
        has_buffer, takes = Signal(), Signal()
        m.d.comb += [
            has_buffer.eq(matched.match == Match.BUFFER),
            self.matched.ready.eq(asked.i.ready & (~has_buffer | ~self.key_request.valid | self.key_request.ready)),
            takes.eq(self.matched.valid & self.matched.ready),
            asked.i.valid.eq(takes),
            *(asked.i.payload[name].eq(matched[name]) for name, _ in _Asked),
        ]
        with m.If(takes & has_buffer):
            m.d.sync += [
                self.key_request.valid.eq(1),
                request.channel.eq(matched.frame.channel), request.key.eq(matched.key), request.write.eq(1),
                request.offset.eq(matched.offset), request.length.eq(matched.frame.length),
            ]
        with m.Elif(self.key_request.ready):
            m.d.sync += self.key_request.valid.eq(0)
        counts = [
            self._count(m, "no_buffer", takes & (matched.match == Match.NONE)),
            self._count(m, "oversize", takes & (matched.match == Match.TOO_SMALL)),
        ]
        return takes | (self.key_request.valid & self.key_request.ready) | counts[0] | counts[1]

    def _order(self, m, asked, tokens):
        """The answer decides what happens to the frame's rows. The decision stands in registers until all that it
        concerns have taken it."""
        frame, answer = asked.o.payload, self.key_answer.payload
        order, command = self.order.payload, self.write_cmd.payload
        token, token_valid = Signal(_Token), Signal()
        has_buffer, writes, decides = Signal(), Signal(), Signal()
        m.d.comb += [
            has_buffer.eq(frame.match == Match.BUFFER),
            writes.eq(has_buffer & (answer.status == Status.OK)),
            decides.eq(asked.o.valid & (~has_buffer | self.key_answer.valid)
                       & ~self.order.valid & ~self.write_cmd.valid & ~token_valid),
            asked.o.ready.eq(decides), self.key_answer.ready.eq(decides & has_buffer),
            tokens.i.valid.eq(token_valid), tokens.i.payload.eq(token),
        ]
        with m.If(decides):
            m.d.sync += [
                self.order.valid.eq(1), order.length.eq(frame.frame.length), order.skip.eq(~writes),
                order.at.eq(answer.address[:lane_bits(self.config)]),
                self.write_cmd.valid.eq(writes), command.address.eq(answer.address),
                command.length.eq(frame.frame.length),
                token_valid.eq(has_buffer), token.writes.eq(writes), token.channel.eq(frame.frame.channel),
                token.buffer_id.eq(frame.buffer_id), token.ring_index.eq(frame.ring_index),
                token.status.eq(answer.status), token.length.eq(frame.frame.length), token.info.eq(frame.frame.info),
                token.checksum.eq(frame.frame.checksum), token.segments.eq(1), token.timestamp.eq(frame.frame.time),
            ]
        leaves = []
        for valid, ready in ((self.order.valid, self.order.ready), (self.write_cmd.valid, self.write_cmd.ready),
                             (token_valid, tokens.i.ready)):
            with m.If(valid & ready):
                m.d.sync += valid.eq(0)
            leaves.append(valid & ready)
        return decides | Cat(leaves).any()

    def _align(self, m):
        """The frame's rows in the lanes of its address."""
        m.submodules.aligner = aligner = Aligner(width_bytes=self.config.host_bytes)
        i, o = aligner.i.payload, aligner.o.payload
        m.d.comb += [
            aligner.i.valid.eq(self.row.valid), self.row.ready.eq(aligner.i.ready),
            i.data.eq(self.row.payload.data), i.start.eq(0), i.count.eq(self.row.payload.count),
            i.last.eq(self.row.payload.last), i.at.eq(self.row.payload.at),
            self.write_row.valid.eq(aligner.o.valid), aligner.o.ready.eq(self.write_row.ready),
            self.write_row.payload.data.eq(o.data), self.write_row.payload.last.eq(o.last),
        ]
        return aligner.active

    def _finish(self, m, tokens):
        """The bus has answered, or nothing was written: the token goes on to completion."""
        token, done = tokens.o.payload, self.done.payload
        can_finish, finishes, delivered = Signal(), Signal(), Signal()
        m.d.comb += [
            can_finish.eq(tokens.o.valid & (~self.done.valid | self.done.ready)),
            finishes.eq(can_finish & (~token.writes | self.write_done.valid)),
            delivered.eq(token.writes & ~self.write_done.payload.error),
            tokens.o.ready.eq(finishes), self.write_done.ready.eq(can_finish & token.writes),
        ]
        with m.If(finishes):
            m.d.sync += [
                self.done.valid.eq(1),
                done.channel.eq(token.channel), done.buffer_id.eq(token.buffer_id),
                done.ring_index.eq(token.ring_index), done.timestamp.eq(token.timestamp),
                done.status.eq(Mux(token.writes & self.write_done.payload.error, Status.BUS_ERROR, token.status)),
                done.length.eq(Mux(delivered, token.length, 0)), done.info.eq(Mux(delivered, token.info, 0)),
                done.checksum.eq(Mux(delivered, token.checksum, 0)),
                done.segments.eq(Mux(delivered, token.segments, 0)),
            ]
        with m.Elif(self.done.ready):
            m.d.sync += self.done.valid.eq(0)
        is_bad = (token.info & int(RxInfo.CHECKSUM_BAD)).any()
        counts = [
            self._count(m, "frames", finishes & delivered),
            self._count(m, "bytes", finishes & delivered, token.length),
            self._count(m, "checksum_errors", finishes & delivered & is_bad),
            self._count(m, "errors", finishes & ~delivered),
        ]
        return finishes | (self.done.valid & self.done.ready) | counts[0] | counts[1] | counts[2] | counts[3]
