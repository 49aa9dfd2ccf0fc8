"""The control port's model, rule by rule; scapy says what frames must be. What is sent in, and what comes out."""

from __future__ import annotations

import logging
import random
from ipaddress import ip_address
from typing import Any

import pytest

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import IPv6  # noqa: E402
from scapy.layers.l2 import ARP, Dot1Q, Ether  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402

from nic_model.contract import (  # noqa: E402
    COUNTERS_BASE,
    DOORBELL_BASE,
    ChannelCommand,
    CompletionKind,
    Feature,
    KeyRight,
    NicConfig,
    Opcode,
    OperationMask,
    RxFilter,
    Status,
    channel_register,
    doorbell,
    key_register,
    make_key,
    register,
)
from nic_model.contract.control import (  # noqa: E402
    LAYOUT_OF,
    NO_FLOW,
    NO_LISTENER,
    SEGMENT_OPTIONS,
    SEGMENT_SACK,
    ControlEnable,
    ControlType,
    DoneStatus,
    OrderFlag,
    UnknownReason,
    UpFlag,
    pack_message,
    unpack_message,
)
from nic_model.contract.descriptors import COMPLETION, RECEIVE_SLOT  # noqa: E402
from nic_model.contract.sockets import SOCKET_COMPLETION, SOCKET_HEAD, SocketFlag, SocketStatus  # noqa: E402
from nic_model.device import Device  # noqa: E402

BASE, SIZE = 0x5_0000_0000, 1 << 20
TX, RX, CQ, DATA = BASE, BASE + 0x1000, BASE + 0x2000, BASE + 0x1_0000
KEY = make_key(2, 9)
OWN, PEER = "02:00:00:00:00:01", "02:00:00:00:00:02"
OWN_IP, PEER_IP = "10.0.0.1", "10.0.0.2"
OWN_IP6, PEER_IP6 = "fd00::1", "fd00::2"


class Bench:
    """A device with a port, one running channel and one key; whoever tests it is the decider."""

    def __init__(self, **sizes: int) -> None:
        self.config = NicConfig(name="test", channels=4, vectors=2, keys=16, **{"flows": 16, "listeners": 4, **sizes})
        self.memory = bytearray(SIZE)
        self.broken: set[int] = set()
        self.device = Device(self.config, self.read, self.write)
        assert self.device.control is not None
        self.port = self.device.control
        own = bytes.fromhex(OWN.replace(":", ""))
        for name, value in (("MAC_ADDRESS_LO", int.from_bytes(own[:4], "little")), ("RX_ENABLE", 1),
                            ("MAC_ADDRESS_HI", int.from_bytes(own[4:], "little")), ("RX_FILTER", RxFilter.BROADCAST),
                            ("CONTROL_ENABLE", ControlEnable.FLOWS | ControlEnable.REST)):
            self.device.write_register(register(name), int(value))
        operations = OperationMask.SOCKET | OperationMask.RECEIVE_RAW
        for name, value in {"CHANNEL_OPERATIONS": int(operations), "TX_BASE_LO": TX & 0xFFFF_FFFF,
                            "TX_BASE_HI": TX >> 32, "TX_LOG2": 4, "RX_BASE_LO": RX & 0xFFFF_FFFF,
                            "RX_BASE_HI": RX >> 32, "RX_LOG2": 4, "CQ_BASE_LO": CQ & 0xFFFF_FFFF,
                            "CQ_BASE_HI": CQ >> 32, "CQ_LOG2": 5,
                            "CHANNEL_CONTROL": int(ChannelCommand.ENABLE)}.items():
            self.device.write_register(channel_register(name, 1), value)
        for name, value in (("KEY_ADDRESS_LO", DATA & 0xFFFF_FFFF), ("KEY_ADDRESS_HI", DATA >> 32),
                            ("KEY_LENGTH_LO", 0x8000), ("KEY_LENGTH_HI", 0),
                            ("KEY_COMMIT", 9 | (KeyRight.READ | KeyRight.WRITE) << 12 | 1 << 16 | 1 << 31)):
            self.device.write_register(key_register(name, 2), int(value))
        self.completed = 0
        self.sent_slots = 0

    def read(self, address: int, length: int) -> bytes | None:
        if any(address <= bad < address + length for bad in self.broken):
            return None
        return bytes(self.memory[address - BASE : address - BASE + length])

    def write(self, address: int, data: bytes) -> bool:
        if any(address <= bad < address + len(data) for bad in self.broken):
            return False
        self.memory[address - BASE : address - BASE + len(data)] = data
        return True

    # what comes up, and what goes down

    def take(self) -> tuple[ControlType, dict[str, int], bytes]:
        message = self.port.take()
        assert message is not None, "nothing came up"
        return unpack_message(message)

    def done(self, order: ControlType, status: DoneStatus = DoneStatus.OK) -> dict[str, int]:
        kind, fields, _ = self.take()
        assert (kind, fields["order"], DoneStatus(fields["status"])) == (ControlType.DONE, order, status)
        return fields

    def quiet(self) -> None:
        assert self.port.waiting == 0

    def release(self, kind: ControlType, further: bytes = b"", **fields: int) -> None:
        self.port.release(pack_message(kind, further, **fields))

    def emit(self, further: bytes = b"", kind: ControlType = ControlType.EMIT, **fields: int) -> list[Packet]:
        before = len(self.device.sent)
        self.port.emit(pack_message(kind, further, **fields))
        return [Ether(frame) for frame in self.device.sent[before:]]

    def add_flow(self, number: int = 3, generation: int = 5, remote_port: int = 4000, ipv6: bool = False,
                 **fields: int) -> None:
        addresses = (PEER_IP6, OWN_IP6) if ipv6 else (PEER_IP, OWN_IP)
        remote, local = (int.from_bytes(packed(address), "little") for address in addresses)
        self.release(ControlType.FLOW_ADD, flow=number, generation=generation, remote_address=remote, **{
            "local_address": local, "remote_port": remote_port, "local_port": 80, "channel": 1, "hop_limit": 64,
            "next_hop": int.from_bytes(bytes.fromhex(PEER.replace(":", "")), "little"),
            "flags": OrderFlag.IPV6 if ipv6 else 0, **fields})

    def segment(self, payload: bytes = b"", *, ipv6: bool = False, vlan: bool = False, **tcp: Any) -> None:
        ip = IPv6(src=PEER_IP6, dst=OWN_IP6) if ipv6 else IP(src=PEER_IP, dst=OWN_IP, tos=1)
        link = Ether(dst=OWN, src=PEER) / Dot1Q(vlan=5) if vlan else Ether(dst=OWN, src=PEER)
        fields = {"sport": 4000, "dport": 80, "flags": "A", "seq": 1000, "ack": 2000, "window": 500, **tcp}
        self.receive(link / ip / TCP(**fields) / Raw(payload))

    def receive(self, packet: Packet) -> None:
        self.device.receive(bytes(packet).ljust(60, b"\0"))

    def post(self, **fields: int) -> None:
        """A socket operation without parameters."""
        slot = SOCKET_HEAD.pack(**{"slots": 1, "pieces": 1, **fields})
        at = TX - BASE + 32 * (self.sent_slots % 16)
        self.memory[at : at + 32] = slot
        self.sent_slots += 1
        self.device.write_doorbell(1, doorbell("TX_DOORBELL", 1) - DOORBELL_BASE - 0x1000,
                                   self.sent_slots.to_bytes(4, "little"))

    def completion(self) -> dict[str, int]:
        entry = self.memory[CQ - BASE + 32 * self.completed :][:32]
        assert entry[31] & 1, "no completion"
        self.completed += 1
        return (SOCKET_COMPLETION if entry[0] == CompletionKind.SOCKET else COMPLETION).unpack(bytes(entry))

    def data(self, offset: int, length: int) -> bytes:
        return bytes(self.memory[DATA - BASE + offset :][:length])


def packed(address: str) -> bytes:
    return ip_address(address).packed


@pytest.fixture
def bench() -> Bench:
    return Bench()


def with_flow(**fields: Any) -> Bench:
    bench = Bench()
    bench.add_flow(**fields)
    bench.done(ControlType.FLOW_ADD)
    return bench


def test_a_device_without_flows_has_no_port_and_says_so() -> None:
    config = NicConfig(name="plain")
    assert Device(config, lambda *_: None, lambda *_: False).control is None
    assert Feature.SOCKETS not in config.features
    assert Feature.SOCKETS in NicConfig(name="with", flows=16).features


def test_a_segment_of_a_flow_and_where_its_payload_goes() -> None:
    bench = with_flow()
    bench.segment(b"hello world", options=[("NOP", None), ("NOP", None), ("Timestamp", (77, 88))], flags="PA",
                  urgptr=9)
    kind, fields, further = bench.take()
    assert kind is ControlType.SEGMENT
    assert further == b""
    expected = {"flow": 3, "generation": 5, "length": 11, "sequence": 1000, "acknowledgement": 2000, "window": 500,
                "urgent": 9, "tcp_flags": 0x18, "ecn": 1, "payload_offset": 66, "flags": UpFlag.TIMESTAMPS,
                "ts_value": 77, "ts_echo": 88, "sack_blocks": 0, "option_bytes": 12, "segments": 1, "frame_bytes": 77}
    assert {name: fields[name] for name in expected} == expected
    handle = fields["handle"]
    bench.release(ControlType.PLACE, flow=3, generation=5, handle=handle, skip=6, length=5, key=KEY, offset=100)
    bench.release(ControlType.PLACE, flow=3, generation=5, handle=handle, skip=0, length=6, key=KEY, offset=200,
                  flags=OrderFlag.LAST | OrderFlag.DONE, tag=44)
    done = bench.done(ControlType.PLACE)
    assert (done["tag"], done["length"], done["flow"], done["generation"]) == (44, 6, 3, 5)
    assert bench.data(100, 6) == b"world\0"
    assert bench.data(200, 7) == b"hello \0"
    assert bench.port.handles_held == 0
    bench.quiet()


@pytest.mark.parametrize(("options", "blocks", "stamps"), [
    ([("NOP", None), ("NOP", None), ("SAck", (1, 2, 3, 4, 5, 6, 7, 8))], 4, False),
    ([("NOP", None), ("NOP", None), ("Timestamp", (1, 2)), ("NOP", None), ("NOP", None), ("SAck", (9, 10))], 1, True),
])
def test_shapes_of_options_that_are_decoded(options: list[Any], blocks: int, stamps: bool) -> None:
    bench = with_flow()
    bench.segment(options=options)
    kind, fields, further = bench.take()
    assert (kind, fields["sack_blocks"], bool(fields["flags"] & UpFlag.TIMESTAMPS)) == (
        ControlType.SEGMENT, blocks, stamps)
    edges = options[-1][1]
    sack = SEGMENT_SACK.unpack(further)
    assert [sack[f"{edge}_{n}"] for n in range(blocks) for edge in ("left", "right")] == list(edges)


@pytest.mark.parametrize("options", [
    [("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)],
    [("NOP", None), ("NOP", None), ("Timestamp", (1, 2)), ("MSS", 1460)],
    [("WScale", 3), ("NOP", None)],
])
def test_other_options_come_as_they_are(options: list[Any]) -> None:
    bench = with_flow()
    bench.segment(options=options)
    _, fields, further = bench.take()
    assert fields["flags"] == UpFlag.RAW_OPTIONS
    assert (fields["ts_value"], fields["ts_echo"], fields["sack_blocks"]) == (0, 0, 0)
    wanted = bytes(TCP(options=options))[20:]
    assert SEGMENT_OPTIONS.unpack(further)["options"].to_bytes(40, "little")[: len(wanted)] == wanted
    assert fields["option_bytes"] == len(wanted)


def test_ipv6_and_a_tag() -> None:
    bench = with_flow(ipv6=True)
    bench.segment(b"six", ipv6=True, vlan=True)
    kind, fields, _ = bench.take()
    assert kind is ControlType.SEGMENT
    assert fields["flags"] == UpFlag.IPV6 | UpFlag.VLAN
    assert (fields["payload_offset"], fields["length"]) == (14 + 4 + 40 + 20, 3)


def test_what_is_no_segment_of_a_flow(bench: Bench) -> None:
    bench.release(ControlType.LISTEN_ADD, flow=1, local_port=80, tag=6)
    assert bench.done(ControlType.LISTEN_ADD)["tag"] == 6
    cases = [
        (Ether(dst=OWN, src=PEER) / IP(src=PEER_IP, dst=OWN_IP) / TCP(sport=4000, dport=80, flags="S"),
         UnknownReason.SYN, 1),
        (Ether(dst=OWN, src=PEER) / IP(src=PEER_IP, dst=OWN_IP) / TCP(sport=4000, dport=81, flags="A") / Raw(b"x" * 99),
         UnknownReason.NO_FLOW, NO_LISTENER),
        (Ether(dst=OWN, src=PEER) / IP(src=PEER_IP, dst=OWN_IP) / TCP(sport=4000, dport=80, chksum=1),
         UnknownReason.CHECKSUM, NO_LISTENER),
        (Ether(dst="ff:ff:ff:ff:ff:ff", src=PEER) / ARP(pdst=OWN_IP), UnknownReason.NOT_TCP, NO_LISTENER),
        (Ether(dst=OWN, src=PEER) / IP(src=PEER_IP, dst=OWN_IP) / UDP(sport=1, dport=80), UnknownReason.NOT_TCP,
         NO_LISTENER),
    ]
    for packet, reason, listener in cases:
        bench.receive(packet)
        kind, fields, further = bench.take()
        frame = bytes(packet).ljust(60, b"\0")
        assert (kind, fields["reason"], fields["listener"], fields["flow"]) == (
            ControlType.UNKNOWN, reason, listener, NO_FLOW)
        assert further == b""
        assert fields["frame"].to_bytes(128, "little") == frame[:128].ljust(128, b"\0")
        assert fields["frame_bytes"] == len(frame)
        if packet.haslayer(TCP):
            assert fields["remote_address"].to_bytes(16, "little")[:4] == packed(PEER_IP)
            assert (fields["remote_port"], fields["local_port"]) == (4000, packet[TCP].dport)
        bench.release(ControlType.DROP, handle=fields["handle"])
    bench.quiet()
    assert bench.port.counters["control_drops"] == len(cases)


def test_listeners_that_are_there_already_or_find_no_place() -> None:
    bench = Bench(listeners=16)
    for number, (port, status) in enumerate([
            (80, DoneStatus.OK), (80, DoneStatus.BAD), (80 + 16, DoneStatus.OK), (80 + 32, DoneStatus.OK)]):
        bench.release(ControlType.LISTEN_ADD, flow=number, local_port=port)
        bench.done(ControlType.LISTEN_ADD, status)
    bench.release(ControlType.LISTEN_ADD, flow=1, local_port=80, flags=OrderFlag.IPV6)
    bench.done(ControlType.LISTEN_ADD)
    bench.release(ControlType.LISTEN_ADD, flow=4, local_port=80, local_address=7)
    found = bench.take()[1]["status"]
    bench.release(ControlType.LISTEN_ADD, flow=5, local_port=80, local_address=8)
    assert DoneStatus.FULL in (found, bench.take()[1]["status"])
    bench.release(ControlType.LISTEN_ADD, flow=16, local_port=1)
    bench.done(ControlType.LISTEN_ADD, DoneStatus.BAD)
    bench.release(ControlType.LISTEN_DEL, flow=9)
    bench.done(ControlType.LISTEN_DEL, DoneStatus.BAD)


def test_without_rest_the_others_go_to_their_channels(bench: Bench) -> None:
    bench.device.write_register(register("CONTROL_ENABLE"), ControlEnable.FLOWS)
    bench.segment(dport=81)
    bench.quiet()
    assert bench.device.counters["rx_no_buffer"] == 1
    bench.add_flow()
    bench.done(ControlType.FLOW_ADD)
    bench.segment()
    assert bench.take()[0] is ControlType.SEGMENT


def test_passing_a_frame_on() -> None:
    bench = with_flow()
    bench.memory[RX - BASE : RX - BASE + 16] = RECEIVE_SLOT.pack(key=KEY, offset=0x400, length=2048, buffer_id=7)
    bench.device.write_doorbell(1, 4, (1).to_bytes(4, "little"))
    bench.device.advance(1000)
    bench.segment(b"to the host")
    _, fields, _ = bench.take()
    bench.device.advance(2000)
    bench.release(ControlType.PASS, handle=fields["handle"], channel=1)
    entry = bench.completion()
    assert entry["timestamp"] == 1000
    assert (entry["kind"], entry["tag"], entry["status"]) == (CompletionKind.RECEIVE, 7, Status.OK)
    assert bench.data(0x400, entry["length"]).endswith(b"to the host")
    assert bench.device.counters["rx_frames"] == 1


def test_orders_with_an_old_generation_are_refused_and_counted() -> None:
    bench = with_flow()
    bench.segment(b"data")
    _, fields, _ = bench.take()
    bench.release(ControlType.PLACE, flow=3, generation=4, handle=fields["handle"], length=4, key=KEY,
                  flags=OrderFlag.LAST)
    bench.done(ControlType.PLACE, DoneStatus.STALE)
    assert bench.data(0, 4) == bytes(4)
    assert bench.port.handles_held == 0, "a PLACE with LAST ends its handle whatever happens"
    assert bench.emit(flow=3, generation=4, tcp_flags=0x10) == []
    bench.done(ControlType.EMIT, DoneStatus.STALE)
    bench.release(ControlType.FLOW_DEL, flow=3, generation=4)
    bench.done(ControlType.FLOW_DEL, DoneStatus.STALE)
    bench.release(ControlType.FLOW_DEL, flow=3, generation=5)
    bench.done(ControlType.FLOW_DEL)
    bench.segment(b"late")
    assert bench.take()[0] is ControlType.UNKNOWN
    assert bench.port.counters["control_stale"] == 3


def test_each_handle_ends_once() -> None:
    bench = with_flow()
    bench.segment(b"data")
    handle = bench.take()[1]["handle"]
    bench.release(ControlType.DROP, handle=handle)
    for kind in (ControlType.DROP, ControlType.PASS, ControlType.PLACE):
        bench.release(kind, flow=3, generation=5, handle=handle, **({"length": 4} if kind is ControlType.PLACE else {}))
        bench.done(kind, DoneStatus.BAD)
    assert bench.port.counters["control_refused"] == 3


@pytest.mark.parametrize(("changes", "status"), [
    ({"length": 5}, DoneStatus.BAD), ({"skip": 1}, DoneStatus.BAD), ({"length": 0}, DoneStatus.BAD),
    ({"key": KEY + 1}, DoneStatus.KEY), ({"offset": 0x8000 - 3}, DoneStatus.KEY), ({"flow": 2}, DoneStatus.STALE),
    ({"offset": 0x100}, DoneStatus.BUS),
])
def test_places_that_are_refused_write_nothing(changes: dict[str, int], status: DoneStatus) -> None:
    bench = with_flow()
    bench.broken = {DATA + 0x102}
    bench.segment(b"data")
    handle = bench.take()[1]["handle"]
    before = bytes(bench.memory)
    bench.release(ControlType.PLACE, **{"flow": 3, "generation": 5, "handle": handle, "length": 4, "key": KEY, "tag": 1,
                                        "offset": 0, **changes})
    assert bench.done(ControlType.PLACE, status)["tag"] == 1
    assert bytes(bench.memory) == before
    assert bench.port.handles_held == 1
    bench.release(ControlType.DROP, handle=handle)
    bench.quiet()


def test_a_handle_of_one_flow_is_not_placed_by_another() -> None:
    bench = with_flow()
    bench.add_flow(4, 0, remote_port=4001)
    bench.done(ControlType.FLOW_ADD)
    bench.segment(b"data")
    handle = bench.take()[1]["handle"]
    bench.release(ControlType.PLACE, flow=4, generation=0, handle=handle, length=4, key=KEY)
    bench.done(ControlType.PLACE, DoneStatus.BAD)


def test_flows_that_are_there_already_or_find_no_place() -> None:
    bench = with_flow()
    bench.add_flow(3, 6, remote_port=5)
    bench.done(ControlType.FLOW_ADD, DoneStatus.BAD)
    bench.add_flow(4, 6)
    bench.done(ControlType.FLOW_ADD, DoneStatus.BAD)
    bench.add_flow(16, 0, remote_port=5)
    bench.done(ControlType.FLOW_ADD, DoneStatus.BAD)
    # Four places to a bucket, two tables: of many keys some find both buckets full, none before 9 have the same hash.
    small = Bench(flows=16)
    statuses = []
    for number in range(16):
        small.add_flow(number, 0, remote_port=1 + number)
        statuses.append(small.take()[1]["status"])
    assert set(statuses) <= {DoneStatus.OK, DoneStatus.FULL}
    assert statuses.count(DoneStatus.OK) == small.port.flows >= 14


@pytest.mark.parametrize("sizes", [{"control_handles": 16}, {"control_cells": 36}, {"control_slots": 16}])
def test_frames_are_dropped_at_admission_whole_and_counted(sizes: dict[str, int]) -> None:
    bench = Bench(**sizes)
    bench.add_flow()
    bench.done(ControlType.FLOW_ADD)
    sent = 60
    for n in range(sent):
        bench.segment(bytes([n]) * 600, seq=n)
    name, room = {"control_handles": ("control_no_handle", 16), "control_cells": ("control_no_cell", 12),
                  "control_slots": ("control_no_slot", 16)}[next(iter(sizes))]
    assert bench.port.counters[name] == sent - room
    assert bench.port.counters["control_segments"] == bench.port.waiting == room
    handles = []
    for n in range(room):
        _, fields, _ = bench.take()
        assert fields["sequence"] == n, "in order of arrival"
        handles.append(fields["handle"])
    assert len(set(handles)) == room
    for handle in handles:
        bench.release(ControlType.DROP, handle=handle)
    bench.segment(b"there is room again")
    assert bench.take()[0] is ControlType.SEGMENT


def test_emitting_a_large_segment_is_what_scapy_makes_of_it() -> None:
    rng = random.Random(1)
    data = rng.randbytes(0x3000)
    bench = with_flow(timestamp_offset=1_000_000, traffic_class=0x20)
    bench.memory[DATA - BASE : DATA - BASE + len(data)] = data
    bench.device.advance(3 << 18)
    frames = bench.emit(
        flow=3, generation=5, length=3500, pieces=2, window=777, mss=1448, sequence=0xFFFF_FF00, acknowledgement=5,
        ts_echo=123, tcp_flags=0x99, ecn=2, key_0=KEY, offset_0=0x100, length_0=1000, key_1=KEY, offset_1=0x1000,
        length_1=2500, flags=OrderFlag.TIMESTAMP | OrderFlag.DONE, tag=9)
    payload = data[0x100 : 0x100 + 1000] + data[0x1000 : 0x1000 + 2500]
    sequence = 0xFFFF_FF00
    for number, frame in enumerate(frames):
        part = payload[number * 1448 : (number + 1) * 1448]
        flags = 0x10 | (0x80 if number == 0 else 0) | (0x09 if number == 2 else 0)
        wanted = (Ether(src=OWN, dst=PEER) / IP(src=OWN_IP, dst=PEER_IP, id=number, flags="DF", ttl=64, tos=0x22)
                  / TCP(sport=80, dport=4000, seq=sequence, ack=5, window=777, flags=flags,
                        options=[("NOP", None), ("NOP", None), ("Timestamp", (1_000_003, 123))]) / Raw(part))
        assert bytes(frame) == bytes(wanted)
        sequence = sequence + len(part) & 0xFFFF_FFFF
    assert len(frames) == 3
    done = bench.done(ControlType.EMIT)
    assert (done["tag"], done["length"]) == (9, 3500)
    assert bench.port.counters["control_emits"] == 1


def test_emitting_over_ipv6_with_a_tag_options_and_eight_pieces() -> None:
    bench = with_flow(ipv6=True, flags=OrderFlag.IPV6 | OrderFlag.VLAN, vlan_tci=0x2005, flow_label=0x54321)
    data = bytes(range(256))
    bench.memory[DATA - BASE : DATA - BASE + 256] = data
    pieces = [(n * 20, 10 + n) for n in range(8)]
    options = bytes((1, 1, 5, 10)) + bytes(range(8))
    named = {f"{name}_{n}": value for n in range(2) for name, value in zip(
        ("key", "offset", "length"), (KEY, *pieces[n]), strict=True)}
    units = bytearray(options.ljust(64, b"\0"))
    for n in range(2, 8):
        units += pieces[n][0].to_bytes(5, "little") + KEY.to_bytes(3, "little") + pieces[n][1].to_bytes(3, "little")
        units += bytes(5)
    frames = bench.emit(bytes(units), flow=3, generation=5, length=sum(length for _, length in pieces), pieces=8,
                        mss=1400, tcp_flags=0x10, option_words=3, **named)
    payload = b"".join(data[offset : offset + length] for offset, length in pieces)
    wanted = (Ether(src=OWN, dst=PEER) / Dot1Q(prio=1, vlan=5) / IPv6(src=OWN_IP6, dst=PEER_IP6, fl=0x54321, hlim=64)
              / TCP(sport=80, dport=4000, seq=0, ack=0, window=0, flags="A",
                    options=[("NOP", None), ("NOP", None), ("SAck", (0x10203, 0x4050607))]) / Raw(payload))
    assert [bytes(frame) for frame in frames] == [bytes(wanted)]
    bench.quiet()


@pytest.mark.parametrize(("changes", "status", "frames", "read"), [
    ({"length_0": 2001}, DoneStatus.BAD, 0, 0), ({"length_0": 0, "length": 0}, DoneStatus.BAD, 0, 0),
    ({"pieces": 9}, DoneStatus.BAD, 0, 0), ({"mss": 31}, DoneStatus.BAD, 0, 0), ({"pieces": 3}, DoneStatus.BAD, 0, 0),
    ({"mss": 9001}, DoneStatus.BAD, 0, 0), ({"option_words": 11}, DoneStatus.BAD, 0, 0),
    ({"key_0": KEY ^ 1 << 12}, DoneStatus.KEY, 0, 0), ({"offset_0": 0x8000 - 1999}, DoneStatus.KEY, 0, 0),
    ({"offset_0": 0x4000}, DoneStatus.BUS, 2, 1024),
])
def test_emits_that_are_refused(changes: dict[str, int], status: DoneStatus, frames: int, read: int) -> None:
    bench = with_flow()
    bench.broken = {DATA + 0x4000 + 1100}
    sent = bench.emit(**{"flow": 3, "generation": 5, "length": 2000, "pieces": 1, "mss": 500, "key_0": KEY,
                         "offset_0": 0, "length_0": 2000, "tag": 3, **changes})
    assert len(sent) == frames
    done = bench.done(ControlType.EMIT, status)
    assert (done["tag"], done["length"]) == (3, read)


def test_the_end_of_a_flows_emits() -> None:
    bench = with_flow()
    assert bench.emit(flow=3, generation=5, flags=OrderFlag.LAST | OrderFlag.DONE, tag=2) == []
    assert bench.done(ControlType.EMIT)["tag"] == 2


def test_a_raw_frame_with_payload_from_memory(bench: Bench) -> None:
    bench.memory[DATA - BASE : DATA - BASE + 5] = b"hello"
    wanted = bytes(Ether(src=OWN, dst=PEER) / IP(src=OWN_IP, dst=PEER_IP) / TCP(sport=80, dport=9, flags="PA")
                   / Raw(b"hello"))
    header = bytearray(wanted[:54])
    header[24:26] = bytes(2)
    pseudo = packed(OWN_IP) + packed(PEER_IP) + bytes((0, 6, 0, 25))
    seed = sum(int.from_bytes(pseudo[n : n + 2], "big") for n in range(0, 12, 2))
    header[50:52] = ((seed & 0xFFFF) + (seed >> 16)).to_bytes(2, "big")
    frames = bench.emit(bytes(header), ControlType.RAW, flow=NO_FLOW, header_bytes=54, l3_offset=14, l4_offset=34,
                        checksum_offset=50, length=5, channel=1, key_0=KEY,
                        flags=OrderFlag.IPV4_CHECKSUM | OrderFlag.L4_CHECKSUM)
    assert [bytes(frame) for frame in frames] == [wanted]
    assert bench.emit(bytes(header), ControlType.RAW, flow=NO_FLOW, header_bytes=13) == []
    bench.done(ControlType.RAW, DoneStatus.BAD)


def test_emits_need_credits_which_come_back_with_whatever_comes_up() -> None:
    bench = with_flow()
    credits = bench.config.emit_credits
    for n in range(credits // 2):
        bench.quiet()
        bench.emit(flow=3, generation=5, tcp_flags=0x10, sequence=n)
    kind, fields, _ = bench.take()
    assert (kind, fields["emit_credits"]) == (ControlType.TICK, credits // 2)
    bench.emit(flow=3, generation=5, tcp_flags=0x10)
    bench.segment()
    assert bench.take()[1]["emit_credits"] == 1
    bench.segment()  # nobody takes it, so that the next credits have nothing to come with
    for n in range(credits):
        bench.emit(flow=3, generation=5, tcp_flags=0x10, sequence=n)
    with pytest.raises(ValueError, match="EMIT without a credit"):
        bench.emit(flow=3, generation=5, tcp_flags=0x10)


def test_a_tick_as_long_as_the_port_is_enabled(bench: Bench) -> None:
    assert bench.device.next_deadline() == 1 << 17
    bench.device.advance((5 << 39) + (1 << 17) + 300)
    kind, fields, _ = bench.take()
    assert kind is ControlType.TICK
    assert (fields["time"], fields["epoch"]) == ((1 << 10) + 2, 5)
    assert bench.device.next_deadline() == (5 << 39) + (2 << 17)
    bench.device.write_register(register("CONTROL_ENABLE"), 0)
    assert bench.device.next_deadline() is None


def test_a_socket_operation_and_its_completion(bench: Bench) -> None:
    bench.post(opcode=Opcode.SOCKET_SEND, tag=0x1234, socket=7, key=KEY, offset=0x55, length=1 << 20, consumed=99,
               flags=SocketFlag.FIN)
    kind, fields, further = bench.take()
    assert kind is ControlType.OP
    assert further == b""
    expected = {"channel": 1, "operation": Opcode.SOCKET_SEND, "job": 0x1234, "socket": 7, "key": KEY, "offset": 0x55,
                "length": 1 << 20, "consumed": 99, "socket_flags": SocketFlag.FIN}
    assert {name: fields[name] for name in expected} == expected
    bench.release(ControlType.COMPLETE, flow=NO_FLOW, channel=1, job=0x1234, status=SocketStatus.RESET, length=12,
                  result=0xABCDEF, socket=7, remote_port=3, local_port=4)
    entry = bench.completion()
    assert {name: entry[name] for name in ("kind", "tag", "status", "length", "result", "socket", "remote_port")} == {
        "kind": CompletionKind.SOCKET, "tag": 0x1234, "status": SocketStatus.RESET, "length": 12, "result": 0xABCDEF,
        "socket": 7, "remote_port": 3}
    bench.release(ControlType.COMPLETE, channel=2, job=1)
    bench.done(ControlType.COMPLETE, DoneStatus.BAD)


def test_socket_operations_that_the_device_refuses_by_itself(bench: Bench) -> None:
    bench.post(opcode=Opcode.SOCKET_SEND, tag=1, slots=1, pieces=2)
    bench.quiet()
    entry = bench.completion()
    assert (entry["kind"], entry["status"], entry["tag"]) == (CompletionKind.SEND, Status.BAD_DESCRIPTOR, 1)


def test_operations_wait_in_their_ring_when_nobody_takes_them() -> None:
    bench = Bench(control_slots=16)
    posted = 0
    while posted - bench.port.waiting == 0:
        bench.post(opcode=Opcode.SOCKET_SEND, tag=posted, length=1)
        posted += 1
    assert bench.device.read_register(channel_register("TX_INDEX", 1)) == posted - 1
    jobs = [bench.take()[1]["job"] for _ in range(posted)]
    assert jobs == list(range(posted)), "none is lost, and all come in order"


def test_orders_that_are_none(bench: Bench) -> None:
    with pytest.raises(ValueError, match="EMIT is no order of the release stream"):
        bench.port.release(pack_message(ControlType.EMIT))
    with pytest.raises(ValueError, match="DROP is no order of the emit stream"):
        bench.port.emit(pack_message(ControlType.DROP))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_orders_are_carried_out_or_refused_and_nothing_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    bench = Bench(control_handles=16, emit_credits=8)
    kinds = [kind for kind in ControlType if kind >= ControlType.PLACE]
    credits, held, answered = 8, set[int](), 0
    for _ in range(800):
        bench.segment(rng.randbytes(rng.randrange(300)), seq=rng.randrange(1 << 32), sport=rng.randrange(4000, 4004))
        kind = rng.choice(kinds)
        layout = LAYOUT_OF[kind]
        fields = {name: rng.choice((0, 1, 2, 3, 14, 40, 80, 1400, rng.randrange(1 << 20))) % (1 << field.width)
                  for name, field in layout.fields.items() if name not in ("type", "units", "version")}
        fields |= {"flow": rng.choice((0, 1, 2, 3, 99, NO_FLOW)), "generation": rng.choice((0, 0, 0, 1))}
        fields |= {name: KEY for name in fields if name.startswith("key") and rng.random() < 0.7}
        if held and "handle" in fields and rng.random() < 0.7:
            fields["handle"] = rng.choice(sorted(held))
        if kind is ControlType.FLOW_ADD:
            fields |= {"remote_address": int.from_bytes(packed(PEER_IP), "little"), "channel": 1,
                       "local_address": int.from_bytes(packed(OWN_IP), "little"), "local_port": 80,
                       "remote_port": rng.randrange(4000, 4004), "flags": fields["flags"] & ~OrderFlag.IPV6}
        further = rng.randbytes(64 * rng.randrange(3)) if kind in (ControlType.EMIT, ControlType.RAW) else b""
        if kind in (ControlType.EMIT, ControlType.RAW):
            if not credits:
                continue
            credits -= 1
            if rng.random() < 0.5:
                whole = {"header_bytes": 60} if kind is ControlType.RAW else {"pieces": 0, "option_words": 1}
                further, fields = bytes(64), fields | {"length": 0, "flags": 0, **whole}
            bench.port.emit(pack_message(kind, further, **fields))
        else:
            bench.port.release(pack_message(kind, **fields))
        while bench.port.waiting:
            up, told, _ = bench.take()
            credits += told["emit_credits"]
            answered += up is ControlType.DONE
            if up in (ControlType.SEGMENT, ControlType.UNKNOWN):
                held.add(told["handle"])
        held &= set(bench.port._held)
        assert len(held) == bench.port.handles_held
    assert answered > 200
    assert bench.port.counters["control_placed"] > 0
    assert bench.port.counters["control_emits"] > 0
    for handle in sorted(held):
        bench.release(ControlType.DROP, handle=handle)
    assert bench.port.handles_held == 0
    assert bench.port._free_cells == bench.config.control_cells


def test_counters_stand_behind_the_others() -> None:
    bench = with_flow()
    bench.segment(b"x")
    bench.device.write_register(register("SNAPSHOT"), 1)
    names = [counter.name for counter in bench.config.counters]
    address = COUNTERS_BASE + 8 * names.index("control_segments")
    assert bench.device.read_register(address) == 1
