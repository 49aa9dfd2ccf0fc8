"""`memnic bench tcp`: its formulas against figures worked out by hand, its path, and its rows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cosim import cli
from cosim.benches import tcp
from cosim.benches.tcp import Bottleneck
from host_driver.tcp import LINUX24, PROFILES, RFC
from host_driver.tcp.profile import MS

SMALL_BYTES = 400_000


def test_model_of_padhye() -> None:
    """At little loss the square root law: 1.22 / sqrt(2 p) segments a round trip with delayed acknowledgements."""
    assert tcp.padhye(1e-6, 0.1, 0) == pytest.approx(1 / 0.1 / (4 * 1e-6 / 3) ** 0.5)
    # p = 0.01: the root is 0.11547 of 0.1 s; the timeouts add 1 * min(1, 3 * sqrt(0.0075)) * 0.01 * 1.0032
    assert tcp.padhye(0.01, 0.1, 1.0) == pytest.approx(1 / (0.011547 + 0.259808 * 0.010032), rel=1e-4)


def test_model_of_cubic() -> None:
    """RFC 9438 §5.1: with p = 0.01 and a round trip of 100 ms, 1.054 * 0.1^0.75 / 0.01^0.75 = 5.93 segments."""
    assert tcp.cubic_segments(0.01, 0.1) == pytest.approx(59.3, rel=0.01)


@pytest.mark.parametrize(("profile", "round_trip_ms", "bits_per_s"), [
    (LINUX24, 100, 65535 * 8 / 0.1), (LINUX24, 1, 1e8 * 1460 / 1538), (RFC, 1, 1e8 * 1448 / 1538)])
def test_without_loss_window_or_link_limit(profile: tcp.Profile, round_trip_ms: int, bits_per_s: float) -> None:
    path = Bottleneck(round_trip_ms * MS, 0)
    assert tcp.expected_goodput(profile, path) == pytest.approx(bits_per_s)
    assert tcp.goodput(profile, path, SMALL_BYTES) < bits_per_s


def test_the_same_seed_gives_the_same_figure_and_another_another() -> None:
    path = Bottleneck(5 * MS, 0.02)
    first = tcp.goodput(RFC, path, SMALL_BYTES, seed=3)
    assert first == tcp.goodput(RFC, path, SMALL_BYTES, seed=3)
    assert first != tcp.goodput(RFC, path, SMALL_BYTES, seed=4)


def test_loss_and_queue_cost_what_they_should() -> None:
    whole = tcp.goodput(RFC, Bottleneck(20 * MS, 0), SMALL_BYTES)
    assert tcp.goodput(RFC, Bottleneck(20 * MS, 0.05), SMALL_BYTES) < whole / 2
    assert tcp.goodput(RFC, Bottleneck(20 * MS, 0, queue_frames=1), SMALL_BYTES) < whole


def test_transfer_that_cannot_end_is_an_error() -> None:
    profile = replace(RFC, name="hasty", max_syn_retransmissions=2)
    with pytest.raises(RuntimeError, match="hasty: the transfer ended after 0 of 400000 bytes"):
        tcp.goodput(profile, Bottleneck(MS, 1.0), SMALL_BYTES)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_idle_connections_are_small(profile: tcp.Profile) -> None:
    """The bar, at a tenth of its connections; a Connection alone is over 500 bytes."""
    assert 500 < tcp.idle_connection_bytes(profile, 100) < tcp.MEMORY_BAR_BYTES


def test_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tcp, "segments_per_second", lambda profile: 31_000.0 if profile is RFC else 29_000.0)
    monkeypatch.setattr(tcp, "idle_connection_bytes", lambda profile: 4_000.0)
    monkeypatch.setattr(tcp, "goodput", lambda profile, path, total_bytes: 1e6)
    assert cli.run(["bench", "tcp", "--json"]) == 0
    rows = {r["figure"]: r for r in json.loads(capsys.readouterr().out)}
    assert len(rows) == len(PROFILES) * (2 + 3 * 3)
    assert rows["rfc: data segments through both stacks on one processor"]["reached"] is True
    assert rows["linux24: data segments through both stacks on one processor"]["reached"] is False
    slow = rows["linux24: goodput, round trip 100 ms, 0 % loss"]
    assert (slow["value"], slow["reached"]) == (1.0, False)
    assert slow["bar"] == pytest.approx(0.8 * 65535 * 8 / 0.1 / 1e6)


def test_segments_are_counted() -> None:
    assert tcp.segments_per_second(RFC, 500) > 100
