"""Seam 3 and beyond: the device's MAC, its link, a switch, and a link for each client.

Links are full duplex and equally fast. The switch stores and forwards, learns nothing (each port's address is
given), floods group and unknown addresses, and has memory enough, so that nothing is lost here unless the wire is
impaired: then what `cosim.impairments` says happens between the device's link and the switch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from cosim.impairments import BothWays, Path
from cosim.mac import MacTiming, SentFrame
from cosim.machine import PS_PER_SECOND
from cosim.pcapng import PcapngWriter
from host_driver.runtime import Kernel

_GROUP_BIT = 1


class Link:
    """One direction of a link: frames leave one behind the other, and arrive whole, in order.

    Parameters: `timing` of the link; `propagation_ps`; `arrives(time_ps, frame)`, told at once when a frame's last bit
    will have arrived.
    """

    def __init__(self, kernel: Kernel, *, timing: MacTiming, propagation_ps: int,
                 arrives: Callable[[int, bytes], object]) -> None:
        self._kernel = kernel
        self._timing = timing
        self._propagation_ps = propagation_ps
        self._arrives = arrives
        self._free_at_ps = 0
        self.frames = 0

    def duration_ps(self, length_bytes: int) -> int:
        """Time that so many bytes take on the link, rounded up."""
        return -(-length_bytes * 8 * PS_PER_SECOND // self._timing.bit_rate)

    def transmit(self, frame: bytes) -> None:
        """Send a frame as soon as those before it have left; short ones are padded."""
        timing = self._timing
        if len(frame) < timing.min_frame_bytes:
            frame = frame.ljust(timing.min_frame_bytes, b"\0")
        start_ps = max(self._kernel.now, self._free_at_ps)
        # The receiver has the frame before the interframe gap; the next frame starts behind the gap.
        last_bit_ps = start_ps + self.duration_ps(len(frame) + timing.overhead_bytes - timing.gap_bytes)
        self._free_at_ps = start_ps + self.duration_ps(len(frame) + timing.overhead_bytes)
        self.frames += 1
        self._arrives(last_bit_ps + self._propagation_ps, frame)


class Wire:
    """The network behind the device's MAC: implements `cosim.mac.Mac`; `attach` adds a client.

    Parameters: `bit_rate` of every link; `propagation_ps` of every link, one way; `fifo_bytes` of the MAC's transmit
    FIFO; `capture`, which gets every frame at the device's end: a sent one when it and the gap behind it have left, a
    received one when its last bit has arrived; `impairments`, if frames are to be lost, damaged and so on. Attributes:
    `outbound` and `inbound`, the impaired paths with their counts, as seen from the device; None if they are not.
    """

    def __init__(self, kernel: Kernel, *, bit_rate: int, propagation_ps: int = 500_000,
                 fifo_bytes: int = 16384, capture: PcapngWriter | None = None,
                 impairments: BothWays | None = None) -> None:
        # Nothing that a peer does can come back sooner than the way there takes.
        self.timing = MacTiming(bit_rate=bit_rate, fifo_bytes=fifo_bytes, lookahead_ps=propagation_ps)
        self.deliver: Callable[[bytes, bool, int], None] = _no_device
        self.frames_from_device = 0
        """Frames that the device has sent."""
        self._kernel = kernel
        self._propagation_ps = propagation_ps
        self._capture = capture
        self._clients: dict[bytes, Link] = {}
        self._to_device = self._link(self._reach_device)
        self.outbound: Path | None = impairments.path(outbound=True) if impairments else None
        self.inbound: Path | None = impairments.path(outbound=False) if impairments else None

    def transmitted(self, frames: Sequence[SentFrame]) -> None:
        """Frames from the device, with their times."""
        self.frames_from_device += len(frames)
        for frame in frames:
            data = frame.data.ljust(self.timing.min_frame_bytes, b"\0")
            if self._capture is not None:
                self._capture.write(frame.free_ps, data, outbound=True)
            arrives_ps = frame.end_ps + self._propagation_ps
            if self.outbound is None:
                self._kernel.call_at(arrives_ps, partial(self._switch, data, source=None))
                continue
            for time_ps, copy in self.outbound.through(arrives_ps, data):
                self._kernel.call_at(time_ps, partial(self._switch, copy, source=None))
        self._settle()

    @property
    def frames_to_device(self) -> int:
        """Frames that were sent towards the device."""
        return self._to_device.frames

    def attach(self, address: bytes, deliver: Callable[[bytes], None]) -> Link:
        """A client with a link of its own: `deliver(frame)` takes what arrives; transmit on the result."""
        kernel = self._kernel
        self._clients[address] = self._link(lambda time_ps, frame: kernel.call_at(time_ps, lambda: deliver(frame)))
        return self._link(lambda time_ps, frame: kernel.call_at(time_ps, lambda: self._switch(frame, source=address)))

    def _link(self, arrives: Callable[[int, bytes], object]) -> Link:
        return Link(self._kernel, timing=self.timing, propagation_ps=self._propagation_ps, arrives=arrives)

    def _reach_device(self, time_ps: int, frame: bytes) -> None:
        if self._capture is not None:
            self._capture.write(time_ps, frame, outbound=False)
            self._settle()
        self.deliver(frame, False, time_ps)

    def _settle(self) -> None:
        """The capture may keep what no earlier frame can follow: the host hears of a frame late by the lookahead."""
        if self._capture is not None:
            self._capture.settle(self._kernel.now - self.timing.lookahead_ps)

    def _switch(self, frame: bytes, source: bytes | None) -> None:
        target = frame[:6]
        link = self._clients.get(target)
        if link is not None:
            link.transmit(frame)
            return
        if source is not None:
            self._send_to_device(frame)
        if target[0] & _GROUP_BIT:
            for address, client in self._clients.items():
                if address != source:
                    client.transmit(frame)

    def _send_to_device(self, frame: bytes) -> None:
        if self.inbound is None:
            self._to_device.transmit(frame)
            return
        for time_ps, copy in self.inbound.through(self._kernel.now, frame):
            self._kernel.call_at(time_ps, partial(self._to_device.transmit, copy))


def _no_device(_frame: bytes, _bad: bool, _time_ps: int) -> None:
    raise RuntimeError("a frame arrived at a MAC with no device behind it")
