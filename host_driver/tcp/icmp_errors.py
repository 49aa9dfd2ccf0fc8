"""What an ICMP error means for a connection: how bad it is, and how large packets may be."""

# Ref: RFC 1122 §3.2.2, §4.2.3.9; RFC 9293 §3.9.2.2; RFC 1191 §3, §5; RFC 8201 §4; RFC 5927 §7

from __future__ import annotations

import errno
from typing import NamedTuple

from nic_model.icmp import IcmpMessage, IcmpType, Icmpv6Type, QuotedSegment, Unreachable, Unreachable6

MIN_PATH_MTU_IPV4 = 552
"""Linux's min_pmtu: no link has less, and whoever forges an error shall not make segments tiny."""

MIN_PATH_MTU_IPV6 = 1280
"""The IPv6 minimum link MTU (RFC 8200 §5)."""

PLATEAUS = (65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508)
"""RFC 1191 §7.1, for routers that do not say what fits."""

REFUSED = (ConnectionRefusedError, errno.ECONNREFUSED, "port unreachable")
_NO_PROTOCOL = (OSError, errno.ENOPROTOOPT, "protocol unreachable")
_NO_NETWORK = (OSError, errno.ENETUNREACH, "network unreachable")
_NO_HOST = (OSError, errno.EHOSTUNREACH, "host unreachable")
_PROHIBITED = (OSError, errno.EACCES, "administratively prohibited")
_BAD_PARAMETER = (OSError, errno.EPROTO, "parameter problem")


class Verdict(NamedTuple):
    """What an error says."""

    error: OSError
    is_hard: bool
    """RFC 1122 §4.2.3.9: "it SHOULD abort the connection" for a hard one, and "MUST NOT abort" for a soft one."""


def verdict(message: IcmpMessage, *, ipv6: bool) -> Verdict | None:
    """The verdict of an error; None for one that says nothing of this kind."""
    kind, code = message.type, message.code
    if ipv6:
        if kind == Icmpv6Type.DESTINATION_UNREACHABLE:
            if code == Unreachable6.PORT:
                return _verdict(REFUSED, is_hard=True)
            if code == Unreachable6.PROHIBITED:
                return _verdict(_PROHIBITED, is_hard=True)
            return _verdict(_NO_NETWORK if code == Unreachable6.NO_ROUTE else _NO_HOST, is_hard=False)
        if kind == Icmpv6Type.TIME_EXCEEDED:
            return _verdict(_NO_HOST, is_hard=False)
        return _verdict(_BAD_PARAMETER, is_hard=False) if kind == Icmpv6Type.PARAMETER_PROBLEM else None
    if kind == IcmpType.DESTINATION_UNREACHABLE:
        # RFC 1122 §4.2.3.9: "Destination Unreachable -- codes 2-4: These are hard error conditions"; code 4 is the
        # discovery of the path's MTU here, since every packet says "don't fragment".
        if code == Unreachable.PORT:
            return _verdict(REFUSED, is_hard=True)
        if code == Unreachable.PROTOCOL:
            return _verdict(_NO_PROTOCOL, is_hard=True)
        if code == Unreachable.FRAGMENTATION_NEEDED:
            return None
        # "Destination Unreachable -- codes 0, 1, 5", "Time Exceeded -- codes 0, 1" and "Parameter Problem": soft
        return _verdict(_NO_NETWORK if code == Unreachable.NET else _NO_HOST, is_hard=False)
    if kind == IcmpType.TIME_EXCEEDED:
        return _verdict(_NO_HOST, is_hard=False)
    if kind == IcmpType.PARAMETER_PROBLEM:
        return _verdict(_BAD_PARAMETER, is_hard=False)
    # RFC 9293 §3.9.2.2: "TCP implementations MUST silently discard any received ICMP Source Quench messages"
    return None


def no_neighbour() -> OSError:
    """The soft error of a neighbour that does not answer."""
    return _verdict(_NO_HOST, is_hard=False).error


def _verdict(what: tuple[type[OSError], int, str], *, is_hard: bool) -> Verdict:
    kind, number, text = what
    return Verdict(kind(number, text), is_hard)


def path_mtu(message: IcmpMessage, quoted: QuotedSegment, *, ipv6: bool) -> int | None:
    """The MTU that an error tells of, in bytes of an IP packet; None if it tells of none, or of none that can be."""
    if ipv6:
        if message.type != Icmpv6Type.PACKET_TOO_BIG:
            return None
        mtu = message.word
        if mtu < MIN_PATH_MTU_IPV6:
            # RFC 8201 §4: "If a node receives a Packet Too Big message reporting a next-hop MTU that is less than the
            # IPv6 minimum link MTU, it must discard it."
            return None
    else:
        if (message.type, message.code) != (IcmpType.DESTINATION_UNREACHABLE, Unreachable.FRAGMENTATION_NEEDED):
            return None
        mtu = message.word & 0xFFFF
        if mtu == 0:
            # RFC 1191 §5: a router of before says nothing; the next plateau below the packet's length is tried
            mtu = next((plateau for plateau in PLATEAUS if plateau < quoted.packet_bytes), 0)
        mtu = max(mtu, MIN_PATH_MTU_IPV4)
    # RFC 5927 §7.2: an error about a packet that would have fitted is forged
    return mtu if mtu < quoted.packet_bytes else None
