"""Segmentation and checksum insertion: the frames are read back and judged by scapy."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from nic_model.checksum import checksum_seed
from nic_model.contract import SUBMISSION_HEAD, Opcode, SendFlag
from nic_model.contract.protocols import EtherType, IpProtocol, TcpFlags
from nic_model.packets import EthernetHeader, pack_ipv4, pack_ipv6, pack_tcp
from nic_model.segmentation import finish_frame, segment

IP4 = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
IP6 = bytes.fromhex("fd00" + "0" * 27 + "1"), bytes.fromhex("fd00" + "0" * 27 + "2")


def send(payload: bytes, *, mss: int, ipv6: bool = False, sequence: int = 1000, identification: int = 500,
         flags: int = TcpFlags.ACK, options: bytes = b"") -> list[Ether]:
    """What scapy reads in the frames of one segmented send."""
    addresses = IP6 if ipv6 else IP4
    seed = checksum_seed(*addresses, IpProtocol.TCP, None)
    tcp = pack_tcp(80, 4000, sequence, 77, flags, 8192, options, checksum=seed)
    ip = (pack_ipv6(*addresses, IpProtocol.TCP, 0) if ipv6
          else pack_ipv4(*addresses, IpProtocol.TCP, 0, identification))
    ethernet = EthernetHeader(b"\2" * 6, b"\4" * 6, EtherType.IPV6 if ipv6 else EtherType.IPV4).pack()
    template = ethernet + ip + tcp
    l4_offset = 14 + len(ip)
    send_flags = SendFlag.L4_CHECKSUM | (SendFlag.IPV6 if ipv6 else SendFlag.IPV4_CHECKSUM)
    head = SUBMISSION_HEAD.unpack(SUBMISSION_HEAD.pack(
        opcode=Opcode.SEND_SEGMENTED, flags=send_flags, mss=mss, inline_bytes=len(template), l3_offset=14,
        l4_offset=l4_offset, checksum_offset=l4_offset + 16))
    return [Ether(frame) for frame in segment(template, head, payload)]


def assert_checksums_right(frame: Ether) -> None:
    """Let scapy compute every checksum and length afresh; nothing may change."""
    fresh = frame.copy()
    if IP in fresh:
        del fresh[IP].chksum, fresh[IP].len
    else:
        del fresh[IPv6].plen
    del fresh[TCP if TCP in fresh else UDP].chksum
    assert bytes(fresh) == bytes(frame)


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize(("length", "mss"), [(1, 1460), (1460, 1460), (1461, 1460), (4000, 1460), (3, 1), (8960, 8960)])
def test_lengths_numbers_and_checksums(ipv6: bool, length: int, mss: int) -> None:
    payload = random.Random(length).randbytes(length)
    frames = send(payload, mss=mss, ipv6=ipv6)
    assert b"".join(bytes(f[TCP].payload) for f in frames) == payload
    assert len(frames) == -(-length // mss)
    for number, frame in enumerate(frames):
        assert frame[TCP].seq == 1000 + number * mss
        assert frame[TCP].ack == 77
        if not ipv6:
            assert frame[IP].id == 500 + number
        assert_checksums_right(frame)


def test_flags_only_where_they_belong() -> None:
    every = TcpFlags.ACK | TcpFlags.PSH | TcpFlags.FIN | TcpFlags.CWR | TcpFlags.ECE
    first, middle, last = send(bytes(30), mss=10, flags=every)
    assert first[TCP].flags == "CAE"
    assert middle[TCP].flags == "AE"
    assert last[TCP].flags == "FPAE"
    (only,) = send(bytes(10), mss=10, flags=every)
    assert only[TCP].flags == "FPACE"


def test_sequence_number_and_identification_wrap() -> None:
    frames = send(bytes(30), mss=10, sequence=0xFFFF_FFFA, identification=0xFFFF)
    assert [f[TCP].seq for f in frames] == [0xFFFF_FFFA, 4, 14]
    assert [f[IP].id for f in frames] == [0xFFFF, 0, 1]
    for frame in frames:
        assert_checksums_right(frame)


def test_options_stay_in_every_segment() -> None:
    options = bytes.fromhex("0101080a0000000100000002")
    for frame in send(bytes(25), mss=10, options=options):
        assert frame[TCP].options == [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
        assert_checksums_right(frame)


@pytest.mark.parametrize("seed", range(10))
def test_random_sends(seed: int) -> None:
    rng = random.Random(seed)
    ipv6, payload = rng.random() < 0.5, rng.randbytes(rng.randrange(1, 20000))
    frames = send(payload, mss=rng.randrange(500, 9000), ipv6=ipv6, sequence=rng.randrange(1 << 32))
    assert b"".join(bytes(f[TCP].payload) for f in frames) == payload
    for frame in frames:
        assert_checksums_right(frame)


def test_zero_mss_is_refused() -> None:
    with pytest.raises(ValueError, match="mss"):
        send(b"x", mss=0)


def udp_frame(payload: bytes, flags: int) -> bytes:
    """A UDP frame made by scapy, its checksums replaced as a driver would, finished by flags."""
    packet = Ether() / IP(src="10.0.0.1", dst="10.0.0.2", chksum=0) / UDP(sport=5, dport=6) / payload
    packet[UDP].chksum = checksum_seed(*IP4, IpProtocol.UDP, 8 + len(payload))
    frame = bytearray(bytes(packet))
    finish_frame(frame, {"flags": flags, "l3_offset": 14, "l4_offset": 34, "checksum_offset": 40})
    return bytes(frame)


@pytest.mark.parametrize("payload", [b"", b"a", b"even", bytes(1400)])
def test_finish_frame_inserts_both_checksums(payload: bytes) -> None:
    frame = Ether(udp_frame(payload, SendFlag.IPV4_CHECKSUM | SendFlag.L4_CHECKSUM | SendFlag.UDP))
    assert_checksums_right(frame)


def test_finish_frame_leaves_alone_what_no_flag_asks_for() -> None:
    frame = Ether(udp_frame(b"abc", SendFlag(0)))
    assert frame[IP].chksum == 0
    assert frame[UDP].chksum == checksum_seed(*IP4, IpProtocol.UDP, 11)


def test_udp_checksum_of_zero_is_sent_as_all_ones() -> None:
    # choose the payload word so that the sum becomes 0xffff: its complement is 0 (RFC 768)
    plain = Ether(udp_frame(b"\0\0", SendFlag.L4_CHECKSUM))[UDP].chksum
    payload = plain.to_bytes(2, "big")
    assert Ether(udp_frame(payload, SendFlag.L4_CHECKSUM))[UDP].chksum == 0
    assert Ether(udp_frame(payload, SendFlag.L4_CHECKSUM | SendFlag.UDP))[UDP].chksum == 0xFFFF
