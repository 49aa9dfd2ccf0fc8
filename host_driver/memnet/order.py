"""Who may send next on a socket: the application's sends in their order, and in between whoever holds a capability."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from host_driver.account import Account
from host_driver.errors import NetworkError

Turn = Callable[[Account], Awaitable[None]]
"""Hands one send (or the end of sending) to the provider; the account is that of whoever runs it."""


class Barrier:
    """A place in the line that only `SendLine.lift` ends. `on_turn` is called when all before it have gone."""

    def __init__(self, on_turn: Callable[[], None]) -> None:
        self.on_turn = on_turn


class SendLine:
    """Turns, one behind the other. A closed line (`is_open` False) keeps them until `open`."""

    def __init__(self, *, is_open: bool = True) -> None:
        self._entries: deque[Turn | Barrier] = deque()
        self._is_open = is_open
        self._is_running = False

    @property
    def is_free(self) -> bool:
        """Whether a turn that is taken now runs at once."""
        return self._is_open and not self._entries and not self._is_running

    async def take(self, turn: Turn, account: Account) -> None:
        """Run a turn, and those that came meanwhile; or leave it in the line if others, or a barrier, are before it."""
        self._entries.append(turn)
        if self._is_open and not self._is_running and len(self._entries) == 1:
            await self.run(account)

    def put(self, barrier: Barrier) -> None:
        """Let nothing pass that comes from now on."""
        self._entries.append(barrier)
        if self._is_open and not self._is_running and len(self._entries) == 1:
            barrier.on_turn()

    def lift(self, barrier: Barrier) -> bool:
        """Take a barrier away; whether turns wait behind it that `run` should run now."""
        was_first = bool(self._entries) and self._entries[0] is barrier
        if barrier in self._entries:
            self._entries.remove(barrier)
        return was_first and bool(self._entries) and not self._is_running

    def open(self) -> bool:
        """Let turns go; whether any wait."""
        self._is_open = True
        return bool(self._entries)

    async def run(self, account: Account) -> None:
        """Run the turns up to the next barrier. Raises the first NetworkError of one, behind the others."""
        if self._is_running:
            return
        failed: NetworkError | None = None
        self._is_running = True
        try:
            while self._entries:
                first = self._entries[0]
                if isinstance(first, Barrier):
                    first.on_turn()
                    break
                try:
                    await first(account)
                except NetworkError as error:
                    failed = failed or error
                finally:
                    # Whoever cleared the line meanwhile has taken it out himself.
                    if self._entries and self._entries[0] is first:
                        self._entries.popleft()
        finally:
            self._is_running = False
        if failed is not None:
            raise failed

    def clear(self) -> list[Turn | Barrier]:
        """Forget all; what had not run."""
        entries = list(self._entries)
        self._entries.clear()
        return entries
