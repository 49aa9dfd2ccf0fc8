"""The firmware: messages up in, orders out. Implements `nic_model.control_log.Decider`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from host_driver.account import Account, NullAccount
from host_driver.firmware.clock import PortClock
from host_driver.firmware.flows import FlowNumbers
from host_driver.firmware.jobs import Completer
from host_driver.firmware.offload_sockets import OffloadSockets
from host_driver.firmware.offload_stack import OffloadStack
from host_driver.firmware.orders import Orders
from host_driver.firmware.references import HeldPayload
from host_driver.tcp.links import IpAddress, OwnAddress
from host_driver.tcp.profile import LINUX, Profile
from nic_model.contract import RxInfo
from nic_model.contract.config import PortFacts
from nic_model.contract.control import (
    MAX_SACK_BLOCKS,
    SEGMENT_OPTIONS,
    SEGMENT_SACK,
    UNIT_BYTES,
    ControlType,
    DoneStatus,
    UnknownReason,
    UpFlag,
    unpack_message,
)
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_TOTAL_LENGTH_OFFSET,
    IPV6_HEADER_BYTES,
    IPV6_PAYLOAD_LENGTH_OFFSET,
    TCP_HEADER_BYTES,
    VLAN_TAG_BYTES,
)
from nic_model.packets import NO_OPTIONS, PacketError, TcpHeader, TcpOptions

_SEND_BUFFER_BYTES = 1 << 40
"""Sends are references: how much may wait is the application's business."""


@dataclass(slots=True)
class FirmwareCounters:
    """What a firmware did that is no one's fault but worth knowing."""

    malformed: int = 0
    """Segments whose options cannot be read."""
    not_seen_whole: int = 0
    """Frames that are no TCP, too long to be seen whole, and no ICMP errors: dropped."""
    failed_orders: int = 0
    """Orders that the device refused or failed at."""
    late_segments: int = 0
    """Segments of flows that had left the table when the firmware saw them."""


class Firmware:
    """TCP behind a control port.

    Parameters: `facts` of the device; the addresses, as in `Stack`; `profile`; `account`, which work is reported to;
    `shards`, device processors among which connections are spread. The same messages make it give the same orders.
    """

    def __init__(self, facts: PortFacts, *, mac: bytes, ip: OwnAddress | Sequence[OwnAddress],
                 profile: Profile = LINUX, mtu: int = 1500, gateways: Sequence[IpAddress | str] = (), seed: str = "",
                 account: Account | None = None, shards: int = 1) -> None:
        self._clock = PortClock(facts.clock_hz)
        self._account = account or NullAccount()
        self._orders = Orders(facts.emit_credits)
        # The device's timestamps are the firmware's own: both count the same clock.
        own = replace(profile, timestamp_tick_ps=self._clock.timestamp_tick_ps, send_buffer_bytes=_SEND_BUFFER_BYTES)
        self.stack = OffloadStack(orders=self._orders, numbers=FlowNumbers(facts.flows, shards), shards=shards,
                                  mac=mac, ip=ip, profile=own, mtu=mtu, account=self._account,
                                  rng=random.Random(f"firmware {seed}"), gateways=gateways)
        self.completer = Completer(self._orders)
        self.sockets = OffloadSockets(self.stack, self._orders, self.completer, facts.listeners, shards)
        self.counters = FirmwareCounters()

    @property
    def left_over(self) -> dict[str, int]:
        """What a firmware has none of when no connection is open, by name."""
        return {"flows": self.stack.flows_held, **self.sockets.left_over, **self._orders.left_over}

    def on_message(self, message: bytes) -> list[bytes]:
        """The orders that a message up makes it give, in order, of both streams. Raises ValueError for what is no
        message up."""
        kind, fields, further = unpack_message(message)
        self._account.charge("firmware", "message")
        self._clock.advance(fields["time"], fields["epoch"] if kind is ControlType.TICK else None)
        self._orders.credits += fields["emit_credits"]
        now, stack = self._clock.now, self.stack
        deadline = stack.next_deadline()
        if deadline is not None and deadline <= now:
            self._account.charge("firmware", "timer")
            stack.poll(now)
        if kind is ControlType.SEGMENT:
            self._on_segment(fields, further, now)
        elif kind is ControlType.UNKNOWN:
            self._on_unknown(fields, now)
        elif kind is ControlType.OP:
            self._account.charge("firmware", "operation")
            self.sockets.operate(fields, further, now)
        elif kind is ControlType.DONE:
            self._on_done(fields)
        elif kind is not ControlType.TICK:
            raise ValueError(f"{kind.name} is no message up")
        return self._answer(now)

    def _answer(self, now: int) -> list[bytes]:
        """What follows: segments, completions, ends of flows."""
        stack, completed = self.stack, self.completer.completed
        self._transmit(now)
        self._orders.end_handle()
        self.sockets.pump(now)
        self._transmit(now)  # a completion frees windows, an abort resets
        stack.retire()
        given = self._orders.take()
        self._account.charge("firmware", "completion", self.completer.completed - completed)
        self._account.charge("firmware", "order_unit", sum(len(order) for order in given) // UNIT_BYTES)
        return given

    def _transmit(self, now: int) -> None:
        for segment in self.stack.transmit(now):
            self.stack.send_raw(segment)

    # Messages --------------------------------------------------------------------------------------------------------

    def _on_segment(self, fields: Mapping[str, int], further: bytes, now: int) -> None:
        self._orders.hold(fields["handle"])
        flow = self.stack.flow_numbered(fields["flow"], fields["generation"])
        if flow is None:
            self.counters.late_segments += 1
            return
        try:
            options = _options(fields, further)
        except PacketError:
            self.counters.malformed += 1
            return
        connection = flow.connection
        tcp = _header(fields, connection.remote.port, connection.local.port, options)
        payload = HeldPayload(fields["handle"], 0, fields["length"])
        self.stack.receive_for(flow, tcp, payload, now, fields["ecn"], _merged_bytes(fields))

    def _on_unknown(self, fields: Mapping[str, int], now: int) -> None:
        self._orders.hold(fields["handle"])
        frame = fields["frame"].to_bytes(128, "little")
        if fields["reason"] in (UnknownReason.SYN, UnknownReason.NO_FLOW):
            self._on_unknown_segment(fields, frame, now)
        elif fields["reason"] == UnknownReason.CHECKSUM:
            self.stack.counters.bad_checksum += 1
        elif fields["frame_bytes"] <= len(frame):
            self.stack.receive(frame[: fields["frame_bytes"]], now)
        elif fields["info"] & RxInfo.CHECKSUM_BAD:
            self.stack.counters.bad_checksum += 1
        elif not fields["info"] & (RxInfo.IPV4 | RxInfo.IPV6) or not self.stack.receive_beginning(
                _cut_packet(frame, fields["info"]), now):
            self.counters.not_seen_whole += 1

    def _on_unknown_segment(self, fields: Mapping[str, int], frame: bytes, now: int) -> None:
        end = fields["payload_offset"]
        if end > len(frame):
            self.counters.malformed += 1
            return
        try:
            options = TcpOptions.parse(frame[end - fields["option_bytes"] : end])
        except PacketError:
            self.counters.malformed += 1
            return
        address_bytes = 16 if fields["info"] & RxInfo.IPV6 else 4
        source = fields["remote_address"].to_bytes(16, "little")[:address_bytes]
        own = fields["local_address"].to_bytes(16, "little")[:address_bytes]
        tcp = _header(fields, fields["remote_port"], fields["local_port"], options)
        payload = HeldPayload(fields["handle"], 0, fields["length"])
        self.stack.receive_segment(own, source, tcp, payload, now, fields["ecn"], _merged_bytes(fields))

    def _on_done(self, fields: Mapping[str, int]) -> None:
        status = DoneStatus(fields["status"])
        self.counters.failed_orders += status is not DoneStatus.OK
        if self._orders.answer(fields["tag"], status) or status in (DoneStatus.OK, DoneStatus.STALE):
            return
        flow = self.stack.flow_numbered(fields["flow"], fields["generation"])
        if flow is not None:
            # A PLACE: its bytes may have been acknowledged.
            self.sockets.failed(flow.connection, status)


def _cut_packet(beginning: bytes, info: int) -> bytes:
    """The beginning of a frame with a long IP packet as a frame of its own: the packet's length is what is there."""
    frame = bytearray(beginning)
    at = ETHERNET_HEADER_BYTES + (VLAN_TAG_BYTES if info & RxInfo.VLAN else 0)
    if info & RxInfo.IPV6:
        offset, length = at + IPV6_PAYLOAD_LENGTH_OFFSET, len(frame) - at - IPV6_HEADER_BYTES
    else:
        offset, length = at + IPV4_TOTAL_LENGTH_OFFSET, len(frame) - at
    frame[offset : offset + 2] = length.to_bytes(2, "big")
    return bytes(frame)


def _merged_bytes(fields: Mapping[str, int]) -> int:
    return fields["mss"] if fields["segments"] > 1 else 0


def _header(fields: Mapping[str, int], remote_port: int, local_port: int, options: TcpOptions) -> TcpHeader:
    return TcpHeader(remote_port, local_port, fields["sequence"], fields["acknowledgement"], fields["tcp_flags"] & 0xFF,
                     fields["window"], 0, fields["urgent"], options, TCP_HEADER_BYTES + fields["option_bytes"])


def _options(fields: Mapping[str, int], further: bytes) -> TcpOptions:
    """The options of a SEGMENT. Raises PacketError for some that cannot be."""
    if fields["flags"] & UpFlag.RAW_OPTIONS:
        raw = SEGMENT_OPTIONS.unpack(further)["options"]
        return TcpOptions.parse(raw.to_bytes(40, "little")[: fields["option_bytes"]])
    timestamps = (fields["ts_value"], fields["ts_echo"]) if fields["flags"] & UpFlag.TIMESTAMPS else None
    blocks: tuple[tuple[int, int], ...] = ()
    if fields["sack_blocks"]:
        sack = SEGMENT_SACK.unpack(further)
        blocks = tuple((sack[f"left_{n}"], sack[f"right_{n}"])
                       for n in range(min(fields["sack_blocks"], MAX_SACK_BLOCKS)))
    if timestamps is None and not blocks:
        return NO_OPTIONS
    return TcpOptions(timestamps=timestamps, sack=blocks)
