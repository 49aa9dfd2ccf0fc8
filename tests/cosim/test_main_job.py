"""The main job on RTL: both systems serve a small log on the compiled engine, with and without jumping over time."""

from __future__ import annotations

import io
import random
from pathlib import Path

import msgspec
import pytest

from cosim import http
from cosim.engines import compiled
from cosim.engines.base import RunSpec, SystemResult
from cosim.systems import DEFAULT_SYSTEMS, SYSTEMS
from cosim.workload import Request, parse_log
from tests.cosim.captures import read_capture
from tests.cosim.test_experiment import LOG, nothing, spec


def run(name: str, requests: list[Request], **changes: object) -> tuple[RunSpec, SystemResult]:
    job = spec(SYSTEMS[name], requests, **changes)
    return job, compiled.run(job, nothing)


@pytest.mark.parametrize("name", list(DEFAULT_SYSTEMS))
def test_a_small_log_is_served_over_rtl_and_its_capture_is_clean(name: str, tmp_path: Path) -> None:
    requests = parse_log(io.StringIO(LOG), source="log").requests
    path = tmp_path / "wire.pcapng"
    _, result = run(name, requests, capture_path=str(path), clients=3)
    assert result.requests == len(requests)
    # read_capture asserts that each checksum and each sequence number is right, by scapy alone
    capture = read_capture(path)
    assert capture.frames == (result.frames_sent + result.frames_received) * len(requests)
    served = sorted(stream for flow, stream in capture.streams.items() if flow[1] == 80)
    wanted = sorted(http.format_response_head(r.method, r.status, r.size_bytes) + http.content(r.path, r.body_bytes)
                    for r in requests)
    assert served == wanted
    assert result.interrupts > 0
    bodies = sum(request.body_bytes for request in requests) / len(requests)
    assert result.dma_read_bytes > bodies


@pytest.mark.parametrize("seed", [1, 2])
def test_jumping_over_idle_time_changes_nothing(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    print("seed", seed)
    sizes = [rng.choice((0, 1, 1460, 5000, rng.randrange(20_000))) for _ in range(5)]
    requests = [Request("GET", f"/file{number}", 200, size) for number, size in enumerate(sizes)]
    name = rng.choice(list(DEFAULT_SYSTEMS))
    outcomes = []
    for jump in (True, False):
        path = tmp_path / f"{jump}.pcapng"
        _, result = run(name, requests, capture_path=str(path), clients=2, jump=jump, seed=seed)
        outcomes.append((msgspec.json.encode(result), path.read_bytes()))
    assert outcomes[0] == outcomes[1]


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    requests = [Request("GET", "/a", 200, 30_000), Request("GET", "/b", 200, 3)]
    encoded = []
    for attempt in range(2):
        path = tmp_path / f"{attempt}.pcapng"
        _, result = run("nic-tso", requests, capture_path=str(path), clients=2)
        encoded.append((msgspec.json.encode(result), path.read_bytes()))
    assert encoded[0] == encoded[1]
