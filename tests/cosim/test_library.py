"""What crosses between Python and C++ is laid out alike on both sides."""

from __future__ import annotations

import ctypes
import re
import struct

import pytest

from cosim.builds import TRANSACTORS
from cosim.engines import library
from cosim.engines.compiled import Window

TYPES = {"int64_t": ctypes.c_int64, "uint64_t": ctypes.c_uint64, "uint32_t": ctypes.c_uint32}
CODES = {"int64_t": "q", "uint64_t": "Q"}


def body(kind: str) -> str:
    """What stands between the braces of a struct or an enum, in whichever source has it, without comments."""
    sources = [path.read_text() for path in sorted(TRANSACTORS.iterdir()) if path.suffix in (".h", ".cpp")]
    [found] = [match[1] for text in sources for match in re.finditer(rf"^{kind} \{{\n(.*?)^\}};", text, re.M | re.S)]
    return re.sub(r"//.*", "", found)


def fields(name: str) -> list[tuple[str, str]]:
    """(name, type) of each member, in order."""
    members = []
    for kind, names in re.findall(r"(\w+) ([\w, ]+);", body(f"struct {name}")):
        members += [(member, kind) for member in names.split(", ")]
    assert members
    return members


@pytest.mark.parametrize("structure", [library.BusSettings, library.MacSettings, library.Status, Window])
def test_structures_have_the_same_members(structure: type[ctypes.Structure]) -> None:
    assert list(structure._fields_) == [(name, TYPES[kind]) for name, kind in fields(structure.__name__)]


@pytest.mark.parametrize(("name", "packed"), [
    ("SentFrame", library._SENT_FRAME), ("ReadValue", library._READ_VALUE), ("BurstRecord", library._BURST),
    ("Rise", library._RISE), ("PortEvent", library._PORT_EVENT)])
def test_records_have_the_same_types(name: str, packed: struct.Struct) -> None:
    kinds = "".join(CODES[kind] for _, kind in fields(name))
    assert re.sub(r"(\d+)(\w)", lambda m: int(m[1]) * m[2], packed.format) == f"<{kinds}"


def test_reasons_to_stop_have_the_same_numbers() -> None:
    found = {name: int(value) for name, value in re.findall(r"STOP_(\w+) = (\d+)", body("enum Stop : uint32_t"))}
    assert found == {stop.name: stop.value for stop in library.Stop}


def test_events_of_the_ports_have_the_same_numbers() -> None:
    found = {name: int(value) for name, value in re.findall(r"EVENT_(\w+) = (\d+)",
                                                            body("enum PortEventKind : int64_t"))}
    assert found == {kind.name: kind.value for kind in library.PortEventKind}
