"""What may go wrong, case by case: bus errors, bad doorbells and rings, resets in the middle of traffic.

Each case is a coroutine over a `Rig` and raises AssertionError when the device did not do as the contract says. Every
case ends with all channels closed, and every one shows that channels that were hit work again and others never noticed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from host_driver.account import NullAccount
from host_driver.channel import Channel, Finished
from host_driver.nic import MemoryKey, Nic
from host_driver.rings import Descriptor, Piece
from host_driver.runtime import TaskFailed
from nic_model import ring
from nic_model.contract import (
    COUNTERS,
    COUNTERS_BASE,
    INDEX_BITS,
    MAX_DESCRIPTOR_SLOTS,
    MAX_FRAME_BYTES,
    SUBMISSION_HEAD,
    SUBMISSION_SLOT_BYTES,
    ChannelCommand,
    ChannelError,
    ChannelState,
    CompletionKind,
    KeyRight,
    Opcode,
    OperationMask,
    Status,
    channel_register,
    doorbell,
    register,
)
from nic_model.contract.config import BURST_BYTES
from tests.device.rig import US, CaseFailed, Rig

NOBODY = NullAccount()
OWN_MAC = bytes.fromhex("02000000aa01")
OPERATIONS = OperationMask.SEND_FRAME | OperationMask.SEND_SEGMENTED | OperationMask.RECEIVE_RAW

AREA_BYTES = 1 << 17
POISON = 0x5A
HIT, BYSTANDER = 1, 2
"""Channels: the one that something happens to (channel 0 when it is about receiving), and one that must not notice."""

LOOK_PS = 5 * US
CASE_LIMIT_PS = 20_000 * US


class User:
    """A channel with memory of its own, which holds random bytes."""

    def __init__(self, rig: Rig, nic: Nic, channel: Channel, area: int, key: MemoryKey) -> None:
        self.rig = rig
        self.nic = nic
        self.channel = channel
        self.number = channel.number
        self.area = area
        self.key = key
        self.finished: list[Finished] = []
        self.data = bytes(rig.memory.view(area, AREA_BYTES))

    @classmethod
    async def open(cls, rig: Rig, nic: Nic, number: int, *, tx_log2: int = 6, rx_log2: int = 5) -> User:
        channel = await nic.open_channel(number, operations=OPERATIONS, vector=number % rig.config.vectors,
                                         tx_log2=tx_log2, rx_log2=rx_log2)
        area = rig.memory.allocate(AREA_BYTES, 4096)
        rig.memory.view(area, AREA_BYTES)[:] = random.Random(number).randbytes(AREA_BYTES)
        key = nic.register_memory(area, AREA_BYTES, KeyRight.READ | KeyRight.WRITE, number, NOBODY)
        return cls(rig, nic, channel, area, key)

    async def close(self) -> None:
        """Reset the channel and give everything back."""
        await self.nic.close_channel(self.channel)
        await self.nic.deregister_memory(self.key)
        self.rig.memory.free(self.area)

    # -- sending

    def frame(self, length: int, offset: int = 0) -> bytes:
        """The frame that `send_frame` sends."""
        return self._head() + self.data[offset : offset + length - 14]

    def _head(self) -> bytes:
        return bytes(6) + bytes((2, 0, 0, 0, 0xDD, self.number)) + b"\x08\0"

    def send_frame(self, length: int, offset: int = 0, handle: Any = None) -> None:
        """Submit a frame of `length` bytes."""
        self.channel.submit(Descriptor(Opcode.SEND_FRAME, self._head(),
                                       (Piece(self.key.value, offset, length - 14),)), handle)

    def send_segmented(self, length: int, mss: int = 1000, handle: Any = None) -> None:
        """Submit a segmented send of `length` bytes of payload, in two pieces."""
        inline = self._head() + bytes(40)
        first = length // 3
        self.channel.submit(Descriptor(
            Opcode.SEND_SEGMENTED, inline,
            (Piece(self.key.value, 0, first), Piece(self.key.value, first, length - first)), mss=mss,
            l3_offset=14, l4_offset=34, checksum_offset=50), handle)

    def bell(self) -> None:
        """Ring for all that was submitted and posted."""
        self.channel.ring_doorbell(NOBODY)

    def post(self, count: int, length: int = 2048) -> None:
        """Post so many buffers, from the end of the area."""
        for number in range(count):
            offset = AREA_BYTES - (number + 1) * length
            self.channel.post(Piece(self.key.value, offset, length), len(self.finished) * 100 + number, offset)

    def sent(self) -> list[bytes]:
        """Its frames that the MAC has seen."""
        return [f for _, f in self.rig.mac.sent if f[6:12] == self._head()[6:12]]

    def take(self) -> None:
        """Take what has finished."""
        self.finished += self.channel.completions()

    async def status(self) -> tuple[ChannelState, ChannelError]:
        return await self.nic.channel_status(self.number)

    async def until_finished(self, count: int) -> list[Finished]:
        """Wait until so many completions came, or the channel stopped."""
        while True:
            self.take()
            if len(self.finished) >= count:
                return self.finished
            state, _ = await self.status()
            if state is not ChannelState.RUNNING:
                self.take()
                return self.finished
            await self.rig.port.sleep(LOOK_PS)

    async def prove(self) -> None:
        """Send one good frame and see it come out whole, with its completion."""
        before, frames = len(self.finished), len(self.sent())
        self.send_frame(77)
        self.bell()
        await self.until_finished(before + 1)
        assert [f.completion.status for f in self.finished[before:]] == [Status.OK], "the good send failed"
        assert self.sent()[frames:] == [self.frame(77)], "the good send did not come out"


async def start(rig: Rig) -> Nic:
    """A device that was reset, taking frames, its error line open."""
    nic = await Nic.probe(rig.port)
    nic.set_mac_address(OWN_MAC)
    nic.enable_receive(True)
    await nic.take_channel_errors()
    rig.port.write32(register("ERROR_MASK"), 0)
    return nic


async def bystand(user: User, sends: int) -> None:
    """Sends of a channel that must not notice anything."""
    for number in range(sends):
        user.send_frame(200 + number, handle=number)
        user.bell()
        await user.rig.port.sleep(2 * US)
    await user.until_finished(sends)
    assert [(f.handle, f.completion.status) for f in user.finished] == [(n, Status.OK) for n in range(sends)]
    assert user.sent()[-sends:] == [user.frame(200 + number) for number in range(sends)]


async def expect_error(rig: Rig, nic: Nic, number: int, error: ChannelError) -> None:
    """The channel must be in ERROR for this reason; the error vector tells, and falls when it has been read."""
    await rig.within(_wait(rig.port.interrupt(rig.config.error_vector)), 500 * US, "the error vector")
    state = await nic.channel_status(number)
    assert state == (ChannelState.ERROR, error), f"channel {number} is {state}, not in ERROR with {error.name}"
    errors = await nic.take_channel_errors()
    assert errors == {number: error}, f"ERROR_CHANNELS tells of {errors}"
    assert await nic.take_channel_errors() == {}


async def _wait(future: Any) -> None:
    await future


# ------------------------------------------------------------------------------------------------ bus errors


class Nth:
    """Fails the n-th access to some memory, counting from 0; `seen` counts all."""

    def __init__(self, address: int, length: int, write: bool, number: int) -> None:
        self._range = range(address, address + length)
        self._write = write
        self._number = number
        self.seen = 0

    def __call__(self, address: int, write: bool) -> bool:
        if write != self._write or address not in self._range:
            return False
        self.seen += 1
        return self.seen - 1 == self._number


@contextmanager
def judged(rig: Rig, judge: Callable[[int, bool], bool]) -> Iterator[None]:
    """Let `judge` decide which accesses fail."""
    before, rig.faults.judge = rig.faults.judge, judge
    try:
        yield
    finally:
        rig.faults.judge = before


@contextmanager
def timed(rig: Rig, **changes: Any) -> Iterator[None]:
    """Change fields of the bus's timing for a while; the model has no bus."""
    if rig.bus is None:
        yield
        return
    before, rig.bus.timing = rig.bus.timing, replace(rig.bus.timing, **changes)
    try:
        yield
    finally:
        rig.bus.timing = before


FAR_READS = {"read_latency_cycles": 1500, "reorder_cycles": 100}
"""Of the bus: each read takes 10 us, and up to 1 us more, so that another may overtake it."""

SENDS = 8
FRAMES = 6

Area = Callable[[User], tuple[int, int, bool]]
"""Of a channel: address, length, and whether writes are meant."""


async def nth_failure(rig: Rig, number: int, area: Area, n: int, error: ChannelError | None) -> int:
    """Traffic on three channels while the n-th access to memory of one fails. Returns how many accesses there were.

    With `error` the channel must stop for that reason, else exactly one completion must say BUS_ERROR.
    """
    nic = await start(rig)
    receiver, sender, bystander = [await User.open(rig, nic, c) for c in (0, HIT, BYSTANDER)]
    users = {0: receiver, HIT: sender}
    judge = Nth(*area(users[number]), n)
    with judged(rig, judge):
        receiver.post(FRAMES)
        receiver.bell()
        for turn in range(SENDS):
            if turn % 2:
                sender.send_frame(300 + turn, handle=turn)
            else:
                sender.send_segmented(2500, handle=turn)
            if turn % 3 == 2 or turn == SENDS - 1:
                sender.bell()
        other = rig.kernel.spawn(bystand(bystander, 5), "bystander")
        await rig.port.read32(register("ID"))
        for length in range(100, 100 + FRAMES * 150, 150):
            rig.mac.arrive(OWN_MAC + bytes(length), False)
        await sender.until_finished(SENDS)
        await receiver.until_finished(FRAMES)
        await other
    if judge.seen > n:
        hit = users[number]
        if error is not None:
            await expect_error(rig, nic, number, error)
        else:
            expected = FRAMES if number == 0 else SENDS
            statuses = [f.completion.status for f in hit.finished]
            assert sorted(statuses) == [Status.OK] * (expected - 1) + [Status.BUS_ERROR], f"n {n}: {statuses}"
    for user, expected in ((receiver, FRAMES), (sender, SENDS)):
        if user.number != number:
            assert [f.completion.status for f in user.finished] == [Status.OK] * expected
    # A channel that stopped is reset by closing; one that runs must work on as it is.
    for c, user in users.items():
        if (await user.status())[0] is ChannelState.RUNNING:
            await user.prove()
        await user.close()
        again = await User.open(rig, nic, c)
        await again.prove()
        await again.close()
    await bystander.close()
    return judge.seen


def nth_failures(number: int, area: Area, error: ChannelError | None, most: int = 6) -> Callable[[Rig], Any]:
    """A case: first without failure, to count, then with up to `most` of the accesses failing in turn."""
    async def case(rig: Rig) -> None:
        count = await nth_failure(rig, number, area, 1 << 30, error)
        assert count > 0, "nothing touches that memory"
        chosen = sorted(set(range(min(count, most - 2))) | {count // 2, count - 1})
        hits = 0
        for n in chosen:
            try:
                hits += await nth_failure(rig, number, area, n, error) > n
            except AssertionError as failed:
                raise AssertionError(f"access {n} of {count}: {failed}") from failed
        assert hits == len(chosen), f"{hits} of {len(chosen)} failures came about"
    return case


def _tx_ring(user: User) -> tuple[int, int, bool]:
    submissions = user.channel.submissions
    return submissions.address, submissions.entries * submissions.entry_bytes, False


def _rx_ring(user: User) -> tuple[int, int, bool]:
    buffers = user.channel.buffers
    return buffers.address, buffers.entries * buffers.entry_bytes, False


def _completions(user: User) -> tuple[int, int, bool]:
    completed = user.channel.completed
    return completed.address, completed.entries * completed.entry_bytes, True


def _payload(user: User) -> tuple[int, int, bool]:
    return user.area, AREA_BYTES, False


def _receive_data(user: User) -> tuple[int, int, bool]:
    return user.area, AREA_BYTES, True


LOST_TOGETHER, LOST_ROUNDS = 12, 5


async def payload_of_many_sends(rig: Rig) -> None:
    """Sends whose payload cannot be read, together of many times as many bytes as the device holds: what is dropped
    takes no room from what comes after, up to the longest frame."""
    nic = await start(rig)
    rng = random.Random("payload of many sends")
    sender, bystander = [await User.open(rig, nic, c) for c in (HIT, BYSTANDER)]
    other = rig.kernel.spawn(bystand(bystander, 20), "bystander")
    rig.faults.blocks = {sender.area // BURST_BYTES}
    frames, lost = len(sender.sent()), 0
    for number in range(LOST_ROUNDS):
        for turn in range(LOST_TOGETHER):
            if turn % 3:
                length, mss = rng.randrange(2000, 30_000), rng.randrange(200, MAX_FRAME_BYTES - 54)
                sender.send_segmented(length, mss)
            else:
                length = rng.randrange(600, MAX_FRAME_BYTES)
                sender.send_frame(length)
            lost += length
        sender.bell()
        await sender.until_finished((number + 1) * LOST_TOGETHER)
    rig.faults.blocks = set()
    assert lost > 20 * rig.config.tx_buffer_bytes
    assert {f.completion.status for f in sender.finished} == {Status.BUS_ERROR}
    assert {f.completion.length for f in sender.finished} == {0}
    assert len(sender.sent()) == frames, "a frame left whose payload could not be read"
    sender.send_frame(MAX_FRAME_BYTES)
    sender.bell()
    await sender.until_finished(LOST_ROUNDS * LOST_TOGETHER + 1)
    assert sender.finished[-1].completion.status is Status.OK
    await sender.prove()
    assert sender.sent()[frames] == sender.frame(MAX_FRAME_BYTES)
    await other
    for user in (sender, bystander):
        await user.close()


async def receive_ring_fetch_behind(rig: Rig) -> None:
    """A fetch that fails, and one behind it that does not and comes first or at once, while a frame waits for the first
    one's buffer."""
    for turn in range(12):
        buffers = 1 + turn % 3 // 2
        nic = await start(rig)
        user = await User.open(rig, nic, 0)
        address, _, _ = _rx_ring(user)
        dropped = (await nic.read_counters())["rx_no_buffer"]
        with timed(rig, **FAR_READS), judged(rig, Nth(address, 1, False, 0)):
            for number in range(2 * buffers):
                user.channel.post(Piece(user.key.value, number * 2048, 2048), number, number)
                if number + 1 in (buffers, 2 * buffers):
                    user.bell()
            await rig.port.read32(register("ID"))
            await rig.port.sleep(US)
            rig.mac.arrive(OWN_MAC + bytes(100), False)
            await expect_error(rig, nic, 0, ChannelError.FETCH_BUS_ERROR)
            await rig.port.sleep(20 * US)
            user.take()
            assert not user.finished, "a frame has a buffer that was never read"
            assert (await nic.read_counters())["rx_no_buffer"] == dropped + 1, "it was not dropped for want of one"
        await user.close()
        again = await User.open(rig, nic, 0)
        await _receive_one(rig, again)
        await again.close()


SHARED = 400
"""Completions at once: more than the device has under way when each needs a write of its own."""


async def shared_completion_writes(rig: Rig) -> None:
    """Sends fail faster than memory takes their completions, so that neighbours share a write; then such a write
    fails."""
    nic = await start(rig)
    bystander = await User.open(rig, nic, BYSTANDER)
    for failing in (None, 0, 1, 40, 50, 60):
        user = await User.open(rig, nic, HIT, tx_log2=9)
        submissions, completed = user.channel.submissions, user.channel.completed
        address, length, _ = _completions(user)
        for tag in range(SHARED):
            _put_refused(rig, user, 1, tag)
        accesses = len(rig.bus.events) if rig.bus else 0
        judge = Nth(address, length, True, SHARED if failing is None else failing)
        with timed(rig, write_latency_cycles=1500), judged(rig, judge):
            user.bell()
            if failing is not None:
                await expect_error(rig, nic, HIT, ChannelError.COMPLETION_BUS_ERROR)
            else:
                await rig.port.sleep(500 * US)
                for tag in range(SHARED):
                    assert completed.has_completion, f"{tag} completions of {SHARED} sends"
                    done = completed.take()
                    assert (done.kind, done.status, done.tag, done.ring_index) == (
                        CompletionKind.SEND, Status.BAD_OPCODE, tag, tag + 1)
                    submissions.retire(done.ring_index)
                assert not completed.has_completion
                if rig.bus:
                    writes = [at for _, write, at in rig.bus.events[accesses:]
                              if write and address <= at < address + length]
                    assert len(writes) < SHARED * 3 // 4, f"{len(writes)} writes of {SHARED} completions"
        await bystander.prove()
        await user.close()
        again = await User.open(rig, nic, HIT)
        await again.prove()
        await again.close()
    await bystander.close()


# ------------------------------------------------------------------------------------------------ bad doorbells, rings


async def doorbell_overrun(rig: Rig) -> None:
    nic = await start(rig)
    bystander = await User.open(rig, nic, BYSTANDER)
    for name, by in (("TX_DOORBELL", 65), ("TX_DOORBELL", 0xFFFF), ("RX_DOORBELL", 33), ("RX_DOORBELL", 0x8000)):
        user = await User.open(rig, nic, HIT)
        await user.prove()
        producer = user.channel.submissions.producer if name == "TX_DOORBELL" else user.channel.buffers.producer
        rig.port.write32(doorbell(name, HIT), producer + by & 0xFFFF)
        await expect_error(rig, nic, HIT, ChannelError.DOORBELL_OVERRUN)
        await user.close()
        again = await User.open(rig, nic, HIT)
        await again.prove()
        await again.close()
    await bystander.prove()
    await bystander.close()


async def buffers_taken_back(rig: Rig) -> None:
    """A doorbell for less than the one before: a frame that waits for such a buffer is dropped at once, and not when
    the buffer's slot has been read."""
    nic = await start(rig)
    user = await User.open(rig, nic, 0)
    frame = OWN_MAC + bytes(range(100))
    for turn in range(8):
        dropped = (await nic.read_counters())["rx_no_buffer"]
        with timed(rig, **FAR_READS):
            offset = turn * 2048
            user.channel.post(Piece(user.key.value, offset, 2048), turn, offset)
            user.bell()
            await rig.port.read32(register("ID"))
            await rig.port.sleep(US)
            rig.mac.arrive(frame, False)
            await rig.port.sleep(US)
            rig.port.write32(doorbell("RX_DOORBELL", 0), user.channel.buffers.producer - 1 & 0xFFFF)
            await rig.port.sleep(US)
            rig.port.write32(register("SNAPSHOT"), 1)
            await rig.port.read32(register("ID"))
            await rig.port.sleep(20 * US)
        assert await _counter(rig, "rx_no_buffer") == dropped + 1, "the frame was not dropped at once"
        # The same buffer once more.
        rig.port.write32(doorbell("RX_DOORBELL", 0), user.channel.buffers.producer)
        await rig.port.read32(register("ID"))
        rig.mac.arrive(frame, False)
        await user.until_finished(turn + 1)
        assert user.finished[turn].handle == offset
        assert rig.memory.view(user.area + offset, len(frame)) == frame
    await user.close()


async def _counter(rig: Rig, name: str) -> int:
    """A counter as it was at the latest snapshot."""
    number = [counter.name for counter in COUNTERS].index(name)
    return await rig.port.read32(COUNTERS_BASE + 8 * number)


async def truncated_descriptors(rig: Rig) -> None:
    nic = await start(rig)
    bystander = await User.open(rig, nic, BYSTANDER)
    for slots, told in ((0, 1), (17, 20), (255, 20), (3, 2), (16, 15), (2, 1)):
        user = await User.open(rig, nic, HIT)
        await user.prove()
        frames = len(user.sent())
        submissions = user.channel.submissions
        at = submissions.address + submissions.producer % submissions.entries * SUBMISSION_SLOT_BYTES
        rig.memory.view(at, 16)[:] = SUBMISSION_HEAD.pack(opcode=Opcode.SEND_FRAME, slots=slots, inline_bytes=60)
        rig.port.wmb()
        rig.port.write32(doorbell("TX_DOORBELL", HIT), submissions.producer + told)
        await expect_error(rig, nic, HIT, ChannelError.TRUNCATED_DESCRIPTOR)
        assert len(user.sent()) == frames, "a truncated descriptor sent something"
        await user.close()
        again = await User.open(rig, nic, HIT)
        await again.prove()
        await again.close()
    await bystander.prove()
    await bystander.close()


async def ring_configurations(rig: Rig) -> None:
    nic = await start(rig)
    most = nic.capabilities.max_ring_log2
    base = rig.memory.allocate(1 << 16, 4096)
    good = {"TX_BASE_LO": base, "TX_LOG2": 4, "RX_BASE_LO": base + 4096, "RX_LOG2": 4, "CQ_BASE_LO": base + 8192,
            "CQ_LOG2": 5}
    bad = [{"TX_LOG2": 3}, {"RX_LOG2": 0}, {"TX_LOG2": most + 1, "CQ_LOG2": most + 2},
           {"RX_LOG2": most + 1, "CQ_LOG2": most + 2}, {"CQ_LOG2": 4}, {"RX_LOG2": 5}, {"TX_LOG2": 5},
           {"CQ_LOG2": most + 2}, {"TX_LOG2": 0x104}, {"TX_LOG2": 1 << 31},
           *({f"{name}_BASE_LO": good[f"{name}_BASE_LO"] + 16 * n} for name in ("TX", "RX", "CQ") for n in (1, 128))]
    for changes in [*bad, {}]:
        for name, value in (good | changes).items():
            rig.port.write32(channel_register(name, HIT), value & 0xFFFF_FFFF)
            if name.endswith("_LO"):
                rig.port.write32(channel_register(name.replace("_LO", "_HI"), HIT), value >> 32)
        rig.port.write32(channel_register("CHANNEL_CONTROL", HIT), ChannelCommand.ENABLE)
        if changes:
            await expect_error(rig, nic, HIT, ChannelError.RING_CONFIG)
            rig.port.write32(channel_register("CHANNEL_CONTROL", HIT), ChannelCommand.ENABLE)
            assert (await nic.channel_status(HIT))[0] is ChannelState.ERROR, "ENABLE must not help without RESET"
        else:
            assert await nic.channel_status(HIT) == (ChannelState.RUNNING, ChannelError.NONE)
        await reset_channel(rig, nic, HIT)
    rig.memory.free(base)
    again = await User.open(rig, nic, HIT)
    await again.prove()
    await again.close()


async def reset_channel(rig: Rig, nic: Nic, number: int) -> None:
    """RESET, and wait for IDLE."""
    rig.port.write32(channel_register("CHANNEL_CONTROL", number), ChannelCommand.RESET)
    await _until_idle(rig, nic, number)


async def _until_idle(rig: Rig, nic: Nic, number: int) -> None:
    async def idle() -> None:
        while (await nic.channel_status(number)) != (ChannelState.IDLE, ChannelError.NONE):
            await rig.port.sleep(US)
    await rig.within(idle(), 3000 * US, f"reset of channel {number}")


def _put_refused(rig: Rig, user: User, slots: int, tag: int) -> None:
    """A descriptor of so many slots that is refused for its opcode."""
    submissions = user.channel.submissions
    at = submissions.address + submissions.producer % submissions.entries * SUBMISSION_SLOT_BYTES
    head = SUBMISSION_HEAD.pack(opcode=0, slots=slots, tag=tag)
    rig.memory.view(at, len(head))[:] = head
    submissions.producer = ring.advance(submissions.producer, slots)


async def submission_indices_wrap(rig: Rig) -> None:
    """More slots than an index can count, on the largest ring, each descriptor refused, and then a good send."""
    nic = await start(rig)
    user = await User.open(rig, nic, HIT, tx_log2=nic.capabilities.max_ring_log2)
    submissions = user.channel.submissions
    slots = MAX_DESCRIPTOR_SLOTS
    sent = 0
    while sent <= (1 << INDEX_BITS) // slots:
        for _ in range(submissions.free // slots - 1):
            _put_refused(rig, user, slots, 7)
            sent += 1
        rig.port.wmb()
        rig.port.write32(doorbell("TX_DOORBELL", HIT), submissions.producer)
        while submissions.used:
            await rig.port.sleep(LOOK_PS)
            while user.channel.completed.has_completion:
                done = user.channel.completed.take()
                assert (done.status, done.tag) == (Status.BAD_OPCODE, 7)
                assert done.ring_index == ring.advance(submissions.consumer, slots)
                submissions.retire(done.ring_index)
    assert submissions.producer < sent * slots, "the index has not wrapped"
    await user.prove()
    await user.close()


# ------------------------------------------------------------------------------------------------ resets and drains


BESIDE, BESIDE_PS = 240, 300_000
"""Frames beside resets, and from one to the next: less than a frame takes to memory and back."""

DELAYS_PS = (0, 300_000, 800_000, 1_500_000, 2 * US, 3 * US, 5 * US, 9 * US, 20 * US, 50 * US)
"""How long traffic has been running when something is taken from under it."""


async def _busy(rig: Rig, receiver: User, sender: User) -> None:
    """Long sends and a run of received frames, all under way on return."""
    receiver.post(30)
    receiver.bell()
    for _ in range(6):
        sender.send_segmented(20_000, 700)
        sender.send_frame(1514)
    sender.bell()
    await rig.port.read32(register("ID"))
    for _ in range(7):
        rig.mac.arrive(OWN_MAC + bytes(1400), False)


def _poison(rig: Rig, users: list[User]) -> None:
    for user in users:
        for address, length in _memory_of(user):
            rig.memory.view(address, length)[:] = bytes([POISON]) * length


def _memory_of(user: User) -> list[tuple[int, int]]:
    rings = (user.channel.submissions, user.channel.buffers, user.channel.completed)
    return [(user.area, AREA_BYTES), *((r.address, r.entries * r.entry_bytes) for r in rings)]


def _assert_poisoned(rig: Rig, users: list[User]) -> None:
    for user in users:
        for address, length in _memory_of(user):
            assert rig.memory.view(address, length) == bytes([POISON]) * length, (
                f"channel {user.number}: memory at {address:#x} was written after IDLE")


STRAYS = 3
"""Frames that come for nobody."""


async def _nothing_comes_after(rig: Rig, users: list[User]) -> None:
    """Poison all memory of idle channels, let frames and time pass, and look."""
    _poison(rig, users)
    frames = {user.number: len(user.sent()) for user in users}
    accesses = len(rig.bus.events) if rig.bus else 0
    for _ in range(STRAYS):
        rig.mac.arrive(OWN_MAC + bytes(500), False)
    for user in users:
        user.rig.port.write32(doorbell("TX_DOORBELL", user.number), 7)
        user.rig.port.write32(doorbell("RX_DOORBELL", user.number), 7)
    await rig.port.sleep(100 * US)
    _assert_poisoned(rig, users)
    assert {user.number: len(user.sent()) for user in users} == frames, "a frame left after IDLE"
    if rig.bus:
        ranges = [range(a, a + n) for user in users for a, n in _memory_of(user)]
        touched = [e for e in rig.bus.events[accesses:] if any(e[2] in r for r in ranges)]
        assert not touched, f"idle channels' memory was touched: {touched[:5]}"


async def reset_in_traffic(rig: Rig) -> None:
    for delay in DELAYS_PS:
        nic = await start(rig)
        receiver, sender, bystander = [await User.open(rig, nic, c) for c in (0, HIT, BYSTANDER)]
        other = rig.kernel.spawn(bystand(bystander, 20), "bystander")
        await _busy(rig, receiver, sender)
        await rig.port.sleep(delay)
        for number in (0, HIT):
            rig.port.write32(channel_register("CHANNEL_CONTROL", number), ChannelCommand.RESET)
        for number in (0, HIT):
            await _until_idle(rig, nic, number)
        await _nothing_comes_after(rig, [receiver, sender])
        await other
        for user in (receiver, sender, bystander):
            await user.close()
        for number in (0, HIT):
            again = await User.open(rig, nic, number)
            await again.prove()
            if number == 0:
                await _receive_one(rig, again)
            await again.close()


async def reset_while_receiving(rig: Rig) -> None:
    """As above, but nothing is sent that would take longer, and the bus is so slow that writes pile up on it."""
    if rig.bus:
        rig.bus.timing = replace(rig.bus.timing, bytes_per_cycle=3.0, write_latency_cycles=200, mmio_read_cycles=20)
    for delay in DELAYS_PS:
        nic = await start(rig)
        receiver = await User.open(rig, nic, 0)
        receiver.post(30)
        receiver.bell()
        await rig.port.read32(register("ID"))
        for _ in range(7):
            rig.mac.arrive(OWN_MAC + bytes(1400), False)
        await rig.port.sleep(delay)
        await reset_channel(rig, nic, 0)
        await _nothing_comes_after(rig, [receiver])
        await receiver.close()
        again = await User.open(rig, nic, 0)
        await again.prove()
        await _receive_one(rig, again)
        await again.close()


async def _receive_one(rig: Rig, user: User) -> None:
    before = len(user.finished)
    user.post(1)
    user.bell()
    await rig.port.read32(register("ID"))
    frame = OWN_MAC + bytes(range(100))
    rig.mac.arrive(frame, False)
    await user.until_finished(before + 1)
    done = user.finished[-1]
    assert (done.completion.kind, done.completion.status) == (CompletionKind.RECEIVE, Status.OK)
    assert rig.memory.view(user.area + done.handle, len(frame)) == frame


async def device_reset(rig: Rig) -> None:
    for delay in DELAYS_PS:
        nic = await start(rig)
        users = [await User.open(rig, nic, c) for c in (0, HIT, BYSTANDER)]
        users[2].send_segmented(30_000)
        users[2].bell()
        await _busy(rig, *users[:2])
        await rig.port.sleep(delay)
        rig.port.write32(register("DEVICE_RESET"), 1)

        async def done() -> None:
            while await rig.port.read32(register("DEVICE_RESET")):
                await rig.port.sleep(US)

        await rig.within(done(), 3000 * US, "DEVICE_RESET")
        for user in users:
            assert await user.status() == (ChannelState.IDLE, ChannelError.NONE)
        await _nothing_comes_after(rig, users)
        for user in users:
            await user.close()
        for number in (0, HIT, BYSTANDER):
            again = await User.open(rig, nic, number)
            await again.prove()
            await again.close()


START_PHASES = 64
"""Cycles from a doorbell and a frame to the start of another channel: through all that both bring about."""


async def start_in_traffic(rig: Rig) -> None:
    """A channel starts while another one's buffers are fetched and its frames matched, in each phase of that."""
    nic = await start(rig)
    receiver, other = [await User.open(rig, nic, c) for c in (0, HIT)]
    for phase in range(START_PHASES):
        await reset_channel(rig, nic, HIT)
        offsets = [(3 * phase + n) % 60 * 2048 for n in range(3)]
        for number, offset in enumerate(offsets):
            receiver.channel.post(Piece(receiver.key.value, offset, 2048), number, offset)
        frames = [OWN_MAC + random.Random(phase * 3 + n).randbytes(100) for n in range(3)]
        receiver.bell()
        for frame in frames:
            rig.mac.arrive(frame, False)
        await rig.port.sleep(nic.cycles_to_ps(phase))
        rig.port.write32(channel_register("CHANNEL_CONTROL", HIT), ChannelCommand.ENABLE)
        await rig.port.read32(register("ID"))
        before = 3 * phase
        await receiver.until_finished(before + 3)
        assert [f.handle for f in receiver.finished[before:]] == offsets, f"phase {phase}: other buffers"
        for frame, offset in zip(frames, offsets, strict=True):
            assert rig.memory.view(receiver.area + offset, len(frame)) == frame, f"phase {phase}: other bytes"
    for user in (receiver, other):
        await user.close()


FETCH_TURNS, FETCH_TURN_PS = 12, 600_000
"""Together less than the first fetch takes."""


async def reset_while_fetching(rig: Rig) -> None:
    """All channels have more buffers to fetch than there may be fetches under way, and one is reset: of its ring no
    fetch begins any more, of the others' all that is to be."""
    nic = await start(rig)
    for turn in range(FETCH_TURNS):
        users = [await User.open(rig, nic, number, rx_log2=7) for number in range(rig.config.channels)]
        hit = users[1 + turn % (len(users) - 1)]
        with timed(rig, **FAR_READS):
            for user in users:
                user.post(64, 512)
                user.bell()
            await rig.port.sleep(turn * FETCH_TURN_PS)
            rig.port.write32(channel_register("CHANNEL_CONTROL", hit.number), ChannelCommand.RESET)
            await rig.port.read32(register("ID"))
            # The next ones may take much longer than those before.
            with timed(rig, read_latency_cycles=100, reorder_cycles=6000):
                await _until_idle(rig, nic, hit.number)
                await _nothing_comes_after(rig, [hit])
        finished = await users[0].until_finished(STRAYS)
        assert [f.completion.status for f in finished] == [Status.OK] * STRAYS
        for user in users:
            await user.close()


async def reset_beside_traffic(rig: Rig) -> None:
    """A channel's reset waits for what was under way on others when it began, and not for what comes then."""
    nic = await start(rig)
    receiver = await User.open(rig, nic, 0, rx_log2=8)
    number = 0

    async def arrivals() -> None:
        nonlocal number
        for number in range(1, BESIDE + 1):
            rig.mac.arrive(OWN_MAC + bytes(54 + number), False)
            await rig.port.sleep(BESIDE_PS)

    with timed(rig, write_latency_cycles=200):
        for place in range(BESIDE):
            receiver.channel.post(Piece(receiver.key.value, place * 512, 512), place, place)
        receiver.bell()
        await rig.port.read32(register("ID"))
        task = rig.kernel.spawn(arrivals(), "arrivals")
        for _ in range(3):
            user = await User.open(rig, nic, HIT)
            await user.close()
        before = number
        await task
        await receiver.until_finished(BESIDE)
    assert before < BESIDE, "no reset has ended as long as frames came"
    assert [f.completion.status for f in receiver.finished] == [Status.OK] * BESIDE
    await receiver.close()


async def deregistration_in_traffic(rig: Rig) -> None:
    """On return of deregister_memory nothing reads the memory any more; sends are whole, or refused."""
    for delay in DELAYS_PS:
        nic = await start(rig)
        sender, bystander = [await User.open(rig, nic, c) for c in (HIT, BYSTANDER)]
        frames_before = len(sender.sent())
        other = rig.kernel.spawn(bystand(bystander, 20), "bystander")
        for turn in range(8):
            sender.send_segmented(12_000, 1000, handle=turn)
        sender.bell()
        await rig.port.sleep(delay)
        key = sender.key
        await rig.within(nic.deregister_memory(key), 3000 * US, "deregister_memory")
        accesses = len(rig.bus.events) if rig.bus else 0
        rig.memory.view(sender.area, AREA_BYTES)[:] = bytes([POISON]) * AREA_BYTES
        await sender.until_finished(8)
        await other
        statuses = [f.completion.status for f in sender.finished]
        good = statuses.count(Status.OK)
        assert statuses == [Status.OK] * good + [Status.KEY_INVALID] * (8 - good), f"{statuses}"
        sent = sender.sent()[frames_before:]
        assert len(sent) == 12 * good
        assert b"".join(f[54:] for f in sent) == sender.data[:12_000] * good, "bytes from after the deregistration"
        if rig.bus:
            late = [e for e in rig.bus.events[accesses:] if sender.area <= e[2] < sender.area + AREA_BYTES]
            assert not late, f"memory was read after its deregistration: {late[:3]}"
        sender.key = nic.register_memory(sender.area, AREA_BYTES, KeyRight.READ, HIT, NOBODY)
        rig.memory.view(sender.area, AREA_BYTES)[:] = sender.data
        await sender.prove()
        for user in (sender, bystander):
            await user.close()


BACKLOG, BACKLOG_FRAME_BYTES = 100, 1000
"""Sends of each channel: more than the device has taken from its ring when the first frames leave."""


async def deregistration_behind_a_backlog(rig: Rig) -> None:
    """As above, with every channel's queue full of short descriptors, so that hundreds of sends are under way: in turns
    one channel's memory is taken from it."""
    nic = await start(rig)
    users = [await User.open(rig, nic, number, tx_log2=7) for number in range(rig.config.channels)]
    for hit in users:
        for user in users:
            user.finished = []
            frame = user.frame(BACKLOG_FRAME_BYTES)
            rig.memory.view(user.area, len(frame))[:] = frame
            for _ in range(BACKLOG):
                user.channel.submit(
                    Descriptor(Opcode.SEND_FRAME, b"", (Piece(user.key.value, 0, BACKLOG_FRAME_BYTES),)), None)
        before = [len(user.sent()) for user in users]
        for user in users:
            user.bell()
        await rig.port.sleep(10 * US)
        await rig.within(nic.deregister_memory(hit.key), 3000 * US, "deregister_memory")
        accesses = len(rig.bus.events) if rig.bus else 0
        rig.memory.view(hit.area, AREA_BYTES)[:] = bytes([POISON]) * AREA_BYTES
        for user, frames in zip(users, before, strict=True):
            await user.until_finished(BACKLOG)
            good = sum(f.completion.status is Status.OK for f in user.finished)
            assert [f.completion.status for f in user.finished] == (
                [Status.OK] * good + [Status.KEY_INVALID] * (BACKLOG - good))
            assert good == BACKLOG or user is hit, f"channel {user.number} still has its memory"
            assert user.sent()[frames:] == [user.frame(BACKLOG_FRAME_BYTES)] * good
        if rig.bus:
            late = [e for e in rig.bus.events[accesses:] if hit.area <= e[2] < hit.area + AREA_BYTES]
            assert not late, f"memory was read after its deregistration: {late[:3]}"
        hit.key = nic.register_memory(hit.area, AREA_BYTES, KeyRight.READ, hit.number, NOBODY)
    for user in users:
        await user.close()


Case = Callable[[Rig], Coroutine[Any, None, None]]

CASES: dict[str, Case] = {
    "descriptor_fetch": nth_failures(HIT, _tx_ring, ChannelError.FETCH_BUS_ERROR),
    "receive_ring_fetch": nth_failures(0, _rx_ring, ChannelError.FETCH_BUS_ERROR),
    "receive_ring_fetch_behind": receive_ring_fetch_behind,
    "payload": nth_failures(HIT, _payload, None, 12),
    "payload_of_many_sends": payload_of_many_sends,
    "receive_data": nth_failures(0, _receive_data, None, 12),
    "send_completion": nth_failures(HIT, _completions, ChannelError.COMPLETION_BUS_ERROR),
    "receive_completion": nth_failures(0, _completions, ChannelError.COMPLETION_BUS_ERROR),
    "shared_completion_writes": shared_completion_writes,
    "doorbell_overrun": doorbell_overrun,
    "buffers_taken_back": buffers_taken_back,
    "truncated_descriptors": truncated_descriptors,
    "ring_configurations": ring_configurations,
    "submission_indices_wrap": submission_indices_wrap,
    "reset_in_traffic": reset_in_traffic,
    "device_reset": device_reset,
    "start_in_traffic": start_in_traffic,
    "reset_while_fetching": reset_while_fetching,
    "reset_beside_traffic": reset_beside_traffic,
    "deregistration_in_traffic": deregistration_in_traffic,
    "deregistration_behind_a_backlog": deregistration_behind_a_backlog,
    # Last, since it leaves the bus slow.
    "reset_while_receiving": reset_while_receiving,
}


async def run_cases(rig: Rig, arguments: dict[str, Any]) -> dict[str, str]:
    """Scenario: the named cases one after the other; for each what went wrong, or nothing."""
    outcome = {}
    for name in arguments["cases"]:
        try:
            await rig.within(CASES[name](rig), CASE_LIMIT_PS, name)
            outcome[name] = ""
        except (AssertionError, CaseFailed, TaskFailed) as error:
            outcome[name] = f"at {rig.kernel.now} ps: {type(error).__name__}: {error}"
    return outcome
