"""The timing rules over columns: lengths and times in, times out, no bytes. For experiments of millions of frames.

    kernel = Kernel(model, bus, mac)
    for events in kernel.run(blocks): ...

A block is a structured array of `INPUT`; what comes out of it is an array of `OUTPUT` rows. So memory does not grow
with the experiment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from nic_model.contract import MAX_PIECE_BYTES, slots_needed
from nic_model.contract.protocols import ETHERNET_HEADER_BYTES, IPV4_HEADER_BYTES, TCP_HEADER_BYTES
from nic_model.timing import stages, state
from nic_model.timing.parameters import DeviceModel
from nic_model.timing.stages import rule, step
from nic_model.timing.state import BusModel, MacModel

SEND, ARRIVE = 0, 1

TEMPLATE_BYTES = ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES + TCP_HEADER_BYTES

INPUT = np.dtype([(name, np.int64) for name in (
    "edge", "kind", "channel", "length", "mss", "inline", "sums", "address", "slots")])
"""One send, or one frame that arrives. `edge`: of the doorbell's beat at the device's port, or when the frame stands
before it; they do not fall. Sends of one channel at one edge share a doorbell. `length`: bytes of payload, or of the
frame.
`mss`: 0 for a frame. `inline`: bytes in the descriptor. `sums`: checksums that are put in, 2 for each segmented send.
`address`: of the payload, modulo 4096. `slots`: of the descriptor."""

OUTPUT = ("kind", "a", "b", "c", "d", "e")
"""See `nic_model.timing.stages.put`."""


def sends(edges: Any, channels: Any, payload: Any, *, mss: Any = 0, inline: Any = 0, sums: Any = 0,
          address: Any = 0) -> np.ndarray:
    """Rows of INPUT for sends, from columns or numbers. A send with `mss` has its template of 54 bytes inline."""
    count = max(np.size(column) for column in (edges, channels, payload, mss))
    rows = np.zeros(count, INPUT)
    rows["edge"], rows["kind"], rows["channel"], rows["length"] = edges, SEND, channels, payload
    rows["mss"], rows["address"] = mss, address
    segmented = rows["mss"] > 0
    rows["inline"] = np.where(segmented, TEMPLATE_BYTES, inline)
    rows["sums"] = np.where(segmented, 2, sums)
    for inline_bytes in np.unique(rows["inline"]):
        for pieces in (0, 1):
            rows["slots"][(rows["inline"] == inline_bytes) & ((rows["length"] > 0) == pieces)] = slots_needed(
                int(inline_bytes), pieces)
    if rows["length"].max(initial=0) > MAX_PIECE_BYTES:
        raise ValueError(f"a piece is at most {MAX_PIECE_BYTES} bytes, not {rows['length'].max()}")
    return rows


def arrivals(edges: Any, channels: Any, lengths: Any) -> np.ndarray:
    """Rows of INPUT for frames that arrive."""
    count = max(np.size(column) for column in (edges, channels, lengths))
    rows = np.zeros(count, INPUT)
    rows["edge"], rows["kind"], rows["channel"], rows["length"] = edges, ARRIVE, channels, lengths
    return rows


@step
def put_send(p: Any, s: Any, q: Any, channel: int, payload: int, mss: int, inline: int, sums: int, slots: int,
             complete: int) -> int:
    """A descriptor stands in its channel's ring; its pieces are added by `put_piece`. Returns its number."""
    number = q.channels[channel].posted
    descriptor = q.descriptors[channel, number & p.descriptors - 1]
    descriptor.slots = slots
    descriptor.inline = inline
    descriptor.payload = payload
    descriptor.mss = mss
    descriptor.sums = sums
    descriptor.ipv6 = 0
    descriptor.complete = complete
    descriptor.piece = s.piece_tail
    descriptor.pieces = 0
    descriptor.number = number
    q.channels[channel].posted = number + 1
    return int(number)


@step
def put_piece(p: Any, s: Any, q: Any, channel: int, address: int, length: int) -> None:
    """A piece of the descriptor that was put last."""
    q.descriptors[channel, q.channels[channel].posted - 1 & p.descriptors - 1].pieces += 1
    piece = q.pieces[s.piece_tail & stages.PIECES - 1]
    piece.address = address
    piece.length = length
    s.piece_tail += 1


@rule
def feed(p: Any, s: Any, q: Any, rows: Any, at: int) -> int:
    """Let rows enter from number `at` on, until there is no room for what comes out, or no row any more; returns the
    number of the next row. A send whose ring is full waits until it is not; -1: it never will be."""
    count = rows.shape[0]
    while at < count:
        first = rows[at]
        edge = max(first.edge, s.entered)
        if not stages.advance(p, s, q, edge - 1):
            return at
        channel = first.channel
        if first.kind == ARRIVE:
            q.channels[channel].rx_posted += 1
            stages.arrive(p, s, q, edge, channel, first.length, s.arrived)
            s.arrived += 1
            s.entered = edge
            at += 1
            continue
        room = q.channels[channel].ring_slots + q.channels[channel].consumed - q.channels[channel].producer
        slots = 0
        while at < count:
            row = rows[at]
            if row.kind != SEND or row.channel != channel or row.edge > edge or slots + row.slots > room:
                break
            put_send(p, s, q, channel, row.length, row.mss, row.inline, row.sums, row.slots, 1)
            if row.length > 0:
                put_piece(p, s, q, channel, row.address, row.length)
            slots += row.slots
            at += 1
        if slots > 0:
            s.entered = edge
            stages.ring_bell(p, s, q, edge, channel, slots)
            continue
        s.waits = 1 + channel
        goes_on = stages.advance(p, s, q, stages.NEVER - 1)
        if s.waits:
            s.waits = 0
            return -1 if goes_on else at
        s.entered = max(s.entered, s.next_at + 1)
    return at


class Kernel:
    """A device without bytes.

    Parameters: the device, the host bus and the MAC (`cosim.engines.bus.BusTiming` and `cosim.mac.MacTiming` are such).
    `ring_log2`: of all submission rings. `buffers`: receive buffers that are posted of each channel before the first
    frame arrives; each frame that arrives posts one more.
    """

    def __init__(self, model: DeviceModel, bus: BusModel, mac: MacModel, *, ring_log2: int | None = None,
                 buffers: int = 4096) -> None:
        arrays = state.parameters(model, bus, mac), state.numbers(bus), state.queues(model)
        self._p, self._s, self._q = (array.view(np.recarray)[0] for array in arrays)
        self._q["channels"]["ring_slots"] = 1 << (model.config.max_ring_log2 if ring_log2 is None else ring_log2)
        if buffers:
            for channel in range(model.config.channels):
                stages.post_buffers(self._p, self._s, self._q, 0, channel, buffers)

    def run(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """What comes out, block by block, and then what is left when nothing enters any more. Raises ValueError for a
        send that no ring has room for."""
        for block in blocks:
            rows, at = block.view(np.recarray), 0
            while at < len(rows):
                at = feed(self._p, self._s, self._q, rows, at)
                if at < 0:
                    raise ValueError("a send has more slots than its ring")
                yield self._taken()
        while not stages.advance(self._p, self._s, self._q, stages.NEVER - 1):
            yield self._taken()
        yield self._taken()

    def _taken(self) -> np.ndarray:
        out = np.array(self._q.out[: self._s.out_count])
        self._s.out_count = 0
        return out


def frames(events: np.ndarray) -> np.ndarray:
    """Rows of frames that were sent: channel, send, first beat, last beat, number in its send."""
    return events[events[:, 0] == stages.FRAME, 1:]


def completions(events: np.ndarray) -> np.ndarray:
    """Rows of completions: channel, send or frame, the write's last beat, when it is in memory, when it is told. A
    receive's number has `stages.RECEIVE` in it."""
    found = events[events[:, 0] == stages.COMPLETED, 1:]
    return found[found[:, 1] >= 0]
