"""How far a run is: a bar where somebody looks, a plain line now and then where nobody does."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 10.0
"""Real time between two plain lines."""

_PS_PER_MS = 10**9


class RunProgress:
    """Shows the requests of each system in turn, on `console`. A context manager: the bar goes at its end."""

    def __init__(self, console: Console, requests: int) -> None:
        self._console = console
        self._requests = requests
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._system = ""
        self._last_s = 0.0
        if console.is_terminal:
            self._bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                                 TextColumn("simulated {task.fields[simulated]}"), TimeRemainingColumn(),
                                 console=console)

    def __enter__(self) -> RunProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, system: str) -> None:
        """A system's run begins."""
        self._system = system
        self._last_s = time.monotonic()
        if self._bar is not None:
            self._task = self._bar.add_task(system, total=self._requests, simulated="0 ms")

    def update(self, requests_done: int, simulated_ps: int) -> None:
        """So many requests are done, and so much time is simulated."""
        simulated = f"{simulated_ps / _PS_PER_MS:.1f} ms"
        if self._bar is not None:
            self._bar.update(self._task, completed=requests_done, simulated=simulated)
            return
        now_s = time.monotonic()
        if now_s - self._last_s >= PLAIN_INTERVAL_S:
            self._last_s = now_s
            self._console.print(f"{self._system}: {requests_done} of {self._requests} requests, simulated {simulated}",
                                highlight=False)
