"""The device in time: what `nic_model.device` does, at the edges that the timing rules give.

What is done and when are apart. A descriptor is carried out when its doorbell comes, since nothing of it may change
afterwards; its frames, its completion and its interrupt wait here until their edges. A frame that arrives meets filter,
steering, coalescing and buffers when the rules say that it is its turn. In packet order: doorbell, jobs, frames;
arrival, buffers, completion, event.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from typing import Any

from nic_model import ring
from nic_model.coalescing import Aggregate, Verdict
from nic_model.contract import (
    COMPLETION,
    DOORBELL_STRIDE,
    MAX_FRAME_BYTES,
    PUSH_WINDOW_SLOTS,
    REGISTERS,
    ChannelError,
    ChannelState,
    CompletionKind,
    KeyRight,
    Opcode,
    RxInfo,
    Status,
)
from nic_model.contract.protocols import ETHERNET_HEADER_BYTES, PAUSE_FRAME_BYTES, VLAN_TAG_BYTES
from nic_model.device import Device, _Channel, _Receive, _Slot
from nic_model.flags import IPV4_CHECKSUM, L4_CHECKSUM, TIMESTAMP, VLAN_INSERT
from nic_model.pause import claims_pause
from nic_model.receive_parser import passes_filter
from nic_model.submission import Piece, Submission
from nic_model.timed_coalescing import ReceiveTurns, TimedCoalescer
from nic_model.timing import rules, stages
from nic_model.timing.machine import Machine
from nic_model.timing.parameters import DeviceModel
from nic_model.timing.state import BusModel, MacModel

PUSH_BLOCK_BYTES = 64
NOT_KEPT = -1
"""Channel of a frame that the receive buffer drops."""


@dataclass(slots=True)
class _Entry:
    """A completion on its way."""

    channel: _Channel
    life: int
    """Of the channel: what belongs to an earlier one is not written."""
    kind: CompletionKind
    fields: dict[str, int]


@dataclass(slots=True)
class _Sent:
    """A descriptor that has been carried out."""

    frames: deque[bytes]
    entry: _Entry | None
    stamped: bool


@dataclass(slots=True)
class _Arrived:
    """A frame on its way to its buffers."""

    data: bytes
    bad: bool
    first_edge: int


@dataclass(slots=True)
class _Work:
    """What the untimed device did while it was asked for one thing."""

    addresses: list[int] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    entries: list[tuple[Any, _Entry]] = field(default_factory=list)
    """(the receive that they are of, or None; completion)."""
    receive: Any = None
    parts: list[tuple[int, int]] = field(default_factory=list)
    """(address, length) of what is written of a frame."""
    buffers: int = 0
    appends: bool = False


class _Doing(Device):
    """The untimed device, which notes what it does instead of telling the host."""

    def __init__(self, model: DeviceModel, memory_read: Any, memory_write: Any) -> None:
        super().__init__(model.config, memory_read, memory_write)
        self._coalescer = self.coalescer = TimedCoalescer(model)
        self.work = _Work()
        self.lives = [0] * model.config.channels
        self.submitted: Callable[[_Channel, Submission, int], None] = lambda channel, submission, status: None
        self.arrived: dict[int, _Arrived] = {}
        """Frames that have not been looked at, in order."""
        self.is_judged = False
        """Whether one has, and does not have its buffers yet."""

    def _carry_out(self, channel: _Channel, submission: Submission) -> None:
        self.work = _Work()
        self.on_frame = self.work.frames.append
        super()._carry_out(channel, submission)
        self.submitted(channel, submission, 0)

    def _read_payload(self, pieces: tuple[Piece, ...], addresses: list[int]) -> bytes:
        self.work.addresses = addresses
        return super()._read_payload(pieces, addresses)

    def _tell(self, receive: _Receive) -> None:
        self.work.receive, before = receive, self.work.receive
        self._telling = receive
        super()._tell(receive)
        self._telling = None
        self.work.receive = before

    _telling: Any = None

    def _take_slots(self, channel: _Channel, length_bytes: int) -> list[_Slot] | str:
        found = super()._take_slots(channel, length_bytes)
        if isinstance(found, list):
            self.work.buffers += len(found)
        return found

    def _append(self, channel: _Channel, aggregate: Aggregate, verdict: Verdict, frame: bytes,
                info: RxInfo) -> str | None:
        self.work.appends = True
        return super()._append(channel, aggregate, verdict, frame, info)

    def _write(self, receive: _Receive, data: bytes, slots: list[_Slot]) -> bool:
        before = [(slot, slot.used) for slot in ([] if not receive.slots else [receive.slots[-1]])]
        before += [(slot, 0) for slot in slots]
        good = super()._write(receive, data, slots)
        self.work.receive = receive
        for slot, used in before:
            if slot.used > used:
                _, address = self._keys.check(receive.channel.number, slot.key, slot.offset + used, slot.used - used,
                                              KeyRight.WRITE)
                self.work.parts.append((address, slot.used - used))
        return good

    def _complete(self, channel: _Channel, *, kind: CompletionKind, **fields: int) -> None:
        if channel.runs:
            self.work.entries.append((self._telling, _Entry(channel, self.lives[channel.number], kind, fields)))

    def _end(self, aggregates: Iterable[Aggregate]) -> None:
        super()._end(aggregates)
        if self.ended is not None:
            self.ended()

    ended: Callable[[], None] | None = None

    def end_aged(self) -> None:
        """What ends by its age before the frame that is looked at now."""
        self._end(self.coalescer.age(self.now_cycles))

    def _may_age(self, deadline_cycles: int) -> bool:
        """Not while a frame waits that came earlier. Once the deadline has passed like that, nothing ends but for a
        frame, until none is on its way: see `rtl.arrivals.Arrivals`."""
        if self.is_judged or not self.arrived:
            return not self.is_judged
        first_edge = next(iter(self.arrived.values())).first_edge
        return deadline_cycles <= first_edge and (self.now_cycles <= deadline_cycles or self.now_cycles < first_edge)


class TimedDevice:
    """One device, with bytes and in time.

    Enters: register accesses, doorbells and frames, each at an edge that `enter` has said before. Leaves: frames
    through `on_frame(data, last_edge)`, interrupt lines through `on_irq(vector, level)`, accesses to host memory as
    `nic_model.device.Device` makes them. `next_edge` says when something happens by itself. Attributes: `doing`, the
    untimed device; `machine`, the stages.
    """

    def __init__(self, model: DeviceModel, bus: BusModel, mac: MacModel,
                 memory_read: Callable[[int, int], bytes | None], memory_write: Callable[[int, bytes], bool]) -> None:
        self.model = model
        self.config = model.config
        self.doing = _Doing(model, memory_read, memory_write)
        self.machine = Machine(model, bus, mac, asks=True)
        self.on_frame: Callable[[bytes, int], None] = lambda data, edge: None
        self.now = 0
        self._memory_write = memory_write
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._sent: dict[tuple[int, int], _Sent] = {}
        self._receives: dict[int, deque[_Entry]] = {}
        self._arrivals = self._closes = 0
        self._written = [0] * model.config.channels
        self._slots = 0
        self._begun = self._over = 0
        self._drain_at = 0
        self._drains = False
        self._deadline, self._deadline_unknown = rules.NEVER, True
        self._asked = self.machine.numbers["asked"].data
        self._tables, self._channels = self.machine.tables, self.machine.tables["channels"]
        self._turns = ReceiveTurns(model)
        self._merges = False
        """Whether the stages were told of the last frame that it is part of an aggregate, or had to wait for one."""
        self._later = model.timing.deadline_to_irq - model.timing.response_to_irq
        self.doing.submitted = self._submitted
        self.doing.ended = self._tell_ended

    # ------------------------------------------------------------------------------------------ time

    def next_edge(self) -> int | None:
        """When something happens by itself, if ever."""
        edge, acts = self._next_event(), self.machine.next_edge()
        if acts < edge:
            edge = acts
        if edge >= rules.NEVER:
            return None
        return edge if edge > self.now else self.now

    def _next_event(self) -> int:
        """When the host would see something that is known of, or moderation does something."""
        if self._deadline_unknown:
            deadline = self.doing.next_deadline()
            self._deadline = rules.NEVER if deadline is None else deadline
            self._deadline_unknown = False
        events = self._events
        return events[0][0] if events and events[0][0] < self._deadline else self._deadline

    def look_ahead(self, edge: int) -> None:
        """Let the stages act up to an edge before which nothing enters and the host does not look, or to where it hears
        something. What it does not hear of happens: it finds all as if it had happened in its time."""
        machine = self.machine
        while True:
            due = self._next_event()
            until = due if due < edge else edge
            if machine.next_edge() <= until:
                if not machine.advance(until):
                    self._take_out()
                    if self._asked[0]:
                        self._match()
            elif due <= edge and self._is_quiet():
                self._happen()
            else:
                return

    def _is_quiet(self) -> bool:
        """Whether the host does not hear of what happens next."""
        events = self._events
        if not events or self._deadline <= events[0][0]:
            return False
        _, _, act, arguments = events[0]
        return act == self._store or (act == self._told and not self._may_rise(arguments[0].channel))

    def advance(self, edge: int) -> None:
        """Let time pass up to an edge; all that is due by then happens, in order."""
        self.look_ahead(edge)
        while (due := self._next_event()) <= edge:
            while self._events and self._events[0][0] <= due:
                self._happen()
            if self._deadline <= due:
                self.now = max(self.now, due)
                self.doing.work = _Work()
                self.doing.advance(due)
                self._deadline_unknown = True
            self.look_ahead(edge)
        if edge > self.now:
            self.now = edge
        self.doing.now_cycles = self.now

    def _happen(self) -> None:
        """The next event happens."""
        edge, _, act, arguments = heapq.heappop(self._events)
        if edge > self.now:
            self.now = edge
        act(*arguments)

    def enter(self, edge: int) -> None:
        """Something enters at an edge: all before it happens."""
        self.advance(edge - 1)
        self.now = max(self.now, edge)
        self.doing.now_cycles = self.now

    def take_bus(self, edge: int, fractions: int) -> None:
        """From an edge on something else has the host bus for a time, in `rules.FRACTION_BITS` of a cycle."""
        self.enter(edge)
        numbers, start = self.machine.numbers, edge << rules.FRACTION_BITS
        for name in ("bus_up", "bus_down"):
            numbers[name][0] = max(start, int(numbers[name][0])) + fractions

    def _at(self, edge: int, act: Callable[..., None], *arguments: Any) -> None:
        self._order += 1
        heapq.heappush(self._events, (edge, self._order, act, arguments))

    def _take_out(self) -> None:
        """What the stages say."""
        for kind, a, b, c, d, e in self.machine.taken():
            if kind == rules.FRAME:
                sent = self._sent[a, b]
                if sent.frames:
                    self._at(d, self.on_frame, sent.frames.popleft(), d)
                if sent.stamped and sent.entry is not None and not sent.frames:
                    sent.entry.fields["timestamp"] = c
            elif kind == rules.COMPLETED:
                self._completed(a, b, d, e)
            elif kind == rules.MATCHED or (kind == rules.DROPPED and c == rules.NO_BUFFER):
                self.doing.is_judged = False
                self._deadline_unknown |= not self.doing.coalescer.is_idle
            elif kind == rules.DROPPED and c == rules.FIFO_FULL and self.doing.arrived.pop(a, None) is not None:
                self.doing.counters["rx_fifo_full"] += 1
                self._deadline_unknown = True

    # ------------------------------------------------------------------------------------------ registers

    def read_register(self, address: int) -> int:
        """The value of a register now."""
        if address == REGISTERS["DRAIN"].offset:
            return int(self._drains and self._over < self._drain_at)
        return self.doing.read_register(address)

    def write_register(self, address: int, value: int) -> None:
        """A register is written now."""
        doing = self.doing
        self._deadline_unknown = True
        doing.work = _Work()
        before = [channel.state for channel in doing._channels]
        if address == REGISTERS["DRAIN"].offset and value & 1:
            self._drains, self._drain_at = True, self._begun
        doing.write_register(address, value)
        for channel, state in zip(doing._channels, before, strict=True):
            if channel.state is not state:
                self._channel_changed(channel)

    def _channel_changed(self, channel: _Channel) -> None:
        number = channel.number
        self.doing.lives[number] += 1
        if channel.runs:
            self._written[number] = 0
            for name in ("producer", "asked", "consumed", "freed", "freeing", "starved", "rx_posted", "rx_asked",
                         "rx_used", "cq_index"):
                self._channels[name][number] = 0
            self._channels["ring_slots"][number] = 1 << channel.tx.log2

    # ------------------------------------------------------------------------------------------ doorbells, sends

    def write_doorbell(self, channel_number: int, offset: int, data: bytes) -> None:
        """A write to a doorbell page, whose last beat is at the port now."""
        doing = self.doing
        if not 0 <= channel_number < self.config.channels or not 0 <= offset < DOORBELL_STRIDE:
            return
        channel = doing._channels[channel_number]
        if offset == REGISTERS["CQ_ARM"].offset:
            self._at(self.now + self.model.timing.arm_to_irq, self._arm, channel, data)
            return
        self._deadline_unknown = True
        posted, self._slots = channel.rx.producer, 0
        parsed = channel.tx.index
        pushes = offset >= REGISTERS["PUSH"].offset and len(data) == PUSH_BLOCK_BYTES
        # what the device has not taken out of its ring yet still stands there for it
        busy = self._channels["producer"][channel_number] != self._channels["consumed"][channel_number]
        if pushes and busy:
            return  # the doorbell behind it counts
        doing.write_doorbell(channel_number, offset, data)
        if self._slots:
            name = "push" if pushes and parsed != channel.tx.index and self._slots < PUSH_WINDOW_SLOTS else "ring_bell"
            self.machine.call(name, self.now, channel_number, self._slots)
        more = ring.distance(posted, channel.rx.producer)
        if more and channel.runs and offset == REGISTERS["RX_DOORBELL"].offset:
            self.machine.call("post_buffers", self.now, channel_number, more)

    def _arm(self, channel: _Channel, data: bytes) -> None:
        """An arm takes effect. The line may fall and rise again: then it has risen, though it was high before."""
        doing, vector = self.doing, self.doing._vectors[channel.vector]
        self._deadline_unknown = True
        was_high, rises = doing.irq[channel.vector], vector.rises
        doing.write_doorbell(channel.number, REGISTERS["CQ_ARM"].offset, data)
        if was_high and vector.rises > rises and vector.line:
            doing.on_irq(channel.vector, True)

    def _submitted(self, channel: _Channel, submission: Submission, status: int) -> None:
        """A descriptor was carried out: its stages begin."""
        work, head = self.doing.work, submission.head
        good = submission.status is Status.OK and (work.frames or not work.entries)
        entry = work.entries[0][1] if work.entries else None
        flags = head["flags"]
        segmented = head["opcode"] == Opcode.SEND_SEGMENTED
        tag = VLAN_TAG_BYTES if flags & VLAN_INSERT else 0
        sums = 2 if segmented else (flags & IPV4_CHECKSUM > 0) + (flags & L4_CHECKSUM > 0)
        slots = max(1, head["slots"])
        inline = head["inline_bytes"] + tag if good else 0
        payload, mss = submission.payload_bytes if good else 0, head["mss"] if segmented and good else 0
        number = self.machine.call("put_send", channel.number, payload, mss, inline, sums if good else 0, slots,
                                   entry is not None)
        if good:
            for piece, address in zip(submission.pieces, work.addresses, strict=False):
                self.machine.call("put_piece", channel.number, address % (1 << 20), piece.length_bytes)
        self._slots += slots
        self._begun += 1
        self._sent[channel.number, number] = _Sent(
            deque(work.frames), entry, bool(flags & TIMESTAMP) and submission.status is Status.OK)

    # ------------------------------------------------------------------------------------------ receive

    def receive(self, frame: bytes, bad: bool) -> None:
        """A frame stands before the device now: its beats follow, behind those of the frame before it."""
        doing, number = self.doing, self._arrivals
        self._arrivals += 1
        globals_, counters = doing._globals, doing.counters
        channel = 0
        if claims_pause(frame, doing._own_address):
            channel = NOT_KEPT
            if not bad and len(frame) >= PAUSE_FRAME_BYTES:
                counters["rx_pause"] += 1
            elif globals_["RX_ENABLE"] & 1:
                counters["rx_frames_in"] += 1
                counters["rx_bad_frames"] += 1
        elif not globals_["RX_ENABLE"] & 1:
            channel = NOT_KEPT
        else:
            counters["rx_frames_in"] += 1
            why = None
            if bad or len(frame) < ETHERNET_HEADER_BYTES:
                why = "rx_bad_frames"
            elif len(frame) > MAX_FRAME_BYTES:
                why = "rx_oversize"
            elif not passes_filter(frame[:6], doing._own_address, globals_["RX_FILTER"]):
                why = "rx_filtered"
            if why is not None:
                counters[why] += 1
                channel = NOT_KEPT
        first = self.machine.call("arrive", self.now, channel, len(frame), number)
        if channel != NOT_KEPT:
            doing.arrived[number] = _Arrived(frame, bad, int(first))
            self._deadline_unknown |= not doing.coalescer.is_idle

    def _match(self) -> None:
        """The stages ask which buffers a frame has."""
        numbers, tables = self.machine.numbers, self._tables
        self.now = max(self.now, int(numbers["at_match"][0]))
        self._deadline_unknown = True
        wait = int(numbers["wait_head"][0]) & stages.INCOMING - 1
        number = int(tables["matching"]["number"][wait])
        doing = self.doing
        arrived = doing.arrived.pop(number)
        doing.is_judged = True
        doing.work = work = _Work()
        doing.now_cycles = arrived.first_edge
        doing.ended = None
        if not doing.coalescer.is_idle:
            doing.end_aged()
        drop = doing._deliver(arrived.data, arrived.bad)
        doing.ended = self._tell_ended
        doing.now_cycles = self.now
        if drop is not None:
            doing.counters[drop] += 1
        own = work.receive
        mine = [entry for receive, entry in work.entries if receive is own and own is not None]
        self._tell_closed([(receive, entry) for receive, entry in work.entries if receive is not own or own is None],
                          int(tables["matching"]["edge"][wait]), work)
        numbers["answered"][0] = 1
        if own is None:
            numbers["answer_buffers"][0] = NOT_KEPT
            return
        numbers["answer_buffers"][0] = work.buffers
        tables["matching"]["channel"][wait] = own.channel.number
        numbers["answer_parts"][0] = max(1, len(work.parts))
        answers = tables["answers"]
        answers["length"][0] = answers["at"][0] = 0
        for place, (address, length) in enumerate(work.parts):
            answers["at"][place] = address % rules.BURST
            answers["length"][place] = length
        numbers["answer_tells"][0] = len(mine)
        if mine:
            self._receives[number] = deque(mine)
            self._begun += len(mine)

    def _tell_closed(self, entries: list[tuple[Any, _Entry]], edge: int, work: _Work) -> None:
        """Aggregates have ended before the frame that was judged, whose edge this is; and when its own turn comes."""
        coalescer, numbers = self.doing.coalescer, self.machine.numbers
        if self._merges:
            numbers["answer_edge"][0] = -1
            numbers["answer_skip"][0] = numbers["answer_appends"][0] = numbers["answer_merges"][0] = 0
        self._merges = not coalescer.is_alone
        turns = self._turns
        turns.ends(int(numbers["match_ends"][0]))
        if coalescer.is_alone:
            turns.rest()
            return
        turns.begin(edge)
        for its, cycles in zip_longest(_of_each(entries), coalescer.closes):
            self._close(its or [], turns.close(cycles or 0))
        numbers["answer_edge"][0] = turns.frame(coalescer, is_appended=work.appends, further=work.buffers,
                                                fills_up=len(work.parts) > work.buffers)
        numbers["answer_skip"][0] = coalescer.skips if work.appends else 0
        numbers["answer_appends"][0] = work.appends
        numbers["answer_merges"][0] = coalescer.merges

    def _close(self, entries: list[_Entry], edge: int) -> None:
        """The end of an aggregate comes to `RxDeliver`, counted as if it had something to write at an edge."""
        if entries:
            number = self._closes | 1 << 30
            self._closes += 1
            self._receives[number] = deque(entries)
            self._begun += len(entries)
            self.machine.call("close_receive", edge, entries[0].channel.number, number, len(entries))

    def _tell_ended(self) -> None:
        """Aggregates have ended by themselves, or by a register."""
        work = self.doing.work
        self._turns.ends(int(self.machine.numbers["match_ends"][0]))
        for its, edge in zip(_of_each(work.entries), self._turns.by_themselves(self.now), strict=False):
            self._close(its, edge)
        work.entries = []

    # ------------------------------------------------------------------------------------------ completion, event

    def _completed(self, channel: int, token: int, stored: int, told: int) -> None:
        """A completion's write has been given to the bus."""
        if token & stages.RECEIVE and token >= 0:
            number = token & ~stages.RECEIVE
            waiting = self._receives[number]
            entry = waiting.popleft()
            if not waiting:
                del self._receives[number]
        else:
            sent = self._sent.pop((channel, token if token >= 0 else -1 - token))
            if sent.entry is None:
                self._over += 1
                return
            entry = sent.entry
        self._at(stored, self._store, entry)
        self._at(told, self._told, entry)

    def _store(self, entry: _Entry) -> None:
        """A completion reaches host memory."""
        channel = entry.channel
        if not channel.runs or entry.life != self.doing.lives[channel.number]:
            return
        cq, index = channel.cq, self._written[channel.number]
        data = COMPLETION.pack(kind=entry.kind, phase=ring.phase(index, cq.log2), **entry.fields)
        self._written[channel.number] += 1
        if not self._memory_write(cq.address(index), data):
            self._deadline_unknown = True
            self.doing._fail(channel, ChannelError.COMPLETION_BUS_ERROR)
            self.doing.lives[channel.number] += 1

    def _told(self, entry: _Entry) -> None:
        """The bus has answered it: the event."""
        channel, doing = entry.channel, self.doing
        self._over += 1
        if channel.state is not ChannelState.RUNNING or entry.life != doing.lives[channel.number]:
            return
        channel.cq.index += 1
        doing.counters["completions"] += 1
        vector = doing._vectors[channel.vector]
        may_rise = self._may_rise(channel)
        channel.arming.completed(vector, vector.tx if entry.kind is CompletionKind.SEND else vector.rx,
                                 self.now + self._later)
        if may_rise:
            self._deadline_unknown = True
            doing._show_irq()

    def _may_rise(self, channel: _Channel) -> bool:
        """Whether an event of a channel may move an interrupt line: its vector's, or the one for errors."""
        return channel.arming.armed or channel.arming.fired or self.doing._error_channels != 0


def _of_each(entries: list[tuple[Any, _Entry]]) -> list[list[_Entry]]:
    """The completions of each receive."""
    return [[entry for _, entry in its] for _, its in groupby(entries, key=lambda pair: id(pair[0]))]
