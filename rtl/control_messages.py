"""Messages of the control port: from beats to units and back, and several sources of them in one stream.

A message is one or more units of 64 bytes; its header says how many. Outside and between blocks it travels in beats of
the host bus's width; inside a block that has to understand it, unit by unit.
"""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from nic_model.contract import NicConfig
from nic_model.contract.control import CONTROL_HEADER, UNIT_BYTES
from rtl.interfaces import contract_view
from rtl.primitives import round_robin

UNIT_BITS = 8 * UNIT_BYTES

MessageHeader = contract_view(CONTROL_HEADER)
UNITS_BITS = CONTROL_HEADER.fields["units"].width

# A unit of a message; `first` and `last` of it.
Unit = data.StructLayout({"data": UNIT_BITS, "first": 1, "last": 1})


def message_beat(config: NicConfig) -> data.StructLayout:
    """A beat of a message: the next `W` bytes, lowest first. `last` marks the end of the message."""
    return data.StructLayout({"data": 8 * config.host_bytes, "last": 1})


def beats_of_unit(config: NicConfig) -> int:
    """Beats that a unit takes."""
    return UNIT_BYTES // config.host_bytes


class MessageReader(wiring.Component):
    """Collects beats of messages to units.

    Enters: beats. Where a message ends, its header alone says, so that a source cannot disagree with itself; a header
    of 0 units counts as 1. Leaves: units. A unit stands still in the registers in which it was collected until it is
    taken, and the next one's first beat enters in that cycle at the earliest.

    Latency 1 cycle behind the unit's last beat; a beat a cycle, if units are taken at once.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` is used.

    Members
    -------
    i, o : beats in, units out.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(message_beat(config))), "o": Out(stream.Signature(Unit)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        count = beats_of_unit(self.config)
        parts = [Signal(8 * self.config.host_bytes, name=f"part_{n}") for n in range(count)]
        place = Signal(range(max(count, 2)))  # of the next beat in its unit
        left, first = Signal(UNITS_BITS), Signal(init=1)  # units behind the one that is collected
        enters, leaves, ends = Signal(), Signal(), Signal()
        header = MessageHeader(self.i.payload.data[:MessageHeader.size])
        m.d.comb += [
            self.i.ready.eq(~self.o.valid | self.o.ready),
            enters.eq(self.i.valid & self.i.ready), leaves.eq(self.o.valid & self.o.ready),
            ends.eq(enters & (place == count - 1)),
            self.o.payload.data.eq(Cat(parts)),
            self.active.eq(enters | leaves),
        ]
        for n, part in enumerate(parts):
            with m.If(enters & (place == n)):
                m.d.sync += part.eq(self.i.payload.data)
        with m.If(enters):
            m.d.sync += place.eq(Mux(ends, 0, place + 1))
            with m.If(place == 0):
                units_left = Mux(first, Mux(header.units == 0, 0, header.units - 1), left - 1)
                m.d.sync += [
                    left.eq(units_left), self.o.payload.first.eq(first), self.o.payload.last.eq(units_left == 0),
                    first.eq(units_left == 0),
                ]
        with m.If(ends):
            m.d.sync += self.o.valid.eq(1)
        with m.Elif(leaves):
            m.d.sync += self.o.valid.eq(0)
        return m


class MessageWriter(wiring.Component):
    """Gives units out as beats.

    Enters: units, which must stand still until they are taken, with their last beat. Leaves: beats. No latency, a beat
    a cycle: there is no register here, `MessageArbiter` has one for all sources.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` is used.

    Members
    -------
    i, o : units in, beats out.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(Unit)), "o": Out(stream.Signature(message_beat(config))), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        count, width = beats_of_unit(self.config), 8 * self.config.host_bytes
        place = Signal(range(max(count, 2)))
        leaves, ends = Signal(), Signal()
        unit = self.i.payload
        m.d.comb += [
            self.o.valid.eq(self.i.valid), leaves.eq(self.o.valid & self.o.ready), ends.eq(place == count - 1),
            self.o.payload.data.eq(Array(unit.data.word_select(n, width) for n in range(count))[place]),
            self.o.payload.last.eq(unit.last & ends),
            self.i.ready.eq(self.o.ready & ends), self.active.eq(leaves),
        ]
        with m.If(leaves):
            m.d.sync += place.eq(Mux(ends, 0, place + 1))
        return m


class MessageArbiter(wiring.Component):
    """Joins several sources of messages into one, round robin, a whole message at a time; the output is registered.

    Latency 1 cycle; a beat a cycle.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `host_bytes` is used.
    count : int
        Sources, at least 1.

    Members
    -------
    i : sources, `i[0]` .. `i[count-1]`.
    o : beats out.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig, *, count: int):
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"count must be a positive integer, not {count!r}")
        self.config, self.count = config, count
        beat = message_beat(config)
        super().__init__({
            "i": In(stream.Signature(beat)).array(count), "o": Out(stream.Signature(beat)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        free = Signal()
        last_source = Signal(range(max(self.count, 2)))
        # the source whose message is under way, one-hot; 0 between two messages
        granted, grants = Signal(self.count), Signal(self.count)
        chosen = round_robin(m, Cat(i.valid for i in self.i), last_source)
        m.d.comb += [
            free.eq(~self.o.valid | self.o.ready),
            grants.eq(Mux(granted.any(), granted, chosen)),
        ]
        takes = Signal(self.count)
        m.d.comb += self.active.eq(takes.any() | (self.o.valid & self.o.ready))
        with m.If(free):
            m.d.sync += self.o.valid.eq(takes.any())
        for n, i in enumerate(self.i):
            m.d.comb += [i.ready.eq(free & grants[n]), takes[n].eq(i.valid & i.ready)]
            with m.If(takes[n]):
                m.d.sync += [
                    self.o.payload.eq(i.payload), last_source.eq(n),
                    granted.eq(Mux(i.payload.last, 0, 1 << n)),
                ]
        return m
