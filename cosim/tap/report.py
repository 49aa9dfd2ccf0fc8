"""What `memnic tap` shows: how far it is, and in the end what it did."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from cosim.impairments import PathCounts
from cosim.machine import PS_PER_SECOND
from cosim.tap.bench import TapResult, TapStatus

PLAIN_INTERVAL_S = 10.0
"""Real time between two lines where nobody looks at a terminal."""


class TapProgress:
    """Shows `greeting` when the simulated host is up, then requests, and the simulated and the real rate since they
    were last shown. A context manager."""

    def __init__(self, console: Console, greeting: str) -> None:
        self._console = console
        self._greeting = greeting
        self._status: Status | None = None
        self._last = TapStatus(requests=0, simulated_ps=0)
        self._last_s = time.monotonic()

    def __enter__(self) -> TapProgress:
        if self._console.is_terminal:
            self._status = self._console.status("starting", spinner="line")
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()

    def update(self, status: TapStatus) -> None:
        """So far it is."""
        if self._greeting:
            self._console.print(self._greeting, markup=False)
            self._greeting = ""
        now_s = time.monotonic()
        passed_s = now_s - self._last_s
        if passed_s < (0.4 if self._status is not None else PLAIN_INTERVAL_S):
            return
        line = status_line(self._last, status, passed_s)
        self._last, self._last_s = status, now_s
        if self._status is not None:
            self._status.update(line)
        else:
            self._console.print(f"memnic: {line}", markup=False)


def status_line(before: TapStatus, now: TapStatus, real_s: float) -> str:
    """Requests so far; rates since `before`, which is `real_s` of real time ago."""
    bits = 8 * (now.body_bytes - before.body_bytes)
    simulated_s = (now.simulated_ps - before.simulated_ps) / PS_PER_SECOND
    requests = now.requests - before.requests
    slowness = f"1/{real_s / simulated_s:,.0f}" if 0 < simulated_s < real_s / 1.5 else "all"
    said = [f"{now.requests} requests", f"{now.connections} connections",
            f"simulated {now.simulated_ps / PS_PER_SECOND:.3f} s ({slowness} of real time)"]
    if simulated_s > 0:
        said.append(f"simulated {requests / simulated_s:,.0f} requests/s, {bits / simulated_s / 1e6:,.1f} Mbit/s")
    said.append(f"real {requests / real_s:,.0f} requests/s, {bits / real_s / 1e6:,.1f} Mbit/s")
    return "; ".join(said)


def print_result(console: Console, result: TapResult) -> None:
    """What a run did, and what is left of it."""
    server = result.server
    table = Table(title="memnic tap", title_justify="left", show_header=False)
    statuses = ", ".join(f"{count} of {status}" for status, count in sorted(server.statuses.items()))
    rows = {
        "simulated, s": f"{result.simulated_ps / PS_PER_SECOND:.3f}",
        "real, s": f"{result.real_s:.1f}",
        "connections": f"{server.connections}, {server.failed_connections} of them failed",
        "requests": f"{server.requests}" + (f" ({statuses})" if statuses else ""),
        "body bytes sent, received": f"{server.sent_body_bytes:,}, {server.received_body_bytes:,}",
        "frames from, to the device": f"{result.frames_from_device:,}, {result.frames_to_device:,}",
    }
    for way, counts in (("from", result.outbound), ("to", result.inbound)):
        if counts is not None:
            rows[f"the wire {way} the device"] = _impairments(counts)
    rows["connections that the stack still has"] = _named(result.connections)
    rows["not given back"] = _named(result.left_over)
    rows["dropped or failed"] = _named({**result.stack, **result.interface})
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    if result.fetched:
        _print_fetched(console, result)
    if result.played:
        _print_played(console, result)


def _print_fetched(console: Console, result: TapResult) -> None:
    files = Table(title="fetched from the real server", title_justify="left")
    for heading in ("file", "from", "status", "bytes", "simulated, ms", ""):
        files.add_column(heading, justify="right" if heading in ("bytes", "simulated, ms") else "left")
    for file in result.fetched:
        files.add_row(file.path, file.address, str(file.status), f"{file.body_bytes:,}",
                      f"{file.duration_ps / PS_PER_SECOND * 1000:.3f}", file.problem or "whole")
    console.print(files)


def _print_played(console: Console, result: TapResult) -> None:
    flows = Table(title="connections of the capture", title_justify="left")
    numbers = ("packets", "resent", "ACKs added", "server too short", "bytes recorded", "bytes received")
    for heading in ("client", *numbers, "end"):
        flows.add_column(heading, justify="right" if heading in numbers else "left")
    for flow in result.played:
        flows.add_row(escape(flow.client), str(flow.packets), str(flow.resent), str(flow.added_acks), str(flow.missing),
                      f"{flow.recorded_bytes:,}", f"{flow.received_bytes:,}", flow.end)
    console.print(flows)


def _impairments(counts: PathCounts) -> str:
    return (f"{counts.entered:,} frames: {counts.lost} lost, {counts.overflowed} overflowed, "
            f"{counts.duplicated} doubled, {counts.corrupted} damaged, {counts.reordered} late")


def _named(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count) or "none"
