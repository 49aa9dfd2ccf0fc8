"""Verilog of a device or of one of its blocks."""

import re

from amaranth.back import verilog
from amaranth.hdl import Value
from amaranth.lib.io import Direction

from nic_model.contract import NicConfig
from rtl.nic import Nic
from rtl.simulation import SimulationTop, streams

AXI_CONSTANTS = {"burst": (2, 1), "lock": (1, 0), "cache": (4, 3), "prot": (3, 0)}


def nic_verilog(config: NicConfig) -> str:
    """The device with the port names that AMBA tools look for (`s_axil_*`, `s_axi_*`, `m_axi_*`, `m_axis_tx_*`,
    `s_axis_rx_*`), clock `clk` and synchronous active-high reset `rst`."""
    nic = Nic(config)
    ports = {
        "irq": (nic.irq, Direction.Output), "now": (nic.now, Direction.Input), "quiet": (nic.quiet, Direction.Output),
        "next_deadline": (nic.next_deadline, Direction.Output),
        "deadline_valid": (nic.deadline_valid, Direction.Output),
    }
    for name, port in streams(nic).items():
        leaves = name in _LEAVES
        joint = "" if name.startswith(("m_axi_", "s_axi_", "s_axil_")) else "_t"
        outwards, inwards = (Direction.Output, Direction.Input) if leaves else (Direction.Input, Direction.Output)
        for field, _ in port.payload.shape():
            ports[f"{name}{joint}{field}"] = (Value.cast(port.payload[field]), outwards)
        ports[f"{name}{joint}valid"] = (port.valid, outwards)
        ports[f"{name}{joint}ready"] = (port.ready, inwards)
    return verilog.convert(nic, name="memnic", ports=ports, emit_src=False)


_LEAVES = {"m_axi_ar", "m_axi_aw", "m_axi_w", "m_axis_tx", "s_axil_b", "s_axil_r", "s_axi_b", "s_axi_r"}


def simulation_verilog(config: NicConfig) -> str:
    """The device behind `SimulationTop`, for the cocotb engine; module name `simulation_top`."""
    return verilog.convert(SimulationTop(config), name="simulation_top", emit_src=False)


_STARTER = re.compile(r"reg (\\\S*verilog_backend\S*)\s*= 0;")
"""Yosys lets every `always @*` depend on a register that is set once, so that each runs at least once."""


def for_icarus(text: str) -> str:
    """Verilog that Icarus starts as Yosys meant it: with `-g2012` an initial value in a declaration is no event, and
    an `always @*` that depends on constants alone would leave its targets at X."""
    return _STARTER.sub(r"reg \1 ; initial \1 <= 0;", text)
