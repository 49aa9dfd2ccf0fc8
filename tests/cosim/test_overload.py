"""Receive livelock where it would be, and where it would not (Mogul and Ramakrishnan 1997; Linux's NAPI)."""

from __future__ import annotations

import pytest

from cosim.benches.overload import KINDS, Overload, flood, share_of_best

MS = 10**9
LIGHT, BUSY, FLOOD = 5_000, 40_000, 400_000


def floods(kind: str) -> list[Overload]:
    return [flood(kind, rate, 10 * MS) for rate in (LIGHT, BUSY, FLOOD)]


@pytest.mark.parametrize("kind", ["each", "moderated"])
def test_interrupts_alone_end_in_livelock(kind: str) -> None:
    light, busy, most = floods(kind)
    assert light.delivered_per_s == pytest.approx(LIGHT, rel=0.05)
    assert light.process_share > 0.7
    assert busy.delivered_per_s > 15_000
    # All time goes to the handler, which takes packets that the softirq never sees.
    assert most.delivered_per_s < 500
    assert most.dropped_late_per_s > 100_000
    assert most.process_share == 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("each", "moderated")])
def test_what_polls_under_load_delivers_as_much_of_a_flood(kind: str) -> None:
    found = light, _, most = floods(kind)
    assert light.delivered_per_s == pytest.approx(LIGHT, rel=0.05)
    assert share_of_best(found) > 80
    # The device drops what the host has no time for, at no cost.
    assert most.dropped_late_per_s == 0


def test_a_softirq_that_has_had_its_budget_takes_turns_with_processes() -> None:
    assert flood("napi", 2 * BUSY, 40 * MS).process_share == pytest.approx(0.5, abs=0.1)
