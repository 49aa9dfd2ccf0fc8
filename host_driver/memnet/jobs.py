"""Jobs: asynchronous operations, and processes that wait for them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from host_driver.errors import NetworkError
from host_driver.memnet.checking import Watch
from host_driver.runtime import Future

if TYPE_CHECKING:
    from host_driver.memnet.api import MemNet
    from host_driver.memnet.regions import Part


class Job:
    """An asynchronous operation. `await job` is `MemNet.job_wait(job)`.

    Attributes: `parts`, the bytes that it uses; `description`; `is_send`: they must not be changed, rather than not
    touched at all; `is_done`; `error`: why it failed, if it did.
    """

    def __init__(self, memnet: MemNet, parts: Sequence[Part], description: str, *, is_send: bool) -> None:
        self.parts = parts
        self.description = description
        self.is_send = is_send
        self.is_done = False
        self.error: NetworkError | None = None
        self.on_over: Callable[[], None] | None = None
        """Called when it is over, behind whoever waits for it."""
        self._memnet = memnet
        self._moved_bytes = 0
        self._waiters: list[JobWaiter] = []
        self._watch: Watch | None = None

    def __repr__(self) -> str:
        return f"<Job {self.description}{' (done)' if self.is_done else ''}>"

    def __await__(self) -> Generator[Future[None], None, int]:
        return self._memnet.job_wait(self).__await__()

    def result(self) -> int:
        """Bytes moved. Raises what it failed with, or RuntimeError if it is not done."""
        if not self.is_done:
            raise RuntimeError(f"{self!r} is not done")
        if self.error is not None:
            raise self.error
        return self._moved_bytes

    # ------------------------------------------------------------------------------------------ the library's

    def begin(self, *, is_watched: bool) -> None:
        """It uses its bytes from now on."""
        if is_watched:
            self._watch = Watch(self)
        for part in self.parts:
            part.region.jobs[self] = None

    def forget(self) -> None:
        """It uses its bytes no more."""
        for part in self.parts:
            part.region.jobs.pop(self, None)

    def finish(self, moved_bytes: int, error: NetworkError | None) -> None:
        """It is over: wakes who waits for it."""
        self.forget()
        if self._watch is not None:
            touched = self._watch.find_touched(moved_bytes)
            self._watch = None
            if touched is not None:
                self._memnet.counters.buffers_touched += 1
                error = touched
        self.is_done, self.error, self._moved_bytes = True, error, moved_bytes
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.job_done()
        if self.on_over is not None:
            self.on_over()

    @property
    def is_waited(self) -> bool:
        """Whether a process sleeps for it."""
        return bool(self._waiters)

    def add_waiter(self, waiter: JobWaiter) -> None:
        """Tell it when the job is over."""
        self._waiters.append(waiter)

    def remove_waiter(self, waiter: JobWaiter) -> None:
        """It does not wait any more."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)


class JobWaiter:
    """A process that sleeps until `needed` of some jobs are done. Attribute: `woken`."""

    def __init__(self, name: str, needed: int, charge_waking: Callable[[], None]) -> None:
        self.woken: Future[None] = Future(name)
        self._needed = needed
        self._charge_waking = charge_waking

    def job_done(self) -> None:
        """One more is done."""
        self._needed -= 1
        if self._needed == 0:
            self.wake()

    def wake(self) -> None:
        """Wake the process, once."""
        if not self.woken.done:
            self._charge_waking()
            self.woken.set_result(None)
