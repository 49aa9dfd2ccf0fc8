"""Gathers what was written of a frame or an aggregate, until all of it can be told."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from nic_model.contract import MAX_AGGREGATE_BUFFERS, NicConfig, RxInfo, Status
from rtl.interfaces import CHANNEL_BITS, INDEX_BITS, RECEIVE_BITS, TIME_BITS, CountAmount, RxDone, Strobe
from rtl.primitives import Ram, SmallRam
from rtl.rx_buffer import LENGTH_BITS

MERGED_INFO = RxInfo.FIXED_ID | RxInfo.PSH | RxInfo.FIN
"""RxInfo bits that appended segments add; the others are those of the first."""


def rx_part(config: NicConfig) -> data.StructLayout:
    """Part of a frame in one buffer, as `rtl.rx_rings.matched_frame` has it, when the bus has answered its write; or
    `close`, the end of an aggregate."""
    return data.StructLayout({
        "context": range(config.coalesce_contexts + 1), "close": 1, "first": 1, "last": 1, "opens": 1, "closes": 1,
        "takes": 1, "channel": CHANNEL_BITS, "buffer_id": 16, "ring_index": INDEX_BITS, "status": 8,
        "length": LENGTH_BITS, "info": 16, "checksum": 16, "mss": LENGTH_BITS, "timestamp": TIME_BITS,
    })


# One buffer of an aggregate, with the bytes in it.
_Entry = data.StructLayout({"buffer_id": 16, "ring_index": INDEX_BITS, "length": RECEIVE_BITS})

# An aggregate: what its head will say, the number of its latest buffer, and that buffer so far.
_State = data.StructLayout({
    "channel": CHANNEL_BITS, "status": 8, "info": 16, "checksum": 16, "timestamp": TIME_BITS, "segments": 16,
    "mss": LENGTH_BITS, "latest": range(MAX_AGGREGATE_BUFFERS), "entry": _Entry,
})


class RxGather(wiring.Component):
    """Keeps the buffers of each open aggregate, and tells of all of them, one after the other, when it closes.

    Enters: `part`, parts of frames in the order in which the bus answered. Leaves: `done`, one for each buffer of a
    receive, the first of which has its status, number of segments and the like. A frame in one buffer that is not
    merged leaves 1 cycle after it came, one in 2 cycles; another part is taken in 3 cycles; a buffer of a receive that
    closes leaves in 3.

    If any part of a receive failed, all its buffers are told with length 0, and the head has the first status that was
    not OK.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `coalesce_contexts` is used.

    Members
    -------
    part : parts of frames.
    done : tokens for completion.
    count_aggregates, count_coalesced : strobes.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "part": In(stream.Signature(rx_part(config))), "done": Out(stream.Signature(RxDone)),
            "count_aggregates": Out(Strobe(CountAmount)), "count_coalesced": Out(Strobe(CountAmount)),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        part, done = self.part.payload, self.done.payload
        # The last place is for frames that take several buffers and are not merged.
        places = self.config.coalesce_contexts + 1
        m.submodules.states = states = SmallRam(shape=_State, depth=places)
        m.submodules.entries = entries = Ram(shape=_Entry, depth=places * MAX_AGGREGATE_BUFFERS)
        state, entry = Signal(_State), Signal(_Entry)
        number = Signal(range(MAX_AGGREGATE_BUFFERS))
        free, is_alone, offers = Signal(), Signal(), Signal()
        stores, reads = Signal(), Signal()
        is_good = Signal()
        at = exact_log2(MAX_AGGREGATE_BUFFERS)
        m.d.comb += [
            free.eq(~self.done.valid),  # and not `done.ready` too, which comes late
            is_alone.eq(part.first & part.last & part.opens & part.closes & ~part.close),
            states.read_addr.eq(part.context), states.write_addr.eq(part.context),
            states.write_en.eq(stores), states.write_data.eq(state),
            entries.write_en.eq(stores), entries.write_data.eq(state.entry),
            entries.write_addr.eq(Cat(state.latest, part.context)),
            entries.read_en.eq(reads), entries.read_addr.eq(Cat(number, part.context)),
            is_good.eq(state.status == Status.OK),
        ]
        assert len(state.latest) == len(number) == at

        moves = Signal()
        with m.If(self.done.ready):
            m.d.sync += self.done.valid.eq(0)
        with m.FSM(name="gather_state"):
            with m.State("PART"):
                with m.If(self.part.valid & is_alone):
                    with m.If(free):
                        m.d.comb += [moves.eq(1), offers.eq(1), self.part.ready.eq(1)]
                        good = part.status == Status.OK
                        m.d.sync += [
                            done.channel.eq(part.channel), done.buffer_id.eq(part.buffer_id),
                            done.ring_index.eq(part.ring_index), done.timestamp.eq(part.timestamp),
                            done.status.eq(part.status), done.length.eq(Mux(good, part.length, 0)),
                            done.info.eq(Mux(good, part.info, 0)),
                            done.checksum.eq(Mux(good, part.checksum, 0)), done.segments.eq(good), done.mss.eq(0),
                            done.more.eq(0), done.further.eq(0), done.last.eq(1),
                        ]
                with m.Elif(self.part.valid):
                    m.d.comb += moves.eq(1)
                    m.d.sync += [Value.cast(state).eq(states.read_data), number.eq(0)]
                    m.next = "ADD"
                    with m.If(part.close):
                        m.next = "READ"
            with m.State("ADD"):
                m.d.comb += moves.eq(1)
                with m.If(part.opens):
                    m.d.sync += [
                        state.channel.eq(part.channel), state.status.eq(part.status), state.info.eq(part.info),
                        state.checksum.eq(part.checksum), state.timestamp.eq(part.timestamp),
                        state.segments.eq(part.last), state.mss.eq(part.mss), state.latest.eq(0),
                    ]
                with m.Else():
                    m.d.sync += [
                        state.segments.eq(state.segments + part.last), state.latest.eq(state.latest + part.takes),
                        state.info.eq(state.info | (part.info & int(MERGED_INFO))),
                    ]
                    with m.If(is_good):
                        m.d.sync += state.status.eq(part.status)
                with m.If(part.takes):
                    m.d.sync += [
                        state.entry.buffer_id.eq(part.buffer_id), state.entry.ring_index.eq(part.ring_index),
                        state.entry.length.eq(part.length),
                    ]
                with m.Else():
                    m.d.sync += state.entry.length.eq(state.entry.length + part.length)
                m.next = "STORE"
            with m.State("STORE"):
                m.d.comb += [moves.eq(1), stores.eq(1)]
                with m.If(part.closes):
                    m.next = "READ"
                with m.Else():
                    m.d.comb += self.part.ready.eq(1)
                    m.next = "PART"
            with m.State("READ"):
                m.d.comb += [moves.eq(1), reads.eq(1)]
                m.next = "KEEP"
            with m.State("KEEP"):
                m.d.comb += moves.eq(1)
                m.d.sync += Value.cast(entry).eq(entries.read_data)
                m.next = "TELL"
            with m.State("TELL"):
                with m.If(free):
                    m.d.comb += [moves.eq(1), offers.eq(1)]
                    is_head = number == 0
                    m.d.sync += [
                        done.channel.eq(state.channel), done.buffer_id.eq(entry.buffer_id),
                        done.ring_index.eq(entry.ring_index), done.timestamp.eq(Mux(is_head, state.timestamp, 0)),
                        done.status.eq(Mux(is_head, state.status, Status.OK)),
                        done.length.eq(Mux(is_good, entry.length, 0)),
                        done.info.eq(Mux(is_good & is_head, state.info, 0)),
                        done.checksum.eq(Mux(is_good & is_head, state.checksum, 0)),
                        done.segments.eq(Mux(is_good & is_head, state.segments, 0)),
                        # One segment was not merged: it looks as if nothing could have been.
                        done.mss.eq(Mux(is_good & is_head & (state.segments != 1), state.mss, 0)),
                        done.more.eq(Mux(is_head, state.latest, 0)), done.further.eq(~is_head),
                        done.last.eq(number == state.latest), number.eq(number + 1),
                    ]
                    m.next = "READ"
                    with m.If(number == state.latest):
                        m.d.comb += self.part.ready.eq(1)
                        m.next = "PART"
        with m.If(offers):
            m.d.sync += self.done.valid.eq(1)
        told = offers & ~is_alone & (number == 0) & (state.segments > 1)
        merged = stores & part.first & ~part.opens
        for strobe, event in ((self.count_aggregates, told), (self.count_coalesced, merged)):
            m.d.comb += strobe.payload.amount.eq(1)
            m.d.sync += strobe.valid.eq(event)
        m.d.comb += self.active.eq(
            moves | (self.done.valid & self.done.ready) | self.count_aggregates.valid | self.count_coalesced.valid)
        return m
