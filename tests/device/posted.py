"""Socket operations among sends on two channels, for a decider that takes messages at a random pace. The same over any
engine: what each channel's operations become, in order, completions, frames and counters may not depend on it.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

from host_driver.account import NullAccount
from host_driver.channel import Channel
from host_driver.nic import Nic
from host_driver.rings import Descriptor, Piece
from host_driver.runtime import Event
from host_driver.socket_channel import SocketDescriptor
from nic_model.contract import KeyRight, Opcode, OperationMask, channel_register
from nic_model.contract.control import NO_FLOW, ControlType, pack_message, unpack_message
from nic_model.contract.sockets import SocketFlag
from tests.device.rig import US, Rig

CHANNELS = (0, 1)
OPERATIONS = OperationMask.SEND_FRAME | OperationMask.SOCKET
STILL_PS = 300 * US
TX_LOG2 = 6
FRAME_TAGS = 0x8000
"""Tags of sends are below, jobs of operations here and above."""


class Decider:
    """Who takes messages: one, then a pause, while `takes`."""

    def __init__(self, rig: Rig, seed: int, slowest_ps: int) -> None:
        self.ops: dict[int, list[str]] = {}
        self.takes = True
        self._rng, self._slowest_ps, self._kernel = random.Random(seed), slowest_ps, rig.kernel
        self._streams: Any = rig.port.control  # type: ignore[attr-defined]
        self._came = Event("a message of the control port")
        self._streams.on_up = self._came.set
        rig.kernel.spawn(self._serve(), "decider").add_callback(lambda _task: None)

    async def _serve(self) -> None:
        while True:
            message = self._streams.take() if self.takes else None
            if message is None:
                self._came.clear()
                await self._came.wait()
                continue
            kind, fields, further = unpack_message(message)
            assert kind is ControlType.OP, kind
            self.ops.setdefault(fields["channel"], []).append(_text(fields, further))
            await self._kernel.sleep(self._rng.randrange(self._slowest_ps))

    def go_on(self) -> None:
        """Take messages again."""
        self.takes = True
        self._came.set()


async def serve(rig: Rig, arguments: dict[str, Any]) -> Any:
    """Both channels, to their rings' ends; then one is closed while its operations wait, and opened again."""
    rng = random.Random(arguments["seed"])
    nic = await Nic.probe(rig.port)
    area = rig.memory.allocate(1 << 16)
    rig.memory.write(area, rng.randbytes(1 << 16))
    decider = Decider(rig, rng.randrange(1 << 30), arguments["slowest_us"] * US)
    tasks, channels = [], []
    for number in CHANNELS:
        key = nic.register_memory(area, 1 << 16, KeyRight.READ, number, NullAccount()).value
        channel = await nic.open_channel(number, operations=OPERATIONS, vector=0, tx_log2=TX_LOG2)
        channels.append(channel)
        tasks.append(rig.kernel.spawn(
            _post(rig, channel, random.Random(rng.random()), key, arguments["each"]), f"channel {number}"))
    completions = [await task for task in tasks]
    while sum(map(len, decider.ops.values())) < sum(count for _, count in completions):
        await rig.kernel.sleep(STILL_PS)
    await rig.kernel.sleep(STILL_PS)
    counters = {name: value for name, value in (await nic.read_counters()).items()
                if name.startswith(("control_", "tx_")) or name == "completions"}
    seen = {str(number): ops[:] for number, ops in decider.ops.items()}

    # Who takes no messages keeps no channel from being closed, and what was posted to it stays in its old life.
    decider.takes = False
    decider.ops.clear()
    account = NullAccount()
    for channel in channels:
        for job in range(20):
            channel.submissions.put(_operation(job), FRAME_TAGS + job)
        channel.ring_doorbell(account)
    await rig.kernel.sleep(STILL_PS)
    await nic.close_channel(channels[0])
    channel = await nic.open_channel(CHANNELS[0], operations=OPERATIONS, vector=0, tx_log2=TX_LOG2)
    channel.submissions.put(_operation(77), 0xFFFF)
    channel.ring_doorbell(account)
    decider.go_on()
    while not any("('job', 65535)" in op for op in decider.ops.get(CHANNELS[0], [])) or len(decider.ops[1]) < 20:
        await rig.kernel.sleep(STILL_PS)
    closed, others = decider.ops[CHANNELS[0]], decider.ops[CHANNELS[1]]
    jobs = [_operation_text(_operation(job), FRAME_TAGS + job) for job in range(20)]
    assert others == jobs
    assert closed[:-1] == jobs[:len(closed) - 1]
    return {
        "ops": seen, "completions": [list(map(list, done)) for done, _ in completions], "counters": counters,
        "frames": sorted(hashlib.sha256(frame).hexdigest() for _, frame in rig.mac.sent), "last": closed[-1],
    }


def _operation(job: int) -> SocketDescriptor:
    return SocketDescriptor(Opcode.SOCKET_RECEIVE, socket=job * 7, piece=Piece(job, job << 20, 5000 + job),
                            flags=SocketFlag.WAIT_ALL, parameters=bytes(range(64)) if job % 3 == 0 else b"")


def _operation_text(descriptor: SocketDescriptor, job: int) -> str:
    piece = descriptor.piece
    assert piece is not None
    kind, fields, further = unpack_message(pack_message(
        ControlType.OP, descriptor.parameters, flow=NO_FLOW, operation=descriptor.opcode, socket=descriptor.socket,
        job=job, socket_flags=descriptor.flags, offset=piece.offset, key=piece.key, length=piece.length_bytes))
    assert kind is ControlType.OP
    return _text(fields, further)


def _text(fields: dict[str, int], further: bytes) -> str:
    """All that an OP says, but for its channel, and for what depends on when it was made."""
    told = {name: value for name, value in fields.items() if name not in ("time", "emit_credits", "channel")}
    return f"{sorted(told.items())} {further.hex()}"


async def _post(rig: Rig, channel: Channel, rng: random.Random, key: int,
                each: int) -> tuple[list[tuple[Any, ...]], int]:
    """Sends and operations in turn, as the ring has room. Returns all completions, and how many operations are good."""
    account, done, operations, sends = NullAccount(), [], 0, 0

    def reclaim() -> None:
        completed = channel.completed
        while completed.has_completion:
            rig.port.rmb()
            completion = completed.take()
            done.append((completion.status.name, completion.tag, completion.length, completion.ring_index,
                         completion.segments))
            if channel.submissions.holds(completion.ring_index):
                channel.submissions.retire(completion.ring_index)

    for number in range(each):
        refused = rng.random() < 0.1
        if rng.random() < 0.5:
            sends += 1
            descriptor: Any = Descriptor(
                Opcode.SEND_FRAME, inline=rng.randbytes(rng.choice((0, 14, 60))),
                pieces=[Piece(0 if refused else key, rng.randrange(1 << 15), rng.randrange(60, 700))
                        for _ in range(rng.choice((1, 1, 2)))])
            tag = number
        else:
            piece = Piece(rng.getrandbits(24), rng.getrandbits(40), rng.getrandbits(32)) if rng.random() < 0.7 else None
            parameters = rng.randbytes(64) if rng.random() < 0.3 else b""
            if refused:
                parameters = parameters[:32]
            good = len(parameters) in (0, 64)
            operations += good
            sends += not good
            descriptor = SocketDescriptor(Opcode(rng.randrange(Opcode.SOCKET_CONNECT, Opcode.SOCKET_OPTION + 1)),
                                          rng.getrandbits(16), piece, SocketFlag(rng.randrange(128)),
                                          rng.getrandbits(32), parameters)
            tag = FRAME_TAGS + number
        while descriptor.slots > channel.submissions.free:
            channel.ring_doorbell(account)
            await rig.kernel.sleep(20 * US)
            reclaim()
            index = await rig.port.read32(channel_register("TX_INDEX", channel.number))
            if channel.submissions.holds(index):
                channel.submissions.retire(index)
        channel.submissions.put(descriptor, tag, completes=True)
        if rng.random() < 0.3:
            channel.ring_doorbell(account)
            await rig.kernel.sleep(rng.choice((0, 1, 5, 20)) * US)
    channel.ring_doorbell(account)
    while len(done) < sends:
        await rig.kernel.sleep(20 * US)
        reclaim()
    return done, operations
