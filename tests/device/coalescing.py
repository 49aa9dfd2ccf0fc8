"""Coalescing, each part of it by itself: every bit of a header, every context as the last one that is open, more
aggregates than are kept in order, ages that the simulator jumps to, and how many cycles a segment takes.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from functools import cache
from typing import Any

from host_driver.channel import Channel
from host_driver.nic import Nic
from host_driver.rings import Piece
from nic_model.contract import COMPLETION, KeyRight, OperationMask, doorbell, register
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_CHECKSUM_OFFSET,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    TCP_CHECKSUM_OFFSET,
    VLAN_TAG_BYTES,
)
from tests.device.faults import NOBODY, OWN_MAC, start
from tests.device.programs import POISON, STILL_PS
from tests.device.rig import US, Rig
from tests.device.wide_values import NEVER_US, OWN_TEXT, PACE_PS, ages, flush, updated
from tests.gro import ACK, PSH, SYN, Segment

OPERATIONS = OperationMask.RECEIVE_RAW | OperationMask.COALESCE
SPAN = 256
"""Bytes of a buffer, which is enough for a few small segments."""


class Receiver:
    """A channel and its buffers, each in its place, which are posted anew once they have come back."""

    def __init__(self, rig: Rig, nic: Nic, channel: Channel, places: int) -> None:
        self._rig, self._nic, self._channel, self._places = rig, nic, channel, places
        self._area = rig.memory.allocate(SPAN * places, 4096)
        self._key = nic.register_memory(self._area, SPAN * places, KeyRight.WRITE, 0, NOBODY)
        self._free = list(range(places))

    @staticmethod
    async def open(rig: Rig, log2: int) -> Receiver:
        """On channel 0 of a device that is reset."""
        nic = await start(rig)
        channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=4, rx_log2=log2)
        return Receiver(rig, nic, channel, 1 << log2)

    async def post(self) -> None:
        """All buffers that there are."""
        view = self._rig.memory.view(self._area, SPAN * self._places)
        view[:] = bytes([POISON]) * len(view)
        for place in self._free:
            self._channel.buffers.put(Piece(self._key.value, place * SPAN, SPAN), place)
        self._free = []
        self._rig.port.wmb()
        self._rig.port.write32(doorbell("RX_DOORBELL", 0), self._channel.buffers.producer)
        await self._rig.port.read32(register("ID"))
        await self._rig.port.sleep(4 * US)

    async def coalesce(self, ticks: int | None = None) -> None:
        """From now on, for so many cycles; None for ever."""
        self._nic.set_coalescing(NEVER_US)
        if ticks is not None:
            self._rig.port.write32(register("COALESCE_TICKS"), ticks)
        await self._rig.port.read32(register("ID"))

    async def arrive(self, frames: list[bytes], together: int = 8) -> None:
        """Frames, no faster than they are appended in the long run."""
        for first in range(0, len(frames), together):
            for frame in frames[first:first + together]:
                self._rig.mac.arrive(frame, False)
            await self._rig.port.sleep(2 * together * PACE_PS)

    async def take(self) -> tuple[list[str], str]:
        """What was completed once all aggregates have ended, and a digest of all buffers."""
        entries, tags = await flush(self._rig, self._nic, self._channel)
        self._free += tags
        return entries, hashlib.sha256(self._rig.memory.view(self._area, SPAN * self._places)).hexdigest()

    def wrote_ps(self, began_ps: int) -> int:
        """When the device wrote into a buffer for the last time; it has since a time."""
        assert self._rig.bus is not None
        end = self._area + SPAN * self._places
        return max(time for time, is_write, address in self._rig.bus.events
                   if time >= began_ps and is_write and self._area <= address < end)

    async def close(self) -> None:
        await self._nic.close_channel(self._channel)
        await self._nic.deregister_memory(self._key)
        self._rig.memory.free(self._area)


def next_of(segment: Segment, **changes: Any) -> Segment:
    """The one behind it."""
    return replace(segment, seq=segment.seq + len(segment.payload) & 0xFFFF_FFFF, ident=segment.ident + 1 & 0xFFFF,
                   **changes)


@cache
def frame_of(segment: Segment) -> bytes:
    """Its frame; to make one takes longer than to receive it."""
    return segment.frame()


# ---------------------------------------------------------------------------------------------- bits of a header

TOGETHER = 64
"""Bits that are tried before buffers are posted anew."""

VARIANTS = [(vlan, ipv6) for vlan in (None, 5) for ipv6 in (False, True)]


async def header_bits(rig: Rig, arguments: dict[str, int]) -> list[Any]:
    """Scenario: two segments in order, of whose second one bit of the header is turned, for each bit of each kind of
    header; and one in which none is. Returns what was completed of so many together, with a digest of all bytes."""
    rng = random.Random(f"header bits {arguments['seed']}")
    receiver = await Receiver.open(rig, 8)
    told = []
    for vlan, ipv6 in VARIANTS:
        head = Segment(1, ipv6, vlan, rng.getrandbits(32), rng.randbytes(24), ack=rng.getrandbits(32),
                       window=rng.getrandbits(16), options=rng.randbytes(12), ident=rng.getrandbits(16),
                       df=rng.random() < 0.5, destination=OWN_TEXT)
        first, second = frame_of(head), frame_of(next_of(head, payload=rng.randbytes(24)))
        l3 = ETHERNET_HEADER_BYTES + (VLAN_TAG_BYTES if vlan is not None else 0)
        bits = [None, *range(8 * (len(first) - len(head.payload)))]
        for begin in range(0, len(bits), TOGETHER):
            await receiver.post()
            await receiver.coalesce()
            await receiver.arrive([frame for bit in bits[begin:begin + TOGETHER]
                                   for frame in (first, turned(second, l3, ipv6, bit))])
            entries, digest = await receiver.take()
            if not begin:
                assert COMPLETION.unpack(bytes.fromhex(entries[0]))["segments"] == 2, "what is in order is not appended"
            told.append([vlan, ipv6, begin, entries, digest])
    await receiver.close()
    return told


def turned(frame: bytes, l3: int, ipv6: bool, bit: int | None) -> bytes:
    """With this bit of it turned, and checksums that are right for that, unless it is one of theirs."""
    if bit is None:
        return frame
    made = bytearray(frame)
    made[bit // 8] ^= 1 << bit % 8
    l4 = l3 + (IPV6_HEADER_BYTES if ipv6 else IPV4_HEADER_BYTES)
    addresses = slice(l3 + (8 if ipv6 else 12), l4)
    sums = [(l4 + TCP_CHECKSUM_OFFSET, [addresses, slice(l4, len(frame))])]
    if not ipv6:
        sums.append((l3 + IPV4_CHECKSUM_OFFSET, [slice(l3, l4)]))
    for place, covered in sums:
        if bit // 16 != place // 2:
            before, after = (b"".join(bytes(data[part]) for part in covered) for data in (frame, made))
            made[place:place + 2] = updated(before, after, frame[place:place + 2])
    return bytes(made)


# ---------------------------------------------------------------------------------------------- the last open one

CONTEXTS = 16
LAST_ENDS = ("off", "PSH", "alone")


async def last_open(rig: Rig, arguments: dict[str, int]) -> list[Any]:
    """Scenario: all contexts are open and end one after the other, so that each is the last one in turn: its stream
    goes on alone, and ends in some way, and then come frames while nothing is coalesced. Returns what was completed,
    with a digest of all bytes."""
    rng = random.Random(f"last open {arguments['seed']}")
    receiver = await Receiver.open(rig, 6)
    heads = [Segment(flow, flow % 3 == 0, None, rng.getrandbits(32), bytes([flow + 1]) * 20, destination=OWN_TEXT)
             for flow in range(CONTEXTS + 1)]
    told: list[Any] = []
    rounds = [(last, end) for last in range(CONTEXTS) for end in LAST_ENDS]
    rng.shuffle(rounds)
    for last, end in rounds:
        await receiver.post()
        await receiver.coalesce()
        # The first one that opens has the lowest number.
        await receiver.arrive([frame_of(head) for head in heads[:CONTEXTS]])
        others = [flow for flow in range(CONTEXTS) if flow != last]
        await receiver.arrive([frame_of(next_of(heads[flow], flags=rng.choice((PSH | ACK, SYN))))
                               for flow in rng.sample(others, len(others))])
        second = next_of(heads[last])
        await receiver.arrive([frame_of(second)])
        if end != "off":
            await receiver.arrive([frame_of(next_of(second, flags=PSH | ACK if end == "PSH" else SYN))])
        entries, _ = await receiver.take()
        await receiver.arrive([frame_of(heads[CONTEXTS]), OWN_MAC + bytes(60), frame_of(heads[last])])
        behind, digest = await receiver.take()
        assert len(behind) == 3, f"context {last} was the last: of 3 frames behind it came {len(behind)}"
        told.append([last, end, entries, behind, digest])
    await receiver.close()
    return told


# ---------------------------------------------------------------------------------------------- aggregates in order


async def openings(rig: Rig, arguments: list[int]) -> list[int]:
    """Scenario: an aggregate is open while another stream opens so many. Returns for each how many receives the first
    stream's two segments are."""
    receiver = await Receiver.open(rig, 11)
    stays, other = (Segment(flow, payload=bytes([flow]) * 20, destination=OWN_TEXT) for flow in (1, 2))
    told = []
    for count in arguments:
        await receiver.post()
        await receiver.coalesce()
        # Each ends the one before, as it is not the next.
        frames = [frame_of(replace(other, seq=1000 * (number % 2))) for number in range(count)]
        await receiver.arrive([frame_of(stays), *frames, frame_of(next_of(stays))])
        entries, _ = await receiver.take()
        receives = [COMPLETION.unpack(bytes.fromhex(entry)) for entry in entries]
        assert sum(fields["segments"] for fields in receives) == count + 2
        told.append(len(receives) - count)
    await receiver.close()
    return told


# ---------------------------------------------------------------------------------------------- idle ages


async def late_ages(rig: Rig, arguments: dict[str, Any]) -> list[list[int]]:
    """Scenario: aggregates of these ages on a device that has run for `late_ps`; see `ages`."""
    await rig.port.sleep(arguments["late_ps"])
    return await ages(rig, arguments["ages"])


# ---------------------------------------------------------------------------------------------- cycles of a segment

FEW, MANY = 16, 48
"""Segments at once: no more than headers are kept."""

CYCLES = {
    "appended": (17, 18), "opens": (27, 29), "alone": (15, 16), "age": (30, 32),
}
"""That a segment takes at most if headers come by 16 bytes a cycle and no other aggregate is open, without options and
with OPTIONS. Frames come faster, and everything behind the coalescer is faster."""

OPTIONS = b"\1\1\x08\x0a" + bytes(8)
"""As most streams have them: timestamps."""


async def rates(rig: Rig, arguments: Any) -> dict[str, list[float]]:
    """Scenario: segments that come at once, each of which is appended, or opens an aggregate where another one ends, or
    goes alone while nothing is open; or aggregates end by age at once. Returns how many cycles one takes, as CYCLES."""
    receiver = await Receiver.open(rig, 7)
    told: dict[str, list[float]] = {}
    for kind in CYCLES:
        told[kind] = []
        for options in (b"", OPTIONS):
            took_ps = []
            for count in (FEW, MANY):
                await receiver.post()
                await receiver.coalesce(1 if kind == "age" else None)
                frames = _stream(kind, count, Segment(1, payload=b"ab", options=options, destination=OWN_TEXT))
                began_ps = rig.kernel.now
                for frame in frames:
                    rig.mac.arrive(frame, False)
                await rig.port.sleep(STILL_PS)
                took_ps.append(receiver.wrote_ps(began_ps) - began_ps)
                await receiver.take()
            cycles = (took_ps[1] - took_ps[0]) * rig.config.clock_hz / 10**12
            told[kind].append(cycles / (MANY - FEW))
    await receiver.close()
    return told


def _stream(kind: str, count: int, segment: Segment) -> list[bytes]:
    """So many frames of a stream."""
    frames = []
    for number in range(count):
        if kind == "opens":
            segment = replace(segment, seq=1000 * (number % 2))
        elif kind == "alone":
            segment = next_of(segment, flags=PSH | ACK)
        else:
            segment = next_of(segment)
        frames.append(frame_of(segment))
    return frames
