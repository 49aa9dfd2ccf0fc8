"""The tables: ratios, shares, the paper's rows, and the reasons of rows that are far off."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from cosim.engines.base import ItemFigure, SystemResult
from cosim.machine import load_application, load_machine
from cosim.report import FIGURE_1, figure_1_reasons, gain_sentence, print_report, share_percent
from cosim.results import Configuration
from cosim.systems import SYSTEMS
from cosim.workload import Request, Workload, synthetic
from host_driver.account import ITEMS


def result(system: str, rate: float = 900.0, **cycles: float) -> SystemResult:
    """A result with so many cycles by category; `category__item` for a named item."""
    items: dict[str, dict[str, ItemFigure]] = {}
    sums: dict[str, float] = {}
    for name, value in cycles.items():
        category, _, item = name.partition("__")
        items.setdefault(category, {})[item or "x"] = ItemFigure(count=1, cycles=value)
        sums[category] = sums.get(category, 0.0) + value
    return SystemResult(system=system, requests=10, body_bytes=163840, duration_ps=10**10, requests_per_s=rate,
                        cycles=sums, items=items, utilisation=[1.0, 0.5], interrupts=3, dma_read_bytes=17000,
                        dma_write_bytes=1000, frames_sent=15, frames_received=10, latency_p50_ps=10**9,
                        latency_p99_ps=2 * 10**9)


PAPER = {"user": 20, "tcp_send": 12, "copy__user_to_kernel_byte": 18, "copy__retransmit_byte": 15, "interrupt": 5,
         "driver": 3, "tcp_recv": 7, "softirq": 6, "ip": 5, "file_system": 6, "syscall__accept": 2,
         "context_switch": 1}


def configuration(requests: int = 10, **changes: object) -> Configuration:
    fields: dict[str, object] = {
        "workload": synthetic(requests), "systems": list(SYSTEMS.values()), "machine": load_machine("p2-300-smp2"),
        "application": load_application("apache"), "clients": 8, "link_bit_rate": 10**9, "device": "default",
        "engine": "model", "seed": 1, "jump": True}
    return Configuration(**{**fields, **changes})  # type: ignore[arg-type]


def printed(config: Configuration, *results: SystemResult) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_report(console, config, results)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_papers_own_shares_come_out_as_the_paper_gives_them() -> None:
    paper = result("nic-dumb", **PAPER)
    assert [round(share_percent(paper, row.categories), 6) for row in FIGURE_1] == [20, 45, 8, 7, 71]
    assert [row.paper_percent for row in FIGURE_1] == [20, 45, 8, 7, 71]
    assert figure_1_reasons(paper) == []


def test_every_name_in_the_papers_rows_is_one_of_the_account() -> None:
    for row in FIGURE_1:
        for name in row.categories:
            category, _, item = name.partition(".")
            assert category in ITEMS
            assert not item or item in ITEMS[category]
    network = set(FIGURE_1[-1].categories)
    assert all(set(row.categories) <= network for row in FIGURE_1[1:-1])


def test_a_row_that_is_far_off_gets_its_reason_and_only_that() -> None:
    changed = {**PAPER, "interrupt": 9.0, "file_system": 2.0}
    (line,) = figure_1_reasons(result("nic-dumb", **changed))[:1]
    assert line.startswith("interrupts, DMA set-up included: +4.0 points. Likely reason: ")


def test_systems_stand_side_by_side_with_their_ratio() -> None:
    text = printed(configuration(), result("nic-dumb", 800.0, user=60, tcp_send=40), result("nic-tso", 1200.0, user=50))
    assert "nic-tso / nic-dumb" in text
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
            for line in text.splitlines() if line.count("|") > 3}
    assert rows["requests/s (simulated)"] == ["800.0", "1,200.0", "1.50"]
    assert rows["host cycles a request"] == ["100", "50", "0.50"]
    assert rows["tcp_send"] == ["40", "0", "0.00"]
    assert rows["processors busy, %"] == ["75.0", "75.0", "1.00"]
    assert "copy" not in rows


def test_many_systems_are_rows_with_their_gain_over_the_baseline() -> None:
    names = ("uniproc", "smp", "ded1", "ded2-send-poll", "nic-csum", "nic-tso", "nic-tso-lro")
    results = [result(name, 800.0 + 100 * number, user=60_000, tcp_send=40_000) for number, name in enumerate(names)]
    text = printed(configuration(), *results)
    assert "over smp" in text
    assert "Gain of offload" not in text
    assert max(len(line) for line in text.splitlines() if "|" in line) <= 160
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
            for cells in (line.split("|") for line in text.splitlines()) if len(cells) > 10}
    assert rows["ded1"][:4] == ["10", "1,000.0", "+11.1 %", "100,000"]
    assert rows["smp"][2] == ""
    assert rows["uniproc"][2] == "-11.1 %"
    assert rows["ded1"][-1] == "100 50"
    thousands = [line for line in text.splitlines() if "nic-csum" in line and "60.0" in line and "40.0" in line]
    assert len(thousands) == 1


def test_connections_of_dedicated_processors_are_told() -> None:
    placed = msgspec.structs.replace(result("ded1-send-balanced", user=1),
                                     connections_on={"processor 3": 7, "the host": 3})
    assert "Connections of ded1-send-balanced: 7 on processor 3, 3 on the host" in printed(configuration(), placed)


def test_gain_in_one_line() -> None:
    line = gain_sentence(result("nic-dumb", 800.0, user=100), result("nic-tso", 1000.0, user=60))
    assert "nic-tso serves +25.0 % requests/s" in line
    assert "40.0 % fewer" in line


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, True), ({"application": load_application("simple")}, False),
    ({"workload": Workload(source="x", requests=[Request("GET", "/", 200, 5)])}, False)])
def test_the_paper_stands_beside_its_own_workload_only(changes: dict[str, object], expected: bool) -> None:
    assert ("Fig. 1" in printed(configuration(**changes), result("nic-dumb", **PAPER))) is expected


def test_cut_sizes_and_bad_lines_are_told() -> None:
    workload = Workload(source="a.log", requests=synthetic(2).requests, cut=3, bad_lines=4,
                        bad_examples=["[bold]x", "y", "z"])
    text = printed(configuration(workload=workload), result("nic-tso", user=1))
    assert "3 sizes were above --max-size" in text
    assert "4 lines are no log lines" in text
    assert "'[bold]x'" in text


def test_without_results_there_is_no_table() -> None:
    assert "requests served" not in printed(configuration())
