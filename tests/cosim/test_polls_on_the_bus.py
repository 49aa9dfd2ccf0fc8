"""Polls of the host take the bus: DMA is later by what they took, over the RTL and over the timed device."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from cosim.benches.accuracy import compare, percentile
from cosim.benches.rtl import DEVICES, build
from cosim.engines import in_process
from cosim.engines.base import RunSpec, SystemResult
from cosim.engines.bus import BusTiming
from cosim.machine import load_application, load_machine
from cosim.report import comparison
from cosim.systems import SYSTEMS
from cosim.timing.cases import Case, Send, Sender
from cosim.timing.device_file import load_device
from cosim.timing.observed import on_model, on_rtl
from cosim.workload import synthetic

TINY = DEVICES[64]
POLLS, CYCLES = 40, 90

BUSES = {
    "shared": BusTiming(read_latency_cycles=80, write_latency_cycles=30, mmio_read_cycles=20, mmio_write_cycles=10,
                        bytes_per_cycle=0.73),
    "duplex": BusTiming(read_latency_cycles=80, write_latency_cycles=30, mmio_read_cycles=20, mmio_write_cycles=10,
                        bytes_per_cycle=0.73, duplex=True, tlp_overhead_bytes=24, max_payload_bytes=256, tags=64),
}
"""So slow that DMA always has something to carry."""


def sends(bus: BusTiming, polls: tuple[tuple[int, int], ...]) -> Case:
    each = Send(payload=1460)
    return Case(name="sends", bus=bus, senders=(Sender(channel=1, sends=(each,) * 60, bells=((100, 60),)),),
                polls=polls)


@pytest.mark.parametrize("name", BUSES)
def test_dma_is_later_by_what_polls_took(name: str) -> None:
    # While data come: from well behind the doorbell to well before the last.
    polls = tuple((2_000 + 2_000 * number, CYCLES) for number in range(POLLS))
    for run in (lambda case: on_rtl(TINY, build(TINY), case), lambda case: on_model(load_device("tiny"), case)):
        without, beside = run(sends(BUSES[name], ())), run(sends(BUSES[name], polls))
        last, later = (max(edges[-1] for edges in found.completions.values()) for found in (without, beside))
        assert last > polls[-1][0] + 2_000
        # Completions wait for the other direction of a duplex bus, which is mostly free.
        assert abs(later - last - POLLS * CYCLES) <= 2
        assert beside.frame_bytes == without.frame_bytes


@pytest.mark.parametrize("seed", range(2))
def test_random_polls_find_the_same_over_the_rtl_and_over_the_timed_device(seed: int) -> None:
    rng = random.Random(seed)
    print("seed", seed)
    polls = tuple(sorted((rng.randrange(90_000), rng.randrange(1, 400)) for _ in range(100)))
    bus = replace(BUSES[rng.choice(list(BUSES))], bytes_per_cycle=rng.choice((0.73, 3, 30)))
    found = compare(TINY, load_device("tiny"), build(TINY), sends(bus, polls), "polls")
    assert found.same, found.why
    assert percentile(found.errors, 90) <= 0.1


def run(period_us: int, device: str) -> SystemResult:
    polling = msgspec.structs.replace(SYSTEMS["ded1-send-poll"], notification=msgspec.structs.replace(
        SYSTEMS["ded1-send-poll"].notification, period_us=period_us))
    machine = load_machine("p2-300-smp2")
    return in_process.run(RunSpec(
        system=polling, machine=machine, application=load_application("multithreaded"),
        requests=synthetic(4).requests, clients=2, offered_rate=100, link_bit_rate=machine.link_bit_rate,
        device=device), lambda done, simulated_ps: None)


def test_a_run_says_which_share_of_the_bus_polls_took(tmp_path: Path) -> None:
    # 0.18 us every 5 us and the 1 us that a look takes, but for a fifth of the time, in which there is work.
    result = run(5, "default")
    assert 0.7 * 0.18 / 6 < result.bus_polls < 0.18 / 6
    assert 0.7 * 0.18 / 51 < run(50, "default").bus_polls < 0.18 / 51
    console = Console(width=200, file=(tmp_path / "report").open("w", encoding="utf-8"))
    console.print(comparison(console, [result]))
    console.file.close()
    assert f"{100 * result.bus_polls:.2f}" in next(
        line for line in (tmp_path / "report").read_text().splitlines() if "bus taken by polls, %" in line)
