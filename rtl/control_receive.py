"""The control port's receive side: this file connects its blocks."""

from amaranth.hdl import Cat, Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import NicConfig
from nic_model.contract.control import ControlType
from rtl.control_admission import ControlAdmission
from rtl.control_complete import ControlComplete
from rtl.control_dones import ReleaseDones
from rtl.control_messages import MessageArbiter, message_beat
from rtl.control_place import ControlPlace
from rtl.control_release import ControlRelease
from rtl.flow_entries import FLOW_BITS, FlowWrite
from rtl.header_fields import Flow
from rtl.interfaces import (
    TIME_BITS,
    CountAmount,
    KeyAnswer,
    KeyRequest,
    RegisterWrite,
    SocketDone,
    SocketTaken,
    Strobe,
    WriteCommand,
    WriteDone,
    row,
)
from rtl.parser import parsed_row
from rtl.rx_buffer import RxFrame

COUNTED = {
    "admission": ("no_slot", "no_handle", "no_cell", "segments", "unknown", "bytes"),
    "place": ("placed", "drops", "passes"), "complete": ("completes",), "dones": ("stale", "refused"),
}
"""Block -> what it counts, as `control_` counters."""


class ControlReceive(wiring.Component):
    """Frames of offloaded connections to their decider, and their payload to where it says.

    Enters: `row` and `flow`, from the parser; `release`, the decider's orders. Leaves: `rest`, the rows of all frames,
    of which the last of one that was taken does not pass; `passed`, frames that come back; `up`, messages; writes of
    host memory; what the send side has to know of flows; completions of socket operations.

    Parameters
    ----------
    config : NicConfig
        Sizes of the device; `flows` is not 0.

    Members
    -------
    write : register writes.
    row, flow, rest, taken : see `rtl.control_admission.ControlAdmission`.
    passed, passed_row : see `rtl.rx_buffer.RxBuffer`.
    release, up : beats of messages.
    key_request, key_answer : client of the key table.
    write_cmd, write_row, write_done : client of the DMA write engine.
    entry, keeps_key : see `rtl.control_release.ControlRelease`.
    socket, socket_taken : see `o` and `taken` of `rtl.control_complete.ControlComplete`.
    place_over : see `over` of `rtl.control_place.ControlPlace`.
    drain_request, drain_done : PLACEs that passed the key table's check before are over.
    now : cycle count.
    count_control_... : strobes.

    Attributes
    ----------
    delay : int
        Cycles from a row at `row` to the same at `rest`.
    """

    def __init__(self, config: NicConfig):
        self.config = config
        self._admission = ControlAdmission(config)
        self.delay = self._admission.delay
        super().__init__({
            "write": In(Strobe(RegisterWrite)),
            "row": In(Strobe(parsed_row(config))), "flow": In(Strobe(Flow)),
            "rest": Out(Strobe(parsed_row(config))), "taken": Out(1),
            "passed": Out(stream.Signature(RxFrame)), "passed_row": Out(stream.Signature(row(config))),
            "release": In(stream.Signature(message_beat(config))), "up": Out(stream.Signature(message_beat(config))),
            "key_request": Out(stream.Signature(KeyRequest)), "key_answer": In(stream.Signature(KeyAnswer)),
            "write_cmd": Out(stream.Signature(WriteCommand)), "write_row": Out(stream.Signature(row(config))),
            "write_done": In(stream.Signature(WriteDone)),
            "entry": Out(stream.Signature(FlowWrite)), "keeps_key": Out(1),
            "socket": Out(stream.Signature(SocketDone)), "socket_taken": In(Strobe(SocketTaken)),
            "place_over": Out(stream.Signature(FLOW_BITS)),
            "drain_request": In(1), "drain_done": Out(1),
            "now": In(TIME_BITS),
            **{f"count_control_{name}": Out(Strobe(CountAmount)) for names in COUNTED.values() for name in names},
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.admission = admission = self._admission
        m.submodules.release = release = ControlRelease(self.config)
        m.submodules.place = place = ControlPlace(self.config)
        m.submodules.complete = complete = ControlComplete(self.config)
        m.submodules.dones = dones = ReleaseDones(self.config)
        m.submodules.messages = messages = MessageArbiter(self.config, count=2)

        # Frames in, what is told of them.
        connect(m, flipped(self.write), admission.write)
        connect(m, flipped(self.row), admission.row)
        connect(m, flipped(self.flow), admission.flow)
        connect(m, admission.rest, flipped(self.rest))
        connect(m, admission.o, messages.i[0])
        connect(m, dones.o, messages.i[1])
        connect(m, messages.o, flipped(self.up))

        # Orders.
        connect(m, flipped(self.release), release.i)
        connect(m, admission.held, release.held)
        for table in ("flow", "listen"):
            connect(m, getattr(release, f"{table}_order"), getattr(admission, f"{table}_order"))
            connect(m, getattr(admission, f"{table}_done"), getattr(release, f"{table}_done"))
        connect(m, release.entry, flipped(self.entry))
        connect(m, release.done, dones.other)
        connect(m, release.passed, flipped(self.passed))
        connect(m, admission.passed_row, flipped(self.passed_row))

        # Bytes of frames to host memory.
        connect(m, release.place, place.order)
        connect(m, place.cell_order, admission.order)
        connect(m, admission.cell, place.cell)
        connect(m, place.key_request, flipped(self.key_request))
        connect(m, flipped(self.key_answer), place.key_answer)
        connect(m, place.write_cmd, flipped(self.write_cmd))
        connect(m, place.write_row, flipped(self.write_row))
        connect(m, flipped(self.write_done), place.write_done)
        connect(m, place.done, dones.place)
        connect(m, place.over, flipped(self.place_over))

        # Completions of socket operations, behind PLACEs.
        connect(m, release.complete, complete.i)
        connect(m, complete.o, flipped(self.socket))
        connect(m, flipped(self.socket_taken), complete.taken)
        connect(m, complete.done, dones.complete)
        handed_on = release.place.payload.done
        m.d.comb += [
            complete.place_given.valid.eq(release.place.valid & release.place.ready
                                          & (handed_on.order == ControlType.PLACE)),
            complete.place_given.payload.eq(handed_on.flow),
            complete.place_over.eq(place.over.valid & place.over.ready),
            complete.drain_request.eq(self.drain_request), self.drain_done.eq(complete.drain_done),
        ]

        blocks = {"admission": admission, "release": release, "place": place, "complete": complete, "dones": dones,
                  "messages": messages}
        for name, counts in COUNTED.items():
            for count in counts:
                connect(m, getattr(blocks[name], f"count_{count}"), flipped(getattr(self, f"count_control_{count}")))
        m.d.comb += [
            self.taken.eq(admission.taken), admission.ended.eq(place.ended),
            release.place_idle.eq(place.idle & complete.idle),
            release.to_tell.eq(admission.to_tell),
            release.told.eq(admission.told), self.keeps_key.eq(release.keeps_key),
            admission.now.eq(self.now), dones.now.eq(self.now),
            self.active.eq(Cat(block.active for block in blocks.values()).any()),
        ]
        return m
