"""Checksum, sequence numbers and ring indices against published vectors, scapy and plain counting."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import IP, UDP
from scapy.utils import checksum as scapy_checksum

from nic_model import ring, seqnum
from nic_model.checksum import checksum_seed, fold, internet_checksum, ones_sum


def test_rfc_1071_example() -> None:
    # RFC 1071 §3: the bytes 00 01 f2 03 f4 f5 f6 f7 sum to 2ddf0, which folds to ddf2
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert ones_sum(data) == 0xDDF2
    assert internet_checksum(data) == 0x220D


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"\x00\x00", 0),
        (b"\xff\xff", 0xFFFF),
        (b"\xff\xff\xff\xff", 0xFFFF),
        (b"\xff\xfe\x00\x01", 0xFFFF),
        (b"\x12", 0x1200),
        (b"\xff\xff\x00\x02", 0x0002),
        (b"\x00\x01\xff", 0xFF01),
        (bytes(2000), 0),
        (b"\xff" * 2000, 0xFFFF),
        (bytes(1998) + b"\x12\x34", 0x1234),
        (b"\xff" * 1998 + b"\x12\x34", 0x1234),
    ],
)
def test_sum_corner_cases(data: bytes, expected: int) -> None:
    assert ones_sum(data) == expected
    assert ones_sum(memoryview(data)) == expected


def test_fold_adds_carries_until_none_is_left() -> None:
    assert fold(0x1_FFFF) == 1  # the first fold gives 0x10000, which carries again
    assert fold(0x2_DDF0) == 0xDDF2


@pytest.mark.parametrize("seed", range(40))
def test_checksum_agrees_with_scapy(seed: int) -> None:
    data = random.Random(seed).randbytes(random.Random(seed).choice([1, 3, 20, 59, 508, 512, 1459, 1460, 8999, 9000]))
    assert internet_checksum(data) == scapy_checksum(data)
    assert internet_checksum(bytearray(data)) == scapy_checksum(data)
    assert internet_checksum(memoryview(b"x" + data)[1:]) == scapy_checksum(data)


def test_seed_with_and_without_length_against_scapy() -> None:
    payload = bytes(range(101))
    packet = IP(bytes(IP(src="10.0.0.1", dst="192.168.255.254") / UDP(sport=7, dport=9) / payload))
    datagram = bytes(packet[UDP])
    zeroed = datagram[:6] + b"\0\0" + datagram[8:]
    source, destination = bytes([10, 0, 0, 1]), bytes([192, 168, 255, 254])
    assert internet_checksum(zeroed, checksum_seed(source, destination, 17, len(datagram))) == packet[UDP].chksum
    without = checksum_seed(source, destination, 17, None)
    assert fold(without + len(datagram)) == checksum_seed(source, destination, 17, len(datagram))


def test_sequence_numbers_wrap() -> None:
    assert seqnum.wrap(0xFFFF_FFFE + 4) == 2
    assert seqnum.distance(0xFFFF_FFFE, 2) == 4
    assert seqnum.distance(2, 0xFFFF_FFFE) == -4
    assert seqnum.before(0xFFFF_FFFF, 0)
    assert not seqnum.before(0, 0xFFFF_FFFF)
    assert not seqnum.before(7, 7)


def test_unwrap_finds_the_nearest() -> None:
    rng = random.Random(1)
    for _ in range(500):
        near = rng.randrange(1 << 34)
        number = near + rng.randrange(-(1 << 31), 1 << 31)
        assert seqnum.unwrap(seqnum.wrap(number), near) == number


@pytest.mark.parametrize("log2", [4, 8, 15])
def test_ring_indices_count_entries_over_the_wrap(log2: int) -> None:
    size = 1 << log2
    produced, consumed = 0xFFF0, 0xFFF0
    for _ in range(size):
        produced = ring.advance(produced)
    assert ring.distance(consumed, produced) == size
    assert ring.free(consumed, produced, log2) == 0
    assert ring.free(consumed, ring.advance(produced), log2) == -1
    assert ring.distance(produced, produced) == 0
    assert ring.slot(produced, log2) == ring.slot(consumed, log2)
    # the reader of a slot must see the phase flip between two passes, also where the index wraps
    assert ring.phase(produced, log2) != ring.phase(consumed, log2)


def test_phase_is_one_in_the_first_pass() -> None:
    assert [ring.phase(i, 4) for i in (0, 15, 16, 31, 32)] == [1, 1, 0, 0, 1]
