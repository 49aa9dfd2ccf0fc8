"""Cuts the payload of a send into segments, and lets the header template run ahead of it."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from nic_model.contract import Status
from rtl.align import align_row
from rtl.interfaces import LENGTH_BITS, Strobe, TxJob, read_beat
from rtl.interfaces import row as inline_row

JOBS = 8
"""Sends between `Segmenter` and `HeaderWriter`; each block between them has room for so many."""

SEGMENT_BITS = 14
"""Bits of a frame's length."""

# Travels with each row of a send. A send is at most one run of template rows, then one run for each frame's payload.
# `error`: the bus failed in this row or before it in the same send. `end`: the send's last run.
RowTag = data.StructLayout({"template": 1, "error": 1, "end": 1})
ROW_TAG_BITS = 3

# What the segmenter knows of the send under way. `uncut`: payload bytes that no segment has yet; `left`: bytes of the
# present segment that have not passed; `ends`: it is the last.
CutState = data.StructLayout({
    "inline_left": 8, "payload": 1, "limit": SEGMENT_BITS, "uncut": LENGTH_BITS,
    "left": SEGMENT_BITS, "ends": 1, "error": 1,
})


class Segmenter(wiring.Component):
    """Makes runs of rows from sends: the template as it comes, then one run for each segment's payload.

    Enters: sends, their inline rows, and their payload as one stream of bytes in beats of any lanes. Leaves: rows for
    the `Aligner`, which puts a template at lane 0 and payload at the lanes that it has in its frame; a beat with bytes
    of two segments leaves as two rows. SEND_FRAME has one segment, or none if all of it is inline. After a bus
    error all further rows of the send carry `error`, so that nothing of them is used. A send that was refused
    before has no rows. Latency 1 cycle for payload, none for inline rows; a row a cycle, one cycle between sends, and
    a segment every second cycle at most.

    Parameters
    ----------
    config : NicConfig

    Members
    -------
    job, inline, payload : sends, from the transmit front and the read engine.
    order : strobe, each send as it is taken, before its first row.
    rows : rows for the aligner, with a `RowTag`.
    retired : 1 for a cycle when `HeaderWriter` is done with a send; at most `JOBS` are under way.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "job": In(stream.Signature(TxJob)),
            "inline": In(stream.Signature(inline_row(config))),
            "payload": In(stream.Signature(read_beat(config))),
            "order": Out(Strobe(TxJob)),
            "rows": Out(stream.Signature(align_row(config.host_bytes, ROW_TAG_BITS))),
            "retired": In(1),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        width, lane_bits = self.config.host_bytes, exact_log2(self.config.host_bytes)
        job, rows = self.job.payload, self.rows.payload
        tag = data.View(RowTag, rows.tag)

        state = Signal(CutState)
        at = Signal(lane_bits)  # lane of the payload's first byte in each frame
        jobs = Signal(range(JOBS + 1))
        take, row_leaves, template_ends, segment_ends = Signal(), Signal(), Signal(), Signal()
        m.d.comb += row_leaves.eq(self.rows.valid & self.rows.ready)
        m.d.sync += jobs.eq(jobs + take - self.retired)

        # The next segment's length, found while the present one passes: compare, then cut.
        longer, compared, cut_valid = Signal(), Signal(), Signal()
        cut = Signal(data.StructLayout({"length": SEGMENT_BITS, "ends": 1}))
        uncut_valid, cut_now, cut_used, cutting = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [cut_now.eq(compared & ~cut_valid), cutting.eq((uncut_valid & ~compared) | cut_now)]
        with m.If(uncut_valid & ~compared):
            m.d.sync += [longer.eq(state.uncut > state.limit), compared.eq(1)]
        with m.If(cut_now):
            m.d.sync += [
                cut.length.eq(Mux(longer, state.limit, state.uncut)), cut.ends.eq(~longer), cut_valid.eq(1),
                state.uncut.eq(state.uncut - state.limit), compared.eq(0), uncut_valid.eq(longer),
            ]
        with m.Elif(cut_used):
            m.d.sync += cut_valid.eq(0)
        segment_valid = Signal()
        m.d.comb += cut_used.eq(cut_valid & (~segment_valid | segment_ends))
        with m.If(cut_used):
            m.d.sync += [state.left.eq(cut.length), state.ends.eq(cut.ends), segment_valid.eq(1)]
        with m.Elif(segment_ends):
            m.d.sync += segment_valid.eq(0)

        # The beat whose bytes are being given to segments, and the one behind it, in two banks that take turns: so what
        # the compare of lengths finds need not enable a whole row's registers in the same cycle.
        banks = [Signal(read_beat(self.config), name=f"beat_{n}") for n in range(2)]
        bank_valid = [Signal(name=f"beat_{n}_valid") for n in range(2)]
        fills, empties = Signal(), Signal()  # which of them
        beat, beat_valid = Signal(read_beat(self.config)), Signal()
        beat_enters, beat_ends, uses_beat, count = Signal(), Signal(), Signal(), Signal(lane_bits + 1)
        m.d.comb += [
            self.payload.ready.eq(Mux(fills, ~bank_valid[1], ~bank_valid[0])),
            beat_enters.eq(self.payload.valid & self.payload.ready),
            beat.eq(Mux(empties, banks[1], banks[0])), beat_valid.eq(Mux(empties, bank_valid[1], bank_valid[0])),
        ]
        m.d.sync += [fills.eq(fills ^ beat_enters), empties.eq(empties ^ beat_ends)]
        for number, (bank, valid) in enumerate(zip(banks, bank_valid, strict=True)):
            with m.If(self.payload.valid & (fills == number) & ~valid):
                m.d.sync += [bank.eq(self.payload.payload), valid.eq(1)]
            with m.If(uses_beat & (empties == number)):
                m.d.sync += [bank.start.eq(bank.start + count), bank.count.eq(bank.count - count)]
                with m.If(beat_ends):
                    m.d.sync += valid.eq(0)

        m.d.comb += [self.order.valid.eq(take), self.order.payload.eq(job)]
        with m.FSM(name="segmenter"):
            with m.State("TAKE"):
                m.d.comb += [self.job.ready.eq(jobs != JOBS), take.eq(self.job.valid & self.job.ready)]
                with m.If(take & (job.status == Status.OK)):
                    m.d.sync += [
                        state.inline_left.eq(job.inline_bytes), state.payload.eq(job.payload_bytes != 0),
                        state.limit.eq(Mux(job.segmented, job.mss, (1 << SEGMENT_BITS) - 1)),
                        state.uncut.eq(job.payload_bytes), uncut_valid.eq(job.payload_bytes != 0),
                        state.error.eq(0), at.eq(job.inline_bytes),
                    ]
                    with m.If(job.inline_bytes != 0):
                        m.next = "TEMPLATE"
                    with m.Else():
                        m.next = "PAYLOAD"

            with m.State("TEMPLATE"):
                m.d.comb += [
                    self.rows.valid.eq(self.inline.valid), self.inline.ready.eq(self.rows.ready),
                    template_ends.eq(state.inline_left <= width),
                    rows.data.eq(self.inline.payload.data),
                    rows.count.eq(Mux(template_ends, state.inline_left, width)),
                    rows.last.eq(template_ends), tag.template.eq(1), tag.end.eq(~state.payload),
                ]
                with m.If(row_leaves):
                    m.d.sync += state.inline_left.eq(state.inline_left - width)
                    with m.If(template_ends):
                        with m.If(state.payload):
                            m.next = "PAYLOAD"
                        with m.Else():
                            m.next = "TAKE"

            with m.State("PAYLOAD"):
                segment_covers, beat_covers = Signal(), Signal()
                m.d.comb += [
                    segment_covers.eq(state.left >= beat.count), beat_covers.eq(state.left <= beat.count),
                    count.eq(Mux(segment_covers, beat.count, state.left)),
                    self.rows.valid.eq(beat_valid & segment_valid),
                    rows.data.eq(beat.data), rows.start.eq(beat.start), rows.count.eq(count), rows.at.eq(at),
                    rows.last.eq(beat_covers), tag.error.eq(state.error | beat.error), tag.end.eq(state.ends),
                    uses_beat.eq(row_leaves), beat_ends.eq(row_leaves & segment_covers),
                    segment_ends.eq(row_leaves & beat_covers),
                ]
                with m.If(row_leaves):
                    m.d.sync += state.error.eq(state.error | beat.error)
                    with m.If(~cut_used):
                        m.d.sync += state.left.eq(state.left - count)
                with m.If(segment_ends & state.ends):
                    m.next = "TAKE"

        m.d.comb += self.active.eq(take | row_leaves | beat_enters | cutting | cut_used | self.retired)
        return m
