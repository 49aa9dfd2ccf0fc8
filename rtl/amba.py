"""The device as a module of other designs: flat ports with AMBA's names, and the AXI signals that never change."""

# Ref: AMBA AXI and ACE Protocol Specification, ARM IHI 0022H, A2 (signals), A3.4 (bursts), A4.4 (AxCACHE),
# A4.7 (AxPROT); AMBA AXI-Stream Protocol Specification, ARM IHI 0051B, 2.2 (signals)

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from nic_model.contract import NicConfig
from rtl.clock_crossing import MacClockCrossing
from rtl.doorbells import BURST_INCR
from rtl.nic import Nic
from rtl.simulation import streams

CACHE_NORMAL_BUFFERABLE = 0b0011
"""AxCACHE of DMA: Normal memory, non-cacheable, bufferable."""

LEAVING = ("m_axi_ar", "m_axi_aw", "m_axi_w", "m_axis_tx", "s_axil_b", "s_axil_r", "s_axi_b", "s_axi_r",
           "m_axis_up")
"""Streams whose payload leaves the device; the other ones enter."""

IGNORED = {
    "s_axil_aw": {"prot": 3}, "s_axil_ar": {"prot": 3},
    "s_axi_aw": {"lock": 1, "cache": 4, "prot": 3}, "s_axi_ar": {"lock": 1, "cache": 4, "prot": 3},
}
"""By stream: inputs that a master drives and the device has no use for, with their widths."""

DMA_ADDRESSES = ("m_axi_ar", "m_axi_aw")
DMA_IDS = ("m_axi_ar", "m_axi_r", "m_axi_aw", "m_axi_b")


def port_name(stream_name: str, field: str) -> str:
    """AMBA's name of a stream's field, or of its `valid` or `ready`.

    >>> port_name("m_axi_aw", "addr"), port_name("m_axis_tx", "valid")
    ('m_axi_awaddr', 'm_axis_tx_tvalid')
    """
    return f"{stream_name}_t{field}" if "_axis_" in stream_name else f"{stream_name}{field}"


class AmbaNic(wiring.Component):
    """`Nic` with a port for each signal of its AXI4, AXI4-Lite and AXI-Stream interfaces, under AMBA's names.

    Wires and constants only: no latency. Clock `clk`, synchronous active-high reset `rst`.

    Parameters
    ----------
    config : NicConfig
        Sizes, from the contract.
    mac_clock : bool
        m_axis_tx and s_axis_rx belong to another clock, `mac_clk`, with a synchronous active-high reset `mac_rst` that
        is to be given together with `rst`. Then frames cross as `rtl.clock_crossing.MacClockCrossing` says.

    Members
    -------
    s_axil_* : AXI4-Lite slave, registers; AxPROT is ignored.
    s_axi_* : AXI4 slave as wide as the host bus, doorbell pages; AxLOCK, AxCACHE and AxPROT are ignored.
    m_axi_* : AXI4 master, DMA: INCR bursts of whole beats, Normal bufferable, AxPROT 0. Read and write IDs are equally
        wide, since tools know one ID width for a port.
    m_axis_tx_*, s_axis_rx_* : AXI-Stream to and from the MAC, frames without FCS. TUSER in the last beat of a received
        frame: it is bad; of a sent one it is 0.
    m_axis_up_*, s_axis_release_*, s_axis_emit_* : of a device with flows, AXI-Stream of its control port's messages.
    irq, now, quiet, next_deadline, deadline_valid, pause_active, pause_request : as in `Nic`.
    """

    def __init__(self, config: NicConfig, *, mac_clock: bool = False):
        self.config, self.mac_clock = config, mac_clock
        self.nic = nic = Nic(config)
        self.id_bits = max(nic.dma_read.id_bits, nic.dma_write.id_bits)
        members = {
            "irq": Out(config.vectors + 1), "now": In(64), "quiet": Out(1), "next_deadline": Out(64),
            "deadline_valid": Out(1),
            "pause_active": Out(1), "pause_request": Out(1),
        }
        for name, port in streams(nic).items():
            onwards, backwards = (Out, In) if name in LEAVING else (In, Out)
            widths = {field: entry.width for field, entry in port.payload.shape()} | IGNORED.get(name, {})
            if name in DMA_IDS:
                widths["id"] = self.id_bits
            if name in DMA_ADDRESSES:
                widths |= {field: width for field, (width, _) in self._constants().items()}
            members |= {port_name(name, field): onwards(width) for field, width in widths.items()}
            members |= {port_name(name, "valid"): onwards(1), port_name(name, "ready"): backwards(1)}
        super().__init__(members)

    def _constants(self):
        """Field of the DMA's address channels -> its width and value."""
        return {"size": (3, exact_log2(self.config.host_bytes)), "burst": (2, BURST_INCR), "lock": (1, 0),
                "cache": (4, CACHE_NORMAL_BUFFERABLE), "prot": (3, 0)}

    def elaborate(self, platform):
        m = Module()
        m.submodules.nic = nic = self.nic
        m.d.comb += [
            nic.now.eq(self.now), self.irq.eq(nic.irq), self.quiet.eq(nic.quiet),
            self.next_deadline.eq(nic.next_deadline), self.deadline_valid.eq(nic.deadline_valid),
            self.pause_active.eq(nic.pause_active), self.pause_request.eq(nic.pause_request),
        ]
        ports = streams(nic)
        if self.mac_clock:
            m.submodules.crossing = crossing = MacClockCrossing(self.config)
            wiring.connect(m, nic.m_axis_tx, crossing.tx)
            wiring.connect(m, crossing.rx, nic.s_axis_rx)
            ports |= {"m_axis_tx": crossing.m_axis_tx, "s_axis_rx": crossing.s_axis_rx}
        for name, port in ports.items():
            pairs = [(getattr(self, port_name(name, field)), port.payload[field]) for field, _ in port.payload.shape()]
            pairs.append((getattr(self, port_name(name, "valid")), port.valid))
            outside_ready = getattr(self, port_name(name, "ready"))
            if name in LEAVING:
                m.d.comb += [outside.eq(inside) for outside, inside in pairs] + [port.ready.eq(outside_ready)]
            else:
                m.d.comb += [inside.eq(outside) for outside, inside in pairs] + [outside_ready.eq(port.ready)]
        for name in DMA_ADDRESSES:
            m.d.comb += [getattr(self, port_name(name, field)).eq(value)
                         for field, (_, value) in self._constants().items()]
        return m
