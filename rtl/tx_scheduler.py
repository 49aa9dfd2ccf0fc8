"""The transmit scheduler: whose frame is next, and what has to be read for it."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from nic_model.contract import (
    DEFAULT_TX_WEIGHT,
    MAX_FRAME_BYTES,
    MAX_INLINE_BYTES,
    MAX_TX_WEIGHT,
    MIN_TX_WEIGHT,
    NicConfig,
    Status,
)
from nic_model.contract.protocols import MAC_ADDRESSES_BYTES, VLAN_TAG_BYTES, EtherType
from rtl.addresses import channel_of, is_channel_register
from rtl.control_messages import message_beat
from rtl.interfaces import (
    BURST,
    LENGTH_BITS,
    TIME_BITS,
    CountAmount,
    FreedSlots,
    ReadCommand,
    RegisterWrite,
    Strobe,
    TxJob,
    TxPiece,
    TxSlice,
    is_operation,
    row,
    tx_row,
)
from rtl.primitives import SkidBuffer, SmallRam, StreamFifo, number_of, round_robin
from rtl.segmenter import SEGMENT_BITS
from rtl.socket_operations import OperationTurns, SocketOperations
from rtl.token_buckets import TokenBuckets, sent_frame
from rtl.tx_queues import StoredPiece, TxQueues, job_index_bits, piece_index_bits, row_index_bits, stored_job

STORED_ROW_BYTES = 4096
"""Inline bytes of frames that are decided and whose payload is on its way."""

WEIGHT_BITS = MAX_TX_WEIGHT.bit_length()

CREDIT_BITS = WEIGHT_BITS + 2
"""Of a credit: up to a weight, down to a longest frame below 0."""

Credit = signed(CREDIT_BITS)

# How far a channel's present job has come.
Progress = data.StructLayout({"started": 1, "left": LENGTH_BITS, "offset": LENGTH_BITS, "number": 16})


def decision(config: NicConfig) -> data.StructLayout:
    """A frame that is to be sent. `pays`: it has payload; `template`: the job's inline rows go with it. `first_piece`
    and `first_row` say where the job's pieces and rows begin. `operation`, of a device with a control port: it is no
    frame, but a socket operation."""
    return data.StructLayout({
        "slice": TxSlice, "pays": 1, "template": 1,
        "first_piece": piece_index_bits(config), "first_row": row_index_bits(config),
        **({"operation": 1} if config.flows else {}),
    })


def bytes_ahead(config: NicConfig) -> int:
    """What frames that are decided and have not begun to leave may be, and one frame more: as much as the read engine
    may have in flight, which is what hides the latency of host memory."""
    return config.payload_reads * BURST


def weight_in_force(value):
    """What a value of TX_WEIGHT counts as, where not all are 0."""
    wanted = Mux(value[WEIGHT_BITS:].any(), MAX_TX_WEIGHT, value[:WEIGHT_BITS])
    return Mux(value == 0, DEFAULT_TX_WEIGHT, Mux(wanted < MIN_TX_WEIGHT, MIN_TX_WEIGHT, wanted))


class FrameScheduler(wiring.Component):
    """Chooses the next frame.

    Enters: `arrived`, channels that got a job; their jobs. Leaves: decisions, one for each frame, in the order in which
    frames leave. What is queued on a channel that has stopped is discarded, a job with each decision.

    While all weights are 0, channels with jobs take turns frame by frame. Otherwise this is deficit round robin, one
    frame at a turn: a channel that has sent more than its credit is *spent*; when all that wait are, a round begins, in
    which each has its weight as new credit, less what it sent too much in the rounds before.

    Decisions run ahead of the wire so far that the latency of host memory is hidden, and no further: none is made while
    frames that have not begun to leave are `bytes_ahead` or more.

    A decision every 4 cycles; 3 cycles from `arrived` to the decision if nothing else is to be done and there are no
    weights, else up to 8.

    A socket operation is decided in its channel's turn as a frame is, unless there is no place for it: then its channel
    is passed over and held until there is, see `OperationTurns`.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    write : register writes (TX_WEIGHT).
    running : a bit for each channel.
    held, limited, sent : which channels their rate holds back, which have one, and a frame that counts; see
        `TokenBuckets`.
    arrived, arrived_channel, read_job, job_at, job_data : see `TxQueues`.
    arriving_job : the job that arrives, beside `arrived`.
    begun, dropped : strobes, the bytes of frames that have begun to leave, or never will.
    operation_taken, operation_left : strobes, of a device with a control port: a socket operation that was decided is
        taken, and there is a place for one again.
    clearing : of a device with a control port, 1 cycle late: something is queued on a channel that has stopped, or a
        socket operation is decided and not taken.
    decision : stream of decisions.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        self.channel_bits = exact_log2(config.channels)
        super().__init__({
            **({"operation_taken": In(1), "operation_left": In(1), "clearing": Out(1)} if config.flows else {}),
            "write": In(Strobe(RegisterWrite)),
            "running": In(config.channels), "held": In(config.channels),
            "limited": In(config.channels), "sent": Out(Strobe(sent_frame(config))),
            "arrived": In(config.channels), "arrived_channel": In(self.channel_bits),
            "arriving_job": In(TxJob),
            "read_job": Out(1), "job_at": Out(self.channel_bits + job_index_bits(config)),
            "job_data": In(stored_job(config)),
            "begun": In(Strobe(CountAmount)), "dropped": In(Strobe(CountAmount)),
            "decision": Out(stream.Signature(decision(config))), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        channels = self.config.channels
        m.submodules.progresses = progresses = SmallRam(shape=Progress, depth=channels)
        m.submodules.heads = heads = SmallRam(shape=job_index_bits(self.config), depth=channels)
        pending, emptied = Signal(channels), Signal(channels)
        # the place behind each channel's last job, read where a job arrives and where one ends
        m.submodules.counts = counts = SmallRam(shape=job_index_bits(self.config), depth=channels)
        m.submodules.tails = tails = SmallRam(shape=job_index_bits(self.config), depth=channels)
        for ram in (counts, tails):
            m.d.comb += [
                ram.write_en.eq(self.arrived.any()), ram.write_addr.eq(self.arrived_channel),
                ram.write_data.eq(counts.read_data + 1),
            ]
        m.d.sync += pending.eq((pending & ~emptied) | self.arrived)

        # Weights, and what is left of the credit. `due`: the round's credit is not counted yet.
        weighted, weight = Signal(channels), Signal(WEIGHT_BITS)
        m.submodules.weights = weights = SmallRam(shape=WEIGHT_BITS, depth=channels)
        m.submodules.credits = credits = SmallRam(shape=Credit, depth=channels)
        spent, due, by_weight, rounds = Signal(channels), Signal(channels, init=-1), Signal(), Signal()
        written, write_bit = self.write.payload, Signal(channels)
        m.d.comb += [
            weights.write_en.eq(
                self.write.valid & is_channel_register(self.config, written.address, "TX_WEIGHT")),
            weights.write_addr.eq(channel_of(self.config, written.address)),
            weights.write_data.eq(weight_in_force(written.data)),
            write_bit.eq(Mux(weights.write_en, 1 << weights.write_addr, 0)),
        ]
        m.d.sync += by_weight.eq(weighted.any())
        with m.If(weights.write_en):
            m.d.sync += weighted.eq(Mux(written.data == 0, weighted & ~write_bit, weighted | write_bit))
        ready, may_go = Signal(channels), Signal(channels)
        held = self.held
        if self.config.flows:
            m.submodules.turns = turns = OperationTurns(channels=channels)
            # who has the turn was not held by its rate when it came to wait, and others wait for it now
            held = (held & ~turns.turn) | turns.waiting
        # what waits on a channel that has stopped is not held back
        m.d.comb += [ready.eq(pending & ~(held & self.running)), may_go.eq(ready & ~Mux(by_weight, spent, 0))]

        # The channel whose frame is measured, and the one that is next, unless the present one goes on alone.
        current, current_bit, current_valid = Signal(self.channel_bits), Signal(channels), Signal()
        others, grants, next_bit = Signal(channels), Signal(channels), Signal(channels)
        next_channel, next_valid = Signal(self.channel_bits), Signal()
        choosing = Signal()
        m.d.comb += others.eq(may_go & ~Mux(current_valid, current_bit, 0))
        first = round_robin(m, others, current)
        m.d.comb += choosing.eq((first != grants) | (grants != next_bit))
        m.d.sync += [
            grants.eq(first), next_bit.eq(grants), next_valid.eq(grants.any()),
            next_channel.eq(number_of(grants)),
        ]

        # The job and how far it has come.
        job, progress = Signal(TxJob), Signal(Progress)
        found = data.View(Progress, progresses.read_data)
        runs, left, limit, longer = Signal(), Signal(LENGTH_BITS), Signal(SEGMENT_BITS), Signal()
        owed, is_limited, counts_bit = Signal(), Signal(), Signal(channels)
        credit, has_credit = Signal(Credit), Signal()
        header_bytes = Signal(range(MAX_INLINE_BYTES + 1))  # with the tag
        less_limit, less_left = Signal(Credit), Signal(Credit)
        moves, decides, nothing_else = Signal(), Signal(), Signal()
        is_idle = ~pending.any() & ~grants.any()
        if self.config.flows:
            # a cycle later, since much depends on it
            idle_next, idle_now = Signal(), Signal()
            m.d.comb += idle_next.eq(~(pending | self.arrived | grants | first).any())
            m.d.sync += idle_now.eq(idle_next)
            is_idle = idle_now
        m.d.comb += [
            nothing_else.eq(is_idle),
            rounds.eq(~current_valid & ready.any() & ~may_go.any() & ~grants.any() & ~next_valid),
            weights.read_addr.eq(current), credits.read_addr.eq(current),
            counts.read_addr.eq(self.arrived_channel), tails.read_addr.eq(current), heads.read_addr.eq(current),
            progresses.read_addr.eq(current), self.job_at.eq(Cat(current, heads.read_data)),
        ]

        # What is decided of it.
        # `ready` comes late from who reads payload and rows, and a decision moves much: so it ends in this stage.
        m.submodules.decisions = decisions = SkidBuffer(shape=decision(self.config))
        connect(m, decisions.o, flipped(self.decision))
        made, passed = Signal(decision(self.config)), Signal()
        in_reach, may_decide = Signal(), Signal(init=1)
        slice_, after = made.slice, data.View(Progress, progresses.write_data)
        good, last = Signal(), Signal()
        head_after, empties = Signal(job_index_bits(self.config)), Signal()
        m.d.comb += [
            good.eq(runs & (job.status == Status.OK)), last.eq(~good | ~longer),
            slice_.job.channel.eq(current),
            *(slice_.job[name].eq(job[name]) for name in TxJob.members if name != "channel"),
            slice_.first.eq(~progress.started), slice_.last.eq(last), slice_.discarded.eq(~runs),
            slice_.offset.eq(progress.offset), slice_.number.eq(progress.number),
            slice_.count.eq(Mux(good, Mux(longer, limit, left), 0)),
            made.pays.eq(good & (job.payload_bytes != 0)),
            made.template.eq(good & (job.inline_bytes != 0) & ~progress.started),
            # what was read holds still until the next job is
            made.first_piece.eq(self.job_data.first_piece), made.first_row.eq(self.job_data.first_row),
            after.started.eq(~last), after.left.eq(left - limit),
            after.offset.eq(Mux(last, 0, progress.offset + limit)), after.number.eq(Mux(last, 0, progress.number + 1)),
            progresses.write_addr.eq(current), progresses.write_en.eq(decides),
            head_after.eq(heads.read_data + 1), empties.eq(last & (head_after == tails.read_data)),
            heads.write_addr.eq(current), heads.write_data.eq(head_after), heads.write_en.eq(decides & last),
            emptied.eq(Mux(decides & empties, current_bit, 0)),
        ]
        m.d.comb += [decisions.i.valid.eq(decides), decisions.i.payload.eq(made)]

        # What the frame costs. A channel that owes more than a round's credit is passed over.
        passes_over, credit_after, is_spent = Signal(), Signal(Credit), Signal()
        skipped = by_weight & runs & ~has_credit
        if self.config.flows:
            # So is one whose socket operation has to wait. Both are looked up in the cycle before.
            skipped, no_place, untaken, clears = Signal(), Signal(), Signal(2), Signal()
            m.d.comb += [
                clears.eq((pending & ~self.running).any() | (untaken != 0)),
                made.operation.eq(is_operation(job.status)),
                turns.asks.eq(current_bit), turns.held_back.eq(Mux(passed & no_place, current_bit, 0)),
                turns.decided.eq(Mux(decides, current_bit, 0)), turns.taken.eq(decides & made.operation & runs),
                turns.left.eq(self.operation_left),
            ]
            m.d.sync += [
                untaken.eq(untaken + (decides & made.operation) - self.operation_taken), self.clearing.eq(clears),
            ]
        m.d.comb += [
            passes_over.eq(skipped),
            credit_after.eq(Mux(passes_over, credit, Mux(longer, less_limit, less_left) - header_bytes)),
            is_spent.eq(credit_after[-1]),
            credits.write_addr.eq(current), credits.write_data.eq(credit_after),
            credits.write_en.eq(passed & by_weight & runs),
        ]

        # How far decisions are ahead of the wire. `adds` and `leaves` are registers, so that no addition waits for
        # another.
        most_ahead = bytes_ahead(self.config)
        ahead = Signal(range(most_ahead + 2 * MAX_FRAME_BYTES))
        adds, leaves, counting = Signal(SEGMENT_BITS), Signal(SEGMENT_BITS + 1), Signal()
        gone = sum(Mux(strobe.valid, strobe.payload.amount, 0) for strobe in (self.begun, self.dropped))
        changes = Signal()
        m.d.comb += [
            changes.eq((decides & good) | self.begun.valid | self.dropped.valid), in_reach.eq(ahead < most_ahead),
        ]
        m.d.sync += [counting.eq(changes), may_decide.eq(in_reach)]
        with m.If(changes | counting):
            m.d.sync += [adds.eq(Mux(decides & good, header_bytes + slice_.count, 0)), leaves.eq(gone)]
            m.d.sync += ahead.eq(ahead + adds - leaves)

        # What it costs in time, if the channel has a rate: it is held from the next cycle on.
        m.d.comb += [
            self.sent.valid.eq(decides), self.sent.payload.channel.eq(current),
            self.sent.payload.channel_bit.eq(counts_bit), self.sent.payload.length.eq(header_bytes + slice_.count),
        ]
        with m.If(rounds):
            m.d.sync += [spent.eq(0), due.eq(~0)]
        with m.Elif(credits.write_en):
            m.d.sync += [
                spent.eq(Mux(is_spent, spent | current_bit, spent & ~current_bit)), due.eq(due & ~current_bit),
            ]

        goes_on = ~empties & ~no_place if self.config.flows else ~empties

        def turn_to_next():
            m.d.sync += [current.eq(next_channel), current_bit.eq(next_bit), current_valid.eq(1)]
            m.next = "LOOK"

        def measure(found_job, found_left):
            m.d.sync += [
                *(job[name].eq(found_job[name]) for name in TxJob.members if name != "channel"), left.eq(found_left),
                limit.eq(Mux(found_job.segmented, found_job.mss, (1 << SEGMENT_BITS) - 1)),
            ]
            m.next = "MEASURE"

        with m.FSM(name="scheduler"):
            with m.State("REST"):
                m.d.comb += moves.eq(next_valid | self.arrived.any())
                with m.If(next_valid):
                    turn_to_next()
                with m.Elif(nothing_else & (self.arrived & ~self.held).any()):
                    m.d.sync += [
                        current.eq(self.arrived_channel), current_bit.eq(self.arrived), current_valid.eq(1),
                    ]
                    m.next = "LOOK"
                    with m.If(~by_weight):
                        # its first frame: there is nothing to look up. Should weights come now, it has had no credit.
                        m.d.sync += [
                            progress.eq(0), runs.eq((self.running & self.arrived).any()), credit.eq(0),
                            is_limited.eq((self.limited & self.arrived).any()),
                        ]
                        measure(self.arriving_job, self.arriving_job.payload_bytes)
            with m.State("LOOK"):
                m.d.comb += [moves.eq(1), self.read_job.eq(1)]
                m.d.sync += [
                    progress.eq(found), runs.eq((self.running & current_bit).any()),
                    credit.eq(credits.read_data.as_signed()),
                    weight.eq(Mux(weights.read_data == 0, DEFAULT_TX_WEIGHT, weights.read_data)),
                    owed.eq((due & current_bit).any()), is_limited.eq((self.limited & current_bit).any()),
                ]
                m.next = "FETCH"
            with m.State("FETCH"):
                m.d.comb += moves.eq(1)
                measure(self.job_data, Mux(progress.started, progress.left, self.job_data.payload_bytes))
                # a round's credit comes on top of a debt, but not of what was left over
                with m.If(owed):
                    m.d.sync += credit.eq(Mux(credit[-1], credit, 0) + weight)
            with m.State("MEASURE"):
                m.d.comb += [moves.eq(1), self.read_job.eq(1)]  # also a job that came past LOOK
                m.d.sync += [
                    longer.eq(left > limit), has_credit.eq(~credit[-1]),
                    counts_bit.eq(Mux(good & is_limited, current_bit, 0)),
                    header_bytes.eq(job.inline_bytes + Mux(job.tagged, VLAN_TAG_BYTES, 0)),
                    less_limit.eq(credit - limit), less_left.eq(credit - left[:SEGMENT_BITS]),
                ]
                if self.config.flows:
                    # one that lacks credit is spent, and must not have the turn
                    lacks_credit, waits = by_weight & credit[-1], is_operation(job.status) & turns.refused
                    m.d.sync += [
                        skipped.eq(runs & (lacks_credit | waits)), no_place.eq(runs & waits & ~lacks_credit),
                    ]
                m.next = "DECIDE"
            with m.State("DECIDE"):
                m.d.comb += [
                    decides.eq(decisions.i.ready & may_decide & ~passes_over),
                    passed.eq(decides | passes_over), moves.eq(passed),
                ]
                with m.If(passed):
                    with m.If(next_valid):
                        turn_to_next()
                    with m.Elif(goes_on & ~(by_weight & is_spent) & ~is_limited):
                        m.next = "LOOK"
                    with m.Else():
                        m.d.sync += current_valid.eq(0)
                        m.next = "REST"

        m.d.comb += self.active.eq(
            moves | choosing | rounds | self.write.valid | (by_weight ^ weighted.any()) | self.arrived.any()
            | changes | counting | (in_reach ^ may_decide) | decisions.active
            | (turns.active | self.operation_taken | (idle_next ^ idle_now) | (clears ^ self.clearing)
               if self.config.flows else 0))
        return m


class PieceWalker(wiring.Component):
    """Reads the payload of each frame: walks the pieces of its job, and asks for exactly the frame's bytes.

    Enters: decisions. Leaves: read commands. 3 cycles for each piece that a frame touches, 4 for one that was begun by
    another frame; a decision is taken with its last command.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    i : stream of decisions.
    read_piece, piece_at, piece_data : see `TxQueues`.
    cmd : stream of read commands.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        self.channel_bits = exact_log2(config.channels)
        super().__init__({
            "i": In(stream.Signature(decision(config))),
            "read_piece": Out(1), "piece_at": Out(self.channel_bits + piece_index_bits(config)),
            "piece_data": In(StoredPiece),
            "cmd": Out(stream.Signature(ReadCommand)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        # Where the next frame of each channel's present job begins: in which piece, and how much of it is used.
        place = data.StructLayout({"piece": piece_index_bits(self.config), "used": LENGTH_BITS})
        m.submodules.places = places = SmallRam(shape=place, depth=self.config.channels)
        channel = self.i.payload.slice.job.channel[:self.channel_bits]
        begin, present = Signal(place), Signal(place)
        after = data.View(place, places.write_data)
        left, unused = Signal(SEGMENT_BITS), Signal()
        piece, rest, address_low, address_high = Signal(StoredPiece), Signal(LENGTH_BITS), Signal(33), Signal(32)
        piece_ends, frame_ends, moves, emits = Signal(), Signal(), Signal(), Signal()
        cmd = self.cmd.payload
        m.d.comb += [
            places.read_addr.eq(channel), places.write_addr.eq(channel),
            begin.eq(Mux(self.i.payload.slice.first, self.i.payload.first_piece, places.read_data)),
            self.piece_at.eq(Cat(channel, begin.piece)),
            cmd.length.eq(Mux(piece_ends, rest, left)),
            cmd.address.eq(Cat(address_low[:32], address_high + address_low[32])),
            piece_ends.eq(rest <= left), frame_ends.eq(left <= rest),
            after.piece.eq(present.piece + piece_ends), after.used.eq(Mux(piece_ends, 0, present.used + left)),
            places.write_en.eq(emits & frame_ends),
        ]
        with m.FSM(name="walker"):
            with m.State("BEGIN"):
                m.d.comb += [
                    self.read_piece.eq(self.i.valid & self.i.payload.pays), moves.eq(self.i.valid),
                    self.i.ready.eq(~self.i.payload.pays),
                ]
                with m.If(self.read_piece):
                    m.d.sync += [
                        present.eq(begin), left.eq(self.i.payload.slice.count), unused.eq(begin.used == 0),
                    ]
                    m.next = "FETCH"
            with m.State("NEXT_PIECE"):
                m.d.comb += [
                    self.read_piece.eq(1), self.piece_at.eq(Cat(channel, present.piece)), moves.eq(1),
                ]
                m.next = "FETCH"
            with m.State("FETCH"):
                m.d.comb += moves.eq(1)
                with m.If(unused):
                    m.d.sync += [
                        rest.eq(self.piece_data.length), address_low.eq(self.piece_data.address[:32]),
                        address_high.eq(self.piece_data.address[32:]),
                    ]
                    m.next = "ASK"
                with m.Else():
                    m.d.sync += piece.eq(self.piece_data)
                    m.next = "CUT"
            with m.State("CUT"):
                m.d.comb += moves.eq(1)
                m.d.sync += [
                    rest.eq(piece.length - present.used), address_low.eq(piece.address[:32] + present.used),
                    address_high.eq(piece.address[32:]),
                ]
                m.next = "ASK"
            with m.State("ASK"):
                m.d.comb += [
                    self.cmd.valid.eq(1), emits.eq(self.cmd.ready), moves.eq(emits),
                    self.i.ready.eq(emits & frame_ends),
                ]
                with m.If(emits):
                    m.d.sync += [
                        present.piece.eq(present.piece + 1), present.used.eq(0), left.eq(left - rest), unused.eq(1),
                    ]
                    with m.If(frame_ends):
                        m.next = "BEGIN"
                    with m.Else():
                        m.next = "NEXT_PIECE"
        m.d.comb += self.active.eq(moves)
        return m


class SliceIssue(wiring.Component):
    """Hands the frames on, each job's first with the rows of its template; inserts the 802.1Q tag.

    Enters: decisions. Leaves: slices, and inline rows. One decision a cycle, or one row. With a tag, four bytes of each
    row move into the next; lengths and offsets of the slice count it.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    i : stream of decisions.
    read_row, row_at, row_data : see `TxQueues`.
    slice, inline : what leaves.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        self.channel_bits = exact_log2(config.channels)
        super().__init__({
            "i": In(stream.Signature(decision(config))),
            "read_row": Out(1), "row_at": Out(self.channel_bits + row_index_bits(config)),
            "row_data": In(8 * config.host_bytes),
            "slice": Out(stream.Signature(TxSlice)), "inline": Out(stream.Signature(row(config))), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        lane_bits = exact_log2(self.config.host_bytes)
        depth, flushes = STORED_ROW_BYTES // self.config.host_bytes, Signal()
        m.submodules.rows = rows = StreamFifo(shape=row(self.config), depth=depth)
        connect(m, rows.o, flipped(self.inline))
        decided = self.i.payload
        channel = decided.slice.job.channel[:self.channel_bits]

        # A template's rows are read without a pause, so there must be room for the longest; one may still be on its
        # way.
        most = 1 + MAX_INLINE_BYTES // self.config.host_bytes
        at, rows_left = Signal(row_index_bits(self.config)), Signal(range(most))
        rows_of, overflows = Signal(range(most)), Signal()
        room, free, begins, moves, last_row = Signal(init=1), Signal(), Signal(), Signal(), Signal()
        last_left = Signal()
        has_room = rows.level <= depth - 2 * most
        job = decided.slice.job
        tag_bytes = Mux(job.tagged, VLAN_TAG_BYTES, 0)
        m.d.sync += room.eq(has_room)
        m.d.comb += [
            rows_of.eq((job.inline_bytes + self.config.host_bytes - 1) >> lane_bits),
            # the tag makes a row more if it does not fit the last one
            overflows.eq(job.tagged & ((job.inline_bytes - 1)[:lane_bits] >= self.config.host_bytes - VLAN_TAG_BYTES)),
            last_left.eq((last_row & ~overflows) | flushes),
            free.eq(~self.slice.valid | self.slice.ready),
        ]
        with m.If(self.slice.ready):
            m.d.sync += self.slice.valid.eq(0)
        with m.FSM(name="slices"):
            with m.State("BEGIN"):
                m.d.comb += [
                    begins.eq(self.i.valid & free & (room | ~decided.template)), moves.eq(begins),
                    self.read_row.eq(begins & decided.template), self.row_at.eq(Cat(channel, decided.first_row)),
                    last_row.eq(rows_of == 1), self.i.ready.eq(begins & (last_left | ~decided.template)),
                ]
                with m.If(begins):
                    m.d.sync += [
                        self.slice.valid.eq(1), self.slice.payload.eq(decided.slice),
                        *(self.slice.payload.job[name].eq(job[name] + tag_bytes)
                          for name in ("inline_bytes", "l3_offset", "l4_offset", "checksum_offset")),
                        at.eq(decided.first_row + 1), rows_left.eq(rows_of - 1),
                    ]
                    with m.If(decided.template & ~last_row):
                        m.next = "ROWS"
                    with m.Elif(decided.template & overflows):
                        m.next = "FLUSH"
            with m.State("ROWS"):
                m.d.comb += [
                    moves.eq(1), self.read_row.eq(1), self.row_at.eq(Cat(channel, at)), last_row.eq(rows_left == 1),
                    self.i.ready.eq(last_left),
                ]
                m.d.sync += [at.eq(at + 1), rows_left.eq(rows_left - 1)]
                with m.If(last_row & overflows):
                    m.next = "FLUSH"
                with m.Elif(last_row):
                    m.next = "BEGIN"
            with m.State("FLUSH"):
                m.d.comb += [moves.eq(1), flushes.eq(1), self.i.ready.eq(1)]
                m.next = "BEGIN"

        # What was read arrives a cycle later.
        arriving = Signal(data.StructLayout({"first": 1, "last": 1, "tagged": 1, "flush": 1, "vlan_tci": 16}))
        arrives, carry = Signal(), Signal(8 * VLAN_TAG_BYTES)
        m.d.sync += arrives.eq(self.read_row | flushes)
        with m.If(self.read_row | flushes):
            m.d.sync += [
                arriving.first.eq(begins), arriving.last.eq(last_left), arriving.tagged.eq(job.tagged),
                arriving.flush.eq(flushes), arriving.vlan_tci.eq(job.vlan_tci),
            ]
        # a tag's words go out with their upper half first
        tag = Cat(Const(EtherType.VLAN >> 8, 8), Const(EtherType.VLAN & 0xFF, 8),
                  arriving.vlan_tci[8:], arriving.vlan_tci[:8])
        stays = 8 * (self.config.host_bytes - VLAN_TAG_BYTES)
        put = rows.i.payload
        m.d.comb += [rows.i.valid.eq(arrives), put.last.eq(arriving.last), put.data.eq(self.row_data)]
        with m.If(arriving.tagged):
            m.d.comb += put.data.eq(Cat(carry, self.row_data[:stays]))
            with m.If(arriving.first):
                addresses = 8 * MAC_ADDRESSES_BYTES
                m.d.comb += put.data.eq(Cat(self.row_data[:addresses], tag, self.row_data[addresses:stays]))
            with m.If(arrives):
                m.d.sync += carry.eq(self.row_data[stays:])

        m.d.comb += self.active.eq(
            moves | arrives | rows.active | (room ^ has_room) | (self.slice.valid & self.slice.ready))
        return m


class TransmitScheduler(wiring.Component):
    """Keeps what the channels want to send, and lets it go frame by frame.

    Enters: jobs, their pieces and inline rows. Leaves: for each frame a slice, the read commands for its payload, and
    before a job's first frame the rows of its template; the submission slots of each job, when nothing of it is stored
    any more. Of a socket operation, which a device with a control port has, leaves an OP message, and nothing else.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    write : register writes (TX_WEIGHT, TX_BYTE_TIME, TX_BURST).
    running : a bit for each channel.
    job, stored_row, stored_piece : strobes, what is to be sent.
    freed : strobe.
    payload_cmd, slice, inline : what leaves.
    begun, dropped : strobes, from the transmit back; see `FrameScheduler`.
    operation, count_control_ops : of a device with a control port: OPs, beats of messages; count strobe.
    clearing : of a device with a control port: something is queued on a channel that has stopped, or a socket operation
        that was decided still has its slots.
    now, next_deadline, deadline_valid : see `TokenBuckets`.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "write": In(Strobe(RegisterWrite)), "running": In(config.channels),
            "job": In(Strobe(TxJob)), "stored_row": In(Strobe(tx_row(config))), "stored_piece": In(Strobe(TxPiece)),
            "freed": Out(Strobe(FreedSlots)),
            "payload_cmd": Out(stream.Signature(ReadCommand)), "slice": Out(stream.Signature(TxSlice)),
            "inline": Out(stream.Signature(row(config))),
            "begun": In(Strobe(CountAmount)), "dropped": In(Strobe(CountAmount)),
            "now": In(TIME_BITS), "next_deadline": Out(TIME_BITS), "deadline_valid": Out(1),
            "active": Out(1),
            **({"operation": Out(stream.Signature(message_beat(config))), "clearing": Out(1),
                "count_control_ops": Out(Strobe(CountAmount))} if config.flows else {}),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.buckets = buckets = TokenBuckets(self.config)
        m.submodules.queues = queues = TxQueues(self.config)
        m.submodules.frames = frames = FrameScheduler(self.config)
        m.submodules.walker = walker = PieceWalker(self.config)
        m.submodules.slices = slices = SliceIssue(self.config)

        for block in (frames, buckets):
            connect(m, flipped(self.write), block.write)
        connect(m, frames.sent, buckets.sent)
        for name in ("begun", "dropped"):
            connect(m, flipped(getattr(self, name)), getattr(frames, name))
        m.d.comb += [
            frames.held.eq(buckets.held), frames.limited.eq(buckets.limited), buckets.now.eq(self.now),
            self.next_deadline.eq(buckets.next_deadline), self.deadline_valid.eq(buckets.deadline_valid),
        ]
        for name in ("job", "stored_row", "stored_piece"):
            connect(m, flipped(getattr(self, name)), getattr(queues, name))
        m.d.comb += [
            frames.running.eq(self.running), frames.arrived.eq(queues.arrived),
            frames.arrived_channel.eq(queues.arrived_channel), frames.arriving_job.eq(self.job.payload),
        ]
        decided = frames.decision
        is_frame, blocks = decided.valid, [buckets, queues, frames, walker, slices]
        if self.config.flows:
            m.submodules.operations = operations = SocketOperations(self.config)
            blocks.append(operations)
            is_frame = self._take_operations(m, frames, operations)
        for block, what in ((frames, "job"), (walker, "piece"), (slices, "row")):
            read, at = getattr(block, f"read_{what}"), getattr(block, f"{what}_at")
            if self.config.flows and what != "job":
                other = getattr(operations, f"read_{what}")
                read, at = read | other, Mux(decided.payload.operation, getattr(operations, f"{what}_at"), at)
                m.d.comb += getattr(operations, f"{what}_data").eq(getattr(queues, f"{what}_data"))
            m.d.comb += [
                getattr(queues, f"read_{what}").eq(read),
                getattr(queues, f"{what}_at").eq(at),
                getattr(block, f"{what}_data").eq(getattr(queues, f"{what}_data")),
            ]

        # Each decision goes to both, and leaves when both are done with it; with a job's last one its storage is free.
        dones = []
        for block in (walker, slices):
            done = Signal()
            dones.append(done | block.i.ready)
            m.d.comb += [block.i.payload.eq(decided.payload), block.i.valid.eq(is_frame & ~done)]
            with m.If(is_frame):
                m.d.sync += done.eq(~decided.ready & (done | block.i.ready))
        freed, slice_ = self.freed, decided.payload.slice
        taken = dones[0] & dones[1]
        if self.config.flows:
            taken |= frames.operation_taken  # of which neither sees anything
        m.d.comb += decided.ready.eq(taken)
        m.d.sync += freed.valid.eq(decided.valid & decided.ready & slice_.last)
        with m.If(decided.valid & decided.ready):
            m.d.sync += [freed.payload.channel.eq(slice_.job.channel), freed.payload.slots.eq(slice_.job.slots)]

        connect(m, walker.cmd, flipped(self.payload_cmd))
        connect(m, slices.slice, flipped(self.slice))
        connect(m, slices.inline, flipped(self.inline))
        m.d.comb += self.active.eq(Cat(block.active for block in blocks).any() | self.freed.valid)
        return m

    def _take_operations(self, m, frames, operations):
        """Let socket operations go to who makes messages of them. One that is discarded goes no further. Returns: what
        is decided is a frame."""
        decided, slice_ = frames.decision, frames.decision.payload.slice
        comes = decided.valid & decided.payload.operation
        m.d.comb += [
            operations.i.valid.eq(comes & ~slice_.discarded),
            frames.operation_taken.eq(comes & (operations.i.ready | slice_.discarded)),
            operations.i.payload.job.eq(slice_.job),
            operations.i.payload.first_piece.eq(decided.payload.first_piece),
            operations.i.payload.first_row.eq(decided.payload.first_row),
            operations.now.eq(self.now), frames.operation_left.eq(operations.left), self.clearing.eq(frames.clearing),
        ]
        connect(m, operations.o, flipped(self.operation))
        connect(m, operations.count_control_ops, flipped(self.count_control_ops))
        return decided.valid & ~decided.payload.operation
