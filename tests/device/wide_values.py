"""Numbers with all their bits: long rings, payloads, keys and buffers of any size, a device that has run for long, any
age and size of an aggregate, every context. Random programs have mostly small ones.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

from host_driver.channel import Channel
from host_driver.nic import Nic
from host_driver.rings import Descriptor, Piece
from nic_model import ring
from nic_model.contract import (
    COMPLETION,
    COMPLETION_BYTES,
    KEY_COMMIT,
    KEY_GENERATION_BITS,
    MAX_COALESCED_BYTES,
    MAX_FRAME_BYTES,
    MAX_PIECES,
    MIN_MSS,
    SUBMISSION_HEAD,
    SUBMISSION_SLOT_BYTES,
    CompletionKind,
    KeyRight,
    Opcode,
    OperationMask,
    SendFlag,
    Status,
    channel_register,
    doorbell,
    key_register,
    make_key,
    register,
)
from nic_model.contract.protocols import ETHERNET_HEADER_BYTES
from tests.device.faults import FAR_READS, HIT, NOBODY, User, start, timed
from tests.device.programs import POISON, RX_BURST_BYTES, STILL_PS, run_seeds
from tests.device.pushes import push
from tests.device.rig import FAR, MS, US, Rig
from tests.gro import PSH, SYN, Segment

OPERATIONS = OperationMask.SEND_FRAME | OperationMask.RECEIVE_RAW | OperationMask.COALESCE
OWN_TEXT, OWN_MAC = "02:00:00:00:aa:01", bytes.fromhex("02000000aa01")
KEY_BYTES, OFFSET_BITS, PIECE_LENGTH_BITS = (1 << 40) - 1, 39, 24
NEVER_US = 10**7

SLOW = replace(FAR, read_latency_cycles=1500, write_latency_cycles=1500)
"""So far away that reads and writes in flight run out."""


class Area:
    """Memory of a channel behind a key that is far larger, and begins `delta` bytes before it."""

    def __init__(self, rig: Rig, nic: Nic, channel: int, size: int, rng: random.Random) -> None:
        self._rig = rig
        # Somewhere, so that the bits of its address are as good as random.
        before = rng.randrange(1 << 22)
        self._start = rig.memory.allocate(before + size, 4096)
        self.address = self._start + before
        self._nic = nic
        self._key = nic.register_memory(self.address, size, KeyRight.READ | KeyRight.WRITE, channel, NOBODY)
        # As after any number of registrations.
        generation = random.Random(before).getrandbits(KEY_GENERATION_BITS)
        self._key = replace(self._key, value=make_key(self._key.index, generation))
        self.widen(rng.getrandbits(OFFSET_BITS))

    def widen(self, delta: int, behind: int | None = None) -> None:
        """Let the key begin `delta` bytes before the memory, and end so many behind its start, or as late as it can:
        more than host memory has, which the driver would refuse."""
        self.delta = delta
        address = self.address - delta & (1 << 64) - 1
        length = KEY_BYTES if behind is None else delta + behind
        key = self._key
        for name, value in (
            ("KEY_ADDRESS_LO", address & 0xFFFF_FFFF), ("KEY_ADDRESS_HI", address >> 32),
            ("KEY_LENGTH_LO", length & 0xFFFF_FFFF), ("KEY_LENGTH_HI", length >> 32)):
            self._nic.port.write32(key_register(name, key.index), value)
        self.commit()

    def commit(self) -> None:
        """Write the key once more."""
        key = self._key
        self._nic.port.write32(key_register("KEY_COMMIT", key.index), KEY_COMMIT.pack_word(
            generation=key.value >> 12, rights=key.rights, owner=key.owner, valid=1))

    def piece(self, place: int, length: int) -> Piece:
        """From a place in the memory."""
        return Piece(self._key.value, self.delta + place, length)

    def view(self, place: int, length: int) -> memoryview:
        return self._rig.memory.view(self.address + place, length)

    async def close(self, nic: Nic) -> None:
        await nic.deregister_memory(self._key)
        self._rig.memory.free(self._start)


async def late(rig: Rig, arguments: dict[str, Any]) -> list[Any]:
    """Scenario: programs on a device that has run for `late_ps`; see `run_seeds`."""
    await rig.port.sleep(arguments["late_ps"])
    return await run_seeds(rig, arguments)


# ---------------------------------------------------------------------------------------------- long rings

ROUNDS, EACH = 22, 50
"""So many sends and frames in all are more than a ring of 2^10 has."""

LONG_LOG2 = 10
COMMITS = 100
"""Writes of a key, as it is, while sends begin."""

SPAN, STRIDE = 256, 40_009
"""Bytes of a send or a frame at most, and from one buffer to the next."""


async def long_rings(rig: Rig, arguments: dict[str, int]) -> dict[str, Any]:
    """Scenario: rings of 2^10 entries, gone through once and somewhat; sends and buffers anywhere in a wide key.

    Returns `sent`, `finished`, `received`: digests by round; and asserts that every timestamp is of its round.
    """
    rng = random.Random(f"long rings {arguments['seed']}")
    nic = await start(rig)
    channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=LONG_LOG2 + 1, rx_log2=LONG_LOG2)
    size = EACH * (SPAN + STRIDE)
    area = Area(rig, nic, channel.number, size, rng)
    told: dict[str, Any] = {"sent": [], "finished": [], "received": []}
    for number in range(ROUNDS):
        began_ps, sent_before = rig.kernel.now, len(rig.mac.sent)
        area.view(0, EACH * SPAN)[:] = rng.randbytes(EACH * SPAN)
        area.view(EACH * SPAN, EACH * STRIDE)[:] = bytes([POISON]) * (EACH * STRIDE)
        for place in range(EACH):
            length = rng.choice((SPAN, rng.randrange(SPAN, 1 << PIECE_LENGTH_BITS)))
            channel.buffers.put(area.piece(EACH * SPAN + place * STRIDE, length), number << 8 | place)
            head = rng.randbytes(6) + OWN_MAC + b"\x08\0"
            pieces = tuple(area.piece(place * SPAN + 32 * n, rng.randrange(1, 33)) for n in range(rng.choice((1, 7))))
            channel.submit(Descriptor(Opcode.SEND_FRAME, head, pieces, SendFlag.COMPLETE | SendFlag.TIMESTAMP), number)
        rig.port.wmb()
        rig.port.write32(doorbell("RX_DOORBELL", channel.number), channel.buffers.producer)
        channel.ring_doorbell(NOBODY)
        for _ in range(COMMITS):  # while keys are looked up
            area.commit()
        await rig.port.read32(register("ID"))
        await rig.port.sleep(4 * US)
        for _ in range(EACH):
            rig.mac.arrive(OWN_MAC + rng.randbytes(rng.randrange(54, SPAN - 6)), False)
        await rig.port.sleep(2 * STILL_PS)
        found: dict[CompletionKind, list[str]] = {CompletionKind.SEND: [], CompletionKind.RECEIVE: []}
        completed = channel.completed
        while completed.has_completion:
            at = completed.address + ring.slot(completed.consumer, completed.log2) * COMPLETION_BYTES
            fields = COMPLETION.unpack(bytes(rig.memory.view(at, COMPLETION_BYTES)))
            completion = completed.take()
            stamp_ps = nic.cycles_to_ps(fields["timestamp"])
            # The model's frames have a time of their own.
            assert rig.is_model or began_ps <= stamp_ps <= rig.kernel.now, f"{completion} of round {number}"
            if completion.kind is CompletionKind.SEND:
                channel.submissions.retire(completion.ring_index)
            else:
                channel.buffers.give_back()
            found[completion.kind].append(COMPLETION.pack(**fields | {"timestamp": 0, "phase": 0}).hex())
        for kind, entries in found.items():
            assert len(entries) == EACH, f"round {number}: {len(entries)} completions of {kind.name}, not {EACH}"
        told["finished"].append(_digest(found[CompletionKind.SEND]))
        told["received"].append([_digest(found[CompletionKind.RECEIVE]),
                                 hashlib.sha256(area.view(0, size)).hexdigest()])
        told["sent"].append(_digest([frame.hex() for _, frame in rig.mac.sent[sent_before:]]))
    await nic.close_channel(channel)
    await area.close(nic)
    return told


TURN_LOG2, TURN_ROUNDS, TURN_EACH, TURN_PUSHES = 12, 17, 4_000, 3
"""More sends and more frames than an index has values, and pushed sends behind those of each round."""

TOGETHER = 100
SLOT_BYTES = 64


async def full_turn(rig: Rig, arguments: Any) -> list[int]:
    """Scenario: every index goes all the way round. Returns how many sends and frames there were."""
    nic = await start(rig)
    return await _turn(rig, nic, TURN_LOG2, TURN_ROUNDS, TURN_EACH, pushes=TURN_PUSHES)


SIZES_SLOTS = {4: 1, 5: 2, 6: 3, 7: 4, 8: 16, 9: 2, 10: 6, 11: 1}
"""log2 of both rings, and how many slots each descriptor has."""

ARMS = 300


async def ring_sizes(rig: Rig, arguments: Any) -> list[list[int]]:
    """Scenario: rings of all sizes are gone through more than once, filled with descriptors of one length each time,
    while doorbells arm the completion ring, one after the other. Returns how many sends and frames there were."""
    nic = await start(rig)
    return [await _turn(rig, nic, log2, 4, 1 << log2, slots, ARMS) for log2, slots in SIZES_SLOTS.items()]


BOUNDARY = 1 << 32
OVER_LOG2 = 9
"""Of rings that are longer than the alignment of their start."""


async def over_4_gb(rig: Rig, arguments: Any) -> list[list[int]]:
    """Scenario: in turns one of the rings lies across 4 GB, where the upper half of an address changes on its way.
    Returns how many sends and frames there were."""
    nic = await start(rig)
    told = []
    base = rig.memory.allocate(1, 4096)
    rig.memory.free(base)
    middles: list[int] = []
    for number in range(4):
        # Rings are allocated behind each other; the first time tells where.
        before = rig.memory.allocate(BOUNDARY - base - middles[number - 1] if number else 4096, 4096)
        channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=OVER_LOG2, rx_log2=OVER_LOG2)
        rings = (channel.submissions, channel.buffers, channel.completed)
        if number:
            across = rings[number - 1]
            assert across.address < BOUNDARY < across.address + across.entries * across.entry_bytes
            told.append(await _go_round(rig, nic, channel, OVER_LOG2, 1, 1 << OVER_LOG2))
        else:
            middles = [r.address + r.entries * r.entry_bytes // 2 - base - 4096 for r in rings]
            await nic.close_channel(channel)
        rig.memory.free(before)
    return told


async def _turn(rig: Rig, nic: Nic, log2: int, rounds: int, each: int, slots: int = 1, arms: int = 0,
                pushes: int = 0) -> list[int]:
    """See `_go_round`: on a channel with rings of that size."""
    channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=log2, rx_log2=log2)
    return await _go_round(rig, nic, channel, log2, rounds, each, slots, arms, pushes)


async def _go_round(rig: Rig, nic: Nic, channel: Channel, log2: int, rounds: int, each: int, slots: int = 1,
                    arms: int = 0, pushes: int = 0) -> list[int]:
    """In each round `each` frames, and as many submission slots with sends that fail at once; the last frame waits for
    its buffer, which is far away. Then so many `pushes`, such sends of one slot that are pushed. Returns how many sends
    and frames there were; asserts of each that it is told of in its turn, and closes the channel."""
    rng = random.Random(f"turn {log2}")
    area = Area(rig, nic, 0, each * SLOT_BYTES, rng)
    submissions, completed = channel.submissions, channel.completed
    sends = each // slots + pushes
    expected = {CompletionKind.SEND: sends, CompletionKind.RECEIVE: each}
    told = dict.fromkeys(expected, 0)

    def put(tag: int) -> bytes:
        at = submissions.address + ring.slot(submissions.producer, log2) * SUBMISSION_SLOT_BYTES
        head = SUBMISSION_HEAD.pack(opcode=0xFF, slots=slots, tag=tag & 0xFFFF).ljust(SUBMISSION_SLOT_BYTES, b"\0")
        rig.memory.view(at, SUBMISSION_SLOT_BYTES)[:] = head
        submissions.producer = ring.advance(submissions.producer, slots)
        return head

    for number in range(rounds):
        for place in range(each // slots):
            put(number * sends + place)
        pieces = [area.piece(place * SLOT_BYTES, SLOT_BYTES) for place in range(each)]
        for place, piece in enumerate(pieces[:-1]):
            channel.buffers.put(piece, number * each + place & 0xFFFF)
        rig.port.wmb()
        rig.port.write32(doorbell("RX_DOORBELL", 0), channel.buffers.producer)
        rig.port.write32(doorbell("TX_DOORBELL", 0), submissions.producer)
        for _ in range(arms):
            channel.arm(NOBODY)
        await rig.port.read32(register("ID"))
        await rig.port.sleep(4 * US)
        frames = [OWN_MAC + bytes(6) + rng.randbytes(48) for _ in range(each)]
        for first in range(0, each - 1, TOGETHER):
            for frame in frames[first:min(first + TOGETHER, each - 1)]:
                rig.mac.arrive(frame, False)
            await rig.port.sleep(10 * US)
        channel.buffers.put(pieces[-1], (number + 1) * each - 1 & 0xFFFF)
        rig.port.wmb()
        with timed(rig, **FAR_READS):
            rig.port.write32(doorbell("RX_DOORBELL", 0), channel.buffers.producer)
            await rig.port.read32(register("ID"))
            rig.mac.arrive(frames[-1], False)
            await rig.port.sleep(STILL_PS)
        for place in range(each // slots, sends):
            index = submissions.producer
            push(rig, channel, index, put(number * sends + place))
            rig.port.write32(doorbell("TX_DOORBELL", 0), submissions.producer)
            await rig.port.sleep(STILL_PS)
        while completed.has_completion:
            completion = completed.take()
            count = told[completion.kind]
            is_send = completion.kind is CompletionKind.SEND
            assert completion.tag == count & 0xFFFF, f"{completion}, number {count} of its kind"
            assert completion.ring_index == (count + 1) * (slots if is_send else 1) & 0xFFFF, (
                f"{completion}, number {count} of its kind")
            assert completion.status is (Status.BAD_OPCODE if is_send else Status.OK), f"{completion}, number {count}"
            told[completion.kind] += 1
            if is_send:
                submissions.retire(completion.ring_index)
            else:
                place = count % each
                assert area.view(place * SLOT_BYTES, 60) == frames[place], f"the bytes of {completion}"
                channel.buffers.give_back()
        assert told == {kind: (number + 1) * count for kind, count in expected.items()}, f"round {number}: {told}"
        for name, index in (("TX_INDEX", told[CompletionKind.SEND] * slots), ("RX_INDEX", told[CompletionKind.RECEIVE]),
                            ("CQ_INDEX", sum(told.values()))):
            assert await rig.port.read32(channel_register(name, 0)) == index & 0xFFFF, f"{name} after round {number}"
    await nic.close_channel(channel)
    await area.close(nic)
    return list(told.values())


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------- sizes of payloads

SEGMENT_HEADER_BYTES = 54
POWERS = [1 << bit for bit in range(MAX_FRAME_BYTES.bit_length())]


async def payloads(rig: Rig, arguments: Any) -> list[list[Any]]:
    """Scenario: frames whose payload has each power of two of bytes, or one more or less, and segmented sends with such
    a maximum segment size. Returns of each send that size, what was told of it, and a digest of its frames."""
    nic = await start(rig)
    user = await User.open(rig, nic, HIT)
    told = []
    for length in sorted({power + more for power in POWERS for more in (-1, 0, 1)}):
        for segments in (0, 1, 3):
            if MIN_MSS <= length <= MAX_FRAME_BYTES - SEGMENT_HEADER_BYTES and segments:
                user.send_segmented(segments * length + (segments > 1), length)
            elif 0 < length <= MAX_FRAME_BYTES - ETHERNET_HEADER_BYTES and not segments:
                user.send_frame(ETHERNET_HEADER_BYTES + length)
            else:
                continue
            before = len(user.sent())
            user.bell()
            await rig.port.sleep(STILL_PS)
            await user.until_finished(len(told) + 1)
            completion = user.finished[-1].completion
            told.append([length, completion.status, completion.length, completion.segments,
                         _digest([frame.hex() for frame in user.sent()[before:]])])
    await user.close()
    return told


# ---------------------------------------------------------------------------------------------- sizes of aggregates

TRIALS = 24
BUFFERS, BUFFER_SPAN = 24, 1 << 16


async def limits(rig: Rig, arguments: dict[str, int]) -> list[Any]:
    """Scenario: streams that come near COALESCE_BYTES, whatever it is, into buffers of any length. Returns what each
    trial has completed, with a digest of all bytes."""
    rng = random.Random(f"limits {arguments['seed']}")
    nic = await start(rig)
    channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=4, rx_log2=5)
    area = Area(rig, nic, 0, BUFFERS * BUFFER_SPAN, rng)
    free = list(range(BUFFERS))
    told = []
    for trial in range(TRIALS):
        head = Segment(
            rng.randrange(4), rng.random() < 0.5, rng.choice((None, 5)), rng.getrandbits(32),
            rng.randbytes(rng.choice((1, 100, 1448, MAX_FRAME_BYTES - 140, rng.randrange(1, MAX_FRAME_BYTES - 140)))),
            options=rng.choice((b"", b"\1\1\x08\x0a" + rng.randbytes(8))), df=True, destination=OWN_TEXT)
        size, most = len(head.payload), max(2, 70_000 // len(head.payload))
        count = min(rng.randrange(2, 13), most)
        limit = head.ip_bytes + (count - 1) * size + rng.choice((-1, 0, 0, 1))
        limit = min(rng.choice((limit, limit, rng.randrange(100, 1 << 16))), MAX_COALESCED_BYTES)
        nic.set_coalescing(NEVER_US, limit)
        area.view(0, BUFFERS * BUFFER_SPAN)[:] = bytes([POISON]) * (BUFFERS * BUFFER_SPAN)
        small = rng.random() < 0.3
        for place in free:
            length = rng.choice((3000, 9000, rng.randrange(2000, 1 << 16)) if small else (
                BUFFER_SPAN, BUFFER_SPAN + rng.randrange(BUFFER_SPAN), 1 << rng.randrange(16, 24),
                rng.randrange(BUFFER_SPAN, 1 << PIECE_LENGTH_BITS)))
            channel.buffers.put(area.piece(place * BUFFER_SPAN, length), place)
        free = []
        rig.port.wmb()
        rig.port.write32(doorbell("RX_DOORBELL", 0), channel.buffers.producer)
        await rig.port.read32(register("ID"))
        await rig.port.sleep(4 * US)
        came, left = 0, RX_BURST_BYTES
        for number in range(min(count + 2, most)):
            frame = Segment(**{**head.__dict__, "seq": head.seq + number * size & 0xFFFF_FFFF,
                               "ident": number & 0xFFFF, "payload": rng.randbytes(size)}).frame()
            if len(frame) > left:
                await rig.port.sleep(STILL_PS)
                left = RX_BURST_BYTES
            rig.mac.arrive(frame, False)
            left -= len(frame)
            came += 1
        await rig.port.sleep(STILL_PS)
        entries, tags = await flush(rig, nic, channel)
        free += tags
        assert entries, f"trial {trial}: nothing came of {came} segments"
        told.append([limit, came, entries, hashlib.sha256(area.view(0, BUFFERS * BUFFER_SPAN)).hexdigest()])
    nic.set_coalescing(0)
    await nic.close_channel(channel)
    await area.close(nic)
    return told


async def flush(rig: Rig, nic: Nic, channel: Channel) -> tuple[list[str], list[int]]:
    """End all aggregates by turning coalescing off, and take the receives; see `take_receives`."""
    nic.set_coalescing(0)
    await rig.port.read32(register("ID"))
    await rig.port.sleep(40 * US)
    return take_receives(rig, channel)


def take_receives(rig: Rig, channel: Channel) -> tuple[list[str], list[int]]:
    """Completions as they stand there but for times and phase, and the ids of their buffers."""
    entries, tags, completed = [], [], channel.completed
    while completed.has_completion:
        at = completed.address + ring.slot(completed.consumer, completed.log2) * COMPLETION_BYTES
        fields = COMPLETION.unpack(bytes(rig.memory.view(at, COMPLETION_BYTES)))
        completed.take()
        channel.buffers.give_back()
        tags.append(fields["tag"])
        entries.append(COMPLETION.pack(**fields | {"timestamp": int(fields["timestamp"] != 0), "phase": 0}).hex())
    return entries, tags


BEHIND = 3
"""Segments that are too many for the longest aggregate."""

PACE_PS = 150_000
"""From one small segment to the next: no faster than they are appended."""


async def longest(rig: Rig, arguments: Any) -> list[int]:
    """Scenario: a stream of one byte in a segment, of which as many become one receive as IPv4's length can say, and
    the rest another. Returns how many segments each has; asserts that all bytes are there."""
    rng = random.Random("longest")
    nic = await start(rig)
    channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=4, rx_log2=4)
    area = Area(rig, nic, 0, 3 * BUFFER_SPAN, rng)
    # Both numbers go round.
    head = Segment(0, seq=(1 << 32) - 1000, payload=b"\0", ident=(1 << 16) - 100, destination=OWN_TEXT)
    most = MAX_COALESCED_BYTES - head.ip_bytes + 1
    payload = rng.randbytes(most + BEHIND)
    nic.set_coalescing(NEVER_US)
    for number in range(2):
        channel.buffers.put(area.piece(number * 2 * BUFFER_SPAN, (2 - number) * BUFFER_SPAN), number)
    rig.port.wmb()
    rig.port.write32(doorbell("RX_DOORBELL", 0), channel.buffers.producer)
    await rig.port.read32(register("ID"))
    await rig.port.sleep(4 * US)
    frames = _one_byte_frames(head, payload)
    for first in range(0, len(frames), TOGETHER):
        for frame in frames[first:first + TOGETHER]:
            rig.mac.arrive(frame, False)
        await rig.port.sleep(TOGETHER * PACE_PS)
    entries, _ = await flush(rig, nic, channel)
    receives = [COMPLETION.unpack(bytes.fromhex(entry)) for entry in entries]
    assert [fields["status"] for fields in receives] == [Status.OK] * 2
    for number, (first, end) in enumerate(((0, most), (most, most + BEHIND))):
        expected = frames[first][:-1] + payload[first:end]
        assert receives[number]["length"] == len(expected)
        assert area.view(number * 2 * BUFFER_SPAN, len(expected)) == expected, f"the bytes of receive {number}"
    await nic.close_channel(channel)
    await area.close(nic)
    return [fields["segments"] for fields in receives]


def _one_byte_frames(head: Segment, payload: bytes) -> list[bytes]:
    """Frames of a stream over IPv4 that begins with `head`, with a byte in each: scapy would take a minute."""
    first = bytearray(head.frame())
    ip, tcp = 14, 34
    frames = []
    for number, byte in enumerate(payload):
        frame, before = bytearray(first), bytes(first)
        frame[ip + 4:ip + 6] = (head.ident + number & 0xFFFF).to_bytes(2, "big")
        frame[tcp + 4:tcp + 8] = (head.seq + number & 0xFFFF_FFFF).to_bytes(4, "big")
        frame[-1] = byte
        for begin, end, place in ((ip, tcp, ip + 10), (tcp, len(frame), tcp + 16)):
            frame[place:place + 2] = updated(before[begin:end], frame[begin:end], before[place:place + 2])
        frames.append(bytes(frame))
    for number in (1, 1000, len(payload) - 1):
        sample = replace(head, seq=head.seq + number & 0xFFFF_FFFF, ident=head.ident + number & 0xFFFF,
                         payload=payload[number:number + 1])
        assert frames[number] == sample.frame()
    return frames


def updated(before: bytes, after: bytes | bytearray, checksum: bytes) -> bytes:
    """A checksum for what has changed. Ref: RFC 1624 §3, equation 3."""
    def total(data: bytes | bytearray) -> int:
        return int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF

    # RFC 1624 §3: "HC' = ~(~HC + ~m + m')"
    found = (~int.from_bytes(checksum, "big") & 0xFFFF) + total(after) - total(before)
    return (~(found % 0xFFFF) & 0xFFFF).to_bytes(2, "big")


# ---------------------------------------------------------------------------------------------- many aggregates

FLOWS = 20
"""More than there are contexts."""

ENDS = {
    "open": lambda s: s, "PSH": lambda s: replace(s, flags=s.flags | PSH), "short": lambda s: replace(
        s, payload=s.payload[:-1]), "gap": lambda s: replace(s, seq=s.seq + 1 & 0xFFFF_FFFF),
    "alone": lambda s: replace(s, flags=s.flags | SYN), "empty": lambda s: replace(s, payload=b""),
    "an option": lambda s: _turned(s, 7 * s.flow), "last option": lambda s: _turned(s, -1),
    "option before it": lambda s: _turned(s, -1 - s.flow // 4),
}
"""What a stream's segment is, by what comes of its aggregate."""

SMALL, LARGE = 260, 2048


def _turned(segment: Segment, place: int) -> Segment:
    """With a bit of one byte of its options turned."""
    options = bytearray(segment.options)
    options[place % len(options)] ^= 2
    return replace(segment, options=bytes(options))


async def contexts(rig: Rig, arguments: dict[str, int]) -> list[Any]:
    """Scenario: more streams at a time than contexts, whose aggregates end in each way, also for want of buffers.
    Returns what each round has completed, with a digest of all bytes."""
    rng = random.Random(f"contexts {arguments['seed']}")
    nic = await start(rig)
    channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=4, rx_log2=6)
    area = Area(rig, nic, 0, (1 << 6) * LARGE, rng)
    told: list[Any] = []
    rounds = [(end, size, rng.choice((FLOWS, 16))) for end in ENDS for size in (SMALL, LARGE)]
    rng.shuffle(rounds)
    free = list(range(1 << 6))
    for end, size, flows in rounds:
        area.view(0, (1 << 6) * LARGE)[:] = bytes([POISON]) * ((1 << 6) * LARGE)
        nic.set_coalescing(NEVER_US)
        # Not enough for all, if they are small: then a segment finds none, and its aggregate ends.
        for place in free:
            channel.buffers.put(area.piece(place * LARGE, size), place)
        free = []
        rig.port.wmb()
        rig.port.write32(doorbell("RX_DOORBELL", 0), channel.buffers.producer)
        await rig.port.read32(register("ID"))
        await rig.port.sleep(4 * US)
        streams = [Segment(flow, rng.random() < 0.5, rng.choice((None, 5)), rng.getrandbits(32), rng.randbytes(100),
                           options=b"\1" * rng.randrange(4, 41, 4), destination=OWN_TEXT) for flow in range(flows)]
        for number in range(4):
            for flow in rng.sample(range(flows), flows):
                segment = streams[flow]
                rig.mac.arrive((ENDS[end](segment) if number == 2 else segment).frame(), False)
                streams[flow] = replace(segment, seq=segment.seq + 100 & 0xFFFF_FFFF, payload=rng.randbytes(100))
            await rig.port.sleep(STILL_PS)
        entries, tags = await flush(rig, nic, channel)
        free += tags
        assert entries, f"{end}: nothing came"
        told.append([end, size, entries, hashlib.sha256(area.view(0, (1 << 6) * LARGE)).hexdigest()])
    await nic.close_channel(channel)
    await area.close(nic)
    return told


ALL_ENDS = ("PSH", "short", "open")
"""What ends all aggregates of a round before others begin; "open": that coalescing is turned off."""

SPLIT = 200
"""Bytes of a buffer that ends in the second segment."""


async def dropped_heads(rig: Rig, arguments: dict[str, int]) -> list[Any]:
    """Scenario: all contexts have had an aggregate when for the head of the next one there is no buffer; its second
    segment finds one. Returns what each round has completed, with a digest of all bytes."""
    rng = random.Random(f"dropped heads {arguments['seed']}")
    nic = await start(rig)
    channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=4, rx_log2=6)
    area = Area(rig, nic, 0, (1 << 6) * LARGE, rng)
    flows, places = range(rig.config.coalesce_contexts), range(1 << 6)
    told: list[Any] = []

    async def post(size: int) -> None:
        for place in places:
            channel.buffers.put(area.piece(place * LARGE, size), place)
        rig.port.wmb()
        rig.port.write32(doorbell("RX_DOORBELL", 0), channel.buffers.producer)
        await rig.port.read32(register("ID"))
        await rig.port.sleep(4 * US)

    async def segments(streams: list[Segment], end: str = "open") -> None:
        """The next one of each stream, in any order."""
        for flow in rng.sample(flows, len(flows)):
            segment = ENDS[end](streams[flow])
            rig.mac.arrive(segment.frame(), False)
            streams[flow] = replace(streams[flow], seq=segment.seq + len(segment.payload) & 0xFFFF_FFFF,
                                    payload=rng.randbytes(100))
        await rig.port.sleep(STILL_PS)

    async def take_all() -> list[str]:
        """What the streams have completed, and other frames in the buffers that are left."""
        entries, tags = await flush(rig, nic, channel)
        nic.set_coalescing(NEVER_US)
        for _ in range(len(places) - len(tags)):
            rig.mac.arrive(OWN_MAC + bytes(6) + b"\x08\x01" + rng.randbytes(46), False)
        await rig.port.sleep(STILL_PS)
        others, left = take_receives(rig, channel)
        assert sorted(tags + left) == list(places), f"buffers {tags}, then {left}"
        return entries + others

    nic.set_coalescing(NEVER_US)
    for end, size in product(ALL_ENDS, (SPLIT, SMALL, LARGE)):
        area.view(0, len(places) * LARGE)[:] = bytes([POISON]) * (len(places) * LARGE)
        streams = [Segment(flow, False, None, rng.getrandbits(32), rng.randbytes(100), options=b"\1" * 4,
                           destination=OWN_TEXT) for flow in flows]
        await post(size)
        await segments(streams)
        await segments(streams, end)
        entries = await take_all()
        await segments(streams)
        await post(size)
        for _ in range(2):
            await segments(streams)
        told.append([end, size, entries, await take_all(),
                     hashlib.sha256(area.view(0, len(places) * LARGE)).hexdigest()])
    await nic.close_channel(channel)
    await area.close(nic)
    return told


# ---------------------------------------------------------------------------------------------- the end of a key

BOUNDS = 60


async def bounds(rig: Rig, arguments: dict[str, int]) -> list[list[int]]:
    """Scenario: frames into buffers of any length, anywhere in keys of any length; the last byte is the key's last, or
    a byte behind it. Returns for each the status that it must have, and the one that it has."""
    rng = random.Random(f"bounds {arguments['seed']}")
    nic = await start(rig)
    channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=4, rx_log2=4)
    area = Area(rig, nic, 0, LARGE, rng)
    told = []
    for number in range(BOUNDS):
        frame, beyond = OWN_MAC + rng.randbytes(rng.randrange(54, 1500)), rng.random() < 0.5
        area.widen(rng.getrandbits(rng.randrange(1, OFFSET_BITS + 1)), len(frame) - beyond)
        channel.buffers.put(area.piece(0, rng.randrange(LARGE, 1 << PIECE_LENGTH_BITS)), number)
        rig.port.wmb()
        rig.port.write32(doorbell("RX_DOORBELL", 0), channel.buffers.producer)
        await rig.port.read32(register("ID"))
        await rig.port.sleep(4 * US)
        rig.mac.arrive(frame, False)
        await rig.port.sleep(20 * US)
        ((entry,), _) = take_receives(rig, channel)
        status = COMPLETION.unpack(bytes.fromhex(entry))["status"]
        assert status or area.view(0, len(frame)) == frame, f"the bytes of buffer {number}"
        told.append([Status.KEY_BOUNDS if beyond else Status.OK, status])
    await nic.close_channel(channel)
    await area.close(nic)
    return told


# ---------------------------------------------------------------------------------------------- many pieces

SENDS, SHORTEST, LONGEST = 60, 60, 90
"""Sends at once, and bytes of one."""


async def many_pieces(rig: Rig, arguments: dict[str, int]) -> list[int]:
    """Scenario: sends of a piece or two and of as many as a descriptor can name, in any order, so that keys are looked
    up for some while others wait for their answers. Returns how many pieces each had; asserts that each is sent."""
    rng = random.Random(f"many pieces {arguments['seed']}")
    nic = await start(rig)
    channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=LONG_LOG2, rx_log2=4)
    area = Area(rig, nic, 0, LARGE, rng)
    data = rng.randbytes(LARGE)
    area.view(0, LARGE)[:] = data
    counts, frames, sent_before = [], [], len(rig.mac.sent)
    for number in range(SENDS):
        count, length = rng.choice((1, 2, MAX_PIECES - 1, MAX_PIECES)), rng.randrange(SHORTEST, LONGEST)
        cuts = [0, *sorted(rng.sample(range(1, length), count - 1)), length]
        places = [(rng.randrange(LARGE - LONGEST), end - begin) for begin, end in pairwise(cuts)]
        channel.submit(Descriptor(Opcode.SEND_FRAME, b"", tuple(area.piece(*place) for place in places)), number)
        counts.append(count)
        frames.append(b"".join(data[place:place + size] for place, size in places))
    channel.ring_doorbell(NOBODY)
    await rig.port.sleep(2 * STILL_PS)
    finished = list(channel.completions())
    assert [f.handle for f in finished] == list(range(SENDS))
    assert {f.completion.status for f in finished} == {Status.OK}
    assert [frame for _, frame in rig.mac.sent[sent_before:]] == frames
    await nic.close_channel(channel)
    await area.close(nic)
    return counts


# ---------------------------------------------------------------------------------------------- ages

AGES = [512 + (1 << bit) for bit in range(9)] + [(1 << bit) + more for bit in range(10, 32) for more in (300, 0)]
"""Cycles, up to 14 s: each bit of COALESCE_TICKS is 1 in one of them, and from the tenth on the only one in another."""


AGE_CYCLES = 300
"""More than the device is awake for while a segment waits, whatever its age."""


async def ages(rig: Rig, arguments: list[int]) -> list[list[int]]:
    """Scenario: one segment for each of these ages. Returns age, and cycles from its first beat to the interrupt.
    Asserts that the simulator jumps over the wait."""
    nic = await start(rig)
    channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=4, rx_log2=6)
    area = Area(rig, nic, 0, 1 << 16, random.Random("ages"))
    nic.set_moderation(0, rx_usecs=0, rx_frames=0, tx_usecs=0, tx_frames=0)
    nic.mask(0, False)
    told = []
    for number, age in enumerate(arguments):
        channel.post(area.piece(number % 32 << 11, 2048), number, None)
        channel.ring_doorbell(NOBODY)
        rig.port.write32(register("COALESCE_TICKS"), age)
        channel.arm(NOBODY)
        await rig.port.read32(register("ID"))
        await rig.port.sleep(4 * US)
        rises, ran_before = len(rig.irqs), rig.port.cycles_simulated  # type: ignore[attr-defined]
        rig.mac.arrive(Segment(number, payload=bytes(100), destination=OWN_TEXT).frame(), False)
        await rig.port.sleep(nic.cycles_to_ps(age) + 20 * US)
        (finished,) = channel.completions()
        assert finished.completion.status is Status.OK
        assert len(rig.irqs) == rises + 1, f"age {age}: {len(rig.irqs) - rises} interrupts"
        ran = rig.port.cycles_simulated - ran_before  # type: ignore[attr-defined]
        assert ran < AGE_CYCLES, f"age {age}: {ran} cycles were simulated"
        after_ps = rig.irqs[-1][0] - nic.cycles_to_ps(finished.completion.timestamp)
        told.append([age, round(after_ps * rig.config.clock_hz / 10**12)])
    await nic.close_channel(channel)
    await area.close(nic)
    return told


LATE_PS = 200 * MS
"""Some 2^25 cycles."""

LATEST_PS = ((1 << 48) - (1 << 26)) * 6400
"""20 days: of the cycles, of 6,400 ps, all upper bits are 1 that the simulators can count to in picoseconds."""
