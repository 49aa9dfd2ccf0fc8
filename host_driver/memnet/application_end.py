"""The application's end of a channel's rings: bytes copied in and out, and the process that waits for them."""

from __future__ import annotations

from collections.abc import Callable

from host_driver.account import Account
from host_driver.memnet.channels import Channel
from host_driver.memnet.counters import MemNetCounters
from host_driver.memnet.credits import Word
from host_driver.memnet.worker import Ended
from host_driver.waiting import WaitQueue


class ApplicationEnd:
    """`on_news`, if set, is called before sleepers are woken when the TCP server's end wrote something."""

    def __init__(self, channel: Channel, receive_limit_bytes: int, counters: MemNetCounters, account: Account,
                 charge_waking: Callable[[], None]) -> None:
        self.on_news: Callable[[], None] | None = None
        self._channel = channel
        self._counters = counters
        self._account = account
        self._sends, self._receives = channel.application_rings(receive_limit_bytes)
        self._waiting = WaitQueue(charge_waking, f"bytes or credit of {channel!r}")
        channel.on_application_news = self._tell

    @property
    def available_bytes(self) -> int:
        """Bytes that may be taken now."""
        return self._receives.available_bytes

    @property
    def ended(self) -> Ended:
        """Whether more bytes will come."""
        return Ended(self._channel.control.read(Word.ENDED))

    def put(self, data: memoryview) -> int:
        """Copy as much into the send ring as there is credit; how much that was."""
        done = 0
        while done < len(data):
            offset, length = self._sends.room(len(data) - done)
            if not length:
                self._counters.credit_stalls += 1
                break
            self._channel.send[offset : offset + length] = data[done : done + length]
            self._account.charge("copy", "user_to_kernel_byte", length)
            self._sends.fill(length)
            done += length
        return done

    def take(self, target: memoryview) -> int:
        """Copy bytes out of the receive ring; how many that were."""
        done = 0
        while done < len(target):
            offset, length = self._receives.next(len(target) - done)
            if not length:
                break
            target[done : done + length] = self._channel.receive[offset : offset + length]
            self._account.charge("copy", "kernel_to_user_byte", length)
            self._receives.take(length)
            self._receives.give_back(length)
            done += length
        return done

    async def sleep(self, until: Callable[[], bool]) -> None:
        """Return when `until` holds."""
        await self._account.settle()
        await self._waiting.sleep(until, self._account)

    def wake(self) -> None:
        """Look again who may go on."""
        self._waiting.wake()

    def _tell(self) -> None:
        if self.on_news is not None:
            self.on_news()
        self._waiting.wake()
