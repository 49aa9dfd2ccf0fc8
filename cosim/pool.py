"""A pool of server processes that grows and shrinks with the load, as Apache's pre-forking server keeps it.

Ref: Apache 1.3, src/main/http_main.c: perform_idle_server_maintenance()
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from cosim.machine import PS_PER_SECOND, Application
from host_driver.account import Account
from host_driver.runtime import Kernel, Task

MAINTENANCE_PS = PS_PER_SECOND
"""SCOREBOARD_MAINTENANCE_INTERVAL."""

MAX_SPAWN_RATE = 32


class PooledProcess(Protocol):
    """A server process, as the pool sees it."""

    is_idle: bool
    """It waits for a client."""

    async def run(self) -> None:
        """Serve for ever."""

    async def exit(self) -> None:
        """Give everything back, after its task was cancelled."""


class _Child(NamedTuple):
    process: PooledProcess
    task: Task[None]


class ProcessPool:
    """The parent process with its children.

    Parameters: `account`, the parent's, which pays for forks; `most`, more than which are never there; `make(number)`,
    which makes a process ready to run and may raise MemoryError. Attributes: `most`; `forked` and `killed`,
    beside those of the start.
    """

    def __init__(self, kernel: Kernel, application: Application, account: Account, *, most: int,
                 make: Callable[[int], Awaitable[PooledProcess]]) -> None:
        self.forked = 0
        self.killed = 0
        self._kernel = kernel
        self._application = application
        self._account = account
        self.most = most
        self._make = make
        self._children: list[_Child] = []
        self._made = 0
        self._spawn_rate = 1

    def __len__(self) -> int:
        """Processes that are there."""
        return len(self._children)

    async def start(self) -> None:
        """Make the first processes, and keep the pool from then on if it may grow."""
        first = [await self._make(number) for number in range(self._application.processes)]
        self._made = len(first)
        for number, process in enumerate(first):
            self._run(number, process)
        if self.most > len(first):
            self._kernel.spawn(self._maintain(), f"{self._application.name}'s parent")

    async def _maintain(self) -> None:
        application = self._application
        while True:
            await self._kernel.sleep(MAINTENANCE_PS)
            idle = [child for child in self._children if child.process.is_idle]
            if len(idle) > application.most_spare:
                # "kill off one child ... we use the last slot"
                self._kill(idle[-1])
                self._spawn_rate = 1
            elif len(idle) < application.least_spare:
                await self._grow(min(self._spawn_rate, self.most - len(self)))
                # "the next time around we will spawn twice as many if necessary, but not if we've hit the maximum"
                self._spawn_rate = min(2 * self._spawn_rate, MAX_SPAWN_RATE)
            else:
                self._spawn_rate = 1

    async def _grow(self, wanted: int) -> None:
        for _ in range(wanted):
            self._account.charge("syscall", "fork")
            await self._account.settle()
            number = self._made
            try:
                process = await self._make(number)
            except MemoryError:
                # "unable to fork new process": it stays as large as it is.
                self.most = len(self)
                return
            self._made += 1
            self.forked += 1
            self._run(number, process)

    def _run(self, number: int, process: PooledProcess) -> None:
        task = self._kernel.spawn(process.run(), f"{self._application.name} {number}")
        self._children.append(_Child(process, task))

    def _kill(self, child: _Child) -> None:
        self._children.remove(child)
        self.killed += 1
        child.task.cancel()
        self._kernel.spawn(child.process.exit(), f"the end of {child.task.name}")
