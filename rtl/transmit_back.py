"""The transmit back end: from sends with their payload to beats on the MAC. Creates blocks and connects them."""

from amaranth.hdl import Cat, Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from rtl.align import Aligner, aligned_row
from rtl.checksum import Checksum
from rtl.framer import Framer
from rtl.headers import HeaderWriter
from rtl.interfaces import TIME_BITS, CountAmount, Strobe, TxDone, TxSlice, mac_beat, read_beat, row
from rtl.mac_tx import MacTx
from rtl.primitives import SkidBuffer
from rtl.segmenter import ROW_TAG_BITS, Segmenter


class TransmitBack(wiring.Component):
    """Segments, checksums and frames.

    Enters: slices, one for each frame, the inline rows of their templates and their payload. Leaves: beats to the MAC,
    and `TxDone` for each send with its last slice. A row of payload a cycle; a frame begins when it is whole in the
    store.

    Parameters
    ----------
    config : NicConfig

    Members
    -------
    slice, inline : frames and their inline rows, from the scheduler.
    payload : their payload, from the read engine.
    done : stream of `TxDone`.
    mac : AXI-Stream to the MAC.
    now : the device's cycle count.
    count_tx_frames, count_tx_bytes : count strobes.
    begun, dropped : strobes, the bytes of a frame that has begun to leave, or never will.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "slice": In(stream.Signature(TxSlice)), "inline": In(stream.Signature(row(config))),
            "payload": In(stream.Signature(read_beat(config))),
            "done": Out(stream.Signature(TxDone)), "mac": Out(stream.Signature(mac_beat(config))),
            "now": In(TIME_BITS),
            "count_tx_frames": Out(Strobe(CountAmount)), "count_tx_bytes": Out(Strobe(CountAmount)),
            "begun": Out(Strobe(CountAmount)), "dropped": Out(Strobe(CountAmount)),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.segmenter = segmenter = Segmenter(config)
        m.submodules.aligner = aligner = Aligner(
            width_bytes=config.host_bytes, tag_bits=ROW_TAG_BITS, registered=False)
        # cuts the stores' ready off from aligner, segmenter and the streams that enter
        m.submodules.aligned = aligned = SkidBuffer(shape=aligned_row(config.host_bytes, ROW_TAG_BITS))
        m.submodules.checksum = checksum = Checksum(config)
        m.submodules.headers = headers = HeaderWriter(config)
        m.submodules.framer = framer = Framer(config)
        m.submodules.mac_tx = mac_tx = MacTx(config)

        connect(m, flipped(self.slice), segmenter.slice)
        connect(m, flipped(self.inline), segmenter.inline)
        connect(m, flipped(self.payload), segmenter.payload)
        connect(m, segmenter.rows, aligner.i)
        connect(m, aligner.o, aligned.i)
        connect(m, aligned.o, checksum.i)
        connect(m, checksum.o, framer.rows)

        connect(m, framer.template, headers.template)
        connect(m, checksum.sums, headers.sums)
        connect(m, headers.header, framer.header)
        connect(m, headers.patch, framer.patch)
        connect(m, headers.frame, framer.frame)
        m.d.comb += [framer.commit.eq(headers.commit), headers.freed.eq(framer.freed)]

        connect(m, framer.o, mac_tx.row)
        connect(m, headers.record, mac_tx.record)
        connect(m, mac_tx.mac, flipped(self.mac))
        connect(m, mac_tx.done, flipped(self.done))
        m.d.comb += [mac_tx.now.eq(self.now), headers.reported.eq(mac_tx.reported)]

        # Two blocks follow the frames: each is told of one before its first row.
        for block in (checksum, headers):
            connect(m, segmenter.order, block.order)
        m.d.comb += [segmenter.retired.eq(headers.retired), segmenter.template_freed.eq(headers.template_freed)]
        for block, names in ((mac_tx, ("count_tx_frames", "count_tx_bytes", "begun")), (headers, ("dropped",))):
            for name in names:
                connect(m, getattr(block, name), flipped(getattr(self, name)))
        m.d.comb += self.active.eq(Cat(
            block.active for block in (segmenter, aligner, aligned, checksum, headers, framer, mac_tx)
        ).any())
        return m
