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

from nic_model.contract import MAX_INLINE_BYTES, MAX_PIECE_BYTES, slots_needed
from nic_model.contract.protocols import ETHERNET_HEADER_BYTES, IPV4_HEADER_BYTES, TCP_HEADER_BYTES
from nic_model.timing import rules
from nic_model.timing.entering import ARRIVE, SEND
from nic_model.timing.machine import Machine
from nic_model.timing.parameters import DeviceModel
from nic_model.timing.state import INPUT, BusModel, MacModel

TEMPLATE_BYTES = ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES + TCP_HEADER_BYTES

_SLOTS = np.array([slots_needed(inline, pieces) for inline in range(MAX_INLINE_BYTES + 1) for pieces in (0, 1)])

OUTPUT = ("kind", "a", "b", "c", "d", "e")
"""See `nic_model.timing.rules.put`."""


def sends(edges: Any, channels: Any, payload: Any, *, mss: Any = 0, inline: Any = 0, sums: Any = 0,
          address: Any = 0) -> np.ndarray:
    """Rows of INPUT for sends, from columns or numbers. A send with `mss` has its template of 54 bytes inline."""
    count = max(np.size(column) for column in (edges, channels, payload, mss))
    segmented = np.asarray(mss) > 0
    inline = np.where(segmented, TEMPLATE_BYTES, inline)
    rows = np.empty(count, INPUT)
    rows["edge"], rows["kind"], rows["channel"], rows["length"] = edges, SEND, channels, payload
    rows["mss"], rows["inline"], rows["sums"], rows["address"] = mss, inline, np.where(segmented, 2, sums), address
    rows["slots"] = _SLOTS.take(2 * inline + (np.asarray(payload) > 0))
    if np.max(payload, initial=0) > MAX_PIECE_BYTES:
        raise ValueError(f"a piece is at most {MAX_PIECE_BYTES} bytes, not {np.max(payload)}")
    return rows


def arrivals(edges: Any, channels: Any, lengths: Any) -> np.ndarray:
    """Rows of INPUT for frames that arrive."""
    count = max(np.size(column) for column in (edges, channels, lengths))
    rows = np.zeros(count, INPUT)
    rows["edge"], rows["kind"], rows["channel"], rows["length"] = edges, ARRIVE, channels, lengths
    return rows


class Kernel:
    """A device without bytes.

    Parameters: the device, the host bus and the MAC (`cosim.engines.bus.BusTiming` and `cosim.mac.MacTiming` are such).
    `ring_log2`: of all submission rings. `buffers`: receive buffers that are posted of each channel before the first
    frame arrives; each frame that arrives posts one more. `specialised`: the rules are compiled for this device, bus
    and MAC alone, which takes half a minute once, and makes each frame a tenth faster.
    """

    def __init__(self, model: DeviceModel, bus: BusModel, mac: MacModel, *, ring_log2: int | None = None,
                 buffers: int = 4096, specialised: bool = False) -> None:
        self._machine = Machine(model, bus, mac, specialised=specialised)
        self._machine.tables["channels"]["ring_slots"][:] = 1 << (
            model.config.max_ring_log2 if ring_log2 is None else ring_log2)
        if buffers:
            for channel in range(model.config.channels):
                self._machine.call("post_buffers", 0, channel, buffers)

    def run(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """What comes out, block by block, and then what is left when nothing enters any more. A block holds until the
        next is asked for. Raises ValueError for a send that no ring has room for."""
        machine = self._machine
        for block in blocks:
            at = 0
            while at < len(block):
                at = machine.feed(block, at)
                if at < 0:
                    raise ValueError("a send has more slots than its ring")
                yield machine.taken_rows()
        while not machine.advance(rules.NEVER - 1):
            yield machine.taken_rows()
        yield machine.taken_rows()


def frames(events: np.ndarray) -> np.ndarray:
    """Rows of frames that were sent: channel, send, first beat, last beat, number in its send."""
    return events.take(np.flatnonzero(events[:, 0] == rules.FRAME), axis=0)[:, 1:]


def completions(events: np.ndarray) -> np.ndarray:
    """Rows of completions: channel, send or frame, the write's last beat, when it is in memory, when it is told. A
    receive's number has `stages.RECEIVE` in it."""
    found = events[events[:, 0] == rules.COMPLETED, 1:]
    return found[found[:, 1] >= 0]
