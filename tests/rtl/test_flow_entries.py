# amaranth: UnusedElaboratable=no
"""The table of flow entries: what was stored last is found, with the pseudo-header's sum, while others are stored."""

import random

import pytest

from rtl.flow_entries import FlowEntries, FlowEntry
from tests.rtl.harness import Bench, idle, plain

SEED = 7_607
FLOWS = 16


def random_entry(rng: random.Random) -> dict:
    entry = {name: rng.getrandbits(shape if isinstance(shape, int) else 1) for name, shape in FlowEntry.members.items()}
    if not entry["ipv6"]:
        for name in ("local_address", "remote_address"):
            entry[name] &= 0xFFFF_FFFF
    return entry


def pseudo_sum(entry: dict) -> int:
    """RFC 9293 §3.1, RFC 8200 §8.1: over both addresses and the protocol, in 16-bit words of network order."""
    octets = b"".join(entry[name].to_bytes(16, "little") for name in ("local_address", "remote_address")) + b"\0\x06"
    total = sum(int.from_bytes(octets[at:at + 2], "big") for at in range(0, len(octets), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_a_lookup_finds_what_was_stored_last() -> None:
    rng, dut = random.Random(SEED), FlowEntries(flows=FLOWS)
    bench, found = Bench(dut, seed=SEED), []
    stored: dict[int, dict] = {}
    wanted: list[dict | None] = []
    bench.sink(dut.entry, found, stall=0.3)

    async def use(ctx):
        for flow in range(FLOWS):  # after the reset none is valid
            wanted.append(None)
            await bench.send(ctx, dut.flow, flow)
        for _ in range(60):
            flow = rng.randrange(FLOWS + 2)
            entry = random_entry(rng)
            await bench.send(ctx, dut.write, {"flow": flow, "entry": entry}, stall=0.2)
            if flow < FLOWS:
                stored[flow] = entry
            for _ in range(rng.randrange(4)):
                flow = rng.choice([*stored, FLOWS, 0xFFFF])
                wanted.append(stored.get(flow))
                await bench.send(ctx, dut.flow, flow, stall=0.3)
        while len(found) < len(wanted):
            await ctx.tick()
        await idle(ctx, 5)
    bench.add(use)
    bench.run()

    assert len(found) == len(wanted) > 60
    for number, (got, entry) in enumerate(zip(found, wanted, strict=True)):
        if entry is None:
            assert not got["entry"]["valid"], f"lookup {number}, seed {SEED}"
        else:
            assert got == {"entry": entry, "pseudo_sum": pseudo_sum(entry)}, f"lookup {number}, seed {SEED}"


def test_a_lookup_is_the_entry_before_or_after_a_write_and_takes_two_cycles() -> None:
    """Lookups of one flow in each cycle, while it is stored again and again."""
    rng, dut = random.Random(SEED + 1), FlowEntries(flows=FLOWS)
    bench, taken = Bench(dut, seed=SEED), []
    entries = [random_entry(rng) | {"valid": 1} for _ in range(5)]
    done = False

    async def store(ctx):
        nonlocal done
        for entry in entries:
            await bench.send(ctx, dut.write, {"flow": 3, "entry": entry})
        await idle(ctx, 10)
        done = True
    bench.add(store)

    async def look(ctx):
        ctx.set(dut.flow.payload, 3)
        ctx.set(dut.flow.valid, 1)
        ctx.set(dut.entry.ready, 1)
        asked = []
        async for _, _, enters, leaves, entry in ctx.tick().sample(dut.flow.ready, dut.entry.valid, dut.entry.payload):
            if leaves:
                taken.append((bench.cycle - asked.pop(0), plain(entry)))
            if enters:
                asked.append(bench.cycle)
    bench.background(look)
    bench.run()
    assert done
    assert {latency for latency, _ in taken} == {2}
    seen = [entry["entry"] for _, entry in taken if entry["entry"]["valid"]]
    changes = [entry for number, entry in enumerate(seen) if number == 0 or entry != seen[number - 1]]
    assert changes == entries


@pytest.mark.parametrize("flows", [0, 3, "16"])
def test_impossible_sizes_are_refused(flows) -> None:
    with pytest.raises(ValueError, match="flows must be a power of two of at least 2"):
        FlowEntries(flows=flows)
