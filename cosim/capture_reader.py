"""Reads captures of Ethernet frames: pcap and pcapng, either byte order, micro- or nanoseconds."""

# Ref: draft-ietf-opsawg-pcap §4; draft-ietf-opsawg-pcapng §4.1 (section header), §4.2 (interface), §4.3 (enhanced
# packet), §4.4 (simple packet)

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cosim.errors import InputError

_ETHERNET = 1
"""LINKTYPE_ETHERNET."""

_PCAP = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}
"""Magic number -> nanoseconds in a unit of its times."""

_SECTION_HEADER, _INTERFACE, _SIMPLE_PACKET, _ENHANCED_PACKET = 0x0A0D0D0A, 1, 3, 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_OPTION_IF_TSRESOL = 9


class CapturedFrame(NamedTuple):
    """A frame as it was captured."""

    time_ns: int
    data: bytes
    """What was kept of it."""
    length_bytes: int
    """What it was."""


def read_frames(path: Path) -> Iterator[CapturedFrame]:
    """The frames of a capture, in its order. Raises InputError, naming the file, for what is no capture of Ethernet."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    try:
        if data[:4] == _SECTION_HEADER.to_bytes(4, "big"):
            yield from _read_pcapng(data)
        else:
            yield from _read_pcap(data)
    except _Damaged as error:
        raise InputError(f"{path}: {error}") from error
    except (struct.error, IndexError) as error:
        raise InputError(f"{path}: ends in the middle of a block") from error


class _Damaged(ValueError):
    """What is wrong with a capture."""


def _read_pcap(data: bytes) -> Iterator[CapturedFrame]:
    for order in "<>":
        magic = struct.unpack(order + "I", data[:4].ljust(4, b"\0"))[0]
        if magic in _PCAP:
            break
    else:
        raise _Damaged("neither pcap nor pcapng")
    _check_link(struct.unpack_from(order + "I", data, 20)[0] & 0x0FFF_FFFF)
    at = 24
    while at < len(data):
        seconds, fraction, kept, length = struct.unpack_from(order + "IIII", data, at)
        at += 16
        if at + kept > len(data):
            raise _Damaged("ends in the middle of a frame")
        yield CapturedFrame(seconds * 10**9 + fraction * _PCAP[magic], data[at : at + kept], length)
        at += kept


def _read_pcapng(data: bytes) -> Iterator[CapturedFrame]:
    order, at = "<", 0
    units: list[tuple[int, int]] = []
    """Of each interface: numerator and denominator of nanoseconds in a unit of its times."""
    while at < len(data):
        if data[at : at + 4] == _SECTION_HEADER.to_bytes(4, "big"):
            order = "<" if data[at + 8 : at + 12] == _BYTE_ORDER_MAGIC.to_bytes(4, "little") else ">"
            units = []
        kind, length = struct.unpack_from(order + "II", data, at)
        if length < 12 or at + length > len(data):
            raise _Damaged(f"a block of {length} bytes at {at}, where {len(data) - at} are left")
        body = data[at + 8 : at + length - 4]
        at += length
        if kind == _INTERFACE:
            _check_link(struct.unpack_from(order + "H", body)[0])
            units.append(_resolution(body[8:], order))
        elif kind == _ENHANCED_PACKET:
            interface, high, low, kept, whole = struct.unpack_from(order + "IIIII", body)
            numerator, denominator = units[interface]
            yield CapturedFrame((high << 32 | low) * numerator // denominator, body[20 : 20 + kept], whole)
        elif kind == _SIMPLE_PACKET:
            whole = struct.unpack_from(order + "I", body)[0]
            yield CapturedFrame(0, body[4 : 4 + whole], whole)


def _check_link(kind: int) -> None:
    if kind != _ETHERNET:
        raise _Damaged(f"frames of link type {kind}, where only Ethernet ({_ETHERNET}) can be played")


def _resolution(options: bytes, order: str) -> tuple[int, int]:
    """Nanoseconds in a unit, as a fraction; a microsecond if nothing is said."""
    at = 0
    while at + 4 <= len(options):
        code, length = struct.unpack_from(order + "HH", options, at)
        if code == _OPTION_IF_TSRESOL:
            value = options[at + 4]
            # "If the Most Significant Bit is equal to one, the remaining bits indicate the resolution as a negative
            # power of 2", otherwise of 10.
            return 10**9, 2 ** (value & 0x7F) if value & 0x80 else 10**value
        if code == 0:
            break
        at += 4 + length + -length % 4
    return 1000, 1
