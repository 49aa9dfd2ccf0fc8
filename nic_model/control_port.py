"""The control port as an executable: what it tells the decider, and what it does at the decider's orders.

As all of `nic_model.device`, it takes no time: an order is carried out as soon as it is given, or as soon as there is
room for its answer. So the rules about what may pass what (`contract.control.RULES`) hold by themselves; those about
what is refused, counted and kept are here.
"""

# Ref: RFC 9293 §3.1, §3.2; RFC 2018 §3; RFC 7323 §3.2

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nic_model.contract import (
    CompletionKind,
    KeyRight,
    NicConfig,
    RxInfo,
    Status,
)
from nic_model.contract.control import (
    ALWAYS_DONE,
    CELL_BYTES,
    CONTROL_COUNTERS,
    EMIT_TYPES,
    FLOW,
    HEADER_PREFIX_BYTES,
    LAYOUT_OF,
    MAX_SACK_BLOCKS,
    NO_FLOW,
    NO_LISTENER,
    RELEASE_TYPES,
    SEGMENT_OPTIONS,
    SEGMENT_SACK,
    TICK_SHIFT,
    TIME_SHIFT,
    TIMESTAMP_SHIFT,
    UNIT_BYTES,
    ControlEnable,
    ControlType,
    DoneStatus,
    OrderFlag,
    UnknownReason,
    UpFlag,
    pack_message,
    unpack_message,
)
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_TOTAL_LENGTH_OFFSET,
    IPV6_HEADER_BYTES,
    IPV6_PAYLOAD_LENGTH_OFFSET,
    TCP_HEADER_BYTES,
    TcpFlags,
)
from nic_model.emitted_frames import emit_fits, emit_options, emit_pieces, emit_template, whole_frames
from nic_model.flags import IPV4_CHECKSUM, L4_CHECKSUM
from nic_model.flow_table import Flow, FlowKey, FlowTable, Listener, ListenerTable
from nic_model.keys import KeyTable
from nic_model.receive_parser import Parsed
from nic_model.segmentation import finish_frame, segment
from nic_model.submission import Piece

_TCP = struct.Struct("!HHIIHHHH")
_TIMESTAMPS_LEAD = bytes((1, 1, 8, 10))
_SACK_LEAD = bytes((1, 1, 5))
_SACK_BLOCK = struct.Struct("!II")
_LEAD_BYTES = 4
_TIMESTAMPS_BYTES = 12

_FLOW_HEADER = tuple(name for name, field in FLOW.fields.items() if field.offset >= 8 * UNIT_BYTES)


class Datapath(Protocol):
    """What the port needs of the device around it."""

    now_cycles: int

    def memory_write(self, address: int, data: bytes) -> bool:
        """Whether the bus took it."""

    def read_payload(self, pieces: Sequence[Piece], addresses: Sequence[int]) -> bytes:
        """Bytes of the pieces, up to the first burst that the bus answers with an error."""

    def send_frame(self, frame: bytes) -> None:
        """To the MAC."""

    def give_frame(self, channel: int, frame: bytes, parsed: Parsed, arrived_cycles: int) -> None:
        """Deliver a frame as one that was received, to this channel; and when that was."""

    def complete_socket(self, channel: int, fields: Mapping[str, int]) -> bool:
        """Write a completion; False if the channel does not run."""

    @property
    def own_mac(self) -> bytes:
        """The device's Ethernet address."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A frame in the payload cells."""

    frame: bytes
    parsed: Parsed
    payload: tuple[int, int]
    """Its payload's first byte and length."""
    cells: int
    flow: int
    arrived_cycles: int


class _Refused(Exception):
    """An order that cannot be carried out, or not whole."""

    def __init__(self, status: DoneStatus, length_bytes: int = 0) -> None:
        super().__init__(status.name)
        self.status = status
        self.length_bytes = length_bytes


class ControlPort:
    """Enters: received frames by `admit`, socket operations by `post`, orders by `release` and `emit`, time by
    `advance`. Leaves: messages for the decider by `take`, of which `on_up` tells; all else through `datapath`.

    Attributes: `enabled`, a ControlEnable; `counters`; `on_room`, called when messages were taken.
    """

    def __init__(self, config: NicConfig, datapath: Datapath, keys: KeyTable) -> None:
        self.enabled = ControlEnable(0)
        self.counters = {counter.name: 0 for counter in CONTROL_COUNTERS}
        self.on_up: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None
        self._config = config
        self._datapath = datapath
        self._keys = keys
        self._flows = FlowTable(config.flows)
        self._listeners = ListenerTable(config.listeners)
        self._held: dict[int, _Held] = {}
        self._free_handles = deque(range(config.control_handles))
        self._free_cells = config.control_cells
        self._up: deque[bytes] = deque()
        self._free_slots = config.control_slots
        self._orders: dict[bool, deque[bytes]] = {False: deque(), True: deque()}
        """What waits to be carried out; True: emit."""
        self._credits_owed = 0
        self._next_tick: int | None = None
        self._carry_out = {
            ControlType.PLACE: self._place, ControlType.DROP: self._drop, ControlType.PASS: self._pass,
            ControlType.FLOW_ADD: self._flow_add, ControlType.FLOW_SET: self._flow_set,
            ControlType.FLOW_DEL: self._flow_del, ControlType.LISTEN_ADD: self._listen_add,
            ControlType.LISTEN_DEL: self._listen_del, ControlType.COMPLETE: self._complete,
            ControlType.EMIT: self._emit, ControlType.RAW: self._raw}

    # ------------------------------------------------------------------------------------------ the decider's side

    @property
    def waiting(self) -> int:
        """Messages up that nobody has taken."""
        return len(self._up)

    @property
    def handles_held(self) -> int:
        """Frames that wait for their end."""
        return len(self._held)

    @property
    def flows(self) -> int:
        """Flows in the table."""
        return len(self._flows)

    def reset(self) -> None:
        """DEVICE_RESET: all flows and listeners are gone."""
        self._flows.clear()
        self._listeners.clear()

    def take(self) -> bytes | None:
        """The next message up, or None."""
        if not self._up:
            return None
        message = self._up.popleft()
        self._free_slots += len(message) // UNIT_BYTES
        self._run_orders()
        self.on_room()
        return message

    def release(self, message: bytes) -> None:
        """An order of the release stream. Raises ValueError for what is no message of it."""
        self._give(message, is_emit=False)

    def emit(self, message: bytes) -> None:
        """An order of the emit stream, for which the decider has a credit."""
        self._give(message, is_emit=True)

    def _give(self, message: bytes, *, is_emit: bool) -> None:
        kind, _, _ = unpack_message(message)
        if kind not in (EMIT_TYPES if is_emit else RELEASE_TYPES):
            raise ValueError(f"{kind.name} is no order of the {'emit' if is_emit else 'release'} stream")
        if is_emit and len(self._orders[True]) + self._credits_owed >= self._config.emit_credits:
            raise ValueError(f"{kind.name} without a credit: all {self._config.emit_credits} are used")
        self._orders[is_emit].append(message)
        self._run_orders()

    # ------------------------------------------------------------------------------------------ messages up

    def _has_room(self, units: int) -> bool:
        return self._free_slots >= units

    def _push(self, kind: ControlType, further: bytes, **fields: int) -> None:
        credits = min(self._credits_owed, 0xFF)
        self._credits_owed -= credits
        message = pack_message(kind, further, emit_credits=credits, time=self._datapath.now_cycles >> TIME_SHIFT
                               & 0xFFFF_FFFF, **fields)
        self._free_slots -= len(message) // UNIT_BYTES
        self._up.append(message)
        self.on_up()

    def _done(self, fields: Mapping[str, int], status: DoneStatus, length_bytes: int = 0) -> None:
        if status is DoneStatus.STALE:
            self.counters["control_stale"] += 1
        elif status is not DoneStatus.OK:
            self.counters["control_refused"] += 1
        kind = ControlType(fields["type"])
        if status is not DoneStatus.OK or fields["flags"] & OrderFlag.DONE or kind in ALWAYS_DONE:
            self._push(ControlType.DONE, b"", flow=fields["flow"], generation=fields["generation"], tag=fields["tag"],
                       status=status, order=kind, length=length_bytes)

    # ------------------------------------------------------------------------------------------ time

    def next_deadline(self) -> int | None:
        """Cycle of the next TICK. A port that is not enabled has none."""
        if not self.enabled & ControlEnable.FLOWS:
            self._next_tick = None
        elif self._next_tick is None:
            self._next_tick = ((self._datapath.now_cycles >> TICK_SHIFT) + 1) << TICK_SHIFT
        return self._next_tick

    def advance(self) -> None:
        """Time has moved on: a TICK may be due."""
        due = self.next_deadline()
        if due is None or due > self._datapath.now_cycles:
            return
        self._next_tick = None
        if self._has_room(1):
            self._tick()

    def _tick(self) -> None:
        self._push(ControlType.TICK, b"", epoch=self._datapath.now_cycles >> TIME_SHIFT + 32 & 0xFFFF_FFFF)

    # ------------------------------------------------------------------------------------------ frames

    def admit(self, frame: bytes, parsed: Parsed) -> bool:
        """Take a frame that passed the filter; False if it is not for the port. One for which there is no room is taken
        and dropped."""
        if not self.enabled & ControlEnable.FLOWS:
            return False
        header = _TcpSegment.read(frame, parsed)
        flow = self._flows.find(header.key) if header is not None else None
        listener = self._listeners.find(header.key) if header is not None and flow is None else None
        if flow is None and listener is None and not self.enabled & ControlEnable.REST:
            return False
        further = b""
        if flow is not None:
            assert header is not None
            fields, further = header.fields()
            units = 1 + bool(further)
        else:
            units = LAYOUT_OF[ControlType.UNKNOWN].size_bytes // UNIT_BYTES
        cells = -(-len(frame) // CELL_BYTES)
        shortage = ("control_no_slot" if not self._has_room(units)
                    else "control_no_handle" if not self._free_handles
                    else "control_no_cell" if self._free_cells < cells else None)
        if shortage is not None:
            self.counters[shortage] += 1
            return True
        handle = self._free_handles.popleft()
        self._free_cells -= cells
        payload = header.payload if header is not None else (0, len(frame))
        self._held[handle] = _Held(frame, parsed, payload, cells, NO_FLOW if flow is None else flow.number,
                                   self._datapath.now_cycles)
        self.counters["control_bytes"] += len(frame)
        if flow is not None:
            self.counters["control_segments"] += 1
            self._push(ControlType.SEGMENT, further, flow=flow.number, generation=flow.generation, handle=handle,
                       frame_bytes=len(frame), segments=1, **fields)
        else:
            self.counters["control_unknown"] += 1
            self._push_unknown(handle, frame, parsed, header, listener)
        return True

    def _push_unknown(self, handle: int, frame: bytes, parsed: Parsed, header: _TcpSegment | None,
                      listener: int | None) -> None:
        if header is not None:
            fields, _ = header.fields()
            fields["sack_blocks"] = 0  # the options stand in the frame
            reason = UnknownReason.SYN if header.tcp_flags & TcpFlags.SYN else UnknownReason.NO_FLOW
        else:
            fields = {"length": len(frame), "flags": _up_flags(parsed)}
            reason = UnknownReason.CHECKSUM if parsed.info & RxInfo.TCP else UnknownReason.NOT_TCP
        half = len(parsed.addresses) // 2
        if parsed.info & RxInfo.TCP:
            fields["remote_port"] = int.from_bytes(parsed.ports[:2], "big")
            fields["local_port"] = int.from_bytes(parsed.ports[2:], "big")
        self._push(
            ControlType.UNKNOWN, b"", flow=NO_FLOW, handle=handle, frame_bytes=len(frame), segments=1, reason=reason,
            remote_address=int.from_bytes(parsed.addresses[:half], "little"),
            local_address=int.from_bytes(parsed.addresses[half:], "little"),
            listener=NO_LISTENER if listener is None else listener, info=parsed.info,
            frame=int.from_bytes(frame[:HEADER_PREFIX_BYTES], "little"), **fields)

    def _end_handle(self, handle: int) -> None:
        held = self._held.pop(handle)
        self._free_cells += held.cells
        self._free_handles.append(handle)

    def _handle_of(self, fields: Mapping[str, int]) -> _Held:
        held = self._held.get(fields["handle"])
        if held is None:
            raise _Refused(DoneStatus.BAD)
        return held

    # ------------------------------------------------------------------------------------------ socket operations

    def has_room_for(self, inline_bytes: int) -> bool:
        """Whether an OP finds a slot; otherwise it stays in its ring."""
        return self._has_room(1 + bool(inline_bytes))

    def post(self, channel: int, fields: Mapping[str, int], parameters: bytes) -> None:
        """A socket operation of a channel: fields of its SOCKET_HEAD, and what stands inline. There is room."""
        self.counters["control_ops"] += 1
        self._push(
            ControlType.OP, parameters, flow=NO_FLOW, channel=channel, operation=fields["opcode"],
            socket=fields["socket"], job=fields["tag"], socket_flags=fields["flags"] & 0xFF, offset=fields["offset"],
            key=fields["key"], length=fields["length"], consumed=fields["consumed"])

    # ------------------------------------------------------------------------------------------ orders

    def _run_orders(self) -> None:
        """Carry out what waits, as long as there is room for an answer. Release is never held up by emit."""
        for is_emit in (False, True):
            orders = self._orders[is_emit]
            while orders and self._has_room(1):
                kind, fields, further = unpack_message(orders.popleft())
                if is_emit:
                    self._credits_owed += 1
                try:
                    length_bytes = self._carry_out[kind](fields, further)
                except _Refused as refused:
                    self._done(fields, refused.status, refused.length_bytes)
                else:
                    self._done(fields, DoneStatus.OK, length_bytes)
        if not self._up and 2 * self._credits_owed >= self._config.emit_credits:
            self._tick()

    def _flow_of(self, fields: Mapping[str, int]) -> Flow:
        flow = self._flows.named(fields["flow"])
        if flow is None or flow.generation != fields["generation"]:
            raise _Refused(DoneStatus.STALE)
        return flow

    def _check(self, channel: int, piece: Piece, right: KeyRight) -> int:
        status, address = self._keys.check(channel, *piece, right)
        if status is not Status.OK:
            raise _Refused(DoneStatus.KEY)
        return address

    def _place(self, fields: Mapping[str, int], further: bytes) -> int:
        held = self._handle_of(fields)
        is_last = bool(fields["flags"] & OrderFlag.LAST)
        try:
            flow = self._flow_of(fields)
            begin, length = held.payload
            if held.flow not in (NO_FLOW, flow.number) or not 1 <= fields["length"] <= length - fields["skip"]:
                raise _Refused(DoneStatus.BAD)
            address = self._check(flow.channel, Piece(fields["key"], fields["offset"], fields["length"]),
                                  KeyRight.WRITE)
            at = begin + fields["skip"]
            if not self._datapath.memory_write(address, held.frame[at : at + fields["length"]]):
                raise _Refused(DoneStatus.BUS)
        finally:
            if is_last:
                self._end_handle(fields["handle"])
        self.counters["control_placed"] += fields["length"]
        return fields["length"]

    def _drop(self, fields: Mapping[str, int], further: bytes) -> int:
        self._handle_of(fields)
        self._end_handle(fields["handle"])
        self.counters["control_drops"] += 1
        return 0

    def _pass(self, fields: Mapping[str, int], further: bytes) -> int:
        held = self._handle_of(fields)
        if fields["channel"] >= self._config.channels:
            raise _Refused(DoneStatus.BAD)
        self._end_handle(fields["handle"])
        self.counters["control_passes"] += 1
        self._datapath.give_frame(fields["channel"], held.frame, held.parsed, held.arrived_cycles)
        return 0

    def _flow_add(self, fields: Mapping[str, int], further: bytes) -> int:
        address_bytes = 16 if fields["flags"] & OrderFlag.IPV6 else 4
        key = FlowKey(_address(fields["remote_address"], address_bytes),
                      _address(fields["local_address"], address_bytes), fields["remote_port"], fields["local_port"])
        number = fields["flow"]
        if (number >= self._config.flows or self._flows.named(number) is not None or self._flows.find(key) is not None
                or fields["channel"] >= self._config.channels):
            raise _Refused(DoneStatus.BAD)
        if not self._flows.add(Flow(number, fields["generation"], key, fields["channel"], _flow_header(fields))):
            raise _Refused(DoneStatus.FULL)
        return 0

    def _flow_set(self, fields: Mapping[str, int], further: bytes) -> int:
        self._flow_of(fields).header = _flow_header(fields)
        return 0

    def _flow_del(self, fields: Mapping[str, int], further: bytes) -> int:
        self._flows.remove(self._flow_of(fields))
        return 0

    def _listen_add(self, fields: Mapping[str, int], further: bytes) -> int:
        number, ipv6 = fields["flow"], bool(fields["flags"] & OrderFlag.IPV6)
        address = _address(fields["local_address"], 16 if ipv6 else 4) if fields["local_address"] else None
        listener = Listener(ipv6, address, fields["local_port"])
        if number >= self._config.listeners or self._listeners.has(number) or self._listeners.listens(listener):
            raise _Refused(DoneStatus.BAD)
        if not self._listeners.add(number, listener):
            raise _Refused(DoneStatus.FULL)
        return 0

    def _listen_del(self, fields: Mapping[str, int], further: bytes) -> int:
        if not self._listeners.has(fields["flow"]):
            raise _Refused(DoneStatus.BAD)
        self._listeners.remove(fields["flow"])
        return 0

    def _complete(self, fields: Mapping[str, int], further: bytes) -> int:
        entry = {"tag": fields["job"], "kind": int(CompletionKind.SOCKET), **{name: fields[name] for name in (
            "status", "length", "result", "remote_port", "local_port", "socket")}}
        if fields["channel"] >= self._config.channels or not self._datapath.complete_socket(fields["channel"], entry):
            raise _Refused(DoneStatus.BAD)
        self.counters["control_completes"] += 1
        return 0

    def _emit(self, fields: Mapping[str, int], further: bytes) -> int:
        flow = self._flow_of(fields)
        if fields["flags"] & OrderFlag.LAST:
            return 0
        pieces, options = emit_pieces(fields, further), emit_options(fields, further)
        if pieces is None or options is None or not emit_fits(fields, flow, options):
            raise _Refused(DoneStatus.BAD)
        addresses = [self._check(flow.channel, piece, KeyRight.READ) for piece in pieces]
        payload = self._datapath.read_payload(pieces, addresses)
        ts_value = (self._datapath.now_cycles >> TIMESTAMP_SHIFT) + flow.header["timestamp_offset"]
        template, head = emit_template(fields, flow, options, self._datapath.own_mac, ts_value)
        wanted = fields["length"]
        for frame in whole_frames(segment(template, head, payload + bytes(wanted - len(payload))), len(template),
                                  len(payload)):
            self._datapath.send_frame(frame)
        if len(payload) < wanted:
            raise _Refused(DoneStatus.BUS, len(payload))
        self.counters["control_emits"] += 1
        return wanted

    def _raw(self, fields: Mapping[str, int], further: bytes) -> int:
        if fields["flow"] != NO_FLOW:
            self._flow_of(fields)
        header_bytes, length = fields["header_bytes"], fields["length"]
        flags = fields["flags"]
        checksums = flags & (OrderFlag.IPV4_CHECKSUM | OrderFlag.L4_CHECKSUM)
        if (not ETHERNET_HEADER_BYTES <= header_bytes <= min(len(further), HEADER_PREFIX_BYTES)
                or (checksums and not _raw_offsets_fit(fields, header_bytes + length))):
            raise _Refused(DoneStatus.BAD)
        payload = b""
        if length:
            piece = Piece(fields["key_0"], fields["offset_0"], length)
            payload = self._datapath.read_payload([piece], [self._check(fields["channel"], piece, KeyRight.READ)])
            if len(payload) < length:
                raise _Refused(DoneStatus.BUS, len(payload))
        frame = bytearray(further[:header_bytes] + payload)
        finish_frame(frame, {**fields, "flags": _send_flags(flags)})
        self._datapath.send_frame(bytes(frame))
        self.counters["control_emits"] += 1
        return length


def _address(number: int, length_bytes: int) -> bytes:
    return number.to_bytes(16, "little")[:length_bytes]


def _flow_header(fields: Mapping[str, int]) -> dict[str, int]:
    return {**{name: fields[name] for name in _FLOW_HEADER}, "vlan": int(bool(fields["flags"] & OrderFlag.VLAN))}


def _raw_offsets_fit(fields: Mapping[str, int], frame_bytes: int) -> bool:
    l3, l4, checksum = fields["l3_offset"], fields["l4_offset"], fields["checksum_offset"]
    return not (l3 | l4 | checksum) & 1 and l3 + 20 <= l4 <= checksum and checksum + 2 <= frame_bytes


def _send_flags(order_flags: int) -> int:
    return ((IPV4_CHECKSUM if order_flags & OrderFlag.IPV4_CHECKSUM else 0)
            | (L4_CHECKSUM if order_flags & OrderFlag.L4_CHECKSUM else 0))


def _up_flags(parsed: Parsed) -> UpFlag:
    return ((UpFlag.IPV6 if parsed.info & RxInfo.IPV6 else UpFlag(0))
            | (UpFlag.VLAN if parsed.info & RxInfo.VLAN else UpFlag(0)))


@dataclass(frozen=True, slots=True)
class _TcpSegment:
    """A received TCP segment with right checksums, its header read."""

    key: FlowKey
    sequence: int
    acknowledgement: int
    tcp_flags: int
    window: int
    urgent: int
    options: bytes
    payload: tuple[int, int]
    """First byte in the frame, and length."""
    ecn: int
    flags: UpFlag

    @classmethod
    def read(cls, frame: bytes, parsed: Parsed) -> _TcpSegment | None:
        """The segment in a frame; None if there is none, or its header is cut off or its checksum wrong."""
        info = parsed.info
        if not info & RxInfo.TCP or info & RxInfo.CHECKSUM_BAD:
            return None
        l3, at = parsed.l3_offset, parsed.l4_offset
        (remote_port, local_port, sequence, acknowledgement, offset_flags, window, _,
         urgent) = _TCP.unpack_from(frame, at)
        if info & RxInfo.IPV6:
            end = l3 + IPV6_HEADER_BYTES + _u16(frame, l3 + IPV6_PAYLOAD_LENGTH_OFFSET)
            ecn = frame[l3 + 1] >> 4 & 3
        else:
            end = l3 + _u16(frame, l3 + IPV4_TOTAL_LENGTH_OFFSET)
            ecn = frame[l3 + 1] & 3
        begin = at + 4 * (offset_flags >> 12)
        if not at + TCP_HEADER_BYTES <= begin <= end:
            return None
        half = len(parsed.addresses) // 2
        key = FlowKey(parsed.addresses[:half], parsed.addresses[half:], remote_port, local_port)
        return cls(key, sequence, acknowledgement, offset_flags & 0x1FF, window, urgent,
                   frame[at + TCP_HEADER_BYTES : begin], (begin, end - begin), ecn, _up_flags(parsed))

    def fields(self) -> tuple[dict[str, int], bytes]:
        """Fields of a SEGMENT, and its second unit if it has one."""
        options, flags = self.options, self.flags
        rest, stamps = options, (0, 0)
        if options.startswith(_TIMESTAMPS_LEAD) and len(options) >= _TIMESTAMPS_BYTES:
            stamps = _SACK_BLOCK.unpack_from(options, _LEAD_BYTES)
            rest = options[_TIMESTAMPS_BYTES:]
        blocks = _sack_blocks(rest)
        further = b""
        if blocks is None:
            flags |= UpFlag.RAW_OPTIONS
            further, stamps, blocks = SEGMENT_OPTIONS.pack(options=int.from_bytes(options, "little")), (0, 0), []
        elif rest is not options:
            flags |= UpFlag.TIMESTAMPS
        if blocks:
            further = SEGMENT_SACK.pack(**{f"{edge}_{n}": value for n, block in enumerate(blocks)
                                           for edge, value in zip(("left", "right"), block, strict=True)})
        begin, length = self.payload
        return {
            "flags": flags, "length": length, "payload_offset": begin, "sequence": self.sequence,
            "acknowledgement": self.acknowledgement, "window": self.window, "urgent": self.urgent,
            "tcp_flags": self.tcp_flags, "ecn": self.ecn, "sack_blocks": len(blocks), "ts_value": stamps[0],
            "ts_echo": stamps[1], "option_bytes": len(options)}, further


def _u16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "big")


def _sack_blocks(options: bytes) -> list[tuple[int, int]] | None:
    """Blocks of options that are a SACK option alone, or nothing; None if they are something else."""
    if not options:
        return []
    count, rest = divmod(len(options) - _LEAD_BYTES, _SACK_BLOCK.size)
    if rest or not 1 <= count <= MAX_SACK_BLOCKS or options[: len(_SACK_LEAD)] != _SACK_LEAD:
        return None
    if options[len(_SACK_LEAD)] != 2 + _SACK_BLOCK.size * count:
        return None
    return list(_SACK_BLOCK.iter_unpack(options[_LEAD_BYTES:]))
