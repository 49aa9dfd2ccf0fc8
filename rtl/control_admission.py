"""Which received frames are for the control port, and what becomes of them: cells, a message, or nothing."""

from itertools import pairwise

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import NicConfig, RxInfo, register
from nic_model.contract.control import FLOW_PLACES, NO_FLOW, ControlEnable
from rtl.control_cells import ControlCells, cell_order
from rtl.control_messages import message_beat
from rtl.control_segments import SegmentMessages, has_tcp_header, held_frame
from rtl.flow_table import SLOTS_PER_BUCKET, TABLES, FlowTable
from rtl.header_fields import Flow
from rtl.interfaces import TIME_BITS, CountAmount, RegisterWrite, Strobe, row
from rtl.listen_table import ListenTable
from rtl.parser import FOUND_STAGE, parsed_row, parser_latency
from rtl.primitives import SmallRam
from rtl.rx_buffer import buffered_row

HASHED_WORDS = {8: 2, 16: 2, 32: 3, 64: 5}
"""By the MAC's width in bytes: words of a flow that are hashed in a cycle, so that a lookup takes no longer than the
shortest TCP segment has beats: 54 bytes over IPv4, 74 over IPv6."""

KEY_COPIES = {8: 1, 16: 1, 32: 2, 64: 2}
"""Likewise, copies of the flows' keys."""

DELAY_ROWS = 32
"""Places where rows wait for the lookups: more than there are cycles in it."""


def flow_table(config: NicConfig) -> FlowTable:
    """The flow table of a device."""
    return FlowTable(
        flows=config.flows, buckets=config.flows * FLOW_PLACES // SLOTS_PER_BUCKET // TABLES,
        words_per_cycle=HASHED_WORDS[config.mac_bytes], copies=KEY_COPIES[config.mac_bytes])


class ControlAdmission(wiring.Component):
    """Takes the frames that are for the control port out of the receive path, and tells of them.

    Enters: `row`, rows from the parser, one in each cycle if need be, and before the last of a frame its `flow`.
    Leaves: `rest`, the same rows `delay` cycles later, where `passes` is 0 beside the last of a frame that was taken,
    and `taken` is 1; for each frame that was taken and found room a message `o`, for its bytes `order` and `cell`.

    A frame is for the port if the address filter lets it in and it is not bad, CONTROL_ENABLE says FLOWS, and it is a
    TCP segment with right checksums of a flow in the table or, if of none, to a listener; or whatever, with REST. Both
    tables are asked for every TCP segment. Cells, handle and slot for a message are had together, or the frame is
    dropped and counted, for the first that is missing: slot, handle, cell. Nothing here ever waits.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    write : register writes, for CONTROL_ENABLE and DEVICE_RESET.
    row, flow : from the parser.
    rest, taken : see above.
    flow_order, flow_done, listen_order, listen_done : those of the tables.
    order, cell, passed_row : those of `ControlCells`.
    ended : strobe, a handle has ended.
    to_tell, told : frames that were taken and whose message has not left; strobe, one leaves.
    o, held : those of `SegmentMessages`.
    now : cycle count.
    count_no_slot, count_no_handle, count_no_cell, count_segments, count_unknown, count_bytes : strobes.

    Attributes
    ----------
    delay : int
        Cycles from `row` to `rest`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        self._flows, self._listeners = flow_table(config), ListenTable(listeners=config.listeners)
        # The flow comes when the parser has judged the headers; its answer must be there when the last row is judged.
        self.delay = max(2, self._flows.latency + FOUND_STAGE - parser_latency(config))
        super().__init__({
            "write": In(Strobe(RegisterWrite)),
            "row": In(Strobe(parsed_row(config))), "flow": In(Strobe(Flow)),
            "rest": Out(Strobe(parsed_row(config))), "taken": Out(1),
            **{f"flow_{name}": member for name, member in self._flows.signature.members.items()
               if name in ("order", "done")},
            **{f"listen_{name}": member for name, member in self._listeners.signature.members.items()
               if name in ("order", "done")},
            "order": In(stream.Signature(cell_order(config))),
            "cell": Out(stream.Signature(buffered_row(config))), "passed_row": Out(stream.Signature(row(config))),
            "ended": In(1), "to_tell": Out(range(config.control_slots + 4)), "told": Out(1),
            "o": Out(stream.Signature(message_beat(config))),
            "held": Out(Strobe(held_frame(config))),
            "now": In(TIME_BITS),
            **{f"count_{name}": Out(Strobe(CountAmount)) for name in (
                "no_slot", "no_handle", "no_cell", "segments", "unknown", "bytes")},
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.flows = flows = self._flows
        m.submodules.listeners = listeners = self._listeners
        m.submodules.cells = cells = ControlCells(config)
        m.submodules.messages = messages = SegmentMessages(config)
        for table, name in ((flows, "flow"), (listeners, "listen")):
            connect(m, flipped(self.write), table.write)
            connect(m, flipped(getattr(self, f"{name}_order")), table.order)
            connect(m, table.done, flipped(getattr(self, f"{name}_done")))
        connect(m, flipped(self.order), cells.order)
        connect(m, cells.o, flipped(self.cell))
        connect(m, cells.passed, flipped(self.passed_row))
        connect(m, messages.o, flipped(self.o))
        connect(m, messages.held, flipped(self.held))
        m.d.comb += messages.now.eq(self.now)
        for name in ("segments", "unknown", "bytes"):
            connect(m, getattr(messages, f"count_{name}"), flipped(getattr(self, f"count_{name}")))

        self._look_up(m, flows, listeners)
        row, valid, delays = self._delay(m)
        judges = self._judge(m, row, valid, flows, listeners, cells, messages)
        m.d.comb += self.active.eq(
            delays | judges | Cat(block.active for block in (flows, listeners, cells, messages)).any())
        return m

    def _look_up(self, m, flows, listeners):
        """Every TCP segment in both tables."""
        flow = self.flow.payload
        is_tcp = self.flow.valid & flow.tcp
        listen = listeners.lookup.payload
        m.d.comb += [
            flows.lookup.valid.eq(is_tcp), flows.lookup.payload.ipv6.eq(flow.ipv6),
            *(flows.lookup.payload[name].eq(flow[name]) for name, _ in flows.lookup.payload.shape() if name != "ipv6"),
            listeners.lookup.valid.eq(is_tcp), listen.ipv6.eq(flow.ipv6),
        ]
        # The words have a packet's first byte highest, the contract's addresses lowest.
        with m.If(flow.ipv6):
            m.d.comb += [listen.address.eq(Cat(_swapped(flow[f"word_{n}"]) for n in range(4, 8))),
                         listen.port.eq(flow.word_8)]
        with m.Else():
            m.d.comb += [listen.address.eq(_swapped(flow.word_1)), listen.port.eq(flow.word_2)]

    def _delay(self, m):
        """Rows in a small memory, and out of it into a register."""
        shape = parsed_row(self.config)
        m.submodules.rows = rows = SmallRam(shape=shape, depth=DELAY_ROWS)
        assert self.delay <= DELAY_ROWS
        valid = [self.row.valid, *(Signal(name=f"row_{n}") for n in range(1, self.delay + 1))]
        m.d.sync += [later.eq(earlier) for earlier, later in pairwise(valid)]
        row = Signal(shape, name="delayed_row")
        leaves = valid[-2]
        m.d.comb += [rows.write_en.eq(self.row.valid), rows.write_data.eq(Value.cast(self.row.payload))]
        with m.If(self.row.valid):
            m.d.sync += rows.write_addr.eq(rows.write_addr + 1)
        with m.If(leaves):
            m.d.sync += [rows.read_addr.eq(rows.read_addr + 1), Value.cast(row).eq(rows.read_data)]
        return row, valid[-1], Cat(valid).any()

    def _judge(self, m, row, valid, flows, listeners, cells, messages):
        """The verdict, beside the last row, and who is told of it."""
        config = self.config
        enable, sets_enable = Signal(max(ControlEnable).bit_length(), name="enable"), Signal()
        m.d.comb += sets_enable.eq(self.write.valid & (self.write.payload.address == register("CONTROL_ENABLE")))
        with m.If(sets_enable):
            m.d.sync += enable.eq(self.write.payload.data)

        def has(flag):
            return (row.info & int(flag)).any()

        ends, is_tcp, is_segment, found, listened = (
            Signal(name=name) for name in ("ends", "is_tcp", "is_segment", "found", "listened"))
        lets_in, for_port, keeps, has_handle = (
            Signal(name=name) for name in ("lets_in", "for_port", "keeps", "has_handle"))
        m.d.comb += [
            ends.eq(valid & row.last), is_tcp.eq(ends & has(RxInfo.TCP)),
            flows.answer.ready.eq(is_tcp), listeners.answer.ready.eq(is_tcp),
            is_segment.eq(is_tcp & has(RxInfo.L4_CHECKSUM_OK) & (has(RxInfo.IPV6) | has(RxInfo.L3_CHECKSUM_OK))
                          & has_tcp_header(row)),
            found.eq(is_segment & flows.answer.payload.found),
            listened.eq(is_segment & ~flows.answer.payload.found & listeners.answer.payload.found),
            lets_in.eq(ends & row.passes & ~row.bad & ~row.short & ~row.long & enable[0]),
            for_port.eq(lets_in & (found | listened | enable[1])),
        ]
        self.invariants = [
            (~is_tcp | (flows.answer.valid & listeners.answer.valid), "a segment has no answer in time")]

        # Handles: as many as frames in the cells, unless there are to be fewer.
        handles = Signal(range(config.control_handles + 1), name="handles_held")
        m.d.sync += handles.eq(handles + keeps - self.ended)
        m.d.comb += has_handle.eq(handles != config.control_handles)
        self.invariants.append((~self.ended | (handles != 0), "a handle ends that was not held"))

        m.d.comb += self.told.eq(messages.o.valid & messages.o.ready & messages.o.payload.last)
        m.d.sync += self.to_tell.eq(self.to_tell + keeps - self.told)

        arrival = messages.arrival
        m.d.comb += [
            keeps.eq(for_port & messages.has_room & has_handle & ~cells.missed),
            arrival.found.eq(found), arrival.flow.eq(flows.answer.payload.flow),
            arrival.generation.eq(flows.answer.payload.generation), arrival.listened.eq(listened),
            arrival.listener.eq(listeners.answer.payload.listener), arrival.handle.eq(cells.handle),
            *(arrival[name].eq(row[name]) for name in ("length", "info", "l3", "l4", "checksum", "time")),
        ]
        assert config.flows <= NO_FLOW
        for block in (cells, messages):
            rows = block.row.payload
            m.d.comb += [block.row.valid.eq(valid), rows.data.eq(row.data), rows.first.eq(row.first),
                         rows.last.eq(row.last), rows.keep.eq(keeps)]
        m.d.comb += [
            self.rest.valid.eq(valid), self.rest.payload.eq(row), self.rest.payload.passes.eq(row.passes & ~for_port),
            self.taken.eq(for_port),
        ]

        # The time of a frame came beside its first row.
        time = Signal.like(row.time)
        with m.If(valid & row.first):
            m.d.sync += time.eq(row.time)
        with m.If(~row.first):
            m.d.comb += arrival.time.eq(time)

        counts, refused = [], 0
        for name, lacks in (("no_slot", ~messages.has_room), ("no_handle", ~has_handle), ("no_cell", cells.missed)):
            strobe = getattr(self, f"count_{name}")
            m.d.comb += strobe.payload.amount.eq(1)
            m.d.sync += strobe.valid.eq(for_port & lacks & ~refused)
            refused = refused | lacks
            counts.append(strobe.valid)
        return sets_enable | self.ended | Cat(counts).any()


def _swapped(word):
    """A word's bytes in the other order."""
    return Cat(word[at:at + 8] for at in range(len(word) - 8, -1, -8))
