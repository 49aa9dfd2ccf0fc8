"""A channel of socket operations: descriptors to whoever does TCP on the device, and its completions.

An operation costs the host a descriptor of one slot and a doorbell. Its slots are free again when the device has
fetched it, long before it is over: the driver asks how far the device is when the ring looks full, and not before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from host_driver.account import Account
from host_driver.channel import Channel
from host_driver.rings import Piece, SocketCompletion
from nic_model.contract import SUBMISSION_SLOT_BYTES, Opcode, channel_register
from nic_model.contract.sockets import SOCKET_HEAD, SocketFlag

_JOBS = 1 << 16

Over = Callable[[SocketCompletion], None]
"""Called when an operation is over."""


class SocketDescriptor(NamedTuple):
    """A socket operation; `pack` makes its slots (implements `rings.Packable`)."""

    opcode: Opcode
    socket: int = 0
    piece: Piece | None = None
    flags: SocketFlag = SocketFlag(0)
    consumed: int = 0
    parameters: bytes = b""
    """SOCKET_PARAMETERS, or nothing."""

    @property
    def slots(self) -> int:
        """Submission slots it takes."""
        return 1 + len(self.parameters) // SUBMISSION_SLOT_BYTES

    def pack(self, tag: int, *, completes: bool = False) -> bytes:
        """All slots, in order. Every operation is completed."""
        piece = self.piece or Piece(0, 0, 0)
        return SOCKET_HEAD.pack(
            opcode=self.opcode, slots=self.slots, flags=self.flags, tag=tag, socket=self.socket,
            inline_bytes=len(self.parameters), pieces=int(self.piece is not None), offset=piece.offset, key=piece.key,
            length=piece.length_bytes, consumed=self.consumed) + self.parameters


class SocketChannel:
    """Socket operations on `channel`, which the device lets do them.

    Attributes: `channel`; `posted` and `completed`, operations so far.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.posted = 0
        self.completed = 0
        self._jobs: dict[int, Over] = {}
        self._next_job = 0

    @property
    def under_way(self) -> int:
        """Operations that are not over."""
        return len(self._jobs)

    def post(self, descriptors: list[SocketDescriptor], over: Over) -> None:
        """Put one operation on the ring: the parts of a send share one job. Raises RingFull if there is no room."""
        job = self._next_job
        while job in self._jobs:
            job = (job + 1) % _JOBS
        self._next_job = (job + 1) % _JOBS
        for descriptor in descriptors:
            self.channel.submissions.put(descriptor, job, completes=True)
        self._jobs[job] = over
        self.posted += 1

    def has_room(self, descriptors: list[SocketDescriptor]) -> bool:
        """Whether `post` would take them."""
        return sum(descriptor.slots for descriptor in descriptors) <= self.channel.submissions.free

    async def make_room(self, account: Account) -> None:
        """Ask the device how far it is."""
        port = self.channel.port
        account.charge("driver", "mmio_read")
        index = port.read32(channel_register("TX_INDEX", self.channel.number))
        await account.settle()
        submissions = self.channel.submissions
        reached = await index
        if submissions.holds(reached):
            submissions.retire(reached)

    def take_completions(self, account: Account) -> int:
        """Tell of all operations that are over; how many there were."""
        completed, taken = self.channel.completed, 0
        while completed.has_completion:
            # The phase bit was read before; what it guards must not be older.
            self.channel.port.rmb()
            if not completed.is_socket:
                raise RuntimeError(f"the device refused a socket operation: {completed.take().status.name}")
            completion = completed.take_socket()
            account.charge("driver", "transmit_reclaim")
            taken += 1
            self._jobs.pop(completion.tag)(completion)
        self.completed += taken
        return taken
