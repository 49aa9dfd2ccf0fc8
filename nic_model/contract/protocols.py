"""Numbers of the protocols that device and software both know: codes, header sizes, and where fields stand."""

# Ref: IEEE 802.3 §3.2, §31.4, annex 31B; 802.1Q §9.6; RFC 791 §3.1; RFC 8200 §3, §4; RFC 9293 §3.1; RFC 768

from __future__ import annotations

from enum import IntEnum, IntFlag


class EtherType(IntEnum):
    """What follows the Ethernet header."""

    IPV4 = 0x0800
    ARP = 0x0806
    VLAN = 0x8100
    MAC_CONTROL = 0x8808
    IPV6 = 0x86DD


class IpProtocol(IntEnum):
    """IPv4's protocol, IPv6's next header."""

    HOP_BY_HOP = 0
    ICMP = 1
    TCP = 6
    UDP = 17
    IPV6_ROUTING = 43
    IPV6_FRAGMENT = 44
    ICMPV6 = 58
    IPV6_DESTINATION_OPTIONS = 60


class TcpFlags(IntFlag):
    """Control bits of a TCP header."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    ECE = 0x40
    CWR = 0x80


MAC_CONTROL_ADDRESS = bytes.fromhex("0180c2000001")
"""Destination of PAUSE frames (IEEE 802.3 31B.1)."""

PAUSE_OPCODE = 0x0001
PAUSE_FRAME_BYTES = 18
"""Of a PAUSE frame up to its pause_time, without the reserved zeros behind."""

MIN_FRAME_BYTES = 60
"""Shortest frame on the wire, without FCS (IEEE 802.3 4A.4.2: minFrameSize)."""

PAUSE_QUANTUM_BYTES = 64
"""pause_quantum is 512 bit times (IEEE 802.3 31B.2)."""

ETHERNET_HEADER_BYTES = 14
VLAN_TAG_BYTES = 4
MAC_ADDRESSES_BYTES = 12
IPV4_HEADER_BYTES = 20
IPV6_HEADER_BYTES = 40
IPV6_EXTENSION_UNIT_BYTES = 8
TCP_HEADER_BYTES = 20
UDP_HEADER_BYTES = 8

# Where fields that are patched or checksummed stand in their header.
IPV4_TOTAL_LENGTH_OFFSET = 2
IPV4_IDENTIFICATION_OFFSET = 4
IPV4_CHECKSUM_OFFSET = 10
IPV6_PAYLOAD_LENGTH_OFFSET = 4
TCP_SEQUENCE_OFFSET = 4
TCP_FLAGS_OFFSET = 13
TCP_CHECKSUM_OFFSET = 16
UDP_CHECKSUM_OFFSET = 6
