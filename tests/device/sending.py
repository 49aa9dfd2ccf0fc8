"""Sends of all sizes: segmented ones up to the greatest, and frames of which any number of bytes are inline, one right
behind the other. Random programs have mostly small ones, and few at a time.
"""

from __future__ import annotations

import hashlib
import random
from itertools import product
from typing import Any

from host_driver.rings import Descriptor
from nic_model.contract import (
    MAX_FRAME_BYTES,
    MAX_INLINE_BYTES,
    MAX_SEGMENTED_BYTES,
    Opcode,
    OperationMask,
    SendFlag,
    Status,
    register,
)
from nic_model.contract.protocols import (
    ETHERNET_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    TCP_CHECKSUM_OFFSET,
    TCP_HEADER_BYTES,
    TCP_SEQUENCE_OFFSET,
)
from tests.device.faults import NOBODY, start
from tests.device.programs import STILL_PS
from tests.device.rig import Rig
from tests.device.wide_values import LONG_LOG2, OFFSET_BITS, Area

OPERATIONS = OperationMask.SEND_FRAME | OperationMask.SEND_SEGMENTED

# ---------------------------------------------------------------------------------------------- large sends

LARGE_BITS = range(14, MAX_SEGMENTED_BYTES.bit_length())
"""There is a send of 2^n bytes or more for each of them, up to the largest."""


async def large_sends(rig: Rig, arguments: dict[str, int]) -> list[list[Any]]:
    """Scenario: segmented sends of one piece, as large as they may be, whose sequence numbers go round. The piece's
    last byte is its key's last, or the one behind it. Returns of each the status that it must have, what is told of it,
    and a digest of its frames; asserts that their sequence numbers and payloads are what they should be."""
    rng = random.Random(f"large sends {arguments['seed']}")
    nic = await start(rig)
    channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=4, rx_log2=4)
    area = Area(rig, nic, 0, MAX_SEGMENTED_BYTES, rng)
    data = rng.randbytes(MAX_SEGMENTED_BYTES)
    area.view(0, len(data))[:] = data
    told = []
    lengths = [min(rng.randrange(1 << bits, 2 << bits), MAX_SEGMENTED_BYTES) for bits in LARGE_BITS]
    for number, (length, beyond) in enumerate(product(lengths, (False, True))):
        area.widen(rng.getrandbits(rng.randrange(1, OFFSET_BITS + 1)), length - beyond)
        await rig.port.read32(register("ID"))
        ip6, sequence = rng.random() < 0.5, (1 << 32) - rng.randrange(1, length)
        inline, l4_offset = _template(rng, ip6, sequence)
        sent_before = len(rig.mac.sent)
        channel.submit(Descriptor(
            Opcode.SEND_SEGMENTED, inline, (area.piece(0, length),), SendFlag.IPV6 if ip6 else SendFlag(0),
            mss=rng.choice((1448, MAX_FRAME_BYTES - len(inline))), l3_offset=ETHERNET_HEADER_BYTES,
            l4_offset=l4_offset, checksum_offset=l4_offset + TCP_CHECKSUM_OFFSET), number)
        channel.ring_doorbell(NOBODY)
        while not channel.completed.has_completion:
            await rig.port.sleep(STILL_PS)
        await rig.port.sleep(STILL_PS)
        (finished,) = channel.completions()
        assert finished.handle == number
        completion, frames, sent = finished.completion, [frame for _, frame in rig.mac.sent[sent_before:]], 0
        for frame in frames:
            found = int.from_bytes(frame[l4_offset + TCP_SEQUENCE_OFFSET:][:4], "big")
            assert found == sequence + sent & 0xFFFF_FFFF, f"send {number}: sequence number {found} behind {sent} bytes"
            payload = frame[len(inline):]
            assert payload == data[sent:sent + len(payload)], f"send {number}: payload behind {sent} bytes"
            sent += len(payload)
        assert sent == completion.length == (0 if beyond else length), f"send {number}: {sent} bytes, {completion}"
        told.append([Status.KEY_BOUNDS if beyond else Status.OK, completion.status, completion.segments,
                     hashlib.sha256(b"".join(frames)).hexdigest()])
    await nic.close_channel(channel)
    await area.close(nic)
    return told


def _template(rng: random.Random, ip6: bool, sequence: int) -> tuple[bytes, int]:
    """Headers without options, and where TCP's begins."""
    l4_offset = ETHERNET_HEADER_BYTES + (IPV6_HEADER_BYTES if ip6 else IPV4_HEADER_BYTES)
    inline = bytearray(rng.randbytes(l4_offset + TCP_HEADER_BYTES))
    for zero in (4, 5) if ip6 else (2, 3, 10, 11):
        inline[ETHERNET_HEADER_BYTES + zero] = 0
    inline[l4_offset + TCP_SEQUENCE_OFFSET:l4_offset + TCP_SEQUENCE_OFFSET + 4] = sequence.to_bytes(4, "big")
    return bytes(inline), l4_offset


# ---------------------------------------------------------------------------------------------- inline bytes

SENDS, SPAN = 160, 256
"""Sends at once, and bytes of memory for each."""


async def inline_bytes(rig: Rig, arguments: dict[str, int]) -> list[list[Any]]:
    """Scenario: frames one right behind the other, of which all bytes, none, or any number are inline, with a checksum
    anywhere. Returns of each how many bytes are inline, its status, and the frame."""
    rng = random.Random(f"inline bytes {arguments['seed']}")
    nic = await start(rig)
    channel = await nic.open_channel(0, operations=OPERATIONS, vector=0, tx_log2=LONG_LOG2, rx_log2=4)
    area = Area(rig, nic, 0, SENDS * SPAN, rng)
    area.view(0, SENDS * SPAN)[:] = rng.randbytes(SENDS * SPAN)
    counts, sent_before = [], len(rig.mac.sent)
    for number in range(SENDS):
        count = rng.choice((0, rng.randrange(MAX_INLINE_BYTES + 1)))
        least = max(0, ETHERNET_HEADER_BYTES - count)
        length = rng.choice((least, rng.randrange(least, SPAN - MAX_INLINE_BYTES)))
        pieces = (area.piece(number * SPAN + rng.randrange(MAX_INLINE_BYTES), length),) if length else ()
        channel.submit(_with_checksum(rng, Descriptor(Opcode.SEND_FRAME, rng.randbytes(count), pieces)), number)
        counts.append(count)
    channel.ring_doorbell(NOBODY)
    while len(rig.mac.sent) < sent_before + SENDS:
        await rig.port.sleep(STILL_PS)
    await rig.port.sleep(STILL_PS)
    finished = list(channel.completions())
    assert [f.handle for f in finished] == list(range(SENDS))
    frames = [frame for _, frame in rig.mac.sent[sent_before:]]
    await nic.close_channel(channel)
    await area.close(nic)
    return [[count, f.completion.status, frame.hex()]
            for count, f, frame in zip(counts, finished, frames, strict=True)]


def _with_checksum(rng: random.Random, send: Descriptor) -> Descriptor:
    """With a checksum over what is behind any even place, at any place in it."""
    length = len(send.inline) + sum(piece.length_bytes for piece in send.pieces)
    l4_offset = rng.randrange(0, length - 2, 2)
    place = rng.randrange(l4_offset, length - 1, 2)
    return send._replace(flags=SendFlag.L4_CHECKSUM, l4_offset=l4_offset, checksum_offset=place)
