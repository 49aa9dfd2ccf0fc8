"""The waveform of a run, read back by signal name: its frames are the capture's frames."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import NamedTuple

import pytest
from vcdvcd import VCDVCD

from cosim.engines import cocotb_engine
from cosim.experiment import SERVER_MAC
from cosim.systems import SYSTEMS
from cosim.workload import Request
from nic_model.contract import CONFIGS
from tests.cosim.test_experiment import nothing, spec

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402
from scapy.utils import RawPcapNgReader  # noqa: E402

CONFIG = CONFIGS["tiny"]
MSS = 1460
FILE_BYTES = 3 * MSS + 100
MIN_FRAME_BYTES = 60
WIRE_OVERHEAD_BYTES = 24
"""Preamble, FCS and the gap between frames."""
BIT_RATE = 10**9

CLOCK = "simulation_top.clk"
NOW = "simulation_top.now[63:0]"
STREAM = "simulation_top.nic.m_axis_tx__"
VALID, READY, LAST = f"{STREAM}valid", f"{STREAM}ready", f"{STREAM}payload.last"
DATA, KEEP = (f"{STREAM}payload.{field}[{width - 1}:0]"
              for field, width in (("data", 8 * CONFIG.mac_bytes), ("keep", CONFIG.mac_bytes)))

LOOKED_AT = (
    "simulation_top.nic.s_axil__aw__payload.addr[16:0]", "simulation_top.nic.m_axi_read__ar__payload.addr[63:0]",
    "simulation_top.nic.m_axi_write__w__payload.last", "simulation_top.nic.irq[4:0]", "simulation_top.nic.quiet",
    "simulation_top.nic.transmit.headers.send.segments[15:0]",
)
"""Other signals that a person looks for."""


class Frame(NamedTuple):
    """A frame in the wave: `now` at its last beat, and its bytes."""

    last_cycle: int
    data: bytes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One file served by `nic-tso` over RTL on Verilator: its wave and its capture."""
    folder = tmp_path_factory.mktemp("run")
    wave, capture = folder / "wave.vcd", folder / "wire.pcapng"
    requests = [Request("GET", "/a", 200, FILE_BYTES)]
    job = spec(SYSTEMS["nic-tso"], requests, clients=1, link_bit_rate=BIT_RATE, wave_path=str(wave),
               capture_path=str(capture))
    cocotb_engine.run(job, nothing)
    return wave, capture


def rising_edges(wave: VCDVCD) -> list[int]:
    """Times of the clock's rising edges."""
    return [time for time, value in wave[CLOCK].tv if value == "1"]


def sent_frames(path: Path) -> list[Frame]:
    """Frames joined from the beats that the MAC took, by the names of data, keep and last."""
    wave = VCDVCD(str(path), signals=[CLOCK, NOW, VALID, READY, LAST, DATA, KEEP])
    frames: list[Frame] = []
    beats: list[bytes] = []
    for time in rising_edges(wave):
        before = time - 1  # what the edge takes
        if wave[VALID][before] != "1" or wave[READY][before] != "1":
            continue
        lanes = int(wave[DATA][before], 2).to_bytes(CONFIG.mac_bytes, "little")
        beats.append(lanes[: wave[KEEP][before].count("1")])
        if wave[LAST][before] == "1":
            frames.append(Frame(int(wave[NOW][before], 2), b"".join(beats)))
            beats = []
    assert not beats
    return frames


def captured_frames(path: Path) -> list[tuple[int, bytes]]:
    """Time in nanoseconds and bytes of each frame that the server sent."""
    with RawPcapNgReader(str(path)) as reader:
        return [((meta.tshigh << 32) + meta.tslow, data) for data, meta in reader if data[6:12] == SERVER_MAC]


def test_the_waves_frames_are_the_captures(run: tuple[Path, Path]) -> None:
    wave, capture = run
    frames, captured = sent_frames(wave), captured_frames(capture)
    assert [frame.data.ljust(MIN_FRAME_BYTES, b"\0") for frame in frames] == [data for _, data in captured]
    free_ps = 0
    for frame, (time_ns, data) in zip(frames, captured, strict=True):
        # The wire takes a frame when its last beat has been taken and the one before is through.
        taken_ps = (frame.last_cycle + 1) * 10**12 // CONFIG.clock_hz
        free_ps = max(taken_ps, free_ps) + (len(data) + WIRE_OVERHEAD_BYTES) * 8 * 10**12 // BIT_RATE
        assert 0 <= free_ps - 1000 * time_ns <= 1000

    packets = [Ether(frame.data) for frame in frames]
    segments = [packet for packet in packets if len(packet[TCP].payload) and packet[IP].len > 40]
    assert [len(bytes(packet[TCP].payload)) for packet in segments].count(MSS) >= 2
    # One stream: each sequence number follows from the segment before.
    numbers = [packet[TCP].seq for packet in segments]
    steps = [(after - before) % 2**32 for before, after in itertools.pairwise(numbers)]
    assert steps == [len(bytes(packet[TCP].payload)) for packet in segments[:-1]]


def test_now_and_the_names_that_people_look_for(run: tuple[Path, Path]) -> None:
    wave = VCDVCD(str(run[0]), signals=[CLOCK, NOW, *LOOKED_AT])
    for name in LOOKED_AT:
        assert len(wave[name].tv) > 1, f"{name} never changes"
    cycles = [int(wave[NOW][time - 1], 2) for time in rising_edges(wave)[8:]]
    steps = [after - before for before, after in itertools.pairwise(cycles)]
    assert min(steps) == 1  # after reset `now` counts
    assert max(steps) > 1000  # and idle time is jumped over
