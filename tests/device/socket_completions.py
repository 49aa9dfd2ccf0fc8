"""Completions that a decider orders, beside a channel's own sends and receives, and while a channel is closed. The same
over any engine: what the host reads may not depend on it.
"""

from __future__ import annotations

import random
from typing import Any

from host_driver.nic import Nic
from host_driver.runtime import Event
from nic_model import ring
from nic_model.contract import COMPLETION, COMPLETION_BYTES, CompletionKind, RxFilter, register
from nic_model.contract.control import NO_FLOW, ControlEnable, ControlType, DoneStatus, OrderFlag
from nic_model.contract.sockets import SOCKET_COMPLETION
from tests.device.faults import NOBODY, OWN_MAC, User
from tests.device.offloaded import (
    FIRST,
    FLOW,
    OWN_IP,
    OWN_PORT,
    OWNER,
    PEER,
    PEER_IP,
    PEER_PORT,
    STILL_PS,
    Decider,
    _address,
    _segment,
)
from tests.device.rig import US, Rig

MIXED = 0
"""The channel that has sends and receives too; OWNER's completions are the decider's alone."""
PAYLOAD_BYTES = 500
PHASE_BIT = 1 << SOCKET_COMPLETION.fields["phase"].offset % 8


class Reader:
    """Takes what stands in a channel's completion ring, as interrupts tell of it."""

    def __init__(self, rig: Rig, user: User, placed: dict[int, tuple[int, bytes]]) -> None:
        self.entries: list[bytes] = []
        self._rig, self._user, self._placed = rig, user, placed

    def take(self) -> None:
        """Keep each entry, without its phase. The bytes that a job tells of are there."""
        completed = self._user.channel.completed
        while completed.has_completion:
            at = completed.address + ring.slot(completed.consumer, completed.log2) * COMPLETION_BYTES
            entry = bytes(self._rig.memory.view(at, COMPLETION_BYTES))
            assert bool(entry[-1] & PHASE_BIT) == ring.phase(len(self.entries), completed.log2)
            self.entries.append(entry[:-1])
            completed.take_socket() if completed.is_socket else completed.take()
            if entry[0] == CompletionKind.SOCKET:
                offset, wanted = self._placed.get(SOCKET_COMPLETION.unpack(entry)["tag"], (0, b""))
                assert bytes(self._rig.memory.view(self._user.area + offset, len(wanted))) == wanted, "too early"

    async def read(self) -> None:
        """For ever."""
        port, channel = self._rig.port, self._user.channel
        while True:
            self.take()
            channel.arm(NOBODY)
            await port.read32(register("ID"))  # behind the arming, so that the line has fallen
            await port.interrupt(channel.vector)

    def of(self, *kinds: CompletionKind) -> list[dict[str, int]]:
        """Fields of the entries of these kinds, but for what depends on time."""
        found = []
        for entry in self.entries:
            if entry[0] in kinds:
                layout = SOCKET_COMPLETION if entry[0] == CompletionKind.SOCKET else COMPLETION
                found.append({name: value for name, value in layout.unpack(entry + b"\0").items()
                              if name != "timestamp"})
        return found


async def start(rig: Rig) -> tuple[Nic, dict[int, User], Decider]:
    """A device with both channels, and a flow of OWNER's."""
    nic = await Nic.probe(rig.port)
    nic.set_mac_address(OWN_MAC)
    nic.set_filter(RxFilter.BROADCAST)
    users = {number: await User.open(rig, nic, number) for number in (MIXED, OWNER)}
    for user in users.values():
        nic.mask(user.channel.vector, False)
    rig.port.write32(register("CONTROL_ENABLE"), ControlEnable.FLOWS)
    nic.enable_receive(True)
    decider = Decider(rig)
    added = await decider.answer(decider.order(
        ControlType.FLOW_ADD, **FLOW, remote_address=_address(PEER_IP), local_address=_address(OWN_IP),
        remote_port=PEER_PORT, local_port=OWN_PORT, channel=OWNER, hop_limit=64,
        next_hop=int.from_bytes(bytes.fromhex(PEER.replace(":", "")), "little")))
    assert added["status"] == DoneStatus.OK, added
    return nic, users, decider


async def complete(rig: Rig, arguments: dict[str, Any]) -> Any:
    """Scenario: segments are placed, each with a completion behind it, on either channel; others wait for nothing."""
    rng = random.Random(arguments["seed"])
    nic, users, decider = await start(rig)
    placed: dict[int, tuple[int, bytes]] = {}
    readers = {number: Reader(rig, user, placed if number == OWNER else {}) for number, user in users.items()}
    tasks = [rig.kernel.spawn(reader.read(), f"reader of {number}") for number, reader in readers.items()]
    stream = rng.randbytes(arguments["segments"] * PAYLOAD_BYTES)
    others = rig.kernel.spawn(_others(rig, users[MIXED], random.Random(rng.random()), arguments["others"]), "others")
    peer = rig.kernel.spawn(_peer(rig, stream, random.Random(rng.random())), "peer")

    def order(job: int, channel: int, **fields: int) -> int:
        return decider.order(ControlType.COMPLETE, channel=channel, job=job, status=0,
                             length=rng.getrandbits(32), result=rng.getrandbits(128), socket=rng.getrandbits(16),
                             remote_port=rng.getrandbits(16), local_port=rng.getrandbits(16), **fields)

    segments = job = 0
    tags = []
    async for fields in decider.segments():
        segments += 1
        offset = fields["sequence"] - FIRST & 0xFFFF_FFFF
        decider.order(ControlType.PLACE, **FLOW, handle=fields["handle"], key=users[OWNER].key.value,
                      length=fields["length"], offset=offset, flags=OrderFlag.LAST)
        for _ in range(rng.choice((1, 1, 2, 4))):
            job += 1
            placed[job] = offset, stream[offset : offset + fields["length"]]
            tags.append(order(job, rng.choice((OWNER, OWNER, MIXED)), **FLOW, flags=rng.choice((0, OrderFlag.DONE))))
        job += 1
        tags.append(order(job, rng.choice((MIXED, 2, 77)), flow=NO_FLOW))
        if segments == arguments["segments"]:
            break
    last = order(0xFFFF, OWNER, flow=NO_FLOW, flags=OrderFlag.DONE)
    assert (await decider.answer(last))["status"] == DoneStatus.OK
    await others
    await peer
    await rig.kernel.sleep(STILL_PS)
    for task in tasks:
        task.cancel()
    counters = {name: value for name, value in (await nic.read_counters()).items()
                if name.startswith("control_") or name == "completions"}
    for user in users.values():
        await user.close()
    return {
        "done": [(number, decider.done[tag]["status"]) for number, tag in enumerate(tags) if tag in decider.done],
        "sockets": [readers[number].of(CompletionKind.SOCKET) for number in (MIXED, OWNER)],
        "sends": readers[MIXED].of(CompletionKind.SEND),
        "receives": readers[MIXED].of(CompletionKind.RECEIVE, CompletionKind.RECEIVE_MORE), "counters": counters}


async def _peer(rig: Rig, stream: bytes, rng: random.Random) -> None:
    for at in range(0, len(stream), PAYLOAD_BYTES):
        rig.mac.arrive(_segment(at, stream[at : at + PAYLOAD_BYTES]), False)
        await rig.kernel.sleep(rng.choice((0, 1, 5)) * US)


async def _others(rig: Rig, user: User, rng: random.Random, count: int) -> None:
    """Sends and receives of a channel."""
    user.post(count, length=1024)
    user.bell()
    await rig.kernel.sleep(20 * US)  # the device has fetched them
    for _ in range(count):
        rig.mac.arrive(b"\xff" * 6 + bytes(6) + b"\x88\xb5" + rng.randbytes(rng.randrange(46, 1000)), False)
        user.send_frame(rng.randrange(60, 500))
        user.bell()
        await rig.kernel.sleep(rng.choice((1, 3, 10)) * US)


async def close(rig: Rig, arguments: dict[str, Any]) -> Any:
    """Scenario: a channel is reset while completions come for it. As many entries stand in its ring as orders were told
    to be OK; and once it is IDLE, nothing is written any more, and whoever orders is told BAD."""
    rng = random.Random(arguments["seed"])
    nic, users, decider = await start(rig)
    told = []
    for _ in range(arguments["trials"]):
        user = users[OWNER]
        completed, came = user.channel.completed, Event("orders are given")
        tags: list[int] = []

        async def give(tags: list[int] = tags, came: Event = came) -> None:
            for number in range(24):
                tags.append(decider.order(ControlType.COMPLETE, flow=NO_FLOW, channel=OWNER, job=number,
                                          flags=OrderFlag.DONE))
                await rig.kernel.sleep(rng.choice((0, 0, 1)) * US // 8)
            came.set()

        rig.kernel.spawn(give(), "giver")
        await rig.kernel.sleep(rng.randrange(2 * US))
        address, size = completed.address, COMPLETION_BYTES << completed.log2
        await nic.close_channel(user.channel)
        ring_then = bytes(rig.memory.view(address, size))
        await came.wait()
        answers = [(await decider.answer(tag))["status"] for tag in tags]
        await rig.kernel.sleep(STILL_PS)
        assert bytes(rig.memory.view(address, size)) == ring_then, "written after the reset"
        entries = [ring_then[at : at + COMPLETION_BYTES] for at in range(0, size, COMPLETION_BYTES)]
        written = [SOCKET_COMPLETION.unpack(entry)["tag"] for entry in entries if entry[-1] & PHASE_BIT]
        assert written == list(range(len(written)))
        assert answers == [DoneStatus.OK] * len(written) + [DoneStatus.BAD] * (len(answers) - len(written))
        told.append(len(written))
        users[OWNER] = await User.open(rig, nic, OWNER)
    for user in users.values():
        await user.close()
    assert 0 < sum(told) < 24 * arguments["trials"], told
    return "as it should be"
