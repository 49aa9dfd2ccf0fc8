"""Receive coalescing: which segments become one receive, by the rules of Linux's generic receive offload."""

# Ref: RFC 9293 §3.1; RFC 791 §3.1; RFC 8200 §3; RFC 3168 §6.1 (CWR); rules of Linux 6.1, see nic_model.coalescing

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from nic_model.contract import MAX_COALESCED_BYTES, NicConfig, OperationMask, RxInfo, register
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV4_TOTAL_LENGTH_OFFSET,
    IPV6_HEADER_BYTES,
    IPV6_PAYLOAD_LENGTH_OFFSET,
    TCP_HEADER_BYTES,
    VLAN_TAG_BYTES,
    TcpFlags,
)
from rtl.addresses import channel_of, is_channel_register
from rtl.interfaces import TIME_BITS, RegisterWrite, Strobe, lane_bits
from rtl.primitives import Ram, SkidBuffer, SmallRam, StreamFifo
from rtl.rx_buffer import HEADER_BYTES, HEADER_ROWS, LENGTH_BITS, offered_frame
from rtl.rx_rings import TaskKind, rx_task

WAYS = 4
"""Tags that are compared in a cycle."""

OPENINGS = 512
"""Aggregates that may have been opened since the oldest that is open; beyond that, the oldest ends."""

_SERIAL_BITS = 10  # tells two openings of one context apart; more numbers than OPENINGS and what is on the way
_ORDER_BITS = 34  # a deadline lies less than 2^33 cycles ahead

_IPV4_IDENTIFICATION_OFFSET = 4
_IPV4_FRAGMENT_OFFSET = 6
_IPV4_CHECKSUM_OFFSET = 10
_IPV4_DF = 0x4000
_TCP_SEQUENCE_OFFSET = 4
_TCP_CONTROL_OFFSET = 12
_TCP_CHECKSUM_OFFSET = 16
_MERGED_FLAGS = TcpFlags.CWR | TcpFlags.PSH | TcpFlags.FIN
_VARIANTS = tuple((tagged, ipv6) for ipv6 in (0, 1) for tagged in (0, 1))
"""Where headers lie, by the value of Cat(tagged, ipv6)."""

# What an open aggregate has, but for its header.
_State = data.StructLayout({
    "sequence": 32, "identification": 16, "segments": 16, "fixed": 1, "mss": LENGTH_BITS, "bytes": 16,
})

# An aggregate that was opened, in order of time.
_Opening = data.StructLayout({"context": 6, "serial": _SERIAL_BITS, "time": TIME_BITS})


def _offsets(variant):
    """Offsets of the IP and the TCP header."""
    tagged, ipv6 = _VARIANTS[variant]
    l3 = ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES * tagged
    return l3, l3 + (IPV6_HEADER_BYTES if ipv6 else IPV4_HEADER_BYTES)


def _fields(variant):
    """Offsets of the 16-bit fields that the rules calculate with; IPv4's have no meaning in IPv6."""
    _, ipv6 = _VARIANTS[variant]
    l3, l4 = _offsets(variant)
    return {
        "ip_length": l3 + (IPV6_PAYLOAD_LENGTH_OFFSET if ipv6 else IPV4_TOTAL_LENGTH_OFFSET),
        "identification": l3 + _IPV4_IDENTIFICATION_OFFSET, "fragment": l3 + _IPV4_FRAGMENT_OFFSET,
        "sequence_high": l4 + _TCP_SEQUENCE_OFFSET, "sequence_low": l4 + _TCP_SEQUENCE_OFFSET + 2,
        "control": l4 + _TCP_CONTROL_OFFSET,
    }


def _compared(variant):
    """Which bits must be equal in all segments of an aggregate, by byte of the frame."""
    _, ipv6 = _VARIANTS[variant]
    l3, l4 = _offsets(variant)
    bits = [0xFF] * HEADER_BYTES
    free = [l3 + IPV6_PAYLOAD_LENGTH_OFFSET] if ipv6 else [
        l3 + IPV4_TOTAL_LENGTH_OFFSET, l3 + _IPV4_IDENTIFICATION_OFFSET, l3 + _IPV4_CHECKSUM_OFFSET]
    free += [l4 + _TCP_SEQUENCE_OFFSET, l4 + _TCP_SEQUENCE_OFFSET + 2, l4 + _TCP_CHECKSUM_OFFSET]
    for offset in free:
        bits[offset:offset + 2] = [0, 0]
    bits[l4 + _TCP_CONTROL_OFFSET + 1] &= 0xFF & ~int(_MERGED_FLAGS)
    return bits


class Coalescer(wiring.Component):
    """Says of each frame whether it is by itself, the first segment of an aggregate, or goes behind one.

    Enters: `frame`, frames in order, and their headers from the receive buffer's memory. Leaves: `task`, in the same
    order, and the ends of aggregates. Nothing is held back: only what is said of a frame takes time.

    A TCP segment whose headers are kept is looked for among the open aggregates by its hash, `WAYS` tags a cycle; then
    its header is compared with that of the aggregate's first segment, a row a cycle. By the result it is appended,
    or the aggregate ends and the segment opens another, or goes by itself. Everything else goes by itself, and ends
    the aggregate with its hash, if there is one: so no segment overtakes those of its flow. A frame that the control
    port passed on ends none: it is late, and what is open is of later ones. The rules stand in `nic_model.coalescing`.

    With 16 contexts and a bus of 16 bytes: a frame that is no TCP 2 cycles, a TCP frame without payload 9, a segment
    that is appended 20, one that opens an aggregate 28. While nothing is open, a frame by itself takes 1.

    An aggregate ends `COALESCE_TICKS` after its first segment came. What belongs to it is a matter of the times at
    which frames came, not of when their turn is here: a segment that came earlier is appended, however long it waited;
    one that came then or later finds it ended. So the same frames always become the same receives. When all contexts
    are taken, the oldest ends.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `coalesce_contexts`, `channels` and `host_bytes` are used.

    Members
    -------
    write : register writes, for COALESCE_TICKS, COALESCE_BYTES and CHANNEL_OPERATIONS.
    frame : frames from the receive buffer.
    header_read, header_row, header_data, header_release : reads a row of the oldest header that is kept, which is there
        one cycle later; says that it is done with it.
    task : what is to be done.
    drain_request, flushed : end all aggregates and open none; none is open, and the end of each was taken.
    now : cycle count.
    clear, clear_time : whether every frame that came before `now` has been offered and taken; every one that came
        before `clear_time` has, unless one is offered. See `rtl.arrivals.Arrivals`.
    next_deadline, deadline_valid : when the oldest aggregate ends by its age.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        rows = HEADER_BYTES // config.host_bytes
        super().__init__({
            "write": In(Strobe(RegisterWrite)),
            "frame": In(stream.Signature(offered_frame(config))),
            "header_read": Out(1), "header_row": Out(exact_log2(HEADER_ROWS)), "header_data": In(8 * config.host_bytes),
            "header_release": Out(1),
            "task": Out(stream.Signature(rx_task(config))),
            "drain_request": In(1), "flushed": Out(1),
            "now": In(TIME_BITS), "clear": In(1), "clear_time": In(TIME_BITS),
            "next_deadline": Out(TIME_BITS), "deadline_valid": Out(1),
            "active": Out(1),
        })
        self._rows = rows

    def elaborate(self, platform):
        m = Module()
        config = self.config
        contexts = config.coalesce_contexts
        # `ready` comes late from the rings, and would enable all that a decision moves: so it ends in this stage.
        m.submodules.tasks = tasks = SkidBuffer(shape=rx_task(config), early=True)
        frame, task = self.frame.payload, tasks.i.payload
        self._pass_on(m, tasks)
        info = frame.info

        def has(flag):
            return info[int(flag).bit_length() - 1]

        # -- registers
        ticks, limit, sets = self._take_registers(m)
        m.submodules.permitted = permitted = SmallRam(shape=1, depth=config.channels)
        written = self.write.payload
        m.d.comb += [
            permitted.write_en.eq(
                self.write.valid & is_channel_register(config, written.address, "CHANNEL_OPERATIONS")),
            permitted.write_addr.eq(channel_of(config, written.address)),
            permitted.write_data.eq((written.data & int(OperationMask.COALESCE)).any()),
            permitted.read_addr.eq(frame.channel),
        ]
        is_on = Signal()
        m.d.comb += is_on.eq((ticks != 0) & ~self.drain_request)

        # -- contexts
        is_open, any_open = Signal(contexts), Signal()
        context, found = Signal(range(contexts)), Signal()
        tags = []
        for way in range(WAYS):
            m.submodules[f"tags_{way}"] = tag = SmallRam(shape=frame.hash.shape(), depth=contexts // WAYS)
            tags.append(tag)
        m.submodules.states = states = SmallRam(shape=_State, depth=contexts)
        m.submodules.headers = headers = Ram(shape=8 * config.host_bytes, depth=contexts * self._rows)
        opens, closes = Signal(), Signal()
        closing = Signal.like(context)
        ends = Signal()  # something that was open
        oldest, is_due, is_known, has_room, ages = self._keep_age(m, is_open, opens, ends, context, ticks)

        # -- the segment's header
        tagged, ipv6 = has(RxInfo.VLAN), has(RxInfo.IPV6)
        variant = Cat(tagged, ipv6)
        starts, copies = Signal(), Signal()
        header = self._read_header(m, headers, context, variant, starts, copies)

        # -- what the rules say
        state, known = Signal(_State), data.View(_State, states.read_data)
        m.d.comb += states.read_addr.eq(context)
        payload, end = Signal(17), Signal(17)
        id_step, total = Signal(16), Signal(17)
        is_next, fits, is_short, is_exact, is_whole, is_unfragmented = (
            Signal(name=n) for n in ("is_next", "fits", "is_short", "is_exact", "is_whole", "is_unfragmented"))
        id_stays, id_counts, has_size = Signal(), Signal(), Signal()
        control = header["control"]
        header_words = control[12:]

        def flag(*flags):
            return Cat(control[int(f).bit_length() - 1] for f in flags).any()

        is_candidate, appends, holds = Signal(), Signal(), Signal()
        m.d.comb += [
            is_candidate.eq(is_exact & is_whole & is_unfragmented),
            appends.eq(found & is_candidate & ~header["differs"] & is_next & fits & has_size & ~flag(TcpFlags.CWR)
                       & (ipv6 | Mux(state.fixed & ((state.segments != 1) | id_stays), id_stays, id_counts))),
            holds.eq(is_candidate & ~flag(TcpFlags.URG, TcpFlags.PSH, TcpFlags.RST, TcpFlags.SYN, TcpFlags.FIN)),
        ]

        free, moves, passes = Signal(), Signal(), Signal()
        emits, kind, keeps_open = Signal(), Signal(TaskKind), Signal()
        emitted_context = Signal.like(context)
        may_hold, search_row = Signal(), Signal(range(contexts // WAYS + 1))
        match, match_row = Signal(WAYS), Signal(range(max(contexts // WAYS, 2)))
        then_hold, then_pass = Signal(), Signal()
        m.d.comb += [
            free.eq(tasks.i.ready),
            may_hold.eq(is_on & frame.header & permitted.read_data),
            emitted_context.eq(context),
        ]
        lowest_free = _first(~is_open)
        flush = ~is_on & any_open

        def take_frame(*, kind_of, stays):
            m.d.comb += [
                moves.eq(1), passes.eq(1), emits.eq(1), kind.eq(kind_of), keeps_open.eq(stays),
            ]
            m.next = "IDLE"

        def end_context(number):
            m.d.sync += closing.eq(number)
            m.next = "CLOSE"

        searching = Signal()
        with m.FSM(name="coalesce_state") as fsm:
            with m.State("IDLE"):
                m.d.sync += [then_hold.eq(0), then_pass.eq(0), found.eq(0), search_row.eq(0), match.eq(0)]
                with m.If(is_due):
                    m.d.comb += moves.eq(1)
                    end_context(oldest)
                with m.Elif(flush):  # the oldest first, as by age; it may have to come to the front yet
                    with m.If(self.deadline_valid):
                        m.d.comb += moves.eq(1)
                        end_context(oldest)
                with m.Elif(self.frame.valid):
                    with m.If(any_open):
                        m.d.comb += moves.eq(1)
                        m.next = "AGE"
                        with m.If(has(RxInfo.TCP) & may_hold):
                            m.next = "SEARCH"
                    with m.Elif(may_hold):
                        m.d.comb += [moves.eq(1), starts.eq(1)]
                        m.next = "COMPARE"
                    with m.Elif(free):
                        take_frame(kind_of=TaskKind.FRAME, stays=0)

            # Whether the oldest has ended for this frame must be known before anything is said of it: of one that
            # cannot be appended, here; of another, in COUNT at the latest.
            with m.State("AGE"):
                with m.If(is_due):
                    m.d.comb += moves.eq(1)
                    end_context(oldest)
                with m.Elif(~is_known):
                    m.d.comb += moves.eq(1)
                with m.Elif(has(RxInfo.TCP) & ~frame.passed if config.flows else has(RxInfo.TCP)):
                    m.d.comb += moves.eq(1)
                    m.next = "SEARCH"
                with m.Elif(free):
                    take_frame(kind_of=TaskKind.FRAME, stays=0)

            # A row of tags is compared in one cycle and looked at in the next.
            with m.State("SEARCH"):
                m.d.comb += [moves.eq(1), searching.eq(1)]
                row_open = Cat(
                    Array(is_open[row * WAYS + way] for row in range(contexts // WAYS))[search_row]
                    for way in range(WAYS))
                m.d.sync += [
                    search_row.eq(search_row + 1), match_row.eq(search_row),
                    match.eq(Cat(tag.read_data == frame.hash for tag in tags) & row_open),
                ]
                with m.If(is_due):
                    end_context(oldest)
                with m.Elif(match.any()):
                    m.d.sync += [found.eq(1), context.eq(Cat(_first(match), match_row))]
                    m.next = "FOUND"
                with m.Elif(search_row == contexts // WAYS):
                    with m.If(may_hold):
                        m.d.comb += starts.eq(1)
                        m.next = "COMPARE"
                    with m.Else():
                        m.next = "PASS"
            with m.State("FOUND"):
                m.d.comb += moves.eq(1)
                with m.If(may_hold):
                    m.d.comb += starts.eq(1)
                    m.next = "COMPARE"
                with m.Else():
                    m.d.sync += then_pass.eq(1)
                    end_context(context)

            with m.State("COMPARE"):
                m.d.comb += moves.eq(1)
                with m.If(is_due):
                    end_context(oldest)
                with m.Elif(header["done"]):
                    m.next = "LENGTHS"
            with m.State("LENGTHS"):
                m.d.comb += moves.eq(1)
                m.d.sync += [
                    state.eq(known),
                    payload.eq(header["ip_length"] - Mux(ipv6, 0, IPV4_HEADER_BYTES) - (header_words << 2)),
                    end.eq(header["ip_length"] + Mux(tagged, ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES,
                                                     ETHERNET_HEADER_BYTES) + Mux(ipv6, IPV6_HEADER_BYTES, 0)),
                ]
                m.next = "MEASURE"
            with m.State("MEASURE"):
                m.d.comb += moves.eq(1)
                m.d.sync += [
                    is_exact.eq(end == frame.length),
                    is_whole.eq((header_words >= TCP_HEADER_BYTES // 4) & ~payload[16] & (payload != 0)),
                    is_unfragmented.eq(ipv6 | ((header["fragment"] & (0xFFFF & ~_IPV4_DF)) == 0)),
                    is_next.eq(Cat(header["sequence_low"], header["sequence_high"]) == state.sequence),
                    fits.eq(payload <= state.mss), is_short.eq(payload < state.mss),
                    id_step.eq(header["identification"] - state.identification),
                    total.eq(state.bytes + payload[:16]),
                ]
                m.next = "COUNT"
            with m.State("COUNT"):
                m.d.comb += moves.eq(1)
                m.d.sync += [
                    id_stays.eq(id_step == 0), id_counts.eq(id_step == state.segments), has_size.eq(total <= limit),
                ]
                with m.If(is_due):
                    end_context(oldest)
                with m.Elif(is_known | ~any_open):
                    m.next = "DECIDE"
            with m.State("DECIDE"):
                with m.If(appends):
                    with m.If(free):
                        take_frame(kind_of=TaskKind.APPEND,
                                   stays=~(is_short | flag(TcpFlags.PSH, TcpFlags.FIN)))
                with m.Else():
                    m.d.comb += moves.eq(1)
                    m.d.sync += [then_hold.eq(holds & is_on), then_pass.eq(~(holds & is_on))]
                    with m.If(found):
                        end_context(context)
                    with m.Elif(holds & is_on):
                        m.next = "ROOM"
                    with m.Else():
                        m.next = "PASS"

            # A context for a new aggregate: the one that ended just now is as good as any.
            with m.State("ROOM"):
                with m.If(~is_open.all() & has_room):
                    m.d.comb += [moves.eq(1), copies.eq(1)]
                    m.d.sync += context.eq(lowest_free)
                    m.next = "COPY"
                with m.Elif(self.deadline_valid):
                    m.d.comb += moves.eq(1)
                    end_context(oldest)
            with m.State("COPY"):
                m.d.comb += moves.eq(1)
                with m.If(header["done"]):
                    m.next = "OPEN"
            with m.State("OPEN"):
                with m.If(free):
                    m.d.comb += opens.eq(1)
                    take_frame(kind_of=TaskKind.FRAME, stays=1)
            with m.State("PASS"):
                with m.If(free):
                    take_frame(kind_of=TaskKind.FRAME, stays=0)

            with m.State("CLOSE"):
                with m.If(free):
                    m.d.comb += [
                        moves.eq(1), closes.eq(1), emits.eq(1), kind.eq(TaskKind.CLOSE), emitted_context.eq(closing)]
                    m.next = "IDLE"
                    with m.If(then_hold):
                        m.next = "ROOM"
                    with m.Elif(then_pass):
                        m.next = "PASS"

        # -- what is said
        m.d.comb += [self.frame.ready.eq(passes), self.header_release.eq(passes & frame.header)]
        merged_info = Cat(Const(0, int(RxInfo.FIXED_ID).bit_length() - 1), ~ipv6 & state.fixed & id_stays,
                          flag(TcpFlags.PSH), flag(TcpFlags.FIN))
        m.d.comb += [
            # in a state that says something, unless it waits; and there something moves if there is room
            tasks.may_enter.eq((fsm.ongoing("IDLE") & self.frame.valid)
                               | Cat(fsm.ongoing(state) for state in ("AGE", "DECIDE", "OPEN", "PASS", "CLOSE")).any()),
            tasks.i.valid.eq(emits), task.kind.eq(kind), task.context.eq(emitted_context),
            task.keeps_open.eq(keeps_open), task.header_bytes.eq(header["end"]), task.payload_bytes.eq(payload),
            *(task.frame[name].eq(frame[name]) for name, _ in task.frame.shape()),
            task.frame.info.eq(info | Mux(passes & (kind == TaskKind.APPEND), merged_info, 0)),
        ]

        # -- what the contexts keep
        after = data.View(_State, states.write_data)
        ip_bytes = header["ip_length"] + Mux(ipv6, IPV6_HEADER_BYTES, 0)
        appended = passes & (kind == TaskKind.APPEND)
        m.d.comb += [
            states.write_addr.eq(context), states.write_en.eq(opens | appended),
            after.sequence.eq(Cat(header["sequence_low"], header["sequence_high"]) + payload[:LENGTH_BITS]),
            after.identification.eq(Mux(opens, header["identification"], state.identification)),
            after.segments.eq(Mux(opens, 1, state.segments + 1)),
            after.fixed.eq(Mux(opens, (header["fragment"] & _IPV4_DF).any(), state.fixed & id_stays)),
            after.mss.eq(Mux(opens, payload, state.mss)), after.bytes.eq(Mux(opens, ip_bytes, total)),
        ]
        for way, tag in enumerate(tags):
            m.d.comb += [
                tag.read_addr.eq(search_row),
                tag.write_en.eq(opens & (context[:exact_log2(WAYS)] == way)),
                tag.write_addr.eq(context[exact_log2(WAYS):]), tag.write_data.eq(frame.hash),
            ]
        m.d.comb += ends.eq(closes | (appended & ~keeps_open))
        with m.If(opens):
            m.d.sync += [is_open.bit_select(context, 1).eq(1), any_open.eq(1)]
        for event, number in ((appended & ~keeps_open, context), (closes, closing)):
            others = Cat(is_open[n] & (number != n) for n in range(contexts)).any()
            with m.If(event):
                m.d.sync += [is_open.bit_select(number, 1).eq(0), any_open.eq(others)]

        # Tasks that say something of an aggregate and have not been taken; behind the last of them all have ended.
        untaken = Signal(range(3))
        taken = self.task.payload
        told = emits & ((kind != TaskKind.FRAME) | keeps_open)
        took = self.task.valid & self.task.ready & ((taken.kind != TaskKind.FRAME) | taken.keeps_open)
        m.d.sync += untaken.eq(untaken + told - took)
        flushes = Signal()
        m.d.comb += flushes.eq(self.drain_request & (
            self.flushed | (fsm.ongoing("IDLE") & ~any_open & (untaken == 0))))
        m.d.sync += self.flushed.eq(flushes)

        m.d.comb += self.active.eq(
            moves | tasks.active | ages | sets | (flushes != self.flushed)
            | (fsm.ongoing("IDLE") & Cat(then_hold, then_pass, found, search_row.any(), match.any()).any()))
        return m

    def _pass_on(self, m, tasks):
        """The tasks, with the channel from a register of its own: the rings look it up at once, and not behind the
        multiplexer of the stage."""
        coming = self.frame.payload.channel
        here, next_here = Signal.like(coming), Signal.like(coming)
        keeps, leave = tasks.may_enter & tasks.i.ready, self.task.valid & self.task.ready
        with m.If(keeps):
            m.d.sync += next_here.eq(coming)
        with m.If(leave & ~tasks.i.ready):
            m.d.sync += here.eq(next_here)
        with m.Elif(keeps & (leave | ~self.task.valid)):
            m.d.sync += here.eq(coming)
        connect(m, tasks.o, flipped(self.task))
        m.d.comb += self.task.payload.frame.channel.eq(here)

    def _take_registers(self, m):
        """Age and size."""
        write = self.write.payload
        ticks, limit = Signal(32), Signal(16, init=MAX_COALESCED_BYTES)
        is_ticks = self.write.valid & (write.address == register("COALESCE_TICKS"))
        is_bytes = self.write.valid & (write.address == register("COALESCE_BYTES"))
        with m.If(is_ticks):
            m.d.sync += ticks.eq(write.data)
        with m.If(is_bytes):
            m.d.sync += limit.eq(Mux(write.data[16:].any(), MAX_COALESCED_BYTES, write.data))
        return ticks, limit, self.write.valid

    def _keep_age(self, m, is_open, opens, ends, context, ticks):
        """The oldest open aggregate; whether its time has come for the frame that is offered, or without one, for all
        that may still come; whether that is known. Aggregates are noted as they open; those that have ended otherwise
        are passed over. What is known of the oldest is a cycle old; so it is not used in the cycle behind an end."""
        m.submodules.openings = openings = StreamFifo(shape=_Opening, depth=OPENINGS)
        m.submodules.serials = serials = SmallRam(shape=_SERIAL_BITS, depth=self.config.coalesce_contexts)
        serial = Signal(_SERIAL_BITS)
        opening, oldest = openings.i.payload, openings.o.payload
        m.d.comb += [
            openings.i.valid.eq(opens), opening.context.eq(context), opening.serial.eq(serial),
            opening.time.eq(self.frame.payload.time),
            serials.write_en.eq(opens), serials.write_addr.eq(context), serials.write_data.eq(serial),
        ]
        with m.If(opens):
            m.d.sync += serial.eq(serial + 1)

        # The sum in two steps.
        number, its_serial = Signal.like(context), Signal(_SERIAL_BITS)
        low, high = Signal(33), Signal(TIME_BITS - 32)
        adds, stands, loads, lives, is_live, has_ended = (
            Signal(name=n) for n in ("adds", "stands", "loads", "lives", "is_live", "has_ended"))
        m.d.comb += [
            loads.eq(openings.o.valid & ~adds & ~stands), openings.o.ready.eq(loads),
            serials.read_addr.eq(number),
            lives.eq(is_open.bit_select(number, 1) & (serials.read_data == its_serial)),
            self.deadline_valid.eq(stands & is_live & ~has_ended),
        ]
        m.d.sync += [adds.eq(loads), is_live.eq(lives), has_ended.eq(ends)]
        with m.If(loads):
            m.d.sync += [
                number.eq(oldest.context), its_serial.eq(oldest.serial), low.eq(oldest.time[:32] + ticks),
                high.eq(oldest.time[32:]),
            ]
        with m.If(adds):
            m.d.sync += [stands.eq(1), self.next_deadline.eq(Cat(low[:32], high + low[32]))]
        with m.Elif(stands & ~is_live):
            m.d.sync += stands.eq(0)
        time, ahead = Signal(_ORDER_BITS), Signal(_ORDER_BITS)
        comes_due, was_due, was_valid = (Signal(name=n) for n in ("comes_due", "was_due", "was_valid"))
        m.d.comb += [
            time.eq(Mux(self.frame.valid, self.frame.payload.time, Mux(self.clear, self.now, self.clear_time))),
            ahead.eq(time - self.next_deadline[:_ORDER_BITS]),
            comes_due.eq(stands & is_live & ~ahead[-1]),
        ]
        m.d.sync += [was_due.eq(comes_due), was_valid.eq(self.deadline_valid)]
        ages = (openings.active | loads | adds | (stands & ~is_live) | (lives != is_live) | ends | has_ended
                | (comes_due != was_due) | (was_valid != self.deadline_valid))
        return (number, was_due & self.deadline_valid, was_valid & self.deadline_valid, openings.i.ready, ages)

    def _read_header(self, m, headers, context, variant, starts, copies):
        """Reads the oldest header row by row, and compares it with the context's, or copies it there.

        Stage 1: both memories' own registers. Stage 2: rows in registers, fields are taken. Stage 3: their difference.
        Stage 4: bytes that differ, and which of them lie in the header, as the data offset tells, which is in stage 3
        together with the row that it stands in. `done` when nothing of the header is left.
        """
        width, lanes = self.config.host_bytes, lane_bits(self.config)
        rows = self._rows
        head = Signal(exact_log2(HEADER_ROWS // rows))  # of the headers that are kept
        with m.If(self.header_release):
            m.d.sync += head.eq(head + 1)

        row = Signal(range(rows + 1))
        reads, copying, compares = Signal(), Signal(), Signal()
        valid = [Signal(name=f"header_valid_{n}") for n in range(1, 5)]
        number = [Signal(range(rows), name=f"header_row_{n}") for n in range(1, 5)]
        done = Signal()
        issues = Signal()
        begins = starts | copies
        with m.If(begins):
            m.d.sync += [row.eq(0), reads.eq(1), copying.eq(copies), compares.eq(starts)]
        with m.Elif(issues):
            m.d.sync += row.eq(row + 1)
        m.d.comb += [
            issues.eq(reads & (row != rows) & ~done),
            self.header_read.eq(issues), self.header_row.eq(Cat(row[:exact_log2(rows)], head)),
            headers.read_en.eq(issues & compares), headers.read_addr.eq(Cat(row[:exact_log2(rows)], context)),
        ]
        for stage, (flag, count) in enumerate(zip(valid, number, strict=True)):
            before = issues if stage == 0 else valid[stage - 1]
            m.d.sync += flag.eq(before & ~done & ~begins)
            with m.If(before):
                m.d.sync += count.eq(row if stage == 0 else number[stage - 1])

        own, other = Signal(8 * width), Signal(8 * width)
        with m.If(valid[0]):
            m.d.sync += [own.eq(self.header_data), other.eq(headers.read_data)]

        # Stage 2 -> 3.
        values = {name: Signal(16, name=name) for name in _fields(0)}
        is_known = Signal()
        with m.If(starts):
            m.d.sync += is_known.eq(0)
        with m.Switch(variant):
            for which in range(len(_VARIANTS)):
                with m.Case(which):
                    for name, offset in _fields(which).items():
                        at = offset % width
                        word = Cat(own.word_select(at + 1, 8), own.word_select(at, 8))
                        with m.If(valid[1] & ~copying & ~begins & (number[1] == offset // width)):
                            m.d.sync += values[name].eq(word)
                            if name == "control":
                                m.d.sync += is_known.eq(1)
        difference = Signal(8 * width)
        with m.If(valid[1]):
            m.d.sync += difference.eq(own ^ other)
        m.d.comb += [
            headers.write_en.eq(valid[1] & copying), headers.write_addr.eq(Cat(number[1], context)),
            headers.write_data.eq(own),
        ]

        # Stage 3 -> 4.
        end = Signal(range(HEADER_BYTES))
        m.d.comb += end.eq(
            Array(_offsets(which)[1] for which in range(len(_VARIANTS)))[variant] + (values["control"][12:] << 2))
        last_row = Signal(range(rows))
        m.d.comb += last_row.eq((end - 1)[lanes:])
        counts = Signal(8 * width)
        with m.Switch(Cat(variant, number[2])):
            for which in range(len(_VARIANTS)):
                bits = _compared(which)
                for at in range(rows):
                    with m.Case(at << 2 | which):
                        m.d.comb += counts.eq(int.from_bytes(bytes(bits[at * width:(at + 1) * width]), "little"))
        unequal, inside = Signal(width), Signal(width)
        with m.If(valid[2]):
            m.d.sync += [
                unequal.eq(Cat((difference & counts).word_select(lane, 8).any() for lane in range(width))),
                inside.eq(Cat(~is_known | (Cat(Const(lane, lanes), number[2]) < end) for lane in range(width))),
            ]

        differs, finishes = Signal(), Signal()
        with m.If(starts):
            m.d.sync += differs.eq(0)
        with m.Elif(valid[3] & compares):
            m.d.sync += differs.eq(differs | (unequal & inside).any())
        m.d.comb += finishes.eq(Mux(
            copying, valid[1] & (number[1] == last_row), is_known & valid[3] & (number[3] >= last_row)))
        m.d.sync += done.eq(finishes & ~done & reads & ~begins)
        with m.If(done & ~begins):  # one that was given up may come to its end as the next begins
            m.d.sync += [reads.eq(0), compares.eq(0)]
        return {**values, "differs": differs, "end": end, "done": done}


def _first(bits):
    """Number of the lowest bit that is set, as a tree."""
    def search(low, width):
        if width == 1:
            return bits[low], None
        half = width // 2
        (has_low, number_low), (has_high, number_high) = search(low, half), search(low + half, half)
        number = ~has_low if number_low is None else Cat(Mux(has_low, number_low, number_high), ~has_low)
        return has_low | has_high, number
    return search(0, len(bits))[1]
