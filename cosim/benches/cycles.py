"""Loads for `memnic bench rtl`, and what they count: the device's driver over the compiled engine, its ports traced.

Each load is a coroutine over a `Rig`. Host memory is never what limits, but for its latency; the MAC takes a beat in
every cycle. Whatever a load needs stands in the rings before it begins, so the host does nothing while cycles are
counted.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

from cosim.benches.limits import HEADER_BYTES, beats, segmented_beats
from cosim.engines.bench import CountingPort
from cosim.engines.bus import Bus, BusTiming
from cosim.engines.compiled import CompiledDevice
from cosim.engines.host_port import BLOCK_BYTES
from cosim.engines.library import Library, PortEvent, PortEventKind
from cosim.engines.transactor_port import TransactorPort
from cosim.mac import PS_PER_S, MacTiming, SentFrame
from cosim.memory import HostMemory
from host_driver.account import NullAccount
from host_driver.channel import Channel
from host_driver.nic import Nic
from host_driver.rings import Descriptor, Piece
from host_driver.runtime import Kernel, Task
from nic_model.contract import (
    COMPLETION_BYTES,
    RAW_CHANNEL,
    SUBMISSION_SLOT_BYTES,
    CompletionKind,
    KeyRight,
    NicConfig,
    Opcode,
    OperationMask,
    Status,
    doorbell,
    slots_needed,
)
from nic_model.contract.protocols import ETHERNET_HEADER_BYTES

T = TypeVar("T")

READ_LATENCY_CYCLES, WRITE_LATENCY_CYCLES = 250, 100
REORDER_CYCLES = 100
"""Out of order, reads come after 200 to 300 cycles, each by chance, so after 250 on the average."""

_NEAR = BusTiming(read_latency_cycles=READ_LATENCY_CYCLES, write_latency_cycles=WRITE_LATENCY_CYCLES,
                  mmio_read_cycles=20, mmio_write_cycles=10, bytes_per_cycle=1 << 30, duplex=True, tags=4096)
BUSES = {
    "in order": _NEAR,
    "out of order": BusTiming(
        read_latency_cycles=READ_LATENCY_CYCLES - REORDER_CYCLES // 2, write_latency_cycles=WRITE_LATENCY_CYCLES,
        mmio_read_cycles=20, mmio_write_cycles=10, bytes_per_cycle=1 << 30, duplex=True, tags=4096,
        reorder_cycles=REORDER_CYCLES, seed=1),
}
"""Host memory as the bench has it: what moves takes the latency, and the beats at the device's own ports."""

SEND_BYTES = 1 << 16
BUFFER_BYTES = 2048
LARGE_FRAME_BYTES, SMALL_FRAME_BYTES = 1514, 60
RING_LOG2 = 12
"""Of a ring that holds all that a load needs, if the device may have one so large."""
FLOWS = 128
"""Of frames that arrive, one after the other."""
WARM_SHARE = 0.25
"""Of a load passes before cycles are counted."""
STEADY_CYCLES = 40_000
"""That a load takes at least, if nothing holds it up."""
LOOK_CYCLES = 1000
SETTLE_CYCLES = 4000
"""In which the device fetches what it fetches ahead, and everything under way ends."""
GAP_CYCLES = 3000
"""Between two frames whose latency is measured: nothing of one is left when the next begins."""
SAMPLES = 8
PUSH_WINDOW_BYTES = 1024
"""Of each doorbell page."""
GIVE_UP_LOOKS = 1000

OWN_MAC, PEER_MAC = bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 2])
NOBODY = NullAccount()


class LoadFailed(RuntimeError):
    """The device did not do what the load asked for: says what came instead."""


class Rig(NamedTuple):
    """What a load gets."""

    config: NicConfig
    kernel: Kernel
    memory: HostMemory
    port: TransactorPort
    library: Library
    deliver: Callable[[bytes, int], None]
    """`deliver(frame, time_ps)`: it stands before the device at that time, or behind the frame before it."""

    def after(self, cycles: float) -> int:
        """Time in picoseconds, so many cycles from now."""
        return self.kernel.now + round(cycles * PS_PER_S / self.config.clock_hz)

    async def sleep(self, cycles: int) -> None:
        """Pass so many cycles."""
        await self.kernel.sleep(self.after(cycles) - self.kernel.now)


class CycleBench(Generic[T]):
    """Implements `cosim.engines.bench.Bench`: one load; `outcome` is what the load returns."""

    def __init__(self, config: NicConfig, timing: BusTiming, load: Callable[[Rig], Awaitable[T]],
                 memory_bytes: int = 1 << 26) -> None:
        self.config = config
        self.kernel = Kernel()
        self.memory = HostMemory(memory_bytes)
        self.bus = Bus(timing)
        self.timing = MacTiming(bit_rate=1 << 50, lookahead_ps=PS_PER_S)
        self.deliver: Callable[[bytes, bool, int], None] = lambda frame, bad, time_ps: None
        self.mac = self
        self._load = load
        self._task: Task[T] | None = None

    def __enter__(self) -> CycleBench[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        return

    def transmitted(self, frames: Sequence[SentFrame]) -> None:
        """Nobody listens: the trace counts."""

    def start(self, port: CountingPort) -> None:
        """Begin."""
        assert isinstance(port, TransactorPort)
        assert isinstance(port.library, Library)
        rig = Rig(self.config, self.kernel, self.memory, port, port.library,
                  lambda frame, time_ps: self.deliver(frame, False, time_ps))
        self._task = self.kernel.spawn(self._load(rig), "load")  # type: ignore[arg-type]

    def finished(self) -> bool:
        """Whether the load has what it wants."""
        return self._task is not None and self._task.done

    def outcome(self, port: CountingPort) -> T:
        """What the load returned."""
        assert self._task is not None
        return self._task.result()

    def partial(self, port: CountingPort) -> None:
        """Nothing."""


def run(config: NicConfig, library: Path, timing: BusTiming, load: Callable[[Rig], Awaitable[T]]) -> T:
    """What a load returns over a new device of the library in a built folder.

    Raises `host_driver.runtime.TaskFailed` when the load does, RunError when the device cannot go on.
    """
    bench = CycleBench(config, timing, load)
    with bench, CompiledDevice(config, path=library) as device:
        port = TransactorPort(device.library, config, bench.kernel, bench.memory, bench.mac, bench.bus)
        bench.start(port)
        device.run(port, bench, jump=True)
        return bench.outcome(port)


# ---------------------------------------------------------------------------------------------- throughput


async def transmit_share(rig: Rig, *, mss: int, channels: int) -> float:
    """Percent of cycles with a beat to the MAC while `channels` channels send 64 KB at a time, cut into segments."""
    nic = await Nic.probe(rig.port)
    template = _headers()
    rounds = max(4, -(-STEADY_CYCLES // segmented_beats(rig.config, SEND_BYTES, mss)))
    each = -(-rounds // channels)
    log2 = max(4, (each * slots_needed(len(template), 1) - 1).bit_length())
    senders = []
    for number in range(1, 1 + channels):
        sender = await nic.open_channel(number, operations=OperationMask.SEND_SEGMENTED, vector=0, tx_log2=log2,
                                        rx_log2=4)
        data = rig.memory.allocate(SEND_BYTES, 4096)
        key = nic.register_memory(data, SEND_BYTES, KeyRight.READ, number, NOBODY)
        send = Descriptor(Opcode.SEND_SEGMENTED, template, (Piece(key.value, 0, SEND_BYTES),), mss=mss, l3_offset=14,
                          l4_offset=34, checksum_offset=50)
        for _ in range(each):
            sender.submit(send, None)
        senders.append(sender)
    await rig.sleep(SETTLE_CYCLES)
    rig.library.trace(on=True)
    for sender in senders:
        sender.ring_doorbell(NOBODY)
    await _until_sent(rig, senders, each * channels)
    sent = _of(rig.library.take_trace(), PortEventKind.SENT)
    first = int(len(sent) * WARM_SHARE)
    moved = sum(event.number for event in sent[first + 1 :])
    return 100 * moved / (sent[-1].edge - sent[first].edge)


class Received(NamedTuple):
    """What came of frames that arrived without a pause."""

    percent: float
    """Of cycles in which a beat arrived that was delivered to memory."""
    dropped: int
    arrived: int


async def receive_share(rig: Rig, *, frame_bytes: int) -> Received:
    """Offer frames to channel 0 in every cycle."""
    _, receiver = await _receiver(rig)
    each = beats(frame_bytes, rig.config.mac_bytes)
    count = min(receiver.buffers.entries, 2 * STEADY_CYCLES // each)  # what its FIFO takes must not count
    frame = _frame(frame_bytes)
    rig.library.trace(on=True)
    start_ps = rig.after(1)
    for _ in range(count):
        rig.deliver(frame, start_ps)
    arrived: list[PortEvent] = []
    for _ in range(GIVE_UP_LOOKS):
        await rig.sleep(LOOK_CYCLES)
        arrived += _of(rig.library.take_trace(), PortEventKind.ARRIVE)
        if len(arrived) == count:
            break
    else:
        raise LoadFailed(f"{len(arrived)} of {count} frames were taken from the MAC")
    await rig.sleep(SETTLE_CYCLES)
    stamps = _stamps(receiver)
    if not stamps:
        raise LoadFailed("no frame was delivered")
    since, until = arrived[int(count * WARM_SHARE)].edge, arrived[-1].edge
    accepted = _between(_edges(stamps, arrived), since, until)
    offered = _between([event.edge for event in arrived], since, until)
    return Received(100 * accepted * each / (until - since), offered - accepted, offered)


class Duplex(NamedTuple):
    """Cycles a frame each way, while frames went both ways."""

    transmit: float
    receive: float


async def duplex_cycles(rig: Rig, *, frame_bytes: int, senders: int, receivers: int, period: float) -> Duplex:
    """Send frames of one piece by channels 1 .. `senders` as fast as they go, while one arrives every `period` cycles,
    spread over channels 0 .. `receivers` - 1."""
    nic = await Nic.probe(rig.port)
    largest = 1 << min(RING_LOG2, nic.capabilities.max_ring_log2)
    length = beats(frame_bytes, rig.config.mac_bytes)
    wanted = int(STEADY_CYCLES // max(period, 2 * length))
    each = min(largest, 2 * wanted // senders)
    receiving, sending = [], []
    for number in range(max(receivers, senders + 1)):
        sends, receives = 1 <= number <= senders, number < receivers
        operations = ((OperationMask.SEND_FRAME if sends else OperationMask(0))
                      | (OperationMask.RECEIVE_RAW if receives else OperationMask(0)))
        channel = await nic.open_channel(
            number, operations=operations, vector=0, tx_log2=max(4, (each - 1).bit_length()) if sends else 4,
            rx_log2=largest.bit_length() - 1 if receives else 4)
        if sends:
            stride = -(-frame_bytes // 64) * 64
            data = rig.memory.allocate(each * stride, 4096)
            key = nic.register_memory(data, each * stride, KeyRight.READ, number, NOBODY)
            for index in range(each):
                piece = Piece(key.value, index * stride, frame_bytes)
                channel.submit(Descriptor(Opcode.SEND_FRAME, pieces=(piece,)), None)
            sending.append(channel)
        if receives:
            _post(rig, nic, channel)
            receiving.append(channel)
    await _listen(rig, nic, receiving)
    rig.library.trace(on=True)
    frames = [_frame(frame_bytes, flow) for flow in range(FLOWS)]
    arrivals = int(2 * wanted * max(1.0, 2 * length / period))
    for number in range(arrivals):
        rig.deliver(frames[number % FLOWS], rig.after(1 + number * period))
    for channel in sending:
        channel.ring_doorbell(NOBODY)
    events: list[PortEvent] = []
    sent = arrived = 0
    for _ in range(GIVE_UP_LOOKS):
        await rig.sleep(LOOK_CYCLES)
        taken = rig.library.take_trace()
        sent += len(_of(taken, PortEventKind.SENT))
        arrived += len(_of(taken, PortEventKind.ARRIVE))
        events += taken
        if sent == each * senders or arrived == arrivals:
            break
    else:
        raise LoadFailed(f"{sent} of {each * senders} frames were sent, {arrived} of {arrivals} taken from the MAC")
    await rig.sleep(SETTLE_CYCLES)
    # Until the first of them has no more: frames to send, frames that arrive, buffers of a channel.
    stamps = [_stamps(channel) for channel in receiving]
    begin = min(found[0] for found in stamps if found)
    ends = [found[-1] - begin for found, channel in zip(stamps, receiving, strict=True)
            if len(found) == channel.buffers.entries]
    arrives = _of(events, PortEventKind.ARRIVE)
    sends_at = [event.edge for event in _of(events, PortEventKind.SENT)]
    receives_at = _edges(sorted(itertools.chain(*stamps)), arrives)
    until = min([sends_at[-1], arrives[-1].edge, *(arrives[0].edge + end for end in ends)])
    since = max(sends_at[0], receives_at[0])
    since += int((until - since) * WARM_SHARE)
    for done in itertools.chain(*(channel.completions() for channel in sending)):
        _check(done.completion.status)
    return Duplex(_period(sends_at, since, until), _period(receives_at, since, until))


# ---------------------------------------------------------------------------------------------- latency


async def doorbell_latency(rig: Rig, *, frame_bytes: int) -> list[int]:
    """Cycles from a doorbell to the first beat of a frame of one piece, less the round trips of descriptor and payload
    (from a read's address to its first beat); of several frames, each alone."""
    nic = await Nic.probe(rig.port)
    sender = await nic.open_channel(1, operations=OperationMask.SEND_FRAME, vector=0, tx_log2=6, rx_log2=4)
    data = rig.memory.allocate(4096, 4096)
    key = nic.register_memory(data, 4096, KeyRight.READ, 1, NOBODY)
    slots = sender.submissions
    ring = range(slots.address, slots.address + slots.entries * SUBMISSION_SLOT_BYTES)
    found = []
    for sample in range(SAMPLES):
        await rig.sleep(GAP_CYCLES + sample)
        rig.library.trace(on=True)
        sender.submit(Descriptor(Opcode.SEND_FRAME, pieces=(Piece(key.value, 64 * sample, frame_bytes),)), None)
        sender.ring_doorbell(NOBODY)
        await _until_sent(rig, [sender], 1)
        events = rig.library.take_trace()
        rung, first = _of(events, PortEventKind.DOORBELL)[0].edge, _of(events, PortEventKind.SEND)[0].edge
        trips = _round_trips(events)
        found.append(first - rung - sum(_the(trips, ring)) - sum(_the(trips, range(data, data + 4096))))
    return found


async def push_latency(rig: Rig, *, frame_bytes: int) -> list[int]:
    """Cycles from the last beat of a pushed descriptor with an inline frame to the frame's first beat; of several, each
    alone. Raises LoadFailed if the device reads anything."""
    nic = await Nic.probe(rig.port)
    sender = await nic.open_channel(1, operations=OperationMask.SEND_FRAME, vector=0, tx_log2=6, rx_log2=4)
    window = range(doorbell("PUSH", 1), doorbell("PUSH", 1) + PUSH_WINDOW_BYTES)
    found = []
    for sample in range(SAMPLES):
        await rig.sleep(GAP_CYCLES + sample)
        rig.library.trace(on=True)
        _push(rig, sender, Descriptor(Opcode.SEND_FRAME, inline=_frame(frame_bytes)))
        await _until_sent(rig, [sender], 1)
        events = rig.library.take_trace()
        if reads := len(_of(events, PortEventKind.READ)):
            raise LoadFailed(f"a pushed frame needed {reads} DMA reads")
        pushed = max(event.edge for event in _of(events, PortEventKind.DOORBELL) if event.number in window)
        found.append(_of(events, PortEventKind.SEND)[0].edge - pushed)
    return found


async def receive_latency(rig: Rig, *, frame_bytes: int) -> list[int]:
    """Cycles from a frame's last beat to its completion's, less the frame's host beats and the time that the bus takes
    to answer its last write; of several frames, each alone."""
    _, receiver = await _receiver(rig)
    entries = receiver.completed
    ring = range(entries.address, entries.address + entries.entries * COMPLETION_BYTES)
    found = []
    for sample in range(SAMPLES):
        await rig.sleep(GAP_CYCLES + sample)
        rig.library.trace(on=True)
        rig.deliver(_frame(frame_bytes), rig.after(1))
        await rig.sleep(GAP_CYCLES)
        events = rig.library.take_trace()
        if sum(1 for _ in receiver.completions()) != 1:
            raise LoadFailed(f"a frame of {frame_bytes} bytes was not delivered")
        arrived = _of(events, PortEventKind.ARRIVED)[0].edge
        writes = _of(events, PortEventKind.WRITE)
        completed = next(event.edge for event in writes if event.number in ring)
        written = max(event.edge for event in writes if event.number not in ring)
        answered = max(event.edge for event in _of(events, PortEventKind.WRITTEN) if event.edge <= completed)
        found.append(completed - arrived - (answered - written) - beats(frame_bytes, rig.config.host_bytes))
    return found


# ---------------------------------------------------------------------------------------------- their parts


async def _receiver(rig: Rig) -> tuple[Nic, Channel]:
    """Channel 0 with its receive ring full of buffers that the device has been told of; it listens."""
    nic = await Nic.probe(rig.port)
    log2 = min(RING_LOG2, nic.capabilities.max_ring_log2)
    receiver = await nic.open_channel(RAW_CHANNEL, operations=OperationMask.RECEIVE_RAW, vector=0, tx_log2=4,
                                      rx_log2=log2)
    _post(rig, nic, receiver)
    await _listen(rig, nic, [receiver])
    return nic, receiver


def _post(rig: Rig, nic: Nic, receiver: Channel) -> None:
    """Fill a receive ring."""
    count = receiver.buffers.entries
    memory = rig.memory.allocate(count * BUFFER_BYTES, 4096)
    key = nic.register_memory(memory, count * BUFFER_BYTES, KeyRight.WRITE, receiver.number, NOBODY)
    for number in range(count):
        receiver.post(Piece(key.value, number * BUFFER_BYTES, BUFFER_BYTES), number, number)


async def _listen(rig: Rig, nic: Nic, receivers: Sequence[Channel]) -> None:
    """Tell the device of the buffers, let it fetch the first ones, and receive: flows spread over the channels."""
    nic.set_mac_address(OWN_MAC)
    if len(receivers) > 1:
        steering: Any = nic
        steering.set_rss(indirection=[receiver.number for receiver in receivers])
    nic.enable_receive(True)
    for receiver in receivers:
        receiver.ring_doorbell(NOBODY)
    await rig.sleep(SETTLE_CYCLES)


def _push(rig: Rig, sender: Channel, descriptor: Descriptor) -> None:
    """Submit a descriptor, push it too, and ring its doorbell."""
    index = sender.submissions.producer
    sender.submit(descriptor, None)
    slots = [bytes(rig.memory.view(sender.submissions.address + at * SUBMISSION_SLOT_BYTES, SUBMISSION_SLOT_BYTES))
             for at in ((index + number) % sender.submissions.entries for number in range(descriptor.slots))]
    for offset, block in _blocks(index, slots):
        rig.port.write_block(doorbell("PUSH", sender.number) + offset, block)
    sender.ring_doorbell(NOBODY)


def _blocks(index: int, slots: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """(offset in the push window, bytes) of each block that slots from a ring index on take there; see the register
    PUSH. Slot i of the ring has place i modulo the window; a block's other slot is zero."""
    blocks: dict[int, bytearray] = {}
    for number, slot in enumerate(slots):
        place = (index + number) * SUBMISSION_SLOT_BYTES % PUSH_WINDOW_BYTES
        block = blocks.setdefault(place // BLOCK_BYTES * BLOCK_BYTES, bytearray(BLOCK_BYTES))
        block[place % BLOCK_BYTES : place % BLOCK_BYTES + SUBMISSION_SLOT_BYTES] = slot
    return [(offset, bytes(block)) for offset, block in blocks.items()]


async def _until_sent(rig: Rig, senders: Iterable[Channel], count: int) -> None:
    """Wait for so many completions in all."""
    done = 0
    for _ in range(GIVE_UP_LOOKS):
        await rig.sleep(LOOK_CYCLES)
        for sender in senders:
            for finished in sender.completions():
                _check(finished.completion.status)
                done += 1
        if done == count:
            return
    raise LoadFailed(f"{done} of {count} sends were completed")


def _check(status: Status) -> None:
    if status is not Status.OK:
        raise LoadFailed(f"a completion says {status.name}")


def _stamps(receiver: Channel) -> list[int]:
    """When each frame that was delivered began, by the device's clock."""
    stamps = []
    for done in receiver.completions():
        _check(done.completion.status)
        if done.completion.kind is CompletionKind.RECEIVE:
            stamps.append(done.completion.timestamp)
    return stamps


def _edges(stamps: Sequence[int], arrived: Sequence[PortEvent]) -> list[int]:
    """The edges of these stamps: the first frame of all is always delivered."""
    return [stamp - stamps[0] + arrived[0].edge for stamp in stamps]


def _of(events: Iterable[PortEvent], kind: PortEventKind) -> list[PortEvent]:
    return [event for event in events if event.kind is kind]


def _between(edges: Iterable[int], since: int, until: int) -> int:
    return sum(since <= edge < until for edge in edges)


def _period(edges: Sequence[int], since: int, until: int) -> float:
    """Cycles from one to the next, between two edges; of an even number of periods, since frames that come every 10.5
    cycles come after 10 and 11 in turn."""
    inside = [edge for edge in edges if since <= edge <= until]
    if len(inside) < 100:
        raise LoadFailed(f"only {len(inside)} frames in {until - since} cycles")
    periods = (len(inside) - 1) // 2 * 2
    return (inside[periods] - inside[0]) / periods


def _round_trips(events: Iterable[PortEvent]) -> list[tuple[int, int]]:
    """(address, cycles to its first beat) of each read. A read's id is its own until its last beat."""
    asked: dict[int, PortEvent] = {}
    trips = []
    for event in events:
        if event.kind is PortEventKind.READ:
            asked[event.id] = event
        elif event.kind is PortEventKind.DATA and event.id in asked:
            read = asked.pop(event.id)
            trips.append((read.number, event.edge - read.edge))
    return trips


def _the(trips: Iterable[tuple[int, int]], where: range) -> list[int]:
    """Cycles of the one read of a place."""
    found = [cycles for address, cycles in trips if address in where]
    if len(found) != 1:
        raise LoadFailed(f"{len(found)} reads where one was expected")
    return found


def _headers(flow: int = 0) -> bytes:
    """Ethernet, IPv4 and TCP headers as a segmented send has them; checksums are the device's work."""
    headers = (PEER_MAC + OWN_MAC + b"\x08\x00"
               + struct.pack(">BBHHHBBH4s4s", 0x45, 0, 0, 1, 0, 64, 6, 0, bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1]))
               + struct.pack(">HHIIBBHHH", 80, 1024 + flow, 1, 1, 0x50, 0x18, 0xFFFF, 0, 0))
    assert len(headers) == HEADER_BYTES
    return headers


def _frame(length: int, flow: int = 0) -> bytes:
    """A frame for the device, with the lengths that its headers should have, of one of many flows."""
    headers = bytearray(OWN_MAC + PEER_MAC + _headers(flow)[12:])
    headers[16:18] = (length - ETHERNET_HEADER_BYTES).to_bytes(2, "big")
    return bytes(headers).ljust(length, b"\x55")
