"""Bottom halves: what an interrupt handler leaves for later, on the processor that took the interrupt; and what other
processors leave to one that is dedicated to TCP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from host_driver.account import Account
from host_driver.placement import Policy
from host_driver.runtime import Event

MAX_BACKLOG_FRAMES = 300
"""Frames between interrupt and softirq, of each processor: Linux 2.4's netdev_max_backlog."""

Job = Callable[[Account], Awaitable[None]]
"""Work that a process left to a bottom half, which does it on behalf of its own account."""


class WaitingFrame(NamedTuple):
    """A received frame."""

    data: bytes
    checksum_ok: bool | None
    """What the device says of its checksums; None: the software must see for itself."""
    merged_bytes: int
    """MSS of the segments that it was made of; 0: it came as it is."""


class Softirq:
    """One bottom half. Attributes: `account`, `name`, `pending` (set while there is something to do), `backlog`,
    `jobs` (of processes), `looks` (its processor looks at its queues by itself), `is_running`."""

    def __init__(self, account: Account, name: str) -> None:
        self.account = account
        self.name = name
        self.pending = Event(name)
        self.backlog: deque[WaitingFrame] = deque()
        self.jobs: deque[Job] = deque()
        self.looks = False
        self.is_running = False
        self._is_signalled = False

    @property
    def is_full(self) -> bool:
        """Whether a further frame must be dropped."""
        return len(self.backlog) >= MAX_BACKLOG_FRAMES

    @property
    def waiting(self) -> int:
        """Frames and jobs in its queues."""
        return len(self.backlog) + len(self.jobs)

    def tell(self, account: Account) -> None:
        """Another processor, which `account` pays for, has put something into a queue: it is woken if it must be."""
        if not (self.looks or self.is_running or self.pending.is_set()):
            account.charge("interrupt", "signal")
            self._is_signalled = True
        self.pending.set()

    def charge_start(self) -> None:
        """It starts, maybe because of another processor's signal."""
        if self._is_signalled:
            self._is_signalled = False
            self.account.charge("interrupt", "entry")
        self.account.charge("softirq", "run")


async def leave_job(softirq: Softirq, job: Job, account: Account, taken: Callable[[], None] = lambda: None) -> None:
    """Let a bottom half do work of the process that pays as `account`, which goes on at once. `taken` is called when
    the bottom half will do it, whatever becomes of the process."""
    account.charge("tcp_send", "queue_put")
    await account.settle()
    taken()
    softirq.jobs.append(job)
    softirq.tell(account)
    await account.settle()


class PerProcessor(NamedTuple):
    """Accounts of bottom halves, one for each processor that takes interrupts, and which of them took the last."""

    accounts: Sequence[Account]
    current: Callable[[], int]
    """Its index in `accounts`."""
    by_connection: bool = False
    """Each of them carries connections of its own, whoever took the interrupt: see `host_driver.placement`."""
    policy: Policy | None = None
    """Then the last of `accounts` is of the processors that run processes, and carries what they keep."""

    def softirqs(self) -> list[Softirq]:
        """The bottom halves that they are for."""
        if len(self.accounts) == 1:
            return [Softirq(self.accounts[0], "softirq")]
        return [Softirq(account, f"softirq {number}") for number, account in enumerate(self.accounts)]

    @classmethod
    def one(cls, account: Account) -> PerProcessor:
        """A single bottom half, which runs wherever the account does."""
        return cls((account,), lambda: 0)
