"""Where host time comes from: processors that serve interrupts, softirqs and processes, and book each picosecond.

Code that would run on a processor charges an account (`host_driver.account.Account`) and waits in `settle` until a
processor had the time. Interrupts suspend softirqs, both suspend processes; what was suspended resumes where it
stood. Equal priorities take turns: interrupts and softirqs first come, first served; processes when one has
used its quantum, which costs a context switch.

All times are integer picoseconds. What is charged is booked by (category, item) at the charge, and by
(processor, category) as the processor spends it; when nothing is waiting, both sums are equal.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from enum import IntEnum

from cosim.machine import PS_PER_SECOND, Application, Machine, prices_ps
from host_driver.runtime import Future, Kernel, Timer

Item = tuple[str, str]
"""(category, item) of `host_driver.account.ITEMS`."""


_INTERRUPT_ENTRY: Item = ("interrupt", "entry")
_SWITCH: Item = ("context_switch", "switch")


class Level(IntEnum):
    """Priority of a context; the lower number goes first."""

    INTERRUPT = 0
    SOFTIRQ = 1
    PROCESS = 2


class _Job:
    """Time that one `settle` waits for: what it is spent on, in order, and the future of its end."""

    __slots__ = ("context", "future", "is_new_interrupt", "parts", "remaining_ps")

    def __init__(self, context: Context, parts: dict[Item, int]) -> None:
        self.context = context
        self.is_new_interrupt = _INTERRUPT_ENTRY in parts
        self.parts: deque[tuple[str, int]] = deque((category, ps) for (category, _), ps in parts.items())
        self.remaining_ps = sum(parts.values())
        self.future: Future[None] = Future(f"processor time of {context.name}")


class Context:
    """An account of one interrupt handler, softirq or process. Made by `Processors`."""

    def __init__(self, processors: Processors, level: Level, name: str) -> None:
        self.name = name
        self.level = level
        self.processor: int | None = None
        """Where it runs or ran last."""
        self.quantum_left_ps = processors.quantum_ps
        self._processors = processors
        self._debt: dict[Item, int] = {}

    def charge(self, category: str, item: str, count: int = 1) -> None:
        """Book `count` units of an item. Raises KeyError for an item that has no price."""
        key = (category, item)
        ps = self._processors.prices[key] * count
        self._processors.booked_ps[key] += ps
        self._processors.counts[key] += count
        self._debt[key] = self._debt.get(key, 0) + ps

    async def settle(self) -> None:
        """Wait until a processor had the time for all that was charged so far."""
        debt, self._debt = self._debt, {}
        job = _Job(self, debt)
        if job.remaining_ps:
            self._processors._submit(job)
            await job.future


class _Processor:
    """One processor: what runs on it, and what waits for it alone."""

    __slots__ = ("busy_ps", "index", "reserved_for", "running", "since_ps", "timer", "waiting")

    def __init__(self, index: int) -> None:
        self.index = index
        self.running: _Job | None = None
        self.since_ps = 0
        self.timer: Timer | None = None
        self.waiting: tuple[deque[_Job], deque[_Job], deque[_Job]] = (deque(), deque(), deque())
        """Jobs bound to this processor by level; of processes only the suspended one."""
        self.reserved_for: Context | None = None
        """The process that just finished a job and has the processor for the rest of this instant."""
        self.busy_ps: Counter[str] = Counter()


class Processors:
    """The processors of a machine.

    Parameters: `kernel`, the clock; `machine` and `application`, which set number, prices, quantum and routing.
    Attributes: `booked_ps` and `counts` by (category, item); `busy_ps` by processor and category.
    """

    def __init__(self, kernel: Kernel, machine: Machine, application: Application) -> None:
        self._kernel = kernel
        self._clock_hz = machine.clock_hz
        self._rotate = machine.interrupt_routing == "rotate"
        self._processors = [_Processor(index) for index in range(machine.processors)]
        self._ready: deque[_Job] = deque()
        self._interrupted = self._processors[-1 if self._rotate else 0]
        self.quantum_ps = machine.quantum_us * 10**6
        self.prices = prices_ps(machine, application)
        self.booked_ps: Counter[Item] = Counter()
        self.counts: Counter[Item] = Counter()

    def interrupt_context(self, name: str) -> Context:
        """An account for an interrupt handler: on the first processor, or on each in turn, entry by entry."""
        return Context(self, Level.INTERRUPT, name)

    def softirq_context(self, name: str) -> Context:
        """An account for a bottom half: it runs where the last interrupt was taken."""
        return Context(self, Level.SOFTIRQ, name)

    def process_context(self, name: str) -> Context:
        """An account for a process: it runs on any processor, and on the last one if that is free."""
        return Context(self, Level.PROCESS, name)

    @property
    def busy_ps(self) -> list[Mapping[str, int]]:
        """Time spent so far, by category, for each processor."""
        for processor in self._processors:
            self._book(processor)
        return [dict(processor.busy_ps) for processor in self._processors]

    @property
    def idle(self) -> bool:
        """Whether no processor runs and nothing waits for one."""
        return not self._ready and all(p.running is None and not any(p.waiting) for p in self._processors)

    def cycles(self, ps: int) -> float:
        """Processor cycles in a time."""
        return ps * self._clock_hz / PS_PER_SECOND

    def _submit(self, job: _Job) -> None:
        context = job.context
        if context.level is Level.PROCESS:
            self._submit_process(job)
            return
        if job.is_new_interrupt and self._rotate:
            self._interrupted = self._processors[(self._interrupted.index + 1) % len(self._processors)]
        processor = self._interrupted
        context.processor = processor.index
        processor.waiting[context.level].append(job)
        running = processor.running
        if running is None:
            self._dispatch(processor)
        elif running.context.level > context.level:
            self._suspend(processor).appendleft(running)
            self._dispatch(processor)

    def _submit_process(self, job: _Job) -> None:
        context = job.context
        last = self._processors[context.processor] if context.processor is not None else None
        if last is not None and last.reserved_for is context and last.running is None:
            last.reserved_for = None
            last.waiting[Level.PROCESS].appendleft(job)
            self._dispatch(last)
            return
        if context.quantum_left_ps <= 0 and self._ready:
            self._charge_switch(job)
        context.quantum_left_ps = self.quantum_ps
        self._ready.append(job)
        order = self._processors if last is None else [last, *self._processors]
        for processor in order:
            if processor.running is None and processor.reserved_for is None:
                self._dispatch(processor)
                return
        if len(self._ready) == 1:
            self._arm_quanta()

    def _dispatch(self, processor: _Processor) -> None:
        """Let a free processor take the job that goes first, if there is one."""
        for queue in (*processor.waiting, self._ready):
            if queue:
                job = queue.popleft()
                break
        else:
            return
        processor.reserved_for = None
        processor.running = job
        processor.since_ps = self._kernel.now
        job.context.processor = processor.index
        self._arm(processor)

    def _arm(self, processor: _Processor) -> None:
        """Set the timer of the running job: its end, or its quantum's when another process waits."""
        job = processor.running
        assert job is not None
        slice_ps = job.remaining_ps
        if job.context.level is Level.PROCESS and self._ready:
            slice_ps = min(slice_ps, max(job.context.quantum_left_ps, 0))
        if processor.timer is not None:
            processor.timer.cancel()
        processor.timer = self._kernel.call_at(processor.since_ps + slice_ps, lambda: self._expire(processor))

    def _arm_quanta(self) -> None:
        for processor in self._processors:
            if processor.running is not None and processor.running.context.level is Level.PROCESS:
                self._book(processor)
                self._arm(processor)

    def _book(self, processor: _Processor) -> None:
        """Book the running job's time up to now."""
        job = processor.running
        if job is None:
            return
        spent_ps = self._kernel.now - processor.since_ps
        processor.since_ps = self._kernel.now
        job.remaining_ps -= spent_ps
        job.context.quantum_left_ps -= spent_ps
        while spent_ps:
            category, part_ps = job.parts.popleft()
            ps = min(spent_ps, part_ps)
            processor.busy_ps[category] += ps
            spent_ps -= ps
            if ps < part_ps:
                job.parts.appendleft((category, part_ps - ps))

    def _suspend(self, processor: _Processor) -> deque[_Job]:
        """Take the running job off the processor; the queue in which it waits to resume there."""
        self._book(processor)
        job = processor.running
        assert job is not None
        assert processor.timer is not None
        processor.timer.cancel()
        processor.running = None
        return processor.waiting[job.context.level]

    def _expire(self, processor: _Processor) -> None:
        self._book(processor)
        job = processor.running
        assert job is not None
        processor.timer = None
        processor.running = None
        if job.remaining_ps:
            if self._ready:
                self._charge_switch(job)
            job.context.quantum_left_ps = self.quantum_ps
            self._ready.append(job)
            self._dispatch(processor)
            return
        if job.context.level is Level.PROCESS and not (self._ready and job.context.quantum_left_ps <= 0):
            processor.reserved_for = job.context
        job.future.set_result(None)
        # The task that waited runs before this: it may charge on without losing the processor.
        self._kernel.call_soon(lambda: self._release(processor))

    def _charge_switch(self, job: _Job) -> None:
        """A process that has used its quantum goes behind those that wait, and pays for the switch back."""
        ps = self.prices[_SWITCH]
        self.booked_ps[_SWITCH] += ps
        self.counts[_SWITCH] += 1
        job.parts.appendleft((_SWITCH[0], ps))
        job.remaining_ps += ps

    def _release(self, processor: _Processor) -> None:
        if processor.running is None:
            processor.reserved_for = None
            self._dispatch(processor)
