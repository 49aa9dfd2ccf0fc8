"""Names that all parts of TCP use: the states of a connection, flags, endpoints, and the time that never comes."""

# Ref: RFC 9293 §3.1, §3.3.2

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from nic_model.contract.protocols import TcpFlags

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (int(flag) for flag in (
    TcpFlags.FIN, TcpFlags.SYN, TcpFlags.RST, TcpFlags.PSH, TcpFlags.ACK, TcpFlags.URG, TcpFlags.ECE, TcpFlags.CWR))

ECN_MASK = 3
NOT_ECT, ECT_0, CE = 0, 2, 3
"""Codepoints of the IP header's ECN field (RFC 3168 §5): without, capable, "congestion experienced"."""

NEVER = 1 << 100
"""A deadline that is not set."""

MAX_UNSCALED_WINDOW = 0xFFFF


class State(IntEnum):
    """States of a connection (RFC 9293 §3.3.2); LISTEN is a `Listener`'s."""

    CLOSED = 0
    LISTEN = 1
    SYN_SENT = 2
    SYN_RECEIVED = 3
    ESTABLISHED = 4
    FIN_WAIT_1 = 5
    FIN_WAIT_2 = 6
    CLOSE_WAIT = 7
    CLOSING = 8
    LAST_ACK = 9
    TIME_WAIT = 10


CLOSED, LISTEN, SYN_SENT, SYN_RECEIVED, TIME_WAIT = (
    State.CLOSED, State.LISTEN, State.SYN_SENT, State.SYN_RECEIVED, State.TIME_WAIT)
"""For what is asked of each segment: a member of an enumeration takes a tenth of a microsecond to find."""


class Endpoint(NamedTuple):
    """An address and a port."""

    ip: IPv4Address | IPv6Address
    port: int
