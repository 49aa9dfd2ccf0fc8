"""Neighbours: which Ethernet address an IP address of the link has, asked by ARP and by neighbour discovery.

IPv6's states (RFC 4861 §7.3) are those of both protocols, as in most systems. An answer is trusted for a while; after
that, and after a hint from somebody who was not asked, the neighbour is used and asked again behind its back, unless
TCP's progress shows that it is there. What has no timer to wait for (REACHABLE, STALE) costs nothing while unused.

Static entries win over all that is learned.
"""

# Ref: RFC 826; RFC 1122 §2.3.2; RFC 4861 §7.2, §7.3, §10; RFC 5227 §2.1.1

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

from host_driver.tcp.frames import IPV6_ADDRESS_BYTES, NO_ETHERNET_HEADER, OutFrame, packet
from host_driver.tcp.links import LocalAddress
from host_driver.tcp.profile import SECOND
from host_driver.tcp.states import NEVER
from nic_model.contract.protocols import EtherType, IpProtocol
from nic_model.icmp import (
    ALL_NODES,
    ND_HOP_LIMIT,
    Icmpv6Type,
    NaFlags,
    NeighbourMessage,
    multicast_mac,
    solicited_node,
)
from nic_model.packets import BROADCAST_MAC, ArpOperation, ArpPacket, EthernetHeader

# RFC 4861 §10
REACHABLE_TIME_PS = 30 * SECOND
DELAY_FIRST_PROBE_TIME_PS = 5 * SECOND
RETRANS_TIMER_PS = SECOND
MAX_MULTICAST_SOLICIT = 3
MAX_UNICAST_SOLICIT = 3

MAX_HELD = 101
"""Packets that wait for an answer: RFC 1122 §2.3.2.2 asks for "at least one (the latest) packet"; as many as Linux's
unres_qlen, since each that is dropped costs its connection the second until its SYN is sent again."""

MAX_NEIGHBOURS = 1024
"""Learned entries; the one that was learned first goes for a further one (Linux's gc_thresh3)."""

_NO_MAC = bytes(6)
_NO_IPV4, _NO_IPV6 = bytes(4), bytes(IPV6_ADDRESS_BYTES)


class Reachability(Enum):
    """What is known of a neighbour (RFC 4861 §7.3.2)."""

    UNKNOWN = "not asked yet, or no answer"
    INCOMPLETE = "asked, no answer yet"
    REACHABLE = "answered lately"
    STALE = "known, perhaps no longer right"
    DELAY = "used while stale: TCP's progress may show that it is there"
    PROBE = "used while stale, and asked again"
    PERMANENT = "entered by the user"


class Outgoing(Protocol):
    """What waits for an address: a segment or a frame with an empty Ethernet header."""

    header: bytes

    @property
    def payload_bytes(self) -> int:
        """Bytes beside the header."""


class Neighbour:
    """One IP address of the link. `ethernet` is the header of all frames to it, zeros while `mac` is None."""

    __slots__ = ("address", "confirmed_at", "deadline", "ethernet", "good_until", "held", "local", "mac", "state",
                 "tries")

    def __init__(self, local: LocalAddress, address: bytes) -> None:
        self.local = local
        self.address = address
        self.mac: bytes | None = None
        self.ethernet = NO_ETHERNET_HEADER
        self.state = Reachability.UNKNOWN
        self.good_until = -1
        """Up to this time frames may leave without asking the table."""
        self.confirmed_at = -NEVER
        """When TCP last made progress through it; set by the stack."""
        self.held: deque[Outgoing] = deque(maxlen=MAX_HELD)
        self.tries = 0
        self.deadline = NEVER


class NeighbourTable:
    """The neighbours of one interface.

    Parameters: the own `mac`; `put`, which takes what may leave; `unreachable`, told of a neighbour that did not
    answer.
    """

    def __init__(self, mac: bytes, put: Callable[[Outgoing], None], unreachable: Callable[[Neighbour], None]) -> None:
        self._mac = mac
        self._put = put
        self._unreachable = unreachable
        self._neighbours: dict[bytes, Neighbour] = {}
        self._waiting: dict[Neighbour, None] = {}  # an ordered set of those with a deadline
        self.deadline = NEVER
        """When `poll` must be called."""
        self.dropped = 0
        """Packets that waited for an answer that did not come, or for which there was no room."""

    def enter(self, local: LocalAddress, address: bytes, mac: bytes) -> None:
        """A static entry."""
        neighbour = self.find(local, address)
        self._set_mac(neighbour, mac)
        self._become(neighbour, Reachability.PERMANENT)
        self._let_go(neighbour)

    def find(self, local: LocalAddress, address: bytes) -> Neighbour:
        """The entry of an address, made if there is none. `local` is the own address of the same kind."""
        neighbour = self._neighbours.get(address)
        if neighbour is None:
            neighbour = Neighbour(local, address)
            self._insert(neighbour)
        return neighbour

    def state_of(self, address: bytes) -> Reachability:
        """What is known of an address."""
        neighbour = self._neighbours.get(address)
        return Reachability.UNKNOWN if neighbour is None else neighbour.state

    # Use -------------------------------------------------------------------------------------------------------------

    def send(self, neighbour: Neighbour, outgoing: Outgoing, now: int) -> None:
        """Send what has the neighbour's Ethernet header, or hold it until there is one."""
        if neighbour.good_until < now and not self._may_use(neighbour, now):
            self._hold(neighbour, outgoing)
        else:
            self._put(outgoing)

    def _may_use(self, neighbour: Neighbour, now: int) -> bool:
        state = neighbour.state
        if neighbour.mac is None:
            if state is Reachability.UNKNOWN:
                self._insert(neighbour)  # it may have been the oldest of too many
                neighbour.tries = 0
                self._become(neighbour, Reachability.INCOMPLETE)
                self._ask_again(neighbour, now)
            return False
        if state is Reachability.REACHABLE and now < neighbour.confirmed_at + REACHABLE_TIME_PS:
            # RFC 4861 §3: "When possible, upper-layer protocols provide a positive confirmation that a connection
            # is making 'forward progress'"
            neighbour.good_until = neighbour.confirmed_at + REACHABLE_TIME_PS
            return True
        # §7.3.3: "The first time a node sends a packet to a neighbor whose entry is STALE, the sender changes the state
        # to DELAY and sets a timer to expire in DELAY_FIRST_PROBE_TIME seconds."
        self._become(neighbour, Reachability.DELAY, now + DELAY_FIRST_PROBE_TIME_PS)
        return True

    def _hold(self, neighbour: Neighbour, outgoing: Outgoing) -> None:
        # Data stays where it is: its memory may be given back before an answer comes, and TCP sends it again anyway.
        if outgoing.payload_bytes or len(neighbour.held) == MAX_HELD:
            self.dropped += 1
        if not outgoing.payload_bytes:
            neighbour.held.append(outgoing)

    def suspect(self, neighbour: Neighbour) -> None:
        """TCP hears nothing through a neighbour: its next use asks again, without waiting for it to grow old."""
        if neighbour.state is Reachability.REACHABLE:
            self._become(neighbour, Reachability.STALE)

    # Timers ----------------------------------------------------------------------------------------------------------

    def poll(self, now: int) -> None:
        """Ask again whom it is time to ask, and give up those who were asked often enough."""
        for neighbour in [n for n in self._waiting if n.deadline <= now]:
            if neighbour.state is Reachability.DELAY:
                if neighbour.confirmed_at + DELAY_FIRST_PROBE_TIME_PS >= now:
                    self._become(neighbour, Reachability.REACHABLE, neighbour.confirmed_at + REACHABLE_TIME_PS)
                    continue
                neighbour.tries = 0
                self._become(neighbour, Reachability.PROBE)
            limit = MAX_UNICAST_SOLICIT if neighbour.state is Reachability.PROBE else MAX_MULTICAST_SOLICIT
            if neighbour.tries < limit:
                self._ask_again(neighbour, now)
            else:
                self._give_up(neighbour)

    def _ask_again(self, neighbour: Neighbour, now: int) -> None:
        """RFC 1122 §2.3.2.1: "The recommended maximum rate is 1 per second per destination"."""
        neighbour.tries += 1
        self._become(neighbour, neighbour.state, now + RETRANS_TIMER_PS)
        self._ask(neighbour)

    def _give_up(self, neighbour: Neighbour) -> None:
        self.dropped += len(neighbour.held)
        neighbour.held.clear()
        neighbour.mac = None
        neighbour.ethernet = NO_ETHERNET_HEADER
        self._become(neighbour, Reachability.UNKNOWN)
        self._unreachable(neighbour)

    # What is heard ---------------------------------------------------------------------------------------------------

    def on_arp(self, arp: ArpPacket, local: LocalAddress, now: int) -> None:
        """An ARP packet, whoever it was meant for; `local` is the own IPv4 address."""
        if arp.sender_ip == local.packed or arp.sender_mac == self._mac:
            return  # somebody else claims the address, or it is an own frame
        is_for_us = arp.target_ip == local.packed
        neighbour = self._neighbours.get(arp.sender_ip)
        if neighbour is None and is_for_us and arp.sender_ip != _NO_IPV4:  # RFC 5227: 0.0.0.0 asks only
            neighbour = self.find(local, arp.sender_ip)
        if neighbour is not None:
            # RFC 826: "If the pair <protocol type, sender protocol address> is already in my translation table, update
            # the sender hardware address field of the entry". That an announcement (sender and target are the same
            # address) tells of a change follows from it.
            is_answer = arp.operation == ArpOperation.REPLY and is_for_us
            self._learn(neighbour, arp.sender_mac, now, is_answer=is_answer)
        if is_for_us and arp.operation == ArpOperation.REQUEST:
            self._put(self._arp(ArpOperation.REPLY, local.packed, arp.sender_mac, arp.sender_mac, arp.sender_ip))

    def on_solicitation(self, message: NeighbourMessage, source: bytes, local: LocalAddress, now: int) -> None:
        """A valid solicitation (RFC 4861 §7.1.1) of the own address `local`."""
        flags = NaFlags.OVERRIDE
        if source == _NO_IPV6:
            # §7.2.4: "If the source of the solicitation is the unspecified address, the node MUST set the Solicited
            # flag to zero and multicast the advertisement to the all-nodes address."
            self._put(self._nd(Icmpv6Type.NEIGHBOUR_ADVERTISEMENT, local, local.packed, ALL_NODES, flags))
            return
        neighbour = self.find(local, source)
        if message.link_address is not None:
            self._learn(neighbour, message.link_address, now, is_answer=False)
        answer = self._nd(Icmpv6Type.NEIGHBOUR_ADVERTISEMENT, local, local.packed, source, flags | NaFlags.SOLICITED,
                          mac=neighbour.mac or _NO_MAC)
        if neighbour.mac is None:
            self.send(neighbour, answer, now)
        else:
            self._put(answer)

    def on_advertisement(self, message: NeighbourMessage, now: int) -> None:
        """A valid advertisement (RFC 4861 §7.1.2)."""
        neighbour = self._neighbours.get(message.target)
        if neighbour is None or neighbour.state in (Reachability.UNKNOWN, Reachability.PERMANENT):
            # §7.2.5: "If no entry exists, the advertisement SHOULD be silently discarded."
            return
        mac = message.link_address
        is_answer = message.is_solicited
        if neighbour.mac is None:
            # "If the link layer has addresses and no Target Link-Layer Address option is included, the receiving node
            # SHOULD silently discard the received advertisement."
            if mac is not None:
                self._learn(neighbour, mac, now, is_answer=is_answer)
            return
        if not message.flags & NaFlags.OVERRIDE and mac not in (None, neighbour.mac):
            # "If the Override flag is clear and the supplied link-layer address differs from that in the cache [...]:
            # a. If the state of the entry is REACHABLE, set it to STALE, but do not update the entry in any other way.
            # b. Otherwise, the received advertisement should be ignored"
            if neighbour.state is Reachability.REACHABLE:
                self._become(neighbour, Reachability.STALE)
            return
        self._learn(neighbour, mac or neighbour.mac, now, is_answer=is_answer)

    def _learn(self, neighbour: Neighbour, mac: bytes, now: int, *, is_answer: bool) -> None:
        """A neighbour said what its address is, asked or not."""
        if neighbour.state is Reachability.PERMANENT:
            return
        is_changed = mac != neighbour.mac
        if is_changed:
            self._set_mac(neighbour, mac)
        if is_answer:
            self._become(neighbour, Reachability.REACHABLE, now + REACHABLE_TIME_PS)
        elif is_changed:
            self._become(neighbour, Reachability.STALE)
        self._let_go(neighbour)

    # Table -----------------------------------------------------------------------------------------------------------

    def _insert(self, neighbour: Neighbour) -> None:
        table = self._neighbours
        table[neighbour.address] = neighbour
        if len(table) > MAX_NEIGHBOURS:
            oldest = next((n for n in table.values() if n.state is not Reachability.PERMANENT), neighbour)
            self.dropped += len(oldest.held)
            oldest.held.clear()
            oldest.mac = None
            oldest.ethernet = NO_ETHERNET_HEADER
            self._become(oldest, Reachability.UNKNOWN)
            del table[oldest.address]

    def _set_mac(self, neighbour: Neighbour, mac: bytes) -> None:
        neighbour.mac = mac
        neighbour.ethernet = EthernetHeader(mac, self._mac, neighbour.local.ethertype).pack()

    def _become(self, neighbour: Neighbour, state: Reachability, until: int = NEVER) -> None:
        """Enter a state; `until`: when REACHABLE ends by itself, or the timer of another state runs out."""
        neighbour.state = state
        if state is Reachability.REACHABLE:
            neighbour.good_until, neighbour.deadline = until, NEVER
        else:
            in_use = (Reachability.DELAY, Reachability.PROBE, Reachability.PERMANENT)
            neighbour.good_until, neighbour.deadline = NEVER if state in in_use else -1, until
        if neighbour.deadline == NEVER:
            self._waiting.pop(neighbour, None)
        else:
            self._waiting[neighbour] = None
        self.deadline = min((n.deadline for n in self._waiting), default=NEVER)

    def _let_go(self, neighbour: Neighbour) -> None:
        """Send what waited for the neighbour's address."""
        while neighbour.held:
            outgoing = neighbour.held.popleft()
            outgoing.header = neighbour.ethernet + outgoing.header[len(NO_ETHERNET_HEADER) :]
            self._put(outgoing)

    # Frames ----------------------------------------------------------------------------------------------------------

    def announce(self, locals_: Sequence[LocalAddress]) -> None:
        """Tell the link of the own addresses."""
        for local in locals_:
            own = local.packed
            if local.ipv6:
                # RFC 4861 §7.2.6: "a node MAY send up to MAX_NEIGHBOR_ADVERTISEMENT unsolicited Neighbor Advertisement
                # messages to the all-nodes multicast address"
                self._put(self._nd(Icmpv6Type.NEIGHBOUR_ADVERTISEMENT, local, own, ALL_NODES, NaFlags.OVERRIDE))
            else:
                # RFC 5227 §2.3: "An ARP Announcement is identical to the ARP Probe [...] except that now the sender and
                # target IP addresses are both set to the host's newly selected IPv4 address."
                self._put(self._arp(ArpOperation.REQUEST, own, BROADCAST_MAC, _NO_MAC, own))

    def _ask(self, neighbour: Neighbour) -> None:
        """Everybody for an address, or a neighbour whether it still has it."""
        local, address, mac = neighbour.local, neighbour.address, neighbour.mac
        if local.ipv6:
            destination = solicited_node(address) if mac is None else address
            self._put(self._nd(Icmpv6Type.NEIGHBOUR_SOLICITATION, local, address, destination, 0, mac=mac))
        else:
            self._put(self._arp(ArpOperation.REQUEST, local.packed, mac or BROADCAST_MAC, _NO_MAC, address))

    def _arp(self, operation: ArpOperation, sender_ip: bytes, to: bytes, target_mac: bytes,
             target_ip: bytes) -> OutFrame:
        arp = ArpPacket(operation, self._mac, sender_ip, target_mac, target_ip)
        return OutFrame(EthernetHeader(to, self._mac, EtherType.ARP).pack() + arp.pack())

    def _nd(self, kind: Icmpv6Type, local: LocalAddress, target: bytes, destination: bytes, flags: int, *,
            mac: bytes | None = None) -> OutFrame:
        """A message; `mac`: where it goes, if not to a group."""
        message = NeighbourMessage(kind, target, flags, self._mac).pack(local.packed, destination)
        ip = packet(local.packed, destination, IpProtocol.ICMPV6, message, hop_limit=ND_HOP_LIMIT)
        return OutFrame(EthernetHeader(mac or multicast_mac(destination), self._mac, EtherType.IPV6).pack() + ip)
