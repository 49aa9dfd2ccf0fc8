"""All that surrounds the device, as `cosim/transactors/transactors.h`: the same work in the same order, so that every
time is the same to the picosecond.

`LeanTransactors` offers what `cosim.engines.library.Library` offers, so `TransactorPort` is the Port over either. It
knows no simulator: it is given the pins of `SimulationTop`, whose inputs pass a register. `tick` is called in the
middle of the cycle before an edge, and is the edge's: what it sets, the device sees behind that edge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cosim.engines.bus import BusTiming
from cosim.engines.lean.control import LeanControl
from cosim.engines.lean.host_bus import OFFERS, HostBus
from cosim.engines.lean.mac import LeanMac
from cosim.engines.lean.pins import NEVER, READY_SHIFT, VALID, Edges, Inputs, Pins
from cosim.engines.lean.registers import Registers
from cosim.engines.library import Status, Stop, Taken
from cosim.mac import MacTiming
from nic_model.contract import NicConfig
from rtl.simulation import FLAGS, OUTPUTS

RESET_EDGES = 4

_QUIET, _DEADLINE, _ERROR_IRQ, _ERROR_COMPLETION = (
    1 << FLAGS.index(name) for name in ("quiet", "deadline_valid", "error_irq", "error_completion"))
_TX = VALID["m_axis_tx"]
ALWAYS_READY = (1 << len(OUTPUTS)) - 1 & ~_TX

# IntFlag's operators are slow.
_INTERRUPT, _READ, _FRAMES, _LIMIT, _DEAD, _STUCK, _BROKEN, _MESSAGE = (int(getattr(Stop, name)) for name in (
    "INTERRUPT", "READ", "FRAMES", "LIMIT", "DEAD", "STUCK", "BROKEN", "MESSAGE"))


class LeanTransactors:
    """Bus, registers, MAC and interrupt lines round one device.

    Parameters: the device's configuration; its pins. Attributes: `status`, up to date whenever `tick` has returned
    True, or `count` been called; `idle_cycles`, so many edges may run without a tick, as nothing happens.
    """

    def __init__(self, config: NicConfig, pins: Pins) -> None:
        self._cycles = RESET_EDGES + 1  # a member of a Status is slow
        self.status = Status(cycles=self._cycles)
        self.idle_cycles = 0
        self._config = config
        self._edges = Edges(config.clock_hz)
        self._pins = pins
        self._inputs = Inputs(pins)
        self._registers = Registers(config, pins, self._inputs)
        self._read_flags, self._read_irq = pins.reader("flags"), pins.watcher("irq")
        self._read_deadline = pins.reader("next_deadline")
        self._set_ready, self._set_jump, self._set_jump_to = (
            pins.writer(name) for name in ("ready", "jump", "jump_to"))
        self._ready = ALWAYS_READY
        self._jumping = False
        self._jump = True
        self._edge, self._next_edge = -1, 0
        self._limit_ps, self._limit_edge = 0, 0
        self._wake_lines, self._wake_error = 0, False
        self._irq, self._error_irq = 0, False
        self._still_cycles = 0
        self._never_stuck_before = 0
        self._control = LeanControl(config, self._edges, pins) if config.flows else None
        self._values: list[tuple[int, int]] = []
        self._rises: list[tuple[int, int]] = []

    # ------------------------------------------------------------------------------------------ as Library

    def open(self, bus: BusTiming, mac: MacTiming, base: int, reads_from: bytearray, writes_to: bytearray,
             stuck_cycles: int) -> None:
        """See `Library.open`."""
        self._host = HostBus(self._config, self._edges, self._pins, self._inputs, bus, base, reads_from, writes_to)
        self._mac = LeanMac(self._config, self._edges, self._pins, self._inputs, mac)
        self._stuck_cycles = stuck_cycles

    def set_bus(self, bus: BusTiming) -> None:
        """See `Library.set_bus`."""
        self._host.bus.timing = bus

    def take_bus(self, now_ps: int, fractions: int) -> None:
        """See `Library.take_bus`."""
        self._host.bus.take(self._edges.at(now_ps) + 1, fractions)

    def watch(self, judge: Callable[[int, int, bool], bool] | None, *, watched: bool) -> None:
        """See `Library.watch`."""
        self._host.judge, self._host.watched = judge, watched

    def write(self, now_ps: int, address: int, data: bytes, length: int) -> None:
        """See `Library.write`."""
        self._registers.write(self._edges.at(now_ps) + self._host.bus.timing.mmio_write_cycles, address, data[:length])

    def read(self, now_ps: int, address: int, ticket: int) -> None:
        """See `Library.read`."""
        self._registers.read(self._edges.at(now_ps) + self._host.bus.timing.mmio_read_cycles // 2, address, ticket)

    def deliver(self, frames: Sequence[tuple[int, bytes, bool]]) -> None:
        """See `Library.deliver`."""
        for time_ps, data, bad in frames:
            self._mac.deliver(time_ps, data, bad)

    def expect(self, limit_ps: int, lines: int, error: int) -> None:
        """See `Library.expect`."""
        self._limit_ps, self._limit_edge = limit_ps, self._edges.at(limit_ps)
        self._wake_lines, self._wake_error = lines, bool(error)
        self.status.stop = 0

    def jump(self, jump: bool, jump_here: bool) -> None:
        """See `Library.jump`."""
        self._jump = jump and jump_here

    def take(self) -> Taken:
        """See `Library.take`."""
        taken = Taken(self._mac.reported(), self._values, self._host.bursts, self._rises)
        self._values, self._host.bursts, self._rises = [], [], []
        self.count()
        return taken

    def order(self, now_ps: int, message: bytes, *, is_emit: bool) -> None:
        """See `Library.order`."""
        self._port.order(now_ps, message, is_emit=is_emit)

    def hear(self) -> list[bytes]:
        """See `Library.hear`."""
        told, self._port.told = self._port.told, []
        return told

    def heard(self, messages: int) -> None:
        """See `Library.heard`."""
        self._port.heard(messages)

    @property
    def _port(self) -> LeanControl:
        assert self._control is not None, "this device has no control port"
        return self._control

    def report(self) -> str:
        """See `Library.report`."""
        said = [self._host.error, *self._registers.report(), *self._host.report(), *self._mac.report()]
        if self._control is not None:
            said += self._control.report()
        return "; ".join(filter(None, said))

    # ------------------------------------------------------------------------------------------ an edge

    def tick(self) -> bool:
        """One edge. Returns whether the host must be called."""
        edge = self._edge = self._next_edge
        self._next_edge = edge + 1
        self.idle_cycles = 0
        self._cycles += 1
        if self._jumping:
            self._jumping = False
            self._set_jump(0)
        flags = self._read_flags()
        stop = self._show_interrupts(edge, flags)
        if flags & _ERROR_COMPLETION:
            self.status.error_completions += 1

        inputs, host, mac, registers = self._inputs, self._host, self._mac, self._registers
        offered = inputs.valid
        ready = self._ready
        moved = bool(offered & flags >> READY_SHIFT)
        if flags & OFFERS:
            host.take(edge, flags)
            moved = True
        if registers.busy or registers.accesses:
            read_cycles = host.bus.timing.mmio_read_cycles
            moved |= registers.step(edge, flags, read_cycles - read_cycles // 2)
        host.drive(edge, flags)
        moved |= mac.sink(edge, flags)
        moved |= mac.source(edge, flags)
        self._ready = ALWAYS_READY | _TX if mac.ready else ALWAYS_READY
        control, port_offers, port_next = self._control, False, NEVER
        if control is not None:
            port_offered = control.offers
            moved |= control.step(edge, flags)
            port_offers, port_next = port_offered or control.offers, control.next()
            if control.ready:
                self._ready |= control.taken_bit
            if control.told:
                stop |= _MESSAGE
        if self._ready != ready:
            self._set_ready(self._ready)
        while registers.answered and registers.answered[0][0] <= edge:
            _, ticket, value = registers.answered.popleft()
            self._values.append((ticket, value))
            stop |= _READ
        if mac.report_by <= edge:
            stop |= _FRAMES
        if host.error:
            stop |= _BROKEN

        if (flags & _QUIET and not offered and not inputs.valid and not registers.busy and self._ready == ready
                and not port_offers):
            self._still_cycles = 0
            if not stop:
                stop = self._wait(edge, flags, port_next)
        else:
            self._still_cycles = 0 if moved or mac.drains(edge) else self._still_cycles + 1
            if edge >= self._limit_edge:
                stop |= _LIMIT
        if self._still_cycles > self._stuck_cycles or (edge >= self._never_stuck_before and self._is_stuck(edge)):
            stop |= _STUCK
        if not stop:
            return False
        status, now_ps = self.status, self._edges.time_of(edge)
        status.edge = edge
        status.stop |= stop
        status.now_ps = max(self._limit_ps, now_ps) if stop == _LIMIT else now_ps
        self.count()
        return True

    def skip(self, edges: int) -> None:
        """So many edges ran without a tick: at most `idle_cycles`."""
        self._next_edge += edges
        self._cycles += edges

    def _is_stuck(self, edge: int) -> bool:
        """Whether the device has waited for too long; and if not, how long it cannot have. What it waits for may have
        moved since, but not before this edge if it waits for nothing yet."""
        stuck_at = self._stuck_at()
        self._never_stuck_before = min(stuck_at, edge + self._stuck_cycles + 1)
        return edge >= stuck_at

    def _stuck_at(self) -> int:
        """The edge at which the device will have waited for too long for host memory or the MAC."""
        since = min(self._host.waits_since(), self._mac.held_since())
        return NEVER if since >= NEVER else since + self._stuck_cycles + 1

    def _wait(self, edge: int, flags: int, port_next: int) -> int:
        """The device does nothing by itself: how far may time go? Returns a reason to stop here, or jumps."""
        following = min(self._registers.next(), self._host.next(), self._mac.next(), port_next)
        if flags & _DEADLINE:
            following = min(following, self._read_deadline())
        if following >= NEVER and self._limit_edge >= NEVER:
            return _DEAD
        following = min(following, self._stuck_at())
        if following > self._limit_edge and (self._jump or edge >= self._limit_edge):
            return _LIMIT
        if not self._jump:
            self.idle_cycles = max(0, min(following, self._limit_edge) - edge - 1)
        elif following > edge + 1:
            self._jumping = True
            self._set_jump_to(following)
            self._set_jump(1)
            self._next_edge = following
        return 0

    def _show_interrupts(self, edge: int, flags: int) -> int:
        irq, error = self._read_irq(), bool(flags & _ERROR_IRQ)
        if irq != self._irq or error != self._error_irq:
            risen = [line for line in range(self._config.vectors) if (irq & ~self._irq) >> line & 1]
            if error and not self._error_irq:
                risen.append(self._config.vectors)
            self.status.interrupts += len(risen)
            if self._host.watched:
                self._rises += [(self._edges.time_of(edge), line) for line in risen]
            self._irq, self._error_irq = irq, error
        return _INTERRUPT if irq & self._wake_lines or (error and self._wake_error) else 0

    def count(self) -> None:
        """What the host may want to know, into `status`."""
        status, host, mac = self.status, self._host, self._mac
        status.cycles = self._cycles
        status.next_ps = self._edges.time_of(self._edges.at(status.now_ps) + 1)
        status.irq, status.error_irq = self._irq, self._error_irq
        status.dma_read_bytes, status.dma_write_bytes = host.read_bytes, host.write_bytes
        status.reads_in_flight, status.most_reads_in_flight = host.reads, host.most_reads
        status.frames_sent, status.frames_received = mac.frames_sent, mac.frames_received
        status.frames_waiting, status.reads_waiting = len(mac.frames), len(self._values)
        status.bursts_waiting, status.rises_waiting = len(host.bursts), len(self._rises)
