"""Completions: what has finished becomes an entry in its channel's completion ring."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from nic_model.contract import (
    COMPLETION,
    COMPLETION_BYTES,
    LARGEST_CQ_LOG2,
    RING_ALIGNMENT_BYTES,
    ChannelError,
    CompletionKind,
    NicConfig,
    Status,
)
from nic_model.contract.sockets import SOCKET_COMPLETION
from rtl.addresses import channel_of, is_channel_register
from rtl.interfaces import (
    CHANNEL_BITS,
    INDEX_BITS,
    LENGTH_BITS,
    TIME_BITS,
    ChannelFault,
    ChannelNumber,
    CountAmount,
    IndexReport,
    RegisterWrite,
    Retired,
    RxDone,
    SocketDone,
    SocketTaken,
    Strobe,
    TxDone,
    WriteCommand,
    WriteDone,
    contract_view,
    row,
)
from rtl.primitives import OrderedDrain, SmallRam, StreamArbiter, StreamFifo

TOKENS_IN_FLIGHT = 128
"""Tokens between the completion's write and its response, which may be a hundred cycles later; also how many may wait
for the events."""

BATCH_BYTES = 128
"""Entries that are written by one command lie in one such part of the ring, aligned to it: half of what the write
engine buffers at the narrowest bus, so that one batch goes out while the next comes. No ring is smaller."""

RING_ALIGN_BITS = exact_log2(RING_ALIGNMENT_BYTES)
LOG2_BITS = LARGEST_CQ_LOG2.bit_length()
# One bit more than the index that software sees, since the largest ring (2^16 entries) has its phase there.
POSITION_BITS = INDEX_BITS + 1

_SHARED = tuple(name for name, field in COMPLETION.fields.items()
                if field.offset >= SOCKET_COMPLETION.fields["result"].offset and name not in ("more", "phase"))
"""Fields of COMPLETION where SOCKET_COMPLETION has its result, its ports and its socket."""


def token_layout(config: NicConfig) -> data.StructLayout:
    """TxDone and RxDone in one shape. `writes`: a completion is due if the channel runs. On a device with a control
    port SocketDone too: it has its bits where these have theirs, `socket` marks it, and as an event it is a receive."""
    fields = {
        "receive": 1, "channel": CHANNEL_BITS, "writes": 1, "status": 8, "tag": 16, "length": LENGTH_BITS,
        "ring_index": INDEX_BITS, "info": 16, "checksum": 16, "timestamp": TIME_BITS, "segments": 16,
        "mss": 14, "more": 8, "further": 1, "epoch": 1,
    }
    if config.flows:
        fields |= {name: COMPLETION.fields[name].width for name in ("length", *_SHARED)} | {"socket": 1}
    return data.StructLayout(fields)


def pending_layout(config: NicConfig) -> data.StructLayout:
    """What must be known of a token when its write is answered; `ends`: no further token's entry is in the same
    write."""
    return data.StructLayout({
        "receive": 1, "channel": CHANNEL_BITS, "index": INDEX_BITS, "writes": 1, "ends": 1, "epoch": 1,
        **({"socket": 1} if config.flows else {}),
    })


class Completion(wiring.Component):
    """Writes completions, and says when the bus has answered them.

    Enters: `tx` and `rx`, one token for each send and each received frame that has finished. A send that was discarded
    is not completed and not counted. Leaves: for a token that
    is to be completed, on a channel that runs, a 32-byte write to the channel's completion ring; after the
    bus's response `index`, then `retired`; `tx_retired` or `rx_retired` for every token, in the order in which the
    tokens were taken, and not before `retired` (if the token has one) has been taken. A write that fails gives
    `fault` and neither `index` nor `retired`.
    An entry is written together with the one before it if that is its neighbour in the ring and this one came close
    behind, or while that one waited for the write engine; a write that fails fails for all its entries, with one
    `fault`.
    Latency from a token to its write command 5 cycles, and as many more as entries follow at once in the same write;
    throughput one completion in 2 cycles (one with a bus of 32 bytes or more), 128 in flight.

    On a device with a control port completions of socket operations enter too, by `socket`, and take their turn with
    the others. As an event one is a receive.

    Parameters
    ----------
    config : NicConfig

    Members
    -------
    write, start, running : registers (CQ_BASE, CQ_LOG2), channel enabled, which channels run.
    tx, rx : finished sends and received frames.
    write_cmd, write_row, write_done : client of the DMA write engine.
    socket, socket_taken : on a device with a control port: finished socket operations; strobe of SocketTaken for each,
        when it has its place in the ring or is found to have none. The write is certain then, its success is not.
    drain_request, drain_done : on a device with a control port: all of these that were taken before the request and are
        written have been retired.
    retired : completions that the bus has answered, for the events.
    tx_retired, rx_retired : one cycle for each token; tx_retired_epoch : that of the send.
    fault : channels whose completion could not be written.
    index : CQ_INDEX, after the bus response.
    count_completions, count_tx_sends, count_tx_errors : strobes for the counters.
    error : a completion that says anything but OK begins its way; for who watches, nothing depends on it.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "write": In(Strobe(RegisterWrite)), "start": In(Strobe(ChannelNumber)), "running": In(config.channels),
            "tx": In(stream.Signature(TxDone)), "rx": In(stream.Signature(RxDone)),
            "write_cmd": Out(stream.Signature(WriteCommand)), "write_row": Out(stream.Signature(row(config))),
            "write_done": In(stream.Signature(WriteDone)),
            "retired": Out(stream.Signature(Retired)), "tx_retired": Out(1), "tx_retired_epoch": Out(1),
            "rx_retired": Out(1),
            "fault": Out(stream.Signature(ChannelFault)), "index": Out(Strobe(IndexReport)),
            "count_completions": Out(Strobe(CountAmount)), "count_tx_sends": Out(Strobe(CountAmount)),
            "count_tx_errors": Out(Strobe(CountAmount)), "error": Out(1), "active": Out(1),
            **({"socket": In(stream.Signature(SocketDone)), "socket_taken": Out(Strobe(SocketTaken)),
                "drain_request": In(1), "drain_done": Out(1)} if config.flows else {}),
        })

    def elaborate(self, platform):
        m = Module()
        shape, pending = token_layout(self.config), pending_layout(self.config)
        m.submodules.arbiter = arbiter = StreamArbiter(shape=shape, count=3 if self.config.flows else 2)
        m.submodules.in_flight = in_flight = StreamFifo(shape=pending, depth=TOKENS_IN_FLIGHT)
        m.submodules.answered = answered = StreamFifo(shape=pending, depth=TOKENS_IN_FLIGHT)
        self._take_tokens(m, arbiter)
        working = self._write_completions(m, arbiter.o, in_flight.i)
        retiring = self._retire(m, in_flight.o, answered)
        if self.config.flows:
            # All tokens end in the order in which they came.
            m.submodules.drain = drain = OrderedDrain(most=4 * TOKENS_IN_FLIGHT)
            m.d.comb += [
                drain.begins.eq(self.socket_taken.valid), drain.request.eq(self.drain_request),
                drain.ends.eq(answered.o.valid & answered.o.ready & answered.o.payload.socket),
                self.drain_done.eq(drain.done),
            ]
            retiring |= drain.active
        m.d.comb += self.error.eq(arbiter.o.valid & arbiter.o.ready & (arbiter.o.payload.status != Status.OK))
        m.d.comb += self.active.eq(
            arbiter.active | in_flight.active | answered.active | working | retiring | self.write.valid)
        return m

    def _take_tokens(self, m, arbiter):
        """Join sends and receives, and count the sends. Completions of one receive are not parted by a send's."""
        tx, rx = self.tx.payload, self.rx.payload
        as_tx, as_rx = arbiter.i[0].payload, arbiter.i[1].payload
        for token, done in ((as_tx, tx), (as_rx, rx)):
            m.d.comb += [getattr(token, name).eq(getattr(done, name))
                         for name in ("channel", "status", "ring_index", "length", "segments", "timestamp")]
        taken, inside = Signal(), Signal()
        with m.If(self.rx.valid & self.rx.ready):
            m.d.sync += inside.eq(~rx.last)
        m.d.comb += [
            arbiter.i[0].valid.eq(self.tx.valid & ~inside), self.tx.ready.eq(arbiter.i[0].ready & ~inside),
            arbiter.i[1].valid.eq(self.rx.valid), self.rx.ready.eq(arbiter.i[1].ready),
            as_tx.tag.eq(tx.tag), as_tx.epoch.eq(tx.epoch),
            as_tx.writes.eq((tx.complete | (tx.status != Status.OK)) & ~tx.discarded),
            as_rx.receive.eq(1), as_rx.tag.eq(rx.buffer_id), as_rx.info.eq(rx.info), as_rx.writes.eq(1),
            as_rx.checksum.eq(rx.checksum),
            as_rx.mss.eq(rx.mss), as_rx.more.eq(rx.more), as_rx.further.eq(rx.further),
            taken.eq(self.tx.valid & self.tx.ready & ~tx.discarded),
            self.count_tx_sends.valid.eq(taken & (tx.status == Status.OK)), self.count_tx_sends.payload.amount.eq(1),
            self.count_tx_errors.valid.eq(taken & (tx.status != Status.OK)), self.count_tx_errors.payload.amount.eq(1),
        ]
        if self.config.flows:
            done, token = self.socket.payload, arbiter.i[2].payload
            entry = contract_view(SOCKET_COMPLETION)(Signal(8 * COMPLETION_BYTES, name="socket_entry"))
            m.d.comb += [
                arbiter.i[2].valid.eq(self.socket.valid & ~inside), self.socket.ready.eq(arbiter.i[2].ready & ~inside),
                *(token[name].eq(done[name]) for name in ("channel", "status", "tag", "length")),
                token.receive.eq(1), token.socket.eq(1), token.writes.eq(1),
                *(entry[name].eq(done[name]) for name in ("result", "remote_port", "local_port", "socket")),
            ]
            for name in _SHARED:
                field = COMPLETION.fields[name]
                m.d.comb += token[name].eq(entry.as_value()[field.offset:field.offset + field.width])

    def _write_completions(self, m, tokens, in_flight):
        """Pipeline from token to write: look up the ring, find the place, add the address, offer. Returns a Value
        that is 1 while a stage moves."""
        channels = self.config.channels
        width = self.config.host_bytes
        channel = tokens.payload.channel[:ceil_log2(channels)]

        # Ring registers by channel, and where each ring stands.
        rings = {}
        written = self.write.payload
        for name, bits in (("CQ_BASE_LO", 32), ("CQ_BASE_HI", 32), ("CQ_LOG2", LOG2_BITS)):
            m.submodules[name.lower()] = rings[name] = table = SmallRam(shape=bits, depth=channels)
            m.d.comb += [
                table.write_en.eq(self.write.valid & is_channel_register(self.config, written.address, name)),
                table.write_addr.eq(channel_of(self.config, written.address)),
                table.write_data.eq(written.data), table.read_addr.eq(channel),
            ]
        m.submodules.positions = positions = SmallRam(shape=POSITION_BITS, depth=channels)

        # Stage 1: the channel's ring.
        found, placed, addressed = (Signal(name=n) for n in ("found", "placed", "addressed"))
        enter, place, address = (Signal(name=n) for n in ("enter", "place", "address"))
        sent = Signal()
        writes = Signal()
        found_token, found_log2 = Signal(tokens.payload.shape()), Signal(LOG2_BITS)
        found_base, found_position = Signal(64 - RING_ALIGN_BITS), Signal(POSITION_BITS)
        m.d.comb += [
            # A channel that starts takes the table's port.
            tokens.ready.eq((~found | place) & ~self.start.valid), enter.eq(tokens.valid & tokens.ready),
            writes.eq(tokens.payload.writes & self.running.bit_select(channel, 1)),
            positions.read_addr.eq(channel),
            positions.write_en.eq(self.start.valid | (enter & writes)),
            positions.write_addr.eq(Mux(self.start.valid, self.start.payload.channel, channel)),
            positions.write_data.eq(Mux(self.start.valid, 0, positions.read_data + 1)),
        ]
        with m.If(enter):
            m.d.sync += [
                found.eq(1), found_token.eq(tokens.payload), found_token.writes.eq(writes),
                found_base.eq(Cat(rings["CQ_BASE_LO"].read_data, rings["CQ_BASE_HI"].read_data)[RING_ALIGN_BITS:]),
                found_log2.eq(rings["CQ_LOG2"].read_data), found_position.eq(positions.read_data),
            ]
        with m.Elif(place):
            m.d.sync += found.eq(0)

        # Stage 2: the entry's offset in the ring, and the phase of this lap.
        entry_bits = ceil_log2(COMPLETION_BYTES)
        placed_token, placed_base = Signal(tokens.payload.shape()), Signal.like(found_base, name="placed_base")
        offset = Signal(INDEX_BITS + entry_bits)
        position, phase = Signal(INDEX_BITS), Signal()
        size = Signal(POSITION_BITS)
        m.d.comb += [size.eq(Const(1, 1) << found_log2), place.eq(found & (~placed | address))]
        with m.If(place):
            m.d.sync += [
                placed.eq(1), placed_token.eq(found_token), placed_base.eq(found_base), position.eq(found_position + 1),
                offset.eq((found_position & (size - 1)) << entry_bits), phase.eq((found_position & size) == 0),
            ]
        with m.Elif(address):
            m.d.sync += placed.eq(0)

        # Stage 3: the lower half of the address.
        low_bits = 32 - RING_ALIGN_BITS
        addressed_token, addressed_phase, addressed_index = (
            Signal(tokens.payload.shape()), Signal(), Signal(INDEX_BITS))
        address_low, address_inner = Signal(low_bits + 1), Signal(RING_ALIGN_BITS)
        address_high = Signal(32)
        m.d.comb += address.eq(placed & (~addressed | sent))
        with m.If(address):
            m.d.sync += [
                addressed.eq(1), addressed_token.eq(placed_token), addressed_phase.eq(phase),
                addressed_index.eq(position), address_inner.eq(offset),
                address_low.eq(placed_base[:low_bits] + offset[RING_ALIGN_BITS:]),
                address_high.eq(placed_base[low_bits:]),
            ]
        with m.Elif(sent):
            m.d.sync += addressed.eq(0)

        # Stage 4: command, rows and token, each taken when its receiver is ready. The command is given with the last
        # entry of a batch. `joins`: the next token, which is in stage 2 and so follows in the next cycle, has its entry
        # behind this one's, in the same part of the ring (a channel that started anew begins at the first).
        free, offer, joins, joined = Signal(), Signal(), Signal(), Signal()
        rows = max(1, COMPLETION_BYTES // width)
        places = max(1, width // COMPLETION_BYTES)
        entry = Signal(8 * COMPLETION_BYTES)
        rest = Signal(8 * max(width, COMPLETION_BYTES))
        rows_left, rest_ends = Signal(range(rows + 1)), Signal()
        completes_row = Signal()
        cmd, write_row = self.write_cmd, self.write_row
        row_leaves = Signal()
        fields = {
            "kind": Mux(addressed_token.further, CompletionKind.RECEIVE_MORE,
                        Mux(addressed_token.receive, CompletionKind.RECEIVE, CompletionKind.SEND)),
            "mss": addressed_token.mss, "more": addressed_token.more,
            "status": addressed_token.status, "tag": addressed_token.tag, "length": addressed_token.length,
            "ring_index": addressed_token.ring_index, "info": addressed_token.info,
            "checksum": addressed_token.checksum, "timestamp": addressed_token.timestamp,
            "segments": addressed_token.segments, "phase": addressed_phase,
        }
        if self.config.flows:
            fields["kind"] = Mux(addressed_token.socket, CompletionKind.SOCKET, fields["kind"])
            fields["offset"] = addressed_token.offset
            m.d.comb += in_flight.payload.socket.eq(addressed_token.socket)
            m.d.sync += self.socket_taken.valid.eq(enter & tokens.payload.socket)
            with m.If(enter):
                m.d.sync += self.socket_taken.payload.written.eq(writes)
        for name, value in fields.items():
            field = COMPLETION.fields[name]
            m.d.comb += entry[field.offset:field.offset + field.width].eq(value)
        m.d.comb += [
            row_leaves.eq(write_row.valid & write_row.ready),
            joins.eq(placed & placed_token.writes & addressed_token.writes
                     & (placed_token.channel == addressed_token.channel)
                     & offset[entry_bits:exact_log2(BATCH_BYTES)].any()),
            free.eq((joined | ~cmd.valid | cmd.ready) & (~write_row.valid | (write_row.ready & (rows_left == 1)))),
            in_flight.valid.eq(addressed & (free | ~addressed_token.writes)),
            sent.eq(in_flight.valid & in_flight.ready), offer.eq(sent & addressed_token.writes),
            in_flight.payload.receive.eq(addressed_token.receive),
            in_flight.payload.channel.eq(addressed_token.channel),
            in_flight.payload.index.eq(addressed_index), in_flight.payload.writes.eq(addressed_token.writes),
            in_flight.payload.ends.eq(~joins), in_flight.payload.epoch.eq(addressed_token.epoch),
            write_row.payload.data.eq(rest), write_row.payload.last.eq(rest_ends & (rows_left == 1)),
            write_row.valid.eq(rows_left != 0),
        ]
        if places == 1:
            m.d.comb += completes_row.eq(1)
        else:
            m.d.comb += completes_row.eq(~joins | address_inner[entry_bits:exact_log2(width)].all())
        with m.If(offer):
            m.d.sync += [
                cmd.valid.eq(~joins), joined.eq(joins), rest_ends.eq(~joins),
                cmd.payload.length.eq(Mux(joined, cmd.payload.length, 0) + COMPLETION_BYTES),
                rows_left.eq(Mux(completes_row, rows, 0)),
            ]
            with m.If(~joined):
                m.d.sync += cmd.payload.address.eq(
                    Cat(address_inner, address_low[:low_bits], address_high + address_low[-1]))
            # A row wider than the entry holds it in its own place and in those behind, until the next one comes; the
            # command says which ones count.
            for number in range(places):
                with m.If(~joined | (address_inner[entry_bits:] % places <= number)):
                    m.d.sync += rest.word_select(number, len(entry)).eq(entry)
        with m.Else():
            with m.If(cmd.ready):
                m.d.sync += cmd.valid.eq(0)
            with m.If(row_leaves):
                m.d.sync += [rest.eq(rest >> (8 * width)), rows_left.eq(rows_left - 1)]
        moves = enter | place | address | sent | row_leaves | (cmd.valid & cmd.ready) | self.start.valid
        return moves | self.socket_taken.valid if self.config.flows else moves

    def _retire(self, m, in_flight, answered):
        """Wait for the bus's response, report, and hand on. Returns a Value that is 1 while something moves."""
        pending, written = in_flight.payload, Signal()
        done = self.write_done  # of a batch: it stays until the batch's last token has seen it
        failed, retire, leave = Signal(), Signal(), Signal()
        m.d.comb += [
            written.eq(pending.writes & done.valid), failed.eq(written & done.payload.error),
            # The receiver of answered tokens stays ready until it gets one, so the fault is not withdrawn.
            self.fault.valid.eq(in_flight.valid & failed & pending.ends & answered.i.ready),
            self.fault.payload.channel.eq(pending.channel),
            self.fault.payload.code.eq(ChannelError.COMPLETION_BUS_ERROR),
            answered.i.valid.eq(in_flight.valid & (written | ~pending.writes)
                                 & (~failed | ~pending.ends | self.fault.ready)),
            retire.eq(answered.i.valid & answered.i.ready),
            in_flight.ready.eq(retire), done.ready.eq(retire & pending.writes & pending.ends),
            answered.i.payload.eq(pending), answered.i.payload.writes.eq(written & ~failed),
        ]
        m.d.sync += [
            self.index.valid.eq(retire & written & ~failed),
            self.count_completions.valid.eq(retire & written & ~failed),
        ]
        m.d.comb += self.count_completions.payload.amount.eq(1)
        with m.If(retire):
            m.d.sync += [self.index.payload.channel.eq(pending.channel), self.index.payload.index.eq(pending.index)]

        # A token is retired when the events have it, so that nothing of a channel is left here once it has drained.
        token = answered.o.payload
        m.d.comb += [
            self.retired.valid.eq(answered.o.valid & token.writes), self.retired.payload.channel.eq(token.channel),
            self.retired.payload.receive.eq(token.receive), self.retired.payload.index.eq(token.index),
            answered.o.ready.eq(self.retired.ready | ~token.writes),
            leave.eq(answered.o.valid & answered.o.ready),
            self.tx_retired.eq(leave & ~token.receive),
            self.rx_retired.eq(leave & token.receive & ~token.socket if self.config.flows else leave & token.receive),
            self.tx_retired_epoch.eq(token.epoch),
        ]
        return retire | leave | self.index.valid
