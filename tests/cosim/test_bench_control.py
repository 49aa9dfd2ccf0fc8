"""`memnic bench control`: what it measures is there, and it says so when the port does not keep up."""

from __future__ import annotations

import pytest

from cosim.benches import BenchOptions, control, control_rig, control_whole


def test_segments_without_a_gap_are_placed() -> None:
    outcome = control.run(control.FRAME_BYTES / 8, control_rig.WARM_UP_FRAMES + 20)
    assert outcome.placed == control_rig.WARM_UP_FRAMES + 20
    assert outcome.cycles <= control.LINE_CYCLES


def test_what_is_lost_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (control.control_send, control_whole):
        monkeypatch.setattr(part, "measure", lambda options: [])
    monkeypatch.setattr(control, "run", lambda frame_cycles, frames: control.Outcome(frames - 3, 12.5))
    rows = control.measure(BenchOptions(log=None, say=lambda what: None))
    assert [(row.value, row.unit, row.reached) for row in rows] == [(3, "frames", False), (12.5, "cycles", False)]
