"""`memnic bench control`: offloaded segments through the control port, with a decider that answers at once.

What is measured is RTL under Amaranth's simulator, cycle by cycle: the receive path's front, the control port's receive
side, the key table and the DMA write engine; round them a MAC that sends shortest segments of one flow, a decider that
places each segment's payload in the cycle after the message has come, and a bus that answers a write in 100 cycles.
Then the send side (`cosim.benches.control_send`), and the whole device both ways at once
(`cosim.benches.control_whole`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from cosim.benches import control_send, control_whole
from cosim.benches.control_rig import (
    BUS_LATENCY_CYCLES,
    CHANNEL,
    CONFIG,
    CONNECTION,
    FLOW,
    FRAME_BYTES,
    FRAMES,
    GENERATION,
    KEY,
    LINE_CYCLES,
    MAX_CYCLES,
    PAYLOAD_BYTES,
    segment,
    set_up,
    simulate,
    steady_cycles,
)
from cosim.benches.rows import FAILED, Row, row
from nic_model.contract import KeyRight, register
from nic_model.contract.control import ControlType, DoneStatus, OrderFlag, pack_message, unpack_message

if TYPE_CHECKING:
    from cosim.benches import BenchOptions

KEY_BASE, KEY_BYTES = 0x10_0000, 0x1_0000


class Outcome(NamedTuple):
    """What came of a run."""

    placed: int
    """Segments whose payload is in memory and right."""
    cycles: float
    """From segment to segment, behind the first ones."""


def measure(options: BenchOptions) -> list[Row]:
    """The rows of the bench."""
    rows = []
    for figure, frame_cycles, unit, bar in (
            ("60-byte segments at line rate, 64-bit: not placed", LINE_CYCLES, "frames", 0.0),
            ("60-byte segments without a gap, 64-bit: from one to the next", FRAME_BYTES / 8, "cycles", LINE_CYCLES)):
        options.say(figure)
        try:
            outcome = run(frame_cycles, FRAMES)
        except RuntimeError as error:
            rows.append(row(figure, None, unit, "<=", bar, f"{FAILED}{error}"))
            continue
        value = outcome.cycles if unit == "cycles" else FRAMES - outcome.placed
        rows.append(row(figure, value, unit, "<=", bar, f"{outcome.placed} of {FRAMES} placed"))
    return [*rows, *control_send.measure(options), *control_whole.measure(options)]


def run(frame_cycles: float, frames: int) -> Outcome:
    """So many segments, one in so many cycles. Raises RuntimeError if the port stands still, or what it placed is
    wrong."""
    bench = _Bench(frame_cycles, frames)
    simulate(_rig(), bench.run)
    return Outcome(len(bench.placed_at), steady_cycles(bench.placed_at))


class _Bench:
    """MAC, decider and bus, a cycle at a time."""

    def __init__(self, frame_cycles: float, frames: int) -> None:
        self.placed_at: list[int] = []
        self._frame_cycles, self._frames = frame_cycles, frames
        self._orders: deque[int] = deque()
        self._message = b""
        self._written, self._next_number = b"", 0
        self._flow_is_there = False

    async def run(self, ctx: Any, rig: Any) -> None:
        """Set the device up, then let the frames come."""
        await set_up(ctx, rig, right=KeyRight.WRITE, key_base=KEY_BASE, key_bytes=KEY_BYTES,
                     more=[(register("RX_ENABLE"), 1)])
        self._order(pack_message(
            ControlType.FLOW_ADD, flow=FLOW, generation=GENERATION, channel=CHANNEL, **CONNECTION))
        ctx.set(rig.up.ready, 1)
        ctx.set(rig.entry.ready, 1)
        ctx.set(rig.axi.aw.ready, 1)
        ctx.set(rig.axi.w.ready, 1)
        beats, first_cycle = self._beats(), 0
        responses, waits, last_beats = deque[tuple[int, int]](), deque[int](), 0
        for cycle in range(MAX_CYCLES):
            # The MAC: a beat, if it is time.
            beat = None
            if self._flow_is_there:
                first_cycle = first_cycle or cycle
                beat = next(beats)(cycle - first_cycle)
            ctx.set(rig.mac.valid, int(beat is not None))
            if beat is not None:
                ctx.set(rig.mac.payload, beat)
            if self._orders:
                ctx.set(rig.release.payload.data, self._orders[0])
            ctx.set(rig.release.valid, int(bool(self._orders)))
            answer = bool(responses and responses[0][0] <= cycle)
            ctx.set(rig.axi.b.valid, int(answer))
            if answer:
                ctx.set(rig.axi.b.payload, {"id": responses[0][1], "resp": 0})
            _, _, up_valid, up, taken, aw_valid, aw, w_valid, w, placed = await ctx.tick().sample(
                rig.up.valid, rig.up.payload, rig.release.ready, rig.axi.aw.valid, rig.axi.aw.payload,
                rig.axi.w.valid, rig.axi.w.payload, rig.count_control_placed.valid)
            if self._orders and taken:
                self._orders.popleft()
            if answer:
                responses.popleft()
            if up_valid:
                self._take(int(up.data), bool(up["last"]))
            if aw_valid:
                waits.append(int(aw.id))
            if w_valid:
                self._write(int(w.data), int(w.strb))
                last_beats += int(w["last"])
            while last_beats and waits:
                responses.append((cycle + BUS_LATENCY_CYCLES, waits.popleft()))
                last_beats -= 1
            if placed:
                self.placed_at.append(cycle)
                if len(self.placed_at) == self._frames:
                    return
            if self._flow_is_there and cycle - first_cycle > self._frames * self._frame_cycles + 1000:
                return

    def _beats(self) -> Iterator[Any]:
        """For each cycle a function of the cycle's number: the beat then, or None."""
        frames = iter([segment(n) for n in range(self._frames)])
        frame, number, at = next(frames), 0, 0

        def beat(cycle: int) -> dict[str, int] | None:
            nonlocal frame, number, at
            if number == self._frames or (at == 0 and cycle < number * self._frame_cycles):
                return None
            piece = frame[at : at + 8]
            at += 8
            last = at >= len(frame)
            if last:
                number, at = number + 1, 0
                frame = next(frames, b"")
            return {"data": int.from_bytes(piece, "little"), "keep": (1 << len(piece)) - 1, "last": int(last)}

        while True:
            yield beat

    def _order(self, message: bytes) -> None:
        self._orders.extend(int.from_bytes(message[at : at + 16], "little") for at in range(0, len(message), 16))

    def _take(self, beat: int, last: bool) -> None:
        """What the decider makes of a beat: at a message's end it gives its order."""
        self._message += beat.to_bytes(16, "little")
        if not last:
            return
        kind, fields, _ = unpack_message(self._message)
        self._message = b""
        if kind is ControlType.SEGMENT:
            self._order(pack_message(
                ControlType.PLACE, flow=FLOW, generation=GENERATION, handle=fields["handle"], length=fields["length"],
                key=KEY, offset=fields["sequence"], flags=OrderFlag.LAST))
        elif kind is ControlType.DONE and fields["order"] == ControlType.FLOW_ADD and fields["status"] == DoneStatus.OK:
            self._flow_is_there = True
        else:
            raise RuntimeError(f"the port says {kind.name}: {fields}")

    def _write(self, data: int, strobes: int) -> None:
        """A beat of a write: the bytes of all must be the segments' numbers, in order, some of which may be lost."""
        self._written += bytes(data >> 8 * lane & 0xFF for lane in range(16) if strobes >> lane & 1)
        while len(self._written) >= PAYLOAD_BYTES:
            number = int.from_bytes(self._written[:PAYLOAD_BYTES], "big")
            if not self._next_number <= number < self._frames:
                raise RuntimeError(f"segment {number} was placed, behind {self._next_number - 1}")
            self._next_number = number + 1
            self._written = self._written[PAYLOAD_BYTES:]


def _rig() -> Any:
    """What is measured, as one component."""
    from amaranth.hdl import Module
    from amaranth.lib import stream, wiring
    from amaranth.lib.wiring import In, Out, connect, flipped

    from rtl.control_messages import message_beat
    from rtl.control_receive import ControlReceive
    from rtl.dma_write import DmaWrite
    from rtl.flow_entries import FlowWrite
    from rtl.interfaces import AxiWriteMaster, CountAmount, RegisterWrite, Strobe, mac_beat
    from rtl.keys import KeyTable
    from rtl.mac_rx import MacRx
    from rtl.parser import Parser

    class Rig(wiring.Component):
        def __init__(self) -> None:
            self.dma = DmaWrite(CONFIG)
            super().__init__({
                "mac": In(stream.Signature(mac_beat(CONFIG))), "write": In(Strobe(RegisterWrite)),
                "up": Out(stream.Signature(message_beat(CONFIG))),
                "release": In(stream.Signature(message_beat(CONFIG))),
                "entry": Out(stream.Signature(FlowWrite)), "axi": Out(AxiWriteMaster(CONFIG, self.dma.id_bits)),
                "count_control_placed": Out(Strobe(CountAmount)),
            })

        def elaborate(self, platform: object) -> Module:
            m = Module()
            m.submodules.mac_rx = mac_rx = MacRx(CONFIG)
            m.submodules.parser = parser = Parser(CONFIG)
            m.submodules.control = control = ControlReceive(CONFIG)
            m.submodules.keys = keys = KeyTable(CONFIG, clients=1)
            m.submodules.dma = dma = self.dma
            connect(m, flipped(self.mac), mac_rx.mac)
            connect(m, mac_rx.row, parser.row)
            connect(m, parser.parsed, control.row)
            connect(m, parser.flow, control.flow)
            for block in (mac_rx, parser, control, keys):
                connect(m, flipped(self.write), block.write)
            connect(m, flipped(self.release), control.release)
            connect(m, control.up, flipped(self.up))
            connect(m, control.entry, flipped(self.entry))
            connect(m, control.key_request, keys.request_0)
            connect(m, keys.answer_0, control.key_answer)
            connect(m, control.write_cmd, dma.cmd_place)
            connect(m, control.write_row, dma.row_place)
            connect(m, dma.done_place, control.write_done)
            connect(m, dma.axi, flipped(self.axi))
            connect(m, control.count_control_placed, flipped(self.count_control_placed))
            m.d.comb += control.place_over.ready.eq(1)
            return m

    return Rig()
