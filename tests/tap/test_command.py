"""What `memnic tap` refuses, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cosim import cli
from cosim.benches import BenchOptions, measure
from cosim.tap.bench import TapStatus
from cosim.tap.report import status_line
from tests.tap.harness import MEMNIC, Tap, assert_at_rest, needs_tap, url


@pytest.mark.parametrize(("options", "said"), [
    (("--api", "smoke"), "--api must be one of memnet, sockets, not 'smoke'"),
    (("--engine", "steam"), "--engine must be one of compiled, model, cocotb, not 'steam'"),
    (("--device", "huge"), "--device must be one of "),
    (("--api", "memnet", "--systems", "nic-tcp"), "--api and --systems exclude each other"),
    (("--systems", "smp,nic-tcp"), "--systems must be one system here, not smp, nic-tcp"),
    (("--systems", "ded1"), "--systems ded1: its TCP is on dedicated processors or on nodes; here it must be on the "
     "host or on the device"),
    (("--systems", "uniproc"), "--systems uniproc: it uses some of the machine's processors"),
    (("--profile", "bsd"), "--profile must be one of "),
    (("--port", "70000"), "--port must be 1 to 65535, not 70000"),
    (("--root", "/nowhere"), "--root: no folder /nowhere"),
    (("--requests", "0"), "--requests must be at least 1, not 0"),
    (("--capture", "/nowhere/a"), "--capture: no folder /nowhere"),
    (("--client", "--replay", "a"), "--client and --replay exclude each other"),
    (("--loss", "two"), "--loss must be a share"),
])
def test_bad_options_are_one_line_and_exit_2(options: tuple[str, ...], said: str,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["tap", *options]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"memnic: {said}")
    assert printed.count("\n") == 1


def test_tcp_on_a_device_without_a_processor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = (Path("cosim") / "machines" / "p2-300-smp2.toml").read_text(encoding="utf-8")
    machine = tmp_path / "mine.toml"
    machine.write_text(text[: text.index("[device_processor]")], encoding="utf-8")
    assert cli.run(["tap", "--systems", "nic-tcp", "--engine", "model", "--machine", str(machine)]) == 2
    assert capsys.readouterr().err == ("memnic: --systems nic-tcp: it does TCP on a device processor, and machine "
                                       "p2-300-smp2 has no table `device_processor`\n")


def test_without_root_it_says_so_and_exits_2(capsys: pytest.CaptureFixture[str],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert cli.run(["tap"]) == 2
    assert capsys.readouterr().err == (
        "memnic: memnic tap: it takes root's rights to make a network namespace and a TAP interface\n")


@needs_tap
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is missing")
def test_root_without_its_rights_is_told_what_failed_and_exits_2() -> None:
    done = subprocess.run(["setpriv", "--bounding-set=-all", "--inh-caps=-all", *MEMNIC, "tap"], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("memnic: memnic tap: ip netns add ")
    assert done.stderr.count("\n") == 1


@needs_tap
@pytest.mark.parametrize("system", ["nic-tso", "nic-tcp"])
def test_it_ends_by_itself_after_so_many_requests(root: Path, system: str) -> None:
    with Tap(root, "--engine", "model", "--systems", system, "--requests", "2") as tap:
        tap.curl(url("byte"))
        tap.curl(url("byte"))
        assert tap.wait_s(10) == 0


@needs_tap
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_the_middle_of_a_transfer_and_removes_the_namespace(root: Path, number: int) -> None:
    with Tap(root, "--engine", "model") as tap:
        connection = tap.connect()
        connection.sendall(b"GET /20M HTTP/1.1\r\nHost: memnic\r\n\r\n")
        connection.recv(1000)
        result = tap.finish(number)
        assert result.server.open_connections == 1
        connection.close()


def test_the_status_has_simulated_and_real_rates() -> None:
    before = TapStatus(requests=10, body_bytes=0, simulated_ps=10**12)
    now = TapStatus(requests=30, connections=3, body_bytes=1_000_000, simulated_ps=3 * 10**12 // 2)
    assert status_line(before, now, 5.0) == (
        "30 requests; 3 connections; simulated 1.500 s (1/10 of real time); simulated 40 requests/s, 16.0 Mbit/s; "
        "real 4 requests/s, 1.6 Mbit/s")


@needs_tap
@pytest.mark.parametrize("system", ["nic-tso", "nic-tcp"])
def test_idle_it_costs_next_to_nothing(root: Path, system: str) -> None:
    with Tap(root, "--engine", "model", "--systems", system) as tap:
        tap.curl(url("byte"))
        time.sleep(0.2)
        before, began = tap.cpu_s(), time.monotonic()
        time.sleep(2)
        assert tap.cpu_s() - before < 0.2 * (time.monotonic() - began)
        assert tap.curl(url("byte"))


@needs_tap
@pytest.mark.parametrize("system", ["nic-tso", pytest.param("nic-tcp", marks=pytest.mark.long)])
def test_under_cocotb_a_simulator_process_serves_and_ctrl_c_ends_it_with_a_result(root: Path, system: str) -> None:
    with Tap(root, "--engine", "cocotb", "--device", "tiny", "--systems", system) as tap:
        assert tap.curl(url("segment")) == (root / "segment").read_bytes()
        assert tap.curl(url("16K", 6)) == (root / "16K").read_bytes()
        time.sleep(0.5)
        result = tap.finish()
        assert result.server.statuses == {"200": 2}
        assert_at_rest(result)


def test_the_bench_says_why_it_measured_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosim.benches.tap.why_not", lambda: "there is no TAP")
    rows = measure("tap", BenchOptions(log=None, say=print))
    assert [(row.value, row.reached, row.note) for row in rows] == [(None, False, "not measured: there is no TAP")] * 3
