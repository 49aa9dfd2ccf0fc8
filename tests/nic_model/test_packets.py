"""Packet formats against scapy, both ways, and against packets that are broken."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet

from nic_model.contract.protocols import EtherType, IpProtocol, TcpFlags
from nic_model.packets import (
    ArpOperation,
    ArpPacket,
    EthernetHeader,
    Ipv4Header,
    Ipv6Header,
    PacketError,
    TcpHeader,
    TcpOptions,
    UdpHeader,
    parse_frame,
)

MAC_A, MAC_B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
IP4_A, IP4_B = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
IP6_A, IP6_B = bytes.fromhex("fd00" + "0" * 27 + "1"), bytes.fromhex("fd00" + "0" * 27 + "2")
ETHER = Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")
IP4 = IP(src="10.0.0.1", dst="10.0.0.2", id=77, flags="DF")
IP6 = IPv6(src="fd00::1", dst="fd00::2")


def test_parse_tcp_over_ipv4() -> None:
    raw = bytes(ETHER / IP4 / TCP(sport=80, dport=1234, seq=5, ack=6, flags="PA", window=100) / b"hello")
    frame = parse_frame(raw)
    assert (frame.ethernet.destination, frame.ethernet.source) == (MAC_B, MAC_A)
    assert frame.ipv4 is not None
    assert (frame.ipv4.source, frame.ipv4.destination, frame.ipv4.identification) == (IP4_A, IP4_B, 77)
    tcp = frame.tcp
    assert tcp is not None
    assert (tcp.source_port, tcp.destination_port, tcp.sequence, tcp.acknowledgement) == (80, 1234, 5, 6)
    assert (tcp.flags, tcp.window) == (TcpFlags.PSH | TcpFlags.ACK, 100)
    assert (frame.l3_offset, frame.l4_offset, bytes(frame.payload)) == (14, 34, b"hello")
    assert frame.l3_checksum_ok()
    assert frame.l4_checksum_ok()


def test_padding_is_no_payload() -> None:
    raw = bytes(ETHER / IP4 / TCP(flags="A")).ljust(60, b"\xaa")
    frame = parse_frame(raw)
    assert frame.payload == b""
    assert frame.l4_checksum_ok()


def test_build_tcp_over_ipv4_equals_scapy() -> None:
    options = TcpOptions(mss=1460, window_scale=7, sack_permitted=True, timestamps=(1, 2))
    tcp = TcpHeader(80, 1234, 0xFFFF_FFFF, 7, TcpFlags.SYN | TcpFlags.ACK, 65535, options=options).pack()
    ip = Ipv4Header(IP4_A, IP4_B, IpProtocol.TCP, 20 + len(tcp), identification=77).pack()
    built = Ether(EthernetHeader(MAC_B, MAC_A, EtherType.IPV4).pack() + ip + tcp)
    assert built[IP].src == "10.0.0.1"
    assert built[IP].len == 20 + len(tcp)
    assert built[IP].flags == "DF"
    assert dict(o for o in built[TCP].options if o[0] != "NOP") == {
        "MSS": 1460, "WScale": 7, "SAckOK": b"", "Timestamp": (1, 2)}
    assert (built[TCP].seq, built[TCP].ack, built[TCP].flags) == (0xFFFF_FFFF, 7, "SA")
    assert TcpHeader.parse(tcp, 0, len(tcp)).options == options


def test_ipv6_both_ways() -> None:
    raw = bytes(ETHER / IPv6(src="fd00::1", dst="fd00::2", tc=3, fl=9, hlim=5) / TCP(sport=1, dport=2) / b"xyz")
    frame = parse_frame(raw)
    assert frame.ipv6 is not None
    assert (frame.ipv6.traffic_class, frame.ipv6.flow_label, frame.ipv6.hop_limit) == (3, 9, 5)
    assert (frame.ipv6.source, frame.ipv6.destination) == (IP6_A, IP6_B)
    assert frame.l4_checksum_ok()
    assert frame.ipv6.pack() == raw[14:54]
    assert Ipv6Header(IP6_A, IP6_B, IpProtocol.TCP, 23, 5, 3, 9).pack() == raw[14:54]


def test_ipv6_extension_headers_are_skipped() -> None:
    raw = bytes(ETHER / IP6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / TCP(dport=99) / b"data")
    frame = parse_frame(raw)
    assert frame.tcp is not None
    assert frame.tcp.destination_port == 99
    assert frame.payload == b"data"


def test_fragments_are_not_read_as_tcp() -> None:
    for packet in (IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / TCP() / b"x", IP(frag=3) / (b"y" * 40),
                   IP6 / IPv6ExtHdrFragment(offset=2) / (b"z" * 40)):
        frame = parse_frame(bytes(ETHER / packet))
        assert frame.is_fragment
        assert frame.tcp is None
        assert frame.l4_checksum_ok()


def test_vlan_tag_is_read_and_written() -> None:
    raw = bytes(ETHER / Dot1Q(vlan=100, prio=5) / IP4 / UDP(sport=1, dport=2) / b"abc")
    frame = parse_frame(raw)
    assert frame.ethernet.vlan_tci == 5 << 13 | 100
    assert frame.l3_offset == 18
    assert frame.ethernet.pack() == raw[:18]
    assert frame.udp == UdpHeader(1, 2, 11, frame.udp.checksum if frame.udp else 0)
    assert frame.payload == b"abc"
    assert frame.l4_checksum_ok()


def test_arp_both_ways() -> None:
    packet = ARP(op=1, hwsrc="02:00:00:00:00:01", psrc="10.0.0.1", hwdst="00:00:00:00:00:00", pdst="10.0.0.2")
    frame = parse_frame(bytes(ETHER / packet))
    assert frame.arp == ArpPacket(ArpOperation.REQUEST, MAC_A, IP4_A, bytes(6), IP4_B)
    assert frame.arp is not None
    assert frame.arp.pack() == bytes(packet)


def test_options_of_ipv4_are_skipped() -> None:
    raw = bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2", options=b"\x01" * 8) / TCP(dport=5) / b"q")
    frame = parse_frame(raw)
    assert frame.l4_offset == 14 + 28
    assert frame.payload == b"q"
    assert frame.l3_checksum_ok()
    assert frame.l4_checksum_ok()


@pytest.mark.parametrize("packet", [IP4 / TCP() / b"odd", IP4 / UDP() / b"12", IP6 / TCP() / b"", IP6 / UDP() / b"777"])
def test_one_wrong_bit_is_seen(packet: Packet) -> None:
    raw = bytearray(bytes(ETHER / packet))
    for at in range(14 + (20 if packet.version == 4 else 40), len(raw)):
        broken = bytearray(raw)
        broken[at] ^= 0x10
        try:
            frame = parse_frame(broken)
        except PacketError:
            continue  # a length or an offset: the parser already refuses it
        assert not frame.l4_checksum_ok(), f"byte {at}"


def test_udp_without_checksum_counts_as_right_over_ipv4_only() -> None:
    assert parse_frame(bytes(ETHER / IP4 / UDP(chksum=0) / b"x")).l4_checksum_ok()
    assert not parse_frame(bytes(ETHER / IP6 / UDP(chksum=0) / b"x")).l4_checksum_ok()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "Ethernet"),
        (bytes(12) + b"\x81\x00\x00", "802.1Q"),
        (bytes(12) + b"\x08\x00" + b"\x45", "IPv4: 1 bytes"),
        (bytes(12) + b"\x08\x00" + b"\x65" + bytes(19), "version 6"),
        (bytes(12) + b"\x08\x00" + b"\x44\x00\x00\x14" + bytes(16), "IPv4: header of 16"),
        (bytes(12) + b"\x08\x00" + b"\x45\x00\x00\x15" + bytes(16), "packet of 21 bytes in 20"),
        (bytes(12) + b"\x86\xdd" + b"\x60" + bytes(30), "IPv6"),
        (bytes(12) + b"\x86\xdd" + b"\x60\0\0\0\0\x09" + bytes(34), "payload of 9"),
        (bytes(12) + b"\x08\x06" + bytes(20), "ARP"),
        (bytes(12) + b"\x08\x06" + bytes(28), "ARP: not"),
        (bytes(12) + b"\x08\x00" + b"\x45\0\0\x18\0\0\0\0\x40\x06" + bytes(14), "TCP: 4 bytes"),
        (bytes(12) + b"\x08\x00" + b"\x45\0\0\x28\0\0\0\0\x40\x06" + bytes(10) + bytes(12) + b"\x60" + bytes(7),
         "TCP: header of 24"),
        (bytes(12) + b"\x08\x00" + b"\x45\0\0\x1c\0\0\0\0\x40\x11" + bytes(10) + bytes(8), "UDP: length 0"),
    ],
)
def test_bad_packets_say_what_is_wrong(raw: bytes, reason: str) -> None:
    with pytest.raises(PacketError, match=reason):
        parse_frame(raw)


@pytest.mark.parametrize("options", [b"\x02\x00", b"\x02\x05\x00\x00", b"\x02"])
def test_impossible_option_lengths(options: bytes) -> None:
    with pytest.raises(PacketError, match="option 2"):
        TcpOptions.parse(options)


def test_random_damage_raises_nothing_else() -> None:
    rng = random.Random(7)
    originals = [bytes(ETHER / p) for p in (
        IP4 / TCP(options=[("MSS", 1460), ("WScale", 2)]) / b"hello", IP6 / IPv6ExtHdrHopByHop() / UDP() / b"x",
        Dot1Q() / IP4 / UDP() / b"", ARP())]
    parsed = 0
    for _ in range(4000):
        raw = bytearray(rng.choice(originals))[: rng.randrange(120)]
        for _ in range(rng.randrange(4)):
            if raw:
                raw[rng.randrange(len(raw))] = rng.randrange(256)
        try:
            frame = parse_frame(raw)
        except PacketError:
            continue
        frame.l3_checksum_ok()
        frame.l4_checksum_ok()
        parsed += 1
    assert parsed > 100
