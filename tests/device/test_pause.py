"""Pause frames over the whole device: a peer that sends them, and one that obeys them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cosim.engines.bus import BusTiming
from host_driver.nic import DeviceError
from host_driver.rings import Descriptor
from nic_model.contract import Opcode, PauseControl, register
from nic_model.pause import pause_frame
from tests.device.faults import HIT, OWN_MAC, User, start
from tests.device.rig import FAR, FAST, MS, US, WIRE_DELAY_PS, Rig, RigSpec, on_model, on_rtl

PEER_MAC = bytes.fromhex("0200000000bb")
QUANTUM_PS = 512 * 100
"""512 bits at 10 Gb/s."""

SENDS = 12
PAUSE_QUANTA = 4000
XON_AFTER_PS = 50 * US


async def paused(rig: Rig, arguments: dict[str, Any]) -> dict[str, Any]:
    """Scenario: a pause frame, sends, and maybe one of 0 quanta meanwhile; when frames began to leave."""
    nic = await start(rig)
    nic.set_pause(rx=arguments["honour"], tx=False)
    user = await User.open(rig, nic, HIT)
    before = await nic.read_counters()
    at = rig.kernel.now
    rig.mac.arrive(pause_frame(PEER_MAC, PAUSE_QUANTA, OWN_MAC), False)
    if arguments["xon"]:
        rig.kernel.call_at(at + XON_AFTER_PS, lambda: rig.mac.arrive(pause_frame(PEER_MAC, 0), False))
    await rig.port.sleep(2 * US)
    for number in range(SENDS):
        user.send_frame(500, handle=number)
    user.bell()
    await user.until_finished(SENDS)
    await rig.port.sleep(50 * US)  # until the MAC has told of all frames
    counters = await nic.read_counters()
    sent = [time for time, _ in rig.mac.sent]
    assert user.sent() == [user.frame(500)] * SENDS
    await user.close()
    return {"at": at, "sent": sent, "pauses": counters["rx_pause"] - before["rx_pause"],
            "in": counters["rx_frames_in"] - before["rx_frames_in"], "end": rig.kernel.now}


def spec(scenario: str, **arguments: Any) -> RigSpec:
    return RigSpec(scenario=f"tests.device.test_pause:{scenario}", arguments=arguments)


@pytest.mark.parametrize(("honour", "xon", "held_ps"), [
    (True, False, PAUSE_QUANTA * QUANTUM_PS), (True, True, XON_AFTER_PS), (False, False, 0)])
def test_a_peer_stops_transmit(tiny_compiled: Path, honour: bool, xon: bool, held_ps: int) -> None:
    run = spec("paused", honour=honour, xon=xon)
    found = on_rtl(run)
    assert found == on_rtl(run, jump=False), "jumps make a difference"
    assert found["pauses"] == 1 + xon
    assert found["in"] == 0
    first = found["sent"][0] - found["at"]
    assert held_ps <= first < held_ps + 8 * US
    if held_ps:
        # all that waited goes at once then: 500 bytes each at a beat in 6.4 ns, and the MAC's own pace
        assert found["sent"][-1] - found["sent"][0] < SENDS * 4 * US


def test_the_model_counts_them(tiny_compiled: Path) -> None:
    found = on_model(spec("paused", honour=True, xon=True))
    assert (found["pauses"], found["in"]) == (2, 0)


# ---------------------------------------------------------------------------------------------- small sends wait

ROUNDS, HELD = 4, 20
"""Of each channel in each round: together more sends than the transmit side takes in while the wire stands still."""

HELD_PS = 60 * US


async def held(rig: Rig, arguments: dict[str, Any]) -> list[list[Any]]:
    """Scenario: the wire stands still until the transmit side takes in no more small sends, of all channels in turn;
    in every second round some are segmented. Returns for each channel its completions and frames."""
    rng = random.Random(f"held {arguments['seed']}")
    nic = await start(rig)
    nic.set_pause(rx=True, tx=False)
    users = [await User.open(rig, nic, number, tx_log2=8) for number in range(rig.config.channels)]
    for number in range(ROUNDS):
        rig.mac.arrive(pause_frame(PEER_MAC, 0xFFFF, OWN_MAC), False)
        await rig.port.sleep(2 * US)
        sent = len(rig.mac.sent)
        for count in range(HELD):
            for user in users:
                if number % 2 and rng.random() < 0.2:
                    user.send_segmented(rng.randrange(100, 400), rng.choice((32, 33, 100)))
                else:
                    frame = user.frame(rng.randrange(14, 100), rng.randrange(1000))
                    user.channel.submit(Descriptor(Opcode.SEND_FRAME, frame), None)
                if count % 3 == 2 or count == HELD - 1:
                    user.bell()
        await rig.port.sleep(HELD_PS)
        assert rig.is_model or len(rig.mac.sent) == sent, "a frame left on a wire that stands still"
        rig.mac.arrive(pause_frame(PEER_MAC, 0, OWN_MAC), False)
        for user in users:
            await user.until_finished((number + 1) * HELD)
        await rig.port.sleep(50 * US)  # until the MAC has told of all frames
    told = []
    for user in users:
        completions = [done.completion for done in user.finished]
        told.append([[(each.tag, each.status, each.length, each.segments) for each in completions],
                     [frame.hex() for frame in user.sent()]])
        await user.close()
    return told


@pytest.mark.parametrize("timing", [FAST, FAR], ids=["fast", "far"])
def test_small_sends_behind_a_wire_that_stands_still(tiny_compiled: Path, timing: BusTiming) -> None:
    run = RigSpec(scenario="tests.device.test_pause:held", arguments={"seed": 1}, timing=timing)
    assert on_rtl(run) == on_model(run)


# ---------------------------------------------------------------------------------------------- the own buffer is full

FRAMES = 70
FRAME_BYTES = 1514
SLOW = replace(FAST, bytes_per_cycle=0.25)
"""39 MB/s, where the peer sends 126 MB/s."""

SPACING_PS = 12 * US
XOFF_QUANTA = 3000


async def flooded(rig: Rig, arguments: dict[str, Any]) -> dict[str, Any]:
    """Scenario: a peer sends faster than the bus writes, and obeys pause frames if it is such a peer."""
    nic = await start(rig)
    nic.set_pause(rx=False, tx=arguments["send"], quanta=XOFF_QUANTA)
    user = await User.open(rig, nic, 0, rx_log2=7)
    user.post(FRAMES, 1700)
    user.bell()
    pauses: list[tuple[int, int]] = []
    waits_until = 0

    def hear(frame: bytes) -> None:
        nonlocal waits_until
        if frame[12:14] == b"\x88\x08":
            assert frame == pause_frame(OWN_MAC, int.from_bytes(frame[16:18], "big"))
            pauses.append((rig.kernel.now, int.from_bytes(frame[16:18], "big")))
            waits_until = rig.kernel.now + pauses[-1][1] * QUANTUM_PS

    rig.mac.to_peer = hear
    frames = [OWN_MAC + PEER_MAC + b"\x12\x34" + bytes([n]) * (FRAME_BYTES - 14) for n in range(FRAMES)]
    for frame in frames:
        while rig.kernel.now < waits_until:
            await rig.port.sleep(US)
        rig.mac.from_peer(frame)
        await rig.port.sleep(SPACING_PS)
    await rig.port.sleep(2 * MS)
    user.take()
    counters = await nic.read_counters()
    got = [bytes(rig.memory.view(user.area + done.handle, FRAME_BYTES)) for done in user.finished]
    assert set(got) <= set(frames)
    await user.close()
    return {"received": len(got), "in_order": got == frames, "pauses": pauses,
            "counters": {name: counters[name] for name in ("tx_pause", "tx_frames", "rx_fifo_full", "rx_frames")}}


def test_a_peer_that_obeys_loses_nothing(tiny_compiled: Path) -> None:
    run = replace_timing(spec("flooded", send=True))
    found = on_rtl(run)
    assert found["in_order"]
    assert found["counters"] == {"tx_pause": len(found["pauses"]), "tx_frames": 0, "rx_fifo_full": 0,
                                 "rx_frames": FRAMES}
    quanta = [quanta for _, quanta in found["pauses"]]
    assert quanta[-1] == 0
    assert set(quanta) == {XOFF_QUANTA, 0}
    assert quanta.count(XOFF_QUANTA) > quanta.count(0) >= 2, "no pause was prolonged"
    assert found == on_rtl(run, jump=False)


def test_without_pause_frames_the_same_load_loses_frames(tiny_compiled: Path) -> None:
    found = on_rtl(replace_timing(spec("flooded", send=False)))
    assert found["pauses"] == []
    assert found["counters"]["rx_fifo_full"] == FRAMES - found["received"] > 5


def replace_timing(run: RigSpec) -> RigSpec:
    return RigSpec(scenario=run.scenario, arguments=run.arguments, timing=SLOW, limit_ps=60 * MS)


# ---------------------------------------------------------------------------------------------- the driver

async def asked(rig: Rig, arguments: dict[str, Any]) -> dict[str, Any]:
    """Scenario: what the registers hold after `set_pause`, and what it refuses."""
    nic = await start(rig)
    names = ("PAUSE_CONTROL", "PAUSE_QUANTA", "PAUSE_HIGH", "PAUSE_LOW")
    read = [[await rig.port.read32(register(name)) for name in names]]
    nic.set_pause(rx=True, tx=False)
    read.append([await rig.port.read32(register(name)) for name in names])
    nic.set_pause(rx=True, tx=True, quanta=99, high_bytes=9000, low_bytes=3000)
    read.append([await rig.port.read32(register(name)) for name in names])
    refused = []
    for wrong in ({"quanta": 0}, {"quanta": 1 << 16}, {"high_bytes": 0}, {"high_bytes": 10, "low_bytes": 11}):
        try:
            nic.set_pause(rx=True, tx=True, **wrong)
        except ValueError as error:
            refused.append(str(error))
    nic.capabilities = replace(nic.capabilities, features=type(nic.capabilities.features)(0))
    try:
        nic.set_pause(rx=True, tx=True)
    except DeviceError as error:
        refused.append(str(error))
    return {"read": read, "refused": len(refused)}


@pytest.mark.parametrize("run", [on_model, on_rtl])
def test_the_driver_sets_the_registers(tiny_compiled: Path, run: Any) -> None:
    half = 16384 // 2
    both = int(PauseControl.HONOUR | PauseControl.SEND)
    assert run(spec("asked")) == {
        "read": [[0, 0xFFFF, half, half // 2], [1, 0xFFFF, half, half // 2], [both, 99, 9000, 3000]], "refused": 5}


def test_the_wire_is_far_enough_for_the_marks() -> None:
    """What is on its way when the peer hears of it fits above the high mark: the test above is not one of luck."""
    assert 2 * WIRE_DELAY_PS // SPACING_PS * FRAME_BYTES + FRAME_BYTES < 16384 // 2
