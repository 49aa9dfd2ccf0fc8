"""`memnic bench control` over the whole device: 60-byte segments of an offloaded flow both ways at once, as
`memnic bench rtl` measures those of channels.

The compiled engine runs the device with its control port; host memory answers reads in 250 cycles and writes in 100,
and the decider, in Python, answers each message at the edge behind its last beat: it places what comes, and orders the
next segment as soon as it has a credit.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from cosim import builds
from cosim.benches import cycles
from cosim.benches.control_rig import (
    CHANNEL,
    CONFIG,
    CONNECTION,
    FLOW,
    GENERATION,
    LINE_CYCLES,
    OWN_MAC,
    PAYLOAD_BYTES,
    segment,
)
from cosim.benches.rows import FAILED, Row, row
from cosim.engines.base import RunError
from cosim.engines.library import PortEventKind
from host_driver.account import NullAccount
from host_driver.nic import Nic
from host_driver.runtime import TaskFailed
from nic_model.contract import KeyRight, register
from nic_model.contract.control import ControlEnable, ControlType, DoneStatus, OrderFlag, pack_message, unpack_message
from nic_model.contract.protocols import TcpFlags

if TYPE_CHECKING:
    from cosim.benches import BenchOptions

FRAMES = 2000
AREA_BYTES = 1 << 16
SETTLE_CYCLES = 4000


class Outcome(NamedTuple):
    """What came of it."""

    sent_cycles: float
    """From frame to frame at the MAC, behind the first quarter of them."""
    placed: int
    """Segments whose payload is in memory, in its place."""
    sent: int


def measure(options: BenchOptions) -> list[Row]:
    """The rows of the whole device."""
    figures = "segments both ways at once, whole device, 64-bit"
    options.say(figures)
    names = (f"{figures}: from one that is sent to the next", f"{figures}, at line rate: not placed")
    try:
        outcome = run()
    except (RunError, TaskFailed) as error:
        return [row(name, None, unit, "<=", bar, f"{FAILED}{error}")
                for name, unit, bar in zip(names, ("cycles", "frames"), (LINE_CYCLES, 0.0), strict=True)]
    return [row(names[0], outcome.sent_cycles, "cycles", "<=", LINE_CYCLES, f"{outcome.sent} sent"),
            row(names[1], FRAMES - outcome.placed, "frames", "<=", 0.0, f"{outcome.placed} of {FRAMES} placed")]


def run(frames: int = FRAMES) -> Outcome:
    """So many segments each way. Raises TaskFailed if the device refuses what it is told, RunError if it stands still.
    """
    library = builds.build(CONFIG, builds.LIBRARY) / "obj" / builds.LIBRARY_NAME
    return cycles.run(CONFIG, library, cycles.BUSES["in order"], lambda rig: _load(rig, frames))


class _Decider:
    """Places what comes, and orders segments as long as it has credits."""

    def __init__(self, rig: cycles.Rig, key: int, sends: int) -> None:
        self.added: DoneStatus | None = None
        self._streams = rig.port.control
        self._streams.on_up = self._answer
        self._key = key
        self._credits = rig.config.emit_credits
        self._sends = deque(range(sends))
        self.sending = False

    def order(self, kind: ControlType, **fields: int) -> bytes:
        """A message about the flow."""
        return pack_message(kind, b"", flow=FLOW, generation=GENERATION, **fields)

    def _answer(self) -> None:
        while (message := self._streams.take()) is not None:
            kind, fields, _ = unpack_message(message)
            self._credits += fields["emit_credits"]
            if kind is ControlType.SEGMENT:
                self._streams.release(self.order(
                    ControlType.PLACE, handle=fields["handle"], length=fields["length"], key=self._key,
                    offset=fields["sequence"], flags=OrderFlag.LAST))
            elif kind is ControlType.DONE:
                self.added = DoneStatus(fields["status"])
        if self.sending:
            self.emit()

    def emit(self) -> None:
        """Send what the credits allow."""
        while self._credits and self._sends:
            self._credits -= 1
            number = self._sends.popleft()
            self._streams.emit(self.order(
                ControlType.EMIT, length=PAYLOAD_BYTES, pieces=1, mss=536, sequence=PAYLOAD_BYTES * number,
                tcp_flags=TcpFlags.ACK, window=1000, key_0=self._key, offset_0=AREA_BYTES + PAYLOAD_BYTES * number,
                length_0=PAYLOAD_BYTES))


async def _load(rig: cycles.Rig, frames: int) -> Outcome:
    nic = await Nic.probe(rig.port)
    area = rig.memory.allocate(2 * AREA_BYTES, 4096)
    rig.memory.write(area, bytes([0xFF]) * AREA_BYTES)
    key = nic.register_memory(area, 2 * AREA_BYTES, KeyRight.READ | KeyRight.WRITE, CHANNEL, NullAccount())
    nic.set_mac_address(OWN_MAC)
    rig.port.write32(register("CONTROL_ENABLE"), ControlEnable.FLOWS)
    nic.enable_receive(True)
    decider = _Decider(rig, key.value, 2 * frames)
    rig.port.control.release(decider.order(ControlType.FLOW_ADD, channel=CHANNEL, **CONNECTION))
    await rig.sleep(SETTLE_CYCLES)
    if decider.added is not DoneStatus.OK:
        raise RuntimeError(f"FLOW_ADD is answered with {decider.added}")
    rig.library.trace(on=True)
    decider.sending = True
    for number in range(frames):
        rig.deliver(segment(number), rig.after(1 + number * LINE_CYCLES))
    decider.emit()
    await rig.sleep(int(frames * LINE_CYCLES))
    sent_at = [event.edge for event in rig.library.take_trace() if event.kind is PortEventKind.SENT]
    await rig.sleep(SETTLE_CYCLES)
    wanted = b"".join(number.to_bytes(PAYLOAD_BYTES, "big") for number in range(frames))
    found = bytes(rig.memory.view(area, len(wanted)))
    placed = sum(found[at : at + PAYLOAD_BYTES] == wanted[at : at + PAYLOAD_BYTES]
                 for at in range(0, len(wanted), PAYLOAD_BYTES))
    steady = sent_at[len(sent_at) // 4 :]
    return Outcome((steady[-1] - steady[0]) / (len(steady) - 1), placed, len(sent_at))
