"""The doorbell pages: an AXI4 slave that turns writes into doorbells."""

# Ref: AMBA AXI and ACE Protocol Specification, ARM IHI 0022H, A3 (handshake, bursts) and A5 (identifiers)

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, Signature, connect, flipped
from amaranth.utils import exact_log2

from nic_model.contract import DOORBELL_STRIDE, REGISTERS, NicConfig
from rtl.axi_lite import Response
from rtl.interfaces import CHANNEL_BITS, INDEX_BITS, DoorbellWrite, lane_bits
from rtl.primitives import SkidBuffer, SmallRam

PAGE_BITS = exact_log2(DOORBELL_STRIDE)
ADDRESS_BITS = CHANNEL_BITS + PAGE_BITS
BURST_INCR = 1
FIFO_DEPTH = 16
KINDS = {"tx": "TX_DOORBELL", "rx": "RX_DOORBELL", "arm": "CQ_ARM"}


class Axi4Slave(Signature):
    """AXI4 as wide as the host bus, as the master sees it; a slave has it as `In(Axi4Slave(config))`.

    Parameters
    ----------
    config : NicConfig
    id_bits : int
        Width of AWID, BID, ARID and RID.
    """

    def __init__(self, config: NicConfig, *, id_bits: int = 8):
        width = config.host_bytes
        address = data.StructLayout({"id": id_bits, "addr": ADDRESS_BITS, "len": 8, "size": 3, "burst": 2})
        super().__init__({
            "aw": Out(stream.Signature(address)),
            "w": Out(stream.Signature(data.StructLayout({"data": 8 * width, "strb": width, "last": 1}))),
            "b": In(stream.Signature(data.StructLayout({"id": id_bits, "resp": 2}))),
            "ar": Out(stream.Signature(address)),
            "r": In(stream.Signature(data.StructLayout({"id": id_bits, "data": 8 * width, "resp": 2, "last": 1}))),
        })


class SmallFifo(wiring.Component):
    """A FIFO in distributed RAM, for a few words, with registered output.

    Latency 2 cycles, throughput one a cycle. Holds one word more than its depth.

    Parameters
    ----------
    shape : ShapeLike
        Payload.
    depth : int
        Words, a power of two.
    """

    def __init__(self, *, shape, depth):
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two of at least 2, not {depth!r}")
        self.shape, self.depth = shape, depth
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape)), "active": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = SmallRam(shape=self.shape, depth=self.depth)
        head, tail = Signal(range(self.depth)), Signal(range(self.depth))
        level = Signal(range(self.depth + 1))
        enter, fetch, leave = Signal(), Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(level != self.depth), enter.eq(self.i.valid & self.i.ready),
            leave.eq(self.o.valid & self.o.ready), fetch.eq((level != 0) & (~self.o.valid | leave)),
            ram.write_en.eq(enter), ram.write_addr.eq(tail), ram.write_data.eq(self.i.payload),
            ram.read_addr.eq(head),
            self.active.eq(enter | fetch | leave),
        ]
        m.d.sync += [tail.eq(tail + enter), head.eq(head + fetch), level.eq(level + enter - fetch)]
        with m.If(fetch):
            m.d.sync += [self.o.valid.eq(1), self.o.payload.eq(ram.read_data)]
        with m.Elif(leave):
            m.d.sync += self.o.valid.eq(0)
        return m


class Doorbells(wiring.Component):
    """Doorbell writes from the pages of all channels; channel c's page starts at c * `DOORBELL_STRIDE`.

    Enters: AXI4 bursts of any size up to the bus width; a beat that covers all four bytes of a doorbell word, or of two
    or three of them, rings these. Leaves: a stream for each kind, in the order of the writes of that kind. Everything
    else is taken and ignored: other addresses of a page (pushed blocks: what they carry stands in the ring), partly
    covered words, channels that the device does not have. Only INCR bursts: others answer SLVERR and do nothing. Reads
    give zeros.

    Latency 4 cycles from a beat to its doorbell; throughput one beat a cycle within a burst, one cycle more between
    bursts. A write's response comes when all doorbells of the burst are in the FIFOs; while one of these is full, the
    bus waits.

    Parameters
    ----------
    config : NicConfig
        Sizes.

    Members
    -------
    axi : AXI4 slave.
    tx, rx, arm : streams of DoorbellWrite, from TX_DOORBELL, RX_DOORBELL and CQ_ARM.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "axi": In(Axi4Slave(config)),
            **{kind: Out(stream.Signature(DoorbellWrite)) for kind in KINDS},
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        reading = self._answer_reads(m)
        writing = self._take_writes(m)
        m.d.comb += self.active.eq(reading | writing)
        return m

    def _take_writes(self, m):
        axi, width, lanes = self.axi, self.config.host_bytes, lane_bits(self.config)
        offsets = {kind: REGISTERS[name].offset for kind, name in KINDS.items()}
        row_offset = min(offsets.values()) // width
        assert all(offset // width == row_offset for offset in offsets.values()), "doorbells must share a row"

        m.submodules.bursts = bursts = SkidBuffer(shape=axi.aw.payload.shape())
        connect(m, flipped(axi.aw), bursts.i)
        fifos = {kind: SmallFifo(shape=DoorbellWrite, depth=FIFO_DEPTH) for kind in KINDS}
        for kind, fifo in fifos.items():
            m.submodules[f"fifo_{kind}"] = fifo
            connect(m, fifo.o, flipped(getattr(self, kind)))

        # the burst under way
        in_burst, refused = Signal(), Signal()
        burst_id = Signal.like(axi.aw.payload.id)
        address, beat_bytes = Signal(ADDRESS_BITS), Signal(lanes + 1)
        # the beat under way, cut down to what counts
        has_beat, last, beat_refused = Signal(), Signal(), Signal()
        beat_id = Signal.like(burst_id)
        channel = Signal(CHANNEL_BITS)
        rings = {kind: Signal(name=f"rings_{kind}") for kind in KINDS}
        indices = {kind: Signal(INDEX_BITS, name=f"index_{kind}") for kind in KINDS}

        start_burst, take_beat, pass_beat, answered = Signal(), Signal(), Signal(), Signal()
        room = Cat(~rings[kind] | fifos[kind].i.ready for kind in KINDS).all()
        m.d.comb += [
            bursts.o.ready.eq(~in_burst), start_burst.eq(bursts.o.valid & bursts.o.ready),
            axi.w.ready.eq(in_burst & (~has_beat | pass_beat)), take_beat.eq(axi.w.valid & axi.w.ready),
            pass_beat.eq(has_beat & room & ~(last & axi.b.valid)),
            answered.eq(axi.b.valid & axi.b.ready),
        ]

        for kind, fifo in fifos.items():
            m.d.comb += [
                fifo.i.valid.eq(has_beat & rings[kind]),
                fifo.i.payload.channel.eq(channel), fifo.i.payload.index.eq(indices[kind]),
            ]
            with m.If(fifo.i.valid & fifo.i.ready):
                m.d.sync += rings[kind].eq(0)  # the beat may have to stay for another of its doorbells

        with m.If(start_burst):
            found = bursts.o.payload
            m.d.sync += [
                in_burst.eq(1), address.eq(found.addr), burst_id.eq(found.id), refused.eq(found.burst != BURST_INCR),
                beat_bytes.eq(Mux(found.size < lanes, 1 << found.size, width)),
            ]
        with m.If(take_beat):
            # a burst that starts inside a beat leaves the low bits of further addresses wrong, where nobody looks
            m.d.sync += address.eq(address + beat_bytes)
            page = address[PAGE_BITS:]
            at_doorbells = (address[lanes:PAGE_BITS] == row_offset) & (page < self.config.channels) & ~refused
            m.d.sync += [
                has_beat.eq(1), last.eq(axi.w.payload.last), beat_id.eq(burst_id), beat_refused.eq(refused),
                channel.eq(page),
            ]
            for kind, offset in offsets.items():
                lane = offset % width
                m.d.sync += [
                    rings[kind].eq(at_doorbells & axi.w.payload.strb[lane:lane + 4].all()),
                    indices[kind].eq(axi.w.payload.data[8 * lane:8 * lane + INDEX_BITS]),
                ]
            with m.If(axi.w.payload.last):
                m.d.sync += in_burst.eq(0)
        with m.Elif(pass_beat):
            m.d.sync += has_beat.eq(0)

        with m.If(pass_beat & last):
            m.d.sync += [
                axi.b.valid.eq(1), axi.b.payload.id.eq(beat_id),
                axi.b.payload.resp.eq(Mux(beat_refused, Response.SLVERR, Response.OKAY)),
            ]
        with m.Elif(answered):
            m.d.sync += axi.b.valid.eq(0)

        working = Cat(fifo.active for fifo in fifos.values()).any()
        return bursts.active | start_burst | take_beat | pass_beat | answered | working

    def _answer_reads(self, m):
        axi = self.axi
        beats_left = Signal(8)
        start, step = Signal(), Signal()
        m.d.comb += [
            axi.ar.ready.eq(~axi.r.valid), start.eq(axi.ar.valid & axi.ar.ready),
            step.eq(axi.r.valid & axi.r.ready), axi.r.payload.last.eq(beats_left == 0),
        ]
        with m.If(start):
            m.d.sync += [axi.r.valid.eq(1), axi.r.payload.id.eq(axi.ar.payload.id), beats_left.eq(axi.ar.payload.len)]
        with m.Elif(step):
            m.d.sync += [axi.r.valid.eq(beats_left != 0), beats_left.eq(beats_left - 1)]
        return start | step
