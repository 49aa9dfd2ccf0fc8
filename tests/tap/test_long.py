"""What takes minutes: a thousand connections at a time, a minute of garbage, goodput beside the kernel's."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from cosim.benches import BenchOptions
from cosim.benches.tap import measure
from tests.tap.harness import SERVERS, Tap, assert_at_rest, error_notes, needs_tap, read_all, url
from tests.tap.hostile import Garbage

pytestmark = [needs_tap, pytest.mark.long]

CONNECTIONS = 1000
WITHIN_S = 180
REST_S = 6
"""Ends that were lost in the crowd come again when the kernel's timers say so, which have seen a slow peer."""


@pytest.mark.parametrize("options", [
    ("--engine", "compiled", "--api", "memnet"), ("--engine", "compiled", "--api", "sockets"),
    SERVERS["nic-tcp"]], ids=["memnet", "sockets", "nic-tcp"])
def test_a_thousand_connections_at_a_time_are_all_served(root: Path, options: tuple[str, ...]) -> None:
    expected = (root / "16K").read_bytes()
    with Tap(root, *options) as tap:
        began = time.monotonic()
        connections = [tap.connect(4 + 2 * (number % 2)) for number in range(CONNECTIONS)]
        for connection in connections:
            connection.sendall(b"GET /16K HTTP/1.1\r\nHost: memnic\r\nConnection: close\r\n\r\n")
        for connection in connections:
            assert read_all(connection).endswith(b"\r\n\r\n" + expected)
            connection.close()
        took_s = time.monotonic() - began
        print(f"{CONNECTIONS} connections in {took_s:.1f} s")
        time.sleep(REST_S)
        result = tap.finish()
    assert result.server.connections == CONNECTIONS
    assert_at_rest(result)
    assert took_s < WITHIN_S


@pytest.mark.parametrize("options", [
    ("--engine", "compiled"), SERVERS["nic-tcp"]], ids=["nic-tso", "nic-tcp"])
def test_a_minute_of_garbage_costs_the_others_nothing_but_its_share(root: Path, options: tuple[str, ...]) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    expected = (root / "1M").read_bytes()
    with Tap(root, *options, captured=True) as tap:
        def transfers(duration_s: float) -> float:
            """Transfers a second."""
            done, began = 0, time.monotonic()
            while time.monotonic() - began < duration_s:
                assert tap.curl(url("1M")) == expected
                done += 1
            return done / (time.monotonic() - began)

        alone = transfers(10)
        with Garbage(tap, seed, pause_s=0.005) as garbage:
            beside = transfers(60)
        time.sleep(1)
        result = tap.finish()
        assert_at_rest(result)
        assert error_notes(tap.capture, "eth.src == 02:00:00:00:00:01") == []
    print(f"{alone:.2f} transfers a second alone, {beside:.2f} beside {garbage.sent} frames of garbage")
    assert garbage.sent > 3000
    assert beside > 0.5 * alone


def test_goodput_at_1_percent_loss_is_at_least_80_percent_of_the_kernels() -> None:
    rows = [row for row in measure(BenchOptions(log=None, say=print)) if "at 1 % loss" in row.figure]
    assert len(rows) == 2
    assert [row.note for row in rows if not row.reached] == []
