"""A recorded capture plays the clients: scapy writes what a kernel would have said, and the server is another one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from cosim import cli

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP  # noqa: E402
from scapy.layers.inet6 import IPv6  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402
from scapy.utils import wrpcap  # noqa: E402

CLIENT_ISS, SERVER_ISS = 0xFFFF_FFF0, 123_456_789
BODY = bytes(range(256)) * 20
REQUEST = b"GET /file HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class Recording:
    """A conversation as a capture has it, written line by line. Numbers are relative to the initial ones."""

    def __init__(self, client: str = "192.168.7.9", server: str = "192.168.7.1", port: int = 80,
                 client_port: int = 40_000) -> None:
        self.packets: list[Any] = []
        self.time = 1000.0
        self._ip = IPv6 if ":" in client else IP
        self._ends = (client, server, client_port, port)

    def client(self, flags: str, seq: int, ack: int, payload: bytes = b"", **more: Any) -> None:
        """A packet of the client, a millisecond later."""
        self._add(True, flags, CLIENT_ISS + seq, SERVER_ISS + ack, payload, more)

    def server(self, flags: str, seq: int, ack: int, payload: bytes = b"", **more: Any) -> None:
        """A packet of the server."""
        self._add(False, flags, SERVER_ISS + seq, CLIENT_ISS + ack, payload, more)

    def _add(self, is_client: bool, flags: str, seq: int, ack: int, payload: bytes, more: dict[str, Any]) -> None:
        client, server, client_port, port = self._ends
        ends = (client, server, client_port, port) if is_client else (server, client, port, client_port)
        segment = TCP(sport=ends[2], dport=ends[3], flags=flags, seq=seq % 2**32,
                      ack=ack % 2**32 if "A" in flags else 0, window=0xFAF0, **more)
        packet = Ether(src="02:aa:00:00:00:01", dst="02:aa:00:00:00:02") / self._ip(src=ends[0], dst=ends[1]) / segment
        packet = packet / payload if payload else packet
        self.time += 0.001
        packet.time = self.time
        self.packets.append(packet)

    def handshake(self, options: list[Any] | None = None, agreed: list[Any] | None = None) -> None:
        self.client("S", 0, 0, options=options or [("MSS", 1460)])
        self.server("SA", 0, 1, options=agreed if agreed is not None else options or [("MSS", 1460)])
        self.client("A", 1, 1)


def short_fetch(recording: Recording, answer_bytes: int = 5220) -> None:
    """A request, an answer of so many bytes, both ends close."""
    recording.handshake()
    behind = 1 + len(REQUEST)
    recording.client("PA", 1, 1, REQUEST)
    recording.server("A", 1, behind)
    for start in range(0, answer_bytes, 1460):
        size = min(1460, answer_bytes - start)
        recording.server("A", 1 + start, behind, bytes(size))
        recording.client("A", behind, 1 + start + size)
    recording.server("FA", 1 + answer_bytes, behind)
    recording.client("FA", behind, 2 + answer_bytes)
    recording.server("A", 2 + answer_bytes, behind + 1)


def replay(tmp_path: Path, capsys: pytest.CaptureFixture[str], *recordings: Recording,
           options: tuple[str, ...] = ()) -> dict[str, Any]:
    """What `memnic tap --replay` says of a capture of these."""
    (tmp_path / "root").mkdir(exist_ok=True)
    (tmp_path / "root" / "file").write_bytes(BODY)
    packets = sorted((packet for recording in recordings for packet in recording.packets), key=lambda p: p.time)
    wrpcap(str(tmp_path / "in.pcap"), packets, nano=True)
    code = cli.run(["tap", "--replay", str(tmp_path / "in.pcap"), "--root", str(tmp_path / "root"), "--engine", "model",
                    "--json", *options])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    found: dict[str, Any] = json.loads(printed.out)
    return found


@pytest.mark.parametrize(("system", "profile"), [
    ("nic-tso", "linux"), ("nic-tso", "linux24"), ("nic-tso", "rfc"), ("nic-tcp", "linux")])
@pytest.mark.parametrize("version", [4, 6])
def test_a_fetch_is_played_with_its_numbers_mapped(tmp_path: Path, capsys: pytest.CaptureFixture[str], version: int,
                                                   system: str, profile: str) -> None:
    ends = ("192.168.7.9", "192.168.7.1") if version == 4 else ("2001:db8::9", "2001:db8::1")
    recording = Recording(*ends)
    short_fetch(recording)
    result = replay(tmp_path, capsys, recording, options=("--systems", system, "--profile", profile))
    (played,) = result["played"]
    assert played["packets"] == sum(packet[TCP].dport == 80 for packet in recording.packets)
    assert (played["end"], played["missing"], played["resent"]) == ("closed", 0, 0)
    assert played["recorded_bytes"] == 5220
    assert result["server"]["statuses"] == {"200": 1}
    assert result["server"]["sent_body_bytes"] == len(BODY)
    assert set(result["connections"]) <= {"TIME_WAIT"}
    assert not any(result["left_over"].values())


@pytest.mark.parametrize("answer_bytes", [100, 20_000])
def test_a_server_that_says_more_or_less_than_the_recorded_one(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                               answer_bytes: int) -> None:
    recording = Recording()
    short_fetch(recording, answer_bytes)
    result = replay(tmp_path, capsys, recording)
    (played,) = result["played"]
    assert played["end"] == "closed"
    assert played["recorded_bytes"] == answer_bytes
    assert played["received_bytes"] > len(BODY)
    assert set(result["connections"]) <= {"TIME_WAIT"}


def test_connections_keep_their_distance_and_those_to_other_ports_are_left_out(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recordings = []
    for number in range(3):
        recording = Recording(client_port=41_000 + number)
        recording.time += 0.5 * number
        short_fetch(recording)
        recordings.append(recording)
    other = Recording(port=443, client_port=42_000)
    short_fetch(other)
    result = replay(tmp_path, capsys, *recordings, other)
    assert [flow["client"] for flow in result["played"]] == [f"192.168.7.9:{41_000 + number}" for number in range(3)]
    assert {flow["end"] for flow in result["played"]} == {"closed"}
    assert result["simulated_ps"] > 1_000_000_000_000


def test_timestamps_are_echoed_and_options_are_those_that_both_had(tmp_path: Path,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    stamp = [("Timestamp", (777, 0))]
    both = Recording(client_port=43_000)
    both.handshake([("MSS", 1460), ("SAckOK", b""), *stamp], [("MSS", 1460), ("Timestamp", (5, 777))])
    both.packets[2][TCP].options = [("NOP", None), ("NOP", None), ("Timestamp", (778, 5))]
    both.client("PA", 1, 1, REQUEST, options=[("NOP", None), ("NOP", None), ("Timestamp", (779, 5))])
    # The recorded server had no timestamps: so neither has the client, whatever its SYN offered.
    neither = Recording(client_port=43_001)
    neither.handshake([("MSS", 1460), *stamp], [("MSS", 1460)])
    neither.client("PA", 1, 1, REQUEST)
    result = replay(tmp_path, capsys, both, neither, options=("--profile", "linux"))
    assert result["server"]["requests"] == 2
    assert [flow["received_bytes"] > len(BODY) for flow in result["played"]] == [True, True]


def test_a_packet_that_the_server_missed_is_sent_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = Recording()
    recording.handshake()
    body = bytes(1460)
    head = b"PUT /up HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 29200\r\n\r\n"
    recording.client("PA", 1, 1, head)
    recording.server("A", 1, 1 + len(head))
    for number in range(20):
        recording.client("A", 1 + len(head) + 1460 * number, 1, body)
        recording.server("A", 1, 1 + len(head) + 1460 * (number + 1))
    result = replay(tmp_path, capsys, recording, options=("--loss", "0:20%", "--seed", "5"))
    (played,) = result["played"]
    assert played["resent"] > 0
    assert result["server"]["received_body_bytes"] == 29_200


def test_a_reset_of_the_recorded_client_ends_the_connection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = Recording()
    recording.handshake()
    recording.client("PA", 1, 1, REQUEST)
    recording.server("A", 1, 1 + len(REQUEST), bytes(1000))
    recording.client("RA", 1 + len(REQUEST), 1001)
    result = replay(tmp_path, capsys, recording)
    assert result["played"][0]["end"] == "closed"
    assert result["connections"] == {}
    assert not any(result["left_over"].values())


def test_a_capture_without_a_beginning_or_with_cut_frames_is_refused(tmp_path: Path,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    recording = Recording()
    recording.client("A", 1, 1, b"x")
    wrpcap(str(tmp_path / "a.pcap"), recording.packets)
    assert cli.run(["tap", "--replay", str(tmp_path / "a.pcap")]) == 2
    assert "no TCP connection's beginning (SYN) is in it" in capsys.readouterr().err
    whole = Recording()
    short_fetch(whole)
    data = [bytes(packet) for packet in whole.packets]
    cut = Ether(data[3][:80])
    cut.wirelen = len(data[3])
    wrpcap(str(tmp_path / "b.pcap"), [*whole.packets[:3], cut])
    assert cli.run(["tap", "--replay", str(tmp_path / "b.pcap")]) == 2
    assert "bytes was cut to 80: capture with tcpdump -s 0" in capsys.readouterr().err
