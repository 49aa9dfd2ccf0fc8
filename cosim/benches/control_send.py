"""The sending half of `memnic bench control`: segments that a decider orders as fast as its credits allow.

What is measured is RTL under Amaranth's simulator, cycle by cycle: the control port's send side, key table, the issue
of jobs, the transmit scheduler, the DMA read engine and the transmit back end; round them a decider that gives an EMIT
whenever it has a credit, a bus that answers a read in 100 cycles, and a MAC that is always ready. Of every frame the
headers' lengths and checksums, its sequence number and its payload are looked at.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

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
    LOCAL,
    MAX_CYCLES,
    REMOTE,
    set_up,
    simulate,
    steady_cycles,
)
from cosim.benches.rows import FAILED, Row, row
from nic_model.checksum import ones_sum
from nic_model.contract import KeyRight, NicConfig
from nic_model.contract.control import ControlType, OrderFlag, pack_message, unpack_message
from nic_model.contract.protocols import ETHERNET_HEADER_BYTES, IPV4_HEADER_BYTES, TCP_HEADER_BYTES

if TYPE_CHECKING:
    from cosim.benches import BenchOptions

KEY_BASE = 0x1_2345_6000
_HEADERS_BYTES = ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES + TCP_HEADER_BYTES


class Load(NamedTuple):
    """What the decider asks for."""

    name: str
    payload_bytes: int
    flags: OrderFlag = OrderFlag(0)


LOADS = (
    Load("60-byte segments sent, with payload", FRAME_BYTES - _HEADERS_BYTES),
    Load("acknowledgements sent, without options", 0),
    Load("acknowledgements sent, with timestamps", 0, OrderFlag.TIMESTAMP),
)


def measure(options: BenchOptions) -> list[Row]:
    """The rows of the bench."""
    rows = []
    for load in LOADS:
        figure = f"{load.name}, 64-bit: cycles for each"
        options.say(figure)
        try:
            cycles = run(load)
        except RuntimeError as error:
            rows.append(row(figure, None, "cycles", "<=", LINE_CYCLES, f"{FAILED}{error}"))
            continue
        rows.append(row(figure, cycles, "cycles", "<=", LINE_CYCLES, f"{FRAMES} frames"))
    return rows


def run(load: Load) -> float:
    """Cycles from frame to frame, behind the first ones. Raises RuntimeError if a frame is wrong or they end."""
    bench = _Bench(CONFIG, load)
    simulate(_rig(CONFIG), bench.run)
    if len(bench.begun_at) < FRAMES:
        raise RuntimeError(f"only {len(bench.begun_at)} of {FRAMES} segments left in {MAX_CYCLES} cycles")
    return steady_cycles(bench.begun_at)


def _byte(offset: int) -> int:
    """A byte of the registered memory."""
    return (offset * 37 + (offset >> 8)) & 0xFF


class _Bench:
    """Decider, bus and MAC, a cycle at a time."""

    def __init__(self, config: NicConfig, load: Load) -> None:
        self.begun_at: list[int] = []
        self._config, self._load = config, load
        self._credits, self._ordered, self._checked = config.emit_credits, 0, 0
        self._beats: deque[int] = deque()
        self._message = self._frame = b""

    async def run(self, ctx: Any, rig: Any) -> None:
        """Set the device up, then order frame after frame."""
        await self._set_up(ctx, rig)
        for stream in (rig.up, rig.mac, rig.axi.ar):
            ctx.set(stream.ready, 1)
        reads: deque[tuple[int, int, int, bool]] = deque()
        for cycle in range(MAX_CYCLES):
            if not self._beats and self._credits and self._ordered < FRAMES:
                self._order()
            ctx.set(rig.emit.valid, int(bool(self._beats)))
            if self._beats:
                ctx.set(rig.emit.payload.data, self._beats[0])
            answers = bool(reads and reads[0][0] <= cycle)
            ctx.set(rig.axi.r.valid, int(answers))
            if answers:
                ctx.set(rig.axi.r.payload, {
                    "id": reads[0][1], "data": self._word(reads[0][2]), "resp": 0, "last": int(reads[0][3])})
            _, _, taken, r_taken, ar_valid, ar, up_valid, up, mac_valid, mac = await ctx.tick().sample(
                rig.emit.ready, rig.axi.r.ready, rig.axi.ar.valid, rig.axi.ar.payload, rig.up.valid, rig.up.payload,
                rig.mac.valid, rig.mac.payload)
            if self._beats and taken:
                self._beats.popleft()
            if answers and r_taken:
                reads.popleft()
            if ar_valid:
                for beat in range(ar.len + 1):
                    reads.append((cycle + BUS_LATENCY_CYCLES, ar.id, ar.addr + beat * self._config.host_bytes,
                                  beat == ar.len))
            if up_valid:
                self._take_up(up)
            if mac_valid:
                self._take_beat(cycle, mac)
            if self._checked == FRAMES:
                return

    async def _set_up(self, ctx: Any, rig: Any) -> None:
        await set_up(ctx, rig, right=KeyRight.READ, key_base=KEY_BASE, key_bytes=1 << 20)
        ctx.set(rig.entry.payload, {"flow": FLOW, "entry": {
            "valid": 1, "generation": GENERATION, "channel": CHANNEL, "hop_limit": 64, **CONNECTION}})
        ctx.set(rig.entry.valid, 1)
        while not (await ctx.tick().sample(rig.entry.ready))[2]:
            pass
        ctx.set(rig.entry.valid, 0)

    def _word(self, address: int) -> int:
        width, at = self._config.host_bytes, address - address % self._config.host_bytes - KEY_BASE
        return int.from_bytes(bytes(_byte(offset) for offset in range(at, at + width)), "little")

    def _order(self) -> None:
        length = self._load.payload_bytes
        piece = {"pieces": 1, "key_0": KEY, "offset_0": self._ordered * length, "length_0": length} if length else {}
        message = pack_message(
            ControlType.EMIT, b"", flow=FLOW, generation=GENERATION, flags=int(self._load.flags), length=length,
            mss=1448, sequence=self._ordered, tcp_flags=0x10, window=1000, **piece)
        width = self._config.host_bytes
        self._beats.extend(int.from_bytes(message[at:at + width], "little") for at in range(0, len(message), width))
        self._credits -= 1
        self._ordered += 1

    def _take_up(self, beat: Any) -> None:
        self._message += int(beat.data).to_bytes(self._config.host_bytes, "little")
        if beat.last:
            kind, fields, _ = unpack_message(self._message)
            if kind is ControlType.DONE:
                raise RuntimeError(f"an order was refused: {fields}")
            self._credits += fields["emit_credits"]
            self._message = b""

    def _take_beat(self, cycle: int, beat: Any) -> None:
        if not self._frame:
            self.begun_at.append(cycle)
        self._frame += int(beat.data).to_bytes(self._config.mac_bytes, "little")[:int(beat.keep).bit_count()]
        if beat.last:
            self._check(self._frame)
            self._checked, self._frame = self._checked + 1, b""

    def _check(self, frame: bytes) -> None:
        """Raises RuntimeError for a frame that is not the next one."""
        ip, tcp = frame[ETHERNET_HEADER_BYTES:][:IPV4_HEADER_BYTES], frame[ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES:]
        pseudo = LOCAL + REMOTE + bytes((0, 6)) + len(tcp).to_bytes(2, "big")
        length, number = self._load.payload_bytes, self._checked
        wanted = bytes(_byte(offset) for offset in range(number * length, (number + 1) * length))
        right = (int.from_bytes(ip[2:4], "big") == len(ip) + len(tcp)
                 and ones_sum(ip) == ones_sum(pseudo + tcp) == 0xFFFF
                 and int.from_bytes(tcp[4:8], "big") == number and tcp[4 * (tcp[12] >> 4):] == wanted)
        if not right:
            raise RuntimeError(f"frame {number} is wrong: {frame.hex()}")


def _rig(config: NicConfig) -> Any:
    """What is measured, as one component."""
    from amaranth.hdl import Module
    from amaranth.lib import stream, wiring
    from amaranth.lib.wiring import In, Out, connect, flipped

    from rtl.control_messages import message_beat
    from rtl.control_port import ControlPort
    from rtl.descriptor import JobIssue
    from rtl.dma_read import DmaRead
    from rtl.flow_entries import FlowWrite
    from rtl.interfaces import AxiReadMaster, RegisterWrite, Strobe, mac_beat
    from rtl.keys import KeyTable
    from rtl.transmit_back import TransmitBack
    from rtl.tx_scheduler import TransmitScheduler

    class Rig(wiring.Component):
        def __init__(self) -> None:
            self.dma = DmaRead(config)
            super().__init__({
                "write": In(Strobe(RegisterWrite)), "emit": In(stream.Signature(message_beat(config))),
                "up": Out(stream.Signature(message_beat(config))), "entry": In(stream.Signature(FlowWrite)),
                "axi": Out(AxiReadMaster(config, self.dma.id_bits)), "mac": Out(stream.Signature(mac_beat(config))),
            })

        def elaborate(self, platform: object) -> Module:
            m = Module()
            m.submodules.port = port = ControlPort(config)
            m.submodules.keys = keys = KeyTable(config, clients=1)
            m.submodules.issue = issue = JobIssue(config)
            m.submodules.scheduler = scheduler = TransmitScheduler(config)
            m.submodules.dma = dma = self.dma
            m.submodules.back = back = TransmitBack(config)
            for block in (port, keys):
                connect(m, flipped(self.write), block.write)
            for name in ("emit", "entry"):
                connect(m, flipped(getattr(self, name)), getattr(port, name))
            connect(m, port.up, flipped(self.up))
            connect(m, port.key_request, keys.request_0)
            connect(m, keys.answer_0, port.key_answer)
            connect(m, port.checked, issue.i)
            for name in ("verdict", "piece", "row"):
                connect(m, getattr(port, name), getattr(issue, name))
            for name in ("job", "stored_row", "stored_piece"):
                connect(m, getattr(issue, name), getattr(scheduler, name))
            connect(m, scheduler.payload_cmd, dma.cmd_payload)
            connect(m, dma.beat_payload, back.payload)
            connect(m, scheduler.slice, back.slice)
            for source, sink in ((scheduler.inline, back.inline), (back.begun, scheduler.begun),
                                 (back.dropped, scheduler.dropped), (back.done, port.done),
                                 (scheduler.freed, port.freed)):
                connect(m, source, sink)
            connect(m, back.mac, flipped(self.mac))
            connect(m, dma.axi, flipped(self.axi))
            m.d.comb += scheduler.running.eq(~0)
            return m

    return Rig()
