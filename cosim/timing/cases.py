"""Workloads for a device, whatever it is made of: sends, frames that arrive, and a host that answers interrupts.

A case says when which doorbell is rung and which frame arrives, in cycles from its start; so the same case over the
RTL and over the timed model has the same inputs at the same edges. `drive` is the host, over any Port.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from cosim.engines.bus import BusTiming
from cosim.mac import PS_PER_S, MacTiming
from cosim.memory import HostMemory
from host_driver.account import NullAccount
from host_driver.channel import PUSHED_INLINE_BYTES, Channel
from host_driver.nic import Nic
from host_driver.port import Port
from host_driver.rings import Descriptor, Piece
from host_driver.runtime import Kernel
from nic_model.checksum import internet_checksum
from nic_model.contract import (
    RAW_CHANNEL,
    KeyRight,
    NicConfig,
    Opcode,
    OperationMask,
    SendFlag,
    Status,
    slots_needed,
)
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    TCP_FLAGS_OFFSET,
    TCP_HEADER_BYTES,
    TcpFlags,
)

START_CYCLES = 60_000
"""From the device's reset to a case's start: all registers are written by then, and everything rests."""

LOOK_CYCLES = 2_000
SETTLE_CYCLES = 4_000
STUCK_LOOKS = 200
"""Looks without a new completion after which a case has come to nothing."""

DROPPED_LOOKS, TOLD_LATE_LOOKS = 10, 60
"""Likewise behind the last frame that arrives: then the rest was dropped. More if interrupts tell, which moderation
holds back: for several sends of 64 KB, perhaps."""

BUFFER_BYTES = 2048
HEADER_BYTES = ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES + TCP_HEADER_BYTES
REGION_BYTES = 1 << 17
"""Memory that a channel's sends read."""

OWN_MAC, PEER_MAC = bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 2])
NOBODY = NullAccount()
_BOTH_CHECKSUMS, _NO_CHECKSUM = SendFlag.IPV4_CHECKSUM | SendFlag.L4_CHECKSUM, SendFlag(0)


@dataclass(frozen=True, kw_only=True)
class Send:
    """One send. With `mss` it is cut into segments; its header is inline then."""

    payload: int
    """Bytes that are read from memory."""
    inline: int = 0
    """Bytes that stand in the descriptor."""
    mss: int = 0
    checksums: bool = False
    """The device puts both checksums in; of a segmented send it always does."""
    offset: int = 0
    """Of the payload's first byte, in the channel's memory."""
    pieces: int = 1
    """That the payload is cut into."""
    complete: bool = True

    @property
    def frames(self) -> int:
        """How many it becomes."""
        return -(-self.payload // self.mss) if self.mss else 1

    @property
    def slots(self) -> int:
        """Submission slots it takes."""
        return slots_needed(HEADER_BYTES if self.mss else self.inline, len(self.cut()))

    def cut(self) -> list[tuple[int, int]]:
        """(offset, length) of its pieces."""
        each = -(-self.payload // self.pieces)
        return [(self.offset + at, min(each, self.payload - at)) for at in range(0, self.payload, each or 1)]


@dataclass(frozen=True, kw_only=True)
class Sender:
    """What a channel sends."""

    channel: int
    sends: tuple[Send, ...]
    bells: tuple[tuple[int, int], ...]
    """(cycle, how many more sends the device is told of)."""
    pushes: bool = False
    """Short sends without pieces go through the push window, if they are alone."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A frame for the device: its last bit comes at `cycle`, or behind the frame before it."""

    cycle: int
    length: int
    flow: int = 0
    sequence: int = -1
    """Of its TCP segment, whose checksums are right then; -1: whatever."""


@dataclass(frozen=True, kw_only=True)
class Moderation:
    """Of each vector, in cycles and completions; and how long the host takes from an interrupt to its arm."""

    rx_ticks: int = 0
    rx_frames: int = 0
    tx_ticks: int = 0
    tx_frames: int = 0
    host_cycles: int = 500


@dataclass(frozen=True, kw_only=True)
class Case:
    """A workload, its bus and its MAC."""

    name: str
    bus: BusTiming
    mac: MacTiming = field(default_factory=lambda: MacTiming(bit_rate=1 << 40, lookahead_ps=PS_PER_S))
    senders: tuple[Sender, ...] = ()
    arrivals: tuple[Arrival, ...] = ()
    buffer_bytes: int = BUFFER_BYTES
    """Of each receive buffer."""
    receivers: int = 1
    """Channels that frames are spread over, from channel 0 on."""
    coalesce_ticks: int = 0
    """Of receive coalescing; 0: off."""
    seed: int = 0
    """Of the bytes that are sent."""
    moderation: Moderation | None = None
    """None: nobody listens to interrupts."""
    polls: tuple[tuple[int, int], ...] = ()
    """(cycle, cycles for which a processor has the bus then, and DMA waits)."""

    @property
    def frames(self) -> int:
        """That are sent."""
        return sum(send.frames for sender in self.senders for send in sender.sends)


class CaseFailed(RuntimeError):
    """A device did not do what the case asks for."""


def start_ps(config: NicConfig) -> int:
    """When a case begins."""
    return START_CYCLES * PS_PER_S // config.clock_hz


async def drive(config: NicConfig, case: Case, port: Port, kernel: Kernel, memory: HostMemory,
                deliver: Callable[[bytes, bool, int], None]) -> None:
    """Be the case's host, to its end. Raises CaseFailed when a send fails or nothing comes any more."""
    nic = await Nic.probe(port)
    channels: dict[int, Channel] = {}
    keys: dict[int, int] = {}
    receiving = range(case.receivers) if case.arrivals else range(0)
    of_channel = {sender.channel: sender for sender in case.senders}
    for number in sorted({*of_channel, *receiving}):
        sender = of_channel.get(number)
        slots = sum(send.slots for send in sender.sends) if sender else 0
        operations = OperationMask(0)
        if sender:
            operations |= OperationMask.SEND_FRAME | OperationMask.SEND_SEGMENTED
        if number in receiving:
            operations |= OperationMask.RECEIVE_RAW | OperationMask.COALESCE
        channels[number] = await nic.open_channel(
            number, operations=operations, vector=number % nic.capabilities.vectors,
            tx_log2=min(max(4, (slots - 1).bit_length()), nic.capabilities.max_ring_log2),
            rx_log2=_ring_log2(case, nic) if number in receiving else 4,
            push_bytes=PUSHED_INLINE_BYTES if sender and sender.pushes else 0)
        if sender:
            region = memory.allocate(REGION_BYTES, 4096)
            memory.view(region, REGION_BYTES)[:] = random.Random(case.seed + number).randbytes(REGION_BYTES)
            keys[number] = nic.register_memory(region, REGION_BYTES, KeyRight.READ, number, NOBODY).value
    for number in receiving:
        _post(nic, memory, channels[number], case.buffer_bytes)
    if case.arrivals:
        nic.set_mac_address(OWN_MAC)
        if case.receivers > 1:
            nic.set_rss(indirection=list(receiving))
        if case.coalesce_ticks:
            nic.set_coalescing(case.coalesce_ticks * 1e6 / config.clock_hz)
        nic.enable_receive(True)
        for number in receiving:
            channels[number].ring_doorbell(NOBODY)
    counts = dict.fromkeys(channels, 0)
    if case.moderation is not None:
        await _listen(config, case.moderation, nic, kernel, channels, counts)
    begin = start_ps(config)
    if kernel.now >= begin:
        raise CaseFailed(f"{case.name}: setting up took {kernel.now} ps, longer than it may")
    await kernel.sleep(begin - kernel.now)

    def at(cycle: int) -> int:
        return begin + cycle * PS_PER_S // config.clock_hz

    frames: dict[tuple[int, int, int], bytes] = {}
    for arrival in case.arrivals:
        kind = arrival.length, arrival.flow, arrival.sequence
        if kind not in frames:
            frames[kind] = frame_bytes(*kind)
        deliver(frames[kind], False, at(arrival.cycle))
    bells = sorted((cycle, sender.channel, count) for sender in case.senders for cycle, count in sender.bells)
    taken = dict.fromkeys(of_channel, 0)
    for cycle, number, count in bells:
        if at(cycle) > kernel.now:
            await kernel.sleep(at(cycle) - kernel.now)
        for send in of_channel[number].sends[taken[number] : taken[number] + count]:
            _submit(channels[number], send, keys[number])
        taken[number] += count
        channels[number].ring_doorbell(NOBODY)
    wanted = (sum(1 for sender in case.senders for send in sender.sends if send.complete)
              + sum(-(-arrival.length // case.buffer_bytes) for arrival in case.arrivals))
    await _until_done(config, case, kernel, channels, counts, wanted)


async def _until_done(config: NicConfig, case: Case, kernel: Kernel, channels: dict[int, Channel],
                      counts: dict[int, int], wanted: int) -> None:
    still, before = 0, -1
    patience = DROPPED_LOOKS if case.moderation is None else TOLD_LATE_LOOKS
    last = max([arrival.cycle for arrival in case.arrivals], default=0)
    while sum(counts.values()) < wanted:
        await kernel.sleep(LOOK_CYCLES * PS_PER_S // config.clock_hz)
        if case.moderation is None:
            for number, channel in channels.items():
                _take(channel, counts, number)
        done = sum(counts.values())
        passed = (kernel.now - start_ps(config)) * config.clock_hz // PS_PER_S
        still = still + 1 if done == before else 0
        before = done
        # frames may have been dropped: then nothing more comes some time behind the last of them
        if case.arrivals and still > patience and passed > last:
            break
        if still > STUCK_LOOKS:
            raise CaseFailed(f"{case.name}: {done} of {wanted} completions came")
    await kernel.sleep(SETTLE_CYCLES * PS_PER_S // config.clock_hz)


def _take(channel: Channel, counts: dict[int, int], number: int) -> None:
    for done in channel.completions():
        if done.completion.status is not Status.OK:
            raise CaseFailed(f"a completion of channel {number} says {done.completion.status.name}")
        counts[number] += 1


async def _listen(config: NicConfig, moderation: Moderation, nic: Nic, kernel: Kernel, channels: dict[int, Channel],
                  counts: dict[int, int]) -> None:
    """Answer each interrupt: after some time take the completions, and arm again."""
    def usecs(ticks: int) -> float:
        return ticks * 1e6 / config.clock_hz

    for number, channel in channels.items():
        nic.set_moderation(channel.vector, rx_usecs=usecs(moderation.rx_ticks), rx_frames=moderation.rx_frames,
                           tx_usecs=usecs(moderation.tx_ticks), tx_frames=moderation.tx_frames)
        nic.mask(channel.vector, False)
        kernel.spawn(_serve(config, moderation, nic, kernel, channel, counts, number), f"channel {number}")


def _serve(config: NicConfig, moderation: Moderation, nic: Nic, kernel: Kernel, channel: Channel,
           counts: dict[int, int], number: int) -> Coroutine[Any, None, None]:
    async def serve() -> None:
        while True:
            channel.arm(NOBODY)
            # behind the arm, so that the line has fallen when the host looks at it again
            await nic.port.read32(0)
            await nic.port.interrupt(channel.vector)
            await kernel.sleep(moderation.host_cycles * PS_PER_S // config.clock_hz)
            _take(channel, counts, number)

    return serve()


def _ring_log2(case: Case, nic: Nic) -> int:
    return receive_ring_log2(case, nic.capabilities.max_ring_log2)


def receive_ring_log2(case: Case, largest: int) -> int:
    """Size of each receive ring: there are buffers for all frames, if the device may have so many."""
    buffers = sum(-(-arrival.length // case.buffer_bytes) for arrival in case.arrivals)
    return min(max(4, (buffers - 1).bit_length()), largest)


def _post(nic: Nic, memory: HostMemory, receiver: Channel, buffer_bytes: int) -> None:
    count = receiver.buffers.entries
    region = memory.allocate(count * buffer_bytes, 4096)
    key = nic.register_memory(region, count * buffer_bytes, KeyRight.WRITE, receiver.number, NOBODY)
    for number in range(count):
        receiver.post(Piece(key.value, number * buffer_bytes, buffer_bytes), number & 0xFFFF, number)


def _submit(channel: Channel, send: Send, key: int) -> None:
    channel.submit(_descriptor(send, key), None)


def _descriptor(send: Send, key: int) -> Descriptor:
    """A descriptor as a driver makes it: a template with TCP over IPv4, or a frame."""
    flags = _BOTH_CHECKSUMS if send.checksums else _NO_CHECKSUM
    pieces = [Piece(key, offset, length) for offset, length in send.cut()]
    if send.mss:
        return Descriptor(Opcode.SEND_SEGMENTED, headers(0), tuple(pieces), mss=send.mss, l3_offset=14, l4_offset=34,
                          checksum_offset=50)
    inline = headers(0).ljust(send.inline, b"\x33")[: send.inline] if send.inline else b""
    return Descriptor(Opcode.SEND_FRAME, inline, tuple(pieces), flags=flags, l3_offset=14, l4_offset=34,
                      checksum_offset=50)


def headers(flow: int) -> bytes:
    """Ethernet, IPv4 and TCP headers; lengths and checksums are the device's work."""
    return (PEER_MAC + OWN_MAC + b"\x08\x00"
            + struct.pack(">BBHHHBBH4s4s", 0x45, 0, 0, 1, 0, 64, 6, 0, bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1]))
            + struct.pack(">HHIIBBHHH", 80, 1024 + flow, 1, 1, 0x50, 0x18, 0xFFFF, 0, 0))


def frame_bytes(length: int, flow: int, sequence: int = -1) -> bytes:
    """A frame for the device, of one of many flows; with a `sequence` its checksums are right."""
    whole = bytearray(OWN_MAC + PEER_MAC + headers(flow)[12:])
    whole[16:18] = (length - ETHERNET_HEADER_BYTES).to_bytes(2, "big")
    whole = whole.ljust(length, b"\x55")[:length]
    if sequence >= 0:
        whole[_IP + 6] = 0x40  # don't fragment: the identification may stay as it is from segment to segment
        whole[_TCP + 4 : _TCP + 8] = (sequence & 0xFFFF_FFFF).to_bytes(4, "big")
        whole[_TCP + TCP_FLAGS_OFFSET] = TcpFlags.ACK
        whole[_IP + 10 : _IP + 12] = internet_checksum(bytes(whole[_IP:_TCP])).to_bytes(2, "big")
        pseudo = bytes(whole[_IP + 12 : _IP + 20]) + bytes([0, 6]) + (length - _TCP).to_bytes(2, "big")
        whole[_TCP + 16 : _TCP + 18] = internet_checksum(pseudo + bytes(whole[_TCP:])).to_bytes(2, "big")
    return bytes(whole)


_IP = ETHERNET_HEADER_BYTES
_TCP = _IP + IPV4_HEADER_BYTES

assert RAW_CHANNEL == 0
