"""Bottom halves: what an interrupt handler leaves for later, on the processor that took the interrupt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from host_driver.account import Account
from host_driver.runtime import Event

MAX_BACKLOG_FRAMES = 300
"""Frames between interrupt and softirq, of each processor: Linux 2.4's netdev_max_backlog."""


class WaitingFrame(NamedTuple):
    """A received frame."""

    data: bytes
    checksum_ok: bool | None
    """What the device says of its checksums; None: the software must see for itself."""
    merged_bytes: int
    """MSS of the segments that it was made of; 0: it came as it is."""


class Softirq:
    """One bottom half. Attributes: `account`, `name`, `pending` (set while there is something to do), `backlog`."""

    def __init__(self, account: Account, name: str) -> None:
        self.account = account
        self.name = name
        self.pending = Event(name)
        self.backlog: deque[WaitingFrame] = deque()

    @property
    def is_full(self) -> bool:
        """Whether a further frame must be dropped."""
        return len(self.backlog) >= MAX_BACKLOG_FRAMES


class PerProcessor(NamedTuple):
    """Accounts of bottom halves, one for each processor that takes interrupts, and which of them took the last."""

    accounts: Sequence[Account]
    current: Callable[[], int]
    """Its index in `accounts`."""

    def softirqs(self) -> list[Softirq]:
        """The bottom halves that they are for."""
        if len(self.accounts) == 1:
            return [Softirq(self.accounts[0], "softirq")]
        return [Softirq(account, f"softirq {number}") for number, account in enumerate(self.accounts)]

    @classmethod
    def one(cls, account: Account) -> PerProcessor:
        """A single bottom half, which runs wherever the account does."""
        return cls((account,), lambda: 0)
