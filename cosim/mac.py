"""Seam 3: frames between a device and the wire. Whole Ethernet frames without FCS, each with its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Mac(Protocol):
    """What the wire offers to a device: the MAC's transmit FIFO, and frames that arrive.

    A device sets `deliver`; the wire calls it in kernel time when a frame's last bit has arrived.
    """

    deliver: Callable[[bytes, bool], None]
    """`deliver(frame, bad)`: a frame for the device; `bad` is the MAC's bad-frame flag."""

    on_room: Callable[[], None]
    """Called when `has_room` becomes true again."""

    def has_room(self) -> bool:
        """Whether the transmit FIFO takes another frame. The device holds its stream (tready low) while it does not."""

    def transmit(self, frame: bytes) -> None:
        """A whole frame from the device, at the present kernel time. Raises RuntimeError when there is no room."""
