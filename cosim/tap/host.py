"""The simulated host of a run with the kernel: with TCP on its own processors, or on its device."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import msgspec

from cosim.device_processor import DeviceProcessors, FirmwareAccount
from cosim.engines.bench import CountingPort, control_streams
from cosim.engines.model import ModelPort
from cosim.errors import InputError
from cosim.host import offloads
from cosim.machine import Machine
from cosim.notification import driver_notification
from cosim.processor import Processors
from cosim.systems import System
from host_driver.firmware import Firmware
from host_driver.host_tcp import HostTcp
from host_driver.interface import NetworkInterface
from host_driver.memnet.provider import Provider
from host_driver.multiprocessor import Multiprocessor
from host_driver.nic import Nic
from host_driver.offload_interface import OffloadInterface
from host_driver.offload_tcp import OffloadTcp, ring_pool_bytes
from host_driver.tcp import Profile, Stack
from host_driver.tcp.links import OwnAddress
from nic_model.contract.config import PortFacts
from nic_model.control_port import ControlPort

RINGS = 1024
"""Eager rings of the port that the device listens on: one for each connection that its flow table can have."""
RING_BYTES = 1 << 17

RINGS_BYTES = ring_pool_bytes(RINGS, RING_BYTES, RINGS)
"""Host memory that these take."""


class HostSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What both kinds of host are brought up with."""

    system: System
    machine: Machine
    profile: Profile
    mac: bytes
    addresses: Sequence[OwnAddress]
    seed: int


class TapHost(Protocol):
    """A host that is up.

    Attributes: `stack`, wherever it runs; `provider`, for MemNet.
    """

    stack: Stack
    provider: Provider

    @property
    def keys_in_use(self) -> int:
        """Of the device's memory keys."""

    def left_over(self) -> dict[str, int]:
        """What a host at rest has none of: things that somebody still holds."""

    def dropped(self) -> dict[str, int]:
        """What the driver, or the firmware, dropped or failed."""

    def control_counters(self) -> dict[str, int]:
        """Of the device's control port; empty where there is none, or the engine does not show them."""


class TcpOnHost:
    """Implements `TapHost`. Attribute `interface`: for sockets."""

    def __init__(self, interface: NetworkInterface) -> None:
        self.interface = interface
        self.stack = interface.stack
        self.provider: Provider = HostTcp(interface)

    @classmethod
    async def open(cls, port: CountingPort, settings: HostSettings, processors: Processors) -> TcpOnHost:
        """Probe the device, and bring the interface up."""
        system, machine = settings.system, settings.machine
        return cls(await NetworkInterface.open(
            await Nic.probe(port), mac=settings.mac, ip=settings.addresses, profile=settings.profile,
            rng=random.Random(f"server of {settings.seed}"),
            interrupt_account=processors.interrupt_context("interrupts"),
            softirq_account=processors.softirq_context("softirq"), offloads=offloads(system),
            notification=driver_notification(system, machine, system.placed_on(machine), processors.trigger_states),
            background_account=processors.process_context("ksoftirqd"),
            multiprocessor=Multiprocessor.of(machine.processors)))

    @property
    def keys_in_use(self) -> int:
        return self.interface.nic.keys_in_use

    def left_over(self) -> dict[str, int]:
        return dict(self.interface.left_over)

    def dropped(self) -> dict[str, int]:
        interface = self.interface
        return {"send_errors": interface.send_errors, "receive_errors": interface.receive_errors,
                "backlog_drops": interface.backlog_drops}

    def control_counters(self) -> dict[str, int]:
        return {}


class TcpOnDevice:
    """Implements `TapHost`, with the device's processors that run the firmware. Made before the host is up, since the
    firmware hears the device from its first message on. Attribute `device`: these processors.

    Raises InputError for a machine that has none.
    """

    def __init__(self, port: CountingPort, facts: PortFacts, settings: HostSettings, processors: Processors) -> None:
        machine, system = settings.machine, settings.system
        if machine.device_processor is None:
            raise InputError(f"system {system.name} does TCP on a device processor, and machine {machine.name} has no "
                             "table `device_processor`")
        count = system.device.processors or machine.device_processor.processors
        account = FirmwareAccount(machine.device_processor)
        self.firmware = Firmware(facts, mac=settings.mac, ip=settings.addresses, profile=settings.profile,
                                 seed=f"of {settings.seed}", account=account, shards=count)
        self.stack: Stack = self.firmware.stack
        self.provider: Provider
        self.device = DeviceProcessors(port.kernel, control_streams(port), self.firmware, account, count)
        self._port = port
        self._settings = settings
        self._processors = processors

    async def open(self) -> None:
        """Probe the device, and bring the ring of operations up."""
        settings, processors = self._settings, self._processors
        system, machine = settings.system, settings.machine
        self._interface = interface = await OffloadInterface.open(
            await Nic.probe(self._port), mac=settings.mac, ip=[str(address) for address in settings.addresses],
            interrupt_account=processors.interrupt_context("interrupts"),
            softirq_account=processors.softirq_context("softirq"),
            notification=driver_notification(system, machine, system.placed_on(machine), processors.trigger_states),
            background_account=processors.process_context("ksoftirqd"))
        self._offload = self.provider = OffloadTcp(interface, ring_bytes=RING_BYTES, rings=RINGS)

    @property
    def keys_in_use(self) -> int:
        return self._interface.nic.keys_in_use

    def left_over(self) -> dict[str, int]:
        found = {**self.firmware.left_over,
                 "operations": self._interface.sockets.under_way - self._offload.waiting_accepts,
                 "messages": self.device.waiting}
        control = self._control
        if control is not None:
            found |= {"device_handles": control.handles_held, "device_flows": control.flows,
                      "device_messages": control.waiting}
        return found

    def dropped(self) -> dict[str, int]:
        return {**msgspec.to_builtins(self.firmware.counters), "no_ring": self.firmware.stack.no_ring,
                "too_long": self.firmware.stack.too_long}

    def control_counters(self) -> dict[str, int]:
        return dict(self._control.counters) if self._control is not None else {}

    @property
    def _control(self) -> ControlPort | None:
        """The device's control port itself, of the engine whose device has no RTL."""
        return self._port.device.control if isinstance(self._port, ModelPort) else None


async def open_host(port: CountingPort, settings: HostSettings, processors: Processors,
                    on_device: TcpOnDevice | None) -> TapHost:
    """Bring the host up, over a device that is out of reset; `on_device`, if TCP runs there."""
    if on_device is None:
        return await TcpOnHost.open(port, settings, processors)
    await on_device.open()
    return on_device
