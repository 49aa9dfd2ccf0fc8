"""An application: a coroutine with a MemNet of its own, and what becomes of all it had when it ends.

Whatever way it ends (it returns, raises, or is killed in the middle of anything) its tasks are ended, its connections,
channels, capabilities and memory are given back, and nobody else notices.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from enum import Enum
from typing import Any, TypeVar

from host_driver.memnet.api import MemNet
from host_driver.runtime import Cancelled, Kernel, Task

T = TypeVar("T")


class Outcome(Enum):
    """How an application ended."""

    RUNNING = "running"
    RETURNED = "returned"
    RAISED = "raised"
    KILLED = "killed"


_current: Application | None = None


class Application:
    """Runs `main(memnet)` until it returns; the MemNet is then given back.

    Attributes: `memnet`; `outcome`, and `error` and `failed_at_ps` of one that raised; `result` of one that returned;
    `over`, a task that ends when all was given back.
    """

    def __init__(self, kernel: Kernel, memnet: MemNet, main: Callable[[MemNet], Coroutine[Any, Any, Any]],
                 name: str) -> None:
        self.kernel = kernel
        self.memnet = memnet
        self.name = name
        self.outcome = Outcome.RUNNING
        self.error: Exception | None = None
        self.failed_at_ps = 0
        self.task_errors: list[Exception] = []
        """What its other tasks raised."""
        self.result: Any = None
        self._is_killed = False
        self._tasks: dict[Task[Any], None] = {}
        self._main = self._start(main(memnet), name)
        self._main.add_callback(lambda _future: None)  # what it raises is `error`, even before `_supervise` looks
        self.over: Task[None] = kernel.spawn(self._supervise(), f"the end of {name}")

    def __repr__(self) -> str:
        return f"<Application {self.name} {self.outcome.value}>"

    @staticmethod
    def current() -> Application:
        """The one whose code runs now. Raises RuntimeError outside of all."""
        if _current is None:
            raise RuntimeError("no application runs here: start one with `Application`")
        return _current

    def kill(self) -> None:
        """End it where it stands; what it is giving back then it gives back."""
        if not self._is_killed:
            self._is_killed = True
            self._main.cancel()

    def spawn(self, coroutine: Coroutine[Any, Any, T], name: str) -> Task[T]:
        """Start a task of the application, which ends with it."""
        task = self._start(coroutine, f"{self.name}: {name}")
        self._tasks[task] = None
        task.add_callback(lambda _future: self._task_over(task))
        return task

    def _task_over(self, task: Task[Any]) -> None:
        self._tasks.pop(task, None)
        try:
            task.result()
        except Cancelled:
            return
        except Exception as error:
            self.memnet.counters.tasks_failed += 1
            self.task_errors.append(error)

    def _start(self, coroutine: Coroutine[Any, Any, T], name: str) -> Task[T]:
        async def run() -> T:
            result: T = await _InApplication(self, coroutine)
            return result

        return self.kernel.spawn(run(), name)

    async def _supervise(self) -> None:
        counters = self.memnet.counters
        try:
            self.result = await self._main
            outcome = Outcome.RETURNED
        except Cancelled:
            counters.applications_killed += 1
            outcome = Outcome.KILLED
        except Exception as error:
            counters.applications_failed += 1
            self.error, self.failed_at_ps = error, self.kernel.now
            outcome = Outcome.RAISED
        while self._tasks:
            task = next(iter(self._tasks))
            task.cancel()
            try:
                await task
            except (Exception, Cancelled):
                self._tasks.pop(task, None)
        await self.memnet.exit(is_dead=outcome is not Outcome.RETURNED)
        self.outcome = outcome


class _InApplication:
    """Steps a coroutine so that `Application.current` is right while it runs."""

    def __init__(self, application: Application, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._application = application
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, None, Any]:
        global _current
        coroutine, error = self._coroutine, None
        while True:
            before, _current = _current, self._application
            try:
                awaited = coroutine.send(None) if error is None else coroutine.throw(error)
            except StopIteration as stop:
                return stop.value
            finally:
                _current = before
            error = None
            try:
                yield awaited
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as thrown:
                error = thrown
