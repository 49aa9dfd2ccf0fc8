"""Makes runs of rows of a frame's template and of its payload."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from nic_model.contract import NicConfig, Status
from rtl.align import align_row
from rtl.interfaces import CHANNEL_BITS, Strobe, TxSlice, read_beat
from rtl.interfaces import row as inline_row
from rtl.small_fifo import BypassFifo

TEMPLATES_AHEAD = 8
"""Templates on their way to `HeaderWriter`, at least."""

SEGMENT_BITS = 14
"""Bits of a frame's length."""

# Travels with each row. A frame is at most one run of template rows, then one run of payload. `error`: the bus failed
# in this row, or before it in the same job. `end`: the frame's last run.
RowTag = data.StructLayout({"template": 1, "error": 1, "end": 1})
ROW_TAG_BITS = 3


def templates_kept(config: NicConfig) -> int:
    """Templates from here to the last frame of their jobs: one for the present job of each channel, and those on their
    way."""
    return 1 << (config.channels + TEMPLATES_AHEAD - 1).bit_length()


def slices_under_way(config: NicConfig) -> int:
    """Frames between the scheduler and the end of `HeaderWriter`: more than may wait for payload on its way, which is
    one for each read."""
    return max(64, 1 << (config.payload_reads + config.payload_reads // 8).bit_length())


def has_rows(slice_):
    """1 if anything of a slice passes as rows."""
    return (slice_.job.status == Status.OK) & ~slice_.discarded


class Segmenter(wiring.Component):
    """Makes runs of rows: before a job's first frame the template, then of each frame the payload.

    Enters: slices, the inline rows of templates, and payload in beats of any lanes; no beat has bytes of two frames.
    Leaves: rows for the `Aligner`, which puts a template at lane 0 and payload at the lanes that it has in its frame.
    After a bus error all further rows of the job carry `error`, in this frame and in those that follow it, so that
    nothing of them is used. Rows pass in the cycle in which they come; a row a cycle, also from one frame to the next.

    Parameters
    ----------
    config : NicConfig

    Members
    -------
    slice, inline, payload : frames, from the scheduler and the read engine.
    order : strobe, each slice as it is taken, before its first row.
    rows : rows for the aligner, with a `RowTag`.
    retired : 1 for a cycle when `HeaderWriter` is done with a slice; at most `slices_under_way` are under way.
    template_freed : 1 for a cycle when `HeaderWriter` forgets a template; it has `templates_kept` at most.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "slice": In(stream.Signature(TxSlice)),
            "inline": In(stream.Signature(inline_row(config))),
            "payload": In(stream.Signature(read_beat(config))),
            "order": Out(Strobe(TxSlice)),
            "rows": Out(stream.Signature(align_row(config.host_bytes, ROW_TAG_BITS))),
            "retired": In(1), "template_freed": In(1),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        width, lane_bits = self.config.host_bytes, exact_log2(self.config.host_bytes)
        most = slices_under_way(self.config)
        slice_, rows, beat = self.slice.payload, self.rows.payload, self.payload.payload
        tag = data.View(RowTag, rows.tag)

        # Slices enter while there is room for them everywhere; those that have rows wait here for their turn.
        waiting_shape = data.StructLayout({
            "channel": CHANNEL_BITS, "inline_bytes": 8, "at": lane_bits, "count": SEGMENT_BITS,
            "first": 1, "template": 1, "payload": 1,
        })
        m.submodules.waiting = waiting = BypassFifo(shape=waiting_shape, depth=most)
        under_way, under_way_next = Signal(range(most + 1)), Signal(range(most + 1))
        has_room, takes, queued = Signal(init=1), Signal(), waiting.i.payload
        m.d.comb += [
            under_way_next.eq(under_way + takes - self.retired),
            self.slice.ready.eq(has_room), takes.eq(self.slice.valid & self.slice.ready),
            self.order.valid.eq(takes), self.order.payload.eq(slice_),
            waiting.i.valid.eq(takes & has_rows(slice_)),
            queued.channel.eq(slice_.job.channel), queued.inline_bytes.eq(slice_.job.inline_bytes),
            queued.at.eq(slice_.job.inline_bytes), queued.count.eq(slice_.count), queued.first.eq(slice_.first),
            queued.template.eq(slice_.first & (slice_.job.inline_bytes != 0)),
            queued.payload.eq(slice_.count != 0),
        ]
        m.d.sync += [under_way.eq(under_way_next), has_room.eq(under_way_next != most)]

        # The frame whose rows pass.
        frame, frame_valid, in_template, error = Signal(waiting_shape), Signal(), Signal(), Signal()
        # Whether the channel's present job has failed, asked when a frame's first row leaves: kept a cycle after its
        # frame has ended, so that what the last frame says of its own channel is taken from there.
        failed = Signal(self.config.channels)
        channel_bits = exact_log2(self.config.channels)
        fresh, same, error_before = Signal(), Signal(), Signal()
        ended, ended_channel, ended_error = Signal(), Signal(channel_bits), Signal()
        error_now, begins, row_leaves, ends_template, ends_frame = Signal(), Signal(), Signal(), Signal(), Signal()
        most_templates = templates_kept(self.config)
        templates, begins_template = Signal(range(most_templates + 1)), Signal()
        coming = waiting.o.payload
        m.d.comb += [
            row_leaves.eq(self.rows.valid & self.rows.ready),
            ends_frame.eq(row_leaves & rows.last & tag.end),
            begins.eq(waiting.o.valid & (~frame_valid | ends_frame)
                      & (~coming.template | (templates != most_templates))),
            waiting.o.ready.eq(begins), begins_template.eq(begins & coming.template),
        ]
        m.d.sync += templates.eq(templates + begins_template - self.template_freed)
        m.d.sync += ended.eq(ends_frame)
        with m.If(ends_frame):
            m.d.sync += [
                frame_valid.eq(0), ended_channel.eq(frame.channel[:channel_bits]), ended_error.eq(error_now),
            ]
        with m.If(ended):
            m.d.sync += failed.bit_select(ended_channel, 1).eq(ended_error)
        with m.If(begins):
            m.d.sync += [
                frame.eq(coming), frame_valid.eq(1), in_template.eq(coming.template), fresh.eq(1),
                same.eq(coming.channel == frame.channel),
            ]
        with m.Elif(row_leaves):
            m.d.sync += [fresh.eq(0), error.eq(error_now)]

        m.d.comb += [
            error_before.eq(Mux(fresh, ~frame.first & Mux(
                same, ended_error, failed.bit_select(frame.channel[:channel_bits], 1)), error)),
            error_now.eq(error_before),
        ]
        with m.If(in_template):
            m.d.comb += [
                self.rows.valid.eq(frame_valid & self.inline.valid),
                self.inline.ready.eq(frame_valid & self.rows.ready),
                ends_template.eq(frame.inline_bytes <= width),
                rows.data.eq(self.inline.payload.data),
                rows.count.eq(Mux(ends_template, frame.inline_bytes, width)),
                rows.last.eq(ends_template), tag.template.eq(1), tag.error.eq(error_before), tag.end.eq(~frame.payload),
            ]
            with m.If(row_leaves & ~begins):
                m.d.sync += [frame.inline_bytes.eq(frame.inline_bytes - width), in_template.eq(~ends_template)]
        with m.Else():
            m.d.comb += [
                self.rows.valid.eq(frame_valid & self.payload.valid),
                self.payload.ready.eq(frame_valid & self.rows.ready),
                error_now.eq(error_before | beat.error),
                rows.data.eq(beat.data), rows.start.eq(beat.start), rows.count.eq(beat.count), rows.at.eq(frame.at),
                rows.last.eq(frame.count == beat.count), tag.error.eq(error_now), tag.end.eq(1),
            ]
            with m.If(row_leaves & ~begins):
                m.d.sync += frame.count.eq(frame.count - beat.count)

        m.d.comb += self.active.eq(
            takes | waiting.active | row_leaves | ended | self.retired | self.template_freed)
        return m
