"""Processes that sleep until something holds: who is woken, and what that costs.

Whoever changes what a process waits for (mostly the softirq) is charged the waking, the process the switch back to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from host_driver.account import Account
from host_driver.runtime import Cancelled, Future


class WaitQueue:
    """Processes that sleep until something holds, the longest sleeper first.

    `charge_waking` is called for each that is woken, and charges whoever runs then.
    """

    def __init__(self, charge_waking: Callable[[], None], name: str) -> None:
        self._charge_waking = charge_waking
        self._name = name
        self._sleepers: deque[tuple[Callable[[], bool], Future[None]]] = deque()

    def __len__(self) -> int:
        """How many sleep."""
        return len(self._sleepers)

    async def sleep(self, until: Callable[[], bool], account: Account) -> None:
        """Return when `until` holds; a process that slept pays the switch back to it."""
        while not until():
            future: Future[None] = Future(self._name)
            sleeper = (until, future)
            self._sleepers.append(sleeper)
            try:
                await future
                account.charge("context_switch", "switch")
                await account.settle()
            except (Exception, Cancelled):
                # It was killed. Nobody must be woken for it, and if it was woken already, the next one is due.
                if future.done:
                    self.wake(only_one=True)
                else:
                    self._sleepers.remove(sleeper)
                raise

    def wake(self, *, only_one: bool = False) -> None:
        """Wake those whose condition holds now, on behalf of whoever runs."""
        still_asleep: deque[tuple[Callable[[], bool], Future[None]]] = deque()
        woken = 0
        for until, future in self._sleepers:
            if (only_one and woken) or not until():
                still_asleep.append((until, future))
                continue
            woken += 1
            self._charge_waking()
            future.set_result(None)
        self._sleepers = still_asleep
