"""The contract: sizes that cannot be built are refused, fields keep their places, the documents name all of it."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nic_model.contract import (
    CHANNEL_STATUS,
    COMPLETION,
    CONFIGS,
    COUNTERS,
    COUNTERS_BASE,
    DOORBELL_BASE,
    KEY_COMMIT,
    MAX_KEYS,
    PIECE,
    REGISTER_SPACE_BYTES,
    REGISTERS,
    RSS_INDIRECTION_ENTRIES,
    SUBMISSION_HEAD,
    ChannelError,
    ChannelState,
    KeyRight,
    NicConfig,
    channel_register,
    documents,
    indirection_register,
    key_register,
    register,
    steering_register,
    vector_register,
)
from nic_model.contract.control import (
    CONTROL_COUNTERS,
    CONTROL_HEADER,
    CONTROL_LAYOUTS,
    EMIT_TYPES,
    LAYOUT_OF,
    RELEASE_TYPES,
    UP_TYPES,
    ControlType,
    OrderFlag,
    pack_message,
    unpack_message,
)
from nic_model.contract.registers import Block
from nic_model.contract.sockets import SOCKET_COMPLETION, SOCKET_HEAD

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("field", "value", "said"), [
    ("keys", 2 * MAX_KEYS, "keys must be a power of two from 16 to 2048"),
    ("keys", 48, "keys must be"),
    ("channels", 128, "channels must be a power of two from 4 to 64"),
    ("vectors", 3, "vectors must be"),
    ("max_ring_log2", 16, "max_ring_log2 must be 4 to 15"),
    ("mac_bytes", 12, "mac_bytes must be"),
    ("host_bytes", 128, "host_bytes must be"),
    ("payload_reads", 33, "payload_reads must be"),
    ("clock_hz", 0, "clock_hz must be"),
    ("rx_buffer_bytes", 8192, "rx_buffer_bytes must be"),
    ("flow_rules", 8, "flow_rules must be a power of two from 16 to 2048"),
    ("flow_rules", 96, "flow_rules must be"),
    ("flows", 8, "flows must be 0, or a power of two from 16 to 16384"),
    ("control_cells", 35, "control_cells must be at least 36"),
    ("control_handles", 300, "control_handles must be a power of two from 16 to 4096"),
])
def test_a_device_that_cannot_be_built(field: str, value: int, said: str) -> None:
    with pytest.raises(ValueError, match=f"device 'x': {said}.* not {value}"):
        NicConfig(name="x", **{field: value})


def test_the_largest_device_fits_the_register_space() -> None:
    config = NicConfig(name="largest", mac_bytes=64, channels=64, vectors=64, keys=MAX_KEYS)
    blocks: dict[Block, list[int]] = {block: [] for block in Block}
    for r in REGISTERS.values():
        first, last = {
            Block.GLOBAL: lambda name: (register(name),) * 2,
            Block.STEERING: lambda name: (steering_register(name),) * 2,
            Block.INDIRECTION: lambda _: (indirection_register(0), indirection_register(RSS_INDIRECTION_ENTRIES - 1)),
            Block.VECTOR: lambda name: (vector_register(name, 0), vector_register(name, config.vectors - 1)),
            Block.CHANNEL: lambda name: (channel_register(name, 0), channel_register(name, config.channels - 1)),
            Block.KEY: lambda name: (key_register(name, 0), key_register(name, config.keys - 1)),
            Block.DOORBELL: lambda _: (DOORBELL_BASE, DOORBELL_BASE),
        }[r.block](r.name)
        blocks[r.block] += [first, last]
    ranges = sorted([(min(a), max(a) + 4) for a in blocks.values()]
                    + [(COUNTERS_BASE, COUNTERS_BASE + 8 * len(COUNTERS + CONTROL_COUNTERS))])
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges)), ranges
    assert ranges[-2][1] <= REGISTER_SPACE_BYTES <= DOORBELL_BASE


def test_register_layouts_by_hand() -> None:
    # Written out as numbers, so that a field cannot move unseen.
    assert KEY_COMMIT.pack_word(generation=0xABC, rights=KeyRight.WRITE, owner=63, valid=1) == 0x803F_2ABC
    assert KEY_COMMIT.unpack_word(0x803F_2ABC) == {"generation": 0xABC, "rights": 2, "owner": 63, "valid": 1}
    assert CHANNEL_STATUS.pack_word(state=ChannelState.ERROR, error=ChannelError.FETCH_BUS_ERROR) == 0x0403
    with pytest.raises(ValueError, match="owner must fit 8 bits, not 256"):
        KEY_COMMIT.pack_word(owner=256)
    with pytest.raises(ValueError, match="no field 'length'"):
        KEY_COMMIT.pack(length=1)


def test_documents_name_everything() -> None:
    text, header = documents.markdown(), documents.c_header()
    for name in [*REGISTERS, *(counter.name for counter in COUNTERS), *documents.LIMITS]:
        assert f"`{name}`" in text
    for kind in documents.CODES:
        assert f"### {kind.__name__}" in text
        for member in kind:
            assert re.search(rf"#define MEMNIC_\w+_{member.name} {member.value:#x}u", header)
    for name in documents.LIMITS:
        assert f"#define MEMNIC_{name} " in header


def test_register_document_is_current() -> None:
    written = (ROOT / "docs" / "registers.md").read_text(encoding="utf-8")
    assert written == documents.markdown(CONFIGS["default"]), (
        "write it anew: memnic regs --device default > docs/registers.md")


def test_control_port_document_is_current() -> None:
    written = (ROOT / "docs" / "control_port.md").read_text(encoding="utf-8")
    assert written == documents.control_port_markdown(), (
        "write it anew: memnic regs --part control-port > docs/control_port.md")
    for layout in CONTROL_LAYOUTS:
        assert all(f"`{name}`" in written for name in layout.fields)


def test_no_field_of_a_control_message_crosses_a_beat_unless_it_is_whole_beats() -> None:
    for layout in CONTROL_LAYOUTS:
        assert layout.size_bytes % 64 == 0
        for name, field in layout.fields.items():
            first, last = field.offset // 128, (field.offset + field.width - 1) // 128
            assert first == last or field.offset % 128 == 0, f"{layout.name}.{name}"


def test_all_messages_begin_alike_and_those_up_tell_time_and_credits_alike() -> None:
    assert {*UP_TYPES, *RELEASE_TYPES, *EMIT_TYPES} == set(ControlType) == set(LAYOUT_OF)
    for kind, layout in LAYOUT_OF.items():
        assert dict(list(layout.fields.items())[: len(CONTROL_HEADER.fields)]) == CONTROL_HEADER.fields
        assert (kind in UP_TYPES) == ("emit_credits" in layout.fields) == ("time" in layout.fields)
        if kind in UP_TYPES:
            assert layout.fields["emit_credits"].offset == 15 * 8
            assert layout.fields["time"].offset == 32 * 8


def test_control_messages_by_hand() -> None:
    # Written out as bytes, so that a field cannot move unseen.
    flags = OrderFlag.DONE | OrderFlag.LAST
    place = pack_message(ControlType.PLACE, flow=0x0102, generation=3, tag=0x0405, flags=flags,
                         handle=0x678, skip=0x9ABCD, length=0x54321, offset=0x1122334455, key=0xABCDEF)
    assert place == bytes.fromhex(
        "10" "11" "0201" "03" "0504" "05" "7806" "cdab09" "214305" "5544332211" "efcdab".replace(" ", "")) + bytes(40)
    kind, fields, further = unpack_message(place)
    assert (kind, fields["handle"], fields["skip"], fields["units"]) == (ControlType.PLACE, 0x678, 0x9ABCD, 1)
    assert further == b""
    emit = pack_message(ControlType.EMIT, b"\1" * 4, flow=1, length=100, pieces=2, option_words=1, tcp_flags=0x118,
                        key_1=7, offset_1=9, length_1=60)
    assert (len(emit), emit[1], emit[28:30], emit[31]) == (128, 0x12, b"\x18\x01", 1)
    assert emit[48:60] == bytes((9, 0, 0, 0, 0, 7, 0, 0, 60, 0, 0, 0))
    assert emit[64:70] == b"\1\1\1\1\0\0"


@pytest.mark.parametrize(("message", "said"), [
    (b"", "has version 1, not 0"),
    (bytes(64), "has version 1, not 0"),
    (b"\x77\x11" + bytes(62), "119 is not a valid ControlType"),
    (b"\x10\x12" + bytes(62), "place says that it has 2 units, and has 64 bytes"),
    (b"\x13\x11" + bytes(62), "flow says that it has 1 units, and has 64 bytes"),
])
def test_what_is_no_control_message(message: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        unpack_message(message)


def test_a_socket_operation_is_read_as_any_descriptor_and_completed_as_any() -> None:
    for name in ("opcode", "slots", "tag", "inline_bytes", "pieces"):
        assert SOCKET_HEAD.fields[name][:2] == SUBMISSION_HEAD.fields[name][:2]
    for name in ("offset", "key"):
        piece = PIECE.fields[name]
        assert SOCKET_HEAD.fields[name][:2] == (8 * SUBMISSION_HEAD.size_bytes + piece.offset, piece.width)
    for name in ("kind", "status", "tag", "length", "phase"):
        assert SOCKET_COMPLETION.fields[name][:2] == COMPLETION.fields[name][:2]


def test_c_header_compiles_without_a_name_twice(tmp_path: Path) -> None:
    names = re.findall(r"^#define (\w+)", documents.c_header(), re.MULTILINE)
    assert len(names) == len(set(names)) > 100
    compiler = shutil.which("g++")
    assert compiler is not None, "make setup asks for g++"
    (tmp_path / "contract.h").write_text(documents.c_header(), encoding="utf-8")
    probe = tmp_path / "probe.cpp"
    probe.write_text(
        '#include "contract.h"\n#include "contract.h"\n'
        f"static_assert(MEMNIC_KEY_COMMIT(3) == {key_register('KEY_COMMIT', 3)}u, \"\");\n"
        f"static_assert(MEMNIC_KEY_COMMIT_OWNER_BIT == {KEY_COMMIT.fields['owner'].offset}u, \"\");\n",
        encoding="utf-8")
    subprocess.run([compiler, "-Wall", "-Werror", "-fsyntax-only", probe], check=True, timeout=60)
