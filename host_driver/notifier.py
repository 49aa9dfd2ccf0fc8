"""What wakes the host, and what it then does: a loop for each way of `host_driver.notification`.

A notifier asks its interface to empty the completion ring (`take_completions`) and to run its softirq (`run_softirq`),
on behalf of an account: the interrupt handler's, the softirq's, or a process's.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from host_driver.account import Account
from host_driver.channel import Channel
from host_driver.dim import RX_PROFILES, TX_PROFILES, Dim, Moderation, PeriodMode, Sample
from host_driver.nic import Nic
from host_driver.notification import Interrupts, Napi, Notification, Polling, SoftTimers
from host_driver.placement import Placement
from host_driver.softirq import Softirq
from nic_model.contract import vector_register

Loop = tuple[Coroutine[Any, None, None], str]
"""A task of a notifier, and its name."""


class Notified(Protocol):
    """A network interface, as a notifier sees it."""

    nic: Nic
    channel: Channel
    interrupts: int
    """Interrupts taken so far."""
    softirqs: list[Softirq]
    """One, or one for each processor that takes interrupts, or has connections of its own."""
    placement: Placement | None
    """None: connections have no processors of their own."""
    interrupt_account: Account
    background_account: Account | None
    """Of a process that goes on for a softirq that took too long; None: the softirq goes on."""

    @property
    def current_softirq(self) -> Softirq:
        """Of the processor that took the last interrupt."""

    def take_completions(self, account: Account, most_received: int | None = None,
                         softirq: Softirq | None = None) -> int:
        """Empty the completion ring, up to so many received frames; how many there were. `softirq`: of the processor
        that does so, if it is not the current one."""

    async def run_softirq(self, softirq: Softirq, account: Account | None = None) -> None:
        """Run timers that are due, carry received frames to the stack, send what may be sent, on behalf of `account`
        (None: the softirq's own)."""


class Notifier:
    """What all have in common. `start` sets the device up, `loops` are to be run as tasks."""

    def __init__(self, interface: Notified) -> None:
        self._interface = interface

    def start(self) -> None:
        """Set the device up."""

    def loops(self) -> list[Loop]:
        """What runs as long as the interface is up."""
        raise NotImplementedError

    async def _serve_softirq(self, softirq: Softirq) -> None:
        """Let a bottom half run whenever it has something to do."""
        while True:
            await softirq.pending.wait()
            softirq.charge_start()
            await self._interface.run_softirq(softirq)

    def count_received(self, length_bytes: int) -> None:
        """A received frame was taken."""

    def count_sent(self, length_bytes: int) -> None:
        """A finished send was taken."""

    @property
    def moderation(self) -> dict[str, Moderation]:
        """What adaptive moderation decided on, by "rx" and "tx"; without those that do not adapt."""
        return {}


def notifier(notification: Notification, interface: Notified) -> Notifier:
    """The one that does it this way."""
    if isinstance(notification, Polling):
        return _Polling(interface, notification)
    if isinstance(notification, SoftTimers):
        return _SoftTimers(interface, notification)
    if isinstance(notification, Napi):
        return _Napi(interface, notification)
    return _Interrupts(interface, notification)


class _Adaptive:
    """One direction's adaptive moderation: what was counted, and how it is set."""

    def __init__(self, profiles: tuple[Moderation, ...], apply: Callable[..., None]) -> None:
        self.dim = Dim(profiles)
        self._packets = 0
        self._bytes = 0
        self._apply = apply

    def count(self, length_bytes: int) -> None:
        """A completion."""
        self._packets += 1
        self._bytes += length_bytes

    def start(self, vector: int) -> None:
        """Set the moderation that it begins with."""
        self._apply(vector, usecs=self.dim.profile.usecs, frames=self.dim.profile.frames)

    def look(self, vector: int, now_ps: int, interrupts: int) -> bool:
        """Behind an interrupt; whether the moderation was changed."""
        profile = self.dim.look(Sample(now_ps, interrupts, self._packets, self._bytes))
        if profile is not None:
            self.start(vector)
        return profile is not None


class _Interrupts(Notifier):
    """The handler takes what is there, arms the ring, and leaves packets to the softirq."""

    def __init__(self, interface: Notified, settings: Interrupts) -> None:
        super().__init__(interface)
        self._settings = settings
        self._vector = interface.channel.vector
        self._adaptive: dict[str, _Adaptive] = {}

    def start(self) -> None:
        """Set the moderation, and let the vector's line show."""
        settings, nic, vector = self._settings, self._interface.nic, self._vector
        nic.set_moderation(vector, rx_usecs=settings.rx_usecs, rx_frames=settings.rx_frames,
                           tx_usecs=settings.tx_usecs, tx_frames=settings.tx_frames)
        # The device's time counts from the first event after arming.
        if settings.adaptive_rx:
            self._adaptive["rx"] = _Adaptive(RX_PROFILES[PeriodMode.EQE], nic.set_rx_moderation)
        if settings.adaptive_tx:
            self._adaptive["tx"] = _Adaptive(TX_PROFILES[PeriodMode.EQE], nic.set_tx_moderation)
        for adaptive in self._adaptive.values():
            adaptive.start(vector)
        nic.mask(vector, False)

    def loops(self) -> list[Loop]:
        """The handler and its softirqs."""
        return [(self._serve_interrupts(), f"interrupt handler of vector {self._vector}"),
                *((self._serve_softirq(softirq), softirq.name) for softirq in self._interface.softirqs)]

    async def _serve_interrupts(self) -> None:
        interface, channel = self._interface, self._interface.channel
        account, port = interface.interrupt_account, interface.nic.port
        channel.arm(account)
        while True:
            await port.interrupt(channel.vector)
            interface.interrupts += 1
            account.charge("interrupt", "entry")
            await account.settle()
            while channel.completed.has_completion:
                interface.take_completions(account)
                await account.settle()
            self._moderate(account)
            channel.arm(account)
            # Arming lowers the line, but it is a posted write.
            await self._flush(account)

    async def _flush(self, account: Account) -> None:
        """A read behind posted writes sees to it that the line has fallen before it is looked at again, or one
        interrupt would be taken twice."""
        account.charge("driver", "mmio_read")
        flushed = self._interface.nic.port.read32(vector_register("VECTOR_MASK", self._vector))
        await account.settle()
        await flushed

    def _moderate(self, account: Account) -> None:
        """Let adaptive moderation look at what came, and change it."""
        now_ps = self._interface.nic.port.now()
        for adaptive in self._adaptive.values():
            if adaptive.look(self._vector, now_ps, self._interface.interrupts):
                account.charge("driver", "mmio_write", 2)

    def count_received(self, length_bytes: int) -> None:
        """For adaptive moderation."""
        if "rx" in self._adaptive:
            self._adaptive["rx"].count(length_bytes)

    def count_sent(self, length_bytes: int) -> None:
        """For adaptive moderation."""
        if "tx" in self._adaptive:
            self._adaptive["tx"].count(length_bytes)

    @property
    def moderation(self) -> dict[str, Moderation]:
        """What it decided on."""
        return {way: adaptive.dim.profile for way, adaptive in self._adaptive.items()}


class _Napi(_Interrupts):
    """The handler masks its vector; the softirq polls until the ring is empty, and lets interrupts in again.

    Ref: Linux, Documentation/networking/napi.rst; net/core/dev.c, net_rx_action(); kernel/softirq.c, ksoftirqd
    """

    def __init__(self, interface: Notified, settings: Napi) -> None:
        super().__init__(interface, settings.interrupts)
        self._napi = settings
        self._scheduled: Softirq | None = None
        """The one that polls."""

    async def _serve_interrupts(self) -> None:
        interface, channel = self._interface, self._interface.channel
        account = interface.interrupt_account
        channel.arm(account)
        while True:
            await interface.nic.port.interrupt(channel.vector)
            interface.interrupts += 1
            account.charge("interrupt", "entry")
            self._mask(account, True)
            await self._flush(account)
            self._scheduled = interface.current_softirq
            self._scheduled.pending.set()

    async def _serve_softirq(self, softirq: Softirq) -> None:
        while True:
            await softirq.pending.wait()
            account = softirq.account
            softirq.charge_start()
            taken = 0
            while self._scheduled is softirq or softirq.pending.is_set():
                if taken >= self._napi.budget and account is not self._interface.background_account:
                    account = self._give_way(account)
                taken += await self._poll(softirq, account)

    async def _poll(self, softirq: Softirq, account: Account) -> int:
        """One poll; how many frames it took."""
        interface, weight = self._interface, self._napi.poll_weight
        if self._scheduled is not softirq:
            await interface.run_softirq(softirq, account)
            return 0
        account.charge("poll", "batch")
        received = interface.take_completions(account, weight, softirq)
        await account.settle()
        await interface.run_softirq(softirq, account)
        if received < weight:
            # "If the NAPI poll processed less than budget it must call napi_complete_done() and ... unmask the IRQ."
            self._scheduled = None
            self._moderate(account)
            interface.channel.arm(account)
            self._mask(account, False)
            await account.settle()
        return received

    def _give_way(self, account: Account) -> Account:
        """The softirq has had its budget: a process goes on, and takes turns with the others."""
        background = self._interface.background_account
        if background is None:
            return account
        account.charge("context_switch", "wake")
        background.charge("context_switch", "switch")
        return background

    def _mask(self, account: Account, masked: bool) -> None:
        account.charge("driver", "mmio_write")
        self._interface.nic.mask(self._vector, masked)


class _Polling(Notifier):
    """Looks at the completion ring now and then, and carries on what it finds; timers wait for the next look."""

    def __init__(self, interface: Notified, settings: Polling) -> None:
        super().__init__(interface)
        self._settings = settings

    def start(self) -> None:
        """Each processor that looks sees its own queues too."""
        for softirq in self._lookers:
            softirq.looks = True

    def loops(self) -> list[Loop]:
        """The looks, and a bottom half where nobody looks."""
        lookers = self._lookers
        others = [softirq for softirq in self._interface.softirqs if softirq not in lookers]
        period_ps = self._settings.period_ps
        # One after the other, so that the ring is looked at in equal times.
        return [*((self._serve(softirq, number * period_ps // len(lookers)), f"polling of {softirq.name}")
                  for number, softirq in enumerate(lookers)),
                *((self._serve_softirq(softirq), softirq.name) for softirq in others)]

    @property
    def _lookers(self) -> list[Softirq]:
        placement, softirqs = self._interface.placement, self._interface.softirqs
        return softirqs[:1] if placement is None else softirqs[: placement.servers]

    async def _serve(self, softirq: Softirq, delay_ps: int) -> None:
        await self._interface.nic.port.sleep(delay_ps)
        while True:
            await self._interface.nic.port.sleep(self._settings.period_ps)
            if self._settings.by_clock:
                await self._take_clock_interrupt()
            await self._look(softirq)

    async def _take_clock_interrupt(self) -> None:
        account = self._interface.interrupt_account
        account.charge("interrupt", "entry")
        await account.settle()

    async def _look(self, softirq: Softirq) -> None:
        interface = self._interface
        softirq.account.charge("poll", "batch")
        interface.take_completions(softirq.account, softirq=softirq)
        await softirq.account.settle()
        if softirq.pending.is_set():
            await interface.run_softirq(softirq)


class _SoftTimers(_Polling):
    """The same when the kernel runs anyway, or when the clock ticks."""

    def __init__(self, interface: Notified, settings: SoftTimers) -> None:
        super().__init__(interface, Polling(period_ps=settings.period_ps))
        self._soft = settings

    async def _serve(self, softirq: Softirq, delay_ps: int) -> None:
        while True:
            await self._interface.nic.port.sleep(self._soft.period_ps)
            if not await self._soft.states.next(self._soft.tick_ps):
                await self._take_clock_interrupt()
            await self._look(softirq)
