"""`memnic tap` as a user runs it, and what a test does in its namespace."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from cosim import builds
from cosim.control_port import device_config
from cosim.tap.bench import TapResult
from cosim.tap.namespace import INTERFACE, Namespace, why_not

T = TypeVar("T")

REASON = why_not() or next((f"{tool} is missing" for tool in ("curl", "tshark") if shutil.which(tool) is None), None)

needs_tap = pytest.mark.skipif(REASON is not None, reason=f"no TAP here: {REASON}")

SERVER = {4: "10.0.0.1", 6: "fd00::1"}
PORT = 8080
START_S = 60.0
"""For a server whose device is built."""

SERVERS = {"nic-tso": ("--engine", "compiled", "--device", "tiny"),
           "nic-tcp": ("--systems", "nic-tcp", "--engine", "compiled", "--device", "tiny"),
           "nic-tcp-model": ("--systems", "nic-tcp", "--engine", "model", "--device", "tiny")}
"""TCP on the host, and on the device over its RTL and without: options of the command."""

EACH_SERVER = [pytest.param(name, marks=[pytest.mark.long] if name == "nic-tcp-model" else []) for name in SERVERS]

MEMNIC = [sys.executable, "-c", "from cosim.cli import main; main()"]
_numbers = count()


class Tap:
    """A running `memnic tap`; a context manager. `finish` ends it and returns what it says.

    Attributes: `namespace`; `capture`, if `captured`.
    """

    def __init__(self, root: Path, *options: str, captured: bool = False) -> None:
        self._options = options
        name = f"memnic-test-{next(_numbers)}-{time.monotonic_ns() % 10**9}"
        self.namespace = Namespace(name)
        self._folder = Path(tempfile.mkdtemp(prefix="memnic-tap-"))
        self.capture = self._folder / "wire.pcapng"
        self._command = [*MEMNIC, "tap", "--root", str(root), "--port", str(PORT), "--name", name, "--json", *options]
        if captured:
            self._command += ["--capture", str(self.capture)]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Tap:
        if "compiled" in self._options:
            is_on_device = self._option("--systems", "") == "nic-tcp"
            builds.build(device_config(self._option("--device", "default"), control_port=is_on_device), builds.LIBRARY)
        self._log = (self._folder / "log").open("w+")
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        until = time.monotonic() + START_S
        while "serving" not in self.said():
            assert self._process.poll() is None, self.said()
            assert time.monotonic() < until, self.said()
            time.sleep(0.05)
        return self

    def _option(self, name: str, default: str) -> str:
        """Value of an option of the command."""
        return self._options[self._options.index(name) + 1] if name in self._options else default

    def said(self) -> str:
        """What it printed for people so far."""
        return (self._folder / "log").read_text()

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self.is_running:
            self._process.send_signal(signal.SIGTERM)
            self._process.communicate()
        self._log.close()
        shutil.rmtree(self._folder)

    def wait_s(self, timeout_s: float) -> int:
        """Its exit code, if it ends by itself."""
        assert self._process is not None
        self._process.communicate(timeout=timeout_s)
        return self._process.returncode

    @property
    def is_running(self) -> bool:
        """Whether nobody has ended it."""
        return self._process is not None and self._process.poll() is None

    def cpu_s(self) -> float:
        """Processor time that it took so far."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def finish(self, number: int = signal.SIGINT) -> TapResult:
        """Ctrl-C, or another signal, and what it says then."""
        assert self._process is not None
        self._process.send_signal(number)
        out, _ = self._process.communicate(timeout=30)
        assert self._process.returncode == 0, self.said()
        assert self.namespace.name not in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
        return msgspec.json.decode(out, type=TapResult)

    # ------------------------------------------------------------------------------------------ as the kernel's user

    def curl(self, *arguments: str, timeout_s: float = 60) -> bytes:
        """What curl prints. Fails when it does not exit with 0."""
        done = self.namespace.run("curl", "--globoff", "--silent", "--show-error", "--max-time", str(timeout_s),
                                  *arguments, capture_output=True)
        assert done.returncode == 0, (arguments, done.stderr.decode(), self.said())
        return bytes(done.stdout)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket of the kernel in the namespace."""
        return self.namespace.inside(lambda: socket.socket(family, kind, protocol))

    def connect(self, version: int = 4, prepare: Callable[[socket.socket], Any] | None = None) -> socket.socket:
        """A connection to the server, with a time-out; `prepare` sees the socket before."""
        connection = self.socket(socket.AF_INET if version == 4 else socket.AF_INET6)
        connection.settimeout(30)
        if prepare is not None:
            prepare(connection)
        connection.connect((SERVER[version], PORT))
        return connection

    def packet_socket(self) -> socket.socket:
        """A socket whose sends are whole frames on the TAP interface."""
        def make() -> socket.socket:
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
            raw.bind((INTERFACE, 0))
            return raw

        return self.namespace.inside(make)


def url(path: str, version: int = 4) -> str:
    """Of a file of the server."""
    return f"http://{SERVER[version]}:{PORT}/{path}" if version == 4 else f"http://[{SERVER[version]}]:{PORT}/{path}"


def read_all(connection: socket.socket) -> bytes:
    """Everything until the peer closes."""
    parts = []
    while data := connection.recv(1 << 16):
        parts.append(data)
    return b"".join(parts)


FAILURES = ("send_errors", "receive_errors", "failed_orders")
"""Of the driver, and of the firmware: what never happens."""


def assert_at_rest(result: TapResult) -> None:
    """Nothing leaked: no connection but those that wait for their time, no frame, send or buffer.

    Frames that found the softirq's queue full are no leak: a 300 MHz processor is slower than a wire at full rate.
    """
    assert set(result.connections) <= {"TIME_WAIT"}, result.connections
    assert result.server.open_connections == 0
    assert (result.half_open, result.waiting_to_be_accepted) == (0, 0)
    assert not any(result.left_over.values()), result.left_over
    assert not any(result.interface.get(name, 0) for name in FAILURES), result.interface
    assert result.unsent_frames == 0
    control = result.control
    assert (control.get("control_stale", 0), control.get("control_refused", 0)) == (0, 0), control


def error_notes(capture: Path, more: str = "") -> list[str]:
    """What tshark's expert says at the level of errors, with checksums verified.

    Streams are not put together: tshark calls it an error when a segment comes again after it had all of a response,
    which is right when the wire has lost the first one behind the place where the capture is taken.

    `more`: a display filter of the frames that count.
    """
    filters = "_ws.expert.severity == error" + (f" and ({more})" if more else "")
    settings = ("tcp.check_checksum:TRUE", "ip.check_checksum:TRUE", "tcp.desegment_tcp_streams:FALSE")
    done = subprocess.run(
        ["tshark", "-r", str(capture), *(word for setting in settings for word in ("-o", setting)), "-Y", filters,
         "-T", "fields", "-e", "frame.number", "-e", "_ws.expert.message"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
