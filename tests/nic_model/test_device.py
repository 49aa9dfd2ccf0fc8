"""The device model against the contract, rule by rule; scapy says what the frames must be."""

from __future__ import annotations

import itertools
import logging
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment  # noqa: E402
from scapy.layers.l2 import Dot1Q, Ether  # noqa: E402

from nic_model.checksum import ones_sum  # noqa: E402
from nic_model.contract import (  # noqa: E402
    COMPLETION,
    COUNTERS,
    COUNTERS_BASE,
    DOORBELL_BASE,
    MAGIC,
    MAX_MODERATION_FRAMES,
    RECEIVE_SLOT,
    SUBMISSION_HEAD,
    ChannelCommand,
    ChannelError,
    ChannelState,
    CompletionKind,
    KeyRight,
    NicConfig,
    Opcode,
    OperationMask,
    RxFilter,
    RxInfo,
    SendFlag,
    Status,
    channel_register,
    doorbell,
    key_register,
    make_key,
    register,
    slots_needed,
    vector_register,
)
from nic_model.contract.descriptors import PIECE  # noqa: E402
from nic_model.device import Device  # noqa: E402
from nic_model.events import Moderation, Vector  # noqa: E402

CONFIG = NicConfig(name="test", channels=4, vectors=2, keys=16)
BASE = 0x7_0000_0000
SIZE = 1 << 21
TX, RX, CQ = BASE, BASE + 0x1000, BASE + 0x2000
DATA = BASE + 0x10_0000
DATA_BYTES = 1 << 18
KEY = make_key(3, 7)
OWN = bytes.fromhex("020000000001")
PEER = "02:00:00:00:00:02"
OWN_TEXT = "02:00:00:00:00:01"
ALL_OPERATIONS = OperationMask.SEND_FRAME | OperationMask.SEND_SEGMENTED | OperationMask.RECEIVE_RAW


@dataclass
class Bench:
    """A device, its memory, and channel 0 running with one key over `DATA`."""

    log2: int = 4
    operations: OperationMask = ALL_OPERATIONS
    memory: bytearray = field(default_factory=lambda: bytearray(SIZE))
    broken: set[int] = field(default_factory=set)
    accesses: list[tuple[str, int, int]] = field(default_factory=list)
    tx: int = 0
    rx: int = 0
    cq: int = 0

    def __post_init__(self) -> None:
        self.device = Device(CONFIG, self.read, self.write)
        self.set("MAC_ADDRESS_LO", int.from_bytes(OWN[:4], "little"))
        self.set("MAC_ADDRESS_HI", int.from_bytes(OWN[4:], "little"))
        self.set("RX_ENABLE", 1)
        self.enable()
        self.store_key(3, DATA, DATA_BYTES, generation=7)

    def read(self, address: int, length: int) -> bytes | None:
        self.accesses.append(("read", address, length))
        if any(address <= bad < address + length for bad in self.broken):
            return None
        return bytes(self.memory[address - BASE : address - BASE + length])

    def write(self, address: int, data: bytes) -> bool:
        self.accesses.append(("write", address, len(data)))
        if any(address <= bad < address + len(data) for bad in self.broken):
            return False
        self.memory[address - BASE : address - BASE + len(data)] = data
        return True

    def set(self, name: str, value: int) -> None:
        self.device.write_register(register(name), value)

    def enable(self, channel: int = 0, **changes: int) -> None:
        values = {"CHANNEL_OPERATIONS": int(self.operations), "TX_BASE_LO": TX & 0xFFFF_FFFF, "TX_BASE_HI": TX >> 32,
                  "TX_LOG2": self.log2, "RX_BASE_LO": RX & 0xFFFF_FFFF, "RX_BASE_HI": RX >> 32,
                  "RX_LOG2": self.log2, "CQ_BASE_LO": CQ & 0xFFFF_FFFF, "CQ_BASE_HI": CQ >> 32,
                  "CQ_LOG2": self.log2 + 1, "CHANNEL_VECTOR": 1} | changes
        for name, value in values.items():
            self.device.write_register(channel_register(name, channel), value)
        self.command(ChannelCommand.ENABLE, channel)
        self.tx = self.rx = self.cq = 0

    def command(self, command: ChannelCommand, channel: int = 0) -> None:
        self.device.write_register(channel_register("CHANNEL_CONTROL", channel), command)

    def store_key(self, index: int, address: int, length: int, *, generation: int = 0, owner: int = 0,
                  rights: KeyRight = KeyRight.READ | KeyRight.WRITE, valid: bool = True) -> None:
        for name, value in (("KEY_ADDRESS_LO", address & 0xFFFF_FFFF), ("KEY_ADDRESS_HI", address >> 32),
                            ("KEY_LENGTH_LO", length & 0xFFFF_FFFF), ("KEY_LENGTH_HI", length >> 32),
                            ("KEY_COMMIT", generation | rights << 12 | owner << 16 | valid << 31)):
            self.device.write_register(key_register(name, index), value)

    def put_data(self, data: bytes, offset: int = 0) -> None:
        self.memory[DATA - BASE + offset : DATA - BASE + offset + len(data)] = data

    def bell(self, name: str, index: int, channel: int = 0) -> None:
        page, offset = divmod(doorbell(name, channel) - DOORBELL_BASE, 4096)
        self.device.write_doorbell(page, offset, (index & 0xFFFF).to_bytes(4, "little"))

    def put(self, slots: bytes) -> None:
        """Write slots at the submission producer, wrapping."""
        for start in range(0, len(slots), 32):
            at = TX - BASE + self.tx % (1 << self.log2) * 32
            self.memory[at : at + 32] = slots[start : start + 32]
            self.tx += 1

    def send(self, slots: bytes) -> dict[str, int]:
        """Submit one descriptor and return its completion."""
        self.put(slots)
        self.bell("TX_DOORBELL", self.tx)
        return self.completion()

    def post(self, length: int = 2048, offset: int = 0, key: int = KEY, buffer_id: int = 77) -> None:
        at = RX - BASE + self.rx % (1 << self.log2) * 16
        self.memory[at : at + 16] = RECEIVE_SLOT.pack(offset=offset, key=key, length=length, buffer_id=buffer_id)
        self.rx += 1
        self.bell("RX_DOORBELL", self.rx)

    def has_completion(self) -> bool:
        at = CQ - BASE + self.cq % (2 << self.log2) * 32
        return self.memory[at + 31] & 1 == (self.cq >> self.log2 + 1 & 1 ^ 1)

    def completion(self) -> dict[str, int]:
        assert self.has_completion()
        at = CQ - BASE + self.cq % (2 << self.log2) * 32
        self.cq += 1
        return COMPLETION.unpack(self.memory[at : at + 32])

    def status(self, channel: int = 0) -> tuple[int, int]:
        value = self.device.read_register(channel_register("CHANNEL_STATUS", channel))
        return value & 0xFF, value >> 8

    def counters(self) -> dict[str, int]:
        self.set("SNAPSHOT", 1)
        return {c.name: self.device.read_register(COUNTERS_BASE + 8 * n)
                | self.device.read_register(COUNTERS_BASE + 8 * n + 4) << 32 for n, c in enumerate(COUNTERS)}


def descriptor(inline: bytes = b"", named: list[tuple[int, int, int]] | None = None, **head: int) -> bytes:
    """Slots of a descriptor; `named` pieces are (key, offset, length); head fields as given, even if wrong."""
    pieces = named or []
    fields: dict[str, int] = {"opcode": Opcode.SEND_FRAME, "slots": slots_needed(len(inline), len(pieces)),
                              "flags": SendFlag.COMPLETE, "tag": 0x1234, "inline_bytes": len(inline),
                              "pieces": len(pieces)} | head
    packed = [PIECE.pack(key=key, offset=offset, length=length) for key, offset, length in pieces]
    body = SUBMISSION_HEAD.pack(**fields) + (packed[0] if packed else bytes(16))
    body += inline + bytes(-len(inline) % 32) + b"".join(packed[1:])
    return body + bytes(-len(body) % 32)


def tcp_template(flags: str = "PA", sequence: int = 1000, ip6: bool = False, tagged: bool = False,
                 identification: int = 0xFFFE) -> Any:
    """Headers as scapy builds them, for a segmented send."""
    link = Ether(src=OWN_TEXT, dst=PEER)
    if tagged:
        link = link / Dot1Q(vlan=5)
    network = (IPv6(src="fd00::1", dst="fd00::2") if ip6
               else IP(src="10.0.0.1", dst="10.0.0.2", id=identification, flags="DF"))
    return link / network / TCP(sport=80, dport=4000, seq=sequence, ack=77, flags=flags, window=500)


def segmented(template: Any, pieces: list[tuple[int, int, int]], mss: int, **changes: int) -> bytes:
    """A SEND_SEGMENTED descriptor as the contract wants it, made from whole headers."""
    whole = template.__class__(bytes(template))
    ip6 = IPv6 in whole
    l3 = len(whole) - len(whole[IPv6 if ip6 else IP])
    l4 = len(whole) - len(whole[TCP])
    header = bytearray(bytes(whole))
    addresses = header[l3 + 8 : l3 + 40] if ip6 else header[l3 + 12 : l3 + 20]
    seed = sum(int.from_bytes(addresses[n : n + 2], "big") for n in range(0, len(addresses), 2)) + 6
    while seed >> 16:
        seed = (seed & 0xFFFF) + (seed >> 16)
    header[l4 + 16 : l4 + 18] = seed.to_bytes(2, "big")
    if ip6:
        header[l3 + 4 : l3 + 6] = bytes(2)
    else:
        header[l3 + 2 : l3 + 4] = bytes(2)
        header[l3 + 10 : l3 + 12] = bytes(2)
    fields: dict[str, int] = {"opcode": Opcode.SEND_SEGMENTED, "mss": mss, "l3_offset": l3, "l4_offset": l4,
                              "checksum_offset": l4 + 16,
                              "flags": SendFlag.COMPLETE | (SendFlag.IPV6 if ip6 else 0)} | changes
    return descriptor(bytes(header), pieces, **fields)


# ---------------------------------------------------------------------------------------------- send


def test_frame_of_inline_bytes_and_pieces() -> None:
    bench = Bench()
    bench.put_data(bytes(range(200)))
    done = bench.send(descriptor(b"\x02" * 20, [(KEY, 10, 30), (KEY, 100, 50), (KEY, 0, 1)]))
    data = bytes(range(200))
    assert bench.device.sent == [b"\x02" * 20 + data[10:40] + data[100:150] + data[:1]]
    assert done == {"kind": CompletionKind.SEND, "status": Status.OK, "tag": 0x1234, "length": 81, "offset": 0,
                    "ring_index": slots_needed(20, 3), "info": 0, "timestamp": 0, "segments": 1, "mss": 0, "more": 0,
                    "checksum": 0, "phase": 1}


def test_no_completion_unless_asked_for_but_errors_always() -> None:
    bench = Bench()
    bench.put(descriptor(b"\x02" * 60, flags=0))
    bench.bell("TX_DOORBELL", bench.tx)
    assert len(bench.device.sent) == 1
    assert not bench.has_completion()
    assert bench.send(descriptor(b"\x02" * 13, flags=0))["status"] == Status.BAD_DESCRIPTOR


@pytest.mark.parametrize("ip6", [False, True])
@pytest.mark.parametrize("layer", [TCP, UDP])
def test_checksum_insertion_equals_scapy(ip6: bool, layer: Any) -> None:
    network = IPv6(src="fd00::1", dst="fd00::2") if ip6 else IP(src="10.1.2.3", dst="10.9.8.7")
    expected = bytes(Ether(src=OWN_TEXT, dst=PEER) / network / layer(sport=7, dport=9) / bytes(range(101)))
    l4 = 54 if ip6 else 34
    field_at = l4 + (16 if layer is TCP else 6)
    frame = bytearray(expected)
    addresses = frame[22:54] if ip6 else frame[26:34]
    protocol = 6 if layer is TCP else 17
    seed = sum(int.from_bytes(addresses[n : n + 2], "big") for n in range(0, len(addresses), 2))
    seed += protocol + len(frame) - l4
    while seed >> 16:
        seed = (seed & 0xFFFF) + (seed >> 16)
    frame[field_at : field_at + 2] = seed.to_bytes(2, "big")
    flags = SendFlag.COMPLETE | SendFlag.L4_CHECKSUM | (SendFlag.UDP if layer is UDP else 0)
    if not ip6:
        frame[24:26] = bytes(2)
        flags |= SendFlag.IPV4_CHECKSUM
    bench = Bench()
    bench.put_data(bytes(frame[40:]))
    done = bench.send(descriptor(bytes(frame[:40]), [(KEY, 0, len(frame) - 40)], flags=flags, l3_offset=14,
                                 l4_offset=l4, checksum_offset=field_at))
    assert done["status"] == Status.OK
    assert bench.device.sent == [expected]


def test_udp_checksum_of_zero_is_sent_as_ones() -> None:
    bench = Bench()
    frame = bytearray(60)  # a seed that makes the sum 0xffff and its complement 0
    frame[40:42] = b"\xff\xff"
    for flags, sent in ((SendFlag.L4_CHECKSUM, b"\0\0"), (SendFlag.L4_CHECKSUM | SendFlag.UDP, b"\xff\xff")):
        bench.send(descriptor(bytes(frame), flags=flags | SendFlag.COMPLETE, l4_offset=34, checksum_offset=40))
        assert bench.device.sent[-1][40:42] == sent


@pytest.mark.parametrize("ip6", [False, True])
@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize(("payload_bytes", "mss"), [(1, 1460), (1460, 1460), (1461, 1460), (5000, 536), (2000, 32)])
def test_segmentation_equals_scapy(ip6: bool, tagged: bool, payload_bytes: int, mss: int) -> None:
    bench = Bench()
    payload = random.Random(payload_bytes).randbytes(payload_bytes)
    bench.put_data(payload, 7)
    template = tcp_template("FPACE", sequence=0xFFFF_FF00, ip6=ip6, tagged=tagged)
    done = bench.send(segmented(template, [(KEY, 7, payload_bytes)], mss))
    expected = []
    starts = range(0, payload_bytes, mss)
    for number, start in enumerate(starts):
        flags = "AE" + ("FP" if start == starts[-1] else "") + ("C" if number == 0 else "")
        packet = tcp_template(flags, sequence=(0xFFFF_FF00 + start) % 2**32, ip6=ip6, tagged=tagged,
                              identification=(0xFFFE + number) % 2**16) / payload[start : start + mss]
        expected.append(bytes(packet))
    assert bench.device.sent == expected
    assert (done["status"], done["segments"], done["length"]) == (Status.OK, len(expected), payload_bytes)


def test_segmentation_over_many_pieces() -> None:
    bench = Bench(log2=5)
    payload = random.Random(4).randbytes(6000)
    bench.put_data(payload)
    cuts = [0, 1, 2, 600, 601, 2000, 5999, 6000]
    pieces = [(KEY, a, b - a) for a, b in itertools.pairwise(cuts)]
    bench.send(segmented(tcp_template(), pieces, 1000))
    assert b"".join(bytes(Ether(f)[TCP].payload) for f in bench.device.sent) == payload
    assert [Ether(f)[IP].id for f in bench.device.sent] == [0xFFFE, 0xFFFF, 0, 1, 2, 3]


def test_descriptor_wraps_round_the_ring() -> None:
    bench = Bench()
    for number in range(40):
        inline = bytes([number]) * 100
        assert bench.send(descriptor(inline))["ring_index"] == bench.tx
        assert bench.device.sent[-1] == inline
    assert bench.cq == 40  # two passes over the completion ring: the phase came round


GOOD = {"inline": b"\x02" * 60}
SEGMENT_HEAD = {"opcode": Opcode.SEND_SEGMENTED, "mss": 100, "l3_offset": 14, "l4_offset": 34, "checksum_offset": 50}
CHECKED = SendFlag.COMPLETE | SendFlag.L4_CHECKSUM
IP_CHECKED = SendFlag.COMPLETE | SendFlag.IPV4_CHECKSUM


@pytest.mark.parametrize(
    ("case", "status"),
    [
        ({**GOOD, "opcode": 0}, Status.BAD_OPCODE),
        ({**GOOD, "opcode": 0xFF}, Status.BAD_OPCODE),
        ({**GOOD, "opcode": Opcode.SOCKET_SEND}, Status.BAD_OPCODE),
        ({**GOOD, "slots": 2}, Status.BAD_DESCRIPTOR),
        ({**GOOD, "slots": 4}, Status.BAD_DESCRIPTOR),
        ({**GOOD, "inline_bytes": 200, "slots": 8}, Status.BAD_DESCRIPTOR),
        ({**GOOD, "pieces": 40, "slots": 16}, Status.BAD_DESCRIPTOR),
        ({"inline": b"\x02" * 13}, Status.BAD_DESCRIPTOR),
        ({"named": [(KEY, 0, 9015)]}, Status.BAD_DESCRIPTOR),
        ({"named": [(KEY, 0, 9014)]}, Status.OK),
        ({"named": [(KEY, 0, 60), (KEY, 0, 0)]}, Status.BAD_DESCRIPTOR),
        ({"named": [(KEY, 0, (1 << 20) + 1)]}, Status.BAD_DESCRIPTOR),
        ({**GOOD, "flags": CHECKED, "l4_offset": 33, "checksum_offset": 50}, Status.BAD_DESCRIPTOR),
        ({**GOOD, "flags": CHECKED, "l4_offset": 34, "checksum_offset": 51}, Status.BAD_DESCRIPTOR),
        ({**GOOD, "flags": CHECKED, "l4_offset": 34, "checksum_offset": 32}, Status.BAD_DESCRIPTOR),
        ({**GOOD, "flags": CHECKED, "l4_offset": 34, "checksum_offset": 58}, Status.OK),
        ({**GOOD, "flags": CHECKED, "l4_offset": 34, "checksum_offset": 60}, Status.BAD_DESCRIPTOR),
        ({**GOOD, "flags": IP_CHECKED, "l3_offset": 14, "l4_offset": 34}, Status.OK),
        ({**GOOD, "flags": IP_CHECKED, "l3_offset": 15, "l4_offset": 36}, Status.BAD_DESCRIPTOR),
        ({**GOOD, "flags": IP_CHECKED, "l3_offset": 14, "l4_offset": 32}, Status.BAD_DESCRIPTOR),
        ({**GOOD, "flags": IP_CHECKED, "l3_offset": 14, "l4_offset": 62}, Status.BAD_DESCRIPTOR),
        ({**GOOD, **SEGMENT_HEAD, "named": [(KEY, 0, 300)]}, Status.OK),
        ({**GOOD, **SEGMENT_HEAD}, Status.BAD_DESCRIPTOR),
        ({**GOOD, **SEGMENT_HEAD, "named": [(KEY, 0, 300)], "mss": 31}, Status.BAD_DESCRIPTOR),
        ({**GOOD, **SEGMENT_HEAD, "named": [(KEY, 0, 300)], "mss": 8955}, Status.BAD_DESCRIPTOR),
        ({**GOOD, **SEGMENT_HEAD, "named": [(KEY, 0, 300)], "mss": 8954}, Status.OK),
        ({**GOOD, **SEGMENT_HEAD, "named": [(KEY, 0, 300)], "l4_offset": 42}, Status.BAD_DESCRIPTOR),
        ({**GOOD, **SEGMENT_HEAD, "named": [(KEY, 0, 300)], "l3_offset": 16}, Status.BAD_DESCRIPTOR),
        ({**GOOD, **SEGMENT_HEAD, "named": [(KEY, 0, 300)], "checksum_offset": 60}, Status.BAD_DESCRIPTOR),
        ({**GOOD, **SEGMENT_HEAD, "named": [(KEY, 0, 300)], "flags": SendFlag.IPV6}, Status.BAD_DESCRIPTOR),
        ({**GOOD, **SEGMENT_HEAD, "named": [(KEY, 0, 1 << 20), (KEY, 0, 1)]}, Status.BAD_DESCRIPTOR),
        ({"named": [(make_key(4, 7), 0, 60)]}, Status.KEY_INVALID),
        ({"named": [(make_key(3, 6), 0, 60)]}, Status.KEY_INVALID),
        ({"named": [(make_key(4000, 7), 0, 60)]}, Status.KEY_INVALID),
        ({"named": [(make_key(5, 0), 0, 60)]}, Status.KEY_OWNER),
        ({"named": [(make_key(6, 0), 0, 60)]}, Status.KEY_RIGHTS),
        ({"named": [(KEY, DATA_BYTES - 59, 60)]}, Status.KEY_BOUNDS),
        ({"named": [(KEY, (1 << 40) - 1, 60)]}, Status.KEY_BOUNDS),
        ({"named": [(KEY, DATA_BYTES - 60, 60)]}, Status.OK),
        ({"named": [(KEY, 0, 60), (make_key(6, 0), 0, 60), (make_key(5, 0), 0, 60)]}, Status.KEY_RIGHTS),
    ],
)
def test_descriptor_checks(case: dict[str, Any], status: Status) -> None:
    bench = Bench()
    bench.store_key(5, DATA, 4096, owner=1)
    bench.store_key(6, DATA, 4096, rights=KeyRight.WRITE)
    head = dict(case)
    slots = descriptor(**head)
    slots = slots.ljust(head.get("slots", 0) * 32, b"\0")
    claimed = slots[1]
    bench.accesses.clear()
    done = bench.send(slots[: claimed * 32])
    assert done["status"] == status
    assert done["ring_index"] == claimed
    if status != Status.OK:
        assert (done["length"], done["segments"], bench.device.sent) == (0, 0, [])
        assert not [a for a in bench.accesses if a[1] >= DATA], "a refused descriptor must not touch its pieces"
        assert bench.counters()["tx_errors"] == 1
    assert bench.send(descriptor(b"\x05" * 60))["status"] == Status.OK, "the next descriptor must be found"


def test_operation_mask() -> None:
    bench = Bench(operations=OperationMask.SEND_SEGMENTED)
    assert bench.send(descriptor(b"\x02" * 60))["status"] == Status.NOT_PERMITTED
    assert bench.send(segmented(tcp_template(), [(KEY, 0, 10)], 100))["status"] == Status.OK
    bench = Bench(operations=OperationMask.SEND_FRAME)
    assert bench.send(segmented(tcp_template(), [(KEY, 0, 10)], 100))["status"] == Status.NOT_PERMITTED


@pytest.mark.parametrize("slots", [0, 17, 255, 4])
def test_truncated_descriptor_stops_the_channel(slots: int) -> None:
    bench = Bench()
    bench.put(descriptor(b"\x02" * 60)[:32].replace(b"\x01\x03", bytes([1, slots]), 1))
    bench.put(bytes(64))
    bench.bell("TX_DOORBELL", bench.tx)
    assert bench.status() == (ChannelState.ERROR, ChannelError.TRUNCATED_DESCRIPTOR)
    assert bench.device.read_register(register("ERROR_CHANNELS_LO")) == 1
    bench.bell("TX_DOORBELL", bench.tx + 1)
    assert bench.device.sent == []


def test_payload_bus_error_sends_what_came_before() -> None:
    bench = Bench()
    bench.put_data(bytes(5000))
    bench.broken.add(DATA + 2500)  # in the burst from 2304: bytes up to there are good
    done = bench.send(segmented(tcp_template(), [(KEY, 0, 5000)], 1000))
    assert (done["status"], done["segments"], done["length"]) == (Status.BUS_ERROR, 2, 2000)
    assert [len(Ether(f)[TCP].payload) for f in bench.device.sent] == [1000, 1000]
    assert all("P" not in Ether(f)[TCP].flags for f in bench.device.sent)
    assert bench.status() == (ChannelState.RUNNING, ChannelError.NONE)
    assert bench.send(descriptor(named=[(KEY, 2400, 200)]))["status"] == Status.BUS_ERROR
    assert len(bench.device.sent) == 2


def test_ring_and_completion_bus_errors_stop_the_channel() -> None:
    bench = Bench()
    bench.broken.add(TX)
    bench.put(descriptor(b"\x02" * 60))
    bench.bell("TX_DOORBELL", bench.tx)
    assert bench.status() == (ChannelState.ERROR, ChannelError.FETCH_BUS_ERROR)
    bench = Bench()
    bench.broken.add(CQ + 5)
    bench.put(descriptor(b"\x02" * 60))
    bench.bell("TX_DOORBELL", bench.tx)
    assert bench.status() == (ChannelState.ERROR, ChannelError.COMPLETION_BUS_ERROR)
    assert bench.device.read_register(channel_register("CQ_INDEX", 0)) == 0


# ---------------------------------------------------------------------------------------------- channels


@pytest.mark.parametrize(
    "change",
    [{"TX_LOG2": 3}, {"RX_LOG2": 13, "CQ_LOG2": 14}, {"CQ_LOG2": 14}, {"TX_LOG2": 31}, {"CQ_LOG2": 4},
     {"TX_BASE_LO": 0x800}, {"RX_BASE_LO": 1},
     {"CQ_BASE_LO": 0xFFF}, {"TX_LOG2": 5}],
)
def test_ring_configuration_is_checked(change: dict[str, int]) -> None:
    bench = Bench()
    bench.enable(2, **change)
    assert bench.status(2) == (ChannelState.ERROR, ChannelError.RING_CONFIG)
    assert bench.device.read_register(register("ERROR_CHANNELS_LO")) == 4
    assert bench.status(0) == (ChannelState.RUNNING, ChannelError.NONE)
    bench.set("ERROR_CHANNELS_LO", 4)
    assert bench.device.read_register(register("ERROR_CHANNELS_LO")) == 0
    bench.enable(2)
    assert bench.status(2)[0] == ChannelState.ERROR, "only RESET leads out of an error"
    bench.command(ChannelCommand.RESET, 2)
    bench.enable(2)
    assert bench.status(2) == (ChannelState.RUNNING, ChannelError.NONE)


def test_enable_counts_for_an_idle_channel_only() -> None:
    bench = Bench()
    bench.post()
    bench.device.receive(OWN + bytes(60))
    bench.device.write_register(channel_register("RX_LOG2", 0), 31)
    bench.command(ChannelCommand.ENABLE)
    assert bench.status() == (ChannelState.RUNNING, ChannelError.NONE)
    assert bench.device.read_register(channel_register("RX_INDEX", 0)) == 1

    bench.command(ChannelCommand.RESET)
    bench.command(ChannelCommand.ENABLE)
    assert bench.status() == (ChannelState.ERROR, ChannelError.RING_CONFIG)
    assert bench.device.read_register(channel_register("RX_INDEX", 0)) == 1, "nothing was taken"


def test_reset_clears_the_error_and_not_what_was_told_of_it() -> None:
    bench = Bench()
    bench.bell("TX_DOORBELL", 17)
    bench.command(ChannelCommand.RESET)
    assert bench.status() == (ChannelState.IDLE, ChannelError.NONE)
    assert bench.device.read_register(register("ERROR_CHANNELS_LO")) == 1


def test_vector_is_taken_by_enable_and_operations_are_looked_at_each_time() -> None:
    events = Events()
    events.device.write_register(channel_register("CHANNEL_VECTOR", 0), 0)
    events.bench.bell("CQ_ARM", 5)
    assert events.device.irq == [False, True, False]
    events.device.write_register(channel_register("CHANNEL_OPERATIONS", 0), 0)
    assert events.bench.send(descriptor(bytes(60)))["status"] == Status.NOT_PERMITTED


def test_registers_read_back_what_was_written() -> None:
    bench = Bench()
    for address in (register("RX_ENABLE"), vector_register("VECTOR_MASK", 1), vector_register("VECTOR_TX_FRAMES", 0),
                    vector_register("VECTOR_RX_TICKS", 1), channel_register("CHANNEL_VECTOR", 2)):
        bench.device.write_register(address, 0xFFFF_FF02)
        assert bench.device.read_register(address) == 0xFFFF_FF02


@pytest.mark.parametrize("name", ["TX_DOORBELL", "RX_DOORBELL"])
@pytest.mark.parametrize("index", [17, 0x8000, 0xFFFF])
def test_doorbell_overrun(name: str, index: int) -> None:
    bench = Bench()
    bench.bell(name, index)
    assert bench.status() == (ChannelState.ERROR, ChannelError.DOORBELL_OVERRUN)
    assert bench.device.sent == []


def test_full_ring_is_no_overrun_and_reset_forgets_it() -> None:
    bench = Bench()
    bench.bell("RX_DOORBELL", 16)
    assert bench.status()[0] == ChannelState.RUNNING
    bench.command(ChannelCommand.RESET)
    assert bench.status() == (ChannelState.IDLE, ChannelError.NONE)
    bench.device.receive(OWN + bytes(60))
    assert bench.counters()["rx_no_buffer"] == 1
    bench.bell("TX_DOORBELL", 1)
    assert bench.status()[0] == ChannelState.IDLE


def test_device_tells_what_it_is() -> None:
    bench = Bench()
    assert bench.device.read_register(register("ID")) == MAGIC
    assert bench.device.read_register(register("CLOCK_HZ")) == CONFIG.clock_hz
    assert bench.device.read_register(register("CHANNELS")) == 4
    assert bench.device.read_register(register("FEATURES")) == CONFIG.features
    bench.device.advance(0x1_2345_6789)
    assert bench.device.read_register(register("NOW_LO")) == 0x2345_6789
    bench.device.advance(0x2_0000_0000)
    assert bench.device.read_register(register("NOW_HI")) == 1
    assert bench.device.read_register(key_register("KEY_COMMIT", 3)) == 0
    assert bench.device.read_register(0x1_FFFC) == 0


# ---------------------------------------------------------------------------------------------- receive


def received(bench: Bench, frame: bytes, now: int = 9) -> dict[str, int]:
    bench.post()
    bench.device.receive(frame, now_cycles=now)
    return bench.completion()


def test_frame_is_delivered() -> None:
    bench = Bench()
    frame = OWN + bytes(range(100))
    bench.post(length=106, offset=64, buffer_id=0xBEEF)
    bench.device.receive(frame, now_cycles=12345)
    assert bench.memory[DATA - BASE + 64 : DATA - BASE + 170] == frame
    assert bench.completion() == {
        "kind": CompletionKind.RECEIVE, "status": Status.OK, "tag": 0xBEEF, "length": 106, "offset": 0,
        "ring_index": 1, "info": RxInfo.RAW_SUM, "timestamp": 12345, "segments": 1, "mss": 0, "more": 0,
        "checksum": ones_sum(frame[14:]), "phase": 1}
    assert [a[1:] for a in bench.accesses[-2:]] == [(DATA + 64, 106), (CQ, 32)], "payload before completion"


def test_frame_in_several_buffers() -> None:
    bench = Bench()
    frame = OWN + bytes(range(200))
    for n, length in enumerate((100, 1, 105, 50)):
        bench.post(length=length, offset=200 * n, buffer_id=n)
    bench.device.receive(frame, now_cycles=5)
    bench.device.receive(OWN + bytes(60))  # too long for what is left
    told = [bench.completion() for _ in range(3)]
    assert not bench.has_completion()
    assert [(c["kind"], c["tag"], c["length"], c["ring_index"], c["more"], c["segments"]) for c in told] == [
        (CompletionKind.RECEIVE, 0, 100, 1, 2, 1), (CompletionKind.RECEIVE_MORE, 1, 1, 2, 0, 0),
        (CompletionKind.RECEIVE_MORE, 2, 105, 3, 0, 0)]
    found = b"".join(bench.memory[DATA - BASE + 200 * n :][:length] for n, length in enumerate((100, 1, 105)))
    assert found == frame
    counters = bench.counters()
    assert (counters["rx_frames"], counters["rx_bytes"], counters["rx_no_buffer"]) == (1, 206, 1)


def test_frame_in_too_many_buffers() -> None:
    bench = Bench(log2=6)
    for n in range(33):
        bench.post(length=10, offset=16 * n)
    bench.device.receive(OWN + bytes(315))
    assert bench.counters()["rx_oversize"] == 1
    bench.device.receive(OWN + bytes(314))
    assert bench.completion()["more"] == 31


def test_one_refused_buffer_is_an_error_of_the_frame() -> None:
    bench = Bench()
    bench.post(length=40)
    bench.post(length=40, key=KEY + (1 << 12), offset=100)
    bench.post(length=40, offset=200)
    bench.device.receive(OWN + bytes(range(94)))
    told = [bench.completion() for _ in range(3)]
    assert [(c["status"], c["length"], c["more"]) for c in told] == [
        (Status.KEY_INVALID, 0, 2), (Status.OK, 0, 0), (Status.OK, 0, 0)]
    assert bench.memory[DATA - BASE + 200 :][:20] == bytes(range(74, 94)), "the others are written all the same"
    assert bench.counters()["rx_errors"] == 1


TO_ME = Ether(src=PEER, dst=OWN_TEXT)
V4 = IP(src="10.0.0.2", dst="10.0.0.1")
V6 = IPv6(src="fd00::2", dst="fd00::1")
OK4 = RxInfo.IPV4 | RxInfo.L3_CHECKSUM_OK


@pytest.mark.parametrize(
    ("packet", "info"),
    [
        (TO_ME / V4 / TCP() / b"abc", OK4 | RxInfo.TCP | RxInfo.L4_CHECKSUM_OK),
        (TO_ME / V4 / UDP() / b"abcd", OK4 | RxInfo.UDP | RxInfo.L4_CHECKSUM_OK),
        (TO_ME / Dot1Q(vlan=3) / V4 / TCP(), OK4 | RxInfo.TCP | RxInfo.L4_CHECKSUM_OK | RxInfo.VLAN),
        (TO_ME / V6 / TCP() / b"abc", RxInfo.IPV6 | RxInfo.TCP | RxInfo.L4_CHECKSUM_OK),
        (TO_ME / V6 / UDP() / b"abc", RxInfo.IPV6 | RxInfo.UDP | RxInfo.L4_CHECKSUM_OK),
        (TO_ME / V4 / UDP(chksum=0) / b"abcd", OK4 | RxInfo.UDP | RxInfo.L4_CHECKSUM_OK),
        (TO_ME / V6 / UDP(chksum=0) / b"abcd", RxInfo.IPV6 | RxInfo.UDP | RxInfo.CHECKSUM_BAD),
        (TO_ME / V4 / TCP(chksum=1) / b"abc", OK4 | RxInfo.TCP | RxInfo.CHECKSUM_BAD),
        (TO_ME / IP(src="10.0.0.2", dst="10.0.0.1", chksum=1) / TCP(),
         RxInfo.IPV4 | RxInfo.CHECKSUM_BAD | RxInfo.TCP | RxInfo.L4_CHECKSUM_OK),
        (TO_ME / IP(src="10.0.0.2", dst="10.0.0.1", options=b"\x01" * 4) / TCP(),
         OK4 | RxInfo.TCP | RxInfo.L4_CHECKSUM_OK),
        (TO_ME / IP(flags="MF") / TCP(), OK4 | RxInfo.FRAGMENT),
        (TO_ME / IP(frag=3, proto=17) / b"abcdefgh", OK4 | RxInfo.FRAGMENT),
        (TO_ME / V6 / IPv6ExtHdrFragment() / TCP(), RxInfo.IPV6 | RxInfo.FRAGMENT),
        (TO_ME / IP(proto=6) / bytes(19), OK4),
        (TO_ME / IP(proto=17) / bytes(7), OK4),
        (TO_ME / IP(proto=1) / bytes(20), OK4),
        (TO_ME / IPv6(nh=0) / bytes(20), RxInfo.IPV6),
        (TO_ME / IP(len=200) / TCP(), RxInfo(0)),
        (TO_ME / IP(len=19) / TCP(), RxInfo(0)),
        (TO_ME / IP(ihl=4) / TCP(), RxInfo(0)),
        (TO_ME / IP(version=5) / TCP(), RxInfo(0)),
        (TO_ME / IPv6(plen=99) / TCP(), RxInfo(0)),
        (TO_ME / IPv6(version=4) / TCP(), RxInfo(0)),
        (Ether(src=PEER, dst=OWN_TEXT, type=0x0800) / bytes(19), RxInfo(0)),
        (Ether(src=PEER, dst=OWN_TEXT, type=0x86DD) / bytes(39), RxInfo(0)),
        (Ether(src=PEER, dst=OWN_TEXT, type=0x8100) / bytes(3), RxInfo(0)),
        (Ether(src=PEER, dst=OWN_TEXT, type=0x88B5) / bytes(60), RxInfo(0)),
    ],
)
def test_parser(packet: Any, info: RxInfo) -> None:
    bench = Bench()
    done = received(bench, bytes(packet))
    has_l4 = info & (RxInfo.TCP | RxInfo.UDP)
    assert RxInfo(done["info"]) == (info if has_l4 else info | RxInfo.RAW_SUM)
    assert done["checksum"] == (0 if has_l4 else ones_sum(bytes(packet)[14:]))
    assert bench.counters()["rx_checksum_errors"] == (RxInfo.CHECKSUM_BAD in info)


def test_padding_is_not_summed() -> None:
    frame = bytes(TO_ME / V4 / TCP()) + b"\xff" * 6
    assert len(frame) == 60
    done = received(Bench(), frame)
    assert RxInfo(done["info"]) == OK4 | RxInfo.TCP | RxInfo.L4_CHECKSUM_OK
    assert done["length"] == 60


@pytest.mark.parametrize(
    ("destination", "rx_filter", "let_in"),
    [
        (OWN, RxFilter(0), True),
        (b"\x02\0\0\0\0\x09", RxFilter(0), False),
        (b"\x02\0\0\0\0\x09", RxFilter.BROADCAST | RxFilter.MULTICAST, False),
        (b"\x02\0\0\0\0\x09", RxFilter.PROMISCUOUS, True),
        (b"\xff" * 6, RxFilter(0), False),
        (b"\xff" * 6, RxFilter.BROADCAST, True),
        (b"\x01\0\x5e\0\0\x01", RxFilter.BROADCAST, False),
        (b"\x01\0\x5e\0\0\x01", RxFilter.MULTICAST, True),
    ],
)
def test_address_filter(destination: bytes, rx_filter: RxFilter, let_in: bool) -> None:
    bench = Bench()
    bench.set("RX_FILTER", rx_filter)
    bench.post()
    bench.device.receive(destination + bytes(60))
    assert bench.has_completion() == let_in
    assert bench.counters()["rx_filtered"] == (not let_in)


def test_drops_are_counted_by_the_first_reason() -> None:
    bench = Bench()
    bench.device.receive(bytes(13), bad=True)
    bench.device.receive(OWN + bytes(7))
    bench.device.receive(OWN + bytes(60), bad=True)
    bench.device.receive(bytes(9015))
    bench.device.receive(OWN + bytes(9008))  # the longest frame there is: only a buffer is missing
    bench.post(length=73)
    bench.device.receive(OWN + bytes(68))  # one byte longer than the buffer, which stays; a second is missing
    bench.device.receive(OWN + bytes(67))
    counters = bench.counters()
    assert {n: v for n, v in counters.items() if n.startswith("rx_") and v} == {
        "rx_frames_in": 7, "rx_bad_frames": 3, "rx_oversize": 1, "rx_no_buffer": 2, "rx_frames": 1, "rx_bytes": 73}
    bench.set("RX_ENABLE", 0)
    bench.device.receive(OWN + bytes(60))
    assert bench.counters() == counters


def test_channel_that_may_not_receive() -> None:
    bench = Bench(operations=OperationMask.SEND_FRAME)
    bench.post()
    bench.device.receive(OWN + bytes(60))
    assert bench.counters()["rx_no_buffer"] == 1


def test_refused_and_failing_buffers() -> None:
    bench = Bench()
    bench.store_key(6, DATA, 4096, rights=KeyRight.READ)
    for key, offset, status in ((make_key(6, 0), 0, Status.KEY_RIGHTS), (make_key(2, 0), 0, Status.KEY_INVALID),
                                (KEY, DATA_BYTES - 65, Status.KEY_BOUNDS), (KEY, 4096, Status.BUS_ERROR)):
        bench.broken = {DATA + 4100}
        bench.post(key=key, offset=offset)
        bench.device.receive(OWN + bytes(60))
        done = bench.completion()
        assert (done["kind"], done["status"], done["length"], done["segments"], done["tag"]) == (
            CompletionKind.RECEIVE, status, 0, 0, 77)
    assert bench.counters()["rx_errors"] == 4
    assert received(bench, OWN + bytes(60))["status"] == Status.OK


# ---------------------------------------------------------------------------------------------- events


class Events:
    """Channel 0 on vector 1, unmasked, with given moderation."""

    def __init__(self, **moderation: int) -> None:
        self.bench = Bench()
        self.device = self.bench.device
        for name, value in ({"MASK": 0} | moderation).items():
            self.device.write_register(vector_register(f"VECTOR_{name}", 1), value)
        self.seen: list[tuple[int, bool]] = []
        self.device.on_irq = lambda vector, level: self.seen.append((vector, level))

    def frame(self, now: int) -> None:
        self.bench.post()
        self.device.receive(OWN + bytes(60), now_cycles=now)

    def arm(self) -> None:
        self.bench.bell("CQ_ARM", self.device.read_register(channel_register("CQ_INDEX", 0)))

    @property
    def line(self) -> bool:
        return self.device.irq[1]


def test_unmoderated_event_fires_once_and_falls_on_arming() -> None:
    events = Events()
    events.frame(1)
    assert not events.line  # not armed
    events.arm()
    assert not events.line
    events.frame(2)
    events.frame(3)
    assert events.line
    events.arm()
    assert not events.line
    assert events.seen == [(1, True), (1, False)]
    assert events.device.read_register(vector_register("VECTOR_FIRED", 1)) == 1
    assert events.device.read_register(vector_register("VECTOR_RX_EVENTS", 1)) == 3
    assert events.bench.counters()["interrupts"] == 1


def test_arming_behind_fires_at_once() -> None:
    events = Events(RX_TICKS=1000, RX_FRAMES=50)
    events.frame(1)
    events.bench.bell("CQ_ARM", 0)
    assert events.line


def test_moderation_by_time() -> None:
    events = Events(RX_TICKS=100, RX_FRAMES=0)
    events.arm()
    events.frame(10)
    events.frame(50)
    assert events.device.next_deadline() == 110
    events.device.advance(109)
    assert not events.line
    events.device.advance(110)
    assert events.line
    assert events.device.next_deadline() is None


def test_moderation_by_count() -> None:
    events = Events(RX_TICKS=1000, RX_FRAMES=3)
    events.arm()
    events.frame(1)
    events.frame(2)
    assert not events.line
    events.frame(3)
    assert events.line
    events.arm()  # counts begin anew
    events.frame(4)
    assert not events.line
    assert events.device.next_deadline() == 1004


def test_count_without_time_waits_for_the_count() -> None:
    events = Events(RX_TICKS=0, RX_FRAMES=2)
    events.arm()
    events.frame(1)
    assert events.device.next_deadline() is None
    events.frame(2)
    assert events.line


def test_a_number_of_frames_beyond_the_largest_acts_as_the_largest() -> None:
    vector = Vector(rx=Moderation(frames=MAX_MODERATION_FRAMES + 2))
    for now in range(MAX_MODERATION_FRAMES - 1):
        vector.count_event(vector.rx, now)
    assert not vector.raised
    vector.count_event(vector.rx, MAX_MODERATION_FRAMES)
    assert vector.raised


def test_send_and_receive_share_the_earlier_deadline() -> None:
    events = Events(RX_TICKS=100, TX_TICKS=500)
    events.arm()
    events.device.advance(1000)
    events.bench.put(descriptor(b"\x02" * 60))
    events.bench.bell("TX_DOORBELL", events.bench.tx)
    assert events.device.next_deadline() == 1500
    events.frame(1100)
    assert events.device.next_deadline() == 1200
    assert events.device.read_register(vector_register("VECTOR_TX_EVENTS", 1)) == 1


def test_mask_hides_the_line_and_keeps_the_event() -> None:
    events = Events()
    events.device.write_register(vector_register("VECTOR_MASK", 1), 1)
    events.arm()
    events.frame(1)
    assert not events.line
    events.device.write_register(vector_register("VECTOR_MASK", 1), 0)
    assert events.line


def test_vector_of_two_channels_falls_when_both_are_armed() -> None:
    events = Events()
    events.bench.enable(1)
    for channel in (0, 1):
        events.bench.bell("CQ_ARM", 5, channel)  # behind: fires
    assert events.line
    events.bench.bell("CQ_ARM", 0, 0)
    assert events.line
    events.bench.bell("CQ_ARM", 0, 1)
    assert not events.line


def test_reset_of_a_fired_channel_lowers_the_line() -> None:
    events = Events()
    events.bench.bell("CQ_ARM", 5)
    assert events.line
    events.bench.set("DEVICE_RESET", 1)
    assert not events.line
    events.arm()
    assert not events.line


def test_channel_that_fails_holds_its_vector_no_longer() -> None:
    events = Events()
    events.bench.bell("CQ_ARM", 5)
    assert events.line
    events.bench.bell("TX_DOORBELL", 100)
    assert not events.line


def test_error_vector() -> None:
    events = Events()
    events.bench.bell("TX_DOORBELL", 100)
    assert not events.device.irq[2]
    events.bench.set("ERROR_MASK", 0)
    assert events.seen == [(2, True)]
    events.bench.set("ERROR_CHANNELS_LO", 1)
    assert events.seen == [(2, True), (2, False)]
    assert events.bench.counters()["interrupts"] == 1


@pytest.mark.parametrize("seed", range(30))
def test_hostile_descriptors_never_leave_the_key(seed: int) -> None:
    """Random bytes in the submission ring: no exception, no access outside the rings and the key's memory."""
    rng = random.Random(seed)
    bench = Bench()
    for _ in range(40):
        slots = bytearray(rng.randbytes(64))
        slots[0] = rng.choice([1, 1, 2, 2, 2, rng.randrange(256)])
        slots[1] = rng.choice([1, 2, 3, rng.randrange(256)])
        slots[8], slots[12] = rng.choice([0, 60, rng.randrange(256)]), rng.randrange(4)
        if rng.random() < 0.7:
            slots[16:32] = PIECE.pack(key=KEY, offset=rng.randrange(DATA_BYTES + 100), length=rng.randrange(4000))
        for start in range(0, 512, 32):
            bench.memory[TX - BASE + start : TX - BASE + start + 32] = slots[start % 64 : start % 64 + 32]
        bench.bell("TX_DOORBELL", bench.tx + rng.randrange(17))
        if bench.status()[0] != ChannelState.RUNNING:
            bench.command(ChannelCommand.RESET)
            bench.enable()
        else:
            bench.tx = bench.device.read_register(channel_register("TX_INDEX", 0))
    assert bench.accesses
    for kind, address, length in bench.accesses:
        if kind == "read":
            assert TX <= address < address + length <= TX + 512 or DATA <= address < address + length <= (
                DATA + DATA_BYTES), (seed, kind, hex(address), length)
        else:
            assert CQ <= address < address + length <= CQ + 1024, (seed, kind, hex(address), length)
