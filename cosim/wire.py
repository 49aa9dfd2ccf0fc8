"""Seam 3 and beyond: the device's MAC, its link, a switch, and a link for each client.

Links are full duplex and equally fast. The switch stores and forwards, learns nothing (each port's address is
given), floods group and unknown addresses, and has memory enough, so that nothing is lost here.
"""

from __future__ import annotations

from collections.abc import Callable

from cosim.machine import PS_PER_SECOND
from cosim.pcapng import PcapngWriter
from host_driver.runtime import Kernel
from nic_model.contract import MAX_FRAME_BYTES

MIN_FRAME_BYTES = 60
"""IEEE 802.3 §3.2.8, without FCS: a MAC pads shorter frames with zeros."""

OVERHEAD_BYTES = 24
"""Preamble and start delimiter 8, FCS 4, interframe gap 12: on the wire with each frame."""

MAC_FIFO_BYTES = 16384
"""Transmit FIFO of the device's MAC."""

_GROUP_BIT = 1


class Link:
    """One direction of a link: frames leave one behind the other, and arrive whole, in order.

    Parameters: `bit_rate`; `propagation_ps`; `deliver(frame)`, called when the last bit has arrived; `sent(frame)`,
    called when the frame has left and the gap behind it is over.
    """

    def __init__(self, kernel: Kernel, *, bit_rate: int, propagation_ps: int, deliver: Callable[[bytes], None],
                 sent: Callable[[bytes], None] | None = None) -> None:
        self._kernel = kernel
        self._bit_rate = bit_rate
        self._propagation_ps = propagation_ps
        self._deliver = deliver
        self._sent = sent
        self._free_at_ps = 0
        self.frames = 0

    def duration_ps(self, length_bytes: int) -> int:
        """Time that so many bytes take on the link, rounded up."""
        return -(-length_bytes * 8 * PS_PER_SECOND // self._bit_rate)

    def transmit(self, frame: bytes) -> None:
        """Send a frame as soon as those before it have left; short ones are padded."""
        kernel = self._kernel
        if len(frame) < MIN_FRAME_BYTES:
            frame = frame.ljust(MIN_FRAME_BYTES, b"\0")
        start_ps = max(kernel.now, self._free_at_ps)
        # The receiver has the frame before the interframe gap; the next frame starts behind the gap.
        last_bit_ps = start_ps + self.duration_ps(len(frame) + OVERHEAD_BYTES - 12)
        self._free_at_ps = start_ps + self.duration_ps(len(frame) + OVERHEAD_BYTES)
        self.frames += 1
        kernel.call_at(last_bit_ps + self._propagation_ps, lambda: self._deliver(frame))
        if self._sent is not None:
            sent = self._sent
            kernel.call_at(self._free_at_ps, lambda: sent(frame))


class Wire:
    """The network, and the device's MAC at its end: implements `cosim.mac.Mac`; `attach` adds a client.

    Parameters: `bit_rate` of every link; `propagation_ps` of every link, one way; `fifo_bytes` of the MAC's transmit
    FIFO; `capture`, which gets every frame at the device's end: a sent one when it and the gap behind it have left, a
    received one when its last bit has arrived.
    """

    def __init__(self, kernel: Kernel, *, bit_rate: int, propagation_ps: int = 500_000,
                 fifo_bytes: int = MAC_FIFO_BYTES, capture: PcapngWriter | None = None) -> None:
        self.deliver: Callable[[bytes, bool], None] = _no_device
        self.on_room: Callable[[], None] = _nothing
        self._kernel = kernel
        self._bit_rate = bit_rate
        self._propagation_ps = propagation_ps
        self._fifo_bytes = fifo_bytes
        self._queued_bytes = 0
        self._capture = capture
        self._clients: dict[bytes, Link] = {}
        self._from_device = self._link(lambda frame: self._switch(frame, source=None), sent=self._left_device)
        self._to_device = self._link(self._reach_device)

    def has_room(self) -> bool:
        """Whether the MAC's FIFO has room for a frame of any length."""
        return self._queued_bytes + MAX_FRAME_BYTES <= self._fifo_bytes

    def transmit(self, frame: bytes) -> None:
        """A whole frame from the device, now. Raises RuntimeError when there is no room."""
        if not self.has_room():
            raise RuntimeError(f"a frame of {len(frame)} bytes was sent to a full MAC FIFO")
        self._queued_bytes += max(len(frame), MIN_FRAME_BYTES)
        self._from_device.transmit(frame)

    @property
    def frames_from_device(self) -> int:
        """Frames that the device has sent."""
        return self._from_device.frames

    @property
    def frames_to_device(self) -> int:
        """Frames that were sent towards the device."""
        return self._to_device.frames

    def attach(self, address: bytes, deliver: Callable[[bytes], None]) -> Link:
        """A client with a link of its own: `deliver(frame)` takes what arrives; transmit on the result."""
        self._clients[address] = self._link(deliver)
        return self._link(lambda frame: self._switch(frame, source=address))

    def _link(self, deliver: Callable[[bytes], None], sent: Callable[[bytes], None] | None = None) -> Link:
        return Link(self._kernel, bit_rate=self._bit_rate, propagation_ps=self._propagation_ps, deliver=deliver,
                    sent=sent)

    def _left_device(self, frame: bytes) -> None:
        if self._capture is not None:
            self._capture.write(self._kernel.now, frame, outbound=True)
        had_room = self.has_room()
        self._queued_bytes -= len(frame)
        if self.has_room() and not had_room:
            self.on_room()

    def _reach_device(self, frame: bytes) -> None:
        if self._capture is not None:
            self._capture.write(self._kernel.now, frame, outbound=False)
        self.deliver(frame, False)

    def _switch(self, frame: bytes, source: bytes | None) -> None:
        target = frame[:6]
        link = self._clients.get(target)
        if link is not None:
            link.transmit(frame)
            return
        if source is not None:
            self._to_device.transmit(frame)
        if target[0] & _GROUP_BIT:
            for address, client in self._clients.items():
                if address != source:
                    client.transmit(frame)


def _no_device(_frame: bytes, _bad: bool) -> None:
    raise RuntimeError("a frame arrived at a MAC with no device behind it")


def _nothing() -> None:
    return
