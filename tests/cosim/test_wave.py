"""The waveform of a run, read back by signal name: its frames are the capture's frames."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import NamedTuple

import pytest
from vcdvcd import VCDVCD

from cosim import builds
from cosim.engines import compiled
from cosim.engines.base import SystemResult, Wave
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

TOP = "TOP.memnic_wrapper.top"
NIC = f"{TOP}.nic"
CLOCK = f"{TOP}.clk"
NOW = f"{TOP}.now[63:0]"
STREAM = f"{NIC}.m_axis_tx__"
VALID, READY, LAST = f"{STREAM}valid", f"{STREAM}ready", f"{STREAM}payload.last"
DATA, KEEP = (f"{STREAM}payload.{field}[{width - 1}:0]"
              for field, width in (("data", 8 * CONFIG.mac_bytes), ("keep", CONFIG.mac_bytes)))

LOOKED_AT = tuple(f"{NIC}.{name}" for name in (
    "s_axil__aw__payload.addr[16:0]", "m_axi_read__ar__payload.addr[63:0]", "m_axi_write__w__payload.last", "irq[4:0]",
    "quiet", "transmit.headers.template.l4_sum[16:0]"))
"""Other signals that a person looks for."""


class Frame(NamedTuple):
    """A frame in the wave: `now` at its last beat, and its bytes."""

    last_cycle: int
    data: bytes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One file served by `nic-tso`: the wave of the whole run, idle time jumped over, and its capture."""
    folder = tmp_path_factory.mktemp("run")
    wave, capture = folder / "wave.vcd", folder / "wire.pcapng"
    requests = [Request("GET", "/a", 200, FILE_BYTES)]
    serve(capture, Wave(path=str(wave), jump=True), requests)
    return wave, capture


def serve(capture: Path, wave: Wave | None, requests: list[Request], **changes: object) -> SystemResult:
    """One client of `nic-tso`."""
    job = spec(SYSTEMS["nic-tso"], requests, clients=1, link_bit_rate=BIT_RATE, capture_path=str(capture), wave=wave,
               **changes)
    return compiled.run(job, nothing)


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
    cycles = cycles_of(wave)
    steps = [after - before for before, after in itertools.pairwise(cycles)]
    assert min(steps) == 1
    assert max(steps) > 1000  # idle time is jumped over


def cycles_of(wave: VCDVCD) -> list[int]:
    """`now` behind each rising edge; the wave's own time must be that edge's, in picoseconds."""
    edges = rising_edges(wave)
    cycles = [int(wave[NOW][time], 2) for time in edges]
    assert edges == [cycle * 10**12 // CONFIG.clock_hz for cycle in cycles]
    return cycles


REQUESTS = [Request("GET", "/a", 200, FILE_BYTES), Request("GET", "/b", 200, 1)]
LENGTH_PS = 30_000_000


def window(tmp_path: Path, **where: object) -> tuple[list[int], list[tuple[int, bytes]], SystemResult]:
    """Cycles of a window, the whole run's frames, and its result."""
    path, capture = tmp_path / "part.vcd", tmp_path / "part.pcapng"
    wave = Wave(path=str(path), length_ps=LENGTH_PS, **where)  # type: ignore[arg-type]
    result = serve(capture, wave, REQUESTS)
    return cycles_of(VCDVCD(str(path), signals=[CLOCK, NOW])), captured_frames(capture), result


def test_a_window_from_a_time_leaves_out_no_cycle_and_changes_nothing(tmp_path: Path) -> None:
    from_ps = 1_234_000_001
    cycles, frames, result = window(tmp_path, from_ps=from_ps)
    first = -(-from_ps * CONFIG.clock_hz // 10**12)
    assert cycles[0] == first
    last = -(-(first * 10**12 // CONFIG.clock_hz + LENGTH_PS) * CONFIG.clock_hz // 10**12)
    assert cycles == list(range(first, last + 1))
    plain = tmp_path / "plain.pcapng"
    assert serve(plain, None, REQUESTS) == result
    assert captured_frames(plain) == frames


def test_a_window_from_a_frame_begins_when_its_last_beat_has_crossed_the_mac(tmp_path: Path) -> None:
    number = 7
    cycles, _, _ = window(tmp_path, frame=number)
    with RawPcapNgReader(str(tmp_path / "part.pcapng")) as reader:
        times_ns = [(meta.tshigh << 32) + meta.tslow for _, meta in reader]
    begin_ns = cycles[0] * 10**9 // CONFIG.clock_hz
    # At the MAC a sent frame is before its time on the wire, a received one behind it; both by less than 13 us here.
    assert times_ns[number - 2] - 13_000 < begin_ns < times_ns[number] + 13_000
    assert set(itertools.starmap(lambda a, b: b - a, itertools.pairwise(cycles))) == {1}


def test_a_window_from_an_error_stays_empty_when_there_is_none_and_that_is_told(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "none.vcd"
    serve(tmp_path / "none.pcapng", Wave(path=str(path), error=True), REQUESTS)
    assert b"\n#" not in path.read_bytes()
    assert caplog.messages == [f"memnic: the wave {path} is empty: its beginning has not come"]


def test_a_wave_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        serve(tmp_path / "x.pcapng", Wave(path=str(tmp_path / "no" / "x.vcd")), REQUESTS)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("error", [False, True])
def test_a_full_disk_is_told(error: bool, tmp_path: Path) -> None:
    """At the header already, whether or not the window ever begins."""
    with pytest.raises(OSError, match="cannot write the wave: No space left on device"):
        serve(tmp_path / "x.pcapng", Wave(path="/dev/full", error=error), REQUESTS)


@pytest.mark.skipif(not builds.has_fst(), reason="headers of lz4 and zlib are missing: install liblz4-dev zlib1g-dev")
def test_fst_has_the_same_window(tmp_path: Path) -> None:
    path = tmp_path / "part.fst"
    serve(tmp_path / "part.pcapng", Wave(path=str(path), format="fst", frame=7, length_ps=LENGTH_PS), REQUESTS)
    data = path.read_bytes()
    # The header block: type 0, 329 bytes, first and last time in the file (format as GTKWave's manual, appendix FST).
    assert data[:9] == bytes([0]) + (329).to_bytes(8, "big")
    first, last = (int.from_bytes(data[at : at + 8], "big") for at in (9, 17))
    cycles, _, _ = window(tmp_path, frame=7)
    assert first == cycles[0] * 10**12 // CONFIG.clock_hz
    assert cycles[-1] * 10**12 // CONFIG.clock_hz <= last < first + LENGTH_PS + 20_000
