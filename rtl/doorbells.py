"""The doorbell pages: an AXI4 slave that turns writes into doorbells."""

# Ref: AMBA AXI and ACE Protocol Specification, ARM IHI 0022H, A3 (handshake, bursts) and A5 (identifiers)

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, Signature, connect, flipped
from amaranth.utils import exact_log2

from nic_model.contract import DOORBELL_STRIDE, PUSH_BLOCK_BYTES, PUSH_WINDOW_BYTES, REGISTERS, NicConfig
from rtl.axi_lite import Response
from rtl.interfaces import CHANNEL_BITS, INDEX_BITS, DoorbellWrite, Strobe, SubmissionDoorbell, lane_bits
from rtl.primitives import SkidBuffer
from rtl.push import PushBeat, PushBuffer, PushCollector, PushWrite
from rtl.small_fifo import BypassFifo

PAGE_BITS = exact_log2(DOORBELL_STRIDE)
ADDRESS_BITS = CHANNEL_BITS + PAGE_BITS
WINDOW_BITS = exact_log2(PUSH_WINDOW_BYTES)
BLOCK_BITS = exact_log2(PUSH_BLOCK_BYTES)
BURST_INCR = 1
FIFO_DEPTH = 16
KINDS = {"tx": "TX_DOORBELL", "rx": "RX_DOORBELL", "arm": "CQ_ARM"}
SHAPES = {"tx": SubmissionDoorbell, "rx": DoorbellWrite, "arm": DoorbellWrite}


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


class Doorbells(wiring.Component):
    """Doorbell writes from the pages of all channels; channel c's page starts at c * `DOORBELL_STRIDE`.

    Enters: AXI4 bursts of any size up to the bus width; a beat that covers all four bytes of a doorbell word, or of two
    or three of them, rings these. Leaves: a stream for each kind, in the order of the writes of that kind; what is
    written to a push window, and among the doorbells of submission rings the descriptors that are complete there (see
    `rtl.push`). Everything else is taken and ignored: other addresses of a page, partly covered words, channels that
    the device does not have. Only INCR bursts: others answer SLVERR and do nothing. Reads give zeros.

    Latency 2 cycles from a beat to its doorbell, 3 to a pushed descriptor; throughput one beat a cycle within a burst,
    one cycle more between bursts. A write's response comes when all doorbells of the burst are in the FIFOs; while one
    of these is full, the bus waits. It does not wait for pushed descriptors.

    Parameters
    ----------
    config : NicConfig
        Sizes.

    Members
    -------
    axi : AXI4 slave.
    tx, rx, arm : streams, from TX_DOORBELL, RX_DOORBELL and CQ_ARM; `tx` of SubmissionDoorbell, else of DoorbellWrite.
    push_write : strobe, a beat for a push buffer, at least 3 cycles before the descriptor that it is of.
    push_free : strobe, a push buffer is free again.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        super().__init__({
            "axi": In(Axi4Slave(config)),
            **{kind: Out(stream.Signature(SHAPES[kind])) for kind in KINDS},
            "push_write": Out(Strobe(PushWrite(config))), "push_free": In(Strobe(PushBuffer)),
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
        m.submodules.pushes = pushes = PushCollector(self.config)
        connect(m, pushes.write, flipped(self.push_write))
        connect(m, flipped(self.push_free), pushes.free)
        fifos = {kind: BypassFifo(shape=SHAPES[kind], depth=FIFO_DEPTH) for kind in KINDS}
        for kind, fifo in fifos.items():
            m.submodules[f"fifo_{kind}"] = fifo
            connect(m, fifo.o, flipped(getattr(self, kind)))

        # the burst under way
        in_burst, refused = Signal(), Signal()
        burst_id = Signal.like(axi.aw.payload.id)
        address, beat_bytes = Signal(ADDRESS_BITS), Signal(lanes + 1)
        # the beat under way, cut down to what counts
        has_beat, is_new, last, beat_refused = Signal(), Signal(), Signal(), Signal()
        beat_id = Signal.like(burst_id)
        channel = Signal(CHANNEL_BITS)
        rings = {kind: Signal(name=f"rings_{kind}") for kind in KINDS}
        indices = {kind: Signal(INDEX_BITS, name=f"index_{kind}") for kind in KINDS}
        in_window, pushed = Signal(), Signal(PushBeat(self.config))

        start_burst, take_beat, pass_beat, answered = Signal(), Signal(), Signal(), Signal()
        # a pushed descriptor, which was written before, goes first
        has_room = {kind: fifo.i.ready for kind, fifo in fifos.items()}
        has_room["tx"] = has_room["tx"] & ~pushes.complete.valid
        room = Cat(~rings[kind] | has_room[kind] for kind in KINDS).all()
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
            with m.If(has_beat & has_room[kind]):
                m.d.sync += rings[kind].eq(0)  # the beat may have to stay for another of its doorbells

        with m.If(pushes.complete.valid):
            m.d.comb += [fifos["tx"].i.valid.eq(1), fifos["tx"].i.payload.eq(pushes.complete.payload)]
        m.d.comb += [
            pushes.complete.ready.eq(fifos["tx"].i.ready), pushes.channel.eq(channel),
            pushes.beat.valid.eq(is_new & in_window), pushes.beat.payload.eq(pushed),
            pushes.rung.eq(is_new & rings["tx"]),
        ]
        m.d.sync += is_new.eq(take_beat)

        with m.If(start_burst):
            found = bursts.o.payload
            m.d.sync += [
                in_burst.eq(1), address.eq(found.addr), burst_id.eq(found.id), refused.eq(found.burst != BURST_INCR),
                beat_bytes.eq(Mux(found.size < lanes, 1 << found.size, width)), pushed.whole.eq(0),
            ]
        with m.If(take_beat):
            # a burst that starts inside a beat leaves the low bits of further addresses wrong, where nobody looks
            m.d.sync += address.eq(address + beat_bytes)
            page = address[PAGE_BITS:]
            mine = (page < self.config.channels) & ~refused
            at_doorbells = (address[lanes:PAGE_BITS] == row_offset) & mine
            beat, block = address[lanes:BLOCK_BITS], address[BLOCK_BITS:WINDOW_BITS]
            m.d.sync += [
                has_beat.eq(1), last.eq(axi.w.payload.last), beat_id.eq(burst_id), beat_refused.eq(refused),
                channel.eq(page),
                in_window.eq((address[WINDOW_BITS:PAGE_BITS] == REGISTERS["PUSH"].offset >> WINDOW_BITS) & mine),
                pushed.beat.eq(beat), pushed.block.eq(block), pushed.data.eq(axi.w.payload.data),
                # a block's beats are all there if they begin with its first and follow in one burst
                pushed.whole.eq(axi.w.payload.strb.all() & ((beat == 0) | pushed.whole)),
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
        return bursts.active | start_burst | take_beat | is_new | pass_beat | answered | working | pushes.active

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
