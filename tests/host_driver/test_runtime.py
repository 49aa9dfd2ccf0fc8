"""The runtime: order, time, cancelling, and who is told of an exception."""

from __future__ import annotations

import pytest

from host_driver.runtime import Cancelled, Event, Future, Kernel, Queue, TaskFailed, first_of


def test_callbacks_of_one_time_run_in_the_order_they_were_scheduled() -> None:
    kernel, log = Kernel(), []
    for name in "abc":
        kernel.call_at(10, lambda name=name: log.append((kernel.now, name)))
    kernel.call_at(5, lambda: log.append((kernel.now, "first")))
    kernel.run_until(10)
    assert log == [(5, "first"), (10, "a"), (10, "b"), (10, "c")]


def test_run_until_stops_at_its_time_and_keeps_the_rest() -> None:
    kernel, log = Kernel(), []
    kernel.call_at(11, lambda: log.append(kernel.now))
    kernel.run_until(10)
    assert (log, kernel.now, kernel.next_time()) == ([], 10, 11)
    kernel.run_until(11)
    assert (log, kernel.next_time()) == ([11], None)


def test_run_while_goes_on_until_it_is_told_or_nothing_is_due() -> None:
    kernel, log = Kernel(), []
    for time in (10, 20, 30):
        kernel.call_at(time, lambda: log.append(kernel.now))
    assert kernel.run_while(lambda: len(log) < 2)
    assert (log, kernel.now) == ([10, 20], 20)
    assert not kernel.run_while(lambda: True)
    assert (log, kernel.now) == ([10, 20, 30], 30)


def test_a_callback_passes_to_a_time_before_all_that_is_due() -> None:
    kernel, log = Kernel(), []

    def go_on() -> None:
        log.extend((kernel.pass_to(time), kernel.now) for time in (15, 19, 20, 25))

    kernel.call_at(10, go_on)
    kernel.call_at(20, lambda: log.append(("other", kernel.now)))
    assert not kernel.run_while(lambda: True)
    assert log == [(True, 15), (True, 19), (False, 19), (False, 19), ("other", 20)]


def test_a_callback_passes_neither_the_end_of_a_run_nor_what_is_due_at_once() -> None:
    kernel, log = Kernel(), []
    kernel.call_at(10, lambda: log.append((kernel.pass_to(12), kernel.pass_to(13), kernel.now)))
    kernel.run_until(12)
    assert log == [(True, False, 12)]

    def with_another() -> None:
        kernel.call_soon(lambda: log.append(kernel.now))
        log.append((kernel.pass_to(30), kernel.now))

    kernel.call_at(20, with_another)
    kernel.run_until(40)
    assert log[1:] == [(False, 20), 20]


def test_a_time_that_has_passed_means_now() -> None:
    kernel, log = Kernel(), []
    kernel.run_until(100)
    kernel.call_at(50, lambda: log.append(kernel.now))
    kernel.run_until(100)
    assert log == [100]


def test_a_cancelled_timer_does_not_run_and_is_not_waited_for() -> None:
    kernel, log = Kernel(), []
    timer = kernel.call_at(10, lambda: log.append(1))
    timer.cancel()
    assert kernel.next_time() is None
    kernel.run_until(20)
    assert log == []


def test_tasks_sleep_and_return_a_result() -> None:
    kernel = Kernel()

    async def inner() -> int:
        await kernel.sleep(7)
        return kernel.now

    async def outer() -> int:
        return await kernel.spawn(inner(), "inner") + 1

    task = kernel.spawn(outer(), "outer")
    kernel.run_until(100)
    assert task.result() == 8
    assert not kernel.tasks


def test_an_exception_that_nobody_awaits_ends_the_run_with_task_and_time() -> None:
    kernel = Kernel()

    async def broken() -> None:
        await kernel.sleep(42)
        raise ValueError("no good")

    kernel.spawn(broken(), "the broken one")
    with pytest.raises(TaskFailed, match=r"'the broken one' at 42 ps raised ValueError: no good") as raised:
        kernel.run_until(100)
    assert isinstance(raised.value.__cause__, ValueError)


def test_an_exception_that_is_awaited_reaches_who_awaits_it() -> None:
    kernel, seen = Kernel(), []

    async def broken() -> None:
        await kernel.sleep(1)
        raise KeyError("x")

    async def watcher() -> None:
        try:
            await kernel.spawn(broken(), "broken")
        except KeyError as error:
            seen.append(error.args)

    kernel.spawn(watcher(), "watcher")
    kernel.run_until(10)
    assert seen == [("x",)]


def test_cancel_reaches_the_task_where_it_waits_and_ordinary_handlers_let_it_pass() -> None:
    kernel, log = Kernel(), []

    async def victim() -> None:
        try:
            await kernel.sleep(1000)
        except Exception:
            log.append("swallowed")
        finally:
            log.append("cleaned up")

    task = kernel.spawn(victim(), "victim")
    kernel.run_until(1)
    assert task.waits_for == "sleep"
    task.cancel()
    kernel.run_until(2000)
    assert log == ["cleaned up"]
    with pytest.raises(Cancelled):
        task.result()


def test_an_event_wakes_all_who_wait_and_stays_set() -> None:
    kernel, log = Kernel(), []
    event = Event("go")

    async def waiter(name: str) -> None:
        await event.wait()
        log.append(name)

    kernel.spawn(waiter("a"), "a")
    kernel.spawn(waiter("b"), "b")
    kernel.run_until(1)
    assert log == []
    event.set()
    kernel.spawn(waiter("late"), "late")
    kernel.run_until(2)
    assert log == ["a", "b", "late"]
    event.clear()
    assert not event.is_set()


def test_a_queue_hands_items_over_in_order_to_who_waits_longest() -> None:
    kernel, log = Kernel(), []
    queue: Queue[int] = Queue("work")

    async def worker(name: str) -> None:
        log.append((name, await queue.get()))

    for name in ("a", "b", "c"):
        kernel.spawn(worker(name), name)
    kernel.run_until(1)
    for item in (1, 2, 3, 4):
        queue.put(item)
    kernel.run_until(2)
    assert log == [("a", 1), ("b", 2), ("c", 3)]
    assert len(queue) == 1
    assert queue.get().result() == 4
    assert len(queue) == 0


def test_first_of_tells_which_came_first_and_lets_the_others_go_on() -> None:
    kernel = Kernel()
    slow, fast = kernel.sleep(20), kernel.sleep(10)
    winner = first_of(slow, fast)
    kernel.run_until(30)
    assert winner.result() == 1
    assert slow.done


def test_a_future_finishes_once() -> None:
    future: Future[int] = Future("answer")
    with pytest.raises(RuntimeError, match="'answer' is not finished"):
        future.result()
    future.set_result(42)
    with pytest.raises(RuntimeError, match="'answer' is finished already"):
        future.set_result(43)
    assert future.result() == 42


@pytest.mark.parametrize("when", ["while it runs", "while it runs, and what it waits for is there",
                                  "between the result and its turn"])
def test_a_cancelled_task_that_cleans_up_waits_for_that_and_not_for_what_it_waited_for_before(when: str) -> None:
    kernel, log = Kernel(), []
    first: Future[None] = Future("first")

    async def work() -> None:
        try:
            if when != "between the result and its turn":
                task.cancel()
            if when == "while it runs, and what it waits for is there":
                first_again: Future[None] = Future("there at once")
                kernel.call_soon(lambda: first_again.set_result(None))
                await first_again
            await first
            log.append("went on")
            await kernel.sleep(50)
        except Cancelled:
            log.append(f"cancelled at {kernel.now}")
            await kernel.sleep(100)
            log.append(f"cleaned up at {kernel.now}")
            raise

    task = kernel.spawn(work(), "work")

    def finish_first() -> None:
        first.set_result(None)
        if when == "between the result and its turn":
            task.cancel()

    kernel.call_at(10, finish_first)
    kernel.run_until(1000)
    assert task.done
    assert log[-1] == f"cleaned up at {110 if when == 'between the result and its turn' else 100}"
    with pytest.raises(Cancelled):
        task.result()
