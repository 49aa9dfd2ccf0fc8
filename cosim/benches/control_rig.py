"""What both halves of `memnic bench control` share: the device's sizes, one flow, RTL under Amaranth's simulator."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from cosim.control_port import with_control_port
from nic_model.checksum import ones_sum
from nic_model.contract import CONFIGS, KeyRight, key_register, make_key, register
from nic_model.contract.control import ControlEnable
from nic_model.contract.registers import KEY_COMMIT

CONFIG = with_control_port(CONFIGS["default"])

FRAME_BYTES = 60
WIRE_OVERHEAD_BYTES = 24
"""Preamble, FCS and the gap to the next frame."""

LINE_CYCLES = (FRAME_BYTES + WIRE_OVERHEAD_BYTES) / CONFIG.mac_bytes
"""Of a frame at 10 Gb/s, with 64 bits a cycle at 156.25 MHz."""

FRAMES = 200
WARM_UP_FRAMES = 40
PAYLOAD_BYTES = 6
"""Of a segment in such a frame."""
BUS_LATENCY_CYCLES = 100
MAX_CYCLES = 20_000

FLOW, GENERATION, CHANNEL = 3, 9, 2
KEY_INDEX, KEY_GENERATION = 5, 1
KEY = make_key(KEY_INDEX, KEY_GENERATION)
OWN_MAC = bytes.fromhex("020000000001")
REMOTE, LOCAL, PORTS = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)), (1000, 80)
CONNECTION: dict[str, Any] = {
    "remote_address": int.from_bytes(REMOTE, "little"), "local_address": int.from_bytes(LOCAL, "little"),
    "remote_port": PORTS[0], "local_port": PORTS[1],
}
"""Its addresses and ports, as the flow table has them."""


def simulate(rig: Any, run: Callable[[Any, Any], Awaitable[None]]) -> None:
    """Run `run(ctx, rig)`, a test bench, over a component until it ends."""
    from amaranth.hdl import Fragment
    from amaranth.sim import Simulator

    simulator = Simulator(Fragment.get(rig, None))
    simulator.add_clock(1 / CONFIG.clock_hz)

    async def testbench(ctx: Any) -> None:
        await run(ctx, rig)

    simulator.add_testbench(testbench)
    simulator.run()


async def set_up(ctx: Any, rig: Any, *, right: KeyRight, key_base: int, key_bytes: int,
                 more: Iterable[tuple[int, int]] = ()) -> None:
    """Write the device's registers: its address, the port's enable, `KEY` over memory at `key_base`, and `more`."""
    commit = KEY_COMMIT.pack_word(valid=1, rights=int(right), owner=CHANNEL, generation=KEY_GENERATION)
    for address, value in (
        (register("MAC_ADDRESS_LO"), int.from_bytes(OWN_MAC[:4], "little")),
        (register("MAC_ADDRESS_HI"), int.from_bytes(OWN_MAC[4:], "little")),
        (register("CONTROL_ENABLE"), int(ControlEnable.FLOWS)), *more,
        (key_register("KEY_ADDRESS_LO", KEY_INDEX), key_base & 0xFFFF_FFFF),
        (key_register("KEY_ADDRESS_HI", KEY_INDEX), key_base >> 32),
        (key_register("KEY_LENGTH_LO", KEY_INDEX), key_bytes), (key_register("KEY_LENGTH_HI", KEY_INDEX), 0),
        (key_register("KEY_COMMIT", KEY_INDEX), commit),
    ):
        ctx.set(rig.write.payload, {"address": address, "data": value})
        ctx.set(rig.write.valid, 1)
        await ctx.tick()
    ctx.set(rig.write.valid, 0)


def steady_cycles(times: Sequence[int]) -> float:
    """Cycles from one to the next, behind the first ones. Raises RuntimeError for too few."""
    steady = times[WARM_UP_FRAMES:]
    if len(steady) < 2:
        raise RuntimeError(f"only {len(times)} of {FRAMES} segments came")
    return (steady[-1] - steady[0]) / (len(steady) - 1)


def segment(number: int) -> bytes:
    """A frame of the flow with its number as payload."""
    payload = number.to_bytes(PAYLOAD_BYTES, "big")
    tcp = bytearray(b"".join(port.to_bytes(2, "big") for port in PORTS) + (PAYLOAD_BYTES * number).to_bytes(4, "big")
                    + bytes(4) + bytes((5 << 4, 0x10, 0xFF, 0xFF)) + bytes(4) + payload)
    pseudo = REMOTE + LOCAL + bytes((0, 6)) + len(tcp).to_bytes(2, "big")
    tcp[16:18] = _checksum(pseudo + bytes(tcp))
    ip = bytearray(bytes((0x45, 0)) + (20 + len(tcp)).to_bytes(2, "big") + bytes((0, 0, 0x40, 0, 64, 6, 0, 0))
                   + REMOTE + LOCAL)
    ip[10:12] = _checksum(bytes(ip))
    return OWN_MAC + bytes(6) + b"\x08\x00" + bytes(ip) + bytes(tcp)


def _checksum(content: bytes) -> bytes:
    return (~ones_sum(content) & 0xFFFF).to_bytes(2, "big")
