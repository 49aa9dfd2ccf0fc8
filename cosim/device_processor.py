"""Processors of the network adapter that run the firmware: messages of the control port in, orders out, in their time.

Each has a queue of messages in its own memory. The head of the port's up stream goes to the processor that its
connection belongs to (`host_driver.firmware.shards`), or waits there for a place; so one connection's messages are
worked on in order. A message's orders leave when the processor had the time for all that it charged.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from cosim.machine import DeviceProcessor, firmware_prices_ps
from host_driver.firmware.shards import shard_of_message
from host_driver.runtime import Kernel
from nic_model.contract.control import EMIT_TYPES, ControlType
from nic_model.control_log import Decider, PortLog

QUEUE_MESSAGES = 256
"""Messages that wait in a processor's own memory, at most 64 KB. What does not find a place there waits in the port,
whose slots are few: a burst of SYNs takes four of them each."""


class ControlStreams(Protocol):
    """The three streams of a device's control port: `nic_model.control_port.ControlPort`."""

    on_up: Callable[[], None]

    def take(self) -> bytes | None:
        """The next message up, or None."""

    def release(self, message: bytes) -> None:
        """An order of the release stream."""

    def emit(self, message: bytes) -> None:
        """An order of the emit stream."""


class FirmwareAccount:
    """What a firmware charges while it works on one message. Implements `host_driver.account.Account`.

    Attributes: `debt_ps`, since it was last taken; `booked_ps` and `counts` by (category, item), of all.
    """

    def __init__(self, device: DeviceProcessor) -> None:
        self.prices = firmware_prices_ps(device)
        self.debt_ps = 0
        self.booked_ps: Counter[tuple[str, str]] = Counter()
        self.counts: Counter[tuple[str, str]] = Counter()

    def charge(self, category: str, item: str, count: int = 1) -> None:
        """Book `count` units. Raises KeyError for an item that the table has no price for."""
        key = category, item
        ps = self.prices[key] * count
        self.debt_ps += ps
        self.booked_ps[key] += ps
        self.counts[key] += count

    async def settle(self) -> None:
        """Nobody waits in the firmware."""

    def take(self) -> int:
        """The time that was charged since the last call."""
        debt, self.debt_ps = self.debt_ps, 0
        return debt


@dataclass(slots=True)
class ProcessorCounts:
    """What one device processor did."""

    messages: int = 0
    orders: int = 0
    busy_ps: int = 0
    longest_queue: int = 0


@dataclass(slots=True)
class _Processor:
    index: int
    waiting: deque[bytes] = field(default_factory=deque)
    is_busy: bool = False
    counts: ProcessorCounts = field(default_factory=ProcessorCounts)


class DeviceProcessors:
    """Parameters: `kernel`, the clock; `streams` of the device; `firmware`, and the `account` that it charges; how many
    processors there are. `log`: where all messages are kept; None: nowhere."""

    def __init__(self, kernel: Kernel, streams: ControlStreams, firmware: Decider, account: FirmwareAccount,
                 processors: int, log: PortLog | None = None) -> None:
        self.account = account
        self._kernel = kernel
        self._streams = streams
        self._firmware = firmware
        self._log = log
        self._processors = [_Processor(index) for index in range(processors)]
        self._head: bytes | None = None
        self._activity = 0
        self._is_distributing = False
        streams.on_up = self._distribute

    @property
    def counts(self) -> list[ProcessorCounts]:
        """What each did so far."""
        return [processor.counts for processor in self._processors]

    @property
    def waiting(self) -> int:
        """Messages that no processor has begun with."""
        return sum(len(processor.waiting) for processor in self._processors) + (self._head is not None)

    def activity(self) -> int:
        """A number that changes when more goes on than the ticking of the device's clock."""
        return self._activity

    def _distribute(self) -> None:
        """Give messages to their processors, as long as the first of them finds a place."""
        if self._is_distributing:
            return
        self._is_distributing = True
        try:
            while True:
                message = self._head or self._streams.take()
                self._head = message
                if message is None:
                    return
                processor = self._processors[shard_of_message(message, len(self._processors))]
                if len(processor.waiting) >= QUEUE_MESSAGES:
                    return
                self._head = None
                processor.waiting.append(message)
                processor.counts.longest_queue = max(processor.counts.longest_queue, len(processor.waiting))
                if not processor.is_busy:
                    processor.is_busy = True
                    self._kernel.call_soon(lambda processor=processor: self._work(processor))  # type: ignore[misc]
        finally:
            self._is_distributing = False

    def _work(self, processor: _Processor) -> None:
        """Begin with the next message of a processor."""
        message = processor.waiting.popleft()
        orders = self._firmware.on_message(message)
        if self._log is not None:
            self._log.add(True, message)
            for order in orders:
                self._log.add(False, order)
        self._activity += bool(orders) or message[0] != ControlType.TICK
        busy_ps = self.account.take()
        counts = processor.counts
        counts.messages += 1
        counts.orders += len(orders)
        counts.busy_ps += busy_ps
        self._kernel.call_at(self._kernel.now + busy_ps, lambda: self._finish(processor, orders))
        self._distribute()

    def _finish(self, processor: _Processor, orders: list[bytes]) -> None:
        for order in orders:
            (self._streams.emit if order[0] in _EMITS else self._streams.release)(order)
        if processor.waiting:
            self._work(processor)
        else:
            processor.is_busy = False


_EMITS = frozenset(int(kind) for kind in EMIT_TYPES)
