"""Hostile frames and bad descriptors, and after each of them the next good packet: the same over the RTL and the model.

Each scenario tells what came of everything, so that two devices can be compared; that the good packets pass it asserts
by itself. What went wrong names the seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from host_driver.channel import Channel
from host_driver.nic import MemoryKey, Nic
from host_driver.rings import Descriptor, Piece
from nic_model import ring
from nic_model.contract import (
    COMPLETION,
    COMPLETION_BYTES,
    COUNTERS,
    MAX_INLINE_BYTES,
    MAX_PIECES,
    MAX_SEGMENTED_BYTES,
    SUBMISSION_HEAD,
    SUBMISSION_SLOT_BYTES,
    ChannelError,
    ChannelState,
    CompletionKind,
    HashType,
    KeyRight,
    Opcode,
    OperationMask,
    RxFilter,
    SendFlag,
    Status,
    doorbell,
    make_key,
    register,
)
from tests.device.faults import HIT, NOBODY, User, judged, start
from tests.device.hostile_frames import Hostile, good_frame, hostile_frame
from tests.device.programs import RX_BURST_BYTES, STILL_PS
from tests.device.rig import US, CaseFailed, Rig
from tests.gro import Streams

MANY, FEW, BUFFER_BYTES = 60, 8, 1024
"""Buffers of each channel: more than a burst can fill, or too few."""

BURST_FRAMES = 24

RX_DROPS = ("rx_filtered", "rx_bad_frames", "rx_no_buffer", "rx_oversize", "rx_fifo_full", "rx_errors")

ENDLESS_US = 10**7
"""Of coalescing: what is open ends with the burst, never by its age, which two devices need not share."""


class Receiver:
    """A channel with all its buffers posted again and again."""

    def __init__(self, rig: Rig, channel: Channel, area: int, key: int, buffers: int) -> None:
        self._rig = rig
        self.channel = channel
        self._area = area
        self._key = key
        self._free = list(range(buffers))
        self._wrong: set[int] = set()

    @property
    def bad(self) -> int:
        """Posted buffers that will fail."""
        return len(self._wrong)

    @classmethod
    async def open(cls, rig: Rig, nic: Nic, number: int, buffers: int) -> Receiver:
        channel = await nic.open_channel(number, operations=OperationMask.RECEIVE_RAW | OperationMask.COALESCE,
                                         vector=0, tx_log2=4, rx_log2=6)
        area = rig.memory.allocate(buffers * BUFFER_BYTES, 4096)
        key = nic.register_memory(area, buffers * BUFFER_BYTES, KeyRight.WRITE, number, NOBODY)
        return cls(rig, channel, area, key.value, buffers)

    def post(self, bad: int = 0) -> None:
        """Post every buffer that is free, and ring; the first ones with a key that is stale, or beyond its end."""
        buffers = self.channel.buffers
        for number, place in enumerate(self._free):
            good = Piece(self._key, place * BUFFER_BYTES, BUFFER_BYTES)
            wrong = good._replace(key=self._key ^ 1 << 12) if number % 2 else good._replace(offset=1 << 20)
            buffers.put(wrong if number < bad else good, place)
            if number < bad:
                self._wrong.add(place)
        if self._free:
            self._free = []
            self._rig.port.wmb()
            self._rig.port.write32(doorbell("RX_DOORBELL", self.channel.number), buffers.producer)

    def take(self) -> list[tuple[str, bytes]]:
        """What has come: each completion as it stands there but for times and phase, and its bytes."""
        completed, found = self.channel.completed, []
        while completed.has_completion:
            at = completed.address + ring.slot(completed.consumer, completed.log2) * COMPLETION_BYTES
            fields = COMPLETION.unpack(bytes(self._rig.memory.view(at, COMPLETION_BYTES)))
            completed.take()
            self.channel.buffers.give_back()
            place = fields["tag"]
            self._free.append(place)
            self._wrong.discard(place)
            data = bytes(self._rig.memory.view(self._area + place * BUFFER_BYTES, BUFFER_BYTES))[:fields["length"]]
            # Of those that stand for further buffers it is 0.
            seen = fields | {"timestamp": int(fields["timestamp"] != 0), "phase": 0}
            found.append((COMPLETION.pack(**seen).hex(), data))
        return found

    async def close(self, nic: Nic) -> None:
        await nic.close_channel(self.channel)
        self._rig.memory.free(self._area)


def burst(rng: random.Random, streams: Streams, share: float) -> list[Hostile]:
    """Frames that may arrive without a pause; a share are segments of streams, which may be coalesced, or spoilt."""
    frames: list[Hostile] = []
    size = 0
    while len(frames) < BURST_FRAMES:
        frame = _of_a_stream(rng, streams) if rng.random() < share else hostile_frame(rng)
        # A long one comes alone: the receive buffer must have room.
        if frames and size + len(frame.data) > RX_BURST_BYTES:
            break
        frames.append(frame)
        size += len(frame.data)
    return frames


def _of_a_stream(rng: random.Random, streams: Streams) -> Hostile:
    frame = bytearray(streams.segment().frame())
    if rng.random() < 0.7:
        return Hostile(bytes(frame), False, "segment")
    frame[rng.randrange(6, min(len(frame), 80))] ^= 1 << rng.randrange(8)
    return Hostile(bytes(frame), rng.random() < 0.2, "a bit of a segment's headers")


@lru_cache(maxsize=2)
def bursts(seed: int, frames: int) -> list[list[Hostile]]:
    """All bursts of a batch of so many frames. In every other batch more streams than contexts run at a time."""
    rng = random.Random(f"hostile frames {seed}")
    many = seed % 2
    streams = Streams(rng, 24 if many else 4, sizes=(20, 200, 900), destination="02:00:00:00:aa:01")
    found, left = [], frames
    while left > 0:
        found.append(burst(rng, streams, 0.8 if many else 0.25)[:left])
        left -= len(found[-1])
    return found


async def receive(rig: Rig, arguments: dict[str, int]) -> dict[str, Any]:
    """Scenario: a batch of `frames` hostile frames, see `bursts`; a good one behind each burst must be delivered whole.

    Returns `completions`: by burst and channel, each with a digest of its bytes; `counters`: what they rose by.
    """
    seed, channels = arguments["seed"], rig.config.channels
    rng = random.Random(f"hostile device {seed}")
    nic = await start(rig)
    nic.set_filter(RxFilter(rng.choice((0, RxFilter.BROADCAST | RxFilter.MULTICAST, RxFilter.PROMISCUOUS,
                                        RxFilter.PROMISCUOUS))))
    nic.set_rss(enabled=rng.random() < 0.7, indirection=tuple(rng.randrange(channels) for _ in range(8)),
                types=tuple(HashType))
    coalesces = rng.random() < 0.5
    buffers = rng.choice((MANY, MANY, FEW))
    receivers = [await Receiver.open(rig, nic, number, buffers) for number in range(channels)]
    before = await nic.read_counters()
    told, good = [], 0
    for number, frames in enumerate(bursts(seed, arguments["frames"])):
        nic.set_coalescing(ENDLESS_US if coalesces else 0)
        bad = rng.choice((0, 0, 0, 2))
        for receiver in receivers:
            receiver.post(bad)
        await rig.port.read32(register("ID"))
        await rig.port.sleep(4 * US)
        for frame in frames:
            rig.mac.arrive(frame.data, frame.bad)
        await rig.port.sleep(STILL_PS)
        nic.set_coalescing(0)  # ends what is open
        await rig.port.read32(register("ID"))
        await rig.port.sleep(20 * US)
        came = [receiver.take() for receiver in receivers]
        told.append([[(entry, hashlib.sha256(data).hexdigest()[:16]) for entry, data in each] for each in came])
        good += await _good_frame(rig, receivers, seed << 32 | number, [frame.why for frame in frames])
    counters = await nic.read_counters()
    rose = {counter.name: counters[counter.name] - before[counter.name] for counter in COUNTERS}
    assert rose["rx_frames_in"] == rose["rx_frames"] + sum(rose[name] for name in RX_DROPS), f"seed {seed}: {rose}"
    assert rose["rx_frames_in"] + rose["rx_pause"] == arguments["frames"] + good, f"seed {seed}: {rose}"
    assert not rose["rx_fifo_full"], f"seed {seed}: frames were lost for room"
    for receiver in receivers:
        await receiver.close(nic)
    return {"completions": told, "counters": rose}


async def _good_frame(rig: Rig, receivers: list[Receiver], number: int, behind: list[str]) -> int:
    """Let a good frame arrive, again while it meets a bad buffer; it must be delivered whole, alone. Returns how often
    it came."""
    frame, came, times = good_frame(number), [], 0
    bad = max(receiver.bad for receiver in receivers)
    while times <= bad:
        times += 1
        for receiver in receivers:
            receiver.post()
        await rig.port.read32(register("ID"))
        await rig.port.sleep(4 * US)
        rig.mac.arrive(frame, False)
        await rig.port.sleep(20 * US)
        came = [each for receiver in receivers for each in receiver.take()]
        statuses = [Status(COMPLETION.unpack(bytes.fromhex(entry))["status"]) for entry, _ in came]
        if statuses not in ([Status.KEY_INVALID], [Status.KEY_BOUNDS]):
            break
    assert [data for _, data in came] == [frame], (
        f"burst {number & 0xFFFF} of seed {number >> 32}: the good frame behind {behind} was not delivered, but {came}")
    return times


# ------------------------------------------------------------------------------------------------ bad descriptors


class Bad(NamedTuple):
    """A send that must fail: its slots, and with what status; or the channel's error."""

    slots: bytes
    status: Status = Status.OK
    error: ChannelError = ChannelError.NONE


class BadSender:
    """Makes bad sends of one channel."""

    def __init__(self, rng: random.Random, user: User, keys: dict[str, int], number: int) -> None:
        self._rng = rng
        self._user = user
        self._keys = keys
        self._number = number
        self.ways: dict[str, Callable[[], Bad]] = {
            name[4:]: getattr(self, name) for name in dir(self) if name.startswith("bad_")}

    def _send(self, *, key: int | None = None, offset: int | None = None, length: int | None = None,
              segmented: bool = False, **head: int) -> bytes:
        """A good send, but for what is named."""
        rng, own = self._rng, self._user.key.value
        good = Piece(own, rng.randrange(5000), rng.randrange(1, 3000))
        bad = Piece(own if key is None else key, good.offset if offset is None else offset,
                    good.length_bytes if length is None else length)
        pieces = rng.choice(([bad], [good, bad], [bad, good]))
        inline = bytes(6) + bytes((2, 0, 0, 0, 0xDD, self._user.number)) + b"\x08\0" + bytes(40)
        if segmented or rng.random() < 0.5:
            made = Descriptor(Opcode.SEND_SEGMENTED, inline, tuple(pieces), SendFlag.COMPLETE, mss=1000, l3_offset=14,
                              l4_offset=34, checksum_offset=50)
        else:
            made = Descriptor(Opcode.SEND_FRAME, inline, tuple(pieces), SendFlag.COMPLETE)
        slots = bytearray(made.pack(self._number))
        fields = SUBMISSION_HEAD.unpack(bytes(slots[:SUBMISSION_HEAD.size_bytes]))
        slots[:SUBMISSION_HEAD.size_bytes] = SUBMISSION_HEAD.pack(**fields | head)
        return bytes(slots)

    def bad_opcode(self) -> Bad:
        known = {int(Opcode.SEND_FRAME), int(Opcode.SEND_SEGMENTED)}
        return Bad(self._send(opcode=self._rng.choice([n for n in range(256) if n not in known])), Status.BAD_OPCODE)

    def bad_inline_length(self) -> Bad:
        return Bad(self._send(inline_bytes=self._rng.randrange(MAX_INLINE_BYTES + 1, 256)), Status.BAD_DESCRIPTOR)

    def bad_piece_count(self) -> Bad:
        return Bad(self._send(pieces=self._rng.randrange(MAX_PIECES + 1, 256)), Status.BAD_DESCRIPTOR)

    def bad_mss(self) -> Bad:
        return Bad(self._send(segmented=True, mss=self._rng.choice((0, 1, 31, 9014, 0xFFFF))), Status.BAD_DESCRIPTOR)

    def bad_piece_length(self) -> Bad:
        length = self._rng.choice((0, MAX_SEGMENTED_BYTES + 1, (1 << 24) - 1))
        return Bad(self._send(length=length), Status.BAD_DESCRIPTOR)

    def bad_generation(self) -> Bad:
        own = self._user.key.value
        return Bad(self._send(key=own ^ self._rng.randrange(1, 1 << 12) << 12), Status.KEY_INVALID)

    def bad_key_absent(self) -> Bad:
        return Bad(self._send(key=make_key(self._rng.choice((self._keys["most"] - 1, self._keys["most"], 0xFFF)), 0)),
                   Status.KEY_INVALID)

    def bad_key_owner(self) -> Bad:
        return Bad(self._send(key=self._keys["foreign"]), Status.KEY_OWNER)

    def bad_key_rights(self) -> Bad:
        return Bad(self._send(key=self._keys["write only"]), Status.KEY_RIGHTS)

    def bad_key_bounds(self) -> Bad:
        offset = self._rng.choice((1 << 17, (1 << 40) - 1, 1 << 32, (1 << 17) - 1))
        return Bad(self._send(offset=offset, length=2), Status.KEY_BOUNDS)

    def bad_slots(self) -> Bad:
        return Bad(self._send(slots=self._rng.choice((0, 17, 100, 255))), error=ChannelError.TRUNCATED_DESCRIPTOR)

    def bad_index(self) -> Bad:
        return Bad(b"", error=ChannelError.DOORBELL_OVERRUN)

    def bad_bus_on_payload(self) -> Bad:
        return Bad(self._send(), Status.BUS_ERROR)

    def bad_bus_on_ring(self) -> Bad:
        return Bad(self._send(), error=ChannelError.FETCH_BUS_ERROR)

    def bad_bus_on_completion(self) -> Bad:
        return Bad(self._send(), error=ChannelError.COMPLETION_BUS_ERROR)


def _failing(user: User, way: str) -> Callable[[int, bool], bool]:
    """Which accesses the bus answers with an error, for the ways that need one."""
    rings = {"bus_on_payload": (user.area, 1 << 17, False),
             "bus_on_ring": (user.channel.submissions.address, 32 << user.channel.submissions.log2, False),
             "bus_on_completion": (user.channel.completed.address, 32 << user.channel.completed.log2, True)}
    if way not in rings:
        return lambda address, write: False
    begin, length, writes = rings[way]
    return lambda address, write: write == writes and begin <= address < begin + length


async def send(rig: Rig, arguments: dict[str, int]) -> dict[str, Any]:
    """Scenario: `sends` bad sends one after the other, each way in its turn; behind each a good one must come out.

    Returns `told`: way, and status or the channel's error.
    """
    seed = arguments["seed"]
    rng = random.Random(f"bad sends {seed}")
    nic = await start(rig)
    user, other = [await User.open(rig, nic, number) for number in (HIT, HIT + 1)]
    told: list[list[Any]] = []
    shuffled: list[str] = []
    for number in range(arguments["sends"]):
        key: MemoryKey = user.key
        write_only = nic.register_memory(user.area, 1 << 17, KeyRight.WRITE, HIT, NOBODY)
        sender = BadSender(rng, user, {"foreign": other.key.value, "write only": write_only.value,
                                       "most": nic.capabilities.keys}, number)
        if not shuffled:
            shuffled = rng.sample(sorted(sender.ways), len(sender.ways))
        way = shuffled.pop()
        bad = sender.ways[way]()
        where = f"bad send {number} of seed {seed}, {way}"
        with judged(rig, _failing(user, way)):
            found = await rig.within(_try(rig, user, bad, rng), 2000 * US, where)
        assert found == [bad.status, bad.error], f"{where}: {Status(found[0]).name}, {ChannelError(found[1]).name}"
        told.append([way, *map(int, found)])
        if bad.error:
            assert await nic.take_channel_errors() == {HIT: bad.error}, where
            await nic.close_channel(user.channel)
            user.channel = await nic.open_channel(HIT, operations=OperationMask.SEND_FRAME
                                                  | OperationMask.SEND_SEGMENTED | OperationMask.RECEIVE_RAW,
                                                  vector=HIT, tx_log2=6, rx_log2=5)
        for each in (user, other):
            try:
                await rig.within(each.prove(), 1000 * US, f"{where}: the good send behind it")
            except (AssertionError, CaseFailed) as error:
                raise AssertionError(f"{where}: {error}") from error
        await nic.deregister_memory(write_only)
        assert user.key is key
    for each in (user, other):
        await each.close()
    return {"told": told}


async def _try(rig: Rig, user: User, bad: Bad, rng: random.Random) -> list[int]:
    """Submit it, and wait for its completion or the channel's stop."""
    submissions = user.channel.submissions
    before = submissions.producer
    for at in range(0, len(bad.slots), SUBMISSION_SLOT_BYTES):
        place = ring.slot(submissions.producer, submissions.log2) * SUBMISSION_SLOT_BYTES
        rig.memory.view(submissions.address + place, SUBMISSION_SLOT_BYTES)[:] = (
            bad.slots[at:at + SUBMISSION_SLOT_BYTES])
        submissions.producer = ring.advance(submissions.producer)
    rig.port.wmb()
    if bad.slots:
        index = submissions.producer
    else:
        # Of another world: further than the ring is large.
        index = before + rng.choice((65, 1000, 0x8000, 0xFFFF)) & 0xFFFF
    rig.port.write32(doorbell("TX_DOORBELL", user.number), index)
    completed = user.channel.completed
    while True:
        if completed.has_completion:
            completion = completed.take()
            assert completion.kind is CompletionKind.SEND
            submissions.retire(completion.ring_index)
            return [completion.status, ChannelError.NONE]
        state, error = await user.status()
        if state is not ChannelState.RUNNING:
            assert state is ChannelState.ERROR
            return [Status.OK, error]
        await rig.port.sleep(2 * US)


def frames_of(seed: int, frames: int) -> list[tuple[bytes, bool]]:
    """What `receive` lets arrive, for a capture."""
    found = []
    for number, each in enumerate(bursts(seed, frames)):
        found += [(frame.data, frame.bad) for frame in each] + [(good_frame(seed << 32 | number), False)]
    return found
