"""The transmit front: doorbells, the choice of a channel, descriptor fetch, and the way to a job."""

from typing import NamedTuple

from amaranth.hdl import Array, Assert, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from nic_model.contract import (
    LARGEST_RING_LOG2,
    MAX_DESCRIPTOR_SLOTS,
    PUSH_WINDOW_SLOTS,
    RING_ALIGNMENT_BYTES,
    SUBMISSION_SLOT_BYTES,
    ChannelError,
    NicConfig,
    OperationMask,
)
from rtl.addresses import channel_of, is_channel_register
from rtl.descriptor import (
    FETCH_SLOTS,
    DescriptorCheck,
    DescriptorCutter,
    DescriptorParser,
    Fetch,
    FetchEnd,
    InlineRows,
    JobIssue,
    NamedPiece,
    PieceTranslator,
    SlotReader,
)
from rtl.interfaces import (
    INDEX_BITS,
    PUSH_BUFFERS,
    ChannelFault,
    ChannelNumber,
    FreedSlots,
    IndexReport,
    KeyAnswer,
    KeyRequest,
    ReadCommand,
    RegisterWrite,
    Strobe,
    SubmissionDoorbell,
    TxJob,
    TxPiece,
    is_operation,
    queue_slots,
    read_beat,
    row,
    tx_row,
)
from rtl.job_sources import JobSources, issue_streams
from rtl.primitives import SkidBuffer, SmallRam, StreamArbiter, StreamFifo, number_of, round_robin
from rtl.push import PushBuffer, PushedDescriptor, PushReader, PushWrite
from rtl.small_fifo import SmallFifo

FETCHES = 16
"""Descriptions of fetches under way that are kept for the cutter."""

STORED_ROW_BYTES = 256
"""Inline bytes on their way: two descriptors' most."""

JOBS_BEHIND = 512
"""Jobs that have left their channel's queue and are not yet completed are fewer."""

PAGE_BITS = exact_log2(RING_ALIGNMENT_BYTES)
LOG2_BITS = LARGEST_RING_LOG2.bit_length()

POSITION_BITS = exact_log2(PUSH_WINDOW_SLOTS)


def fetches_of_a_channel(config: NicConfig) -> int:
    """Fetches of a channel that may be under way at a time. Those of a channel that waits for room are short ones; for
    all `queue_slots` to be under way, two are too few on the widest bus."""
    return 4 if config.host_bytes == 64 else 2


def least_fetch(config: NicConfig) -> int:
    """Slots that there must be room for, if more stand in the ring: never fewer than the longest descriptor's."""
    return max(MAX_DESCRIPTOR_SLOTS, queue_slots(config) // 4)


class FetchScheduler(wiring.Component):
    """Decides which channel's ring is read next, and asks for its slots.

    Enters: doorbells and pushed descriptors, and from the cutter the indices of what it took. Leaves: read commands for
    up to 64 slots from where a channel's last fetch ended, and for each fetch its description. A fetch that passes the
    ring's end is two commands. Channels with work take turns; a channel has `fetches_of_a_channel` under way at a time,
    so that doorbells that come meanwhile gather for the next. A doorbell that advances beyond the ring's size stops the
    channel; one for a channel that does not run has no effect.

    Credits: of each channel no more than `queue_slots` are asked for and not freed. A fetch takes what there is
    room for, but waits until that is `least_fetch`, or all that stand in the ring. When the cutter
    left a descriptor that was cut off, the channel is fetched from there again; what had been asked for behind it
    will be thrown away, and needs no room.

    A pushed descriptor is a doorbell itself if its channel runs, has nothing else in the ring, and is at its index; it
    becomes a description of a fetch without a command. Else its buffer is given back, and the doorbell behind it
    counts.

    A doorbell every 3 cycles, a fetch every 6; 7 cycles from a doorbell to the command, 3 from a pushed descriptor to
    its description.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    write : register writes; TX_BASE and TX_LOG2 are kept, and taken as they stand at `start`.
    start, running : life of the channels.
    doorbell : producer indices, and pushed descriptors.
    consumed, finished : from the cutter.
    freed : strobe, at most in every other cycle unless from the cutter: slots of a channel that need no room any more.
    cmd, fetch : what is asked for.
    push : strobe, beside `fetch`: the pushed descriptor whose slots are to be read.
    forgotten : stream, the buffer of a pushed descriptor that is not used.
    issued : strobe, a fetch begins.
    hold, empties : a channel's index becomes 0, see DescriptorCutter.
    fault : DOORBELL_OVERRUN.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        self.slots = queue_slots(config)
        self.credit_bits = self.slots.bit_length()
        self.fetches = fetches_of_a_channel(config)
        self.least = least_fetch(config)
        super().__init__({
            "write": In(Strobe(RegisterWrite)), "start": In(Strobe(ChannelNumber)), "running": In(config.channels),
            "doorbell": In(stream.Signature(SubmissionDoorbell)),
            "consumed": In(Strobe(IndexReport)), "finished": In(Strobe(FetchEnd)), "freed": In(Strobe(FreedSlots)),
            "cmd": Out(stream.Signature(ReadCommand)), "fetch": Out(stream.Signature(Fetch)), "issued": Out(1),
            "push": Out(Strobe(PushedDescriptor)), "forgotten": Out(stream.Signature(PushBuffer)),
            "hold": Out(1), "empties": Out(Strobe(ChannelNumber)),
            "fault": Out(stream.Signature(ChannelFault)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        channels = self.config.channels
        number_bits = exact_log2(channels)
        m.submodules.fetches = fetches = SmallFifo(shape=Fetch, depth=FETCHES)
        connect(m, fetches.o, flipped(self.fetch))

        # Tables by channel. What ENABLE takes is copied from what was written; the doorbell side and the grant side
        # each read them, so most stand twice.
        def table(name, bits, readers=1):
            rams = [SmallRam(shape=bits, depth=channels) for _ in range(readers)]
            for n, ram in enumerate(rams):
                m.submodules[f"{name}_{n}"] = ram
            return rams

        def written(rams, enable, channel, value):
            for ram in rams:
                m.d.comb += [ram.write_en.eq(enable), ram.write_addr.eq(channel), ram.write_data.eq(value)]

        value, starting = self.write.payload.data, self.start.payload.channel
        live = {}
        for name, register, bits, readers in (
            ("base_low", "TX_BASE_LO", value[PAGE_BITS:], 1), ("base_high", "TX_BASE_HI", value, 1),
            ("log2", "TX_LOG2", value[:LOG2_BITS], 2),
        ):
            address = self.write.payload.address
            staged = table(f"staged_{name}", len(bits))
            written(staged, self.write.valid & is_channel_register(self.config, address, register),
                    channel_of(self.config, address), bits)
            m.d.comb += staged[0].read_addr.eq(starting)
            live[name] = table(name, len(bits), readers)
            written(live[name], self.start.valid, starting, staged[0].read_data)

        # A descriptor that was left: ask from there again.
        rewinds, rewound_channel, rewound_index = Signal(), Signal(number_bits), Signal(INDEX_BITS)
        m.d.sync += rewinds.eq(self.finished.valid & self.finished.payload.cut)
        with m.If(self.finished.valid & self.finished.payload.cut):
            m.d.sync += [
                rewound_channel.eq(self.finished.payload.channel), rewound_index.eq(self.finished.payload.index),
            ]

        # A start empties the ring in the next cycle in which nothing else writes the tables; the cutter holds still.
        emptying, emptied_channel, empties = Signal(), Signal(number_bits), Signal()
        m.d.comb += [
            empties.eq(emptying & ~self.consumed.valid & ~self.freed.valid & ~rewinds),
            self.hold.eq(emptying), self.empties.valid.eq(empties), self.empties.payload.channel.eq(emptied_channel),
        ]
        with m.If(self.start.valid):
            m.d.sync += [emptying.eq(1), emptied_channel.eq(starting)]
        with m.Elif(empties):
            m.d.sync += emptying.eq(0)
        m.d.sync += Assert(~(self.start.valid & emptying & ~empties), "a start is lost")

        # Indices: what the driver posted, what was asked for, what the cutter took, and what has been freed (its lowest
        # bits, enough for a difference of `queue_slots`).
        producer, asked = table("producer", INDEX_BITS, 2), table("asked", INDEX_BITS, 2)
        consumer, freed = table("consumer", INDEX_BITS), table("freed", self.credit_bits, 3)
        consumed = self.consumed.payload
        written(consumer, self.consumed.valid | empties, Mux(self.consumed.valid, consumed.channel, emptied_channel),
                Mux(self.consumed.valid, consumed.index, 0))
        freed_channel, freed_now = self.freed.payload.channel, Signal(self.credit_bits)
        m.d.comb += [freed[2].read_addr.eq(freed_channel), freed_now.eq(freed[2].read_data + self.freed.payload.slots)]
        written(freed, self.freed.valid | empties, Mux(self.freed.valid, freed_channel, emptied_channel),
                Mux(self.freed.valid, freed_now, 0))
        asks, asked_channel, asked_index = Signal(), Signal(number_bits), Signal(INDEX_BITS)
        written(asked, rewinds | empties | asks,
                Mux(rewinds, rewound_channel, Mux(empties, emptied_channel, asked_channel)),
                Mux(rewinds, rewound_index, Mux(empties, 0, asked_index)))
        may_ask = Signal()
        m.d.comb += may_ask.eq(~rewinds & ~empties)

        # Which channels have work, which wait for room, and which have one fetch under way at least, or two, and so on.
        pending, starved = Signal(channels), Signal(channels)
        one_fetch, two_fetches = Signal(channels), Signal(channels)
        under_way = [one_fetch, two_fetches,
                     *(Signal(channels, name=f"fetches_{count}") for count in range(3, self.fetches + 1))]
        rung, looked_at, has_more, starves, woken, issued_to, ended, rewound = (
            Signal(channels, name=name) for name in (
                "rung", "looked_at", "has_more", "starves", "woken", "issued_to", "ended", "rewound"))
        m.d.comb += [
            ended.eq(Mux(self.finished.valid, _one_hot(self.finished.payload.channel, channels), 0)),
            rewound.eq(Mux(rewinds, _one_hot(rewound_channel, channels), 0)),
        ]
        m.d.sync += [
            pending.eq(((pending & ~looked_at) | rung | has_more | rewound | (woken & starved)) & self.running),
            starved.eq(((starved & ~woken) | starves) & self.running),
            one_fetch.eq((one_fetch & ~(ended & ~two_fetches)) | issued_to),
        ]
        for fewer, these, more in zip(under_way, under_way[1:], [*under_way[2:], None]):
            ends = ended if more is None else ended & ~more
            m.d.sync += these.eq((these & ~ends) | (issued_to & fewer & ~ended) | (these & issued_to))

        # Freed slots wake a channel that waits for room. A grant that looked just before them does not know of them;
        # but it waits with most slots outstanding, so more will be freed.
        counting, counted_channel = Signal(), Signal(number_bits)
        judging, judged_channel = Signal(), Signal(number_bits)
        counted, judged = Signal(self.credit_bits), Signal(self.credit_bits)
        m.d.comb += [
            asked[1].read_addr.eq(counted_channel),
            woken.eq(Mux(judging & (judged <= self.slots - self.least), _one_hot(judged_channel, channels), 0)),
        ]
        m.d.sync += [counting.eq(self.freed.valid), judging.eq(counting)]
        with m.If(self.freed.valid):
            m.d.sync += [counted.eq(freed_now), counted_channel.eq(freed_channel)]
        with m.If(counting):
            m.d.sync += [judged.eq(asked[1].read_data - counted), judged_channel.eq(counted_channel)]

        doorbells = self._take_doorbells(m, producer, consumer, freed, live, fetches, empties, emptied_channel, rung,
                                         may_ask)
        grants = self._grant(m, producer, asked, freed, live, pending, under_way[-1], fetches, doorbells,
                             rewinds, rewound_channel, may_ask, looked_at, has_more, starves)
        m.d.comb += [
            # a pushed descriptor goes first; a grant waits for it
            asks.eq(doorbells.pushes | grants.issues),
            asked_channel.eq(Mux(doorbells.pushes, doorbells.channel, grants.channel)),
            asked_index.eq(Mux(doorbells.pushes, doorbells.end, grants.end)),
            fetches.i.valid.eq(asks), self.issued.eq(asks),
            issued_to.eq(Mux(doorbells.pushes, _one_hot(doorbells.channel, channels),
                             Mux(grants.issues, grants.chosen, 0))),
            fetches.i.payload.channel.eq(asked_channel),
            fetches.i.payload.count.eq(Mux(doorbells.pushes, doorbells.slots, grants.count)),
            fetches.i.payload.more.eq(grants.more & ~doorbells.pushes),
            fetches.i.payload.index.eq(Mux(doorbells.pushes, doorbells.found, grants.index)),
            fetches.i.payload.pushed.eq(doorbells.pushes),
        ]
        m.d.comb += self.active.eq(
            self.write.valid | self.start.valid | emptying | self.consumed.valid | self.finished.valid | fetches.active
            | rewinds | self.freed.valid | counting | judging
            | ((pending | starved) & ~self.running).any() | doorbells.busy | grants.busy
            | (self.cmd.valid & self.cmd.ready))
        return m

    def _take_doorbells(self, m, producer, consumer, freed, live, fetches, empties, emptied_channel, rung, may_ask):
        """The doorbell side: check the new producer index and store it."""
        channels = self.config.channels
        channel, index = Signal(exact_log2(channels), name="rung_channel"), Signal(INDEX_BITS, name="rung_index")
        waiting, advance, found = Signal(INDEX_BITS), Signal(INDEX_BITS), Signal(INDEX_BITS)
        used, slots, buffer = Signal(self.credit_bits), Signal(5), Signal(exact_log2(PUSH_BUFFERS))
        pushed, fits = Signal(), Signal()
        end = Signal(INDEX_BITS)
        reach = Signal(INDEX_BITS + 1)
        ring_slots = Signal(1 << LOG2_BITS)
        stores, pushes, busy = Signal(), Signal(), Signal()
        asked = self.doorbell.payload
        m.d.comb += [
            producer[0].read_addr.eq(asked.channel), consumer[0].read_addr.eq(asked.channel),
            freed[0].read_addr.eq(asked.channel), live["log2"][0].read_addr.eq(asked.channel),
            rung.eq(Mux(stores, _one_hot(channel, channels), 0)),
            self.fault.payload.channel.eq(channel), self.fault.payload.code.eq(ChannelError.DOORBELL_OVERRUN),
            self.push.valid.eq(pushes), self.push.payload.buffer.eq(buffer), self.push.payload.slots.eq(slots),
            self.push.payload.position.eq(index), self.forgotten.payload.buffer.eq(buffer),
        ]
        for ram in producer:
            m.d.comb += [
                ram.write_en.eq(stores | pushes | empties), ram.write_addr.eq(Mux(empties, emptied_channel, channel)),
                ram.write_data.eq(Mux(empties, 0, Mux(pushed, end, index))),
            ]
        with m.FSM(name="doorbells"):
            with m.State("LOOK"):
                # a channel that has just started is emptied first
                m.d.comb += [self.doorbell.ready.eq(~self.hold), busy.eq(self.doorbell.valid & ~self.hold)]
                with m.If(self.doorbell.valid & ~self.hold):
                    m.d.sync += [
                        channel.eq(asked.channel), index.eq(asked.index), pushed.eq(asked.pushed),
                        slots.eq(asked.slots), buffer.eq(asked.buffer), found.eq(producer[0].read_data),
                        waiting.eq(producer[0].read_data - consumer[0].read_data),
                        advance.eq(asked.index - producer[0].read_data),
                        used.eq(producer[0].read_data - freed[0].read_data),
                        ring_slots.eq(_one_hot(live["log2"][0].read_data, 1 << LOG2_BITS)),
                    ]
                    with m.If(self.running.bit_select(asked.channel[:len(channel)], 1)):
                        m.next = "ADD_UP"
                    with m.Elif(asked.pushed):
                        m.next = "FORGET"
            with m.State("ADD_UP"):
                # in 17 bits, so that an index that goes back counts as far ahead
                m.d.comb += busy.eq(1)
                m.d.sync += [
                    reach.eq(waiting + advance), end.eq(found + slots),
                    fits.eq((waiting == 0) & (advance[:POSITION_BITS] == 0)
                            & (used <= self.slots - MAX_DESCRIPTOR_SLOTS)),
                ]
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.comb += busy.eq(may_ask)
                with m.If(may_ask):
                    m.next = "LOOK"
                    with m.If(pushed):
                        m.d.comb += pushes.eq(fits & fetches.i.ready)
                        with m.If(~pushes):
                            m.next = "FORGET"
                    with m.Elif(reach > ring_slots):
                        m.next = "OVERRUN"
                    with m.Else():
                        m.d.comb += stores.eq(1)
            with m.State("FORGET"):
                m.d.comb += [self.forgotten.valid.eq(1), busy.eq(self.forgotten.ready)]
                with m.If(self.forgotten.ready):
                    m.next = "LOOK"
            with m.State("OVERRUN"):
                m.d.comb += [self.fault.valid.eq(1), busy.eq(self.fault.ready)]
                with m.If(self.fault.ready):
                    m.next = "LOOK"
        return _Doorbells(busy, stores, pushes, channel, found, end, slots)

    def _grant(self, m, producer, asked, freed, live, pending, most_fetches, fetches, doorbells,
               rewinds, rewound_channel, may_ask, looked_at, has_more, starves):
        """The grant side: choose a channel, see what waits in its ring, ask for it."""
        channels = self.config.channels
        number_bits = exact_log2(channels)
        chosen, channel, last = Signal(channels), Signal(number_bits, name="granted"), Signal(number_bits)
        available, index, end = (Signal(INDEX_BITS, name=name) for name in ("available", "index", "asked_end"))
        mask, position, behind = (Signal(INDEX_BITS - 1, name=name) for name in ("mask", "position", "behind"))
        base_low, base_high = Signal(32 - PAGE_BITS), Signal(32)
        used, room, wanted = Signal(self.credit_bits), Signal(self.credit_bits), Signal(range(FETCH_SLOTS + 1))
        count, first = Signal(range(FETCH_SLOTS + 1)), Signal(range(FETCH_SLOTS + 1))
        wraps, more, tight = Signal(), Signal(), Signal()
        address_low = Signal(len(base_low) + 1)
        rest_waits, rest = Signal(), Signal(range(FETCH_SLOTS + 1))
        moved, moves_now = Signal(), Signal()
        busy, issues = Signal(), Signal()

        # two places for commands, so that a fetch that wraps never waits half-way
        with m.If(self.cmd.valid & self.cmd.ready):
            m.d.sync += [self.cmd.valid.eq(rest_waits), rest_waits.eq(0)]
            with m.If(rest_waits):
                m.d.sync += [
                    self.cmd.payload.address.eq(Cat(Const(0, PAGE_BITS), base_low, base_high)),
                    self.cmd.payload.length.eq(rest * SUBMISSION_SLOT_BYTES),
                ]

        requests, free = Signal(channels), Signal()
        m.d.comb += [
            requests.eq(pending & self.running & ~most_fetches), free.eq(~self.cmd.valid & ~rest_waits),
            producer[1].read_addr.eq(channel), asked[0].read_addr.eq(channel), freed[1].read_addr.eq(channel),
            live["log2"][1].read_addr.eq(channel), live["base_low"][0].read_addr.eq(channel),
            live["base_high"][0].read_addr.eq(channel),
            end.eq(index + count), moves_now.eq(rewinds & (rewound_channel == channel)),
        ]
        grants = round_robin(m, requests, last)
        with m.FSM(name="grants"):
            with m.State("CHOOSE"):
                m.d.comb += busy.eq(free & (requests.any() | doorbells.stores))
                with m.If(free & requests.any()):
                    m.d.sync += chosen.eq(grants)
                    m.next = "NAME"
                with m.Elif(free & doorbells.stores):  # nobody else: no need to choose
                    m.d.sync += [chosen.eq(_one_hot(doorbells.channel, channels)), channel.eq(doorbells.channel),
                                 last.eq(doorbells.channel)]
                    m.next = "LOOK"
            with m.State("NAME"):
                m.d.comb += busy.eq(1)
                m.d.sync += [channel.eq(number_of(chosen)), last.eq(number_of(chosen))]
                m.next = "LOOK"
            with m.State("LOOK"):
                m.d.comb += busy.eq(1)
                m.d.sync += [
                    available.eq(producer[1].read_data - asked[0].read_data), index.eq(asked[0].read_data),
                    used.eq(asked[0].read_data - freed[1].read_data),
                    mask.eq(_mask(live["log2"][1].read_data, len(mask))), moved.eq(moves_now),
                    base_low.eq(live["base_low"][0].read_data), base_high.eq(live["base_high"][0].read_data),
                ]
                with m.If((chosen & most_fetches).any()):
                    m.next = "CHOOSE"
                with m.Else():
                    # a doorbell from now on makes the channel pending again
                    m.d.comb += looked_at.eq(chosen)
                    m.next = "MEASURE"
            with m.State("MEASURE"):
                m.d.comb += busy.eq(1)
                m.d.sync += [
                    position.eq(index & mask), behind.eq(~index & mask), moved.eq(moved | moves_now),
                    wanted.eq(Mux(available > FETCH_SLOTS, FETCH_SLOTS, available)), more.eq(available > FETCH_SLOTS),
                    room.eq(self.slots - used), tight.eq(used > self.slots - self.least),
                ]
                with m.If(available == 0):
                    m.next = "CHOOSE"
                with m.Else():
                    m.next = "CUT"
            with m.State("CUT"):
                # `behind` slots stand between the first one and the ring's end
                small = exact_log2(FETCH_SLOTS)
                before_end = behind[:small] + 1
                m.d.comb += busy.eq(1)
                m.d.sync += [
                    count.eq(Mux(room < wanted, room, wanted)), more.eq(more | (room < wanted)),
                    wraps.eq(~behind[small:].any() & (before_end < wanted) & (before_end < room)),
                    first.eq(before_end), moved.eq(moved | moves_now),
                    address_low.eq(base_low + (position >> (PAGE_BITS - exact_log2(SUBMISSION_SLOT_BYTES)))),
                ]
                with m.If(tight & (room < wanted)):
                    m.d.comb += starves.eq(chosen)
                    m.next = "CHOOSE"
                with m.Else():
                    m.next = "ISSUE"
            with m.State("ISSUE"):
                slot_bits = exact_log2(SUBMISSION_SLOT_BYTES)
                gives_up = moved | moves_now | ~(chosen & self.running).any()
                m.d.comb += [
                    issues.eq(~gives_up & may_ask & fetches.i.ready & ~doorbells.pushes),
                    has_more.eq(Mux(issues & more, chosen, 0)), busy.eq(gives_up | issues),
                ]
                with m.If(issues):
                    m.d.sync += [
                        self.cmd.valid.eq(1),
                        self.cmd.payload.address.eq(Cat(
                            Const(0, slot_bits), position[:PAGE_BITS - slot_bits], address_low[:len(base_low)],
                            (base_high + address_low[len(base_low)])[:len(base_high)])),
                        self.cmd.payload.length.eq(Mux(wraps, first, count) * SUBMISSION_SLOT_BYTES),
                        rest_waits.eq(wraps), rest.eq(count - first),
                    ]
                with m.If(busy):
                    m.next = "CHOOSE"
        return _Grants(busy, issues, chosen, channel, index, end, count, more)


class _Doorbells(NamedTuple):
    """What the doorbell side tells the rest: `stores` an index, or `pushes` the descriptor from `found` to `end`."""

    busy: Signal
    stores: Signal
    pushes: Signal
    channel: Signal
    found: Signal
    end: Signal
    slots: Signal


class _Grants(NamedTuple):
    """What the grant side tells the rest: it `issues` a fetch of `count` slots, from `index` to `end`."""

    busy: Signal
    issues: Signal
    chosen: Signal
    channel: Signal
    index: Signal
    end: Signal
    count: Signal
    more: Signal


def job_bits(config: NicConfig) -> int:
    """Bits of a number of jobs between the front and their completion."""
    return (config.channels * queue_slots(config) + JOBS_BEHIND).bit_length()


class DrainWatch(wiring.Component):
    """Says when everything that had begun before a request is over.

    Enters: a strobe for each fetch, descriptor and job that begins and that ends. Fetches and descriptors end in the
    order in which they began; jobs in any, so each bears the `epoch` in which it began until it ends. Leaves: `done`
    while `request` is 1, as soon as the fetches that were under way, then the descriptors, then the jobs that
    stood behind them are over. What begins later does not hold it up.

    Each drain turns the epoch when it comes to the jobs, and waits until no job of the old one is left. So at the next
    turn all jobs under way are of one epoch again, and one bit is enough.

    Members
    -------
    fetch_begins, fetch_ends, descriptor_begins, descriptor_ends, job_begins, job_ends : strobes.
    epoch : of a job that begins; job_ends_epoch : that of a job that ends.
    holds : something else must be delivered first.
    request, done : see above.
    """

    ORDERED = (("fetch", 5), ("descriptor", 4))

    def __init__(self, *, job_bits: int):
        self.job_bits = job_bits
        kinds = (*(kind for kind, _ in self.ORDERED), "job")
        strobes = {f"{kind}_{what}": In(1) for kind in kinds for what in ("begins", "ends")}
        super().__init__({**strobes, "epoch": Out(1), "job_ends_epoch": In(1),
                          "holds": In(1), "request": In(1), "done": Out(1), "active": Out(1)})

    def elaborate(self, platform):
        m = Module()
        moves, ends = Signal(), Signal()
        left = Signal(max(bits for _, bits in self.ORDERED))
        under_way, begins_of, ends_of = {}, {}, {}
        for kind, bits in self.ORDERED:
            begins_of[kind], ends_of[kind] = getattr(self, f"{kind}_begins"), getattr(self, f"{kind}_ends")
            under_way[kind] = Signal(bits, name=f"{kind}s")
            m.d.sync += under_way[kind].eq(under_way[kind] + begins_of[kind] - ends_of[kind])
        jobs, over = [], []
        for epoch in range(2):
            count = Signal(self.job_bits, name=f"jobs_{epoch}")
            m.d.sync += count.eq(count + (self.job_begins & (self.epoch == epoch))
                                 - (self.job_ends & (self.job_ends_epoch == epoch)))
            jobs.append(count)
            over.append(count == 0)

        def wait_for(kind):
            m.d.sync += left.eq(under_way[kind] - ends_of[kind])
            m.next = kind.upper()

        with m.FSM(name="drain"):
            with m.State("REST"):
                m.d.comb += moves.eq(self.request)
                with m.If(self.request):
                    wait_for("fetch")
            for kind, behind in (("fetch", "descriptor"), ("descriptor", None)):
                with m.State(kind.upper()):
                    m.d.comb += ends.eq(ends_of[kind])
                    m.d.sync += left.eq(left - ends)
                    with m.If(left == 0):
                        m.d.comb += moves.eq(1)
                        if behind is not None:
                            wait_for(behind)
                        else:
                            m.d.sync += [left.eq(0), self.epoch.eq(~self.epoch)]
                            m.next = "JOB"
            with m.State("JOB"):
                with m.If(Mux(self.epoch, over[0], over[1]) & ~self.holds):
                    m.d.comb += moves.eq(1)
                    m.next = "DONE"
            with m.State("DONE"):
                m.d.comb += [self.done.eq(self.request), moves.eq(~self.request)]
                with m.If(~self.request):
                    m.next = "REST"
        m.d.comb += self.active.eq(
            moves | self.job_begins | self.job_ends | Cat(*begins_of.values(), *ends_of.values()).any())
        return m


class TransmitFetch(wiring.Component):
    """The transmit front: from a doorbell to a job with its inline rows and pieces.

    Enters: doorbells, fetched slots, answers of the key table. Leaves: read commands for slots; for each descriptor, in
    ring order for each channel, its inline rows, its pieces by their bus addresses, and then a job with its status. All
    pieces are checked before the first is read. A refused descriptor leaves its job and nothing else.

    A descriptor of one slot with one piece in 4 cycles; 9 cycles from its slot's last beat to its job, with a key table
    that answers in 5; 7 cycles from a doorbell to the command that fetches its slots.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    write : register writes (TX_BASE, TX_LOG2, CHANNEL_OPERATIONS).
    start, running : life of the channels. The ring registers are taken as they stand at `start`.
    doorbell : producer indices, and pushed descriptors.
    push_write, push_free : blocks of pushed descriptors, and the buffers that they are no longer needed in.
    descriptor_cmd, descriptor_beat : client of the DMA read engine, for slots.
    key_request, key_answer : client of the key table.
    job, stored_row, stored_piece : strobes, what leaves. The flags of a job are the descriptor's own.
    freed : strobe, submission slots whose job and what belongs to it is no longer stored.
    fault : DOORBELL_OVERRUN, TRUNCATED_DESCRIPTOR or FETCH_BUS_ERROR.
    index : TX_INDEX, slots fetched and parsed.
    tx_retired, tx_retired_epoch : strobe, a job is over, and what it was marked with.
    drain_request, drain_done : see DrainWatch.
    emit_checked, emit_verdict, emit_piece, emit_row : of a device with a control port, a second source of jobs, with
        what belongs to them; see `rtl.job_sources`.
    clearing : of a device with a control port, see `rtl.tx_scheduler.TransmitScheduler`. A drain waits for that instead
        of socket operations.
    """

    def __init__(self, config: NicConfig):
        if not isinstance(config, NicConfig):
            raise TypeError(f"config must be a NicConfig, not {config!r}")
        self.config = config
        super().__init__({
            "write": In(Strobe(RegisterWrite)), "start": In(Strobe(ChannelNumber)), "running": In(config.channels),
            "doorbell": In(stream.Signature(SubmissionDoorbell)),
            "push_write": In(Strobe(PushWrite(config))), "push_free": Out(Strobe(PushBuffer)),
            "descriptor_cmd": Out(stream.Signature(ReadCommand)),
            "descriptor_beat": In(stream.Signature(read_beat(config))),
            "key_request": Out(stream.Signature(KeyRequest)), "key_answer": In(stream.Signature(KeyAnswer)),
            "job": Out(Strobe(TxJob)), "stored_row": Out(Strobe(tx_row(config))), "stored_piece": Out(Strobe(TxPiece)),
            "freed": In(Strobe(FreedSlots)),
            "fault": Out(stream.Signature(ChannelFault)), "index": Out(Strobe(IndexReport)),
            "tx_retired": In(1), "tx_retired_epoch": In(1),
            "drain_request": In(1), "drain_done": Out(1), "active": Out(1),
            **({f"emit_{name}": In(stream.Signature(shape)) for name, shape in issue_streams(config).items()}
               | {"clearing": In(1)} if config.flows else {}),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.scheduler = scheduler = FetchScheduler(config)
        m.submodules.slots = slots = SlotReader(config)
        m.submodules.pushed = pushed = PushReader(config)
        m.submodules.cutter = cutter = DescriptorCutter(channels=config.channels)
        has_sockets = bool(config.flows)
        m.submodules.parser = parser = DescriptorParser(has_sockets=has_sockets)
        m.submodules.translator = translator = PieceTranslator(has_sockets=has_sockets)
        m.submodules.inline_rows = inline_rows = InlineRows(config)
        m.submodules.rows = rows = StreamFifo(shape=row(config), depth=STORED_ROW_BYTES // config.host_bytes)
        m.submodules.check = check = DescriptorCheck(has_sockets=has_sockets)
        m.submodules.issue = issue = JobIssue(config)
        m.submodules.faults = faults = StreamArbiter(shape=ChannelFault, count=2)
        m.submodules.drain = drain = DrainWatch(job_bits=job_bits(config))

        # Doorbell to fetch.
        connect(m, flipped(self.write), scheduler.write)
        connect(m, flipped(self.start), scheduler.start)
        connect(m, flipped(self.doorbell), scheduler.doorbell)
        connect(m, scheduler.cmd, flipped(self.descriptor_cmd))
        connect(m, scheduler.fetch, cutter.fetch)
        connect(m, cutter.consumed, scheduler.consumed)
        connect(m, cutter.finished, scheduler.finished)
        connect(m, scheduler.empties, cutter.empties)
        m.d.comb += [
            scheduler.running.eq(self.running), cutter.running.eq(self.running), cutter.hold.eq(scheduler.hold),
        ]

        # Pushed descriptors.
        connect(m, flipped(self.push_write), pushed.write)
        connect(m, scheduler.push, pushed.i)
        connect(m, scheduler.forgotten, pushed.forgotten)
        connect(m, pushed.free, flipped(self.push_free))

        # Beats to descriptors; the operations that a channel may use are live, unlike its ring registers.
        m.submodules.operations = operations = SmallRam(shape=len(OperationMask), depth=config.channels)
        written = self.write.payload
        m.d.comb += [
            operations.write_en.eq(
                self.write.valid & is_channel_register(config, written.address, "CHANNEL_OPERATIONS")),
            operations.write_addr.eq(channel_of(config, written.address)), operations.write_data.eq(written.data),
            operations.read_addr.eq(parser.channel), parser.operations.eq(operations.read_data),
        ]
        connect(m, flipped(self.descriptor_beat), slots.i)
        connect(m, slots.o, cutter.slot)
        connect(m, pushed.o, cutter.pushed_slot)
        connect(m, cutter.part, parser.part)

        # Descriptors to jobs; pieces and inline rows go beside them and meet them again at the end.
        if has_sockets:
            # whether a piece is a question is one more thing to look at before the parser may go on
            m.submodules.named = named = SkidBuffer(shape=data.StructLayout({"piece": NamedPiece, "unasked": 1}))
            m.d.comb += [
                named.i.valid.eq(parser.piece.valid), parser.piece.ready.eq(named.i.ready),
                named.i.payload.piece.eq(parser.piece.payload), named.i.payload.unasked.eq(parser.unasked),
                translator.i.valid.eq(named.o.valid), named.o.ready.eq(translator.i.ready),
                translator.i.payload.eq(named.o.payload.piece), translator.unasked.eq(named.o.payload.unasked),
            ]
        else:
            connect(m, parser.piece, translator.i)
        connect(m, translator.key_request, flipped(self.key_request))
        connect(m, flipped(self.key_answer), translator.key_answer)
        connect(m, parser.inline, inline_rows.i)
        connect(m, inline_rows.o, rows.i)
        connect(m, parser.parsed, check.i)
        parts = {"checked": check.o, "verdict": translator.verdict, "piece": translator.piece, "row": rows.o}
        ends, begins, holds = issue.done, issue.job.valid, faults.o.valid
        if config.flows:
            m.submodules.sources = sources = JobSources(config)
            for name, part in parts.items():
                connect(m, part, getattr(sources, f"{name}_0"))
                connect(m, flipped(getattr(self, f"emit_{name}")), getattr(sources, f"{name}_1"))
                parts[name] = getattr(sources, name)
            # What drains are descriptors. A socket operation reads no memory, and may wait for who takes messages.
            ends = issue.done & (sources.of == 0)
            begins = issue.job.valid & (sources.of == 0) & ~is_operation(issue.job.payload.status)
            holds |= self.clearing
            m.d.comb += sources.done.eq(issue.done)
        connect(m, parts["checked"], issue.i)
        for name in ("verdict", "piece", "row"):
            connect(m, parts[name], getattr(issue, name))
        connect(m, issue.job, flipped(self.job))
        connect(m, issue.stored_row, flipped(self.stored_row))
        connect(m, issue.stored_piece, flipped(self.stored_piece))
        connect(m, flipped(self.freed), scheduler.freed)

        # Faults, the index register, draining.
        connect(m, scheduler.fault, faults.i[0])
        connect(m, cutter.fault, faults.i[1])
        connect(m, faults.o, flipped(self.fault))
        m.d.comb += [
            self.index.valid.eq(cutter.consumed.valid), self.index.payload.eq(cutter.consumed.payload),
            drain.fetch_begins.eq(scheduler.issued), drain.fetch_ends.eq(cutter.finished.valid),
            drain.descriptor_begins.eq(cutter.begun), drain.descriptor_ends.eq(ends),
            drain.job_begins.eq(begins), issue.epoch.eq(drain.epoch),
            drain.job_ends.eq(self.tx_retired), drain.job_ends_epoch.eq(self.tx_retired_epoch),
            drain.holds.eq(holds), drain.request.eq(self.drain_request), self.drain_done.eq(drain.done),
            self.active.eq(Cat(block.active for block in (
                scheduler, slots, pushed, cutter, parser, translator, inline_rows, rows, check, issue, faults,
                drain, *([sources, named] if config.flows else []))).any()),
        ]
        return m


def _one_hot(number, count):
    """Bit `number` of `count`."""
    return (1 << number)[:count]


def _mask(log2, width):
    """2^log2 - 1."""
    return Array(Const(min((1 << n) - 1, (1 << width) - 1), width) for n in range(1 << len(log2)))[log2]
