"""Where frames go: a stack's own addresses, the next hop of others, and what all headers towards one address share."""

# Ref: RFC 1122 §3.3.1 (local or through a gateway); RFC 4291 §2.5.6 (link-local addresses)

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, IPv6Network, ip_address, ip_interface
from typing import TYPE_CHECKING

from host_driver.tcp.profile import SECOND
from nic_model.checksum import checksum_seed
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    TCP_HEADER_BYTES,
    EtherType,
    IpProtocol,
)

if TYPE_CHECKING:
    from host_driver.tcp.neighbours import Neighbour

IpAddress = IPv4Address | IPv6Address
OwnAddress = IpAddress | IPv4Interface | IPv6Interface | str
"""An address of this host: alone, or with its network ("10.0.0.1/24")."""

PATH_MTU_LIFETIME_PS = 600 * SECOND
"""RFC 8201 §4: an attempt to detect an increase "must not be done less than 5 minutes after a Packet Too Big message
has been received for the given path. The recommended setting for this timer is twice its minimum value (10 minutes)."
New connections make it."""

LINK_LOCAL = IPv6Network("fe80::/10")


class LocalAddress:
    """One IP address of a stack, with its network if it has one. Without one, every address is on the link.

    Raises ValueError for an MTU that leaves no room for a segment's data.
    """

    __slots__ = ("ethertype", "gateway", "ip", "ipv6", "l4_offset", "mss", "mtu", "network", "packed")

    def __init__(self, ip: OwnAddress, *, mtu: int) -> None:
        interface = ip_interface(ip)
        self.ip: IpAddress = interface.ip
        self.packed = self.ip.packed
        self.ipv6 = self.ip.version == 6
        has_network = interface.network.prefixlen < interface.network.max_prefixlen
        self.network = interface.network if has_network else None
        self.gateway: bytes | None = None
        """The router by which addresses outside the network are reached."""
        self.ethertype = EtherType.IPV6 if self.ipv6 else EtherType.IPV4
        ip_bytes = IPV6_HEADER_BYTES if self.ipv6 else IPV4_HEADER_BYTES
        self.l4_offset = ETHERNET_HEADER_BYTES + ip_bytes
        self.mtu = mtu
        self.mss = mtu - ip_bytes - TCP_HEADER_BYTES
        if self.mss < 1:
            raise ValueError(f"mtu must leave room for payload, not {mtu}")

    def next_hop(self, destination: bytes) -> bytes | None:
        """The address whose Ethernet address is needed: the destination itself, or the router; None without one."""
        if destination[0] >= (0xFF if self.ipv6 else 0xE0):
            return None  # a group, or everybody: nothing that TCP speaks with
        if self.network is None:
            return destination
        address = ip_address(destination)
        if address in self.network or (self.ipv6 and address in LINK_LOCAL):
            return destination
        return self.gateway


class Link:
    """Where the packets towards one remote address go: what all their headers share."""

    __slots__ = ("_path_mtu", "_path_mtu_until", "destination", "local", "neighbour", "pseudo_sum", "source")

    def __init__(self, local: LocalAddress, neighbour: Neighbour, destination: bytes) -> None:
        self.local = local
        self.neighbour = neighbour
        self.source = local.packed
        self.destination = destination
        self.pseudo_sum = checksum_seed(local.packed, destination, IpProtocol.TCP, None)
        self._path_mtu = local.mtu
        self._path_mtu_until = 0

    def lower_path_mtu(self, mtu: int, now: int) -> None:
        """Larger packets do not get through."""
        self._path_mtu = min(mtu, self.path_mtu(now))
        self._path_mtu_until = now + PATH_MTU_LIFETIME_PS

    def path_mtu(self, now: int) -> int:
        """Bytes of the largest IP packet that gets through, as far as is known."""
        return self._path_mtu if now < self._path_mtu_until else self.local.mtu

    def path_mss(self, now: int) -> int:
        """Payload and TCP options of the largest segment that gets through."""
        return self.local.mss - self.local.mtu + self.path_mtu(now)
