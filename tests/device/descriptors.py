"""Descriptors at the limits of what the contract takes, and more of them than a device has room for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from host_driver.rings import Descriptor, Piece
from nic_model.contract import (
    MAX_FRAME_BYTES,
    MAX_INLINE_BYTES,
    MAX_SEGMENTED_BYTES,
    MIN_MSS,
    VLAN_INLINE_BYTES,
    VLAN_MAX_OFFSET,
    Opcode,
    SendFlag,
    Status,
)
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    TCP_HEADER_BYTES,
    VLAN_TAG_BYTES,
)
from nic_model.pause import pause_frame
from tests.device.faults import AREA_BYTES, HIT, OWN_MAC, User, start
from tests.device.programs import STILL_PS
from tests.device.rig import US, Rig

NONE = SendFlag(0)
PEER_MAC = bytes.fromhex("0200000000bb")
TX_LOG2 = 9

# ---------------------------------------------------------------------------------------------- limits of offsets


class Send(NamedTuple):
    """A send of so many bytes, inline and in pieces."""

    inline_bytes: int
    payload_bytes: int
    flags: SendFlag = NONE
    mss: int = 0
    l3_offset: int = 0
    l4_offset: int = 0
    checksum_offset: int = 0


class Limit(NamedTuple):
    """Something that the contract limits: a send at the limit, and one that is beyond it by the least possible."""

    what: str
    good: Send
    beyond: Send


def limits(rng: random.Random) -> dict[Opcode, list[Limit]]:
    """Every limit of sizes and offsets once, in descriptors that are otherwise anyhow."""
    return {Opcode.SEND_FRAME: list(_of_frames(rng)), Opcode.SEND_SEGMENTED: list(_of_segmented(rng))}


def _even(rng: random.Random, first: int, last: int) -> int:
    """An even number, `last` at most; `first` is even."""
    return rng.randrange(first, last + 1, 2)


def _of_frames(rng: random.Random) -> Iterator[Limit]:
    def frame(total: int, flags: SendFlag = NONE, inline: int | None = None, **offsets: int) -> Send:
        if inline is None:
            inline = rng.randrange(min(total, MAX_INLINE_BYTES) + 1)
        return Send(inline, total - inline, flags, **offsets)

    yield Limit("least frame", frame(ETHERNET_HEADER_BYTES), frame(ETHERNET_HEADER_BYTES - 1))
    yield Limit("longest frame", frame(MAX_FRAME_BYTES), frame(MAX_FRAME_BYTES + 1))

    flags = SendFlag.L4_CHECKSUM
    l4 = _even(rng, 14, 120)
    field = _even(rng, l4, 254)
    offsets = {"l4_offset": l4, "checksum_offset": field}
    yield Limit("checksum's end", frame(field + 2, flags, **offsets), frame(field + 1, flags, **offsets))
    total = rng.randrange(256, 600)
    yield Limit("checksum's start", frame(total, flags, l4_offset=l4, checksum_offset=l4),
                frame(total, flags, l4_offset=l4, checksum_offset=l4 - 2))
    yield Limit("even checksum", frame(total, flags, **offsets), frame(total, flags, l4_offset=l4,
                                                                       checksum_offset=field + 1))
    yield Limit("even L4 header", frame(total, flags, **offsets), frame(total, flags, l4_offset=l4 - 1,
                                                                        checksum_offset=field))

    flags = SendFlag.IPV4_CHECKSUM
    l3 = _even(rng, 14, 100)
    l4 = _even(rng, l3 + IPV4_HEADER_BYTES, 254)
    yield Limit("L4 header's start", frame(l4, flags, l3_offset=l3, l4_offset=l4),
                frame(l4 - 1, flags, l3_offset=l3, l4_offset=l4))
    yield Limit("IPv4 header", frame(total, flags, l3_offset=l3, l4_offset=l3 + IPV4_HEADER_BYTES),
                frame(total, flags, l3_offset=l3, l4_offset=l3 + IPV4_HEADER_BYTES - 2))
    yield Limit("even IPv4 header", frame(total, flags, l3_offset=l3, l4_offset=l4),
                frame(total, flags, l3_offset=l3 - 1, l4_offset=l4))

    flags = SendFlag.VLAN_INSERT
    least, most = VLAN_INLINE_BYTES.start, VLAN_INLINE_BYTES.stop - 1
    yield Limit("addresses of a tagged frame", frame(total, flags, least), frame(total, flags, least - 1))
    yield Limit("inline bytes of a tagged frame", frame(total, flags, most), frame(total, flags, most + 1))
    longest = MAX_FRAME_BYTES - VLAN_TAG_BYTES
    yield Limit("longest tagged frame", frame(longest, flags, most), frame(longest + 1, flags, most))
    yield Limit("checksum of a tagged frame", *(
        frame(total, flags | SendFlag.L4_CHECKSUM, least, l4_offset=14, checksum_offset=offset)
        for offset in (VLAN_MAX_OFFSET, VLAN_MAX_OFFSET + 2)))
    yield Limit("IPv4 header of a tagged frame", *(
        frame(total, flags | SendFlag.IPV4_CHECKSUM, least, l3_offset=14, l4_offset=offset)
        for offset in (VLAN_MAX_OFFSET, VLAN_MAX_OFFSET + 2)))


def _of_segmented(rng: random.Random) -> Iterator[Limit]:
    l3 = _even(rng, 14, 30)
    l4 = _even(rng, l3 + IPV6_HEADER_BYTES, 90)
    inline = rng.randrange(l4 + TCP_HEADER_BYTES + 1, MAX_INLINE_BYTES + 1)
    payload, mss = rng.randrange(1, 3000), rng.randrange(200, 1500)
    good = Send(inline, payload, rng.choice((NONE, SendFlag.IPV6)), mss, l3, l4, l4 + 16)

    least = good._replace(inline_bytes=l4 + TCP_HEADER_BYTES)
    yield Limit("TCP header", least, least._replace(inline_bytes=l4 + TCP_HEADER_BYTES - 1))
    field = _even(rng, l4 + TCP_HEADER_BYTES, MAX_INLINE_BYTES - 2)
    last = good._replace(inline_bytes=field + 2, checksum_offset=field)
    yield Limit("checksum's end", last, last._replace(inline_bytes=field + 1))
    yield Limit("checksum's start", good._replace(checksum_offset=l4), good._replace(checksum_offset=l4 - 2))
    yield Limit("even checksum", good, good._replace(checksum_offset=l4 + 15))
    yield Limit("even TCP header", good, good._replace(l4_offset=l4 + 1))
    yield Limit("even IP header", good, good._replace(l3_offset=l3 - 1))
    for flags, header_bytes in ((NONE, IPV4_HEADER_BYTES), (SendFlag.IPV6, IPV6_HEADER_BYTES)):
        fits = good._replace(flags=flags, l3_offset=l4 - header_bytes)
        yield Limit(f"IP header of {header_bytes} bytes", fits, fits._replace(l3_offset=l4 - header_bytes + 2))
    yield Limit("least segment", good._replace(mss=MIN_MSS), good._replace(mss=MIN_MSS - 1))
    longest = MAX_FRAME_BYTES - inline
    yield Limit("longest segment", good._replace(mss=longest), good._replace(mss=longest + 1))
    yield Limit("some payload", good._replace(payload_bytes=1), good._replace(payload_bytes=0))
    whole = good._replace(payload_bytes=MAX_SEGMENTED_BYTES, mss=longest)
    yield Limit("most payload", whole, whole._replace(payload_bytes=MAX_SEGMENTED_BYTES + 1))


def _descriptor(rng: random.Random, user: User, opcode: Opcode, send: Send) -> Descriptor:
    """The send, its payload in pieces from anywhere."""
    most = max(send.payload_bytes // 3, 1) if send.payload_bytes <= AREA_BYTES else AREA_BYTES
    pieces, left = [], send.payload_bytes
    while left:
        length = min(left, rng.randrange(most // 2 + 1, most + 1))
        pieces.append(Piece(user.key.value, rng.randrange(AREA_BYTES - length + 1), length))
        left -= length
    return Descriptor(opcode, rng.randbytes(send.inline_bytes), pieces, send.flags, send.mss, send.l3_offset,
                      send.l4_offset, send.checksum_offset, rng.randrange(1 << 16)
                      if send.flags & SendFlag.VLAN_INSERT else 0)


async def at_limits(rig: Rig, arguments: dict[str, int]) -> list[list[Any]]:
    """Scenario: of each of `limits` a send that is at it and one beyond, in any order. Returns of each its name,
    whether it is at the limit, its status, and a digest of its frames."""
    rng = random.Random(f"at limits {arguments['seed']}")
    nic = await start(rig)
    user = await User.open(rig, nic, HIT, tx_log2=TX_LOG2)
    sends = [(opcode, f"{opcode.name}: {limit.what}", send is limit.good, send)
             for opcode, found in limits(rng).items() for limit in found for send in (limit.good, limit.beyond)]
    rng.shuffle(sends)
    told: list[list[Any]] = []
    for opcode, what, is_good, send in sends:
        before = len(rig.mac.sent)
        user.channel.submit(_descriptor(rng, user, opcode, send), len(told))
        user.bell()
        await user.until_finished(len(told) + 1)
        await rig.port.sleep(STILL_PS)  # until the MAC has told of all frames
        frames = [frame for _, frame in rig.mac.sent[before:]]
        status = user.finished[-1].completion.status
        assert bool(frames) is (status is Status.OK), f"{what}: {status.name} and {len(frames)} frames"
        told.append([what, is_good, int(status), hashlib.sha256(b"".join(frames)).hexdigest()])
    await user.close()
    return told


# ---------------------------------------------------------------------------------------------- a backlog

BACKLOG, LEAST_INLINE_BYTES = 60, 33
"""Sends of each channel, and their inline bytes at least, so that each has three slots or more: together more than
twice as many as the device takes in of a channel."""

SETTLED_PS, STANDING_PS = 100 * US, 200 * US
"""Within a pause, which is 3 ms long."""


async def backlog(rig: Rig, arguments: dict[str, int]) -> dict[str, Any]:
    """Scenario: the wire stands still, and in every channel's ring stand more sends than the device takes in, of which
    some are cut off where its room ends; then all leave.

    Returns `told`: for each channel its completions and frames; and of the RTL `cycles`, that were simulated while
    nothing could move for STANDING_PS, and `bursts`, `left_ps` and `end_ps`: everything with its time.
    """
    rng = random.Random(f"backlog {arguments['seed']}")
    nic = await start(rig)
    nic.set_pause(rx=True, tx=False)
    users = [await User.open(rig, nic, number, tx_log2=TX_LOG2) for number in range(rig.config.channels)]
    rig.mac.arrive(pause_frame(PEER_MAC, 0xFFFF, OWN_MAC), False)
    await rig.port.sleep(2 * US)
    for number in range(BACKLOG):
        for user in users:
            frame = user.frame(rng.randrange(LEAST_INLINE_BYTES, MAX_INLINE_BYTES + 1), rng.randrange(1000))
            user.channel.submit(Descriptor(Opcode.SEND_FRAME, frame), number)
            if rng.random() < 0.2 or number == BACKLOG - 1:
                user.bell()
    await rig.port.sleep(SETTLED_PS)
    before = _cycles(rig)
    await rig.port.sleep(STANDING_PS)
    cycles = _cycles(rig) - before
    assert rig.is_model or not rig.mac.sent, "a frame left on a wire that stands still"
    rig.mac.arrive(pause_frame(PEER_MAC, 0, OWN_MAC), False)
    for user in users:
        await user.until_finished(BACKLOG)
    await rig.port.sleep(STILL_PS)
    told = []
    for user in users:
        completions = [done.completion for done in user.finished]
        told.append([[(each.tag, each.status, each.ring_index) for each in completions],
                     [frame.hex() for frame in user.sent()]])
        await user.close()
    return {"told": told, "cycles": cycles, "bursts": rig.bus.events if rig.bus else [],
            "left_ps": [time for time, _ in rig.mac.sent], "end_ps": rig.kernel.now}


def _cycles(rig: Rig) -> int:
    """Cycles that were simulated; of the RTL only."""
    return 0 if rig.is_model else rig.port.cycles_simulated  # type: ignore[attr-defined, no-any-return]
