"""Where work goes that no process asked for: interrupts to processors, soft timers to where the kernel runs anyway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from host_driver.runtime import Future, Kernel, Timer


class Target(Protocol):
    """A processor, as seen from here."""

    @property
    def urgency(self) -> int:
        """How little what runs there likes to be interrupted; 0: it idles."""


P = TypeVar("P", bound=Target)


class Steering(Generic[P]):
    """Which of some processors takes an interrupt: the first, each in turn, or the least urgent of them."""

    def __init__(self, targets: Sequence[P], routing: str) -> None:
        self.targets = targets
        self._routing = routing
        self.current = targets[-1 if routing == "rotate" else 0]
        """Who took the last one."""

    def route(self) -> None:
        """Let a new interrupt choose."""
        at = self.targets.index(self.current)
        in_turn = [*self.targets[at + 1 :], *self.targets[: at + 1]]
        if self._routing == "rotate":
            self.current = in_turn[0]
        elif self._routing == "idle":
            self.current = min(in_turn, key=lambda processor: processor.urgency)


class TriggerStates(Generic[P]):
    """When one of a steering's processors is at a point where it may look for other work without an interrupt; what is
    then to be done goes there. Implements `host_driver.notification.TriggerStates`.

    Ref: Aron, Druschel, "Soft timers" (2000), section 3: the ends of system calls, of exceptions and of interrupts, and
    the idle loop.
    """

    def __init__(self, kernel: Kernel, steering: Steering[P]) -> None:
        self._kernel = kernel
        self._steering = steering
        self._waiters: list[tuple[Future[bool], Timer]] = []

    def next(self, tick_ps: int) -> Future[bool]:
        """A future of the next such point; False: none came before the clock's next tick, a multiple of `tick_ps`."""
        waiter: Future[bool] = Future("a trigger state")
        idle = next((processor for processor in self._steering.targets if processor.urgency == 0), None)
        if idle is not None:
            self._steering.current = idle
            waiter.set_result(True)
        else:
            tick = self._kernel.call_at((self._kernel.now // tick_ps + 1) * tick_ps, self._tick)
            self._waiters.append((waiter, tick))
        return waiter

    def reached(self, processor: P) -> None:
        """A processor is at such a point."""
        if self._waiters and processor in self._steering.targets:
            self._steering.current = processor
            self._tell(True)

    def _tick(self) -> None:
        self._tell(False)

    def _tell(self, by_work: bool) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter, tick in waiters:
            tick.cancel()
            waiter.set_result(by_work)
