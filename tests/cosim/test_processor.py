"""The processors: priority, turns, bookkeeping. One unit of `user.memnet_call` is 1 us here, to read times easily."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from cosim.machine import load_application, load_machine
from cosim.processor import Context, Processors
from host_driver.runtime import Kernel

US = 10**6
ITEM = ("user", "memnet_call")


class Bench:
    """A kernel, processors with round prices, and a log of (microsecond, what)."""

    def __init__(self, processors: int = 1, quantum_us: int = 1000, routing: str = "first") -> None:
        machine = load_machine("p2-300-smp2")
        cycles_us = machine.clock_hz // 10**6
        costs = {category: {item: msgspec.structs.replace(cost, cycles=cycles_us) for item, cost in items.items()}
                 for category, items in machine.costs.items()}
        machine = msgspec.structs.replace(machine, processors=processors, quantum_us=quantum_us, costs=costs,
                                          interrupt_routing=routing)
        self.kernel = Kernel()
        self.processors = Processors(self.kernel, machine, load_application("apache"))
        self.log: list[tuple[float, str]] = []

    def work(self, context: Context, start_us: int, *durations_us: int, item: tuple[str, str] = ITEM) -> None:
        """A task that starts at a time and settles one charge after the other, and logs when each has ended."""
        async def run() -> None:
            await self.kernel.sleep_until(start_us * US)
            for duration_us in durations_us:
                context.charge(*item, duration_us)
                await context.settle()
                self.log.append((self.kernel.now / US, context.name))
        self.kernel.spawn(run(), context.name)

    def run(self) -> list[tuple[float, str]]:
        self.kernel.run_until(10**12)
        assert not self.kernel.tasks
        assert self.processors.idle
        return self.log


def test_a_charge_waits_for_its_time_and_nothing_waits_for_no_charge() -> None:
    bench = Bench()
    process = bench.processors.process_context("a")
    bench.work(process, 5, 10, 0, 3)
    assert bench.run() == [(15, "a"), (15, "a"), (18, "a")]


def test_interrupt_suspends_softirq_and_both_suspend_the_process() -> None:
    bench = Bench()
    processors = bench.processors
    bench.work(processors.process_context("process"), 0, 100)
    bench.work(processors.softirq_context("softirq"), 10, 20, item=("softirq", "packet"))
    bench.work(processors.interrupt_context("interrupt"), 15, 5, item=("interrupt", "entry"))
    assert bench.run() == [(20, "interrupt"), (35, "softirq"), (125, "process")]
    assert processors.busy_ps == [{"user": 100 * US, "softirq": 20 * US, "interrupt": 5 * US}]


def test_lower_priority_waits_until_the_higher_has_ended() -> None:
    bench = Bench()
    bench.work(bench.processors.interrupt_context("interrupt"), 0, 10, 10)
    bench.work(bench.processors.softirq_context("softirq"), 5, 1)
    bench.work(bench.processors.process_context("process"), 5, 1)
    assert bench.run() == [(10, "interrupt"), (20, "interrupt"), (21, "softirq"), (22, "process")]


def test_softirqs_are_served_in_order_of_arrival() -> None:
    bench = Bench()
    for number in range(3):
        bench.work(bench.processors.softirq_context(f"s{number}"), number, 10)
    assert bench.run() == [(10, "s0"), (20, "s1"), (30, "s2")]


def test_a_process_that_charges_on_keeps_the_processor() -> None:
    bench = Bench()
    bench.work(bench.processors.process_context("a"), 0, 10, 10, 10)
    bench.work(bench.processors.process_context("b"), 5, 7)
    assert bench.run() == [(10, "a"), (20, "a"), (30, "a"), (37, "b")]


def test_quantum_makes_processes_take_turns_and_costs_a_switch() -> None:
    bench = Bench(quantum_us=50)
    bench.work(bench.processors.process_context("a"), 0, 120)
    bench.work(bench.processors.process_context("b"), 10, 30)
    # a: 0-50; b: 50-80; a pays a switch of 1 us and has 70 left.
    assert bench.run() == [(80, "b"), (151, "a")]
    assert bench.processors.counts["context_switch", "switch"] == 1


def test_quantum_does_not_matter_to_a_process_alone() -> None:
    bench = Bench(quantum_us=50)
    bench.work(bench.processors.process_context("a"), 0, 1000)
    assert bench.run() == [(1000, "a")]


def test_quantum_counts_across_charges() -> None:
    bench = Bench(quantum_us=50)
    bench.work(bench.processors.process_context("a"), 0, 30, 30, 30)
    bench.work(bench.processors.process_context("b"), 1, 10)
    assert bench.run() == [(30, "a"), (60, "b"), (71, "a"), (101, "a")]


def test_processes_use_all_processors_and_return_to_their_last() -> None:
    bench = Bench(processors=2)
    a, b = bench.processors.process_context("a"), bench.processors.process_context("b")
    bench.work(a, 0, 10)
    bench.work(b, 0, 10)
    bench.work(b, 100, 5)
    bench.work(a, 101, 5)
    bench.run()
    assert (a.processor, b.processor) == (0, 1)
    assert [sum(busy.values()) for busy in bench.processors.busy_ps] == [15 * US, 15 * US]


def test_interrupts_stay_on_the_first_processor_and_leave_the_second_alone() -> None:
    bench = Bench(processors=2)
    bench.work(bench.processors.process_context("a"), 0, 100)
    bench.work(bench.processors.process_context("b"), 0, 100)
    bench.work(bench.processors.interrupt_context("interrupt"), 50, 5, 5)
    assert bench.run() == [(55, "interrupt"), (60, "interrupt"), (100, "b"), (110, "a")]


def test_interrupts_in_turn_take_their_softirq_with_them() -> None:
    bench = Bench(processors=2, routing="rotate")
    interrupt, softirq = bench.processors.interrupt_context("i"), bench.processors.softirq_context("s")
    for start_us, expected in ((0, 0), (100, 1), (200, 0)):
        bench.work(interrupt, start_us, 3, item=("interrupt", "entry"))
        bench.work(interrupt, start_us + 3, 2)
        bench.work(softirq, start_us + 6, 5)
        bench.kernel.run_until((start_us + 50) * US)
        assert (interrupt.processor, softirq.processor) == (expected, expected)
    bench.run()


def test_unknown_item_is_an_error() -> None:
    with pytest.raises(KeyError):
        Bench().processors.process_context("a").charge("user", "coffee")


@pytest.mark.parametrize("seed", range(20))
def test_bookkeeping_is_exact_for_any_mixture(seed: int) -> None:
    rng = random.Random(seed)
    bench = Bench(processors=rng.choice((1, 2, 4)), quantum_us=rng.choice((3, 40)),
                  routing=rng.choice(("first", "rotate")))
    items = [ITEM, ("syscall", "read"), ("copy", "retransmit_byte"), ("driver", "mmio_read")]
    makers: list[Callable[[str], Context]] = [bench.processors.interrupt_context, bench.processors.softirq_context,
                                              bench.processors.process_context, bench.processors.process_context]
    ended = 0

    def task(context: Context) -> Coroutine[Any, None, None]:
        async def run() -> None:
            nonlocal ended
            for _ in range(rng.randrange(1, 10)):
                await bench.kernel.sleep(rng.randrange(30 * US))
                earliest = bench.kernel.now
                for _ in range(rng.randrange(3)):
                    count = rng.randrange(20)
                    context.charge(*rng.choice(items), count)
                    earliest += count * US
                await context.settle()
                assert bench.kernel.now >= earliest
            ended += 1
        return run()

    for number in range(12):
        bench.kernel.spawn(task(rng.choice(makers)(f"t{number}")), f"t{number}")
    bench.run()
    assert ended == 12
    booked = bench.processors.booked_ps
    busy = bench.processors.busy_ps
    assert sum(booked.values()) > 0
    for category in {category for category, _ in booked}:
        spent = sum(processor.get(category, 0) for processor in busy)
        assert spent == sum(ps for (booked_category, _), ps in booked.items() if booked_category == category)
    assert all(sum(processor.values()) <= bench.kernel.now for processor in busy)
