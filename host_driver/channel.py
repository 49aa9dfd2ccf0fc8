"""One channel: its rings, its doorbell page, and what is in flight on it.

The driver's only hot path. A send is written to the ring by `submit`, told to the device by `ring_doorbell`, and comes
back from `completions` with the handle it was given; a receive buffer likewise, through `post`. A sequence of
submits needs one doorbell. A short send on an empty ring is pushed: written to the doorbell page too, so that the
device need not fetch it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from host_driver.account import Account
from host_driver.port import Port
from host_driver.rings import Completion, CompletionRing, Descriptor, Piece, ReceiveRing, SubmissionRing
from nic_model.contract import (
    PUSH_BLOCK_BYTES,
    PUSH_WINDOW_BYTES,
    SUBMISSION_HEAD,
    SUBMISSION_SLOT_BYTES,
    CompletionKind,
    doorbell,
)

PUSHED_INLINE_BYTES = 128
"""The most inline bytes of a descriptor that is pushed, unless told otherwise: three blocks."""


def push_blocks(index: int, slots: bytes) -> list[tuple[int, bytes]]:
    """The blocks of a descriptor whose first slot has ring index `index`: (offset in the push window, bytes) each.

    Slots of a block that are not the descriptor's are zeros, so that the device takes them for none.
    """
    start = index * SUBMISSION_SLOT_BYTES
    lead = start % PUSH_BLOCK_BYTES
    padded = bytes(lead) + slots
    padded += bytes(-len(padded) % PUSH_BLOCK_BYTES)
    return [((start - lead + at) % PUSH_WINDOW_BYTES, padded[at : at + PUSH_BLOCK_BYTES])
            for at in range(0, len(padded), PUSH_BLOCK_BYTES)]


class Finished(NamedTuple):
    """A completion, and the handle of what it completes; of a receive also those of its further buffers."""

    completion: Completion
    handle: Any
    more: tuple[Finished, ...] = ()


class Channel:
    """Rings and doorbells of channel `number`. Raises ValueError for ring sizes that the contract forbids.

    A send without pieces is pushed if it has at most `push_bytes` inline bytes and is alone on the ring; 0 for a device
    without `Feature.PUSH`, or to push none.

    Attributes: `port`, `number`, `vector`, `push_bytes`, `pushed` (sends so far), and the three rings, `submissions`,
    `buffers`, `completed`.
    """

    def __init__(self, port: Port, number: int, vector: int, *, tx_log2: int, rx_log2: int,
                 push_bytes: int = 0) -> None:
        self.number = number
        self.vector = vector
        self.port = port
        memory = port.memory
        self.submissions = SubmissionRing(memory, tx_log2)
        self.buffers = ReceiveRing(memory, rx_log2)
        # As large as both other rings together, so that it cannot overrun.
        self.completed = CompletionRing(memory, max(tx_log2, rx_log2) + 1)
        self.push_bytes = push_bytes
        self.pushed = 0
        self._push_window = doorbell("PUSH", number)
        self._tx_doorbell = doorbell("TX_DOORBELL", number)
        self._rx_doorbell = doorbell("RX_DOORBELL", number)
        self._cq_arm = doorbell("CQ_ARM", number)
        self._sends: dict[int, Any] = {}
        self._next_tag = 0
        self._posted: dict[int, Any] = {}
        self._parts: list[Finished] = []
        self._tx_told = 0
        self._rx_told = 0
        port.kernel.reporters.append(self)

    # ------------------------------------------------------------------------------------------ sending

    def has_room(self, descriptor: Descriptor) -> bool:
        """Whether `submit` would take it."""
        return descriptor.slots <= self.submissions.free

    def submit(self, descriptor: Descriptor, handle: Any) -> None:
        """Put a send on the ring; it always asks for a completion, which comes back with `handle`.

        Raises RingFull when there is no room.
        """
        tag = self._next_tag
        self.submissions.put(descriptor, tag, completes=True)
        # The ring holds fewer than 2^16 descriptors, so a tag is free again before it is used again.
        self._next_tag = tag + 1 & 0xFFFF
        self._sends[tag] = handle

    def ring_doorbell(self, account: Account) -> None:
        """Tell the device of everything submitted and posted since the last time."""
        if self._tx_told != self.submissions.producer or self._rx_told != self.buffers.producer:
            self.port.wmb()
        if self._tx_told != self.submissions.producer:
            if self.push_bytes:
                self._push(account)
            self._tx_told = self.submissions.producer
            account.charge("driver", "mmio_write")
            self.port.write32(self._tx_doorbell, self._tx_told)
        if self._rx_told != self.buffers.producer:
            self._rx_told = self.buffers.producer
            account.charge("driver", "mmio_write")
            self.port.write32(self._rx_doorbell, self._rx_told)

    def _push(self, account: Account) -> None:
        """Push what the device has not been told of, if it is one short send, and the device has no other."""
        submissions, index = self.submissions, self._tx_told
        if submissions.consumer != index:
            return
        slots = submissions.waiting(index)
        head = SUBMISSION_HEAD.unpack(slots[: SUBMISSION_HEAD.size_bytes])
        if head["pieces"] or head["inline_bytes"] > self.push_bytes:
            return
        if head["slots"] * SUBMISSION_SLOT_BYTES != len(slots):
            return
        blocks = push_blocks(index, slots)
        account.charge("driver", "block_write", len(blocks))
        self.pushed += 1
        for offset, block in blocks:
            self.port.write_block(self._push_window + offset, block)

    @property
    def sends_in_flight(self) -> int:
        """Sends that were submitted and have not come back."""
        return len(self._sends)

    # ------------------------------------------------------------------------------------------ receiving

    def post(self, buffer: Piece, buffer_id: int, handle: Any) -> None:
        """Give the device an empty buffer; it comes back with `handle`.

        Raises RingFull, or ValueError if a buffer with this id is posted already.
        """
        if buffer_id in self._posted:
            raise ValueError(f"buffer {buffer_id} of channel {self.number} is posted already")
        self.buffers.put(buffer, buffer_id)
        self._posted[buffer_id] = handle

    # ------------------------------------------------------------------------------------------ completions

    def completions(self) -> Iterator[Finished]:
        """All that has finished, in the device's order; ends when the ring is empty at that moment.

        A receive of several buffers comes when all of their completions are there.
        """
        completed = self.completed
        while completed.has_completion:
            # The phase bit was read before; what it guards must not be older.
            self.port.rmb()
            completion = completed.take()
            if completion.kind is CompletionKind.SEND:
                self.submissions.retire(completion.ring_index)
                yield Finished(completion, self._sends.pop(completion.tag))
            else:
                self.buffers.give_back()
                self._parts.append(Finished(completion, self._posted.pop(completion.tag)))
                head, *more = self._parts
                if len(more) == head.completion.more:
                    self._parts.clear()
                    yield head._replace(more=tuple(more))

    def arm(self, account: Account) -> None:
        """Ask for an interrupt at the next completion, or at once if one came since `completions` ended."""
        account.charge("driver", "mmio_write")
        self.port.write32(self._cq_arm, self.completed.consumer)

    def report(self) -> str:
        """What its rings wait for: implements `host_driver.runtime.Reporter`."""
        said = []
        if self._sends:
            hidden = self._tx_told != self.submissions.producer
            said.append(f"{_count(self._sends, 'send')} on the submission ring without completion"
                        + (", the last before its doorbell" if hidden else ""))
        if self._posted:
            hidden = self._rx_told != self.buffers.producer
            said.append(f"{_count(self._posted, 'empty buffer')} on the receive ring"
                        + (", the last before its doorbell" if hidden else ""))
        if said or self.completed.has_completion:
            said.append(f"{'a completion' if self.completed.has_completion else 'nothing'} on the completion ring")
        return f"channel {self.number} has {', '.join(said)}" if said else ""

    def release(self) -> list[Any]:
        """Free the rings, when the device has the channel IDLE; returns the handles of all that never came back."""
        self.port.kernel.reporters.remove(self)
        for ring in (self.submissions, self.buffers, self.completed):
            ring.release()
        lost = [*self._sends.values(), *(part.handle for part in self._parts), *self._posted.values()]
        self._parts.clear()
        self._sends.clear()
        self._posted.clear()
        return lost


def _count(things: dict[int, Any], what: str) -> str:
    return f"{len(things)} {what}{'s' if len(things) > 1 else ''}"
