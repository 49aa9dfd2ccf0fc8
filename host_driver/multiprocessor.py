"""What TCP/IP costs more in a kernel for several processors, and how much of that is left when the work is partitioned.

Locks are taken for each packet, whoever runs. The rest, cache lines that bounce, locks that are waited for, work that
migrates, comes from sharing, and each processor more that does the same work in turn adds its part. A machine prices
this for all of its N processors sharing; so if n do, it is (n - 1) / (N - 1) of that: nothing when a connection's
packets are always carried by the same processor, and processes have one of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from host_driver.account import Account


class SharedWork:
    """Work that `sharers` of a machine's `processors` do in turn. Counts in whole units: with two of four, every third
    pays. Raises ValueError for less than one sharer, or more than there are processors."""

    def __init__(self, sharers: int, processors: int) -> None:
        if not 1 <= sharers <= processors:
            raise ValueError(f"sharers must be 1 to {processors}, not {sharers}")
        self._numerator = sharers - 1
        self._denominator = max(processors - 1, 1)
        self._owed = 0

    def taxed(self, units: int) -> int:
        """How many of the next `units` pay the price of sharing."""
        taxed, self._owed = divmod(self._owed + units * self._numerator, self._denominator)
        return taxed


class Multiprocessor:
    """A kernel for several processors. Parameters: `bottom_halves`, the work of each of the interface's bottom halves;
    `processes`, what processes do in the kernel."""

    def __init__(self, *, bottom_halves: Sequence[SharedWork], processes: SharedWork) -> None:
        self.bottom_halves = list(bottom_halves)
        self.processes = processes

    @classmethod
    def of(cls, processors: int, bottom_halves: int = 1) -> Multiprocessor | None:
        """Where all processors do everything; None for one processor."""
        if processors == 1:
            return None
        everywhere = SharedWork(processors, processors)
        return cls(bottom_halves=[everywhere] * bottom_halves, processes=everywhere)

    def receive(self, account: Account, work: SharedWork) -> None:
        """A packet came up."""
        account.charge("softirq", "smp_lock")
        _charge(account, "softirq", "smp_packet", work.taxed(1))

    def send(self, account: Account, work: SharedWork, segments: int) -> None:
        """Segments went down."""
        account.charge("tcp_send", "smp_lock", segments)
        _charge(account, "tcp_send", "smp_packet", work.taxed(segments))

    def connect(self, account: Account) -> None:
        """A process got a connection."""
        _charge(account, "syscall", "smp_connection", self.processes.taxed(1))


def _charge(account: Account, category: str, item: str, count: int) -> None:
    if count:
        account.charge(category, item, count)
