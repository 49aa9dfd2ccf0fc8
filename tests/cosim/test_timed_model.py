"""The device in time: against the RTL, against itself without bytes, against itself not compiled; device files."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cosim import cli
from cosim.benches.accuracy import compare, percentile
from cosim.benches.rtl import DEVICES, build
from cosim.timing import device_file
from cosim.timing.cases import Arrival, Case
from cosim.timing.characterize import CONFIGURATIONS, bus, characterize, moved
from cosim.timing.device_file import DeviceFileError, load_device
from cosim.timing.explore import Load, bounds, reached
from cosim.timing.observed import on_model, on_rtl, on_rules
from cosim.timing.random_cases import KINDS, large_sends, mixed_sends, out_of_order, random_case, receive, small_sends
from nic_model.timing import receive_rows, stages
from nic_model.timing.kernel import Kernel, completions, frames, sends
from rtl import rx_deliver

TINY, WIDE = DEVICES[64], DEVICES[512]
SEED = 7
"""Not that of `memnic bench accuracy`."""


# ---------------------------------------------------------------------------------------------- against the RTL


@pytest.mark.parametrize("number", range(len(KINDS)), ids=[kind.__name__ for kind in KINDS])
def test_bytes_are_those_of_the_rtl(number: int) -> None:
    """Frames, memory and completions are the same, always; the times of frames and completions nearly."""
    case = random_case(number, TINY, SEED)
    found = compare(TINY, load_device("tiny"), build(TINY), case, case.name)
    assert found.same, f"{found.why} of {case.name}"
    assert found.errors, f"nothing came of {case.name}"
    assert percentile(found.errors, 50) <= 1.0, f"{case.name}: half of the times are off by more than 1 %"
    assert found.rate_error <= 1.0, f"{case.name}: throughput is off by {found.rate_error:.2f} %"


MIXED = (1514, 60, 200, 700, 64, 1000, 130, 1280, 400)


@pytest.mark.parametrize(("config", "sizes"), [
    (TINY, (60,)), (TINY, (60, 90)), (TINY, (61, 257, 1514)), (TINY, MIXED), (WIDE, (61, 257, 1514)), (WIDE, MIXED),
    (WIDE, (60,)), (WIDE, (60, 90))])
def test_the_same_frames_are_dropped(config, sizes: tuple[int, ...]) -> None:
    """More arrives than memory takes: the full receive buffer drops those frames that it drops in the RTL."""
    rng, arrivals, cycle = random.Random(f"{SEED} {sizes}"), [], 100
    while sum(arrival.length for arrival in arrivals) < 5 * config.rx_buffer_bytes and len(arrivals) < 4000:
        length = rng.choice(sizes)
        arrivals.append(Arrival(cycle=cycle, length=length))
        cycle += -(-length // config.mac_bytes)
    latency = rng.randrange(2, 5) * 5000 // config.mac_bytes
    case = Case(name="overload", arrivals=tuple(arrivals), bus=bus(200, latency))
    rtl, timed = on_rtl(config, build(config), case), on_model(load_device(config.name), case)
    delivered = sum(len(edges) for edges in rtl.completions.values())
    assert 10 < delivered < len(arrivals) - 10, "none was dropped, or nearly all"
    assert rtl.rings == timed.rings
    assert rtl.memory == timed.memory


@pytest.mark.parametrize(("number", "seed"), [(11, 2), (11, 4), (23, 4), (19, 2)])
def test_full_buffers_of_segments_and_waiting_frames(number: int, seed: int) -> None:
    """Workloads that fill the widest device's receive buffer, with segments that are coalesced, or while slots are
    fetched: each cycle counts for who is dropped, and nearly all times are those of the RTL."""
    case = random_case(number, WIDE, seed)
    found = compare(WIDE, load_device(WIDE.name), build(WIDE), case, "")
    assert found.same, f"{case.name}: {found.why} differ"
    assert percentile(found.errors, 90) <= 0.05, f"{case.name}: times are off"


@pytest.mark.parametrize("config", [TINY, WIDE], ids=["64", "512"])
def test_times_are_nearly_those_of_the_rtl(config) -> None:
    """Of all times of several workloads, 99 % are off by 1 % at most."""
    errors: list[float] = []
    for number, kind in enumerate((large_sends, mixed_sends, out_of_order, small_sends, receive)):
        case = kind(random.Random(f"{SEED} {number}"), config)
        errors += compare(config, load_device(config.name), build(config), case, case.name).errors
    assert percentile(errors, 99) <= 1.0


# ---------------------------------------------------------------------------------------------- against itself


@pytest.mark.parametrize("number", range(8))
def test_rules_alone_and_with_bytes(number: int) -> None:
    """The kernel's rules with nothing but lengths give the same edges as the device with driver and bytes."""
    case = random_case(number, TINY, SEED + 1)
    model = load_device("tiny")
    rules, device = on_rules(model, case), on_model(model, case)
    assert rules.frames == device.frames
    assert rules.completions == device.completions
    assert rules.frames or rules.completions


def test_compiled_and_plain() -> None:
    """What numba makes of the rules does what Python does."""
    script = (
        "import sys, json\n"
        "from cosim.timing.device_file import load_device\n"
        "from cosim.timing.observed import on_rules\n"
        "from cosim.timing.random_cases import random_case\n"
        "model = load_device('tiny')\n"
        "found = [on_rules(model, random_case(number, model.config, 3)) for number in (3, 4, 5, 7)]\n"
        "print(json.dumps([[one.frames, one.reads, one.completions] for one in found]))\n")
    outputs = [subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "NUMBA_DISABLE_JIT": disabled}).stdout for disabled in ("0", "1")]
    assert json.loads(outputs[0]) == json.loads(outputs[1])
    assert len(json.loads(outputs[0])[0][0]) > 100


def test_kernel_in_blocks() -> None:
    """How its input is cut into blocks changes nothing; each send has its frame and its completion."""
    rows = sends(1000, 1, [60, 1514, 700] * 500)
    found = []
    for size in (len(rows), 64, 7):
        kernel = Kernel(load_device("tiny"), random_case(0, TINY, 1).bus, random_case(0, TINY, 1).mac, buffers=0)
        events = [block.copy() for block in kernel.run(rows[at : at + size] for at in range(0, len(rows), size))]
        found.append([list(map(tuple, of(part).tolist())) for of in (frames, completions)
                      for part in events if len(part)])
        assert sum(len(frames(part)) for part in events if len(part)) == len(rows)
        assert sum(len(completions(part)) for part in events if len(part)) == len(rows)
    flat = [sorted(row for part in one for row in part) for one in found]
    assert flat[0] == flat[1] == flat[2]


@pytest.mark.parametrize("full", [False, True], ids=["", "rings are full"])
def test_rules_for_one_device_alone(full: bool) -> None:
    """What never changes stands in the code as numbers, and all comes out at the same edges."""
    rows = sends(np.sort(np.arange(600) % 7 * (0 if full else 4000)), 1 + np.arange(600) % 3, 40 + np.arange(600) * 7)
    found = []
    for specialised in (False, True):
        case = random_case(0, TINY, 1)
        kernel = Kernel(load_device("tiny"), case.bus, case.mac, ring_log2=4 if full else None, specialised=specialised)
        found.append([row for part in kernel.run([rows]) for row in part.tolist()])
    assert len(found[0]) == 2 * len(rows)
    assert found[0] == found[1]


# ---------------------------------------------------------------------------------------------- device files


def _changed(tmp_path: Path, old: str, new: str) -> Path:
    text = (device_file.DEVICES / "tiny.toml").read_text()
    assert old in text
    path = tmp_path / "changed.toml"
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(("old", "new", "said"), [
    ("mac_bytes = 8\n", "mac_bytes = 8\nmac_bits = 64\n", "unknown field `sizes.mac_bits`"),
    ("clock_hz = 156250000\n", "", "missing field `sizes.clock_hz`"),
    ("host_bytes = 16\n", "host_bytes = 4\n", "host_bytes must be 16, 32 or 64, and at least mac_bytes, not 4"),
    ("mac_bytes = 8\n", "mac_bytes = 32\n", "host_bytes must be 16, 32 or 64, and at least mac_bytes, not 16"),
    ("payload_reads = 32\n", "payload_reads = 33\n",
     "payload_reads must be 96, or a power of two from 8 to 128, not 33"),
    ("queue_slots = 64\n", "queue_slots = 0\n", "`queues.queue_slots` must be 32 to 4096, not 0"),
    ("queue_slots = 64\n", 'queue_slots = "many"\n', "`queues.queue_slots` must be a whole number, not 'many'"),
    ("channels = 4\n", "channels = 4.5\n", "`sizes.channels` must be a whole number, not 4.5"),
    ("refetch = { cycles = ", "refetch = { cycles = 1.", "`timing.refetch.cycles` must be a whole number, not 1."),
    ("decision_interval = { cycles = 4", "decision_interval = { cycles = 0", "must be at least 1, not 0"),
    ("piece_first = {", "piece_second = {", "unknown field `timing.piece_second`"),
])
def test_impossible_device_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str,
                                 said: str) -> None:
    """Each is refused, with field and reason, and the command exits with 2."""
    path = _changed(tmp_path, old, new)
    with pytest.raises(DeviceFileError, match=r"changed\.toml"):
        load_device(str(path))
    assert cli.run(["device", "roofline", str(path)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
def test_shipped_device_files(name: str) -> None:
    """There is one of each device, for that device; writing it again gives the same file."""
    file = device_file.read(device_file.DEVICES / f"{name}.toml")
    assert file.model(name).config == CONFIGURATIONS[name]
    assert all(figure.measured for figure in file.timing.values())


def test_file_that_is_written_is_read(tmp_path: Path) -> None:
    """All of it comes back."""
    file = device_file.read(device_file.DEVICES / "tiny.toml")
    device_file.write(tmp_path / "again.toml", file)
    assert device_file.read(tmp_path / "again.toml") == file


def test_figures_of_tiny_have_not_moved() -> None:
    """The RTL takes the cycles that the shipped file says; otherwise `memnic characterize` must be run again."""
    before = device_file.read(device_file.DEVICES / "tiny.toml")
    assert moved(before, characterize(TINY, lambda what: None)) == []


def test_moved_figures_are_named() -> None:
    """Timing, queues and sizes."""
    file = device_file.read(device_file.DEVICES / "tiny.toml")
    other = msgspec.structs.replace(
        file, queues={**file.queues, "queue_slots": 128}, sizes={**file.sizes, "channels": 8},
        timing={**file.timing, "refetch": device_file.Figure(99, "otherwise")})
    said = moved(file, other)
    assert len(said) == 3
    assert any(line.startswith("timing.refetch") and "99" in line for line in said)


def test_places_between_match_and_port_are_those_of_the_rtl() -> None:
    """What the rules count there is made of the RTL's sizes: a `StreamFifo` holds two more than its depth."""
    assert receive_rows.TOKENS_IN_FLIGHT == rx_deliver.PARTS_IN_FLIGHT + 2 + 1
    assert stages.PARTS_AHEAD == rx_deliver.PARTS_ASKED + 2 + 1 + 4
    assert stages.PARTS_UNREAD == rx_deliver.PARTS_ASKED + 2 + 1 + 2
    assert stages.PARTS_NOT_OVER == rx_deliver.PARTS_ASKED + 2 + 1 + receive_rows.TOKENS_IN_FLIGHT


# ---------------------------------------------------------------------------------------------- exploring


def test_more_reads_in_flight_are_faster_while_they_limit() -> None:
    """The model stays below the arithmetic bounds, and reaches the tightest nearly."""
    model, load = load_device("tiny"), Load(payload=65_536, mss=1460)
    slow = replace(random_case(0, TINY, 1).bus, read_latency_cycles=1000, bytes_per_cycle=1 << 30)
    got = []
    for reads in (8, 16, 32, 64):
        changed = replace(model, config=replace(model.config, payload_reads=reads))
        cycles = reached(changed, load, slow).cycles_a_frame
        tightest = bounds(changed, load, slow)[0]
        assert 0.75 * cycles <= tightest.cycles_a_frame <= 1.001 * cycles, f"{reads} reads: {tightest}"
        got.append(cycles)
    assert got[0] > got[1] > got[2] > got[3]


def test_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    """One row for each value, with who limits."""
    assert cli.run(["device", "sweep", "sizes.payload_reads", "8,32", "--device", "tiny", "--latency", "700",
                    "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["value"] for row in rows] == [8, 32]
    assert rows[0]["limit"] == "reads in flight"
    assert rows[1]["gbit_per_s"] > 2 * rows[0]["gbit_per_s"]


def test_who_waits_for_whom() -> None:
    """What is counted: the MAC's beats are those of the frames, and who waits is who should."""
    model, load = load_device("tiny"), Load(payload=65_536, mss=1460)
    fast, far = (replace(random_case(0, TINY, 1).bus, read_latency_cycles=latency, bytes_per_cycle=1 << 30)
                 for latency in (50, 1000))
    close = reached(model, load, fast)
    beats = bounds(model, load, fast)[0].cycles_a_frame
    assert close.works["MAC"] == pytest.approx(beats / close.cycles_a_frame, rel=0.02)
    assert max(close.waits, key=lambda names: close.waits[names]) == ("FrameScheduler", "bytes ahead of the wire")
    few = replace(model, config=replace(model.config, payload_reads=8))
    slow = reached(few, load, far)
    assert slow.works["MAC"] < 0.3
    assert slow.waits["MAC", "a header"] == pytest.approx(1 - slow.works["MAC"], abs=0.02)
    assert slow.waits["payload stream", "data from host memory"] > 0.7
    frames = reached(few, Load(payload=60, mss=0), far)
    assert frames.waits["descriptor fetch", "room for its slots"] + frames.waits["FrameScheduler", "a job"] > 0.5


@pytest.mark.parametrize("arguments", [
    ["sweep", "sizes.colour", "1,2"], ["sweep", "sizes.payload_reads", "many"], ["sweep", "bus.colour", "1"],
    ["sweep", "sizes.payload_reads", "7"], ["roofline", "nothing"], ["roofline", "tiny", "--mss", "3"],
])
def test_bad_sweeps(arguments: list[str]) -> None:
    """Refused, with exit code 2."""
    assert cli.run(["device", *arguments]) == 2


def test_run_over_a_device_file(tmp_path: Path) -> None:
    """`memnic run --engine model` serves a workload over a device from a file; a device that is no file takes no
    time."""
    path = str(device_file.DEVICES / "tiny.toml")
    arguments = ["run", "--engine", "model", "--requests", "6", "--clients", "2", "--device", path,
                 "--out", str(tmp_path)]
    assert cli.run(arguments) == 0
    timed = json.loads((tmp_path / "result.json").read_text())
    assert all(result["requests"] == 6 for result in timed["systems"].values())
    assert cli.run([*arguments[:1], "--engine", "compiled", *arguments[3:]]) == 2
