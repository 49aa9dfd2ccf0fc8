"""`memnic regs`, `verilog` and `synth`: what they write, judged by other tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cosim import cli
from nic_model.contract import COMPLETION, CONFIGS, COUNTERS, REGISTERS, Status

DOCUMENT = Path(__file__).parents[2] / "docs" / "registers.md"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints on standard output; nothing must stand on standard error."""
    assert cli.run(list(arguments)) == 0
    out = capsys.readouterr()
    assert out.err == ""
    return out.out


def test_regs_prints_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    written = printed(capsys, "regs", "--format", "markdown", "--device", "default")
    assert written == DOCUMENT.read_text(encoding="utf-8")


def test_regs_prints_every_register_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "regs").partition("\n## Counters")[0]
    rows = re.findall(r"^\| 0x[0-9a-f]{3} \| `(\w+)` \| (\w+) \|", text, re.MULTILINE)
    assert sorted(rows) == sorted((r.name, r.access.name) for r in REGISTERS.values())


def test_regs_shows_a_devices_own_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    for config in CONFIGS.values():
        text = printed(capsys, "regs", "--device", config.name)
        shown = dict(re.findall(r"`(CHANNELS|KEYS|HOST_BYTES)` \| RO \| (\w+) \|", text))
        assert {name: int(value, 0) for name, value in shown.items()} == {
            "CHANNELS": config.channels, "KEYS": config.keys, "HOST_BYTES": config.host_bytes}


CHECKS = """
#include "memnic.h"
_Static_assert(MEMNIC_ID == 0, "ID");
_Static_assert(MEMNIC_MAGIC == 0x434e4d4du, "magic");
_Static_assert(MEMNIC_VERSION == 4, "VERSION");
_Static_assert(MEMNIC_CHANNEL_STATUS(3) == 0x4000 + 3 * 0x80 + 4, "a channel's register");
_Static_assert(MEMNIC_TX_DOORBELL(63) == 0x100000 + 63 * 0x1000, "a doorbell");
_Static_assert(MEMNIC_COUNTER_RX_BYTES == 0x400 + 8 * 6, "a counter");
unsigned status_of(const unsigned char *completion) {
    return completion[MEMNIC_COMPLETION_STATUS_BIT / 8] == MEMNIC_STATUS_KEY_BOUNDS;
}
"""
"""Places known from outside of the contract's code: its first release's."""


@pytest.mark.parametrize("standard", ["c99", "c11"])
def test_the_c_header_compiles_and_has_every_register(standard: str, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    header = printed(capsys, "regs", "--format", "c")
    (tmp_path / "memnic.h").write_text(header)
    # Twice, since a header is included more than once; each macro is used, so that a broken one is seen.
    macros = re.findall(r"^#define (MEMNIC_\w+)(\(i\))? ", header, re.MULTILINE)
    uses = [f"unsigned use_{number}(void) {{ return {name}{'(1)' if argument else ''}; }}"
            for number, (name, argument) in enumerate(macros)]
    source = '#include "memnic.h"\n#include "memnic.h"\n' + (CHECKS if standard == "c11" else "") + "\n".join(uses)
    (tmp_path / "use.c").write_text(source)
    gcc = shutil.which("gcc")
    assert gcc is not None
    done = subprocess.run([gcc, f"-std={standard}", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
                           str(tmp_path / "use.c")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = [name for name, _ in macros]
    assert len(set(names)) == len(names)
    for register in REGISTERS.values():
        assert f"MEMNIC_{register.name}" in names
    for counter in COUNTERS:
        assert f"MEMNIC_COUNTER_{counter.name.upper()}" in names
    for field in COMPLETION.fields:
        assert f"MEMNIC_COMPLETION_{field.upper()}_BIT" in names
    for status in Status:
        assert f"MEMNIC_STATUS_{status.name}" in names


def test_verilog_writes_a_file_or_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.v"
    assert printed(capsys, "verilog", "tiny", "-o", str(path)) == ""
    text = path.read_text()
    assert text.count("\nmodule memnic(") == 1
    assert "m_axis_tx_tdata" in text
    assert str(Path(__file__).parents[2]) not in text  # no path of this machine


def test_synth_prints_what_a_block_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "synth", "tiny", "--block", "keys", "--no-route", "--keep", str(tmp_path))
    row = re.search(r"keys +. +([\d,]+) +. +([\d,]+) +. +(\d+) +. +(\d+) +. +- ", out)
    assert row, out
    lut4, flip_flops, block_rams, distributed_rams = (int(text.replace(",", "")) for text in row.groups())
    netlist = (tmp_path / "keys.json").read_text()
    assert flip_flops == netlist.count('"type": "TRELLIS_FF"') > 100
    assert lut4 >= netlist.count('"type": "LUT4"') > 100
    assert block_rams == netlist.count('"type": "DP16KD"') > 0
    assert distributed_rams == netlist.count('"type": "TRELLIS_DPR16X4"')


@pytest.mark.parametrize(("arguments", "message"), [
    (["regs", "--format", "pdf"], "--format must be markdown or c, not 'pdf'"),
    (["regs", "--device", "huge"], "no device 'huge': choose from tiny, default, wide"),
    (["verilog", "huge"], "no device 'huge': choose from tiny, default, wide"),
    (["verilog", "tiny", "--constraints", "{tmp}/c"], "are for --mac-clock"),
    (["verilog", "tiny", "--mac-clock", "--mac-clock-hz", "0"], "--mac-clock-hz must be positive, not 0"),
    (["verilog", "tiny", "-o", "{tmp}/none/x.v"], "none/x.v: No such file or directory"),
    (["synth", "huge"], "no device 'huge': choose from tiny, default, wide"),
    (["synth", "tiny", "--block", "turbo"], "no block 'turbo': choose from nic, registers"),
    (["synth", "tiny", "--block", "keys", "--keep", "{tmp}/file"], "{tmp}/file"),
    (["regs", "--colour"], "No such option: --colour"),
])
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.run([argument.replace("{tmp}", str(tmp_path)) for argument in arguments]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith("memnic: ")
    assert message.replace("{tmp}", str(tmp_path)) in out.err
    assert out.err.count("\n") == 1
