"""Gives frames to the MAC, beat by beat, and reports each send when its last frame has gone."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.headers import ENDS, DoneRecord
from rtl.interfaces import TIME_BITS, CountAmount, Strobe, TxDone, mac_beat
from rtl.primitives import StreamFifo
from rtl.segmenter import SEGMENT_BITS


def frame_row(config):
    """Row of a whole frame. `keep` is contiguous from lane 0 and all ones but in the last row; `length` is the frame's.
    `end`: the send is finished behind this frame. `mark`: no frame, but the end of a send all the same."""
    return data.StructLayout({
        "data": 8 * config.host_bytes, "keep": config.host_bytes, "last": 1, "end": 1, "mark": 1,
        "length": SEGMENT_BITS,
    })


class MacTx(wiring.Component):
    """Narrows rows to the MAC's beats.

    Enters: rows of frames. Leaves: beats, one a cycle, without a gap between rows; `TxDone` for each send once the last
    beat of its last frame has been taken. Latency 1 cycle from row to beat, 4 from the last beat to `TxDone`.

    Parameters
    ----------
    config : NicConfig

    Members
    -------
    row : stream of `frame_row`.
    record : strobe of `DoneRecord`, before the row that ends its send.
    mac : AXI-Stream to the MAC.
    done : stream of `TxDone`; `reported` is 1 in the cycle in which one is taken.
    now : the device's cycle count.
    count_tx_frames, count_tx_bytes : count strobes.
    begun : strobe, the bytes of a frame whose first beat has gone.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "row": In(stream.Signature(frame_row(config))), "record": In(Strobe(DoneRecord)),
            "mac": Out(stream.Signature(mac_beat(config))),
            "done": Out(stream.Signature(TxDone)), "reported": Out(1), "now": In(TIME_BITS),
            "count_tx_frames": Out(Strobe(CountAmount)), "count_tx_bytes": Out(Strobe(CountAmount)),
            "begun": Out(Strobe(CountAmount)),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        width, mac_width = self.config.host_bytes, self.config.mac_bytes
        row = self.row.payload

        # The row that is being sent, shifted down by a beat at a time.
        present, shifting = Signal(frame_row(self.config)), Signal()
        first_beat = Signal(init=1)
        beat_leaves, row_ends, row_enters, marks = Signal(), Signal(), Signal(), Signal()
        free, frame_ends = Signal(), Signal()
        beat = self.mac.payload
        further = present.keep[mac_width] if width > mac_width else 0
        m.d.comb += [
            beat.data.eq(present.data), beat.keep.eq(present.keep), beat.last.eq(present.last & row_ends),
            row_ends.eq(~further), beat_leaves.eq(self.mac.valid & self.mac.ready),
            shifting.eq(beat_leaves & ~row_ends), frame_ends.eq(beat_leaves & beat.last),
            # A mark waits until the frame before it has gone. What comes late, `mark`, enables no wide register.
            free.eq(~self.mac.valid | (self.mac.ready & row_ends)), row_enters.eq(self.row.valid & free),
            self.row.ready.eq(Mux(row.mark, ~self.mac.valid, free)),
            marks.eq(self.row.valid & self.row.ready & row.mark),
        ]
        with m.If(row_enters):
            m.d.sync += [present.eq(row), self.mac.valid.eq(~row.mark)]
        with m.Elif(shifting):
            m.d.sync += [present.data.eq(present.data >> 8 * mac_width), present.keep.eq(present.keep >> mac_width)]
        with m.Elif(beat_leaves):
            m.d.sync += self.mac.valid.eq(0)
        with m.If(beat_leaves):
            m.d.sync += first_beat.eq(beat.last)

        # When the latest frame began, and what ended.
        began, ended, ended_at = Signal(TIME_BITS), Signal(), Signal(TIME_BITS)
        frame_sent, sent_length = Signal(), Signal(SEGMENT_BITS)
        m.d.sync += self.begun.valid.eq(beat_leaves & first_beat)
        with m.If(beat_leaves & first_beat):
            m.d.sync += self.begun.payload.amount.eq(present.length)
        m.d.sync += [ended.eq((frame_ends & present.end) | marks), frame_sent.eq(frame_ends)]
        with m.If(beat_leaves & first_beat):
            m.d.sync += began.eq(self.now)
        with m.If((frame_ends & present.end) | marks):
            m.d.sync += ended_at.eq(Mux(frame_ends & first_beat, self.now, began))
        with m.If(frame_ends):
            m.d.sync += sent_length.eq(present.length)
        m.d.comb += [
            self.count_tx_frames.valid.eq(frame_sent), self.count_tx_frames.payload.amount.eq(1),
            self.count_tx_bytes.valid.eq(frame_sent), self.count_tx_bytes.payload.amount.eq(sent_length),
        ]

        # A send is reported when its end and its record are there. HeaderWriter sees to it that both FIFOs have room.
        m.submodules.times = times = StreamFifo(shape=TIME_BITS, depth=ENDS)
        m.submodules.records = records = StreamFifo(shape=DoneRecord, depth=ENDS)
        record, done = records.o.payload, self.done.payload
        m.d.comb += [
            times.i.valid.eq(ended), times.i.payload.eq(ended_at),
            records.i.valid.eq(self.record.valid), records.i.payload.eq(self.record.payload),
            self.done.valid.eq(times.o.valid & records.o.valid),
            *(done[name].eq(record[name])
              for name in ("channel", "tag", "status", "ring_index", "complete", "length", "segments", "epoch",
                           "discarded")),
            done.timestamp.eq(Mux(record.stamped, times.o.payload, 0)),
            self.reported.eq(self.done.valid & self.done.ready),
            times.o.ready.eq(self.reported), records.o.ready.eq(self.reported),
            self.active.eq(Cat(row_enters, marks, beat_leaves, ended, frame_sent, self.begun.valid, times.active,
                               records.active).any()),
        ]
        return m
