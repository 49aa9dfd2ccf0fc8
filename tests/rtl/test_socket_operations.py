# amaranth: UnusedElaboratable=no
"""Socket operations from their rings to messages up, among sends, against the executable model of the device."""

import itertools
import random
from collections import defaultdict

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from nic_model.contract import (
    COMPLETION,
    COMPLETION_BYTES,
    ChannelCommand,
    CompletionKind,
    KeyRight,
    NicConfig,
    Opcode,
    OperationMask,
    Status,
    channel_register,
    doorbell,
    key_register,
    make_key,
)
from nic_model.contract.control import ControlType, unpack_message
from nic_model.contract.registers import DOORBELL_BASE, DOORBELL_STRIDE, KEY_COMMIT
from nic_model.contract.sockets import SOCKET_HEAD, SOCKET_PARAMETERS
from nic_model.device import Device
from rtl.fetch import TransmitFetch
from rtl.interfaces import SOCKET_OPERATION, Strobe
from rtl.socket_operations import OperationTurns
from rtl.tx_scheduler import TransmitScheduler
from tests.rtl import test_fetch, test_tx_scheduler
from tests.rtl.harness import Bench, idle, lead_out, plain, until
from tests.rtl.test_fetch import CHANNELS, Ring, make_descriptor, push, random_descriptor, share_doorbells
from tests.rtl.test_tx_scheduler import Job

FLOWS = 16
ALL = test_fetch.ALL_OPERATIONS | OperationMask.SOCKET
FROM_FETCH = ("write", "start", "running", "doorbell", "push_write", "push_free", "descriptor_cmd", "descriptor_beat",
              "key_request", "key_answer", "fault", "index", "tx_retired", "tx_retired_epoch", "drain_request",
              "drain_done")
FROM_SCHEDULER = ("payload_cmd", "slice", "inline", "begun", "dropped", "now", "operation", "count_control_ops",
                  "clearing")
KEY_PAGE = 0x10_0000
"""Of payload: key n's memory begins at n of them."""
PARAMETERS = bytes(range(64, 128))
LATENCY_CYCLES = 7
RATE_CYCLES, RATE_CYCLES_PARAMETERS = 15, 21
"""For each operation of one channel: without, and with parameters."""
FRAME_CYCLES = 10.5
"""For each frame of 60 bytes, as the wire takes them."""


class Front(wiring.Component):
    """Transmit front and scheduler of a device with a control port; its jobs are shown too."""

    def __init__(self, config: NicConfig):
        self.fetch, self.scheduler = TransmitFetch(config), TransmitScheduler(config)
        fetch, scheduler = self.fetch.signature.members, self.scheduler.signature.members
        super().__init__({
            **{name: fetch[name] for name in FROM_FETCH}, **{name: scheduler[name] for name in FROM_SCHEDULER},
            **{name: Out(Strobe(fetch[name].signature.payload_shape))
               for name in ("job", "stored_row", "stored_piece")},
            "freed": In(Strobe(scheduler["freed"].signature.payload_shape)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.fetch, m.submodules.scheduler = fetch, scheduler = self.fetch, self.scheduler
        lead_out(m, self, fetch, FROM_FETCH)
        lead_out(m, self, scheduler, FROM_SCHEDULER)
        for name in ("job", "stored_row", "stored_piece"):
            connect(m, getattr(fetch, name), getattr(scheduler, name))
            m.d.comb += [getattr(self, name).payload.eq(getattr(fetch, name).payload),
                         getattr(self, name).valid.eq(getattr(fetch, name).valid)]
        connect(m, scheduler.freed, fetch.freed)
        connect(m, flipped(self.write), scheduler.write)
        m.d.comb += [
            scheduler.running.eq(self.running), fetch.clearing.eq(scheduler.clearing),
            self.active.eq(fetch.active | scheduler.active),
        ]
        return m


class MessageTaker:
    """Who takes messages. Attributes: `messages`, each with the cycle of its last beat; `takes`, whether they are
    taken; `message_stall`, the probability that a beat is refused."""

    def __init__(self, *arguments, message_stall=0.0, **named):
        self.messages, self.takes, self.message_stall = [], True, message_stall
        super().__init__(*arguments, **named)

    async def _take_messages(self, ctx):
        message, refused = b"", None
        while True:
            ctx.set(self.up.ready, self.takes and self.rng.random() >= self.message_stall)
            _, _, valid, ready, payload = await ctx.tick().sample(self.up.valid, self.up.ready, self.up.payload)
            if not valid:
                assert refused is None, "an offer was not kept"
                continue
            beat = plain(payload)
            assert refused in (None, beat), "an offer was not kept"
            refused = None if ready else beat
            if ready:
                message += beat["data"].to_bytes(self.width, "little")
                if beat["last"]:
                    self.messages.append((self.bench.cycle, message))
                    message = b""

    def ops(self):
        """Fields of all messages."""
        return [unpack_message(message)[1] for _, message in self.messages]

    def ops_of(self, channel):
        """Jobs of the operations of a channel that came up."""
        return [op["job"] for op in self.ops() if op["channel"] == channel]


class Host(MessageTaker, test_fetch.Host):
    """The same round both: a transmit back end that takes each frame, and who takes messages up.

    Attributes: `slices`, each with the cycle in which it was taken.
    """

    FRONT = Front
    DEVICE_CHANNELS = 2 * CHANNELS
    """The highest are the control port's."""

    def __init__(self, rings, **named):
        self.slices, self.payload, self.inline_rows, self.ops_counted, self.keys_added = [], [], [], [], {}
        super().__init__(rings, flows=FLOWS, **named)
        self.bench.sink(self.front.payload_cmd, self.payload, stall=self.stall)
        self.bench.sink(self.front.inline, self.inline_rows, stall=self.stall)
        self.bench.strobes(self.front.count_control_ops, self.ops_counted)
        self.bench.background(self._take_slices)
        self.bench.background(self._take_messages)
        share_doorbells(self)

    @property
    def up(self):
        return self.front.operation

    def add_key(self, index, *, address, length, owner):
        self.keys_added[index] = address, length, owner
        super().add_key(index, address=address, length=length, owner=owner)

    async def _free(self, ctx):
        """The scheduler does that."""

    async def _retire(self, ctx):
        """Jobs are over when their last slice is, in that order; those of operations are not told of."""
        while True:
            over = [s for _, s in self.slices if s["last"]]
            retire = self.retired < min(len(over), self.may_retire) and self.rng.random() < 0.5
            ctx.set(self.front.tx_retired, retire)
            if retire:
                ctx.set(self.front.tx_retired_epoch, over[self.retired]["job"]["epoch"])
            self.retired += retire
            await ctx.tick()

    async def _take_slices(self, ctx):
        ctx.set(self.front.now, 0x123456789 << 7)
        while True:
            ctx.set(self.front.slice.ready, self.rng.random() >= self.stall)
            _, _, valid, ready, payload = await ctx.tick().sample(
                self.front.slice.valid, self.front.slice.ready, self.front.slice.payload)
            ctx.set(self.front.begun.valid, 0)
            if valid and ready:
                taken = plain(payload)
                self.slices.append((self.bench.cycle, taken))
                if taken["job"]["status"] == Status.OK and not taken["discarded"]:
                    ctx.set(self.front.begun.payload.amount, taken["job"]["inline_bytes"] + taken["count"])
                    ctx.set(self.front.begun.valid, 1)

    def frames_of(self, channel):
        """Tags of the frames of a channel that have left, discarded ones too."""
        return [s["job"]["tag"] for _, s in self.slices if s["job"]["channel"] == channel]


class Model:
    """The executable model with the same rings, keys and doorbells. Payload is zeros."""

    CQ_LOG2 = 10

    def __init__(self, host: Host):
        self.rings = host.rings
        self.device = device = Device(host.config, self._read, self._write)
        self.completions = defaultdict(list)
        for index, (address, length, owner) in host.keys_added.items():
            for name, value in {
                "KEY_ADDRESS_LO": address & 0xFFFF_FFFF, "KEY_ADDRESS_HI": address >> 32, "KEY_LENGTH_LO": length,
                "KEY_COMMIT": KEY_COMMIT.pack_word(generation=1, rights=KeyRight.READ, owner=owner, valid=1),
            }.items():
                device.write_register(key_register(name, index), value)
        self.by_channel = defaultdict(list)

    def _read(self, address, length):
        for ring in self.rings.values():
            if ring.base <= address < ring.base + len(ring.memory):
                return bytes(ring.memory[address - ring.base:][:length])
        return bytes(length)

    def _write(self, address, data):
        assert len(data) == COMPLETION_BYTES
        self.completions[address >> 32].append(COMPLETION.unpack(data))
        return True

    def enable(self, ring):
        """As `Host.enable`."""
        cq = (1 + ring.channel) << 32
        for name, value in {
            "TX_BASE_LO": ring.base & 0xFFFF_FFFF, "TX_BASE_HI": ring.base >> 32, "TX_LOG2": ring.log2,
            "RX_BASE_HI": 0x99, "RX_LOG2": 4, "CQ_BASE_HI": cq >> 32, "CQ_LOG2": self.CQ_LOG2,
            "CHANNEL_OPERATIONS": ring.operations, "CHANNEL_CONTROL": ChannelCommand.ENABLE,
        }.items():
            self.device.write_register(channel_register(name, ring.channel), value)

    def ring_doorbell(self, ring):
        """Let the device see all that was posted, and take all messages."""
        self.device.write_doorbell(
            ring.channel, doorbell("TX_DOORBELL", ring.channel) - DOORBELL_BASE - ring.channel * DOORBELL_STRIDE,
            ring.producer.to_bytes(4, "little"))
        while (message := self.device.control.take()) is not None:
            kind, fields, _ = unpack_message(message)
            assert kind == ControlType.OP
            self.by_channel[fields["channel"]].append(message)

    def sends(self, channel):
        """Completions of a channel, in order."""
        names = ("status", "tag", "length", "ring_index", "segments")
        assert all(c["kind"] == CompletionKind.SEND for c in self.completions[1 + channel])
        return [{name: entry[name] for name in names} for entry in self.completions[1 + channel]]


def at_time_0(message):
    """The message without its time, which is checked by itself, and without credits, which it has none of here."""
    return message[:15] + b"\0" + message[16:32] + bytes(4) + message[36:]


def sends_of(host, channel):
    """The completions that the back end would have written."""
    found, length, segments = [], 0, 0
    for _, slice_ in host.slices:
        job = slice_["job"]
        if job["channel"] != channel or slice_["discarded"]:
            continue
        good = job["status"] == Status.OK
        length, segments = length + slice_["count"], segments + good
        if slice_["last"]:
            if job["complete"] or not good:
                found.append({"status": job["status"], "tag": job["tag"], "length": length,
                              "ring_index": job["ring_index"], "segments": segments})
            length = segments = 0
    return found


def socket_operation(parameters=b"", **fields):
    """Slots of a socket operation."""
    values = {"opcode": Opcode.SOCKET_SEND, "slots": 1 + len(parameters) // 32, "inline_bytes": len(parameters),
              "pieces": 1} | fields
    slots = (SOCKET_HEAD.pack(**values) + parameters).ljust(32 * values["slots"], b"\0")
    return slots[:32 * values["slots"]]


def random_operation(rng):
    """One of any kind, every field at random; one in five has something wrong."""
    parameters = rng.randbytes(SOCKET_PARAMETERS.size_bytes) if rng.random() < 0.4 else b""
    fields = {name: rng.getrandbits(SOCKET_HEAD.fields[name].width)
              for name in ("flags", "tag", "socket", "offset", "key", "length", "consumed")}
    fields |= {"opcode": rng.randrange(Opcode.SOCKET_CONNECT, Opcode.SOCKET_OPTION + 1), "pieces": rng.randrange(2)}
    wrong = rng.randrange(15)
    if wrong == 0:
        fields["slots"] = rng.randrange(1, 17)
    elif wrong == 1:
        fields |= {"pieces": rng.choice((2, 31, 255)), "slots": rng.choice((1, 2, 16))}
    elif wrong == 2:
        fields |= {"inline_bytes": rng.choice((1, 32, 63, 65, 128, 255)), "slots": rng.choice((2, 3, 4, 5))}
    return socket_operation(parameters, **fields)


def compare(host, rings):
    """All rings, to the model; returns the model."""
    model = Model(host)
    for ring in rings:
        model.enable(ring)
        model.ring_doorbell(ring)
    for ring in rings:
        channel = ring.channel
        came = [at_time_0(m) for _, m in host.messages if unpack_message(m)[1]["channel"] == channel]
        assert came == [at_time_0(m) for m in model.by_channel[channel]], f"channel {channel}"
        assert sends_of(host, channel) == model.sends(channel), f"channel {channel}"
        index = model.device.read_register(channel_register("TX_INDEX", channel))
        assert [i["index"] for i in host.indices if i["channel"] == channel][-1] == index
    assert {op["time"] for op in host.ops()} <= {0x2345_6789}
    device = model.device
    assert len(host.ops_counted) == len(host.messages) == device.control.counters["control_ops"]
    over = [s["job"]["status"] for _, s in host.slices if s["last"]]
    assert sum(status == Status.OK for status in over) == device.counters["tx_sends"]
    assert sum(status != Status.OK for status in over) == device.counters["tx_errors"]
    return model


def make_host(rings, **named):
    """A host in which each channel has a key for the descriptors of `random_descriptor`."""
    host = Host(rings, **named)
    for ring in rings:
        host.add_key(ring.channel, address=KEY_PAGE * (1 + ring.channel), length=0x3000, owner=ring.channel)
    return host


def make_rings(operations=(ALL, ALL, ALL, ALL), log2=8):
    """A ring for each channel, in which all descriptors of a test find room without wrapping."""
    return [Ring(channel=c, log2=log2, base=0x7_0000_0000 + 0x10000 * c, operations=operations[c])
            for c in range(CHANNELS)]


async def post(ctx, host, ring, descriptors):
    """Post them, and ring once."""
    for descriptor in descriptors:
        ring.post(descriptor)
    await host.ring_doorbell_of[ring.channel](ctx)


# ---------------------------------------------------------------------------------------------- random rings


@pytest.mark.parametrize(("host_bytes", "stall", "message_stall", "seed"), [
    (16, 0.3, 0.7, 32), (32, 0.0, 0.0, 33), (64, 0.2, 0.2, 34),
])
def test_random_rings(host_bytes, stall, message_stall, seed):
    """Sends and socket operations in any mixture on all channels; one channel may not use sockets. Messages are not
    taken for a while."""
    rng = random.Random(seed)
    rings = make_rings((ALL, ALL, test_fetch.ALL_OPERATIONS, ALL), log2=9)
    host = make_host(rings, host_bytes=host_bytes, seed=seed, stall=stall, message_stall=message_stall)
    finished = []

    def driver(ring):
        async def testbench(ctx):
            await idle(ctx, 80)
            for _ in range(16):
                descriptor = (random_operation(rng) if rng.random() < 0.5 else random_descriptor(rng, ring.channel))
                ring.post(descriptor)
                if rng.random() < 0.4:
                    await host.ring_doorbell_of[ring.channel](ctx)
                    await idle(ctx, rng.choice((0, 10, 100)))
            await host.ring_doorbell_of[ring.channel](ctx)
            finished.append(ring)
        return testbench

    async def testbench(ctx):
        for ring in rings:
            await host.enable(ctx, ring)
        while len(finished) < len(rings):
            host.takes = rng.random() < 0.7
            await idle(ctx, 60)
        host.takes = True
        await host.settle(ctx, quiet_cycles=60)

    host.bench.add(testbench)
    for ring in rings:
        host.bench.add(driver(ring))
    host.bench.run(max_cycles=60_000)
    assert not host.faults
    model = compare(host, rings)
    assert len(host.messages) > 12, f"seed {seed}"
    assert any(len(m) == 128 for _, m in host.messages)
    refused = [s["job"]["status"] for _, s in host.slices]
    assert refused.count(Status.NOT_PERMITTED) > 0
    assert refused.count(Status.BAD_DESCRIPTOR) > 0
    assert model.device.counters["tx_frames"] > 5


@pytest.mark.parametrize("host_bytes", [16, 64])
def test_pushed_operations(host_bytes):
    """With and without parameters: nothing is read, and the same comes up."""
    rings = make_rings()[:1]
    host = make_host(rings, host_bytes=host_bytes)
    rng, ring = random.Random(7), rings[0]

    async def testbench(ctx):
        await host.enable(ctx, ring)
        for n in range(8):
            descriptor = socket_operation(PARAMETERS if n % 2 else b"", tag=n, socket=rng.getrandbits(16),
                                          offset=rng.getrandbits(40), consumed=rng.getrandbits(32))
            await push(ctx, host, ring, descriptor, buffer=n % 4)
            ring.post(descriptor)
            await host.ring_doorbell(ctx, ring)
            await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run()
    compare(host, rings)
    assert len(host.messages) == 8
    assert not host.reads


# ---------------------------------------------------------------------------------------------- who waits for whom


def frame(channel, tag):
    """A send of one piece."""
    return make_descriptor(pieces=[(make_key(channel, 1), 0, 60)], tag=tag)


def test_who_takes_no_messages_holds_up_channels_whose_next_job_is_an_operation_and_no_others():
    rings = make_rings()
    host = make_host(rings)
    host.takes = False

    async def testbench(ctx):
        for ring in rings:
            await host.enable(ctx, ring)
        # the first operation has its place, all others find none
        await post(ctx, host, rings[0], [frame(0, 1), socket_operation(tag=2), frame(0, 3)])
        await host.settle(ctx)
        assert host.frames_of(0) == [1, 3]
        await post(ctx, host, rings[1], [frame(1, 1), frame(1, 2), socket_operation(PARAMETERS, tag=3), frame(1, 4)])
        await post(ctx, host, rings[2], [socket_operation(tag=1), frame(2, 2)])
        await host.settle(ctx)
        assert host.frames_of(1) == [1, 2]
        assert not host.frames_of(2)
        # more than a channel's queue has room for
        await post(ctx, host, rings[2], [socket_operation(tag=3 + n) for n in range(66)])
        await post(ctx, host, rings[0], [frame(0, 4 + n) for n in range(10)])
        await post(ctx, host, rings[3], [frame(3, n) for n in range(10)])
        await host.settle(ctx)
        assert host.frames_of(0) == [1, 3, *range(4, 14)]
        assert host.frames_of(3) == list(range(10))
        assert not host.messages
        assert host.bench.idle_cycles > 50, "who waits does not work meanwhile"
        host.takes = True
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run()
    compare(host, rings)
    assert host.frames_of(1) == [1, 2, 4]
    assert host.frames_of(2) == [2]
    assert {(op["channel"], op["job"]) for op in host.ops()[:3]} == {(0, 2), (1, 3), (2, 1)}


def test_a_queue_full_of_operations_with_parameters():
    """On the widest bus, where a slot has half a row: what is stored of each waits unharmed while nobody takes them."""
    rings = make_rings()[:1]
    host = make_host(rings, host_bytes=64)
    host.takes = False
    rng = random.Random(8)

    async def testbench(ctx):
        await host.enable(ctx, rings[0])
        await post(ctx, host, rings[0], [
            socket_operation(rng.randbytes(64 if n < 42 else 0), tag=n, length=rng.getrandbits(32)) for n in range(60)])
        await host.settle(ctx)
        assert not host.messages
        host.takes = True
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run()
    compare(host, rings)
    assert len(host.messages) == 60


@pytest.mark.parametrize("parameters", [b"", PARAMETERS], ids=["one unit", "two units"])
def test_rate_and_latency(parameters):
    """From an operation's job to its first beat, and cycles for each of many, on one channel."""
    rings = make_rings()[:1]
    host = make_host(rings, latency=(20, 20))
    jobs, beats = [], []

    async def watch(ctx):
        async for _, _, job, beat in ctx.tick().sample(host.front.job.valid, host.front.operation.valid):
            if job:
                jobs.append(host.bench.cycle)
            if beat:
                beats.append(host.bench.cycle)

    async def testbench(ctx):
        await host.enable(ctx, rings[0])
        await post(ctx, host, rings[0], [socket_operation(parameters, tag=n) for n in range(12)])
        await host.settle(ctx)

    host.bench.background(watch)
    host.bench.add(testbench)
    host.bench.run()
    compare(host, rings)
    assert beats[0] - jobs[0] <= LATENCY_CYCLES
    each = (host.messages[-1][0] - host.messages[2][0]) / 9  # the first ones come as they are fetched
    assert each <= (RATE_CYCLES_PARAMETERS if parameters else RATE_CYCLES)


@pytest.mark.parametrize("takes", [True, False], ids=["messages are taken", "no message is taken"])
def test_a_drain_waits_for_no_message_to_be_taken(takes):
    """Channel 1 stops while an operation of it has its place, and another waits, as channel 2's does, which runs. The
    one that has its place goes up; what waits on channel 1 is thrown away; channel 2's comes up when its turn comes.
    Channel 1's next life has operations of its own."""
    rings = make_rings()
    host = make_host(rings)
    host.takes = False

    async def testbench(ctx):
        for ring in rings:
            await host.enable(ctx, ring)
        await post(ctx, host, rings[1], [
            socket_operation(tag=1), socket_operation(PARAMETERS, tag=2), frame(1, 3), socket_operation(tag=4)])
        await post(ctx, host, rings[2], [socket_operation(tag=5)])
        await host.settle(ctx)
        assert not host.slices
        host.takes = takes
        host.stop(ctx, 1)
        ctx.set(host.front.drain_request, 1)
        await until(ctx, host.front.drain_done)
        assert [(s["job"]["tag"], s["discarded"]) for _, s in host.slices] == [(3, 1)]
        assert host.retired == 1
        ctx.set(host.front.drain_request, 0)
        rings[1].producer = 0
        await host.enable(ctx, rings[1])
        await post(ctx, host, rings[1], [socket_operation(PARAMETERS, tag=6), frame(1, 7)])
        host.takes = True
        await host.settle(ctx)

    host.bench.add(testbench)
    host.bench.run()
    assert host.ops_of(1) == [1, 6]
    assert host.ops_of(2) == [5]
    assert host.frames_of(1) == [3, 7]
    assert unpack_message(host.messages[-1][1])[2] in (b"", PARAMETERS)


# ---------------------------------------------------------------------------------------------- the scheduler alone


class Operation(Job):
    """A socket operation as the transmit front stores it."""

    def __init__(self, channel, parameters=b""):
        super().__init__(channel, [(0x1111 * channel, 0), (0x2222 * channel, 0)], parameters, status=SOCKET_OPERATION)

    @property
    def slots(self):
        return 1 + len(self.inline) // 32

    @property
    def is_good(self):
        return True


class Queues(MessageTaker, test_tx_scheduler.Host):
    """A scheduler, those who store jobs, and those who take what leaves."""

    def __init__(self, **named):
        super().__init__(NicConfig(name="test", mac_bytes=8, channels=4, vectors=4, keys=64, flows=FLOWS), **named)
        self.width = self.config.host_bytes
        self.bench.background(self._take_messages)

    @property
    def up(self):
        return self.dut.operation

    def run(self, testbench):
        """Run it."""
        self.bench.add(testbench)
        self.bench.run()

    def order(self):
        """(channel, whether it is an operation, tag) of all that left, by the cycle in which it had left."""
        left = [(cycle, s["job"]["channel"], False, s["job"]["tag"]) for cycle, s in self.slices]
        for cycle, message in self.messages:
            op = unpack_message(message)[1]
            left.append((cycle, op["channel"], True, op["job"]))
        return [what for _, *what in sorted(left)]


@pytest.mark.parametrize("message_stall", [0.0, 0.8])
def test_operations_of_all_channels_take_turns(message_stall):
    """Three channels with nothing but operations, and one that comes later: between two of a channel none that waits is
    left out, however fast messages are taken."""
    queues = Queues(message_stall=message_stall, seed=3)

    async def testbench(ctx):
        for _ in range(12):
            for channel in range(3):
                await queues.store(ctx, Operation(channel, PARAMETERS if channel else b""))
        while len(queues.messages) < 10:
            await ctx.tick()
        for _ in range(4):
            await queues.store(ctx, Operation(3))
        await queues.settle(ctx, quiet_cycles=60)

    queues.run(testbench)
    order = [channel for channel, _, _ in queues.order()]
    assert len(order) == 40
    waiting = 3
    for channel in range(4):
        at = [place for place, c in enumerate(order) if c == channel][:10]
        # the first may find its place free, so that all others come to wait behind it
        assert max(b - a for a, b in itertools.pairwise(at[1:])) <= 1 + waiting, order


def test_frames_go_on_at_their_rate_while_operations_of_others_come_up():
    """A channel with sends of 60 bytes, and three whose operations are taken as fast as they come."""
    queues = Queues()

    async def testbench(ctx):
        for n in range(30):
            for channel in range(4):
                await queues.store(ctx, Operation(channel) if channel else Job(0, [(64 * n, 60)]))
        await queues.settle(ctx)

    queues.run(testbench)
    times = [cycle for cycle, _ in queues.slices]
    assert len(times) == 30
    assert len(queues.messages) == 90
    assert (times[-1] - times[0]) / (len(times) - 1) <= FRAME_CYCLES


@pytest.mark.parametrize("delay", range(0, 24, 3))
def test_a_channel_that_stops_when_its_turn_has_come(delay):
    """Whatever it does then, the others' operations come up, and all slots are freed."""
    queues = Queues()
    queues.takes = False

    async def testbench(ctx):
        for _ in range(2):
            for channel in range(3):
                await queues.store(ctx, Operation(channel))
        await queues.settle(ctx)
        assert not ctx.get(queues.dut.clearing)
        queues.takes = True
        await idle(ctx, delay)
        ctx.set(queues.dut.running, 0b1101)
        await idle(ctx, 2)
        cleared = ctx.get(queues.dut.clearing)
        for _ in range(40):
            await ctx.tick()
            assert cleared or len([f for f in queues.freed if f["channel"] == 1]) == 2
            cleared = cleared and ctx.get(queues.dut.clearing)
        assert cleared == 0
        await queues.settle(ctx)

    queues.run(testbench)
    came = [channel for channel, _, _ in queues.order()]
    assert (came.count(0), came.count(2)) == (2, 2)
    assert came.count(1) <= 2
    assert not queues.slices
    assert sorted(f["channel"] for f in queues.freed) == [0, 0, 1, 1, 2, 2]


def test_weights_are_kept_round_operations():
    """Two channels with weights 1 to 3 send frames, while a third's operations wait, and then come up."""
    queues = Queues(frame_cycles=8)
    queues.takes = False

    async def testbench(ctx):
        for channel, weight in enumerate((2000, 6000, 2000, 2000)):
            await queues.write(ctx, "TX_WEIGHT", channel, weight)
        for job in (Operation(3), Operation(3, PARAMETERS), Job(3, [(0, 60)])):
            await queues.store(ctx, job)
        for channel in (0, 1):
            for n in range(40):
                await queues.store(ctx, Job(channel, [(4096 * n, 1000)]))
        await queues.settle(ctx)
        assert not queues.messages
        queues.takes = True
        await queues.settle(ctx)

    queues.run(testbench)
    order = [channel for channel, _, _ in queues.order()]
    # while both have frames, but for those that were decided before channel 1 had any
    both = order[order.index(1) + 8:max(place for place, c in enumerate(order) if c == 1)]
    assert both.count(1) / both.count(0) == pytest.approx(3, rel=0.25)
    assert order[-3:] == [3, 3, 3]


def test_a_channel_that_its_rate_holds_back_keeps_its_order():
    """An operation behind a frame waits until the rate lets the channel go on; it costs the rate nothing."""
    queues = Queues()

    async def testbench(ctx):
        await queues.write(ctx, "TX_BURST", 1, 100)
        await queues.write(ctx, "TX_BYTE_TIME", 1, 4 << 16)
        for n in range(8):
            await queues.store(ctx, Job(1, [(0, 60)]) if n % 2 else Operation(1))
        for now in range(1500):
            ctx.set(queues.dut.now, now)
            await ctx.tick()
        await queues.settle(ctx)

    queues.run(testbench)
    assert [tag for _, _, tag in queues.order()] == list(range(8))
    times = [cycle for cycle, _ in queues.slices]
    assert times[-1] - times[1] >= 2 * 60 * 4 - 50, "the rate is not kept"


def test_turns_against_a_queue():
    """Channels ask at random; whoever is refused waits; each that waits has a turn before any other has two."""
    seed = 5
    rng = random.Random(seed)
    turns = OperationTurns(channels=8)
    bench = Bench(turns, seed=seed)
    served = []

    async def testbench(ctx):
        taken, leaves_in, since = False, 0, {}
        for _ in range(4000):
            for strobe in ("held_back", "decided", "taken", "left"):
                ctx.set(getattr(turns, strobe), 0)
            waiting, turn = ctx.get(turns.waiting), ctx.get(turns.turn)
            assert turn.bit_count() <= 1
            assert not waiting & turn
            if taken and leaves_in == 0:
                ctx.set(turns.left, 1)
                taken = False
            leaves_in -= taken
            free = [c for c in range(8) if not waiting >> c & 1]
            if free and rng.random() < 0.5:
                channel = turn.bit_length() - 1 if turn and rng.random() < 0.3 else rng.choice(free)
                ctx.set(turns.asks, 1 << channel)
                if ctx.get(turns.refused):
                    assert taken or ctx.get(turns.left) or turn not in (0, 1 << channel) or (not turn and waiting)
                    ctx.set(turns.held_back, 1 << channel)
                    since[channel] = len(served)
                else:
                    assert not taken
                    ctx.set(turns.decided, 1 << channel)
                    ctx.set(turns.taken, 1)
                    taken, leaves_in = True, rng.randrange(12)
                    others = served[since.pop(channel, len(served)):]
                    assert len(others) == len(set(others)), f"seed {seed}: {channel} waited for {others}"
                    served.append(channel)
            await ctx.tick()

    bench.add(testbench)
    bench.run()
    assert len(served) > 200
    assert set(served) == set(range(8))


def test_the_status_of_an_operation_is_no_status():
    assert not any(int(status) & SOCKET_OPERATION for status in Status)
