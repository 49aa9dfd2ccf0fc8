"""Many connections over one address: demultiplexing, listening, timers, headers.

Frames go in by `receive`, segments come out of `transmit`; `next_deadline` says when `poll` must be called at the
latest. After any call that may have changed something (`receive`, `poll`, `connect`, a connection's `send`, `recv`,
`close`, `abort`) `has_output` tells whether `transmit` would give anything.
"""

# Ref: RFC 9293 §3.9, §3.10; RFC 6528 (initial sequence numbers); RFC 791; RFC 8200

from __future__ import annotations

import heapq
import random
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2s
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import count

from host_driver.account import Account
from host_driver.tcp.buffers import Chunk
from host_driver.tcp.connection import ACK, FIN, NEVER, RST, SYN, Connection, Endpoint, State
from host_driver.tcp.profile import US, Profile
from nic_model.checksum import Buffer, checksum_seed, fold, internet_checksum, ones_sum
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_CHECKSUM_OFFSET,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    TCP_CHECKSUM_OFFSET,
    TCP_HEADER_BYTES,
    EtherType,
    IpProtocol,
)
from nic_model.packets import (
    EthernetHeader,
    Frame,
    PacketError,
    TcpHeader,
    pack_ipv4,
    pack_ipv6,
    pack_tcp,
    parse_frame,
)
from nic_model.seqnum import MASK, unwrap

IpAddress = IPv4Address | IPv6Address

FIRST_EPHEMERAL_PORT = 32768
LAST_EPHEMERAL_PORT = 60999

MAX_IP_LENGTH = 0xFFFF

_U16 = struct.Struct("!H")
_TCP_PROTOCOL = int(IpProtocol.TCP)


class Link:
    """Where the frames towards one remote address and port go: what all their headers share."""

    __slots__ = ("destination", "ethernet", "pseudo_sum", "source")

    def __init__(self, ethernet: bytes, source: bytes, destination: bytes) -> None:
        self.ethernet = ethernet
        self.source = source
        self.destination = destination
        self.pseudo_sum = checksum_seed(source, destination, _TCP_PROTOCOL, None)


class OutSegment:
    """One segment to send; larger than the MSS if the stack may rely on segmentation by the device."""

    __slots__ = ("_pseudo_sum", "connection", "header", "ipv6", "is_retransmission", "l3_offset", "l4_offset", "mss",
                 "payload", "payload_bytes")

    def __init__(self, header: bytes, l4_offset: int, mss: int, payload: list[Chunk], payload_bytes: int,
                 connection: Connection | None, is_retransmission: bool, pseudo_sum: int) -> None:
        self.header = header
        """Ethernet, IP and TCP header. Both checksum fields hold 0. The IP length is that of this size, or 0 when the
        segment is longer than an IP packet can be and must be cut up."""
        self.l3_offset = ETHERNET_HEADER_BYTES
        self.l4_offset = l4_offset
        self.ipv6 = l4_offset == ETHERNET_HEADER_BYTES + IPV6_HEADER_BYTES
        self.mss = mss
        self.payload = payload
        self.payload_bytes = payload_bytes
        self.connection = connection
        """None for a RST that answers a segment of no connection."""
        self.is_retransmission = is_retransmission
        self._pseudo_sum = pseudo_sum

    @property
    def checksum_offset(self) -> int:
        """Offset of the TCP checksum field from the frame's first byte."""
        return self.l4_offset + TCP_CHECKSUM_OFFSET

    def seeded_header(self, *, with_length: bool) -> bytes:
        """The header with the pseudo-header's sum in the TCP checksum field, for insertion by the device:
        with the length for one frame, without it for a segmented send (`SendFlag.L4_CHECKSUM`)."""
        seed = self._pseudo_sum
        if with_length:
            seed = fold(seed + len(self.header) - self.l4_offset + self.payload_bytes)
        header = bytearray(self.header)
        _U16.pack_into(header, self.l4_offset + TCP_CHECKSUM_OFFSET, seed)
        return bytes(header)

    def frame(self, account: Account | None = None) -> bytes:
        """The whole frame, checksums computed in software and, if an account is given, charged to it.

        Copies the payload. Raises ValueError for a segment larger than the MSS.
        """
        if self.payload_bytes > self.mss:
            raise ValueError(f"{self.payload_bytes} bytes do not fit one segment of {self.mss}")
        frame = bytearray(self.header)
        for chunk in self.payload:
            frame += chunk.view()
        l4 = self.l4_offset
        if not self.ipv6:
            l3 = self.l3_offset
            _U16.pack_into(frame, l3 + IPV4_CHECKSUM_OFFSET, internet_checksum(frame[l3:l4]))
        l4_bytes = len(frame) - l4
        checksum = ones_sum(memoryview(frame)[l4:], self._pseudo_sum + l4_bytes) ^ 0xFFFF
        _U16.pack_into(frame, l4 + TCP_CHECKSUM_OFFSET, checksum)
        if account is not None:
            account.charge("tcp_send", "checksum_byte", l4_bytes)
        return bytes(frame)


class Listener:
    """A port in state LISTEN. `on_event`, if set, is called when `accept` has a connection to give."""

    __slots__ = ("_queue", "_stack", "backlog", "half_open", "on_event", "port")

    def __init__(self, stack: Stack, port: int, backlog: int) -> None:
        self._stack = stack
        self.port = port
        self.backlog = backlog
        """Connections that may be waiting, in handshake or to be accepted."""
        self.half_open = 0
        """Connections in SYN-RECEIVED."""
        self.on_event: Callable[[Listener], None] | None = None
        self._queue: deque[Connection] = deque()

    @property
    def acceptable(self) -> bool:
        """Whether `accept` gives a connection now."""
        return bool(self._queue)

    @property
    def is_full(self) -> bool:
        """Whether a further SYN is dropped."""
        return self.half_open + len(self._queue) >= self.backlog

    def accept(self) -> Connection | None:
        """The connection that completed its handshake first, or None. It may have been closed by its peer since."""
        return self._queue.popleft() if self._queue else None

    def close(self, now: int) -> None:
        """Stop listening; connections that nobody accepted are aborted."""
        self._stack.forget_listener(self, now)
        while self._queue:
            self._queue.popleft().abort(now)

    def add(self, connection: Connection) -> None:
        """A handshake is complete; called by the stack."""
        self._queue.append(connection)
        if self.on_event is not None:
            self.on_event(self)


@dataclass(slots=True)
class StackCounters:
    """What a stack dropped, and what it answered by itself."""

    malformed: int = 0
    """Frames that are no packets, or IP fragments."""
    not_for_us: int = 0
    """Another address, or no TCP."""
    bad_checksum: int = 0
    no_neighbour: int = 0
    """Packets from an address without an entry in the neighbour table."""
    backlog_full: int = 0
    """SYNs dropped."""
    resets_sent: int = 0
    """RSTs that answer segments of no connection."""


_Key = tuple[bytes, int, int]  # remote address, remote port, local port


class Stack:
    """TCP over one IPv4 or IPv6 address."""

    def __init__(self, *, mac: bytes, ip: IpAddress | str, profile: Profile, mtu: int = 1500,
                 max_segment_bytes: int | None = None, account: Account, rng: random.Random) -> None:
        """`mtu`: IP bytes of a frame. `max_segment_bytes`: largest payload of one `OutSegment`, if the device cuts it
        up; None: the MSS. `rng` makes initial sequence numbers and ports; the same seed gives the same run."""
        self.mac = mac
        self.ip: IpAddress = ip_address(ip)
        self.profile = profile
        self.account = account
        self.counters = StackCounters()
        self._is_ipv6 = self.ip.version == 6
        self._ip_bytes = self.ip.packed
        self._ip_header_bytes = IPV6_HEADER_BYTES if self._is_ipv6 else IPV4_HEADER_BYTES
        self._l4_offset = ETHERNET_HEADER_BYTES + self._ip_header_bytes
        self._mss = mtu - self._ip_header_bytes - TCP_HEADER_BYTES
        if self._mss < 1:
            raise ValueError(f"mtu must leave room for payload, not {mtu}")
        self._max_segment_bytes = max_segment_bytes
        self._neighbours: dict[bytes, Link] = {}
        self._connections: dict[_Key, Connection] = {}
        self._listeners: dict[int, Listener] = {}
        self._half_open: dict[Connection, Listener] = {}
        self._ready: dict[Connection, None] = {}  # an ordered set: connections whose `emit` is to be called
        self._outbox: list[OutSegment] = []
        self._timers: list[tuple[int, int, Connection]] = []
        self._tie_breaker = count()
        self._isn_secret = rng.randbytes(16)
        self._identification = rng.randrange(1 << 16)
        self._next_port = rng.randrange(FIRST_EPHEMERAL_PORT, LAST_EPHEMERAL_PORT + 1)

    # What the user calls ---------------------------------------------------------------------------------------------

    def add_neighbour(self, ip: IpAddress | str, mac: bytes) -> None:
        """Enter the Ethernet address at which `ip` is reached. Raises ValueError for another IP version."""
        address = ip_address(ip)
        if address.version != self.ip.version:
            raise ValueError(f"neighbour {address} of a stack with address {self.ip}")
        ethertype = EtherType.IPV6 if self._is_ipv6 else EtherType.IPV4
        ethernet = EthernetHeader(mac, self.mac, ethertype).pack()
        self._neighbours[address.packed] = Link(ethernet, self._ip_bytes, address.packed)

    def listen(self, port: int, backlog: int) -> Listener:
        """Listen on `port`. Raises ValueError if something already does."""
        if port in self._listeners:
            raise ValueError(f"port {port} is already listened on")
        listener = self._listeners[port] = Listener(self, port, backlog)
        return listener

    def is_listening(self, port: int) -> bool:
        """Whether something listens on `port`."""
        return port in self._listeners

    def connect(self, remote_ip: IpAddress | str, remote_port: int, now: int,
                local_port: int | None = None) -> Connection:
        """Open a connection; `local_port` None picks a free one. The SYN leaves with the next `transmit`.

        Raises ValueError if the address has no entry in the neighbour table, or no port is free.
        """
        remote = Endpoint(ip_address(remote_ip), remote_port)
        link = self._neighbours.get(remote.ip.packed)
        if link is None:
            raise ValueError(f"no neighbour entry for {remote.ip}")
        port = self._free_port(remote) if local_port is None else local_port
        if (remote.ip.packed, remote_port, port) in self._connections:
            raise ValueError(f"port {port} to {remote.ip}:{remote_port} is in use")
        connection = self._new_connection(remote, port, link, now)
        connection.open()
        return connection

    @property
    def has_output(self) -> bool:
        """Whether `transmit` may give something."""
        return bool(self._outbox or self._ready)

    @property
    def connections(self) -> list[Connection]:
        """All connections that are not CLOSED."""
        return list(self._connections.values())

    def receive(self, frame: Buffer, now: int, *, checksum_ok: bool | None = None) -> None:
        """Take in one frame. Bad, foreign and unknown ones are dropped and counted; nothing is raised for them.

        `checksum_ok`: what the device found; None: it did not look, so the sums are verified and charged here. The
        frame may be reused after the call.
        """
        counters = self.counters
        try:
            parsed = parse_frame(frame)
        except PacketError:
            counters.malformed += 1
            return
        ip = parsed.ipv6 if self._is_ipv6 else parsed.ipv4
        if ip is None or ip.destination != self._ip_bytes or parsed.ethernet.destination != self.mac:
            counters.not_for_us += 1
            return
        self.account.charge("ip", "receive")
        if parsed.is_fragment:
            counters.malformed += 1
            return
        tcp = parsed.tcp
        if tcp is None:
            counters.not_for_us += 1
            return
        if checksum_ok is None:
            checksum_ok = self._verify(parsed)
        if not checksum_ok:
            counters.bad_checksum += 1
            return
        self._receive_tcp(ip.source, tcp, parsed.payload, now)

    def poll(self, now: int) -> None:
        """Run every timer that is due."""
        timers = self._timers
        while timers and timers[0][0] <= now:
            at, _, connection = heapq.heappop(timers)
            if at != connection.timer_at:
                continue
            connection.timer_at = NEVER
            if connection.deadline() <= now:
                connection.on_timer(now)
            self._schedule(connection)

    def next_deadline(self) -> int | None:
        """When `poll` must be called at the latest, or None."""
        timers = self._timers
        while timers:
            at, _, connection = timers[0]
            # Timers that moved to a later time, or stopped, leave their entry behind until it comes to the front.
            if at == connection.timer_at:
                if at == connection.deadline():
                    return at
                connection.timer_at = NEVER
                heapq.heappop(timers)
                self._schedule(connection)
            else:
                heapq.heappop(timers)
        return None

    def transmit(self, now: int) -> list[OutSegment]:
        """Everything that may be sent now, in order."""
        while self._ready:
            ready, self._ready = self._ready, {}
            for connection in ready:
                connection.emit(now)
                self._schedule(connection)
        segments, self._outbox = self._outbox, []
        return segments

    # What connections and listeners call (`connection.Output`) -------------------------------------------------------

    def output(self, connection: Connection, sequence: int, flags: int, window: int, options: bytes,
               payload: list[Chunk], payload_bytes: int, is_retransmission: bool) -> None:
        """Put a connection's segment into the outbox."""
        link = connection.link
        assert isinstance(link, Link)
        acknowledgement = connection.ack_number if flags & ACK else 0
        tcp = pack_tcp(connection.local.port, connection.remote.port, sequence, acknowledgement, flags, window, options)
        self._put(link, tcp, payload, payload_bytes, connection.mss, connection, is_retransmission)

    def want_transmit(self, connection: Connection) -> None:
        """Call the connection's `emit` with the next `transmit`."""
        self._ready[connection] = None

    def on_established(self, connection: Connection) -> None:
        """Hand a passively opened connection to its listener."""
        listener = self._half_open.pop(connection)
        listener.half_open -= 1
        listener.add(connection)

    def on_closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.pop((connection.remote.ip.packed, connection.remote.port, connection.local.port), None)
        self._ready.pop(connection, None)
        listener = self._half_open.pop(connection, None)
        if listener is not None:
            listener.half_open -= 1

    def forget_listener(self, listener: Listener, now: int) -> None:
        """No longer listen; handshakes under way are aborted."""
        if self._listeners.get(listener.port) is listener:
            del self._listeners[listener.port]
        for connection in [c for c, of in self._half_open.items() if of is listener]:
            connection.abort(now)

    # Arrival ---------------------------------------------------------------------------------------------------------

    def _verify(self, frame: Frame) -> bool:
        self.account.charge("tcp_recv", "checksum_byte", frame.end - frame.l4_offset)
        return frame.l3_checksum_ok() and frame.l4_checksum_ok()

    def _receive_tcp(self, source: bytes, tcp: TcpHeader, payload: memoryview, now: int) -> None:
        key = (source, tcp.source_port, tcp.destination_port)
        connection = self._connections.get(key)
        self._charge_arrival(tcp.flags, len(payload), State.LISTEN if connection is None else connection.state)
        if connection is not None and not self._may_replace(connection, tcp):
            connection.on_segment(tcp, payload, now)
            self._schedule(connection)
            return
        link = self._neighbours.get(source)
        if link is None:
            self.counters.no_neighbour += 1
            return
        listener = self._listeners.get(tcp.destination_port)
        if tcp.flags & RST:
            # RFC 9293 §3.10.7.1: "An incoming segment containing a RST is discarded"; §3.10.7.2: "An incoming RST
            # segment could not be valid in this state [...] and should be ignored"
            return
        if listener is None or tcp.flags & ACK:
            # §3.10.7.2: "Any acknowledgment is bad if it arrives on a connection still in the LISTEN state"
            self._answer_with_reset(link, tcp, len(payload))
            return
        if not tcp.flags & SYN:
            return
        if listener.is_full:
            self.counters.backlog_full += 1
            return
        if connection is not None:
            connection.abort(now)
        remote = Endpoint(ip_address(source), tcp.source_port)
        connection = self._new_connection(remote, tcp.destination_port, link, now)
        listener.half_open += 1
        self._half_open[connection] = listener
        connection.open_passive(tcp)

    def _may_replace(self, connection: Connection, tcp: TcpHeader) -> bool:
        """Whether a SYN may open the connection anew that still stands in TIME-WAIT."""
        # RFC 9293 §3.6.1: a TCP "MAY accept a new SYN from the remote TCP endpoint to reopen the connection directly
        # from the TIME-WAIT state, if it: (1) assigns its initial sequence number for the new connection to be larger
        # than the largest sequence number it used on the previous connection incarnation", which the 4 microsecond
        # clock sees to, and the SYN is no old duplicate.
        return (connection.state is State.TIME_WAIT and tcp.flags & (SYN | ACK | RST) == SYN
                and unwrap(tcp.sequence, connection.rcv_nxt) > connection.rcv_nxt
                and tcp.destination_port in self._listeners)

    def _charge_arrival(self, flags: int, payload_bytes: int, state: State) -> None:
        """A segment is charged as what it is; one that is several things (data with a FIN) as each of them."""
        charge = self.account.charge
        if flags & RST:
            charge("tcp_recv", "rst")
            return
        if (state is State.SYN_SENT and flags & SYN) or (state is State.SYN_RECEIVED and not flags & SYN):
            charge("tcp_recv", "established")
        elif flags & SYN:
            charge("tcp_recv", "syn")
        elif not payload_bytes and not flags & FIN:
            charge("tcp_recv", "ack")
        if payload_bytes:
            charge("tcp_recv", "data_segment")
        if flags & FIN:
            charge("tcp_recv", "fin")

    def _answer_with_reset(self, link: Link, tcp: TcpHeader, payload_bytes: int) -> None:
        # RFC 9293 §3.10.7.1: "If the ACK bit is off, sequence number zero is used, <SEQ=0><ACK=SEG.SEQ+SEG.LEN>
        # <CTL=RST,ACK>. If the ACK bit is on, <SEQ=SEG.ACK><CTL=RST>"
        self.counters.resets_sent += 1
        flags = tcp.flags
        if flags & ACK:
            header = pack_tcp(tcp.destination_port, tcp.source_port, tcp.acknowledgement, 0, RST, 0)
        else:
            length = payload_bytes + (1 if flags & SYN else 0) + (1 if flags & FIN else 0)
            header = pack_tcp(tcp.destination_port, tcp.source_port, 0, tcp.sequence + length & MASK, RST | ACK, 0)
        self._put(link, header, [], 0, self._mss, None, False)

    # Connections -----------------------------------------------------------------------------------------------------

    def _new_connection(self, remote: Endpoint, port: int, link: Link, now: int) -> Connection:
        connection = Connection(
            local=Endpoint(self.ip, port), remote=remote, iss=self._initial_sequence_number(remote, port, now),
            advertised_mss=self._mss, max_segment_bytes=self._max_segment_bytes, profile=self.profile, output=self,
            link=link)
        self._connections[remote.ip.packed, remote.port, port] = connection
        return connection

    def _initial_sequence_number(self, remote: Endpoint, port: int, now: int) -> int:
        # RFC 6528 §3: "ISN = M + F(localip, localport, remoteip, remoteport, secretkey) where M is the 4 microsecond
        # timer, and F() is a pseudorandom function"
        tuple_bytes = self._ip_bytes + remote.ip.packed + struct.pack("!HH", port, remote.port)
        f = int.from_bytes(blake2s(tuple_bytes, key=self._isn_secret, digest_size=4).digest(), "big")
        return now // (4 * US) + f & MASK

    def _free_port(self, remote: Endpoint) -> int:
        ports = LAST_EPHEMERAL_PORT - FIRST_EPHEMERAL_PORT + 1
        for _ in range(ports):
            port = self._next_port
            self._next_port = FIRST_EPHEMERAL_PORT + (port + 1 - FIRST_EPHEMERAL_PORT) % ports
            if (remote.ip.packed, remote.port, port) not in self._connections:
                return port
        raise ValueError(f"no free port towards {remote.ip}:{remote.port}")

    def _schedule(self, connection: Connection) -> None:
        """See to it that an entry at or before the connection's deadline stands in the heap."""
        deadline = connection.deadline()
        if deadline < connection.timer_at:
            connection.timer_at = deadline
            heapq.heappush(self._timers, (deadline, next(self._tie_breaker), connection))

    # Sending ---------------------------------------------------------------------------------------------------------

    def _put(self, link: Link, tcp: bytes, payload: list[Chunk], payload_bytes: int, mss: int,
             connection: Connection | None, is_retransmission: bool) -> None:
        l4_bytes = len(tcp) + payload_bytes
        if self._is_ipv6:
            length = l4_bytes if l4_bytes <= MAX_IP_LENGTH else 0
            ip = pack_ipv6(link.source, link.destination, _TCP_PROTOCOL, length)
        else:
            length = IPV4_HEADER_BYTES + l4_bytes
            ip = pack_ipv4(link.source, link.destination, _TCP_PROTOCOL, length if length <= MAX_IP_LENGTH else 0,
                           self._identification)
            # each frame that the device cuts the segment into takes a number
            self._identification = self._identification + max(-(-payload_bytes // mss), 1) & 0xFFFF
        self.account.charge("tcp_send", "segment" if payload_bytes else "control")
        self.account.charge("ip", "send")
        self._outbox.append(OutSegment(link.ethernet + ip + tcp, self._l4_offset, mss, payload, payload_bytes,
                                       connection, is_retransmission, link.pseudo_sum))
