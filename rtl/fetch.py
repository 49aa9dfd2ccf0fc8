"""The transmit front: doorbells, the choice of a channel, descriptor fetch, and the way to a job."""

from amaranth.hdl import Array, Assert, Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from nic_model.contract import (
    LARGEST_RING_LOG2,
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
    DescriptorParser,
    Fetch,
    FetchEnd,
    InlineRows,
    JobIssue,
    PieceTranslator,
    SlotReader,
)
from rtl.interfaces import (
    INDEX_BITS,
    QUEUE_SLOTS,
    ChannelFault,
    ChannelNumber,
    DoorbellWrite,
    FreedSlots,
    IndexReport,
    KeyAnswer,
    KeyRequest,
    ReadCommand,
    RegisterWrite,
    Strobe,
    TxJob,
    TxPiece,
    read_beat,
    row,
    tx_row,
)
from rtl.primitives import SmallRam, StreamArbiter, StreamFifo, round_robin
from rtl.small_fifo import SmallFifo

FETCHES = 4
"""Fetches under way, each of another channel."""

STORED_ROW_BYTES = 256
"""Inline bytes on their way: two descriptors' most."""

JOBS_BEHIND = 512
"""Jobs that have left their channel's queue and are not yet completed are fewer."""

PAGE_BITS = exact_log2(RING_ALIGNMENT_BYTES)
LOG2_BITS = LARGEST_RING_LOG2.bit_length()


class FetchScheduler(wiring.Component):
    """Decides which channel's ring is read next, and asks for its slots.

    Enters: doorbells, and from the parser the indices of what it took. Leaves: read commands for up to 32 slots from a
    channel's index on, and for each fetch its description. A fetch that passes the ring's end is two commands. Channels
    with work take turns; a channel has one fetch under way at a time, and never more than `QUEUE_SLOTS` slots between
    their fetch and their return by `freed`: a fetch waits until there is room for all that it may ask for. A doorbell
    that advances beyond the ring's size stops the channel; one for a channel that does not run has no effect.

    A doorbell every 5 cycles, a fetch every 6; 11 cycles from a doorbell to the command.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    write : register writes; TX_BASE and TX_LOG2 are kept, and taken as they stand at `start`.
    start, running : life of the channels.
    doorbell : producer indices.
    consumed, finished : from the parser.
    freed : strobe, slots of a channel are over.
    cmd, fetch : what is asked for.
    issued : strobe, a fetch begins.
    fault : DOORBELL_OVERRUN.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "write": In(Strobe(RegisterWrite)), "start": In(Strobe(ChannelNumber)), "running": In(config.channels),
            "doorbell": In(stream.Signature(DoorbellWrite)),
            "consumed": In(Strobe(IndexReport)), "finished": In(Strobe(FetchEnd)), "freed": In(Strobe(FreedSlots)),
            "cmd": Out(stream.Signature(ReadCommand)), "fetch": Out(stream.Signature(Fetch)), "issued": Out(1),
            "fault": Out(stream.Signature(ChannelFault)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        channels = self.config.channels
        number_bits = exact_log2(channels)
        m.submodules.fetches = fetches = SmallFifo(shape=Fetch, depth=FETCHES)
        connect(m, fetches.o, flipped(self.fetch))

        # Tables by channel. What ENABLE takes is copied from what was written; the doorbell and the grant side each
        # read producer, consumer and log2, so these stand twice.
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

        # A start empties the ring, one cycle later, or some if the tables are written just then.
        emptying, emptied_channel, empties = Signal(), Signal(number_bits), Signal()
        m.d.comb += empties.eq(emptying & ~self.consumed.valid & ~self.freed.valid)
        with m.If(self.start.valid):
            m.d.sync += [emptying.eq(1), emptied_channel.eq(starting)]
        with m.Elif(empties):
            m.d.sync += emptying.eq(0)
        m.d.sync += Assert(~(self.start.valid & emptying & ~empties), "a start is lost")

        producer, consumer = table("producer", INDEX_BITS, 2), table("consumer", INDEX_BITS, 2)
        consumed = self.consumed.payload
        written(consumer, self.consumed.valid | empties, Mux(self.consumed.valid, consumed.channel, emptied_channel),
                Mux(self.consumed.valid, consumed.index, 0))

        # Slots that came back, free-running like the indices: consumer - released are stored behind the parser.
        released, freed = table("released", INDEX_BITS, 2), self.freed.payload
        m.d.comb += released[1].read_addr.eq(freed.channel)
        written(released, self.freed.valid | empties, Mux(empties, emptied_channel, freed.channel),
                Mux(empties, 0, released[1].read_data + freed.slots))

        # Which channels have work, and which wait for a fetch.
        pending, fetching = Signal(channels), Signal(channels)
        rung, looked_at, has_more, issued_to, ended, failed = (
            Signal(channels, name=name)
            for name in ("rung", "looked_at", "has_more", "issued_to", "ended", "failed"))
        # A channel without room for its fetch is looked at again when some comes back.
        starved, fits, roomier = Signal(channels), Signal(channels), Signal(channels)
        m.d.comb += roomier.eq(Mux(self.freed.valid, _one_hot(freed.channel, channels), 0) & (starved | looked_at))
        m.d.sync += starved.eq((starved | looked_at) & ~roomier & ~fits & ~failed & self.running)
        m.d.comb += [
            ended.eq(Mux(self.finished.valid, _one_hot(self.finished.payload.channel, channels), 0)),
            failed.eq(Mux(self.finished.payload.faulty, ended, 0)),
        ]
        m.d.sync += [
            pending.eq(((pending & ~looked_at) | rung | has_more | roomier) & ~failed & self.running),
            fetching.eq((fetching | issued_to) & ~ended),
        ]

        ringing = self._take_doorbells(m, producer, consumer, live, empties, emptied_channel, rung)
        granting = self._grant(m, producer, consumer, released, live, pending, fetching, fetches,
                               looked_at, fits, has_more, issued_to)
        m.d.comb += self.active.eq(
            self.write.valid | self.start.valid | self.freed.valid | emptying | self.consumed.valid
            | self.finished.valid | fetches.active
            | ((pending | starved) & ~self.running).any() | ringing | granting | (self.cmd.valid & self.cmd.ready))
        return m

    def _take_doorbells(self, m, producer, consumer, live, empties, emptied_channel, rung):
        """The doorbell side: check the new producer index and store it. Returns whether it is busy."""
        channels = self.config.channels
        channel, index = Signal(exact_log2(channels), name="rung_channel"), Signal(INDEX_BITS, name="rung_index")
        waiting, advance = Signal(INDEX_BITS), Signal(INDEX_BITS)
        reach = Signal(INDEX_BITS + 1)
        ring_slots = Signal(1 << LOG2_BITS)
        stores, overrun, busy = Signal(), Signal(), Signal()
        m.d.comb += [
            producer[0].read_addr.eq(channel), consumer[0].read_addr.eq(channel), live["log2"][0].read_addr.eq(channel),
            rung.eq(Mux(stores, _one_hot(channel, channels), 0)),
            self.fault.payload.channel.eq(channel), self.fault.payload.code.eq(ChannelError.DOORBELL_OVERRUN),
        ]
        for ram in producer:
            m.d.comb += [
                ram.write_en.eq(stores | empties), ram.write_addr.eq(Mux(empties, emptied_channel, channel)),
                ram.write_data.eq(Mux(empties, 0, index)),
            ]
        with m.FSM(name="doorbells"):
            with m.State("TAKE"):
                asked = self.doorbell.payload
                m.d.comb += [self.doorbell.ready.eq(1), busy.eq(self.doorbell.valid)]
                with m.If(self.doorbell.valid):
                    m.d.sync += [channel.eq(asked.channel), index.eq(asked.index)]
                    with m.If(self.running.bit_select(asked.channel[:len(channel)], 1)):
                        m.next = "LOOK"
            with m.State("LOOK"):
                m.d.comb += busy.eq(1)
                m.d.sync += [
                    waiting.eq(producer[0].read_data - consumer[0].read_data),
                    advance.eq(index - producer[0].read_data),
                    ring_slots.eq(_one_hot(live["log2"][0].read_data, 1 << LOG2_BITS)),
                ]
                m.next = "ADD_UP"
            with m.State("ADD_UP"):
                # in 17 bits, so that an index that goes back counts as far ahead
                m.d.comb += busy.eq(1)
                m.d.sync += reach.eq(waiting + advance)
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.comb += busy.eq(1)
                m.d.sync += overrun.eq(reach > ring_slots)
                m.next = "STORE"
            with m.State("STORE"):
                m.d.comb += [self.fault.valid.eq(overrun), stores.eq(~overrun & ~empties)]
                m.d.comb += busy.eq(Mux(overrun, self.fault.ready, stores))
                with m.If(busy):
                    m.next = "TAKE"
        return busy

    def _grant(self, m, producer, consumer, released, live, pending, fetching, fetches, looked_at, fits,
               has_more, issued_to):
        """The grant side: choose a channel, see what waits in its ring, ask for it. Returns whether it is busy."""
        channels = self.config.channels
        number_bits = exact_log2(channels)
        chosen, channel, last = Signal(channels), Signal(number_bits, name="granted"), Signal(number_bits)
        available, index = Signal(INDEX_BITS), Signal(INDEX_BITS, name="index")
        stored, has_room = Signal(range(QUEUE_SLOTS + 1)), Signal()
        mask, position, behind = (Signal(INDEX_BITS - 1, name=name) for name in ("mask", "position", "behind"))
        base_low, base_high = Signal(32 - PAGE_BITS), Signal(32)
        count, first = Signal(range(FETCH_SLOTS + 1)), Signal(range(FETCH_SLOTS + 1))
        wraps, more = Signal(), Signal()
        address_low = Signal(len(base_low) + 1)
        rest_waits, rest = Signal(), Signal(range(FETCH_SLOTS + 1))
        busy = Signal()

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
            requests.eq(pending & self.running & ~fetching),
            free.eq(~self.cmd.valid & ~rest_waits & fetches.i.ready),
            producer[1].read_addr.eq(channel), consumer[1].read_addr.eq(channel), released[0].read_addr.eq(channel),
            live["log2"][1].read_addr.eq(channel), live["base_low"][0].read_addr.eq(channel),
            live["base_high"][0].read_addr.eq(channel),
            fetches.i.payload.channel.eq(channel), fetches.i.payload.count.eq(count),
            fetches.i.payload.more.eq(more), fetches.i.payload.index.eq(index),
        ]
        grants = round_robin(m, requests, last)
        with m.FSM(name="grants"):
            with m.State("CHOOSE"):
                m.d.comb += busy.eq(free & requests.any())
                with m.If(busy):
                    m.d.sync += chosen.eq(grants)
                    m.next = "NAME"
            with m.State("NAME"):
                m.d.comb += busy.eq(1)
                m.d.sync += [channel.eq(_number(chosen)), last.eq(_number(chosen))]
                m.next = "LOOK"
            with m.State("LOOK"):
                # a doorbell from now on makes the channel pending again
                m.d.comb += [busy.eq(1), looked_at.eq(chosen)]
                m.d.sync += [
                    available.eq(producer[1].read_data - consumer[1].read_data), index.eq(consumer[1].read_data),
                    stored.eq(consumer[1].read_data - released[0].read_data),
                    mask.eq(_mask(live["log2"][1].read_data, len(mask))),
                    base_low.eq(live["base_low"][0].read_data), base_high.eq(live["base_high"][0].read_data),
                ]
                m.next = "MEASURE"
            with m.State("MEASURE"):
                m.d.comb += busy.eq(1)
                m.d.sync += [
                    position.eq(index & mask), behind.eq(~index & mask),
                    count.eq(Mux(available > FETCH_SLOTS, FETCH_SLOTS, available)), more.eq(available > FETCH_SLOTS),
                ]
                m.d.comb += has_room.eq(Mux(
                    available > FETCH_SLOTS, stored <= QUEUE_SLOTS - FETCH_SLOTS,
                    stored + available[:FETCH_SLOTS.bit_length()] <= QUEUE_SLOTS))
                m.d.comb += fits.eq(Mux(has_room, chosen, 0))
                with m.If((available == 0) | ~has_room):
                    m.next = "CHOOSE"
                with m.Else():
                    m.next = "CUT"
            with m.State("CUT"):
                # `behind` slots stand between the first one and the ring's end
                small = exact_log2(FETCH_SLOTS)
                m.d.comb += busy.eq(1)
                m.d.sync += [
                    wraps.eq(~behind[small:].any() & (behind[:small] + 1 < count)),
                    first.eq(behind[:small] + 1),
                    address_low.eq(base_low + (position >> (PAGE_BITS - exact_log2(SUBMISSION_SLOT_BYTES)))),
                ]
                m.next = "ISSUE"
            with m.State("ISSUE"):
                slot_bits = exact_log2(SUBMISSION_SLOT_BYTES)
                m.d.comb += [
                    busy.eq(1), self.issued.eq((chosen & self.running).any()), fetches.i.valid.eq(self.issued),
                    issued_to.eq(Mux(self.issued, chosen, 0)), has_more.eq(Mux(more, chosen, 0)),
                ]
                with m.If(self.issued):
                    m.d.sync += [
                        self.cmd.valid.eq(1),
                        self.cmd.payload.address.eq(Cat(
                            Const(0, slot_bits), position[:PAGE_BITS - slot_bits], address_low[:len(base_low)],
                            (base_high + address_low[len(base_low)])[:len(base_high)])),
                        self.cmd.payload.length.eq(Mux(wraps, first, count) * SUBMISSION_SLOT_BYTES),
                        rest_waits.eq(wraps), rest.eq(count - first),
                    ]
                m.next = "CHOOSE"
        return busy


def job_bits(config: NicConfig) -> int:
    """Bits of a number of jobs between the front and their completion."""
    return (config.channels * QUEUE_SLOTS + JOBS_BEHIND).bit_length()


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

    ORDERED = (("fetch", 4), ("descriptor", 4))

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

    A descriptor of one slot with one piece in less than 6 cycles; 14 cycles from its slot's last beat to its
    job, with a key table that answers in 5; 11 cycles from a doorbell to the command that fetches its slots.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    write : register writes (TX_BASE, TX_LOG2, CHANNEL_OPERATIONS).
    start, running : life of the channels. The ring registers are taken as they stand at `start`.
    doorbell : producer indices.
    descriptor_cmd, descriptor_beat : client of the DMA read engine, for slots.
    key_request, key_answer : client of the key table.
    job, stored_row, stored_piece : strobes, what leaves. The flags of a job are the descriptor's own.
    freed : strobe, submission slots whose job and what belongs to it is no longer stored.
    fault : DOORBELL_OVERRUN, TRUNCATED_DESCRIPTOR or FETCH_BUS_ERROR.
    index : TX_INDEX, slots fetched and parsed.
    tx_retired, tx_retired_epoch : strobe, a job is over, and what it was marked with.
    drain_request, drain_done : see DrainWatch.
    """

    def __init__(self, config: NicConfig):
        if not isinstance(config, NicConfig):
            raise TypeError(f"config must be a NicConfig, not {config!r}")
        self.config = config
        super().__init__({
            "write": In(Strobe(RegisterWrite)), "start": In(Strobe(ChannelNumber)), "running": In(config.channels),
            "doorbell": In(stream.Signature(DoorbellWrite)),
            "descriptor_cmd": Out(stream.Signature(ReadCommand)),
            "descriptor_beat": In(stream.Signature(read_beat(config))),
            "key_request": Out(stream.Signature(KeyRequest)), "key_answer": In(stream.Signature(KeyAnswer)),
            "job": Out(Strobe(TxJob)), "stored_row": Out(Strobe(tx_row(config))), "stored_piece": Out(Strobe(TxPiece)),
            "freed": In(Strobe(FreedSlots)),
            "fault": Out(stream.Signature(ChannelFault)), "index": Out(Strobe(IndexReport)),
            "tx_retired": In(1), "tx_retired_epoch": In(1),
            "drain_request": In(1), "drain_done": Out(1), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.scheduler = scheduler = FetchScheduler(config)
        m.submodules.slots = slots = SlotReader(config)
        m.submodules.parser = parser = DescriptorParser(config)
        m.submodules.translator = translator = PieceTranslator()
        m.submodules.inline_rows = inline_rows = InlineRows(config)
        m.submodules.rows = rows = StreamFifo(shape=row(config), depth=STORED_ROW_BYTES // config.host_bytes)
        m.submodules.check = check = DescriptorCheck()
        m.submodules.issue = issue = JobIssue(config)
        m.submodules.faults = faults = StreamArbiter(shape=ChannelFault, count=2)
        m.submodules.drain = drain = DrainWatch(job_bits=job_bits(config))

        # Doorbell to fetch.
        connect(m, flipped(self.write), scheduler.write)
        connect(m, flipped(self.start), scheduler.start)
        connect(m, flipped(self.doorbell), scheduler.doorbell)
        connect(m, scheduler.cmd, flipped(self.descriptor_cmd))
        connect(m, scheduler.fetch, parser.fetch)
        connect(m, parser.consumed, scheduler.consumed)
        connect(m, parser.finished, scheduler.finished)
        m.d.comb += [scheduler.running.eq(self.running), parser.running.eq(self.running)]

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
        connect(m, slots.o, parser.slot)

        # Descriptors to jobs; pieces and inline rows go beside them and meet them again at the end.
        connect(m, parser.piece, translator.i)
        connect(m, translator.key_request, flipped(self.key_request))
        connect(m, flipped(self.key_answer), translator.key_answer)
        connect(m, parser.inline, inline_rows.i)
        connect(m, inline_rows.o, rows.i)
        connect(m, parser.parsed, check.i)
        connect(m, check.o, issue.i)
        connect(m, translator.verdict, issue.verdict)
        connect(m, translator.piece, issue.piece)
        connect(m, rows.o, issue.row)
        connect(m, issue.job, flipped(self.job))
        connect(m, issue.stored_row, flipped(self.stored_row))
        connect(m, issue.stored_piece, flipped(self.stored_piece))
        connect(m, flipped(self.freed), scheduler.freed)

        # Faults, the index register, draining.
        connect(m, scheduler.fault, faults.i[0])
        connect(m, parser.fault, faults.i[1])
        connect(m, faults.o, flipped(self.fault))
        m.d.comb += [
            self.index.valid.eq(parser.consumed.valid), self.index.payload.eq(parser.consumed.payload),
            drain.fetch_begins.eq(scheduler.issued), drain.fetch_ends.eq(parser.finished.valid),
            drain.descriptor_begins.eq(parser.parsed.valid & parser.parsed.ready), drain.descriptor_ends.eq(issue.done),
            drain.job_begins.eq(issue.job.valid), issue.epoch.eq(drain.epoch),
            drain.job_ends.eq(self.tx_retired), drain.job_ends_epoch.eq(self.tx_retired_epoch),
            drain.holds.eq(faults.o.valid), drain.request.eq(self.drain_request), self.drain_done.eq(drain.done),
            self.active.eq(Cat(block.active for block in (
                scheduler, slots, parser, translator, inline_rows, rows, check, issue, faults, drain)).any()),
        ]
        return m


def _one_hot(number, count):
    """Bit `number` of `count`."""
    return (1 << number)[:count]


def _number(one_hot):
    """The number of the only bit that is set."""
    bits = exact_log2(len(one_hot))
    return Cat(Cat(one_hot[n] for n in range(len(one_hot)) if n >> bit & 1).any() for bit in range(bits))


def _mask(log2, width):
    """2^log2 - 1."""
    return Array(Const(min((1 << n) - 1, (1 << width) - 1), width) for n in range(1 << len(log2)))[log2]
