"""Where host time comes from: processors that serve interrupts, softirqs and processes, and book each picosecond.

Code that would run on a processor charges an account (`host_driver.account.Account`) and waits in `settle` until a
processor had the time. Interrupts suspend softirqs, both suspend processes; what was suspended resumes where it
stood. Equal priorities take turns: interrupts and softirqs first come, first served; processes when one has
used its quantum, which costs a context switch. Where the machine says so, a process that wakes takes its last processor
from one that has had more time, as soon as that one is outside of the kernel. A process may be held to some processors,
and so may interrupts, whose bottom halves run where the last one was taken. A poll takes the bus away from processors
that use it at that moment.

All times are integer picoseconds. What is charged is booked by (category, item) at the charge, and by
(processor, category) as the processor spends it; when nothing is waiting, both sums are equal.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum

from cosim.machine import PS_PER_SECOND, Application, Machine, prices_ps
from cosim.steering import Steering, TriggerStates
from host_driver.placement import Policy
from host_driver.runtime import Future, Kernel, Timer
from host_driver.softirq import PerProcessor

Item = tuple[str, str]
"""(category, item) of `host_driver.account.ITEMS`."""


_INTERRUPT_ENTRY: Item = ("interrupt", "entry")
_SWITCH: Item = ("context_switch", "switch")
_THREAD_SWITCH: Item = ("context_switch", "thread_switch")
_POLL: Item = ("poll", "batch")
_BUS_WAIT: Item = ("poll", "bus_wait")

BUS_USERS: frozenset[Item] = frozenset({
    ("copy", "user_to_kernel_byte"), ("copy", "retransmit_byte"), ("copy", "kernel_to_user_byte"),
    ("file_system", "read_byte"), ("tcp_send", "checksum_byte"), ("tcp_recv", "checksum_byte"),
    ("driver", "mmio_read"), ("driver", "mmio_write"), ("driver", "block_write"), _POLL, _BUS_WAIT})
"""Items that wait for memory or registers, and so for a poll of another processor."""

USER = "user"
"""The category of the account that is no work of the system."""

USER_LIBRARY: frozenset[Item] = frozenset({("san", "post"), ("san", "poll")})
"""Other items of work outside of the kernel: a VI belongs to the program that uses it."""

TRIGGERS = frozenset({"syscall", "interrupt", "softirq"})
"""Categories of work at whose end there is a trigger state (`cosim.steering.TriggerStates`)."""


class Level(IntEnum):
    """Priority of a context; the lower number goes first."""

    INTERRUPT = 0
    SOFTIRQ = 1
    PROCESS = 2


class _Job:
    """Time that one `settle` waits for: what it is spent on, in order, and the future of its end."""

    __slots__ = ("context", "future", "has_begun", "is_new_interrupt", "is_trigger", "is_waking", "parts",
                 "remaining_ps")

    def __init__(self, context: Context, parts: dict[Item, int]) -> None:
        self.context = context
        self.is_new_interrupt = _INTERRUPT_ENTRY in parts
        self.is_waking = _SWITCH in parts
        """The context has slept."""
        self.is_trigger = any(category in TRIGGERS for category, _ in parts)
        self.has_begun = False
        self.parts: deque[tuple[Item, int]] = deque(parts.items())
        self.remaining_ps = sum(parts.values())
        self.future: Future[None] = Future(f"processor time of {context.name}")

    @property
    def in_kernel_ps(self) -> int:
        """Time until it is outside of the kernel; all that remains if it never is."""
        total_ps = 0
        for item, ps in self.parts:
            if item[0] == USER or item in USER_LIBRARY:
                break
            total_ps += ps
        return total_ps


class Context:
    """An account of one interrupt handler, softirq, process or thread. Made by `Processors`."""

    def __init__(self, processors: Processors, level: Level, name: str, *, steering: Steering[_Processor] | None = None,
                 allowed: frozenset[int] | None = None, space: object = None) -> None:
        self.name = name
        self.level = level
        self.steering = steering
        """Of an interrupt handler or a softirq: where it is to run."""
        self.allowed = allowed
        """Of a process: the processors that it may run on; None: all."""
        self.space = self if space is None else space
        """Its address space: threads share one."""
        self.processor: int | None = None
        """Where it runs or ran last."""
        self.quantum_left_ps = processors.quantum_ps
        self.had_ps = 0
        """Of a process: the time that it has had, or counts as having had."""
        self.must_yield = False
        """Of a process: another has woken that is to have its processor."""
        self._processors = processors
        self._debt: dict[Item, int] = {}

    def charge(self, category: str, item: str, count: int = 1) -> None:
        """Book `count` units of an item. Raises KeyError for an item that has no price."""
        key = (category, item)
        ps = self._processors.prices[key] * count
        self._processors.booked_ps[key] += ps
        self._processors.counts[key] += count
        self._debt[key] = self._debt.get(key, 0) + ps

    def thread(self, name: str) -> Context:
        """An account for another thread of this process: same address space, same processors."""
        return Context(self._processors, self.level, name, allowed=self.allowed, space=self.space)

    def may_run_on(self, processor: int) -> bool:
        """Whether a process may run there."""
        return self.allowed is None or processor in self.allowed

    async def settle(self) -> None:
        """Wait until a processor had the time for all that was charged so far."""
        debt, self._debt = self._debt, {}
        job = _Job(self, debt)
        if job.remaining_ps:
            self._processors._submit(job)
            await job.future


class _Processor:
    """One processor: what runs on it, and what waits for it alone."""

    __slots__ = ("busy_ps", "index", "last_process", "reserved_for", "running", "since_ps", "timer", "waiting")

    def __init__(self, index: int) -> None:
        self.index = index
        self.running: _Job | None = None
        self.since_ps = 0
        self.timer: Timer | None = None
        self.waiting: tuple[deque[_Job], deque[_Job], deque[_Job]] = (deque(), deque(), deque())
        """Jobs bound to this processor by level; of processes only the suspended one."""
        self.reserved_for: Context | None = None
        """The process that just finished a job and has the processor for the rest of this instant."""
        self.last_process: Context | None = None
        self.busy_ps: Counter[str] = Counter()

    @property
    def process(self) -> Context | None:
        """The process that it runs, if need be behind what has suspended it."""
        if self.running is not None and self.running.context.level is Level.PROCESS:
            return self.running.context
        suspended = self.waiting[Level.PROCESS]
        return suspended[0].context if suspended else self.reserved_for

    @property
    def urgency(self) -> int:
        """How little what runs here likes to be interrupted: 0 idle, 1 a process, 2 a softirq, 3 an interrupt."""
        running = self.running.context if self.running is not None else self.reserved_for
        return 0 if running is None else Level.PROCESS - running.level + 1


class Processors:
    """The processors of a machine.

    Parameters: `kernel`, the clock; `machine` and `application`, which set number, prices, quantum and routing.
    Attributes: `booked_ps` and `counts` by (category, item); `busy_ps` by processor and category; `bus_taken_ps`, time
    that polls had the bus; `on_bus_taken`, called with that of each, for who else uses it.
    """

    def __init__(self, kernel: Kernel, machine: Machine, application: Application) -> None:
        self._kernel = kernel
        self._clock_hz = machine.clock_hz
        self._routing = machine.interrupt_routing
        self._processors = [_Processor(index) for index in range(machine.processors)]
        self._ready: deque[_Job] = deque()
        self._steering = Steering(self._processors, self._routing)
        self._trigger_states: list[TriggerStates[_Processor]] = []
        self.quantum_ps = machine.quantum_us * 10**6
        self._preemption = machine.wakeup_preemption
        self.prices = prices_ps(machine, application)
        self.booked_ps: Counter[Item] = Counter()
        self.counts: Counter[Item] = Counter()
        self.bus_taken_ps = 0
        self.on_bus_taken: Callable[[int], None] = lambda duration_ps: None

    def steering(self, processors: Iterable[int] | None = None) -> Steering[_Processor]:
        """Interrupts go to these processors, as the machine routes them; None: to all, and all such are one.

        Raises ValueError for a processor that there is not.
        """
        if processors is None:
            return self._steering
        return Steering([self._processors[index] for index in sorted(self._checked(processors))], self._routing)

    def trigger_states(self, steering: Steering[_Processor] | None = None) -> TriggerStates[_Processor]:
        """Trigger states of the processors of a steering, by default of all."""
        states = TriggerStates(self._kernel, steering or self._steering)
        self._trigger_states.append(states)
        return states

    def interrupt_context(self, name: str, steering: Steering[_Processor] | None = None) -> Context:
        """An account for an interrupt handler: each entry runs where its steering sends it."""
        return Context(self, Level.INTERRUPT, name, steering=steering or self._steering)

    def softirq_context(self, name: str, steering: Steering[_Processor] | None = None) -> Context:
        """An account for a bottom half: it runs where the last interrupt of that steering was taken."""
        return Context(self, Level.SOFTIRQ, name, steering=steering or self._steering)

    def softirq_contexts(self, steering: Steering[_Processor], *, by_connection: bool = False,
                         policy: Policy | None = None,
                         others: Steering[_Processor] | None = None) -> PerProcessor:
        """Accounts for bottom halves that run at a time, one on each of the processors of a steering; with a policy one
        more on `others`, for connections that it keeps from these."""
        targets = steering.targets
        accounts = [self.softirq_context(f"softirq {target.index}", self.steering([target.index]))
                    for target in targets]
        if policy is not None:
            accounts.append(self.softirq_context("softirq of the host", others))
        return PerProcessor(accounts, lambda: targets.index(steering.current), by_connection, policy)

    def process_context(self, name: str, processors: Iterable[int] | None = None) -> Context:
        """An account for a process: it runs on any of these processors (None: of all), and on the last one if that is
        free. Raises ValueError for a processor that there is not."""
        return Context(self, Level.PROCESS, name, allowed=None if processors is None else self._checked(processors))

    def _checked(self, processors: Iterable[int]) -> frozenset[int]:
        chosen, there = frozenset(processors), range(len(self._processors))
        if not chosen or not chosen <= set(there):
            raise ValueError(f"processors must be some of {list(there)}, not {sorted(chosen)}")
        return chosen

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
        assert context.steering is not None
        if job.is_new_interrupt:
            context.steering.route()
        processor = context.steering.current
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
        gives_way = False
        if last is not None and last.reserved_for is context and last.running is None:
            last.reserved_for = None
            gives_way = self._gives_way(job, last)
            if not gives_way:
                last.waiting[Level.PROCESS].appendleft(job)
                self._dispatch(last)
                return
        if gives_way or (context.quantum_left_ps <= 0 and last is not None and self._waits_for(last)):
            self._charge_switch(job)
        if job.is_waking:
            self._limit_credit(context)
        self._renew_quanta(context)
        self._put_behind(job)
        if not self._fill_idle(context, last):
            if job.is_waking and last is not None:
                self._preempt(job, last)
            self._arm_quanta(context)

    def _put_behind(self, job: _Job) -> None:
        """A process goes behind those that wait."""
        job.context.quantum_left_ps = self.quantum_ps
        job.context.must_yield = False
        self._ready.append(job)

    def _renew_quanta(self, newcomer: Context) -> None:
        """Where nobody has waited, one quantum has followed the other."""
        for processor in self._processors:
            if newcomer.may_run_on(processor.index) and not self._waits_for(processor):
                self._book(processor)
                process = processor.process
                if process is not None and process.quantum_left_ps <= 0:
                    process.quantum_left_ps = process.quantum_left_ps % self.quantum_ps or self.quantum_ps

    def _limit_credit(self, context: Context) -> None:
        """Who slept does not count as having had very much less time than those that did not."""
        if self._preemption is None:
            return
        others = [job.context.had_ps for job in self._awake()]
        if others:
            context.had_ps = max(context.had_ps, min(others) - self._preemption.credit_us * 10**6)

    def _awake(self) -> Iterable[_Job]:
        """Jobs of all processes that run or want to, booked up to now."""
        yield from self._ready
        for processor in self._processors:
            self._book(processor)
            if processor.running is not None and processor.running.context.level is Level.PROCESS:
                yield processor.running
            yield from processor.waiting[Level.PROCESS]

    def _preempt(self, job: _Job, last: _Processor) -> None:
        """Let a process that woke have its last processor, if the one there has had enough more time: now, or as soon
        as it is outside of the kernel. On any other processor its caches would be cold.

        Ref: Linux 2.4, kernel/sched.c, reschedule_idle(), goodness() with its PROC_CHANGE_PENALTY
        """
        preemption, context = self._preemption, job.context
        if preemption is None or not context.may_run_on(last.index):
            return
        there = last.process
        if there is None:
            return
        margin_us = preemption.thread_us if there.space is context.space else preemption.process_us
        if there.had_ps - context.had_ps < margin_us * 10**6:
            return
        self._ready.remove(job)
        self._ready.appendleft(job)
        there.must_yield = True
        if last.running is not None and last.running.context is there:
            self._arm(last)

    def _gives_way(self, job: _Job, processor: _Processor) -> bool:
        """Whether a process is outside of the kernel, and another has woken that is to have its processor."""
        return (job.context.must_yield and job.remaining_ps > 0 and not job.in_kernel_ps
                and self._waits_for(processor))

    def _fill_idle(self, context: Context, last: _Processor | None) -> bool:
        """Let an idle processor take a job of this process, the last one first; False: none is idle."""
        for processor in self._processors if last is None else [last, *self._processors]:
            if processor.running is None and processor.reserved_for is None and context.may_run_on(processor.index):
                self._dispatch(processor)
                return True
        return False

    def _waits_for(self, processor: _Processor) -> bool:
        """Whether a process waits that may run there."""
        return any(job.context.may_run_on(processor.index) for job in self._ready)

    def _next_ready(self, processor: _Processor) -> _Job | None:
        """The process that goes first there, taken from the run queue."""
        for at, job in enumerate(self._ready):
            if job.context.may_run_on(processor.index):
                del self._ready[at]
                return job
        return None

    def _dispatch(self, processor: _Processor) -> None:
        """Let a free processor take the job that goes first, if there is one."""
        queue = next(filter(None, processor.waiting), None)
        if queue and self._gives_way(queue[0], processor):
            suspended = queue.popleft()
            self._charge_switch(suspended)
            self._put_behind(suspended)
        job = queue.popleft() if queue else self._next_ready(processor)
        if job is None:
            self._reach_trigger_state(processor)
            return
        processor.reserved_for = None
        processor.running = job
        processor.since_ps = self._kernel.now
        job.context.processor = processor.index
        if not job.has_begun:
            self._begin(job, processor)
        if job.context.level is Level.PROCESS:
            processor.last_process = job.context
        self._arm(processor)

    def _reach_trigger_state(self, processor: _Processor) -> None:
        for states in self._trigger_states:
            states.reached(processor)

    def _begin(self, job: _Job, processor: _Processor) -> None:
        """What depends on where and when a job begins: which kind of switch it pays, and whom its polls disturb."""
        job.has_begun = True
        before, context = processor.last_process, job.context
        if before is not None and before is not context and before.space is context.space:
            self._make_thread_switch(job)
        polls = self._units(job, _POLL)
        if polls:
            self._take_bus(processor, polls)

    def _units(self, job: _Job, item: Item) -> int:
        price = self.prices[item]
        return sum(ps for key, ps in job.parts if key == item) // price if price else 0

    def _make_thread_switch(self, job: _Job) -> None:
        """The switch was from a thread of the same process: the address space stays."""
        switches = self._units(job, _SWITCH)
        if not switches:
            return
        paid_ps, price_ps = switches * self.prices[_SWITCH], switches * self.prices[_THREAD_SWITCH]
        job.parts = deque((_THREAD_SWITCH, price_ps) if item == _SWITCH else (item, ps) for item, ps in job.parts)
        job.remaining_ps += price_ps - paid_ps
        self.booked_ps[_SWITCH] -= paid_ps
        self.booked_ps[_THREAD_SWITCH] += price_ps
        self.counts[_SWITCH] -= switches
        self.counts[_THREAD_SWITCH] += switches

    def _take_bus(self, poller: _Processor, polls: int) -> None:
        """Polls have the bus: processors that use it at this moment wait for so long, and so does the device's DMA."""
        wait_ps = polls * self.prices[_BUS_WAIT]
        if not wait_ps:
            return
        self.bus_taken_ps += wait_ps
        self.on_bus_taken(wait_ps)
        for processor in self._processors:
            if processor is poller or processor.running is None:
                continue
            self._book(processor)
            job = processor.running
            if job.parts and job.parts[0][0] in BUS_USERS:
                self._charge_first(job, _BUS_WAIT, wait_ps, polls)
                self._arm(processor)

    def _arm(self, processor: _Processor) -> None:
        """Set the timer of the running job: its end, or its quantum's when another process waits."""
        job = processor.running
        assert job is not None
        slice_ps = job.remaining_ps
        if job.context.level is Level.PROCESS and self._waits_for(processor):
            slice_ps = min(slice_ps, max(job.context.quantum_left_ps, 0))
            if job.context.must_yield:
                slice_ps = min(slice_ps, job.in_kernel_ps)
        if processor.timer is not None:
            processor.timer.cancel()
        processor.timer = self._kernel.call_at(processor.since_ps + slice_ps, lambda: self._expire(processor))

    def _arm_quanta(self, newcomer: Context) -> None:
        """A process waits: those that run where it may have only their quantum left, if nobody waited before."""
        for processor in self._processors:
            running, index = processor.running, processor.index
            if running is None or running.context.level is not Level.PROCESS or not newcomer.may_run_on(index):
                continue
            if sum(job.context.may_run_on(index) for job in self._ready) == 1:
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
        job.context.had_ps += spent_ps
        while spent_ps:
            item, part_ps = job.parts.popleft()
            ps = min(spent_ps, part_ps)
            processor.busy_ps[item[0]] += ps
            spent_ps -= ps
            if ps < part_ps:
                job.parts.appendleft((item, part_ps - ps))

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
        context = job.context
        if job.remaining_ps:
            if self._waits_for(processor):
                self._charge_switch(job)
            self._put_behind(job)
            self._dispatch(processor)
            self._fill_idle(context, None)
            return
        if context.level is Level.PROCESS and not (context.quantum_left_ps <= 0 and self._waits_for(processor)):
            processor.reserved_for = context
        if job.is_trigger:
            self._reach_trigger_state(processor)
        job.future.set_result(None)
        # The task that waited runs before this: it may charge on without losing the processor.
        self._kernel.call_soon(lambda: self._release(processor))

    def _charge_switch(self, job: _Job) -> None:
        """A process that has used its quantum goes behind those that wait, and pays for the switch back."""
        self._charge_first(job, _SWITCH, self.prices[_SWITCH], 1)

    def _charge_first(self, job: _Job, item: Item, ps: int, count: int) -> None:
        """Book more time to a job, before what is left of it."""
        self.booked_ps[item] += ps
        self.counts[item] += count
        job.parts.appendleft((item, ps))
        job.remaining_ps += ps

    def _release(self, processor: _Processor) -> None:
        if processor.running is None:
            processor.reserved_for = None
            self._dispatch(processor)
