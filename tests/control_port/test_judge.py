"""The judge finds what breaks a rule: the firmware, with one order changed, left out or doubled, does not pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from host_driver.firmware import Firmware
from nic_model.contract.config import PortFacts
from nic_model.contract.control import NO_FLOW, ControlType, OrderFlag, pack_message, unpack_message
from nic_model.control_log import Decider
from tests.control_port.bench import Bench, Listening, Peer, Socket

Change = Callable[[ControlType, dict[str, int], bytes], list[bytes]]
"""What becomes of an order."""


class Spoilt:
    """A firmware whose orders are changed."""

    def __init__(self, inner: Decider, change: Change) -> None:
        self._inner = inner
        self._change = change

    def on_message(self, message: bytes) -> list[bytes]:
        orders = self._inner.on_message(message)
        return [changed for order in orders for changed in self._change(*unpack_message(order))]


def repacked(kind: ControlType, fields: dict[str, int], further: bytes, **changes: int) -> bytes:
    own = {name: value for name, value in fields.items() if name not in ("type", "units", "version")}
    return pack_message(kind, further, **(own | changes))


def without(flag: OrderFlag, of: ControlType) -> Change:
    def change(kind: ControlType, fields: dict[str, int], further: bytes) -> list[bytes]:
        flags = fields["flags"] & ~flag if kind is of else fields["flags"]
        return [repacked(kind, fields, further, flags=flags)]
    return change


def repeated(of: ControlType, times: int = 2) -> Change:
    def change(kind: ControlType, fields: dict[str, int], further: bytes) -> list[bytes]:
        return [repacked(kind, fields, further)] * (times if kind is of else 1)
    return change


def left_out(of: ControlType) -> Change:
    def change(kind: ControlType, fields: dict[str, int], further: bytes) -> list[bytes]:
        return [] if kind is of else [repacked(kind, fields, further)]
    return change


def with_fields(of: ControlType, **added: int) -> Change:
    def change(kind: ControlType, fields: dict[str, int], further: bytes) -> list[bytes]:
        more = {name: fields[name] + value for name, value in added.items()} if kind is of else {}
        if more and fields["flow"] == NO_FLOW:
            more = {}
        return [repacked(kind, fields, further, **more)]
    return change


def hurried() -> Change:
    """Sends are completed as soon as they are posted: the completion comes with the EMIT."""
    def change(kind: ControlType, fields: dict[str, int], further: bytes) -> list[bytes]:
        order = repacked(kind, fields, further)
        if kind is ControlType.EMIT and fields["length"] == 3000:
            early = pack_message(ControlType.COMPLETE, flow=fields["flow"], generation=fields["generation"], channel=2,
                                 job=SEND_JOB, length=3000, socket=2)
            return [order, early]
        return [order]
    return change


SEND_JOB = 6
"""Number of the exchange's send: behind LISTEN, four ACCEPTs and the next one."""


def exchange(change: Change) -> None:
    """A request of 700 bytes, an answer of 3,000, and the end."""
    def make(facts: PortFacts, mac: bytes, ip: str) -> Decider:
        return Spoilt(Firmware(facts, mac=mac, ip=ip), change)

    bench = Bench(make)
    sockets: list[Socket] = []
    listening = Listening(bench, sockets.append)
    Peer(bench, bytes(700))
    bench.run(lambda: bool(sockets), 3000)
    (socket,) = sockets
    socket.send(bytes(range(250)) * 12)
    socket.receive(1000)
    bench.run(lambda: socket.sent_bytes == 3000 and len(socket.received) == 700, 3000)
    socket.close()
    bench.run(lambda: socket.closed, 3000)
    listening.close()
    bench.settle(20)
    bench.check_end()
    assert not bench.judge.flows, f"flows {bench.judge.flows} were never deleted"


def test_unchanged_it_passes() -> None:
    exchange(lambda kind, fields, further: [repacked(kind, fields, further)])


@pytest.mark.parametrize(("change", "said"), [
    (with_fields(ControlType.EMIT, generation=1), "rule 1: EMIT of another generation"),
    (with_fields(ControlType.FLOW_ADD, flow=1), "rule 1: not dense"),
    (with_fields(ControlType.FLOW_ADD, flow=16), "rule 1: a number beyond FLOWS"),
    (without(OrderFlag.FENCE, ControlType.EMIT), "rule 4: an acknowledgement that may precede its data"),
    (repeated(ControlType.EMIT, 9), "rule 4: an EMIT without a credit"),
    (repeated(ControlType.DROP), "rule 5: DROP of a handle that has ended"),
    (repeated(ControlType.PLACE), "rule 5: PLACE of a handle that has ended"),
    (left_out(ControlType.DROP), "rule 5: handles .* never ended|still waiting"),
    (without(OrderFlag.LAST, ControlType.PLACE), "rule 5: handles .* never ended"),
    (with_fields(ControlType.EMIT, window=1000), "rule 6: a window up to"),
    (hurried(), "rule 8: a send that is not acknowledged"),
    (repeated(ControlType.COMPLETE), "a completion of no job"),
    (left_out(ControlType.FLOW_DEL), r"flows \[0\] were never deleted"),
], ids=["generation", "sparse", "beyond", "no fence", "credits", "drop twice", "place twice", "no drop", "no last",
        "window", "hurried", "complete twice", "no delete"])
def test_what_breaks_a_rule_is_found(change: Change, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        exchange(change)
