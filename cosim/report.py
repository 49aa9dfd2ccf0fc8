"""What a run found, as tables: systems side by side, the gain of offload, and the paper's breakdown beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from cosim.engines.base import NodeResult, SystemResult
from cosim.results import Configuration
from cosim.shares import drawn
from cosim.systems import BASELINES
from cosim.workload import SYNTHETIC_FILE_BYTES, Workload
from host_driver.account import ITEMS

PS_PER_US = 10**6
DRAWN_COLUMNS = 60
MOST_SIDE_BY_SIDE = 3
"""More systems are rows instead of columns."""
EXPECTED_POINTS = 3.0
"""Percentage points within which a figure counts as the paper's."""


class PaperRow(NamedTuple):
    """One row of the paper's breakdown of execution time, Rangarajan et al. 2002, Fig. 1."""

    name: str
    paper_percent: float
    categories: tuple[str, ...]
    """`category`, or `category.item`, of the account: what the row is here."""
    reason: str
    """Why ours is likely to differ, if it does."""
    is_calibrated: bool = False
    """Whether the shipped costs were chosen so that this row comes out; if so, it proves nothing."""


_URGENT = ("interrupt", "softirq")
_SEND = ("tcp_send", "copy.user_to_kernel_byte", "copy.retransmit_byte", "syscall.write")
_INTERRUPT = ("interrupt", "driver")
_RECEIVE = ("tcp_recv", "syscall.read")
_SMP_CONNECTION = "syscall.smp_connection"

FIGURE_1: tuple[PaperRow, ...] = (
    PaperRow("user", 20, ("user",),
             "the application's cycles are calibrated on this row, against the machine's costs; another count of"
             " packets or interrupts a request shifts it", is_calibrated=True),
    PaperRow("TCP send, two copies included", 45, _SEND,
             "the paper counted all that runs below the send call; here IP's and the driver's part of a send have rows"
             " of their own, and how much of it ran below the call, not in the bottom half, is not known"),
    PaperRow("interrupts, DMA set-up included", 8, _INTERRUPT,
             "interrupts a request follow from moderation and load, and the handler's length is a guess"),
    PaperRow("TCP receive, without its copy", 7, _RECEIVE,
             "costs by kind of segment are guesses, and the paper does not say where receive ends and bottom half"
             " begins"),
    PaperRow("all network", 71, (*_SEND, *_INTERRUPT, *_RECEIVE, "ip", "softirq", "poll", "san", _SMP_CONNECTION),
             "follows from the other rows: see theirs"),
)
"""How the account's categories make the paper's rows. What is in none of them is the rest: file system, other system
calls, context switches, the copy to user space.

The multiprocessor tax of a connection counts as network, as that of a packet does: both were calibrated on what
is gained by moving network work to a processor of its own (Fig. 6). The account only meets it in accept.
"""


def share_percent(result: SystemResult, categories: Sequence[str]) -> float:
    """Share of all busy cycles, in percent, of some `category` and `category.item`."""
    cycles = 0.0
    for name in categories:
        category, _, item = name.partition(".")
        if item:
            figure = result.items.get(category, {}).get(item)
            cycles += figure.cycles if figure is not None else 0.0
        else:
            cycles += result.cycles.get(category, 0.0)
    return 100 * cycles / result.total_cycles


def is_figure_1(configuration: Configuration) -> bool:
    """Whether the run is the paper's: its machine, Apache, and files of 16 KB."""
    return (configuration.machine.name == "p2-300-smp2" and configuration.application.name == "apache"
            and all(request.body_bytes == SYNTHETIC_FILE_BYTES for request in configuration.workload.requests))


def print_report(console: Console, configuration: Configuration, results: Sequence[SystemResult]) -> None:
    """Print everything that there is to say of the systems that have run."""
    _print_workload(console, configuration.workload)
    if not results:
        return
    is_wide = len(results) > MOST_SIDE_BY_SIDE
    if is_wide:
        console.print(overview(console, results))
        console.print(category_table(console, results))
    else:
        console.print(comparison(console, results))
    console.print(processor_table(console, results))
    for result in results:
        if result.connections_on:
            console.print(f"Connections of {result.system}: " + ", ".join(
                f"{count} on {place}" for place, count in result.connections_on.items()), soft_wrap=True)
        for number, device in enumerate(result.device_processors):
            console.print(
                f"Device processor {number} of {result.system}: {100 * device.utilisation:.1f} % busy; a request takes "
                f"{device.cycles:,.0f} of its cycles, {device.messages:.1f} messages and {device.orders:.1f} orders.",
                soft_wrap=True, highlight=False)
    baseline = baseline_of(results)
    if baseline is None:
        return
    for result in results:
        if result is not baseline and not is_wide:
            console.print(gain_sentence(baseline, result), soft_wrap=True)
    if is_figure_1(configuration):
        console.print()
        console.print(figure_1(console, baseline))
        for line in (*figure_1_reasons(baseline), figure_1_note(baseline)):
            console.print(line, soft_wrap=True)


def baseline_of(results: Sequence[SystemResult]) -> SystemResult | None:
    """What the others are compared with; None: nothing that is there."""
    by_name = {result.system: result for result in results}
    return next((by_name[name] for name in BASELINES if name in by_name), None)


def comparison(console: Console, results: Sequence[SystemResult]) -> Table:
    """Systems side by side."""
    first = results[0]
    table = _table(console, "Systems", "", *(result.system if result.complete else f"{result.system} (interrupted)"
                                             for result in results))
    if len(results) > 1:
        for result in results[1:]:
            table.add_column(f"{result.system} / {first.system}", justify="right")

    def row(name: str, values: Sequence[float], form: str) -> None:
        ratios = [f"{value / values[0]:.2f}" if values[0] else "" for value in values[1:]]
        table.add_row(name, *(format(value, form) for value in values), *ratios)

    row("requests served", [result.requests for result in results], ",d")
    row("requests/s (simulated)", [result.requests_per_s for result in results], ",.1f")
    row("host cycles a request", [result.total_cycles for result in results], ",.0f")
    for category in ITEMS:
        values = [result.cycles.get(category, 0.0) for result in results]
        if any(values):
            row(f"  {category}", values, ",.0f")
    if any(result.nodes for result in results):
        row("TCP server nodes' cycles a request",
            [sum(sum(node.cycles.values()) for node in result.nodes) for result in results], ",.0f")
        row("TCP server nodes busy, %", [_busy_percent(result.nodes) for result in results], ",.1f")
    row("interrupts a request", [result.interrupts for result in results], ",.2f")
    row("DMA bytes read a request", [result.dma_read_bytes for result in results], ",.0f")
    row("DMA bytes written a request", [result.dma_write_bytes for result in results], ",.0f")
    if any(result.bus_polls for result in results):
        row("bus taken by polls, %", [100 * result.bus_polls for result in results], ",.2f")
    row("frames sent a request", [result.frames_sent for result in results], ",.2f")
    row("frames received a request", [result.frames_received for result in results], ",.2f")
    row("latency p50, us", [result.latency_p50_ps / PS_PER_US for result in results], ",.0f")
    row("latency p99, us", [result.latency_p99_ps / PS_PER_US for result in results], ",.0f")
    row("processors busy, %", [100 * sum(result.utilisation) / len(result.utilisation) for result in results], ",.1f")
    return table


def _busy_percent(nodes: Sequence[NodeResult]) -> float:
    """Of all processors of all nodes; 0 without any."""
    busy = [share.busy for node in nodes for share in node.processors]
    return 100 * sum(busy) / len(busy) if busy else 0.0


def overview(console: Console, results: Sequence[SystemResult]) -> Table:
    """Many systems, a row each, with their gain over the baseline, or the first."""
    baseline = baseline_of(results) or results[0]
    table = _table(console, "Systems", "", "served", "requests/s", f"over {baseline.system}", "cycles a request",
                   "interrupts", "frames sent", "received", "p50, us", "p99, us", "processors busy, %")
    for result in results:
        gain = 100 * (result.requests_per_s / baseline.requests_per_s - 1)
        table.add_row(
            result.system if result.complete else f"{result.system} (interrupted)", f"{result.requests:,}",
            f"{result.requests_per_s:,.1f}", "" if result is baseline else f"{gain:+.1f} %",
            f"{result.total_cycles:,.0f}", f"{result.interrupts:.2f}", f"{result.frames_sent:.2f}",
            f"{result.frames_received:.2f}", f"{result.latency_p50_ps / PS_PER_US:,.0f}",
            f"{result.latency_p99_ps / PS_PER_US:,.0f}", " ".join(f"{100 * busy:.0f}" for busy in result.utilisation))
    return table


def category_table(console: Console, results: Sequence[SystemResult]) -> Table:
    """Cycles a request by category, a row for each system, in thousands."""
    there = [category for category in ITEMS if any(result.cycles.get(category, 0.0) for result in results)]
    table = _table(console, "Host cycles a request, in thousands", "", *(name.replace("_", " ") for name in there))
    for result in results:
        table.add_row(result.system, *(f"{result.cycles.get(name, 0.0) / 1000:,.1f}" for name in there))
    return table


def processor_table(console: Console, results: Sequence[SystemResult]) -> Table:
    """Whom each processor worked for."""
    table = _table(console, "Processors, % of the time under load", "", "user", "system", "of it interrupt, softirq",
                   "idle")
    table.add_column("busy over time, blank to @", justify="left", no_wrap=True)
    for result in results:
        machines: list[tuple[str, SystemResult | NodeResult]] = [(result.system, result)]
        machines += [(f"{result.system}, node {number}", node) for number, node in enumerate(result.nodes)]
        for name, machine in machines:
            for number, (share, categories) in enumerate(zip(machine.processors, machine.processor_categories,
                                                             strict=True)):
                urgent = sum(categories.get(category, 0.0) for category in _URGENT)
                busy = [interval.processors[number].busy for interval in machine.over_time]
                table.add_row(f"{name}, {number}", *(f"{100 * value:.1f}" for value in (
                    share.user, share.system, urgent, share.idle)), drawn(busy, DRAWN_COLUMNS))
    return table


def gain_sentence(baseline: SystemResult, result: SystemResult) -> str:
    """The gain of offload in one line."""
    rate = 100 * (result.requests_per_s / baseline.requests_per_s - 1)
    cycles = 100 * (1 - result.total_cycles / baseline.total_cycles)
    return (f"Gain of offload: {result.system} serves {rate:+.1f} % requests/s against {baseline.system}, and takes "
            f"{cycles:.1f} % {'fewer' if cycles >= 0 else 'fewer (that is, more)'} host cycles a request.")


def figure_1(console: Console, result: SystemResult) -> Table:
    """The paper's rows beside ours, in percent of busy time."""
    table = _table(console, f"Execution time of {result.system}, % of busy time, beside Rangarajan et al. 2002, Fig. 1",
                   "", "paper", "here", "difference, points", "")
    for row in FIGURE_1:
        here = share_percent(result, row.categories)
        table.add_row(row.name, f"{row.paper_percent:.0f}", f"{here:.1f}", f"{here - row.paper_percent:+.1f}",
                      "calibrated on it" if row.is_calibrated else "check")
    return table


def figure_1_reasons(result: SystemResult) -> list[str]:
    """A line for each row that is further off than expected."""
    lines = []
    for row in FIGURE_1:
        difference = share_percent(result, row.categories) - row.paper_percent
        if abs(difference) > EXPECTED_POINTS:
            lines.append(f"{row.name}: {difference:+.1f} points. Likely reason: {row.reason}.")
    return lines


def figure_1_note(result: SystemResult) -> str:
    """What one choice of attribution is worth."""
    without = [name for name in FIGURE_1[-1].categories if name != _SMP_CONNECTION]
    return (f"All network without the multiprocessor tax of a connection, which the paper does not place: "
            f"{share_percent(result, without):.1f} %.")


def _print_workload(console: Console, workload: Workload) -> None:
    console.print(f"Workload: {len(workload.requests)} requests, {workload.source}", soft_wrap=True, highlight=False)
    if workload.cut:
        console.print(f"{workload.cut} sizes were above --max-size and were cut to it.", soft_wrap=True)
    if workload.bad_lines:
        console.print(f"{workload.bad_lines} lines are no log lines; the first:", soft_wrap=True)
        for line in workload.bad_examples:
            console.print(f"  {line!r}", soft_wrap=True, markup=False, highlight=False)


def _table(console: Console, title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table
