"""Pushed descriptors: what the blocks that are written to a channel's push window make."""

from __future__ import annotations

from dataclasses import dataclass

from nic_model.contract import (
    MAX_DESCRIPTOR_SLOTS,
    PUSH_BLOCK_BYTES,
    PUSH_WINDOW_BYTES,
    SUBMISSION_HEAD,
    SUBMISSION_SLOT_BYTES,
)

SLOTS_PER_BLOCK = PUSH_BLOCK_BYTES // SUBMISSION_SLOT_BYTES
BLOCKS = PUSH_WINDOW_BYTES // PUSH_BLOCK_BYTES


@dataclass(slots=True)
class PushWindow:
    """One channel's push window: the push under way, if any.

    It needs `left` blocks more, the next of them number `next`; `first` is the place of its first slot in the window.
    """

    left: int = 0
    next: int = 0
    first: int = 0
    slots: int = 0

    def forget(self) -> None:
        """End what is unfinished."""
        self.left = 0

    def write(self, offset: int, data: bytes) -> bool:
        """Take what was written at `offset` in the window; returns whether it completes a descriptor.

        A write that is no whole block ends what is unfinished, as a block does that is not the next one; with that,
        another may begin.
        """
        number = offset // PUSH_BLOCK_BYTES
        if len(data) != PUSH_BLOCK_BYTES or offset % PUSH_BLOCK_BYTES:
            self.forget()
            return False
        if self.left and number == self.next:
            self.left -= 1
        else:
            self._begin(number, data)
            if not self.slots:
                return False
        self.next = (number + 1) % BLOCKS
        return self.left == 0

    def _begin(self, number: int, data: bytes) -> None:
        """A descriptor begins in the block's first slot, or if that says nothing in its second."""
        claims = [SUBMISSION_HEAD.unpack(data[at : at + SUBMISSION_HEAD.size_bytes])["slots"]
                  for at in range(0, PUSH_BLOCK_BYTES, SUBMISSION_SLOT_BYTES)]
        skipped = int(claims[0] == 0)
        claimed = claims[skipped]
        self.slots = claimed if claimed <= MAX_DESCRIPTOR_SLOTS else 0
        self.first = number * SLOTS_PER_BLOCK + skipped
        self.left = -(-(self.slots + skipped) // SLOTS_PER_BLOCK) - 1 if self.slots else 0
