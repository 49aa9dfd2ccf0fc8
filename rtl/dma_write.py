# amaranth: UnusedElaboratable=no
"""Writes to host memory: two or three clients, bursts whose rows are at hand, one AXI4 write master."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2

from nic_model.contract import NicConfig
from rtl.bursts import OFFSET_BITS, Burst, BurstCutter, BurstRing
from rtl.interfaces import BURST, AxiWriteMaster, Strobe, WriteCommand, WriteDone, lane_bits, row
from rtl.primitives import SkidBuffer, SmallRam, StreamFifo, round_robin

RECEIVE_WRITES = 32
"""Bursts in flight of received frames."""

RECEIVE_BURSTS_BUFFERED = 4
"""Full bursts of received rows that wait for the bus: one being written, the others so that the next is whole."""

COMPLETION_ROWS_BUFFERED = 16


def completion_writes(config: NicConfig) -> int:
    """Bursts in flight of completions. A frame sent and one received need two, if they are of different rings, and an
    answer may take 100 cycles and more: so 32 last for frames in 7 cycles, 64 for frames in 4, as come from the widest
    MAC."""
    return 64 if config.host_bytes == 64 else 32


class DmaWriteClient(wiring.Component):
    """One client's half of the write engine: commands and rows to whole bursts, bus responses to `done`.

    Enters: `cmd`, commands; `row`, their rows; `answered`, responses to the client's bursts in any order; `clear`,
    instead of a response: forget the slot of `answered` (after a reset); `clearing`, meanwhile: no slot's response
    counts. Leaves: `request`, a burst whose rows are in the block (all of them, or the first if `streams`) and whose
    response has a slot, taken by `grant` in the same cycle; `ready_row`, the rows of all bursts in order; `done`, one
    for each command, in order, 3 cycles after its last response at the earliest. Throughput one row a cycle, one burst
    in 2 cycles, one `done` in 2 cycles.

    Parameters
    ----------
    config : NicConfig
    slots : int
        Bursts in flight.
    rows : int
        Rows buffered, a power of two, at least one burst.
    streams : bool
        The rows of a command come in each cycle once the first is there, so a burst may begin before its last is.
    ahead : bool
        Rows are claimed for a burst while the one before still waits for `grant`: a wait of a cycle costs nothing.
    """

    def __init__(self, *, config: NicConfig, slots: int, rows: int, streams: bool = False, ahead: bool = False):
        if not isinstance(rows, int) or rows * config.host_bytes < BURST:
            raise ValueError(f"rows must be an integer that holds a burst of {BURST} bytes, not {rows!r}")
        self.config, self.slots, self.rows, self.streams, self.ahead = config, slots, rows, streams, ahead
        slot_bits = ceil_log2(slots)
        super().__init__({
            "cmd": In(stream.Signature(WriteCommand)),
            "row": In(stream.Signature(row(config))),
            "done": Out(stream.Signature(WriteDone)),
            "request": Out(1), "grant": In(1), "burst": Out(Burst), "slot": Out(slot_bits),
            "ready_row": Out(stream.Signature(row(config))),
            "answered": In(Strobe(data.StructLayout({"slot": slot_bits, "lap": 1, "error": 1}))), "clear": In(1),
            "clearing": In(1), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        lanes = lane_bits(self.config)
        m.submodules.cutter = cutter = BurstCutter(command=WriteCommand)
        m.submodules.rows = rows = StreamFifo(shape=row(self.config), depth=self.rows)
        m.submodules.ring = ring = BurstRing(slots=self.slots)
        m.submodules.lasts = lasts = SmallRam(shape=1, depth=self.slots)
        connect(m, flipped(self.cmd), cutter.i)
        connect(m, flipped(self.row), rows.i)
        connect(m, rows.o, flipped(self.ready_row))

        # Issue: a burst waits until rows for it have come that no earlier burst has claimed.
        burst = cutter.o.payload
        burst_rows = Signal(range(BURST // self.config.host_bytes + 1))
        unclaimed = Signal(range(-BURST // self.config.host_bytes, self.rows + 3))
        claimed, counts = Signal(), Signal()  # `counts`: in the cycle behind, the rows are taken off
        claim, enter = Signal(), Signal()
        self.invariants = [(~cutter.o.valid | (burst.first <= burst.final), "a burst ends before it begins")]
        if self.ahead:
            # the claimed burst leaves the cutter
            owner = Signal(Burst)
            owner_rows = Signal.like(burst_rows)
            may_claim = ~counts & (~claimed | self.grant)
            m.d.comb += owner_rows.eq(owner.final[lanes:] - owner.first[lanes:] + 1)
            with m.If(claim):
                m.d.sync += owner.eq(burst)
            self.invariants.append((~claimed | (owner.first <= owner.final), "a claimed burst ends before it begins"))
        else:
            owner, owner_rows, may_claim = burst, burst_rows, ~claimed
            self.invariants.append((~claimed | cutter.o.valid, "rows are claimed for no burst"))
        m.d.comb += [
            burst_rows.eq(burst.final[lanes:] - burst.first[lanes:] + 1),
            cutter.o.ready.eq(claim if self.ahead else self.grant), enter.eq(rows.i.valid & rows.i.ready),
            claim.eq(cutter.o.valid & may_claim & (unclaimed >= (1 if self.streams else burst_rows))),
            self.request.eq(claimed & ring.room), self.burst.eq(owner), self.slot.eq(ring.tail),
            ring.allocate.eq(self.grant),
            lasts.write_en.eq(self.grant), lasts.write_addr.eq(ring.tail), lasts.write_data.eq(owner.last),
        ]
        m.d.sync += counts.eq(claim)
        with m.If(enter | counts):
            m.d.sync += unclaimed.eq(unclaimed + enter - Mux(counts, owner_rows, 0))
        with m.If(claim):
            m.d.sync += claimed.eq(1)
        with m.Elif(self.grant):
            m.d.sync += claimed.eq(0)

        # Responses: looked at in ring order; a command is done with the last of its bursts.
        answer = self.answered.payload
        failed = Signal()
        retire, leave = Signal(), Signal()
        m.d.comb += [
            ring.answered.valid.eq(self.answered.valid | self.clear), ring.answered.payload.eq(answer),
            ring.clearing.eq(self.clearing), lasts.read_addr.eq(ring.head),
            leave.eq(self.done.valid & self.done.ready),
            retire.eq(ring.answered_head & (~lasts.read_data | ~self.done.valid)),
            ring.advance.eq(retire), ring.release.eq(retire),
        ]
        with m.If(retire):
            m.d.sync += failed.eq(~lasts.read_data & (failed | ring.error))
        with m.If(retire & lasts.read_data):
            m.d.sync += [self.done.valid.eq(1), self.done.payload.error.eq(failed | ring.error)]
        with m.Elif(leave):
            m.d.sync += self.done.valid.eq(0)

        m.d.comb += self.active.eq(
            cutter.active | rows.active | ring.active | claim | counts | self.grant | retire | leave)
        return m


class DmaWrite(wiring.Component):
    """The write half of the host bus's master.

    Enters: commands of two clients, of any alignment, and their rows; of a third one on a device with a control port,
    which places payload. Leaves: AXI4 bursts, cut at 256-byte
    boundaries, addresses ascending for each client, with exact strobes; `done` for each command, in its client's
    order, when the bus has answered all its bursts. Bursts of the clients take turns; one of completions is begun only
    when its rows are at hand, one of received bytes when its first is, behind which the others come in each cycle: so
    a client without rows does not block another. BREADY is constantly 1: each burst has a slot for its response,
    whose number is its ID.
    Latency from a row that is waited for to its W beat 4 cycles, from a command 6; throughput one W beat a cycle. For
    `2 ** id_bits` cycles after reset the table of slots is cleared and no AW is given.

    Parameters
    ----------
    config : NicConfig

    Members
    -------
    cmd_receive, cmd_completion, cmd_place : commands of the clients.
    row_receive, row_completion, row_place : rows of the commands, in order.
    done_receive, done_completion, done_place : one for each command, `error` if the bus refused any of its bursts.
    axi : write channels; bursts are INCR of full beats, addresses aligned to the bus. W follows the order of AW,
        and may come before it.

    Attributes
    ----------
    id_bits : int
        Width of AWID and BID.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        burst_rows = BURST // config.host_bytes

        def of_received_bytes():
            return DmaWriteClient(config=config, slots=RECEIVE_WRITES, rows=RECEIVE_BURSTS_BUFFERED * burst_rows,
                                  streams=True)

        self.clients = {
            "receive": of_received_bytes(),
            # On the widest bus, two completions of frames in 4 cycles and a burst of received rows between them.
            "completion": DmaWriteClient(config=config, slots=completion_writes(config), rows=COMPLETION_ROWS_BUFFERED,
                                         ahead=config.host_bytes == 64),
            **({"place": of_received_bytes()} if config.flows else {}),
        }
        self.id_bits = ceil_log2(sum(client.slots for client in self.clients.values()))
        members = {"axi": Out(AxiWriteMaster(config, self.id_bits)), "active": Out(1)}
        for name in self.clients:
            members[f"cmd_{name}"] = In(stream.Signature(WriteCommand))
            members[f"row_{name}"] = In(stream.Signature(row(config)))
            members[f"done_{name}"] = Out(stream.Signature(WriteDone))
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        width, lanes = self.config.host_bytes, lane_bits(self.config)
        for name, client in self.clients.items():
            m.submodules[name] = client
            connect(m, flipped(getattr(self, f"cmd_{name}")), client.cmd)
            connect(m, flipped(getattr(self, f"row_{name}")), client.row)
            connect(m, client.done, flipped(getattr(self, f"done_{name}")))
        clients = list(self.clients.values())
        first_ids = [sum(c.slots for c in clients[:index]) for index in range(len(clients))]

        # A grant gives an address to AW and an extent to W, each through a buffer of two.
        extent = data.StructLayout({
            "client": ceil_log2(len(clients)), "start": lanes, "stop": lanes, "beats": OFFSET_BITS - lanes})
        m.submodules.addresses = addresses = SkidBuffer(shape=self.axi.aw.payload.shape())
        m.submodules.extents = extents = SkidBuffer(shape=extent)
        connect(m, addresses.o, flipped(self.axi.aw))
        clearing = Signal(init=1)
        clear_id = Signal(self.id_bits)
        last_client = Signal(range(len(clients)))
        free, granted = Signal(), Signal()
        grants = round_robin(m, Cat(client.request for client in clients), last_client)
        m.d.comb += [
            # No burst may be answered while slots are being cleared.
            free.eq(addresses.i.ready & extents.i.ready & ~clearing),
            granted.eq(free & grants.any()), addresses.i.valid.eq(granted), extents.i.valid.eq(granted),
        ]
        for index, client in enumerate(clients):
            burst = client.burst
            m.d.comb += client.grant.eq(free & grants[index])
            with m.If(grants[index]):
                m.d.comb += [
                    addresses.i.payload.id.eq(first_ids[index] + client.slot),
                    addresses.i.payload.addr.eq(Cat(burst.first, burst.block) & -width),
                    addresses.i.payload.len.eq(burst.final[lanes:] - burst.first[lanes:]),
                    extents.i.payload.client.eq(index),
                    extents.i.payload.start.eq(burst.first), extents.i.payload.stop.eq(burst.final),
                    extents.i.payload.beats.eq(burst.final[lanes:] - burst.first[lanes:]),
                ]
            with m.If(client.grant):
                m.d.sync += last_client.eq(index)

        # W: the granted burst's rows, one a cycle.
        w, current = self.axi.w, extents.o.payload
        row_data = Mux(current.client[0], *(client.ready_row.payload.data for client in clients[1::-1]))
        for client in clients[2:]:
            row_data = Mux(current.client[1], client.ready_row.payload.data, row_data)
        beat = Signal(OFFSET_BITS - lanes)
        is_final_beat, write, leave = Signal(), Signal(), Signal()
        row_valid = Signal()
        from_start, to_stop = Signal(width), Signal(width)
        with m.Switch(current.client):
            for index, client in enumerate(clients):
                with m.Case(index):
                    m.d.comb += [row_valid.eq(client.ready_row.valid), client.ready_row.ready.eq(write)]
        m.d.comb += [
            leave.eq(w.valid & w.ready),
            is_final_beat.eq(beat == current.beats),
            write.eq(extents.o.valid & row_valid & (~w.valid | w.ready)),
            extents.o.ready.eq(write & is_final_beat),
            from_start.eq(Cat((beat != 0) | (lane >= current.start) for lane in range(width))),
            to_stop.eq(Cat(~is_final_beat | (lane <= current.stop) for lane in range(width))),
        ]
        with m.If(write):
            m.d.sync += [
                beat.eq(Mux(is_final_beat, 0, beat + 1)),
                w.valid.eq(1), w.payload.strb.eq(from_start & to_stop), w.payload.last.eq(is_final_beat),
                w.payload.data.eq(row_data),
            ]
        with m.Elif(leave):
            m.d.sync += w.valid.eq(0)

        # B: one register, then the slot's lap. After reset the same way clears all slots.
        m.submodules.laps = laps = SmallRam(shape=1, depth=1 << self.id_bits)
        answer = Signal.like(self.axi.b.payload, name="answer")
        answered, clear = Signal(), Signal()
        m.d.comb += self.axi.b.ready.eq(1)
        m.d.sync += [answered.eq(self.axi.b.valid), clear.eq(clearing)]
        with m.If(self.axi.b.valid):
            m.d.sync += answer.eq(self.axi.b.payload)
        with m.If(clearing):
            m.d.sync += [answer.id.eq(clear_id), clear_id.eq(clear_id + 1), clearing.eq(~clear_id.all())]
        m.d.comb += [
            laps.read_addr.eq(answer.id),
            laps.write_en.eq(answered | clear), laps.write_addr.eq(answer.id),
            laps.write_data.eq(~laps.read_data & ~clear),
        ]
        for client, first_id in zip(clients, first_ids):
            mine = Signal()
            m.d.comb += [
                mine.eq((answer.id >= first_id) & (answer.id < first_id + client.slots)),
                client.answered.valid.eq(answered & mine), client.clear.eq(clear & mine),
                client.clearing.eq(clearing | clear),
                client.answered.payload.slot.eq(answer.id - first_id), client.answered.payload.lap.eq(laps.write_data),
                client.answered.payload.error.eq(answer.resp != 0),
            ]

        m.d.comb += self.active.eq(
            Cat(client.active for client in clients).any() | clearing | clear | granted | addresses.active
            | extents.active | write | leave | self.axi.b.valid | answered)
        return m
