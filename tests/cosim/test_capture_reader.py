"""Captures that scapy, our own writer and these lines wrote, in each format and byte order, are read back."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import pytest

from cosim.capture_reader import read_frames
from cosim.errors import InputError
from cosim.pcapng import PcapngWriter

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.l2 import Ether  # noqa: E402
from scapy.utils import wrpcap, wrpcapng  # noqa: E402

FRAMES = [bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x0800)) + bytes([number] * (46 + number))
          for number in range(5)]
TIMES_NS = [1_700_000_000_000_000_000 + number * 1_234_567_000 for number in range(5)]


def packets() -> list[Ether]:
    """As scapy writes them: times are seconds."""
    made = []
    for data, time_ns in zip(FRAMES, TIMES_NS, strict=True):
        packet = Ether(data)
        packet.time = time_ns / 1e9
        made.append(packet)
    return made


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("nano", [False, True])
def test_pcap_in_both_byte_orders_and_resolutions(tmp_path: Path, endianness: str, nano: bool) -> None:
    path = tmp_path / "a.pcap"
    wrpcap(str(path), packets(), endianness=endianness, nano=nano)
    found = list(read_frames(path))
    assert [frame.data for frame in found] == FRAMES
    assert [frame.length_bytes for frame in found] == [len(data) for data in FRAMES]
    assert all(abs(frame.time_ns - due) < 2000 for frame, due in zip(found, TIMES_NS, strict=True))


def test_pcapng_of_scapy(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    wrpcapng(str(path), packets())
    found = list(read_frames(path))
    assert [frame.data for frame in found] == FRAMES
    assert all(abs(frame.time_ns - due) < 2000 for frame, due in zip(found, TIMES_NS, strict=True))


def test_pcapng_of_our_own_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with PcapngWriter(path, "device") as writer:
        for number, data in enumerate(FRAMES):
            writer.write(number * 1_000_001_000, data, outbound=bool(number % 2))
    assert [(frame.time_ns, frame.data) for frame in read_frames(path)] == [
        (number * 1_000_001, data) for number, data in enumerate(FRAMES)]


def test_pcapng_with_the_other_byte_order_a_binary_resolution_and_a_simple_packet(tmp_path: Path) -> None:
    def block(kind: int, body: bytes) -> bytes:
        return struct.pack(">II", kind, len(body) + 12) + body + struct.pack(">I", len(body) + 12)

    resolution = struct.pack(">HHBxxxHH", 9, 1, 0x80 | 10, 0, 0)  # units of 2^-10 s
    data = FRAMES[0].ljust(64, b"\0")
    path = tmp_path / "a.pcapng"
    path.write_bytes(block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1))
                     + block(1, struct.pack(">HHI", 1, 0, 0) + resolution)
                     + block(6, struct.pack(">IIIII", 0, 0, 3 << 10, 64, 64) + data)
                     + block(5, b"statistics, which nobody reads..")
                     + block(3, struct.pack(">I", 64) + data))
    assert [(frame.time_ns, frame.data) for frame in read_frames(path)] == [(3 * 10**9, data), (0, data)]


@pytest.mark.parametrize(("content", "said"), [
    (b"", "neither pcap nor pcapng"), (b"GIF89a" * 10, "neither pcap nor pcapng"),
    (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101), "frames of link type 101"),
    (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + b"\0" * 9, "ends in the middle of a block"),
    (struct.pack("<IHHiIIIIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1, 0, 0, 60, 60), "ends in the middle of a frame"),
    (struct.pack("<III", 0x0A0D0D0A, 400, 0x1A2B3C4D), "a block of 400 bytes at 0, where 12 are left")])
def test_what_is_no_capture_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        list(read_frames(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        list(read_frames(tmp_path / "none"))
