"""Traffic at full rate both ways, for benches: segmented sends of 64 KB, and frames that arrive without a pause.

The host looks at its rings now and then. It takes receives in bursts, by their phase bits alone, and gives the same
buffers again: what is measured is the device and what simulates it, not the driver. The peer only counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from cosim.engines.bench import CountingPort
from cosim.engines.bus import Bus, BusTiming
from cosim.mac import PS_PER_S, MacTiming, SentFrame
from cosim.memory import HostMemory
from host_driver.account import NullAccount
from host_driver.channel import Channel
from host_driver.nic import Nic
from host_driver.rings import CompletionRing, Descriptor, Piece
from host_driver.runtime import Kernel
from nic_model import ring
from nic_model.checksum import checksum_seed, internet_checksum
from nic_model.contract import COMPLETION, CONFIGS, KeyRight, NicConfig, Opcode, OperationMask, Status, doorbell
from nic_model.contract.protocols import IPV4_HEADER_BYTES, TCP_HEADER_BYTES, EtherType, IpProtocol, TcpFlags
from nic_model.packets import pack_ipv4, pack_tcp

SEND_BYTES = 1 << 16
MSS = 1460
SENDS_IN_FLIGHT = 4
BUFFERS_LOG2 = 8
BUFFER_BYTES = 2048
FRAME_BYTES = 1514

LOOK_PS = 80_000_000
"""Between two looks at the rings: 80 us."""

ADDRESS = bytes([192, 0, 2, 1])
"""Of both ends; nobody looks at it."""

OWN_MAC, PEER_MAC = bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 2])

BUS = BusTiming(read_latency_cycles=100, write_latency_cycles=40, mmio_read_cycles=100, mmio_write_cycles=20,
                bytes_per_cycle=64.0)
"""Near and fast enough never to be what limits."""

NOBODY = NullAccount()

_TYPE = EtherType.IPV4.to_bytes(2, "big")
_STATUS_AT = COMPLETION.fields["status"].offset // 8
_PHASE_AT, _PHASE_BIT = divmod(COMPLETION.fields["phase"].offset, 8)


class TrafficSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How much traffic."""

    device: str
    cycles: int
    """Of the device's clock, after a start of one look at the rings."""


class TrafficFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    cycles: int
    seconds: float
    """Of real time, for these cycles."""
    frames_sent: int
    frames_received: int


class TrafficBench:
    """Implements `cosim.engines.bench.Bench`. `config`: of a device that has no name."""

    def __init__(self, spec: TrafficSpec, config: NicConfig | None = None) -> None:
        self._spec = spec
        self.config = config or CONFIGS[spec.device]
        self.kernel = Kernel()
        self.memory = HostMemory(1 << 22)
        self.bus = Bus(BUS)
        self.timing = MacTiming(bit_rate=8 * self.config.mac_bytes * self.config.clock_hz, lookahead_ps=LOOK_PS)
        self.deliver: Callable[[bytes, bool, int], None] = lambda frame, bad, time_ps: None
        self.mac = self
        self._frames_sent = 0
        self._frames_received = 0
        self._taken = 0
        self._posted = 1 << BUFFERS_LOG2
        self._done = False
        self._figures: TrafficFigures | None = None

    def __enter__(self) -> TrafficBench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        return

    def transmitted(self, frames: Sequence[SentFrame]) -> None:
        """The peer counts."""
        self._frames_sent += len(frames)

    def start(self, port: CountingPort) -> None:
        """Begin."""
        self.kernel.spawn(self._run(port), "traffic")

    def finished(self) -> bool:
        """Whether all cycles have passed."""
        return self._done

    def outcome(self, port: CountingPort) -> TrafficFigures:
        """What was measured."""
        assert self._figures is not None
        return self._figures

    def partial(self, port: CountingPort) -> None:
        """Nothing."""

    async def _run(self, port: CountingPort) -> None:
        nic = await Nic.probe(port)
        nic.set_mac_address(OWN_MAC)
        sender = await nic.open_channel(1, operations=OperationMask.SEND_SEGMENTED, vector=0, tx_log2=5, rx_log2=4)
        receiver = await nic.open_channel(0, operations=OperationMask.RECEIVE_RAW, vector=0, tx_log2=4,
                                          rx_log2=BUFFERS_LOG2)
        buffer_count = receiver.buffers.entries
        data = self.memory.allocate(SEND_BYTES, 4096)
        buffers = self.memory.allocate(buffer_count * BUFFER_BYTES, 4096)
        key = nic.register_memory(data, SEND_BYTES, KeyRight.READ, 1, NOBODY)
        buffers_key = nic.register_memory(buffers, buffer_count * BUFFER_BYTES, KeyRight.WRITE, 0, NOBODY)
        send = Descriptor(Opcode.SEND_SEGMENTED, _template(), (Piece(key.value, 0, SEND_BYTES),), mss=MSS, l3_offset=14,
                          l4_offset=34, checksum_offset=50)
        for number in range(buffer_count):
            receiver.post(Piece(buffers_key.value, number * BUFFER_BYTES, BUFFER_BYTES), number, number)
        for _ in range(SENDS_IN_FLIGHT):
            sender.submit(send, None)
        nic.enable_receive(True)
        receiver.ring_doorbell(NOBODY)
        sender.ring_doorbell(NOBODY)
        arrives_ps = self._arrivals(self.kernel.now + LOOK_PS)
        await self._look(port, sender, receiver, send)
        begin_ps, begin_s = self.kernel.now, time.perf_counter()
        before = self._frames_sent, self._frames_received
        while self._cycles(begin_ps) < self._spec.cycles:
            arrives_ps = self._arrivals(arrives_ps)
            await self._look(port, sender, receiver, send)
        self._figures = TrafficFigures(
            cycles=self._cycles(begin_ps), seconds=time.perf_counter() - begin_s,
            frames_sent=self._frames_sent - before[0], frames_received=self._frames_received - before[1])
        self._done = True

    async def _look(self, port: CountingPort, sender: Channel, receiver: Channel, send: Descriptor) -> None:
        """Sleep, then take what has finished, and put as much in its place."""
        await self.kernel.sleep(min(LOOK_PS, self._spec.cycles * PS_PER_S // self.config.clock_hz))
        for done in sender.completions():
            if done.completion.status is not Status.OK:
                raise RuntimeError(f"a send of the traffic failed: {done.completion}")
            sender.submit(send, None)
        sender.ring_doorbell(NOBODY)
        came = self._received(receiver.completed)
        self._frames_received += came
        self._posted = ring.advance(self._posted, came)
        port.wmb()
        port.write32(doorbell("RX_DOORBELL", receiver.number), self._posted)

    def _received(self, completed: CompletionRing) -> int:
        """Frames received since the last time. All completions are alike, so only their phase and status are read."""
        entries = self.memory.view(completed.address, completed.entries * completed.entry_bytes)
        if bytes(entries[_STATUS_AT :: completed.entry_bytes]).strip(b"\0"):
            raise RuntimeError("a receive of the traffic failed")
        phases = bytes(entries[_PHASE_AT :: completed.entry_bytes])
        came = 0
        while (phases[ring.slot(self._taken, completed.log2)] >> _PHASE_BIT & 1
               == ring.phase(self._taken, completed.log2)):
            self._taken += 1
            came += 1
        return came

    def _arrivals(self, from_ps: int) -> int:
        """Frames for all the time until the next look but one; returns when the next could come."""
        each_ps = -(-(FRAME_BYTES + self.timing.overhead_bytes) * 8 * PS_PER_S // self.timing.bit_rate)
        while from_ps < self.kernel.now + 2 * LOOK_PS:
            self.deliver(_FRAME, False, from_ps)
            from_ps += each_ps
        return from_ps

    def _cycles(self, since_ps: int) -> int:
        return (self.kernel.now - since_ps) * self.config.clock_hz // PS_PER_S


def make(arguments: Any, folder: Path) -> TrafficBench:
    """The maker that a simulator process calls."""
    return TrafficBench(msgspec.convert(arguments, TrafficSpec))


def _template() -> bytes:
    """Ethernet, IPv4 and TCP headers as a segmented send has them; lengths and checksums are the device's work."""
    return PEER_MAC + OWN_MAC + _TYPE + _headers(0)


def _headers(payload_bytes: int, ip_checksum: int = 0, tcp_checksum: int = 0) -> bytes:
    """IPv4 and TCP."""
    l4_bytes = TCP_HEADER_BYTES + payload_bytes
    return (pack_ipv4(ADDRESS, ADDRESS, IpProtocol.TCP, IPV4_HEADER_BYTES + l4_bytes, checksum=ip_checksum)
            + pack_tcp(80, 1024, 1, 1, TcpFlags.PSH | TcpFlags.ACK, 0xFFFF, checksum=tcp_checksum))


def _frame() -> bytes:
    """A frame for the device, all of it right."""
    data = bytes([0x55]) * (FRAME_BYTES - len(_template()))
    headers = _headers(len(data))
    ip, tcp = headers[:IPV4_HEADER_BYTES], headers[IPV4_HEADER_BYTES:]
    seed = checksum_seed(ADDRESS, ADDRESS, IpProtocol.TCP, len(tcp) + len(data))
    headers = _headers(len(data), internet_checksum(ip), internet_checksum(tcp + data, seed))
    return OWN_MAC + PEER_MAC + _TYPE + headers + data


_FRAME = _frame()
