"""How a network interface learns that the device has finished something: the choices, a setting of their own."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Protocol

DEFAULT_TICK_PS = 10**9
"""1 ms: the clock that helps soft timers where no trigger state comes (Aron and Druschel 2000, section 3)."""

NAPI_POLL_WEIGHT = 64
"""Linux's weight of a device: packets that one poll may take."""

NETDEV_BUDGET = 300
"""Linux's net.core.netdev_budget: packets that a softirq may take before it gives way."""


@dataclass(frozen=True, kw_only=True)
class Interrupts:
    """Told by interrupts, moderated as ethtool names it."""

    rx_usecs: float = 0
    rx_frames: int = 1
    tx_usecs: float = 0
    tx_frames: int = 1
    adaptive_rx: bool = False
    """ethtool's adaptive-rx: `host_driver.dim` decides on rx_usecs and rx_frames; those above do not count."""
    adaptive_tx: bool = False
    """adaptive-tx, likewise."""


@dataclass(frozen=True, kw_only=True)
class Polling:
    """Told by looking at the completion ring every `period_ps`."""

    period_ps: int
    by_clock: bool = False
    """Each look takes an interrupt of the clock, since the processors have other work; else one does nothing else."""


@dataclass(frozen=True, kw_only=True)
class Napi:
    """Told by an interrupt, which then stays off while a softirq polls, as Linux's NAPI does.

    Raises ValueError for a budget that takes no packet.
    """

    interrupts: Interrupts = field(default_factory=Interrupts)
    poll_weight: int = NAPI_POLL_WEIGHT
    """Received packets that one poll takes; fewer were there: the interrupt is let in again."""
    budget: int = NETDEV_BUDGET
    """Packets after which the rest is left to a process (ksoftirqd), which takes turns with the others."""

    def __post_init__(self) -> None:
        if self.poll_weight < 1 or self.budget < 1:
            raise ValueError(f"NAPI's weight and budget must be at least 1, not {self.poll_weight} and {self.budget}")


class TriggerStates(Protocol):
    """Points at which the kernel runs anyway, and may look for something else to do without an interrupt."""

    def next(self, tick_ps: int) -> Awaitable[bool]:
        """The next of them; False: none came before the clock's next tick, a multiple of `tick_ps`."""


@dataclass(frozen=True, kw_only=True)
class SoftTimers:
    """Told by looking at the completion ring when `period_ps` have passed since the last look and the kernel runs
    anyway: at the end of a system call, when a processor idles, at last by the clock's tick (Aron and Druschel 2000).
    """

    states: TriggerStates
    period_ps: int
    tick_ps: int = DEFAULT_TICK_PS


Notification = Interrupts | Polling | Napi | SoftTimers
