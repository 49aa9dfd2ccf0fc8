"""Carries out what the decider orders of a frame's bytes: writes parts of them to host memory, and ends handles."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from nic_model.contract import NicConfig, Status
from nic_model.contract.control import CELL_BYTES, CONTROL_HEADER, ControlType, DoneStatus
from rtl.align import Aligner
from rtl.control_cells import cell_order, handle_bits
from rtl.interfaces import (
    CHANNEL_BITS,
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
from rtl.rx_buffer import LENGTH_BITS, buffered_row

ORDERS_ASKED = 8
"""Orders that may wait for their key's answer."""

ORDERS_IN_FLIGHT = 32
"""Orders that may wait for the bus's answer to their writes."""

# A DONE on its way: whom it answers, and what with. `asked`: the decider wants to hear of it in any case.
DoneToken = data.StructLayout({
    "order": CONTROL_HEADER.fields["type"].width, "flow": CONTROL_HEADER.fields["flow"].width,
    "generation": CONTROL_HEADER.fields["generation"].width, "tag": CONTROL_HEADER.fields["tag"].width,
    "asked": 1, "status": range(max(DoneStatus) + 1), "length": LENGTH_BITS,
})


def place_order(config: NicConfig) -> data.StructLayout:
    """An order about a handle that has been judged: with status OK and a `length`, write that many bytes of its frame
    from byte `begin` on, or if it `passes`, give them, which are all, to the receive buffer; then, if it `ends`, give
    its cells back."""
    return data.StructLayout({
        "done": DoneToken, "handle": handle_bits(config), "begin": LENGTH_BITS, "passes": 1, "ends": 1,
        "frame_bytes": LENGTH_BITS, "channel": CHANNEL_BITS, "key": 24, "offset": 40,
    })


def _token():
    return data.StructLayout({"done": DoneToken, "writes": 1, "passes": 1})


class ControlPlace(wiring.Component):
    """Takes each order about a handle to its end.

    Enters: `order`, orders that have been judged, in the decider's order. Leaves: `cell_order` and, for what is
    written, a command and rows; `done`, in order, one for each order that failed or asked for it, when the bus has
    answered its write. An order in 3 cycles; 5 cycles lie between a row and the same row in the host's lanes.

    The key is asked for the WRITE right over exactly the bytes that are written, as the flow's channel; so no byte goes
    anywhere else. An order whose key is refused writes nothing. It ends its handle all the same. A PASS is done when
    the cells have the order to give its frame to the receive buffer.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    order : see above.
    key_request, key_answer : client of the key table.
    cell_order, cell : to and from `rtl.control_cells.ControlCells`.
    write_cmd, write_row, write_done : client of the DMA write engine.
    done : what has found its end.
    over : stream, the flow of each PLACE that has found its end, told or not. It is taken soon, whatever else waits.
    ended : strobe, the cells of a handle are given back.
    idle : no order is under way, and nothing waits at `done`.
    count_placed, count_drops, count_passes : strobes.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "order": In(stream.Signature(place_order(config))),
            "key_request": Out(stream.Signature(KeyRequest)), "key_answer": In(stream.Signature(KeyAnswer)),
            "cell_order": Out(stream.Signature(cell_order(config))), "cell": In(stream.Signature(buffered_row(config))),
            "write_cmd": Out(stream.Signature(WriteCommand)), "write_row": Out(stream.Signature(row(config))),
            "write_done": In(stream.Signature(WriteDone)),
            "done": Out(stream.Signature(DoneToken)),
            "over": Out(stream.Signature(DoneToken.members["flow"])),
            "ended": Out(1), "idle": Out(1),
            "count_placed": Out(Strobe(CountAmount)), "count_drops": Out(Strobe(CountAmount)),
            "count_passes": Out(Strobe(CountAmount)),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.asked = asked = StreamFifo(shape=place_order(self.config), depth=ORDERS_ASKED)
        m.submodules.tokens = tokens = StreamFifo(shape=_token(), depth=ORDERS_IN_FLIGHT)
        asks = self._ask(m, asked)
        decides = self._decide(m, asked, tokens)
        aligns = self._align(m)
        finishes = self._finish(m, tokens)

        under_way, enters = Signal(range(ORDERS_ASKED + ORDERS_IN_FLIGHT + 8), name="under_way"), Signal()
        m.d.comb += [enters.eq(self.order.valid & self.order.ready), self.idle.eq((under_way == 0) & ~self.done.valid)]
        m.d.sync += under_way.eq(under_way + enters - finishes)
        m.d.comb += self.active.eq(
            asks | decides | aligns | finishes | asked.active | tokens.active | (self.done.valid & self.done.ready)
            | Cat(self.count_placed.valid, self.count_drops.valid, self.count_passes.valid).any())
        return m

    def _ask(self, m, asked):
        """May it be written there?"""
        order, request = self.order.payload, self.key_request.payload
        writes, takes = _writes(order), Signal()
        m.d.comb += [
            # `asked` stays ready until it gets an entry, so the request is not withdrawn.
            self.key_request.valid.eq(self.order.valid & writes & asked.i.ready),
            self.order.ready.eq(asked.i.ready & (~writes | self.key_request.ready)),
            takes.eq(self.order.valid & self.order.ready),
            request.channel.eq(order.channel), request.key.eq(order.key), request.offset.eq(order.offset),
            request.length.eq(order.done.length), request.write.eq(1),
            asked.i.valid.eq(takes), asked.i.payload.eq(order),
        ]
        return takes

    def _decide(self, m, asked, tokens):
        """The answer decides. What it means for the cells takes two cycles to know: where the part begins and ends,
        then how many rows that is. The decision stands in registers until all that it concerns have taken it."""
        width, lanes = self.config.host_bytes, lane_bits(self.config)
        entry, answer = asked.o.payload, self.key_answer.payload
        cells, command = self.cell_order.payload, self.write_cmd.payload
        token, token_valid = Signal(_token()), Signal(name="token_valid")
        writes, decides, counts = Signal(name="writes"), Signal(name="decides"), Signal(name="counts_rows")
        is_asked, is_good = _writes(entry), answer.status == Status.OK
        end, has_tail, is_one = Signal(LENGTH_BITS + 1, name="end"), Signal(), Signal()
        first, tail = end[lanes:], end[:lanes]
        m.d.comb += [
            writes.eq(is_asked & is_good),
            decides.eq(asked.o.valid & (~is_asked | self.key_answer.valid) & ~counts
                       & ~self.cell_order.valid & ~self.write_cmd.valid & ~token_valid),
            asked.o.ready.eq(decides), self.key_answer.ready.eq(decides & is_asked),
            has_tail.eq(tail.any()), is_one.eq((first == cells.begin) | ((first == cells.begin + 1) & ~has_tail)),
            tokens.i.valid.eq(token_valid), tokens.i.payload.eq(token),
        ]
        m.d.sync += counts.eq(decides)
        length = Signal.like(entry.done.length, name="part_bytes")
        frees, passes = Signal(name="order_frees"), Signal(name="order_passes")
        with m.If(decides):
            m.d.sync += [
                end.eq(entry.begin + entry.done.length), length.eq(Mux(writes | entry.passes, entry.done.length, 0)),
                passes.eq(entry.passes), cells.passes.eq(entry.passes), token.passes.eq(entry.passes),
                cells.handle.eq(entry.handle), cells.begin.eq(entry.begin[lanes:]), cells.start.eq(entry.begin),
                cells.at.eq(answer.address), cells.frees.eq(entry.ends), frees.eq(entry.ends),
                cells.cells.eq((entry.frame_bytes + (CELL_BYTES - 1))[_CELL_BITS:]),
                command.address.eq(answer.address), command.length.eq(entry.done.length),
                token.done.eq(entry.done), token.writes.eq(writes),
            ]
            with m.If(is_asked & ~is_good):
                m.d.sync += [token.done.status.eq(DoneStatus.KEY), token.done.length.eq(0)]
            with m.If(~is_asked):
                m.d.sync += token.done.length.eq(0)
        with m.If(counts):
            m.d.sync += [
                self.cell_order.valid.eq(length.any() | frees), self.write_cmd.valid.eq(length.any() & ~passes),
                token_valid.eq(1), cells.rows.eq(Mux(length.any(), first - cells.begin + has_tail, 0)),
                cells.first_count.eq(Mux(is_one, length, width - cells.start)),
                cells.last_count.eq(Mux(has_tail, tail, width)),
            ]
        leaves = []
        for valid, ready in ((self.cell_order.valid, self.cell_order.ready),
                             (self.write_cmd.valid, self.write_cmd.ready), (token_valid, tokens.i.ready)):
            with m.If(valid & ready):
                m.d.sync += valid.eq(0)
            leaves.append(valid & ready)
        m.d.comb += self.ended.eq(leaves[0] & cells.frees)
        return decides | counts | Cat(leaves).any()

    def _align(self, m):
        """The rows in the lanes of their address."""
        m.submodules.aligner = aligner = Aligner(width_bytes=self.config.host_bytes)
        i, o = aligner.i.payload, aligner.o.payload
        m.d.comb += [
            aligner.i.valid.eq(self.cell.valid), self.cell.ready.eq(aligner.i.ready),
            *(i[name].eq(self.cell.payload[name]) for name in ("data", "start", "count", "last", "at")),
            self.write_row.valid.eq(aligner.o.valid), aligner.o.ready.eq(self.write_row.ready),
            self.write_row.payload.data.eq(o.data), self.write_row.payload.last.eq(o.last),
        ]
        return aligner.active

    def _finish(self, m, tokens):
        """The bus has answered, or nothing was written: the order is done."""
        token, done = tokens.o.payload, self.done.payload
        can_finish, finishes, failed, tells, is_place = (
            Signal(name=name) for name in ("can_finish", "finishes", "failed", "tells", "is_place"))
        is_good = token.done.status == DoneStatus.OK
        m.d.comb += [
            is_place.eq(token.done.order == ControlType.PLACE), self.over.payload.eq(token.done.flow),
            self.over.valid.eq(tokens.o.valid & is_place & (~self.done.valid | self.done.ready)
                               & (~token.writes | self.write_done.valid)),
            can_finish.eq(tokens.o.valid & (~self.done.valid | self.done.ready) & (~is_place | self.over.ready)),
            finishes.eq(can_finish & (~token.writes | self.write_done.valid)),
            failed.eq(token.writes & self.write_done.payload.error), tells.eq(token.done.asked | ~is_good | failed),
            tokens.o.ready.eq(finishes), self.write_done.ready.eq(can_finish & token.writes),
        ]
        with m.If(finishes):
            m.d.sync += [
                self.done.valid.eq(tells), done.eq(token.done),
            ]
            with m.If(failed):
                m.d.sync += [done.status.eq(DoneStatus.BUS), done.length.eq(0)]
        with m.Elif(self.done.ready):
            m.d.sync += self.done.valid.eq(0)
        for strobe, event, amount in ((self.count_placed, token.writes & ~failed, token.done.length),
                                      (self.count_drops, ~token.writes & ~token.passes & is_good, 1),
                                      (self.count_passes, token.passes, 1)):
            m.d.sync += strobe.valid.eq(finishes & event)
            with m.If(finishes):
                m.d.sync += strobe.payload.amount.eq(amount)
        return finishes


_CELL_BITS = CELL_BYTES.bit_length() - 1


def _writes(order):
    """Whether an order that was judged writes something."""
    return (order.done.status == DoneStatus.OK) & order.done.length.any() & ~order.passes
