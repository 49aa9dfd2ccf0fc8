"""Writes the header of each frame: the template, and the words in which one segment differs from the next."""

# Ref: RFC 791 §3.1; RFC 8200 §3; RFC 9293 §3.1; RFC 768; RFC 1071 §2; RFC 3168 §6.1.2 (CWR)

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from nic_model.contract import MAX_INLINE_BYTES, Status
from nic_model.contract.protocols import (
    IPV4_CHECKSUM_OFFSET,
    IPV4_IDENTIFICATION_OFFSET,
    IPV4_TOTAL_LENGTH_OFFSET,
    IPV6_HEADER_BYTES,
    IPV6_PAYLOAD_LENGTH_OFFSET,
    TCP_FLAGS_OFFSET,
    TCP_SEQUENCE_OFFSET,
    TcpFlags,
)
from rtl.checksum import RunSum
from rtl.interfaces import CHANNEL_BITS, INDEX_BITS, LENGTH_BITS, CountAmount, Strobe, TxSlice
from rtl.primitives import Ram, SmallRam, StreamFifo
from rtl.segmenter import SEGMENT_BITS, has_rows, slices_under_way, templates_kept
from rtl.small_fifo import SmallFifo

FRAMES = 32
"""Frames whose headers are written and not yet read; each has `MAX_INLINE_BYTES` in the header ring."""

ENDS = 16
"""Sends that are finished here and not yet reported."""

# The 16 bits of data offset and flags begin one byte before the flags.
TCP_DATA_OFFSET_AND_FLAGS = TCP_FLAGS_OFFSET - 1

# A frame that is whole in the rings: `total` bytes, the first `inline_bytes` of them in the header ring. `end`: the
# send is finished with it. `mark`: no frame, only the end of a send.
FrameInfo = data.StructLayout({"inline_bytes": 8, "total": SEGMENT_BITS, "end": 1, "mark": 1})

# What is reported of a send, but for the time.
DoneRecord = data.StructLayout({
    "channel": CHANNEL_BITS, "tag": 16, "status": 8, "ring_index": INDEX_BITS, "complete": 1,
    "length": LENGTH_BITS, "segments": 16, "stamped": 1, "epoch": 1, "discarded": 1,
})

# A template: the words of it that change from frame to frame, and sums without them, as 16 bits and a carry that is
# still to be added.
TemplateState = data.StructLayout({
    "sequence": 32, "identification": 16, "flags": 16, "l3_sum": 17, "l4_sum": 17,
})

# What a channel's present job has sent.
Sent = data.StructLayout({"length": LENGTH_BITS, "segments": 16})


class Word(enum.Enum, shape=3):  # type: ignore[call-arg]
    """A header word that differs between segments."""

    LENGTH = 0
    IDENTIFICATION = 1
    SEQUENCE_HIGH = 2
    SEQUENCE_LOW = 3
    FLAGS = 4


def header_row_bits(config):
    """Bits of a row's number in a template or a frame's header."""
    return exact_log2(MAX_INLINE_BYTES // config.host_bytes)


def header_write(config):
    """Write into the header ring, one enable for each 16 bits."""
    return data.StructLayout({
        "row": exact_log2(FRAMES) + header_row_bits(config), "enable": config.host_bytes // 2,
        "data": 8 * config.host_bytes,
    })


def payload_patch(config):
    """Write of one word into the payload ring; `word` has its first byte lowest."""
    return data.StructLayout({"row": payload_row_bits(config), "enable": config.host_bytes // 2, "word": 16})


def payload_row_bits(config):
    """Bits of a row's number in the payload ring."""
    return exact_log2(config.tx_buffer_bytes // config.host_bytes)


class HeaderWriter(wiring.Component):
    """Finishes frames: copies the template for each, puts in lengths, numbers, flags and checksums, and passes it on.

    Enters: slices, their template rows, and the sums of template and payloads in order. Leaves: writes into the rings
    of headers and payload, a `FrameInfo` for each frame and, once its writes are done, a `commit`; a `DoneRecord` for
    each send with its last slice, and behind its last frame (or alone) the `FrameInfo` with `end`. A template comes
    with the first slice of its job and stays until the last, so that channels may take turns with each frame at no
    cost: a frame's numbers are the template's and the slice's.

    Checksums are never summed over again: the template's sum without the changing words plus the payload's plus
    those words as they are written. A segment gets its checksums whatever the send's checksum flags say. The
    operations of a frame (copies of rows, then words) run through a pipeline of 4 cycles, one a cycle: a 60-byte
    frame with two checksums takes 8 cycles at 16-byte rows, a segment 12, and 10 more if its template is new. A frame
    without any, because it has neither inline bytes nor checksums, waits only for those before it.

    Parameters
    ----------
    config : NicConfig

    Members
    -------
    order : strobe, each slice.
    template : strobe, its template rows.
    sums : stream of `RunSum`.
    header : strobe, writes into the header ring.
    patch : strobe, writes into the payload ring (checksum fields that are not inline).
    frame : strobe of `FrameInfo`, and `commit` some cycles later, in order.
    freed : 1 for a cycle when a frame has been read.
    record : strobe of `DoneRecord`, and `reported` when one has left the device's transmit side.
    retired : 1 for a cycle when a slice is finished here.
    dropped : strobe, the bytes of a frame that is dropped for a bus error.
    template_freed : 1 for a cycle when a template's place is free.
    active : see `rtl.interfaces`.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({
            "order": In(Strobe(TxSlice)),
            "template": In(Strobe(data.StructLayout({"data": 8 * config.host_bytes, "last": 1}))),
            "sums": In(stream.Signature(RunSum)),
            "header": Out(Strobe(header_write(config))),
            "patch": Out(Strobe(payload_patch(config))),
            "frame": Out(Strobe(FrameInfo)), "commit": Out(1), "freed": In(1),
            "record": Out(Strobe(DoneRecord)), "reported": In(1),
            "retired": Out(1), "template_freed": Out(1), "dropped": Out(Strobe(CountAmount)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        width, lane_bits = self.config.host_bytes, exact_log2(self.config.host_bytes)
        row_bits = header_row_bits(self.config)
        payload_bits = payload_row_bits(self.config)

        # Beside each slice: if anything of it comes as rows, and if its job has inline bytes.
        waiting = data.StructLayout({"slice": TxSlice, "has_rows": 1, "has_inline": 1})
        m.submodules.slices = slices = StreamFifo(shape=waiting, depth=slices_under_way(self.config))
        ordered = self.order.payload
        m.d.comb += [
            slices.i.valid.eq(self.order.valid), slices.i.payload.slice.eq(ordered),
            slices.i.payload.has_rows.eq(has_rows(ordered)),
            slices.i.payload.has_inline.eq(ordered.job.inline_bytes != 0),
        ]
        slice_, sums = slices.o.payload.slice, self.sums.payload
        with_rows, with_inline = slices.o.payload.has_rows, slices.o.payload.has_inline
        job, channel = slice_.job, slice_.job.channel[:exact_log2(self.config.channels)]
        template = Signal(TemplateState)

        # Templates, a slot for each: the free ones, those whose template waits to be taken apart, and those of the
        # channels' present jobs. Slots that were never used come before those that are free again.
        slot_bits = exact_log2(templates_kept(self.config))
        m.submodules.templates = templates = Ram(shape=8 * width, depth=1 << slot_bits + row_bits)
        m.submodules.free_slots = free_slots = SmallFifo(shape=slot_bits, depth=1 << slot_bits)
        m.submodules.new_slots = new_slots = SmallFifo(shape=slot_bits, depth=1 << slot_bits)
        m.submodules.job_slots = job_slots = SmallRam(shape=slot_bits, depth=self.config.channels)
        unused, written_slot, written_row = Signal(slot_bits + 1), Signal(slot_bits), Signal(row_bits)
        written = Signal()
        m.d.comb += [
            written_slot.eq(Mux(unused[slot_bits], free_slots.o.payload, unused)),
            written.eq(self.template.valid & self.template.payload.last),
            templates.write_en.eq(self.template.valid), templates.write_addr.eq(Cat(written_row, written_slot)),
            templates.write_data.eq(self.template.payload.data),
            free_slots.o.ready.eq(written & unused[slot_bits]),
            new_slots.i.valid.eq(written), new_slots.i.payload.eq(written_slot),
        ]
        with m.If(self.template.valid):
            m.d.sync += written_row.eq(Mux(self.template.payload.last, 0, written_row + 1))
        with m.If(written & ~unused[slot_bits]):
            m.d.sync += unused.eq(unused + 1)

        # Room downstream.
        frames, frames_next, ends = Signal(range(FRAMES + 1)), Signal(range(FRAMES + 1)), Signal(range(ENDS + 1))
        ends_next, taken_last, may_end = Signal(range(ENDS + 1)), Signal(), Signal(init=1)
        freed = Signal()
        takes, opens, marks, passes_on, may_open = Signal(), Signal(), Signal(), Signal(), Signal(init=1)
        has_payload = Signal()  # the frame that is opened
        opened, marked = Signal(), Signal()
        # Both are counted a cycle later. A frame may be opened right behind a mark: so one place is kept free.
        m.d.comb += [
            frames_next.eq(frames + (opened | marked) - freed),
            ends_next.eq(ends + taken_last - self.reported),
        ]
        m.d.sync += [
            opened.eq(opens), marked.eq(marks), freed.eq(self.freed),
            frames.eq(frames_next), may_open.eq(frames_next < FRAMES - 1),
            taken_last.eq(takes & slice_.last), ends.eq(ends_next), may_end.eq(ends_next != ENDS),
        ]

        # The frame under way: opened, then its lengths follow in the next cycle.
        frame = Signal(data.StructLayout({
            "payload": SEGMENT_BITS, "total": SEGMENT_BITS, "l3_sum": 16, "l4_sum": 16,
        }))
        sequence, identification, sent = Signal(32), Signal(16), Signal(Sent)
        l3_length, l4_length = Signal(16), Signal(16)
        payload_row, payload_rows = Signal(payload_bits), Signal(payload_bits)
        with m.If(opened):
            m.d.sync += [
                l3_length.eq(frame.total - job.l3_offset - Mux(job.ipv6, IPV6_HEADER_BYTES, 0)),
                l4_length.eq(frame.total - job.l4_offset),
                # its numbers are the template's and those of what the job has sent before it
                sequence.eq(template.sequence + slice_.offset),
                identification.eq(template.identification + slice_.number),
                payload_rows.eq(Mux(frame.payload == 0, 0,
                                    (job.inline_bytes[:lane_bits] + frame.payload + width - 1) >> lane_bits)),
            ]

        # One operation a cycle. It copies a row of the template, reads a word of it, or writes a word of the frame.
        operation = data.StructLayout({
            "copy": 1, "pick": 1, "write": 1, "checksum": 1, "first": 1, "l3": 1, "no_zero": 1, "commit": 1,
            "word": Word, "position": 8, "l3_term": 16, "l4_term": 16, "slot": slot_bits,
            "frame_slot": exact_log2(FRAMES), "inline_bytes": 8, "payload_row": payload_bits,
        })
        issue, issues = Signal(operation), Signal()
        template_slot, has_template = Signal(slot_bits), Signal()  # of the template in use
        frame_slot = Signal(exact_log2(FRAMES))
        m.d.comb += [
            issue.slot.eq(template_slot), issue.frame_slot.eq(frame_slot), issue.inline_bytes.eq(job.inline_bytes),
            issue.payload_row.eq(payload_row),
        ]

        def pass_on():
            """The frame's last operation is issued."""
            m.d.comb += passes_on.eq(1)
            m.next = "TAKE"

        # Take a slice; if its template is new, pick those words of it that change; then copy the template, write the
        # words, then the checksums.
        word = Signal(Word)
        picking, picked = Signal(), Signal()  # picked: the last word has arrived
        states = SmallRam(shape=TemplateState, depth=self.config.channels)
        freed_slot = Signal(slot_bits)
        copy_row, copies_left, copies_end = Signal(row_bits), Signal(row_bits), Signal()
        flags, cleared = Signal(16), Signal(16)
        inline_only, has_sums, drops = Signal(), Signal(), Signal()
        new_template = slice_.first & with_inline
        m.d.comb += [
            copies_end.eq(copies_left == 0),
            # PSH and FIN stand on the last segment only, CWR (RFC 3168 §6.1.2) on the first
            cleared.eq(Mux(slice_.first, 0, TcpFlags.CWR) | Mux(slice_.last, 0, TcpFlags.PSH | TcpFlags.FIN)),
            flags.eq(template.flags & ~cleared),
        ]

        def open_frame():
            """Begin a frame with payload, when its sum is there; or throw it away, if the bus failed."""
            with m.If(self.sums.valid & sums.error):
                m.d.comb += [self.sums.ready.eq(1), has_sums.eq(1)]
                with m.If(slice_.last):
                    m.next = "MARK"
                with m.Else():
                    m.d.comb += drops.eq(1)
                    m.next = "TAKE"
            with m.Elif(self.sums.valid & may_open):
                m.d.comb += [self.sums.ready.eq(1), has_sums.eq(1), opens.eq(1), has_payload.eq(1)]
                m.next = "COPY"

        with m.FSM(name="headers"):
            with m.State("TAKE"):
                with m.If(slices.o.valid & may_end):
                    with m.If(~with_rows):
                        m.d.comb += takes.eq(1)
                        m.next = "MARK"
                    with m.Elif(new_template):
                        with m.If(self.sums.valid):
                            m.d.comb += [takes.eq(1), self.sums.ready.eq(1), new_slots.o.ready.eq(1)]
                            m.d.sync += [template.l3_sum.eq(sums.l3_sum), template.l4_sum.eq(sums.l4_sum),
                                         inline_only.eq(sums.end)]
                            with m.If(job.segmented):
                                m.d.sync += picking.eq(1)
                                m.next = "WORDS"
                            with m.Elif(sums.end & may_open):
                                m.d.comb += opens.eq(1)
                                m.next = "COPY"
                            with m.Else():
                                m.next = "FRAME"
                    with m.Else():
                        m.d.comb += takes.eq(has_sums)
                        with m.If(takes):
                            m.d.sync += template.eq(Mux(with_inline, states.read_data, 0))
                        open_frame()

            with m.State("FRAME"):
                with m.If(inline_only & may_open):
                    m.d.comb += opens.eq(1)
                    m.next = "COPY"
                with m.Elif(~inline_only):
                    open_frame()

            with m.State("MARK"):
                with m.If(may_open):
                    m.d.comb += [issues.eq(1), marks.eq(1), passes_on.eq(1)]
                    m.next = "TAKE"

            with m.State("COPY"):
                # without inline bytes there is nothing to copy, but the sums start here all the same
                m.d.comb += [
                    issues.eq(1), issue.copy.eq(with_inline),
                    issue.position.eq(copy_row << lane_bits), issue.first.eq(copy_row == 0),
                    issue.l3_term.eq(Mux(copy_row == 0, frame.l3_sum, 0)),
                    issue.l4_term.eq(Mux(copy_row == 0, frame.l4_sum, 0)),
                ]
                m.d.sync += [copy_row.eq(copy_row + 1), copies_left.eq(copies_left - 1)]
                with m.If(copies_end):
                    with m.If(job.segmented):
                        m.next = "WORDS"
                    with m.Elif(job.ipv4_checksum):
                        m.next = "L3_CHECKSUM"
                    with m.Elif(job.l4_checksum):
                        m.next = "L4_CHECKSUM"
                    with m.Else():
                        pass_on()

            with m.State("WORDS"):
                m.d.comb += [issues.eq(1), issue.word.eq(word), issue.pick.eq(picking), issue.write.eq(~picking)]
                with m.Switch(word):
                    with m.Case(Word.LENGTH):
                        m.d.comb += [
                            issue.position.eq(
                                job.l3_offset + Mux(job.ipv6, IPV6_PAYLOAD_LENGTH_OFFSET, IPV4_TOTAL_LENGTH_OFFSET)),
                            issue.l3.eq(1), issue.l3_term.eq(l3_length),
                            # the pseudo-header's length: the template's seed is without it
                            issue.l4_term.eq(l4_length),
                        ]
                        m.d.sync += word.eq(Mux(job.ipv6, Word.SEQUENCE_HIGH, Word.IDENTIFICATION))
                    with m.Case(Word.IDENTIFICATION):
                        m.d.comb += [
                            issue.position.eq(job.l3_offset + IPV4_IDENTIFICATION_OFFSET), issue.l3.eq(1),
                            issue.l3_term.eq(identification),
                        ]
                        m.d.sync += word.eq(Word.SEQUENCE_HIGH)
                    with m.Case(Word.SEQUENCE_HIGH):
                        m.d.comb += [
                            issue.position.eq(job.l4_offset + TCP_SEQUENCE_OFFSET),
                            issue.l4_term.eq(sequence[16:]),
                        ]
                        m.d.sync += word.eq(Word.SEQUENCE_LOW)
                    with m.Case(Word.SEQUENCE_LOW):
                        m.d.comb += [
                            issue.position.eq(job.l4_offset + TCP_SEQUENCE_OFFSET + 2),
                            issue.l4_term.eq(sequence[:16]),
                        ]
                        m.d.sync += word.eq(Word.FLAGS)
                    with m.Case(Word.FLAGS):
                        m.d.comb += [
                            issue.position.eq(job.l4_offset + TCP_DATA_OFFSET_AND_FLAGS), issue.l4_term.eq(flags),
                        ]
                        m.d.sync += word.eq(Word.LENGTH)
                        with m.If(picking):
                            m.d.sync += picking.eq(0)
                            m.next = "PICKED"
                        with m.Elif(job.ipv6):
                            m.next = "L4_CHECKSUM"
                        with m.Else():
                            m.next = "L3_CHECKSUM"

            with m.State("PICKED"):
                with m.If(picked):
                    m.next = "FRAME"

            with m.State("L3_CHECKSUM"):
                m.d.comb += [
                    issues.eq(1), issue.write.eq(1), issue.checksum.eq(1), issue.l3.eq(1),
                    issue.position.eq(job.l3_offset + IPV4_CHECKSUM_OFFSET),
                ]
                with m.If(job.l4_checksum | job.segmented):
                    m.next = "L4_CHECKSUM"
                with m.Else():
                    pass_on()

            with m.State("L4_CHECKSUM"):
                m.d.comb += [
                    issues.eq(1), issue.write.eq(1), issue.checksum.eq(1), issue.no_zero.eq(job.udp),
                    issue.position.eq(job.checksum_offset),
                ]
                pass_on()

        # What was picked stays for the job's further frames, and its slot until the last is through.
        m.submodules.states = states
        m.d.comb += [
            states.read_addr.eq(channel), states.write_addr.eq(channel), states.write_data.eq(template),
            states.write_en.eq(opens & slice_.first & job.segmented),
            job_slots.read_addr.eq(channel), job_slots.write_addr.eq(channel),
            job_slots.write_data.eq(new_slots.o.payload), job_slots.write_en.eq(takes & slice_.first),
            free_slots.i.valid.eq(self.template_freed), free_slots.i.payload.eq(freed_slot),
        ]
        with m.If(takes):
            m.d.sync += [
                template_slot.eq(Mux(slice_.first, new_slots.o.payload, job_slots.read_data)),
                # a job's template came if anything of its first slice passed
                has_template.eq(with_inline & (job.status == Status.OK)
                                & ~(slice_.first & slice_.discarded)),
            ]

        # A frame is opened: what its header needs, and what is reported of the send.
        with m.If(opens):
            m.d.sync += [
                frame.payload.eq(Mux(has_payload, sums.length, 0)),
                frame.total.eq(job.inline_bytes + Mux(has_payload, sums.length, 0)),
                frame.l3_sum.eq(Mux(has_payload, sums.l3_sum[:16] + sums.l3_sum[16], 0)),
                frame.l4_sum.eq(Mux(has_payload, sums.l4_sum[:16] + sums.l4_sum[16], 0)),
                payload_row.eq(payload_row + payload_rows), copy_row.eq(0),
                copies_left.eq(Mux(with_inline, (job.inline_bytes - 1) >> lane_bits, 0)),
                sent.length.eq(slice_.offset + Mux(has_payload, sums.length, 0)),
                sent.segments.eq(slice_.number + 1),
            ]

        # What a job has sent before a frame in which the bus fails.
        m.submodules.sent_before = sent_before = SmallRam(shape=Sent, depth=self.config.channels)
        m.d.comb += [
            sent_before.write_en.eq(drops | passes_on), sent_before.write_addr.eq(channel),
            sent_before.read_addr.eq(channel), sent_before.write_data.eq(sent),
        ]
        with m.If(drops):
            m.d.comb += sent_before.write_data.eq(Mux(slice_.first, 0, sent_before.read_data))
        before = data.View(Sent, sent_before.read_data)

        # A frame is passed on, or the mark that ends a send without one.
        info, record = self.frame.payload, self.record.payload
        send_ends, slice_ends = Signal(), Signal()
        m.d.comb += [
            send_ends.eq(passes_on & slice_.last), slice_ends.eq(passes_on | drops), slices.o.ready.eq(slice_ends),
            issue.commit.eq(passes_on), self.frame.valid.eq(passes_on),
            info.inline_bytes.eq(job.inline_bytes), info.total.eq(frame.total), info.end.eq(send_ends),
            info.mark.eq(marks),
        ]
        m.d.sync += [
            self.record.valid.eq(send_ends), self.retired.eq(slice_ends),
            # its last copy reads it in the cycle behind
            self.template_freed.eq(send_ends & has_template),
        ]
        with m.If(send_ends):
            m.d.sync += freed_slot.eq(template_slot)
        m.d.sync += self.dropped.valid.eq(drops | (marks & with_rows))
        with m.If(drops | marks):
            m.d.sync += self.dropped.payload.amount.eq(job.inline_bytes + slice_.count)
        with m.If(passes_on):
            m.d.sync += frame_slot.eq(frame_slot + 1)
        with m.If(send_ends):
            m.d.sync += [
                *(record[name].eq(job[name]) for name in ("channel", "tag", "ring_index", "complete", "epoch")),
                record.discarded.eq(slice_.discarded), record.stamped.eq(job.timestamp & ~marks),
                record.status.eq(Mux(slice_.discarded, Status.OK, job.status)),
                record.length.eq(sent.length), record.segments.eq(sent.segments),
            ]
            with m.If(marks):
                m.d.sync += [
                    record.length.eq(Mux(slice_.first, 0, before.length)),
                    record.segments.eq(Mux(slice_.first, 0, before.segments)),
                ]
                with m.If(with_rows):
                    m.d.sync += record.status.eq(Status.BUS_ERROR)

        # The pipeline of operations. First the sums, and where a word goes.
        first, first_valid = Signal(operation), Signal()
        l3_total, l4_total = Signal(17), Signal(17)
        checksum = Signal(16)
        second_valid, third_valid = Signal(), Signal()
        # with nothing to write, and nothing on its way to be written, a frame is whole
        whole = Signal()
        m.d.comb += whole.eq(passes_on & ~issue.copy & ~issue.write & ~first_valid & ~second_valid & ~third_valid)
        m.d.sync += first_valid.eq(issues & ~whole)
        with m.If(issues & ~whole):
            m.d.sync += first.eq(issue)
        with m.If(first_valid):
            m.d.sync += [
                l3_total.eq(_add(Mux(first.first, template.l3_sum, l3_total), first.l3_term)),
                l4_total.eq(_add(Mux(first.first, template.l4_sum, l4_total), first.l4_term)),
            ]
        total = Mux(first.l3, l3_total, l4_total)
        m.d.comb += [
            checksum.eq(~(total[:16] + total[16])),
            templates.read_en.eq(first_valid & (first.copy | first.pick)),
            templates.read_addr.eq(Cat((first.position >> lane_bits)[:row_bits], first.slot)),
        ]

        target = data.StructLayout({
            "copy": 1, "pick": 1, "to_header": 1, "to_payload": 1, "commit": 1, "word": Word, "place": lane_bits - 1,
            "value": 16, "no_zero": 1, "header_row": exact_log2(FRAMES) + row_bits, "payload_row": payload_bits,
        })
        second, third = Signal(target), Signal(target)
        row = Signal(8 * width)  # of the template
        m.d.sync += [second_valid.eq(first_valid), third_valid.eq(second_valid)]
        with m.If(first_valid):
            m.d.sync += [
                *(second[name].eq(first[name]) for name in ("copy", "pick", "commit", "word")),
                # In the row that holds the end of the inline bytes and the start of the payload, both rings may be
                # written: each is read only for its own lanes.
                second.to_header.eq(first.write & (first.position < first.inline_bytes)),
                second.to_payload.eq(first.write & (first.position + 1 >= first.inline_bytes)),
                second.place.eq(first.position[1:lane_bits]),
                second.value.eq(Mux(first.checksum, checksum, Mux(first.l3, first.l3_term, first.l4_term))),
                second.no_zero.eq(first.no_zero),
                second.header_row.eq(Cat((first.position >> lane_bits)[:row_bits], first.frame_slot)),
                second.payload_row.eq(first.payload_row + (first.position >> lane_bits)
                                      - (first.inline_bytes >> lane_bits)),
            ]
        with m.If(second_valid):
            m.d.sync += third.eq(second)
            # RFC 768: "If the computed checksum is zero, it is transmitted as all ones"
            with m.If(second.no_zero & (second.value == 0)):
                m.d.sync += third.value.eq(0xFFFF)
            with m.If(second.copy | second.pick):
                m.d.sync += row.eq(templates.read_data)

        # Then the write; or the word that was picked leaves the template's sum, and waits to be written with each
        # frame.
        swapped = Cat(third.value[8:], third.value[:8])
        enable = Cat(third.place == place for place in range(width // 2))
        header, patch = self.header.payload, self.patch.payload
        m.d.sync += [
            self.header.valid.eq(third_valid & (third.copy | third.to_header)),
            self.patch.valid.eq(third_valid & third.to_payload), self.commit.eq((third_valid & third.commit) | whole),
        ]
        with m.If(third_valid & (third.copy | third.to_header)):
            m.d.sync += [
                header.row.eq(third.header_row), header.enable.eq(Mux(third.copy, ~0, enable)),
                header.data.eq(Mux(third.copy, row, swapped.replicate(width // 2))),
            ]
        with m.If(third_valid & third.to_payload):
            m.d.sync += [patch.row.eq(third.payload_row), patch.enable.eq(enable), patch.word.eq(swapped)]

        arrived, arrived_valid = Signal(data.StructLayout({"word": Word, "value": 16})), Signal()
        words = [Cat(row[at + 8:at + 16], row[at:at + 8]) for at in range(0, 8 * width, 16)]
        m.d.sync += arrived_valid.eq(third_valid & third.pick)
        with m.If(third_valid & third.pick):
            m.d.sync += [arrived.word.eq(third.word), arrived.value.eq(Array(words)[third.place])]
        m.d.comb += picked.eq(arrived_valid & (arrived.word == Word.FLAGS))
        with m.If(arrived_valid):
            with m.Switch(arrived.word):
                for which, target_sum, field in (
                    (Word.LENGTH, template.l3_sum, None),
                    (Word.IDENTIFICATION, template.l3_sum, template.identification),
                    (Word.SEQUENCE_HIGH, template.l4_sum, template.sequence[16:]),
                    (Word.SEQUENCE_LOW, template.l4_sum, template.sequence[:16]),
                    (Word.FLAGS, template.l4_sum, template.flags),
                ):
                    with m.Case(which):
                        m.d.sync += target_sum.eq(_add(target_sum, ~arrived.value))
                        if field is not None:
                            m.d.sync += field.eq(arrived.value)

        m.d.comb += self.active.eq(Cat(
            slices.active, takes, taken_last, opens, opened, marks, marked, issues, self.sums.valid & self.sums.ready,
            first_valid, second_valid, third_valid, self.header.valid, self.patch.valid, self.commit, arrived_valid,
            self.template.valid, self.freed, freed, self.reported, self.retired, self.template_freed, free_slots.active,
            new_slots.active,
        ).any())
        return m


def _add(total, term):
    """One's complement sum of a 16-bit sum with its carry (17 bits) and a 16-bit term, again with its carry.

    With a total that was made so from 16 bits, the result is at most 0x1fffe: adding its carry cannot overflow.
    """
    return total[:16] + term + total[16]
