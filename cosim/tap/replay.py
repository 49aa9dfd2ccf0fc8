"""A recorded capture plays the client: its packets are sent again, with the server's sequence numbers mapped.

Each connection of the capture is played by itself. A packet of the client is sent when the server has come as far as it
had when the packet was recorded, and as much later as then. The client's sequence numbers are the recorded ones; its
acknowledgements follow the simulated server's: one that acknowledged all that the recorded server had sent acknowledges
all that the simulated one has. If the simulated server says more or less than the recorded one, the player acknowledges
what it says, and does not wait for ever for what it does not say; if it missed a packet that the recorded one had, the
player sends it again. All that is counted.
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

import msgspec

from cosim.capture_reader import read_frames
from cosim.errors import InputError
from host_driver.runtime import Kernel, Timer
from nic_model.checksum import checksum_seed, internet_checksum, ones_sum
from nic_model.contract.protocols import (
    IPV4_CHECKSUM_OFFSET,
    IPV4_HEADER_BYTES,
    TCP_CHECKSUM_OFFSET,
    TCP_HEADER_BYTES,
    EtherType,
    IpProtocol,
    TcpFlags,
)
from nic_model.packets import EthernetHeader, Frame, PacketError, TcpOption, pack_ipv4, pack_ipv6, pack_tcp, parse_frame
from nic_model.seqnum import MASK, distance

_US = 1_000_000

PATIENCE_PS = 1_000_000 * _US
"""1 s: so long the player waits for what the recorded server had said."""

ACK_PS = 40_000 * _US
"""40 ms: what the recording does not acknowledge by then, the player does."""

RESEND_PS = 200_000 * _US
"""200 ms: then a packet that the server has not acknowledged, though the recorded one had, is sent again."""

MAX_RESENDS = 8
"""Of one packet."""

LARGEST_PAYLOAD_BYTES = 1400
"""A recorded packet with more, as a host with segmentation offload captures it, is sent in pieces."""

_FIN, _SYN, _RST, _PSH, _ACK = (int(flag) for flag in (TcpFlags.FIN, TcpFlags.SYN, TcpFlags.RST, TcpFlags.PSH,
                                                       TcpFlags.ACK))
_NEGOTIATED = (TcpOption.WINDOW_SCALE, TcpOption.SACK_PERMITTED, TcpOption.TIMESTAMPS)
_SACK = 5
"""RFC 2018 §3: the option with blocks."""


class Played(msgspec.Struct, kw_only=True):
    """One connection of a capture and what came of it."""

    client: str
    packets: int = 0
    """That the client sent."""
    added_acks: int = 0
    """Beside them: for what the recorded server had not sent."""
    resent: int = 0
    """Packets that the simulated server had missed."""
    missing: int = 0
    """Packets that were sent although the server had not come so far."""
    recorded_bytes: int = 0
    """Of the server, in the capture."""
    received_bytes: int = 0
    """Of the simulated one."""
    end: str = "open"
    """closed: by both; reset: by the server; open: neither."""


@dataclass
class _Packet:
    """A packet of the client. Numbers are relative to the initial ones."""

    delay_ps: int
    """Behind the packet before it, of either side."""
    sequence: int
    acknowledged: int | None
    """None: no ACK."""
    flags: int
    window: int
    options: bytes
    payload: bytes
    server_end: int
    """How far the server had come when it was recorded,"""
    server_ack: int
    """and what it had acknowledged."""

    @property
    def end(self) -> int:
        """Behind its last sequence number."""
        return self.sequence + len(self.payload) + bool(self.flags & _SYN) + bool(self.flags & _FIN)


@dataclass
class Recording:
    """One connection of a capture."""

    client: tuple[IPv4Address | IPv6Address, int]
    iss: int
    packets: list[_Packet] = field(default_factory=list)
    irs: int | None = None
    agreed: set[int] | None = None
    """Kinds of options in the server's SYN: what both ends had. None: it is not in the capture."""
    server_end: int = 0
    server_ack: int = 0
    server_bytes: int = 0
    start_ns: int = 0
    last_ns: int = 0


def read_recording(path: Path, port: int) -> list[Recording]:
    """The connections of a capture: those to `port`, or if there is none, to the port that most connections are to.

    Raises InputError for what is no capture, has no connection with its beginning, or whose frames were cut.
    """
    frames = []
    for captured in read_frames(path):
        if len(captured.data) < captured.length_bytes:
            raise InputError(f"{path}: a frame of {captured.length_bytes} bytes was cut to {len(captured.data)}: "
                             "capture with tcpdump -s 0")
        frame = _parsed(captured.data)
        if frame is not None:
            frames.append((captured, frame))
    syns = Counter(frame.tcp.destination_port for _, frame in frames
                   if frame.tcp is not None and frame.tcp.flags & (_SYN | _ACK) == _SYN)
    if not syns:
        raise InputError(f"{path}: no TCP connection's beginning (SYN) is in it")
    if port not in syns:
        port = syns.most_common(1)[0][0]
    found: dict[tuple[bytes, bytes, int], Recording] = {}
    order: list[Recording] = []
    for captured, frame in frames:
        ip, tcp = frame.ipv4 or frame.ipv6, frame.tcp
        assert ip is not None
        assert tcp is not None
        is_client = tcp.destination_port == port
        if not is_client and tcp.source_port != port:
            continue
        key = (ip.source, ip.destination, tcp.source_port) if is_client else (ip.destination, ip.source,
                                                                              tcp.destination_port)
        if is_client and tcp.flags & (_SYN | _ACK) == _SYN and (key not in found or found[key].iss != tcp.sequence):
            found[key] = Recording((ip_address(ip.source), tcp.source_port), tcp.sequence,
                                   start_ns=captured.time_ns, last_ns=captured.time_ns)
            order.append(found[key])
        recording = found.get(key)
        if recording is None:
            continue
        if is_client:
            _add_client_packet(recording, captured.time_ns, frame)
        else:
            _follow_server(recording, captured.time_ns, frame)
    return order


def _parsed(data: bytes) -> Frame | None:
    """A TCP segment; None for everything else."""
    try:
        frame = parse_frame(data)
    except PacketError:
        return None
    return frame if frame.tcp is not None else None


def _add_client_packet(recording: Recording, time_ns: int, frame: Frame) -> None:
    tcp = frame.tcp
    assert tcp is not None
    options = _options_of(frame)
    acknowledged = None
    if tcp.flags & _ACK and recording.irs is not None:
        acknowledged = tcp.acknowledgement - recording.irs & MASK
    recording.packets.append(_Packet(
        delay_ps=max(time_ns - recording.last_ns, 0) * 1000, sequence=tcp.sequence - recording.iss & MASK,
        acknowledged=acknowledged, flags=tcp.flags, window=tcp.window, options=options, payload=bytes(frame.payload),
        server_end=recording.server_end, server_ack=recording.server_ack))
    recording.last_ns = time_ns


def _options_of(frame: Frame) -> bytes:
    assert frame.tcp is not None
    return bytes(frame.data[frame.l4_offset + TCP_HEADER_BYTES : frame.l4_offset + frame.tcp.header_bytes])


def _follow_server(recording: Recording, time_ns: int, frame: Frame) -> None:
    tcp = frame.tcp
    assert tcp is not None
    if tcp.flags & _SYN and recording.irs is None:
        recording.irs = tcp.sequence
        recording.agreed = {kind for kind, _ in _options(_options_of(frame))}
    if recording.irs is not None and not tcp.flags & _RST:
        begin = tcp.sequence - recording.irs & MASK
        recording.server_end = max(recording.server_end, begin + _length(frame))
        if frame.payload:
            recording.server_bytes = max(recording.server_bytes, begin + len(frame.payload) - 1)
        if tcp.flags & _ACK:
            recording.server_ack = max(recording.server_ack, tcp.acknowledgement - recording.iss & MASK)
    recording.last_ns = time_ns


def _length(frame: Frame) -> int:
    """Sequence numbers that a segment takes."""
    assert frame.tcp is not None
    return len(frame.payload) + bool(frame.tcp.flags & _SYN) + bool(frame.tcp.flags & _FIN)


class Server(NamedTuple):
    """The simulated server, as its clients see it."""

    mac: bytes
    ipv4: IPv4Address
    ipv6: IPv6Address
    port: int


class Replayer:
    """Plays recordings against a server: implements what a client does on the wire.

    Parameters: `mac`, the clients' Ethernet address. `send` is set before `run`. Attribute: `played`, in order.
    """

    def __init__(self, kernel: Kernel, recordings: Sequence[Recording], mac: bytes, server: Server) -> None:
        self.send: Callable[[bytes], None] = _nowhere
        self._kernel = kernel
        first_ns = min(recording.start_ns for recording in recordings)
        self._flows = [_Flow(kernel, recording, recording.start_ns - first_ns, self._forward, mac, server)
                       for recording in recordings]
        self._by_key = {flow.key: flow for flow in self._flows}

    @property
    def clients(self) -> set[IPv4Address | IPv6Address]:
        """The addresses that are played."""
        return {flow.client_ip for flow in self._flows}

    @property
    def played(self) -> list[Played]:
        """What came of each connection."""
        return [flow.played for flow in self._flows]

    def _forward(self, frame: bytes) -> None:
        self.send(frame)

    async def run(self) -> None:
        """Begin each connection when it began in the capture; return when all have ended, or nothing more comes."""
        now_ps = self._kernel.now
        for flow in self._flows:
            self._kernel.call_at(now_ps + flow.start_ns * 1000, flow.start)
        while not all(flow.is_over for flow in self._flows):
            await self._kernel.sleep(PATIENCE_PS // 10)

    def receive(self, data: bytes) -> None:
        """A frame of the server."""
        frame = _parsed(data)
        if frame is None:
            return
        ip, tcp = frame.ipv4 or frame.ipv6, frame.tcp
        assert ip is not None
        assert tcp is not None
        flow = self._by_key.get((ip.destination, tcp.destination_port))
        if flow is not None:
            flow.receive(frame)


class _Flow:
    """One connection that is played."""

    def __init__(self, kernel: Kernel, recording: Recording, start_ns: int, send: Callable[[bytes], None],
                 mac: bytes, server: Server) -> None:
        self.start_ns = start_ns
        ip, self._port = recording.client
        self.client_ip = ip
        is_ipv4 = ip.version == 4
        self.key = (ip.packed, self._port)
        self.played = Played(client=f"{ip}:{self._port}" if is_ipv4 else f"[{ip}]:{self._port}",
                             recorded_bytes=recording.server_bytes)
        self._kernel = kernel
        self._send = send
        self._ethernet = EthernetHeader(server.mac, mac, EtherType.IPV4 if is_ipv4 else EtherType.IPV6).pack()
        self._ip, self._server_ip = ip.packed, (server.ipv4 if is_ipv4 else server.ipv6).packed
        self._server_port = server.port
        self._iss = recording.iss
        self._left = deque(recording.packets)
        self._unheard: deque[_Packet] = deque()
        """What was sent and may have been missed."""
        self._resends = 0
        self._final_ack = recording.server_ack
        self._agreed = recording.agreed
        self._shift = 0
        self._scales = False
        self._irs: int | None = None
        self._received = 0
        """How far the server has come, in order."""
        self._heard = 0
        """What it acknowledged."""
        self._acknowledged = 0
        self._sent = 0
        """How far the client has come."""
        self._started = False
        self._fin_received = False
        self._fin_sent = False
        self._last_window = 0
        self._peer_timestamp = 0
        self._last_timestamp: int | None = None
        self._event_ps = 0
        """When the last thing happened, of either side: recorded delays count from it."""
        self._timer: Timer | None = None
        self._ack_timer: Timer | None = None
        self._silent_since_ps = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be sent, nor comes."""
        return (self._started and not self._left and self._timer is None
                and (self.played.end != "open" or self._kernel.now - self._silent_since_ps > PATIENCE_PS))

    def start(self) -> None:
        """Send the first packet now."""
        self._started = True
        self._event_ps = self._silent_since_ps = self._kernel.now
        self._next()

    def receive(self, frame: Frame) -> None:
        """A segment of the server."""
        tcp = frame.tcp
        assert tcp is not None
        self._event_ps = self._silent_since_ps = self._kernel.now
        if tcp.flags & _RST:
            self.played.end = "reset"
            self._left.clear()
            self._cancel()
            return
        if tcp.flags & _SYN and self._irs is None:
            self._irs = tcp.sequence
            self._scales = tcp.options.window_scale is not None
        if self._irs is None:
            return
        if tcp.options.timestamps is not None:
            self._peer_timestamp = tcp.options.timestamps[0]
        if tcp.flags & _ACK:
            heard = tcp.acknowledgement - self._iss & MASK
            if heard > self._heard:
                self._heard = heard
                if self._resends and heard < (self._left[0].server_ack if self._left else self._final_ack):
                    # More was missed than one packet: the next one at once.
                    self._resends = 0
                    self._resend()
                self._resends = 0
        begin = distance(self._irs, tcp.sequence) if self._received else 0
        end = begin + _length(frame)
        if begin <= self._received < end:
            self._received = end
            self._fin_received |= bool(tcp.flags & _FIN)
            self.played.received_bytes = max(end - 1 - self._fin_received, 0)
        if end > self._acknowledged and self._ack_timer is None:
            self._ack_timer = self._kernel.call_at(self._kernel.now + ACK_PS, self._acknowledge)
        self._judge()
        self._next()

    # ------------------------------------------------------------------------------------------ what is sent

    def _next(self) -> None:
        """See to the next packet: at its time if the server has come so far, else when patience ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._left:
            if self._heard < self._final_ack and self._resends < MAX_RESENDS:
                self._timer = self._kernel.call_at(self._event_ps + RESEND_PS, self._resend)
            return
        packet = self._left[0]
        if self._server_is_at(packet):
            self._timer = self._kernel.call_at(self._event_ps + packet.delay_ps, self._play)
        elif self._heard < packet.server_ack and self._resends < MAX_RESENDS:
            self._timer = self._kernel.call_at(self._event_ps + RESEND_PS, self._resend)
        else:
            self._timer = self._kernel.call_at(self._silent_since_ps + PATIENCE_PS, self._play)

    def _server_is_at(self, packet: _Packet) -> bool:
        """Whether the server has said, and heard, as much as when the packet was recorded."""
        said = self._received >= packet.server_end or self._fin_received
        return said and self._heard >= packet.server_ack

    def _resend(self) -> None:
        """Send the first packet again that the server has not heard of."""
        self._timer = None
        self._event_ps = self._kernel.now
        while self._unheard and self._unheard[0].end <= self._heard:
            self._unheard.popleft()
        if self._unheard:
            self.played.resent += 1
            self._resends += 1
            self._send_packet(self._unheard[0])
        else:
            self._resends = MAX_RESENDS
        self._next()

    def _play(self) -> None:
        self._timer = None
        packet = self._left.popleft()
        self.played.missing += not self._server_is_at(packet)
        self.played.packets += 1
        self._event_ps = self._kernel.now
        self._send_packet(packet)
        if packet.end > packet.sequence:
            self._unheard.append(packet)
        self._sent = max(self._sent, packet.end)
        self._fin_sent |= bool(packet.flags & _FIN)
        if packet.flags & _RST:
            self.played.end = "closed"
            self._left.clear()
            self._final_ack = 0
        self._judge()
        self._next()

    def _send_packet(self, packet: _Packet) -> None:
        acknowledged = self._mapped(packet)
        self._last_window = window = self._mapped_window(packet)
        options = self._mapped_options(packet)
        pieces = list(_pieces(packet.payload))
        for offset, piece, is_last in pieces:
            flags = packet.flags if is_last else packet.flags & ~(_FIN | _PSH)
            self._transmit(packet.sequence + offset, acknowledged, flags, window, options, piece)

    def _mapped(self, packet: _Packet) -> int | None:
        """What a packet acknowledges of the simulated server."""
        if packet.acknowledged is None or self._irs is None:
            return None
        if packet.acknowledged >= packet.server_end:
            return self._received
        return min(packet.acknowledged, self._received)

    def _acknowledge(self) -> None:
        """For what the recording does not acknowledge."""
        self._ack_timer = None
        if self._received > self._acknowledged and self.played.end != "reset":
            self.played.added_acks += 1
            options = b""
            if self._last_timestamp is not None:
                options = struct.pack("!BBBBII", 1, 1, TcpOption.TIMESTAMPS, 10, self._last_timestamp,
                                      self._peer_timestamp)
            self._transmit(self._sent, self._received, _ACK, self._last_window, options, b"")
            self._judge()

    def _transmit(self, sequence: int, acknowledged: int | None, flags: int, window: int, options: bytes,
                  payload: bytes) -> None:
        number = 0
        if acknowledged is not None:
            assert self._irs is not None
            number = self._irs + acknowledged & MASK
            self._acknowledged = max(self._acknowledged, acknowledged)
        segment = bytearray(pack_tcp(self._port, self._server_port, self._iss + sequence & MASK, number, flags, window,
                                     options) + payload)
        seed = checksum_seed(self._ip, self._server_ip, IpProtocol.TCP, len(segment))
        struct.pack_into("!H", segment, TCP_CHECKSUM_OFFSET, ones_sum(segment, seed) ^ 0xFFFF)
        if len(self._ip) == 4:
            ip = bytearray(pack_ipv4(self._ip, self._server_ip, IpProtocol.TCP, IPV4_HEADER_BYTES + len(segment)))
            struct.pack_into("!H", ip, IPV4_CHECKSUM_OFFSET, internet_checksum(ip))
        else:
            ip = bytearray(pack_ipv6(self._ip, self._server_ip, IpProtocol.TCP, len(segment)))
        self._send(self._ethernet + bytes(ip) + bytes(segment))

    def _mapped_window(self, packet: _Packet) -> int:
        """The window field: not scaled if the simulated server does not scale."""
        if packet.flags & _SYN or self._scales:
            return packet.window
        return min(packet.window << self._shift, 0xFFFF)

    def _mapped_options(self, packet: _Packet) -> bytes:
        """A packet's options: timestamps echo the simulated server's; SACK's blocks, of the recorded one, are left
        out. A SYN offers what the recorded server agreed to, since the packets behind it are as agreed."""
        mapped = b""
        for kind, value in _options(packet.options):
            if kind == _SACK or (packet.flags & _SYN and kind in _NEGOTIATED and self._agreed is not None
                                 and kind not in self._agreed):
                continue
            if kind == TcpOption.WINDOW_SCALE:
                self._shift = value[0]
            if kind == TcpOption.TIMESTAMPS and len(value) == 8:
                self._last_timestamp = int.from_bytes(value[:4], "big")
                value = value[:4] + self._peer_timestamp.to_bytes(4, "big")
            mapped += bytes([kind]) + (bytes([len(value) + 2]) + value if kind > 1 else b"")
        return mapped + bytes(-len(mapped) % 4)

    def _judge(self) -> None:
        if self._fin_sent and self._fin_received and self._acknowledged >= self._received:
            self.played.end = "closed" if self.played.end == "open" else self.played.end

    def _cancel(self) -> None:
        for timer in (self._timer, self._ack_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._ack_timer = None


def _nowhere(_frame: bytes) -> None:
    raise RuntimeError("a client has no wire")


def _pieces(payload: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """Offset, bytes, whether they are the last: at least one piece."""
    for offset in range(0, max(len(payload), 1), LARGEST_PAYLOAD_BYTES):
        piece = payload[offset : offset + LARGEST_PAYLOAD_BYTES]
        yield offset, piece, offset + len(piece) == len(payload)


def _options(options: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and value of each option; those without a value are kinds 0 and 1."""
    at = 0
    while at < len(options) and options[at] != 0:
        kind = options[at]
        if kind == 1:
            yield kind, b""
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            return
        yield kind, options[at + 2 : at + length]
        at += length
