"""The pool of server processes: Apache's rules, on processes that are idle when the test says so; and in whole runs."""

from __future__ import annotations

import msgspec
import pytest

from cosim.engines.base import DeviceCounts, RunSpec
from cosim.engines.model import ModelPort
from cosim.experiment import Experiment
from cosim.host import most_processes
from cosim.machine import Application, load_application
from cosim.pool import ProcessPool
from cosim.systems import DEFAULT_SYSTEMS, SYSTEMS
from cosim.workload import synthetic
from host_driver.account import NullAccount
from host_driver.runtime import Event, Kernel
from nic_model.contract import CONFIGS
from tests.cosim.test_experiment import nothing, spec

SECOND_PS = 10**12


class Process:
    """One that waits for ever, and says how it ended."""

    def __init__(self, number: int, is_idle: bool) -> None:
        self.number = number
        self.is_idle = is_idle
        self.is_over = False

    async def run(self) -> None:
        await Event(f"process {self.number}").wait()

    async def exit(self) -> None:
        self.is_over = True


class Bench:
    """A pool; `idle` says what a new process is."""

    def __init__(self, most: int, memory_for: int = 1000) -> None:
        self.kernel = Kernel()
        self.made: list[Process] = []
        self.idle = False
        self._memory_for = memory_for
        self.pool = ProcessPool(self.kernel, load_application("apache"), NullAccount(), most=most, make=self._make)
        self.kernel.spawn(self.pool.start(), "start")

    async def _make(self, number: int) -> Process:
        if len(self.made) == self._memory_for:
            raise MemoryError
        self.made.append(Process(number, self.idle))
        return self.made[-1]

    def after(self, seconds: int) -> int:
        """Processes that there are then."""
        self.kernel.run_until(seconds * SECOND_PS + 1)
        return len(self.pool)


def test_while_all_are_busy_twice_as_many_are_forked_each_second() -> None:
    bench = Bench(most=150)
    assert [bench.after(second) for second in range(10)] == [5, 6, 8, 12, 20, 36, 68, 100, 132, 150]
    assert bench.after(20) == 150
    assert bench.pool.forked == 145
    assert [process.number for process in bench.made] == list(range(150))


def test_enough_idle_ones_end_the_growth_and_begin_it_anew_with_one() -> None:
    bench = Bench(most=150)
    assert bench.after(3) == 12
    for process in bench.made[:5]:
        process.is_idle = True
    assert bench.after(6) == 12
    bench.made[0].is_idle = False
    assert bench.after(7) == 13


def test_too_many_idle_ones_are_killed_one_a_second_the_last_first() -> None:
    bench = Bench(most=150)
    assert bench.after(3) == 12
    for process in bench.made:
        process.is_idle = True
    assert [bench.after(second) for second in (4, 5, 6)] == [11, 10, 10]
    assert [process.number for process in bench.made if process.is_over] == [10, 11]
    assert bench.pool.killed == 2


def test_without_memory_for_another_it_stays_as_large_as_it_is() -> None:
    bench = Bench(most=150, memory_for=9)
    assert [bench.after(second) for second in (2, 3, 9)] == [8, 9, 9]
    assert bench.pool.forked == 4


def test_a_pool_that_may_not_grow_does_nothing() -> None:
    bench = Bench(most=5)
    assert bench.after(9) == 5
    assert bench.kernel.next_time() is None


def run_to_its_end(run: RunSpec) -> Experiment:
    """Over a model device."""
    with Experiment(run, nothing) as experiment:
        port = ModelPort(CONFIGS[run.device], experiment.kernel, experiment.memory, experiment.wire)
        experiment.attach(port, lambda: DeviceCounts(dma_read_bytes=0, dma_write_bytes=0, interrupts=port.interrupts))
        assert experiment.kernel.run_while(lambda: not experiment.done), experiment.stall_report()
    return experiment


def slow_apache() -> Application:
    """100 ms for each request, so that seconds need few of them."""
    apache = load_application("apache")
    return msgspec.structs.replace(apache, request=msgspec.structs.replace(apache.request, cycles=30_000_000))


@pytest.mark.parametrize("name", list(DEFAULT_SYSTEMS))
def test_a_server_under_load_grows_and_shrinks_and_serves_all_the_while(name: str) -> None:
    application = msgspec.structs.replace(slow_apache(), least_spare=2, most_spare=3)
    experiment = run_to_its_end(spec(SYSTEMS[name], synthetic(160).requests, application=application, device="default"))
    pool = experiment.host.pool
    # 5, 6, 8, 12: of these four are idle while all clients are served, and one of them is killed.
    assert pool.forked == 7
    assert len(pool) == 12 - pool.killed >= 8 + 2
    # All clients have gone: one is killed each second, and what it had is given back.
    taken_bytes = experiment.memory.taken_bytes
    experiment.kernel.run_until(experiment.kernel.now + 20 * SECOND_PS)
    assert len(pool) == 3
    assert pool.killed == 12 - 3
    assert (experiment.memory.taken_bytes < taken_bytes) == (name == "nic-tso")
    assert experiment.result().items["syscall"]["fork"].count == pytest.approx(pool.forked / 160)


def test_keys_that_run_out_end_the_growth_and_not_the_run() -> None:
    run = spec(SYSTEMS["nic-tso"], synthetic(200).requests, application=slow_apache(), clients=30, device="tiny")
    experiment = run_to_its_end(run)
    assert experiment.result().requests == 200
    assert len(experiment.host.pool) == experiment.host.pool.most < most_processes(run)
