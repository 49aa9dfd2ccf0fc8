"""The decider's orders of the release stream: judged, and handed to who carries them out."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import NicConfig
from nic_model.contract.control import (
    CONTROL_HEADER,
    CONTROL_VERSION,
    FLOW,
    NO_FLOW,
    PASS,
    PLACE,
    SEGMENT,
    UNIT_BYTES,
    ControlType,
    DoneStatus,
    OrderFlag,
)
from rtl.control_messages import MessageHeader, MessageReader, Unit, message_beat
from rtl.control_place import DoneToken, place_order
from rtl.control_segments import held_frame
from rtl.flow_entries import FlowWrite
from rtl.flow_table import FlowDone, FlowOrder, FlowStatus, flow_order
from rtl.interfaces import Strobe, contract_view
from rtl.listen_table import ListenDone, ListenOrder, ListenStatus, listen_order
from rtl.primitives import Ram, SmallRam
from rtl.rx_buffer import LENGTH_BITS, RxFrame

SETTLE_CYCLES = 63
"""From a DELETE that is done until every frame that was found before has been kept or dropped: more than the rows wait
for their lookups."""

_UNIT_BITS = 8 * UNIT_BYTES

# What stands in the second unit of FLOW_ADD and FLOW_SET.
_FlowHeader = data.FlexibleLayout(_UNIT_BITS, {
    name: data.Field(field.width, field.offset - _UNIT_BITS) for name, field in FLOW.fields.items()
    if field.offset >= _UNIT_BITS})
_FlowKey = data.FlexibleLayout(_UNIT_BITS, {
    name: data.Field(field.width, field.offset) for name, field in FLOW.fields.items() if field.offset < _UNIT_BITS})
_Place = contract_view(PLACE)
_Pass = contract_view(PASS)

# Of a frame whose handle is held.
_Held = data.StructLayout({
    "flow": CONTROL_HEADER.fields["flow"].width, "payload_offset": SEGMENT.fields["payload_offset"].width,
    "payload_bytes": LENGTH_BITS, "length": LENGTH_BITS,
    **{name: RxFrame[name].shape for name in ("info", "checksum", "time")},
})


class ControlRelease(wiring.Component):
    """Takes the orders of the release stream, one after the other.

    Enters: `i`, messages. Leaves: orders about handles to `place`, each with what became of it by then; orders to the
    tables of flows and listeners, and what a flow's frames look like to `entry`; COMPLETE as it came, when no order
    before it is at `place`; `done`, what came of those that are no orders about handles; for each PASS that is OK what
    the receive buffer has to know, to `passed`, beside its order. Nothing here waits for the emit stream: an order to
    send may wait for a PLACE that stands behind a FLOW_DEL.

    An order about a handle takes 8 cycles, of which the next message comes in 4. A handle that is not held, or held
    for another flow, is BAD; so are a part that does not lie in the payload, and a PASS to a channel that is not there,
    which ends nothing. A handle ends with its order: what names it later is BAD, until another frame has it. A second
    PASS waits until what is told of the one before was taken.

    FLOW_DEL waits until no order about a handle is under way; its DONE, until every message of a frame that was found
    for the flow has left.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    i : beats of messages.
    held : strobe, a handle and what it stands for, before its message.
    place, place_idle : orders about handles; none is under way, nor its DONE.
    to_tell, told : frames that were taken and whose message has not left; strobe, one leaves.
    flow_order, flow_done, listen_order, listen_done : clients of the tables.
    entry : stream of `rtl.flow_entries.FlowWrite`. `keeps_key`: it is a FLOW_SET's, whose addresses, ports and channel
        mean nothing.
    complete : units of COMPLETE.
    done : see above.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(message_beat(config))),
            "held": In(Strobe(held_frame(config))),
            "place": Out(stream.Signature(place_order(config))), "place_idle": In(1),
            "to_tell": In(range(config.control_slots + 4)), "told": In(1),
            "flow_order": Out(stream.Signature(flow_order(config.flows))), "flow_done": In(stream.Signature(FlowDone)),
            "listen_order": Out(stream.Signature(listen_order(config.listeners))),
            "listen_done": In(stream.Signature(ListenDone)),
            "entry": Out(stream.Signature(FlowWrite)), "keeps_key": Out(1),
            "complete": Out(stream.Signature(Unit)),
            "passed": Out(stream.Signature(RxFrame)), "done": Out(stream.Signature(DoneToken)),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.reader = reader = MessageReader(config)
        connect(m, flipped(self.i), reader.i)
        unit, header = reader.o, MessageHeader(reader.o.payload.data[:MessageHeader.size])

        # The order that is judged: its header, and of one about a handle the rest.
        order = Signal(DoneToken, name="order")
        flags, place = Signal(len(header.flags), name="flags"), Signal(_Place, name="place_fields")
        key, channel = Signal(_FlowKey, name="flow_key"), Signal(8, name="order_channel")

        held, is_held, reads, keeps_moves, ends = self._handles(m, place.handle)
        status, moves, tells = Signal(DoneStatus, name="status"), Signal(name="moves"), Signal(name="tells")
        ok = DoneStatus.OK

        # What is told of all orders but those about handles.
        done = self.done.payload
        with m.If(self.done.valid & self.done.ready):
            m.d.sync += self.done.valid.eq(0)
        with m.If(tells):
            m.d.sync += [self.done.valid.eq(1), done.eq(order), done.status.eq(status), done.asked.eq(1)]

        def tell(what):
            m.d.comb += [moves.eq(1), tells.eq(1), status.eq(what)]
            m.next = "ORDER"

        # The tables see the latest order.
        flow, listen = self.flow_order.payload, self.listen_order.payload
        in_table = order.flow < config.flows
        ipv6 = (flags & int(OrderFlag.IPV6)).any()
        m.d.comb += [
            flow.flow.eq(order.flow), flow.generation.eq(order.generation), flow.channel.eq(channel),
            flow.key.ipv6.eq(ipv6), listen.listener.eq(order.flow), listen.key.ipv6.eq(ipv6),
            listen.order.eq(Mux(order.order == ControlType.LISTEN_ADD, ListenOrder.ADD, ListenOrder.DELETE)),
            listen.key.port.eq(key.local_port), listen.key.address.eq(key.local_address),
        ]
        # The contract's addresses have their first byte lowest, the table's words highest.
        ports = Cat(key.local_port, key.remote_port)
        words = [*(_swapped(key.remote_address[32 * n:32 * n + 32]) for n in range(4)),
                 *(_swapped(key.local_address[32 * n:32 * n + 32]) for n in range(4)), ports]
        ipv4_words = [_swapped(key.remote_address[:32]), _swapped(key.local_address[:32]), ports]
        for n, word in enumerate(words):
            m.d.comb += flow.key[f"word_{n}"].eq(Mux(ipv6, word, ipv4_words[n] if n < len(ipv4_words) else 0))

        # What the flow's frames look like.
        entry, look = self.entry.payload.entry, Signal(_FlowHeader, name="flow_header")
        deletes, adds = order.order == ControlType.FLOW_DEL, order.order == ControlType.FLOW_ADD
        m.d.comb += [
            flow.order.eq(Mux(adds, FlowOrder.ADD, Mux(deletes, FlowOrder.DELETE, FlowOrder.CHECK))),
            self.entry.payload.flow.eq(order.flow), entry.valid.eq(~deletes), entry.generation.eq(order.generation),
            entry.channel.eq(channel), entry.ipv6.eq(ipv6), entry.tagged.eq((flags & int(OrderFlag.VLAN)).any()),
            self.keeps_key.eq(order.order == ControlType.FLOW_SET),
            *(entry[name].eq(key[name]) for name in ("remote_port", "local_port", "remote_address", "local_address")),
            *(entry[name].eq(look[name]) for name in (
                "next_hop", "vlan_tci", "hop_limit", "traffic_class", "flow_label", "timestamp_offset")),
        ]

        # An order about a handle, judged.
        judged, judged_valid = self.place.payload, self.place.valid
        with m.If(judged_valid & self.place.ready):
            m.d.sync += judged_valid.eq(0)
        is_part, is_place = Signal(name="is_part"), order.order == ControlType.PLACE
        is_pass = order.order == ControlType.PASS
        may_end, passes = Signal(name="may_end"), Signal(name="passes")
        with m.If(self.passed.valid & self.passed.ready):
            m.d.sync += self.passed.valid.eq(0)
        is_mine, is_stale = Signal(name="is_mine"), Signal(name="is_stale")

        asks_flow, waits = Signal(name="asks_flow"), Signal(range(SETTLE_CYCLES + 1), name="settles")
        left = Signal.like(self.to_tell, name="left_to_tell")
        m.d.comb += self.flow_order.valid.eq(asks_flow)
        with m.FSM(name="release_state"):
            with m.State("ORDER"):
                with m.If(unit.valid & ~self.done.valid):
                    m.d.comb += moves.eq(1)
                    m.d.sync += [
                        *(order[name].eq(header[name]) for name in ("flow", "generation", "tag")),
                        order.order.eq(header.type), order.asked.eq((header.flags & int(OrderFlag.DONE)).any()),
                        order.length.eq(0), order.status.eq(ok), flags.eq(header.flags),
                        Value.cast(place).eq(unit.payload.data), Value.cast(key).eq(unit.payload.data),
                        channel.eq(_FlowKey(unit.payload.data).channel),
                    ]
                    following = (
                        ("HANDLE", unit.payload.last, (ControlType.PLACE, ControlType.DROP, ControlType.PASS)),
                        ("HEADER", ~unit.payload.last, (ControlType.FLOW_ADD, ControlType.FLOW_SET)),
                        ("DRAIN", unit.payload.last, (ControlType.FLOW_DEL,)),
                        ("LISTEN", unit.payload.last, (ControlType.LISTEN_ADD, ControlType.LISTEN_DEL)),
                    )
                    m.next = "SKIP"
                    with m.If(header.version == CONTROL_VERSION), m.Switch(header.type):
                        for state, is_whole, types in following:
                            with m.Case(*types), m.If(is_whole):
                                m.d.comb += unit.ready.eq(1)
                                m.next = state
                        with m.Case(ControlType.COMPLETE):
                            m.next = "FORWARD"

            # Orders about handles.
            with m.State("HANDLE"):
                # What is being written is not read: a cycle later.
                m.d.comb += [
                    reads.eq(~self.held.valid), moves.eq(~self.held.valid), asks_flow.eq(is_place & in_table),
                ]
                with m.If(~self.held.valid):
                    m.d.sync += is_stale.eq(is_place)
                    m.next = "FOUND"
                    with m.If(asks_flow):
                        m.next = "FLOW"
            with m.State("FLOW"):
                m.d.comb += [asks_flow.eq(~self.flow_done.valid), self.flow_done.ready.eq(1)]
                with m.If(self.flow_done.valid):
                    m.d.comb += moves.eq(1)
                    m.d.sync += [is_stale.eq(self.flow_done.payload.status != FlowStatus.OK),
                                 channel.eq(self.flow_done.payload.channel)]
                    m.next = "FOUND"
            with m.State("FOUND"):
                m.d.comb += moves.eq(1)
                m.d.sync += [
                    is_part.eq((place.length != 0) & (place.skip + place.length <= held.payload_bytes)),
                    is_mine.eq((held.flow == NO_FLOW) | (held.flow == order.flow)),
                    may_end.eq(Mux(is_place, (flags & int(OrderFlag.LAST)).any(),
                                   ~is_pass | (_Pass(Value.cast(place)).channel < config.channels))),
                ]
                m.next = "JUDGE"
            with m.State("JUDGE"):
                with m.If(~judged_valid & ~(is_pass & self.passed.valid)):
                    m.d.comb += [
                        moves.eq(1), status.eq(ok), ends.eq(is_held & may_end), passes.eq(ends & is_pass),
                    ]
                    with m.If(~is_held | (is_pass & ~may_end)):
                        m.d.comb += status.eq(DoneStatus.BAD)
                    with m.Elif(is_place & is_stale):
                        m.d.comb += status.eq(DoneStatus.STALE)
                    with m.Elif(is_place & ~(is_mine & is_part)):
                        m.d.comb += status.eq(DoneStatus.BAD)
                    m.d.sync += [
                        judged_valid.eq(1), judged.done.eq(order), judged.done.status.eq(status),
                        judged.done.length.eq(Mux(passes, held.length,
                                                  Mux(is_place & (status == ok), place.length, 0))),
                        judged.handle.eq(place.handle), judged.passes.eq(passes), judged.ends.eq(ends),
                        judged.begin.eq(Mux(is_place, held.payload_offset + place.skip, 0)),
                        judged.frame_bytes.eq(held.length), judged.channel.eq(channel),
                        judged.key.eq(place.key), judged.offset.eq(place.offset),
                    ]
                    with m.If(passes):
                        m.d.sync += [
                            self.passed.valid.eq(1), self.passed.payload.channel.eq(_Pass(Value.cast(place)).channel),
                            *(self.passed.payload[name].eq(held[name])
                              for name in ("length", "info", "checksum", "time")),
                        ]
                    m.next = "ORDER"

            # Orders about flows.
            with m.State("HEADER"):
                with m.If(unit.valid):
                    m.d.comb += [moves.eq(1), unit.ready.eq(1)]
                    m.d.sync += Value.cast(look).eq(unit.payload.data)
                    m.next = "TABLE"
                    with m.If(adds & (~in_table | (key.channel >= config.channels))):
                        m.next = "BAD"
                    with m.If(~unit.payload.last):
                        m.next = "SKIP"
            with m.State("DRAIN"):
                with m.If(self.place_idle & ~judged_valid):
                    m.d.comb += moves.eq(1)
                    m.next = "TABLE"
            with m.State("TABLE"):
                with m.If(~in_table):
                    tell(DoneStatus.STALE)
                with m.Elif(~self.flow_done.valid):
                    m.d.comb += [asks_flow.eq(1), moves.eq(self.flow_order.ready)]
                with m.Else():
                    m.d.comb += [moves.eq(1), self.flow_done.ready.eq(1)]
                    with m.Switch(self.flow_done.payload.status):
                        with m.Case(FlowStatus.OK):
                            m.next = "ENTRY"
                        with m.Case(FlowStatus.STALE):
                            tell(DoneStatus.STALE)
                        with m.Case(FlowStatus.FULL):
                            tell(DoneStatus.FULL)
                        with m.Default():
                            tell(DoneStatus.BAD)
            with m.State("ENTRY"):
                m.d.comb += [self.entry.valid.eq(1), moves.eq(self.entry.ready)]
                with m.If(self.entry.ready):
                    with m.If(deletes):
                        m.d.sync += waits.eq(SETTLE_CYCLES)
                        m.next = "SETTLE"
                    with m.Else():
                        tell(ok)
            with m.State("SETTLE"):
                m.d.comb += moves.eq(1)
                m.d.sync += [waits.eq(waits - 1), left.eq(self.to_tell - self.told)]
                with m.If(waits == 0):
                    m.next = "TOLD"
            with m.State("TOLD"):
                with m.If(left == 0):
                    tell(ok)
                with m.Elif(self.told):
                    m.d.comb += moves.eq(1)
                    m.d.sync += left.eq(left - 1)

            # The others.
            with m.State("LISTEN"):
                m.d.comb += [
                    self.listen_order.valid.eq(~self.listen_done.valid & (order.flow < config.listeners)),
                    self.listen_done.ready.eq(1), moves.eq(self.listen_order.ready),
                ]
                with m.If(order.flow >= config.listeners):
                    tell(DoneStatus.BAD)
                with m.Elif(self.listen_done.valid):
                    tell(DoneStatus.BAD)
                    with m.Switch(self.listen_done.payload.status):
                        with m.Case(ListenStatus.OK):
                            m.d.comb += status.eq(ok)
                        with m.Case(ListenStatus.FULL):
                            m.d.comb += status.eq(DoneStatus.FULL)
            with m.State("FORWARD"):
                m.d.comb += [self.complete.valid.eq(unit.valid & ~judged_valid),
                             unit.ready.eq(self.complete.ready & ~judged_valid), moves.eq(unit.valid & unit.ready)]
                with m.If(unit.valid & unit.ready & unit.payload.last):
                    m.next = "ORDER"
            with m.State("SKIP"):
                m.d.comb += [unit.ready.eq(1), moves.eq(unit.valid)]
                with m.If(unit.valid & unit.payload.last):
                    tell(DoneStatus.BAD)
            with m.State("BAD"):
                tell(DoneStatus.BAD)
        m.d.comb += [
            self.complete.payload.eq(unit.payload),
            self.active.eq(moves | keeps_moves | reader.active | (judged_valid & self.place.ready)
                           | (self.passed.valid & self.passed.ready) | (self.done.valid & self.done.ready)),
        ]
        return m

    def _handles(self, m, handle):
        """What is known of each handle, and whether it is held. A handle is held if it has begun more often than ended,
        one bit of each count being kept. Returns what the latest read gave, whether the handle was held then, the
        read's request, that something moves, and the end of the handle."""
        config = self.config
        m.submodules.held_frames = frames = Ram(shape=_Held, depth=config.control_cells)
        m.submodules.begun = begun = SmallRam(shape=1, depth=config.control_cells)
        m.submodules.ended = ended = SmallRam(shape=1, depth=config.control_cells)
        m.submodules.ended_before = ended_before = SmallRam(shape=1, depth=config.control_cells)
        told = self.held.payload
        word, reads, arrives, ends = Signal(_Held), Signal(name="reads_handle"), Signal(), Signal(name="ends_handle")
        held, is_held, exists = Signal(_Held, name="held_frame"), Signal(name="is_held"), Signal()
        begins = Signal(name="begins_handle")
        m.d.sync += begins.eq(self.held.valid)
        with m.If(self.held.valid):
            m.d.sync += [begun.write_addr.eq(told.handle), begun.write_data.eq(~ended_before.read_data)]
        m.d.comb += [
            *(word[name].eq(told[name]) for name, _ in _Held),
            frames.write_en.eq(self.held.valid), frames.write_addr.eq(told.handle),
            frames.write_data.eq(Value.cast(word)),
            frames.read_en.eq(reads), frames.read_addr.eq(handle),
            ended_before.read_addr.eq(told.handle), begun.write_en.eq(begins),
            begun.read_addr.eq(handle), ended.read_addr.eq(handle), exists.eq(handle < config.control_cells),
        ]
        for memory in (ended, ended_before):
            m.d.comb += [memory.write_en.eq(ends), memory.write_addr.eq(handle), memory.write_data.eq(begun.read_data)]
        m.d.sync += arrives.eq(reads)
        with m.If(reads):
            m.d.sync += is_held.eq(exists & (begun.read_data != ended.read_data))
        with m.If(arrives):
            m.d.sync += Value.cast(held).eq(frames.read_data)
        return held, is_held, reads, self.held.valid | begins | arrives, ends


def _swapped(word):
    """A word's bytes in the other order."""
    return Cat(word[at:at + 8] for at in range(len(word) - 8, -1, -8))
