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
    CONFIGS,
    COUNTERS,
    COUNTERS_BASE,
    DOORBELL_BASE,
    KEY_COMMIT,
    MAX_KEYS,
    REGISTER_SPACE_BYTES,
    REGISTERS,
    RSS_INDIRECTION_ENTRIES,
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
from nic_model.contract.registers import Block

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
                    + [(COUNTERS_BASE, COUNTERS_BASE + 8 * len(COUNTERS))])
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
