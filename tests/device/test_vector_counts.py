"""What each vector counts, read while the events of others are under way."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nic_model.contract import vector_register
from tests.device.faults import NOBODY, OWN_MAC, User, start
from tests.device.rig import FAR, FAST, US, Rig, RigSpec, on_model, on_rtl

ROUNDS = 12
MOST = 9
STILL_PS = 30 * US
COUNTS = ("FIRED", "RX_EVENTS", "TX_EVENTS")


async def counted(rig: Rig, arguments: Any) -> list[dict[str, list[int]]]:
    """Scenario: in each round every channel is armed and sends some frames, and channel 0 receives some. The vectors'
    counts are read in the midst of them, and at the round's end. Returns what they should be then, and what they are;
    asserts that they do not fall."""
    rng = random.Random(arguments["seed"])
    nic = await start(rig)
    users = [await User.open(rig, nic, number) for number in range(rig.config.channels)]
    right = {name: [0] * rig.config.vectors for name in COUNTS}
    found, last = [], {name: [0] * rig.config.vectors for name in COUNTS}
    users[0].post(MOST)
    users[0].bell()
    await rig.port.sleep(STILL_PS)

    async def read() -> dict[str, list[int]]:
        return {name: [await rig.port.read32(vector_register(f"VECTOR_{name}", vector))
                       for vector in range(rig.config.vectors)] for name in COUNTS}

    for _ in range(ROUNDS):
        fires = set()
        arrived = rng.randrange(MOST)
        for user in users:
            user.take()
            user.channel.arm(NOBODY)
            sends = rng.randrange(MOST)
            for _ in range(sends):
                user.send_frame(rng.randrange(60, 400))
            user.bell()
            vector = user.number % rig.config.vectors
            right["TX_EVENTS"][vector] += sends
            if sends or (user.number == 0 and arrived):
                fires.add(vector)
        right["RX_EVENTS"][0] += arrived
        for _ in range(arrived):
            rig.mac.arrive(OWN_MAC + bytes(6) + rng.randbytes(60), False)
            midst = await read()
            assert all(now >= before for name in COUNTS for now, before in zip(midst[name], last[name], strict=True))
            last = midst
        await rig.port.sleep(STILL_PS)
        users[0].take()
        users[0].post(arrived)
        users[0].bell()
        for vector in fires:
            right["FIRED"][vector] += 1
        found.append({"right": {name: list(values) for name, values in right.items()}, "found": await read()})
    for user in users:
        user.take()
        await user.close()
    return found


@pytest.mark.parametrize(("on", "timing"), [(on_model, FAST), (on_rtl, FAST), (on_rtl, FAR)],
                         ids=["model", "rtl", "rtl far away"])
@pytest.mark.parametrize("seed", [1, 2])
def test_vectors_count_their_events(tiny_compiled: Path, on: Callable[[RigSpec], Any], timing: Any, seed: int) -> None:
    rounds = on(RigSpec(scenario="tests.device.test_vector_counts:counted", arguments={"seed": seed}, timing=timing))
    for number, each in enumerate(rounds):
        assert each["found"] == each["right"], f"after round {number} of seed {seed}"
