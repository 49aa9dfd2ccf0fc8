"""Verilog of a device or of one of its blocks."""

import re

from amaranth.back import verilog

from nic_model.contract import NicConfig
from rtl.amba import AmbaNic
from rtl.simulation import SimulationTop


def nic_verilog(config: NicConfig) -> str:
    """The device with AMBA's port names (see `rtl.amba.AmbaNic`), for other designs; module name `memnic`."""
    return verilog.convert(AmbaNic(config), name="memnic", emit_src=False)


def simulation_verilog(config: NicConfig) -> str:
    """The device behind `SimulationTop`, for the cocotb engine; module name `simulation_top`."""
    return verilog.convert(SimulationTop(config), name="simulation_top", emit_src=False)


_STARTER = re.compile(r"reg (\\\S*verilog_backend\S*)\s*= 0;")
"""Yosys lets each `always @* begin` depend on a register that is set once, so that the block runs at least once."""

_BARE = re.compile(r"always @\*$", re.MULTILINE)
"""An `always @*` over one assignment, which Yosys writes for bits of a vector, depends on no such register."""


def for_icarus(text: str) -> str:
    """Verilog that Icarus starts as Yosys meant it: with `-g2012` an initial value in a declaration is no event, and
    an `always @*` that depends on what has not changed yet would leave its targets at X."""
    return _BARE.sub("always_comb", _STARTER.sub(r"reg \1 ; initial \1 <= 0;", text))
