"""The TCP server as MemNet's applications see it: who grants channels and capabilities, and has the provider below.

One for each provider, however many applications have their MemNet on it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from host_driver.account import Account
from host_driver.memnet.channels import AdmissionPolicy, AdmitByLoad, Load
from host_driver.memnet.counters import MemNetCounters
from host_driver.memnet.grants import GrantTable
from host_driver.memnet.provider import Provider
from host_driver.runtime import Cancelled


class TcpServer:
    """Parameters: `provider`; `admission`, which decides on channels; `account`, which the TCP server's own work for an
    application is charged to (receiving and accepting ahead, sending from rings), None: the application's; `busy`, the
    share of its processor that is in use; `rng`, for the secret behind capabilities.

    Attributes: `provider`, `counters`, `channels` (granted so far), `grants`.
    """

    def __init__(self, provider: Provider, *, admission: AdmissionPolicy | None = None,
                 account: Account | None = None, busy: Callable[[], float] | None = None,
                 rng: random.Random | None = None) -> None:
        self.provider = provider
        self.account = account
        self.counters = MemNetCounters()
        self.channels = 0
        self.grants = GrantTable((rng or random.Random(0)).randbytes(32), self.counters)
        self._admission = admission or AdmitByLoad()
        self._busy = busy

    @property
    def load(self) -> Load:
        """What it has to do now."""
        return Load(self.channels, self._busy() if self._busy is not None else 0.0)

    async def grant(self, wanted: int, account: Account) -> int:
        """Decide on requests for so many channels; how many are granted, by the policy here and by the provider."""
        admitted = 0
        for _ in range(wanted):
            if self._admission.admits(self.load):
                admitted += 1
                self.channels += 1
        try:
            granted = await self.provider.open_channels(admitted, account) if admitted else 0
        except (Exception, Cancelled):
            self.channels -= admitted
            raise
        self.channels -= admitted - granted
        self.counters.channels_granted += granted
        self.counters.channels_rejected += wanted - granted
        return granted

    async def take_back(self, channels: int, account: Account) -> None:
        """Channels that no socket has go back."""
        self.channels -= channels
        await self.provider.close_channels(channels, account)
