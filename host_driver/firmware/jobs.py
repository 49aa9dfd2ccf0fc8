"""What the application posted: jobs of sockets, and how they are completed."""

from __future__ import annotations

from typing import NamedTuple

from host_driver.firmware.flows import Flow
from host_driver.firmware.orders import Orders
from nic_model.contract.control import ControlType, DoneStatus, OrderFlag
from nic_model.contract.sockets import SocketStatus


class Job(NamedTuple):
    """A job, as its OP named it."""

    channel: int
    number: int
    socket: int


class Completer:
    """Writes completions. Attribute: `completed`, how many."""

    def __init__(self, orders: Orders) -> None:
        self.completed = 0
        self._orders = orders

    def complete(self, job: Job, status: SocketStatus = SocketStatus.OK, *, flow: Flow | None = None, length: int = 0,
                 result: int = 0, remote_port: int = 0, local_port: int = 0, socket: int | None = None) -> None:
        """Tell the host that a job is over; behind the flow's earlier PLACEs, if one is given."""
        self.completed += 1
        self._orders.release(flow, ControlType.COMPLETE, channel=job.channel, job=job.number, status=status,
                             length=length, result=result, remote_port=remote_port, local_port=local_port,
                             socket=job.socket if socket is None else socket, flags=OrderFlag(0))


def status_of(error: BaseException | None) -> SocketStatus:
    """Why a connection ended, as a completion says it; None: both sides closed."""
    for kind, status in ((ConnectionRefusedError, SocketStatus.REFUSED), (ConnectionResetError, SocketStatus.RESET),
                         (ConnectionAbortedError, SocketStatus.ABORTED), (TimeoutError, SocketStatus.TIMED_OUT),
                         (OSError, SocketStatus.UNREACHABLE)):
        if isinstance(error, kind):
            return status
    return SocketStatus.CLOSED


def status_of_failure(done: DoneStatus) -> SocketStatus:
    """What an order that failed means for its connection."""
    return SocketStatus.NO_ROOM if done is DoneStatus.FULL else SocketStatus.MEMORY
