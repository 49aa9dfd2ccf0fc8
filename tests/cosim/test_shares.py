"""Shares of processors over time: intervals that grow with the run, and how they are drawn."""

from __future__ import annotations

import msgspec
import pytest

from cosim.machine import load_application, load_machine
from cosim.processor import Processors
from cosim.shares import MOST_INTERVALS, Share, ShareRecorder, drawn
from host_driver.runtime import Kernel

MS = 10**9


def record(duration_ms: int, user_ms: int) -> list[tuple[int, Share]]:
    """The intervals of a load of one process, which computes in its first part."""
    kernel = Kernel()
    machine = msgspec.structs.replace(load_machine("p2-300-smp2"), processors=1)
    processors = Processors(kernel, machine, load_application("simple"))
    process = processors.process_context("p")
    calls = round(user_ms * MS / processors.prices["user", "memnet_call"])

    async def work() -> None:
        process.charge("user", "memnet_call", calls)
        await process.settle()

    kernel.run_until(7)
    recorder = ShareRecorder(kernel, processors)
    recorder.start()
    kernel.spawn(work(), "work")
    kernel.run_until(7 + duration_ms * MS)
    recorder.stop()
    return [(interval.until_ps, interval.processors[0])
            for interval in recorder.intervals(kernel.now, processors.busy_ps)]


def test_a_short_load_has_an_interval_for_each_millisecond() -> None:
    found = record(5, 2)
    assert [until_ps for until_ps, _ in found] == [MS, 2 * MS, 3 * MS, 4 * MS, 5 * MS]
    assert [round(share.user, 3) for _, share in found] == [1, 1, 0, 0, 0]
    assert [share.idle + share.user for _, share in found] == pytest.approx([1] * 5)


def test_a_long_load_has_longer_intervals() -> None:
    found = record(1001, 300)
    assert len(found) <= MOST_INTERVALS + 1
    assert [until_ps for until_ps, _ in found] == [*(8 * MS * number for number in range(1, 126)), 1001 * MS]
    assert sum(share.user for _, share in found) * 8 == pytest.approx(300, rel=0.01)


def test_values_are_drawn_from_blank_to_full() -> None:
    assert drawn([0, 0.5, 1], 60) == " =@"
    assert drawn([0, 0, 1, 1], 2) == " @"
    assert drawn([], 5) == ""
