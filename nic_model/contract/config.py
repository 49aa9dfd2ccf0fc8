"""Sizes of a device: what the RTL is built with and what its registers tell the driver."""

from __future__ import annotations

from dataclasses import dataclass

from nic_model.contract.codes import LARGEST_RING_LOG2, MAX_CHANNELS, MAX_FRAME_BYTES, SMALLEST_RING_LOG2, Feature
from nic_model.contract.control import CELL_BYTES, CONTROL_COUNTERS, MAX_FLOWS, MAX_HANDLES
from nic_model.contract.counters import COUNTERS, Counter
from nic_model.contract.registers import MAX_KEYS
from nic_model.contract.steering import MAX_FLOW_RULES

BURST_BYTES = 256
"""Longest DMA burst, and its natural alignment: so no burst crosses 4 KB, and one fits one landing slot."""


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True, kw_only=True)
class PortFacts:
    """What a decider at the control port is told of the device before anything happens: sizes, and the clock that
    `time` counts."""

    clock_hz: int
    flows: int
    listeners: int
    emit_credits: int


@dataclass(frozen=True, kw_only=True)
class NicConfig:
    """Parameters of one device. Raises ValueError, naming the field, for a device that cannot be built."""

    name: str
    mac_bytes: int = 8
    """Width of the MAC streams: 8, 16, 32 or 64 bytes."""
    host_bytes: int = 0
    """Width of the host bus: 16, 32 or 64 bytes, at least the MAC's; 0 means twice the MAC's, 64 at most."""
    channels: int = 16
    """Channels: a power of two, 4 to 64."""
    vectors: int = 16
    """Interrupt vectors for channels: a power of two, 1 to 64. The error vector comes on top."""
    keys: int = 1024
    """Memory keys: a power of two, 16 to 2048."""
    payload_reads: int = 32
    """DMA reads of payload in flight, each up to 256 bytes: a power of two, or 96."""
    clock_hz: int = 156_250_000
    max_ring_log2: int = 12
    """log2 of the largest submission or receive ring in entries: 4 to 15."""
    tx_buffer_bytes: int = 16384
    """Frames being built: at least a longest frame and a half, since a frame is whole before it leaves."""
    rx_buffer_bytes: int = 16384
    """Frames received and not yet written to the host."""
    flow_rules: int = 256
    """Places for flow rules: a power of two, 16 to 2048."""
    coalesce_contexts: int = 16
    """Flows that may be coalesced at a time: a power of two, 16 to 64."""
    flows: int = 0
    """Connections in the flow table of the control port: a power of two, 16 to 16384; 0: there is no such port."""
    control_cells: int = 192
    """Cells of CELL_BYTES that frames for the control port may take of the receive buffer at a time, at least one
    longest frame's."""
    control_handles: int = 256
    """Such frames at a time: a power of two, 16 to 4096."""
    control_slots: int = 256
    """Units that messages up, waiting to be taken, may have: a power of two, 16 to 1024."""
    emit_credits: int = 32
    """EMITs and RAWs that may wait in the device: a power of two, 4 to 128."""
    listeners: int = 64
    """Places for listeners: a power of two, 1 to 1024."""

    def __post_init__(self) -> None:
        if self.host_bytes == 0:
            object.__setattr__(self, "host_bytes", max(16, min(64, 2 * self.mac_bytes)))
        self._check("mac_bytes", self.mac_bytes in (8, 16, 32, 64), "8, 16, 32 or 64")
        self._check("host_bytes", self.host_bytes in (16, 32, 64) and self.host_bytes >= self.mac_bytes,
                    "16, 32 or 64, and at least mac_bytes")
        self._check("channels", _is_power_of_two(self.channels) and 4 <= self.channels <= MAX_CHANNELS,
                    f"a power of two from 4 to {MAX_CHANNELS}")
        self._check("vectors", _is_power_of_two(self.vectors) and self.vectors <= 64, "a power of two up to 64")
        self._check("keys", _is_power_of_two(self.keys) and 16 <= self.keys <= MAX_KEYS,
                    f"a power of two from 16 to {MAX_KEYS}, for which the register space has room")
        self._check("payload_reads", self.payload_reads == 96 or (_is_power_of_two(self.payload_reads)
                    and 8 <= self.payload_reads <= 128), "96, or a power of two from 8 to 128")
        self._check("clock_hz", 0 < self.clock_hz < 1 << 32, "a positive 32-bit number")
        self._check("max_ring_log2", SMALLEST_RING_LOG2 <= self.max_ring_log2 <= LARGEST_RING_LOG2,
                    f"{SMALLEST_RING_LOG2} to {LARGEST_RING_LOG2}")
        self._check("flow_rules", _is_power_of_two(self.flow_rules) and 16 <= self.flow_rules <= MAX_FLOW_RULES,
                    f"a power of two from 16 to {MAX_FLOW_RULES}")
        self._check("coalesce_contexts", _is_power_of_two(self.coalesce_contexts)
                    and 16 <= self.coalesce_contexts <= 64, "a power of two from 16 to 64")
        self._check("flows", self.flows == 0 or (_is_power_of_two(self.flows) and 16 <= self.flows <= MAX_FLOWS),
                    f"0, or a power of two from 16 to {MAX_FLOWS}")
        self._check("control_cells", self.control_cells >= -(-MAX_FRAME_BYTES // CELL_BYTES),
                    f"at least {-(-MAX_FRAME_BYTES // CELL_BYTES)}, a longest frame's")
        for field, least, most in (("control_handles", 16, MAX_HANDLES), ("control_slots", 16, 1024),
                                   ("emit_credits", 4, 128), ("listeners", 1, 1024)):
            size = getattr(self, field)
            self._check(field, _is_power_of_two(size) and least <= size <= most,
                        f"a power of two from {least} to {most}")
        for field in ("tx_buffer_bytes", "rx_buffer_bytes"):
            size = getattr(self, field)
            self._check(field, _is_power_of_two(size) and size >= MAX_FRAME_BYTES * 3 // 2,
                        f"a power of two of at least {MAX_FRAME_BYTES * 3 // 2}")

    def _check(self, field: str, good: bool, wanted: str) -> None:
        if not good:
            raise ValueError(f"device {self.name!r}: {field} must be {wanted}, not {getattr(self, field)!r}")

    @property
    def error_vector(self) -> int:
        """Number of the vector that tells of channel errors; `irq` is `vectors + 1` lines wide."""
        return self.vectors

    @property
    def max_cq_log2(self) -> int:
        """log2 of the largest completion ring in entries: as large as both other rings together."""
        return self.max_ring_log2 + 1

    @property
    def pause_high_bytes(self) -> int:
        """Reset value of PAUSE_HIGH: half the receive buffer is left for what is on its way when the peer is told."""
        return self.rx_buffer_bytes // 2

    @property
    def pause_low_bytes(self) -> int:
        """Reset value of PAUSE_LOW."""
        return self.rx_buffer_bytes // 4

    @property
    def port_queues(self) -> tuple[int, ...]:
        """Channels that are not the host's, since the control port's orders have their transmit queues: those without
        payload, and the others. None of a device without such a port."""
        return (self.channels - 2, self.channels - 1) if self.flows else ()

    @property
    def port_facts(self) -> PortFacts:
        """What its decider is told."""
        return PortFacts(clock_hz=self.clock_hz, flows=self.flows, listeners=self.listeners,
                         emit_credits=self.emit_credits)

    @property
    def features(self) -> Feature:
        """What this device has, as its FEATURES register shows it."""
        return (Feature.SEGMENTATION_IPV4 | Feature.SEGMENTATION_IPV6 | Feature.TX_CHECKSUM | Feature.RX_CHECKSUM
                | Feature.TIMESTAMP | Feature.RSS | Feature.FLOW_RULES | Feature.PAUSE
                | Feature.COALESCE | Feature.VLAN | Feature.PUSH | (Feature.SOCKETS if self.flows else Feature(0)))

    @property
    def counters(self) -> tuple[Counter, ...]:
        """What this device counts, in the order of the counters' addresses."""
        return counters_of(self.features)


def counters_of(features: Feature) -> tuple[Counter, ...]:
    """What a device with these features counts, in the order of the counters' addresses."""
    return COUNTERS + CONTROL_COUNTERS if Feature.SOCKETS in features else COUNTERS


CONTROL_SIZES = ("flows", "listeners", "control_cells", "control_handles", "control_slots", "emit_credits")
"""Parameters that are the control port's."""

CONFIGS: dict[str, NicConfig] = {
    c.name: c
    for c in (
        NicConfig(name="tiny", mac_bytes=8, channels=4, vectors=4, keys=64, flow_rules=64),
        NicConfig(name="default", mac_bytes=8, channels=16, vectors=16, keys=1024),
        NicConfig(name="wide", mac_bytes=64, channels=64, vectors=32, keys=1024, payload_reads=96,
                  tx_buffer_bytes=65536, rx_buffer_bytes=65536),
    )
}
"""The named devices."""
