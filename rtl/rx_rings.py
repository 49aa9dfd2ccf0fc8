"""Receive rings: fetches posted buffers ahead of the frames, and gives each frame its buffers."""

from enum import IntEnum

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from nic_model.contract import (
    LARGEST_RING_LOG2,
    MAX_AGGREGATE_BUFFERS,
    MAX_FRAME_BUFFERS,
    RECEIVE_SLOT,
    RECEIVE_SLOT_BYTES,
    ChannelError,
    NicConfig,
    OperationMask,
)
from rtl.addresses import channel_of, is_channel_register
from rtl.interfaces import (
    BURST,
    CHANNEL_BITS,
    INDEX_BITS,
    ChannelFault,
    ChannelNumber,
    DoorbellWrite,
    IndexReport,
    ReadCommand,
    RegisterWrite,
    Strobe,
    read_beat,
)
from rtl.primitives import Ram, SkidBuffer, SmallRam, StreamArbiter, number_of, round_robin
from rtl.rx_buffer import LENGTH_BITS, RxFrame
from rtl.rx_gather import MERGED_INFO
from rtl.small_fifo import SmallFifo

FETCH_SLOTS = BURST // RECEIVE_SLOT_BYTES
"""Slots of a fetch at most. It ends at a multiple of so many: so it is one burst, and never wraps at a ring's end."""

FETCHES = 8
"""Fetches in flight, over all channels; two more, for the oldest stand in a stage of their own."""


def prefetch_slots(config: NicConfig) -> int:
    """Slots that the device holds of each receive ring: at a frame in 8 cycles 64 of them last for 512 cycles of bus
    latency, with the widest MACs 128 at a frame in 4."""
    return 128 if config.host_bytes == 64 else 64


_GENERATION_BITS = 4  # a channel cannot be started 16 times while one fetch is in flight: a start takes a drain
_DRAIN_BITS = 13  # more than buffers can be between their take and their completion, those of all aggregates too

BUFFER_LENGTH_BITS = 17
"""Of a buffer, as far as it matters for an aggregate: a longer one shows the largest number."""

# What the prefetch keeps of a receive slot.
Buffer = data.StructLayout({
    "offset": RECEIVE_SLOT.fields["offset"].width, "key": RECEIVE_SLOT.fields["key"].width,
    "length": BUFFER_LENGTH_BITS, "buffer_id": RECEIVE_SLOT.fields["buffer_id"].width,
})


class TaskKind(IntEnum):
    """What is to be done with a frame, or without one."""

    FRAME = 0
    """A frame by itself, or the head of an aggregate that it opens (`keeps_open`)."""
    APPEND = 1
    """A frame whose payload goes behind an aggregate, which ends with it unless it `keeps_open`."""
    CLOSE = 2
    """An aggregate has ended; there is no frame."""


def rx_task(config: NicConfig) -> data.StructLayout:
    """What the coalescer says of each frame: the aggregate's number, and for its segments how many bytes of header and
    payload they are."""
    return data.StructLayout({
        "frame": RxFrame, "kind": TaskKind, "context": exact_log2(config.coalesce_contexts), "keeps_open": 1,
        "header_bytes": 7, "payload_bytes": LENGTH_BITS,
    })


class Match(IntEnum):
    """What there is for a frame."""

    BUFFER = 0
    """A buffer, for all of it or a part."""
    NONE = 1
    """Too few buffers posted, or the channel does not run or may not receive."""
    TOO_SMALL = 2
    """The frame is longer than as many buffers as it may have; they stay posted."""
    CLOSE = 3
    """No frame: an aggregate ends."""


def matched_frame(config: NicConfig) -> data.StructLayout:
    """A frame that is dropped, or a part of one with its place: `length` bytes of it, behind `skip` that are not
    written. `takes`: the place is in a buffer that this part is the first in; then `ring_index` is the receive ring's
    index behind its slot. `first` and `last` are those of the frame, `opens` and `closes` those of an aggregate, where
    each frame that is not merged is one by itself, with a `context` beyond those of the coalescer. `mss` is the payload
    of an aggregate's first segment."""
    return data.StructLayout({
        "frame": RxFrame, "match": Match, "offset": Buffer["offset"].shape, "key": Buffer["key"].shape,
        "buffer_id": Buffer["buffer_id"].shape, "ring_index": INDEX_BITS, "length": LENGTH_BITS, "skip": 7,
        "context": range(config.coalesce_contexts + 1), "first": 1, "last": 1, "takes": 1, "opens": 1, "closes": 1,
        "mss": LENGTH_BITS,
    })


# An aggregate: where in its latest buffer the next byte goes, bytes that have room there, buffers that it has.
_Aggregate = data.StructLayout({
    "offset": Buffer["offset"].shape, "key": Buffer["key"].shape, "room": BUFFER_LENGTH_BITS,
    "buffers": range(MAX_AGGREGATE_BUFFERS + 1),
})

# A fetch in flight.
_Fetch = data.StructLayout({"channel": CHANNEL_BITS, "index": INDEX_BITS, "generation": _GENERATION_BITS})


class RxRings(wiring.Component):
    """Finds buffers for each frame, and keeps buffers ready by fetching receive slots ahead.

    Enters: `task`, a frame after the other; doorbells. Leaves: `matched`, each frame with its buffer or the reason why
    it has none, 3 cycles after it came, and a frame each 3 cycles. A frame that needs more buffers than one gives a
    part for each: 4 cycles for each to see that there are enough, then 3 for each. It gets all or none. A segment that
    is appended begins in its aggregate's latest buffer (4 cycles if it fits there).
    A frame waits here only while a slot that it needs is being fetched. A fetch leaves 11 cycles after its doorbell,
    or when there is room for all that it may bring.

    The matching side and the fetching side work at the same time; they meet in the tables only, each of which has one
    writer and the `start` strobe, for which everybody else waits a cycle.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `channels` and `host_bytes` are used.

    Members
    -------
    write : register writes, for RX_BASE, RX_LOG2 and CHANNEL_OPERATIONS.
    start, running, drain_request, drain_done : the life of a channel.
    flushed : no aggregate is open, and none opens while the drain lasts; so from now on buffers complete in order.
    doorbell : receive producer indices.
    cmd, beat : client of the DMA read engine.
    task, matched : frames, and frames with their buffers.
    fault : channels that must stop.
    index : RX_INDEX, whenever buffers are taken.
    rx_retired : a buffer has its completion.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "write": In(Strobe(RegisterWrite)),
            "start": In(Strobe(ChannelNumber)),
            "running": In(config.channels),
            "doorbell": In(stream.Signature(DoorbellWrite)),
            "cmd": Out(stream.Signature(ReadCommand)),
            "beat": In(stream.Signature(read_beat(config))),
            "task": In(stream.Signature(rx_task(config))),
            "matched": Out(stream.Signature(matched_frame(config))),
            "fault": Out(stream.Signature(ChannelFault)),
            "index": Out(Strobe(IndexReport)),
            "rx_retired": In(1),
            "drain_request": In(1),
            "flushed": In(1),
            "drain_done": Out(1),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        channels = self.config.channels
        starting = self.start.payload.channel[:exact_log2(channels)]

        # Indices by channel, free-running; the two sides name themselves as readers. Slots used .. landed-1 are in the
        # queue, landed .. fetched-1 on their way, fetched .. producer-1 still in host memory.
        used = _Table(m, "used", INDEX_BITS, channels, readers=("match", "fetch"))
        landed = _Table(m, "landed", INDEX_BITS, channels, readers=("match",))
        fetched = _Table(m, "fetched", INDEX_BITS, channels, readers=("fetch",))
        producer = _Table(m, "producer", INDEX_BITS, channels, readers=("match", "fetch"))
        generation = _Table(m, "generation", _GENERATION_BITS, channels, readers=("start", "fetch", "land"))
        m.d.comb += generation.address["start"].eq(starting)
        generation.write(m, self.start.valid, starting, generation.word["start"] + 1)

        m.submodules.queue = queue = _SlotQueue(self.config)
        m.submodules.fetches = fetches = SmallFifo(shape=_Fetch, depth=FETCHES)
        m.submodules.oldest_fetch = oldest_fetch = SkidBuffer(shape=_Fetch)
        connect(m, fetches.o, oldest_fetch.i)
        m.submodules.faults = faults = StreamArbiter(shape=ChannelFault, count=2)
        connect(m, faults.o, flipped(self.fault))

        # Channels that may have something to fetch, and those of which a fetch failed.
        wants, broken = Signal(channels), Signal(channels)
        with m.If(self.start.valid):
            m.d.sync += broken.bit_select(starting, 1).eq(0)

        matches, between_frames, takes, taker = self._match(m, used, landed, producer, queue)
        works, between_fetches, issues = self._fetch(
            m, used, fetched, producer, generation, fetches, faults.i[0], wants, broken)
        lands, returns = self._land(m, landed, generation, oldest_fetch, queue, faults.i[1], broken)
        with m.If(takes):
            m.d.sync += wants.bit_select(taker, 1).eq(1)
        drains = self._drain(m, between_frames, takes, between_fetches, issues, returns)
        m.d.comb += self.active.eq(
            matches | works | lands | drains | self.start.valid | self.write.valid | fetches.active
            | oldest_fetch.active | queue.active | faults.active | self.index.valid)
        return m

    def _match(self, m, used, landed, producer, queue):
        """Buffers for each frame. Slots `first` .. `here` are looked at one after the other until they are enough, then
        those of a frame that needs more than one are read again, and given."""
        channels = self.config.channels
        task, matched = self.task.payload, self.matched.payload
        frame = task.frame
        channel = frame.channel[:exact_log2(channels)]
        permitted = _Table(m, "permitted", 1, channels, readers=("match",))
        sets_operations = self.write.valid & is_channel_register(
            self.config, self.write.payload.address, "CHANNEL_OPERATIONS")
        permitted.write(m, sets_operations, channel_of(self.config, self.write.payload.address),
                        (self.write.payload.data & int(OperationMask.RECEIVE_RAW)).any())
        for table in (used, landed, producer, permitted):
            m.d.comb += table.address["match"].eq(channel)

        # What is known of open aggregates: the buffer that the next segment goes on in, and how many it has.
        contexts = self.config.coalesce_contexts
        m.submodules.aggregates = aggregates = SmallRam(shape=_Aggregate, depth=contexts)
        is_held = Signal(contexts)
        context = task.context[:exact_log2(contexts)]
        m.d.comb += [aggregates.read_addr.eq(context), aggregates.write_addr.eq(context)]
        aggregate = Signal(_Aggregate)
        held_here, appends, fits, too_many = Signal(), Signal(), Signal(), Signal()

        first, here = Signal(INDEX_BITS), Signal(INDEX_BITS)
        is_open, is_posted, is_landed = Signal(), Signal(), Signal()
        may_receive, has_posted, has_landed = Signal(), Signal(), Signal()  # as the tables say of the task's channel
        landed_bits = prefetch_slots(self.config).bit_length()
        buffer = Signal(Buffer)
        left = Signal(LENGTH_BITS)  # bytes of the frame that have no place yet
        number = Signal(range(MAX_FRAME_BUFFERS))  # of the slot at `here`, in the frame
        buffers = Signal(range(MAX_AGGREGATE_BUFFERS + 1))  # of the frame, or the aggregate, so far
        given = Signal(LENGTH_BITS)  # bytes in the latest buffer
        is_first = Signal()
        why = Signal(Match)
        covers, length = Signal(), Signal(LENGTH_BITS)
        runs = Signal()
        free, wakes, looks = Signal(), Signal(), Signal()
        gives, takes, ends, closes, drops, stores = (
            Signal(name=n) for n in ("gives", "takes", "ends", "closes", "drops", "stores"))
        takes_all = Signal()
        m.d.comb += [
            runs.eq(self.running.bit_select(channel, 1)),
            may_receive.eq(runs & permitted.word["match"].any()),
            has_posted.eq(producer.word["match"] != used.word["match"]),
            # No more have landed than the queue keeps, so the lowest bits tell; and none that was not posted.
            has_landed.eq(landed.word["match"][:landed_bits] != used.word["match"][:landed_bits]),
            wakes.eq((landed.word["match"] != here) | (producer.word["match"] == here) | ~runs),
            free.eq((~self.matched.valid | self.matched.ready) & ~self.start.valid),
            covers.eq(left <= buffer.length), length.eq(Mux(covers, left, buffer.length)),
            queue.read_channel.eq(channel), queue.read_slot.eq(Mux(looks, used.word["match"], here)),
        ]

        def finish():
            """The frame's last part is given."""
            with m.If(task.keeps_open):
                m.next = "STORE"
            with m.Else():
                m.d.comb += ends.eq(1)
                with m.If(appends):
                    m.d.sync += is_held.bit_select(context, 1).eq(0)
                m.next = "LOOK"

        moves = Signal()
        with m.FSM(name="match_state") as fsm:
            with m.State("LOOK"):
                with m.If(self.task.valid & ~self.start.valid):
                    m.d.comb += moves.eq(1)
                    m.d.sync += [
                        first.eq(used.word["match"]), here.eq(used.word["match"]),
                        is_open.eq(may_receive), is_posted.eq(has_posted), is_landed.eq(has_landed),
                        left.eq(frame.length), number.eq(0), buffers.eq(0), is_first.eq(1), appends.eq(0),
                        why.eq(Match.NONE),
                        Value.cast(aggregate).eq(aggregates.read_data), held_here.eq(is_held.bit_select(context, 1)),
                    ]
                    with m.Switch(task.kind):
                        with m.Case(TaskKind.FRAME):
                            m.next = "READ"
                            # Its slot is read before it is known whether there is one. It may have landed just now,
                            # and is not read while it is written.
                            m.d.comb += queue.read_en.eq(~queue.writes)
                            with m.If(may_receive & has_landed & ~queue.writes):
                                m.next = "KEEP"
                        with m.Case(TaskKind.APPEND):
                            m.next = "APPEND"
                        with m.Default():
                            m.next = "CLOSE"
            with m.State("CLOSE"):
                with m.If(free):
                    m.d.comb += [moves.eq(1), closes.eq(held_here), ends.eq(1)]
                    m.next = "LOOK"

            # A segment behind one that was dropped is a head: what was open has been closed by that.
            with m.State("APPEND"):
                m.d.sync += [
                    fits.eq(task.payload_bytes <= aggregate.room),
                    too_many.eq(aggregate.buffers > MAX_FRAME_BUFFERS),
                ]
                m.d.comb += moves.eq(1)
                m.next = "READ"
                with m.If(held_here):
                    m.next = "ROOM"
            with m.State("ROOM"):
                with m.If(~too_many):
                    m.d.comb += moves.eq(1)
                    m.d.sync += [
                        appends.eq(1), left.eq(task.payload_bytes - aggregate.room), buffers.eq(aggregate.buffers)]
                    m.next = "READ"
                    with m.If(~is_open):
                        m.next = "DROP"
                    with m.Elif(fits):
                        m.next = "HELD"
                with m.Elif(free):
                    m.d.comb += [moves.eq(1), closes.eq(1)]
                    m.next = "READ"

            # Look ahead.
            with m.State("READ"):
                m.d.comb += moves.eq(1)
                with m.If(~is_open | ~is_posted):
                    m.next = "DROP"
                with m.Elif(is_landed):
                    m.d.comb += queue.read_en.eq(1)
                    m.next = "KEEP"
                with m.Else():
                    m.next = "WAIT"
            with m.State("WAIT"):
                with m.If(wakes):
                    m.d.comb += moves.eq(1)
                    m.next = "LOOK_AGAIN"
            with m.State("LOOK_AGAIN"):
                with m.If(~self.start.valid):
                    m.d.comb += moves.eq(1)
                    m.d.sync += [
                        is_open.eq(may_receive), is_posted.eq(producer.word["match"] != here),
                        is_landed.eq(landed.word["match"] != here),
                    ]
                    m.next = "READ"
            with m.State("KEEP"):
                m.d.comb += moves.eq(1)
                m.d.sync += buffer.eq(queue.buffer)
                m.next = "JUDGE"
            with m.State("JUDGE"):
                with m.If(covers & (number == 0) & ~appends):
                    with m.If(free):
                        m.d.comb += [moves.eq(1), gives.eq(1), takes.eq(1), takes_all.eq(1)]
                        finish()
                with m.Elif(covers):
                    m.d.comb += moves.eq(1)
                    m.d.sync += [here.eq(first), left.eq(frame.length)]
                    m.next = "READ_AGAIN"
                    with m.If(appends):
                        m.next = "HELD"
                with m.Elif((buffer.length == 0) | (number == MAX_FRAME_BUFFERS - 1)):
                    m.d.comb += moves.eq(1)
                    m.d.sync += why.eq(Match.TOO_SMALL)
                    m.next = "DROP"
                with m.Else():
                    m.d.comb += moves.eq(1)
                    m.d.sync += [left.eq(left - buffer.length), here.eq(here + 1), number.eq(number + 1)]
                    m.next = "LOOK_AGAIN"

            # Give what was looked at.
            with m.State("HELD"):
                m.d.comb += moves.eq(free)
                with m.If(free):
                    m.d.sync += [
                        left.eq(task.payload_bytes - aggregate.room),
                        buffer.offset.eq(aggregate.offset), buffer.key.eq(aggregate.key),
                        buffer.length.eq(aggregate.room),
                    ]
                    m.d.comb += gives.eq(aggregate.room != 0)
                    m.next = "READ_AGAIN"
                    with m.If(fits):
                        finish()
            with m.State("READ_AGAIN"):
                m.d.comb += [moves.eq(1), queue.read_en.eq(1)]
                m.next = "KEEP_AGAIN"
            with m.State("KEEP_AGAIN"):
                m.d.comb += moves.eq(1)
                m.d.sync += buffer.eq(queue.buffer)
                m.next = "GIVE"
            with m.State("GIVE"):
                with m.If(free):
                    m.d.comb += [moves.eq(1), gives.eq(1), takes.eq(1), takes_all.eq(covers)]
                    m.d.sync += [left.eq(left - buffer.length), here.eq(here + 1)]
                    m.next = "READ_AGAIN"
                    with m.If(covers):
                        finish()
            with m.State("STORE"):
                m.d.comb += [moves.eq(1), stores.eq(1), ends.eq(1)]
                m.d.sync += is_held.bit_select(context, 1).eq(1)
                m.next = "LOOK"

            # An aggregate ends where a segment is missing.
            with m.State("DROP"):
                with m.If(free):
                    m.d.comb += moves.eq(1)
                    m.d.sync += appends.eq(0)
                    with m.If(appends):
                        m.d.comb += closes.eq(1)
                    with m.Else():
                        m.d.comb += [drops.eq(1), ends.eq(1)]
                        m.next = "LOOK"

        m.d.comb += [looks.eq(fsm.ongoing("LOOK")), self.task.ready.eq(ends)]
        used.write_or_clear(m, takes_all, channel, here + 1, self.start)
        m.d.sync += self.index.valid.eq(takes_all)
        with m.If(takes_all):
            m.d.sync += [self.index.payload.channel.eq(channel), self.index.payload.index.eq(here + 1)]

        # Bytes of the part that is given: in HELD, `buffer` is not there yet.
        in_held = fsm.ongoing("HELD")
        part_bytes = Signal(LENGTH_BITS)
        m.d.comb += part_bytes.eq(Mux(in_held, Mux(fits, task.payload_bytes, aggregate.room), length))
        with m.If(gives):
            m.d.sync += [given.eq(part_bytes), is_first.eq(0)]
        with m.If(takes):
            m.d.sync += buffers.eq(buffers + 1)
        written = data.View(_Aggregate, aggregates.write_data)
        m.d.comb += [
            aggregates.write_en.eq(stores),
            written.key.eq(buffer.key), written.offset.eq(buffer.offset + given),
            written.room.eq(buffer.length - given),
            written.buffers.eq(buffers),
        ]
        with m.If(closes):
            m.d.sync += is_held.bit_select(context, 1).eq(0)

        is_last = Signal()
        m.d.comb += is_last.eq(Mux(in_held, fits, covers))
        emits = Signal()
        m.d.comb += emits.eq(gives | closes | drops)
        with m.If(emits):
            m.d.sync += [
                self.matched.valid.eq(1), matched.frame.eq(frame),
                # What the frame adds to an aggregate says nothing of the frame by itself.
                matched.frame.info.eq(Mux(appends, frame.info, frame.info & ~int(MERGED_INFO))),
                matched.match.eq(Mux(gives, Match.BUFFER, Mux(closes, Match.CLOSE, why))),
                matched.offset.eq(Mux(in_held, aggregate.offset, buffer.offset)),
                matched.key.eq(Mux(in_held, aggregate.key, buffer.key)),
                matched.buffer_id.eq(buffer.buffer_id), matched.ring_index.eq(here + 1),
                matched.length.eq(part_bytes), matched.skip.eq(Mux(appends & is_first, task.header_bytes, 0)),
                matched.context.eq(Mux(closes | appends | task.keeps_open, context, contexts)),
                matched.first.eq(is_first), matched.last.eq(is_last), matched.takes.eq(takes),
                matched.opens.eq(is_first & ~appends), matched.closes.eq(is_last & ~task.keeps_open),
                matched.mss.eq(task.payload_bytes),
            ]
        with m.Elif(self.matched.ready):
            m.d.sync += self.matched.valid.eq(0)
        moves = moves | (self.matched.valid & self.matched.ready)
        return moves, fsm.ongoing("LOOK"), takes, channel

    def _fetch(self, m, used, fetched, producer, generation, fetches, fault, wants, broken):
        """Doorbells, and reads of the slots that they post."""
        channels = self.config.channels
        write, bell = self.write.payload, self.doorbell.payload
        base = [_Table(m, f"base_{half}", 32, channels, readers=("fetch",)) for half in ("lo", "hi")]
        log2 = _Table(m, "log2", LARGEST_RING_LOG2.bit_length(), channels, readers=("fetch",))
        for table, name in zip((*base, log2), ("RX_BASE_LO", "RX_BASE_HI", "RX_LOG2"), strict=True):
            table.write(m, self.write.valid & is_channel_register(self.config, write.address, name),
                        channel_of(self.config, write.address), write.data)

        channel = Signal(exact_log2(channels), name="fetch_channel")
        for table in (used, fetched, producer, generation, *base, log2):
            m.d.comb += table.address["fetch"].eq(channel)

        # The channel at work, and what is known of it.
        is_bell, runs = Signal(), Signal()
        consumed, asked, posted_index = (Signal(INDEX_BITS, name=f"fetch_{n}") for n in ("used", "fetched", "posted"))
        size = Signal(INDEX_BITS)
        ring_base = Signal(64)
        lives = Signal(_GENERATION_BITS)
        posted = Signal(INDEX_BITS)
        ahead = Signal(range(prefetch_slots(self.config) + 1))
        available = Signal(INDEX_BITS)
        to_boundary, count = Signal(range(FETCH_SLOTS + 1)), Signal(range(FETCH_SLOTS + 1))
        offset = Signal(INDEX_BITS + exact_log2(RECEIVE_SLOT_BYTES))
        may_fetch, rest = Signal(), Signal()

        last = Signal.like(channel)
        grants = Signal(channels, name="fetch_grants")
        picks, moves, posts, issues = Signal(), Signal(), Signal(), Signal()
        can_issue = Signal()
        m.d.comb += [
            can_issue.eq((~self.cmd.valid | self.cmd.ready) & fetches.i.ready & ~self.start.valid),
            to_boundary.eq(FETCH_SLOTS - asked[:exact_log2(FETCH_SLOTS)]),
            fetches.i.payload.channel.eq(channel), fetches.i.payload.index.eq(asked),
            fetches.i.payload.generation.eq(lives), fetches.i.valid.eq(issues),
            fault.payload.channel.eq(channel), fault.payload.code.eq(ChannelError.DOORBELL_OVERRUN),
        ]
        with m.FSM(name="fetch_state") as fsm:
            with m.State("IDLE"):
                with m.If(self.doorbell.valid):
                    m.d.comb += moves.eq(1)
                    m.d.sync += [channel.eq(bell.channel), is_bell.eq(1)]
                    m.next = "LOAD"
                with m.Elif(wants.any()):
                    m.d.comb += moves.eq(1)
                    m.d.sync += [grants.eq(round_robin(m, wants, last)), is_bell.eq(0)]
                    m.next = "PICK"
            with m.State("PICK"):
                picked = Signal.like(channel)
                m.d.comb += [moves.eq(1), picks.eq(1), picked.eq(number_of(grants))]
                m.d.sync += [channel.eq(picked), last.eq(picked)]
                m.next = "LOAD"
            with m.State("LOAD"):
                m.d.comb += moves.eq(1)
                with m.If(~self.start.valid):
                    m.d.sync += [
                        consumed.eq(used.word["fetch"]), asked.eq(fetched.word["fetch"]),
                        posted_index.eq(Mux(is_bell, bell.index, producer.word["fetch"])),
                        size.eq(1 << log2.word["fetch"]), lives.eq(generation.word["fetch"]),
                        ring_base.eq(Cat(half.word["fetch"] for half in base)),
                        runs.eq(self.running.bit_select(channel, 1) & ~broken.bit_select(channel, 1)),
                    ]
                    m.next = "MEASURE"
            with m.State("MEASURE"):
                m.d.comb += moves.eq(1)
                m.d.sync += [posted.eq(posted_index - consumed), ahead.eq(asked - consumed)]
                with m.If(is_bell):
                    m.next = "JUDGE"
                with m.Else():
                    m.next = "COUNT"
            with m.State("JUDGE"):
                with m.If(~runs):
                    m.d.comb += [moves.eq(1), self.doorbell.ready.eq(1)]
                    m.next = "IDLE"
                with m.Elif(posted > size):
                    m.d.comb += [fault.valid.eq(1), self.doorbell.ready.eq(fault.ready), moves.eq(fault.ready)]
                    with m.If(fault.ready):
                        m.next = "IDLE"
                with m.Elif(~self.start.valid):
                    m.d.comb += [moves.eq(1), self.doorbell.ready.eq(1), posts.eq(1)]
                    m.next = "IDLE"
            with m.State("COUNT"):
                m.d.comb += moves.eq(1)
                # A doorbell that took slots back leaves more fetched than posted.
                m.d.sync += [
                    available.eq(Mux(posted > ahead, posted - ahead, 0)),
                    may_fetch.eq(runs & (ahead <= prefetch_slots(self.config) - FETCH_SLOTS)),
                    offset.eq((asked & (size - 1)) << exact_log2(RECEIVE_SLOT_BYTES)),
                ]
                m.next = "CUT"
            with m.State("CUT"):
                m.d.comb += moves.eq(1)
                m.d.sync += [
                    rest.eq(available > to_boundary), count.eq(Mux(available > to_boundary, to_boundary, available)),
                    ring_base.eq(ring_base + offset),
                ]
                with m.If(may_fetch & available.any()):
                    m.next = "ISSUE"
                with m.Else():
                    m.next = "IDLE"
            with m.State("ISSUE"):
                with m.If(can_issue):
                    m.d.comb += [moves.eq(1), issues.eq(1)]
                    m.next = "IDLE"

        producer.write_or_clear(m, posts, channel, posted_index, self.start)
        fetched.write_or_clear(m, issues, channel, asked + count, self.start)
        with m.If(picks):
            m.d.sync += wants.eq(wants & ~grants)
        with m.If(posts | (issues & rest)):
            m.d.sync += wants.bit_select(channel, 1).eq(1)
        with m.If(issues):
            m.d.sync += [
                self.cmd.valid.eq(1), self.cmd.payload.address.eq(ring_base),
                self.cmd.payload.length.eq(count << exact_log2(RECEIVE_SLOT_BYTES)),
            ]
        with m.Elif(self.cmd.ready):
            m.d.sync += self.cmd.valid.eq(0)
        return moves | (self.cmd.valid & self.cmd.ready), fsm.ongoing("IDLE"), issues

    def _land(self, m, landed, generation, oldest_fetch, queue, fault, broken):
        """Slots that come back go to the queue, unless their channel failed or was started anew meanwhile."""
        beat, fetch = self.beat.payload, oldest_fetch.o.payload
        channel = fetch.channel[:exact_log2(self.config.channels)]
        inside = Signal()
        position, index, behind = (Signal(INDEX_BITS, name=f"landing_{n}") for n in ("position", "index", "behind"))
        lands, keeps, returns = Signal(), Signal(), Signal()
        failed = Signal(ChannelFault)
        has_failed = Signal()
        # Whether the oldest fetch is wanted is known before its slots come, and asked again when that may change.
        is_known, is_wanted, looks_up = Signal(), Signal(), Signal()
        with m.If(returns | self.start.valid | (lands & beat.error)):
            m.d.sync += is_known.eq(0)
        with m.Elif(looks_up):
            m.d.sync += is_known.eq(1)
        with m.If(looks_up):
            m.d.sync += is_wanted.eq(
                (generation.word["land"] == fetch.generation) & ~broken.bit_select(channel, 1))
        m.d.comb += [
            generation.address["land"].eq(channel),
            looks_up.eq(oldest_fetch.o.valid & ~is_known),
            self.beat.ready.eq(is_known & ~self.start.valid & ~has_failed),
            lands.eq(self.beat.valid & self.beat.ready),
            keeps.eq(lands & is_wanted & ~beat.error),
            index.eq(Mux(inside, position, fetch.index)),
            behind.eq(index + (beat.count >> exact_log2(RECEIVE_SLOT_BYTES))),
            returns.eq(lands & beat.last),
            oldest_fetch.o.ready.eq(returns),
            queue.beat_taken.eq(lands), queue.write_en.eq(keeps), queue.write_channel.eq(channel),
            queue.write_slot.eq(index), queue.beat.eq(beat),
        ]
        landed.write_or_clear(m, keeps, channel, behind, self.start)
        with m.If(lands):
            m.d.sync += [inside.eq(~beat.last), position.eq(behind)]

        m.d.comb += [fault.valid.eq(has_failed), fault.payload.eq(failed)]
        with m.If(lands & is_wanted & beat.error):
            m.d.sync += [
                has_failed.eq(1), failed.channel.eq(channel), failed.code.eq(ChannelError.FETCH_BUS_ERROR),
                broken.bit_select(channel, 1).eq(1),
            ]
        with m.Elif(fault.ready):
            m.d.sync += has_failed.eq(0)
        return lands | looks_up | (has_failed & fault.ready), returns

    def _drain(self, m, between_frames, takes, between_fetches, issues, returns):
        """Whether all that began before the request has ended. Counts are marked when neither side is half way through
        a decision that it based on an earlier state of `running`."""
        def count(name, event):
            total = Signal(_DRAIN_BITS, name=name)
            with m.If(event):
                m.d.sync += total.eq(total + 1)
            return total

        done = Signal()
        marks = []
        for name, steady, begins, ends in (
                ("frames", between_frames & self.flushed, takes, self.rx_retired),
                ("fetches", between_fetches, issues, returns)):
            begun, ended = count(f"{name}_begun", begins), count(f"{name}_ended", ends)
            mark, is_marked = Signal(_DRAIN_BITS, name=f"{name}_mark"), Signal(name=f"{name}_marked")
            sets_mark = Signal(name=f"{name}_sets_mark")
            m.d.comb += sets_mark.eq(self.drain_request & ~is_marked & steady)
            with m.If(sets_mark):
                m.d.sync += [mark.eq(begun), is_marked.eq(1)]
            with m.Elif(~self.drain_request):
                m.d.sync += is_marked.eq(0)
            has_ended = ~(ended - mark)[_DRAIN_BITS - 1]
            marks.append((sets_mark, is_marked, is_marked & has_ended))
        m.d.comb += done.eq(self.drain_request & Cat(ended for *_, ended in marks).all())
        m.d.sync += self.drain_done.eq(done)
        changes = Cat((sets_mark | (is_marked & ~self.drain_request)) for sets_mark, is_marked, _ in marks).any()
        return changes | (done != self.drain_done) | self.rx_retired


class _Table:
    """A word for each channel, written in one place, read in several at once.

    `address[reader]` and `word[reader]` are the read ports.
    """

    def __init__(self, m, name, width, channels, *, readers):
        bits = exact_log2(channels)
        self._write_en = Signal(name=f"{name}_write_en")
        self._write_addr = Signal(bits, name=f"{name}_write_addr")
        self._write_data = Signal(width, name=f"{name}_write_data")
        self.address = {reader: Signal(bits, name=f"{name}_address_{reader}") for reader in readers}
        self.word = {reader: Signal(width, name=f"{name}_{reader}") for reader in readers}
        for reader in readers:
            m.submodules[f"{name}_{reader}"] = ram = SmallRam(shape=width, depth=channels)
            m.d.comb += [
                ram.write_en.eq(self._write_en), ram.write_addr.eq(self._write_addr),
                ram.write_data.eq(self._write_data),
                ram.read_addr.eq(self.address[reader]), self.word[reader].eq(ram.read_data),
            ]

    def write(self, m, event, channel, word):
        """When `event`, write `word` for `channel`."""
        m.d.comb += [self._write_en.eq(event), self._write_addr.eq(channel), self._write_data.eq(word)]

    def write_or_clear(self, m, event, channel, word, start):
        """Likewise; and write 0 for the channel that starts. There is no `event` while one does."""
        # Address and data do not wait for the event, which comes late.
        starts = start.valid
        self.write(m, starts | event, Mux(starts, start.payload.channel, channel)[:len(self._write_addr)],
                   Mux(starts, 0, word))


class _SlotQueue(wiring.Component):
    """Slots that were fetched, for all channels in one place.

    Enters: `beat`, a beat of slots whose first has the ring index `write_slot`; with `beat_taken` it goes into
    registers, from where it is stored if `write_en` says so, which comes late. Leaves: `buffer`, one cycle after
    `read_en`, the slot with ring index `read_slot`; it may be read from 2 cycles after it was written: not in the next
    one, in which `writes` is 1. Slots of a beat
    lie side by side in as many memories, so that a slot may be read while its neighbour is written.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        bits = exact_log2(config.channels)
        super().__init__({
            "beat_taken": In(1), "write_en": In(1), "write_channel": In(bits), "write_slot": In(INDEX_BITS),
            "beat": In(read_beat(config)),
            "read_en": In(1), "read_channel": In(bits), "read_slot": In(INDEX_BITS), "buffer": Out(Buffer),
            "writes": Out(1), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        lanes = self.config.host_bytes // RECEIVE_SLOT_BYTES
        lane_number_bits = exact_log2(lanes)
        slots = prefetch_slots(self.config)
        index = slice(lane_number_bits, exact_log2(slots))
        byte_bits = exact_log2(RECEIVE_SLOT_BYTES)
        first = self.beat.start >> byte_bits
        behind = first + (self.beat.count >> byte_bits)
        read_lane, lane_read = self.read_slot[:lane_number_bits], Signal(range(max(lanes, 2)))
        with m.If(self.read_en):
            m.d.sync += lane_read.eq(read_lane)
        words = []
        writing = Signal(lanes)
        write_addr = Signal(exact_log2(self.config.channels * slots // lanes))
        m.d.comb += [self.writes.eq(writing.any()), self.active.eq(self.beat_taken | self.read_en | self.writes)]
        with m.If(self.beat_taken):
            m.d.sync += write_addr.eq(Cat(self.write_slot[index], self.write_channel))
        for lane in range(lanes):
            slot = Signal(Buffer, name=f"slot_{lane}")
            m.d.sync += writing[lane].eq(self.write_en & (first <= lane) & (lane < behind))
            with m.If(self.beat_taken):
                m.d.sync += slot.eq(_buffer_of(self.beat.data.word_select(lane, 8 * RECEIVE_SLOT_BYTES)))
            m.submodules[f"slots_{lane}"] = ram = Ram(
                shape=Buffer, depth=self.config.channels * slots // lanes)
            words.append(ram.read_data)
            m.d.comb += [
                ram.write_en.eq(writing[lane]), ram.write_addr.eq(write_addr), ram.write_data.eq(slot),
                ram.read_en.eq(self.read_en & (read_lane == lane)),
                ram.read_addr.eq(Cat(self.read_slot[index], self.read_channel)),
            ]
        m.d.comb += Value.cast(self.buffer).eq(Array(words)[lane_read])
        return m


def _buffer_of(slot):
    """What the queue keeps of a receive slot as it stands in host memory."""
    found = {name: slot[field.offset:field.offset + field.width] for name, field in RECEIVE_SLOT.fields.items()}
    length = found["length"]
    largest = (1 << BUFFER_LENGTH_BITS) - 1
    found["length"] = Mux(length[BUFFER_LENGTH_BITS:].any(), largest, length)[:BUFFER_LENGTH_BITS]
    return data.View(Buffer, Cat(found[name] for name, _ in Buffer))
