"""The host's end of one VI: what is posted on it, by credit, and what its answers are for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from host_driver.account import Account
from host_driver.errors import CreditError, NetworkError
from host_driver.memnet.credits import CONTROL_BYTES, ControlRegion, FillingEnd, Word
from host_driver.memnet.provider import Transfer
from host_driver.san.messages import (
    HOST_RECEIVES,
    MAX_LENGTH_BYTES,
    MESSAGE_BYTES,
    WINDOW,
    Answer,
    Answered,
    Call,
    Lane,
    Request,
    Welcome,
    data_immediate,
    format_request,
    parse_answer,
)
from host_driver.san.port import CompletionQueue, Receive, Remote, SanCompletion, SanPort, Segment, Send

VI_BYTES = CONTROL_BYTES + (WINDOW + 1 + HOST_RECEIVES) * MESSAGE_BYTES
"""Host memory of a VI: control region, requests, a want of credit, answers."""


class Pending(NamedTuple):
    """What an answer is waited for with."""

    account: Account
    is_waited: Callable[[], bool]
    finish: Callable[[Answer], None]


class _Entry:
    """A request or a send on its way to the VI. `is_ready`: its processor time was spent. `is_paid`: that was the next
    post's."""

    __slots__ = ("account", "is_paid", "is_ready", "offset_bytes", "pending", "request", "transfer")

    def __init__(self, request: Request | None, transfer: Transfer | None, pending: Pending) -> None:
        self.account = pending.account
        self.request = request
        self.transfer = transfer
        self.pending = pending
        self.offset_bytes = 0
        """Bytes of the transfer that were posted."""
        self.is_ready = False
        self.is_paid = True


class _Untold:
    """The filling end of a send ring tells by immediate data: implements `credits.RemoteWords`."""

    def write(self, word: Word, value: int) -> None:
        """The node knows."""


class Block:
    """Memory of VIs that were made together."""

    __slots__ = ("address", "handle", "left")

    def __init__(self, address: int, handle: int, vis: int) -> None:
        self.address = address
        self.handle = handle
        self.left = vis
        """VIs that are not destroyed."""


class Library(Protocol):
    """What a VI needs of the library that has it."""

    port: SanPort
    account: Account
    """Whom work is charged to that is nobody's."""
    sends_done: CompletionQueue
    receives_done: CompletionQueue
    credit_errors: int

    def segments(self, transfer: Transfer, offset: int, length: int) -> Iterator[Segment]:
        """So many bytes of a transfer, from an offset on, where they lie."""

    def deliver(self, pending: Pending, answer: Answer) -> None:
        """Something is over."""

    def vi_broke(self, vi: SocketVi) -> None:
        """It cannot be used any more."""


class SocketVi:
    """The host's end of one VI, with all that waits for it."""

    def __init__(self, library: Library, node: int, address: int, block: Block) -> None:
        memory = library.port.memory
        self.node = node
        self.block = block
        self.owner: object = None
        """Whose it is, until all of that is over."""
        self.failed: Answered | None = None
        """How a send of the owner failed that nobody waited for."""
        self.error: str | None = None
        """Why it is broken."""
        self.number = library.port.create_vi(library.sends_done, library.receives_done)
        self.lanes: dict[Lane, deque[Pending]] = {Lane.CALLS: deque(), Lane.RECEIVES: deque()}
        self._library = library
        self.sends_under_way = 0
        self._account: Account = library.account
        self._handle = block.handle
        self._requests_at = address + CONTROL_BYTES
        self._want_at = self._requests_at + WINDOW * MESSAGE_BYTES
        self._answers_at = self._want_at + MESSAGE_BYTES
        self._wants_credit = False
        self.control = ControlRegion(memory.view(address, CONTROL_BYTES))
        self._window = FillingEnd(WINDOW, WINDOW, self.control, Word.TAKEN, _Untold(), Word.QUEUED)
        self._ring: FillingEnd | None = None
        self._welcome = Welcome(0, 0, 0)
        self._calls: deque[_Entry] = deque()
        self._receives: deque[_Entry] = deque()

    def __repr__(self) -> str:
        return f"<VI {self.number} to node {self.node}>"

    def post_answers(self) -> None:
        """Post all receives."""
        for slot in range(HOST_RECEIVES):
            self._post_answer(slot)

    def connected(self, welcome: Welcome) -> None:
        """The node has accepted it."""
        self._welcome = welcome
        self._ring = FillingEnd(welcome.ring_bytes, welcome.ring_bytes, self.control, Word.SENT, _Untold(), Word.QUEUED)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is under way."""
        return not (self._calls or self._receives or any(self.lanes.values()))

    @property
    def is_stalled(self) -> bool:
        """Whether sends or requests wait for credit."""
        return bool(self._calls)

    async def request(self, request: Request, pending: Pending) -> None:
        """Post a request, behind those before it; the post is charged to the pending's account."""
        await self._enter(_Entry(request, None, pending))

    async def send(self, transfer: Transfer, pending: Pending) -> None:
        """Post a send, which is over with its last bytes' completion, or with the answer if it is to be confirmed."""
        await self._enter(_Entry(None, transfer, pending))

    async def _enter(self, entry: _Entry) -> None:
        is_receive = entry.request is not None and entry.request.call is Call.RECEIVE
        self._account = entry.account
        (self._receives if is_receive else self._calls).append(entry)
        entry.account.charge("san", "post")
        try:
            await entry.account.settle()
        finally:
            entry.is_ready = True
            self.pump()
        await entry.account.settle()

    def pump(self) -> None:
        """Post what there is credit for."""
        if self.error is not None:
            self.fail(self.error)
            return
        try:
            self._post_queued()
        except CreditError as error:
            self._library.credit_errors += 1
            self.fail(str(error))

    def _post_queued(self) -> None:
        while self._receives and self._receives[0].is_ready:
            if not self._window.credit_bytes:
                self._want_credit()
                return
            self._post_request(self._receives.popleft(), Lane.RECEIVES)
        while self._calls and self._calls[0].is_ready:
            entry = self._calls[0]
            if self._window.credit_bytes and entry.transfer is None:
                self._post_request(self._calls.popleft(), Lane.CALLS)
            elif not self._window.credit_bytes or not self._post_bytes(entry, entry.transfer):
                self._want_credit()
                return

    def _want_credit(self) -> None:
        """Ask to be told of more than was seen, once for each time that there is none."""
        if self._wants_credit:
            return
        self._wants_credit = True
        data = format_request(Request(Call.WANT_CREDIT, length=self.control.read(Word.SENT),
                                      address=self.control.read(Word.TAKEN)))
        self._library.port.memory.view(self._want_at, len(data))[:] = data
        self._account.charge("san", "post")
        self.sends_under_way += 1
        self._library.port.post_send(self.number, Send(segments=(Segment(self._handle, self._want_at, len(data)),)))

    def _post_request(self, entry: _Entry, lane: Lane) -> None:
        assert entry.request is not None
        data = format_request(entry.request)
        if len(data) > MESSAGE_BYTES:
            raise ValueError(f"a request of {len(data)} bytes, and a message has {MESSAGE_BYTES}")
        address = self._requests_at + self._window.position % WINDOW * MESSAGE_BYTES
        self._library.port.memory.view(address, len(data))[:] = data
        self.lanes[lane].append(entry.pending)
        self._post(entry, Send(segments=(Segment(self._handle, address, len(data)),)))

    def _post_bytes(self, entry: _Entry, transfer: Transfer | None) -> bool:
        """Post the next bytes of a send; False if there is no credit for them."""
        assert transfer is not None
        at, length = self._room(transfer, entry)
        if not length:
            return False
        before = 0
        if length < transfer.length_bytes - entry.offset_bytes and at + length == self._welcome.ring_bytes:
            # It wraps round the ring's end, and is told of as a whole: two of TCP's small segments would not do.
            before = length
            self._write(entry, transfer, at, length, None, None)
            at, length = self._room(transfer, entry)
        is_last = entry.offset_bytes + length == transfer.length_bytes
        if is_last:
            self._calls.popleft()
        is_confirmed = is_last and transfer.is_confirmed
        if is_confirmed:
            self.lanes[Lane.CALLS].append(entry.pending)
        self._write(entry, transfer, at, length, data_immediate(before + length, is_confirmed=is_confirmed),
                    entry.pending if is_last and not is_confirmed else None)
        return True

    def _room(self, transfer: Transfer, entry: _Entry) -> tuple[int, int]:
        """Where the next bytes of a send may go, and how many in one piece."""
        assert self._ring is not None
        return self._ring.room(min(transfer.length_bytes - entry.offset_bytes, MAX_LENGTH_BYTES // 2))

    def _write(self, entry: _Entry, transfer: Transfer, at: int, length: int, immediate: int | None,
               tag: Pending | None) -> None:
        """Write the next bytes of a send to a place in the ring."""
        assert self._ring is not None
        segments = tuple(self._library.segments(transfer, entry.offset_bytes, length))
        entry.offset_bytes += length
        self._ring.fill(length)
        remote = Remote(self._welcome.ring_handle, self._welcome.ring_address + at)
        self._post(entry, Send(segments=segments, remote=remote, immediate=immediate, tag=tag))

    def _post(self, entry: _Entry, send: Send) -> None:
        if not entry.is_paid:
            entry.account.charge("san", "post")
        entry.is_paid = False
        if send.remote is None or send.immediate is not None:
            self._window.fill(1)
        self.sends_under_way += 1
        self._library.port.post_send(self.number, send)

    # ------------------------------------------------------------------------------------------ answers

    def take(self, slot: int, completion: SanCompletion) -> tuple[Pending, Answer] | None:
        """A message of the node; what it answers, if anything."""
        if completion.error is not None:
            self.fail(completion.error)
            return None
        assert completion.immediate is not None
        view = self._library.port.memory.view(self._answers_at + slot * MESSAGE_BYTES, completion.length_bytes)
        answer = parse_answer(completion.immediate, bytes(view))
        self._account.charge("san", "post")
        self._post_answer(slot)
        if answer.lane is Lane.CREDIT:
            self._account.charge("san", "poll")
            self._wants_credit = False
            if answer.answered is not Answered.OK:
                self.failed = answer.answered
            self.pump()
            return None
        return self.lanes[answer.lane].popleft(), answer

    def _post_answer(self, slot: int) -> None:
        segment = Segment(self._handle, self._answers_at + slot * MESSAGE_BYTES, MESSAGE_BYTES)
        self._library.port.post_receive(self.number, Receive(segment, (self, slot)))

    def drop_sends(self, error: NetworkError) -> None:
        """Sends that are not with the node fail."""
        dropped = [entry for entry in self._calls if entry.transfer is not None]
        self._calls = deque(entry for entry in self._calls if entry.transfer is None)
        for entry in dropped:
            assert entry.transfer is not None
            entry.transfer.done(0, error)

    def fail(self, why: str) -> None:
        """It is broken: whatever waits for it fails."""
        if self.error is None:
            self.error = why
            self._library.vi_broke(self)
        entries = [*self._calls, *self._receives]
        self._calls.clear()
        self._receives.clear()
        pendings = [entry.pending for entry in entries]
        for lane in self.lanes.values():
            pendings += lane
            lane.clear()
        for pending in pendings:
            self._library.deliver(pending, Answer(Lane.CALLS, Answered.RESET, 0))
