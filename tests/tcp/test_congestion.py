"""CUBIC against RFC 9438's formulas, and the choice of an algorithm."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from host_driver.tcp import LINUX, LINUX24, RFC
from host_driver.tcp.congestion import NewReno
from host_driver.tcp.cubic import Cubic
from host_driver.tcp.profile import MS, SECOND
from host_driver.tcp.sender import CONGESTION_CONTROLS
from tests.tcp.dialogue import PLAIN, Dialogue, queue

MSS = 1000


def after_loss(window: int) -> Cubic:
    """A CUBIC that lost a segment at a window of `window` segments, all of it in flight."""
    control = Cubic(MSS, window, None)
    control.reduce(window * MSS, 0)
    control.window = control.threshold
    return control


def run(control: Cubic, seconds: float, rtt_ps: int) -> list[tuple[float, float]]:
    """(seconds, window in segments) after each round trip, an acknowledgement for each segment."""
    points = []
    now = 0
    while now < seconds * SECOND:
        count = control.window // MSS
        for number in range(count):
            control.grow(MSS, now + rtt_ps * number // count, rtt_ps)
        now += rtt_ps
        points.append((now / SECOND, control.window / MSS))
    return points


def test_reduction() -> None:
    """RFC 9438 §4.6: to 0.7."""
    assert after_loss(100).window == 70 * MSS


def test_window_follows_the_cubic_function() -> None:
    """§4.2: at a long round trip; W_max = 1000, K = cbrt(300 / 0.4) = 9.09 s."""
    for t, window in run(after_loss(1000), 15, 100 * MS):
        assert window == pytest.approx(0.4 * (t - (300 / 0.4) ** (1 / 3)) ** 3 + 1000, rel=0.02)


def test_plateau_then_growth() -> None:
    """§4.2: concave up to W_max, convex behind it."""
    windows = [w for _, w in run(after_loss(1000), 18, 100 * MS)]
    steps = [b - a for a, b in pairwise(windows)]
    assert steps[2] > steps[80] < steps[170]
    assert 998 < windows[91] < 1002


def test_reno_friendly_region() -> None:
    """§4.3: at a short round trip the window grows as Reno's would that reduces to 0.7: 3 * 0.3 / 1.7 segments each."""
    points = run(after_loss(20), 0.1, 10 * MS)
    assert points[-1][1] - 14 == pytest.approx(10 * 0.9 / 1.7, rel=0.1)


def test_reno_friendly_growth_is_reno_s_beyond_the_old_window() -> None:
    """§4.3: alpha is 1 once W_est has reached cwnd_prior."""
    points = run(after_loss(20), 0.4, 10 * MS)
    beyond = [w for _, w in points if w > 21]
    assert (beyond[-1] - beyond[0]) / (len(beyond) - 1) == pytest.approx(1, rel=0.1)


def test_growth_in_a_round_trip_is_bounded() -> None:
    """§4.2: the target is at most 1.5 times the window."""
    control = after_loss(1000)
    control.grow(MSS, 0, 100 * MS)
    before = control.window
    for _ in range(control.window // MSS):
        control.grow(MSS, 60 * SECOND, 100 * MS)
    assert 1.3 * before < control.window <= 1.65 * before


def test_fast_convergence() -> None:
    """§4.7: a W_max that was not reached again gives way: cwnd * (1 + 0.7) / 2."""
    control = after_loss(1000)
    control.reduce(control.window, SECOND)
    control.window = control.threshold
    assert control.threshold == 490 * MSS
    for t, window in run(control, 9, 100 * MS):
        assert window == pytest.approx(0.4 * (t - ((595 - 490) / 0.4) ** (1 / 3)) ** 3 + 595, rel=0.02)


def test_after_a_timeout_it_starts_from_what_it_finds() -> None:
    """§4.8: one segment, slow start up to 0.7 of what was in flight, then K = 0."""
    control = Cubic(MSS, 100, None)
    control.on_timeout(100 * MSS, 0, is_first=True)
    assert (control.window, control.threshold) == (MSS, 70 * MSS)
    control.on_timeout(MSS, SECOND, is_first=False)
    assert control.threshold == 70 * MSS
    while control.window < control.threshold:
        control.grow(MSS, SECOND, 100 * MS)
    window = control.window
    control.grow(MSS, SECOND, 100 * MS)
    assert control.window - window < MSS


def test_undo() -> None:
    control = after_loss(100)
    control.undo()
    assert control.window == 100 * MSS
    assert control.threshold > 100 * MSS


@pytest.mark.parametrize(("limit", "grown"), [(1, 1), (2, 2), (None, 4)])
def test_slow_start_limit(limit: int | None, grown: int) -> None:
    """RFC 5681 §3.1 (2), RFC 3465 §2.2."""
    control = NewReno(MSS, 4, limit)
    control.grow(4 * MSS, 0, None)
    assert control.window == (4 + grown) * MSS


def test_profiles_choose() -> None:
    assert {p.congestion_control for p in (RFC, LINUX24)} == {"newreno"}
    assert LINUX.congestion_control == "cubic"
    assert set(CONGESTION_CONTROLS) == {"newreno", "cubic"}


@pytest.mark.parametrize(("name", "left"), [("newreno", 5), ("cubic", 7)])
def test_a_connection_uses_it(name: str, left: int) -> None:
    """Fast retransmit at ten segments in flight: half, or 0.7."""
    d = Dialogue(replace(PLAIN, congestion_control=name, initial_window_segments=10, limited_transmit=False))
    c = d.accepted(window=65535)
    queue(c, bytes(20 * 1460))
    d.sent()
    for _ in range(3):
        d.send("A", 1, 1, window=65535)
    assert c.sender.control.threshold == left * 1460
