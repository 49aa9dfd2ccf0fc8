"""The processors: priority, turns, bookkeeping. One unit of `user.memnet_call` is 1 us here, to read times easily."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec
import pytest

from cosim.machine import WakeupPreemption, load_application, load_machine
from cosim.processor import Context, Processors
from host_driver.runtime import Kernel

US = 10**6
ITEM = ("user", "memnet_call")
ENTRY = ("interrupt", "entry")


class Bench:
    """A kernel, processors with round prices, and a log of (microsecond, what)."""

    def __init__(self, processors: int = 1, quantum_us: int = 1000, routing: str = "first",
                 prices: Mapping[tuple[str, str], float] | None = None,
                 preemption: WakeupPreemption | None = None) -> None:
        machine = load_machine("p2-300-smp2")
        cycles_us, prices = machine.clock_hz // 10**6, prices or {}
        costs = {category: {item: msgspec.structs.replace(cost, cycles=cycles_us * prices.get((category, item), 1))
                            for item, cost in items.items()} for category, items in machine.costs.items()}
        machine = msgspec.structs.replace(machine, processors=processors, quantum_us=quantum_us, costs=costs,
                                          interrupt_routing=routing, wakeup_preemption=preemption)
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


def test_while_nobody_waits_one_quantum_follows_the_other() -> None:
    bench = Bench(quantum_us=50)
    bench.work(bench.processors.process_context("a"), 0, 1000)
    bench.work(bench.processors.process_context("b"), 130, 10)
    # In the third of a's, which ends at 150.
    assert bench.run() == [(160, "b"), (1011, "a")]


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


def test_interrupts_go_to_an_idle_processor_else_to_one_with_a_process() -> None:
    bench = Bench(processors=3, routing="idle")
    interrupt, other = bench.processors.interrupt_context("i"), bench.processors.interrupt_context("j")
    bench.work(bench.processors.process_context("a", [0]), 0, 100)
    bench.work(bench.processors.process_context("b", [1]), 0, 30)
    bench.work(interrupt, 10, 5, item=ENTRY)
    bench.work(other, 12, 50, item=ENTRY)  # 2 has the first interrupt, so a process makes way
    bench.kernel.run_until(13 * US)
    assert (interrupt.processor, other.processor) == (2, 0)
    bench.run()


def test_a_steering_of_its_own_keeps_interrupts_and_their_softirq_to_its_processors() -> None:
    bench = Bench(processors=3, routing="rotate")
    steering = bench.processors.steering([1, 2])
    interrupt = bench.processors.interrupt_context("i", steering)
    softirq = bench.processors.softirq_context("s", steering)
    seen = []
    for number in range(4):
        bench.work(interrupt, 100 * number, 3, item=ENTRY)
        bench.work(softirq, 100 * number + 4, 5)
        bench.kernel.run_until((100 * number + 50) * US)
        seen.append((interrupt.processor, softirq.processor))
    assert seen == [(1, 1), (2, 2), (1, 1), (2, 2)]
    bench.run()


def test_a_process_stays_on_its_processors_though_another_is_idle() -> None:
    bench = Bench(processors=2)
    bench.work(bench.processors.process_context("a", [0]), 0, 50)
    bench.work(bench.processors.process_context("b", [0]), 10, 20)
    assert bench.run() == [(50, "a"), (70, "b")]
    assert [sum(busy.values()) for busy in bench.processors.busy_ps] == [70 * US, 0]


def test_a_process_that_is_held_nowhere_leaves_the_processor_to_one_that_is() -> None:
    bench = Bench(processors=2, quantum_us=20)
    bench.work(bench.processors.process_context("a"), 0, 100)
    bench.work(bench.processors.process_context("b", [0]), 10, 30)
    # a: 0-20 on 0; b: 20-50 on 0; a goes on at once on 1, with a switch of 1 us.
    assert bench.run() == [(50, "b"), (101, "a")]


@pytest.mark.parametrize("processors", [[], [2], [0, -1]])
def test_processors_that_are_not_there_are_refused(processors: list[int]) -> None:
    with pytest.raises(ValueError, match=r"processors must be some of \[0, 1\], not"):
        Bench(processors=2).processors.process_context("a", processors)


def test_a_switch_between_threads_of_a_process_costs_less_and_is_booked_as_such() -> None:
    bench = Bench(prices={("context_switch", "thread_switch"): 0.25})
    process = bench.processors.process_context("a")
    thread, stranger = process.thread("a2"), bench.processors.process_context("b")
    for start_us, context in ((0, process), (10, thread), (20, stranger), (30, thread)):
        bench.work(context, start_us, 4, item=("context_switch", "switch"))
    assert bench.run() == [(4, "a"), (11, "a2"), (24, "b"), (34, "a2")]
    counts, booked = bench.processors.counts, bench.processors.booked_ps
    assert (counts["context_switch", "switch"], counts["context_switch", "thread_switch"]) == (12, 4)
    assert (booked["context_switch", "switch"], booked["context_switch", "thread_switch"]) == (12 * US, US)


def test_a_poll_takes_the_bus_from_who_copies_and_not_from_who_computes() -> None:
    bench = Bench(processors=3)
    bench.work(bench.processors.process_context("copies", [0]), 0, 10, item=("copy", "retransmit_byte"))
    bench.work(bench.processors.process_context("computes", [1]), 0, 10)
    bench.work(bench.processors.process_context("polls", [2]), 5, 2, item=("poll", "batch"))
    assert bench.run() == [(7, "polls"), (10, "computes"), (12, "copies")]
    assert bench.processors.counts["poll", "bus_wait"] == 2
    assert bench.processors.busy_ps[0] == {"copy": 10 * US, "poll": 2 * US}


def test_a_poll_takes_the_devices_bus_as_long_as_that_of_other_processors() -> None:
    bench = Bench(prices={("poll", "bus_wait"): 3})
    taken: list[tuple[float, int]] = []
    bench.processors.on_bus_taken = lambda duration_ps: taken.append((bench.kernel.now / US, duration_ps))
    softirq = bench.processors.softirq_context("softirq")
    bench.work(softirq, 5, 2, item=("poll", "batch"))
    bench.work(softirq, 20, 1, item=("softirq", "packet"))
    bench.run()
    assert taken == [(5, 2 * 3 * US)]
    assert bench.processors.bus_taken_ps == 6 * US
    free = Bench(prices={("poll", "bus_wait"): 0})
    free.processors.on_bus_taken = lambda duration_ps: pytest.fail("the bus is the device's own")
    free.work(free.processors.softirq_context("softirq"), 5, 2, item=("poll", "batch"))
    free.run()


def test_two_who_poll_wait_for_each_other() -> None:
    bench = Bench(processors=2)
    for index in range(2):
        bench.work(bench.processors.process_context(f"p{index}", [index]), index, 5, item=("poll", "batch"))
    assert bench.run() == [(6, "p1"), (10, "p0")]


class Triggered:
    """Waits for a trigger state at a time, and logs when it came, where, and whether the clock had to help."""

    def __init__(self, bench: Bench, start_us: int, processors: Sequence[int] | None = None) -> None:
        self.seen: list[tuple[float, bool, int]] = []
        steering = bench.processors.steering(processors)
        states = bench.processors.trigger_states(steering)

        async def run() -> None:
            await bench.kernel.sleep_until(start_us * US)
            by_work = await states.next(1000 * US)
            self.seen.append((bench.kernel.now / US, by_work, steering.current.index))
        bench.kernel.spawn(run(), "soft timer")


def test_the_end_of_a_system_call_is_a_trigger_state_and_that_of_a_computation_is_not() -> None:
    bench = Bench()
    bench.work(bench.processors.process_context("a"), 0, 10, 10)
    bench.work(bench.processors.process_context("b"), 0, 30, item=("syscall", "read"))
    bench.work(bench.processors.process_context("c"), 0, 100)
    triggered = Triggered(bench, 5)
    bench.run()
    assert triggered.seen == [(50, True, 0)]


def test_an_idle_processor_is_in_a_trigger_state() -> None:
    bench = Bench(processors=2)
    bench.work(bench.processors.process_context("a"), 0, 100)
    bench.work(bench.processors.process_context("b"), 0, 20)
    before, after = Triggered(bench, 5), Triggered(bench, 50)
    bench.run()
    assert before.seen == [(20, True, 1)]
    assert after.seen == [(50, True, 1)]


def test_trigger_states_of_some_processors_are_not_those_of_others() -> None:
    bench = Bench(processors=2)
    bench.work(bench.processors.process_context("a", [0]), 0, 100)
    bench.work(bench.processors.process_context("b", [1]), 0, 20)
    first, second, both = Triggered(bench, 5, [0]), Triggered(bench, 5, [1]), Triggered(bench, 5)
    bench.run()
    assert (first.seen, second.seen, both.seen) == ([(100, True, 0)], [(20, True, 1)], [(20, True, 1)])


def test_the_clock_helps_where_there_is_no_trigger_state() -> None:
    bench = Bench()
    bench.work(bench.processors.process_context("a"), 0, 3000)
    triggered = Triggered(bench, 1500)
    bench.run()
    assert triggered.seen == [(2000, False, 0)]


def test_unknown_item_is_an_error() -> None:
    with pytest.raises(KeyError):
        Bench().processors.process_context("a").charge("user", "coffee")


@pytest.mark.parametrize("seed", range(20))
def test_bookkeeping_is_exact_for_any_mixture(seed: int) -> None:
    rng = random.Random(seed)
    bench = Bench(processors=rng.choice((1, 2, 4)), quantum_us=rng.choice((3, 40)),
                  routing=rng.choice(("first", "rotate", "idle")),
                  prices={("context_switch", "thread_switch"): 0.5})
    items = [ITEM, ("syscall", "read"), ("copy", "retransmit_byte"), ("driver", "mmio_read"), ("poll", "batch"),
             ("interrupt", "entry"), ("context_switch", "switch")]
    there = range(len(bench.processors.busy_ps))
    threaded = bench.processors.process_context("threaded")

    def held(name: str) -> Context:
        return bench.processors.process_context(name, rng.sample(there, rng.randint(1, len(there))))

    makers: list[Callable[[str], Context]] = [
        bench.processors.interrupt_context, bench.processors.softirq_context, bench.processors.process_context, held,
        threaded.thread]
    ended = 0

    def task(context: Context) -> Coroutine[Any, None, None]:
        async def run() -> None:
            nonlocal ended
            for _ in range(rng.randrange(1, 10)):
                await bench.kernel.sleep(rng.randrange(30 * US))
                earliest = bench.kernel.now
                for _ in range(rng.randrange(3)):
                    count, item = rng.randrange(20), rng.choice(items)
                    context.charge(*item, count)
                    # A switch may turn out to be one between threads, at half the price.
                    earliest += count * US // (2 if item == ("context_switch", "switch") else 1)
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


# ------------------------------------------------------------------------------------------ preemption by who wakes

PREEMPTION = WakeupPreemption(process_us=100, thread_us=50, credit_us=200, source="test")


class Sleeper(Bench):
    """A process that works for 10 us, and later wakes, pays the switch of 1 us and works for 5 us."""

    def __init__(self, wakes_us: int, **changes: Any) -> None:
        super().__init__(**{"preemption": PREEMPTION, **changes})
        self.sleeper = self.processors.process_context("sleeper", [0])
        self.work(self.sleeper, 0, 10)
        self.wake(self.sleeper, wakes_us)

    def wake(self, context: Context, at_us: int) -> None:
        """Let a process that sleeps go on."""
        async def run() -> None:
            await self.kernel.sleep_until(at_us * US)
            context.charge("context_switch", "switch")
            context.charge(*ITEM, 5)
            await context.settle()
            self.log.append((self.kernel.now / US, context.name))
        self.kernel.spawn(run(), context.name)


@pytest.mark.parametrize(("preemption", "sleeper_us", "other_us"), [(PREEMPTION, 206, 317), (None, 316, 310)])
def test_who_wakes_takes_the_processor_from_one_that_has_had_enough_more(
        preemption: WakeupPreemption | None, sleeper_us: int, other_us: int) -> None:
    bench = Sleeper(200, preemption=preemption)
    bench.work(bench.processors.process_context("other", [0]), 10, 300)
    # "other" has had 190 us by then, "sleeper" 10. It pays a switch for going on.
    assert sorted(bench.run(), key=lambda entry: entry[1])[1:] == [(10, "sleeper"), (sleeper_us, "sleeper")]
    assert {name: at for at, name in bench.log}["other"] == other_us
    assert bench.processors.counts["context_switch", "switch"] == (2 if preemption else 1)


def test_who_wakes_waits_for_one_that_has_not_had_enough_more() -> None:
    bench = Sleeper(110)
    bench.work(bench.processors.process_context("other", [0]), 10, 300)
    # 100 us against 10; a difference of 100 would do.
    assert bench.run()[1:] == [(310, "other"), (316, "sleeper")]


def test_another_thread_of_the_process_needs_less() -> None:
    bench = Sleeper(80, prices={("context_switch", "thread_switch"): 1})
    bench.work(bench.sleeper.thread("thread"), 10, 300)
    assert bench.run()[1] == (86, "sleeper")


def test_the_kernel_is_not_preempted() -> None:
    bench = Sleeper(200)
    other = bench.processors.process_context("other", [0])

    async def run() -> None:
        await bench.kernel.sleep_until(10 * US)
        for item, duration_us in ((ITEM, 150), (("copy", "user_to_kernel_byte"), 100), (ITEM, 50)):
            other.charge(*item, duration_us)
            await other.settle()
            bench.log.append((bench.kernel.now / US, "other"))

    bench.kernel.spawn(run(), "other")
    # In the middle of its copy; it gives way when that is done, at 260, and goes on behind a switch.
    assert bench.run() == [(10, "sleeper"), (160, "other"), (260, "other"), (266, "sleeper"), (317, "other")]


def test_the_kernel_part_of_a_charge_is_done_first() -> None:
    bench = Sleeper(200)
    other = bench.processors.process_context("other", [0])

    async def run() -> None:
        await bench.kernel.sleep_until(10 * US)
        for category, item, count in ((*ITEM, 150), ("syscall", "read", 60), ("file_system", "open", 40)):
            other.charge(category, item, count)
            if item == "memnet_call":
                await other.settle()
        other.charge(*ITEM, 40)
        await other.settle()
        bench.log.append((bench.kernel.now / US, "other"))

    bench.kernel.spawn(run(), "other")
    # 160 to 260 in the kernel, then 40 us of its own that are left behind the switch.
    assert bench.run() == [(10, "sleeper"), (266, "sleeper"), (307, "other")]


def test_one_that_a_softirq_has_suspended_gives_way_too() -> None:
    bench = Sleeper(205)
    bench.work(bench.processors.process_context("other", [0]), 10, 300)
    bench.work(bench.processors.softirq_context("softirq"), 200, 10, item=("softirq", "packet"))
    assert bench.run()[1:] == [(210, "softirq"), (216, "sleeper"), (327, "other")]


def test_it_takes_an_idle_processor_or_its_last_one_and_no_other() -> None:
    bench = Bench(processors=2, preemption=PREEMPTION)
    sleeper, log = bench.processors.process_context("sleeper"), bench.log
    bench.work(sleeper, 0, 10)
    bench.work(bench.processors.process_context("hog", [1]), 0, 1000)
    bench.work(bench.processors.process_context("young", [0]), 300, 300)

    async def wake() -> None:
        await bench.kernel.sleep_until(350 * US)
        sleeper.charge("context_switch", "switch")
        await sleeper.settle()
        log.append((bench.kernel.now / US, "sleeper"))

    bench.kernel.spawn(wake(), "sleeper")
    # On its last processor, 0, runs one that has had 50 us; on the other one that has had 350.
    assert bench.run() == [(10, "sleeper"), (600, "young"), (601, "sleeper"), (1000, "hog")]


def test_a_long_sleep_gives_no_more_credit_than_the_machine_says() -> None:
    bench = Bench(preemption=PREEMPTION)
    hog, sleeper = bench.processors.process_context("hog"), bench.processors.process_context("sleeper")
    bench.work(sleeper, 0, 10)
    bench.work(hog, 10, 1000)

    async def wake() -> None:
        await bench.kernel.sleep_until(600 * US)
        sleeper.charge("context_switch", "switch")
        sleeper.charge(*ITEM, 5)
        await sleeper.settle()

    bench.kernel.spawn(wake(), "sleeper")
    bench.run()
    # It counted as having had 590 - 200 when it woke, and had 6 then.
    assert sleeper.had_ps == (590 - 200 + 6) * US


@pytest.mark.parametrize("seed", range(3))
def test_random_work_with_preemption_loses_no_time_and_costs_a_switch_each(seed: int) -> None:
    rng = random.Random(seed)
    print("seed", seed)
    bench = Bench(processors=2, quantum_us=300, preemption=PREEMPTION)
    asked_us = 0
    for number in range(8):
        context = bench.processors.process_context(f"p{number}", rng.choice(([0], [1], None)))
        start_us = 0
        for _ in range(12):
            start_us += rng.randrange(1, 600)
            duration_us = rng.randrange(1, 300)
            asked_us += duration_us
            bench.work(context, start_us, duration_us, item=rng.choice((ITEM, ("context_switch", "switch"), (
                "syscall", "read"))))
    bench.run()
    assert len(bench.log) == 8 * 12
    switches = bench.processors.counts["context_switch", "switch"]
    spent_us = sum(sum(busy.values()) for busy in bench.processors.busy_ps) / US
    assert spent_us == sum(bench.processors.booked_ps.values()) / US >= asked_us
    assert switches > 0
