"""The stack of the firmware: TCP whose segments leave as orders, EMITs where a connection has a flow.

Handshakes, resets, TIME-WAIT and all that is not TCP leave as RAW frames. A connection gets its flow when it is
established, and gives it up in TIME-WAIT or when it is gone.
"""

# Ref: RFC 9293 §3.10; RFC 7323 §3.2

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from host_driver.account import Account
from host_driver.firmware.flows import Flow, FlowNumbers
from host_driver.firmware.orders import Orders
from host_driver.firmware.placing import NO_RING, PlacingBuffer, Ring
from host_driver.firmware.references import HeldPayload
from host_driver.firmware.shards import shard_of_key
from host_driver.tcp.buffers import Chunk
from host_driver.tcp.connection import MAX_WINDOW_SHIFT, Connection
from host_driver.tcp.frames import OutFrame, OutSegment
from host_driver.tcp.links import IpAddress, Link, OwnAddress
from host_driver.tcp.listener import Listener
from host_driver.tcp.profile import Profile
from host_driver.tcp.stack import Stack
from host_driver.tcp.states import ACK, ECN_MASK, FIN, PSH, RST, SYN, TIME_WAIT, URG, Endpoint, State
from nic_model.contract import MAX_SEGMENTED_BYTES, MIN_MSS
from nic_model.contract.control import (
    HEADER_PREFIX_BYTES,
    MAX_EMIT_PIECES,
    UNIT_BYTES,
    ControlType,
    DoneStatus,
    OrderFlag,
)
from nic_model.packets import TIMESTAMPS_BYTES, TcpHeader
from nic_model.seqnum import unwrap

LARGEST_EMIT_BYTES = 1 << 16
"""What one EMIT asks for at most: longer ones would keep others from the wire for no gain."""

HOP_LIMIT = 64
_WORD_BYTES = 4
_WINDOW_BITS = 16
_PIECES_IN_FIRST_UNIT = 2

assert LARGEST_EMIT_BYTES <= MAX_SEGMENTED_BYTES

_WITH_FLOW = range(State.ESTABLISHED, State.TIME_WAIT)
_ONLY_LAST = PSH | FIN


class Owner(Protocol):
    """Who has the sockets: what the stack asks, and tells."""

    def has_ring(self, port: int) -> bool:
        """Whether a connection that a peer opens to a port finds an eager ring."""

    def ring_bytes(self, port: int) -> int:
        """How large such a ring is; 0 if nobody listens."""

    def take_ring(self, connection: Connection) -> Ring:
        """One of a connection that a peer opened, until the connection is gone. There must be one."""

    def closed(self, connection: Connection) -> None:
        """A connection is gone."""

    def failed(self, connection: Connection, status: DoneStatus) -> None:
        """The device refused an order, or failed at it. Must not act on the connection at once."""

    def was_read(self, connection: Connection) -> None:
        """An EMIT of the connection is over."""


class OffloadStack(Stack):
    """A stack whose connections have `PlacingBuffer`s, and whose output is `orders`.

    Attributes: `owner`, to be set; `channel`, which owns the memory that connections use; `too_long`, frames that are
    no TCP and longer than the header that a RAW can have: not sent; `no_ring`, SYNs, and last acknowledgements of
    handshakes, dropped since no eager ring was left.
    """

    def __init__(self, *, orders: Orders, numbers: FlowNumbers, shards: int, mac: bytes,
                 ip: OwnAddress | Sequence[OwnAddress], profile: Profile, mtu: int, account: Account,
                 rng: random.Random, gateways: Sequence[IpAddress | str] = ()) -> None:
        super().__init__(mac=mac, ip=ip, profile=profile, mtu=mtu, max_segment_bytes=LARGEST_EMIT_BYTES,
                         account=account, rng=rng, gateways=gateways)
        self.owner: Owner
        self.channel = 0
        self.too_long = 0
        self.no_ring = 0
        self._orders = orders
        self._numbers = numbers
        self._shards = shards
        self._flows: dict[Connection, Flow] = {}
        self._by_number: dict[int, Flow] = {}
        self._leaving: dict[Connection, None] = {}  # an ordered set
        self._opening_ring: Ring | None = None
        self._profiles: dict[int, Profile] = {}
        """By the size of the eager ring."""

    def open(self, remote_ip: IpAddress, remote_port: int, now: int, local_port: int | None, ring: Ring) -> Connection:
        """Open a connection with this eager ring. Raises as `connect`."""
        self._opening_ring = ring
        try:
            return self.connect(remote_ip, remote_port, now, local_port)
        finally:
            self._opening_ring = None

    # Segments in -----------------------------------------------------------------------------------------------------

    def flow_numbered(self, number: int, generation: int) -> Flow | None:
        """The flow that a message names."""
        flow = self._by_number.get(number)
        return flow if flow is not None and flow.generation == generation else None

    def flow_of(self, connection: Connection) -> Flow | None:
        """A connection's flow, if orders may name it."""
        flow = self._flows.get(connection)
        return None if flow is None or flow.is_leaving else flow

    @property
    def now(self) -> int:
        """Time of the message under way, in picoseconds."""
        return self._now

    def any_flow_of(self, connection: Connection) -> Flow | None:
        """A connection's flow, as long as its entry is there."""
        return self._flows.get(connection)

    @property
    def flows_held(self) -> int:
        """Flows from their FLOW_ADD to the DONE of their FLOW_DEL."""
        return len(self._flows)

    def local_address(self, version: int) -> bytes:
        """Its own address of a version of IP."""
        return next(local.packed for local in self._locals.values() if local.ip.version == version)

    def receive_segment(self, own_address: bytes, source: bytes, tcp: TcpHeader, payload: HeldPayload, now: int,
                        ecn: int, merged_bytes: int) -> None:
        """Take in a TCP segment whose checksums are right, of any connection or none."""
        self._now = now
        local = self._locals.get(own_address)
        if local is None:
            self.counters.not_for_us += 1
            return
        self.account.charge("ip", "receive")
        port = tcp.destination_port
        if tcp.flags & (SYN | ACK | RST) == SYN and self.is_listening(port) and self._lacks_ring(port):
            return
        self._receive_tcp(local, source, tcp, payload, now, ecn & ECN_MASK, merged_bytes)  # type: ignore[arg-type]

    def receive_for(self, flow: Flow, tcp: TcpHeader, payload: HeldPayload, now: int, ecn: int,
                    merged_bytes: int) -> None:
        """Take in a segment of a flow."""
        connection = flow.connection
        link = connection.link
        self.receive_segment(link.source, link.destination, tcp, payload, now, ecn, merged_bytes)
        if connection.state is TIME_WAIT:
            self._leaving[connection] = None

    def _must_wait(self, connection: Connection, tcp: TcpHeader) -> bool:
        """Whether a handshake may not end yet: a connection has its eager ring from there on, and not before, so that
        a flood of SYNs takes none."""
        if super()._must_wait(connection, tcp):
            return True
        is_end = connection.is_passive and tcp.flags & (SYN | RST | ACK) == ACK
        return is_end and self._lacks_ring(connection.local.port)

    def _receive_cookie(self, listener: Listener, link: Link, tcp: TcpHeader, payload: memoryview, now: int, ecn: int,
                        merged_bytes: int) -> None:
        if not self._lacks_ring(listener.port):
            super()._receive_cookie(listener, link, tcp, payload, now, ecn, merged_bytes)

    def _lacks_ring(self, port: int) -> bool:
        if self.owner.has_ring(port):
            return False
        self.no_ring += 1
        return True

    # Segments out ----------------------------------------------------------------------------------------------------

    def output(self, connection: Connection, sequence: int, flags: int, window: int, options: bytes,
               payload: list[Chunk], payload_bytes: int, mss: int, is_retransmission: bool, ecn: int,
               urgent: int = 0) -> None:
        """A connection's segment: an EMIT if it has a flow, else a RAW. Nothing is sent as urgent."""
        flags &= ~URG
        flow = self._flow_for(connection)
        if connection.state is TIME_WAIT:
            self._leaving[connection] = None
        if flow is None or flags & RST:
            if connection.state in _WITH_FLOW and not flags & RST:
                return  # it found no place in the flow table, and is about to be aborted
            super().output(connection, sequence, flags, window, options, payload, payload_bytes, mss,
                           is_retransmission, ecn)
            return
        self.account.charge("tcp_send", "segment" if payload_bytes else "control")
        self.account.charge("ip", "send")
        parts = list(_parts(payload, mss)) or [[]]
        for number, part in enumerate(parts, 1):
            length = sum(map(len, part))
            self._emit(flow, sequence, flags if number == len(parts) else flags & ~_ONLY_LAST, window, options, part,
                       length, mss, ecn)
            sequence = sequence + length & 0xFFFF_FFFF

    def _emit(self, flow: Flow, sequence: int, flags: int, window: int, options: bytes, payload: list[Chunk],
              length: int, mss: int, ecn: int) -> None:
        connection = flow.connection
        order_flags, ts_echo, tag = OrderFlag(0), 0, 0
        if connection.has_timestamps:
            # The stack puts timestamps in front of all other options, and so does the device.
            order_flags |= OrderFlag.TIMESTAMP
            ts_echo = int.from_bytes(options[8:TIMESTAMPS_BYTES], "big")
            options = options[TIMESTAMPS_BYTES:]
        if flow.has_unfenced_places and flags & ACK:
            order_flags |= OrderFlag.FENCE
            flow.has_unfenced_places = False
        if length:
            position = unwrap(sequence, connection.sender.snd_una)
            reading = (position, position + length)
            flow.reading.append(reading)
            order_flags |= OrderFlag.DONE
            tag = self._orders.tag_for(lambda status: self._was_read(flow, reading, status))
        pieces = [chunk.piece() for chunk in payload]
        fields = {f"{name}_{n}": value for n, piece in enumerate(pieces[:_PIECES_IN_FIRST_UNIT])
                  for name, value in zip(("key", "offset", "length"), piece, strict=True)}
        further = options.ljust(UNIT_BYTES, b"\0") if options else b""
        further += b"".join(
            offset.to_bytes(5, "little") + key.to_bytes(3, "little") + piece_bytes.to_bytes(8, "little")
            for key, offset, piece_bytes in pieces[_PIECES_IN_FIRST_UNIT:])
        self._orders.emit(
            flow, ControlType.EMIT, further, flags=order_flags, tag=tag, length=length, pieces=len(pieces),
            window=window, mss=max(mss, MIN_MSS) if length else 0, sequence=sequence,
            acknowledgement=connection.ack_number if flags & ACK else 0, ts_echo=ts_echo, tcp_flags=flags, ecn=ecn,
            option_words=len(options) // _WORD_BYTES, **fields)

    def _was_read(self, flow: Flow, reading: tuple[int, int], status: DoneStatus) -> None:
        """The DONE of an EMIT with payload."""
        flow.reading.remove(reading)
        if status not in (DoneStatus.OK, DoneStatus.STALE):
            self.owner.failed(flow.connection, status)
        self.owner.was_read(flow.connection)

    def send_raw(self, segment: OutSegment | OutFrame) -> None:
        """A frame that leaves without a flow."""
        if isinstance(segment, OutFrame):
            frame = segment.frame()
            if len(frame) > HEADER_PREFIX_BYTES:
                self.too_long += 1
                return
            self._orders.emit(None, ControlType.RAW, frame, header_bytes=len(frame))
            return
        for header, piece in _raw_frames(segment):
            key, offset, length = piece or (0, 0, 0)
            flags = OrderFlag.L4_CHECKSUM | (OrderFlag.IPV6 if segment.ipv6 else OrderFlag.IPV4_CHECKSUM)
            self._orders.emit(
                None, ControlType.RAW, header, flags=flags, header_bytes=len(header), l3_offset=segment.l3_offset,
                l4_offset=segment.l4_offset, checksum_offset=segment.checksum_offset, length=length,
                channel=self.channel, key_0=key, offset_0=offset)

    # Flows -----------------------------------------------------------------------------------------------------------

    def on_established(self, connection: Connection) -> None:
        """A connection that a peer opened: it gets its eager ring and its flow, and its listener is told."""
        buffer = connection.receiver.buffer
        assert isinstance(buffer, PlacingBuffer)
        buffer.set_ring(self.owner.take_ring(connection))
        self._flow_for(connection)
        super().on_established(connection)

    def on_closed(self, connection: Connection) -> None:
        """A connection is gone, and so is its flow."""
        super().on_closed(connection)
        self._leaving[connection] = None
        self.owner.closed(connection)

    def _flow_for(self, connection: Connection) -> Flow | None:
        """A connection's flow, which it gets now if it may have one and has none."""
        flow = self._flows.get(connection)
        if flow is not None:
            return None if flow.is_leaving else flow
        if connection.state not in _WITH_FLOW:
            return None
        link = connection.link
        key = {"remote_address": int.from_bytes(link.destination, "little"),
               "local_address": int.from_bytes(link.source, "little"),
               "remote_port": connection.remote.port, "local_port": connection.local.port}
        flow = self._numbers.take(shard_of_key(**key, shards=self._shards), connection)
        if flow is None:
            self.owner.failed(connection, DoneStatus.FULL)
            return None
        entered = flow
        self._flows[connection] = self._by_number[flow.number] = flow
        mac = link.neighbour.mac
        assert mac is not None, "an established connection's neighbour has answered"
        self._orders.enter(
            ControlType.FLOW_ADD, answered=lambda status: self._was_entered(entered, status), flow=flow.number,
            generation=flow.generation, channel=self.channel, next_hop=int.from_bytes(mac, "little"),
            flags=OrderFlag.IPV6 if link.local.ipv6 else OrderFlag(0), mss=connection.mss, hop_limit=HOP_LIMIT,
            timestamp_offset=connection.timestamp_offset, send_scale=connection.sender.shift,
            receive_scale=connection.receiver.shift, **key)
        return flow

    def _was_entered(self, flow: Flow, status: DoneStatus) -> None:
        """The DONE of a FLOW_ADD."""
        if status is DoneStatus.OK:
            flow.is_entered = True
            self._orders.let_go(flow)
            return
        flow.held.clear()
        self._forget(flow)
        self.owner.failed(flow.connection, status)

    def retire(self) -> None:
        """Take out the flows of connections that are gone or in TIME-WAIT; to be called behind each message."""
        for connection in self._leaving:
            flow = self._flows.get(connection)
            if flow is not None and not flow.is_leaving:
                self._leave(flow)
        self._leaving.clear()

    def _leave(self, flow: Flow) -> None:
        def take_out(_status: DoneStatus) -> None:
            self._orders.enter(ControlType.FLOW_DEL, answered=lambda _: self._forget(flow), flow=flow.number,
                               generation=flow.generation)

        # Behind all EMITs that name it, so that none of them is refused.
        self._orders.emit(flow, ControlType.EMIT, flags=OrderFlag.LAST | OrderFlag.DONE,
                          tag=self._orders.tag_for(take_out))
        flow.is_leaving = True

    def _forget(self, flow: Flow) -> None:
        self._flows.pop(flow.connection, None)
        self._by_number.pop(flow.number, None)
        self._numbers.give_back(flow)

    # Connections -----------------------------------------------------------------------------------------------------

    def _new_connection(self, remote: Endpoint, port: int, link: Link, now: int, iss: int | None = None) -> Connection:
        """A connection whose bytes go to host memory."""
        connection = super()._new_connection(remote, port, link, now, iss)
        ring = self._opening_ring or NO_RING

        def place(part: HeldPayload, key: int, offset: int) -> None:
            self._orders.place(self._flow_for(connection), part, key, offset)

        connection.receiver.buffer = PlacingBuffer(ring, place, self._ring_bytes(port))
        return connection

    def _ring_bytes(self, port: int) -> int:
        """Of the connection that begins."""
        return self.owner.ring_bytes(port) if self._opening_ring is None else self._opening_ring.length_bytes

    def _profile_of(self, port: int) -> Profile:
        """Windows are scaled no more than the ring needs: what is left of a receive that completes only when full can
        be said to the byte up to 64 KB, and nearly so beyond."""
        ring_bytes = self._ring_bytes(port)
        profile = self._profiles.get(ring_bytes)
        if profile is None:
            scale = min(max((ring_bytes - 1).bit_length() - _WINDOW_BITS, 0), MAX_WINDOW_SHIFT)
            profile = self._profiles[ring_bytes] = replace(
                self.profile, receive_buffer_bytes=max(ring_bytes, 1),
                window_scale=None if self.profile.window_scale is None else scale)
        return profile


def _parts(payload: list[Chunk], mss: int) -> Iterator[list[Chunk]]:
    """What each EMIT of a segment sends: as many pieces as it can name; and of an MSS that is too small for the device
    to cut by, one frame."""
    if mss < MIN_MSS:
        payload = [chunk.slice(start, min(start + mss, len(chunk))) for chunk in payload
                   for start in range(0, len(chunk), mss)]
    most = MAX_EMIT_PIECES if mss >= MIN_MSS else 1
    for first in range(0, len(payload), most):
        yield payload[first : first + most]


def _raw_frames(segment: OutSegment) -> list[tuple[bytes, tuple[int, int, int] | None]]:
    """Header and piece of a segment that leaves without a flow. Such have no payload, or a probe's."""
    if not segment.payload_bytes:
        return [(segment.seeded_header(with_length=True), None)]
    if len(segment.payload) > 1 or segment.payload_bytes > segment.mss:
        raise ValueError(f"{segment.payload_bytes} bytes of a connection without a flow")
    return [(segment.seeded_header(with_length=True), segment.payload[0].piece())]
