"""The compiled transactors as Python sees them: `cosim/transactors/interface.cpp` and `engine.cpp` by ctypes.

The structures here are those of the same names in C++, field by field; all are made of 64-bit numbers, and of pairs of
32-bit numbers.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import IntEnum, IntFlag
from typing import NamedTuple

import msgspec

from cosim.engines.bus import BusTiming
from cosim.engines.stall import ProbeNames
from cosim.mac import MacTiming, SentFrame
from nic_model.contract import MAX_FRAME_BYTES

WORD_BITS = 32

JUDGE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64, ctypes.c_uint64, ctypes.c_int)


class Stop(IntFlag):
    """Why the host is called; `enum Stop` in `transactors.h` has the words."""

    INTERRUPT = 1
    READ = 2
    FRAMES = 4
    LIMIT = 8
    DEAD = 16
    STUCK = 32
    BROKEN = 64
    BUDGET = 128
    FATAL = 256
    MESSAGE = 512


class PortEventKind(IntEnum):
    """What crossed a port of the device; the comment says what `PortEvent.number` is."""

    DOORBELL = 0  # address in the driver's view; the last beat of a write to a doorbell page
    READ = 1  # address of a DMA read that the device asks for
    DATA = 2  # 1 for the last beat of a read, 0 for others
    WRITE = 3  # address of the first byte of a DMA write whose last beat leaves
    WRITTEN = 4  # response to a write
    SEND = 5  # 0; the first beat of a frame to the MAC
    SENT = 6  # beats of the frame; its last
    ARRIVE = 7  # 0; the first beat of a frame from the MAC
    ARRIVED = 8  # beats of the frame; its last


class BusSettings(ctypes.Structure):
    """`BusSettings` in bus.h."""

    _fields_ = [(name, ctypes.c_int64) for name in (
        "read_latency_cycles", "write_latency_cycles", "mmio_read_cycles", "mmio_write_cycles", "fractions_per_byte",
        "duplex", "tlp_overhead_bytes", "max_payload_bytes", "max_read_request_bytes", "tags", "reorder_cycles",
        "interleave")] + [("seed", ctypes.c_uint64)]


class MacSettings(ctypes.Structure):
    """`MacSettings` in mac.h."""

    _fields_ = [(name, ctypes.c_int64) for name in (
        "bit_rate", "overhead_bytes", "gap_bytes", "min_frame_bytes", "max_frame_bytes", "fifo_bytes", "jitter_ps",
        "lookahead_ps", "sink_percent", "source_percent", "source_gap_cycles")] + [("seed", ctypes.c_uint64)]


class Status(ctypes.Structure):
    """`Status` in transactors.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("now_ps", "next_ps", "edge", "cycles")), ("irq", ctypes.c_uint64),
        ("error_irq", ctypes.c_uint32), ("stop", ctypes.c_uint32),
        *((name, ctypes.c_int64) for name in (
            "interrupts", "dma_read_bytes", "dma_write_bytes", "reads_in_flight", "most_reads_in_flight",
            "frames_sent", "frames_received", "error_completions", "frames_waiting",
            "reads_waiting", "bursts_waiting", "rises_waiting")),
    ]


_SENT_FRAME = struct.Struct("<5q")
_READ_VALUE = struct.Struct("<qq")
_BURST = struct.Struct("<qQq")
_RISE = struct.Struct("<qq")
_PORT_EVENT = struct.Struct("<qqqQ")
_FRAME_IN = struct.Struct("<qqq")


class Taken(NamedTuple):
    """What has come since the last time."""

    frames: list[SentFrame]
    values: list[tuple[int, int]]
    """(ticket, value) of register reads."""
    bursts: list[tuple[int, bool, int]]
    """(time, is_write, address) of bursts that reached memory, while watched."""
    rises: list[tuple[int, int]]
    """(time, line) of interrupt lines that rose, while watched."""


class PortEvent(NamedTuple):
    """One handshake at a port of the device."""

    edge: int
    """Of the device's clock, at whose rise it happened."""
    kind: PortEventKind
    id: int
    """AXI's, of DMA."""
    number: int


class Library:
    """The functions of a loaded library. `status` is read where it stands, after `open`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.raw = library
        i32, i64, u32, u64 = ctypes.c_int, ctypes.c_int64, ctypes.c_uint32, ctypes.c_uint64
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        for name, arguments in (
            ("open", (pointer, pointer, u64, u64, pointer, pointer, i64)), ("close", ()), ("set_bus", (pointer,)),
            ("take_bus", (i64, i64)),
            ("watch", (JUDGE, i32)), ("write", (i64, u32, text, u32)), ("read", (i64, u32, i64)),
            ("deliver", (i64, text, text)), ("expect", (i64, u64, i32)), ("jump", (i32, i32)),
            ("report", (text, i64)), ("trace", (i32,)), ("take_trace", (pointer,)),
        ):
            function = getattr(library, f"memnic_{name}")
            function.argtypes, function.restype = arguments, None
        if hasattr(library, "memnic_order"):  # of a device with a control port
            library.memnic_order.argtypes, library.memnic_order.restype = (i64, i32, text, u32), None
            library.memnic_told.argtypes, library.memnic_told.restype = (), u32
            library.memnic_hear.argtypes, library.memnic_hear.restype = (pointer,), pointer
            library.memnic_heard.argtypes, library.memnic_heard.restype = (u32,), None
        library.memnic_take.argtypes, library.memnic_take.restype = (pointer,) * 4, pointer
        library.memnic_traced.restype = i64
        library.memnic_status.restype = ctypes.POINTER(Status)
        library.memnic_probes.restype = ctypes.POINTER(u32)
        library.memnic_probe_names.restype = text
        self.write, self.read = library.memnic_write, library.memnic_read
        """`write(now_ps, address, data, length)`, `read(now_ps, address, ticket)`: a register access begins."""
        self.take_bus = library.memnic_take_bus
        """`take_bus(now_ps, fractions)`: from the next edge on, DMA waits for so many 1 / 2^20 of a cycle."""
        self.expect = library.memnic_expect
        """`expect(limit_ps, lines, error)`: what the host waits for, before the device goes on."""
        self.jump = library.memnic_jump
        """`jump(jump, jump_here)`: whether to jump over idle time, anywhere and in a wave's window."""
        self.close = library.memnic_close
        self.status = Status()
        self._judge = JUDGE()

    def open(self, bus: BusTiming, mac: MacTiming, base: int, reads_from: bytearray, writes_to: bytearray,
             stuck_cycles: int) -> None:
        """Make the transactors. The buffers are host memory: what the device reads, and what its writes go to."""
        buffer = ctypes.c_uint8 * len(writes_to)
        self._buffers = buffer.from_buffer(reads_from), buffer.from_buffer(writes_to)
        reads, writes = (ctypes.addressof(b) for b in self._buffers)
        self.raw.memnic_open(ctypes.byref(bus_settings(bus)), ctypes.byref(mac_settings(mac)), base, len(writes_to),
                             reads, writes, stuck_cycles)
        self.status = self.raw.memnic_status().contents

    def set_bus(self, bus: BusTiming) -> None:
        """Other timing from now on."""
        self.raw.memnic_set_bus(ctypes.byref(bus_settings(bus)))

    def watch(self, judge: Callable[[int, int, bool], bool] | None, *, watched: bool) -> None:
        """`judge(time_ps, address, is_write)` decides which bursts fail; bursts and rises are kept if `watched`."""
        self._judge = JUDGE(lambda time, address, write: judge(time, address, bool(write))) if judge else JUDGE()
        self.raw.memnic_watch(self._judge, watched)

    def deliver(self, frames: Sequence[tuple[int, bytes, bool]]) -> None:
        """Frames for the device, each with the time of its last bit and its bad-frame flag; times do not fall."""
        heads = b"".join(_FRAME_IN.pack(time, len(data), bad) for time, data, bad in frames)
        self.raw.memnic_deliver(len(frames), heads, b"".join(data for _, data, _ in frames))

    def take(self) -> Taken:
        """What has come since the last time."""
        status = self.status
        heads = _room(_SENT_FRAME.size * status.frames_waiting)
        values = _room(_READ_VALUE.size * status.reads_waiting)
        bursts = _room(_BURST.size * status.bursts_waiting)
        rises = _room(_RISE.size * status.rises_waiting)
        at = self.raw.memnic_take(heads, values, bursts, rises)
        sent = list(_SENT_FRAME.iter_unpack(heads or b""))
        data = ctypes.string_at(at, sum(head[0] for head in sent))  # one call for all: each costs more than its bytes
        frames, begin = [], 0
        for length, *times in sent:
            frames.append(SentFrame(data[begin:begin + length], *times))
            begin += length
        return Taken(frames, list(_READ_VALUE.iter_unpack(values or b"")),
                     [(time, bool(write), address) for time, address, write in _BURST.iter_unpack(bursts or b"")],
                     list(_RISE.iter_unpack(rises or b"")))

    def order(self, now_ps: int, message: bytes, *, is_emit: bool) -> None:
        """A message down the control port: to its emit stream, or to release."""
        self.raw.memnic_order(now_ps, is_emit, message, len(message))

    def hear(self) -> list[bytes]:
        """The messages that have come up since the last time."""
        lengths = (ctypes.c_uint32 * self.raw.memnic_told())()
        at = self.raw.memnic_hear(lengths)
        data, messages, begin = ctypes.string_at(at, sum(lengths)), [], 0
        for length in lengths:
            messages.append(data[begin:begin + length])
            begin += length
        return messages

    def heard(self, messages: int) -> None:
        """The decider has taken so many of those that were heard: others may come."""
        self.raw.memnic_heard(messages)

    def trace(self, *, on: bool) -> None:
        """Keep what crosses the device's ports from now on, or no longer; for benches that count cycles."""
        self.raw.memnic_trace(on)

    def take_trace(self) -> list[PortEvent]:
        """What has been kept since the last time, in order but for writes whose data came before their address."""
        events = ctypes.create_string_buffer(_PORT_EVENT.size * self.raw.memnic_traced())
        self.raw.memnic_take_trace(events)
        return [PortEvent(edge, PortEventKind(kind), number_id, number)
                for edge, kind, number_id, number in _PORT_EVENT.iter_unpack(events.raw)]

    def report(self) -> str:
        """What is under way at the device's ports, and what waits inside it once it has stopped for good, in words."""
        text = ctypes.create_string_buffer(1000)
        self.raw.memnic_report(text, len(text))
        return "; ".join(filter(None, [text.value.decode(), *self._waiting()]))

    def _waiting(self) -> list[str]:
        """What waits inside the device, by name."""
        words = self.raw.memnic_probes()
        if not words:
            return []
        names = msgspec.json.decode(self.raw.memnic_probe_names(), type=ProbeNames)
        count = -(-names.width // WORD_BITS)
        return names.waiting(sum(words[index] << WORD_BITS * index for index in range(count)))


def _room(size: int) -> ctypes.Array[ctypes.c_char] | None:
    """Memory for something to come; none for nothing, which is the most frequent."""
    return ctypes.create_string_buffer(size) if size else None


def bus_settings(timing: BusTiming) -> BusSettings:
    """A bus's timing as C++ has it."""
    return BusSettings(*(int(getattr(timing, field[0])) for field in BusSettings._fields_))


def mac_settings(timing: MacTiming) -> MacSettings:
    """A MAC's timing as C++ has it."""
    values = {**asdict(timing), "max_frame_bytes": MAX_FRAME_BYTES}
    return MacSettings(*(values[field[0]] for field in MacSettings._fields_))
