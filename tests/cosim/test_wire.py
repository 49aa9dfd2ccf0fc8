"""The wire's timing, the MAC's FIFO, the switch; the capture read back with scapy."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

from cosim.mac import MacTiming, TransmitFifo
from cosim.pcapng import PcapngWriter
from cosim.wire import Link, Wire
from host_driver.runtime import Kernel

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.utils import RawPcapNgReader  # noqa: E402

DEVICE, ALICE, BOB = (bytes([2, 0, 0, 0, 0, number]) for number in (1, 2, 3))
GIGABIT = 10**9
NS = 1000


def frame(target: bytes, source: bytes, length: int) -> bytes:
    return (target + source + b"\x08\x00").ljust(length, b"\x55")


class Net:
    """A wire with a device and two clients that log (nanosecond, who, length)."""

    def __init__(self, capture: PcapngWriter | None = None, fifo_bytes: int = 16384) -> None:
        self.kernel = Kernel()
        self.log: list[tuple[int, str, int]] = []
        self.wire = Wire(self.kernel, bit_rate=GIGABIT, propagation_ps=500 * NS, capture=capture,
                         fifo_bytes=fifo_bytes)
        self.fifo = TransmitFifo(self.wire.timing)
        self.wire.deliver = lambda data, bad, time: self.kernel.call_at(time, lambda: self.note("device", data))
        self.alice: Link = self.wire.attach(ALICE, lambda data: self.note("alice", data))
        self.bob: Link = self.wire.attach(BOB, lambda data: self.note("bob", data))

    def note(self, who: str, data: bytes) -> None:
        self.log.append((self.kernel.now // NS, who, len(data)))

    def send(self, data: bytes) -> None:
        """A frame from the device, now."""
        self.wire.transmitted([self.fifo.push(data, self.kernel.now)])

    def run(self) -> list[tuple[int, str, int]]:
        self.kernel.run_until(self.kernel.now + 10**12)
        return self.log


def test_a_frame_takes_its_bits_and_the_propagation_on_each_link() -> None:
    net = Net()
    net.send(frame(ALICE, DEVICE, 1514))
    # Preamble 8 + 1514 + FCS 4 = 1526 bytes of 8 ns, and 500 ns, twice: the switch stores and forwards.
    assert net.run() == [(2 * (1526 * 8 + 500), "alice", 1514)]


def test_short_frames_are_padded_to_sixty_bytes() -> None:
    net = Net()
    net.alice.transmit(frame(DEVICE, ALICE, 54))
    assert net.run() == [(2 * (72 * 8 + 500), "device", 60)]


def test_frames_follow_each_other_with_the_gap_between_them() -> None:
    net = Net()
    for _ in range(3):
        net.send(frame(ALICE, DEVICE, 1514))
    times = [time for time, _, _ in net.run()]
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == [1538 * 8] * 2


def test_rates_that_do_not_divide_round_up() -> None:
    link = Link(Kernel(), timing=MacTiming(bit_rate=3), propagation_ps=0, arrives=lambda time, data: None)
    assert link.duration_ps(1) == 2_666_666_666_667


def test_clients_share_the_devices_link_but_not_their_own() -> None:
    net = Net()
    net.alice.transmit(frame(DEVICE, ALICE, 1000))
    net.bob.transmit(frame(DEVICE, BOB, 1000))
    first, second = net.run()
    assert second[0] - first[0] == 1024 * 8


def test_broadcast_reaches_all_but_the_sender_and_unknown_stations_only_the_device() -> None:
    net = Net()
    net.alice.transmit(frame(b"\xff" * 6, ALICE, 60))
    assert {who for _, who, _ in net.run()} == {"device", "bob"}
    net.log.clear()
    net.alice.transmit(frame(DEVICE, ALICE, 60))
    assert [who for _, who, _ in net.run()] == ["device"]


def test_mac_fifo_has_room_until_it_is_full_and_again_when_a_frame_has_left() -> None:
    fifo = TransmitFifo(MacTiming(bit_rate=GIGABIT, fifo_bytes=12000))
    sent = 0
    while fifo.has_room(0):
        fifo.push(frame(ALICE, DEVICE, 1514), 0)
        sent += 1
    assert sent == 2  # beside 3,028 bytes a frame of 9,014 does not fit any more
    assert fifo.next_room_ps() == 1538 * 8 * NS
    assert not fifo.has_room(1538 * 8 * NS - 1)
    assert fifo.has_room(1538 * 8 * NS)


def test_capture_is_read_back_by_scapy_to_the_nanosecond(tmp_path: Path) -> None:
    path = tmp_path / "wire.pcapng"
    with PcapngWriter(path, "device") as capture:
        net = Net(capture)
        sent, answer = frame(ALICE, DEVICE, 61), frame(DEVICE, BOB, 1514)
        net.send(sent)
        net.bob.transmit(answer)
        net.run()
        assert capture.frames == 2
    with RawPcapNgReader(str(path)) as reader:
        packets = list(reader)
    assert [data for data, _ in packets] == [sent, answer]
    times_ns = [((meta.tshigh << 32) + meta.tslow) * 10**9 // meta.tsresol for _, meta in packets]
    assert times_ns == [85 * 8, 2 * (1526 * 8 + 500)]
    assert [meta.linktype for _, meta in packets] == [1, 1]
    assert [meta.wirelen for _, meta in packets] == [61, 1514]
    assert [meta.direction for _, meta in packets] == [2, 1]


def test_a_capture_is_in_order_of_time_though_frames_come_out_of_order(tmp_path: Path) -> None:
    path = tmp_path / "order.pcapng"
    with PcapngWriter(path, "device") as capture:
        for time_ns in (300, 100, 200):
            capture.write(time_ns * NS, b"x" * time_ns, outbound=True)
        capture.settle(200 * NS)
        capture.write(250 * NS, b"x" * 250, outbound=False)
    with RawPcapNgReader(str(path)) as reader:
        assert [len(data) for data, _ in reader] == [100, 200, 250, 300]


def test_timestamps_beyond_32_bits_survive(tmp_path: Path) -> None:
    path = tmp_path / "late.pcapng"
    time_ns = 5 * 2**32 + 7
    with PcapngWriter(path, "device") as capture:
        capture.write(time_ns * NS + 999, b"x" * 63, outbound=True)
    with RawPcapNgReader(str(path)) as reader:
        (data, meta), = list(reader)
    assert data == b"x" * 63
    assert (meta.tshigh << 32) + meta.tslow == time_ns
