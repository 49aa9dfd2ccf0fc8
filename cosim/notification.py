"""How the host of a system is told: what a user may ask for, and the driver's setting that it becomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from cosim.errors import InputError
from cosim.machine import Machine, Moderation
from cosim.options import TIMES, parse_quantity
from cosim.systems import Placed, System, Told
from host_driver.notification import (
    NAPI_POLL_WEIGHT,
    Interrupts,
    Napi,
    Notification,
    Polling,
    SoftTimers,
    TriggerStates,
)

NS = 1000
US = 1_000_000

EACH = Moderation(rx_usecs=0, rx_frames=1, tx_usecs=0, tx_frames=1, source="an interrupt for each packet")

CHOICES = "each, moderated, poll:PERIOD, soft:PERIOD, napi or napi:WEIGHT"

_PERIODIC: dict[str, Literal["polling", "soft_timers"]] = {"poll": "polling", "soft": "soft_timers"}


def with_notification(system: System, text: str) -> System:
    """A system whose host is told as `text`, one of `CHOICES`, says. Raises InputError for anything else."""
    return msgspec.structs.replace(system, notification=_told(text))


def _told(text: str) -> Told:
    option = "--notification"
    kind, colon, argument = text.strip().partition(":")
    if kind in _PERIODIC:
        if not colon:
            raise InputError(f"{option} {kind} needs a period, such as {kind}:50us")
        period_ns = parse_quantity(f"{option} {kind}", argument, TIMES) // NS
        if not period_ns:
            raise InputError(f"{option} {kind} must be at least 1ns, not {argument!r}")
        return Told(by=_PERIODIC[kind], period_us=period_ns / 1000)
    if kind == "napi":
        if colon and (not argument.isdecimal() or int(argument) < 1):
            raise InputError(f"{option} napi must have a weight of at least 1 packet, not {argument!r}")
        return Told(by="napi", weight=int(argument) if colon else NAPI_POLL_WEIGHT)
    if text.strip() not in ("each", "moderated"):
        raise InputError(f"{option} must be {CHOICES}, not {text!r}")
    return Told(by="interrupt", moderation=EACH if kind == "each" else None)


def driver_notification(system: System, machine: Machine, placed: Placed,
                        states: Callable[[], TriggerStates]) -> Notification:
    """The driver's setting for a system on a machine; `states` gives trigger states where it has soft timers."""
    told = system.notification
    period_ps = round(told.period_us * US)
    if told.by == "polling":
        return Polling(period_ps=period_ps, by_clock=not placed.has_dedicated)
    if told.by == "soft_timers":
        return SoftTimers(states=states(), period_ps=period_ps)
    moderation = told.moderation or machine.moderation
    interrupts = Interrupts(
        rx_usecs=moderation.rx_usecs, rx_frames=moderation.rx_frames, tx_usecs=moderation.tx_usecs,
        tx_frames=moderation.tx_frames, adaptive_rx=moderation.adaptive_rx, adaptive_tx=moderation.adaptive_tx)
    if system.told_by(machine) == "napi":
        return Napi(interrupts=interrupts, poll_weight=told.weight)
    return interrupts
