"""Adaptive moderation over a device: fewer interrupts under a steady load, and back when one waits for each frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from host_driver.interface import Offloads
from host_driver.notification import Interrupts
from tests.device.rig import MS, US, Rig, RigSpec, on_model, on_rtl
from tests.device.transfers import Host
from tests.host_driver.bench import HOST_MAC, PEER_MAC

FRAME = HOST_MAC + PEER_MAC + b"\x12\x34" + bytes(300)
"""Nothing that the stack answers."""

GAP_PS = 4 * US
LOAD_FRAMES = 8_500
LAST_FRAMES = 1_000
ANSWERED_FRAMES = 400


async def load_then_turns(rig: Rig, arguments: dict[str, Any]) -> dict[str, Any]:
    """Scenario: a frame each 4 us; then each only when the one before has interrupted the host."""
    host = Host(rig, 4)
    notification = Interrupts(rx_usecs=8, rx_frames=256, adaptive_rx=arguments["adaptive"])
    interface = await host.interface(Offloads(), notification)
    found: dict[str, Any] = {}
    seen = []
    await rig.port.sleep(10 * US)  # the device has been told to receive
    for number in range(LOAD_FRAMES):
        if number == LOAD_FRAMES - LAST_FRAMES:
            before = interface.interrupts
        rig.mac.arrive(FRAME, False)
        await rig.port.sleep(GAP_PS)
        seen.append(interface.moderation.get("rx"))
    found["load"] = interface.interrupts - before
    await rig.port.sleep(MS)
    for number in range(ANSWERED_FRAMES):
        count, began = interface.interrupts, rig.kernel.now
        rig.mac.arrive(FRAME, False)
        while interface.interrupts == count:
            await rig.port.sleep(US)
        seen.append(interface.moderation.get("rx"))
        if number == 0:
            found["first wait"] = rig.kernel.now - began
        await rig.port.sleep(5 * US)  # the handler ends, and arms
    found["last wait"] = rig.kernel.now - 5 * US - began
    found["errors"] = interface.receive_errors + interface.backlog_drops
    found["moderations"] = [now for now, last in zip(seen, [None, *seen], strict=False) if now != last]
    counters = await interface.nic.read_counters()
    found["frames"] = counters["rx_frames"]
    await interface.close()
    return found


def run(on: Callable[[RigSpec], Any], adaptive: bool) -> dict[str, Any]:
    spec = RigSpec(scenario="tests.device.test_adaptive_moderation:load_then_turns", arguments={"adaptive": adaptive})
    found: dict[str, Any] = on(spec)
    assert found["errors"] == 0
    assert found["frames"] == LOAD_FRAMES + ANSWERED_FRAMES
    return found


@pytest.mark.parametrize("on", [on_model, on_rtl])
def test_fewer_interrupts_under_load_and_back_again(tiny_compiled: Path, on: Callable[[RigSpec], Any]) -> None:
    fixed, adaptive = run(on, False), run(on, True)
    assert fixed["moderations"] == []
    # 8 us hold two or three frames of one in 4 us; 256 us hold 64
    assert fixed["load"] > LAST_FRAMES / 4
    assert adaptive["load"] < fixed["load"] / 10
    usecs = [moderation[0] for moderation in adaptive["moderations"]]
    assert usecs[:6] == [8, 1, 8, 64, 128, 256]
    assert usecs[-4:] == [128, 64, 8, 1]
    assert fixed["first wait"] < 15 * US
    assert 250 * US < adaptive["first wait"] < 280 * US
    assert adaptive["last wait"] < 8 * US
