"""Verilog of a device or of one of its blocks."""

import re

from amaranth.back import verilog

from nic_model.contract import NicConfig
from rtl import interpreted, systemverilog
from rtl.amba import AmbaNic
from rtl.simulation import SimulationTop
from rtl.wrapper import packed


def nic_verilog(config: NicConfig, *, mac_clock: bool = False) -> str:
    """The device with AMBA's port names (see `rtl.amba.AmbaNic`), for other designs; module name `memnic`."""
    return verilog.convert(AmbaNic(config, mac_clock=mac_clock), name="memnic", emit_src=False)


def simulation_verilog(config: NicConfig, *, registered: bool = False, probed: bool = False) -> str:
    """The device behind `SimulationTop`, with its parameters; module name `simulation_top`."""
    top = SimulationTop(config, registered=registered, probed=probed)
    return verilog.convert(top, name="simulation_top", emit_src=False)


BUSY = (
    "nic.transmit.segmenter", "nic.transmit.aligner", "nic.transmit.aligned", "nic.transmit.checksum",
    "nic.transmit.framer", "nic.transmit.framer.leaving", "nic.transmit.mac_tx", "nic.pause", "nic.receive.pause_rx",
    "nic.receive.mac_rx", "nic.receive.parser", "nic.receive.buffer", "nic.receive.deliver",
    "nic.receive.deliver.aligner", "nic.dma_read", "nic.dma_read.payload", "nic.dma_write", "nic.dma_write.receive",
    "nic.dma_write.receive.rows", "nic.link_dma_read_beat_payload", "skid_s_axis_rx",
)
"""Blocks that are active in most cycles when traffic runs at full rate both ways: testing for that would cost more."""


LIVELY = (
    "*.head", "*.beat", "*.unclaimed", "*.stored", "nic.receive.row__valid*", "nic.receive.parser.valid_*",
    "nic.receive.parsed__valid", "nic.transmit.framer.leaving.full", "nic.receive.buffer.waiting",
)
"""Small registers of these that change in many cycles, as measured. Between the ends of frames, and where a stream has
no pauses, the others stand still, and what depends on them need not be computed."""


SELDOM = ("asked", "s_axil_aw", "s_axil_w", "s_axil_ar", "s_axi_aw", "s_axi_w")
"""Inputs that hardly ever are 1, or valid: a processor accesses registers and doorbells now and then."""


def compiled_verilog(config: NicConfig) -> str:
    """The same device for the compiled engine, in SystemVerilog that Verilator runs fast; without names inside. It
    needs no wrapper: its ports are `clk` and the vectors of `rtl.wrapper`."""
    return each_edge(systemverilog.convert(SimulationTop(config, probed=True), name="memnic_wrapper", gated=True,
                                           busy=BUSY, seldom=SELDOM, lively=LIVELY,
                                           packed=packed(config)))


def interpreted_verilog(config: NicConfig) -> str:
    """The same device for Icarus, in Verilog that it runs fast and with four values; without names inside."""
    top = SimulationTop(config, registered=True)
    return interpreted.convert(top, name="simulation_top")


def each_edge(text: str) -> str:
    """Verilog to which each edge of the clock, rising or falling, is one: half as much for a simulator to do."""
    return text.replace("@(posedge clk)", "@(clk)")


_STARTER = re.compile(r"reg (\\\S*verilog_backend\S*)\s*= 0;")
"""Yosys lets most `always @*` depend on a register that is set once, so that each runs at least once."""

_SINGLE = re.compile(r"^( *)always @\*\n +((?!begin\b|if\b|case)[^;=]+ = [^;]+;)$", re.MULTILINE)
"""Those of one assignment, to a part of a vector, do not."""


_NAME = r"(?:\\\S+ |[A-Za-z_]\w*)"
_PART = rf"{_NAME}(?: ?\[[\d:]+\])?"
_REGISTER = re.compile(rf"^( *)always @\(posedge clk\)\n +({_PART}) *<= ({_PART}) *;$", re.MULTILINE)

_PORT = re.compile(rf"^( *)always @\(posedge clk\) begin\n( *)if \(({_NAME})\)"
                   r"((?: begin)?\n(?:\2 +.*\n)+(?:\2end\n)?)\1end$", re.MULTILINE)
"""A memory's port, or an assertion: it does nothing unless it is enabled."""


def for_icarus(text: str) -> str:
    """Verilog that Icarus starts as Yosys meant it, and runs twice as fast.

    With `-g2012` an initial value in a declaration is no event, and an `always @*` whose inputs have not changed since
    would leave its targets at X. A register waits for its next value to change, and a memory to be enabled, before it
    waits for the clock: most do not in most cycles, and a process that wakes for nothing costs as much as one that
    works.
    """
    text = _STARTER.sub(r"reg \1 ; initial \1 <= 0;", text)
    # `#0`: when all else at time 0 has settled
    text = _SINGLE.sub(r"\1always @* \2\n\1initial #0 \2", text)
    text = _PORT.sub(r"\1always begin\n\2wait (\3);\n\2@(posedge clk);\n\2if (\3)\4\1end", text)
    return _REGISTER.sub(r"\1initial begin @(posedge clk) \2 <= \3; forever @(\3) @(posedge clk) \2 <= \3; end", text)


_UNNAMED = re.compile(r"\\([$]\S*) ")


def hide_unnamed(text: str) -> str:
    """Verilog in which signals that nobody named (`\\$1`) are called `_1`: Verilator leaves those out of waves, which
    makes a traced run many times faster and its file as much smaller."""
    return _UNNAMED.sub(lambda match: re.sub(r"\W", "_", match[1]) + " ", text)
