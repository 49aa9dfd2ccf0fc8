"""Every named system serves the same 300 requests, of a log and of Synthetic, and `memnic run` shows all of them."""

from __future__ import annotations

import json
import random
import tomllib
from pathlib import Path

import msgspec
import pytest

import cosim
from cosim import cli
from cosim.systems import SYSTEMS
from cosim.workload import SYNTHETIC_FILE_BYTES

pytestmark = pytest.mark.long

REQUESTS = 300
SMALL_LOG_BYTES = 65_536
"""Sizes above it are cut by --max-size."""


def machine(tmp_path: Path) -> str:
    """Four processors, and the SAN of the paper's third machine, so that it has what each system needs."""
    machines = Path(cosim.__file__).parent / "machines"
    via = tomllib.loads((machines / "p2-300-via.toml").read_text())
    lines = ['like = "xeon-550-smp4"', 'name = "all"', 'description = "what every system needs"', "[san]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in via["san"].items()]
    lines.append("[costs.san]")
    lines += [f"{item} = {{ cycles = {cost['cycles']}, source = {json.dumps(cost['source'])} }}"
              for item, cost in via["costs"]["san"].items()]
    path = tmp_path / "machine.toml"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def log(tmp_path: Path) -> tuple[str, int]:
    """A log as a site of small and some large files has it, and how many bytes of bodies its answers have."""
    rng, lines, body_bytes = random.Random(2015), [], 0
    for number in range(REQUESTS):
        method, status = rng.choices(("GET", "HEAD"), (19, 1))[0], rng.choices((200, 206, 304, 404), (85, 5, 8, 2))[0]
        size = int(min(rng.lognormvariate(8.6, 1.3), 400_000)) if status != 304 else 0
        lines.append(f'10.1.0.{number % 250} - - [17/May/2015:10:05:{number % 60:02} +0000] "{method} '
                     f'/files/{rng.randrange(90)}.html HTTP/1.1" {status} {size or "-"} "-" "curl"')
        body_bytes += min(size, SMALL_LOG_BYTES) if method == "GET" else 0
    path = tmp_path / "access.log"
    path.write_text("\n".join(lines) + "\n")
    return str(path), body_bytes


@pytest.mark.parametrize("workload", ["synthetic", "log"])
@pytest.mark.parametrize("engine", ["model", "compiled"])
def test_every_system_serves_the_same_requests_side_by_side(engine: str, workload: str, tmp_path: Path,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    names, arguments, body_bytes = list(SYSTEMS), [], REQUESTS * SYNTHETIC_FILE_BYTES
    if workload == "log":
        path, body_bytes = log(tmp_path)
        arguments = ["--log", path, "--max-size", "64K"]
    # Clients compare each byte, and end the run if one is wrong.
    assert cli.run(["run", "--engine", engine, "--machine", machine(tmp_path), "--systems", ",".join(names),
                    "--requests", str(REQUESTS), "--clients", "16", "--out", str(tmp_path / "out"), *arguments]) == 0
    shown = capsys.readouterr().out
    results = msgspec.json.decode((tmp_path / "out" / "result.json").read_bytes())["systems"]
    assert set(results) == set(names)
    for name, result in results.items():
        assert (result["requests"], result["body_bytes"], result["complete"]) == (REQUESTS, body_bytes, True), name
        assert f"| {name} " in shown
