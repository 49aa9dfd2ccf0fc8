"""Socket operations on their way up: which channel's may be made a message next, and the message."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from nic_model.contract import NicConfig
from nic_model.contract.control import CONTROL_VERSION, NO_FLOW, OP, TIME_SHIFT, UNIT_BYTES, ControlType
from nic_model.contract.sockets import SOCKET_PARAMETERS
from rtl.control_messages import beats_of_unit, message_beat
from rtl.descriptor import OPERATION_WORDS, WORD_BITS
from rtl.interfaces import TIME_BITS, CountAmount, Strobe, TxJob, contract_view
from rtl.primitives import number_of, round_robin
from rtl.small_fifo import SmallFifo
from rtl.tx_queues import StoredPiece, piece_index_bits, row_index_bits

Op = contract_view(OP)


def operation(config: NicConfig) -> data.StructLayout:
    """A socket operation that has been decided: its job, and where its words and the rows of its parameters begin."""
    return data.StructLayout({
        "job": TxJob, "first_piece": piece_index_bits(config), "first_row": row_index_bits(config),
    })


class OperationTurns(wiring.Component):
    """Says which channel's socket operation may be decided.

    There is a place for one operation. A channel whose next job is one when there is no place *waits*: it is held, and
    no other channel is. When the place is free again, the next of those that wait has the *turn*, and until it has
    used it no other channel's operation is let through. So each comes to its turn, however many others come.

    Enters: what becomes of operations. Leaves: which channels wait, and which has the turn. A channel has the turn 1
    cycle after the place is free.

    Parameters
    ----------
    channels : int
        Channels of the device.

    Members
    -------
    asks : a bit for the channel whose next job is an operation, or may be; answered in the same cycle by `refused`.
    refused : there is no place, or another channel's turn is it.
    held_back : strobe, a bit for the channel that waits from now on.
    decided : strobe, a bit for the channel whose next job was decided, be it an operation or not.
    taken, left : strobes, the place was given to an operation; it is free again.
    waiting, turn : a bit for each channel.
    active : see `rtl.interfaces`.
    """

    def __init__(self, *, channels: int):
        self.channels = channels
        super().__init__({
            "asks": In(channels), "refused": Out(1), "held_back": In(channels), "decided": In(channels),
            "taken": In(1), "left": In(1), "waiting": Out(channels), "turn": Out(channels), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        is_taken, gives, last, counted = Signal(), Signal(), Signal(exact_log2(self.channels)), Signal()
        chosen = round_robin(m, self.waiting, last)
        m.d.comb += [
            gives.eq(~is_taken & ~self.turn.any() & self.waiting.any()),
            self.refused.eq(is_taken | Mux(self.turn.any(), ~(self.turn & self.asks).any(), self.waiting.any())),
            self.active.eq(gives | counted | self.held_back.any() | self.taken | self.left
                           | (self.decided & (self.turn | self.waiting)).any()),
        ]
        m.d.sync += [
            self.waiting.eq((self.waiting & ~Mux(gives, chosen, 0) & ~self.decided) | self.held_back),
            self.turn.eq((self.turn | Mux(gives, chosen, 0)) & ~self.decided), counted.eq(gives),
        ]
        with m.If(counted & self.turn.any()):
            m.d.sync += last.eq(number_of(self.turn))
        with m.If(self.taken | self.left):
            m.d.sync += is_taken.eq(self.taken)
        self.invariants = [
            ((self.turn & (self.turn - 1)) == 0, "two channels have the turn"),
            ((self.turn & self.waiting) == 0, "a channel that has the turn waits for it"),
            (~(is_taken & self.taken), "the place is given twice"),
        ]
        return m


class SocketOperations(wiring.Component):
    """Makes OP messages.

    Enters: decided operations, one at a time: the next is decided when `left` has said that the place is free again.
    Leaves: OPs. An operation is taken when all that is stored of it has been asked for: after 2 cycles, or as many as
    there are rows of parameters. Then it stands here, and nothing waits for who takes messages.

    Latency 3 cycles to the first beat, a beat a cycle.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device.

    Members
    -------
    i : stream of operations.
    read_piece, piece_at, piece_data, read_row, row_at, row_data : see `rtl.tx_queues.TxQueues`.
    now : the device's cycle count.
    o : beats of messages.
    left : strobe.
    count_control_ops : count strobe.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        self.channel_bits = exact_log2(config.channels)
        self.rows = SOCKET_PARAMETERS.size_bytes // config.host_bytes
        super().__init__({
            "i": In(stream.Signature(operation(config))),
            "read_piece": Out(1), "piece_at": Out(self.channel_bits + piece_index_bits(config)),
            "piece_data": In(StoredPiece),
            "read_row": Out(1), "row_at": Out(self.channel_bits + row_index_bits(config)),
            "row_data": In(8 * config.host_bytes),
            "now": In(TIME_BITS), "o": Out(stream.Signature(message_beat(config))), "left": Out(1),
            "count_control_ops": Out(Strobe(CountAmount)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        job = self.i.payload.job
        channel = job.channel[:self.channel_bits]
        # What is asked for, cycle by cycle: a word in each of the first, and a row, if there are parameters.
        steps = max(OPERATION_WORDS, self.rows)
        step, has_rows, asks, ends, begins = Signal(range(steps)), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            asks.eq(self.i.valid), has_rows.eq(job.inline_bytes != 0), begins.eq(asks & (step == 0)),
            ends.eq(step == Mux(has_rows, steps, OPERATION_WORDS) - 1), self.i.ready.eq(ends),
            self.read_piece.eq(asks & (step < OPERATION_WORDS)), self.read_row.eq(asks & has_rows & (step < self.rows)),
            self.piece_at.eq(Cat(channel, (self.i.payload.first_piece + step)[:piece_index_bits(self.config)])),
            self.row_at.eq(Cat(channel, (self.i.payload.first_row + step)[:row_index_bits(self.config)])),
            self.count_control_ops.valid.eq(begins), self.count_control_ops.payload.amount.eq(1),
        ]
        with m.If(asks):
            m.d.sync += step.eq(Mux(ends, 0, step + 1))

        # It comes a cycle later: the words to registers, the rows, which are the second unit's beats, to a FIFO.
        m.submodules.parameters = parameters = SmallFifo(shape=8 * self.config.host_bytes, depth=max(2, self.rows))
        word_comes, row_comes, last_word = Signal(), Signal(), Signal()
        words = [Signal(WORD_BITS, name=f"word_{n}") for n in range(OPERATION_WORDS)]
        m.d.sync += [
            word_comes.eq(self.read_piece), row_comes.eq(self.read_row), last_word.eq(step == OPERATION_WORDS - 1),
        ]
        m.d.comb += [parameters.i.valid.eq(row_comes), parameters.i.payload.eq(self.row_data)]
        with m.If(word_comes):
            for word, next_word in zip(words, [*words[1:], self.piece_data.address], strict=True):
                m.d.sync += word.eq(next_word)

        # The message.
        names = ("operation", "socket", "job", "socket_flags", "time")
        kept = Signal(data.StructLayout({
            "channel": self.channel_bits, **{name: OP.fields[name].width for name in names}, "further": 1,
        }))
        with m.If(begins):
            m.d.sync += [
                kept.channel.eq(channel), kept.operation.eq(job.l4_offset), kept.socket.eq(job.vlan_tci),
                kept.job.eq(job.tag), kept.socket_flags.eq(job.checksum_offset), kept.time.eq(self.now[TIME_SHIFT:]),
                kept.further.eq(has_rows),
            ]
        unit, at_words = Signal(8 * UNIT_BYTES), OP.fields["offset"].offset
        message = Op(unit)
        m.d.comb += [
            message.type.eq(ControlType.OP), message.version.eq(CONTROL_VERSION), message.units.eq(1 + kept.further),
            message.flow.eq(NO_FLOW),
            *(message[name].eq(kept[name]) for name in ("channel", *names)),
            unit[at_words:at_words + WORD_BITS * OPERATION_WORDS].eq(Cat(words)),
        ]

        # Its beats.
        beats, width = beats_of_unit(self.config), 8 * self.config.host_bytes
        whole, place, in_second = Signal(), Signal(range(max(beats, 2))), Signal()
        leaves, ends_unit = Signal(), Signal()
        m.d.comb += [
            self.o.valid.eq(whole & (~in_second | parameters.o.valid)), leaves.eq(self.o.valid & self.o.ready),
            ends_unit.eq(place == beats - 1),
            self.o.payload.last.eq(ends_unit & (in_second | ~kept.further)),
            self.o.payload.data.eq(Mux(
                in_second, parameters.o.payload, Array(unit.word_select(n, width) for n in range(beats))[place])),
            parameters.o.ready.eq(in_second & leaves), self.left.eq(leaves & self.o.payload.last),
        ]
        with m.If(leaves):
            m.d.sync += place.eq(Mux(ends_unit, 0, place + 1))
            with m.If(ends_unit):
                m.d.sync += in_second.eq(~self.o.payload.last)
        with m.If(word_comes & last_word):
            m.d.sync += whole.eq(1)
        with m.Elif(self.left):
            m.d.sync += whole.eq(0)
        self.invariants = [(~(begins & whole), "an operation is decided and has no place")]
        m.d.comb += self.active.eq(asks | word_comes | row_comes | leaves | parameters.active)
        return m
