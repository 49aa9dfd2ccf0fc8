"""Judges a capture with scapy alone: checksums, sequence numbers, and the bytes of each TCP stream."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402
from scapy.utils import RawPcapNgReader  # noqa: E402

Flow = tuple[str, int, str, int]
"""Source address and port, destination address and port."""


class Capture(NamedTuple):
    """What a capture holds."""

    frames: int
    streams: dict[Flow, bytes]
    """Payload of each direction of each connection, in order; a byte that came twice or never fails the reading."""


def read_capture(path: Path, *, may_reset: bool = False) -> Capture:
    """Read a capture, and assert that each checksum is right, each sequence number is the next, and nobody resets.

    `may_reset`: clients may. Two processors take segments of a connection out of turn at times; an ACK behind the FIN
    that it came before is answered, and finds the client's connection gone.
    """
    frames = 0
    streams: dict[Flow, bytearray] = {}
    expected: dict[Flow, int] = {}
    last_time_ns = 0
    with RawPcapNgReader(str(path)) as reader:
        for data, meta in reader:
            frames += 1
            time_ns = (meta.tshigh << 32) + meta.tslow
            assert time_ns >= last_time_ns, f"frame {frames} is older than the one before"
            last_time_ns = time_ns
            packet = Ether(data)
            ip, tcp = packet[IP], packet[TCP]
            bare = Ether(data[: 14 + ip.len])
            del bare[IP].chksum, bare[TCP].chksum
            right = Ether(bytes(bare))
            assert ip.chksum == right[IP].chksum, f"IP checksum of frame {frames}"
            assert tcp.chksum == right[TCP].chksum, f"TCP checksum of frame {frames}"
            payload = data[14 + 4 * ip.ihl + 4 * tcp.dataofs : 14 + ip.len]
            flow = (ip.src, tcp.sport, ip.dst, tcp.dport)
            if may_reset and "R" in tcp.flags and tcp.dport == 80:
                continue
            assert "R" not in tcp.flags, f"frame {frames} is a reset"
            if "S" in tcp.flags:
                streams[flow] = bytearray()
            else:
                assert tcp.seq == expected[flow], f"sequence number of frame {frames}"
            expected[flow] = (tcp.seq + len(payload) + ("S" in tcp.flags) + ("F" in tcp.flags)) % 2**32
            streams[flow] += payload
    return Capture(frames, {flow: bytes(stream) for flow, stream in streams.items()})
