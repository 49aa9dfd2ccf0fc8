"""Writes captures that Wireshark opens: pcapng, one Ethernet interface, nanosecond timestamps, in order of time."""

# Ref: draft-ietf-opsawg-pcapng §4.1 (section header), §4.2 (interface), §4.3 (enhanced packet)

from __future__ import annotations

import heapq
import struct
from pathlib import Path
from types import TracebackType

_SECTION_HEADER = 0x0A0D0D0A
_INTERFACE = 1
_ENHANCED_PACKET = 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_LINKTYPE_ETHERNET = 1
_OPTION_END = 0
_OPTION_IF_NAME = 2
_OPTION_IF_TSRESOL = 9
_OPTION_EPB_FLAGS = 2
_NANOSECONDS = 9
_INBOUND, _OUTBOUND = 1, 2

_FLAGS_OPTIONS = {outbound: struct.pack("<HHIHH", _OPTION_EPB_FLAGS, 4, _OUTBOUND if outbound else _INBOUND,
                                        _OPTION_END, 0) for outbound in (False, True)}
_EPB = struct.Struct("<IIIIIII")
_EPB_BYTES_WITHOUT_DATA = _EPB.size + len(_FLAGS_OPTIONS[True]) + 4


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, data: bytes) -> bytes:
    return struct.pack("<HH", code, len(data)) + _padded(data)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


class PcapngWriter:
    """A capture file, buffered. `write` adds a frame; `close`, or the end of a `with`, flushes it.

    Frames may be added somewhat out of order: they wait until `settle` says that none can come before them.

    Raises OSError when the file cannot be written.
    """

    def __init__(self, path: Path, interface: str) -> None:
        self._file = path.open("wb", buffering=1 << 18)
        self.frames = 0
        self._waiting: list[tuple[int, int, bytes, bool]] = []
        # Section length -1: unknown, the reader goes on to the file's end.
        self._file.write(_block(_SECTION_HEADER, struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1)))
        options = (_option(_OPTION_IF_NAME, interface.encode()) + _option(_OPTION_IF_TSRESOL, bytes([_NANOSECONDS]))
                   + _option(_OPTION_END, b""))
        self._file.write(_block(_INTERFACE, struct.pack("<HHI", _LINKTYPE_ETHERNET, 0, 0) + options))

    def write(self, time_ps: int, frame: bytes, *, outbound: bool) -> None:
        """A frame without FCS that passed at `time_ps`; outbound as seen from the device."""
        self.frames += 1
        heapq.heappush(self._waiting, (time_ps, self.frames, frame, outbound))

    def settle(self, time_ps: int) -> None:
        """No frame will be added that passed at `time_ps` or before."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= time_ps:
            time, _, frame, outbound = heapq.heappop(waiting)
            self._keep(time, frame, outbound)

    def _keep(self, time_ps: int, frame: bytes, outbound: bool) -> None:
        time_ns = time_ps // 1000
        size = len(frame)
        padding = -size % 4
        length = _EPB_BYTES_WITHOUT_DATA + size + padding
        self._file.write(b"".join((
            _EPB.pack(_ENHANCED_PACKET, length, 0, time_ns >> 32, time_ns & 0xFFFF_FFFF, size, size),
            frame, bytes(padding), _FLAGS_OPTIONS[outbound], struct.pack("<I", length))))

    def close(self) -> None:
        """Flush and close. Closing again does nothing."""
        if not self._file.closed:
            try:
                self.settle(max((time for time, *_ in self._waiting), default=0))
            finally:
                self._file.close()

    def __enter__(self) -> PcapngWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
