"""Memory for applications, in the device's table of keys: what providers of MemNet over the device have in common."""

from __future__ import annotations

from host_driver.account import Account
from host_driver.nic import MemoryKey, Nic
from host_driver.port import HostMemory
from host_driver.runtime import Cancelled, Kernel
from nic_model.contract import KeyRight


class DeviceMemory:
    """Part of a `memnet.Provider` whose regions the device reads and writes.

    Parameters: `nic`; `channel`, the owner of all keys. Attributes: `memory`, where regions are allocated; `kernel`,
    the clock.
    """

    def __init__(self, nic: Nic, channel: int) -> None:
        self.memory: HostMemory = nic.port.memory
        self.kernel: Kernel = nic.port.kernel
        self._nic = nic
        self._channel = channel

    def make_key(self, address: int, length_bytes: int, account: Account) -> MemoryKey:
        """A key with both rights, at once. Raises MemoryError when the device has none left."""
        return self._nic.register_memory(address, length_bytes, KeyRight.READ | KeyRight.WRITE, self._channel, account)

    async def register(self, address: int, length_bytes: int, account: Account) -> MemoryKey:
        """The same, when the account has had the time for it."""
        key = self.make_key(address, length_bytes, account)
        try:
            await account.settle()
        except Cancelled:
            # Whoever asked for it was killed, and nobody knows the key.
            self.kernel.spawn(self._nic.deregister_memory(key), f"the end of key {key.index}")
            raise
        return key

    async def deregister(self, key: MemoryKey, account: Account) -> None:
        """Take a key back; on return the device neither reads nor writes its memory."""
        await self._nic.deregister_memory(key)
        await account.settle()

    async def open_channels(self, wanted: int, account: Account) -> int:
        """Channels are memory alone: all."""
        return wanted

    async def close_channels(self, count: int, account: Account) -> None:
        """Nothing to give back."""

    def charge_sleep(self, account: Account) -> None:
        """The switch back to it."""
        account.charge("context_switch", "switch")
