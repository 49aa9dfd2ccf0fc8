"""Many connections over one address, or one of each kind: demultiplexing, listening, timers, headers.

Frames go in by `receive`, segments come out of `transmit`; `next_deadline` says when `poll` must be called at the
latest. After any call that may have changed something (`receive`, `poll`, `connect`, a connection's `send`, `recv`,
`close`, `abort`) `has_output` tells whether `transmit` would give anything.

What is not TCP (ARP, neighbour discovery, ICMP) goes in and comes out the same way, as whole frames.
"""

# Ref: RFC 9293 §3.9, §3.10; RFC 6528 (initial sequence numbers); RFC 791; RFC 8200

from __future__ import annotations

import heapq
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2s
from ipaddress import ip_address
from itertools import count

from host_driver.account import Account
from host_driver.tcp.buffers import Chunk
from host_driver.tcp.connection import DEFAULT_MSS_IPV4, DEFAULT_MSS_IPV6, Arrival, Connection, timestamp
from host_driver.tcp.frames import OutFrame, OutSegment
from host_driver.tcp.icmp import Icmp
from host_driver.tcp.icmp_errors import no_neighbour, path_mtu, verdict
from host_driver.tcp.links import IpAddress, Link, LocalAddress, OwnAddress
from host_driver.tcp.listener import Listener
from host_driver.tcp.neighbours import Neighbour, NeighbourTable, Outgoing
from host_driver.tcp.profile import US, Profile
from host_driver.tcp.states import (
    ACK,
    ECN_MASK,
    FIN,
    LISTEN,
    MAX_UNSCALED_WINDOW,
    NEVER,
    NOT_ECT,
    RST,
    SYN,
    SYN_RECEIVED,
    SYN_SENT,
    TIME_WAIT,
    Endpoint,
    State,
)
from host_driver.tcp.syn_cookies import COOKIE_LIFETIME_PS, Peer, SynCookies, found_options, hide_options
from nic_model.checksum import Buffer, ones_sum
from nic_model.contract.protocols import (
    IPV4_HEADER_BYTES,
    IpProtocol,
)
from nic_model.icmp import ALL_NODES, IcmpMessage, QuotedSegment, multicast_mac, solicited_node
from nic_model.packets import (
    BROADCAST_MAC,
    Frame,
    PacketError,
    TcpHeader,
    TcpOptions,
    pack_ipv4,
    pack_ipv6,
    pack_tcp,
    parse_frame,
)
from nic_model.seqnum import MASK, unwrap, wrap

FIRST_EPHEMERAL_PORT = 32768
LAST_EPHEMERAL_PORT = 60999

MAX_IP_LENGTH = 0xFFFF

R1 = 3
"""Retransmissions of one segment before its way is doubted (RFC 9293 §3.8.3: "at least 3")."""

MAX_LINKS = 4096
"""Remote addresses whose headers are kept for the next connection; the oldest goes for a further one."""

_TCP_PROTOCOL = int(IpProtocol.TCP)


@dataclass(slots=True)
class StackCounters:
    """What a stack dropped, and what it answered by itself."""

    malformed: int = 0
    """Frames that are no packets, or IP fragments."""
    not_for_us: int = 0
    """Another address, or a protocol that is not spoken."""
    bad_checksum: int = 0
    no_route: int = 0
    """Packets from an address outside the network, without a gateway to answer by."""
    backlog_full: int = 0
    """SYNs dropped."""
    accept_full: int = 0
    """Last acknowledgements of handshakes that were dropped, since the accept queue was full."""
    cookies_sent: int = 0
    cookies_accepted: int = 0
    cookies_refused: int = 0
    """Acknowledgements that brought no cookie of the last two minutes back while there were some."""
    icmp_ignored: int = 0
    """ICMP errors about no segment that is under way, or that say nothing new."""
    resets_sent: int = 0
    """RSTs that answer segments of no connection."""


def _is_icmp(frame: Frame, local: LocalAddress) -> bool:
    return frame.protocol == (IpProtocol.ICMPV6 if local.ipv6 else IpProtocol.ICMP)


_Key = tuple[bytes, int, int]  # remote address, remote port, local port


class Stack:
    """TCP over one address, IPv4 or IPv6, or over one of each."""

    def __init__(self, *, mac: bytes, ip: OwnAddress | Sequence[OwnAddress], profile: Profile, mtu: int = 1500,
                 max_segment_bytes: int | None = None, account: Account, rng: random.Random,
                 gateways: Sequence[IpAddress | str] = ()) -> None:
        """`ip`: an address, or one of each kind; with its network ("10.0.0.1/24") others are reached by a gateway,
        without one all are on the link. `mtu`: IP bytes of a frame. `max_segment_bytes`: largest payload of one
        `OutSegment`, if the device cuts it up; None: the MSS. `rng` makes initial sequence numbers and ports; the same
        seed gives the same run. Raises ValueError for addresses that do not fit each other, and too small an MTU."""
        self.mac = mac
        own = [ip] if isinstance(ip, str) or not isinstance(ip, Sequence) else ip
        self._locals = {local.packed: local for local in (LocalAddress(address, mtu=mtu) for address in own)}
        self._by_version = {local.ip.version: local for local in self._locals.values()}
        if len(self._by_version) != len(own) or not own:
            raise ValueError(f"a stack has one address, or one IPv4 and one IPv6 address, not {own}")
        self.ip: IpAddress = next(iter(self._locals.values())).ip
        """Its address, or the first of them."""
        for gateway in map(ip_address, gateways):
            self._local_towards(gateway, "gateway").gateway = gateway.packed
        self.profile = profile
        self.account = account
        self.counters = StackCounters()
        self._groups = {group: local for local in self._locals.values() if local.ipv6
                        for group in (ALL_NODES, solicited_node(local.packed))}
        self._group_macs = {BROADCAST_MAC, *map(multicast_mac, self._groups)}
        self._max_segment_bytes = max_segment_bytes
        self.neighbours = NeighbourTable(mac, self._put_outgoing, self._on_unreachable)
        self.icmp = Icmp(self.neighbours, self._send_packet, self._on_icmp_error)
        self._links: dict[bytes, Link] = {}
        self._connections: dict[_Key, Connection] = {}
        self._listeners: dict[int, Listener] = {}
        self._half_open: dict[Connection, Listener] = {}
        self._ready: dict[Connection, None] = {}  # an ordered set: connections whose `emit` is to be called
        self._outbox: list[OutSegment | OutFrame] = []
        self._timers: list[tuple[int, int, Connection]] = []
        self._tie_breaker = count()
        self._isn_secret = rng.randbytes(16)
        self._cookies = SynCookies(self._isn_secret)
        self._identification = rng.randrange(1 << 16)
        self._next_port = rng.randrange(FIRST_EPHEMERAL_PORT, LAST_EPHEMERAL_PORT + 1)
        self._now = 0  # of the call that is under way

    # What the user calls ---------------------------------------------------------------------------------------------

    def add_neighbour(self, ip: IpAddress | str, mac: bytes) -> None:
        """A static entry: `ip` is reached at the Ethernet address `mac`, whatever the link says.

        Raises ValueError for a version of IP that the stack has no address of.
        """
        address = ip_address(ip)
        self.neighbours.enter(self._local_towards(address, "neighbour"), address.packed, mac)

    def announce(self, now: int) -> None:
        """Tell the link of the own addresses, so that old entries elsewhere are renewed."""
        self._now = now
        self.neighbours.announce(list(self._locals.values()))

    def _local_towards(self, address: IpAddress, what: str) -> LocalAddress:
        local = self._by_version.get(address.version)
        if local is None:
            raise ValueError(f"{what} {address} of a stack with address {self.ip}")
        return local

    def listen(self, port: int, backlog: int) -> Listener:
        """Listen on `port`. Raises ValueError if something already does."""
        if port in self._listeners:
            raise ValueError(f"port {port} is already listened on")
        listener = self._listeners[port] = Listener(self, port, backlog)
        return listener

    def has_address(self, ip: IpAddress) -> bool:
        """Whether `ip` is one of its own."""
        return ip.packed in self._locals

    def is_listening(self, port: int) -> bool:
        """Whether something listens on `port`."""
        return port in self._listeners

    def listener(self, port: int) -> Listener | None:
        """Who listens on `port`."""
        return self._listeners.get(port)

    def connect(self, remote_ip: IpAddress | str, remote_port: int, now: int,
                local_port: int | None = None) -> Connection:
        """Open a connection; `local_port` None picks a free one. The SYN leaves with the next `transmit`.

        Raises ValueError if there is no way to the address, or no port is free.
        """
        self._now = now
        remote = Endpoint(ip_address(remote_ip), remote_port)
        link = self._link(self._local_towards(remote.ip, "peer"), remote.ip.packed)
        if link is None:
            raise ValueError(f"no route to {remote.ip}: it is no host of {self.ip}'s network, and there is no gateway")
        port = self._free_port(remote) if local_port is None else local_port
        if (remote.ip.packed, remote_port, port) in self._connections:
            raise ValueError(f"port {port} to {remote.ip}:{remote_port} is in use")
        connection = self._new_connection(remote, port, link, now)
        connection.open()
        return connection

    def has_connection(self, remote: bytes, remote_port: int, local_port: int) -> bool:
        """Whether there is a connection that is not CLOSED to this address and port."""
        return (remote, remote_port, local_port) in self._connections

    @property
    def has_ipv6(self) -> bool:
        """Whether one of its addresses is IPv6, so that it must hear its groups."""
        return 6 in self._by_version

    @property
    def has_output(self) -> bool:
        """Whether `transmit` may give something."""
        return bool(self._outbox or self._ready)

    @property
    def connections(self) -> list[Connection]:
        """All connections that are not CLOSED."""
        return list(self._connections.values())

    def receive(self, frame: Buffer, now: int, *, checksum_ok: bool | None = None, merged_bytes: int = 0) -> None:
        """Take in one frame. Bad, foreign and unknown ones are dropped and counted; nothing is raised for them.

        `checksum_ok`: what the device found; None: it did not look, so the sums are verified and charged here.
        `merged_bytes`: if the device merged several segments into this one, the payload of each but the last; otherwise
        0. The frame may be reused after the call.
        """
        counters = self.counters
        self._now = now
        try:
            parsed = parse_frame(frame)
            tcp = parsed.tcp
            if tcp is None:
                self._receive_other(parsed, now)
                return
        except PacketError:
            counters.malformed += 1
            return
        ip = parsed.ipv4 or parsed.ipv6
        assert ip is not None
        local = self._locals.get(ip.destination)
        if local is None or parsed.ethernet.destination != self.mac:
            counters.not_for_us += 1
            return
        self.account.charge("ip", "receive")
        if checksum_ok is None:
            checksum_ok = self._verify(parsed, ip.source)
        if not checksum_ok:
            counters.bad_checksum += 1
            return
        ecn = ip.traffic_class & ECN_MASK
        connection = self._connections.get((ip.source, tcp.source_port, tcp.destination_port))
        if connection is not None and connection.backlog is not None:
            kept = memoryview(bytes(parsed.payload))
            connection.backlog.append(Arrival(local, ip.source, tcp, kept, ecn, merged_bytes))
            return
        self._receive_tcp(local, ip.source, tcp, parsed.payload, now, ecn, merged_bytes)

    def carry_out_waiting(self, connection: Connection, now: int) -> None:
        """Do what the oldest segment on a connection's backlog asks for."""
        assert connection.backlog
        self._now = now
        local, source, tcp, payload, ecn, merged_bytes = connection.backlog.popleft()
        # It may have ended since, or another may be open.
        self._receive_tcp(local, source, tcp, payload, now, ecn, merged_bytes)

    def poll(self, now: int) -> None:
        """Run every timer that is due."""
        self._now = now
        if self.neighbours.deadline <= now:
            self.neighbours.poll(now)
        timers = self._timers
        while timers and timers[0][0] <= now:
            at, _, connection = heapq.heappop(timers)
            if at != connection.timer_at:
                continue
            connection.timer_at = NEVER
            if connection.deadline() <= now:
                connection.on_timer(now)
                if connection.sender.retransmissions == R1:
                    # RFC 9293 §3.8.3: "When the number of transmissions of the same segment reaches or exceeds
                    # threshold R1, pass negative advice [...] to the IP layer, to trigger dead-gateway diagnosis."
                    self.neighbours.suspect(connection.link.neighbour)
            self._schedule(connection)

    def next_deadline(self) -> int | None:
        """When `poll` must be called at the latest, or None."""
        timers, others = self._timers, self.neighbours.deadline
        while timers:
            at, _, connection = timers[0]
            # Timers that moved to a later time, or stopped, leave their entry behind until it comes to the front.
            if at == connection.timer_at:
                if at == connection.deadline():
                    return min(at, others)
                connection.timer_at = NEVER
                heapq.heappop(timers)
                self._schedule(connection)
            else:
                heapq.heappop(timers)
        return None if others == NEVER else others

    def transmit(self, now: int) -> list[OutSegment | OutFrame]:
        """Everything that may be sent now, in order."""
        self._now = now
        while self._ready:
            ready, self._ready = self._ready, {}
            for connection in ready:
                connection.emit(now)
                self._schedule(connection)
        segments, self._outbox = self._outbox, []
        return segments

    # What connections and listeners call (`connection.Output`) -------------------------------------------------------

    def output(self, connection: Connection, sequence: int, flags: int, window: int, options: bytes,
               payload: list[Chunk], payload_bytes: int, mss: int, is_retransmission: bool, ecn: int,
               urgent: int = 0) -> None:
        """Put a connection's segment into the outbox."""
        link = connection.link
        acknowledgement = connection.ack_number if flags & ACK else 0
        tcp = pack_tcp(connection.local.port, connection.remote.port, sequence, acknowledgement, flags, window, options,
                       0, urgent)
        self._put(link, tcp, payload, payload_bytes, mss, connection, is_retransmission, ecn)

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

    # Links and what is not TCP ---------------------------------------------------------------------------------------

    def _link(self, local: LocalAddress, remote: bytes) -> Link | None:
        """The way to a remote address; None if there is none."""
        link = self._links.get(remote)
        if link is None:
            hop = local.next_hop(remote)
            if hop is None:
                return None
            link = self._links[remote] = Link(local, self.neighbours.find(local, hop), remote)
            if len(self._links) > MAX_LINKS:
                del self._links[next(iter(self._links))]  # connections keep theirs
        return link

    def _put_outgoing(self, outgoing: Outgoing) -> None:
        """What has its Ethernet header may leave."""
        assert isinstance(outgoing, OutSegment | OutFrame)
        self._outbox.append(outgoing)

    def _send_packet(self, local: LocalAddress, destination: bytes, packet: bytes, now: int) -> None:
        """Send an IP packet that is not TCP's."""
        link = self._link(local, destination)
        if link is None:
            self.counters.no_route += 1
            return
        self.account.charge("ip", "send")
        self.neighbours.send(link.neighbour, OutFrame(link.neighbour.ethernet + packet), now)

    def _receive_other(self, frame: Frame, now: int) -> None:
        """A frame without a TCP header. Raises PacketError for a bad one."""
        counters = self.counters
        destination = frame.ethernet.destination
        if destination != self.mac and destination not in self._group_macs:
            counters.not_for_us += 1
            return
        if frame.arp is not None:
            local = self._by_version.get(4)
            if local is not None:
                self.neighbours.on_arp(frame.arp, local, now)
            return
        ip = frame.ipv4 or frame.ipv6
        local = None
        if ip is not None:
            local = self._locals.get(ip.destination) or self._groups.get(ip.destination)
        if ip is None or local is None:
            counters.not_for_us += 1
            return
        self.account.charge("ip", "receive")
        if frame.is_fragment:
            counters.malformed += 1
        elif not _is_icmp(frame, local):
            counters.not_for_us += 1
        elif not frame.l3_checksum_ok():
            counters.bad_checksum += 1
        else:
            self.icmp.receive(frame, local, now)

    def receive_beginning(self, frame: Buffer, now: int) -> bool:
        """Take in a frame that is not TCP's and of which only the beginning is there, the lengths in its headers cut to
        that, and no checksum verified here; whether it was of use, as an ICMP error is."""
        self._now = now
        try:
            parsed = parse_frame(frame)
            ip = parsed.ipv4 or parsed.ipv6
            local = self._locals.get(ip.destination) if ip is not None else None
            if (local is None or parsed.ethernet.destination != self.mac or parsed.is_fragment
                    or not _is_icmp(parsed, local)):
                return False
            self.account.charge("ip", "receive")
            return self.icmp.receive_beginning(parsed, local, now)
        except PacketError:
            self.counters.malformed += 1
            return False

    def _on_unreachable(self, neighbour: Neighbour) -> None:
        """A neighbour did not answer."""
        error = no_neighbour()
        for connection in [c for c in self._connections.values() if c.link.neighbour is neighbour]:
            connection.on_unreachable(error, is_hard=False)

    def _on_icmp_error(self, message: IcmpMessage, quoted: QuotedSegment, now: int, *, ipv6: bool) -> None:
        """An error about a segment that came from here, as it says."""
        connection = self._connections.get((quoted.destination, quoted.destination_port, quoted.source_port))
        if connection is None or not connection.covers(quoted.sequence):
            self.counters.icmp_ignored += 1
            return
        mtu = path_mtu(message, quoted, ipv6=ipv6)
        if mtu is not None:
            connection.link.lower_path_mtu(mtu, now)
            connection.on_path_mss(connection.link.path_mss(now))
        elif (found := verdict(message, ipv6=ipv6)) is not None:
            connection.on_unreachable(found.error, is_hard=found.is_hard)
        else:
            self.counters.icmp_ignored += 1

    # Arrival ---------------------------------------------------------------------------------------------------------

    def _verify(self, frame: Frame, source: bytes) -> bool:
        l4_bytes = frame.end - frame.l4_offset
        self.account.charge("tcp_recv", "checksum_byte", l4_bytes)
        link = self._links.get(source)
        if link is None:
            return frame.l3_checksum_ok() and frame.l4_checksum_ok()
        # The pseudo-header's sum is the same both ways.
        return (frame.l3_checksum_ok()
                and ones_sum(frame.data[frame.l4_offset : frame.end], link.pseudo_sum + l4_bytes) == 0xFFFF)

    def _receive_tcp(self, local: LocalAddress, source: bytes, tcp: TcpHeader, payload: memoryview, now: int, ecn: int,
                     merged_bytes: int) -> None:
        key = (source, tcp.source_port, tcp.destination_port)
        connection = self._connections.get(key)
        self._charge_arrival(tcp.flags, len(payload), LISTEN if connection is None else connection.state)
        if connection is not None and not (connection.state is TIME_WAIT and self._may_replace(connection, tcp)):
            if connection.state is not SYN_RECEIVED or not self._must_wait(connection, tcp):
                self._give(connection, tcp, payload, now, ecn, merged_bytes)
            return
        link = self._link(local, source)
        if link is None:
            self.counters.no_route += 1
            return
        listener = self._listeners.get(tcp.destination_port)
        if tcp.flags & RST:
            # RFC 9293 §3.10.7.1: "An incoming segment containing a RST is discarded"; §3.10.7.2: "An incoming RST
            # segment could not be valid in this state [...] and should be ignored"
            return
        if listener is not None and now <= listener.cookies_until and tcp.flags & (SYN | ACK) == ACK:
            self._receive_cookie(listener, link, tcp, payload, now, ecn, merged_bytes)
            return
        if listener is None or tcp.flags & ACK:
            # §3.10.7.2: "Any acknowledgment is bad if it arrives on a connection still in the LISTEN state"
            self._answer_with_reset(link, tcp, len(payload))
            return
        if not tcp.flags & SYN:
            return
        if listener.is_full:
            if self.profile.syn_cookies and connection is None and not listener.is_accept_queue_full:
                self._send_cookie(listener, link, tcp, now)
            else:
                self.counters.backlog_full += 1
            return
        iss = None
        if connection is not None:
            # RFC 9293 §3.6.1 (1): the new number must be "larger than the largest sequence number it used on the
            # previous connection incarnation", which may have used them up faster than the clock of the numbers runs.
            used = connection.sender.snd_max
            clock = self._initial_sequence_number(link.source, connection.remote, listener.port, now)
            iss = wrap(max(unwrap(clock, used), used + 1))
            connection.abort(now)
        self._new_passive(listener, link, tcp.source_port, now, iss).open_passive(tcp)

    def _give(self, connection: Connection, tcp: TcpHeader, payload: memoryview, now: int, ecn: int,
              merged_bytes: int) -> None:
        """A segment of this connection arrived."""
        sender, receiver = connection.sender, connection.receiver
        una, nxt = sender.snd_una, receiver.rcv_nxt
        connection.on_segment(tcp, payload, now, ecn, merged_bytes)
        if sender.snd_una != una or receiver.rcv_nxt != nxt:
            connection.link.neighbour.confirmed_at = now
        self._schedule(connection)

    def _must_wait(self, connection: Connection, tcp: TcpHeader) -> bool:
        """Whether a handshake may not end yet, as nobody accepts: like Linux, its last acknowledgement is forgotten."""
        listener = self._half_open.get(connection)
        if listener is None or not listener.is_accept_queue_full or tcp.flags & (SYN | RST | ACK) != ACK:
            return False
        self.counters.accept_full += 1
        return True

    def _send_cookie(self, listener: Listener, link: Link, syn: TcpHeader, now: int) -> None:
        """Answer a SYN without keeping anything of it."""
        # RFC 4987 §3.6: what must be known of the handshake is encoded into the SYN-ACK's sequence number
        local = link.local
        mss = syn.options.mss or (DEFAULT_MSS_IPV6 if local.ipv6 else DEFAULT_MSS_IPV4)
        peer = Peer(link.destination, link.source, syn.source_port, syn.destination_port, syn.sequence)
        profile, asked = self._profile_of(listener.port), syn.options
        window = min(profile.receive_buffer_bytes, MAX_UNSCALED_WINDOW)
        cookie = self._cookies.make(peer, mss, now)
        options = TcpOptions(mss=local.mss)
        if asked.timestamps is not None and profile.timestamps:
            options = TcpOptions(
                mss=local.mss,
                timestamps=(hide_options(asked, timestamp(now, cookie, profile.timestamp_tick_ps)),
                            asked.timestamps[0]),
                window_scale=None if asked.window_scale is None else profile.window_scale,
                sack_permitted=asked.sack_permitted and profile.sack)
        header = pack_tcp(syn.destination_port, syn.source_port, cookie, syn.sequence + 1 & MASK, SYN | ACK, window,
                          options.pack())
        listener.cookies_until = now + COOKIE_LIFETIME_PS
        self.counters.cookies_sent += 1
        self._put(link, header, [], 0, local.mss, None, False)

    def _receive_cookie(self, listener: Listener, link: Link, tcp: TcpHeader, payload: memoryview, now: int, ecn: int,
                        merged_bytes: int) -> None:
        """An acknowledgement for a port that sent cookies: of a handshake of which nothing was kept, perhaps."""
        if listener.is_accept_queue_full:
            self.counters.accept_full += 1
            return
        iss, irs = tcp.acknowledgement - 1 & MASK, tcp.sequence - 1 & MASK
        peer = Peer(link.destination, link.source, tcp.source_port, tcp.destination_port, irs)
        mss = self._cookies.read(peer, iss, now)
        if mss is None:
            self.counters.cookies_refused += 1
            if not payload:
                self._answer_with_reset(link, tcp, 0)
            # Data may be a later segment of a peer whose first ones did not arrive: a reset would end what its
            # retransmission, from the first byte on, can still begin.
            return
        self.counters.cookies_accepted += 1
        timestamps = tcp.options.timestamps if self.profile.timestamps else None
        syn = TcpHeader(tcp.source_port, tcp.destination_port, irs, 0, SYN, tcp.window,
                        options=found_options(mss, timestamps))
        connection = self._new_passive(listener, link, tcp.source_port, now, iss)
        connection.open_by_cookie(syn)
        connection.on_segment(tcp, payload, now, ecn, merged_bytes)
        self._schedule(connection)

    def _may_replace(self, connection: Connection, tcp: TcpHeader) -> bool:
        """Whether a SYN may open the connection anew that still stands in TIME-WAIT."""
        return (tcp.flags & (SYN | ACK | RST) == SYN
                and tcp.destination_port in self._listeners and connection.may_reopen(tcp))

    def _charge_arrival(self, flags: int, payload_bytes: int, state: State) -> None:
        """A segment is charged as what it is; one that is several things (data with a FIN) as each of them."""
        charge = self.account.charge
        if flags & RST:
            charge("tcp_recv", "rst")
            return
        if (state is SYN_SENT and flags & SYN) or (state is SYN_RECEIVED and not flags & SYN):
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
        self._put(link, header, [], 0, link.local.mss, None, False)

    # Connections -----------------------------------------------------------------------------------------------------

    def _new_passive(self, listener: Listener, link: Link, remote_port: int, now: int,
                     iss: int | None = None) -> Connection:
        """A connection in handshake, of a listener."""
        remote = Endpoint(ip_address(link.destination), remote_port)
        connection = self._new_connection(remote, listener.port, link, now, iss)
        listener.half_open += 1
        self._half_open[connection] = listener
        return connection

    def _new_connection(self, remote: Endpoint, port: int, link: Link, now: int, iss: int | None = None) -> Connection:
        if iss is None:
            iss = self._initial_sequence_number(link.source, remote, port, now)
        connection = Connection(
            local=Endpoint(link.local.ip, port), remote=remote, iss=iss, advertised_mss=link.local.mss,
            path_mss=link.path_mss(now), max_segment_bytes=self._max_segment_bytes, profile=self._profile_of(port),
            output=self, link=link)
        self._connections[remote.ip.packed, remote.port, port] = connection
        return connection

    def _profile_of(self, port: int) -> Profile:
        """The constants of a connection that begins, to or from an own port."""
        return self.profile

    def _initial_sequence_number(self, own: bytes, remote: Endpoint, port: int, now: int) -> int:
        # RFC 6528 §3: "ISN = M + F(localip, localport, remoteip, remoteport, secretkey) where M is the 4 microsecond
        # timer, and F() is a pseudorandom function"
        tuple_bytes = own + remote.ip.packed + struct.pack("!HH", port, remote.port)
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
             connection: Connection | None, is_retransmission: bool, ecn: int = NOT_ECT) -> None:
        l4_bytes = len(tcp) + payload_bytes
        local, neighbour = link.local, link.neighbour
        if local.ipv6:
            length = l4_bytes if l4_bytes <= MAX_IP_LENGTH else 0
            ip = pack_ipv6(link.source, link.destination, _TCP_PROTOCOL, length, traffic_class=ecn)
        else:
            length = IPV4_HEADER_BYTES + l4_bytes
            ip = pack_ipv4(link.source, link.destination, _TCP_PROTOCOL, length if length <= MAX_IP_LENGTH else 0,
                           self._identification, traffic_class=ecn)
            # each frame that the device cuts the segment into takes a number
            self._identification = self._identification + max(-(-payload_bytes // mss), 1) & 0xFFFF
        self.account.charge("tcp_send", "segment" if payload_bytes else "control")
        self.account.charge("ip", "send")
        segment = OutSegment(neighbour.ethernet + ip + tcp, local.l4_offset, mss, payload, payload_bytes, connection,
                             is_retransmission, link.pseudo_sum)
        if neighbour.good_until < self._now:
            self.neighbours.send(neighbour, segment, self._now)
        else:
            self._outbox.append(segment)
