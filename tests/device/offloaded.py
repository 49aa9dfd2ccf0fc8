"""A connection that a decider at the control port serves: what comes is placed, what is asked for is sent, each at a
random pace. The same over any engine: frames, memory, messages and counters may not depend on it.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections import Counter, deque
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402

from host_driver.account import NullAccount  # noqa: E402
from host_driver.nic import DeviceError, Nic  # noqa: E402
from host_driver.rings import Piece  # noqa: E402
from host_driver.runtime import Event  # noqa: E402
from nic_model.contract import KeyRight, OperationMask, RxFilter, register  # noqa: E402
from nic_model.contract.control import (  # noqa: E402
    EMIT_PIECES,
    EMIT_TYPES,
    NO_FLOW,
    RAW_FRAME,
    ControlEnable,
    ControlType,
    DoneStatus,
    OrderFlag,
    pack_message,
    unpack_message,
)
from nic_model.contract.protocols import TcpFlags  # noqa: E402
from tests.device.rig import US, Rig  # noqa: E402

OWN, PEER = "02:00:00:00:aa:01", "02:00:00:00:bb:02"
OWN_IP, PEER_IP, OWN_PORT, PEER_PORT = "10.0.0.1", "10.0.0.2", 80, 4096
NUMBER, GENERATION, OWNER = 5, 3, 1
HOST_CHANNEL, BUFFER_BYTES = 0, 2048
FLOW = {"flow": NUMBER, "generation": GENERATION}
FIRST, OWN_FIRST = 0xFFFF_F000, 77_000
"""Sequence numbers that begin the streams; the peer's wraps."""
AREA_BYTES = 1 << 17
STILL_PS = 200 * US
MSS = 700


def _address(text: str) -> int:
    return int.from_bytes(bytes(map(int, text.split("."))), "little")


class Decider:
    """Messages up by what they are, and orders down with credits."""

    def __init__(self, rig: Rig) -> None:
        self.told: list[tuple[ControlType, dict[str, int]]] = []
        self.done: dict[int, dict[str, int]] = {}
        self.came = Event("a message of the control port")
        self._streams: Any = rig.port.control  # type: ignore[attr-defined]
        self._streams.on_up = self._hear
        self._credits = rig.config.emit_credits
        self._waiting: deque[bytes] = deque()
        self._tag = 0

    def _hear(self) -> None:
        while (message := self._streams.take()) is not None:
            kind, fields, _further = unpack_message(message)
            self._credits += fields["emit_credits"]
            if kind is ControlType.DONE:
                self.done[fields["tag"]] = fields
            if kind is not ControlType.TICK:
                self.told.append((kind, fields))
        self._emit()
        self.came.set()

    def order(self, kind: ControlType, further: bytes = b"", **fields: int) -> int:
        """Give an order. Returns its tag."""
        self._tag += 1
        message = pack_message(kind, further, tag=self._tag, **fields)
        if kind in EMIT_TYPES:
            self._waiting.append(message)
            self._emit()
        else:
            self._streams.release(message)
        return self._tag

    def _emit(self) -> None:
        while self._waiting and self._credits:
            self._credits -= 1
            self._streams.emit(self._waiting.popleft())

    async def segments(self) -> AsyncIterator[dict[str, int]]:
        """Each SEGMENT from the first on, as they come, without end."""
        for at in count():
            while at == len(self.told):
                self.came.clear()
                await self.came.wait()
            kind, fields = self.told[at]
            if kind is ControlType.SEGMENT:
                yield fields

    async def answer(self, tag: int) -> dict[str, int]:
        """The DONE of an order."""
        while tag not in self.done:
            self.came.clear()
            await self.came.wait()
        return self.done[tag]


async def serve(rig: Rig, arguments: dict[str, Any]) -> Any:
    """One connection from FLOW_ADD to FLOW_DEL, both ways at once."""
    rng, kernel = random.Random(arguments["seed"]), rig.kernel
    nic = await Nic.probe(rig.port)
    nic.set_mac_address(bytes.fromhex(OWN.replace(":", "")))
    nic.set_filter(RxFilter.BROADCAST)
    refused = await _refused(nic, rig.config.port_queues[0])
    area = rig.memory.allocate(2 * AREA_BYTES)
    key = nic.register_memory(area, 2 * AREA_BYTES, KeyRight.READ | KeyRight.WRITE, OWNER, NullAccount()).value
    rig.port.write32(register("CONTROL_ENABLE"), ControlEnable.FLOWS | ControlEnable.REST)
    nic.enable_receive(True)
    decider = Decider(rig)
    added = await decider.answer(decider.order(
        ControlType.FLOW_ADD, **FLOW, remote_address=_address(PEER_IP), local_address=_address(OWN_IP),
        remote_port=PEER_PORT, local_port=OWN_PORT, channel=OWNER, hop_limit=64, mss=MSS,
        next_hop=int.from_bytes(bytes.fromhex(PEER.replace(":", "")), "little")))
    assert added["status"] == DoneStatus.OK, added

    peer = kernel.spawn(_peer(rig, rng, arguments["segments"]), "peer")
    sender = kernel.spawn(_send(rig, decider, random.Random(rng.random()), key, area, arguments["sends"]), "sender")
    placed = await _place(decider, random.Random(rng.random()), key, arguments["segments"])
    stream = await peer
    assert bytes(rig.memory.view(area, len(stream))) == stream
    sent, statuses = await sender

    # What names nothing, or nothing any more.
    strays = [decider.order(ControlType.DROP, handle=9), decider.order(ControlType.PLACE, **FLOW, handle=7, length=3,
                                                                       key=key),
              decider.order(ControlType.EMIT, flow=NUMBER, generation=GENERATION + 1, mss=MSS)]
    rig.mac.arrive(bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src=PEER, type=0x88B5) / bytes(60)), False)
    strays.append(decider.order(
        ControlType.RAW, RAW_FRAME.pack(bytes=int.from_bytes(b"\x11" * 40, "little")), flow=NO_FLOW, header_bytes=40,
        flags=OrderFlag.DONE))
    last = decider.order(ControlType.EMIT, **FLOW, flags=OrderFlag.LAST | OrderFlag.DONE)
    strays.append(last)
    await decider.answer(last)
    strays.append(decider.order(ControlType.FLOW_DEL, **FLOW))
    await decider.answer(strays[-1])
    strays.append(decider.order(ControlType.EMIT, **FLOW, mss=MSS, tcp_flags=TcpFlags.ACK))
    ends = [(await decider.answer(tag))["status"] for tag in strays]
    rig.mac.arrive(_segment(len(stream), b"nobody's"), False)
    await kernel.sleep(STILL_PS)
    unknown = [fields for kind, fields in decider.told if kind is ControlType.UNKNOWN]
    passed = await _pass(rig, nic, decider, [fields["handle"] for fields in unknown])
    counters = {name: value for name, value in (await nic.read_counters()).items()
                if name.startswith(("control_", "tx_frames", "rx_filtered", "rx_frames", "rx_fifo", "rx_no_buffer"))}
    assert b"".join(_payload(frame) for _, frame in rig.mac.sent if _is_data(frame)) == sent
    return {
        "refused": refused, "placed": placed, "statuses": statuses, "ends": ends,
        "unknown": [(fields["reason"], fields["frame_bytes"], fields["frame"]) for fields in unknown],
        "passed": passed, "kinds": sorted(Counter(kind.name for kind, _ in decider.told).items()),
        "frames": [hashlib.sha256(frame).hexdigest() for _, frame in rig.mac.sent if _is_data(frame)],
        "others": sorted(frame.hex() for _, frame in rig.mac.sent if not _is_data(frame)),
        "counters": counters,
    }


async def _pass(rig: Rig, nic: Nic, decider: Decider, handles: list[int]) -> list[Any]:
    """Give frames to a channel of the host that has buffers for all but the last, which is given twice. Returns what
    the orders are answered with, and what the channel got."""
    channel = await nic.open_channel(HOST_CHANNEL, operations=OperationMask.RECEIVE_RAW, vector=0, tx_log2=4, rx_log2=4)
    area = rig.memory.allocate(len(handles) * BUFFER_BYTES)
    key = nic.register_memory(area, len(handles) * BUFFER_BYTES, KeyRight.WRITE, HOST_CHANNEL, NullAccount()).value
    for number in range(len(handles) - 1):
        channel.post(Piece(key, number * BUFFER_BYTES, BUFFER_BYTES), number, number)
    channel.ring_doorbell(NullAccount())
    await rig.kernel.sleep(STILL_PS)
    tags = [decider.order(ControlType.PASS, handle=handle, channel=HOST_CHANNEL, flags=OrderFlag.DONE)
            for handle in (*handles, handles[-1])]
    answers = [(await decider.answer(tag))["status"] for tag in tags]
    await rig.kernel.sleep(STILL_PS)
    told = [done.completion for done in channel.completions()]
    got = [(completion.status, completion.length, int(completion.info)) for completion in told]
    return [answers, got, bytes(rig.memory.view(area, 128)).hex()]


async def _refused(nic: Nic, channel: int) -> str:
    """What the device says to who opens a channel of the control port."""
    try:
        await nic.open_channel(channel, operations=OperationMask.SEND_FRAME, vector=0)
    except DeviceError as error:
        return str(error)
    return "it runs"


def _segment(at: int, payload: bytes, flags: str = "A") -> bytes:
    return bytes(Ether(dst=OWN, src=PEER) / IP(src=PEER_IP, dst=OWN_IP) / TCP(
        sport=PEER_PORT, dport=OWN_PORT, seq=FIRST + at & 0xFFFF_FFFF, ack=1, flags=flags) / payload)


def _is_data(frame: bytes) -> bool:
    return len(frame) > 54 and frame[12:14] == b"\x08\x00"


def _payload(frame: bytes) -> bytes:
    return frame[54 : 14 + int.from_bytes(frame[16:18], "big")]


async def _peer(rig: Rig, rng: random.Random, segments: int) -> bytes:
    """Send the stream, two neighbours in ten the wrong way round. Returns it."""
    stream, at, frames = b"", 0, []
    for _ in range(segments):
        payload = rng.randbytes(rng.choice((1, 6, 100, 255, 536, 1000, rng.randrange(1, 1460))))
        frames.append(_segment(at, payload))
        stream, at = stream + payload, at + len(payload)
    for number in range(1, segments):
        if rng.random() < 0.2:
            frames[number - 1 : number + 1] = frames[number - 1 : number + 1][::-1]
    for frame in frames:
        rig.mac.arrive(frame, False)
        await rig.kernel.sleep(rng.choice((0, 0, 1, 5, 20)) * US)
    return stream


async def _place(decider: Decider, rng: random.Random, key: int, segments: int) -> list[Any]:
    """Answer each SEGMENT with one PLACE or two, and an acknowledgement behind them now and then."""
    seen: list[Any] = []
    last = []
    async for fields in decider.segments():
        offset, length = fields["sequence"] - FIRST & 0xFFFF_FFFF, fields["length"]
        seen.append((offset, length, fields["tcp_flags"], fields["frame_bytes"], fields["payload_offset"]))
        cut = rng.randrange(1, length) if length > 1 and rng.random() < 0.4 else 0
        place = {**FLOW, "handle": fields["handle"], "key": key}
        if cut:
            decider.order(ControlType.PLACE, **place, length=cut, offset=offset)
        last.append(decider.order(ControlType.PLACE, **place, skip=cut, length=length - cut, offset=offset + cut,
                                  flags=OrderFlag.LAST | OrderFlag.DONE))
        if rng.random() < 0.3:
            decider.order(ControlType.EMIT, **FLOW, flags=OrderFlag.FENCE, tcp_flags=TcpFlags.ACK,
                          acknowledgement=offset + length, sequence=OWN_FIRST - 1)
        if len(seen) == segments:
            break
    for tag in last:
        assert (await decider.answer(tag))["status"] == DoneStatus.OK
    return sorted(seen)


async def _send(rig: Rig, decider: Decider, rng: random.Random, key: int, area: int, sends: int) -> tuple[bytes, Any]:
    """EMITs of data in up to eight pieces. Returns the bytes, and each order's status and length."""
    rig.memory.write(area + AREA_BYTES, rng.randbytes(AREA_BYTES))
    stream, tags, sequence = b"", [], OWN_FIRST
    for number in range(sends):
        count = rng.choice((1, 1, 2, 3, 8))
        pieces = [(rng.randrange(AREA_BYTES - 2000), rng.randrange(1, 2000)) for _ in range(count)]
        further, fields = _pieces(pieces, key)
        length = sum(size for _, size in pieces)
        tags.append(decider.order(
            ControlType.EMIT, further, **FLOW, **fields, length=length, pieces=len(pieces), mss=MSS, sequence=sequence,
            tcp_flags=TcpFlags.ACK | TcpFlags.PSH, acknowledgement=number, window=500, flags=OrderFlag.DONE))
        sequence += length
        for offset, size in pieces:
            stream += bytes(rig.memory.view(area + AREA_BYTES + offset, size))
        await rig.kernel.sleep(rng.choice((0, 0, 3, 30)) * US)
    answers = [await decider.answer(tag) for tag in tags]
    return stream, [(fields["status"], fields["length"]) for fields in answers]


def _pieces(pieces: list[tuple[int, int]], key: int) -> tuple[bytes, dict[str, int]]:
    """Further units, and the fields of the first."""
    def named(some: list[tuple[int, int]]) -> dict[str, int]:
        return {f"{name}_{number}": value for number, (offset, length) in enumerate(some)
                for name, value in (("offset", AREA_BYTES + offset), ("key", key), ("length", length))}

    further = b"".join(EMIT_PIECES.pack(**named(pieces[at : at + 4])) for at in range(2, len(pieces), 4))
    return further, named(pieces[:2])
