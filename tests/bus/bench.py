"""The device among third-party bus models: every transactor here is cocotbext-axi's, none is memnic's.

Cocotb tests that run inside the simulator; `test_bus.py` starts it. The host's part is written with the contract alone,
so that neither `cosim`'s transactors nor `host_driver` stand between the models and the device.
"""

from __future__ import annotations

import logging
import os
import random
import struct
import warnings
from collections.abc import Iterator
from typing import Any

warnings.simplefilter("error")
# cocotbext-axi 0.1.28 and cocotb-bus 0.3 still use names that cocotb 2.1 has renamed.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"cocotbext\.axi\..*|cocotb_bus\..*")
logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

import cocotb  # noqa: E402
from cocotb.clock import Clock  # noqa: E402
from cocotb.triggers import ClockCycles, RisingEdge, with_timeout  # noqa: E402
from cocotbext.axi import (  # noqa: E402
    AxiBus,
    AxiLiteBus,
    AxiLiteMaster,
    AxiMaster,
    AxiRam,
    AxiResp,
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
)
from scapy.layers.inet import IP, TCP, UDP, in4_pseudoheader  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402
from scapy.utils import checksum  # noqa: E402

from nic_model.contract import (  # noqa: E402
    COMPLETION,
    COMPLETION_BYTES,
    CONFIGS,
    COUNTERS,
    COUNTERS_BASE,
    DOORBELL_BASE,
    MAGIC,
    PIECE,
    RECEIVE_SLOT,
    RECEIVE_SLOT_BYTES,
    SUBMISSION_HEAD,
    SUBMISSION_SLOT_BYTES,
    VERSION,
    ChannelCommand,
    ChannelState,
    CompletionKind,
    KeyRight,
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
from tests.bus.rules import Rules  # noqa: E402

CONFIG = CONFIGS["tiny"]
SEED = int(os.environ["MEMNIC_TEST_SEED"])
PERIOD_PS = 6400

MEMORY_BASE = 0x12_3450_0000
MEMORY_BYTES = 1 << 20
FIRST_NOW = 0xFFFF_FF00
"""`now` crosses 32 bits in the test."""

LIMIT_CYCLES = 5000
"""Longest wait for one thing."""

LIMIT_PS = 30_000 * PERIOD_PS
"""Longest test."""

STALLS = 0.3
"""Share of cycles in which a model holds its valid or ready back."""


class Bench:
    """The device, its clock and `now`, and a bus model on each of its ports."""

    def __init__(self, dut: Any, rng: random.Random) -> None:
        self.dut = dut
        self.rng = rng
        Clock(dut.clk, PERIOD_PS, unit="ps").start()
        dut.rst.value = 1
        dut.now.value = FIRST_NOW
        self.axil = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
        self.pages = AxiMaster(AxiBus.from_prefix(dut, "s_axi"), dut.clk, dut.rst)
        self.ram = AxiRam(AxiBus.from_prefix(dut, "m_axi"), dut.clk, dut.rst, size=MEMORY_BYTES)
        self.sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis_tx"), dut.clk, dut.rst)
        self.source = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis_rx"), dut.clk, dut.rst)
        self.rules = Rules(dut, range(MEMORY_BASE, MEMORY_BASE + MEMORY_BYTES))
        cocotb.start_soon(self._count_now())

    async def start(self) -> None:
        """Reset the device, then let every model stall at random."""
        await ClockCycles(self.dut.clk, 8)
        self.dut.rst.value = 0
        await ClockCycles(self.dut.clk, 2)
        writing, reading = self.ram.write_if, self.ram.read_if
        for stream in (
            writing.aw_channel, writing.w_channel, writing.b_channel, reading.ar_channel, reading.r_channel,
            self.sink, self.source,
            *(getattr(half, f"{name}_channel") for master in (self.axil, self.pages)
              for half, names in ((master.write_if, ("aw", "w", "b")), (master.read_if, ("ar", "r")))
              for name in names),
        ):
            stream.set_pause_generator(self._stalls(random.Random(self.rng.random())))

    @staticmethod
    def _stalls(rng: random.Random) -> Iterator[bool]:
        while True:
            yield rng.random() < STALLS

    async def _count_now(self) -> None:
        now = FIRST_NOW
        while True:
            await RisingEdge(self.dut.clk)
            now += 1
            self.dut.now.value = now

    # ---------------------------------------------------------------------------------------- registers, memory

    async def read(self, address: int) -> int:
        """A register's value."""
        answer = await self.axil.read(address, 4)
        assert answer.resp == AxiResp.OKAY
        return int.from_bytes(answer.data, "little")

    async def write(self, address: int, value: int) -> None:
        """Write a register."""
        answer = await self.axil.write(address, value.to_bytes(4, "little"))
        assert answer.resp == AxiResp.OKAY

    async def write_pair(self, address: int, value: int) -> None:
        """Write a LO/HI pair."""
        await self.write(address, value & 0xFFFF_FFFF)
        await self.write(address + 4, value >> 32)

    async def ring(self, name: str, channel: int, index: int, **options: Any) -> None:
        """Write a doorbell through the AXI4 slave."""
        page_address = doorbell(name, channel) - DOORBELL_BASE
        answer = await self.pages.write(page_address, (index % 2**16).to_bytes(4, "little"), **options)
        assert answer.resp == AxiResp.OKAY

    async def interrupt(self, vector: int) -> int:
        """Wait for an interrupt line; `now` at which it is seen."""
        for _ in range(LIMIT_CYCLES):
            await RisingEdge(self.dut.clk)
            if int(self.dut.irq.value) >> vector & 1:
                return int(self.dut.now.value)
        raise AssertionError(f"no interrupt {vector} in {LIMIT_CYCLES} cycles, seed {SEED}")

    async def sent(self) -> bytes:
        """The next frame that the MAC gets."""
        frame = await with_timeout(self.sink.recv(), LIMIT_CYCLES * PERIOD_PS, "ps")
        return bytes(frame.tdata)

    async def settle(self) -> None:
        """Until the device is quiet."""
        for _ in range(LIMIT_CYCLES):
            await RisingEdge(self.dut.clk)
            if self.dut.quiet.value == 1 and not self.rules.reads_in_flight:
                return
        raise AssertionError(f"not quiet after {LIMIT_CYCLES} cycles, seed {SEED}")

    async def counters(self) -> dict[str, int]:
        """A snapshot of all counters."""
        await self.write(register("SNAPSHOT"), 1)
        while await self.read(register("SNAPSHOT")):
            pass
        pairs = {c.name: COUNTERS_BASE + 8 * index for index, c in enumerate(COUNTERS)}
        return {name: await self.read(at) | await self.read(at + 4) << 32 for name, at in pairs.items()}


class Channel:
    """Rings of one channel in the models' memory, by the contract alone."""

    def __init__(self, bench: Bench, number: int, place: int, *, vector: int, log2: int = 4) -> None:
        self.bench, self.number, self.vector, self.log2 = bench, number, vector, log2
        self.tx_base, self.rx_base, self.cq_base = (MEMORY_BASE + place + 0x1000 * ring for ring in range(3))
        self.tx_producer = self.rx_producer = self.consumer = 0

    async def enable(self, operations: OperationMask) -> None:
        """Set up and start."""
        bench, number = self.bench, self.number
        for name, value in (("CHANNEL_OPERATIONS", operations), ("CHANNEL_VECTOR", self.vector),
                            ("TX_LOG2", self.log2), ("RX_LOG2", self.log2), ("CQ_LOG2", self.log2 + 1)):
            await bench.write(channel_register(name, number), value)
        for name, base in (("TX", self.tx_base), ("RX", self.rx_base), ("CQ", self.cq_base)):
            await bench.write_pair(channel_register(f"{name}_BASE_LO", number), base)
        await bench.write(channel_register("CHANNEL_CONTROL", number), ChannelCommand.ENABLE)
        assert await bench.read(channel_register("CHANNEL_STATUS", number)) == ChannelState.RUNNING

    def submit(self, *, inline: bytes, pieces: list[tuple[int, int, int]], **head: int) -> None:
        """Put a descriptor into the ring; a piece is (key, offset, length)."""
        packed = [PIECE.pack(key=key, offset=offset, length=length) for key, offset, length in pieces]
        slots = slots_needed(len(inline), len(pieces))
        first = SUBMISSION_HEAD.pack(slots=slots, inline_bytes=len(inline), pieces=len(pieces), **head)
        text = first + (packed[0] if packed else bytes(16))
        text += inline + bytes(-len(inline) % SUBMISSION_SLOT_BYTES) + b"".join(packed[1:])
        text += bytes(slots * SUBMISSION_SLOT_BYTES - len(text))
        for at in range(0, len(text), SUBMISSION_SLOT_BYTES):
            slot = self.tx_producer % (1 << self.log2)
            self.bench.ram.write(self.tx_base + slot * SUBMISSION_SLOT_BYTES - MEMORY_BASE,
                                 text[at : at + SUBMISSION_SLOT_BYTES])
            self.tx_producer += 1

    def post(self, *, key: int, offset: int, length: int, buffer_id: int) -> None:
        """Put a receive buffer into the ring."""
        slot = self.rx_producer % (1 << self.log2)
        self.bench.ram.write(self.rx_base + slot * RECEIVE_SLOT_BYTES - MEMORY_BASE,
                             RECEIVE_SLOT.pack(key=key, offset=offset, length=length, buffer_id=buffer_id))
        self.rx_producer += 1

    def completions(self) -> list[dict[str, int]]:
        """Those that are new, by their phase bit."""
        found: list[dict[str, int]] = []
        while True:
            lap, slot = divmod(self.consumer, 2 << self.log2)
            at = self.cq_base + slot * COMPLETION_BYTES - MEMORY_BASE
            entry = COMPLETION.unpack(self.bench.ram.read(at, COMPLETION_BYTES))
            if entry["phase"] == lap % 2:  # 1 in the first pass
                return found
            found.append(entry)
            self.consumer += 1

    async def arm(self) -> None:
        """Ask for an interrupt at the next completion."""
        await self.bench.ring("CQ_ARM", self.number, self.consumer)

    async def finished(self, count: int) -> list[dict[str, int]]:
        """Wait, by interrupt, for so many completions. The ring must have been armed."""
        found: list[dict[str, int]] = []
        while True:
            await self.bench.interrupt(self.vector)
            found += self.completions()
            assert len(found) <= count
            if len(found) == count:
                return found
            await self.arm()


# -------------------------------------------------------------------------------------------- tests


@cocotb.test(timeout_time=LIMIT_PS, timeout_unit="ps")
async def registers_by_axi_lite(dut: Any) -> None:
    """Constants, what is written and read back, partial strobes, unmapped addresses; the pages read as zeros."""
    bench = Bench(dut, random.Random(SEED))
    await bench.start()
    for name, value in (
        ("ID", MAGIC), ("VERSION", VERSION), ("FEATURES", CONFIG.features), ("CLOCK_HZ", CONFIG.clock_hz),
        ("CHANNELS", CONFIG.channels), ("VECTORS", CONFIG.vectors), ("KEYS", CONFIG.keys),
        ("MAC_BYTES", CONFIG.mac_bytes), ("HOST_BYTES", CONFIG.host_bytes), ("READ_TAGS", CONFIG.payload_reads),
        ("MAX_RING_LOG2", CONFIG.max_ring_log2), ("RX_FILTER", 0), ("ERROR_MASK", 1), ("DRAIN", 0),
    ):
        assert await bench.read(register(name)) == value, name
    assert await bench.read(vector_register("VECTOR_MASK", 0)) == 1
    assert await bench.read(channel_register("CHANNEL_STATUS", 3)) == ChannelState.IDLE

    written = {
        register("MAC_ADDRESS_LO"): 0x0403_0201, register("RX_FILTER"): 5,
        vector_register("VECTOR_RX_TICKS", 0): 12345, vector_register("VECTOR_RX_TICKS", CONFIG.vectors - 1): 54321,
        channel_register("TX_BASE_LO", 0): 0x8765_4000, channel_register("TX_BASE_HI", CONFIG.channels - 1): 0x1234,
        channel_register("CQ_LOG2", 1): 6,
    }
    for address, value in written.items():
        await bench.write(address, value)
    for address, value in written.items():
        assert await bench.read(address) == value, hex(address)

    # Several words in one call: the model sends the accesses without waiting for each answer.
    both = struct.pack("<II", 0xAABB_CCDD, 0x0000_EEFF)
    await bench.axil.write(register("MAC_ADDRESS_LO"), both)
    assert (await bench.axil.read(register("MAC_ADDRESS_LO"), 8)).data == both

    # A partial strobe is refused as a whole.
    for at, part in ((0, b"\0"), (1, b"\0\0"), (3, b"\0")):
        answer = await bench.axil.write(register("MAC_ADDRESS_LO") + at, part)
        assert answer.resp == AxiResp.SLVERR
        assert await bench.read(register("MAC_ADDRESS_LO")) == 0xAABB_CCDD
    # Read-only, write-only and unmapped addresses.
    await bench.write(register("ID"), 0)
    assert await bench.read(register("ID")) == MAGIC
    assert await bench.read(key_register("KEY_COMMIT", 1)) == 0
    await bench.write(0x1FFFC, 0xFFFF_FFFF)
    assert await bench.read(0x1FFFC) == 0

    low, high = await bench.read(register("NOW_LO")), await bench.read(register("NOW_HI"))
    assert 0 < int(dut.now.value) - (high << 32 | low) < 200

    pages = await bench.pages.read(doorbell("TX_DOORBELL", 1) - DOORBELL_BASE, 96)
    assert pages.resp == AxiResp.OKAY
    assert pages.data == bytes(96)
    await bench.settle()
    assert bench.rules.beats["s_axil_r"] == 33


OWN_MAC = "02:00:00:00:00:01"
PEER_MAC = "02:00:00:00:00:02"

PAYLOAD_PLACE, PAYLOAD_BYTES = 0x4_0000 + 7, 0x3000
BUFFERS_PLACE, BUFFERS_BYTES = 0x8_0000 + 3, 0x8000
"""Registered memories: offsets in the models' memory, at odd addresses."""

PAYLOAD_KEY, BUFFERS_KEY = make_key(5, 3), make_key(CONFIG.keys - 1, 0xFFF)

TX_CHANNEL, TX_VECTOR, RX_VECTOR = 2, 3, 1
RX_TICKS = 300


def seed_of(packet: Any, l4_bytes: int) -> int:
    """The pseudo-header's sum as a descriptor's template carries it: folded, not complemented."""
    ip = packet[IP]
    return ~checksum(in4_pseudoheader(ip.proto, ip, l4_bytes)) & 0xFFFF


def built(packet: Any) -> Any:
    """The packet with all fields that scapy computes."""
    return Ether(bytes(packet))


async def send_a_frame_with_checksums(bench: Bench, channel: Channel, payload: bytes) -> None:
    """Header inline, payload from pieces at odd addresses, both checksums by the device."""
    parts = [(100, 1), (0x1003, 62), (0x0FF8, 15)]  # the last crosses 4 KB, as the first byte stands at 7
    data = b"".join(payload[at : at + size] for at, size in parts)
    packet = built(Ether(dst=PEER_MAC, src=OWN_MAC) / IP(src="10.0.0.1", dst="10.0.0.2", id=77)
                   / UDP(sport=5, dport=6) / data)
    template = packet.copy()
    template[IP].chksum, template[UDP].chksum = 0, seed_of(packet, 8 + len(data))
    channel.submit(opcode=Opcode.SEND_FRAME, tag=0xBEEF, inline=bytes(template)[:42], l3_offset=14, l4_offset=34,
                   checksum_offset=40, pieces=[(PAYLOAD_KEY, at, size) for at, size in parts],
                   flags=SendFlag.COMPLETE | SendFlag.IPV4_CHECKSUM | SendFlag.L4_CHECKSUM | SendFlag.UDP
                   | SendFlag.TIMESTAMP)
    await channel.arm()
    await bench.ring("TX_DOORBELL", channel.number, channel.tx_producer, size=2, awid=9)
    assert await bench.sent() == bytes(packet)
    [done] = await channel.finished(1)
    assert (done["kind"], done["status"], done["tag"]) == (CompletionKind.SEND, Status.OK, 0xBEEF)
    assert (done["length"], done["segments"], done["ring_index"]) == (len(data), 1, channel.tx_producer)
    assert done["timestamp"] == bench.rules.tx_starts[-1]


async def send_in_segments(bench: Bench, channel: Channel, payload: bytes) -> None:
    """One descriptor, four segments; each is what scapy builds."""
    mss, at, size = 536, 0x123, 3 * 536 + 391
    data = payload[at : at + size]

    def segment(number: int, flags: str, body: bytes) -> Any:
        return built(Ether(dst=PEER_MAC, src=OWN_MAC) / IP(src="10.0.0.1", dst="10.9.8.7", id=0xFFFE + number & 0xFFFF,
                                                          flags="DF")
                     / TCP(sport=80, dport=4096, seq=0xFFFF_FF00 + mss * number & 0xFFFF_FFFF, ack=5, flags=flags,
                           window=1000, options=[("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]) / body)

    bodies = [data[start : start + mss] for start in range(0, size, mss)]
    expected = [segment(number, ["AC", "A", "A", "FPA"][number], body) for number, body in enumerate(bodies)]
    template = segment(0, "FPAC", b"")
    template[IP].len, template[IP].chksum = 0, 0
    template[TCP].chksum = seed_of(template, 0)
    head = bytes(template)[: 14 + 20 + 32]
    cut = 1000
    channel.submit(opcode=Opcode.SEND_SEGMENTED, tag=1, mss=mss, inline=head, l3_offset=14, l4_offset=34,
                   checksum_offset=50, flags=SendFlag.COMPLETE,
                   pieces=[(PAYLOAD_KEY, at, cut), (PAYLOAD_KEY, at + cut, size - cut)])
    await channel.arm()
    await bench.ring("TX_DOORBELL", channel.number, channel.tx_producer)
    for packet in expected:
        assert await bench.sent() == bytes(packet)
    [done] = await channel.finished(1)
    assert (done["status"], done["tag"], done["length"], done["segments"]) == (Status.OK, 1, size, 4)


async def send_round_the_rings(bench: Bench, channel: Channel) -> None:
    """Inline frames until both rings have wrapped; the phase turns."""
    sends = 0
    while channel.consumer <= 2 << channel.log2:
        frames = [bench.rng.randbytes(bench.rng.randrange(65, 97)) for _ in range(4)]
        for frame in frames:
            channel.submit(opcode=Opcode.SEND_FRAME, tag=sends, inline=frame, pieces=[], flags=SendFlag.COMPLETE)
            sends += 1
        await bench.ring("TX_DOORBELL", channel.number, channel.tx_producer)
        await channel.arm()
        for frame in frames:
            assert await bench.sent() == frame
        done = await channel.finished(4)
        assert [entry["tag"] for entry in done] == list(range(sends - 4, sends))
        assert all(entry["status"] == Status.OK for entry in done)
    assert sends > 30


async def refuse_a_key(bench: Bench, channel: Channel) -> None:
    """A stale key is answered without any access to its memory."""
    reads = bench.rules.beats["m_axi_ar"]
    channel.submit(opcode=Opcode.SEND_FRAME, tag=3, inline=b"", flags=0, pieces=[(make_key(5, 2), 0, 60)])
    await channel.arm()
    await bench.ring("TX_DOORBELL", channel.number, channel.tx_producer)
    [done] = await channel.finished(1)
    assert (done["status"], done["tag"], done["length"]) == (Status.KEY_INVALID, 3, 0)
    assert bench.rules.beats["m_axi_ar"] == reads + 1  # the descriptor alone


def received_frames(rng: random.Random) -> list[tuple[bytes, RxInfo | None, bool]]:
    """Frames for the device: bytes, what the parser must say (None: the frame is dropped), whether the MAC flags it."""
    good = RxInfo.L3_CHECKSUM_OK | RxInfo.L4_CHECKSUM_OK | RxInfo.IPV4

    def udp(size: int, dst: str = OWN_MAC, **ip: Any) -> bytes:
        return bytes(Ether(dst=dst, src=PEER_MAC) / IP(src="10.0.0.2", dst="10.0.0.1", **ip) / UDP(sport=1, dport=2)
                     / rng.randbytes(size))

    broken = bytearray(bytes(Ether(dst=OWN_MAC, src=PEER_MAC) / IP(dst="10.0.0.1", src="10.0.0.2") / TCP()
                             / rng.randbytes(200)))
    broken[-1] ^= 0x10
    return [
        (udp(18), good | RxInfo.UDP, False),
        (udp(100, dst="02:00:00:00:00:03"), None, False),
        (udp(1472), good | RxInfo.UDP, False),
        (bytes(broken), RxInfo.IPV4 | RxInfo.TCP | RxInfo.L3_CHECKSUM_OK | RxInfo.CHECKSUM_BAD, False),
        (udp(300), None, True),
        (bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src=PEER_MAC, type=0x0806)) + rng.randbytes(46), RxInfo.RAW_SUM,
         False),
        (udp(1999), good | RxInfo.UDP, False),
    ]


async def receive(bench: Bench, channel: Channel) -> None:
    """Frames into buffers at odd addresses; the interrupt comes when its time has, not before."""
    before = await bench.counters()
    poison = b"\xa5" * BUFFERS_BYTES
    bench.ram.write(BUFFERS_PLACE, poison)
    image = bytearray(poison)
    frames = received_frames(bench.rng)
    kept = [(data, info) for data, info, _ in frames if info is not None]
    buffers = [(0x801 * number + number % 3, 0x7F0 + number) for number in range(len(kept) + 1)]
    for number, (offset, length) in enumerate(buffers):
        channel.post(key=BUFFERS_KEY, offset=offset, length=max(length, 2041), buffer_id=0xFF00 + number)
    await channel.arm()
    await bench.ring("RX_DOORBELL", channel.number, channel.rx_producer)
    await bench.settle()
    bench.rules.rx_starts.clear()
    assert not bench.dut.deadline_valid.value
    for data, _, bad in frames:
        bench.source.send_nowait(AxiStreamFrame(data, tuser=[0] * (len(data) - 1) + [int(bad)]))

    while not bench.dut.deadline_valid.value:
        await RisingEdge(bench.dut.clk)
    deadline = int(bench.dut.next_deadline.value)
    assert deadline > bench.rules.rx_starts[0] + RX_TICKS
    risen = await bench.interrupt(channel.vector)
    assert deadline <= risen < deadline + 16
    found = channel.completions()
    while len(found) < len(kept):
        await channel.arm()
        await bench.interrupt(channel.vector)
        found += channel.completions()

    starts = [start for start, (_, info, _) in zip(bench.rules.rx_starts, frames, strict=True) if info is not None]
    for number, (entry, (data, info), start) in enumerate(zip(found, kept, starts, strict=True)):
        assert (entry["kind"], entry["status"], entry["tag"]) == (CompletionKind.RECEIVE, Status.OK, 0xFF00 + number)
        assert (entry["length"], entry["offset"], entry["segments"]) == (len(data), 0, 1)
        assert entry["info"] == info
        assert entry["timestamp"] == start
        offset = buffers[number][0]
        image[offset : offset + len(data)] = data
    assert bench.ram.read(BUFFERS_PLACE, BUFFERS_BYTES) == image
    assert bench.ram.read(BUFFERS_PLACE - 16, 16) == bytes(16)

    after = await bench.counters()
    counted = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert counted.pop("interrupts") >= 1
    assert counted == {
        "rx_frames_in": len(frames), "rx_frames": len(kept), "rx_bytes": sum(len(data) for data, _ in kept),
        "rx_filtered": 1, "rx_bad_frames": 1, "rx_checksum_errors": 1, "completions": len(kept)}


@cocotb.test(timeout_time=LIMIT_PS, timeout_unit="ps")
async def exchange(dut: Any) -> None:
    """Sends, segments, refusals and receives over models that stall at random on every channel."""
    bench = Bench(dut, random.Random(SEED))
    await bench.start()
    own = bytes.fromhex(OWN_MAC.replace(":", ""))
    await bench.write(register("MAC_ADDRESS_LO"), int.from_bytes(own[:4], "little"))
    await bench.write(register("MAC_ADDRESS_HI"), int.from_bytes(own[4:], "little"))
    await bench.write(register("RX_FILTER"), RxFilter.BROADCAST)
    for key, owner, place, length, right in (
        (PAYLOAD_KEY, TX_CHANNEL, PAYLOAD_PLACE, PAYLOAD_BYTES, KeyRight.READ),
        (BUFFERS_KEY, 0, BUFFERS_PLACE, BUFFERS_BYTES, KeyRight.WRITE),
    ):
        index, generation = key & 0xFFF, key >> 12
        await bench.write_pair(key_register("KEY_ADDRESS_LO", index), MEMORY_BASE + place)
        await bench.write_pair(key_register("KEY_LENGTH_LO", index), length)
        await bench.write(key_register("KEY_COMMIT", index), 1 << 31 | owner << 16 | right << 12 | generation)
    for vector in (TX_VECTOR, RX_VECTOR):
        await bench.write(vector_register("VECTOR_MASK", vector), 0)
    await bench.write(vector_register("VECTOR_RX_TICKS", RX_VECTOR), RX_TICKS)
    tx = Channel(bench, TX_CHANNEL, 0x1_0000, vector=TX_VECTOR)
    rx = Channel(bench, 0, 0x2_0000, vector=RX_VECTOR)
    await tx.enable(OperationMask.SEND_FRAME | OperationMask.SEND_SEGMENTED)
    await rx.enable(OperationMask.RECEIVE_RAW)
    await bench.write(register("RX_ENABLE"), 1)

    payload = bench.rng.randbytes(PAYLOAD_BYTES)
    bench.ram.write(PAYLOAD_PLACE, payload)
    await send_a_frame_with_checksums(bench, tx, payload)
    await send_in_segments(bench, tx, payload)
    await refuse_a_key(bench, tx)
    await send_round_the_rings(bench, tx)
    await receive(bench, rx)
    for channel in (tx, rx):
        assert await bench.read(channel_register("TX_INDEX", channel.number)) == channel.tx_producer
        assert await bench.read(channel_register("CQ_INDEX", channel.number)) == channel.consumer
        assert await bench.read(channel_register("CHANNEL_STATUS", channel.number)) == ChannelState.RUNNING

    await bench.pages.read(0, 4)  # so that each channel of each port has carried something
    await bench.settle()
    assert bench.sink.empty()
    assert not tx.completions() + rx.completions()
    bench.rules.assert_nothing_left()
