"""The MAC of a device that is not the one under study: at a link of the switch, as a client is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from cosim.mac import SentFrame
from cosim.wire import Wire
from host_driver.runtime import Kernel


class PeerMac:
    """Implements `cosim.mac.Mac`."""

    def __init__(self, kernel: Kernel, wire: Wire, address: bytes) -> None:
        self.timing = wire.timing
        self.deliver: Callable[[bytes, bool, int], None] = lambda frame, bad, time_ps: None
        self._kernel = kernel
        self._link = wire.attach(address, lambda frame: self.deliver(frame, False, kernel.now))

    def transmitted(self, frames: Sequence[SentFrame]) -> None:
        """The link takes the frame's time."""
        for frame in frames:
            self._kernel.call_at(frame.start_ps, partial(self._link.transmit, frame.data))
