"""Holds a decider to the control port's rules, by what passes the port alone.

It knows nothing of how a decider works: from the messages up it knows what there is to answer, and from the orders what
was promised. Numbers in its errors are those of `contract.control.RULES`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from nic_model.contract import Opcode
from nic_model.contract.config import PortFacts
from nic_model.contract.control import (
    ALWAYS_DONE,
    NO_FLOW,
    ControlType,
    DoneStatus,
    OrderFlag,
    unpack_message,
)
from nic_model.contract.protocols import TcpFlags
from nic_model.contract.sockets import EAGER_RESULT, SOCKET_PARAMETERS, SocketFlag, SocketStatus

_MODULUS = 1 << 32


@dataclass
class _Flow:
    """What is known of a flow in the table."""

    generation: int
    key: tuple[int, int, int]
    receive_scale: int
    is_entered: bool = False
    is_leaving: bool = False
    send_base: int | None = None
    receive_base: int = 0
    acknowledged: int = 0
    unfenced: list[int] = field(default_factory=list)
    """Sequence numbers of bytes that were placed since the last fence."""
    reading: dict[int, tuple[int, int]] = field(default_factory=dict)

    def position(self, sequence: int) -> int:
        assert self.send_base is not None
        return (sequence - self.send_base) % _MODULUS


@dataclass
class _Socket:
    """What is known of a socket."""

    ring_bytes: int
    flow: int | None = None
    queued: int = 0
    sends: dict[int, list[int]] = field(default_factory=dict)
    """Job -> [first position, position behind]."""
    receives: deque[tuple[int, int, bool]] = field(default_factory=deque)
    """Job, length, WAIT_ALL."""
    delivered: list[tuple[int, int]] = field(default_factory=list)
    """Length and eager bytes of each receive that is over."""
    consumed: int = 0
    is_closing: bool = False
    best: int = 0

    def promised(self) -> int:
        """Behind the last position of the stream for which there is, or was, memory that cannot be withdrawn."""
        self.best = max(self.best, self._promised())
        return self.best

    def _promised(self) -> int:
        position, left = 0, self.consumed
        for length, eager in self.delivered:
            if eager > left:
                position += left
                break
            left -= eager
            position += length
        edge = position + self.ring_bytes
        behind = sum(length for length, _ in self.delivered)
        for _, length, wait_all in self.receives:
            if not wait_all and self.ring_bytes:
                break
            behind += length
            edge = max(edge, behind)
        return edge


class Judge:
    """Watches one port. `up` and `order` raise AssertionError, with the rule, for what breaks it; `end` for what is
    left over."""

    def __init__(self, facts: PortFacts) -> None:
        self._facts = facts
        self._credits = facts.emit_credits
        self._flows: dict[int, _Flow] = {}
        self._handles: dict[int, int] = {}
        """Handle -> sequence number of its payload."""
        self._sockets: dict[int, _Socket] = {}
        self._jobs: dict[int, tuple[int, dict[str, int]]] = {}
        self._listening: dict[int, int] = {}
        self._answers_due: dict[tuple[int, int], int] = {}
        self.completions = 0
        self.fences = 0
        self.slack = 0
        """Bytes by which a window may say more than there is, since it counts larger units."""
        self.orders: dict[ControlType, int] = {}

    @property
    def flows(self) -> list[int]:
        """Flows that are in the table."""
        return sorted(self._flows)

    # what comes up

    def up(self, message: bytes) -> None:
        kind, fields, further = unpack_message(message)
        self._credits += fields["emit_credits"]
        if kind in (ControlType.SEGMENT, ControlType.UNKNOWN):
            self._handles[fields["handle"]] = fields["sequence"]
        if kind is ControlType.SEGMENT:
            flow = self._flows[fields["flow"]]
            assert flow.generation == fields["generation"], "rule 1: a segment of another generation"
            if fields["tcp_flags"] & TcpFlags.ACK and flow.send_base is not None:
                acknowledged = flow.position(fields["acknowledgement"])
                if acknowledged < 1 << 31:
                    flow.acknowledged = max(flow.acknowledged, acknowledged)
        elif kind is ControlType.OP:
            self._operation(fields, further)
        elif kind is ControlType.DONE:
            self._done(fields)

    def _operation(self, fields: dict[str, int], further: bytes) -> None:
        operation, job, number = fields["operation"], fields["job"], fields["socket"]
        if operation == Opcode.SOCKET_LISTEN:
            fields = {**fields, "ring_bytes": SOCKET_PARAMETERS.unpack(further)["ring_bytes"]}
        self._jobs[job] = (operation, fields)
        socket = self._sockets.get(number)
        if socket is None:
            return
        if operation in (Opcode.SOCKET_SEND, Opcode.SOCKET_RECEIVE):
            socket.consumed = fields["consumed"]
            socket.promised()
        if operation == Opcode.SOCKET_SEND:
            span = socket.sends.setdefault(job, [socket.queued, socket.queued])
            socket.queued += fields["length"]
            span[1] = socket.queued
        elif operation == Opcode.SOCKET_RECEIVE and fields["length"]:
            socket.receives.append((job, fields["length"], bool(fields["socket_flags"] & SocketFlag.WAIT_ALL)))
            socket.promised()
        elif operation == Opcode.SOCKET_CLOSE:
            socket.is_closing = True

    def _done(self, fields: dict[str, int]) -> None:
        order = ControlType(fields["order"])
        if order in ALWAYS_DONE:
            key = (order, fields["tag"])
            assert self._answers_due.get(key), "a DONE that nobody asked for"
            self._answers_due[key] -= 1
        flow = self._flows.get(fields["flow"])
        if order is ControlType.FLOW_ADD:
            assert flow is not None
            if fields["status"] == DoneStatus.OK:
                flow.is_entered = True
            else:
                del self._flows[fields["flow"]]
        elif order is ControlType.FLOW_DEL:
            del self._flows[fields["flow"]]
        elif order is ControlType.EMIT and flow is not None:
            flow.reading.pop(fields["tag"], None)

    # what is ordered

    def order(self, message: bytes) -> None:
        kind, fields, _ = unpack_message(message)
        self.orders[kind] = self.orders.get(kind, 0) + 1
        if kind in ALWAYS_DONE:
            key = (kind, fields["tag"])
            self._answers_due[key] = self._answers_due.get(key, 0) + 1
        if kind is ControlType.FLOW_ADD:
            self._flow_add(fields)
        elif kind in (ControlType.LISTEN_ADD, ControlType.LISTEN_DEL):
            assert fields["flow"] < self._facts.listeners
        elif fields["flow"] != NO_FLOW and kind not in (ControlType.DROP, ControlType.PASS):
            flow = self._flows.get(fields["flow"])
            assert flow is not None, f"rule 1: {kind.name} of a flow that is not in the table"
            assert flow.is_entered, f"rule 2: {kind.name} before the DONE of FLOW_ADD"
            assert flow.generation == fields["generation"], f"rule 1: {kind.name} of another generation"
            assert not flow.is_leaving, f"rule 1: {kind.name} behind FLOW_DEL"
        if kind is ControlType.FLOW_DEL:
            self._flows[fields["flow"]].is_leaving = True
        elif kind in (ControlType.EMIT, ControlType.RAW):
            self._credits -= 1
            assert self._credits >= 0, "rule 4: an EMIT without a credit"
            if kind is ControlType.EMIT:
                self._emit(fields)
        elif kind in (ControlType.PLACE, ControlType.DROP, ControlType.PASS):
            self._handle(kind, fields)
        elif kind is ControlType.COMPLETE:
            self._complete(fields)

    def _flow_add(self, fields: dict[str, int]) -> None:
        number = fields["flow"]
        assert number < self._facts.flows, "rule 1: a number beyond FLOWS"
        assert number not in self._flows, "rule 1: a number that is taken"
        assert number == next(n for n in range(self._facts.flows) if n not in self._flows), "rule 1: not dense"
        self._flows[number] = _Flow(fields["generation"], (fields["remote_address"], fields["remote_port"],
                                                           fields["local_port"]), fields["receive_scale"])

    def _emit(self, fields: dict[str, int]) -> None:
        flow = self._flows[fields["flow"]]
        if fields["flags"] & OrderFlag.LAST:
            return
        if flow.send_base is None:
            flow.send_base, flow.receive_base = fields["sequence"], fields["acknowledgement"]
        if fields["flags"] & OrderFlag.FENCE:
            self.fences += 1
            flow.unfenced.clear()
        if fields["tcp_flags"] & TcpFlags.ACK:
            early = [s for s in flow.unfenced if 0 < (fields["acknowledgement"] - s) % _MODULUS < 1 << 31]
            assert not early, "rule 4: an acknowledgement that may precede its data"
        if fields["length"]:
            position = flow.position(fields["sequence"])
            if fields["flags"] & OrderFlag.DONE:
                flow.reading[fields["tag"]] = (position, position + fields["length"])
        socket = next((s for s in self._sockets.values() if s.flow == fields["flow"]), None)
        if socket is not None and not socket.is_closing:
            acknowledged = (fields["acknowledgement"] - flow.receive_base) % _MODULUS
            edge = acknowledged + (fields["window"] << flow.receive_scale)
            # Beyond the stream's end only the FIN was acknowledged, and promises mean nothing.
            assert edge <= socket.promised() + 1 + self.slack, (
                f"rule 6: a window up to {edge}, and memory up to {socket.promised()}")

    def _handle(self, kind: ControlType, fields: dict[str, int]) -> None:
        assert fields["handle"] in self._handles, f"rule 5: {kind.name} of a handle that has ended"
        if kind is ControlType.PLACE:
            sequence = self._handles[fields["handle"]] + fields["skip"]
            self._flows[fields["flow"]].unfenced.append(sequence % _MODULUS)
            if not fields["flags"] & OrderFlag.LAST:
                return
        del self._handles[fields["handle"]]

    def _complete(self, fields: dict[str, int]) -> None:
        self.completions += 1
        assert fields["job"] in self._jobs, "a completion of no job"
        operation, asked = self._jobs.pop(fields["job"])
        good = fields["status"] == SocketStatus.OK
        if operation == Opcode.SOCKET_LISTEN and good:
            self._listening[fields["socket"]] = asked["ring_bytes"]
        elif operation in (Opcode.SOCKET_ACCEPT, Opcode.SOCKET_CONNECT) and good:
            ring = self._listening[asked["socket"]] if operation == Opcode.SOCKET_ACCEPT else asked["length"]
            key = (fields["result"], fields["remote_port"], fields["local_port"])
            flow = next((n for n, f in self._flows.items() if f.key == key), None)
            self._sockets[fields["socket"]] = _Socket(ring, flow)
        socket = self._sockets.get(asked["socket"])
        if socket is None:
            return
        if operation == Opcode.SOCKET_SEND:
            start, end = socket.sends.pop(fields["job"])
            flow_now = self._flows.get(socket.flow) if socket.flow is not None else None
            if good and flow_now is not None:
                assert flow_now.acknowledged >= end, "rule 8: a send that is not acknowledged"
                assert not any(first < end and start < behind for first, behind in flow_now.reading.values()), (
                    "rule 8: an EMIT that is under way reads it")
                assert fields["length"] == end - start
        elif operation == Opcode.SOCKET_RECEIVE and asked["length"]:
            job, length, _ = socket.receives.popleft()
            assert job == fields["job"], "receives are over in order"
            assert fields["length"] <= length
            eager = EAGER_RESULT.unpack(fields["result"].to_bytes(16, "little"))["bytes"]
            assert eager <= fields["length"]
            socket.delivered.append((fields["length"], eager))
            socket.promised()
        elif operation == Opcode.SOCKET_CLOSE:
            del self._sockets[asked["socket"]]

    def end(self, *, open_jobs: int = 0) -> None:
        """All is over: nothing is left."""
        assert not self._handles, f"rule 5: handles {sorted(self._handles)} never ended"
        assert len(self._jobs) == open_jobs, f"jobs {sorted(self._jobs)} were never completed"
        assert not any(self._answers_due.values())
