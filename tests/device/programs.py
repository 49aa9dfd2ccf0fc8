"""Random programs for a device: what a driver might ask of it, good and bad, over several channels and the wire.

`make_program(seed)` decides everything that does not depend on time; `run_program` does it over any port and tells what
came of it, channel by channel, in a form that two devices can be compared by. What two devices may do at different
times cannot make a difference: received frames meet buffers only when all is still.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop  # noqa: E402
from scapy.layers.l2 import ARP, Dot1Q, Ether  # noqa: E402

from host_driver.account import NullAccount  # noqa: E402
from host_driver.channel import Channel, push_blocks  # noqa: E402
from host_driver.flow_rules import FlowRule, FlowRuleError  # noqa: E402
from host_driver.nic import MemoryKey, Nic  # noqa: E402
from host_driver.rings import Piece  # noqa: E402
from nic_model import ring  # noqa: E402
from nic_model.contract import (  # noqa: E402
    COMPLETION,
    COMPLETION_BYTES,
    MAX_FRAME_BYTES,
    MAX_INLINE_BYTES,
    MAX_PIECES,
    MAX_SEGMENTED_BYTES,
    MICROSOFT_RSS_KEY,
    MIN_MSS,
    PIECE,
    RSS_KEY_BYTES,
    SUBMISSION_HEAD,
    SUBMISSION_SLOT_BYTES,
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
    slots_needed,
)
from nic_model.contract.config import BURST_BYTES  # noqa: E402
from nic_model.contract.protocols import MAC_CONTROL_ADDRESS  # noqa: E402
from nic_model.pause import pause_frame  # noqa: E402
from tests.device.rig import US, Rig  # noqa: E402
from tests.device.stray import stray_addresses  # noqa: E402
from tests.gro import Streams  # noqa: E402

NOBODY = NullAccount()
OWN_MAC = bytes.fromhex("02000000aa01")
OWN_TEXT, PEER_TEXT = "02:00:00:00:aa:01", "02:00:00:00:bb:02"

ALL_OPERATIONS = OperationMask.SEND_FRAME | OperationMask.SEND_SEGMENTED | OperationMask.RECEIVE_RAW

SEND_AREA_BYTES = 1 << 19
RECEIVE_AREA_BYTES = 1 << 18
POISON = 0xA5

STILL_PS = 120 * US
"""Long enough for a burst of received frames to be delivered, on the slowest bus and beside all sends."""

S_IN_US = 10**6
PUSHES = ("whole", "whole", "in part", "shuffled", "twice", "too early")
"""Ways to push a descriptor: all its blocks; all but one; in any order; all twice; or the second send's, which is not
next."""

MODERATIONS = ((0, 0), (0, 1), (3, 0), (3, 4), (20, 0), (20, 4), (20, 1))
"""Microseconds and count."""

RX_BURST_BYTES = 10_000
"""Frames that may arrive without a pause: less than the smallest receive FIFO."""


@dataclass(frozen=True)
class Send:
    """One descriptor: head fields (`slots` and `pieces` included, right or wrong), inline bytes, pieces by key name."""

    head: dict[str, int]
    inline: bytes
    pieces: tuple[tuple[str, int, int], ...]

    @property
    def slots(self) -> int:
        """Slots that it takes on the ring, whatever it needs."""
        return self.head["slots"]

    def pack(self, tag: int, keys: dict[str, int]) -> bytes:
        """Its slots."""
        packed = [PIECE.pack(key=keys[name], offset=offset, length=length) for name, offset, length in self.pieces]
        body = SUBMISSION_HEAD.pack(**self.head, tag=tag) + (packed[0] if packed else bytes(16))
        body += self.inline + bytes(-len(self.inline) % SUBMISSION_SLOT_BYTES) + b"".join(packed[1:])
        size = self.slots * SUBMISSION_SLOT_BYTES
        return body.ljust(size, b"\0")[:size]


@dataclass(frozen=True)
class Batch:
    """Sends told with one doorbell (or as many as the ring's room needs), then a pause."""

    sends: tuple[Send, ...]
    pause_ps: int
    push: str = ""
    """How the first of them is pushed before: "" (not), or one of `PUSHES`."""
    push_seed: int = 0


@dataclass(frozen=True)
class Rekey:
    """Take the channel's memory back and register it again, when all its sends are done: `old` is stale from now on."""


@dataclass(frozen=True)
class Post:
    """A channel's buffers for the wire's frames: (key name, offset, length) each; as many as the ring has room for."""

    channel: int
    buffers: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Arrive:
    """Frames that arrive without a pause, each with the MAC's bad-frame flag."""

    frames: tuple[tuple[bytes, bool], ...]


@dataclass
class ChannelProgram:
    """What one channel does."""

    number: int
    tx_log2: int
    rx_log2: int
    vector: int
    by_interrupt: bool
    operations: OperationMask
    steps: list[Batch | Rekey] = field(default_factory=list)
    memory: bytearray = field(default_factory=bytearray)
    """What its send area holds."""
    bad_blocks: list[int] = field(default_factory=list)
    """Offsets in its send area where the bus fails."""


@dataclass(frozen=True)
class SteeringProgram:
    """How received frames are spread."""

    enabled: bool
    key: bytes
    indirection: tuple[int, ...]
    types: tuple[HashType, ...]
    rules: tuple[FlowRule, ...]


@dataclass
class Program:
    """All of it."""

    seed: int
    channels: list[ChannelProgram]
    moderation: list[tuple[int, int, int, int]]
    """For each vector: microseconds and count of receives, and of sends."""
    rx_filter: RxFilter
    steering: SteeringProgram
    arrivals: list[Post | Arrive]
    bad_receive_blocks: list[int]
    coalesces: bool = False
    """Segments are merged; what is open ends with the last frame, never by its age."""
    strays: bool = False
    """Before anything is sent, somebody writes where there are no registers."""


# ------------------------------------------------------------------------------------------------ making programs


def make_program(seed: int, *, channels: int = 4, vectors: int = 4, sends: int = 14, frames: int = 30,
                 coalesces: bool = False, strays: bool = False, rng: random.Random | None = None) -> Program:
    """A program of about `sends` descriptors for each channel and `frames` arriving frames, all of it decided by `rng`
    (the seed's, unless another is given)."""
    rng = rng or random.Random(seed)
    flows = [(f"10.0.0.{rng.randrange(2, 5)}", f"fd00::{rng.randrange(2, 5)}", rng.randrange(1, 1 << 16))
             for _ in range(12)]
    program = Program(
        seed=seed,
        channels=[_channel_program(rng, number, vectors, sends) for number in range(channels)],
        # Whoever waits for a count alone may wait for ever.
        moderation=[(*rng.choice(MODERATIONS), *rng.choice(MODERATIONS)) for _ in range(vectors)],
        rx_filter=RxFilter(rng.choice((0, RxFilter.BROADCAST, RxFilter.BROADCAST | RxFilter.MULTICAST,
                                       RxFilter.PROMISCUOUS))),
        steering=_steering_program(rng, channels, flows),
        arrivals=_arrivals(rng, frames, channels, flows,
                           Streams(rng, 6, sizes=(20, 200, 900), destination=OWN_TEXT) if coalesces else None),
        bad_receive_blocks=[rng.randrange(0, RECEIVE_AREA_BYTES, BURST_BYTES) for _ in range(rng.choice((0, 20)))],
        coalesces=coalesces, strays=strays)
    if coalesces:
        for channel in program.channels:
            channel.operations |= OperationMask.COALESCE
            # A drain ends what is open, at a time that two devices need not share.
            channel.steps = [step for step in channel.steps if not isinstance(step, Rekey)]
    return program


def _steering_program(rng: random.Random, channels: int, flows: list[Flow]) -> SteeringProgram:
    rules = []
    for source, source6, port in rng.sample(flows, rng.choice((0, 6, 10))):
        version = rng.choice((source, source6))
        rules.append(FlowRule(ip_address(version), ip_address("10.0.0.1" if version is source else "fd00::1"), port, 80,
                              rng.randrange(channels), rng.random() < 0.4))
    return SteeringProgram(
        enabled=rng.random() < 0.7, key=rng.choice((MICROSOFT_RSS_KEY, rng.randbytes(RSS_KEY_BYTES))),
        indirection=tuple(rng.randrange(channels) for _ in range(rng.choice((4, 128)))),
        types=tuple(t for t in HashType if rng.random() < 0.7), rules=tuple(rules))


def _channel_program(rng: random.Random, number: int, vectors: int, sends: int) -> ChannelProgram:
    operations = ALL_OPERATIONS
    if number and rng.random() < 0.2:
        operations &= ~rng.choice((OperationMask.SEND_FRAME, OperationMask.SEND_SEGMENTED, OperationMask.RECEIVE_RAW))
    made = ChannelProgram(
        number, tx_log2=rng.choice((4, 5, 5, 6, 7)), rx_log2=rng.choice((4, 5, 6)), vector=rng.randrange(vectors),
        by_interrupt=rng.random() < 0.5, operations=operations)
    area = _Area(rng, number)
    todo = [area.send() for _ in range(sends)]
    todo = _with_completions(todo, 1 << made.tx_log2)
    while todo:
        count = rng.choice((1, 1, 2, 3, 5, 8))
        batch, todo = todo[:count], todo[count:]
        rekey = rng.random() < 0.15
        if rekey:  # waits for all sends, so the last must tell
            batch[-1] = _complete(batch[-1])
        made.steps.append(Batch(tuple(batch), rng.choice((0, 0, 0, 1, 5)) * US))
        if rekey:
            made.steps.append(Rekey())
    # what is pushed comes from another source, so that programs of one seed do not depend on it
    pushing = random.Random(f"push {number} {len(area.memory)}")
    made.steps = [replace(step, push=pushing.choice(PUSHES), push_seed=pushing.randrange(1 << 16))
                  if isinstance(step, Batch) and pushing.random() < 0.5 else step for step in made.steps]
    made.memory = area.memory
    if rng.random() < 0.5:
        made.bad_blocks = [rng.randrange(0, len(area.memory) + 1, BURST_BYTES) for _ in range(rng.choice((1, 3)))]
    return made


def _with_completions(sends: list[Send], entries: int) -> list[Send]:
    """Add COMPLETE where the ring would otherwise be full of sends that nobody tells of, and to the last."""
    sends, untold = list(sends), 0
    for place, send in enumerate(sends):
        if untold + send.slots > entries:
            sends[place - 1] = _complete(sends[place - 1])
            untold = 0
        untold = 0 if send.head["flags"] & SendFlag.COMPLETE else untold + send.slots
    sends[-1] = _complete(sends[-1])
    return sends


def _complete(send: Send) -> Send:
    return replace(send, head=send.head | {"flags": send.head["flags"] | SendFlag.COMPLETE})


class _Area:
    """A channel's send memory, filled as its sends need it; sends come from here."""

    def __init__(self, rng: random.Random, channel: int) -> None:
        self.memory = bytearray()
        self._rng = rng
        self._source = bytes((2, 0, 0, 0, 0xCC, channel))

    def send(self) -> Send:
        """A random send; one in four is wrong in some way."""
        rng = self._rng
        send = self._segmented() if rng.random() < 0.5 else self._frame()
        return self._spoilt(send) if rng.random() < 0.25 else send

    def _pieces(self, data: bytes, most: int) -> tuple[tuple[str, int, int], ...]:
        """Put `data` into memory in up to `most` pieces at any alignment, in any order."""
        rng = self._rng
        count = min(rng.choice((1, 1, 2, 3, most)), most, len(data))
        cuts = sorted(rng.sample(range(1, len(data)), count - 1)) if count > 1 else []
        pieces = []
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            self.memory += rng.randbytes(rng.choice((0, 0, 1, 7, 64, 255)))
            pieces.append(("own", len(self.memory), end - start))
            self.memory += data[start:end]
        if len(self.memory) > SEND_AREA_BYTES:
            raise ValueError("the program needs a larger send area")
        return tuple(pieces)

    def _link_header(self, tagged: bool) -> bytes:
        rng = self._rng
        return rng.randbytes(6) + self._source + (b"\x81\0" + rng.randbytes(2) if tagged else b"") + b"\x08\0"

    def _flags(self) -> SendFlag:
        rng, flags = self._rng, SendFlag(0)
        for flag, odds in ((SendFlag.COMPLETE, 0.7), (SendFlag.TIMESTAMP, 0.3), (SendFlag.UDP, 0.3),
                           (SendFlag.VLAN_INSERT, 0.25)):
            if rng.random() < odds:
                flags |= flag
        return flags

    def _frame(self) -> Send:
        rng = self._rng
        tagged = rng.random() < 0.3
        length = rng.choice((14, 15, 42, 60, 61, 128, 129, 300, 1514, 1515, rng.randrange(14, 3000),
                             rng.randrange(14, MAX_FRAME_BYTES + 1), MAX_FRAME_BYTES))
        head = self._link_header(tagged)
        frame = (head + rng.randbytes(max(0, length - len(head))))[:length]
        inline_bytes = rng.choice((0, 1, 13, 14, 32, 54, 127, 128, rng.randrange(129)))
        if length <= MAX_INLINE_BYTES and rng.random() < 0.3:
            inline_bytes = length
        inline, rest = frame[:inline_bytes], frame[inline_bytes:]
        # 13 slots at most, so that four inline slots fit beside them
        pieces = self._pieces(rest, rng.choice((2, 5, 22))) if rest else ()
        flags, offsets = self._flags(), {}
        if length >= 60 and rng.random() < 0.6:
            l3_offset = 18 if tagged else 14
            l4_offset = l3_offset + rng.choice((20, 20, 24, 40))
            if rng.random() < 0.5:
                flags |= SendFlag.IPV4_CHECKSUM
            if l4_offset + 8 <= length:
                flags |= SendFlag.L4_CHECKSUM
                places = range(l4_offset, min(length - 2, 254) + 1, 2)
                offsets = {"checksum_offset": rng.choice((places[0], l4_offset + 6, rng.choice(places)))}
            offsets |= {"l3_offset": l3_offset, "l4_offset": l4_offset}
        return self._make(Opcode.SEND_FRAME, flags, inline, pieces, **offsets)

    def _segmented(self) -> Send:
        rng = self._rng
        tagged, ip6 = rng.random() < 0.3, rng.random() < 0.5
        flags = self._flags() | (SendFlag.IPV6 if ip6 else SendFlag(0))
        for flag in (SendFlag.IPV4_CHECKSUM, SendFlag.L4_CHECKSUM):
            if rng.random() < 0.3:
                flags |= flag
        link = self._link_header(tagged)
        network = bytearray(rng.randbytes(40 if ip6 else rng.choice((20, 20, 24, 40, 60))))
        for zero in (4, 5) if ip6 else (2, 3, 10, 11):
            network[zero] = 0
        if rng.random() < 0.3:
            network[4 + 2 * ip6 : 6 + 2 * ip6] = b"\xff\xff"  # IPv4 identification that wraps
            if ip6:
                network[4:6] = bytes(2)
        room = MAX_INLINE_BYTES - len(link) - len(network)
        transport = bytearray(rng.randbytes(min(room, rng.choice((20, 20, 32, 40, 60))) // 4 * 4))
        if rng.random() < 0.3:
            transport[4:8] = b"\xff\xff\xff\xf0"  # sequence numbers that wrap
        inline = link + network + transport
        l3_offset, l4_offset = len(link), len(link) + len(network)
        mss = rng.choice((MIN_MSS, 33, 536, 1440, 1460, 1461, rng.randrange(MIN_MSS, 9000), MAX_FRAME_BYTES))
        mss = min(mss, MAX_FRAME_BYTES - len(inline))
        length = rng.choice((1, 2, mss - 1, mss, mss + 1, 2 * mss, rng.randrange(1, 4 * mss), rng.randrange(1, 20_000)))
        pieces = self._pieces(rng.randbytes(length), rng.choice((2, 5, 22)))
        return self._make(Opcode.SEND_SEGMENTED, flags, inline, pieces, mss=mss, l3_offset=l3_offset,
                          l4_offset=l4_offset, checksum_offset=l4_offset + rng.choice((16, 16, 16, 18)))

    def _make(self, opcode: Opcode, flags: SendFlag, inline: bytes, pieces: tuple[tuple[str, int, int], ...],
              **fields: int) -> Send:
        fields["vlan_tci"] = self._rng.getrandbits(16)
        return Send({"opcode": opcode, "slots": slots_needed(len(inline), len(pieces)), "flags": flags,
                     "inline_bytes": len(inline), "pieces": len(pieces), **fields}, inline, pieces)

    # -- what is wrong with a send

    def _spoilt(self, send: Send) -> Send:
        rng = self._rng
        ways: list[Callable[[Send], Send]] = [self._wrong_field]
        if send.pieces:
            ways += [self._wrong_key, self._wrong_key, self._wrong_length]
        return rng.choice(ways)(send)

    def _wrong_field(self, send: Send) -> Send:
        rng, head = self._rng, send.head
        segmented = head["opcode"] == Opcode.SEND_SEGMENTED
        l3_offset, l4_offset = head.get("l3_offset", 0), head.get("l4_offset", 0)
        end = head["inline_bytes"] if segmented else 0
        changes: list[dict[str, int]] = [
            {"opcode": rng.choice((0, 3, *range(Opcode.SOCKET_CONNECT, Opcode.SOCKET_CLOSE + 1), 0x81, 0xFF))},
            {"slots": rng.choice([n for n in range(1, 17) if n != head["slots"]])},
            {"inline_bytes": rng.randrange(MAX_INLINE_BYTES + 1, 256)},
            {"pieces": rng.randrange(MAX_PIECES + 1, 256)},
        ]
        checked = SendFlag(head["flags"]) | SendFlag.L4_CHECKSUM
        changes += [
            {"flags": checked, "l4_offset": l4_offset + 1},
            {"flags": checked, "l3_offset": l3_offset, "l4_offset": 100, "checksum_offset": 98},
            {"flags": checked, "checksum_offset": l4_offset + 17},
            {"flags": SendFlag(head["flags"]) | SendFlag.IPV4_CHECKSUM, "l3_offset": 15, "l4_offset": 36},
            {"flags": SendFlag(head["flags"]) | SendFlag.IPV4_CHECKSUM, "l3_offset": 20, "l4_offset": 38},
        ]
        if segmented:
            changes += [
                {"mss": rng.randrange(MIN_MSS)}, {"mss": rng.randrange(MAX_FRAME_BYTES - end + 1, 1 << 16)},
                {"l3_offset": l4_offset - 18}, {"l4_offset": end - 18, "checksum_offset": end - 2},
                {"l3_offset": l3_offset + 1}, {"checksum_offset": (end + 1) // 2 * 2},
                {"checksum_offset": l4_offset - 2},
            ]
        return replace(send, head=head | rng.choice(changes))

    def _wrong_key(self, send: Send) -> Send:
        rng = self._rng
        place = rng.randrange(len(send.pieces))
        name, offset, length = send.pieces[place]
        name = rng.choice(("foreign", "write_only", "stale", "absent", "beyond", "short", "old"))
        if rng.random() < 0.3:
            name, offset = "own", rng.choice((SEND_AREA_BYTES - length + 1, (1 << 40) - 1, 1 << 32))
        return self._with_piece(send, place, (name, offset, length))

    def _wrong_length(self, send: Send) -> Send:
        place = self._rng.randrange(len(send.pieces))
        name, offset, _ = send.pieces[place]
        length = self._rng.choice((0, MAX_SEGMENTED_BYTES + 1, (1 << 24) - 1, MAX_SEGMENTED_BYTES, 20_000))
        return self._with_piece(send, place, (name, offset, length))

    @staticmethod
    def _with_piece(send: Send, place: int, piece: tuple[str, int, int]) -> Send:
        return replace(send, pieces=(*send.pieces[:place], piece, *send.pieces[place + 1 :]))


Flow = tuple[str, str, int]
"""Source address of IPv4 and of IPv6, and source port."""


def _arrivals(rng: random.Random, frames: int, channels: int, flows: list[Flow],
              streams: Streams | None) -> list[Post | Arrive]:
    steps: list[Post | Arrive] = []
    at = 0
    while frames > 0:
        posts: dict[int, list[tuple[str, int, int]]] = {}
        for _ in range(rng.randrange(14)):
            length = rng.choice((100, 1514, 2048, 2048, 2048, rng.randrange(60, 3000), 9014))
            at += rng.choice((0, 1, 2, 17, 64, 100))
            if at + length > RECEIVE_AREA_BYTES:
                break
            key, offset = "own", at
            if rng.random() < 0.15:
                key, offset = rng.choice((("foreign", at), ("read_only", at), ("stale", at), ("absent", at),
                                          ("own", RECEIVE_AREA_BYTES - 20)))
            posts.setdefault(rng.choice((0, rng.randrange(channels))), []).append((key, offset, length))
            at += length
        steps += [Post(channel, tuple(buffers)) for channel, buffers in posts.items()]
        burst, left = [], RX_BURST_BYTES
        for _ in range(rng.randrange(1, 9)):
            frame = streams.segment().frame() if streams and rng.random() < 0.9 else _arriving_frame(rng, flows)
            if len(frame) > left:
                break
            left -= len(frame)
            burst.append((frame, rng.random() < 0.05))
        frames -= len(burst)
        steps.append(Arrive(tuple(burst)))
    return steps


def _arriving_frame(rng: random.Random, flows: list[Flow]) -> bytes:
    """Mostly TCP and UDP, mostly for this device, mostly right."""
    if rng.random() < 0.05:
        to = rng.choice((MAC_CONTROL_ADDRESS, OWN_MAC))
        return pause_frame(rng.randbytes(6), rng.randrange(1 << 16), to)[:rng.choice((60, 60, 60, 18, 17, 15))]
    if rng.random() < 0.06:
        return OWN_MAC + rng.randbytes(rng.choice((1, 7, 8, 9, MAX_FRAME_BYTES - 6, MAX_FRAME_BYTES - 5)))
    to = rng.choice((OWN_TEXT,) * 6 + ("ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "02:00:00:00:aa:02"))
    link = Ether(src=PEER_TEXT, dst=to)
    if rng.random() < 0.2:
        link = link / Dot1Q(vlan=7)
    if rng.random() < 0.1:
        return bytes(link / ARP(psrc="10.0.0.2", pdst="10.0.0.1")).ljust(60, b"\0")
    payload = rng.randbytes(rng.choice((0, 1, 2, 5, 6, 100, 1400, rng.randrange(1450))))
    source, source6, port = rng.choice(flows)
    transport = TCP(sport=port, dport=80, seq=rng.getrandbits(32)) if rng.random() < 0.6 else UDP(sport=port, dport=80)
    if rng.random() < 0.4:
        network = IPv6(src=source6, dst="fd00::1")
        for extension in rng.choice(((), (), (), (IPv6ExtHdrDestOpt,), (IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt))):
            network = network / extension()
    else:
        network = IP(src=source, dst="10.0.0.1", **rng.choice(({}, {}, {}, {"flags": "MF"}, {"frag": 9})))
    frame = bytearray(bytes(link / network / transport / payload).ljust(60, b"\0"))
    if rng.random() < 0.2:
        frame[rng.randrange(12, len(frame))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.05:
        del frame[rng.randrange(14, len(frame)) :]
    return bytes(frame)


# ------------------------------------------------------------------------------------------------ running programs


class _Runner:
    """One channel of a program on a device."""

    def __init__(self, rig: Rig, nic: Nic, program: ChannelProgram) -> None:
        self.program = program
        self.completions: list[bytes] = []
        self.channel: Channel
        self.send_key: MemoryKey
        self.receive_keys: dict[str, int] = {}
        self._rig = rig
        self._nic = nic
        self._keys: dict[str, int] = {}
        self._tag = program.number << 12
        self.send_area = rig.memory.allocate(SEND_AREA_BYTES, BURST_BYTES)
        rig.memory.view(self.send_area, len(program.memory))[:] = program.memory
        rig.faults.blocks |= {(self.send_area + offset) // BURST_BYTES for offset in program.bad_blocks}

    async def open(self) -> None:
        program, nic = self.program, self._nic
        self.channel = await nic.open_channel(program.number, operations=program.operations, vector=program.vector,
                                              tx_log2=program.tx_log2, rx_log2=program.rx_log2)
        number, area = program.number, self.send_area
        others = (number + 1) % nic.capabilities.channels
        own = self.send_key = nic.register_memory(area, SEND_AREA_BYTES, KeyRight.READ, number, NOBODY)
        foreign = nic.register_memory(area, SEND_AREA_BYTES, KeyRight.READ | KeyRight.WRITE, others, NOBODY)
        write_only = nic.register_memory(area, SEND_AREA_BYTES, KeyRight.WRITE, number, NOBODY)
        short = nic.register_memory(area, 10, KeyRight.READ, number, NOBODY)
        stale = own.value + (1 << 12)
        absent = make_key(nic.capabilities.keys - 1, 0)
        self._keys = {"own": own.value, "old": stale, "foreign": foreign.value, "write_only": write_only.value,
                      "stale": stale, "absent": absent, "beyond": make_key(0xFFF, 0), "short": short.value}

    def allow_receive(self, area: int) -> None:
        """Register the area that frames are received into."""
        nic, number = self._nic, self.program.number
        own = nic.register_memory(area, RECEIVE_AREA_BYTES, KeyRight.WRITE, number, NOBODY).value
        foreign = nic.register_memory(area, RECEIVE_AREA_BYTES, KeyRight.WRITE,
                                      (number + 1) % nic.capabilities.channels, NOBODY).value
        read_only = nic.register_memory(area, RECEIVE_AREA_BYTES, KeyRight.READ, number, NOBODY).value
        self.receive_keys = {"own": own, "foreign": foreign, "read_only": read_only, "stale": own + (1 << 12),
                             "absent": make_key(nic.capabilities.keys - 1, 0)}

    async def run(self) -> None:
        """All steps, and then until everything is done."""
        for step in self.program.steps:
            if isinstance(step, Batch):
                await self._submit(step)
            else:
                await self._until(lambda: not self.channel.submissions.used)
                self._keys["old"] = self.send_key.value
                await self._nic.deregister_memory(self.send_key)
                self.send_key = self._nic.register_memory(self.send_area, SEND_AREA_BYTES, KeyRight.READ,
                                                          self.program.number, NOBODY)
                self._keys["own"] = self.send_key.value
        await self._until(lambda: not self.channel.submissions.used)

    async def _submit(self, batch: Batch) -> None:
        submissions = self.channel.submissions
        waiting: list[tuple[int, bytes]] = []
        for send in batch.sends:
            if submissions.free < send.slots:
                self.channel.ring_doorbell(NOBODY)
                waiting.clear()
                await self._until(lambda slots=send.slots: submissions.free >= slots)  # type: ignore[misc]
            slots = send.pack(self._tag, self._keys)
            waiting.append((submissions.producer, slots))
            self._tag = self._tag + 1 & 0xFFFF
            for at in range(0, len(slots), SUBMISSION_SLOT_BYTES):
                place = ring.slot(submissions.producer, submissions.log2) * SUBMISSION_SLOT_BYTES
                self._rig.memory.view(submissions.address + place, SUBMISSION_SLOT_BYTES)[:] = (
                    slots[at : at + SUBMISSION_SLOT_BYTES])
                submissions.producer = ring.advance(submissions.producer)
        if batch.push:
            self._push(batch, waiting)
        self.channel.ring_doorbell(NOBODY)
        if batch.pause_ps:
            await self._rig.port.sleep(batch.pause_ps)

    def _push(self, batch: Batch, waiting: list[tuple[int, bytes]]) -> None:
        """Push a descriptor that the doorbell has not told of, well or badly."""
        rng = random.Random(batch.push_seed)
        blocks = push_blocks(*waiting[min(batch.push == "too early", len(waiting) - 1)])
        if batch.push == "in part":
            del blocks[rng.randrange(len(blocks))]
        elif batch.push == "shuffled":
            rng.shuffle(blocks)
        elif batch.push == "twice":
            blocks *= 2
        self._rig.port.wmb()
        for offset, block in blocks:
            self._rig.port.write_block(doorbell("PUSH", self.program.number) + offset, block)

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Take completions, as interrupts tell of them or by polling, until something holds."""
        port = self._rig.port
        self.take()
        while not holds():
            if self.program.by_interrupt:
                self.channel.arm(NOBODY)
                # Behind the arming: a line that another channel of the vector holds up is seen again each time.
                await port.read32(register("ID"))
                await port.interrupt(self.program.vector)
            else:
                await port.sleep(3 * US)
            self.take()

    def take(self) -> None:
        """Keep what stands in the completion ring, as it stands there."""
        completed = self.channel.completed
        while completed.has_completion:
            at = completed.address + ring.slot(completed.consumer, completed.log2) * COMPLETION_BYTES
            self.completions.append(bytes(self._rig.memory.view(at, COMPLETION_BYTES)))
            completion = completed.take()
            if completion.kind is CompletionKind.SEND:
                self.channel.submissions.retire(completion.ring_index)
            else:
                self.channel.buffers.give_back()


async def run_program(rig: Rig, program: Program) -> dict[str, Any]:
    """Run it to its end.

    Keys of the result: `frames`: hex by channel, in order; `times`: of all frames; `sends`, `receives`: completions by
    channel as hex, see `_timeless`; `memory`: digest of the receive area but for what a bus error left
    undefined; `counters`; `irqs`; `unknown`: frames of no channel.
    """
    nic = await Nic.probe(rig.port)
    start_ps = rig.kernel.now
    before = await nic.read_counters()
    sent_before = len(rig.mac.sent)
    irqs_before = len(rig.irqs)
    rig.faults.blocks = set()
    nic.set_mac_address(OWN_MAC)
    nic.set_filter(program.rx_filter)
    steering = program.steering
    nic.set_rss(enabled=steering.enabled, key=steering.key, indirection=steering.indirection, types=steering.types)
    for rule in steering.rules:
        with suppress(FlowRuleError):  # one for the same flow, or without a place: the device has the others
            nic.add_flow_rule(rule)
    nic.set_coalescing(10 * S_IN_US if program.coalesces else 0)
    nic.enable_receive(True)
    for vector, (rx_usecs, rx_frames, tx_usecs, tx_frames) in enumerate(program.moderation):
        nic.set_moderation(vector, rx_usecs=rx_usecs, rx_frames=rx_frames, tx_usecs=tx_usecs, tx_frames=tx_frames)
        nic.mask(vector, False)
    runners = [_Runner(rig, nic, channel) for channel in program.channels]
    area = rig.memory.allocate(RECEIVE_AREA_BYTES, BURST_BYTES)
    view = rig.memory.view(area, RECEIVE_AREA_BYTES)
    view[:] = bytes([POISON]) * RECEIVE_AREA_BYTES
    rig.faults.blocks |= {(area + offset) // BURST_BYTES for offset in program.bad_receive_blocks}
    for runner in runners:
        await runner.open()
    for runner in runners:
        runner.allow_receive(area)
    if program.strays:
        values = random.Random(program.seed)
        for address in stray_addresses(rig.config):
            # 0 would turn off what is on.
            rig.port.write32(address, values.getrandbits(32) if program.seed % 2 else 0)
        await rig.port.read32(register("ID"))
    posted: dict[int, tuple[int, int]] = {}
    tasks = [rig.kernel.spawn(runner.run(), f"channel {runner.program.number}") for runner in runners]
    tasks.append(rig.kernel.spawn(_receive(rig, program, runners, posted), "arrivals"))
    for task in tasks:
        await task
    nic.set_coalescing(0)  # ends what is open
    await rig.port.read32(register("ID"))
    await rig.port.sleep(STILL_PS)
    for runner in runners:
        runner.take()

    # A completion that polling has found stands in memory before the device has the bus's answer, and counts it.
    await rig.port.sleep(2 * US)
    after = await nic.read_counters()
    result: dict[str, Any] = {
        "frames": {}, "sends": {}, "receives": {}, "counters": {n: after[n] - before[n] for n in after},
        "times": [time for time, _ in rig.mac.sent[sent_before:]], "irqs": rig.irqs[irqs_before:],
    }
    for runner in runners:
        name = str(runner.program.number)
        mine = bytes((2, 0, 0, 0, 0xCC, runner.program.number))
        result["frames"][name] = [f.hex() for _, f in rig.mac.sent[sent_before:] if f[6:12] == mine]
        receives = (CompletionKind.RECEIVE, CompletionKind.RECEIVE_MORE)
        for kinds, key in (((CompletionKind.SEND,), "sends"), (receives, "receives")):
            result[key][name] = [_timeless(entry) for entry in runner.completions if entry[0] in kinds]
    known = {frame for frames in result["frames"].values() for frame in frames}
    result["unknown"] = [f.hex() for _, f in rig.mac.sent[sent_before:] if f.hex() not in known]
    is_undefined = False
    for entry in (entry for runner in runners for entry in runner.completions):
        fields = COMPLETION.unpack(entry)
        if fields["kind"] == CompletionKind.RECEIVE:
            # Of all its buffers; the head may name another error of the same frame.
            is_undefined = fields["status"] != Status.OK and (
                fields["status"] == Status.BUS_ERROR or fields["more"] > 0)
        if fields["kind"] != CompletionKind.SEND and is_undefined:
            offset, length = posted[fields["tag"]]
            end = min(offset + length, RECEIVE_AREA_BYTES)
            view[offset:end] = bytes(end - offset)
    result["memory"] = hashlib.sha256(view).hexdigest()
    end_ps = rig.kernel.now
    stamps = [COMPLETION.unpack(entry)["timestamp"] for runner in runners for entry in runner.completions]
    late = [stamp for stamp in stamps if stamp and not start_ps < nic.cycles_to_ps(stamp) < end_ps]
    assert not late, f"timestamps of another time: {late}"
    nic.enable_receive(False)
    for runner in runners:
        await nic.close_channel(runner.channel)
        rig.memory.free(runner.send_area)
    view.release()
    rig.memory.free(area)
    rig.faults.blocks = set()
    return result


async def _receive(rig: Rig, program: Program, runners: list[_Runner], posted: dict[int, tuple[int, int]]) -> None:
    next_id = 100
    for step in program.arrivals:
        if isinstance(step, Arrive):
            for frame, bad in step.frames:
                rig.mac.arrive(frame, bad)
            await rig.port.sleep(STILL_PS)
        else:
            runner = runners[step.channel]
            buffers = runner.channel.buffers
            runner.take()
            for key, offset, length in step.buffers[: buffers.free]:
                buffers.put(Piece(runner.receive_keys[key], offset, length), next_id)
                posted[next_id] = (offset, length)
                next_id += 1
            if step.buffers:
                rig.port.wmb()
                rig.port.write32(doorbell("RX_DOORBELL", step.channel), buffers.producer)
            await rig.port.read32(register("ID"))
            await rig.port.sleep(2 * US)


def _timeless(entry: bytes) -> str:
    """A completion with 1 for any timestamp, and without its phase, which a channel's mixture of kinds moves."""
    fields = COMPLETION.unpack(entry)
    return COMPLETION.pack(**fields | {"timestamp": int(fields["timestamp"] != 0), "phase": 0}).hex()


async def run_one(rig: Rig, program: Program) -> Any:
    """Scenario: a program, with a limit. For engines in this process only."""
    return await rig.within(run_program(rig, program), 50_000 * US, f"program {program.seed}")


async def run_seeds(rig: Rig, arguments: dict[str, Any]) -> list[Any]:
    """Scenario: programs of several seeds, one after the other, each with a limit."""
    results = []
    for seed in arguments["seeds"]:
        program = make_program(seed, channels=rig.config.channels, vectors=rig.config.vectors,
                               **arguments.get("sizes", {}))
        results.append(await run_one(rig, program))
    return results
