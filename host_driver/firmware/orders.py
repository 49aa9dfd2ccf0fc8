"""What the firmware gives in answer to messages: orders of both streams, in order, and what has to wait.

An EMIT or RAW waits for a credit, everything that names a flow for the DONE of its FLOW_ADD. The handle of the message
under way ends here: with its last PLACE, or by a DROP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from host_driver.firmware.flows import Flow
from host_driver.firmware.references import HeldPayload
from nic_model.contract.control import NO_FLOW, ControlType, DoneStatus, OrderFlag, pack_message

MAX_TAG = 0xFFFF

Answered = Callable[[DoneStatus], None]
"""Called with the DONE of an order."""


class Orders:
    """Collects orders. Attributes: `credits`, for EMITs and RAWs."""

    def __init__(self, emit_credits: int) -> None:
        self.credits = emit_credits
        self._all_credits = emit_credits
        self._given: list[bytes] = []
        self._without_credit: deque[bytes] = deque()
        self._answers: dict[int, Answered] = {}
        self._next_tag = 1
        self._handle: int | None = None
        self._places: list[tuple[Flow | None, dict[str, int]]] = []

    @property
    def left_over(self) -> dict[str, int]:
        """What was ordered and is not over: orders without a credit, answers that are due, credits."""
        return {"orders": len(self._without_credit), "answers": len(self._answers),
                "credits": self._all_credits - self.credits}

    def take(self) -> list[bytes]:
        """All orders that may be given now."""
        while self._without_credit and self.credits:
            self.credits -= 1
            self._given.append(self._without_credit.popleft())
        given, self._given = self._given, []
        return given

    # Answers ---------------------------------------------------------------------------------------------------------

    def tag_for(self, answered: Answered) -> int:
        """A tag whose DONE `answered` will be called with."""
        while self._next_tag in self._answers:
            self._next_tag = self._next_tag % MAX_TAG + 1
        tag, self._next_tag = self._next_tag, self._next_tag % MAX_TAG + 1
        self._answers[tag] = answered
        return tag

    def answer(self, tag: int, status: DoneStatus) -> bool:
        """A DONE came; whether anybody waited for it."""
        answered = self._answers.pop(tag, None)
        if answered is not None:
            answered(status)
        return answered is not None

    # Handles ---------------------------------------------------------------------------------------------------------

    def hold(self, handle: int) -> None:
        """The message under way brought a frame."""
        self._handle = handle
        self._places.clear()

    def place(self, flow: Flow | None, part: HeldPayload, key: int, offset: int) -> None:
        """Write a part of the held frame's payload to memory."""
        if part.handle != self._handle:
            raise ValueError(f"handle {part.handle} is not the one under way, {self._handle}")
        if flow is not None:
            flow.has_unfenced_places = True
        self._places.append((flow, {"handle": part.handle, "skip": part.skip, "length": part.length, "key": key,
                                    "offset": offset}))

    def end_handle(self) -> None:
        """The held frame is not needed any more, but for what is to be placed."""
        if self._handle is None:
            return
        # A connection that found no flow is about to be aborted.
        places = [(flow, fields) for flow, fields in self._places if flow is not None]
        if not places:
            self._given.append(pack_message(ControlType.DROP, handle=self._handle))
        for number, (flow, fields) in enumerate(places, 1):
            flags = OrderFlag.LAST if number == len(places) else OrderFlag(0)
            self.release(flow, ControlType.PLACE, b"", flags=flags, **fields)
        self._handle = None
        self._places.clear()

    # Orders ----------------------------------------------------------------------------------------------------------

    def release(self, flow: Flow | None, kind: ControlType, further: bytes = b"", **fields: int) -> None:
        """An order of the release stream, of a flow that may have to wait for its entry, or of none."""
        number, generation = (NO_FLOW, 0) if flow is None else (flow.number, flow.generation)
        message = pack_message(kind, further, **{"flow": number, "generation": generation, **fields})
        if flow is not None and not flow.is_entered:
            flow.held.append((False, message))
        else:
            self._given.append(message)

    def enter(self, kind: ControlType, *, answered: Answered, **fields: int) -> None:
        """An order about a flow's or a listener's entry: nothing waits for it."""
        self._given.append(pack_message(kind, b"", tag=self.tag_for(answered), **fields))

    def emit(self, flow: Flow | None, kind: ControlType, further: bytes = b"", **fields: int) -> None:
        """An order of the emit stream, likewise."""
        number, generation = (NO_FLOW, 0) if flow is None else (flow.number, flow.generation)
        message = pack_message(kind, further, **{"flow": number, "generation": generation, **fields})
        if flow is not None and not flow.is_entered:
            flow.held.append((True, message))
        else:
            self._without_credit.append(message)

    def let_go(self, flow: Flow) -> None:
        """A flow's entry is there: what waited for it goes."""
        for is_emit, message in flow.held:
            (self._without_credit if is_emit else self._given).append(message)
        flow.held.clear()
