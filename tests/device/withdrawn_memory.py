"""Memory that the host takes back while a decider's orders read and write it: on return of the deregistration nothing
does any more. Over any engine.
"""

from __future__ import annotations

import random
from typing import Any

from nic_model.contract import KeyRight
from nic_model.contract.control import ControlType, DoneStatus, OrderFlag
from nic_model.contract.protocols import TcpFlags
from tests.device.faults import NOBODY, POISON
from tests.device.offloaded import FIRST, FLOW, MSS, OWNER, STILL_PS, Decider, _is_data, _payload, _segment
from tests.device.rig import US, Rig
from tests.device.socket_completions import start

AREA_BYTES = 1 << 16
ORDERS = 8
SENT_BYTES, PLACED_BYTES = 5000, 1000
"""Of each EMIT, from the area's lower half on; of each PLACE, into its upper half."""


async def withdraw(rig: Rig, arguments: dict[str, Any]) -> Any:
    """Scenario: EMITs and PLACEs with one key, which is gone half way through. Each is done or refused; what was done
    has the bytes of before, and memory that is the host's again stays as it is."""
    rng = random.Random(arguments["seed"])
    nic, users, decider = await start(rig)
    statuses: dict[ControlType, set[int]] = {ControlType.EMIT: set(), ControlType.PLACE: set()}
    arrived = 0
    for _ in range(arguments["trials"]):
        area = rig.memory.allocate(AREA_BYTES, 4096)
        view = rig.memory.view(area, AREA_BYTES)
        content = rng.randbytes(AREA_BYTES)
        view[:] = content
        key = nic.register_memory(area, AREA_BYTES, KeyRight.READ | KeyRight.WRITE, OWNER, NOBODY)
        before = len(decider.told)
        for _ in range(ORDERS):
            rig.mac.arrive(_segment(arrived, rng.randbytes(PLACED_BYTES)), False)
            arrived += PLACED_BYTES
            await rig.kernel.sleep(2 * US)
        await rig.kernel.sleep(20 * US)
        segments = [fields for kind, fields in decider.told[before:] if kind is ControlType.SEGMENT]
        assert [fields["sequence"] - FIRST & 0xFFFF_FFFF for fields in segments] == list(
            range(arrived - ORDERS * PLACED_BYTES, arrived, PLACED_BYTES))
        frames = len(rig.mac.sent)
        giver = rig.kernel.spawn(_give(rig, decider, rng, key.value, [f["handle"] for f in segments]), "giver")
        await rig.kernel.sleep(rng.randrange(ORDERS * US))
        await nic.deregister_memory(key)
        placed = bytes(view[AREA_BYTES // 2 :])
        view[:] = bytes([POISON]) * AREA_BYTES
        tags = await giver
        answers = {tag: await decider.answer(tag) for tag in tags}
        await rig.kernel.sleep(STILL_PS)
        assert bytes(view) == bytes([POISON]) * AREA_BYTES, "written after it was taken back"
        done = [(ControlType(answer["order"]), number, answer["status"]) for number, answer in enumerate(
            answers.values())]
        sent = b"".join(_payload(frame) for _, frame in rig.mac.sent[frames:] if _is_data(frame))
        wanted = b"".join(content[_at(number) :][:SENT_BYTES] for kind, number, status in done
                          if (kind, status) == (ControlType.EMIT, DoneStatus.OK))
        assert sent == wanted, "read after it was taken back"
        for kind, number, status in done:
            statuses[kind].add(status)
            at = _at(number)
            if kind is ControlType.PLACE:
                was_written = placed[at : at + PLACED_BYTES] != content[AREA_BYTES // 2 :][at : at + PLACED_BYTES]
                assert was_written == (status == DoneStatus.OK), DoneStatus(status).name
        view.release()
        rig.memory.free(area)
    for user in users.values():
        await user.close()
    assert all(found == {DoneStatus.OK, DoneStatus.KEY} for found in statuses.values()), statuses
    return "as it should be"


def _at(number: int) -> int:
    """Where order `number` has its bytes, in its half."""
    return number // 2 * 1500


async def _give(rig: Rig, decider: Decider, rng: random.Random, key: int, handles: list[int]) -> list[int]:
    """An EMIT and a PLACE in turn. Returns their tags."""
    tags = []
    for number in range(2 * ORDERS):
        fields: dict[str, int] = {**FLOW, "flags": OrderFlag.DONE}
        if number % 2:
            tags.append(decider.order(
                ControlType.PLACE, **{**fields, "flags": OrderFlag.DONE | OrderFlag.LAST}, key=key,
                handle=handles.pop(), length=PLACED_BYTES, offset=AREA_BYTES // 2 + _at(number)))
        else:
            tags.append(decider.order(
                ControlType.EMIT, **fields, length=SENT_BYTES, pieces=1, key_0=key, offset_0=_at(number),
                length_0=SENT_BYTES, mss=MSS, tcp_flags=TcpFlags.ACK))
        await rig.kernel.sleep(rng.choice((0, 0, 1, 2)) * US // 2)
    return tags
