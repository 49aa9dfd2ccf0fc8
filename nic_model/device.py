"""The device as an executable: the same frames and completions as the RTL, without its timing.

A descriptor is carried out when its doorbell is written (so frames of different channels have no order here that would
mean anything: compare channel by channel), a received frame meets the buffers that are posted at that
moment, and of all time only the deadlines of interrupt moderation are kept. In packet order: doorbell, descriptor
fetch, checks, payload read, segmentation, MAC; MAC, filter, parse, payload write; completion, event, vector. With a
control port (`nic_model.control_port`) part of that is done at the orders of whoever sits there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nic_model import ring
from nic_model.aggregates import find_headers
from nic_model.coalescing import Aggregate, Coalescer, Verdict
from nic_model.contract import (
    CHANNEL_STATUS,
    CHANNEL_STRIDE,
    CHANNELS_BASE,
    COMPLETION,
    COMPLETION_BYTES,
    COUNTERS,
    COUNTERS_BASE,
    DOORBELL_STRIDE,
    INDIRECTION_BASE,
    INDIRECTION_STRIDE,
    KEY_COMMIT,
    KEY_STRIDE,
    KEYS_BASE,
    MAX_COALESCED_BYTES,
    MAX_DESCRIPTOR_SLOTS,
    MAX_FRAME_BUFFERS,
    MAX_FRAME_BYTES,
    PUSH_WINDOW_BYTES,
    PUSH_WINDOW_SLOTS,
    RECEIVE_SLOT,
    RECEIVE_SLOT_BYTES,
    REGISTER_SPACE_BYTES,
    REGISTERS,
    RING_ALIGNMENT_BYTES,
    RSS_INDIRECTION_ENTRIES,
    SMALLEST_RING_LOG2,
    STEERING_BASE,
    STEERING_STRIDE,
    SUBMISSION_HEAD,
    SUBMISSION_SLOT_BYTES,
    VECTOR_STRIDE,
    VECTORS_BASE,
    Access,
    ChannelCommand,
    ChannelError,
    ChannelState,
    CompletionKind,
    KeyRight,
    Layout,
    NicConfig,
    Opcode,
    Register,
    RxInfo,
    Status,
)
from nic_model.contract.config import BURST_BYTES
from nic_model.contract.control import ControlEnable
from nic_model.contract.protocols import ETHERNET_HEADER_BYTES, PAUSE_FRAME_BYTES
from nic_model.contract.registers import Block
from nic_model.contract.sockets import SOCKET_COMPLETION, SOCKET_PARAMETERS
from nic_model.control_port import ControlPort
from nic_model.events import Arming, Vector
from nic_model.flags import COALESCE, COMPLETE, IPV4_CHECKSUM, IPV6, L4_CHECKSUM, RECEIVE_RAW, TIMESTAMP
from nic_model.keys import KeyEntry, KeyTable
from nic_model.pause import claims_pause
from nic_model.push import PushWindow
from nic_model.receive_parser import Parsed, parse_received, passes_filter
from nic_model.segmentation import finish_frame, insert_tag, segment
from nic_model.steering import Steering
from nic_model.submission import Piece, Submission, is_socket_operation, read_submission

_U64 = (1 << 64) - 1
_BY_OFFSET: dict[Block, dict[int, Register]] = {
    block: {r.offset: r for r in REGISTERS.values() if r.block is block} for block in Block
}
_SLOTS_AT = SUBMISSION_HEAD.fields["slots"].offset // 8

_CONTROL_ENABLES = int(ControlEnable.FLOWS | ControlEnable.REST)

_PUSH_WINDOW = range(REGISTERS["PUSH"].offset, REGISTERS["PUSH"].offset + PUSH_WINDOW_BYTES)


class _FetchError(Exception):
    """A ring entry could not be read."""


@dataclass(slots=True)
class _Ring:
    """A ring as ENABLE took it, and the device's index in it."""

    base: int = 0
    log2: int = 0
    entry_bytes: int = 0
    index: int = 0
    """Free-running modulo 2^16; of a completion ring not wrapped, since the largest has its phase in bit 16."""
    producer: int = 0

    @property
    def waiting(self) -> int:
        """Entries that the driver posted and the device has not used."""
        return ring.distance(self.index, self.producer)

    def address(self, index: int) -> int:
        """Bus address of the entry at a free-running index."""
        return self.base + ring.slot(index, self.log2) * self.entry_bytes & _U64


@dataclass(slots=True)
class _Channel:
    """State of one channel: its registers, and what runs since ENABLE."""

    number: int
    registers: dict[str, int] = field(default_factory=dict)
    state: ChannelState = ChannelState.IDLE
    error: ChannelError = ChannelError.NONE
    tx: _Ring = field(default_factory=_Ring)
    rx: _Ring = field(default_factory=_Ring)
    cq: _Ring = field(default_factory=_Ring)
    vector: int = 0
    arming: Arming = field(default_factory=Arming)
    pushed: PushWindow = field(default_factory=PushWindow)

    @property
    def runs(self) -> bool:
        return self.state is ChannelState.RUNNING


@dataclass(slots=True)
class _Slot:
    """A receive buffer that the device took."""

    buffer_id: int
    ring_index: int
    """Of the receive ring, behind its slot."""
    key: int
    offset: int
    length: int
    used: int = 0
    """Bytes in it."""

    @property
    def room(self) -> int:
        """Bytes that still fit."""
        return self.length - self.used


@dataclass(slots=True)
class _Receive:
    """A frame on its way to memory, or an aggregate."""

    channel: _Channel
    info: RxInfo
    timestamp: int
    checksum: int = 0
    mss: int = 0
    slots: list[_Slot] = field(default_factory=list)
    status: Status = Status.OK
    segments: int = 0


class Device:
    """One NIC of a configuration.

    Enters: register and doorbell writes, frames. Leaves: frames through `on_frame`, levels of the interrupt lines
    through `on_irq(vector, level)` when one changes (the error vector is number `config.vectors`), accesses to host
    memory through the two functions given: `memory_read(address, length)` returns bytes or None, and
    `memory_write(address, data)` whether it succeeded; None and False are bus errors. Frames go to the list `sent`
    unless `on_frame` is replaced.
    """

    def __init__(self, config: NicConfig, memory_read: Callable[[int, int], bytes | None],
                 memory_write: Callable[[int, bytes], bool]) -> None:
        self.config = config
        self.now_cycles = 0
        self.sent: list[bytes] = []
        self.on_frame: Callable[[bytes], None] = self.sent.append
        self.on_irq: Callable[[int, bool], None] = lambda vector, level: None
        self.irq = [False] * (config.vectors + 1)
        self.counters = {counter.name: 0 for counter in COUNTERS}
        self.control: ControlPort | None = None
        self._memory_read = memory_read
        self._memory_write = memory_write
        self._keys = KeyTable(config.keys)
        self._key_words: dict[str, int] = {}
        self._globals = {r.name: getattr(config, r.reset) if isinstance(r.reset, str) else r.reset
                         for r in _BY_OFFSET[Block.GLOBAL].values()}
        self._channels = [_Channel(n, {r.name: 0 for r in _BY_OFFSET[Block.CHANNEL].values()})
                          for n in range(config.channels)]
        self._vectors = [Vector() for _ in range(config.vectors)]
        self._vector_registers = [{r.name: int(r.reset) for r in _BY_OFFSET[Block.VECTOR].values()}
                                  for _ in range(config.vectors)]
        self._steering = Steering(config.channels, config.flow_rules)
        self._steering_registers = {r.name: int(getattr(config, r.reset) if isinstance(r.reset, str) else r.reset)
                                    for r in _BY_OFFSET[Block.STEERING].values()}
        self._indirection = [0] * RSS_INDIRECTION_ENTRIES
        self._own_address = bytes(6)
        self._coalescer = Coalescer(config.coalesce_contexts)
        self._error_channels = 0
        self._error_rises = 0
        if config.flows:
            self.control = ControlPort(config, self, self._keys)
            self.control.on_room = self._resume_submissions
        self._snapshot = self._all_counters()

    # ------------------------------------------------------------------------------------------ time

    def next_deadline(self) -> int | None:
        """Cycle at which `advance` will raise a vector or end an aggregate if nothing else happens, if any."""
        earliest = self._coalescer.next_deadline()
        if earliest is not None and not self._may_age(earliest):
            earliest = None
        for vector in self._vectors:
            if vector.deadline is not None and (earliest is None or vector.deadline < earliest):
                earliest = vector.deadline
        tick = self.control.next_deadline() if self.control is not None else None
        return earliest if tick is None else tick if earliest is None else min(earliest, tick)

    def advance(self, now_cycles: int) -> None:
        """Let time be `now_cycles`, and do what was due until then."""
        self.now_cycles = max(self.now_cycles, now_cycles)
        self._end(self._aged())
        for vector in self._vectors:
            if vector.deadline is not None and vector.deadline <= self.now_cycles:
                vector.rise()
        if self.control is not None:
            self.control.advance()
        self._show_irq()

    def _aged(self) -> Iterator[Aggregate]:
        """Aggregates that end by their age now."""
        while (due := self._coalescer.next_deadline()) is not None and due <= self.now_cycles and self._may_age(due):
            yield from self._coalescer.take_due(due)

    def _may_age(self, deadline_cycles: int) -> bool:
        """Whether every frame that came before a deadline has been looked at. Here each is as it comes."""
        return True

    # ------------------------------------------------------------------------------------------ registers

    def read_register(self, address: int) -> int:
        """32-bit value of a register in the driver's view; 0 where there is none, or it is write-only."""
        counter, high = divmod(address - COUNTERS_BASE, 8)
        if 0 <= counter < len(self.config.counters) and high in (0, 4):
            return self._snapshot[self.config.counters[counter].name] >> (8 * high) & 0xFFFF_FFFF
        block, index, found = self._locate(address)
        if found is None or found.access is Access.WO:
            return 0
        if block is Block.GLOBAL:
            return self._read_global(found.name)
        if block is Block.VECTOR:
            return self._read_vector(index, found.name)
        if block is Block.STEERING:
            return self._steering_registers[found.name]
        if block is Block.INDIRECTION:
            return self._indirection[index]
        return self._read_channel(self._channels[index], found.name)

    def write_register(self, address: int, value: int) -> None:
        """Write a register in the driver's view; without effect where there is none, or it is read-only."""
        block, index, found = self._locate(address)
        if found is None or found.access is Access.RO:
            return
        value &= 0xFFFF_FFFF
        if block is Block.GLOBAL:
            self._write_global(found.name, value)
        elif block is Block.VECTOR:
            self._write_vector(index, found.name, value)
        elif block is Block.STEERING:
            self._steering_registers[found.name] = value
            self._steering.write(found.name, value)
        elif block is Block.INDIRECTION:
            self._indirection[index] = value
            self._steering.indirection[index] = value
        elif block is Block.KEY:
            self._write_key(index, found.name, value)
        elif found.name == "CHANNEL_CONTROL":
            self._command(self._channels[index], value)
        else:
            self._channels[index].registers[found.name] = value
        self._show_irq()

    def _locate(self, address: int) -> tuple[Block, int, Register | None]:
        """Block, index in it, and register at an address."""
        for block, base, stride, count in (
            (Block.KEY, KEYS_BASE, KEY_STRIDE, self.config.keys),
            (Block.CHANNEL, CHANNELS_BASE, CHANNEL_STRIDE, self.config.channels),
            (Block.VECTOR, VECTORS_BASE, VECTOR_STRIDE, self.config.vectors),
            (Block.STEERING, STEERING_BASE, STEERING_STRIDE, 1),
            (Block.INDIRECTION, INDIRECTION_BASE, INDIRECTION_STRIDE, RSS_INDIRECTION_ENTRIES),
        ):
            if base <= address < base + stride * count:
                index, offset = divmod(address - base, stride)
                return block, index, _BY_OFFSET[block].get(offset)
        return Block.GLOBAL, 0, _BY_OFFSET[Block.GLOBAL].get(address) if address < REGISTER_SPACE_BYTES else None

    def _read_global(self, name: str) -> int:
        if name == "NOW_LO":
            self._globals["NOW_HI"] = self.now_cycles >> 32 & 0xFFFF_FFFF
            return self.now_cycles & 0xFFFF_FFFF
        if name == "ERROR_CHANNELS_LO":
            return self._error_channels & 0xFFFF_FFFF
        if name == "ERROR_CHANNELS_HI":
            return self._error_channels >> 32
        return int(self._globals[name])

    def _write_global(self, name: str, value: int) -> None:
        if name == "SNAPSHOT":
            if value & 1:
                self._snapshot = self._all_counters()
        elif name == "DEVICE_RESET":
            if value & 1:
                for channel in self._channels:
                    self._command(channel, ChannelCommand.RESET)
                self._steering.reset()
                if self.control is not None:
                    self.control.reset()
        elif name == "ERROR_CHANNELS_LO":
            self._error_channels &= ~value
        elif name == "ERROR_CHANNELS_HI":
            self._error_channels &= ~(value << 32)
        elif name == "DRAIN":  # all accesses are answered at once: there is nothing to drain but open aggregates
            if value & 1:
                self._end(self._coalescer.take_all())
        else:
            self._globals[name] = value
            if name == "CONTROL_ENABLE" and self.control is not None:
                self.control.enabled = ControlEnable(value & _CONTROL_ENABLES)
            elif name == "COALESCE_BYTES":
                self._coalescer.limit_bytes = min(value, MAX_COALESCED_BYTES)
            elif name == "COALESCE_TICKS":
                self._coalescer.ticks = value
                if not value:
                    self._end(self._coalescer.take_all())
            if name in ("MAC_ADDRESS_LO", "MAC_ADDRESS_HI"):
                words = self._globals["MAC_ADDRESS_LO"] | (self._globals["MAC_ADDRESS_HI"] & 0xFFFF) << 32
                self._own_address = words.to_bytes(6, "little")

    def _all_counters(self) -> dict[str, int]:
        return dict(self.counters) if self.control is None else self.counters | self.control.counters

    def _read_vector(self, number: int, name: str) -> int:
        vector = self._vectors[number]
        if name == "VECTOR_FIRED":
            return vector.rises & 0xFFFF_FFFF
        if name == "VECTOR_RX_EVENTS":
            return vector.rx.seen & 0xFFFF_FFFF
        if name == "VECTOR_TX_EVENTS":
            return vector.tx.seen & 0xFFFF_FFFF
        return self._vector_registers[number][name]

    def _write_vector(self, number: int, name: str, value: int) -> None:
        vector = self._vectors[number]
        self._vector_registers[number][name] = value
        if name == "VECTOR_MASK":
            vector.masked = bool(value & 1)
        else:
            kind = vector.rx if "_RX_" in name else vector.tx
            if name.endswith("_TICKS"):
                kind.ticks = value
            else:
                kind.frames = value

    def _write_key(self, index: int, name: str, value: int) -> None:
        if name != "KEY_COMMIT":
            self._key_words[name] = value
            return
        words, committed = self._key_words, KEY_COMMIT.unpack_word(value)
        self._keys.store(index, KeyEntry(
            address=words.get("KEY_ADDRESS_LO", 0) | words.get("KEY_ADDRESS_HI", 0) << 32,
            length_bytes=words.get("KEY_LENGTH_LO", 0) | (words.get("KEY_LENGTH_HI", 0) & 0xFF) << 32,
            generation=committed["generation"],
            rights=KeyRight(committed["rights"]),
            owner=committed["owner"],
            valid=bool(committed["valid"]),
        ))

    # ------------------------------------------------------------------------------------------ channels

    @staticmethod
    def _read_channel(channel: _Channel, name: str) -> int:
        if name == "CHANNEL_STATUS":
            return CHANNEL_STATUS.pack_word(state=channel.state, error=channel.error)
        if name == "TX_INDEX":
            return channel.tx.index
        if name == "RX_INDEX":
            return channel.rx.index
        if name == "CQ_INDEX":
            return channel.cq.index & ring.INDEX_MASK
        return channel.registers[name]

    def _command(self, channel: _Channel, command: int) -> None:
        """RESET stops a channel, and clears an error; ENABLE counts for an IDLE channel only."""
        if command == ChannelCommand.RESET:
            was_idle = channel.state is ChannelState.IDLE
            self._stop(channel)
            if not was_idle:
                self._end(self._coalescer.take_all())
        if command != ChannelCommand.ENABLE or channel.state is not ChannelState.IDLE:
            return
        if channel.number in self.config.port_queues:
            self._fail(channel, ChannelError.RESERVED)
            return
        tx, rx, cq = (self._ring(channel, name, entry_bytes) for name, entry_bytes in (
            ("TX", SUBMISSION_SLOT_BYTES), ("RX", RECEIVE_SLOT_BYTES), ("CQ", COMPLETION_BYTES)))
        sizes_fit = (all(SMALLEST_RING_LOG2 <= r.log2 <= self.config.max_ring_log2 for r in (tx, rx))
                     and cq.log2 <= self.config.max_cq_log2)
        aligned = all(r.base % RING_ALIGNMENT_BYTES == 0 for r in (tx, rx, cq))
        if not sizes_fit or not aligned or 1 << cq.log2 < (1 << tx.log2) + (1 << rx.log2):
            self._fail(channel, ChannelError.RING_CONFIG)
            return
        channel.tx, channel.rx, channel.cq = tx, rx, cq
        channel.vector = channel.registers["CHANNEL_VECTOR"] % self.config.vectors
        channel.state = ChannelState.RUNNING

    @staticmethod
    def _ring(channel: _Channel, name: str, entry_bytes: int) -> _Ring:
        registers = channel.registers
        base = registers[f"{name}_BASE_LO"] | registers[f"{name}_BASE_HI"] << 32
        return _Ring(base, registers[f"{name}_LOG2"], entry_bytes)

    def _stop(self, channel: _Channel) -> None:
        channel.state, channel.error = ChannelState.IDLE, ChannelError.NONE
        channel.arming.clear(self._vectors[channel.vector])

    def _fail(self, channel: _Channel, error: ChannelError) -> None:
        """The channel stops, and the error vector tells."""
        channel.state, channel.error = ChannelState.ERROR, error
        channel.arming.clear(self._vectors[channel.vector])
        self._error_channels |= 1 << channel.number

    # ------------------------------------------------------------------------------------------ doorbells

    def write_doorbell(self, channel_number: int, offset: int, data: bytes) -> None:
        """A write of `data` at `offset` of a channel's doorbell page. All that it starts is done on return.

        Ignored where there is no doorbell, and while the channel does not run. A pushed descriptor that is complete and
        the next one is as good as its doorbell; what it carries stands in the ring.
        """
        if not 0 <= channel_number < len(self._channels) or not 0 <= offset < DOORBELL_STRIDE:
            return
        channel = self._channels[channel_number]
        if _PUSH_WINDOW.start <= offset < _PUSH_WINDOW.stop:
            self._push(channel, offset - _PUSH_WINDOW.start, data)
            return
        found = _BY_OFFSET[Block.DOORBELL].get(offset)
        if found is not None and found.name == "TX_DOORBELL":
            channel.pushed.forget()
        if found is None or not channel.runs:
            return
        index = int.from_bytes(data[:4], "little") & ring.INDEX_MASK
        if found.name == "CQ_ARM":
            channel.arming.arm(self._vectors[channel.vector], consumed_all=index == channel.cq.index & ring.INDEX_MASK)
        elif found.name == "RX_DOORBELL":
            self._produce(channel, channel.rx, index)
        elif self._produce(channel, channel.tx, index):
            self._run_submissions(channel)
        self._show_irq()

    def _push(self, channel: _Channel, offset: int, data: bytes) -> None:
        """A block for the push window. All that was rung has been done, so nothing else waits in the ring."""
        pushed, tx = channel.pushed, channel.tx
        if not pushed.write(offset, data) or not channel.runs or tx.index % PUSH_WINDOW_SLOTS != pushed.first:
            return
        self._produce(channel, tx, ring.advance(tx.index, pushed.slots))
        self._run_submissions(channel)
        self._show_irq()

    def _produce(self, channel: _Channel, target: _Ring, index: int) -> bool:
        if ring.distance(target.index, index) > 1 << target.log2:
            self._fail(channel, ChannelError.DOORBELL_OVERRUN)
            return False
        target.producer = index
        return True

    # ------------------------------------------------------------------------------------------ transmit

    def _run_submissions(self, channel: _Channel) -> None:
        while channel.runs and channel.tx.waiting:
            if self.control is not None and not self.control.has_room_for(SOCKET_PARAMETERS.size_bytes):
                return  # what follows may be an OP, which waits in its ring until there is room
            try:
                slots = self._fetch_descriptor(channel)
            except _FetchError:
                self._fail(channel, ChannelError.FETCH_BUS_ERROR)
                return
            if slots is None:
                self._fail(channel, ChannelError.TRUNCATED_DESCRIPTOR)
                return
            channel.tx.index = ring.advance(channel.tx.index, len(slots) // SUBMISSION_SLOT_BYTES)
            submission = read_submission(slots, channel.registers["CHANNEL_OPERATIONS"],
                                         has_sockets=self.control is not None)
            if self.control is not None and submission.status is Status.OK and is_socket_operation(
                    submission.head["opcode"]):
                self.control.post(channel.number, submission.head, submission.inline)
            else:
                self._carry_out(channel, submission)

    def _resume_submissions(self) -> None:
        """There is room at the control port: go on with what waits in the rings."""
        for channel in self._channels:
            if channel.runs and channel.tx.waiting:
                self._run_submissions(channel)

    def _fetch(self, source: _Ring, index: int) -> bytes:
        entry = self._memory_read(source.address(index), source.entry_bytes)
        if entry is None:
            raise _FetchError
        return entry

    def _fetch_descriptor(self, channel: _Channel) -> bytes | None:
        """All slots of the descriptor at the ring's head, unwrapped; None if it is truncated."""
        tx = channel.tx
        first = self._fetch(tx, tx.index)
        count = first[_SLOTS_AT]
        if not 1 <= count <= min(MAX_DESCRIPTOR_SLOTS, tx.waiting):
            return None
        return first + b"".join([self._fetch(tx, ring.advance(tx.index, n)) for n in range(1, count)])

    def _carry_out(self, channel: _Channel, submission: Submission) -> None:
        """Send what a descriptor asks for, and complete it."""
        status = submission.status
        addresses: list[int] = []
        for piece in submission.pieces:
            status, address = self._keys.check(channel.number, *piece, KeyRight.READ)
            if status is not Status.OK:
                break
            addresses.append(address)

        frames = payload_bytes = 0
        counters, head = self.counters, submission.head
        if status is Status.OK:
            wanted = submission.payload_bytes
            payload = self._read_payload(submission.pieces, addresses)
            if len(payload) < wanted:
                status = Status.BUS_ERROR
            for frame, frame_payload_bytes in _frames(submission, payload, wanted):
                self.send_frame(frame)
                frames += 1
                payload_bytes += frame_payload_bytes

        flags, good = head["flags"], status is Status.OK
        counters["tx_sends" if good else "tx_errors"] += 1
        if not good or flags & COMPLETE:
            self._complete(
                channel, kind=CompletionKind.SEND, status=status, tag=head["tag"], length=payload_bytes,
                ring_index=channel.tx.index, segments=frames & 0xFFFF,
                timestamp=self.now_cycles if good and flags & TIMESTAMP else 0)

    def send_frame(self, frame: bytes) -> None:
        """A frame for the MAC."""
        self.counters["tx_frames"] += 1
        self.counters["tx_bytes"] += len(frame)
        self.on_frame(frame)

    def _read_payload(self, pieces: tuple[Piece, ...], addresses: list[int]) -> bytes:
        """Bytes of the pieces, up to the first burst that the bus answers with an error."""
        parts: list[bytes] = []
        for piece, address in zip(pieces, addresses, strict=True):
            data = self._memory_read(address, piece.length_bytes)
            if data is None:
                parts.append(self._read_until_error(address, piece.length_bytes))
                break
            parts.append(data)
        return b"".join(parts)

    def _read_until_error(self, address: int, length_bytes: int) -> bytes:
        good, end = bytearray(), address + length_bytes
        while address < end:
            burst_end = min(end, (address // BURST_BYTES + 1) * BURST_BYTES)
            burst = self._memory_read(address, burst_end - address)
            if burst is None:
                break
            good += burst
            address = burst_end
        return bytes(good)

    # ------------------------------------------------------------------------------------------ receive

    def receive(self, frame: bytes, bad: bool = False, now_cycles: int = 0) -> None:
        """A frame from the MAC, `bad` as it flagged it, whose first beat came at `now_cycles`."""
        self.advance(now_cycles)
        if claims_pause(frame, self._own_address):
            if not bad and len(frame) >= PAUSE_FRAME_BYTES:
                # taken out of the stream; nothing here takes time that it could stop
                self.counters["rx_pause"] += 1
                return
            bad = True
        if not self._globals["RX_ENABLE"] & 1:
            return
        self.counters["rx_frames_in"] += 1
        drop = self._deliver(frame, bad)
        if drop is not None:
            self.counters[drop] += 1
        self._show_irq()

    def _deliver(self, frame: bytes, bad: bool) -> str | None:
        """Write a frame to the buffers at the head of the receive ring; or the counter of why it was dropped."""
        if bad or len(frame) < ETHERNET_HEADER_BYTES:
            return "rx_bad_frames"
        if len(frame) > MAX_FRAME_BYTES:
            return "rx_oversize"
        if not passes_filter(frame[:6], self._own_address, self._globals["RX_FILTER"]):
            return "rx_filtered"
        parsed = parse_received(frame)
        if self.control is not None and self.control.admit(frame, parsed):
            return None
        steered = self._steering.steer(parsed)
        self.counters["rx_steered_rule"] += steered.by_rule
        self.counters["rx_steered_rss"] += steered.by_hash
        channel, info = self._channels[steered.channel], parsed.info
        may_open = bool(channel.registers["CHANNEL_OPERATIONS"] & COALESCE)
        verdict = self._coalescer.judge(frame, info, self.now_cycles, may_open=may_open,
                                        l4_offset=parsed.l4_offset, tag=steered.hash_value.to_bytes(4, "big"))
        self._end(verdict.ended)
        aggregate = verdict.aggregate
        if aggregate is not None and not verdict.opens and aggregate.receive is not None:
            if len(aggregate.receive.slots) <= MAX_FRAME_BUFFERS:
                return self._append(channel, aggregate, verdict, frame, info)
            self._end([aggregate])
        # By itself, or the first of an aggregate; which a segment also is when the one before found no buffer.
        slots = self._take_slots(channel, len(frame))
        if isinstance(slots, str):
            return slots
        receive = _Receive(channel, info, self.now_cycles, checksum=parsed.raw_sum if RxInfo.RAW_SUM in info else 0)
        if aggregate is not None:
            receive.mss = len(frame) - find_headers(frame, info).end
        delivered = self._write(receive, frame, slots)
        if aggregate is None or verdict.is_last:
            self._tell(receive)
        else:
            aggregate.receive = receive
        return self._count_delivery(frame, info, delivered)

    def give_frame(self, channel: int, frame: bytes, parsed: Parsed, arrived_cycles: int) -> None:
        """Deliver a frame that the control port passed on, by itself, stamped as it arrived."""
        target = self._channels[channel]
        slots = self._take_slots(target, len(frame))
        if isinstance(slots, str):
            self.counters[slots] += 1
            return
        receive = _Receive(target, parsed.info, arrived_cycles,
                           checksum=parsed.raw_sum if RxInfo.RAW_SUM in parsed.info else 0)
        delivered = self._write(receive, frame, slots)
        self._tell(receive)
        drop = self._count_delivery(frame, parsed.info, delivered)
        if drop is not None:
            self.counters[drop] += 1
        self._show_irq()

    def _append(self, channel: _Channel, aggregate: Aggregate, verdict: Verdict, frame: bytes,
                info: RxInfo) -> str | None:
        """Write a segment's payload behind an aggregate; or the counter of why it was dropped."""
        receive: _Receive = aggregate.receive
        payload = frame[verdict.header_bytes :]
        slots = self._take_slots(channel, max(0, len(payload) - receive.slots[-1].room))
        if isinstance(slots, str):
            self._end([aggregate])
            return slots
        receive.info |= verdict.info
        self.counters["rx_coalesced"] += 1
        delivered = self._write(receive, payload, slots)
        if verdict.is_last:
            self._end([aggregate])
        return self._count_delivery(frame, info, delivered)

    def _end(self, aggregates: Iterable[Aggregate]) -> None:
        """Tell of aggregates that have ended."""
        for aggregate in aggregates:
            if aggregate.receive is not None:
                self._tell(aggregate.receive)
                aggregate.receive = None

    def _take_slots(self, channel: _Channel, length_bytes: int) -> list[_Slot] | str:
        """Posted buffers for so many bytes, all or none: then the counter of why there are not enough."""
        may_receive = channel.registers["CHANNEL_OPERATIONS"] & RECEIVE_RAW
        if not channel.runs or not may_receive:
            return "rx_no_buffer"
        slots: list[_Slot] = []
        left = length_bytes
        if not left:
            return slots
        while True:
            if len(slots) == channel.rx.waiting:
                return "rx_no_buffer"
            index = ring.advance(channel.rx.index, len(slots))
            try:
                fields = RECEIVE_SLOT.unpack(self._fetch(channel.rx, index))
            except _FetchError:
                self._fail(channel, ChannelError.FETCH_BUS_ERROR)
                return "rx_no_buffer"
            slots.append(_Slot(fields["buffer_id"], ring.advance(index), fields["key"], fields["offset"],
                               fields["length"]))
            if left <= fields["length"]:
                channel.rx.index = ring.advance(index)
                return slots
            if not fields["length"] or len(slots) == MAX_FRAME_BUFFERS:
                return "rx_oversize"
            left -= fields["length"]

    def _write(self, receive: _Receive, data: bytes, slots: list[_Slot]) -> bool:
        """Write bytes behind what a receive has, into its latest buffer and then into `slots`; whether all of it was
        written. A part that fails does not keep the others from being written."""
        channel = receive.channel
        status, receive_begins = Status.OK, not receive.slots
        targets = slots if receive_begins else [receive.slots[-1], *slots]
        receive.slots += slots
        for slot in targets:
            part, data = data[: slot.room], data[slot.room :]
            if not part:
                continue
            # The key is asked about the bytes that will be written.
            found, address = self._keys.check(channel.number, slot.key, slot.offset + slot.used, len(part),
                                              KeyRight.WRITE)
            if found is Status.OK and not self._memory_write(address, part):
                found = Status.BUS_ERROR
            slot.used += len(part)
            status = status or found
        receive.status = receive.status or status
        receive.segments += 1
        return status is Status.OK

    def _count_delivery(self, frame: bytes, info: RxInfo, delivered: bool) -> str | None:
        if not delivered:
            return "rx_errors"
        self.counters["rx_frames"] += 1
        self.counters["rx_bytes"] += len(frame)
        self.counters["rx_checksum_errors"] += RxInfo.CHECKSUM_BAD in info
        return None

    def _tell(self, receive: _Receive) -> None:
        """Completions of a receive: the head, and one for each further buffer."""
        good = receive.status is Status.OK
        merged = good and receive.segments > 1
        self.counters["rx_aggregates"] += receive.segments > 1
        for number, slot in enumerate(receive.slots):
            buffer = {"tag": slot.buffer_id, "ring_index": slot.ring_index, "length": slot.used if good else 0}
            if number:
                self._complete(receive.channel, kind=CompletionKind.RECEIVE_MORE, **buffer)
            else:
                self._complete(
                    receive.channel, kind=CompletionKind.RECEIVE, **buffer, status=receive.status,
                    info=receive.info if good else RxInfo(0), checksum=receive.checksum if good else 0,
                    timestamp=receive.timestamp,
                    segments=receive.segments if good else 0, mss=receive.mss if merged else 0,
                    more=len(receive.slots) - 1)

    # ------------------------------------------------------------------------------------------ completion, event

    @property
    def own_mac(self) -> bytes:
        """Its Ethernet address."""
        return self._own_address

    def read_payload(self, pieces: Sequence[Piece], addresses: Sequence[int]) -> bytes:
        """What the control port reads: the pieces' bytes, up to the first burst that the bus answers with an error."""
        return self._read_payload(tuple(pieces), list(addresses))

    def memory_write(self, address: int, data: bytes) -> bool:
        """A write on the host bus, of the control port; whether it succeeded."""
        return self._memory_write(address, data)

    def complete_socket(self, channel: int, fields: Mapping[str, int]) -> bool:
        """Write the completion of a socket operation; False if the channel does not run."""
        target = self._channels[channel]
        if not target.runs:
            return False
        self._write_completion(target, CompletionKind.SOCKET, SOCKET_COMPLETION, fields)
        self._show_irq()
        return True

    def _complete(self, channel: _Channel, *, kind: CompletionKind, **fields: int) -> None:
        if channel.runs:
            self._write_completion(channel, kind, COMPLETION, {"kind": kind, **fields})

    def _write_completion(self, channel: _Channel, kind: CompletionKind, layout: Layout,
                          fields: Mapping[str, int]) -> None:
        cq = channel.cq
        entry = layout.pack(phase=ring.phase(cq.index, cq.log2), **fields)
        if not self._memory_write(cq.address(cq.index), entry):
            self._fail(channel, ChannelError.COMPLETION_BUS_ERROR)
            return
        cq.index += 1
        self.counters["completions"] += 1
        vector = self._vectors[channel.vector]
        channel.arming.completed(vector, vector.tx if kind is CompletionKind.SEND else vector.rx, self.now_cycles)

    def _show_irq(self) -> None:
        """Tell of every line that changed."""
        error_line = self._error_channels != 0 and not self._globals["ERROR_MASK"] & 1
        self._error_rises += error_line and not self.irq[-1]
        rises, lines = self._error_rises, []
        for vector in self._vectors:
            rises += vector.rises
            lines.append(vector.line)
        lines.append(error_line)
        # Rises, not levels: an event that fires as its ring is armed lowers and raises the line at one instant.
        self.counters["interrupts"] = rises
        if lines == self.irq:
            return
        for number, (line, before) in enumerate(zip(lines, self.irq, strict=True)):
            if line != before:
                self.irq[number] = line
                self.on_irq(number, line)


def _frames(submission: Submission, payload: bytes, wanted: int) -> Iterator[tuple[bytes, int]]:
    """Frames of a checked descriptor, each with the payload bytes in it; `payload` may end before `wanted`.

    A frame that needs a missing byte is not made, nor are those behind it.
    """
    head, inline = submission.head, submission.inline
    if head["opcode"] == Opcode.SEND_FRAME:
        if len(payload) == wanted:
            frame = inline + payload
            if head["flags"] & (IPV4_CHECKSUM | L4_CHECKSUM):
                whole = bytearray(frame)
                finish_frame(whole, head)
                frame = bytes(whole)
            yield insert_tag(frame, head), wanted
        return
    # A segmented send always gets its checksums, whatever the two flags say.
    flags = (head["flags"] | L4_CHECKSUM) & ~IPV4_CHECKSUM
    if not flags & IPV6:
        flags |= IPV4_CHECKSUM
    # Segmenting zeros in place of what is missing keeps PSH and FIN off the frames before it.
    padded = payload + bytes(wanted - len(payload))
    sent_bytes = 0
    for frame in segment(inline, {**head, "flags": flags}, padded):
        sent_bytes += len(frame) - len(inline)
        if sent_bytes > len(payload):
            return
        yield insert_tag(frame, head), len(frame) - len(inline)
