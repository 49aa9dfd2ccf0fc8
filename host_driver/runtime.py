"""Futures, tasks, events and queues in simulated time, and the clock that runs them.

A leaf: it imports nothing of memnic. Coroutines of the driver, the applications and the peers await these
objects; whoever owns the clock (`cosim`) calls `Kernel.run_until` and asks `Kernel.next_time`.

All time is integer picoseconds. Callbacks at equal times run in the order in which they were scheduled, so a
run is the same each time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")

_FOREVER = 1 << 100


class Cancelled(BaseException):
    """Thrown into a task that is cancelled; not an Exception, so that ordinary handlers let it pass."""


class TaskFailed(RuntimeError):
    """A task that nobody awaits raised: names the task and the simulated time; `__cause__` is its exception."""


class Future(Generic[T]):
    """A result that arrives later. Awaiting it returns the result or raises the exception."""

    __slots__ = ("_callbacks", "_exception", "_result", "done", "name")

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.done = False
        self._result: T | None = None
        self._exception: BaseException | None = None
        self._callbacks: list[Callable[[Future[T]], None]] = []

    def set_result(self, result: T) -> None:
        """Finish with a result. Raises RuntimeError when already finished."""
        self._finish(result, None)

    def set_exception(self, exception: BaseException) -> None:
        """Finish with an exception. Raises RuntimeError when already finished."""
        self._finish(None, exception)

    def _finish(self, result: T | None, exception: BaseException | None) -> None:
        if self.done:
            raise RuntimeError(f"future {self.name!r} is finished already")
        self.done, self._result, self._exception = True, result, exception
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def result(self) -> T:
        """The result; raises the exception, or RuntimeError when not finished."""
        if not self.done:
            raise RuntimeError(f"future {self.name!r} is not finished")
        if self._exception is not None:
            raise self._exception
        return self._result  # type: ignore[return-value]

    def add_callback(self, callback: Callable[[Future[T]], None]) -> None:
        """Call `callback(self)` when finished, or now if it is."""
        if self.done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def remove_callback(self, callback: Callable[[Future[T]], None]) -> None:
        """Forget a callback that was added and has not run."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def __await__(self) -> Generator[Future[T], None, T]:
        if not self.done:
            yield self
        return self.result()


class Task(Future[T]):
    """A coroutine that runs. It is a future of the coroutine's result."""

    __slots__ = ("_coroutine", "_is_overtaken", "_is_resuming", "_kernel", "_observed", "_waiting_for")

    def __init__(self, kernel: Kernel, coroutine: Coroutine[Future[Any], None, T], name: str) -> None:
        super().__init__(name)
        self._kernel = kernel
        self._coroutine = coroutine
        self._waiting_for: Future[Any] | None = None
        self._is_resuming = False
        self._is_overtaken = False
        self._observed = False

    def add_callback(self, callback: Callable[[Future[T]], None]) -> None:
        """As in Future; whoever adds one sees the exception, so the run goes on when the task fails."""
        self._observed = True
        super().add_callback(callback)

    def _wake(self, _future: Future[Any]) -> None:
        self._waiting_for = None
        self._is_resuming = True
        self._kernel.call_soon(self._resume)

    def _resume(self) -> None:
        """Go on behind what was waited for; not if a cancellation came in between, which has gone on already."""
        self._is_resuming = False
        if self._is_overtaken:
            self._is_overtaken = False
        else:
            self._step()

    def _throw_cancelled(self) -> None:
        if self._waiting_for is not None:
            self._waiting_for.remove_callback(self._wake)
            self._waiting_for = None
        self._is_overtaken = self._is_resuming
        self._step(Cancelled())

    def _step(self, throw: BaseException | None = None) -> None:
        if self.done:
            return
        try:
            awaited = self._coroutine.throw(throw) if throw else self._coroutine.send(None)
        except StopIteration as stop:
            self._kernel.tasks.discard(self)
            self.set_result(stop.value)
        except Cancelled as cancelled:
            self._kernel.tasks.discard(self)
            self._observed = True
            self.set_exception(cancelled)
        except Exception as error:
            self._kernel.tasks.discard(self)
            if not self._observed:
                what = f"{type(error).__name__}: {error}"
                failed = TaskFailed(f"task {self.name!r} at {self._kernel.now} ps raised {what}")
                failed.__cause__ = error
                self._kernel.failure = self._kernel.failure or failed
            self.set_exception(error)
        else:
            if not isinstance(awaited, Future):
                raise TypeError(f"task {self.name!r} awaited {awaited!r}, which is no runtime.Future")
            self._waiting_for = awaited
            awaited.add_callback(self._wake)

    def cancel(self) -> None:
        """Throw Cancelled into the coroutine where it waits. Nothing happens when it has finished."""
        if self.done:
            return
        if self._waiting_for is not None:
            self._waiting_for.remove_callback(self._wake)
            self._waiting_for = None
        self._kernel.call_soon(self._throw_cancelled)

    @property
    def waits_for(self) -> str:
        """Name of what it waits for, for a deadlock report."""
        return self._waiting_for.name if self._waiting_for is not None else "its turn"


class Timer:
    """A callback at a time; `cancel` takes it back."""

    __slots__ = ("callback", "time")

    def __init__(self, time: int, callback: Callable[[], None]) -> None:
        self.time = time
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """The callback will not run."""
        self.callback = None


class Reporter(Protocol):
    """Something that a run may wait for."""

    def report(self) -> str:
        """What it has under way, in one line; empty when there is nothing."""


class Kernel:
    """The clock and what is due. Members: `now` in picoseconds; `tasks` that are not finished; `reporters`, asked when
    nothing goes on."""

    def __init__(self) -> None:
        self.now = 0
        self.tasks: set[Task[Any]] = set()
        self.reporters: list[Reporter] = []
        self.failure: TaskFailed | None = None
        self._sequence = 0
        self._limit = 0
        self._heap: list[tuple[int, int, Timer]] = []
        self._soon: deque[Callable[[], None]] = deque()

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run `callback` at the present time, behind what is due already."""
        self._soon.append(callback)

    def call_at(self, time: int, callback: Callable[[], None]) -> Timer:
        """Run `callback` at `time`; a time that has passed means now."""
        timer = Timer(max(time, self.now), callback)
        self._sequence += 1
        heapq.heappush(self._heap, (timer.time, self._sequence, timer))
        return timer

    def spawn(self, coroutine: Coroutine[Any, None, T], name: str) -> Task[T]:
        """Start a coroutine as a task; it takes its first step when the present callback ends."""
        task = Task(self, coroutine, name)
        self.tasks.add(task)
        self.call_soon(task._step)
        return task

    def sleep(self, duration_ps: int) -> Future[None]:
        """A future that finishes `duration_ps` from now."""
        return self.sleep_until(self.now + duration_ps)

    def sleep_until(self, time: int) -> Future[None]:
        """A future that finishes at `time`."""
        future: Future[None] = Future("sleep")
        self.call_at(time, lambda: future.set_result(None))
        return future

    def next_time(self) -> int | None:
        """Time of the next callback; None when nothing is due ever."""
        if self._soon:
            return self.now
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def run_until(self, time: int) -> None:
        """Run all that is due up to and including `time`, then let `now` be `time`.

        Raises TaskFailed when a task that nobody awaits raised.
        """
        self._limit = time
        self._run(time)

    def run_while(self, goes_on: Callable[[], bool]) -> bool:
        """Run all that is due, in order, until `goes_on()`, which is asked before each time, says no; False: nothing is
        due any more. Raises as `run_until`."""
        self._limit = _FOREVER
        while goes_on():
            time = self.next_time()
            if time is None:
                return False
            self._run(time)
        return True

    def pass_to(self, time: int) -> bool:
        """Let `now` be `time`, for a callback that would otherwise be called again then; False, and nothing happens: if
        anything else is due by then, or the clock is not to run so far."""
        due = self.next_time()
        if time > self._limit or (due is not None and due <= time):
            return False
        self.now = time
        return True

    def _run(self, time: int) -> None:
        heap, soon = self._heap, self._soon
        while True:
            while soon:
                soon.popleft()()
                if self.failure is not None:
                    failure, self.failure = self.failure, None
                    raise failure
            if not heap or heap[0][0] > time:
                break
            due, _, timer = heapq.heappop(heap)
            if timer.callback is not None:
                self.now = due
                timer.callback()
                if self.failure is not None:
                    failure, self.failure = self.failure, None
                    raise failure
        self.now = max(self.now, time)


class Event:
    """A flag that tasks wait for. Stays set until `clear`."""

    __slots__ = ("_flag", "_name", "_waiters")

    def __init__(self, name: str = "event") -> None:
        self._name = name
        self._flag = False
        self._waiters: list[Future[None]] = []

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._flag

    def set(self) -> None:
        """Set it and wake all who wait."""
        self._flag = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done:
                waiter.set_result(None)

    def clear(self) -> None:
        """Take it back."""
        self._flag = False

    def wait(self) -> Future[None]:
        """A future that finishes when the event is set, or now if it is."""
        future: Future[None] = Future(self._name)
        if self._flag:
            future.set_result(None)
        else:
            self._waiters.append(future)
        return future


class Queue(Generic[T]):
    """First in, first out, without bound; `get` waits."""

    __slots__ = ("_getters", "_items", "_name")

    def __init__(self, name: str = "queue") -> None:
        self._name = name
        self._items: deque[T] = deque()
        self._getters: deque[Future[T]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item, or hand it to who waits longest."""
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done:
                getter.set_result(item)
                return
        self._items.append(item)

    def get(self) -> Future[T]:
        """A future of the next item."""
        future: Future[T] = Future(self._name)
        if self._items:
            future.set_result(self._items.popleft())
        else:
            self._getters.append(future)
        return future


def first_of(*futures: Future[Any]) -> Future[int]:
    """A future of the index of the one that finishes first. The others go on."""
    winner: Future[int] = Future("first of " + ", ".join(f.name for f in futures))

    def finish(index: int) -> Callable[[Future[Any]], None]:
        def done(_future: Future[Any]) -> None:
            if not winner.done:
                winner.set_result(index)
        return done

    for index, future in enumerate(futures):
        future.add_callback(finish(index))
    return winner
