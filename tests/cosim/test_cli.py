"""The command line: what it takes, what it leaves, and the one line and exit code of everything that goes wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cosim import cli, http
from cosim.commands.run import parse_quantity
from cosim.engines import in_process
from cosim.engines.base import RunError
from cosim.engines.registry import available, select_engine
from cosim.errors import InputError
from cosim.pcapng import PcapngWriter
from cosim.results import RESULT_NAME
from tests.cosim.captures import read_capture

LINE = '192.0.2.1 - - [01/Feb/2002:10:00:00 +0100] "GET /index.html HTTP/1.0" 200 2326\n'
RUN = ["run", "--engine", "model", "--requests", "3", "--device", "tiny"]


def test_a_run_prints_tables_and_fills_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*RUN, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for expected in ("requests served", "tcp_send", "interrupts a request", "latency p99", "Gain of offload", "Fig. 1"):
        assert expected in printed.out
    data = json.loads((tmp_path / RESULT_NAME).read_text())
    assert data["complete"] is True
    assert set(data["systems"]) == {"nic-dumb", "nic-tso"}
    for system in data["systems"]:
        assert read_capture(tmp_path / system / "wire.pcapng").frames > 30


def test_the_users_own_log_and_its_bad_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "access.log"
    log.write_text("garbage\n" + LINE * 4 + LINE.replace(" 2326", " 99999"))
    assert cli.run([*RUN, "--requests", "9", "--systems", "nic-tso", "--max-size", "2K", "--log", str(log), "--out",
                    str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "5 requests" in out
    assert "5 sizes were above --max-size" in out
    assert "1 lines are no log lines" in out
    assert "'garbage'" in out


def test_adaptive_moderation_is_asked_for_by_direction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*RUN, "--systems", "nic-dumb", "--adaptive", "rx", "--json", "--out", str(tmp_path)]) == 0
    data = json.loads(capsys.readouterr().out)
    moderation = data["configuration"]["systems"][0]["notification"]["moderation"]
    assert (moderation["adaptive_rx"], moderation["adaptive_tx"]) == (True, False)
    # 8 us at the most instead of the machine's 60: more interrupts for so few frames
    assert cli.run([*RUN, "--systems", "nic-dumb", "--json", "--out", str(tmp_path)]) == 0
    fixed = json.loads(capsys.readouterr().out)
    assert fixed["configuration"]["systems"][0]["notification"]["moderation"] is None
    assert data["systems"] != fixed["systems"]
    assert cli.run([*RUN, "--adaptive", "up", "--out", str(tmp_path)]) == 2
    assert "--adaptive must be rx, tx or rx,tx" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "fields", "charged", "not_charged"), [
    ("each", {"by": "interrupt"}, ("interrupt", "driver"), ("poll",)),
    ("moderated", {"by": "interrupt", "moderation": None}, ("interrupt",), ("poll",)),
    ("poll:100us", {"by": "polling", "period_us": 100}, ("interrupt", "poll"), ()),
    ("soft:20us", {"by": "soft_timers", "period_us": 20}, ("poll",), ()),
    ("napi", {"by": "napi", "weight": 64}, ("interrupt", "poll"), ()),
    ("napi:8", {"by": "napi", "weight": 8}, ("interrupt", "poll"), ()),
])
def test_the_host_is_told_as_the_user_says(text: str, fields: dict[str, object], charged: tuple[str, ...],
                                           not_charged: tuple[str, ...], tmp_path: Path,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*RUN, "--systems", "nic-tso", "--notification", text, "--json", "--out", str(tmp_path)]) == 0
    data = json.loads(capsys.readouterr().out)
    told = data["configuration"]["systems"][0]["notification"]
    assert {name: told[name] for name in fields} == fields
    cycles = data["systems"]["nic-tso"]["cycles"]
    assert set(charged) <= set(cycles)
    assert not set(not_charged) & set(cycles)
    assert (data["systems"]["nic-tso"]["interrupts"] > 0) == (fields["by"] in ("interrupt", "napi"))


@pytest.mark.parametrize(("notification", "clock"), [("moderated", True), ("poll:20us", False)])
def test_a_processor_may_be_dedicated_to_the_network(notification: str, clock: bool, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*RUN, "--systems", "nic-tso", "--interrupts-on", "1", "--processes-on", "0", "--notification",
                    notification, "--json", "--out", str(tmp_path)]) == 0
    data = json.loads(capsys.readouterr().out)
    system, result = data["configuration"]["systems"][0], data["systems"]["nic-tso"]
    assert (system["interrupts_on"], system["processes_on"]) == ([1], [0])
    host, network = result["processor_categories"]
    assert {"user", "file_system", "tcp_send"} <= set(host)
    assert not {"softirq", "interrupt"} & set(host)
    assert ("poll" in host) == (not clock), "it waits for the bus while the other one polls"
    assert {"softirq", "tcp_recv"} <= set(network)
    assert not {"user", "file_system"} & set(network)
    # A processor that does nothing else looks by itself.
    assert ("interrupt" in network) == clock


@pytest.mark.parametrize(("options", "said"), [
    (["--interrupts-on", "2"], "--interrupts-on must be some of the processors 0 to 1 of p2-300-smp2"),
    (["--processes-on", "0,x"], "--processes-on must be some of the processors 0 to 1 of p2-300-smp2"),
    (["--notification", "pigeon"], "--notification must be each, moderated, poll:PERIOD, soft:PERIOD, napi or"),
    (["--notification", "each:1"], "--notification must be each, "),
    (["--notification", "poll"], "--notification poll needs a period, such as poll:50us"),
    (["--notification", "soft:fast"], "--notification soft must be a positive number with"),
    (["--notification", "poll:5ps"], "--notification poll must be at least 1ns, not '5ps'"),
    (["--notification", "napi:0"], "--notification napi must have a weight of at least 1 packet, not '0'"),
    (["--notification", "soft:1ms", "--adaptive", "rx"], "--adaptive needs interrupts, and nic-dumb has none"),
])
def test_a_notification_that_there_is_not_is_one_line(options: list[str], said: str, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*RUN, *options, "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


def test_json_is_the_result_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*RUN, "--systems", "nic-dumb", "--json", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (tmp_path / RESULT_NAME).read_text()


def test_the_same_seed_gives_the_same_file_but_for_the_wall_clock(tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        assert cli.run([*RUN, "--seed", "7", "--out", str(tmp_path / name)]) == 0
        text = (tmp_path / name / RESULT_NAME).read_text()
        head, wall_clock, tail = text.partition('"wall_clock"')
        assert wall_clock
        texts.append((head, tail.split("}\n")[-1]))
    assert texts[0] == texts[1]


BAD_MACHINE = 'name = "x"\nprocessors = 1\n[costs]\n'


@pytest.mark.parametrize(("arguments", "message"), [
    (["--log", "{tmp}/none.log"], "none.log: No such file"),
    (["--log", "{tmp}"], "Is a directory"),
    (["--log", "{tmp}/empty.log"], "empty.log: no request in this log: it is empty"),
    (["--systems", "nic-dumb,nic-magic"], "no system 'nic-magic': choose from uniproc, smp"),
    (["--systems", ","], "no system named"),
    (["--machine", "cray-1"], "no machine 'cray-1'"),
    (["--machine", "{tmp}/bad.toml"], "bad.toml: missing `costs.context_switch.switch`"),
    (["--application", "iis"], "no application 'iis'"),
    (["--device", "huge"], "no device 'huge': choose from tiny, default, wide"),
    (["--engine", "abacus"], "no engine 'abacus'"),
    (["--requests", "0"], "--requests must be at least 1, not 0"),
    (["--requests", "many"], "'--requests'"),
    (["--clients", "0"], "--clients must be at least 1"),
    (["--clients", "1001"], "--clients must be at most 1000"),
    (["--seed", "-1"], "--seed must be at least 0"),
    (["--link-rate", "fast"], "--link-rate must be a positive number"),
    (["--max-size", "0"], "--max-size must be a positive number"),
    (["--out", "/dev/null/results"], "cannot write results to /dev/null/results"),
    (["--wave"], "--wave needs an engine with RTL"),
    (["--engine", "compiled", "--wave-from", "frame:0"], "--wave-from must be a positive number with ps, ns"),
    (["--engine", "compiled", "--wave-from", "soon"], "behind it, not 'soon'"),
    (["--engine", "compiled", "--wave-length", "3"], "--wave-length must be a positive number with ps"),
    (["--engine", "compiled", "--wave-format", "lxt"], "--wave-format must be vcd or fst, not 'lxt'"),
    (["--engine", "cocotb", "--wave-from", "error"], "need the compiled engine, not cocotb"),
    (["--simulator", "icarus"], "--simulator"),
    (["--colour"], "No such option: --colour"),
])
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.log").touch()
    (tmp_path / "bad.toml").write_text(BAD_MACHINE)
    filled = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert cli.run([*RUN, "--out", str(tmp_path / "out"), *filled]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.startswith("memnic: ")
    assert printed.err.count("\n") == 1


def test_unknown_command_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["fly"]) == 2
    assert "No such command 'fly'" in capsys.readouterr().err
    assert cli.run([]) == 0
    assert "run" in capsys.readouterr().out


def test_a_failed_run_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    def fails_second(spec: object, on_progress: object) -> object:
        if spec.system.name == "nic-tso":  # type: ignore[attr-defined]
            raise RunError("it broke\nat 5 ps")
        return in_process_run(spec, on_progress)

    in_process_run = in_process.run
    monkeypatch.setattr(in_process, "run", fails_second)
    assert cli.run([*RUN, "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"memnic: nic-tso: it broke at 5 ps; partial results are in {tmp_path}\n"
    assert "requests served" in printed.out
    data = json.loads((tmp_path / RESULT_NAME).read_text())
    assert data["complete"] is False
    assert list(data["systems"]) == ["nic-dumb"]


@pytest.mark.parametrize("engine", ["model", "compiled"])
def test_an_application_that_raises_ends_the_run_with_its_traceback_and_the_time(
        engine: str, tiny_compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    def parse_request(data: bytes) -> object:
        raise ArithmeticError("the server cannot count")

    monkeypatch.setattr("cosim.server.http", SimpleNamespace(**{**vars(http), "parse_request": parse_request}))
    assert cli.run([*RUN, "--engine", engine, "--systems", "nic-tso", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "Traceback (most recent call last):"
    assert any("parse_request" in line for line in said)
    assert re.fullmatch(r"memnic: nic-tso: task 'apache \d+' at \d+ ps raised ArithmeticError: the server cannot "
                        rf"count; partial results are in {tmp_path}", said[-1])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_bench_whose_run_fails_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    def measure(name: str, options: object) -> None:
        raise RunError("the simulator ended\nat 5 ps", "what it raised\n")

    monkeypatch.setattr("cosim.commands.bench.measure", measure)
    assert cli.run(["bench", "engine"]) == 1
    assert capsys.readouterr().err == "what it raised\nmemnic: the simulator ended at 5 ps\n"


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    opened = PcapngWriter.__init__

    def on_full_disk(self: PcapngWriter, path: Path, interface: str) -> None:
        opened(self, Path("/dev/full"), interface)

    monkeypatch.setattr(PcapngWriter, "__init__", on_full_disk)
    assert cli.run([*RUN, "--requests", "30", "--systems", "nic-dumb", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert f"partial results are in {tmp_path}" in error
    assert error.count("\n") == 1


def test_interrupting_leaves_a_readable_folder_and_says_where(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import signal; from cosim.cli import main; "
                                # as in a terminal, also where a shell has the tests in the background
                                "signal.signal(signal.SIGINT, signal.default_int_handler); main()",
                                "run", "--engine", "model",
                                "--requests", "100000", "--out", str(tmp_path)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    capture = tmp_path / "nic-dumb" / "wire.pcapng"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (capture.exists() and capture.stat().st_size > 300_000):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == f"memnic: interrupted in nic-dumb; partial results are in {tmp_path}"
    assert "Traceback" not in errors
    assert json.loads((tmp_path / RESULT_NAME).read_text())["complete"] is False
    assert read_capture(capture).frames > 100
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.mark.parametrize(("text", "value"), [("1G", 10**9), ("2.5g", 2_500_000_000), ("100M", 10**8), ("9600", 9600)])
def test_quantities(text: str, value: int) -> None:
    assert parse_quantity("--link-rate", text, {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}) == value


@pytest.mark.parametrize("text", ["", "G", "-1", "1T", "1e3", "0.4"])
def test_bad_quantities(text: str) -> None:
    with pytest.raises(InputError, match="--max-size"):
        parse_quantity("--max-size", text, {"": 1, "K": 1024})


TIMES = {"PS": 1, "NS": 10**3, "US": 10**6, "MS": 10**9, "S": 10**12}


@pytest.mark.parametrize(("text", "value"), [("3ms", 3 * 10**9), ("0.5 us", 500_000), ("2S", 2 * 10**12), ("7ps", 7)])
def test_times(text: str, value: int) -> None:
    assert parse_quantity("--wave-length", text, TIMES) == value


def test_the_model_engine_is_there_and_the_first_is_the_default() -> None:
    assert "model" in available()
    assert select_engine("model") == ("model", in_process.run)
    assert select_engine(None)[0] == available()[0]
