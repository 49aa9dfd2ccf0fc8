"""The host's side of TCP on the device: one channel of socket operations, and what tells of their ends.

There is no stack here, no packet and no timer: the device does TCP, ARP and ICMP. What is left is a ring that
operations are put on, and the ways of being told of `host_driver.notifier`.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_interface

from host_driver.account import Account
from host_driver.interface import CurrentAccount
from host_driver.nic import DeviceError, Nic
from host_driver.notification import Interrupts, Notification
from host_driver.notifier import notifier
from host_driver.placement import Placement
from host_driver.runtime import Task
from host_driver.socket_channel import Over, SocketChannel, SocketDescriptor
from host_driver.softirq import Softirq
from nic_model.contract import RAW_CHANNEL, Feature, OperationMask, RxFilter, register
from nic_model.contract.control import ControlEnable

SOCKET_CHANNEL = RAW_CHANNEL
"""All sockets of a host use one channel here."""

TX_LOG2 = 10
RX_LOG2 = 4


class OffloadInterface:
    """Implements `notifier.Notified`. Made by `open`.

    Attributes: `nic`; `sockets`; `account`, of whoever runs at this moment; `interrupts`, taken so far.
    """

    def __init__(self, nic: Nic, sockets: SocketChannel, ip: Sequence[str], *, notification: Notification,
                 interrupt_account: Account, softirq_account: Account, background_account: Account | None) -> None:
        self.nic = nic
        self.sockets = sockets
        self.channel = sockets.channel
        self.ip = [str(ip_interface(address).ip) for address in ip]
        self.interrupts = 0
        self.placement: Placement | None = None
        self.interrupt_account = interrupt_account
        self.background_account = background_account
        self.account = CurrentAccount(softirq_account)
        self.softirqs = [Softirq(softirq_account, "softirq")]
        self._notifier = notifier(notification, self)
        self._tasks: list[Task[None]] = []

    @classmethod
    async def open(cls, nic: Nic, *, mac: bytes, ip: str | Sequence[str], interrupt_account: Account,
                   softirq_account: Account, notification: Notification | None = None,
                   background_account: Account | None = None, vector: int = 0) -> OffloadInterface:
        """Bring the interface up: `mac` and `ip` are the firmware's, too. Raises DeviceError for a device without a
        control port."""
        if Feature.SOCKETS not in nic.capabilities.features:
            raise DeviceError("the device does not have SOCKETS: it has no control port, and nobody does TCP on it")
        channel = await nic.open_channel(SOCKET_CHANNEL, operations=OperationMask.SOCKET, vector=vector,
                                         tx_log2=min(TX_LOG2, nic.capabilities.max_ring_log2), rx_log2=RX_LOG2,
                                         push_bytes=0)
        addresses = [ip] if isinstance(ip, str) else ip
        interface = cls(nic, SocketChannel(channel), addresses, notification=notification or Interrupts(),
                        interrupt_account=interrupt_account, softirq_account=softirq_account,
                        background_account=background_account)
        nic.set_mac_address(mac)
        has_ipv6 = any(ip_address(address).version == 6 for address in interface.ip)
        nic.set_filter(RxFilter.BROADCAST | (RxFilter.MULTICAST if has_ipv6 else RxFilter(0)))
        nic.port.write32(register("CONTROL_ENABLE"), ControlEnable.FLOWS | ControlEnable.REST)
        interface._notifier.start()
        loops = [(interface._watch_errors(), "device errors"), *interface._notifier.loops()]
        interface._tasks = [nic.port.kernel.spawn(loop, name) for loop, name in loops]
        nic.enable_receive(True)
        return interface

    async def close(self) -> None:
        """Take the interface down; no operation may be under way."""
        for task in self._tasks:
            task.cancel()
        self.nic.enable_receive(False)
        self.nic.port.write32(register("CONTROL_ENABLE"), 0)
        self.nic.mask(self.channel.vector, True)
        await self.nic.close_channel(self.channel)

    async def _watch_errors(self) -> None:
        port = self.nic.port
        port.write32(register("ERROR_MASK"), 0)
        await port.interrupt(self.nic.capabilities.vectors)
        stopped = await self.nic.take_channel_errors()
        raise DeviceError("; ".join(f"channel {n} stopped: {error.name}" for n, error in stopped.items()))

    # ------------------------------------------------------------------------------------------ operations

    async def post(self, descriptors: list[SocketDescriptor], over: Over, account: Account) -> None:
        """Post one operation on behalf of `account`: a descriptor and a doorbell. `over` is called at its end."""
        while not self.sockets.has_room(descriptors):
            await self.sockets.make_room(account)
        account.charge("driver", "transmit_frame", len(descriptors))
        self.sockets.post(descriptors, over)
        self.channel.ring_doorbell(account)

    def post_now(self, descriptors: list[SocketDescriptor], over: Over, account: Account) -> None:
        """The same from where nobody can wait; with a task of its own if there is no room."""
        if self.sockets.has_room(descriptors):
            account.charge("driver", "transmit_frame", len(descriptors))
            self.sockets.post(descriptors, over)
            self.channel.ring_doorbell(account)
        else:
            self.nic.port.kernel.spawn(self.post(descriptors, over, account), "a socket operation")

    # ------------------------------------------------------------------------------------------ being told

    @property
    def current_softirq(self) -> Softirq:
        """There is one."""
        return self.softirqs[0]

    def take_completions(self, account: Account, most_received: int | None = None,
                         softirq: Softirq | None = None) -> int:
        """Tell of what is over, on behalf of `account`; how many operations."""
        self.account.target = account
        taken = self.sockets.take_completions(account)
        self._notifier.count_received(taken)
        return taken

    async def run_softirq(self, softirq: Softirq, account: Account | None = None) -> None:
        """There is nothing to do behind completions."""
        softirq.pending.clear()
