"""A TCP server node of a run: a machine with a device and a SAN adapter, and the TCP server that runs on it."""

from __future__ import annotations

import random
from typing import Any, Literal

from cosim.processor import Processors
from cosim.san import Adapter
from host_driver.account import Account, NullAccount
from host_driver.host_tcp import HostTcp
from host_driver.interface import NetworkInterface
from host_driver.memnet import AdmissionPolicy
from host_driver.nic import Nic
from host_driver.port import Port
from host_driver.runtime import Kernel
from host_driver.san.node import NodeSettings, TcpServerNode
from host_driver.san.socket_providers import InKernel, OrdinarySockets

SocketProvider = Literal["sockets", "shared", "kernel"]
"""The designs of Rangarajan et al. 2002, Fig. 5: in user space over ordinary sockets; in user space with buffers that
it shares with the kernel; in the kernel."""

LATELY_PS = 10 * 10**9
"""How far back a node's load is looked at."""


class BusyMeter:
    """The share of a node's processors that was in use lately, 0 to 1."""

    def __init__(self, kernel: Kernel, processors: Processors) -> None:
        self._kernel = kernel
        self._processors = processors
        self._since_ps = 0
        self._busy_ps = 0
        self._share = 0.0

    def __call__(self) -> float:
        """It, over the last complete stretch of `LATELY_PS` or more."""
        elapsed_ps = self._kernel.now - self._since_ps
        if elapsed_ps >= LATELY_PS:
            spent = self._processors.busy_ps
            busy_ps = sum(sum(categories.values()) for categories in spent)
            self._share = (busy_ps - self._busy_ps) / (elapsed_ps * len(spent))
            self._since_ps, self._busy_ps = self._kernel.now, busy_ps
        return self._share


async def start_node(port: Port, adapter: Adapter, *, processors: Processors | None, design: SocketProvider,
                     settings: NodeSettings, seed: str, admission: AdmissionPolicy | None = None,
                     **interface: Any) -> tuple[NetworkInterface, TcpServerNode]:
    """Bring a node up over a device that is out of reset; it then serves for ever.

    `interface` are the arguments of `NetworkInterface.open` beside those given here. Without `processors` its time
    costs nothing.
    """
    nic = await Nic.probe(port)
    network = await NetworkInterface.open(
        nic, rng=random.Random(seed),
        interrupt_account=NullAccount() if processors is None else processors.interrupt_context("interrupts"),
        softirq_account=NullAccount() if processors is None else processors.softirq_context("softirq"), **interface)
    process = None if processors is None else processors.process_context("TCP server")

    def make_account(name: str) -> Account:
        account = NullAccount() if process is None else process.thread(name)
        return InKernel(account) if design == "kernel" else account

    node = TcpServerNode(
        adapter, OrdinarySockets(network) if design == "sockets" else HostTcp(network), make_account=make_account,
        interrupt_account=NullAccount() if processors is None else processors.interrupt_context("SAN adapter"),
        settings=settings, shares_memory=design != "sockets", admission=admission,
        rng=random.Random(f"capabilities of {seed}"),
        **({} if processors is None else {"busy": BusyMeter(port.kernel, processors)}))
    return network, node
