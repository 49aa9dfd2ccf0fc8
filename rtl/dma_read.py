"""Reads of host memory: three clients, their landing slots, one AXI4 read master."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2

from nic_model.contract import NicConfig
from rtl.bursts import OFFSET_BITS, Burst, BurstCutter, BurstRing
from rtl.interfaces import AxiReadMaster, ReadCommand, Strobe, lane_bits, read_beat
from rtl.primitives import Ram, SmallRam, round_robin

DESCRIPTOR_READS = 16
"""Bursts in flight of the transmit front's descriptor fetch, of up to eight slots: at a round trip of 300 cycles, a
slot every 2.4 cycles."""

RECEIVE_READS = 8
"""Bursts in flight of the receive ring's prefetch."""


def _landing(config: NicConfig, slot_bits: int) -> data.StructLayout:
    """A beat of response on its way to its landing slot; `lap` and `error` count with a burst's `last` beat."""
    beat_bits = OFFSET_BITS - lane_bits(config)
    return data.StructLayout({
        "slot": slot_bits, "beat": beat_bits, "data": 8 * config.host_bytes, "last": 1, "lap": 1, "error": 1,
    })


class DmaReadClient(wiring.Component):
    """One client's half of the read engine: commands to bursts with a reserved slot, landed slots to beats.

    Enters: `cmd`, commands; `landing`, the beats of the client's bursts, slots in any order and interleaved; `clear`,
    instead of a beat: forget the slot of `landing` (after a reset); `clearing`, meanwhile: no slot's answer counts.
    Leaves: `request`, a burst whose landing slot `slot` is reserved, taken by `grant` in the same cycle; `beat`, the
    data of all commands in command order. A burst streams out once its last beat has landed: the first beat 3
    cycles later, or 4 if registered, then one a cycle, without a gap between bursts that have landed.

    Parameters
    ----------
    config : NicConfig
    slots : int
        Bursts in flight, each with a landing slot of BURST bytes.
    registered : bool
        `beat` comes from a register; otherwise straight from the block RAM, for who has a register there.
    """

    def __init__(self, *, config: NicConfig, slots: int, registered: bool = True):
        self.config, self.slots, self.registered = config, slots, registered
        slot_bits = ceil_log2(slots)
        super().__init__({
            "cmd": In(stream.Signature(ReadCommand)),
            "beat": Out(stream.Signature(read_beat(config))),
            "request": Out(1), "grant": In(1), "burst": Out(Burst), "slot": Out(slot_bits),
            "landing": In(Strobe(_landing(config, slot_bits))), "clear": In(1), "clearing": In(1),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        lanes = lane_bits(self.config)
        beat_bits = OFFSET_BITS - lanes
        slot_bits = ceil_log2(self.slots)
        # What of a burst is needed to give its beats: its first and final byte in the slot, and the command's end.
        extent = data.StructLayout({"start": lanes, "final": OFFSET_BITS, "beats": beat_bits, "last": 1})
        m.submodules.cutter = cutter = BurstCutter(command=ReadCommand)
        m.submodules.ring = ring = BurstRing(slots=self.slots)
        m.submodules.extents = extents = SmallRam(shape=extent, depth=self.slots)
        m.submodules.store = store = Ram(shape=8 * self.config.host_bytes, depth=self.slots << beat_bits)

        # Issue: a burst asks for the bus when a slot is free.
        connect(m, flipped(self.cmd), cutter.i)
        burst = cutter.o.payload
        written_extent = data.View(extent, extents.write_data)
        m.d.comb += [
            self.request.eq(cutter.o.valid & ring.room), self.burst.eq(burst), self.slot.eq(ring.tail),
            cutter.o.ready.eq(self.grant), ring.allocate.eq(self.grant),
            extents.write_en.eq(self.grant), extents.write_addr.eq(ring.tail),
            written_extent.start.eq(burst.first), written_extent.final.eq(burst.final),
            written_extent.beats.eq(burst.final[lanes:] - burst.first[lanes:]),
            written_extent.last.eq(burst.last),
        ]

        # Landing.
        landing = self.landing.payload
        m.d.comb += [
            store.write_en.eq(self.landing.valid), store.write_addr.eq(Cat(landing.beat, landing.slot)),
            store.write_data.eq(landing.data),
            ring.answered.valid.eq((self.landing.valid & landing.last) | self.clear),
            ring.answered.payload.slot.eq(landing.slot), ring.answered.payload.lap.eq(landing.lap),
            ring.answered.payload.error.eq(landing.error), ring.clearing.eq(self.clearing),
        ]

        # Giving: the ring's head is looked up into `next`, or at once into `current` if that is free; `current` is
        # walked beat by beat; then memory's output register (`fetched`) and the beat offered.
        following = Signal(data.StructLayout({"extent": extent, "slot": slot_bits, "error": 1}), name="next")
        current = Signal.like(following, name="current")
        next_valid, current_valid = Signal(), Signal()
        first_beat = Signal(init=1)
        beat = Signal(beat_bits)
        fetched = Signal()
        side = Signal(data.StructLayout({"start": lanes, "count": lanes + 1, "last": 1, "error": 1}), name="side")
        look_up, direct, begin, fetch, finish, advance, leave = (Signal(name=n) for n in (
            "look_up", "direct", "begin", "fetch", "finish", "advance", "leave"))
        found = Signal.like(following, name="found")
        is_final_beat = Signal()
        start, stop = Signal(lanes), Signal(lanes)
        m.d.comb += [
            extents.read_addr.eq(ring.head),
            is_final_beat.eq(beat == current.extent.beats),
            leave.eq(self.beat.valid & self.beat.ready),
            fetch.eq(current_valid & (~fetched | advance)),
            finish.eq(fetch & is_final_beat),
            begin.eq(next_valid & (~current_valid | finish)),
            look_up.eq(ring.answered_head & (~next_valid | begin)),
            direct.eq(look_up & ~next_valid & (~current_valid | finish)),
            found.extent.eq(extents.read_data), found.slot.eq(ring.head), found.error.eq(ring.error),
            ring.advance.eq(look_up), ring.release.eq(finish),
            store.read_en.eq(fetch), store.read_addr.eq(Cat(beat, current.slot)),
            start.eq(Mux(first_beat, current.extent.start, 0)),
            stop.eq(Mux(is_final_beat, current.extent.final[:lanes], self.config.host_bytes - 1)),
        ]
        with m.If(look_up & ~direct):
            m.d.sync += [following.eq(found), next_valid.eq(1)]
        with m.Elif(begin):
            m.d.sync += next_valid.eq(0)
        with m.If(begin | direct):
            m.d.sync += [current.eq(Mux(next_valid, following, found)), current_valid.eq(1)]
        with m.Elif(finish):
            m.d.sync += current_valid.eq(0)
        with m.If(fetch):
            m.d.sync += [
                beat.eq(Mux(is_final_beat, 0, beat + 1)), first_beat.eq(is_final_beat), fetched.eq(1),
                side.start.eq(start), side.count.eq(stop - start + 1),
                side.last.eq(is_final_beat & current.extent.last), side.error.eq(current.error),
            ]
        with m.Elif(advance):
            m.d.sync += fetched.eq(0)
        given = Cat(self.beat.payload.data, *(self.beat.payload[name] for name in side.shape().members))
        stored = Cat(store.read_data, side)
        if self.registered:
            m.d.comb += advance.eq(fetched & (~self.beat.valid | self.beat.ready))
            with m.If(advance):
                m.d.sync += [self.beat.valid.eq(1), given.eq(stored)]
            with m.Elif(leave):
                m.d.sync += self.beat.valid.eq(0)
        else:
            m.d.comb += [self.beat.valid.eq(fetched), given.eq(stored), advance.eq(leave)]

        m.d.comb += self.active.eq(
            cutter.active | ring.active | look_up | begin | fetch | advance | leave | self.landing.valid)
        return m


class DmaRead(wiring.Component):
    """The read half of the host bus's master.

    Enters: commands of three clients, of any alignment. Leaves: their data, in command order for each client, whatever
    the order in which the bus answers. Commands are cut at 256-byte boundaries. A burst is issued only with a landing
    slot of its own, whose number is its ID, so RREADY is constantly 1 and no client can block another. All beats of
    a burst that the bus answered with an error carry `error`.
    Latency from command to AR 2 cycles, from a burst's last R beat to its first beat out 4 (receive: 5); throughput
    one beat a cycle on R and for each client, one AR a cycle. For `2 ** id_bits` cycles after reset the table of slots
    is cleared and no AR is given.

    Parameters
    ----------
    config : NicConfig

    Members
    -------
    cmd_payload, cmd_descriptor, cmd_receive : commands of the clients.
    beat_payload, beat_descriptor, beat_receive : their answers.
    axi : read channels; bursts are INCR of full beats, addresses aligned to the bus.

    Attributes
    ----------
    id_bits : int
        Width of ARID and RID.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        self.slots = {"payload": config.payload_reads, "descriptor": DESCRIPTOR_READS, "receive": RECEIVE_READS}
        self.id_bits = ceil_log2(sum(self.slots.values()))
        members = {"axi": Out(AxiReadMaster(config, self.id_bits)), "active": Out(1)}
        for client in self.slots:
            members[f"cmd_{client}"] = In(stream.Signature(ReadCommand))
            members[f"beat_{client}"] = Out(stream.Signature(read_beat(config)))
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        lanes = lane_bits(self.config)
        clients = []
        for name, slots in self.slots.items():
            m.submodules[name] = client = DmaReadClient(
                config=self.config, slots=slots, registered=name == "receive")
            connect(m, flipped(getattr(self, f"cmd_{name}")), client.cmd)
            connect(m, client.beat, flipped(getattr(self, f"beat_{name}")))
            clients.append(client)
        # Slot numbers are global. The larger a client, the lower its first, so that each begins at a multiple of its
        # power of two, and the lowest bits of an ID are the client's own number.
        first_ids, behind = [0] * len(clients), 0
        for index in sorted(range(len(clients)), key=lambda index: -clients[index].slots):
            first_ids[index], behind = behind, behind + clients[index].slots

        # AR: round robin, one burst a cycle.
        ar = self.axi.ar
        last_client = Signal(range(len(clients)))
        free = Signal()
        # No burst may be answered while slots are being cleared.
        clearing = Signal(init=1)
        clear_id = Signal(self.id_bits)
        m.d.comb += free.eq((~ar.valid | ar.ready) & ~clearing)
        grants = round_robin(m, Cat(client.request for client in clients), last_client)
        with m.If(free):
            m.d.sync += ar.valid.eq(grants.any())
        for index, client in enumerate(clients):
            burst = client.burst
            m.d.comb += client.grant.eq(free & grants[index])
            with m.If(client.grant):
                m.d.sync += [
                    last_client.eq(index), ar.payload.id.eq(first_ids[index] + client.slot),
                    ar.payload.addr.eq(Cat(burst.first, burst.block) & -self.config.host_bytes),
                    ar.payload.len.eq(burst.final[lanes:] - burst.first[lanes:]),
                ]

        # R: one register, then the slot's state says where the beat lands. After reset the same way clears all slots.
        layout = data.StructLayout({"beat": OFFSET_BITS - lanes, "lap": 1, "error": 1})
        m.submodules.states = states = SmallRam(shape=layout, depth=1 << self.id_bits)
        state, state_next = data.View(layout, states.read_data), Signal(layout, name="state_next")
        answer = Signal.like(self.axi.r.payload, name="answer")
        answered, clear, error = Signal(), Signal(), Signal()
        m.d.comb += self.axi.r.ready.eq(1)
        m.d.sync += [answered.eq(self.axi.r.valid), clear.eq(clearing)]
        with m.If(self.axi.r.valid):
            m.d.sync += answer.eq(self.axi.r.payload)
        with m.If(clearing):
            m.d.sync += [answer.id.eq(clear_id), clear_id.eq(clear_id + 1), clearing.eq(~clear_id.all())]
        with m.If(~clear):
            m.d.comb += [
                error.eq((answer.resp != 0) | (state.error & (state.beat != 0))),
                state_next.beat.eq(Mux(answer.last, 0, state.beat + 1)),
                state_next.lap.eq(state.lap ^ answer.last), state_next.error.eq(error),
            ]
        m.d.comb += [
            states.read_addr.eq(answer.id),
            states.write_en.eq(answered | clear), states.write_addr.eq(answer.id), states.write_data.eq(state_next),
        ]
        for client, first_id in zip(clients, first_ids):
            mine = Signal()
            landing = client.landing.payload
            m.d.comb += [
                mine.eq((answer.id >= first_id) & (answer.id < first_id + client.slots)),
                client.landing.valid.eq(answered & mine), client.clear.eq(clear & mine),
                client.clearing.eq(clearing | clear),
                landing.slot.eq(answer.id), landing.beat.eq(state.beat), landing.data.eq(answer.data),
                landing.last.eq(answer.last), landing.lap.eq(state_next.lap), landing.error.eq(error),
            ]

        m.d.comb += self.active.eq(
            Cat(client.active for client in clients).any() | clearing | clear | (free & ar.valid) | grants.any() & free
            | self.axi.r.valid | answered)
        return m
